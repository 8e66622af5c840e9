// Package agent is one node's half of the orchestrator. It runs what the managers have committed, keeps it running by itself, reports
// how it goes, and goes on with all of that when no manager answers.
//
// Three things decide what happens on a node:
//   - the newest assignments that it accepted. They carry the leader's epoch and the index of the log entry that they come from; the agent
//     keeps the highest pair that it has acted on, on disk, and refuses anything lower. So a leader that has been deposed without knowing
//     it can delay a node but never contradict what its successor has said.
//   - what the runtime finds on the node when the agent starts. A new agent adopts it; nothing is stopped because an agent was.
//   - each task's own restart policy and health check, which need no manager at all.
//
// A task with published ports is told where to listen in its environment: HOST, PORT (for the first target port) and PORT_<target> for
// each. The ports are free ones of the node's own address, new for every start, and reported as the task's endpoints.
package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/publish"
	"github.com/steadyraft/raft/examples/orchestrator/runtime"
)

// Options configures an Agent. Node, Host, Directory, Runtime, Dial and Managers are required.
type Options struct {
	Node      cluster.NodeID
	Host      string // the node's own address, without port: tasks and published ports listen on it
	Directory string // of the agent's state, made if absent; one agent at a time
	Runtime   runtime.Runtime
	Dial      func(address string) Managers // makes a client for one manager; must not block
	Managers  []string                      // addresses to begin with

	Address   string // of the agent's own API, for the managers to show
	Role      cluster.Role
	Resources cluster.Resources

	// Trust is told whose certificates are to be believed whenever that changes, and CA is asked what to report about it. Both may be nil.
	Trust func(Trust)
	CA    func() CAReport

	HeartbeatInterval time.Duration // ± 10 %. Default 1 s
	RequestTimeout    time.Duration // for one manager to answer a heartbeat. Default 1 s
	WatchTimeout      time.Duration // for one manager to answer a watch. Default 30 s
	// DrainDelay is what a task that takes traffic gets between leaving the endpoint tables and SIGTERM, so that every node has heard
	// of it. Default 1.2 s, a little more than the longest heartbeat interval.
	DrainDelay time.Duration
	StopOnExit bool // stop the tasks when Run ends; default: leave them running for the next agent
	// StopWhenCutOff is after how long without a leader that has heard a heartbeat of this node its tasks are stopped: because the node is
	// cut off, or because the managers have no quorum. Default: never, they go on, and are restarted here when they crash.
	StopWhenCutOff time.Duration
	Publish        publish.Options
	Logger         *slog.Logger // default: none
	KeepStopped    int          // instances whose logs are kept after their end. Default 20
}

