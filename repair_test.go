package raft

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The tests in this file cite "Protocol-Aware Recovery for Consensus-Based Storage" (FAST'18) as the paper.

// damagedServer starts a, the first of the members, with a log of these terms behind the configuration of which some entries cannot be
// read. The test plays the others.
func damagedServer(t testing.TB, members string, hard HardState, terms []Term, damaged ...Index) (*lab, *labServer) {
	l := newLab(t, members)
	s := l.provision("a", hard, terms...)
	s.damage(damaged...)
	l.start("a")
	return l, s
}

// damage makes entries on the disk unreadable.
func (s *labServer) damage(indices ...Index) {
	if s.disk.damaged == nil {
		s.disk.damaged = map[Index]bool{}
	}
	for _, i := range indices {
		s.disk.damaged[i] = true
	}
}

// forget loses the end of the log on the disk, from an entry on, and sets a fence that stands for it.
func (s *labServer) forget(from Index) {
	last := s.disk.last()
	if !s.disk.fence.upToDate(last) {
		s.disk.fence = last
	}
	s.disk.entries = slices.Clone(s.disk.entries[:from-s.disk.compacted.Index-1])
}

// fetched delivers an answer to a that holds entries.
func (l *lab) fetched(from string, term Term, es ...Entry) {
	l.t.Helper()
	l.step(from, "a", term, 1, FetchEntriesReply{Incarnation: 1, Entries: es})
}

// says delivers an answer to a about one stretch.
func (l *lab) says(from string, term Term, w Stretch, upTo Index, how Holding) {
	l.t.Helper()
	l.step(from, "a", term, 1, FetchEntriesReply{Incarnation: 1, Held: []Held{{Stretch: w, UpTo: upTo, How: how}}})
}

// asks lets a server ask the others now, and returns what it asks one of them for.
func (s *labServer) asks(peer string) FetchEntries {
	s.lab.t.Helper()
	s.do(func(c *Core, now time.Duration) { c.ForceRepair(now) })
	return s.lab.one(string(s.id), peer, "FetchEntries").Body.(FetchEntries)
}

// recoveringLeader makes a leader, by the votes of these servers, in term 3.
func (l *lab) recoveringLeader(a *labServer, voters ...string) {
	l.t.Helper()
	l.timeout("a")
	for _, v := range voters {
		l.step(v, "a", a.core.currentTerm+1, a.core.nextRequest, PreVoteReply{Granted: true})
	}
	for _, v := range voters {
		l.step(v, "a", a.core.currentTerm, a.core.nextRequest, RequestVoteReply{Granted: true})
	}
	l.take("*", "*", "PreVote")
	l.take("*", "*", "RequestVote")
	require.Equal(l.t, Leader, a.core.role)
	require.Equal(l.t, Term(3), a.core.currentTerm)
}

// The paper, §3.3.3: "we store the identity of an item separately", so that damage leaves a server its vote. A log is compared as if
// nothing were missing, or the votes of a damaged majority could elect a server without what was committed (SAFETY inv 6).
func TestVotesAreGivenByTheIdentitiesOfDamagedEntries(t *testing.T) {
	for _, tt := range []struct {
		last    EntryID
		granted bool
	}{{EntryID{2, 3}, false}, {EntryID{2, 4}, true}, {EntryID{1, 9}, false}} {
		l, a := damagedServer(t, "a b c", HardState{CurrentTerm: 2}, []Term{1, 1, 2, 2}, 3, 4)
		l.step("b", "a", 3, 1, PreVote{LastLogIndex: tt.last.Index, LastLogTerm: tt.last.Term})
		require.Equal(t, tt.granted, l.one("a", "b", "PreVoteReply").Body.(PreVoteReply).Granted, "%v", tt.last)
		l.step("b", "a", 3, 2, RequestVote{LastLogIndex: tt.last.Index, LastLogTerm: tt.last.Term})
		require.Equal(t, tt.granted, l.one("a", "b", "RequestVoteReply").Body.(RequestVoteReply).Granted, "%v", tt.last)
		require.Equal(t, tt.granted, a.core.votedFor == "b")
	}
}

// SAFETY inv 11, 22: nothing from the first gap on is acknowledged, in whatever answer, and nothing is applied, until it is repaired and
// the repair durable. Then all is acknowledged that is known to equal the leader's log.
func TestNothingFromTheFirstGapOnIsAcknowledgedOrApplied(t *testing.T) {
	l, a := damagedServer(t, "a b c", HardState{CurrentTerm: 2}, []Term{1, 1, 2, 2, 2}, 3)
	require.Equal(t, Index(2), a.core.log.durable)
	l.step("b", "a", 2, 1, AppendEntries{PrevLogIndex: 5, PrevLogTerm: 2, LeaderCommit: 6, Entries: l.entries(6, 2)})
	require.Equal(t, AppendEntriesReply{Success: true, PrevLogIndex: 5, MatchIndex: 2}, l.reply("a", "b"))
	require.Equal(t, Index(6), a.core.commitIndex, "what the leader has committed is committed")
	l.step("b", "a", 2, 2, AppendEntries{PrevLogIndex: 5, PrevLogTerm: 2, LeaderCommit: 6})
	require.Equal(t, Index(2), l.reply("a", "b").MatchIndex)
	require.Len(t, a.applied, 2)

	a.slow = true
	l.fetched("c", 2, l.entry(2, 3))
	l.step("b", "a", 2, 3, AppendEntries{PrevLogIndex: 5, PrevLogTerm: 2, LeaderCommit: 6})
	require.Equal(t, Index(2), l.reply("a", "b").MatchIndex, "it is not on the disk")
	require.Len(t, a.applied, 2)
	require.Equal(t, []EntryID{{2, 3}}, ids(a.writes[0].Repairs))
	a.persist(1)
	require.Empty(t, a.disk.damaged)
	require.Len(t, a.applied, 6)
	l.step("b", "a", 2, 4, AppendEntries{PrevLogIndex: 2, PrevLogTerm: 1, LeaderCommit: 2})
	require.Equal(t, Index(6), l.reply("a", "b").MatchIndex, "what was found equal before is acknowledged now")
}

// What was found to equal a leader's log says nothing about the next leader's.
func TestWhatEqualsALeadersLogIsForgottenWithItsTerm(t *testing.T) {
	l, a := damagedServer(t, "a b c", HardState{CurrentTerm: 2}, []Term{1, 1, 2, 2}, 3)
	l.step("b", "a", 2, 1, AppendEntries{PrevLogIndex: 4, PrevLogTerm: 2})
	l.fetched("c", 2, l.entry(2, 3))
	l.lose()
	l.step("c", "a", 3, 1, AppendEntries{PrevLogIndex: 2, PrevLogTerm: 1})
	require.Equal(t, Index(2), l.reply("a", "c").MatchIndex)
	require.Equal(t, Index(4), a.core.log.durable)
}

// Exactly what is missing is asked for, by term and index: of the leader and of the others in turns, again and again until it has come.
func TestExactlyTheMissingEntriesAreFetched(t *testing.T) {
	l, a := damagedServer(t, "a b c", HardState{CurrentTerm: 2}, []Term{1, 1, 2, 2, 2, 2}, 2, 3, 5)
	want := []Stretch{{1, 2, 2}, {2, 3, 3}, {2, 5, 5}}
	require.Equal(t, FetchEntries{Wanted: want}, a.asks("b"))
	l.lose()
	l.fetched("b", 2, l.entries(2, 1, 2, 2)...)
	require.Equal(t, []Index{5}, []Index{a.core.log.gaps[0].First})
	require.Equal(t, FetchEntries{Wanted: want[2:]}, l.one("a", "b", "FetchEntries").Body, "it has more, perhaps")
	l.fetched("c", 2, l.entries(4, 2, 2, 2)...)
	require.Empty(t, a.core.log.gaps)
	require.Empty(t, l.take("a", "*", "FetchEntries"))
	for i := range a.disk.entries {
		want := l.entry(a.disk.entries[i].Term, Index(i+1))
		require.Equal(t, want.Frame(), a.disk.entries[i].Frame())
	}

	asked := map[NodeID]int{}
	_, a = damagedServer(t, "a b c d", HardState{CurrentTerm: 2}, []Term{1, 1, 2}, 2)
	a.lab.step("d", "a", 2, 1, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1})
	for range 12 {
		a.lab.pass(100 * time.Millisecond)
		a.tick("a")
		for _, m := range a.lab.take("a", "*", "FetchEntries") {
			asked[m.To]++
		}
		a.lab.step("d", "a", 2, 1, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1})
	}
	require.GreaterOrEqual(t, asked["d"], 6, "the leader every other time: %v", asked)
	require.Positive(t, asked["b"])
	require.Positive(t, asked["c"])
	require.Equal(t, 12, asked["b"]+asked["c"]+asked["d"])
}

