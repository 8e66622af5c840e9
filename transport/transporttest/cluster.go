package transporttest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/memory"
)

// journal is a state machine that keeps every command.
type journal struct {
	mu    sync.Mutex
	lines bytes.Buffer
}

func (j *journal) Apply(entries []raft.Entry, results []any) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i := range entries {
		fmt.Fprintf(&j.lines, "%s\n", entries[i].Data)
		results[i] = j.lines.Len()
	}
	return nil
}

func (j *journal) Snapshot(context.Context) (raft.SnapshotWriter, error) {
	return view(j.String()), nil
}

func (j *journal) Restore(_ context.Context, _ raft.SnapshotMeta, r io.Reader) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines.Reset()
	_, err := j.lines.ReadFrom(r)
	return err
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.lines.String()
}

type view string

func (v view) WriteTo(_ context.Context, w io.Writer) error {
	_, err := io.WriteString(w, string(v))
	return err
}
func (v view) Close() {}

// RunCluster runs three nodes over the transports that endpoint makes: they elect a leader, commit, forward and survive their leader.
// node returns the node that the endpoint belongs to, once that is made, for transports whose receiving side is the embedder's.
func RunCluster(t *testing.T, endpoint func(id raft.NodeID, node func() *raft.Node) Endpoint) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ids := []raft.NodeID{"n1", "n2", "n3"}
	nodes, states := map[raft.NodeID]*raft.Node{}, map[raft.NodeID]*journal{}
	transports := map[raft.NodeID]raft.Transport{}
	conf := raft.Configuration{ClusterID: "c"}
	for _, id := range ids {
		e := endpoint(id, func() *raft.Node { return nodes[id] })
		transports[id] = e.Transport
		conf.Servers = append(conf.Servers, raft.Server{ID: id, Address: e.Address})
	}
	for _, id := range ids {
		st := memory.New()
		require.NoError(t, raft.Bootstrap(ctx, st, id, conf))
		states[id] = &journal{}
		n, err := raft.NewNode(raft.Config{ID: id, StateMachine: states[id], Storage: st, Transport: transports[id]})
		require.NoError(t, err)
		nodes[id] = n
	}
	for _, id := range ids {
		require.NoError(t, nodes[id].Start(ctx))
		defer func() {
			stopping, cancel := context.WithTimeout(context.Background(), deadline)
			defer cancel()
			require.NoError(t, nodes[id].Stop(stopping))
		}()
	}

	propose := func(id raft.NodeID, command string) {
		t.Helper()
		_, err := nodes[id].Propose(ctx, []byte(command))
		require.NoError(t, err)
	}
	for i := range 10 {
		for _, id := range ids { // two of the three forward to the leader
			propose(id, fmt.Sprintf("%s-%d", id, i))
		}
	}
	leader := nodes["n1"].Leadership().Leader
	require.NotEmpty(t, leader)
	require.NoError(t, nodes[leader].Stop(ctx))
	for _, id := range ids {
		if id != leader {
			// Who still takes the old leader for the leader would pass its proposal on to nobody, and could not tell what became of it.
			require.Eventually(t, func() bool {
				now := nodes[id].Leadership().Leader
				return now != "" && now != leader
			}, deadline, time.Millisecond)
			propose(id, "after "+string(id))
		}
	}
	var want string
	for _, id := range ids {
		if id == leader {
			continue
		}
		require.NoError(t, nodes[id].Read(ctx))
		if want == "" {
			want = states[id].String()
		}
		require.Equal(t, want, states[id].String())
		require.Equal(t, 32, bytes.Count([]byte(want), []byte("\n")))
	}
}
