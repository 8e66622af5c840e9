package raft

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func (l *lab) meta(index Index, term Term) SnapshotMeta {
	return SnapshotMeta{Index: index, Term: term, Configuration: l.conf, ConfigurationIndex: 1, Size: 1}
}

// offer gives a snapshot to a server, its content being durable in its store already.
func (l *lab) offer(from, to string, term Term, meta SnapshotMeta) {
	l.t.Helper()
	s := l.server(to)
	if s.disk.snapshot.Index < meta.Index {
		s.disk.snapshot = meta
	}
	l.step(from, to, term, 1, InstallSnapshot{Meta: meta})
}

func (l *lab) snapshotReply(from, to string) InstallSnapshotReply {
	l.t.Helper()
	return l.one(from, to, "InstallSnapshotReply").Body.(InstallSnapshotReply)
}

// §7: "Once a server completes writing a snapshot, it may delete all log entries up through the last included index"; some are kept,
// for followers that lag a little.
func TestSnapshotCompactsTheLogButKeepsATrail(t *testing.T) {
	l := newCluster(t, "a b c", func(c *CoreConfig) { c.TrailingEntries = 3 })
	a := l.elect("a")
	for i := range 10 {
		a.propose(fmt.Sprint(i))
	}
	l.settle()
	a.takeSnapshot(2)
	require.Zero(t, a.compacted)
	a.takeSnapshot(10)
	require.Equal(t, Index(7), a.compacted)
	require.Equal(t, EntryID{2, 7}, a.core.log.base)
	require.Equal(t, Index(10), a.core.Status(l.now).SnapshotIndex)
	require.Equal(t, Index(8), a.core.Status(l.now).FirstIndex)
	a.propose("x")
	l.settle()
	require.Equal(t, "x", l.server("b").commands()[10])

	// SAFETY inv 20, across a restart: the state machine begins at the snapshot, the log behind the trail.
	l.crash("a")
	a = l.start("a")
	require.Equal(t, Index(10), a.core.commitIndex)
	require.Equal(t, Index(13), a.core.log.last)
	l.elect("a")
	require.Equal(t, Index(11), a.applied[0].Index)
}

// SAFETY inv 19, and §7: "the snapshot also includes the latest configuration in the log as of last included index".
func TestSnapshotCarriesTheConfigurationOfItsIndex(t *testing.T) {
	l := newCluster(t, "a b c", func(c *CoreConfig) { c.TrailingEntries = 1 })
	a := l.elect("a")
	a.propose("x") // 3
	_, err := a.change(Change{Add: []Server{{ID: "d", Address: "d:1"}}})
	require.NoError(t, err)
	a.propose("y") // 5
	l.settle()
	for index, want := range map[Index]Index{1: 1, 3: 1, 4: 4, 5: 4} {
		meta, ok := a.core.SnapshotMeta(index)
		require.True(t, ok)
		require.Equal(t, want, meta.ConfigurationIndex)
		require.Equal(t, want == 4, len(meta.Configuration.Servers) == 4)
		require.Equal(t, int64(-1), meta.Size)
	}
	for _, index := range []Index{0, 6, 99} {
		_, ok := a.core.SnapshotMeta(index)
		require.False(t, ok, index)
	}
	a.takeSnapshot(3)
	a.takeSnapshot(5)
	meta, ok := a.core.SnapshotMeta(5)
	require.True(t, ok)
	require.Equal(t, Index(4), meta.ConfigurationIndex)
	require.Panics(t, func() { a.core.SnapshotTaken(l.now, l.meta(99, 2)) })
}

// §7: "the leader must send snapshots to followers that lag behind", when "it has already discarded the next log entry" they need.
func TestLaggingFollowerGetsTheSnapshotThenTheLog(t *testing.T) {
	l := newCluster(t, "a b c", func(c *CoreConfig) { c.TrailingEntries = 1 })
	a := l.elect("a")
	l.isolate("c", true)
	for i := range 10 {
		a.propose(fmt.Sprint(i))
	}
	l.settle()
	a.takeSnapshot(9)
	a.propose("x")
	l.isolate("c", false)
	l.heartbeats("a", 8)
	require.Len(t, a.transfers, 1)
	p := a.core.peer("c")
	require.Equal(t, stateSnapshot, p.state)
	m := a.transfers[0].Message
	require.True(t, l.server("c").core.WantsSnapshot(m))
	meta := m.Body.(InstallSnapshot).Meta
	require.Equal(t, EntryID{2, 9}, meta.ID())
	l.stepMessage(m)
	l.settle()
	require.Equal(l.t, []Index{9}, l.server("c").restored)
	require.Equal(t, []string{"7", "8", "9", "x"}, l.server("c").commands())
}

