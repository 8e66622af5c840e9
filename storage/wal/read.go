package wal

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
)

// readAhead is how much a walk over a segment reads at a time.
const readAhead = 256 << 10

// segmentReader reads pieces of one file through a buffer.
type segmentReader struct {
	file   vfs.File
	path   string
	size   int64
	ahead  int64
	buf    []byte
	offset int64 // of buf in the file
}

// at returns n bytes, or fewer at the end of the file. They are valid until the next call.
func (r *segmentReader) at(offset, n int64) ([]byte, error) {
	if n = min(n, r.size-offset); n <= 0 {
		return nil, nil
	}
	if offset >= r.offset && offset+n <= r.offset+int64(len(r.buf)) {
		return r.buf[offset-r.offset:][:n], nil
	}
	want := min(max(n, r.ahead), r.size-offset)
	if int64(cap(r.buf)) < want {
		r.buf = make([]byte, want)
	}
	r.buf, r.offset = r.buf[:want], offset
	got, err := r.file.ReadAt(r.buf, offset)
	if err != nil && err != io.EOF {
		r.buf = r.buf[:0]
		return nil, fmt.Errorf("read %s at byte %d: %w", r.path, offset, err)
	}
	if int64(got) < want { // the segment was cut to size meanwhile; what it holds is still there
		r.buf, r.size = r.buf[:got], offset+int64(got)
		n = min(n, int64(got))
	}
	return r.buf[:n], nil
}

// batchAt reads and verifies the batch at offset, as far as that is possible without knowing what came before. The bytes are valid
// until the next call. err is an error of the device.
func (r *segmentReader) batchAt(offset int64, tag segmentTag) (h batchHeader, b []byte, v verdict, err error) {
	b, err = r.at(offset, sectorSize)
	if err != nil {
		return h, nil, v, err
	}
	h, voteLen, decodeErr := decodeBatchHeader(b)
	switch {
	case decodeErr != nil:
		return h, nil, corrupted(decodeErr.Error()), nil
	case h.tag != tag || h.offset != offset:
		return h, nil, corrupted("batch of another place or another segment"), nil
	case h.end() > r.size:
		return h, nil, corrupted(fmt.Sprintf("batch ends at byte %d, but the file at %d", h.end(), r.size)), nil
	}
	b, err = r.at(offset, h.end()-offset)
	if err != nil {
		return h, nil, v, err
	}
	return h, b, verifyBatch(&h, voteLen, b), nil
}

// Entries implements raft.Storage.
func (w *WAL) Entries(lo, hi raft.Index, maxBytes int) ([]raft.Entry, error) {
	w.mu.RLock()
	switch {
	case !w.open:
		w.mu.RUnlock()
		return nil, errClosed
	case lo <= w.index.compacted.Index:
		w.mu.RUnlock()
		return nil, fmt.Errorf("read entry %d: %w", lo, raft.ErrCompacted)
	case lo >= hi || hi > w.index.last.Index+1:
		last := w.index.last.Index
		w.mu.RUnlock()
		return nil, fmt.Errorf("read entries [%d, %d): the log ends at %d", lo, hi, last)
	}
	// One run at a time is read without the lock: a write need not wait for it, and what it reads never changes on disk.
	want := entriesWanted{lo: lo, hi: hi, maxBytes: maxBytes}
	for !want.done() {
		r, offset := w.index.find(want.lo)
		seg, last := r.seg, r.last
		w.mu.RUnlock()
		err := w.readRun(seg, offset, last, &want)
		w.mu.RLock()
		if err == nil && want.done() {
			break
		}
		if want.lo <= w.index.compacted.Index { // given up meanwhile, and perhaps its file removed
			err = raft.ErrCompacted
		} else if err == nil && want.lo > w.index.last.Index {
			err = fmt.Errorf("truncated meanwhile, the log ends at %v", w.index.last)
		} else if err == nil {
			continue
		}
		w.mu.RUnlock()
		if len(want.entries) > 0 { // they are right; the next call finds out about the rest
			return want.entries, nil
		}
		return nil, fmt.Errorf("read entry %d: %w", want.lo, err)
	}
	w.mu.RUnlock()
	return want.entries, nil
}

// entriesWanted is a read under way.
type entriesWanted struct {
	lo, hi   raft.Index // not yet read
	maxBytes int
	bytes    int
	entries  []raft.Entry
	full     bool
}

func (q *entriesWanted) done() bool { return q.full || q.lo >= q.hi }

// readRun reads wanted entries from the walk that begins at offset, up to and including last.
func (w *WAL) readRun(seg *segment, offset int64, last raft.Index, want *entriesWanted) (err error) {
	f, err := w.fs.Open(seg.path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Size()
	if err != nil {
		return err
	}
	r := &segmentReader{file: f, path: seg.path, size: size, ahead: min(readAhead, int64(max(want.maxBytes, markDistance)))}
	if buf, ok := w.buffers.Get().(*[]byte); ok {
		r.buf = (*buf)[:0]
	}
	defer func() {
		if cap(r.buf) <= maxKeptBuffer {
			w.buffers.Put(&r.buf)
		}
	}()
	for gap := false; !want.done() && want.lo <= last; {
		h, b, v, err := r.batchAt(offset, seg.tag)
		if err != nil {
			return err
		}
		if v.reason != "" && !gap {
			// The place of an idle record that was lost in a crash of the machine; the next batch follows it.
			if sector, err := r.at(offset, sectorSize); err != nil {
				return err
			} else if len(sector) == sectorSize && isZero(sector) {
				gap, offset = true, offset+sectorSize
				continue
			}
		}
		if v.reason != "" {
			return &raft.CorruptionError{Path: seg.path, Offset: offset, Reason: v.reason, Next: nextVerify}
		}
		gap, offset = false, h.end()
		if h.count == 0 || h.last.Index < want.lo {
			continue
		}
		if h.prev.Index >= want.lo {
			return &raft.CorruptionError{
				Path: seg.path, Offset: h.offset, Next: nextVerify,
				Reason: fmt.Sprintf("batch begins behind entry %v, want entry %d", h.prev, want.lo),
			}
		}
		if err := want.take(&h, b, last); err != nil {
			return &raft.CorruptionError{Path: seg.path, Offset: h.offset, Reason: err.Error(), Next: nextVerify}
		}
	}
	return nil
}

// take copies the wanted entries out of a verified batch: they are the caller's to keep, without the rest of the buffer. It verifies
// the headers of those that it passes over, and everything of those that it takes.
func (q *entriesWanted) take(h *batchHeader, b []byte, last raft.Index) error {
	body := b[h.headerLen:h.size()]
	first, end := 0, 0 // where the wanted frames lie
	next := h.prev.Index + 1
	for ; next <= h.last.Index && next < q.hi && next <= last; next++ {
		n, id, err := raft.EntryFrameSize(body[end:])
		if err != nil {
			return err
		}
		if id.Index != next || n > len(body)-end {
			return fmt.Errorf("entry %v of %d bytes where entry %d belongs", id, n, next)
		}
		if next < q.lo {
			first = end + n
		} else if q.bytes > 0 && q.bytes+n > q.maxBytes {
			q.full = true
			break
		} else {
			q.bytes += n
		}
		end += n
	}
	frames := append([]byte(nil), body[first:end]...)
	q.entries = slices.Grow(q.entries, int(max(next, q.lo)-q.lo))
	for len(frames) > 0 {
		e, n, err := raft.DecodeEntry(frames)
		if err != nil {
			return err
		}
		q.entries = append(q.entries, e)
		q.lo++
		frames = frames[n:]
	}
	return nil
}
