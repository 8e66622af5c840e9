package raft

import "time"

// startSnapshot begins to send the newest snapshot to a follower that needs entries which are compacted (§7).
func (c *Core) startSnapshot(p *peer) {
	p.state, p.probeSent, p.load = stateSnapshot, false, 0
	p.inflight, p.inflightBytes = nil, 0
	p.snapshot = c.snapshot.Index
	c.nextLoad++
	p.transfer = c.nextLoad
	c.out.Snapshots = append(c.out.Snapshots, SnapshotTransfer{
		ID:      p.transfer,
		Message: c.message(p.server.ID, c.currentTerm, c.request(), InstallSnapshot{Meta: c.snapshot}),
	})
}

// endSnapshot returns to probing, right behind what the follower is known to have.
func (c *Core) endSnapshot(p *peer) {
	p.state, p.probeSent, p.transfer, p.snapshot = stateProbe, false, 0, 0
	p.nextIndex = max(p.matchIndex+1, p.nextIndex)
	p.resetRequest = c.nextRequest
}

// sending finds the follower of a transfer.
func (c *Core) sending(transfer uint64) *peer {
	if c.role != Leader {
		return nil
	}
	for i := range c.peers {
		if p := &c.peers[i]; p.state == stateSnapshot && p.transfer == transfer {
			return p
		}
	}
	return nil
}

// SnapshotSent says that the receiver of a [SnapshotTransfer] has it. The follower goes on behind it; if it did not take it after
// all, the probe will show.
func (c *Core) SnapshotSent(now time.Duration, transfer uint64) {
	c.advanceClock(now)
	if p := c.sending(transfer); p != nil {
		p.nextIndex = p.snapshot + 1
		c.snapshotArrived(p)
	}
}

// snapshotArrived ends a transfer that has reached its end: the follower goes on with entries.
func (c *Core) snapshotArrived(p *peer) {
	c.endSnapshot(p)
	p.catchUp, p.advancedAt = c.log.last, c.now
}

// SnapshotFailed says that a [SnapshotTransfer] was broken off. It is tried again after a pause, with the newest snapshot by then.
func (c *Core) SnapshotFailed(now time.Duration, transfer uint64) {
	c.advanceClock(now)
	if p := c.sending(transfer); p != nil {
		c.endSnapshot(p)
		p.pausedUntil = c.now + c.cfg.ElectionTimeout
	}
}

// WantsSnapshot reports whether a snapshot offered by a leader would be taken, so that its content need not be received in vain.
func (c *Core) WantsSnapshot(m Message) bool {
	req, ok := m.Body.(InstallSnapshot)
	return ok && m.To == c.id && m.Term >= c.currentTerm && c.storage != StorageFailed &&
		(req.Meta.Index > c.commitIndex && req.Meta.Index >= c.log.lost.Last && !req.Repair || c.coversGaps(&req.Meta))
}

// handleInstallSnapshot is the receiver's half of the InstallSnapshot RPC (§7, Figure 13). The content is complete and durable in
// the snapshot store already.
func (c *Core) handleInstallSnapshot(h Header, req InstallSnapshot) {
	if req.Repair {
		c.handleRepairSnapshot(h, req.Meta)
		return
	}
	if h.Term < c.currentTerm {
		c.send(h.From, c.currentTerm, h.Request, InstallSnapshotReply{}) // rule 1
		return
	}
	if c.leader != "" && c.leader != h.From {
		c.refuse(h.From, SecondLeader)
		return
	}
	c.followLeader(h.From)

	switch meta := req.Meta; {
	case c.coversGaps(&meta) && c.log.contains(meta.ID()):
		c.repairBySnapshot(meta)
	case meta.Index < c.log.lost.Last:
		// It does not reach the beginning of our log, and discarding that for it would break what we have acknowledged.
		c.send(h.From, c.currentTerm, h.Request, InstallSnapshotReply{MatchIndex: c.claim(c.commitIndex)})
		return
	case meta.Index <= c.commitIndex:
		// Older than what is here, and perhaps wanted when its transfer began: then it is the newest of our store now. What is
		// committed equals the leader's log; only what is durable may be claimed.
		if meta.Index > c.snapshot.Index && c.log.contains(meta.ID()) {
			c.snapshot = meta
		}
		c.send(h.From, c.currentTerm, h.Request, InstallSnapshotReply{MatchIndex: min(c.commitIndex, c.log.durable)})
		return
	case c.log.contains(meta.ID()):
		// "If existing log entry has same index and term as snapshot's last included entry, retain log entries following it"
		// (rule 6). Everything up to it equals the leader's log and is committed, so there is nothing to restore. It is the newest
		// in our store now, and the one to send: the store keeps two, and will drop those before it.
		c.snapshot = meta
		c.commitTo(meta.Index)
	default:
		c.installSnapshot(meta) // rules 7 and 8
	}
	if c.lacks() {
		c.noteMatched(req.Meta.Index)
	}
	c.send(h.From, c.currentTerm, h.Request, InstallSnapshotReply{MatchIndex: req.Meta.Index})
}

