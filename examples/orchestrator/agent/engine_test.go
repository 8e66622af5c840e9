package agent_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/runtime"
)

// engine is a container engine that can be away.
type engine struct{ away atomic.Bool }

func (e *engine) fail(call string) error {
	if e.away.Load() {
		return fmt.Errorf("%s: %w", call, runtime.ErrUnavailable)
	}
	return nil
}

func TestTaskWaitsForTheEngineInsteadOfBeingRejected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var e engine
		rt := newFakeRuntime(forever)
		rt.fail = e.fail
		m := newManagers()
		_, end := begin(t, options(t, m, rt))
		time.Sleep(time.Second)
		e.away.Store(true)
		m.tell(at(1, 1), newTask("a", cluster.RestartAlways), newTask("b", cluster.RestartAlways))
		time.Sleep(time.Minute)
		require.Equal(t, cluster.TaskStarting, m.status("a").State)
		require.Contains(t, m.status("a").Error, "does not answer")

		m.tell(at(1, 2), unwanted(newTask("a", cluster.RestartAlways)), newTask("b", cluster.RestartAlways))
		time.Sleep(5 * time.Second)
		e.away.Store(false)
		time.Sleep(3 * time.Second)
		require.Equal(t, cluster.TaskShutdown, m.status("a").State, "stopped while it waited, so it never starts")
		require.Equal(t, cluster.TaskRunning, m.status("b").State)
		require.Empty(t, m.status("b").Error)
		require.Len(t, rt.startTimes(), 1)
		require.NoError(t, end())
	})
}

// A start without an answer may have begun all the same. What it left is ended before the next one, or the next one would be refused.
func TestStartWithoutAnAnswerIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var cut atomic.Bool
		rt := newFakeRuntime(forever)
		cut.Store(true)
		rt.fail = func(call string) error {
			if call == "start" && cut.Swap(false) {
				rt.fail = nil
				_, err := rt.Start(context.Background(), "a") // it does happen
				return errors.Join(err, runtime.ErrUnavailable)
			}
			return nil
		}
		m := newManagers()
		m.tell(at(1, 1), newTask("a", cluster.RestartAlways))
		_, end := begin(t, options(t, m, rt))
		time.Sleep(5 * time.Second)
		require.Equal(t, cluster.TaskRunning, m.status("a").State)
		require.Zero(t, m.status("a").Attempts, "that was no failure of the task")
		require.Len(t, rt.startTimes(), 2)
		require.NoError(t, end())
	})
}

func TestPortThatWasTakenMeanwhileIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var taken atomic.Int32
		rt := newFakeRuntime(forever)
		taken.Store(3)
		rt.fail = func(call string) error {
			if call == "start" && taken.Add(-1) >= 0 {
				return runtime.ErrPortInUse
			}
			return nil
		}
		m := newManagers()
		m.tell(at(1, 1), newTask("a", cluster.RestartAlways))
		_, end := begin(t, options(t, m, rt))
		time.Sleep(2 * time.Second)
		require.Equal(t, cluster.TaskRunning, m.status("a").State)

		taken.Store(100)
		m.tell(at(1, 2), newTask("a", cluster.RestartAlways), newTask("b", cluster.RestartAlways))
		time.Sleep(2 * time.Second)
		require.Equal(t, cluster.TaskRejected, m.status("b").State, "another node may have better luck")
		require.EqualValues(t, 96, taken.Load())
		require.NoError(t, end())
	})
}

func TestChecksThatTheEngineCannotMakeDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var away atomic.Bool
		rt := newFakeRuntime(forever)
		rt.exec = func(context.Context) (int, error) {
			if away.Load() {
				return 0, runtime.ErrUnavailable
			}
			return 0, nil
		}
		m := newManagers()
		m.tell(at(1, 1), healthTask(cluster.HealthCheck{Interval: time.Second, Retries: 2}))
		_, end := begin(t, options(t, m, rt))
		time.Sleep(5 * time.Second)
		require.Equal(t, cluster.HealthHealthy, m.status("a").Health)
		away.Store(true)
		time.Sleep(time.Minute)
		require.Equal(t, cluster.HealthHealthy, m.status("a").Health)
		require.Len(t, rt.startTimes(), 1)
		require.NoError(t, end())
	})
}

// A node whose engine is away says nothing to the managers, so that they do not count on it, and begins when the engine does.
func TestNodeBeginsWhenItsEngineDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var e engine
		rt := newFakeRuntime(forever)
		rt.fail = e.fail
		e.away.Store(true)
		m := newManagers()
		m.tell(at(1, 1), newTask("a", cluster.RestartAlways))
		_, end := begin(t, options(t, m, rt))
		time.Sleep(time.Minute)
		require.Empty(t, m.registered())
		e.away.Store(false)
		time.Sleep(5 * time.Second)
		require.Equal(t, cluster.TaskRunning, m.status("a").State)
		require.NoError(t, end())

		e.away.Store(true)
		_, end = begin(t, options(t, m, rt))
		time.Sleep(time.Minute)
		require.NoError(t, end(), "it can be ended while it waits")
	})
}

// A node that no leader hears stops its tasks if it was told so, and does not start them again by itself, whatever their policy. What the
// managers want when they are back is new tasks, because these count as lost.
func TestNodeThatIsCutOffStopsItsTasksIfItWasToldSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newFakeRuntime(forever)
		m := newManagers()
		m.tell(at(1, 1), newTask("a", cluster.RestartAlways))
		opts := options(t, m, rt)
		opts.StopWhenCutOff = 10 * time.Second
		_, end := begin(t, opts)
		time.Sleep(time.Minute)
		require.Equal(t, cluster.TaskRunning, m.status("a").State, "a manager that answers is all it needs")

		m.update(func() { m.failure = errors.New("no leader") })
		time.Sleep(8 * time.Second)
		require.True(t, rt.running("a"))
		time.Sleep(4 * time.Second)
		require.False(t, rt.running("a"))
		time.Sleep(time.Minute)
		require.Len(t, rt.startTimes(), 1)

		m.update(func() { m.failure = nil })
		time.Sleep(3 * time.Second)
		require.Equal(t, cluster.TaskShutdown, m.status("a").State)
		require.Contains(t, m.status("a").Error, "cut off")
		m.tell(at(1, 2), newTask("b", cluster.RestartAlways))
		time.Sleep(3 * time.Second)
		require.Equal(t, cluster.TaskRunning, m.status("b").State)
		require.NoError(t, end())
	})
}
