package vfs

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDirectFileHoldsWhatWasWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	plain, err := OS{}.Create(path)
	require.NoError(t, err)
	f := Direct(plain)
	want := make([]byte, 1<<20)
	write := func(b []byte, off int64) {
		n, err := f.WriteAt(b, off)
		require.NoError(t, err)
		require.Equal(t, len(b), n)
		copy(want[off:], b)
		got := make([]byte, len(want))
		r, err := OS{}.Open(path)
		require.NoError(t, err)
		_, err = r.ReadAt(got, 0)
		require.NoError(t, err)
		require.NoError(t, r.Close())
		require.True(t, bytes.Equal(want, got), "as others read it")
	}
	write(Aligned(len(want)), 0)
	for i, size := range []int{512, 4096, 512, 65536, 1536} {
		b := Aligned(size)
		for j := range b {
			b[j] = byte(i + 1)
		}
		write(b, int64(i)*100_000/512*512)
	}
	write([]byte("of any length, at any place"), 77)
	write(bytes.Repeat([]byte{9}, 4096), 8192)
	if w, ok := f.(RangeWriter); ok {
		require.NoError(t, w.WriteOut(0, 4096))
	}
	require.NoError(t, f.Sync())
	size, err := f.Size()
	require.NoError(t, err)
	require.Equal(t, int64(len(want)), size)
	require.NoError(t, f.Close())
}

func TestAlignedIsAsLongAsAskedFor(t *testing.T) {
	for _, n := range []int{0, 1, 512, 4096, 100_000} {
		b := Aligned(n)
		require.Len(t, b, n)
		require.Equal(t, n, cap(b))
		require.True(t, n%512 != 0 || suitsDirect(b, 0))
	}
}
