package wal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
)

var (
	ctx      = context.Background()
	identity = raft.Identity{Cluster: "c", Node: "n1"}
)

// entry makes an entry as a leader would have stamped it.
func entry(index raft.Index, term raft.Term, t raft.EntryType, data []byte) raft.Entry {
	b := make([]byte, raft.EntryHeaderSize+len(data))
	le := binary.LittleEndian
	le.PutUint32(b, uint32(len(data)))
	b[6] = byte(t)
	le.PutUint64(b[8:], uint64(term))
	le.PutUint64(b[16:], uint64(index))
	copy(b[raft.EntryHeaderSize:], data)
	le.PutUint32(b[24:], checksum(data))
	le.PutUint32(b[28:], checksum(b[:28]))
	e, _, err := raft.DecodeEntry(b)
	if err != nil {
		panic(err)
	}
	return e
}

// commands makes n consecutive commands of one term.
func commands(first raft.Index, n int, term raft.Term, size int) []raft.Entry {
	es := make([]raft.Entry, n)
	for i := range es {
		data := make([]byte, size)
		for j := range data {
			data[j] = byte(uint64(first)+uint64(i)*7+uint64(j)*13+uint64(term)) | 1
		}
		es[i] = entry(first+raft.Index(i), term, raft.EntryCommand, data)
	}
	return es
}

// counter is a deterministic source of tags.
func counter() func() uint64 {
	n := uint64(0)
	return func() uint64 { n++; return n * 0x9e3779b97f4a7c15 }
}

func smallOptions(fsys vfs.FS) Options {
	opts := Options{FS: fsys, MinSegmentBytes: 16 << 10, MaxSegmentBytes: 32 << 10, Random: counter()}
	if testRing != nil { // keys stay apart by the numbers
		opts.Keys, opts.Random = testRing, nil
	}
	return opts
}

// readHeader reads the header of a segment that is not encrypted.
func readHeader(f vfs.File, path string) (h segmentHeader, damaged error, err error) {
	return readAuthenticHeader(f, path, func(int64, *segmentHeader, []byte) error { return nil })
}

// readVote reads the vote file of a server without keys.
func readVote(fsys vfs.FS, path string) (rec voteRecord, found, newest bool, damaged error, err error) {
	return New(filepath.Dir(path), Options{FS: fsys}).readVote(path)
}

func mustOpen(t *testing.T, w *WAL) raft.Recovered {
	t.Helper()
	rec, err := w.Open(ctx, identity)
	require.NoError(t, err)
	return rec
}

// reopen closes the log and opens it again.
func reopen(t *testing.T, w *WAL) raft.Recovered {
	t.Helper()
	require.NoError(t, w.Close())
	return mustOpen(t, w)
}

func requireEntries(t *testing.T, w *WAL, want []raft.Entry) {
	t.Helper()
	if len(want) == 0 {
		return
	}
	lo, hi := want[0].Index, want[len(want)-1].Index+1
	var got []raft.Entry
	for at := lo; at < hi; {
		es, err := w.Entries(at, hi, 1000)
		require.NoError(t, err)
		require.NotEmpty(t, es)
		got = append(got, es...)
		at += raft.Index(len(es))
	}
	require.Len(t, got, len(want))
	for i := range want {
		require.Equal(t, want[i].Frame(), got[i].Frame(), "entry %d", want[i].Index)
	}
}

func TestBlankDirectoryGetsAnIdentity(t *testing.T) {
	w := New("/data/n1", smallOptions(vfs.New(1)))
	rec := mustOpen(t, w)
	require.True(t, rec.Blank())
	require.Equal(t, "c", rec.Identity.Cluster)
	require.NotZero(t, rec.Identity.Replica)
	require.EqualValues(t, 1, rec.Identity.Incarnation)

	again := reopen(t, w)
	require.True(t, again.Blank())
	require.Equal(t, rec.Identity.Replica, again.Identity.Replica)
	require.EqualValues(t, 2, again.Identity.Incarnation)
	require.NoError(t, w.Close())
}

