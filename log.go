package raft

import (
	"sort"
	"time"
)

// raftLog is a server's log as the core sees it: the newest entries themselves, the terms of all of them, and how much of it is on
// its way to the disk or has arrived there.
//
//	 compacted │ readable from storage only │          tail (in memory)           │
//	───────────┼────────────────────────────┼──────────────┬─────────────┬────────┤
//	        base                       tail begins      durable        issued    last
//
// Matching and conflict hints need terms only, and so no I/O.
type raftLog struct {
	base  EntryID     // the last entry that is gone; zero: the log begins at index 1
	last  Index       // of the last entry; base.Index if there is none
	terms []TermStart // by run length, of the entries behind base, rising

	tail      tail // the entries up to last
	tailBytes int

	// What storage knows. durable <= stored <= issued <= last.
	issued       Index // handed out in a write
	stored       Index // on disk, and not truncated by a later write
	durable      Index // stored, and in front of the first gap
	truncateFrom Index // entries from here on were issued, then replaced; the next write says so. 0: none
	snapshot     *SnapshotMeta
	issuedSeq    uint64
	persistedSeq uint64
	flights      []flight // writes issued and not yet persisted, by seq

	cuts      uint64 // how often entries were removed at the end
	lost      Damage // entries before the log begins that no snapshot covers any more: only one of another server does
	gaps      []gap  // what cannot be read of what is stored, rising
	unwritten bool   // some gap has been filled by entries that no write carries yet
}

// flight is a write on its way to the disk.
type flight struct {
	seq          uint64
	truncateFrom Index // the lowest index that this write removes or replaces; 0: none
	last         Index // the last entry of the log once this write is done
	hardState    HardState
	begunAt      time.Duration // when the disk could begin it: issued, and the one before it done; of the oldest in flight only
}

// tailFirst is the index of the first entry in memory; last+1 if there is none.
func (l *raftLog) tailFirst() Index { return l.last - Index(l.tail.len) + 1 }

// lastID names the last entry.
func (l *raftLog) lastID() EntryID {
	t, _ := l.term(l.last)
	return EntryID{Term: t, Index: l.last}
}

// term returns the term of the entry at i, for base <= i <= last. Index 0 has term 0 (Figure 2: the log begins at 1).
func (l *raftLog) term(i Index) (Term, bool) {
	if i == l.base.Index {
		return l.base.Term, true
	}
	if i < l.base.Index || i > l.last {
		return 0, false
	}
	n := len(l.terms)
	if run := l.terms[n-1]; i >= run.Index {
		return run.Term, true // nearly every question is about the newest run
	}
	k := sort.Search(n, func(k int) bool { return l.terms[k].Index > i })
	return l.terms[k-1].Term, true
}

// contains reports whether the log holds exactly this entry, or held it before compaction.
func (l *raftLog) contains(id EntryID) bool {
	t, ok := l.term(id.Index)
	return ok && t == id.Term
}

// lastWithTermUpTo returns the last entry at or below index whose term is at most term. The compaction boundary stands for
// everything before it. Both sides of a conflict use it to skip whole terms at a time (§5.3).
func (l *raftLog) lastWithTermUpTo(index Index, term Term) EntryID {
	index = min(index, l.last)
	for k := len(l.terms) - 1; k >= 0; k-- {
		run := l.terms[k]
		if run.Index > index {
			continue
		}
		if run.Term <= term {
			return EntryID{Term: run.Term, Index: index}
		}
		index = run.Index - 1
	}
	return l.base
}

// firstConflict returns the position in es of the first entry that the log does not hold yet, and whether the log holds another
// entry in its place. Entries that are compacted are committed, so they are held.
func (l *raftLog) firstConflict(es []Entry) (k int, conflict bool) {
	for k = range es {
		if es[k].Index <= l.base.Index {
			continue
		}
		if es[k].Index > l.last {
			return k, false
		}
		if t, _ := l.term(es[k].Index); t != es[k].Term {
			return k, true
		}
	}
	return len(es), false
}

// append adds entries that follow the log. It takes the slice over if there are many.
func (l *raftLog) append(es []Entry) {
	for i := range es {
		e := &es[i]
		lastTerm := l.base.Term
		if n := len(l.terms); n > 0 {
			lastTerm = l.terms[n-1].Term
		}
		if e.Index != l.last+1 || e.Term < lastTerm {
			panicf("append %v to a log that ends at %v", e.ID(), l.lastID())
		}
		if e.Term > lastTerm || len(l.terms) == 0 {
			l.terms = append(l.terms, TermStart{Index: e.Index, Term: e.Term})
		}
		l.last = e.Index
		l.tailBytes += e.Size()
	}
	l.tail.append(es)
}

// truncate removes the entries from index from on.
func (l *raftLog) truncate(from Index) {
	if from <= l.base.Index {
		panicf("truncate from %d, which is compacted up to %v", from, l.base)
	}
	if from > l.last {
		return
	}
	l.cuts++
	if from <= l.issued {
		if l.truncateFrom == 0 || from < l.truncateFrom {
			l.truncateFrom = from
		}
		l.issued = from - 1
		l.stored = min(l.stored, from-1)
		l.durable = min(l.durable, from-1)
	}
	keep := 0
	if first := l.tailFirst(); from > first {
		keep = int(from - first)
	}
	for i := keep; i < l.tail.len; i++ {
		l.tailBytes -= l.tail.at(i).Size()
	}
	l.tail.truncate(keep)
	for n := len(l.terms); n > 0 && l.terms[n-1].Index >= from; n-- {
		l.terms = l.terms[:n-1]
	}
	l.last = from - 1
	l.cutGaps(l.base.Index, l.last)
}

