// Command counter counts how often it was started, in a cluster of one server whose log survives crashes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"sync/atomic"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/wal"
	"github.com/steadyraft/raft/transport/tcp"
)

type counter struct{ atomic.Int64 } // the state machine; atomic, because it is read beside Apply
type view int64                     // what a snapshot shows of it

func (c *counter) Apply(entries []raft.Entry, results []any) error {
	for i := range entries {
		results[i] = c.Add(1) // what Propose returns; a real command is in entries[i].Data
	}
	return nil
}
func (c *counter) Snapshot(context.Context) (raft.SnapshotWriter, error) { return view(c.Load()), nil }
func (c *counter) Restore(_ context.Context, _ raft.SnapshotMeta, r io.Reader) error {
	var n int64
	_, err := fmt.Fscan(r, &n)
	c.Store(n)
	return err
}
func (v view) WriteTo(_ context.Context, w io.Writer) error { _, err := fmt.Fprint(w, v); return err }
func (v view) Close()                                       {}

func main() {
	dir := flag.String("dir", "counter-data", "data directory")
	addr := flag.String("addr", "127.0.0.1:7000", "address of this server")
	flag.Parse()
	ctx, count, storage := context.Background(), &counter{}, wal.New(*dir, wal.Options{})
	servers := []raft.Server{{ID: "n1", Address: *addr}} // list more, and start a process for each
	check(raft.Bootstrap(ctx, storage, "n1", raft.Configuration{ClusterID: "counter", Servers: servers}))
	network, err := tcp.New(tcp.Config{Listen: *addr})
	check(err)
	node, err := raft.NewNode(raft.Config{ID: "n1", StateMachine: count, Storage: storage, Transport: network})
	check(err)
	check(node.Start(ctx))
	_, err = node.Propose(ctx, []byte("count")) // nil: committed, and applied here
	check(err)
	check(node.Read(ctx)) // nil: count is as new as every write that was acknowledged before, anywhere
	fmt.Println(count.Load())
	check(node.Stop(ctx))
}

func check(err error) {
	if err != nil && !errors.Is(err, raft.ErrBootstrapped) { // as it is from the second start on
		log.Fatal(err)
	}
}
