package raft

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// pacedLab is a leader a with b at its side, and c, which needs entries from the disk again after a while without a connection. c may be
// sent a piece of ten of them every 1/128 s.
func pacedLab(t *testing.T) (l *lab, a *labServer) {
	const entry = EntryHeaderSize + 8
	l = newCluster(t, "a b c", func(c *CoreConfig) { c.MaxTailBytes = 1; c.CatchUpBytesPerSecond = 128 * 10 * entry })
	a = l.elect("a")
	l.isolate("c", true)
	for range 1000 {
		a.propose("12345678")
	}
	l.settle()
	l.isolate("c", false)
	return l, a
}

// passing lets the leader's deadlines come for so long, and returns what c was sent.
func (l *lab) passing(a *labServer, d time.Duration) (entries int) {
	for end := l.now + d; ; {
		next := min(a.core.Deadline(), end)
		l.pass(next - l.now)
		l.tick("a")
		before := l.server("c").core.log.last
		l.settle()
		entries += int(l.server("c").core.log.last - before)
		if l.now == end {
			return entries
		}
	}
}

// begin makes the leader notice that c is back.
func (l *lab) begin(a *labServer) {
	for range 100 {
		if l.passing(a, 10*time.Millisecond); a.core.peer("c").pace.on {
			return
		}
	}
	l.t.Fatal("c was sent nothing from the disk")
}

// Others' commands share disks and processors with what a follower catches up with, so that is sent at a bounded rate, in small pieces, by
// the clock alone.
func TestCatchUpIsPaced(t *testing.T) {
	l, a := pacedLab(t)
	l.begin(a)
	n := l.passing(a, 100*time.Millisecond)
	require.InDelta(t, 128, n, 15)
	for _, in := range a.core.peer("c").inflight {
		require.LessOrEqual(t, in.bytes, 10*(EntryHeaderSize+8))
	}
	l.passing(a, time.Second)
	l.requireEqualLogs()
	require.False(t, a.core.peer("c").pace.on)
	require.NoError(t, a.core.Check())
}

// Twice what the log grows by meanwhile comes on top: a follower catches up however fast the log grows.
func TestCatchUpIsFasterThanTheLogGrows(t *testing.T) {
	l, a := pacedLab(t)
	l.begin(a)
	behind := func() int { return int(a.core.log.last - l.server("c").core.log.last) }
	before := behind()
	for range 10 {
		for range 100 {
			a.propose("12345678")
		}
		l.settle()
		l.passing(a, 10*time.Millisecond)
	}
	require.Less(t, behind(), before)
	for range 1000 {
		a.propose("12345678")
		l.settle()
	}
	l.passing(a, time.Second)
	l.requireEqualLogs()
}

// Where nothing can be committed without it, a follower is sent all at once.
func TestCatchUpIsNotPacedWhereAQuorumWaitsForIt(t *testing.T) {
	l, a := pacedLab(t)
	l.begin(a)
	require.Greater(t, a.core.log.last-l.server("c").core.log.last, Index(500))
	l.isolate("b", true)
	l.passing(a, a.core.cfg.ElectionTimeout)
	a.core.peer("c").pace = pacing{on: true, due: l.now + time.Hour} // as if there were much more
	a.propose("wanted")
	l.passing(a, 10*time.Millisecond)
	require.Equal(t, a.core.log.last, a.core.commitIndex)
	require.Equal(t, a.core.log.last, l.server("c").core.log.last)
}

// What was sent while it was not paced is not held against a follower afterwards.
func TestCatchUpIsPacedAgainWithoutDebts(t *testing.T) {
	l, a := pacedLab(t)
	l.begin(a)
	l.isolate("b", true)
	l.passing(a, a.core.cfg.ElectionTimeout-50*time.Millisecond)
	for range 5000 {
		a.propose("12345678")
	}
	p := a.core.peer("c")
	p.pace = pacing{on: true, due: l.now, credited: a.core.appendedBytes}
	a.core.peer("b").lastHeard = 0
	a.core.paceSent(p, 1<<20)
	require.Equal(t, l.now, p.pace.due)
}

// Nor is the follower that is to lead: the cluster waits for it.
func TestCatchUpOfTheNextLeaderIsNotPaced(t *testing.T) {
	l, a := pacedLab(t)
	l.begin(a)
	require.Less(t, l.passing(a, 10*time.Millisecond), 100)
	require.NoError(t, a.transfer("c"))
	l.passing(a, 10*time.Millisecond)
	require.Equal(t, Leader, l.server("c").core.role)
}
