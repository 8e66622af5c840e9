// Package core compares the protocol alone: three of this library's cores and three of etcd's RawNodes, each passing messages in
// memory on one goroutine, with disks that take no time. `go -C bench test -bench . -benchmem ./core` runs it.
package core

import (
	"io"
	"log"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	etcd "go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/memory"
)

// trio is three servers of one library. The first leads.
type trio interface {
	// propose hands the leader a batch of so many commands.
	propose(b *testing.B, commands int)
	// settle passes messages until there are none, and returns how many commands the leader has applied since the last call.
	settle(b *testing.B) int
}

// An op is one command of 256 bytes, from its proposal to its application on all three.
func BenchmarkCommand(b *testing.B) {
	for _, lib := range []struct {
		name  string
		start func(testing.TB) trio
	}{{"steady", startSteady}, {"etcd", startEtcd}} {
		for _, load := range []struct {
			name             string
			proposals, batch int
		}{{"one", 1, 1}, {"64-single", 64, 1}, {"one-of-64", 1, 64}} {
			b.Run(lib.name+"/"+load.name, func(b *testing.B) {
				t := lib.start(b)
				b.ReportAllocs()
				b.ResetTimer()
				proposed, applied := 0, 0
				for proposed < b.N {
					for range load.proposals {
						t.propose(b, load.batch)
						proposed += load.batch
					}
					applied += t.settle(b)
				}
				if applied != proposed {
					b.Fatalf("%d of %d commands applied", applied, proposed)
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commands/s")
			})
		}
	}
}

// The comparison means nothing if one of them skips work: both must apply what was proposed, on all servers.
func TestBothReplicate(t *testing.T) {
	steady, etcd := startSteady(t).(*steadyTrio), startEtcd(t).(*etcdTrio)
	b := new(testing.B)
	for _, x := range []trio{steady, etcd} {
		x.propose(b, 1)
		x.propose(b, 64)
		require.Equal(t, 65, x.settle(b))
		require.Zero(t, x.settle(b))
	}
	require.Equal(t, [3]int{65, 65, 65}, steady.applied)
	require.Equal(t, [3]int{65, 65, 65}, etcd.applied)
}

var payload = make([]byte, 256)

const now = time.Second // it stands still: nothing times out

type steadyTrio struct {
	cores      []*raft.Core
	wire, next []raft.Message
	batch      []raft.Entry
	applied    [3]int
}

func startSteady(t testing.TB) trio {
	s := &steadyTrio{}
	conf := raft.Configuration{ClusterID: "bench"}
	for _, id := range []raft.NodeID{"a", "b", "c"} {
		conf.Servers = append(conf.Servers, raft.Server{ID: id, Address: string(id)})
	}
	for i, server := range conf.Servers {
		storage := memory.New()
		require.NoError(t, raft.Bootstrap(t.Context(), storage, server.ID, conf))
		recovered, err := storage.Open(t.Context(), raft.Identity{Cluster: conf.ClusterID, Node: server.ID})
		require.NoError(t, err)
		core, err := raft.NewCore(raft.CoreConfig{ID: server.ID, Seed: uint64(i)}, now, &recovered)
		require.NoError(t, err)
		s.cores = append(s.cores, core)
	}
	s.cores[0].ForceTimeout(now)
	s.settle(nil)
	require.Equal(t, raft.Leader, s.cores[0].Status(now).Role)
	return s
}

func (s *steadyTrio) propose(b *testing.B, commands int) {
	if commands == 1 {
		s.batch = append(s.batch[:0], raft.NewCommand(payload))
	} else {
		s.batch = raft.NewCommands(slices.Repeat([][]byte{payload}, commands))
	}
	if _, n, err := s.cores[0].Propose(now, s.batch); n != commands {
		b.Fatalf("%d of %d proposed: %v", n, commands, err)
	}
}

func (s *steadyTrio) settle(*testing.B) int {
	before := s.applied[0]
	for again := true; again; {
		again = false
		for i, c := range s.cores {
			for c.HasReady() {
				again = true
				r := c.Ready()
				s.wire = append(s.wire, r.Send...)
				for _, a := range r.Apply {
					for k := range a.Entries {
						if a.Entries[k].Type == raft.EntryCommand {
							s.applied[i]++
						}
					}
					c.Applied(now, a.Hi-1)
				}
				if seq := r.Write.Seq; seq != 0 {
					c.Persisted(now, seq)
				}
			}
		}
		s.wire, s.next = s.next[:0], s.wire
		for i := range s.next {
			again = true
			s.cores[s.next[i].To[0]-'a'].Step(now, s.next[i])
		}
		clear(s.next)
	}
	return s.applied[0] - before
}

type etcdTrio struct {
	nodes      []*etcd.RawNode
	storages   []*etcd.MemoryStorage
	wire, next []*raftpb.Message
	applied    [3]int
}

func startEtcd(t testing.TB) trio {
	e := &etcdTrio{}
	for i := range 3 {
		storage := etcd.NewMemoryStorage()
		require.NoError(t, storage.ApplySnapshot(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
			ConfState: &raftpb.ConfState{Voters: []uint64{1, 2, 3}}, Index: new(uint64(1)), Term: new(uint64(1)),
		}}))
		node, err := etcd.NewRawNode(&etcd.Config{
			ID: uint64(i + 1), ElectionTick: 10, HeartbeatTick: 1, Storage: storage, Applied: 1, MaxSizePerMsg: 1 << 20, MaxInflightMsgs: 512,
			MaxCommittedSizePerReady: 64 << 20, CheckQuorum: true, PreVote: true,
			Logger: &etcd.DefaultLogger{Logger: log.New(io.Discard, "", 0)},
		})
		require.NoError(t, err)
		e.nodes, e.storages = append(e.nodes, node), append(e.storages, storage)
	}
	require.NoError(t, e.nodes[0].Campaign())
	b := new(testing.B)
	e.settle(b)
	require.Equal(t, etcd.StateLeader, e.nodes[0].BasicStatus().RaftState)
	return e
}

