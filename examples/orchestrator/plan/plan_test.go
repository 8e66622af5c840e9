package plan

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// Whatever has happened, when the disturbances end and the nodes are there, the tasks become what the services ask for, and then
// there is nothing left to do. On the way every command fits the state that it was made for, no slot runs twice, nothing is placed
// where it must not be, and what an earlier epoch decided changes nothing.
func TestConvergesFromAnywhere(t *testing.T) {
	seeds := uint64(80)
	if testing.Short() {
		seeds = 30
	}
	for seed := range seeds {
		w := newWorld(t, seed, 1+int(seed%5))
		w.fails, w.drain = seed%2 == 0, seed%3 == 0
		var old []cluster.Command // decided in the epoch that has ended
		for range 60 {
			planned, _ := w.plan()
			epoch := w.state().Cluster.Epoch
			w.disturb()
			if w.state().Cluster.Epoch > epoch {
				old = planned
			}
			w.lead()
			if len(old) > 0 {
				before := w.dump()
				for _, c := range old {
					require.Equal(t, cluster.Stale, w.apply(c).Code, "%#v", c.Op)
				}
				require.Equal(t, before, w.dump(), "seed %d: an old epoch changed something", seed)
			}
			w.agents()
			w.now = w.now.Add(time.Duration(w.rng.Int64N(int64(2 * time.Second))))
		}

		w.fails = false
		w.dead = map[cluster.NodeID]bool{}
		for _, n := range w.state().SortedNodes() {
			w.user(cluster.SetAvailability{Node: n.ID, Availability: cluster.AvailabilityActive})
		}
		slots := 0
		for _, sv := range w.state().SortedServices() {
			slots += len(sv.Slots)
		}
		w.settle(200 + 40*slots)
		w.requireAsAsked()
		commands, _ := w.plan()
		require.Empty(t, commands, "seed %d: a converged state has nothing to do", seed)
	}
}

// served is a world in which a service runs.
func served(t *testing.T, nodes, replicas int) (*world, cluster.ServiceID) {
	w := newWorld(t, 1, nodes)
	w.lead()
	r := w.user(cluster.CreateService{Spec: spec("web", replicas)})
	require.Equal(t, cluster.OK, r.Code, r.Message)
	w.settle(100)
	w.requireAsAsked()
	return w, r.Service
}

func (w *world) task(service cluster.ServiceID, slot int, generation uint64) *cluster.Task {
	return w.state().Tasks[cluster.NewTaskID(service, slot, generation)]
}

// turn is the control loop and the agents, once.
func (w *world) turn() {
	w.lead()
	for range 20 { // long enough for every agent to do all of its work, whatever the seed
		w.agents()
	}
}

func (w *world) perNode() map[cluster.NodeID]int {
	count := map[cluster.NodeID]int{}
	for _, t := range w.state().Tasks { // order-free
		if t.Live() {
			count[t.Node]++
		}
	}
	return count
}

func TestTasksAreSpread(t *testing.T) {
	w, _ := served(t, 3, 7)
	require.Equal(t, map[cluster.NodeID]int{"n1": 3, "n2": 2, "n3": 2}, w.perNode())
	// The second service fills up where the first has put less.
	w.user(cluster.CreateService{Spec: spec("api", 2)})
	w.settle(100)
	require.Equal(t, map[cluster.NodeID]int{"n1": 3, "n2": 3, "n3": 3}, w.perNode())
}

func TestLostNodeIsReplacedElsewhere(t *testing.T) {
	w, _ := served(t, 3, 6)
	w.dead["n2"] = true
	w.now = w.now.Add(DownAfter - time.Second)
	w.turn()
	require.Equal(t, map[cluster.NodeID]int{"n1": 2, "n2": 2, "n3": 2}, w.perNode(), "not yet down")
	w.now = w.now.Add(time.Second)
	w.settle(100)
	require.Equal(t, map[cluster.NodeID]int{"n1": 3, "n3": 3}, w.perNode())
	w.requireAsAsked()
	w.dead["n2"] = false
	w.settle(100)
	require.Equal(t, map[cluster.NodeID]int{"n1": 3, "n3": 3}, w.perNode(), "nothing that serves is moved back")
}

// The control loop decides about nodes and tasks from one state. A node that is heard again at that moment has its tasks still: they are not
// lost, and nothing takes their place.
func TestNodeThatComesBackKeepsItsTasks(t *testing.T) {
	w, sv := served(t, 2, 2)
	w.dead["n2"] = true
	w.now = w.now.Add(DownAfter)
	w.heard["n1"] = w.now
	statuses, _ := Nodes(w.state(), w.heard, w.now)
	require.Len(t, statuses, 1)
	w.apply(statuses[0])

	w.heard["n2"] = w.now
	commands, _ := Nodes(w.state(), w.heard, w.now)
	tasks, _ := Plan(w.state(), w.now)
	require.Len(t, tasks, 2, "the loss and the replacement")
	for _, c := range append(commands, tasks...) {
		w.apply(c)
	}
	w.check()
	require.True(t, w.task(sv, 2, 1).Serving())
	require.Nil(t, w.task(sv, 2, 2))
}

