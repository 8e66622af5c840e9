package tcp

import (
	"sync/atomic"

	"github.com/steadyraft/raft"
)

// Stats is what a [Transport] has done so far.
type Stats struct {
	Accepted uint64 // connections accepted
	Open     int    // connections open now that were accepted
	Refused  uint64 // inputs and connections turned away
	Peers    map[raft.NodeID]PeerStats
}

// PeerStats is the traffic with one server. Bytes include frame headers, but not TLS.
type PeerStats struct {
	Address          string // where it is dialled
	Connected        bool   // our control connection to it stands
	SentMessages     uint64
	SentBytes        uint64
	ReceivedMessages uint64
	ReceivedBytes    uint64
	Dropped          uint64 // messages that found no room or no connection
	LastError        string // why the last attempt to reach it did not succeed; "" if it did
}

// counters are the parts of PeerStats that rise.
type counters struct {
	sentMessages, sentBytes         atomic.Uint64
	receivedMessages, receivedBytes atomic.Uint64
	dropped                         atomic.Uint64
}

// Stats returns the numbers of this moment.
func (t *Transport) Stats() Stats {
	t.mu.RLock()
	defer t.mu.RUnlock()
	s := Stats{Accepted: t.accepted.Load(), Open: len(t.incoming), Refused: t.refusals.Load(), Peers: make(map[raft.NodeID]PeerStats, len(t.peers))}
	for id, p := range t.peers {
		lastError, connected := p.lanes[raft.LaneControl].state()
		s.Peers[id] = PeerStats{
			Address:          p.address(),
			Connected:        connected,
			SentMessages:     p.counters.sentMessages.Load(),
			SentBytes:        p.counters.sentBytes.Load(),
			ReceivedMessages: p.counters.receivedMessages.Load(),
			ReceivedBytes:    p.counters.receivedBytes.Load(),
			Dropped:          p.counters.dropped.Load(),
			LastError:        lastError,
		}
	}
	return s
}
