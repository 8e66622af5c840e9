package tcp

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/transport/internal/wire"
)

// input is a connection from which those bytes arrive.
type input struct {
	net.Conn
	io.Reader
}

func (i input) Read(p []byte) (int, error)      { return i.Reader.Read(p) }
func (i input) SetReadDeadline(time.Time) error { return nil }

func FuzzFrames(f *testing.F) {
	m := heartbeat(identity("b", 4), "a", 1)
	frame, err := wire.Marshal(m)
	require.NoError(f, err)
	stream := []byte(nil)
	for t := wire.FrameKeepalive; t <= wire.FrameBegin; t++ {
		stream = wire.AppendFrame(stream, t, []byte("control"))
	}
	f.Add(append(stream, frame...))
	// Frames with entries, and what servers say to each other when one of them is damaged.
	fetched := raft.NewCommand([]byte("lost"))
	for _, body := range []raft.Body{
		raft.ForwardPropose{Proposals: []raft.Proposal{{Entry: fetched, IfTerm: 3}, {Entry: raft.NewBarrier()}}},
		raft.FetchEntries{Snapshot: 4, Wanted: []raft.Stretch{{Term: 1, First: 4, Last: 6}}},
		raft.FetchEntriesReply{Incarnation: 5, Entries: []raft.Entry{fetched}, Held: []raft.Held{
			{Stretch: raft.Stretch{Term: 1, First: 4, Last: 6}, UpTo: 5, How: raft.HoldsDamaged},
		}},
		raft.InstallSnapshot{Repair: true, Meta: raft.SnapshotMeta{Index: 9, Term: 2, ConfigurationIndex: 1, Size: 1000,
			Configuration: raft.Configuration{ClusterID: "c", Servers: []raft.Server{{ID: "a", Address: "h:1", Replica: 8}}}}},
	} {
		m.Body = body
		frame, err := wire.Marshal(m)
		require.NoError(f, err)
		f.Add(frame)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		frames := newFrameReader(input{Reader: bytes.NewReader(b)}, 1<<20)
		for {
			frames.more()
			h, control, entries, err := frames.next(time.Second, time.Second)
			if err != nil {
				return
			}
			require.Len(t, control, h.Control)
			require.Len(t, entries, h.Entries)
		}
	})
}

var hellos = []hello{
	{Cluster: "c", Node: "b", To: "a"},
	{Cluster: "c", Node: "b", To: "a", Replica: 1 << 60, Incarnation: 7, Address: "h:7000", Lane: uint8(raft.LaneLog), Reached: "127.0.0.1:7000"},
}

func FuzzHandshake(f *testing.F) {
	for _, h := range hellos {
		body, err := wire.AppendPack(nil, h)
		require.NoError(f, err)
		f.Add(wire.AppendFrame(preface(), wire.FrameHello, body))
	}
	f.Add(wire.AppendFrame(preface(), wire.FrameRefusal, []byte("full")))
	tr := &Transport{identity: identity("a", 1)}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := tr.readHello(newFrameReader(input{Reader: bytes.NewReader(b)}, maxHello), "")
		if err == nil {
			require.Equal(t, "c", h.Cluster)
			require.Equal(t, "a", h.To)
			require.NotEmpty(t, h.Node)
		}
	})
}

// FuzzHello skips the checksums, which a fuzzer hardly ever gets right.
func FuzzHello(f *testing.F) {
	for _, h := range hellos {
		body, err := wire.AppendPack(nil, h)
		require.NoError(f, err)
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := decodeHello(b); err == nil {
			require.LessOrEqual(t, len(h.Node)+len(h.Cluster)+len(h.To)+len(h.Address), len(b))
		}
	})
}

func FuzzSnapshotContent(f *testing.F) {
	chunk := wire.AppendFrame(nil, wire.FrameChunk, []byte("state"))
	stream := func(from, end uint64) []byte {
		b := wire.AppendFrame(nil, wire.FrameBegin, binary.LittleEndian.AppendUint64(nil, from))
		return wire.AppendFrame(append(b, chunk...), wire.FrameEnd, binary.LittleEndian.AppendUint64(nil, end))
	}
	f.Add(stream(0, 5))
	f.Add(stream(3, 8))
	f.Add(stream(4, 9))
	f.Add(append(wire.AppendFrame(nil, wire.FrameKeepalive, nil), stream(3, 8)...))
	f.Add(stream(3, 8)[:40]) // cut off in a chunk
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &chunkReader{frames: newFrameReader(input{Reader: bytes.NewReader(b)}, 1<<20), timeout: time.Second, offer: func(offer) error { return nil }}
		from, err := r.Resume(3, [sha256.Size]byte{})
		if err != nil {
			return
		}
		require.True(t, from == 0 || from == 3)
		content, err := io.ReadAll(r)
		if err == nil {
			require.True(t, r.ended)
			require.EqualValues(t, from+int64(len(content)), r.total)
		}
	})
}

func TestFrameBufferGrowsOnlyAsBytesArrive(t *testing.T) {
	// A header that announces 60 MiB and nothing behind it.
	m := heartbeat(identity("b", 4), "a", 1)
	m.Body = raft.ForwardPropose{Proposals: []raft.Proposal{{Entry: raft.NewCommand(make([]byte, 60<<20))}}}
	frame, err := wire.Marshal(m)
	require.NoError(t, err)
	head := frame[:1000]
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, _, _, err = newFrameReader(input{Reader: bytes.NewReader(head)}, 64<<20).next(time.Second, time.Second)
	runtime.ReadMemStats(&after)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(1<<20))

	frames := newFrameReader(input{Reader: bytes.NewReader(frame)}, 64<<20)
	_, _, entries, err := frames.next(time.Second, time.Second)
	require.NoError(t, err)
	require.Equal(t, len(entries), cap(entries), "the last growth is exact")
}