// After a leader change nothing is known of the nodes; nobody is declared down before a full grace period has passed.
func TestNewLeaderWaitsBeforeItDeclaresNodesDown(t *testing.T) {
	w, _ := served(t, 2, 2)
	w.now = w.now.Add(time.Hour)
	w.newLeader()
	began := w.now

	commands, next := Nodes(w.state(), w.heard, w.now)
	require.Empty(t, commands)
	require.Equal(t, began.Add(DownAfter), next)
	tasks, _ := Plan(w.state(), w.now)
	require.Empty(t, tasks, "tasks on unknown nodes are left alone")

	w.now = began.Add(DownAfter - 1)
	w.heard["n1"] = w.now
	commands, next = Nodes(w.state(), w.heard, w.now)
	require.Equal(t, []cluster.Command{command(w.state(), w.now, cluster.SetNodeStatus{Node: "n1", Status: cluster.NodeReady})}, commands)
	require.Equal(t, began.Add(DownAfter), next)
	w.apply(commands[0])

	w.now = next
	commands, next = Nodes(w.state(), w.heard, w.now)
	require.Equal(t, []cluster.Command{command(w.state(), w.now, cluster.SetNodeStatus{Node: "n2", Status: cluster.NodeDown})}, commands)
	require.Equal(t, w.heard["n1"].Add(DownAfter), next)
}

func TestNodeThatJoinedByAnotherClockIsNotDownAtOnce(t *testing.T) {
	for _, skew := range []time.Duration{-time.Hour, time.Hour} {
		w := newWorld(t, 1, 0)
		began := w.now
		w.now = began.Add(skew)
		w.user(cluster.RegisterNode{Node: "n1", Role: cluster.RoleWorker, Session: "1"})
		w.now = began
		commands, next := Nodes(w.state(), w.heard, w.now)
		require.Empty(t, commands)
		require.Equal(t, began.Add(DownAfter), next)
	}
}

// A drain moves first, then stops.
func TestDrainMovesBeforeItStops(t *testing.T) {
	w, sv := served(t, 2, 2)
	require.EqualValues(t, "n1", w.task(sv, 1, 1).Node)
	w.drain = true
	w.user(cluster.SetAvailability{Node: "n1", Availability: cluster.AvailabilityDrain})
	w.lead()
	require.EqualValues(t, "n2", w.task(sv, 1, 2).Node)
	require.True(t, w.task(sv, 1, 1).Serving())
	w.settle(100)
	require.Equal(t, cluster.TaskShutdown, w.task(sv, 1, 1).State)
	w.requireAsAsked()
}

func TestDrainOfTheOnlyNodeWaits(t *testing.T) {
	w, sv := served(t, 1, 1)
	w.drain = true
	w.user(cluster.SetAvailability{Node: "n1", Availability: cluster.AvailabilityDrain})
	w.settle(100)
	require.Equal(t, cluster.TaskNew, w.task(sv, 1, 2).State)
	require.True(t, w.task(sv, 1, 1).Serving(), "it stays until there is another")
}

func TestPausedNodeKeepsWhatItHas(t *testing.T) {
	w, sv := served(t, 2, 2)
	w.user(cluster.SetAvailability{Node: "n1", Availability: cluster.AvailabilityPause})
	w.user(cluster.ScaleService{Service: sv, Replicas: 4})
	w.settle(100)
	require.Equal(t, map[cluster.NodeID]int{"n1": 1, "n2": 3}, w.perNode())
}

// A report of n1's agent about one of its tasks.
func (w *world) says(t *cluster.Task, change func(*cluster.TaskStatus)) {
	w.Helper()
	s := t.TaskStatus
	change(&s)
	r := w.user(cluster.Report{Node: t.Node, Session: "1", Tasks: []cluster.ReportedTask{{ID: t.ID, Status: s}}})
	require.Equal(w, cluster.OK, r.Code)
}

func TestUnhealthyTaskIsStoppedThenReplacedElsewhere(t *testing.T) {
	w, sv := served(t, 2, 1)
	w.says(w.task(sv, 1, 1), func(s *cluster.TaskStatus) { s.Health = cluster.HealthUnhealthy })
	w.lead()
	require.Equal(t, cluster.DesiredShutdown, w.task(sv, 1, 1).Desired)
	require.Nil(t, w.task(sv, 1, 2), "the old one is still there")
	w.settle(100)
	require.EqualValues(t, "n2", w.task(sv, 1, 2).Node)
	w.requireAsAsked()
}

