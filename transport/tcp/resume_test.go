package tcp

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	memstorage "github.com/steadyraft/raft/storage/memory"
	"github.com/steadyraft/raft/transport/internal/wire"
)

// cutter passes connections on, each up to some number of bytes from the dialer, and counts those bytes.
type cutter struct {
	listener net.Listener
	running  sync.WaitGroup

	mu     sync.Mutex
	budget int // of each connection from now on; -1: no limit
	passed int
	conns  []net.Conn
}

func newCutter(t *testing.T) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	return &cutter{listener: l, budget: -1}
}

func (p *cutter) address() string { return p.listener.Addr().String() }

func (p *cutter) serve(t *testing.T, target string) {
	p.running.Go(func() {
		for {
			in, err := p.listener.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				closeQuietly(in)
				continue
			}
			p.mu.Lock()
			budget := p.budget
			p.conns = append(p.conns, in, out)
			p.mu.Unlock()
			p.running.Go(func() {
				defer closeQuietly(in)
				defer closeQuietly(out)
				p.pass(out, in, budget)
			})
			p.running.Go(func() {
				defer closeQuietly(in)
				_, _ = io.Copy(in, out) // it ends when the connection does
			})
		}
	})
	t.Cleanup(func() {
		closeQuietly(p.listener)
		p.mu.Lock()
		for _, c := range p.conns {
			closeQuietly(c)
		}
		p.mu.Unlock()
		p.running.Wait()
	})
}

func (p *cutter) pass(out io.Writer, in io.Reader, budget int) {
	b := make([]byte, 32<<10)
	for budget != 0 {
		room := b
		if budget > 0 {
			room = b[:min(len(b), budget)]
		}
		n, err := in.Read(room)
		if n > 0 {
			p.mu.Lock()
			p.passed += n
			p.mu.Unlock()
			if budget > 0 {
				budget -= n
			}
			if _, err := out.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (p *cutter) limit(budget int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.budget = budget
}

func (p *cutter) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.passed
}

// restored is a state machine that takes any snapshot.
type restored struct{ content chan []byte }

func (restored) Apply([]raft.Entry, []any) error { return nil }
func (restored) Snapshot(context.Context) (raft.SnapshotWriter, error) {
	return nil, os.ErrInvalid
}

func (m restored) Restore(_ context.Context, _ raft.SnapshotMeta, r io.Reader) error {
	b, err := io.ReadAll(r)
	m.content <- b
	return err
}

// link is a server, a node that knows nothing, and what lies between them.
type link struct {
	a       *Transport
	cutter  *cutter
	storage *memstorage.Storage
	tls     *TLSConfig
	node    *raft.Node
	sm      restored
}

func newLink(t *testing.T, secure bool) *link {
	t.Helper()
	l := &link{storage: memstorage.New(), cutter: newCutter(t), sm: restored{make(chan []byte, 1)}}
	var senders *TLSConfig
	if secure {
		ca := newAuthority(t)
		senders, l.tls = ca.config(t, "c", "a"), ca.config(t, "c", "b")
	}
	// Nothing but snapshots is sent, so the other connections rest.
	l.a, _ = start(t, Config{TLS: senders, KeepaliveInterval: time.Minute, SnapshotBytesPerSecond: 1 << 30}, identity("a", 1))
	address := l.join(t, "127.0.0.1:0")
	list(l.a, "b", l.cutter.address())
	l.cutter.serve(t, address)
	return l
}

// join starts the node, and returns where.
func (l *link) join(t *testing.T, listen string) string {
	t.Helper()
	b, err := New(Config{Listen: listen, TLS: l.tls, IdleTimeout: time.Minute})
	require.NoError(t, err)
	l.node, err = raft.NewNode(raft.Config{ID: "b", ClusterID: "c", StateMachine: l.sm, Storage: l.storage, Transport: b})
	require.NoError(t, err)
	require.NoError(t, l.node.Start(t.Context()))
	node := l.node
	t.Cleanup(func() { require.NoError(t, node.Stop(context.Background())) })
	return b.Address()
}

func (l *link) send(t *testing.T, content []byte, r io.Reader) error {
	m := heartbeat(identity("a", 1), "b", 1)
	body := snapshotBody()
	body.Meta.Configuration.Servers = []raft.Server{{ID: "a", Address: "a"}, {ID: "b", Address: "b"}}
	body.Meta.Size = int64(len(content))
	m.Body = body
	return l.a.SendSnapshot(t.Context(), m, r)
}

// finish sends until it succeeds: what has become of the attempt before, the node may not have noticed yet.
func (l *link) finish(t *testing.T, content []byte, reader func() io.Reader) []byte {
	t.Helper()
	l.cutter.limit(-1)
	for began := time.Now(); ; {
		err := l.send(t, content, reader())
		if err == nil {
			return <-l.sm.content
		}
		require.Less(t, time.Since(began), patience, "%v", err)
	}
}

// rewinder is content that can be read again.
type rewinder struct{ *bytes.Reader }

func (r rewinder) Rewind() error {
	_, err := r.Seek(0, io.SeekStart)
	return err
}

func rewindable(content []byte) io.Reader { return rewinder{bytes.NewReader(content)} }

func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(b) // it never fails
	return b
}

// The connection breaks at random places, before the snapshot could be sent in one piece. Every attempt may lose one chunk that has not
// arrived completely, and its own handshake, but nothing else is sent twice.
func TestSnapshotThatBreaksAnywhereIsNotSentTwice(t *testing.T) {
	for name, secure := range map[string]bool{"plaintext": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			l := newLink(t, secure)
			content := randomBytes(1, 4<<20+12345)
			random := rand.New(rand.NewPCG(7, 7))
			attempts := 0
			for began := time.Now(); ; attempts++ {
				require.Less(t, time.Since(began), patience)
				budget := random.IntN(1 << 20)
				if attempts%3 == 0 {
					budget = random.IntN(6 << 10) // in the handshake, or the first frames
				}
				l.cutter.limit(budget)
				if l.send(t, content, rewindable(content)) == nil {
					break
				}
			}
			require.Equal(t, content, <-l.sm.content)
			require.Greater(t, attempts, 4)
			const overhead = chunkSize + 16<<10
			require.Less(t, l.cutter.count(), len(content)+(attempts+1)*overhead)
		})
	}
}