func (o *Options) fill() error {
	var errs []error
	for name, missing := range map[string]bool{
		"Node": o.Node == "", "Host": o.Host == "", "Directory": o.Directory == "", "Runtime": o.Runtime == nil, "Dial": o.Dial == nil,
		"Managers": len(o.Managers) == 0,
	} {
		if missing {
			errs = append(errs, fmt.Errorf("agent options: %s is required", name))
		}
	}
	setDefault(&o.HeartbeatInterval, time.Second)
	setDefault(&o.RequestTimeout, time.Second)
	setDefault(&o.WatchTimeout, 30*time.Second)
	setDefault(&o.DrainDelay, 1200*time.Millisecond)
	setDefault(&o.KeepStopped, 20)
	if o.Role == "" {
		o.Role = cluster.RoleWorker
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Publish.Host, o.Publish.Logger = o.Host, o.Logger
	return errors.Join(errs...)
}

func setDefault[T int | time.Duration](field *T, value T) {
	if *field <= 0 {
		*field = value
	}
}

// Agent runs one node. Make it with New, run it with Run, once.
type Agent struct {
	opts    Options
	session string
	state   *stateFile
	pool    *pool
	proxy   *publish.Proxy
	changed chan struct{} // holds one token when a heartbeat should go out at once
	running sync.WaitGroup
	loads   loads

	mu       sync.Mutex
	accepted Assignments // the newest; its fence is >= the one on disk
	tasks    map[cluster.TaskID]*task
	stopped  []string // instances without a task, the oldest first
	outputs  outputs
}

// New opens the agent's directory. ErrInUse if another agent has it.
func New(opts Options) (*Agent, error) {
	if err := opts.fill(); err != nil {
		return nil, err
	}
	state, err := openState(opts.Directory)
	if err != nil {
		return nil, err
	}
	a := &Agent{
		opts: opts, session: rand.Text(), state: state, changed: make(chan struct{}, 1), tasks: make(map[cluster.TaskID]*task),
	}
	if a.accepted, err = state.load(); err != nil {
		return nil, errors.Join(err, state.close())
	}
	a.pool = newPool(opts.Dial, opts.Managers, opts.RequestTimeout)
	a.pool.setAddresses(a.accepted.Managers)
	return a, nil
}

// Run adopts what runs on the node and works until ctx is done, which is no error, another agent takes the node over, which is
// ErrSuperseded, or the node is removed from the cluster, which is ErrRemoved. Tasks are left running unless Options.StopOnExit says
// otherwise; those of a removed node are stopped, because they run elsewhere by now. The agent cannot be used afterwards.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	instances, err := a.findInstances(ctx)
	if err != nil {
		return errors.Join(fmt.Errorf("adopt the node's tasks: %w", err), a.state.close())
	}
	a.proxy = publish.New(a.opts.Publish)
	a.retire(ctx, a.adopt(ctx, instances)...) // the last agent may have had no time for it

	a.running.Go(func() { a.watch(ctx) })
	a.running.Go(func() { a.measure(ctx) })
	a.heartbeats(ctx, cancel)
	a.running.Wait()
	cause := context.Cause(ctx)
	removed := errors.Is(cause, ErrRemoved)
	if a.opts.StopOnExit || removed {
		err = a.stopTasks()
	}
	if removed { // nobody will ever ask for what is left of them
		err = errors.Join(err, a.removeInstances())
	}
	if a.opts.StopOnExit && !removed {
		a.sayGoodbye()
	}
	a.proxy.Close()
	a.pool.close()
	if removed || errors.Is(cause, ErrSuperseded) {
		err = errors.Join(err, fmt.Errorf("node %s: %w", a.opts.Node, cause))
	}
	return errors.Join(err, a.state.close())
}

// Session returns the name of this run of the agent, which it registers with.
func (a *Agent) Session() string { return a.session }

// Managers returns the addresses of the managers that the agent knows, the one that answered last first.
func (a *Agent) Managers() []string { return a.pool.known() }

// Fence returns the highest fence that the agent has accepted.
func (a *Agent) Fence() cluster.Fence {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.accepted.Fence
}

// Tasks returns how the node's tasks are, by ID.
func (a *Agent) Tasks() []cluster.ReportedTask {
	a.mu.Lock()
	defer a.mu.Unlock()
	reports := make([]cluster.ReportedTask, 0, len(a.tasks))
	for id, t := range a.tasks {
		reports = append(reports, cluster.ReportedTask{ID: id, Status: t.status})
	}
	slices.SortFunc(reports, func(x, y cluster.ReportedTask) int { return strings.Compare(string(x.ID), string(y.ID)) })
	return reports
}

// findInstances asks the runtime what there is, until it answers: before that the node cannot run anything, and says nothing to the managers.
func (a *Agent) findInstances(ctx context.Context) ([]runtime.Instance, error) {
	for {
		instances, err := a.opts.Runtime.Adopt(ctx)
		if ctx.Err() != nil {
			return nil, nil // told to end before it has begun, which is no error
		}
		if !errors.Is(err, runtime.ErrUnavailable) {
			return instances, err
		}
		a.opts.Logger.Warn("waiting for the container engine before this node takes tasks", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(retryEngine):
		}
	}
}

