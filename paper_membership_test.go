package raft

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// §6, figure 11: "The configuration entry for the transition C_old,new, then C_new": learners become voters by way of a joint
// configuration that is left as soon as it is committed, exactly once (SAFETY §3).
func TestPromotionGoesThroughAJointConfiguration(t *testing.T) {
	l := newCluster(t, "a b c | d e")
	a := l.elect("a")
	id, err := a.change(Change{Promote: []NodeID{"d", "e"}})
	require.NoError(t, err)
	require.Equal(t, EntryID{2, 3}, id)
	require.True(t, a.core.configuration().Joint(), "in force as soon as it is appended")
	require.Equal(t, "a outgoing, b outgoing, c outgoing, d, e", describeConfiguration(a.core.configuration()))
	l.settle()
	for _, s := range l.ids() {
		c := l.server(s).core
		require.False(t, c.configuration().Joint())
		require.Equal(t, Index(4), c.configurationIndex())
		require.Len(t, c.configuration().Voters(), 5)
	}
	require.Equal(t, Index(4), a.core.log.last, "left exactly once")
	ev, _ := lastEvent[ConfigurationChange](a)
	require.True(t, ev.Committed)
}

// §6: while joint, "agreement (for elections and entry commitment) requires separate majorities from both the old and new
// configurations" (SAFETY inv 17).
func TestJointConfigurationNeedsBothMajorities(t *testing.T) {
	joint := labConfiguration("a b c d e f")
	for i := range joint.Servers {
		s := &joint.Servers[i]
		switch s.ID {
		case "a", "b", "c":
			s.Outgoing = true
		}
		s.Leaving = s.ID == "b" || s.ID == "c"
	}
	// old: a b c; new: a d e f
	for _, tt := range []struct {
		yes  string
		wins bool
	}{{"", false}, {"b", false}, {"bc", false}, {"de", false}, {"def", false}, {"bd", false}, {"bde", true}, {"bcd", false}, {"cef", true}} {
		t.Run(tt.yes, func(t *testing.T) {
			l := newLab(t, "a b c", func(c *CoreConfig) { c.DisablePreVote = true })
			l.conf = joint
			a := l.start("a")
			l.timeout("a")
			require.Len(t, l.take("a", "*", "RequestVote"), 5, "all voters of both halves are asked")
			for _, from := range tt.yes {
				l.step(string(from), "a", 2, 1, RequestVoteReply{Granted: true})
			}
			require.Equal(t, tt.wins, a.core.role == Leader)

			for _, from := range "bcdef" {
				l.step(string(from), "a", 2, 1, RequestVoteReply{Granted: true})
			}
			for _, from := range tt.yes {
				l.step(string(from), "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
			}
			require.Equal(t, tt.wins, a.core.commitIndex >= 2)
		})
	}
}

// §6: a majority of either half alone can also end an election.
func TestJointElectionIsLostInOneHalf(t *testing.T) {
	l := newLab(t, "a b c d", func(c *CoreConfig) { c.DisablePreVote = true })
	for i := range l.conf.Servers {
		s := &l.conf.Servers[i]
		s.Outgoing = s.ID != "d"
	}
	a := l.start("a")
	l.timeout("a")
	l.step("b", "a", 2, 1, RequestVoteReply{})
	l.step("c", "a", 2, 1, RequestVoteReply{})
	require.Equal(t, Follower, a.core.role)
}

// SAFETY §3: "joint state survives leader changes and is left exactly once", by whoever leads when it is committed.
func TestJointConfigurationIsLeftByTheNextLeader(t *testing.T) {
	l := newCluster(t, "a b c | d")
	a := l.elect("a")
	_, err := a.change(Change{Promote: []NodeID{"d"}})
	require.NoError(t, err)
	for _, m := range l.take("a", "b", "") {
		l.stepMessage(m) // b has it; nobody else
	}
	l.lose()
	l.crash("a")
	b := l.elect("b")
	require.Equal(t, Leader, b.core.role)
	require.False(t, b.core.configuration().Joint())
	require.Equal(t, Index(5), b.core.log.last, "1 bootstrap, 2 no-op, 3 joint, 4 no-op, 5 left")
	l.start("a")
	l.heartbeats("b", 10)
	l.requireEqualLogs()
}

// SAFETY §3: "change before the leader's own no-op is committed" (dissertation §4.1 and its correction); at most one at a time (inv 17).
func TestChangesAreRefusedWhileOneMayBeUnderWay(t *testing.T) {
	l, a := newServer(t, "a b c | d e")
	_, err := a.change(Change{Remove: []NodeID{"d"}})
	require.ErrorIs(t, err, ErrNotLeader)
	l.office(a, "b")
	_, err = a.change(Change{Remove: []NodeID{"d"}})
	require.ErrorIs(t, err, ErrChangePending)
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
	_, err = a.change(Change{Remove: []NodeID{"d"}})
	require.NoError(t, err)
	_, err = a.change(Change{Remove: []NodeID{"e"}})
	require.ErrorIs(t, err, ErrChangePending)
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 2, MatchIndex: 3})
	_, err = a.change(Change{Demote: []NodeID{"c"}})
	require.NoError(t, err)
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 3, MatchIndex: 4})
	require.Equal(t, Index(5), a.core.log.last, "the joint one is committed, and its successor is not")
	_, err = a.change(Change{Remove: []NodeID{"e"}})
	require.ErrorIs(t, err, ErrChangePending)
}

