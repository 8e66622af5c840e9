package raft

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// SAFETY inv 11, 12: what leaves at once and what waits for which write, on a follower.
func TestRepliesWaitForTheNewestWrite(t *testing.T) {
	l, a := newServer(t, "a b c")
	a.slow = true
	l.step("b", "a", 2, 1, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1})
	require.Empty(t, l.wire, "a heartbeat of a term that is not durable yet waits")
	a.persist(1)
	l.one("a", "b", "AppendEntriesReply")

	l.step("b", "a", 2, 2, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: l.entries(2, 2)})
	require.Empty(t, l.wire)
	l.step("b", "a", 2, 3, AppendEntries{PrevLogIndex: 2, PrevLogTerm: 2, Entries: l.entries(3, 2)})
	l.step("b", "a", 2, 4, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: l.entries(2, 2)}) // duplicate: no write of its own
	require.Len(t, a.writes, 2)
	require.Empty(t, l.wire)
	l.step("b", "a", 2, 5, AppendEntries{PrevLogIndex: 2, PrevLogTerm: 2, LeaderCommit: 2})
	require.Equal(t, AppendEntriesReply{Success: true, PrevLogIndex: 2, MatchIndex: 1}, l.reply("a", "b"),
		"a heartbeat is answered at once, and claims what is durable only")
	require.Len(t, a.applied, 1, "2@2 is committed, and not durable here")
	l.step("b", "a", 2, 6, AppendEntries{PrevLogIndex: 9, PrevLogTerm: 2})
	require.Empty(t, l.wire)
	a.persist(1)
	require.Equal(t, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2}, l.reply("a", "b"))
	require.Len(t, a.applied, 2)
	a.persist(1)
	replies := l.take("a", "b", "AppendEntriesReply")
	require.Len(t, replies, 3)
	require.Equal(t, Index(3), replies[0].Body.(AppendEntriesReply).MatchIndex)
	require.Equal(t, Index(2), replies[1].Body.(AppendEntriesReply).MatchIndex)
	require.False(t, replies[2].Body.(AppendEntriesReply).Success)
}

// SAFETY inv 12: a refusal tells of our term, too, so it waits until a crash cannot make us forget that.
func TestRefusalsWaitForTheTerm(t *testing.T) {
	l, a := newServer(t, "a b c")
	a.slow = true
	a.do(func(c *Core, now time.Duration) { c.StorageState(now, StorageFull) })
	l.step("c", "a", 5, 1, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: l.entries(2, 5)})
	require.Empty(t, l.wire, "busy")
	l.step("b", "a", 2, 1, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1})
	require.Empty(t, l.wire, "a deposed leader")
	a.persist(1)
	require.Equal(t, AppendEntriesReply{Busy: true, PrevLogIndex: 1}, l.reply("a", "c"))
	require.Equal(t, AppendEntriesReply{}, l.reply("a", "b"))
}

// SAFETY inv 12: a write that is done has made durable what it held, not what the term is by now.
func TestCompletedWriteVouchesForItsOwnTermOnly(t *testing.T) {
	l, a := newServer(t, "a b c")
	a.slow = true
	l.step("c", "a", 2, 1, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1})
	l.step("b", "a", 3, 1, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1})
	a.persist(1)
	l.step("b", "a", 3, 2, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1})
	require.Empty(t, l.wire, "term 3 is not durable")
	a.persist(1)
	require.Len(t, l.take("a", "b", "AppendEntriesReply"), 2)
}

// SAFETY §3: "asynchronous append ABA: same index, other term, late completion must be ignored"; the example in log.go.
func TestLateCompletionDoesNotCountForAReplacedEntry(t *testing.T) {
	l, a := follower(t, HardState{CurrentTerm: 1}, 1, 1, 1, 1)
	a.slow = true
	l.step("b", "a", 1, 1, AppendEntries{PrevLogIndex: 4, PrevLogTerm: 1, Entries: l.entries(5, 1)}) // the first write
	l.step("c", "a", 2, 1, AppendEntries{PrevLogIndex: 4, PrevLogTerm: 1, Entries: l.entries(5, 2)}) // replaces it
	l.step("b", "a", 3, 1, AppendEntries{PrevLogIndex: 3, PrevLogTerm: 1, Entries: l.entries(4, 3)}) // a shorter log
	l.step("c", "a", 4, 1, AppendEntries{PrevLogIndex: 3, PrevLogTerm: 1, Entries: l.entries(4, 4, 4)})
	require.Len(t, a.writes, 4)
	for _, want := range []Index{3, 3, 3, 5} {
		a.persist(1)
		require.Equal(t, want, a.core.log.durable)
		if want < 5 {
			require.Empty(t, l.wire)
		}
	}
	require.Equal(t, Index(5), l.reply("a", "c").MatchIndex)
	require.Equal(t, []Term{1, 1, 1, 4, 4}, a.terms())
}