func (s *labServer) tick(id string) { s.lab.tick(id) }

// Another entry in the place of a missing one is refused and counted, and so is an answer to a process before this one.
func TestAnotherEntryThanTheMissingOneIsRefused(t *testing.T) {
	l, a := damagedServer(t, "a b c", HardState{CurrentTerm: 2}, []Term{1, 1, 2}, 2, 3)
	l.fetched("b", 2, l.entry(1, 2), l.entry(1, 3))
	require.Equal(t, []Refusal{{"b", UnwantedEntry}}, a.refused)
	require.Len(t, a.core.log.gaps, 1)
	l.step("b", "a", 2, 1, FetchEntriesReply{Incarnation: 7, Entries: l.entries(2, 1)})
	require.Equal(t, Damage{First: 2, Last: 3}, a.core.log.gaps[0].Damage)
	conf := newEntry(EntryConfiguration, []byte{9})
	conf.stamp(EntryID{1, 2})
	l.fetched("b", 2, conf)
	require.Equal(t, Refusal{"b", UndecodableConfiguration}, a.refused[1])
	l.fetched("b", 2, l.entries(3, 2, 2, 2)...)
	require.Equal(t, []gap{{Damage: Damage{First: 2, Last: 2}}}, a.core.log.gaps)
	require.Equal(t, Index(3), a.core.log.last, "nobody asked for what is behind the log")

	// An entry that was asked for before the log was cut is no longer wanted, and nobody's fault.
	l.step("c", "a", 3, 1, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: l.entries(2, 3)})
	l.fetched("b", 3, l.entry(1, 2))
	require.Len(t, a.refused, 2)
}

