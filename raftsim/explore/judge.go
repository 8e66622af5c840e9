package explore

import (
	"fmt"
	"slices"

	"github.com/steadyraft/raft"
)

// judge compares a world with the promises of the protocol, after an action that led from one to the other. What holds within one server
// was checked when it took its step. It fills in the past of after.
func (x *explorer) judge(before, after *state, a action, out *outcome) error {
	for i := range x.ids {
		if before.nodes[i] == after.nodes[i] {
			continue
		}
		if err := x.judgeLeader(after, before.nodes[i], i); err != nil {
			return err
		}
		if err := x.judgeCommit(after, before.nodes[i], after.nodes[i]); err != nil {
			return err
		}
		for k := range x.ids {
			if k != i {
				if err := matching(after.nodes[i], after.nodes[k]); err != nil {
					return fmt.Errorf("SAFETY inv 5, Log Matching: %s and %s: %w", x.ids[i], x.ids[k], err)
				}
			}
		}
	}
	for i := range x.ids {
		if err := x.judgeCompleteness(after, i); err != nil {
			return err
		}
	}
	if err := x.judgeKept(after); err != nil {
		return err
	}
	return x.judgeReads(before, after, a, out)
}

// judgeLeader checks Election Safety over the whole history: a second leader of a term counts also when the first is gone. And a new
// leader has durable votes of a majority, of both halves of a joint configuration (SAFETY inv 18); a server that is in a later term by now may
// have voted. To wait for the second leader would miss a quorum that is too small and met nobody.
func (x *explorer) judgeLeader(s *state, before *node, i int) error {
	n := s.nodes[i]
	if n.status.Role != raft.Leader {
		return nil
	}
	if before.status.Role != raft.Leader {
		for half, voters := range before.voters {
			votes := 0
			for _, v := range voters {
				hard := s.nodes[v].disk.hard
				if hard.CurrentTerm > n.status.Term || hard == (raft.HardState{CurrentTerm: n.status.Term, VotedFor: x.ids[i]}) {
					votes++
				}
			}
			if len(voters) > 0 && votes <= len(voters)/2 {
				return fmt.Errorf("SAFETY inv 18: %s leads in term %d with the votes of %d of %d voters (half %d)", x.ids[i], n.status.Term, votes, len(voters), half)
			}
		}
	}
	was := s.past.leaders[n.status.Term]
	if was >= 0 && int(was) != i {
		return fmt.Errorf("SAFETY inv 1, Election Safety: %s and %s lead in term %d", x.ids[was], x.ids[i], n.status.Term)
	}
	if was < 0 {
		p := *s.past
		p.leaders[n.status.Term] = int8(i)
		s.past = &p
	}
	return nil
}

// judgeCommit checks State Machine Safety, and that what a leader commits is durable on a quorum of the configuration that was in
// force at that moment. A check of logs in memory would miss an acknowledgement that a crash takes back.
func (x *explorer) judgeCommit(s *state, before, after *node) error {
	p := s.past
	led := before.status.Role == raft.Leader || after.status.Role == raft.Leader
	for i := after.base.Index + 1; i <= after.status.CommitIndex; i++ {
		m := after.log[i-after.base.Index-1]
		if int(i) <= len(p.committed) {
			if c := p.committed[i-1]; c.mark != m {
				return fmt.Errorf("SAFETY inv 7, State Machine Safety: %s commits %d@%d, but %d@%d was committed in term %d",
					x.ids[after.server], i, m.term, i, c.term, c.by)
			}
			continue
		}
		if int(i) != len(p.committed)+1 || !led {
			return fmt.Errorf("%s commits %d@%d, which no leader has committed", x.ids[after.server], i, m.term)
		}
		// A leader that finds a joint configuration committed appends the next one at once, and that counts for what lies behind it.
		quorums := before.voters
		if i > before.status.ConfigurationIndex {
			quorums = after.voters
		}
		for half, voters := range quorums {
			durable := 0
			for _, v := range voters {
				if s.nodes[v].disk.holds(raft.EntryID{Term: m.term, Index: i}) {
					durable++
				}
			}
			if len(voters) > 0 && durable <= len(voters)/2 {
				return fmt.Errorf("SAFETY inv 13: %s commits %d@%d, which is durable on %d of %d voters (half %d)", x.ids[after.server], i, m.term,
					durable, len(voters), half)
			}
		}
		if p == s.past {
			fresh := *p
			p = &fresh
		}
		p.committed = append(slices.Clip(p.committed), commitment{m, before.status.Term})
		if before.joint {
			x.res.Seen["commit in a joint configuration"]++
		}
	}
	if len(p.committed) < int(after.status.CommitIndex) {
		return fmt.Errorf("%s has committed %d, but only %d entries are committed", x.ids[after.server], after.status.CommitIndex, len(p.committed))
	}
	if x.world.Reads > 0 && after.status.AppliedIndex > p.acked {
		if p == s.past {
			fresh := *p
			p = &fresh
		}
		p.acked = after.status.AppliedIndex
	}
	s.past = p
	return nil
}

