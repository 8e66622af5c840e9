package raft

import (
	"cmp"
	"slices"
	"time"
)

// A server that cannot read a part of its log any more keeps taking part: it compares logs by identities, acknowledges nothing from the
// first gap on, and asks the others for exactly the entries that it lacks. Anybody can answer, in any role, because an entry of the same
// term and index is the same everywhere. The rules are those of "Protocol-Aware Recovery for Consensus-Based Storage" (FAST'18, §3.4),
// put so that the guarantees hold without a special state of the cluster; see docs/adr/0004.

// repair is what a server knows about what it asks for.
type repair struct {
	at   time.Duration // when the others are asked next
	turn int           // whose turn it is to be asked
	// A leader of whom nothing is known is not asked for another snapshot before.
	pause time.Duration

	// Requests before fresh were made when the log was another one: it has been cut since, for the cuts-th time.
	cuts  uint64
	fresh uint64

	// A leader that lacks entries, before it appends the first one of its term.
	recovering bool
	until      time.Duration // it steps down if it still lacks some by then

	// While anything is missing: the leader's log is known to equal ours up to here, in that term, whatever may be acknowledged of it.
	matched     Index
	matchedTerm Term

	fence     EntryID // nobody with an older log is voted for; see fence.go
	liftFence bool    // the next write lifts it
	goal      Index   // lifted once our log equals the leader's durably up to here; 0: not known
	goalTerm  Term    // of that leader
}

// peerRepair is what another server has said about what is missing here.
type peerRepair struct {
	asked    bool          // in this office, or since the start
	answered bool          // likewise
	how      Holding       // of the first missing entry
	pause    time.Duration // a server with a snapshot to send is not asked for another before
	lacks    []Stretch     // leaders: what it cannot acknowledge to any earlier leader, having entered our term
}

const (
	recoveryPatience = 4 // election timeouts that a leader takes to find what it lacks
	gapDelay         = 2 // election timeouts that a server with gaps waits longer than others before it campaigns
	snapshotPatience = 4 // election timeouts before a server is asked again for a snapshot
)

// lacks reports whether this server needs anything of the others.
func (c *Core) lacks() bool { return c.log.firstUnreadable() > 0 || c.repair.fence != (EntryID{}) }

// mayHideConfiguration reports whether the configuration in force may be one that cannot be read.
func (c *Core) mayHideConfiguration() bool {
	return c.log.lost.Last > 0 || slices.ContainsFunc(c.log.gaps, func(g gap) bool { return g.MayConfigure })
}

// coverGaps gives up the part of the log that a snapshot covers, as far as there are gaps in it: what is in them is not needed any more.
func (c *Core) coverGaps() {
	to := Index(0)
	for k := range c.log.gaps {
		if g := &c.log.gaps[k]; g.First <= c.snapshot.Index {
			to = min(g.Last, c.snapshot.Index)
		}
	}
	if to > c.log.base.Index {
		c.log.compact(to)
		c.covered = max(c.covered, to)
		c.out.Compact = c.log.base.Index
	}
}

// Damaged says that entries which were written cannot be read any more. A leader hands over to a server that can read them, if there is
// one that follows it closely; otherwise it goes on for a while with what it has in memory, and serves and acknowledges nothing out of the
// gap.
func (c *Core) Damaged(now time.Duration, d Damage) {
	c.advanceClock(now)
	d.MayConfigure = false // all configurations in the log were read when this process started
	if !c.log.damage(d) {
		return
	}
	// What is still in memory need not come from elsewhere.
	for lo := max(d.First, c.log.tailFirst()); lo <= min(d.Last, c.log.last); lo++ {
		if es, _, ok := c.log.slice(lo, lo+1, maxInt); ok {
			c.log.fill(es)
		}
	}
	c.withdrawPromises()
	c.coverGaps()
	c.out.Events = append(c.out.Events, DamageFound{Damage: d})
	if !c.log.missing() {
		return
	}
	c.repair.at = c.now
	switch c.role {
	case Leader:
		if !c.repair.recovering {
			c.repair.until = c.now + recoveryPatience*c.cfg.ElectionTimeout
			c.leadWithDamage()
		}
	case Candidate, PreCandidate:
		c.becomeFollower(c.currentTerm, ReasonDamage)
	}
}

