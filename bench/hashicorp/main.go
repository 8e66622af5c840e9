// Command hashicorp is github.com/hashicorp/raft with github.com/hashicorp/raft-wal.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"

	"github.com/steadyraft/raft/bench/worker"
)

func main() {
	worker.Main(worker.Library{
		Name:    "hashicorp",
		Modules: []string{"github.com/hashicorp/raft", "github.com/hashicorp/raft-wal"},
		Notes: "raft-wal for log and stable store, LogCache of 4,096 entries, BatchingFSM, BatchApplyCh, MaxAppendEntries 1,024, " +
			"NetworkTransport over TCP; HeartbeatTimeout, ElectionTimeout and LeaderLeaseTimeout 1 s, so heartbeats every 100 ms; pre-vote; " +
			"reads: all that wait share one VerifyLeader, then wait until what was committed before it is applied; automatic snapshots are off",
		Start: start,
	})
}

type node struct {
	*machine
	*worker.Reads
	raft  *raft.Raft
	trans *raft.NetworkTransport
	wal   *wal.WAL
	ids   []raft.Server
}

func start(o worker.Options) (worker.Node, error) {
	c := raft.DefaultConfig()
	c.LocalID = id(o.ID)
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = worker.ElectionTimeout, worker.ElectionTimeout, worker.ElectionTimeout
	c.MaxAppendEntries, c.BatchApplyCh = 1024, true
	if !o.AutoSnapshots {
		c.SnapshotThreshold, c.SnapshotInterval = math.MaxUint64, 24*time.Hour
	}
	c.NoLegacyTelemetry = true
	c.Logger = hclog.NewNullLogger()

	w, err := wal.Open(o.Dir)
	if err != nil {
		return nil, err
	}
	logs, err := raft.NewLogCache(4096, w)
	if err != nil {
		return nil, err
	}
	trans, err := raft.NewTCPTransportWithLogger(o.Listen, nil, 3, 10*time.Second, c.Logger)
	if err != nil {
		return nil, err
	}
	n := &node{machine: &machine{snapshotBytes: o.SnapshotBytes}, trans: trans, wal: w}
	for i, a := range o.Addresses {
		n.ids = append(n.ids, raft.Server{ID: id(i), Address: raft.ServerAddress(a)})
	}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(o.Dir, 2, c.Logger)
	if err != nil {
		return nil, err
	}
	if !o.Join {
		err := raft.BootstrapCluster(c, logs, w, snapshots, trans, raft.Configuration{Servers: n.ids})
		if err != nil && err != raft.ErrCantBootstrap {
			return nil, err
		}
	}
	if n.raft, err = raft.NewRaft(c, n.machine, logs, w, snapshots, trans); err != nil {
		return nil, err
	}
	n.Reads = worker.NewReads(n.confirm)
	return n, nil
}

func id(i int) raft.ServerID { return raft.ServerID(fmt.Sprint("n", i+1)) }

func (n *node) Propose(_ context.Context, cmd []byte) error {
	// The library keeps the slice until it is on the disks, so that a client's buffer cannot be used again.
	return n.raft.Apply(append([]byte(nil), cmd...), 0).Error()
}

// confirm is the linearizable read that the library leaves to its user.
func (n *node) confirm() error {
	commit := n.raft.CommitIndex()
	if err := n.raft.VerifyLeader().Error(); err != nil {
		return err
	}
	return n.waitApplied(commit)
}

// waitApplied waits until the state machine has carried out all commands up to commit. The library's own index says only that they
// were handed to it. Entries that are not commands do not reach it: a barrier settles what they leave open. (Who reads right after
// an election would also have to wait for an entry of the new term; here the leader has committed one before the load begins.)
func (n *node) waitApplied(commit uint64) error {
	for range 100 {
		if n.seen.Load() >= commit {
			return nil
		}
		time.Sleep(20 * time.Microsecond)
	}
	return n.raft.Barrier(10 * time.Second).Error()
}

func (n *node) IsLeader() bool { return n.raft.State() == raft.Leader }

func (n *node) Transfer(_ context.Context, to int) error {
	return n.raft.LeadershipTransferToServer(n.ids[to].ID, n.ids[to].Address).Error()
}

func (n *node) Snapshot(context.Context) error { return n.raft.Snapshot().Error() }

func (n *node) Add(_ context.Context, server int, address string) error {
	return n.raft.AddNonvoter(id(server), raft.ServerAddress(address), 0, 0).Error()
}

func (n *node) Close() error {
	n.Reads.Close()
	return errors.Join(n.raft.Shutdown().Error(), n.trans.Close(), n.wal.Close())
}

type machine struct {
	worker.Counter
	seen          atomic.Uint64 // index of the last command
	snapshotBytes int64
}

func (m *machine) ApplyBatch(logs []*raft.Log) []any {
	for _, l := range logs {
		m.Apply(l)
	}
	return make([]any, len(logs))
}

func (m *machine) Apply(l *raft.Log) any {
	if l.Type == raft.LogCommand {
		m.Add(l.Data)
		m.seen.Store(l.Index)
	}
	return nil
}

func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	if m.snapshotBytes == 0 {
		return nil, errors.New("this measurement takes no snapshots")
	}
	return view{m.View(m.snapshotBytes)}, nil
}

func (m *machine) Restore(r io.ReadCloser) error { return errors.Join(m.Counter.Restore(r), r.Close()) }

type view struct{ worker.View }

func (v view) Persist(sink raft.SnapshotSink) error {
	if _, err := v.WriteTo(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (view) Release() {}
