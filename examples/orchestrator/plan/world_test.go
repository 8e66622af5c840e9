package plan

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// world is a cluster without its processes: the state machine, a leader that plans, and agents that do as they are told, in an
// order that a seed decides.
type world struct {
	*testing.T
	rng   *rand.Rand
	m     *cluster.Machine
	index raft.Index
	now   time.Time
	heard map[cluster.NodeID]time.Time
	dead  map[cluster.NodeID]bool // agents that say nothing
	fails bool                    // whether tasks fail
	drain bool                    // whether tasks are moved, and updates start the new task first: a slot may have two tasks then
	plans int
	seen  map[cluster.TaskID]*cluster.Task // as of the last check
}

func newWorld(t *testing.T, seed uint64, nodes int) *world {
	w := &world{
		T: t, rng: rand.New(rand.NewPCG(seed, 1)), m: cluster.NewMachine(),
		now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), dead: map[cluster.NodeID]bool{},
	}
	w.newLeader()
	for i := range nodes {
		role := cluster.RoleWorker
		if i == 0 {
			role = cluster.RoleManager
		}
		w.user(cluster.RegisterNode{Node: nodeID(i + 1), Role: role, Session: "1", Resources: nodeResources})
	}
	return w
}

var nodeResources = cluster.Resources{NanoCPUs: 4 * cluster.OneCPU, MemoryBytes: 8 << 30}

func nodeID(n int) cluster.NodeID { return cluster.NodeID(fmt.Sprintf("n%d", n)) }

func (w *world) state() *cluster.State { return w.m.View() }

func (w *world) apply(c cluster.Command) cluster.Result {
	w.Helper()
	b, err := cluster.Encode(c)
	require.NoError(w, err)
	w.index++
	e := raft.NewCommand(b)
	e.Index = w.index
	results := make([]any, 1)
	require.NoError(w, w.m.Apply([]raft.Entry{e}, results))
	return results[0].(cluster.Result)
}

func (w *world) user(op cluster.Op) cluster.Result {
	w.Helper()
	return w.apply(cluster.Command{At: w.now, Op: op})
}

func (w *world) newLeader() {
	w.heard = map[cluster.NodeID]time.Time{}
	r := w.apply(cluster.Command{Epoch: w.state().Cluster.Epoch + 1, At: w.now, Op: cluster.StartEpoch{Leader: "m"}})
	require.Equal(w, cluster.OK, r.Code)
}

// dump is the state without the index, which every entry moves, and with the newest event for all of them.
func (w *world) dump() string {
	s := *w.state()
	s.Index, s.Events = 0, s.Events[max(0, len(s.Events)-1):]
	b, err := json.Marshal(s)
	require.NoError(w, err)
	return string(b)
}

// plan asks for the next commands, and checks, now and then because it costs time, that asking changes nothing and gives the same
// answer twice.
func (w *world) plan() ([]cluster.Command, time.Time) {
	w.Helper()
	w.plans++
	thorough, before := w.plans%5 == 0, ""
	if thorough {
		before = w.dump()
	}
	nodes, next := Nodes(w.state(), w.heard, w.now)
	tasks, next2 := Plan(w.state(), w.now)
	if thorough {
		again, next3 := Plan(w.state(), w.now)
		require.Equal(w, tasks, again)
		require.Equal(w, next2, next3)
		require.Equal(w, before, w.dump(), "planning changed the state")
	}
	if !next2.IsZero() {
		require.True(w, next2.After(w.now), "a deadline that has passed would make the loop spin")
		next = earlier(next, next2)
	}
	return append(nodes, tasks...), next
}

// lead is one turn of the control loop: heartbeats, then plans until there is nothing to plan, which must come soon if nothing
// else happens. It reports whether there was anything to do.
func (w *world) lead() bool {
	w.Helper()
	for id := range w.state().Nodes { // order-free
		if !w.dead[id] {
			w.heard[id] = w.now
		}
	}
	statuses, _ := Nodes(w.state(), w.heard, w.now)
	for _, c := range statuses {
		require.Equal(w, cluster.OK, w.apply(c).Code)
	}
	busy := len(statuses) > 0
	for range 10 {
		commands, _ := w.plan()
		if len(commands) == 0 {
			return busy
		}
		busy = true
		for _, c := range commands {
			w.checkPlacement(c.Op)
			r := w.apply(c)
			require.Equal(w, cluster.OK, r.Code, "%#v: %s", c.Op, r.Message)
			w.forward()
		}
		w.check()
	}
	require.Fail(w, "the plan has no end")
	return busy
}

