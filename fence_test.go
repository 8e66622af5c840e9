package raft

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// fencedServer starts a with a log of these terms, behind which it may have held entries up to the fence.
func fencedServer(t testing.TB, fence EntryID, terms ...Term) (*lab, *labServer) {
	l := newLab(t, "a b c")
	s := l.provision("a", HardState{CurrentTerm: 2}, terms...)
	s.disk.fence = fence
	l.start("a")
	return l, s
}

// SAFETY inv 22: a fenced server never campaigns, and never grants below its fence.
func TestFencedServerVotesForNobodyBehindItsFence(t *testing.T) {
	for _, tt := range []struct {
		fence, candidate EntryID
		granted          bool
	}{
		{EntryID{2, 5}, EntryID{2, 4}, false},
		{EntryID{2, 5}, EntryID{2, 5}, true},
		{EntryID{2, 5}, EntryID{1, 9}, false},
		{EntryID{1, 5}, EntryID{1, 6}, false}, // nor behind its own log
		{EntryID{MaxTerm, 0}, EntryID{2, 900}, false},
		{EntryID{}, EntryID{2, 2}, true},
	} {
		l, a := fencedServer(t, tt.fence, 1, 2)
		l.step("b", "a", 3, 1, PreVote{LastLogIndex: tt.candidate.Index, LastLogTerm: tt.candidate.Term})
		require.Equal(t, tt.granted, l.one("a", "b", "PreVoteReply").Body.(PreVoteReply).Granted, "%v against %v", tt.candidate, tt.fence)
		l.step("b", "a", 3, 2, RequestVote{LastLogIndex: tt.candidate.Index, LastLogTerm: tt.candidate.Term})
		require.Equal(t, tt.granted, l.one("a", "b", "RequestVoteReply").Body.(RequestVoteReply).Granted, "%v against %v", tt.candidate, tt.fence)
		if tt.fence == (EntryID{}) {
			continue
		}
		l.pass(9 * time.Second)
		l.timeout("a")
		require.Equal(t, Follower, a.core.role)
		l.step("b", "a", 3, 3, AppendEntries{PrevLogIndex: 2, PrevLogTerm: 2})
		l.step("b", "a", 3, 4, TimeoutNow{})
		require.Equal(t, Follower, a.core.role)
		require.Empty(t, append(l.take("a", "*", "PreVote"), l.take("a", "*", "RequestVote")...))
	}
	// A hostile candidate of the latest term does not get over a fence that nobody gets over.
	_, a := fencedServer(t, EntryID{MaxTerm, 0}, 1, 2)
	require.False(t, a.core.grantsTo(EntryID{MaxTerm, 9}))
}

// The fence falls when the log equals, durably, that of the leader of the present term up to a commit index that this leader has named
// to this very process, and is lifted on the disk.
func TestFenceFallsOnceTheLogHasCaughtUp(t *testing.T) {
	l, a := fencedServer(t, EntryID{2, 5}, 1, 2)
	l.step("b", "a", 3, 1, AppendEntries{PrevLogIndex: 2, PrevLogTerm: 2, LeaderCommit: 2, Entries: l.entries(3, 2, 2, 2)})
	require.Equal(t, Index(5), l.reply("a", "b").MatchIndex, "it acknowledges what it has")
	require.Equal(t, FetchEntries{}, a.asks("b"))
	fence := a.core.repair.fence
	say := func(from string, term Term, rep FetchEntriesReply) {
		t.Helper()
		l.step(from, "a", term, 1, rep)
	}
	named := FetchEntriesReply{Incarnation: 1, Leading: true, CommitIndex: 6}
	say("c", 3, named) // it does not lead
	require.Zero(t, a.core.repair.goal)
	before := named
	before.Incarnation = 0 // said to a process that had not lost anything yet
	say("b", 3, before)
	require.Zero(t, a.core.repair.goal)
	young := named
	young.Leading = false // it has committed nothing in its term
	say("b", 3, young)
	require.Zero(t, a.core.repair.goal)
	say("b", 2, named) // in an earlier term
	require.Zero(t, a.core.repair.goal)

	say("b", 3, named)
	require.Equal(t, fence, a.core.repair.fence, "entry 6 is not here")
	further := named
	further.CommitIndex = 60
	say("b", 3, further) // the goal stays where it is
	a.slow = true
	l.step("b", "a", 3, 2, AppendEntries{PrevLogIndex: 5, PrevLogTerm: 2, Entries: l.entries(6, 3)})
	require.Equal(t, fence, a.core.repair.fence, "it is not durable")
	a.slow = false
	a.persist(1)
	require.Zero(t, a.core.repair.fence)
	require.Zero(t, a.disk.fence, "and on the disk")
	lifted, n := lastEvent[FenceLifted](a)
	require.Equal(t, 1, n)
	require.Equal(t, FenceLifted{Fence: fence}, lifted)
	require.Empty(t, a.core.Status(l.now).Fence)
	l.pass(9 * time.Second)
	l.timeout("a")
	require.Equal(t, PreCandidate, a.core.role)
}