// Any server answers, in any role, from memory or from its disk, with what it can read.
func TestFetchIsAnsweredInEveryRole(t *testing.T) {
	for name, become := range map[string]func(l *lab, a *labServer){
		"follower": func(l *lab, a *labServer) { l.step("c", "a", 2, 1, AppendEntries{}) },
		"leader":   func(l *lab, a *labServer) { l.office(a, "c") },
		"candidate": func(l *lab, a *labServer) {
			l.candidacy(a, "c")
			require.Equal(t, Candidate, a.core.role)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, a := damagedServer(t, "a b c", HardState{CurrentTerm: 2}, []Term{1, 1, 2, 2, 2, 2}, 5)
			become(l, a)
			l.lose()
			term := a.core.currentTerm
			l.step("b", "a", term, 7, FetchEntries{Wanted: []Stretch{{1, 2, 2}, {2, 4, 6}, {2, 7, 8}}})
			m := l.one("a", "b", "FetchEntriesReply")
			rep := m.Body.(FetchEntriesReply)
			require.Equal(t, uint64(7), m.Request)
			require.Equal(t, []EntryID{{1, 2}}, ids(rep.Entries), "from the disk, one piece at a time")
			require.Equal(t, []Held{{Stretch{1, 2, 2}, 2, HoldsIntact}, {Stretch{2, 4, 6}, 6, HoldsIntact}, {Stretch{2, 7, 8}, 6, HoldsNot}}, rep.Held)
			l.step("b", "a", term, 8, FetchEntries{Wanted: []Stretch{{2, 4, 6}}})
			rep = l.one("a", "b", "FetchEntriesReply").Body.(FetchEntriesReply)
			require.Equal(t, []EntryID{{2, 4}}, ids(rep.Entries), "up to what cannot be read here either")
			l.step("b", "a", term, 9, FetchEntries{Wanted: []Stretch{{2, 5, 6}}})
			rep = l.one("a", "b", "FetchEntriesReply").Body.(FetchEntriesReply)
			require.Equal(t, []Held{{Stretch{2, 5, 6}, 6, HoldsDamaged}}, rep.Held)
			require.Equal(t, []EntryID{{2, 6}}, ids(rep.Entries))
			l.step("b", "a", term, 10, FetchEntries{Wanted: []Stretch{{2, 2, 2}}})
			rep = l.one("a", "b", "FetchEntriesReply").Body.(FetchEntriesReply)
			require.Equal(t, FetchEntriesReply{Incarnation: 1, Held: []Held{{Stretch{2, 2, 2}, 1, HoldsNot}}}, rep, "another entry")
		})
	}
}

// What a server says of its log waits for the disk: until a truncation is durable it may have the entry again.
func TestAnswerAboutTheLogWaitsForTheDisk(t *testing.T) {
	l, a := damagedServer(t, "a b c", HardState{CurrentTerm: 2}, []Term{1, 1, 2})
	a.slow = true
	l.step("c", "a", 3, 1, AppendEntries{PrevLogIndex: 2, PrevLogTerm: 1, Entries: l.entries(3, 3)})
	l.step("b", "a", 3, 2, FetchEntries{Wanted: []Stretch{{2, 3, 3}}})
	require.Empty(t, l.take("a", "b", ""))
	a.persist(len(a.writes))
	rep := l.one("a", "b", "FetchEntriesReply").Body.(FetchEntriesReply)
	require.Equal(t, []Held{{Stretch{2, 3, 3}, 2, HoldsNot}}, rep.Held)
}

// One read at a time is under way for each asker; meanwhile it learns what is here. A read that fails is answered too.
func TestReadsForOthersAreBounded(t *testing.T) {
	l, a := damagedServer(t, "a b c", HardState{CurrentTerm: 2}, []Term{1, 1, 2})
	a.holdLoads = true
	l.step("b", "a", 2, 1, FetchEntries{Wanted: []Stretch{{1, 2, 2}}})
	require.Empty(t, l.take("a", "b", ""))
	for request := range uint64(3) {
		l.step("b", "a", 2, 2+request, FetchEntries{Wanted: []Stretch{{1, 2, 2}}})
	}
	require.Len(t, a.loads, 1)
	require.Len(t, l.take("a", "b", "FetchEntriesReply"), 3)
	id := a.loads[0].ID
	a.do(func(c *Core, now time.Duration) { c.LoadFailed(now, id, LoadCompacted) })
	m := l.one("a", "b", "FetchEntriesReply")
	require.Equal(t, uint64(1), m.Request)
	require.Empty(t, m.Body.(FetchEntriesReply).Entries)
	for i := range 2 * maxFetchAnswers {
		name := string(rune('d' + i))
		l.step(name, "a", 2, 1, FetchEntries{Wanted: []Stretch{{1, 2, 2}}})
	}
	require.Len(t, a.core.answers, maxFetchAnswers)
}

// The next AppendEntries may bring what is missing as well as an answer.
func TestAppendEntriesFillsGaps(t *testing.T) {
	l, a := damagedServer(t, "a b c", HardState{CurrentTerm: 2}, []Term{1, 1, 2, 2}, 2, 3)
	l.step("b", "a", 2, 1, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, LeaderCommit: 3, Entries: l.entries(2, 1, 2)})
	require.Empty(t, a.core.log.gaps)
	require.Equal(t, Index(4), a.core.log.last)
	require.Len(t, a.applied, 3)
}

// A conflict takes the gaps behind it away with the rest.
func TestTruncationTakesGapsAway(t *testing.T) {
	l, a := damagedServer(t, "a b c", HardState{CurrentTerm: 2}, []Term{1, 1, 2, 2}, 2, 4)
	l.step("b", "a", 3, 1, AppendEntries{PrevLogIndex: 2, PrevLogTerm: 1, Entries: l.entries(3, 3)})
	require.Equal(t, []gap{{Damage: Damage{First: 2, Last: 2}}}, a.core.log.gaps)
	require.Equal(t, []Term{1, 1, 3}, a.terms())
}

