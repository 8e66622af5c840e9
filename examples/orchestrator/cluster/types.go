// Package cluster is what the managers agree on: nodes, services, tasks and recent events, the commands that change them, and the
// state machine that applies those commands.
//
// Nothing in it reads a clock or a random source. Every time stamp comes in with a command, so every manager computes the same
// state, and a new leader goes on with the deadlines of the old one.
package cluster

import (
	"fmt"
	"time"

	"github.com/steadyraft/raft"
)

// NodeID names a machine. On a manager it is also its raft.NodeID.
type NodeID string

// ServiceID names a service for ever: a service that is removed and created again has another one.
type ServiceID string

// TaskID names one task for ever: service, slot and generation, as made by [NewTaskID].
type TaskID string

// NewTaskID is the name of the task that fills a slot of a service in one generation. It is never used twice, because a service
// never uses a generation of a slot twice.
func NewTaskID(service ServiceID, slot int, generation uint64) TaskID {
	return TaskID(fmt.Sprintf("%s.%d.%d", service, slot, generation))
}

// Role says what a node does besides running tasks.
type Role string

// The roles.
const (
	RoleManager Role = "manager"
	RoleWorker  Role = "worker"
)

// Availability is what the operator wants of a node.
type Availability string

// The availabilities: an active node takes tasks, a paused one keeps those it has, a drained one gives them up.
const (
	AvailabilityActive Availability = "active"
	AvailabilityPause  Availability = "pause"
	AvailabilityDrain  Availability = "drain"
)

// NodeStatus is what the leader knows about a node.
type NodeStatus string

// The statuses. After a leader change every node that was ready is unknown until the new leader has heard it, or has waited in
// vain for a full grace period: what the old leader had heard says nothing about now.
const (
	NodeUnknown NodeStatus = "unknown"
	NodeReady   NodeStatus = "ready"
	NodeDown    NodeStatus = "down"
)

// Bounds of the replicated state. What would exceed them is refused, or the oldest is forgotten.
const (
	MaxNodes        = 1000
	MaxServices     = 1000
	MaxReplicas     = 1000 // of one service
	MaxEvents       = 1000
	MaxTaskFailures = 5
	MaxSlotFailures = 8
	MaxRemoved      = 10_000 // nodes that were removed and whose certificates have not expired yet
	maxErrorBytes   = 512    // of TaskStatus.Error
)

// Node is a machine that runs tasks.
type Node struct {
	ID           NodeID            `json:"id"`
	Address      string            `json:"address"` // of a manager's API, host:port; of a worker only its host
	Role         Role              `json:"role"`
	Availability Availability      `json:"availability"`
	Labels       map[string]string `json:"labels,omitempty"` // set by users only: a node that chose its own could draw tasks to itself
	Resources    Resources         `json:"resources,omitzero"`
	Key          string            `json:"key,omitempty"` // digest of the key with which it has joined
	Session      string            `json:"session"`       // of the agent process that registered last; reports of an earlier one are refused
	Status       NodeStatus        `json:"status"`
	StatusAt     time.Time         `json:"status_at"` // when Status became what it is
}

// RestartCondition says which exits of a task's process are followed by a restart.
type RestartCondition string

// The conditions, with Docker's meaning. An explicit stop is never undone by any of them.
const (
	RestartNo            RestartCondition = "no"
	RestartAlways        RestartCondition = "always"
	RestartOnFailure     RestartCondition = "on-failure"
	RestartUnlessStopped RestartCondition = "unless-stopped"
)

// RestartPolicy says when a task that ended is started again.
type RestartPolicy struct {
	Condition   RestartCondition `json:"condition"`
	MaxAttempts int              `json:"max_attempts,omitempty"` // of on-failure; 0: no limit
}

// HealthKind says how the health of a task is probed.
type HealthKind string

// The probes.
const (
	HealthExec HealthKind = "exec" // run Command; exit status 0 is healthy
	HealthHTTP HealthKind = "http" // GET Path on Port; a status below 400 is healthy
	HealthTCP  HealthKind = "tcp"  // connect to Port
)

// HealthCheck says how to find out whether a running task is healthy. A zero interval, timeout or retries means Docker's default.
type HealthCheck struct {
	Kind        HealthKind    `json:"kind"`
	Command     []string      `json:"command,omitempty"`      // exec; a shell command is written out as /bin/sh -c ...
	Port        uint16        `json:"port,omitempty"`         // http and tcp: a target port of the task; 0: the first one
	Path        string        `json:"path,omitempty"`         // http
	Interval    time.Duration `json:"interval,omitempty"`     // default 30 s
	Timeout     time.Duration `json:"timeout,omitempty"`      // default 30 s
	StartPeriod time.Duration `json:"start_period,omitempty"` // failures do not count before it is over; default 0
	Retries     int           `json:"retries,omitempty"`      // failures in a row that make the task unhealthy; default 3
}

