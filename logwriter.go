package raft

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// logWriter makes the core's writes durable, in order, on a goroutine of its own. While one sync runs, the next writes queue up;
// they are then merged and cost one sync together (group commit).
type logWriter struct {
	n     *Node
	st    Storage
	wake  chan struct{}
	after chan struct{} // wakes the preparer after a write

	mu      sync.Mutex
	queue   []Write
	compact Index // entries up to here may go; 0: none

	// The goroutine's own.
	spare []Write
	batch []Entry // scratch of merge
	full  bool    // the core believes that there is no room
}

// Bounds of the log writer.
const (
	maxMergedBytes = 16 << 20               // entries in one write, unless a single one is longer
	idleAfter      = 50 * time.Millisecond  // without a write, before StoragePreparer.Idle is called
	fullRetryFirst = 50 * time.Millisecond  // between attempts while the disk is full,
	fullRetryLast  = time.Second            // growing up to this
	prepareRetry   = 500 * time.Millisecond // after an attempt to prepare that found the disk full
)

func newLogWriter(n *Node) *logWriter {
	return &logWriter{n: n, st: n.cfg.Storage, wake: make(chan struct{}, 1), after: make(chan struct{}, 1)}
}

// add queues a write. The core bounds how much can be under way.
func (w *logWriter) add(wr Write) {
	w.mu.Lock()
	w.queue = append(w.queue, wr)
	w.mu.Unlock()
	poke(w.wake)
}

func (w *logWriter) compactTo(i Index) {
	w.mu.Lock()
	w.compact = max(w.compact, i)
	w.mu.Unlock()
	poke(w.wake)
}

func (w *logWriter) queued() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.queue)
}

// poke wakes the one who listens, or lets it know that it need not sleep.
func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func (w *logWriter) take() (writes []Write, compact Index) {
	w.mu.Lock()
	defer w.mu.Unlock()
	writes, w.queue = w.queue, w.spare[:0]
	w.spare = nil
	compact, w.compact = w.compact, 0
	return writes, compact
}

// run is the goroutine.
func (w *logWriter) run(ctx context.Context) {
	preparer, _ := w.st.(StoragePreparer)
	idle := time.NewTimer(idleAfter)
	defer idle.Stop()
	if preparer == nil {
		idle.Stop()
	}
	var reconsider <-chan time.Time
	for {
		writes, compact := w.take()
		if len(writes) > 0 {
			if !w.write(ctx, writes) {
				return
			}
			if preparer != nil {
				idle.Reset(idleAfter)
			}
		}
		if compact > 0 {
			w.doCompact(compact)
		}
		clear(writes)
		w.spare = writes[:0]
		reconsider = nil
		if w.full {
			reconsider = time.After(fullRetryLast) // no write is left that would find out
		}
		select {
		case <-w.wake:
		case <-idle.C:
			if err := preparer.Idle(); err != nil {
				w.failed(fmt.Errorf("tidy the log: %w", err))
				return
			}
		case <-reconsider:
			w.roomAgain()
		case <-ctx.Done():
			return
		}
	}
}

// write makes all writes durable and reports them. It returns false when nothing more will be written.
func (w *logWriter) write(ctx context.Context, writes []Write) bool {
	pause := fullRetryFirst
	for len(writes) > 0 {
		if ctx.Err() != nil {
			return false
		}
		limit := maxMergedBytes
		if w.full {
			limit = 0 // one by one: what is small may still fit
		}
		batch, merged := mergeWrites(writes, limit, w.batch[:0])
		start := time.Now()
		err := w.st.Write(batch)
		switch {
		case err == nil:
			if len(batch.Entries) > 0 {
				w.n.metrics.ObserveWrite(time.Since(start), len(batch.Entries), EntriesSize(batch.Entries))
			}
			if w.full && hasCommand(batch.Entries) {
				w.roomAgain()
			}
			pause = fullRetryFirst
			w.n.inbox.reportPersisted(writes[merged-1].Seq)
			poke(w.after) // many writes may follow, and what is prepared must keep up with them
			writes = writes[merged:]
			w.keepScratch(batch.Entries)
		case errors.Is(err, ErrStorageFull):
			if !w.full {
				w.full = true
				w.n.inbox.report(func(now time.Duration) { w.n.storageState(now, StorageFull, err) })
				continue // at once, one by one
			}
			if !w.awaitRoom(ctx, pause) {
				return false
			}
			pause = min(2*pause, fullRetryLast)
		default:
			w.failed(fmt.Errorf("write the log: %w", err))
			return false
		}
	}
	return true
}

