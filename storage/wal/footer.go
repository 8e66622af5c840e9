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

// A sealed segment ends with a footer: what its batches do to the index, so that Open need not read them. It is written behind the last
// batch, at the start of the next page, when the segment is cut to size. Nothing waits for it: a footer that is missing, torn, or not that
// of the segment between its two neighbours is as good as none, and the segment is read.
const (
	footerMagic     = 0x31465253 // "SRF1"
	footerFixedSize = 152
	maxFooterSize   = 64 << 20
)

// footer is the net effect of a segment: the log is cut back to keep, and goes on with the runs that lie in the segment.
type footer struct {
	tag       segmentTag
	seq       uint64
	end       int64  // behind the last batch
	baseBatch uint64 // the batch before the segment's first one, and its chain value
	baseChain uint32
	lastBatch uint64 // the segment's last one
	chain     uint32
	keep      raft.EntryID
	last      raft.EntryID
	compacted raft.EntryID
	snapshot  raft.EntryID
	runs      []run
	terms     []raft.TermStart // behind keep
	repaired  []stretch
	configs   []raft.EntryID // behind keep, or repaired here
	entries   []raft.Entry   // of configs
}

// footerAt returns where the footer of a segment that ends there begins. No sector of the last batch is near it.
func footerAt(end int64) int64 { return roundUp(end, pageSize) }

// footerOf describes what the last segment did to the index; nil if damaged entries are counted to it, which a footer cannot say. They may
// have been in the segment in front of it, which is gone.
func (x *logIndex) footerOf(seg *segment, lastBatch uint64, chain uint32) *footer {
	if slices.ContainsFunc(x.damaged, func(s stretch) bool { return s.seg == seg }) {
		return nil
	}
	f := &footer{
		tag: seg.tag, seq: seg.seq, end: seg.end, baseBatch: seg.baseBatch, baseChain: seg.baseChain, lastBatch: lastBatch, chain: chain,
		keep: x.last, last: x.last, compacted: x.compacted, snapshot: x.snapshot,
	}
	for i := range x.runs {
		if r := &x.runs[i]; r.seg == seg {
			f.runs = append(f.runs, run{first: r.first, last: r.last, marks: slices.Clone(r.marks)})
		}
	}
	if len(f.runs) > 0 {
		keep := f.runs[0].first - 1
		term, _ := x.termAt(keep)
		f.keep = raft.EntryID{Term: term, Index: keep}
	}
	for _, t := range x.terms {
		if n := len(f.terms); n > 0 || t.Index > f.keep.Index {
			f.terms = append(f.terms, t)
		} else if term, ok := x.termAt(f.keep.Index + 1); ok && term == t.Term {
			f.terms = append(f.terms, raft.TermStart{Index: f.keep.Index + 1, Term: term})
		}
	}
	for _, s := range x.repaired {
		if s.seg == seg {
			f.repaired = append(f.repaired, s)
		}
	}
	for _, id := range x.configs {
		s := stretchAt(f.repaired, id.Index)
		if id.Index > f.keep.Index || s != nil && s.first <= id.Index {
			f.configs = append(f.configs, id)
		}
	}
	return f
}

// encode returns the footer. f.entries are there.
func (f *footer) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, footerFixedSize, pageSize)
	le.PutUint32(b, footerMagic)
	copy(b[8:], f.tag[:])
	le.PutUint64(b[24:], f.seq)
	le.PutUint64(b[32:], uint64(f.end))
	le.PutUint64(b[40:], f.baseBatch)
	le.PutUint64(b[48:], f.lastBatch)
	le.PutUint32(b[56:], f.baseChain)
	le.PutUint32(b[60:], f.chain)
	putID(b[64:], f.keep)
	putID(b[80:], f.last)
	putID(b[96:], f.compacted)
	putID(b[112:], f.snapshot)
	le.PutUint32(b[128:], uint32(len(f.runs)))
	le.PutUint32(b[132:], uint32(len(f.terms)))
	le.PutUint32(b[136:], uint32(len(f.repaired)))
	le.PutUint32(b[140:], uint32(len(f.entries)))
	for i := range f.runs {
		r := &f.runs[i]
		b = le.AppendUint64(b, uint64(r.first))
		b = le.AppendUint64(b, uint64(r.last))
		b = le.AppendUint64(b, uint64(len(r.marks)))
		for _, m := range r.marks {
			b = le.AppendUint64(b, uint64(m.index))
			b = le.AppendUint64(b, uint64(m.offset))
		}
	}
	for _, t := range f.terms {
		b = le.AppendUint64(b, uint64(t.Index))
		b = le.AppendUint64(b, uint64(t.Term))
	}
	for _, s := range f.repaired {
		b = le.AppendUint64(b, uint64(s.first))
		b = le.AppendUint64(b, uint64(s.last))
		b = le.AppendUint64(b, uint64(s.offset))
	}
	for i := range f.entries {
		b = append(b, f.entries[i].Frame()...)
	}
	le.PutUint32(b[4:], uint32(len(b)+4))
	return le.AppendUint32(b, checksum(b))
}

