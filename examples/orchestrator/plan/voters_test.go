package plan

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

func TestWhichStandbyReplacesWhom(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	const bound, electionTimeout = time.Minute, 400 * time.Millisecond
	type situation struct {
		status raft.CoreStatus
		nodes  map[cluster.NodeID]*cluster.Node
	}
	// m1 leads, m3 is lost for two minutes, s1 and s2 are standbys, of which s2 is further.
	begin := func() *situation {
		s := &situation{nodes: map[cluster.NodeID]*cluster.Node{}}
		s.status.ID, s.status.Role = "m1", raft.Leader
		for _, id := range []raft.NodeID{"m1", "m2", "m3", "s1", "s2"} {
			server := raft.Server{ID: id, Suffrage: raft.Voter}
			if id[0] == 's' {
				server.Suffrage = raft.NonVoter
			}
			s.status.Configuration.Servers = append(s.status.Configuration.Servers, server)
			s.nodes[cluster.NodeID(id)] = &cluster.Node{Status: cluster.NodeReady}
			if id != "m1" {
				s.status.Peers = append(s.status.Peers, raft.PeerStatus{ID: id, MatchIndex: 10, LastHeard: time.Millisecond})
			}
		}
		s.status.Peers[1].LastHeard = 2 * time.Minute
		s.nodes["m3"] = &cluster.Node{Status: cluster.NodeDown, StatusAt: now.Add(-2 * time.Minute)}
		s.status.Peers[3].MatchIndex = 11
		return s
	}
	for name, test := range map[string]struct {
		change  func(*situation)
		standby raft.NodeID
	}{
		"one is lost":                       {func(*situation) {}, "s2"},
		"the further standby is silent":     {func(s *situation) { s.status.Peers[3].LastHeard = time.Second }, "s1"},
		"the further standby is no node":    {func(s *situation) { delete(s.nodes, "s2") }, "s1"},
		"the further standby is down":       {func(s *situation) { s.nodes["s2"].Status = cluster.NodeUnknown }, "s1"},
		"not for long enough":               {func(s *situation) { s.nodes["m3"].StatusAt = now.Add(time.Second - bound) }, ""},
		"its node is not known to be down":  {func(s *situation) { s.nodes["m3"].Status = cluster.NodeUnknown }, ""},
		"its agent is down, but it answers": {func(s *situation) { s.status.Peers[1].LastHeard = 0 }, ""},
		"it was silent for a moment only":   {func(s *situation) { s.status.Peers[1].LastHeard = 2 * electionTimeout }, ""},
		"there is no standby":               {func(s *situation) { s.status.Configuration.Servers = s.status.Configuration.Servers[:3] }, ""},
		"no majority answers":               {func(s *situation) { s.status.Peers[0].LastHeard = 2 * time.Minute }, ""},
		"another one leads":                 {func(s *situation) { s.status.Role = raft.Follower }, ""},
		"nobody is lost":                    {func(s *situation) { s.status.Peers[1].LastHeard, s.nodes["m3"].Status = 0, cluster.NodeReady }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := begin()
			test.change(s)
			lost, standby := Replacement(&s.status, s.nodes, now, bound, electionTimeout)
			require.Equal(t, test.standby, standby)
			if standby != "" {
				require.EqualValues(t, "m3", lost)
			} else {
				require.Empty(t, lost)
			}
		})
	}
}
