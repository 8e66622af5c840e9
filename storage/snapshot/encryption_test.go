package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/internal/seal"
	"github.com/steadyraft/raft/storage/keyring"
	"github.com/steadyraft/raft/storage/storagetest"
	"github.com/steadyraft/raft/storage/vfs"
)

func ring(n uint32) keyring.Static {
	s := keyring.Static{CurrentID: n, Keys: map[uint32][keyring.KeySize]byte{}}
	for id := uint32(1); id <= n; id++ {
		s.Keys[id] = [keyring.KeySize]byte{byte(id), 1, 2, 3}
	}
	return s
}

func openEncrypted(t *testing.T, fsys vfs.FS, r keyring.Ring) *Store {
	t.Helper()
	s, err := New(fsys, dir, Options{ChunkBytes: 64, Keys: r})
	require.NoError(t, err)
	return s
}

func TestConformanceEncrypted(t *testing.T) {
	storagetest.RunSnapshots(t, func(t *testing.T) raft.SnapshotStore {
		s, err := New(vfs.OS{}, filepath.Join(t.TempDir(), "snapshots"), Options{Keys: ring(1)})
		require.NoError(t, err)
		return s
	})
}

// Contents of every length around that of a chunk come back, and nothing of them is in a file.
func TestEncryptedContentsOfEveryLength(t *testing.T) {
	secret := bytes.Repeat([]byte("a secret"), 40)
	for n := 0; n <= 200; n++ {
		fsys := newMemFS()
		s := openEncrypted(t, fsys, ring(1))
		put(t, s, 1, secret[:n])
		data := fsys.files[s.path(1)].data
		require.NotContains(t, string(data), "a secret")
		require.NotContains(t, string(data), "10.0.0.1", "nor the configuration")
		meta, got, err := read(t, openEncrypted(t, fsys, ring(1)), 1)
		require.NoError(t, err)
		require.Equal(t, secret[:n], got)
		require.Equal(t, "10.0.0.1:1", meta.Configuration.Servers[0].Address)
		all, err := Verify(t.Context(), fsys, dir, Options{Keys: ring(1)})
		require.NoError(t, err)
		require.Nil(t, all[0].Damage)
	}
}

// fixChecksums makes all checksums of an encrypted file match what is in it.
func fixChecksums(b []byte) {
	le := binary.LittleEndian
	start := fixedHeaderSize + sealedHeaderSize + int(le.Uint32(b[16:])) + checksumSize
	if start > len(b) {
		return
	}
	seed := crc32.Checksum(b[:start-checksumSize], castagnoli)
	le.PutUint32(b[start-checksumSize:], seed)
	content, at := uint32(0), start
	for number := uint64(0); ; number++ {
		if at+chunkHeaderSize > len(b) || at == len(b)-trailerSize-seal.Overhead {
			break
		}
		n := int(le.Uint32(b[at:])) + seal.Overhead
		if at+chunkHeaderSize+n > len(b) {
			return
		}
		data := b[at+chunkHeaderSize:][:n]
		le.PutUint32(b[at+4:], chunkChecksum(seed, number, data))
		content = crc32.Update(content, castagnoli, data)
		at += chunkHeaderSize + n
	}
	if end := len(b) - trailerSize - seal.Overhead; at == end {
		le.PutUint32(b[end+12:], content)
		le.PutUint32(b[len(b)-checksumSize:], crc32.Update(seed, castagnoli, b[end:len(b)-checksumSize]))
	}
}

