package tcp

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
)

// counter is a handler that counts.
type counter struct{ arrived chan int }

func (c counter) HandleMessages(ms []raft.Message)                              { c.arrived <- len(ms) }
func (c counter) HandleSnapshot(context.Context, raft.Message, io.Reader) error { return nil }
func (c counter) PeerUp(raft.NodeID, raft.ReplicaID, uint64)                    {}
func (c counter) PeerLost(raft.NodeID, uint64)                                  {}
func (c counter) Refused(raft.NodeID, string)                                   {}

// BenchmarkLoopback sends AppendEntries with entries of 256 bytes from one transport to another, a bounded number in flight.
func BenchmarkLoopback(b *testing.B) {
	for _, security := range []string{"plaintext", "tls"} {
		for _, batch := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/entries=%d", security, batch), func(b *testing.B) {
				loopback(b, security == "tls", batch)
			})
		}
	}
}

func loopback(b *testing.B, secure bool, batch int) {
	var configA, configB Config
	if secure {
		ca := newAuthority(b)
		configA.TLS, configB.TLS = ca.config(b, "c", "a"), ca.config(b, "c", "b")
	}
	configA.Listen, configB.Listen = "127.0.0.1:0", "127.0.0.1:0"
	from, err := New(configA)
	require.NoError(b, err)
	to, err := New(configB)
	require.NoError(b, err)
	defer func() {
		require.NoError(b, from.Close())
		require.NoError(b, to.Close())
	}()
	h := counter{arrived: make(chan int, 1024)}
	require.NoError(b, from.Start(identity("a", 1), h))
	require.NoError(b, to.Start(identity("b", 1), h))
	list(from, "b", to.Address())

	m := heartbeat(identity("a", 1), "b", 1)
	entries := make([]raft.Entry, batch)
	for i := range entries {
		e := raft.NewCommand(make([]byte, 256))
		frame := e.Frame()
		binary.LittleEndian.PutUint64(frame[8:], 3)
		binary.LittleEndian.PutUint64(frame[16:], uint64(i)+1)
		binary.LittleEndian.PutUint32(frame[28:], crc32.Checksum(frame[:28], crc32.MakeTable(crc32.Castagnoli)))
		entries[i], _, err = raft.DecodeEntry(frame)
		require.NoError(b, err)
	}
	m.Body = raft.AppendEntries{Entries: entries}
	one := []raft.Message{m}
	from.Send("b", raft.LaneLog, one)
	<-h.arrived

	const window = 64
	b.SetBytes(int64(batch * 256))
	b.ReportAllocs()
	b.ResetTimer()
	inFlight := 0
	for range b.N {
		for inFlight >= window {
			inFlight -= <-h.arrived
		}
		from.Send("b", raft.LaneLog, one)
		inFlight++
	}
	for inFlight > 0 {
		inFlight -= <-h.arrived
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}
