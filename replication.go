package raft

import "time"

// progressState says how entries are sent to one follower.
type progressState uint8

const (
	// stateProbe: it is not known where the follower's log ends or parts from ours. One AppendEntries at a time.
	stateProbe progressState = iota
	// stateReplicate: the logs agree, so entries are sent ahead of their acknowledgements (pipelined), within bounds.
	stateReplicate
	// stateSnapshot: what the follower needs is compacted, and a snapshot is on its way.
	stateSnapshot
)

var progressStates = [...]string{"probe", "replicate", "snapshot"}

// progress is what a leader knows about one follower's log (Figure 2: volatile state on leaders).
type progress struct {
	state      progressState
	matchIndex Index // durable there and equal to ours; 0 <= matchIndex < nextIndex
	nextIndex  Index // the next entry to send

	inflight      []inflight // entries sent and not acknowledged, in order; replicate only
	inflightBytes int
	probeSent     bool          // probe only: one is under way
	resendAt      time.Duration // when what is under way counts as lost
	pausedUntil   time.Duration // the follower was busy
	pace          pacing

	resetRequest uint64   // replies to requests up to this one answer what is no longer believed
	sentCommit   Index    // the newest commit index that the follower was told
	load         uint64   // the Load under way for this follower; 0: none
	transfer     uint64   // the SnapshotTransfer under way; 0: none
	snapshot     Index    // its last included index
	remembered   Index    // what the process before this one had acknowledged; 0: this one has shown that it has it, or the loss is known
	lost         *LostLog // what has been found missing; nil: nothing

	catchUp    Index         // where our log ended when a snapshot had reached the follower: up to here it goes on with entries
	advancedAt time.Duration // when matchIndex, or the snapshot, advanced last
}

// inflight is one AppendEntries under way.
type inflight struct {
	last  Index
	bytes int
}

// becomeLeader begins a term of office. nextIndex starts behind our last entry, matchIndex at 0 (Figure 2), and a no-op is
// appended at once: only an entry of our own term can be committed by counting, and until then we do not know what is committed
// (§5.4.2, §8).
func (c *Core) becomeLeader() {
	assertf(c, c.role == Candidate, "a %v becomes leader", c.role)
	c.role, c.leader, c.suspected = Leader, c.id, false
	for i := range c.peers {
		p := &c.peers[i]
		p.progress = progress{nextIndex: c.log.last + 1}
		p.lastHeard, p.ackedRound = c.now, c.round
		p.progress.resetRequest = c.nextRequest
	}
	c.confirmedRound = c.round
	c.heartbeatDeadline = c.now + c.cfg.HeartbeatInterval
	c.announce(ReasonElected)
	c.countUncommitted()
	if len(c.log.gaps) > 0 {
		c.beginRecovery()
		return
	}
	c.openTerm()
}

// openTerm appends the first entry of the term.
func (c *Core) openTerm() {
	for i := range c.peers {
		p := &c.peers[i]
		p.nextIndex, p.resetRequest = c.log.last+1, c.nextRequest
	}
	c.termStart = c.log.last + 1
	c.appendOwn(newEntry(EntryNoOp, nil))
}

// countUncommitted counts the bytes in memory that a new leader finds uncommitted.
func (c *Core) countUncommitted() {
	c.uncommittedBytes = 0
	if lo := max(c.commitIndex+1, c.log.tailFirst()); lo <= c.log.last {
		c.uncommittedBytes = c.log.size(lo, c.log.last+1)
	}
}

// appendOwn stamps entries with the next places in the log and appends them. A leader only ever appends (§5.3: Leader Append-Only).
func (c *Core) appendOwn(es ...Entry) {
	for i := range es {
		es[i].stamp(EntryID{Term: c.currentTerm, Index: c.log.last + 1 + Index(i)})
		c.uncommittedBytes += es[i].Size()
		c.appendedBytes += uint64(es[i].Size())
	}
	c.log.append(es)
}

