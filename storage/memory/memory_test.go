package memory_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/memory"
	"github.com/steadyraft/raft/storage/storagetest"
)

func TestConformance(t *testing.T) {
	storagetest.Run(t, func(*testing.T) raft.Storage { return memory.New() })
}

func TestDamageConformance(t *testing.T) {
	storagetest.RunDamage(t, func(*testing.T) raft.Storage { return memory.New() },
		func(_ *testing.T, st raft.Storage, first, last raft.Index) {
			st.(*memory.Storage).Damage(first, last+1, false)
		})
}

// What cannot be read is forgotten when it is cut off, compacted or replaced by a snapshot, and a crash keeps it.
func TestDamageEndsWithTheEntries(t *testing.T) {
	st := memory.New()
	open(t, st)
	require.NoError(t, st.Write(raft.Batch{Entries: storagetest.NewEntries(3, 1, 10)}))
	st.Damage(2, 5, true)
	st.Damage(7, 99, false)
	st = st.Crash()
	require.Equal(t, []raft.Damage{{First: 2, Last: 4, MayConfigure: true}, {First: 7, Last: 9, MayConfigure: true}}, open(t, st).Damaged)
	require.NoError(t, st.Write(raft.Batch{TruncateFrom: 8, Entries: storagetest.NewEntries(4, 8, 9)}))
	k, err := st.Snapshots().Create(storagetest.NewSnapshotMeta(raft.EntryID{Term: 3, Index: 3}))
	require.NoError(t, err)
	_, err = k.Commit()
	require.NoError(t, err)
	require.NoError(t, st.Compact(3))
	_, err = st.Entries(8, 9, 1)
	require.NoError(t, err)
	require.NoError(t, st.Close())
	require.Equal(t, []raft.Damage{{First: 4, Last: 4, MayConfigure: true}, {First: 7, Last: 7, MayConfigure: true}}, open(t, st).Damaged)
	st.LoseEnd(6, raft.EntryID{Term: 4, Index: 8})
	require.NoError(t, st.Close())
	rec := open(t, st)
	require.Equal(t, raft.EntryID{Term: 4, Index: 8}, rec.Fence)
	require.EqualValues(t, 6, rec.LastIndex)
	require.Len(t, rec.Damaged, 1)
}

func open(t *testing.T, st *memory.Storage) raft.Recovered {
	t.Helper()
	rec, err := st.Open(context.Background(), raft.Identity{Cluster: "c", Node: "n"})
	require.NoError(t, err)
	return rec
}

func TestOpenTwiceIsLocked(t *testing.T) {
	st := memory.New()
	open(t, st)
	_, err := st.Open(context.Background(), raft.Identity{})
	require.ErrorIs(t, err, raft.ErrLocked)
}

func TestBadBatchesAreRefusedByIndex(t *testing.T) {
	unframed := storagetest.NewEntries(3, 6, 7)
	unframed[0].Index, unframed[0].Term = 6, 4
	for name, c := range map[string]struct {
		batch raft.Batch
		want  string
	}{
		"gap":                  {raft.Batch{Entries: storagetest.NewEntries(3, 7, 8)}, "append index 7, want 6"},
		"overlap":              {raft.Batch{Entries: storagetest.NewEntries(3, 5, 8)}, "append index 5, want 6"},
		"gap after truncation": {raft.Batch{TruncateFrom: 4, Entries: storagetest.NewEntries(3, 5, 6)}, "append index 5, want 4"},
		"falling term":         {raft.Batch{Entries: storagetest.NewEntries(2, 6, 7)}, "append entry 6@2 behind 5@3"},
		"compacted":            {raft.Batch{TruncateFrom: 2}, "truncate from index 2: compacted up to 2"},
		"old snapshot":         {raft.Batch{Snapshot: &raft.SnapshotMeta{Index: 1, Term: 3}}, "begins behind 2@3"},
		"missing snapshot":     {raft.Batch{Snapshot: &raft.SnapshotMeta{Index: 9, Term: 3}}, "the newest one stored is at index 2"},
		"other frame":          {raft.Batch{Entries: unframed}, "append entry 6@4: its frame"},
	} {
		t.Run(name, func(t *testing.T) {
			st := memory.New()
			open(t, st)
			require.NoError(t, st.Write(raft.Batch{Entries: storagetest.NewEntries(3, 1, 6)}))
			k, err := st.Snapshots().Create(storagetest.NewSnapshotMeta(raft.EntryID{Term: 3, Index: 2}))
			require.NoError(t, err)
			_, err = k.Commit()
			require.NoError(t, err)
			require.NoError(t, st.Compact(2))

			require.ErrorContains(t, st.Write(c.batch), c.want)
			require.ErrorContains(t, st.Write(raft.Batch{}), c.want, "an error is final")
			require.NoError(t, st.Close())
			require.EqualValues(t, 5, open(t, st).LastIndex)
			require.NoError(t, st.Write(raft.Batch{Entries: storagetest.NewEntries(3, 6, 7)}))
		})
	}
}

// A snapshot that contradicts the log ends all of it (§7).
func TestContradictingSnapshotDiscardsTheLog(t *testing.T) {
	st := memory.New()
	open(t, st)
	require.NoError(t, st.Write(raft.Batch{Entries: storagetest.NewEntries(1, 1, 11)}))
	k, err := st.Snapshots().Create(storagetest.NewSnapshotMeta(raft.EntryID{Term: 2, Index: 5}))
	require.NoError(t, err)
	meta, err := k.Commit()
	require.NoError(t, err)
	require.NoError(t, st.Write(raft.Batch{Snapshot: &meta}))
	require.NoError(t, st.Close())
	rec := open(t, st)
	require.Equal(t, meta.ID(), rec.Compacted)
	require.EqualValues(t, 5, rec.LastIndex)
}

