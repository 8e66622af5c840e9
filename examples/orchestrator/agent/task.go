package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/runtime"
)

// Docker's figures for restarts, and for the time between SIGTERM and SIGKILL.
const (
	minBackoff   = 100 * time.Millisecond
	maxBackoff   = time.Minute
	stableRun    = 10 * time.Second // a run that lasted this long makes the next back-off the first one again
	defaultGrace = 10 * time.Second
	retryStop    = time.Second

	retryEngine = time.Second // an engine that did not answer
	portRetries = 3           // with other free ports, before the task is given up here
)

// nextBackoff returns the delay before a restart, given the one before the run that has just ended.
func nextBackoff(last, ran time.Duration) time.Duration {
	if last == 0 || ran >= stableRun {
		return minBackoff
	}
	return min(2*last, maxBackoff)
}

// restarts says whether a restart policy wants another run after this end.
func restarts(policy cluster.RestartPolicy, attempts int, failed bool) bool {
	switch policy.Condition {
	case cluster.RestartAlways, cluster.RestartUnlessStopped: // the two differ only for an explicit stop, which is no end of a run here
		return true
	case cluster.RestartOnFailure:
		return failed && (policy.MaxAttempts == 0 || attempts < policy.MaxAttempts)
	default:
		return false
	}
}

// labels is what an instance knows about itself, for the next agent. It is stored as one label of the runtime.
type labels struct {
	Task     cluster.Task  `json:"task"`
	Attempts int           `json:"attempts"`
	Backoff  time.Duration `json:"backoff"` // before this run
}

// The first label is the agent's note, the others are for people who look at a container engine.
const (
	labelKey        = "io.steadyraft.orchestrator.task"
	serviceLabel    = "io.steadyraft.orchestrator.service"
	slotLabel       = "io.steadyraft.orchestrator.slot"
	generationLabel = "io.steadyraft.orchestrator.generation"
)

func parseLabels(all map[string]string) (l labels, err error) {
	text, ok := all[labelKey]
	if !ok {
		return l, fmt.Errorf("it has no label %s", labelKey)
	}
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		return l, fmt.Errorf("label %s: %w", labelKey, err)
	}
	return l, nil
}

// adopted is an instance that an earlier agent has left.
type adopted struct {
	instance runtime.Instance
	labels   labels
}

// task keeps one task of this node running. Its goroutine is the only one that uses the runtime for it.
type task struct {
	agent  *Agent
	spec   *cluster.Task      // never changes
	status cluster.TaskStatus // guarded by Agent.mu

	cutOff     atomic.Bool   // it was stopped because no leader hears the node
	stopping   chan struct{} // closed when it is to stop
	killing    chan struct{} // holds one token when its process is to be killed, as by a crash
	forgetting chan struct{} // closed when the managers do not want to hear of it any more
	stop       func()
	forget     func()
}

func newTask(a *Agent, spec *cluster.Task, from *adopted) *task {
	t := &task{agent: a, spec: spec, stopping: make(chan struct{}), forgetting: make(chan struct{}), killing: make(chan struct{}, 1)}
	t.stop = sync.OnceFunc(func() { close(t.stopping) })
	t.forget = sync.OnceFunc(func() { close(t.forgetting); t.stop() })
	t.status = cluster.TaskStatus{State: cluster.TaskStarting, Attempts: spec.Attempts}
	switch {
	case from != nil:
		t.status.Attempts = from.labels.Attempts
		if from.instance.Running {
			t.status.State, t.status.Endpoints, t.status.Health = cluster.TaskRunning, endpoints(from.instance.Spec.Ports), spec.Health
			if spec.Spec.HealthCheck != nil && spec.Health == cluster.HealthNone {
				t.status.Health = cluster.HealthStarting
			}
		}
	case spec.State == cluster.TaskRunning:
		t.status.Attempts++ // it did run here, and nothing is left of it: a start that is told apart from the former one
	}
	return t
}

func (t *task) instance() string { return string(t.spec.ID) }

