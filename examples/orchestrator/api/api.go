// Package api is what managers, agents and the command line say to each other: JSON over HTTP/1.1 under mutual TLS 1.3. This package
// holds the vocabulary and the client; the managers' half is package manager.
package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/agent"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
)

// Paths. All of them take POST, except for those that read.
const (
	// For nodes that have nothing but a join token.
	PathJoin = "/v1/join" // body: JoinRequest; answer: JoinAnswer

	// For every node, about itself.
	PathRegister  = "/v1/agent/register"
	PathHeartbeat = "/v1/agent/heartbeat"
	PathWatch     = "/v1/agent/watch"
	PathRenew     = "/v1/renew"        // body: RenewRequest; answer: RenewAnswer
	PathRemove    = "/v1/node/remove"  // body: RemoveRequest; managers may remove any node
	PathOutput    = "/v1/agent/output" // and the ID of an OutputRequest behind another slash; body: the output, as long as it lasts

	// For managers.
	PathState   = "/v1/state"     // GET: View, linearizable
	PathStatus  = "/v1/status"    // GET: Status of the manager that answers, whatever state it is in
	PathCommand = "/v1/command"   // body: cluster.Encode of an operation that users may ask for; answer: cluster.Result
	PathLeader  = "/v1/leader"    // body: ChangeLeaderRequest; answer: ChangeLeaderAnswer
	PathEnter   = "/v1/enter"     // body: EnterRequest of the new manager itself
	PathVote    = "/v1/node/vote" // body: VoteRequest
	PathEvents  = "/v1/events"    // body: EventsRequest; answer: Events
	PathLogs    = "/v1/logs"      // body: LogsRequest; answer: the output of a task, as long as it lasts
	PathRotate  = "/v1/ca/rotate" // body: RotateRequest; answer: RotateAnswer
	PathCAKey   = "/v1/ca/key"    // body: CAKeyRequest, from one manager to another; answer: CAKeyAnswer
	PathWanted  = "/v1/output"    // body: OutputWanted, from one manager to the leader
)

// RelayedHeader marks a request that one manager passes on to another. It is passed on once, so that two managers that take each
// other for the leader do not play ball with it.
const RelayedHeader = "Orchestrator-Relayed-By"

// Bounds.
const (
	MaxRequestBytes  = 4 << 20
	maxResponseBytes = 64 << 20
	// WatchWait is how long a manager keeps a watch open when nothing happens, less than agents wait for an answer.
	WatchWait = 20 * time.Second
)

// View is the state that the managers agree on, and who leads.
type View struct {
	State   *cluster.State `json:"state"`
	Leader  cluster.NodeID `json:"leader"`
	Term    raft.Term      `json:"term"`
	Members []Member       `json:"members"`
}

// Member is one manager.
type Member struct {
	ID      cluster.NodeID `json:"id"`
	Raft    string         `json:"raft"`              // where the other managers reach it
	API     string         `json:"api,omitempty"`     // where agents and the command line reach it; empty while it is not known
	Standby bool           `json:"standby,omitempty"` // it has the log and no vote
}

// Status is how one manager is.
type Status struct {
	Node      cluster.NodeID `json:"node"`
	State     string         `json:"state"` // running, stopped or failed
	Failure   string         `json:"failure,omitempty"`
	Role      string         `json:"role"`
	Term      raft.Term      `json:"term"`
	Leader    cluster.NodeID `json:"leader"`
	Commit    raft.Index     `json:"commit"`
	Applied   raft.Index     `json:"applied"`
	Last      raft.Index     `json:"last"`           // of its log
	Page      string         `json:"page,omitempty"` // address of its status page, on its own machine
	CanCommit bool           `json:"can_commit"`
	WhyNot    string         `json:"why_not,omitempty"`
	Epoch     raft.Term      `json:"epoch,omitempty"` // of the control loop that runs here; 0: none does
	Problems  []string       `json:"problems,omitempty"`
	Members   []Member       `json:"members"` // as far as this manager knows
}

// JoinRequest asks for a certificate. The secret decides the role.
type JoinRequest struct {
	Secret  string         `json:"secret"` // of a join token
	Node    cluster.NodeID `json:"node"`
	Request []byte         `json:"request"` // signing request, PEM
	Host    string         `json:"host"`    // the node's own address
	// Former is of a worker that comes back after its certificate has expired: it shows that it is the one of that name.
	Former *pki.Proof `json:"former,omitempty"`
}

// JoinAnswer is all that a new node needs.
type JoinAnswer struct {
	Cluster     string       `json:"cluster"`
	Role        cluster.Role `json:"role"`
	CA          []byte       `json:"ca"`               // certificate, PEM
	CAKey       []byte       `json:"ca_key,omitempty"` // PEM; managers only
	Certificate []byte       `json:"certificate"`      // PEM
	Managers    []Member     `json:"managers"`
}