func TestWrittenBatchesAreThereAfterReopen(t *testing.T) {
	for _, where := range []string{"simulated disk", "files"} {
		t.Run(where, func(t *testing.T) {
			opts, dir := smallOptions(vfs.New(1)), "/data"
			if where == "files" {
				opts.FS, dir = vfs.OS{}, t.TempDir()
			}
			w := New(dir, opts)
			mustOpen(t, w)

			all := commands(1, 3, 1, 100)
			require.NoError(t, w.Write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 1, VotedFor: "n1"}, Entries: all}))
			requireEntries(t, w, all)
			rec := reopen(t, w)
			require.Equal(t, raft.HardState{CurrentTerm: 1, VotedFor: "n1"}, rec.HardState)
			require.EqualValues(t, 3, rec.LastIndex)
			require.Equal(t, []raft.TermStart{{Index: 1, Term: 1}}, rec.Terms)
			requireEntries(t, w, all)

			config := entry(4, 2, raft.EntryConfiguration, []byte("members"))
			all = append(all, config)
			require.NoError(t, w.Write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 2}, Entries: all[3:]}))
			for i := range 100 { // through several segments
				es := commands(raft.Index(5+i*5), 5, 2, 200)
				require.NoError(t, w.Write(raft.Batch{Entries: es}))
				all = append(all, es...)
				if i%10 == 0 {
					require.NoError(t, w.Idle())
					_, err := w.Prepare()
					require.NoError(t, err)
				}
			}
			requireEntries(t, w, all)
			rec = reopen(t, w)
			require.Equal(t, []raft.TermStart{{Index: 1, Term: 1}, {Index: 4, Term: 2}}, rec.Terms)
			require.Len(t, rec.Configurations, 1)
			require.Equal(t, config.Frame(), rec.Configurations[0].Frame())
			require.EqualValues(t, 504, rec.LastIndex)
			requireEntries(t, w, all)
			require.Greater(t, w.Stats().Segments, 3)
			require.NoError(t, w.Close())
		})
	}
}

func TestTruncationSupersedesWithoutTouchingWhatIsThere(t *testing.T) {
	w := New("/data", smallOptions(vfs.New(1)))
	mustOpen(t, w)
	all := commands(1, 60, 1, 500)
	for i := 0; i < 60; i += 3 {
		require.NoError(t, w.Write(raft.Batch{Entries: all[i : i+3]}))
	}
	// An overwrite of the end, then one that reaches back over a segment, then a bare truncation.
	require.NoError(t, w.Write(raft.Batch{TruncateFrom: 59, Entries: commands(59, 4, 2, 50)}))
	require.NoError(t, w.Write(raft.Batch{TruncateFrom: 20, Entries: commands(20, 10, 3, 50)}))
	all = append(all[:19:19], commands(20, 10, 3, 50)...)
	requireEntries(t, w, all)
	require.NoError(t, w.Write(raft.Batch{TruncateFrom: 29}))
	all = all[:28]
	requireEntries(t, w, all)
	_, err := w.Entries(28, 30, 1000)
	require.Error(t, err)

	rec := reopen(t, w)
	require.EqualValues(t, 28, rec.LastIndex)
	require.Equal(t, []raft.TermStart{{Index: 1, Term: 1}, {Index: 20, Term: 3}}, rec.Terms)
	requireEntries(t, w, all)
	require.NoError(t, w.Write(raft.Batch{Entries: commands(29, 1, 4, 50)}))
	requireEntries(t, w, append(all, commands(29, 1, 4, 50)...))
	require.NoError(t, w.Close())
}

