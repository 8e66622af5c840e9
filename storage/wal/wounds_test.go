package wal

import (
	"errors"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
)

// The tests in this file are ways in which other systems were hurt by their logs (SAFETY §3). docs/old-wounds.md lists them.

// Storage. The checksum of the log's last record did not match, and that was taken for a write that a crash had interrupted. It was a
// record that had been acknowledged and had rotted since; it was cut off, and a committed entry was gone (Alagappan and others,
// "Protocol-Aware Recovery for Consensus-Based Storage", FAST 2018). A sector that was never written reads zero here, and only such a
// batch is cut; anything else is damage.
func TestWoundTornTailAgainstBitRot(t *testing.T) {
	disk, path, from, to := tornLog(t, false)

	torn := disk.Clone()
	require.NoError(t, torn.Zero(path, to-sectorSize, sectorSize))
	w := New("/data", smallOptions(torn))
	require.EqualValues(t, 2, mustOpen(t, w).LastIndex)
	require.EqualValues(t, 1, w.Stats().TornBatches)
	require.NoError(t, w.Close())

	for at := from; at < to; at += sectorSize {
		rotten := disk.Clone()
		require.NoError(t, rotten.Flip(path, at+100, 1))
		w := New("/data", smallOptions(rotten))
		rec := mustOpen(t, w)
		require.True(t, len(rec.Damaged) > 0 || rec.Fence.Term == raft.MaxTerm || rec.LastIndex == 5, "bit at byte %d: %+v", at+100, rec)
		require.Zero(t, w.Stats().TornBatches)
		require.NoError(t, w.Close())
	}
}

// Storage. A sync failed once, the call was repeated and returned nil, and the data was acknowledged. The operating system had thrown
// the dirty pages away with the first error, so the second sync had nothing to do (Rebello and others, "Can Applications Recover from
// fsync Failures?", ATC 2020). A failed sync is final for this process, and the next one trusts nothing that was not synced again.
func TestWoundSyncFailsOnceAndTheRetrySucceeds(t *testing.T) {
	disk := vfs.New(1)
	w := New("/data", smallOptions(disk))
	mustOpen(t, w)
	require.NoError(t, w.Write(raft.Batch{Entries: commands(1, 1, 1, 10)}))
	failures := 1
	disk.SetFault(func(op vfs.Op) error {
		if op.Kind == vfs.OpSync && failures > 0 {
			failures--
			return vfs.ErrIO
		}
		return nil
	})
	b := raft.Batch{Entries: commands(2, 1, 1, 10)}
	require.ErrorIs(t, w.Write(b), vfs.ErrIO)
	require.ErrorIs(t, w.Write(b), vfs.ErrIO, "the retry")
	require.ErrorIs(t, w.Write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 2}}), vfs.ErrIO)
	require.NoError(t, w.Close())

	// The next process may find the entry in memory. If it says so, the entry stays.
	last := mustOpen(t, w).LastIndex
	for seed := range uint64(20) {
		disk.Reseed(seed)
		after := New("/data", smallOptions(disk.Clone().Crash()))
		again := mustOpen(t, after)
		require.Equal(t, last, again.LastIndex)
		require.Empty(t, again.Damaged)
		require.NoError(t, after.Close())
	}
	require.NoError(t, w.Close())
}

// Storage. The disk became full in the middle of a batch. Half of it was in the file; the next batch was written behind that half, and
// the next start could read neither. Room is found before a batch is begun: when there is none the batch is refused as a whole, and
// accepted as a whole later. Should the write itself find none, that is final: nobody knows what is on the disk.
func TestWoundFullInTheMiddleOfABatch(t *testing.T) {
	t.Run("while making room", func(t *testing.T) {
		disk := vfs.New(1)
		w := New("/data", smallOptions(disk))
		mustOpen(t, w)
		require.NoError(t, w.Write(raft.Batch{Entries: commands(1, 2, 1, 300)}))
		disk.SetSpace(5000)
		b := raft.Batch{Entries: commands(3, 4, 1, 5000)} // does not fit into this segment
		require.ErrorIs(t, w.Write(b), raft.ErrStorageFull)
		disk.SetSpace(-1)
		require.NoError(t, w.Write(b))
		require.EqualValues(t, 6, reopen(t, w).LastIndex)
		requireEntries(t, w, commands(3, 4, 1, 5000))
		require.NoError(t, w.Close())
	})
	t.Run("while writing", func(t *testing.T) {
		disk := vfs.New(1)
		w := New("/data", smallOptions(disk))
		mustOpen(t, w)
		require.NoError(t, w.Write(raft.Batch{Entries: commands(1, 2, 1, 300)}))
		full := 1
		disk.SetFault(func(op vfs.Op) error {
			if op.Kind == vfs.OpWrite && full > 0 {
				full--
				return errors.Join(vfs.ShortWrite{N: 700}, syscall.ENOSPC)
			}
			return nil
		})
		require.Error(t, w.Write(raft.Batch{Entries: commands(3, 4, 1, 500)}))
		require.Error(t, w.Write(raft.Batch{Entries: commands(3, 1, 1, 10)}), "behind half a batch")
		require.NoError(t, w.Close())
		require.EqualValues(t, 2, mustOpen(t, w).LastIndex)
		requireEntries(t, w, commands(1, 2, 1, 300))
		require.NoError(t, w.Close())
	})
}

