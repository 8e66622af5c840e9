package cluster

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/steadyraft/raft"
)

func (op StartEpoch) apply(d *draft) Result {
	if d.epoch == 0 {
		return refuse(Invalid, "epochs begin at 1")
	}
	if d.epoch == d.s.Cluster.Epoch {
		return done // proposed again because the first outcome was not known
	}
	d.s.Cluster.Epoch, d.s.Cluster.EpochAt = d.epoch, d.at
	for _, n := range d.s.SortedNodes() {
		if n.Status == NodeReady {
			n := *n
			n.Status, n.StatusAt = NodeUnknown, d.at
			d.putNode(n)
		}
	}
	d.event("leader", string(op.Leader), fmt.Sprintf("leads epoch %d", d.epoch))
	return done
}

func (op SetNodeStatus) apply(d *draft) Result {
	n, r := d.node(op.Node)
	if n == nil {
		return r
	}
	switch op.Status {
	case NodeReady, NodeDown, NodeUnknown:
	default:
		return refuse(Invalid, "node status %q: want ready, down or unknown", op.Status)
	}
	if n.Status == op.Status {
		return done
	}
	next := *n
	next.Status, next.StatusAt = op.Status, d.at
	d.putNode(next)
	d.event("node", string(n.ID), string(op.Status))
	return done
}

func (op RegisterNode) apply(d *draft) Result {
	if op.Node == "" || op.Session == "" {
		return refuse(Invalid, "a node must have an ID and a session")
	}
	if op.Role != RoleManager && op.Role != RoleWorker {
		return refuse(Invalid, "role %q: want manager or worker", op.Role)
	}
	if d.s.Cluster.IsRemoved(op.Node) {
		return removed(op.Node)
	}
	next := Node{ID: op.Node, Availability: AvailabilityActive, Status: NodeUnknown, StatusAt: d.at}
	if old := d.s.Nodes[op.Node]; old != nil {
		next = *old
	} else {
		if len(d.s.Nodes) >= MaxNodes {
			return refuse(Conflict, "the cluster has %d nodes already", MaxNodes)
		}
		d.event("node", string(op.Node), "joined")
	}
	next.Address, next.Role, next.Resources, next.Session = op.Address, op.Role, op.Resources, op.Session
	d.putNode(next)
	return done
}

func removed(id NodeID) Result {
	return refuse(Removed, "node %s was removed from the cluster; to come back, it has to join under a new name", id)
}

func (op SetToken) apply(d *draft) Result {
	if op.Role != RoleManager && op.Role != RoleWorker {
		return refuse(Invalid, "role %q: want manager or worker", op.Role)
	}
	if len(op.SecretHash) != 2*sha256.Size {
		return refuse(Invalid, "the hash of a secret has %d characters, not %d", 2*sha256.Size, len(op.SecretHash))
	}
	if !op.ExpiresAt.IsZero() && !op.ExpiresAt.After(d.at) {
		return refuse(Invalid, "the token would have expired before it is made")
	}
	if d.s.Cluster.CA.Phase() != NoRotation {
		return refuse(Conflict, Rotating)
	}
	old, exists := d.s.Cluster.Tokens[op.Role]
	if exists && !op.Rotate && (old.ExpiresAt.IsZero() || d.at.Before(old.ExpiresAt)) {
		return refuse(Conflict, "there is a token for a %s already, made %s, and only its hash is known here; rotate it to get a new one, which ends the old one",
			op.Role, old.CreatedAt.Format(time.RFC3339))
	}
	d.s.Cluster.Tokens = with(d.s.Cluster.Tokens, op.Role, Token{SecretHash: op.SecretHash, CreatedAt: d.at, ExpiresAt: op.ExpiresAt})
	d.event("token", string(op.Role), "made")
	return done
}

