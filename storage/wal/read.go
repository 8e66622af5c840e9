package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
)

// readAhead is how much a walk over a segment reads at a time.
const readAhead = 512 << 10

// segmentReader reads pieces of one file through a buffer.
type segmentReader struct {
	file   vfs.File
	path   string
	size   int64
	ahead  int64
	sealer *sealer // nil: the segment is not encrypted
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
	kept := []byte(nil) // what has been read already
	if offset >= r.offset && offset < r.offset+int64(len(r.buf)) {
		kept = r.buf[offset-r.offset:]
	}
	buf := r.buf
	if int64(cap(buf)) < want {
		buf = make([]byte, want)
	}
	buf = buf[:want]
	got := copy(buf, kept)
	r.buf, r.offset = buf[:0], offset
	more, err := r.file.ReadAt(buf[got:], offset+int64(got))
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("read %s at byte %d: %w", r.path, offset, err)
	}
	r.buf, got = buf, got+more
	if int64(got) < want { // the segment was cut to size meanwhile; what it holds is still there
		r.buf, r.size = r.buf[:got], offset+int64(got)
		n = min(n, int64(got))
	}
	return r.buf[:n], nil
}

// batchAt reads and verifies the batch at offset, as far as that is possible without knowing what came before. The bytes are valid
// until the next call; if there are none, not even the fixed header is intact, or the batch does not belong there. They are fewer than the
// batch if the file ends before it does. err is an error of the device.
func (r *segmentReader) batchAt(offset int64, tag segmentTag) (h batchHeader, b []byte, v verdict, err error) {
	b, err = r.at(offset, sectorSize)
	if err != nil {
		return h, nil, v, err
	}
	h, decodeErr := decodeBatchHeader(b)
	switch {
	case decodeErr != nil:
		return h, nil, corrupted(decodeErr.Error()), r.forgedHeader(offset, decodeErr)
	case h.tag != tag || h.offset != offset:
		return h, nil, corrupted("batch of another place or another segment"), nil
	}
	authentic := r.isAuthentic(&h, b)
	b, err = r.at(offset, h.end()-offset)
	if err != nil {
		return h, nil, v, err
	}
	if !authentic {
		return r.judgeForgery(h, b)
	}
	if int64(len(b)) < h.end()-offset {
		return h, b, corrupted(fmt.Sprintf("batch %d ends at byte %d, but the file at %d", h.seq, h.end(), r.size)), nil
	}
	if v = verifyBatch(&h, b); r.sealer != nil {
		return r.unseal(h, b, v)
	}
	return h, b, v, nil
}

