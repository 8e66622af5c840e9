package memory

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/steadyraft/raft"
)

// direction is one way from one server to another.
type direction struct{ from, to raft.NodeID }

// Network connects the transports that it makes. Its methods may be called at any time by any goroutine.
type Network struct {
	mu        sync.Mutex
	running   map[raft.NodeID]*Transport // started and not closed
	cut       map[direction]bool
	isolated  map[raft.NodeID]bool
	transfers map[*transfer]bool // snapshots under way

	loss               float64
	random             *rand.Rand
	minDelay, maxDelay time.Duration
}

// NewNetwork makes a network without faults.
func NewNetwork() *Network {
	return &Network{
		running:   make(map[raft.NodeID]*Transport),
		cut:       make(map[direction]bool),
		isolated:  make(map[raft.NodeID]bool),
		transfers: make(map[*transfer]bool),
		random:    rand.New(rand.NewPCG(1, 1)),
	}
}

// Transport makes a transport for the server id. It takes part from its Start on. A server that restarts gets a new one; the old
// one must be closed or crashed before that.
func (n *Network) Transport(id raft.NodeID) *Transport {
	return &Transport{network: n, id: id, stop: make(chan struct{}), links: make(map[lane]*link), met: make(map[raft.NodeID]uint64)}
}

// Cut makes everything vanish that from sends to to; the other direction goes on. Snapshots between the two break, whichever way
// they go. Nobody is told.
func (n *Network) Cut(from, to raft.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[direction{from, to}] = true
	n.breakTransfers()
}

// Disconnect cuts both directions between a and b.
func (n *Network) Disconnect(a, b raft.NodeID) {
	n.Cut(a, b)
	n.Cut(b, a)
}

// Connect undoes Cut and Disconnect between a and b.
func (n *Network) Connect(a, b raft.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cut, direction{a, b})
	delete(n.cut, direction{b, a})
}

// Isolate cuts a server off from all others, those to come included.
func (n *Network) Isolate(id raft.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.isolated[id] = true
	n.breakTransfers()
}

// Rejoin undoes Isolate.
func (n *Network) Rejoin(id raft.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.isolated, id)
}

// Heal undoes every Cut, Disconnect and Isolate. Loss and delay stay as they are.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	clear(n.isolated)
}

// SetLoss makes every message vanish with probability p, drawn from a generator with that seed. Snapshots are not affected.
func (n *Network) SetLoss(p float64, seed uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss, n.random = p, rand.New(rand.NewPCG(seed, seed))
}

// SetDelay makes every message take a time between shortest and longest. Within a lane the order is kept.
func (n *Network) SetDelay(shortest, longest time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.minDelay, n.maxDelay = shortest, max(shortest, longest)
}

// Crash ends a server's transport as if its process had been killed: what it has queued is lost, nothing reaches it any more, and
// every server that can reach its machine sees the connection refused and reports raft.Handler.PeerLost. The node above does not
// notice; stop it too.
func (n *Network) Crash(id raft.NodeID) {
	n.mu.Lock()
	t := n.running[id]
	n.mu.Unlock()
	if t != nil {
		t.leave()
	}
}

// join makes a started transport reachable.
func (n *Network) join(t *Transport) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.running[t.id] != nil {
		return fmt.Errorf("start memory transport: a server %q is running on this network already; close its transport first", t.id)
	}
	n.running[t.id] = t
	return nil
}

// leave makes a transport unreachable and returns those whose connection to it is refused from now on.
func (n *Network) leave(t *Transport) []*Transport {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.running[t.id] != t {
		return nil
	}
	delete(n.running, t.id)
	n.breakTransfers()
	var witnesses []*Transport
	for _, other := range n.running {
		// A refusal is an answer: it needs both directions.
		if n.open(other.id, t.id) && n.open(t.id, other.id) {
			witnesses = append(witnesses, other)
		}
	}
	return witnesses
}

// breakTransfers ends the snapshots whose way is no longer open.
func (n *Network) breakTransfers() {
	for t := range n.transfers {
		if !n.open(t.from.id, t.to.id) || !n.open(t.to.id, t.from.id) || n.running[t.from.id] != t.from || n.running[t.to.id] != t.to {
			t.cancel(errBroken)
		}
	}
}

// open reports whether the way is free. The caller holds n.mu.
func (n *Network) open(from, to raft.NodeID) bool {
	return !n.isolated[from] && !n.isolated[to] && !n.cut[direction{from, to}]
}

// reach returns the running server to, if the way from from is free, and whether the way back is.
func (n *Network) reach(from, to raft.NodeID) (t *Transport, answers bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.open(from, to) {
		return nil, false
	}
	return n.running[to], n.open(to, from)
}

// fate decides what happens to a message that is sent now.
func (n *Network) fate(from, to raft.NodeID) (arrives bool, delay time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.running[to] == nil || !n.open(from, to) || n.loss > 0 && n.random.Float64() < n.loss {
		return false, 0
	}
	delay = n.minDelay
	if spread := n.maxDelay - n.minDelay; spread > 0 {
		delay += time.Duration(n.random.Int64N(int64(spread)))
	}
	return true, delay
}