func (op AdmitNode) apply(d *draft) Result {
	if op.Node == "" || op.Key == "" {
		return refuse(Invalid, "a node must have an ID and a key")
	}
	role, ok := d.s.Cluster.TokenRole(op.SecretHash, d.at)
	if !ok {
		return refuse(Forbidden, WrongToken)
	}
	if d.s.Cluster.CA.Phase() != NoRotation { // its certificate would be of a CA that is about to be dropped
		return refuse(Conflict, Rotating)
	}
	if d.s.Cluster.IsRemoved(op.Node) {
		return removed(op.Node)
	}
	if old := d.s.Nodes[op.Node]; old != nil {
		if old.Key == op.Key && old.Role == role {
			return Result{Code: OK, Role: role} // the answer to its first request was lost
		}
		return refuse(Conflict, "there is a node %s already; choose another name", op.Node)
	}
	if len(d.s.Nodes) >= MaxNodes {
		return refuse(Conflict, "the cluster has %d nodes already", MaxNodes)
	}
	d.putNode(Node{ID: op.Node, Role: role, Key: op.Key, Availability: AvailabilityActive, Status: NodeUnknown, StatusAt: d.at})
	d.event("node", string(op.Node), "joined as a "+string(role))
	return Result{Code: OK, Role: role}
}

func (op RemoveNode) apply(d *draft) Result {
	n := d.s.Nodes[op.Node]
	switch {
	case op.Node == "" || op.Until.IsZero():
		return refuse(Invalid, "want a node, and until when it is to be remembered")
	case d.s.Cluster.IsRemoved(op.Node):
		return done
	case n == nil && !op.Force:
		return refuse(NotFound, "no node %q", op.Node)
	case n != nil && n.Status != NodeDown && !op.Force:
		return refuse(Conflict, "node %s is %s; drain it and stop it, or remove it by force", n.ID, n.Status)
	}
	gone := map[NodeID]time.Time{op.Node: op.Until}
	for id, until := range d.s.Cluster.Removed { // order-free: each is kept or not by itself
		if until.After(d.at) {
			gone[id] = until
		}
	}
	if len(gone) > MaxRemoved {
		return refuse(Conflict, "%d nodes were removed whose certificates are still valid; wait until some have expired", MaxRemoved)
	}
	d.s.Cluster.Removed = gone
	d.deleteNode(op.Node)
	d.event("node", string(op.Node), "removed")
	return done
}

// with returns a copy of a map with one more entry: readers of earlier states have the old one.
func with[K comparable, V any](old map[K]V, key K, value V) map[K]V {
	next := make(map[K]V, len(old)+1)
	maps.Copy(next, old)
	next[key] = value
	return next
}

func (op SetAvailability) apply(d *draft) Result {
	n, r := d.node(op.Node)
	if n == nil {
		return r
	}
	switch op.Availability {
	case AvailabilityActive, AvailabilityPause, AvailabilityDrain:
	default:
		return refuse(Invalid, "availability %q: want active, pause or drain", op.Availability)
	}
	if n.Availability == op.Availability {
		return done
	}
	next := *n
	next.Availability = op.Availability
	d.putNode(next)
	d.event("node", string(n.ID), "availability "+string(op.Availability))
	return done
}

func (op CreateService) apply(d *draft) Result {
	if err := op.Spec.Validate(); err != nil {
		return refuse(Invalid, "service %q: %v", op.Spec.Name, err)
	}
	if d.s.ServiceByName(op.Spec.Name) != nil {
		return refuse(Conflict, "service %q exists already", op.Spec.Name)
	}
	if len(d.s.Services) >= MaxServices {
		return refuse(Conflict, "the cluster has %d services already", MaxServices)
	}
	if r := d.portsFree(op.Spec, ""); r.Code != OK {
		return r
	}
	// The index of the entry is unique for ever, and the same on every manager.
	id := ServiceID("s" + strconv.FormatUint(uint64(d.index), 36))
	sv := Service{ID: id, Spec: op.Spec, Version: 1, CreatedAt: d.at, UpdatedAt: d.at, ChangedAt: d.index}
	sv.growSlots()
	d.putService(sv)
	d.event("service", sv.Spec.Name, fmt.Sprintf("created with %d replicas", sv.Spec.Replicas))
	return Result{Code: OK, Service: id, Version: sv.Version}
}

