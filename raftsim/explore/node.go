package explore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"time"

	"github.com/steadyraft/raft"
)

// standstill is the time at which everything happens.
const standstill = time.Second

// disk is what survives a crash. It is never changed in place.
type disk struct {
	incarnation uint64
	hard        raft.HardState
	compacted   raft.EntryID
	entries     []raft.Entry
	snapshot    raft.SnapshotMeta

	damaged uint64         // a bit for the index of each entry that cannot be read
	fence   raft.EntryID   // what the log may have held at its end
	lost    []raft.EntryID // what it did hold, as far as the fence stands for it
}

func (d *disk) isDamaged(i raft.Index) bool { return d.damaged>>i&1 != 0 }

func (d *disk) last() raft.EntryID {
	if n := len(d.entries); n > 0 {
		return d.entries[n-1].ID()
	}
	return d.compacted
}

// termAt returns the term of an entry that is on the disk. What is compacted is covered by a snapshot.
func (d *disk) termAt(i raft.Index) (raft.Term, bool) {
	if i <= d.compacted.Index || i > d.last().Index {
		return d.compacted.Term, i == d.compacted.Index
	}
	return d.entries[i-d.compacted.Index-1].Term, true
}

// holds reports whether the entry is durable here, by itself or in a snapshot. A damaged one counts, because the server knows that it had
// it, and so does one that is lost, as long as the fence stands for it.
func (d *disk) holds(id raft.EntryID) bool {
	t, ok := d.termAt(id.Index)
	return ok && t == id.Term || id.Index <= max(d.compacted.Index, d.snapshot.Index) ||
		d.fence != (raft.EntryID{}) && slices.Contains(d.lost, id)
}

// write makes a batch durable.
func (d *disk) write(b *raft.Batch) error {
	if b.HardState != nil {
		was, is := d.hard, *b.HardState
		if is.CurrentTerm < was.CurrentTerm || is.CurrentTerm == was.CurrentTerm && was.VotedFor != "" && was.VotedFor != is.VotedFor {
			return fmt.Errorf("SAFETY inv 2, 3: term %d with a vote for %q is written over term %d with a vote for %q",
				is.CurrentTerm, is.VotedFor, was.CurrentTerm, was.VotedFor)
		}
		d.hard = is
	}
	if b.TruncateFrom != 0 {
		d.damaged &= 1<<b.TruncateFrom - 1
		if b.TruncateFrom <= d.compacted.Index {
			return fmt.Errorf("entries from %d on are removed, but the log begins behind %v", b.TruncateFrom, d.compacted)
		}
		if n := int(b.TruncateFrom - d.compacted.Index - 1); n < len(d.entries) {
			d.entries = d.entries[:n:n]
		}
	}
	if b.Snapshot != nil {
		d.install(b.Snapshot.ID())
	}
	for i := range b.Entries {
		if want := d.last().Index + 1; b.Entries[i].Index != want {
			return fmt.Errorf("entry %v is written where %d is wanted", b.Entries[i].ID(), want)
		}
		d.entries = append(slices.Clip(d.entries), b.Entries[i])
	}
	for i := range b.Repairs {
		e := &b.Repairs[i]
		if t, ok := d.termAt(e.Index); !ok || t != e.Term || e.Index <= d.compacted.Index {
			return fmt.Errorf("entry %v is repaired, which is not in the log", e.ID())
		}
		at := e.Index - d.compacted.Index - 1
		if was := &d.entries[at]; was.Type != e.Type || !bytes.Equal(was.Data, e.Data) {
			return fmt.Errorf("entry %v is repaired with another content", e.ID())
		}
		d.damaged &^= 1 << e.Index
	}
	if b.Fence != nil {
		if d.fence = *b.Fence; d.fence == (raft.EntryID{}) {
			d.lost = nil
		}
	}
	return nil
}

// install begins the log behind a snapshot. "If existing log entry has same index and term as snapshot's last included entry, retain log
// entries following it" (§7).
func (d *disk) install(id raft.EntryID) {
	if t, ok := d.termAt(id.Index); ok && t == id.Term {
		d.compact(id.Index)
		return
	}
	d.compacted, d.entries, d.damaged = id, nil, 0
}

