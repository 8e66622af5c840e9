package wal

import (
	"errors"
	"fmt"
	"slices"

	"github.com/steadyraft/raft"
)

// checkDamaged compares a log that was opened with the model, but for entries that Open has called damaged: their IDs must be right, and
// reading them must say so. Where lazy, others may turn out to be damaged when they are read. It returns all. A fence makes up for a
// missing end.
func (m model) checkDamaged(w *WAL, rec *raft.Recovered, lazy bool) (damaged []raft.Index, err error) {
	fenced := rec.Fence != (raft.EntryID{})
	last := m.last()
	switch {
	case rec.HardState != m.hardState:
		return nil, fmt.Errorf("hard state %v, want %v", rec.HardState, m.hardState)
	case rec.Compacted.Index > max(m.base, m.start) || rec.LastIndex > last:
		return nil, fmt.Errorf("log (%d, %d], want (at most %d, %d]", rec.Compacted.Index, rec.LastIndex, max(m.base, m.start), last)
	case rec.LastIndex < last && !fenced:
		return nil, fmt.Errorf("log ends at %d, want %d, and there is no fence", rec.LastIndex, last)
	}
	if end := m.entries[len(m.entries)-1].ID(); fenced && (rec.Fence.Term < end.Term || rec.Fence.Term == end.Term && rec.Fence.Index < end.Index) {
		return nil, fmt.Errorf("fence %v, but %v was acknowledged", rec.Fence, end)
	}
	termOf := func(index raft.Index) raft.Term {
		n := slices.IndexFunc(rec.Terms, func(t raft.TermStart) bool { return t.Index > index })
		if n < 0 {
			n = len(rec.Terms)
		}
		return rec.Terms[n-1].Term
	}
	var configurations []raft.Index
	for at := rec.Compacted.Index + 1; at <= rec.LastIndex; {
		want := m.entries[at-m.start-1]
		if termOf(at) != want.Term {
			return nil, fmt.Errorf("entry %d has term %d, want %v", at, termOf(at), want.ID())
		}
		known := slices.IndexFunc(rec.Damaged, func(d raft.Damage) bool { return d.First <= at && at <= d.Last })
		es, err := w.Entries(at, rec.LastIndex+1, 1<<20)
		var damage *raft.CorruptionError
		switch {
		case known < 0 && lazy && errors.As(err, &damage) && damage.Damage.First == at && damage.Damage.Last >= at:
			if want.Type == raft.EntryConfiguration {
				configurations = append(configurations, at) // the footer repeats it
			}
			damaged = append(damaged, at)
			at++
		case known < 0 && err != nil:
			return nil, fmt.Errorf("entry %d, not called damaged: %w", at, err)
		case known >= 0 && !errors.As(err, &damage):
			return nil, fmt.Errorf("entry %d was called damaged, and reads %v", at, err)
		case known >= 0 && (damage.Damage.First != at || damage.Damage.Last != rec.Damaged[known].Last):
			return nil, fmt.Errorf("entry %d was called damaged in %+v, and is in %+v", at, rec.Damaged[known], damage.Damage)
		case known >= 0 && want.Type == raft.EntryConfiguration && !rec.Damaged[known].MayConfigure:
			return nil, fmt.Errorf("entry %d was called damaged and no configuration", at)
		case known >= 0:
			damaged = append(damaged, at)
			at++
		}
		for i := range es {
			if want := m.entries[at-m.start-1]; string(es[i].Frame()) != string(want.Frame()) {
				return nil, fmt.Errorf("entry %v, want %v", es[i].ID(), want.ID())
			}
			if es[i].Type == raft.EntryConfiguration {
				configurations = append(configurations, at)
			}
			at++
		}
	}
	var have []raft.Index
	for i := range rec.Configurations {
		have = append(have, rec.Configurations[i].Index)
	}
	if !slices.Equal(have, configurations) {
		return nil, fmt.Errorf("configurations at %v, want %v", have, configurations)
	}
	return damaged, nil
}