func (t *task) grace() time.Duration {
	if t.spec.Spec.StopGrace > 0 {
		return t.spec.Spec.StopGrace
	}
	return defaultGrace
}

// run is the task's goroutine. It ends when the agent does, or when the task is over and forgotten.
func (t *task) run(ctx context.Context, from *adopted) {
	t.live(ctx, from)
	if ctx.Err() != nil {
		return // perhaps it still runs: then the agent has to know of it, which may want to stop it before it ends
	}
	select {
	case <-ctx.Done():
	case <-t.forgetting:
		t.agent.forgotten(ctx, t)
	}
}

// attempt is one run of a task.
type attempt struct {
	number  int
	backoff time.Duration // that preceded it
	started time.Time
}

// live runs the task again and again until its state is final or ctx is done.
func (t *task) live(ctx context.Context, from *adopted) {
	current := attempt{number: t.status.Attempts}
	isAdopted := from != nil && !from.instance.StartedAt.IsZero()
	if isAdopted {
		current.backoff, current.started = from.labels.Backoff, from.instance.StartedAt
	}
	for {
		if !isAdopted {
			if t.stopRequested() {
				t.report(func(s *cluster.TaskStatus) { s.State, s.Error = cluster.TaskShutdown, t.whyStopped() })
				return
			}
			current.started = time.Now()
			if err := t.start(ctx, current); ctx.Err() != nil {
				return
			} else if errors.Is(err, errStopped) {
				continue // which finds out that it is to stop
			} else if err != nil {
				t.report(func(s *cluster.TaskStatus) { s.State, s.Error = cluster.TaskRejected, err.Error() })
				return
			}
		}
		exit, over := t.supervise(ctx, isAdopted)
		isAdopted = false
		if over {
			return
		}
		failed := exit.Code != 0 || exit.Error != ""
		reason := ""
		if failed {
			reason = exit.String()
		}
		ended := func(s *cluster.TaskStatus) {
			s.Endpoints, s.Health, s.ExitCode, s.Error = nil, cluster.HealthNone, exit.Code, reason
		}
		if !restarts(t.spec.Spec.Restart, current.number, failed) {
			t.report(func(s *cluster.TaskStatus) {
				ended(s)
				if s.State = cluster.TaskComplete; failed {
					s.State = cluster.TaskFailed
				}
			})
			return
		}
		current = attempt{number: current.number + 1, backoff: nextBackoff(current.backoff, exit.At.Sub(current.started))}
		// The back-off counts from the end of the run, not from when an agent learns of it: one that is started again in the middle of it
		// goes on with its predecessor's. A clock that was set back meanwhile makes it no longer than it is.
		wait := min(time.Until(exit.At.Add(current.backoff)), current.backoff)
		t.report(func(s *cluster.TaskStatus) {
			ended(s)
			s.State, s.Attempts, s.NotBefore = cluster.TaskStarting, current.number, exit.At.Add(current.backoff)
		})
		select {
		case <-ctx.Done():
			return
		case <-t.stopping:
		case <-time.After(wait):
		}
	}
}

func (t *task) stopRequested() bool {
	select {
	case <-t.stopping:
		return true
	default:
		return false
	}
}

// kill has the process of the present run killed. What was meant for a run that is over does not hit the next one.
func (t *task) kill() {
	select {
	case t.killing <- struct{}{}:
	default:
	}
}

func (t *task) report(change func(*cluster.TaskStatus)) { t.agent.report(t, change) }

