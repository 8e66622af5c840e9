package tcp_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/memory"
	"github.com/steadyraft/raft/transport/tcp"
)

// A live leader stays in office whatever happens to connections, as long as new ones can be made before an election timeout is over.

const patience = time.Minute

// breakable is a listener that can reset the connections that it has accepted.
type breakable struct {
	net.Listener
	mu    sync.Mutex
	conns []*net.TCPConn
}

func (b *breakable) Accept() (net.Conn, error) {
	c, err := b.Listener.Accept()
	if err == nil {
		b.mu.Lock()
		b.conns = append(b.conns, c.(*net.TCPConn))
		b.mu.Unlock()
	}
	return c, err
}

// reset breaks the oldest connection so that the other side sees a reset. It reports false if there is none.
func (b *breakable) reset() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.conns) > 0 {
		c := b.conns[0]
		b.conns = b.conns[1:]
		if c.SetLinger(0) == nil && c.Close() == nil { // otherwise it was closed before
			return true
		}
	}
	return false
}

// calmCluster is three servers under load.
type calmCluster struct {
	t         *testing.T
	nodes     []*raft.Node
	leader    *raft.Node
	committed atomic.Int64
	failed    atomic.Pointer[error] // of a proposal
	suspicion atomic.Bool           // somebody began an election because it believed the leader's process gone
	late      atomic.Int64          // nanoseconds by which a timer of this process came too late, at most
}

// A process that gets no processor for so long, again and again, may rightly lose its leader to an election timeout: reaching somebody
// takes many turns.
const starved = 100 * time.Millisecond

// watchClock measures how long this process has to wait for its turn, until ctx ends.
func (c *calmCluster) watchClock(ctx context.Context) {
	const step = 10 * time.Millisecond
	for ctx.Err() == nil {
		start := time.Now()
		time.Sleep(step)
		c.late.Store(max(c.late.Load(), int64(time.Since(start)-step)))
	}
}

// elections is the part of raft.Metrics that is of interest.
type elections struct{ c *calmCluster }

func (e elections) Election(reason string) {
	if reason == raft.ReasonSuspicion.String() {
		e.c.suspicion.Store(true)
	}
}
func (elections) ObserveWrite(time.Duration, int, int) {}
func (elections) ObserveCommit(time.Duration)          {}
func (elections) ObserveApply(time.Duration, int)      {}
func (elections) Refused(string)                       {}

