package plan

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// rolling is a world in which a service of four replicas is being updated. Its agents are obedient: each step of [world.step] takes
// 100 ms, in which a task starts or stops.
func rolling(t *testing.T, cfg cluster.UpdateConfig, to string) (*world, cluster.ServiceID) {
	w := newWorld(t, 1, 3)
	w.lead()
	s := spec("web", 4)
	s.Update, s.Rollback = cfg, cfg
	if s.Rollback.FailureAction == cluster.FailureRollback {
		s.Rollback.FailureAction = cluster.FailurePause
	}
	id := w.user(cluster.CreateService{Spec: s}).Service
	w.settle(100)
	w.requireAsAsked()
	w.now = w.now.Add(time.Hour)
	w.lead()
	w.update(id, to)
	return w, id
}

func (w *world) update(id cluster.ServiceID, command string) {
	w.Helper()
	s := w.state().Services[id].Spec
	s.Task.Command = []string{command}
	require.Equal(w, cluster.OK, w.user(cluster.UpdateService{Service: id, Spec: s}).Code)
}

// step lets the leader plan and every task do what it is told. Tasks with the command "broken" crash at once.
func (w *world) step() {
	w.Helper()
	w.lead()
	for _, n := range w.state().SortedNodes() {
		if w.dead[n.ID] {
			continue
		}
		report := cluster.Report{Node: n.ID, Session: n.Session}
		for _, t := range w.state().TasksOn(n.ID) {
			s := t.TaskStatus
			switch {
			case t.Desired == cluster.DesiredShutdown:
				s.State = cluster.TaskShutdown
			case t.Spec.Command[0] == "broken":
				s.State, s.Attempts, s.ExitCode, s.Error = cluster.TaskStarting, s.Attempts+1, 1, "exit code 1"
			default:
				s.State = cluster.TaskRunning
			}
			report.Tasks = append(report.Tasks, cluster.ReportedTask{ID: t.ID, Status: s})
		}
		require.Equal(w, cluster.OK, w.user(report).Code)
	}
	w.check()
	w.now = w.now.Add(100 * time.Millisecond)
}

// serve counts the tasks that serve with a command.
func (w *world) serve(id cluster.ServiceID, command string) (n int) {
	for _, t := range w.state().TasksOf(id) {
		if t.Serving() && t.Spec.Command[0] == command {
			n++
		}
	}
	return n
}

func (w *world) updateState(id cluster.ServiceID) cluster.UpdateState {
	return w.state().Services[id].Update.State
}

func TestUpdatePace(t *testing.T) {
	for name, test := range map[string]struct {
		cfg     cluster.UpdateConfig
		least   int           // that serve at every moment, of either version
		atLeast time.Duration // from the first new task to the last
		atMost  time.Duration
	}{
		"one by one":         {cluster.UpdateConfig{}, 3, 0, time.Second},
		"two at a time":      {cluster.UpdateConfig{Parallelism: 2}, 2, 0, 500 * time.Millisecond},
		"all at once":        {cluster.UpdateConfig{Parallelism: cluster.AllAtOnce}, 0, 0, 0},
		"with a delay":       {cluster.UpdateConfig{Delay: 10 * time.Second}, 3, 30 * time.Second, 33 * time.Second},
		"two, with a delay":  {cluster.UpdateConfig{Parallelism: 2, Delay: 10 * time.Second}, 2, 10 * time.Second, 12 * time.Second},
		"the new task first": {cluster.UpdateConfig{Order: cluster.StartFirst}, 4, 0, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			w, id := rolling(t, test.cfg, "new")
			w.drain = test.cfg.Order == cluster.StartFirst
			var first, last time.Time
			for range 500 {
				w.step()
				old, young := w.serve(id, "web"), w.serve(id, "new")
				require.GreaterOrEqual(t, old+young, test.least)
				if young > 0 && first.IsZero() {
					first = w.now
				}
				if young == 4 && last.IsZero() {
					last = w.now
				}
			}
			took := last.Sub(first)
			require.GreaterOrEqual(t, took, test.atLeast)
			require.LessOrEqual(t, took, test.atMost)
			require.Equal(t, cluster.UpdateCompleted, w.updateState(id))
			completed := w.state().Services[id].Update.CompletedAt
			require.GreaterOrEqual(t, completed.Sub(last), 4*time.Second, "the last task is watched before that")
			w.requireAsAsked()
		})
	}
}

