package raftsim

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/steadyraft/raft"
)

// network decides which message arrives where and when.
type network struct {
	w          *world
	loss, dup  float64
	delay      time.Duration
	spikes     bool // now and then a message takes a hundred times as long
	fifo       bool // lanes keep their order
	resetNotes float64

	links [][]link // by sender and receiver
}

// link is the way from one server to another.
type link struct {
	cut        bool          // nothing gets through
	vanishTo   time.Duration // until then what is sent vanishes: the receiver has lost the connection, and the sender does not know
	late       time.Duration // added to the latency, or as much of it as the time that has passed since lateSince
	lateSince  time.Duration
	connection int              // counts the connections: with the old one, what was on its way is lost
	last       [2]time.Duration // by lane: when the last message will arrive
}

func (w *world) link(from, to *server) *link { return &w.network.links[from.position][to.position] }

// renew replaces the connection. Lanes begin anew.
func (l *link) renew() { l.connection, l.vanishTo, l.last = l.connection+1, 0, [2]time.Duration{} }

func newNetwork(w *world, r *rand.Rand) network {
	n := network{
		w: w, loss: pick(r, 0, 0, 0.02, 0.1, 0.3), dup: pick(r, 0, 0.02, 0.2),
		delay:  pick(r, time.Millisecond, time.Millisecond, 5*time.Millisecond, 20*time.Millisecond, w.knobs.core.ElectionTimeout/5),
		spikes: r.IntN(6) == 0, fifo: r.IntN(2) == 0, resetNotes: pick(r, 0, 0.5, 1),
	}
	n.restrict(w.knobs.faults)
	n.grow()
	return n
}

func (n *network) restrict(f Fault) {
	if f&Loss == 0 {
		n.loss = 0
	}
	if f&Duplicate == 0 {
		n.dup = 0
	}
	if f&Reorder == 0 {
		n.fifo = true
	}
}

// heal leaves a good network.
func (n *network) heal() {
	n.loss, n.dup, n.delay, n.spikes = 0, 0, 5*time.Millisecond, false
	n.mend()
}

func (l *link) broken() bool { return l.cut || l.late > 0 }

func (n *network) anyBroken() bool {
	return slices.ContainsFunc(n.links, func(row []link) bool {
		return slices.ContainsFunc(row, func(l link) bool { return l.broken() })
	})
}

// mend makes all links whole. A lane that keeps its order begins anew, or what is late would hold up all that follows.
func (n *network) mend() {
	for i := range n.links {
		for j := range n.links[i] {
			l := &n.links[i][j]
			if n.fifo && l.late > 0 {
				l.renew()
			}
			l.cut, l.late = false, 0
		}
	}
}

// grow makes room for the servers that there are.
func (n *network) grow() {
	size := len(n.w.servers)
	for len(n.links) < size {
		n.links = append(n.links, nil)
	}
	for i := range n.links {
		for len(n.links[i]) < size {
			n.links[i] = append(n.links[i], link{})
		}
	}
}

// drops reports whether a message on that way is lost.
func (n *network) drops(from, to *server) bool {
	l := n.w.link(from, to)
	if l.cut {
		n.w.hit(messageCut)
		return true
	}
	if l.vanishTo > n.w.now {
		n.w.hit(messageVanished)
		return true
	}
	if n.loss > 0 && n.w.forNetwork.Float64() < n.loss {
		n.w.hit(messageLost)
		return true
	}
	return false
}

func (n *network) latency() time.Duration {
	d := upTo(n.w.forNetwork, n.delay)
	if n.spikes && n.w.forNetwork.IntN(50) == 0 {
		d += upTo(n.w.forNetwork, 3*time.Second)
		n.w.hit(messageVeryLate)
	}
	return d
}

// send puts a message on the network.
func (w *world) send(v *server, m raft.Message) {
	n := &w.network
	to := w.server(m.To)
	if to == nil || n.drops(v, to) {
		return
	}
	copies := 1
	if n.dup > 0 && w.forNetwork.Float64() < n.dup {
		w.hit(messageDuplicated)
		copies = 2
	}
	l := w.link(v, to)
	lane := &l.last[m.Lane()]
	for range copies {
		at := w.now + n.latency() + min(l.late, w.now-l.lateSince)
		if n.fifo {
			at = max(at, *lane)
		}
		w.hitIf(at < *lane, messageOvertaken)
		*lane = max(at, *lane)
		w.deliverAt(at, v, to, m)
	}
}

