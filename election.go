package raft

import "time"

// voteState is what one peer answered in the present election, or pre-vote.
type voteState uint8

const (
	voteNone voteState = iota
	voteGranted
	voteRefused
)

// resetElectionTimer draws a new timeout from [T, 2T) (§5.2: randomised, so that split votes are rare). A voter waits one T longer
// for every rank that others have a higher priority, but never more than two, so that priorities decide who comes first and never
// whether somebody comes.
func (c *Core) resetElectionTimer() {
	t := c.cfg.ElectionTimeout
	rank := min(c.priorityRank, 2)
	if len(c.log.gaps) > 0 {
		rank += gapDelay // a server that can read its log should lead
	}
	c.electionDeadline = c.now + t + c.random.below(t) + time.Duration(rank)*t
}

// sticky reports whether this server believes that a live leader is in office, and so ignores other candidates (dissertation
// §4.2.3). A leader believes in itself: it steps down by itself when it hears no quorum. If the leader itself asks, it is no
// longer in office.
func (c *Core) sticky(candidate NodeID) bool {
	if c.cfg.DisableCheckQuorum {
		return false // without check-quorum a leader that nobody hears would be believed for ever
	}
	if c.role == Leader {
		return true
	}
	return c.leader != "" && c.leader != candidate && !c.suspected && c.now-c.lastLeaderContact < c.cfg.ElectionTimeout
}

// canCampaign reports whether this server may lead: not one that votes in no configuration that may be the committed one, nor one
// whose disk could not keep the promises of a leader, nor one whose owner has asked it not to, nor one that is fenced, or may not know
// the configuration in force.
func (c *Core) canCampaign() bool {
	return c.mayBeVoter() && c.storage != StorageFailed && !c.abstaining && !c.log.diskStuck(c.now, c.cfg.DiskDeadline) &&
		c.repair.fence == (EntryID{}) && !c.mayHideConfiguration()
}

// mayBeVoter reports whether this server is a voter, or was one until a configuration that is not known to be committed: "a server
// that is not part of its own latest configuration should still start new elections, as it might still be needed until the C_new
// entry is committed" (dissertation §4.2.2). Otherwise, if C_new had reached only those that leave, they would not lead, and the
// others could not, because those that leave have the longer logs and are still needed in the old majority. A server that wins so
// counts itself nowhere, commits C_new and hands over. One that was demoted long ago and has just started may ask too, until it
// hears from a leader; nobody who hears from one answers it.
func (c *Core) mayBeVoter() bool {
	at := c.configurationIndex()
	if c.configuration().IsVoter(c.id) || at <= c.commitIndex {
		return c.configuration().IsVoter(c.id)
	}
	before, ok := c.configurationBefore(at - 1)
	return ok && before.conf.IsVoter(c.id)
}

// removed reports whether the cluster has agreed that a server is gone. A tombstone counts once its configuration is committed: until
// then the server is counted by others, and may have the longest log, so that nobody else can win.
func (c *Core) removed(id NodeID) bool {
	at, ok := c.configurationBefore(c.commitIndex)
	if !ok && len(c.configurations) > 0 {
		at = c.configurations[0] // there is none that it could be rolled back to
	}
	return at.conf.IsRemoved(id)
}

// timeoutElection is the election timeout of followers and candidates (§5.2).
func (c *Core) timeoutElection() {
	why := ReasonTimeout
	if c.suspected {
		why = ReasonSuspicion
	}
	c.campaign(why)
}

// campaign begins an election, if this server may lead.
func (c *Core) campaign(why Reason) {
	c.resetElectionTimer()
	if !c.canCampaign() {
		return
	}
	if c.cfg.DisablePreVote || why == ReasonTransfer {
		c.becomeCandidate(why)
		return
	}
	c.becomePreCandidate(why)
}

// becomePreCandidate asks a quorum whether it would vote for us, before any term is raised (dissertation §9.6). Our own term and
// vote stay as they are: a server that cannot win disturbs nobody.
func (c *Core) becomePreCandidate(why Reason) {
	c.role, c.leader = PreCandidate, ""
	c.announce(why)
	c.out.Events = append(c.out.Events, ElectionStarted{Term: c.currentTerm + 1, PreVote: true, Reason: why})
	last := c.log.lastID()
	c.startTally(func(p *peer) {
		c.sendNow(p.server.ID, c.currentTerm+1, c.request(), PreVote{LastLogIndex: last.Index, LastLogTerm: last.Term})
	})
	c.tallyVotes()
}

