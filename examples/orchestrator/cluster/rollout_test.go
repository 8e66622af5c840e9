package cluster

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func (l *log) service(id ServiceID) *Service { return l.m.View().Services[id] }

func (l *log) refused(code Code, op Op, text string) {
	l.Helper()
	before := l.dump()
	r := l.do(op)
	require.Equal(l, code, r.Code, r.Message)
	require.Contains(l, r.Message, text)
	require.Equal(l, before, l.dump(), "a refused command has changed nothing")
}

func release(name string) ServiceSpec {
	s := webSpec(2)
	s.Task.Env = map[string]string{"RELEASE": name}
	return s
}

// A version's number means one specification for ever: a rollback goes back to the old number, and the next update takes a new one.
func TestVersionsOfUpdatesAndRollbacks(t *testing.T) {
	l := newLog(t)
	l.start(1)
	id := l.ok(CreateService{Spec: release("1")}).Service
	l.refused(Conflict, RollbackService{Service: id}, "never updated")
	require.Nil(t, l.service(id).Update)

	l.ok(UpdateService{Service: id, Spec: release("2")})
	require.EqualValues(t, 2, l.service(id).Version)
	require.Equal(t, Updating, l.service(id).Update.State)

	l.ok(ScaleService{Service: id, Replicas: 3})
	l.ok(RollbackService{Service: id})
	sv := l.service(id)
	require.EqualValues(t, 1, sv.Version)
	require.Equal(t, "1", sv.Spec.Task.Env["RELEASE"])
	require.Equal(t, 3, sv.Spec.Replicas, "how many there are is no part of a release")
	require.Equal(t, RollbackStarted, sv.Update.State)

	l.ok(UpdateService{Service: id, Spec: release("3")})
	require.EqualValues(t, 3, l.service(id).Version, "2 was something else")
	l.ok(UpdateService{Service: id, Spec: release("1")})
	require.EqualValues(t, 1, l.service(id).Version, "what it was before: tasks of it are right")
	require.Equal(t, Updating, l.service(id).Update.State)
	l.ok(RollbackService{Service: id})
	require.EqualValues(t, 3, l.service(id).Version)
	l.requireRestorable()
}

// What changes no task can be undone as well; in the middle of an update a rollback goes back to what was before that.
func TestWhatARollbackUndoes(t *testing.T) {
	l := newLog(t)
	l.start(1)
	id := l.ok(CreateService{Spec: release("1")}).Service
	l.ok(UpdateService{Service: id, Spec: release("2")})
	l.ok(EndUpdate{Service: id, Version: 2, State: UpdateCompleted})
	narrow := release("2")
	narrow.Constraints = []Constraint{{Key: "node.role", Value: "worker"}}
	l.ok(UpdateService{Service: id, Spec: narrow})
	require.Equal(t, UpdateCompleted, l.service(id).Update.State, "no task is to be replaced")
	l.ok(RollbackService{Service: id})
	require.Empty(t, l.service(id).Spec.Constraints)
	require.EqualValues(t, 2, l.service(id).Version)
	l.ok(EndUpdate{Service: id, Version: 2, State: RollbackCompleted})

	l.ok(UpdateService{Service: id, Spec: release("3")})
	patient := release("3")
	patient.Update.Delay = time.Second
	l.ok(UpdateService{Service: id, Spec: patient})
	l.ok(RollbackService{Service: id})
	require.Equal(t, "2", l.service(id).Spec.Task.Env["RELEASE"])
	l.requireRestorable()
}

// requireRestorable checks that a snapshot of the state is sound, and says the same.
func (l *log) requireRestorable() {
	l.Helper()
	require.NoError(l, l.m.View().check())
}

func TestUpdateOfWhatSomebodyElseHasChangedIsRefused(t *testing.T) {
	l := newLog(t)
	l.start(1)
	id := l.ok(CreateService{Spec: release("1")}).Service
	seen := l.service(id).ChangedAt
	l.ok(ScaleService{Service: id, Replicas: 5})
	l.refused(Conflict, UpdateService{Service: id, Spec: release("2"), Expect: seen}, "changed by somebody else")
	l.ok(UpdateService{Service: id, Spec: release("2"), Expect: l.service(id).ChangedAt})
}

// assigned gives a slot its next task, on n1.
func (l *log) assigned(id ServiceID, slot int) TaskID {
	l.Helper()
	sv := l.service(id)
	generation := sv.Slots[slot-1].Generation + 1
	l.ok(CreateTask{Service: id, SpecVersion: sv.Version, Slot: slot, Generation: generation, Node: "n1"})
	return NewTaskID(id, slot, generation)
}