// Propose appends entries made by [NewCommand], [NewCommands] or [NewBarrier] to the leader's log and takes them over, with the
// slice that they lie in if there are many. It accepts the first n; the first of them is called first, the others follow it by index.
// err says why the rest was refused: a *NotLeaderError, ErrTransferring, ErrStorageFull or ErrOverloaded. What was refused has no
// effect.
func (c *Core) Propose(now time.Duration, entries []Entry) (first EntryID, n int, err error) {
	c.advanceClock(now)
	switch {
	case c.role != Leader:
		return EntryID{}, 0, c.notLeader()
	case c.repair.recovering:
		return EntryID{}, 0, &NotLeaderError{Term: c.currentTerm} // elected, and perhaps not for long
	case c.holdsProposals():
		return EntryID{}, 0, ErrTransferring
	case c.storage == StorageFull:
		return EntryID{}, 0, ErrStorageFull
	}
	room := c.cfg.MaxUncommittedBytes - c.uncommittedBytes
	for n < len(entries) {
		room -= entries[n].Size()
		if room < 0 && c.uncommittedBytes+n > 0 {
			err = ErrOverloaded
			break
		}
		n++ // a single entry larger than all the room is taken when nothing else waits
	}
	first = EntryID{Term: c.currentTerm, Index: c.log.last + 1}
	c.appendOwn(entries[:n]...)
	return first, n, err
}

// tickLeader does what is due on a leader.
func (c *Core) tickLeader() {
	switch {
	case !c.cfg.DisableCheckQuorum && c.now >= c.quorumHeard()+c.cfg.ElectionTimeout:
		// A leader that nobody hears must not go on believing in itself (dissertation §6.2).
		c.becomeFollower(c.currentTerm, ReasonNoQuorum)
		return
	case c.log.diskStuck(c.now, c.cfg.DiskDeadline):
		// Heartbeats would go on for ever over a disk that does nothing, and hide it.
		c.handOver(ReasonSlowDisk)
		return
	case c.repair.recovering && c.now >= c.repair.until:
		c.giveUpRecovery()
		return
	case c.transferee != "" && c.now >= c.transferDeadline:
		c.endTransfer(ErrTransferFailed)
	}
	if c.now < c.heartbeatDeadline {
		return
	}
	if len(c.log.gaps) > 0 && !c.repair.recovering {
		if c.leadWithDamage(); c.role != Leader {
			return
		}
	}
	c.heartbeatDeadline = c.now + c.cfg.HeartbeatInterval
	c.timeoutNowSent = false // it may have been lost
	c.dropLingering()
	if c.roundWanted {
		c.roundWanted = false
		c.round++ // the round before may have been lost: do not wait for it any longer
	}
	for i := range c.peers {
		p := &c.peers[i]
		if p.server.ID == c.id {
			continue
		}
		switch {
		case c.now < p.resendAt:
		case p.probeSent:
			p.probeSent = false // ask once more; an answer to the first is welcome still, or a slow link would never agree
		case p.state == stateReplicate && p.matchIndex+1 < p.nextIndex:
			c.probe(p) // lost, or, if nothing is in flight, not durable there when the follower was last asked
		}
		c.sendHeartbeat(p)
	}
	c.recordReplicas()
	c.advanceRound()
}

func (c *Core) leaderDeadline() time.Duration {
	d := c.heartbeatDeadline
	if !c.cfg.DisableCheckQuorum {
		d = min(d, c.quorumHeard()+c.cfg.ElectionTimeout)
	}
	if len(c.log.flights) > 0 {
		d = min(d, c.log.flights[0].begunAt+c.cfg.DiskDeadline)
	}
	if c.transferee != "" {
		d = min(d, c.transferDeadline)
	}
	if c.lacks() {
		d = min(d, c.repair.at)
	}
	if c.repair.recovering {
		d = min(d, c.repair.until)
	}
	for i := range c.peers {
		if until := c.paceUntil(&c.peers[i]); until > c.now {
			d = min(d, until)
		}
	}
	return max(d, c.now+1)
}

// quorumHeard is the latest time by which a quorum was last heard.
func (c *Core) quorumHeard() time.Duration {
	return time.Duration(c.quorumValue(func(p *peer) uint64 {
		if p.server.ID == c.id {
			return uint64(c.now)
		}
		return uint64(p.lastHeard)
	}))
}

