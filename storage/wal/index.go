package wal

import (
	"fmt"
	"math"
	"slices"
	"sort"

	"github.com/steadyraft/raft"
)

// markDistance is how far apart, in bytes, the places in a segment are that the index remembers. A read walks over less than that
// (and one batch) to find its entry; a segment of 64 MiB costs at most 1,024 marks.
const markDistance = 64 << 10

// logIndex is what is kept in memory about the log: its ends, its terms by run length, and where to find an entry. Its size depends
// on segments, terms and truncations, not on the number of entries.
type logIndex struct {
	compacted  raft.EntryID // the last entry that is gone from the front
	last       raft.EntryID // the log's end; compacted, if the log is empty
	snapshot   raft.EntryID // of the last installed snapshot
	terms      []raft.TermStart
	runs       []run
	configs    []raft.EntryID // of the configuration entries in the log
	baseConfig raft.EntryID   // of the last configuration entry in front of the log
	damaged    []stretch      // entries whose content cannot be read; their place in runs is where it was, or may have been
	repaired   []stretch      // entries that were written a second time, and are read there
	cut        bool           // the log was truncated or reset: the next entry begins a new run
}

// run is a stretch of entries that follow each other on disk within one segment, and were not superseded: behind last, in the same
// batches, there may be entries that were.
type run struct {
	seg         *segment
	first, last raft.Index
	marks       []mark
}

// mark says at which offset the batch lies that begins with an entry.
type mark struct {
	index  raft.Index
	offset int64
}

// apply carries out what the batch says besides its entries.
func (x *logIndex) apply(h *batchHeader) {
	if h.has(flagTruncate) {
		x.truncate(h)
	}
	if h.has(flagSnapshot) {
		x.snapshot = h.snapshot
		if h.has(flagKeepSuffix) {
			x.dropThrough(h.snapshot)
		} else {
			x.reset(h.snapshot)
		}
	}
}

// add appends one entry of a batch at h.offset of seg.
func (x *logIndex) add(id raft.EntryID, t raft.EntryType, seg *segment, offset int64) {
	if t == raft.EntryConfiguration {
		x.configs = append(x.configs, id)
	}
	x.extend(id.Index, id, seg, offset)
}

// addDamaged appends the entries from first to last, all of last's term.
func (x *logIndex) addDamaged(first raft.Index, last raft.EntryID, mayConfigure bool, seg *segment, offset int64) {
	x.extend(first, last, seg, offset)
	if n := len(x.damaged); n > 0 && x.damaged[n-1].last+1 == first && x.damaged[n-1].mayConfigure == mayConfigure {
		x.damaged[n-1].last = last.Index
		return
	}
	x.damaged = append(x.damaged, stretch{first, last.Index, mayConfigure, seg, offset})
}

// extend appends the entries from first to last, all of last's term.
func (x *logIndex) extend(first raft.Index, last raft.EntryID, seg *segment, offset int64) {
	if n := len(x.terms); n == 0 || x.terms[n-1].Term != last.Term {
		x.terms = append(x.terms, raft.TermStart{Index: first, Term: last.Term})
	}
	x.last = last
	n := len(x.runs)
	if n == 0 || x.cut || x.runs[n-1].seg != seg {
		x.runs = append(x.runs, run{seg: seg, first: first, last: last.Index, marks: []mark{{first, offset}}})
		x.cut = false
		return
	}
	r := &x.runs[n-1]
	r.last = last.Index
	if offset-r.marks[len(r.marks)-1].offset >= markDistance {
		r.marks = append(r.marks, mark{first, offset})
	}
}

// repair says that an entry is to be read from another batch. It reports whether the log holds the entry.
func (x *logIndex) repair(id raft.EntryID, t raft.EntryType, seg *segment, offset int64) bool {
	if term, ok := x.termAt(id.Index); !ok || term != id.Term || id.Index == x.compacted.Index {
		return false
	}
	x.damaged = without(x.damaged, id.Index, id.Index)
	x.repaired = without(x.repaired, id.Index, id.Index)
	n := sort.Search(len(x.repaired), func(i int) bool { return x.repaired[i].first > id.Index })
	if n > 0 && x.repaired[n-1].last+1 == id.Index && x.repaired[n-1].seg == seg && x.repaired[n-1].offset == offset {
		x.repaired[n-1].last = id.Index
	} else {
		x.repaired = slices.Insert(x.repaired, n, stretch{first: id.Index, last: id.Index, seg: seg, offset: offset})
	}
	n = sort.Search(len(x.configs), func(i int) bool { return x.configs[i].Index >= id.Index })
	if t == raft.EntryConfiguration && (n == len(x.configs) || x.configs[n].Index != id.Index) {
		x.configs = slices.Insert(x.configs, n, id)
	}
	return true
}

// truncate forgets all entries from h.truncateFrom on.
func (x *logIndex) truncate(h *batchHeader) {
	from := h.truncateFrom
	if from <= x.compacted.Index {
		// Only at recovery: the entries before this batch were in segments that are gone. The batch knows which entry it follows.
		x.reset(h.prev)
		return
	}
	x.truncateFrom(from)
}

