package raft

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Dissertation §6.4 step 1: "If the leader has not yet marked an entry from its current term committed, it waits until it has done
// so" (§8; SAFETY §3: reads "before the current-term no-op commits").
func TestReadWaitsForTheNoOp(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.office(a, "b")
	require.NoError(t, a.read(1))
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, Round: 1})
	require.Empty(t, a.reads)
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
	require.Equal(t, []ReadResult{{ID: 1, Index: 2}}, a.reads)
}

// Dissertation §6.4 step 3: the leader "issues a new round of heartbeats and waits for their acknowledgments from a majority". A
// round that began before the read proves nothing (SAFETY §3).
func TestReadNeedsARoundThatBeganAfterIt(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.office(a, "b")
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
	l.lose()
	require.NoError(t, a.read(1))
	for _, id := range []string{"b", "c"} {
		m := l.one("a", id, "AppendEntries")
		require.Equal(t, LaneControl, m.Lane())
		require.Equal(t, uint64(1), m.Body.(AppendEntries).Round)
	}
	a.propose("x")
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 2, MatchIndex: 3}) // without a round
	l.lose()
	require.NoError(t, a.read(2)) // while round 1 is under way
	require.Empty(t, l.wire)
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, Round: 1})
	require.Equal(t, []ReadResult{{ID: 1, Index: 2}}, a.reads, "its index is the commit index when it began")
	require.Equal(t, uint64(2), l.one("a", "c", "AppendEntries").Body.(AppendEntries).Round, "the next round began with the answer")
	l.step("c", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, Round: 1})
	require.Len(t, a.reads, 1)
	l.step("c", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, Round: 2})
	require.Equal(t, ReadResult{ID: 2, Index: 3}, a.reads[1])
}

// One round serves every read that came before it began.
func TestRoundServesAllWaitingReads(t *testing.T) {
	l := newCluster(t, "a b c")
	a := l.elect("a")
	for id := range uint64(20) {
		require.NoError(t, a.read(id))
	}
	l.settle()
	require.Len(t, a.reads, 20)
	require.Equal(t, uint64(2), a.core.round)
}

// If the answers to a round are lost, the next heartbeat begins another (SAFETY: nothing waits for ever).
func TestLostRoundIsReplacedByTheNextHeartbeat(t *testing.T) {
	l := newCluster(t, "a b c")
	a := l.elect("a")
	require.NoError(t, a.read(1))
	l.lose()
	require.NoError(t, a.read(2))
	l.pass(100 * time.Millisecond)
	l.tick("a")
	l.settle()
	require.Len(t, a.reads, 2)
}

// A rejection of our term confirms the leader as well: it is the term that counts.
func TestAnyAnswerOfOurTermConfirms(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.office(a, "b")
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
	require.NoError(t, a.read(1))
	l.step("c", "a", 2, a.core.nextRequest, AppendEntriesReply{PrevLogIndex: 9, Round: 1})
	require.Len(t, a.reads, 1)
}

// Learners confirm nothing (SAFETY inv 18).
func TestLearnersDoNotConfirmReads(t *testing.T) {
	l, a := newServer(t, "a b c | d")
	l.office(a, "b")
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
	l.lose()
	require.NoError(t, a.read(1))
	require.Empty(t, l.take("a", "d", ""))
	l.step("d", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, Round: 1})
	require.Empty(t, a.reads)
}

// DESIGN §3, reads: "from a quorum of every configuration in force".
func TestReadInAJointConfigurationNeedsBothMajorities(t *testing.T) {
	l := newCluster(t, "a b c | d e")
	a := l.elect("a")
	for _, id := range []string{"b", "c"} {
		l.isolate(id, true)
	}
	_, err := a.change(Change{Promote: []NodeID{"d", "e"}})
	require.NoError(t, err)
	l.settle()
	require.True(t, a.core.configuration().Joint())
	require.NoError(t, a.read(1))
	l.settle()
	require.Empty(t, a.reads, "a, d and e are a majority of the five, and a alone is none of the three")
	l.isolate("b", false)
	l.pass(100 * time.Millisecond)
	l.tick("a")
	l.settle()
	require.Len(t, a.reads, 1)
}

