package raft

import (
	"fmt"
	"time"
)

// PeerStatus is what a leader knows about another server.
type PeerStatus struct {
	ID            NodeID        `json:"id"`
	State         string        `json:"state"` // probe, replicate or snapshot
	MatchIndex    Index         `json:"match_index"`
	NextIndex     Index         `json:"next_index"`
	InflightBytes int           `json:"inflight_bytes"`
	LastHeard     time.Duration `json:"last_heard"` // ago
	Busy          bool          `json:"busy"`
	Replica       ReplicaID     `json:"replica"`
	Incarnation   uint64        `json:"incarnation"`
	LostLog       *LostLog      `json:"lost_log,omitempty"` // this process has less than the one before it had acknowledged
}

// CoreStatus is a view of the core at one moment.
type CoreStatus struct {
	ID                 NodeID        `json:"id"`
	Role               Role          `json:"role"`
	Term               Term          `json:"term"`
	VotedFor           NodeID        `json:"voted_for"`
	Leader             NodeID        `json:"leader"`
	CommitIndex        Index         `json:"commit_index"`
	AppliedIndex       Index         `json:"applied_index"`
	DurableIndex       Index         `json:"durable_index"`
	FirstIndex         Index         `json:"first_index"`
	LastIndex          Index         `json:"last_index"`
	SnapshotIndex      Index         `json:"snapshot_index"`
	Configuration      Configuration `json:"configuration"`
	ConfigurationIndex Index         `json:"configuration_index"`
	UncommittedBytes   int           `json:"uncommitted_bytes"`
	TailBytes          int           `json:"tail_bytes"`
	Transferring       NodeID        `json:"transferring,omitempty"`
	Storage            StorageState  `json:"storage"`
	Damaged            []Damage      `json:"damaged,omitempty"` // entries that cannot be read here and are being fetched from the others
	Fence              EntryID       `json:"fence"`             // the log may have held this entry before it lost its end; zero: it is whole
	Recovering         bool          `json:"recovering"`        // elected, but entries are missing; no command is taken until they are found or ruled out
	Peers              []PeerStatus  `json:"peers,omitempty"`   // on a leader
	// CanCommit says whether a proposal made here now would commit; WhyNot says what is missing.
	CanCommit bool   `json:"can_commit"`
	WhyNot    string `json:"why_not,omitempty"`
}

// Status describes the core.
func (c *Core) Status(now time.Duration) CoreStatus {
	s := CoreStatus{
		ID: c.id, Role: c.role, Term: c.currentTerm, VotedFor: c.votedFor, Leader: c.leader,
		CommitIndex: c.commitIndex, AppliedIndex: c.lastApplied, DurableIndex: c.log.durable,
		FirstIndex: c.log.base.Index + 1, LastIndex: c.log.last, SnapshotIndex: c.snapshot.Index,
		Configuration: c.configuration().Clone(), ConfigurationIndex: c.configurationIndex(),
		UncommittedBytes: c.uncommittedBytes, TailBytes: c.log.tailBytes, Transferring: c.transferee, Storage: c.storage,
	}
	s.Fence, s.Recovering = c.repair.fence, c.repair.recovering
	if c.log.lost.Last > 0 {
		s.Damaged = append(s.Damaged, c.log.lost)
	}
	for k := range c.log.gaps {
		s.Damaged = append(s.Damaged, c.log.gaps[k].Damage)
	}
	if c.role == Leader {
		for i := range c.peers {
			if p := &c.peers[i]; p.server.ID != c.id {
				s.Peers = append(s.Peers, p.status(now))
			}
		}
	}
	s.WhyNot = c.whyNot(now)
	s.CanCommit = s.WhyNot == ""
	return s
}

// whyNot says why a proposal made here now would not commit, in words for an operator; "" if it would.
func (c *Core) whyNot(now time.Duration) string {
	conf := c.configuration()
	switch {
	case c.role != Leader && c.log.lost.Last > 0: // its leader may wait for just that
		return fmt.Sprintf("this server can neither lead nor apply what is committed: it needs a snapshot that reaches entry %d from another server", c.log.lost.Last)
	case len(conf.Servers) == 0:
		return "this server belongs to no cluster yet: bootstrap it, or add it on the leader"
	case c.storage == StorageFailed:
		return "the storage failed"
	case c.repair.recovering:
		return "entries of the log that may be committed cannot be read here: " + c.missingInWords()
	case c.role != Leader && c.leader == "" && len(c.log.gaps) > 0:
		return "no leader is known, and entries of the log cannot be read here: " + c.missingInWords()
	case c.role != Leader && c.leader == "" && c.repair.fence != (EntryID{}):
		return fmt.Sprintf("no leader is known, and this server cannot become one: its log has lost its end, and may have held entry %v", c.repair.fence)
	case c.role != Leader && c.leader == "":
		return "no leader is known: an election is going on, or no majority can be reached"
	case c.role != Leader:
		return "" // by way of the leader
	case len(c.log.gaps) > 0 && c.quorum(func(p *peer) bool { return p.server.ID == c.id }):
		return "entries of the log cannot be read here: " + c.missingInWords()
	case c.storage == StorageFull:
		return "the storage is full"
	case c.holdsProposals():
		return "leadership is being transferred"
	case c.log.diskStuck(now, c.cfg.DiskDeadline):
		return "the disk does not finish a write"
	case !c.quorum(func(p *peer) bool {
		return p.server.ID == c.id || now-p.lastHeard <= 2*c.cfg.HeartbeatInterval+c.cfg.ElectionTimeout/4
	}):
		return "no majority of the voters has answered lately"
	default:
		return ""
	}
}

// missingInWords names the first missing entry, and what the others said about it.
func (c *Core) missingInWords() string {
	wanted := c.log.missingStretches(1)
	if len(wanted) == 0 {
		return "they have come and are being written"
	}
	s := fmt.Sprintf("entry %v is missing", EntryID{Term: wanted[0].Term, Index: wanted[0].First})
	for _, a := range c.asked() {
		s += fmt.Sprintf("; %s: %s", a.Server, a.Answer)
	}
	return s
}

// status describes what a leader knows about the peer.
func (p *peer) status(now time.Duration) PeerStatus {
	return PeerStatus{
		ID: p.server.ID, State: progressStates[p.state], MatchIndex: p.matchIndex, NextIndex: p.nextIndex,
		InflightBytes: p.inflightBytes, LastHeard: now - p.lastHeard, Busy: now < p.pausedUntil,
		Replica: p.replica, Incarnation: p.incarnation, LostLog: p.lost,
	}
}
