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
	for range 6 {
		l.pass(100 * time.Millisecond)
		l.tick("a")
		l.settle()
	}
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
	for range 7 {
		l.pass(100 * time.Millisecond)
		l.tick("a")
		l.settle()
	}
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

// A Load that comes back after the office has changed hands, or was asked for something else, is dropped.
func TestLateLoadsAreDropped(t *testing.T) {
	l := newCluster(t, "a b c", func(c *CoreConfig) { c.MaxTailBytes = 1 })
	a := l.elect("a")
	l.isolate("c", true)
	a.propose("x")
	l.settle()
	a.holdLoads = true
	l.isolate("c", false)
	for range 7 {
		l.pass(100 * time.Millisecond)
		l.tick("a")
		l.settle()
	}
	require.Len(t, a.loads, 1)
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
	l := newCluster(t, "a b c", func(c *CoreConfig) { c.MaxTailBytes = 1 })
	a := l.elect("a")
	l.isolate("c", true)
	a.propose("x")
	l.settle()
	a.holdLoads = true
	l.isolate("c", false)
	for range 7 {
		l.pass(100 * time.Millisecond)
		l.tick("a")
		l.settle()
	}
	require.Len(t, a.loads, 1)
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
		for range 8 {
			l.pass(100 * time.Millisecond)
			l.tick(leader)
			l.settle()
		}
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