// A failure counts for an update if it is of its version, and came before the monitor window was over.
func TestWhichFailuresAreTheUpdates(t *testing.T) {
	running := TaskStatus{State: TaskRunning}
	again := TaskStatus{State: TaskStarting, Attempts: 1, ExitCode: 1}
	for name, test := range map[string]struct {
		happens func(l *log, old, task TaskID)
		counts  bool
	}{
		"never ran":          {func(l *log, _, task TaskID) { l.report(task, again) }, true},
		"rejected":           {func(l *log, _, task TaskID) { l.report(task, TaskStatus{State: TaskRejected}) }, true},
		"failed for good":    {func(l *log, _, task TaskID) { l.report(task, TaskStatus{State: TaskFailed}) }, true},
		"done":               {func(l *log, _, task TaskID) { l.report(task, TaskStatus{State: TaskComplete}) }, false},
		"runs":               {func(l *log, _, task TaskID) { l.report(task, running) }, false},
		"unhealthy":          {func(l *log, _, task TaskID) { l.report(task, TaskStatus{State: TaskRunning, Health: HealthUnhealthy}) }, true},
		"given up":           {func(l *log, _, task TaskID) { l.ok(StopTask{Task: task, GaveUp: true}) }, true},
		"stopped":            {func(l *log, _, task TaskID) { l.ok(StopTask{Task: task}) }, false},
		"ended early, clean": {func(l *log, _, task TaskID) { l.report(task, TaskStatus{State: TaskStarting, Attempts: 1}) }, true},
		"of the old version": {func(l *log, old, _ TaskID) { l.report(old, again) }, false},
		"in the window": {func(l *log, _, task TaskID) {
			l.report(task, running)
			l.now = l.now.Add(defaultMonitor - 1)
			l.report(task, again)
		}, true},
		"after the window": {func(l *log, _, task TaskID) {
			l.report(task, running)
			l.now = l.now.Add(defaultMonitor)
			l.report(task, again)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLog(t)
			l.start(1)
			l.join("n1")
			id := l.ok(CreateService{Spec: release("1")}).Service
			old := l.assigned(id, 1)
			l.ok(UpdateService{Service: id, Spec: release("2")})
			task := l.assigned(id, 2)
			test.happens(l, old, task)
			require.True(t, l.service(id).Slots[0].UpdateFailedAt.IsZero())
			require.Equal(t, test.counts, !l.service(id).Slots[1].UpdateFailedAt.IsZero())

			l.ok(RollbackService{Service: id})
			l.report(old, TaskStatus{State: TaskStarting, Attempts: 3, ExitCode: 1})
			for _, s := range l.service(id).Slots {
				require.True(t, s.UpdateFailedAt.IsZero(), "the rollback has not failed: its task was there before")
			}
		})
	}
}

func TestHowAnUpdateEnds(t *testing.T) {
	l := newLog(t)
	l.start(1)
	id := l.ok(CreateService{Spec: release("1")}).Service
	end := func(version uint64, state UpdateState) EndUpdate {
		return EndUpdate{Service: id, Version: version, State: state, Message: "why"}
	}
	l.refused(Conflict, end(1, UpdateCompleted), "not being updated")
	l.ok(UpdateService{Service: id, Spec: release("2")})
	l.refused(Conflict, end(1, UpdateCompleted), "not being updated to version 1")
	l.refused(Invalid, end(2, RollbackCompleted), "does not become")
	l.refused(Invalid, end(2, "sideways"), "does not end")

	l.ok(end(2, UpdatePaused))
	require.Equal(t, "why", l.service(id).Update.Message)
	l.refused(Conflict, end(2, UpdateCompleted), "not being updated")
	l.ok(UpdateService{Service: id, Spec: release("2")})
	require.Equal(t, Updating, l.service(id).Update.State, "a paused one goes on when a user asks for the same again")

	l.ok(end(2, RollbackStarted))
	require.EqualValues(t, 1, l.service(id).Version)
	l.refused(Conflict, end(1, RollbackStarted), "cannot be rolled back")
	l.refused(Invalid, end(1, UpdateCompleted), "does not become")
	l.ok(end(1, RollbackCompleted))
	require.Equal(t, l.now, l.service(id).Update.CompletedAt)
	l.requireRestorable()
}

// A port that was given up may belong to another service by the time of a rollback.
func TestRollbackToAPortThatIsTaken(t *testing.T) {
	l := newLog(t)
	l.start(1)
	id := l.ok(CreateService{Spec: release("1")}).Service
	moved := release("2")
	moved.Task.Ports = []Port{{Published: 81, Target: 80}}
	l.ok(UpdateService{Service: id, Spec: moved})
	other := webSpec(1)
	other.Name = "other"
	l.ok(CreateService{Spec: other})
	l.refused(Conflict, RollbackService{Service: id}, "published by service \"other\"")
	l.ok(EndUpdate{Service: id, Version: 2, State: RollbackStarted, Message: "it fails"})
	require.Equal(t, UpdatePaused, l.service(id).Update.State)
	require.Contains(t, l.service(id).Update.Message, "cannot be rolled back")
	require.EqualValues(t, 2, l.service(id).Version)
}

