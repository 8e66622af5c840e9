package wal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
)

// survivors are directories of servers that have survived, with what is on them.
func survivors(t *testing.T) map[string]image {
	t.Helper()
	all := map[string]image{}
	disk, _ := stopped(t)
	all["clean"] = disk.image()

	disk = newImageFS(disk.image()) // the run after wrote nothing
	w := New("/data", smallOptions(disk))
	mustOpen(t, w)
	require.NoError(t, w.Close())
	all["empty segment"] = disk.image()

	disk = newImageFS(all["clean"]) // the last batch was not written completely
	w = New("/data", smallOptions(disk))
	mustOpen(t, w)
	require.NoError(t, w.Write(raft.Batch{Entries: commands(7, 2, 2, 2000)}))
	end, path := w.active.end, w.active.path
	require.NoError(t, w.Close())
	f := disk.files[path]
	f.resize(int64(len(f.data)))
	clear(f.data[end-2*sectorSize : end])
	all["unfinished"] = disk.image()

	disk = newImageFS(all["clean"]) // a snapshot was received right before a crash, and the log not told
	w = New("/data", smallOptions(disk))
	mustOpen(t, w)
	sink, err := w.Snapshots().Create(raft.SnapshotMeta{
		Index: 50, Term: 3, Size: -1, ConfigurationIndex: 44,
		Configuration: raft.Configuration{
			ClusterID: "c", Removed: []raft.NodeID{"n9"},
			Servers: []raft.Server{{ID: "n1", Address: "h:1", Priority: 7}, {ID: "n2"}, {ID: "n3"}},
		},
	})
	require.NoError(t, err)
	_, err = sink.Write(snapshotContent(50))
	require.NoError(t, err)
	_, err = sink.Commit()
	require.NoError(t, err)
	require.NoError(t, w.Close())
	all["behind a snapshot"] = disk.image()
	return all
}

// After a recovery the directory belongs to the new cluster: the log is as it was, with one more entry that makes the server the only
// voter, in a term far above those that lost leaders may have reached; and a core takes it.
func TestRecoverFoundsACluster(t *testing.T) {
	for name, img := range survivors(t) {
		t.Run(name, func(t *testing.T) {
			disk := newImageFS(img)
			plan, err := PlanRecovery(ctx, disk, "/data", "new", "")
			require.NoError(t, err)
			require.Zero(t, disk.writes, "a plan changes nothing")
			before, err := Inspect(ctx, disk, "/data")
			require.NoError(t, err)
			require.Equal(t, plan.Last, before.Newest, "what survivors are compared by is what is kept")
			want := raft.EntryID{Term: 2 + 1<<20, Index: 7}
			address := "n1:7000"
			if name == "behind a snapshot" {
				want, address = raft.EntryID{Term: 3 + 1<<20, Index: 51}, "h:1"
				require.EqualValues(t, 44, plan.InForce.Index)
			}
			require.Equal(t, want, plan.Entry.EntryID)
			require.Equal(t, "c", plan.Cluster)

			require.NoError(t, Recover(ctx, disk, plan))
			for path, was := range img {
				require.Equal(t, was, disk.image()[path], "%s is as it was", path)
			}
			w := New("/data", smallOptions(disk))
			_, err = w.Open(ctx, identity)
			other := (*raft.IdentityError)(nil)
			require.ErrorAs(t, err, &other, "the old cluster's configuration does not fit any more")
			rec, err := w.Open(ctx, raft.Identity{Cluster: "new", Node: "n1"})
			require.NoError(t, err)
			require.Equal(t, raft.HardState{CurrentTerm: want.Term}, rec.HardState)
			require.Equal(t, want.Index, rec.LastIndex)
			require.Equal(t, plan.Replica, rec.Identity.Replica)

			core, err := raft.NewCore(raft.CoreConfig{ID: "n1"}, 0, &rec)
			require.NoError(t, err)
			conf := core.Status(0).Configuration
			require.Equal(t, plan.Entry.Configuration, conf)
			require.Equal(t, "new", conf.ClusterID)
			require.Len(t, conf.Servers, 1)
			require.Equal(t, raft.Server{ID: "n1", Address: address, Replica: plan.Replica, Priority: conf.Servers[0].Priority}, conf.Servers[0])
			if name == "behind a snapshot" {
				require.EqualValues(t, 7, conf.Servers[0].Priority)
				require.Equal(t, []raft.NodeID{"n9", "n2", "n3"}, conf.Removed)
			} else {
				require.Equal(t, []raft.NodeID{"n2"}, conf.Removed, "the ID of a former member must not come back")
			}
			require.NoError(t, w.Close())

			r, err := Inspect(ctx, disk, "/data")
			require.NoError(t, err)
			require.Equal(t, Clean, r.Verdict, "%+v", r.Findings)
			_, err = PlanRecovery(ctx, disk, "/data", "new", "")
			require.ErrorContains(t, err, "present cluster")
		})
	}
}

