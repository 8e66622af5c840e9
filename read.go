package raft

import "time"

// pendingRead is a linearizable read that waits until the leader knows that it was still in office when the read began.
type pendingRead struct {
	id    uint64
	index Index  // the commit index when the read began
	round uint64 // confirmed once a quorum has answered this round
}

// ReadIndex begins a linearizable read without writing to the log (dissertation §6.4). If it returns nil, a [ReadResult] with that
// id follows. Error: *NotLeaderError.
//
// The read joins the next round of heartbeats. A round that is under way is no use to it: its answers may have been on their way
// already when another leader was elected and acknowledged a write that this read must see.
func (c *Core) ReadIndex(now time.Duration, id uint64) error {
	c.advanceClock(now)
	if c.role != Leader {
		return c.notLeader()
	}
	c.reads = append(c.reads, pendingRead{id: id, index: c.commitIndex, round: c.round + 1})
	c.roundWanted = true
	return nil
}

// beginRound starts the round that reads are waiting for, as soon as the one before is confirmed. One round serves all reads that
// came in the meantime. If answers are lost, the next heartbeat starts another.
func (c *Core) beginRound() {
	if !c.roundWanted || c.confirmedRound < c.round {
		c.confirmReads()
		return
	}
	c.roundWanted = false
	c.round++
	for i := range c.peers {
		if p := &c.peers[i]; p.server.ID != c.id && p.voter() {
			c.sendHeartbeat(p)
		}
	}
	c.advanceRound()
}

// advanceRound looks which rounds a quorum has answered, of every configuration in force.
func (c *Core) advanceRound() {
	c.confirmedRound = max(c.confirmedRound, c.quorumValue(func(p *peer) uint64 {
		if p.server.ID == c.id {
			return c.round
		}
		return p.ackedRound
	}))
	c.confirmReads()
}

// confirmReads releases the reads of confirmed rounds. Before this leader has committed an entry of its own term it does not know
// what its predecessors committed (§8), so reads wait for the no-op, and see at least that.
func (c *Core) confirmReads() {
	if len(c.reads) == 0 || c.commitIndex < c.termStart {
		return
	}
	n := 0
	for ; n < len(c.reads) && c.reads[n].round <= c.confirmedRound; n++ {
		r := c.reads[n]
		c.out.Reads = append(c.out.Reads, ReadResult{ID: r.id, Index: max(r.index, c.termStart)})
	}
	c.reads = append(c.reads[:0], c.reads[n:]...)
}
