package main

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/compose"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
	"github.com/steadyraft/raft/examples/orchestrator/runtime/docker"
)

//go:embed demo.yaml
var demoFile []byte

const (
	demoTimeout = 90 * time.Second // of the whole demo, without the cleaning up
	stepTimeout = 20 * time.Second
	firstPort   = 8080                 // to publish, if it is free; the managers' own follow
	quickLook   = 5 * time.Millisecond // how often it looks where a time is measured
	pauseToRead = 1500 * time.Millisecond
)

func demoCommand() command {
	var d demo
	return command{
		name: "demo", summary: "Show it all with three managers on this machine: failover, self-healing, a port that always answers",
		flags: func(_ *cli, fs *flag.FlagSet) {
			fs.BoolVar(&d.oneAddress, "one-address", goruntime.GOOS != "linux", "run all managers on 127.0.0.1 instead of 127.0.0.11 to .13")
			fs.Func("runtime", "what the tasks are: process (default), or docker for containers of this machine's Docker Engine", func(s string) error {
				d.runtime = manager.RuntimeKind(s)
				return nil
			})
			fs.StringVar(&d.dockerHost, "docker-host", "", "where the Docker Engine listens; default: $DOCKER_HOST, or "+docker.DefaultHost)
			fs.BoolVar(&d.keep, "keep", false, "leave the cluster running at the end, until Ctrl-C")
		},
		run: func(c *cli, in *invocation) error {
			if err := in.exactly(0, "no arguments"); err != nil {
				return err
			}
			return d.run(c)
		},
	}
}

// demo is one run of the demonstration. Everything that it starts is a process of its own, ended when it is, however that happens:
// the managers watch their standard input, which is a pipe from here.
type demo struct {
	oneAddress, keep bool
	runtime          manager.RuntimeKind
	dockerHost       string
	image            string            // of the containers; empty if there are none
	imageLabels      map[string]string // for tests

	screen   *screen
	dir      string
	program  string
	settings manager.Settings // of all managers, but for who each is
	members  []api.Member
	managers map[cluster.NodeID]*demoManager
	creds    *pki.Credentials
	client   *api.Client
	port     int
	service  cluster.ServiceID
	prober   *prober
	endLive  func() // nil: there is no live line
	measured []measurement
}

type demoManager struct {
	api.Member
	host  string
	dir   string
	cmd   *exec.Cmd
	stdin io.Closer
	ended chan struct{}
	err   error // how the process ended; valid once ended is closed
}

