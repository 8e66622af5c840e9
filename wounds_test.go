package raft

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The tests in this file, in wounds_node_test.go, in the storage packages, and the scripts testdata/wound-*.txt are ways in which
// other systems were hurt (SAFETY §3). docs/old-wounds.md lists them with the guards that each of them watches.

// Election. A server whose disk no longer took writes kept its term in memory, its heartbeats going and its log up to date with
// everybody's, so it won each election, could not do its work, lost its office and won again. Here a server whose storage has failed,
// or hangs, hands over and does not campaign, not even when it is asked to.
func TestWoundBrokenDiskKeepsWinning(t *testing.T) {
	l := newCluster(t, "a b c")
	a := l.elect("a")
	a.do(func(c *Core, now time.Duration) { c.StorageState(now, StorageFailed) })
	l.settle()
	leader := string(a.core.leader)
	require.NotContains(t, []string{"", "a"}, leader, "it handed over")
	l.lose()
	for range 3 {
		l.pass(3 * time.Second)
		l.timeout("a")
		require.Equal(t, Follower, a.core.role)
	}
	require.Empty(t, l.wire, "it asks nobody")
	l.step(leader, "a", a.core.currentTerm, 100, TimeoutNow{})
	require.Equal(t, Follower, a.core.role)
}

// Election. The same with a disk that neither works nor fails: the write of a follower is under way for longer than the deadline.
func TestWoundHangingDiskKeepsWinning(t *testing.T) {
	l := newCluster(t, "a b c")
	a := l.elect("a")
	b := l.server("b")
	b.slow = true
	a.propose("x")
	l.settle()
	require.Len(t, b.writes, 1)
	l.crash("a")
	l.pass(2 * time.Second)
	l.timeout("b")
	require.Equal(t, Follower, b.core.role)
	require.Empty(t, l.wire)
	b.slow = false
	b.persist(1)
	l.timeout("b")
	l.settle()
	require.Equal(t, Leader, b.core.role, "a disk that works again may lead again")
}

// Log and commit. A follower took the leader's commit index for its own as far as its log reached, and its log reached further than
// the request: behind the entries that the leader had spoken of lay what a deposed leader had left. It applied that. Figure 2, rule 5:
// min(leaderCommit, index of last new entry).
func TestWoundCommitReachesAStaleSuffix(t *testing.T) {
	l := newLab(t, "a b c")
	a := l.provision("a", HardState{CurrentTerm: 3}, 1, 2, 2, 2) // 3@2 and 4@2 were never committed
	l.start("a")
	l.step("b", "a", 3, 1, AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, LeaderCommit: 4, Entries: l.entries(2, 2)})
	require.Equal(t, Index(2), a.core.commitIndex)
	require.Equal(t, []string{"2@2"}, a.commands())
	l.step("b", "a", 3, 2, AppendEntries{PrevLogIndex: 2, PrevLogTerm: 2, LeaderCommit: 4, Entries: l.entries(3, 3, 3)})
	require.Equal(t, []string{"2@2", "3@3", "4@3"}, a.commands())
}

// Log and commit. Several writes were under way at once, and the disk finished the second before the first. The second was
// acknowledged, and with it everything before it. Here completions are numbered: a later one says that all before it are durable, so
// whoever makes the writes reports them in order; an earlier one that comes behind it changes nothing.
func TestWoundCompletionsOutOfOrder(t *testing.T) {
	t.Run("the core", func(t *testing.T) {
		l := newCluster(t, "a b c")
		a := l.elect("a")
		a.slow = true
		a.propose("x", "y")
		require.Len(t, a.writes, 2)
		first, second := a.writes[0].Seq, a.writes[1].Seq
		a.persist(2)
		require.Equal(t, a.core.log.last, a.core.log.durable)
		a.propose("z")
		for _, late := range []uint64{first, second} {
			a.do(func(c *Core, now time.Duration) { c.Persisted(now, late) })
			require.Equal(t, a.core.log.last-1, a.core.log.durable)
		}
	})
	t.Run("the writer", func(t *testing.T) {
		a, _, st := newTestApplier(t)
		n := a.n
		n.inbox.open()
		broken := errors.New("input/output error")
		st.write = func(b Batch) error {
			if len(b.Entries) > 0 {
				return broken
			}
			return nil
		}
		w := newLogWriter(n)
		// What a snapshot brings stands alone, so these are two writes to the disk, and the second fails.
		require.False(t, w.write(context.Background(), []Write{
			{Seq: 1, Batch: Batch{Snapshot: &SnapshotMeta{Index: 4, Term: 1}}},
			{Seq: 2, Batch: Batch{Entries: entriesAt(1, 5, 6)}},
		}))
		require.Equal(t, uint64(1), n.inbox.in.persisted)
	})
}

