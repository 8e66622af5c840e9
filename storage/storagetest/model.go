package storagetest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
)

// model is what a storage must hold.
type model struct {
	hardState raft.HardState
	installed raft.EntryID // the log begins behind it, for certain
	compacted raft.Index   // may be gone up to here; >= installed.Index
	entries   []raft.Entry // from installed.Index+1 on, those that may be gone included
}

func newModel() *model { return &model{} }

func (m *model) last() raft.Index { return m.installed.Index + raft.Index(len(m.entries)) }

// id names the entry at index.
func (m *model) id(index raft.Index) raft.EntryID {
	if index == m.installed.Index {
		return m.installed
	}
	return m.entries[index-m.installed.Index-1].ID()
}

// write applies a batch to the storage and to the model.
func (m *model) write(t *testing.T, st raft.Storage, b raft.Batch) {
	t.Helper()
	require.NoError(t, st.Write(b))
	if b.HardState != nil {
		m.hardState = *b.HardState
	}
	if b.TruncateFrom != 0 {
		m.entries = m.entries[: b.TruncateFrom-m.installed.Index-1 : b.TruncateFrom-m.installed.Index-1]
	}
	if b.Snapshot != nil {
		// "If existing log entry has same index and term as snapshot's last included entry, retain log entries following it";
		// otherwise "discard the entire log" (§7).
		if b.Snapshot.Index >= m.last() || m.id(b.Snapshot.Index) != b.Snapshot.ID() {
			m.entries = nil
		} else {
			m.entries = m.entries[b.Snapshot.Index-m.installed.Index:]
		}
		m.installed = b.Snapshot.ID()
		m.compacted = max(m.compacted, b.Snapshot.Index)
	}
	m.entries = append(m.entries, b.Entries...)
}

func (m *model) compact(to raft.Index) { m.compacted = max(m.compacted, to) }

// read compares one range with the model: as many entries as fit, at least one.
func (m *model) read(t *testing.T, st raft.Storage, lo, hi raft.Index, maxBytes int) {
	t.Helper()
	got, err := st.Entries(lo, hi, maxBytes)
	if lo <= m.installed.Index {
		require.ErrorIs(t, err, raft.ErrCompacted, "entries [%d, %d)", lo, hi)
		return
	}
	if lo <= m.compacted && err != nil {
		require.ErrorIs(t, err, raft.ErrCompacted, "entries [%d, %d)", lo, hi)
		return
	}
	require.NoError(t, err, "entries [%d, %d)", lo, hi)
	want := m.entries[lo-m.installed.Index-1 : hi-m.installed.Index-1]
	n, size := 1, want[0].Size()
	for n < len(want) && size+want[n].Size() <= maxBytes {
		size += want[n].Size()
		n++
	}
	requireEntries(t, want[:n], got)
}

// readAll reads from every index on.
func (m *model) readAll(t *testing.T, st raft.Storage) {
	t.Helper()
	for lo := raft.Index(1); lo <= m.last(); lo++ {
		m.read(t, st, lo, m.last()+1, 500)
	}
	if m.last() > m.compacted {
		m.read(t, st, m.compacted+1, m.last()+1, 1<<30)
	}
}

// check compares what a storage has recovered with the model.
func (m *model) check(t *testing.T, st raft.Storage, rec raft.Recovered) {
	t.Helper()
	require.Equal(t, m.hardState, rec.HardState)
	require.Equal(t, m.last(), rec.LastIndex)
	require.GreaterOrEqual(t, rec.Compacted.Index, m.installed.Index, "an installed snapshot ends all before it")
	require.LessOrEqual(t, rec.Compacted.Index, m.compacted, "nobody allowed that")
	if rec.Compacted.Index == 0 {
		require.Zero(t, rec.Compacted)
	} else {
		require.Equal(t, m.id(rec.Compacted.Index), rec.Compacted)
	}
	left := m.entries[rec.Compacted.Index-m.installed.Index:]
	var terms []raft.TermStart
	var configurations []raft.Entry
	for i := range left {
		if e := &left[i]; len(terms) == 0 || terms[len(terms)-1].Term != e.Term {
			terms = append(terms, raft.TermStart{Index: e.Index, Term: e.Term})
		}
		if left[i].Type == raft.EntryConfiguration {
			configurations = append(configurations, left[i])
		}
	}
	require.True(t, slices.Equal(terms, rec.Terms), "terms %v, want %v", rec.Terms, terms)
	requireEntries(t, configurations, rec.Configurations)
	if len(left) > 0 {
		m.read(t, st, left[0].Index, m.last()+1, 1<<30)
	}
	latest, err := st.Snapshots().Latest()
	require.NoError(t, err)
	require.Equal(t, latest, rec.Snapshot)
}

func requireEntries(t *testing.T, want, got []raft.Entry) {
	t.Helper()
	require.Len(t, got, len(want))
	for i := range want {
		w, g := &want[i], &got[i]
		require.Equal(t, w.ID(), g.ID())
		require.Equal(t, w.Type, g.Type, "entry %v", w.ID())
		require.Equal(t, w.Frame(), g.Frame(), "entry %v", w.ID())
		require.Equal(t, string(w.Data), string(g.Data), "entry %v", w.ID())
	}
}

