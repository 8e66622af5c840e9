package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/keyring"
	"github.com/steadyraft/raft/storage/storagetest"
	"github.com/steadyraft/raft/storage/vfs"
)

// testRing encrypts the logs of all tests that use smallOptions, while it is set.
var testRing keyring.Ring

func withKeys(t *testing.T) {
	t.Helper()
	testRing = ring(1)
	t.Cleanup(func() { testRing = nil })
}

// ring has the keys 1 to n, and the last one is the current.
func ring(n uint32) keyring.Static {
	s := keyring.Static{CurrentID: n, Keys: map[uint32][keyring.KeySize]byte{}}
	for id := uint32(1); id <= n; id++ {
		key := s.Keys[id]
		for i := range key {
			key[i] = byte(id) ^ byte(i*7)
		}
		s.Keys[id] = key
	}
	return s
}

// A log with keys does all that one without does, and what is proved of one without holds: torn batches, damage, crashes, full disks.
func TestEncryptedLog(t *testing.T) {
	t.Run("conformance", func(t *testing.T) {
		storagetest.Run(t, func(t *testing.T) raft.Storage {
			return New(t.TempDir(), Options{MinSegmentBytes: 64 << 10, Keys: ring(1)})
		})
	})
	for name, test := range map[string]func(*testing.T){
		"every crash state":       TestEveryCrashStateRecovers,
		"damage":                  TestDamageNeverGoesUnnoticed,
		"torn":                    TestEveryTornPatternOfTheLastBatchIsCut,
		"lost sectors":            TestLostSectorsBehindAWordThatTheyWereSyncedAreDamage,
		"changed bytes":           TestChangedBytesAreNeverTakenForAnUnfinishedWrite,
		"crashes":                 TestCrashAtEveryFileOperation,
		"many crashes":            TestRandomWorkloadsThroughManyCrashes,
		"full disk":               TestFullDiskAtAnyPointIsTypedAndPasses,
		"two votes":               TestTwoVotesInOneTermAreRefused,
		"vote without its file":   TestVoteSurvivesWithoutItsFile,
		"damage is not served":    TestDamageIsNotServed,
		"conformance, small disk": TestConformance,
	} {
		t.Run(name, func(t *testing.T) {
			withKeys(t)
			test(t)
		})
	}
}

const marker = "a secret that nobody may find"

var secretMembers = raft.Configuration{ClusterID: "c", Servers: []raft.Server{{ID: "n1", Address: marker}}}

// secretServer runs a server's storage: entries, a configuration and snapshots that hold the marker, one snapshot that is never finished,
// several segments, two runs.
func secretServer(t *testing.T, opts Options) (want []raft.Entry) {
	t.Helper()
	opts.Snapshots.ChunkBytes = 64
	w := New("/data", opts)
	mustOpen(t, w)
	write := func(b raft.Batch) {
		require.NoError(t, w.Write(b))
		want = append(want, b.Entries...)
	}
	write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 1, VotedFor: "n1"}, Entries: []raft.Entry{
		entry(1, 1, raft.EntryConfiguration, secretMembers.AppendBinary(nil)), entry(2, 1, raft.EntryCommand, []byte(marker)),
	}})
	for i := raft.Index(3); i < 40; i++ {
		write(raft.Batch{Entries: []raft.Entry{entry(i, 1, raft.EntryCommand, bytes.Repeat([]byte(marker), 40))}})
	}
	for _, index := range []raft.Index{10, 20, 30} {
		secretSnapshot(t, w, index, true)
	}
	require.NoError(t, w.Idle())
	reopen(t, w)
	write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 2, VotedFor: "n1"}, Entries: []raft.Entry{entry(40, 2, raft.EntryCommand, []byte(marker))}})
	secretSnapshot(t, w, 39, false)
	for more := true; more; {
		var err error
		more, err = w.Prepare()
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return want
}

