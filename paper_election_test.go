package raft

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// leaderOf gives a lone server a leader: a heartbeat of that term.
func (l *lab) leaderOf(id, leader string, term Term) {
	l.t.Helper()
	l.step(leader, id, term, 1, AppendEntries{})
	l.lose()
}

// candidacy makes a lone server of a three-server cluster a candidate by way of a granted pre-vote.
func (l *lab) candidacy(s *labServer, granter string) {
	l.t.Helper()
	l.timeout(string(s.id))
	require.Equal(l.t, PreCandidate, s.core.role)
	l.step(granter, string(s.id), s.core.currentTerm+1, s.core.nextRequest, PreVoteReply{Granted: true})
	require.Equal(l.t, Candidate, s.core.role)
}

// office makes a lone server of a three-server cluster leader, by the vote of one other, with everything on the wire lost.
func (l *lab) office(s *labServer, voter string) {
	l.t.Helper()
	l.candidacy(s, voter)
	l.step(voter, string(s.id), s.core.currentTerm, s.core.nextRequest, RequestVoteReply{Granted: true})
	require.Equal(l.t, Leader, s.core.role)
	l.lose()
}

// §5.2: "When servers start up, they begin as followers."
func TestServerStartsAsFollowerWithoutLeader(t *testing.T) {
	_, a := newServer(t, "a b c")
	require.Equal(t, Follower, a.core.role)
	require.Empty(t, a.core.leader)
	require.Equal(t, Term(1), a.core.currentTerm)
	require.Zero(t, a.core.commitIndex)
}

// §5.1: "If a server's current term is smaller than the other's, then it updates its current term to the larger value. If a
// candidate or leader discovers that its term is out of date, it immediately reverts to follower state."
func TestLaterTermMakesEveryRoleAFollower(t *testing.T) {
	bodies := []Body{
		AppendEntries{}, AppendEntriesReply{}, RequestVoteReply{}, PreVoteReply{}, TimeoutNow{}, TimeoutNowReply{}, InstallSnapshotReply{},
		RequestVote{Transfer: true},
	}
	roles := map[string]func(l *lab, a *labServer){
		"follower":      func(l *lab, a *labServer) {},
		"pre-candidate": func(l *lab, a *labServer) { l.timeout("a") },
		"candidate":     func(l *lab, a *labServer) { l.candidacy(a, "b") },
		"leader":        func(l *lab, a *labServer) { l.office(a, "b") },
	}
	for name, enter := range roles {
		for _, body := range bodies {
			t.Run(fmt.Sprintf("%s %T", name, body), func(t *testing.T) {
				l, a := newServer(t, "a b c")
				enter(l, a)
				require.Equal(t, name, a.core.role.String())
				l.step("c", "a", 9, 1, body)
				require.Equal(t, Term(9), a.core.currentTerm)
				require.Equal(t, Follower, a.core.role)
				require.Equal(t, Term(9), a.disk.hard.CurrentTerm)
			})
		}
	}
}

// §5.1: "If a server receives a request with a stale term number, it rejects the request", with the term that tells why (Figure 2).
func TestRequestsOfEarlierTermsAreRejected(t *testing.T) {
	meta := SnapshotMeta{Index: 5, Term: 1, Configuration: labConfiguration("a b c")}
	replies := map[string]Body{
		"AppendEntriesReply":   AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1},
		"RequestVoteReply":     RequestVote{LastLogIndex: 9, LastLogTerm: 2},
		"PreVoteReply":         PreVote{LastLogIndex: 9, LastLogTerm: 2},
		"InstallSnapshotReply": InstallSnapshot{Meta: meta},
		"TimeoutNowReply":      TimeoutNow{},
	}
	for kind, request := range replies {
		t.Run(kind, func(t *testing.T) {
			l := newLab(t, "a b c")
			l.provision("a", HardState{CurrentTerm: 5}, 1)
			l.start("a")
			l.step("b", "a", 2, 7, request)
			m := l.one("a", "b", kind)
			require.Equal(t, Term(5), m.Term)
			require.Equal(t, uint64(7), m.Request)
			switch r := m.Body.(type) {
			case AppendEntriesReply:
				require.False(t, r.Success)
			case RequestVoteReply:
				require.False(t, r.Granted)
			case PreVoteReply:
				require.False(t, r.Granted)
			case InstallSnapshotReply:
				require.Zero(t, r.MatchIndex)
			case TimeoutNowReply:
				require.False(t, r.Accepted)
			}
			a := l.server("a")
			require.Empty(t, a.core.leader)
			require.Equal(t, Follower, a.core.role)
			require.Equal(t, Index(1), a.core.log.last)
		})
	}
}

