package raft_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
)

// busyLeader returns a leader whose disk is at work on a first command until release is called, and a function that counts the
// entries behind that command in each message to one of its followers.
func busyLeader(t *testing.T, c *cluster, taps map[raft.NodeID]*tap) (leader *machine, batches func() []int, release func()) {
	leader = c.leader()
	c.propose(leader, "settled")
	time.Sleep(time.Second)
	release = leader.storage.BlockWrites()
	first := leader.node.ProposeAsync(t.Context(), []byte("first"))
	synctest.Wait()
	id, ok := first.ID()
	require.True(t, ok, "nothing to wait for: it goes at once")
	to := c.follower().id
	return leader, func() []int {
		p := taps[leader.id]
		p.mu.Lock()
		defer p.mu.Unlock()
		var sizes []int
		for _, m := range p.sent {
			if b, ok := m.Body.(raft.AppendEntries); ok && m.To == to && len(b.Entries) > 0 && b.Entries[0].Index > id.Index {
				sizes = append(sizes, len(b.Entries))
			}
		}
		return sizes
	}, release
}

// proposeEach proposes n commands one after another, each when everybody has come to rest.
func proposeEach(t *testing.T, leader *machine, n, size int) {
	for i := range n {
		leader.node.ProposeAsync(t.Context(), fmt.Appendf(make([]byte, 0, size), "%0*d", size, i))
		synctest.Wait()
	}
}

func TestLeaderGathersProposalsWhileItsDiskIsBusy(t *testing.T) {
	inTappedCluster(t, 3, func(t *testing.T, c *cluster, taps map[raft.NodeID]*tap) {
		leader, batches, release := busyLeader(t, c, taps)
		proposeEach(t, leader, 50, 10)
		require.Empty(t, batches())
		release()
		synctest.Wait()
		require.Equal(t, []int{50}, batches(), "as soon as the disk is free, in one message")
	})
}

// Another server's disk may be faster than the leader's, or the leader's may hang: what is gathered does not wait for it.
func TestGatheredProposalsDoNotWaitForASlowDisk(t *testing.T) {
	inTappedCluster(t, 3, func(t *testing.T, c *cluster, taps map[raft.NodeID]*tap) {
		leader, batches, release := busyLeader(t, c, taps)
		defer release()
		proposeEach(t, leader, 50, 10)
		time.Sleep(time.Millisecond)
		synctest.Wait()
		require.Equal(t, []int{50}, batches())
		proposeEach(t, leader, 20, 10)
		require.Equal(t, []int{50}, batches())
		time.Sleep(time.Millisecond)
		synctest.Wait()
		require.Equal(t, []int{50, 20}, batches())
	})
}

func TestManyBytesAreNotGathered(t *testing.T) {
	inTappedCluster(t, 3, func(t *testing.T, c *cluster, taps map[raft.NodeID]*tap) {
		leader, batches, release := busyLeader(t, c, taps)
		defer release()
		proposeEach(t, leader, 3, 60<<10)
		require.Equal(t, []int{3}, batches(), "128 KiB are reached")
	})
}

// Who does not wait may use the bytes of the command again at once, wherever the proposal waits.
func TestAsyncCommandIsCopiedAtOnce(t *testing.T) {
	inTappedCluster(t, 3, func(t *testing.T, c *cluster, taps map[raft.NodeID]*tap) {
		leader, _, release := busyLeader(t, c, taps)
		cmd := []byte("mine")
		p := leader.node.ProposeAsync(t.Context(), cmd)
		copy(cmd, "gone")
		release()
		result, err := p.Result()
		require.NoError(t, err)
		require.Equal(t, "mine", result.(applied).Command)
	})
}
