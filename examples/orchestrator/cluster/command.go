package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/steadyraft/raft"
)

// Command is one change of the state, as it travels in the log.
type Command struct {
	// Epoch is the term of the leader whose control loop decided this. What only a control loop may do is refused in any epoch
	// but the present one. In commands of users and agents it is zero, and not looked at.
	Epoch raft.Term
	At    time.Time // by the clock of the proposer: the only time that the state machine knows
	Op    Op
}

// Op is what a command does. The types in this file, rollout.go, placement.go and autoscale.go are all there are.
type Op interface {
	kind() string
	// fenced says that only the control loop of the present epoch may do this.
	fenced() bool
	// apply changes the draft, or refuses and leaves it as it was.
	apply(d *draft) Result
}

// fromLoop and fromOutside are embedded in operations to say who may ask for them.
type (
	fromLoop    struct{}
	fromOutside struct{}
)

func (fromLoop) fenced() bool    { return true }
func (fromOutside) fenced() bool { return false }

// The operations of the control loop. Each is refused unless the command's epoch is the present one; StartEpoch makes it so.
type (
	// StartEpoch is the first command of a new leader's control loop. From here on every older loop is refused. Nodes that were
	// ready become unknown.
	StartEpoch struct {
		fromLoop
		Leader NodeID `json:"leader"`
	}
	// SetNodeStatus records what the heartbeats say.
	SetNodeStatus struct {
		fromLoop
		Node   NodeID     `json:"node"`
		Status NodeStatus `json:"status"`
	}
	// CreateTask fills a slot with a task of the next generation, on Node, or on a node to be found if that is empty.
	CreateTask struct {
		fromLoop
		Service     ServiceID `json:"service"`
		SpecVersion uint64    `json:"spec_version"` // refused if the service has moved on
		Slot        int       `json:"slot"`
		Generation  uint64    `json:"generation"` // refused unless it is the slot's next one
		Node        NodeID    `json:"node,omitempty"`
		NotBefore   time.Time `json:"not_before,omitzero"`
		Reason      string    `json:"reason,omitempty"` // why it has no node yet
		// Beside says that the slot's newest task goes on until this one serves. Otherwise that must have ended: what the loop has
		// believed to be lost may be there again.
		Beside bool `json:"beside,omitempty"`
	}
	// AssignTask gives a new task its node.
	AssignTask struct {
		fromLoop
		Task TaskID `json:"task"`
		Node NodeID `json:"node"`
	}
	// StopTask says that a task is no longer wanted. Its node stops it.
	StopTask struct {
		fromLoop
		Task   TaskID `json:"task"`
		GaveUp bool   `json:"gave_up,omitempty"` // because it fails where it is; counts as a failure of the slot
		Reason string `json:"reason"`
		// Expect is the service's ChangedAt when this was decided, and the command is refused if that is another one; 0: whatever it is.
		Expect raft.Index `json:"expect,omitempty"`
	}
	// LoseTask gives up a task whose node is down or gone.
	LoseTask struct {
		fromLoop
		Task TaskID `json:"task"`
	}
	// RemoveTask forgets a task that is final.
	RemoveTask struct {
		fromLoop
		Task TaskID `json:"task"`
	}
	// DropService forgets a service that is being removed and has no tasks left.
	DropService struct {
		fromLoop
		Service ServiceID `json:"service"`
	}
)