func (op UpdateService) apply(d *draft) Result {
	sv, r := d.service(op.Service)
	if sv == nil {
		return r
	}
	if err := op.Spec.Validate(); err != nil {
		return refuse(Invalid, "service %q: %v", op.Spec.Name, err)
	}
	if !sv.unchanged(op.Expect) {
		return refuse(Conflict, "service %q has been changed by somebody else since you looked; look again, and repeat what you want to change", sv.Spec.Name)
	}
	if op.Spec.Name != sv.Spec.Name {
		return refuse(Invalid, "service %q cannot be renamed to %q", sv.Spec.Name, op.Spec.Name)
	}
	if r := d.portsFree(op.Spec, sv.ID); r.Code != OK {
		return r
	}
	next := *sv
	next.Spec, next.UpdatedAt, next.ChangedAt = op.Spec, d.at, d.index
	next.growSlots()
	if !sameTask(op.Spec.Task, sv.Spec.Task) {
		before := sv.Spec
		next.Previous, next.PreviousVersion = &before, sv.Version
		next.LastVersion = max(sv.LastVersion, sv.Version) + 1
		next.Version = next.LastVersion
		if sv.Previous != nil && sameTask(op.Spec.Task, sv.Previous.Task) {
			// Back to what it was: the slots that an update under way has not reached are right already.
			next.Version, next.LastVersion = sv.PreviousVersion, max(sv.LastVersion, sv.Version)
		}
		d.begin(&next, Updating, "")
	} else if sv.Update.Paused() {
		d.begin(&next, Updating, "") // it goes on: the user has looked at it
	} else if !sv.Update.UnderWay() && !sameSpec(op.Spec, sv.Spec) {
		// What can be undone now is this. In the middle of an update it stays what was before that.
		before := sv.Spec
		next.Previous, next.PreviousVersion = &before, sv.Version
	}
	if op.Spec.Autoscale == nil {
		next.Autoscaling = AutoscaleStatus{}
	}
	d.putService(next)
	d.event("service", sv.Spec.Name, fmt.Sprintf("updated to version %d", next.Version))
	return Result{Code: OK, Version: next.Version}
}

// sameSpec compares what a rollback brings back: all but the number of replicas and the autoscaler.
func sameSpec(a, b ServiceSpec) bool {
	a.Replicas, a.Autoscale = b.Replicas, b.Autoscale
	ja, errA := json.Marshal(a)
	jb, errB := json.Marshal(b)
	return errA == nil && errB == nil && bytes.Equal(ja, jb)
}

// sameTask compares what is replicated, so that a manager that restored a snapshot and one that replayed the log agree.
func sameTask(a, b TaskSpec) bool {
	ja, errA := json.Marshal(a)
	jb, errB := json.Marshal(b)
	return errA == nil && errB == nil && bytes.Equal(ja, jb)
}

func (op ScaleService) apply(d *draft) Result {
	sv, r := d.service(op.Service)
	if sv == nil {
		return r
	}
	if op.Replicas < 0 || op.Replicas > MaxReplicas {
		return refuse(Invalid, "replicas %d: want 0 to %d", op.Replicas, MaxReplicas)
	}
	if op.Replicas == sv.Spec.Replicas {
		return done
	}
	if a := sv.Spec.Autoscale; a != nil && (op.Replicas < a.Min || op.Replicas > a.Max) {
		return refuse(Conflict, "service %q is scaled by its load, from %d to %d replicas; end that first, or change its limits", sv.Spec.Name, a.Min, a.Max)
	}
	d.scale(*sv, op.Replicas, "")
	return done
}

// scale changes the number of replicas.
func (d *draft) scale(sv Service, replicas int, why string) {
	d.event("service", sv.Spec.Name, fmt.Sprintf("scaled from %d to %d", sv.Spec.Replicas, replicas)+why)
	sv.Spec.Replicas, sv.UpdatedAt, sv.ChangedAt = replicas, d.at, d.index
	sv.growSlots()
	d.putService(sv)
}

func (op StopService) apply(d *draft) Result { return d.setStopped(op.Service, true, "stopped") }

func (op StartService) apply(d *draft) Result { return d.setStopped(op.Service, false, "started") }

