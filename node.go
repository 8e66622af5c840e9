package raft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// Node is one server: a [Core], and the goroutines that carry out what it asks for.
//
//	Propose, Read, …   Transport          ┌──────────► log writer ──► Storage.Write ──┐ Persisted
//	      │               │               │
//	      ▼               ▼               ├──────────► applier ──► StateMachine ──────┤ Applied, results
//	   ┌─────────── inbox ───────────► loop (Core)
//	   │  swapped whole, wakes the loop   ├──────────► loader ──► Storage.Entries ────┤ Loaded
//	   │                                  ├──────────► Transport.Send                 │
//	   └◄─────────────────────────────────┴───────────────────────────────────────────┘
//
// One goroutine, the loop, owns the core and never waits for anything but its inbox and the clock. Everybody else talks to it
// through that. All methods of a Node may be called at the same time, from everywhere but where a method says otherwise.
type Node struct {
	cfg      Config
	log      *slog.Logger
	metrics  Metrics
	measured bool // metrics goes somewhere

	inbox     inbox
	table     table
	lead      leadership
	rpc       rpcWaiters
	writer    *logWriter
	applier   *applier
	loader    *loader
	snapshots *snapshotter

	// Start and Stop. turn is a mutex that can be waited for with a context.
	turn     chan struct{}
	phase    phase // guarded by turn
	started  atomic.Bool
	stopping atomic.Bool
	draining atomic.Bool   // nothing new can come, and leadership is handed over as far as it can be
	quit     chan struct{} // closed: the loop shall end
	drained  chan struct{} // closed by the loop when a stopping node has nothing under way
	failure  atomic.Pointer[FailedError]
	final    atomic.Pointer[error] // Err after the loop has ended
	loopDone chan struct{}         // closed when the loop has ended and all calls with it
	done     chan struct{}
	doneOnce sync.Once
	closed   chan struct{} // closed when nothing of the node is left
	closeErr error         // after closed
	cancel   context.CancelCauseFunc
	workers  sync.WaitGroup

	working       atomic.Bool // WhileLeader runs
	readsUnderWay atomic.Int64
	outstanding   atomic.Int64 // bytes of proposals made here that have not ended
	pendings      sync.Pool    // of *Pending that can be used again, with their channels
	lastView      atomic.Pointer[statusView]
	ident         atomic.Pointer[Identity]
	refusals      refusals
	refusalMu     sync.Mutex // of what refusals says

	// The loop's own.
	core        *Core
	start       time.Time
	view        LeaderChange
	repairs     RepairStatus
	conf        Configuration
	fwd         forwarding
	out         []outgoing
	written     uint64 // the newest write given to the log writer
	persisted   uint64 // the newest one that is durable
	commitIndex Index
	watched     slots // proposals of which somebody wants to know when they are committed
	transfers   []chan<- error
	confWaiters []*confWaiter
	isDrained   bool
	lingers     bool // give the last messages a moment before the transport is closed
}

type phase uint8

const (
	phaseNew phase = iota
	phaseRunning
	phaseStopping
)

// never is later than any deadline.
const never = time.Duration(1<<63 - 1)

// outgoing gathers messages of one lane to one server.
type outgoing struct {
	to   NodeID
	lane Lane
	ms   []Message
}

// NewNode makes a node that is not started yet. The error names everything that is wrong with cfg.
func NewNode(cfg Config) (*Node, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	n := &Node{
		cfg:      cfg.withDefaults(),
		turn:     make(chan struct{}, 1),
		quit:     make(chan struct{}),
		drained:  make(chan struct{}),
		loopDone: make(chan struct{}),
		done:     make(chan struct{}),
		closed:   make(chan struct{}),
	}
	if n.cfg.Core.Seed == 0 {
		n.cfg.Core.Seed = rand.Uint64() // election timeouts must differ between servers
	}
	n.log = n.cfg.Logger.With("node", string(n.cfg.ID))
	n.metrics = n.cfg.Metrics
	_, none := n.metrics.(noMetrics)
	n.measured = !none
	n.inbox.init(n.cfg.MaxInboxBytes, n.cfg.MaxProposalBytes)
	n.lead.init()
	n.writer, n.applier, n.loader, n.snapshots = newLogWriter(n), newApplier(n), newLoader(n), newSnapshotter(n)
	return n, nil
}

