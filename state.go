package raft

import (
	"encoding/binary"
	"slices"
	"strings"
	"time"
)

// Clone returns an independent copy: whatever is fed into one does not show in the other. Entries' bytes are immutable and shared;
// so are the contents of messages.
func (c *Core) Clone() *Core {
	d := *c
	d.log.terms = slices.Clone(c.log.terms)
	d.log.tail = c.log.tail.clone()
	d.log.flights = slices.Clone(c.log.flights)
	d.log.gaps = slices.Clone(c.log.gaps)
	d.answers = slices.Clone(c.answers)
	d.unapplied = slices.Clone(c.unapplied)
	d.configurations = slices.Clone(c.configurations) // the configurations themselves are never changed in place
	d.peers = slices.Clone(c.peers)
	for i := range d.peers {
		d.peers[i].inflight = slices.Clone(c.peers[i].inflight)
		d.peers[i].repair.lacks = slices.Clone(c.peers[i].repair.lacks)
	}
	d.reads = slices.Clone(c.reads)
	d.deferred = slices.Clone(c.deferred)
	d.out, d.handed = c.out.clone(), &Ready{}
	return &d
}

func (r *Ready) clone() *Ready {
	d := *r
	d.Send, d.Loads, d.Apply, d.Reads = slices.Clone(r.Send), slices.Clone(r.Loads), slices.Clone(r.Apply), slices.Clone(r.Reads)
	d.Snapshots, d.Events, d.Refused = slices.Clone(r.Snapshots), slices.Clone(r.Events), slices.Clone(r.Refused)
	return &d
}

// NumberKind tells apart the counters whose absolute values mean nothing, only their order.
type NumberKind uint8

// The kinds of numbers that [Core.AppendState] passes through its rank function.
const (
	NumberRequest NumberKind = iota // request numbers of one server
	NumberRound                     // read rounds of one server
	NumberWrite                     // seqs of one server's writes
	NumberWork                      // IDs of loads and snapshot transfers of one server
	NumberIncarnation
	NumberReplica // of one server
)

// Naming says how [Core.AppendState] writes names and counters, so that an explorer can recognise two states which differ in nothing
// else. Rank may map a counter to its rank among all values of that kind and owner in the explorer's world; Name may exchange the
// names of servers (it maps "" to ""). The owner that Rank is told is the one before renaming. nil: unchanged.
type Naming struct {
	Rank func(kind NumberKind, owner NodeID, v uint64) uint64
	Name func(NodeID) NodeID
}