// EnterRequest is what a new manager asks for when it is running: to be added to the members, and promoted when it has the log.
type EnterRequest struct {
	Member Member `json:"member"`
}

// RenewRequest asks for another certificate of the node that asks.
type RenewRequest struct {
	Request []byte `json:"request"` // signing request, PEM
}

// RenewAnswer is the new certificate.
type RenewAnswer struct {
	Certificate []byte `json:"certificate"` // PEM
}

// RemoveRequest asks that a node be removed for ever. A manager is moved off leadership and loses its vote first.
type RemoveRequest struct {
	Node  cluster.NodeID `json:"node"`
	Force bool           `json:"force,omitempty"` // also a worker that is not down
}

// VoteRequest gives a manager a vote, or takes it away.
type VoteRequest struct {
	Node  cluster.NodeID `json:"node"`
	Voter bool           `json:"voter"`
}

// ChangeLeaderRequest asks the leader to hand over.
type ChangeLeaderRequest struct {
	Target cluster.NodeID `json:"target,omitempty"` // empty: the most up-to-date one
}

// ChangeLeaderAnswer says who leads afterwards. Who has led already has nothing to hand over: From and To are the same.
type ChangeLeaderAnswer struct {
	From cluster.NodeID `json:"from"`
	To   cluster.NodeID `json:"to"`
	Term raft.Term      `json:"term"`
}

// String says it in words.
func (a ChangeLeaderAnswer) String() string {
	if a.From == a.To {
		return fmt.Sprintf("%s leads already, in term %d", a.To, a.Term)
	}
	return fmt.Sprintf("%s has handed over to %s, which leads term %d", a.From, a.To, a.Term)
}

// Codes of an Error, besides those of cluster.Code.
const (
	CodeUnavailable = "unavailable"             // nothing has happened; try again, or another manager
	CodeUncertain   = "uncertain"               // nobody can know here whether it happens; look before it is repeated
	CodeForbidden   = string(cluster.Forbidden) // the certificate or the secret does not allow it
	CodeRemoved     = string(cluster.Removed)   // agent.ErrRemoved, if Error.Node is the node that asked
	CodeSuperseded  = "superseded"              // agent.ErrSuperseded
	CodeUnknownNode = "unknown-node"            // agent.ErrUnknownNode
	CodeInternal    = "internal"
)

// Error is an answer that is none.
type Error struct {
	Code    string         `json:"code"`
	Message string         `json:"message"`
	Node    cluster.NodeID `json:"node,omitempty"` // whom it is about, with CodeRemoved
}

// Error is the message.
func (e *Error) Error() string { return e.Message }

// Unwrap leads to the errors that agents look for.
func (e *Error) Unwrap() error {
	switch e.Code {
	case CodeSuperseded:
		return agent.ErrSuperseded
	case CodeUnknownNode:
		return agent.ErrUnknownNode
	case CodeRemoved:
		return agent.ErrRemoved
	default:
		return nil
	}
}

// Status is the HTTP status that goes with the code.
func (e *Error) Status() int {
	switch e.Code {
	case string(cluster.Invalid):
		return http.StatusBadRequest
	case string(cluster.NotFound), CodeUnknownNode:
		return http.StatusNotFound
	case string(cluster.Conflict), string(cluster.Stale), CodeSuperseded:
		return http.StatusConflict
	case CodeForbidden, CodeRemoved:
		return http.StatusForbidden
	case CodeUnavailable:
		return http.StatusServiceUnavailable
	case CodeUncertain:
		return http.StatusGatewayTimeout
	default:
		return http.StatusInternalServerError
	}
}

// ErrorOf turns what a raft.Node or the state machine has said into an answer.
func ErrorOf(err error) *Error {
	var answered *Error
	var refused *cluster.RefusedError
	var uncertain *raft.UncertainError
	var failed *raft.FailedError
	switch {
	case errors.As(err, &answered):
		return answered
	case errors.As(err, &refused):
		return &Error{Code: string(refused.Code), Message: refused.Message}
	case errors.As(err, &uncertain):
		return &Error{Code: CodeUncertain, Message: err.Error()}
	case errors.Is(err, raft.ErrTooLarge):
		return &Error{Code: string(cluster.Invalid), Message: err.Error()}
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrDropped), errors.Is(err, raft.ErrStaleTerm), errors.Is(err, raft.ErrOverloaded),
		errors.Is(err, raft.ErrStorageFull), errors.Is(err, raft.ErrStopped), errors.Is(err, raft.ErrBusy), errors.Is(err, raft.ErrTransferFailed),
		errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.As(err, &failed):
		return &Error{Code: CodeUnavailable, Message: err.Error()}
	default:
		return &Error{Code: CodeInternal, Message: err.Error()}
	}
}
