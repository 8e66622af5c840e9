package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

// log feeds commands to a machine as the node would.
type log struct {
	*testing.T
	m     *Machine
	index raft.Index
	now   time.Time
	epoch raft.Term
}

func newLog(t *testing.T) *log { return &log{T: t, m: NewMachine(), now: t0} }

func (l *log) entry(op Op, epoch raft.Term) raft.Entry {
	b, err := Encode(Command{Epoch: epoch, At: l.now, Op: op})
	require.NoError(l, err)
	l.index++
	e := raft.NewCommand(b)
	e.Index = l.index
	return e
}

func (l *log) doIn(epoch raft.Term, op Op) Result {
	l.Helper()
	results := make([]any, 1)
	require.NoError(l, l.m.Apply([]raft.Entry{l.entry(op, epoch)}, results))
	return results[0].(Result)
}

func (l *log) do(op Op) Result { l.Helper(); return l.doIn(l.epoch, op) }

func (l *log) ok(op Op) Result {
	l.Helper()
	r := l.do(op)
	require.Equal(l, OK, r.Code, r.Message)
	return r
}

func (l *log) start(epoch raft.Term) {
	l.Helper()
	l.epoch = epoch
	l.ok(StartEpoch{Leader: "m1"})
}

func (l *log) join(id NodeID) {
	l.Helper()
	l.ok(RegisterNode{Node: id, Address: string(id) + ":1", Role: RoleWorker, Session: "1"})
	l.ok(SetNodeStatus{Node: id, Status: NodeReady})
}

func webSpec(replicas int) ServiceSpec {
	return ServiceSpec{Name: "web", Replicas: replicas, Task: TaskSpec{
		Command: []string{"web"}, Restart: RestartPolicy{Condition: RestartAlways}, Ports: []Port{{Published: 80, Target: 8080}},
	}}
}

// webOn starts an epoch, a node and a service, and assigns its first task.
func webOn(t *testing.T) (*log, ServiceID, TaskID) {
	l := newLog(t)
	l.start(1)
	l.join("n1")
	sv := l.ok(CreateService{Spec: webSpec(2)}).Service
	l.ok(CreateTask{Service: sv, SpecVersion: 1, Slot: 1, Generation: 1, Node: "n1"})
	return l, sv, NewTaskID(sv, 1, 1)
}

func (l *log) report(id TaskID, s TaskStatus) {
	l.Helper()
	l.ok(Report{Node: "n1", Session: "1", Tasks: []ReportedTask{{ID: id, Status: s}}})
}

func TestOldEpochsChangeNothing(t *testing.T) {
	l, sv, task := webOn(t)
	l.start(5)
	before := l.dump()
	ops := []Op{
		StartEpoch{Leader: "old"},
		SetNodeStatus{Node: "n1", Status: NodeDown},
		CreateTask{Service: sv, SpecVersion: 1, Slot: 2, Generation: 1},
		AssignTask{Task: task, Node: "n1"},
		StopTask{Task: task},
		LoseTask{Task: task},
		RemoveTask{Task: task},
		DropService{Service: sv},
		EndUpdate{Service: sv, Version: 1, State: UpdateCompleted},
		ExplainTask{Task: task, Reason: "none"},
		NoteLoad{Service: sv, To: 1},
		AutoscaleService{Service: sv, From: 2, Replicas: 3},
	}
	for _, op := range ops {
		r := l.doIn(4, op)
		require.Equal(t, Stale, r.Code, "%T", op)
		require.ErrorContains(t, r.Err(), "the present epoch is 5")
		require.Equal(t, before, l.dump(), "%T", op)
	}
	require.Equal(t, Stale, l.doIn(6, StopTask{Task: task}).Code, "an epoch that nobody has started")
	require.Equal(t, OK, l.doIn(5, StartEpoch{Leader: "m1"}).Code, "proposed twice")
	require.Equal(t, before, l.dump())
}

// dump is the state as a snapshot shows it, without the index, which every entry moves.
func (l *log) dump() string {
	s := *l.m.View()
	s.Index = 0
	b, err := json.Marshal(s)
	require.NoError(l, err)
	return string(b)
}

func TestEpochZeroIsNone(t *testing.T) {
	l := newLog(t)
	require.Equal(t, Invalid, l.do(StartEpoch{}).Code)
}