func TestCompactDropsWholeSegmentsAndKeepsTheRest(t *testing.T) {
	fsys := vfs.New(1)
	w := New("/data", smallOptions(fsys))
	mustOpen(t, w)
	hs := raft.HardState{CurrentTerm: 7, VotedFor: "n3"}
	require.NoError(t, w.Write(raft.Batch{HardState: &hs}))
	all := commands(1, 200, 7, 500)
	for i := 0; i < 200; i += 4 {
		require.NoError(t, w.Write(raft.Batch{Entries: all[i : i+4]}))
	}
	before := w.Stats().Segments
	require.NoError(t, w.Compact(150))
	require.Less(t, w.Stats().Segments, before)
	_, err := w.Entries(1, 2, 1000)
	require.ErrorIs(t, err, raft.ErrCompacted)
	requireEntries(t, w, all[150:])

	rec := reopen(t, w)
	require.Equal(t, hs, rec.HardState)
	require.LessOrEqual(t, rec.Compacted.Index, raft.Index(150))
	require.NotZero(t, rec.Compacted.Index)
	require.EqualValues(t, 7, rec.Compacted.Term)
	require.Equal(t, []raft.TermStart{{Index: rec.Compacted.Index + 1, Term: 7}}, rec.Terms)
	requireEntries(t, w, all[rec.Compacted.Index:])

	require.NoError(t, w.Compact(200))
	rec = reopen(t, w)
	require.Equal(t, hs, rec.HardState)
	require.EqualValues(t, 200, rec.LastIndex)
	require.NoError(t, w.Write(raft.Batch{Entries: commands(201, 1, 7, 10)}))
	require.NoError(t, w.Close())
}

func TestSnapshotResetsTheLog(t *testing.T) {
	w := New("/data", smallOptions(vfs.New(1)))
	mustOpen(t, w)
	require.NoError(t, w.Write(raft.Batch{Entries: commands(1, 10, 1, 50)}))

	// §7: the entry at the snapshot's index is there with its term, so what follows stays.
	require.NoError(t, w.Write(raft.Batch{Snapshot: &raft.SnapshotMeta{Index: 4, Term: 1}}))
	_, err := w.Entries(4, 5, 1000)
	require.ErrorIs(t, err, raft.ErrCompacted)
	requireEntries(t, w, commands(1, 10, 1, 50)[4:])
	rec := reopen(t, w)
	require.Equal(t, raft.EntryID{Term: 1, Index: 4}, rec.Compacted)
	require.EqualValues(t, 10, rec.LastIndex)

	// It is not: the whole log goes.
	require.NoError(t, w.Write(raft.Batch{Snapshot: &raft.SnapshotMeta{Index: 8, Term: 2}, Entries: commands(9, 2, 2, 50)}))
	requireEntries(t, w, commands(9, 2, 2, 50))
	rec = reopen(t, w)
	require.Equal(t, raft.EntryID{Term: 2, Index: 8}, rec.Compacted)
	require.EqualValues(t, 10, rec.LastIndex)
	require.Equal(t, []raft.TermStart{{Index: 9, Term: 2}}, rec.Terms)
	require.NoError(t, w.Close())
}

func TestSecondOpenIsLockedOut(t *testing.T) {
	for name, fsys := range map[string]vfs.FS{"simulated disk": vfs.New(1), "files": vfs.OS{}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			a, b := New(dir, Options{FS: fsys}), New(dir, Options{FS: fsys})
			mustOpen(t, a)
			_, err := b.Open(ctx, identity)
			require.ErrorIs(t, err, raft.ErrLocked)
			require.NoError(t, a.Close())
			mustOpen(t, b)
			require.NoError(t, b.Close())
		})
	}
}

func TestDirectoryOfAnotherServerIsRefused(t *testing.T) {
	w := New("/data", smallOptions(vfs.New(1)))
	_, err := w.Open(ctx, raft.Identity{Node: "n1"}) // the cluster is not known yet
	require.NoError(t, err)
	require.Equal(t, "c", reopen(t, w).Identity.Cluster)
	require.NoError(t, w.Close())
	for what, id := range map[string]raft.Identity{
		"cluster": {Cluster: "other", Node: "n1"},
		"node":    {Cluster: "c", Node: "n2"},
	} {
		_, err := w.Open(ctx, id)
		var wrong *raft.IdentityError
		require.ErrorAs(t, err, &wrong)
		require.Equal(t, what, wrong.What)
	}
	rec, err := w.Open(ctx, raft.Identity{})
	require.NoError(t, err)
	require.Equal(t, raft.NodeID("n1"), rec.Identity.Node)
	require.EqualValues(t, 3, rec.Identity.Incarnation) // a refused Open does not count
	require.NoError(t, w.Close())
}

