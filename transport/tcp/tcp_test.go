package tcp

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/transport/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = time.Minute

// recorder is a handler that writes down what it is told.
type recorder struct {
	mu       sync.Mutex
	messages []raft.Message
	events   []string
	changed  chan struct{}
}

func newRecorder() *recorder { return &recorder{changed: make(chan struct{}, 1)} }

func (r *recorder) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf(format, args...))
	signal(r.changed)
}

func (r *recorder) HandleMessages(ms []raft.Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.messages = append(r.messages, ms...)
	signal(r.changed)
}

func (r *recorder) HandleSnapshot(ctx context.Context, _ raft.Message, content io.Reader) error {
	n, err := io.Copy(io.Discard, content)
	r.note("snapshot of %d bytes: %v", n, err)
	return err
}

func (r *recorder) PeerUp(p raft.NodeID, replica raft.ReplicaID, incarnation uint64) {
	r.note("up %s %d/%d", p, replica, incarnation)
}
func (r *recorder) PeerLost(p raft.NodeID, incarnation uint64) { r.note("lost %s %d", p, incarnation) }
func (r *recorder) Refused(p raft.NodeID, reason string)       { r.note("refused %q: %s", p, reason) }

func (r *recorder) has(event string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.events, event)
}

func (r *recorder) delivered() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.messages)
}

func (r *recorder) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// await waits until cond holds; it is asked again whenever the handler was called.
func (r *recorder) await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for !cond() {
		select {
		case <-r.changed:
		case <-poll.C:
		case <-timeout.C:
			require.Fail(t, "never: "+what, "events: %q", r.all())
		}
	}
}

func (r *recorder) awaitEvent(t *testing.T, event string) {
	t.Helper()
	r.await(t, event, func() bool { return r.has(event) })
}

func identity(id raft.NodeID, incarnation uint64) raft.Identity {
	return raft.Identity{Cluster: "c", Node: id, Replica: 7, Incarnation: incarnation}
}

func start(t *testing.T, c Config, id raft.Identity) (*Transport, *recorder) {
	t.Helper()
	if c.Listen == "" {
		c.Listen = "127.0.0.1:0"
	}
	tr, err := New(c)
	require.NoError(t, err)
	h := newRecorder()
	require.NoError(t, tr.Start(id, h))
	t.Cleanup(func() { require.NoError(t, tr.Close()) })
	return tr, h
}

func list(t *Transport, ids ...any) {
	var servers []raft.Server
	for i := 0; i < len(ids); i += 2 {
		servers = append(servers, raft.Server{ID: raft.NodeID(ids[i].(string)), Address: ids[i+1].(string)})
	}
	t.SetPeers(servers)
}

func heartbeat(from raft.Identity, to raft.NodeID, request uint64) raft.Message {
	return raft.Message{Header: raft.Header{
		From: from.Node, To: to, Replica: from.Replica, Incarnation: from.Incarnation, Term: 3, Request: request,
	}, Body: raft.AppendEntries{}}
}

func TestPeerIsLostWhenItsProcessIsGone(t *testing.T) {
	a, ha := start(t, Config{}, identity("a", 1))
	b, hb := start(t, Config{}, identity("b", 4))
	list(a, "b", b.Address())
	list(b, "a", a.Address())
	// Each has heard of the other over both connections. A handshake that is still under way when b dies may be noticed after its
	// loss, and b is then up and lost once more.
	ha.await(t, "both connections", func() bool { return count(ha.all(), "up b 7/4") >= 2 })
	hb.await(t, "both connections", func() bool { return count(hb.all(), "up a 7/1") >= 2 })
	require.NoError(t, b.Close()) // to others, like a kill: the kernel closes its sockets
	ha.awaitEvent(t, "lost b 4")

	// It comes back at the same address.
	_, hb2 := start(t, Config{Listen: b.Address()}, identity("b", 5))
	ha.awaitEvent(t, "up b 7/5")
	hb2.awaitEvent(t, "up a 7/1")
	require.Equal(t, 1, count(ha.all(), "lost b 4"), "once is enough")
}

func count(events []string, event string) int {
	n := 0
	for _, e := range events {
		if e == event {
			n++
		}
	}
	return n
}

// proxy stands between two servers and breaks their connections.
type proxy struct {
	listener net.Listener
	running  sync.WaitGroup

	mu     sync.Mutex
	target string
	mute   bool // swallow what comes
	conns  []net.Conn
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &proxy{listener: l, target: target}
	p.running.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			target := p.target
			p.mu.Unlock()
			out, err := net.Dial("tcp", target)
			if err != nil {
				closeQuietly(in)
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, in, out)
			p.mu.Unlock()
			p.running.Go(func() { p.pipe(in, out) })
			p.running.Go(func() { p.pipe(out, in) })
		}
	})
	t.Cleanup(func() {
		closeQuietly(l)
		p.cut()
		p.running.Wait()
	})
	return p
}

