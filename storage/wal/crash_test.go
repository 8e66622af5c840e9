package wal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
)

// model is what a log must hold.
type model struct {
	hardState raft.HardState
	base      raft.Index // entries up to here need not be there
	start     raft.Index // the index in front of entries[0]
	entries   []raft.Entry
	fence     raft.EntryID
}

func (m model) last() raft.Index { return m.start + raft.Index(len(m.entries)) }

// after returns the model after one more batch.
func (m model) after(b raft.Batch) model {
	if b.HardState != nil {
		m.hardState = *b.HardState
	}
	if b.TruncateFrom != 0 {
		n := int(b.TruncateFrom - 1 - m.start)
		m.entries = m.entries[:n:n]
	}
	if b.Snapshot != nil {
		i := int(b.Snapshot.Index) - int(m.start)
		if i < 1 || i > len(m.entries) || m.entries[i-1].Term != b.Snapshot.Term {
			m.start, m.entries = b.Snapshot.Index, nil
		}
		m.base = max(m.base, b.Snapshot.Index)
	}
	m.entries = append(m.entries[:len(m.entries):len(m.entries)], b.Entries...)
	if b.Fence != nil {
		m.fence = *b.Fence
	}
	return m
}

// check compares a log that was opened with the model.
func (m model) check(w *WAL, rec *raft.Recovered) error {
	if rec.HardState != m.hardState {
		return fmt.Errorf("hard state %v, want %v", rec.HardState, m.hardState)
	}
	if len(rec.Damaged) > 0 || rec.Fence != m.fence {
		return fmt.Errorf("damaged %v, fence %v, want none and %v", rec.Damaged, rec.Fence, m.fence)
	}
	if rec.LastIndex != m.last() || rec.Compacted.Index > max(m.base, m.start) {
		return fmt.Errorf("log (%d, %d], want (at most %d, %d]", rec.Compacted.Index, rec.LastIndex, max(m.base, m.start), m.last())
	}
	for at := rec.Compacted.Index + 1; at <= rec.LastIndex; {
		es, err := w.Entries(at, rec.LastIndex+1, 1<<20)
		if err != nil {
			return err
		}
		for i := range es {
			want := m.entries[at-m.start-1]
			if string(es[i].Frame()) != string(want.Frame()) {
				return fmt.Errorf("entry %v, want %v", es[i].ID(), want.ID())
			}
			at++
		}
	}
	return nil
}

// step is one call on the log.
type step struct {
	batch   *raft.Batch
	compact raft.Index
	idle    bool
	prepare bool
	reopen  bool
}

// workload touches every kind of batch, several segments, compaction and restarts.
func workload() []step {
	var steps []step
	write := func(b raft.Batch) { steps = append(steps, step{batch: &b}) }
	write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 1}, Entries: []raft.Entry{entry(1, 1, raft.EntryConfiguration, []byte("first"))}})
	write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 2, VotedFor: "n1"}})
	write(raft.Batch{Entries: commands(2, 3, 2, 300)})
	steps = append(steps, step{idle: true})
	write(raft.Batch{Entries: commands(5, 2, 2, 4200)})
	write(raft.Batch{TruncateFrom: 6, HardState: &raft.HardState{CurrentTerm: 3}, Entries: commands(6, 2, 3, 50)})
	steps = append(steps, step{prepare: true}, step{reopen: true})
	write(raft.Batch{Entries: commands(8, 4, 3, 1000)})
	write(raft.Batch{Repairs: commands(8, 2, 3, 1000)[1:], Fence: &raft.EntryID{Term: 3, Index: 40}})
	write(raft.Batch{Entries: commands(12, 4, 3, 1800)})
	steps = append(steps, step{compact: 8}, step{prepare: true}, step{idle: true})
	write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 4, VotedFor: "n2"}, TruncateFrom: 10})
	write(raft.Batch{Entries: commands(10, 2, 4, 6000), Fence: &raft.EntryID{}})
	write(raft.Batch{Entries: commands(12, 1, 4, 100)})
	steps = append(steps, step{compact: 11})
	write(raft.Batch{Snapshot: &raft.SnapshotMeta{Index: 30, Term: 4}})
	write(raft.Batch{Entries: commands(31, 3, 4, 10)})
	steps = append(steps, step{reopen: true}, step{idle: true}, step{prepare: true}, step{compact: 30})
	write(raft.Batch{Entries: commands(34, 1, 4, 700)})
	return steps
}