func (d *draft) setStopped(id ServiceID, stopped bool, message string) Result {
	sv, r := d.service(id)
	if sv == nil {
		return r
	}
	if sv.Stopped == stopped {
		return done
	}
	next := *sv
	next.Stopped, next.UpdatedAt = stopped, d.at
	d.putService(next)
	d.event("service", sv.Spec.Name, message)
	return done
}

func (op RemoveService) apply(d *draft) Result {
	sv, r := d.service(op.Service)
	if sv == nil {
		return r
	}
	next := *sv
	next.Removing, next.UpdatedAt = true, d.at
	d.putService(next)
	d.event("service", sv.Spec.Name, "removed")
	return done
}

func (op DropService) apply(d *draft) Result {
	sv := d.s.Services[op.Service]
	switch {
	case sv == nil:
		return done
	case !sv.Removing:
		return refuse(Conflict, "service %q is not being removed", sv.Spec.Name)
	}
	for _, t := range d.s.Tasks { // order-free: the answer is the same whichever is found
		if t.Service == op.Service {
			return refuse(Conflict, "service %q still has tasks", sv.Spec.Name)
		}
	}
	d.deleteService(op.Service)
	return done
}

func (op CreateTask) apply(d *draft) Result {
	sv, r := d.service(op.Service)
	if sv == nil {
		return r
	}
	switch {
	case sv.Stopped:
		return refuse(Conflict, "service %q is stopped", sv.Spec.Name)
	case op.SpecVersion != sv.Version:
		return refuse(Conflict, "service %q is at version %d, not %d", sv.Spec.Name, sv.Version, op.SpecVersion)
	case op.Slot < 1 || op.Slot > sv.Spec.Replicas:
		return refuse(Conflict, "service %q has no slot %d", sv.Spec.Name, op.Slot)
	case op.Generation != sv.Slots[op.Slot-1].Generation+1:
		return refuse(Conflict, "%s.%d: the next generation is %d, not %d", sv.Spec.Name, op.Slot, sv.Slots[op.Slot-1].Generation+1, op.Generation)
	}
	if last := d.s.Tasks[NewTaskID(sv.ID, op.Slot, op.Generation-1)]; last != nil && last.Live() && !op.Beside {
		return refuse(Conflict, "%s: task %s is %s on %s", last.Name(), last.ID, last.State, last.Node)
	}
	t := Task{
		ID: NewTaskID(sv.ID, op.Slot, op.Generation), Service: sv.ID, ServiceName: sv.Spec.Name,
		Slot: op.Slot, Generation: op.Generation, SpecVersion: sv.Version, Spec: sv.Spec.Task, Desired: DesiredRunning,
		TaskStatus: TaskStatus{State: TaskNew, NotBefore: op.NotBefore, Error: cut(op.Reason)}, CreatedAt: d.at, UpdatedAt: d.at,
	}
	if op.Node != "" {
		if r := d.assign(&t, op.Node); r.Code != OK {
			return r
		}
	}
	d.updateSlot(sv, op.Slot, func(s *Slot) { s.Generation = op.Generation })
	d.putTask(t)
	return done
}

func (op AssignTask) apply(d *draft) Result {
	t, r := d.task(op.Task)
	if t == nil {
		return r
	}
	if t.State != TaskNew || t.Desired != DesiredRunning {
		return refuse(Conflict, "task %s waits for no node: it is %s", t.ID, t.State)
	}
	next := *t
	if r := d.assign(&next, op.Node); r.Code != OK {
		return r
	}
	d.putTask(next)
	return done
}

func (d *draft) assign(t *Task, id NodeID) Result {
	n, r := d.node(id)
	if n == nil {
		return r
	}
	if n.Status != NodeReady || n.Availability != AvailabilityActive {
		return refuse(Conflict, "node %s takes no tasks: it is %s, %s", n.ID, n.Status, n.Availability)
	}
	if sv := d.s.Services[t.Service]; sv != nil && !sv.Spec.Allows(n) {
		return refuse(Conflict, "node %s does not fulfil the constraints of service %q any more", n.ID, t.ServiceName)
	}
	if want := t.Spec.Reservations; want != (Resources{}) && !want.Fits(n.Resources.Sub(d.reservedOn(id))) {
		return refuse(Conflict, "node %s has not enough left for what task %s reserves", n.ID, t.ID)
	}
	t.Node, t.State, t.UpdatedAt, t.Error = id, TaskAssigned, d.at, ""
	t.Fence = Fence{Epoch: d.epoch, Index: d.index}
	d.event("task", t.Name(), "assigned to "+string(id))
	return done
}