// A crash at any moment of a recovery leaves the directory of the old cluster, with all that was in it, or that of the new one.
func TestRecoverIsWholeOrNotAtAll(t *testing.T) {
	states, founded := 0, 0
	for name, img := range survivors(t) {
		disk := newImageFS(img)
		var ops []fileOp
		disk.record = func(op fileOp) { ops = append(ops, op) }
		plan, err := PlanRecovery(ctx, disk, "/data", "new", "")
		require.NoError(t, err)
		require.NoError(t, Recover(ctx, disk, plan))
		require.NotEmpty(t, ops)

		before := newImageFS(img)
		w := New("/data", smallOptions(before))
		old := mustOpen(t, w)
		oldState, err := recoveredState(w, &old)
		require.NoError(t, err)
		require.NoError(t, w.Close())

		seen := map[uint64]bool{}
		rnd := rand.New(rand.NewPCG(1, 1))
		d := crashDiskOf(img)
		for k := 0; k <= len(ops); k++ {
			if k > 0 {
				d.apply(ops[k-1])
			}
			doubts := d.doubts()
			outcomes(doubts, 256, rnd, func(pick []int) {
				after := d.after(doubts, pick)
				if h := hashImage(after); seen[h] && k < len(ops) {
					return
				} else {
					seen[h] = true
				}
				states++
				disk := newImageFS(after)
				w := New("/data", smallOptions(disk))
				rec, err := w.Open(ctx, raft.Identity{Node: "n1"})
				require.NoError(t, err, "%s, operation %d, outcomes %v", name, k, pick)
				state, err := recoveredState(w, &rec)
				require.NoError(t, err)
				last, err := w.Entries(rec.LastIndex, rec.LastIndex+1, 1)
				require.NoError(t, err)
				require.NoError(t, w.Close())
				switch rec.Identity.Cluster {
				case "c":
					require.Less(t, k, len(ops), "%s: it was done", name)
					require.Equal(t, oldState, state, "%s, operation %d, outcomes %v", name, k, pick)
					again, err := PlanRecovery(ctx, disk, "/data", "new", "")
					require.NoError(t, err)
					require.NoError(t, Recover(ctx, disk, again), "it can be done again")
				case "new":
					founded++
					require.Equal(t, plan.Entry.EntryID, last[0].ID())
					require.Equal(t, plan.Entry.Configuration.AppendBinary(nil), last[0].Data)
				}
			})
		}
	}
	require.Greater(t, states, 40)
	require.Greater(t, founded, 4)
	t.Logf("%d crash states, in %d of them the new cluster was founded", states, founded)
}

// What must not be recovered, and why.
func TestRecoverRefuses(t *testing.T) {
	disk, all := stopped(t)
	_, err := PlanRecovery(ctx, disk, "/data", "c", "")
	require.ErrorContains(t, err, "choose an ID that was never used")
	_, err = PlanRecovery(ctx, disk, "/data", "", "")
	require.ErrorContains(t, err, "cluster ID")

	// A server has run since the plan was made.
	plan, err := PlanRecovery(ctx, disk, "/data", "new", "")
	require.NoError(t, err)
	w := New("/data", smallOptions(disk))
	mustOpen(t, w)
	require.NoError(t, w.Close())
	writes := disk.writes
	require.ErrorContains(t, Recover(ctx, disk, plan), "since this was planned")
	require.Equal(t, writes, disk.writes)

	flip(t, disk, "/data/0000000000000002.wal", all[4].Data)
	whole := disk.image()
	plan, err = PlanRecovery(ctx, disk, "/data", "new", "")
	require.NoError(t, err)
	require.Equal(t, all[3].ID(), plan.Last, "in front of the damage")
	require.Equal(t, all[5].ID(), plan.GivenUp)
	require.NoError(t, Recover(ctx, disk, plan))
	w = New("/data", smallOptions(disk))
	rec, err := w.Open(ctx, raft.Identity{Cluster: "new", Node: "n1"})
	require.NoError(t, err)
	require.Empty(t, rec.Damaged)
	require.Equal(t, plan.Entry.Index, rec.LastIndex)
	requireEntries(t, w, all[:4])
	require.NoError(t, w.Close())

	disk = newImageFS(whole)
	for path, f := range disk.files {
		if strings.HasSuffix(path, segmentSuffix) { // neither copy of the header
			f.resize(int64(len(f.data)))
			f.data[20] ^= 1
			f.data[pageSize+20] ^= 1
		}
	}
	_, err = PlanRecovery(ctx, disk, "/data", "new", "")
	require.ErrorIs(t, err, ErrDamaged)

	// A server that was never told who the members are: its address must be said.
	alone := newImageFS(nil)
	w = New("/data", smallOptions(alone))
	mustOpen(t, w)
	require.NoError(t, w.Close())
	_, err = PlanRecovery(ctx, alone, "/data", "new", "h:1")
	require.ErrorContains(t, err, "blank")
	mustOpen(t, w)
	require.NoError(t, w.Write(raft.Batch{Entries: commands(1, 1, 1, 10)}))
	require.NoError(t, w.Close())
	_, err = PlanRecovery(ctx, alone, "/data", "new", "")
	require.ErrorContains(t, err, "say it")
	plan, err = PlanRecovery(ctx, alone, "/data", "new", "h:1")
	require.NoError(t, err)
	require.Nil(t, plan.InForce)

	// A running server.
	d := vfs.New(1)
	w = New("/data", smallOptions(d))
	mustOpen(t, w)
	require.NoError(t, w.Write(raft.Batch{Entries: commands(1, 1, 1, 10)}))
	require.NoError(t, w.Close())
	plan, err = PlanRecovery(ctx, d, "/data", "new", "h:1")
	require.NoError(t, err)
	mustOpen(t, w)
	_, err = PlanRecovery(ctx, d, "/data", "new", "h:1")
	require.ErrorIs(t, err, raft.ErrLocked)
	require.ErrorIs(t, Recover(ctx, d, plan), raft.ErrLocked)
	require.NoError(t, w.Close())
}

