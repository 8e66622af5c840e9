package raft

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// ProposeOption changes one proposal.
type ProposeOption func(*proposeOptions)

type proposeOptions struct{ ifTerm Term }

// IfTerm refuses the proposal with [ErrStaleTerm] once t is over: it is appended by the leader of term t or not at all. With the
// epoch that [Node.WhileLeader] hands out it is a fencing token: no command of a deposed leader slips in behind its successor's.
func IfTerm(t Term) ProposeOption { return func(o *proposeOptions) { o.ifTerm = t } }

// Propose replicates cmd and returns what StateMachine.Apply put into its results for it, once the command is committed and
// applied on this node. It may be called on every node: a follower passes it on to the leader (see Config.DisableForwarding), and
// while there is no leader it waits for one. cmd is copied before it goes anywhere; the caller keeps it, and does not change it
// before Propose has returned.
//
// It blocks until the outcome is known, ctx ends, or the node stops. An error is either certain, and then the command has taken no
// effect and never will:
//
//   - [ErrTooLarge], [ErrOverloaded], [ErrStorageFull], [ErrStaleTerm], [ErrReentrant]: refused.
//   - [ErrDropped]: another leader's entry was committed in its place.
//   - [*NotLeaderError]: refused because Config.DisableForwarding is set.
//   - [ErrStopped], [*FailedError]: this node does not run (any more).
//   - [*MembershipError]: this node was removed from the cluster while the command waited here.
//   - the error of ctx, if ctx ended while the command still waited here; with a [*NotLeaderError] if it waited for a leader.
//
// or it is an [*UncertainError] that wraps the cause: the command was handed to a leader, and this node cannot know any more what
// became of it. errors.As with *UncertainError tells the two apart.
func (n *Node) Propose(ctx context.Context, cmd []byte, opts ...ProposeOption) (any, error) {
	p, err := n.submitCommand(ctx, cmd, opts, false)
	if err != nil {
		return nil, err
	}
	return p.wait(ctx)
}

// ProposeAsync is [Node.Propose] that does not wait: it returns at once, with a Pending that is ended already if the proposal is
// refused. When ctx ends, the Pending ends with the error that Propose would have returned. cmd is copied before it returns.
func (n *Node) ProposeAsync(ctx context.Context, cmd []byte, opts ...ProposeOption) *Pending {
	p, err := n.submitCommand(ctx, cmd, opts, true)
	if err != nil {
		p = newPending(n, Entry{}, 0, true)
		p.end(nil, err)
		return p
	}
	if ctx.Done() != nil {
		stop := context.AfterFunc(ctx, func() { p.cancel(ctx) })
		p.mu.Lock()
		p.stopWatch = stop
		over := p.stage == stageEnded
		p.mu.Unlock()
		if over { // it ended before it could know about the watch
			stop()
		}
	}
	return p
}

// Barrier returns once every command that was committed before the call has been applied on this node. It costs an entry in the
// log; [Node.Read] gives the same guarantee without one. Blocking and errors are those of Propose.
func (n *Node) Barrier(ctx context.Context) error {
	p, err := n.submit(ctx, NewBarrier(), 0, false)
	if err != nil {
		return err
	}
	_, err = p.wait(ctx)
	return err
}

func (n *Node) submitCommand(ctx context.Context, cmd []byte, opts []ProposeOption, async bool) (*Pending, error) {
	if len(cmd) > n.cfg.MaxCommandBytes {
		return nil, fmt.Errorf("propose %d bytes, at most %d: %w", len(cmd), n.cfg.MaxCommandBytes, ErrTooLarge)
	}
	var ifTerm Term
	if len(opts) > 0 { // what options write to is allocated
		var o proposeOptions
		for _, opt := range opts {
			opt(&o)
		}
		ifTerm = o.ifTerm
	}
	e := Entry{Type: EntryCommand, Data: cmd} // framed by claim: the caller waits, and keeps it as it is meanwhile
	if async || EntryHeaderSize+len(cmd) > maxSlabFrame {
		e = NewCommand(cmd) // copied and checksummed here, in the caller's goroutine
	}
	return n.submit(ctx, e, ifTerm, async)
}

