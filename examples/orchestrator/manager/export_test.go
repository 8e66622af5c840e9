package manager

import (
	"context"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
)

// Admit is what a manager's wish to become a member comes to, once it has been let in to ask.
func (m *Manager) Admit(ctx context.Context, member api.Member) error {
	who := caller{Identity: pki.Identity{Cluster: m.settings.Cluster, Node: member.ID, Role: cluster.RoleManager}}
	_, err := m.admitManager(context.WithValue(ctx, callerKey{}, who), api.EnterRequest{Member: member})
	return err
}
