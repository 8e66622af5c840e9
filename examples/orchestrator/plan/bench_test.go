package plan

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// large is a state with 100 nodes and 1,000 services of ten tasks each, which run, or, if they are not placed, are still to be made.
func large(b *testing.B, placed bool) (*cluster.State, time.Time) {
	b.Helper()
	m, now, index := cluster.NewMachine(), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), raft.Index(0)
	apply := func(commands ...cluster.Command) {
		var entries []raft.Entry
		for _, c := range commands {
			data, err := cluster.Encode(c)
			require.NoError(b, err)
			index++
			e := raft.NewCommand(data)
			e.Index = index
			entries = append(entries, e)
		}
		results := make([]any, len(entries))
		require.NoError(b, m.Apply(entries, results))
		for i, r := range results {
			require.Equal(b, cluster.OK, r.(cluster.Result).Code, "%+v: %+v", commands[i], r)
		}
	}
	loop := func(op cluster.Op) cluster.Command { return cluster.Command{Epoch: 1, At: now, Op: op} }
	apply(loop(cluster.StartEpoch{Leader: "m"}))
	for i := range 100 {
		apply(loop(cluster.RegisterNode{Node: nodeID(i), Role: cluster.RoleWorker, Session: "1", Resources: cluster.Resources{NanoCPUs: 100 * cluster.OneCPU}}),
			loop(cluster.SetNodeStatus{Node: nodeID(i), Status: cluster.NodeReady}))
	}
	var services []cluster.Command
	for i := range cluster.MaxServices {
		s := spec(fmt.Sprintf("s%d", i), 10)
		s.Constraints = []cluster.Constraint{{Key: "node.role", Value: "worker"}}
		s.Task.Reservations.NanoCPUs = cluster.OneCPU / 2
		services = append(services, loop(cluster.CreateService{Spec: s}))
	}
	apply(services...)
	if placed {
		commands, _ := Plan(m.View(), now)
		apply(commands...)
		var reports []cluster.Command
		for _, n := range m.View().SortedNodes() {
			r := cluster.Report{Node: n.ID, Session: "1"}
			for _, t := range m.View().TasksOn(n.ID) {
				r.Tasks = append(r.Tasks, cluster.ReportedTask{ID: t.ID, Status: cluster.TaskStatus{State: cluster.TaskRunning}})
			}
			reports = append(reports, loop(r))
		}
		apply(reports...)
	}
	return m.View(), now
}

// BenchmarkPlan is one plan over 100 nodes and 10,000 tasks: of which all run, as it is after most changes; all of a lost node are to be
// replaced; or all are to be placed.
func BenchmarkPlan(b *testing.B) {
	bench := func(b *testing.B, s *cluster.State, now time.Time, want int) {
		for b.Loop() {
			commands, _ := Plan(s, now)
			require.Len(b, commands, want)
		}
	}
	b.Run("nothing to do", func(b *testing.B) {
		s, now := large(b, true)
		bench(b, s, now, 0)
	})
	b.Run("a node is lost", func(b *testing.B) {
		s, now := large(b, true)
		down := *s.Nodes["n7"]
		down.Status = cluster.NodeDown
		lost := *s
		lost.Nodes = map[cluster.NodeID]*cluster.Node{}
		for id, n := range s.Nodes { // order-free
			lost.Nodes[id] = n
		}
		lost.Nodes["n7"] = &down
		bench(b, &lost, now, 2*len(s.TasksOn("n7")))
	})
	b.Run("all are to be placed", func(b *testing.B) {
		s, now := large(b, false)
		bench(b, s, now, 10*cluster.MaxServices)
	})
}