// The operations of users and agents.
type (
	// RegisterNode is what an agent says first. It makes the node known, or updates what the node itself decides.
	RegisterNode struct {
		fromOutside
		Node      NodeID    `json:"node"`
		Address   string    `json:"address"`
		Role      Role      `json:"role"`
		Resources Resources `json:"resources,omitzero"`
		Session   string    `json:"session"` // new for every start of the agent
	}
	// SetToken makes the join token of a role. It replaces the one before only if it says so.
	SetToken struct {
		fromOutside
		Role       Role      `json:"role"`
		SecretHash string    `json:"secret_hash"`
		ExpiresAt  time.Time `json:"expires_at,omitzero"` // zero: never
		Rotate     bool      `json:"rotate,omitempty"`
	}
	// AdmitNode lets a node join that has shown the secret of a token, before it gets its certificate. The result says as what.
	AdmitNode struct {
		fromOutside
		Node       NodeID `json:"node"`
		SecretHash string `json:"secret_hash"`
		Key        string `json:"key"` // digest of the node's key: the same node may ask again
	}
	// RemoveNode forgets a node, for ever: it is refused from then on, and its tasks go elsewhere. A manager has left the Raft
	// configuration before.
	RemoveNode struct {
		fromOutside
		Node  NodeID    `json:"node"`
		Until time.Time `json:"until"`           // when the last of its certificates has expired
		Force bool      `json:"force,omitempty"` // also a node that is not down, or that has never registered
	}
	// SetAvailability is `node update --availability`.
	SetAvailability struct {
		fromOutside
		Node         NodeID       `json:"node"`
		Availability Availability `json:"availability"`
	}
	// Report is what an agent says about its tasks. What is older than what is known is skipped without an error.
	Report struct {
		fromOutside
		Node    NodeID         `json:"node"`
		Session string         `json:"session"`
		Tasks   []ReportedTask `json:"tasks"`
	}
	// KillTask kills a task's process, as a crash would. Its restart policy decides what follows.
	KillTask struct {
		fromOutside
		Task TaskID `json:"task"`
	}
	// CreateService asks for a new service. The result names it.
	CreateService struct {
		fromOutside
		Spec ServiceSpec `json:"spec"`
	}
	// UpdateService replaces the specification of a service. The name stays.
	UpdateService struct {
		fromOutside
		Service ServiceID   `json:"service"`
		Spec    ServiceSpec `json:"spec"`
		// Expect is Service.ChangedAt as it was when the user looked; refused if there was a change since. 0: whatever there was.
		Expect raft.Index `json:"expect,omitempty"`
	}
	// ScaleService changes the number of replicas.
	ScaleService struct {
		fromOutside
		Service  ServiceID `json:"service"`
		Replicas int       `json:"replicas"`
	}
	// StopService stops all tasks until StartService, whatever their restart policy says.
	StopService struct {
		fromOutside
		Service ServiceID `json:"service"`
	}
	// StartService undoes StopService.
	StartService struct {
		fromOutside
		Service ServiceID `json:"service"`
	}
	// RemoveService stops all tasks and then forgets the service. Its name is free at once.
	RemoveService struct {
		fromOutside
		Service ServiceID `json:"service"`
	}
)

// RestoreServices creates the services of a snapshot, all of them or none.
type RestoreServices struct {
	fromOutside
	Services []RestoredService `json:"services"`
	Force    bool              `json:"force,omitempty"` // remove the services that there are; without it their presence is a refusal
}

// RestoredService is what is restored of a service.
type RestoredService struct {
	Spec    ServiceSpec `json:"spec"`
	Stopped bool        `json:"stopped,omitempty"`
}

// ReportedTask is one task of a Report.
type ReportedTask struct {
	ID     TaskID     `json:"id"`
	Status TaskStatus `json:"status"`
}

func (StartEpoch) kind() string      { return "start-epoch" }
func (SetNodeStatus) kind() string   { return "set-node-status" }
func (CreateTask) kind() string      { return "create-task" }
func (AssignTask) kind() string      { return "assign-task" }
func (StopTask) kind() string        { return "stop-task" }
func (LoseTask) kind() string        { return "lose-task" }
func (RemoveTask) kind() string      { return "remove-task" }
func (DropService) kind() string     { return "drop-service" }
func (RegisterNode) kind() string    { return "register-node" }
func (SetToken) kind() string        { return "set-token" }
func (AdmitNode) kind() string       { return "admit-node" }
func (RemoveNode) kind() string      { return "remove-node" }
func (SetAvailability) kind() string { return "set-availability" }
func (Report) kind() string          { return "report" }
func (KillTask) kind() string        { return "kill-task" }
func (CreateService) kind() string   { return "create-service" }
func (UpdateService) kind() string   { return "update-service" }
func (ScaleService) kind() string    { return "scale-service" }
func (StopService) kind() string     { return "stop-service" }
func (StartService) kind() string    { return "start-service" }
func (RemoveService) kind() string   { return "remove-service" }
func (RestoreServices) kind() string { return "restore-services" }