// carryOut carries out the steps until one fails. It returns what was acknowledged, and what would hold had the step under way succeeded.
func carryOut(w *WAL, steps []step) (acknowledged, inDoubt model, err error) {
	var m model
	if _, err := w.Open(ctx, identity); err != nil {
		return m, m, err
	}
	for i, s := range steps {
		switch {
		case s.batch != nil:
			if err := w.Write(*s.batch); err != nil {
				return m, m.after(*s.batch), fmt.Errorf("step %d: %w", i, err)
			}
			m = m.after(*s.batch)
		case s.compact != 0:
			m.base = max(m.base, s.compact)
			err = w.Compact(s.compact)
		case s.idle:
			err = w.Idle()
		case s.prepare:
			for more := true; more && err == nil; {
				more, err = w.Prepare()
			}
		case s.reopen:
			if err = w.Close(); err == nil {
				_, err = w.Open(ctx, identity)
			}
		}
		if err != nil {
			return m, m, fmt.Errorf("step %d: %w", i, err)
		}
	}
	return m, m, nil
}

// TestCrashAtEveryFileOperation checks that whatever Write has acknowledged is there after a crash at any point, that a batch under
// way is there as a whole or not at all, and that a crash during recovery makes no difference.
// SAFETY inv 2, 3, 11, 12, 23
func TestCrashAtEveryFileOperation(t *testing.T) {
	steps := workload()
	probe := vfs.New(0)
	m, _, err := carryOut(New("/data/n1", smallOptions(probe)), steps)
	require.NoError(t, err)
	require.EqualValues(t, 34, m.last())

	seeds := uint64(12)
	if testing.Short() {
		seeds = 3
	}
	for k := range probe.Ops() {
		for seed := range seeds {
			disk := vfs.New(seed)
			disk.FailFrom(k)
			acknowledged, inDoubt, err := carryOut(New("/data/n1", smallOptions(disk)), steps)
			if err == nil {
				// Prepare and Compact only log what they cannot tidy up.
				require.Equal(t, m.last(), acknowledged.last())
			} else {
				require.ErrorIs(t, err, vfs.ErrCrashed, "operation %d", k)
			}

			disk = disk.Crash()
			if seed%3 == 2 { // a second crash, while the first is being recovered from
				disk.FailFrom(int(seed))
				if _, err := New("/data/n1", smallOptions(disk)).Open(ctx, identity); err != nil {
					require.ErrorIs(t, err, vfs.ErrCrashed, "operation %d, seed %d", k, seed)
				}
				disk = disk.Crash()
			}
			opts := smallOptions(disk)
			w := New("/data/n1", opts)
			rec, err := w.Open(ctx, identity)
			require.NoError(t, err, "operation %d, seed %d\n%s", k, seed, disk.Dump())
			if err := acknowledged.check(w, &rec); err != nil {
				second := inDoubt.check(w, &rec)
				require.NoError(t, second, "operation %d, seed %d: acknowledged state: %v", k, seed, err)
			}
			next := rec.LastIndex + 1
			require.NoError(t, w.Write(raft.Batch{Entries: commands(next, 1, 9, 10)}))
			require.Equal(t, next, reopen(t, w).LastIndex)
			require.NoError(t, w.Close())
		}
	}
}