// start makes a fresh instance from the task's definition. While the container engine does not answer it goes on trying: that is no fault of the
// task, which no other node would have to take over. errStopped if the task is to stop meanwhile.
func (t *task) start(ctx context.Context, current attempt) error {
	t.report(func(s *cluster.TaskStatus) { s.State = cluster.TaskStarting })
	for taken := 0; ; {
		ports, err := t.launch(ctx, current)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			t.report(func(s *cluster.TaskStatus) {
				s.State, s.Endpoints, s.NotBefore = cluster.TaskRunning, endpoints(ports), time.Time{}
				if t.spec.Spec.HealthCheck != nil {
					s.Health = cluster.HealthStarting
				}
			})
			return nil
		case errors.Is(err, runtime.ErrPortInUse):
			if taken++; taken > portRetries {
				return err
			}
		case errors.Is(err, runtime.ErrUnavailable):
			t.report(func(s *cluster.TaskStatus) { s.Error = err.Error() })
			if err := t.discard(ctx); err != nil {
				return err
			}
			t.report(func(s *cluster.TaskStatus) { s.Error = "" })
		default:
			return err
		}
	}
}

var errStopped = errors.New("the task was stopped before it ran")

// discard ends what a launch without an answer may have left running: its addresses are not known, and it may be half made.
func (t *task) discard(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retryEngine):
		}
		err := t.agent.opts.Runtime.Stop(ctx, t.instance(), 0)
		switch {
		case err == nil, errors.Is(err, runtime.ErrNotFound):
			if t.stopRequested() {
				return errStopped
			}
			return nil
		case !errors.Is(err, runtime.ErrUnavailable):
			return err
		}
	}
}

// launch tries it once.
func (t *task) launch(ctx context.Context, current attempt) ([]runtime.Port, error) {
	ports, err := freePorts(t.agent.opts.Host, t.spec.Spec.Ports)
	if err != nil {
		return nil, err
	}
	note, err := json.Marshal(labels{Task: *t.spec, Attempts: current.number, Backoff: current.backoff})
	if err != nil {
		return nil, err
	}
	spec := runtime.Spec{
		ID: t.instance(), Image: t.spec.Spec.Image, Command: t.spec.Spec.Command,
		Env: environment(t.spec.Spec.Env), Host: t.agent.opts.Host, Ports: ports,
		Labels: map[string]string{
			labelKey: string(note), serviceLabel: t.spec.ServiceName, slotLabel: strconv.Itoa(t.spec.Slot),
			generationLabel: strconv.FormatUint(t.spec.Generation, 10),
		},
	}
	if err := t.agent.opts.Runtime.Prepare(ctx, spec); err != nil {
		return nil, err
	}
	return t.agent.opts.Runtime.Start(ctx, spec.ID)
}

func environment(own map[string]string) []string {
	var env []string
	for _, key := range slices.Sorted(maps.Keys(own)) {
		env = append(env, key+"="+own[key])
	}
	return env
}

// freePorts chooses a free port of the host for each target port. Another process may still take one before the task does; it then
// fails, or cannot start, and its next run gets other ones.
func freePorts(host string, ports []cluster.Port) (free []runtime.Port, err error) {
	for _, p := range ports {
		if slices.ContainsFunc(free, func(f runtime.Port) bool { return f.Target == p.Target }) {
			continue
		}
		l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			return nil, fmt.Errorf("find a free port for target port %d: %w", p.Target, err)
		}
		defer l.Close() // all are held until the last one is found, so they differ
		free = append(free, runtime.Port{Target: p.Target, Address: l.Addr().String()})
	}
	return free, nil
}

func endpoints(ports []runtime.Port) []cluster.Endpoint {
	var out []cluster.Endpoint
	for _, p := range ports {
		out = append(out, cluster.Endpoint{Target: p.Target, Address: p.Address})
	}
	return out
}

