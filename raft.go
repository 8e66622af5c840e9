package raft

import (
	"fmt"
	"time"
)

// Role is what a server is at the moment (§5.1). A PreCandidate is a follower that asks whether an election could succeed
// (dissertation §9.6).
type Role uint8

// The roles.
const (
	Follower Role = iota
	PreCandidate
	Candidate
	Leader
)

// String names the role.
func (r Role) String() string {
	switch r {
	case Follower:
		return "follower"
	case PreCandidate:
		return "pre-candidate"
	case Candidate:
		return "candidate"
	case Leader:
		return "leader"
	default:
		return fmt.Sprintf("role %d", uint8(r))
	}
}

// MarshalText makes a role readable in JSON.
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Reason says why the role or the leader changed.
type Reason uint8

// Reasons of a LeaderChange.
const (
	ReasonStart        Reason = iota // the node has just started
	ReasonTimeout                    // nothing heard from a leader for an election timeout
	ReasonSuspicion                  // the leader's process is gone (PeerLost)
	ReasonTransfer                   // the leader asked for it (TimeoutNow)
	ReasonElected                    // a quorum voted for this server
	ReasonLeaderFound                // a leader made itself known
	ReasonHigherTerm                 // another server is in a later term
	ReasonLostElection               // a quorum refused, or another server won
	ReasonNoQuorum                   // the leader heard no quorum for an election timeout
	ReasonSlowDisk                   // a write did not finish within the disk deadline
	ReasonStorage                    // the storage failed
	ReasonRemoved                    // no longer a voter
	ReasonAbstained                  // the owner asked this server not to lead
	ReasonDamage                     // entries of its log cannot be read, and were not found elsewhere yet
)

var reasons = [...]string{"start", "election timeout", "leader process gone", "leadership transfer", "elected", "leader found",
	"higher term", "election lost", "no quorum heard", "disk deadline", "storage failed", "no longer a voter", "abstained", "damaged log"}

