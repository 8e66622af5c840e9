package raft

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// SAFETY inv 26: while a disk hangs, peers repeat what they have no answer to. Neither the answers that wait nor the writes that were
// asked for grow without bound, and when the disk goes on everything is written.
func TestHangingDiskHoldsABoundedNumberOfMessagesAndWrites(t *testing.T) {
	l, a := newServer(t, "a b c", func(c *CoreConfig) { c.MaxTailBytes = 1 })
	const n = 2 * maxDeferred
	for i := range Index(n) {
		req := AppendEntries{PrevLogIndex: 1 + i, PrevLogTerm: min(2, Term(i)+1), Entries: []Entry{l.entry(2, 2+i)}}
		for range 2 {
			a.core.Step(l.now, Message{Header: Header{From: "b", To: "a", Replica: labReplica + 'b', Incarnation: 1, Term: 2, Request: uint64(i)}, Body: req})
		}
		a.core.Ready() // the writes go nowhere
	}
	require.Len(t, a.core.deferred, maxDeferred)
	require.Len(t, a.core.log.flights, maxWritesInFlight)
	require.Equal(t, Index(1+n), a.core.log.last)

	for a.core.log.persistedSeq < a.core.log.issuedSeq {
		a.core.Persisted(l.now, a.core.log.issuedSeq)
		a.core.Ready()
	}
	require.Equal(t, Index(1+n), a.core.log.durable)
	require.NoError(t, a.core.Check())
}

// SAFETY inv 26: the inbox takes what fits. Votes and heartbeats have room of their own, so that a flood of entries does not keep
// them out, and the first message gets in whatever its size.
func TestInboxIsBoundedAndKeepsRoomForVotes(t *testing.T) {
	var b inbox
	b.init(1000, 1000)
	b.open()
	entries := Message{Body: AppendEntries{Entries: entriesAt(1, 1, 30)}}
	require.Greater(t, messageSize(entries), 1000)
	b.addMessages([]Message{entries})
	require.Len(t, b.in.messages, 1)
	b.addMessages([]Message{entries, entries})
	require.Len(t, b.in.messages, 1)
	require.Equal(t, uint64(2), b.dropped)

	vote := Message{Body: RequestVote{}}
	for range 2 * controlReserve / messageOverhead {
		b.addMessages([]Message{vote})
	}
	require.Greater(t, len(b.in.messages), 1000)
	require.LessOrEqual(t, b.messageBytes, 1000+controlReserve+messageOverhead)
}

// The room for proposals comes back when they are committed, also of entries that are many and long durable here.
func TestUncommittedBytesAreCountedHoweverManyThereAre(t *testing.T) {
	l, a := newServer(t, "a b c", func(c *CoreConfig) { c.MaxTailBytes = 1 })
	l.office(a, "b")
	for range 10 {
		a.propose("x")
	}
	a.run()
	require.Equal(t, a.core.log.last, a.core.log.durable)
	before := a.core.uncommittedBytes
	require.Equal(t, 11*EntryHeaderSize+10, before)
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: a.core.log.last - 4})
	require.Equal(t, 4*(EntryHeaderSize+1), a.core.uncommittedBytes)
}

// A snapshot that arrives while appends are under way replaces them: their completion says nothing about the new log.
func TestCompletedAppendOfAReplacedLogIsNotDurable(t *testing.T) {
	l := newLab(t, "a b c")
	for _, issued := range []bool{false, true} {
		log := raftLog{}
		log.append(l.entries(1, 1, 1, 1))
		append1 := log.issue(0, HardState{}, &Batch{})
		log.reset(SnapshotMeta{Index: 5, Term: 2})
		if issued {
			log.issue(0, HardState{}, &Batch{})
		}
		log.persisted(append1)
		require.Zero(t, log.durable, "snapshot issued: %v", issued)
		if !issued {
			log.issue(0, HardState{}, &Batch{})
		}
		log.persisted(log.issuedSeq)
		require.Equal(t, Index(5), log.durable)
	}
}

// A delayed request that begins in the compacted part of the log is no conflict: what is compacted is committed.
func TestCompactedEntriesAreNoConflict(t *testing.T) {
	l := newLab(t, "a b c")
	log := raftLog{base: EntryID{3, 5}, last: 5}
	log.append(l.entries(6, 3))
	k, conflict := log.firstConflict(l.entries(3, 1, 1, 1, 3, 3))
	require.Equal(t, 4, k)
	require.False(t, conflict)
}

// SAFETY §3: "a removed or demoted server with a high term makes the cluster flap". One that was removed for good is refused before
// its term counts for anything, stickiness or not; what it says as a leader, or of its log, is heard.
func TestRemovedServerDoesNotRaiseOurTerm(t *testing.T) {
	l := newLab(t, "a b c")
	l.conf.Removed = []NodeID{"x"}
	a := l.start("a")
	l.step("b", "a", 1, 1, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, LeaderCommit: 1})
	l.lose()
	l.pass(10 * a.core.cfg.ElectionTimeout)
	for _, b := range []Body{PreVote{LastLogIndex: 99, LastLogTerm: 9}, RequestVote{LastLogIndex: 99, LastLogTerm: 9},
		RequestVote{LastLogIndex: 99, LastLogTerm: 9, Transfer: true}, AppendEntriesReply{}, RequestVoteReply{}, PreVoteReply{}} {
		l.step("x", "a", 9, 1, b)
		require.Equal(t, Term(1), a.core.currentTerm, "%T", b)
		require.Empty(t, l.take("a", "x", ""), "%T", b)
	}
	l.step("x", "a", 9, 2, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1})
	require.Equal(t, Term(9), a.core.currentTerm)
}