// newCalmCluster starts servers that listen there, and can be dialled at these addresses. It returns once one of them leads, and clients
// have begun to propose to it. They go on until the end, and no proposal may fail.
func newCalmCluster(t *testing.T, listeners []net.Listener, addresses []string) *calmCluster {
	c := &calmCluster{t: t}
	conf := raft.Configuration{ClusterID: "c"}
	for i, id := range []raft.NodeID{"n1", "n2", "n3"} {
		conf.Servers = append(conf.Servers, raft.Server{ID: id, Address: addresses[i]})
	}
	for i, s := range conf.Servers {
		// Attempts in vain are made often, so that after an outage the links are back long before an election timeout is over.
		tr, err := tcp.New(tcp.Config{Listener: listeners[i], Advertise: s.Address, MaxBackoff: 50 * time.Millisecond})
		require.NoError(t, err)
		st := memory.New()
		require.NoError(t, raft.Bootstrap(t.Context(), st, s.ID, conf))
		// The election timeout is long, so that a busy machine deposes nobody either: suspicion, which is what this is about, knows no time.
		n, err := raft.NewNode(raft.Config{
			ID: s.ID, StateMachine: nothing{}, Storage: st, Transport: tr, Metrics: elections{c},
			Core: raft.CoreConfig{HeartbeatInterval: 100 * time.Millisecond, ElectionTimeout: 3 * time.Second},
		})
		require.NoError(t, err)
		require.NoError(t, n.Start(t.Context()))
		c.nodes = append(c.nodes, n)
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			require.NoError(t, n.Stop(ctx))
		})
	}
	require.Eventually(t, func() bool {
		for _, n := range c.nodes {
			if n.Leadership().Role == raft.Leader {
				c.leader = n
				return c.inContact()
			}
		}
		return false
	}, patience, time.Millisecond)

	ctx, cancel := context.WithCancel(context.Background())
	var load sync.WaitGroup
	load.Go(func() { c.watchClock(ctx) })
	for range 4 {
		load.Go(func() {
			for ctx.Err() == nil {
				if _, err := c.leader.Propose(ctx, make([]byte, 256)); err != nil && ctx.Err() == nil {
					c.failed.CompareAndSwap(nil, &err)
					return
				}
				c.committed.Add(1)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		load.Wait()
	})
	return c
}

// inContact reports whether the leader has heard from both others within two heartbeats.
func (c *calmCluster) inContact() bool {
	heard := 0
	for _, p := range c.leader.Status().Peers {
		if p.MatchIndex > 0 && p.LastHeard < 200*time.Millisecond {
			heard++
		}
	}
	return heard == 2
}

// requireCalm waits until the leader is in contact with both others again and commits, and requires that it is the same in the same term
// for everybody, and was not suspected.
func (c *calmCluster) requireCalm(want raft.Leadership, what string) {
	c.t.Helper()
	before := c.committed.Load()
	require.Eventually(c.t, func() bool {
		return c.leader.Leadership() != want || c.failed.Load() != nil || c.inContact() && c.committed.Load() > before+8
	}, patience, time.Millisecond, what)
	require.False(c.t, c.suspicion.Load(), "%s: the leader's process was believed gone", what)
	now := []raft.Leadership{c.leader.Leadership()}
	changed := now[0] != want
	for _, n := range c.nodes {
		l := n.Leadership()
		now, changed = append(now, l), changed || l.Leader != want.Leader || l.Term != want.Term
	}
	if late := time.Duration(c.late.Load()); changed && late > starved {
		c.t.Skipf("%s somebody's timeout was over, but this process had to wait %v for a processor: that says nothing", what, late)
	}
	require.False(c.t, changed, "%s: the leader, and everybody, says %v, not %v", what, now, want)
	if err := c.failed.Load(); err != nil {
		require.NoError(c.t, *err, "%s: a proposal to the leader", what)
	}
}

// nothing is a state machine without a state.
type nothing struct{}

func (nothing) Apply([]raft.Entry, []any) error                             { return nil }
func (nothing) Snapshot(context.Context) (raft.SnapshotWriter, error)       { return nothing{}, nil }
func (nothing) Restore(context.Context, raft.SnapshotMeta, io.Reader) error { return nil }
func (nothing) WriteTo(context.Context, io.Writer) error                    { return nil }
func (nothing) Close()                                                      {}

func listen(t *testing.T) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	return l
}

// DESIGN §3, suspicion: a broken link deposes nobody, and neither do a thousand, of all servers, lanes and directions. The servers dial
// each other directly, so all that makes them suspect somebody is armed. No more connections are broken at a time than there are, and
// then the leader and the others must hear each other again: otherwise there would be a silence for which a leader is deposed rightly.
func TestResetsDeposeNobody(t *testing.T) {
	var breakables []*breakable
	var listeners []net.Listener
	var addresses []string
	for range 3 {
		b := &breakable{Listener: listen(t)}
		breakables, listeners, addresses = append(breakables, b), append(listeners, b), append(addresses, b.Addr().String())
	}
	c := newCalmCluster(t, listeners, addresses)
	before := c.leader.Leadership()
	for resets := 0; resets < 1000; {
		for range 4 { // two lanes of two others
			for _, b := range breakables {
				if b.reset() {
					resets++
				}
			}
		}
		c.requireCalm(before, fmt.Sprint("after resets: ", resets))
	}
}

// gate is a proxy before one server that can be shut, as when it is restarted: its connections are reset, and new ones refused. Or it is
// shut for one dialler only, as if that one's own proxy were restarted.
type gate struct {
	t        *testing.T
	address  string
	target   string
	running  sync.WaitGroup
	mu       sync.Mutex
	listener net.Listener
	barred   string
	conns    map[*net.TCPConn]string // who has dialled
}

