package raft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// applier runs the state machine on a goroutine of its own: committed entries in order, snapshots to restore, and consistent views
// to be written out. It gathers entries into batches, and gives the results of a batch to all that wait for them at once.
type applier struct {
	n    *Node
	sm   StateMachine
	wake chan struct{}

	mu    sync.Mutex
	queue []applyWork

	inside atomic.Int64 // the goroutine's number while the state machine runs; 0 otherwise
	number int64        // the goroutine's number

	// The goroutine's own.
	spare      []applyWork
	applied    EntryID // what the state machine holds
	durable    Index   // what it held when the node started; not applied again
	batch      []Entry // consecutive entries that are about to be applied
	batchBytes int
	commands   []Entry // scratch: those of the batch that are commands
	results    []any   // scratch
	unread     Damage  // what could not be read, as the core was told last
	retries    int     // since then
	gap        bool    // the next entries are compacted; a snapshot that covers them must follow
}

// applyWork is one piece from the core, or a wish for a snapshot.
type applyWork struct {
	Apply
	snapshot *snapshotRun
}

// Bounds of one call of StateMachine.Apply, and of one read from storage.
const (
	maxApplyBytes   = 1 << 20
	maxApplyEntries = 1024
)

func newApplier(n *Node) *applier {
	return &applier{n: n, sm: n.cfg.StateMachine, wake: make(chan struct{}, 1)}
}

// add queues pieces. The core bounds what can be under way.
func (a *applier) add(pieces []Apply) {
	a.mu.Lock()
	for _, p := range pieces {
		a.queue = append(a.queue, applyWork{Apply: p})
	}
	a.mu.Unlock()
	poke(a.wake)
}

// wish queues a snapshot at whatever has been applied by then.
func (a *applier) wish(run *snapshotRun) {
	a.mu.Lock()
	a.queue = append(a.queue, applyWork{snapshot: run})
	a.mu.Unlock()
	poke(a.wake)
}

func (a *applier) queued() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.queue)
}

func (a *applier) take() []applyWork {
	a.mu.Lock()
	defer a.mu.Unlock()
	q := a.queue
	a.queue, a.spare = a.spare[:0], nil
	return q
}

// run is the goroutine. snapshot is the newest one at start.
func (a *applier) run(ctx context.Context, snapshot SnapshotMeta) {
	a.number = goroutineNumber()
	if err := a.begin(ctx, snapshot); err != nil {
		a.stopOn(ctx, err)
		return
	}
	for {
		works := a.take()
		for i := range works {
			if ctx.Err() != nil {
				return
			}
			if err := a.do(ctx, &works[i], works[i+1:]); err != nil {
				a.stopOn(ctx, err)
				return
			}
		}
		if err := a.flush(); err != nil {
			a.stopOn(ctx, err)
			return
		}
		clear(works)
		a.spare = works[:0]
		select {
		case <-a.wake:
		case <-ctx.Done():
			return
		}
	}
}

// stopOn makes the node fail, unless it is the end of the node that made the state machine give up.
func (a *applier) stopOn(ctx context.Context, err error) {
	if ctx.Err() == nil {
		a.n.fail(err)
	}
}

// begin brings the state machine to where the log goes on: to the newest snapshot, unless it keeps its own state and is ahead.
func (a *applier) begin(ctx context.Context, snapshot SnapshotMeta) error {
	a.n.snapshots.reset(snapshot)
	if d, ok := a.sm.(DurableStateMachine); ok {
		var has EntryID
		if err := a.guard("the state machine's LastApplied", func() (err error) { has, err = d.LastApplied(); return err }); err != nil {
			return fmt.Errorf("ask the state machine how far it is: %w", err)
		}
		if has.Index >= snapshot.Index {
			if err := a.checkLineage(ctx, has, snapshot); err != nil {
				return err
			}
			// The core learns of it piece by piece, as it hands these entries out.
			a.durable, a.applied = has.Index, has
			a.n.table.restored(has)
			a.n.lead.setAppliedTerm(has.Term)
			return nil
		}
	}
	if snapshot.Index == 0 {
		return nil
	}
	return a.restore(ctx, snapshot)
}