// Dissertation §6.4: followers do not answer; a single voter needs nobody else.
func TestReadsAtTheEdges(t *testing.T) {
	l := newCluster(t, "a b c")
	a := l.elect("a")
	require.ErrorIs(t, l.server("b").read(1), ErrNotLeader)
	require.NoError(t, a.read(2))
	l.lose()
	l.step("b", "a", 9, 1, AppendEntries{})
	require.Len(t, a.reads, 1)
	require.ErrorIs(t, a.reads[0].Err, ErrNotLeader, "SAFETY §3: every pending call ends on step-down")
	require.NoError(t, a.core.Check())

	l = newCluster(t, "a")
	a = l.elect("a")
	require.NoError(t, a.read(3))
	require.Equal(t, []ReadResult{{ID: 3, Index: 2}}, a.reads)
}

// SAFETY §3: "paused leader resumes and reads" (inv 16). The round goes to servers that have a newer leader, and is answered with its term.
func TestPausedLeaderServesNothingStale(t *testing.T) {
	l := newCluster(t, "a b c")
	a := l.elect("a")
	a.propose("old")
	l.settle()
	l.isolate("a", true)
	b := l.server("b")
	l.pass(2 * time.Second)
	l.timeout("b")
	l.settle()
	require.Equal(t, Leader, b.core.role)
	b.propose("new")
	l.settle()
	l.isolate("a", false)
	require.NoError(t, a.read(1))
	l.settle()
	require.Len(t, a.reads, 1)
	require.ErrorIs(t, a.reads[0].Err, ErrNotLeader)
}

// A read never waits behind a disk: the round is answered on the control lane while the follower's write is under way.
func TestReadsDoNotWaitForDisks(t *testing.T) {
	l := newCluster(t, "a b c")
	a := l.elect("a")
	for _, id := range l.ids() {
		l.server(id).slow = true
	}
	a.propose("x")
	l.settle()
	require.NoError(t, a.read(1))
	l.settle()
	require.Equal(t, []ReadResult{{ID: 1, Index: 2}}, a.reads)
}

// The round of a read goes to the voters of both halves at once: without the old half's answers it would not be confirmed.
func TestRoundGoesToBothHalves(t *testing.T) {
	l := newCluster(t, "a b c | d")
	a := l.elect("a")
	_, err := a.change(Change{Promote: []NodeID{"d"}, Remove: []NodeID{"c"}})
	require.NoError(t, err)
	l.lose()
	require.NoError(t, a.read(1))
	for _, id := range []string{"b", "c", "d"} {
		require.Equal(t, uint64(1), l.one("a", id, "AppendEntries").Body.(AppendEntries).Round)
	}
}

// Rounds go on rising over the offices of one process: what was answered in an earlier one confirms nothing that is asked in this.
func TestRoundsOfAnEarlierOfficeConfirmNothing(t *testing.T) {
	l := newCluster(t, "a b c")
	a := l.elect("a")
	for id := range uint64(4) {
		require.NoError(t, a.read(id))
		l.settle()
	}
	require.Len(t, a.reads, 4)
	l.elect("b")
	l.elect("a")
	l.isolate("a", true)
	require.NoError(t, a.read(5))
	l.settle()
	require.Len(t, a.reads, 4)
	l.isolate("a", false)
	l.heartbeats("a", 1)
	require.Len(t, a.reads, 5)
}

// §6: a leader that is not part of C_new "does not count itself in majorities", for reads neither (SAFETY inv 16, 18).
func TestLeaderOutsideOfTheConfigurationDoesNotConfirmItsReads(t *testing.T) {
	l := newCluster(t, "a b c")
	a := l.elect("a")
	_, err := a.change(Change{Remove: []NodeID{"a"}})
	require.NoError(t, err)
	l.deliver("a", "*") // C_old,new
	l.deliver("*", "a") // committed: a appends C_new
	require.False(t, a.core.configuration().IsVoter("a"))
	l.lose()
	require.NoError(t, a.read(1))
	require.Empty(t, a.reads)
	for _, id := range []string{"b", "c"} {
		require.Empty(t, a.reads, "b alone is no majority of b and c")
		l.step(id, "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 3, MatchIndex: 3, Round: 1})
	}
	require.Equal(t, []ReadResult{{ID: 1, Index: 3}}, a.reads)
}
