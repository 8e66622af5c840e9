package wal

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
)

// batchesOf makes a log of one run with those batches, and returns its file and where each batch begins.
func batchesOf(t *testing.T, batches ...raft.Batch) (disk *vfs.Disk, path string, at []int64) {
	t.Helper()
	disk = vfs.New(1)
	opts := smallOptions(disk)
	opts.MinSegmentBytes, opts.MaxSegmentBytes = 1<<20, 1<<20
	w := New("/data", opts)
	mustOpen(t, w)
	for i := range batches {
		at = append(at, w.active.end)
		require.NoError(t, w.Write(batches[i]))
	}
	at = append(at, w.active.end)
	path = w.active.path
	require.NoError(t, w.Close())
	return disk, path, at
}

// requireRefused checks that a log is refused with that verdict, that the error says what to do, and that nothing has changed.
func requireRefused(t *testing.T, disk *vfs.Disk, verdict Verdict) *RefusalError {
	t.Helper()
	before := disk.Ops()
	_, err := New("/data", smallOptions(disk)).Open(ctx, identity)
	var refusal *RefusalError
	require.ErrorAs(t, err, &refusal)
	require.Equal(t, verdict, refusal.Verdict)
	require.NotEmpty(t, refusal.Damage.Next)
	var damage *raft.CorruptionError
	require.ErrorAs(t, err, &damage)
	require.Equal(t, before, disk.Ops())
	return refusal
}

// The header of an entry is hit, so that its length is unknown: the page records say where the next one lies, and only those entries are
// lost that begin in the same page.
func TestSalvageGoesOnInTheNextPage(t *testing.T) {
	all := commands(1, 40, 1, 400)
	disk, path, at := batchesOf(t, raft.Batch{Entries: all}, raft.Batch{Entries: commands(41, 1, 1, 10)})
	header, pages := headerSize(0, int64(raft.EntriesSize(all)))
	require.Greater(t, pages, 3)
	hit := 2
	require.NoError(t, disk.Flip(path, at[0]+int64(header+hit*all[0].Size()+10), 1))
	inFirstPage := (pageSize - header + all[0].Size() - 1) / all[0].Size()

	w := New("/data", smallOptions(disk))
	rec := mustOpen(t, w)
	require.Equal(t, []raft.Damage{{First: raft.Index(hit + 1), Last: raft.Index(inFirstPage)}}, rec.Damaged)
	requireEntries(t, w, all[:hit])
	es, err := w.Entries(1, 41, 1<<20)
	require.NoError(t, err)
	require.Len(t, es, hit, "entries in front of the damage are returned without an error")
	requireEntries(t, w, all[inFirstPage:])
	require.NoError(t, w.Write(raft.Batch{Repairs: all[hit:inFirstPage]}))
	requireEntries(t, w, all)
	require.Empty(t, reopen(t, w).Damaged)
	requireEntries(t, w, all)
	require.NoError(t, w.Close())
}

// Whether something lies behind a damaged batch is found out by reading up to the end of the segment, which may be far. What is left of
// the batch is still used afterwards.
func TestSalvageFromTheLastBatchOfALargeSegment(t *testing.T) {
	all := commands(2, 40, 1, 400)
	disk, path, at := batchesOf(t, raft.Batch{Entries: commands(1, 1, 1, 10)},
		raft.Batch{HardState: &raft.HardState{CurrentTerm: 1, VotedFor: "a"}, Entries: all})
	header, _ := headerSize(1, int64(raft.EntriesSize(all)))
	require.NoError(t, disk.Flip(path, at[1]+int64(header+2*all[0].Size()+100), 1))
	require.NoError(t, disk.Remove("/data/vote"))
	w := New("/data", smallOptions(disk))
	rec := mustOpen(t, w)
	require.Equal(t, []raft.Damage{{First: 4, Last: 4}}, rec.Damaged)
	require.Equal(t, raft.HardState{CurrentTerm: 1, VotedFor: "a"}, rec.HardState)
	requireEntries(t, w, all[3:])
	require.NoError(t, w.Close())
}

