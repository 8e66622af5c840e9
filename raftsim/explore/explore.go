package explore

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/steadyraft/raft"
)

// Limits of one exploration.
const (
	maxTerms   = 6
	maxReads   = 4
	maxChanges = 4
	maxKnown   = 1 << 18 // servers, packets and steps remembered to save work; beyond it they are forgotten and made again
)

// Options bound an exploration beside its world.
type Options struct {
	MaxStates int                 // stop after so many states; 0: 50 million
	Progress  func(Result)        // called now and then with the result so far, if not nil
	Every     int                 // how many states lie between two calls of Progress; 0: 100,000
	inject    func(*raft.Message) // called on a copy of every message before it is delivered; for tests of what the explorer can see
}

// Result says what an exploration has seen.
type Result struct {
	World     World
	States    int  // distinct ones, servers exchanged where they are alike
	Steps     int  // taken, to new states and to known ones
	Depth     int  // the longest of all shortest ways to a state
	Exhausted bool // every state within the bounds was visited
	Bytes     int  // of memory that all these states and the ways to them take
	Took      time.Duration
	Events    map[string]int // how many steps were of each kind; see [Kinds]
	Messages  map[string]int // how many deliveries were of each kind of message; see [MessageKinds]
	Seen      map[string]int // how many steps showed something that is worth exploring
	Violation *Violation     // nil: none
	Way       string         // to one of the deepest states, as a script for testdata of the package raft
}

// Violation is a broken promise and one of the shortest ways to it.
type Violation struct {
	Broken error
	Depth  int
	Script string // for testdata of the package raft
}

// Error says what is broken.
func (v *Violation) Error() string { return fmt.Sprintf("after %d steps: %v", v.Depth, v.Broken) }

// kind is what happens in one action.
type kind uint8

const (
	deliver kind = iota
	duplicate
	timeout
	heartbeat
	persistOne
	persistAll
	crash
	damage
	forget
	mislay
	find
	repair
	propose
	read
	change
	snapshot
	breakOff
	transfer
	resign
	kinds // as a step of a server: it learns that its snapshot arrived
	lose  // before the exploration begins; later a message is lost by not being delivered
)

// Kinds names the events that [Result.Events] counts. After a crash a server starts again within the same event.
func Kinds() []string {
	return []string{"deliver", "duplicate", "timeout", "heartbeat", "persist one", "persist all", "crash", "damage", "lost end", "lost snapshot", "damage found",
		"repair", "propose", "read", "change", "snapshot",
		"break off", "transfer", "resign"}
}

// MessageKinds names the messages that [Result.Messages] counts.
func MessageKinds() []string {
	return []string{"PreVote", "PreVoteReply", "RequestVote", "RequestVoteReply", "AppendEntries", "AppendEntriesReply", "InstallSnapshot",
		"InstallSnapshotReply", "TimeoutNow", "TimeoutNowReply", "FetchEntries", "FetchEntriesReply"}
}

// action is one event. It means something only in the world in which it was found.
type action struct {
	kind   kind
	server uint8
	arg    uint8 // of a transfer: the target; of a read: its ID; of a change: which
	at     uint8 // of what happens to a packet: its place
}

// state is a world at one moment. It is never changed.
type state struct {
	id    uint32
	nodes [maxServers]*node
	wire  []*packet
	used  [kinds]uint8 // of the budgets; of the changes a bit for each
	past  *past
}

// past is what must be remembered of a history to judge what comes after.
type past struct {
	committed []commitment                  // by index, from 1 on
	leaders   [maxTerms + maxTerms + 1]int8 // by term; -1: none
	acked     raft.Index                    // some state machine has applied this
	required  [maxReads]raft.Index          // what each read must see
}

// commitment is an entry that some leader has committed.
type commitment struct {
	mark
	by raft.Term // in which the leader did it
}

type step struct {
	n    *node
	kind kind
	arg  uint8
	p    *packet
}

type explorer struct {
	world     World
	opt       Options
	ids       []raft.NodeID
	conf      raft.Configuration
	renamings [][maxServers]uint8
	names     []func(raft.NodeID) raft.NodeID
	lastTerm  raft.Term
	budgets   [kinds]uint8
	begun     []action // what Start of the world came to

	nodes   map[[2]uint64]*node
	packets map[[2]uint64]*packet
	known   map[step]*outcome
	scratch []byte

	visited table
	origins []origin // by id
	taken   [kinds]int
	res     Result
}

// origin says how a state was first reached.
type origin struct {
	parent uint32
	action action
}