func TestFiveFailuresInFiveMinutesMoveATask(t *testing.T) {
	for _, tc := range []struct {
		every time.Duration
		nodes int
		moves bool
	}{
		{every: 50 * time.Second, nodes: 2, moves: true},
		{every: 80 * time.Second, nodes: 2, moves: false},
		{every: 50 * time.Second, nodes: 1, moves: false}, // its node goes on restarting it: there is no better place
	} {
		w, sv := served(t, tc.nodes, 1)
		for range MaxFailures {
			w.now = w.now.Add(tc.every)
			w.lead()
			require.Equal(t, cluster.DesiredRunning, w.task(sv, 1, 1).Desired)
			w.says(w.task(sv, 1, 1), func(s *cluster.TaskStatus) {
				s.Attempts, s.ExitCode, s.State = s.Attempts+1, 1, cluster.TaskStarting
			})
		}
		w.settle(100)
		require.Equal(t, tc.moves, w.task(sv, 1, 2) != nil, "%+v", tc)
		w.requireAsAsked()
	}
}

// The leader's own delay doubles, and lies in the state: a new leader goes on with it.
func TestSlotThatFailsAgainAndAgainWaits(t *testing.T) {
	w, sv := served(t, 1, 1)
	var delays []time.Duration
	for generation := uint64(1); generation <= MaxFailures+5; generation++ {
		w.says(w.task(sv, 1, generation), func(s *cluster.TaskStatus) { s.State = cluster.TaskRejected })
		failed := w.now
		w.newLeader()
		w.lead()
		next := w.task(sv, 1, generation+1)
		if next.State == cluster.TaskNew {
			delays = append(delays, next.NotBefore.Sub(failed))
			_, wake := Plan(w.state(), w.now)
			require.Equal(t, next.NotBefore, wake)
			w.now = wake
			w.lead()
		} else {
			delays = append(delays, 0)
		}
		require.Equal(t, cluster.TaskAssigned, w.task(sv, 1, generation+1).State)
	}
	s := time.Second
	require.Equal(t, []time.Duration{0, s, 2 * s, 4 * s, 8 * s, 16 * s, 32 * s, 60 * s, 60 * s, 60 * s}, delays)
	require.Len(t, w.state().TasksOf(sv), keepFinal+1)
}

func TestDelaySetByAFastClockIsNotWaitedFor(t *testing.T) {
	w, sv := served(t, 1, 0)
	w.user(cluster.ScaleService{Service: sv, Replicas: 1})
	r := w.apply(command(w.state(), w.now, cluster.CreateTask{
		Service: sv, SpecVersion: 1, Slot: 1, Generation: 1, NotBefore: w.now.Add(time.Hour)}))
	require.Equal(t, cluster.OK, r.Code)
	w.lead()
	require.Equal(t, cluster.TaskAssigned, w.task(sv, 1, 1).State)
}

func TestTaskThatEndedAsItsPolicySaysIsLeft(t *testing.T) {
	for _, end := range []cluster.TaskState{cluster.TaskComplete, cluster.TaskFailed} {
		w, sv := served(t, 1, 1)
		w.says(w.task(sv, 1, 1), func(s *cluster.TaskStatus) { s.State = end })
		require.False(t, w.lead())
		// An explicit stop and start runs it again.
		w.user(cluster.StopService{Service: sv})
		w.settle(100)
		w.user(cluster.StartService{Service: sv})
		w.settle(100)
		w.requireAsAsked()
	}
}

func TestStopEndsTasksWhateverTheirPolicy(t *testing.T) {
	w, sv := served(t, 2, 3)
	w.user(cluster.StopService{Service: sv})
	w.settle(100)
	w.requireAsAsked()
	w.newLeader()
	w.settle(100)
	w.requireAsAsked()
	w.user(cluster.StartService{Service: sv})
	w.settle(100)
	w.requireAsAsked()
}

func TestScaleDownForgetsTheSlotsAndRemoveTheService(t *testing.T) {
	w, sv := served(t, 2, 4)
	w.user(cluster.ScaleService{Service: sv, Replicas: 2})
	w.settle(100)
	require.Len(t, w.state().TasksOf(sv), 2)
	w.user(cluster.ScaleService{Service: sv, Replicas: 3})
	w.settle(100)
	require.NotNil(t, w.task(sv, 3, 2), "generations go on")
	w.user(cluster.RemoveService{Service: sv})
	w.settle(100)
	require.Empty(t, w.state().Tasks)
	require.Empty(t, w.state().Services)
}