// Port publishes a port of a service's tasks on every node.
type Port struct {
	Published uint16 `json:"published"`
	Target    uint16 `json:"target"`
}

// String writes the port as Docker does.
func (p Port) String() string { return fmt.Sprintf("*:%d->%d/tcp", p.Published, p.Target) }

// TaskSpec is what a task runs. It is copied into every task, so that a node can run a task of a version that the service has
// left behind.
type TaskSpec struct {
	Image       string            `json:"image,omitempty"`
	Command     []string          `json:"command,omitempty"`
	Env         map[string]string `json:"env,omitempty"`
	Ports       []Port            `json:"ports,omitempty"`
	Restart     RestartPolicy     `json:"restart"`
	HealthCheck *HealthCheck      `json:"health_check,omitempty"`
	StopGrace   time.Duration     `json:"stop_grace,omitempty"` // between SIGTERM and SIGKILL; 0: 10 s
	// Reservations is set aside on the node of the task.
	Reservations Resources `json:"reservations,omitzero"`
	// ForceUpdate is counted up by an update that is to replace the tasks although nothing else has changed.
	ForceUpdate uint64 `json:"force_update,omitempty"`
}

// ServiceSpec is what a user asks for. A changed Task makes a new version, whose tasks replace those of the old one.
type ServiceSpec struct {
	Name      string            `json:"name"`
	Labels    map[string]string `json:"labels,omitempty"`
	Replicas  int               `json:"replicas"`
	Task      TaskSpec          `json:"task"`
	DependsOn []string          `json:"depends_on,omitempty"` // names of services; honoured by the command line when it creates them
	// Constraints have to be fulfilled by the nodes that run the tasks. A task whose node does not any more is moved.
	Constraints []Constraint `json:"constraints,omitempty"`
	Update      UpdateConfig `json:"update,omitzero"`
	Rollback    UpdateConfig `json:"rollback,omitzero"`
	Autoscale   *Autoscale   `json:"autoscale,omitempty"` // nil: Replicas is what a user says
}

// Slot is the place of one replica. It outlives the tasks that fill it, so that their generations never repeat.
type Slot struct {
	Generation uint64 `json:"generation"` // of the newest task
	// Failures are the times at which the newest tasks of this slot were given up because they failed, oldest first, at most
	// MaxSlotFailures.
	Failures []time.Time `json:"failures,omitempty"`
	// UpdateFailedAt is when a task of the version to which the service is being updated has first failed here; zero: none has.
	UpdateFailedAt time.Time `json:"update_failed_at,omitzero"`
}

// Service is a set of equal tasks that the leader keeps running.
type Service struct {
	ID        ServiceID   `json:"id"`
	Spec      ServiceSpec `json:"spec"`
	Version   uint64      `json:"version"`            // of Spec.Task, from 1; a rollback goes back to the former number
	Stopped   bool        `json:"stopped,omitempty"`  // an explicit stop, which no restart policy undoes
	Removing  bool        `json:"removing,omitempty"` // its tasks are being stopped; then it disappears
	Slots     []Slot      `json:"slots,omitempty"`    // slot n is Slots[n-1]; never shorter than it was
	CreatedAt time.Time   `json:"created_at"`
	UpdatedAt time.Time   `json:"updated_at"`
	ChangedAt raft.Index  `json:"changed_at,omitempty"` // of the last change of Spec, for UpdateService.Expect

	Previous        *ServiceSpec    `json:"previous,omitempty"` // before the last update
	PreviousVersion uint64          `json:"previous_version,omitempty"`
	LastVersion     uint64          `json:"last_version,omitempty"` // the highest that was ever used, once one was left
	Update          *UpdateStatus   `json:"update,omitempty"`       // the last one; nil: there was none
	Autoscaling     AutoscaleStatus `json:"autoscaling,omitzero"`
}

// TaskState is how far a task has come.
type TaskState string

// The states. Within one attempt they move forward only, and nothing follows a final one.
const (
	TaskNew      TaskState = "new"      // waits for a node, or for NotBefore
	TaskAssigned TaskState = "assigned" // its node has been chosen
	TaskStarting TaskState = "starting" // its node has accepted it; a restart waits here for its back-off
	TaskRunning  TaskState = "running"
	TaskComplete TaskState = "complete" // final: ended by itself with status 0, and the policy asks for no restart
	TaskFailed   TaskState = "failed"   // final: ended by itself with another status, and the policy asks for no (more) restart
	TaskShutdown TaskState = "shutdown" // final: stopped because it was asked to
	TaskRejected TaskState = "rejected" // final: its node cannot run it
	TaskLost     TaskState = "lost"     // final: its node is down or gone
)