// Run explores a world. An error means that the bounds make no sense, or that ctx ended: then the result so far is returned too.
func Run(ctx context.Context, w World, opt Options) (Result, error) {
	if err := w.Validate(); err != nil {
		return Result{World: w}, err
	}
	x := newExplorer(w, opt)
	start := time.Now()
	err := x.run(ctx, start)
	x.res.Took = time.Since(start)
	x.sumUp()
	return x.res, err
}

// count counts a step that changed something.
func (x *explorer) count(s *state, a action) {
	x.taken[a.kind]++
	if a.kind == deliver || a.kind == duplicate {
		x.res.Messages[s.wire[a.at].kind]++
	}
}

// sumUp fills in what is counted elsewhere.
func (x *explorer) sumUp() {
	x.res.Bytes = len(x.visited.places)*int(unsafe.Sizeof(x.visited.places[0])) + cap(x.origins)*int(unsafe.Sizeof(origin{}))
	x.res.Events = map[string]int{}
	for k, name := range Kinds() {
		x.res.Events[name] = x.taken[k]
	}
}

func newExplorer(w World, opt Options) *explorer {
	if opt.MaxStates == 0 {
		opt.MaxStates = 50_000_000
	}
	if opt.Every == 0 {
		opt.Every = 100_000
	}
	x := &explorer{world: w, opt: opt, ids: w.ids(), conf: w.configuration(), renamings: w.renamings(),
		nodes: map[[2]uint64]*node{}, packets: map[[2]uint64]*packet{}, known: map[step]*outcome{}}
	for _, p := range x.renamings {
		x.names = append(x.names, func(id raft.NodeID) raft.NodeID {
			if id == "" {
				return ""
			}
			return x.ids[p[x.index(id)]]
		})
	}
	unbounded := uint8(255)
	x.budgets = [kinds]uint8{deliver: unbounded, duplicate: uint8(w.Duplicates), timeout: uint8(w.Timeouts), heartbeat: uint8(w.Heartbeats),
		persistOne: unbounded, persistAll: unbounded, breakOff: unbounded, crash: uint8(w.Crashes),
		damage: uint8(w.Damages), forget: uint8(w.Losses), mislay: uint8(w.Mislaid), find: uint8(w.Finds), repair: uint8(w.Repairs), propose: uint8(w.Commands), read: uint8(w.Reads),
		snapshot: uint8(w.Snapshots), transfer: uint8(w.Transfers), resign: uint8(w.Resignations)}
	if w.Timeouts == 0 {
		x.budgets[timeout] = unbounded
	}
	x.budgets[change] = 1 << len(w.Changes)
	x.res = Result{World: w, Messages: map[string]int{}, Seen: map[string]int{}}
	return x
}

func (x *explorer) index(id raft.NodeID) int { return int(id[0] - 'a') }

func (x *explorer) config(server int) raft.CoreConfig {
	return raft.CoreConfig{ID: x.ids[server], ElectionTimeout: time.Second, TrailingEntries: 1,
		DisablePreVote: !x.world.PreVote, DisableCheckQuorum: true}
}

// initial is the world when the exploration begins.
func (x *explorer) initial() (*state, error) {
	s, err := x.founded()
	if err != nil {
		return nil, err
	}
	return x.begin(s)
}

// founded is the world before its Start.
func (x *explorer) founded() (*state, error) {
	s := &state{past: &past{}}
	for t := range s.past.leaders {
		s.past.leaders[t] = -1
	}
	for i, id := range x.ids {
		d := &draft{x: x, node: node{server: i}}
		d.disk.hard.CurrentTerm = x.world.firstTerm()
		terms := x.world.Logs[id]
		if len(terms) == 0 {
			terms = []raft.Term{1}
		}
		for k, t := range terms {
			e, err := x.entry(t, raft.Index(k+1))
			if err != nil {
				return nil, err
			}
			d.disk.entries = append(d.disk.entries, e)
		}
		if err := d.crash(); err != nil {
			return nil, err
		}
		if err := d.drain(); err != nil {
			return nil, err
		}
		out := d.finish()
		if out.err != nil {
			return nil, out.err
		}
		s.nodes[i] = out.n
	}
	return s, nil
}