// leadWithDamage hands over to a server that holds all that is committed: it can win, for what is behind that is ours alone, or on its
// way. If there is none for long, we step down all the same: entries of earlier terms that nobody else has can only be ruled out at the
// beginning of another. A single voter stays, because nobody else could ever lead; a snapshot of its own is its only cure.
func (c *Core) leadWithDamage() {
	if !c.log.missing() || c.quorum(func(p *peer) bool { return p.server.ID == c.id }) {
		return
	}
	switch p := c.mostUpToDate(); {
	case p != nil && p.matchIndex >= c.commitIndex:
		c.handOver(ReasonDamage)
	case c.now >= c.repair.until:
		c.becomeFollower(c.currentTerm, ReasonDamage)
	}
}

// withdrawPromises drops the acknowledgements that wait for the disk and speak of what has been found damaged meanwhile.
func (c *Core) withdrawPromises() {
	c.deferred = slices.DeleteFunc(c.deferred, func(d deferredMessage) bool {
		switch b := d.m.Body.(type) {
		case AppendEntriesReply:
			return b.Success && c.claim(b.MatchIndex) < b.MatchIndex
		case InstallSnapshotReply:
			return c.claim(b.MatchIndex) < b.MatchIndex
		default:
			return false
		}
	})
}

// claim lowers an index up to which the log will be durable, so that it stays in front of the first gap (SAFETY inv 11, 22).
func (c *Core) claim(upTo Index) Index {
	if first := c.log.firstUnreadable(); first > 0 {
		return min(upTo, first-1)
	}
	return upTo
}

// noteMatched remembers how far our log equals the leader's, where less may be acknowledged.
func (c *Core) noteMatched(upTo Index) {
	r := &c.repair
	if r.matchedTerm != c.currentTerm {
		r.matched, r.matchedTerm = 0, c.currentTerm
	}
	r.matched = max(r.matched, upTo)
}

// knownMatch is what noteMatched has noted of the present leader.
func (c *Core) knownMatch() Index {
	if c.repair.matchedTerm != c.currentTerm {
		return 0
	}
	return min(c.repair.matched, c.log.last)
}

// tickRepair asks the others for what is missing, when it is time.
func (c *Core) tickRepair() {
	if c.lacks() && c.now >= c.repair.at {
		c.askForRepair()
	}
}

// askForRepair asks one server, or, on a leader that cannot go on without, all of them. A server that does not lead asks its leader and
// the others in turns: the leader has what is committed, but perhaps not what is not, and there may be none.
func (c *Core) askForRepair() {
	c.repair.at = c.now + c.cfg.HeartbeatInterval
	if c.repair.recovering {
		for i := range c.peers {
			if p := &c.peers[i]; p.server.ID != c.id && p.member {
				c.ask(p.server.ID)
			}
		}
		return
	}
	c.repair.turn++
	if c.leader != "" && c.leader != c.id && c.repair.turn%2 == 0 {
		c.ask(c.leader)
		return
	}
	n := len(c.peers)
	for k := range n {
		p := &c.peers[(c.repair.turn/2+k)%n]
		if p.server.ID != c.id && p.member {
			c.ask(p.server.ID)
			return
		}
	}
}

