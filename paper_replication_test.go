package raft

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// follower gives a lone server a log of these terms, behind the bootstrap entry 1@1.
func follower(t testing.TB, hard HardState, terms ...Term) (*lab, *labServer) {
	l := newLab(t, "a b c")
	s := l.provision("a", hard, terms...)
	l.start("a")
	return l, s
}

func (l *lab) reply(from, to string) AppendEntriesReply {
	l.t.Helper()
	return l.one(from, to, "AppendEntriesReply").Body.(AppendEntriesReply)
}

// §5.3: "The leader appends the command to its log as a new entry, then issues AppendEntries RPCs in parallel to each of the other
// servers"; at once, beside its own disk write (dissertation §10.2.1).
func TestLeaderSendsWhileItsOwnDiskWrites(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.office(a, "b")
	for _, id := range []string{"b", "c"} {
		l.step(id, "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
	}
	l.lose()
	a.slow = true
	a.propose("x")
	require.Len(t, a.writes, 1)
	for _, id := range []string{"b", "c"} {
		m := l.one("a", id, "AppendEntries").Body.(AppendEntries)
		require.Equal(t, EntryID{2, 2}, EntryID{m.PrevLogTerm, m.PrevLogIndex})
		require.Equal(t, []string{"x"}, []string{string(m.Entries[0].Data)})
	}
	// Both followers are a majority without our own disk; but we apply nothing that is not durable here.
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 2, MatchIndex: 3})
	l.step("c", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 2, MatchIndex: 3})
	require.Equal(t, Index(3), a.core.commitIndex)
	require.Empty(t, a.commands())
	a.persist(1)
	require.Equal(t, []string{"x"}, a.commands())
}

// §5.3: an entry is committed "once the leader that created the entry has replicated it on a majority of the servers"; the leader
// counts itself by what is durable on its own disk (SAFETY inv 13).
func TestLeaderCountsItselfWhenDurable(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.office(a, "b")
	a.slow = true
	a.propose("x")
	l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 3})
	require.Equal(t, Index(2), a.core.commitIndex)
	a.persist(1)
	require.Equal(t, Index(3), a.core.commitIndex)
}

// §5.3: a majority of all voters, of every size; and learners are not counted (SAFETY inv 18).
func TestCommitNeedsAMajority(t *testing.T) {
	for _, tt := range []struct {
		members, acks string
		commits       bool
	}{
		{"a b", "", false}, {"a b", "b", true}, {"a b c", "", false}, {"a b c", "c", true}, {"a b c d", "b", false}, {"a b c d", "bc", true},
		{"a b c d e", "bb", false}, {"a b c d e", "bc", true}, {"a b c | d e", "de", false}, {"a b c", "x", false},
	} {
		t.Run(tt.members+" by "+tt.acks, func(t *testing.T) {
			l, a := newServer(t, tt.members, func(c *CoreConfig) { c.DisablePreVote = true })
			l.timeout("a")
			for _, s := range l.conf.Servers[1:] {
				l.step(string(s.ID), "a", 2, a.core.nextRequest, RequestVoteReply{Granted: true})
			}
			require.Equal(t, Leader, a.core.role)
			for _, from := range tt.acks {
				l.step(string(from), "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
			}
			require.Equal(t, tt.commits, a.core.commitIndex == 2)
		})
	}
}

// §5.3: "the leader includes the highest index it knows to be committed in future AppendEntries RPCs (including heartbeats)"; we send
// one at once, so that followers need not wait for the next heartbeat.
func TestFollowersLearnOfTheCommit(t *testing.T) {
	l := newCluster(t, "a b c")
	a := l.elect("a")
	a.propose("x")
	l.settle()
	for _, id := range l.ids() {
		require.Equal(t, Index(3), l.server(id).core.commitIndex)
	}
	// If that notice is lost, the next heartbeat tells.
	l.isolate("b", true)
	a.propose("y")
	l.settle()
	l.isolate("b", false)
	l.heartbeats("a", 6)
	require.Equal(t, []string{"x", "y"}, l.server("b").commands())
}

// §5.4.2: "Raft never commits log entries from previous terms by counting replicas. Only log entries from the leader's current term
// are committed by counting replicas" (SAFETY inv 10). Figure 8 is testdata/figure-8.txt.
func TestLeaderDoesNotCommitEarlierTermByCounting(t *testing.T) {
	l, a := follower(t, HardState{CurrentTerm: 3}, 1, 2, 3)
	l.office(a, "b")
	for _, id := range []string{"b", "c"} {
		l.step(id, "a", 4, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 2, MatchIndex: 3})
	}
	require.Zero(t, a.core.commitIndex, "entry 3@3 is on all three servers, and still not committed")
	l.step("b", "a", 4, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 3, MatchIndex: 4})
	require.Equal(t, Index(4), a.core.commitIndex, "once an entry from the current term is committed, all prior ones are")
}