func (n *Node) submit(ctx context.Context, e Entry, ifTerm Term, async bool) (*Pending, error) {
	if n.applier.isCaller() {
		return nil, ErrReentrant
	}
	if ctx.Err() != nil {
		return nil, n.withdrawn(ctx)
	}
	p := newPending(n, e, ifTerm, async)
	p.size = EntryHeaderSize + len(e.Data)
	if n.measured {
		p.started = time.Now()
	}
	// The queue and the log have bounds of their own. This one is for what is committed and waits for a slow state machine.
	if n.outstanding.Add(p.cost()) > n.maxOutstanding() {
		n.outstanding.Add(-p.cost())
		return nil, ErrOverloaded
	}
	if err := n.inbox.propose(p); err != nil {
		n.outstanding.Add(-p.cost())
		return nil, err
	}
	return p, nil
}

// maxOutstanding bounds the bytes of proposals that were made on this node and have not ended: as much as may be queued here,
// uncommitted in the log, and committed but not applied.
func (n *Node) maxOutstanding() int64 {
	return int64(n.cfg.MaxProposalBytes) + int64(n.cfg.Core.MaxUncommittedBytes) + int64(n.cfg.Core.MaxUnappliedBytes)
}

// pendingOverhead is about what a proposal costs in memory besides its entry.
const pendingOverhead = 256

// cost is what a proposal counts as long as it has not ended.
func (p *Pending) cost() int64 { return int64(p.size + pendingOverhead) }

// withdrawn says that a request ended with ctx before it had left this node, and so took no effect.
func (n *Node) withdrawn(ctx context.Context) error {
	if l := n.lead.current(); l.Leader == "" {
		return fmt.Errorf("gave up waiting for a leader, without effect: %w (%w)", ctx.Err(), &NotLeaderError{Term: l.Term})
	}
	return fmt.Errorf("given up before it was sent, without effect: %w", ctx.Err())
}

// stage is how far a proposal has come.
type stage uint8

const (
	stageQueued  stage = iota // on this node only: it can still be withdrawn
	stageClaimed              // given to a leader, here or elsewhere: the outcome is the log's business
	stageEnded                // result and err are final
)

// Pending is a proposal under way. Its methods may be called at the same time.
type Pending struct {
	node    *Node
	ifTerm  Term
	size    int       // of the entry, in bytes; 0 for what was never queued as a proposal
	async   bool      // the embedder has it, and may ask for Committed and Done
	started time.Time // zero unless somebody measures
	done    chan struct{}

	// A proposal is used again once it has ended, if nobody can still hold it who might take it for the one before: tabled says that the
	// table alone has it, and free that the table has given it up too. Each is set by who hands it on, before that.
	tabled, free bool

	mu          sync.Mutex
	entry       Entry // without a frame until claimed, if Data is the caller's
	stage       stage
	id          EntryID // zero until known
	isCommitted bool
	committed   chan struct{} // made when somebody asks for it
	stopWatch   func() bool   // ends the watch over ProposeAsync's context
	result      any
	err         error
}

// newPending makes a proposal. One that is not async has one waiter, who calls wait: its channel gets one message, not an end.
func newPending(n *Node, e Entry, ifTerm Term, async bool) *Pending {
	var p *Pending
	if async {
		p = &Pending{done: make(chan struct{})}
	} else if p, _ = n.pendings.Get().(*Pending); p == nil {
		p = &Pending{done: make(chan struct{}, 1)}
	}
	p.node, p.entry, p.size, p.ifTerm, p.async = n, e, e.Size(), ifTerm, async
	return p
}

// wake tells who waits that the proposal has ended. Whoever settles it calls this, once.
func (p *Pending) wake() {
	if p.async {
		close(p.done)
	} else {
		p.done <- struct{}{}
	}
}

// Committed returns a channel that is closed when the command is committed, or has ended otherwise. From then on, unless Result
// returns an error, no failure of any minority of the cluster can undo the command.
func (p *Pending) Committed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.committed == nil {
		p.committed = make(chan struct{})
		if p.isCommitted || p.stage == stageEnded {
			close(p.committed)
		}
	}
	return p.committed
}