// decodeFooter reads a footer. b is as long as it says, or longer.
func decodeFooter(b []byte) (*footer, error) {
	le := binary.LittleEndian
	if len(b) < footerFixedSize+4 || le.Uint32(b) != footerMagic {
		return nil, errors.New("no footer")
	}
	n := int(le.Uint32(b[4:]))
	if n < footerFixedSize+4 || n > len(b) || checksum(b[:n-4]) != le.Uint32(b[n-4:]) {
		return nil, errors.New("footer checksum does not match")
	}
	f := &footer{
		seq: le.Uint64(b[24:]), end: int64(le.Uint64(b[32:])), baseBatch: le.Uint64(b[40:]), lastBatch: le.Uint64(b[48:]),
		baseChain: le.Uint32(b[56:]), chain: le.Uint32(b[60:]),
		keep: getID(b[64:]), last: getID(b[80:]), compacted: getID(b[96:]), snapshot: getID(b[112:]),
	}
	copy(f.tag[:], b[8:])
	runs, terms, repaired, entries := le.Uint32(b[128:]), le.Uint32(b[132:]), le.Uint32(b[136:]), le.Uint32(b[140:])
	rest, cut := b[footerFixedSize:n-4], false
	next := func() uint64 {
		if len(rest) < 8 {
			cut = true
			return 0
		}
		v := le.Uint64(rest)
		rest = rest[8:]
		return v
	}
	for range runs {
		r := run{first: raft.Index(next()), last: raft.Index(next())}
		for range next() {
			r.marks = append(r.marks, mark{raft.Index(next()), int64(next())})
			if cut {
				break
			}
		}
		if f.runs = append(f.runs, r); cut || len(r.marks) == 0 {
			return nil, errors.New("footer is cut off")
		}
	}
	for range terms {
		f.terms = append(f.terms, raft.TermStart{Index: raft.Index(next()), Term: raft.Term(next())})
		if cut {
			return nil, errors.New("footer is cut off")
		}
	}
	for range repaired {
		f.repaired = append(f.repaired, stretch{first: raft.Index(next()), last: raft.Index(next()), offset: int64(next())})
		if cut {
			return nil, errors.New("footer is cut off")
		}
	}
	for range entries {
		e, n, err := raft.DecodeEntry(rest)
		if err != nil {
			return nil, fmt.Errorf("footer: %w", err)
		}
		f.entries = append(f.entries, e.Clone())
		rest = rest[n:]
	}
	return f, nil
}

// readFooter returns the footer behind a segment's end; nil if there is no intact one, or one that is not encrypted in a segment that is.
func readFooter(file vfs.File, seg *segment, end int64) (*footer, error) {
	magic := uint32(footerMagic)
	if seg.sealer != nil {
		magic = sealedFooterMagic
	}
	size, err := file.Size()
	if err != nil {
		return nil, err
	}
	at := footerAt(end)
	if size <= at {
		return nil, nil
	}
	b := make([]byte, min(pageSize, size-at))
	if _, err := file.ReadAt(b, at); err != nil && err != io.EOF {
		return nil, err
	}
	if len(b) < 8 || binary.LittleEndian.Uint32(b) != magic {
		return nil, nil
	}
	if n := int64(binary.LittleEndian.Uint32(b[4:])); n > int64(len(b)) {
		if n > min(size-at, maxFooterSize) {
			return nil, nil
		}
		b = make([]byte, n)
		if _, err := file.ReadAt(b, at); err != nil && err != io.EOF {
			return nil, err
		}
	}
	if seg.sealer != nil {
		if b, err = seg.sealer.openFooter(b); err != nil {
			return nil, refuseTampered(seg.path, at, "the checksum of the footer is right, but this server did not write it")
		}
	}
	f, err := decodeFooter(b)
	if err != nil {
		return nil, nil //nolint:nilerr // as good as none
	}
	return f, nil
}

