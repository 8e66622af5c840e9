package rpc

import (
	"context"
	"sync"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/transport/internal/wire"
)

const messageOverhead = 128 // bytes that a message is counted for, besides its entries

// peer is a listed server.
type peer struct {
	ctx    context.Context // ends when the peer is removed, or the transport closed
	cancel context.CancelFunc
	lanes  [2]*lane
	reads  chan struct{} // holds a token for each ForwardRead under way

	mu          sync.Mutex
	server      raft.Server
	known       bool // a reply has told replica and incarnation
	replica     raft.ReplicaID
	incarnation uint64
}

func (t *Transport) newPeer(s raft.Server) *peer {
	p := &peer{server: s, reads: make(chan struct{}, t.config.MaxReads)}
	p.ctx, p.cancel = context.WithCancel(t.ctx)
	for i := range p.lanes {
		p.lanes[i] = &lane{kind: raft.Lane(i), wake: make(chan struct{}, 1)}
	}
	return p
}

func (p *peer) setServer(s raft.Server) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.server = s
}

func (p *peer) getServer() raft.Server {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.server
}

// met remembers which process answered, and reports whether it is another one than before.
func (p *peer) met(replica raft.ReplicaID, incarnation uint64) (isNew bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	isNew = !p.known || p.replica != replica || p.incarnation != incarnation
	p.known, p.replica, p.incarnation = true, replica, incarnation
	return isNew
}

// lane is a queue of requests to one peer.
type lane struct {
	kind    raft.Lane
	wake    chan struct{} // capacity 1
	started bool          // guarded by Transport.mu

	mu    sync.Mutex
	queue []raft.Message
	bytes int
}

// enqueue reports whether there was room.
func (l *lane) enqueue(m raft.Message, limit int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	size := messageOverhead + wire.EntriesSize(m)
	if len(l.queue) > 0 && l.bytes+size > limit {
		return false
	}
	l.queue = append(l.queue, m)
	l.bytes += size
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return true
}

func (l *lane) next() (raft.Message, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		return raft.Message{}, false
	}
	m := l.queue[0]
	l.queue[0] = raft.Message{} // its entries must not live as long as the array
	l.queue = l.queue[1:]
	l.bytes -= messageOverhead + wire.EntriesSize(m)
	return m, true
}

func (l *lane) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue, l.bytes = nil, 0
}
