package raft

import (
	"fmt"
	"math"
)

// NodeID names a server for its whole life. It is chosen by the operator, is never reused after the server was removed, and says
// nothing about where the server can be reached (that is [Server.Address]).
type NodeID string

// ReplicaID identifies one data directory. It is drawn at random when the directory is created. A server whose disk was wiped
// comes back with another ReplicaID under the same NodeID, and nothing that its predecessor promised is believed of it.
// Zero means "not known yet".
type ReplicaID uint64

// Term is the paper's logical clock (§5.1).
type Term uint64

// MaxTerm is later than every term that a server can reach.
const MaxTerm = Term(math.MaxUint64)

// Index is a position in the log; the first entry has index 1 (§5.3).
type Index uint64

// maxIndex is beyond what any log will ever reach. What a peer claims is held below it, so that the sum of an index and a length
// never overflows.
const maxIndex Index = 1 << 62

// EntryID names one entry for ever: no two different entries share both term and index (Log Matching, §5.3).
type EntryID struct {
	Term  Term  `json:"term"`
	Index Index `json:"index"`
}

// String prints the entry's position as index@term.
func (id EntryID) String() string { return fmt.Sprintf("%d@%d", id.Index, id.Term) }

// upToDate reports whether a log that ends in id is at least as up-to-date as one that ends in other (§5.4.1).
func (id EntryID) upToDate(other EntryID) bool {
	return id.Term > other.Term || id.Term == other.Term && id.Index >= other.Index
}

// Header is the envelope of every message. A reply echoes the request number of what it answers.
type Header struct {
	From        NodeID
	To          NodeID
	Replica     ReplicaID // of the sender
	Incarnation uint64    // of the sender: how often its data directory has been started
	Term        Term      // the sender's currentTerm; in PreVote and a granted PreVoteReply the term that is being asked for
	Request     uint64    // numbered by the sender of the request, rising within one incarnation
}

// Message is one RPC request or reply on its way. Body is one of the structs below, by value.
type Message struct {
	Header
	Body Body
}

// Body is the content of a [Message]. The set is closed.
type Body interface{ isBody() }

// Lane is one of the independent streams between two servers. Within a lane messages keep their order; a message of one lane may
// overtake those of another, so that a long append never delays a heartbeat.
type Lane uint8

// The lanes. Snapshots travel apart, through [Transport.SendSnapshot].
const (
	LaneControl Lane = iota // everything small: votes, heartbeats, every reply
	LaneLog                 // AppendEntries that carry entries, what must not overtake them (TimeoutNow), forwarded proposals
	lanes
)

// String names the lane.
func (l Lane) String() string {
	switch l {
	case LaneControl:
		return "control"
	case LaneLog:
		return "log"
	default:
		return fmt.Sprintf("lane(%d)", uint8(l))
	}
}

// Lane says on which lane the message travels.
func (m Message) Lane() Lane {
	switch b := m.Body.(type) {
	case AppendEntries:
		if len(b.Entries) > 0 {
			return LaneLog
		}
	case FetchEntries:
		return LaneLog // its answer may have to be read from a disk, and a heartbeat must not wait for that
	case FetchEntriesReply:
		if len(b.Entries) > 0 {
			return LaneLog
		}
	case TimeoutNow:
		return LaneLog // were it to overtake entries, the candidate would lose to whoever has them, and nobody would lead for a while
	case ForwardPropose:
		return LaneLog
	}
	return LaneControl
}

// PreVote asks whether the receiver would vote for the sender in Header.Term, which nobody has entered yet
// (dissertation §9.6). It changes nothing at the receiver.
type PreVote struct {
	LastLogIndex Index
	LastLogTerm  Term
}

// PreVoteReply answers a PreVote. Granted replies carry the term that was asked for; refused ones the sender's own.
type PreVoteReply struct {
	Granted bool
}

// RequestVote is invoked by candidates to gather votes (§5.2, Figure 2). The candidate is Header.From.
type RequestVote struct {
	LastLogIndex Index
	LastLogTerm  Term
	Transfer     bool // the leader itself asked for this election (dissertation §3.10), so stickiness does not apply
}

// RequestVoteReply answers a RequestVote (Figure 2).
type RequestVoteReply struct {
	Granted bool
}

// AppendEntries is invoked by the leader to replicate entries; empty it is a heartbeat (§5.3, Figure 2). The leader is Header.From.
type AppendEntries struct {
	PrevLogIndex Index
	PrevLogTerm  Term
	LeaderCommit Index
	Round        uint64  // the newest read round that this request confirms when answered (dissertation §6.4)
	Entries      []Entry // consecutive, from PrevLogIndex+1 on; shared and immutable
}

// AppendEntriesReply answers an AppendEntries (Figure 2), with what the leader needs to repair a conflict in one step (§5.3).
type AppendEntriesReply struct {
	Success      bool
	Busy         bool   // the entries were not looked at: the follower has no room now
	MatchIndex   Index  // on success: durable here and equal to the leader's log up to this index
	PrevLogIndex Index  // of the request
	HintIndex    Index  // on a conflict: the last index whose term is at most PrevLogTerm in the follower's log ...
	HintTerm     Term   // ... and the term there
	Round        uint64 // of the request
}