// installSnapshot discards the log and lets it begin behind the snapshot, with the snapshot's configuration.
func (c *Core) installSnapshot(meta SnapshotMeta) {
	c.log.reset(meta)
	c.snapshot = meta
	c.commitIndex, c.handedOut = meta.Index, meta.Index
	c.configurations = []configurationAt{{meta.ConfigurationIndex, meta.Configuration.Clone()}}
	c.committedConfig = meta.ConfigurationIndex
	c.configurationInForce()
	c.out.Apply = append(c.out.Apply, Apply{Restore: &meta, Lo: meta.Index + 1, Hi: meta.Index + 1})
}

// handleInstallSnapshotReply is the leader's half of the InstallSnapshot RPC.
func (c *Core) handleInstallSnapshotReply(h Header, rep InstallSnapshotReply) {
	if c.role != Leader || h.Term < c.currentTerm {
		return
	}
	p := c.peer(h.From)
	if p == nil || !c.counted(p) {
		return
	}
	if rep.MatchIndex > c.log.last {
		c.refuse(h.From, ImpossibleReply)
		return
	}
	p.lastHeard = c.now
	if rep.MatchIndex > p.matchIndex {
		p.matchIndex = rep.MatchIndex
		p.nextIndex = max(p.nextIndex, p.matchIndex+1)
	}
	if p.state == stateSnapshot && p.matchIndex >= p.snapshot {
		c.snapshotArrived(p)
	}
	c.advanceCommit()
}

// SnapshotTaken says that a snapshot of the local state machine is durable. The log before it is given up, but for some trailing
// entries, so that a follower which lags a little need not receive a snapshot.
func (c *Core) SnapshotTaken(now time.Duration, meta SnapshotMeta) {
	c.advanceClock(now)
	assertf(c, meta.Index <= c.handedOut, "a snapshot at %d, but only %d was handed out for apply", meta.Index, c.handedOut)
	if meta.Index <= c.snapshot.Index {
		return // a newer one was installed meanwhile
	}
	c.snapshot = meta
	c.coverGaps()
	if c.role == Leader { // what is behind the gap may be durable now, and nobody else may remind us of it
		c.resolve()
		c.advanceCommit()
	}
	if uint64(meta.Index) <= c.cfg.TrailingEntries {
		return
	}
	c.covered = meta.Index - Index(c.cfg.TrailingEntries)
	if !c.compact() {
		return
	}

	// Older configurations can no longer be rolled back to; the one at the snapshot is needed to describe it.
	for len(c.configurations) > 1 && c.configurations[1].index <= meta.Index {
		c.configurations = c.configurations[1:]
	}
}

// compact gives up what is covered and not needed by anybody. It reports whether there was anything.
func (c *Core) compact() bool {
	to := c.neededBySnapshots(c.covered)
	if to <= c.log.base.Index {
		return false
	}
	c.log.compact(to)
	c.out.Compact = c.log.base.Index
	return true
}

// neededBySnapshots lowers to, up to which the log could be compacted, so that a follower to which a snapshot is on its way can go on
// with entries when it has it, up to where the log ended when it arrived. Otherwise one to which sending and catching up takes longer
// than TrailingEntries last would need the next snapshot by then, and so on without end. The log grows for as long as the transport
// takes to send a snapshot, or to give up, and then for as long as the follower comes closer to that end; but one slow follower must not
// stop the cluster, so on a full disk nothing is kept for it.
func (c *Core) neededBySnapshots(to Index) Index {
	if c.role != Leader || c.storage == StorageFull {
		return to
	}
	for i := range c.peers {
		p := &c.peers[i]
		switch {
		case p.state == stateSnapshot && p.snapshot >= c.log.base.Index:
			to = min(to, p.snapshot)
		case p.matchIndex < p.catchUp && p.matchIndex >= c.log.base.Index && c.now-p.advancedAt < 2*c.cfg.ElectionTimeout:
			to = min(to, p.matchIndex)
		}
	}
	return to
}

// SnapshotMeta describes a snapshot at an index that has been handed out for apply and is not compacted. Size is unknown yet: -1.
func (c *Core) SnapshotMeta(index Index) (meta SnapshotMeta, ok bool) {
	t, ok := c.log.term(index)
	at, known := c.configurationBefore(index)
	if !ok || !known || index == 0 || index > c.handedOut {
		return SnapshotMeta{}, false
	}
	return SnapshotMeta{Index: index, Term: t, Configuration: at.conf.Clone(), ConfigurationIndex: at.index, Size: -1}, true
}
