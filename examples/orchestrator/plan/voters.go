package plan

import (
	"cmp"
	"slices"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// silentAfter is after how many election timeouts without an answer a manager counts as silent.
const silentAfter = 5

// Replacement chooses a voter that is lost and a standby to take its place; none if there is nothing to do, or nothing that is safe.
//
// Lost is who is silent towards this leader, and whose node has been down for longer than the bound. The first is what counts for the
// quorum; the second is in the replicated state, so a new leader does not begin to wait again. A standby has to answer, to have the log
// as far as it knows, and to be a ready node. And more than half of the voters, before and after, have to answer: a change that
// nobody could commit would only be in the way.
func Replacement(
	s *raft.CoreStatus, nodes map[cluster.NodeID]*cluster.Node, now time.Time, bound, electionTimeout time.Duration,
) (lost, standby raft.NodeID) {
	if s.Role != raft.Leader || s.Configuration.Joint() {
		return "", ""
	}
	peer := func(id raft.NodeID) raft.PeerStatus {
		if i := slices.IndexFunc(s.Peers, func(p raft.PeerStatus) bool { return p.ID == id }); i >= 0 {
			return s.Peers[i]
		}
		return raft.PeerStatus{LastHeard: time.Hour} // not known: not heard
	}
	answers := func(id raft.NodeID) bool {
		p := peer(id)
		return id == s.ID || p.MatchIndex > 0 && p.LastHeard < electionTimeout
	}
	voters := s.Configuration.Voters()
	answering := 0
	for _, id := range voters {
		n := nodes[cluster.NodeID(id)]
		switch {
		case answers(id):
			answering++
		case lost == "" && peer(id).LastHeard > silentAfter*electionTimeout &&
			n != nil && n.Status == cluster.NodeDown && now.Sub(n.StatusAt) >= bound:
			lost = id
		}
	}
	if lost == "" || answering <= len(voters)/2 {
		return "", ""
	}
	var standbys []raft.NodeID
	for _, server := range s.Configuration.Servers {
		n := nodes[cluster.NodeID(server.ID)]
		if server.Suffrage != raft.Voter && answers(server.ID) && n != nil && n.Status == cluster.NodeReady {
			standbys = append(standbys, server.ID)
		}
	}
	if len(standbys) == 0 {
		return "", ""
	}
	return lost, slices.MinFunc(standbys, func(a, b raft.NodeID) int { // who is furthest
		return cmp.Or(cmp.Compare(peer(b).MatchIndex, peer(a).MatchIndex), cmp.Compare(a, b))
	})
}