// Figure 2, AppendEntries rule 2: "Reply false if log doesn't contain an entry at prevLogIndex whose term matches prevLogTerm"; and
// §5.3's hint: the last index in our log whose term is at most prevLogTerm.
func TestFollowerRejectsAMismatchWithAHint(t *testing.T) {
	for _, tt := range []struct {
		terms []Term
		prev  EntryID
		hint  EntryID
	}{
		{[]Term{1, 1, 1}, EntryID{1, 5}, EntryID{1, 3}},             // too short
		{[]Term{1, 2, 2, 2, 2}, EntryID{3, 5}, EntryID{2, 5}},       // other term, all below it
		{[]Term{1, 2, 2, 5, 5, 5}, EntryID{4, 6}, EntryID{2, 3}},    // skips the whole of term 5
		{[]Term{1, 4, 4, 4}, EntryID{3, 4}, EntryID{1, 1}},          // back to the first
		{[]Term{1, 2, 3, 4, 5, 6, 7}, EntryID{6, 7}, EntryID{6, 6}}, // one back
	} {
		t.Run(fmt.Sprint(tt.terms, tt.prev), func(t *testing.T) {
			l, a := follower(t, HardState{CurrentTerm: 8}, tt.terms...)
			l.step("b", "a", 8, 1, AppendEntries{PrevLogIndex: tt.prev.Index, PrevLogTerm: tt.prev.Term, LeaderCommit: tt.prev.Index,
				Entries: l.entries(tt.prev.Index+1, 8)})
			require.Equal(t, AppendEntriesReply{PrevLogIndex: tt.prev.Index, HintIndex: tt.hint.Index, HintTerm: tt.hint.Term}, l.reply("a", "b"))
			require.Equal(t, tt.terms, a.terms(), "nothing was changed")
			require.Zero(t, a.core.commitIndex)
		})
	}
}

// Figure 2, rules 3 and 4: "If an existing entry conflicts with a new one (same index but different terms), delete the existing entry
// and all that follow it"; "append any new entries not already in the log".
func TestFollowerMergesEntries(t *testing.T) {
	for _, tt := range []struct {
		name    string
		have    []Term
		prev    EntryID
		entries []Term
		want    []Term
	}{
		{"appends", []Term{1}, EntryID{1, 1}, []Term{2, 2}, []Term{1, 2, 2}},
		{"replaces a conflicting suffix", []Term{1, 2, 2, 2}, EntryID{1, 1}, []Term{3}, []Term{1, 3}},
		{"replaces from the middle", []Term{1, 2, 2, 2}, EntryID{1, 1}, []Term{2, 3}, []Term{1, 2, 3}},
		{"keeps what it holds already", []Term{1, 2, 2}, EntryID{1, 1}, []Term{2}, []Term{1, 2, 2}},
		{"a delayed request cuts nothing off", []Term{1, 2, 2, 3}, EntryID{1, 1}, []Term{2, 2}, []Term{1, 2, 2, 3}},
		{"appends behind what it holds", []Term{1, 2}, EntryID{1, 1}, []Term{2, 3}, []Term{1, 2, 3}},
		{"a heartbeat cuts nothing off", []Term{1, 2, 2}, EntryID{1, 1}, nil, []Term{1, 2, 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, a := follower(t, HardState{CurrentTerm: 3}, tt.have...)
			l.step("b", "a", 3, 1, AppendEntries{PrevLogIndex: tt.prev.Index, PrevLogTerm: tt.prev.Term, Entries: l.entries(tt.prev.Index+1, tt.entries...)})
			require.Equal(t, AppendEntriesReply{Success: true, PrevLogIndex: tt.prev.Index, MatchIndex: tt.prev.Index + Index(len(tt.entries))}, l.reply("a", "b"))
			require.Equal(t, tt.want, a.terms())
			var onDisk []Term
			for _, e := range a.disk.entries {
				onDisk = append(onDisk, e.Term)
			}
			require.Equal(t, tt.want, onDisk)
		})
	}
}

