package raft

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// §5.3: "the leader must find the latest log entry where the two logs agree, delete any entries in the follower's log after that
// point, and send the follower all of the leader's entries after that point". With the hint it takes one rejection for each term.
func TestLeaderRepairsADivergentFollower(t *testing.T) {
	for _, tt := range []struct {
		leader, follower []Term
		rejections       int
	}{
		{[]Term{1, 1, 1, 4, 4, 5, 5, 6, 6, 6}, []Term{1, 1, 1, 4, 4, 5, 5, 6, 6}, 1},
		{[]Term{1, 1, 1, 4, 4, 5, 5, 6, 6, 6}, []Term{1, 1, 1, 4}, 1},
		{[]Term{1, 1, 1, 4, 4, 5, 5, 6, 6, 6}, []Term{1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6}, 0},
		{[]Term{1, 1, 1, 4, 4, 5, 5, 6, 6, 6}, []Term{1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7}, 0},
		{[]Term{1, 1, 1, 4, 4, 5, 5, 6, 6, 6}, []Term{1, 1, 1, 4, 4, 4, 4}, 1},
		{[]Term{1, 1, 1, 4, 4, 5, 5, 6, 6, 6}, []Term{1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3}, 1},
	} {
		t.Run(fmt.Sprint(tt.follower), func(t *testing.T) {
			l := newLab(t, "a b c")
			l.provision("a", HardState{CurrentTerm: 7}, tt.leader...)
			l.provision("b", HardState{CurrentTerm: 7}, tt.follower...)
			l.provision("c", HardState{CurrentTerm: 7}, tt.leader...)
			a, b, _ := l.start("a"), l.start("b"), l.start("c")
			rejections := 0
			l.timeout("a")
			for n := 0; len(l.wire) > 0; n++ {
				require.Less(t, n, 1000, "messages without end")
				m := l.wire[0]
				l.wire = l.wire[1:]
				if r, ok := m.Body.(AppendEntriesReply); ok && !r.Success {
					rejections++
				}
				l.stepMessage(m)
			}
			require.Equal(t, Leader, a.core.role)
			require.Equal(t, append(append([]Term{}, tt.leader...), 8), b.terms())
			require.Equal(t, tt.rejections, rejections)
			l.requireEqualLogs()
		})
	}
}

// SAFETY §3: "one rejected append wedges the pipeline for ever". A rejection counts only if it lies in (matchIndex, nextIndex) and
// answers a request newer than the last reset.
func TestLateRejectionsAreIgnored(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.office(a, "b")
	probe := a.core.nextRequest
	l.step("b", "a", 2, probe, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
	a.propose("x", "y", "z")
	p := a.core.peer("b")
	require.Equal(t, Index(6), p.nextIndex)
	older := a.core.nextRequest
	for name, r := range map[string]AppendEntriesReply{
		"at the match index": {PrevLogIndex: 2, HintIndex: 1, HintTerm: 1},
		"below it":           {PrevLogIndex: 1},
		"never sent":         {PrevLogIndex: 6, HintIndex: 1, HintTerm: 1},
	} {
		l.step("b", "a", 2, a.core.nextRequest, r)
		require.Equal(t, stateReplicate, p.state, name)
		require.Equal(t, Index(6), p.nextIndex, name)
	}
	// A message was lost, so the next is rejected: back to the first entry that is in question, by one probe.
	l.lose()
	l.step("b", "a", 2, older, AppendEntriesReply{PrevLogIndex: 4, HintIndex: 2, HintTerm: 2})
	require.Equal(t, stateProbe, p.state)
	require.Equal(t, Index(3), p.nextIndex)
	require.Len(t, l.take("a", "b", "AppendEntries"), 1)
	// The one behind it is rejected as well. That answers a request from before the reset.
	l.step("b", "a", 2, older, AppendEntriesReply{PrevLogIndex: 2, HintIndex: 1, HintTerm: 1})
	require.Equal(t, Index(3), p.nextIndex)
	require.Empty(t, l.take("a", "b", "AppendEntries"))
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 2, MatchIndex: 5})
	require.Equal(t, stateReplicate, p.state)
	require.Equal(t, Index(5), a.core.commitIndex)
}

// The same for a duplicate of a rejection that has been acted upon, about a place that is in flight again by now.
func TestDuplicateRejectionIsIgnored(t *testing.T) {
	l, a := follower(t, HardState{CurrentTerm: 1}, 1, 1, 1, 1, 1, 1)
	l.office(a, "b")
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{PrevLogIndex: 6, HintIndex: 4, HintTerm: 1})
	second := a.core.nextRequest
	l.step("b", "a", 2, second, AppendEntriesReply{PrevLogIndex: 4, HintIndex: 2, HintTerm: 1})
	require.Equal(t, Index(3), a.core.peer("b").nextIndex)
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 2, MatchIndex: 3})
	require.Equal(t, stateReplicate, a.core.peer("b").state)
	next := a.core.peer("b").nextIndex
	require.Greater(t, next, Index(5))
	l.step("b", "a", 2, second, AppendEntriesReply{PrevLogIndex: 4, HintIndex: 2, HintTerm: 1})
	require.Equal(t, stateReplicate, a.core.peer("b").state)
	require.Equal(t, next, a.core.peer("b").nextIndex)
}