// What a payload holds is never taken for an entry, although it is one: its place could be chosen by a client.
func TestPayloadIsNotSearchedForEntries(t *testing.T) {
	inner := entry(2, 1, raft.EntryCommand, []byte("forged"))
	outer := entry(1, 1, raft.EntryCommand, append(make([]byte, 50), inner.Frame()...))
	real := entry(2, 1, raft.EntryCommand, []byte("the real one"))
	disk, path, at := batchesOf(t, raft.Batch{Entries: []raft.Entry{outer, real}}, raft.Batch{Entries: commands(3, 1, 1, 10)})
	header, _ := headerSize(0, int64(outer.Size()+real.Size()))
	require.NoError(t, disk.Flip(path, at[0]+int64(header)+10, 1))
	w := New("/data", smallOptions(disk))
	require.Equal(t, []raft.Damage{{First: 1, Last: 2}}, mustOpen(t, w).Damaged)
	require.NoError(t, w.Close())
}

// Between two entries of known terms there are damaged ones of which the terms cannot be told. In the middle of the log it is refused; at its
// end, it ends in front of them and is fenced at its last entry.
func TestTermsThatAreUnknownAreNotGuessed(t *testing.T) {
	all := append(commands(3, 3, 2, 60), commands(6, 3, 5, 60)...)
	batch := raft.Batch{Entries: all}
	header, _ := headerSize(0, int64(raft.EntriesSize(all)))
	damage := func(disk *vfs.Disk, path string, at int64) {
		require.NoError(t, disk.Flip(path, at+int64(header)+int64(all[0].Size())+9, 1))
	}
	disk, path, at := batchesOf(t, raft.Batch{HardState: &raft.HardState{CurrentTerm: 5}, Entries: commands(1, 2, 2, 10)}, batch,
		raft.Batch{Entries: commands(9, 1, 5, 10)})
	damage(disk, path, at[1])
	require.Contains(t, requireRefused(t, disk, Damaged).Damage.Reason, "of which terms")

	disk, path, at = batchesOf(t, raft.Batch{HardState: &raft.HardState{CurrentTerm: 5}, Entries: commands(1, 2, 2, 10)}, batch)
	damage(disk, path, at[1])
	w := New("/data", smallOptions(disk))
	rec := mustOpen(t, w)
	require.Equal(t, raft.EntryID{Term: 5, Index: 8}, rec.Fence)
	require.EqualValues(t, 2, rec.LastIndex)
	require.Equal(t, rec.Fence, reopen(t, w).Fence)
	require.NoError(t, w.Close())
}

// SAFETY §2: "both copies of term/vote unreadable: refuses to start as voter". The vote in the log is damaged, and the vote file is gone, or has
// lost its newest generation.
func TestLostTermAndVoteAreRefused(t *testing.T) {
	disk, path, at := batchesOf(t, raft.Batch{HardState: &raft.HardState{CurrentTerm: 4, VotedFor: "a"}, Entries: commands(1, 1, 4, 10)},
		raft.Batch{HardState: &raft.HardState{CurrentTerm: 5, VotedFor: "b"}}, raft.Batch{Entries: commands(2, 1, 5, 10)})
	for name, offset := range map[string]int64{"fixed header": 20, "vote": batchFixedSize} {
		t.Run(name, func(t *testing.T) {
			damaged := disk.Clone()
			require.NoError(t, damaged.Flip(path, at[1]+offset, 1))
			w := New("/data", smallOptions(damaged.Clone()))
			require.Equal(t, raft.HardState{CurrentTerm: 5, VotedFor: "b"}, mustOpen(t, w).HardState, "the vote file has it")
			require.NoError(t, w.Close())

			gone := damaged.Clone()
			require.NoError(t, gone.Remove("/data/vote"))
			requireRefused(t, gone, TermLost)

			rec, _, known, _, err := readVote(damaged, "/data/vote")
			require.NoError(t, err)
			require.True(t, known)
			slot := int64(rec.generation%2) * voteCopies * pageSize
			require.NoError(t, damaged.Flip("/data/vote", slot+60, 1))
			w = New("/data", smallOptions(damaged.Clone()))
			require.Equal(t, raft.HardState{CurrentTerm: 5, VotedFor: "b"}, mustOpen(t, w).HardState, "in a second copy")
			require.NoError(t, w.Close())
			require.NoError(t, damaged.Flip("/data/vote", slot+pageSize+60, 1))
			requireRefused(t, damaged, TermLost)
		})
	}
}