func TestFailureActions(t *testing.T) {
	for name, test := range map[string]struct {
		cfg  cluster.UpdateConfig
		ends cluster.UpdateState
		web  int // that serve in the end
	}{
		"pause":        {cluster.UpdateConfig{}, cluster.UpdatePaused, 3},
		"ratio of one": {cluster.UpdateConfig{MaxFailureRatio: 0.25}, cluster.UpdatePaused, 2},
		"ratio of all": {cluster.UpdateConfig{MaxFailureRatio: 1}, cluster.UpdateCompleted, 0},
		"go on":        {cluster.UpdateConfig{FailureAction: cluster.FailureContinue}, cluster.UpdateCompleted, 0},
		"roll back":    {cluster.UpdateConfig{FailureAction: cluster.FailureRollback}, cluster.RollbackCompleted, 4},
		"roll back what was begun beside": {
			cluster.UpdateConfig{FailureAction: cluster.FailureRollback, Order: cluster.StartFirst}, cluster.RollbackCompleted, 4,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, id := rolling(t, test.cfg, "broken")
			w.drain = test.cfg.Order == cluster.StartFirst
			for range 300 {
				w.step()
			}
			require.Equal(t, test.ends, w.updateState(id), w.state().Services[id].Update.Message)
			require.Equal(t, test.web, w.serve(id, "web"))
			if test.ends == cluster.RollbackCompleted {
				untouched := 0
				for slot := 1; slot <= 4; slot++ {
					if first := w.task(id, slot, 1); first != nil && first.Serving() {
						untouched++
					}
				}
				require.Equal(t, 3, untouched, "a rollback leaves alone what the update had not reached")
				w.requireAsAsked()
			}
			if test.ends == cluster.UpdatePaused {
				w.update(id, "repaired")
				for range 300 {
					w.step()
				}
				require.Equal(t, 4, w.serve(id, "repaired"))
				require.Equal(t, cluster.UpdateCompleted, w.updateState(id))
			}
		})
	}
}

// A failure after the monitor window is a matter of the restart policy, not of the update.
func TestLateFailureDoesNotStopAnUpdate(t *testing.T) {
	w, id := rolling(t, cluster.UpdateConfig{Delay: time.Minute, Monitor: time.Second}, "new")
	for range 30 {
		w.step()
	}
	require.Equal(t, 1, w.serve(id, "new"))
	w.says(w.task(id, 1, 2), func(s *cluster.TaskStatus) { s.State, s.Attempts, s.ExitCode = cluster.TaskStarting, 1, 1 })
	for range 2000 {
		w.step()
	}
	require.Equal(t, 4, w.serve(id, "new"))
	require.Equal(t, cluster.UpdateCompleted, w.updateState(id))
}

// Whatever leaders follow each other during an update, each step is taken once, at its time: the tasks, their generations, and the moments
// at which they were made are those of an update under one leader.
func TestUpdateGoesOnWhereTheOldLeaderStopped(t *testing.T) {
	history := func(changeEvery int) (steps []string) {
		w, id := rolling(t, cluster.UpdateConfig{Delay: 3 * time.Second, Monitor: 2 * time.Second}, "new")
		for i := range 400 {
			if changeEvery > 0 && i%changeEvery == 0 {
				w.newLeader()
			}
			w.step()
		}
		w.settle(100)
		w.requireAsAsked()
		for _, t := range w.state().TasksOf(id) {
			steps = append(steps, fmt.Sprintf("%s of version %d, made %s, ready %s", t.ID, t.SpecVersion, t.CreatedAt.Format("04:05.0"), t.ReadyAt.Format("04:05.0")))
		}
		return append(steps, "completed "+w.state().Services[id].Update.CompletedAt.Format("04:05.0"))
	}
	undisturbed := history(0)
	require.Len(t, undisturbed, 9)
	for _, every := range []int{1, 3, 7} {
		require.Equal(t, undisturbed, history(every), "a new leader after every %d steps", every)
	}
}

// Two rollbacks are none.
func TestRollbackByAUser(t *testing.T) {
	w, id := rolling(t, cluster.UpdateConfig{}, "new")
	for range 100 {
		w.step()
	}
	require.Equal(t, 4, w.serve(id, "new"))
	require.Equal(t, cluster.OK, w.user(cluster.RollbackService{Service: id}).Code)
	for range 100 {
		w.step()
	}
	require.Equal(t, cluster.RollbackCompleted, w.updateState(id))
	require.Equal(t, 4, w.serve(id, "web"))
	w.user(cluster.RollbackService{Service: id})
	for range 100 {
		w.step()
	}
	require.Equal(t, 4, w.serve(id, "new"))
}

// An update that needs a node which there is not waits with the first slot, and costs no more than that.
func TestUpdateThatFitsNowhereWaits(t *testing.T) {
	w, id := rolling(t, cluster.UpdateConfig{}, "new")
	s := w.state().Services[id].Spec
	s.Task.Reservations.MemoryBytes = 1 << 40
	w.user(cluster.UpdateService{Service: id, Spec: s})
	for range 300 {
		w.step()
	}
	require.Equal(t, 3, w.serve(id, "web"))
	require.Equal(t, cluster.Updating, w.updateState(id))
	w.user(cluster.RollbackService{Service: id})
	for range 300 {
		w.step()
	}
	w.requireAsAsked()
}
