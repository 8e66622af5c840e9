package raft

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The paper, §3.4.2: a leader recovers what it lacks before it goes on. It appends nothing, sends nothing of its log, which it may have
// to cut, takes no command and confirms no read; heartbeats go on.
func TestLeaderWithGapsRecoversBeforeItGoesOn(t *testing.T) {
	l, a := damagedServer(t, "a b c", HardState{CurrentTerm: 2}, []Term{1, 1, 2, 2}, 3)
	l.recoveringLeader(a, "b")
	require.Equal(t, Index(4), a.core.log.last, "no no-op")
	for _, id := range []string{"b", "c"} {
		require.Equal(t, FetchEntries{Wanted: []Stretch{{2, 3, 3}}}, l.one("a", id, "FetchEntries").Body)
	}
	require.Empty(t, l.take("a", "*", "AppendEntries"))
	l.timeout("a")
	require.Equal(t, AppendEntries{}, l.one("a", "c", "AppendEntries").Body, "a heartbeat about nothing")
	_, _, err := a.core.Propose(l.now, []Entry{NewCommand(nil)})
	require.ErrorIs(t, err, ErrNotLeader)
	require.ErrorIs(t, a.transfer("b"), ErrBusy)
	_, err = a.change(Change{Remove: []NodeID{"c"}})
	require.ErrorIs(t, err, ErrChangePending)
	require.NoError(t, a.read(1))
	for _, id := range []string{"b", "c"} {
		l.step(id, "a", 3, a.core.nextRequest, AppendEntriesReply{Success: true, Round: a.core.round})
	}
	require.Empty(t, a.reads)
	require.True(t, a.core.Status(l.now).Recovering)
	require.Contains(t, a.core.Status(l.now).WhyNot, "entry 3@2 is missing; b: no answer; c: no answer")

	l.lose()
	l.fetched("c", 3, l.entry(2, 3))
	require.Equal(t, Index(5), a.core.log.last)
	require.Equal(t, Term(3), a.core.lastTerm())
	m := l.one("a", "b", "AppendEntries").Body.(AppendEntries)
	require.Equal(t, EntryID{2, 4}, EntryID{m.PrevLogTerm, m.PrevLogIndex})
	require.False(t, a.core.Status(l.now).Recovering)
	l.step("b", "a", 3, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 4, MatchIndex: 5, Round: a.core.round})
	require.Len(t, a.applied, 5)
}

func (c *Core) lastTerm() Term { return c.log.lastID().Term }

// It waits for its own disk: before a repair is durable, it cannot be sent to anybody.
func TestLeaderGoesOnWhenItsRepairsAreDurable(t *testing.T) {
	l, a := damagedServer(t, "a b c", HardState{CurrentTerm: 2}, []Term{1, 1, 2}, 3)
	l.recoveringLeader(a, "b")
	a.slow = true
	l.fetched("c", 3, l.entry(2, 3))
	require.True(t, a.core.repair.recovering)
	a.persist(1)
	require.False(t, a.core.repair.recovering)
}

