package raft

import (
	"container/heap"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// A small seeded simulation: several cores on one goroutine with virtual time, a network that loses, duplicates, delays and
// reorders, and disks that lose what was not synced when their server crashes. One seed decides everything, the tuning knobs
// included. The package raftsim will be its full form.
//
//	go test -run TestSimulation -seeds 5000
//	go test -run TestSimulation -seed 1234 -v     one seed with its trace
var (
	simSeeds = flag.Uint64("seeds", 400, "seeds that TestSimulation runs")
	simSeed  = flag.Uint64("seed", 0, "run this one seed only, and print its trace with -v")
)

func TestSimulation(t *testing.T) {
	if *simSeed != 0 {
		s := newSimulation(*simSeed)
		if testing.Verbose() {
			s.trace = func(format string, args ...any) { t.Logf(format, args...) }
		}
		if err := s.run(); err != nil {
			t.Fatal(err)
		}
		return
	}
	seen := map[string]int{}
	for seed := uint64(1); seed <= *simSeeds; seed++ {
		s := newSimulation(seed)
		if err := s.run(); err != nil {
			t.Fatalf("seed %d: %v\nagain with its trace: go test -run TestSimulation -seed %d -v", seed, err, seed)
		}
		for what, n := range s.seen {
			seen[what] += n
		}
	}
	// A simulation that never gets into these situations proves nothing about them.
	for _, what := range []string{"leader elected", "crash of a leader", "crash during a write", "command committed", "command dropped",
		"read confirmed", "read failed", "snapshot installed", "entries loaded", "configuration changed", "transfer completed",
		"configuration rolled back", "message lost", "message duplicated", "suspicion", "message delayed across elections",
		"read begun at a stale leader", "commit in a joint configuration", "election in a joint configuration", "old entries sent again",
		"leader cut off", "snapshot arrived late"} {
		if seen[what] == 0 && *simSeeds >= 200 {
			t.Errorf("no seed of %d got into this situation: %s", *simSeeds, what)
		}
	}
	t.Logf("%d seeds: %v", *simSeeds, seen)
}

// Same seed, same history (SAFETY inv 31).
func TestSimulationIsDeterministic(t *testing.T) {
	for seed := uint64(1); seed <= 5; seed++ {
		var hashes [2]uint64
		for i := range hashes {
			s, h := newSimulation(seed), fnv.New64a()
			s.trace = func(format string, args ...any) { fmt.Fprintf(h, format, args...) }
			if err := s.run(); err != nil {
				t.Fatal(err)
			}
			hashes[i] = h.Sum64()
		}
		if hashes[0] != hashes[1] {
			t.Fatalf("seed %d gave two histories", seed)
		}
	}
}

// simServer is one server: a core, its disk and its state machine.
type simServer struct {
	id      NodeID
	core    *Core // nil while it is down
	run     int   // counts the starts, so that events of an earlier run are dropped
	cfg     CoreConfig
	seenCfg Index          // to notice roll-backs
	inForce *Configuration // when the present input came
	acked   EntryID        // acknowledged to the leader of that term: it stays in the log as long as the term lasts

	// The disk.
	hardState    HardState
	base         EntryID
	entries      []Entry // behind base
	snapshots    []simSnapshot
	pending      []Write // issued and not yet durable
	incarnation  uint64
	replica      ReplicaID
	brokenUntil  time.Duration
	syncDuration time.Duration

	// The state machine, and what waits for it.
	applied Index
	state   uint64
	queue   []Apply
}

type simSnapshot struct {
	meta  SnapshotMeta
	state uint64
}

func (v *simServer) last() Index { return v.base.Index + Index(len(v.entries)) }

type simEvent struct {
	at  time.Duration
	seq uint64
	do  func()
}

type simEvents []simEvent

func (h simEvents) Len() int { return len(h) }
func (h simEvents) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}
func (h simEvents) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *simEvents) Push(x any)   { *h = append(*h, x.(simEvent)) }
func (h *simEvents) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

type simRead struct {
	server *simServer
	run    int
	atomic Index // the highest index known committed anywhere when the read began
}