func (p *proxy) pipe(from, to net.Conn) {
	defer closeQuietly(from)
	defer closeQuietly(to)
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		p.mu.Lock()
		mute := p.mute
		p.mu.Unlock()
		if mute {
			continue
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}

func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		closeQuietly(c)
	}
	p.conns = nil
}

func (p *proxy) set(mute bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mute = mute
}

func (p *proxy) address() string { return p.listener.Addr().String() }

func TestBrokenConnectionAloneIsNoLoss(t *testing.T) {
	a, ha := start(t, Config{}, identity("a", 1))
	b, hb := start(t, Config{}, identity("b", 4))
	p := newProxy(t, b.Address())
	list(a, "b", p.address())
	ha.awaitEvent(t, "up b 7/4")
	for range 3 {
		before := count(ha.all(), "up b 7/4")
		p.cut()
		ha.await(t, "redial", func() bool { return count(ha.all(), "up b 7/4") > before })
	}
	require.NotContains(t, ha.all(), "lost b 4")
	require.NotContains(t, hb.all(), "lost a 1")
}

// Attempts in vain become rare. A peer that is there is dialled again soon, however often connections to it break: otherwise resets
// would silence a leader for an election timeout.
func TestLinkThatBreaksAgainAndAgainIsRedialledSoon(t *testing.T) {
	a, ha := start(t, Config{MaxBackoff: time.Hour}, identity("a", 1))
	b, _ := start(t, Config{}, identity("b", 4))
	p := newProxy(t, b.Address())
	list(a, "b", p.address())
	began := time.Now()
	for n := 1; n <= 11; n++ {
		ha.await(t, "connection", func() bool { return count(ha.all(), "up b 7/4") >= n })
		// Ten pauses of up to 50 ms. If each were twice as long as the one before, they would take 25 s at least.
		require.Less(t, time.Since(began), 15*time.Second)
		p.cut()
	}
}

// Refused connections do not make a process dead whose own connection to us is alive.
func TestRefusedConnectionIsNoLossWhileThePeerIsHeard(t *testing.T) {
	a, ha := start(t, Config{}, identity("a", 1))
	b, hb := start(t, Config{}, identity("b", 4))
	list(a, "b", b.Address())
	list(b, "a", a.Address())
	ha.await(t, "connection", func() bool { return a.Stats().Peers["b"].Connected && b.Stats().Peers["a"].Connected })
	require.NoError(t, b.listener.Close())
	b.mu.Lock()
	for c := range b.incoming {
		closeQuietly(c)
	}
	b.mu.Unlock()
	ha.await(t, "refusal", func() bool { return bytes.Contains([]byte(a.Stats().Peers["b"].LastError), []byte("refused")) })
	require.NotContains(t, ha.all(), "lost b 4")

	// Then it dies.
	require.NoError(t, b.Close())
	ha.awaitEvent(t, "lost b 4")
	require.NotContains(t, hb.all(), "lost a 1")
}

// A proxy that is restarted refuses connections for a moment. That says nothing about the process behind it, even if nothing else of it
// is heard: a shared proxy that takes down all links at once would make every follower suspect the leader.
func TestRefusalByAProxyIsNoLoss(t *testing.T) {
	a, ha := start(t, Config{MaxBackoff: 50 * time.Millisecond}, identity("a", 1))
	b, _ := start(t, Config{}, identity("b", 4))
	p := newProxy(t, b.Address())
	list(a, "b", p.address())
	ha.awaitEvent(t, "up b 7/4")
	require.NoError(t, p.listener.Close())
	p.cut()
	ha.await(t, "refusal", func() bool { return strings.Contains(a.Stats().Peers["b"].LastError, "refused") })
	require.NotContains(t, ha.all(), "lost b 4")

	// At an address of its own it would have said so.
	list(a, "b", b.Address())
	ha.await(t, "connection", func() bool { return a.Stats().Peers["b"].Connected })
	require.NoError(t, b.Close())
	ha.awaitEvent(t, "lost b 4")
}

func TestAddressesAreComparedAsAddresses(t *testing.T) {
	at := func(s string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }
	require.True(t, isDirect(at("192.0.2.1:7000"), "192.0.2.1:7000"))
	require.True(t, isDirect(at("[::ffff:192.0.2.1]:7000"), "192.0.2.1:7000"), "the same, on a socket of the other kind")
	require.True(t, isDirect(at("[fe80::1%2]:7000"), "[fe80::1%eth0]:7000"), "each machine has its own names of zones")
	require.False(t, isDirect(at("192.0.2.1:7000"), "192.0.2.1:7001"))
	require.False(t, isDirect(at("192.0.2.1:7000"), "10.0.0.1:7000"))
	require.False(t, isDirect(at("192.0.2.1:7000"), ""), "an older server does not say")
}

