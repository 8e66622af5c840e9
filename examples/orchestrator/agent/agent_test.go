package agent_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/agent"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

type (
	raftTerm  = raft.Term
	raftIndex = raft.Index
)

func TestBackoffDoublesToAMinuteAndResetsAfterAStableRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const stable = 12 // this run lasts ten seconds
		rt := newFakeRuntime(func(_ string, run int) (time.Duration, int) {
			if run == stable {
				return 10 * time.Second, 1
			}
			return time.Millisecond, 1
		})
		m := newManagers()
		m.tell(at(1, 1), newTask("a", cluster.RestartAlways))
		_, end := begin(t, options(t, m, rt))
		time.Sleep(10 * time.Minute)
		require.NoError(t, end())
		starts := rt.startTimes()
		want := []time.Duration{100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000, 100, 200, 400}
		for i, ms := range want {
			lasted := time.Millisecond
			if i == stable {
				lasted = 10 * time.Second
			}
			require.Equal(t, ms*time.Millisecond, starts[i+1].Sub(starts[i])-lasted, "restart %d", i+1)
		}
	})
}

// An agent that is started again in the middle of a back-off neither begins it again nor cuts it short, and the next one is twice as long.
func TestBackoffGoesOnWithTheNextAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newFakeRuntime(func(string, int) (time.Duration, int) { return time.Millisecond, 1 })
		m := newManagers()
		m.tell(at(1, 1), newTask("a", cluster.RestartAlways))
		opts := options(t, m, rt)
		_, end := begin(t, opts)
		time.Sleep(4 * time.Second) // 0.1 + 0.2 + ... + 1.6 s are over, and 0.9 of 3.2 s
		deadline := m.status("a").NotBefore
		require.True(t, deadline.After(time.Now().Add(2*time.Second)))
		require.NoError(t, end())
		time.Sleep(time.Second)
		_, end = begin(t, opts)
		time.Sleep(time.Second)
		require.Equal(t, 6, m.status("a").Attempts)
		require.True(t, deadline.Equal(m.status("a").NotBefore), "the deadline is what it was")
		time.Sleep(time.Minute)
		require.NoError(t, end())
		starts := rt.startTimes()
		for i, ms := range []time.Duration{100, 200, 400, 800, 1600, 3200, 6400, 12800} {
			require.Equal(t, ms*time.Millisecond, starts[i+1].Sub(starts[i])-time.Millisecond, "restart %d", i+1)
		}
	})
}

func TestRestartPolicies(t *testing.T) {
	for name, test := range map[string]struct {
		policy cluster.RestartPolicy
		code   int
		starts int // 0: for ever
		state  cluster.TaskState
	}{
		"no, clean":              {cluster.RestartPolicy{Condition: cluster.RestartNo}, 0, 1, cluster.TaskComplete},
		"no, crash":              {cluster.RestartPolicy{Condition: cluster.RestartNo}, 3, 1, cluster.TaskFailed},
		"on-failure, clean":      {cluster.RestartPolicy{Condition: cluster.RestartOnFailure}, 0, 1, cluster.TaskComplete},
		"on-failure, crash":      {cluster.RestartPolicy{Condition: cluster.RestartOnFailure}, 3, 0, ""},
		"on-failure:2, crash":    {cluster.RestartPolicy{Condition: cluster.RestartOnFailure, MaxAttempts: 2}, 3, 3, cluster.TaskFailed},
		"always, clean":          {cluster.RestartPolicy{Condition: cluster.RestartAlways}, 0, 0, ""},
		"unless-stopped, crash":  {cluster.RestartPolicy{Condition: cluster.RestartUnlessStopped}, 3, 0, ""},
		"unless-stopped, killed": {cluster.RestartPolicy{Condition: cluster.RestartUnlessStopped}, 137, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rt := newFakeRuntime(func(string, int) (time.Duration, int) { return time.Second, test.code })
				m := newManagers()
				task := newTask("a", "")
				task.Spec.Restart = test.policy
				m.tell(at(1, 1), task)
				_, end := begin(t, options(t, m, rt))
				time.Sleep(time.Minute)
				require.NoError(t, end())
				if test.starts == 0 {
					require.Greater(t, len(rt.startTimes()), 5)
					return
				}
				require.Len(t, rt.startTimes(), test.starts)
				status := m.status("a")
				require.Equal(t, test.state, status.State)
				require.Equal(t, test.starts-1, status.Attempts)
				require.Equal(t, test.code, status.ExitCode)
			})
		})
	}
}

func TestExplicitStopIsNotUndoneByAPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newFakeRuntime(forever)
		m := newManagers()
		task := newTask("a", cluster.RestartAlways)
		m.tell(at(1, 1), task)
		opts := options(t, m, rt)
		_, end := begin(t, opts)
		time.Sleep(5 * time.Second)
		require.Equal(t, cluster.TaskRunning, m.status("a").State)
		m.tell(at(1, 2), unwanted(task))
		time.Sleep(time.Minute)
		require.Equal(t, cluster.TaskShutdown, m.status("a").State)
		require.Len(t, rt.startTimes(), 1)
		m.tell(at(1, 3)) // the managers have heard it
		time.Sleep(5 * time.Second)
		require.Empty(t, m.lastHeartbeat().Tasks)
		require.NoError(t, end())
	})
}

func TestTaskThatIsUnwantedFromTheBeginningNeverStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newFakeRuntime(forever)
		m := newManagers()
		m.tell(at(1, 1), unwanted(newTask("a", cluster.RestartAlways)))
		_, end := begin(t, options(t, m, rt))
		time.Sleep(3 * time.Second)
		require.Equal(t, cluster.TaskShutdown, m.status("a").State)
		require.NoError(t, end())
		require.Empty(t, rt.startTimes())
	})
}

func TestCrashDuringBackoffOfAStoppedTaskStaysStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newFakeRuntime(func(string, int) (time.Duration, int) { return time.Millisecond, 1 })
		m := newManagers()
		task := newTask("a", cluster.RestartAlways)
		m.tell(at(1, 1), task)
		_, end := begin(t, options(t, m, rt))
		time.Sleep(2 * time.Minute)
		starts := len(rt.startTimes())
		require.Equal(t, cluster.TaskStarting, m.status("a").State)
		require.False(t, m.status("a").NotBefore.IsZero())
		m.tell(at(1, 2), unwanted(task))
		time.Sleep(2 * time.Second)
		require.Equal(t, cluster.TaskShutdown, m.status("a").State)
		time.Sleep(2 * time.Minute)
		require.Len(t, rt.startTimes(), starts)
		require.NoError(t, end())
	})
}

func TestTaskThatCannotStartIsRejected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManagers()
		task := newTask("a", cluster.RestartAlways)
		task.Spec.Command = nil
		m.tell(at(1, 1), task)
		_, end := begin(t, options(t, m, newFakeRuntime(forever)))
		time.Sleep(5 * time.Second)
		require.Equal(t, cluster.TaskRejected, m.status("a").State)
		require.Contains(t, m.status("a").Error, "no command")
		require.NoError(t, end())
	})
}

// Whoever was leader once may still believe it. What it says must not undo what its successor has said, not even after the agent has
// been restarted in between.
func TestAssignmentsOfThePastAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newFakeRuntime(forever)
		m := newManagers()
		opts := options(t, m, rt)
		m.tell(at(5, 100), newTask("new", cluster.RestartAlways))
		a, end := begin(t, opts)
		time.Sleep(3 * time.Second)
		for _, past := range []cluster.Fence{at(4, 200), at(5, 99)} {
			m.tell(past, newTask("old", cluster.RestartAlways))
			time.Sleep(3 * time.Second)
			require.Equal(t, at(5, 100), a.Fence())
			require.Equal(t, cluster.TaskRunning, m.status("new").State)
			require.Empty(t, m.status("old").State)
		}
		require.NoError(t, end())

		a, end = begin(t, opts)
		time.Sleep(3 * time.Second)
		require.Equal(t, at(5, 100), a.Fence(), "the watermark is on disk")
		require.Len(t, rt.startTimes(), 1, "the running task was adopted, the old one not started")
		m.tell(at(6, 101), newTask("next", cluster.RestartAlways))
		time.Sleep(3 * time.Second)
		require.Equal(t, cluster.TaskRunning, m.status("next").State)
		require.Empty(t, m.status("new").State, "what is not assigned any more is stopped")
		i, err := rt.get("new")
		require.NoError(t, err)
		require.False(t, i.Running)
		require.NoError(t, end())
	})
}