// adopt makes a task of every instance that the runtime has, as the labels describe it, and applies the assignments of the last agent. It
// returns the instances that have ended and are not wanted any more.
func (a *Agent) adopt(ctx context.Context, instances []runtime.Instance) (ended []string) {
	wanted := make(map[string]*cluster.Task)
	for _, t := range a.accepted.Tasks {
		wanted[string(t.ID)] = t
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	slices.SortFunc(instances, func(x, y runtime.Instance) int { return x.Exit.At.Compare(y.Exit.At) })
	for _, instance := range instances {
		labels, err := parseLabels(instance.Spec.Labels)
		switch {
		case err != nil:
			a.opts.Logger.Warn("leaving alone what this agent has not started", "instance", instance.Spec.ID, "error", err)
		case !instance.Running && wanted[instance.Spec.ID] == nil:
			a.stopped = append(a.stopped, instance.Spec.ID)
		default:
			if t := wanted[instance.Spec.ID]; t != nil {
				labels.Task.Desired, labels.Task.Health = t.Desired, t.Health // what the managers want and knew of it
			}
			a.opts.Logger.Info("adopted", "task", labels.Task.ID, "running", instance.Running)
			a.startTask(ctx, &labels.Task, &adopted{instance: instance, labels: labels})
		}
	}
	ended = slices.Clone(a.stopped)
	a.trustLocked() // what was accepted right before a crash
	a.applyLocked(ctx)
	return ended
}

// heartbeats registers the node and reports every second, and at once when a task's state changes. One request is under way at a time.
func (a *Agent) heartbeats(ctx context.Context, cancel context.CancelCauseFunc) {
	registered, heard := false, time.Now()
	for ctx.Err() == nil {
		if !registered {
			err := a.register(ctx)
			if errors.Is(err, ErrRemoved) {
				cancel(err)
				return
			}
			registered = err == nil
		}
		if registered {
			answer, err := a.beat(ctx)
			switch {
			case errors.Is(err, ErrSuperseded), errors.Is(err, ErrRemoved):
				cancel(err)
				return
			case errors.Is(err, ErrUnknownNode):
				registered = false
			case err != nil:
				a.opts.Logger.Debug("heartbeat", "error", err)
			default:
				heard = time.Now()
				a.accept(ctx, answer)
			}
		}
		if bound := a.opts.StopWhenCutOff; bound > 0 && time.Since(heard) >= bound {
			a.stopCutOff(time.Since(heard))
		}
		select {
		case <-ctx.Done():
		case <-a.changed:
		case <-time.After(jitter(a.opts.HeartbeatInterval)):
		}
	}
}

// jitter spreads the nodes' heartbeats: d ± 10 %.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + mathrand.N(d/5+1)
}

// stopCutOff stops every task of a node that no leader hears. They are not started again: by now the leader has replaced them elsewhere,
// or there is none, and the next one will do it.
func (a *Agent) stopCutOff(silence time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, t := range a.tasks {
		if !t.stopRequested() {
			a.opts.Logger.Warn("stopping a task because no leader hears this node", "task", id, "since", silence.Round(time.Second))
			t.cutOff.Store(true)
			t.stop()
		}
	}
}

func (a *Agent) register(ctx context.Context) error {
	r := Registration{
		Node: a.opts.Node, Session: a.session, Address: a.opts.Address, Role: a.opts.Role, Resources: a.opts.Resources,
	}
	err := a.pool.each(ctx, a.opts.RequestTimeout, func(ctx context.Context, m Managers) error { return m.Register(ctx, r) })
	if err != nil {
		a.opts.Logger.Debug("register", "error", err)
	}
	return err
}

func (a *Agent) beat(ctx context.Context) (answer Assignments, err error) {
	h := Heartbeat{Node: a.opts.Node, Session: a.session, Fence: a.Fence(), Tasks: a.Tasks(), Loads: a.loads.current()}
	for _, problem := range a.proxy.Problems() {
		h.Problems = append(h.Problems, problem)
	}
	slices.Sort(h.Problems)
	if a.opts.CA != nil {
		h.CA = a.opts.CA()
	}
	err = a.pool.each(ctx, a.opts.RequestTimeout, func(ctx context.Context, m Managers) (err error) {
		answer, err = m.Heartbeat(ctx, h)
		return err
	})
	return answer, err
}

// watch learns of new assignments without waiting for the next heartbeat.
func (a *Agent) watch(ctx context.Context) {
	for ctx.Err() == nil {
		began := time.Now()
		known := a.Fence()
		var answer Assignments
		err := a.pool.each(ctx, a.opts.WatchTimeout, func(ctx context.Context, m Managers) (err error) {
			answer, err = m.Watch(ctx, WatchRequest{Node: a.opts.Node, Session: a.session, Known: known})
			return err
		})
		if err == nil {
			a.accept(ctx, answer)
		}
		if err == nil && known.Less(answer.Fence) {
			continue
		}
		// An error, or nothing new: at most one request per heartbeat interval, however soon it came back.
		select {
		case <-ctx.Done():
		case <-time.After(jitter(a.opts.HeartbeatInterval) - time.Since(began)):
		}
	}
}