// cutOnce leaves the receiver with a part of the content.
func (l *link) cutOnce(t *testing.T, content []byte) {
	t.Helper()
	l.cutter.limit(len(content) / 2)
	require.Error(t, l.send(t, content, rewindable(content)))
}

// Two servers may have different snapshots at one index: the order of a map is enough. A mixture of both would be neither.
func TestSnapshotsOfTwoServersAreNotMixed(t *testing.T) {
	content, other := randomBytes(1, 2<<20), randomBytes(2, 2<<20)
	late := bytes.Clone(content)
	late[10]++ // and the rest is the same
	for name, next := range map[string][]byte{"other content": other, "one byte differs": late} {
		t.Run(name, func(t *testing.T) {
			l := newLink(t, false)
			l.cutOnce(t, content)
			before := l.cutter.count()
			require.Equal(t, next, l.finish(t, next, func() io.Reader { return rewindable(next) }))
			require.Greater(t, l.cutter.count()-before, len(next))
		})
	}
}

func TestSnapshotThatCannotBeRewoundBeginsAnew(t *testing.T) {
	l := newLink(t, false)
	content := randomBytes(1, 2<<20)
	l.cutOnce(t, content)
	before := l.cutter.count()
	require.Equal(t, content, l.finish(t, content, func() io.Reader { return bytes.NewReader(content) }))
	require.Greater(t, l.cutter.count()-before, len(content))
}

func TestSnapshotBeginsAnewForAReceiverThatRestarted(t *testing.T) {
	l := newLink(t, false)
	content := randomBytes(1, 2<<20)
	l.cutOnce(t, content)
	require.NoError(t, l.node.Stop(context.Background()))
	l.storage = l.storage.Crash()
	cutter := newCutter(t)
	cutter.serve(t, l.join(t, "127.0.0.1:0"))
	l.cutter = cutter
	list(l.a, "b", cutter.address())
	require.Equal(t, content, l.finish(t, content, func() io.Reader { return rewindable(content) }))
	require.Greater(t, cutter.count(), len(content))
}

