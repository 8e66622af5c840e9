package tcp

import (
	"bytes"
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
	frame, err := wire.Marshal(heartbeat(identity("b", 4), "a", 1))
	require.NoError(f, err)
	f.Add(append(wire.AppendFrame(nil, wire.FrameKeepalive, nil), frame...))
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

func FuzzHandshake(f *testing.F) {
	body, err := wire.AppendPack(nil, hello{Cluster: "c", Node: "b", To: "a"})
	require.NoError(f, err)
	f.Add(wire.AppendFrame(preface(), wire.FrameHello, body))
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
	body, err := wire.AppendPack(nil, hello{Cluster: "c", Node: "b", To: "a"})
	require.NoError(f, err)
	f.Add(body)
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := decodeHello(b); err == nil {
			require.LessOrEqual(t, len(h.Node)+len(h.Cluster)+len(h.To)+len(h.Address), len(b))
		}
	})
}

func FuzzSnapshotContent(f *testing.F) {
	chunk := wire.AppendFrame(nil, wire.FrameChunk, []byte("state"))
	f.Add(wire.AppendFrame(chunk, wire.FrameEnd, binary.LittleEndian.AppendUint64(nil, 5)))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &chunkReader{frames: newFrameReader(input{Reader: bytes.NewReader(b)}, 1<<20), timeout: time.Second}
		content, err := io.ReadAll(r)
		if err == nil {
			require.True(t, r.ended)
			require.EqualValues(t, len(content), r.total)
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