// replicate sends every follower what it lacks.
func (c *Core) replicate() {
	if c.repair.recovering {
		return
	}
	c.advanceTransfer()
	for i := range c.peers {
		if p := &c.peers[i]; p.server.ID != c.id {
			c.sendAppends(p)
			c.sendCommit(p)
		}
	}
}

// sendAppends sends as many AppendEntries as the follower's state and the bounds on what is in flight allow (§5.3).
func (c *Core) sendAppends(p *peer) {
	for c.now >= max(p.pausedUntil, c.paceUntil(p)) && p.load == 0 {
		switch p.state {
		case stateProbe:
			if p.probeSent {
				return
			}
		case stateReplicate:
			if p.nextIndex > c.log.last || len(p.inflight) >= c.cfg.MaxInflightMessages || p.inflightBytes >= c.cfg.MaxInflightBytes {
				return
			}
		case stateSnapshot:
			return
		}
		prevLogTerm, ok := c.log.term(p.nextIndex - 1)
		if !ok {
			c.startSnapshot(p)
			return
		}
		room := min(c.cfg.MaxBatchBytes, c.cfg.MaxInflightBytes-p.inflightBytes)
		es, size, ok := c.log.slice(p.nextIndex, c.log.last+1, c.batch(p, room))
		if !ok {
			hi := c.log.readable(p.nextIndex, c.log.tailFirst())
			if hi == p.nextIndex {
				c.cannotLoad(p)
				return
			}
			c.nextLoad++
			p.load = c.nextLoad
			c.beginPace(p)
			c.out.Loads = append(c.out.Loads, Load{ID: p.load, Peer: p.server.ID, Lo: p.nextIndex, Hi: hi, MaxBytes: c.batch(p, room)})
			return
		}
		if len(p.inflight) > 0 && size > room {
			return // a single entry larger than the room left
		}
		c.sendEntries(p, prevLogTerm, es, size)
	}
}

// sendEntries sends one AppendEntries that begins at nextIndex.
func (c *Core) sendEntries(p *peer, prevLogTerm Term, es []Entry, size int) {
	prev := p.nextIndex - 1
	lastNew := prev + Index(len(es))
	c.sendNow(p.server.ID, c.currentTerm, c.request(), AppendEntries{
		PrevLogIndex: prev, PrevLogTerm: prevLogTerm, LeaderCommit: c.commitIndex, Round: c.round, Entries: es,
	})
	p.sentCommit = max(p.sentCommit, min(c.commitIndex, lastNew))
	if p.state == stateProbe {
		p.probeSent, p.resendAt = true, c.now+c.cfg.HeartbeatInterval
		return
	}
	if len(p.inflight) == 0 {
		p.resendAt = c.now + c.resendAfter()
	}
	p.inflight = append(p.inflight, inflight{last: lastNew, bytes: size})
	p.inflightBytes += size
	p.nextIndex = lastNew + 1
	c.paceSent(p, size)
}

// resendAfter is how long a pipeline may show no progress before what is in flight counts as lost. A lost message usually shows
// earlier, by the rejection of the next; this is for the last one.
func (c *Core) resendAfter() time.Duration {
	return max(2*c.cfg.HeartbeatInterval, c.cfg.ElectionTimeout/2)
}

// sendCommit tells a follower at once what is newly committed, if no entries are on their way that would tell it. A follower whose
// matchIndex is compacted here cannot be told (see sendHeartbeat): trying would repeat itself with every reply.
func (c *Core) sendCommit(p *peer) {
	if min(c.commitIndex, p.matchIndex) > p.sentCommit && p.matchIndex >= c.log.base.Index && p.state != stateSnapshot {
		c.sendHeartbeat(p)
	}
}

// sendHeartbeat sends an AppendEntries without entries. It travels on the control lane and may overtake entries, so it speaks of
// nothing that the follower has not acknowledged: were prevLogIndex our last entry, a follower that is merely behind would
// reject it, and were leaderCommit higher, it could commit an entry of its own that differs from ours.
func (c *Core) sendHeartbeat(p *peer) {
	prev := p.matchIndex
	prevLogTerm, ok := c.log.term(prev)
	if !ok {
		prev, prevLogTerm = 0, 0 // compacted here; index 0 matches everywhere
	}
	commit := min(c.commitIndex, prev)
	p.sentCommit = max(p.sentCommit, commit)
	c.sendNow(p.server.ID, c.currentTerm, c.request(), AppendEntries{
		PrevLogIndex: prev, PrevLogTerm: prevLogTerm, LeaderCommit: commit, Round: c.round,
	})
}

