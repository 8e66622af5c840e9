package snapshot

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
)

func writeSnapshot(t *testing.T, dir string, index raft.Index, size int) string {
	t.Helper()
	s, err := New(vfs.OS{}, dir, Options{ChunkBytes: 64})
	require.NoError(t, err)
	sink, err := s.Create(raft.SnapshotMeta{
		Index: index, Term: 1, Size: -1, Configuration: raft.Configuration{ClusterID: "c", Servers: []raft.Server{{ID: "a"}}},
	})
	require.NoError(t, err)
	_, err = sink.Write(make([]byte, size))
	require.NoError(t, err)
	_, err = sink.Commit()
	require.NoError(t, err)
	return filepath.Join(dir, fileName(index))
}

// Every flipped bit and every cut of a snapshot is found, in the file that has it and no other, and nothing is written.
func TestVerifyFindsEveryDamage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "snapshots")
	none, err := Verify(t.Context(), vfs.OS{}, dir, Options{})
	require.NoError(t, err)
	require.Empty(t, none, "no directory, no snapshots")

	old, newest := writeSnapshot(t, dir, 7, 0), writeSnapshot(t, dir, 9, 200)
	all, err := Verify(t.Context(), vfs.OS{}, dir, Options{})
	require.NoError(t, err)
	require.Len(t, all, 2)
	require.Nil(t, all[0].Damage)
	require.Nil(t, all[1].Damage)
	require.Equal(t, []string{newest, old}, []string{all[0].Path, all[1].Path})
	require.EqualValues(t, 9, all[0].Meta.Index)
	require.EqualValues(t, 200, all[0].Meta.Size)

	whole, err := os.ReadFile(newest)
	require.NoError(t, err)
	check := func(damaged []byte, what string, n int) {
		t.Helper()
		require.NoError(t, os.WriteFile(newest, damaged, 0o600))
		all, err := Verify(t.Context(), vfs.OS{}, dir, Options{})
		require.NoError(t, err)
		require.Len(t, all, 2)
		require.NotNil(t, all[0].Damage, "%s %d", what, n)
		require.Equal(t, newest, all[0].Damage.Path)
		require.Nil(t, all[1].Damage)
	}
	for bit := range len(whole) * 8 {
		damaged := append([]byte(nil), whole...)
		damaged[bit/8] ^= 1 << (bit % 8)
		check(damaged, "bit", bit)
	}
	for n := range len(whole) {
		check(whole[:n], "cut to", n)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, os.WriteFile(newest, whole, 0o600))
	_, err = Verify(ctx, vfs.OS{}, dir, Options{})
	require.ErrorIs(t, err, context.Canceled)
}

// An error of the device is no damage of the snapshot.
func TestVerifyTellsTheDeviceFromTheSnapshot(t *testing.T) {
	m := newMemFS()
	broken := errors.New("device gone")
	m.failOn(func(op, _ string) error {
		if op == "list" {
			return &fs.PathError{Op: op, Err: broken}
		}
		return nil
	})
	_, err := Verify(t.Context(), m, "/s", Options{})
	require.ErrorIs(t, err, broken)
}
