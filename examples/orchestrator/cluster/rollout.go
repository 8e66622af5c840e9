package cluster

import (
	"errors"
	"fmt"
	"time"

	"github.com/steadyraft/raft"
)

// UpdateConfig says how tasks of one version are replaced by those of another. The zero value means Docker's defaults.
type UpdateConfig struct {
	Parallelism     int           `json:"parallelism,omitempty"`       // slots replaced at a time; default 1; AllAtOnce
	Delay           time.Duration `json:"delay,omitempty"`             // between a new task that serves and the next slot; default 0
	Monitor         time.Duration `json:"monitor,omitempty"`           // after it has begun to serve, a failure is the update's; default 5 s
	FailureAction   FailureAction `json:"failure_action,omitempty"`    // default pause
	MaxFailureRatio float64       `json:"max_failure_ratio,omitempty"` // of the slots; more of them is a failure of the update; default 0
	Order           UpdateOrder   `json:"order,omitempty"`             // default stop-first
}

// AllAtOnce as a parallelism replaces all slots at the same time.
const AllAtOnce = -1

// defaultMonitor is Docker's.
const defaultMonitor = 5 * time.Second

// maxUpdateWait bounds Delay and Monitor.
const maxUpdateWait = 24 * time.Hour

// FailureAction says what follows when too many tasks of a new version fail.
type FailureAction string

// The actions.
const (
	FailurePause    FailureAction = "pause" // leave the slots that are left as they are, until the next update
	FailureContinue FailureAction = "continue"
	FailureRollback FailureAction = "rollback" // not of a rollback
)

// UpdateOrder says what comes first in a slot.
type UpdateOrder string

// The orders.
const (
	StopFirst  UpdateOrder = "stop-first"
	StartFirst UpdateOrder = "start-first" // for a while the slot has two tasks, of different generations
)

// WithDefaults fills in what is not set.
func (c UpdateConfig) WithDefaults() UpdateConfig {
	if c.Parallelism == 0 {
		c.Parallelism = 1
	}
	if c.Monitor == 0 {
		c.Monitor = defaultMonitor
	}
	if c.FailureAction == "" {
		c.FailureAction = FailurePause
	}
	if c.Order == "" {
		c.Order = StopFirst
	}
	return c
}

func (c UpdateConfig) validate(what string, actions ...FailureAction) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(what+" "+format, args...)) }
	if c.Parallelism < AllAtOnce {
		bad("parallelism %d: want a positive number, 0 for the default, or %d for all at once", c.Parallelism, AllAtOnce)
	}
	if c.Delay < 0 || c.Delay > maxUpdateWait || c.Monitor < 0 || c.Monitor > maxUpdateWait {
		bad("delay %v and monitor %v: want durations up to %v", c.Delay, c.Monitor, maxUpdateWait)
	}
	if !(c.MaxFailureRatio >= 0 && c.MaxFailureRatio <= 1) { // nor is it no number
		bad("max failure ratio %v: want 0 to 1", c.MaxFailureRatio)
	}
	known := c.FailureAction == ""
	for _, a := range actions {
		known = known || c.FailureAction == a
	}
	if !known {
		bad("failure action %q: want one of %v", c.FailureAction, actions)
	}
	switch c.Order {
	case "", StopFirst, StartFirst:
	default:
		bad("order %q: want %s or %s", c.Order, StopFirst, StartFirst)
	}
	return errors.Join(errs...)
}

// UpdateState is how far the last update of a service has come. The texts are Docker's.
type UpdateState string

// The states.
const (
	Updating          UpdateState = "updating"
	UpdatePaused      UpdateState = "paused"
	UpdateCompleted   UpdateState = "completed"
	RollbackStarted   UpdateState = "rollback_started"
	RollbackPaused    UpdateState = "rollback_paused"
	RollbackCompleted UpdateState = "rollback_completed"
)

// UpdateStatus is the last update of a service.
type UpdateStatus struct {
	State       UpdateState `json:"state"`
	Index       raft.Index  `json:"index"` // of the entry that started it: clocks differ, the log has one order
	StartedAt   time.Time   `json:"started_at"`
	CompletedAt time.Time   `json:"completed_at,omitzero"`
	Message     string      `json:"message,omitempty"`
}

// UnderWay reports that slots are being replaced.
func (u *UpdateStatus) UnderWay() bool {
	return u != nil && (u.State == Updating || u.State == RollbackStarted)
}

// Paused reports that slots are left as they are because too many have failed.
func (u *UpdateStatus) Paused() bool {
	return u != nil && (u.State == UpdatePaused || u.State == RollbackPaused)
}

// Rollout returns how the slots of the service are to be replaced now.
func (sv *Service) Rollout() UpdateConfig {
	if sv.Update != nil && (sv.Update.State == RollbackStarted || sv.Update.State == RollbackPaused || sv.Update.State == RollbackCompleted) {
		return sv.Spec.Rollback.WithDefaults()
	}
	return sv.Spec.Update.WithDefaults()
}

// CanRollBack reports that there is a specification to go back to.
func (sv *Service) CanRollBack() bool { return sv.Previous != nil }

// begin starts an update to the version that the service has now.
func (d *draft) begin(sv *Service, state UpdateState, message string) {
	sv.Update = &UpdateStatus{State: state, Index: d.index, StartedAt: d.at, Message: message}
	slots := make([]Slot, len(sv.Slots))
	for i, s := range sv.Slots {
		s.UpdateFailedAt = time.Time{} // that was another update
		slots[i] = s
	}
	sv.Slots = slots
}