// SAFETY §3: "stale-configuration change fails loudly".
func TestChangeComparesTheConfigurationIndex(t *testing.T) {
	l := newCluster(t, "a b c | d e")
	a := l.elect("a")
	_, err := a.change(Change{Remove: []NodeID{"d"}, IfIndex: 7})
	require.ErrorIs(t, err, ErrChangeConflict)
	_, err = a.change(Change{Remove: []NodeID{"d"}, IfIndex: 1})
	require.NoError(t, err)
	l.settle()
	_, err = a.change(Change{Remove: []NodeID{"e"}, IfIndex: 1})
	require.ErrorIs(t, err, ErrChangeConflict)
	require.Equal(t, Index(3), a.core.log.last)
}

// Dissertation §4.2.1: "a new server joins the cluster as a non-voting member", and is promoted once it has caught up.
func TestServerJoinsAsLearnerAndIsPromotedOnceCaughtUp(t *testing.T) {
	l := newCluster(t, "a b c")
	a := l.elect("a")
	a.propose("x")
	l.settle()
	_, err := a.change(Change{Add: []Server{{ID: "d", Address: "d:1", Suffrage: Voter, Outgoing: true, Replica: 5}}})
	require.NoError(t, err)
	l.settle()
	s, _ := a.core.configuration().Server("d")
	require.Equal(t, Server{ID: "d", Address: "d:1", Suffrage: NonVoter}, s, "whatever was asked for")
	require.False(t, a.core.configuration().Joint(), "nothing joint about it")
	var refused *MembershipError
	_, err = a.change(Change{Promote: []NodeID{"d"}})
	require.ErrorAs(t, err, &refused)
	require.Equal(t, NodeID("d"), refused.Server)

	l.provision("d", HardState{}) // a blank directory
	d := l.start("d")
	l.heartbeats("a", 4)
	require.Equal(t, []string{"x"}, d.commands())
	require.Equal(t, "a, b, c, d learner", describeConfiguration(d.core.configuration()))
	_, err = a.change(Change{Promote: []NodeID{"d"}})
	require.NoError(t, err)
	l.settle()
	require.Contains(t, d.core.configuration().Voters(), NodeID("d"))
	s, _ = a.core.configuration().Server("d")
	require.Equal(t, ReplicaID(labReplica+'d'), s.Replica, "its data directory was written down")
}

