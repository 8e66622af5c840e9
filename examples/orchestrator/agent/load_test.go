package agent_test

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/runtime"
)

// A heartbeat says how much of a processor each task has used of late, and begins anew when a task has another process.
func TestHeartbeatSaysWhatTasksUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newFakeRuntime(forever)
		var mu sync.Mutex
		began, percent := time.Now(), 40
		rt.stats = func(string) (runtime.Stats, error) {
			mu.Lock()
			defer mu.Unlock()
			return runtime.Stats{CPU: time.Since(began) * time.Duration(percent) / 100}, nil
		}
		m := newManagers()
		m.tell(at(1, 1), newTask("a", cluster.RestartAlways))
		_, end := begin(t, options(t, m, rt))
		time.Sleep(2500 * time.Millisecond)
		require.Empty(t, m.lastHeartbeat().Loads, "one sample says nothing")
		time.Sleep(20 * time.Second)
		require.InDelta(t, 40, m.lastHeartbeat().Loads["a"], 0.1)

		mu.Lock()
		began, percent = time.Now(), 10 // another process, which has used nothing yet
		mu.Unlock()
		time.Sleep(6 * time.Second)
		require.InDelta(t, 10, m.lastHeartbeat().Loads["a"], 0.1)

		m.tell(at(1, 2))
		time.Sleep(5 * time.Second)
		require.Empty(t, m.lastHeartbeat().Loads)
		require.NoError(t, end())
	})
}
