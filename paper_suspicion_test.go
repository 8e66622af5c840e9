package raft

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// suspect reports the loss of a peer's process to a server.
func (s *labServer) peerLost(peer string, incarnation uint64) {
	s.lab.t.Helper()
	s.do(func(c *Core, now time.Duration) { c.PeerLost(now, NodeID(peer), incarnation) })
}

func (s *labServer) peerUp(peer string, incarnation uint64) {
	s.lab.t.Helper()
	s.do(func(c *Core, now time.Duration) {
		c.PeerUp(now, NodeID(peer), ReplicaID(labReplica+int(peer[0])), incarnation)
	})
}

// DESIGN §3, suspicion: it raises no term, but lets this server ask soon and grant at once.
func TestLostLeaderIsSuspectedBeforeItsTimeIsOver(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.leaderOf("a", "b", 2)
	a.peerLost("b", 1)
	require.True(t, a.core.suspected)
	require.Equal(t, Term(2), a.core.currentTerm)
	require.Less(t, a.core.Deadline()-l.now, 100*time.Millisecond)

	l.step("c", "a", 3, 1, PreVote{LastLogIndex: 1, LastLogTerm: 1})
	require.True(t, l.one("a", "c", "PreVoteReply").Body.(PreVoteReply).Granted)
	clone := a.core.Clone()
	clone.Step(l.now, Message{Header: Header{From: "c", To: "a", Replica: ReplicaID(labReplica + 'c'), Incarnation: 1, Term: 3}, Body: RequestVote{LastLogIndex: 1, LastLogTerm: 1}})
	require.Equal(t, NodeID("c"), clone.votedFor)

	l.now = a.core.Deadline()
	l.tick("a")
	require.Equal(t, PreCandidate, a.core.role)
	ev, _ := lastEvent[ElectionStarted](a)
	require.Equal(t, ReasonSuspicion, ev.Reason)

	// Whoever takes over has no leader left to suspect.
	l.step("c", "a", 3, 1, PreVoteReply{Granted: true})
	l.step("c", "a", 3, 1, RequestVoteReply{Granted: true})
	require.Equal(t, Leader, a.core.role)
	require.False(t, a.core.suspected)
}

// DESIGN §3, suspicion: what does not count as one.
func TestSuspicionHasConditions(t *testing.T) {
	suspects := func(t *testing.T, members string, prepare func(*lab, *labServer), peer string, incarnation uint64) bool {
		l := newLab(t, members)
		l.conf.LeaderLeases = t.Name()[len(t.Name())-6:] == "leases"
		a := l.start("a")
		l.leaderOf("a", "b", 2)
		prepare(l, a)
		deadline := a.core.electionDeadline
		a.peerLost(peer, incarnation)
		if !a.core.suspected {
			require.Equal(t, deadline, a.core.electionDeadline)
		}
		return a.core.suspected
	}
	nothing := func(*lab, *labServer) {}
	t.Run("leader", func(t *testing.T) { require.True(t, suspects(t, "a b c", nothing, "b", 1)) })
	t.Run("another follower", func(t *testing.T) { require.False(t, suspects(t, "a b c", nothing, "c", 1)) })
	t.Run("stranger", func(t *testing.T) { require.False(t, suspects(t, "a b c", nothing, "x", 1)) })
	t.Run("obituary of a replaced process", func(t *testing.T) {
		require.False(t, suspects(t, "a b c", func(l *lab, a *labServer) { a.peerUp("b", 2) }, "b", 1))
	})
	t.Run("leases", func(t *testing.T) { require.False(t, suspects(t, "a b c", nothing, "b", 1)) })
	t.Run("rate limit", func(t *testing.T) {
		require.False(t, suspects(t, "a b c", func(l *lab, a *labServer) {
			a.peerLost("b", 1)
			l.pass(999 * time.Millisecond)
			l.leaderOf("a", "b", 2)
		}, "b", 1))
	})
	t.Run("rate limit over", func(t *testing.T) {
		require.True(t, suspects(t, "a b c", func(l *lab, a *labServer) {
			a.peerLost("b", 1)
			l.pass(1000 * time.Millisecond)
			l.leaderOf("a", "b", 2)
		}, "b", 1))
	})
}

// A suspicion never puts an election off: whose timeout is over sooner than its turn among the suspicious comes campaigns then.
func TestSuspicionPutsNoElectionOff(t *testing.T) {
	l := newLab(t, "a b c d")
	d := l.start("d")
	l.leaderOf("d", "b", 2)
	deadline := d.core.electionDeadline
	l.now = deadline - time.Millisecond
	d.peerLost("b", 1)
	require.True(t, d.core.suspected)
	require.Equal(t, deadline, d.core.electionDeadline)
}

