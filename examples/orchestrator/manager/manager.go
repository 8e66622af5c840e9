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
	// StopWhenCutOff is after how long without a leader that hears the node its tasks are stopped. Default: never, they go on.
	StopWhenCutOff time.Duration
	// Publish adjusts the proxies of the published ports; Host and Logger are filled in.
	Publish publish.Options
	// Page is where the status page is served, as ListenPage opens it; nil: nowhere. The manager closes it, also when Open returns an error.
	Page net.Listener
	// ShimProgram answers process.ShimCommand; default: the running executable.
	ShimProgram string

	Now                 func() time.Time // the clock for certificates. Default: time.Now
	CertificateLifetime time.Duration    // of the certificates that this manager signs. Default: pki.NodeLifetime
	RenewInterval       time.Duration    // how often it looks whether its own has to be renewed. Default: 1 minute

	// ReplaceVotersAfter is how long a manager with a vote has to be down before the leader gives its vote to a standby. Default: 1 minute.
	// Negative: never.
	ReplaceVotersAfter time.Duration
}

// Manager is one manager. Make it with Open, run it with Run, once.
type Manager struct {
	dir         string
	settings    Settings
	self        api.Member
	credentials *pki.Credentials
	authorities authorities
	lifetime    time.Duration // of the certificates that it signs
	renewal     *api.Renewal
	log         *slog.Logger

	replaceVotersAfter time.Duration

	machine  *cluster.Machine
	node     *raft.Node
	network  *tcp.Transport
	listener net.Listener

	pageListener net.Listener // nil: there is no status page

	peers *api.Client // to other managers; used with Exchange only

	agentOptions agent.Options
	closeTasks   func() error // of the runtime; the tasks go on

	office   atomic.Pointer[office] // nil while this manager does not lead
	watchers watchers
	outputs  outputs
	closing  chan struct{} // closed when Run ends
	problems problems
}

// Open takes hold of a manager's data directory, which Found or Join has made, and of the manager's addresses. Nothing runs yet.
func Open(dir string, opts Options) (_ *Manager, err error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Manager{dir: dir, log: opts.Logger, machine: cluster.NewMachine(), pageListener: opts.Page, closing: make(chan struct{})}
	m.replaceVotersAfter = cmp.Or(opts.ReplaceVotersAfter, defaultReplaceVotersAfter)
	defer func() {
		if err != nil {
			m.release()
		}
	}()
	if err := renewLapsed(dir, opts.Now, opts.CertificateLifetime); err != nil {
		return nil, err
	}
	if m.settings, m.credentials, err = Load(dir, opts.Now); err != nil {
		return nil, err
	}
	if m.settings.Role != cluster.RoleManager {
		return nil, fmt.Errorf("the node in %s is a %s", dir, m.settings.Role)
	}
	m.lifetime = opts.CertificateLifetime
	if m.lifetime <= 0 {
		m.lifetime = pki.NodeLifetime
	}
	if err := m.loadAuthorities(); err != nil {
		return nil, err
	}
	m.credentials.Refuse(func(id pki.Identity) error { return m.notRemoved(id.Node) })
	if m.self, err = m.settings.self(); err != nil {
		return nil, err
	}
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
	tasks, closeTasks, err := OpenRuntime(dir, m.settings, opts.ShimProgram, m.log)
	if err != nil {
		return nil, err
	}
	m.closeTasks = closeTasks
	m.peers = api.NewClient(m.credentials)
	m.agentOptions = agent.Options{
		Node: m.settings.Node, Host: m.settings.Host, Directory: AgentDirectory(dir), Runtime: tasks,
		Dial:     func(address string) agent.Managers { return api.NewClient(m.credentials, address) },
		Managers: m.settings.APIs(), Address: m.self.API, Role: cluster.RoleManager, Resources: agent.MachineResources(),
		StopOnExit: opts.StopOnExit, StopWhenCutOff: opts.StopWhenCutOff, Publish: opts.Publish, Logger: m.log, CA: m.caReport,
	}
	m.renewal = api.NewRenewal()
	m.renewal.Credentials, m.renewal.Directory, m.renewal.Interval, m.renewal.Logger = m.credentials, CredentialsDirectory(dir), opts.RenewInterval, m.log
	m.renewal.Managers = func() []string { return []string{m.self.API} } // it has the CA's key
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
	if m.closeTasks != nil {
		_ = m.closeTasks()
	}
	if m.pageListener != nil {
		_ = m.pageListener.Close()
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
	start(&running, serving, "CA", m.followCA)
	if m.pageListener != nil {
		page := m.newPage()
		start(&running, serving, "status page", func(ctx context.Context) error { return page.run(ctx, m.pageListener) })
	}
	start(&agentRunning, working, "agent", func(ctx context.Context) error {
		if err := errors.Join(m.enter(ctx), m.removeLost(ctx)); err != nil || ctx.Err() != nil {
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
	err = errors.Join(err, m.closeTasks())
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
