package manager

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
	"github.com/steadyraft/raft/storage/vfs"
	"github.com/steadyraft/raft/storage/wal"
)

// Recovery is what a forced recovery of a manager's data directory comes to.
type Recovery struct {
	Plan *wal.Recovery // of the library; nil: its part was done before, by a call that was broken off
	Node cluster.NodeID
	Old  string           // name of the cluster now
	New  string           // and afterwards
	Lost []cluster.NodeID // the other managers, which are removed for ever
	dir  string
}

// PlanRecovery says what a forced recovery would do with the data directory of a stopped manager, and changes nothing.
func PlanRecovery(ctx context.Context, dir string) (Recovery, error) {
	s, err := LoadSettings(dir)
	if err != nil {
		return Recovery{}, err
	}
	if s.Role != cluster.RoleManager {
		return Recovery{}, fmt.Errorf("the node in %s is a %s; only a manager has what the managers agreed on", dir, s.Role)
	}
	r := Recovery{Node: s.Node, Old: s.Cluster, New: pki.Successor(s.Cluster), dir: dir}
	raftDirectory := filepath.Join(dir, raftDir)
	report, err := wal.Inspect(ctx, vfs.OS{}, raftDirectory)
	if err != nil {
		return r, fmt.Errorf("%w; stop the manager first, if it is running", err)
	}
	var removed []cluster.NodeID
	if report.Cluster == r.New { // a crash came between the library's part and ours
		if n := len(report.Configurations); n > 0 {
			for _, id := range report.Configurations[n-1].Configuration.Removed {
				removed = append(removed, cluster.NodeID(id))
			}
		}
	} else {
		plan, err := wal.PlanRecovery(ctx, vfs.OS{}, raftDirectory, r.New, "")
		if err != nil {
			return r, err
		}
		r.Plan = &plan
		for _, id := range plan.Entry.Configuration.Removed {
			removed = append(removed, cluster.NodeID(id))
		}
	}
	r.Lost = removed
	return r, nil
}

// Recover carries out a plan. A call that was broken off may be repeated, with a new plan.
func Recover(ctx context.Context, r Recovery) error {
	s, err := LoadSettings(r.dir)
	if err != nil {
		return err
	}
	ca, err := loadAuthority(r.dir)
	if err != nil {
		return err
	}
	if err := ca.SignFor(r.New); err != nil {
		return err
	}
	credentials, err := ca.Issue(s.Node, s.Role, s.Host) // before anything is changed: this must not fail afterwards
	if err != nil {
		return err
	}
	self, err := s.self()
	if err != nil {
		return err
	}
	if r.Plan != nil {
		if err := wal.Recover(ctx, vfs.OS{}, *r.Plan); err != nil {
			return err
		}
	}
	// The settings last: with the new name in them all is done. Between the two the certificate does not fit, and the manager does not start.
	if err := credentials.Save(filepath.Join(r.dir, pkiDir)); err != nil {
		return err
	}
	s.Cluster, s.Members, s.Entering, s.Lost = r.New, []api.Member{self}, false, r.Lost
	return s.save(r.dir)
}

// removeLost has the managers removed that a forced recovery has left behind: their certificates are good for a while yet, and should one of
// them come back, it is to be told that it does not belong here any more.
func (m *Manager) removeLost(ctx context.Context) error {
	if len(m.settings.Lost) == 0 {
		return nil
	}
	until := m.credentials.Now().Add(max(m.lifetime, pki.NodeLifetime) + time.Hour)
	for _, id := range m.settings.Lost {
		for {
			_, err := m.propose(ctx, cluster.RemoveNode{Node: id, Until: until, Force: true})
			if err == nil {
				m.log.Info("removed a manager that was lost", "node", id)
				break
			}
			var refused *cluster.RefusedError
			if errors.As(err, &refused) {
				return fmt.Errorf("remove manager %s, which was lost: %w", id, err)
			}
			if !pause(ctx, retryPause) {
				return nil
			}
		}
	}
	settings := m.settings
	settings.Lost = nil
	return settings.save(m.dir)
}