func TestNodeGoesOnWithoutManagers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var crash atomic.Bool
		rt := newFakeRuntime(func(string, int) (time.Duration, int) {
			if crash.Load() {
				return time.Second, 1
			}
			return 0, 0
		})
		m := newManagers()
		opts := options(t, m, rt)
		m.tell(at(1, 1), newTask("a", cluster.RestartAlways), newTask("b", cluster.RestartAlways))
		_, end := begin(t, opts)
		time.Sleep(3 * time.Second)
		m.update(func() { m.failure = errors.New("no quorum") })
		crash.Store(true)
		require.NoError(t, rt.Kill(t.Context(), "a"))
		time.Sleep(10 * time.Second)
		require.Greater(t, len(rt.startTimes()), 3, "restarted locally")
		require.NoError(t, end())

		// A new agent that has never heard a manager restarts what crashed while there was none, and leaves the rest alone.
		crash.Store(false)
		require.NoError(t, rt.Kill(t.Context(), "a"))
		before := len(rt.startTimes())
		a, end := begin(t, opts)
		time.Sleep(2 * time.Minute)
		require.Len(t, rt.startTimes(), before+1)
		for _, task := range a.Tasks() {
			require.Equal(t, cluster.TaskRunning, task.Status.State)
		}
		require.NoError(t, end())
	})
}

func TestHeartbeatsComeEverySecondAndAtOnceOnAChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newFakeRuntime(forever)
		m := newManagers()
		m.tell(at(1, 1), newTask("a", cluster.RestartAlways))
		_, end := begin(t, options(t, m, rt))
		time.Sleep(time.Minute)
		synctest.Wait()
		m.mu.Lock()
		beats := m.heartbeats[len(m.heartbeats)-20:]
		m.mu.Unlock()
		for i := range beats[1:] {
			gap := beats[i+1].Sub(beats[i])
			require.GreaterOrEqual(t, gap, 900*time.Millisecond)
			require.LessOrEqual(t, gap, 1100*time.Millisecond)
		}
		require.NoError(t, rt.Kill(t.Context(), "a"))
		synctest.Wait() // no time passes
		require.Equal(t, cluster.TaskStarting, m.status("a").State)
		require.Equal(t, 1, m.status("a").Attempts)
		require.Equal(t, 137, m.status("a").ExitCode)
		m.tell(at(1, 2), newTask("a", cluster.RestartAlways), newTask("b", cluster.RestartAlways))
		synctest.Wait()
		require.Equal(t, cluster.TaskRunning, m.status("b").State, "a watch learns of it without waiting for the next heartbeat")
		require.NoError(t, end())
	})
}

func TestAnyManagerWillDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead, live := newManagers(), newManagers()
		dead.failure = errors.New("connection refused")
		live.tell(at(1, 1), newTask("a", cluster.RestartAlways))
		opts := options(t, nil, newFakeRuntime(forever))
		opts.Managers = []string{"dead", "live"}
		opts.Dial = func(address string) agent.Managers {
			return map[string]*managers{"dead": dead, "live": live, "third": live}[address]
		}
		_, end := begin(t, opts)
		time.Sleep(3 * time.Second)
		require.Equal(t, cluster.TaskRunning, live.status("a").State)
		live.update(func() { live.told.Fence, live.told.Managers = at(1, 2), []string{"dead", "third"} })
		time.Sleep(3 * time.Second)
		require.NoError(t, end())
		live.update(func() { live.heartbeats = nil })
		_, end = begin(t, opts)
		time.Sleep(3 * time.Second)
		require.NoError(t, end())
		require.NotEmpty(t, live.heartbeats, "the managers that it was told of are remembered")
	})
}

func TestSupersededAgentEndsAndLeavesTheTasksAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newFakeRuntime(forever)
		m := newManagers()
		m.tell(at(1, 1), newTask("a", cluster.RestartAlways))
		a, err := agent.New(options(t, m, rt))
		require.NoError(t, err)
		result := make(chan error, 1)
		go func() { result <- a.Run(context.Background()) }()
		time.Sleep(3 * time.Second)
		m.update(func() { m.failure = agent.ErrSuperseded })
		require.ErrorIs(t, <-result, agent.ErrSuperseded)
		i, err := rt.get("a")
		require.NoError(t, err)
		require.True(t, i.Running)
	})
}