func (op StopTask) apply(d *draft) Result {
	t, r := d.task(op.Task)
	if t == nil {
		return r
	}
	if t.Desired == DesiredShutdown {
		return done
	}
	if sv := d.s.Services[t.Service]; sv != nil && !sv.unchanged(op.Expect) {
		return changed(sv)
	}
	next := *t
	next.Desired, next.GaveUp = DesiredShutdown, op.GaveUp
	next.Fence = Fence{Epoch: d.epoch, Index: d.index}
	if t.State == TaskNew { // no node has heard of it
		next.State, next.UpdatedAt = TaskShutdown, d.at
	}
	if op.GaveUp {
		d.slotFailed(t)
		d.updateFailed(t)
	}
	d.putTask(next)
	d.event("task", t.Name(), "stopping: "+cut(op.Reason))
	return done
}

// unchanged reports that a service is the one for which something was decided; 0: it was not for any.
func (sv *Service) unchanged(since raft.Index) bool { return since == 0 || sv.ChangedAt == since }

func changed(sv *Service) Result {
	return refuse(Conflict, "service %q has been changed since", sv.Spec.Name)
}

func (op KillTask) apply(d *draft) Result {
	t, r := d.task(op.Task)
	if t == nil {
		return r
	}
	if t.State != TaskRunning {
		return refuse(Conflict, "task %s does not run: it is %s", t.ID, t.State)
	}
	next := *t
	next.Kills++
	d.putTask(next)
	d.event("task", t.Name(), "killed by a user on "+string(t.Node))
	return done
}

func (op LoseTask) apply(d *draft) Result {
	t, r := d.task(op.Task)
	if t == nil {
		return r
	}
	if t.State.Final() {
		return done
	}
	// The world may have changed since the loop looked: a node that has come back still has its tasks.
	if n := d.s.Nodes[t.Node]; n != nil && n.Status != NodeDown {
		return refuse(Conflict, "task %s is not lost: node %s is %s", t.ID, n.ID, n.Status)
	}
	next := *t
	next.State, next.UpdatedAt = TaskLost, d.at
	d.putTask(next)
	d.event("task", t.Name(), fmt.Sprintf("lost with node %s", t.Node))
	return done
}

func (op RemoveTask) apply(d *draft) Result {
	t := d.s.Tasks[op.Task]
	switch {
	case t == nil:
		return done
	case !t.State.Final():
		return refuse(Conflict, "task %s is %s", t.ID, t.State)
	}
	d.deleteTask(op.Task)
	return done
}

func (op Report) apply(d *draft) Result {
	n, r := d.node(op.Node)
	if n == nil {
		return r
	}
	if n.Session != op.Session {
		return refuse(Stale, "node %s has registered again since", op.Node)
	}
	for _, rt := range op.Tasks {
		if t := d.s.Tasks[rt.ID]; t != nil && t.Node == op.Node && rt.Status.follows(t.TaskStatus) {
			d.report(t, rt.Status)
		}
	}
	return done
}

// follows reports that a node may say this about a task of which old is known: nothing follows a final state, a task does not go
// back within one attempt, and attempts only count up.
func (s TaskStatus) follows(old TaskStatus) bool {
	if s.rank() < taskStateRank[TaskStarting] || s.State == TaskLost || old.State.Final() {
		return false
	}
	return s.Attempts > old.Attempts || s.Attempts == old.Attempts && s.rank() >= old.rank()
}

func (s TaskStatus) rank() int { return taskStateRank[s.State] }

