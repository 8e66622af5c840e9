package raft

import (
	"context"
	"io"
	"time"
)

// StateMachine is what the cluster replicates. All methods but SnapshotWriter.WriteTo are called by one goroutine, never at the
// same time.
type StateMachine interface {
	// Apply carries out committed commands, in order, each exactly once per lineage of the state. entries holds commands only;
	// it and the bytes it points to are valid until Apply returns. results has the same length and receives what Propose returns
	// on the node where the command was proposed. Apply must be deterministic: no clock, no random numbers, no map order. An
	// error (or a panic) says that this state can no longer be trusted: the node becomes Failed. A command that is merely
	// refused is a result, not an error. Propose and Read from inside Apply fail with ErrReentrant.
	Apply(entries []Entry, results []any) error

	// Snapshot takes a consistent view of the present state, quickly: no Apply runs meanwhile. Writing it out happens later,
	// beside Apply.
	Snapshot(ctx context.Context) (SnapshotWriter, error)

	// Restore replaces the whole state by the content of a snapshot. An error leaves the node Failed.
	Restore(ctx context.Context, meta SnapshotMeta, r io.Reader) error
}

// SnapshotWriter is a consistent view of a state machine.
type SnapshotWriter interface {
	// WriteTo writes the view. It runs on its own goroutine, beside Apply.
	WriteTo(ctx context.Context, w io.Writer) error
	// Close releases the view. It is called once, whatever happened before.
	Close()
}

// DurableStateMachine is a StateMachine that keeps its own state on disk.
type DurableStateMachine interface {
	StateMachine
	// LastApplied names the last entry whose effect is durable in the state machine. After a restart Apply goes on behind it.
	// Only snapshots that are newer are restored at start.
	LastApplied() (EntryID, error)
}

// HardState is what a server must remember besides its log (Figure 2).
type HardState struct {
	CurrentTerm Term   `json:"current_term"`
	VotedFor    NodeID `json:"voted_for,omitempty"` // in CurrentTerm; "" if it has not voted
}

// Batch is one atomic write: after a crash all of it is there or nothing. Its parts take effect in the order of the fields.
type Batch struct {
	HardState    *HardState    // nil: unchanged
	TruncateFrom Index         // this entry and all behind it are gone; 0: none
	Snapshot     *SnapshotMeta // installed: the log begins behind it. What follows stays if the log holds its last entry (§7)
	Entries      []Entry       // consecutive; the first follows the last entry left, or the snapshot

	// Repairs take the place of damaged entries with the same IDs, rising, after all of the above. They truncate nothing. An entry that
	// was found damaged by a read may turn out to be intact, or to have been damaged in memory only; then its repair changes nothing.
	Repairs []Entry
	// Fence replaces the fence: see Recovered.Fence. nil: unchanged; the zero ID lifts it.
	Fence *EntryID
}

// Identity names a server and its data directory to the storage and the transport.
type Identity struct {
	Cluster     string
	Node        NodeID
	Replica     ReplicaID
	Incarnation uint64
}

// TermStart says that the entries from Index on, up to the next TermStart, are of Term.
type TermStart struct {
	Index Index
	Term  Term
}

// Recovered is what a storage held when it was opened.
type Recovered struct {
	Identity  Identity
	HardState HardState
	Snapshot  SnapshotMeta // the newest intact one in the snapshot store; Index 0: none

	// Compacted names the last entry that is no longer in the log (zero: the log begins at index 1). Usually that is at or below
	// the snapshot. It is above the log's end only if a snapshot was received right before a crash.
	Compacted EntryID
	LastIndex Index       // of the log; Compacted.Index if it is empty
	Terms     []TermStart // by run length, of all entries in the log, rising
	// Configurations are the entries of type EntryConfiguration in the log, rising. Damaged ones are missing.
	Configurations []Entry

	// Damaged are the stretches of the log whose content cannot be read, while Terms tells which entries they were, rising and
	// without overlap. The other servers can replace them: Batch.Repairs.
	Damaged []Damage
	// Fence says that the log has lost its end, and that this server may have acknowledged entries up to this one, of which
	// nothing is left. Term is MaxTerm if not even that is known. Zero: nothing of the kind. It is durable before Open returns, and
	// stays until a Batch lifts it.
	Fence EntryID

	// Findings is what was not as it had been written, at most a hundred of them. The storage has logged each.
	Findings []Finding
}

