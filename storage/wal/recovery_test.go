package wal

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
)

// requireCorrupt checks that the log on a disk is refused, and names the file and the next step.
func requireCorrupt(t *testing.T, disk *vfs.Disk, path string) *raft.CorruptionError {
	t.Helper()
	_, err := New("/data", smallOptions(disk)).Open(ctx, identity)
	var damage *raft.CorruptionError
	require.ErrorAs(t, err, &damage)
	require.Equal(t, path, damage.Path)
	require.NotEmpty(t, damage.Next)
	return damage
}

// requireNoticed checks that a log is opened without what is damaged, and that a finding names the file. It returns what was recovered.
func requireNoticed(t *testing.T, disk *vfs.Disk, path string, verdict Verdict) raft.Recovered {
	t.Helper()
	w := New("/data", smallOptions(disk))
	rec, err := w.Open(ctx, identity)
	require.NoError(t, err)
	for _, f := range rec.Findings {
		if f.File == path && f.Verdict == verdict {
			require.Equal(t, verdict == Fenced, rec.Fence != (raft.EntryID{}))
			require.Equal(t, verdict == Corrupt, len(rec.Damaged) > 0)
			require.NoError(t, w.Close())
			return rec
		}
	}
	require.Fail(t, "not noticed", "%s: %+v", path, rec.Findings)
	return rec
}

func segmentPath(seq uint64) string { return "/data/" + segmentName(seq) }

// runs makes a log in which every run has begun a segment of its own and written one batch of three commands of that size.
func runs(t *testing.T, opts Options, sizes ...int) {
	t.Helper()
	w := New("/data", opts)
	for i, size := range sizes {
		mustOpen(t, w)
		require.NoError(t, w.Write(raft.Batch{Entries: commands(raft.Index(1+3*i), 3, 1, size)}))
		require.NoError(t, w.Close())
	}
}

// graft overwrites a piece of a file by the same piece of a file on another disk.
func graft(t *testing.T, from *vfs.Disk, fromPath string, to *vfs.Disk, toPath string, at, n int64) {
	t.Helper()
	f, err := from.Open(fromPath)
	require.NoError(t, err)
	b := make([]byte, n)
	_, err = f.ReadAt(b, at)
	require.NoError(t, errors.Join(err, f.Close()))
	f, err = to.OpenWrite(toPath)
	require.NoError(t, err)
	_, err = f.WriteAt(b, at)
	require.NoError(t, errors.Join(err, f.Sync(), f.Close()))
}

// graftFile replaces a file by one of another disk.
func graftFile(t *testing.T, from *vfs.Disk, fromPath string, to *vfs.Disk, toPath string) {
	t.Helper()
	info, err := from.Stat(fromPath)
	require.NoError(t, err)
	f, err := to.Create(toPath)
	require.NoError(t, err)
	require.NoError(t, errors.Join(f.Truncate(info.Size()), f.Close()))
	graft(t, from, fromPath, to, toPath, 0, info.Size())
}