// §5.1, for replies: one of an earlier term answers a server that we no longer are.
func TestRepliesOfEarlierTermsAreIgnored(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.candidacy(a, "b")
	term := a.core.currentTerm
	l.step("b", "a", term-1, 1, RequestVoteReply{Granted: true})
	require.Equal(t, Candidate, a.core.role)
	l.step("b", "a", term, 1, RequestVoteReply{Granted: true})
	require.Equal(t, Leader, a.core.role)
	l.step("c", "a", term-1, 1, AppendEntriesReply{Success: true, MatchIndex: a.core.log.last})
	require.Zero(t, a.core.peer("c").matchIndex)
	require.Zero(t, a.core.commitIndex)
}

// §5.2: "If a follower receives no communication over a period of time called the election timeout, it begins an election", and
// §9.3: "chosen randomly from a fixed interval", here [T, 2T).
func TestElectionTimeoutIsRandomInItsInterval(t *testing.T) {
	l, a := newServer(t, "a b c")
	seen := map[time.Duration]bool{}
	for range 200 {
		l.leaderOf("a", "b", 2)
		wait := a.core.Deadline() - l.now
		require.GreaterOrEqual(t, wait, time.Second)
		require.Less(t, wait, 2*time.Second)
		seen[wait] = true
		l.pass(time.Millisecond)
	}
	require.Greater(t, len(seen), 150)
	l.pass(a.core.Deadline() - l.now - 1)
	l.tick("a")
	require.Equal(t, Follower, a.core.role)
	l.pass(1)
	l.tick("a")
	require.Equal(t, PreCandidate, a.core.role)
}

// Figure 2, candidates: "Increment currentTerm, vote for self, reset election timer, send RequestVote RPCs to all other servers".
func TestCandidateRaisesTermVotesForItselfAndAsksAll(t *testing.T) {
	l, a := newServer(t, "a b c d", func(c *CoreConfig) { c.DisablePreVote = true })
	l.pass(5 * time.Second)
	l.timeout("a")
	require.Equal(t, Candidate, a.core.role)
	require.Equal(t, HardState{CurrentTerm: 2, VotedFor: "a"}, a.disk.hard)
	require.GreaterOrEqual(t, a.core.electionDeadline, l.now+time.Second)
	for _, to := range []string{"b", "c", "d"} {
		m := l.one("a", to, "RequestVote")
		require.Equal(t, Term(2), m.Term)
		require.Equal(t, RequestVote{LastLogIndex: 1, LastLogTerm: 1}, m.Body)
	}
	// "If election timeout elapses: start new election."
	l.timeout("a")
	require.Equal(t, Term(3), a.core.currentTerm)
	require.Len(t, l.take("a", "*", "RequestVote"), 3)
}

// §5.2: "A candidate wins an election if it receives votes from a majority of the servers in the full cluster for the same term."
func TestCandidateWinsWithAMajorityOnly(t *testing.T) {
	for _, tt := range []struct {
		members string
		votes   string
		wins    bool
	}{
		{"a b", "", false}, {"a b", "b", true},
		{"a b c", "", false}, {"a b c", "b", true},
		{"a b c d", "b", false}, {"a b c d", "bc", true},
		{"a b c d e", "b", false}, {"a b c d e", "bb", false}, {"a b c d e", "bd", true},
		{"a b c | x", "x", false},  // SAFETY inv 18: learners are never counted
		{"a b c d e", "bz", false}, // a stranger is never counted
	} {
		t.Run(tt.members+" by "+tt.votes, func(t *testing.T) {
			l, a := newServer(t, tt.members, func(c *CoreConfig) { c.DisablePreVote = true })
			l.timeout("a")
			for _, v := range tt.votes {
				l.step(string(v), "a", 2, a.core.nextRequest, RequestVoteReply{Granted: true})
			}
			require.Equal(t, tt.wins, a.core.role == Leader)
		})
	}
}

// §5.2: a single server is its own majority, but it must not trust a vote that a crash would make it forget.
func TestSingleVoterWaitsForItsOwnDisk(t *testing.T) {
	l, a := newServer(t, "a")
	a.slow = true
	l.timeout("a")
	require.Equal(t, Candidate, a.core.role)
	a.persist(1)
	require.Equal(t, Leader, a.core.role)
	a.propose("x")
	require.Zero(t, a.core.commitIndex, "SAFETY inv 13: nothing is committed before it is durable on a quorum")
	a.persist(1) // the no-op
	require.Equal(t, Index(2), a.core.commitIndex)
	a.persist(1)
	require.Equal(t, []string{"x"}, a.commands())
}

// Figure 2 and §5.2: a candidate's own vote counts once it is durable, not before (SAFETY inv 3, 12).
func TestCandidatesOwnVoteCountsWhenDurable(t *testing.T) {
	l, a := newServer(t, "a b c", func(c *CoreConfig) { c.DisablePreVote = true })
	a.slow = true
	l.timeout("a")
	require.Empty(t, l.wire, "RequestVote leaves only once the vote for ourselves is durable")
	l.step("b", "a", 2, 1, RequestVoteReply{Granted: true})
	require.Equal(t, Candidate, a.core.role)
	a.persist(1)
	require.Equal(t, Leader, a.core.role)
}

