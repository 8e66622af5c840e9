package wal

import (
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
	if n := len(x.terms); n == 0 || x.terms[n-1].Term != id.Term {
		x.terms = append(x.terms, raft.TermStart{Index: id.Index, Term: id.Term})
	}
	if t == raft.EntryConfiguration {
		x.configs = append(x.configs, id)
	}
	x.last = id
	n := len(x.runs)
	if n == 0 || x.cut || x.runs[n-1].seg != seg {
		x.runs = append(x.runs, run{seg: seg, first: id.Index, last: id.Index, marks: []mark{{id.Index, offset}}})
		x.cut = false
		return
	}
	r := &x.runs[n-1]
	r.last = id.Index
	if offset-r.marks[len(r.marks)-1].offset >= markDistance {
		r.marks = append(r.marks, mark{id.Index, offset})
	}
}

// truncate forgets all entries from h.truncateFrom on.
func (x *logIndex) truncate(h *batchHeader) {
	from := h.truncateFrom
	if from <= x.compacted.Index {
		// Only at recovery: the entries before this batch were in segments that are gone. The batch knows which entry it follows.
		x.reset(h.prev)
		return
	}
	x.cut = true
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

func (x *logIndex) lastConfig() raft.EntryID {
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