func (d *demo) run(c *cli) (err error) {
	ctx, cancel := context.WithTimeoutCause(c.ctx, d.patience(demoTimeout), fmt.Errorf("the demo did not end within %v", d.patience(demoTimeout)))
	defer cancel()
	d.screen = newScreen(c.out)
	defer func() {
		if c.ctx.Err() != nil {
			err = errors.New("interrupted")
		} else if err != nil && ctx.Err() != nil {
			err = errors.Join(err, context.Cause(ctx))
		}
		d.stopLive()
		if err != nil {
			d.screen.say("failed", "%v", err)
			d.showLogs()
		}
		err = errors.Join(err, d.cleanUp())
	}()

	for _, step := range []func(context.Context) error{
		d.start, d.deploy, d.killLeader, d.bringBack, d.crash, d.changeLeader, d.scale, d.update, d.autoscale, d.events,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if err := d.summary(); err != nil {
		return err
	}
	if d.keep {
		d.screen.say("", "The cluster goes on. In another terminal:  %s --data %s service ps demo_web", d.program, d.managers["m1"].dir)
		d.screen.say("", "Ctrl-C ends it.")
		<-c.ctx.Done()
	}
	return nil
}

// start founds a cluster of one and has two managers join it.
func (d *demo) start(ctx context.Context) (err error) {
	if d.program, err = os.Executable(); err != nil {
		return err
	}
	if d.dir, err = os.MkdirTemp("", "orchestrator-demo-"); err != nil {
		return err
	}
	hosts := []string{"127.0.0.11", "127.0.0.12", "127.0.0.13"}
	if d.oneAddress {
		hosts = []string{"127.0.0.1", "127.0.0.1", "127.0.0.1"}
	}
	if d.members, d.port, err = choosePorts(hosts, firstPort); err != nil {
		return err
	}
	d.settings.Cluster = "demo-" + randomName() // several demos may share an engine
	if err := d.prepareRuntime(ctx); err != nil {
		return err
	}
	d.screen.step("A cluster of one, and two managers that join it with a token; each is a process with its own certificate, log and containers")
	ca, err := pki.NewCA(d.settings.Cluster)
	if err != nil {
		return err
	}
	d.managers = make(map[cluster.NodeID]*demoManager)
	var addresses []string
	for i, member := range d.members {
		d.managers[member.ID] = &demoManager{Member: member, host: hosts[i], dir: filepath.Join(d.dir, string(member.ID))}
		addresses = append(addresses, member.API)
	}
	first := d.managers["m1"]
	settings := d.settings
	settings.Node, settings.Host, settings.Members = first.ID, first.host, d.members[:1]
	if err := manager.Found(ctx, first.dir, settings, ca); err != nil {
		return err
	}
	if _, d.creds, err = manager.Load(first.dir, nil); err != nil {
		return err
	}
	d.client = api.NewClient(d.creds, addresses...)
	began := time.Now()
	if err := d.launch(first); err != nil {
		return err
	}
	d.introduce(first)
	_, term, err := d.awaitLeader(ctx, "")
	if err != nil {
		return err
	}
	d.measure("first leader after the start", time.Since(began), 0, 0)
	d.screen.say("ok", "%s leads in term %d, %s after the start", first.ID, term, seconds(time.Since(began)))
	d.sayPage(ctx, first)

	token := pki.NewToken(ca.Certificate())
	if _, err := d.client.Do(ctx, cluster.SetToken{Role: cluster.RoleManager, SecretHash: pki.SecretHash(token.Secret)}); err != nil {
		return err
	}
	for _, member := range d.members[1:] {
		if err := d.join(ctx, d.managers[member.ID], token, first.API); err != nil {
			return err
		}
	}
	return d.awaitReady(ctx)
}

func (d *demo) introduce(m *demoManager) {
	d.screen.say("", "%s  pid %-7d API %-17s raft %s", m.ID, m.cmd.Process.Pid, m.API, m.Raft)
}

// join has a manager join, and waits until it has a vote and its node is ready.
func (d *demo) join(ctx context.Context, m *demoManager, token pki.Token, address string) error {
	_, apiPort, errAPI := net.SplitHostPort(m.API)
	_, raftPort, errRaft := net.SplitHostPort(m.Raft)
	if err := errors.Join(errAPI, errRaft); err != nil {
		return err
	}
	tokenFile := m.dir + ".token" // not an argument: everybody on the machine could read it there for as long as the node runs
	if err := os.WriteFile(tokenFile, []byte(token.String()), 0o600); err != nil {
		return err
	}
	defer os.Remove(tokenFile)
	began := time.Now()
	command := []string{"join", "--token-file", tokenFile, "--name", string(m.ID), "--host", m.host, "--api-port", apiPort, "--raft-port", raftPort, address}
	if d.runtime != "" {
		command = append(command, "--runtime", string(d.runtime), "--docker-host", d.settings.DockerHost)
	}
	err := d.launch(m, command...)
	if err != nil {
		return err
	}
	d.introduce(m)
	voter := func(a api.Member) bool { return a.ID == m.ID && !a.Standby }
	if err := await(ctx, d.client, stepTimeout, func(v api.View) bool {
		n := v.State.Nodes[m.ID]
		return n != nil && n.Status == cluster.NodeReady && slices.ContainsFunc(v.Members, voter)
	}); err != nil {
		return err
	}
	d.measure(string(m.ID)+" joins as a manager", time.Since(began), 700*time.Millisecond, 700*time.Millisecond)
	d.screen.say("ok", "%s has a certificate, the log and a vote, and its node is ready, %s after the start", m.ID, seconds(time.Since(began)))
	return nil
}

// awaitReady waits until the leader has heard every node.
func (d *demo) awaitReady(ctx context.Context) error {
	return await(ctx, d.client, stepTimeout, func(v api.View) bool {
		ready := 0
		for _, n := range v.State.Nodes {
			if n.Status == cluster.NodeReady {
				ready++
			}
		}
		return ready == len(d.members)
	})
}

// choosePorts finds ports that are free now, from first on: one that all nodes can publish, and two for each manager. They are not left to
// the system, which would choose from those that it also gives to outgoing connections: one of them could be taken before it is used.
func choosePorts(hosts []string, first int) (members []api.Member, published int, err error) {
	var held []net.Listener
	defer func() {
		for _, l := range held {
			_ = l.Close()
		}
	}()
	next := first
	take := func(hosts ...string) (port int, err error) {
		for ; next < first+1000; next++ {
			var listening []net.Listener
			for _, host := range hosts {
				var l net.Listener
				if l, err = net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(next))); err != nil {
					break
				}
				listening = append(listening, l)
			}
			held = append(held, listening...)
			if len(listening) == len(hosts) {
				next++
				return next - 1, nil
			}
			if errors.Is(err, syscall.EADDRNOTAVAIL) {
				return 0, fmt.Errorf("%w; on a system that has only 127.0.0.1 use demo --one-address", err)
			}
		}
		return 0, fmt.Errorf("no port from %d on is free: %w", first, err)
	}
	if published, err = take(slices.Compact(slices.Clone(hosts))...); err != nil {
		return nil, 0, err
	}
	for i, host := range hosts {
		apiPort, errAPI := take(host)
		raftPort, errRaft := take(host)
		if err := errors.Join(errAPI, errRaft); err != nil {
			return nil, 0, err
		}
		members = append(members, api.Member{
			ID:  cluster.NodeID(fmt.Sprintf("m%d", i+1)),
			API: net.JoinHostPort(host, strconv.Itoa(apiPort)), Raft: net.JoinHostPort(host, strconv.Itoa(raftPort)),
		})
	}
	return members, published, nil
}