// shorten cuts a segment off and lets its header say that it was made with that length.
func shorten(t *testing.T, disk *vfs.Disk, seq uint64, size int64) {
	t.Helper()
	f, err := disk.OpenWrite(segmentPath(seq))
	require.NoError(t, err)
	h, damaged, err := readHeader(f, segmentPath(seq))
	require.NoError(t, errors.Join(damaged, err))
	h.size = size
	page := h.encode(nil)
	_, err = f.WriteAt(page, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(page, pageSize)
	require.NoError(t, errors.Join(err, f.Truncate(size), f.Sync(), f.Close()))
}

// SAFETY §3: "mid-log corruption skipped". The segments behind the missing one are whole, and name it.
func TestMissingMiddleSegmentIsNotSkipped(t *testing.T) {
	disk := vfs.New(1)
	runs(t, smallOptions(disk), 20, 20, 20)
	require.NoError(t, disk.Remove(segmentPath(2)))
	rec := requireNoticed(t, disk, segmentPath(2), Corrupt)
	require.Equal(t, []raft.Damage{{First: 4, Last: 6}}, rec.Damaged)
	require.EqualValues(t, 9, rec.LastIndex)
}

// A backup that was put back under the wrong name would end the log before what was acknowledged behind it.
func TestSegmentUnderAnothersNameIsRefused(t *testing.T) {
	disk := vfs.New(1)
	runs(t, smallOptions(disk), 20, 20, 20)
	graftFile(t, disk, segmentPath(2), disk, segmentPath(3))
	requireCorrupt(t, disk, segmentPath(3))
}

// Two servers of one name have existed: what one has written says nothing about the other. SAFETY inv 3
func TestFilesOfAnotherReplicaAreRefused(t *testing.T) {
	mine, other := vfs.New(1), vfs.New(1)
	runs(t, smallOptions(mine), 20, 20)
	opts, random := smallOptions(other), counter()
	opts.Random = func() uint64 { return random() + 1 }
	runs(t, opts, 20, 20)

	disk := mine.Clone()
	graftFile(t, other, segmentPath(1), disk, segmentPath(1))
	require.Contains(t, requireCorrupt(t, disk, segmentPath(1)).Reason, "replica")
	disk = mine.Clone()
	graftFile(t, other, "/data/vote", disk, "/data/vote")
	require.Contains(t, requireCorrupt(t, disk, "/data/vote").Reason, "replica")
}

// The same replica, copied, has lived two lives: everything about their files agrees but what was written into them.
func TestSegmentOfAnotherHistoryIsRefused(t *testing.T) {
	mine, other := vfs.New(1), vfs.New(1)
	runs(t, smallOptions(mine), 20)
	runs(t, smallOptions(other), 21)
	for _, disk := range []*vfs.Disk{mine, other} { // the next run seals the segment, and writes nothing
		opts := smallOptions(disk)
		w := New("/data", opts)
		mustOpen(t, w)
		require.NoError(t, w.Close())
	}
	graftFile(t, other, segmentPath(1), mine, segmentPath(1))
	requireCorrupt(t, mine, segmentPath(1))
}

// The second batch of another life has the right number, the right place and the right segment, and follows other entries.
func TestBatchOfAnotherHistoryIsRefused(t *testing.T) {
	var disks []*vfs.Disk
	var at int64
	for _, size := range []int{300, 301} {
		disk := vfs.New(1)
		w := New("/data", smallOptions(disk))
		mustOpen(t, w)
		require.NoError(t, w.Write(raft.Batch{Entries: commands(1, 1, 1, size)}))
		at = w.active.end
		require.NoError(t, w.Write(raft.Batch{Entries: commands(2, 1, 1, size)}))
		require.NoError(t, w.Close())
		disks = append(disks, disk)
	}
	graft(t, disks[1], segmentPath(1), disks[0], segmentPath(1), at, 2*sectorSize)
	requireCorrupt(t, disks[0], segmentPath(1))
}

// The blocks of a file that was removed may show up in a new one. What is in them may even be the right batch by number, place and
// what it follows: two runs have written a first batch, and the log of one of them is gone.
func TestBatchOfAnotherSegmentIsNotTaken(t *testing.T) {
	before := vfs.New(1)
	w := New("/data", smallOptions(before))
	mustOpen(t, w)
	require.NoError(t, w.Close())
	var disks []*vfs.Disk
	for i := range uint64(2) {
		disk := before.Clone()
		opts, random := smallOptions(disk), counter()
		opts.Random = func() uint64 { return random() + i }
		w := New("/data", opts)
		mustOpen(t, w)
		require.NoError(t, w.Write(raft.Batch{Entries: commands(1, 1, 1, 300+int(i))}))
		require.NoError(t, w.Close())
		disks = append(disks, disk)
	}
	graft(t, disks[1], segmentPath(2), disks[0], segmentPath(2), segmentHeaderSize, 2*sectorSize)
	rec := requireNoticed(t, disks[0], segmentPath(2), Fenced)
	require.Zero(t, rec.LastIndex)
}

// The vote file is written after the batch that it names. A file that ends before that batch has lost it, although what is left of it
// shows no damage.
func TestLogThatEndsBeforeItsVoteIsFenced(t *testing.T) {
	disk := vfs.New(1)
	w := New("/data", smallOptions(disk))
	mustOpen(t, w)
	require.NoError(t, w.Write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 1, VotedFor: "n1"}, Entries: commands(1, 1, 1, 20)}))
	require.NoError(t, w.Close())
	shorten(t, disk, 1, segmentHeaderSize)
	rec := requireNoticed(t, disk, segmentPath(1), Fenced)
	require.Equal(t, raft.MaxTerm, rec.Fence.Term)
	require.Equal(t, raft.HardState{CurrentTerm: 1, VotedFor: "n1"}, rec.HardState, "from the vote file")
}