// accept makes an answer what the node acts on, unless something newer has been accepted before.
func (a *Agent) accept(ctx context.Context, answer Assignments) {
	a.sendOutput(ctx, answer.Output)
	answer.Output = nil
	a.mu.Lock()
	defer a.mu.Unlock()
	if answer.Fence.Less(a.accepted.Fence) {
		level := slog.LevelDebug // a manager that lags behind
		if answer.Fence.Epoch < a.accepted.Fence.Epoch {
			level = slog.LevelWarn
		}
		a.opts.Logger.Log(ctx, level, "refused assignments of the past", "fence", answer.Fence, "accepted", a.accepted.Fence)
		return
	}
	if answer.Fence.Epoch > a.accepted.Fence.Epoch {
		a.beatSoon() // the new leader gives no work to nodes that it has not heard
	}
	if len(answer.Managers) == 0 {
		answer.Managers = a.accepted.Managers
	}
	if answer.Trust == nil {
		answer.Trust = a.accepted.Trust
	}
	if answer.asksFor(a.accepted) {
		a.accepted.Fence = answer.Fence // only a later word for the same: nothing to do, so nothing to remember on disk
		return
	}
	// On disk before anything is done: after a crash in between, a stale leader must not undo it.
	if err := a.state.save(answer); err != nil {
		a.opts.Logger.Error("cannot remember new assignments, so they are not followed; is the disk full?", "error", err)
		return
	}
	before := a.accepted
	a.accepted = answer
	a.pool.setAddresses(answer.Managers)
	if !reflect.DeepEqual(answer.Trust, before.Trust) {
		a.trustLocked()
	}
	a.applyLocked(ctx)
	a.killLocked(before)
}

// trustLocked passes on whose certificates are to be believed.
func (a *Agent) trustLocked() {
	if a.opts.Trust != nil && a.accepted.Trust != nil {
		a.opts.Trust(*a.accepted.Trust)
		a.beatSoon() // the leader waits to hear that it is done
	}
}

// killLocked kills the tasks of which that is wanted once more than before.
func (a *Agent) killLocked(before Assignments) {
	kills := make(map[cluster.TaskID]int, len(before.Tasks))
	for _, t := range before.Tasks {
		kills[t.ID] = t.Kills
	}
	for _, t := range a.accepted.Tasks {
		if done, known := kills[t.ID]; known && t.Kills > done && a.tasks[t.ID] != nil {
			a.tasks[t.ID].kill()
		}
	}
}

// asksFor reports that a node has nothing to do when it goes from b to a. What it has itself reported does not count.
func (a Assignments) asksFor(b Assignments) bool {
	type wish struct {
		desired cluster.Desired
		kills   int
	}
	wishes := func(tasks []*cluster.Task) map[cluster.TaskID]wish {
		m := make(map[cluster.TaskID]wish, len(tasks))
		for _, t := range tasks {
			m[t.ID] = wish{t.Desired, t.Kills}
		}
		return m
	}
	return reflect.DeepEqual(wishes(a.Tasks), wishes(b.Tasks)) && slices.Equal(a.Managers, b.Managers) && reflect.DeepEqual(a.Trust, b.Trust) &&
		(len(a.Services) == 0 && len(b.Services) == 0 || reflect.DeepEqual(a.Services, b.Services))
}

// applyLocked brings the node towards the accepted assignments. It only gives orders; the tasks' own goroutines carry them out.
func (a *Agent) applyLocked(ctx context.Context) {
	defer a.publishLocked()
	if a.accepted.Fence == (cluster.Fence{}) {
		return // the node has never been told anything, least of all to stop what it runs
	}
	wanted := make(map[cluster.TaskID]bool)
	for _, assigned := range a.accepted.Tasks {
		wanted[assigned.ID] = true
		t := a.tasks[assigned.ID]
		if t == nil {
			t = a.startTask(ctx, assigned, nil)
		}
		if assigned.Desired != cluster.DesiredRunning {
			t.stop()
		}
	}
	for id, t := range a.tasks {
		if !wanted[id] {
			t.forget()
		}
	}
}