// Entries that were handed out are immutable: a write that is under way, or a message, keeps what it has when they are replaced.
func TestTruncationLeavesWhatWasHandedOut(t *testing.T) {
	l, a := follower(t, HardState{CurrentTerm: 1}, 1, 1, 1, 1)
	a.slow = true
	l.step("b", "a", 1, 1, AppendEntries{PrevLogIndex: 4, PrevLogTerm: 1, Entries: l.entries(5, 1, 1)})
	l.step("c", "a", 2, 1, AppendEntries{PrevLogIndex: 5, PrevLogTerm: 1, Entries: l.entries(6, 2)})
	require.Len(t, a.writes, 2)
	require.Equal(t, EntryID{1, 6}, a.writes[0].Entries[1].ID())
	require.Equal(t, EntryID{2, 6}, a.writes[1].Entries[0].ID())
}

// A truncation may reach the entries that no write has been issued for, and those only: what remains of them is written, and what is
// under way counts when it is durable, not before.
func TestTruncationOfWhatIsNotIssued(t *testing.T) {
	l := newLab(t, "a b c")
	log := raftLog{}
	write := func() (b Batch) { log.issue(0, HardState{}, &b); return b }
	log.append(l.entries(1, 1, 1))
	write()
	log.persisted(1)
	log.append(l.entries(3, 1, 1))
	write()
	log.append(l.entries(5, 1, 1))
	log.truncate(6)
	log.append(l.entries(6, 2))
	require.Equal(t, Index(2), log.durable)
	b := write()
	require.Zero(t, b.TruncateFrom)
	require.Len(t, b.Entries, 2)
	require.Equal(t, []EntryID{{1, 5}, {2, 6}}, []EntryID{b.Entries[0].ID(), b.Entries[1].ID()})

	log.truncate(4) // 3 and 4 are under way
	require.Equal(t, Index(2), log.durable)
	log.persisted(2)
	require.Equal(t, Index(3), log.durable)
}

// A truncation lowers what a completion may reach, and never raises it: the entries below it may be under way themselves.
func TestTruncationMakesNothingDurable(t *testing.T) {
	l := newLab(t, "a b c")
	for _, issued := range []bool{false, true} {
		log := raftLog{}
		write := func() { log.issue(0, HardState{}, &Batch{}) }
		log.append(l.entries(1, 1, 1))
		write()
		log.append(l.entries(3, 1, 1, 1, 1))
		write()
		log.truncate(6)
		log.append(l.entries(6, 2))
		if issued {
			write()
		}
		require.Zero(t, log.durable)
		log.persisted(1)
		require.Equal(t, Index(2), log.durable, "truncation issued: %v", issued)
		log.persisted(2)
		require.Equal(t, Index(5), log.durable, "truncation issued: %v", issued)
	}
}

// The same, where the replacement has not been issued yet when the completion comes.
func TestCompletionDoesNotReachWhatIsAboutToBeTruncated(t *testing.T) {
	log := raftLog{}
	lab := newLab(t, "a")
	write := func() uint64 { return log.issue(0, HardState{}, &Batch{}) }
	log.append(lab.entries(1, 1, 1, 1, 1, 1))
	first := write()
	log.truncate(5)
	log.append(lab.entries(5, 2))
	_, any := log.persisted(first)
	require.True(t, any)
	require.Equal(t, Index(4), log.durable)
	second := write()
	require.Equal(t, Index(4), log.durable)
	log.persisted(second)
	require.Equal(t, Index(5), log.durable)
	_, any = log.persisted(second)
	require.False(t, any, "the same completion twice")
}

// SAFETY §3: "out-of-order I/O completion": Persisted(seq) completes all writes up to seq, and an impossible seq is our own bug.
func TestPersistedCompletesEverythingUpToSeq(t *testing.T) {
	l, a := newServer(t, "a b c")
	a.slow = true
	l.step("b", "a", 2, 1, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: l.entries(2, 2)})
	l.step("b", "a", 2, 2, AppendEntries{PrevLogIndex: 2, PrevLogTerm: 2, Entries: l.entries(3, 2)})
	a.persist(2)
	require.Equal(t, Index(3), a.core.log.durable)
	require.Len(t, l.take("a", "b", "AppendEntriesReply"), 2)
	require.Panics(t, func() { a.core.Persisted(l.now, 99) })
}

// SAFETY §3: "crash after truncating a conflicting suffix and before the append": both are one write.
func TestTruncationAndAppendAreOneWrite(t *testing.T) {
	l, a := follower(t, HardState{CurrentTerm: 2}, 1, 2, 2)
	a.slow = true
	l.step("b", "a", 3, 1, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: l.entries(2, 3)})
	require.Len(t, a.writes, 1)
	require.Equal(t, Index(2), a.writes[0].TruncateFrom)
	require.Len(t, a.writes[0].Entries, 1)
	l.crash("a")
	a = l.start("a")
	require.Equal(t, []Term{1, 2, 2}, a.terms())
}