// SAFETY §4: "A single voter with corruption refuses to start and names the repair command." It starts when nothing in force is lost.
func TestOnlyVoterWithDamageRefuses(t *testing.T) {
	for voters, refused := range map[string]bool{"one": true, "three": false} {
		t.Run(voters, func(t *testing.T) {
			conf := members("c", "n1")
			if !refused {
				conf = members("c", "n1", "n2", "n3")
			}
			disk, path, at := batchesOf(t, raft.Batch{Entries: []raft.Entry{entry(1, 1, raft.EntryConfiguration, conf)}},
				raft.Batch{Entries: commands(2, 2, 1, 100)}, raft.Batch{Entries: commands(4, 2, 1, 100)}, raft.Batch{TruncateFrom: 4, Entries: commands(4, 1, 2, 100)})
			superseded := disk.Clone()
			require.NoError(t, superseded.Flip(path, at[2]+400, 1))
			w := New("/data", smallOptions(superseded))
			rec := mustOpen(t, w)
			require.Empty(t, rec.Damaged)
			require.Equal(t, Degraded, rec.Findings[0].Verdict)
			require.NoError(t, w.Close())

			require.NoError(t, disk.Flip(path, at[1]+400, 1))
			if refused {
				r := requireRefused(t, disk, Damaged)
				require.Contains(t, r.Damage.Next, "raftctl recover")
				require.Equal(t, path, r.Damage.Path)
				require.Equal(t, raft.Damage{First: 3, Last: 3}, r.Damage.Damage)
				return
			}
			w = New("/data", smallOptions(disk))
			require.Equal(t, []raft.Damage{{First: 3, Last: 3}}, mustOpen(t, w).Damaged)
			require.NoError(t, w.Close())
		})
	}
}

// SAFETY §2: "wiped or rolled-back directory under the same ID: refused or fenced, never silently trusted".
func TestWipedDirectoryIsRefused(t *testing.T) {
	disk, path, _ := batchesOf(t, raft.Batch{Entries: commands(1, 1, 1, 10)})
	require.NoError(t, disk.Remove(path))
	requireRefused(t, disk, Wiped)
}

// Damaged entries that the newest snapshot covers are no loss: the log begins behind them.
func TestDamageBehindASnapshotIsNoLoss(t *testing.T) {
	disk := vfs.New(1)
	w := New("/data", smallOptions(disk))
	mustOpen(t, w)
	all := commands(1, 4, 1, 100)
	require.NoError(t, w.Write(raft.Batch{Entries: all}))
	path := w.active.path
	require.NoError(t, w.Write(raft.Batch{Entries: commands(5, 4, 1, 100)}))
	sink, err := w.Snapshots().Create(raft.SnapshotMeta{Index: 6, Term: 1, Size: -1, Configuration: raft.Configuration{
		ClusterID: "c", Servers: []raft.Server{{ID: "n1"}},
	}})
	require.NoError(t, err)
	_, err = sink.Commit()
	require.NoError(t, err)
	require.NoError(t, w.Close())
	require.NoError(t, disk.Flip(path, segmentHeaderSize+400, 1))
	rec := mustOpen(t, w)
	require.Empty(t, rec.Damaged)
	require.EqualValues(t, 2, rec.Compacted.Index, "the second entry was hit")
	require.Contains(t, rec.Findings[0].Meaning, "covered by a snapshot")
	requireEntries(t, w, append(all[2:4:4], commands(5, 4, 1, 100)...))
	require.NoError(t, w.Close())
}