func TestLaterIncarnationReplacesTheEarlier(t *testing.T) {
	a, ha := start(t, Config{}, identity("a", 1))
	b, _ := start(t, Config{}, identity("b", 4))
	list(b, "a", a.Address())
	ha.awaitEvent(t, "up b 7/4")
	b2, _ := start(t, Config{}, identity("b", 5)) // the old process hangs
	list(b2, "a", a.Address())
	ha.awaitEvent(t, "up b 7/5")
	events := ha.all()
	require.Less(t, slices.Index(events, "lost b 4"), slices.Index(events, "up b 7/5"))
	require.Contains(t, events, "lost b 4")
	ha.awaitEvent(t, `refused "b": dead incarnation`)
	ha.await(t, "the reason at the other side", func() bool { // which learns it a moment later
		return strings.Contains(b.Stats().Peers["a"].LastError, "do not restore its data directory")
	})
}

// A server that comes back after a while is told the news at once, not when the back-off of those who have dialled it in vain is over.
func TestPeerThatReachesUsIsDialledAtOnce(t *testing.T) {
	a, _ := start(t, Config{MaxBackoff: time.Hour, IdleTimeout: time.Minute}, identity("a", 1))
	list(a, "b", "127.0.0.1:1")
	a.mu.RLock()
	lane := a.peers["b"].lanes[raft.LaneLog] // nothing to send, so nobody else uses it
	a.mu.RUnlock()
	<-lane.again // the new address
	dialledAgain := make(chan struct{})
	go func() {
		defer close(dialledAgain)
		lane.pause(10) // more than ten seconds
	}()
	introduce(t, a, identity("b", 1), raft.LaneControl)
	select {
	case <-dialledAgain:
	case <-time.After(5 * time.Second):
		require.Fail(t, "the back-off goes on")
	}
}

func TestSilentLinkIsNoticedAndRedialled(t *testing.T) {
	a, ha := start(t, Config{KeepaliveInterval: 10 * time.Millisecond}, identity("a", 1))
	b, hb := start(t, Config{KeepaliveInterval: 10 * time.Millisecond}, identity("b", 4))
	p := newProxy(t, b.Address())
	list(a, "b", p.address())
	list(b, "a", a.Address())
	ha.await(t, "connection", func() bool { return a.Stats().Peers["b"].Connected })
	p.set(true)
	hb.await(t, "idle connection closed", func() bool { return b.Stats().Open == 0 })
	ha.await(t, "the dialer noticed", func() bool { return !a.Stats().Peers["b"].Connected })
	p.set(false)
	ha.await(t, "connection", func() bool { return a.Stats().Peers["b"].Connected })
	require.NotContains(t, ha.all(), "lost b 4")
}

func TestHandshakeRefusalsNameTheReason(t *testing.T) {
	b, hb := start(t, Config{}, identity("b", 1))
	c := identity("c", 1)
	stranger := raft.Identity{Cluster: "other", Node: "d"}
	for _, test := range []struct {
		id          raft.Identity
		dialled     string
		text, label string
	}{
		{c, "x", `this is server "b", not "x"`, `refused "c": meant for another server`},
		{stranger, "b", `this server is of cluster "c", not "other"`, `refused "d": other cluster`},
		{identity("b", 2), "b2", "", `refused "b": meant for another server`},
	} {
		a, ha := start(t, Config{}, test.id)
		list(a, test.dialled, b.Address())
		hb.awaitEvent(t, test.label)
		ha.await(t, test.text, func() bool {
			return bytes.Contains([]byte(a.Stats().Peers[raft.NodeID(test.dialled)].LastError), []byte(test.text))
		})
	}
	require.Positive(t, b.Stats().Refused)
}

func TestCopiedDataDirectoryIsNamed(t *testing.T) {
	a, ha := start(t, Config{}, identity("a", 1))
	b, _ := start(t, Config{}, identity("b", 4))
	list(b, "a", a.Address())
	ha.awaitEvent(t, "up b 7/4")
	twin, _ := start(t, Config{}, identity("b", 4))
	list(twin, "a", a.Address())
	ha.await(t, "refusal", func() bool {
		require.False(t, twin.Stats().Peers["a"].Connected, "the copy was let in")
		return ha.has(`refused "b": two servers with one data directory`)
	})
	ha.await(t, "both addresses", func() bool {
		text := []byte(twin.Stats().Peers["a"].LastError)
		return bytes.Contains(text, []byte(b.Address())) && bytes.Contains(text, []byte(twin.Address()))
	})
}