func (w *world) checkPlacement(op cluster.Op) {
	var id cluster.NodeID
	var sv *cluster.Service
	switch op := op.(type) {
	case cluster.CreateTask:
		id, sv = op.Node, w.state().Services[op.Service]
		require.Equal(w, sv.Slots[op.Slot-1].Generation+1, op.Generation)
	case cluster.AssignTask:
		id, sv = op.Node, w.state().Services[w.state().Tasks[op.Task].Service]
	}
	if id != "" {
		n := w.state().Nodes[id]
		require.Equal(w, cluster.NodeReady, n.Status)
		require.Equal(w, cluster.AvailabilityActive, n.Availability)
		require.True(w, sv.Spec.Allows(n), "%s on %s", sv.Spec.Constraints, id)
	}
}

// check says what must hold of every state. Without moves there is never more than one live task of a slot, whatever its generation; a
// move, or an update that starts the new task first, has two that are wanted at a time, for a while, and never more.
func (w *world) check() {
	w.Helper()
	live, wanted := map[string][]cluster.TaskID{}, map[string]int{}
	generations := map[string]bool{}
	for _, t := range w.state().Tasks {
		slot := fmt.Sprintf("%s.%d", t.Service, t.Slot)
		generation := fmt.Sprintf("%s.%d", slot, t.Generation)
		require.False(w, generations[generation], generation)
		generations[generation] = true
		if t.Live() {
			live[slot] = append(live[slot], t.ID)
			if t.Desired == cluster.DesiredRunning {
				wanted[slot]++
			}
		}
	}
	for slot, ids := range live {
		require.True(w, len(ids) == 1 || w.drain, "slot %s has %v", slot, ids)
		require.LessOrEqual(w, wanted[slot], 2, "slot %s has %v", slot, ids)
	}
	for id, reserved := range w.state().Reserved() {
		if n := w.state().Nodes[id]; n != nil {
			require.True(w, reserved.Fits(n.Resources), "node %s has promised %+v of %+v", id, reserved, n.Resources)
		}
	}
	w.forward()
}

// forward checks that no task has gone back since the last look, whatever the leaders and agents said meanwhile.
func (w *world) forward() {
	rank := map[cluster.TaskState]int{
		cluster.TaskNew: 1, cluster.TaskAssigned: 2, cluster.TaskStarting: 3, cluster.TaskRunning: 4,
	}
	for id, old := range w.seen {
		t := w.state().Tasks[id]
		if t == nil {
			require.True(w, old.State.Final(), "task %s was forgotten while %s", id, old.State)
			continue
		}
		require.False(w, old.State.Final() && (t.State != old.State || t.Attempts != old.Attempts), "task %s went on after %s", id, old.State)
		if t.Live() && t.Attempts == old.Attempts {
			require.GreaterOrEqual(w, rank[t.State], rank[old.State], "task %s went from %s back to %s", id, old.State, t.State)
		}
		require.GreaterOrEqual(w, t.Attempts, old.Attempts)
		require.False(w, old.Desired == cluster.DesiredShutdown && t.Desired == cluster.DesiredRunning, "task %s is wanted again", id)
	}
	w.seen = w.state().Tasks
}

// agents lets each living agent do some of its work.
func (w *world) agents() {
	for _, n := range w.state().SortedNodes() {
		if w.dead[n.ID] {
			continue
		}
		report := cluster.Report{Node: n.ID, Session: n.Session}
		for _, t := range w.state().TasksOn(n.ID) {
			if w.rng.IntN(4) > 0 && !w.now.Before(t.NotBefore) {
				report.Tasks = append(report.Tasks, cluster.ReportedTask{ID: t.ID, Status: w.advance(t)})
			}
		}
		require.Equal(w, cluster.OK, w.user(report).Code)
	}
	w.check()
}

