package raft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// snapshotter takes, sends and receives the state machine's snapshots (§7). Taking: the applier asks for a consistent view between two
// calls of Apply, and a goroutine writes it out beside further ones.
type snapshotter struct {
	n *Node

	mu      sync.Mutex
	running *snapshotRun // one at a time; who asks meanwhile joins it
	last    SnapshotMeta // the newest in the store
	entries uint64       // applied since then
	bytes   int64        // likewise
	pause   time.Duration
	retryAt time.Time // after a failure no snapshot is taken by itself before that

	receiving bool // one at a time
	parts     partSlot
	sendSlots chan struct{}

	// The loop's own: transfers end with the office that began them.
	lifetime   context.Context
	sendCtx    context.Context
	cancelSend context.CancelFunc
}

// snapshotRun is one snapshot being taken.
type snapshotRun struct {
	automatic bool
	done      chan struct{}
	meta      SnapshotMeta
	err       error
}

// Bounds of work on snapshots.
const (
	maxSnapshotsSent    = 2 // at the same time
	snapshotPauseFirst  = time.Second
	snapshotPauseLast   = 5 * time.Minute
	snapshotCopyBufSize = 256 << 10
)

var errNothingApplied = errors.New("snapshot: nothing has been applied yet")

func newSnapshotter(n *Node) *snapshotter {
	return &snapshotter{n: n, sendSlots: make(chan struct{}, maxSnapshotsSent), parts: partSlot{log: n.log}}
}

// Snapshot takes a snapshot of the state machine as it is now, makes it durable, and gives up the log before it (but for
// CoreConfig.TrailingEntries). The node does so by itself (Config.SnapshotEntries and SnapshotBytes); call it, for instance, before
// a backup. If a snapshot is being taken already, that one is waited for; if nothing was applied since the last one, that one is
// returned.
//
// It blocks until the snapshot is durable, ctx ends (the snapshot goes on) or the node stops. Errors: that of ctx, of the state
// machine or of the storage; [ErrReentrant], [ErrStopped], [*FailedError].
func (n *Node) Snapshot(ctx context.Context) (SnapshotMeta, error) {
	if n.applier.isCaller() {
		return SnapshotMeta{}, ErrReentrant
	}
	if err := n.inbox.refusing(); err != nil {
		return SnapshotMeta{}, err
	}
	run := n.snapshots.begin(false)
	select {
	case <-run.done:
		return run.meta, run.err
	case <-ctx.Done():
		return SnapshotMeta{}, fmt.Errorf("snapshot: %w", ctx.Err())
	case <-n.loopDone:
		return SnapshotMeta{}, n.terminal()
	}
}

// begin returns the run that is under way, or a new one that the applier will see.
func (s *snapshotter) begin(automatic bool) *snapshotRun {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		s.running = &snapshotRun{automatic: automatic, done: make(chan struct{})}
		s.n.applier.wish(s.running)
	}
	return s.running
}

// count adds applied entries, and begins a snapshot when they are enough. The applier calls it.
func (s *snapshotter) count(entries, bytes int) {
	s.mu.Lock()
	s.entries += uint64(entries)
	s.bytes += int64(bytes)
	due := s.running == nil && (s.entries >= s.n.cfg.SnapshotEntries || s.bytes >= s.n.cfg.SnapshotBytes) &&
		!time.Now().Before(s.retryAt)
	s.mu.Unlock()
	if due {
		s.begin(true)
	}
}

// reset notes the snapshot that the state machine now stands on.
func (s *snapshotter) reset(meta SnapshotMeta) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.entries, s.bytes = meta, 0, 0
}

