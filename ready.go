package raft

import "fmt"

// Ready is what the core wants done. Everything in it may be done at once and in any order, with two exceptions: writes are made
// in the order of their Seq, and applies in the order they were handed out.
type Ready struct {
	Write       Write              // Seq 0: nothing to write. Report with Persisted
	Send        []Message          // may leave now
	Loads       []Load             // read from storage, report with Loaded or LoadFailed
	Apply       []Apply            // hand to the state machine, in order, report each with Applied
	Reads       []ReadResult       // reads that are confirmed or have failed
	Snapshots   []SnapshotTransfer // send, report with SnapshotSent or SnapshotFailed
	Compact     Index              // entries up to here may be dropped from storage; 0: nothing new
	Peers       []Server           // if not nil: whom the transport must reach from now on
	Events      []Event            // LeaderChange, ConfigurationChange, TransferEnded, ElectionStarted
	Refused     []Refusal          // input that was turned away
	CommitIndex Index              // the present commit index
}

// Write is one batch for the storage. Seq rises by one with every write.
type Write struct {
	Seq uint64
	Batch
}

// Load asks for entries [Lo, Hi) from storage, as many as fit into MaxBytes, at least one.
type Load struct {
	ID       uint64
	Peer     NodeID // for whom; for information only
	Lo, Hi   Index
	MaxBytes int
}

// LoadFailure says why entries could not be loaded.
type LoadFailure uint8

// The failures of a load.
const (
	LoadCompacted LoadFailure = iota // no longer in the log: the follower needs a snapshot
	LoadDamaged                      // unreadable here
)

// Apply is one piece of work for the applier: either a snapshot to restore, or committed entries that are durable here. Entries
// that must be read from storage may be gone by then, because a snapshot was installed in the meantime (ErrCompacted): then a piece
// with Restore stands in the queue already, and the pieces before it are skipped.
type Apply struct {
	Restore *SnapshotMeta // restore the state machine from this snapshot of the store; Lo and Hi are Index+1
	Lo, Hi  Index         // apply [Lo, Hi)
	Entries []Entry       // exactly these; nil: no longer in memory, read them from storage
}

// ReadResult ends one ReadIndex.
type ReadResult struct {
	ID    uint64
	Index Index // the read is linearizable once the local state machine has applied this
	Err   error // nil, or a *NotLeaderError: leadership was lost before it was confirmed
}

// SnapshotTransfer asks to send the snapshot named in Message (an InstallSnapshot) to Message.To.
type SnapshotTransfer struct {
	ID      uint64
	Message Message
}

// Refusal is one input from a peer that was well-formed and impossible.
type Refusal struct {
	Peer   NodeID
	Reason RefusalReason
}

// RefusalReason says why input was refused.
type RefusalReason uint8

// The reasons of a Refusal.
const (
	WrongRecipient           RefusalReason = iota // addressed to another server
	DeadIncarnation                               // from a process that has been replaced
	RemovedServer                                 // from a server that was removed from the cluster
	TermTooFar                                    // a term more than 2³² above ours
	SecondLeader                                  // AppendEntries from another leader in a term that has one (§5.2)
	CommittedConflict                             // an entry or snapshot that contradicts what is committed here
	ImpossibleReply                               // acknowledges what was never sent
	UndecodableConfiguration                      // a configuration entry that does not decode or is invalid
	UnexpectedMessage                             // of a kind that this server did not ask for
	UnwantedEntry                                 // an entry in the place of another that was asked for
)

var refusalReasons = [...]string{"wrong recipient", "dead incarnation", "removed server", "term too far", "second leader",
	"conflict with committed entries", "impossible reply", "undecodable configuration", "unexpected message",
	"unwanted entry"}

// String names the reason.
func (r RefusalReason) String() string {
	if int(r) < len(refusalReasons) {
		return refusalReasons[r]
	}
	return fmt.Sprintf("refusal %d", uint8(r))
}

// Event tells the owner about a change. The set is closed.
type Event interface{ isEvent() }

// LeaderChange says who leads in which term, and what this server is.
type LeaderChange struct {
	Term   Term   `json:"term"`
	Leader NodeID `json:"leader"` // "": none known
	Role   Role   `json:"role"`
	Reason Reason `json:"reason"`
}

// ConfigurationChange says that another configuration is in force, or that the present one was committed.
type ConfigurationChange struct {
	Index         Index
	Committed     bool
	Configuration Configuration
}

// TransferEnded ends a ChangeLeader on the leader that began it.
type TransferEnded struct {
	Target NodeID
	Err    error // nil: a later term has begun; ErrTransferFailed otherwise
}

// ElectionStarted says that this server asks for votes, or (PreVote) whether it would get them.
type ElectionStarted struct {
	Term    Term // the term it wants to lead
	PreVote bool
	Reason  Reason
}

// DamageFound says that entries which were written cannot be read any more. They are fetched from the other servers.
type DamageFound struct {
	Damage Damage
}

// EntriesRepaired says that entries have come from another server that could not be read here. Those between First and Last that were
// not missing are not counted.
type EntriesRepaired struct {
	First, Last EntryID
	Count       int
	From        NodeID
}

// EntriesDiscarded says that a leader has cut off the end of its log: First could not be read, and was proven not to be committed.
type EntriesDiscarded struct {
	First, Last EntryID
}

// RecoveryStuck says that this server was elected and gave up its office: Entry, which may be committed, was nowhere to be had.
type RecoveryStuck struct {
	Entry EntryID
	Asked []Asked
}

// Asked is what another server has said about an entry that is missing here.
type Asked struct {
	Server NodeID `json:"server"`
	Answer string `json:"answer"` // "no answer", or a Holding in words
}

// FenceLifted says that the log has caught up with all that this server may have acknowledged and lost.
type FenceLifted struct {
	Fence EntryID
}

// LostLog is an alarm on a leader: a follower that was started again has less than it had acknowledged. Nothing that depends on it is
// believed any more; but its disk has lost what it had reported as written.
type LostLog struct {
	Peer       NodeID `json:"peer"`
	Remembered Index  `json:"remembered"` // acknowledged by the process before
	Has        Index  `json:"has"`        // at most
}

func (DamageFound) isEvent()         {}
func (EntriesRepaired) isEvent()     {}
func (EntriesDiscarded) isEvent()    {}
func (RecoveryStuck) isEvent()       {}
func (FenceLifted) isEvent()         {}
func (LostLog) isEvent()             {}
func (LeaderChange) isEvent()        {}
func (ConfigurationChange) isEvent() {}
func (TransferEnded) isEvent()       {}
func (ElectionStarted) isEvent()     {}

// reset empties a Ready and keeps its arrays.
func (r *Ready) reset() {
	clear(r.Send)
	clear(r.Loads)
	clear(r.Apply)
	clear(r.Reads)
	clear(r.Snapshots)
	clear(r.Events)
	r.Send, r.Loads, r.Apply, r.Reads = r.Send[:0], r.Loads[:0], r.Apply[:0], r.Reads[:0]
	r.Snapshots, r.Events, r.Refused = r.Snapshots[:0], r.Events[:0], r.Refused[:0]
	r.Write, r.Compact, r.Peers = Write{}, 0, nil
}