// A server that cannot read its log lets others come first, and takes over leadership from nobody.
func TestServerWithGapsLetsOthersComeFirst(t *testing.T) {
	l, a := damagedServer(t, "a b c", HardState{CurrentTerm: 2}, []Term{1, 1, 2}, 2)
	require.GreaterOrEqual(t, a.core.electionDeadline, l.now+(1+gapDelay)*time.Second)
	l.step("b", "a", 2, 1, AppendEntries{PrevLogIndex: 3, PrevLogTerm: 2})
	a.do(func(c *Core, now time.Duration) { c.PeerLost(now, "b", 1) })
	require.GreaterOrEqual(t, a.core.electionDeadline, l.now+(1+gapDelay)*time.Second, "not even when the leader is gone")
	l.step("b", "a", 2, 2, TimeoutNow{})
	require.Equal(t, Follower, a.core.role)
	l.fetched("b", 2, l.entry(1, 2))
	l.step("b", "a", 2, 3, TimeoutNow{})
	require.Equal(t, Candidate, a.core.role)
}

// A server that may not know the configuration in force does not campaign, until it has read what it lacks; then it knows it.
func TestServerThatMayNotKnowTheConfigurationDoesNotCampaign(t *testing.T) {
	l := newLab(t, "a b c")
	a := l.provision("a", HardState{CurrentTerm: 2}, 1, 2)
	wider := labConfiguration("a b c d e")
	a.disk.entries = append(a.disk.entries, labConfigurationEntry(2, 3, wider), l.entry(2, 4))
	a.damage(2, 3)
	a.disk.configure = true
	l.start("a")
	for range 3 {
		l.pass(9 * time.Second)
		l.timeout("a")
	}
	require.Equal(t, Follower, a.core.role)
	require.Empty(t, l.take("a", "*", "PreVote"))
	require.Len(t, a.core.configuration().Servers, 3)
	l.fetched("b", 2, l.entry(2, 2), labConfigurationEntry(2, 3, wider))
	require.Equal(t, wider, *a.core.configuration())
	require.Len(t, a.peers, 4)
	change, _ := lastEvent[ConfigurationChange](a)
	require.Equal(t, Index(3), change.Index)
	l.timeout("a")
	require.Equal(t, PreCandidate, a.core.role)
}

// §7: a snapshot takes the place of entries that cannot be read, and what was acknowledged behind it stays.
func TestSnapshotTakesThePlaceOfMissingEntries(t *testing.T) {
	meta := SnapshotMeta{Index: 4, Term: 2, Configuration: labConfiguration("a b c"), ConfigurationIndex: 1, Size: 1}
	for name, repair := range map[string]bool{"of the leader": false, "of somebody who has been asked": true} {
		t.Run(name, func(t *testing.T) {
			l, a := damagedServer(t, "a b c", HardState{CurrentTerm: 2}, []Term{1, 1, 2, 2, 2}, 3)
			l.step("b", "a", 2, 1, AppendEntries{PrevLogIndex: 5, PrevLogTerm: 2, LeaderCommit: 5})
			l.lose()
			m := Message{Header: Header{From: "c", To: "a", Replica: labReplica + 'c', Incarnation: 1, Term: 2, Request: 2},
				Body: InstallSnapshot{Meta: meta, Repair: true}}
			if !repair {
				m.From, m.Replica, m.Body = "b", labReplica+'b', InstallSnapshot{Meta: meta}
			}
			require.True(t, a.core.WantsSnapshot(m), "although more is committed")
			l.stepMessage(m)
			require.Equal(t, []Index{4}, a.restored)
			require.Equal(t, []Term{2}, a.terms())
			require.Equal(t, EntryID{2, 4}, a.disk.compacted)
			require.Equal(t, EntryID{2, 5}, a.disk.last())
			require.Len(t, a.applied, 3, "1, 2 and then 5")
			rep := l.one("a", string(m.From), "InstallSnapshotReply").Body.(InstallSnapshotReply)
			require.Equal(t, repair, rep.MatchIndex == 0)
			l.step("b", "a", 2, 3, AppendEntries{PrevLogIndex: 5, PrevLogTerm: 2, LeaderCommit: 5})
			require.Equal(t, Index(5), l.reply("a", "b").MatchIndex)
			require.False(t, a.core.WantsSnapshot(m))
		})
	}
}

// A snapshot that claims no leadership is taken only where it covers what is missing, and the log leads to it.
func TestSnapshotThatWasNotAskedForIsNotTaken(t *testing.T) {
	l, a := damagedServer(t, "a b c", HardState{CurrentTerm: 2}, []Term{1, 1, 2, 2}, 3)
	offer := func(index Index, term Term) Message {
		meta := SnapshotMeta{Index: index, Term: term, Configuration: labConfiguration("a b c"), ConfigurationIndex: 1, Size: 1}
		return Message{Header: Header{From: "c", To: "a", Replica: labReplica + 'c', Incarnation: 1, Term: 2}, Body: InstallSnapshot{Meta: meta, Repair: true}}
	}
	for _, m := range []Message{offer(2, 1), offer(4, 1), offer(9, 2)} {
		require.False(t, a.core.WantsSnapshot(m))
		l.stepMessage(m)
		require.Empty(t, a.restored)
		require.Len(t, a.core.log.gaps, 1)
		require.Empty(t, a.core.leader)
	}
	require.True(t, a.core.WantsSnapshot(offer(4, 2)))
}