// becomeCandidate starts an election: "increment currentTerm, vote for self, reset election timer, send RequestVote RPCs to all
// other servers" (Figure 2). The requests leave once term and vote are durable.
func (c *Core) becomeCandidate(why Reason) {
	assertf(c, c.role != Leader, "a leader campaigns")
	c.currentTerm++
	c.votedFor, c.hardStateDirty = c.id, true
	c.role, c.leader = Candidate, ""
	c.resetElectionTimer()
	c.announce(why)
	c.out.Events = append(c.out.Events, ElectionStarted{Term: c.currentTerm, Reason: why})
	last := c.log.lastID()
	c.startTally(func(p *peer) {
		c.send(p.server.ID, c.currentTerm, c.request(),
			RequestVote{LastLogIndex: last.Index, LastLogTerm: last.Term, Transfer: why == ReasonTransfer})
	})
	c.tallyVotes()
}

// startTally forgets the votes of the last election and asks every other voter.
func (c *Core) startTally(ask func(*peer)) {
	for i := range c.peers {
		p := &c.peers[i]
		p.vote = voteNone
		if p.server.ID != c.id && p.voter() {
			ask(p)
		}
	}
}

// tallyVotes looks whether the election is decided: "if votes received from majority of servers: become leader" (Figure 2), of
// both majorities in a joint configuration (§6).
func (c *Core) tallyVotes() {
	own := voteGranted
	if c.role == Candidate && c.durable != (HardState{CurrentTerm: c.currentTerm, VotedFor: c.id}) {
		own = voteNone // a vote for ourselves that a crash would make us forget is no vote yet
	}
	answer := func(p *peer) voteState {
		if p.server.ID == c.id {
			return own
		}
		return p.vote
	}
	won := c.quorum(func(p *peer) bool { return answer(p) == voteGranted })
	lost := !c.quorum(func(p *peer) bool { return answer(p) != voteRefused })
	switch {
	case won && c.role == PreCandidate:
		c.becomeCandidate(c.reason)
	case won:
		c.becomeLeader()
	case lost:
		c.becomeFollower(c.currentTerm, ReasonLostElection)
	}
}

// handlePreVote answers whether this server would vote for the sender in the term it names. Nothing changes here, so the answer
// leaves at once.
func (c *Core) handlePreVote(h Header, req PreVote) {
	candidate := EntryID{Term: req.LastLogTerm, Index: req.LastLogIndex}
	grant := h.Term > c.currentTerm && !c.sticky(h.From) && !c.removed(h.From) && c.grantsTo(candidate)
	if grant {
		c.sendNow(h.From, h.Term, h.Request, PreVoteReply{Granted: true})
		return
	}
	// The refusal carries our term. A pre-candidate with a longer log but an older term than ours learns it and asks again with
	// a later one; otherwise neither of the two could ever win.
	c.sendNow(h.From, c.currentTerm, h.Request, PreVoteReply{})
}

// handlePreVoteReply counts an answer to PreVote. It never counts as a vote: it has a type of its own.
func (c *Core) handlePreVoteReply(h Header, rep PreVoteReply) {
	if c.role != PreCandidate || rep.Granted && h.Term != c.currentTerm+1 || !rep.Granted && h.Term != c.currentTerm {
		return
	}
	c.countVote(h, rep.Granted)
}