// String names the reason.
func (r Reason) String() string {
	if int(r) < len(reasons) {
		return reasons[r]
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// MarshalText makes a reason readable in JSON.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// CoreConfig holds the core's knobs. The zero value of a field means its default.
type CoreConfig struct {
	ID   NodeID
	Seed uint64 // of the core's own random generator

	HeartbeatInterval   time.Duration // 100 ms
	ElectionTimeout     time.Duration // T, 1 s; timeouts are drawn from [T, 2T)
	DiskDeadline        time.Duration // T; the longest that a write may take before this server stops leading
	MaxBatchBytes       int           // 1 MiB; entries in one AppendEntries, at least one
	MaxInflightBytes    int           // 4 MiB; entries sent to one follower and not acknowledged
	MaxInflightMessages int           // 256
	MaxUncommittedBytes int           // 64 MiB; above it proposals are refused with ErrOverloaded
	MaxUnappliedBytes   int           // 64 MiB; entries handed out for apply and not applied
	MaxTailBytes        int           // 16 MiB; entries kept in memory although they are durable here
	TrailingEntries     uint64        // 10,000; kept in the log behind a snapshot, for followers that lag a little

	// CatchUpBytesPerSecond, 32 MiB, bounds how fast a follower is sent entries from the disk, and those behind them, so that it does not
	// slow down the others. Twice what the log grows by meanwhile comes on top, so that it does catch up. A follower without which
	// nothing can be committed is sent all at once.
	CatchUpBytesPerSecond int

	DisablePreVote     bool // for tests and exploration
	DisableCheckQuorum bool // for tests and exploration
}

// StorageState tells the core about the health of its disk.
type StorageState uint8

// The states of a storage.
const (
	StorageOK     StorageState = iota
	StorageFull                // no room for commands; hard state, no-ops and configurations still fit
	StorageFailed              // final: nothing more will be written
)

// String names the state.
func (s StorageState) String() string {
	switch s {
	case StorageOK:
		return "ok"
	case StorageFull:
		return "full"
	case StorageFailed:
		return "failed"
	default:
		return fmt.Sprintf("storage state %d", uint8(s))
	}
}

// MarshalText makes a storage state readable in JSON.
func (s StorageState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Core is the Raft state machine of one server: a pure value that changes with its inputs and asks for effects through Ready. It
// has no goroutine, no lock, no clock and does no I/O; it is not safe for concurrent use. The same inputs give the same outputs.
//
// Every input carries the present time. Read it beside Figure 2 of the paper: raft.go holds the state and the rules for servers,
// election.go RequestVote, replication.go AppendEntries.
type Core struct {
	cfg         CoreConfig
	id          NodeID
	replica     ReplicaID
	incarnation uint64
	random      splitmix64
	now         time.Duration

	// Persistent state on all servers (Figure 2). An answer that depends on it leaves only once it is durable.
	currentTerm    Term
	votedFor       NodeID
	log            raftLog
	durable        HardState // what of the two above is known to be on disk
	hardStateDirty bool      // the two above changed after the newest write was issued

	// Volatile state on all servers.
	commitIndex Index // never decreases while this process runs
	lastApplied Index // reported by Applied
	handedOut   Index // handed out for apply; lastApplied <= handedOut <= commitIndex
	unapplied   []unapplied
	unappliedBy int // bytes in unapplied

	role              Role
	leader            NodeID // of currentTerm; "": not known
	reason            Reason // of the newest change of role or leader
	electionDeadline  time.Duration
	lastLeaderContact time.Duration
	overslept         bool // the election timer was armed again because we slept; not twice in a row

	// Volatile state for suspicion, storage and the owner's wishes.
	suspected      bool          // the leader's process is believed to be gone
	suspicionAfter time.Duration // no election by suspicion before this time
	storage        StorageState
	abstaining     bool

	// Membership. configurations holds the one in force (the last) and those that it may be rolled back to, by rising index.
	configurations  []configurationAt
	committedConfig Index  // index of the newest configuration reported as committed
	priorityRank    int    // how many distinct priorities among the voters are higher than ours
	peers           []peer // one for each member, this server included, and for those that linger; by ID
	snapshot        SnapshotMeta
	covered         Index // by snapshots of the local state machine, but for the trailing entries: up to here the log may be compacted

	// Volatile state on leaders; see also peer.
	termStart         Index // of this leader's no-op
	heartbeatDeadline time.Duration
	uncommittedBytes  int
	appendedBytes     uint64 // by this process while it led
	round             uint64 // newest read round begun
	confirmedRound    uint64 // newest read round that a quorum has answered
	roundWanted       bool   // some read waits for a round that has not begun
	reads             []pendingRead
	transferee        NodeID
	transferDeadline  time.Duration
	timeoutNowSent    bool

	repair  repair        // of what cannot be read here
	answers []fetchAnswer // to servers that cannot read something

	nextRequest uint64
	nextLoad    uint64
	deferred    []deferredMessage // wait for a write; by rising seq

	out, handed *Ready // being filled; returned by the last Ready
	touched     bool   // an input has come since the last Ready
}

// deferredMessage waits until the write with number after is durable.
type deferredMessage struct {
	after uint64
	m     Message
}

// unapplied is a piece handed out for apply.
type unapplied struct {
	hi    Index // the piece ends before
	bytes int
}

// NewCore makes the core of a server from what its storage holds. now is the present time on the clock of all later inputs.
// It begins as a follower that knows no leader (§5.2). The state machine is at rec.Snapshot, and Apply goes on behind it.
func NewCore(cfg CoreConfig, now time.Duration, rec *Recovered) (*Core, error) {
	cfg = cfg.withDefaults()
	c := &Core{
		cfg: cfg, id: cfg.ID, replica: rec.Identity.Replica, incarnation: rec.Identity.Incarnation,
		random: splitmix64(cfg.Seed), now: now,
		currentTerm: rec.HardState.CurrentTerm, votedFor: rec.HardState.VotedFor, durable: rec.HardState,
		out: &Ready{}, handed: &Ready{}, touched: true,
	}
	c.log = raftLog{base: rec.Compacted, last: rec.LastIndex, issued: rec.LastIndex, stored: rec.LastIndex, durable: rec.LastIndex,
		terms: append([]TermStart(nil), rec.Terms...)}
	c.repair.fence, c.repair.at = rec.Fence, now
	for _, d := range rec.Damaged {
		c.log.damage(d)
	}
	if err := c.recover(rec); err != nil {
		return nil, err
	}
	c.rebuildPeers()
	c.resetElectionTimer()
	return c, nil
}

// recover brings log, snapshot, configurations and term into agreement: a crash may have come between any two writes.
func (c *Core) recover(rec *Recovered) error {
	switch {
	case rec.Snapshot.Index < rec.Compacted.Index:
		// The snapshot at which the log begins cannot be read any more. Another server's takes its place; until then this one goes no
		// further than the older one, but remembers what its log holds.
		c.snapshot = rec.Snapshot
		if rec.Snapshot.Index > 0 {
			c.configurations = []configurationAt{{rec.Snapshot.ConfigurationIndex, rec.Snapshot.Configuration.Clone()}}
		}
		c.log.lost = Damage{First: rec.Snapshot.Index + 1, Last: rec.Compacted.Index, MayConfigure: true}
		c.log.capDurable()
	case rec.Snapshot.Index > 0:
		c.snapshot = rec.Snapshot
		c.configurations = []configurationAt{{rec.Snapshot.ConfigurationIndex, rec.Snapshot.Configuration.Clone()}}
		if !c.log.contains(rec.Snapshot.ID()) {
			c.log.reset(rec.Snapshot) // received right before the crash; the log was not told any more
		}
	}
	for i := range rec.Configurations {
		e := &rec.Configurations[i]
		if e.Index > c.log.last || e.Index <= c.snapshot.Index {
			continue // the snapshot knows better: a log that it replaces may hold one there that was never committed
		}
		conf, err := DecodeConfiguration(e.Data)
		if err != nil {
			return fmt.Errorf("entry %v in the log: %w", e.ID(), err)
		}
		c.configurations = append(c.configurations, configurationAt{e.Index, conf})
	}
	if t := c.log.lastID().Term; t > c.currentTerm {
		// The snapshot of a later term arrived before that term was written. This server has not voted in it.
		c.currentTerm, c.votedFor, c.hardStateDirty = t, "", true
	}
	c.commitIndex, c.lastApplied, c.handedOut = c.snapshot.Index, c.snapshot.Index, c.snapshot.Index
	c.committedConfig = c.snapshot.ConfigurationIndex
	c.coverGaps()
	return nil
}

func (cfg CoreConfig) withDefaults() CoreConfig {
	setDefault(&cfg.HeartbeatInterval, 100*time.Millisecond)
	setDefault(&cfg.ElectionTimeout, time.Second)
	setDefault(&cfg.DiskDeadline, cfg.ElectionTimeout)
	setDefault(&cfg.MaxBatchBytes, 1<<20)
	setDefault(&cfg.MaxInflightBytes, 4<<20)
	setDefault(&cfg.MaxInflightMessages, 256)
	setDefault(&cfg.MaxUncommittedBytes, 64<<20)
	setDefault(&cfg.MaxUnappliedBytes, 64<<20)
	setDefault(&cfg.MaxTailBytes, 16<<20)
	setDefault(&cfg.CatchUpBytesPerSecond, 32<<20)
	setDefault(&cfg.TrailingEntries, 10_000)
	return cfg
}

func setDefault[T int | uint64 | time.Duration](field *T, value T) {
	if *field == 0 {
		*field = value
	}
}

// Step feeds one message from a peer into the core. It never blocks and does no I/O; what it wants done is collected for Ready.
// The message must be well-formed ([Message.Validate]); what is well-formed and impossible is refused and reported.
func (c *Core) Step(now time.Duration, m Message) {
	c.advanceClock(now)
	if !c.admit(&m) {
		return
	}

	// "If RPC request or response contains term T > currentTerm: set currentTerm = T, convert to follower" (§5.1). The rule is
	// applied here and nowhere else. Three messages are exempt, each for its reason: a pre-vote request and a granted pre-vote
	// carry a term that nobody has entered; a RequestVote that a sticky server ignores must not raise its term either, or one
	// server that cannot hear the leader would depose it (dissertation §4.2.3).
	if m.Term > c.currentTerm {
		switch b := m.Body.(type) {
		case PreVote:
		case PreVoteReply:
			if !b.Granted {
				c.becomeFollower(m.Term, ReasonHigherTerm)
			}
		case RequestVote:
			if !b.Transfer && c.sticky(m.From) {
				return
			}
			c.becomeFollower(m.Term, ReasonHigherTerm)
		default:
			c.becomeFollower(m.Term, ReasonHigherTerm)
		}
	}

	switch b := m.Body.(type) {
	case PreVote:
		c.handlePreVote(m.Header, b)
	case PreVoteReply:
		c.handlePreVoteReply(m.Header, b)
	case RequestVote:
		c.handleRequestVote(m.Header, b)
	case RequestVoteReply:
		c.handleRequestVoteReply(m.Header, b)
	case AppendEntries:
		c.handleAppendEntries(m.Header, b)
	case AppendEntriesReply:
		c.handleAppendEntriesReply(m.Header, b)
	case InstallSnapshot:
		c.handleInstallSnapshot(m.Header, b)
	case InstallSnapshotReply:
		c.handleInstallSnapshotReply(m.Header, b)
	case FetchEntries:
		c.handleFetchEntries(m.Header, b)
	case FetchEntriesReply:
		c.handleFetchEntriesReply(m.Header, b)
	case TimeoutNow:
		c.handleTimeoutNow(m.Header)
	case TimeoutNowReply: // nothing depends on it: the election itself tells
	default:
		c.refuse(m.From, UnexpectedMessage)
	}
}

// maxTermJump bounds how far one message can move our term: a peer that sends 2⁶⁴-1 would leave no term to elect anybody in.
const maxTermJump = 1 << 32

// admit refuses messages that no correct peer sends to this process.
func (c *Core) admit(m *Message) bool {
	switch {
	case m.To != c.id:
		c.refuse(m.From, WrongRecipient)
		return false
	case m.Term > c.currentTerm && m.Term-c.currentTerm > maxTermJump:
		c.refuse(m.From, TermTooFar)
		return false
	case c.fromRemoved(m):
		c.refuse(m.From, RemovedServer)
		return false
	}
	if p := c.peer(m.From); p != nil {
		if m.Replica == p.replica && m.Incarnation < p.incarnation {
			c.refuse(m.From, DeadIncarnation)
			return false
		}
		c.notePeer(p, m.Replica, m.Incarnation)
	}
	return true
}

// fromRemoved recognises a server that was removed for good and still wants to be elected, or answers with a term that it has raised
// in the attempt: it must not disturb those that stay. What a leader sends is heard from whoever was elected, because its voters
// may know better than we do who is a member; and a removed server's acknowledgements tell its leader that it knows.
func (c *Core) fromRemoved(m *Message) bool {
	if !c.removed(m.From) {
		return false
	}
	switch m.Body.(type) {
	case AppendEntries, InstallSnapshot, TimeoutNow:
		return false
	default:
		return m.Term > c.currentTerm // no later: handleRequestVote and handlePreVote say no
	}
}

// notePeer takes notice of which process of a peer is talking. What a leader believed of its predecessor is forgotten: it may
// have lost a part of its log, and its old matchIndex must never be counted again.
func (c *Core) notePeer(p *peer, replica ReplicaID, incarnation uint64) {
	if p.replica == replica && p.incarnation == incarnation {
		return
	}
	known := p.incarnation != 0 || p.replica != 0
	sameDisk := p.replica == replica
	p.replica, p.incarnation = replica, incarnation
	if p.first == 0 {
		p.first = replica
	}
	if c.role == Leader && known {
		remembered := max(p.matchIndex, p.remembered)
		c.resetProgress(p)
		if sameDisk {
			p.remembered = remembered
		}
	}
}

// refuse reports input that was turned away.
func (c *Core) refuse(from NodeID, why RefusalReason) {
	c.out.Refused = append(c.out.Refused, Refusal{Peer: from, Reason: why})
}

// Tick says that Deadline has passed. Feed messages that are waiting before it: they may show that nothing has timed out.
func (c *Core) Tick(now time.Duration) {
	c.advanceClock(now)
	c.tickRepair()
	if c.role == Leader {
		c.tickLeader()
		return
	}
	switch {
	case now < c.electionDeadline:
	case now-c.electionDeadline > c.cfg.ElectionTimeout/2 && !c.overslept:
		// Our process slept, so the silence was ours, not the leader's. Listen again before disturbing the others; but not for
		// ever, or a cluster of machines that are always late would never have a leader.
		c.resetElectionTimer()
		c.overslept = true
	default:
		c.overslept = false
		c.timeoutElection()
	}
}

// Deadline returns when Tick is wanted next. It changes with every input, and is always later than the last Tick.
func (c *Core) Deadline() time.Duration {
	if c.role == Leader {
		return c.leaderDeadline()
	}
	if c.lacks() {
		return min(c.electionDeadline, c.repair.at)
	}
	return c.electionDeadline
}

func (c *Core) advanceClock(now time.Duration) {
	c.now = max(c.now, now)
	c.touched = true
}

// becomeFollower enters a term, or steps down in the present one. A vote belongs to its term: it is forgotten with the term, and
// only then.
func (c *Core) becomeFollower(term Term, why Reason) {
	assertf(c, term >= c.currentTerm, "term goes back from %d to %d", c.currentTerm, term)
	superseded := term > c.currentTerm
	if superseded {
		c.currentTerm, c.votedFor, c.hardStateDirty = term, "", true
		c.leader = ""
	}
	if c.leader == c.id {
		c.leader = ""
	}
	was := c.role
	c.role = Follower
	switch was {
	case Leader:
		c.stopRecovery()
		c.leaveOffice(superseded)
		c.resetElectionTimer()
	case Candidate, PreCandidate:
		c.resetElectionTimer()
	}
	c.announce(why)
}

// announce tells the owner about the present role and leader.
func (c *Core) announce(why Reason) {
	c.reason = why
	c.out.Events = append(c.out.Events, LeaderChange{Term: c.currentTerm, Leader: c.leader, Role: c.role, Reason: why})
}

// leaveOffice ends what only a leader can carry on. A transfer has done its work if there is a later term; a leader that steps
// down in its own, for want of a quorum or of a disk, has handed over to nobody.
func (c *Core) leaveOffice(superseded bool) {
	for _, r := range c.reads {
		c.out.Reads = append(c.out.Reads, ReadResult{ID: r.id, Err: c.notLeader()})
	}
	c.reads, c.roundWanted = nil, false
	c.confirmedRound = c.round
	if superseded {
		c.endTransfer(nil)
	} else {
		c.endTransfer(ErrTransferFailed)
	}
	c.uncommittedBytes = 0
	for i := range c.peers {
		c.peers[i].progress = progress{}
	}
	c.dropLingering()
}

// notLeader says who leads.
func (c *Core) notLeader() error {
	e := &NotLeaderError{Leader: c.leader, Term: c.currentTerm}
	if s, ok := c.configuration().Server(c.leader); ok {
		e.Address = s.Address
	}
	return e
}

// send queues a message. A message that promises something leaves only after everything that it may depend on is durable: the
// newest write that has been issued, and the one that is about to be, even if the message caused neither (SAFETY inv 11, 12).
func (c *Core) send(to NodeID, term Term, request uint64, b Body) {
	m := c.message(to, term, request, b)
	after := c.log.issuedSeq
	if c.dirty() {
		after++
	}
	if after <= c.log.persistedSeq {
		c.out.Send = append(c.out.Send, m)
		return
	}
	if len(c.deferred) < maxDeferred {
		c.deferred = append(c.deferred, deferredMessage{after: after, m: m})
	}
}

// maxDeferred bounds the messages that wait for the disk. While it hangs, peers repeat their requests; what is more than that is lost,
// as on a network.
const maxDeferred = 4096

// sendNow queues a message that promises nothing, so that it need not wait for the disk.
func (c *Core) sendNow(to NodeID, term Term, request uint64, b Body) {
	c.out.Send = append(c.out.Send, c.message(to, term, request, b))
}

func (c *Core) message(to NodeID, term Term, request uint64, b Body) Message {
	return Message{
		Header: Header{From: c.id, To: to, Replica: c.replica, Incarnation: c.incarnation, Term: term, Request: request},
		Body:   b,
	}
}

// request numbers a request of our own.
func (c *Core) request() uint64 {
	c.nextRequest++
	return c.nextRequest
}

// dirty reports whether there is something to write.
func (c *Core) dirty() bool { return c.hardStateDirty || c.log.dirty() || c.repair.liftFence }

// Persisted reports that all writes up to seq are durable.
func (c *Core) Persisted(now time.Duration, seq uint64) {
	c.advanceClock(now)
	if seq > c.log.issuedSeq {
		brokenf(c, "write %d is persisted, but only %d were issued", seq, c.log.issuedSeq)
	}
	hs, any := c.log.persisted(seq)
	if !any {
		return
	}
	c.durable = hs
	if len(c.log.flights) > 0 {
		c.log.flights[0].begunAt = c.now // the disk makes one write at a time
	}
	c.releaseDeferred()
	c.tryLiftFence()
	c.resolve()
	switch c.role {
	case Candidate:
		c.tallyVotes() // our own vote counts from now on
	case Leader:
		c.advanceCommit() // our own entries count from now on
	}
}

// releaseDeferred lets those messages go whose write is durable. A message of an earlier term is dropped: its receiver lost that
// term's election or office, and the network could have lost the message as well.
func (c *Core) releaseDeferred() {
	n := 0
	for ; n < len(c.deferred) && c.deferred[n].after <= c.log.persistedSeq; n++ {
		if c.deferred[n].m.Term == c.currentTerm {
			c.out.Send = append(c.out.Send, c.deferred[n].m)
		}
	}
	rest := copy(c.deferred, c.deferred[n:])
	clear(c.deferred[rest:])
	c.deferred = c.deferred[:rest]
}

// commitTo advances the commit index and everything that hangs on it.
func (c *Core) commitTo(i Index) {
	if i <= c.commitIndex {
		return
	}
	if i > c.log.last {
		brokenf(c, "commit index %d lies beyond the last entry %d", i, c.log.last)
	}
	if c.role == Leader {
		if lo := max(c.commitIndex+1, c.log.tailFirst()); lo <= i { // what a predecessor left on disk only was never counted
			c.uncommittedBytes -= c.log.size(lo, i+1)
		}
	}
	c.commitIndex = i
	c.configurationCommitted()
}

const maxInt = int(^uint(0) >> 1)

// Applied reports that the state machine has applied, or restored, everything up to index.
func (c *Core) Applied(now time.Duration, index Index) {
	c.advanceClock(now)
	if index > c.handedOut {
		brokenf(c, "index %d is applied, but only %d was handed out", index, c.handedOut)
	}
	c.lastApplied = max(c.lastApplied, index)
	n := 0
	for n < len(c.unapplied) && c.unapplied[n].hi <= c.lastApplied+1 {
		c.unappliedBy -= c.unapplied[n].bytes
		n++
	}
	c.unapplied = append(c.unapplied[:0], c.unapplied[n:]...)
}

// handOutApplies gives committed entries to the state machine, but none that is not durable here: a state machine, and so a
// snapshot, never gets ahead of its own log.
func (c *Core) handOutApplies() {
	for {
		lo := c.handedOut + 1
		hi := c.log.readable(lo, min(c.commitIndex, c.log.stored)+1)
		room := c.cfg.MaxUnappliedBytes - c.unappliedBy
		if lo >= hi || len(c.unapplied) > 0 && room <= 0 {
			return
		}
		es, size, ok := c.log.slice(lo, hi, room)
		if ok {
			hi = lo + Index(len(es))
		} else {
			// No longer in memory, so their size is unknown: one such piece at a time, and nothing behind it.
			if len(c.unapplied) > 0 {
				return
			}
			es, size = nil, c.cfg.MaxUnappliedBytes
			hi = min(hi, c.log.tailFirst())
		}
		c.out.Apply = append(c.out.Apply, Apply{Lo: lo, Hi: hi, Entries: es})
		c.unapplied = append(c.unapplied, unapplied{hi: hi, bytes: size})
		c.unappliedBy += size
		c.handedOut = hi - 1
	}
}

// HasReady reports whether Ready would return anything new.
func (c *Core) HasReady() bool { return c.touched }

// Ready returns what is to be done. It and its slices are valid until the next call of Ready; messages and entries stay valid.
func (c *Core) Ready() *Ready {
	c.touched = false
	if c.role == Leader {
		c.beginRound()
		c.replicate()
	}
	c.issueWrite()
	c.handOutApplies()
	c.trimLog()
	c.out.CommitIndex = c.commitIndex

	c.out, c.handed = c.handed, c.out
	c.out.reset()
	return c.handed
}

const maxWritesInFlight = 1024

// trimLog bounds the entries in memory. A leader keeps what is not committed: it is bounded by MaxUncommittedBytes, and counted by
// looking at the entries.
func (c *Core) trimLog() {
	upTo := c.log.stored
	if c.role == Leader {
		upTo = min(upTo, c.commitIndex)
	}
	c.log.trim(c.cfg.MaxTailBytes, upTo)
}

// issueWrite gathers all that must become durable into one batch. While very many writes are under way, it goes on gathering.
func (c *Core) issueWrite() {
	if !c.dirty() || len(c.log.flights) >= maxWritesInFlight {
		return
	}
	w := &c.out.Write
	hs := HardState{CurrentTerm: c.currentTerm, VotedFor: c.votedFor}
	if c.hardStateDirty {
		copied := hs
		w.HardState = &copied
		c.hardStateDirty = false
	}
	if c.repair.liftFence {
		w.Fence, c.repair.liftFence = &EntryID{}, false
	}
	w.Seq = c.log.issue(c.now, hs, &w.Batch)
}

// StorageState reports a change in the health of the disk.
func (c *Core) StorageState(now time.Duration, s StorageState) {
	c.advanceClock(now)
	c.storage = s
	if s == StorageFull {
		c.compact() // no command is appended any more, so no later snapshot would do it
	}
	if s == StorageFailed {
		c.stopLeading(ReasonStorage)
	}
}

// Abstain asks the core not to lead: it hands leadership over, and does not campaign until told otherwise.
func (c *Core) Abstain(now time.Duration, on bool) {
	c.advanceClock(now)
	c.abstaining = on
	if on {
		c.stopLeading(ReasonAbstained)
	}
}

// stopLeading hands leadership over, or gives up an election: won later, it would bring this server into office after all.
func (c *Core) stopLeading(why Reason) {
	switch c.role {
	case Leader:
		c.handOver(why)
	case Candidate, PreCandidate:
		c.becomeFollower(c.currentTerm, why)
	}
}

// TermAt returns the term of an entry in the log. ok is false if it is not there, or compacted.
func (c *Core) TermAt(index Index) (t Term, ok bool) { return c.log.term(index) }