// InstallSnapshot offers a follower the leader's snapshot (§7). Its content travels beside it, through
// [Transport.SendSnapshot]; by the time the core sees this message the content lies complete and durable in the receiver's
// [SnapshotStore].
type InstallSnapshot struct {
	Meta SnapshotMeta
	// Repair says that the sender claims no leadership: it answers a FetchEntries of a server that lacks entries which are compacted here.
	Repair bool
}

// FetchEntries asks for entries that the sender cannot read any more, by their identity, in whatever role sender and receiver are: an
// entry of the same term and index is the same entry everywhere (Log Matching, §5.3). Of a leader that lacks entries it is also the
// question whether they may be committed; the receiver has entered the leader's term when it answers.
type FetchEntries struct {
	Wanted   []Stretch // rising, at most MaxFetchStretches. None: the sender wants to know the commit index
	Snapshot Index     // not 0: a snapshot that reaches this index would do as well
}

// Stretch names consecutive entries of one term.
type Stretch struct {
	Term  Term  `json:"term"`
	First Index `json:"first"`
	Last  Index `json:"last"` // included
}

// MaxFetchStretches bounds what is asked for at a time.
const MaxFetchStretches = 64

// FetchEntriesReply answers a FetchEntries.
type FetchEntriesReply struct {
	Incarnation uint64  // of the asker: an answer to an earlier process of it says nothing about this one
	Held        []Held  // for each stretch that was asked for, in order
	Entries     []Entry // consecutive, some of those that were asked for; none if they are not readable, or follow later
	Leading     bool    // the sender leads its term and has committed an entry of it
	CommitIndex Index   // of the sender
}

// Held says what a server has of a stretch.
type Held struct {
	Stretch
	// UpTo is the last entry of the stretch that the sender has, or may have acknowledged in the past; First-1: none. The sender cannot
	// acknowledge those behind it to any leader before that of the message's term.
	UpTo Index
	How  Holding // of the first entry of the stretch
}

// Holding says how a server has an entry.
type Holding uint8

// The ways to have an entry, or not.
const (
	HoldsNot       Holding = iota // it is not in the log, and this server remembers its log well
	HoldsIntact                   // it can be had here
	HoldsDamaged                  // it is in the log and cannot be read
	HoldsCompacted                // it is gone from the log, which holds what is committed there; a snapshot covers it
	HoldsUnknown                  // the log has lost its end, where it may have been
	holdings
)

var holdingNames = [...]string{"not there", "intact", "damaged", "compacted", "unknown"}

// String names the holding.
func (h Holding) String() string {
	if int(h) < len(holdingNames) {
		return holdingNames[h]
	}
	return fmt.Sprintf("holding %d", uint8(h))
}

// MarshalText makes a holding readable in JSON.
func (h Holding) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// InstallSnapshotReply answers an InstallSnapshot once the snapshot counts as part of the durable log.
type InstallSnapshotReply struct {
	MatchIndex Index
}

// TimeoutNow asks the receiver to start an election at once: the last step of a leadership transfer (dissertation §3.10).
type TimeoutNow struct{}

// TimeoutNowReply says whether the receiver became a candidate.
type TimeoutNowReply struct {
	Accepted bool
}

// ForwardPropose carries proposals from a follower to the leader. The core does not know it: the node of the leader proposes
// what is inside and answers with what became of each.
type ForwardPropose struct {
	Proposals []Proposal
}

// Proposal is one command to be appended.
type Proposal struct {
	Entry  Entry // made by [NewCommand], not yet stamped with term and index
	IfTerm Term  // append only in this term; 0: in any
}

// ForwardProposeReply answers a ForwardPropose, one outcome for each proposal, in order.
type ForwardProposeReply struct {
	Outcomes []ForwardOutcome
}

// ForwardOutcome says where a forwarded proposal was appended, or why it was not.
type ForwardOutcome struct {
	ID      EntryID     // where it was appended, if Refusal is zero
	Refusal RefusalCode // otherwise: it was appended nowhere
}

// ForwardRead asks the leader for an index that reflects every write acknowledged so far (dissertation §6.4).
type ForwardRead struct{}

// ForwardReadReply answers a ForwardRead after the leader has confirmed its leadership.
type ForwardReadReply struct {
	Index   Index
	Refusal RefusalCode
}

// RefusalCode travels in place of an error value.
type RefusalCode uint8

// Why a forwarded request was refused.
const (
	RefusedNot        RefusalCode = iota
	RefusedNotLeader              // the receiver does not lead (any more)
	RefusedTerm                   // IfTerm names another term
	RefusedOverloaded             // too many bytes uncommitted
	RefusedTooLarge               // larger than a command may be
	RefusedFull                   // the leader's storage is full
	RefusedStopped                // the receiver is stopping
)