func TestNewEpochMakesReadyNodesUnknown(t *testing.T) {
	l := newLog(t)
	l.start(1)
	l.join("n1")
	l.join("n2")
	l.ok(SetNodeStatus{Node: "n2", Status: NodeDown})
	l.now = t0.Add(time.Hour)
	l.start(2)
	nodes := l.m.View().Nodes
	require.Equal(t, NodeUnknown, nodes["n1"].Status)
	require.Equal(t, l.now, nodes["n1"].StatusAt)
	require.Equal(t, NodeDown, nodes["n2"].Status, "its tasks have been replaced already")
}

func TestTaskStatesMoveForwardOnly(t *testing.T) {
	final := []TaskState{TaskComplete, TaskFailed, TaskShutdown, TaskRejected}
	for _, tc := range []struct {
		old  TaskStatus
		next TaskStatus
		ok   bool
	}{
		{TaskStatus{State: TaskAssigned}, TaskStatus{State: TaskStarting}, true},
		{TaskStatus{State: TaskAssigned}, TaskStatus{State: TaskRunning}, true},
		{TaskStatus{State: TaskStarting}, TaskStatus{State: TaskAssigned}, false},
		{TaskStatus{State: TaskRunning}, TaskStatus{State: TaskStarting}, false},
		{TaskStatus{State: TaskRunning}, TaskStatus{State: TaskRunning, Health: HealthUnhealthy}, true},
		{TaskStatus{State: TaskRunning}, TaskStatus{State: TaskStarting, Attempts: 1}, true},
		{TaskStatus{State: TaskStarting, Attempts: 2}, TaskStatus{State: TaskRunning, Attempts: 1}, false},
		{TaskStatus{State: TaskRunning}, TaskStatus{State: TaskLost}, false}, // the leader's word
		{TaskStatus{State: TaskRunning}, TaskStatus{State: "nonsense"}, false},
	} {
		require.Equal(t, tc.ok, tc.next.follows(tc.old), "%v -> %v", tc.old, tc.next)
	}
	for _, f := range final {
		require.True(t, TaskStatus{State: f}.follows(TaskStatus{State: TaskRunning}))
		for _, g := range append(final, TaskRunning) {
			require.False(t, TaskStatus{State: g, Attempts: 9}.follows(TaskStatus{State: f}), "%s -> %s", f, g)
		}
	}
}

func TestReportsOfOthersAreIgnored(t *testing.T) {
	l, _, task := webOn(t)
	l.join("n2")
	running := []ReportedTask{{ID: task, Status: TaskStatus{State: TaskRunning}}}
	l.ok(Report{Node: "n2", Session: "1", Tasks: running})
	require.Equal(t, TaskAssigned, l.m.View().Tasks[task].State, "another node's task")
	require.Equal(t, Stale, l.do(Report{Node: "n1", Session: "0", Tasks: running}).Code)
	require.Equal(t, TaskAssigned, l.m.View().Tasks[task].State, "an earlier session")
	l.ok(Report{Node: "n1", Session: "1", Tasks: append(running, ReportedTask{ID: "gone", Status: TaskStatus{State: TaskRunning}})})
	require.Equal(t, TaskRunning, l.m.View().Tasks[task].State)
}

func TestReportCountsFailuresNotRestarts(t *testing.T) {
	l, _, task := webOn(t)
	l.report(task, TaskStatus{State: TaskRunning})
	l.report(task, TaskStatus{State: TaskStarting, Attempts: 1}) // always restarts a clean exit as well
	require.Empty(t, l.m.View().Tasks[task].Failures)
	l.report(task, TaskStatus{State: TaskStarting, Attempts: 3, ExitCode: 1})
	require.Len(t, l.m.View().Tasks[task].Failures, 2)
	l.report(task, TaskStatus{State: TaskStarting, Attempts: 1 << 40, ExitCode: 1, Error: strings.Repeat("ä", 1000)})
	require.Len(t, l.m.View().Tasks[task].Failures, MaxTaskFailures)
	require.LessOrEqual(t, len(l.m.View().Tasks[task].Error), maxErrorBytes)
}

func TestGenerationsOfASlotNeverRepeat(t *testing.T) {
	l, sv, task := webOn(t)
	next := CreateTask{Service: sv, SpecVersion: 1, Slot: 1, Generation: 1, Node: "n1"}
	require.Equal(t, Conflict, l.do(next).Code)
	l.report(task, TaskStatus{State: TaskFailed})
	l.ok(RemoveTask{Task: task})
	l.ok(ScaleService{Service: sv, Replicas: 0})
	l.ok(ScaleService{Service: sv, Replicas: 1})
	require.Equal(t, Conflict, l.do(next).Code)
	next.Generation = 3
	require.Equal(t, Conflict, l.do(next).Code)
	next.Generation = 2
	l.ok(next)
}