// testModel writes random batches and compares with the model at random points. The seed is in the test's name.
func testModel(t *testing.T, open func(t *testing.T) raft.Storage) {
	const seeds, steps = 6, 120
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			st := open(t)
			rec := begin(t, st)
			w := walk{rng: rand.New(rand.NewPCG(seed, 1)), st: st, model: newModel(), incarnation: rec.Identity.Incarnation}
			w.model.check(t, st, rec)
			for range steps {
				w.step(t)
			}
			w.reopen(t)
			require.NoError(t, st.Close())
		})
	}
}

// walk is a random history of one storage.
type walk struct {
	*model
	rng         *rand.Rand
	st          raft.Storage
	term        raft.Term
	snapshot    raft.SnapshotMeta // the newest
	incarnation uint64
}

func (w *walk) step(t *testing.T) {
	switch n := w.rng.IntN(20); {
	case n < 11:
		w.write(t, w.st, w.batch(t))
	case n < 13:
		w.takeSnapshot(t)
	case n < 15:
		if w.snapshot.Index > 0 && w.snapshot.Index <= w.last() {
			to := 1 + raft.Index(w.rng.Uint64N(uint64(w.snapshot.Index)))
			require.NoError(t, w.st.Compact(to))
			w.compact(to)
		}
	case n < 17:
		if w.last() > 0 {
			lo := 1 + raft.Index(w.rng.Uint64N(uint64(w.last())))
			hi := lo + 1 + raft.Index(w.rng.Uint64N(uint64(w.last()-lo+1)))
			w.read(t, w.st, lo, hi, w.rng.IntN(20_000))
		}
	case n < 19:
		prepare(t, w.st)
		if p, ok := w.st.(raft.StoragePreparer); ok && w.rng.IntN(2) == 0 {
			require.NoError(t, p.Idle())
		}
	default:
		w.reopen(t)
	}
}

// batch makes a random batch that a core could write.
func (w *walk) batch(t *testing.T) raft.Batch {
	var b raft.Batch
	if w.term == 0 || w.rng.IntN(5) == 0 {
		w.term += 1 + raft.Term(w.rng.Uint64N(3))
		b.HardState = &raft.HardState{CurrentTerm: w.term}
		if w.rng.IntN(2) == 0 {
			b.HardState.VotedFor = "n7"
		}
	}
	next := w.last() + 1
	if free := w.last() - w.floor(); free > 0 && w.rng.IntN(6) == 0 {
		next -= raft.Index(w.rng.Uint64N(uint64(free)))
		b.TruncateFrom = next
	}
	if w.rng.IntN(12) == 0 {
		// From a leader that is ahead: what is here is dropped.
		id := raft.EntryID{Term: w.term, Index: next + raft.Index(w.rng.Uint64N(50))}
		w.snapshot = put(t, w.st.Snapshots(), id, []byte("received"))
		b.Snapshot = &w.snapshot
		next = id.Index + 1
	}
	for range w.rng.IntN(12) {
		b.Entries = append(b.Entries, w.entry(next))
		next++
	}
	return b
}

// floor is the last entry that a core would not truncate any more.
func (w *walk) floor() raft.Index { return max(w.compacted, min(w.snapshot.Index, w.last())) }

func (w *walk) entry(index raft.Index) raft.Entry {
	id := raft.EntryID{Term: w.term, Index: index}
	switch w.rng.IntN(20) {
	case 0:
		return NewEntry(raft.EntryNoOp, id, nil)
	case 1:
		conf := NewConfiguration(1 + w.rng.IntN(5))
		return NewEntry(raft.EntryConfiguration, id, conf.AppendBinary(nil))
	case 2:
		return NewEntry(raft.EntryCommand, id, w.bytes(w.rng.IntN(100_000)))
	default:
		return NewEntry(raft.EntryCommand, id, w.bytes(w.rng.IntN(500)))
	}
}

// bytes makes payloads of which some are full of zeros, as those in a torn write would be.
func (w *walk) bytes(n int) []byte {
	b := make([]byte, n)
	if w.rng.IntN(4) > 0 {
		for i := range b {
			b[i] = byte(w.rng.Uint32())
		}
	}
	return b
}

func (w *walk) takeSnapshot(t *testing.T) {
	lo := max(w.snapshot.Index+1, w.installed.Index+1)
	if lo > w.last() {
		return
	}
	id := w.id(lo + raft.Index(w.rng.Uint64N(uint64(w.last()-lo+1))))
	w.snapshot = put(t, w.st.Snapshots(), id, w.bytes(w.rng.IntN(10_000)))
}

func (w *walk) reopen(t *testing.T) {
	rec := reopen(t, w.st)
	w.incarnation++
	require.Equal(t, w.incarnation, rec.Identity.Incarnation)
	w.check(t, w.st, rec)
	require.Equal(t, w.snapshot.ID(), rec.Snapshot.ID())
}
