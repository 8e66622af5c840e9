package raft

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// SAFETY §3: "term change racing an append stamps new term on old work": a proposal is stamped with the term in which it is appended,
// and a server that is no leader appends nothing.
func TestOnlyALeaderAppends(t *testing.T) {
	l, a := newServer(t, "a b c")
	_, n, err := a.core.Propose(l.now, []Entry{NewCommand([]byte("x"))})
	require.Zero(t, n)
	require.ErrorIs(t, err, ErrNotLeader)
	l.office(a, "b")
	l.step("b", "a", 9, 1, AppendEntries{})
	_, n, err = a.core.Propose(l.now, []Entry{NewCommand([]byte("x"))})
	require.Zero(t, n)
	var not *NotLeaderError
	require.ErrorAs(t, err, &not)
	require.Equal(t, NotLeaderError{Leader: "b", Address: "b:1", Term: 9}, *not)
	require.Equal(t, Index(2), a.core.log.last)
}

// A proposal is called by the place that it was given, the first of several by the first.
func TestProposalsAreCalledByTheirPlaces(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.office(a, "b")
	for _, want := range []Index{3, 5} {
		first, n, err := a.core.Propose(l.now, []Entry{NewCommand([]byte("x")), NewCommand([]byte("y"))})
		require.NoError(t, err)
		require.Equal(t, 2, n)
		require.Equal(t, EntryID{2, want}, first)
		term, _ := a.core.TermAt(want + 1)
		require.Equal(t, Term(2), term)
		require.Equal(t, want+1, a.core.log.last)
	}
}

// Figure 2: the commit rule is one for leaders. Who has stepped down within its term gets the answers that were on their way, and
// counts none.
func TestDeposedLeaderCountsNothing(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.office(a, "b")
	a.propose("x")
	l.pass(time.Second)
	l.tick("a")
	require.Equal(t, Follower, a.core.role)
	for _, id := range []string{"b", "c"} {
		l.step(id, "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 3})
	}
	require.Zero(t, a.core.commitIndex)
	require.Zero(t, a.core.peer("b").matchIndex)
}

// SAFETY §2, memory: a flood of proposals is bounded in bytes, and what is refused has no effect.
func TestUncommittedProposalsAreBounded(t *testing.T) {
	l, a := newServer(t, "a b c", func(c *CoreConfig) { c.MaxUncommittedBytes = 3*EntryHeaderSize + 3 })
	l.office(a, "b")
	propose := func(n int) (int, error) {
		es := make([]Entry, n)
		for i := range es {
			es[i] = NewCommand([]byte("x"))
		}
		_, accepted, err := a.core.Propose(l.now, es)
		return accepted, err
	}
	n, err := propose(5) // the no-op takes its share
	require.Equal(t, 2, n)
	require.ErrorIs(t, err, ErrOverloaded)
	require.Equal(t, Index(4), a.core.log.last)
	n, err = propose(1)
	require.Zero(t, n)
	require.ErrorIs(t, err, ErrOverloaded)
	a.run()
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 4})
	require.Zero(t, a.core.uncommittedBytes)
	a.propose(string(make([]byte, 500)))
	_, err = propose(1)
	require.ErrorIs(t, err, ErrOverloaded, "one entry larger than all the room is taken, when nothing else waits")
}

// SAFETY §2, disk: full means that commands are refused; voting, no-ops and configurations go on.
func TestFullStorageRefusesCommandsOnly(t *testing.T) {
	full := func(c *Core, now time.Duration) { c.StorageState(now, StorageFull) }
	l, a := newServer(t, "a b c | d")
	a.do(full)
	l.office(a, "b")
	require.Equal(t, Index(2), a.core.log.last, "the no-op")
	_, n, err := a.core.Propose(l.now, []Entry{NewCommand([]byte("x"))})
	require.Zero(t, n)
	require.ErrorIs(t, err, ErrStorageFull)
	require.Equal(t, "the storage is full", a.core.Status(l.now).WhyNot)
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
	_, err = a.change(Change{Remove: []NodeID{"d"}})
	require.NoError(t, err)
	a.do(func(c *Core, now time.Duration) { c.StorageState(now, StorageOK) })
	a.propose("x")

	l, a = newServer(t, "a b c")
	a.do(full)
	noOp := newEntry(EntryNoOp, nil)
	noOp.stamp(EntryID{2, 2})
	l.step("b", "a", 2, 1, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: []Entry{noOp}})
	require.True(t, l.reply("a", "b").Success)
	l.step("b", "a", 2, 2, AppendEntries{PrevLogIndex: 2, PrevLogTerm: 2, LeaderCommit: 3, Entries: l.entries(3, 2)})
	require.Equal(t, AppendEntriesReply{Busy: true, PrevLogIndex: 2}, l.reply("a", "b"))
	require.Equal(t, Index(2), a.core.log.last)
	require.Zero(t, a.core.commitIndex)
	l.step("b", "a", 2, 3, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, LeaderCommit: 2, Entries: []Entry{noOp}})
	require.True(t, l.reply("a", "b").Success, "it holds this entry already")
	conf := labConfigurationEntry(2, 3, labConfiguration("a b c | d"))
	l.step("b", "a", 2, 4, AppendEntries{PrevLogIndex: 2, PrevLogTerm: 2, LeaderCommit: 2, Entries: []Entry{conf}})
	require.True(t, l.reply("a", "b").Success, "a configuration fits still")
	l.step("c", "a", 3, 4, RequestVote{LastLogIndex: 3, LastLogTerm: 2, Transfer: true})
	require.True(t, l.one("a", "c", "RequestVoteReply").Body.(RequestVoteReply).Granted)
}