// introduce shakes hands by hand, as b, and returns the connection.
func introduce(t *testing.T, to *Transport, as raft.Identity, lane raft.Lane) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", to.Address())
	require.NoError(t, err)
	t.Cleanup(func() { closeQuietly(conn) })
	body, err := wire.AppendPack(nil, hello{Cluster: as.Cluster, Node: string(as.Node), Replica: uint64(as.Replica),
		Incarnation: as.Incarnation, Address: "127.0.0.1:1", To: "a", Lane: uint8(lane)})
	require.NoError(t, err)
	_, err = conn.Write(wire.AppendFrame(preface(), wire.FrameHello, body))
	require.NoError(t, err)
	frames := newFrameReader(conn, maxHello)
	require.NoError(t, readPreface(frames.buf))
	h, _, _, err := frames.next(patience, patience)
	require.NoError(t, err)
	require.Equal(t, wire.FrameWelcome, h.Type)
	return conn
}

func TestHostileInputIsRefusedAndCounted(t *testing.T) {
	b := identity("b", 4)
	marshal := func(m raft.Message) []byte {
		frame, err := wire.Marshal(m)
		require.NoError(t, err)
		return frame
	}
	damaged := marshal(heartbeat(b, "a", 1))
	damaged[len(damaged)-1] ^= 1
	header := bytes.Clone(damaged)
	header[0] ^= 1
	entry := raft.Message{Header: heartbeat(b, "a", 1).Header, Body: raft.ForwardPropose{Proposals: []raft.Proposal{{Entry: raft.NewCommand([]byte("x"))}}}}
	damagedEntry := marshal(entry)
	damagedEntry[len(damagedEntry)-1] ^= 1
	oversized := wire.AppendFrame(nil, wire.FrameMessage, make([]byte, maxControl+1))
	impossible := heartbeat(b, "a", 1)
	impossible.Body = raft.AppendEntries{PrevLogTerm: 9}
	snapshot := heartbeat(b, "a", 1)
	snapshot.Body = snapshotBody()
	for name, test := range map[string]struct {
		bytes []byte
		label string
	}{
		"DamagedControl":     {damaged, "bad checksum"},
		"DamagedHeader":      {header, "bad checksum"},
		"DamagedEntry":       {damagedEntry, "damaged entry"},
		"Oversized":          {oversized, "oversized frame"},
		"UnknownFrame":       {wire.AppendFrame(nil, 99, nil), "unexpected frame"},
		"UnknownMessage":     {wire.AppendFrame(nil, wire.FrameMessage, bytes.Repeat([]byte{99}, 100)), "malformed frame"},
		"OtherSender":        {marshal(heartbeat(identity("z", 4), "a", 1)), "sender is not the one connected"},
		"EarlierIncarnation": {marshal(heartbeat(identity("b", 3), "a", 1)), "sender is not the one connected"},
		"OtherReplica":       {marshal(heartbeat(raft.Identity{Node: "b", Replica: 8, Incarnation: 4}, "a", 1)), "sender is not the one connected"},
		"OtherRecipient":     {marshal(heartbeat(b, "z", 1)), "meant for another server"},
		"Impossible":         {marshal(impossible), "invalid message"},
		"SnapshotOnALane":    {marshal(snapshot), "message on the wrong lane"},
	} {
		t.Run(name, func(t *testing.T) {
			a, ha := start(t, Config{}, identity("a", 1))
			conn := introduce(t, a, b, raft.LaneLog)
			// Not every byte needs to be taken: the node hangs up at a header that it refuses, with the rest of the frame on its way.
			_, _ = conn.Write(test.bytes)
			event := fmt.Sprintf("refused %q: %s", "b", test.label)
			ha.await(t, event, func() bool { return ha.delivered() > 0 || strings.Contains(strings.Join(ha.all(), "\n"), "refused") })
			require.Zero(t, ha.delivered())
			require.Contains(t, ha.all(), event)
			// The link is dropped.
			require.NoError(t, conn.SetReadDeadline(time.Now().Add(patience)))
			_, err := io.Copy(io.Discard, conn)
			require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
		})
	}
}