func (x *logIndex) truncateFrom(from raft.Index) {
	x.cut = true
	x.damaged, x.repaired = without(x.damaged, from, math.MaxUint64), without(x.repaired, from, math.MaxUint64)
	for n := len(x.runs); n > 0 && x.runs[n-1].last >= from; n-- {
		if r := &x.runs[n-1]; r.first < from {
			r.last = from - 1
			break
		}
		x.runs = x.runs[:n-1]
	}
	for n := len(x.configs); n > 0 && x.configs[n-1].Index >= from; n-- {
		x.configs = x.configs[:n-1]
	}
	if from <= x.last.Index {
		term, _ := x.termAt(from - 1)
		x.last = raft.EntryID{Term: term, Index: from - 1}
	}
	for n := len(x.terms); n > 0 && x.terms[n-1].Index >= from; n-- {
		x.terms = x.terms[:n-1]
	}
}

// reset empties the log; the next entry follows id.
func (x *logIndex) reset(id raft.EntryID) {
	x.keepConfig(x.last.Index)
	x.compacted, x.last = id, id
	x.terms, x.runs, x.cut = nil, nil, true
	x.damaged, x.repaired = nil, nil
}

// dropThrough forgets the entries up to and including id.
func (x *logIndex) dropThrough(id raft.EntryID) {
	if id.Index <= x.compacted.Index {
		return
	}
	if id.Index >= x.last.Index {
		x.reset(id)
		return
	}
	x.keepConfig(id.Index)
	x.damaged, x.repaired = without(x.damaged, 0, id.Index), without(x.repaired, 0, id.Index)
	dead := 0
	for dead < len(x.runs) && x.runs[dead].last <= id.Index {
		dead++
	}
	x.runs = append([]run(nil), x.runs[dead:]...)
	if r := &x.runs[0]; r.first <= id.Index {
		r.first = id.Index + 1
	}
	dead = 0
	for dead+1 < len(x.terms) && x.terms[dead+1].Index <= id.Index+1 {
		dead++
	}
	x.terms = append([]raft.TermStart(nil), x.terms[dead:]...)
	x.terms[0].Index = max(x.terms[0].Index, id.Index+1)
	x.compacted = id
}

// keepConfig forgets the configuration entries up to index, all but the last one's name.
func (x *logIndex) keepConfig(index raft.Index) {
	dead := 0
	for dead < len(x.configs) && x.configs[dead].Index <= index {
		x.baseConfig = x.configs[dead]
		dead++
	}
	x.configs = append([]raft.EntryID(nil), x.configs[dead:]...)
}

// lastConfig names the last configuration entry. If one may be among damaged entries behind it, that is the last of these, so that what
// is told of it is never too early.
func (x *logIndex) lastConfig() raft.EntryID {
	last := x.lastIntactConfig()
	for i := range x.damaged {
		if d := &x.damaged[i]; d.mayConfigure && d.last > last.Index {
			term, _ := x.termAt(d.last)
			last = raft.EntryID{Term: term, Index: d.last}
		}
	}
	return last
}

func (x *logIndex) lastIntactConfig() raft.EntryID {
	if n := len(x.configs); n > 0 {
		return x.configs[n-1]
	}
	return x.baseConfig
}

// termAt returns the term of an entry in the log, or of the last one in front of it.
func (x *logIndex) termAt(index raft.Index) (raft.Term, bool) {
	if index == x.compacted.Index {
		return x.compacted.Term, true
	}
	if index < x.compacted.Index || index > x.last.Index {
		return 0, false
	}
	n := sort.Search(len(x.terms), func(i int) bool { return x.terms[i].Index > index })
	return x.terms[n-1].Term, true
}

// find returns the run that holds an entry of the log, and the place in its segment from where to walk.
func (x *logIndex) find(index raft.Index) (r *run, offset int64) {
	n := sort.Search(len(x.runs), func(i int) bool { return x.runs[i].last >= index })
	r = &x.runs[n]
	m := sort.Search(len(r.marks), func(i int) bool { return r.marks[i].index > index })
	return r, r.marks[m-1].offset
}

// source is where entries of the log are read.
type source struct {
	seg      *segment
	offset   int64
	last     raft.Index // how far
	repaired bool       // from the repairs of the batch there; otherwise from a walk that begins there
}

// place returns where an entry of the log is read. The error is that it is known to be damaged.
func (x *logIndex) place(index raft.Index) (p source, err error) {
	p.last = x.last.Index
	if d := stretchAt(x.damaged, index); d != nil && d.first <= index {
		damage := d.damage()
		damage.First = index
		return p, &raft.CorruptionError{
			Path: d.seg.path, Offset: d.offset, Reason: fmt.Sprintf("entry %d was found damaged when the log was opened", index),
			Next: nextPeers, Damage: damage,
		}
	} else if d != nil {
		p.last = d.first - 1
	}
	if s := stretchAt(x.repaired, index); s != nil && s.first <= index {
		return source{s.seg, s.offset, min(p.last, s.last), true}, nil
	} else if s != nil {
		p.last = min(p.last, s.first-1)
	}
	r, offset := x.find(index)
	return source{r.seg, offset, min(p.last, r.last), false}, nil
}

// matching returns the last entry up to which the log is a prefix of another one, of which the end is known and the terms from some entry on.
// ok is false if that is not far enough back to tell.
func (x *logIndex) matching(end raft.Index, terms []raft.TermStart) (index raft.Index, ok bool) {
	if len(terms) == 0 {
		return 0, false
	}
	for index = min(x.last.Index, end); index >= terms[0].Index && index > x.compacted.Index; index-- {
		n := sort.Search(len(terms), func(i int) bool { return terms[i].Index > index })
		if term, _ := x.termAt(index); term == terms[n-1].Term {
			return index, true
		}
	}
	return index, index == x.compacted.Index && terms[0].Index <= index+1
}