func secretSnapshot(t *testing.T, w *WAL, index raft.Index, commit bool) {
	t.Helper()
	sink, err := w.Snapshots().Create(raft.SnapshotMeta{
		Index: index, Term: 1, Size: -1, Configuration: secretMembers,
	})
	require.NoError(t, err)
	_, err = sink.Write([]byte(strings.Repeat(marker, 20)))
	require.NoError(t, err)
	if commit {
		_, err = sink.Commit()
		require.NoError(t, err)
	}
}

// requireSecrets reads back what secretServer has written.
func requireSecrets(t *testing.T, w *WAL, rec *raft.Recovered, want []raft.Entry) {
	t.Helper()
	require.Equal(t, raft.HardState{CurrentTerm: 2, VotedFor: "n1"}, rec.HardState)
	requireEntries(t, w, want)
	require.EqualValues(t, 30, rec.Snapshot.Index)
	for _, index := range []raft.Index{20, 30} {
		meta, r, err := w.Snapshots().Open(index)
		require.NoError(t, err)
		require.Equal(t, marker, meta.Configuration.Servers[0].Address)
		content, err := io.ReadAll(r)
		require.NoError(t, errors.Join(err, r.Close()))
		require.Equal(t, strings.Repeat(marker, 20), string(content))
	}
}

func encryptedOptions(fsys vfs.FS, r keyring.Ring) Options {
	opts := smallOptions(fsys)
	opts.Keys, opts.Random, opts.VerifyAtOpen = r, nil, true
	return opts
}

// Nothing of what the state machine, its clients and the configuration say is in any file, nor in one that was never finished. The same
// search finds it when there are no keys.
func TestEncryptionHidesEverything(t *testing.T) {
	found := func(img image) (files []string) {
		for path, data := range img {
			for i := 0; i+8 <= len(marker); i++ { // any piece of it
				if bytes.Contains(data, []byte(marker[i:i+8])) {
					files = append(files, path)
					break
				}
			}
		}
		return files
	}
	clear, encrypted := newImageFS(nil), newImageFS(nil)
	secretServer(t, smallOptions(clear))
	for _, kind := range []string{".wal", ".snapshot", ".tmp"} {
		require.True(t, slices.ContainsFunc(found(clear.image()), func(path string) bool { return strings.HasSuffix(path, kind) }), kind)
	}
	opts := encryptedOptions(encrypted, ring(1))
	want := secretServer(t, opts)
	img := encrypted.image()
	require.Len(t, img, len(clear.image()))
	require.Empty(t, found(img))

	opts.FS = newImageFS(img)
	w := New("/data", opts)
	rec := mustOpen(t, w)
	requireSecrets(t, w, &rec, want)
	require.NoError(t, w.Close())
}

// The survivor of an encrypted cluster founds a new one, and stays encrypted.
func TestRecoverAnEncryptedDirectory(t *testing.T) {
	disk := newImageFS(nil)
	opts := encryptedOptions(disk, ring(1))
	w := New("/data", opts)
	mustOpen(t, w)
	require.NoError(t, w.Write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 3}, Entries: commands(1, 4, 3, 100)}))
	require.NoError(t, w.Close())
	keys := WithKeys(ring(2)) // the new segment takes the new key
	plan, err := PlanRecovery(ctx, disk, "/data", "new", "h:1", keys)
	require.NoError(t, err)
	require.NoError(t, Recover(ctx, disk, plan, keys))
	r, err := Inspect(ctx, disk, "/data", keys)
	require.NoError(t, err)
	require.Equal(t, Clean, r.Verdict, "%+v", r.Findings)
	require.Equal(t, "new", r.Cluster)
	require.EqualValues(t, 2, r.Keys[1].ID)
	opts.Keys = ring(2)
	w = New("/data", opts)
	rec, err := w.Open(ctx, raft.Identity{Cluster: "new", Node: "n1"})
	require.NoError(t, err)
	require.EqualValues(t, 5, rec.LastIndex)
	require.NoError(t, w.Close())
}