func TestRefusals(t *testing.T) {
	l, sv, task := webOn(t)
	l.join("n2")
	l.ok(SetAvailability{Node: "n2", Availability: AvailabilityDrain})
	create := CreateTask{Service: sv, SpecVersion: 1, Slot: 2, Generation: 1, Node: "n1"}
	with := func(change func(*CreateTask)) CreateTask { c := create; change(&c); return c }
	other := webSpec(1)
	other.Name = "other"
	for _, tc := range []struct {
		op   Op
		code Code
		want string
	}{
		{with(func(c *CreateTask) { c.Slot = 3 }), Conflict, `no slot 3`},
		{with(func(c *CreateTask) { c.Slot = 0 }), Conflict, `no slot 0`},
		{with(func(c *CreateTask) { c.SpecVersion = 2 }), Conflict, `is at version 1, not 2`},
		{with(func(c *CreateTask) { c.Node = "n2" }), Conflict, `node n2 takes no tasks: it is ready, drain`},
		{with(func(c *CreateTask) { c.Node = "n9" }), NotFound, `no node "n9"`},
		{with(func(c *CreateTask) { c.Service = "s9" }), NotFound, `no service "s9"`},
		{AssignTask{Task: task, Node: "n1"}, Conflict, `waits for no node: it is assigned`},
		{LoseTask{Task: task}, Conflict, `node n1 is ready`},
		{RemoveTask{Task: task}, Conflict, `is assigned`},
		{StopTask{Task: "x"}, NotFound, `no task "x"`},
		{DropService{Service: sv}, Conflict, `is not being removed`},
		{CreateService{Spec: webSpec(1)}, Conflict, `service "web" exists already`},
		{CreateService{Spec: other}, Conflict, `port 80 is published by service "web" already`},
		{CreateService{}, Invalid, `neither an image nor a command`},
		{UpdateService{Service: sv, Spec: other}, Invalid, `cannot be renamed`},
		{ScaleService{Service: sv, Replicas: MaxReplicas + 1}, Invalid, `want 0 to 1000`},
		{SetNodeStatus{Node: "n1", Status: "odd"}, Invalid, `"odd"`},
		{SetAvailability{Node: "n1", Availability: "odd"}, Invalid, `"odd"`},
		{RegisterNode{Node: "n3", Session: "1"}, Invalid, `role ""`},
		{RegisterNode{Role: RoleWorker}, Invalid, `an ID and a session`},
	} {
		before := l.dump()
		r := l.do(tc.op)
		require.Equal(t, tc.code, r.Code, "%#v", tc.op)
		require.ErrorContains(t, r.Err(), tc.want)
		require.Equal(t, before, l.dump(), "%#v", tc.op)
	}
}

func TestServiceLife(t *testing.T) {
	l, sv, task := webOn(t)
	l.ok(StopService{Service: sv})
	require.Equal(t, Conflict, l.do(CreateTask{Service: sv, SpecVersion: 1, Slot: 2, Generation: 1}).Code)
	l.ok(StartService{Service: sv})

	spec := webSpec(4)
	l.ok(UpdateService{Service: sv, Spec: spec})
	require.EqualValues(t, 1, l.m.View().Services[sv].Version, "only the number of replicas has changed")
	spec.Task.Env = map[string]string{"A": "b"}
	l.ok(UpdateService{Service: sv, Spec: spec})
	require.EqualValues(t, 2, l.m.View().Services[sv].Version)
	require.Empty(t, l.m.View().Tasks[task].Spec.Env, "a task keeps what it runs")

	l.ok(RemoveService{Service: sv})
	require.Equal(t, NotFound, l.do(ScaleService{Service: sv, Replicas: 1}).Code)
	require.Equal(t, Conflict, l.do(DropService{Service: sv}).Code, "it still has tasks")
	again := l.ok(CreateService{Spec: webSpec(1)}).Service
	require.NotEqual(t, sv, again)
	l.ok(StopTask{Task: task})
	require.Equal(t, DesiredShutdown, l.m.View().Tasks[task].Desired)
	require.Equal(t, Fence{Epoch: 1, Index: l.index}, l.m.View().Tasks[task].Fence)
	l.report(task, TaskStatus{State: TaskShutdown})
	l.ok(RemoveTask{Task: task})
	l.ok(DropService{Service: sv})
	require.Nil(t, l.m.View().Services[sv])
}

