package plan

import (
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// Heartbeats of the agents. A node is down when nothing has been heard of it for DownAfter, three of the longest intervals.
const (
	HeartbeatInterval = time.Second
	HeartbeatJitter   = 0.1
	DownAfter         = 3 * (HeartbeatInterval + HeartbeatInterval/10)
)

// Nodes compares the statuses of the nodes with the heartbeats that this leader has heard since it began its epoch (heard: the
// newest of each node), and returns what has to change, and when to look again (zero: not before something happens).
//
// A node that this leader has not heard is not down: the agents need time to find the new leader. It is down after DownAfter,
// counted from the beginning of the epoch or from its joining, whichever is later.
func Nodes(s *cluster.State, heard map[cluster.NodeID]time.Time, now time.Time) (commands []cluster.Command, next time.Time) {
	for _, n := range s.SortedNodes() {
		status := cluster.NodeReady
		last, ok := heard[n.ID]
		if !ok {
			status, last = n.Status, waitingSince(s, n, now)
		}
		if deadline := last.Add(DownAfter); now.Before(deadline) {
			next = earlier(next, deadline)
		} else {
			status = cluster.NodeDown
		}
		if status != n.Status {
			commands = append(commands, command(s, now, cluster.SetNodeStatus{Node: n.ID, Status: status}))
		}
	}
	return commands, next
}

// waitingSince says from when on the leader has had a chance to hear a node. StatusAt may be by the clock of another manager; if
// that one is ahead of ours, it must not delay the verdict.
func waitingSince(s *cluster.State, n *cluster.Node, now time.Time) time.Time {
	if since := n.StatusAt; since.After(s.Cluster.EpochAt) && !since.After(now) {
		return since
	}
	return s.Cluster.EpochAt
}