type simulation struct {
	random  *rand.Rand
	now     time.Duration
	events  simEvents
	nextSeq uint64
	servers []*simServer
	healed  bool
	seen    map[string]int
	trace   func(format string, args ...any)
	failure error

	loss, dup float64
	delay     time.Duration
	late      float64 // of the messages, and of the snapshots: delayed by seconds, across elections
	reading   float64 // of the client's visits
	cut       map[[2]NodeID]bool

	leaders      map[Term]NodeID     // inv 1
	newestLeader LeaderChange        // of the highest term
	votes        map[string]NodeID   // inv 3, by server and term
	committed    map[Index]Entry     // inv 7
	highest      Index               // of committed
	states       map[Index]uint64    // inv 9, 19
	proposals    map[EntryID]string  // appended by a leader
	reads        map[uint64]*simRead // under way
	nextRead     uint64
	nextCmd      int
	nextNode     int
}

func newSimulation(seed uint64) *simulation {
	r := rand.New(rand.NewPCG(seed, 0x5eed))
	s := &simulation{random: r, seen: map[string]int{}, trace: func(string, ...any) {}, cut: map[[2]NodeID]bool{},
		leaders: map[Term]NodeID{}, votes: map[string]NodeID{}, committed: map[Index]Entry{}, states: map[Index]uint64{},
		proposals: map[EntryID]string{}, reads: map[uint64]*simRead{}}
	s.loss, s.dup = pick(r, 0, 0.02, 0.1, 0.3), pick(r, 0, 0.02, 0.2)
	s.delay = pick(r, time.Millisecond, 20*time.Millisecond, 200*time.Millisecond)
	s.late = pick(r, 0, 0.01, 0.05, 0.2)
	s.reading = pick(r, 0.01, 0.5) // with few reads the last round is often confirmed long before the next one begins
	n := pick(r, 1, 2, 3, 3, 4, 5)
	conf := Configuration{ClusterID: "sim"}
	for i := range n {
		sv := Server{ID: NodeID(fmt.Sprintf("n%d", i+1)), Replica: ReplicaID(i + 1), Priority: uint8(pick(r, 0, 0, 0, 1, 2))}
		if r.IntN(3) == 0 {
			sv.Replica = 0 // to be learned
		}
		if i > 2 && r.IntN(2) == 0 {
			sv.Suffrage = NonVoter
		}
		conf.Servers = append(conf.Servers, sv)
	}
	first := newEntry(EntryConfiguration, conf.AppendBinary(nil))
	first.stamp(EntryID{Term: 1, Index: 1})
	s.committed[1], s.highest, s.states[1] = first, 1, 0
	knobs := CoreConfig{
		HeartbeatInterval: 100 * time.Millisecond, ElectionTimeout: pick(r, 300*time.Millisecond, time.Second),
		DiskDeadline:  pick(r, 0, 500*time.Millisecond),
		MaxBatchBytes: pick(r, 1, 1, 200, 1<<20), MaxInflightBytes: pick(r, 1, 300, 4<<20), MaxInflightMessages: pick(r, 1, 2, 8, 256),
		MaxUncommittedBytes: pick(r, 500, 64<<20), MaxUnappliedBytes: pick(r, 1, 500, 64<<20), MaxTailBytes: pick(r, 1, 300, 16<<20),
		TrailingEntries: pick(r, uint64(1), 3, 20), DisablePreVote: r.IntN(4) == 0, DisableCheckQuorum: r.IntN(8) == 0,
		CatchUpBytesPerSecond: pick(r, 10_000, 32<<20),
	}
	for _, sv := range conf.Servers {
		v := s.addServer(sv.ID, knobs)
		v.entries, v.hardState = []Entry{first}, HardState{CurrentTerm: 1}
		s.start(v)
	}
	s.after(0, s.client)
	s.after(0, s.nemesis)
	return s
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func (s *simulation) addServer(id NodeID, knobs CoreConfig) *simServer {
	s.nextNode++
	knobs.ID = id
	v := &simServer{id: id, cfg: knobs, replica: ReplicaID(s.nextNode), syncDuration: pick(s.random, 0, time.Millisecond, 30*time.Millisecond)}
	s.servers = append(s.servers, v)
	return v
}

func (s *simulation) server(id NodeID) *simServer {
	for _, v := range s.servers {
		if v.id == id {
			return v
		}
	}
	return nil
}

func (s *simulation) after(d time.Duration, do func()) {
	s.nextSeq++
	heap.Push(&s.events, simEvent{at: s.now + d, seq: s.nextSeq, do: do})
}

func (s *simulation) upTo(d time.Duration) time.Duration {
	return time.Duration(s.random.Int64N(int64(d) + 1))
}

func (s *simulation) failf(format string, args ...any) {
	if s.failure == nil {
		s.failure = fmt.Errorf("at %v: "+format, append([]any{s.now}, args...)...)
	}
}

const simFaults, simTotal = 20 * time.Second, 60 * time.Second

// run lets faults happen for a while, then heals everything and expects the cluster to converge (SAFETY inv 30).
func (s *simulation) run() error {
	s.after(simFaults, s.heal)
	for steps := 0; len(s.events) > 0 && s.failure == nil; steps++ {
		e := heap.Pop(&s.events).(simEvent)
		s.now = e.at
		if s.now > simTotal {
			break
		}
		e.do()
		if s.healed && s.now > simFaults+5*time.Second && s.converged() {
			return s.failure
		}
		if steps > 3_000_000 {
			s.failf("no end after %d events: messages breed messages", steps)
		}
	}
	if s.failure == nil && !s.converged() {
		var b strings.Builder
		for _, v := range s.servers {
			fmt.Fprintf(&b, "\n  %v, applied %d, members %v", v.core, v.applied, v.core.configuration().Voters())
			for _, p := range v.core.Status(s.now).Peers {
				fmt.Fprintf(&b, "\n      %+v", p)
			}
		}
		s.failf("not converged after the faults have ended%s", b.String())
	}
	return s.failure
}

// start runs a server from its disk.
func (s *simulation) start(v *simServer) {
	v.run++
	v.incarnation++
	rec := Recovered{
		Identity:  Identity{Cluster: "sim", Node: v.id, Replica: v.replica, Incarnation: v.incarnation},
		HardState: v.hardState, Compacted: v.base, LastIndex: v.last(),
	}
	if n := len(v.snapshots); n > 0 {
		rec.Snapshot = v.snapshots[n-1].meta
		v.applied, v.state = rec.Snapshot.Index, v.snapshots[n-1].state
	} else {
		v.applied, v.state = 0, 0
	}
	last := Term(0)
	for _, e := range v.entries {
		if e.Term != last {
			rec.Terms = append(rec.Terms, TermStart{Index: e.Index, Term: e.Term})
			last = e.Term
		}
		if e.Type == EntryConfiguration {
			rec.Configurations = append(rec.Configurations, e)
		}
	}
	v.pending, v.queue, v.brokenUntil, v.acked = nil, nil, 0, EntryID{}
	v.cfg.Seed = s.random.Uint64()
	core, err := NewCore(v.cfg, s.now, &rec)
	if err != nil {
		s.failf("start %s: %v", v.id, err)
		return
	}
	v.core = core
	s.trace("%v start %v", s.now, core)
	s.carryOut(v)
	s.tick(v, v.run)
	for _, w := range s.servers {
		if w != v && w.core != nil {
			s.input(w, func(c *Core) { c.PeerUp(s.now, v.id, v.replica, v.incarnation) })
		}
	}
}

func (s *simulation) tick(v *simServer, run int) {
	if v.run != run || v.core == nil {
		return
	}
	if d := v.core.Deadline(); d > s.now {
		s.after(d-s.now, func() { s.tick(v, run) })
		return
	}
	s.input(v, func(c *Core) { c.Tick(s.now) })
	if v.core != nil {
		d := v.core.Deadline()
		if d <= s.now {
			s.failf("%s: the deadline %v is not later than the tick", v.id, d)
		}
		s.after(max(d-s.now, 1), func() { s.tick(v, run) })
	}
}

// input feeds one input, checks the states before and after, and carries out what the core wants.
func (s *simulation) input(v *simServer, do func(*Core)) {
	before := v.core.Clone()
	v.inForce = before.configuration()
	do(v.core)
	if d := v.core.Deadline(); d < before.Deadline() {
		run := v.run
		s.after(max(d-s.now, 0), func() { s.tick(v, run) }) // it wants to be woken earlier than it said before
	}
	s.carryOut(v)
	if v.core.currentTerm == v.acked.Term && v.core.log.last < v.acked.Index {
		s.failf("inv 13: %s acknowledged %v, and its log ends at %d in the same term", v.id, v.acked, v.core.log.last)
	}
	if err := errors.Join(v.core.Check(), CheckStep(before, v.core)); err != nil {
		s.failf("%s: %v\nbefore: %v\nafter:  %v", v.id, err, before, v.core)
	}
}

func (s *simulation) carryOut(v *simServer) {
	run := v.run
	for v.core.HasReady() {
		rd := v.core.Ready()
		if rd.Write.Seq != 0 {
			v.pending = append(v.pending, rd.Write)
			seq := rd.Write.Seq
			s.after(s.upTo(v.syncDuration), func() { s.sync(v, run, seq) })
		}
		for _, m := range rd.Send {
			s.checkPromise(v, m)
			s.send(m)
		}
		for _, l := range rd.Loads {
			s.after(s.upTo(5*time.Millisecond), func() { s.load(v, run, l) })
		}
		for _, a := range rd.Apply {
			v.queue = append(v.queue, a)
			s.after(s.upTo(10*time.Millisecond), func() { s.apply(v, run) })
		}
		for _, t := range rd.Snapshots {
			s.after(s.upTo(50*time.Millisecond), func() { s.openSnapshot(v, run, t) })
		}
		for _, r := range rd.Reads {
			s.endRead(v, r)
		}
		if rd.Compact > v.base.Index {
			n := int(rd.Compact - v.base.Index)
			v.base = v.entries[n-1].ID()
			v.entries = v.entries[n:]
		}
		for _, e := range rd.Events {
			s.event(v, e)
		}
		if len(rd.Refused) > 0 {
			for _, r := range rd.Refused {
				if r.Reason != DeadIncarnation && r.Reason != RemovedServer {
					s.failf("%s refused input of %s: %v", v.id, r.Peer, r.Reason)
				}
			}
		}
		s.noteCommit(v, rd.CommitIndex)
	}
}

func (s *simulation) event(v *simServer, e Event) {
	s.trace("%v %s %T %+v", s.now, v.id, e, e)
	switch e := e.(type) {
	case LeaderChange:
		if e.Role == Leader {
			s.seen["leader elected"]++
			if other, ok := s.leaders[e.Term]; ok && other != v.id {
				s.failf("inv 1: term %d has two leaders, %s and %s", e.Term, other, v.id)
			}
			s.leaders[e.Term] = v.id
			if e.Term > s.newestLeader.Term {
				s.newestLeader = e
			}
			s.checkElection(v, e.Term)
			for i := v.core.log.base.Index + 1; i <= s.highest; i++ { // inv 6
				if t, ok := v.core.TermAt(i); !ok || t != s.committed[i].Term {
					s.failf("inv 6: leader %s of term %d lacks the committed entry %d@%d", v.id, e.Term, i, s.committed[i].Term)
					return
				}
			}
		}
	case ConfigurationChange:
		if e.Index < v.seenCfg {
			s.seen["configuration rolled back"]++
		}
		v.seenCfg = e.Index
	case TransferEnded:
		if e.Err == nil {
			s.seen["transfer completed"]++
		}
	case ElectionStarted:
		if e.Reason == ReasonSuspicion {
			s.seen["suspicion"]++
		}
	}
}

// checkPromise looks at the disk before a message leaves (SAFETY inv 3, 11, 12).
func (s *simulation) checkPromise(v *simServer, m Message) {
	s.trace("%v %s -> %s %T%+v term %d req %d", s.now, m.From, m.To, m.Body, m.Body, m.Term, m.Request)
	if err := m.Validate(); err != nil {
		s.failf("%v", err)
	}
	durableTerm := func() {
		if v.hardState.CurrentTerm < m.Term {
			s.failf("inv 12: %s sends %T in term %d, but only term %d is durable", v.id, m.Body, m.Term, v.hardState.CurrentTerm)
		}
	}
	switch b := m.Body.(type) {
	case RequestVote:
		durableTerm()
		s.vote(v, m.Term, v.id)
	case RequestVoteReply:
		durableTerm()
		if b.Granted {
			if v.hardState != (HardState{CurrentTerm: m.Term, VotedFor: m.To}) {
				s.failf("inv 12: %s votes for %s in term %d, but %v is durable", v.id, m.To, m.Term, v.hardState)
			}
			s.vote(v, m.Term, m.To)
		}
	case AppendEntries:
		// A heartbeat travels on a lane of its own: it may speak of nothing but what its receiver is known to hold.
		if len(b.Entries) == 0 && b.LeaderCommit > b.PrevLogIndex {
			s.failf("%s tells %s of commit index %d in an empty request behind %d", v.id, m.To, b.LeaderCommit, b.PrevLogIndex)
		}
	case AppendEntriesReply:
		durableTerm()
		s.acknowledge(v, m.Term, b.MatchIndex)
		if b.Success && b.MatchIndex > v.last() {
			s.failf("inv 11: %s acknowledges %d, but its disk ends at %d", v.id, b.MatchIndex, v.last())
		}
	case InstallSnapshotReply:
		durableTerm()
		s.acknowledge(v, m.Term, b.MatchIndex)
		if b.MatchIndex > v.last() {
			s.failf("inv 11: %s acknowledges snapshot %d, but its disk ends at %d", v.id, b.MatchIndex, v.last())
		}
	}
}

func (s *simulation) acknowledge(v *simServer, t Term, match Index) {
	if t > v.acked.Term {
		v.acked = EntryID{Term: t}
	}
	if t == v.acked.Term {
		v.acked.Index = max(v.acked.Index, match)
	}
}

// checkElection counts the votes that were durable when they left, in every half of the configuration in force (§6).
func (s *simulation) checkElection(v *simServer, t Term) {
	conf := v.core.configuration()
	if conf.Joint() {
		s.seen["election in a joint configuration"]++
	}
	s.checkMajorities(conf, func(id NodeID) bool { return s.votes[voteKey(id, t)] == v.id || id == v.id },
		"inv 1: %s leads in term %d, elected", v.id, t)
}

func (s *simulation) checkMajorities(conf *Configuration, has func(NodeID) bool, what string, args ...any) {
	for half, counted := range [...]func(*Server) bool{(*Server).votesNew, (*Server).votesOld} {
		n, yes := 0, 0
		for i := range conf.Servers {
			if sv := &conf.Servers[i]; counted(sv) {
				n++
				if has(sv.ID) {
					yes++
				}
			}
		}
		if n > 0 && yes <= n/2 {
			s.failf(what+" by %d of the %d voters of half %d", append(args, yes, n, half)...)
		}
	}
}

func voteKey(id NodeID, t Term) string { return fmt.Sprintf("%s %d", id, t) }

func (s *simulation) vote(v *simServer, t Term, candidate NodeID) {
	key := voteKey(v.id, t)
	if other, ok := s.votes[key]; ok && other != candidate {
		s.failf("inv 3: %s votes for %s and %s in term %d", v.id, other, candidate, t)
	}
	s.votes[key] = candidate
}

// noteCommit compares what a server takes for committed with what others did (SAFETY inv 7), and looks whether a majority holds it.
func (s *simulation) noteCommit(v *simServer, commit Index) {
	for i := s.highest + 1; i <= commit; i++ {
		es, _, ok := v.core.log.slice(i, i+1, 1)
		if !ok {
			at := int(i-v.base.Index) - 1
			if at < 0 || at >= len(v.entries) {
				s.failf("%s commits %d, which it does not hold", v.id, i)
				return
			}
			es = v.entries[at : at+1]
		}
		s.committed[i], s.highest = es[0], i
		s.seen["command committed"]++
		if v.inForce.Joint() {
			s.seen["commit in a joint configuration"]++
		}
		s.checkMajorities(v.inForce, func(id NodeID) bool {
			w := s.server(id)
			at := int(i-w.base.Index) - 1
			return i <= w.base.Index || at < len(w.entries) && w.entries[at].ID() == es[0].ID()
		}, "inv 13: %s takes %v for committed, which is durable", v.id, es[0].ID())
	}
	for i := max(v.core.log.base.Index+1, commit-min(commit, 20)); i <= commit; i++ {
		if t, ok := v.core.TermAt(i); ok && i > 0 && t != s.committed[i].Term {
			s.failf("inv 7: %s takes %d@%d for committed, but %d@%d is", v.id, i, t, i, s.committed[i].Term)
		}
	}
}

// sync completes the writes up to seq: they were one at a time, in order.
func (s *simulation) sync(v *simServer, run int, seq uint64) {
	if v.run != run || v.core == nil {
		return
	}
	if s.now < v.brokenUntil {
		s.after(v.brokenUntil-s.now, func() { s.sync(v, run, seq) })
		return
	}
	done := false
	for len(v.pending) > 0 && v.pending[0].Seq <= seq {
		s.write(v, v.pending[0].Batch)
		v.pending, done = v.pending[1:], true
	}
	if done {
		s.input(v, func(c *Core) { c.Persisted(s.now, seq) })
	}
}

// write makes one batch durable, and checks that it is one that a log can take.
func (s *simulation) write(v *simServer, b Batch) {
	if b.HardState != nil {
		if b.HardState.CurrentTerm < v.hardState.CurrentTerm {
			s.failf("inv 2: the term of %s goes back on disk", v.id)
		}
		v.hardState = *b.HardState
	}
	if b.TruncateFrom != 0 {
		v.entries = slices.Clone(v.entries[:b.TruncateFrom-v.base.Index-1])
	}
	if b.Snapshot != nil {
		keep := v.entries[:0:0]
		if at := int(b.Snapshot.Index-v.base.Index) - 1; at >= 0 && at < len(v.entries) && v.entries[at].ID() == b.Snapshot.ID() {
			keep = v.entries[at+1:]
		}
		v.base, v.entries = b.Snapshot.ID(), keep
	}
	for _, e := range b.Entries {
		if e.Index != v.last()+1 {
			s.failf("%s: write of %v behind %d", v.id, e.ID(), v.last())
			return
		}
		v.entries = append(v.entries, e)
	}
}

func (s *simulation) load(v *simServer, run int, l Load) {
	if v.run != run || v.core == nil {
		return
	}
	if l.Lo <= v.base.Index {
		s.input(v, func(c *Core) { c.LoadFailed(s.now, l.ID, LoadCompacted) })
		return
	}
	if l.Hi > v.last()+1 || l.Lo >= l.Hi {
		s.failf("%s: load [%d,%d) of a disk that ends at %d", v.id, l.Lo, l.Hi, v.last())
		return
	}
	s.seen["entries loaded"]++
	es := v.entries[l.Lo-v.base.Index-1 : l.Hi-v.base.Index-1]
	n, size := 1, es[0].Size()
	for n < len(es) && size+es[n].Size() <= l.MaxBytes {
		size += es[n].Size()
		n++
	}
	s.input(v, func(c *Core) { c.Loaded(s.now, l.ID, slices.Clone(es[:n])) })
}

// apply carries out the next piece of work of a state machine whose state is a hash of all commands so far.
func (s *simulation) apply(v *simServer, run int) {
	if v.run != run || v.core == nil || len(v.queue) == 0 {
		return
	}
	a := v.queue[0]
	v.queue = v.queue[1:]
	if a.Restore != nil {
		i := slices.IndexFunc(v.snapshots, func(sn simSnapshot) bool { return sn.meta.Index == a.Restore.Index })
		if i < 0 {
			s.failf("%s: restore of snapshot %d, which is not there", v.id, a.Restore.Index)
			return
		}
		v.applied, v.state = a.Restore.Index, v.snapshots[i].state
		s.seen["snapshot installed"]++
	} else {
		es := a.Entries
		if es == nil {
			if a.Lo <= v.base.Index && slices.ContainsFunc(v.queue, func(b Apply) bool { return b.Restore != nil }) {
				return // an installed snapshot has replaced the log meanwhile, and is next in the queue
			}
			if a.Lo <= v.base.Index || a.Hi > v.last()+1 {
				s.failf("%s: apply of [%d,%d), the disk has (%d,%d]", v.id, a.Lo, a.Hi, v.base.Index, v.last())
				return
			}
			es = v.entries[a.Lo-v.base.Index-1 : a.Hi-v.base.Index-1]
		}
		for i := range es {
			if es[i].Index != v.applied+1 || es[i].Index > v.last() {
				s.failf("inv 9: %s applies %v behind %d, durable up to %d", v.id, es[i].ID(), v.applied, v.last())
				return
			}
			h := fnv.New64a()
			fmt.Fprint(h, v.state, es[i].Type, string(es[i].Data))
			v.applied = es[i].Index
			if es[i].Index > 1 {
				v.state = h.Sum64()
			}
			if st, ok := s.states[v.applied]; ok && st != v.state {
				s.failf("inv 7: %s applied another command at %d", v.id, v.applied)
			}
			s.states[v.applied] = v.state
		}
	}
	applied := v.applied
	s.input(v, func(c *Core) { c.Applied(s.now, applied) })
	if v.core == nil || s.random.IntN(15) != 0 {
		return
	}
	if meta, ok := v.core.SnapshotMeta(applied); ok {
		meta.Size = 8
		v.keep(simSnapshot{meta, v.state})
		s.input(v, func(c *Core) { c.SnapshotTaken(s.now, meta) })
	}
}

// keep stores a snapshot; the two newest stay.
func (v *simServer) keep(sn simSnapshot) {
	if n := len(v.snapshots); n > 0 && v.snapshots[n-1].meta.Index >= sn.meta.Index {
		return
	}
	v.snapshots = append(v.snapshots, sn)
	if n := len(v.snapshots); n > 2 {
		v.snapshots = v.snapshots[n-2:]
	}
}

// openSnapshot begins to send a snapshot, if it is still there. Its sender may lose patience, and it arrives all the same.
func (s *simulation) openSnapshot(v *simServer, run int, t SnapshotTransfer) {
	if v.run != run || v.core == nil {
		return
	}
	index := t.Message.Body.(InstallSnapshot).Meta.Index
	i := slices.IndexFunc(v.snapshots, func(sn simSnapshot) bool { return sn.meta.Index == index })
	if i < 0 || s.random.Float64() < s.loss {
		s.input(v, func(c *Core) { c.SnapshotFailed(s.now, t.ID) })
		return
	}
	sn := v.snapshots[i]
	deliver := func() bool {
		m, w := t.Message, s.server(t.Message.To)
		if w.core == nil || s.cut[[2]NodeID{m.From, m.To}] {
			return false
		}
		if w.core.WantsSnapshot(m) {
			w.keep(sn)
			if w.snapshots[len(w.snapshots)-1].meta.Index == index {
				s.input(w, func(c *Core) { c.Step(s.now, m) })
			}
		}
		return true
	}
	if !s.healed && s.random.Float64() < s.late {
		s.after(s.upTo(2*time.Second), func() {
			if deliver() {
				s.seen["snapshot arrived late"]++
			}
		})
		s.input(v, func(c *Core) { c.SnapshotFailed(s.now, t.ID) })
		return
	}
	s.after(s.upTo(s.delay), func() {
		arrived := deliver()
		if v.run != run || v.core == nil {
			return
		}
		s.input(v, func(c *Core) {
			if arrived {
				c.SnapshotSent(s.now, t.ID)
			} else {
				c.SnapshotFailed(s.now, t.ID)
			}
		})
	})
}

// send puts a message on the network.
func (s *simulation) send(m Message) {
	copies := 1
	if !s.healed && s.random.Float64() < s.loss {
		s.seen["message lost"]++
		return
	}
	if !s.healed && s.random.Float64() < s.dup {
		s.seen["message duplicated"]++
		copies = 2
	}
	delay := s.delay
	if s.healed {
		delay = 10 * time.Millisecond
	}
	for range copies {
		d := s.upTo(delay)
		if !s.healed && s.random.Float64() < s.late {
			d = s.upTo(3 * time.Second)
		}
		sent := s.highestTerm()
		s.after(d, func() {
			if s.highestTerm() > sent {
				s.seen["message delayed across elections"]++
			}
			if v := s.server(m.To); v != nil && v.core != nil && !s.cut[[2]NodeID{m.From, m.To}] {
				s.input(v, func(c *Core) { c.Step(s.now, m) })
			}
		})
	}
}