// supervise follows one run to its end. over says that there is nothing to decide after it: the task was stopped, or the agent leaves.
func (t *task) supervise(ctx context.Context, isAdopted bool) (exit runtime.ExitStatus, over bool) {
	select {
	case <-t.killing: // meant for the run before
	default:
	}
	watching, cancel := context.WithCancel(ctx)
	var watchers sync.WaitGroup
	defer watchers.Wait()
	defer cancel()
	ended := make(chan runtime.ExitStatus, 1)
	watchers.Go(func() {
		status, err := t.agent.opts.Runtime.Wait(watching, t.instance())
		if err != nil { // also of a ctx that is done, and then nobody looks at it
			status = runtime.ExitStatus{Code: -1, Error: err.Error(), At: time.Now()}
		}
		ended <- status
	})
	checking, stopChecking := context.WithCancel(watching)
	defer stopChecking()
	sick := make(chan error, 1)
	if t.spec.Spec.HealthCheck != nil {
		watchers.Go(func() {
			if err := t.checkHealth(checking, isAdopted); err != nil {
				sick <- err
			}
		})
	}

	for goesOn := true; goesOn; {
		goesOn = false
		select {
		case <-t.killing:
			if err := t.agent.opts.Runtime.Kill(ctx, t.instance()); err != nil {
				t.agent.opts.Logger.Warn("cannot kill a task", "task", t.spec.ID, "error", err)
			}
			goesOn = true
		case <-ctx.Done():
			return exit, true
		case exit = <-ended:
			if ctx.Err() != nil {
				return exit, true
			}
			if t.stopRequested() {
				break
			}
			return exit, false
		case err := <-sick:
			t.report(func(s *cluster.TaskStatus) { s.Health, s.Error = cluster.HealthUnhealthy, err.Error() })
			stopped, endErr := t.end(ctx, ended)
			if endErr != nil {
				return exit, true
			}
			if exit = stopped; !t.stopRequested() {
				exit.Error = fmt.Sprintf("unhealthy: %v", err)
				return exit, false
			}
		case <-t.stopping:
			stopChecking()
			if len(t.spec.Spec.Ports) > 0 { // every proxy learns first that this task takes no more connections
				select {
				case <-ctx.Done():
					return exit, true
				case exit = <-ended:
					ended <- exit
				case <-time.After(t.agent.opts.DrainDelay):
				}
			}
			var err error
			if exit, err = t.end(ctx, ended); err != nil {
				return exit, true
			}
		}
	}
	t.report(func(s *cluster.TaskStatus) {
		s.State, s.Endpoints, s.Health, s.ExitCode, s.Error = cluster.TaskShutdown, nil, cluster.HealthNone, exit.Code, t.whyStopped()
	})
	return exit, true
}

func (t *task) whyStopped() string {
	if t.cutOff.Load() {
		return "its node was cut off from the managers, and stops its tasks then"
	}
	return ""
}

// end stops the instance and returns how it ended; an error only when ctx is done.
func (t *task) end(ctx context.Context, ended <-chan runtime.ExitStatus) (runtime.ExitStatus, error) {
	for {
		err := t.agent.opts.Runtime.Stop(ctx, t.instance(), t.grace())
		if err == nil || errors.Is(err, runtime.ErrNotFound) {
			select {
			case exit := <-ended:
				return exit, ctx.Err()
			case <-ctx.Done():
				return runtime.ExitStatus{}, ctx.Err()
			}
		}
		if ctx.Err() != nil {
			return runtime.ExitStatus{}, ctx.Err()
		}
		t.agent.opts.Logger.Error("cannot stop a task; trying again", "task", t.spec.ID, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(retryStop):
		}
	}
}

// serves returns where the task takes traffic for a published port; empty if it does not. The caller holds Agent.mu.
func (t *task) serves(published uint16) string {
	ready := t.status.State == cluster.TaskRunning && (t.status.Health == cluster.HealthNone || t.status.Health == cluster.HealthHealthy)
	if !ready || t.stopRequested() {
		return ""
	}
	for _, p := range t.spec.Spec.Ports {
		for _, e := range t.status.Endpoints {
			if p.Published == published && p.Target == e.Target {
				return e.Address
			}
		}
	}
	return ""
}

// endpoint returns the address that a health check means by a target port: 0 is the first one.
func (t *task) endpoint(target uint16) string {
	t.agent.mu.Lock()
	defer t.agent.mu.Unlock()
	for _, e := range t.status.Endpoints {
		if target == 0 || e.Target == target {
			return e.Address
		}
	}
	return net.JoinHostPort(t.agent.opts.Host, strconv.Itoa(int(target)))
}