// publishLocked gives the proxy its table: of the other nodes' tasks what the managers said last, of this node's own what it knows itself. A
// task that has been restarted while nobody could decide anything listens somewhere else, and only its own node knows where.
func (a *Agent) publishLocked() {
	table := make(publish.Table, len(a.accepted.Services))
	for number, backends := range a.accepted.Services { // order-free
		table[number] = nil
		for _, b := range backends {
			if t := a.tasks[cluster.TaskID(b.ID)]; t != nil {
				b.Address = t.serves(number)
			}
			if b.Address != "" {
				table[number] = append(table[number], b)
			}
		}
	}
	a.proxy.Set(table)
}

// startTask gives a task its goroutine.
func (a *Agent) startTask(ctx context.Context, spec *cluster.Task, from *adopted) *task {
	t := newTask(a, spec, from)
	if spec.Desired != cluster.DesiredRunning { // before it can begin
		t.stop()
	}
	a.tasks[spec.ID] = t
	a.running.Go(func() { t.run(ctx, from) })
	return t
}

// report publishes a task's status, and has it sent at once.
func (a *Agent) report(t *task, change func(*cluster.TaskStatus)) {
	a.mu.Lock()
	change(&t.status)
	state, text := t.status.State, t.status.Error
	a.publishLocked()
	a.mu.Unlock()
	a.opts.Logger.Info("task", "task", t.spec.ID, "state", state, "error", text)
	a.beatSoon()
}

// beatSoon has a heartbeat sent at once.
func (a *Agent) beatSoon() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// forgotten ends a task that nobody wants to know about any more. Its output is kept for a while.
func (a *Agent) forgotten(ctx context.Context, t *task) {
	a.mu.Lock()
	delete(a.tasks, t.spec.ID)
	a.stopped = append(a.stopped, t.instance())
	var old []string
	if n := len(a.stopped) - a.opts.KeepStopped; n > 0 {
		old, a.stopped = slices.Clone(a.stopped[:n]), a.stopped[n:]
	}
	a.mu.Unlock()
	a.retire(ctx, t.instance())
	for _, id := range old {
		if err := a.opts.Runtime.Remove(ctx, id); err != nil {
			a.opts.Logger.Warn("remove an ended instance", "instance", id, "error", err)
		}
	}
}

// retire keeps of an ended instance its output only.
func (a *Agent) retire(ctx context.Context, ids ...string) {
	for _, id := range ids {
		if err := a.opts.Runtime.Retire(ctx, id); err != nil && ctx.Err() == nil {
			a.opts.Logger.Warn("an ended instance is left as it is", "instance", id, "error", err)
		}
	}
}

// stopTasks stops all tasks.
func (a *Agent) stopTasks() error {
	var mu sync.Mutex
	var errs []error
	var stopping sync.WaitGroup
	for _, t := range a.tasks { // every goroutine that would change it has ended
		if t.status.State.Final() {
			continue
		}
		stopping.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), t.grace()+30*time.Second)
			defer cancel()
			if err := a.opts.Runtime.Stop(ctx, t.instance(), t.grace()); err != nil && !errors.Is(err, runtime.ErrNotFound) {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
				return
			}
			a.report(t, func(s *cluster.TaskStatus) { s.State, s.Error = cluster.TaskShutdown, "its agent was stopped" })
		})
	}
	stopping.Wait()
	return errors.Join(errs...)
}

// removeInstances removes what the node's tasks have left behind.
func (a *Agent) removeInstances() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	ids := slices.Clone(a.stopped)
	for _, t := range a.tasks {
		ids = append(ids, t.instance())
	}
	var errs []error
	for _, id := range ids {
		errs = append(errs, a.opts.Runtime.Remove(ctx, id))
	}
	return errors.Join(errs...)
}

// sayGoodbye tells the managers how the tasks have ended.
func (a *Agent) sayGoodbye() {
	ctx, cancel := context.WithTimeout(context.Background(), a.opts.RequestTimeout)
	defer cancel()
	if _, err := a.beat(ctx); err != nil {
		a.opts.Logger.Warn("the managers do not know yet that the tasks were stopped", "error", err)
	}
}