// electWithLaggard elects a, whose follower c has been away for ten proposals, and is sent a snapshot of nine entries now.
func (l *lab) electWithLaggard() *labServer {
	l.t.Helper()
	a := l.elect("a")
	l.isolate("c", true)
	for i := range 10 {
		a.propose(fmt.Sprint(i))
	}
	l.settle()
	a.takeSnapshot(9)
	l.isolate("c", false)
	l.heartbeats("a", 8)
	require.Len(l.t, a.transfers, 1)
	return a
}

// §7: install, then the log behind it; twice is as good as once.
func TestSnapshotTransferEnds(t *testing.T) {
	lagging := func(t *testing.T) (*lab, *labServer, SnapshotTransfer) {
		l := newCluster(t, "a b c", func(c *CoreConfig) { c.TrailingEntries = 1 })
		a := l.electWithLaggard()
		return l, a, a.transfers[0]
	}
	behind := func(l *lab) {
		l.heartbeats("a", 3)
		require.Equal(l.t, Index(12), l.server("c").core.commitIndex)
		require.Equal(l.t, []Index{9}, l.server("c").restored)
		require.Equal(l.t, []string{"7", "8", "9"}, l.server("c").commands(), "what lies behind 9")
	}
	t.Run("sent, and the reply comes later", func(t *testing.T) {
		l, a, x := lagging(t)
		l.stepMessage(x.Message)
		a.do(func(c *Core, now time.Duration) { c.SnapshotSent(now, x.ID) })
		require.Equal(t, Index(10), l.take("a", "c", "AppendEntries")[0].Body.(AppendEntries).PrevLogIndex+1)
		behind(l)
	})
	t.Run("the reply comes first", func(t *testing.T) {
		l, a, x := lagging(t)
		l.stepMessage(x.Message)
		l.settle()
		a.do(func(c *Core, now time.Duration) { c.SnapshotSent(now, x.ID) })
		behind(l)
	})
	t.Run("said to be sent, and lost", func(t *testing.T) {
		l, a, x := lagging(t)
		a.do(func(c *Core, now time.Duration) { c.SnapshotSent(now, x.ID) })
		l.heartbeats("a", 3)
		require.Len(t, a.transfers, 2)
		l.stepMessage(a.transfers[1].Message)
		a.do(func(c *Core, now time.Duration) { c.SnapshotSent(now, a.transfers[1].ID) })
		behind(l)
	})
	t.Run("failed: after a pause, with the newest snapshot", func(t *testing.T) {
		l, a, x := lagging(t)
		a.do(func(c *Core, now time.Duration) { c.SnapshotFailed(now, x.ID) })
		for i := range 9 {
			l.pass(100 * time.Millisecond)
			l.tick("a")
			l.settle()
			require.Len(t, a.transfers, 1, i)
		}
		a.takeSnapshot(10)
		l.heartbeats("a", 2)
		require.Len(t, a.transfers, 2)
		require.Equal(t, Index(10), a.transfers[1].Message.Body.(InstallSnapshot).Meta.Index)
		a.do(func(c *Core, now time.Duration) { c.SnapshotSent(now, x.ID) })
		require.Equal(t, stateSnapshot, a.core.peer("c").state, "the first transfer is over")
	})
	t.Run("the follower got there by itself", func(t *testing.T) { // SAFETY §3: "a pending-snapshot peer acknowledged past it"
		l, a, _ := lagging(t)
		l.step("c", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 10})
		require.NotEqual(t, stateSnapshot, a.core.peer("c").state)
		require.Equal(t, Index(10), a.core.peer("c").matchIndex)
	})
	t.Run("a rejection of what was sent before comes late", func(t *testing.T) {
		l, a, x := lagging(t)
		before := a.core.nextRequest
		a.do(func(c *Core, now time.Duration) { c.SnapshotSent(now, x.ID) })
		l.step("c", "a", 2, before, AppendEntriesReply{PrevLogIndex: 5, HintIndex: 2, HintTerm: 2})
		require.Equal(t, stateProbe, a.core.peer("c").state)
		require.Equal(t, Index(10), a.core.peer("c").nextIndex)
		require.Len(t, a.transfers, 1)
	})
	t.Run("the follower answers an older one", func(t *testing.T) {
		l, a, _ := lagging(t)
		l.step("c", "a", 2, a.core.nextRequest, InstallSnapshotReply{MatchIndex: 5})
		require.Equal(t, Index(5), a.core.peer("c").matchIndex)
		require.Equal(t, stateSnapshot, a.core.peer("c").state, "it lacks what is compacted since")
		require.Len(t, a.transfers, 1)
	})
	t.Run("a new process of the follower", func(t *testing.T) {
		l, a, x := lagging(t)
		l.crash("c")
		l.start("c")
		a.peerUp("c", 2)
		l.settle()
		require.Len(t, a.transfers, 2)
		a.do(func(c *Core, now time.Duration) { c.SnapshotSent(now, x.ID) })
		require.Equal(t, stateSnapshot, a.core.peer("c").state)
	})
}