func TestCompactNeedsASnapshot(t *testing.T) {
	st := memory.New()
	open(t, st)
	require.NoError(t, st.Write(raft.Batch{Entries: storagetest.NewEntries(1, 1, 11)}))
	require.ErrorContains(t, st.Compact(3), "the newest snapshot is at index 0")
	require.ErrorContains(t, st.Compact(11), "the log ends at 10")
}

func TestFailedWriteIsFinalUntilReopened(t *testing.T) {
	st := memory.New()
	open(t, st)
	broken := errors.New("broken disk")
	st.FailWrites(broken)
	require.ErrorIs(t, st.Write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 1}}), broken)
	st.FailWrites(nil)
	require.ErrorIs(t, st.Write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 1}}), broken)
	require.NoError(t, st.Close())
	require.Zero(t, open(t, st).HardState)
	require.NoError(t, st.Write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 1}}))
}

func TestFullStorageStillTakesWhatMustFit(t *testing.T) {
	st := memory.New()
	open(t, st)
	st.FailWrites(raft.ErrStorageFull)
	noop := storagetest.NewEntry(raft.EntryNoOp, raft.EntryID{Term: 1, Index: 1}, nil)
	require.NoError(t, st.Write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 1}, Entries: []raft.Entry{noop}}))
	require.ErrorIs(t, st.Write(raft.Batch{Entries: storagetest.NewEntries(1, 2, 3)}), raft.ErrStorageFull)
	st.FailWrites(nil)
	require.NoError(t, st.Write(raft.Batch{Entries: storagetest.NewEntries(1, 2, 3)}))
}

func TestBlockedWriteWaitsForRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := memory.New()
		open(t, st)
		release, second := st.BlockWrites(), st.BlockWrites()
		done := make(chan error, 1)
		go func() { done <- st.Write(raft.Batch{Entries: storagetest.NewEntries(1, 1, 3)}) }()
		synctest.Wait()
		release()
		release() // counts once
		synctest.Wait()
		require.Empty(t, done)
		second()
		require.NoError(t, <-done)
		_, err := st.Entries(1, 3, 0)
		require.NoError(t, err)
	})
}

func TestCrashKeepsWhatWasWrittenAndEndsTheOldHolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := memory.New()
		rec := open(t, st)
		require.NoError(t, st.Write(raft.Batch{Entries: storagetest.NewEntries(1, 1, 3)}))
		k, err := st.Snapshots().Create(storagetest.NewSnapshotMeta(raft.EntryID{Term: 1, Index: 2}))
		require.NoError(t, err)
		st.BlockWrites()
		done := make(chan error, 1)
		go func() { done <- st.Write(raft.Batch{Entries: storagetest.NewEntries(1, 3, 4)}) }()
		synctest.Wait()

		left := st.Crash()
		assert.Error(t, <-done)
		_, err = k.Commit()
		assert.Error(t, err)
		_, err = st.Open(context.Background(), raft.Identity{})
		assert.Error(t, err)
		assert.Error(t, st.Close())

		again := open(t, left)
		require.EqualValues(t, 2, again.LastIndex)
		require.Zero(t, again.Snapshot.Index)
		require.Equal(t, rec.Identity.Incarnation+1, again.Identity.Incarnation)
		require.Equal(t, rec.Identity.Replica, again.Identity.Replica)
		require.NoError(t, left.Write(raft.Batch{Entries: storagetest.NewEntries(1, 3, 4)}))
	})
}

func TestSinkOfAnEarlierOpenIsDead(t *testing.T) {
	st := memory.New()
	open(t, st)
	k, err := st.Snapshots().Create(storagetest.NewSnapshotMeta(raft.EntryID{Term: 1, Index: 2}))
	require.NoError(t, err)
	require.NoError(t, st.Close())
	open(t, st)
	_, err = k.Commit()
	require.Error(t, err)
	meta, err := st.Snapshots().Latest()
	require.NoError(t, err)
	require.Zero(t, meta)
}

func TestChangedFrameIsFoundOut(t *testing.T) {
	st := memory.New()
	open(t, st)
	es := storagetest.NewEntries(1, 1, 3)
	require.NoError(t, st.Write(raft.Batch{Entries: es}))
	es[1].Data[0] ^= 1 // a state machine that writes into what it was lent
	_, err := st.Entries(1, 3, 1000)
	var damage *raft.CorruptionError
	require.ErrorAs(t, err, &damage)
	require.ErrorContains(t, err, "2@1")
	_, err = st.Entries(1, 2, 1000)
	require.NoError(t, err)
}

func TestReplicaCanBeChosen(t *testing.T) {
	st := memory.New()
	rec, err := st.Open(context.Background(), raft.Identity{Cluster: "c", Node: "n", Replica: 77})
	require.NoError(t, err)
	require.EqualValues(t, 77, rec.Identity.Replica)
	require.NoError(t, st.Close())
	rec, err = st.Open(context.Background(), raft.Identity{Replica: 78})
	require.NoError(t, err)
	require.EqualValues(t, 77, rec.Identity.Replica)

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = memory.New().Open(ctx, raft.Identity{})
	require.ErrorIs(t, err, context.Canceled)
}