// Every bit is flipped, and then all checksums made to match: the first is damage and the second tampering, but where a length, the
// format or what names the key is hit. Never is a byte handed out that was not written.
func TestRotAndForgeryAreToldApart(t *testing.T) {
	want := content(200)
	fsys := newMemFS()
	s := openEncrypted(t, fsys, ring(1))
	put(t, s, 1, []byte("older"))
	put(t, s, 2, want)
	whole := bytes.Clone(fsys.files[s.path(2)].data)
	start := fixedHeaderSize + sealedHeaderSize + int(binary.LittleEndian.Uint32(whole[16:])) + checksumSize
	try := func(b []byte) (tampered bool, err error) {
		fsys.put(s.path(2), b)
		_, data, err := read(t, openEncrypted(t, fsys, ring(1)), 2)
		require.True(t, bytes.HasPrefix(want, data))
		if err == nil {
			require.Equal(t, want, data)
			return false, nil
		}
		require.Less(t, len(data), len(want))
		var damage *raft.CorruptionError
		return errors.As(err, &damage) && damage.Tampered, err
	}
	told := 0
	for bit := range len(whole) * 8 {
		b, at := bytes.Clone(whole), bit/8
		b[at] ^= 1 << (bit % 8)
		what := fmt.Sprintf("bit %d of byte %d", bit%8, at)
		tampered, err := try(b)
		require.Error(t, err, what)
		require.False(t, tampered, what)
		require.ErrorAs(t, err, new(*raft.CorruptionError), what)

		fixChecksums(b)
		tampered, err = try(b)
		switch length := (at - start) % (chunkHeaderSize + 64 + seal.Overhead); {
		case bytes.Equal(b, whole):
			require.NoError(t, err, what)
		case at < 12, at >= 16 && at < 20: // format, length of the description
			require.Error(t, err, what)
		case at >= fixedHeaderSize && at < fixedHeaderSize+4+seal.CheckSize, at >= fixedHeaderSize+4+seal.CheckSize+8 && at < fixedHeaderSize+sealedHeaderSize:
			if !tampered { // key ID, what names the key, salt: as if the key were another one
				require.ErrorAs(t, err, new(*keyring.Error), what)
			}
		case at >= start && at < len(whole)-trailerSize-seal.Overhead && length < 4:
			require.Error(t, err, what) // length of a chunk
		case at >= 12 && at < 16 && err != nil && !tampered: // impossible chunk size
		default:
			require.True(t, tampered, "%s: %v", what, err)
			told++
		}
	}
	require.Greater(t, told, 2000)
}

// Chunks that change places, are left out, come twice or from another snapshot, and a file that is cut off, with all lengths and
// checksums made to match, are noticed before their content is handed out.
func TestForgedOrderIsNoticed(t *testing.T) {
	want := content(256) // four full chunks
	fsys := newMemFS()
	s := openEncrypted(t, fsys, ring(1))
	put(t, s, 1, want)
	put(t, s, 2, want)
	other := bytes.Clone(fsys.files[s.path(1)].data)
	whole := bytes.Clone(fsys.files[s.path(2)].data)
	start := fixedHeaderSize + sealedHeaderSize + int(binary.LittleEndian.Uint32(whole[16:])) + checksumSize
	const step = chunkHeaderSize + 64 + seal.Overhead
	trailer := whole[start+4*step:]
	chunk := func(b []byte, n int) []byte { return b[start+n*step:][:step] }
	build := func(size int, chunks ...[]byte) []byte {
		b := append(bytes.Clone(whole[:start]), bytes.Join(chunks, nil)...)
		b = append(b, trailer...)
		binary.LittleEndian.PutUint64(b[len(b)-len(trailer)+4:], uint64(size))
		fixChecksums(b)
		return b
	}
	c := func(n int) []byte { return chunk(whole, n) }
	for name, b := range map[string][]byte{
		"swapped":              build(256, c(1), c(0), c(2), c(3)),
		"last in the middle":   build(256, c(0), c(1), c(3), c(2)),
		"cut off":              build(192, c(0), c(1), c(2)),
		"empty":                build(0),
		"left out":             build(192, c(0), c(1), c(3)),
		"twice":                build(320, c(0), c(0), c(1), c(2), c(3)),
		"of another snapshot":  build(256, c(0), chunk(other, 1), c(2), c(3)),
		"all but the header's": build(256, chunk(other, 0), chunk(other, 1), chunk(other, 2), chunk(other, 3)),
	} {
		fsys.put(s.path(2), b)
		_, data, err := read(t, openEncrypted(t, fsys, ring(1)), 2)
		var damage *raft.CorruptionError
		require.ErrorAs(t, err, &damage, name)
		require.True(t, damage.Tampered, "%s: %v", name, err)
		require.True(t, bytes.HasPrefix(want, data), name)
	}
	fsys.put(s.path(2), build(256, c(0), c(1), c(2), c(3)))
	_, data, err := read(t, openEncrypted(t, fsys, ring(1)), 2)
	require.NoError(t, err)
	require.Equal(t, want, data)

	fsys.put(s.path(2), whole)
	theirs, err := New(fsys, dir, Options{Keys: ring(1), Owner: 5})
	require.NoError(t, err)
	_, _, err = theirs.Open(2)
	require.ErrorContains(t, err, "it is a snapshot of replica 0, and this is replica 5")
}