// handleAppendEntries is the receiver's half of the AppendEntries RPC (§5.3, Figure 2).
func (c *Core) handleAppendEntries(h Header, req AppendEntries) {
	if h.Term < c.currentTerm {
		// Rule 1: a deposed leader; our term tells it so. Nothing else of the request is echoed: its sender may lead our term by
		// now, and as another process, which counts its rounds from the start again. It would take this for the answer to a round
		// that it begins later, and serve a stale read.
		c.send(h.From, c.currentTerm, h.Request, AppendEntriesReply{})
		return
	}
	reply := AppendEntriesReply{PrevLogIndex: req.PrevLogIndex, Round: req.Round}
	if c.leader != "" && c.leader != h.From { // a second leader in our term: a peer can claim it alone, so it is refused (§5.2)
		c.refuse(h.From, SecondLeader)
		return
	}
	if t, ok := c.log.term(req.PrevLogIndex); ok && req.PrevLogIndex <= c.commitIndex && t != req.PrevLogTerm {
		c.refuse(h.From, CommittedConflict)
		return
	}
	c.followLeader(h.From)

	if !c.matches(EntryID{Term: req.PrevLogTerm, Index: req.PrevLogIndex}) { // rule 2
		hint := c.log.lastWithTermUpTo(req.PrevLogIndex, req.PrevLogTerm)
		reply.HintIndex, reply.HintTerm = hint.Index, hint.Term
		c.send(h.From, c.currentTerm, h.Request, reply)
		return
	}
	if len(req.Entries) > 0 && !c.roomFor(req.Entries) {
		reply.Busy = true
		c.send(h.From, c.currentTerm, h.Request, reply)
		return
	}
	if !c.merge(h.From, req.Entries) { // rules 3 and 4
		return
	}
	// Rule 5. The bound is the last entry of this request, not the end of our log: beyond lastNew may lie a stale suffix that this
	// leader has not overwritten yet.
	lastNew := req.PrevLogIndex + Index(len(req.Entries))
	c.commitTo(min(req.LeaderCommit, lastNew))

	if c.lacks() {
		c.noteMatched(lastNew)
		c.tryLiftFence()
	}
	lastNew = max(lastNew, c.knownMatch()) // what could not be acknowledged before
	reply.Success, reply.MatchIndex = true, c.claim(lastNew)
	if len(req.Entries) == 0 && c.durable.CurrentTerm == c.currentTerm {
		// A heartbeat is answered at once, however slow the disk: so it claims no more than what is durable already.
		reply.MatchIndex = min(lastNew, c.log.durable)
		c.sendNow(h.From, c.currentTerm, h.Request, reply)
		return
	}
	c.send(h.From, c.currentTerm, h.Request, reply)
}

// followLeader acknowledges a leader of our term: candidates return to follower state (§5.2), and the election timer restarts.
func (c *Core) followLeader(leader NodeID) {
	if c.role != Follower {
		c.becomeFollower(c.currentTerm, ReasonLostElection)
	}
	c.lastLeaderContact, c.suspected, c.overslept = c.now, false, false
	c.resetElectionTimer()
	if c.leader != leader {
		c.leader = leader
		c.announce(ReasonLeaderFound)
	}
}

// matches reports whether our log holds that entry. What is committed here is in every later leader's log (Leader Completeness),
// so it needs no comparison; its term may be compacted.
func (c *Core) matches(id EntryID) bool {
	return id.Index <= c.commitIndex || c.log.contains(id)
}

// roomFor reports whether a follower can take entries now. A full disk still takes what an election or a change of membership
// needs; memory is bounded by what is not durable yet.
func (c *Core) roomFor(es []Entry) bool {
	if c.log.tailBytes > c.cfg.MaxTailBytes+c.cfg.MaxUncommittedBytes {
		return false
	}
	if c.storage != StorageFull {
		return true
	}
	k, _ := c.log.firstConflict(es)
	for ; k < len(es); k++ {
		if es[k].Type != EntryNoOp && es[k].Type != EntryConfiguration {
			return false
		}
	}
	return true
}