// A would-be leader whose missing entries the others have compacted asks one of them for a snapshot.
func TestLeaderRecoversFromASnapshot(t *testing.T) {
	l := newCluster(t, "a b c", func(cfg *CoreConfig) { cfg.TrailingEntries = 1 })
	b := l.elect("b")
	b.propose("1", "2", "3")
	l.settle()
	l.timeout("b")
	l.settle()
	l.isolate("c", true)
	b.propose("4")
	l.settle()
	c := l.server("c")
	c.takeSnapshot(c.core.lastApplied)
	require.Equal(t, Index(4), c.core.log.base.Index)

	// a alone holds all that is committed, and cannot read what c has compacted.
	l.crash("a")
	l.crash("b")
	a := l.server("a")
	a.damage(4)
	l.isolate("c", false)
	a = l.start("a")
	l.pass(9 * time.Second)
	l.timeout("a")
	l.settle()
	require.True(t, a.core.repair.recovering)
	l.timeout("a")
	a.do(func(c *Core, now time.Duration) { c.ForceRepair(now) })
	l.settle()
	require.Len(t, c.transfers, 1)
	require.True(t, a.core.WantsSnapshot(c.transfers[0].Message))
	l.stepMessage(c.transfers[0].Message)
	l.settle()
	require.False(t, a.core.repair.recovering)
	require.Equal(t, a.core.log.last, a.core.commitIndex)
	a.do(func(c *Core, now time.Duration) { c.ForceRepair(now) })
	require.Len(t, c.transfers, 1)
}

// What a local snapshot covers is not needed: that part of the log is given up.
func TestGapsBelowASnapshotAreGivenUp(t *testing.T) {
	l := newLab(t, "a b c")
	a := l.provision("a", HardState{CurrentTerm: 2}, 1, 1, 2, 2, 2)
	a.damage(2, 4, 5)
	a.disk.snapshot = SnapshotMeta{Index: 4, Term: 2, Configuration: l.conf, ConfigurationIndex: 1, Size: 1}
	l.start("a")
	require.Equal(t, Index(4), a.compacted)
	require.Equal(t, []gap{{Damage: Damage{First: 5, Last: 5}}}, a.core.log.gaps)
	l.fetched("b", 2, l.entry(2, 5))
	require.Empty(t, a.core.log.gaps)
}

// Damage that is found later: a follower gets the entries again, and applies nothing twice.
func TestDamageFoundLater(t *testing.T) {
	l, a := damagedServer(t, "a b c", HardState{CurrentTerm: 2}, []Term{1, 1, 2, 2, 2})
	l.step("b", "a", 2, 1, AppendEntries{PrevLogIndex: 5, PrevLogTerm: 2, LeaderCommit: 4})
	require.Len(t, a.applied, 4)
	l.lose()
	a.damage(3, 5)
	a.slow = true
	l.step("b", "a", 2, 2, AppendEntries{PrevLogIndex: 5, PrevLogTerm: 2, Entries: l.entries(6, 2)})
	a.do(func(c *Core, now time.Duration) { c.Damaged(now, Damage{First: 3, Last: 3, MayConfigure: true}) })
	a.do(func(c *Core, now time.Duration) { c.Damaged(now, Damage{First: 5, Last: 9}) })
	require.False(t, a.core.mayHideConfiguration(), "all configurations are known")
	found, n := lastEvent[DamageFound](a)
	require.Equal(t, 2, n)
	require.Equal(t, Index(5), found.Damage.First)
	a.persist(1)
	require.Empty(t, l.take("a", "b", "AppendEntriesReply"), "the acknowledgement that waited for the disk is withdrawn")
	a.slow = false
	l.step("b", "a", 2, 3, AppendEntries{PrevLogIndex: 6, PrevLogTerm: 2, LeaderCommit: 6})
	require.Equal(t, Index(2), l.reply("a", "b").MatchIndex)
	require.Len(t, a.applied, 4)
	l.fetched("c", 2, l.entry(2, 3))
	l.fetched("c", 2, l.entry(2, 5))
	require.Empty(t, a.core.log.gaps)
	require.Len(t, a.applied, 6)
	require.Equal(t, Index(5), a.applied[4].Index)
}

// What is still in memory is written again, and nobody is asked.
func TestDamageIsRepairedFromMemory(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.step("b", "a", 2, 1, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: l.entries(2, 2, 2)})
	l.lose()
	a.damage(2, 3)
	a.do(func(c *Core, now time.Duration) { c.Damaged(now, Damage{First: 2, Last: 3}) })
	require.Empty(t, a.disk.damaged)
	require.Empty(t, a.core.log.gaps)
	require.Equal(t, Follower, a.core.role)
}

// A leader hands over at once to a server that holds all that is committed; with nobody there, it goes on, and neither acknowledges to
// itself nor sends what it cannot read.
func TestLeaderHandsOverWhenItFindsDamage(t *testing.T) {
	for _, alone := range []bool{false, true} {
		l := newCluster(t, "a b c", func(cfg *CoreConfig) { cfg.MaxTailBytes = 1 })
		a := l.elect("a")
		ids := a.propose("1", "2", "3")
		l.settle()
		l.timeout("a")
		l.settle()
		require.Zero(t, a.core.log.tail.len)
		if alone {
			l.pass(900 * time.Millisecond)
			for _, id := range []string{"b", "c"} {
				a.core.peer(NodeID(id)).lastHeard = l.now - 2*time.Second
			}
		}
		a.damage(ids[0].Index)
		a.do(func(c *Core, now time.Duration) { c.Damaged(now, Damage{First: ids[0].Index, Last: ids[0].Index}) })
		if !alone {
			require.Equal(t, Follower, a.core.role)
			require.Equal(t, ReasonDamage, a.core.reason)
			l.settle()
			require.NotEqual(t, NodeID("a"), a.core.leader)
			require.NotEmpty(t, a.core.leader)
			a.do(func(c *Core, now time.Duration) { c.ForceRepair(now) })
			l.settle()
			require.Empty(t, a.disk.damaged)
			continue
		}
		require.Equal(t, Leader, a.core.role)
		require.Equal(t, ids[0].Index-1, a.core.log.durable)
		p := a.core.peer("b")
		p.nextIndex, p.matchIndex, p.state = ids[0].Index-1, 0, stateReplicate
		a.core.sendAppends(p)
		require.Equal(t, ids[0].Index, a.core.out.Loads[0].Hi, "no further than it can read")
		p.load, p.nextIndex = 0, ids[0].Index
		a.core.sendAppends(p)
		require.Len(t, a.core.out.Loads, 1)
		require.Greater(t, p.pausedUntil, l.now)
	}
}

