package raft

// gap is a stretch of the log whose entries cannot be read here any more. Which entries they were is known (from the index of terms), so
// logs are compared as if nothing were missing; but nothing from the first gap on is acknowledged, and no entry in a gap is applied, sent
// or served ("Protocol-Aware Recovery for Consensus-Based Storage", FAST'18, §3.3: "separately store the identity of items").
type gap struct {
	Damage
	fill []Entry // all entries of the stretch, from another server; nil: missing
	seq  uint64  // of the write that carries fill; 0: not issued yet
}

// capDurable keeps what counts as durable in front of the first gap. Whatever this server acknowledges is bounded by that.
func (l *raftLog) capDurable() {
	l.durable = l.stored
	if first := l.firstUnreadable(); first > 0 {
		l.durable = min(l.durable, first-1)
	}
}

// firstUnreadable is the lowest index that cannot be read; 0: there is none.
func (l *raftLog) firstUnreadable() Index {
	switch {
	case l.lost.Last > 0:
		return l.lost.First
	case len(l.gaps) > 0:
		return l.gaps[0].First
	default:
		return 0
	}
}

// damage makes gaps of what cannot be read, as far as it belongs to the log and was on the disk. It reports whether there is a new one.
func (l *raftLog) damage(d Damage) bool {
	d.First, d.Last = max(d.First, l.base.Index+1), min(d.Last, l.stored)
	found := false
	for d.First <= d.Last {
		k := 0
		for k < len(l.gaps) && l.gaps[k].Last < d.First {
			k++
		}
		piece := d
		if k < len(l.gaps) {
			if l.gaps[k].First <= d.First { // known already
				d.First = l.gaps[k].Last + 1
				continue
			}
			piece.Last = min(d.Last, l.gaps[k].First-1)
		}
		l.gaps = append(l.gaps[:k:k], append([]gap{{Damage: piece}}, l.gaps[k:]...)...)
		d.First = piece.Last + 1
		found = true
	}
	l.capDurable()
	return found
}

// inGap returns the gap that holds index; nil if there is none.
func (l *raftLog) inGap(index Index) *gap {
	for k := range l.gaps {
		if g := &l.gaps[k]; g.First <= index && index <= g.Last {
			return g
		}
	}
	return nil
}

// readable returns where the readable entries [lo, hi) end: hi, or the first gap. lo itself may lie in one.
func (l *raftLog) readable(lo, hi Index) Index {
	if lo <= l.lost.Last {
		return lo
	}
	for k := range l.gaps {
		if g := &l.gaps[k]; g.Last >= lo {
			return min(hi, max(lo, g.First))
		}
	}
	return hi
}

// missing reports whether any entry is neither here nor on its way to the disk.
func (l *raftLog) missing() bool {
	for k := range l.gaps {
		if l.gaps[k].fill == nil {
			return true
		}
	}
	return false
}

// missingStretches lists what is missing by term, from the lowest index on, at most limit stretches.
func (l *raftLog) missingStretches(limit int) []Stretch {
	var all []Stretch
	for k := range l.gaps {
		g := &l.gaps[k]
		if g.fill != nil {
			continue
		}
		for lo := g.First; lo <= g.Last; {
			if len(all) == limit {
				return all
			}
			t, _ := l.term(lo)
			hi := min(g.Last, l.runEnd(lo))
			all = append(all, Stretch{Term: t, First: lo, Last: hi})
			lo = hi + 1
		}
	}
	return all
}

// runEnd is the last entry of the same term as that at index.
func (l *raftLog) runEnd(index Index) Index {
	for _, run := range l.terms {
		if run.Index > index {
			return run.Index - 1
		}
	}
	return l.last
}

// fill puts entries into the gaps where they belong. Consecutive entries come in; those that were missing, and have the identity that the
// log knows, are returned. They count once they are written.
func (l *raftLog) fill(es []Entry) (filled []Entry) {
	for len(es) > 0 {
		g := l.inGap(es[0].Index)
		if g == nil || g.fill != nil || !l.contains(es[0].ID()) {
			es = es[1:]
			continue
		}
		n := 1
		for n < len(es) && es[n].Index <= g.Last && l.contains(es[n].ID()) {
			n++
		}
		l.fillPiece(es[:n:n])
		filled = append(filled, es[:n]...)
		es = es[n:]
	}
	return filled
}

// fillPiece splits the gap around entries that are missing in it.
func (l *raftLog) fillPiece(es []Entry) {
	first, last := es[0].Index, es[len(es)-1].Index
	var gaps []gap
	for _, g := range l.gaps {
		if last < g.First || g.Last < first {
			gaps = append(gaps, g)
			continue
		}
		if g.First < first {
			before := g
			before.Last = first - 1
			gaps = append(gaps, before)
		}
		gaps = append(gaps, gap{Damage: Damage{First: first, Last: last}, fill: es})
		if last < g.Last {
			behind := g
			behind.First = last + 1
			gaps = append(gaps, behind)
		}
	}
	l.gaps, l.unwritten = gaps, true
}

// cutGaps forgets the gaps outside of (lo, hi], because the log does not reach there any more.
func (l *raftLog) cutGaps(lo, hi Index) {
	if len(l.gaps) == 0 {
		return
	}
	var gaps []gap
	for _, g := range l.gaps {
		if g.Last <= lo || g.First > hi {
			continue
		}
		if g.First <= lo {
			if g.fill != nil {
				g.fill = g.fill[lo+1-g.First:]
			}
			g.First = lo + 1
		}
		if g.Last > hi {
			if g.fill != nil {
				g.fill = g.fill[:hi+1-g.First]
			}
			g.Last = hi
		}
		gaps = append(gaps, g)
	}
	l.gaps = gaps
	l.capDurable()
}

// issueRepairs adds what has been filled and not been written to a write.
func (l *raftLog) issueRepairs(seq uint64, b *Batch) {
	if !l.unwritten {
		return
	}
	l.unwritten = false
	for k := range l.gaps {
		if g := &l.gaps[k]; g.fill != nil && g.seq == 0 {
			g.seq = seq
			b.Repairs = append(b.Repairs, g.fill...)
		}
	}
}

// repaired closes the gaps whose entries a completed write carried.
func (l *raftLog) repaired(seq uint64) {
	if len(l.gaps) == 0 {
		return
	}
	var gaps []gap
	for _, g := range l.gaps {
		if g.fill == nil || g.seq == 0 || g.seq > seq {
			gaps = append(gaps, g)
		}
	}
	l.gaps = gaps
}

// rebase makes the log begin behind a snapshot whose last entry it holds, and keeps what follows. Entries that were acknowledged may be
// among that, so reset, which discards them, would not do.
func (l *raftLog) rebase(meta SnapshotMeta) {
	l.lost = Damage{}
	stored := l.stored
	l.stored = max(l.stored, meta.Index) // the snapshot is durable, whatever the log is
	l.compact(meta.Index)
	l.snapshot = &meta
	l.stored, l.issued = stored, max(l.issued, meta.Index)
	l.capDurable()
}
