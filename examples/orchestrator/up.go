package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
	"github.com/steadyraft/raft/examples/orchestrator/publish"
	"github.com/steadyraft/raft/examples/orchestrator/worker"
)

// publishRetry is how soon a published port that was in use is tried again. Where all nodes share one address, this is how long it
// takes until another one of them holds the port of a node that is gone.
const publishRetry = 200 * time.Millisecond

// nodeFlags say who a new node is, and how it runs.
type nodeFlags struct {
	name, host          string
	apiPort, raftPort   int
	verbose, stopTasks  bool
	untilStandardInEnds bool // for a parent that wants nothing to be left over, however it ends
}

func (f *nodeFlags) define(fs *flag.FlagSet, name string) {
	fs.StringVar(&f.name, "name", name, "name of the node, for ever; default of join: a random one")
	fs.StringVar(&f.host, "host", "127.0.0.1", "the node's own address; its tasks and published ports listen on it")
	fs.IntVar(&f.apiPort, "api-port", 2377, "a manager's port for agents and the command line")
	fs.IntVar(&f.raftPort, "raft-port", 2378, "a manager's port for the other managers")
	fs.BoolVar(&f.verbose, "verbose", false, "log more")
	fs.BoolVar(&f.stopTasks, "stop-tasks", false, "stop the node's tasks at the end; otherwise they go on, and the next start takes them over")
	fs.BoolVar(&f.untilStandardInEnds, "until-stdin-ends", false, "end, with --stop-tasks, when standard input does")
}

func (f *nodeFlags) member() api.Member {
	return api.Member{
		ID: cluster.NodeID(f.name), API: net.JoinHostPort(f.host, strconv.Itoa(f.apiPort)), Raft: net.JoinHostPort(f.host, strconv.Itoa(f.raftPort)),
	}
}

func initCommand() command {
	var f nodeFlags
	return command{
		name: "init", summary: "Found a cluster: make its CA and join tokens, and run its first manager in the foreground",
		flags: func(_ *cli, fs *flag.FlagSet) { f.define(fs, "m1") },
		run: func(c *cli, in *invocation) error {
			if err := in.exactly(0, "no arguments"); err != nil {
				return err
			}
			settings, err := c.found(f)
			if err != nil {
				return err
			}
			return c.runNode(settings, f, c.printTokens)
		},
	}
}

func upCommand() command {
	var f nodeFlags
	return command{
		name: "up", summary: "Run the node of a data directory in the foreground; an empty one becomes a cluster of one",
		flags: func(_ *cli, fs *flag.FlagSet) { f.define(fs, "m1") },
		run:   func(c *cli, in *invocation) error { return c.up(in, f) },
	}
}

func (c *cli) up(in *invocation, f nodeFlags) error {
	if err := in.exactly(0, "no arguments"); err != nil {
		return err
	}
	settings, _, err := manager.Load(c.data, nil)
	switch {
	case errors.Is(err, manager.ErrNoNode):
		if settings, err = c.found(f); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		if err := f.fits(in.set, c.data, settings); err != nil {
			return err
		}
	}
	return c.runNode(settings, f, nil)
}

// runNode runs the node of the data directory until it is told to end. begun, if not nil, is called beside it.
func (c *cli) runNode(settings manager.Settings, f nodeFlags, begun func(context.Context)) error {
	level := slog.LevelInfo
	if f.verbose {
		level = slog.LevelDebug
	}
	logger := slog.New(slog.NewTextHandler(c.errOut, &slog.HandlerOptions{Level: level}))
	ports := publish.Options{RetryInterval: publishRetry}
	stopOnExit := f.stopTasks || f.untilStandardInEnds

	run := func(ctx context.Context) error {
		c.printf("Worker %s is up: data %s\n", settings.Node, c.data)
		return worker.Run(ctx, c.data, worker.Options{Logger: logger, StopOnExit: stopOnExit, Publish: ports})
	}
	if settings.Role == cluster.RoleManager {
		m, err := manager.Open(c.data, manager.Options{Logger: logger, StopOnExit: stopOnExit, Publish: ports})
		if err != nil {
			return err
		}
		c.printf("Manager %s is up: API %s, data %s. Try: %s --data %s node ls\n", settings.Node, settings.APIs()[0], c.data, program(), c.data)
		run = m.Run
	}

	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	if f.untilStandardInEnds {
		go func() {
			_, _ = io.Copy(io.Discard, c.in) // an error is an end too
			cancel()
		}()
	}
	beside := make(chan struct{})
	go func() {
		defer close(beside)
		if begun != nil {
			begun(ctx)
		}
	}()
	err := run(ctx)
	cancel()
	<-beside
	return err
}

// found makes the data directory of a cluster of one, with its CA.
func (c *cli) found(f nodeFlags) (manager.Settings, error) {
	s := manager.Settings{
		Cluster: "c-" + randomName(), Node: cluster.NodeID(f.name), Role: cluster.RoleManager, Host: f.host, Members: []api.Member{f.member()},
	}
	ca, err := pki.NewCA(s.Cluster)
	if err != nil {
		return s, err
	}
	if err := manager.Found(c.ctx, c.data, s, ca); err != nil {
		return s, err
	}
	c.printf("Cluster %s is founded.\n", s.Cluster)
	return s, nil
}

func randomName() string { return strings.ToLower(rand.Text()[:8]) }

// fits refuses flags that contradict what a used data directory says: it would be a surprise if they were ignored.
func (f *nodeFlags) fits(set map[string]bool, dir string, s manager.Settings) error {
	type check struct{ name, given, have string }
	checks := []check{{"name", f.name, string(s.Node)}, {"host", f.host, s.Host}}
	for _, m := range s.Members {
		if m.ID == s.Node {
			_, apiPort, _ := net.SplitHostPort(m.API) // checked when they were loaded
			_, raftPort, _ := net.SplitHostPort(m.Raft)
			checks = append(checks, check{"api-port", strconv.Itoa(f.apiPort), apiPort}, check{"raft-port", strconv.Itoa(f.raftPort), raftPort})
		}
	}
	var errs []error
	for _, flag := range checks {
		if set[flag.name] && flag.given != flag.have {
			errs = append(errs, fmt.Errorf("--%s is %s there, not %s", flag.name, flag.have, flag.given))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("data directory %s belongs to %s %s of cluster %s:\n%w\nStart it without these flags, or name an empty directory with --data", dir, s.Role, s.Node, s.Cluster, err)
	}
	return nil
}