func TestImpossibleBatchesAreRefused(t *testing.T) {
	for name, b := range map[string]raft.Batch{
		"gap":                  {Entries: commands(7, 1, 2, 10)},
		"falling term":         {Entries: commands(6, 1, 1, 10)},
		"no frame":             {Entries: []raft.Entry{{Index: 6, Term: 2}}},
		"truncation":           {TruncateFrom: 7},
		"term goes back":       {HardState: &raft.HardState{CurrentTerm: 1}},
		"vote is taken back":   {HardState: &raft.HardState{CurrentTerm: 2}},
		"second vote":          {HardState: &raft.HardState{CurrentTerm: 2, VotedFor: "b"}},
		"repair of a stranger": {Repairs: commands(3, 1, 9, 10)},
		"repair behind":        {Repairs: commands(6, 1, 2, 10)},
		"name too long":        {HardState: &raft.HardState{CurrentTerm: 3, VotedFor: raft.NodeID(make([]byte, 300))}},
	} {
		t.Run(name, func(t *testing.T) {
			w := New("/data", smallOptions(vfs.New(1)))
			mustOpen(t, w)
			hs := raft.HardState{CurrentTerm: 2, VotedFor: "a"}
			require.NoError(t, w.Write(raft.Batch{HardState: &hs, Entries: commands(1, 5, 2, 10)}))
			require.Error(t, w.Write(b))
			require.Error(t, w.Write(raft.Batch{Entries: commands(6, 1, 2, 10)}), "an error is final")
			rec := reopen(t, w)
			require.Equal(t, hs, rec.HardState)
			require.EqualValues(t, 5, rec.LastIndex)
			require.NoError(t, w.Close())
		})
	}
}

func TestFailedSyncIsFinal(t *testing.T) {
	fsys := vfs.New(1)
	w := New("/data", smallOptions(fsys))
	mustOpen(t, w)
	require.NoError(t, w.Write(raft.Batch{Entries: commands(1, 1, 1, 10)}))
	failures := 1
	fsys.SetFault(func(op vfs.Op) error {
		if op.Kind == vfs.OpSync && failures > 0 {
			failures--
			return vfs.ErrIO
		}
		return nil
	})
	require.ErrorIs(t, w.Write(raft.Batch{Entries: commands(2, 1, 1, 10)}), vfs.ErrIO)
	// The next sync would succeed, without writing what this one lost.
	require.ErrorIs(t, w.Write(raft.Batch{Entries: commands(2, 1, 1, 10)}), vfs.ErrIO)
	require.ErrorIs(t, w.Idle(), vfs.ErrIO)
	require.ErrorIs(t, w.Compact(1), vfs.ErrIO)
	require.NoError(t, w.Close())

	// Another process reads the batch from memory and cannot know. Once it has said that it is there, it must stay there.
	rec := mustOpen(t, w)
	for seed := range uint64(20) {
		fsys.Reseed(seed)
		after := New("/data", smallOptions(fsys.Clone().Crash()))
		again := mustOpen(t, after)
		require.Equal(t, rec.LastIndex, again.LastIndex)
		require.Empty(t, again.Damaged)
		require.NoError(t, after.Close())
	}
	require.NoError(t, w.Close())
}

func TestFullDiskRefusesCommandsAndLeavesRoomForVotes(t *testing.T) {
	fsys := vfs.New(1)
	w := New("/data", smallOptions(fsys))
	mustOpen(t, w)
	fsys.SetSpace(0)
	next, term := raft.Index(1), raft.Term(1)
	var err error
	for err == nil {
		if err = w.Write(raft.Batch{Entries: commands(next, 1, term, 400)}); err == nil {
			next++
		}
	}
	require.ErrorIs(t, err, raft.ErrStorageFull)
	_, err = w.Prepare()
	require.ErrorIs(t, err, raft.ErrStorageFull)

	require.NoError(t, w.Write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 2, VotedFor: "n2"}}))
	require.NoError(t, w.Write(raft.Batch{Entries: []raft.Entry{entry(next, 2, raft.EntryNoOp, nil)}}))
	next++
	require.NoError(t, w.Write(raft.Batch{Entries: []raft.Entry{entry(next, 2, raft.EntryConfiguration, []byte("x"))}}))
	next++
	require.ErrorIs(t, w.Write(raft.Batch{Entries: commands(next, 1, 2, 400)}), raft.ErrStorageFull)

	fsys.SetSpace(-1)
	require.NoError(t, w.Write(raft.Batch{Entries: commands(next, 1, 2, 400)}))
	rec := reopen(t, w)
	require.Equal(t, next, rec.LastIndex)
	require.Equal(t, raft.HardState{CurrentTerm: 2, VotedFor: "n2"}, rec.HardState)
	require.NoError(t, w.Close())
}