func (d *disk) compact(to raft.Index) {
	if to <= d.compacted.Index {
		return
	}
	n := to - d.compacted.Index
	d.compacted, d.entries = d.entries[n-1].ID(), d.entries[n:]
	d.damaged &^= 1<<(to+1) - 1
}

func (d *disk) recovered(id raft.NodeID, replica raft.ReplicaID) *raft.Recovered {
	r := &raft.Recovered{Identity: raft.Identity{Cluster: "lab", Node: id, Replica: replica, Incarnation: d.incarnation},
		HardState: d.hard, Snapshot: d.snapshot, Compacted: d.compacted, LastIndex: d.last().Index, Fence: d.fence}
	for _, e := range d.entries {
		if d.isDamaged(e.Index) {
			r.Damaged = append(r.Damaged, raft.Damage{First: e.Index, Last: e.Index, MayConfigure: e.Type == raft.EntryConfiguration})
		}
		if n := len(r.Terms); n == 0 || r.Terms[n-1].Term != e.Term {
			r.Terms = append(r.Terms, raft.TermStart{Index: e.Index, Term: e.Term})
		}
		if e.Type == raft.EntryConfiguration && !d.isDamaged(e.Index) {
			r.Configurations = append(r.Configurations, e)
		}
	}
	return r
}

// node is one server in one state: its core, its disk and the writes between them. It is never changed; a step makes another.
type node struct {
	server    int
	core      *raft.Core
	disk      disk
	queue     []raft.Write // issued and not durable
	persisted uint64       // seq of the last write reported to the core

	// What the core has said about itself, so that it need not be asked again.
	status     raft.CoreStatus
	maxRequest uint64             // no request of this process has a higher number
	reset      [maxServers]uint64 // leaders: requests up to this one are old news, for each peer
	transfer   [maxServers]uint64 // leaders: the snapshot transfer under way to each peer
	foreign    []foreignRequest   // request numbers of others, in replies that wait for the disk
	log        []mark             // the log as it will be on disk once the queue is written, behind base
	base       raft.EntryID       // the last entry that is compacted
	voters     [2][]int           // of the configuration in force: the new half, and the old one while it is joint
	sums       [][2]uint64        // one for each renaming
	campaigns  bool               // an election timeout would have an effect
	lacks      bool               // it has something to ask the others for
	joint      bool
}

// foreignRequest is the number of a request that another server made.
type foreignRequest struct {
	owner int
	v     uint64
}

// mark stands for an entry: its term, and a sum of its content.
type mark struct {
	term    raft.Term
	content uint64
}

// packet is a message under way. It is never changed.
type packet struct {
	m        raft.Message
	from, to int
	transfer uint64      // of an InstallSnapshot: the number that its sender gave it
	sums     [][2]uint64 // one for each renaming, without request number
	request  uint64      // of an AppendEntries or its reply; 0: the number means nothing
	owner    int         // whose request number that is
	kind     string
}

// outcome is what one step of one server leads to.
type outcome struct {
	n     *node
	sent  []*packet
	reads []raft.ReadResult
	err   error
}

// step lets a copy of a server take a step, and carries out all that it asks for.
func (x *explorer) step(k step) *outcome {
	d := &draft{x: x, node: *k.n}
	err := d.guarded(func() error {
		switch k.kind {
		case damage:
			d.disk.damaged |= 1 << k.arg
			return d.crash()
		case forget:
			return d.forget(raft.Index(k.arg))
		case mislay:
			d.disk.snapshot = raft.SnapshotMeta{}
			return d.crash()
		case crash:
			return d.crash()
		}
		d.core = k.n.core.Clone()
		return d.checked(func() error { return x.feed(d, k) })
	})
	switch {
	case err == errNothing:
		return &outcome{err: err}
	case err != nil:
		return &outcome{err: fmt.Errorf("server %s: %w", x.ids[k.n.server], err)}
	}
	return d.finish()
}