// merge brings the entries of an AppendEntries into the log: "if an existing entry conflicts with a new one (same index but
// different terms), delete the existing entry and all that follow it; append any new entries not already in the log" (Figure 2,
// rules 3 and 4). Entries that are held already are left alone: a delayed request must not cut off what came after it.
func (c *Core) merge(from NodeID, es []Entry) bool {
	k, conflict := c.log.firstConflict(es)
	fresh := es[k:]
	if len(c.log.gaps) > 0 {
		if _, err := configurationsIn(es[:k]); err != nil {
			c.refuse(from, UndecodableConfiguration)
			return false
		}
		c.fillGaps(from, es[:k])
	}
	if len(fresh) == 0 {
		return true
	}
	before, _ := c.log.term(fresh[0].Index - 1)
	if fresh[0].Index <= c.commitIndex || fresh[0].Term < before {
		c.refuse(from, CommittedConflict) // a leader's log holds what is committed, so this is none
		return false
	}
	configurations, err := configurationsIn(fresh)
	if err != nil {
		c.refuse(from, UndecodableConfiguration)
		return false
	}
	if conflict {
		c.log.truncate(fresh[0].Index)
		c.rollBackConfigurations(fresh[0].Index)
	}
	c.log.append(fresh)
	for i := range configurations {
		c.adoptConfiguration(configurations[i])
	}
	return true
}

// handleAppendEntriesReply is the leader's half of the AppendEntries RPC (§5.3, Figure 2).
func (c *Core) handleAppendEntriesReply(h Header, rep AppendEntriesReply) {
	if c.role != Leader || h.Term < c.currentTerm {
		return
	}
	p := c.peer(h.From)
	if p == nil || !c.counted(p) {
		return
	}
	if rep == (AppendEntriesReply{}) {
		return // to a request of an earlier term, which only said that we had fallen behind: nobody rejects index 0
	}
	if rep.MatchIndex > c.log.last || rep.Round > c.round || h.Request > c.nextRequest {
		c.refuse(h.From, ImpossibleReply) // it would be a second leader's log, or a liar's
		return
	}
	p.lastHeard = c.now
	if rep.Round > p.ackedRound {
		p.ackedRound = rep.Round
		c.advanceRound()
	}
	switch {
	case rep.Busy:
		c.probe(p)
		p.pausedUntil = c.now + c.cfg.HeartbeatInterval
	case rep.Success:
		c.acknowledged(p, h.Request, rep)
	default:
		c.rejected(p, h.Request, rep)
	}
}

// acknowledged takes note that a follower's log equals ours up to matchIndex, durably.
func (c *Core) acknowledged(p *peer, request uint64, rep AppendEntriesReply) {
	fresh := request > p.resetRequest
	if p.remembered > 0 {
		c.compareWithRemembered(p, rep)
	}
	if rep.MatchIndex > p.matchIndex {
		p.matchIndex = rep.MatchIndex
		p.nextIndex = max(p.nextIndex, p.matchIndex+1)
		p.resendAt, p.advancedAt = c.now+c.resendAfter(), c.now
	}
	n := 0
	for n < len(p.inflight) && p.inflight[n].last <= p.matchIndex {
		p.inflightBytes -= p.inflight[n].bytes
		n++
	}
	p.inflight = append(p.inflight[:0], p.inflight[n:]...)

	switch p.state {
	case stateProbe:
		// Only an answer to a probe tells where the logs agree; a heartbeat asks about matchIndex, which is known.
		if p.matchIndex+1 == p.nextIndex || fresh && rep.PrevLogIndex+1 == p.nextIndex {
			p.state, p.probeSent = stateReplicate, false
		}
	case stateSnapshot:
		if p.matchIndex >= p.snapshot {
			c.endSnapshot(p) // it got there by itself, or its reply to the snapshot was overtaken
		}
	}
	c.advanceCommit()
}

