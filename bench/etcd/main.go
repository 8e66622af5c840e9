// Command etcd is go.etcd.io/raft with etcd's write-ahead log. That library brings neither a loop nor a transport; both are here: the
// loop in two forms, and a lean TCP transport.
package main

import (
	"io"
	"log"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/steadyraft/raft/bench/worker"
)

func main() {
	modules := []string{"go.etcd.io/raft/v3", "go.etcd.io/etcd/server/v3"}
	worker.Main(worker.Library{
		Name: "etcd", Modules: modules, Start: startPlain,
		Notes: "raft.Node; one loop: send (leader) or save and send (follower), apply, Advance, as etcd does; each command its own Propose; " +
			settings,
	}, worker.Library{
		Name: "etcd-async", Modules: modules, Start: startAsync,
		Notes: "raft.RawNode with AsyncStorageWrites; all waiting commands in one MsgProp; the append goroutine saves all that waits and " +
			"syncs once; " + settings,
	})
}

const settings = "reads: ReadOnlySafe, all that wait share one ReadIndex; MaxSizePerMsg 1 MiB, MaxInflightMsgs 512, pre-vote, check-quorum, " +
	"tick 100 ms; entries are dropped from MemoryStorage once all servers have them; TCP: one connection each way, all waiting " +
	"messages in one write"

// openLog opens the write-ahead log and fills the MemoryStorage from it. The cluster begins at index 1 and term 1, with a snapshot that
// names its members, so that nobody has to apply configuration changes.
func openLog(o worker.Options) (*wal.WAL, *raft.MemoryStorage, error) {
	dir := filepath.Join(o.Dir, "wal")
	members := &raftpb.ConfState{}
	for i := range o.Addresses {
		members.Voters = append(members.Voters, uint64(i+1))
	}
	snapshot := &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{ConfState: members, Index: new(uint64(1)), Term: new(uint64(1))}}
	storage := raft.NewMemoryStorage()
	if err := storage.ApplySnapshot(snapshot); err != nil {
		return nil, nil, err
	}
	begin := &walpb.Snapshot{Index: new(uint64(1)), Term: new(uint64(1)), ConfState: members}
	if wal.Exist(dir) {
		w, err := wal.Open(zap.NewNop(), dir, begin)
		if err != nil {
			return nil, nil, err
		}
		_, state, entries, err := w.ReadAll()
		if err != nil {
			return nil, nil, err
		}
		if err := storage.SetHardState(state); err != nil {
			return nil, nil, err
		}
		return w, storage, storage.Append(entries)
	}
	w, err := wal.Create(zap.NewNop(), dir, nil)
	if err != nil {
		return nil, nil, err
	}
	state := &raftpb.HardState{Term: new(uint64(1)), Commit: new(uint64(1))}
	if err := storage.SetHardState(state); err != nil {
		return nil, nil, err
	}
	if err := w.Save(state, nil); err != nil {
		return nil, nil, err
	}
	return w, storage, w.SaveSnapshot(begin)
}

func config(o worker.Options, storage *raft.MemoryStorage) *raft.Config {
	return &raft.Config{
		ID:                        uint64(o.ID + 1),
		ElectionTick:              int(worker.ElectionTimeout / worker.HeartbeatInterval),
		HeartbeatTick:             1,
		Storage:                   storage,
		Applied:                   1,
		MaxSizePerMsg:             1 << 20,
		MaxCommittedSizePerReady:  64 << 20,
		MaxInflightMsgs:           512,
		CheckQuorum:               true,
		PreVote:                   true,
		DisableProposalForwarding: true,
		Logger:                    &raft.DefaultLogger{Logger: log.New(io.Discard, "", 0)},
	}
}

// fatal ends the process: a benchmark of a broken cluster would mean nothing.
func fatal(err error) {
	log.New(os.Stderr, "", 0).Fatal(err)
}
