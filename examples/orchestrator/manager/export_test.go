package manager

import (
	"context"

	"github.com/steadyraft/raft"
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

// What the tests of the rotation look at from inside: a manager that is open and does not run.

func (m *Manager) Release()                              { m.release() }
func (m *Manager) Keep(ca *pki.CA) error                 { return m.keep(ca) }
func (m *Manager) HasKey(digest string) bool             { return m.authority(digest) != nil }
func (m *Manager) NewCA() (cluster.BeginRotation, error) { return m.newCA() }
func (m *Manager) Forget(ca cluster.Authority)           { m.forget(ca) }
func (m *Manager) FollowCA(ctx context.Context) error    { return m.followCA(ctx) }
func (m *Manager) Apply(index raft.Index, op cluster.Op) error {
	data, err := cluster.Encode(cluster.Command{Op: op})
	if err != nil {
		return err
	}
	return m.machine.Apply([]raft.Entry{{Index: index, Term: 1, Data: data}}, make([]any, 1))
}
