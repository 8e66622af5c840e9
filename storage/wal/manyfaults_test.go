package wal

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
)

// votingLog makes a log of two batches of several sectors each, of which the last one carries a vote if that is wanted. It returns where each
// of them begins, and where the last one ends.
func votingLog(t *testing.T, voting bool) (disk *vfs.Disk, path string, at []int64) {
	last := raft.Batch{Entries: commands(4, 3, 1, 400)}
	if voting {
		last.HardState = &raft.HardState{CurrentTerm: 2, VotedFor: "b"}
	}
	return batchesOf(t, raft.Batch{HardState: &raft.HardState{CurrentTerm: 1, VotedFor: "a"}, Entries: commands(1, 3, 1, 400)}, last)
}

// loseNewestVote damages both copies of the newest generation of the vote file.
func loseNewestVote(t *testing.T, disk *vfs.Disk) {
	t.Helper()
	rec, _, known, _, err := readVote(disk, "/data/vote")
	require.NoError(t, err)
	require.True(t, known)
	for copy := range int64(voteCopies) {
		require.NoError(t, disk.Flip("/data/vote", int64(rec.generation%2)*voteCopies*pageSize+copy*pageSize+60, 1))
	}
}

// A batch that looks unfinished may have been whole, if what would vouch for it has been hit, too: with the newest generation of the vote
// file, a vote may be lost that the server has given. SAFETY inv 3, and §2: "both copies of term/vote unreadable: refuses to start as voter".
func TestUnfinishedBatchIsNotBelievedWhereAVoteMayBeLost(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, disk *vfs.Disk){
		"newest generation lost": loseNewestVote,
		"file gone":              func(t *testing.T, disk *vfs.Disk) { require.NoError(t, disk.Remove("/data/vote")) },
	} {
		for where, sector := range map[string]int64{"first": 0, "another": 1} {
			t.Run(name+", "+where+" sector unwritten", func(t *testing.T) {
				disk, path, at := votingLog(t, true)
				require.NoError(t, disk.Zero(path, at[1]+sector*sectorSize, sectorSize))
				lose(t, disk)
				requireRefused(t, disk, TermLost)

				// One that shows by its header that it had none is an unfinished write like any other.
				disk, path, at = votingLog(t, false)
				require.NoError(t, disk.Zero(path, at[1]+sector*sectorSize, sectorSize))
				certain := disk.Clone()
				lose(t, disk)
				if sector == 0 {
					requireRefused(t, disk, TermLost)
				} else {
					require.EqualValues(t, 3, requireTorn(t, disk, path).LastIndex)
				}
				require.EqualValues(t, 3, requireTorn(t, certain, path).LastIndex, "the vote file is certain that there was no other vote")
			})
		}
	}
}

func truncateFile(disk *vfs.Disk, path string, size int64) error {
	f, err := disk.OpenWrite(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Sync(), f.Close())
}

// requireTorn checks that the last batch is cut off as unfinished.
func requireTorn(t *testing.T, disk *vfs.Disk, path string) raft.Recovered {
	t.Helper()
	rec := requireNoticed(t, disk, path, Torn)
	require.Zero(t, rec.Fence)
	require.Equal(t, raft.HardState{CurrentTerm: 1, VotedFor: "a"}, rec.HardState)
	return rec
}

// Open makes the vote file certain again whatever it has lost, so that the next crash is no more than a crash.
func TestVoteFileIsCertainAgainOnceItWasOpened(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, disk *vfs.Disk){
		"newest generation": loseNewestVote,
		"all of it":         func(t *testing.T, disk *vfs.Disk) { require.NoError(t, disk.Corrupt("/data/vote", 0, voteFileSize)) },
		"the file":          func(t *testing.T, disk *vfs.Disk) { require.NoError(t, disk.Remove("/data/vote")) },
		"its end": func(t *testing.T, disk *vfs.Disk) {
			require.NoError(t, truncateFile(disk, "/data/vote", voteFileSize-pageSize))
		},
	} {
		t.Run(name, func(t *testing.T) {
			disk, _, _ := votingLog(t, true)
			lose(t, disk)
			w := New("/data", smallOptions(disk))
			mustOpen(t, w)
			before, path := w.active.end, w.active.path
			rec, _, known, _, err := readVote(disk, "/data/vote")
			require.NoError(t, err)
			require.True(t, known)
			require.Equal(t, raft.HardState{CurrentTerm: 2, VotedFor: "b"}, rec.hardState)
			require.NoError(t, w.Write(raft.Batch{Entries: commands(7, 3, 2, 400)}))
			require.NoError(t, w.Close())
			require.NoError(t, disk.Zero(path, before, sectorSize))
			require.EqualValues(t, 6, requireNoticed(t, disk, path, Torn).LastIndex)
		})
	}
}

