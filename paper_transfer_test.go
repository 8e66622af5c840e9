package raft

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Dissertation §3.10: "the prior leader stops accepting new client requests", "fully updates the target server's log", "sends a
// TimeoutNow request to the target server"; the target campaigns at once, past pre-vote and stickiness.
func TestTransferMakesTheTargetLeader(t *testing.T) {
	l := newCluster(t, "a b c")
	a := l.elect("a")
	a.propose("x")
	require.NoError(t, a.transfer("c"))
	require.Empty(t, l.take("a", "c", "TimeoutNow"), "not before the target's log is complete")
	_, _, err := a.core.Propose(l.now, []Entry{NewCommand([]byte("y"))})
	require.ErrorIs(t, err, ErrTransferring)
	require.ErrorIs(t, a.transfer("b"), ErrBusy)
	_, err = a.change(Change{Demote: []NodeID{"b"}})
	require.ErrorIs(t, err, ErrChangePending)
	l.settle()
	c := l.server("c")
	require.Equal(t, Leader, c.core.role)
	require.Equal(t, Term(3), c.core.currentTerm)
	require.Equal(t, NodeID("c"), a.core.leader)
	ev, n := lastEvent[TransferEnded](a)
	require.Equal(t, 1, n)
	require.NoError(t, ev.Err)
	require.Equal(t, []string{"x"}, c.commands())
}

// Dissertation §3.10: "If leadership transfer does not complete after about an election timeout, the prior leader aborts the
// transfer and resumes accepting client requests"; a lost TimeoutNow is sent again meanwhile.
func TestTransferThatFailsIsAborted(t *testing.T) {
	l := newCluster(t, "a b c")
	a := l.elect("a")
	require.NoError(t, a.transfer("c"))
	require.Len(t, l.take("a", "c", "TimeoutNow"), 1)
	l.tick("a")
	require.Empty(t, l.take("a", "c", "TimeoutNow"), "once for each heartbeat")
	l.isolate("c", true)
	l.heartbeats("a", 9)
	_, n := lastEvent[TransferEnded](a)
	require.Zero(t, n)
	require.Equal(t, "leadership is being transferred", a.core.Status(l.now).WhyNot)
	l.isolate("c", false)
	l.pass(99 * time.Millisecond)
	l.server("a").core.heartbeatDeadline = l.now
	l.tick("a")
	require.Len(t, l.take("a", "c", "TimeoutNow"), 1, "sent again with the heartbeat")
	l.lose()
	l.pass(time.Millisecond)
	l.tick("a")
	ev, n := lastEvent[TransferEnded](a)
	require.Equal(t, 1, n)
	require.ErrorIs(t, ev.Err, ErrTransferFailed)
	a.propose("x")
}

// Dissertation §3.10: "the prior leader stops accepting new client requests", and they wait. They need not wait while the target does
// not answer, or is brought up to date: that may take as long as the whole transfer, and it may fail.
func TestTransferHoldsProposalsOnceTheTargetIsNearlyUpToDate(t *testing.T) {
	l := newCluster(t, "a b c")
	a := l.elect("a")
	l.isolate("c", true)
	a.do(func(c *Core, now time.Duration) { c.PeerLost(now, "c", 1) })
	a.propose("x")
	l.settle()
	require.NoError(t, a.transfer("c"))
	l.pass(600 * time.Millisecond)
	a.propose("y")
	require.NotContains(t, a.core.Status(l.now).WhyNot, "transferred")
	l.isolate("c", false)
	l.pass(100 * time.Millisecond)
	l.tick("a")
	a.propose("z")
	l.deliver("a", "c")
	l.deliver("c", "a") // c has told where its log ends, and what it lacks is on its way
	_, _, err := a.core.Propose(l.now, []Entry{NewCommand([]byte("too late"))})
	require.ErrorIs(t, err, ErrTransferring)
	l.settle()
	c := l.server("c")
	require.Equal(t, Leader, c.core.role)
	require.Equal(t, []string{"x", "y", "z"}, c.commands())
}