// Membership. Two operators, or one and a controller that believed in an old listing, changed the membership at the same time; the
// second change was carried out on a configuration that its author had never seen, and took away the majority. A change that names
// the configuration it was made for fails when that is no longer the one in force.
func TestWoundChangeOfAStaleConfiguration(t *testing.T) {
	l := newCluster(t, "a b c d e")
	a := l.elect("a")
	seen := a.core.configurationIndex() // by both
	_, err := a.change(Change{Remove: []NodeID{"e"}, IfIndex: seen})
	require.NoError(t, err)
	l.settle()
	last := a.core.log.last
	_, err = a.change(Change{Remove: []NodeID{"d"}, IfIndex: seen})
	require.ErrorIs(t, err, ErrChangeConflict)
	require.Equal(t, last, a.core.log.last, "nothing was appended")
	_, err = a.change(Change{Remove: []NodeID{"d"}, IfIndex: a.core.configurationIndex()})
	require.NoError(t, err)
}

// Membership. Servers lost their disks and were started again under their names with empty ones. They elected a leader among
// themselves and overwrote what the rest had committed: two of three empty logs are a majority. An empty directory belongs to no
// configuration, so its server elects nobody; and it is another replica, so neither its vote nor its acknowledgement is counted in
// the place of the one that was lost.
func TestWoundReusedIDWithAnEmptyLog(t *testing.T) {
	l := newCluster(t, "a b c")
	a := l.elect("a")
	a.propose("x")
	l.settle()
	wipe := func(id string) *labServer {
		l.crash(id)
		l.server(id).disk = &labDisk{identity: Identity{Cluster: "lab", Node: NodeID(id), Replica: 7}}
		return l.start(id)
	}
	b, c := wipe("b"), wipe("c")
	l.pass(3 * time.Second)
	for _, s := range []*labServer{b, c} {
		l.timeout(string(s.id))
		require.Equal(t, Follower, s.core.role)
	}
	require.Empty(t, l.wire, "they form no quorum of their own")

	// a is alone with what was committed. The others answer, and their word does not count.
	l.crash("a")
	a = l.start("a")
	l.pass(3 * time.Second)
	l.timeout("a")
	l.settle()
	require.NotEqual(t, Leader, a.core.role)
	require.Equal(t, []Term{1, 2, 2}, a.terms())
}

// Lifecycle. TimeoutNow arrived where it no longer fitted: at the leader, which campaigned against itself; at a candidate, which gave
// up the election that it was about to win; at a learner, which led. It is obeyed by a voter that follows the leader which sent it.
func TestWoundTimeoutNowAtTheWrongServer(t *testing.T) {
	l := newCluster(t, "a b c | d")
	a := l.elect("a")
	term := a.core.currentTerm
	l.lose()
	l.step("b", "a", term, 1, TimeoutNow{})
	require.Equal(t, Leader, a.core.role)
	l.step("a", "d", term, 100, TimeoutNow{})
	require.Equal(t, Follower, l.server("d").core.role)
	l.step("c", "b", term, 1, TimeoutNow{}) // of one who does not lead
	require.Equal(t, Follower, l.server("b").core.role)

	l.crash("a")
	l.pass(2 * time.Second)
	b := l.server("b")
	l.timeout("b")
	l.take("b", "*", "")
	l.step("c", "b", b.core.currentTerm+1, 1, PreVoteReply{Granted: true})
	require.Equal(t, Candidate, b.core.role)
	campaign := b.core.currentTerm
	l.step("a", "b", campaign, 101, TimeoutNow{})
	l.step("a", "b", term, 102, TimeoutNow{})
	require.Equal(t, Candidate, b.core.role)
	require.Equal(t, campaign, b.core.currentTerm)
	require.Empty(t, l.take("b", "*", "RequestVote")[2:], "the one election goes on")
}