// Start opens the storage, starts the transport and begins to take part in the cluster. It returns once the node runs; whether
// there is a leader, and how far the state machine is, shows later ([Node.Leadership], [Node.Barrier]): the newest snapshot is
// restored, and the log behind it applied, in the background.
//
// On a storage that is blank and was not bootstrapped (see [Bootstrap]) the node joins: it is silent until a leader whose members
// were changed to include it ([Node.ChangeMembership]) finds it. Config.ClusterID then says which cluster may.
//
// ctx bounds the opening only; it is not kept. After an error the node has not started, and Start may be called again. If the storage
// hangs beyond ctx, another Start, and Stop, wait until it lets go, or their own contexts end. Errors:
// [ErrLocked], [*IdentityError], [*CorruptionError] and others of the storage and the transport; [ErrStopped] after Stop.
func (n *Node) Start(ctx context.Context) (err error) {
	if err := n.takeTurn(ctx); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	turn := true
	defer func() {
		if turn {
			n.endTurn()
		}
	}()
	switch n.phase {
	case phaseRunning:
		return errors.New("start: the node was started already")
	case phaseStopping:
		return fmt.Errorf("start: %w", ErrStopped)
	}

	rec, opened, err := n.openStorage(ctx)
	if !opened {
		turn = false // it is over when the storage lets go
	}
	if err != nil {
		return fmt.Errorf("start: open storage: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.cfg.Storage.Close())
		}
	}()
	if rec.Blank() && rec.Identity.Cluster == "" {
		return errors.New("start: the storage is blank: bootstrap it to found a cluster (raft.Bootstrap), or set Config.ClusterID to join one")
	}
	n.start = time.Now()
	core, err := NewCore(n.cfg.Core, 0, &rec)
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	n.reportDamage(&rec)
	n.adopt(core, &rec)
	n.inbox.open() // messages may come as soon as the transport has started
	if err := n.cfg.Transport.Start(rec.Identity, handler{n}); err != nil {
		n.inbox.close(ErrStopped)
		return fmt.Errorf("start: start transport: %w", err)
	}
	n.log.Info("node started", "cluster", rec.Identity.Cluster, "incarnation", rec.Identity.Incarnation, "term", rec.HardState.CurrentTerm,
		"last index", rec.LastIndex, "snapshot", rec.Snapshot.Index, "blank", rec.Blank())

	n.phase = phaseRunning
	n.started.Store(true)
	var run context.Context
	run, n.cancel = context.WithCancelCause(context.Background())
	n.snapshots.begun(run)
	n.spawn("log writer", func() error { n.writer.run(run); return nil })
	if p, ok := n.cfg.Storage.(StoragePreparer); ok {
		n.spawn("log preparer", func() error { n.writer.prepare(run, p); return nil })
	}
	n.spawn("applier", func() error { n.applier.run(run, rec.Snapshot); return nil })
	n.spawn("loader", func() error { n.loader.run(run); return nil })
	go n.run(run)
	return nil
}

// openStorage opens the storage, and waits for it no longer than ctx allows: a disk that hangs does not heed a context. If it gives up,
// opened is false, and it is the storage's turn: whatever comes of the attempt is closed again, and then the turn ends.
func (n *Node) openStorage(ctx context.Context) (rec Recovered, opened bool, err error) {
	type result struct {
		rec Recovered
		err error
	}
	ch := make(chan result)
	over := make(chan struct{})
	go func() {
		var res result
		if err := recovered("the storage's Open", func() error {
			res.rec, res.err = n.cfg.Storage.Open(ctx, Identity{Cluster: n.cfg.ClusterID, Node: n.cfg.ID})
			return nil
		}); err != nil {
			res.err = err
		}
		select {
		case ch <- res:
			return
		case <-over:
		}
		if res.err == nil {
			res.err = n.cfg.Storage.Close()
		}
		n.log.Info("the storage that was given up has come back", "error", res.err)
		n.endTurn()
	}()
	select {
	case res := <-ch:
		return res.rec, true, res.err
	case <-ctx.Done():
	}
	select {
	case res := <-ch: // it has noticed too
		return res.rec, true, res.err
	case <-time.After(openGrace):
		close(over)
		return Recovered{}, false, fmt.Errorf("it hangs; look at the disk: %w", ctx.Err())
	}
}