// Whoever was told to campaign may do so although its connection broke: what is appended meanwhile would not be in its log.
func TestTransferHoldsProposalsOfATargetThatWasTold(t *testing.T) {
	l := newCluster(t, "a b c")
	a := l.elect("a")
	require.NoError(t, a.transfer("c"))
	a.do(func(c *Core, now time.Duration) { c.PeerLost(now, "c", 1) })
	_, _, err := a.core.Propose(l.now, []Entry{NewCommand([]byte("x"))})
	require.ErrorIs(t, err, ErrTransferring)
	l.settle()
	require.Equal(t, Leader, l.server("c").core.role)
}

// A target that answers, but is slower than proposals come, gets half of the time to itself.
func TestTransferHoldsProposalsThatOutrunTheTarget(t *testing.T) {
	l := newCluster(t, "a b c", func(cfg *CoreConfig) { cfg.MaxInflightMessages = 1 })
	a := l.elect("a")
	a.propose("1", "2")
	require.NoError(t, a.transfer("c"))
	l.pass(499 * time.Millisecond)
	a.propose("3")
	l.pass(time.Millisecond)
	_, _, err := a.core.Propose(l.now, []Entry{NewCommand([]byte("4"))})
	require.ErrorIs(t, err, ErrTransferring)
	l.settle()
	require.Equal(t, []string{"1", "2", "3"}, l.server("c").commands())
	require.Equal(t, Leader, l.server("c").core.role)
}

// A transfer is refused where it could not end well, and to ourselves it is done.
func TestTransferIsRefused(t *testing.T) {
	l := newCluster(t, "a b c | d")
	a := l.elect("a")
	var membership *MembershipError
	require.ErrorAs(t, a.transfer("d"), &membership)
	require.ErrorAs(t, a.transfer("x"), &membership)
	require.ErrorIs(t, l.server("b").transfer("c"), ErrNotLeader)
	require.NoError(t, a.transfer("a"))
	ev, n := lastEvent[TransferEnded](a)
	require.Equal(t, 1, n)
	require.NoError(t, ev.Err)
	a.propose("x")
}

// An unnamed target is the voter with the longest log among those that were heard lately; then the priority decides.
func TestTransferPicksTheMostUpToDateVoter(t *testing.T) {
	l := newCluster(t, "a b c d")
	a := l.elect("a")
	l.isolate("b", true)
	a.propose("x")
	l.settle()
	require.NoError(t, a.transfer(""))
	l.settle()
	require.Equal(t, Leader, l.server("c").core.role)

	l, alone := newServer(t, "a b c")
	l.office(alone, "b")
	l.pass(1001 * time.Millisecond)
	var membership *MembershipError
	require.ErrorAs(t, alone.transfer(""), &membership)
}

// SAFETY §3: "step-down during transfer unblocks everything". Nobody took over, so the transfer failed.
func TestStepDownDuringTransferEndsIt(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.office(a, "b")
	require.NoError(t, a.transfer("b"))
	a.core.transferDeadline = time.Hour
	l.pass(time.Second)
	l.tick("a")
	require.Equal(t, Follower, a.core.role)
	ev, n := lastEvent[TransferEnded](a)
	require.Equal(t, 1, n)
	require.ErrorIs(t, ev.Err, ErrTransferFailed)
}

