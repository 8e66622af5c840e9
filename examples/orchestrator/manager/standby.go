package manager

import (
	"context"
	"errors"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/plan"
)

// defaultReplaceVotersAfter is Options.ReplaceVotersAfter if nothing is said. It is long enough for a machine to be started again: a voter
// that comes back by itself needs no replacement.
const defaultReplaceVotersAfter = time.Minute

// keepVoters has standbys take the place of voters that are lost. It runs while this manager leads.
func (m *Manager) keepVoters(ctx context.Context) {
	bound := m.replaceVotersAfter
	if bound < 0 {
		return
	}
	for pause(ctx, min(time.Second, max(bound/4, changeRetry))) {
		status := m.node.Status()
		lost, standby := plan.Replacement(&status.CoreStatus, m.machine.View().Nodes, time.Now(), bound, electionTimeout)
		if standby == "" {
			continue
		}
		changing, cancel := context.WithTimeout(ctx, requestTimeout)
		// Both in one step, so that there is no moment with a vote too many or too few; and only if nobody has changed anything since.
		_, err := m.node.ChangeMembership(changing, raft.Change{
			Promote: []raft.NodeID{standby}, Demote: []raft.NodeID{lost}, IfIndex: status.ConfigurationIndex,
		})
		cancel()
		switch {
		case err == nil:
			m.log.Warn("a standby has taken the place of a manager that is lost", "lost", lost, "standby", standby)
		case errors.As(err, new(*raft.MembershipError)), errors.Is(err, raft.ErrChangePending), errors.Is(err, raft.ErrChangeConflict):
			m.log.Debug("a lost manager cannot be replaced yet", "lost", lost, "standby", standby, "error", err)
		default:
			m.log.Warn("a lost manager was not replaced", "lost", lost, "standby", standby, "error", err)
		}
	}
}
