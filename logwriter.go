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

	mu          sync.Mutex
	queue       []Write
	compact     Index // entries up to here may go; 0: none
	writeFull   bool  // the last write with commands did not fit
	prepareFull bool  // there is no room to make ready for later writes; what was made ready has some yet

	// The goroutine's own.
	spare []Write
	batch []Entry // scratch of merge
	full  bool    // writeFull
}

// Bounds of the log writer.
const (
	maxMergedBytes = 16 << 20              // entries in one write, unless a single one is longer
	idleAfter      = 50 * time.Millisecond // without a write, before StoragePreparer.Idle is called
	fullRetryFirst = 50 * time.Millisecond // between attempts while the disk is full,
	fullRetryLast  = time.Second           // growing up to this
	scrubEvery     = time.Second           // and so much then: 1 GiB of log in a quarter of an hour, at a pace that nobody notices
	scrubBytes     = 1 << 20
	scrubPause     = time.Minute            // between the end of the log and its beginning
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

// more adds what has been queued meanwhile.
func (w *logWriter) more(writes []Write) []Write {
	w.mu.Lock()
	defer w.mu.Unlock()
	writes = append(writes, w.queue...)
	clear(w.queue)
	w.queue = w.queue[:0]
	return writes
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
			if !w.doCompact(compact) {
				return
			}
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
		if w.full && hasCommand(batch.Entries) {
			// What blocks the way may be cut off again by a write that has come since: together they are small.
			writes = w.more(writes)
			if all, n := mergeWrites(writes, maxInt, nil); !hasCommand(all.Entries) {
				batch, merged = all, n
			}
		}
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
				w.setFull(&w.writeFull, true, err)
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

// roomAgain notes that commands fit again, or may be tried.
func (w *logWriter) roomAgain() {
	w.full = false
	w.setFull(&w.writeFull, false, nil)
}

// setFull changes one of the two reasons for which a disk counts as full, and tells the core when that makes a difference. It takes the
// word of the preparer, which is first to find out: what was appended until the core knows has room yet in what was made ready before.
// If commands had to find out, they would block the way for every vote behind them until there is room.
func (w *logWriter) setFull(reason *bool, full bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.writeFull || w.prepareFull
	*reason = full
	switch after := w.writeFull || w.prepareFull; {
	case after && !before:
		w.n.inbox.report(func(now time.Duration) { w.n.storageState(now, StorageFull, err) })
	case before && !after:
		w.n.inbox.report(func(now time.Duration) { w.n.storageState(now, StorageOK, nil) })
	}
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
	return compact == 0 || w.doCompact(compact)
}

// doCompact returns false when nothing more will be written: the error would be that of the next write, which may be long in coming, and
// a leader must not stay in office until then.
func (w *logWriter) doCompact(to Index) bool {
	err := w.st.Compact(to)
	switch {
	case err == nil:
	case errors.Is(err, ErrStorageFull): // nothing is lost by keeping entries too long, and the next compaction tries again
		w.n.log.Warn("compact the log", "to", to, "error", err)
	default:
		w.failed(fmt.Errorf("compact the log: %w", err))
		return false
	}
	return true
}

// failed reports that nothing more will be written: the core hands leadership over, then the node fails.
func (w *logWriter) failed(err error) {
	w.n.inbox.report(func(now time.Duration) { w.n.storageState(now, StorageFailed, err) })
}

// scrub verifies a little more of the log, so that damage is repaired while other servers still have what was there. It returns when to go on.
func (w *logWriter) scrub(s StorageScrubber) time.Duration {
	damaged, end, err := s.Scrub(scrubBytes)
	if err != nil {
		w.n.log.Warn("look for damage in the log", "error", err)
	}
	for _, d := range damaged {
		w.n.log.Error("entries of the log cannot be read any more; they are fetched from the other servers", "first", d.First, "last", d.Last)
		w.n.inbox.report(func(now time.Duration) { w.n.core.Damaged(now, d) })
	}
	if end || err != nil {
		return scrubPause
	}
	return scrubEvery
}

// prepare is the goroutine that does slow work ahead of the writes, and looks for damage.
func (w *logWriter) prepare(ctx context.Context, p StoragePreparer) {
	var scrub <-chan time.Time
	scrubber, ok := w.st.(StorageScrubber)
	timer := time.NewTimer(scrubEvery)
	defer timer.Stop()
	if ok {
		scrub = timer.C
	}
	for {
		more, err := p.Prepare()
		var again <-chan time.Time
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, ErrStorageFull):
			w.setFull(&w.prepareFull, true, err)
			again = time.After(prepareRetry)
		case err != nil: // a write that needs what is missing will fail, and decide
			w.n.log.Warn("prepare the log", "error", err)
		default:
			w.setFull(&w.prepareFull, false, nil)
			if more {
				continue
			}
		}
		select {
		case <-w.after:
		case <-again:
		case <-scrub:
			timer.Reset(w.scrub(scrubber))
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
//   - a write with a snapshot stands alone: it replaces the log, so what comes before and after it has different meanings. So does one
//     with repairs, which a later truncation might have to drop again, or with a fence; both are rare.
func mergeWrites(writes []Write, maxBytes int, dst []Entry) (Batch, int) {
	b := writes[0].Batch
	b.Entries = append(dst, b.Entries...)
	if standsAlone(&b) {
		return b, 1
	}
	bytes := EntriesSize(b.Entries)
	n := 1
	for ; n < len(writes); n++ {
		next := &writes[n].Batch
		size := EntriesSize(next.Entries)
		if standsAlone(next) || bytes+size > maxBytes {
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

func standsAlone(b *Batch) bool { return b.Snapshot != nil || len(b.Repairs) > 0 || b.Fence != nil }
