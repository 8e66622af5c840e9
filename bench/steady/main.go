// Command steady is this repository's library, with its write-ahead log and its TCP transport.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/bench/worker"
	"github.com/steadyraft/raft/storage/wal"
	"github.com/steadyraft/raft/transport/tcp"
)

func main() {
	worker.Main(worker.Library{
		Name:    "steady",
		Modules: []string{"github.com/steadyraft/raft"},
		Notes:   "storage/wal, transport/tcp; MaxProposalBytes and MaxUncommittedBytes 256 MiB, as the others have no such bound; automatic snapshots are off",
		Start:   start,
	})
}

type node struct {
	*raft.Node
	machine *machine
}

func name(i int) raft.NodeID { return raft.NodeID(fmt.Sprint("n", i+1)) }

func start(o worker.Options) (worker.Node, error) {
	conf := raft.Configuration{ClusterID: "bench"}
	for i, a := range o.Addresses {
		conf.Servers = append(conf.Servers, raft.Server{ID: name(i), Address: a})
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	storage := wal.New(o.Dir, wal.Options{})
	if err := raft.Bootstrap(ctx, storage, name(o.ID), conf); err != nil && !errors.Is(err, raft.ErrBootstrapped) {
		return nil, err
	}
	transport, err := tcp.New(tcp.Config{Listen: o.Addresses[o.ID]})
	if err != nil {
		return nil, err
	}
	m := &machine{}
	n, err := raft.NewNode(raft.Config{
		ID: name(o.ID), StateMachine: m, Storage: storage, Transport: transport,
		Core: raft.CoreConfig{
			HeartbeatInterval: worker.HeartbeatInterval, ElectionTimeout: worker.ElectionTimeout, MaxUncommittedBytes: 256 << 20,
		},
		MaxProposalBytes: 256 << 20,
		SnapshotEntries:  math.MaxUint64,
		SnapshotBytes:    math.MaxInt64,
	})
	if err != nil {
		return nil, err
	}
	return node{n, m}, n.Start(ctx)
}

func (n node) Propose(ctx context.Context, cmd []byte) error {
	_, err := n.Node.Propose(ctx, cmd)
	return err
}

func (n node) IsLeader() bool { return n.Leadership().Role == raft.Leader }

func (n node) Transfer(ctx context.Context, to int) error { return n.ChangeLeader(ctx, name(to)) }

func (n node) Applied() (uint64, uint32) { return n.machine.Applied() }

func (n node) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return n.Stop(ctx)
}

type machine struct{ worker.Counter }

func (m *machine) Apply(entries []raft.Entry, _ []any) error {
	for i := range entries {
		m.Add(entries[i].Data)
	}
	return nil
}

func (*machine) Snapshot(context.Context) (raft.SnapshotWriter, error) {
	return nil, errors.New("the benchmark takes no snapshots")
}

func (*machine) Restore(context.Context, raft.SnapshotMeta, io.Reader) error {
	return errors.New("the benchmark takes no snapshots")
}