func (e *etcdTrio) propose(b *testing.B, commands int) {
	if commands == 1 {
		if err := e.nodes[0].Propose(payload); err != nil {
			b.Fatal(err)
		}
		return
	}
	m := &raftpb.Message{Type: raftpb.MsgProp.Enum(), From: new(uint64(1))}
	for range commands {
		m.Entries = append(m.Entries, &raftpb.Entry{Data: payload})
	}
	if err := e.nodes[0].Step(m); err != nil {
		b.Fatal(err)
	}
}

func (e *etcdTrio) settle(b *testing.B) int {
	before := e.applied[0]
	for again := true; again; {
		again = false
		for i, n := range e.nodes {
			for n.HasReady() {
				again = true
				e.ready(b, i, n)
			}
		}
		e.wire, e.next = e.next[:0], e.wire
		for i, m := range e.next {
			again = true
			if err := e.nodes[m.GetTo()-1].Step(m); err != nil {
				b.Fatal(err)
			}
			e.next[i] = nil
		}
	}
	return e.applied[0] - before
}

func (e *etcdTrio) ready(b *testing.B, i int, n *etcd.RawNode) {
	rd := n.Ready()
	if err := e.storages[i].Append(rd.Entries); err != nil {
		b.Fatal(err)
	}
	e.wire = append(e.wire, rd.Messages...)
	for _, c := range rd.CommittedEntries {
		if len(c.GetData()) > 0 {
			e.applied[i]++
		}
	}
	n.Advance(rd)
	// Everybody has what is applied here but for a message or two: the rest is dropped now and then, as our core does by itself.
	if k := len(rd.CommittedEntries); k > 0 {
		last := rd.CommittedEntries[k-1].GetIndex()
		if first, err := e.storages[i].FirstIndex(); err == nil && last > first+20_000 {
			if err := e.storages[i].Compact(last - 10_000); err != nil {
				b.Fatal(err)
			}
		}
	}
}