// What is compacted is committed, and so it is in every later leader's log (§5.4.3): it matches without a comparison.
func TestCompactedPreviousEntryMatches(t *testing.T) {
	l := newLab(t, "a b c", func(c *CoreConfig) { c.TrailingEntries = 1 })
	l.provision("a", HardState{CurrentTerm: 1}, 1, 1, 1, 1, 1)
	a := l.start("a")
	l.step("b", "a", 1, 1, AppendEntries{PrevLogIndex: 5, PrevLogTerm: 1, LeaderCommit: 5})
	a.takeSnapshot(5)
	require.Equal(t, EntryID{1, 4}, a.core.log.base)
	l.lose()
	l.step("b", "a", 1, 2, AppendEntries{PrevLogIndex: 2, PrevLogTerm: 1, LeaderCommit: 5, Entries: l.entries(3, 1, 1, 1, 1)})
	require.Equal(t, AppendEntriesReply{Success: true, PrevLogIndex: 2, MatchIndex: 6}, l.reply("a", "b"))
	require.Equal(t, Index(6), a.core.log.last)
}

// Terms never fall along a log. Where the place before the entries is compacted, only the entries themselves can show that they do.
func TestEntriesBehindACompactedPlaceMustFollow(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.offer("b", "a", 3, l.meta(5, 3))
	l.lose()
	l.step("b", "a", 3, 2, AppendEntries{PrevLogIndex: 2, PrevLogTerm: 1, Entries: l.entries(3, 1, 1, 1, 1)})
	require.Equal(t, []Refusal{{"b", CommittedConflict}}, a.refused)
	require.Equal(t, Index(5), a.core.log.last)
}

// Figure 2, rule 5: "If leaderCommit > commitIndex, set commitIndex = min(leaderCommit, index of last new entry)". Not the end of our
// log: behind the last new entry may lie a stale suffix.
func TestFollowerCommitsUpToTheLastNewEntryOnly(t *testing.T) {
	for _, tt := range []struct {
		commit  Index
		entries []Term
		want    Index
	}{{0, nil, 0}, {2, nil, 2}, {4, nil, 2}, {4, []Term{2}, 3}, {3, []Term{2, 3}, 3}, {9, []Term{2, 3, 3}, 5}} {
		l, a := follower(t, HardState{CurrentTerm: 3}, 1, 2, 2, 2)
		l.step("b", "a", 3, 1, AppendEntries{PrevLogIndex: 2, PrevLogTerm: 2, LeaderCommit: tt.commit, Entries: l.entries(3, tt.entries...)})
		require.Equal(t, tt.want, a.core.commitIndex)
		l.step("b", "a", 3, 2, AppendEntries{PrevLogIndex: 2, PrevLogTerm: 2})
		require.Equal(t, tt.want, a.core.commitIndex, "SAFETY inv 8: it never goes back")
	}
}

// §5.2: two leaders in one term are impossible, and one peer alone can claim it: refused and reported, not trusted (SAFETY inv 1).
func TestSecondLeaderOfATermIsRefused(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.leaderOf("a", "b", 2)
	l.step("c", "a", 2, 1, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, LeaderCommit: 1, Entries: l.entries(2, 2)})
	meta := SnapshotMeta{Index: 5, Term: 2, Configuration: labConfiguration("a b c")}
	l.step("c", "a", 2, 1, InstallSnapshot{Meta: meta})
	require.Equal(t, []Refusal{{"c", SecondLeader}, {"c", SecondLeader}}, a.refused)
	require.Equal(t, NodeID("b"), a.core.leader)
	require.Equal(t, Index(1), a.core.log.last)

	l, a = newServer(t, "a b c")
	l.office(a, "b")
	l.step("c", "a", 2, 1, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: l.entries(2, 2)})
	require.Equal(t, []Refusal{{"c", SecondLeader}}, a.refused)
	require.Equal(t, Leader, a.core.role, "SAFETY inv 4: a leader never overwrites its own log")
}

