// Package manager is one process of the orchestrator: a Raft node that keeps the cluster's state, the control loop that runs while this
// node leads, the API for agents and the command line, and an agent that runs tasks on the same machine.
package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/agent"
	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
	"github.com/steadyraft/raft/examples/orchestrator/publish"
	"github.com/steadyraft/raft/examples/orchestrator/runtime/process"
	"github.com/steadyraft/raft/storage/wal"
	"github.com/steadyraft/raft/transport/tcp"
)

// The managers' pace. A leader whose process dies is noticed sooner than the election timeout, because its connections break.
const (
	heartbeatInterval = 50 * time.Millisecond
	electionTimeout   = 400 * time.Millisecond
	snapshotEntries   = 10_000
)

const stopTimeout = 5 * time.Second

// Options configures a Manager.
type Options struct {
	Logger     *slog.Logger // default: none
	StopOnExit bool         // stop the node's tasks when Run ends; default: leave them running for the next start
	// Publish adjusts the proxies of the published ports; Host and Logger are filled in.
	Publish publish.Options
	// ShimProgram answers process.ShimCommand; default: the running executable.
	ShimProgram string

	Now                 func() time.Time // the clock for certificates. Default: time.Now
	CertificateLifetime time.Duration    // of the certificates that this manager signs. Default: pki.NodeLifetime
	RenewInterval       time.Duration    // how often it looks whether its own has to be renewed. Default: 1 minute
}

// Manager is one manager. Make it with Open, run it with Run, once.
type Manager struct {
	dir         string
	settings    Settings
	self        api.Member
	credentials *pki.Credentials
	ca          *pki.CA
	renewal     api.Renewal
	log         *slog.Logger

	machine  *cluster.Machine
	node     *raft.Node
	network  *tcp.Transport
	listener net.Listener
	tasks    *process.Runtime
	peers    *api.Client // to other managers; used with Exchange only

	agentOptions agent.Options

	office   atomic.Pointer[office] // nil while this manager does not lead
	watchers watchers
	closing  chan struct{} // closed when Run ends
	problems problems
}

// Open takes hold of a manager's data directory, which Found or Join has made, and of the manager's addresses. Nothing runs yet.
func Open(dir string, opts Options) (_ *Manager, err error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Manager{dir: dir, log: opts.Logger, machine: cluster.NewMachine(), closing: make(chan struct{})}
	if m.settings, m.credentials, err = Load(dir, opts.Now); err != nil {
		return nil, err
	}
	if m.settings.Role != cluster.RoleManager {
		return nil, fmt.Errorf("the node in %s is a %s", dir, m.settings.Role)
	}
	if m.ca, err = pki.LoadCA(filepath.Join(dir, caDir)); err != nil {
		return nil, err
	}
	if opts.CertificateLifetime > 0 {
		m.ca.Lifetime = opts.CertificateLifetime
	}
	m.ca.Now = m.credentials.Now
	m.credentials.Refuse(func(id pki.Identity) error { return m.notRemoved(id.Node) })
	if m.self, err = m.settings.self(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.release()
		}
	}()
	if m.listener, err = listen("API", m.self.API); err != nil {
		return nil, err
	}
	raftListener, err := listen("raft", m.self.Raft)
	if err != nil {
		return nil, err
	}
	m.network, err = tcp.New(tcp.Config{
		Listener: raftListener, Advertise: m.self.Raft, Logger: m.log,
		TLS: &tcp.TLSConfig{Certificate: m.credentials.Certificate, Roots: m.credentials.Members},
	})
	if err != nil {
		return nil, errors.Join(err, raftListener.Close())
	}
	m.node, err = raft.NewNode(raft.Config{
		ID: raft.NodeID(m.settings.Node), ClusterID: m.settings.Cluster, StateMachine: m.machine, Transport: m.network, Logger: m.log,
		Storage:         wal.New(filepath.Join(dir, raftDir), wal.Options{Logger: m.log}),
		Core:            raft.CoreConfig{HeartbeatInterval: heartbeatInterval, ElectionTimeout: electionTimeout},
		MaxCommandBytes: api.MaxRequestBytes, SnapshotEntries: snapshotEntries,
	})
	if err != nil {
		return nil, err
	}
	m.tasks, err = process.New(TasksDirectory(dir), opts.ShimProgram)
	if err != nil {
		return nil, err
	}
	m.peers = api.NewClient(m.credentials)
	m.agentOptions = agent.Options{
		Node: m.settings.Node, Host: m.settings.Host, Directory: AgentDirectory(dir), Runtime: m.tasks,
		Dial:     func(address string) agent.Managers { return api.NewClient(m.credentials, address) },
		Managers: m.settings.APIs(), Address: m.self.API, Role: cluster.RoleManager, Resources: cluster.Resources{CPUs: runtime.NumCPU()},
		StopOnExit: opts.StopOnExit, Publish: opts.Publish, Logger: m.log,
	}
	m.renewal = api.Renewal{
		Credentials: m.credentials, Directory: CredentialsDirectory(dir), Interval: opts.RenewInterval, Logger: m.log,
		Managers: func() []string { return []string{m.self.API} }, // it has the CA's key
	}
	return m, nil
}