// Storage. A new file was written and synced under a temporary name, and renamed. Its directory was not synced, and after a power
// failure the file was not there, with all the acknowledged entries in it (Pillai and others, "All File Systems Are Not Created
// Equal", OSDI 2014).
func TestWoundDirectoryNotSynced(t *testing.T) {
	for seed := range uint64(20) {
		disk := vfs.New(seed)
		w := New("/data", smallOptions(disk))
		mustOpen(t, w)
		for i := range raft.Index(12) { // several segments
			require.NoError(t, w.Write(raft.Batch{Entries: commands(i+1, 1, 1, 3000)}))
		}
		require.Greater(t, w.Stats().Segments, 2)
		after := New("/data", smallOptions(disk.Crash()))
		rec, err := after.Open(ctx, identity)
		require.NoError(t, err, "seed %d", seed)
		require.EqualValues(t, 12, rec.LastIndex, "seed %d", seed)
		require.NoError(t, after.Close())
	}
}

// Storage. Recovery read the log up to the first record that it did not understand and called that the end. It was in the middle:
// everything behind it had been acknowledged. What lies before something that was written later was durable, so it cannot be an
// interrupted write, not even if it reads zero.
func TestWoundDamageInTheMiddleTakenForTheEnd(t *testing.T) {
	disk := vfs.New(1)
	opts := smallOptions(disk)
	opts.MinSegmentBytes = 32 << 10 // all batches in one segment
	w := New("/data", opts)
	mustOpen(t, w)
	require.NoError(t, w.Write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 1}, Entries: commands(1, 2, 1, 300)}))
	path, from := w.active.path, w.active.end
	require.NoError(t, w.Write(raft.Batch{Entries: commands(3, 2, 1, 1300)}))
	to := w.active.end
	require.NoError(t, w.Write(raft.Batch{Entries: commands(5, 2, 1, 300)}))
	require.NoError(t, w.Close())

	for at := from; at < to; at += sectorSize {
		damaged := disk.Clone()
		require.NoError(t, damaged.Zero(path, at, sectorSize))
		w := New("/data", smallOptions(damaged))
		rec := mustOpen(t, w)
		require.EqualValues(t, 6, rec.LastIndex, "sector at byte %d", at)
		require.NotEmpty(t, rec.Damaged, "sector at byte %d", at)
		require.Equal(t, path, rec.Findings[0].File)
		require.NoError(t, w.Close())
	}
}

// Storage, and log. A conflicting suffix was truncated in the file, and its replacement appended: a power failure between the two left
// a log that had lost entries, although each operation had been carried out. The batch that replaces a suffix is what removes it, and
// a batch that is not there as a whole removes nothing.
func TestWoundPowerFailsBetweenTruncationAndAppend(t *testing.T) {
	for seed := range uint64(6) {
		for k := 0; ; k++ {
			disk := vfs.New(seed)
			w := New("/data", smallOptions(disk))
			mustOpen(t, w)
			old := commands(1, 5, 1, 600)
			require.NoError(t, w.Write(raft.Batch{Entries: old}))
			next := commands(3, 2, 2, 600)
			disk.FailFrom(disk.Ops() + k)
			err := w.Write(raft.Batch{TruncateFrom: 3, Entries: next})

			after := New("/data", smallOptions(disk.Crash()))
			switch rec := mustOpen(t, after); {
			case rec.LastIndex == 4:
				requireEntries(t, after, append(old[:2:2], next...))
			default:
				require.Error(t, err)
				require.EqualValues(t, 5, rec.LastIndex, "seed %d, operation %d", seed, k)
				requireEntries(t, after, old)
			}
			require.NoError(t, after.Close())
			if err == nil {
				break
			}
		}
	}
}

// Election. Term and vote were two keys in a store, written one after the other. A power failure between them left the new term beside
// the old vote, or the new vote beside the old term. Here both travel in one record, in two places, the log first; whatever is
// left of the two, a vote belongs to its term.
func TestWoundPowerFailsBetweenTermAndVote(t *testing.T) {
	before, next := raft.HardState{CurrentTerm: 4, VotedFor: "n2"}, raft.HardState{CurrentTerm: 5, VotedFor: "n3"}
	for seed := range uint64(6) {
		for k := 0; ; k++ {
			disk := vfs.New(seed)
			w := New("/data", smallOptions(disk))
			mustOpen(t, w)
			require.NoError(t, w.Write(raft.Batch{HardState: &before}))
			disk.FailFrom(disk.Ops() + k)
			err := w.Write(raft.Batch{HardState: &next})

			after := New("/data", smallOptions(disk.Crash()))
			rec := mustOpen(t, after)
			if err == nil {
				require.Equal(t, next, rec.HardState)
			} else {
				require.Contains(t, []raft.HardState{before, next}, rec.HardState, "seed %d, operation %d", seed, k)
			}
			require.NoError(t, after.Close())
			if err == nil {
				break
			}
		}
	}
}
