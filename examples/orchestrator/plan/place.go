package plan

import (
	"fmt"
	"strings"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// seat is a node that takes new tasks, with what this plan has put on it.
type seat struct {
	node   *cluster.Node
	load   int               // live tasks
	spread int               // of them of the service that is being looked at, and wanted
	free   cluster.Resources // not reserved
	fits   bool              // the node fulfils the constraints of the service that is being looked at
}

// seats finds the nodes that take new tasks.
func (p *planner) findSeats() {
	p.seatOf = make(map[cluster.NodeID]*seat, len(p.state.Nodes))
	for _, n := range p.state.SortedNodes() {
		if n.Status != cluster.NodeReady || n.Availability != cluster.AvailabilityActive {
			p.closed++
			continue
		}
		st := &seat{node: n, free: n.Resources}
		p.seats = append(p.seats, st)
		p.seatOf[n.ID] = st
	}
}

// occupy counts a task on its node.
func (p *planner) occupy(t *cluster.Task) {
	if st := p.seatOf[t.Node]; st != nil {
		st.load++
		st.free = st.free.Sub(t.Spec.Reservations)
	}
}

// look prepares the seats for one service. Its first task to be placed pays for that; most services have none.
func (sv *service) look() {
	if sv.looked {
		return
	}
	sv.looked = true
	for _, st := range sv.p.seats {
		st.spread, st.fits = 0, sv.Spec.Allows(st.node)
	}
	for _, t := range sv.tasks {
		if st := sv.p.seatOf[t.Node]; st != nil && t.Live() && t.Desired == cluster.DesiredRunning {
			st.spread++
		}
	}
}

// place chooses a node for a task of the slot and counts the task there: the node where the slot has failed least of late, then the one
// with the fewest tasks of the service, then the one with the fewest of all. "" and the reason if there is none.
func (sv *service) place(sl *slot, want cluster.Resources) (cluster.NodeID, string) {
	sv.look()
	var failed map[cluster.NodeID]int
	for _, t := range sl.tasks {
		if (t.GaveUp || t.Refused()) && t.SpecVersion == sv.Version && sv.p.now.Sub(t.UpdatedAt) < FailureWindow {
			if failed == nil {
				failed = map[cluster.NodeID]int{}
			}
			failed[t.Node]++
		}
	}
	var best *seat
	bestFailed := 0
	for _, st := range sv.p.seats {
		if !st.fits || !want.Fits(st.free) {
			continue
		}
		f := 0
		if failed != nil {
			f = failed[st.node.ID]
		}
		better := best == nil || f < bestFailed ||
			f == bestFailed && (st.spread < best.spread || st.spread == best.spread && st.load < best.load) // the first of equals
		if better {
			best, bestFailed = st, f
		}
	}
	if best == nil {
		return "", sv.noNode(want)
	}
	best.spread++
	best.load++
	best.free = best.free.Sub(want)
	return best.node.ID, ""
}

// elsewhere reports that a node other than this one could take a task of the service.
func (sv *service) elsewhere(id cluster.NodeID) bool {
	sv.look()
	for _, st := range sv.p.seats {
		if st.node.ID != id && st.fits && sv.Spec.Task.Reservations.Fits(st.free) {
			return true
		}
	}
	return false
}

// noNode says why no node takes a task, in Docker's words.
func (sv *service) noNode(want cluster.Resources) string {
	constraints, resources := 0, 0
	for _, st := range sv.p.seats {
		switch {
		case !st.fits:
			constraints++
		case !want.Fits(st.free):
			resources++
		}
	}
	var why []string
	add := func(n int, what string) {
		switch {
		case n == 1:
			why = append(why, what+" 1 node")
		case n > 1:
			why = append(why, fmt.Sprintf("%s %d nodes", what, n))
		}
	}
	add(constraints, "scheduling constraints not satisfied on")
	add(resources, "insufficient resources on")
	add(sv.p.closed, "no new tasks taken by")
	if len(why) == 0 {
		return "no suitable node (there is none)"
	}
	return "no suitable node (" + strings.Join(why, "; ") + ")"
}