// checkLineage refuses a state machine that holds the effect of an entry that this log does not hold: it belongs to another data
// directory, or one of the two was rolled back.
func (a *applier) checkLineage(ctx context.Context, has EntryID, snapshot SnapshotMeta) error {
	if has.Index == 0 || has == snapshot.ID() {
		return nil
	}
	var term Term
	var known bool
	var last Index
	if err := a.n.onLoop(ctx, func(now time.Duration) {
		term, known = a.n.core.TermAt(has.Index)
		last = a.n.core.Status(now).LastIndex
	}); err != nil {
		return err
	}
	switch {
	case has.Index > last:
		return fmt.Errorf("the state machine has applied entry %v, but the log ends at %d: they do not belong together", has, last)
	case known && term != has.Term:
		return fmt.Errorf("the state machine has applied entry %v, but the log holds %v: they do not belong together",
			has, EntryID{Term: term, Index: has.Index})
	}
	return nil
}

func (a *applier) do(ctx context.Context, w *applyWork, later []applyWork) error {
	switch {
	case w.snapshot != nil:
		if err := a.flush(); err != nil {
			return err
		}
		return a.n.snapshots.take(ctx, w.snapshot, a.applied)
	case w.Restore != nil:
		if err := a.flush(); err != nil {
			return err
		}
		for i := range later {
			if later[i].Restore != nil {
				a.gap = true // overtaken before it began; what comes between the two does not fit onto our state
				return nil
			}
		}
		if w.Restore.Index <= a.applied.Index {
			// It was to replace entries that could not be read, and which we have applied after all. Those behind it come again.
			a.durable, a.gap = max(a.durable, a.applied.Index), false
			a.n.inbox.reportApplied(a.applied.Index)
			return nil
		}
		return a.restore(ctx, *w.Restore)
	case a.gap:
		return nil
	case w.Hi <= a.durable+1:
		a.n.inbox.reportApplied(w.Hi - 1)
		return nil
	case w.Entries != nil:
		return a.gather(w.Entries)
	default:
		return a.gatherStored(ctx, w.Lo, w.Hi)
	}
}