// §5.2: "Each server will vote for at most one candidate in a given term, on a first-come-first-served basis" (SAFETY inv 3).
func TestServerVotesOncePerTerm(t *testing.T) {
	l, _ := newServer(t, "a b c d")
	ask := func(who string, term Term) bool {
		l.step(who, "a", term, 1, RequestVote{LastLogIndex: 1, LastLogTerm: 1})
		return l.one("a", who, "RequestVoteReply").Body.(RequestVoteReply).Granted
	}
	require.True(t, ask("b", 2))
	require.False(t, ask("c", 2))
	require.True(t, ask("b", 2), "the answer may have been lost: the same vote again")
	require.True(t, ask("c", 3), "a later term has a vote of its own")
	require.False(t, ask("b", 2))

	// Across a restart too.
	l.crash("a")
	a := l.start("a")
	require.Equal(t, HardState{CurrentTerm: 3, VotedFor: "c"}, a.disk.hard)
	require.False(t, ask("d", 3))
	require.True(t, ask("c", 3))
}

// §5.1: a step-down within one term keeps its vote (SAFETY §3: "same-term step-down forgets its vote").
func TestSameTermStepDownKeepsTheVote(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.candidacy(a, "b")
	term := a.core.currentTerm
	l.step("c", "a", term, 1, AppendEntries{})
	require.Equal(t, Follower, a.core.role)
	require.Equal(t, NodeID("a"), a.core.votedFor)
	l.lose()
	l.step("b", "a", term, 1, RequestVote{LastLogIndex: 9, LastLogTerm: term})
	require.False(t, l.one("a", "b", "RequestVoteReply").Body.(RequestVoteReply).Granted)
}

// §5.2: "While waiting for votes, a candidate may receive an AppendEntries RPC from another server claiming to be leader. If the
// leader's term is at least as large as the candidate's current term, then the candidate recognizes the leader as legitimate".
func TestCandidateYieldsToALeaderOfItsTerm(t *testing.T) {
	for _, later := range []Term{0, 3} {
		l, a := newServer(t, "a b c")
		l.candidacy(a, "b")
		term := a.core.currentTerm
		l.step("c", "a", term-1, 1, AppendEntries{})
		require.Equal(t, Candidate, a.core.role, "a leader of an earlier term is none")
		l.step("c", "a", term+later, 1, AppendEntries{})
		require.Equal(t, Follower, a.core.role)
		require.Equal(t, NodeID("c"), a.core.leader)
		require.Equal(t, term+later, a.core.currentTerm)
	}
}

// Figure 2, followers: the timeout restarts on "AppendEntries RPC from current leader or granting vote to candidate", and on nothing
// else: a server that merely asks must not keep others from campaigning.
func TestOnlyLeaderAndGrantedVoteRestartTheTimeout(t *testing.T) {
	for _, tt := range []struct {
		name     string
		body     Body
		term     Term
		restarts bool
	}{
		{"AppendEntries", AppendEntries{}, 1, true},
		{"AppendEntries that is rejected", AppendEntries{PrevLogIndex: 9, PrevLogTerm: 1}, 1, true},
		{"granted vote", RequestVote{LastLogIndex: 1, LastLogTerm: 1}, 2, true},
		{"refused vote", RequestVote{}, 2, false},
		{"granted pre-vote", PreVote{LastLogIndex: 1, LastLogTerm: 1}, 2, false},
		{"AppendEntries of an earlier term", AppendEntries{}, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, a := newServer(t, "a b c")
			before := a.core.electionDeadline
			l.pass(900 * time.Millisecond)
			l.step("b", "a", tt.term, 1, tt.body)
			if tt.restarts {
				require.GreaterOrEqual(t, a.core.electionDeadline, l.now+time.Second)
			} else {
				require.Equal(t, before, a.core.electionDeadline)
			}
		})
	}
}

// Figure 2, candidates: "reset election timer". The requests for votes have a whole timeout, not what the pre-vote has left of it.
func TestElectionRestartsTheTimeoutBehindAPreVote(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.timeout("a")
	l.pass(999 * time.Millisecond)
	l.step("b", "a", 2, a.core.nextRequest, PreVoteReply{Granted: true})
	require.Equal(t, Candidate, a.core.role)
	require.GreaterOrEqual(t, a.core.electionDeadline, l.now+time.Second)
}

