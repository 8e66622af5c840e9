package snapshot

import (
	"fmt"
	"io"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/storagetest"
	"github.com/steadyraft/raft/storage/vfs"
)

func TestConformanceOnFiles(t *testing.T) {
	storagetest.RunSnapshots(t, func(t *testing.T) raft.SnapshotStore {
		s, err := New(vfs.OS{}, filepath.Join(t.TempDir(), "snapshots"), Options{})
		require.NoError(t, err)
		return s
	})
}

// version is content that says which snapshot it belongs to, longer than a sector, so that a crash can tear it.
func version(index raft.Index) []byte {
	b := content(1500)
	for i := range b {
		b[i] ^= byte(index)
	}
	return b
}

// take makes a snapshot, with an error where put would end the test.
func take(s *Store, index raft.Index) error {
	k, err := s.Create(describe(index, -1))
	if err != nil {
		return err
	}
	if _, err := k.Write(version(index)); err != nil {
		return fmt.Errorf("%w (abort: %v)", err, k.Abort())
	}
	_, err = k.Commit()
	return err
}

// The power fails at every operation in turn, while one snapshot follows the other. Afterwards every file that has a snapshot's
// name is whole, the newest is at least the last one whose Commit has returned, and nothing unfinished is left.
func TestPowerFailureAtEveryOperation(t *testing.T) {
	const first, last = 1, 4
	crashes := 0
	for seed := range uint64(8) {
		for k, done := 0, false; !done; k++ {
			disk := vfs.New(seed)
			disk.FailFrom(k)
			committed := raft.Index(0)
			s, err := New(disk, dir, Options{ChunkBytes: 700})
			for index := raft.Index(first); err == nil && index <= last; index++ {
				if err = take(s, index); err == nil {
					committed = index
				}
			}
			done = err == nil
			crashes++

			after := disk.Crash()
			what := fmt.Sprintf("seed %d, operation %d, %d committed", seed, k, committed)
			s, err = New(after, dir, Options{})
			require.NoError(t, err, what)
			meta, err := s.Latest()
			require.NoError(t, err, what)
			require.GreaterOrEqual(t, meta.Index, committed, what)
			require.LessOrEqual(t, meta.Index, committed+1, what)
			names, err := after.List(dir)
			require.NoError(t, err, what)
			for _, name := range names {
				index, ok := parseFileName(name)
				require.True(t, ok, "%s: %s is left", what, name)
				_, r, err := s.Open(index)
				require.NoError(t, err, what)
				data, err := io.ReadAll(r)
				require.NoError(t, err, what)
				require.Equal(t, version(index), data, what)
				require.NoError(t, r.Close())
			}
			if committed >= 2 {
				assert.GreaterOrEqual(t, len(names), 2, what) // one is left when the other is damaged
			}
			require.NoError(t, take(s, 9), what)
		}
	}
	require.Greater(t, crashes, 8*30, "the power failed in the middle of things")
}

// A process is killed at every operation in turn, while it takes a snapshot, and started again on what it left; then the power fails.
// What the second process was shown is still there: it may have built on it. (Found by the simulator, seed 718: the first process
// died between the rename and the sync of the directory, and the snapshot that its successor started from was gone later.)
func TestWhatARestartFindsSurvivesAPowerFailure(t *testing.T) {
	inDoubt := 0
	for seed := range uint64(8) {
		for k := 0; ; k++ {
			disk := vfs.New(seed)
			s, err := New(disk, dir, Options{})
			require.NoError(t, err)
			require.NoError(t, take(s, 1))
			disk.FailFrom(disk.Ops() + k)
			err = take(s, 2)
			if err == nil {
				break
			}
			killed := disk.Clone() // the same content: only the process is gone
			killed.FailFrom(-1)
			s, err = New(killed, dir, Options{})
			require.NoError(t, err)
			shown := latest(t, s)
			inDoubt += int(shown - 1)

			s, err = New(killed.Crash(), dir, Options{})
			require.NoError(t, err)
			require.GreaterOrEqual(t, latest(t, s), shown, "seed %d, killed at operation %d", seed, k)
		}
	}
	require.Positive(t, inDoubt, "the kill came between the rename and the end of Commit")
}

// The disk is full at any point: the error says so, nothing is left of the attempt, and when there is room again it works.
func TestFullDiskAtEveryByte(t *testing.T) {
	for space := int64(0); ; space += 97 {
		disk := vfs.New(1)
		s, err := New(disk, dir, Options{ChunkBytes: 700})
		require.NoError(t, err)
		require.NoError(t, take(s, 1))
		disk.SetSpace(space)
		err = take(s, 2)
		if err == nil {
			require.Greater(t, space, int64(1500))
			return
		}
		require.ErrorIs(t, err, raft.ErrStorageFull)
		names, err := disk.List(dir)
		require.NoError(t, err)
		require.Equal(t, []string{fileName(1)}, names)
		disk.SetSpace(-1)
		require.NoError(t, take(s, 2))
		require.EqualValues(t, 2, latest(t, s))
	}
}

// An unreadable sector is damage in that snapshot, wherever it lies.
func TestUnreadableSectorOnDisk(t *testing.T) {
	disk := vfs.New(1)
	s, err := New(disk, dir, Options{ChunkBytes: 700})
	require.NoError(t, err)
	require.NoError(t, take(s, 1))
	require.NoError(t, take(s, 2))
	info, err := disk.Stat(s.path(2))
	require.NoError(t, err)
	whole := disk
	for bad := int64(0); bad < info.Size(); bad += vfs.SectorSize {
		disk := whole.Clone()
		s, err := New(disk, dir, Options{})
		require.NoError(t, err)
		disk.SetFault(func(op vfs.Op) error {
			if op.Kind == vfs.OpRead && op.Path == s.path(2) && op.Offset < bad+vfs.SectorSize && op.Offset+int64(op.Length) > bad {
				return syscall.EIO
			}
			return nil
		})
		_, r, err := s.Open(2)
		if err == nil {
			_, err = io.ReadAll(r)
			require.NoError(t, r.Close())
		}
		var damage *raft.CorruptionError
		require.ErrorAs(t, err, &damage, "sector at %d", bad)
		require.EqualValues(t, 1, latest(t, s))
		disk.SetFault(nil)
	}
}