// A majority is lost in the middle of a change of the members. The newest configuration is joint, and was perhaps never committed: a server
// believes in it all the same (§6). The recovered one takes its place, and neither half's servers come back.
func TestRecoverOutOfAJointConfiguration(t *testing.T) {
	disk := newImageFS(nil)
	w := New("/data", smallOptions(disk))
	mustOpen(t, w)
	joint := raft.Configuration{ClusterID: "c", Servers: []raft.Server{
		{ID: "n1", Address: "h:1", Outgoing: true}, {ID: "n2", Address: "h:2", Outgoing: true, Leaving: true},
		{ID: "n3", Address: "h:3", Outgoing: true, Leaving: true}, {ID: "n4", Address: "h:4"}, {ID: "n5", Address: "h:5"},
	}}
	require.NoError(t, joint.Validate())
	require.True(t, joint.Joint())
	require.NoError(t, w.Write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 4, VotedFor: "n2"}, Entries: []raft.Entry{
		entry(1, 1, raft.EntryConfiguration, members("c", "n1", "n2", "n3")), entry(2, 4, raft.EntryConfiguration, joint.AppendBinary(nil)),
	}}))
	require.NoError(t, w.Close())
	plan, err := PlanRecovery(ctx, disk, "/data", "new", "")
	require.NoError(t, err)
	require.EqualValues(t, 2, plan.InForce.Index)
	require.NoError(t, Recover(ctx, disk, plan))

	rec, err := w.Open(ctx, raft.Identity{Node: "n1"})
	require.NoError(t, err)
	core, err := raft.NewCore(raft.CoreConfig{ID: "n1"}, 0, &rec)
	require.NoError(t, err)
	conf := core.Status(0).Configuration
	require.False(t, conf.Joint())
	require.Equal(t, []raft.NodeID{"n1"}, conf.Voters())
	require.Equal(t, []raft.NodeID{"n2", "n3", "n4", "n5"}, conf.Removed)
	require.Equal(t, "h:1", conf.Servers[0].Address)
	require.NoError(t, w.Close())
}

// An ID that the cluster had before an earlier recovery is as dangerous as the present one: servers that were lost then may still have their
// directories. It is known from segments, from the log, or from a snapshot alone.
func TestRecoverRefusesEveryEarlierID(t *testing.T) {
	configured := raft.Batch{Entries: []raft.Entry{entry(1, 1, raft.EntryConfiguration, members("c", "n1", "n2"))}}
	described := func(t *testing.T, w *WAL) {
		sink, err := w.Snapshots().Create(raft.SnapshotMeta{
			Index: 50, Term: 3, Size: -1, Configuration: raft.Configuration{ClusterID: "c", Servers: []raft.Server{{ID: "n1", Address: "h:1"}}},
		})
		require.NoError(t, err)
		_, err = sink.Commit()
		require.NoError(t, err)
	}
	for name, tt := range map[string]struct {
		cluster string // which the segments name
		write   func(t *testing.T, w *WAL)
	}{
		"segments": {"c", func(t *testing.T, w *WAL) { require.NoError(t, w.Write(raft.Batch{Entries: commands(1, 1, 1, 10)})) }},
		"log":      {"other", func(t *testing.T, w *WAL) { require.NoError(t, w.Write(configured)) }},
		"snapshot": {"other", described},
	} {
		t.Run(name, func(t *testing.T) {
			disk := newImageFS(nil)
			w := New("/data", smallOptions(disk))
			_, err := w.Open(ctx, raft.Identity{Cluster: tt.cluster, Node: "n1"})
			require.NoError(t, err)
			tt.write(t, w)
			require.NoError(t, w.Close())
			plan, err := PlanRecovery(ctx, disk, "/data", "second", "h:1")
			require.NoError(t, err)
			require.NoError(t, Recover(ctx, disk, plan))
			for _, id := range []string{tt.cluster, "c", "second"} {
				_, err = PlanRecovery(ctx, disk, "/data", id, "h:1")
				require.ErrorContains(t, err, "choose an ID that was never used", id)
			}
			_, err = PlanRecovery(ctx, disk, "/data", "third", "h:1")
			require.NoError(t, err)
		})
	}
}

