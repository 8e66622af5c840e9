package wal

import (
	"bytes"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/keyring"
	"github.com/steadyraft/raft/storage/vfs"
)

// Keys that do not go with a directory are refused, with a typed error, and nothing is written.
func TestKeysThatDoNotFitAreRefusedBeforeAnythingIsWritten(t *testing.T) {
	encrypted, clear := newImageFS(nil), newImageFS(nil)
	secretServer(t, encryptedOptions(encrypted, ring(1)))
	secretServer(t, smallOptions(clear))
	wrong := ring(1)
	wrong.Keys = map[uint32][keyring.KeySize]byte{1: ring(2).Keys[2]}
	without := func(img image, parts ...string) image { // of the log, of snapshots
		img = maps.Clone(img)
		maps.DeleteFunc(img, func(path string, _ []byte) bool {
			return slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(path, part) })
		})
		return img
	}
	mixed := without(encrypted.image(), "snapshots")
	for path, data := range clear.image() {
		if strings.HasSuffix(path, ".snapshot") {
			mixed[path] = data
		}
	}
	clearVote := without(encrypted.image(), "vote")
	clearVote["/data/vote"] = clear.image()["/data/vote"]
	failing := errors.New("the ring is out of reach")
	for _, c := range []struct {
		name string
		img  image
		ring keyring.Ring
		err  error
		path string
	}{
		{"wrong key", encrypted.image(), wrong, keyring.ErrWrong, "/data/vote"},
		{"wrong key, no vote file", without(encrypted.image(), "vote"), wrong, keyring.ErrWrong, ".wal"},
		{"missing key", encrypted.image(), keyring.Static{CurrentID: 2, Keys: map[uint32][keyring.KeySize]byte{2: {}}}, keyring.ErrMissing, "/data/vote"},
		{"missing key, no vote file", without(encrypted.image(), "vote"),
			keyring.Static{CurrentID: 2, Keys: map[uint32][keyring.KeySize]byte{2: {}}}, keyring.ErrMissing, ".wal"},
		{"no keys", encrypted.image(), nil, keyring.ErrNoKeys, "/data/vote"},
		{"no keys, no vote file", without(encrypted.image(), "vote"), nil, keyring.ErrNoKeys, ".wal"},
		{"keys for a log in the clear", clear.image(), ring(1), keyring.ErrClear, "/data/vote"},
		{"keys for a log in the clear, no vote file", without(clear.image(), "vote"), ring(1), keyring.ErrClear, ".wal"},
		{"a vote in the clear", clearVote, ring(1), keyring.ErrClear, "/data/vote"},
		{"a snapshot in the clear", mixed, ring(1), keyring.ErrClear, ".snapshot"},
		{"no keys, only snapshots", without(encrypted.image(), "vote", ".wal"), nil, keyring.ErrNoKeys, ".snapshot"},
		{"wrong key, only snapshots", without(encrypted.image(), "vote", ".wal"), wrong, keyring.ErrWrong, ".snapshot"},
		{"no current key", encrypted.image(), keyring.Static{Keys: ring(1).Keys}, nil, ""},
		{"a ring that fails", encrypted.image(), failingRing{ring(1), failing}, failing, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := newImageFS(c.img)
			_, err := New("/data", encryptedOptions(disk, c.ring)).Open(ctx, identity)
			require.Error(t, err)
			require.Zero(t, disk.writes, "nothing was written: %v", err)
			require.Equal(t, c.img, disk.image())
			if c.path != "" {
				var mismatch *keyring.Error
				require.ErrorAs(t, err, &mismatch)
				require.ErrorIs(t, mismatch, c.err)
				require.Contains(t, mismatch.Path, c.path)
				require.Contains(t, err.Error(), ";", "what to do is said")
			} else if c.err != nil {
				require.ErrorIs(t, err, c.err)
			}
		})
	}
}

type failingRing struct {
	keyring.Static
	err error
}

func (r failingRing) Current() (uint32, [keyring.KeySize]byte, error) {
	return 0, [keyring.KeySize]byte{}, r.err
}

// A directory that was written without keys is taken over when it is said so. What is there is read; what is written is encrypted; when
// the old is gone, KeyUse says so, and the word is no longer needed.
func TestExistingLogIsEncryptedWhenToldSo(t *testing.T) {
	disk := newImageFS(nil)
	want := secretServer(t, smallOptions(disk))
	opts := encryptedOptions(disk, ring(1))
	opts.EncryptExisting = true
	w := New("/data", opts)
	rec := mustOpen(t, w)
	requireSecrets(t, w, &rec, want)
	for i := raft.Index(41); i < 80; i++ {
		require.NoError(t, w.Write(raft.Batch{Entries: []raft.Entry{entry(i, 2, raft.EntryCommand, bytes.Repeat([]byte(marker), 40))}}))
	}
	uses, err := KeyUse(disk, "/data")
	require.NoError(t, err)
	require.Len(t, uses, 2)
	require.Zero(t, uses[0].ID)
	require.Positive(t, uses[0].Segments)
	require.Equal(t, 2, uses[0].Snapshots)

	for _, index := range []raft.Index{60, 70} {
		secretSnapshot(t, w, index, true)
	}
	require.NoError(t, w.Compact(70))
	reopen(t, w) // writes the vote file once more
	uses, err = KeyUse(disk, "/data")
	require.NoError(t, err)
	require.Len(t, uses, 1, "%+v", uses)
	require.EqualValues(t, 1, uses[0].ID)
	require.NoError(t, w.Close())
	for path, data := range disk.image() {
		require.NotContains(t, string(data), marker, path)
	}
	opts.EncryptExisting = false
	rec = mustOpen(t, New("/data", opts))
	require.EqualValues(t, 79, rec.LastIndex)
}