func (PreVote) isBody()              {}
func (PreVoteReply) isBody()         {}
func (RequestVote) isBody()          {}
func (RequestVoteReply) isBody()     {}
func (AppendEntries) isBody()        {}
func (AppendEntriesReply) isBody()   {}
func (InstallSnapshot) isBody()      {}
func (InstallSnapshotReply) isBody() {}
func (TimeoutNow) isBody()           {}
func (TimeoutNowReply) isBody()      {}
func (FetchEntries) isBody()         {}
func (FetchEntriesReply) isBody()    {}
func (ForwardPropose) isBody()       {}
func (ForwardProposeReply) isBody()  {}
func (ForwardRead) isBody()          {}
func (ForwardReadReply) isBody()     {}

// Validate reports what makes the message malformed, whoever sent it: missing names, no body, entries that do not follow each
// other. A transport calls it on everything that it decodes, so that the core may assume well-formed messages. Frames inside
// entries have been verified by [DecodeEntry] already. Values that are well-formed but impossible in this cluster's history are
// for the core to refuse.
func (m Message) Validate() error {
	if m.From == "" || m.To == "" {
		return fmt.Errorf("message %T from %q to %q: sender or receiver missing", m.Body, m.From, m.To)
	}
	if m.From == m.To {
		return fmt.Errorf("message %T from %q to itself", m.Body, m.From)
	}
	switch b := m.Body.(type) {
	case nil:
		return fmt.Errorf("message from %q: no body", m.From)
	case AppendEntries:
		if b.PrevLogIndex > maxIndex {
			return fmt.Errorf("append entries from %q: previous index %d is beyond any log", m.From, b.PrevLogIndex)
		}
		if b.PrevLogIndex == 0 && b.PrevLogTerm != 0 {
			return fmt.Errorf("append entries from %q: index 0 has term %d, want 0", m.From, b.PrevLogTerm)
		}
		last := EntryID{Term: b.PrevLogTerm, Index: b.PrevLogIndex}
		if last.Term > m.Term {
			return fmt.Errorf("append entries from %q: previous entry %v of a later term than the message's %d", m.From, last, m.Term)
		}
		for i := range b.Entries {
			e := &b.Entries[i]
			if e.Index != last.Index+1 || e.Term < last.Term || e.Term > m.Term || e.Term == 0 {
				return fmt.Errorf("append entries from %q in term %d: entry %v does not follow %v", m.From, m.Term, e.ID(), last)
			}
			last = e.ID()
		}
	case FetchEntries:
		return m.validateFetch(b)
	case FetchEntriesReply:
		return m.validateFetchReply(b)
	case InstallSnapshot:
		if err := b.Meta.Validate(); err != nil {
			return fmt.Errorf("install snapshot from %q: %w", m.From, err)
		}
		if b.Meta.Term > m.Term {
			return fmt.Errorf("install snapshot from %q: last included term %d is later than the message's %d", m.From, b.Meta.Term, m.Term)
		}
	}
	return nil
}

func (m Message) validateFetch(b FetchEntries) error {
	if len(b.Wanted) > MaxFetchStretches {
		return fmt.Errorf("fetch entries from %q: %d stretches, at most %d", m.From, len(b.Wanted), MaxFetchStretches)
	}
	if b.Snapshot > maxIndex {
		return fmt.Errorf("fetch entries from %q: a snapshot at %d is beyond any log", m.From, b.Snapshot)
	}
	last := Index(0)
	for _, w := range b.Wanted {
		if !w.valid() || w.First <= last || w.Term > m.Term {
			return fmt.Errorf("fetch entries from %q in term %d: stretch %v does not follow %d", m.From, m.Term, w, last)
		}
		last = w.Last
	}
	return nil
}

func (m Message) validateFetchReply(b FetchEntriesReply) error {
	if len(b.Held) > MaxFetchStretches || b.CommitIndex > maxIndex {
		return fmt.Errorf("entries fetched from %q: %d stretches, commit index %d", m.From, len(b.Held), b.CommitIndex)
	}
	for _, h := range b.Held {
		if !h.valid() || h.UpTo+1 < h.First || h.UpTo > h.Last || h.How >= holdings {
			return fmt.Errorf("entries fetched from %q: %v up to %d, %v, is impossible", m.From, h.Stretch, h.UpTo, h.How)
		}
	}
	for i := range b.Entries {
		e := &b.Entries[i]
		if e.Term == 0 || e.Index == 0 || e.Index > maxIndex || i > 0 && (e.Index != b.Entries[i-1].Index+1 || e.Term < b.Entries[i-1].Term) {
			return fmt.Errorf("entries fetched from %q: entry %v at place %d is out of order", m.From, e.ID(), i)
		}
	}
	return nil
}

func (s Stretch) valid() bool {
	return s.Term > 0 && s.First > 0 && s.First <= s.Last && s.Last <= maxIndex
}

// String prints the entries' positions as first-last@term.
func (s Stretch) String() string {
	if s.First == s.Last {
		return EntryID{Term: s.Term, Index: s.First}.String()
	}
	return fmt.Sprintf("%d-%d@%d", s.First, s.Last, s.Term)
}
