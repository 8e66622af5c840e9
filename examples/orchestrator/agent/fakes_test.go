package agent_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/agent"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/runtime"
)

// managers stands for all managers: it tells the agent what the test wants, and collects what the agent says.
type managers struct {
	mu            sync.Mutex
	told          agent.Assignments
	changed       chan struct{} // closed and replaced when told or failure changes
	failure       error         // answers everything
	registrations []agent.Registration
	heartbeats    []time.Time
	last          agent.Heartbeat
}

func newManagers() *managers {
	return &managers{changed: make(chan struct{})}
}

func (m *managers) tell(fence cluster.Fence, tasks ...*cluster.Task) {
	m.update(func() { m.told.Fence, m.told.Tasks = fence, tasks })
}

func (m *managers) update(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *managers) Register(_ context.Context, r agent.Registration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failure == nil || errors.Is(m.failure, agent.ErrUnknownNode) {
		m.registrations = append(m.registrations, r)
		m.failure = nil
	}
	return m.failure
}

func (m *managers) Heartbeat(_ context.Context, h agent.Heartbeat) (agent.Assignments, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failure != nil {
		return agent.Assignments{}, m.failure
	}
	m.heartbeats = append(m.heartbeats, time.Now())
	m.last = h
	return m.told, nil
}

func (m *managers) Watch(ctx context.Context, w agent.WatchRequest) (agent.Assignments, error) {
	for {
		m.mu.Lock()
		told, failure, changed := m.told, m.failure, m.changed
		m.mu.Unlock()
		if failure != nil || w.Known.Less(told.Fence) {
			return told, failure
		}
		select {
		case <-ctx.Done():
			return agent.Assignments{}, ctx.Err()
		case <-changed:
		}
	}
}

func (m *managers) lastHeartbeat() agent.Heartbeat {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last
}

func (m *managers) registered() []agent.Registration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.registrations)
}

func (m *managers) status(id cluster.TaskID) cluster.TaskStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.last.Tasks {
		if t.ID == id {
			return t.Status
		}
	}
	return cluster.TaskStatus{}
}

// fakeRuntime runs tasks that end when the test says so. It works in a synctest bubble.
type fakeRuntime struct {
	behave func(id string, run int) (lasts time.Duration, code int) // lasts 0: until it is stopped
	exec   func(ctx context.Context) (int, error)
	stats  func(id string) (runtime.Stats, error)
	fail   func(call string) error // nil, or what a call returns instead of doing anything

	mu        sync.Mutex
	instances map[string]*fakeInstance
	starts    []time.Time
	removed   []string
	retired   []string
}

type fakeInstance struct {
	runtime.Instance
	ended chan struct{}
	timer *time.Timer
}

func newFakeRuntime(behave func(string, int) (time.Duration, int)) *fakeRuntime {
	return &fakeRuntime{behave: behave, instances: make(map[string]*fakeInstance)}
}

func forever(string, int) (time.Duration, int) { return 0, 0 }

func (f *fakeRuntime) failure(call string) error {
	if f.fail == nil {
		return nil
	}
	return f.fail(call)
}

func (f *fakeRuntime) Prepare(_ context.Context, spec runtime.Spec) error {
	if err := f.failure("prepare"); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.instances[spec.ID]; old != nil && old.Running {
		return runtime.ErrRunning
	}
	if len(spec.Command) == 0 {
		return errors.New("no command")
	}
	f.instances[spec.ID] = &fakeInstance{Instance: runtime.Instance{Spec: spec}, ended: make(chan struct{})}
	return nil
}