// TestFullDiskAtAnyPointIsTypedAndPasses runs out of space after any number of bytes, then gets some and goes on where it was.
func TestFullDiskAtAnyPointIsTypedAndPasses(t *testing.T) {
	met := 0
	for space := int64(0); space < 160<<10; space += 3500 {
		disk := vfs.New(1)
		disk.SetSpace(space)
		w := New("/data", smallOptions(disk))
		retry := func(f func() error) {
			t.Helper()
			err := f()
			if err != nil {
				require.ErrorIs(t, err, raft.ErrStorageFull, "after %d bytes", space)
				met++
				disk.SetSpace(-1)
				err = f()
			}
			require.NoError(t, err, "after %d bytes", space)
		}
		var m model
		var rec raft.Recovered
		open := func() (err error) { rec, err = w.Open(ctx, identity); return err }
		retry(open)
		for _, s := range workload() {
			switch {
			case s.batch != nil:
				retry(func() error { return w.Write(*s.batch) })
				m = m.after(*s.batch)
			case s.compact != 0:
				m.base = max(m.base, s.compact)
				require.NoError(t, w.Compact(s.compact))
			case s.idle:
				require.NoError(t, w.Idle())
			case s.prepare:
				retry(func() error { _, err := w.Prepare(); return err })
			case s.reopen:
				require.NoError(t, w.Close())
				retry(open)
				require.NoError(t, m.check(w, &rec))
			}
		}
		require.NoError(t, w.Close())
		retry(open)
		require.NoError(t, m.check(w, &rec))
		require.NoError(t, w.Close())
	}
	require.Greater(t, met, 10)
}

// TestRandomWorkloadsThroughManyCrashes lets one disk live through several runs of random steps, each cut off at a random operation.
// SAFETY inv 2, 3, 11, 12, 23
func TestRandomWorkloadsThroughManyCrashes(t *testing.T) {
	seeds := uint64(300)
	if testing.Short() {
		seeds = 50
	}
	for seed := range seeds {
		rnd := rand.New(rand.NewPCG(seed, 0))
		disk := vfs.New(seed)
		opts := smallOptions(disk)
		var m model
		for life := range 6 {
			disk.FailFrom(disk.Ops() + rnd.IntN(120))
			opts.FS = disk
			w := New("/data", opts)
			before, inDoubt := m, m
			rec, err := w.Open(ctx, identity)
			for err == nil {
				before, inDoubt = m, m
				switch rnd.IntN(12) {
				case 0:
					_, err = w.Prepare()
				case 1, 2:
					err = w.Idle()
				case 3:
					to := m.base + raft.Index(rnd.Uint64N(uint64(m.last()-min(m.base, m.last()))+1))
					m.base = max(m.base, to)
					err = w.Compact(to)
				case 4:
					if err = w.Close(); err == nil {
						if rec, err = w.Open(ctx, identity); err == nil {
							require.NoError(t, m.check(w, &rec), "seed %d, life %d", seed, life)
						}
					}
				default:
					b := randomBatch(rnd, m)
					inDoubt = m.after(b)
					if err = w.Write(b); err == nil {
						m = inDoubt
					}
				}
			}
			require.ErrorIs(t, err, vfs.ErrCrashed, "seed %d, life %d", seed, life)
			disk = disk.Crash()

			opts.FS = disk
			w = New("/data", opts)
			rec, err = w.Open(ctx, identity)
			require.NoError(t, err, "seed %d, life %d\n%s", seed, life, disk.Dump())
			before.base, inDoubt.base = max(before.base, m.base), max(inDoubt.base, m.base)
			m = before
			if err := before.check(w, &rec); err != nil {
				require.NoError(t, inDoubt.check(w, &rec), "seed %d, life %d: acknowledged state: %v", seed, life, err)
				m = inDoubt
			}
			require.NoError(t, w.Close())
		}
	}
}

