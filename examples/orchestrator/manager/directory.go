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
	"slices"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/agent"
	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
	"github.com/steadyraft/raft/storage/wal"
)

// The parts of a node's data directory.
const (
	settingsFile = "node.json" // Settings; written last, so with it the directory is complete
	pkiDir       = "pki"       // the node's certificate and key, and the CA's certificate
	caDir        = "ca"        // the CA with its key; managers only
	raftDir      = "raft"      // log, votes and snapshots; managers only
	agentDir     = "agent"     // what the agent has accepted
	tasksDir     = "tasks"     // what the process runtime runs; of containers, the output of former runs
)

// Settings say who a node is. They are fixed when its data directory is made, except that Entering ends.
type Settings struct {
	Cluster string         `json:"cluster"`
	Node    cluster.NodeID `json:"node"`
	Role    cluster.Role   `json:"role"`
	Host    string         `json:"host"` // the node's own address, without port: its tasks and published ports listen on it
	// Members are the managers that were there when the directory was made, with this one if it is a manager. Who belongs to the
	// cluster now is in the Raft log; the command line and the agent begin with these.
	Members []api.Member `json:"members"`
	// Entering says that this manager has a certificate and is no member yet. It asks for that when it is started.
	Entering bool `json:"entering,omitempty"`

	Runtime    RuntimeKind `json:"runtime,omitempty"`     // what the node's tasks are; default: processes
	DockerHost string      `json:"docker_host,omitempty"` // where the node's Docker Engine listens; default: docker.DefaultHost
	// Lost are the managers that a forced recovery has left behind. They are removed for ever as soon as this one leads.
	Lost []cluster.NodeID `json:"lost,omitempty"`
}

// self returns the entry of this manager.
func (s *Settings) self() (api.Member, error) {
	for _, m := range s.Members {
		if m.ID == s.Node {
			return m, nil
		}
	}
	return api.Member{}, fmt.Errorf("manager %q is not among the members", s.Node)
}

func (s *Settings) validate() error {
	var errs []error
	switch s.Role {
	case cluster.RoleManager:
		if _, err := s.self(); err != nil {
			errs = append(errs, err)
		}
	case cluster.RoleWorker:
		if len(s.Members) == 0 {
			errs = append(errs, errors.New("members: a worker needs at least one manager"))
		}
	default:
		errs = append(errs, fmt.Errorf("role %q: want manager or worker", s.Role))
	}
	if s.Host == "" {
		errs = append(errs, errors.New("host: required"))
	}
	errs = append(errs, s.validateRuntime())
	for _, m := range s.Members {
		for what, address := range map[string]string{"API": m.API, "raft": m.Raft} {
			if _, _, err := net.SplitHostPort(address); err != nil {
				errs = append(errs, fmt.Errorf("manager %s: %s address: %w", m.ID, what, err))
			}
		}
	}
	return errors.Join(errs...)
}

// APIs returns the addresses of the APIs of Members, this node's own first.
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

// Found makes the data directory of one of the managers that found a cluster, with a certificate from its CA. It is called once for each
// of them, with the same Members, and refuses a directory that has been used. A failed call may be repeated.
func Found(ctx context.Context, dir string, s Settings, ca *pki.CA) error {
	s.Role = cluster.RoleManager
	if err := check(dir, &s); err != nil {
		return fmt.Errorf("found a cluster: %w", err)
	}
	credentials, err := ca.Issue(s.Node, s.Role, s.Host)
	if err != nil {
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
	return finish(dir, s, credentials, ca)
}

// Join makes the data directory of a node that has been let in. ca is nil on a worker. A manager begins with an empty log: it becomes a
// member when it is started.
func Join(dir string, s Settings, credentials *pki.Credentials, ca *pki.CA) error {
	s.Entering = s.Role == cluster.RoleManager
	if err := check(dir, &s); err != nil {
		return fmt.Errorf("join a cluster: %w", err)
	}
	return finish(dir, s, credentials, ca)
}

// CheckUnused refuses a data directory that belongs to a node.
func CheckUnused(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, settingsFile)); err == nil {
		return fmt.Errorf("%s belongs to a node already; start it with `up --data %s`, or choose an empty directory", dir, dir)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func check(dir string, s *Settings) error { return errors.Join(s.validate(), CheckUnused(dir)) }

// finish writes what is left to write, the settings last.
func finish(dir string, s Settings, credentials *pki.Credentials, ca *pki.CA) error {
	if err := credentials.Save(filepath.Join(dir, pkiDir)); err != nil {
		return err
	}
	if ca != nil {
		if err := ca.Save(filepath.Join(dir, caDir)); err != nil {
			return err
		}
	}
	return s.save(dir)
}

func (s *Settings) save(dir string) error {
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

// TasksDirectory is where the process runtime of a node keeps its tasks.
func TasksDirectory(dir string) string { return filepath.Join(dir, tasksDir) }

// AgentDirectory is where the agent of a node keeps what it has accepted.
func AgentDirectory(dir string) string { return filepath.Join(dir, agentDir) }

// CredentialsDirectory is where a node keeps its certificate.
func CredentialsDirectory(dir string) string { return filepath.Join(dir, pkiDir) }

// KnownAPIs returns where managers may be found, as far as a data directory tells: this node itself, those that were there at the
// beginning, and those that its agent was told of last.
func KnownAPIs(dir string, s Settings) []string {
	known := s.APIs()
	told, _ := agent.KnownManagers(AgentDirectory(dir)) // a damaged file is the agent's to complain about
	for _, address := range told {
		if !slices.Contains(known, address) {
			known = append(known, address)
		}
	}
	return known
}

// ErrNoNode says that a directory is not a node's.
var ErrNoNode = errors.New("no node has been set up there")

// LoadSettings reads who the node of a directory is.
func LoadSettings(dir string) (s Settings, err error) {
	path := filepath.Join(dir, settingsFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("data directory %s: %w", dir, ErrNoNode)
	} else if err != nil {
		return s, err
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := errors.Join(decoder.Decode(&s), s.validate()); err != nil {
		return s, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// Load reads who the node of a directory is, and its credentials. now is the clock for certificates; nil: time.Now.
func Load(dir string, now func() time.Time) (s Settings, credentials *pki.Credentials, err error) {
	s, lapsed, err := Lapsed(dir, now)
	if err != nil {
		return s, nil, err
	}
	if lapsed != nil && s.Role == cluster.RoleWorker {
		return s, nil, &LapsedError{Directory: dir, Node: s.Node, At: lapsed.ExpiredAt}
	}
	if credentials, err = pki.Load(filepath.Join(dir, pkiDir), now); err != nil {
		return s, nil, err
	}
	id := credentials.Identity()
	sameCluster := id.Cluster == s.Cluster || s.Role == cluster.RoleWorker && pki.Lineage(id.Cluster) == pki.Lineage(s.Cluster)
	if id.Node != s.Node || !sameCluster || id.Role != s.Role {
		return s, nil, fmt.Errorf("%s: the certificate in %s is that of %s %s of cluster %s, not of %s %s of cluster %s; put back the one that belongs here",
			dir, pkiDir, id.Role, id.Node, id.Cluster, s.Role, s.Node, s.Cluster)
	}
	return s, credentials, nil
}

// PageToken makes a token for the buttons of the status pages, from a manager's data directory.
func PageToken(dir string, until time.Time) (string, error) {
	ca, err := loadAuthority(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s is no manager's data directory: only managers have status pages", dir)
	} else if err != nil {
		return "", err
	}
	return ca.PageToken(until)
}