// Done returns a channel that is closed when the command has been applied on this node, or has ended otherwise.
func (p *Pending) Done() <-chan struct{} { return p.done }

// Result waits for Done and returns what Propose would have returned.
func (p *Pending) Result() (any, error) {
	<-p.done
	return p.result, p.err
}

// ID names the entry that carries the command. ok is false as long as (or if) no leader is known to have appended it.
func (p *Pending) ID() (id EntryID, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.id, p.id != EntryID{}
}

// wait is for the caller of a proposal that is not async, once.
func (p *Pending) wait(ctx context.Context) (any, error) {
	select {
	case <-p.done:
	case <-ctx.Done():
		p.cancel(ctx)
		<-p.done // from us, or from who was faster
	}
	result, err := p.result, p.err
	if p.free {
		n, done := p.node, p.done // empty: a proposal is settled once
		*p = Pending{done: done}
		n.pendings.Put(p)
	}
	return result, err
}

// cancel ends a proposal because its caller does not wait any longer.
func (p *Pending) cancel(ctx context.Context) {
	certain := p.node.withdrawn(ctx)
	p.mu.Lock()
	was := p.stage
	switch was {
	case stageQueued:
		p.settle(nil, certain)
	case stageClaimed:
		p.settle(nil, &UncertainError{ID: p.id, Cause: ctx.Err()})
	}
	p.mu.Unlock()
	if was == stageEnded {
		return
	}
	p.wake()
	if was == stageQueued {
		p.node.inbox.noteWithdrawn()
	}
}

// claim takes a proposal out of its caller's hands, right before it is given to a leader. ok is false if the caller has
// withdrawn it. A command that is still the caller's is copied into a frame. It is all or nothing under mu: once the proposal has ended,
// nobody looks at the caller's bytes any more.
func (p *Pending) claim(frames *frameSlab) (e Entry, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stage != stageQueued {
		return Entry{}, false
	}
	p.stage = stageClaimed
	if p.entry.frame == nil {
		p.entry = frameEntry(p.entry.Type, frames.take(EntryHeaderSize+len(p.entry.Data)), p.entry.Data)
	}
	return p.entry, true
}

// isWithdrawn reports whether a proposal that still lies in a queue has ended.
func (p *Pending) isWithdrawn() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stage == stageEnded
}

// unclaim takes a proposal back that was certainly appended nowhere. It reports false if the caller has given up meanwhile.
func (p *Pending) unclaim() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stage == stageClaimed {
		p.stage = stageQueued
	}
	return p.stage == stageQueued
}

func (p *Pending) appended(id EntryID) {
	p.mu.Lock()
	p.id = id
	p.mu.Unlock()
}

// markCommitted closes Committed.
func (p *Pending) markCommitted() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.isCommitted || p.stage == stageEnded {
		return
	}
	p.isCommitted = true
	if p.committed != nil {
		close(p.committed)
	}
}

// end ends the proposal, unless it has ended.
func (p *Pending) end(result any, err error) {
	if p.trySettle(result, err) {
		p.wake()
	}
}

// trySettle fixes the outcome without waking anybody: whoever gets true calls wake. So a batch of proposals gets its results
// first, and its callers are woken together afterwards.
func (p *Pending) trySettle(result any, err error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stage == stageEnded {
		return false
	}
	p.settle(result, err)
	return true
}

// endWith ends a proposal for a reason that is not the log's: the outcome is certain only if it never left this node.
func (p *Pending) endWith(cause error) {
	p.mu.Lock()
	was := p.stage
	switch was {
	case stageQueued:
		p.settle(nil, cause)
	case stageClaimed:
		p.settle(nil, &UncertainError{ID: p.id, Cause: cause})
	}
	p.mu.Unlock()
	if was != stageEnded {
		p.wake()
	}
}

// settle is called with mu held, once.
func (p *Pending) settle(result any, err error) {
	p.stage, p.result, p.err = stageEnded, result, err
	p.entry = Entry{} // the log has it, or nobody wants it
	if p.size > 0 {
		p.node.outstanding.Add(-p.cost())
	}
	if p.committed != nil && !p.isCommitted {
		close(p.committed)
	}
	if p.stopWatch != nil {
		p.stopWatch()
	}
}