// Damage of which nobody knew when the log was opened is found by the read, which says how far it goes; what is in front of it and behind is
// served. The repair lies in a later segment, and stays as long as the entry.
func TestDamageFoundByAReadIsRepaired(t *testing.T) {
	disk := vfs.New(1)
	w := New("/data", smallOptions(disk))
	mustOpen(t, w)
	all := append(commands(1, 4, 1, 300), commands(5, 4, 1, 300)...)
	require.NoError(t, w.Write(raft.Batch{Entries: all[:4]}))
	second, path := w.active.end, w.active.path
	require.NoError(t, w.Write(raft.Batch{Entries: all[4:]}))
	header, _ := headerSize(0, int64(raft.EntriesSize(all[4:])))
	for name, c := range map[string]struct {
		at   int64
		want raft.Damage
	}{
		"a payload":          {second + int64(header+all[4].Size()) + 100, raft.Damage{First: 6, Last: 6}},
		"the batch's header": {second + 20, raft.Damage{First: 5, Last: 8, MayConfigure: true}},
	} {
		t.Run(name, func(t *testing.T) {
			d := disk.Clone()
			w := New("/data", smallOptions(d))
			mustOpen(t, w)
			require.NoError(t, d.Flip(path, c.at, 1))
			es, err := w.Entries(1, 9, 1<<20)
			require.NoError(t, err)
			require.Len(t, es, int(c.want.First)-1)
			_, err = w.Entries(c.want.First, 9, 1<<20)
			var damage *raft.CorruptionError
			require.ErrorAs(t, err, &damage)
			require.Equal(t, c.want, damage.Damage)
			if c.want.Last < 8 {
				requireEntries(t, w, all[c.want.Last:])
			}
			require.NoError(t, w.Write(raft.Batch{Repairs: all[c.want.First-1 : c.want.Last]}))
			requireEntries(t, w, all)
			rec := reopen(t, w)
			require.Empty(t, rec.Damaged)
			requireEntries(t, w, all)
			// Behind the repair the log goes on, is cut back in front of it, and is repaired no more.
			require.NoError(t, w.Write(raft.Batch{TruncateFrom: c.want.First, Entries: commands(c.want.First, 1, 2, 10)}))
			require.Equal(t, c.want.First, reopen(t, w).LastIndex)
			requireEntries(t, w, commands(c.want.First, 1, 2, 10))
			require.NoError(t, w.Close())
		})
	}
	require.NoError(t, w.Close())
}

