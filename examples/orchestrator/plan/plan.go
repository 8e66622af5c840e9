// Package plan decides what the leader does next. It is pure: it reads no clock, changes nothing, and gives the same answer to
// the same question, so that it can be tested without a cluster.
//
// The control loop proposes the commands of [Nodes] and [Plan], waits until all of them are applied, and asks again: whenever the
// state has changed, and at the time that they name. A command that no longer fits is refused by the state machine and does no
// harm.
package plan

import (
	"cmp"
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
// A slot gets a new task when its newest one is gone or given up; on a drained node, when the new task serves the old one stops.
// An update replaces one task at a time and stops the old one first. New tasks go to ready, active nodes with the fewest tasks of
// the service, then the fewest of all.
func Plan(s *cluster.State, now time.Time) (commands []cluster.Command, next time.Time) {
	p := &planner{state: s, now: now, load: map[cluster.NodeID]int{}}
	for _, n := range s.SortedNodes() {
		if n.Status == cluster.NodeReady && n.Availability == cluster.AvailabilityActive {
			p.nodes = append(p.nodes, n)
		}
	}
	tasks := map[cluster.ServiceID][]*cluster.Task{}
	for _, t := range s.Tasks { // order-free: sorted below
		tasks[t.Service] = append(tasks[t.Service], t)
		if t.Live() && t.Node != "" {
			p.load[t.Node]++
		}
	}
	for _, sv := range s.SortedServices() {
		slices.SortFunc(tasks[sv.ID], cluster.CompareTasks)
		p.service(sv, tasks[sv.ID])
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
	state *cluster.State
	now   time.Time
	nodes []*cluster.Node        // that take new tasks, by ID
	load  map[cluster.NodeID]int // live tasks, with those that this plan adds

	commands []cluster.Command
	next     time.Time
}

func (p *planner) do(op cluster.Op) { p.commands = append(p.commands, command(p.state, p.now, op)) }

// slot is a slot with its tasks by generation, the newest last, as they are after the commands so far.
type slot struct {
	sv     *cluster.Service
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

func (p *planner) service(sv *cluster.Service, tasks []*cluster.Task) {
	p.lose(tasks)
	slots := bySlot(sv, tasks)
	if sv.Removing && len(tasks) == 0 {
		p.do(cluster.DropService{Service: sv.ID})
		return
	}
	spread := map[cluster.NodeID]int{} // live tasks of this service
	for _, t := range tasks {
		if t.Live() && t.Desired == cluster.DesiredRunning {
			spread[t.Node]++
		}
	}
	updating := pickUpdate(sv, slots)
	for i := range slots {
		sl := &slots[i]
		switch {
		case sv.Removing:
			p.stop(sl, "service removed")
			p.forget(sl.tasks, 0)
		case sl.number > sv.Spec.Replicas:
			p.stop(sl, "service scaled down")
			p.forget(sl.tasks, 0)
		case sv.Stopped:
			p.stop(sl, "service stopped")
		case sl.number == updating:
			p.stop(sl, "service updated")
		default:
			p.fill(sl, spread)
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
			slots = append(slots, slot{sv: sv, number: number, tasks: tasks[:n:n]})
		}
		tasks = tasks[n:]
	}
	return slots
}

// pickUpdate returns the slot whose task of an old version is to be stopped now, or 0. One slot is replaced at a time: while
// another one is on its way or has failed, nothing is stopped, so that a version that does not start costs one replica. What does not serve goes
// first: otherwise an update that repairs a service could never begin.
func pickUpdate(sv *cluster.Service, slots []slot) int {
	serving, broken := 0, 0
	for i := range slots {
		sl := &slots[i]
		if sl.number > sv.Spec.Replicas {
			break
		}
		t := sl.newest()
		old := !sl.vacant() && t.Desired == cluster.DesiredRunning && t.SpecVersion != sv.Version
		switch {
		case !old && (sl.vacant() || !t.Serving() && t.State != cluster.TaskComplete):
			return 0
		case old && t.Serving() && serving == 0:
			serving = sl.number
		case old && !t.Serving() && broken == 0:
			broken = sl.number
		}
	}
	return cmp.Or(broken, serving)
}

// stop ends the tasks of a slot. A newest task that has ended is marked too, so that it does not count as the slot's task later.
func (p *planner) stop(sl *slot, reason string) {
	for _, t := range sl.tasks {
		if t.Desired == cluster.DesiredRunning && (t.Live() || t == sl.newest() && sl.ended()) {
			p.do(cluster.StopTask{Task: t.ID, Reason: reason})
		}
	}
}

// forget removes the oldest final tasks and keeps some.
func (p *planner) forget(tasks []*cluster.Task, keep int) {
	tasks = slices.DeleteFunc(slices.Clone(tasks), (*cluster.Task).Live)
	for _, t := range tasks[:max(0, len(tasks)-keep)] {
		p.do(cluster.RemoveTask{Task: t.ID})
	}
}

// fill sees to it that one task of the slot serves.
func (p *planner) fill(sl *slot, spread map[cluster.NodeID]int) {
	t := sl.newest()
	if sl.vacant() {
		p.create(sl, spread)
		return
	}
	if t.Desired == cluster.DesiredShutdown || sl.ended() {
		return // being stopped, and replaced after that; or at its end
	}
	if t.Serving() { // what it has replaced has gone on until now
		p.stop(&slot{tasks: sl.tasks[:len(sl.tasks)-1]}, "replaced by a task on "+string(t.Node))
	}
	n := p.state.Nodes[t.Node]
	switch {
	case t.State == cluster.TaskNew:
		p.assign(sl, spread)
	case t.Health == cluster.HealthUnhealthy && t.Spec.Restart.Condition != cluster.RestartNo:
		p.do(cluster.StopTask{Task: t.ID, GaveUp: true, Reason: "unhealthy"})
	case p.recent(t.Failures) >= MaxFailures && p.elsewhere(t.Node):
		p.do(cluster.StopTask{Task: t.ID, GaveUp: true, Reason: "fails again and again on " + string(t.Node)})
	case n.Availability == cluster.AvailabilityDrain:
		p.create(sl, spread)
	}
}

// create asks for the next task of a slot: at once and with a node, or, if the slot has failed before, after a delay.
func (p *planner) create(sl *slot, spread map[cluster.NodeID]int) {
	history := sl.sv.Slots[sl.number-1]
	op := cluster.CreateTask{
		Service: sl.sv.ID, SpecVersion: sl.sv.Version, Slot: sl.number, Generation: history.Generation + 1,
	}
	if n := p.recent(history.Failures); n > 1 {
		delay := min(firstDelay<<(n-2), maxDelay)
		op.NotBefore = history.Failures[len(history.Failures)-1].Add(delay)
	}
	if !p.waits(op.NotBefore) {
		op.Node = p.place(sl, spread)
		op.NotBefore = time.Time{}
	}
	p.do(op)
}

// assign finds a node for the slot's newest task, when its time has come.
func (p *planner) assign(sl *slot, spread map[cluster.NodeID]int) {
	t := sl.newest()
	if p.waits(t.NotBefore) {
		p.next = earlier(p.next, t.NotBefore)
		return
	}
	if node := p.place(sl, spread); node != "" {
		p.do(cluster.AssignTask{Task: t.ID, Node: node})
	}
}

// waits reports that a deadline is still to come. One that lies further ahead than any delay was set by a manager whose clock is
// ahead of ours, and counts as past.
func (p *planner) waits(deadline time.Time) bool {
	d := deadline.Sub(p.now)
	return d > 0 && d <= maxDelay
}

// place chooses a node for a task of the slot and counts the task there; "" if no node takes tasks. A node where the slot has
// failed lately is the last resort.
func (p *planner) place(sl *slot, spread map[cluster.NodeID]int) cluster.NodeID {
	failed := map[cluster.NodeID]int{}
	for _, t := range sl.tasks {
		if (t.GaveUp || t.Refused()) && t.SpecVersion == sl.sv.Version && p.now.Sub(t.UpdatedAt) < FailureWindow {
			failed[t.Node]++
		}
	}
	if len(p.nodes) == 0 {
		return ""
	}
	best := slices.MinFunc(p.nodes, func(a, b *cluster.Node) int { // the first of equals
		return cmp.Or(
			cmp.Compare(failed[a.ID], failed[b.ID]),
			cmp.Compare(spread[a.ID], spread[b.ID]),
			cmp.Compare(p.load[a.ID], p.load[b.ID]),
		)
	}).ID
	spread[best]++
	p.load[best]++
	return best
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

// elsewhere reports that a node other than this one takes tasks.
func (p *planner) elsewhere(id cluster.NodeID) bool {
	return slices.ContainsFunc(p.nodes, func(n *cluster.Node) bool { return n.ID != id })
}