// randomBatch makes a batch that a core could write on top of m.
func randomBatch(rnd *rand.Rand, m model) raft.Batch {
	var b raft.Batch
	term := max(m.hardState.CurrentTerm, 1)
	switch rnd.IntN(6) {
	case 0:
		term++
		b.HardState = &raft.HardState{CurrentTerm: term}
	case 1:
		if m.hardState.VotedFor == "" {
			b.HardState = &raft.HardState{CurrentTerm: m.hardState.CurrentTerm, VotedFor: "n2"}
		}
	}
	last := m.last()
	floor := max(m.base, m.start)
	switch {
	case rnd.IntN(5) == 0 && last > floor:
		b.TruncateFrom = floor + 1 + raft.Index(rnd.Uint64N(uint64(last-floor)))
		last = b.TruncateFrom - 1
	case rnd.IntN(30) == 0:
		b.Snapshot = &raft.SnapshotMeta{Index: last + raft.Index(rnd.Uint64N(20)) + 1, Term: term}
		last = b.Snapshot.Index
	}
	if b.Snapshot == nil && last > floor && rnd.IntN(6) == 0 { // whether they are damaged makes no difference
		for index := floor + 1 + raft.Index(rnd.Uint64N(uint64(last-floor))); index <= last && len(b.Repairs) < 3; index += 1 + raft.Index(rnd.IntN(2)) {
			b.Repairs = append(b.Repairs, m.entries[index-m.start-1])
		}
	}
	if rnd.IntN(10) == 0 {
		b.Fence = &raft.EntryID{}
		if rnd.IntN(2) == 0 {
			*b.Fence = raft.EntryID{Term: term, Index: last + 3}
		}
	}
	for n := rnd.IntN(4); n > 0; n-- {
		last++
		data := make([]byte, rnd.IntN(2500)) // half of them with zeroed sectors inside
		if rnd.IntN(2) == 0 {
			for i := range data {
				data[i] = byte(rnd.Uint32())
			}
		}
		b.Entries = append(b.Entries, entry(last, term, raft.EntryCommand, data))
	}
	return b
}

// tornLog makes a log whose last batch spans several pages, and returns the disk, the last segment, and where that batch lies.
func tornLog(t *testing.T, idle bool) (disk *vfs.Disk, path string, from, to int64) {
	t.Helper()
	disk = vfs.New(1)
	opts := smallOptions(disk)
	opts.MinSegmentBytes = 32 << 10 // both batches in one segment
	w := New("/data", opts)
	mustOpen(t, w)
	require.NoError(t, w.Write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 1}, Entries: commands(1, 2, 1, 300)}))
	from = w.active.end
	es := commands(3, 3, 1, 1300)
	es[1] = entry(4, 1, raft.EntryCommand, make([]byte, 1300)) // with sectors that are zero on purpose
	require.NoError(t, w.Write(raft.Batch{Entries: es}))
	path, to = w.active.path, w.active.end
	if idle {
		require.NoError(t, w.Idle())
	}
	require.NoError(t, w.Close())
	return disk, path, from, to
}

// TestEveryTornPatternOfTheLastBatchIsCut zeroes every subset of the last batch's sectors.
func TestEveryTornPatternOfTheLastBatchIsCut(t *testing.T) {
	disk, path, from, to := tornLog(t, false)
	sectors := int((to - from) / sectorSize)
	require.Less(t, sectors, 12)
	for lost := range 1 << sectors {
		d := disk.Clone()
		before, err := readSectors(d, path, from, sectors)
		require.NoError(t, err)
		missing := false
		for s := range sectors {
			if lost&(1<<s) != 0 {
				require.NoError(t, d.Zero(path, from+int64(s*sectorSize), sectorSize))
				missing = missing || !isZero(before[s*sectorSize:(s+1)*sectorSize])
			}
		}
		w := New("/data", smallOptions(d))
		rec := mustOpen(t, w)
		if missing {
			require.EqualValues(t, 2, rec.LastIndex, "lost sectors %b", lost)
			nothingLeft := lost|zeroSectors(before) == 1<<sectors-1
			require.Equal(t, !nothingLeft, w.Stats().TornBatches == 1, "lost sectors %b", lost)
		} else {
			require.EqualValues(t, 5, rec.LastIndex, "lost sectors %b", lost)
			require.Zero(t, w.Stats().TornBatches)
		}
		require.Equal(t, rec.LastIndex, reopen(t, w).LastIndex, "what was cut stays cut, and is not damage in a sealed segment")
		require.NoError(t, w.Close())
	}
}

func readSectors(d *vfs.Disk, path string, from int64, n int) ([]byte, error) {
	f, err := d.Open(path)
	if err != nil {
		return nil, err
	}
	b := make([]byte, n*sectorSize)
	_, err = f.ReadAt(b, from)
	return b, errors.Join(err, f.Close())
}

func zeroSectors(b []byte) int {
	set := 0
	for s := 0; s*sectorSize < len(b); s++ {
		if isZero(b[s*sectorSize : (s+1)*sectorSize]) {
			set |= 1 << s
		}
	}
	return set
}