// judgeCompleteness checks Leader Completeness: a leader holds all that was committed in earlier terms.
func (x *explorer) judgeCompleteness(s *state, i int) error {
	n := s.nodes[i]
	if n.status.Role != raft.Leader {
		return nil
	}
	for k, c := range s.past.committed {
		at := raft.Index(k + 1)
		if c.by >= n.status.Term || at <= n.base.Index {
			continue
		}
		if at > n.status.LastIndex || n.log[at-n.base.Index-1] != c.mark {
			return fmt.Errorf("SAFETY inv 6, Leader Completeness: %s leads in term %d without %d@%d, committed in term %d", x.ids[i], n.status.Term,
				at, c.term, c.by)
		}
	}
	return nil
}

// judgeKept checks that what is committed stays durable on a majority (SAFETY inv 13). A leader that misses it may be many steps away. Where
// the voters change, majorities do, so there only Leader Completeness is left to judge.
func (x *explorer) judgeKept(s *state) error {
	if len(x.world.Changes) > 0 {
		return nil
	}
	for k, c := range s.past.committed {
		id, durable := raft.EntryID{Term: c.term, Index: raft.Index(k + 1)}, 0
		for i := range x.world.Voters {
			if s.nodes[i].disk.holds(id) {
				durable++
			}
		}
		if durable <= x.world.Voters/2 {
			return fmt.Errorf("SAFETY inv 13: %v, committed in term %d, is left on %d of %d voters", id, c.by, durable, x.world.Voters)
		}
	}
	return nil
}

// judgeReads checks that a confirmed read sees all that any state machine had applied when it began (SAFETY inv 16).
func (x *explorer) judgeReads(before, after *state, a action, out *outcome) error {
	if a.kind == read {
		p := *after.past
		p.required[a.arg-1] = before.past.acked
		after.past = &p
	}
	for _, r := range out.reads {
		if r.Err != nil {
			continue
		}
		x.res.Seen["read confirmed"]++
		if need := after.past.required[r.ID-1]; r.Index < need {
			return fmt.Errorf("SAFETY inv 16: read %d is confirmed at %d, but %d was applied before it began", r.ID, r.Index, need)
		}
	}
	return nil
}

// matching checks Log Matching: where two logs hold the same term at one index, they are equal up to there.
func matching(a, b *node) error {
	first := max(a.base.Index, b.base.Index) + 1
	agree := min(a.status.LastIndex, b.status.LastIndex)
	for agree >= first && a.log[agree-a.base.Index-1].term != b.log[agree-b.base.Index-1].term {
		agree--
	}
	for i := first; i <= agree; i++ {
		if x, y := a.log[i-a.base.Index-1], b.log[i-b.base.Index-1]; x != y {
			return fmt.Errorf("both hold term %d at %d, but entries %d@%d and %d@%d before it differ", a.log[agree-a.base.Index-1].term, agree, i, x.term, i, y.term)
		}
	}
	return nil
}
