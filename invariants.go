package raft

import (
	"errors"
	"fmt"
)

// assertf panics with an *InvariantError if this library broke a promise of its own. It is always on: one stopped node is cheaper
// than a wrong answer. What a peer or a disk can cause alone is never asserted, but refused where it enters.
func assertf(c *Core, ok bool, format string, args ...any) {
	if !ok {
		brokenf(c, format, args...)
	}
}

// brokenf is the other half of assertf, for places that every command passes: there the arguments are not even gathered unless the
// promise is broken.
func brokenf(c *Core, format string, args ...any) {
	panic(&InvariantError{Broken: fmt.Sprintf(format, args...), State: c.String()})
}

// panicf is brokenf for the log, which does not know the core around it.
func panicf(format string, args ...any) {
	panic(&InvariantError{Broken: fmt.Sprintf(format, args...)})
}

// String prints the state in one line, for traces and for the report of a broken invariant.
func (c *Core) String() string {
	return fmt.Sprintf("%s %v term %d vote %q leader %q log (%v, %d] durable %d commit %d handed out %d applied %d configuration %d writes %d/%d",
		c.id, c.role, c.currentTerm, c.votedFor, c.leader, c.log.base, c.log.last, c.log.durable, c.commitIndex, c.handedOut,
		c.lastApplied, c.configurationIndex(), c.log.persistedSeq, c.log.issuedSeq)
}

// Check looks for contradictions within one state. It costs time in proportion to the entries in memory, so it is for simulators
// and tests. nil: none found.
func (c *Core) Check() error {
	var broken []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			broken = append(broken, fmt.Errorf(format, args...))
		}
	}
	l := &c.log

	// SAFETY inv 8, 9: what is applied is committed, what is committed exists.
	check(c.lastApplied <= c.handedOut && c.handedOut <= c.commitIndex && c.commitIndex <= l.last,
		"applied %d, handed out %d, committed %d, last %d are out of order", c.lastApplied, c.handedOut, c.commitIndex, l.last)
	check(l.durable <= l.stored && l.stored <= l.issued && l.issued <= l.last,
		"durable %d, stored %d, issued %d, last %d are out of order", l.durable, l.stored, l.issued, l.last)
	// SAFETY inv 22: nothing from the first gap on counts as durable.
	previousGap := l.base.Index
	for k := range l.gaps {
		g := &l.gaps[k]
		check(previousGap < g.First && g.First <= g.Last && g.Last <= l.last, "gap %d-%d does not follow %d in a log that ends at %d", g.First, g.Last, previousGap, l.last)
		check(l.durable < g.First, "entries up to %d count as durable, but %d cannot be read", l.durable, g.First)
		check(g.fill == nil || len(g.fill) == int(g.Last-g.First+1), "gap %d-%d is filled with %d entries", g.First, g.Last, len(g.fill))
		for i := range g.fill {
			t, _ := l.term(g.fill[i].Index)
			check(g.fill[i].Index == g.First+Index(i) && g.fill[i].Term == t, "entry %v fills a gap of term %d", g.fill[i].ID(), t)
		}
		previousGap = g.Last
	}
	check(!c.repair.recovering || c.role == Leader, "a %v recovers as a leader does", c.role)
	check(l.persistedSeq <= l.issuedSeq, "write %d is persisted but only %d issued", l.persistedSeq, l.issuedSeq)
	// SAFETY inv 20: no gap between snapshot and log.
	check(l.base.Index <= c.snapshot.Index || l.lost.Last == l.base.Index && l.durable < l.lost.First, "the log begins behind %v but the snapshot ends at %d", l.base, c.snapshot.Index)

	// The log in memory: consecutive, terms rising, the run-length index in agreement, accounted for by bytes.
	bytes := 0
	for i := range l.tail.len {
		e := l.tail.at(i)
		t, ok := l.term(e.Index)
		check(e.Index == l.tailFirst()+Index(i) && ok && t == e.Term, "entry %v in memory at place %d disagrees with the index of terms", e.ID(), i)
		bytes += e.Size()
	}
	check(bytes == l.tailBytes, "the tail has %d bytes, counted %d", bytes, l.tailBytes)
	check(l.issued+1 >= l.tailFirst(), "entries behind %d are to be written, but memory begins at %d", l.issued, l.tailFirst())
	previous := TermStart{Index: l.base.Index, Term: 0}
	for k, run := range l.terms {
		check(run.Index > previous.Index && run.Index <= l.last && run.Term > previous.Term && run.Term >= l.base.Term,
			"run %d of the index of terms, %v, does not follow %v", k, run, previous)
		previous = run
	}
	check(len(l.terms) > 0 == (l.last > l.base.Index), "%d runs of terms for the entries (%d, %d]", len(l.terms), l.base.Index, l.last)
	lastTerm := l.lastID().Term
	check(lastTerm <= c.currentTerm, "the log ends in term %d, later than the current term %d", lastTerm, c.currentTerm)

	// SAFETY inv 17: at most one configuration is uncommitted, as far as a leader knows what is committed.
	uncommitted := 0
	for k := range c.configurations {
		if c.configurations[k].index > c.commitIndex {
			uncommitted++
		}
		check(k == 0 || c.configurations[k-1].index < c.configurations[k].index, "configurations are out of order")
		check(c.configurations[k].index <= l.last, "a configuration of index %d is in force, the log ends at %d", c.configurations[k].index, l.last)
	}
	if c.role == Leader {
		check(uncommitted <= 1 || c.commitIndex < c.termStart, "%d configurations are uncommitted", uncommitted)
		check(c.leader == c.id && c.votedFor == c.id, "a leader follows %q and voted for %q", c.leader, c.votedFor)
		check(c.durable == HardState{CurrentTerm: c.currentTerm, VotedFor: c.id}, "a leader's vote is not durable: %v", c.durable)
		t, _ := l.term(c.termStart)
		check(t == c.currentTerm || c.termStart <= l.base.Index || c.repair.recovering, "the no-op of term %d has term %d", c.currentTerm, t)
		uncommittedBytes := 0
		for i := range l.tail.len {
			if e := l.tail.at(i); e.Index > c.commitIndex {
				uncommittedBytes += e.Size()
			}
		}
		check(uncommittedBytes == c.uncommittedBytes, "%d bytes are uncommitted, counted %d", uncommittedBytes, c.uncommittedBytes)
		for i := range c.peers {
			p := &c.peers[i]
			if p.server.ID == c.id {
				continue
			}
			check(p.matchIndex < p.nextIndex && p.nextIndex <= l.last+1, "peer %q: match %d, next %d, last %d", p.server.ID, p.matchIndex, p.nextIndex, l.last)
			n := 0
			for _, f := range p.inflight {
				n += f.bytes
			}
			check(n == p.inflightBytes && len(p.inflight) <= c.cfg.MaxInflightMessages, "peer %q: %d messages, %d bytes in flight, counted %d",
				p.server.ID, len(p.inflight), n, p.inflightBytes)
			check(p.ackedRound <= c.round, "peer %q answered round %d of %d", p.server.ID, p.ackedRound, c.round)
		}
	} else {
		check(len(c.reads) == 0, "%d reads wait at a %v", len(c.reads), c.role)
		check(c.leader != c.id, "a %v believes that it leads", c.role)
		check(c.transferee == "", "a %v transfers leadership", c.role)
	}
	if c.role == Candidate {
		check(c.votedFor == c.id, "a candidate voted for %q", c.votedFor)
	}
	for _, d := range c.deferred {
		check(d.after > l.persistedSeq, "a message waits for write %d, which is persisted", d.after)
	}
	return errors.Join(broken...)
}