// SAFETY §2: "an authenticated peer that sends impossible values: rejected and counted, no panic".
func TestImpossibleInputIsRefused(t *testing.T) {
	t.Run("entries that contradict what is committed", func(t *testing.T) {
		l, a := follower(t, HardState{CurrentTerm: 3}, 1, 2, 2)
		l.step("b", "a", 3, 1, AppendEntries{PrevLogIndex: 3, PrevLogTerm: 2, LeaderCommit: 3})
		l.step("b", "a", 3, 2, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: l.entries(2, 3)})
		l.step("b", "a", 3, 3, AppendEntries{PrevLogIndex: 2, PrevLogTerm: 1, Entries: l.entries(3, 3)})
		l.step("b", "a", 3, 4, AppendEntries{PrevLogIndex: 2, PrevLogTerm: 1}) // no entries, and yet another history
		l.step("b", "a", 3, 5, AppendEntries{PrevLogIndex: 3, PrevLogTerm: 1, Entries: l.entries(4, 3)})
		l.step("b", "a", 3, 6, AppendEntries{PrevLogIndex: 2, PrevLogTerm: 2, Entries: l.entries(3, 3)}) // the last that is committed
		require.Len(t, a.refused, 5)
		for _, r := range a.refused {
			require.Equal(t, Refusal{"b", CommittedConflict}, r)
		}
		require.Equal(t, uint64(1), l.one("a", "b", "AppendEntriesReply").Request, "what is refused is not acknowledged")
		require.Equal(t, []Term{1, 2, 2}, a.terms())
	})
	t.Run("acknowledgement of what was never sent", func(t *testing.T) {
		l, a := newServer(t, "a b c")
		l.office(a, "b")
		request := a.core.nextRequest
		l.step("b", "a", 2, request, AppendEntriesReply{Success: true, MatchIndex: 3})
		l.step("b", "a", 2, request+1, AppendEntriesReply{Success: true, MatchIndex: 2})
		l.step("b", "a", 2, request, AppendEntriesReply{Success: true, MatchIndex: 2, Round: 9})
		l.step("b", "a", 2, request, InstallSnapshotReply{MatchIndex: 3})
		require.Equal(t, []Refusal{{"b", ImpossibleReply}, {"b", ImpossibleReply}, {"b", ImpossibleReply}, {"b", ImpossibleReply}}, a.refused)
		require.Zero(t, a.core.commitIndex)
	})
	t.Run("a term that would leave none to elect anybody in", func(t *testing.T) {
		l, a := newServer(t, "a b c")
		l.step("b", "a", 1+maxTermJump+1, 1, AppendEntries{})
		require.Equal(t, []Refusal{{"b", TermTooFar}}, a.refused)
		require.Equal(t, Term(1), a.core.currentTerm)
		l.step("b", "a", 1+maxTermJump, 1, AppendEntries{})
		require.Equal(t, Term(1+maxTermJump), a.core.currentTerm)
	})
	t.Run("mail for another server", func(t *testing.T) { // SAFETY inv 21
		_, a := newServer(t, "a b c")
		a.do(func(c *Core, now time.Duration) {
			c.Step(now, Message{Header: Header{From: "b", To: "c", Term: 9}, Body: AppendEntries{}})
		})
		require.Equal(t, []Refusal{{"b", WrongRecipient}}, a.refused)
		require.Equal(t, Term(1), a.core.currentTerm)
	})
	t.Run("a configuration that does not decode", func(t *testing.T) {
		l, a := newServer(t, "a b c")
		bad := newEntry(EntryConfiguration, []byte{9})
		bad.stamp(EntryID{2, 2})
		l.step("b", "a", 2, 1, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: []Entry{bad}})
		empty := Configuration{ClusterID: "lab"}
		l.step("b", "a", 2, 2, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: []Entry{labConfigurationEntry(2, 2, empty)}})
		require.Equal(t, []Refusal{{"b", UndecodableConfiguration}, {"b", UndecodableConfiguration}}, a.refused)
		require.Empty(t, l.wire, "what is refused is not acknowledged")
		require.Equal(t, Index(1), a.core.log.last)
	})
	t.Run("a message that is not for the core", func(t *testing.T) {
		l, a := newServer(t, "a b c")
		l.step("b", "a", 1, 1, ForwardRead{})
		require.Equal(t, []Refusal{{"b", UnexpectedMessage}}, a.refused)
	})
}