// That an index is reached says nothing where the logs were not compared: behind the last entry that equals the leader's may lie others.
func TestFenceFallsNotByWhatWasNotCompared(t *testing.T) {
	l, a := fencedServer(t, EntryID{2, 5}, 1, 2, 2, 2)
	l.step("b", "a", 3, 1, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1})
	l.step("b", "a", 3, 1, FetchEntriesReply{Incarnation: 1, Leading: true, CommitIndex: 3})
	require.NotZero(t, a.core.repair.fence)
	l.step("b", "a", 3, 2, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, LeaderCommit: 3, Entries: l.entries(2, 3, 3)})
	require.Zero(t, a.core.repair.fence)
}

// What one leader named is no goal under another, and gaps keep the fence up.
func TestFenceGoalBelongsToItsTerm(t *testing.T) {
	l := newLab(t, "a b c")
	a := l.provision("a", HardState{CurrentTerm: 2}, 1, 2, 2)
	a.disk.fence = EntryID{2, 9}
	a.damage(2)
	l.start("a")
	l.step("b", "a", 3, 1, AppendEntries{PrevLogIndex: 3, PrevLogTerm: 2, Entries: l.entries(4, 3)})
	l.step("b", "a", 3, 1, FetchEntriesReply{Incarnation: 1, Leading: true, CommitIndex: 4})
	require.NotZero(t, a.core.repair.fence, "entry 2 cannot be read")
	l.step("c", "a", 4, 1, AppendEntries{PrevLogIndex: 4, PrevLogTerm: 3})
	l.fetched("c", 4, l.entry(2, 2))
	require.NotZero(t, a.core.repair.fence)
	l.step("c", "a", 4, 2, AppendEntries{PrevLogIndex: 4, PrevLogTerm: 3, Entries: l.entries(5, 4)})
	require.NotZero(t, a.core.repair.fence)
	l.step("c", "a", 4, 3, FetchEntriesReply{Incarnation: 1, Leading: true, CommitIndex: 5})
	require.Zero(t, a.core.repair.fence)
}

// A leader names its commit index only once it has committed an entry of its own term, because only then it knows what is committed.
func TestLeaderNamesItsCommitIndexOnceItKnowsIt(t *testing.T) {
	l, a := newServer(t, "a b c")
	ask := func() FetchEntriesReply {
		l.step("b", "a", 2, 1, FetchEntries{})
		return l.one("a", "b", "FetchEntriesReply").Body.(FetchEntriesReply)
	}
	l.office(a, "c")
	require.Equal(t, FetchEntriesReply{Incarnation: 1}, ask())
	l.step("c", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
	require.Equal(t, FetchEntriesReply{Incarnation: 1, Leading: true, CommitIndex: 2}, ask())
	l.step("b", "a", 3, 1, AppendEntries{PrevLogIndex: 2, PrevLogTerm: 2})
	l.step("c", "a", 3, 1, FetchEntries{})
	require.Equal(t, FetchEntriesReply{Incarnation: 1, CommitIndex: 2}, l.one("a", "c", "FetchEntriesReply").Body)
}

// What a fenced server may have had, it does not deny.
func TestFencedServerDeniesNothingUpToItsFence(t *testing.T) {
	l, _ := fencedServer(t, EntryID{2, 5}, 1, 2)
	l.step("b", "a", 3, 1, FetchEntries{Wanted: []Stretch{{1, 2, 4}, {2, 5, 8}, {3, 9, 9}}})
	rep := l.one("a", "b", "FetchEntriesReply").Body.(FetchEntriesReply)
	require.Equal(t, []Held{{Stretch{1, 2, 4}, 4, HoldsUnknown}, {Stretch{2, 5, 8}, 5, HoldsUnknown}, {Stretch{3, 9, 9}, 8, HoldsNot}}, rep.Held)
}

// The whole of it. b had acknowledged an entry that a has committed, and has lost it; a is gone. c, which does not have it, does not get
// b's vote, so the entry is not lost; when a is back, everybody gets it, and b may lead again.
func TestFenceKeepsWhatWasCommittedWithALostAcknowledgement(t *testing.T) {
	l := newCluster(t, "a b c")
	a := l.elect("a")
	l.isolate("c", true)
	id := a.propose("x")[0]
	l.settle()
	require.Equal(t, id.Index, a.core.commitIndex)
	b := l.server("b")
	l.crash("a")
	l.crash("b")
	b.disk.entries = b.disk.entries[:id.Index-1]
	b.disk.fence = id
	l.isolate("c", false)
	b = l.start("b")
	for range 3 {
		l.pass(9 * time.Second)
		l.timeout("c")
		l.timeout("b")
		l.settle()
	}
	require.Empty(t, b.core.leader)
	l.start("a")
	l.elect("a")
	b.do(func(c *Core, now time.Duration) { c.ForceRepair(now) })
	l.settle()
	l.timeout("a")
	l.settle()
	require.Zero(t, b.core.repair.fence)
	require.Contains(t, b.commands(), "x")
	l.requireEqualLogs()
	l.elect("b")
}