// draft is a server in the middle of a step.
type draft struct {
	node
	x     *explorer
	sent  []*packet
	reads []raft.ReadResult
}

// guarded does what begins a step and all that follows from it. A core that finds a promise of its own broken panics.
func (d *draft) guarded(begin func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			broken, ok := r.(*raft.InvariantError)
			if !ok {
				panic(r)
			}
			err = broken
		}
	}()
	if err := begin(); err != nil {
		return err
	}
	return d.drain()
}

// checked carries out one operation on the core and compares the states before and after it.
func (d *draft) checked(operation func() error) error {
	before := d.core.Clone()
	if err := operation(); err != nil {
		return err
	}
	return raft.CheckStep(before, d.core)
}

// drain does what the core asks for, until it asks for nothing.
func (d *draft) drain() error {
	for d.core.HasReady() {
		var r *raft.Ready
		if err := d.checked(func() error { r = d.core.Ready(); return d.core.Check() }); err != nil {
			return err
		}
		for _, m := range r.Send {
			if err := d.checkPromise(m); err != nil {
				return err
			}
			d.sent = append(d.sent, d.x.packet(m, 0))
		}
		for _, t := range r.Snapshots {
			d.sent = append(d.sent, d.x.packet(t.Message, t.ID))
		}
		d.reads = append(d.reads, r.Reads...)
		if r.Write.Seq != 0 {
			d.queue = append(slices.Clip(d.queue), r.Write)
		}
		d.disk.compact(r.Compact)
		// The slices of r last until the next Ready, and the calls below do not make one.
		for _, a := range r.Apply {
			for i := a.Lo; i < a.Hi; i++ {
				t, _ := d.core.TermAt(i)
				if on, ok := d.disk.termAt(i); !ok || on != t {
					return fmt.Errorf("entry %d@%d is applied, which is not on its disk", i, t)
				}
				if d.disk.isDamaged(i) {
					return fmt.Errorf("SAFETY inv 24: entry %d@%d is applied, which cannot be read", i, t)
				}
			}
			d.core.Applied(standstill, a.Hi-1)
		}
		for _, l := range r.Loads {
			d.load(l)
		}
		if !d.x.world.SlowDisks && len(d.queue) > 0 {
			if err := d.checked(func() error { return d.persist(len(d.queue)) }); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *draft) load(l raft.Load) {
	if l.Lo <= d.disk.compacted.Index {
		d.core.LoadFailed(standstill, l.ID, raft.LoadCompacted)
		return
	}
	first := d.disk.compacted.Index + 1
	for i := l.Lo; i < l.Hi; i++ {
		if d.disk.isDamaged(i) {
			l.Hi = i
		}
	}
	if l.Lo == l.Hi { // a core that knows its damage asks for nothing that cannot be read
		panic(&raft.InvariantError{Broken: fmt.Sprintf("SAFETY inv 24: entry %d is read, which cannot be", l.Lo)})
	}
	d.core.Loaded(standstill, l.ID, slices.Clip(d.disk.entries[l.Lo-first:l.Hi-first]))
}

// persist makes the first k writes durable and reports the last of them.
func (d *draft) persist(k int) error {
	for i := range k {
		if err := d.disk.write(&d.queue[i].Batch); err != nil {
			return err
		}
	}
	d.persisted = d.queue[k-1].Seq
	d.queue = d.queue[k:]
	d.core.Persisted(standstill, d.persisted)
	return nil
}

// checkPromise compares a message that leaves with what is durable at this moment.
func (d *draft) checkPromise(m raft.Message) error {
	hard := d.disk.hard
	switch b := m.Body.(type) {
	case raft.RequestVote:
		if want := (raft.HardState{CurrentTerm: m.Term, VotedFor: m.From}); hard != want {
			return fmt.Errorf("SAFETY inv 12: a vote is asked for in term %d, but term %d with a vote for %q is durable", m.Term, hard.CurrentTerm, hard.VotedFor)
		}
	case raft.RequestVoteReply:
		if want := (raft.HardState{CurrentTerm: m.Term, VotedFor: m.To}); b.Granted && hard != want {
			return fmt.Errorf("SAFETY inv 12: a vote for %q in term %d leaves, but term %d with a vote for %q is durable", m.To, m.Term, hard.CurrentTerm, hard.VotedFor)
		}
		if hard.CurrentTerm < m.Term {
			return fmt.Errorf("SAFETY inv 12: a reply speaks of term %d, but term %d is durable", m.Term, hard.CurrentTerm)
		}
	case raft.AppendEntriesReply:
		if hard.CurrentTerm < m.Term {
			return fmt.Errorf("SAFETY inv 12: a reply speaks of term %d, but term %d is durable", m.Term, hard.CurrentTerm)
		}
		if b.Success {
			return d.checkAcknowledged(b.MatchIndex)
		}
	case raft.InstallSnapshotReply:
		return d.checkAcknowledged(b.MatchIndex)
	}
	return nil
}

func (d *draft) checkAcknowledged(match raft.Index) error {
	for i := d.disk.compacted.Index + 1; i <= match; i++ {
		want, known := d.core.TermAt(i) // unknown where a snapshot was taken in meanwhile that is not written down yet
		t, ok := d.disk.termAt(i)
		switch {
		case d.disk.isDamaged(i):
			return fmt.Errorf("SAFETY inv 22: entries up to %d are acknowledged, but %d cannot be read", match, i)
		case !ok:
			return fmt.Errorf("SAFETY inv 11: entries up to %d are acknowledged, but %d is not durable", match, i)
		case known && t != want:
			return fmt.Errorf("SAFETY inv 11: entries up to %d are acknowledged, but %d@%d is not durable, %d@%d is", match, i, want, i, t)
		}
	}
	return nil
}

// crash loses everything but the disk, and starts again.
func (d *draft) crash() error {
	d.disk.incarnation++
	core, err := raft.NewCore(d.x.config(d.server), standstill, d.disk.recovered(d.x.ids[d.server], replicaOf(d.server)))
	if err != nil {
		return err
	}
	d.core, d.queue, d.persisted, d.maxRequest = core, nil, 0, 0
	return nil
}

// forget loses the end of the log with a crash, from an entry on. The fence stands for all of it.
func (d *draft) forget(from raft.Index) error {
	k := &d.disk
	last := k.last()
	for _, e := range k.entries[from-k.compacted.Index-1:] {
		k.lost = append(slices.Clip(k.lost), e.ID())
	}
	if k.fence == (raft.EntryID{}) || last.Term > k.fence.Term || last.Term == k.fence.Term && last.Index > k.fence.Index {
		k.fence = last
	}
	n := from - k.compacted.Index - 1
	k.entries, k.damaged = k.entries[:n:n], k.damaged&(1<<from-1)
	return d.crash()
}

// finish makes the server that has taken the step, or finds it among those that are known.
func (d *draft) finish() *outcome {
	x, n := d.x, d.node
	out := &outcome{sent: d.sent, reads: d.reads}
	for _, p := range d.sent {
		n.maxRequest = max(n.maxRequest, requestNumber(p.m))
	}
	x.scratch = n.appendTo(x.scratch[:0], raft.Naming{Rank: func(kind raft.NumberKind, owner raft.NodeID, v uint64) uint64 {
		if kind == raft.NumberRequest && owner == x.ids[n.server] {
			n.maxRequest = max(n.maxRequest, v)
		}
		return v
	}})
	key := sum(binary.AppendUvarint(binary.AppendUvarint(x.scratch, n.maxRequest), n.persisted))
	if known := x.nodes[key]; known != nil {
		out.n = known
		return out
	}
	if err := n.describe(x); err != nil {
		return &outcome{err: fmt.Errorf("server %s: %w", x.ids[n.server], err)}
	}
	if len(x.nodes) > maxKnown {
		clear(x.nodes)
	}
	x.nodes[key] = &n
	out.n = &n
	return out
}

// requestNumber is the number that the sender gave, 0 for a reply.
func requestNumber(m raft.Message) uint64 {
	switch m.Body.(type) {
	case raft.PreVote, raft.RequestVote, raft.AppendEntries, raft.InstallSnapshot, raft.TimeoutNow, raft.FetchEntries:
		return m.Request
	}
	return 0
}

// describe fills in what can be said about the server, and checks what must hold within it.
func (n *node) describe(x *explorer) error {
	n.status = n.core.Status(standstill)
	n.campaigns = n.status.Role != raft.Leader && n.status.Configuration.IsVoter(x.ids[n.server])
	n.lacks = len(n.status.Damaged) > 0 || n.status.Fence != (raft.EntryID{})
	n.joint = n.status.Configuration.Joint()
	n.voters = [2][]int{}
	for _, s := range n.status.Configuration.Servers {
		if s.Suffrage == raft.Voter && !s.Leaving {
			n.voters[0] = append(n.voters[0], x.index(s.ID))
		}
		if s.Outgoing {
			n.voters[1] = append(n.voters[1], x.index(s.ID))
		}
	}

	written := n.disk
	for i := range n.queue {
		if err := written.write(&n.queue[i].Batch); err != nil {
			return err
		}
	}
	n.base, n.log = written.compacted, nil
	for i := range written.entries {
		e := &written.entries[i]
		n.log = append(n.log, mark{e.Term, sum(append(e.Data, byte(e.Type)))[0]})
	}
	if last := written.last().Index; last != n.status.LastIndex {
		return fmt.Errorf("the log ends at %d, but on disk it will end at %d", n.status.LastIndex, last)
	}
	for i := n.status.FirstIndex; i <= n.status.LastIndex; i++ {
		t, ok := n.core.TermAt(i)
		if on, has := written.termAt(i); !ok || !has || on != t {
			return fmt.Errorf("the log holds %d@%d, but on disk it will be %d@%d", i, t, i, on)
		}
		if on, has := n.disk.termAt(i); i <= n.status.DurableIndex && (!has || on != t) {
			return fmt.Errorf("entry %d@%d counts as durable, and is not", i, t)
		}
		if i <= n.status.DurableIndex && n.disk.isDamaged(i) {
			return fmt.Errorf("SAFETY inv 22: entry %d@%d counts as durable, and cannot be read", i, t)
		}
	}

	// "A server always uses the latest configuration in its log, regardless of whether the entry is committed" (§6).
	latest := min(n.status.ConfigurationIndex, n.base.Index) // it may be compacted
	for i := range written.entries {
		if e := &written.entries[i]; e.Type == raft.EntryConfiguration {
			latest = e.Index
		}
	}
	if latest != n.status.ConfigurationIndex {
		return fmt.Errorf("the configuration of index %d is in force, but the latest in the log is that of %d", n.status.ConfigurationIndex, latest)
	}

	n.sums = make([][2]uint64, len(x.renamings))
	for k := range x.renamings {
		peer := 0
		n.foreign = nil
		rank := func(kind raft.NumberKind, owner raft.NodeID, v uint64) uint64 {
			switch kind {
			case raft.NumberIncarnation:
				peer = x.index(owner)
			case raft.NumberReplica:
				return min(v, 1)
			case raft.NumberRequest:
				if o := x.index(owner); o != n.server {
					n.foreign = append(n.foreign, foreignRequest{o, v})
				} else {
					n.reset[peer] = v
				}
				return 0
			case raft.NumberWrite:
				return v - n.persisted
			case raft.NumberWork:
				n.transfer[peer] = v // the load, which is none, and then the transfer
				return min(v, 1)
			}
			return v
		}
		n.reset, n.transfer = [maxServers]uint64{}, [maxServers]uint64{}
		x.scratch = n.appendTo(x.scratch[:0], raft.Naming{Rank: rank, Name: x.names[k]})
		n.sums[k] = sum(x.scratch)
	}
	return nil
}

// appendTo appends everything that decides how the server will behave.
func (n *node) appendTo(b []byte, as raft.Naming) []byte {
	b = n.core.AppendState(b, as)
	b = appendDisk(b, &n.disk, as)
	for i := range n.queue {
		w := &n.queue[i]
		part := disk{compacted: raft.EntryID{Index: w.TruncateFrom}, entries: slices.Concat(w.Entries, w.Repairs)}
		if w.Fence != nil {
			part.damaged = 1
		}
		if w.HardState != nil {
			part.hard = *w.HardState
		}
		if w.Snapshot != nil {
			part.snapshot = *w.Snapshot
		}
		b = appendDisk(b, &part, as)
	}
	return b
}

// appendDisk borrows the encoding of messages, which knows how to rename servers in entries and snapshots.
func appendDisk(b []byte, d *disk, as raft.Naming) []byte {
	name := as.Name
	if name == nil {
		name = func(id raft.NodeID) raft.NodeID { return id }
	}
	as.Rank = func(kind raft.NumberKind, _ raft.NodeID, v uint64) uint64 {
		if kind == raft.NumberReplica {
			return min(v, 1)
		}
		return v
	}
	b = binary.AppendUvarint(b, d.incarnation)
	b = binary.AppendUvarint(b, d.damaged)
	b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(d.fence.Term)), uint64(d.fence.Index))
	for _, id := range d.lost {
		b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(id.Term)), uint64(id.Index))
	}
	b = binary.AppendUvarint(b, uint64(d.hard.CurrentTerm))
	b = append(append(b, name(d.hard.VotedFor)...), 0)
	b = raft.Message{Body: raft.AppendEntries{PrevLogIndex: d.compacted.Index, PrevLogTerm: d.compacted.Term, Entries: d.entries}}.AppendState(b, as)
	return raft.Message{Body: raft.InstallSnapshot{Meta: d.snapshot}}.AppendState(b, as)
}

