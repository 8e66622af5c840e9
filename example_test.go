package raft_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"sync/atomic"
	"time"

	"github.com/steadyraft/raft"
	memstorage "github.com/steadyraft/raft/storage/memory"
	memtransport "github.com/steadyraft/raft/transport/memory"
)

// register is the smallest state machine: it holds the last command.
type register struct{ value atomic.Value }

func (r *register) Apply(entries []raft.Entry, results []any) error {
	for i := range entries {
		r.value.Store(string(entries[i].Data)) // string() copies: Data is valid until Apply returns
		results[i] = entries[i].Index
	}
	return nil
}

func (r *register) Snapshot(context.Context) (raft.SnapshotWriter, error) {
	v, _ := r.value.Load().(string)
	return registerView(v), nil
}

func (r *register) Restore(_ context.Context, _ raft.SnapshotMeta, content io.Reader) error {
	b, err := io.ReadAll(content)
	r.value.Store(string(b))
	return err
}

type registerView string

func (v registerView) WriteTo(_ context.Context, w io.Writer) error {
	_, err := io.WriteString(w, string(v))
	return err
}
func (v registerView) Close() {}

// newExampleNode starts a cluster of one server in memory. A real one uses storage/wal and transport/tcp.
func newExampleNode(sm raft.StateMachine) *raft.Node {
	ctx, st := context.Background(), memstorage.New()
	servers := []raft.Server{{ID: "n1", Address: "n1"}}
	if err := raft.Bootstrap(ctx, st, "n1", raft.Configuration{ClusterID: "example", Servers: servers}); err != nil {
		log.Fatal(err)
	}
	node, err := raft.NewNode(raft.Config{
		ID: "n1", StateMachine: sm, Storage: st, Transport: memtransport.NewNetwork().Transport("n1"),
		Core: raft.CoreConfig{HeartbeatInterval: 10 * time.Millisecond, ElectionTimeout: 50 * time.Millisecond},
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := node.Start(ctx); err != nil {
		log.Fatal(err)
	}
	return node
}

func ExampleNode_Propose() {
	ctx, sm := context.Background(), &register{}
	node := newExampleNode(sm)
	defer node.Stop(ctx)

	_, err := node.Propose(ctx, []byte("hello"))
	var uncertain *raft.UncertainError
	switch {
	case err == nil: // committed, and applied to the local state machine
		fmt.Println(sm.value.Load())
	case errors.As(err, &uncertain): // it may still take effect: look at the state before trying again
	default: // it has taken no effect and never will: safe to try again
	}
	// Output: hello
}

func ExampleNode_ProposeAsync() {
	ctx, sm := context.Background(), &register{}
	node := newExampleNode(sm)
	defer node.Stop(ctx)

	p := node.ProposeAsync(ctx, []byte("hello"))
	<-p.Committed() // it will be in the log of every later leader
	<-p.Done()      // and now the local state machine has it
	_, err := p.Result()
	fmt.Println(sm.value.Load(), err)
	// Output: hello <nil>
}

func ExampleNode_Read() {
	ctx, sm := context.Background(), &register{}
	node := newExampleNode(sm)
	defer node.Stop(ctx)

	if _, err := node.Propose(ctx, []byte("hello")); err != nil {
		log.Fatal(err)
	}
	if err := node.Read(ctx); err != nil { // on any node
		log.Fatal(err)
	}
	fmt.Println(sm.value.Load()) // as new as every write acknowledged before Read began
	// Output: hello
}

func ExampleNode_WhileLeader() {
	ctx, sm := context.Background(), &register{}
	node := newExampleNode(sm)
	defer node.Stop(ctx)

	err := node.WhileLeader(ctx, func(ctx context.Context, epoch raft.Term) error {
		// One server of the cluster at a time is here. ctx ends when it is no longer the leader. A leader that has been deposed
		// and does not know it yet is harmless, if every command names the epoch: in any other term it is refused.
		if _, err := node.Propose(ctx, []byte("scheduled by the leader"), raft.IfTerm(epoch)); err != nil {
			return err
		}
		fmt.Println(sm.value.Load())
		return errors.New("enough")
	})
	fmt.Println(err)
	// Output:
	// scheduled by the leader
	// enough
}

func ExampleNode_OnLeaderChange() {
	node := newExampleNode(&register{})
	defer node.Stop(context.Background())

	led := make(chan raft.NodeID, 1)
	stop := node.OnLeaderChange(func(l raft.Leadership) {
		if l.Leader != "" {
			select {
			case led <- l.Leader:
			default:
			}
		}
	})
	defer stop()
	fmt.Println("leader:", <-led)
	// Output: leader: n1
}
