package raft

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Situations that a reading of the core line by line brought up.

// A snapshot was received right before a crash, so it replaces the log at the next start (§7). The log may hold a configuration
// that was never committed, at an index which the snapshot covers:
//
//	log       1@1 bootstrap {a b c}   2@2   3@2 joint, never committed
//	snapshot  5@3, with the configuration of index 1
//
// Were it in force again, this server would count votes by a configuration that the cluster never agreed on.
func TestSnapshotReplacesConfigurationsAtStart(t *testing.T) {
	joint := labConfiguration("a b c d e")
	for i := range joint.Servers {
		joint.Servers[i].Outgoing = joint.Servers[i].ID < "d"
	}
	for name, terms := range map[string][]Term{"shorter": {1, 2}, "conflicting": {1, 2, 2, 2, 2, 2}} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, "a b c")
			s := l.provision("a", HardState{CurrentTerm: 3}, terms...)
			at := min(2, len(s.disk.entries)-1)
			s.disk.entries[at] = labConfigurationEntry(2, Index(at+1), joint)
			s.disk.snapshot = l.meta(5, 3)
			a := l.start("a")
			require.Equal(t, Index(5), a.core.log.last)
			require.Equal(t, Index(1), a.core.configurationIndex())
			require.Equal(t, "a, b, c", describeConfiguration(a.core.configuration()))
		})
	}
}

// The same for a configuration behind the snapshot's index, in a log that does not hold the snapshot's last entry: it is discarded
// with that log.
func TestSnapshotDiscardsConfigurationsBehindItAtStart(t *testing.T) {
	l := newLab(t, "a b c")
	s := l.provision("a", HardState{CurrentTerm: 3}, 1, 2, 2, 2, 2, 2)
	s.disk.entries[5] = labConfigurationEntry(2, 6, labConfiguration("a b c | d"))
	s.disk.snapshot = l.meta(5, 3)
	a := l.start("a")
	require.Equal(t, Index(5), a.core.log.last)
	require.Equal(t, "a, b, c", describeConfiguration(a.core.configuration()))
}

// oldRequest lets a lead with c's help in a second life, while b, which has heard of the new term from c alone, has still to answer a
// request of a's first life: one of round 2.
func oldRequest(t *testing.T) (l *lab, a *labServer, old Message) {
	l = newCluster(t, "a b c")
	a = l.elect("a")
	for n := range uint64(20) {
		require.NoError(t, a.read(n))
		if n == 1 {
			old = l.one("a", "b", "AppendEntries")
		}
		l.settle()
	}
	require.Equal(t, uint64(2), old.Body.(AppendEntries).Round)
	old.Request = a.core.nextRequest

	l.crash("a")
	a = l.start("a")
	l.cut[[2]NodeID{"a", "b"}], l.cut[[2]NodeID{"b", "a"}] = true, true
	l.elect("a")
	l.timeout("b")
	l.settle() // c refuses the pre-vote, and names the term
	require.Greater(t, a.core.currentTerm, old.Term)
	require.Equal(t, a.core.currentTerm, l.server("b").core.currentTerm)
	clear(l.cut)
	return l, a, old
}

// A request of an earlier term is answered in the present one, perhaps to the same server, which has restarted and won since. It
// counts its rounds from 1 again, so an echo of the old request's round would confirm a round that it begins later:
//
//	a leads term 2, round 2 ── request on its way ─────────────┐
//	a restarts, leads term 4, begins round 1                   ▼
//	                               b (term 4) answers: term 4, round 2  ── on its way ──┐
//	b elects c in term 5, c commits a write                                              │
//	a is asked for a read, begins round 2  ◄─────────────────────────────────────────────┘ "confirmed": stale
func TestAnswerToAnEarlierTermConfirmsNothing(t *testing.T) {
	l, a, old := oldRequest(t)
	old.Request = 1
	l.stepMessage(old)
	late := l.one("b", "a", "AppendEntriesReply")
	require.Equal(t, a.core.currentTerm, late.Term)

	require.NoError(t, a.read(21))
	l.settle()
	l.isolate("a", true)
	require.NoError(t, a.read(22))
	require.Equal(t, uint64(2), a.core.round)
	n := len(a.reads)
	l.stepMessage(late)
	require.Len(t, a.reads, n, "a quorum has answered nothing since the read began")
	require.Empty(t, a.refused)
}

// The answer may also carry a request number that the new process has not reached yet. That is no lie of the follower.
func TestAnswerToAnEarlierProcessIsNoLie(t *testing.T) {
	l, a, old := oldRequest(t)
	require.Greater(t, old.Request, a.core.nextRequest)
	l.stepMessage(old)
	late := l.one("b", "a", "AppendEntriesReply")
	l.stepMessage(late)
	require.Empty(t, a.refused)
}

// A vote is for the whole term (§5.2). A refusal that comes after it answers an older request, of a term that is over, which had been
// on its way for long; counted, it would undo an election that is won.
func TestLateRefusalTakesNoVoteBack(t *testing.T) {
	l, a := newServer(t, "a b c d e", func(c *CoreConfig) { c.DisablePreVote = true })
	l.timeout("a")
	l.step("b", "a", 2, 1, RequestVoteReply{Granted: true})
	l.step("b", "a", 2, 1, RequestVoteReply{})
	l.step("c", "a", 2, 1, RequestVoteReply{Granted: true})
	require.Equal(t, Leader, a.core.role)
}