// gather adds entries to the batch and applies it whenever it is full.
func (a *applier) gather(es []Entry) error {
	for i := range es {
		e := &es[i]
		if e.Index <= a.durable {
			continue
		}
		// The bytes have been in memory since they were read or received. They are looked at once more, because an error in them
		// would be carried into the state, where no checksum finds it.
		if _, _, err := DecodeEntry(e.frame); err != nil {
			return fmt.Errorf("entry %v changed in memory: %w", e.ID(), err)
		}
		a.batch = append(a.batch, *e)
		a.batchBytes += e.Size()
		if len(a.batch) >= maxApplyEntries || a.batchBytes >= maxApplyBytes {
			if err := a.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// gatherStored is gather for entries [lo, hi) that are no longer in memory.
func (a *applier) gatherStored(ctx context.Context, lo, hi Index) error {
	lo = max(lo, a.durable+1)
	for lo < hi && ctx.Err() == nil {
		es, err := a.n.cfg.Storage.Entries(lo, hi, maxApplyBytes)
		switch {
		case errors.Is(err, ErrCompacted):
			// The core has installed a snapshot beyond these entries, and its Restore is on the way to us.
			a.gap = true
			return a.flush()
		case err != nil:
			damage, found := damageIn(err, lo)
			if !found {
				return fmt.Errorf("read entries [%d, %d) to apply them: %w", lo, hi, err)
			}
			if err := a.flush(); err != nil {
				return err
			}
			if skip := a.awaitRepair(ctx, damage, err); skip {
				a.gap = true
				return nil
			}
			continue
		case len(es) == 0 || es[0].Index != lo:
			return fmt.Errorf("read entries [%d, %d) to apply them: the storage returned others", lo, hi)
		}
		if err := a.gather(es); err != nil {
			return err
		}
		lo += Index(len(es))
	}
	return nil
}

// flush applies the batch.
func (a *applier) flush() error {
	if len(a.batch) == 0 {
		return nil
	}
	commands := a.batch
	if n := countCommands(a.batch); n != len(a.batch) {
		commands = a.commands[:0]
		for i := range a.batch {
			if a.batch[i].Type == EntryCommand {
				commands = append(commands, a.batch[i])
			}
		}
		a.commands = commands
	}
	for cap(a.results) < len(commands) {
		a.results = make([]any, max(len(commands), 2*cap(a.results)))
	}
	results := a.results[:len(commands)]
	last := a.batch[len(a.batch)-1].ID()

	if len(commands) > 0 {
		start := time.Now()
		if err := a.guard("the state machine's Apply", func() error { return a.sm.Apply(commands, results) }); err != nil {
			return fmt.Errorf("apply entries up to %v: %w", last, err)
		}
		a.n.metrics.ObserveApply(time.Since(start), len(commands))
	}
	a.n.table.complete(a.batch, results)
	a.n.snapshots.count(len(a.batch), a.batchBytes)
	a.noteApplied(last)

	clear(results)
	clear(a.batch)
	clear(a.commands)
	a.batch, a.batchBytes = a.batch[:0], 0
	return nil
}

func countCommands(es []Entry) int {
	n := 0
	for i := range es {
		if es[i].Type == EntryCommand {
			n++
		}
	}
	return n
}

// noteApplied tells everybody else how far the state machine is.
func (a *applier) noteApplied(id EntryID) {
	if id.Term != a.applied.Term {
		a.n.lead.setAppliedTerm(id.Term)
	}
	a.applied = id
	a.n.inbox.reportApplied(id.Index)
}

// restore replaces the state by a snapshot of the store.
func (a *applier) restore(ctx context.Context, meta SnapshotMeta) error {
	stored, r, err := a.n.cfg.Storage.Snapshots().Open(meta.Index)
	if err != nil {
		return fmt.Errorf("open snapshot %v to restore it: %w", meta.ID(), err)
	}
	start := time.Now()
	err = a.guard("the state machine's Restore", func() error { return a.sm.Restore(ctx, stored, r) })
	if err == nil {
		// A state machine may know where its content ends. The store checks it at the very end, so read on to there.
		_, err = io.Copy(io.Discard, r)
	}
	err = errors.Join(err, r.Close())
	if err != nil {
		return fmt.Errorf("restore snapshot %v: %w", meta.ID(), err)
	}
	a.n.log.Info("snapshot restored", "snapshot", stored.ID().String(), "bytes", stored.Size, "took", time.Since(start))
	a.gap = false
	a.durable = min(a.durable, stored.Index) // what the state machine had of its own is replaced
	a.n.table.restored(stored.ID())
	a.n.snapshots.reset(stored)
	a.noteApplied(stored.ID())
	return nil
}

// panicError is a panic in code of the embedder.
type panicError struct {
	in    string
	value any
	stack []byte
}

func (e *panicError) Error() string {
	return fmt.Sprintf("panic in %s: %v\n%s", e.in, e.value, e.stack)
}

// Unwrap makes a panic with an error value visible to errors.Is.
func (e *panicError) Unwrap() error {
	err, _ := e.value.(error)
	return err
}

// guard calls the state machine. A panic in there becomes an error, so that one state machine does not take down the process and
// whatever else runs in it; and a call back into Propose is recognised.
func (a *applier) guard(what string, f func() error) error {
	a.inside.Store(a.number)
	defer a.inside.Store(0)
	return recovered(what, f)
}

// recovered calls f and makes a panic in it an error.
func recovered(in string, f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = &panicError{in: in, value: r, stack: debug.Stack()}
		}
	}()
	return f()
}

// isCaller reports whether it runs on the applier's goroutine, called by the state machine: to wait there for something to be
// applied would be to wait for itself. The look at the goroutine's number costs about a microsecond, so it is taken only while the
// state machine runs. A goroutine that the state machine starts, and waits for, is not recognised.
func (a *applier) isCaller() bool {
	inside := a.inside.Load()
	return inside != 0 && inside == goroutineNumber()
}

// goroutineNumber reads the number of the running goroutine from the first line of its stack trace, the only place where the
// runtime tells it. Where that line should ever look different, it returns 0 and nothing is recognised.
func goroutineNumber() int64 {
	var buf [64]byte
	line := bytes.TrimPrefix(buf[:runtime.Stack(buf[:], false)], []byte("goroutine "))
	digits, _, _ := bytes.Cut(line, []byte(" "))
	number, err := strconv.ParseInt(string(digits), 10, 64)
	if err != nil {
		return 0
	}
	return number
}