// rejected moves nextIndex back to the last place where the logs can agree. A rejection counts only if it answers a request newer
// than the last reset, about a place that is still in question: a late one would undo what has been learned since.
func (c *Core) rejected(p *peer, request uint64, rep AppendEntriesReply) {
	if p.remembered > 0 {
		c.compareWithRemembered(p, rep)
	}
	if p.state == stateSnapshot || request <= p.resetRequest || rep.PrevLogIndex <= p.matchIndex || rep.PrevLogIndex >= p.nextIndex {
		return
	}
	agree := c.log.lastWithTermUpTo(min(rep.HintIndex, rep.PrevLogIndex-1), rep.HintTerm)
	c.probe(p)
	p.nextIndex = max(p.matchIndex+1, min(agree.Index+1, rep.PrevLogIndex))
}

// probe forgets what is in flight to a follower, and asks again where its log stands. What it acknowledged stays valid.
func (c *Core) probe(p *peer) {
	if p.state == stateSnapshot || p.server.ID == c.id {
		return
	}
	if p.state == stateReplicate {
		p.nextIndex = p.matchIndex + 1
	}
	p.state, p.probeSent, p.load = stateProbe, false, 0
	p.inflight, p.inflightBytes = p.inflight[:0], 0
	p.resetRequest = c.nextRequest
}

// resetProgress forgets everything about a follower, because another process answers in its place.
func (c *Core) resetProgress(p *peer) {
	p.progress = progress{nextIndex: c.log.last + 1, resetRequest: c.nextRequest}
	p.ackedRound = 0
}

// advanceCommit applies the commit rule: "if there exists an N such that N > commitIndex, a majority of matchIndex[i] >= N, and
// log[N].term == currentTerm: set commitIndex = N" (Figure 2). The leader itself is counted by what is durable here.
func (c *Core) advanceCommit() {
	if c.commitIndex == c.log.last {
		return // most answers to heartbeats come when nothing waits
	}
	n := Index(c.quorumValue(func(p *peer) uint64 {
		if p.server.ID == c.id {
			return uint64(c.log.durable)
		}
		return uint64(p.matchIndex)
	}))
	if n <= c.commitIndex {
		return
	}
	// An entry of an earlier term on a majority is not committed yet: a server with a later last term could still win and
	// overwrite it (Figure 8). It is committed with the first entry of our own term behind it (§5.4.2).
	if t, ok := c.log.term(n); !ok || t != c.currentTerm {
		return
	}
	c.commitTo(n)
}

// Loaded delivers what a Load asked for: entries from Lo on, at least one.
func (c *Core) Loaded(now time.Duration, id uint64, entries []Entry) {
	c.advanceClock(now)
	if c.fetchLoaded(id, entries) {
		return
	}
	p := c.loading(id)
	if p == nil || len(entries) == 0 || entries[0].Index != p.nextIndex {
		return // the office, or what was believed of the follower, has changed meanwhile
	}
	prevLogTerm, ok := c.log.term(p.nextIndex - 1)
	if !ok {
		c.startSnapshot(p)
		return
	}
	c.sendEntries(p, prevLogTerm, entries, EntriesSize(entries))
}

// LoadFailed says that a Load cannot be answered. Either way a snapshot can take the place of the entries, if it includes them. If
// not, they are damaged here: the follower waits for a later snapshot or another leader, and we do not ask the disk without a pause.
func (c *Core) LoadFailed(now time.Duration, id uint64, why LoadFailure) {
	c.advanceClock(now)
	if c.fetchLoaded(id, nil) {
		return
	}
	if p := c.loading(id); p != nil {
		c.cannotLoad(p)
	}
}

// cannotLoad does without entries that cannot be read.
func (c *Core) cannotLoad(p *peer) {
	if c.snapshot.Index < p.nextIndex {
		p.pausedUntil = c.now + c.cfg.ElectionTimeout
		return
	}
	c.startSnapshot(p)
}

// loading finds the follower for whom a Load was asked, and ends it.
func (c *Core) loading(id uint64) *peer {
	if c.role != Leader {
		return nil
	}
	for i := range c.peers {
		if p := &c.peers[i]; p.load == id && id != 0 {
			p.load = 0
			return p
		}
	}
	return nil
}