func TestStrangeFirstBytesAreRefused(t *testing.T) {
	a, ha := start(t, Config{HandshakeTimeout: 200 * time.Millisecond}, identity("a", 1))
	newer := preface()
	binary.LittleEndian.PutUint16(newer[6:], protocolVersion+1)
	// Nobody who has not said who he is makes us wait for a mebibyte.
	hugeEntries := wire.AppendFrame(nil, wire.FrameHello, nil)
	binary.LittleEndian.PutUint32(hugeEntries, 1<<20)
	binary.LittleEndian.PutUint32(hugeEntries[20:], crc32.Checksum(hugeEntries[:20], crc32.MakeTable(crc32.Castagnoli)))
	for name, test := range map[string]struct {
		bytes []byte
		label string
		text  string
	}{
		"HTTP":         {[]byte("GET / HTTP/1.1\r\n\r\n"), "not this protocol", "this port speaks"},
		"NewerVersion": {newer, "unknown protocol version", "protocol version 2 is not supported here, only 1"},
		"Slow":         {preface()[:3], "handshake broke off", ""},
		"HugeHello":    {wire.AppendFrame(preface(), wire.FrameHello, make([]byte, maxHello+1)), "oversized frame", ""},
		"HugeEntries":  {append(preface(), hugeEntries...), "oversized frame", ""},
		"NotAHello":    {wire.AppendFrame(preface(), wire.FrameKeepalive, nil), "malformed frame", ""},
		"EmptyHello":   {wire.AppendFrame(preface(), wire.FrameHello, []byte{0x80}), "malformed frame", ""},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(ha.all())
			conn, err := net.Dial("tcp", a.Address())
			require.NoError(t, err)
			defer closeQuietly(conn)
			_, _ = conn.Write(test.bytes) // it may hang up before it has taken all
			ha.await(t, test.label, func() bool { return len(ha.all()) > before })
			require.Equal(t, fmt.Sprintf("refused %q: %s", "", test.label), ha.all()[before])
			answer, _ := io.ReadAll(conn) // a reset is an end, too
			require.Contains(t, string(answer), test.text)
		})
	}
}

func snapshotBody() raft.InstallSnapshot {
	return raft.InstallSnapshot{Meta: raft.SnapshotMeta{Index: 9, Term: 2, ConfigurationIndex: 1,
		Configuration: raft.Configuration{ClusterID: "c", Servers: []raft.Server{{ID: "a"}}}}}
}

// A snapshot that is cut at any frame, or says that it was longer, is never taken for whole.
func TestCutSnapshotIsNotWhole(t *testing.T) {
	a, ha := start(t, Config{SnapshotChunkTimeout: 100 * time.Millisecond}, identity("a", 1))
	m := heartbeat(identity("b", 4), "a", 1)
	m.Body = snapshotBody()
	head, err := wire.Marshal(m)
	require.NoError(t, err)
	chunk := wire.AppendFrame(nil, wire.FrameChunk, []byte("state"))
	end := func(n uint64) []byte {
		return wire.AppendFrame(nil, wire.FrameEnd, binary.LittleEndian.AppendUint64(nil, n))
	}
	begin := wire.AppendFrame(nil, wire.FrameBegin, make([]byte, 8))
	send := func(close bool, parts ...[]byte) {
		conn := introduce(t, a, identity("b", 4), laneSnapshot)
		_, err := conn.Write(bytes.Join(append([][]byte{head, begin}, parts...), nil))
		require.NoError(t, err)
		if close {
			require.NoError(t, conn.(*net.TCPConn).CloseWrite()) // closed with an offer that was not read, it would be reset
		}
	}
	// outcome returns what the handler saw of the nth snapshot.
	outcome := func(n int) (seen string) {
		ha.await(t, "a snapshot", func() bool {
			ended := slices.DeleteFunc(ha.all(), func(e string) bool { return !strings.HasPrefix(e, "snapshot of") })
			if len(ended) < n {
				return false
			}
			seen = ended[n-1]
			return true
		})
		return seen
	}
	send(false, chunk, end(5))
	require.Equal(t, "snapshot of 5 bytes: <nil>", outcome(1))
	send(false, chunk, end(6))
	require.Equal(t, "snapshot of 5 bytes: receive snapshot: 5 bytes arrived, 6 were sent", outcome(2))
	ha.awaitEvent(t, `refused "b": incomplete snapshot`)
	send(true, chunk, chunk)
	require.Equal(t, "snapshot of 10 bytes: receive snapshot: unexpected EOF", outcome(3))
	send(false, chunk, chunk, chunk) // and then nothing: the deadline ends it
	ha.await(t, "deadline", func() bool {
		return slices.ContainsFunc(ha.all(), func(e string) bool {
			return bytes.Contains([]byte(e), []byte("snapshot of 15 bytes")) && bytes.Contains([]byte(e), []byte("timeout"))
		})
	})
}