// The timer of a leader stands still. Once it is deposed, it gives its successor a whole timeout.
func TestDeposedLeaderWaitsAnElectionTimeout(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.office(a, "b")
	for range 50 {
		l.pass(100 * time.Millisecond)
		l.tick("a")
		l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
	}
	l.step("c", "a", 3, 1, TimeoutNowReply{})
	require.Equal(t, Follower, a.core.role)
	require.GreaterOrEqual(t, a.core.Deadline(), l.now+time.Second)
}

// DESIGN §1.2: time is monotonic. An input that was stamped before another one, and comes after it, takes the clock nowhere.
func TestClockNeverGoesBack(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.pass(time.Minute)
	l.leaderOf("a", "b", 2)
	l.now -= 30 * time.Second
	l.leaderOf("a", "b", 2)
	l.now += 30 * time.Second
	require.GreaterOrEqual(t, a.core.Deadline(), l.now+time.Second)
	l.pass(999 * time.Millisecond)
	l.step("c", "a", 3, 1, RequestVote{LastLogIndex: 1, LastLogTerm: 1})
	require.Equal(t, Term(2), a.core.currentTerm, "b was heard within the election timeout")
}

// §5.4.1: "If the logs have last entries with different terms, then the log with the later term is more up-to-date. If the logs end
// with the same term, then whichever log is longer is more up-to-date."
func TestVoterComparesLastTermThenLength(t *testing.T) {
	for _, tt := range []struct {
		last  EntryID
		grant bool
	}{
		{EntryID{2, 3}, true}, {EntryID{2, 4}, true}, {EntryID{3, 1}, true},
		{EntryID{2, 2}, false}, {EntryID{1, 9}, false},
	} {
		for _, pre := range []bool{false, true} {
			t.Run(fmt.Sprint(tt.last, pre), func(t *testing.T) {
				l := newLab(t, "a b c")
				l.provision("a", HardState{CurrentTerm: 3}, 1, 2, 2)
				l.start("a")
				if pre {
					l.step("b", "a", 4, 1, PreVote{LastLogIndex: tt.last.Index, LastLogTerm: tt.last.Term})
					require.Equal(t, tt.grant, l.one("a", "b", "PreVoteReply").Body.(PreVoteReply).Granted)
					return
				}
				l.step("b", "a", 4, 1, RequestVote{LastLogIndex: tt.last.Index, LastLogTerm: tt.last.Term})
				require.Equal(t, tt.grant, l.one("a", "b", "RequestVoteReply").Body.(RequestVoteReply).Granted)
			})
		}
	}
}

// Figure 2 and SAFETY inv 12: a vote leaves only after term and vote are durable, and a crash before that takes it back unseen.
func TestVoteWaitsForTheDisk(t *testing.T) {
	l, a := newServer(t, "a b c")
	a.slow = true
	l.step("b", "a", 2, 1, RequestVote{LastLogIndex: 1, LastLogTerm: 1})
	require.Empty(t, l.wire)
	l.step("b", "a", 2, 2, RequestVote{LastLogIndex: 1, LastLogTerm: 1})
	require.Empty(t, l.wire, "the duplicate causes no write of its own, and must wait for the first one's")
	l.step("c", "a", 2, 1, RequestVote{LastLogIndex: 1, LastLogTerm: 1})
	require.Empty(t, l.wire, "so must a refusal: it tells of a term that a crash would make us forget")
	a.persist(1)
	require.Len(t, l.take("a", "b", "RequestVoteReply"), 2)
	require.Len(t, l.take("a", "c", "RequestVoteReply"), 1)

	l.step("c", "a", 3, 1, RequestVote{LastLogIndex: 1, LastLogTerm: 1})
	l.crash("a") // between the vote and its write
	a = l.start("a")
	require.Equal(t, HardState{CurrentTerm: 2, VotedFor: "b"}, a.disk.hard)
	l.step("b", "a", 3, 1, RequestVote{LastLogIndex: 1, LastLogTerm: 1})
	require.True(t, l.one("a", "b", "RequestVoteReply").Body.(RequestVoteReply).Granted)
}

// Figure 2: a vote in a term that is durable already is a write of its own.
func TestVoteInAKnownTermIsWritten(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.step("c", "a", 2, 1, TimeoutNowReply{})
	require.Equal(t, HardState{CurrentTerm: 2}, a.disk.hard)
	a.slow = true
	l.step("b", "a", 2, 1, RequestVote{LastLogIndex: 1, LastLogTerm: 1})
	require.Empty(t, l.wire)
	a.persist(1)
	require.True(t, l.one("a", "b", "RequestVoteReply").Body.(RequestVoteReply).Granted)
	require.Equal(t, HardState{CurrentTerm: 2, VotedFor: "b"}, a.disk.hard)
}