// A disk without room, or one that fails, leaves the old cluster's directory.
func TestRecoverOnAFailingDisk(t *testing.T) {
	for at := 0; ; at++ {
		disk := vfs.New(1)
		w := New("/data", smallOptions(disk))
		mustOpen(t, w)
		require.NoError(t, w.Write(raft.Batch{Entries: []raft.Entry{entry(1, 1, raft.EntryConfiguration, members("c", "n1", "n2"))}}))
		require.NoError(t, w.Close())
		plan, err := PlanRecovery(ctx, disk, "/data", "new", "")
		require.NoError(t, err)
		n, failed := 0, fmt.Errorf("device gone")
		disk.SetFault(func(op vfs.Op) error {
			if op.Kind == vfs.OpRead {
				return nil
			}
			if n++; n == at+1 {
				return failed
			}
			return nil
		})
		err = Recover(ctx, disk, plan)
		disk.SetFault(nil)
		if err == nil {
			require.Greater(t, at, 5, "operations that can fail")
			return
		}
		require.ErrorIs(t, err, failed)
		rec, err := w.Open(ctx, raft.Identity{Node: "n1"})
		require.NoError(t, err)
		require.Contains(t, []string{"c", "new"}, rec.Identity.Cluster)
		require.EqualValues(t, map[string]int{"c": 1, "new": 2}[rec.Identity.Cluster], rec.LastIndex)
		require.NoError(t, w.Close())
	}
}

// The process before may have died before its last syncs returned: what is read then is in memory only. A recovery makes it durable
// before it builds on it, so that no crash of the machine takes it away afterwards.
func TestRecoverSecuresWhatItBuildsOn(t *testing.T) {
	broken := errors.New("sync failed")
	for _, what := range []string{"the last batch", "a snapshot"} {
		t.Run(strings.ReplaceAll(what, " ", "_"), func(t *testing.T) {
			for seed := range uint64(40) {
				disk := vfs.New(seed)
				w := New("/data", smallOptions(disk))
				mustOpen(t, w)
				require.NoError(t, w.Write(raft.Batch{Entries: []raft.Entry{entry(1, 1, raft.EntryConfiguration, members("c", "n1", "n2"))}}))
				want := raft.EntryID{Term: 1, Index: 3}
				if what == "a snapshot" {
					want = raft.EntryID{Term: 3, Index: 50}
					sink, err := w.Snapshots().Create(raft.SnapshotMeta{
						Index: 50, Term: 3, Size: -1, Configuration: raft.Configuration{ClusterID: "c", Servers: []raft.Server{{ID: "n1", Address: "h:1"}}},
					})
					require.NoError(t, err)
					disk.SetFault(func(op vfs.Op) error {
						if op.Kind == vfs.OpSyncDir {
							return broken
						}
						return nil
					})
					_, err = sink.Commit()
					require.ErrorIs(t, err, broken)
				} else {
					disk.SetFault(func(op vfs.Op) error {
						if op.Kind == vfs.OpSync {
							return broken
						}
						return nil
					})
					require.ErrorIs(t, w.Write(raft.Batch{Entries: commands(2, 2, 1, 700)}), broken)
				}
				disk = disk.Kill() // the process, not the machine

				plan, err := PlanRecovery(ctx, disk, "/data", "new", "")
				require.NoError(t, err)
				require.Equal(t, want, plan.Last)
				require.NoError(t, Recover(ctx, disk, plan))

				disk = disk.Crash()
				r, err := Inspect(ctx, disk, "/data")
				require.NoError(t, err)
				require.Equal(t, Clean, r.Verdict, "seed %d: %+v", seed, r.Findings)
				require.Equal(t, "new", r.Cluster)
				require.Equal(t, plan.Entry.EntryID, r.Last)
				if what == "a snapshot" {
					require.Len(t, r.Snapshots, 1)
				}
			}
		})
	}
}