// An update stops one task, waits for its successor to serve, and goes on; at every moment all but one serve.
func TestUpdateReplacesOneTaskAtATime(t *testing.T) {
	w, sv := served(t, 3, 4)
	next := spec("web", 4)
	next.Task.Command = []string{"web", "--new"}
	w.user(cluster.UpdateService{Service: sv, Spec: next})
	for range 100 {
		w.lead()
		w.agents()
		serving := slices.DeleteFunc(w.state().TasksOf(sv), func(t *cluster.Task) bool { return !t.Serving() })
		require.GreaterOrEqual(t, len(serving), 3)
	}
	w.settle(100)
	w.requireAsAsked()
}

func TestUpdateThatDoesNotStartCostsOneReplicaAndCanBeRepaired(t *testing.T) {
	w, sv := served(t, 3, 4)
	next := spec("web", 4)
	next.Task.Command = []string{"broken"}
	w.user(cluster.UpdateService{Service: sv, Spec: next})
	w.turn()
	w.lead()
	w.says(w.task(sv, 1, 2), func(s *cluster.TaskStatus) { s.State, s.ExitCode = cluster.TaskFailed, 1 })
	for range 10 {
		w.turn()
	}
	for slot := 2; slot <= 4; slot++ {
		require.True(t, w.task(sv, slot, 1).Serving())
	}
	next.Task.Command = []string{"repaired"}
	w.user(cluster.UpdateService{Service: sv, Spec: next})
	w.lead()
	require.Equal(t, cluster.DesiredShutdown, w.task(sv, 1, 2).Desired, "the broken one goes first")
	require.True(t, w.task(sv, 2, 1).Serving())
	w.settle(200)
	w.requireAsAsked()
}

func TestUpdateAndScaleDownDoNotWaitForEachOther(t *testing.T) {
	w, sv := served(t, 1, 3)
	w.user(cluster.ScaleService{Service: sv, Replicas: 2})
	w.lead()
	require.Equal(t, cluster.DesiredShutdown, w.task(sv, 3, 1).Desired)
	next := spec("web", 2)
	next.Task.Command = []string{"web", "--new"}
	w.user(cluster.UpdateService{Service: sv, Spec: next})
	w.lead()
	require.Equal(t, cluster.DesiredShutdown, w.task(sv, 1, 1).Desired)
}

// Tasks that do their work and end never serve, and must not hold up an update.
func TestUpdateOfTasksThatEnd(t *testing.T) {
	w := newWorld(t, 1, 1)
	w.lead()
	once := spec("once", 2)
	once.Task.Restart.Condition = cluster.RestartOnFailure
	sv := w.user(cluster.CreateService{Spec: once}).Service
	complete := func(slot int, generation uint64) {
		w.lead()
		w.says(w.task(sv, slot, generation), func(s *cluster.TaskStatus) { s.State = cluster.TaskComplete })
	}
	complete(1, 1)
	complete(2, 1)
	once.Task.Command = []string{"other"}
	w.user(cluster.UpdateService{Service: sv, Spec: once})
	complete(1, 2)
	complete(2, 2)
	require.False(t, w.lead())
}

func TestReplicasOfOneServiceGoToDifferentNodesFirst(t *testing.T) {
	w := newWorld(t, 1, 2)
	w.user(cluster.SetAvailability{Node: "n2", Availability: cluster.AvailabilityPause})
	w.user(cluster.CreateService{Spec: spec("api", 4)})
	w.settle(100)
	w.user(cluster.SetAvailability{Node: "n2", Availability: cluster.AvailabilityActive})
	w.user(cluster.CreateService{Spec: spec("web", 2)})
	w.settle(100)
	require.Equal(t, map[cluster.NodeID]int{"n1": 5, "n2": 1}, w.perNode())
}

func TestUnhealthyTaskThatMustNotBeRestartedStays(t *testing.T) {
	for _, policy := range []cluster.RestartPolicy{{Condition: cluster.RestartNo}, {Condition: cluster.RestartOnFailure, MaxAttempts: 2}} {
		w := newWorld(t, 1, 2)
		never := spec("web", 1)
		never.Task.Restart = policy
		sv := w.user(cluster.CreateService{Spec: never}).Service
		w.settle(100)
		w.says(w.task(sv, 1, 1), func(s *cluster.TaskStatus) { s.Health = cluster.HealthUnhealthy })
		require.False(t, w.lead())
	}
}

// A node that rejects a task, or ends it unasked because its agent is being stopped, may still count as ready.
func TestRefusedTaskGoesElsewhere(t *testing.T) {
	for _, state := range []cluster.TaskState{cluster.TaskRejected, cluster.TaskShutdown} {
		w, sv := served(t, 2, 1)
		w.says(w.task(sv, 1, 1), func(s *cluster.TaskStatus) { s.State = state })
		w.lead()
		require.EqualValues(t, "n2", w.task(sv, 1, 2).Node)
		require.Len(t, w.state().Services[sv].Slots[0].Failures, 1)
	}
}
