package raft_test

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/wal"
	"github.com/steadyraft/raft/transport/tcp"
)

// realMachine is a server with its log on disk and its network on TCP.
type realMachine struct {
	id      raft.NodeID
	dir     string
	address string
	sm      *journal
	node    *raft.Node
}

func newRealMachine(t *testing.T, id raft.NodeID) *realMachine {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return &realMachine{id: id, dir: filepath.Join(t.TempDir(), string(id)), address: l.Addr().String()}
}

func (m *realMachine) start(t *testing.T) {
	tr, err := tcp.New(tcp.Config{Listen: m.address})
	require.NoError(t, err)
	m.sm = &journal{}
	cfg := raft.Config{ID: m.id, ClusterID: clusterID, StateMachine: m.sm, Storage: wal.New(m.dir, wal.Options{MinSegmentBytes: 16 << 10}), Transport: tr}
	cfg.Core.HeartbeatInterval, cfg.Core.ElectionTimeout = 20*time.Millisecond, 200*time.Millisecond
	cfg.Core.DiskDeadline = 5 * time.Second // of a machine that does other things too
	often(&cfg)
	m.node, err = raft.NewNode(cfg)
	require.NoError(t, err)
	require.NoError(t, m.node.Start(t.Context()))
}

// The same as above on a real disk and a real network: the parts fit together.
func TestClusterOnDiskAndTCP(t *testing.T) {
	conf := raft.Configuration{ClusterID: clusterID}
	var machines []*realMachine
	for _, id := range []raft.NodeID{"n1", "n2", "n3"} {
		m := newRealMachine(t, id)
		machines = append(machines, m)
		conf.Servers = append(conf.Servers, raft.Server{ID: id, Address: m.address})
	}
	for _, m := range machines {
		require.NoError(t, raft.Bootstrap(t.Context(), wal.New(m.dir, wal.Options{}), m.id, conf))
		m.start(t)
	}
	defer func() {
		for _, m := range machines {
			require.NoError(t, m.node.Stop(within(10*time.Second)))
		}
	}()
	var want []string
	propose := func(m *realMachine, n int) {
		for range n {
			cmd := fmt.Sprint(len(want))
			_, err := m.node.Propose(within(20*time.Second), []byte(cmd))
			require.NoError(t, err)
			want = append(want, cmd)
		}
	}
	converge := func() {
		t.Helper()
		require.Eventually(t, func() bool {
			for _, m := range machines {
				if !slices.Equal(want, m.sm.all()) {
					return false
				}
			}
			return true
		}, 20*time.Second, 5*time.Millisecond)
	}
	for _, m := range machines {
		propose(m, 10)
	}
	converge()

	// A server falls behind, and catches up through a snapshot.
	behind := machines[0]
	require.NoError(t, behind.node.Stop(within(10*time.Second)))
	propose(machines[1], 50)
	behind.start(t)
	converge()
	require.Positive(t, behind.sm.restores())

	// A joiner is brought up to date, and promoted.
	joiner := newRealMachine(t, "n4")
	joiner.start(t)
	machines = append(machines, joiner)
	change := func(ch raft.Change) {
		t.Helper()
		require.Eventually(t, func() bool {
			for _, m := range machines {
				if m.node.Leadership().Role == raft.Leader {
					_, err := m.node.ChangeMembership(within(10*time.Second), ch)
					return err == nil
				}
			}
			return false
		}, 20*time.Second, 5*time.Millisecond)
	}
	change(raft.Change{Add: []raft.Server{{ID: "n4", Address: joiner.address}}})
	converge()
	change(raft.Change{Promote: []raft.NodeID{"n4"}})

	// Everybody stops without grace, and starts again.
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for _, m := range machines {
		_ = m.node.Stop(over)
	}
	for _, m := range machines {
		require.NoError(t, m.node.Stop(within(10*time.Second)))
		m.start(t)
	}
	propose(joiner, 10)
	converge()
}