var taskStateRank = map[TaskState]int{
	TaskNew: 1, TaskAssigned: 2, TaskStarting: 3, TaskRunning: 4,
	TaskComplete: 5, TaskFailed: 5, TaskShutdown: 5, TaskRejected: 5, TaskLost: 5,
}

// Final reports that nothing follows this state.
func (s TaskState) Final() bool { return taskStateRank[s] == 5 }

// Valid reports that this is one of the states above.
func (s TaskState) Valid() bool { return taskStateRank[s] > 0 }

// Desired is what the leader wants of a task.
type Desired string

// The two wishes. It goes from running to shutdown, never back.
const (
	DesiredRunning  Desired = "running"
	DesiredShutdown Desired = "shutdown"
)

// Health is what a task's health check says.
type Health string

// The values; a task without a health check has none.
const (
	HealthNone      Health = ""
	HealthStarting  Health = "starting"
	HealthHealthy   Health = "healthy"
	HealthUnhealthy Health = "unhealthy"
)

// Endpoint is where a task really listens for one of its target ports.
type Endpoint struct {
	Target  uint16 `json:"target"`
	Address string `json:"address"` // host:port
}

// Fence orders what a node is told: the epoch of the leader and the index of the entry that said it. A node remembers the
// highest one that it has acted on, on disk, and refuses anything lower.
type Fence struct {
	Epoch raft.Term  `json:"epoch"`
	Index raft.Index `json:"index"`
}

// Less reports that f was said before g.
func (f Fence) Less(g Fence) bool {
	return f.Epoch < g.Epoch || f.Epoch == g.Epoch && f.Index < g.Index
}

// TaskStatus is what the node of a task reports about it.
type TaskStatus struct {
	State     TaskState  `json:"state"`
	Attempts  int        `json:"attempts,omitempty"`  // restarts on this node so far; each begins again at starting
	NotBefore time.Time  `json:"not_before,omitzero"` // end of a back-off: of the leader's while new, of the node's while starting
	Health    Health     `json:"health,omitempty"`
	Endpoints []Endpoint `json:"endpoints,omitempty"`
	ExitCode  int        `json:"exit_code,omitempty"` // of the last run that ended
	Error     string     `json:"error,omitempty"`     // why the last run ended, why the task was given up, or why it has no node yet
}

// Task is one replica of a service, of one generation, on one node.
type Task struct {
	ID          TaskID    `json:"id"`
	Service     ServiceID `json:"service"`
	ServiceName string    `json:"service_name"`
	Slot        int       `json:"slot"` // from 1
	Generation  uint64    `json:"generation"`
	SpecVersion uint64    `json:"spec_version"`
	Spec        TaskSpec  `json:"spec"`
	Node        NodeID    `json:"node,omitempty"` // empty while new
	Desired     Desired   `json:"desired"`
	GaveUp      bool      `json:"gave_up,omitempty"` // the leader wants it stopped because it fails where it is
	Kills       int       `json:"kills,omitempty"`   // how often a user has asked for its process to be killed
	TaskStatus
	// Failures are the times of the newest failed runs on this node, oldest first, at most MaxTaskFailures.
	Failures  []time.Time `json:"failures,omitempty"`
	Fence     Fence       `json:"fence"`             // of the assignment, then of the wish to stop
	ReadyAt   time.Time   `json:"ready_at,omitzero"` // when it served, or had done its work, for the first time
	CreatedAt time.Time   `json:"created_at"`
	UpdatedAt time.Time   `json:"updated_at"` // of State
}

// Name is the slot's name, as Docker prints it.
func (t *Task) Name() string { return fmt.Sprintf("%s.%d", t.ServiceName, t.Slot) }

// Live reports that the task runs or may yet run.
func (t *Task) Live() bool { return !t.State.Final() }

// Refused reports that its node did not run the task, or ended it although it was wanted: the leader replaces it, elsewhere if it
// can.
func (t *Task) Refused() bool {
	return t.State == TaskRejected || t.State == TaskShutdown && t.Desired == DesiredRunning
}

// Serving reports that the task can take traffic: it is wanted, runs, and its health check, if it has one, has passed.
func (t *Task) Serving() bool {
	return t.Desired == DesiredRunning && t.State == TaskRunning && (t.Health == HealthNone || t.Health == HealthHealthy)
}

// Event is something that happened, for people to read.
type Event struct {
	Seq     uint64     `json:"seq"` // from 1, without gaps
	Index   raft.Index `json:"index"`
	At      time.Time  `json:"at"`
	Kind    string     `json:"kind"` // leader, node, service or task
	Subject string     `json:"subject"`
	Message string     `json:"message"`
}