// Where the next segment has no room, a smaller one may: the disk is full when the smallest has none.
func TestFullDiskPreparesASmallerSegment(t *testing.T) {
	fsys := vfs.New(1)
	opts := smallOptions(fsys)
	opts.MinSegmentBytes, opts.MaxSegmentBytes = 16<<10, 64<<10
	w := New("/data", opts)
	mustOpen(t, w)
	w.spare.next = 64 << 10 // as it is after a while
	prepare := func() (err error) {
		for more := true; more && err == nil; {
			more, err = w.Prepare()
		}
		return err
	}
	fsys.SetSpace(20 << 10)
	require.NoError(t, prepare())
	require.True(t, w.spare.ready)
	require.Equal(t, int64(16<<10), w.spare.size)
	for next := raft.Index(1); w.spare.ready; next++ { // until it is in use
		require.NoError(t, w.Write(raft.Batch{Entries: commands(next, 1, 1, 400)}))
	}
	require.ErrorIs(t, prepare(), raft.ErrStorageFull)
	fsys.SetSpace(-1)
	require.NoError(t, prepare())
	require.NoError(t, w.Close())
}

func TestBatchLargerThanASegmentGetsOneOfItsOwn(t *testing.T) {
	w := New("/data", smallOptions(vfs.New(1)))
	mustOpen(t, w)
	big := commands(1, 3, 1, 100_000)
	clear(big[1].Frame()[raft.EntryHeaderSize:]) // zeros are content like any other
	big[1] = entry(2, 1, raft.EntryCommand, make([]byte, 100_000))
	require.NoError(t, w.Write(raft.Batch{Entries: big}))
	require.NoError(t, w.Write(raft.Batch{Entries: commands(4, 1, 1, 10)}))
	requireEntries(t, w, big)
	require.EqualValues(t, 4, reopen(t, w).LastIndex)
	requireEntries(t, w, big)
	require.NoError(t, w.Close())
}

func TestEntriesRespectsMaxBytes(t *testing.T) {
	w := New("/data", smallOptions(vfs.New(1)))
	mustOpen(t, w)
	require.NoError(t, w.Write(raft.Batch{Entries: commands(1, 10, 1, 68)})) // frames of 100 bytes
	for _, c := range []struct{ max, want int }{{0, 1}, {100, 1}, {199, 1}, {200, 2}, {1000, 10}, {5000, 10}} {
		es, err := w.Entries(1, 11, c.max)
		require.NoError(t, err)
		require.Len(t, es, c.want, "at most %d bytes", c.max)
	}
	es, err := w.Entries(3, 5, 5000)
	require.NoError(t, err)
	require.Len(t, es, 2)
	require.NoError(t, w.Close())
	_, err = w.Entries(3, 5, 5000)
	require.ErrorIs(t, err, errClosed)
}

// TestIndexDoesNotGrowWithTheNumberOfEntries fills the index like a log of 10⁷ entries of 64 bytes in segments of 64 MiB.
func TestIndexDoesNotGrowWithTheNumberOfEntries(t *testing.T) {
	const entries, frame, perBatch = 10_000_000, 64, 4
	x := logIndex{cut: true}
	var seg *segment
	offset := int64(64 << 20)
	for i := raft.Index(1); i <= entries; i++ {
		if i%perBatch == 1 {
			if offset += sectorSize; offset >= 64<<20 {
				seg, offset = &segment{}, segmentHeaderSize
			}
		}
		x.add(raft.EntryID{Term: 1 + raft.Term(i/1_000_000), Index: i}, raft.EntryCommand, seg, offset)
	}
	marks := 0
	for i := range x.runs {
		marks += cap(x.runs[i].marks)
	}
	require.LessOrEqual(t, len(x.runs), 20)
	require.Less(t, marks*16, 1<<20, "bytes of marks")
	require.Len(t, x.terms, 11)
	for _, index := range []raft.Index{1, 2, 999_999, 5_000_000, entries} {
		r, _ := x.find(index)
		require.True(t, r.first <= index && index <= r.last)
	}
}