// A change is refused when it makes no sense, and then nothing has changed.
func TestSenselessChangesAreRefused(t *testing.T) {
	for name, ch := range map[string]Change{
		"nothing":                    {},
		"add a member":               {Add: []Server{{ID: "b"}}},
		"add twice":                  {Add: []Server{{ID: "x"}, {ID: "x"}}},
		"add without a name":         {Add: []Server{{}}},
		"add a removed server":       {Add: []Server{{ID: "gone"}}},
		"promote a stranger":         {Promote: []NodeID{"x"}},
		"promote a voter":            {Promote: []NodeID{"b"}},
		"demote a stranger":          {Demote: []NodeID{"x"}},
		"demote a learner":           {Demote: []NodeID{"d"}},
		"remove a stranger":          {Remove: []NodeID{"x"}},
		"name one twice":             {Demote: []NodeID{"b"}, Remove: []NodeID{"b"}},
		"move a stranger":            {Address: map[NodeID]string{"x": "y"}},
		"give a stranger a priority": {Priority: map[NodeID]uint8{"x": 1}},
		"the same address":           {Address: map[NodeID]string{"b": "b:1"}},
		"remove all voters":          {Remove: []NodeID{"a", "b", "c"}},
		"remove a majority":          {Remove: []NodeID{"b", "c"}},
		"demote a majority":          {Demote: []NodeID{"b", "c"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, "a b c | d")
			l.conf.Removed = []NodeID{"gone"}
			for _, id := range []string{"a", "b", "c", "d"} {
				l.start(id)
			}
			a := l.elect("a")
			var refused *MembershipError
			_, err := a.change(ch)
			require.ErrorAs(t, err, &refused)
			require.Equal(t, Index(2), a.core.log.last)
			require.Equal(t, Index(1), a.core.configurationIndex())
		})
	}
	t.Run("what is left could commit nothing", func(t *testing.T) {
		l := newCluster(t, "a b c d")
		a := l.elect("a")
		l.isolate("c", true)
		l.isolate("d", true)
		l.pass(900 * time.Millisecond)
		for _, id := range []string{"b"} {
			l.step(id, "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
		}
		l.pass(100 * time.Millisecond)
		var refused *MembershipError
		_, err := a.change(Change{Remove: []NodeID{"b"}})
		require.ErrorAs(t, err, &refused)
		require.ErrorContains(t, err, "only 1 of the 3")
	})
}

// Address and priority change in place, without a joint configuration, and the transport is told.
func TestAddressAndPriorityChangeInPlace(t *testing.T) {
	l := newCluster(t, "a b c")
	a := l.elect("a")
	_, err := a.change(Change{Address: map[NodeID]string{"b": "new:9"}, Priority: map[NodeID]uint8{"b": 7, "c": 1}})
	require.NoError(t, err)
	require.False(t, a.core.configuration().Joint())
	require.Equal(t, "new:9", a.peers[0].Address)
	l.settle()
	require.Equal(t, 2, l.server("a").core.priorityRank)
	require.Equal(t, 1, l.server("c").core.priorityRank)
	require.Equal(t, 0, l.server("b").core.priorityRank)
}

// §6: "a server always uses the latest configuration in its log"; SAFETY §3: "uncommitted configuration truncated and rolled back,
// across restart too".
func TestTruncatedConfigurationIsRolledBack(t *testing.T) {
	for _, restart := range []bool{false, true} {
		l, a := newServer(t, "a b c")
		bigger := labConfiguration("a b c | d")
		l.step("b", "a", 2, 1, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: []Entry{labConfigurationEntry(2, 2, bigger)}})
		require.Equal(t, Index(2), a.core.configurationIndex())
		require.Len(t, a.peers, 3)
		if restart {
			l.crash("a")
			a = l.start("a")
			require.Equal(t, Index(2), a.core.configurationIndex(), "in force though nobody says that it is committed")
		}
		l.step("c", "a", 3, 1, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: l.entries(2, 3)})
		require.Equal(t, Index(1), a.core.configurationIndex())
		require.Len(t, a.core.configuration().Servers, 3)
		require.Len(t, a.peers, 2)
		require.Nil(t, a.core.peer("d"))
		if restart {
			l.crash("a")
			a = l.start("a")
			require.Equal(t, Index(1), a.core.configurationIndex())
		}
	}
}

// §6: "the cluster leader may not be part of the new configuration. In this case, the leader steps down (returns to follower state)
// once it has committed the C_new log entry"; "it replicates log entries but does not count itself in majorities".
func TestLeaderRemovesItself(t *testing.T) {
	l := newCluster(t, "a b c")
	a := l.elect("a")
	_, err := a.change(Change{Remove: []NodeID{"a"}})
	require.NoError(t, err)
	l.deliver("a", "*") // C_old,new
	l.deliver("*", "a") // committed: a appends C_new
	require.Equal(t, Leader, a.core.role)
	require.Equal(t, "b, c, a removed", describeConfiguration(a.core.configuration()))
	l.take("a", "c", "") // lost
	l.deliver("a", "b")
	l.deliver("b", "a")
	require.Equal(t, Index(4), a.core.peer("b").matchIndex)
	require.Equal(t, Leader, a.core.role, "b alone is no majority of b and c: a does not count itself (SAFETY inv 18)")
	require.Equal(t, Index(3), a.core.commitIndex)
	require.Empty(t, l.take("a", "*", "TimeoutNow"))
	l.heartbeats("a", 7)
	require.Equal(t, Follower, a.core.role)
	ev, _ := lastEvent[LeaderChange](l.server("b"))
	require.NotEqual(t, NodeID("a"), ev.Leader)
	leaders := 0
	for _, id := range []string{"b", "c"} {
		s := l.server(id)
		require.Equal(t, "b, c, a removed", describeConfiguration(s.core.configuration()))
		if s.core.role == Leader {
			leaders++
		}
	}
	require.Equal(t, 1, leaders, "its successor was told to campaign")
	l.pass(time.Minute)
	l.timeout("a")
	require.Equal(t, Follower, a.core.role, "SAFETY inv 25")
}

