package vfs

import (
	"bytes"
	"errors"
	"io/fs"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func write(t *testing.T, f File, off int64, b []byte) {
	t.Helper()
	n, err := f.WriteAt(b, off)
	require.NoError(t, err)
	require.Equal(t, len(b), n)
}

func content(t *testing.T, fsys FS, path string) []byte {
	t.Helper()
	f, err := fsys.Open(path)
	require.NoError(t, err)
	size, err := f.Size()
	require.NoError(t, err)
	b := make([]byte, size)
	_, err = f.ReadAt(b, 0)
	require.NoError(t, errors.Join(err, f.Close()))
	return b
}

// synced makes a file with durable content under a durable name.
func synced(t *testing.T, d *Disk, path string, b []byte) File {
	t.Helper()
	f, err := d.Create(path)
	require.NoError(t, err)
	write(t, f, 0, b)
	require.NoError(t, f.Sync())
	require.NoError(t, d.SyncDir("/d"))
	return f
}

func newDisk(t *testing.T, seed uint64) *Disk {
	t.Helper()
	d := New(seed)
	require.NoError(t, d.MkdirAll("/d"))
	return d
}

func TestSyncedContentSurvivesEveryCrash(t *testing.T) {
	for seed := range uint64(50) {
		d := newDisk(t, seed)
		want := bytes.Repeat([]byte{7}, 3000)
		f := synced(t, d, "/d/a", want)
		write(t, f, 100, []byte("changed"))
		require.NoError(t, f.Sync())
		copy(want[100:], "changed")
		require.Equal(t, want, content(t, d.Crash(), "/d/a"))
	}
}

// TestUnsyncedSectorsAreOldOrNew checks that both happen, to each sector on its own, and nothing else.
func TestUnsyncedSectorsAreOldOrNew(t *testing.T) {
	patterns := map[int]bool{}
	for seed := range uint64(400) {
		d := newDisk(t, seed)
		f := synced(t, d, "/d/a", bytes.Repeat([]byte{1}, 3*SectorSize))
		write(t, f, 0, bytes.Repeat([]byte{2}, 3*SectorSize))
		got := content(t, d.Crash(), "/d/a")
		pattern := 0
		for s := range 3 {
			sector := got[s*SectorSize : (s+1)*SectorSize]
			require.Equal(t, bytes.Repeat(sector[:1], SectorSize), sector, "a sector is never a mixture")
			if sector[0] == 2 {
				pattern |= 1 << s
			}
		}
		patterns[pattern] = true
	}
	require.Len(t, patterns, 8, "every subset of the sectors can survive")
}

func TestUnsyncedLengthMayOrMayNotSurvive(t *testing.T) {
	sizes := map[int]bool{}
	for seed := range uint64(100) {
		d := newDisk(t, seed)
		f := synced(t, d, "/d/a", make([]byte, 1000))
		write(t, f, 1000, make([]byte, 500))
		require.NoError(t, f.Truncate(200))
		sizes[len(content(t, d.Crash(), "/d/a"))] = true
	}
	require.Equal(t, map[int]bool{1000: true, 1500: true, 200: true}, sizes)
}

func TestTruncatedBytesReadAsZerosWhenTheFileGrowsAgain(t *testing.T) {
	d := newDisk(t, 1)
	f := synced(t, d, "/d/a", bytes.Repeat([]byte{9}, 700))
	require.NoError(t, f.Truncate(300))
	require.NoError(t, f.Truncate(700))
	require.NoError(t, f.Sync())
	want := append(bytes.Repeat([]byte{9}, 300), make([]byte, 400)...)
	require.Equal(t, want, content(t, d, "/d/a"))
	require.Equal(t, want, content(t, d.Crash(), "/d/a"))
}

// TestDirectoryChangesSurviveInOrder checks create, rename and remove: any number of the first ones survives.
func TestDirectoryChangesSurviveInOrder(t *testing.T) {
	seen := map[string]bool{}
	for seed := range uint64(200) {
		d := newDisk(t, seed)
		synced(t, d, "/d/old", []byte("x"))
		f, err := d.Create("/d/new.tmp")
		require.NoError(t, err)
		require.NoError(t, f.Sync())
		require.NoError(t, d.Rename("/d/new.tmp", "/d/new"))
		require.NoError(t, d.Remove("/d/old"))
		names, err := d.Crash().List("/d")
		require.NoError(t, err)
		state := ""
		for _, n := range names {
			state += n + " "
		}
		seen[state] = true
	}
	require.Equal(t, map[string]bool{"old ": true, "new.tmp old ": true, "new old ": true, "new ": true}, seen)
}

func TestSyncDirMakesNamesDurable(t *testing.T) {
	for seed := range uint64(30) {
		d := newDisk(t, seed)
		synced(t, d, "/d/tmp", []byte("x"))
		require.NoError(t, d.Rename("/d/tmp", "/d/final"))
		require.NoError(t, d.SyncDir("/d"))
		names, err := d.Crash().List("/d")
		require.NoError(t, err)
		require.Equal(t, []string{"final"}, names)
	}
}

func TestOldHandlesAndLocksEndWithTheCrash(t *testing.T) {
	d := newDisk(t, 1)
	f := synced(t, d, "/d/a", []byte("x"))
	_, err := d.Lock("/d/LOCK")
	require.NoError(t, err)
	_, err = d.Lock("/d/LOCK")
	require.ErrorIs(t, err, ErrLocked)
	after := d.Crash()
	_, err = f.WriteAt([]byte("y"), 0)
	require.ErrorIs(t, err, ErrCrashed)
	require.ErrorIs(t, f.Sync(), ErrCrashed)
	_, err = d.Open("/d/a")
	require.ErrorIs(t, err, ErrCrashed)
	lock, err := after.Lock("/d/LOCK")
	require.NoError(t, err)
	require.NoError(t, lock.Close())
}

func TestFailFromStopsEverythingAndLeavesOneOperationInDoubt(t *testing.T) {
	outcomes := map[string]bool{}
	for seed := range uint64(50) {
		d := newDisk(t, seed)
		f := synced(t, d, "/d/a", []byte("old"))
		d.FailFrom(d.Ops())
		_, err := f.WriteAt([]byte("new"), 0)
		require.ErrorIs(t, err, ErrCrashed)
		_, err = f.ReadAt(make([]byte, 1), 0)
		require.ErrorIs(t, err, ErrCrashed)
		require.ErrorIs(t, d.Remove("/d/a"), ErrCrashed)
		outcomes[string(content(t, d.Crash(), "/d/a"))] = true
	}
	require.Equal(t, map[string]bool{"old": true, "new": true}, outcomes)
}

// TestFailedSyncLosesDataForGood: the second sync succeeds without writing what the first one lost.
func TestFailedSyncLosesDataForGood(t *testing.T) {
	lost := false
	for seed := range uint64(50) {
		d := newDisk(t, seed)
		f := synced(t, d, "/d/a", []byte("old"))
		write(t, f, 0, []byte("new"))
		d.SetFault(func(op Op) error {
			if op.Kind == OpSync {
				return ErrIO
			}
			return nil
		})
		require.ErrorIs(t, f.Sync(), ErrIO)
		d.SetFault(nil)
		require.Equal(t, []byte("new"), content(t, d, "/d/a"))
		require.NoError(t, f.Sync())
		lost = lost || string(content(t, d.Crash(), "/d/a")) == "old"
	}
	require.True(t, lost)
}

func TestSpaceRunsOutAndComesBack(t *testing.T) {
	d := newDisk(t, 1)
	f := synced(t, d, "/d/a", make([]byte, 100))
	d.SetSpace(10)
	write(t, f, 50, make([]byte, 50)) // within the file: no space needed
	n, err := f.WriteAt(make([]byte, 30), 90)
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.True(t, IsFull(err))
	require.Equal(t, 20, n)
	require.True(t, IsFull(f.Truncate(1000)))
	require.NoError(t, d.Remove("/d/a"))
	g, err := d.Create("/d/b")
	require.NoError(t, err)
	write(t, g, 0, make([]byte, 110))
}

func TestFaultsOnReadsAndShortWrites(t *testing.T) {
	d := newDisk(t, 1)
	f := synced(t, d, "/d/a", []byte("0123456789"))
	d.SetFault(func(op Op) error {
		switch {
		case op.Kind == OpRead && op.Offset == 5:
			return ErrIO
		case op.Kind == OpWrite:
			return ShortWrite{N: 2}
		}
		return nil
	})
	_, err := f.ReadAt(make([]byte, 1), 5)
	require.ErrorIs(t, err, ErrIO)
	n, err := f.WriteAt([]byte("abcd"), 0)
	require.ErrorAs(t, err, &ShortWrite{})
	require.Equal(t, 2, n)
	d.SetFault(nil)
	require.Equal(t, []byte("ab23456789"), content(t, d, "/d/a"))
}

func TestCloneSharesNothing(t *testing.T) {
	d := newDisk(t, 1)
	f := synced(t, d, "/d/a", []byte("one"))
	c := d.Clone()
	write(t, f, 0, []byte("two"))
	require.NoError(t, d.Rename("/d/a", "/d/b"))
	require.Equal(t, []byte("one"), content(t, c, "/d/a"))
	require.NoError(t, c.Flip("/d/a", 0, 1))
	require.Equal(t, []byte("two"), content(t, d, "/d/b"))
}

// TestSameSeedSameCrash: everything follows from the seed and the order of calls.
func TestSameSeedSameCrash(t *testing.T) {
	images := [2][]byte{}
	for i := range images {
		d := newDisk(t, 42)
		f := synced(t, d, "/d/a", nil)
		for at := range 20 {
			write(t, f, int64(at*700), bytes.Repeat([]byte{byte(at + 1)}, 900))
		}
		images[i] = content(t, d.Crash(), "/d/a")
	}
	require.Equal(t, images[0], images[1])
}

func TestDamage(t *testing.T) {
	d := newDisk(t, 1)
	synced(t, d, "/d/a", make([]byte, 100))
	require.NoError(t, d.Corrupt("/d/a", 10, 50))
	require.NotEqual(t, make([]byte, 100), content(t, d, "/d/a"))
	require.NoError(t, d.Zero("/d/a", 10, 50))
	require.Equal(t, make([]byte, 100), content(t, d.Crash(), "/d/a"))
	require.Error(t, d.Flip("/d/a", 100, 1))
	require.ErrorIs(t, d.Flip("/d/none", 0, 1), fs.ErrNotExist)
}

// TestBothFileSystemsAgree runs the same calls on files and on the simulated disk.
func TestBothFileSystemsAgree(t *testing.T) {
	for name, fsys := range map[string]FS{"files": OS{}, "simulated disk": New(1)} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir() + "/x/y"
			require.NoError(t, fsys.MkdirAll(dir))
			require.NoError(t, fsys.MkdirAll(dir))
			info, err := fsys.Stat(dir)
			require.NoError(t, err)
			require.True(t, info.IsDir())
			require.Equal(t, fs.ModeDir|0o700, info.Mode())

			_, err = fsys.Open(dir + "/a")
			require.ErrorIs(t, err, fs.ErrNotExist)
			_, err = fsys.OpenWrite(dir + "/a")
			require.ErrorIs(t, err, fs.ErrNotExist)
			_, err = fsys.Create(dir + "/none/a")
			require.ErrorIs(t, err, fs.ErrNotExist)
			require.ErrorIs(t, fsys.Remove(dir+"/a"), fs.ErrNotExist)
			require.ErrorIs(t, fsys.Rename(dir+"/a", dir+"/b"), fs.ErrNotExist)
			_, err = fsys.List(dir + "/none")
			require.ErrorIs(t, err, fs.ErrNotExist)

			f, err := fsys.Create(dir + "/a")
			require.NoError(t, err)
			_, err = f.Write([]byte("hello "))
			require.NoError(t, err)
			_, err = f.Write([]byte("world"))
			require.NoError(t, err)
			write(t, f, 20, []byte("!"))
			require.NoError(t, f.Sync())
			require.NoError(t, f.Truncate(11))
			require.NoError(t, f.Close())
			require.ErrorIs(t, f.Close(), fs.ErrClosed)
			require.NoError(t, fsys.SyncDir(dir))
			require.Equal(t, []byte("hello world"), content(t, fsys, dir+"/a"))
			info, err = fsys.Stat(dir + "/a")
			require.NoError(t, err)
			require.Equal(t, fs.FileMode(0o600), info.Mode())
			require.EqualValues(t, 11, info.Size())

			r, err := fsys.Open(dir + "/a")
			require.NoError(t, err)
			_, err = r.WriteAt([]byte("x"), 0)
			require.Error(t, err)
			b := make([]byte, 6)
			_, err = r.Read(b)
			require.NoError(t, err)
			require.Equal(t, "hello ", string(b))
			n, err := r.ReadAt(b, 8)
			require.Equal(t, 3, n)
			require.Error(t, err)
			require.NoError(t, r.Close())

			g, err := fsys.Create(dir + "/b")
			require.NoError(t, err)
			require.NoError(t, g.Close())
			require.NoError(t, fsys.Rename(dir+"/a", dir+"/b"))
			names, err := fsys.List(dir)
			require.NoError(t, err)
			require.Equal(t, []string{"b"}, names)
			require.Equal(t, []byte("hello world"), content(t, fsys, dir+"/b"))

			lock, err := fsys.Lock(dir + "/LOCK")
			require.NoError(t, err)
			_, err = fsys.Lock(dir + "/LOCK")
			require.ErrorIs(t, err, ErrLocked)
			require.NoError(t, lock.Close())
			lock, err = fsys.Lock(dir + "/LOCK")
			require.NoError(t, err)
			_, err = fsys.LockShared(dir + "/LOCK")
			require.ErrorIs(t, err, ErrLocked)
			require.NoError(t, lock.Close())

			first, err := fsys.LockShared(dir + "/LOCK")
			require.NoError(t, err)
			second, err := fsys.LockShared(dir + "/LOCK")
			require.NoError(t, err, "readers do not exclude each other")
			require.NoError(t, first.Close())
			_, err = fsys.Lock(dir + "/LOCK")
			require.ErrorIs(t, err, ErrLocked, "one reader is left")
			require.NoError(t, second.Close())
			lock, err = fsys.Lock(dir + "/LOCK")
			require.NoError(t, err)
			require.NoError(t, lock.Close())
		})
	}
}

