package raft

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

func (s *simulation) highestTerm() Term { return s.newestLeader.Term }

// client proposes commands and reads, mostly at servers that believe that they lead: there may be several.
func (s *simulation) client() {
	v := pick(s.random, s.servers...)
	for range 3 {
		if v.core == nil || v.core.role != Leader {
			v = pick(s.random, s.servers...)
		}
	}
	if v.core != nil {
		s.nextCmd++
		var es []Entry
		for range 1 + s.random.IntN(3) {
			es = append(es, NewCommand(fmt.Appendf(nil, "%d%s", s.nextCmd, strings.Repeat("x", s.random.IntN(60)))))
		}
		s.input(v, func(c *Core) {
			first, n, err := c.Propose(s.now, es)
			if n < len(es) && err == nil {
				s.failf("%d of %d proposals refused without an error", len(es)-n, len(es))
			}
			for i := range n {
				s.proposals[EntryID{Term: first.Term, Index: first.Index + Index(i)}] = string(es[i].Data)
			}
		})
		if s.random.Float64() < s.reading {
			s.read(v)
		}
	}
	if w := pick(s.random, s.servers...); w.core != nil && w.core.role == Leader {
		s.sendAgain(w)
	}
	for _, w := range s.servers { // a deposed leader does not stay one for long, so chance would seldom ask it
		if w.core != nil && w.core.role == Leader && w.core.currentTerm < s.newestLeader.Term && s.random.Float64() < s.reading {
			s.read(w)
		}
	}
	if s.now < simFaults+time.Second {
		s.after(s.upTo(60*time.Millisecond), s.client)
	}
}

func (s *simulation) read(v *simServer) {
	s.nextRead++
	id := s.nextRead
	s.reads[id] = &simRead{server: v, run: v.run, atomic: s.highest}
	s.input(v, func(c *Core) {
		if err := c.ReadIndex(s.now, id); err != nil {
			delete(s.reads, id)
		} else if s.highest > c.commitIndex && s.newestLeader.Term > c.currentTerm {
			s.seen["read begun at a stale leader"]++
		}
	})
}

// endRead checks that a confirmed read sees what was committed when it began (SAFETY inv 16).
func (s *simulation) endRead(v *simServer, r ReadResult) {
	rd := s.reads[r.ID]
	if rd == nil {
		s.failf("read %d ended twice", r.ID)
		return
	}
	delete(s.reads, r.ID)
	if r.Err != nil {
		s.seen["read failed"]++
		return
	}
	s.seen["read confirmed"]++
	if r.Index > v.core.commitIndex {
		s.failf("read %d is confirmed at %d, but %s has committed %d only", r.ID, r.Index, v.id, v.core.commitIndex)
	}
	if r.Index < rd.atomic {
		s.failf("inv 16: a read at %s sees %d, but %d was committed before it began", rd.server.id, r.Index, rd.atomic)
	}
}

// nemesis injects one fault, or one operator's action, now and then.
func (s *simulation) nemesis() {
	if s.healed {
		return
	}
	v := pick(s.random, s.servers...)
	for range 2 {
		if s.random.IntN(2) == 0 && (v.core == nil || v.core.role != Leader) {
			v = pick(s.random, s.servers...) // what happens to leaders is more interesting
		}
	}
	switch s.random.IntN(15) {
	case 0, 1, 2:
		if v.core != nil {
			s.crash(v)
		}
	case 3, 4, 5:
		if v.core == nil {
			s.start(v)
		}
	case 6:
		if w := pick(s.random, s.servers...); s.random.IntN(2) == 0 {
			s.cut[[2]NodeID{v.id, w.id}] = true
		} else {
			s.cutOff(v)
		}
	case 7:
		clear(s.cut)
		for _, w := range s.servers {
			if w != v && s.random.IntN(2) == 0 {
				s.cut[[2]NodeID{v.id, w.id}], s.cut[[2]NodeID{w.id, v.id}] = true, true
			}
		}
	case 8:
		clear(s.cut)
	case 9:
		if v.core != nil {
			target := pick(s.random, s.servers...)
			s.input(v, func(c *Core) { _ = c.ChangeLeader(s.now, target.id) }) // most are refused, as they should be
		}
	case 10, 11:
		if v.core != nil && v.core.role == Leader {
			s.changeMembership(v)
		}
	case 12:
		v.brokenUntil = s.now + s.upTo(pick(s.random, 2*time.Second, 6*time.Second)) // the disk hangs
	case 13:
		if w := pick(s.random, s.servers...); v.core != nil && w != v {
			s.input(v, func(c *Core) { c.PeerLost(s.now, w.id, w.incarnation) })
		}
	case 14:
		s.cutOff(v)
	}
	s.after(s.upTo(500*time.Millisecond), s.nemesis)
}