// Open believes the footers of sealed segments, which repeat their configurations; the scrub finds what has changed in front of them, once
// each time around, and what is superseded or repaired does not count. A footer that has changed itself is as good as none.
func TestScrubFindsWhatOpenDoesNotRead(t *testing.T) {
	disk := vfs.New(1)
	opts := smallOptions(disk)
	opts.MinSegmentBytes = 32 << 10 // all batches in one segment
	w := New("/data", opts)
	mustOpen(t, w)
	all := append(commands(1, 4, 1, 900), entry(5, 1, raft.EntryConfiguration, members("c", "n1", "n2", "n3")))
	require.NoError(t, w.Write(raft.Batch{Entries: all[:4]}))
	second, path := w.active.end, w.active.path
	require.NoError(t, w.Write(raft.Batch{Entries: all[4:]}))
	superseded := w.active.end
	require.NoError(t, w.Write(raft.Batch{Entries: commands(6, 1, 1, 100)}))
	require.NoError(t, w.Write(raft.Batch{TruncateFrom: 6, Entries: commands(6, 2, 2, 100)}))
	end := w.active.end
	all = append(all, commands(6, 2, 2, 100)...)
	reopen(t, w)
	for more := true; more; {
		var err error
		more, err = w.Prepare()
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	f, err := disk.Open(path)
	require.NoError(t, err)
	footer, err := readFooter(f, &segment{}, end)
	require.NoError(t, err)
	require.NotNil(t, footer)
	require.NoError(t, f.Close())

	damaged := disk.Clone()
	require.NoError(t, damaged.Flip(path, segmentHeaderSize+2000, 1))
	require.NoError(t, damaged.Flip(path, second+20, 1))
	require.NoError(t, damaged.Flip(path, superseded+300, 1))
	w = New("/data", smallOptions(damaged))
	rec := mustOpen(t, w)
	require.Empty(t, rec.Findings, "nobody has looked")
	require.Equal(t, all[4].Frame(), rec.Configurations[0].Frame())
	round := func() (found []raft.Damage) {
		for end := false; !end; {
			var some []raft.Damage
			var err error
			some, end, err = w.Scrub(1)
			require.NoError(t, err)
			found = append(found, some...)
		}
		return found
	}
	want := []raft.Damage{{First: 2, Last: 2}, {First: 5, Last: 5, MayConfigure: true}}
	require.Equal(t, want, round())
	require.Equal(t, want, round())
	require.NoError(t, w.Write(raft.Batch{Repairs: []raft.Entry{all[1], all[4]}}))
	require.Empty(t, round())
	requireEntries(t, w, all)
	require.Empty(t, reopen(t, w).Damaged)
	requireEntries(t, w, all)
	require.NoError(t, w.Close())

	for name, at := range map[string]int64{"the footer": footerAt(end) + footerFixedSize + 24, "its magic": footerAt(end)} {
		blind := damaged.Clone()
		require.NoError(t, blind.Flip(path, at, 1))
		w = New("/data", smallOptions(blind))
		rec = mustOpen(t, w)
		require.Empty(t, rec.Damaged, "repaired, and read")
		require.Len(t, rec.Findings, 3, "%s: the segment was read", name)
		require.NoError(t, w.Close())
	}

	// The footer of another life of the segment does not fit between its header and the next one.
	older := disk.Clone()
	require.NoError(t, older.Flip(path, segmentHeaderSize+2000, 1))
	footer.chain++
	g, err := older.OpenWrite(path)
	require.NoError(t, err)
	_, err = g.WriteAt(footer.encode(), footerAt(end))
	require.NoError(t, err)
	require.NoError(t, g.Close())
	w = New("/data", smallOptions(older))
	require.Equal(t, want[:1], mustOpen(t, w).Damaged)
	require.NoError(t, w.Close())
}

// The last segment is gone, and nothing else tells that it held entries: that it was begun is enough.
func TestMissingLastSegmentIsFenced(t *testing.T) {
	disk := vfs.New(1)
	runs(t, smallOptions(disk), 20, 20)
	require.NoError(t, disk.Remove(segmentPath(2)))
	rec := requireNoticed(t, disk, segmentPath(2), Fenced)
	require.Equal(t, raft.MaxTerm, rec.Fence.Term)
	require.EqualValues(t, 3, rec.LastIndex)
}

// A segment that cuts back what an earlier one holds says so in its footer.
func TestFooterCutsBackEarlierSegments(t *testing.T) {
	w := New("/data", smallOptions(vfs.New(1)))
	mustOpen(t, w)
	seal := func() {
		reopen(t, w)
		for more := true; more; {
			var err error
			more, err = w.Prepare()
			require.NoError(t, err)
		}
	}
	old, next := commands(1, 6, 1, 50), commands(4, 2, 2, 50)
	require.NoError(t, w.Write(raft.Batch{Entries: old}))
	seal()
	require.NoError(t, w.Write(raft.Batch{TruncateFrom: 4, Entries: next}))
	seal()
	rec := reopen(t, w)
	require.EqualValues(t, 5, rec.LastIndex)
	require.Equal(t, []raft.TermStart{{Index: 1, Term: 1}, {Index: 4, Term: 2}}, rec.Terms)
	requireEntries(t, w, append(old[:3:3], next...))
	require.NoError(t, w.Close())
}
