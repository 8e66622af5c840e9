package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
	"github.com/steadyraft/raft/examples/orchestrator/publish"
	"github.com/steadyraft/raft/examples/orchestrator/runtime/docker"
	"github.com/steadyraft/raft/examples/orchestrator/worker"
)

// publishRetry is how soon a published port that was in use is tried again. Where all nodes share one address, this is how long it
// takes until another one of them holds the port of a node that is gone.
const publishRetry = 200 * time.Millisecond

// defaultPagePort is where the status page is, if nothing else is there.
const defaultPagePort = 2379

// nodeFlags say who a new node is, and how it runs.
type nodeFlags struct {
	name, host          string
	apiPort, raftPort   int
	pagePort            int
	pagePortSet         bool // it is not the default: then that it is in use is an error
	verbose, stopTasks  bool
	untilStandardInEnds bool // for a parent that wants nothing to be left over, however it ends
	runtime, dockerHost string
	onPartition         string
	partitionTimeout    time.Duration
	replaceAfter        time.Duration
	standby             bool // of join
}

func (f *nodeFlags) define(fs *flag.FlagSet, name string) {
	fs.StringVar(&f.name, "name", name, "name of the node, for ever; default of join: a random one")
	fs.StringVar(&f.host, "host", "127.0.0.1", "the node's own address; its tasks and published ports listen on it")
	fs.IntVar(&f.apiPort, "api-port", 2377, "a manager's port for agents and the command line")
	fs.IntVar(&f.raftPort, "raft-port", 2378, "a manager's port for the other managers")
	f.pagePort = defaultPagePort
	fs.Func("page-port", fmt.Sprintf("a manager's port for the status page, on its host if that is a loopback address, or else on 127.0.0.1; 0: none (default %d)", defaultPagePort),
		func(text string) (err error) {
			f.pagePortSet = true
			f.pagePort, err = strconv.Atoi(text)
			return err
		})
	fs.BoolVar(&f.verbose, "verbose", false, "log more")
	fs.BoolVar(&f.stopTasks, "stop-tasks", false, "stop the node's tasks at the end; otherwise they go on, and the next start takes them over")
	fs.StringVar(&f.runtime, "runtime", string(manager.RuntimeProcess), "what the node's tasks are: process, or docker for containers of its Docker Engine")
	fs.StringVar(&f.dockerHost, "docker-host", "", "where the Docker Engine listens; default: $DOCKER_HOST, or "+docker.DefaultHost)
	fs.StringVar(&f.onPartition, "on-partition", partitionKeep, "keep: tasks go on while no leader hears the node; stop: they are stopped after --partition-timeout")
	fs.DurationVar(&f.partitionTimeout, "partition-timeout", 10*time.Second, "with --on-partition stop: how long the tasks of a node that no leader hears go on")
	fs.DurationVar(&f.replaceAfter, "replace-after", time.Minute, "how long a manager has to be down before a standby gets its vote, while this one leads; 0: for ever")
	fs.BoolVar(&f.untilStandardInEnds, "until-stdin-ends", false, "end, with --stop-tasks, when standard input does")
}

const (
	partitionKeep = "keep"
	partitionStop = "stop"
)

// stopWhenCutOff is the time of --on-partition: 0 is never.
func (f *nodeFlags) stopWhenCutOff() (time.Duration, error) {
	switch {
	case f.onPartition == partitionKeep:
		return 0, nil
	case f.onPartition != partitionStop:
		return 0, usagef("--on-partition %q: want %s or %s", f.onPartition, partitionKeep, partitionStop)
	case f.partitionTimeout <= 0:
		return 0, usagef("--partition-timeout %v: want a positive duration", f.partitionTimeout)
	default:
		return f.partitionTimeout, nil
	}
}

// setRuntime says in a new node's settings what runs its tasks, and finds out whether that is there.
func (c *cli) setRuntime(f nodeFlags, s *manager.Settings) error {
	if s.Runtime = manager.RuntimeKind(f.runtime); s.Runtime == manager.RuntimeDocker {
		s.DockerHost = cmp.Or(f.dockerHost, os.Getenv("DOCKER_HOST"), docker.DefaultHost)
	} else {
		s.DockerHost = f.dockerHost // refused below
	}
	return manager.CheckRuntime(c.ctx, c.data, *s)
}

func (f *nodeFlags) member() api.Member {
	return api.Member{
		ID: cluster.NodeID(f.name), API: net.JoinHostPort(f.host, strconv.Itoa(f.apiPort)), Raft: net.JoinHostPort(f.host, strconv.Itoa(f.raftPort)),
		Standby: f.standby,
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
	settings, err := manager.LoadSettings(c.data)
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
	stopWhenCutOff, err := f.stopWhenCutOff()
	if err != nil {
		return err
	}

	run := func(ctx context.Context) error {
		c.printf("Worker %s is up: data %s\n", settings.Node, c.data)
		return worker.Run(ctx, c.data, worker.Options{Logger: logger, StopOnExit: stopOnExit, StopWhenCutOff: stopWhenCutOff, Publish: ports})
	}
	if settings.Role == cluster.RoleManager {
		page, err := f.listenPage(settings.Host)
		if err != nil {
			return err
		}
		m, err := manager.Open(c.data, manager.Options{Logger: logger, StopOnExit: stopOnExit, StopWhenCutOff: stopWhenCutOff, Publish: ports, Page: page,
			ReplaceVotersAfter: cmp.Or(f.replaceAfter, -1)})
		if err != nil {
			return err
		}
		c.printf("Manager %s is up: API %s, data %s. Try: %s --data %s node ls\n", settings.Node, settings.APIs()[0], c.data, program(), c.data)
		if page != nil {
			c.printf("Its status page is http://%s/; `%s --data %s page` prints the address that its buttons work with.\n", page.Addr(), program(), c.data)
		}
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
	err = run(ctx)
	cancel()
	<-beside
	return err
}

// listenPage opens the port of the status page; nil if there is none.
func (f *nodeFlags) listenPage(host string) (net.Listener, error) {
	if f.pagePort == 0 {
		return nil, nil
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		host = "127.0.0.1"
	}
	l, err := manager.ListenPage(net.JoinHostPort(host, strconv.Itoa(f.pagePort)))
	if err != nil && !f.pagePortSet {
		return nil, nil // another manager on this machine has it, most likely; nobody has asked for the page of this one
	}
	return l, err
}

// found makes the data directory of a cluster of one, with its CA.
func (c *cli) found(f nodeFlags) (manager.Settings, error) {
	s := manager.Settings{
		Cluster: "c-" + randomName(), Node: cluster.NodeID(f.name), Role: cluster.RoleManager, Host: f.host, Members: []api.Member{f.member()},
	}
	if _, err := f.stopWhenCutOff(); err != nil {
		return s, err
	}
	if err := c.setRuntime(f, &s); err != nil {
		return s, err
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
	checks := []check{
		{"name", f.name, string(s.Node)}, {"host", f.host, s.Host},
		{"runtime", f.runtime, cmp.Or(string(s.Runtime), string(manager.RuntimeProcess))}, {"docker-host", f.dockerHost, s.DockerHost},
	}
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
