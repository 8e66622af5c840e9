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
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
	"github.com/steadyraft/raft/examples/orchestrator/publish"
)

// publishRetry is how soon a published port that was in use is tried again. Where all nodes share one address, this is how long it
// takes until another one of them holds the port of a node that is gone.
const publishRetry = 200 * time.Millisecond

type upFlags struct {
	name, host          string
	apiPort, raftPort   int
	verbose, stopTasks  bool
	untilStandardInEnds bool // for a parent that wants nothing to be left over, however it ends
}

func upCommand() command {
	var f upFlags
	return command{
		name: "up", summary: "Run a manager in the foreground; on an empty data directory it founds a cluster",
		flags: func(_ *cli, fs *flag.FlagSet) {
			fs.StringVar(&f.name, "name", "m1", "name of the node")
			fs.StringVar(&f.host, "host", "127.0.0.1", "the node's own address; its tasks and published ports listen on it")
			fs.IntVar(&f.apiPort, "api-port", 2377, "port for agents and the command line")
			fs.IntVar(&f.raftPort, "raft-port", 2378, "port for the other managers")
			fs.BoolVar(&f.verbose, "verbose", false, "log more")
			fs.BoolVar(&f.stopTasks, "stop-tasks", false, "stop the node's tasks at the end; otherwise they go on, and the next start takes them over")
			fs.BoolVar(&f.untilStandardInEnds, "until-stdin-ends", false, "end, with --stop-tasks, when standard input does")
		},
		run: func(c *cli, in *invocation) error { return c.up(in, f) },
	}
}

func (c *cli) up(in *invocation, f upFlags) error {
	if err := in.exactly(0, "no arguments"); err != nil {
		return err
	}
	settings, _, err := manager.Load(c.data)
	founded := errors.Is(err, manager.ErrNoManager)
	switch {
	case founded:
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

	level := slog.LevelInfo
	if f.verbose {
		level = slog.LevelDebug
	}
	m, err := manager.Open(c.data, manager.Options{
		Logger: slog.New(slog.NewTextHandler(c.errOut, &slog.HandlerOptions{Level: level})), StopOnExit: f.stopTasks || f.untilStandardInEnds,
		Publish: publish.Options{RetryInterval: publishRetry},
	})
	if err != nil {
		return err
	}
	if founded {
		c.printf("Cluster %s is founded.\n", settings.Cluster)
	}
	c.printf("Manager %s is up: API %s, data %s. Try: %s --data %s node ls\n", settings.Node, settings.APIs()[0], c.data, program(), c.data)

	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	if f.untilStandardInEnds {
		go func() {
			_, _ = io.Copy(io.Discard, c.in) // an error is an end too
			cancel()
		}()
	}
	return m.Run(ctx)
}

// found makes the data directory of a cluster of one.
func (c *cli) found(f upFlags) (manager.Settings, error) {
	s := manager.Settings{
		Cluster: "c-" + strings.ToLower(rand.Text()[:8]), Node: cluster.NodeID(f.name), Host: f.host,
		Members: []api.Member{{ID: cluster.NodeID(f.name), API: f.api(), Raft: f.raft()}},
	}
	ca, err := pki.NewCA(s.Cluster)
	if err != nil {
		return s, err
	}
	credentials, err := ca.Issue(s.Node, cluster.RoleManager, f.host)
	if err != nil {
		return s, err
	}
	if err := ca.Save(filepath.Join(c.data, "ca")); err != nil { // who joins later is certified by it
		return s, err
	}
	return s, manager.Found(c.ctx, c.data, s, credentials)
}

func (f *upFlags) api() string  { return net.JoinHostPort(f.host, strconv.Itoa(f.apiPort)) }
func (f *upFlags) raft() string { return net.JoinHostPort(f.host, strconv.Itoa(f.raftPort)) }

// fits refuses flags that contradict what a used data directory says: it would be a surprise if they were ignored.
func (f *upFlags) fits(set map[string]bool, dir string, s manager.Settings) error {
	var self api.Member
	for _, m := range s.Members {
		if m.ID == s.Node {
			self = m
		}
	}
	_, apiPort, _ := net.SplitHostPort(self.API) // checked when they were loaded
	_, raftPort, _ := net.SplitHostPort(self.Raft)
	var errs []error
	for _, flag := range []struct{ name, given, have string }{
		{"name", f.name, string(s.Node)}, {"host", f.host, s.Host},
		{"api-port", strconv.Itoa(f.apiPort), apiPort}, {"raft-port", strconv.Itoa(f.raftPort), raftPort},
	} {
		if set[flag.name] && flag.given != flag.have {
			errs = append(errs, fmt.Errorf("--%s is %s there, not %s", flag.name, flag.have, flag.given))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("data directory %s belongs to manager %s of cluster %s:\n%w\nStart it without these flags, or name an empty directory with --data", dir, s.Node, s.Cluster, err)
	}
	return nil
}
