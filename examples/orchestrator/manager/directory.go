package manager

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
	"github.com/steadyraft/raft/storage/wal"
)

// The parts of a manager's data directory.
const (
	settingsFile = "manager.json" // Settings; written last, so with it the directory is complete
	pkiDir       = "pki"          // the manager's certificate and key, and the CA's certificate
	raftDir      = "raft"         // log, votes and snapshots
	agentDir     = "agent"        // what the agent has accepted
	tasksDir     = "tasks"        // what the process runtime runs
)

// Settings say who a manager is. They are fixed when its data directory is made.
type Settings struct {
	Cluster string         `json:"cluster"`
	Node    cluster.NodeID `json:"node"`
	Host    string         `json:"host"` // the node's own address, without port: its tasks and published ports listen on it
	// Members are the managers that founded the cluster, this one included. Who belongs to it now is in the Raft log; the command line
	// and the agent begin with these.
	Members []api.Member `json:"members"`
}

// self returns the entry of this manager.
func (s *Settings) self() (api.Member, error) {
	for _, m := range s.Members {
		if m.ID == s.Node {
			return m, nil
		}
	}
	return api.Member{}, fmt.Errorf("manager %q is not among the founding members", s.Node)
}

func (s *Settings) validate() error {
	var errs []error
	if _, err := s.self(); err != nil {
		errs = append(errs, err)
	}
	if s.Host == "" {
		errs = append(errs, errors.New("host: required"))
	}
	for _, m := range s.Members {
		for what, address := range map[string]string{"API": m.API, "raft": m.Raft} {
			if _, _, err := net.SplitHostPort(address); err != nil {
				errs = append(errs, fmt.Errorf("manager %s: %s address: %w", m.ID, what, err))
			}
		}
	}
	return errors.Join(errs...)
}

// APIs returns the addresses of the founding members' APIs, this manager's first.
func (s *Settings) APIs() []string {
	var out []string
	for _, m := range s.Members {
		if m.ID == s.Node {
			out = append([]string{m.API}, out...)
		} else {
			out = append(out, m.API)
		}
	}
	return out
}

// Found makes the data directory of one of the managers that found a cluster. It is called once for each of them, with the same
// Members, and refuses a directory that has been used. A failed call may be repeated.
func Found(ctx context.Context, dir string, s Settings, credentials *pki.Credentials) error {
	if err := s.validate(); err != nil {
		return fmt.Errorf("found a cluster: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, settingsFile)); err == nil {
		return fmt.Errorf("%s belongs to a manager already; start it with `up --data %s`, or choose an empty directory", dir, dir)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := credentials.Save(filepath.Join(dir, pkiDir)); err != nil {
		return err
	}
	configuration := raft.Configuration{ClusterID: s.Cluster}
	for _, m := range s.Members {
		configuration.Servers = append(configuration.Servers, raft.Server{ID: raft.NodeID(m.ID), Address: m.Raft})
	}
	storage := wal.New(filepath.Join(dir, raftDir), wal.Options{})
	// A directory without settings is one that was not finished, unless its log is of another cluster, which the error then says.
	if err := raft.Bootstrap(ctx, storage, raft.NodeID(s.Node), configuration); errors.As(err, new(*raft.IdentityError)) || err != nil && !errors.Is(err, raft.ErrBootstrapped) {
		return fmt.Errorf("found a cluster in %s: %w", dir, err)
	}
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, settingsFile)
	if err := os.WriteFile(path+".tmp", append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// TasksDirectory is where the process runtime of a manager keeps its tasks.
func TasksDirectory(dir string) string { return filepath.Join(dir, tasksDir) }

// ErrNoManager says that a directory is not a manager's.
var ErrNoManager = errors.New("no manager has been set up there")

// Load reads who the manager of a directory is, and its credentials.
func Load(dir string) (s Settings, credentials *pki.Credentials, err error) {
	path := filepath.Join(dir, settingsFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil, fmt.Errorf("data directory %s: %w", dir, ErrNoManager)
	} else if err != nil {
		return s, nil, err
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := errors.Join(decoder.Decode(&s), s.validate()); err != nil {
		return s, nil, fmt.Errorf("%s: %w", path, err)
	}
	if credentials, err = pki.Load(filepath.Join(dir, pkiDir)); err != nil {
		return s, nil, err
	}
	id := credentials.Identity()
	if id.Node != s.Node || id.Cluster != s.Cluster || id.Role != cluster.RoleManager {
		return s, nil, fmt.Errorf("%s: the certificate in %s is that of %s %s of cluster %s, not of manager %s of cluster %s; put back the one that belongs here",
			dir, pkiDir, id.Role, id.Node, id.Cluster, s.Node, s.Cluster)
	}
	return s, credentials, nil
}
