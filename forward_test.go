package raft

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What gathered may be given up before its time. Then the loop has nothing to wake for: a time in the past would keep it running.
func TestLoopSleepsWhenGatheredProposalsAreGivenUp(t *testing.T) {
	n := readingNode(LeaderChange{Term: 2, Role: Leader, Leader: "a"})
	n.lead.init()
	n.written, n.persisted = 2, 1
	ctx, cancel := context.WithCancel(t.Context())
	p := newPending(n, NewCommand([]byte("a")), 0, false)
	n.fwd.waiting = []*Pending{p}
	n.placeProposals(0)
	require.Equal(t, gatherTime, n.forwardDeadline(0))
	cancel()
	p.cancel(ctx)
	n.placeProposals(time.Microsecond)
	require.Equal(t, never, n.forwardDeadline(time.Microsecond))
}