// A snapshot of the local state machine heals what has been applied, also where nobody can be asked.
func TestOwnSnapshotHeals(t *testing.T) {
	l := newCluster(t, "a")
	a := l.elect("a")
	ids := a.propose("1", "2", "3")
	a.core.log.trim(0, a.core.log.last)
	a.damage(ids[1].Index)
	a.do(func(c *Core, now time.Duration) { c.Damaged(now, Damage{First: ids[1].Index, Last: ids[1].Index}) })
	require.Equal(t, Leader, a.core.role)
	more := a.propose("4")
	require.Less(t, a.core.commitIndex, more[0].Index)
	a.takeSnapshot(ids[2].Index)
	require.Empty(t, a.core.log.gaps)
	require.Equal(t, ids[1].Index, a.compacted)
	more = a.propose("5")
	require.Equal(t, more[0].Index, a.core.commitIndex)
}

// SAFETY inv 29: a leader raises the alarm once if a follower that was started again has less than it had acknowledged.
func TestLeaderNoticesALostLog(t *testing.T) {
	for name, tt := range map[string]struct {
		reply AppendEntriesReply
		has   Index
		alarm bool
	}{
		"all is there":              {AppendEntriesReply{Success: true, PrevLogIndex: 5, MatchIndex: 5}, 0, false},
		"more than it acknowledged": {AppendEntriesReply{PrevLogIndex: 5, HintIndex: 4, HintTerm: 2}, 0, false},
		"exactly that":              {AppendEntriesReply{PrevLogIndex: 5, HintIndex: 3, HintTerm: 2}, 0, false},
		"less":                      {AppendEntriesReply{PrevLogIndex: 5, HintIndex: 2, HintTerm: 1}, 2, true},
		"a gap":                     {AppendEntriesReply{Success: true, PrevLogIndex: 5, MatchIndex: 2}, 2, true},
		"nothing is asked":          {AppendEntriesReply{Success: true}, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			l, a := newServer(t, "a b c")
			l.office(a, "c")
			a.propose("3", "4", "5")
			l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 3})
			l.lose()
			answer := func() {
				h := Header{From: "b", To: "a", Replica: labReplica + 'b', Incarnation: 2, Term: 2, Request: a.core.nextRequest}
				l.stepMessage(Message{Header: h, Body: tt.reply})
			}
			answer()
			a.do(func(c *Core, now time.Duration) {})
			answer()
			lost, n := lastEvent[LostLog](a)
			if !tt.alarm {
				require.Zero(t, n)
				return
			}
			require.Equal(t, 1, n)
			require.Equal(t, LostLog{Peer: "b", Remembered: 3, Has: tt.has}, lost)
			for _, p := range a.core.Status(l.now).Peers {
				require.Equal(t, p.ID == "b", p.LostLog != nil)
			}
			require.LessOrEqual(t, a.core.peer("b").matchIndex, tt.has)
		})
	}
}

// A repair counts with its own write: one that ended before says nothing about it.
func TestRepairsCountWithTheirOwnWrite(t *testing.T) {
	l, a := damagedServer(t, "a b c", HardState{CurrentTerm: 2}, []Term{1, 1, 2}, 2)
	a.slow = true
	l.step("b", "a", 2, 1, AppendEntries{PrevLogIndex: 3, PrevLogTerm: 2, Entries: l.entries(4, 2)})
	l.fetched("c", 2, l.entry(1, 2))
	require.Len(t, a.writes, 2)
	a.persist(1)
	require.Equal(t, Index(1), a.core.log.durable)
	a.persist(1)
	require.Equal(t, Index(4), a.core.log.durable)
}

// Entries fill gaps by term and index, each of them.
func TestGapsAreFilledByIdentity(t *testing.T) {
	l := newLab(t, "a b c")
	log := raftLog{last: 5, issued: 5, stored: 5, durable: 5, terms: []TermStart{{1, 1}, {3, 2}}}
	require.True(t, log.damage(Damage{First: 2, Last: 4}))
	require.Empty(t, log.fill(l.entries(2, 2, 3)))
	require.Equal(t, []EntryID{{1, 2}, {2, 4}}, ids(log.fill(l.entries(2, 1, 1, 2))))
	require.Equal(t, []Stretch{{2, 3, 3}}, log.missingStretches(9))
	require.False(t, log.fill(l.entries(2, 1)) != nil, "it is on its way to the disk")
}

// Damage that overlaps with what is known adds what is new.
func TestKnownDamageIsNotFoundAgain(t *testing.T) {
	log := raftLog{base: EntryID{1, 1}, last: 9, issued: 9, stored: 8, durable: 8, terms: []TermStart{{2, 1}}}
	require.True(t, log.damage(Damage{First: 4, Last: 5}))
	require.False(t, log.damage(Damage{First: 4, Last: 5}))
	require.False(t, log.damage(Damage{First: 4, Last: 4}))
	require.False(t, log.damage(Damage{First: 9, Last: 9}), "it is still on its way to the disk")
	require.True(t, log.damage(Damage{First: 0, Last: 99}))
	var all []Damage
	for _, g := range log.gaps {
		all = append(all, g.Damage)
	}
	require.Equal(t, []Damage{{First: 2, Last: 3}, {First: 4, Last: 5}, {First: 6, Last: 8}}, all)
	require.Equal(t, Index(1), log.durable)
	require.Equal(t, Index(2), log.readable(2, 9))
	require.Equal(t, Index(10), log.readable(9, 10))
}

