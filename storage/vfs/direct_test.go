package vfs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
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
	if d, ok := f.(DurableWriter); ok {
		b := Aligned(8192)
		b[0], b[8191] = 1, 2
		require.NoError(t, d.WriteDurable(b, 4096))
		copy(want[4096:], b)
		write(Aligned(512), 4096) // what it wrote is there, and nothing is written later than it returns
		odd := []byte("not aligned")
		require.NoError(t, d.WriteDurable(odd, 5))
		copy(want[5:], odd)
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

// Many logs may write at the same time, more than the kernel is asked to serve by itself.
func TestDurableWritesBesideEachOther(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	errs := make([]error, 100)
	for i := range errs {
		wg.Go(func() { errs[i] = writeManyDurably(filepath.Join(dir, fmt.Sprint(i)), byte(i+1)) })
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
}

func writeManyDurably(path string, fill byte) error {
	plain, err := OS{}.Create(path)
	if err != nil {
		return err
	}
	f := Direct(plain)
	d, ok := f.(DurableWriter)
	if !ok {
		return f.Close()
	}
	for k := range 5 {
		b := Aligned(1024)
		for i := range b {
			b[i] = fill + byte(k)
		}
		if err := d.WriteDurable(b, int64(k)*1024); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if len(got) != 5*1024 {
		return errors.Join(fmt.Errorf("%s: %d bytes", path, len(got)), f.Close())
	}
	for i, c := range got {
		if c != fill+byte(i/1024) {
			return errors.Join(fmt.Errorf("%s: byte %d is %d", path, i, c), f.Close())
		}
	}
	return f.Close()
}

func TestDurableWritesTellErrors(t *testing.T) {
	plain, err := OS{}.Create(filepath.Join(t.TempDir(), "f"))
	require.NoError(t, err)
	f := Direct(plain)
	d, ok := f.(DurableWriter)
	if !ok {
		t.Skip("no direct writes here")
	}
	require.NoError(t, d.WriteDurable(Aligned(512), 0))
	require.NoError(t, f.Close())
	require.Error(t, d.WriteDurable(Aligned(512), 0))

	readOnly, err := OS{}.Open(plain.(osFile).Name())
	require.NoError(t, err)
	g := Direct(readOnly)
	require.Error(t, g.(DurableWriter).WriteDurable(Aligned(512), 0))
	require.NoError(t, g.Close())
}