// AppendState appends a canonical encoding of everything that decides how the core will behave, for explorers that want to know
// whether they have been in a state before. The random generator and absolute times are left out: an explorer treats timeouts as
// events that may happen whenever they are possible. Ready must have been called before.
func (c *Core) AppendState(b []byte, n Naming) []byte {
	e := encoder{b: b, naming: n}
	e.id(c.id)
	e.rank(NumberReplica, c.id, uint64(c.replica))
	e.rank(NumberIncarnation, c.id, c.incarnation)
	e.number(uint64(c.currentTerm))
	e.id(c.votedFor)
	e.number(uint64(c.durable.CurrentTerm))
	e.id(c.durable.VotedFor)
	e.bool(c.hardStateDirty)

	l := &c.log
	e.entryID(l.base)
	e.number(uint64(max(c.covered, l.base.Index)))
	e.number(uint64(l.last), uint64(len(l.terms)))
	for _, run := range l.terms {
		e.number(uint64(run.Index), uint64(run.Term))
	}
	e.number(uint64(l.tail.len))
	for i := range l.tail.len {
		e.entry(l.tail.at(i))
	}
	e.number(uint64(l.issued), uint64(l.durable), uint64(l.truncateFrom))
	e.bool(l.snapshot != nil)
	e.number(uint64(l.lost.First), uint64(l.lost.Last), uint64(len(l.gaps)))
	for i := range l.gaps {
		g := &l.gaps[i]
		e.number(uint64(g.First), uint64(g.Last))
		e.bool(g.MayConfigure)
		e.bool(g.fill != nil)
		e.bool(g.seq != 0)
		e.rank(NumberWrite, c.id, max(g.seq, l.persistedSeq))
	}
	e.rank(NumberWrite, c.id, l.issuedSeq)
	e.rank(NumberWrite, c.id, l.persistedSeq)
	e.number(uint64(len(l.flights)))
	for _, f := range l.flights {
		e.rank(NumberWrite, c.id, f.seq)
		e.number(uint64(f.truncateFrom), uint64(f.last), uint64(f.hardState.CurrentTerm))
		e.id(f.hardState.VotedFor)
	}

	e.number(uint64(c.commitIndex), uint64(c.lastApplied), uint64(c.handedOut), uint64(len(c.unapplied)))
	for _, u := range c.unapplied {
		e.number(uint64(u.hi), uint64(u.bytes))
	}
	e.number(uint64(c.role))
	e.id(c.leader)
	e.bool(c.suspected)
	e.bool(c.overslept)
	e.number(uint64(c.storage))
	e.bool(c.abstaining)

	c.appendRepairState(&e)
	e.number(uint64(c.committedConfig), uint64(len(c.configurations)))
	for i := range c.configurations {
		e.number(uint64(c.configurations[i].index))
		e.configuration(&c.configurations[i].conf)
	}
	e.snapshot(&c.snapshot)
	e.number(uint64(len(c.peers)))
	for _, i := range e.order(len(c.peers), func(i int) NodeID { return c.peers[i].server.ID }) {
		p := &c.peers[i]
		e.id(p.server.ID)
		e.bool(p.member)
		e.rank(NumberReplica, p.server.ID, uint64(p.replica))
		e.rank(NumberReplica, p.server.ID, uint64(p.first))
		e.rank(NumberIncarnation, p.server.ID, p.incarnation)
		e.number(uint64(p.vote))
		if c.role != Leader {
			continue
		}
		e.number(uint64(p.remembered), uint64(len(p.repair.lacks)))
		for _, s := range p.repair.lacks {
			e.number(uint64(s.Term), uint64(s.First), uint64(s.Last))
		}
		e.number(uint64(p.state), uint64(p.matchIndex), uint64(p.nextIndex), uint64(p.sentCommit), uint64(p.snapshot), uint64(p.lingerCommit),
			uint64(max(p.catchUp, p.matchIndex)))
		e.rank(NumberRequest, c.id, p.resetRequest)
		e.rank(NumberRound, c.id, p.ackedRound)
		e.rank(NumberWork, c.id, p.load)
		e.rank(NumberWork, c.id, p.transfer)
		e.number(uint64(len(p.inflight)))
		e.bool(p.probeSent)
		e.bool(max(p.pausedUntil, c.paceUntil(p)) > c.now)
		for _, f := range p.inflight {
			e.number(uint64(f.last), uint64(f.bytes))
		}
	}
	if c.role == Leader {
		e.number(uint64(c.termStart), uint64(c.uncommittedBytes))
		e.rank(NumberRound, c.id, c.round)
		e.rank(NumberRound, c.id, c.confirmedRound)
		e.bool(c.roundWanted)
		e.id(c.transferee)
		e.bool(c.timeoutNowSent)
	}
	e.number(uint64(len(c.reads)))
	for _, r := range c.reads {
		e.number(r.id, uint64(r.index))
		e.rank(NumberRound, c.id, r.round)
	}
	e.number(uint64(len(c.deferred)))
	for i := range c.deferred {
		e.rank(NumberWrite, c.id, c.deferred[i].after)
		e.b = c.deferred[i].m.AppendState(e.b, n)
	}
	return e.b
}

// AppendState appends a canonical encoding of a message under way; see [Core.AppendState].
func (m Message) AppendState(b []byte, n Naming) []byte {
	e := encoder{b: b, naming: n}
	e.id(m.From)
	e.id(m.To)
	e.rank(NumberReplica, m.From, uint64(m.Replica))
	e.rank(NumberIncarnation, m.From, m.Incarnation)
	e.number(uint64(m.Term))
	requester, leader := m.From, m.From // a reply echoes the other side's numbers
	switch r := m.Body.(type) {
	case PreVote:
		e.number(1, uint64(r.LastLogIndex), uint64(r.LastLogTerm))
	case PreVoteReply:
		requester = m.To
		e.number(2)
		e.bool(r.Granted)
	case RequestVote:
		e.number(3, uint64(r.LastLogIndex), uint64(r.LastLogTerm))
		e.bool(r.Transfer)
	case RequestVoteReply:
		requester = m.To
		e.number(4)
		e.bool(r.Granted)
	case AppendEntries:
		e.number(5, uint64(r.PrevLogIndex), uint64(r.PrevLogTerm), uint64(r.LeaderCommit))
		e.rank(NumberRound, leader, r.Round)
		e.number(uint64(len(r.Entries)))
		for i := range r.Entries {
			e.entryID(r.Entries[i].ID())
			e.entry(&r.Entries[i])
		}
	case AppendEntriesReply:
		requester, leader = m.To, m.To
		e.number(6, uint64(r.MatchIndex), uint64(r.PrevLogIndex), uint64(r.HintIndex), uint64(r.HintTerm))
		e.rank(NumberRound, leader, r.Round)
		e.bool(r.Success)
		e.bool(r.Busy)
	case FetchEntries:
		e.number(11, uint64(r.Snapshot), uint64(len(r.Wanted)))
		for _, w := range r.Wanted {
			e.number(uint64(w.Term), uint64(w.First), uint64(w.Last))
		}
	case FetchEntriesReply:
		requester = m.To
		e.number(12, uint64(r.CommitIndex), uint64(len(r.Held)))
		e.bool(r.Leading)
		e.rank(NumberIncarnation, m.To, r.Incarnation)
		for _, h := range r.Held {
			e.number(uint64(h.Term), uint64(h.First), uint64(h.Last), uint64(h.UpTo), uint64(h.How))
		}
		e.number(uint64(len(r.Entries)))
		for i := range r.Entries {
			e.entryID(r.Entries[i].ID())
			e.entry(&r.Entries[i])
		}
	case InstallSnapshot:
		e.number(7)
		e.bool(r.Repair)
		e.snapshot(&r.Meta)
	case InstallSnapshotReply:
		requester = m.To
		e.number(8, uint64(r.MatchIndex))
	case TimeoutNow:
		e.number(9)
	case TimeoutNowReply:
		requester = m.To
		e.number(10)
		e.bool(r.Accepted)
	}
	e.rank(NumberRequest, requester, m.Request)
	return e.b
}

