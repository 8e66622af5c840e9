package cluster

import (
	"errors"
	"fmt"
	"time"

	"github.com/steadyraft/raft"
)

// Autoscale has the leader choose the number of replicas, so that each uses about as much processor time as is asked for.
type Autoscale struct {
	Min       int     `json:"min"`
	Max       int     `json:"max"`
	TargetCPU float64 `json:"target_cpu"` // percent of one processor that a task is to use on average
}

func (a *Autoscale) validate() error {
	var errs []error
	if a.Min < 1 || a.Max < a.Min || a.Max > MaxReplicas {
		errs = append(errs, fmt.Errorf("autoscale from %d to %d replicas: want at least 1, at most %d, and the first not above the second", a.Min, a.Max, MaxReplicas))
	}
	if !(a.TargetCPU > 0 && a.TargetCPU <= 100_000) {
		errs = append(errs, fmt.Errorf("autoscale target of %v%% of a processor: want more than 0", a.TargetCPU))
	}
	return errors.Join(errs...)
}

// AutoscaleStatus is what the leader remembers between two decisions, so that its successor goes on with the same window.
type AutoscaleStatus struct {
	LowSince time.Time `json:"low_since,omitzero"` // since when fewer replicas have been enough without a break
	LowTo    int       `json:"low_to,omitempty"`   // the most that were needed since
}

type (
	// SetAutoscale has a service scaled by its load; nil leaves the number of replicas to users again.
	SetAutoscale struct {
		fromOutside
		Service   ServiceID  `json:"service"`
		Autoscale *Autoscale `json:"autoscale,omitempty"`
	}
	// NoteLoad remembers that fewer replicas would be enough, To at the most; 0: they would not any more.
	NoteLoad struct {
		fromLoop
		Service ServiceID  `json:"service"`
		To      int        `json:"to,omitempty"`
		Expect  raft.Index `json:"expect,omitempty"` // as of StopTask: the limits may be others now
	}
	// AutoscaleService changes the number of replicas because of the load.
	AutoscaleService struct {
		fromLoop
		Service  ServiceID  `json:"service"`
		From     int        `json:"from"` // refused unless there are that many
		Replicas int        `json:"replicas"`
		Load     float64    `json:"load"`             // percent of one processor, per task
		Expect   raft.Index `json:"expect,omitempty"` // as of NoteLoad
	}
)

func (SetAutoscale) kind() string     { return "set-autoscale" }
func (NoteLoad) kind() string         { return "note-load" }
func (AutoscaleService) kind() string { return "autoscale-service" }

func (op SetAutoscale) apply(d *draft) Result {
	sv, r := d.service(op.Service)
	if sv == nil {
		return r
	}
	if op.Autoscale != nil {
		if err := op.Autoscale.validate(); err != nil {
			return refuse(Invalid, "service %q: %v", sv.Spec.Name, err)
		}
	}
	next := *sv
	next.Spec.Autoscale, next.Autoscaling = op.Autoscale, AutoscaleStatus{}
	next.UpdatedAt, next.ChangedAt = d.at, d.index
	text := "autoscaling ended"
	if a := op.Autoscale; a != nil {
		text = fmt.Sprintf("autoscaling from %d to %d replicas at %v%% of a processor", a.Min, a.Max, a.TargetCPU)
	}
	d.putService(next)
	d.event("service", sv.Spec.Name, text)
	return done
}

func (op NoteLoad) apply(d *draft) Result {
	sv, r := d.service(op.Service)
	if sv == nil {
		return r
	}
	next := *sv
	switch {
	case sv.Spec.Autoscale == nil:
		return refuse(Conflict, "service %q is not scaled by its load", sv.Spec.Name)
	case !sv.unchanged(op.Expect):
		return changed(sv)
	case op.To <= 0:
		next.Autoscaling = AutoscaleStatus{}
	case sv.Autoscaling.LowSince.IsZero():
		next.Autoscaling = AutoscaleStatus{LowSince: d.at, LowTo: op.To}
	default:
		next.Autoscaling.LowTo = max(op.To, sv.Autoscaling.LowTo)
	}
	d.putService(next)
	return done
}

func (op AutoscaleService) apply(d *draft) Result {
	sv, r := d.service(op.Service)
	if sv == nil {
		return r
	}
	a := sv.Spec.Autoscale
	switch {
	case a == nil:
		return refuse(Conflict, "service %q is not scaled by its load", sv.Spec.Name)
	case !sv.unchanged(op.Expect):
		return changed(sv)
	case sv.Spec.Replicas != op.From:
		return refuse(Conflict, "service %q has %d replicas, not %d", sv.Spec.Name, sv.Spec.Replicas, op.From)
	case op.Replicas < a.Min || op.Replicas > a.Max:
		return refuse(Invalid, "service %q is scaled from %d to %d, not to %d", sv.Spec.Name, a.Min, a.Max, op.Replicas)
	}
	next := *sv
	next.Autoscaling = AutoscaleStatus{}
	d.scale(next, op.Replicas, fmt.Sprintf(" by its load of %.0f%%", op.Load))
	return done
}
