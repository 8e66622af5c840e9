package plan

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

func (w *world) constrained(replicas int, constraints ...string) cluster.ServiceID {
	w.Helper()
	s := spec("web", replicas)
	for _, text := range constraints {
		c, err := cluster.ParseConstraint(text)
		require.NoError(w, err)
		s.Constraints = append(s.Constraints, c)
	}
	r := w.user(cluster.CreateService{Spec: s})
	require.Equal(w, cluster.OK, r.Code, r.Message)
	return r.Service
}

func TestConstraintsNarrowTheNodes(t *testing.T) {
	for text, want := range map[string]map[cluster.NodeID]int{
		"node.role==manager": {"n1": 3},
		"node.role!=manager": {"n2": 2, "n3": 1},
		"node.id==n3":        {"n3": 3},
	} {
		w := newWorld(t, 1, 3)
		w.lead()
		w.constrained(3, text)
		w.settle(100)
		require.Equal(t, want, w.perNode(), text)
		w.requireAsAsked()
	}
}

// What no node fulfils waits and says why, and runs as soon as a node does; when a node does not any more its tasks move first, then stop.
func TestLabelsMoveTasks(t *testing.T) {
	w := newWorld(t, 1, 3)
	w.lead()
	w.user(cluster.SetAvailability{Node: "n3", Availability: cluster.AvailabilityPause})
	sv := w.constrained(1, "node.labels.disk==ssd")
	w.settle(100)
	require.Equal(t, cluster.TaskNew, w.task(sv, 1, 1).State)
	require.Equal(t, "no suitable node (scheduling constraints not satisfied on 2 nodes; no new tasks taken by 1 node)", w.task(sv, 1, 1).Error)
	w.user(cluster.SetAvailability{Node: "n3", Availability: cluster.AvailabilityActive})
	w.settle(100)
	require.Equal(t, "no suitable node (scheduling constraints not satisfied on 3 nodes)", w.task(sv, 1, 1).Error)

	w.user(cluster.SetLabels{Node: "n2", Add: map[string]string{"disk": "ssd"}})
	w.settle(100)
	require.EqualValues(t, "n2", w.task(sv, 1, 1).Node)
	w.requireAsAsked()

	w.drain = true
	w.user(cluster.SetLabels{Node: "n2", Remove: []string{"disk"}})
	w.settle(100)
	require.True(t, w.task(sv, 1, 1).Serving(), "it goes on until there is another")
	require.Equal(t, cluster.TaskNew, w.task(sv, 1, 2).State)
	w.user(cluster.SetLabels{Node: "n1", Add: map[string]string{"disk": "ssd"}})
	w.settle(100)
	require.EqualValues(t, "n1", w.task(sv, 1, 2).Node)
	require.Equal(t, cluster.TaskShutdown, w.task(sv, 1, 1).State)
	w.requireAsAsked()
}

func TestReservationsAreNotGivenTwice(t *testing.T) {
	w := newWorld(t, 1, 2)
	w.lead()
	s := spec("web", 5)
	s.Task.Reservations = cluster.Resources{NanoCPUs: 2 * cluster.OneCPU, MemoryBytes: 3 << 30} // of 4 processors and 8 GiB
	sv := w.user(cluster.CreateService{Spec: s}).Service
	w.settle(100)
	require.Equal(t, map[cluster.NodeID]int{"n1": 2, "n2": 2, "": 1}, w.perNode())
	require.Equal(t, "no suitable node (insufficient resources on 2 nodes)", w.task(sv, 5, 1).Error)
	w.requireAsAsked()

	// Another service that reserves nothing is not kept out by it.
	w.user(cluster.CreateService{Spec: spec("api", 2)})
	w.settle(100)
	require.Equal(t, map[cluster.NodeID]int{"n1": 3, "n2": 3, "": 1}, w.perNode())

	w.user(cluster.ScaleService{Service: sv, Replicas: 1})
	w.user(cluster.ScaleService{Service: sv, Replicas: 5})
	w.settle(100)
	w.requireAsAsked()
}

// A node that a slot must leave before its new task serves is left without collecting tasks.
func TestDrainOfOneNodeAfterTheOther(t *testing.T) {
	w, sv := served(t, 4, 1)
	w.drain = true
	for _, n := range []cluster.NodeID{"n1", "n2", "n3"} {
		w.user(cluster.SetAvailability{Node: n, Availability: cluster.AvailabilityDrain})
		w.lead() // the agents are slow
		w.check()
	}
	w.settle(200)
	w.requireAsAsked()
	require.Equal(t, map[cluster.NodeID]int{"n4": 1}, w.perNode())
	_ = sv
}

func TestScaleFollowsTheLoad(t *testing.T) {
	w, id := served(t, 3, 2)
	require.Equal(t, cluster.OK, w.user(cluster.SetAutoscale{Service: id, Autoscale: &cluster.Autoscale{Min: 2, Max: 8, TargetCPU: 50}}).Code)
	// run lets time pass with a total load that the tasks share, and returns the number of replicas then.
	run := func(total float64, d time.Duration) int {
		for end := w.now.Add(d); w.now.Before(end); w.now = w.now.Add(ScaleInterval) {
			w.settle(200)
			loads := map[cluster.TaskID]Load{}
			for _, t := range w.state().TasksOf(id) {
				if t.Serving() {
					loads[t.ID] = Load{CPU: total / float64(w.state().Services[id].Spec.Replicas), At: w.now}
				}
			}
			commands, next := Scale(w.state(), loads, w.now)
			require.Equal(t, w.now.Add(ScaleInterval), next)
			for _, c := range commands {
				require.Equal(t, cluster.OK, w.apply(c).Code)
			}
		}
		return w.state().Services[id].Spec.Replicas
	}
	require.Equal(t, 2, run(100, 2*time.Minute), "on target")
	require.Equal(t, 2, run(109, 2*time.Minute), "within the dead band")
	require.Equal(t, 5, run(230, 10*time.Second), "up at once: ceil(230 / 50)")
	require.Equal(t, 8, run(1000, 10*time.Second), "no more than the maximum")
	require.Equal(t, 8, run(365, 2*time.Minute), "within the dead band")
	require.Equal(t, 8, run(150, 50*time.Second), "down only after a minute")
	require.Equal(t, 8, run(400, 4*time.Second), "and only if it was a whole one")
	require.Equal(t, 8, run(150, 40*time.Second))
	w.newLeader()
	require.Equal(t, 8, run(220, 10*time.Second), "the minute goes on under another leader")
	require.Equal(t, 5, run(150, 14*time.Second), "as many as were needed at most in that minute")
	require.Equal(t, 2, run(1, 3*time.Minute), "no fewer than the minimum")

	commands, _ := Scale(w.state(), nil, w.now)
	require.Empty(t, commands, "a leader that has heard nothing decides nothing")
	w.user(cluster.StopService{Service: id})
	_, next := Scale(w.state(), nil, w.now)
	require.True(t, next.IsZero())
}