// mend gives a log back what it has lost, as its peers would, and opens it again: it must be whole.
func (m model) mend(w *WAL, rec *raft.Recovered, damaged []raft.Index) error {
	var b raft.Batch
	for _, index := range damaged {
		b.Repairs = append(b.Repairs, m.entries[index-m.start-1])
	}
	if rec.Fence != (raft.EntryID{}) {
		b.Fence = &raft.EntryID{}
		b.Entries = m.entries[rec.LastIndex-m.start:]
	}
	if err := w.Write(b); err != nil {
		return fmt.Errorf("mend: %w", err)
	}
	for range 2 {
		if err := m.readAll(w, rec.Compacted.Index+1); err != nil {
			return fmt.Errorf("mended: %w", err)
		}
		if err := w.Close(); err != nil {
			return err
		}
		w.opts.VerifyAtOpen = true
		again, err := w.Open(ctx, identity)
		if err != nil {
			return fmt.Errorf("mended: %w", err)
		}
		if err := m.check(w, &again); err != nil {
			return fmt.Errorf("mended, and opened again: %w", err)
		}
		if len(again.Damaged) > 0 || again.Fence != (raft.EntryID{}) {
			return fmt.Errorf("mended, and opened again: damaged %v, fence %v", again.Damaged, again.Fence)
		}
		for _, f := range again.Findings {
			if f.Verdict.Worse(Degraded) {
				return fmt.Errorf("mended, and opened again: %+v", f)
			}
		}
	}
	return nil
}

// readAll reads everything from an index on.
func (m model) readAll(w *WAL, at raft.Index) error {
	for at <= m.last() {
		es, err := w.Entries(at, m.last()+1, 1<<20)
		if err != nil {
			return err
		}
		for i := range es {
			if want := m.entries[at-m.start-1]; string(es[i].Frame()) != string(want.Frame()) {
				return fmt.Errorf("entry %v, want %v", es[i].ID(), want.ID())
			}
			at++
		}
	}
	return nil
}

// written is where an entry of a victim lies.
type written struct {
	path          string
	batch, header int64 // where the batch begins, and the body
	from, to      int64 // the frame
}

// remember notes where a batch that was just written has its entries.
func (v *victim) remember(w *WAL, b *raft.Batch) {
	from := w.activeEndBefore(b)
	vote, body := 0, int64(raft.EntriesSize(b.Entries))
	if b.HardState != nil {
		vote = len(b.HardState.VotedFor)
	}
	header, _ := headerSize(vote, body)
	at := from + int64(header)
	for i := range b.Entries {
		e := &b.Entries[i]
		v.where[e.Index] = written{w.active.path, from, from + int64(header), at, at + int64(e.Size())}
		at += int64(e.Size())
	}
}

// justified checks the entries that were called damaged: all whose bytes have changed are among them, and only such as share a page or a
// batch header with changed bytes.
func (v *victim) justified(c *change, last raft.Index, damaged []raft.Index) error {
	changed := func(path string, from, to int64) bool { return v.changed(c, path, from, to) }
	for index := raft.Index(1); index <= last; index++ {
		p := v.where[index]
		is := slices.Contains(damaged, index)
		if must := changed(p.path, p.from, p.to); must && !is {
			return fmt.Errorf("entry %d has changed, and is not called damaged", index)
		}
		page := p.batch + (p.from-p.batch)/pageSize*pageSize
		end := p.batch + roundUp(p.to-p.batch, pageSize)
		headers := changed(p.path, 0, pageSize) && changed(p.path, pageSize, segmentHeaderSize)
		if may := headers || changed(p.path, page, end) || changed(p.path, p.batch, p.header); is && !may {
			return fmt.Errorf("entry %d is called damaged, and nothing in its pages has changed", index)
		}
	}
	return nil
}

// changed reports whether any byte of that range is not as it was written.
func (v *victim) changed(c *change, path string, from, to int64) bool {
	hit := false
	c.each(func(f changedFile) {
		if f.path != path {
			return
		}
		was := v.img[path]
		for at := from; at < min(to, int64(len(was))); at++ {
			if at >= int64(len(f.data)) || f.data[at] != was[at] {
				hit = true
				return
			}
		}
	})
	return hit
}

// lostByManyFaults looks for what a log that was damaged in several places may be taken for. What vouches for a batch may be hit along with
// it: if every batch behind an earlier state of the log was hit, they look like one that was never finished and what came to lie behind
// it (assumption 3). And a fence at the highest term makes up for everything, truncations that are lost too. Term and vote are the newest.
func (v *victim) lostByManyFaults(c *change, w *WAL, rec *raft.Recovered, lazy bool) (m model, damaged []raft.Index, ok bool) {
	if damaged, err := v.before.checkDamaged(w, rec, lazy); err == nil {
		return v.before, damaged, true
	}
	for k := len(v.versions) - 1; k >= 0; k-- {
		m := v.versions[k].m
		m.hardState = v.now.hardState
		all := true
		for i := m.last() + 1; i <= v.now.last(); i++ {
			p := v.where[i]
			all = all && v.changed(c, p.path, p.batch, p.to)
		}
		if !all && rec.Fence.Term != raft.MaxTerm {
			continue
		}
		if damaged, err := m.checkDamaged(w, rec, lazy); err == nil {
			return m, damaged, true
		}
	}
	return model{}, nil, false
}