// takeFooter replays a sealed segment by its footer, if it has one that fits between the state in front of the segment and the header of
// the next one: number, place and chain value of both ends. It reports whether it has.
func (r *recovery) takeFooter(file vfs.File, seg *segment, next *segmentHeader) (bool, error) {
	w := r.w
	x := &w.index
	f, err := readFooter(file, seg, next.prevEnd)
	if err != nil {
		return false, fmt.Errorf("read the footer of %s: %w", seg.path, err)
	}
	if f == nil || f.tag != seg.tag || f.seq != seg.seq || f.end != next.prevEnd || f.baseBatch != w.lastBatch || f.baseChain != w.chain ||
		f.lastBatch != next.lastBatch || f.chain != next.chain || f.last != next.last {
		return false, nil
	}
	term, ok := x.termAt(f.keep.Index)
	switch {
	case ok && term == f.keep.Term:
		if f.keep.Index < x.last.Index {
			x.truncateFrom(f.keep.Index + 1)
		}
		if f.compacted.Index > x.compacted.Index {
			x.dropThrough(f.compacted)
		}
	case f.keep == f.compacted:
		x.reset(f.compacted)
	default:
		return false, nil
	}
	x.snapshot = f.snapshot
	for i := range f.runs {
		f.runs[i].seg = seg
		x.runs = append(x.runs, f.runs[i])
	}
	x.cut = true
	for _, t := range f.terms {
		if n := len(x.terms); n == 0 || x.terms[n-1].Term != t.Term {
			x.terms = append(x.terms, t)
		}
	}
	x.last = f.last
	for i := range f.entries {
		e := &f.entries[i]
		r.configs[e.Index] = *e
		if e.Index > f.keep.Index {
			x.configs = append(x.configs, e.ID())
		}
	}
	for _, s := range f.repaired {
		for index := s.first; index <= s.last; index++ {
			term, _ := x.termAt(index)
			t := raft.EntryCommand
			if e := r.configs[index]; e.Term == term {
				t = e.Type
			}
			x.repair(raft.EntryID{Term: term, Index: index}, t, seg, s.offset)
		}
	}
	w.lastBatch, w.chain, w.before = f.lastBatch, f.chain, next.before
	w.lastHolder, seg.end = seg, f.end
	r.lastDamaged = false
	return true, nil
}

// seal cuts a segment that is no longer written to behind its footer, or behind its last batch if it has none.
func (w *WAL) seal(t trim) error {
	f, err := w.fs.OpenWrite(t.path)
	if err != nil {
		return err
	}
	size := t.size
	if t.footer != nil && w.readConfigs(t.footer) {
		b := t.footer.encode()
		if t.sealer != nil {
			b = t.sealer.sealFooter(b)
		}
		b = append(b, make([]byte, roundUp(int64(len(b)), sectorSize)-int64(len(b)))...)
		at := footerAt(t.size)
		if _, err := f.WriteAt(b, at); err != nil {
			return errors.Join(err, f.Close())
		}
		size = at + int64(len(b))
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// readConfigs reads the configurations that a footer has to repeat. It reports whether all are readable; those that were truncated meanwhile
// need not be there, since a later footer truncates them again.
func (w *WAL) readConfigs(f *footer) bool {
	for _, id := range f.configs {
		w.mu.RLock()
		term, ok := w.index.termAt(id.Index)
		gone := !ok || term != id.Term || id.Index <= w.index.compacted.Index
		w.mu.RUnlock()
		if gone {
			continue
		}
		es, err := w.Entries(id.Index, id.Index+1, 1)
		if err != nil {
			return false
		}
		f.entries = append(f.entries, es[0])
	}
	return true
}