// launch starts a node's process: with `up`, or with the command given.
func (d *demo) launch(m *demoManager, command ...string) error {
	if len(command) == 0 {
		command = []string{"up"}
	}
	logFile, err := os.OpenFile(m.dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	cmd := exec.Command(d.program, append(command, "--data", m.dir, "--until-stdin-ends")...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the demo alone
	if m.stdin, err = cmd.StdinPipe(); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start manager %s: %w", m.ID, err)
	}
	m.cmd, m.ended = cmd, make(chan struct{})
	go func() {
		m.err = cmd.Wait()
		close(m.ended)
	}()
	return nil
}

// alive returns the managers that run.
func (d *demo) alive() (alive []*demoManager) {
	for _, member := range d.members {
		m := d.managers[member.ID]
		select {
		case <-m.ended:
		default:
			alive = append(alive, m)
		}
	}
	return alive
}

// awaitLeader waits until a manager other than the one given leads and its control loop has begun.
func (d *demo) awaitLeader(ctx context.Context, not cluster.NodeID) (cluster.NodeID, raft.Term, error) {
	clients := map[cluster.NodeID]*api.Client{}
	for _, m := range d.alive() {
		clients[m.ID] = api.NewClient(d.creds, m.API)
		defer clients[m.ID].Close()
	}
	ctx, cancel := context.WithTimeoutCause(ctx, stepTimeout, errors.New("no manager was elected"))
	defer cancel()
	for {
		for id, client := range clients {
			attempt, cancel := context.WithTimeout(ctx, time.Second)
			status, err := client.Status(attempt)
			cancel()
			if err == nil && id != not && status.Leader == id && status.Epoch == status.Term {
				return id, status.Term, nil
			}
		}
		select {
		case <-ctx.Done():
			return "", 0, context.Cause(ctx)
		case <-time.After(quickLook):
		}
	}
}

// deploy creates the service of the Compose file.
func (d *demo) deploy(ctx context.Context) error {
	d.screen.step("A service with three replicas and a published port, from a Compose file")
	file := demoFile
	if d.image != "" {
		file = demoDockerFile
	}
	for line := range strings.Lines(string(file)) {
		d.screen.say("", "  %s", strings.TrimRight(line, "\n"))
	}
	project, err := compose.Parse(ctx, "demo.yaml", file, map[string]string{"ORCHESTRATOR": d.program, "IMAGE": d.image, "PORT": strconv.Itoa(d.port)})
	if err != nil {
		return err
	}
	began := time.Now()
	services, err := deploy(ctx, d.client, project, func(string, string) {})
	if err != nil {
		return err
	}
	d.service = services[0].id
	v, err := d.awaitServing(ctx, 3, nil)
	if err != nil {
		return err
	}
	d.measure("3/3 running after create", time.Since(began), d.forTasks(time.Second), 5100*time.Millisecond)
	d.screen.say("ok", "3/3 run, %s after create: %s", seconds(time.Since(began)), d.places(v))
	d.prober = startProber(d.port)
	d.setTargets()
	d.screen.say("", "From now on somebody keeps asking %s", strings.Join(d.prober.urls(), ", "))
	d.showLive(ctx)
	return d.pauseToRead(ctx)
}

// awaitServing waits until n tasks serve, none of them on a node that is down, and good agrees.
func (d *demo) awaitServing(ctx context.Context, n int, good func(api.View) bool) (last api.View, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, d.patience(stepTimeout), fmt.Errorf("the service did not get to %d/%d within %v", n, n, d.patience(stepTimeout)))
	defer cancel()
	for {
		v, err := d.client.State(ctx)
		if ctx.Err() != nil {
			return last, context.Cause(ctx)
		} else if err != nil {
			return last, err
		}
		last = v
		if serving(v.State, d.service) == n && (good == nil || good(v)) {
			return v, nil
		}
		select {
		case <-ctx.Done():
			return last, context.Cause(ctx)
		case <-time.After(quickLook):
		}
	}
}