// An idle record is not waited for: after a crash of the machine its sector may be empty, although a later batch is durable.
func TestLostIdleRecordHidesNoLaterBatch(t *testing.T) {
	disk := vfs.New(1)
	w := New("/data", smallOptions(disk))
	mustOpen(t, w)
	all := commands(1, 4, 1, 300)
	require.NoError(t, w.Write(raft.Batch{Entries: all[:2]}))
	at := w.active.end
	require.NoError(t, w.Idle())
	require.Equal(t, at+sectorSize, w.active.end, "the next batch does not overwrite it")
	require.NoError(t, w.Write(raft.Batch{Entries: all[2:]}))
	require.NoError(t, w.Close())
	require.NoError(t, disk.Zero(segmentPath(1), at, sectorSize))

	rec := mustOpen(t, w)
	require.EqualValues(t, 4, rec.LastIndex)
	require.Zero(t, w.Stats().TornBatches)
	requireEntries(t, w, all)
	require.EqualValues(t, 4, reopen(t, w).LastIndex, "also in a sealed segment")
	requireEntries(t, w, all)
	require.NoError(t, w.Close())
}

// SAFETY §4: "segment header twice".
func TestOneCopyOfTheSegmentHeaderIsEnough(t *testing.T) {
	for broken := range int64(2) {
		disk := vfs.New(1)
		runs(t, smallOptions(disk), 20, 20)
		require.NoError(t, disk.Flip(segmentPath(1), broken*pageSize+40, 1)) // of the replica
		w := New("/data", smallOptions(disk))
		rec := mustOpen(t, w)
		require.EqualValues(t, 6, rec.LastIndex)
		require.Empty(t, rec.Damaged)
		require.Zero(t, rec.Fence)
		require.Len(t, rec.Findings, 1)
		require.NoError(t, w.Close())
	}
}

// Without the vote file the log alone says for whom this server has voted.
func TestDamagedVoteInTheLogIsNotUsed(t *testing.T) {
	disk := vfs.New(1)
	w := New("/data", smallOptions(disk))
	mustOpen(t, w)
	require.NoError(t, w.Write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 5, VotedFor: "a"}}))
	require.NoError(t, w.Close())
	require.NoError(t, disk.Remove("/data/vote"))
	require.NoError(t, disk.Flip(segmentPath(1), segmentHeaderSize+batchFixedSize, 2)) // "c"
	requireCorrupt(t, disk, segmentPath(1))
}

// The last batch holds sectors that are zero on purpose. They do not make a changed byte beside them look like an unfinished write.
func TestSectorsThatAreZeroOnPurposeHideNoDamage(t *testing.T) {
	disk, path, from, to := tornLog(t, false)
	before, err := readSectors(disk, path, from, int((to-from)/sectorSize))
	require.NoError(t, err)
	require.NotZero(t, zeroSectors(before)&0xff, "in the first page")
	for at := from + sectorSize - 1; at < to; at += sectorSize {
		if before[at-from] == 0 {
			continue // in a sector that is zero on purpose, or in the padding
		}
		d := disk.Clone()
		require.NoError(t, d.Flip(path, at, 1))
		w := New("/data", smallOptions(d))
		rec := mustOpen(t, w)
		require.Zero(t, w.Stats().TornBatches)
		require.True(t, rec.Fence.Term == raft.MaxTerm || rec.LastIndex == 5 && len(rec.Findings) > 0, "byte %d: %+v", at, rec)
		require.NoError(t, w.Close())
	}
}