// Dissertation §4.2.2: "a server that is not part of its own latest configuration should still start new elections, as it might still
// be needed until the C_new entry is committed", without counting its own vote. a removes itself (or gives up its vote) and crashes
// after it has appended the last configuration: b cannot win without a's vote, which a's longer log denies.
func TestServerFinishesItsOwnRemoval(t *testing.T) {
	for name, ch := range map[string]Change{"removed": {Remove: []NodeID{"a"}}, "demoted": {Demote: []NodeID{"a"}}} {
		t.Run(name, func(t *testing.T) {
			l := newCluster(t, "a b")
			a := l.elect("a")
			_, err := a.change(ch)
			require.NoError(t, err)
			l.deliver("a", "b")
			l.deliver("b", "a")
			require.False(t, a.core.configuration().Joint())
			require.Greater(t, a.core.configurationIndex(), a.core.commitIndex)
			l.lose()
			l.crash("a")
			a = l.start("a")

			l.pass(2 * time.Second)
			l.timeout("b")
			l.settle()
			require.NotEqual(t, Leader, l.server("b").core.role, "b's log is shorter")
			l.pass(2 * time.Second)
			l.timeout("a")
			require.NotEqual(t, Leader, a.core.role, "a does not count itself")
			l.settle()
			require.Equal(t, Leader, l.server("b").core.role, "a led until its removal was committed, then handed over")
			require.Equal(t, Follower, a.core.role)
			require.Equal(t, []NodeID{"b"}, l.server("b").core.configuration().Voters())
			l.pass(time.Minute)
			l.timeout("a")
			require.Equal(t, Follower, a.core.role, "a knows that it is no voter any more")
		})
	}
}

// A tombstone counts once it is committed. Here a has one for s that no leader can have committed, and only s can win; c is down.
// The joint configuration in force at b and s needs three of a b c s, and two of a b c.
//
//	a   1@1   2@2   3@2 joint   4@2 s removed     b refuses a: b's log is longer
//	b   1@1   2@2   3@2 joint   4@3               s refuses b: s's log is longer
//	s   1@1   2@2   3@2 joint   4@3   5@3         wins, if a votes for it
func TestTombstoneCountsWhenCommitted(t *testing.T) {
	l := newLab(t, "a b c s")
	joint := l.conf.Clone()
	for i := range joint.Servers {
		joint.Servers[i].Outgoing, joint.Servers[i].Leaving = true, joint.Servers[i].ID == "s"
	}
	for id, terms := range map[string][]Term{"a": {1, 2, 2, 2}, "b": {1, 2, 2, 3}, "s": {1, 2, 2, 3, 3}} {
		s := l.provision(id, HardState{CurrentTerm: 3}, terms...)
		s.disk.entries[2] = labConfigurationEntry(2, 3, joint)
		if id == "a" {
			s.disk.entries[3] = labConfigurationEntry(2, 4, joint.left())
		}
		l.start(id)
	}
	for _, id := range []string{"a", "b", "s"} {
		l.pass(2 * time.Second)
		l.timeout(id)
		l.settle()
	}
	l.heartbeats("s", 10)
	b := l.server("b")
	require.True(t, b.core.removed("s"))
	require.Equal(t, "a, b, c, s removed", describeConfiguration(b.core.configuration()))
}

// A server that slept listens again before it campaigns (DESIGN §1.2). One that is always late must not listen for ever: where every
// machine is overloaded nobody would lead.
func TestServerThatIsAlwaysLateCampaigns(t *testing.T) {
	l, a := newServer(t, "a b c")
	late := func() {
		l.pass(a.core.Deadline() - l.now + 700*time.Millisecond)
		l.tick("a")
	}
	late()
	require.Equal(t, Follower, a.core.role)
	late()
	require.Equal(t, PreCandidate, a.core.role)
	late()
	require.Equal(t, PreCandidate, a.core.role, "it listens once more")
	l.leaderOf("a", "b", 2)
	late()
	require.Equal(t, Follower, a.core.role, "a leader was heard: the next silence is a new one")
}

// Who is asked not to lead, or cannot write any more, gives up the election under way: a vote that comes later would bring it into
// office (DESIGN §4: "does not campaign, and hands over if elected").
func TestElectionIsGivenUpByWhoMustNotLead(t *testing.T) {
	for name, stop := range map[string]func(*Core, time.Duration){
		"abstains":       func(c *Core, now time.Duration) { c.Abstain(now, true) },
		"storage failed": func(c *Core, now time.Duration) { c.StorageState(now, StorageFailed) },
	} {
		t.Run(name, func(t *testing.T) {
			l, a := newServer(t, "a b c")
			l.timeout("a")
			a.do(stop)
			l.step("b", "a", 2, 1, PreVoteReply{Granted: true})
			require.Equal(t, Follower, a.core.role)

			l, a = newServer(t, "a b c")
			l.candidacy(a, "b")
			a.do(stop)
			l.step("b", "a", 2, a.core.nextRequest, RequestVoteReply{Granted: true})
			require.Equal(t, Follower, a.core.role)
			require.Equal(t, NodeID("a"), a.disk.hard.VotedFor, "its vote stays")
		})
	}
}

