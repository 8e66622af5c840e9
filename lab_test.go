package raft

import (
	"bytes"
	"fmt"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// lab is a bench with a few cores on it, for tests in which the order of messages, writes and crashes is the point. Nothing happens
// by itself: the test delivers every message, ends every write and moves the clock. After every step each core is checked.
type lab struct {
	t       testing.TB
	now     time.Duration
	cfg     CoreConfig
	conf    Configuration
	servers map[NodeID]*labServer
	wire    []Message          // sent, and neither delivered nor lost
	cut     map[[2]NodeID]bool // messages on this way are lost
	said    []string           // what happened since the last call of story
	leaders map[Term]NodeID    // SAFETY inv 1
	truth   map[Index]EntryID  // what was applied anywhere; SAFETY inv 7
}

// labServer is one core with its disk.
type labServer struct {
	lab       *lab
	id        NodeID
	core      *Core
	disk      *labDisk
	up        bool
	slow      bool // writes wait for persist
	writes    []Write
	loads     []Load // served at once, unless holdLoads
	holdLoads bool
	transfers []SnapshotTransfer
	applied   []Entry
	restored  []Index
	holdApply bool
	applies   []Apply
	reads     []ReadResult
	events    []Event
	refused   []Refusal
	compacted Index
	peers     []Server
}

// labDisk is what survives a crash.
type labDisk struct {
	identity  Identity
	hard      HardState
	compacted EntryID
	entries   []Entry
	snapshot  SnapshotMeta
	damaged   map[Index]bool // entries that cannot be read
	configure bool           // Recovered says that damage may hide a configuration
	fence     EntryID
}

func (d *labDisk) last() EntryID {
	if n := len(d.entries); n > 0 {
		return d.entries[n-1].ID()
	}
	return d.compacted
}

func (d *labDisk) write(b Batch) {
	if b.HardState != nil {
		d.hard = *b.HardState
	}
	if b.TruncateFrom != 0 {
		d.entries = d.entries[:b.TruncateFrom-d.compacted.Index-1]
		for i := range d.damaged {
			if i >= b.TruncateFrom {
				delete(d.damaged, i)
			}
		}
	}
	if b.Snapshot != nil {
		d.install(b.Snapshot.ID())
	}
	for i := range b.Entries {
		if want := d.last().Index + 1; b.Entries[i].Index != want {
			panic(fmt.Sprintf("write of entry %v to a log that wants %d", b.Entries[i].ID(), want))
		}
		d.entries = append(slices.Clip(d.entries), b.Entries[i])
	}
	for _, e := range b.Repairs {
		at := e.Index - d.compacted.Index - 1
		if d.entries[at].ID() != e.ID() {
			panic(fmt.Sprintf("repair of entry %v with %v", d.entries[at].ID(), e.ID()))
		}
		d.entries = slices.Clone(d.entries)
		d.entries[at] = e
		delete(d.damaged, e.Index)
	}
	if b.Fence != nil {
		d.fence = *b.Fence
	}
}

// install begins the log behind a snapshot, and keeps what follows if the log holds the snapshot's last entry.
func (d *labDisk) install(id EntryID) {
	if n := id.Index - d.compacted.Index; id.Index > d.compacted.Index && n <= Index(len(d.entries)) && d.entries[n-1].ID() == id {
		d.compacted, d.entries = id, d.entries[n:]
		return
	}
	d.compacted, d.entries = id, nil
}

func (d *labDisk) compact(to Index) {
	if to <= d.compacted.Index {
		return
	}
	n := to - d.compacted.Index
	d.compacted, d.entries = d.entries[n-1].ID(), d.entries[n:]
}

func (d *labDisk) recovered() *Recovered {
	r := &Recovered{Identity: d.identity, HardState: d.hard, Snapshot: d.snapshot, Compacted: d.compacted, LastIndex: d.last().Index, Fence: d.fence}
	for i := range d.entries {
		e := d.entries[i]
		if d.damaged[e.Index] {
			if n := len(r.Damaged); n > 0 && r.Damaged[n-1].Last+1 == e.Index {
				r.Damaged[n-1].Last = e.Index
			} else {
				r.Damaged = append(r.Damaged, Damage{First: e.Index, Last: e.Index, MayConfigure: d.configure})
			}
		}
		if n := len(r.Terms); n == 0 || r.Terms[n-1].Term != e.Term {
			r.Terms = append(r.Terms, TermStart{Index: e.Index, Term: e.Term})
		}
		if e.Type == EntryConfiguration && !d.damaged[e.Index] {
			r.Configurations = append(r.Configurations, e)
		}
	}
	return r
}

const labReplica = 1000 // the replica of server x is labReplica + x[0]

func labServerNamed(id string, suffrage Suffrage) Server {
	return Server{ID: NodeID(id), Address: id + ":1", Suffrage: suffrage, Replica: ReplicaID(labReplica + int(id[0]))}
}

// labConfiguration reads "a b c | d": voters, then learners.
func labConfiguration(members string) Configuration {
	conf := Configuration{ClusterID: "lab"}
	voters, learners, _ := strings.Cut(members, "|")
	for _, id := range strings.Fields(voters) {
		conf.Servers = append(conf.Servers, labServerNamed(id, Voter))
	}
	for _, id := range strings.Fields(learners) {
		conf.Servers = append(conf.Servers, labServerNamed(id, NonVoter))
	}
	conf.sortServers()
	return conf
}

// newLab makes a lab for these members, none of them started. Every knob has its default, unless changed.
func newLab(t testing.TB, members string, change ...func(*CoreConfig)) *lab {
	l := &lab{t: t, now: time.Second, conf: labConfiguration(members), servers: map[NodeID]*labServer{},
		cut: map[[2]NodeID]bool{}, leaders: map[Term]NodeID{}, truth: map[Index]EntryID{}}
	for _, f := range change {
		f(&l.cfg)
	}
	return l
}

// newCluster makes a lab and starts all of its members; each log holds the bootstrap configuration at 1@1.
func newCluster(t testing.TB, members string, change ...func(*CoreConfig)) *lab {
	l := newLab(t, members, change...)
	for i := range l.conf.Servers {
		l.start(string(l.conf.Servers[i].ID))
	}
	return l
}

// newServer makes a lab in which only the first member runs: the test plays the others.
func newServer(t testing.TB, members string, change ...func(*CoreConfig)) (*lab, *labServer) {
	l := newLab(t, members, change...)
	return l, l.start(strings.Fields(members)[0])
}

// entry makes the entry that the labs' logs hold at this place: 1 is the bootstrap configuration, the others are commands.
func (l *lab) entry(term Term, index Index) Entry {
	e := NewCommand(fmt.Appendf(nil, "%d@%d", index, term))
	if index == 1 {
		e = newEntry(EntryConfiguration, l.conf.AppendBinary(nil))
	}
	e.stamp(EntryID{Term: term, Index: index})
	return e
}

// entries makes entries of these terms, from first on.
func (l *lab) entries(first Index, terms ...Term) []Entry {
	var es []Entry
	for i, t := range terms {
		es = append(es, l.entry(t, first+Index(i)))
	}
	return es
}

func labCommand(term Term, index Index, data string) Entry {
	e := NewCommand([]byte(data))
	e.stamp(EntryID{Term: term, Index: index})
	return e
}

func labConfigurationEntry(term Term, index Index, conf Configuration) Entry {
	e := newEntry(EntryConfiguration, conf.AppendBinary(nil))
	e.stamp(EntryID{Term: term, Index: index})
	return e
}

// provision gives a server a disk with a log of these terms and a hard state, before it is started.
func (l *lab) provision(id string, hard HardState, terms ...Term) *labServer {
	s := &labServer{lab: l, id: NodeID(id), disk: &labDisk{
		identity: Identity{Cluster: "lab", Node: NodeID(id), Replica: ReplicaID(labReplica + int(id[0]))}, hard: hard}}
	s.disk.entries = l.entries(1, terms...)
	l.servers[s.id] = s
	return s
}

// start starts a server, on a bootstrapped disk if it has none yet.
func (l *lab) start(id string) *labServer {
	s := l.servers[NodeID(id)]
	if s == nil {
		s = l.provision(id, HardState{CurrentTerm: 1}, 1)
	}
	s.disk.identity.Incarnation++
	cfg := l.cfg
	cfg.ID, cfg.Seed = s.id, uint64(id[0])
	core, err := NewCore(cfg, l.now, s.disk.recovered())
	require.NoError(l.t, err)
	*s = labServer{lab: l, id: s.id, disk: s.disk, core: core, up: true}
	s.run()
	return s
}

// crash stops a server; writes that are not durable are lost.
func (l *lab) crash(id string) {
	l.servers[NodeID(id)].up = false
}

func (l *lab) server(id string) *labServer {
	s := l.servers[NodeID(id)]
	require.NotNil(l.t, s, "no server %q", id)
	return s
}

func (l *lab) say(format string, args ...any) { l.said = append(l.said, fmt.Sprintf(format, args...)) }

// do feeds an input into the core and carries out what it asks for.
func (s *labServer) do(input func(*Core, time.Duration)) {
	s.lab.t.Helper()
	before := s.core.Clone()
	input(s.core, s.lab.now)
	require.NoError(s.lab.t, CheckStep(before, s.core))
	s.run()
}

func (s *labServer) run() {
	l := s.lab
	l.t.Helper()
	for s.core.HasReady() {
		before := s.core.Clone()
		r := s.core.Ready()
		require.NoError(l.t, s.core.Check(), "%v", s.core)
		require.NoError(l.t, CheckStep(before, s.core))
		if r.Peers != nil {
			s.peers = slices.Clone(r.Peers)
		}
		for _, e := range r.Events {
			s.event(e)
		}
		for _, x := range r.Refused {
			s.refused = append(s.refused, x)
			l.say("%s refuses %s: %v", s.id, x.Peer, x.Reason)
		}
		for _, m := range r.Send {
			if l.cut[[2]NodeID{m.From, m.To}] {
				continue
			}
			require.NoError(l.t, m.Validate())
			l.wire = append(l.wire, m)
			l.say("%s", describe(m))
		}
		if r.Write.Seq != 0 {
			s.writes = append(s.writes, r.Write)
			if s.slow {
				l.say("%s", s.describeWrite(r.Write))
			}
		}
		for _, x := range r.Reads {
			s.reads = append(s.reads, x)
			if x.Err != nil {
				l.say("%s read %d fails", s.id, x.ID)
			} else {
				l.say("%s read %d confirmed at %d", s.id, x.ID, x.Index)
			}
		}
		for _, x := range r.Snapshots {
			s.transfers = append(s.transfers, x)
			l.say("%s transfer: %s", s.id, describe(x.Message))
		}
		s.compacted = max(s.compacted, r.Compact)
		s.disk.compact(r.Compact)
		s.applies = append(s.applies, slices.Clone(r.Apply)...)
		s.loads = append(s.loads, r.Loads...)
		if !s.holdLoads {
			s.load()
		}
		if !s.holdApply {
			s.apply()
		}
		if !s.slow && len(s.writes) > 0 {
			s.persist(len(s.writes))
		}
	}
}

func (s *labServer) event(e Event) {
	l := s.lab
	s.events = append(s.events, e)
	switch e := e.(type) {
	case LeaderChange:
		l.say("%s is %v in term %d, leader %s (%v)", s.id, e.Role, e.Term, orNone(string(e.Leader)), e.Reason)
		if e.Role == Leader {
			if other, ok := l.leaders[e.Term]; ok && other != s.id {
				l.t.Fatalf("term %d has two leaders, %s and %s", e.Term, other, s.id)
			}
			l.leaders[e.Term] = s.id
		}
	case ConfigurationChange:
		l.say("%s configuration %d%s: %s", s.id, e.Index, map[bool]string{true: " committed"}[e.Committed], describeConfiguration(&e.Configuration))
	case TransferEnded:
		l.say("%s transfer to %s ended: %v", s.id, e.Target, e.Err)
	}
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// persist ends the first n writes.
func (s *labServer) persist(n int) {
	s.lab.t.Helper()
	require.LessOrEqual(s.lab.t, n, len(s.writes), "writes under way at %s", s.id)
	for _, w := range s.writes[:n] {
		s.disk.write(w.Batch)
	}
	seq := s.writes[n-1].Seq
	s.writes = s.writes[n:]
	s.do(func(c *Core, now time.Duration) { c.Persisted(now, seq) })
}

// apply ends all applies, and checks that no two servers apply different entries at one index.
func (s *labServer) apply() {
	l := s.lab
	for _, a := range s.applies {
		if a.Restore != nil {
			s.restored = append(s.restored, a.Restore.Index)
			if s.disk.snapshot.Index < a.Restore.Index {
				s.disk.snapshot = *a.Restore
			}
			l.say("%s restores %d", s.id, a.Restore.Index)
		}
		es := a.Entries
		if es == nil && a.Lo < a.Hi {
			es = s.disk.entries[a.Lo-s.disk.compacted.Index-1 : a.Hi-s.disk.compacted.Index-1]
		}
		require.Len(l.t, es, int(a.Hi-a.Lo))
		for i := range es {
			require.Equal(l.t, a.Lo+Index(i), es[i].Index)
			onDisk := s.disk.entries[es[i].Index-s.disk.compacted.Index-1]
			require.Equal(l.t, onDisk.ID(), es[i].ID(), "%s applies what is not on its disk", s.id)
			require.False(l.t, s.disk.damaged[es[i].Index], "%s applies %v, which cannot be read", s.id, es[i].ID())
			known, applied := l.truth[es[i].Index]
			require.True(l.t, !applied || known == es[i].ID(), "%s applies %v where others applied %v", s.id, es[i].ID(), known)
			l.truth[es[i].Index] = es[i].ID()
			s.applied = append(s.applied, es[i])
		}
		if len(es) > 0 {
			l.say("%s applies %s", s.id, describeEntries(es))
		}
		hi := a.Hi - 1
		s.core.Applied(l.now, hi)
	}
	s.applies = nil
}

// load answers all loads from disk.
func (s *labServer) load() {
	loads := s.loads
	s.loads = nil
	for _, x := range loads {
		if x.Lo <= s.disk.compacted.Index {
			s.core.LoadFailed(s.lab.now, x.ID, LoadCompacted)
			continue
		}
		var es []Entry
		size := 0
		for i := x.Lo; i < x.Hi && i <= s.disk.last().Index; i++ {
			e := s.disk.entries[i-s.disk.compacted.Index-1]
			if s.disk.damaged[i] {
				break
			}
			if len(es) > 0 && size+e.Size() > x.MaxBytes {
				break
			}
			size += e.Size()
			es = append(es, e)
		}
		if len(es) == 0 {
			s.core.Damaged(s.lab.now, Damage{First: x.Lo, Last: x.Lo})
			s.core.LoadFailed(s.lab.now, x.ID, LoadDamaged)
			continue
		}
		s.core.Loaded(s.lab.now, x.ID, es)
	}
}

// step delivers a message that the test made up. Sender's replica and incarnation are filled in.
func (l *lab) step(from, to string, term Term, request uint64, b Body) {
	l.t.Helper()
	h := Header{From: NodeID(from), To: NodeID(to), Replica: ReplicaID(labReplica + int(from[0])), Incarnation: 1, Term: term, Request: request}
	l.stepMessage(Message{Header: h, Body: b})
}

func (l *lab) stepMessage(m Message) {
	l.t.Helper()
	require.NoError(l.t, m.Validate())
	s := l.servers[m.To]
	if s == nil || !s.up {
		return
	}
	s.do(func(c *Core, now time.Duration) { c.Step(now, m) })
}

// take removes the messages from -> to of this kind ("" for any, or "RequestVote" and so on) from the wire.
func (l *lab) take(from, to, kind string) []Message {
	var taken, left []Message
	for _, m := range l.wire {
		if (from == "*" || m.From == NodeID(from)) && (to == "*" || m.To == NodeID(to)) && (kind == "" || kind == kindOf(m)) {
			taken = append(taken, m)
		} else {
			left = append(left, m)
		}
	}
	l.wire = left
	return taken
}

func kindOf(m Message) string { return strings.TrimPrefix(fmt.Sprintf("%T", m.Body), "raft.") }

// one removes the messages from -> to of this kind from the wire and returns the only one.
func (l *lab) one(from, to, kind string) Message {
	l.t.Helper()
	ms := l.take(from, to, kind)
	require.Len(l.t, ms, 1, "%s from %s to %s", kind, from, to)
	return ms[0]
}

// deliver delivers what is on the wire from -> to now ("*" for anybody), in order.
func (l *lab) deliver(from, to string) {
	l.t.Helper()
	for _, m := range l.take(from, to, "") {
		l.stepMessage(m)
	}
}

// settle delivers messages until none is left. Messages to servers that are not up are lost.
func (l *lab) settle() int {
	l.t.Helper()
	for n := 0; ; n++ {
		if len(l.wire) == 0 {
			return n
		}
		require.Less(l.t, n, 10_000, "messages without end")
		m := l.wire[0]
		l.wire = l.wire[1:]
		if !l.cut[[2]NodeID{m.From, m.To}] {
			l.stepMessage(m)
		}
	}
}

// lose loses everything that is on the wire.
func (l *lab) lose() { l.wire = nil }

// isolate cuts a server off from all others, or with on false connects it again.
func (l *lab) isolate(id string, on bool) {
	for i := range l.conf.Servers {
		other := l.conf.Servers[i].ID
		l.cut[[2]NodeID{NodeID(id), other}], l.cut[[2]NodeID{other, NodeID(id)}] = on, on
	}
	for other := range l.servers {
		l.cut[[2]NodeID{NodeID(id), other}], l.cut[[2]NodeID{other, NodeID(id)}] = on, on
	}
}

// timeout lets the election timeout of a follower, or the heartbeat of a leader, happen now.
func (l *lab) timeout(id string) {
	l.t.Helper()
	l.server(id).do(func(c *Core, now time.Duration) { c.ForceTimeout(now) })
}

// pass moves the clock, without telling anybody.
func (l *lab) pass(d time.Duration) { l.now += d }

func (l *lab) tick(id string) {
	l.t.Helper()
	l.server(id).do(func(c *Core, now time.Duration) { c.Tick(now) })
}

// heartbeats lets a leader tick n times, everything being delivered.
func (l *lab) heartbeats(id string, n int) {
	l.t.Helper()
	for range n {
		l.pass(100 * time.Millisecond)
		l.tick(id)
		l.settle()
	}
}

// elect lets a server win an election against those that are up, after the others have forgotten their leader.
func (l *lab) elect(id string) *labServer {
	l.t.Helper()
	s := l.server(id)
	if s.core.role != Leader {
		l.pass(2 * time.Second)
		l.timeout(id)
	}
	l.settle()
	require.Equal(l.t, Leader, s.core.role, "%v", s.core)
	return s
}

func (s *labServer) propose(data ...string) []EntryID {
	s.lab.t.Helper()
	var ids []EntryID
	for _, d := range data {
		s.do(func(c *Core, now time.Duration) {
			first, n, err := c.Propose(now, []Entry{NewCommand([]byte(d))})
			require.NoError(s.lab.t, err)
			require.Equal(s.lab.t, 1, n)
			ids = append(ids, first)
		})
	}
	return ids
}

func (s *labServer) change(ch Change) (id EntryID, err error) {
	s.lab.t.Helper()
	s.do(func(c *Core, now time.Duration) { id, err = c.ChangeMembership(now, ch) })
	return id, err
}

func (s *labServer) read(id uint64) error {
	s.lab.t.Helper()
	var err error
	s.do(func(c *Core, now time.Duration) { err = c.ReadIndex(now, id) })
	return err
}

func (s *labServer) transfer(target string) error {
	s.lab.t.Helper()
	var err error
	s.do(func(c *Core, now time.Duration) { err = c.ChangeLeader(now, NodeID(target)) })
	return err
}

// takeSnapshot makes a snapshot of everything up to index.
func (s *labServer) takeSnapshot(index Index) {
	s.lab.t.Helper()
	s.do(func(c *Core, now time.Duration) {
		meta, ok := c.SnapshotMeta(index)
		require.True(s.lab.t, ok)
		meta.Size = 1
		s.disk.snapshot = meta
		c.SnapshotTaken(now, meta)
	})
}

// terms lists the terms of the log behind the compaction boundary.
func (s *labServer) terms() []Term {
	var ts []Term
	for i := s.core.log.base.Index + 1; i <= s.core.log.last; i++ {
		t, _ := s.core.log.term(i)
		ts = append(ts, t)
	}
	return ts
}

// commands lists what was applied, without no-ops and configurations.
func (s *labServer) commands() []string {
	var cs []string
	for i := range s.applied {
		if s.applied[i].Type == EntryCommand {
			cs = append(cs, string(s.applied[i].Data))
		}
	}
	return cs
}

// last returns the newest event of this kind.
func lastEvent[E Event](s *labServer) (last E, n int) {
	for _, e := range s.events {
		if e, ok := e.(E); ok {
			last, n = e, n+1
		}
	}
	return last, n
}

// story returns what happened since the last call.
func (l *lab) story() []string {
	said := l.said
	l.said = nil
	return said
}

func (l *lab) ids() []string {
	var ids []string
	for id := range l.servers {
		ids = append(ids, string(id))
	}
	sort.Strings(ids)
	return ids
}

// requireEqualLogs checks Log Matching (SAFETY inv 5) in its strongest form: all servers that are up hold the same log.
func (l *lab) requireEqualLogs() {
	l.t.Helper()
	var first *labServer
	for _, id := range l.ids() {
		s := l.servers[NodeID(id)]
		switch {
		case !s.up:
		case first == nil:
			first = s
		default:
			require.Equal(l.t, first.terms(), s.terms(), "logs of %s and %s", first.id, s.id)
			for i := range s.disk.entries {
				require.True(l.t, bytes.Equal(first.disk.entries[i].Frame(), s.disk.entries[i].Frame()))
			}
		}
	}
}

func describeEntries(es []Entry) string {
	if len(es) == 0 {
		return "[]"
	}
	var b strings.Builder
	for i := range es {
		if i > 0 {
			b.WriteString(" ")
		}
		b.WriteString(es[i].ID().String())
		if es[i].Type != EntryCommand {
			fmt.Fprintf(&b, " %v", es[i].Type)
		} else if len(es[i].Data) < 12 && string(es[i].Data) != es[i].ID().String() {
			fmt.Fprintf(&b, " %q", es[i].Data)
		}
	}
	return "[" + b.String() + "]"
}

func describeConfiguration(conf *Configuration) string {
	var parts []string
	for i := range conf.Servers {
		s := &conf.Servers[i]
		p := string(s.ID)
		if s.Suffrage != Voter {
			p += " learner"
		}
		if s.Outgoing {
			p += " outgoing"
		}
		if s.Leaving {
			p += " leaving"
		}
		parts = append(parts, p)
	}
	for _, id := range conf.Removed {
		parts = append(parts, string(id)+" removed")
	}
	return strings.Join(parts, ", ")
}

// describe prints a message on one line.
func describe(m Message) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s->%s %s term %d", m.From, m.To, kindOf(m), m.Term)
	switch r := m.Body.(type) {
	case PreVote:
		fmt.Fprintf(&b, " last %v", EntryID{r.LastLogTerm, r.LastLogIndex})
	case RequestVote:
		fmt.Fprintf(&b, " last %v", EntryID{r.LastLogTerm, r.LastLogIndex})
		if r.Transfer {
			b.WriteString(" transfer")
		}
	case PreVoteReply:
		fmt.Fprintf(&b, " granted %v", r.Granted)
	case RequestVoteReply:
		fmt.Fprintf(&b, " granted %v", r.Granted)
	case AppendEntries:
		fmt.Fprintf(&b, " prev %v commit %d %s", EntryID{r.PrevLogTerm, r.PrevLogIndex}, r.LeaderCommit, describeEntries(r.Entries))
		if r.Round > 0 {
			fmt.Fprintf(&b, " round %d", r.Round)
		}
	case AppendEntriesReply:
		switch {
		case r.Busy:
			b.WriteString(" busy")
		case r.Success:
			fmt.Fprintf(&b, " match %d", r.MatchIndex)
		default:
			fmt.Fprintf(&b, " reject prev %d hint %v", r.PrevLogIndex, EntryID{r.HintTerm, r.HintIndex})
		}
		if r.Round > 0 {
			fmt.Fprintf(&b, " round %d", r.Round)
		}
	case InstallSnapshot:
		fmt.Fprintf(&b, " %v", r.Meta.ID())
	case InstallSnapshotReply:
		fmt.Fprintf(&b, " match %d", r.MatchIndex)
	case TimeoutNowReply:
		fmt.Fprintf(&b, " accepted %v", r.Accepted)
	case FetchEntries:
		for _, w := range r.Wanted {
			fmt.Fprintf(&b, " %v", w)
		}
		if r.Snapshot > 0 {
			fmt.Fprintf(&b, " or a snapshot at %d", r.Snapshot)
		}
	case FetchEntriesReply:
		for _, h := range r.Held {
			fmt.Fprintf(&b, " %v %v up to %d", h.Stretch, h.How, h.UpTo)
		}
		fmt.Fprintf(&b, " commit %d leading %v %s", r.CommitIndex, r.Leading, describeEntries(r.Entries))
	}
	return b.String()
}

func (s *labServer) describeWrite(w Write) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s write %d:", s.id, w.Seq)
	if w.HardState != nil {
		fmt.Fprintf(&b, " term %d vote %s", w.HardState.CurrentTerm, orNone(string(w.HardState.VotedFor)))
	}
	if w.Snapshot != nil {
		fmt.Fprintf(&b, " snapshot %v", w.Snapshot.ID())
	}
	if w.TruncateFrom != 0 {
		fmt.Fprintf(&b, " truncate from %d", w.TruncateFrom)
	}
	if len(w.Entries) > 0 {
		b.WriteString(" " + describeEntries(w.Entries))
	}
	return b.String()
}