// holder is a handler that has received something before.
type holder struct {
	*recorder
	have, got []byte
	from      int64
}

func (h *holder) HandleSnapshot(_ context.Context, _ raft.Message, r io.Reader) error {
	resumable := r.(raft.ResumableContent)
	from, err := resumable.Resume(int64(len(h.have)), sha256.Sum256(h.have))
	if err != nil {
		return err
	}
	if _, err := resumable.Resume(0, sha256.Sum256(nil)); err == nil {
		return os.ErrInvalid
	}
	h.from = from
	h.got, err = io.ReadAll(r)
	return err
}

// Only what is sent is throttled. The content that the receiver has must be read, too, and the receiver, which hears nothing of it
// meanwhile, must not give up.
func TestReceiverWaitsWhileItsPartIsCompared(t *testing.T) {
	content := randomBytes(1, 300_000)
	for name, test := range map[string]struct {
		have []byte
		from int
	}{
		"the same":     {content[:250_000], 250_000},
		"everything":   {content, len(content)},
		"other":        {randomBytes(2, 1000), 0},
		"longer":       {append(bytes.Clone(content), 1), 0},
		"nothing":      {nil, 0},
		"first chunks": {content[:1], 1},
	} {
		t.Run(name, func(t *testing.T) {
			h := &holder{recorder: newRecorder(), have: test.have}
			b, err := New(Config{Listen: "127.0.0.1:0", SnapshotChunkTimeout: 300 * time.Millisecond})
			require.NoError(t, err)
			require.NoError(t, b.Start(identity("b", 4), h))
			t.Cleanup(func() { require.NoError(t, b.Close()) })
			rate := 100_000
			if test.from == 0 || test.from == 1 {
				rate = 1 << 30
			}
			a, _ := start(t, Config{SnapshotBytesPerSecond: rate, KeepaliveInterval: 20 * time.Millisecond}, identity("a", 1))
			list(a, "b", b.Address())
			m := heartbeat(identity("a", 1), "b", 1)
			m.Body = snapshotBody()
			require.NoError(t, a.SendSnapshot(t.Context(), m, rewindable(content)))
			require.EqualValues(t, test.from, h.from)
			require.True(t, bytes.Equal(content[test.from:], h.got))
		})
	}
}

// Content that begins where the receiver's part does not end would leave a gap.
func TestSnapshotWithAGapIsRefused(t *testing.T) {
	a, ha := start(t, Config{}, identity("a", 1))
	m := heartbeat(identity("b", 4), "a", 1)
	m.Body = snapshotBody()
	b, err := wire.Marshal(m)
	require.NoError(t, err)
	b = wire.AppendFrame(b, wire.FrameBegin, binary.LittleEndian.AppendUint64(nil, 3))
	b = wire.AppendFrame(b, wire.FrameChunk, []byte("te"))
	b = wire.AppendFrame(b, wire.FrameEnd, binary.LittleEndian.AppendUint64(nil, 5))
	conn := introduce(t, a, identity("b", 4), laneSnapshot)
	_, err = conn.Write(b)
	require.NoError(t, err)
	outcome := func(e string) bool { return strings.HasPrefix(e, "snapshot of") }
	ha.await(t, "its end", func() bool { return slices.ContainsFunc(ha.all(), outcome) })
	require.Contains(t, ha.all(), "snapshot of 0 bytes: receive snapshot: it begins at 3, but 0 bytes are here")
	ha.awaitEvent(t, `refused "b": wrong beginning`)
}

func TestMalformedOfferIsRefused(t *testing.T) {
	good := offer{5, sha256.Sum256([]byte("state"))}
	got, err := decodeOffer(good.append(nil))
	require.NoError(t, err)
	require.Equal(t, good, got)
	for _, b := range [][]byte{nil, good.append(nil)[1:], append(good.append(nil), 0), offer{-1, good.sum}.append(nil)} {
		_, err := decodeOffer(b)
		require.ErrorIs(t, err, wire.ErrMalformed)
	}
}