// A new snapshot takes the current key, older ones are read with theirs; KeyIDs says what is needed.
func TestKeysOfSnapshotsAreReplaced(t *testing.T) {
	fsys := newMemFS()
	for n := uint32(1); n <= 3; n++ {
		put(t, openEncrypted(t, fsys, ring(n)), raft.Index(n), content(100))
	}
	counts, err := KeyIDs(fsys, dir)
	require.NoError(t, err)
	require.Equal(t, map[uint32]int{2: 1, 3: 1}, counts) // the two newest are kept
	keys := ring(3)
	delete(keys.Keys, 1)
	s := openEncrypted(t, fsys, keys)
	require.NoError(t, CheckKeys(fsys, dir, Options{Keys: keys}))
	for index := raft.Index(2); index <= 3; index++ {
		_, data, err := read(t, s, index)
		require.NoError(t, err)
		require.Equal(t, content(100), data)
	}
	delete(keys.Keys, 2)
	require.ErrorIs(t, CheckKeys(fsys, dir, Options{Keys: keys}), keyring.ErrMissing)
	require.ErrorIs(t, CheckKeys(fsys, dir, Options{}), keyring.ErrNoKeys)
	_, _, err = openEncrypted(t, fsys, keys).Open(2)
	require.ErrorIs(t, err, keyring.ErrMissing)
	counts, err = KeyIDs(fsys, "none")
	require.NoError(t, err)
	require.Empty(t, counts)
}

// Snapshots in the clear are read beside keys only when that is asked for, and a key that does not fit is not taken for damage: an older
// snapshot would hide the mistake.
func TestSnapshotsInTheClearAreRefusedWithKeys(t *testing.T) {
	fsys := newMemFS()
	put(t, openEncrypted(t, fsys, ring(1)), 1, content(100))
	put(t, open(t, fsys), 2, content(100))
	require.ErrorIs(t, CheckKeys(fsys, dir, Options{Keys: ring(1)}), keyring.ErrClear)
	_, err := openEncrypted(t, fsys, ring(1)).Latest()
	require.ErrorIs(t, err, keyring.ErrClear)
	opts := Options{Keys: ring(1), EncryptExisting: true}
	require.NoError(t, CheckKeys(fsys, dir, opts))
	s, err := New(fsys, dir, opts)
	require.NoError(t, err)
	require.EqualValues(t, 2, latest(t, s))
	_, data, err := read(t, s, 2)
	require.NoError(t, err)
	require.Equal(t, content(100), data)

	wrong := keyring.Static{CurrentID: 1, Keys: map[uint32][keyring.KeySize]byte{1: {}}}
	_, _, err = openEncrypted(t, fsys, wrong).Open(1)
	require.ErrorIs(t, err, keyring.ErrWrong)
	_, err = openEncrypted(t, fsys, keyring.Static{}).Create(describe(3, -1))
	require.Error(t, err)
}

// The power fails at every operation; what has a snapshot's name is whole, and nothing in the clear is left.
func TestPowerFailureWithEncryption(t *testing.T) {
	for k := 0; ; k++ {
		disk := vfs.New(uint64(k))
		disk.FailFrom(k)
		opts := Options{ChunkBytes: 700, Keys: ring(1)}
		s, err := New(disk, dir, opts)
		for index := raft.Index(1); err == nil && index <= 3; index++ {
			err = take(s, index)
		}
		done := err == nil
		after := disk.Crash()
		s, err = New(after, dir, opts)
		require.NoError(t, err)
		names, err := after.List(dir)
		require.NoError(t, err)
		for _, name := range names {
			index, ok := parseFileName(name)
			require.True(t, ok, name)
			_, r, err := s.Open(index)
			require.NoError(t, err)
			data, err := io.ReadAll(r)
			require.NoError(t, errors.Join(err, r.Close()))
			require.Equal(t, version(index), data)
		}
		if done {
			return
		}
	}
}
