package wal_test

import (
	"flag"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/storagetest"
	"github.com/steadyraft/raft/storage/wal"
)

var sizeEntries = flag.Int("size-entries", 200_000, "entries that TestMemoryDoesNotGrowWithTheLog writes")

// A log of many entries lives on the disk: what stays in memory is a mark for a stretch of bytes, not for an entry. Measured while
// the log is open for writing and after it has been opened again.
func TestMemoryDoesNotGrowWithTheLog(t *testing.T) {
	dir := t.TempDir()
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	w := wal.New(dir, wal.Options{})
	_, err := w.Open(t.Context(), raft.Identity{Cluster: "c", Node: "n1"})
	require.NoError(t, err)
	const batch = 4000
	for first := 1; first <= *sizeEntries; first += batch {
		require.NoError(t, w.Write(raft.Batch{Entries: storagetest.NewEntries(1, raft.Index(first), raft.Index(first+batch))}))
	}
	open := heap() - before
	require.NoError(t, w.Close())

	w = wal.New(dir, wal.Options{})
	rec, err := w.Open(t.Context(), raft.Identity{})
	require.NoError(t, err)
	require.GreaterOrEqual(t, int(rec.LastIndex), *sizeEntries)
	reopened := heap() - before
	require.NoError(t, w.Close())

	t.Logf("%d entries: %d KiB more while writing, %d KiB after reopening", *sizeEntries, open>>10, reopened>>10)
	// A constant for buffers, and less than one byte for an entry.
	bound := int64(4<<20 + *sizeEntries)
	require.Less(t, open, bound)
	require.Less(t, reopened, bound)
}
