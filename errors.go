package raft

import (
	"errors"
	"fmt"
)

// Outcomes of a proposal, a read or a change. Unless a comment says otherwise, after one of these errors the request has taken no
// effect and never will: it was appended nowhere, or a different entry was committed at its index. Whatever is uncertain is an
// [*UncertainError], which unwraps to its cause.
var (
	// ErrNotLeader: another server leads, or none. errors.As with *NotLeaderError tells which.
	ErrNotLeader = errors.New("not the leader")
	// ErrDropped: appended by a leader that lost its office, then replaced by another leader's entry. Propose it again.
	ErrDropped = errors.New("dropped: another leader's entry was committed in its place; propose it again")
	// ErrStaleTerm: the term named by IfTerm is over.
	ErrStaleTerm = errors.New("the term named by IfTerm is over")
	// ErrOverloaded: too many bytes wait to be committed or applied. Try again after a pause.
	ErrOverloaded = errors.New("overloaded: too many bytes wait to be committed or applied; try again later")
	// ErrTooLarge: the command exceeds Config.MaxCommandBytes.
	ErrTooLarge = errors.New("command is larger than Config.MaxCommandBytes")
	// ErrStorageFull: no room on the leader's disk. Commands are refused until there is; voting and reading go on.
	ErrStorageFull = errors.New("storage full: free some disk space; proposals resume by themselves")
	// ErrTransferring: leadership is being handed over. The node waits and proposes to the new leader; only the core returns it.
	ErrTransferring = errors.New("leadership is being transferred")
	// ErrTransferFailed: the server did not take over leadership in time; the old leader goes on.
	ErrTransferFailed = errors.New("leadership transfer did not complete within an election timeout")
	// ErrStopped: the node was stopped, or not started.
	ErrStopped = errors.New("node is stopped")
	// ErrReentrant: Propose, Read or Barrier was called from StateMachine.Apply and would wait for itself.
	ErrReentrant = errors.New("called from inside Apply")
	// ErrBusy: WhileLeader, Snapshot or a change of the same kind is running already.
	ErrBusy = errors.New("already running")
	// ErrResultLost: the command was committed, but this node got its effect through a snapshot and has no result to return.
	ErrResultLost = errors.New("committed, but the result was skipped by a snapshot")

	// ErrChangePending: the previous membership change is not committed yet, or this leader has committed nothing in its term.
	ErrChangePending = errors.New("membership change refused: another is in progress, or the leader is too new; try again")
	// ErrChangeConflict: Change.IfIndex does not name the present configuration. Look at it again, then decide.
	ErrChangeConflict = errors.New("membership change refused: the configuration has changed since")
)

// Errors of a storage.
var (
	// ErrLocked: another process uses the data directory.
	ErrLocked = errors.New("data directory is in use by another process")
	// ErrCompacted: the entries asked for are covered by a snapshot and gone.
	ErrCompacted = errors.New("entries are compacted")
	// ErrBootstrapped: the directory has been used before.
	ErrBootstrapped = errors.New("already bootstrapped: the data directory is in use by a cluster; start the node, or choose an empty directory")
)

// NotLeaderError says who leads, as far as known. It unwraps to ErrNotLeader.
type NotLeaderError struct {
	Leader  NodeID // "": unknown, an election may be going on
	Address string // the leader's, as in the configuration
	Term    Term
}

// Error names the leader.
func (e *NotLeaderError) Error() string {
	if e.Leader == "" {
		return fmt.Sprintf("not the leader: no leader known in term %d", e.Term)
	}
	return fmt.Sprintf("not the leader: %q at %q leads term %d", e.Leader, e.Address, e.Term)
}

// Unwrap returns ErrNotLeader.
func (e *NotLeaderError) Unwrap() error { return ErrNotLeader }

// UncertainError says that a command may or may not take effect, now or later. Do not repeat it unless it is idempotent: look at
// the state first. It unwraps to its cause, for instance context.DeadlineExceeded or ErrStopped.
type UncertainError struct {
	ID    EntryID // where it was appended; zero if not even that is known
	Cause error
}

// Error says what is known.
func (e *UncertainError) Error() string {
	if e.ID == (EntryID{}) {
		return fmt.Sprintf("outcome unknown: %v", e.Cause)
	}
	return fmt.Sprintf("outcome unknown (entry %v): %v", e.ID, e.Cause)
}

// Unwrap returns the cause.
func (e *UncertainError) Unwrap() error { return e.Cause }

// FailedError says why a node can no longer keep its promises and has stopped making them. The process lives on; start a new node
// after the cause was removed. Commands that were under way are uncertain.
type FailedError struct {
	Cause error
}

// Error names the cause.
func (e *FailedError) Error() string { return fmt.Sprintf("node failed: %v", e.Cause) }

// Unwrap returns the cause.
func (e *FailedError) Unwrap() error { return e.Cause }

// CorruptionError says that stored bytes are not what was written.
type CorruptionError struct {
	Path   string
	Offset int64
	Reason string
	Next   string // what the operator can do

	Damage Damage // the entries that are lost with it, as far as they are known; zero: none, or not known which

	// Tampered says that the checksums are right, and the authentication is not: whoever wrote these bytes knew the format and not the
	// key. No fault of a disk does that.
	Tampered bool
}

// Error describes the damage and the next step.
func (e *CorruptionError) Error() string {
	what := "damaged"
	if e.Tampered {
		what = "tampered with"
	}
	s := fmt.Sprintf("%s: %s at byte %d: %s", e.Path, what, e.Offset, e.Reason)
	if e.Next != "" {
		s += "; " + e.Next
	}
	return s
}

// IdentityError says that a data directory belongs to somebody else.
type IdentityError struct {
	Path string
	What string // "cluster" or "node"
	Have string // in the directory
	Want string // by the caller
}

// Error names both sides.
func (e *IdentityError) Error() string {
	return fmt.Sprintf("data directory %s belongs to %s %q, not to %q; point the node to its own directory", e.Path, e.What, e.Have, e.Want)
}

// MembershipError says why a membership change is refused. Nothing has changed.
type MembershipError struct {
	Server NodeID
	Reason string
}

// Error names the server and the reason.
func (e *MembershipError) Error() string {
	if e.Server == "" {
		return "membership change refused: " + e.Reason
	}
	return fmt.Sprintf("membership change refused: server %q: %s", e.Server, e.Reason)
}

// InvariantError is the value of a panic: this library has a bug, and to go on could lose or diverge data. The node recovers it at
// the top of its loop, becomes Failed and keeps the process alive. Please report it with the state it carries.
type InvariantError struct {
	Broken string
	State  string
}

// Error says what is broken.
func (e *InvariantError) Error() string { return "raft invariant broken: " + e.Broken + "\n" + e.State }
