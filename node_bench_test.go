package raft_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/keyring"
	memstorage "github.com/steadyraft/raft/storage/memory"
	"github.com/steadyraft/raft/storage/wal"
	memtransport "github.com/steadyraft/raft/transport/memory"
	"github.com/steadyraft/raft/transport/tcp"
)

// discard is a state machine that does nothing, so that a benchmark measures the rest.
type discard struct{ journal }

func (*discard) Apply([]raft.Entry, []any) error { return nil }

// BenchmarkPropose measures a command of 256 bytes through three nodes in one process, over a network and storages in memory: all
// the processor's work but that of system calls.
func BenchmarkPropose(b *testing.B) {
	network := memtransport.NewNetwork()
	benchmarkPropose(b, func(id raft.NodeID) (raft.Storage, raft.Transport, string) {
		return memstorage.New(), network.Transport(id), string(id)
	})
}

// BenchmarkProposeDurably is the same as it is meant to be used: logs on disk, synced, and TCP over loopback.
func BenchmarkProposeDurably(b *testing.B) {
	benchmarkPropose(b, onDiskAndTCP(b))
}

// BenchmarkEncryptionAtRest measures what encryption costs: two clusters as above, one with keys, take turns. It reports the commands a
// second without keys, and by how many percent fewer they are with keys, over all and in the median of the turns.
func BenchmarkEncryptionAtRest(b *testing.B) {
	keys := keyring.Static{CurrentID: 1, Keys: map[uint32][keyring.KeySize]byte{1: {1}}}
	plain, stopPlain := startForBenchmark(b, onDiskAndTCP(b))
	defer stopPlain()
	encrypted, stopEncrypted := startForBenchmark(b, onDiskAndTCPWith(b, wal.Options{Keys: keys}))
	defer stopEncrypted()
	cmd := make([]byte, 256)
	for _, clients := range []int{1, 256, 1024} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			var took [2]time.Duration
			var ratios []float64
			turn := max(200, 50*clients) // calls
			for b.Loop() {
				var each [2]time.Duration
				for i, leader := range []*raft.Node{plain, encrypted} {
					began := time.Now()
					var left atomic.Int64
					left.Store(int64(turn))
					var wg sync.WaitGroup
					for range clients {
						wg.Go(func() {
							for left.Add(-1) >= 0 {
								if _, err := leader.Propose(context.Background(), cmd); err != nil {
									b.Error(err)
									return
								}
							}
						})
					}
					wg.Wait()
					each[i] = time.Since(began)
					took[i] += each[i]
				}
				ratios = append(ratios, float64(each[0])/float64(each[1]))
			}
			slices.Sort(ratios)
			b.ReportMetric(float64(turn*b.N)/took[0].Seconds(), "commands/s")
			b.ReportMetric(100*(1-float64(took[0])/float64(took[1])), "%encryption")
			b.ReportMetric(100*(1-ratios[len(ratios)/2]), "%encryption-median")
		})
	}
}

func onDiskAndTCP(b *testing.B) func(raft.NodeID) (raft.Storage, raft.Transport, string) {
	return onDiskAndTCPWith(b, wal.Options{})
}

func onDiskAndTCPWith(b *testing.B, opts wal.Options) func(raft.NodeID) (raft.Storage, raft.Transport, string) {
	return func(raft.NodeID) (raft.Storage, raft.Transport, string) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(b, err)
		tr, err := tcp.New(tcp.Config{Listener: l})
		require.NoError(b, err)
		return wal.New(b.TempDir(), opts), tr, l.Addr().String()
	}
}

func benchmarkPropose(b *testing.B, parts func(raft.NodeID) (raft.Storage, raft.Transport, string)) {
	cmd := make([]byte, 256)
	benchmarkCalls(b, parts, "commands/s", func(leader *raft.Node) error {
		_, err := leader.Propose(context.Background(), cmd)
		return err
	})
}

// BenchmarkRead measures linearizable reads on the leader, over TCP.
func BenchmarkRead(b *testing.B) {
	benchmarkCalls(b, onDiskAndTCP(b), "reads/s", func(leader *raft.Node) error { return leader.Read(context.Background()) })
}

func benchmarkCalls(b *testing.B, parts func(raft.NodeID) (raft.Storage, raft.Transport, string), unit string, call func(*raft.Node) error) {
	leader, stop := startForBenchmark(b, parts)
	defer stop()
	for _, clients := range []int{1, 16, 256, 1024} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			callFrom(b, clients, func() error { return call(leader) })
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), unit)
		})
	}
}

// startForBenchmark starts three nodes and returns the leader.
func startForBenchmark(b *testing.B, parts func(raft.NodeID) (raft.Storage, raft.Transport, string)) (leader *raft.Node, stop func()) {
	conf := raft.Configuration{ClusterID: "bench"}
	var storages []raft.Storage
	var transports []raft.Transport
	for _, id := range []raft.NodeID{"n1", "n2", "n3"} {
		st, tr, address := parts(id)
		storages, transports = append(storages, st), append(transports, tr)
		conf.Servers = append(conf.Servers, raft.Server{ID: id, Address: address})
	}
	var nodes []*raft.Node
	for i, s := range conf.Servers {
		require.NoError(b, raft.Bootstrap(b.Context(), storages[i], s.ID, conf))
		n, err := raft.NewNode(raft.Config{ID: s.ID, StateMachine: &discard{}, Storage: storages[i], Transport: transports[i]})
		require.NoError(b, err)
		require.NoError(b, n.Start(b.Context()))
		nodes = append(nodes, n)
	}
	stop = func() {
		for _, n := range nodes {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			require.NoError(b, n.Stop(ctx))
			cancel()
		}
	}
	_, err := nodes[0].Propose(b.Context(), nil)
	require.NoError(b, err)
	leader = nodes[0]
	for _, n := range nodes {
		if n.Leadership().Role == raft.Leader {
			leader = n
		}
	}
	return leader, stop
}

// callFrom makes b.N calls from so many clients, each of which waits for the answer before the next.
func callFrom(b *testing.B, clients int, call func() error) {
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for range clients {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := call(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
}