// places says what runs where.
func (d *demo) places(v api.View) string {
	var out []string
	for _, t := range v.State.TasksOf(d.service) {
		if t.Serving() {
			out = append(out, fmt.Sprintf("%s on %s", t.Name(), t.Node))
		}
	}
	return strings.Join(out, ", ")
}

// setTargets tells the prober which nodes a client would know.
func (d *demo) setTargets() {
	var hosts []string
	for _, m := range d.alive() {
		hosts = append(hosts, m.host)
	}
	d.prober.setHosts(hosts)
}

// killLeader kills the leader's process, as the kernel does when memory runs out.
func (d *demo) killLeader(ctx context.Context) error {
	v, err := d.client.State(ctx)
	if err != nil {
		return err
	}
	killed := d.managers[v.Leader]
	if killed == nil {
		return fmt.Errorf("the leader is %q, which is no manager of this demo", v.Leader)
	}
	var onIt []string
	for _, t := range v.State.TasksOn(killed.ID) {
		onIt = append(onIt, t.Name())
	}
	d.screen.step(fmt.Sprintf("kill -9 of the leader, %s (pid %d)", killed.ID, killed.cmd.Process.Pid))
	began := time.Now()
	if err := killed.cmd.Process.Kill(); err != nil {
		return err
	}
	<-killed.ended
	d.setTargets()
	leader, term, err := d.awaitLeader(ctx, killed.ID)
	if err != nil {
		return err
	}
	d.measure("leader killed → new leader schedules", time.Since(began), 300*time.Millisecond, 16*time.Second)
	d.screen.say("ok", "%s leads term %d, %s after the kill", leader, term, seconds(time.Since(began)))
	d.screen.say("", "Its container (%s) lives on, but nobody can vouch for it: the node gets its full grace period.", strings.Join(onIt, ", "))

	down := false
	v, err = d.awaitServing(ctx, 3, func(v api.View) bool {
		if n := v.State.Nodes[killed.ID]; !down && n != nil && n.Status == cluster.NodeDown {
			down = true
			d.measure("node lost → marked down", time.Since(began), 4*time.Second, 45*time.Second)
			d.screen.say("ok", "%s is marked down, %s after the kill; its replica is replaced", killed.ID, seconds(time.Since(began)))
		}
		return down
	})
	if err != nil {
		return err
	}
	d.measure("node lost → 3/3 on the survivors", time.Since(began), 5*time.Second, 52*time.Second)
	d.screen.say("ok", "3/3 run again, %s after the kill: %s", seconds(time.Since(began)), d.places(v))
	return d.pauseToRead(ctx)
}

