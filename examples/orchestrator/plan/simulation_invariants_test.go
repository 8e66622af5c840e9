package plan_test

import (
	"fmt"
	"strings"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/plan"
)

// wave is an update under way: the slots that it has stopped and that are not well again, and the epochs that have had a hand in it.
type wave struct {
	update raft.Index
	slots  map[int]bool
	epochs map[raft.Term]bool
}

// watch looks at every command that a server applies.
func (w *world) watch(c cluster.Command, r cluster.Result, before, after *cluster.State) {
	if r.Code != cluster.OK {
		// The maps are shared until something in them changes, and events only grow.
		same := len(before.Events) == len(after.Events) && (len(after.Events) == 0 || before.Events[len(before.Events)-1].Seq == after.Events[len(after.Events)-1].Seq) &&
			sameMap(before.Nodes, after.Nodes) && sameMap(before.Services, after.Services) && sameMap(before.Tasks, after.Tasks) &&
			before.Cluster.Epoch == after.Cluster.Epoch
		if !same {
			w.Fail("%T was refused (%s) and has changed something", c.Op, r.Code)
		}
	}
	if after.Index <= w.applied {
		return // another server has been here before
	}
	w.applied, w.newest = after.Index, after
	if r.Code == cluster.Stale && c.Epoch != 0 {
		w.seen.Stale++
	}
	if c.Epoch != 0 && c.Epoch < before.Cluster.Epoch && r.Code != cluster.Stale {
		w.Fail("%T of epoch %d changed something in epoch %d: %s", c.Op, c.Epoch, before.Cluster.Epoch, r.Code)
	}
	if r.Code == cluster.OK {
		w.follow(c, before, after)
	}
}

func sameMap[K comparable, V comparable](a, b map[K]V) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a { // order-free
		if b[k] != v {
			return false
		}
	}
	return true
}

// follow keeps account of what commands do.
func (w *world) follow(c cluster.Command, before, after *cluster.State) {
	switch op := c.Op.(type) {
	case cluster.StartEpoch:
		w.seen.Epochs++
	case cluster.LoseTask:
		if t := before.Tasks[op.Task]; t != nil && t.Live() {
			if n := before.Nodes[t.Node]; n != nil && n.Status != cluster.NodeDown {
				w.Fail("task %s was given up, and its node %s is %s", t.ID, n.ID, n.Status)
			}
			w.lost[op.Task] = true
			w.seen.Lost++
		}
	case cluster.CreateTask:
		id := cluster.NewTaskID(op.Service, op.Slot, op.Generation)
		if before.Tasks[id] != nil {
			w.Fail("task %s was made twice", id)
		}
	case cluster.AssignTask:
		if t := before.Tasks[op.Task]; t.Fence.Epoch == 0 && !t.NotBefore.IsZero() && c.Epoch > w.epochAt(t.CreatedAt) {
			w.seen.Backoffs++
		}
	case cluster.AutoscaleService:
		w.followLoad(op, c.At, before, after)
	case cluster.EndUpdate:
		w.seen.Updates++
		if op.State == cluster.RollbackStarted {
			w.seen.Rollbacks++
		}
	}
	w.followUpdates(c, before, after)
	for id, t := range before.Tasks { // order-free
		next := after.Tasks[id]
		switch {
		case next == nil && t.Live():
			w.Fail("task %s was forgotten while %s", id, t.State)
		case next == nil:
		case t.State.Final() && next.State != t.State:
			w.Fail("task %s went on from %s to %s", id, t.State, next.State)
		case next.Attempts < t.Attempts || t.Desired == cluster.DesiredShutdown && next.Desired != t.Desired:
			w.Fail("task %s went back", id)
		case t.Node != "" && next.Node != t.Node:
			w.Fail("task %s moved from %s to %s", id, t.Node, next.Node)
		}
	}
}

// epochAt says which epoch it was at a time, as far as the events tell.
func (w *world) epochAt(at time.Time) raft.Term {
	epoch := raft.Term(0)
	for _, e := range w.newest.Events {
		if e.Kind == "leader" && !e.At.After(at) {
			var n uint64
			if _, err := fmt.Sscanf(e.Message, "leads epoch %d", &n); err == nil {
				epoch = max(epoch, raft.Term(n))
			}
		}
	}
	return epoch
}