// TestLostSectorsBehindAWordThatTheyWereSyncedAreDamage checks each proof that the sync had returned: an idle record, a later
// batch, the vote file, a later segment.
func TestLostSectorsBehindAWordThatTheyWereSyncedAreDamage(t *testing.T) {
	requireDamaged := func(t *testing.T, d *vfs.Disk, path string) {
		t.Helper()
		w := New("/data", smallOptions(d))
		rec, err := w.Open(ctx, identity)
		var damage *raft.CorruptionError
		if errors.As(err, &damage) {
			require.Equal(t, path, damage.Path)
			require.NotEmpty(t, damage.Next)
			return
		}
		require.NoError(t, err)
		require.Zero(t, w.Stats().TornBatches)
		require.NotEmpty(t, rec.Findings)
		require.True(t, len(rec.Damaged) > 0 || rec.Fence.Term == raft.MaxTerm || rec.LastIndex >= 5, "%+v", rec)
		require.NoError(t, w.Close())
	}
	t.Run("idle record", func(t *testing.T) {
		disk, path, from, to := tornLog(t, true)
		for at := from; at < to; at += sectorSize {
			b, err := readSectors(disk, path, at, 1)
			require.NoError(t, err)
			if isZero(b) {
				continue
			}
			d := disk.Clone()
			require.NoError(t, d.Zero(path, at, sectorSize))
			requireDamaged(t, d, path)
		}
	})
	t.Run("later batch", func(t *testing.T) {
		disk, path, from, _ := tornLog(t, false)
		require.NoError(t, disk.Zero(path, from-sectorSize, sectorSize)) // in the first batch
		requireDamaged(t, disk, path)
	})
	t.Run("later batch, and no word of the vote file", func(t *testing.T) {
		disk := vfs.New(1)
		w := New("/data", smallOptions(disk))
		mustOpen(t, w)
		require.NoError(t, w.Write(raft.Batch{Entries: commands(1, 1, 1, 900)}))
		path, from := w.active.path, w.active.end
		require.NoError(t, w.Write(raft.Batch{Entries: commands(2, 1, 1, 900)}))
		require.NoError(t, w.Close())
		require.NoError(t, disk.Zero(path, from-sectorSize, sectorSize)) // in the first batch, of which nobody but the second knows
		requireDamaged(t, disk, path)
	})
	t.Run("vote file", func(t *testing.T) {
		disk := vfs.New(1)
		w := New("/data", smallOptions(disk))
		mustOpen(t, w)
		require.NoError(t, w.Write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 1}, Entries: commands(1, 1, 1, 900)}))
		path := w.active.path
		require.NoError(t, w.Close())
		require.NoError(t, disk.Zero(path, segmentHeaderSize+sectorSize, sectorSize))
		requireDamaged(t, disk, path)
	})
	t.Run("later segment", func(t *testing.T) {
		disk, path, from, to := tornLog(t, false)
		w := New("/data", smallOptions(disk))
		mustOpen(t, w)
		require.NoError(t, w.Close())
		require.NoError(t, disk.Zero(path, from, int(to-from)))
		requireDamaged(t, disk, path)
	})
	t.Run("no segment left", func(t *testing.T) {
		disk, path, _, _ := tornLog(t, false)
		require.NoError(t, disk.Remove(path))
		requireDamaged(t, disk, path)
	})
}

// TestChangedBytesAreNeverTakenForAnUnfinishedWrite flips bits all over a small log: Open refuses, or nothing is missing.
func TestChangedBytesAreNeverTakenForAnUnfinishedWrite(t *testing.T) {
	disk := vfs.New(1)
	w := New("/data", smallOptions(disk))
	mustOpen(t, w)
	m := model{}
	write := func(b raft.Batch) {
		require.NoError(t, w.Write(b))
		m = m.after(b)
	}
	write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 1, VotedFor: "n1"}, Entries: commands(1, 3, 1, 20)})
	require.NoError(t, w.Idle())
	reopen(t, w)
	write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 2, VotedFor: "n2"}, Entries: commands(4, 2, 2, 600)})
	write(raft.Batch{Entries: commands(6, 2, 2, 30)})
	require.NoError(t, w.Close())

	names, err := disk.List("/data")
	require.NoError(t, err)
	noticed := 0
	for _, name := range names {
		if name == snapshotsName {
			continue
		}
		path := "/data/" + name
		for i, c := range fileContent(t, disk, path) {
			at := int64(i)
			if c == 0 && at%31 != 0 {
				continue // zeros are sampled
			}
			d := disk.Clone()
			require.NoError(t, d.Flip(path, at, 1<<(at%8)))
			w := New("/data", smallOptions(d))
			rec, err := w.Open(ctx, identity)
			require.NoError(t, err, "%s, byte %d", name, at)
			damaged, err := m.checkDamaged(w, &rec, false)
			require.NoError(t, err, "%s, byte %d", name, at)
			if len(damaged) > 0 || rec.Fence != (raft.EntryID{}) {
				noticed++
			}
			require.NoError(t, w.Close())
		}
	}
	require.Greater(t, noticed, 300)
}

