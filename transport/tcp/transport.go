package tcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/steadyraft/raft"
)

// Transport is one server's end of a TCP network. It implements [raft.Transport].
type Transport struct {
	config    Config
	listener  net.Listener
	advertise string
	ctx       context.Context // ends with Close
	cancel    context.CancelFunc

	running  sync.WaitGroup // goroutines, and calls of SendSnapshot; Add only while !closed, under mu
	accepted atomic.Uint64
	refusals atomic.Uint64

	mu       sync.RWMutex
	identity raft.Identity // set once by Start, before anything that reads it runs
	handler  raft.Handler  // nil before Start
	closed   bool
	peers    map[raft.NodeID]*peer
	incoming map[net.Conn]bool // accepted connections, before and after the handshake
}

var _ raft.Transport = (*Transport)(nil)

// New opens the listener, so that a wrong address is noticed early. Connections are accepted from Start on.
func New(c Config) (*Transport, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	l, advertise, err := c.listen()
	if err != nil {
		return nil, err
	}
	t := &Transport{
		config: c, listener: l, advertise: advertise,
		peers: make(map[raft.NodeID]*peer), incoming: make(map[net.Conn]bool),
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t, nil
}

// Address is where others can reach this server: what belongs into raft.Server.Address.
func (t *Transport) Address() string { return t.advertise }

// Start implements [raft.Transport].
func (t *Transport) Start(id raft.Identity, h raft.Handler) error {
	if id.Node == "" || len(id.Node) > maxName || id.Cluster == "" || len(id.Cluster) > maxName {
		return fmt.Errorf("start tcp transport: node %q and cluster %q need names of 1 to %d bytes", id.Node, id.Cluster, maxName)
	}
	if t.config.TLS != nil {
		if err := t.config.TLS.check(id); err != nil {
			return fmt.Errorf("start tcp transport: %w", err)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return errors.New("start tcp transport: it is closed; make a new one")
	case t.handler != nil:
		return errors.New("start tcp transport: it is running already")
	}
	t.identity, t.handler = id, h
	delete(t.peers, id.Node)
	for _, p := range t.peers {
		t.connect(p)
	}
	t.spawn(t.accept)
	return nil
}

// spawn runs f on a goroutine that Close waits for. The caller holds t.mu, and t is not closed.
func (t *Transport) spawn(f func()) {
	t.running.Add(1)
	go func() {
		defer t.running.Done()
		f()
	}()
}

// Send implements [raft.Transport].
func (t *Transport) Send(to raft.NodeID, lane raft.Lane, ms []raft.Message) {
	if lane >= laneSnapshot || len(ms) == 0 {
		return
	}
	t.mu.RLock()
	p := t.peers[to]
	running := t.handler != nil && !t.closed
	t.mu.RUnlock()
	if p == nil || !running {
		return
	}
	o := p.lanes[lane]
	if o.enqueue(ms) {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.run(o)
	}
}

// SetPeers implements [raft.Transport].
func (t *Transport) SetPeers(servers []raft.Server) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	listed := make(map[raft.NodeID]bool, len(servers))
	for _, s := range servers {
		if s.ID == t.identity.Node {
			continue
		}
		listed[s.ID] = true
		p := t.peers[s.ID]
		if p == nil {
			p = t.newPeer(s.ID)
		}
		before := p.address()
		p.listed, p.listedAddress = true, s.Address
		if p.address() != before {
			for _, o := range p.lanes {
				o.redial(closeConnection)
			}
		}
		if t.handler != nil {
			t.connect(p)
		}
	}
	for id, p := range t.peers {
		if p.listed && !listed[id] {
			p.listed = false
			if !p.known || t.guests() > t.config.MaxGuests {
				t.forget(p)
			}
		}
	}
}

// guests counts the servers that are not listed. The caller holds t.mu.
func (t *Transport) guests() int {
	n := 0
	for _, p := range t.peers {
		if !p.listed {
			n++
		}
	}
	return n
}

// forget drops a peer and its connections. The caller holds t.mu.
func (t *Transport) forget(p *peer) {
	delete(t.peers, p.id)
	p.cancel()
	for _, c := range p.incoming {
		if c != nil {
			closeQuietly(c.conn)
		}
	}
}

// refused counts and reports input that was turned away.
func (t *Transport) refused(peer raft.NodeID, label string) {
	t.refusals.Add(1)
	t.handler.Refused(peer, label)
}

// Close implements [raft.Transport].
func (t *Transport) Close() error {
	t.mu.Lock()
	first := !t.closed
	t.closed = true
	open := make([]net.Conn, 0, len(t.incoming))
	for c := range t.incoming {
		open = append(open, c)
	}
	t.mu.Unlock()

	var err error
	if first {
		t.cancel()
		if err = t.listener.Close(); errors.Is(err, net.ErrClosed) {
			err = nil
		}
		for _, c := range open {
			closeQuietly(c)
		}
	}
	t.running.Wait()
	return err
}

// evictGuest makes room for one more server that is not listed. It reports false if all of them are connected.
// The caller holds t.mu.
func (t *Transport) evictGuest() bool {
	for _, p := range t.peers {
		if !p.listed && !slices.ContainsFunc(p.incoming[:], func(c *incoming) bool { return c != nil }) {
			t.forget(p)
			return true
		}
	}
	return false
}