// rollBack makes the previous specification the present one, with the number of its version: tasks that still are of that version stay.
// What was rolled back becomes the previous one, as in Docker, so that a second rollback undoes the first.
func (d *draft) rollBack(sv *Service, message string) {
	next := *sv
	failed := sv.Spec
	next.Spec, next.Previous = *sv.Previous, &failed
	next.Version, next.PreviousVersion = sv.PreviousVersion, sv.Version
	next.LastVersion = max(sv.LastVersion, sv.Version)
	next.UpdatedAt, next.ChangedAt = d.at, d.index
	// How many replicas there are is no part of a release: an autoscaler, or a user, may have changed it since.
	next.Spec.Replicas = sv.Spec.Replicas
	next.Spec.Autoscale = sv.Spec.Autoscale
	next.growSlots()
	d.begin(&next, RollbackStarted, message)
	d.putService(next)
	d.event("service", sv.Spec.Name, message)
}

type (
	// RollbackService goes back to the specification before the last update.
	RollbackService struct {
		fromOutside
		Service ServiceID `json:"service"`
	}
	// EndUpdate says how an update ends: that it is completed, or paused, or rolled back because of its failures.
	EndUpdate struct {
		fromLoop
		Service ServiceID   `json:"service"`
		Version uint64      `json:"version"` // refused if the service has moved on
		State   UpdateState `json:"state"`
		Message string      `json:"message,omitempty"`
	}
	// ExplainTask says why a new task has no node yet.
	ExplainTask struct {
		fromLoop
		Task   TaskID `json:"task"`
		Reason string `json:"reason"`
	}
)

func (RollbackService) kind() string { return "rollback-service" }
func (EndUpdate) kind() string       { return "end-update" }
func (ExplainTask) kind() string     { return "explain-task" }

func (op RollbackService) apply(d *draft) Result {
	sv, r := d.service(op.Service)
	if sv == nil {
		return r
	}
	if !sv.CanRollBack() {
		return refuse(Conflict, "service %q has no previous specification: it was never updated", sv.Spec.Name)
	}
	if r := d.portsFree(*sv.Previous, sv.ID); r.Code != OK {
		return r
	}
	d.rollBack(sv, "rolled back by a user")
	return Result{Code: OK, Version: sv.PreviousVersion}
}

func (op EndUpdate) apply(d *draft) Result {
	sv, r := d.service(op.Service)
	if sv == nil {
		return r
	}
	if sv.Version != op.Version || !sv.Update.UnderWay() {
		return refuse(Conflict, "service %q is not being updated to version %d", sv.Spec.Name, op.Version)
	}
	status := *sv.Update
	status.State, status.Message = op.State, cut(op.Message)
	rollingBack := sv.Update.State == RollbackStarted
	switch op.State {
	case UpdateCompleted, UpdatePaused:
		if rollingBack {
			return refuse(Invalid, "a rollback does not become %s", op.State)
		}
	case RollbackCompleted, RollbackPaused:
		if !rollingBack {
			return refuse(Invalid, "an update does not become %s", op.State)
		}
	case RollbackStarted:
		if rollingBack || !sv.CanRollBack() {
			return refuse(Conflict, "service %q cannot be rolled back now", sv.Spec.Name)
		}
		// A port that was given up meanwhile may have gone to another service; then the update can only be paused.
		if r := d.portsFree(*sv.Previous, sv.ID); r.Code != OK {
			status.State = UpdatePaused
			status.Message = cut(op.Message + "; it cannot be rolled back: " + r.Message)
			break
		}
		d.rollBack(sv, cut(op.Message))
		return done
	default:
		return refuse(Invalid, "an update does not end as %q", op.State)
	}
	if status.State == UpdateCompleted || status.State == RollbackCompleted {
		status.CompletedAt = d.at
	}
	next := *sv
	next.Update = &status
	d.putService(next)
	d.event("service", sv.Spec.Name, eventText("update "+string(status.State), status.Message))
	return done
}

func eventText(what, why string) string {
	if why == "" {
		return what
	}
	return what + ": " + why
}

func (op ExplainTask) apply(d *draft) Result {
	t, r := d.task(op.Task)
	if t == nil {
		return r
	}
	if t.State != TaskNew {
		return refuse(Conflict, "task %s waits for no node: it is %s", t.ID, t.State)
	}
	if t.Error == cut(op.Reason) {
		return done
	}
	next := *t
	next.Error = cut(op.Reason)
	d.putTask(next)
	d.event("task", t.Name(), "pending: "+next.Error)
	return done
}

// updateFailed remembers, for the verdict on an update, that a task of the new version has failed before its monitor window was over.
func (d *draft) updateFailed(t *Task) {
	sv := d.s.Services[t.Service]
	switch {
	case sv == nil || !sv.Update.UnderWay() || t.SpecVersion != sv.Version || t.Desired != DesiredRunning:
	case t.Fence.Index < sv.Update.Index: // of the version that is being rolled back to, and older than the rollback
	case !t.ReadyAt.IsZero() && d.at.Sub(t.ReadyAt) >= sv.Rollout().Monitor:
	default:
		d.updateSlot(sv, t.Slot, func(s *Slot) {
			if s.UpdateFailedAt.IsZero() {
				s.UpdateFailedAt = d.at
			}
		})
	}
}