// SAFETY §3: "vote write and log write reordered". A vote and an entry accepted in one breath are one batch; the vote is not older.
func TestTermAndEntriesAreOneWrite(t *testing.T) {
	l, a := newServer(t, "a b c")
	a.slow = true
	l.step("b", "a", 2, 1, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: l.entries(2, 2)})
	require.Len(t, a.writes, 1)
	require.Equal(t, HardState{CurrentTerm: 2}, *a.writes[0].HardState)
	require.Len(t, a.writes[0].Entries, 1)
}

// A deferred message of a term that is over is dropped: its vote was for an election that is lost.
func TestDeferredMessagesDieWithTheirTerm(t *testing.T) {
	l, a := newServer(t, "a b c")
	a.slow = true
	l.step("b", "a", 2, 1, RequestVote{LastLogIndex: 1, LastLogTerm: 1})
	l.step("c", "a", 3, 1, RequestVote{LastLogIndex: 1, LastLogTerm: 1})
	a.persist(1)
	require.Empty(t, l.wire)
	a.persist(1)
	require.Equal(t, Term(3), l.one("a", "c", "RequestVoteReply").Term)
	require.Empty(t, l.wire)
}

// SAFETY §3: "a *seen* higher term taken for a *granted* vote".
func TestRefusalWithALaterTermIsNoVote(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.candidacy(a, "b")
	l.step("b", "a", a.core.currentTerm+1, 1, RequestVoteReply{Granted: true})
	require.Equal(t, Follower, a.core.role)
	require.Empty(t, a.core.votedFor)
}

// §5.2: an election that a majority refuses is over.
func TestCandidateGivesUpWhenAMajorityRefuses(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.candidacy(a, "b")
	l.step("b", "a", 2, 1, RequestVoteReply{})
	require.Equal(t, Candidate, a.core.role)
	l.step("c", "a", 2, 1, RequestVoteReply{})
	require.Equal(t, Follower, a.core.role)
	ev, _ := lastEvent[LeaderChange](a)
	require.Equal(t, ReasonLostElection, ev.Reason)
}

// Dissertation §4.2.3: "if a server receives a RequestVote request within the minimum election timeout of hearing from a current
// leader, it does not update its term or grant its vote"; and §9.6 the same for pre-votes.
func TestServerThatHearsALeaderIgnoresCandidates(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.leaderOf("a", "b", 2)
	l.pass(999 * time.Millisecond)
	l.step("c", "a", 8, 1, RequestVote{LastLogIndex: 9, LastLogTerm: 7})
	require.Empty(t, l.wire)
	require.Equal(t, Term(2), a.core.currentTerm)
	l.step("c", "a", 8, 1, PreVote{LastLogIndex: 9, LastLogTerm: 7})
	require.False(t, l.one("a", "c", "PreVoteReply").Body.(PreVoteReply).Granted)

	t.Run("not the leader itself", func(t *testing.T) {
		l, a := newServer(t, "a b c")
		l.leaderOf("a", "b", 2)
		l.step("b", "a", 3, 1, PreVote{LastLogIndex: 1, LastLogTerm: 1})
		require.True(t, l.one("a", "b", "PreVoteReply").Body.(PreVoteReply).Granted)
		l.step("b", "a", 3, 1, RequestVote{LastLogIndex: 1, LastLogTerm: 1})
		require.Equal(t, NodeID("b"), a.core.votedFor)
	})
	t.Run("not on a transfer", func(t *testing.T) { // dissertation §4.2.3: the flag of a transfer
		l, a := newServer(t, "a b c")
		l.leaderOf("a", "b", 2)
		l.step("c", "a", 3, 1, RequestVote{LastLogIndex: 1, LastLogTerm: 1, Transfer: true})
		require.Equal(t, NodeID("c"), a.core.votedFor)
	})
	t.Run("not after an election timeout", func(t *testing.T) {
		l, a := newServer(t, "a b c")
		l.leaderOf("a", "b", 2)
		l.pass(time.Second)
		l.step("c", "a", 3, 1, RequestVote{LastLogIndex: 1, LastLogTerm: 1})
		require.Equal(t, NodeID("c"), a.core.votedFor)
	})
	t.Run("a leader believes in itself", func(t *testing.T) {
		l, a := newServer(t, "a b c")
		l.office(a, "b")
		l.step("c", "a", 9, 1, RequestVote{LastLogIndex: 9, LastLogTerm: 8})
		l.step("c", "a", 9, 1, PreVote{LastLogIndex: 9, LastLogTerm: 8})
		require.Equal(t, Leader, a.core.role)
		require.False(t, l.one("a", "c", "PreVoteReply").Body.(PreVoteReply).Granted)
	})
	t.Run("unless check-quorum is off", func(t *testing.T) {
		l, a := newServer(t, "a b c", func(c *CoreConfig) { c.DisableCheckQuorum = true })
		l.leaderOf("a", "b", 2)
		l.step("c", "a", 3, 1, RequestVote{LastLogIndex: 1, LastLogTerm: 1})
		require.Equal(t, NodeID("c"), a.core.votedFor)
	})
}

