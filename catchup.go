package raft

import "time"

// pacing bounds how fast a follower is sent entries that it lags behind with, so that others' commands do not wait for the disks and
// processors which that takes.
type pacing struct {
	on       bool          // it needed entries from the disk, and has not been sent the newest since
	due      time.Duration // when all that was sent would have left at the bounded rate
	credited uint64        // of the leader's appendedBytes, what has counted for this follower; credited <= appendedBytes
}

// maxPaceAhead is how far a follower may be ahead of its pace; so many bytes at once are not worth a wake-up.
const maxPaceAhead = 5 * time.Millisecond

// pacedPieces is into how many pieces a second's worth is cut.
const pacedPieces = 128

// beginPace bounds what a follower is sent from now on, until it has been sent all.
func (c *Core) beginPace(p *peer) {
	if !p.pace.on {
		p.pace = pacing{on: true, due: c.now, credited: c.appendedBytes}
	}
}

// batch is how much of room a follower is sent at once. Pieces of what is paced are small, so that others come in between.
func (c *Core) batch(p *peer, room int) int {
	if p.pace.on {
		return min(room, max(1, c.cfg.CatchUpBytesPerSecond/pacedPieces))
	}
	return room
}

// paceSent takes note that size bytes have been sent to a follower. Twice what the log has grown by meanwhile is free, so that it
// catches up however fast the log grows.
func (c *Core) paceSent(p *peer, size int) {
	if !p.pace.on {
		return
	}
	if p.nextIndex > c.log.last {
		p.pace.on = false
		return
	}
	if c.waitsFor(p) {
		p.pace.due = c.now // it need not make up later for what was not bounded
		return
	}
	free := min(uint64(size), 2*(c.appendedBytes-p.pace.credited))
	p.pace.credited += (free + 1) / 2
	size -= int(free)
	p.pace.due = max(p.pace.due, c.now) + time.Duration(size)*time.Second/time.Duration(c.cfg.CatchUpBytesPerSecond)
}

// paceUntil is when a follower may be sent more; in the past if it is not paced.
func (c *Core) paceUntil(p *peer) time.Duration {
	if !p.pace.on || c.now >= p.pace.due-maxPaceAhead || c.waitsFor(p) {
		return c.now
	}
	return p.pace.due - maxPaceAhead
}

// waitsFor reports whether nothing can be committed, or leadership not be handed over, before a follower has caught up: those that
// answer and have what is committed are no quorum without it.
func (c *Core) waitsFor(p *peer) bool {
	if p.server.ID == c.transferee {
		return true
	}
	return c.quorumValue(func(q *peer) uint64 {
		if q.server.ID == c.id || q != p && q.matchIndex >= c.commitIndex && c.now-q.lastHeard < c.cfg.ElectionTimeout {
			return 1
		}
		return 0
	}) == 0
}
