package storagetest

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
)

// RunDamage tests what an implementation does with entries that cannot be read. damage makes the entries first to last unreadable, in
// whatever way; the storage is open when it is called, and opened again after it.
func RunDamage(t *testing.T, open func(t *testing.T) raft.Storage, damage func(t *testing.T, st raft.Storage, first, last raft.Index)) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, st raft.Storage, damage func(first, last raft.Index))
	}{
		{"Reported", testDamageReported},
		{"Repaired", testDamageRepaired},
		{"CutOff", testDamageCutOff},
	} {
		t.Run(c.name, func(t *testing.T) {
			st := open(t)
			c.test(t, st, func(first, last raft.Index) { damage(t, st, first, last) })
			assert.NoError(t, st.Close())
		})
	}
}

// Damaged entries are named, their terms are known, and those around them can be read.
func testDamageReported(t *testing.T, st raft.Storage, damage func(first, last raft.Index)) {
	begin(t, st)
	all := append(NewEntries(1, 1, 6), NewEntries(2, 6, 11)...)
	require.NoError(t, st.Write(raft.Batch{Entries: all}))
	damage(4, 7)
	rec := reopen(t, st)
	require.EqualValues(t, 10, rec.LastIndex)
	require.Equal(t, []raft.TermStart{{Index: 1, Term: 1}, {Index: 6, Term: 2}}, rec.Terms)
	require.Len(t, rec.Damaged, 1)
	require.EqualValues(t, 4, rec.Damaged[0].First)
	require.EqualValues(t, 7, rec.Damaged[0].Last)

	es, err := st.Entries(1, 11, 1<<20)
	require.NoError(t, err)
	require.Equal(t, all[:3], es, "in front of the damage")
	es, err = st.Entries(8, 11, 1<<20)
	require.NoError(t, err)
	require.Equal(t, all[7:], es)
	for i := raft.Index(4); i <= 7; i++ {
		_, err = st.Entries(i, 11, 1<<20)
		var corrupt *raft.CorruptionError
		require.ErrorAs(t, err, &corrupt)
		require.Equal(t, i, corrupt.Damage.First)
		require.EqualValues(t, 7, corrupt.Damage.Last)
	}
}

// Repairs make entries whole, for good and a few at a time.
func testDamageRepaired(t *testing.T, st raft.Storage, damage func(first, last raft.Index)) {
	begin(t, st)
	all := NewEntries(3, 1, 11)
	require.NoError(t, st.Write(raft.Batch{Entries: all}))
	damage(4, 7)
	reopen(t, st)
	require.NoError(t, st.Write(raft.Batch{Repairs: all[4:6], Entries: NewEntries(4, 11, 12)}))
	es, err := st.Entries(5, 7, 1<<20)
	require.NoError(t, err)
	require.Equal(t, all[4:6], es)
	rec := reopen(t, st)
	require.Len(t, rec.Damaged, 2)
	require.EqualValues(t, 4, rec.Damaged[0].Last)
	require.EqualValues(t, 7, rec.Damaged[1].First)
	require.NoError(t, st.Write(raft.Batch{Repairs: []raft.Entry{all[3], all[6]}}))
	require.Empty(t, reopen(t, st).Damaged)
	es, err = st.Entries(1, 11, 1<<20)
	require.NoError(t, err)
	require.Equal(t, all, es)
}

// What is cut off is not damaged any more.
func testDamageCutOff(t *testing.T, st raft.Storage, damage func(first, last raft.Index)) {
	begin(t, st)
	require.NoError(t, st.Write(raft.Batch{Entries: NewEntries(3, 1, 11)}))
	damage(4, 7)
	reopen(t, st)
	require.NoError(t, st.Write(raft.Batch{TruncateFrom: 6, Entries: NewEntries(4, 6, 9)}))
	rec := reopen(t, st)
	require.Len(t, rec.Damaged, 1)
	require.EqualValues(t, 4, rec.Damaged[0].First)
	require.EqualValues(t, 5, rec.Damaged[0].Last)
}

func testFence(t *testing.T, st raft.Storage) {
	begin(t, st)
	fence := raft.EntryID{Term: raft.MaxTerm, Index: 70}
	require.NoError(t, st.Write(raft.Batch{Entries: NewEntries(1, 1, 6), Fence: &fence}))
	require.Equal(t, fence, reopen(t, st).Fence)
	require.NoError(t, st.Write(raft.Batch{Entries: NewEntries(1, 6, 9)}))
	rec := reopen(t, st)
	require.Equal(t, fence, rec.Fence)
	require.EqualValues(t, 8, rec.LastIndex)
	lower := raft.EntryID{Term: 2, Index: 10}
	require.NoError(t, st.Write(raft.Batch{Fence: &lower}))
	require.Equal(t, lower, reopen(t, st).Fence)
	require.NoError(t, st.Write(raft.Batch{Fence: &raft.EntryID{}}))
	require.Zero(t, reopen(t, st).Fence)
	require.NoError(t, st.Close())
}

func testIdleRepair(t *testing.T, st raft.Storage) {
	begin(t, st)
	m := newModel()
	m.write(t, st, raft.Batch{Entries: NewEntries(1, 1, 11)})
	m.write(t, st, raft.Batch{Repairs: NewEntries(1, 3, 6)})
	m.readAll(t, st)
	rec := reopen(t, st)
	m.check(t, st, rec)
	require.Empty(t, rec.Damaged)
	require.NoError(t, st.Close())
}

func testStrangeRepair(t *testing.T, st raft.Storage) {
	m := newModel()
	begin(t, st)
	m.write(t, st, raft.Batch{Entries: NewEntries(2, 1, 6)})
	for _, es := range [][]raft.Entry{
		NewEntries(3, 4, 5), // another term
		NewEntries(2, 6, 7), // behind the log
		append(NewEntries(2, 4, 5), NewEntries(2, 3, 4)...), // falling
	} {
		require.Error(t, st.Write(raft.Batch{Repairs: es}))
		m.check(t, st, reopen(t, st)) // an error is final until then
	}
	require.NoError(t, st.Close())
}