// No two batches are ever encrypted with the same key and nonce, through crashes, restarts, full disks and forced recoveries. What is
// written twice under the same one is the same.
func TestNoNonceIsUsedTwice(t *testing.T) {
	seeds := uint64(60)
	if testing.Short() {
		seeds = 10
	}
	nonces, batches := 0, 0
	for seed := range seeds {
		rnd := rand.New(rand.NewPCG(seed, 7))
		disk := newImageFS(nil)
		written := map[string][]byte{} // by tag and offset
		disk.record = func(op fileOp) {
			if op.kind != vfs.OpWrite || len(op.data) < batchFixedSize || binary.LittleEndian.Uint32(op.data) != batchMagic {
				return
			}
			h, err := decodeBatchHeader(op.data)
			if err != nil {
				t.Errorf("seed %d: %v", seed, err)
				return
			}
			key := fmt.Sprintf("%x %d", h.tag, h.offset)
			sealed := op.data[:h.size()]
			batches++
			if before, ok := written[key]; ok && !bytes.Equal(before, sealed) {
				t.Errorf("seed %d: batch %d at byte %d uses a nonce again", seed, h.seq, h.offset)
			}
			written[key] = bytes.Clone(sealed)
		}
		w := New("/data", encryptedOptions(disk, ring(1)))
		mustOpen(t, w)
		var m model
		for range 80 {
			switch rnd.IntN(10) {
			case 0: // killed, at any moment: nothing but what is on disk is known afterwards
				w = New("/data", encryptedOptions(disk, ring(1)))
				rec := mustOpen(t, w)
				require.NoError(t, m.check(w, &rec))
			case 1:
				require.NoError(t, w.Idle())
			case 2:
				_, err := w.Prepare()
				require.NoError(t, err)
			case 3:
				reopen(t, w)
			default:
				b := randomBatch(rnd, m)
				if err := w.Write(b); err != nil {
					require.NoError(t, err)
				}
				m = m.after(b)
			}
		}
		require.NoError(t, w.Close())
		nonces += len(written)
	}
	require.Greater(t, nonces, 100)
	t.Logf("%d writes of batches, %d nonces", batches, nonces)
}

// No two batches are encrypted with the same keystream: what two of them differ in does not show.
func TestEveryBatchHasItsOwnKeystream(t *testing.T) {
	disk := newImageFS(nil)
	w := New("/data", encryptedOptions(disk, ring(1)))
	mustOpen(t, w)
	seen := map[string]bool{}
	for i := raft.Index(1); i < 40; i++ {
		if i%9 == 0 {
			reopen(t, w)
		}
		es := commands(i, 1, 1, 200)
		require.NoError(t, w.Write(raft.Batch{Entries: es}))
		b, frame := w.buf[binary.LittleEndian.Uint32(w.buf[4:]):], es[0].Frame()
		var stream [64]byte
		for k := range stream {
			stream[k] = b[k] ^ frame[k]
		}
		require.False(t, seen[string(stream[:])], "batch of entry %d", i)
		seen[string(stream[:])] = true
	}
	require.NoError(t, w.Close())
}

// Encryption takes place in the batch's buffer.
func TestEncryptionAllocatesNothingPerBatch(t *testing.T) {
	w := New("/data", encryptedOptions(vfs.New(1), ring(1)))
	mustOpen(t, w)
	es := commands(1, 64, 1, 256)
	h := batchHeader{bodyLen: int64(raft.EntriesSize(es)), count: len(es), last: es[63].ID(), firstTerm: 1}
	h.encryptedWith(1)
	buf := encodeBatch(nil, &h, es, nil, w.active.sealer)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		h.offset += sectorSize
		buf = encodeBatch(buf, &h, es, nil, w.active.sealer)
	}))
	require.NoError(t, w.Close())
}
