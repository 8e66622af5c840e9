package raft_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/steadyraft/raft"
)

// A leader's batches may be longer than the whole inbox of a follower that lags. Each of them used to be dropped, for ever.
// Found by TestChaos, seed 10.
func TestFollowerWithASmallInboxCatchesUp(t *testing.T) {
	small := func(c *raft.Config) { c.MaxCommandBytes, c.MaxInboxBytes = 1000, 1200 }
	inCluster(t, 3, small, func(t *testing.T, c *cluster) {
		lagging := c.follower()
		c.net.Isolate(lagging.id)
		var want []string
		for i := range 20 {
			want = append(want, fmt.Sprint(i, strings.Repeat("x", 900)))
			c.propose(c.leader(), want[i])
		}
		c.net.Heal()
		c.converge(want)
	})
}