// SAFETY §2, hostile input: what is malformed, whoever sends it, is refused before the core sees it.
func TestMalformedMessagesAreRefused(t *testing.T) {
	l := newLab(t, "a b c")
	ok := Header{From: "b", To: "a", Term: 5}
	require.NoError(t, Message{ok, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: l.entries(2, 1, 4, 5)}}.Validate())
	require.NoError(t, Message{ok, AppendEntries{Entries: l.entries(1, 1)}}.Validate())
	require.NoError(t, Message{ok, InstallSnapshot{Meta: l.meta(9, 5)}}.Validate())
	gap := append(l.entries(2, 1), l.entries(4, 1)...)
	for name, m := range map[string]Message{
		"no sender":                         {Header{To: "a", Term: 5}, AppendEntries{}},
		"no receiver":                       {Header{From: "b", Term: 5}, AppendEntries{}},
		"to itself":                         {Header{From: "a", To: "a", Term: 5}, AppendEntries{}},
		"no body":                           {ok, nil},
		"previous index beyond any log":     {ok, AppendEntries{PrevLogIndex: maxIndex + 1, PrevLogTerm: 1}},
		"index 0 with a term":               {ok, AppendEntries{PrevLogTerm: 1}},
		"previous entry of a later term":    {ok, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 6}},
		"entries that do not follow":        {ok, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: l.entries(3, 1)}},
		"entries with a gap":                {ok, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: gap}},
		"terms that fall":                   {ok, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 2, Entries: l.entries(2, 1)}},
		"terms that fall among the entries": {ok, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: l.entries(2, 3, 2)}},
		"an entry of a later term":          {ok, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: l.entries(2, 6)}},
		"an entry without a term":           {ok, AppendEntries{Entries: l.entries(1, 0)}},
		"a snapshot of a later term":        {ok, InstallSnapshot{Meta: l.meta(9, 6)}},
		"a snapshot of nothing":             {ok, InstallSnapshot{Meta: l.meta(0, 0)}},
	} {
		require.Error(t, m.Validate(), name)
	}
}

// SAFETY inv 24: no byte out of a damaged range is served, sent or applied. Every byte of an entry is covered by a checksum.
func TestDamagedEntryIsRecognised(t *testing.T) {
	e := labCommand(3, 7, "set x=1")
	decoded, n, err := DecodeEntry(e.Frame())
	require.NoError(t, err)
	require.Equal(t, e.Size(), n)
	require.Equal(t, EntryID{3, 7}, decoded.ID(), "the frame names its place in the log")
	require.Equal(t, "set x=1", string(decoded.Data))
	barrier := NewBarrier()
	decoded, _, err = DecodeEntry(barrier.Frame())
	require.NoError(t, err)
	require.Equal(t, EntryBarrier, decoded.Type, "and says what it is for")

	var damage *EntryDamage
	for i := range e.Frame() {
		broken := e.Clone()
		broken.frame[i] ^= 4
		_, _, err := DecodeEntry(broken.frame)
		require.ErrorAs(t, err, &damage, "byte %d", i)
		if i < EntryHeaderSize {
			require.Zero(t, damage.ID, "whose header is damaged has no name")
		} else {
			require.Equal(t, EntryID{3, 7}, damage.ID)
		}
	}
	for n := range e.Size() {
		_, _, err := DecodeEntry(e.Frame()[:n])
		require.ErrorIs(t, err, ErrShortEntry, "cut off behind %d bytes", n)
	}

	// The checksum is right, and what it covers is impossible here.
	for name, change := range map[string]func(frame []byte){
		"extensions longer than the entry": func(frame []byte) { frame[4]++ },
		"flags of a later release":         func(frame []byte) { frame[7] = 1 },
		"longer than any entry":            func(frame []byte) { frame[3] = 0xff },
	} {
		forged := newEntry(EntryCommand, nil)
		change(forged.frame)
		forged.stamp(EntryID{3, 7})
		_, _, err := DecodeEntry(forged.frame)
		require.ErrorAs(t, err, &damage, name)
		require.Equal(t, EntryID{3, 7}, damage.ID, name)
	}
}