// handleRequestVote is the receiver's half of the RequestVote RPC (§5.2, §5.4.1, Figure 2). Whoever asks is heard, member or not:
// a learner that does not know yet that it was promoted must vote, or a quorum could be missing (§6).
func (c *Core) handleRequestVote(h Header, req RequestVote) {
	grant := h.Term == c.currentTerm && // rule 1: a candidate of an earlier term is refused
		(c.votedFor == "" || c.votedFor == h.From) && // rule 2: one vote for each term, ...
		c.grantsTo(EntryID{Term: req.LastLogTerm, Index: req.LastLogIndex}) && // ... for a log as good as ours (§5.4.1)
		!c.removed(h.From)
	if grant {
		if c.votedFor == "" {
			c.votedFor, c.hardStateDirty = h.From, true
		}
		if c.role == PreCandidate {
			c.becomeFollower(c.currentTerm, ReasonLostElection)
		}
		c.resetElectionTimer() // "without granting vote to candidate": a grant restarts the timeout (Figure 2)
	}
	c.send(h.From, c.currentTerm, h.Request, RequestVoteReply{Granted: grant})
}

// handleRequestVoteReply counts a vote.
func (c *Core) handleRequestVoteReply(h Header, rep RequestVoteReply) {
	if c.role != Candidate || h.Term != c.currentTerm {
		return
	}
	c.countVote(h, rep.Granted)
}

// countVote notes one answer, if it comes from the data directory that the configuration names.
func (c *Core) countVote(h Header, granted bool) {
	p := c.peer(h.From)
	if p == nil || !c.counted(p) {
		return
	}
	switch {
	case granted:
		p.vote = voteGranted
	case p.vote == voteNone:
		p.vote = voteRefused // nobody takes a vote back: a refusal behind a grant answers a request of an earlier term
	}
	c.tallyVotes()
}

// PeerLost says that the process of a peer, with this incarnation, is most probably gone. On a leader, what was in flight to it
// is taken for lost. On a follower it is a suspicion, if the peer is the leader: it raises no term, but lets this server ask for
// votes soon, and grant them, as if the leader's time had run out. It takes a majority of such servers, each by its own
// observation, to elect another leader, so one broken link deposes nobody. Any message of the leader clears it.
func (c *Core) PeerLost(now time.Duration, peer NodeID, incarnation uint64) {
	c.advanceClock(now)
	p := c.peer(peer)
	if p == nil || incarnation < p.incarnation {
		return // somebody whom we do not know, or an obituary for a process that has been replaced already
	}
	if c.role == Leader {
		c.probe(p)
		return
	}
	if peer != c.leader || c.configuration().LeaderLeases || c.suspected {
		return
	}
	if c.now < c.suspicionAfter {
		return // rate-limited: the ordinary timeout is running anyway
	}
	c.suspicionAfter = c.now + c.cfg.ElectionTimeout
	c.suspected = true
	if c.configuration().IsVoter(c.id) && len(c.log.gaps) == 0 {
		c.electionDeadline = min(c.electionDeadline, c.now+c.suspicionDelay())
	}
}

// suspicionDelay staggers the servers that notice the same death at the same time, by priority and then by ID, so that they do
// not split the vote.
func (c *Core) suspicionDelay() time.Duration {
	own, _ := c.configuration().Server(c.id)
	rank := 0
	for i := range c.peers {
		s := &c.peers[i].server
		if c.peers[i].voter() && s.ID != c.leader && s.ID != c.id &&
			(s.Priority > own.Priority || s.Priority == own.Priority && s.ID < own.ID) {
			rank++
		}
	}
	slot := c.cfg.HeartbeatInterval / 4
	return time.Duration(rank)*slot + c.random.below(slot/2)
}

// PeerUp says that a process was reached. If it is the suspected leader, alive with the same incarnation, the suspicion falls.
func (c *Core) PeerUp(now time.Duration, peer NodeID, replica ReplicaID, incarnation uint64) {
	c.advanceClock(now)
	p := c.peer(peer)
	if p == nil || replica == p.replica && incarnation < p.incarnation {
		return
	}
	if peer == c.leader && c.suspected && replica == p.replica && incarnation == p.incarnation {
		c.suspected = false
		if c.role == Follower {
			c.resetElectionTimer()
		}
	}
	c.notePeer(p, replica, incarnation)
	if c.role == Leader {
		c.probe(p)
	}
}