// Figure 2: matchIndex < nextIndex. A hint may lie below what the follower has acknowledged: it is of a request that was sent before.
func TestHintBelowTheMatchIndexIsBounded(t *testing.T) {
	l, a := follower(t, HardState{CurrentTerm: 1}, 1, 1, 1, 1)
	l.office(a, "b")
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 3})
	require.Equal(t, Index(5), a.core.peer("b").nextIndex)
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{PrevLogIndex: 4, HintIndex: 1, HintTerm: 1})
	require.Equal(t, Index(4), a.core.peer("b").nextIndex)
	require.Equal(t, Index(3), a.core.peer("b").matchIndex)
}

// §5.3: only the answer to a probe tells where the logs agree. A heartbeat asks about matchIndex, which is known.
func TestHeartbeatDoesNotEndAProbe(t *testing.T) {
	l, a := follower(t, HardState{CurrentTerm: 1}, 1, 1, 1, 1)
	l.office(a, "b")
	p := a.core.peer("b")
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true})
	require.Equal(t, stateProbe, p.state)
	require.True(t, p.probeSent)
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 4, MatchIndex: 4})
	require.Equal(t, stateReplicate, p.state)
}

// A follower whose matchIndex is compacted here cannot be told what is committed: trying would repeat itself with every input. Here
// the answer to a snapshot comes when a later one has been taken already.
func TestLeaderDoesNotRepeatACommitThatItCannotTell(t *testing.T) {
	l, a := newServer(t, "a b c", func(c *CoreConfig) { c.TrailingEntries = 1 })
	l.office(a, "b")
	a.propose("3", "4", "5", "6", "7", "8")
	l.step("c", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 8})
	a.takeSnapshot(8)
	require.Equal(t, Index(7), a.core.log.base.Index)
	l.lose()
	l.step("b", "a", 2, a.core.nextRequest, InstallSnapshotReply{MatchIndex: 3})
	for range 3 {
		l.tick("a")
	}
	require.Empty(t, l.take("a", "b", "AppendEntries"))
}

// Figure 2, leaders: "for each server, index of highest log entry known to be replicated (increases monotonically)".
func TestMatchIndexNeverFalls(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.office(a, "b")
	a.propose("x")
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 3})
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 1})
	require.Equal(t, Index(3), a.core.peer("b").matchIndex)
}

// Pipelining is bounded in messages and in bytes, a batch in bytes; one entry always goes.
func TestPipelineIsBounded(t *testing.T) {
	l, a := newServer(t, "a b c", func(c *CoreConfig) { c.MaxInflightMessages = 3; c.MaxInflightBytes = 1000; c.MaxBatchBytes = 300 })
	l.office(a, "b")
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
	l.lose()
	for range 5 {
		a.propose("x")
	}
	require.Len(t, l.take("a", "b", "AppendEntries"), 3)
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 2, MatchIndex: 3})
	m := l.one("a", "b", "AppendEntries").Body.(AppendEntries)
	require.Len(t, m.Entries, 2, "the room of one message is free: the two that waited go together")
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 6, MatchIndex: 7})
	l.lose()
	a.propose(string(make([]byte, 5000)))
	require.Len(t, l.take("a", "b", "AppendEntries"), 1, "larger than all room, and nothing else under way")
	a.propose("y")
	require.Empty(t, l.take("a", "b", "AppendEntries"))
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 7, MatchIndex: 9})
	l.lose()
	a.propose(string(make([]byte, 600)))
	require.Len(t, l.take("a", "b", "AppendEntries"), 1)
	a.propose(string(make([]byte, 600)))
	require.Empty(t, l.take("a", "b", "AppendEntries"), "there is some room, but not for this one")
	require.NoError(t, a.core.Check())
}

// An acknowledgement makes room for what it covers, and for no more.
func TestAcknowledgementFreesWhatItCovers(t *testing.T) {
	l, a := newServer(t, "a b c", func(c *CoreConfig) { c.MaxInflightMessages = 3 })
	l.office(a, "b")
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
	a.propose("3", "4", "5")
	require.Len(t, a.core.peer("b").inflight, 3)
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 2, MatchIndex: 3})
	require.Len(t, a.core.peer("b").inflight, 2)
	l.lose()
	a.propose("6", "7")
	require.Len(t, l.take("a", "b", "AppendEntries"), 1)
}

