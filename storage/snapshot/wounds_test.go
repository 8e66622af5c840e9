package snapshot

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/storage/vfs"
)

// The tests in this file are ways in which other systems were hurt by their snapshots (SAFETY §3). docs/old-wounds.md lists them.

// Snapshots. The stream from the leader broke off, the file ended early, and its end looked like the end of the content: the follower
// restored half a state. Or the stream went on after its declared length, and filled the disk. Neither becomes a snapshot.
func TestWoundStreamOfAnotherLength(t *testing.T) {
	for _, n := range []int{0, 99, 101, 5000} {
		fsys := newMemFS()
		s := open(t, fsys)
		put(t, s, 4, content(50))
		k, err := s.Create(describe(5, 100))
		require.NoError(t, err)
		_, _ = k.Write(content(n))
		_, err = k.Commit()
		require.ErrorContains(t, err, "announced", "%d bytes", n)
		require.EqualValues(t, 4, latest(t, s), "the one before stays")
		require.Equal(t, []string{fileName(4)}, filesIn(t, fsys))
	}
}

// Storage. A snapshot was renamed into place and the log before it given up; its directory was not synced. After a power failure
// there was neither.
func TestWoundRenamedSnapshotVanishes(t *testing.T) {
	for seed := range uint64(20) {
		disk := vfs.New(seed)
		s, err := New(disk, dir, Options{})
		require.NoError(t, err)
		require.NoError(t, take(s, 1))
		require.NoError(t, take(s, 2))
		s, err = New(disk.Crash(), dir, Options{})
		require.NoError(t, err)
		require.EqualValues(t, 2, latest(t, s), "seed %d", seed)
	}
}