// CheckStep looks for contradictions between two consecutive states of one server within one run. nil: none found.
func CheckStep(before, after *Core) error {
	var broken []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			broken = append(broken, fmt.Errorf(format, args...))
		}
	}
	// SAFETY inv 2, 3: terms rise, and a vote stays for its term.
	check(after.currentTerm >= before.currentTerm, "term went back from %d to %d", before.currentTerm, after.currentTerm)
	if after.currentTerm == before.currentTerm && before.votedFor != "" {
		check(after.votedFor == before.votedFor, "vote of term %d changed from %q to %q", after.currentTerm, before.votedFor, after.votedFor)
	}
	if after.currentTerm == before.currentTerm && before.leader != "" && after.leader != "" {
		check(after.leader == before.leader, "term %d has two leaders, %q and %q", after.currentTerm, before.leader, after.leader)
	}
	// SAFETY inv 8.
	check(after.commitIndex >= before.commitIndex, "commit index went back from %d to %d", before.commitIndex, after.commitIndex)
	restored := after.snapshot.Index > before.snapshot.Index && after.handedOut >= after.snapshot.Index // over what could not be read to be applied
	check(after.handedOut >= before.handedOut || restored, "handed out went back from %d to %d", before.handedOut, after.handedOut)
	check(after.lastApplied >= before.lastApplied, "applied went back from %d to %d", before.lastApplied, after.lastApplied)
	check(after.log.base.Index >= before.log.base.Index, "compaction went back from %v to %v", before.log.base, after.log.base)

	// SAFETY inv 4, 7: a leader keeps its whole log, everybody what is committed. Runs of terms say it without the entries.
	keep := before.commitIndex
	if before.role == Leader && after.role == Leader && before.currentTerm == after.currentTerm && !before.repair.recovering {
		keep = before.log.last
		check(after.log.last >= keep, "a leader's log shrank from %d to %d", keep, after.log.last)
	}
	for i := max(before.log.base.Index, after.log.base.Index); i <= min(keep, after.log.last); i = nextRun(before, after, i) {
		a, _ := before.log.term(i)
		b, _ := after.log.term(i)
		check(a == b, "the entry at %d changed its term from %d to %d", i, a, b)
	}
	return errors.Join(broken...)
}

// nextRun is the next index at which either log may begin another term.
func nextRun(a, b *Core, i Index) Index {
	next := max(a.log.last, b.log.last) + 1
	for _, c := range []*Core{a, b} {
		for _, run := range c.log.terms {
			if run.Index > i {
				next = min(next, run.Index)
			}
		}
	}
	return next
}