// entry makes an entry of an initial log.
func (x *explorer) entry(t raft.Term, i raft.Index) (raft.Entry, error) {
	typ, payload := raft.EntryCommand, fmt.Appendf(nil, "%d@%d", i, t)
	if i == 1 {
		typ, payload = raft.EntryConfiguration, x.conf.AppendBinary(nil)
	}
	// Only leaders and decoders give an entry its place, so it is written into the frame and decoded.
	command := raft.NewCommand(payload)
	f := slices.Clone(command.Frame())
	f[6] = byte(typ)
	binary.LittleEndian.PutUint64(f[8:], uint64(t))
	binary.LittleEndian.PutUint64(f[16:], uint64(i))
	binary.LittleEndian.PutUint32(f[28:], crc32.Checksum(f[:28], crc32.MakeTable(crc32.Castagnoli)))
	e, _, err := raft.DecodeEntry(f)
	return e, err
}

func (x *explorer) run(ctx context.Context, start time.Time) error {
	first, err := x.initial()
	if err != nil {
		return err
	}
	x.visited = newTable()
	x.visited.add(x.sum(first))
	x.origins = []origin{{}}
	x.res.States = 1
	report := x.opt.Every
	frontier := []*state{first}
	for depth := 0; len(frontier) > 0; depth++ {
		x.res.Depth = depth
		var next []*state
		for k, s := range frontier {
			frontier[k] = nil
			for _, a := range x.actions(s) {
				t, err := x.act(s, a)
				if err != nil {
					x.res.Violation = x.violation(s.id, a, err)
					return nil
				}
				x.res.Steps++
				if t != nil {
					x.count(s, a)
				}
				if t == nil || !x.visited.add(x.sum(t)) {
					continue
				}
				t.id = uint32(len(x.origins))
				x.origins = append(x.origins, origin{s.id, a})
				x.res.States++
				next = append(next, t)
			}
			if x.res.States >= report && x.opt.Progress != nil {
				report += x.opt.Every
				x.res.Took = time.Since(start)
				x.sumUp()
				x.opt.Progress(x.res)
			}
			if x.res.States >= x.opt.MaxStates || ctx.Err() != nil {
				return ctx.Err()
			}
		}
		frontier = next
	}
	x.res.Exhausted = true
	x.res.Way = x.script(x.way(uint32(len(x.origins)-1)), "one of the deepest states")
	return nil
}

// actions lists all that could happen next.
func (x *explorer) actions(s *state) []action {
	as := make([]action, 0, 16)
	add := func(k kind, server int, arg, at int) {
		if s.used[k] < x.budgets[k] {
			as = append(as, action{k, uint8(server), uint8(arg), uint8(at)})
		}
	}
	for at, p := range s.wire {
		if p.kind == "TimeoutNow" && s.nodes[p.to].status.Term >= x.lastTerm {
			continue // it would begin a term too many
		}
		if slices.Index(s.wire, p) < at {
			continue // a duplicate of one that was tried already
		}
		add(deliver, p.to, 0, at)
		add(duplicate, p.to, 0, at)
		if awaited(s, p) {
			add(breakOff, p.from, 0, at)
		}
	}
	for i := range x.ids {
		n := s.nodes[i]
		leader := n.status.Role == raft.Leader
		if n.campaigns && n.status.Term < x.lastTerm {
			add(timeout, i, 0, 0)
		}
		if len(n.queue) > 0 {
			add(persistOne, i, 0, 0)
		}
		if len(n.queue) > 1 {
			add(persistAll, i, 0, 0)
		}
		add(crash, i, 0, 0)
		for index := max(n.disk.compacted.Index, 1) + 1; index <= n.disk.last().Index; index++ { // the first is the configuration
			if !n.disk.isDamaged(index) {
				add(damage, i, int(index), 0)
				add(find, i, int(index), 0)
			}
			add(forget, i, int(index), 0)
		}
		if n.disk.snapshot.Index > 0 {
			add(mislay, i, 0, 0)
		}
		if n.lacks {
			add(repair, i, 0, 0)
		}
		if n.status.AppliedIndex > n.status.SnapshotIndex {
			add(snapshot, i, 0, 0)
		}
		if !leader {
			continue
		}
		add(heartbeat, i, 0, 0)
		add(propose, i, 0, 0)
		add(read, i, int(s.used[read])+1, 0)
		for k := range x.world.Changes {
			if s.used[change]>>k&1 == 0 {
				add(change, i, k, 0)
			}
		}
		add(resign, i, 0, 0)
		for target := range x.ids {
			if target != i {
				add(transfer, i, target, 0)
			}
		}
	}
	return as
}

// act carries out an action and takes away the messages that can have no effect any more. nil: it changes nothing. An error is a
// broken promise.
func (x *explorer) act(s *state, a action) (*state, error) {
	t, err := x.advance(s, a)
	if t != nil {
		t.wire = slices.DeleteFunc(t.wire, func(p *packet) bool { return x.dead(t, p) })
	}
	return t, err
}