func (f *fakeRuntime) Start(_ context.Context, id string) ([]runtime.Port, error) {
	if err := f.failure("start"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	i := f.instances[id]
	i.Running, i.StartedAt = true, time.Now()
	lasts, code := f.behave(id, len(f.starts))
	f.starts = append(f.starts, time.Now())
	if lasts > 0 {
		i.timer = time.AfterFunc(lasts, func() { f.end(i, code) })
	}
	return i.Spec.Ports, nil
}

func (f *fakeRuntime) end(i *fakeInstance, code int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i.Running {
		i.Running, i.Exit = false, runtime.ExitStatus{Code: code, At: time.Now()}
		close(i.ended)
	}
}

func (f *fakeRuntime) get(id string) (*fakeInstance, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := f.instances[id]; i != nil {
		return i, nil
	}
	return nil, runtime.ErrNotFound
}

func (f *fakeRuntime) Stop(_ context.Context, id string, _ time.Duration) error {
	if err := f.failure("stop"); err != nil {
		return err
	}
	i, err := f.get(id)
	if err == nil {
		f.end(i, 143)
	}
	return err
}

func (f *fakeRuntime) Kill(_ context.Context, id string) error {
	i, err := f.get(id)
	if err == nil {
		f.end(i, 137)
	}
	return err
}

func (f *fakeRuntime) Wait(ctx context.Context, id string) (runtime.ExitStatus, error) {
	i, err := f.get(id)
	if err != nil {
		return runtime.ExitStatus{}, err
	}
	select {
	case <-i.ended:
		return i.Exit, nil
	case <-ctx.Done():
		return runtime.ExitStatus{}, ctx.Err()
	}
}

func (f *fakeRuntime) Adopt(context.Context) ([]runtime.Instance, error) {
	if err := f.failure("adopt"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []runtime.Instance
	for _, id := range slices.Sorted(maps.Keys(f.instances)) {
		all = append(all, f.instances[id].Instance)
	}
	return all, nil
}

func (f *fakeRuntime) Exec(ctx context.Context, _ string, _ []string) (int, error) {
	return f.exec(ctx)
}

func (f *fakeRuntime) Logs(context.Context, string, runtime.LogOptions) (io.ReadCloser, error) {
	return nil, runtime.ErrUnsupported
}

func (f *fakeRuntime) Stats(_ context.Context, id string) (runtime.Stats, error) {
	if f.stats != nil {
		return f.stats(id)
	}
	return runtime.Stats{}, runtime.ErrUnsupported
}

func (f *fakeRuntime) Retire(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := f.instances[id]; i != nil && i.Running {
		return runtime.ErrRunning
	}
	f.retired = append(f.retired, id)
	return nil
}

func (f *fakeRuntime) whatRetired() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.retired)
}

func (f *fakeRuntime) Remove(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := f.instances[id]; i != nil && i.Running {
		return runtime.ErrRunning
	}
	delete(f.instances, id)
	f.removed = append(f.removed, id)
	return nil
}

func (f *fakeRuntime) running(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.instances[id] != nil && f.instances[id].Running
}

func (f *fakeRuntime) startTimes() []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.starts)
}

func options(t *testing.T, m *managers, rt runtime.Runtime) agent.Options {
	return agent.Options{
		Node: "n1", Host: "127.0.0.1", Directory: t.TempDir(), Runtime: rt,
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
		Dial:   func(string) agent.Managers { return m }, Managers: []string{"m1"},
	}
}

// begin runs an agent until the returned function is called, which gives back what Run returned.
func begin(t *testing.T, opts agent.Options) (a *agent.Agent, end func() error) {
	t.Helper()
	a, err := agent.New(opts)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- a.Run(ctx) }()
	end = sync.OnceValue(func() error {
		cancel()
		return <-result
	})
	t.Cleanup(func() { _ = end() })
	return a, end
}

func newTask(id cluster.TaskID, restart cluster.RestartCondition) *cluster.Task {
	return &cluster.Task{
		ID: id, ServiceName: "web", Slot: 1, Node: "n1", Desired: cluster.DesiredRunning, TaskStatus: cluster.TaskStatus{State: cluster.TaskAssigned},
		Spec: cluster.TaskSpec{Command: []string{"run"}, Restart: cluster.RestartPolicy{Condition: restart}},
	}
}

func unwanted(t *cluster.Task) *cluster.Task {
	next := *t
	next.Desired = cluster.DesiredShutdown
	return &next
}

func at(epoch, index uint64) cluster.Fence {
	return cluster.Fence{Epoch: raftTerm(epoch), Index: raftIndex(index)}
}
