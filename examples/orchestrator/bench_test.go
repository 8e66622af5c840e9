package main

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
)

// BenchmarkCreateServices creates 1,000 services on three managers with real disks, one after the other and eight at a time. Each asks for a
// task that no node may run, so that the control loop plans for all of them, and what is measured are the managers and not the processes.
func BenchmarkCreateServices(b *testing.B) {
	for _, clients := range []int{1, 8} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				create, stop := threeManagers(b)
				b.StartTimer()
				began := time.Now()
				work := make(chan int)
				failed := make(chan error, clients)
				for range clients {
					go func() {
						var err error
						for i := range work {
							if err == nil {
								err = create(i)
							}
						}
						failed <- err
					}()
				}
				for i := range cluster.MaxServices {
					work <- i
				}
				close(work)
				for range clients {
					require.NoError(b, <-failed)
				}
				b.ReportMetric(time.Since(began).Seconds(), "s/1000-services")
				b.StopTimer()
				stop()
				b.StartTimer()
			}
		})
	}
}

// threeManagers runs managers in this process.
func threeManagers(b *testing.B) (create func(int) error, stop func()) {
	b.Helper()
	dir := b.TempDir()
	members, _, err := choosePorts([]string{"127.0.0.1", "127.0.0.1", "127.0.0.1"}, 30_000)
	require.NoError(b, err)
	ca, err := pki.NewCA("bench")
	require.NoError(b, err)
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, len(members))
	for _, m := range members {
		own := filepath.Join(dir, string(m.ID))
		require.NoError(b, manager.Found(ctx, own, manager.Settings{Cluster: "bench", Node: m.ID, Host: "127.0.0.1", Members: members}, ca))
		opened, err := manager.Open(own, manager.Options{})
		require.NoError(b, err)
		go func() { ended <- opened.Run(ctx) }()
	}
	credentials, err := ca.Issue("cli", cluster.RoleManager)
	require.NoError(b, err)
	client := api.NewClient(credentials, members[0].API, members[1].API, members[2].API)
	require.NoError(b, awaitNodes(ctx, client, len(members)))
	create = func(i int) error {
		ctx, cancel := context.WithTimeout(b.Context(), testPatience)
		defer cancel()
		_, err := client.Do(ctx, cluster.CreateService{Spec: cluster.ServiceSpec{
			Name: fmt.Sprintf("s%d", i), Replicas: 1, Task: cluster.TaskSpec{Command: []string{"run"}, Restart: cluster.RestartPolicy{Condition: cluster.RestartAlways}},
			Constraints: []cluster.Constraint{{Key: "node.labels.none", Value: "such"}},
		}})
		return err
	}
	return create, func() {
		client.Close()
		cancel()
		for range members {
			require.NoError(b, <-ended)
		}
	}
}