// keepScratch keeps the array of a merged batch for the next one, without what it held alive.
func (w *logWriter) keepScratch(es []Entry) {
	clear(es)
	w.batch = es[:0]
}

// roomAgain tells the core that commands fit again, or may be tried.
func (w *logWriter) roomAgain() {
	w.full = false
	w.n.inbox.report(func(now time.Duration) { w.n.storageState(now, StorageOK, nil) })
}

func hasCommand(es []Entry) bool {
	for i := range es {
		if es[i].Type == EntryCommand {
			return true
		}
	}
	return false
}

// awaitRoom lets some time pass, and does meanwhile what may make room: compact the log.
func (w *logWriter) awaitRoom(ctx context.Context, pause time.Duration) bool {
	poke(w.after) // the preparer is the one who finds room
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return false
	}
	w.mu.Lock()
	compact := w.compact
	w.compact = 0
	w.mu.Unlock()
	if compact > 0 {
		w.doCompact(compact)
	}
	return true
}

func (w *logWriter) doCompact(to Index) {
	if err := w.st.Compact(to); err != nil {
		// Nothing is lost by keeping entries too long, and the next compaction tries again.
		w.n.log.Warn("compact the log", "to", to, "error", err)
	}
}

// failed reports that nothing more will be written: the core hands leadership over, then the node fails.
func (w *logWriter) failed(err error) {
	w.n.inbox.report(func(now time.Duration) { w.n.storageState(now, StorageFailed, err) })
}

// prepare is the goroutine that does slow work ahead of the writes.
func (w *logWriter) prepare(ctx context.Context, p StoragePreparer) {
	for {
		more, err := p.Prepare()
		var again <-chan time.Time
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, ErrStorageFull):
			again = time.After(prepareRetry)
		case err != nil: // a write that needs what is missing will fail, and decide
			w.n.log.Warn("prepare the log", "error", err)
		case more:
			continue
		}
		select {
		case <-w.after:
		case <-again:
		case <-ctx.Done():
			return
		}
	}
}

// mergeWrites makes one batch of the first few of consecutive writes, at least one, and says of how many. Entries are appended to
// dst. The result has the effect of the writes one after another:
//
//   - of the hard states the last one stands;
//   - a truncation drops the entries of earlier writes in the batch from there on, and moves the batch's own truncation down if it
//     reaches below them;
//   - a write with a snapshot stands alone: it replaces the log, so what comes before and after it has different meanings.
func mergeWrites(writes []Write, maxBytes int, dst []Entry) (Batch, int) {
	b := writes[0].Batch
	b.Entries = append(dst, b.Entries...)
	if b.Snapshot != nil {
		return b, 1
	}
	bytes := EntriesSize(b.Entries)
	n := 1
	for ; n < len(writes); n++ {
		next := &writes[n].Batch
		size := EntriesSize(next.Entries)
		if next.Snapshot != nil || bytes+size > maxBytes {
			break
		}
		bytes += size
		if next.HardState != nil {
			b.HardState = next.HardState
		}
		if t := next.TruncateFrom; t > 0 {
			keep := 0
			if len(b.Entries) > 0 && t > b.Entries[0].Index {
				keep = min(int(t-b.Entries[0].Index), len(b.Entries))
			}
			b.Entries = b.Entries[:keep]
			if keep == 0 && (b.TruncateFrom == 0 || t < b.TruncateFrom) {
				b.TruncateFrom = t
			}
		}
		b.Entries = append(b.Entries, next.Entries...)
	}
	return b, n
}