// DESIGN §3, suspicion: "cancelled by a redial that reaches the same incarnation and by any valid message of that leader".
func TestSuspicionFalls(t *testing.T) {
	t.Run("by a message of the leader", func(t *testing.T) {
		l, a := newServer(t, "a b c")
		l.leaderOf("a", "b", 2)
		a.peerLost("b", 1)
		l.leaderOf("a", "b", 2)
		require.False(t, a.core.suspected)
		require.GreaterOrEqual(t, a.core.Deadline(), l.now+time.Second)
		l.step("c", "a", 3, 1, PreVote{LastLogIndex: 1, LastLogTerm: 1})
		require.False(t, l.one("a", "c", "PreVoteReply").Body.(PreVoteReply).Granted)
	})
	t.Run("by a redial that reaches the same process", func(t *testing.T) {
		l, a := newServer(t, "a b c")
		l.leaderOf("a", "b", 2)
		a.peerLost("b", 1)
		a.peerUp("b", 1)
		require.False(t, a.core.suspected)
		require.GreaterOrEqual(t, a.core.Deadline(), l.now+time.Second)
	})
	t.Run("not by a redial that reaches its successor", func(t *testing.T) {
		l, a := newServer(t, "a b c")
		l.leaderOf("a", "b", 2)
		a.peerLost("b", 1)
		a.peerUp("b", 2)
		require.True(t, a.core.suspected)
	})
	t.Run("not by a redial that reaches another directory", func(t *testing.T) {
		l, a := newServer(t, "a b c")
		l.leaderOf("a", "b", 2)
		a.peerLost("b", 1)
		a.do(func(c *Core, now time.Duration) { c.PeerUp(now, "b", 77, 1) })
		require.True(t, a.core.suspected)
	})
	t.Run("not by a redial that reaches another server", func(t *testing.T) {
		l, a := newServer(t, "a b c")
		l.leaderOf("a", "b", 2)
		l.step("c", "a", 2, 1, RequestVoteReply{})
		a.peerLost("b", 1)
		a.peerUp("c", 1)
		a.peerUp("x", 1) // a stranger
		require.True(t, a.core.suspected)
	})
	t.Run("and where there is none a redial changes nothing", func(t *testing.T) {
		l, a := newServer(t, "a b c")
		l.leaderOf("a", "b", 2)
		deadline := a.core.electionDeadline
		l.pass(500 * time.Millisecond)
		a.peerUp("b", 1)
		require.Equal(t, deadline, a.core.electionDeadline)
	})
	t.Run("not by a message of another server", func(t *testing.T) {
		l, a := newServer(t, "a b c")
		l.leaderOf("a", "b", 2)
		a.peerLost("b", 1)
		l.step("c", "a", 2, 1, RequestVote{LastLogIndex: 1, LastLogTerm: 1})
		require.True(t, a.core.suspected)
	})
}

// A learner that suspects the leader grants, but does not campaign sooner for it.
func TestLearnerSuspectsWithoutCampaigning(t *testing.T) {
	l := newLab(t, "b c | a")
	a := l.start("a")
	l.leaderOf("a", "b", 2)
	deadline := a.core.electionDeadline
	a.peerLost("b", 1)
	require.Equal(t, deadline, a.core.electionDeadline)
	l.step("c", "a", 3, 1, PreVote{LastLogIndex: 1, LastLogTerm: 1})
	require.True(t, l.one("a", "c", "PreVoteReply").Body.(PreVoteReply).Granted)
}

// DESIGN §3: "a majority that suspects independently is needed, so one broken link deposes nobody".
func TestOneSuspicionDeposesNobody(t *testing.T) {
	l := newCluster(t, "a b c")
	a := l.elect("a")
	b := l.server("b")
	b.peerLost("a", 1)
	l.now = b.core.Deadline()
	l.server("c").core.lastLeaderContact = l.now
	l.tick("b")
	l.settle()
	require.Equal(t, Leader, a.core.role)
	require.Equal(t, Term(2), b.core.currentTerm)

	// Two of three do depose it, in milliseconds.
	l.timeout("a")
	l.settle()
	l.pass(time.Second)
	l.timeout("a")
	l.settle()
	l.crash("a")
	start := l.now
	for _, id := range []string{"b", "c"} {
		l.server(id).peerLost("a", 1)
	}
	l.now = b.core.Deadline()
	l.tick("b")
	l.settle()
	require.Equal(t, Leader, b.core.role)
	require.Less(t, l.now-start, 50*time.Millisecond)
}

// Servers that notice the same death are staggered by priority and then by ID, so that they do not split the vote.
func TestSuspiciousServersAreStaggered(t *testing.T) {
	l := newLab(t, "a b c d e")
	l.conf.Servers[4].Priority = 3 // e
	slot := 25 * time.Millisecond
	for rank, id := range []string{"e", "a", "c", "d"} { // b leads
		s := l.start(id)
		l.leaderOf(id, "b", 2)
		s.peerLost("b", 1)
		wait := s.core.Deadline() - l.now
		require.GreaterOrEqual(t, wait, time.Duration(rank)*slot, id)
		require.Less(t, wait, time.Duration(rank)*slot+slot/2, id)
	}
}

// On a leader the loss of a follower's process says only that what is in flight is lost.
func TestLeaderProbesALostFollower(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.office(a, "b")
	term := a.core.currentTerm
	l.step("b", "a", term, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
	a.propose("x", "y")
	p := a.core.peer("b")
	require.Equal(t, stateReplicate, p.state)
	require.Equal(t, Index(5), p.nextIndex)
	l.lose()
	a.peerLost("b", 1)
	require.Equal(t, Leader, a.core.role)
	m := l.one("a", "b", "AppendEntries").Body.(AppendEntries)
	require.Equal(t, Index(2), m.PrevLogIndex)
	require.Len(t, m.Entries, 2)
}