// TestPrepareAndEntriesRunBesideWrite is for the race detector, and checks that readers see whole, right entries meanwhile.
func TestPrepareAndEntriesRunBesideWrite(t *testing.T) {
	w := New(t.TempDir(), Options{MinSegmentBytes: 16 << 10, MaxSegmentBytes: 64 << 10})
	mustOpen(t, w)
	all := commands(1, 600, 1, 400)
	require.NoError(t, w.Write(raft.Batch{Entries: all[:1]}))
	stop, done := make(chan struct{}), make(chan error, 2)
	loop := func(f func() error) {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if err := f(); err != nil {
				done <- err
				return
			}
		}
	}
	go loop(func() error { _, err := w.Prepare(); return err })
	var last atomic.Uint64
	last.Store(1)
	go loop(func() error {
		hi := raft.Index(last.Load())
		es, err := w.Entries(hi, hi+1, 1000)
		switch {
		case errors.Is(err, raft.ErrCompacted):
			return nil
		case err == nil && !bytes.Equal(es[0].Frame(), all[hi-1].Frame()):
			return fmt.Errorf("entry %d is wrong", hi)
		}
		return err
	})
	for i := 1; i < len(all); i++ {
		require.NoError(t, w.Write(raft.Batch{Entries: all[i : i+1]}))
		last.Store(uint64(i + 1))
		if i%100 == 0 {
			require.NoError(t, w.Compact(raft.Index(i-50)))
		}
	}
	close(stop)
	require.NoError(t, <-done)
	require.NoError(t, <-done)
	require.NoError(t, w.Close())
	_, err := w.Prepare()
	require.ErrorIs(t, err, errClosed)
}

// writingFS is a file system that cannot take blocks without writing them.
type writingFS struct{ vfs.FS }

func (f writingFS) Create(path string) (vfs.File, error) {
	file, err := f.FS.Create(path)
	return struct{ vfs.File }{file}, err
}

// A writer that needs the next segment before it is finished takes it as far as it is.
func TestUnfinishedNextSegmentIsTakenAsItIs(t *testing.T) {
	const size = 16 << 20
	w := New("/data", Options{FS: writingFS{vfs.New(1)}, MinSegmentBytes: size, MaxSegmentBytes: size})
	mustOpen(t, w)
	prepareAll := func() int64 {
		for more := true; more; {
			var err error
			more, err = w.Prepare()
			require.NoError(t, err)
		}
		return w.spare.zeroed
	}
	require.Equal(t, int64(prepareLead+prepareSlice), prepareAll(), "the lead, and what the header asks for, in whole pieces")
	write := func(first raft.Index, bytes int) {
		require.NoError(t, w.Write(raft.Batch{Entries: commands(first, 1, 1, bytes)}))
	}
	write(1, 3<<20)
	const prepared = 19 << 18
	require.Equal(t, int64(prepared), prepareAll())

	// Nobody prepares any more, and the segment is full.
	write(2, 9<<20)
	write(3, 9<<19)
	require.Equal(t, int64(prepared), w.activeSize)
	require.Equal(t, raft.Index(3), w.index.last.Index)
	write(4, 6<<20) // it is not enough for this one
	require.Equal(t, int64(size), w.activeSize)
	require.NoError(t, w.Close())
	rec := mustOpen(t, w)
	require.Equal(t, raft.Index(4), rec.LastIndex)
	require.NoError(t, w.Close())
}

