package memory

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/steadyraft/raft"
)

// Bounds of what waits to be delivered from one server to another on one lane. Beyond them messages are dropped.
const (
	maxQueuedBytes    = 64 << 20
	maxQueuedMessages = 8192
	messageOverhead   = 128 // bytes that a message without entries is counted for
)

// Transport is one server's end of a [Network]. It implements [raft.Transport].
type Transport struct {
	network *Network
	id      raft.NodeID
	stop    chan struct{} // closed when the transport has left the network

	mu       sync.Mutex
	identity raft.Identity
	handler  raft.Handler // nil before Start
	gone     bool         // left the network: closed or crashed
	links    map[lane]*link
	met      map[raft.NodeID]uint64 // incarnations reported by PeerUp and not yet by PeerLost
	calls    sync.WaitGroup         // goroutines of this transport, and calls to its handler; Add only while !gone
}

var _ raft.Transport = (*Transport)(nil)

type lane struct {
	to   raft.NodeID
	lane raft.Lane
}

// link is the queue of one lane to one peer, emptied by one goroutine.
type link struct {
	lane
	wake chan struct{} // capacity 1

	// Guarded by Transport.mu.
	queue []parcel
	bytes int
}

type parcel struct {
	m    raft.Message
	size int
	due  time.Time // zero: at once
}

// Start implements [raft.Transport].
func (t *Transport) Start(id raft.Identity, h raft.Handler) error {
	if id.Node != t.id {
		return fmt.Errorf("start memory transport of %q: the node's identity says %q", t.id, id.Node)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.gone:
		return errors.New("start memory transport: it is closed; make a new one")
	case t.handler != nil:
		return errors.New("start memory transport: it is running already")
	}
	t.identity = id // before anybody can see it
	if err := t.network.join(t); err != nil {
		return err
	}
	t.handler = h
	return nil
}

// Send implements [raft.Transport].
func (t *Transport) Send(to raft.NodeID, l raft.Lane, ms []raft.Message) {
	for _, m := range ms {
		arrives, delay := t.network.fate(t.id, to)
		if !arrives {
			continue
		}
		var due time.Time
		if delay > 0 {
			due = time.Now().Add(delay)
		}
		t.enqueue(lane{to, l}, parcel{m: own(m), size: messageOverhead + contentSize(m), due: due})
	}
}

func (t *Transport) enqueue(key lane, p parcel) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.handler == nil || t.gone || p.m.From != t.id || p.m.To != key.to {
		return
	}
	l := t.links[key]
	if l == nil {
		l = &link{lane: key, wake: make(chan struct{}, 1)}
		t.links[key] = l
		t.calls.Add(1)
		go t.deliverAll(l)
	}
	if len(l.queue) >= maxQueuedMessages || l.bytes+p.size > maxQueuedBytes {
		return
	}
	l.queue = append(l.queue, p)
	l.bytes += p.size
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// deliverAll carries one lane to one peer, in order.
func (t *Transport) deliverAll(l *link) {
	defer t.calls.Done()
	for {
		select {
		case <-l.wake:
		case <-t.stop:
			return
		}
		t.mu.Lock()
		parcels := l.queue
		l.queue, l.bytes = nil, 0
		t.mu.Unlock()

		for len(parcels) > 0 {
			if !t.waitUntil(parcels[0].due) {
				return
			}
			n, now := 1, time.Now()
			for n < len(parcels) && !parcels[n].due.After(now) {
				n++
			}
			ms := make([]raft.Message, n)
			for i := range ms {
				ms[i] = parcels[i].m
			}
			parcels = parcels[n:]
			t.deliver(l.to, ms)
		}
	}
}

// waitUntil reports false if the transport left the network first.
func (t *Transport) waitUntil(due time.Time) bool {
	if d := time.Until(due); !due.IsZero() && d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-t.stop:
			return false
		}
	}
	select {
	case <-t.stop:
		return false
	default:
		return true
	}
}

// deliver hands messages to a peer's handler, if it can be reached now.
func (t *Transport) deliver(to raft.NodeID, ms []raft.Message) {
	peer, answers := t.network.reach(t.id, to)
	if peer == nil || !peer.admit(t) {
		return
	}
	peer.meet(t.identity)
	if answers {
		t.meet(peer.identity)
	}
	ms = slices.DeleteFunc(ms, func(m raft.Message) bool {
		err := m.Validate()
		if err != nil {
			peer.call(func(h raft.Handler) { h.Refused(t.id, "malformed message") })
		}
		return err != nil
	})
	if len(ms) > 0 {
		peer.call(func(h raft.Handler) { h.HandleMessages(ms) })
	}
}

// admit refuses a sender of another cluster.
func (t *Transport) admit(sender *Transport) bool {
	if t.identity.Cluster == sender.identity.Cluster {
		return true
	}
	t.call(func(h raft.Handler) { h.Refused(sender.id, "other cluster") })
	return false
}

// meet reports a peer's process when it is seen for the first time, and that the one before it is gone.
func (t *Transport) meet(peer raft.Identity) {
	t.mu.Lock()
	before, known := t.met[peer.Node]
	t.met[peer.Node] = max(before, peer.Incarnation)
	t.mu.Unlock()
	if known && before >= peer.Incarnation {
		return
	}
	t.call(func(h raft.Handler) {
		if known {
			h.PeerLost(peer.Node, before)
		}
		h.PeerUp(peer.Node, peer.Replica, peer.Incarnation)
	})
}

// lose reports that a peer's process is gone, if it was ever met.
func (t *Transport) lose(peer raft.NodeID) {
	t.mu.Lock()
	incarnation, known := t.met[peer]
	delete(t.met, peer)
	t.mu.Unlock()
	if known {
		t.call(func(h raft.Handler) { h.PeerLost(peer, incarnation) })
	}
}

// call runs f with the handler unless the transport is not running; Close waits for it.
func (t *Transport) call(f func(raft.Handler)) {
	if h := t.acquire(); h != nil {
		defer t.calls.Done()
		f(h)
	}
}

// acquire returns the handler for one call, to be ended by calls.Done, or nil.
func (t *Transport) acquire() raft.Handler {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.handler == nil || t.gone {
		return nil
	}
	t.calls.Add(1)
	return t.handler
}

// SetPeers implements [raft.Transport]. Servers of this network find each other by their IDs, so there is nothing to set.
func (t *Transport) SetPeers([]raft.Server) {}

// Close implements [raft.Transport]. The others see that the process is gone.
func (t *Transport) Close() error {
	t.leave()
	t.calls.Wait()
	return nil
}

// leave takes the transport off the network, once.
func (t *Transport) leave() {
	t.mu.Lock()
	first := !t.gone
	t.gone = true
	t.mu.Unlock()
	if !first {
		return
	}
	close(t.stop)
	for _, witness := range t.network.leave(t) {
		witness.lose(t.id)
	}
}

// own returns the message with nothing inside that the receiver writes to. Log entries are immutable and stay shared.
func own(m raft.Message) raft.Message {
	b, ok := m.Body.(raft.ForwardPropose)
	if !ok {
		return m
	}
	proposals := slices.Clone(b.Proposals)
	for i := range proposals {
		proposals[i].Entry = proposals[i].Entry.Clone()
	}
	m.Body = raft.ForwardPropose{Proposals: proposals}
	return m
}

func contentSize(m raft.Message) int {
	switch b := m.Body.(type) {
	case raft.AppendEntries:
		return raft.EntriesSize(b.Entries)
	case raft.ForwardPropose:
		n := 0
		for i := range b.Proposals {
			n += b.Proposals[i].Entry.Size()
		}
		return n
	}
	return 0
}
