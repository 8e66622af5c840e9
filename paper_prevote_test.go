package raft

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Dissertation §9.6: "a candidate only increments its term if it first learns from a majority of the cluster that they would be
// willing to grant the candidate their votes" (SAFETY inv 28).
func TestFailedPreVoteRaisesNoTerm(t *testing.T) {
	l, a := newServer(t, "a b c d e")
	for range 3 {
		l.timeout("a")
		require.Equal(t, PreCandidate, a.core.role)
		for _, m := range l.take("a", "*", "PreVote") {
			require.Equal(t, Term(2), m.Term)
		}
		l.step("b", "a", 2, a.core.nextRequest, PreVoteReply{Granted: true})
		l.step("c", "a", 1, a.core.nextRequest, PreVoteReply{})
		require.Equal(t, PreCandidate, a.core.role)
	}
	require.Equal(t, HardState{CurrentTerm: 1}, a.disk.hard)
	require.Empty(t, a.writes)
	l.step("b", "a", 2, 1, PreVoteReply{Granted: true})
	l.step("d", "a", 2, 1, PreVoteReply{Granted: true})
	require.Equal(t, Candidate, a.core.role)
	require.Equal(t, Term(2), a.core.currentTerm)
}

// SAFETY §3: "pre-vote reply counted as a vote".
func TestPreVoteIsNoVote(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.candidacy(a, "b")
	l.step("b", "a", 2, 1, PreVoteReply{Granted: true})
	l.step("c", "a", 2, 1, PreVoteReply{Granted: true})
	l.step("c", "a", 3, 1, PreVoteReply{Granted: true})
	require.Equal(t, Candidate, a.core.role)
	require.Equal(t, Term(2), a.core.currentTerm, "a granted pre-vote carries a term that nobody has entered")

	// A pre-vote counts for the term that it was given for.
	l, a = newServer(t, "a b c")
	l.timeout("a")
	l.step("b", "a", 1, 1, PreVoteReply{Granted: true})
	l.step("b", "a", 7, 1, PreVoteReply{Granted: true})
	require.Equal(t, PreCandidate, a.core.role)

	// Nor is a vote a pre-vote.
	l, a = newServer(t, "a b c")
	l.timeout("a")
	l.step("b", "a", 1, 1, RequestVoteReply{Granted: true})
	require.Equal(t, PreCandidate, a.core.role)
}

// Dissertation §9.6: a pre-candidate that votes for somebody has lost. If it went on, the pre-votes that it gets later would let it
// campaign against the very candidate that it has voted for.
func TestPreCandidateThatVotesGivesUp(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.step("c", "a", 2, 1, TimeoutNowReply{})
	l.timeout("a")
	require.Equal(t, PreCandidate, a.core.role)
	l.step("b", "a", 2, 1, RequestVote{LastLogIndex: 1, LastLogTerm: 1})
	require.Equal(t, NodeID("b"), a.core.votedFor)
	require.Equal(t, Follower, a.core.role)
	l.step("c", "a", 3, a.core.nextRequest, PreVoteReply{Granted: true})
	require.Equal(t, Term(2), a.core.currentTerm)
}

// §5.1, for pre-votes: a refusal of an earlier term answers a question that was asked in that term.
func TestLateRefusalsOfAnEarlierTermEndNoPreVote(t *testing.T) {
	l := newLab(t, "a b c")
	l.provision("a", HardState{CurrentTerm: 5}, 1)
	a := l.start("a")
	l.timeout("a")
	for _, from := range []string{"b", "c"} {
		l.step(from, "a", 4, 1, PreVoteReply{})
	}
	require.Equal(t, PreCandidate, a.core.role)
	for _, from := range []string{"b", "c"} {
		l.step(from, "a", 5, a.core.nextRequest, PreVoteReply{})
	}
	require.Equal(t, Follower, a.core.role)
}

// Dissertation §9.6: answering a pre-vote changes nothing, so it neither raises the term nor waits for a disk.
func TestPreVoteChangesNothingAtTheVoter(t *testing.T) {
	l, a := newServer(t, "a b c")
	a.slow = true
	l.step("c", "a", 1, 1, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: l.entries(2, 1)})
	l.pass(1100 * time.Millisecond)
	l.step("b", "a", 7, 3, PreVote{LastLogIndex: 2, LastLogTerm: 1})
	m := l.one("a", "b", "PreVoteReply")
	require.Equal(t, PreVoteReply{Granted: true}, m.Body)
	require.Equal(t, Term(7), m.Term)
	require.Equal(t, uint64(3), m.Request)
	require.Equal(t, Term(1), a.core.currentTerm)
	require.Empty(t, a.core.votedFor)
	// For a term that we have entered already there is nothing to be had.
	l.step("b", "a", 1, 3, PreVote{LastLogIndex: 2, LastLogTerm: 1})
	require.Equal(t, PreVoteReply{}, l.one("a", "b", "PreVoteReply").Body)
}

// SAFETY §3: "pre-vote deadlock (long log at low term against short log at high term)". The refusal carries the voter's term.
func TestPreVoteRefusalTeachesTheTerm(t *testing.T) {
	l := newLab(t, "a b c")
	l.provision("a", HardState{CurrentTerm: 2}, 1, 2, 2, 2)
	l.provision("b", HardState{CurrentTerm: 9}, 1)
	a, b := l.start("a"), l.start("b") // and c is down
	l.timeout("a")
	l.settle()
	require.Equal(t, Term(9), a.core.currentTerm)
	require.Equal(t, Follower, a.core.role)
	l.timeout("b")
	l.settle()
	require.NotEqual(t, Leader, b.core.role, "its log is shorter")
	l.timeout("a")
	l.settle()
	require.Equal(t, Leader, a.core.role)
	l.requireEqualLogs()
}