// DESIGN §3: "The leader goes on replicating to a removed node until it knows of its removal (bounded)", else it would campaign for ever.
func TestRemovedServerLearnsOfItsRemoval(t *testing.T) {
	l := newCluster(t, "a b c d")
	a := l.elect("a")
	_, err := a.change(Change{Remove: []NodeID{"d"}})
	require.NoError(t, err)
	l.settle()
	d := l.server("d")
	require.False(t, d.core.configuration().IsVoter("d"))
	require.Equal(t, d.core.configurationIndex(), d.core.committedConfig)
	l.timeout("d")
	require.Equal(t, Follower, d.core.role)
	l.heartbeats("a", 2)
	require.Nil(t, a.core.peer("d"))
	require.Len(t, a.peers, 2)

	// One that cannot be reached is given up after a while, and is not counted meanwhile.
	l = newCluster(t, "a b c d")
	a = l.elect("a")
	l.isolate("d", true)
	_, err = a.change(Change{Remove: []NodeID{"d"}})
	require.NoError(t, err)
	l.settle()
	require.False(t, a.core.configuration().Joint())
	require.NotNil(t, a.core.peer("d"))
	require.False(t, a.core.peer("d").voter())
	l.heartbeats("a", 101)
	require.Nil(t, a.core.peer("d"))
}

// DESIGN §3: "a demoted voter stays in the old half and becomes learner on leaving".
func TestDemotedVoterBecomesALearner(t *testing.T) {
	l := newCluster(t, "a b c d")
	a := l.elect("a")
	_, err := a.change(Change{Demote: []NodeID{"d"}})
	require.NoError(t, err)
	require.Equal(t, "a outgoing, b outgoing, c outgoing, d learner outgoing", describeConfiguration(a.core.configuration()))
	require.True(t, a.core.configuration().IsVoter("d"))
	l.settle()
	require.Equal(t, "a, b, c, d learner", describeConfiguration(l.server("d").core.configuration()))
	l.timeout("d")
	require.Equal(t, Follower, l.server("d").core.role)

	// The leader itself: like one that removes itself.
	_, err = a.change(Change{Demote: []NodeID{"a"}})
	require.NoError(t, err)
	l.settle()
	require.Equal(t, Follower, a.core.role)
	require.Equal(t, 1, len(l.leaders)-1, "one more leader")
}

// SAFETY §3: "reused ID with an empty log forms its own quorum"; inv 25: the ID of a removed server cannot come back.
func TestRemovedIDCannotComeBack(t *testing.T) {
	l := newCluster(t, "a b c | d")
	a := l.elect("a")
	_, err := a.change(Change{Remove: []NodeID{"d"}})
	require.NoError(t, err)
	l.settle()
	require.Equal(t, []NodeID{"d"}, a.core.configuration().Removed)
	var refused *MembershipError
	_, err = a.change(Change{Add: []Server{{ID: "d"}}})
	require.ErrorAs(t, err, &refused)
}

// Tombstones are bounded: the oldest goes first.
func TestTombstonesAreBounded(t *testing.T) {
	conf := labConfiguration("a")
	for i := range MaxTombstones + 2 {
		conf.bury(NodeID(fmt.Sprint(i)))
	}
	require.Len(t, conf.Removed, MaxTombstones)
	require.False(t, conf.IsRemoved("0"))
	require.NoError(t, conf.Validate())
}

// Several configurations are in the log of a server that has just started and knows of no commitment: one of them at most is really
// uncommitted, and it may lead.
func TestRestartedServerLeadsWithSeveralConfigurationsInItsLog(t *testing.T) {
	l := newCluster(t, "a b c | d e")
	a := l.elect("a")
	for _, id := range []NodeID{"d", "e"} {
		_, err := a.change(Change{Remove: []NodeID{id}})
		require.NoError(t, err)
		l.settle()
	}
	for _, id := range []string{"a", "b", "c"} {
		l.crash(id)
	}
	for _, id := range []string{"a", "b", "c"} {
		l.start(id)
	}
	l.elect("b")
	require.Equal(t, Index(4), l.server("b").core.configurationIndex())
}