// A transfer may take longer than the trail lasts. If what follows the snapshot were compacted meanwhile, the follower would need the
// next snapshot, and so on without end.
func TestFollowerGoesOnWithEntriesAfterALongTransfer(t *testing.T) {
	l := newCluster(t, "a b c", func(c *CoreConfig) { c.TrailingEntries = 1 })
	a := l.electWithLaggard()
	for i := range 10 {
		a.propose(fmt.Sprint("more", i))
	}
	l.settle()
	a.takeSnapshot(20)
	require.Equal(t, Index(9), a.core.log.base.Index)
	l.stepMessage(a.transfers[0].Message)
	l.heartbeats("a", 3)
	require.Len(t, a.transfers, 1)
	require.Equal(t, a.core.commitIndex, l.server("c").core.commitIndex)
	a.takeSnapshot(21)
	require.Equal(t, Index(20), a.core.log.base.Index, "nobody needs it any more")
}

// The same holds while the follower catches up behind the snapshot: the next snapshot is due before it has all that came during the
// transfer. What it still lacks of that is kept for as long as it comes closer.
func TestFollowerCatchesUpBehindASnapshotWhileTheNextIsTaken(t *testing.T) {
	begin := func() (*lab, *labServer) {
		l := newCluster(t, "a b c", func(c *CoreConfig) { c.TrailingEntries, c.MaxBatchBytes, c.MaxInflightMessages = 1, 1, 1 })
		a := l.electWithLaggard()
		for i := range 10 {
			a.propose(fmt.Sprint("more", i))
		}
		l.settle()
		l.stepMessage(a.transfers[0].Message)
		l.deliver("c", "a")
		require.Equal(t, Index(9), a.core.peer("c").matchIndex)
		for range 4 { // a few entries reach the follower
			l.deliver("a", "c")
			l.deliver("c", "a")
		}
		require.Less(t, a.core.peer("c").matchIndex, Index(20))
		return l, a
	}
	t.Run("it comes closer", func(t *testing.T) {
		l, a := begin()
		a.takeSnapshot(20)
		require.Equal(t, a.core.peer("c").matchIndex, a.core.log.base.Index)
		for range 20 {
			l.settle()
			l.pass(100 * time.Millisecond)
			l.tick("a")
		}
		require.Len(t, a.transfers, 1)
		require.Equal(t, a.core.commitIndex, l.server("c").core.commitIndex)
		a.takeSnapshot(21)
		require.Equal(t, Index(20), a.core.log.base.Index, "nobody needs it any more")
	})
	t.Run("it does not", func(t *testing.T) {
		l, a := begin()
		l.isolate("c", true)
		l.heartbeats("a", 20)
		a.takeSnapshot(20)
		require.Equal(t, Index(19), a.core.log.base.Index, "the log does not grow for somebody who is away")
	})
	t.Run("a full disk has taken what it lacks", func(t *testing.T) {
		l, a := begin()
		a.do(func(c *Core, now time.Duration) { c.StorageState(now, StorageFull) })
		a.takeSnapshot(20)
		a.do(func(c *Core, now time.Duration) { c.StorageState(now, StorageOK) })
		require.Equal(t, Index(19), a.core.log.base.Index)
		l.isolate("c", true)
		a.propose("one more")
		l.settle()
		a.takeSnapshot(22)
		require.Equal(t, Index(21), a.core.log.base.Index)
	})
}

// A follower that takes long to receive a snapshot must not stop the others. On a full disk no command is taken, so there would be no
// other snapshot after which the log could be compacted, not even when the transfer is over.
func TestFullDiskKeepsNothingForAFollowerThatReceivesASnapshot(t *testing.T) {
	l := newCluster(t, "a b c", func(c *CoreConfig) { c.TrailingEntries = 1 })
	a := l.elect("a")
	l.isolate("c", true)
	some := func() {
		for i := range 10 {
			a.propose(fmt.Sprint(i))
		}
		l.settle()
	}
	some()
	a.takeSnapshot(9)
	l.isolate("c", false)
	l.heartbeats("a", 8)
	require.Len(t, a.transfers, 1)
	some()
	a.takeSnapshot(20)
	require.Equal(t, Index(9), a.compacted)

	a.do(func(c *Core, now time.Duration) { c.StorageState(now, StorageFull) })
	require.Equal(t, Index(19), a.compacted, "what follows the snapshot on its way gives room")
	a.do(func(c *Core, now time.Duration) { c.StorageState(now, StorageOK) })
	some()
	a.takeSnapshot(30)
	require.Equal(t, Index(29), a.compacted, "with the snapshot on its way nobody could go on any more")

	l.stepMessage(a.transfers[0].Message)
	l.heartbeats("a", 8)
	require.Len(t, a.transfers, 2)
	l.stepMessage(a.transfers[1].Message)
	l.heartbeats("a", 8)
	require.Equal(t, a.core.commitIndex, l.server("c").core.commitIndex)
}