// reset makes the log begin behind a snapshot (§7: "discard the entire log"). A truncation that was not issued yet goes along with
// it: the disk still holds what was truncated, and if the snapshot's last entry were among that, the disk would keep what follows.
func (l *raftLog) reset(meta SnapshotMeta) {
	l.base, l.last = meta.ID(), meta.Index
	l.terms, l.tail, l.tailBytes = nil, tail{}, 0
	l.snapshot = &meta
	l.issued, l.stored, l.durable = meta.Index, 0, 0
	l.gaps, l.unwritten, l.lost = nil, false, Damage{}
	l.cuts++
}

// compact gives up the entries up to to, which a snapshot covers.
func (l *raftLog) compact(to Index) {
	if to <= l.base.Index || to > l.stored {
		return
	}
	t, _ := l.term(to)
	l.base = EntryID{Term: t, Index: to}
	k := sort.Search(len(l.terms), func(k int) bool { return l.terms[k].Index > to })
	if k > 0 {
		l.terms = l.terms[k-1:]
		l.terms[0].Index = to + 1
		if to == l.last || len(l.terms) > 1 && l.terms[1].Index == to+1 {
			l.terms = l.terms[1:]
		}
		l.terms = append([]TermStart(nil), l.terms...)
	}
	if first := l.tailFirst(); to >= first {
		n := int(to - first + 1)
		for i := range n {
			l.tailBytes -= l.tail.at(i).Size()
		}
		l.tail.dropFront(n)
	}
	l.cutGaps(to, l.last)
}

// trim gives up entries in memory that storage can return, oldest first and none behind upTo, until at most maxBytes are kept.
func (l *raftLog) trim(maxBytes int, upTo Index) {
	if l.tailBytes <= maxBytes {
		return
	}
	n := 0
	for first := l.tailFirst(); n < l.tail.len && l.tailBytes > maxBytes && first+Index(n) <= upTo; n++ {
		l.tailBytes -= l.tail.at(n).Size()
	}
	l.tail.dropFront(n)
}

// slice returns the entries [lo, hi) from memory, as many as fit into maxBytes, at least one. ok is false if lo is not in memory.
func (l *raftLog) slice(lo, hi Index, maxBytes int) (es []Entry, size int, ok bool) {
	first := l.tailFirst()
	if lo < first {
		return nil, 0, false
	}
	n := int(lo - first)
	end := n
	for limit := int(hi - first); end < limit; end++ {
		s := l.tail.at(end).Size()
		if end > n && size+s > maxBytes {
			break
		}
		size += s
	}
	return l.tail.slice(n, end), size, true
}

// size is the length in bytes of the entries [lo, hi), which are in memory.
func (l *raftLog) size(lo, hi Index) int {
	size := 0
	for first := l.tailFirst(); lo < hi; lo++ {
		size += l.tail.at(int(lo - first)).Size()
	}
	return size
}

// dirty reports whether the log holds anything that no write has been issued for.
func (l *raftLog) dirty() bool {
	return l.issued < l.last || l.truncateFrom != 0 || l.snapshot != nil || l.unwritten
}

// issue fills the next write with what is new in the log.
func (l *raftLog) issue(now time.Duration, hs HardState, b *Batch) (seq uint64) {
	if l.issued < l.last {
		b.Entries = l.tail.slice(int(l.issued+1-l.tailFirst()), l.tail.len)
	}
	b.TruncateFrom, b.Snapshot = l.truncateFrom, l.snapshot
	f := flight{truncateFrom: l.truncateFrom, last: l.last, hardState: hs, begunAt: now}
	if l.snapshot != nil {
		f.truncateFrom = 1 // everything that was on its way before belongs to a discarded log
	}
	l.issuedSeq++
	f.seq = l.issuedSeq
	l.issueRepairs(f.seq, b)
	l.flights = append(l.flights, f)
	l.issued, l.truncateFrom, l.snapshot = l.last, 0, nil
	return f.seq
}

// persisted completes all writes up to seq. The durable index becomes the last entry of that write, but never reaches an entry
// that a later write, issued or about to be, removes again: that entry may come back with the same index under another term, and
// must not be taken for durable before its own write is.
//
//	write 7: append (5, term 1)      ── in flight
//	write 8: truncate from 5         ── in flight
//	write 9: append (5, term 2)      ── in flight
//	persisted(7): index 5 is on the disk, but it is not the entry that the log holds now. durable stays at 4.
func (l *raftLog) persisted(seq uint64) (hs HardState, any bool) {
	n := 0
	for n < len(l.flights) && l.flights[n].seq <= seq {
		n++
	}
	if n == 0 {
		return HardState{}, false
	}
	done := l.flights[n-1]
	l.flights = append(l.flights[:0], l.flights[n:]...)
	l.persistedSeq = done.seq

	durable := done.last
	for i := range l.flights {
		if t := l.flights[i].truncateFrom; t != 0 {
			durable = min(durable, t-1)
		}
	}
	if l.truncateFrom != 0 {
		durable = min(durable, l.truncateFrom-1)
	}
	if l.snapshot != nil {
		durable = 0
	}
	l.stored = durable
	l.repaired(seq)
	l.capDurable()
	return done.hardState, true
}

// diskStuck reports whether the disk has been busy with one write for limit. The time in the queue does not count: a disk that is
// saturated, and finishes one write after another, is not improved by electing somebody else.
func (l *raftLog) diskStuck(now, limit time.Duration) bool {
	return len(l.flights) > 0 && now-l.flights[0].begunAt >= limit
}