// A plan may be overtaken by a change. What it decided then is refused.
func TestPlacementIsCheckedAgainWhenItIsApplied(t *testing.T) {
	l := newLog(t)
	l.start(1)
	l.ok(RegisterNode{Node: "n1", Role: RoleWorker, Session: "1", Resources: Resources{NanoCPUs: OneCPU, MemoryBytes: 100}})
	l.ok(SetNodeStatus{Node: "n1", Status: NodeReady})
	spec := webSpec(3)
	spec.Constraints = []Constraint{{Key: "node.labels.zone", Value: "a"}}
	spec.Task.Reservations = Resources{NanoCPUs: OneCPU / 2, MemoryBytes: 40}
	id := l.ok(CreateService{Spec: spec}).Service
	create := CreateTask{Service: id, SpecVersion: 1, Slot: 1, Generation: 1, Node: "n1"}
	l.refused(Conflict, create, "constraints")
	l.ok(SetLabels{Node: "n1", Add: map[string]string{"zone": "a"}})
	l.ok(create)
	l.assigned(id, 2)
	create.Slot = 3
	l.refused(Conflict, create, "not enough left")
	create.Slot, create.Generation, create.Node = 1, 2, ""
	l.refused(Conflict, create, "is assigned on n1")
	create.Slot, create.Generation, create.Reason = 3, 1, "no suitable node"
	l.ok(create)
	waiting := NewTaskID(id, 3, 1)
	require.Equal(t, "no suitable node", l.m.View().Tasks[waiting].Error)
	l.ok(ExplainTask{Task: waiting, Reason: "still none"})
	l.refused(Conflict, AssignTask{Task: waiting, Node: "n1"}, "not enough left")

	l.ok(StopTask{Task: NewTaskID(id, 1, 1)})
	l.refused(Conflict, AssignTask{Task: waiting, Node: "n1"}, "not enough left")
	l.report(NewTaskID(id, 1, 1), TaskStatus{State: TaskShutdown})
	l.ok(AssignTask{Task: waiting, Node: "n1"})
	require.Empty(t, l.m.View().Tasks[waiting].Error, "it has a node now")
	l.refused(Conflict, ExplainTask{Task: waiting, Reason: "none"}, "waits for no node")
}

func TestLabelsAreTheUsers(t *testing.T) {
	l := newLog(t)
	l.start(1)
	l.join("n1")
	l.ok(SetLabels{Node: "n1", Add: map[string]string{"zone": "a", "disk": "ssd"}})
	l.ok(SetLabels{Node: "n1", Remove: []string{"disk", "never-there"}})
	l.join("n1") // the agent starts again
	require.Equal(t, map[string]string{"zone": "a"}, l.m.View().Nodes["n1"].Labels)
	l.refused(NotFound, SetLabels{Node: "n9", Add: map[string]string{"a": "b"}}, "no node")
	l.refused(Invalid, SetLabels{Node: "n1", Add: map[string]string{"a b": "c"}}, "label")
	many := map[string]string{}
	for i := range MaxLabels {
		many[string(rune('a'+i%26))+string(rune('a'+i/26))] = "x"
	}
	l.refused(Conflict, SetLabels{Node: "n1", Add: many}, "labels")
}

func TestConstraints(t *testing.T) {
	n := &Node{ID: "n1", Role: RoleWorker, Labels: map[string]string{"zone": "a"}}
	for text, want := range map[string]bool{
		"node.id==n1": true, "node.id!=n1": false, "node.hostname == n1": true, "node.role==worker": true, "node.role==manager": false,
		"node.labels.zone==a": true, "node.labels.zone==A": true, "node.labels.zone!=a": false, "node.labels.disk==ssd": false,
		"node.labels.disk!=ssd": true,
	} {
		c, err := ParseConstraint(text)
		require.NoError(t, err, text)
		require.Equal(t, want, c.Matches(n), text)
		again, err := ParseConstraint(c.String())
		require.NoError(t, err)
		require.Equal(t, c, again)
	}
	for _, text := range []string{"", "node.id", "node.id=n1", "node.id==", "zone==a", "node.labels.==a", "node.role==boss", "node.id===n1", "node.platform.os==linux"} {
		_, err := ParseConstraint(text)
		require.ErrorContains(t, err, "constraint", text)
	}
}

