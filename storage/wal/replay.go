package wal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/steadyraft/raft"
)

// replay reads all batches, from the first segment that is needed to the end.
func (r *recovery) replay(ctx context.Context) error {
	w := r.w
	chain, missing := r.chain()
	for i, seq := range chain {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("open log: %w", err)
		}
		h := r.headers[seq]
		seg := &segment{seq: seq, path: w.path(segmentName(seq)), tag: h.tag, end: segmentHeaderSize,
			baseBatch: h.lastBatch, baseChain: h.chain, sealer: r.sealers[seq]}
		if lost := missing[seq]; lost != 0 {
			r.gap = &loss{path: w.path(segmentName(lost)), reason: "the segment is missing"}
			if err := r.bad[lost]; err != nil {
				r.gap.reason = err.Reason
			}
		}
		if i == 0 {
			r.lostFirst = missing[seq]
		}
		var err error
		switch {
		case i > 0:
			err = r.join(w.segments[i-1], &h)
		case r.gap != nil:
			err = r.beginBehindGap(seg, &h)
		default:
			r.begin(&h)
		}
		if err != nil {
			return err
		}
		w.segments = append(w.segments, seg)
		var next *segmentHeader // nil: there is none, or another segment between the two is missing
		synced := r.vote.batch
		if i+1 < len(chain) {
			behind := r.headers[chain[i+1]]
			synced = behind.lastBatch
			if missing[behind.seq] == 0 {
				next = &behind
			}
		}
		if err := r.replaySegment(seg, next, synced, i+1 == len(chain)); err != nil {
			return err
		}
		r.last = seg
	}
	return nil
}

// begin takes the state over that a header describes.
func (r *recovery) begin(h *segmentHeader) {
	w := r.w
	w.lastBatch, w.chain, w.before, w.hardState, w.fence = h.lastBatch, h.chain, h.before, h.hardState, h.fence
	w.index.compacted, w.index.last = h.last, h.last
	w.index.snapshot, w.index.baseConfig = h.snapshot, h.config
}

// chain lists the segments that make up the log, in order: each names the one before it that holds batches. Those that nobody names were
// begun by runs that wrote nothing. missing says of a segment which one in front of it cannot be read.
func (r *recovery) chain() (chain []uint64, missing map[uint64]uint64) {
	if len(r.files) == 0 {
		return nil, nil
	}
	missing = map[uint64]uint64{}
	seq := r.files[len(r.files)-1]
	chain = []uint64{seq}
	for {
		prev := r.headers[seq].prevSeq
		if prev == 0 || r.voteFound && prev < r.vote.first {
			break
		}
		if _, ok := r.headers[prev]; !ok {
			if !r.voteFound && r.files[0] > prev && r.bad[prev] == nil {
				break // compacted, as far as can be known without the vote file
			}
			missing[seq] = prev
			n, _ := slices.BinarySearch(r.files, prev)
			if n == 0 {
				break
			}
			prev = r.files[n-1]
		}
		seq = prev
		chain = append(chain, seq)
	}
	slices.Reverse(chain)
	return chain, missing
}