// advance is what an agent does next with a task.
func (w *world) advance(t *cluster.Task) cluster.TaskStatus {
	s := t.TaskStatus
	if t.Desired == cluster.DesiredShutdown {
		s.State = cluster.TaskShutdown
		return s
	}
	if w.fails {
		switch w.rng.IntN(12) {
		case 0:
			s.Error, s.ExitCode, s.Attempts, s.State = "exit status 1", 1, s.Attempts+1, cluster.TaskStarting
			return s
		case 1:
			s.Health = cluster.HealthUnhealthy
			return s
		case 2:
			if t.State == cluster.TaskAssigned {
				s.State = cluster.TaskRejected
				return s
			}
		}
	}
	switch t.State {
	case cluster.TaskAssigned:
		s.State = cluster.TaskStarting
	default:
		s.State = cluster.TaskRunning
	}
	return s
}

// disturb is something that a user, a machine or the network does.
func (w *world) disturb() {
	nodes, services := w.state().SortedNodes(), w.state().SortedServices()
	n := nodes[w.rng.IntN(len(nodes))].ID
	var sv cluster.Service
	if len(services) > 0 {
		sv = *services[w.rng.IntN(len(services))]
	}
	switch w.rng.IntN(18) {
	case 0, 1:
		w.user(cluster.CreateService{Spec: w.anySpec(fmt.Sprintf("web%d", w.rng.IntN(3)), w.rng.IntN(6))})
	case 2:
		w.user(cluster.ScaleService{Service: sv.ID, Replicas: w.rng.IntN(8)})
	case 3:
		next := sv.Spec
		next.Task.Env = map[string]string{"RELEASE": fmt.Sprint(w.rng.IntN(5))}
		w.user(cluster.UpdateService{Service: sv.ID, Spec: next})
	case 4:
		w.user(cluster.StopService{Service: sv.ID})
	case 5, 6:
		w.user(cluster.StartService{Service: sv.ID})
	case 7:
		if w.rng.IntN(3) == 0 {
			w.user(cluster.RemoveService{Service: sv.ID})
		}
	case 8:
		w.dead[n] = true
	case 9:
		w.dead[n] = false
	case 10:
		w.newLeader()
	case 11:
		choice := []cluster.Availability{cluster.AvailabilityActive, cluster.AvailabilityPause}
		if w.drain {
			choice = append(choice, cluster.AvailabilityDrain)
		}
		w.user(cluster.SetAvailability{Node: n, Availability: choice[w.rng.IntN(len(choice))]})
	case 12, 13:
		if sv.ID != "" {
			next := w.anySpec(sv.Spec.Name, w.rng.IntN(6))
			if !w.drain {
				next.Constraints = sv.Spec.Constraints // else tasks move
			}
			w.user(cluster.UpdateService{Service: sv.ID, Spec: next})
		}
	case 14, 15:
		w.user(cluster.RollbackService{Service: sv.ID})
	case 16, 17:
		if !w.drain {
			return
		}
		if w.rng.IntN(2) == 0 {
			w.user(cluster.SetLabels{Node: n, Remove: []string{"zone"}})
		} else {
			w.user(cluster.SetLabels{Node: n, Add: map[string]string{"zone": "a"}})
		}
	}
}

// anySpec is a specification with constraints, reservations and ways to update that the seed decides.
func (w *world) anySpec(name string, replicas int) cluster.ServiceSpec {
	s := spec(name, replicas)
	pick := func(texts ...string) string { return texts[w.rng.IntN(len(texts))] }
	if c := pick("", "", "", "node.labels.zone==a", "node.labels.zone!=a", "node.role==worker", "node.id!=n2"); c != "" {
		constraint, err := cluster.ParseConstraint(c)
		require.NoError(w, err)
		s.Constraints = append(s.Constraints, constraint)
	}
	if w.rng.IntN(2) == 0 {
		s.Task.Reservations = cluster.Resources{NanoCPUs: int64(w.rng.IntN(4)) * cluster.OneCPU / 2, MemoryBytes: int64(w.rng.IntN(4)) << 30}
	}
	s.Task.Env = map[string]string{"RELEASE": fmt.Sprint(w.rng.IntN(5))}
	config := func(actions ...string) cluster.UpdateConfig {
		c := cluster.UpdateConfig{
			Parallelism: w.rng.IntN(4) - 1, Delay: time.Duration(w.rng.IntN(3)) * time.Second, FailureAction: cluster.FailureAction(pick(actions...)),
			MaxFailureRatio: float64(w.rng.IntN(3)) / 4,
		}
		if w.drain {
			c.Order = cluster.UpdateOrder(pick("", string(cluster.StopFirst), string(cluster.StartFirst)))
		}
		return c
	}
	s.Update, s.Rollback = config("", "pause", "continue", "rollback"), config("", "pause", "continue")
	return s
}

