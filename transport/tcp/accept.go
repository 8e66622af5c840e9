package tcp

import (
	"errors"
	"io"
	"net"
	"os"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/transport/internal/wire"
)

// What one call of HandleMessages brings at most, unless one message is larger.
const (
	maxDeliverMessages = 256
	maxDeliverBytes    = 1 << 20
)

// incoming is an accepted connection whose handshake is complete.
type incoming struct {
	conn   net.Conn
	frames *frameReader
	lane   raft.Lane
	peer   *peer
	id     raft.Identity
	done   chan struct{} // closed when nothing of it is delivered any more
}

// accept takes connections until the listener is closed.
func (t *Transport) accept() {
	failures := 0
	for {
		conn, err := t.listener.Accept()
		if t.ctx.Err() != nil {
			if err == nil {
				closeQuietly(conn)
			}
			return
		}
		if err != nil {
			// Out of file descriptors, most often: taking none for a moment helps.
			t.config.Logger.Warn("cannot accept connections", "address", t.advertise, "error", err)
			timer := time.NewTimer(min(t.config.MaxBackoff, firstBackoff<<min(failures, 10)))
			failures++
			select {
			case <-timer.C:
				continue
			case <-t.ctx.Done():
				timer.Stop()
				return
			}
		}
		failures = 0
		t.accepted.Add(1)
		t.mu.Lock()
		room, closed := len(t.incoming) < t.config.MaxConnections, t.closed
		if room && !closed {
			t.incoming[conn] = true
			t.spawn(func() { t.serve(conn) })
		}
		t.mu.Unlock()
		if closed || !room {
			closeQuietly(conn)
		}
		if !room {
			t.refused("", "too many connections")
		}
	}
}

// serve carries one accepted connection from its first byte to its last.
func (t *Transport) serve(raw net.Conn) {
	defer func() {
		closeQuietly(raw)
		t.mu.Lock()
		delete(t.incoming, raw)
		t.mu.Unlock()
	}()
	conn, frames, h, err := t.greet(raw)
	var c *incoming
	if err == nil {
		c, err = t.admit(conn, frames, h)
		var no *refusal
		if errors.As(err, &no) {
			err = errors.Join(no, t.sendRefusal(conn, no))
		}
	}
	if err != nil {
		t.turnedAway(raw, raft.NodeID(h.Node), err)
		return
	}
	defer t.depart(c)
	if err := t.sendWelcome(conn); err != nil {
		return
	}
	if err := raw.SetDeadline(time.Time{}); err != nil {
		return
	}
	t.meet(c.peer, c.id, t.trusts(raw), nil)
	if c.lane == laneSnapshot {
		err = t.receiveSnapshot(c)
	} else {
		err = t.receive(c)
	}
	t.lostConnection(c, err)
}

// turnedAway reports a handshake that did not come about.
func (t *Transport) turnedAway(raw net.Conn, from raft.NodeID, err error) {
	if t.ctx.Err() != nil {
		return
	}
	label := "handshake broke off"
	var no *refusal
	if errors.As(err, &no) {
		label = no.label
	} else if l := labelOf(err); l != "" {
		label = l
	} else if errors.Is(err, io.EOF) {
		return // somebody looked whether the port is open
	}
	t.config.Logger.Warn("connection refused", "from", raw.RemoteAddr().String(), "peer", from, "error", err)
	t.refused(from, label)
}

// labelOf names what is wrong with input, as a short constant; "" if the connection failed instead.
func labelOf(err error) string {
	var no *refusal
	var damage *raft.EntryDamage
	switch {
	case errors.As(err, &no):
		return no.label
	case errors.Is(err, wire.ErrHeaderChecksum), errors.Is(err, wire.ErrControlChecksum):
		return "bad checksum"
	case errors.As(err, &damage):
		return "damaged entry"
	case errors.Is(err, wire.ErrOversized):
		return "oversized frame"
	case errors.Is(err, wire.ErrMalformed):
		return "malformed frame"
	}
	return ""
}

// admit gives the connection its place, or returns a *refusal. At most one connection for each lane of a peer delivers: an
// earlier one has ended when admit returns, because a dialer that comes again has given it up.
func (t *Transport) admit(conn net.Conn, frames *frameReader, h hello) (*incoming, error) {
	c := &incoming{conn: conn, frames: frames, lane: raft.Lane(h.Lane), id: h.identity(), done: make(chan struct{})}
	old, err := t.register(c, h.Address)
	if err != nil {
		return nil, err
	}
	for _, o := range old {
		closeQuietly(o.conn)
	}
	for _, o := range old {
		if o.lane != laneSnapshot { // a snapshot has no order to keep, and storing it may take long
			<-o.done
		}
	}
	return c, nil
}

