package tcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/transport/internal/wire"
)

const (
	maxFlush        = 1 << 20 // written under one deadline, unless one message is larger
	messageOverhead = 128     // bytes that a message is counted for, besides its entries
	firstBackoff    = 25 * time.Millisecond
)

// peer is another server: one that SetPeers listed, or a guest that reached us.
type peer struct {
	id       raft.NodeID
	ctx      context.Context // ends when the peer is forgotten
	cancel   context.CancelFunc
	counters counters
	lanes    [2]*outbound

	// reporting keeps what the handler is told about this peer in order. It is locked before Transport.mu.
	reporting sync.Mutex

	// Guarded by Transport.mu.
	listed        bool
	listedAddress string
	advertised    string         // by the peer itself, when it reached us
	known         bool           // a handshake has told replica and incarnation
	replica       raft.ReplicaID // of the newest handshake
	incarnation   uint64         // of the newest handshake
	up            bool           // reported by PeerUp and not yet by PeerLost
	reachedAt     string         // where we have dialled this incarnation, and nothing else; "": nowhere
	trusted       bool           // whether that connection can be believed
	incoming      [laneSnapshot + 1]*incoming
}

// newPeer adds a peer. The caller holds t.mu.
func (t *Transport) newPeer(id raft.NodeID) *peer {
	p := &peer{id: id}
	p.ctx, p.cancel = context.WithCancel(t.ctx)
	for lane := range p.lanes {
		p.lanes[lane] = &outbound{t: t, peer: p, lane: raft.Lane(lane), wake: make(chan struct{}, 1), again: make(chan struct{}, 1)}
	}
	t.peers[id] = p
	return p
}

// address is where the peer is dialled. The caller holds Transport.mu.
func (p *peer) address() string {
	if p.listed && p.listedAddress != "" {
		return p.listedAddress
	}
	return p.advertised
}

// connect dials a listed peer without waiting for something to send: elections wait for nobody. The caller holds t.mu.
func (t *Transport) connect(p *peer) {
	if p.listed {
		t.run(p.lanes[raft.LaneControl])
	}
}

// run starts the goroutine of an outgoing lane, once. The caller holds t.mu.
func (t *Transport) run(o *outbound) {
	if !t.closed && o.peer.ctx.Err() == nil && !o.started {
		o.started = true
		t.spawn(o.run)
	}
}

// meet reports what a handshake has told about a peer: the process that is there now and, if it is a later incarnation of the
// same data directory, that the one before is gone. by is the connection over which we reached it, nil if it reached us.
func (t *Transport) meet(p *peer, id raft.Identity, trusted bool, by *outgoing) {
	p.reporting.Lock()
	defer p.reporting.Unlock()
	t.mu.Lock()
	if p.known && p.replica == id.Replica && id.Incarnation < p.incarnation {
		t.mu.Unlock()
		return // the handshake of a process that has been replaced since
	}
	before, same := p.incarnation, p.known && p.replica == id.Replica && p.incarnation == id.Incarnation
	lost := p.up && trusted && p.replica == id.Replica && id.Incarnation > p.incarnation
	if !same {
		p.reachedAt, p.trusted = "", false
	}
	if by != nil && by.direct {
		p.reachedAt, p.trusted = by.address, trusted
	}
	p.known, p.up, p.replica, p.incarnation = true, true, id.Replica, id.Incarnation
	t.mu.Unlock()

	if lost {
		t.handler.PeerLost(p.id, before)
	}
	t.handler.PeerUp(p.id, id.Replica, id.Incarnation)
	if !same {
		for _, o := range p.lanes {
			o.leaveOld(id)
		}
	}
	if by == nil {
		// It is there: what was tried in vain while it was not need not wait for the rest of its back-off.
		for _, o := range p.lanes {
			o.redial(keepConnection)
		}
	}
}

// notListening draws the conclusion from a refused connection: the process that had been reached at this address is gone, unless
// one of its own connections to us is alive. If those break later, the peer is dialled again and this is asked again.
func (t *Transport) notListening(p *peer, address string) {
	p.reporting.Lock()
	defer p.reporting.Unlock()
	t.mu.Lock()
	alive := p.incoming[raft.LaneControl] != nil || p.incoming[raft.LaneLog] != nil
	lost, incarnation := p.up && p.trusted && p.reachedAt == address && !alive, p.incarnation
	if lost {
		p.up = false
	}
	t.mu.Unlock()
	if lost {
		t.handler.PeerLost(p.id, incarnation)
	}
}

// outbound is one lane to one peer: a queue, and the connection that empties it.
type outbound struct {
	t     *Transport
	peer  *peer
	lane  raft.Lane
	wake  chan struct{} // capacity 1: there is something to send
	again chan struct{} // capacity 1: dial without waiting

	started bool // guarded by Transport.mu

	mu        sync.Mutex
	launched  bool // run has begun
	queue     []raft.Message
	spare     []raft.Message // an empty slice to reuse as queue
	bytes     int
	conn      *outgoing // nil while there is none
	lastError string
}

