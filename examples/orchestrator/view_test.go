package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/compose"
	"github.com/steadyraft/raft/examples/orchestrator/table"
)

var update = flag.Bool("update", false, "write the golden file anew")

// sample is a cluster in which a bit of everything has happened.
func sample(now time.Time) api.View {
	s := cluster.NewState()
	node := func(id cluster.NodeID, role cluster.Role, status cluster.NodeStatus) {
		s.Nodes[id] = &cluster.Node{ID: id, Address: string(id) + ":2377", Role: role, Status: status, Availability: cluster.AvailabilityActive}
	}
	node("m1", cluster.RoleManager, cluster.NodeReady)
	node("m2", cluster.RoleManager, cluster.NodeDown)
	node("m3", cluster.RoleManager, cluster.NodeUnknown)
	node("w1", cluster.RoleWorker, cluster.NodeReady)
	spec := cluster.TaskSpec{Command: []string{"/usr/bin/web", "--quiet"}, Ports: []cluster.Port{{Published: 8080, Target: 80}}}
	s.Services["s1"] = &cluster.Service{ID: "s1", Version: 1, Slots: make([]cluster.Slot, 2), Spec: cluster.ServiceSpec{
		Name: "shop_web", Replicas: 2, Task: spec, Labels: map[string]string{compose.ProjectLabel: "shop", compose.ServiceLabel: "web"},
	}}
	s.Services["s2"] = &cluster.Service{ID: "s2", Version: 1, Stopped: true, Spec: cluster.ServiceSpec{Name: "batch", Task: cluster.TaskSpec{Image: "busybox"}}}
	task := func(slot int, generation uint64, on cluster.NodeID, age time.Duration, status cluster.TaskStatus) {
		t := &cluster.Task{
			ID: cluster.NewTaskID("s1", slot, generation), Service: "s1", ServiceName: "shop_web", Slot: slot, Generation: generation,
			SpecVersion: 1, Spec: spec, Node: on, Desired: cluster.DesiredRunning, TaskStatus: status,
			CreatedAt: now.Add(-age), UpdatedAt: now.Add(-age),
		}
		s.Tasks[t.ID] = t
	}
	task(1, 1, "m1", 3*time.Minute, cluster.TaskStatus{State: cluster.TaskRunning, Endpoints: []cluster.Endpoint{{Target: 80, Address: "m1:40000"}}})
	task(2, 1, "m2", time.Hour, cluster.TaskStatus{State: cluster.TaskLost})
	task(2, 2, "w1", 2*time.Second, cluster.TaskStatus{State: cluster.TaskStarting, Attempts: 1, Error: "killed by signal 9"})
	return api.View{State: s, Leader: "m1", Term: 4}
}

func TestTables(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	v := sample(now)
	var out strings.Builder
	show := func(what string, err error) {
		require.NoError(t, err)
		out.WriteString("(" + what + ")\n")
	}
	show("service ls", table.Print(&out, table.Text, serviceColumns, serviceRows(v.State)))
	show("service ps", table.Print(&out, table.Text, taskColumns, taskRows(v.State.TasksOf("s1"), now)))
	show("compose ps", table.Print(&out, table.Text, composeColumns, newest(taskRows(v.State.TasksOf("s1"), now))))
	show("node ls", table.Print(&out, table.Text, nodeColumns, nodeRows(v)))
	show("status", table.Print(&out, table.Text, statusColumns, []managerRow{
		{Member: api.Member{ID: "m1", API: "m1:2377"}, status: api.Status{State: "running", Role: "leader", Term: 4, Commit: 17, Applied: 17, CanCommit: true}},
		{Member: api.Member{ID: "m2", API: "m2:2377"}, err: os.ErrDeadlineExceeded},
		{Member: api.Member{ID: "m3", API: "m3:2377"}, status: api.Status{State: "failed", Role: "follower", Term: 3, WhyNot: "this node is failed"}},
	}))
	golden := filepath.Join("testdata", "tables.txt")
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(out.String()), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), out.String())
}

func TestHelpNamesEveryCommand(t *testing.T) {
	help := must(t, "help")
	for _, cmd := range commands() {
		require.Contains(t, help, "  "+cmd.name+" ")
		require.Contains(t, must(t, append(strings.Fields(cmd.name), "--help")...), "Usage: orchestrator "+cmd.name)
	}
}

func TestPortNotations(t *testing.T) {
	for text, want := range map[string]cluster.Port{
		"8080:80":                             {Published: 8080, Target: 80},
		"published=8080,target=80":            {Published: 8080, Target: 80},
		"target=80,published=1,protocol=tcp":  {Published: 1, Target: 80},
		"":                                    {},
		"80":                                  {},
		"0:80":                                {},
		"70000:80":                            {},
		"published=80":                        {},
		"published=1,target=1,mode=host":      {},
		"published=1,target=80,protocol=sctp": {},
	} {
		got, err := parsePort(text)
		if want == (cluster.Port{}) {
			require.Error(t, err, text)
		} else {
			require.NoError(t, err, text)
			require.Equal(t, want, got, text)
		}
	}
}