func TestSnapshotIsThrottled(t *testing.T) {
	a, ha := start(t, Config{SnapshotBytesPerSecond: 100_000}, identity("a", 1))
	b, hb := start(t, Config{}, identity("b", 4))
	list(a, "b", b.Address())
	ha.awaitEvent(t, "up b 7/4")
	m := heartbeat(identity("a", 1), "b", 1)
	m.Body = snapshotBody()
	began := time.Now()
	require.NoError(t, a.SendSnapshot(t.Context(), m, bytes.NewReader(make([]byte, 50_000))))
	require.Greater(t, time.Since(began), 300*time.Millisecond)
	hb.awaitEvent(t, "snapshot of 50000 bytes: <nil>")
}

func TestForeignMessagesAreNotSent(t *testing.T) {
	a, ha := start(t, Config{}, identity("a", 1))
	b, hb := start(t, Config{}, identity("b", 4))
	list(a, "b", b.Address())
	ha.awaitEvent(t, "up b 7/4")
	a.Send("b", raft.LaneControl, []raft.Message{
		heartbeat(identity("z", 1), "b", 1), heartbeat(identity("a", 2), "b", 2), heartbeat(identity("a", 1), "b", 3),
	})
	hb.await(t, "message", func() bool { return hb.delivered() > 0 || strings.Contains(strings.Join(hb.all(), "\n"), "refused") })
	require.Equal(t, 1, hb.delivered())
	require.EqualValues(t, 3, hb.messages[0].Request)
	ha.await(t, "statistics", func() bool { // the sender counts after writing
		s := a.Stats().Peers["b"]
		return s.Dropped == 2 && s.SentMessages == 1 && s.SentBytes > 0
	})
	require.EqualValues(t, 1, b.Stats().Peers["a"].ReceivedMessages)
}

func TestQueueIsBoundedInBytes(t *testing.T) {
	a, _ := start(t, Config{QueueBytes: 10_000, MaxBackoff: time.Hour}, identity("a", 1))
	silent, err := net.Listen("tcp", "127.0.0.1:0") // connects, and never says a word
	require.NoError(t, err)
	defer closeQuietly(silent)
	list(a, "b", silent.Addr().String())
	for i := range uint64(1000) {
		m := heartbeat(identity("a", 1), "b", i)
		m.Body = raft.ForwardPropose{Proposals: []raft.Proposal{{Entry: raft.NewCommand(make([]byte, 1000))}}}
		a.Send("b", raft.LaneLog, []raft.Message{m})
	}
	require.Greater(t, a.Stats().Peers["b"].Dropped, uint64(900))
	a.mu.RLock()
	o := a.peers["b"].lanes[raft.LaneLog]
	a.mu.RUnlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	require.LessOrEqual(t, o.bytes, 10_000)
}