// A program that writes while the power is cut has been told that its last sync succeeded, or not: what it was told stays true.
// Found by a test of whole clusters over a simulated disk, whose logs lost what they had acknowledged.
func TestNothingIsAcknowledgedAfterTheMomentOfACrash(t *testing.T) {
	for seed := range uint64(300) {
		d := New(seed)
		require.NoError(t, d.MkdirAll("/d"))
		f := synced(t, d, "/d/a", []byte{0})
		begun, last := make(chan struct{}), make(chan byte)
		var once sync.Once
		go func() {
			acknowledged := byte(0)
			for b := byte(1); ; b = b%250 + 1 {
				if b == 20 {
					once.Do(func() { close(begun) })
				}
				if _, err := f.WriteAt([]byte{b}, 0); err != nil {
					break
				}
				if err := f.Sync(); err != nil {
					break
				}
				acknowledged = b
			}
			last <- acknowledged
		}()
		<-begun
		after := d.Crash()
		want, got := <-last, content(t, after, "/d/a")[0]
		next := want%250 + 1
		require.Truef(t, got == want || got == next, "seed %d: %d was durable, %d is left", seed, want, got)
	}
}

// A killed process loses nothing that it wrote, and what it still has open is gone.
func TestKillKeepsContentAndEndsHandles(t *testing.T) {
	d := New(1)
	require.NoError(t, d.MkdirAll("/d"))
	f, err := d.Create("/d/a")
	require.NoError(t, err)
	_, err = f.Write([]byte("written, not synced"))
	require.NoError(t, err)
	_, err = d.Lock("/d/lock")
	require.NoError(t, err)

	after := d.Kill()
	require.Equal(t, "written, not synced", string(content(t, after, "/d/a")))
	_, err = after.Lock("/d/lock")
	require.NoError(t, err, "the lock ends with the process")
	_, err = f.WriteAt([]byte("W"), 0)
	require.ErrorIs(t, err, ErrCrashed)
	require.ErrorIs(t, f.Sync(), ErrCrashed)
	_, err = d.Open("/d/a")
	require.ErrorIs(t, err, ErrCrashed)
	require.Equal(t, "written, not synced", string(content(t, after, "/d/a")))
	require.NoError(t, f.Close())

	lost := false // what was not synced is still not synced
	for seed := range uint64(20) {
		c := after.Clone()
		c.Reseed(seed)
		if _, err := c.Crash().Open("/d/a"); err != nil {
			lost = true
		}
	}
	require.True(t, lost)
}