// The next segment is written in step with the active one: never all at once, and always ready when it is needed, however little of it
// one call writes.
func TestNextSegmentIsWrittenInStep(t *testing.T) {
	const size = 16 << 20
	w := New("/data", Options{FS: writingFS{vfs.New(1)}, MinSegmentBytes: size, MaxSegmentBytes: size, Random: counter()})
	mustOpen(t, w)
	prepare := func() (written int64) {
		before := w.spare.zeroed
		for more := true; more; {
			var err error
			more, err = w.Prepare()
			require.NoError(t, err)
		}
		return w.spare.zeroed - before
	}
	require.LessOrEqual(t, prepare(), int64(prepareLead+prepareSlice))
	require.False(t, w.spare.ready)
	next := raft.Index(1)
	for first := w.active.seq; w.active.seq < first+2; next++ {
		seq, ready := w.active.seq, w.spare.ready
		require.NoError(t, w.Write(raft.Batch{Entries: commands(next, 1, 1, 500<<10)}))
		if w.active.seq > seq {
			require.True(t, ready, "a write had to finish the next segment itself")
			w.spare.zeroed = 0
			require.LessOrEqual(t, prepare(), int64(prepareLead+3*prepareSlice))
			continue
		}
		require.LessOrEqual(t, prepare(), int64(3*prepareSlice))
	}
	require.NoError(t, w.Close())
}

func TestHugeSegmentsAreWrittenInStepToo(t *testing.T) {
	f, err := vfs.New(1).Create("next")
	require.NoError(t, err)
	w := &WAL{activeSize: 8 << 30, spare: spare{file: f, size: 8 << 30, zeroed: 3 << 30}}
	w.filled.Store(2 << 30)
	require.True(t, w.isAhead(), "a quarter of the active one is full, and three eighths of the next one written")
	w.spare.zeroed = 2 << 30
	require.False(t, w.isAhead(), "no more of the next one is written than of the active one")
}

// Where blocks can be taken without writing them, the next segment is there at once. Zeros are written to it in step, only where that pays.
func TestNextSegmentIsOnlyAllocated(t *testing.T) {
	const size = 16 << 20
	w := New("/data", Options{FS: vfs.New(1), MinSegmentBytes: size, MaxSegmentBytes: size})
	mustOpen(t, w)
	prepareAll := func() int64 {
		for more := true; more; {
			var err error
			more, err = w.Prepare()
			require.NoError(t, err)
		}
		require.True(t, w.spare.ready)
		return w.spare.zeroed
	}
	next := raft.Index(1)
	write := func(n, bytes int) {
		for range n {
			require.NoError(t, w.Write(raft.Batch{Entries: commands(next, 1, 1, bytes)}))
			next++
		}
	}
	require.EqualValues(t, prepareLead+prepareSlice, prepareAll())
	write(10, 1000)
	require.EqualValues(t, zeroWindow, w.zeroed, "small batches find zeros that the first of them brought")
	require.EqualValues(t, prepareLead+prepareSlice, prepareAll())

	write(30, 64<<10)
	require.Zero(t, w.zeroed%zeroWindow)
	require.Less(t, w.active.end, w.zeroed)
	require.Greater(t, prepareAll(), int64(3<<20), "in step")
	before := w.spare.zeroed

	write(4, 3<<20)
	require.Equal(t, roundUp(w.active.end, pageSize), w.zeroed, "a large batch brings none")
	require.Equal(t, before, prepareAll(), "nor is it worth to write them beforehand")

	write(1, 3<<20)
	require.EqualValues(t, 2, w.active.seq)
	require.Equal(t, max(before, roundUp(w.active.end, pageSize)), w.zeroed, "what was written beforehand is known")
	rec := reopen(t, w)
	require.Equal(t, next-1, rec.LastIndex)
	require.NoError(t, w.Close())
}