// bringBack starts the killed manager again: it catches up, and its agent stops the containers that were replaced meanwhile.
func (d *demo) bringBack(ctx context.Context) error {
	var gone *demoManager
	for _, member := range d.members {
		m := d.managers[member.ID]
		select {
		case <-m.ended:
			gone = m
		default:
		}
	}
	if gone == nil {
		return errors.New("no manager is gone that could come back")
	}
	d.screen.step(fmt.Sprintf("%s comes back", gone.ID))
	orphans, err := d.running(ctx, gone)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := d.launch(gone); err != nil {
		return err
	}
	err = await(ctx, d.client, stepTimeout, func(v api.View) bool { return v.State.Nodes[gone.ID].Status == cluster.NodeReady })
	if err != nil {
		return err
	}
	d.measure("manager back in the cluster", time.Since(began), 700*time.Millisecond, 0)
	d.screen.say("ok", "%s is a ready node again after %s; its log and its certificate were on disk", gone.ID, seconds(time.Since(began)))
	d.setTargets()
	for len(orphans) > 0 {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s has not stopped the containers that were replaced: %v", gone.ID, orphans)
		case <-time.After(lookInterval):
		}
		now, err := d.running(ctx, gone)
		if err != nil {
			return err
		}
		var left []int
		for _, pid := range orphans {
			for _, other := range now {
				if pid == other {
					left = append(left, pid)
				}
			}
		}
		if len(left) == 0 {
			d.screen.say("ok", "the container that had gone on there (pid %v) was replaced meanwhile, so its agent has stopped it", orphans)
		}
		orphans = left
	}
	return nil
}

// crash kills one container.
func (d *demo) crash(ctx context.Context) error {
	v, err := d.client.State(ctx)
	if err != nil {
		return err
	}
	var victim *cluster.Task
	for _, t := range v.State.TasksOf(d.service) {
		if t.Serving() {
			victim = t
		}
	}
	if victim == nil || len(victim.Endpoints) == 0 {
		return errors.New("no container serves that could crash")
	}
	kill := func() error { return d.killContainer(ctx, victim) }
	what := fmt.Sprintf("kill -9 of a container: %s on %s", victim.Name(), victim.Node)
	if d.image == "" { // its process is one of this machine
		pid, err := whoIs(ctx, victim.Endpoints[0].Address)
		if err != nil {
			return err
		}
		kill = func() error { return syscall.Kill(pid, syscall.SIGKILL) }
		what += fmt.Sprintf(" (pid %d)", pid)
	}
	d.screen.step(what)
	began := time.Now()
	if err := kill(); err != nil {
		return err
	}
	_, err = d.awaitServing(ctx, 3, func(v api.View) bool {
		t := v.State.Tasks[victim.ID]
		return t != nil && t.Attempts > victim.Attempts
	})
	if err != nil {
		return err
	}
	d.measure("container crashed → 3/3 again", time.Since(began), d.forTasks(time.Second), 0)
	d.screen.say("ok", "its node has started it again from its definition; 3/3 after %s, the first back-off of 0.1 s included", seconds(time.Since(began)))
	return d.pauseToRead(ctx)
}

// whoIs asks a container for its process ID, until it listens.
func whoIs(ctx context.Context, address string) (pid int, err error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	for {
		answer, err := get(ctx, "http://"+address)
		if err == nil {
			if _, err := fmt.Sscanf(answer, "%d", &pid); err != nil || pid <= 1 {
				return 0, fmt.Errorf("the container at %s answers %q instead of its pid", address, answer)
			}
			return pid, nil
		}
		select {
		case <-ctx.Done():
			return 0, err
		case <-time.After(lookInterval):
		}
	}
}

// changeLeader hands leadership over without a failure.
func (d *demo) changeLeader(ctx context.Context) error {
	d.screen.step("leader change: leadership is handed over, nothing has failed")
	began := time.Now()
	answer, err := d.client.ChangeLeader(ctx, "")
	if err != nil {
		return err
	}
	leader, term, err := d.awaitLeader(ctx, answer.From)
	if err != nil {
		return err
	}
	d.measure("leader change by command", time.Since(began), 0, 0)
	d.screen.say("ok", "%s has handed over to %s (term %d) in %s", answer.From, leader, term, seconds(time.Since(began)))
	return d.awaitReady(ctx)
}

