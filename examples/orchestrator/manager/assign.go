package manager

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/agent"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/publish"
)

// assignments reads from a state what one node has to do.
func (m *Manager) assignments(s *cluster.State, node cluster.NodeID) agent.Assignments {
	a := agent.Assignments{Fence: s.Fence(), Tasks: s.TasksOn(node), Services: publishTable(s), Managers: m.managerAPIs(s)}
	if ca := s.Cluster.CA; ca.Signing != "" {
		a.Trust = &agent.Trust{Bundle: ca.Bundle(), Signing: ca.Signing}
	}
	return a
}

// publishTable says which tasks stand behind each published port. A service that runs but has no task that serves keeps its port: a
// client then waits for one instead of being refused.
func publishTable(s *cluster.State) publish.Table {
	table := publish.Table{}
	for _, sv := range s.Services { // order-free
		if sv.Stopped || sv.Removing {
			continue
		}
		for _, p := range sv.Spec.Task.Ports {
			table[p.Published] = nil
		}
	}
	if len(table) == 0 {
		return table
	}
	// Once through all tasks: this is asked by every agent at every change.
	var serving []*cluster.Task
	for _, t := range s.Tasks { // order-free: sorted below
		if len(t.Spec.Ports) > 0 && t.Serving() {
			serving = append(serving, t)
		}
	}
	slices.SortFunc(serving, cluster.CompareTasks)
	for _, t := range serving {
		for _, p := range t.Spec.Ports {
			if _, published := table[p.Published]; !published {
				continue // of a version that the service has left behind
			}
			if i := slices.IndexFunc(t.Endpoints, func(e cluster.Endpoint) bool { return e.Target == p.Target }); i >= 0 {
				table[p.Published] = append(table[p.Published], publish.Backend{ID: string(t.ID), Address: t.Endpoints[i].Address})
			}
		}
	}
	return table
}

// managerAPIs returns where agents find the managers: as they have registered, and those founders who have not done so yet.
func (m *Manager) managerAPIs(s *cluster.State) []string {
	found := map[cluster.NodeID]string{}
	for _, member := range m.settings.Members {
		if !s.Cluster.IsRemoved(member.ID) {
			found[member.ID] = member.API
		}
	}
	for id, n := range s.Nodes { // order-free: sorted below
		if n.Role == cluster.RoleManager && n.Address != "" {
			found[id] = n.Address
		}
	}
	addresses := make([]string, 0, len(found))
	for _, address := range found { // order-free: sorted below
		addresses = append(addresses, address)
	}
	slices.Sort(addresses)
	return slices.Compact(addresses)
}

// watchers knows for each node since when its assignments are what they are, as far as this manager has looked. An agent names only the
// fence that it knows; without this every change of anything would wake every agent.
//
// It looks when somebody watches. A change that is undone between two looks goes unnoticed; the agent's next heartbeat brings it up
// to date.
type watchers struct {
	mu    sync.Mutex
	nodes map[cluster.NodeID]watched
}

type watched struct {
	asks  []byte        // what the node is asked to do
	since cluster.Fence // of the first state in which that was seen
}

// look returns the fence since which the node is asked for the same.
func (w *watchers) look(node cluster.NodeID, a agent.Assignments) (cluster.Fence, error) {
	type wish struct {
		ID      cluster.TaskID
		Desired cluster.Desired
		Kills   int
	}
	asks := struct {
		Epoch    raft.Term // so that every agent learns of a new leader, and makes itself heard
		Tasks    []wish
		Services publish.Table
		Managers []string
		Trust    *agent.Trust
	}{Epoch: a.Fence.Epoch, Services: a.Services, Managers: a.Managers, Trust: a.Trust}
	for _, t := range a.Tasks {
		asks.Tasks = append(asks.Tasks, wish{t.ID, t.Desired, t.Kills})
	}
	data, err := json.Marshal(asks)
	if err != nil {
		return cluster.Fence{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.nodes == nil {
		w.nodes = make(map[cluster.NodeID]watched)
	}
	seen, ok := w.nodes[node]
	if !ok && len(w.nodes) >= cluster.MaxNodes {
		clear(w.nodes) // of nodes that have left; the others are woken once for nothing
	}
	if !ok || !bytes.Equal(seen.asks, data) {
		seen = watched{asks: data, since: a.Fence}
		w.nodes[node] = seen
	}
	return seen.since, nil
}

// awaitAssignments returns the assignments of a node once they differ from those of the fence that it knows, or after the time given.
func (m *Manager) awaitAssignments(ctx context.Context, node cluster.NodeID, known cluster.Fence, wait time.Duration) (agent.Assignments, error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		state, replaced := m.machine.Watch()
		a := m.assignments(state, node)
		since, err := m.watchers.look(node, a)
		if err != nil || known.Less(since) {
			return a, err
		}
		select {
		case <-ctx.Done():
			return a, ctx.Err()
		case <-m.closing:
			return a, nil
		case <-timer.C:
			return a, nil
		case <-replaced:
		}
	}
}