// The header of a large batch is longer than a sector: what is lost in it is lost, and what is cut off is not read.
func TestHeaderOfALargeBatchIsCheckedBeforeItIsUsed(t *testing.T) {
	disk := vfs.New(1)
	opts := smallOptions(disk)
	opts.MinSegmentBytes, opts.MaxSegmentBytes = 1<<20, 1<<20
	w := New("/data", opts)
	mustOpen(t, w)
	require.NoError(t, w.Write(raft.Batch{Entries: commands(1, 1, 1, 20)}))
	from := w.active.end
	require.NoError(t, w.Write(raft.Batch{Entries: commands(2, 1, 1, 400_000)}))
	require.NoError(t, w.Close())

	torn := disk.Clone()
	require.NoError(t, torn.Zero(segmentPath(1), from+sectorSize, sectorSize))
	w = New("/data", smallOptions(torn))
	require.EqualValues(t, 1, mustOpen(t, w).LastIndex)
	require.EqualValues(t, 1, w.Stats().TornBatches)
	require.NoError(t, w.Close())

	shorten(t, disk, 1, from+sectorSize+10)
	w = New("/data", smallOptions(disk))
	rec := mustOpen(t, w)
	require.Equal(t, []raft.Damage{{First: 2, Last: 2}}, rec.Damaged, "its header says what it held")
	require.NoError(t, w.Close())
}

// The term that begins where the log is truncated is gone with its first entry.
func TestTruncationForgetsTheTermThatBeganThere(t *testing.T) {
	w := New("/data", smallOptions(vfs.New(1)))
	mustOpen(t, w)
	require.NoError(t, w.Write(raft.Batch{Entries: commands(1, 2, 1, 50)}))
	require.NoError(t, w.Write(raft.Batch{Entries: commands(3, 2, 2, 50)}))
	require.NoError(t, w.Write(raft.Batch{TruncateFrom: 3, Entries: commands(3, 2, 5, 50)}))
	require.Equal(t, []raft.TermStart{{Index: 1, Term: 1}, {Index: 3, Term: 5}}, reopen(t, w).Terms)
	require.NoError(t, w.Write(raft.Batch{TruncateFrom: 3}))
	require.Equal(t, []raft.TermStart{{Index: 1, Term: 1}}, reopen(t, w).Terms)
	require.NoError(t, w.Close())
}

// The parts of a batch take effect in the order of its fields: a snapshot finds the log as the truncation has left it.
func TestSnapshotBehindATruncationInOneBatch(t *testing.T) {
	w := New("/data", smallOptions(vfs.New(1)))
	mustOpen(t, w)
	require.NoError(t, w.Write(raft.Batch{Entries: commands(1, 10, 1, 50)}))
	require.NoError(t, w.Write(raft.Batch{TruncateFrom: 8, Snapshot: &raft.SnapshotMeta{Index: 9, Term: 1}}))
	rec := reopen(t, w)
	require.Equal(t, raft.EntryID{Term: 1, Index: 9}, rec.Compacted)
	require.EqualValues(t, 9, rec.LastIndex)
	require.NoError(t, w.Write(raft.Batch{Entries: commands(10, 2, 2, 50)}))
	requireEntries(t, w, commands(10, 2, 2, 50))
	require.NoError(t, w.Close())
}