// The paper, §3.4.2: "a leader can safely discard an uncommitted entry" when a majority does not have it; here, when those that may have
// it cannot be a majority. A damaged copy counts as one, and so does a copy that may have been lost, or is compacted.
func TestLeaderDiscardsOnlyWhatCannotBeCommitted(t *testing.T) {
	w := Stretch{2, 3, 4}
	for name, tt := range map[string]struct {
		members string
		answers []Held // of b, c, d, e
		from    Index  // what is discarded; 0: nothing
		goesOn  bool
	}{
		"nobody answers":            {"a b c", nil, 0, false},
		"one of three":              {"a b c", []Held{{w, 2, HoldsNot}}, 0, false},
		"both of three":             {"a b c", []Held{{w, 2, HoldsNot}, {w, 2, HoldsNot}}, 3, true},
		"one has a part of it":      {"a b c", []Held{{w, 3, HoldsDamaged}, {w, 2, HoldsNot}}, 4, false},
		"both have a part of it":    {"a b c", []Held{{w, 3, HoldsDamaged}, {w, 3, HoldsDamaged}}, 4, false},
		"the end is nowhere else":   {"a b c", []Held{{Stretch{2, 4, 4}, 3, HoldsNot}, {w, 3, HoldsDamaged}}, 4, false},
		"damaged counts as had":     {"a b c", []Held{{w, 4, HoldsDamaged}, {w, 2, HoldsNot}}, 0, false},
		"lost counts as had":        {"a b c", []Held{{w, 4, HoldsUnknown}, {w, 2, HoldsNot}}, 0, false},
		"compacted counts as had":   {"a b c", []Held{{w, 4, HoldsCompacted}, {w, 2, HoldsNot}}, 0, false},
		"two of five":               {"a b c d e", []Held{{w, 2, HoldsNot}, {w, 2, HoldsNot}}, 0, false},
		"three of five":             {"a b c d e", []Held{{w, 2, HoldsNot}, {w, 2, HoldsNot}, {w, 2, HoldsNot}}, 3, true},
		"two of four":               {"a b c d", []Held{{w, 2, HoldsNot}, {w, 2, HoldsNot}}, 3, true},
		"a learner is not counted":  {"a b c | d", []Held{{w, 2, HoldsNot}, {}, {w, 2, HoldsNot}}, 0, false},
		"a single voter keeps all":  {"a | b c", []Held{{w, 2, HoldsNot}, {w, 2, HoldsNot}}, 0, false},
		"of two both are needed":    {"a b", []Held{{w, 2, HoldsNot}}, 3, true},
		"the rest is not discarded": {"a b", []Held{{w, 3, HoldsDamaged}}, 4, false},
	} {
		t.Run(name, func(t *testing.T) {
			l, a := damagedServer(t, tt.members, HardState{CurrentTerm: 2}, []Term{1, 1, 2, 2, 2}, 3, 4)
			a.core.ForceTimeout(l.now) // the others' votes are not the point
			a.run()
			for id := range l.servers {
				require.Equal(t, NodeID("a"), id)
			}
			for _, s := range l.conf.Servers {
				if s.ID != "a" && s.Suffrage == Voter && a.core.role != Leader {
					l.step(string(s.ID), "a", a.core.currentTerm+1, a.core.nextRequest, PreVoteReply{Granted: true})
				}
			}
			for _, s := range l.conf.Servers {
				if s.ID != "a" && s.Suffrage == Voter && a.core.role == Candidate {
					l.step(string(s.ID), "a", a.core.currentTerm, a.core.nextRequest, RequestVoteReply{Granted: true})
				}
			}
			require.True(t, a.core.repair.recovering)
			for i, h := range tt.answers {
				if h != (Held{}) {
					l.says(string(rune('b'+i)), 3, h.Stretch, h.UpTo, h.How)
				}
			}
			discarded, n := lastEvent[EntriesDiscarded](a)
			want := []Term{1, 1, 2, 2, 2}
			if tt.from == 0 {
				require.Zero(t, n)
			} else {
				require.Equal(t, EntryID{2, tt.from}, discarded.First)
				require.Equal(t, Index(5), discarded.Last.Index)
				want = want[:tt.from-1]
			}
			require.NotEqual(t, tt.goesOn, a.core.repair.recovering)
			if tt.goesOn {
				require.Equal(t, tt.from, a.core.termStart)
				want = append(want, 3)
			}
			require.Equal(t, want, a.terms())
		})
	}
}