// What a crash says of itself is what has become of the files.
func TestCrashTellsItsOutcome(t *testing.T) {
	d := vfsWithUnsyncedFile(t)
	var seen CrashOutcome
	for seed := range uint64(200) {
		c := d.Clone()
		c.Reseed(seed)
		c = c.Crash()
		out := c.Outcome()
		seen.add(out)
		_, err := c.Stat("/renamed")
		require.Equal(t, err != nil, out.NamesLost > 0)
		require.Equal(t, 4, out.SectorsKept+out.SectorsOld+out.SectorsLost)
		require.Equal(t, out.SectorsLost > 0 && out.SectorsLost < 4, out.FilesTorn == 1)
		f, err := c.Open("/plain")
		require.NoError(t, err)
		b := make([]byte, 4*SectorSize)
		_, err = f.ReadAt(b, 0)
		require.NoError(t, err)
		var kept, old, lost int
		for i := range 4 {
			switch b[i*SectorSize] {
			case 2:
				kept++
			case 1:
				old++
			default:
				lost++
			}
		}
		require.Equal(t, []int{kept, old, lost}, []int{out.SectorsKept, out.SectorsOld, out.SectorsLost})
	}
	for _, n := range []int{seen.NamesLost, seen.SectorsKept, seen.SectorsOld, seen.SectorsLost, seen.FilesTorn} {
		require.NotZero(t, n)
	}
	require.Zero(t, New(1).Outcome())
}

// vfsWithUnsyncedFile has a file of four sectors that were written twice since the last sync, and one with a name that is not durable.
func vfsWithUnsyncedFile(t *testing.T) *Disk {
	d := New(1)
	f, err := d.Create("/plain")
	require.NoError(t, err)
	_, err = f.WriteAt(make([]byte, 4*SectorSize), 0)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	_, err = d.Create("/old")
	require.NoError(t, err)
	require.NoError(t, d.SyncDir("/"))
	for _, content := range []byte{1, 2} {
		_, err = f.WriteAt(bytes.Repeat([]byte{content}, 4*SectorSize), 0)
		require.NoError(t, err)
	}
	require.NoError(t, d.Rename("/old", "/renamed"))
	return d
}
