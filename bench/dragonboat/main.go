// Command dragonboat is github.com/lni/dragonboat, with either of its logs: tan and pebble.
package main

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/logger"
	"github.com/lni/dragonboat/v4/plugin/tan"
	sm "github.com/lni/dragonboat/v4/statemachine"

	"github.com/steadyraft/raft/bench/worker"
)

func main() {
	modules := []string{"github.com/lni/dragonboat/v4"}
	worker.Main(worker.Library{
		Name: "dragonboat-tan", Modules: modules, Notes: "log: tan; " + settings,
		Start: func(o worker.Options) (worker.Node, error) { return start(o, true) },
	}, worker.Library{
		Name: "dragonboat-pebble", Modules: modules, Notes: "log: pebble, in one shard; " + settings,
		Start: func(o worker.Options) (worker.Node, error) { return start(o, false) },
	})
}

const settings = "SyncPropose with a no-op session; all reads that wait share one SyncRead; concurrent state machine, applied in batches; pre-vote, check-quorum, " +
	"RTTMillisecond 10, HeartbeatRTT 10, ElectionRTT 100; automatic snapshots are off"

const (
	shard = 1
	tick  = 10 // milliseconds
)

type node struct {
	*machine
	*worker.Reads
	host    *dragonboat.NodeHost
	replica uint64
}

func start(o worker.Options, useTan bool) (worker.Node, error) {
	for _, name := range []string{"raft", "rsm", "transport", "grpc", "dragonboat", "raftpb", "logdb", "tan", "config", "registry", "settings"} {
		logger.GetLogger(name).SetLevel(logger.ERROR)
	}
	c := config.NodeHostConfig{
		NodeHostDir: o.Dir, RTTMillisecond: tick, RaftAddress: o.Addresses[o.ID], ListenAddress: o.Listen,
		Expert: config.GetDefaultExpertConfig(),
	}
	c.Expert.LogDB.Shards = 1 // there is one group
	if useTan {
		c.Expert.LogDBFactory = tan.Factory
	}
	host, err := dragonboat.NewNodeHost(c)
	if err != nil {
		return nil, err
	}
	members := map[uint64]string{}
	if !o.Join {
		for i, a := range o.Addresses {
			members[uint64(i+1)] = a
		}
	}
	n := &node{machine: &machine{snapshotBytes: o.SnapshotBytes}, host: host, replica: uint64(o.ID + 1)}
	n.Reads = worker.NewReads(n.confirm)
	return n, host.StartConcurrentReplica(members, o.Join, func(uint64, uint64) sm.IConcurrentStateMachine { return n.machine }, config.Config{
		ReplicaID:    n.replica,
		ShardID:      shard,
		CheckQuorum:  true,
		PreVote:      true,
		IsNonVoting:  o.Join,
		HeartbeatRTT: uint64(worker.HeartbeatInterval.Milliseconds() / tick),
		ElectionRTT:  uint64(worker.ElectionTimeout.Milliseconds() / tick),
	})
}

func (n *node) Propose(ctx context.Context, cmd []byte) error {
	_, err := n.host.SyncPropose(ctx, n.host.GetNoOPSession(shard), cmd)
	return err
}

func (n *node) confirm() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := n.host.SyncRead(ctx, shard, nil)
	return err
}

func (n *node) IsLeader() bool {
	leader, _, valid, err := n.host.GetLeaderID(shard)
	return err == nil && valid && leader == n.replica
}

func (n *node) Transfer(_ context.Context, to int) error {
	return n.host.RequestLeaderTransfer(shard, uint64(to+1))
}

func (n *node) Snapshot(ctx context.Context) error {
	_, err := n.host.SyncRequestSnapshot(ctx, shard, dragonboat.SnapshotOption{OverrideCompactionOverhead: true, CompactionOverhead: 10_000})
	return err
}

func (n *node) Add(ctx context.Context, server int, address string) error {
	return n.host.SyncRequestAddNonVoting(ctx, shard, uint64(server+1), address, 0)
}

func (n *node) Close() error {
	n.Reads.Close()
	n.host.Close()
	return nil
}

type machine struct {
	worker.Counter
	snapshotBytes int64
}

func (m *machine) Update(entries []sm.Entry) ([]sm.Entry, error) {
	for i := range entries {
		m.Add(entries[i].Cmd)
	}
	return entries, nil
}

func (*machine) Lookup(any) (any, error) { return nil, nil }

func (m *machine) PrepareSnapshot() (any, error) {
	if m.snapshotBytes == 0 {
		return nil, errors.New("this measurement takes no snapshots")
	}
	return m.View(m.snapshotBytes), nil
}

func (*machine) SaveSnapshot(view any, w io.Writer, _ sm.ISnapshotFileCollection, _ <-chan struct{}) error {
	_, err := view.(worker.View).WriteTo(w)
	return err
}

func (m *machine) RecoverFromSnapshot(r io.Reader, _ []sm.SnapshotFile, _ <-chan struct{}) error {
	return m.Restore(r)
}

func (*machine) Close() error { return nil }