func (t *Transport) register(c *incoming, address string) (old []*incoming, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[c.id.Node]
	if t.closed {
		return nil, net.ErrClosed
	}
	if p == nil {
		if t.guests() >= t.config.MaxGuests && !t.evictGuest() {
			return nil, refuse("too many unlisted servers", "server %q is not listed here, and no room is left for unlisted ones", c.id.Node)
		}
		p = t.newPeer(c.id.Node)
	}
	if p.known && p.replica == c.id.Replica {
		if c.id.Incarnation < p.incarnation {
			return nil, refuse("dead incarnation", "server %q has been started %d times, this is start %d: stop the old process, or do not restore its data directory",
				c.id.Node, p.incarnation, c.id.Incarnation)
		}
		control := p.incoming[raft.LaneControl]
		if c.id.Incarnation == p.incarnation && control != nil && p.advertised != address {
			return nil, refuse("two servers with one data directory", "server %q at %q is a copy of the one at %q: stop one of the two and wipe its data directory",
				c.id.Node, address, p.advertised)
		}
	}
	p.advertised = address
	c.peer = p
	for lane, o := range p.incoming {
		if o != nil && (raft.Lane(lane) == c.lane || o.id != c.id) {
			old = append(old, o)
			p.incoming[lane] = nil
		}
	}
	p.incoming[c.lane] = c
	return old, nil
}

// depart gives up the connection's place.
func (t *Transport) depart(c *incoming) {
	t.mu.Lock()
	if c.peer.incoming[c.lane] == c {
		c.peer.incoming[c.lane] = nil
	}
	t.mu.Unlock()
	close(c.done)
}

// lostConnection draws the conclusions from the end of an incoming connection. Its place must be free by then, so that a refused
// redial is believed.
func (t *Transport) lostConnection(c *incoming, err error) {
	t.mu.Lock()
	current := c.peer.incoming[c.lane] == c
	if current {
		c.peer.incoming[c.lane] = nil
	}
	t.mu.Unlock()
	if t.ctx.Err() != nil {
		return
	}
	if label := labelOf(err); label != "" {
		t.config.Logger.Warn("connection ended because of what arrived", "peer", c.id.Node, "lane", c.lane, "error", err)
		t.refused(c.id.Node, label)
		return
	}
	if !current || c.lane == laneSnapshot {
		return
	}
	// Silence may mean that the link is dead in both directions, and ours has not noticed because nothing is unacknowledged long
	// enough: it is made anew. After a break the peer may be gone: it is dialled at once, if it is not connected.
	mode := keepConnection
	if errors.Is(err, os.ErrDeadlineExceeded) {
		mode = closeConnection
	}
	for _, o := range c.peer.lanes {
		o.redial(mode)
	}
}

// receive delivers what arrives on a lane until the connection ends.
func (t *Transport) receive(c *incoming) error {
	names := wire.Names{From: c.id.Node, To: t.identity.Node}
	n := &c.peer.counters
	var batch []raft.Message
	size := 0
	for {
		h, control, entries, err := c.frames.next(t.config.IdleTimeout, t.config.BodyTimeout)
		if err != nil {
			return err
		}
		switch h.Type {
		case wire.FrameKeepalive:
		case wire.FrameMessage:
			m, err := t.decode(c, control, entries, names)
			if err != nil {
				return err
			}
			batch = append(batch, m)
			size += h.Entries
		default:
			return refuse("unexpected frame", "frame type %d on lane %v", h.Type, c.lane)
		}
		if len(batch) > 0 && (len(batch) >= maxDeliverMessages || size >= maxDeliverBytes || !c.frames.more()) {
			n.receivedMessages.Add(uint64(len(batch)))
			n.receivedBytes.Add(c.frames.bytes)
			t.handler.HandleMessages(batch)
			clear(batch)
			batch, size, c.frames.bytes = batch[:0], 0, 0
		}
	}
}

// decode reads a message and checks that it may come over this connection.
func (t *Transport) decode(c *incoming, control, entries []byte, names wire.Names) (raft.Message, error) {
	m, err := wire.DecodeMessage(control, entries, names)
	if err != nil {
		return m, err
	}
	if m.From != c.id.Node || m.Replica != c.id.Replica || m.Incarnation != c.id.Incarnation {
		return m, refuse("sender is not the one connected", "message of %q on the connection of %q", m.From, c.id.Node)
	}
	if m.To != t.identity.Node {
		return m, refuse("meant for another server", "message for %q", m.To)
	}
	if _, snapshot := m.Body.(raft.InstallSnapshot); snapshot != (c.lane == laneSnapshot) {
		return m, refuse("message on the wrong lane", "%T on lane %d", m.Body, c.lane)
	}
	if err := m.Validate(); err != nil {
		return m, refuse("invalid message", "%v", err)
	}
	return m, nil
}