// A log has lost the header of its first segment, and the vote file: what was repaired since is not taken for compacted.
func TestRepairedEntriesInFrontOfTheFirstReadableSegmentStay(t *testing.T) {
	disk := vfs.New(1)
	runs(t, smallOptions(disk), 50, 50)
	require.NoError(t, disk.Zero(segmentPath(1), 0, segmentHeaderSize))
	require.NoError(t, disk.Remove("/data/vote"))
	w := New("/data", smallOptions(disk))
	rec := mustOpen(t, w)
	require.Equal(t, []raft.Damage{{First: 1, Last: 3}}, rec.Damaged)
	require.NoError(t, w.Write(raft.Batch{Repairs: commands(1, 3, 1, 50)}))
	for range 3 {
		rec = reopen(t, w)
		require.Zero(t, rec.Compacted)
		require.Empty(t, rec.Damaged)
		requireEntries(t, w, append(commands(1, 3, 1, 50), commands(4, 3, 1, 50)...))
		for more := true; more; { // removes the file
			var err error
			more, err = w.Prepare()
			require.NoError(t, err)
		}
	}
	require.NoError(t, w.Close())
}

// The next batch is not begun before the one before is synced: whatever lies behind a batch of which it is known where it ends vouches for it.
// That what lies there was whole, too, is not known: the log is fenced. SAFETY §4, torn or corrupt.
func TestNothingLiesBehindAnUnfinishedBatch(t *testing.T) {
	all := append(commands(1, 3, 1, 400), commands(4, 3, 1, 400)...)
	for name, hit := range map[string]func(t *testing.T, disk *vfs.Disk, path string, at []int64){
		"a batch that is damaged": func(t *testing.T, disk *vfs.Disk, path string, at []int64) {
			require.NoError(t, disk.Flip(path, at[2]+20, 1))
		},
		"one that looks unfinished": func(t *testing.T, disk *vfs.Disk, path string, at []int64) {
			require.NoError(t, disk.Zero(path, at[2], sectorSize))
		},
		"its last sector": func(t *testing.T, disk *vfs.Disk, path string, at []int64) {
			require.NoError(t, disk.Zero(path, at[2], int(at[3]-at[2]-sectorSize)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			disk, path, at := batchesOf(t, raft.Batch{Entries: all[:3]}, raft.Batch{Entries: all[3:]}, raft.Batch{Entries: commands(7, 3, 1, 400)})
			require.NoError(t, disk.Zero(path, at[1]+sectorSize, sectorSize))
			hit(t, disk, path, at)
			rec := mustOpen(t, New("/data", smallOptions(disk.Clone())))
			require.Equal(t, []raft.Damage{{First: 4, Last: 6}}, rec.Damaged)
			require.Equal(t, raft.EntryID{Term: raft.MaxTerm}, rec.Fence)
			require.EqualValues(t, 6, rec.LastIndex)

			require.NoError(t, disk.Zero(path, at[2], int(at[3]-at[2])))
			rec = requireNoticed(t, disk, path, Torn)
			require.EqualValues(t, 3, rec.LastIndex, "nothing behind it: an unfinished write")
		})
	}
}

// What lies behind entries of unknown terms was in the log, too: the fence is not the last of them.
func TestFenceCountsWhatLiesBehindUnknownTerms(t *testing.T) {
	all := append(commands(1, 3, 2, 60), commands(4, 3, 5, 60)...)
	disk, path, at := batchesOf(t, raft.Batch{HardState: &raft.HardState{CurrentTerm: 5}}, raft.Batch{Entries: all},
		raft.Batch{Entries: commands(7, 1, 5, 10)})
	header, _ := headerSize(0, int64(raft.EntriesSize(all)))
	require.NoError(t, disk.Flip(path, at[1]+int64(header)+int64(all[0].Size())+9, 1))
	require.NoError(t, disk.Flip(path, at[2]+20, 1))
	rec := mustOpen(t, New("/data", smallOptions(disk)))
	require.Zero(t, rec.LastIndex)
	require.Equal(t, raft.EntryID{Term: raft.MaxTerm}, rec.Fence)
}