// ChangeLeader begins a leadership transfer (dissertation §3.10): the target is brought up to date, while from some moment on no more
// proposals are taken, then told to campaign at once. TransferEnded follows, if it returns nil. target "" picks the voter with the longest log.
// Errors: *NotLeaderError, ErrBusy while another transfer is running, *MembershipError for a target that cannot lead.
func (c *Core) ChangeLeader(now time.Duration, target NodeID) error {
	c.advanceClock(now)
	if c.role != Leader {
		return c.notLeader()
	}
	if c.transferee != "" || c.repair.recovering {
		return ErrBusy
	}
	if target == "" {
		p := c.mostUpToDate()
		if p == nil {
			return &MembershipError{Reason: "no other voter can be reached"}
		}
		target = p.server.ID
	}
	if target == c.id {
		c.out.Events = append(c.out.Events, TransferEnded{Target: target})
		return nil
	}
	p := c.peer(target)
	if p == nil || !p.voter() {
		return &MembershipError{Server: target, Reason: "is not a voter, so it cannot lead"}
	}
	c.transferee, c.transferDeadline, c.timeoutNowSent = target, c.now+c.cfg.ElectionTimeout, false
	return nil
}

// holdsProposals reports whether a transfer is so far that no more proposals are taken: "the prior leader stops accepting new client
// requests" (dissertation §3.10). Clients wait from then on, so a target that lacks much is brought up to date first, and one that
// does not answer keeps nobody waiting. All has been sent to it, and only its answers are missing, when the wait begins; or half of
// the time is over, because proposals come faster than it takes them.
func (c *Core) holdsProposals() bool {
	if c.transferee == "" {
		return false
	}
	p := c.peer(c.transferee)
	switch {
	case p == nil:
		return false // the transfer is about to fail
	case p.matchIndex == c.log.last:
		return true // it has been told to campaign
	case p.state != stateReplicate:
		return false
	default:
		return p.nextIndex > c.log.last || c.now >= c.transferDeadline-c.cfg.ElectionTimeout/2
	}
}

// advanceTransfer sends TimeoutNow once the target holds the whole log.
func (c *Core) advanceTransfer() {
	if c.transferee == "" || c.timeoutNowSent {
		return
	}
	p := c.peer(c.transferee)
	if p == nil || !p.voter() {
		c.endTransfer(ErrTransferFailed)
		return
	}
	if p.matchIndex == c.log.last {
		c.timeoutNowSent = true
		c.sendNow(p.server.ID, c.currentTerm, c.request(), TimeoutNow{})
	}
}

// endTransfer ends a transfer, if one is running, and lets proposals go on.
func (c *Core) endTransfer(err error) {
	if c.transferee == "" {
		return
	}
	c.out.Events = append(c.out.Events, TransferEnded{Target: c.transferee, Err: err})
	c.transferee, c.timeoutNowSent = "", false
}

// handOver gives up leadership at once, because this server can or should not go on: the best other voter is told to campaign,
// and nothing is waited for. TimeoutNow promises nothing, so it needs no disk.
func (c *Core) handOver(why Reason) {
	if p := c.mostUpToDate(); p != nil {
		c.sendNow(p.server.ID, c.currentTerm, c.request(), TimeoutNow{})
	}
	c.becomeFollower(c.currentTerm, why)
}

// mostUpToDate picks the best successor: a voter of the configuration to come that was heard lately, with the longest log.
func (c *Core) mostUpToDate() *peer {
	var best *peer
	for i := range c.peers {
		p := &c.peers[i]
		if p.server.ID == c.id || !p.server.votesNew() || !p.member || c.now-p.lastHeard > c.cfg.ElectionTimeout {
			continue
		}
		if best == nil || p.matchIndex > best.matchIndex || p.matchIndex == best.matchIndex && p.server.Priority > best.server.Priority {
			best = p
		}
	}
	return best
}

// handleTimeoutNow starts an election at once, if the leader of our term asks for it and this server may lead. It is harmless at a
// leader, a candidate or a learner, and from anybody else.
func (c *Core) handleTimeoutNow(h Header) {
	accept := c.role == Follower && h.Term == c.currentTerm && h.From == c.leader && c.canCampaign() && len(c.log.gaps) == 0
	if accept {
		c.campaign(ReasonTransfer)
	}
	c.send(h.From, c.currentTerm, h.Request, TimeoutNowReply{Accepted: accept})
}