// followUpdates checks that no update has more slots on their way than it may: those that it has stopped, and that are not well again.
func (w *world) followUpdates(c cluster.Command, before, after *cluster.State) {
	for id, wv := range w.onTheWay { // order-free
		sv := after.Services[id]
		if sv == nil || sv.Update == nil || sv.Update.Index != wv.update || !sv.Update.UnderWay() {
			delete(w.onTheWay, id)
			continue
		}
		for number := range wv.slots { // order-free
			slot := sv.Slots[number-1]
			t := after.Tasks[cluster.NewTaskID(id, number, slot.Generation)]
			well := t != nil && t.SpecVersion == sv.Version && !t.ReadyAt.IsZero()
			if well || !slot.UpdateFailedAt.IsZero() || number > sv.Spec.Replicas {
				delete(wv.slots, number)
			}
		}
	}
	op, isStop := c.Op.(cluster.StopTask)
	if !isStop || op.Reason != "service updated" {
		return
	}
	t := before.Tasks[op.Task]
	sv := before.Services[t.Service]
	if !t.Serving() || sv.Update == nil {
		return // it was not well before
	}
	wv := w.onTheWay[sv.ID]
	if wv == nil {
		wv = &wave{update: sv.Update.Index, slots: map[int]bool{}, epochs: map[raft.Term]bool{}}
		w.onTheWay[sv.ID] = wv
	}
	if wv.slots[t.Slot] = true; !wv.epochs[c.Epoch] {
		if wv.epochs[c.Epoch] = true; len(wv.epochs) > 1 {
			w.seen.Overlaps++
		}
	}
	if p := sv.Rollout().Parallelism; p != cluster.AllAtOnce && len(wv.slots) > p {
		w.Fail("the update of %s to version %d has %d slots on their way, not %d at most", sv.ID, sv.Version, len(wv.slots), p)
	}
}

// checkTruth compares what really runs with the newest state that any manager has applied.
func (w *world) checkTruth() {
	where := map[cluster.TaskID]cluster.NodeID{}
	wanted := map[string]cluster.TaskID{} // by slot: on nodes that have heard the newest word, and are meant to run it
	for _, n := range w.nodes {
		for id, k := range n.tasks { // order-free, but for which of two is named
			if !k.runs {
				continue
			}
			if other, twice := where[id]; twice {
				w.Fail("task %s runs on %s and on %s", id, other, n.id)
			}
			where[id] = n.id
			t := w.newest.Tasks[id]
			switch {
			case t == nil && !w.lost[id]:
				w.Fail("task %s runs on %s, and the managers have forgotten it", id, n.id)
			case t != nil && t.State.Final() && !w.lost[id]:
				w.Fail("task %s runs on %s, and the managers believe that it is %s", id, n.id, t.State)
			case t != nil && t.Live() && t.Desired == cluster.DesiredRunning && w.newest.Nodes[n.id].Status == cluster.NodeReady:
				slot := fmt.Sprintf("%s.%d", t.Service, t.Slot)
				if other, twice := wanted[slot]; twice && !w.moves(t.Service) {
					w.Fail("slot %s is filled by %s and by %s", slot, other, id)
				}
				wanted[slot] = id
			}
		}
	}
}

// moves reports that a slot of the service may have two tasks for a moment.
func (w *world) moves(id cluster.ServiceID) bool {
	sv := w.newest.Services[id]
	for _, n := range w.newest.Nodes { // order-free
		if n.Availability == cluster.AvailabilityDrain {
			return true
		}
	}
	return sv == nil || strings.HasPrefix(sv.Spec.Name, "start-first")
}

// Converged wants all services to be what they should be, both as the managers know it and as it is, and nothing left to do.
func (w *world) Converged() error {
	s := w.newest
	for _, n := range s.Nodes { // order-free, but for which is named
		if n.Status != cluster.NodeReady {
			return fmt.Errorf("node %s is %s", n.ID, n.Status)
		}
	}
	if len(s.Nodes) != len(w.nodes) {
		return fmt.Errorf("%d nodes of %d are known", len(s.Nodes), len(w.nodes))
	}
	serving := map[cluster.TaskID]bool{}
	for _, sv := range s.SortedServices() {
		if sv.Removing {
			return fmt.Errorf("service %s is still there", sv.Spec.Name)
		}
		if u := sv.Update; u != nil && !sv.Stopped && u.State != cluster.UpdateCompleted && u.State != cluster.RollbackCompleted {
			return fmt.Errorf("the update of service %s is %s", sv.Spec.Name, u.State)
		}
		slots := 0
		for _, t := range s.TasksOf(sv.ID) {
			if !t.Live() {
				continue
			}
			if !t.Serving() || t.SpecVersion != sv.Version || t.Slot > sv.Spec.Replicas || sv.Stopped {
				return fmt.Errorf("task %s of %s is %s, wanted %s", t.ID, sv.Spec.Name, t.State, t.Desired)
			}
			slots++
			serving[t.ID] = true
		}
		if err := w.scaled(sv); err != nil {
			return err
		}
		if slots != sv.Spec.Replicas && !sv.Stopped {
			return fmt.Errorf("service %s has %d of %d tasks", sv.Spec.Name, slots, sv.Spec.Replicas)
		}
	}
	for _, n := range w.nodes {
		for id, k := range n.tasks { // order-free, but for which is named
			t := s.Tasks[id]
			if k.runs && (t == nil || !t.Live()) {
				return fmt.Errorf("task %s still runs on %s", id, n.id)
			}
		}
		for _, t := range s.TasksOn(n.id) {
			if k := n.tasks[t.ID]; serving[t.ID] && (k == nil || !k.runs) {
				return fmt.Errorf("task %s does not run on %s", t.ID, n.id)
			}
		}
	}
	for _, server := range w.Servers() {
		if l := w.loops[server]; l != nil && server.Leads() == l.epoch {
			commands, _ := plan.Plan(stateOf(server), clockOf(server))
			if len(commands) > 0 {
				return fmt.Errorf("%d commands are left to do, first %#v", len(commands), commands[0].Op)
			}
		}
	}
	return nil
}