// Only the end of a stretch that nobody else has is discarded.
func TestLeaderDiscardsNoMoreThanItMust(t *testing.T) {
	l, a := damagedServer(t, "a b c", HardState{CurrentTerm: 2}, []Term{1, 1, 2, 2, 2}, 3, 4)
	l.recoveringLeader(a, "b")
	w := Stretch{2, 3, 4}
	l.says("b", 3, w, 3, HoldsDamaged)
	l.says("c", 3, w, 3, HoldsIntact)
	require.Equal(t, []Term{1, 1, 2}, a.terms())
	require.True(t, a.core.repair.recovering)
	l.fetched("c", 3, l.entry(2, 3))
	require.Equal(t, []Term{1, 1, 2, 3}, a.terms())
}

// Three servers of five could have an entry that the leader of an earlier term has sent them. An answer that was given in an earlier term
// does not count, because its sender may have taken the entry since; nor does that of a data directory which is not a member's.
func TestOnlyAnswersOfTheLeadersOwnTermCount(t *testing.T) {
	l, a := damagedServer(t, "a b c d e", HardState{CurrentTerm: 2}, []Term{1, 1, 2}, 3)
	l.recoveringLeader(a, "b", "c")
	w := Stretch{2, 3, 3}
	l.says("b", 3, w, 2, HoldsNot)
	l.says("c", 3, w, 2, HoldsNot)
	l.says("d", 2, w, 2, HoldsNot)
	require.True(t, a.core.repair.recovering)
	h := Header{From: "d", To: "a", Replica: 1, Incarnation: 9, Term: 3}
	l.stepMessage(Message{Header: h, Body: FetchEntriesReply{Incarnation: 1, Held: []Held{{w, 2, HoldsNot}}}})
	require.True(t, a.core.repair.recovering)
	l.says("e", 3, w, 2, HoldsNot)
	require.False(t, a.core.repair.recovering)
}

// Why the term matters, with five servers. The leader a of term 2 has sent entry 3 to b alone, which has acknowledged it, and cannot read
// it any more. b is elected by c and d in term 3 and asks e, which is still in term 2 and does not have the entry. Were e not in term 3
// when it answers, it could take the entry from a afterwards, and a would commit it with b's acknowledgement of before; b has cut it off.
func TestEarlierLeaderGetsNoAcknowledgementAfterTheAnswer(t *testing.T) {
	l := newLab(t, "a b c d e")
	for _, id := range []string{"a", "b", "c", "d", "e"} {
		l.start(id)
	}
	a := l.elect("a")
	b, e := l.server("b"), l.server("e")
	l.isolate("c", true)
	l.isolate("d", true)
	late := map[string][]Message{}
	id := a.propose("x")[0]
	for _, to := range []string{"c", "d", "e"} {
		late[to] = l.take("a", to, "AppendEntries")
	}
	l.deliver("a", "b")
	l.deliver("b", "a")
	require.Equal(t, id.Index, a.core.peer("b").matchIndex)
	l.lose()
	require.Less(t, a.core.commitIndex, id.Index)

	l.crash("b")
	b.damage(id.Index)
	b = l.start("b")
	l.isolate("c", false)
	l.isolate("d", false)
	l.isolate("a", true)
	l.pass(9 * time.Second)
	l.cut[[2]NodeID{"b", "e"}] = true
	l.timeout("b")
	l.settle()
	require.True(t, b.core.repair.recovering, "%v", b.core)
	require.Equal(t, a.core.currentTerm, e.core.currentTerm)

	delete(l.cut, [2]NodeID{"b", "e"})
	b.asks("c")
	l.deliver("b", "e")
	require.Equal(t, b.core.currentTerm, e.core.currentTerm)
	for _, m := range late["e"] {
		l.stepMessage(m)
	}
	require.Less(t, e.core.log.last, id.Index, "e has left the term of a")
	l.isolate("a", false)
	l.settle()
	require.Equal(t, Leader, b.core.role)
	require.False(t, b.core.repair.recovering)
	l.requireEqualLogs()
}