// scale doubles the service.
func (d *demo) scale(ctx context.Context) error {
	d.screen.step("service scale demo_web=6")
	began := time.Now()
	if _, err := d.client.Do(ctx, cluster.ScaleService{Service: d.service, Replicas: 6}); err != nil {
		return err
	}
	v, err := d.awaitServing(ctx, 6, nil)
	if err != nil {
		return err
	}
	d.measure("6/6 running after scale", time.Since(began), d.forTasks(time.Second), 0)
	perNode := map[cluster.NodeID]int{}
	for _, t := range v.State.TasksOf(d.service) {
		if t.Serving() {
			perNode[t.Node]++
		}
	}
	d.screen.say("ok", "6/6 after %s: %d on m1, %d on m2, %d on m3", seconds(time.Since(began)), perNode["m1"], perNode["m2"], perNode["m3"])
	return d.pauseToRead(ctx)
}

// showLive keeps a line up to date that says how the cluster is.
func (d *demo) showLive(ctx context.Context) {
	if !d.screen.terminal {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	d.endLive = func() {
		cancel()
		<-ended
		d.screen.live("")
	}
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			look, cancel := context.WithTimeout(ctx, time.Second)
			v, err := d.client.State(look)
			cancel()
			if err == nil {
				d.screen.live(fmt.Sprintf("%s │ %d running │ %v", nodesInShort(v), serving(v.State, d.service), d.prober.score()))
			}
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
}

func nodesInShort(v api.View) string {
	var nodes []string
	for _, n := range v.State.SortedNodes() {
		text := string(n.ID) + " " + string(n.Status)
		if n.ID == v.Leader {
			text += ", leads"
		}
		nodes = append(nodes, text)
	}
	return strings.Join(nodes, " · ")
}

func (d *demo) stopLive() {
	if d.endLive != nil {
		d.endLive()
		d.endLive = nil
	}
}

func (d *demo) pauseToRead(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(pauseToRead):
		return nil
	}
}

// summary ends the questions and prints what was measured.
func (d *demo) summary() error {
	score := d.prober.stop()
	d.stopLive()
	d.screen.step("Summary")
	d.screen.summary(d.measured)
	d.screen.say("", "")
	if score.failed > 0 {
		return fmt.Errorf("of %d requests to the published port %d failed, the last one: %w", score.asked, score.failed, score.lastError)
	}
	d.screen.say("ok", "published port %d: %d requests, 0 failed, %d were asked more than once, the slowest took %s",
		d.port, score.asked, score.retried, seconds(score.slowest))
	return nil
}

// patience is how long to wait for what takes so long with processes: an engine on a busy machine takes seconds to start a container.
func (d *demo) patience(processes time.Duration) time.Duration {
	if d.runtime == manager.RuntimeDocker {
		return 2 * processes
	}
	return processes
}

// forTasks is a promise about the start of tasks: for processes, because how long an engine takes for a container is not in our hands.
func (d *demo) forTasks(target time.Duration) time.Duration {
	if d.image != "" {
		return 0
	}
	return target
}

// measure notes what took how long, what was promised for processes, and what Swarm takes; 0: nothing is known.
func (d *demo) measure(what string, took, target, swarm time.Duration) {
	d.measured = append(d.measured, measurement{what, took, target, swarm})
}

// showLogs prints the end of each manager's log.
func (d *demo) showLogs() {
	const lines = 12
	for _, member := range d.members {
		data, err := os.ReadFile(filepath.Join(d.dir, string(member.ID)+".log"))
		if err != nil {
			continue // it was never started
		}
		all := strings.Split(strings.TrimSpace(string(data)), "\n")
		d.screen.say("", "the end of the log of %s:", member.ID)
		for _, line := range all[max(0, len(all)-lines):] {
			d.screen.say("", "  %s", line)
		}
	}
}

// cleanUp ends every process that was started and removes all files. It does not rely on the managers.
func (d *demo) cleanUp() error {
	var errs []error
	if d.prober != nil {
		d.prober.stop()
	}
	if d.client != nil {
		d.client.Close()
	}
	for _, m := range d.managers {
		if m.cmd != nil {
			_ = m.cmd.Process.Kill() // an error means that it has ended already
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	for _, m := range d.managers {
		if m.cmd != nil {
			<-m.ended // what it has started until now is found below
		}
		errs = append(errs, d.stopAll(ctx, m))
	}
	errs = append(errs, d.removeImage(ctx))
	if d.dir != "" {
		errs = append(errs, os.RemoveAll(d.dir))
	}
	return errors.Join(errs...)
}