// §6: after a change that a single voter makes alone, the other one takes over.
func TestSingleVoterCanBeReplaced(t *testing.T) {
	l := newCluster(t, "a | b")
	a := l.elect("a")
	l.settle()
	_, err := a.change(Change{Promote: []NodeID{"b"}, Remove: []NodeID{"a"}})
	require.NoError(t, err)
	l.settle()
	require.Equal(t, Leader, l.server("b").core.role)
	l.server("b").propose("x")
	require.Equal(t, []string{"x"}, l.server("b").commands())
}

// Dissertation §4.2.2: "a server that is not part of its own latest configuration should still start new elections, as it might
// still be needed until the C_new entry is committed". Here only the demoted server holds C_new: the leader sent it while it was
// writing it itself, and crashed. It lacks the entry, so it cannot win the vote that the joint configuration demands of b; and b
// must lead although the configuration in its log says that it is a learner.
//
//	a  1 2 3          3: a, b outgoing → a, b learner (joint)
//	b  1 2 3 4        4: a, b learner
//
// Found by TestChaos, seed 2026.
func TestServerOutsideOfAnUncommittedConfigurationMayLead(t *testing.T) {
	for name, change := range map[string]Change{"demoted": {Demote: []NodeID{"b"}}, "removed": {Remove: []NodeID{"b"}}} {
		t.Run(name, func(t *testing.T) {
			l := newCluster(t, "a b")
			a := l.elect("a")
			_, err := a.change(change)
			require.NoError(t, err)
			a.slow = true
			l.settle()
			l.crash("a")
			l.start("a")
			require.Equal(t, Index(3), l.server("a").core.configurationIndex())
			require.Equal(t, Index(4), l.server("b").core.configurationIndex())
			require.False(t, l.server("b").core.configuration().IsVoter("b"))

			l.pass(2 * time.Second)
			l.timeout("a")
			l.settle()
			require.NotEqual(t, Leader, l.server("a").core.role, "its log lacks an entry that b may have helped to commit")
			l.pass(2 * time.Second)
			l.timeout("b")
			l.settle()
			require.Equal(t, Leader, l.server("a").core.role, "b has led, brought a up to date, and handed over")
			require.Equal(t, Index(4), l.server("a").core.configurationIndex())
			require.False(t, l.server("b").core.canCampaign(), "now it knows that its demotion is committed")
		})
	}
}

// Dissertation §6.2 with §6: a leader that is not heard by a quorum of each half steps down. A majority that does not hear it may have
// elected another (SAFETY inv 27).
func TestLeaderThatHalfOfAJointConfigurationDoesNotHearStepsDown(t *testing.T) {
	l := newCluster(t, "a b c | d e")
	a := l.elect("a")
	for _, id := range []string{"b", "c"} {
		l.isolate(id, true)
	}
	_, err := a.change(Change{Promote: []NodeID{"d", "e"}})
	require.NoError(t, err)
	l.heartbeats("a", 8)
	require.True(t, a.core.configuration().Joint())
	require.Equal(t, Leader, a.core.role)
	l.heartbeats("a", 3)
	require.Equal(t, Follower, a.core.role, "a, d and e are a majority of the five, and a alone is none of the three")
}

// SAFETY inv 25: "a removed server never counts again", also while its leader still tells it of its removal. e left; then f is promoted.
// The old half of that is a b c d, and three of them are needed.
func TestRemovedServerThatLingersIsNotCounted(t *testing.T) {
	l := newCluster(t, "a b c d e | f")
	a := l.elect("a")
	l.isolate("e", true)
	_, err := a.change(Change{Remove: []NodeID{"e"}})
	require.NoError(t, err)
	l.settle()
	require.False(t, a.core.configuration().Joint())
	require.NotNil(t, a.core.peer("e"))
	for _, id := range []string{"c", "d"} {
		l.isolate(id, true)
	}
	_, err = a.change(Change{Promote: []NodeID{"f"}})
	require.NoError(t, err)
	answer := func(match Index) {
		l.step("e", "a", a.core.currentTerm, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: match})
	}
	for range 6 {
		l.heartbeats("a", 1)
		answer(1)
	}
	require.NotEmpty(t, a.core.Status(l.now).WhyNot, "c and d have not answered lately")
	answer(a.core.log.last)
	require.True(t, a.core.configuration().Joint(), "a, b and e are three, but e is none of the four")
	l.isolate("c", false)
	l.heartbeats("a", 2)
	require.False(t, a.core.configuration().Joint())
	require.Empty(t, a.core.Status(l.now).WhyNot)
}