// turningRing is a ring on which an operator turns.
type turningRing struct {
	mu   sync.Mutex
	ring keyring.Static
	err  error
}

func (r *turningRing) Current() (uint32, [keyring.KeySize]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return 0, [keyring.KeySize]byte{}, r.err
	}
	return r.ring.Current()
}

func (r *turningRing) Key(id uint32) ([keyring.KeySize]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ring.Key(id)
}

func (r *turningRing) set(s keyring.Static, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ring, r.err = s, err
}

// Keys are replaced while the log is written and read; each restart finds everything. A key that KeyUse does not name any more can be
// taken off the ring, one that it names cannot.
func TestKeysAreReplacedUnderLoad(t *testing.T) {
	dir := t.TempDir()
	keys := &turningRing{ring: ring(1)}
	opts := Options{MinSegmentBytes: 16 << 10, MaxSegmentBytes: 32 << 10, Keys: keys}
	w := New(dir, opts)
	mustOpen(t, w)
	const each, last = 60, 6
	next := raft.Index(1)
	for n := uint32(1); n <= last; n++ {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		if next > 1 {
			until := next
			for reader := range 2 {
				wg.Go(func() {
					for at := raft.Index(1); ; at = at%(until-1) + 1 {
						select {
						case <-stop:
							return
						default:
						}
						es, err := w.Entries(at, until, 20<<10*(reader+1))
						if err != nil || string(es[0].Frame()) != string(commands(at, 1, 1, 700)[0].Frame()) {
							t.Errorf("entry %d: %v", at, err)
							return
						}
					}
				})
			}
		}
		keys.set(ring(n), nil)
		for range each {
			require.NoError(t, w.Write(raft.Batch{HardState: &raft.HardState{CurrentTerm: raft.Term(n)}, Entries: commands(next, 1, 1, 700)}))
			next++
		}
		require.NoError(t, w.Write(raft.Batch{}))
		close(stop)
		wg.Wait()
		if n%2 == 0 {
			require.Equal(t, next-1, reopen(t, w).LastIndex)
		}
	}
	uses, err := KeyUse(vfs.OS{}, dir)
	require.NoError(t, err)
	require.Len(t, uses, last, "%+v", uses)
	require.Equal(t, KeyUses{ID: last, Segments: uses[last-1].Segments, Votes: 4}, uses[last-1])

	// A ring that does not answer keeps nobody from writing.
	keys.set(ring(last), errors.New("the file is gone"))
	for range each {
		require.NoError(t, w.Write(raft.Batch{Entries: commands(next, 1, 6, 700)}))
		next++
	}
	keys.set(ring(last), nil)

	require.NoError(t, w.Compact(next-1))
	reopen(t, w)
	uses, err = KeyUse(vfs.OS{}, dir)
	require.NoError(t, err)
	require.Len(t, uses, 1)
	require.EqualValues(t, last, uses[0].ID)
	only := ring(last)
	only.Keys = map[uint32][keyring.KeySize]byte{last: only.Keys[last]}
	keys.set(only, nil)
	require.Equal(t, next-1, reopen(t, w).LastIndex)
	only.Keys = map[uint32][keyring.KeySize]byte{1: ring(1).Keys[1]}
	only.CurrentID = 1
	keys.set(only, nil)
	require.NoError(t, w.Close())
	_, err = w.Open(ctx, identity)
	require.ErrorIs(t, err, keyring.ErrMissing)
}

// A restart under a new key leaves nothing of the vote file to the old one, not even the generation before.
func TestVoteFileTakesTheNewKeyAsAWhole(t *testing.T) {
	disk := newImageFS(nil)
	w := New("/data", encryptedOptions(disk, ring(1)))
	mustOpen(t, w)
	for term := raft.Term(1); term < 4; term++ {
		require.NoError(t, w.Write(raft.Batch{HardState: &raft.HardState{CurrentTerm: term}, Entries: commands(raft.Index(term), 1, term, 100)}))
	}
	require.NoError(t, w.Close())
	w = New("/data", encryptedOptions(disk, ring(2)))
	mustOpen(t, w)
	uses, err := KeyUse(disk, "/data")
	require.NoError(t, err)
	require.Equal(t, []KeyUses{{ID: 1, Segments: 1}, {ID: 2, Segments: 1, Votes: 4}}, uses)
	require.NoError(t, w.Close())
}