// DESIGN §3: "A full follower answers Busy and is paused", for a heartbeat; its answers count for check-quorum.
func TestBusyFollowerIsPaused(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.office(a, "b")
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
	a.propose("x")
	l.lose()
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Busy: true, PrevLogIndex: 2})
	a.propose("y")
	require.Empty(t, l.take("a", "b", "AppendEntries"))
	require.True(t, a.core.peer("b").status(l.now).Busy)
	l.pass(100 * time.Millisecond)
	l.tick("a")
	var sent []AppendEntries
	for _, m := range l.take("a", "b", "AppendEntries") {
		if r := m.Body.(AppendEntries); len(r.Entries) > 0 {
			sent = append(sent, r)
		}
	}
	require.Len(t, sent, 1)
	require.Equal(t, Index(2), sent[0].PrevLogIndex)
	require.Len(t, sent[0].Entries, 2)
}

// A follower whose memory is full of entries that its disk has not taken answers Busy as well (SAFETY inv 26).
func TestFollowerBoundsWhatItsDiskHasNotTaken(t *testing.T) {
	l := newLab(t, "a b c", func(c *CoreConfig) { c.MaxTailBytes = 100; c.MaxUncommittedBytes = 100 })
	a := l.start("a")
	a.slow = true
	last := EntryID{1, 1}
	busy := false
	for i := 0; i < 20 && !busy; i++ {
		l.step("b", "a", 1, uint64(i), AppendEntries{PrevLogIndex: last.Index, PrevLogTerm: last.Term, Entries: l.entries(last.Index+1, 1)})
		last.Index++
		a.do(func(*Core, time.Duration) {})
		for _, m := range append(l.take("a", "b", ""), deferredOf(a)...) {
			busy = busy || m.Body.(AppendEntriesReply).Busy
		}
	}
	require.True(t, busy)
	require.Less(t, a.core.log.tailBytes, 400)
	l.step("b", "a", 1, 99, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, LeaderCommit: 1})
	require.True(t, l.reply("a", "b").Success, "a heartbeat needs no room")
	require.Equal(t, Index(1), a.core.commitIndex)
	a.persist(len(a.writes))
	require.LessOrEqual(t, a.core.log.tailBytes, 100)
}

func deferredOf(s *labServer) []Message {
	var ms []Message
	for _, d := range s.core.deferred {
		ms = append(ms, d.m)
	}
	return ms
}

// Entries that are no longer in memory come by Load, and nothing else is sent to that follower meanwhile.
func TestOldEntriesAreLoaded(t *testing.T) {
	l := newCluster(t, "a b c", func(c *CoreConfig) { c.MaxTailBytes = 1; c.MaxBatchBytes = 100 })
	a := l.elect("a")
	l.isolate("c", true)
	for i := range 10 {
		a.propose(fmt.Sprint(i))
		l.settle()
	}
	require.Zero(t, a.core.log.tail.len)
	a.holdLoads = true
	l.isolate("c", false)
	l.heartbeats("a", 7)
	require.Len(t, a.loads, 1, "one at a time")
	require.Equal(t, NodeID("c"), a.loads[0].Peer)
	require.Equal(t, Index(3), a.loads[0].Lo)
	a.holdLoads = false
	a.do(func(*Core, time.Duration) { a.load() })
	l.settle()
	require.Equal(t, a.terms(), l.server("c").terms())
	require.Len(t, l.server("c").commands(), 10)
	l.requireEqualLogs()
}

// awaitingLoad is a leader a whose storage has been asked for the entry that its follower c lacks.
func awaitingLoad(t *testing.T) (*lab, *labServer) {
	l := newCluster(t, "a b c", func(c *CoreConfig) { c.MaxTailBytes = 1 })
	a := l.elect("a")
	l.isolate("c", true)
	a.propose("x")
	l.settle()
	a.holdLoads = true
	l.isolate("c", false)
	l.heartbeats("a", 7)
	require.Len(t, a.loads, 1)
	return l, a
}

// A Load that comes back after the office has changed hands, or was asked for something else, is dropped.
func TestLateLoadsAreDropped(t *testing.T) {
	l, a := awaitingLoad(t)
	late := a.loads[0]
	a.peerUp("c", 2)
	l.lose()
	a.do(func(c *Core, now time.Duration) { c.Loaded(now, late.ID, l.entries(late.Lo, 2)) })
	require.Empty(t, l.take("a", "c", "AppendEntries"), "asked for a process that is gone")
	l.step("b", "a", 9, 1, AppendEntries{})
	l.lose()
	a.do(func(c *Core, now time.Duration) { c.Loaded(now, late.ID, l.entries(late.Lo, 2)) })
	a.do(func(c *Core, now time.Duration) { c.LoadFailed(now, late.ID, LoadDamaged) })
	require.Empty(t, l.wire)
	require.Empty(t, a.transfers)
}