func (g *gate) open() {
	require.Eventually(g.t, func() bool { // somebody's connection may have the port at this moment
		l, err := net.Listen("tcp", g.address)
		if err != nil {
			return false
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		g.listener, g.address, g.barred = l, l.Addr().String(), ""
		g.running.Go(func() { g.accept(l) })
		return true
	}, patience, time.Millisecond)
}

func (g *gate) accept(l net.Listener) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		g.running.Go(func() {
			defer in.Close()
			g.carry(in.(*net.TCPConn))
		})
	}
}

// carry passes on what comes, if its dialler, which says its name first, is not barred.
func (g *gate) carry(in *net.TCPConn) {
	g.note(in, "?")
	defer g.forget(in)
	hello := make([]byte, 4<<10)
	n, err := in.Read(hello)
	if err != nil {
		return
	}
	_, name, _ := bytes.Cut(hello[:n], []byte("\xa4node\xa2")) // a key of four letters, a name of two
	if len(name) < 2 || !g.note(in, string(name[:2])) {
		return
	}
	out, err := net.Dial("tcp", g.target)
	if err != nil {
		return
	}
	defer out.Close()
	if _, err := out.Write(hello[:n]); err != nil {
		return
	}
	g.running.Go(func() {
		_, _ = io.Copy(in, out)
		_ = in.Close()
	})
	_, _ = io.Copy(out, in)
}

// note remembers who has dialled. It reports false if that one is barred.
func (g *gate) note(c *net.TCPConn, from string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.conns[c] = from
	return from != g.barred
}

func (g *gate) forget(c *net.TCPConn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.conns, c)
}

func (g *gate) shut() {
	_ = g.listener.Close()
	g.reset(func(string) bool { return true })
}

func (g *gate) bar(id raft.NodeID) {
	g.mu.Lock()
	g.barred = string(id)
	g.mu.Unlock()
	g.reset(func(from string) bool { return from == string(id) })
}

func (g *gate) unbar() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.barred = ""
}

func (g *gate) reset(which func(from string) bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c, from := range g.conns {
		if which(from) {
			_ = c.SetLinger(0) // it may be closed
			_ = c.Close()
		}
	}
}

// gatedCluster is a cluster with a gate before every server.
func gatedCluster(t *testing.T) (*calmCluster, []*gate) {
	var gates []*gate
	var listeners []net.Listener
	var addresses []string
	for range 3 {
		l := listen(t)
		g := &gate{t: t, address: "127.0.0.1:0", target: l.Addr().String(), conns: map[*net.TCPConn]string{}}
		g.open()
		gates, listeners, addresses = append(gates, g), append(listeners, l), append(addresses, g.address)
	}
	t.Cleanup(func() { // after the nodes have stopped
		for _, g := range gates {
			g.shut()
			g.running.Wait()
		}
	})
	return newCalmCluster(t, listeners, addresses), gates
}

const outage = 300 * time.Millisecond

// The proxy through which the leader talks, in both directions, is restarted: its connections to and from everybody break, and for a moment
// everybody who dials it is refused. That is what it looks like when its process dies. But the others know that it was not at the
// address that refuses, so nobody suspects it, and it is back before an election timeout is over.
func TestRestartOfTheLeadersProxyDeposesNobody(t *testing.T) {
	c, gates := gatedCluster(t)
	before := c.leader.Leadership()
	for restart := range 3 {
		for i, g := range gates {
			if c.nodes[i] == c.leader {
				g.shut()
			} else {
				g.bar(before.Leader)
			}
		}
		time.Sleep(outage)
		for i, g := range gates {
			if c.nodes[i] == c.leader {
				g.open()
			} else {
				g.unbar()
			}
		}
		c.requireCalm(before, fmt.Sprint("after restart ", restart+1))
	}
}

// The same with the proxy through which all servers talk.
func TestRestartOfASharedProxyDeposesNobody(t *testing.T) {
	c, gates := gatedCluster(t)
	before := c.leader.Leadership()
	for restart := range 3 {
		for _, g := range gates {
			g.shut()
		}
		time.Sleep(outage)
		for _, g := range gates {
			g.open()
		}
		c.requireCalm(before, fmt.Sprint("after restart ", restart+1))
	}
}