// SAFETY §2 and §3: "TimeoutNow from a non-leader ignored"; "at a leader, candidate or learner is harmless".
func TestTimeoutNowCountsFromTheLeaderOnly(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.leaderOf("a", "b", 2)
	l.step("c", "a", 2, 1, TimeoutNow{})
	require.False(t, l.one("a", "c", "TimeoutNowReply").Body.(TimeoutNowReply).Accepted)
	l.step("b", "a", 1, 1, TimeoutNow{})
	require.Equal(t, Follower, a.core.role)
	l.step("c", "a", 3, 1, TimeoutNow{})
	require.Equal(t, Follower, a.core.role, "nobody is known to lead term 3")
	l.lose()
	l.leaderOf("a", "b", 3)
	l.step("b", "a", 3, 1, TimeoutNow{})
	require.Equal(t, Candidate, a.core.role)
	require.Equal(t, Term(4), a.core.currentTerm)
	require.True(t, l.one("a", "b", "TimeoutNowReply").Body.(TimeoutNowReply).Accepted)
	for _, m := range l.take("a", "*", "RequestVote") {
		require.True(t, m.Body.(RequestVote).Transfer)
	}
	l.step("b", "a", 4, 1, TimeoutNow{})
	require.Equal(t, Term(4), a.core.currentTerm)
	l.step("c", "a", 4, 1, RequestVoteReply{Granted: true})
	require.Equal(t, Leader, a.core.role)
	l.step("b", "a", 4, 1, TimeoutNow{})
	require.Equal(t, Leader, a.core.role)
	require.Equal(t, Term(4), a.core.currentTerm)
}

// The answer to TimeoutNow tells of the new term, so it waits for the disk.
func TestTimeoutNowReplyWaitsForTheVote(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.leaderOf("a", "b", 2)
	a.slow = true
	l.step("b", "a", 2, 1, TimeoutNow{})
	require.Empty(t, l.wire)
	a.persist(1)
	require.Len(t, l.take("a", "*", "RequestVote"), 2)
	require.Len(t, l.take("a", "b", "TimeoutNowReply"), 1)
}

// A learner is no successor, however long its log.
func TestHandOverNeverPicksALearner(t *testing.T) {
	l := newCluster(t, "a b c | d")
	a := l.elect("a")
	l.isolate("b", true)
	l.isolate("c", true)
	a.propose("x")
	l.settle()
	require.Greater(t, a.core.peer("d").matchIndex, a.core.peer("b").matchIndex)
	a.do(func(c *Core, now time.Duration) { c.Abstain(now, true) })
	require.Empty(t, l.take("a", "d", "TimeoutNow"))
	require.Equal(t, Follower, a.core.role)
}

// Who is alone has nobody to hand over to, least of all itself.
func TestHandOverNeedsAnotherVoter(t *testing.T) {
	l, a := newServer(t, "a | b")
	l.timeout("a")
	require.Equal(t, Leader, a.core.role)
	var membership *MembershipError
	require.ErrorAs(t, a.transfer(""), &membership)
	a.do(func(c *Core, now time.Duration) { c.Abstain(now, true) })
	require.Equal(t, Follower, a.core.role)
	require.Empty(t, l.take("a", "*", "TimeoutNow"))
}

// A transfer to a server that leaves the cluster meanwhile has failed.
func TestTransferToAServerThatLeavesFails(t *testing.T) {
	l := newCluster(t, "a b c")
	a := l.elect("a")
	l.isolate("c", true)
	_, err := a.change(Change{Remove: []NodeID{"c"}})
	require.NoError(t, err)
	require.NoError(t, a.transfer("c"), "it votes in the old half still")
	l.settle()
	require.False(t, a.core.configuration().Joint())
	ev, n := lastEvent[TransferEnded](a)
	require.Equal(t, 1, n)
	require.ErrorIs(t, ev.Err, ErrTransferFailed)
	require.Equal(t, Leader, a.core.role)
}

// A leader that cannot go on sends TimeoutNow right behind its last entries. On another lane it could overtake them, and the successor
// would lose to whoever got them: nobody would lead until the next timeout.
func TestTimeoutNowDoesNotOvertakeEntries(t *testing.T) {
	l := newCluster(t, "a b c")
	a := l.elect("a")
	l.settle()
	a.propose("x")
	a.do(func(c *Core, now time.Duration) { c.StorageState(now, StorageFailed) })
	entries, timeoutNow := l.take("a", "*", "AppendEntries"), l.one("a", "*", "TimeoutNow")
	require.Len(t, entries, 2)
	require.Equal(t, LaneLog, entries[0].Lane())
	require.Equal(t, LaneLog, timeoutNow.Lane())
}
