package raft

import "slices"

// fetchAnswer is an answer to FetchEntries that waits for entries to be read from storage.
type fetchAnswer struct {
	load   uint64
	to     Header // of the request
	wanted []Stretch
}

// maxFetchAnswers bounds the reads that are under way for servers with gaps. Others learn what is here, and ask again for the entries.
const maxFetchAnswers = 16

// handleFetchEntries answers a server that lacks entries, in every role. What is said of the log is a promise to a leader (see Held), so
// it waits for the disk like one.
func (c *Core) handleFetchEntries(h Header, req FetchEntries) {
	if req.Snapshot > 0 {
		c.sendRepairSnapshot(h, req.Snapshot)
	}
	rep := c.fetchReply(h, req.Wanted)
	for _, held := range rep.Held {
		if held.How == HoldsNot || held.How == HoldsCompacted {
			continue
		}
		upTo := c.heldUpTo(held.Stretch)
		lo := held.First
		for lo <= upTo && c.log.readable(lo, lo+1) == lo {
			lo = c.log.inGap(lo).Last + 1
		}
		if lo > upTo {
			continue
		}
		hi := c.log.readable(lo, upTo+1)
		if es, _, ok := c.log.slice(lo, hi, c.cfg.MaxBatchBytes); ok {
			rep.Entries = es
		} else if c.loadForFetch(h, req.Wanted, lo, min(hi, c.log.tailFirst())) {
			return // the answer waits for the entries
		}
		break
	}
	c.send(h.From, c.currentTerm, h.Request, rep)
}

func (c *Core) fetchReply(h Header, wanted []Stretch) FetchEntriesReply {
	rep := FetchEntriesReply{Incarnation: h.Incarnation, CommitIndex: c.commitIndex,
		Leading: c.role == Leader && c.commitIndex >= c.termStart}
	for _, w := range wanted {
		rep.Held = append(rep.Held, c.holds(w))
	}
	return rep
}

// heldUpTo returns the last entry of the stretch that is in the log, readable or not; First-1 if none is. Within one term the log of
// whoever has an entry has all before it.
func (c *Core) heldUpTo(w Stretch) Index {
	if w.First <= c.log.base.Index || !c.log.contains(EntryID{Term: w.Term, Index: w.First}) {
		return w.First - 1
	}
	return min(w.Last, c.log.runEnd(w.First))
}

// holds says what this server has of a stretch, or may have acknowledged.
func (c *Core) holds(w Stretch) Held {
	if w.First <= c.log.base.Index {
		// Which entries these were is not known any more, so all that the stretch names may have been among them.
		return Held{Stretch: w, UpTo: w.Last, How: HoldsCompacted}
	}
	held := Held{Stretch: w, UpTo: c.heldUpTo(w)}
	if held.UpTo >= w.First {
		held.How = HoldsIntact
		if c.log.inGap(w.First) != nil {
			held.How = HoldsDamaged
		}
	}
	if f := c.repair.fence; f.upToDate(EntryID{Term: w.Term, Index: held.UpTo + 1}) && held.UpTo < w.Last {
		if held.How == HoldsNot {
			held.How = HoldsUnknown
		}
		held.UpTo = w.Last
		if f.Term == w.Term {
			held.UpTo = min(w.Last, f.Index)
		}
	}
	return held
}

// loadForFetch asks the storage for entries that another server wants to have, one read at a time for each. It reports whether it does.
func (c *Core) loadForFetch(h Header, wanted []Stretch, lo, hi Index) bool {
	if len(c.answers) >= maxFetchAnswers || slices.ContainsFunc(c.answers, func(a fetchAnswer) bool { return a.to.From == h.From }) {
		return false
	}
	c.nextLoad++
	c.answers = append(c.answers, fetchAnswer{load: c.nextLoad, to: h, wanted: wanted})
	c.out.Loads = append(c.out.Loads, Load{ID: c.nextLoad, Peer: h.From, Lo: lo, Hi: hi, MaxBytes: c.cfg.MaxBatchBytes})
	return true
}

// fetchLoaded ends a read for another server, with or without success; ok is false if it was for a follower of ours. The log may have
// changed since it began, so all that is said about it is said anew.
func (c *Core) fetchLoaded(id uint64, es []Entry) (ok bool) {
	k := slices.IndexFunc(c.answers, func(a fetchAnswer) bool { return a.load == id })
	if k < 0 {
		return false
	}
	a := c.answers[k]
	c.answers = slices.Delete(slices.Clone(c.answers), k, k+1)
	rep := c.fetchReply(a.to, a.wanted)
	n := 0
	for n < len(es) && c.log.contains(es[n].ID()) {
		n++
	}
	rep.Entries = es[:n]
	c.send(a.to.From, c.currentTerm, a.to.Request, rep)
	return true
}

// sendRepairSnapshot sends a snapshot that reaches index to a server whose missing entries are compacted here.
func (c *Core) sendRepairSnapshot(h Header, index Index) {
	if c.snapshot.Index < index {
		return
	}
	c.nextLoad++
	c.out.Snapshots = append(c.out.Snapshots, SnapshotTransfer{
		ID:      c.nextLoad,
		Message: c.message(h.From, c.currentTerm, c.request(), InstallSnapshot{Meta: c.snapshot, Repair: true}),
	})
}