// A damaged entry that no snapshot covers is no reason to ask the disk for it again and again without a pause.
func TestDamagedEntriesWithoutSnapshotPauseTheFollower(t *testing.T) {
	l, a := awaitingLoad(t)
	id := a.loads[0].ID
	a.loads = nil
	a.do(func(c *Core, now time.Duration) { c.LoadFailed(now, id, LoadDamaged) })
	require.Empty(t, a.loads)
	require.Empty(t, a.transfers)
	for i := range 10 {
		require.Empty(t, a.loads, i)
		l.pass(100 * time.Millisecond)
		l.tick("a")
		l.settle()
	}
	require.Len(t, a.loads, 1, "tried again after a pause")
}

// Where a snapshot covers what cannot be loaded, it takes its place.
func TestDamagedEntriesAreReplacedByASnapshot(t *testing.T) {
	l := newCluster(t, "a b c", func(c *CoreConfig) { c.MaxTailBytes = 1 })
	a := l.elect("a")
	l.isolate("c", true)
	a.propose("x")
	l.settle()
	a.takeSnapshot(3)
	a.holdLoads = true
	l.isolate("c", false)
	l.heartbeats("a", 7)
	require.Len(t, a.loads, 1)
	a.do(func(c *Core, now time.Duration) { c.LoadFailed(now, a.loads[0].ID, LoadDamaged) })
	require.Len(t, a.transfers, 1)
	require.Equal(t, NodeID("c"), a.transfers[0].Message.To)
}

// SAFETY inv 9: each index is handed out once, in order, and bounded in bytes.
func TestAppliesAreBoundedAndInOrder(t *testing.T) {
	l := newCluster(t, "a b c", func(c *CoreConfig) { c.MaxUnappliedBytes = 100 })
	a := l.elect("a")
	a.holdApply = true
	for i := range 10 {
		a.propose(fmt.Sprint(i))
	}
	l.settle()
	require.Equal(t, Index(12), a.core.commitIndex)
	require.Less(t, a.core.handedOut, Index(8))
	a.holdApply = false
	for len(a.applies) > 0 {
		a.do(func(*Core, time.Duration) { a.apply() })
	}
	require.Len(t, a.applied, 12)
	a.core.Applied(l.now, 3) // a late report
	require.Equal(t, Index(12), a.core.lastApplied)
	require.Panics(t, func() { a.core.Applied(l.now, 99) })
}

// Entries that were trimmed from memory before they were applied are read back from storage.
func TestAppliesReachBehindMemory(t *testing.T) {
	l := newCluster(t, "a b c", func(c *CoreConfig) { c.MaxTailBytes = 1; c.MaxUnappliedBytes = 40 })
	a := l.elect("a")
	a.holdApply = true
	for i := range 10 {
		a.propose(fmt.Sprint(i))
		l.settle()
	}
	a.holdApply = false
	for len(a.applies) > 0 {
		a.do(func(*Core, time.Duration) { a.apply() })
	}
	require.Equal(t, []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}, a.commands())
}

// §5.3, Log Matching (SAFETY inv 5) and §5.4, Leader Completeness (inv 6), along a short life with leader changes.
func TestCommittedEntriesSurviveLeaderChanges(t *testing.T) {
	l := newCluster(t, "a b c d e")
	var want []string
	for round, leader := range []string{"a", "c", "e", "b", "d"} {
		s := l.elect(leader)
		cmd := fmt.Sprint(round)
		want = append(want, cmd)
		away := l.ids()[(round+4)%5]
		if away == leader {
			away = "a"
		}
		l.isolate(away, true)
		s.propose(cmd)
		l.settle()
		l.isolate(away, false)
		l.heartbeats(leader, 8)
	}
	for _, id := range l.ids() {
		require.Equal(t, want, l.server(id).commands())
	}
	l.requireEqualLogs()
}

// A Load that comes back after the follower got the entries by itself would not follow what it is to be sent behind.
func TestLoadThatIsOvertakenIsDropped(t *testing.T) {
	l := newCluster(t, "a b c", func(c *CoreConfig) { c.MaxTailBytes = 1 })
	a := l.elect("a")
	l.isolate("c", true)
	a.propose("x", "y")
	l.settle()
	a.holdLoads = true
	l.isolate("c", false)
	l.heartbeats("a", 7)
	require.Len(t, a.loads, 1)
	late := a.loads[0]
	l.step("c", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 2, MatchIndex: 3})
	l.lose()
	a.do(func(c *Core, now time.Duration) { c.Loaded(now, late.ID, l.entries(late.Lo, 2)) })
	require.Empty(t, l.take("a", "c", "AppendEntries"))
	require.Equal(t, Index(4), a.core.peer("c").nextIndex)
}