// Dissertation §6.2: "a leader steps down if an election timeout elapses without a successful round of heartbeats to a majority of
// its cluster" (SAFETY inv 27).
func TestLeaderThatHearsNoQuorumStepsDown(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.office(a, "b")
	term := a.core.currentTerm
	for range 12 { // c answers: with us it is a quorum
		l.pass(100 * time.Millisecond)
		l.tick("a")
		l.step("c", "a", term, a.core.nextRequest, AppendEntriesReply{Success: true})
		require.Equal(t, Leader, a.core.role)
	}
	require.NoError(t, a.read(1))
	require.LessOrEqual(t, a.core.Deadline(), l.now+time.Second)
	l.pass(999 * time.Millisecond)
	l.tick("a")
	require.Equal(t, Leader, a.core.role)
	l.pass(time.Millisecond)
	l.tick("a")
	require.Equal(t, Follower, a.core.role)
	require.Equal(t, term, a.core.currentTerm)
	ev, _ := lastEvent[LeaderChange](a)
	require.Equal(t, ReasonNoQuorum, ev.Reason)
	require.Len(t, a.reads, 1, "every pending call ends on step-down")
	require.ErrorIs(t, a.reads[0].Err, ErrNotLeader)

	l, a = newServer(t, "a b c", func(c *CoreConfig) { c.DisableCheckQuorum = true })
	l.office(a, "b")
	l.pass(time.Minute)
	l.tick("a")
	require.Equal(t, Leader, a.core.role)
}

// A learner's answers are no quorum (SAFETY inv 18).
func TestLearnersDoNotKeepALeaderInOffice(t *testing.T) {
	l, a := newServer(t, "a b c | d e")
	l.office(a, "b")
	l.pass(900 * time.Millisecond)
	for _, learner := range []string{"d", "e"} {
		l.step(learner, "a", a.core.currentTerm, a.core.nextRequest, AppendEntriesReply{Success: true})
	}
	l.pass(100 * time.Millisecond)
	l.tick("a")
	require.Equal(t, Follower, a.core.role)
}

// One follower of four is no quorum (SAFETY inv 27).
func TestLeaderInAMinorityStepsDown(t *testing.T) {
	l, a := newServer(t, "a b c d e", func(c *CoreConfig) { c.DisablePreVote = true })
	l.timeout("a")
	l.step("b", "a", 2, a.core.nextRequest, RequestVoteReply{Granted: true})
	l.step("c", "a", 2, a.core.nextRequest, RequestVoteReply{Granted: true})
	for range 10 {
		require.Equal(t, Leader, a.core.role)
		l.pass(100 * time.Millisecond)
		l.step("e", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true})
		l.tick("a")
	}
	require.Equal(t, Follower, a.core.role)
}

// The owner of a core sleeps until Deadline, so it names whatever is due first on a leader: also what does not wait for the next
// heartbeat. Here each of them is due halfway between two.
func TestDeadlineNamesWhatIsDueFirst(t *testing.T) {
	for _, tt := range []struct {
		name  string
		begin func(l *lab, a *labServer)
		beats int           // heartbeats until it is the next that is due
		due   time.Duration // after the beginning
	}{
		{"no quorum", func(l *lab, a *labServer) {}, 10, 1000 * time.Millisecond},
		{"disk", func(l *lab, a *labServer) { a.slow = true; a.propose("x") }, 1, 130 * time.Millisecond},
		{"transfer", func(l *lab, a *labServer) { require.NoError(l.t, a.transfer("c")) }, 10, 1000 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, a := newServer(t, "a b c", func(c *CoreConfig) { c.DiskDeadline = 130 * time.Millisecond })
			l.office(a, "b")
			office := l.now
			answer := func() { l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true}) }
			l.pass(50 * time.Millisecond)
			answer()
			tt.begin(l, a)
			begin := l.now
			require.Equal(t, office+100*time.Millisecond, a.core.Deadline(), "the heartbeat comes first")
			for n := range tt.beats {
				l.now = office + time.Duration(n+1)*100*time.Millisecond
				l.tick("a")
				if tt.name != "no quorum" {
					answer()
				}
			}
			require.Equal(t, Leader, a.core.role)
			require.Equal(t, begin+tt.due, a.core.Deadline())
		})
	}
}

// DESIGN: a process that slept, so that it could hear nobody, listens again before it campaigns.
func TestFollowerThatSleptListensAgain(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.leaderOf("a", "b", 2)
	l.pass(a.core.Deadline() - l.now + 501*time.Millisecond)
	l.tick("a")
	require.Equal(t, Follower, a.core.role)
	require.GreaterOrEqual(t, a.core.Deadline(), l.now+time.Second)
	l.pass(a.core.Deadline() - l.now + 500*time.Millisecond)
	l.tick("a")
	require.Equal(t, PreCandidate, a.core.role)
}