// slot is a proposal that waits for its entry.
type slot struct {
	id EntryID
	p  *Pending
}

// slots keeps proposals by rising index. They come in order on a leader and nearly so elsewhere, so it is a queue and no tree.
type slots struct {
	s    []slot
	head int // s[:head] is gone
}

func (q *slots) len() int { return len(q.s) - q.head }

func (q *slots) front() *slot {
	if q.head == len(q.s) {
		return nil
	}
	return &q.s[q.head]
}

func (q *slots) push(sl slot) {
	if q.head > 64 && q.head > len(q.s)/2 {
		rest := copy(q.s, q.s[q.head:])
		clear(q.s[rest:])
		q.s, q.head = q.s[:rest], 0
	}
	i := len(q.s)
	for i > q.head && q.s[i-1].id.Index > sl.id.Index {
		i--
	}
	q.s = slices.Insert(q.s, i, sl)
}

func (q *slots) pop() slot {
	sl := q.s[q.head]
	q.s[q.head] = slot{}
	q.head++
	if q.head == len(q.s) {
		q.s, q.head = q.s[:0], 0
	}
	return sl
}

// keep drops the proposals for which f returns false.
func (q *slots) keep(f func(slot) bool) {
	kept := q.s[:0]
	for _, sl := range q.s[q.head:] {
		if f(sl) {
			kept = append(kept, sl)
		}
	}
	clear(q.s[len(kept):])
	q.s, q.head = kept, 0
}

// retainedResults bounds how many results are kept for proposals that were forwarded and applied here before the leader's answer
// said where they are in the log.
const retainedResults = 8192

// table is the meeting place of the loop, which knows where proposals were appended, and the applier, which knows what became of
// those places.
type table struct {
	mu       sync.Mutex
	appended slots
	applied  EntryID // the last entry that the state machine has seen, or the snapshot that it was restored from
	readers  []reader
	toWake   []*Pending // scratch

	// While forwarded proposals are unanswered, the newest results are kept.
	forwards int
	results  map[Index]retained
	oldest   Index // the lowest index that may be in results
}

// reader is a batch of reads that is confirmed at index.
type reader struct {
	index Index
	batch *readBatch
}

type retained struct {
	term   Term
	result any
}

// insert adds proposals that this leader has just appended. The core has not handed them out for apply yet.
func (t *table) insert(ss []slot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, sl := range ss {
		t.appended.push(sl)
	}
}

// beginForward and endForward enclose the time in which a forwarded message is unanswered.
func (t *table) beginForward() {
	t.mu.Lock()
	t.forwards++
	t.mu.Unlock()
}

func (t *table) endForward() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.forwards--; t.forwards == 0 {
		t.results, t.oldest = nil, 0
	}
}

// insertForwarded adds a proposal of which the leader says that it appended it at id. Our own applier may have been there already;
// termAt tells what the log holds at an index.
func (t *table) insertForwarded(sl slot, termAt func(Index) (Term, bool)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case sl.id.Index > t.applied.Index && sl.id.Term < t.applied.Term:
		sl.p.end(nil, ErrDropped)
		return
	case sl.id.Index > t.applied.Index:
		t.appended.push(sl)
		return
	}
	if r, ok := t.results[sl.id.Index]; ok {
		if r.term == sl.id.Term {
			sl.p.end(r.result, nil)
		} else {
			sl.p.end(nil, ErrDropped)
		}
		return
	}
	if term, ok := termAt(sl.id.Index); ok && term != sl.id.Term {
		sl.p.end(nil, ErrDropped)
		return
	}
	sl.p.end(nil, &UncertainError{ID: sl.id, Cause: ErrResultLost})
}