// take is called by the applier between two calls of Apply. An error makes the node Failed; a snapshot that merely cannot be taken
// is none.
func (s *snapshotter) take(ctx context.Context, run *snapshotRun, at EntryID) error {
	s.mu.Lock()
	last, entries, bytes := s.last, s.entries, s.bytes
	s.mu.Unlock()
	switch at.Index {
	case 0:
		s.finish(run, SnapshotMeta{}, errNothingApplied)
		return nil
	case last.Index:
		s.finish(run, last, nil)
		return nil
	}
	var view SnapshotWriter
	err := s.n.applier.guard("the state machine's Snapshot", func() (err error) { view, err = s.n.cfg.StateMachine.Snapshot(ctx); return err })
	if err != nil {
		s.finish(run, SnapshotMeta{}, fmt.Errorf("snapshot at %v: %w", at, err))
		return panicOnly(err)
	}
	s.n.spawn("snapshot", func() error {
		meta, err := s.write(ctx, view, at)
		if err != nil {
			s.finish(run, SnapshotMeta{}, fmt.Errorf("snapshot at %v: %w", at, err))
			return panicOnly(err)
		}
		s.mu.Lock()
		if meta.Index > s.last.Index { // unless a newer one was restored meanwhile
			s.last = meta
			s.entries -= entries
			s.bytes -= bytes
		}
		s.mu.Unlock()
		s.finish(run, meta, nil)
		return nil
	})
	return nil
}

// panicOnly returns err if it comes from a panic of the state machine, which can no longer be trusted then.
func panicOnly(err error) error {
	if p := (*panicError)(nil); errors.As(err, &p) {
		return err
	}
	return nil
}

// write makes the view durable and tells the core.
func (s *snapshotter) write(ctx context.Context, view SnapshotWriter, at EntryID) (meta SnapshotMeta, err error) {
	defer func() {
		err = errors.Join(err, recovered("the snapshot's Close", func() error { view.Close(); return nil }))
	}()
	known := false
	if err := s.n.onLoop(ctx, func(time.Duration) { meta, known = s.n.core.SnapshotMeta(at.Index) }); err != nil {
		return SnapshotMeta{}, err
	}
	if !known || meta.Term != at.Term {
		return SnapshotMeta{}, errors.New("overtaken: the log before it is gone already, or not yet known to be committed; try again")
	}
	start := time.Now()
	sink, err := s.n.cfg.Storage.Snapshots().Create(meta)
	if err != nil {
		return SnapshotMeta{}, fmt.Errorf("create: %w", err)
	}
	if err := recovered("the snapshot's WriteTo", func() error { return view.WriteTo(ctx, sink) }); err != nil {
		return SnapshotMeta{}, errors.Join(err, sink.Abort())
	}
	if meta, err = sink.Commit(); err != nil {
		return SnapshotMeta{}, fmt.Errorf("commit: %w", err)
	}
	s.n.inbox.report(func(now time.Duration) { s.n.core.SnapshotTaken(now, meta) })
	s.parts.covered(meta.Index)
	s.n.log.Info("snapshot taken", "snapshot", meta.ID().String(), "bytes", meta.Size, "took", time.Since(start))
	return meta, nil
}

// finish ends a run and wakes all that wait for it.
func (s *snapshotter) finish(run *snapshotRun, meta SnapshotMeta, err error) {
	s.mu.Lock()
	s.running = nil
	if err == nil {
		s.pause, s.retryAt = 0, time.Time{}
	} else {
		s.pause = min(max(2*s.pause, snapshotPauseFirst), snapshotPauseLast)
		s.retryAt = time.Now().Add(s.pause)
	}
	pause := s.pause
	s.mu.Unlock()
	if err != nil && run.automatic {
		s.n.log.Warn("no snapshot was taken; the log keeps growing", "error", err, "next attempt in", pause)
	}
	run.meta, run.err = meta, err
	close(run.done)
}

// send carries out a transfer that the core asks for. The loop calls it.
func (s *snapshotter) send(t SnapshotTransfer) {
	ctx := s.sendCtx
	if t.Message.Body.(InstallSnapshot).Repair {
		ctx = s.lifetime // whoever leads
	}
	s.n.spawn("snapshot transfer", func() error {
		err := s.transfer(ctx, t.Message)
		s.n.inbox.report(func(now time.Duration) {
			if err != nil {
				s.n.core.SnapshotFailed(now, t.ID)
			} else {
				s.n.core.SnapshotSent(now, t.ID)
			}
		})
		if err != nil && ctx.Err() == nil {
			s.n.log.Warn("send a snapshot", "to", t.Message.To, "error", err)
			s.replaceDamaged(t.Message.Body.(InstallSnapshot).Meta.Index, err)
		}
		return nil
	})
}