func (d *draft) report(t *Task, s TaskStatus) {
	s = s.bounded(t)
	if reflect.DeepEqual(s, t.TaskStatus) {
		return
	}
	next := *t
	next.TaskStatus = s
	if s.State != t.State || s.Attempts != t.Attempts {
		next.UpdatedAt = d.at
		d.event("task", t.Name(), describe(t, s))
	}
	// A restart after a clean exit is no failure: always also restarts what has done its work.
	if s.Attempts > t.Attempts && (s.ExitCode != 0 || s.Error != "") {
		next.Failures = appendTimes(t.Failures, d.at, s.Attempts-t.Attempts, MaxTaskFailures)
	}
	if next.ReadyAt.IsZero() && (next.Serving() || s.State == TaskComplete) {
		next.ReadyAt = d.at
	}
	if next.Refused() {
		d.slotFailed(t)
	}
	// A run that ended early counts as a failure of the update even if it ended well: the new version was expected to go on.
	if next.Refused() || s.State == TaskFailed || s.Attempts > t.Attempts || s.Health == HealthUnhealthy && t.Health != HealthUnhealthy {
		d.updateFailed(t)
	}
	d.putTask(next)
}

func describe(t *Task, s TaskStatus) string {
	text := fmt.Sprintf("%s on %s", s.State, t.Node)
	if s.Attempts > t.Attempts {
		text += fmt.Sprintf(", restart %d", s.Attempts)
	}
	if (s.Attempts > t.Attempts || s.State.Final()) && s.Error != "" {
		text += ": " + s.Error
	}
	return text
}

// slotFailed remembers that the slot needs another task because this one fails, for the delay before the next.
func (d *draft) slotFailed(t *Task) {
	if sv := d.s.Services[t.Service]; sv != nil {
		d.updateSlot(sv, t.Slot, func(s *Slot) { s.Failures = appendTimes(s.Failures, d.at, 1, MaxSlotFailures) })
	}
}

func (d *draft) updateSlot(sv *Service, slot int, change func(*Slot)) {
	next := *sv
	next.Slots = slices.Clone(sv.Slots)
	change(&next.Slots[slot-1])
	d.putService(next)
}

// growSlots makes room for the replicas. Slots are never given up, or their generations could begin again.
func (sv *Service) growSlots() {
	if missing := sv.Spec.Replicas - len(sv.Slots); missing > 0 {
		sv.Slots = append(slices.Clip(sv.Slots), make([]Slot, missing)...)
	}
}

// portsFree refuses a specification that publishes a port of another service.
func (d *draft) portsFree(spec ServiceSpec, except ServiceID) Result {
	for _, p := range spec.Task.Ports {
		for _, sv := range d.s.SortedServices() {
			if sv.ID == except || sv.Removing {
				continue
			}
			if slices.ContainsFunc(sv.Spec.Task.Ports, func(q Port) bool { return q.Published == p.Published }) {
				return refuse(Conflict, "service %q: port %d is published by service %q already", spec.Name, p.Published, sv.Spec.Name)
			}
		}
	}
	return done
}

func (d *draft) node(id NodeID) (*Node, Result) {
	if n := d.s.Nodes[id]; n != nil {
		return n, done
	}
	return nil, refuse(NotFound, "no node %q", id)
}

func (d *draft) service(id ServiceID) (*Service, Result) {
	if sv := d.s.Services[id]; sv != nil && !sv.Removing {
		return sv, done
	}
	return nil, refuse(NotFound, "no service %q", id)
}

func (d *draft) task(id TaskID) (*Task, Result) {
	if t := d.s.Tasks[id]; t != nil {
		return t, done
	}
	return nil, refuse(NotFound, "no task %q", id)
}

// appendTimes adds n times and keeps the newest limit. The old slice stays as it is: readers of earlier states have it.
func appendTimes(old []time.Time, at time.Time, n, limit int) []time.Time {
	out := slices.Clone(old)
	for range min(n, limit) {
		out = append(out, at)
	}
	return out[max(0, len(out)-limit):]
}

// cut bounds what others write into the state. A character that is cut in half is dropped.
func cut(s string) string {
	if len(s) <= maxErrorBytes {
		return s
	}
	return strings.ToValidUTF8(s[:maxErrorBytes], "")
}