// deliverAt plans the arrival. What is on its way dies with the connection, and with the process that it is meant for; or, where the
// knob says so, reaches the next one, as a message does that was delayed before it was sent.
func (w *world) deliverAt(at time.Duration, from, to *server, m raft.Message) {
	connection := w.link(from, to).connection
	arrive := func() {
		l := w.link(from, to)
		if !to.up() || l.cut {
			return
		}
		if l.connection != connection && !w.knobs.retransmit {
			w.hit(messageLostWithConnection)
			return
		}
		w.deliver(to, m)
	}
	if !w.knobs.retransmit {
		w.on(to, at-w.now, arrive)
		return
	}
	run := to.run
	w.after(at-w.now, func() {
		w.hitIf(to.up() && to.run != run, messageForSuccessor)
		if to.up() {
			w.on(to, 0, arrive) // by way of the backlog, if it is paused
		}
	})
}

// isDead reports whether a message comes from a process of whose successor this server has heard.
func (w *world) isDead(to *server, m *raft.Message) bool {
	if _, member := to.conf.Server(m.From); !member {
		return false
	}
	return m.Incarnation < to.memory.heardOf(w.server(m.From).position).incarnation
}

func (w *world) deliver(to *server, m raft.Message) {
	w.trace.message(&m)
	if w.trace.lines != nil && (!w.trace.brief || !to.routine(&m)) {
		w.printf(to, "← %s %s", m.From, describe(&m))
	}
	if w.isDead(to, &m) {
		without := w.withoutMessage(to, m)
		to.input("message of a dead process", func(c *raft.Core) { c.Step(to.local(), m) })
		if to.up() {
			w.deadIncarnationIsIgnored(to, &m, without)
		}
		return
	}
	w.heard(to, &m)
	var before raft.CoreStatus
	fenced := to.sick.fence != (raft.EntryID{})
	if fenced {
		before = to.core.Status(to.local())
	}
	to.input("message", func(c *raft.Core) { c.Step(to.local(), m) })
	if fenced && to.up() {
		w.fencedServerKeepsBack(to, &m, &before)
	}
}

// connected tells both sides that a process can be reached, where it can.
func (w *world) connected(v *server) {
	for _, o := range w.servers {
		if o == v || !o.up() || w.link(o, v).cut || w.link(v, o).cut {
			continue
		}
		w.peerUp(o, v)
		w.peerUp(v, o)
	}
}

func (w *world) peerUp(at, peer *server) {
	id := peer.identity
	w.on(at, w.network.latency(), func() {
		at.input("peer up", func(c *raft.Core) { c.PeerUp(at.local(), id.Node, id.Replica, id.Incarnation) })
	})
}

// lost tells others that a process is gone. A killed process is noticed by a refused redial; a computer without power answers
// nothing, so that its death shows by its silence.
func (w *world) lost(v *server, incarnation uint64, power bool) {
	for _, o := range w.servers {
		if o == v || !o.up() || w.link(v, o).cut {
			continue
		}
		if p := w.network.resetNotes; power && w.forNetwork.IntN(8) > 0 || w.forNetwork.Float64() >= p {
			continue
		}
		w.on(o, upTo(w.forNetwork, 30*time.Millisecond), func() {
			w.hitIf(o.leader == v.id && o.role == raft.Follower, leaderSuspected)
			o.input("peer lost", func(c *raft.Core) { c.PeerLost(o.local(), v.id, incarnation) })
		})
	}
}

// reset breaks the connections between two servers, and what was on its way is lost. Both redial; now and then a side takes the other
// for dead until it has reached it again.
func (w *world) reset(a, b *server) string {
	if a == b {
		return ""
	}
	w.hit(connectionReset)
	w.link(a, b).renew()
	w.link(b, a).renew()
	for _, side := range [][2]*server{{a, b}, {b, a}} {
		at, peer := side[0], side[1]
		if !at.up() || !peer.up() {
			continue
		}
		id := peer.identity
		if w.forFaults.IntN(3) == 0 {
			w.on(at, 0, func() {
				at.input("peer lost", func(c *raft.Core) { c.PeerLost(at.local(), id.Node, id.Incarnation) })
			})
		}
		w.peerUp(at, peer)
	}
	return "reset between " + names(a, b)
}

// halfOpen lets a server believe in a connection that its peer has lost: until it notices, what it sends vanishes. The peer still
// reaches it. When it notices, it redials.
func (w *world) halfOpen(from, to *server, d time.Duration) {
	w.hit(connectionHalfOpen)
	w.hitIf(from.role == raft.Leader && from.up(), leaderBehindHalfOpen)
	l := w.link(from, to)
	l.renew()
	l.vanishTo = w.now + d
	connection := l.connection
	w.after(d, func() {
		if l := w.link(from, to); l.connection == connection && from.up() && to.up() {
			l.renew()
			w.peerUp(to, from)
		}
	})
}