func (x *explorer) advance(s *state, a action) (*state, error) {
	var p *packet
	switch a.kind {
	case lose:
		return &state{nodes: s.nodes, used: s.used, past: s.past, wire: slices.Delete(slices.Clone(s.wire), int(a.at), int(a.at)+1)}, nil
	case deliver, duplicate, breakOff:
		p = s.wire[a.at]
	}
	n := s.nodes[a.server]
	out := x.outcome(step{n, canonicalKind(a.kind), a.arg, p})
	if out.err != nil {
		if out.err == errNothing {
			return nil, nil
		}
		return nil, out.err
	}
	t := &state{nodes: s.nodes, used: s.used, past: s.past}
	switch {
	case a.kind == change:
		t.used[change] |= 1 << a.arg
	case x.budgets[a.kind] != 255:
		t.used[a.kind]++
	}
	t.nodes[a.server] = out.n
	t.wire = make([]*packet, 0, len(s.wire)+len(out.sent)+1)
	for at, q := range s.wire {
		if p == nil || at != int(a.at) {
			t.wire = append(t.wire, q)
		}
	}
	if a.kind == duplicate || a.kind == breakOff { // its receiver may have had all of it before it broke off
		t.wire = append(t.wire, p)
	}
	t.wire = append(t.wire, out.sent...)
	if p != nil && a.kind != breakOff && awaited(s, p) {
		sent := x.outcome(step{s.nodes[p.from], kinds, 0, p}) // its sender learns that it arrived
		if sent.err != nil {
			return nil, sent.err
		}
		t.nodes[p.from] = sent.n
		t.wire = append(t.wire, sent.sent...)
	}
	if err := x.judge(s, t, a, out); err != nil {
		return nil, err
	}
	return t, nil
}

// awaited reports whether the packet is a snapshot transfer whose end its sender waits for.
func awaited(s *state, p *packet) bool {
	n := s.nodes[p.from]
	return p.transfer != 0 && n.status.Role == raft.Leader && n.disk.incarnation == p.m.Incarnation && n.transfer[p.to] == p.transfer
}

// canonicalKind: to the receiver a duplicate is a delivery.
func canonicalKind(k kind) kind {
	if k == duplicate {
		return deliver
	}
	return k
}

// dead reports whether a message can have no effect any more, whatever happens: a reply of a term that its receiver has durably left, or
// a vote for an election that is over. That relies on what the receiver does with such messages, so this is tried: one that would
// change anything now stays. Worlds that keep everything do not rely on it at all.
func (x *explorer) dead(s *state, p *packet) bool {
	if x.world.KeepAll {
		return false
	}
	n := s.nodes[p.to]
	durable := n.disk.hard.CurrentTerm
	over := false
	switch p.m.Body.(type) {
	case raft.AppendEntriesReply, raft.InstallSnapshotReply:
		over = p.m.Term < durable
	case raft.RequestVoteReply:
		over = p.m.Term < durable || p.m.Term == durable && n.status.Term == durable && n.status.Role != raft.Candidate
	case raft.TimeoutNowReply:
		over = p.m.Term <= durable
	}
	if !over {
		return false
	}
	out := x.outcome(step{n, deliver, 0, p})
	return out.err == nil && out.n.sums[0] == n.sums[0] && len(out.sent) == 0 && len(out.reads) == 0
}

// outcome is what a step leads to, taken from those that are known or worked out.
func (x *explorer) outcome(k step) *outcome {
	if out := x.known[k]; out != nil {
		return out
	}
	out := x.step(k)
	if len(x.known) > maxKnown {
		clear(x.known)
	}
	x.known[k] = out
	return out
}