// Dissertation §4.2.2: a server that is not part of its latest configuration may campaign, but its own vote counts in no half. Here b
// alone holds C_new, of a and c.
func TestVoteOfACandidateOutsideOfItsConfigurationIsNotCounted(t *testing.T) {
	l := newLab(t, "a b c", func(c *CoreConfig) { c.DisablePreVote = true })
	joint := l.conf.Clone()
	for i := range joint.Servers {
		joint.Servers[i].Outgoing, joint.Servers[i].Leaving = true, joint.Servers[i].ID == "b"
	}
	s := l.provision("b", HardState{CurrentTerm: 2}, 1, 2, 2)
	s.disk.entries[1], s.disk.entries[2] = labConfigurationEntry(2, 2, joint), labConfigurationEntry(2, 3, joint.left())
	b := l.start("b")
	require.Equal(t, "a, c, b removed", describeConfiguration(b.core.configuration()))
	l.timeout("b")
	l.step("a", "b", 3, 1, RequestVoteReply{Granted: true})
	require.Equal(t, Candidate, b.core.role, "one of two is no majority")
	l.step("c", "b", 3, 1, RequestVoteReply{Granted: true})
	require.Equal(t, Leader, b.core.role)
}

// later makes a lone leader, whose configuration is committed, lead again in a later term, before its no-op is committed.
func (l *lab) later(a *labServer) {
	l.t.Helper()
	l.office(a, "b")
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
	require.Equal(l.t, Index(2), a.core.commitIndex)
	l.step("c", "a", 3, 1, RequestVoteReply{})
	l.office(a, "b")
	require.Less(l.t, a.core.commitIndex, a.core.termStart)
	require.LessOrEqual(l.t, a.core.configurationIndex(), a.core.commitIndex)
}

// SAFETY §3: "change before the leader's own no-op is committed". The configuration in force is committed, but a predecessor may have
// begun a change that this leader does not know (dissertation §4.1, and the correction of 2015).
func TestChangeWaitsForTheNoOp(t *testing.T) {
	l, a := newServer(t, "a b c | d")
	l.later(a)
	_, err := a.change(Change{Remove: []NodeID{"d"}})
	require.ErrorIs(t, err, ErrChangePending)
	l.step("b", "a", 4, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 2, MatchIndex: 3})
	_, err = a.change(Change{Remove: []NodeID{"d"}})
	require.NoError(t, err)
}

// What the leader learns about data directories is a change of the configuration like any other: it waits for the no-op, for the change
// under way, and for the end of a transfer.
func TestReplicasAreRecordedWhenAChangeIsAllowed(t *testing.T) {
	start := func(t *testing.T) (*lab, *labServer) {
		l := newLab(t, "a b c | d")
		l.conf.Servers[1].Replica = 0 // b's
		return l, l.start("a")
	}
	beat := func(l *lab) {
		l.pass(100 * time.Millisecond)
		l.tick("a")
	}
	t.Run("before the no-op is committed", func(t *testing.T) {
		l, a := start(t)
		l.later(a)
		l.step("b", "a", 4, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 1})
		beat(l)
		require.Equal(t, Index(1), a.core.configurationIndex())
	})
	for name, begin := range map[string]func(*labServer) error{
		"while a change is under way":              func(a *labServer) error { _, err := a.change(Change{Remove: []NodeID{"d"}}); return err },
		"while leadership is on its way elsewhere": func(a *labServer) error { return a.transfer("c") },
	} {
		t.Run(name, func(t *testing.T) {
			l, a := start(t)
			l.office(a, "b")
			l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
			require.NoError(t, begin(a))
			at := a.core.configurationIndex()
			beat(l)
			require.Equal(t, at, a.core.configurationIndex())
		})
	}
	t.Run("and otherwise at once, of those that have acknowledged entries", func(t *testing.T) {
		l := newLab(t, "a b c | d")
		l.conf.Servers[1].Replica, l.conf.Servers[2].Replica = 0, 0
		a := l.start("a")
		l.office(a, "b")
		l.step("c", "a", 2, 1, RequestVoteReply{Granted: true})
		l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
		beat(l)
		require.Equal(t, Index(3), a.core.configurationIndex())
		for id, replica := range map[NodeID]ReplicaID{"b": labReplica + 'b', "c": 0} {
			s, _ := a.core.configuration().Server(id)
			require.Equal(t, replica, s.Replica, id)
		}
	})
	t.Run("and never a second time", func(t *testing.T) { // SAFETY §3: reused ID with an empty log
		l, a := newServer(t, "a b c | d")
		l.office(a, "b")
		l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
		l.stepMessage(Message{Header: Header{From: "c", To: "a", Replica: 77, Incarnation: 1, Term: 2, Request: a.core.nextRequest},
			Body: AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2}})
		beat(l)
		require.Equal(t, Index(1), a.core.configurationIndex())
	})
}

