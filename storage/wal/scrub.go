package wal

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/steadyraft/raft"
)

// scrubber remembers how far the log was verified.
type scrubber struct {
	seq    uint64 // of the segment
	offset int64
	next   raft.Index // what comes in front of the batch there, at the latest; 0: not known
}

var _ raft.StorageScrubber = (*WAL)(nil)

// Scrub implements raft.StorageScrubber. A footer keeps Open from reading the segments in front of the last one, so that this, and whoever
// reads their entries, is what finds out that they have changed.
func (w *WAL) Scrub(maxBytes int) (damaged []raft.Damage, end bool, err error) {
	w.mu.RLock()
	if !w.open {
		w.mu.RUnlock()
		return nil, false, errClosed
	}
	var seg *segment
	for _, s := range w.segments {
		if s.seq >= w.scrub.seq {
			seg = s
			break
		}
	}
	if seg == nil { // behind the last one
		w.scrub = scrubber{}
		w.mu.RUnlock()
		return nil, true, nil
	}
	if seg.seq != w.scrub.seq {
		w.scrub = scrubber{seq: seg.seq, offset: segmentHeaderSize}
	}
	to, first, last := seg.end, raft.Index(0), raft.Index(0) // what of the log lies in the segment
	for i := range w.index.runs {
		if r := &w.index.runs[i]; r.seg == seg {
			if first == 0 {
				first = r.first
			}
			last = r.last
		}
	}
	w.mu.RUnlock()

	suspects, err := w.scrubSegment(seg, to, int64(maxBytes), first, last)
	if errors.Is(err, fs.ErrNotExist) { // given up meanwhile
		w.scrub = scrubber{seq: seg.seq + 1, offset: segmentHeaderSize}
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	for _, s := range suspects {
		damaged = append(damaged, w.unreadable(s.First, s.Last)...)
	}
	return damaged, false, nil
}

// scrubSegment verifies the batches of a segment from where the last call ended, up to to. It returns entries that may be damaged, by what is
// around the damage: first and last are those of the log that lie in the segment.
func (w *WAL) scrubSegment(seg *segment, to, maxBytes int64, first, last raft.Index) (suspects []raft.Damage, err error) {
	f, err := w.fs.Open(seg.path)
	if err != nil {
		return nil, fmt.Errorf("scrub: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	r := &segmentReader{file: f, path: seg.path, size: to, ahead: min(readAhead, max(maxBytes, pageSize))}
	if seg.sealer != nil {
		r.sealer = seg.sealer.again(&w.buffers)
		defer r.sealer.release(&w.buffers)
	}
	begin := w.scrub.offset
	if w.scrub.next == 0 {
		w.scrub.next = first
	}
	for w.scrub.offset+sectorSize <= to && w.scrub.offset-begin < maxBytes {
		h, b, v, err := r.batchAt(w.scrub.offset, seg.tag)
		if err != nil {
			return nil, fmt.Errorf("scrub: %w", err)
		}
		switch {
		case b == nil:
			next, found, err := r.nextBatch(w.scrub.offset+sectorSize, seg.tag)
			if err != nil {
				return nil, fmt.Errorf("scrub: %w", err)
			}
			d := raft.Damage{First: w.scrub.next, Last: last}
			if w.scrub.offset = to; found {
				w.scrub.offset, d.Last = next.offset, min(last, next.prev.Index)
			}
			suspects = append(suspects, d)
			continue
		case v.reason != "":
			left := h.salvage(b)
			for _, s := range left.lost {
				suspects = append(suspects, s.damage())
			}
		case h.count > 0:
			nothing := func(raft.Entry) {}
			if decodeErr := decodeEntries(&h, b, nothing, nothing); decodeErr != nil {
				suspects = append(suspects, raft.Damage{First: h.prev.Index + 1, Last: h.last.Index})
			}
		}
		if w.scrub.offset = h.end(); h.count > 0 {
			w.scrub.next = h.last.Index + 1
		}
	}
	if w.scrub.offset+sectorSize > to {
		w.scrub = scrubber{seq: seg.seq + 1, offset: segmentHeaderSize}
	}
	return suspects, nil
}

// unreadable reads the entries first to last, as far as they are in the log, and returns those that are damaged. What was superseded or
// written again does not count.
func (w *WAL) unreadable(first, last raft.Index) (damaged []raft.Damage) {
	w.mu.RLock()
	first, last = max(first, w.index.compacted.Index+1), min(last, w.index.last.Index)
	w.mu.RUnlock()
	for at := first; at <= last; {
		es, err := w.Entries(at, last+1, readAhead)
		var damage *raft.CorruptionError
		switch {
		case err == nil:
			at += raft.Index(len(es))
		case errors.As(err, &damage) && damage.Damage.Last >= at:
			d := damage.Damage
			d.Last = min(d.Last, last)
			damaged = append(damaged, d)
			at = d.Last + 1
		default: // truncated or compacted meanwhile, or an error of the device that the next read meets again
			return damaged
		}
	}
	return damaged
}