func TestSpecificationsThatCannotBe(t *testing.T) {
	for text, change := range map[string]func(*ServiceSpec){
		"constraint":         func(s *ServiceSpec) { s.Constraints = []Constraint{{Key: "zone", Value: "a"}} },
		"reservations":       func(s *ServiceSpec) { s.Task.Reservations.NanoCPUs = -1 },
		"update parallelism": func(s *ServiceSpec) { s.Update.Parallelism = -2 },
		"update delay":       func(s *ServiceSpec) { s.Update.Delay = -time.Second },
		"max failure ratio":  func(s *ServiceSpec) { s.Update.MaxFailureRatio = 1.5 },
		"failure action":     func(s *ServiceSpec) { s.Update.FailureAction = "panic" },
		"rollback failure":   func(s *ServiceSpec) { s.Rollback.FailureAction = FailureRollback },
		"order":              func(s *ServiceSpec) { s.Update.Order = "both" },
		"autoscale from":     func(s *ServiceSpec) { s.Autoscale = &Autoscale{Min: 3, Max: 2, TargetCPU: 50} },
		"autoscale target":   func(s *ServiceSpec) { s.Autoscale = &Autoscale{Min: 1, Max: 2} },
	} {
		s := webSpec(1)
		change(&s)
		require.ErrorContains(t, s.Validate(), text)
	}
}

func TestAutoscalingInTheState(t *testing.T) {
	l := newLog(t)
	l.start(1)
	id := l.ok(CreateService{Spec: webSpec(2)}).Service
	l.refused(Conflict, AutoscaleService{Service: id, From: 2, Replicas: 3}, "not scaled by its load")
	l.refused(Conflict, NoteLoad{Service: id, To: 1}, "not scaled by its load")
	l.refused(Invalid, SetAutoscale{Service: id, Autoscale: &Autoscale{Min: 0, Max: 1, TargetCPU: 50}}, "autoscale")
	l.ok(SetAutoscale{Service: id, Autoscale: &Autoscale{Min: 1, Max: 4, TargetCPU: 50}})
	l.refused(Conflict, ScaleService{Service: id, Replicas: 5}, "scaled by its load")
	l.refused(Conflict, AutoscaleService{Service: id, From: 3, Replicas: 4}, "has 2 replicas")
	l.refused(Invalid, AutoscaleService{Service: id, From: 2, Replicas: 5}, "from 1 to 4")

	l.ok(NoteLoad{Service: id, To: 1})
	began := l.now
	l.now = l.now.Add(time.Second)
	l.ok(NoteLoad{Service: id, To: 2})
	l.ok(NoteLoad{Service: id, To: 1})
	require.Equal(t, AutoscaleStatus{LowSince: began, LowTo: 2}, l.service(id).Autoscaling, "the most that were needed")
	l.ok(AutoscaleService{Service: id, From: 2, Replicas: 4})
	require.Equal(t, AutoscaleStatus{}, l.service(id).Autoscaling)
	require.Equal(t, 4, l.service(id).Spec.Replicas)
	l.ok(SetAutoscale{Service: id})
	l.ok(ScaleService{Service: id, Replicas: 5})
	l.requireRestorable()
}

// A task is not stopped for an update that another one has overtaken: how many may be on their way is for that to say.
func TestStopForAnUpdateIsRefusedAfterAnother(t *testing.T) {
	l, service, task := webOn(t)
	update := func(release string) {
		spec := webSpec(1)
		spec.Task.Env = map[string]string{"RELEASE": release}
		l.ok(UpdateService{Service: service, Spec: spec})
	}
	update("2")
	planned := StopTask{Task: task, Reason: "service updated", Expect: l.m.View().Services[service].ChangedAt}
	update("3")
	require.Equal(t, Conflict, l.do(planned).Code)
	require.Equal(t, DesiredRunning, l.m.View().Tasks[task].Desired)
	planned.Expect = l.m.View().Services[service].ChangedAt
	l.ok(planned)
	require.Equal(t, DesiredShutdown, l.m.View().Tasks[task].Desired)
}

// Nor is a service scaled within limits that are others by now: it would shrink without the minute in which that has to be enough.
func TestScalingIsRefusedAfterTheLimitsHaveChanged(t *testing.T) {
	l, service, _ := webOn(t)
	limit := func(low, high int) {
		l.ok(SetAutoscale{Service: service, Autoscale: &Autoscale{Min: low, Max: high, TargetCPU: 50}})
	}
	limit(3, 3)
	up := AutoscaleService{Service: service, From: 2, Replicas: 3, Expect: l.m.View().Services[service].ChangedAt}
	note := NoteLoad{Service: service, To: 1, Expect: up.Expect}
	limit(1, 5)
	require.Equal(t, Conflict, l.do(up).Code)
	require.Equal(t, Conflict, l.do(note).Code)
	require.Equal(t, 2, l.m.View().Services[service].Spec.Replicas)
	require.Zero(t, l.m.View().Services[service].Autoscaling)
	up.Expect = l.m.View().Services[service].ChangedAt
	l.ok(up)
	require.Equal(t, 3, l.m.View().Services[service].Spec.Replicas)
}