// The tasks of a removed node run elsewhere by now, so it stops its own.
func TestRemovedNodeStopsItsTasksAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newFakeRuntime(forever)
		m := newManagers()
		m.tell(at(1, 1), newTask("a", cluster.RestartAlways))
		a, err := agent.New(options(t, m, rt))
		require.NoError(t, err)
		result := make(chan error, 1)
		go func() { result <- a.Run(context.Background()) }()
		time.Sleep(3 * time.Second)
		m.update(func() { m.failure = agent.ErrRemoved })
		require.ErrorIs(t, <-result, agent.ErrRemoved)
		require.Equal(t, []string{"a"}, rt.removed, "stopped, and nothing of it is left")
		require.Len(t, rt.startTimes(), 1, "it was not restarted")

		// It is told the same when it comes back.
		again, err := agent.New(options(t, m, rt))
		require.NoError(t, err)
		require.ErrorIs(t, again.Run(context.Background()), agent.ErrRemoved)
	})
}

// Tasks that are not wanted any more, and are on their way out when the agent ends, are not left behind.
func TestTasksOnTheirWayOutAreStoppedWithTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newFakeRuntime(forever)
		m := newManagers()
		var tasks []*cluster.Task
		for i := range 20 {
			task := newTask(cluster.TaskID(fmt.Sprintf("t%d", i)), cluster.RestartAlways)
			task.Spec.Ports = []cluster.Port{{Published: 80, Target: 80}} // so that it leaves the proxies before it is stopped
			tasks = append(tasks, task)
		}
		m.tell(at(1, 1), tasks...)
		opts := options(t, m, rt)
		opts.DrainDelay = time.Hour
		a, err := agent.New(opts)
		require.NoError(t, err)
		result := make(chan error, 1)
		go func() { result <- a.Run(context.Background()) }()
		time.Sleep(3 * time.Second)
		m.tell(at(1, 2))
		time.Sleep(3 * time.Second)
		m.update(func() { m.failure = agent.ErrRemoved })
		require.ErrorIs(t, <-result, agent.ErrRemoved)
		for _, task := range tasks {
			require.Contains(t, rt.removed, string(task.ID), "only what does not run can be removed")
		}
	})
}

// What ends and is not wanted any more leaves its output, and nothing else: not later, and not when the agent ends in between.
func TestEndedInstancesAreRetired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newFakeRuntime(forever)
		m := newManagers()
		m.tell(at(1, 1), newTask("a", cluster.RestartAlways), newTask("b", cluster.RestartAlways))
		opts := options(t, m, rt)
		_, end := begin(t, opts)
		time.Sleep(3 * time.Second)
		m.tell(at(1, 2), newTask("b", cluster.RestartAlways))
		time.Sleep(3 * time.Second)
		require.Equal(t, []string{"a"}, rt.whatRetired())
		require.NoError(t, end())

		m.tell(at(1, 3))
		require.NoError(t, rt.Stop(t.Context(), "b", 0))
		_, end = begin(t, opts)
		time.Sleep(3 * time.Second)
		require.Subset(t, rt.whatRetired(), []string{"a", "b"})
		require.NoError(t, end())
	})
}

// A wish to kill is carried out once, also when it is said again and when the agent is started again.
func TestKillIsACrashThatHappensOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newFakeRuntime(forever)
		m := newManagers()
		task := newTask("a", cluster.RestartAlways)
		m.tell(at(1, 1), task)
		opts := options(t, m, rt)
		_, end := begin(t, opts)
		time.Sleep(3 * time.Second)
		killed := *task
		killed.Kills = 1
		m.tell(at(1, 2), &killed)
		time.Sleep(3 * time.Second)
		require.Len(t, rt.startTimes(), 2)
		require.Equal(t, 137, m.status("a").ExitCode)
		require.Equal(t, 1, m.status("a").Attempts)
		require.NoError(t, end())

		m.tell(at(1, 3), &killed, newTask("b", cluster.RestartAlways))
		_, end = begin(t, opts)
		time.Sleep(3 * time.Second)
		require.Len(t, rt.startTimes(), 3, "only b was started")
		require.NoError(t, end())
	})
}

func TestNodeThatWasForgottenRegistersAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManagers()
		a, end := begin(t, options(t, m, newFakeRuntime(forever)))
		time.Sleep(3 * time.Second)
		require.Len(t, m.registered(), 1)
		m.update(func() { m.failure = agent.ErrUnknownNode })
		time.Sleep(5 * time.Second)
		require.Len(t, m.registered(), 2)
		require.Equal(t, a.Session(), m.registered()[1].Session)
		require.NoError(t, end())
	})
}

func TestStopOnExitStopsAndReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newFakeRuntime(forever)
		m := newManagers()
		m.tell(at(1, 1), newTask("a", cluster.RestartAlways))
		opts := options(t, m, rt)
		opts.StopOnExit = true
		_, end := begin(t, opts)
		time.Sleep(3 * time.Second)
		require.NoError(t, end())
		require.Equal(t, cluster.TaskShutdown, m.status("a").State)
		i, err := rt.get("a")
		require.NoError(t, err)
		require.False(t, i.Running)
	})
}

func TestOutputOfEndedTasksIsKeptForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newFakeRuntime(forever)
		m := newManagers()
		opts := options(t, m, rt)
		opts.KeepStopped = 2
		_, end := begin(t, opts)
		for i, id := range []cluster.TaskID{"a", "b", "c", "d"} {
			m.tell(at(1, uint64(i+1)), newTask(id, cluster.RestartAlways))
			time.Sleep(3 * time.Second)
		}
		require.NoError(t, end())
		require.Equal(t, []string{"a"}, rt.removed)
	})
}

func healthTask(check cluster.HealthCheck) *cluster.Task {
	task := newTask("a", cluster.RestartAlways)
	check.Kind, check.Command = cluster.HealthExec, []string{"check"}
	task.Spec.HealthCheck = &check
	return task
}

func TestUnhealthyTaskIsRestarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newFakeRuntime(forever)
		var broken atomic.Bool
		broken.Store(true)
		rt.exec = func(context.Context) (int, error) {
			if broken.Load() {
				return 1, nil
			}
			return 0, nil
		}
		m := newManagers()
		m.tell(at(1, 1), healthTask(cluster.HealthCheck{})) // Docker's defaults
		_, end := begin(t, options(t, m, rt))
		time.Sleep(89 * time.Second)
		require.Equal(t, cluster.HealthStarting, m.status("a").Health)
		require.Len(t, rt.startTimes(), 1)
		time.Sleep(12 * time.Second) // three failures, one per 30 s
		require.Len(t, rt.startTimes(), 2)
		require.Equal(t, 1, m.status("a").Attempts)
		require.Contains(t, m.status("a").Error, "unhealthy: 3 health checks in a row failed")
		broken.Store(false)
		time.Sleep(6 * time.Second)
		require.Equal(t, cluster.HealthHealthy, m.status("a").Health, "found out sooner than after an interval")
		for range 3 { // one failure or two, then a success: never three in a row
			broken.Store(true)
			time.Sleep(59 * time.Second)
			broken.Store(false)
			time.Sleep(time.Minute)
		}
		require.Len(t, rt.startTimes(), 2)
		require.NoError(t, end())
	})
}

func TestFailuresInTheStartPeriodDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newFakeRuntime(forever)
		rt.exec = func(context.Context) (int, error) { return 1, nil }
		m := newManagers()
		m.tell(at(1, 1), healthTask(cluster.HealthCheck{Interval: time.Second, StartPeriod: time.Minute, Retries: 2}))
		_, end := begin(t, options(t, m, rt))
		time.Sleep(59 * time.Second)
		require.Len(t, rt.startTimes(), 1)
		time.Sleep(5 * time.Second)
		require.Len(t, rt.startTimes(), 2)
		require.NoError(t, end())
	})
}

func TestHealthCheckThatHangsFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newFakeRuntime(forever)
		rt.exec = func(ctx context.Context) (int, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		}
		m := newManagers()
		m.tell(at(1, 1), healthTask(cluster.HealthCheck{Interval: time.Second, Timeout: 2 * time.Second, Retries: 1}))
		_, end := begin(t, options(t, m, rt))
		time.Sleep(3 * time.Second)
		require.Contains(t, m.status("a").Error, "deadline exceeded")
		require.NoError(t, end())
	})
}

func TestDirectoryIsForOneAgentAndItsDamageIsNoticed(t *testing.T) {
	opts := options(t, newManagers(), newFakeRuntime(forever))
	_, end := begin(t, opts)
	_, err := agent.New(opts)
	require.ErrorIs(t, err, agent.ErrInUse)
	require.NoError(t, end())
	require.NoError(t, os.WriteFile(filepath.Join(opts.Directory, "assignments.json"), []byte(`{"fence":`), 0o600))
	_, err = agent.New(opts)
	require.ErrorContains(t, err, "damaged")
	_, err = agent.New(agent.Options{})
	require.ErrorContains(t, err, "Runtime is required")
	require.ErrorContains(t, err, "Managers is required")
}