// nextBatch looks for the first intact batch header of the segment from offset on. The segment's tag is random: no payload can hold one.
func (r *segmentReader) nextBatch(offset int64, tag segmentTag) (h batchHeader, found bool, err error) {
	for ; offset+sectorSize <= r.size; offset += sectorSize {
		b, err := r.at(offset, sectorSize)
		if err != nil || len(b) < sectorSize {
			return h, false, err
		}
		if binary.LittleEndian.Uint32(b) != batchMagic {
			continue
		}
		if h, err := decodeBatchHeader(b); err == nil && h.tag == tag && h.offset == offset && r.isAuthentic(&h, b) {
			return h, true, nil
		}
	}
	return h, false, nil
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
		p, err := w.index.place(want.lo)
		w.mu.RUnlock()
		if err == nil {
			err = w.read(p, &want)
		}
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

// read reads wanted entries from a place.
func (w *WAL) read(p source, want *entriesWanted) (err error) {
	f, err := w.fs.Open(p.seg.path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Size()
	if err != nil {
		return err
	}
	r := &segmentReader{file: f, path: p.seg.path, size: size, ahead: min(readAhead, int64(max(want.maxBytes, markDistance)))}
	if buf, ok := w.buffers.Get().(*[]byte); ok {
		r.buf = (*buf)[:0]
	}
	defer func() {
		if cap(r.buf) <= maxKeptBuffer {
			w.buffers.Put(&r.buf)
		}
	}()
	if p.seg.sealer != nil {
		r.sealer = p.seg.sealer.again(&w.buffers)
		defer r.sealer.release(&w.buffers)
	}
	if p.repaired {
		return want.fromRepair(r, p)
	}
	return want.fromRun(r, p)
}

// fromRun walks over the batches from the place on.
func (q *entriesWanted) fromRun(r *segmentReader, p source) error {
	for offset := p.offset; !q.done() && q.lo <= p.last; {
		h, b, v, err := r.batchAt(offset, p.seg.tag)
		if err != nil {
			return err
		}
		if b == nil {
			// An idle record that was lost or damaged, or one or more batches. The next one tells which entries come before it.
			next, found, err := r.nextBatch(offset+sectorSize, p.seg.tag)
			switch {
			case err != nil:
				return err
			case !found:
				return q.damaged(p, offset, v.reason, p.last, true)
			case next.prev.Index >= q.lo:
				return q.damaged(p, offset, v.reason, next.prev.Index, true)
			}
			offset = next.offset
			continue
		}
		offset = h.end()
		if h.count == 0 || h.last.Index < q.lo {
			continue
		}
		mayConfigure := h.has(flagConfiguration)
		if h.prev.Index >= q.lo {
			reason := fmt.Sprintf("batch begins behind entry %v, want entry %d", h.prev, q.lo)
			return q.damaged(p, h.offset, reason, h.prev.Index, true)
		}
		if v.reason != "" {
			if lost := q.takeSalvaged(&h, b, p.last); lost != nil {
				return q.damaged(p, h.offset, v.reason, lost.last, lost.mayConfigure)
			}
		} else if err := q.take(&h, b, p.last); err != nil {
			return q.damaged(p, h.offset, err.Error(), q.lo, mayConfigure)
		}
	}
	return nil
}

// damaged says that the entries from q.lo to last cannot be read.
func (q *entriesWanted) damaged(p source, offset int64, reason string, last raft.Index, mayConfigure bool) error {
	return &raft.CorruptionError{
		Path: p.seg.path, Offset: offset, Reason: reason, Next: nextPeers,
		Damage: raft.Damage{First: q.lo, Last: min(last, p.last), MayConfigure: mayConfigure},
	}
}

// takeSalvaged copies the wanted entries out of a damaged batch, as far as they are intact. It returns the damage that comes next; nil
// if nothing of the batch that is wanted is damaged.
func (q *entriesWanted) takeSalvaged(h *batchHeader, b []byte, last raft.Index) *stretch {
	s := h.salvage(b)
	q.takeSome(s.entries, last)
	if d := stretchAt(s.lost, q.lo); d != nil && d.first <= q.lo && !q.done() && q.lo <= last {
		return d
	}
	return nil
}

// fromRepair reads a batch in which the wanted entries were written a second time.
func (q *entriesWanted) fromRepair(r *segmentReader, p source) error {
	h, b, v, err := r.batchAt(p.offset, p.seg.tag)
	if err != nil {
		return err
	}
	var repairs []raft.Entry
	switch {
	case b == nil:
	case v.reason != "":
		repairs = h.salvage(b).repairs
	default:
		if err := decodeEntries(&h, b, func(raft.Entry) {}, func(e raft.Entry) { repairs = append(repairs, e) }); err != nil {
			return q.damaged(p, p.offset, err.Error(), q.lo, true)
		}
	}
	first := q.lo
	q.takeSome(repairs, p.last)
	if q.lo == first {
		return q.damaged(p, p.offset, "an entry that was written a second time is damaged again: "+v.reason, first, true)
	}
	return nil
}

// takeSome copies those entries that are wanted next.
func (q *entriesWanted) takeSome(es []raft.Entry, last raft.Index) {
	for i := range es {
		e := &es[i]
		switch {
		case q.done() || e.Index > last:
			return
		case e.Index != q.lo:
			continue
		case q.bytes > 0 && q.bytes+e.Size() > q.maxBytes:
			q.full = true
			return
		}
		q.entries = append(q.entries, e.Clone())
		q.bytes += e.Size()
		q.lo++
	}
}

// take copies the wanted entries out of a verified batch: they are the caller's to keep, without the rest of the buffer. It verifies
// the headers of those that it passes over, and everything of those that it takes.
func (q *entriesWanted) take(h *batchHeader, b []byte, last raft.Index) error {
	body := h.frames(b)
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