// listen opens a port, or says what to do about it.
func listen(what, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		err = fmt.Errorf("%s address %s is in use by another process; stop that one, or found the cluster with other addresses", what, address)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		err = fmt.Errorf("%s address %s is not an address of this machine", what, address)
	case err != nil:
		err = fmt.Errorf("%s address %s: %w", what, address, err)
	}
	return l, err
}

// release gives back what Open has taken, without having run.
func (m *Manager) release() {
	if m.listener != nil {
		_ = m.listener.Close()
	}
	if m.network != nil {
		_ = m.network.Close()
	}
}

// Node returns the Raft node.
func (m *Manager) Node() *raft.Node { return m.node }

// Settings returns who the manager is.
func (m *Manager) Settings() Settings { return m.settings }

// Run works until ctx ends, which is no error, or the manager cannot go on. The data directory and the addresses are free afterwards.
func (m *Manager) Run(ctx context.Context) error {
	if err := m.node.Start(ctx); err != nil {
		m.release()
		if errors.Is(err, raft.ErrLocked) {
			err = fmt.Errorf("%w; is this manager running already?", err)
		}
		return fmt.Errorf("start manager %s: %w", m.settings.Node, err)
	}
	// Two lives: the agent's ends first. If it is to stop its tasks it has a last word for the managers, which may be for this one.
	working, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	serving, endServing := context.WithCancel(context.WithoutCancel(ctx))
	defer endServing()
	var agentRunning, running sync.WaitGroup
	// start runs a part until its life ends. A part that ends before is the end of all.
	start := func(group *sync.WaitGroup, life context.Context, what string, part func(context.Context) error) {
		group.Go(func() {
			if err := part(life); life.Err() == nil {
				fail(fmt.Errorf("%s: %w", what, cmp.Or(err, errEnded)))
			}
		})
	}
	stopObserving := m.node.OnLeaderChange(func(l raft.Leadership) {
		m.log.Info("leadership", "leader", l.Leader, "term", l.Term, "role", l.Role, "reason", l.Reason)
	})
	server := m.newServer()
	start(&running, serving, "API", func(context.Context) error {
		return server.ServeTLS(limitConnections(m.listener, maxConnections), "", "")
	})
	start(&running, serving, "control loop", func(ctx context.Context) error { return m.node.WhileLeader(ctx, m.lead) })
	start(&running, serving, "raft node", func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return nil
		case <-m.node.Done():
			return m.node.Err()
		}
	})
	start(&running, serving, "certificate", m.renewal.Run)
	start(&agentRunning, working, "agent", func(ctx context.Context) error {
		if err := m.enter(ctx); err != nil || ctx.Err() != nil {
			return err
		}
		worker, err := agent.New(m.agentOptions)
		if err != nil {
			return err
		}
		return worker.Run(ctx)
	})

	<-working.Done()
	close(m.closing) // watches end, or they would hold up the API
	agentRunning.Wait()
	endServing()
	patience, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if server.Shutdown(patience) != nil {
		_ = server.Close() // whatever is still under way has had its time
	}
	stopObserving()
	err := m.stopNode()
	running.Wait()
	m.peers.Close()
	if ctx.Err() == nil { // nobody asked it to stop
		err = errors.Join(context.Cause(working), err)
	}
	return err
}

func (m *Manager) stopNode() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	return m.node.Stop(ctx)
}

// errEnded is why a manager stops whose part has ended without an error.
var errEnded = errors.New("ended unexpectedly")