func TestNewTaskThatIsNotWantedIsOverAtOnce(t *testing.T) {
	l, sv, _ := webOn(t)
	l.ok(CreateTask{Service: sv, SpecVersion: 1, Slot: 2, Generation: 1})
	task := NewTaskID(sv, 2, 1)
	l.ok(StopTask{Task: task})
	require.Equal(t, TaskShutdown, l.m.View().Tasks[task].State, "no node will ever say so")
	require.Equal(t, Conflict, l.do(AssignTask{Task: task, Node: "n1"}).Code)
}

// What was given up because it failed delays the next task of the slot; what was stopped by a user does not.
func TestFailuresOfASlotAreRemembered(t *testing.T) {
	l, sv, task := webOn(t)
	failures := func() []time.Time { return l.m.View().Services[sv].Slots[0].Failures }
	l.ok(StopTask{Task: task})
	require.Empty(t, failures())
	l.report(task, TaskStatus{State: TaskShutdown})
	for generation := uint64(2); generation < 15; generation++ {
		l.now = l.now.Add(time.Second)
		l.ok(CreateTask{Service: sv, SpecVersion: 1, Slot: 1, Generation: generation, Node: "n1"})
		task = NewTaskID(sv, 1, generation)
		if generation%2 == 0 {
			l.ok(StopTask{Task: task, GaveUp: true})
			l.ok(StopTask{Task: task, GaveUp: true}) // counts once
			l.report(task, TaskStatus{State: TaskShutdown})
		} else {
			l.report(task, TaskStatus{State: TaskRejected})
			l.report(task, TaskStatus{State: TaskRejected}) // counts once
		}
		require.Len(t, failures(), min(int(generation)-1, MaxSlotFailures))
		require.Equal(t, l.now, failures()[len(failures())-1])
	}
	require.Equal(t, l.now.Add(-(MaxSlotFailures-1)*time.Second), failures()[0], "the newest are kept")
}

func TestRegisteringAgainKeepsWhatTheOperatorDecided(t *testing.T) {
	l := newLog(t)
	l.start(1)
	l.join("n1")
	l.ok(SetAvailability{Node: "n1", Availability: AvailabilityDrain})
	l.ok(RegisterNode{Node: "n1", Address: "new:1", Role: RoleManager, Session: "2"})
	n := l.m.View().Nodes["n1"]
	require.Equal(t, Node{ID: "n1", Address: "new:1", Role: RoleManager, Availability: AvailabilityDrain,
		Session: "2", Status: NodeReady, StatusAt: t0}, *n)
}

func TestTheStateIsBounded(t *testing.T) {
	l := newLog(t)
	l.start(1)
	for i := range MaxServices {
		spec := webSpec(0)
		spec.Name, spec.Task.Ports = fmt.Sprintf("s%d", i), nil
		l.ok(CreateService{Spec: spec})
	}
	require.Equal(t, Conflict, l.do(CreateService{Spec: webSpec(0)}).Code)
	for i := range MaxNodes {
		l.ok(RegisterNode{Node: NodeID(fmt.Sprintf("n%d", i)), Role: RoleWorker, Session: "1"})
	}
	require.Equal(t, Conflict, l.do(RegisterNode{Node: "n", Role: RoleWorker, Session: "1"}).Code)
	l.ok(RegisterNode{Node: "n1", Role: RoleWorker, Session: "2"})

	l, _, task := webOn(t)
	l.report(task, TaskStatus{State: TaskRunning, Endpoints: make([]Endpoint, 100)})
	require.Len(t, l.m.View().Tasks[task].Endpoints, 1, "one per port")
}

func TestNothingNewIsNoEvent(t *testing.T) {
	l, sv, task := webOn(t)
	running := TaskStatus{State: TaskRunning, Endpoints: []Endpoint{{Target: 8080, Address: "127.0.0.1:9"}}}
	l.report(task, running)
	l.ok(StopService{Service: sv})
	before := l.dump()
	l.now = l.now.Add(time.Hour)
	l.report(task, running)
	l.ok(StopService{Service: sv})
	l.ok(ScaleService{Service: sv, Replicas: 2})
	l.ok(SetNodeStatus{Node: "n1", Status: NodeReady})
	l.ok(SetAvailability{Node: "n1", Availability: AvailabilityActive})
	require.Equal(t, before, l.dump())
}