// Damage is a stretch of entries that cannot be read. Both ends are included.
type Damage struct {
	First Index `json:"first"`
	Last  Index `json:"last"`
	// MayConfigure says that there may be a configuration among them, so that the one in force may not be known.
	MayConfigure bool `json:"may_configure,omitempty"`
}

// Blank reports that the directory has never taken part in a cluster.
func (r *Recovered) Blank() bool {
	return r.HardState == HardState{} && r.LastIndex == 0 && r.Snapshot.Index == 0
}

// Storage keeps the log, the hard state and the snapshots of one server. storagetest.Run is its conformance suite.
type Storage interface {
	// Open takes exclusive hold of the data, repairs what a crash left unfinished, and counts the incarnation up, durably. A
	// blank directory is initialised with id.Cluster and id.Node and a random replica; a used one must match them, where they
	// are not empty, or *IdentityError is returned. After Close it may be opened again. Other errors: ErrLocked,
	// *CorruptionError.
	Open(ctx context.Context, id Identity) (Recovered, error)

	// Write makes a batch durable, and returns after that. It has one caller at a time and retains the entries' frames (which
	// are immutable) but not the slice. An error is final for this Storage, except one that wraps ErrStorageFull: then nothing
	// of the batch was written and a later Write may succeed. Hard state, no-ops and configurations still fit when it is full.
	Write(Batch) error

	// Entries returns the entries [lo, hi), or as many from lo on as fit into maxBytes, at least one. It may run beside Write,
	// and sees all that was written before it began. Every checksum has been verified. The entries are the caller's to keep.
	// ErrCompacted: lo is no longer there. *CorruptionError: the entry lo is damaged, and its Damage says how many are. Entries in
	// front of damage are returned without an error.
	Entries(lo, hi Index, maxBytes int) ([]Entry, error)

	// Compact gives up entries up to and including to, or fewer, as the storage finds convenient; the caller has a snapshot that
	// covers them. It is called by the caller of Write. An error is final for this Storage, except one that wraps ErrStorageFull.
	Compact(to Index) error

	// Snapshots returns the store for snapshots, usable between Open and Close.
	Snapshots() SnapshotStore

	// Close releases everything. It is called after the last Write and Entries have returned.
	Close() error
}

// StoragePreparer is implemented by a Storage with slow work that can be done ahead of a Write, such as making the next segment.
type StoragePreparer interface {
	// Prepare does a slice of such work, beside Write and Entries, on one goroutine at a time. It reports whether there is more
	// to do now; after the next Write there may be again. An error that wraps ErrStorageFull is worth another try later; until then
	// commands are refused, as if a Write had found the disk full.
	Prepare() (more bool, err error)
	// Idle is called by the caller of Write once no write has been waiting for a moment, to leave the log in a state from which
	// a crash is cheapest to recover.
	Idle() error
}

// StorageScrubber is implemented by a Storage that finds damage before somebody needs what was there.
type StorageScrubber interface {
	// Scrub verifies about maxBytes more of the log, beside Write and Entries, on one goroutine at a time. It returns which entries in
	// them cannot be read now, and whether the log's end was reached: the next call begins anew. The caller chooses the pace.
	Scrub(maxBytes int) (damaged []Damage, end bool, err error)
}

// SnapshotStore keeps snapshots. Its methods may be called at the same time.
type SnapshotStore interface {
	// Create begins a snapshot that becomes visible by Commit only.
	Create(meta SnapshotMeta) (SnapshotSink, error)
	// Latest describes the newest intact snapshot. Index 0: there is none.
	Latest() (SnapshotMeta, error)
	// Open reads the snapshot with that last included index. Reading verifies it: damage is a *CorruptionError, not bad data. Only if the
	// reader is a Rewinder can a transfer that broke off go on where it was.
	Open(index Index) (SnapshotMeta, io.ReadCloser, error)
}