// Dissertation §4.2.1: promoted once it has caught up: not while it lacks entries that are committed, and not while it is silent.
func TestLearnerThatLagsOrIsSilentIsNotPromoted(t *testing.T) {
	promote := func(a *labServer) error {
		_, err := a.change(Change{Promote: []NodeID{"d"}})
		return err
	}
	t.Run("lags", func(t *testing.T) {
		l := newCluster(t, "a b c | d", func(c *CoreConfig) { c.MaxInflightMessages = 1 })
		a := l.elect("a")
		l.isolate("d", true)
		a.propose("x", "y", "z") // x is on its way to d
		l.settle()
		require.Less(t, a.core.peer("d").nextIndex, a.core.commitIndex)
		var refused *MembershipError
		require.ErrorAs(t, promote(a), &refused)
		l.isolate("d", false)
		l.heartbeats("a", 8)
		require.NoError(t, promote(a))
	})
	t.Run("is silent", func(t *testing.T) {
		l := newCluster(t, "a b c | d")
		a := l.elect("a")
		l.isolate("d", true)
		l.heartbeats("a", 10)
		require.Equal(t, stateReplicate, a.core.peer("d").state)
		var refused *MembershipError
		require.ErrorAs(t, promote(a), &refused)
		l.isolate("d", false)
		l.heartbeats("a", 1)
		require.NoError(t, promote(a))
	})
}

// The successor of a leader that cannot go on is a voter of the configuration to come, however long the log of one that leaves.
func TestHandOverNeverPicksAServerThatLeaves(t *testing.T) {
	l := newCluster(t, "a b c d")
	a := l.elect("a")
	_, err := a.change(Change{Remove: []NodeID{"d"}})
	require.NoError(t, err)
	l.deliver("a", "d")
	l.deliver("d", "a")
	l.lose()
	require.Greater(t, a.core.peer("d").matchIndex, a.core.peer("b").matchIndex)
	a.do(func(c *Core, now time.Duration) { c.StorageState(now, StorageFailed) })
	require.NotEqual(t, NodeID("d"), l.one("a", "*", "TimeoutNow").To)
}

// A learner never campaigns, so nobody waits for one, whatever its priority.
func TestPriorityOfALearnerHoldsNobodyBack(t *testing.T) {
	l := newLab(t, "a b c | d")
	l.conf.Servers[3].Priority = 9
	require.Zero(t, l.start("a").core.priorityRank)
	l.conf.Servers[2].Priority = 9
	require.Equal(t, 1, l.start("b").core.priorityRank)
}

// A server that leaves is told until it knows that its removal is committed: before that it should still start elections (dissertation
// §4.2.2). Here it holds C_new, while those that stay do not.
func TestRemovedServerIsToldThatItsRemovalIsCommitted(t *testing.T) {
	l := newCluster(t, "a b c d")
	a := l.elect("a")
	_, err := a.change(Change{Remove: []NodeID{"d"}})
	require.NoError(t, err)
	l.deliver("a", "*")
	l.deliver("*", "a")
	require.False(t, a.core.configuration().Joint())
	for _, id := range []string{"b", "c"} {
		l.isolate(id, true)
	}
	l.settle()
	require.Equal(t, a.core.log.last, a.core.peer("d").matchIndex)
	l.heartbeats("a", 2)
	require.Less(t, a.core.commitIndex, a.core.configurationIndex())
	require.NotNil(t, a.core.peer("d"))
	for _, id := range []string{"b", "c"} {
		l.isolate(id, false)
	}
	l.heartbeats("a", 8)
	d := l.server("d").core
	require.Equal(t, d.configurationIndex(), d.committedConfig)
	require.False(t, d.configuration().IsVoter("d"))
	require.Nil(t, a.core.peer("d"))
}