// What is compacted was committed, and which entry it was is not known any more: it is not denied.
func TestCompactedEntriesAreNotDenied(t *testing.T) {
	l := newLab(t, "a b c")
	a := l.provision("a", HardState{CurrentTerm: 2}, 1, 1, 2, 2)
	a.disk.snapshot = SnapshotMeta{Index: 3, Term: 2, Configuration: l.conf, ConfigurationIndex: 1, Size: 1}
	a.disk.compact(2)
	l.start("a")
	l.step("b", "a", 2, 1, FetchEntries{Wanted: []Stretch{{1, 2, 2}, {2, 3, 4}}})
	rep := l.one("a", "b", "FetchEntriesReply").Body.(FetchEntriesReply)
	require.Equal(t, []Held{{Stretch{1, 2, 2}, 2, HoldsCompacted}, {Stretch{2, 3, 4}, 4, HoldsIntact}}, rep.Held)
	require.Equal(t, []EntryID{{2, 3}, {2, 4}}, ids(rep.Entries))
}

// A read that ends after the log has changed does not bring back what was cut off.
func TestOldReadIsNotServed(t *testing.T) {
	l, a := damagedServer(t, "a b c", HardState{CurrentTerm: 2}, []Term{1, 1, 2})
	a.holdLoads = true
	l.step("b", "a", 2, 1, FetchEntries{Wanted: []Stretch{{2, 3, 3}}})
	old := l.entries(3, 2)
	l.step("c", "a", 3, 1, AppendEntries{PrevLogIndex: 2, PrevLogTerm: 1, Entries: l.entries(3, 3)})
	l.lose()
	id := a.loads[0].ID
	a.do(func(c *Core, now time.Duration) { c.Loaded(now, id, old) })
	rep := l.one("a", "b", "FetchEntriesReply").Body.(FetchEntriesReply)
	require.Empty(t, rep.Entries)
	require.Equal(t, []Held{{Stretch{2, 3, 3}, 2, HoldsNot}}, rep.Held)
}

// The entry may have been committed under the configuration before the latest.
func TestDiscardRulesOutEarlierConfigurations(t *testing.T) {
	l := newLab(t, "a b c")
	a := l.provision("a", HardState{CurrentTerm: 2}, 1, 2)
	smaller := labConfiguration("a b")
	a.disk.entries = append(a.disk.entries, labConfigurationEntry(2, 3, smaller))
	a.damage(2)
	l.start("a")
	a.core.currentTerm, a.core.role, a.core.leader, a.core.votedFor = 3, Candidate, "", "a"
	a.core.durable = HardState{3, "a"}
	a.core.becomeLeader()
	l.says("b", 3, Stretch{2, 2, 2}, 1, HoldsNot)
	require.True(t, a.core.repair.recovering, "a and c may have agreed while c was a member")
}

// A leader that went on with damage, because nobody could take over, does so only for a while: its successor may be able to do what it
// cannot, and be it itself, in another term. (Found by simulation: entries of its own, of an
// earlier term, that no other server had.)
func TestLeaderWithDamageDoesNotStayForEver(t *testing.T) {
	for name, follows := range map[string]bool{"nobody holds what is committed": false, "somebody does at last": true} {
		t.Run(name, func(t *testing.T) {
			l, a := damagedServer(t, "a b c", HardState{CurrentTerm: 2}, []Term{1, 1, 2, 2})
			l.office(a, "b")
			a.damage(4)
			a.do(func(c *Core, now time.Duration) {
				c.commitTo(2) // which b and c have acknowledged, and not the processes that answer now
				c.Damaged(now, Damage{First: 4, Last: 4})
			})
			require.Equal(t, Leader, a.core.role)
			began := l.now
			for a.core.role == Leader && l.now < began+time.Minute {
				l.pass(100 * time.Millisecond)
				match := Index(0)
				if follows && l.now > began+time.Second {
					match = 2
				}
				for _, id := range []string{"b", "c"} {
					l.step(id, "a", 3, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 2, MatchIndex: match})
				}
				l.tick("a")
			}
			require.Equal(t, ReasonDamage, a.core.reason)
			if follows {
				require.Less(t, l.now, began+2*time.Second)
				require.NotEmpty(t, l.take("a", "*", "TimeoutNow"))
			} else {
				require.Equal(t, began+recoveryPatience*time.Second, l.now)
			}
		})
	}
}