// complete gives the outcome of consecutive applied entries to the proposals that wait for them, then wakes the callers together.
// results belongs to the commands among the entries, in order.
func (t *table) complete(entries []Entry, results []any) {
	t.mu.Lock()
	first, last := entries[0].Index, entries[len(entries)-1].ID()
	t.retain(entries, results)
	pos, command := 0, 0
	for sl := t.appended.front(); sl != nil && sl.id.Index <= last.Index; sl = t.appended.front() {
		at := int(sl.id.Index - first)
		for ; pos < at; pos++ {
			if entries[pos].Type == EntryCommand {
				command++
			}
		}
		var result any
		var err error
		switch {
		case entries[at].Term != sl.id.Term:
			err = ErrDropped
		case entries[at].Type == EntryCommand:
			result = results[command]
		}
		if sl.p.trySettle(result, err) {
			sl.p.free = sl.p.tabled
			t.toWake = append(t.toWake, sl.p)
		}
		t.appended.pop()
	}
	t.advance(last)
	t.unlockAndWake()
}

// restored ends the proposals whose entries a snapshot has replaced: what it restored says that they were committed, if they were,
// but not what they returned.
func (t *table) restored(id EntryID) {
	t.mu.Lock()
	for sl := t.appended.front(); sl != nil && sl.id.Index <= id.Index; sl = t.appended.front() {
		var err error = &UncertainError{ID: sl.id, Cause: ErrResultLost}
		if sl.id.Term > id.Term || sl.id.Index == id.Index && sl.id.Term != id.Term {
			err = ErrDropped // terms only rise along a log, so it cannot be part of what the snapshot covers
		}
		if sl.p.trySettle(nil, err) {
			t.toWake = append(t.toWake, sl.p)
		}
		t.appended.pop()
	}
	t.results = nil // the indexes no longer follow each other
	t.advance(id)
	t.unlockAndWake()
}

// advance notes what has been applied. mu is held.
func (t *table) advance(to EntryID) {
	if to.Term > t.applied.Term {
		// An entry of term to.Term is committed, and terms only rise along a log. So no entry of an earlier term can come to lie
		// behind it: what a deposed leader appended there is gone for ever. Without this a proposal whose entry was truncated
		// would wait until somebody happens to fill its index.
		t.appended.keep(func(sl slot) bool {
			if sl.id.Term >= to.Term {
				return true
			}
			if sl.p.trySettle(nil, ErrDropped) {
				t.toWake = append(t.toWake, sl.p)
			}
			return false
		})
	}
	t.applied = to
	kept := t.readers[:0]
	for _, r := range t.readers {
		if r.index <= to.Index {
			r.batch.end(nil)
		} else {
			kept = append(kept, r)
		}
	}
	clear(t.readers[len(kept):])
	t.readers = kept
}

func (t *table) unlockAndWake() {
	wake := t.toWake
	t.toWake = nil
	t.mu.Unlock()
	for _, p := range wake {
		p.wake()
	}
	clear(wake)
	t.mu.Lock()
	if t.toWake == nil {
		t.toWake = wake[:0] // keep the array
	}
	t.mu.Unlock()
}

// retain keeps results for forwarded proposals whose place in the log is not known here yet. mu is held.
func (t *table) retain(entries []Entry, results []any) {
	if t.forwards == 0 {
		return
	}
	if t.results == nil {
		t.results, t.oldest = make(map[Index]retained), entries[0].Index
	}
	command := 0
	for i := range entries {
		e := &entries[i]
		r := retained{term: e.Term}
		if e.Type == EntryCommand {
			r.result = results[command]
			command++
		}
		t.results[e.Index] = r
		for len(t.results) > retainedResults {
			delete(t.results, t.oldest)
			t.oldest++
		}
	}
}

// awaitApplied ends a batch of reads once index has been applied.
func (t *table) awaitApplied(index Index, b *readBatch) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if index <= t.applied.Index {
		b.end(nil)
		return
	}
	t.readers = append(t.readers, reader{index: index, batch: b})
}

// endAll ends everything that waits, because of cause.
func (t *table) endAll(cause error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.appended.len() > 0 {
		t.appended.pop().p.endWith(cause)
	}
	for _, r := range t.readers {
		r.batch.end(cause)
	}
	t.readers = nil
}

func (t *table) waiting() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.appended.len()
}
