package plan_test

import (
	"slices"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/plan"
	"github.com/steadyraft/raft/raftsim"
)

// keepVoters has standbys take the place of lost voters, as manager.Manager.keepVoters does.
func (l *loop) keepVoters() {
	if l.w.loops[l.s] != l {
		return
	}
	l.s.On(l.w.upTo(time.Second), l.keepVoters)
	status := l.s.Status()
	lost, standby := plan.Replacement(&status, stateOf(l.s).Nodes, clockOf(l.s), l.w.bound, l.w.electionTimeout)
	if standby == "" {
		return
	}
	before := status.Configuration.Voters()
	up := l.w.countUp(before)
	err := l.s.ChangeMembership(raft.Change{Promote: []raft.NodeID{standby}, Demote: []raft.NodeID{lost}, IfIndex: status.ConfigurationIndex})
	if err != nil || !l.s.Up() {
		return // it is refused, or not possible now
	}
	l.w.Logf(l.s, "standby %s takes the place of %s", standby, lost)
	l.w.followVoters(l, lost, standby, before, up)
}

// hears reports that the leader has heard another server lately, or has nothing to hear of it: then it is no member.
func (l *loop) hears(id raft.NodeID) bool {
	status := l.s.Status()
	return !slices.ContainsFunc(status.Peers, func(p raft.PeerStatus) bool { return p.ID == id && p.LastHeard >= time.Second })
}

func (w *world) countUp(ids []raft.NodeID) (up int) {
	for _, s := range w.Servers() {
		if s.Up() && slices.Contains(ids, s.ID()) {
			up++
		}
	}
	return up
}

// followVoters checks a replacement against what is really so.
func (w *world) followVoters(l *loop, lost, standby raft.NodeID, before []raft.NodeID, up int) {
	w.seen.Replaced++
	status := l.s.Status()
	after := slices.Clone(before)
	after[slices.Index(after, lost)] = standby
	slices.Sort(after)
	now := slices.Clone(status.Configuration.Voters())
	slices.Sort(now)
	if !slices.Equal(after, now) {
		w.Fail("%s takes the place of %s among %v, and the voters are %v", standby, lost, before, now)
	}
	// Clocks run at twice the real rate at most, and those of two leaders may differ; that nobody has heard the node for DownAfter is by
	// one of them.
	i := slices.IndexFunc(w.Servers(), func(s *raftsim.Server) bool { return s.ID() == lost })
	if n := w.nodeOf(w.Servers()[i]); n != nil && w.Now()-n.heard < plan.DownAfter/2 {
		w.Fail("%s is replaced, and was heard %v ago", lost, w.Now()-n.heard)
	}
	if n := stateOf(l.s).Nodes[cluster.NodeID(lost)]; n.Status != cluster.NodeDown || clockOf(l.s).Sub(n.StatusAt) < w.bound {
		w.Fail("%s is replaced, which is %s for %v, not down for %v", lost, n.Status, clockOf(l.s).Sub(n.StatusAt), w.bound)
	}
	if now := w.countUp(after); now < up {
		w.Fail("of the voters %v there were %d up, of %v there are %d", before, up, after, now)
	}
}