// replaySegment reads the batches of one segment, or what its footer says of them. next says where it ends; nil if none says so, and the
// end is in doubt. synced is a batch that something vouches for. last says that there is no next segment.
func (r *recovery) replaySegment(seg *segment, next *segmentHeader, synced uint64, last bool) (err error) {
	w := r.w
	sealedAt := int64(-1)
	if next != nil {
		sealedAt = next.prevEnd
	}
	f, err := w.fs.Open(seg.path)
	if err != nil {
		return fmt.Errorf("open segment: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Size()
	if err != nil {
		return fmt.Errorf("open segment: %w", err)
	}
	if next != nil && !w.opts.VerifyAtOpen {
		if taken, err := r.takeFooter(f, seg, next); taken || err != nil {
			return err
		}
	}
	losses := len(r.losses)
	end := size
	if sealedAt >= 0 {
		end = min(size, sealedAt)
	}
	reader := &segmentReader{file: f, path: seg.path, size: end, ahead: readAhead, sealer: seg.sealer}
	for seg.end+sectorSize <= end && r.gap == nil && !r.tailLost {
		h, b, v, err := reader.batchAt(seg.end, seg.tag)
		if err != nil {
			return err
		}
		if b != nil {
			if reason := r.follows(&h); reason != "" {
				return r.refuse(Damaged, seg.path, h.offset, reason)
			}
		}
		if v.reason == "" {
			if err := r.replayBatch(seg, &h, b); err != nil {
				return r.refuse(Damaged, seg.path, h.offset, err.Error())
			}
			r.replays(seg, &h)
			continue
		}
		done, err := r.judgeDamage(reader, seg, &h, b, v, next, synced, last)
		if err != nil {
			return err
		}
		if done {
			break
		}
	}
	// A segment that nobody has sealed is as long as it was made. If it ends early, nothing else need tell of what is gone: the rest
	// may end with a batch.
	made := r.headers[seg.seq].size
	switch {
	case sealedAt > size:
		r.lose(seg.path, size, fmt.Sprintf("the file is cut off: it held %d bytes", sealedAt))
	case last && seg.seq == r.newest && size < made:
		r.loseTail(seg.path, size, fmt.Sprintf("the file is cut off: it was made with %d bytes", made), raft.EntryID{Term: raft.MaxTerm})
	}
	if sealedAt >= 0 {
		seg.end = sealedAt
	}
	if next != nil && r.gap == nil && len(r.losses) == losses {
		r.sealed = append(r.sealed, trim{seg.path, seg.end, w.index.footerOf(seg, w.lastBatch, w.chain), seg.sealer})
	}
	return nil
}

// follows checks that a batch with an intact header is the next one. It returns what is wrong with it.
func (r *recovery) follows(h *batchHeader) string {
	w := r.w
	want := w.lastBatch + 1
	if h.has(flagIdle) {
		want = w.lastBatch
	}
	switch {
	case h.seq != want:
		return fmt.Sprintf("batch %d stands where batch %d belongs", h.seq, want)
	case h.prevChain != w.chain || h.before != w.before:
		return fmt.Sprintf("batch %d does not continue the chain of the one before", h.seq)
	}
	return ""
}

// takeOver carries out what a batch says besides its entries. words says that vote and fence are intact.
func (r *recovery) takeOver(seg *segment, h *batchHeader, words bool) error {
	w := r.w
	seg.end = h.end()
	r.lastOffset, r.lastDamaged = h.offset, false
	w.lastHolder = seg
	w.lastBatch, w.chain, w.before = h.seq, h.chain, h.span()
	if h.has(flagHardState) && words {
		w.hardState, r.hardDoubt = h.hardState, nil
	}
	if h.has(flagFence) && words {
		w.fence, r.fenceDoubt = h.fence, false
	}
	if h.has(flagTruncate) && (h.truncateFrom == 0 || h.truncateFrom > w.index.last.Index+1) {
		return fmt.Errorf("batch %d truncates from %d, but the log ends at %v", h.seq, h.truncateFrom, w.index.last)
	}
	w.index.apply(h)
	if h.prev != w.index.last {
		return fmt.Errorf("batch %d follows entry %v, but the log ends at %v", h.seq, h.prev, w.index.last)
	}
	return nil
}

// replayBatch takes over a batch.
func (r *recovery) replayBatch(seg *segment, h *batchHeader, b []byte) error {
	if h.has(flagIdle) {
		seg.end = h.end()
		return nil
	}
	if r.everyEntry {
		nothing := func(raft.Entry) {}
		if err := decodeEntries(h, b, nothing, nothing); err != nil {
			return r.replayDamaged(seg, h, b, corrupted(err.Error()), raft.EntryID{})
		}
	}
	if err := r.takeOver(seg, h, true); err != nil {
		return err
	}
	return walkEntries(h, b, decodeBriefly, func(e raft.Entry) { r.take(seg, h, e) }, func(e raft.Entry) { r.takeRepair(seg, h, e) })
}

func (r *recovery) take(seg *segment, h *batchHeader, e raft.Entry) {
	r.w.index.add(e.ID(), e.Type, seg, h.offset)
	if e.Type == raft.EntryConfiguration {
		r.configs[e.Index] = e.Clone()
	}
}

// takeRepair takes over a repair. One of an entry that is compacted is no longer needed.
func (r *recovery) takeRepair(seg *segment, h *batchHeader, e raft.Entry) {
	if r.w.index.repair(e.ID(), e.Type, seg, h.offset) && e.Type == raft.EntryConfiguration {
		r.configs[e.Index] = e.Clone()
	}
}

// lostIdleRecord reports whether the sector at the segment's end is the place of an idle record that never reached the disk: it was
// written without waiting for it, so that a batch may have become durable behind it.
func (r *recovery) lostIdleRecord(reader *segmentReader, seg *segment, sealedAt int64) (bool, error) {
	b, err := reader.at(seg.end, sectorSize)
	if err != nil || !isZero(b) || r.w.lastHolder != seg {
		return false, err
	}
	next := seg.end + sectorSize
	if next == sealedAt {
		return true, nil
	}
	if b, err = reader.at(next, sectorSize); err != nil {
		return false, err
	}
	h, decodeErr := decodeBatchHeader(b)
	return decodeErr == nil && h.tag == seg.tag && h.offset == next && !h.has(flagIdle) && r.follows(&h) == "" &&
		reader.isAuthentic(&h, b), nil
}

// judgeDamage decides what damage at the end of what was replayed of a segment means. At most one batch is in doubt: the next one is not
// written before the sync of the one before has returned. So whatever shows that this sync returned (a later batch, an idle record, the
// next segment, the vote file, anything at all behind a batch of which it is known where it ends) makes it corruption. Otherwise, if the
// damage shows sectors that were never written, nobody was told that the batch is durable, and it may go. Any other damage is corruption:
// a crash leaves old sectors, not wrong ones.
//
// It goes on behind the damage, or reports that nothing of the segment is left.
func (r *recovery) judgeDamage(
	reader *segmentReader, seg *segment, h *batchHeader, b []byte, v verdict, sealedBy *segmentHeader, synced uint64, last bool,
) (done bool, err error) {
	w := r.w
	sealedAt := int64(-1)
	if sealedBy != nil {
		sealedAt = sealedBy.prevEnd
	}
	doubtful := w.lastBatch + 1
	if b != nil && h.has(flagIdle) {
		r.noteDegraded(seg.path, &raft.CorruptionError{Path: seg.path, Offset: seg.end, Reason: v.reason}, meaningIdle)
		seg.end = h.end()
		return false, nil
	}
	if b == nil {
		lostIdle, err := r.lostIdleRecord(reader, seg, sealedAt)
		if err != nil {
			return false, err
		}
		if lostIdle {
			seg.end += sectorSize
			return false, nil
		}
	}
	from := seg.end + sectorSize
	if b != nil {
		from = h.end()
		b = bytes.Clone(b) // what is left of it is used, and the reader goes on
	}
	next, found, err := reader.nextBatch(from, seg.tag)
	if err != nil {
		return false, err
	}
	behind, err := reader.firstWritten(from)
	if err != nil {
		return false, err
	}
	vouched := synced >= doubtful || found && (next.syncedThrough >= doubtful) || b != nil && behind >= 0
	if !vouched {
		first, err := reader.at(seg.end, sectorSize)
		if err != nil {
			return false, err
		}
		neverBegun := isZero(first)
		switch {
		case neverBegun && behind < 0:
			return true, nil // the end of the log
		case r.lastDamaged:
			// The batch in front was synced, and is damaged: with that, a disk that forgets what it has synced may have lost this one.
		case neverBegun || v.torn:
			if last && !r.voteKnown && (b == nil || h.has(flagHardState|flagFence)) {
				// It may have been whole, and have held a vote; and the vote file may have lost just that one.
				return false, r.refuse(TermLost, seg.path, seg.end, v.reason+"; term and vote may be lost with it, and the vote file does not tell")
			}
			w.mu.Lock()
			w.torn++
			w.mu.Unlock()
			r.note(Finding{
				File: seg.path, Offset: seg.end, Verdict: Torn, Found: fmt.Sprintf("batch %d: %s", doubtful, v.reason),
				Meaning: "the last batch was not written completely before a crash, and is left out: nobody was told that it is durable",
				Next:    nextNothing,
			})
			return true, nil
		}
	}
	switch {
	case b != nil:
		end := raft.EntryID{}
		switch {
		case last && behind < 0:
			end = h.last
		case last && !found:
			end.Term = raft.MaxTerm
		}
		return false, r.replayDamaged(seg, h, b, v, end)
	case found:
		return false, r.bridge(&loss{path: seg.path, offset: seg.end, reason: v.reason}, seg, &next, sealedBy)
	case last:
		r.loseTail(seg.path, seg.end, v.reason, raft.EntryID{Term: raft.MaxTerm})
	default:
		r.lose(seg.path, seg.end, v.reason)
	}
	return true, nil
}

// firstWritten returns the offset of the first sector from one on that does not read zero; -1 if there is none.
func (r *segmentReader) firstWritten(offset int64) (int64, error) {
	for ; offset+sectorSize <= r.size; offset += sectorSize {
		b, err := r.at(offset, sectorSize)
		if err != nil {
			return 0, err
		}
		if !isZero(b) {
			return offset, nil
		}
	}
	return -1, nil
}

// replayDamaged takes over a batch of which only the fixed header is certainly intact. If it is the last that can be read, end is where the
// log may have ended, with all that was behind the batch; otherwise it is zero.
func (r *recovery) replayDamaged(seg *segment, h *batchHeader, b []byte, v verdict, end raft.EntryID) error {
	w := r.w
	left := h.salvage(b)
	where := loss{path: seg.path, offset: h.offset, reason: joined(v.reason, holds(h, &left))}
	if h.count > 0 && left.terms == nil {
		if end == (raft.EntryID{}) {
			return r.refuse(Damaged, seg.path, h.offset, where.reason+"; of which terms the damaged ones are is unknown")
		}
		if h.has(flagHardState) && left.table {
			w.hardState, r.hardDoubt = h.hardState, nil
		}
		r.loseTail(seg.path, h.offset, where.reason+"; of which terms the damaged ones are is unknown", end)
		return nil
	}
	if err := r.takeOver(seg, h, left.table); err != nil {
		return r.refuse(Damaged, seg.path, h.offset, err.Error())
	}
	r.lastDamaged = true
	if h.has(flagHardState) && !left.table {
		r.hardDoubt = &where
		w.hardState = raft.HardState{CurrentTerm: h.hardState.CurrentTerm}
	}
	r.fenceDoubt = r.fenceDoubt || h.has(flagFence) && !left.table
	r.replays(seg, h)
	n := 0
	for _, lost := range left.lost {
		for ; n < len(left.entries) && left.entries[n].Index < lost.first; n++ {
			r.take(seg, h, left.entries[n])
		}
		r.takeDamaged(lost, left.terms, seg, h.offset)
		where.first, where.last = lost.first, lost.last
		r.losses = append(r.losses, where)
	}
	for ; n < len(left.entries); n++ {
		r.take(seg, h, left.entries[n])
	}
	for i := range left.repairs {
		r.takeRepair(seg, h, left.repairs[i])
	}
	if len(left.lost) == 0 {
		r.losses = append(r.losses, where)
	}
	return nil
}

// takeDamaged appends damaged entries of known terms.
func (r *recovery) takeDamaged(lost stretch, terms []raft.TermStart, seg *segment, offset int64) {
	for i, t := range terms {
		first, last := max(t.Index, lost.first), lost.last
		if i+1 < len(terms) {
			last = min(last, terms[i+1].Index-1)
		}
		if first <= last {
			r.w.index.addDamaged(first, raft.EntryID{Term: t.Term, Index: last}, lost.mayConfigure, seg, offset)
		}
	}
}
