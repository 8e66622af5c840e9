// Package worker is a node without a vote and without a log: an agent that runs tasks, and keeps its certificate fresh. It listens for
// nothing but the published ports and what its tasks listen for.
package worker

import (
	"context"
	"fmt"
	"log/slog"
	goruntime "runtime"
	"sync"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/agent"
	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
	"github.com/steadyraft/raft/examples/orchestrator/publish"
	"github.com/steadyraft/raft/examples/orchestrator/runtime/process"
)

// Options configures a worker.
type Options struct {
	Logger      *slog.Logger // default: none
	StopOnExit  bool         // stop the node's tasks when Run ends; default: leave them running for the next start
	Publish     publish.Options
	ShimProgram string // answers process.ShimCommand; default: the running executable

	Now           func() time.Time // the clock for certificates. Default: time.Now
	RenewInterval time.Duration    // how often it looks whether its certificate has to be renewed. Default: 1 minute
}

// Run runs the worker of a data directory that manager.Join has made, until ctx ends, which is no error, or it cannot go on: because it
// was removed, most often.
func Run(ctx context.Context, dir string, opts Options) error {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	settings, credentials, err := manager.Load(dir, opts.Now)
	if err != nil {
		return err
	}
	if settings.Role != cluster.RoleWorker {
		return fmt.Errorf("the node in %s is a %s", dir, settings.Role)
	}
	tasks, err := process.New(manager.TasksDirectory(dir), opts.ShimProgram)
	if err != nil {
		return err
	}
	a, err := agent.New(agent.Options{
		Node: settings.Node, Host: settings.Host, Directory: manager.AgentDirectory(dir), Runtime: tasks,
		Dial:     func(address string) agent.Managers { return api.NewClient(credentials, address) },
		Managers: settings.APIs(), Address: settings.Host, Role: cluster.RoleWorker, Resources: cluster.Resources{CPUs: goruntime.NumCPU()},
		StopOnExit: opts.StopOnExit, Publish: opts.Publish, Logger: opts.Logger,
	})
	if err != nil {
		return err
	}
	renewal := api.Renewal{
		Credentials: credentials, Directory: manager.CredentialsDirectory(dir), Managers: a.Managers, Interval: opts.RenewInterval, Logger: opts.Logger,
	}
	ctx, cancel := context.WithCancel(ctx)
	var renewing sync.WaitGroup
	renewing.Go(func() { _ = renewal.Run(ctx) }) // ends with ctx, and with nothing else
	err = a.Run(ctx)
	cancel()
	renewing.Wait()
	return err
}