// decoders reads the operation of each kind. Kinds are in logs: what one means never changes, and a new meaning is a new kind.
var decoders = map[string]func(json.RawMessage) (Op, error){
	StartEpoch{}.kind():      decodeAs[StartEpoch],
	SetNodeStatus{}.kind():   decodeAs[SetNodeStatus],
	CreateTask{}.kind():      decodeAs[CreateTask],
	AssignTask{}.kind():      decodeAs[AssignTask],
	StopTask{}.kind():        decodeAs[StopTask],
	LoseTask{}.kind():        decodeAs[LoseTask],
	RemoveTask{}.kind():      decodeAs[RemoveTask],
	DropService{}.kind():     decodeAs[DropService],
	RegisterNode{}.kind():    decodeAs[RegisterNode],
	SetToken{}.kind():        decodeAs[SetToken],
	AdmitNode{}.kind():       decodeAs[AdmitNode],
	RemoveNode{}.kind():      decodeAs[RemoveNode],
	SetAvailability{}.kind(): decodeAs[SetAvailability],
	Report{}.kind():          decodeAs[Report],
	KillTask{}.kind():        decodeAs[KillTask],
	CreateService{}.kind():   decodeAs[CreateService],
	UpdateService{}.kind():   decodeAs[UpdateService],
	ScaleService{}.kind():    decodeAs[ScaleService],
	StopService{}.kind():     decodeAs[StopService],
	StartService{}.kind():    decodeAs[StartService],
	RemoveService{}.kind():   decodeAs[RemoveService],
	RestoreServices{}.kind(): decodeAs[RestoreServices],
	BeginRotation{}.kind():   decodeAs[BeginRotation],
	UseNewCA{}.kind():        decodeAs[UseNewCA],
	EndRotation{}.kind():     decodeAs[EndRotation],

	SetLabels{}.kind():        decodeAs[SetLabels],
	RollbackService{}.kind():  decodeAs[RollbackService],
	EndUpdate{}.kind():        decodeAs[EndUpdate],
	ExplainTask{}.kind():      decodeAs[ExplainTask],
	SetAutoscale{}.kind():     decodeAs[SetAutoscale],
	NoteLoad{}.kind():         decodeAs[NoteLoad],
	AutoscaleService{}.kind(): decodeAs[AutoscaleService],
}

func decodeAs[T Op](raw json.RawMessage) (Op, error) {
	var op T
	err := json.Unmarshal(raw, &op)
	return op, err
}

// wireCommand is the JSON form of a command.
type wireCommand struct {
	Kind  string          `json:"kind"`
	Epoch raft.Term       `json:"epoch,omitempty"`
	At    time.Time       `json:"at"`
	Op    json.RawMessage `json:"op"`
}

// ErrUnknownKind says that a command was written by a newer release. Skipping it would make this manager's state differ from the
// others', so it is the one command that the state machine cannot answer with a refusal.
var ErrUnknownKind = errors.New("unknown kind of command")

// Encode writes a command for the log.
func Encode(c Command) ([]byte, error) {
	op, err := json.Marshal(c.Op)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", c.Op.kind(), err)
	}
	return json.Marshal(wireCommand{Kind: c.Op.kind(), Epoch: c.Epoch, At: c.At.UTC(), Op: op})
}

// Decode reads what Encode wrote. Errors: ErrUnknownKind, and those of package json.
func Decode(b []byte) (Command, error) {
	var w wireCommand
	if err := json.Unmarshal(b, &w); err != nil {
		return Command{}, fmt.Errorf("decode command: %w", err)
	}
	decode, ok := decoders[w.Kind]
	if !ok {
		return Command{}, fmt.Errorf("%w: %q", ErrUnknownKind, w.Kind)
	}
	op, err := decode(w.Op)
	if err != nil {
		return Command{}, fmt.Errorf("decode %s: %w", w.Kind, err)
	}
	return Command{Epoch: w.Epoch, At: w.At.UTC(), Op: op}, nil
}

// Code says what became of a command.
type Code string

// The codes.
const (
	OK        Code = "ok"
	Invalid   Code = "invalid"   // it makes no sense, in any state
	NotFound  Code = "not-found" // what it speaks of is not there
	Conflict  Code = "conflict"  // not in this state
	Stale     Code = "stale"     // from the control loop of another epoch, or from an earlier session of an agent
	Forbidden Code = "forbidden" // the secret does not open anything
	Removed   Code = "removed"   // the node was removed from the cluster
)

// Result is what Propose returns for a command. A refused command has changed nothing.
type Result struct {
	Code    Code      `json:"code"`
	Message string    `json:"message,omitempty"` // why it was refused
	Service ServiceID `json:"service,omitempty"` // the service that CreateService made
	Version uint64    `json:"version,omitempty"` // of that service, or after UpdateService and RollbackService
	Role    Role      `json:"role,omitempty"`    // as what AdmitNode has let the node in
}

// RefusedError is a Result that is not OK.
type RefusedError struct {
	Code    Code
	Message string
}

// Error is the message.
func (e *RefusedError) Error() string { return e.Message }

// Err is nil for OK, else a *RefusedError.
func (r Result) Err() error {
	if r.Code == OK {
		return nil
	}
	return &RefusedError{Code: r.Code, Message: r.Message}
}

func refuse(c Code, format string, args ...any) Result {
	return Result{Code: c, Message: fmt.Sprintf(format, args...)}
}

var done = Result{Code: OK}