// ask sends one server a list of what is missing. The message waits for the disk, as everything that tells our term.
func (c *Core) ask(id NodeID) {
	wanted := c.log.missingStretches(MaxFetchStretches)
	if len(wanted) == 0 && c.repair.fence == (EntryID{}) && c.log.lost.Last == 0 {
		return
	}
	if c.repair.cuts != c.log.cuts {
		c.repair.cuts, c.repair.fresh = c.log.cuts, c.nextRequest+1
	}
	req := FetchEntries{Wanted: wanted}
	if p := c.peer(id); p != nil {
		p.repair.asked = true
		if c.log.lost.Last > 0 && c.now >= p.repair.pause {
			p.repair.pause = c.now + snapshotPatience*c.cfg.ElectionTimeout
			req.Snapshot = c.log.lost.Last
		}
		if len(wanted) > 0 && p.repair.how == HoldsCompacted && c.now >= p.repair.pause {
			p.repair.pause = c.now + snapshotPatience*c.cfg.ElectionTimeout
			req.Snapshot = wanted[0].First
		}
	} else if c.log.lost.Last > 0 && c.now >= c.repair.pause { // the configuration is lost with the snapshot, and our leader a stranger
		c.repair.pause = c.now + snapshotPatience*c.cfg.ElectionTimeout
		req.Snapshot = c.log.lost.Last
	}
	c.send(id, c.currentTerm, c.request(), req)
}

// handleFetchEntriesReply takes what has been missing, and what is said about the rest.
func (c *Core) handleFetchEntriesReply(h Header, rep FetchEntriesReply) {
	if rep.Incarnation != c.incarnation {
		return // it was asked by a process before us, which may have had more
	}
	c.noteGoal(h, rep)
	p := c.peer(h.From)
	if p != nil && len(rep.Held) > 0 {
		p.repair.answered, p.repair.how = true, rep.Held[0].How
	}
	if p != nil && c.repair.recovering && h.Term == c.currentTerm && c.counted(p) {
		p.lastHeard = c.now
		c.noteLacks(p, rep.Held)
	}
	if len(rep.Entries) > 0 {
		c.takeRepairs(h, rep.Entries)
	}
	c.resolve()
}

// takeRepairs fills gaps with entries that another server had.
func (c *Core) takeRepairs(h Header, es []Entry) {
	from := h.From
	for i := range es {
		if t, ok := c.log.term(es[i].Index); ok && es[i].Index > c.log.base.Index && t != es[i].Term {
			if c.repair.cuts == c.log.cuts && h.Request >= c.repair.fresh {
				c.refuse(from, UnwantedEntry) // nobody is asked for another entry than the log held
			}
			return
		}
	}
	if _, err := configurationsIn(es); err != nil {
		c.refuse(from, UndecodableConfiguration)
		return
	}
	c.fillGaps(from, es)
	if c.log.missing() {
		c.ask(from) // it has more, perhaps
	}
}

// fillGaps fills gaps with entries whose configurations can be decoded.
func (c *Core) fillGaps(from NodeID, es []Entry) {
	filled := c.log.fill(es)
	if len(filled) == 0 {
		return // others were faster
	}
	configurations, err := configurationsIn(filled)
	assertf(c, err == nil, "gaps are filled with a configuration that cannot be decoded: %v", err)
	c.learnConfigurations(configurations)
	c.out.Events = append(c.out.Events, EntriesRepaired{First: filled[0].ID(), Last: filled[len(filled)-1].ID(), Count: len(filled), From: from})
}

// learnConfigurations puts configurations that could not be read where they belong.
func (c *Core) learnConfigurations(found []configurationAt) {
	learned := false
	for _, at := range found {
		k, known := slices.BinarySearchFunc(c.configurations, at.index, func(have configurationAt, i Index) int { return cmp.Compare(have.index, i) })
		if known || at.index <= c.snapshot.Index {
			continue
		}
		c.configurations = slices.Insert(slices.Clone(c.configurations), k, at)
		learned = true
	}
	if learned {
		c.configurationInForce()
		c.configurationCommitted()
	}
}

// beginRecovery is how a term of office begins at a server that lacks entries. It leads, so that nobody else disturbs, but it appends
// nothing, and sends nothing of its log: what it lacks may have to be cut off, and a follower that had acknowledged it, in this term,
// would be counted for what comes in its place.
func (c *Core) beginRecovery() {
	c.repair.recovering, c.repair.until = true, c.now+recoveryPatience*c.cfg.ElectionTimeout
	c.termStart = maxIndex // nothing of this term can be committed, and no read confirmed
	for i := range c.peers {
		c.peers[i].repair = peerRepair{}
	}
	c.askForRepair()
}