// openGrace is how long a storage may take to notice that the context of Start is over.
const openGrace = 100 * time.Millisecond

// adopt takes over a core that has just been made.
func (n *Node) adopt(core *Core, rec *Recovered) {
	n.core = core
	n.ident.Store(&rec.Identity)
	// Request numbers rise within one incarnation only. With the incarnation in front they never come back, so that an answer to
	// our predecessor is no answer to us.
	n.fwd.nextRequest = rec.Identity.Incarnation << 32
	st := core.Status(0)
	n.conf = st.Configuration
	n.view = LeaderChange{Term: st.Term, Leader: st.Leader, Role: st.Role, Reason: ReasonStart}
	n.lead.set(n.view, "")
	n.publishStatus(0)
}

// takeTurn locks turn; endTurn unlocks it. If turn is free it succeeds whatever ctx says: a Stop whose context is over stops all
// the same.
func (n *Node) takeTurn(ctx context.Context) error {
	select {
	case n.turn <- struct{}{}:
		return nil
	default:
	}
	select {
	case n.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (n *Node) endTurn() { <-n.turn }

// spawn runs f on a goroutine that Stop waits for. An error, or a panic, makes the node Failed.
func (n *Node) spawn(what string, f func() error) {
	n.workers.Go(func() {
		if err := recovered("the "+what, f); err != nil {
			n.fail(err)
		}
	})
}

// Stop ends the node. It refuses new calls, hands leadership over if it leads, and lets what is under way finish, all that for as
// long as ctx allows and no longer than about two election timeouts. Then it ends every call that still waits with [ErrStopped]
// (wrapped in an [*UncertainError] where a command may have been appended), closes the transport and then the storage, and returns
// when no goroutine of the node is left. Only functions given to OnLeaderChange and WhileLeader may run on; the latter's context is
// cancelled first of all.
//
// If ctx ends first, Stop returns an error that says so; the rest goes on in the background, and Stop may be called again to wait
// for it. It may be called more than once, in every state of the node, and from the functions given to OnLeaderChange and
// WhileLeader. From inside StateMachine.Apply it returns [ErrReentrant].
func (n *Node) Stop(ctx context.Context) error {
	if n.applier.isCaller() {
		return ErrReentrant
	}
	if err := n.takeTurn(ctx); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	switch n.phase {
	case phaseNew:
		n.stopping.Store(true)
		n.setFinal(ErrStopped)
		n.lead.finish(ErrStopped)
		close(n.loopDone)
		n.markDone()
		close(n.closed)
	case phaseRunning:
		n.stopping.Store(true)
		go n.retire(ctx)
	}
	n.phase = phaseStopping
	n.endTurn()

	select {
	case <-n.closed:
		return n.closeErr
	default:
	}
	select {
	case <-n.closed:
		return n.closeErr
	case <-ctx.Done():
		return fmt.Errorf("stop: still waiting for the storage, the transport or the state machine to finish: %w", ctx.Err())
	}
}

// retire is the graceful part of Stop.
func (n *Node) retire(ctx context.Context) {
	defer close(n.quit)
	n.inbox.refuse(ErrStopped)
	n.lead.endWork(ErrStopped)
	if n.lead.current().Role == Leader {
		if err := n.changeLeader(ctx, ""); err != nil {
			n.log.Info("leadership was not handed over", "error", err)
		}
	}
	limit := time.NewTimer(n.cfg.Core.ElectionTimeout)
	defer limit.Stop()
	n.draining.Store(true)
	n.inbox.nudge()
	select {
	case <-n.drained:
	case <-limit.C:
	case <-ctx.Done():
	case <-n.loopDone:
	}
}

// Done is closed when the node has stopped, or as soon as it has failed.
func (n *Node) Done() <-chan struct{} { return n.done }

// Err says why a node does not run any more: [ErrStopped] or a [*FailedError]. It is nil as long as it runs, and before.
func (n *Node) Err() error {
	if e := n.final.Load(); e != nil {
		return *e
	}
	if f := n.failure.Load(); f != nil {
		return f
	}
	return nil
}

// running says why requests cannot be served; nil if they can.
func (n *Node) running() error {
	if err := n.Err(); err != nil {
		return err
	}
	if !n.started.Load() {
		return ErrStopped
	}
	return nil
}

// terminal is why the loop has ended.
func (n *Node) terminal() error {
	if err := n.Err(); err != nil {
		return err
	}
	return ErrStopped
}

func (n *Node) setFinal(err error) { n.final.CompareAndSwap(nil, &err) }
func (n *Node) markDone()          { n.doneOnce.Do(func() { close(n.done) }) }

func (n *Node) identity() Identity {
	if id := n.ident.Load(); id != nil {
		return *id
	}
	return Identity{Cluster: n.cfg.ClusterID, Node: n.cfg.ID}
}

// fail makes the node Failed: it stops making promises. The first cause stands.
func (n *Node) fail(cause error) {
	if n.failure.CompareAndSwap(nil, &FailedError{Cause: cause}) && n.final.Load() == nil {
		n.log.Error("node failed: it no longer takes part in the cluster; start a new one after the cause is removed", "error", cause)
	}
	n.inbox.nudge()
}

// run is the loop, and the tidying up after it.
func (n *Node) run(ctx context.Context) {
	n.loop(ctx)

	cause := error(ErrStopped)
	failure := n.failure.Load()
	if failure != nil {
		cause = failure
	}
	n.setFinal(cause)
	n.inbox.close(cause)
	if err := recovered("the core", func() error { n.publishStatus(time.Since(n.start)); return nil }); err != nil {
		n.log.Debug("no last status", "error", err) // it is broken; what was known before has to do
	}
	n.endAll(cause)
	n.lead.finish(cause)
	close(n.loopDone)
	n.cancel(cause)
	if failure != nil {
		n.markDone() // who waits for Done wants to know now, not when a hanging disk lets go
	}
	if n.lingers {
		time.Sleep(n.cfg.Core.HeartbeatInterval) // the word to our successor is in the transport's queue
	}
	err := n.cfg.Transport.Close()
	if err != nil {
		err = fmt.Errorf("stop: close transport: %w", err)
	}
	n.workers.Wait() // nobody writes or reads any more
	n.snapshots.parts.close()
	if e := n.cfg.Storage.Close(); e != nil {
		err = errors.Join(err, fmt.Errorf("stop: close storage: %w", e))
	}
	n.closeErr = err
	n.log.Info("node stopped", "cause", cause, "error", err)
	n.markDone()
	close(n.closed)
}

// loop feeds the core and carries out what it asks for. Everything that has come in is fed before the core looks at the clock:
// after a long pause of the process, messages that were waiting show that nobody has fallen silent.
func (n *Node) loop(ctx context.Context) {
	// This is the only place that recovers from a broken invariant. The core's state is wrong, so it is not asked any more.
	defer func() {
		if r := recover(); r != nil {
			n.fail(brokenLoop(r))
		}
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var in inputs
	for {
		if n.written <= n.persisted { // otherwise they gather until the disk is free
			gatherRequests(n.inbox.waitingProposals)
		}
		in = n.inbox.take(in)
		now := time.Since(n.start)
		n.fwd.waiting = append(n.fwd.waiting, in.proposals...)
		for _, m := range in.messages {
			n.receive(now, m)
		}
		if in.persisted > n.persisted {
			n.persisted = in.persisted
			n.core.Persisted(now, in.persisted)
		}
		if in.applied > 0 {
			n.core.Applied(now, in.applied)
		}
		for _, f := range in.reports {
			f(now)
		}
		in.reset()
		if now >= n.core.Deadline() {
			n.core.Tick(now)
		}
		n.expireForwards(now)
		n.drain(now)

		// What the core knows of elections is in view now, so proposals and reads go the right way, in one piece.
		n.placeProposals(now)
		n.placeReads(now)
		n.drain(now)
		n.holdReads(now)
		n.checkDrained()

		if n.failure.Load() != nil {
			n.handOverFailed(now)
			return
		}
		pause := min(n.core.Deadline(), n.forwardDeadline(now)) - time.Since(n.start)
		if pause <= 0 {
			select {
			case <-n.quit:
				return
			default:
				continue
			}
		}
		timer.Reset(pause)
		select {
		case <-n.inbox.wake:
		case <-timer.C:
		case <-n.quit:
			return
		}
	}
}

// handOverFailed lets another server lead at once, instead of after an election timeout.
func (n *Node) handOverFailed(now time.Duration) {
	if n.view.Role == Leader {
		n.core.Abstain(now, true)
		n.drain(now)
		n.lingers = true
	}
}

// brokenLoop makes an error of what the loop panicked with.
func brokenLoop(r any) error {
	if broken, ok := r.(*InvariantError); ok {
		return fmt.Errorf("%w\n%s", broken, debug.Stack())
	}
	return &panicError{in: "the node's loop", value: r, stack: debug.Stack()}
}

// receive handles one message. Those that carry proposals and reads are the node's business, the rest is the protocol's.
func (n *Node) receive(now time.Duration, m Message) {
	switch b := m.Body.(type) {
	case ForwardPropose, ForwardProposeReply, ForwardRead, ForwardReadReply:
		if m.To != n.cfg.ID {
			n.refused(m.From, WrongRecipient.String())
			return
		}
		switch b := b.(type) {
		case ForwardPropose:
			n.handleForwardPropose(m.Header, b)
		case ForwardProposeReply:
			n.handleForwardProposeReply(now, m.Header, b)
		case ForwardRead:
			n.handleForwardRead(m.Header)
		case ForwardReadReply:
			n.handleForwardReadReply(now, m.Header, b)
		}
	default:
		n.core.Step(now, m)
	}
}

// drain carries out everything that the core wants done, until it wants nothing more.
func (n *Node) drain(now time.Duration) {
	for n.core.HasReady() {
		n.carryOut(now, n.core.Ready())
	}
	n.advanceWatched()
	n.flush()
}

func (n *Node) carryOut(now time.Duration, rd *Ready) {
	if rd.Write.Seq > 0 {
		n.written = rd.Write.Seq
		n.writer.add(rd.Write)
	}
	for _, m := range rd.Send {
		n.transmit(m)
	}
	if len(rd.Apply) > 0 {
		n.applier.add(rd.Apply)
	}
	if len(rd.Loads) > 0 {
		n.loader.add(rd.Loads)
	}
	for _, r := range rd.Reads { // before the events: a change of the leader lets those that failed try again at once
		n.handleReadResult(now, r)
	}
	for _, e := range rd.Events {
		n.handleEvent(now, e)
	}
	for _, t := range rd.Snapshots {
		n.snapshots.send(t)
	}
	if rd.Compact > 0 {
		n.writer.compactTo(rd.Compact)
	}
	if rd.Peers != nil {
		n.setPeers(rd.Peers)
	}
	for _, r := range rd.Refused {
		n.refused(r.Peer, r.Reason.String())
	}
	n.commitIndex = rd.CommitIndex
}

func (n *Node) setPeers(servers []Server) {
	others := make([]Server, 0, len(servers))
	for _, s := range servers {
		if s.ID != n.cfg.ID {
			others = append(others, s)
		}
	}
	n.cfg.Transport.SetPeers(others)
}

// header is the envelope of the node's own messages.
func (n *Node) header(to NodeID, request uint64) Header {
	id := n.identity()
	return Header{From: n.cfg.ID, To: to, Replica: id.Replica, Incarnation: id.Incarnation, Term: n.view.Term, Request: request}
}

// transmit queues a message for its receiver, or gives it to the caller of Handle who waits for it.
func (n *Node) transmit(m Message) {
	if n.rpc.deliver(m) {
		return
	}
	lane := m.Lane()
	for i := range n.out {
		if o := &n.out[i]; o.to == m.To && o.lane == lane {
			o.ms = append(o.ms, m)
			return
		}
	}
	n.out = append(n.out, outgoing{to: m.To, lane: lane, ms: []Message{m}})
}

// flush hands what transmit has gathered to the transport: one call per server and lane.
func (n *Node) flush() {
	for i := range n.out {
		o := &n.out[i]
		if len(o.ms) == 0 {
			continue
		}
		n.cfg.Transport.Send(o.to, o.lane, o.ms)
		clear(o.ms)
		o.ms = o.ms[:0]
	}
	if len(n.out) > 2*int(lanes)*(len(n.conf.Servers)+1) { // strangers have been answered; do not keep room for them
		n.out = nil
	}
}

func (n *Node) handleEvent(now time.Duration, e Event) {
	switch e := e.(type) {
	case LeaderChange:
		n.leaderChanged(now, e)
	case ConfigurationChange:
		n.configurationChanged(e)
	case TransferEnded:
		n.fwd.holdUntil = 0
		for _, ch := range n.transfers {
			ch <- e.Err
		}
		n.transfers = nil
	case DamageFound, EntriesRepaired, EntriesDiscarded, RecoveryStuck, FenceLifted, LostLog:
		n.damageEvent(e)
	case ElectionStarted:
		n.log.Debug("election", "term", e.Term, "pre-vote", e.PreVote, "reason", e.Reason.String())
		if !e.PreVote {
			n.metrics.Election(e.Reason.String())
		}
	}
}

func (n *Node) leaderChanged(now time.Duration, e LeaderChange) {
	was := n.view
	n.view = e
	n.lead.set(e, n.addressOf(e.Leader))
	if e.Role == was.Role && e.Leader == was.Leader && e.Term == was.Term {
		return
	}
	n.forwardLeaderChanged(now)
	if was.Role == Leader && (e.Role != Leader || e.Term != was.Term) {
		n.snapshots.leaveOffice()
	}
	if e.Role == Leader && (was.Role != Leader || e.Term != was.Term) {
		n.fwd.seen, n.fwd.seenTerm = make(map[NodeID]*replayWindow), e.Term
		n.snapshots.renewOffice()
	}
	if e.Leader != was.Leader {
		n.log.Info("leader changed", "leader", string(e.Leader), "term", e.Term, "role", e.Role.String(), "reason", e.Reason.String())
	}
}

func (n *Node) configurationChanged(e ConfigurationChange) {
	n.conf = e.Configuration
	n.log.Info("configuration", "index", e.Index, "committed", e.Committed, "joint", e.Configuration.Joint(), "servers", len(e.Configuration.Servers))
	if now := n.lead.current(); now.Address != n.addressOf(n.view.Leader) {
		n.lead.set(n.view, n.addressOf(n.view.Leader))
	}
	if !e.Committed || e.Configuration.Joint() {
		return
	}
	kept := n.confWaiters[:0]
	for _, w := range n.confWaiters {
		if e.Index < w.id.Index {
			kept = append(kept, w)
			continue
		}
		// What is committed may be a later leader's, and ours dropped. Where a snapshot covers its place, only the outcome of the
		// proposal can tell.
		term, known := n.core.TermAt(w.id.Index)
		w.held = known && term == w.id.Term
		w.done <- e.Index
	}
	clear(n.confWaiters[len(kept):])
	n.confWaiters = kept
	if e.Configuration.IsRemoved(n.cfg.ID) {
		// No leader tells us any more what becomes of our commands.
		n.endCalls(&MembershipError{Server: n.cfg.ID, Reason: "this server was removed from the cluster"})
	}
}

func (n *Node) addressOf(id NodeID) string {
	s, _ := n.conf.Server(id)
	return s.Address
}

// notLeader says who leads, as far as this node knows.
func (n *Node) notLeader() error {
	return &NotLeaderError{Leader: n.view.Leader, Address: n.addressOf(n.view.Leader), Term: n.view.Term}
}

// watchCommit remembers proposals of which somebody wants to know when they are committed: those made by ProposeAsync, and one of
// each batch to measure the time.
func (n *Node) watchCommit(ss []slot) {
	sampled := false
	for _, sl := range ss {
		sample := !sampled && !sl.p.started.IsZero()
		sampled = sampled || sample
		if !sample {
			sl.p.started = time.Time{}
		}
		if sl.p.async || sample {
			n.watched.push(sl)
		}
	}
}

// advanceWatched tells the watched proposals that they are committed. What lies at a proposal's index may be another entry.
func (n *Node) advanceWatched() {
	for sl := n.watched.front(); sl != nil && sl.id.Index <= n.commitIndex; sl = n.watched.front() {
		if term, ok := n.core.TermAt(sl.id.Index); ok && term == sl.id.Term {
			sl.p.markCommitted()
			if !sl.p.started.IsZero() {
				n.metrics.ObserveCommit(time.Since(sl.p.started))
			}
		}
		n.watched.pop()
	}
}

// storageState tells the core about its disk; err is the cause.
func (n *Node) storageState(now time.Duration, s StorageState, err error) {
	n.core.StorageState(now, s)
	switch s {
	case StorageOK:
		n.log.Info("there is room on the disk again")
	case StorageFull:
		n.log.Warn("the disk is full: commands are refused until there is room", "error", err)
	case StorageFailed:
		n.lingers = n.view.Role == Leader // the core hands over
		n.fail(err)
	}
}

// checkDrained looks whether a stopping node has nothing more under way.
func (n *Node) checkDrained() {
	if n.isDrained || !n.draining.Load() {
		return
	}
	if len(n.fwd.waiting)+len(n.fwd.unanswered)+len(n.fwd.rounds)+len(n.transfers) == 0 && n.table.waiting() == 0 {
		n.isDrained = true
		close(n.drained)
	}
}

// endCalls ends every proposal and every read that waits.
func (n *Node) endCalls(cause error) {
	f := &n.fwd
	for len(f.unanswered) > 0 {
		n.loseForward(0, cause)
	}
	n.endWaiting(cause)
	n.endReads(cause)
	for _, r := range f.rounds {
		for _, b := range r.batches {
			b.end(cause)
		}
	}
	f.rounds = nil
	n.table.endAll(cause)
}

// endAll ends every call, after the loop has ended. Who waits for anything else sees loopDone.
func (n *Node) endAll(cause error) {
	left := n.inbox.take(inputs{})
	for _, p := range left.proposals {
		p.endWith(cause)
	}
	n.endCalls(cause)
}

// onLoop runs f in the loop and waits for it. If ctx ends before f has begun, f will not run; nothing has happened then.
func (n *Node) onLoop(ctx context.Context, f func(now time.Duration)) error {
	var claimed atomic.Bool
	ran := make(chan struct{})
	if err := n.inbox.tryReport(func(now time.Duration) {
		if claimed.CompareAndSwap(false, true) {
			f(now)
			close(ran)
		}
	}); err != nil {
		return err
	}
	select {
	case <-ran:
		return nil
	case <-ctx.Done():
		if claimed.CompareAndSwap(false, true) {
			return ctx.Err()
		}
	case <-n.loopDone:
	}
	select { // it runs right now, or has broken the loop
	case <-ran:
		return nil
	case <-n.loopDone:
		select {
		case <-ran:
			return nil
		default:
			return n.terminal()
		}
	}
}

// handler is the node as the transport sees it.
type handler struct{ n *Node }

func (h handler) HandleMessages(ms []Message) { h.n.inbox.addMessages(ms) }

func (h handler) HandleSnapshot(ctx context.Context, m Message, r io.Reader) error {
	return h.n.snapshots.receive(ctx, m, r)
}

func (h handler) PeerUp(peer NodeID, replica ReplicaID, incarnation uint64) {
	h.report("peer up", func(now time.Duration) { h.n.core.PeerUp(now, peer, replica, incarnation) })
}

func (h handler) PeerLost(peer NodeID, incarnation uint64) {
	h.report("peer lost", func(now time.Duration) {
		h.n.core.PeerLost(now, peer, incarnation)
		h.n.forwardPeerLost(peer)
	})
}

func (h handler) Refused(peer NodeID, reason string) { h.n.refused(peer, reason) }

// report passes a hint on. Hints are worth little when the loop is that far behind, so they are dropped then.
func (h handler) report(what string, f func(now time.Duration)) {
	if err := h.n.inbox.add(f, maxTransportReports); err != nil {
		h.n.log.Debug("hint of the transport dropped", "hint", what, "error", err)
	}
}