func spec(name string, replicas int) cluster.ServiceSpec {
	return cluster.ServiceSpec{Name: name, Replicas: replicas, Task: cluster.TaskSpec{
		Command: []string{"web"}, Restart: cluster.RestartPolicy{Condition: cluster.RestartAlways},
	}}
}

// settle turns the loop until neither the leader nor an agent has anything left to do.
func (w *world) settle(limit int) {
	w.Helper()
	for range limit {
		busy := w.lead()
		_, next := Plan(w.state(), w.now)
		if !busy && next.IsZero() && !w.agentsHaveWork() {
			return
		}
		w.agents()
		w.now = w.now.Add(100 * time.Millisecond)
		if !busy && w.now.Before(next) {
			w.now = next
		}
	}
	require.Fail(w, "not settled", "after %d turns: %s", limit, w.dump())
}

func (w *world) agentsHaveWork() bool {
	for _, t := range w.state().Tasks { // order-free
		wanted := t.Desired == cluster.DesiredRunning && t.State == cluster.TaskRunning
		if t.Live() && t.Node != "" && !w.dead[t.Node] && !wanted {
			return true
		}
	}
	return false
}

// requireAsAsked compares the tasks with the services. A slot may be without its task only if no node can take it, and then it says so.
func (w *world) requireAsAsked() {
	w.Helper()
	for _, sv := range w.state().SortedServices() {
		require.False(w, sv.Removing, "service %s is still there", sv.ID)
		live := slices.DeleteFunc(w.state().TasksOf(sv.ID), func(t *cluster.Task) bool { return !t.Live() })
		if sv.Stopped {
			require.Empty(w, live)
			continue
		}
		slots := map[int][]*cluster.Task{}
		for _, t := range live {
			slots[t.Slot] = append(slots[t.Slot], t)
		}
		require.Len(w, slots, sv.Spec.Replicas, "service %s", sv.ID)
		pending := false
		for _, tasks := range slots {
			newest := tasks[len(tasks)-1]
			require.LessOrEqual(w, newest.Slot, sv.Spec.Replicas)
			if newest.State == cluster.TaskNew {
				pending = true
				require.Contains(w, newest.Error, "no suitable node")
				w.requireNoRoom(sv, newest)
				if tasks = tasks[:len(tasks)-1]; len(tasks) == 0 {
					continue
				}
			} else {
				require.Equal(w, cluster.AvailabilityActive, w.state().Nodes[newest.Node].Availability)
				require.True(w, sv.Spec.Allows(w.state().Nodes[newest.Node]))
			}
			require.Len(w, tasks, 1, "of slot %d", newest.Slot)
			require.True(w, tasks[0].Serving())
		}
		finished := sv.Update == nil || sv.Update.State == cluster.UpdateCompleted || sv.Update.State == cluster.RollbackCompleted
		switch {
		case finished:
			for _, t := range live {
				newest := slots[t.Slot][len(slots[t.Slot])-1] == t
				require.True(w, !newest || t.SpecVersion == sv.Version, "task %s is of version %d, not %d", t.ID, t.SpecVersion, sv.Version)
			}
		case sv.Update.UnderWay():
			require.True(w, pending, "the update of %s has stopped on its way: %+v", sv.ID, sv.Update)
		}
	}
	for _, t := range w.state().Tasks { // order-free
		require.NotNil(w, w.state().Services[t.Service])
	}
}

// requireNoRoom checks that a task which waits for a node waits for good reason.
func (w *world) requireNoRoom(sv *cluster.Service, t *cluster.Task) {
	w.Helper()
	reserved := w.state().Reserved()
	for id, n := range w.state().Nodes { // order-free
		takes := n.Status == cluster.NodeReady && n.Availability == cluster.AvailabilityActive
		require.False(w, takes && sv.Spec.Allows(n) && t.Spec.Reservations.Fits(n.Resources.Sub(reserved[id])),
			"task %s waits, and %s could take it", t.ID, id)
	}
}