// noteLacks remembers what a follower has declared in our term that it does not have.
func (c *Core) noteLacks(p *peer, held []Held) {
	for _, h := range held {
		if h.UpTo >= h.Last || len(p.repair.lacks) >= 4*MaxFetchStretches {
			continue
		}
		lacking := Stretch{Term: h.Term, First: h.UpTo + 1, Last: h.Last}
		if !slices.Contains(p.repair.lacks, lacking) {
			p.repair.lacks = append(p.repair.lacks, lacking)
		}
	}
}

// resolve goes on with the office once nothing is missing, and cuts off what is proven uncommitted.
func (c *Core) resolve() {
	if !c.repair.recovering {
		return
	}
	if id, proven := c.firstUncommitted(); proven {
		assertf(c, id.Index > c.commitIndex, "entry %v is to be discarded, but %d is committed", id, c.commitIndex)
		last := c.log.lastID()
		c.log.truncate(id.Index)
		c.rollBackConfigurations(id.Index)
		c.countUncommitted()
		for i := range c.peers {
			p := &c.peers[i]
			p.nextIndex = min(p.nextIndex, c.log.last+1)
		}
		c.out.Events = append(c.out.Events, EntriesDiscarded{First: id, Last: last})
	}
	if len(c.log.gaps) == 0 {
		c.repair.recovering = false
		c.openTerm()
	}
}

// firstUncommitted finds the first missing entry that cannot have been committed, and never will be by a leader before us: enough voters
// have said, in our term, that they do not have it. They have left every earlier term, so no earlier leader gets their acknowledgement
// any more; had they given it before, they would have the entry. The others are all counted as if they had it, we and those that are
// damaged among them; as long as they could be a majority, the entry stays.
func (c *Core) firstUncommitted() (EntryID, bool) {
	for _, w := range c.log.missingStretches(maxInt) {
		candidates := []Index{w.First}
		for i := range c.peers {
			for _, l := range c.peers[i].repair.lacks {
				if l.Term == w.Term && l.First > w.First && l.First <= w.Last {
					candidates = append(candidates, l.First)
				}
			}
		}
		slices.Sort(candidates)
		for _, i := range candidates {
			if id := (EntryID{Term: w.Term, Index: i}); !c.mayBeCommitted(id) {
				return id, true
			}
		}
	}
	return EntryID{}, false
}

// mayBeCommitted reports whether those that may have acknowledged an entry could be a majority of any configuration that may have been
// in force then: from the newest that is known to be committed on, each half of a joint one for itself, because the new half is alone
// once the joint one is committed.
func (c *Core) mayBeCommitted(id EntryID) bool {
	has := func(s *Server) bool {
		p := c.peer(s.ID)
		return p == nil || !slices.ContainsFunc(p.repair.lacks, func(l Stretch) bool {
			return l.Term == id.Term && l.First <= id.Index && id.Index <= l.Last
		})
	}
	for k := len(c.configurations) - 1; k >= 0; k-- {
		conf := &c.configurations[k].conf
		if couldAgree(conf, (*Server).votesNew, has) || conf.Joint() && couldAgree(conf, (*Server).votesOld, has) {
			return true
		}
		if c.configurations[k].index <= c.commitIndex {
			break
		}
	}
	return false
}

func couldAgree(conf *Configuration, votes, has func(*Server) bool) bool {
	n, yes := 0, 0
	for i := range conf.Servers {
		if s := &conf.Servers[i]; votes(s) {
			n++
			if has(s) {
				yes++
			}
		}
	}
	return yes > n/2
}

// giveUpRecovery lets others try to lead, and says what could not be found.
func (c *Core) giveUpRecovery() {
	if wanted := c.log.missingStretches(1); len(wanted) > 0 {
		c.out.Events = append(c.out.Events, RecoveryStuck{Entry: EntryID{Term: wanted[0].Term, Index: wanted[0].First}, Asked: c.asked()})
	}
	c.becomeFollower(c.currentTerm, ReasonDamage)
}