// A file that was cut off may end with a batch, or in the middle of one that is not the last to be missing. Nothing in what is left of
// it shows that it was longer, but for its header.
func TestLastSegmentCutOffIsFenced(t *testing.T) {
	disk := vfs.New(1)
	w := New("/data", smallOptions(disk))
	mustOpen(t, w)
	var ends []int64
	for i := range raft.Index(3) {
		require.NoError(t, w.Write(raft.Batch{Entries: commands(1+i, 1, 1, 300)}))
		ends = append(ends, w.active.end)
	}
	size := w.activeSize
	require.NoError(t, w.Close())
	for _, at := range append(ends, segmentHeaderSize, ends[0]+100, size-1) {
		d := disk.Clone()
		f, err := d.OpenWrite(segmentPath(1))
		require.NoError(t, err)
		require.NoError(t, errors.Join(f.Truncate(at), f.Sync(), f.Close()))
		w := New("/data", smallOptions(d))
		rec := mustOpen(t, w)
		require.Equal(t, raft.MaxTerm, rec.Fence.Term, "cut at %d", at)
		require.Contains(t, fmt.Sprint(rec.Findings), "cut off")
		require.Equal(t, rec.Fence, reopen(t, w).Fence, "a fence survives a restart")
		require.NoError(t, w.Write(raft.Batch{Fence: &raft.EntryID{}}))
		require.Zero(t, reopen(t, w).Fence)
		require.NoError(t, w.Close())
	}
}

// The header of the log's last batch is damaged, and the idle record behind it tells what it held. Open does not write that batch again, and
// does not take the place of the one before, in another segment, for its place: found by TestDamageAndKillsTogether in internal/processes.
func TestLostBatchInFrontOfAnIdleRecordIsNotWrittenAgain(t *testing.T) {
	for _, verify := range []bool{true, false} {
		fsys := vfs.New(1)
		opts := smallOptions(fsys)
		opts.VerifyAtOpen = verify
		w := New("/data", opts)
		mustOpen(t, w)
		for i := range raft.Index(5) { // so that the segment is longer than the next one will be
			require.NoError(t, w.Write(raft.Batch{Entries: commands(i+1, 1, 1, 500)}))
		}
		reopen(t, w)
		require.NoError(t, w.Write(raft.Batch{Entries: commands(6, 1, 1, 10)}))
		require.NoError(t, w.Idle())
		path := w.active.path
		require.NoError(t, w.Close())
		require.NoError(t, fsys.Flip(path, segmentHeaderSize+40, 1))

		written := 0
		fsys.SetFault(func(op vfs.Op) error {
			if op.Kind == vfs.OpWrite && op.Path == path {
				written++
			}
			return nil
		})
		rec := mustOpen(t, w)
		require.Zero(t, written)
		require.Equal(t, []raft.Damage{{First: 6, Last: 6, MayConfigure: true}}, rec.Damaged)
		require.NoError(t, w.Write(raft.Batch{Entries: commands(7, 1, 1, 10)}))
		require.NoError(t, w.Close())
	}
}

// What a lost segment held is known from the next one, but it is not in there: no footer says so. The second start believed it, did not call
// the entries damaged, and did not say that a configuration may be among them (the simulator's seed 360).
func TestEntriesOfALostSegmentAreInNoFooter(t *testing.T) {
	fsys := vfs.New(1)
	w := New("/data", smallOptions(fsys))
	mustOpen(t, w)
	require.NoError(t, w.Write(raft.Batch{Entries: []raft.Entry{entry(1, 1, raft.EntryConfiguration, members("c", "n1", "n2", "n3"))}}))
	lost := w.active.path
	reopen(t, w)
	require.NoError(t, w.Write(raft.Batch{Entries: commands(2, 2, 1, 10)}))
	reopen(t, w)
	require.NoError(t, w.Write(raft.Batch{Entries: commands(4, 1, 1, 10)}))
	require.NoError(t, w.Close())
	require.NoError(t, fsys.Remove(lost))
	for range 3 {
		rec := mustOpen(t, w)
		require.Equal(t, []raft.Damage{{First: 1, Last: 1, MayConfigure: true}}, rec.Damaged)
		require.NoError(t, w.Write(raft.Batch{Entries: commands(rec.LastIndex+1, 1, 1, 10)}))
		for more := true; more; {
			var err error
			more, err = w.Prepare()
			require.NoError(t, err)
		}
		require.NoError(t, w.Close())
	}
}