func TestEventsAreARing(t *testing.T) {
	l := newLog(t)
	l.start(1)
	l.join("n1")
	early := l.m.View()
	seen := len(early.Events)
	for i := range MaxEvents + 10 {
		l.ok(SetNodeStatus{Node: "n1", Status: []NodeStatus{NodeDown, NodeReady}[i%2]})
	}
	events := l.m.View().Events
	require.Len(t, events, MaxEvents)
	for i, e := range events {
		require.Equal(t, events[0].Seq+uint64(i), e.Seq)
	}
	require.Len(t, early.Events, seen)
	require.EqualValues(t, 1, early.Events[0].Seq, "an earlier view keeps what it showed")
}

func TestViewsNeverChange(t *testing.T) {
	l, sv, task := webOn(t)
	view, replaced := l.m.Watch()
	before, err := json.Marshal(view)
	require.NoError(t, err)
	l.report(task, TaskStatus{State: TaskRunning, Attempts: 1, ExitCode: 1})
	<-replaced
	l.ok(StopTask{Task: task, GaveUp: true, Reason: "unhealthy"})
	l.ok(ScaleService{Service: sv, Replicas: 9})
	l.ok(SetAvailability{Node: "n1", Availability: AvailabilityDrain})
	l.report(task, TaskStatus{State: TaskShutdown, Attempts: 1})
	l.ok(RemoveTask{Task: task})
	after, err := json.Marshal(view)
	require.NoError(t, err)
	require.Equal(t, string(before), string(after))
}

func TestSnapshotRestoresEverything(t *testing.T) {
	l, sv, task := webOn(t)
	l.ok(SetToken{Role: RoleWorker, SecretHash: workerSecret, ExpiresAt: l.now.Add(time.Hour)})
	l.join("n2")
	l.ok(RemoveNode{Node: "n2", Until: l.now.Add(time.Hour), Force: true})
	l.report(task, TaskStatus{State: TaskRunning, Endpoints: []Endpoint{{Target: 8080, Address: "127.0.0.1:9"}}})
	l.ok(StopTask{Task: task, GaveUp: true, Reason: "unhealthy"})
	w, err := l.m.Snapshot(context.Background())
	require.NoError(t, err)
	want := l.dump()
	l.ok(ScaleService{Service: sv, Replicas: 0}) // beside the writing
	var file bytes.Buffer
	require.NoError(t, w.WriteTo(context.Background(), &file))
	w.Close()

	restored := newLog(t)
	require.NoError(t, restored.m.Restore(context.Background(), raft.SnapshotMeta{}, bytes.NewReader(file.Bytes())))
	require.Equal(t, want, restored.dump())
	// And it goes on like the original.
	restored.index, restored.epoch = l.index-1, 1
	restored.ok(ScaleService{Service: sv, Replicas: 0})
	require.Equal(t, l.dump(), restored.dump())
}

func TestRestoreRefusesWhatIsNotSound(t *testing.T) {
	for name, file := range map[string]string{
		"empty":          ``,
		"cut off":        `{"format":1,"state":{`,
		"no state":       `{"format":1,"state":null}`,
		"other format":   `{"format":2}`,
		"no maps":        `{"format":1,"state":{"nodes":null}}`,
		"null node":      `{"format":1,"state":{"nodes":{"a":null}}}`,
		"removed node":   `{"format":1,"state":{"cluster":{"removed":{"a":"2026-01-02T03:04:05Z"}},"nodes":{"a":{"id":"a"}}}}`,
		"wrong key":      `{"format":1,"state":{"nodes":{"a":{"id":"b"}}}}`,
		"too few slots":  `{"format":1,"state":{"services":{"s":{"id":"s","spec":{"replicas":2}}}}}`,
		"task of nobody": `{"format":1,"state":{"tasks":{"s.1.1":{"id":"s.1.1","service":"s","slot":1,"generation":1,"state":"new"}}}}`,
		"odd task":       `{"format":1,"state":{"tasks":{"s.1.1":{"id":"s.1.1","service":"s","slot":2,"generation":1,"state":"new"}}}}`,
	} {
		l := newLog(t)
		l.start(1)
		before := l.m.View()
		require.Error(t, l.m.Restore(context.Background(), raft.SnapshotMeta{}, strings.NewReader(file)), name)
		require.Same(t, before, l.m.View(), name)
	}
}