// cutOff leaves a leader in the belief that it leads, for a while: its messages are lost, or those of the others, or both. The others
// suspect it at once, so that a second leader is elected and writes, while the first is asked for reads.
func (s *simulation) cutOff(v *simServer) {
	if v.core == nil || v.core.role != Leader {
		return
	}
	s.seen["leader cut off"]++
	how := s.random.IntN(4)
	for _, w := range s.servers {
		if w == v || s.random.IntN(8) == 0 {
			continue
		}
		s.cut[[2]NodeID{v.id, w.id}] = s.cut[[2]NodeID{v.id, w.id}] || how != 0
		s.cut[[2]NodeID{w.id, v.id}] = s.cut[[2]NodeID{w.id, v.id}] || how < 2
		if w.core != nil && s.random.IntN(8) != 0 {
			s.input(w, func(c *Core) { c.PeerLost(s.now, v.id, v.incarnation) })
		}
	}
	run := v.run
	for k := s.random.IntN(10); k < 10; k++ {
		s.after(time.Duration(k)*100*time.Millisecond, func() {
			if v.run == run && v.core != nil && v.core.role == Leader {
				s.read(v)
			}
		})
	}
}

// sendAgain lets a leader send some entries from anywhere in its log, as Figure 2 allows it at any time: with its present commit
// index, to a follower that holds another suffix behind them.
func (s *simulation) sendAgain(v *simServer) {
	l := &v.core.log
	i := slices.IndexFunc(s.servers, func(w *simServer) bool {
		return w.core != nil && w.core.log.last > l.base.Index && !l.contains(w.core.log.lastID())
	})
	if i < 0 {
		return
	}
	w := s.servers[i]
	prev := min(l.last, w.core.log.last)
	term, _ := l.term(prev)
	for prev > l.base.Index && !w.core.log.contains(EntryID{Term: term, Index: prev}) {
		prev-- // to the last entry that both hold
		term, _ = l.term(prev)
	}
	prev -= min(prev-l.base.Index, Index(s.random.IntN(4)))
	term, _ = l.term(prev)
	es, _, ok := l.slice(prev+1, min(prev+1+Index(s.random.IntN(3)), l.last+1), maxInt)
	if !ok || len(es) == 0 {
		return
	}
	s.seen["old entries sent again"]++
	s.send(v.core.message(w.id, v.core.currentTerm, v.core.nextRequest, AppendEntries{
		PrevLogIndex: prev, PrevLogTerm: term, LeaderCommit: v.core.commitIndex, Entries: es}))
}

func (s *simulation) changeMembership(v *simServer) {
	target := pick(s.random, s.servers...).id
	var ch Change
	switch s.random.IntN(6) {
	case 0, 1:
		ch.Promote = []NodeID{target}
	case 2:
		ch.Demote = []NodeID{target}
	case 5:
		ch.Demote = []NodeID{target} // and everybody who can be promoted
		for _, sv := range v.core.configuration().Servers {
			if sv.Suffrage == NonVoter && v.core.caughtUp(sv.ID) {
				ch.Promote = append(ch.Promote, sv.ID)
			}
		}
	case 3:
		if len(v.core.configuration().Servers) > 1 && s.random.IntN(3) == 0 {
			ch.Remove = []NodeID{target}
		}
	case 4:
		if len(s.servers) < 7 {
			w := s.addServer(NodeID(fmt.Sprintf("n%d", s.nextNode+1)), v.cfg)
			s.start(w)
			ch.Add = []Server{{ID: w.id}}
		}
	}
	s.input(v, func(c *Core) {
		if _, err := c.ChangeMembership(s.now, ch); err == nil {
			s.seen["configuration changed"]++
			s.trace("%v %s changes membership %+v", s.now, v.id, ch)
		}
	})
}

// crash ends a process. Of the writes under way a prefix may have reached the disk.
func (s *simulation) crash(v *simServer) {
	if v.core.role == Leader {
		s.seen["crash of a leader"]++
	}
	if len(v.pending) > 0 {
		s.seen["crash during a write"]++
		for _, w := range v.pending[:s.random.IntN(len(v.pending)+1)] {
			s.write(v, w.Batch)
		}
	}
	s.trace("%v crash %v", s.now, v.core)
	v.core = nil
	for id, r := range s.reads {
		if r.server == v {
			delete(s.reads, id)
		}
	}
	for _, w := range s.servers {
		if w != v && w.core != nil && s.random.IntN(2) == 0 {
			s.input(w, func(c *Core) { c.PeerLost(s.now, v.id, v.incarnation) })
		}
	}
}

// heal ends all faults.
func (s *simulation) heal() {
	s.trace("%v heal", s.now)
	s.healed = true
	clear(s.cut)
	for _, v := range s.servers {
		v.brokenUntil = 0
		if v.core == nil {
			s.start(v)
		}
	}
	s.after(2*time.Second, func() {
		for id, e := range s.proposals { // what became of each is counted once
			if c, ok := s.committed[id.Index]; ok && c.Term != id.Term {
				s.seen["command dropped"]++
			} else if ok && string(c.Data) != e {
				s.failf("entry %v was committed with another command", id)
			}
		}
	})
}

// converged reports whether one leader is left and all members have the same log and state (SAFETY inv 30).
func (s *simulation) converged() bool {
	var leader *simServer
	for _, v := range s.servers {
		if v.core.role == Leader {
			if leader != nil {
				return false
			}
			leader = v
		}
	}
	if leader == nil || len(s.reads) > 0 || leader.core.commitIndex != leader.core.log.last || leader.core.configuration().Joint() {
		return false
	}
	for _, sv := range leader.core.configuration().Servers {
		v := s.server(sv.ID)
		if v.core.log.last != leader.core.log.last || v.applied != leader.applied || v.state != leader.state ||
			v.core.commitIndex != leader.core.commitIndex || v.core.leader != leader.id {
			return false
		}
	}
	return true
}