// Each configuration that may have been in force when the entry was sent must be ruled out, and each half of a joint one.
func TestDiscardRulesOutEveryConfiguration(t *testing.T) {
	l := newLab(t, "a b c")
	a := l.provision("a", HardState{CurrentTerm: 2}, 1, 2)
	joint := labConfiguration("a b c d e")
	for i := range joint.Servers {
		s := &joint.Servers[i]
		s.Outgoing = s.ID <= "c"
		s.Leaving = s.ID == "b" || s.ID == "c"
	}
	a.disk.entries = append(a.disk.entries, labConfigurationEntry(2, 3, joint))
	a.damage(2)
	l.start("a")
	a.core.currentTerm, a.core.role, a.core.leader, a.core.votedFor = 3, Candidate, "", "a"
	a.core.durable = HardState{3, "a"}
	a.core.becomeLeader()
	w := Stretch{2, 2, 2}
	l.conf = joint
	for _, id := range []string{"b", "c"} {
		l.says(id, 3, w, 1, HoldsNot)
		require.True(t, a.core.repair.recovering, "a, d and e may have agreed alone")
	}
	l.says("d", 3, w, 1, HoldsNot)
	require.True(t, a.core.repair.recovering, "a and e are a majority of the new half")
	l.says("e", 3, w, 1, HoldsNot)
	require.False(t, a.core.repair.recovering)
	require.Equal(t, labConfiguration("a b c"), *a.core.configuration(), "the configuration went with it")
}

// A leader that does not find what it lacks lets others try, and says what it could not find and whom it has asked.
func TestRecoveryIsBounded(t *testing.T) {
	l, a := damagedServer(t, "a b c", HardState{CurrentTerm: 2}, []Term{1, 1, 2}, 3)
	l.recoveringLeader(a, "b")
	l.says("b", 3, Stretch{2, 3, 3}, 3, HoldsDamaged)
	for range 60 {
		l.pass(100 * time.Millisecond)
		l.tick("a")
		if a.core.role != Leader {
			break
		}
		l.step("b", "a", 3, a.core.nextRequest, AppendEntriesReply{Success: true})
	}
	require.Equal(t, Follower, a.core.role)
	stuck, n := lastEvent[RecoveryStuck](a)
	require.Equal(t, 1, n)
	require.Equal(t, RecoveryStuck{Entry: EntryID{2, 3}, Asked: []Asked{{"b", "damaged"}, {"c", "no answer"}}}, stuck)
	require.Equal(t, ReasonDamage, a.core.reason)
	require.Contains(t, a.core.Status(l.now).WhyNot, "entry 3@2 is missing")
	require.Equal(t, time.Second+recoveryPatience*time.Second, l.now)
	require.Len(t, l.take("a", "c", "FetchEntries"), 1+10*recoveryPatience, "c is asked with every heartbeat")
}

// A leader whose own snapshot takes the place of a gap commits what it was waiting for: a single voter hears from nobody else who would
// remind it (the simulator's seed 407 waited for ever).
func TestLeaderCommitsWhatItsOwnSnapshotMakesReadable(t *testing.T) {
	l := newLab(t, "a", func(cfg *CoreConfig) { cfg.MaxTailBytes = 1 })
	l.provision("a", HardState{CurrentTerm: 1}, 1)
	l.start("a")
	a := l.elect("a")
	a.propose("x", "y")
	require.Equal(t, Index(4), a.core.commitIndex)
	a.slow = true
	a.propose("z")
	a.damage(3)
	a.do(func(c *Core, now time.Duration) { c.Damaged(now, Damage{First: 3, Last: 3}) })
	a.persist(1)
	require.Equal(t, Index(4), a.core.commitIndex, "nothing behind the gap is durable")
	require.Contains(t, a.core.Status(l.now).WhyNot, "entry 3@")
	a.takeSnapshot(4)
	require.Equal(t, Index(5), a.core.commitIndex)
	require.Empty(t, a.core.Status(l.now).WhyNot)
}