func TestGarbageIsRefusedButANewerReleaseStops(t *testing.T) {
	m := NewMachine()
	results := make([]any, 1)
	for _, b := range []string{``, `null x`, `[]`, `{"kind":"stop-task","op":7}`, `{"kind":"stop-task"}`} {
		require.NoError(t, m.Apply([]raft.Entry{raft.NewCommand([]byte(b))}, results), b)
		require.Equal(t, Invalid, results[0].(Result).Code, b)
	}
	before := m.View()
	err := m.Apply([]raft.Entry{raft.NewCommand([]byte(`{"kind":"fly","op":{}}`))}, results)
	require.ErrorIs(t, err, ErrUnknownKind)
	require.Same(t, before, m.View())
}

func FuzzApply(f *testing.F) {
	for kind := range decoders {
		f.Add([]byte(fmt.Sprintf(`{"kind":%q,"epoch":1,"at":"2026-01-02T03:04:05Z","op":{"node":"n","session":"1","role":"worker"}}`, kind)))
	}
	f.Add([]byte(`{"kind":"create-service","op":{"spec":{"name":"a","replicas":1,"task":{"command":["a"],"restart":{"condition":"no"}}}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := NewMachine()
		e := raft.NewCommand(b)
		if err := m.Apply([]raft.Entry{e, e}, make([]any, 2)); err != nil {
			require.ErrorIs(t, err, ErrUnknownKind)
		}
		var file bytes.Buffer
		w, err := m.Snapshot(context.Background())
		require.NoError(t, err)
		require.NoError(t, w.WriteTo(context.Background(), &file))
		require.NoError(t, NewMachine().Restore(context.Background(), raft.SnapshotMeta{}, io.Reader(&file)))
	})
}

const (
	workerSecret  = "1111111111111111111111111111111111111111111111111111111111111111"
	managerSecret = "2222222222222222222222222222222222222222222222222222222222222222"
	newSecret     = "3333333333333333333333333333333333333333333333333333333333333333"
)

func TestTokenLetsInUntilItIsRotatedOrExpires(t *testing.T) {
	l := newLog(t)
	l.start(1)
	admit := func(id NodeID, secret string) Result {
		return l.do(AdmitNode{Node: id, SecretHash: secret, Key: "key of " + string(id)})
	}
	require.Equal(t, Forbidden, admit("w1", workerSecret).Code, "there is no token yet")
	l.ok(SetToken{Role: RoleWorker, SecretHash: workerSecret})
	l.ok(SetToken{Role: RoleManager, SecretHash: managerSecret, ExpiresAt: l.now.Add(time.Hour)})

	require.Equal(t, Result{Code: OK, Role: RoleWorker}, admit("w1", workerSecret))
	require.Equal(t, Result{Code: OK, Role: RoleManager}, admit("m2", managerSecret), "the secret decides the role")
	require.Equal(t, RoleManager, l.m.View().Nodes["m2"].Role)
	require.Equal(t, Forbidden, admit("w2", newSecret).Code)
	require.Equal(t, Forbidden, admit("w2", "").Code)

	// The same node may ask again, because the answer may have been lost. Another one may not take its name.
	before := l.dump()
	require.Equal(t, Result{Code: OK, Role: RoleWorker}, admit("w1", workerSecret))
	require.Equal(t, Conflict, l.do(AdmitNode{Node: "w1", SecretHash: workerSecret, Key: "another"}).Code)
	require.Equal(t, Conflict, admit("w1", managerSecret).Code, "nor change its role by joining again")
	require.Equal(t, before, l.dump())

	// A token is not replaced by accident, and worth nothing after it was replaced.
	require.Equal(t, Conflict, l.do(SetToken{Role: RoleWorker, SecretHash: newSecret}).Code)
	l.start(2)
	require.Equal(t, Result{Code: OK, Role: RoleWorker}, admit("w2", workerSecret), "a new leader keeps the tokens")
	l.ok(SetToken{Role: RoleWorker, SecretHash: newSecret, Rotate: true})
	require.Equal(t, Forbidden, admit("w3", workerSecret).Code)
	l.ok(AdmitNode{Node: "w3", SecretHash: newSecret, Key: "k"})

	l.now = l.now.Add(time.Hour)
	require.Equal(t, Forbidden, admit("m3", managerSecret).Code, "expired")
	l.ok(SetToken{Role: RoleManager, SecretHash: newSecret[1:] + "4"})

	for _, bad := range []SetToken{
		{Role: "king", SecretHash: newSecret}, {Role: RoleWorker, SecretHash: "short", Rotate: true},
		{Role: RoleWorker, SecretHash: newSecret, Rotate: true, ExpiresAt: l.now},
	} {
		require.Equal(t, Invalid, l.do(bad).Code, "%+v", bad)
	}
	require.Equal(t, Invalid, l.do(AdmitNode{SecretHash: newSecret, Key: "k"}).Code)
	require.Equal(t, Invalid, l.do(AdmitNode{Node: "w4", SecretHash: newSecret}).Code)
}

func TestRemovedNodesStayOut(t *testing.T) {
	l, sv, task := webOn(t)
	l.ok(SetToken{Role: RoleWorker, SecretHash: workerSecret})
	until := l.now.Add(time.Hour)
	require.Equal(t, Conflict, l.do(RemoveNode{Node: "n1", Until: until}).Code, "it is ready")
	require.Equal(t, NotFound, l.do(RemoveNode{Node: "n9", Until: until}).Code)
	require.Equal(t, Invalid, l.do(RemoveNode{Node: "n1", Force: true}).Code)
	l.ok(RemoveNode{Node: "n1", Until: until, Force: true})
	require.Empty(t, l.m.View().Nodes)
	before := l.dump()
	l.ok(RemoveNode{Node: "n1", Until: until})
	require.Equal(t, before, l.dump(), "done already")

	// Its certificate is still valid; it does not help.
	register := RegisterNode{Node: "n1", Role: RoleWorker, Session: "2"}
	require.Equal(t, Removed, l.do(register).Code)
	require.Equal(t, Removed, l.do(AdmitNode{Node: "n1", SecretHash: workerSecret, Key: "k"}).Code)
	require.Equal(t, NotFound, l.do(Report{Node: "n1", Session: "1", Tasks: []ReportedTask{{ID: task, Status: TaskStatus{State: TaskRunning}}}}).Code)
	require.Equal(t, NotFound, l.do(CreateTask{Service: sv, SpecVersion: 1, Slot: 2, Generation: 1, Node: "n1"}).Code)
	l.ok(LoseTask{Task: task})
	l.start(2)
	require.True(t, l.m.View().Cluster.IsRemoved("n1"), "a new leader does not forget it")

	// Once the certificate has expired, nothing has to be remembered; that happens when another node is removed.
	l.ok(RemoveNode{Node: "founder that never came", Until: until.Add(time.Hour), Force: true})
	l.now = until
	require.Equal(t, Removed, l.do(register).Code)
	l.join("n2")
	l.ok(SetNodeStatus{Node: "n2", Status: NodeDown})
	l.ok(RemoveNode{Node: "n2", Until: until.Add(time.Hour)})
	require.False(t, l.m.View().Cluster.IsRemoved("n1"))
	require.True(t, l.m.View().Cluster.IsRemoved("founder that never came"))
}

func TestRemovedNodesAreBounded(t *testing.T) {
	l := newLog(t)
	l.start(1)
	s := *l.m.View()
	s.Cluster.Removed = map[NodeID]time.Time{}
	for i := range MaxRemoved {
		s.Cluster.Removed[NodeID(fmt.Sprint(i))] = l.now.Add(time.Minute)
	}
	l.m.publish(&s)
	remove := RemoveNode{Node: "n", Until: l.now.Add(time.Hour), Force: true}
	require.Equal(t, Conflict, l.do(remove).Code)
	l.now = l.now.Add(time.Minute)
	l.ok(remove)
	require.Len(t, l.m.View().Cluster.Removed, 1)
}

func TestOnlyWhatRunsCanBeKilled(t *testing.T) {
	l, _, task := webOn(t)
	require.Equal(t, Conflict, l.do(KillTask{Task: task}).Code)
	require.Equal(t, NotFound, l.do(KillTask{Task: "x"}).Code)
	l.report(task, TaskStatus{State: TaskRunning})
	l.ok(KillTask{Task: task})
	l.ok(KillTask{Task: task})
	require.Equal(t, 2, l.m.View().Tasks[task].Kills)
}