// Figure 13, rules 7 and 8: "Discard the entire log. Reset state machine using snapshot contents (and load snapshot's cluster
// configuration)". The claim waits for the write that makes it part of the log.
func TestSnapshotReplacesAConflictingOrShorterLog(t *testing.T) {
	for name, terms := range map[string][]Term{"shorter": {1, 2}, "conflicting": {1, 2, 2, 2, 2, 2, 2}, "blank": nil} {
		t.Run(name, func(t *testing.T) {
			l, a := follower(t, HardState{CurrentTerm: 2}, terms...)
			a.slow = true
			l.conf = labConfiguration("a b c d")
			l.offer("b", "a", 3, l.meta(5, 3))
			require.Empty(t, l.wire)
			require.Len(t, a.writes, 1)
			require.Equal(t, EntryID{3, 5}, a.writes[0].Snapshot.ID())
			require.Equal(t, []Index{5}, a.restored)
			require.Equal(t, Index(5), a.core.commitIndex)
			require.Empty(t, a.terms())
			_, member := a.core.configuration().Server("d")
			require.True(t, member, "SAFETY §3: the configuration at its index")
			require.Len(t, a.peers, 3)

			l.step("b", "a", 3, 2, AppendEntries{PrevLogIndex: 5, PrevLogTerm: 3, LeaderCommit: 6, Entries: l.entries(6, 3)})
			require.Empty(t, l.wire)
			require.Empty(t, a.applied, "nothing behind the snapshot is durable yet")
			a.persist(1)
			require.Equal(t, InstallSnapshotReply{MatchIndex: 5}, l.snapshotReply("a", "b"))
			a.persist(1)
			require.Equal(t, Index(6), l.reply("a", "b").MatchIndex)
			require.Len(t, a.applied, 1)
			require.Equal(t, EntryID{3, 5}, a.disk.compacted)
		})
	}
}

// SAFETY inv 11: an installed snapshot is a part of the durable log once the log knows of it. A heartbeat, which is answered at once,
// claims nothing of it before.
func TestInstalledSnapshotIsClaimedOnceTheLogKnowsIt(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.leaderOf("a", "b", 2)
	a.slow = true
	l.offer("b", "a", 2, l.meta(5, 2))
	l.step("b", "a", 2, 2, AppendEntries{PrevLogIndex: 5, PrevLogTerm: 2, LeaderCommit: 5})
	require.Zero(t, l.reply("a", "b").MatchIndex)
	a.persist(1)
	require.Equal(t, Index(5), l.snapshotReply("a", "b").MatchIndex)
	l.step("b", "a", 2, 3, AppendEntries{PrevLogIndex: 5, PrevLogTerm: 2, LeaderCommit: 5})
	require.Equal(t, Index(5), l.reply("a", "b").MatchIndex)
}

// A snapshot comes right behind a truncation, and both go to the disk in one write. Were the truncation left out, a disk that still
// holds the snapshot's last entry would keep what follows it (rule 6), which the leader never had.
func TestSnapshotKeepsTheTruncationBeforeIt(t *testing.T) {
	l := newLab(t, "a b c")
	log := raftLog{}
	log.append(l.entries(1, 1, 1, 1, 1, 1, 1))
	log.issue(0, HardState{}, &Batch{})
	log.persisted(log.issuedSeq)
	log.truncate(4)
	log.reset(SnapshotMeta{Index: 5, Term: 1})
	var b Batch
	log.issue(0, HardState{}, &b)
	require.Equal(t, Index(4), b.TruncateFrom)
	require.Equal(t, Index(5), b.Snapshot.Index)
}

// Figure 13, rule 6: "If existing log entry has same index and term as snapshot's last included entry, retain log entries following
// it and reply".
func TestSnapshotOfAKnownPrefixKeepsTheLog(t *testing.T) {
	l, a := follower(t, HardState{CurrentTerm: 3}, 1, 2, 2, 3, 3)
	l.offer("b", "a", 3, l.meta(3, 2))
	require.Equal(t, InstallSnapshotReply{MatchIndex: 3}, l.snapshotReply("a", "b"))
	require.Equal(t, []Term{1, 2, 2, 3, 3}, a.terms())
	require.Empty(t, a.restored)
	require.Equal(t, Index(3), a.core.commitIndex)
	require.Len(t, a.applied, 3)
}

// SAFETY §3: "older than applied": nothing goes back, and only what is durable is claimed.
func TestOldSnapshotChangesNothing(t *testing.T) {
	l, a := follower(t, HardState{CurrentTerm: 2}, 1, 2, 2)
	a.slow = true
	l.step("b", "a", 2, 1, AppendEntries{PrevLogIndex: 3, PrevLogTerm: 2, LeaderCommit: 5, Entries: l.entries(4, 2, 2)})
	require.Equal(t, Index(5), a.core.commitIndex)
	old := Message{Header: Header{From: "b", To: "a", Term: 2}, Body: InstallSnapshot{Meta: l.meta(4, 2)}}
	require.False(t, a.core.WantsSnapshot(old))
	l.offer("b", "a", 2, l.meta(4, 2))
	require.Empty(t, a.restored)
	a.persist(1)
	require.Equal(t, InstallSnapshotReply{MatchIndex: 3}, l.snapshotReply("a", "b"))
	require.Equal(t, []Term{1, 2, 2, 2, 2}, a.terms())
}

