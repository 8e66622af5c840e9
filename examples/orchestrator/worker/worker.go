// Package worker is a node without a vote and without a log: an agent that runs tasks, and keeps its certificate fresh. It listens for
// nothing but the published ports and what its tasks listen for.
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/agent"
	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
	"github.com/steadyraft/raft/examples/orchestrator/publish"
)

// Options configures a worker.
type Options struct {
	Logger     *slog.Logger // default: none
	StopOnExit bool         // stop the node's tasks when Run ends; default: leave them running for the next start
	// StopWhenCutOff is after how long without a leader that hears the node its tasks are stopped. Default: never, they go on.
	StopWhenCutOff time.Duration

	Publish     publish.Options
	ShimProgram string // answers process.ShimCommand; default: the running executable

	Now           func() time.Time // the clock for certificates. Default: time.Now
	RenewInterval time.Duration    // how often it looks whether its certificate has to be renewed. Default: 1 minute
}

// Run runs the worker of a data directory that manager.Join has made, until ctx ends, which is no error, or it cannot go on: because it
// was removed, most often.
func Run(ctx context.Context, dir string, opts Options) (err error) {
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
	tasks, closeTasks, err := manager.OpenRuntime(dir, settings, opts.ShimProgram, opts.Logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeTasks()) }()
	renewal := api.NewRenewal()
	renewal.Credentials, renewal.Directory, renewal.Interval, renewal.Logger = credentials, manager.CredentialsDirectory(dir), opts.RenewInterval, opts.Logger
	a, err := agent.New(agent.Options{
		Node: settings.Node, Host: settings.Host, Directory: manager.AgentDirectory(dir), Runtime: tasks,
		Dial:     func(address string) agent.Managers { return api.NewClient(credentials, address) },
		Managers: settings.APIs(), Address: settings.Host, Role: cluster.RoleWorker, Resources: agent.MachineResources(),
		CA: func() agent.CAReport {
			return agent.CAReport{Trusts: credentials.Trusts(), Issuer: credentials.Issuer()}
		},
		Trust: func(t agent.Trust) {
			if err := credentials.SetTrust(manager.CredentialsDirectory(dir), t.Bundle); err != nil {
				opts.Logger.Error("what is to be believed about certificates could not be followed", "error", err)
				return
			}
			renewal.SignedBy(t.Signing)
		},
		StopOnExit: opts.StopOnExit, StopWhenCutOff: opts.StopWhenCutOff, Publish: opts.Publish, Logger: opts.Logger,
	})
	if err != nil {
		return err
	}
	renewal.Managers = a.Managers
	ctx, cancel := context.WithCancel(ctx)
	var renewing sync.WaitGroup
	renewing.Go(func() { _ = renewal.Run(ctx) }) // ends with ctx, and with nothing else
	err = a.Run(ctx)
	cancel()
	renewing.Wait()
	return err
}