// TestDamageIsNotServed checks that entries damaged after Open are refused by Entries. SAFETY inv 24
func TestDamageIsNotServed(t *testing.T) {
	disk := vfs.New(1)
	w := New("/data", smallOptions(disk))
	mustOpen(t, w)
	require.NoError(t, w.Write(raft.Batch{Entries: commands(1, 2, 1, 300)}))
	path, from := w.active.path, w.active.end
	require.NoError(t, w.Write(raft.Batch{Entries: commands(3, 2, 1, 300)}))
	require.NoError(t, disk.Flip(path, from+500, 4))
	requireEntries(t, w, commands(1, 2, 1, 300))
	_, err := w.Entries(3, 5, 1000)
	var damage *raft.CorruptionError
	require.ErrorAs(t, err, &damage)
	require.Equal(t, path, damage.Path)
	require.NoError(t, w.Close())
}

// TestTwoVotesInOneTermAreRefused puts another server's vote file beside the log.
func TestTwoVotesInOneTermAreRefused(t *testing.T) {
	for _, c := range []struct {
		file raft.HardState
		want raft.HardState
		ok   bool
	}{
		{raft.HardState{CurrentTerm: 5, VotedFor: "b"}, raft.HardState{}, false},
		{raft.HardState{CurrentTerm: 5}, raft.HardState{CurrentTerm: 5, VotedFor: "a"}, true},
		{raft.HardState{CurrentTerm: 4, VotedFor: "b"}, raft.HardState{CurrentTerm: 5, VotedFor: "a"}, true},
		{raft.HardState{CurrentTerm: 6, VotedFor: "b"}, raft.HardState{CurrentTerm: 6, VotedFor: "b"}, true},
	} {
		disk := vfs.New(1)
		w := New("/data", smallOptions(disk))
		mustOpen(t, w)
		require.NoError(t, w.Write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 5, VotedFor: "a"}}))
		w.vote.hardState = c.file
		require.NoError(t, w.writeVote())
		require.NoError(t, w.Close())
		rec, err := w.Open(ctx, identity)
		if !c.ok {
			var damage *raft.CorruptionError
			require.ErrorAs(t, err, &damage)
			require.Equal(t, "/data/vote", damage.Path)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, c.want, rec.HardState)
		require.NoError(t, w.Close())
	}
}

// TestVoteSurvivesWithoutItsFile checks that the log alone is enough, and that compaction takes no vote away.
func TestVoteSurvivesWithoutItsFile(t *testing.T) {
	disk := vfs.New(1)
	w := New("/data", smallOptions(disk))
	mustOpen(t, w)
	hs := raft.HardState{CurrentTerm: 5, VotedFor: "a"}
	require.NoError(t, w.Write(raft.Batch{HardState: &hs}))
	for i := range raft.Index(100) {
		require.NoError(t, w.Write(raft.Batch{Entries: commands(i+1, 1, 5, 900)}))
	}
	require.NoError(t, w.Compact(99))
	require.NoError(t, w.Close())
	require.NoError(t, disk.Remove("/data/vote"))
	rec := mustOpen(t, w)
	require.Equal(t, hs, rec.HardState)
	require.EqualValues(t, 100, rec.LastIndex)
	require.NotZero(t, rec.Compacted.Index)
	require.NoError(t, w.Close())
}