// SAFETY inv 26: a disk that hangs while requests go on coming in costs a bounded amount of memory. What is dropped is asked for again.
func TestHangingDiskHoldsBackABoundedNumberOfMessages(t *testing.T) {
	l, a := newServer(t, "a b c")
	a.slow = true
	for n := range 2 * maxDeferred { // past the lab, which would check every one of these states
		a.core.Step(l.now, Message{Header: Header{From: "b", To: "a", Replica: labReplica + 'b', Incarnation: 1, Term: Term(2 + n), Request: 1},
			Body: RequestVote{LastLogIndex: 1, LastLogTerm: 1}})
		if r := a.core.Ready(); r.Write.Seq != 0 {
			a.writes = append(a.writes, r.Write)
		}
	}
	require.Len(t, a.core.deferred, maxDeferred)
	require.Len(t, a.writes, maxWritesInFlight)
	require.True(t, a.core.dirty(), "the rest is gathered")
	require.Empty(t, l.wire)

	a.persist(len(a.writes))
	require.Len(t, a.writes, 1, "and is one write")
	last := Term(2*maxDeferred + 1)
	require.Equal(t, &HardState{CurrentTerm: last, VotedFor: "b"}, a.writes[0].HardState)
	a.slow = false
	a.persist(1)
	l.step("b", "a", last, 2, RequestVote{LastLogIndex: 1, LastLogTerm: 1})
	require.True(t, l.one("a", "b", "RequestVoteReply").Body.(RequestVoteReply).Granted)
	require.Empty(t, a.core.deferred)
}

// SAFETY inv 26: what is uncommitted on a leader is counted exactly, also where entries that are durable here were the first to leave
// memory, or had left it before this server became leader: an account that only grows would refuse proposals for no reason.
func TestUncommittedBytesAreExact(t *testing.T) {
	l := newLab(t, "a b c", func(c *CoreConfig) { c.MaxTailBytes = 1 })
	l.provision("a", HardState{CurrentTerm: 1}, 1, 1, 1, 1, 1)
	a := l.start("a")
	l.office(a, "b")
	for range 8 {
		a.propose("x") // 7 to 14, durable here
	}
	for match := Index(2); match <= 14; match++ {
		l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: match})
		if match >= 6 {
			require.Equal(t, match, a.core.commitIndex)
			require.Equal(t, int(14-match)*(EntryHeaderSize+1), a.core.uncommittedBytes)
			require.Equal(t, a.core.uncommittedBytes, a.core.log.tailBytes, "all else has left memory")
		}
	}
}

// The disk deadline is for one write. A disk that is saturated finishes one after another, each later than it was issued; the next
// leader's would do no better.
func TestSaturatedDiskIsNotStuck(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.office(a, "b")
	term := a.core.currentTerm
	a.slow = true
	for range 10 {
		a.propose("x")
	}
	for range 9 {
		l.pass(600 * time.Millisecond)
		l.step("b", "a", term, a.core.nextRequest, AppendEntriesReply{Success: true, MatchIndex: 2})
		a.persist(1)
		l.tick("a")
		require.Equal(t, Leader, a.core.role)
	}
	l.pass(999 * time.Millisecond)
	l.step("b", "a", term, a.core.nextRequest, AppendEntriesReply{Success: true, MatchIndex: 2})
	l.tick("a")
	require.Equal(t, Leader, a.core.role)
	l.pass(time.Millisecond)
	l.tick("a")
	require.Equal(t, Follower, a.core.role)
}

// The store keeps the two newest snapshots. One that was received for entries that are here already (§7, rule 6) displaces older ones
// all the same, so it is the one to send from then on: a snapshot that is no longer in the store could never be sent, and a follower
// that needs one would wait for ever.
func TestReceivedSnapshotIsTheOneToSend(t *testing.T) {
	l, a := follower(t, HardState{CurrentTerm: 2}, 1, 2, 2, 2)
	l.offer("b", "a", 2, l.meta(3, 2))
	require.Equal(t, Index(3), l.snapshotReply("a", "b").MatchIndex)
	require.Equal(t, []Term{1, 2, 2, 2}, a.terms(), "nothing is discarded")
	require.Empty(t, a.restored)
	require.Equal(t, Index(3), a.core.snapshot.Index)
	require.Equal(t, Index(3), a.disk.snapshot.Index)

	// One that was overtaken by entries while it was received is in the store as well.
	l.step("b", "a", 2, 9, AppendEntries{PrevLogIndex: 4, PrevLogTerm: 2, LeaderCommit: 4})
	require.Equal(t, Index(4), a.core.commitIndex)
	l.offer("b", "a", 2, l.meta(4, 2))
	require.Equal(t, Index(4), a.core.snapshot.Index)
}
