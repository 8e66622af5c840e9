// Package rpc runs Raft behind any RPC framework: net/rpc, gRPC, HTTP.
//
// The embedder implements [Client], which carries one request to another server and returns the reply. On the other side the
// framework's handler calls raft.Node.Handle (for a snapshot raft.Node.InstallSnapshot) with what arrived, and returns what it
// returns. [Encode] and [Decode] turn messages into bytes for any codec.
//
//	type client struct{ ... }
//	func (c *client) Call(ctx context.Context, to raft.Server, m raft.Message) (raft.Message, error) {
//		request, err := rpc.Encode(m)
//		... // carry it to to.Address, where node.Handle answers
//		return rpc.Decode(reply)
//	}
//
// To each peer there is at most one call at a time for each lane, which keeps the order that raft.Transport promises; on the log
// lane that means one batch per round trip, so transport/tcp is faster where round trips are long. ForwardRead alone is called
// beside the others, up to a bound, because its reply waits for other messages.
//
// Whom to believe is the framework's affair: it must authenticate both sides, as with every other call. Only the reply's names are
// checked here. raft.Handler.PeerLost is never reported, since a call that did not succeed does not say why; a leader that crashed
// is replaced after the election timeout.
package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/transport/internal/wire"
)

// Client carries requests. Its methods are called by several goroutines at the same time. They return soon after ctx has ended; an
// error means that the request may or may not have arrived.
type Client interface {
	// Call carries one request and returns the reply. A zero reply without an error means that there is none.
	Call(ctx context.Context, to raft.Server, m raft.Message) (raft.Message, error)
	// CallSnapshot carries an InstallSnapshot request with the content r, which it reads to its end and not after it has returned.
	// It returns an error unless the receiver has accepted the whole content. An error of r must reach the receiver as an error.
	CallSnapshot(ctx context.Context, to raft.Server, m raft.Message, r io.Reader) (raft.Message, error)
}

// Encode turns a message into bytes, checksums included.
func Encode(m raft.Message) ([]byte, error) { return wire.Marshal(m) }

// Decode reads what Encode wrote, and nothing else, and validates the message. It takes over b: the message shares its bytes. Input
// of any kind returns a message or an error, and allocates little more than its own length.
func Decode(b []byte) (raft.Message, error) {
	m, err := wire.Unmarshal(b)
	if err == nil {
		err = m.Validate()
	}
	if err != nil {
		return raft.Message{}, fmt.Errorf("decode message: %w", err)
	}
	return m, nil
}

// Config configures a [Transport]. The zero value of an optional field means the default that its comment begins with.
type Config struct {
	Client         Client        // required
	QueueBytes     int           // 64 MiB; messages waiting for one lane of one peer. At least one message always fits.
	ControlTimeout time.Duration // 1 s; for a call on the control lane
	LogTimeout     time.Duration // 10 s; for a call on the log lane
	MaxReads       int           // 64; ForwardRead calls to one peer at the same time
	Logger         *slog.Logger  // default: discard
}

// Transport turns messages into calls, and the replies into messages. It implements [raft.Transport].
type Transport struct {
	config Config
	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	running sync.WaitGroup // Add only while !closed, under mu

	mu       sync.Mutex
	identity raft.Identity
	handler  raft.Handler // nil before Start
	closed   bool
	peers    map[raft.NodeID]*peer
}

var _ raft.Transport = (*Transport)(nil)

// New makes a transport. It reports everything that is wrong with the configuration.
func New(c Config) (*Transport, error) {
	var problems []error
	if c.Client == nil {
		problems = append(problems, errors.New("the Client is missing"))
	}
	if c.QueueBytes < 0 || c.ControlTimeout < 0 || c.LogTimeout < 0 || c.MaxReads < 0 {
		problems = append(problems, errors.New("limits and time-outs cannot be negative"))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, fmt.Errorf("rpc transport: %w", err)
	}
	if c.QueueBytes == 0 {
		c.QueueBytes = 64 << 20
	}
	if c.ControlTimeout == 0 {
		c.ControlTimeout = time.Second
	}
	if c.LogTimeout == 0 {
		c.LogTimeout = 10 * time.Second
	}
	if c.MaxReads == 0 {
		c.MaxReads = 64
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	t := &Transport{config: c, peers: make(map[raft.NodeID]*peer)}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t, nil
}

// Start implements [raft.Transport].
func (t *Transport) Start(id raft.Identity, h raft.Handler) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return errors.New("start rpc transport: it is closed; make a new one")
	case t.handler != nil:
		return errors.New("start rpc transport: it is running already")
	}
	t.identity, t.handler = id, h
	return nil
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
		listed[s.ID] = true
		if p := t.peers[s.ID]; p != nil {
			p.setServer(s)
			continue
		}
		t.peers[s.ID] = t.newPeer(s)
	}
	for id, p := range t.peers {
		if !listed[id] {
			delete(t.peers, id)
			p.cancel()
		}
	}
}