// Rewinder is implemented by a reader of a snapshot that can begin again. It is no io.Seeker, since content is verified from its beginning
// to its end.
type Rewinder interface {
	// Rewind makes the next Read begin at the first byte.
	Rewind() error
}

// SnapshotSink receives one snapshot. Exactly one of Commit and Abort ends it.
type SnapshotSink interface {
	io.Writer
	// Commit makes the snapshot durable and visible, drops older ones (the two newest are kept), and returns its final
	// description with Size set. Content that differs in length from a Size that was known at Create is refused.
	Commit() (SnapshotMeta, error)
	Abort() error
}

// Handler receives what a Transport brings. Its methods may be called at the same time, but for one lane of one peer in order.
type Handler interface {
	// HandleMessages takes over messages that were decoded and validated, but not the slice, which the transport may use again. It does
	// not block for long: when the node's queue is full, the messages are dropped, as on a network.
	HandleMessages(ms []Message)
	// HandleSnapshot receives a snapshot whose message arrived as m (Body is InstallSnapshot) and whose content is r. It returns
	// after the content was stored and the message handed to the core, or with the reason why the snapshot is not wanted. If r is a
	// ResumableContent, the node goes on behind what a transfer that broke off has brought.
	HandleSnapshot(ctx context.Context, m Message, r io.Reader) error
	// PeerUp says that a server was reached (or reached us), after authentication.
	PeerUp(peer NodeID, replica ReplicaID, incarnation uint64)
	// PeerLost says that the process with this incarnation is most probably gone: its connection broke and then a new one was
	// refused, or reached a later incarnation. A broken connection alone is no such sign.
	PeerLost(peer NodeID, incarnation uint64)
	// Refused reports input that was turned away: from whom (as far as known), and why, as a short constant string.
	Refused(peer NodeID, reason string)
}

// ResumableContent is implemented by the content that a Transport gives to HandleSnapshot if its sender can leave out what the receiver
// has. Without it, content begins at its first byte.
type ResumableContent interface {
	io.Reader
	// Resume tells the sender how much content is here from an earlier attempt, and its SHA-256, and returns where Read will begin: there,
	// or at 0 if the sender's own content does not begin with the same bytes, or it cannot find out. It is called before Read, at most once.
	Resume(have int64, sum [32]byte) (from int64, err error)
}

// Transport carries messages between servers. Messages may be lost, duplicated, delayed and (across lanes) reordered; they must
// not be changed, and their sender must be who they say. transporttest.Run is the conformance suite.
type Transport interface {
	// Start begins to deliver to h, as the server id. Messages of other clusters, or meant for other servers, are refused.
	Start(id Identity, h Handler) error
	// Send queues messages to one peer and never blocks; when the queue is full, or the peer unknown, they are dropped. It
	// takes over the messages but not the slice.
	Send(to NodeID, lane Lane, ms []Message)
	// SendSnapshot sends one snapshot and returns once the receiver's HandleSnapshot has returned nil, or with an error. If r is a
	// Rewinder, a transport may read it up to where an earlier attempt broke off, and rewind it if what the receiver has is not the same.
	// A transport that always sends all of it is correct, too.
	SendSnapshot(ctx context.Context, m Message, r io.Reader) error
	// SetPeers replaces the addresses of the other members. Servers that reached us but are not listed can still be answered.
	SetPeers(servers []Server)
	// Close ends all connections and returns when no more calls to the handler are running.
	Close() error
}

// Metrics receives measurements. The package metrics implements it for Prometheus. Calls come from the node's own goroutines and
// must not block.
type Metrics interface {
	ObserveWrite(d time.Duration, entries, bytes int) // one durable write of the log, from its start to its return
	ObserveCommit(d time.Duration)                    // one command proposed here, from Propose to its commit (sampled, one per batch)
	ObserveApply(d time.Duration, entries int)        // one call of StateMachine.Apply
	Election(reason string)                           // this server began an election
	Refused(reason string)                            // one input from a peer was refused
}
