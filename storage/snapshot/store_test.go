package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/keyring"
)

const dir = "data/snapshots"

func describe(index raft.Index, size int64) raft.SnapshotMeta {
	return raft.SnapshotMeta{
		Index: index, Term: 3, ConfigurationIndex: 1, Size: size,
		Configuration: raft.Configuration{ClusterID: "c", Servers: []raft.Server{{ID: "a", Address: "10.0.0.1:1"}, {ID: "b"}}},
	}
}

func content(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func open(t *testing.T, fsys *memFS) *Store {
	t.Helper()
	s, err := New(fsys, dir, Options{ChunkBytes: 64})
	require.NoError(t, err)
	return s
}

func put(t *testing.T, s *Store, index raft.Index, data []byte) raft.SnapshotMeta {
	t.Helper()
	k, err := s.Create(describe(index, -1))
	require.NoError(t, err)
	_, err = k.Write(data)
	require.NoError(t, err)
	meta, err := k.Commit()
	require.NoError(t, err)
	return meta
}

func read(t *testing.T, s *Store, index raft.Index) (raft.SnapshotMeta, []byte, error) {
	t.Helper()
	meta, r, err := s.Open(index)
	if err != nil {
		return meta, nil, err
	}
	data, err := io.ReadAll(r)
	require.NoError(t, r.Close())
	return meta, data, err
}

func latest(t *testing.T, s *Store) raft.Index {
	t.Helper()
	meta, err := s.Latest()
	require.NoError(t, err)
	return meta.Index
}

// filesIn returns the names of all files below the store's directory.
func filesIn(t *testing.T, fsys *memFS) []string {
	t.Helper()
	names, err := fsys.List(dir)
	require.NoError(t, err)
	return names
}

func TestContentOfEveryLengthComesBack(t *testing.T) {
	for _, n := range []int{0, 1, 63, 64, 65, 128, 1000} {
		fsys := newMemFS()
		s := open(t, fsys)
		for _, size := range []int64{-1, int64(n)} {
			k, err := s.Create(describe(9, size))
			require.NoError(t, err)
			_, err = io.Copy(k, iotest.OneByteReader(bytes.NewReader(content(n))))
			require.NoError(t, err)
			meta, err := k.Commit()
			require.NoError(t, err)
			require.Equal(t, describe(9, int64(n)), meta)

			meta, data, err := read(t, open(t, fsys), 9)
			require.NoError(t, err)
			require.Equal(t, describe(9, int64(n)), meta)
			require.True(t, bytes.Equal(content(n), data), "%d bytes", n)

			meta, r, err := s.Open(9)
			require.NoError(t, err)
			require.NoError(t, iotest.TestReader(r, content(n)))
			require.NoError(t, r.Close())
			require.EqualValues(t, n, meta.Size)
		}
	}
}

func TestNothingIsVisibleBeforeCommitNorAfterAbort(t *testing.T) {
	fsys := newMemFS()
	s := open(t, fsys)
	k, err := s.Create(describe(5, -1))
	require.NoError(t, err)
	_, err = k.Write(content(100))
	require.NoError(t, err)
	require.Zero(t, latest(t, s))
	_, _, err = s.Open(5)
	require.ErrorIs(t, err, fs.ErrNotExist)

	require.NoError(t, k.Abort())
	require.Zero(t, latest(t, s))
	require.Empty(t, filesIn(t, fsys))
	require.Error(t, k.Abort())
	_, err = k.Commit()
	require.Error(t, err)
	_, err = k.Write([]byte("x"))
	require.Error(t, err)
}

func TestTwoNewestAreKept(t *testing.T) {
	fsys := newMemFS()
	s := open(t, fsys)
	for i := raft.Index(1); i <= 5; i++ {
		put(t, s, i*100, content(int(i)))
	}
	require.EqualValues(t, 500, latest(t, s))
	require.Equal(t, []string{fileName(400), fileName(500)}, filesIn(t, fsys))

	put(t, s, 300, content(3)) // late: dropped at once
	require.Equal(t, []string{fileName(400), fileName(500)}, filesIn(t, fsys))
}

func TestDamagedSnapshotsDoNotCountAsKept(t *testing.T) {
	fsys := newMemFS()
	s := open(t, fsys)
	put(t, s, 100, content(100))
	put(t, s, 200, content(100))
	fsys.files[s.path(200)].data[0] ^= 1
	put(t, s, 300, content(100))
	require.Equal(t, []string{fileName(100), fileName(200), fileName(300)}, filesIn(t, fsys))
	put(t, s, 400, content(100))
	require.Equal(t, []string{fileName(300), fileName(400)}, filesIn(t, fsys))
}

func TestLeftoversAreRemovedAndNothingElse(t *testing.T) {
	fsys := newMemFS()
	s := open(t, fsys)
	put(t, s, 7, content(10))
	_, err := s.Create(describe(8, -1)) // the process dies before it ends
	require.NoError(t, err)
	_, err = fsys.Create(filepath.Join(dir, "notes.tmp"))
	require.NoError(t, err)
	require.Len(t, filesIn(t, fsys), 3)

	s = open(t, fsys)
	require.Equal(t, []string{fileName(7), "notes.tmp"}, filesIn(t, fsys))
	require.EqualValues(t, 7, latest(t, s))
}

func TestContentMustHaveTheAnnouncedLength(t *testing.T) {
	fsys := newMemFS()
	s := open(t, fsys)
	for _, n := range []int{0, 99, 101, 1000} {
		k, err := s.Create(describe(5, 100))
		require.NoError(t, err)
		_, writeErr := k.Write(content(n))
		if n > 100 {
			require.ErrorIs(t, writeErr, errTooLong)
		} else {
			require.NoError(t, writeErr)
		}
		_, err = k.Commit()
		require.ErrorContains(t, err, "announced")
		require.Zero(t, latest(t, s))
		require.Empty(t, filesIn(t, fsys))
	}
}

func TestImpossibleDescriptionsAreRefused(t *testing.T) {
	s := open(t, newMemFS())
	for name, change := range map[string]func(*raft.SnapshotMeta){
		"index":         func(m *raft.SnapshotMeta) { m.Index = 0 },
		"term":          func(m *raft.SnapshotMeta) { m.Term = 0 },
		"configuration": func(m *raft.SnapshotMeta) { m.Configuration.Servers = nil },
		"size":          func(m *raft.SnapshotMeta) { m.Size = -2 },
	} {
		meta := describe(5, -1)
		change(&meta)
		_, err := s.Create(meta)
		require.Error(t, err, name)
	}
	_, err := New(newMemFS(), dir, Options{ChunkBytes: 1})
	require.Error(t, err)
}

// SAFETY inv 24: no byte out of a damaged range is ever served. Every single byte of a file is damaged in turn, every length is
// cut to, and bytes are added: what a reader has handed out before its error is always a prefix of what was written.
func TestEveryDamageIsFound(t *testing.T) {
	want := content(200)
	fsys := newMemFS()
	s := open(t, fsys)
	put(t, s, 1, []byte("older"))
	put(t, s, 2, want)
	whole := bytes.Clone(fsys.files[s.path(2)].data)

	check := func(what string, damaged []byte) {
		fsys.put(s.path(2), damaged)
		s := open(t, fsys)
		_, data, err := read(t, s, 2)
		var damage *raft.CorruptionError
		require.ErrorAs(t, err, &damage, what)
		require.Equal(t, s.path(2), damage.Path)
		require.LessOrEqual(t, damage.Offset, int64(len(damaged)), what)
		require.True(t, bytes.HasPrefix(want, data), what)
		require.Less(t, len(data), len(want), what)
		require.EqualValues(t, 1, latest(t, s), what) // damage found by a reader is remembered
		_, _, err = s.Open(2)
		require.ErrorAs(t, err, &damage, what)
	}
	for i := range whole {
		for _, bit := range []byte{1, 0x80} {
			b := bytes.Clone(whole)
			b[i] ^= bit
			check(fmt.Sprintf("bit in byte %d", i), b)
		}
		check(fmt.Sprintf("cut to %d bytes", i), bytes.Clone(whole[:i]))
	}
	check("one byte longer", append(bytes.Clone(whole), 0))
	check("twice", append(bytes.Clone(whole), whole...))
	check("empty tail", append(bytes.Clone(whole[:len(whole)-trailerSize]), make([]byte, trailerSize)...))

	start := len(whole) - trailerSize - int(encodedSize(200, 64, 0))
	swapped := bytes.Clone(whole)
	step := chunkHeaderSize + 64
	copy(swapped[start:], whole[start+step:start+2*step])
	copy(swapped[start+step:], whole[start:start+step])
	check("chunks changed places", swapped)

	fsys.put(s.path(2), whole)
	_, data, err := read(t, open(t, fsys), 2)
	require.NoError(t, err)
	require.Equal(t, want, data)
}

func TestBytesOfAnotherSnapshotAreDamage(t *testing.T) {
	fsys := newMemFS()
	s := open(t, fsys)
	put(t, s, 1, content(200))
	put(t, s, 2, content(200))
	one, two := fsys.files[s.path(1)], fsys.files[s.path(2)]

	whole := bytes.Clone(two.data)
	two.data = bytes.Clone(one.data) // the right format under the wrong name
	_, _, err := open(t, fsys).Open(2)
	require.ErrorContains(t, err, "its name says 2")
	require.EqualValues(t, 1, latest(t, open(t, fsys)))

	two.data = bytes.Clone(whole)
	at := len(whole) - trailerSize - chunkHeaderSize
	copy(two.data[at:], one.data[at:]) // the same content, and a trailer that fits it
	require.EqualValues(t, 1, latest(t, open(t, fsys)))
}

// Checksums that match prove only that a file is as its writer meant it. What it says must still agree with itself.
func TestFilesThatContradictThemselves(t *testing.T) {
	file := func(announced int64, data []byte, size int64, sum uint32) []byte {
		b, seed := encodeHeader(describe(2, announced), 64, nil)
		if len(data) > 0 {
			b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
			b = binary.LittleEndian.AppendUint32(b, chunkChecksum(seed, 0, data))
			b = append(b, data...)
		}
		return append(b, encodeTrailer(seed, size, sum, nil)...)
	}
	data := []byte("content")
	sum := crc32.Checksum(data, castagnoli)
	for name, c := range map[string]struct {
		file []byte
		want string
	}{
		"sound":             {file(7, data, 7, sum), ""},
		"other size":        {file(8, data, 7, sum), "content of 7 bytes, but 8 were announced"},
		"other length":      {file(-1, data, 6, sum), "does not fit a content of 6"},
		"negative length":   {file(-1, data, -7, sum), "does not fit"},
		"huge length":       {file(-1, data, math.MaxInt64, sum), "does not fit"},
		"other content":     {file(-1, data, 7, sum+1), "whole content does not match"},
		"other no content":  {file(-1, nil, 0, 1), "whole content does not match"},
		"only a header":     {file(-1, nil, 0, 0)[:90], "damaged"},
		"nothing but zeros": {make([]byte, 500), "not a snapshot file"},
	} {
		fsys := newMemFS()
		s := open(t, fsys)
		fsys.files[s.path(2)] = &memFile{fs: fsys, path: s.path(2), data: c.file}
		_, got, err := read(t, s, 2)
		if c.want == "" {
			require.NoError(t, err, name)
			require.Equal(t, data, got)
			continue
		}
		require.ErrorContains(t, err, c.want, name)
		require.Empty(t, got, name)
	}
}

func TestUnreadableSectorIsDamage(t *testing.T) {
	fsys := newMemFS()
	s := open(t, fsys)
	put(t, s, 1, content(200))
	put(t, s, 2, content(200))
	fsys.failOn(func(op, path string) error {
		if op == "read" && strings.Contains(path, "2"+suffix) {
			return syscall.EIO
		}
		return nil
	})
	require.EqualValues(t, 1, latest(t, s))
}

// A directory that cannot be listed, or a file that cannot be opened for lack of descriptors, says nothing about the snapshots:
// answering with an older one would let a server start from the past.
func TestOtherTroubleIsNotTakenForDamage(t *testing.T) {
	fsys := newMemFS()
	s := open(t, fsys)
	put(t, s, 1, content(200))
	put(t, s, 2, content(200))
	for _, op := range []string{"list", "open"} {
		fsys.failOn(func(o, _ string) error {
			if o == op {
				return syscall.EMFILE
			}
			return nil
		})
		_, err := s.Latest()
		require.ErrorIs(t, err, syscall.EMFILE)
		fsys.failOn(nil)
		require.EqualValues(t, 2, latest(t, s))
	}
}

func TestFailedOperationsLeaveTheOldSnapshot(t *testing.T) {
	for _, op := range []string{"create", "write", "sync", "close", "rename", "syncdir"} {
		t.Run(op, func(t *testing.T) {
			fsys := newMemFS()
			s := open(t, fsys)
			put(t, s, 1, content(200))
			fsys.failOn(func(o, path string) error {
				if o == op && (op == "syncdir" || strings.Contains(path, fileName(2))) {
					return syscall.ENOSPC
				}
				return nil
			})
			k, err := s.Create(describe(2, -1))
			if err == nil {
				_, writeErr := k.Write(content(200))
				_, err = k.Commit()
				if op == "write" {
					require.Error(t, writeErr)
				}
			}
			require.ErrorIs(t, err, raft.ErrStorageFull)
			require.EqualValues(t, 1, latest(t, s))
			_, _, err = s.Open(2)
			require.Error(t, err)
			if op != "syncdir" {
				require.Equal(t, []string{fileName(1)}, filesIn(t, fsys))
			}

			fsys.failOn(nil)
			put(t, s, 2, content(200)) // there is room again
			require.EqualValues(t, 2, latest(t, s))
		})
	}
}

func TestOldSnapshotsThatCannotBeRemovedDoNotSpoilTheNewOne(t *testing.T) {
	fsys := newMemFS()
	s := open(t, fsys)
	put(t, s, 1, nil)
	put(t, s, 2, nil)
	fsys.failOn(func(op, _ string) error {
		if op == "remove" {
			return syscall.EPERM
		}
		return nil
	})
	put(t, s, 3, nil)
	require.Len(t, filesIn(t, fsys), 3)
	fsys.failOn(nil)
	put(t, s, 4, nil)
	require.Equal(t, []string{fileName(3), fileName(4)}, filesIn(t, fsys))
}

func TestReaderOutlivesItsSnapshot(t *testing.T) {
	fsys := newMemFS()
	s := open(t, fsys)
	put(t, s, 1, content(1000))
	_, r, err := s.Open(1)
	require.NoError(t, err)
	head := make([]byte, 10)
	_, err = io.ReadFull(r, head)
	require.NoError(t, err)
	put(t, s, 2, nil)
	put(t, s, 3, nil)
	_, _, err = s.Open(1)
	require.ErrorIs(t, err, fs.ErrNotExist)
	rest, err := io.ReadAll(r)
	require.NoError(t, err)
	require.Equal(t, content(1000), append(head, rest...))
	require.NoError(t, r.Close())
	require.Error(t, r.Close())
	_, err = r.Read(head)
	require.ErrorIs(t, err, fs.ErrClosed)
}

// What a reader finds out about a file that has been replaced since must not be held against its successor.
func TestDamageOfAReplacedFileIsNotHeldAgainstItsSuccessor(t *testing.T) {
	fsys := newMemFS()
	s := open(t, fsys)
	put(t, s, 1, content(100))
	_, r, err := s.Open(1)
	require.NoError(t, err)
	fsys.files[s.path(1)].data[200] ^= 1
	put(t, s, 1, content(100))
	_, err = io.ReadAll(r)
	require.Error(t, err)
	require.NoError(t, r.Close())
	require.EqualValues(t, 1, latest(t, s))
}

// A file that is damaged where only a reader looks does not stop the start after the next, and is there for the operator for as long as
// the snapshots of its time.
func TestDamagedContentIsSetAside(t *testing.T) {
	fsys := newMemFS()
	s := open(t, fsys)
	put(t, s, 100, content(100))
	put(t, s, 200, content(300))
	f := fsys.files[s.path(200)]
	f.data[len(f.data)-trailerSize-1] ^= 1
	s = open(t, fsys)
	require.EqualValues(t, 200, latest(t, s), "nothing is known yet")
	_, _, err := read(t, s, 200)
	require.ErrorContains(t, err, "when the server is started again")
	aside := fileName(200) + ".damaged"
	require.Equal(t, []string{fileName(100), aside}, filesIn(t, fsys))
	require.EqualValues(t, 100, latest(t, open(t, fsys)))

	s = open(t, fsys)
	put(t, s, 200, content(300))
	_, data, err := read(t, s, 200)
	require.NoError(t, err)
	require.Equal(t, content(300), data)
	put(t, s, 300, content(100))
	require.Equal(t, []string{fileName(200), aside, fileName(300)}, filesIn(t, fsys), "as old as one that is kept")
	put(t, s, 400, content(100))
	require.Equal(t, []string{fileName(300), fileName(400)}, filesIn(t, fsys))

	// Where that is not possible it is as it was: not used by this process.
	f = fsys.files[s.path(400)]
	f.data[len(f.data)-trailerSize-1] ^= 1
	fsys.failOn(func(op, _ string) error {
		if op == "rename" {
			return syscall.EROFS
		}
		return nil
	})
	_, _, err = read(t, s, 400)
	require.ErrorAs(t, err, new(*raft.CorruptionError))
	require.EqualValues(t, 300, latest(t, s))
	require.Equal(t, []string{fileName(300), fileName(400)}, filesIn(t, fsys))
}

func TestManyAtOnce(t *testing.T) {
	s := open(t, newMemFS())
	put(t, s, 1, content(500))
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 20 {
				k, err := s.Create(describe(raft.Index(2+i), -1))
				if !assert.NoError(t, err) {
					return
				}
				_, err = k.Write(content(500))
				assert.NoError(t, err)
				if (g+i)%3 == 0 {
					assert.NoError(t, k.Abort())
				} else {
					_, err = k.Commit()
					assert.NoError(t, err)
				}
				meta, err := s.Latest()
				assert.NoError(t, err)
				m, r, err := s.Open(meta.Index)
				if errors.Is(err, fs.ErrNotExist) {
					continue // two newer ones were committed in between
				}
				if !assert.NoError(t, err) {
					return
				}
				data, err := io.ReadAll(r)
				assert.NoError(t, err)
				assert.Equal(t, content(500), data)
				assert.EqualValues(t, 500, m.Size)
				assert.NoError(t, r.Close())
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 21, latest(t, s))
}

// No input from disk may panic, or allocate more than it holds.
func FuzzReadSnapshot(f *testing.F) {
	options := func(sealed bool) Options {
		o := Options{ChunkBytes: 16}
		if sealed {
			o.Keys = ring(1)
		}
		return o
	}
	for _, sealed := range []bool{false, true} {
		fsys := newMemFS()
		s, err := New(fsys, dir, options(sealed))
		require.NoError(f, err)
		for _, bytes := range []int{0, 40} {
			k, err := s.Create(describe(2, -1))
			require.NoError(f, err)
			_, err = k.Write(content(bytes))
			require.NoError(f, err)
			_, err = k.Commit()
			require.NoError(f, err)
			whole := fsys.files[s.path(2)].data
			f.Add(whole, sealed)
			f.Add(whole[:len(whole)/2], sealed)
			f.Add(whole, !sealed)
		}
	}
	f.Add([]byte(magic), false)
	f.Fuzz(func(t *testing.T, b []byte, sealed bool) {
		fsys := newMemFS()
		s, err := New(fsys, dir, options(sealed))
		require.NoError(t, err)
		h, err := fsys.Create(s.path(2))
		require.NoError(t, err)
		_, err = h.Write(b)
		require.NoError(t, err)
		meta, data, err := read(t, s, 2)
		if err == nil {
			require.EqualValues(t, meta.Size, len(data))
			return
		}
		var damage *raft.CorruptionError
		var key *keyring.Error
		require.True(t, errors.As(err, &damage) || errors.As(err, &key), "%v", err)
	})
}

// What is read again is verified again.
func TestReaderThatWasRewoundVerifiesAgain(t *testing.T) {
	fsys := newMemFS()
	s := open(t, fsys)
	put(t, s, 1, content(1000))
	_, r, err := s.Open(1)
	require.NoError(t, err)
	rewinder := r.(raft.Rewinder)
	_, err = io.ReadAll(r)
	require.NoError(t, err)
	require.NoError(t, rewinder.Rewind())
	fsys.files[s.path(1)].data[500] ^= 1
	_, err = io.ReadAll(r)
	var damage *raft.CorruptionError
	require.ErrorAs(t, err, &damage)
	require.NoError(t, r.Close())
	require.ErrorIs(t, rewinder.Rewind(), fs.ErrClosed)
}