// WantsSnapshot spares the transfer of what would not be taken.
func TestUnwantedSnapshotsAreKnownBeforehand(t *testing.T) {
	l, a := newServer(t, "a b c")
	m := Message{Header: Header{From: "b", To: "a", Term: 1}, Body: InstallSnapshot{Meta: l.meta(9, 1)}}
	require.True(t, a.core.WantsSnapshot(m))
	for name, change := range map[string]func(*Message){
		"for another server": func(m *Message) { m.To = "c" },
		"of an earlier term": func(m *Message) { m.Term = 0 },
		"no snapshot":        func(m *Message) { m.Body = TimeoutNow{} },
	} {
		x := m
		change(&x)
		require.False(t, a.core.WantsSnapshot(x), name)
	}
	a.do(func(c *Core, now time.Duration) { c.StorageState(now, StorageFailed) })
	require.False(t, a.core.WantsSnapshot(m))
}

// SAFETY §3: "commit index beyond the log after a crash while installing". The store has the snapshot, the log was not told: the log
// that it contradicts is discarded, and the next write says so.
func TestCrashWhileInstallingIsCompletedAtStart(t *testing.T) {
	for name, terms := range map[string][]Term{"shorter": {1, 2}, "conflicting": {1, 2, 2, 2, 2, 2}, "agrees": {1, 2, 2, 3, 3, 3, 3}} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, "a b c")
			s := l.provision("a", HardState{CurrentTerm: 2, VotedFor: "b"}, terms...)
			s.disk.snapshot = l.meta(5, 3)
			a := l.start("a")
			require.Equal(t, Index(5), a.core.commitIndex)
			require.Equal(t, Index(5), a.core.lastApplied)
			if name == "agrees" {
				require.Equal(t, terms, a.terms())
				require.Zero(t, a.disk.compacted)
			} else {
				require.Empty(t, a.terms())
				require.Equal(t, EntryID{3, 5}, a.disk.compacted, "the first write completes the installation")
			}
			require.Equal(t, HardState{CurrentTerm: 3}, a.disk.hard, "the snapshot's term was entered; nobody was voted for in it")
		})
	}
}

// SAFETY inv 20: a log that begins behind the newest snapshot has lost entries; such a server acknowledges nothing from there on.
func TestGapBetweenSnapshotAndLogIsKnown(t *testing.T) {
	l := newLab(t, "a b c")
	s := l.provision("a", HardState{CurrentTerm: 2}, 1, 2, 2)
	s.disk.compact(2)
	durable := func() Index {
		c, err := NewCore(CoreConfig{ID: "a"}, 0, s.disk.recovered())
		require.NoError(t, err)
		require.NoError(t, c.Check())
		return c.log.durable
	}
	require.Equal(t, Index(0), durable())
	s.disk.snapshot = l.meta(1, 1)
	require.Equal(t, Index(1), durable())
	s.disk.snapshot = l.meta(2, 2)
	require.Equal(t, Index(3), durable())
}

// Compaction keeps the index of terms right, wherever it cuts.
func TestCompactionKeepsTheTermsOfTheRest(t *testing.T) {
	terms := []Term{1, 1, 2, 2, 2, 5, 7, 7}
	for to := Index(1); to <= 8; to++ {
		l := newLab(t, "a b c")
		log := raftLog{}
		log.append(l.entries(1, terms...))
		log.persisted(log.issue(0, HardState{}, &Batch{}))
		log.compact(to)
		require.Equal(t, EntryID{terms[to-1], to}, log.base)
		for i := to; i <= 8; i++ {
			got, ok := log.term(i)
			require.True(t, ok)
			require.Equal(t, terms[i-1], got)
		}
		_, ok := log.term(to - 1)
		require.False(t, ok && to > 1)
		_, ok = log.term(9)
		require.False(t, ok)
		require.Equal(t, int(8-to), log.tail.len)
		log.append(l.entries(9, 7, 9))
		require.Equal(t, EntryID{9, 10}, log.lastID())
	}
}

// An entry that is not durable is never compacted, and never trimmed from memory.
func TestOnlyDurableEntriesLeaveMemory(t *testing.T) {
	l := newLab(t, "a b c")
	log := raftLog{}
	log.append(l.entries(1, 1, 1, 1))
	first := log.issue(0, HardState{}, &Batch{})
	log.append(l.entries(4, 1, 1))
	log.persisted(first)
	log.trim(0, log.durable)
	require.Equal(t, 2, log.tail.len)
	log.compact(4)
	require.Zero(t, log.base)
	log.compact(3)
	require.Equal(t, Index(3), log.base.Index)
}