// packet makes a packet of a message, or finds it among those that are known.
func (x *explorer) packet(m raft.Message, transfer uint64) *packet {
	key := sum(binary.AppendUvarint(m.AppendState(nil, raft.Naming{}), transfer))
	if p := x.packets[key]; p != nil {
		return p
	}
	p := &packet{m: m, from: x.index(m.From), to: x.index(m.To), transfer: transfer, kind: kindOf(m)}
	switch m.Body.(type) {
	case raft.AppendEntries:
		p.request, p.owner = m.Request, p.from
	case raft.AppendEntriesReply:
		p.request, p.owner = m.Request, p.to
	}
	rank := func(kind raft.NumberKind, _ raft.NodeID, v uint64) uint64 {
		switch kind {
		case raft.NumberRequest:
			return 0
		case raft.NumberReplica:
			return min(v, 1)
		}
		return v
	}
	for _, name := range x.names {
		p.sums = append(p.sums, sum(m.AppendState(nil, raft.Naming{Rank: rank, Name: name})))
	}
	if len(x.packets) > maxKnown {
		clear(x.packets)
	}
	x.packets[key] = p
	return p
}

// seen says what the owner of a request number can tell about it: it is old news, fresh, or beyond all that this process has made (of
// an earlier process).
func seen(n *node, peer int, request uint64) uint64 {
	switch {
	case request > n.maxRequest:
		return 2 + request - n.maxRequest
	case n.status.Role == raft.Leader && request > n.reset[peer]:
		return 1
	}
	return 0
}

// sum is a 128-bit hash (two multiplications with folding, as in wyhash).
func sum(b []byte) [2]uint64 {
	h0, h1 := uint64(len(b))^0x9e3779b97f4a7c15, uint64(0xd6e8feb86659fd93)
	for len(b) >= 8 {
		v := binary.LittleEndian.Uint64(b)
		h0, h1 = mix(h0^v, 0xa0761d6478bd642f), mix(h1+v, 0xe7037ed1a0b428db)
		b = b[8:]
	}
	var rest [8]byte
	copy(rest[:], b)
	v := binary.LittleEndian.Uint64(rest[:])
	h0, h1 = mix(h0^v, 0xa0761d6478bd642f), mix(h1+v, 0xe7037ed1a0b428db)
	return [2]uint64{mix(h0, h1^0x8ebc6af09c88c6e3), mix(h1, h0^0x589965cc75374cc3)}
}

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a|1<<63, b)
	return hi ^ lo ^ a
}

var errNothing = errors.New("nothing happens")