// asked lists what the other voters have said about the first missing entry.
func (c *Core) asked() []Asked {
	var all []Asked
	for i := range c.peers {
		p := &c.peers[i]
		if p.server.ID == c.id || !p.member || !p.repair.asked {
			continue
		}
		a := Asked{Server: p.server.ID, Answer: "no answer"}
		if p.repair.answered {
			a.Answer = p.repair.how.String()
		}
		all = append(all, a)
	}
	return all
}

// stopRecovery ends what only a leader that lacks entries does.
func (c *Core) stopRecovery() {
	c.repair.recovering = false
	for i := range c.peers {
		c.peers[i].repair.lacks = nil
	}
}

// repairBySnapshot takes in a snapshot that covers gaps. What follows in the log stays where the log holds the snapshot's last entry.
func (c *Core) repairBySnapshot(meta SnapshotMeta) {
	c.commitTo(meta.Index)
	c.log.rebase(meta)
	c.snapshot = meta
	c.committedConfig = max(c.committedConfig, meta.ConfigurationIndex)
	for len(c.configurations) > 0 && c.configurations[0].index <= meta.Index {
		c.configurations = c.configurations[1:]
	}
	c.configurations = append([]configurationAt{{meta.ConfigurationIndex, meta.Configuration.Clone()}}, c.configurations...)
	c.configurationInForce()
	if c.lastApplied < meta.Index {
		c.takeBack(meta.Index) // the state machine may have been unable to read what is behind it
		c.out.Apply = append(c.out.Apply, Apply{Restore: &meta, Lo: meta.Index + 1, Hi: meta.Index + 1})
	}
}

// takeBack has everything behind index handed out again. What was handed out of it does not count any more: the state machine skips it up
// to the snapshot, and would never report it, so that there would be no room for it to come again.
func (c *Core) takeBack(index Index) {
	n := 0
	for n < len(c.unapplied) && c.unapplied[n].hi <= index+1 {
		n++
	}
	for _, u := range c.unapplied[n:] {
		c.unappliedBy -= u.bytes
	}
	c.unapplied = c.unapplied[:n]
	c.handedOut = index
}

// coversGaps reports whether a snapshot would take the place of entries that cannot be read here. If the log begins behind a snapshot
// that is lost, one that reaches beyond its end does, too: what the log holds is committed with it, or never was.
func (c *Core) coversGaps(meta *SnapshotMeta) bool {
	if c.log.lost.Last > 0 {
		return meta.Index >= c.log.lost.Last && (c.log.contains(meta.ID()) || meta.Index > c.log.last)
	}
	return len(c.log.gaps) > 0 && meta.Index >= c.log.gaps[0].First && c.log.contains(meta.ID())
}

// handleRepairSnapshot takes a snapshot from a server that claims no leadership. It holds what is committed; it is taken only where our
// log leads to the same entry, because then nothing else is decided by it, or where nothing is left of our log behind it.
func (c *Core) handleRepairSnapshot(h Header, meta SnapshotMeta) {
	if h.Term == c.currentTerm && c.coversGaps(&meta) {
		if c.log.contains(meta.ID()) {
			c.repairBySnapshot(meta)
		} else {
			c.installSnapshot(meta)
		}
		c.resolve()
	}
	c.send(h.From, c.currentTerm, h.Request, InstallSnapshotReply{}) // it was asked for, so nothing is acknowledged by it
}

// compareWithRemembered raises the alarm if a follower that was started again has less than the process before it had acknowledged. An
// answer counts for that if it speaks of what was acknowledged, or of what lies behind.
func (c *Core) compareWithRemembered(p *peer, rep AppendEntriesReply) {
	asked := min(rep.PrevLogIndex, p.remembered)
	has := rep.HintIndex
	if rep.Success {
		has = max(rep.MatchIndex, rep.HintIndex)
	}
	switch {
	case has < asked:
		p.lost = &LostLog{Peer: p.server.ID, Remembered: p.remembered, Has: has}
		c.out.Events = append(c.out.Events, *p.lost)
		p.remembered = 0
	case has >= p.remembered:
		p.remembered = 0
	}
}
