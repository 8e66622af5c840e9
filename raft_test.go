package raft_test

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCommandsReachEveryStateMachineInTheSameOrder(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader := c.leader()
		require.Equal(t, applied{"a", 1}, c.propose(leader, "a"))
		require.Equal(t, applied{"b", 2}, c.propose(leader, "b"))
		c.converge([]string{"a", "b"})
	})
}

func TestSingleServerCluster(t *testing.T) {
	inCluster(t, 1, nil, func(t *testing.T, c *cluster) {
		require.Equal(t, applied{"a", 1}, c.propose(c.leader(), "a"))
		require.NoError(t, c.machines[0].node.Read(t.Context()))
		require.NoError(t, c.machines[0].node.Barrier(t.Context()))
	})
}

func TestFollowerForwardsProposalsAndReads(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		f := c.follower()
		require.Equal(t, applied{"a", 1}, c.propose(f, "a"))
		require.Equal(t, []string{"a"}, f.sm.all())
		require.NoError(t, f.node.Read(t.Context()))
		require.NoError(t, f.node.Barrier(t.Context()))
	})
}