// feed gives the core its input.
func (x *explorer) feed(d *draft, k step) error {
	c := d.core
	var refused error
	switch k.kind {
	case find:
		i := raft.Index(k.arg)
		d.disk.damaged |= 1 << i
		c.Damaged(standstill, raft.Damage{First: i, Last: i})
	case deliver:
		m := k.p.m
		if x.opt.inject != nil {
			x.opt.inject(&m)
		}
		if b, ok := m.Body.(raft.InstallSnapshot); ok {
			// Its content came first. When that began the snapshot was wanted, which may have changed since.
			if b.Meta.Index > d.disk.snapshot.Index && (!b.Repair || c.WantsSnapshot(m)) {
				d.disk.snapshot = b.Meta
			}
		}
		c.Step(standstill, m)
	case timeout, heartbeat:
		c.ForceTimeout(standstill)
	case repair:
		c.ForceRepair(standstill)
	case persistOne:
		return d.persist(1)
	case persistAll:
		return d.persist(len(d.queue))
	case propose:
		_, _, refused = c.Propose(standstill, []raft.Entry{raft.NewCommand(fmt.Appendf(nil, "%d.%d", d.status.Term, d.status.LastIndex+1))})
	case read:
		refused = c.ReadIndex(standstill, uint64(k.arg))
	case change:
		_, refused = c.ChangeMembership(standstill, x.world.Changes[k.arg])
	case snapshot:
		meta, ok := c.SnapshotMeta(d.status.AppliedIndex)
		if !ok {
			return errNothing
		}
		meta.Size = 1
		d.disk.snapshot = meta
		c.SnapshotTaken(standstill, meta)
	case transfer:
		refused = c.ChangeLeader(standstill, x.ids[k.arg])
	case resign:
		c.Abstain(standstill, true)
		c.Abstain(standstill, false)
	case breakOff:
		c.SnapshotFailed(standstill, k.p.transfer)
	case kinds:
		c.SnapshotSent(standstill, k.p.transfer)
	}
	if refused != nil {
		return errNothing
	}
	return nil
}

// sum is the canonical hash of a world: the least over all renamings. Servers and packets are added up, so that their order means
// nothing.
func (x *explorer) sum(s *state) [2]uint64 {
	var class [64]uint64
	classes := class[:0]
	for _, p := range s.wire {
		c := uint64(0)
		switch {
		case p.request != 0:
			peer := p.to
			if p.owner == p.to {
				peer = p.from
			}
			c = 1 + seen(s.nodes[p.owner], peer, p.request)
		case awaited(s, p):
			c = 1
		}
		classes = append(classes, c)
	}
	var buf [96]byte
	var least [2]uint64
	for k, renaming := range x.renamings {
		var h [2]uint64
		for i := range x.ids {
			n := s.nodes[i]
			own := n.sums[k]
			for _, f := range n.foreign {
				own[0] = mix(own[0]+seen(s.nodes[f.owner], i, f.v), 0x2d358dccaa6c78a5)
			}
			h[0] += mix(own[0], 0x8bb84b93962eacc9)
			h[1] += mix(own[1]^own[0], 0x4b33a62ed433d4a3)
		}
		for i, p := range s.wire {
			v := p.sums[k]
			h[0] += mix(v[0]^classes[i]*0x9fb21c651e98df25, 0x4d5a2da51de1aa47)
			h[1] += mix(v[1]+classes[i], 0xc2b2ae3d27d4eb4f)
		}
		b := append(buf[:0], s.used[:]...)
		b = s.past.appendTo(b, renaming)
		p := sum(b)
		h[0] += p[0]
		h[1] += p[1]
		if k == 0 || h[0] < least[0] || h[0] == least[0] && h[1] < least[1] {
			least = h
		}
	}
	return least
}

func (p *past) appendTo(b []byte, renaming [maxServers]uint8) []byte {
	for _, c := range p.committed {
		b = append(b, byte(c.term), byte(c.content), byte(c.by))
	}
	b = append(b, 255)
	for _, l := range p.leaders {
		if l >= 0 {
			l = int8(renaming[l])
		}
		b = append(b, byte(l))
	}
	b = append(b, byte(p.acked))
	for _, r := range p.required {
		b = append(b, byte(r))
	}
	return b
}

func kindOf(m raft.Message) string { return strings.TrimPrefix(fmt.Sprintf("%T", m.Body), "raft.") }

// table is a set of hashes, with open addressing. It takes 16 bytes for each of its places, of which at least three in eight are used.
type table struct {
	places [][2]uint64
	n      int
}

func newTable() table { return table{places: make([][2]uint64, 1<<8)} }

// add reports whether the hash is new.
func (t *table) add(h [2]uint64) bool {
	if h == ([2]uint64{}) {
		h[0] = 1 // zero marks an empty place
	}
	if t.n*4 > len(t.places)*3 {
		old := t.places
		t.places = make([][2]uint64, 2*len(old))
		t.n = 0
		for _, h := range old {
			if h != ([2]uint64{}) {
				t.add(h)
			}
		}
	}
	for i := h[0] & uint64(len(t.places)-1); ; i = (i + 1) & uint64(len(t.places)-1) {
		switch t.places[i] {
		case [2]uint64{}:
			t.places[i] = h
			t.n++
			return true
		case h:
			return false
		}
	}
}
