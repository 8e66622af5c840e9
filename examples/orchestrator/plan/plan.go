// Package plan decides what the leader does next. It is pure: it reads no clock, changes nothing, and gives the same answer to
// the same question, so that it can be tested without a cluster.
//
// The control loop proposes the commands of [Nodes] and [Plan], waits until all of them are applied, and asks again: whenever the
// state has changed, and at the time that they name. A command that no longer fits is refused by the state machine and does no
// harm.
package plan

import (
	"slices"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

const (
	// A task that fails this often within FailureWindow, despite the restarts on its node, is replaced on another one.
	MaxFailures   = cluster.MaxTaskFailures
	FailureWindow = 5 * time.Minute

	// The second task in a row that fails in a slot is followed by a new one after firstDelay; each further one doubles it.
	firstDelay = time.Second
	maxDelay   = time.Minute

	// keepFinal final tasks are kept per slot, besides the newest task, so that a user can see what happened.
	keepFinal = 4
)

// Plan compares the services with their tasks and returns the commands that bring the tasks closer to what is asked for, in the
// order in which to propose them, and when to ask again even if nothing happens (zero: never). No commands: nothing can be done
// now.
//
// A slot gets a new task when its newest one is gone or given up; when its node is drained or does not fulfil the constraints any more,
// the old task stops when the new one serves. How an update goes on says [service.rollout]. New tasks go to ready, active nodes that fulfil
// the constraints and have enough left for the reservations, there to those with the fewest tasks of the service, then the fewest of all.
func Plan(s *cluster.State, now time.Time) (commands []cluster.Command, next time.Time) {
	p := &planner{state: s, now: now}
	p.findSeats()
	tasks := make(map[cluster.ServiceID][]*cluster.Task, len(s.Services))
	for _, t := range s.Tasks { // order-free: sorted below, and sums
		tasks[t.Service] = append(tasks[t.Service], t)
		if t.Live() && t.Node != "" {
			p.occupy(t)
		}
	}
	for _, sv := range s.SortedServices() {
		slices.SortFunc(tasks[sv.ID], cluster.CompareTasks)
		(&service{Service: sv, p: p, tasks: tasks[sv.ID]}).plan()
	}
	return p.commands, p.next
}

func command(s *cluster.State, now time.Time, op cluster.Op) cluster.Command {
	return cluster.Command{Epoch: s.Cluster.Epoch, At: now, Op: op}
}

// earlier returns the earlier of two deadlines, where zero is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

type planner struct {
	state  *cluster.State
	now    time.Time
	seats  []*seat // of nodes that take new tasks, by ID
	seatOf map[cluster.NodeID]*seat
	closed int // nodes that take none

	commands []cluster.Command
	next     time.Time
}

func (p *planner) do(op cluster.Op) { p.commands = append(p.commands, command(p.state, p.now, op)) }

// slot is a slot with its tasks by generation, the newest last, as they are after the commands so far.
type slot struct {
	number int
	tasks  []*cluster.Task
}

func (sl *slot) newest() *cluster.Task {
	if len(sl.tasks) == 0 {
		return nil
	}
	return sl.tasks[len(sl.tasks)-1]
}

// ended reports that the newest task has ended by itself and its restart policy leaves it at that.
func (sl *slot) ended() bool {
	t := sl.newest()
	return t != nil && t.Desired == cluster.DesiredRunning && (t.State == cluster.TaskComplete || t.State == cluster.TaskFailed)
}

// vacant reports that the slot needs a new task: there is none, or its newest one is gone.
func (sl *slot) vacant() bool {
	t := sl.newest()
	return t == nil || t.State.Final() && !sl.ended()
}

// service is a service while it is planned.
type service struct {
	*cluster.Service
	p      *planner
	tasks  []*cluster.Task // by slot and generation
	slots  []slot
	looked bool // the seats are prepared for it
}

func (sv *service) plan() {
	p := sv.p
	p.lose(sv.tasks)
	sv.slots = bySlot(sv.Service, sv.tasks)
	if sv.Removing && len(sv.tasks) == 0 {
		p.do(cluster.DropService{Service: sv.ID})
		return
	}
	updating, rolledBack := sv.rollout()
	if rolledBack {
		return // it is another service after that command
	}
	for i := range sv.slots {
		sl := &sv.slots[i]
		switch {
		case sv.Removing:
			p.stop(sl, "service removed")
			p.forget(sl.tasks, 0)
		case sl.number > sv.Spec.Replicas:
			p.stop(sl, "service scaled down")
			p.forget(sl.tasks, 0)
		case sv.Stopped:
			p.stop(sl, "service stopped")
		case updating[sl.number]:
			sv.replace(sl)
		default:
			sv.fill(sl)
			p.forget(sl.tasks[:max(0, len(sl.tasks)-1)], keepFinal)
		}
	}
}

// lose gives up the tasks of nodes that are down. In the list they are replaced by copies that say so: the state is not ours.
func (p *planner) lose(tasks []*cluster.Task) {
	for i, t := range tasks {
		if !t.Live() || t.Node == "" {
			continue
		}
		if n := p.state.Nodes[t.Node]; n == nil || n.Status == cluster.NodeDown {
			p.do(cluster.LoseTask{Task: t.ID})
			lost := *t
			lost.State = cluster.TaskLost
			tasks[i] = &lost
		}
	}
}

// bySlot returns all slots that are wanted or have tasks, by number.
func bySlot(sv *cluster.Service, tasks []*cluster.Task) []slot {
	var slots []slot
	for number := 1; number <= sv.Spec.Replicas || len(tasks) > 0; number++ {
		n := 0
		for n < len(tasks) && tasks[n].Slot == number {
			n++
		}
		if n > 0 || number <= sv.Spec.Replicas {
			slots = append(slots, slot{number: number, tasks: tasks[:n:n]})
		}
		tasks = tasks[n:]
	}
	return slots
}

// stop ends the tasks of a slot. A newest task that has ended is marked too, so that it does not count as the slot's task later.
func (p *planner) stop(sl *slot, reason string) {
	for _, t := range sl.tasks {
		if t.Desired == cluster.DesiredRunning && (t.Live() || t == sl.newest() && sl.ended()) {
			p.do(cluster.StopTask{Task: t.ID, Reason: reason})
		}
	}
}

// stopOlder ends the predecessors of the newest task.
func (sl *slot) stopOlder(p *planner) {
	p.stop(&slot{tasks: sl.tasks[:len(sl.tasks)-1]}, "replaced by a task on "+string(sl.newest().Node))
}

// forget removes the oldest final tasks and keeps some.
func (p *planner) forget(tasks []*cluster.Task, keep int) {
	final := 0
	for _, t := range tasks {
		if !t.Live() {
			final++
		}
	}
	for _, t := range tasks {
		if final > keep && !t.Live() {
			p.do(cluster.RemoveTask{Task: t.ID})
			final--
		}
	}
}

// fill sees to it that one task of the slot serves.
func (sv *service) fill(sl *slot) {
	p, t := sv.p, sl.newest()
	if sl.vacant() {
		sv.create(sl)
		return
	}
	if t.Desired == cluster.DesiredShutdown || sl.ended() {
		return // being stopped, and replaced after that; or at its end
	}
	if t.Serving() { // what it has replaced has gone on until now
		sl.stopOlder(p)
	}
	if t.State == cluster.TaskNew {
		sv.assign(sl)
		return
	}
	unwelcome := sv.unwelcome(p.state.Nodes[t.Node])
	switch {
	case t.Health == cluster.HealthUnhealthy && t.Spec.Restart.Condition != cluster.RestartNo && t.Spec.Restart.MaxAttempts == 0:
		// Restarts that are counted are the node's business, which counts them: a new task would begin at 0, and never come to an end.
		p.do(cluster.StopTask{Task: t.ID, GaveUp: true, Reason: "unhealthy"})
	case p.recent(t.Failures) >= MaxFailures && sv.elsewhere(t.Node):
		p.do(cluster.StopTask{Task: t.ID, GaveUp: true, Reason: "fails again and again on " + string(t.Node)})
	case unwelcome != "" && t.Serving():
		sv.create(sl)
	case unwelcome != "" && sv.elsewhere(t.Node):
		// It serves nobody, so nobody misses it; and with a successor beside it a slot would collect tasks, one for each node that is
		// drained while it starts.
		p.do(cluster.StopTask{Task: t.ID, Reason: unwelcome})
	}
}

// unwelcome says why the service's tasks are to leave a node; "" if they may stay.
func (sv *service) unwelcome(n *cluster.Node) string {
	switch {
	case n.Availability == cluster.AvailabilityDrain:
		return "node " + string(n.ID) + " is drained"
	case !sv.Spec.Allows(n):
		return "node " + string(n.ID) + " does not fulfil the constraints any more"
	default:
		return ""
	}
}

// create asks for the next task of a slot: at once and with a node, or, if the slot has failed before, after a delay.
func (sv *service) create(sl *slot) {
	history := sv.Slots[sl.number-1]
	op := cluster.CreateTask{Service: sv.ID, SpecVersion: sv.Version, Slot: sl.number, Generation: history.Generation + 1}
	op.Beside = sl.newest() != nil && sl.newest().Live()
	if n := sv.p.recent(history.Failures); n > 1 {
		delay := min(firstDelay<<(n-2), maxDelay)
		op.NotBefore = history.Failures[len(history.Failures)-1].Add(delay)
	}
	if !sv.p.waits(op.NotBefore) {
		op.Node, op.Reason = sv.place(sl, sv.Spec.Task.Reservations)
		op.NotBefore = time.Time{}
	}
	sv.p.do(op)
}

// assign finds a node for the slot's newest task, when its time has come.
func (sv *service) assign(sl *slot) {
	t := sl.newest()
	if t.SpecVersion != sv.Version { // nobody has seen it yet, so it needs no update: the next one is of the present version
		sv.p.do(cluster.StopTask{Task: t.ID, Reason: "service updated"})
		return
	}
	if sv.p.waits(t.NotBefore) {
		sv.p.next = earlier(sv.p.next, t.NotBefore)
		return
	}
	node, reason := sv.place(sl, t.Spec.Reservations)
	switch {
	case node != "":
		sv.p.do(cluster.AssignTask{Task: t.ID, Node: node})
	case reason != t.Error:
		sv.p.do(cluster.ExplainTask{Task: t.ID, Reason: reason})
	}
}

// waits reports that a deadline is still to come. One that lies further ahead than any delay was set by a manager whose clock is
// ahead of ours, and counts as past.
func (p *planner) waits(deadline time.Time) bool {
	d := deadline.Sub(p.now)
	return d > 0 && d <= maxDelay
}

// recent counts the failures within the window.
func (p *planner) recent(failures []time.Time) int {
	n := 0
	for _, at := range failures {
		if p.now.Sub(at) < FailureWindow {
			n++
		}
	}
	return n
}