func TestGuestsAreBounded(t *testing.T) {
	a, ha := start(t, Config{MaxGuests: 2}, identity("a", 1))
	for i := range 3 {
		g, _ := start(t, Config{}, identity(raft.NodeID(fmt.Sprintf("g%d", i)), 1))
		list(g, "a", a.Address())
		if i < 2 {
			ha.awaitEvent(t, fmt.Sprintf("up g%d 7/1", i))
			continue
		}
		const refused = `refused "g2": too many unlisted servers`
		ha.await(t, refused, func() bool { return ha.has(refused) || ha.has("up g2 7/1") })
		require.True(t, ha.has(refused))
		require.Len(t, a.Stats().Peers, 2)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	a, ha := start(t, Config{MaxConnections: 2}, identity("a", 1))
	for range 3 {
		conn, err := net.Dial("tcp", a.Address())
		require.NoError(t, err)
		defer closeQuietly(conn)
	}
	ha.await(t, "refusal", func() bool {
		require.LessOrEqual(t, a.Stats().Open, 2)
		return ha.has(`refused "": too many connections`)
	})
	require.Equal(t, 2, a.Stats().Open)
}

func TestCertificatesDecideWhoMayTalk(t *testing.T) {
	ca, foreign := newAuthority(t), newAuthority(t)
	b, hb := start(t, Config{TLS: ca.config(t, "c", "b")}, identity("b", 1))
	client := func(authority *authority, roots *x509.CertPool, uris ...*url.URL) *TLSConfig {
		cert := authority.issue(t, uris...)
		return &TLSConfig{
			Certificate: func() (*tls.Certificate, error) { return cert, nil },
			Roots:       func() (*x509.CertPool, error) { return roots, nil },
		}
	}
	// attempt dials b with that certificate, whatever Start would say about it.
	attempt := func(c *TLSConfig, to raft.NodeID) error {
		a, err := New(Config{Listen: "127.0.0.1:0", TLS: c})
		require.NoError(t, err)
		defer func() { require.NoError(t, a.Close()) }()
		a.identity = identity("a", 1)
		conn, err := a.dial(t.Context(), to, b.Address(), raft.LaneControl)
		if err == nil {
			closeQuietly(conn)
		}
		return err
	}
	require.NoError(t, attempt(client(ca, ca.pool(), NodeURI("c", "a")), "b"))
	for name, c := range map[string]*TLSConfig{
		"OtherAuthority": client(foreign, ca.pool(), NodeURI("c", "a")),
		"OtherCluster":   client(ca, ca.pool(), NodeURI("d", "a")),
		"NoName":         client(ca, ca.pool()),
		"TwoNames":       client(ca, ca.pool(), NodeURI("c", "a"), NodeURI("c", "x")),
	} {
		before := count(hb.all(), `refused "": wrong certificate`)
		err := attempt(c, "b")
		require.Error(t, err, name)
		require.NotContains(t, err.Error(), "the certificate names", "%s: refused before any byte of ours is read", name)
		hb.await(t, name, func() bool { return count(hb.all(), `refused "": wrong certificate`) > before })
	}
	require.ErrorContains(t, attempt(client(ca, ca.pool(), NodeURI("c", "x")), "b"), "the certificate names raft://c/x")
	hb.awaitEvent(t, `refused "a": certificate of another server`)

	// The dialer checks the acceptor as well.
	require.ErrorContains(t, attempt(client(ca, ca.pool(), NodeURI("c", "a")), "x"), "certificate names raft://c/b, want raft://c/x")
	require.ErrorContains(t, attempt(client(ca, foreign.pool(), NodeURI("c", "a")), "b"), "wrong certificate")

	// No certificate, and an older TLS.
	for _, c := range []*tls.Config{
		{InsecureSkipVerify: true},
		{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*ca.issue(t, NodeURI("c", "a"))}},
	} {
		conn, err := tls.Dial("tcp", b.Address(), c)
		if err == nil {
			_, err = conn.Read(make([]byte, 1)) // under TLS 1.3 the server's verdict comes after the client's handshake
			closeQuietly(conn)
		}
		require.Error(t, err)
	}
	_, err := tls.Dial("tcp", b.Address(), &tls.Config{
		InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*ca.issue(t, NodeURI("c", "a"))},
	})
	require.ErrorContains(t, err, "protocol version", "refused in the handshake, not after it")

	// A certificate for servers only does not make its holder a client.
	serverOnly := ca.issueFor(t, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, NodeURI("c", "a"))
	before := count(hb.all(), `refused "": wrong certificate`)
	require.Error(t, attempt(&TLSConfig{
		Certificate: func() (*tls.Certificate, error) { return serverOnly, nil },
		Roots:       func() (*x509.CertPool, error) { return ca.pool(), nil },
	}, "b"))
	hb.await(t, "another use", func() bool { return count(hb.all(), `refused "": wrong certificate`) > before })
	require.Equal(t, 1, count(hb.all(), "up a 7/1"))
}

// What a hello says is checked whoever dialled: a correct server would not even try these.
func TestHelloDecidesWhoMayCome(t *testing.T) {
	a, ha := start(t, Config{}, identity("a", 1))
	introduce(t, a, identity("b", 4), raft.LaneControl)
	ha.awaitEvent(t, "up b 7/4")
	for name, test := range map[string]struct {
		h     hello
		event string
	}{
		"OtherCluster":    {hello{Cluster: "d", Node: "b", Replica: 7, Incarnation: 5, To: "a"}, `refused "b": other cluster`},
		"OtherRecipient":  {hello{Cluster: "c", Node: "b", Replica: 7, Incarnation: 5, To: "z"}, `refused "b": meant for another server`},
		"OwnName":         {hello{Cluster: "c", Node: "a", Replica: 7, Incarnation: 2, To: "a"}, `refused "a": a second server of this name`},
		"DeadIncarnation": {hello{Cluster: "c", Node: "b", Replica: 7, Incarnation: 3, To: "a"}, `refused "b": dead incarnation`},
		"UnknownLane":     {hello{Cluster: "c", Node: "b", Replica: 7, Incarnation: 4, To: "a", Lane: 3}, `refused "b": unknown lane`},
		"LongName":        {hello{Cluster: "c", Node: string(make([]byte, maxName+1)), To: "a"}, `refused "": malformed frame`},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", a.Address())
			require.NoError(t, err)
			body, err := wire.AppendPack(nil, test.h)
			require.NoError(t, err)
			_, err = conn.Write(wire.AppendFrame(preface(), wire.FrameHello, body))
			require.NoError(t, err)
			frames := newFrameReader(conn, maxHello)
			if err := readPreface(frames.buf); err == nil { // otherwise it is not worth an answer
				h, _, _, err := frames.next(patience, patience)
				require.NoError(t, err)
				require.Equal(t, wire.FrameRefusal, h.Type)
			}
			closeQuietly(conn)
			ha.awaitEvent(t, test.event)
		})
	}
}