// encoder appends values so that no two different sequences of values have the same bytes.
type encoder struct {
	b      []byte
	naming Naming
}

func (e *encoder) number(vs ...uint64) {
	for _, v := range vs {
		e.b = binary.AppendUvarint(e.b, v)
	}
}

func (e *encoder) string(s string)    { e.b = appendString(e.b, s) }
func (e *encoder) bool(v bool)        { e.b = append(e.b, bit(v, 0)) }
func (e *encoder) entryID(id EntryID) { e.number(uint64(id.Term), uint64(id.Index)) }
func (e *encoder) id(id NodeID)       { e.string(string(e.renamed(id))) }

func (e *encoder) renamed(id NodeID) NodeID {
	if e.naming.Name == nil {
		return id
	}
	return e.naming.Name(id)
}

func (e *encoder) rank(kind NumberKind, owner NodeID, v uint64) {
	if e.naming.Rank != nil {
		v = e.naming.Rank(kind, owner, v)
	}
	e.number(v)
}

// order returns 0 to n-1 in the order of the renamed IDs.
func (e *encoder) order(n int, id func(i int) NodeID) []int {
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int { return strings.Compare(string(e.renamed(id(i))), string(e.renamed(id(j)))) })
	return order
}

// entry appends the content of an entry. A configuration names servers, so it is not taken as bytes.
func (e *encoder) entry(x *Entry) {
	e.number(uint64(x.Type))
	if x.Type == EntryConfiguration {
		if conf, err := DecodeConfiguration(x.Data); err == nil {
			e.configuration(&conf)
			return
		}
	}
	e.string(string(x.Data))
}

func (e *encoder) configuration(conf *Configuration) {
	e.string(conf.ClusterID)
	e.number(uint64(len(conf.Servers)))
	for _, i := range e.order(len(conf.Servers), func(i int) NodeID { return conf.Servers[i].ID }) {
		s := &conf.Servers[i]
		e.id(s.ID)
		e.string(s.Address)
		e.number(uint64(s.Suffrage), uint64(s.Priority))
		e.rank(NumberReplica, s.ID, uint64(s.Replica))
		e.bool(s.Outgoing)
		e.bool(s.Leaving)
	}
	e.number(uint64(len(conf.Removed)))
	for _, id := range conf.Removed {
		e.id(id)
	}
	e.bool(conf.LeaderLeases)
}

func (e *encoder) snapshot(meta *SnapshotMeta) {
	e.entryID(meta.ID())
	e.number(uint64(meta.ConfigurationIndex), uint64(meta.Size))
	e.configuration(&meta.Configuration)
}

// appendRepairState appends what is remembered of damage. Whose turn it is to be asked is left out, like time.
func (c *Core) appendRepairState(e *encoder) {
	r := &c.repair
	e.bool(r.recovering)
	e.entryID(r.fence)
	e.bool(r.liftFence)
	e.number(uint64(c.knownMatch()))
	if r.fence != (EntryID{}) && r.goalTerm == c.currentTerm {
		e.number(uint64(r.goal))
	}
	e.number(uint64(len(c.answers)))
	for i := range c.answers {
		e.id(c.answers[i].to.From)
		e.rank(NumberRequest, c.answers[i].to.From, c.answers[i].to.Request)
		for _, w := range c.answers[i].wanted {
			e.number(uint64(w.Term), uint64(w.First), uint64(w.Last))
		}
	}
}

// ForceRepair lets this server ask all the others now for what it lacks, for explorers that treat time as an event.
func (c *Core) ForceRepair(now time.Duration) {
	c.advanceClock(now)
	if !c.lacks() {
		return
	}
	for i := range c.peers {
		if p := &c.peers[i]; p.server.ID != c.id && p.member {
			c.ask(p.server.ID)
		}
	}
}

// ForceTimeout lets the election timeout of a follower or candidate, or the heartbeat of a leader, happen now, for explorers that
// treat time as an event. At such a heartbeat everything under way to the followers counts as lost: for whoever leaves the clock
// standing that is the only way to ask again.
func (c *Core) ForceTimeout(now time.Duration) {
	c.advanceClock(now)
	if c.role == Leader {
		c.heartbeatDeadline = c.now
		for i := range c.peers {
			c.peers[i].resendAt = c.now
		}
		c.tickLeader()
		return
	}
	c.timeoutElection()
}