// Deadline is later than the last Tick whatever the role is, or the owner's loop would spin.
func TestDeadlineLiesInTheFuture(t *testing.T) {
	l, a := newServer(t, "a b c")
	require.Greater(t, a.core.Deadline(), l.now)
	for range 50 {
		l.now = a.core.Deadline()
		l.tick("a")
		require.Greater(t, a.core.Deadline(), l.now)
	}
	l.office(a, "b")
	for range 20 {
		l.now = a.core.Deadline()
		l.tick("a")
		require.Greater(t, a.core.Deadline(), l.now)
	}
}

// §6: a server that is not in its configuration, or only a learner, never campaigns (SAFETY §3: "a learner never becomes leader, not
// by transfer either").
func TestOnlyVotersCampaign(t *testing.T) {
	l := newLab(t, "b c | a")
	a := l.start("a")
	l.timeout("a")
	require.Equal(t, Follower, a.core.role)
	l.leaderOf("a", "b", 2)
	l.step("b", "a", 2, 1, TimeoutNow{})
	require.Equal(t, TimeoutNowReply{}, l.one("a", "b", "TimeoutNowReply").Body)
	require.Equal(t, Follower, a.core.role)
	require.Equal(t, Term(2), a.core.currentTerm)

	blank := l.provision("z", HardState{})
	l.start("z")
	l.pass(time.Hour)
	l.timeout("z")
	require.Equal(t, Follower, blank.core.role)
	require.Empty(t, l.wire)
}

// The same for a learner that has just been added: it is in no configuration that may be the committed one as a voter.
func TestNewLearnerDoesNotCampaign(t *testing.T) {
	l := newLab(t, "a b c")
	d := l.provision("d", HardState{CurrentTerm: 1}, 1, 1)
	d.disk.entries[1] = labConfigurationEntry(1, 2, labConfiguration("a b c | d"))
	d = l.start("d")
	require.Greater(t, d.core.configurationIndex(), d.core.commitIndex)
	l.timeout("d")
	require.Equal(t, Follower, d.core.role)
	require.Empty(t, l.wire)
}

// §6: "servers ... accept ... RequestVote requests from servers not in their current configuration": a learner that does not know
// that it was promoted must vote, and be asked by a candidate that it does not know.
func TestVoteIsGivenToWhoeverAsks(t *testing.T) {
	l := newLab(t, "b c | a")
	a := l.start("a")
	l.step("x", "a", 2, 1, PreVote{LastLogIndex: 4, LastLogTerm: 1})
	require.True(t, l.one("a", "x", "PreVoteReply").Body.(PreVoteReply).Granted)
	l.step("x", "a", 2, 1, RequestVote{LastLogIndex: 4, LastLogTerm: 1})
	require.True(t, l.one("a", "x", "RequestVoteReply").Body.(RequestVoteReply).Granted)
	require.Equal(t, NodeID("x"), a.disk.hard.VotedFor)
}

// SAFETY §3: "a removed or demoted server with a high term makes the cluster flap"; inv 25.
func TestRemovedServerGetsNoVote(t *testing.T) {
	l := newLab(t, "a b c")
	l.conf.Removed = []NodeID{"x"}
	a := l.start("a")
	l.step("x", "a", 1, 1, PreVote{LastLogIndex: 4, LastLogTerm: 1})
	require.False(t, l.one("a", "x", "PreVoteReply").Body.(PreVoteReply).Granted)
	l.step("x", "a", 1, 1, RequestVote{LastLogIndex: 4, LastLogTerm: 1})
	require.False(t, l.one("a", "x", "RequestVoteReply").Body.(RequestVoteReply).Granted)
	require.Empty(t, a.core.votedFor)
	// With a later term it is not even answered: see TestRemovedServerDoesNotRaiseOurTerm.
}

// Dissertation §4.2.3: with stickiness a removed server cannot depose anybody, however high its term.
func TestServerWithAHighTermDoesNotDeposeAWorkingLeader(t *testing.T) {
	l := newCluster(t, "a b c d")
	a := l.elect("a")
	l.isolate("d", true)
	d := l.server("d")
	l.pass(3 * time.Second)
	d.do(func(c *Core, now time.Duration) {
		c.Step(now, Message{Header: Header{From: "z", To: "d", Term: 50}, Body: TimeoutNowReply{}})
	})
	l.isolate("d", false)
	for range 5 {
		l.pass(100 * time.Millisecond)
		l.timeout("d")
		for _, m := range l.take("d", "*", "PreVote") {
			if m.To != "a" { // followers of a, that have just heard it
				l.servers[m.To].core.lastLeaderContact = l.now
			}
			l.stepMessage(m)
		}
		require.Equal(t, Leader, a.core.role)
	}
	// The refusals of a, b and c carry no later term, so d stays where it is; and a is deposed only when it talks to d itself.
	require.Equal(t, Term(2), a.core.currentTerm)
}