// enqueue reports true if the lane's goroutine must be started.
func (o *outbound) enqueue(ms []raft.Message) (start bool) {
	o.mu.Lock()
	for _, m := range ms {
		size := messageOverhead + wire.EntriesSize(m)
		if len(o.queue) > 0 && o.bytes+size > o.t.config.QueueBytes {
			o.peer.counters.dropped.Add(1)
			continue
		}
		o.queue = append(o.queue, m)
		o.bytes += size
	}
	start = !o.launched
	o.mu.Unlock()
	signal(o.wake)
	return start
}

// take returns the next messages to write, up to maxFlush bytes or one message, in a slice that goes back by recycle.
func (o *outbound) take() []raft.Message {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.queue) == 0 {
		return nil
	}
	if o.bytes <= maxFlush {
		ms := o.queue
		o.queue, o.spare, o.bytes = o.spare[:0], nil, 0
		return ms
	}
	n, size := 0, 0
	for n < len(o.queue) {
		s := messageOverhead + wire.EntriesSize(o.queue[n])
		if n > 0 && size+s > maxFlush {
			break
		}
		n, size = n+1, size+s
	}
	ms := append([]raft.Message(nil), o.queue[:n]...)
	rest := copy(o.queue, o.queue[n:])
	clear(o.queue[rest:])
	o.queue = o.queue[:rest]
	o.bytes -= size
	return ms
}

// recycle takes back a slice from take.
func (o *outbound) recycle(ms []raft.Message) {
	clear(ms)
	o.mu.Lock()
	defer o.mu.Unlock()
	if cap(o.spare) < cap(ms) && cap(ms) <= 1024 {
		o.spare = ms[:0]
	}
}

// drop empties the queue of a peer that cannot be reached: what is in it would be stale when it can.
func (o *outbound) drop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.peer.counters.dropped.Add(uint64(len(o.queue)))
	o.queue, o.bytes = nil, 0
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

type redialMode bool

const (
	keepConnection  redialMode = false
	closeConnection redialMode = true
)

// redial makes the lane dial without waiting for its back-off, and gives up the present connection if asked to.
func (o *outbound) redial(mode redialMode) {
	o.mu.Lock()
	c := o.conn
	o.mu.Unlock()
	if c != nil && mode == closeConnection {
		closeQuietly(c)
	}
	signal(o.again)
}

// leaveOld gives up a connection to another process than the one that is known to run now.
func (o *outbound) leaveOld(now raft.Identity) {
	o.mu.Lock()
	c := o.conn
	o.mu.Unlock()
	if c != nil && c.peer != now {
		closeQuietly(c)
	}
}

func (o *outbound) state() (lastError string, connected bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.lastError, o.conn != nil
}

// run keeps the lane connected: the control lane of a listed peer always, any other while there is something to send.
func (o *outbound) run() {
	o.mu.Lock()
	o.launched = true
	o.mu.Unlock()
	defer o.drop()
	failures := 0
	for o.waitForUse() {
		began := time.Now()
		err := o.carry()
		if o.peer.ctx.Err() != nil {
			return
		}
		o.note(err)
		broke := errors.Is(err, errBroke)
		switch {
		case broke && time.Since(began) > o.t.config.MaxBackoff:
			failures = 0 // it has worked for a while, so the first redial follows at once
		case broke:
			// The peer is there. Only what is tried in vain is tried less and less often: if resets did that too, a storm of them would
			// silence a leader for an election timeout.
			failures = min(failures, 1)
		}
		if !broke || failures > 0 {
			o.pause(failures)
		}
		failures++
	}
}

// errBroke marks the end of a connection that had been made.
var errBroke = errors.New("connection broke")

// waitForUse waits until the lane needs a connection. It reports false when the peer is forgotten.
func (o *outbound) waitForUse() bool {
	for {
		o.mu.Lock()
		waiting := len(o.queue) > 0
		o.mu.Unlock()
		o.t.mu.RLock()
		eager := o.peer.listed && o.lane == raft.LaneControl
		o.t.mu.RUnlock()
		if waiting || eager {
			return o.peer.ctx.Err() == nil
		}
		select {
		case <-o.wake:
		case <-o.again:
		case <-o.peer.ctx.Done():
			return false
		}
	}
}

// pause waits before the next attempt: longer after every failure, and not the same time on all servers.
func (o *outbound) pause(failures int) {
	limit := min(o.t.config.MaxBackoff, firstBackoff<<min(failures, 10))
	timer := time.NewTimer(limit/2 + rand.N(limit/2+1))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-o.again:
	case <-o.peer.ctx.Done():
	}
}

