package raft

// A server whose log has lost its end may have acknowledged entries of which it remembers nothing. It is fenced: until it has caught up
// it counts in the size of every majority, but never campaigns, and votes only for logs that reach at least as far as its own may have
// reached. Otherwise those that still hold such an entry, no majority without this server, could be outvoted by those that do not, and
// what was committed with this server's help would be gone.
//
// The fence falls when the log equals that of the leader of the present term, durably, up to a commit index that this leader has named
// after it knew that another process answers here. Everything that was committed while our lost acknowledgements counted lies at or
// before it: by earlier leaders, because the leader's log holds it (Leader Completeness) and the leader has committed an entry of its own
// term behind it; by this leader, because from then on it counts only what this process acknowledges (SAFETY inv 22, 29).

// grantsTo reports whether a candidate's log is good enough for our vote: as up-to-date as ours (§5.4.1), and as what ours may have been.
func (c *Core) grantsTo(candidate EntryID) bool {
	fence := c.repair.fence
	return candidate.upToDate(c.log.lastID()) && fence.Term != MaxTerm && candidate.upToDate(fence)
}

// noteGoal takes note of how far a leader has come that knows this process.
func (c *Core) noteGoal(h Header, rep FetchEntriesReply) {
	r := &c.repair
	if r.fence == (EntryID{}) || !rep.Leading || h.Term != c.currentTerm || h.From != c.leader || r.goalTerm == c.currentTerm {
		return // the first goal of a term will do; a later one would move away from who is slow
	}
	r.goal, r.goalTerm = rep.CommitIndex, c.currentTerm
	c.tryLiftFence()
}

// tryLiftFence lifts the fence if the log reaches its goal.
func (c *Core) tryLiftFence() {
	r := &c.repair
	if r.fence == (EntryID{}) || r.goalTerm != c.currentTerm || min(c.knownMatch(), c.log.durable) < r.goal {
		return
	}
	if t, ok := c.log.term(r.goal); ok && t != c.currentTerm {
		return
	}
	r.liftFence = true
	c.out.Events = append(c.out.Events, FenceLifted{Fence: r.fence})
	r.fence = EntryID{}
}