// Only the leader that removed a server goes on talking to it. Once it is out of office it talks to members.
func TestDeposedLeaderForgetsRemovedServers(t *testing.T) {
	l := newCluster(t, "a b c d")
	a := l.elect("a")
	l.isolate("d", true)
	_, err := a.change(Change{Remove: []NodeID{"d"}})
	require.NoError(t, err)
	l.settle()
	require.NotNil(t, a.core.peer("d"))
	require.Len(t, a.peers, 3)
	l.elect("b")
	require.Equal(t, Follower, a.core.role)
	require.Nil(t, a.core.peer("d"))
	require.Len(t, a.peers, 2)
}

// §6: "Once C_old,new has been committed", and not when anything before it is, the leader "create[s] a log entry describing C_new"; the
// others only receive it.
func TestJointConfigurationIsLeftByTheLeaderOnceItIsCommitted(t *testing.T) {
	l, a := newServer(t, "a b c d")
	l.timeout("a")
	for _, from := range []string{"b", "c"} {
		l.step(from, "a", 2, a.core.nextRequest, PreVoteReply{Granted: true})
	}
	for _, from := range []string{"b", "c"} {
		l.step(from, "a", 2, a.core.nextRequest, RequestVoteReply{Granted: true})
	}
	ack := func(from string, match Index) {
		l.step(from, "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: match})
	}
	ack("b", 2)
	ack("c", 2)
	a.propose("x") // 3
	_, err := a.change(Change{Remove: []NodeID{"d"}})
	require.NoError(t, err)
	ack("b", 3)
	ack("c", 3)
	require.Equal(t, Index(3), a.core.commitIndex)
	require.Equal(t, Index(4), a.core.log.last, "the joint configuration is not committed")
	ack("b", 4)
	require.Equal(t, Index(4), a.core.log.last)
	ack("c", 4)
	require.Equal(t, Index(5), a.core.log.last)
	require.False(t, a.core.configuration().Joint())

	l, a = newServer(t, "a b c d")
	joint := l.conf.Clone()
	for i := range joint.Servers {
		joint.Servers[i].Outgoing, joint.Servers[i].Leaving = true, joint.Servers[i].ID == "d"
	}
	l.step("b", "a", 2, 1, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, LeaderCommit: 2, Entries: []Entry{labConfigurationEntry(2, 2, joint)}})
	require.Equal(t, Index(2), a.core.commitIndex)
	require.Equal(t, Index(2), a.core.log.last, "a follower appends nothing")
}

// A removed server that cannot be reached is told again and again, because what was sent to it was lost; but not for ever, and further
// changes give it no more time (SAFETY inv 26).
func TestRemovedServerThatCannotBeReachedIsToldForABoundedTime(t *testing.T) {
	l := newCluster(t, "a b c d")
	a := l.elect("a")
	l.isolate("d", true)
	_, err := a.change(Change{Remove: []NodeID{"d"}})
	require.NoError(t, err)
	l.settle()
	l.heartbeats("a", 50)
	require.NotNil(t, a.core.peer("d"))
	_, err = a.change(Change{Address: map[NodeID]string{"b": "new:9"}})
	require.NoError(t, err)
	l.settle()
	l.heartbeats("a", 49)
	require.NotNil(t, a.core.peer("d"))
	l.heartbeats("a", 2)
	require.Nil(t, a.core.peer("d"), "ten election timeouts are over")
}

// A configuration that counts somebody twice, brings back a server that was removed, or leaves nobody to count is refused, whoever
// sends it (SAFETY inv 18, 25).
func TestImpossibleConfigurationsAreRefused(t *testing.T) {
	for name, change := range map[string]func(*Configuration){
		"one server twice": func(c *Configuration) { c.Servers[1] = c.Servers[0] },
		"a removed server": func(c *Configuration) { c.Removed = []NodeID{"b"} },
		"no voter": func(c *Configuration) {
			for i := range c.Servers {
				c.Servers[i].Suffrage = NonVoter
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, a := newServer(t, "a b c")
			bad := l.conf.Clone()
			change(&bad)
			l.step("b", "a", 2, 1, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: []Entry{labConfigurationEntry(2, 2, bad)}})
			require.Equal(t, []Refusal{{"b", UndecodableConfiguration}}, a.refused)
			require.Equal(t, Index(1), a.core.log.last)
		})
	}
}