// A log that begins behind a snapshot which cannot be read any more: the server starts from the older one, holds its promises by what its
// log remembers, and takes the first snapshot that reaches its log. What follows in the log stays.
func TestLogBehindALostSnapshot(t *testing.T) {
	for _, older := range []Index{0, 2} {
		l := newLab(t, "a b c")
		a := l.provision("a", HardState{CurrentTerm: 2}, 1, 1, 2, 2, 2, 2)
		if older > 0 {
			a.disk.snapshot = SnapshotMeta{Index: older, Term: 1, Configuration: l.conf, ConfigurationIndex: 1, Size: 1}
		}
		a.disk.compact(4)
		l.start("a")
		require.Equal(t, []Damage{{First: older + 1, Last: 4, MayConfigure: true}}, a.core.Status(l.now).Damaged)
		l.pass(9 * time.Second)
		l.timeout("a")
		require.Equal(t, Follower, a.core.role)
		l.step("b", "a", 3, 1, RequestVote{LastLogIndex: 5, LastLogTerm: 2})
		require.False(t, l.one("a", "b", "RequestVoteReply").Body.(RequestVoteReply).Granted)
		l.step("c", "a", 3, 1, AppendEntries{PrevLogIndex: 6, PrevLogTerm: 2, LeaderCommit: older, Entries: l.entries(7, 3)})
		require.Equal(t, older, l.reply("a", "c").MatchIndex)
		l.step("c", "a", 3, 2, AppendEntries{PrevLogIndex: older, PrevLogTerm: Term(older / 2), LeaderCommit: older})
		require.Equal(t, older, l.reply("a", "c").MatchIndex)
		require.Empty(t, a.applied)
		require.Contains(t, a.core.Status(l.now).WhyNot, "needs a snapshot that reaches entry 4", "c leads, and may wait for that (the simulator's seed 5188)")
		l.pass(100 * time.Millisecond)
		a.do(func(c *Core, now time.Duration) { c.advanceClock(now); c.ask("c") })
		ask := l.one("a", "c", "FetchEntries").Body.(FetchEntries)
		require.Empty(t, ask.Wanted)
		require.Equal(t, Index(4), ask.Snapshot, "also of a leader that is a stranger to one that knows no configuration (the simulator's seed 624)")
		a.do(func(c *Core, now time.Duration) { c.advanceClock(now); c.ask("c") })
		require.Zero(t, l.one("a", "c", "FetchEntries").Body.(FetchEntries).Snapshot, "it is on its way")
		offer := func(index Index, term Term, repair bool) Message {
			meta := SnapshotMeta{Index: index, Term: term, Configuration: l.conf, ConfigurationIndex: 1, Size: 1}
			return Message{Header: Header{From: "c", To: "a", Replica: labReplica + 'c', Incarnation: 1, Term: 3, Request: 9}, Body: InstallSnapshot{Meta: meta, Repair: repair}}
		}
		for _, short := range []Message{offer(3, 2, false), offer(3, 2, true)} {
			require.False(t, a.core.WantsSnapshot(short))
			l.stepMessage(short)
			require.Empty(t, a.restored)
			require.Equal(t, Index(7), a.core.log.last)
		}
		l.lose()
		require.True(t, a.core.WantsSnapshot(offer(5, 2, true)))
		l.stepMessage(offer(5, 2, older > 0))
		require.Equal(t, []Index{5}, a.restored)
		require.Equal(t, EntryID{3, 7}, a.disk.last())
		l.lose()
		l.step("c", "a", 3, 3, AppendEntries{PrevLogIndex: 7, PrevLogTerm: 3, LeaderCommit: 7})
		require.Equal(t, Index(7), l.reply("a", "c").MatchIndex)
		require.Len(t, a.applied, 2)
		require.Empty(t, a.core.Status(l.now).Damaged)
	}
}

// What was handed out to be applied, and could not be read, is handed out again behind the snapshot that takes its place. If it still counted
// as handed out there would be no room for it, and the state machine would stand still for ever (found by raftsim, seed 1150).
func TestWhatASnapshotReplacesIsHandedOutAgain(t *testing.T) {
	l, a := damagedServer(t, "a b c", HardState{CurrentTerm: 2}, []Term{1, 1, 2, 2, 2})
	a.holdApply = true
	l.step("b", "a", 2, 1, AppendEntries{PrevLogIndex: 5, PrevLogTerm: 2, LeaderCommit: 5})
	require.Equal(t, Index(5), a.core.handedOut)
	a.do(func(c *Core, now time.Duration) { c.Damaged(now, Damage{First: 3, Last: 3}) })
	l.stepMessage(Message{
		Header: Header{From: "b", To: "a", Replica: labReplica + 'b', Incarnation: 1, Term: 2, Request: 2},
		Body:   InstallSnapshot{Meta: SnapshotMeta{Index: 4, Term: 2, Configuration: labConfiguration("a b c"), ConfigurationIndex: 1, Size: 1}},
	})
	require.Equal(t, Index(5), a.core.handedOut, "5 is handed out anew")
	require.Len(t, a.core.unapplied, 1)
}

// A log that begins behind a lost snapshot, and ends before the snapshot that is offered, gives way to it whoever offers it: what it holds in
// front of that is committed with it, or never was. The leader's own log may reach back to its beginning, so that it would never send one
// (the simulator's seed 186).
func TestLogBehindALostSnapshotGivesWayToANewerOne(t *testing.T) {
	l := newLab(t, "a b c")
	a := l.provision("a", HardState{CurrentTerm: 2}, 1, 1, 2, 2)
	a.disk.snapshot = SnapshotMeta{Index: 1, Term: 1, Configuration: l.conf, ConfigurationIndex: 1, Size: 1}
	a.disk.compact(2)
	l.start("a")
	meta := SnapshotMeta{Index: 9, Term: 2, Configuration: l.conf, ConfigurationIndex: 1, Size: 1}
	offer := func(term Term) Message {
		return Message{Header: Header{From: "c", To: "a", Replica: labReplica + 'c', Incarnation: 1, Term: term, Request: 9},
			Body: InstallSnapshot{Meta: meta, Repair: true}}
	}
	require.True(t, a.core.WantsSnapshot(offer(2)))
	l.stepMessage(offer(2))
	require.Equal(t, []Index{9}, a.restored)
	require.Equal(t, EntryID{2, 9}, a.core.log.lastID())
	require.Empty(t, a.core.Status(l.now).Damaged)
	require.Equal(t, InstallSnapshotReply{}, l.one("a", "c", "InstallSnapshotReply").Body, "it was asked for, so nothing is acknowledged by it")
	require.False(t, a.core.WantsSnapshot(offer(2)))
}