// note remembers why a connection ended or was not made, and logs it when it is news.
func (o *outbound) note(err error) {
	o.mu.Lock()
	news := o.lastError != err.Error()
	o.lastError = err.Error()
	o.mu.Unlock()
	if news {
		o.t.config.Logger.Info("peer is not connected", "peer", o.peer.id, "lane", o.lane.String(), "error", err)
	}
}

var errNoAddress = errors.New("no address is known")

// carry makes one connection and sends messages over it until it breaks.
func (o *outbound) carry() error {
	o.t.mu.RLock()
	address := o.peer.address()
	o.t.mu.RUnlock()
	if address == "" {
		o.drop()
		return errNoAddress
	}
	c, err := o.t.dial(o.peer.ctx, o.peer.id, address, o.lane)
	if err != nil {
		o.drop()
		if errors.Is(err, syscall.ECONNREFUSED) {
			o.t.notListening(o.peer, address)
		}
		return err
	}
	defer closeQuietly(c)
	stop := context.AfterFunc(o.peer.ctx, func() { closeQuietly(c) })
	defer stop()
	o.t.meet(o.peer, c.peer, c.trusted, c)

	o.mu.Lock()
	o.conn, o.lastError = c, ""
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		o.conn = nil
		o.mu.Unlock()
	}()
	// SetPeers may have changed the address while the old one was being dialled.
	o.t.mu.RLock()
	moved := o.peer.address() != address
	o.t.mu.RUnlock()
	if moved {
		return fmt.Errorf("%w: its address changed", errBroke)
	}
	o.t.config.Logger.Debug("peer is connected", "peer", o.peer.id, "lane", o.lane.String(), "address", address)
	return fmt.Errorf("%w: %w", errBroke, o.pump(c))
}

// pump sends messages, and keep-alives when there are none, until the connection breaks.
func (o *outbound) pump(c *outgoing) error {
	broke := make(chan error, 1)
	go func() {
		// The acceptor sends nothing, so whatever Read returns is the end. It returns soon after carry closes the connection.
		_, err := c.frames.buf.ReadByte()
		if err == nil {
			err = errors.New("the other side sent something unexpected")
		}
		broke <- err
	}()
	defer func() {
		closeQuietly(c)
		if broke != nil {
			<-broke
		}
	}()

	w := newBatchWriter(c.Conn)
	keepalive := wire.AppendFrame(nil, wire.FrameKeepalive, nil)
	ticker := time.NewTicker(o.t.config.KeepaliveInterval)
	defer ticker.Stop()
	quiet := false // nothing was sent since the last tick
	for {
		if ms := o.take(); len(ms) > 0 {
			quiet = false
			err := o.write(w, ms)
			o.recycle(ms)
			if err != nil {
				return err
			}
			continue
		}
		select {
		case <-o.wake:
		case <-ticker.C:
			if quiet {
				if err := c.SetWriteDeadline(time.Now().Add(o.t.config.WriteTimeout)); err != nil {
					return err
				}
				if _, err := c.Write(keepalive); err != nil {
					return err
				}
			}
			quiet = true
		case err := <-broke:
			broke = nil
			if err == io.EOF {
				err = errors.New("closed by the other side")
			}
			return err
		}
	}
}

// write sends messages as one batch. What was not sent completely counts as dropped.
func (o *outbound) write(w *batchWriter, ms []raft.Message) error {
	n := &o.peer.counters
	for _, m := range ms {
		if !o.ours(m) {
			n.dropped.Add(1)
			continue
		}
		if err := w.add(m); err != nil {
			n.dropped.Add(1)
			o.t.config.Logger.Error("message cannot be sent", "peer", o.peer.id, "error", err)
		}
	}
	messages, size := w.messages, w.size
	if messages == 0 {
		return nil
	}
	if err := w.flush(o.t.config.WriteTimeout); err != nil {
		n.dropped.Add(uint64(messages))
		return err
	}
	n.sentMessages.Add(uint64(messages))
	n.sentBytes.Add(uint64(size))
	return nil
}

// ours reports whether a message may travel on this lane. The receiver would refuse it and end the connection.
func (o *outbound) ours(m raft.Message) bool {
	id := &o.t.identity
	if m.From != id.Node || m.To != o.peer.id || m.Replica != id.Replica || m.Incarnation != id.Incarnation {
		o.t.config.Logger.Error("message does not bear this server's identity", "message", m.Header, "identity", *id)
		return false
	}
	if _, snapshot := m.Body.(raft.InstallSnapshot); snapshot {
		o.t.config.Logger.Error("a snapshot belongs into SendSnapshot", "peer", o.peer.id)
		return false
	}
	return true
}