// Send implements [raft.Transport]. Replies are dropped: they return as results of calls, through raft.Node.Handle.
func (t *Transport) Send(to raft.NodeID, lane raft.Lane, ms []raft.Message) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[to]
	if p == nil || t.handler == nil || t.closed || lane > raft.LaneLog || to == t.identity.Node {
		return
	}
	for _, m := range ms {
		switch m.Body.(type) {
		case raft.ForwardRead:
			select {
			case p.reads <- struct{}{}:
				t.spawn(func() {
					defer func() { <-p.reads }()
					t.call(p, raft.LaneControl, m)
				})
			default: // too many are waiting already
			}
		case raft.AppendEntries, raft.PreVote, raft.RequestVote, raft.TimeoutNow, raft.FetchEntries, raft.ForwardPropose:
			l := p.lanes[lane]
			if l.enqueue(m, t.config.QueueBytes) && !l.started {
				l.started = true
				t.spawn(func() { t.carry(p, l) })
			}
		}
	}
}

// spawn runs f on a goroutine that Close waits for. The caller holds t.mu, and t is not closed.
func (t *Transport) spawn(f func()) {
	t.running.Add(1)
	go func() {
		defer t.running.Done()
		f()
	}()
}

// SendSnapshot implements [raft.Transport]. The whole content goes to the client; to leave out what the receiver has, see
// raft.ResumableContent, is the business of the RPC framework.
func (t *Transport) SendSnapshot(ctx context.Context, m raft.Message, r io.Reader) error {
	t.mu.Lock()
	p := t.peers[m.To]
	running := t.handler != nil && !t.closed
	if running {
		t.running.Add(1)
		defer t.running.Done()
	}
	t.mu.Unlock()
	if !running {
		return fmt.Errorf("send snapshot to %q: transport is not running", m.To)
	}
	if p == nil {
		return fmt.Errorf("send snapshot to %q: no address is known", m.To)
	}
	if _, ok := m.Body.(raft.InstallSnapshot); !ok {
		return fmt.Errorf("send snapshot to %q: a %T is no snapshot", m.To, m.Body)
	}
	if err := m.Validate(); err != nil {
		return fmt.Errorf("send snapshot to %q: %w", m.To, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(p.ctx, func() { cancel(errors.New("transport is closed, or the peer was removed")) })()
	reply, err := t.config.Client.CallSnapshot(ctx, p.getServer(), m, r)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("send snapshot to %q: %w", m.To, err)
	}
	t.deliver(p, m, reply)
	return nil
}

// Close implements [raft.Transport]. It waits for the calls under way, whose context has ended.
func (t *Transport) Close() error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.cancel()
	t.running.Wait()
	return nil
}

// carry makes the calls of one lane to one peer, one after the other.
func (t *Transport) carry(p *peer, l *lane) {
	for {
		m, ok := l.next()
		if !ok {
			select {
			case <-l.wake:
				continue
			case <-p.ctx.Done():
				return
			}
		}
		if p.ctx.Err() != nil {
			return
		}
		if !t.call(p, l.kind, m) {
			l.drop() // what waited behind a call that did not succeed is stale
		}
	}
}

// call makes one call, and delivers its reply.
func (t *Transport) call(p *peer, kind raft.Lane, m raft.Message) bool {
	timeout := t.config.ControlTimeout
	if kind == raft.LaneLog {
		timeout = t.config.LogTimeout
	}
	ctx, cancel := context.WithTimeout(p.ctx, timeout)
	defer cancel()
	reply, err := t.config.Client.Call(ctx, p.getServer(), m)
	if err != nil {
		if p.ctx.Err() == nil {
			t.config.Logger.Debug("call did not succeed", "peer", m.To, "request", fmt.Sprintf("%T", m.Body), "error", err)
		}
		return false
	}
	t.deliver(p, m, reply)
	return true
}

// deliver hands a reply to the handler, unless the transport was closed meanwhile.
func (t *Transport) deliver(p *peer, request, reply raft.Message) {
	if reply.Body == nil || p.ctx.Err() != nil {
		return
	}
	if err := reply.Validate(); err != nil || reply.From != request.To || reply.To != request.From {
		t.handler.Refused(request.To, "invalid reply")
		return
	}
	if p.met(reply.Replica, reply.Incarnation) {
		t.handler.PeerUp(reply.From, reply.Replica, reply.Incarnation)
	}
	t.handler.HandleMessages([]raft.Message{reply})
}