// A spare is met again after a crash. If it has bytes in it, they would pass for batches that were lost.
func TestSpareOfAnEarlierRunIsLookedAt(t *testing.T) {
	disk := vfs.New(1)
	opts := smallOptions(disk)
	w := New("/data", opts)
	mustOpen(t, w)
	w.spare.next = 64 << 10 // as it is after a while
	for more := true; more; {
		var err error
		more, err = w.Prepare()
		require.NoError(t, err)
	}
	require.True(t, w.spare.ready)
	require.NoError(t, w.Write(raft.Batch{Entries: commands(1, 3, 1, 40)}))
	require.NoError(t, w.Close())
	disk = disk.Crash() // nothing is left that was not synced: another crash would take what is changed there back
	spare := w.path(spareName)

	for name, c := range map[string]struct {
		hit  func(disk *vfs.Disk) error
		used bool
	}{
		"untouched":                      {func(*vfs.Disk) error { return nil }, true},
		"a header that was cut off":      {func(d *vfs.Disk) error { return d.Flip(spare, segmentHeaderSize-1, 1) }, true},
		"a bit where the first batch":    {func(d *vfs.Disk) error { return d.Flip(spare, segmentHeaderSize, 1) }, false},
		"a bit at the end":               {func(d *vfs.Disk) error { return d.Flip(spare, opts.MinSegmentBytes-1, 1) }, false},
		"a bit behind what is taken":     {func(d *vfs.Disk) error { return d.Flip(spare, opts.MinSegmentBytes, 1) }, true},
		"a file that is shorter than it": {func(d *vfs.Disk) error { return truncateFile(d, spare, opts.MinSegmentBytes-pageSize) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			disk := disk.Clone()
			require.NoError(t, c.hit(disk))
			made := false
			disk.SetFault(func(op vfs.Op) error {
				made = made || op.Kind == vfs.OpCreate && op.Path == spare+tmpSuffix
				return nil
			})
			w := New("/data", smallOptions(disk))
			mustOpen(t, w)
			require.Equal(t, !c.used, made, "another one")
			require.Equal(t, opts.MinSegmentBytes, w.activeSize)
			require.NoError(t, w.Close())
			w = New("/data", smallOptions(disk.Crash()))
			rec := mustOpen(t, w)
			require.Empty(t, rec.Findings)
			require.Zero(t, rec.Fence)
			require.EqualValues(t, 3, rec.LastIndex)
			require.NoError(t, w.Close())
		})
	}
}

// A spare in which writing zeros has failed is not used.
func TestSpareThatCannotBeWrittenIsGivenUp(t *testing.T) {
	disk := vfs.New(1)
	w := New("/data", Options{FS: disk, MinSegmentBytes: 16 << 20, MaxSegmentBytes: 16 << 20})
	mustOpen(t, w)
	_, err := w.Prepare()
	require.NoError(t, err)
	require.True(t, w.spare.ready)
	broken := errors.New("broken")
	disk.SetFault(func(op vfs.Op) error {
		if op.Kind == vfs.OpWrite {
			return broken
		}
		return nil
	})
	_, err = w.Prepare()
	require.ErrorIs(t, err, broken)
	disk.SetFault(nil)
	require.False(t, w.spare.ready)
	_, err = disk.Stat(w.path(spareName))
	require.ErrorIs(t, err, fs.ErrNotExist)
	for more := true; more; {
		more, err = w.Prepare()
		require.NoError(t, err)
	}
	require.True(t, w.spare.ready)
	require.NoError(t, w.Close())
}

// What a batch brings along to the blocks behind it must read zero: recovery takes it for what was never written.
func TestZerosBehindABatchAreZeros(t *testing.T) {
	disk := vfs.New(1)
	w := New("/data", Options{FS: disk, MinSegmentBytes: 4 << 20, MaxSegmentBytes: 4 << 20})
	mustOpen(t, w)
	require.NoError(t, w.Write(raft.Batch{Entries: commands(1, 1, 1, zeroWindow)})) // leaves its bytes in the buffer
	require.NoError(t, w.Write(raft.Batch{Entries: commands(2, 1, 1, 8000)}))
	behind := make([]byte, w.zeroed-w.active.end)
	require.Greater(t, len(behind), zeroWindow/2)
	f, err := disk.Open(w.active.path)
	require.NoError(t, err)
	_, err = f.ReadAt(behind, w.active.end)
	require.NoError(t, err)
	require.True(t, isZero(behind))
	require.NoError(t, f.Close())
	require.NoError(t, w.Close())
}
