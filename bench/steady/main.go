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
	*machine
}

func name(i int) raft.NodeID { return raft.NodeID(fmt.Sprint("n", i+1)) }

func start(o worker.Options) (worker.Node, error) {
	conf := raft.Configuration{ClusterID: "bench"}
	for i, a := range o.Addresses[:o.Members()] {
		conf.Servers = append(conf.Servers, raft.Server{ID: name(i), Address: a})
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	storage := wal.New(o.Dir, wal.Options{})
	if !o.Join {
		if err := raft.Bootstrap(ctx, storage, name(o.ID), conf); err != nil && !errors.Is(err, raft.ErrBootstrapped) {
			return nil, err
		}
	}
	transport, err := tcp.New(tcp.Config{Listen: o.Listen, Advertise: o.Addresses[o.ID]})
	if err != nil {
		return nil, err
	}
	m := &machine{snapshotBytes: o.SnapshotBytes}
	c := raft.Config{
		ID: name(o.ID), ClusterID: conf.ClusterID, StateMachine: m, Storage: storage, Transport: transport,
		Core: raft.CoreConfig{
			HeartbeatInterval: worker.HeartbeatInterval, ElectionTimeout: worker.ElectionTimeout, MaxUncommittedBytes: 256 << 20,
		},
		MaxProposalBytes: 256 << 20,
	}
	if !o.AutoSnapshots {
		c.SnapshotEntries, c.SnapshotBytes = math.MaxUint64, math.MaxInt64
	}
	n, err := raft.NewNode(c)
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

func (n node) Snapshot(ctx context.Context) error {
	_, err := n.Node.Snapshot(ctx)
	return err
}

func (n node) Add(ctx context.Context, server int, address string) error {
	_, err := n.ChangeMembership(ctx, raft.Change{Add: []raft.Server{{ID: name(server), Address: address, Suffrage: raft.NonVoter}}})
	return err
}

func (n node) Term() uint64 { return uint64(n.Status().Term) }

func (n node) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return n.Stop(ctx)
}

type machine struct {
	worker.Counter
	snapshotBytes int64
}

func (m *machine) Apply(entries []raft.Entry, _ []any) error {
	for i := range entries {
		m.Add(entries[i].Data)
	}
	return nil
}

func (m *machine) Snapshot(context.Context) (raft.SnapshotWriter, error) {
	if m.snapshotBytes == 0 {
		return nil, errors.New("this measurement takes no snapshots")
	}
	return view{m.View(m.snapshotBytes)}, nil
}

func (m *machine) Restore(_ context.Context, _ raft.SnapshotMeta, r io.Reader) error {
	return m.Counter.Restore(r)
}

type view struct{ worker.View }

func (v view) WriteTo(_ context.Context, w io.Writer) error {
	_, err := v.View.WriteTo(w)
	return err
}

func (view) Close() {}