// One AppendEntries is bounded in bytes, and what does not fit goes with the next.
func TestBatchIsBounded(t *testing.T) {
	l, a := newServer(t, "a b c", func(c *CoreConfig) { c.MaxBatchBytes = 3 * (EntryHeaderSize + 1) })
	l.office(a, "b")
	a.propose("1", "2", "3", "4", "5")
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
	var sizes []int
	for _, m := range l.take("a", "b", "AppendEntries") {
		if n := len(m.Body.(AppendEntries).Entries); n > 0 {
			sizes = append(sizes, n)
		}
	}
	require.Equal(t, []int{3, 2}, sizes)
}

// What shows no progress counts as lost after a while, and is sent again from matchIndex on.
func TestLostAppendsAreSentAgain(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.office(a, "b")
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
	l.lose()
	a.propose("x")
	l.lose()
	again := 0
	for range 6 {
		l.pass(100 * time.Millisecond)
		l.tick("a")
		for _, m := range l.take("a", "b", "AppendEntries") {
			if r := m.Body.(AppendEntries); len(r.Entries) > 0 {
				require.Equal(t, Index(2), r.PrevLogIndex)
				again++
			}
		}
	}
	require.GreaterOrEqual(t, again, 1)
	require.LessOrEqual(t, again, 2)
}

// A probe without entries, answered by a follower that has not made all of its log durable yet, leaves the rest to be acknowledged
// by nobody. The leader must ask again, or the last entries wait for the next proposal.
func TestFollowerThatBecomesDurableLaterIsAskedAgain(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.office(a, "b")
	a.propose("x")
	p := a.core.peer("b")
	a.peerUp("b", 2) // another process: everything believed of it is forgotten, and asked by an empty probe at the end of our log
	l.lose()
	l.step2("b", "a", 2, 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 3, MatchIndex: 1})
	require.Zero(t, a.core.commitIndex)
	for range 20 {
		l.pass(100 * time.Millisecond)
		l.tick("a")
		l.step2("b", "a", 2, 2, 0, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 1})
		for _, m := range l.take("a", "b", "AppendEntries") {
			r := m.Body.(AppendEntries)
			l.step2("b", "a", 2, 2, m.Request, AppendEntriesReply{Success: true, PrevLogIndex: r.PrevLogIndex,
				MatchIndex: r.PrevLogIndex + Index(len(r.Entries))})
		}
	}
	require.Equal(t, Index(3), p.matchIndex)
	require.Equal(t, Index(3), a.core.commitIndex)
}

// step2 is step from a later incarnation.
func (l *lab) step2(from, to string, incarnation uint64, term Term, request uint64, b Body) {
	l.t.Helper()
	h := Header{From: NodeID(from), To: NodeID(to), Replica: ReplicaID(labReplica + int(from[0])), Incarnation: incarnation, Term: term, Request: request}
	l.stepMessage(Message{Header: h, Body: b})
}

// SAFETY inv 29: "After a follower lost log (new incarnation) its old matchIndex is never counted"; inv 21: messages of a dead
// incarnation are dropped.
func TestNewIncarnationForgetsWhatWasAcknowledged(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.office(a, "b")
	a.slow = true
	a.propose("x")
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 3})
	request := a.core.nextRequest
	l.step2("b", "a", 2, 2, 0, AppendEntriesReply{PrevLogIndex: 9})
	require.Zero(t, a.core.peer("b").matchIndex)
	a.persist(1)
	require.Equal(t, Index(2), a.core.commitIndex, "the acknowledgement of 3 was the old process's")
	l.step("b", "a", 2, request, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 3})
	require.Equal(t, []Refusal{{"b", DeadIncarnation}}, a.refused)
	require.Equal(t, Index(2), a.core.commitIndex)
	l.step2("b", "a", 2, 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 3})
	require.Equal(t, Index(3), a.core.commitIndex)
}