// replaceDamaged takes another snapshot where one that was to be sent turned out to be damaged: the log in front of it is gone, and a
// follower would wait until the next one is due.
func (s *snapshotter) replaceDamaged(index Index, err error) {
	if !errors.As(err, new(*CorruptionError)) {
		return
	}
	s.mu.Lock()
	if s.last.Index == index {
		s.last = SnapshotMeta{} // nothing may have been applied since
	}
	soon := time.Now().Before(s.retryAt)
	s.mu.Unlock()
	if !soon { // otherwise the next attempt to send it finds out again
		s.begin(true)
	}
}

func (s *snapshotter) transfer(ctx context.Context, m Message) (err error) {
	select {
	case s.sendSlots <- struct{}{}:
		defer func() { <-s.sendSlots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	meta, r, err := s.n.cfg.Storage.Snapshots().Open(m.Body.(InstallSnapshot).Meta.Index)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	m.Body = InstallSnapshot{Meta: meta, Repair: m.Body.(InstallSnapshot).Repair} // with its size
	start := time.Now()
	if err := s.n.cfg.Transport.SendSnapshot(ctx, m, r); err != nil {
		return err
	}
	s.n.log.Info("snapshot sent", "to", m.To, "snapshot", meta.ID().String(), "bytes", meta.Size, "took", time.Since(start))
	return nil
}

// begun gives transfers the node's lifetime; renewOffice and leaveOffice limit them to the time in which this server leads.
func (s *snapshotter) begun(ctx context.Context) {
	s.lifetime = ctx
	s.renewOffice()
	s.leaveOffice() // it leads nobody yet
}

func (s *snapshotter) renewOffice() {
	s.leaveOffice()
	s.sendCtx, s.cancelSend = context.WithCancel(s.lifetime)
}

func (s *snapshotter) leaveOffice() {
	if s.cancelSend != nil {
		s.cancelSend()
	}
}

// receive stores the content of a snapshot that a leader offers, then gives the message to the core.
func (s *snapshotter) receive(ctx context.Context, m Message, r io.Reader) error {
	req, ok := m.Body.(InstallSnapshot)
	if !ok {
		return fmt.Errorf("receive snapshot: message carries %T", m.Body)
	}
	if err := m.Validate(); err != nil {
		return fmt.Errorf("receive snapshot: %w", err)
	}
	s.mu.Lock()
	busy := s.receiving
	s.receiving = true
	s.mu.Unlock()
	if busy {
		return fmt.Errorf("receive snapshot: %w", ErrBusy)
	}
	defer func() {
		s.mu.Lock()
		s.receiving = false
		s.mu.Unlock()
	}()

	wanted := false
	if err := s.n.onLoop(ctx, func(time.Duration) { wanted = s.n.core.WantsSnapshot(m) }); err != nil {
		return fmt.Errorf("receive snapshot: %w", err)
	}
	if wanted {
		meta, err := s.store(ctx, req.Meta, r)
		if err != nil {
			return fmt.Errorf("receive snapshot %v from %q: %w", req.Meta.ID(), m.From, err)
		}
		m.Body = InstallSnapshot{Meta: meta, Repair: req.Repair}
		s.n.log.Info("snapshot received", "from", m.From, "snapshot", meta.ID().String(), "bytes", meta.Size)
	}
	// An unwanted one goes to the core too, without its content: the sender may be behind the times, and the answer tells it so. The
	// core must not want it by now, or it would install what is not there; nothing can change between the look and the step.
	refused := false
	if err := s.n.onLoop(ctx, func(now time.Duration) {
		if !wanted && (s.n.core.WantsSnapshot(m) || s.n.failure.Load() != nil) {
			refused = true
			return
		}
		s.n.core.Step(now, m)
	}); err != nil {
		return fmt.Errorf("receive snapshot: %w", err)
	}
	if refused {
		return errors.New("receive snapshot: offer it again")
	}
	return nil
}

// readerUntil ends with the context or the node.
type readerUntil struct {
	r   io.Reader
	ctx context.Context
	n   *Node
}

func (r *readerUntil) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	select {
	case <-r.n.loopDone:
		return 0, r.n.terminal()
	default:
		return r.r.Read(p)
	}
}