// On a leader, too, where entries may be committed without its own disk.
func TestCommittedEntriesStayInMemoryUntilTheyAreDurable(t *testing.T) {
	l, a := newServer(t, "a b c", func(c *CoreConfig) { c.MaxTailBytes = 1 })
	l.office(a, "b")
	a.slow = true
	a.propose("x")
	for _, id := range []string{"b", "c"} {
		l.step(id, "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 3})
	}
	require.Equal(t, Index(3), a.core.commitIndex)
	require.Equal(t, 1, a.core.log.tail.len)
	a.persist(1)
	require.Zero(t, a.core.log.tail.len)
	require.Equal(t, []string{"x"}, a.commands())
}

// SAFETY §2, hostile input: a position behind which the next index would wrap around is malformed, whoever sends it.
func TestIndexesBeyondAnyLogAreMalformed(t *testing.T) {
	l := newLab(t, "a b c")
	for _, index := range []Index{maxIndex + 1, 1 << 63, ^Index(0)} {
		h := Header{From: "b", To: "a", Term: 5}
		require.Error(t, Message{Header: h, Body: InstallSnapshot{Meta: l.meta(index, 2)}}.Validate())
		require.Error(t, Message{Header: h, Body: AppendEntries{PrevLogIndex: index, PrevLogTerm: 2}}.Validate())
	}
	require.NoError(t, Message{Header: Header{From: "b", To: "a", Term: 5}, Body: InstallSnapshot{Meta: l.meta(maxIndex, 2)}}.Validate())
}

// §6 with §7: a configuration behind the snapshot is in force, and may still be truncated. What was in force before it is needed then,
// though the snapshot covers that.
func TestConfigurationBehindASnapshotIsRolledBack(t *testing.T) {
	for _, restart := range []bool{false, true} {
		l := newLab(t, "a b c", func(c *CoreConfig) { c.TrailingEntries = 1 })
		l.provision("a", HardState{CurrentTerm: 2}, 1, 2, 2)
		a := l.start("a")
		bigger := labConfiguration("a b c | d")
		l.step("b", "a", 2, 1, AppendEntries{PrevLogIndex: 3, PrevLogTerm: 2, LeaderCommit: 3, Entries: []Entry{labConfigurationEntry(2, 4, bigger)}})
		a.takeSnapshot(3)
		require.Equal(t, EntryID{2, 2}, a.core.log.base)
		require.Equal(t, Index(4), a.core.configurationIndex())
		require.Equal(t, Index(1), a.core.snapshot.ConfigurationIndex)
		if restart {
			l.crash("a")
			a = l.start("a")
			require.Equal(t, Index(4), a.core.configurationIndex())
		}
		l.step("c", "a", 3, 1, AppendEntries{PrevLogIndex: 3, PrevLogTerm: 2, LeaderCommit: 3, Entries: l.entries(4, 3)})
		require.Equal(t, Index(1), a.core.configurationIndex())
		require.Equal(t, "a, b, c", describeConfiguration(a.core.configuration()))
		require.Nil(t, a.core.peer("d"))
	}
}

// Figure 13, rule 7: "Discard the entire log", with the configurations behind the snapshot's last included entry, when the snapshot was
// received right before a crash.
func TestConfigurationOfADiscardedLogIsGoneAtStart(t *testing.T) {
	l := newLab(t, "a b c")
	s := l.provision("a", HardState{CurrentTerm: 3}, 1, 2, 2, 2, 2, 2)
	s.disk.entries[5] = labConfigurationEntry(2, 6, labConfiguration("a b c | d"))
	s.disk.snapshot = l.meta(5, 3)
	a := l.start("a")
	require.Equal(t, Index(5), a.core.log.last)
	require.Equal(t, Index(1), a.core.configurationIndex())
	require.Nil(t, a.core.peer("d"))
}

// §5.2: a candidate that hears from a leader of its term returns to follower state, and a follower's election timer restarts; a
// snapshot says as much as entries do.
func TestSnapshotMakesItsSenderKnownAsLeader(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.candidacy(a, "b")
	l.offer("b", "a", a.core.currentTerm, l.meta(5, 1))
	require.Equal(t, Follower, a.core.role)
	require.Equal(t, NodeID("b"), a.core.leader)

	l.pass(900 * time.Millisecond)
	l.offer("b", "a", a.core.currentTerm, l.meta(6, 1))
	require.GreaterOrEqual(t, a.core.Deadline(), l.now+time.Second)
}

// §7: "If instead the follower receives a snapshot that describes a prefix of its log", nothing goes back: not the state machine, not
// the log, and not the snapshot that this server would send (SAFETY inv 8, and §3: "older than applied").
func TestOlderSnapshotReplacesNothing(t *testing.T) {
	l := newLab(t, "a b c", func(c *CoreConfig) { c.TrailingEntries = 1 })
	l.provision("a", HardState{CurrentTerm: 2}, 1, 2, 2, 2, 2, 2)
	a := l.start("a")
	l.step("b", "a", 2, 1, AppendEntries{PrevLogIndex: 6, PrevLogTerm: 2, LeaderCommit: 6})
	a.takeSnapshot(5)
	require.Equal(t, EntryID{2, 4}, a.core.log.base)
	for _, index := range []Index{3, 4, 5} { // 3 is compacted, 4 is the last one that is, 5 is the newest snapshot
		l.offer("b", "a", 2, l.meta(index, 2))
		require.Equal(t, InstallSnapshotReply{MatchIndex: 6}, l.snapshotReply("a", "b"))
		require.Equal(t, Index(5), a.core.snapshot.Index)
		require.Equal(t, Index(6), a.core.commitIndex)
		require.Equal(t, []Term{2, 2}, a.terms())
		require.Empty(t, a.restored)
	}

	// One that the leader's log cannot have had here is not passed on (SAFETY inv 19).
	l.offer("b", "a", 2, l.meta(6, 1))
	require.Equal(t, Index(5), a.core.snapshot.Index)
}

// §5.3: what a follower acknowledges equals the leader's log. Of an old snapshot it knows that for what is committed, and not for the
// rest of its own log, durable or not.
func TestOldSnapshotAcknowledgesNothingBehindTheCommitIndex(t *testing.T) {
	l, a := follower(t, HardState{CurrentTerm: 3}, 1, 2, 2, 2)
	l.step("b", "a", 3, 1, AppendEntries{PrevLogIndex: 2, PrevLogTerm: 2, LeaderCommit: 2})
	require.Equal(t, Index(4), a.core.log.durable)
	l.offer("b", "a", 3, l.meta(2, 2))
	require.Equal(t, InstallSnapshotReply{MatchIndex: 2}, l.snapshotReply("a", "b"))
}

// A snapshot of the local state machine takes time. One that the leader sent meanwhile is newer, and stays.
func TestSnapshotTakenLateReplacesNothing(t *testing.T) {
	l, a := follower(t, HardState{CurrentTerm: 2}, 1, 2, 2)
	l.step("b", "a", 2, 1, AppendEntries{PrevLogIndex: 3, PrevLogTerm: 2, LeaderCommit: 3})
	meta, ok := a.core.SnapshotMeta(3)
	require.True(t, ok)
	l.offer("b", "a", 2, l.meta(5, 2))
	require.Equal(t, []Index{5}, a.restored)
	a.do(func(c *Core, now time.Duration) { c.SnapshotTaken(now, meta) })
	require.Equal(t, Index(5), a.core.snapshot.Index)
	require.Zero(t, a.compacted)
}

// §7: a snapshot covers what is committed, and no more than the state machine has got.
func TestSnapshotOfWhatIsNotCommittedIsNotDescribed(t *testing.T) {
	l, a := follower(t, HardState{CurrentTerm: 2}, 1, 2, 2)
	l.step("b", "a", 2, 1, AppendEntries{PrevLogIndex: 3, PrevLogTerm: 2, LeaderCommit: 2})
	_, ok := a.core.SnapshotMeta(2)
	require.True(t, ok)
	_, ok = a.core.SnapshotMeta(3)
	require.False(t, ok)
}

// Compaction never goes back: what is gone has no term any more.
func TestCompactionNeverGoesBack(t *testing.T) {
	l := newLab(t, "a b c")
	log := raftLog{}
	log.append(l.entries(1, 1, 1, 2, 2, 2))
	log.persisted(log.issue(0, HardState{}, &Batch{}))
	log.compact(4)
	log.compact(2)
	require.Equal(t, EntryID{2, 4}, log.base)
	require.Equal(t, 1, log.tail.len)
}

// SAFETY inv 11: the log on disk has not begun anew yet, so nobody is told that it reaches to the snapshot: not by a heartbeat either,
// which is answered at once.
func TestInstalledSnapshotIsNotDurableAtOnce(t *testing.T) {
	l, a := follower(t, HardState{CurrentTerm: 3}, 1, 2)
	a.slow = true
	l.offer("b", "a", 3, l.meta(5, 3))
	l.step("b", "a", 3, 2, AppendEntries{PrevLogIndex: 5, PrevLogTerm: 3, LeaderCommit: 5})
	require.Equal(t, AppendEntriesReply{Success: true, PrevLogIndex: 5}, l.reply("a", "b"))
	a.persist(1)
	l.step("b", "a", 3, 3, AppendEntries{PrevLogIndex: 5, PrevLogTerm: 3, LeaderCommit: 5})
	require.Equal(t, AppendEntriesReply{Success: true, PrevLogIndex: 5, MatchIndex: 5}, l.reply("a", "b"))
}

// A snapshot arrives in the same step as entries that cut off a part of the log, before that is written. The disk holds 4@2 still; were
// it not told of the truncation it would find the snapshot's last entry there, and keep what follows.
func TestInstalledSnapshotKeepsATruncationThatIsNotWritten(t *testing.T) {
	l := newLab(t, "a b c")
	log := raftLog{}
	log.append(l.entries(1, 1, 1, 1, 2, 2))
	log.persisted(log.issue(0, HardState{}, &Batch{}))
	log.truncate(4)
	log.append(l.entries(4, 3))
	log.reset(l.meta(4, 2))
	var b Batch
	log.issue(0, HardState{}, &b)
	require.Equal(t, EntryID{2, 4}, b.Snapshot.ID())
	require.Equal(t, Index(4), b.TruncateFrom)
	require.Empty(t, b.Entries)
}

// §5.1 and Figure 2 for replies to InstallSnapshot: one of an earlier term says nothing, and matchIndex "increases monotonically".
func TestSnapshotRepliesOfEarlierTermsOrIndexesChangeNothing(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.office(a, "b")
	heard := a.core.peer("c").lastHeard
	l.pass(100 * time.Millisecond)
	l.step("c", "a", 1, 1, InstallSnapshotReply{MatchIndex: 1})
	require.Zero(t, a.core.peer("c").matchIndex)
	require.Equal(t, heard, a.core.peer("c").lastHeard)

	l.step("c", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
	l.step("c", "a", 2, a.core.nextRequest, InstallSnapshotReply{MatchIndex: 1})
	require.Equal(t, Index(2), a.core.peer("c").matchIndex)
}

// §5.3 with §7: the compaction boundary stands for everything before it. What is committed here is in every later leader's log, so a
// request that begins in the compacted part matches, whatever was compacted.
func TestRequestThatBeginsInTheCompactedPartMatches(t *testing.T) {
	l := newLab(t, "a b c")
	s := l.provision("a", HardState{CurrentTerm: 3}, 1, 2, 2, 2, 3)
	s.disk.snapshot = l.meta(4, 2)
	s.disk.compact(4)
	a := l.start("a")
	for prev, want := range map[Index][]Term{0: nil, 2: {2, 2, 3, 3}, 3: {2, 3, 3}} {
		id := map[Index]EntryID{0: {}, 2: {2, 2}, 3: {2, 3}}[prev]
		l.step("b", "a", 3, 1, AppendEntries{PrevLogIndex: prev, PrevLogTerm: id.Term, Entries: l.entries(prev+1, want...)})
		require.Equal(t, AppendEntriesReply{Success: true, PrevLogIndex: prev, MatchIndex: prev + Index(len(want))}, l.reply("a", "b"))
	}
	require.Equal(t, []Term{3, 3}, a.terms())
	require.Empty(t, a.refused)
}

// The same on the leader: where all that it still knows differs from the follower's log, the logs agree at the compaction boundary at
// the latest, if the follower reaches there. It needs no snapshot.
//
//	a  (4@2) 3 3 4
//	c  1 2 2 2 2 2
func TestLogsAgreeAtTheCompactionBoundaryAtTheLatest(t *testing.T) {
	l := newLab(t, "a b c")
	s := l.provision("a", HardState{CurrentTerm: 3}, 1, 2, 2, 2, 3, 3)
	s.disk.snapshot = l.meta(4, 2)
	s.disk.compact(4)
	l.provision("b", HardState{CurrentTerm: 3}, 1, 2, 2, 2, 3, 3)
	l.provision("c", HardState{CurrentTerm: 3}, 1, 2, 2, 2, 2, 2)
	for _, id := range []string{"a", "b", "c"} {
		l.start(id)
	}
	l.elect("a")
	require.Equal(t, []Term{1, 2, 2, 2, 3, 3, 4}, l.server("c").terms())
	require.Empty(t, l.server("a").transfers)
}

// What was read from disk for a follower may be compacted, or found damaged, by the time it is there: then a snapshot that includes it
// takes its place.
func TestSnapshotTakesThePlaceOfALoad(t *testing.T) {
	for _, compacted := range []bool{true, false} {
		l := newCluster(t, "a b c", func(c *CoreConfig) {
			if c.MaxTailBytes = 1; compacted {
				c.TrailingEntries = 1
			}
		})
		a := l.elect("a")
		l.isolate("c", true)
		for i := range 6 {
			a.propose(fmt.Sprint(i))
			l.settle()
		}
		a.holdLoads = true
		l.isolate("c", false)
		l.heartbeats("a", 7)
		require.Len(t, a.loads, 1)
		x := a.loads[0]
		es := a.disk.entries[x.Lo-1 : x.Lo]
		a.takeSnapshot(7)
		l.lose()
		a.do(func(c *Core, now time.Duration) {
			if compacted {
				c.Loaded(now, x.ID, es)
			} else {
				c.LoadFailed(now, x.ID, LoadDamaged)
			}
		})
		require.Empty(t, l.take("a", "c", "AppendEntries"))
		require.Len(t, a.transfers, 1)
		require.Equal(t, Index(7), a.transfers[0].Message.Body.(InstallSnapshot).Meta.Index)
	}
}