// The same, learned from a connection: a greeting shows which process is there, unless it is a late one of a process that is gone.
func TestGreetingShowsTheProcess(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.office(a, "b")
	p := a.core.peer("b")
	l.step2("b", "a", 2, 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
	require.Equal(t, Index(2), p.matchIndex)
	a.peerUp("b", 1)
	require.Equal(t, uint64(2), p.incarnation)
	require.Equal(t, Index(2), p.matchIndex)
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
	require.Equal(t, []Refusal{{"b", DeadIncarnation}}, a.refused)
	a.peerUp("b", 3)
	require.Equal(t, uint64(3), p.incarnation)
	require.Zero(t, p.matchIndex)

	// Incarnations are counted for each directory: a wiped server begins anew, and its greeting is not a late one.
	l.step2("b", "a", 3, 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
	require.Equal(t, Index(2), p.matchIndex)
	a.do(func(c *Core, now time.Duration) { c.PeerUp(now, "b", 77, 1) })
	require.Equal(t, ReplicaID(77), p.replica)
	require.Zero(t, p.matchIndex)
	a.peerUp("b", 3)
	wiped := Header{From: "b", To: "a", Replica: 78, Incarnation: 1, Term: 2, Request: a.core.nextRequest}
	l.stepMessage(Message{wiped, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2}})
	require.Len(t, a.refused, 1)
	require.Equal(t, ReplicaID(78), p.replica)
}

// DESIGN §5, identity: "acknowledgements and votes from another replica are not counted": a server whose disk was wiped.
func TestAnotherReplicaIsNotCounted(t *testing.T) {
	l, a := newServer(t, "a b c")
	wiped := func(term Term, b Body) {
		l.stepMessage(Message{Header: Header{From: "b", To: "a", Replica: 77, Incarnation: 1, Term: term, Request: a.core.nextRequest}, Body: b})
	}
	l.timeout("a")
	wiped(2, PreVoteReply{Granted: true})
	require.Equal(t, PreCandidate, a.core.role)
	l.step("c", "a", 2, 1, PreVoteReply{Granted: true})
	wiped(2, RequestVoteReply{Granted: true})
	require.Equal(t, Candidate, a.core.role)
	l.step("c", "a", 2, 1, RequestVoteReply{Granted: true})
	wiped(2, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
	wiped(2, InstallSnapshotReply{MatchIndex: 2})
	require.Zero(t, a.core.commitIndex)
}

// DESIGN §5: after a static bootstrap no replica is recorded, and the one that is heard first is the one that counts; the leader
// writes it into the configuration.
func TestFirstReplicaHeardIsTheOneThatCounts(t *testing.T) {
	l := newLab(t, "a b c")
	for i := range l.conf.Servers {
		l.conf.Servers[i].Replica = 0
	}
	a := l.start("a")
	l.candidacy(a, "b")
	wiped := Message{Header: Header{From: "b", To: "a", Replica: 77, Incarnation: 1, Term: 2, Request: 1}, Body: RequestVoteReply{Granted: true}}
	l.stepMessage(wiped)
	require.Equal(t, Candidate, a.core.role, "b answered the pre-vote from another directory")
	l.step("b", "a", 2, 1, RequestVoteReply{Granted: true})
	require.Equal(t, Leader, a.core.role)
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
	l.pass(100 * time.Millisecond)
	l.tick("a")
	require.Equal(t, Index(3), a.core.configurationIndex())
	for id, replica := range map[NodeID]ReplicaID{"a": labReplica + 'a', "b": labReplica + 'b', "c": 0} {
		s, _ := a.core.configuration().Server(id)
		require.Equal(t, replica, s.Replica, id)
	}
}

// DESIGN §3, control lane: "an empty AppendEntries there uses prevLogIndex = matchIndex and leaderCommit = min(commitIndex,
// matchIndex)", because it may overtake entries.
func TestHeartbeatSpeaksOnlyOfWhatIsAcknowledged(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.office(a, "b")
	a.propose("x")
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 3})
	require.Equal(t, Index(3), a.core.commitIndex)
	l.lose()
	l.pass(100 * time.Millisecond)
	l.tick("a")
	var beats []AppendEntries
	for _, m := range l.take("a", "c", "AppendEntries") {
		require.Equal(t, len(m.Body.(AppendEntries).Entries) == 0, m.Lane() == LaneControl)
		if m.Lane() == LaneControl {
			beats = append(beats, m.Body.(AppendEntries))
		}
	}
	require.Equal(t, []AppendEntries{{PrevLogIndex: 0, LeaderCommit: 0}}, beats)
	l.step("c", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
	l.lose()
	l.pass(100 * time.Millisecond)
	l.tick("a")
	m := l.take("a", "c", "AppendEntries")[0].Body.(AppendEntries)
	require.Equal(t, AppendEntries{PrevLogIndex: 2, PrevLogTerm: 2, LeaderCommit: 2}, m)
}

// The other bound: what is acknowledged by one follower is not committed for that.
func TestHeartbeatSpeaksOnlyOfWhatIsCommitted(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.office(a, "b")
	a.slow = true
	a.propose("x")
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 3})
	require.Equal(t, Index(2), a.core.commitIndex)
	l.lose()
	l.pass(100 * time.Millisecond)
	l.tick("a")
	require.Equal(t, AppendEntries{PrevLogIndex: 3, PrevLogTerm: 2, LeaderCommit: 2}, l.one("a", "b", "AppendEntries").Body)
}