// Without TLS the dialer has only the welcome to tell who is there.
func TestDialerLeavesWhoeverIsNotTheOneMeant(t *testing.T) {
	a, _ := start(t, Config{}, identity("a", 1))
	for _, other := range []raft.Identity{{Cluster: "c", Node: "z", Replica: 7, Incarnation: 1}, {Cluster: "d", Node: "b", Replica: 7, Incarnation: 1}} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		answered := make(chan error, 1)
		go func() {
			conn, err := listener.Accept()
			if err != nil {
				answered <- err
				return
			}
			defer closeQuietly(conn)
			body, err := wire.AppendPack(nil, hello{Cluster: other.Cluster, Node: string(other.Node), Replica: 7, Incarnation: 1})
			if err == nil {
				_, err = conn.Write(wire.AppendFrame(preface(), wire.FrameWelcome, body))
			}
			answered <- err
			_, _ = io.Copy(io.Discard, conn) // until the dialer leaves
		}()
		conn, err := a.dial(t.Context(), "b", listener.Addr().String(), raft.LaneControl)
		if err == nil {
			closeQuietly(conn)
		}
		require.ErrorContains(t, err, fmt.Sprintf("server %q of cluster %q is there", other.Node, other.Cluster))
		require.NoError(t, <-answered)
		require.NoError(t, listener.Close())
	}
}

func TestOwnCertificateIsCheckedAtStart(t *testing.T) {
	ca := newAuthority(t)
	tr, err := New(Config{Listen: "127.0.0.1:0", TLS: ca.config(t, "c", "b")})
	require.NoError(t, err)
	defer func() { require.NoError(t, tr.Close()) }()
	require.ErrorContains(t, tr.Start(identity("a", 1), newRecorder()), "own certificate names raft://c/b, but this server is raft://c/a")
}

func TestCertificatesAreReadAgainWhenTheyChange(t *testing.T) {
	ca, dir := newAuthority(t), t.TempDir()
	first := ca.issue(t, NodeURI("c", "a"))
	files := TLSFiles(ca.write(t, dir, first))
	got, err := files.Certificate()
	require.NoError(t, err)
	require.Equal(t, first.Certificate, got.Certificate)

	second := ca.issue(t, NodeURI("c", "a"))
	certificate, key, _ := ca.write(t, dir, second)
	later := time.Now().Add(time.Minute) // a coarse clock must not hide the change
	require.NoError(t, os.Chtimes(certificate, later, later))
	got, err = files.Certificate()
	require.NoError(t, err)
	require.Equal(t, second.Certificate, got.Certificate)

	// Half-written files do no harm.
	require.NoError(t, os.WriteFile(key, []byte("half"), 0o600))
	got, err = files.Certificate()
	require.NoError(t, err)
	require.Equal(t, second.Certificate, got.Certificate)

	_, err = TLSFiles("missing.crt", "missing.key", "missing.ca").Certificate()
	require.ErrorContains(t, err, "missing.crt")
}

func TestConfigurationErrorsNameTheNextStep(t *testing.T) {
	_, err := New(Config{KeepaliveInterval: -1, MaxFrameBytes: 5, TLS: &TLSConfig{}})
	for _, problem := range []string{"Listen", "KeepaliveInterval", "MaxFrameBytes", "TLSFiles"} {
		require.ErrorContains(t, err, problem)
	}
	_, err = New(Config{Listen: ":0"})
	require.ErrorContains(t, err, "set Config.Advertise")

	a, _ := start(t, Config{}, identity("a", 1))
	_, err = New(Config{Listen: a.Address()})
	require.ErrorContains(t, err, a.Address())
	require.ErrorContains(t, err, "choose another Config.Listen")
}

func TestPlaintextOnAForeignNetworkIsNotTrusted(t *testing.T) {
	a := &Transport{}
	foreign, loopback := fixedAddress{net.IPv4(192, 0, 2, 1)}, fixedAddress{net.IPv6loopback}
	require.False(t, a.trusts(foreign))
	require.True(t, a.trusts(loopback))
	a.config.TrustPlaintext = true
	require.True(t, a.trusts(foreign))
}

type fixedAddress struct{ ip net.IP }

func (f fixedAddress) RemoteAddr() net.Addr { return &net.TCPAddr{IP: f.ip} }