// DESIGN §3, priorities: a lower rank waits one T longer for every distinct higher priority, but never more than two.
func TestPriorityDecidesWhoCampaignsFirst(t *testing.T) {
	for _, tt := range []struct {
		own   uint8
		other [3]uint8
		extra time.Duration
	}{
		{0, [3]uint8{0, 0, 0}, 0}, {5, [3]uint8{1, 2, 5}, 0}, {1, [3]uint8{2, 2, 0}, 1}, {1, [3]uint8{2, 3, 0}, 2}, {0, [3]uint8{1, 2, 3}, 2},
	} {
		l := newLab(t, "a b c d")
		for i, p := range append([]uint8{tt.own}, tt.other[:]...) {
			l.conf.Servers[i].Priority = p
		}
		a := l.start("a")
		for range 20 {
			l.pass(time.Millisecond)
			l.leaderOf("a", "b", 2)
			wait := a.core.Deadline() - l.now
			require.GreaterOrEqual(t, wait, (1+tt.extra)*time.Second)
			require.Less(t, wait, (2+tt.extra)*time.Second)
		}
	}
}

// Dissertation §6.2's companion for the disk: heartbeats need no disk, so a leader whose disk does nothing looks healthy. It hands
// over and steps down; a follower with such a disk does not campaign.
func TestStuckDiskEndsLeadershipAndForbidsCampaigns(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.office(a, "b")
	a.slow = true
	a.propose("x")
	l.step("c", "a", a.core.currentTerm, a.core.nextRequest, AppendEntriesReply{Success: true, MatchIndex: 2})
	term := a.core.currentTerm
	l.lose()
	require.LessOrEqual(t, a.core.Deadline(), l.now+time.Second)
	l.pass(500 * time.Millisecond)
	l.step("c", "a", term, a.core.nextRequest, AppendEntriesReply{Success: true, MatchIndex: 2})
	l.pass(499 * time.Millisecond)
	l.tick("a")
	require.Equal(t, Leader, a.core.role)
	l.pass(time.Millisecond)
	l.tick("a")
	require.Equal(t, Follower, a.core.role)
	ev, _ := lastEvent[LeaderChange](a)
	require.Equal(t, ReasonSlowDisk, ev.Reason)
	require.Equal(t, TimeoutNow{}, l.one("a", "c", "TimeoutNow").Body)
	l.lose()

	l.pass(time.Minute)
	l.timeout("a")
	require.Equal(t, Follower, a.core.role)
	l.leaderOf("a", "c", term)
	a.persist(len(a.writes))
	l.pass(time.Minute)
	l.timeout("a")
	require.Equal(t, PreCandidate, a.core.role, "a disk that works again may lead again")
}

// SAFETY §3: "a server with a broken disk keeps winning elections"; and a leader with one hands over.
func TestFailedStorageNeitherLeadsNorCampaigns(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.office(a, "b")
	l.step("c", "a", a.core.currentTerm, a.core.nextRequest, AppendEntriesReply{Success: true, MatchIndex: 2})
	l.lose()
	a.do(func(c *Core, now time.Duration) { c.StorageState(now, StorageFailed) })
	require.Equal(t, Follower, a.core.role)
	l.one("a", "c", "TimeoutNow")
	l.timeout("a")
	require.Equal(t, Follower, a.core.role)
	require.Equal(t, "the storage failed", a.core.Status(l.now).WhyNot)
}

// The owner's wish not to lead: it hands over, and does not campaign until told otherwise.
func TestAbstainingServerHandsOverAndDoesNotCampaign(t *testing.T) {
	l := newCluster(t, "a b c")
	a := l.elect("a")
	a.do(func(c *Core, now time.Duration) { c.Abstain(now, true) })
	l.settle()
	require.NotEqual(t, Leader, a.core.role)
	leader := NodeID("")
	for _, id := range []string{"b", "c"} {
		if l.server(id).core.role == Leader {
			leader = NodeID(id)
		}
	}
	require.NotEmpty(t, leader, "the successor was told to campaign at once")
	require.Equal(t, leader, a.core.leader)
	l.pass(time.Minute)
	l.timeout("a")
	require.Equal(t, Follower, a.core.role)
	l.step(string(leader), "a", a.core.currentTerm, 1, TimeoutNow{})
	require.Equal(t, Follower, a.core.role)
	a.do(func(c *Core, now time.Duration) { c.Abstain(now, false) })
	l.timeout("a")
	require.Equal(t, PreCandidate, a.core.role)
}
