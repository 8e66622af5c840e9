package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/internal/dockertest"
	"github.com/steadyraft/raft/examples/orchestrator/internal/images"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
)

// machine is a node of the cluster: a container with an address of its own on a private network.
type machine struct {
	name, address string
	dir           string // its data directory, as this machine sees it
	container     string
}

// privateNetwork is a network on this machine with containers for nodes.
type privateNetwork struct {
	t       *testing.T
	engine  *client.Client
	image   string
	id      string
	subnet  netip.Prefix
	program string
}

// newPrivateNetwork makes a network that leads nowhere else, with a range of addresses that nobody here uses.
func newPrivateNetwork(t *testing.T) *privateNetwork {
	t.Helper()
	engine := dockertest.Engine(t)
	n := &privateNetwork{t: t, engine: engine, image: dockertest.Image(t, engine, images.Config{}), program: "/app"}
	var err error
	for attempt := range 50 {
		n.subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 213, byte(os.Getpid() + attempt), 0}), 24)
		var created client.NetworkCreateResult
		created, err = engine.NetworkCreate(t.Context(), dockertest.Name(), client.NetworkCreateOptions{
			Driver: "bridge", Internal: true, Labels: dockertest.Labels(), IPAM: &network.IPAM{Config: []network.IPAMConfig{{Subnet: n.subnet}}},
		})
		if n.id = created.ID; err == nil {
			break
		}
	}
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testPatience)
		defer cancel()
		_, err := engine.NetworkRemove(ctx, n.id, client.NetworkRemoveOptions{})
		require.NoError(t, err)
	})
	return n
}

// machine makes a node, with the number in its address. It runs nothing yet.
func (n *privateNetwork) machine(name string, number int) *machine {
	address := n.subnet.Addr().As4()
	address[3] = byte(number)
	m := &machine{name: name, address: netip.AddrFrom4(address).String(), dir: filepath.Join(n.t.TempDir(), name)}
	require.NoError(n.t, os.Mkdir(m.dir, 0o700))
	n.t.Cleanup(func() {
		if n.t.Failed() && m.container != "" {
			n.t.Logf("%s:\n%s", name, n.output(m))
		}
		n.remove(m)
	})
	return m
}

func (n *privateNetwork) endpoint(m *machine) *network.EndpointSettings {
	return &network.EndpointSettings{IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr(m.address)}}
}

// run starts the node with a command of the orchestrator, in a new container with the data that the machine has.
func (n *privateNetwork) run(m *machine, args ...string) {
	n.t.Helper()
	n.remove(m)
	init := true // for the processes that lose their parent
	created, err := n.engine.ContainerCreate(n.t.Context(), client.ContainerCreateOptions{
		Name:       dockertest.Name(),
		Config:     &container.Config{Image: n.image, Cmd: inContainer(args), Hostname: m.name},
		HostConfig: &container.HostConfig{Init: &init, Binds: []string{m.dir + ":/data"}, NetworkMode: container.NetworkMode(n.id)},
		NetworkingConfig: &network.NetworkingConfig{
			EndpointsConfig: map[string]*network.EndpointSettings{n.id: n.endpoint(m)},
		},
	})
	require.NoError(n.t, err)
	m.container = created.ID
	_, err = n.engine.ContainerStart(n.t.Context(), m.container, client.ContainerStartOptions{})
	require.NoError(n.t, err)
}

// inContainer adds where the data is. The command comes first, because this program is a test unless it is told otherwise by its first word.
func inContainer(args []string) []string {
	end := slices.Index(args, "--")
	if end < 0 {
		end = len(args)
	}
	return slices.Insert(slices.Clone(args), end, "--data=/data")
}

func (n *privateNetwork) remove(m *machine) {
	if m.container == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), testPatience)
	defer cancel()
	_, err := n.engine.ContainerRemove(ctx, m.container, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
	require.NoError(n.t, err)
	m.container = ""
}

// output is what the node's process has written.
func (n *privateNetwork) output(m *machine) string {
	ctx, cancel := context.WithTimeout(context.Background(), testPatience)
	defer cancel()
	logs, err := n.engine.ContainerLogs(ctx, m.container, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true})
	if err != nil {
		return err.Error()
	}
	defer logs.Close()
	var text bytes.Buffer
	_, _ = stdcopy.StdCopy(&text, &text, logs) // a log that is cut off is better than none
	return text.String()
}

// typed runs a command on a machine, as `docker exec` does.
func (n *privateNetwork) typed(m *machine, args ...string) (code int, out string) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), testPatience)
	defer cancel()
	created, err := n.engine.ExecCreate(ctx, m.container, client.ExecCreateOptions{
		Cmd: append([]string{n.program}, inContainer(args)...), AttachStdout: true, AttachStderr: true,
	})
	require.NoError(n.t, err)
	attached, err := n.engine.ExecAttach(ctx, created.ID, client.ExecAttachOptions{})
	require.NoError(n.t, err)
	defer attached.Close()
	var text bytes.Buffer
	_, err = stdcopy.StdCopy(&text, &text, attached.Reader)
	require.NoError(n.t, err)
	result, err := n.engine.ExecInspect(ctx, created.ID, client.ExecInspectOptions{})
	require.NoError(n.t, err)
	return result.ExitCode, text.String()
}

func (n *privateNetwork) must(m *machine, args ...string) string {
	n.t.Helper()
	code, out := n.typed(m, args...)
	require.Zero(n.t, code, "%s\n%s", strings.Join(args, " "), out)
	return out
}

// tasksOn returns the processes of the tasks that run on a machine, as this machine counts them.
func (n *privateNetwork) tasksOn(m *machine) (pids []int) {
	n.t.Helper()
	top, err := n.engine.ContainerTop(n.t.Context(), m.container, client.ContainerTopOptions{})
	require.NoError(n.t, err)
	pid, command := slices.Index(top.Titles, "PID"), slices.Index(top.Titles, "CMD")
	for _, row := range top.Processes {
		if strings.HasSuffix(row[command], " "+webCommand) {
			number, err := strconv.Atoi(row[pid])
			require.NoError(n.t, err)
			pids = append(pids, number)
		}
	}
	return pids
}

// asker asks one node's published port ten times a second, whether the requests before were answered or not.
type asker struct {
	url    string
	cancel context.CancelFunc
	ended  sync.WaitGroup

	mu      sync.Mutex
	up      bool
	answers []answer
}

type answer struct {
	asked, ended time.Time
	err          error
}

const (
	questionInterval = 100 * time.Millisecond
	answerTimeout    = 5 * time.Second
)

func newAsker(address string) *asker {
	ctx, cancel := context.WithCancel(context.Background())
	a := &asker{url: "http://" + net.JoinHostPort(address, "80"), cancel: cancel}
	a.ended.Go(func() {
		ticker := time.NewTicker(questionInterval)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				if a.isUp() {
					a.ended.Go(func() { a.ask(ctx) })
				}
			}
		}
	})
	return a
}

func (a *asker) isUp() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.up
}

func (a *asker) setUp(up bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.up = up
}

func (a *asker) ask(ctx context.Context) {
	within, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	asked := time.Now()
	_, err := get(within, a.url)
	if ctx.Err() != nil {
		return // the test is over
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answers = append(a.answers, answer{asked, time.Now(), err})
}

// count is how many questions have been answered, or have failed.
func (a *asker) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.answers)
}

func (a *asker) stop() []answer {
	a.cancel()
	a.ended.Wait()
	return a.answers
}

// incident is what was done to a node. Requests that were under way at that moment may be lost; with a node that is frozen also those which
// reach a task of it before it counts as down, because its kernel goes on accepting connections.
type incident struct {
	what       string
	from, to   time.Time
	frozen     bool
	replicated time.Time // all replicas elsewhere
}

func (i incident) excuses(a answer) bool {
	end := i.to
	if i.frozen {
		end = i.replicated
	}
	return !a.ended.Before(i.from) && !a.asked.After(end)
}

// The article's session, typed on three managers that are containers with addresses of their own.
func TestArticlesSessionOnThreeMachines(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	n := newPrivateNetwork(t)
	m1, m2, m3 := n.machine("m1", 11), n.machine("m2", 12), n.machine("m3", 13)
	machines := map[cluster.NodeID]*machine{"m1": m1, "m2": m2, "m3": m3}
	others := func(m *machine) (out []*machine) {
		for _, other := range []*machine{m1, m2, m3} {
			if other != m {
				out = append(out, other)
			}
		}
		return out
	}

	// init, and two joins with its token.
	n.run(m1, "init", "--name", "m1", "--host", m1.address)
	var token string
	awaitTrue(t, "the token of managers", func() bool {
		match := regexp.MustCompile(`To add a manager:\s+\S+ --data DIRECTORY join --token (\S+) `).FindStringSubmatch(n.output(m1))
		if match != nil {
			token = match[1]
		}
		return match != nil
	})
	joins := func(m *machine, flags ...string) {
		n.run(m, append(append([]string{"join", "--token", token, "--name", m.name, "--host", m.address}, flags...), m1.address+":2377")...)
	}
	stopping := []string{"--on-partition", "stop", "--partition-timeout", "2s"}
	joins(m2)
	joins(m3, stopping...)
	_, creds, err := manager.Load(m1.dir, nil)
	require.NoError(t, err)
	askers := map[*machine]*asker{}
	clients := map[*machine]*api.Client{}
	for _, m := range machines {
		clients[m] = api.NewClient(creds, m.address+":2377")
		defer clients[m].Close()
		askers[m] = newAsker(m.address)
		defer askers[m].stop()
	}
	// look asks the machines that are up, one after the other: one that is cut off would only cost time.
	look := func() (v api.View, err error) {
		for _, m := range []*machine{m1, m2, m3} {
			if up := askers[m].isUp(); up || m == m1 && !askers[m2].isUp() && !askers[m3].isUp() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				v, err = clients[m].State(ctx)
				cancel()
				if err == nil {
					return v, nil
				}
			}
		}
		return v, err
	}
	// await looks until a state is good; while there is no leader there is nothing to look at.
	await := func(what string, good func(api.View) bool) (v api.View) {
		t.Helper()
		awaitTrue(t, what, func() bool {
			var err error
			v, err = look()
			return err == nil && good(v)
		})
		return v
	}
	allReady := func(v api.View) bool {
		ready := 0
		for _, node := range v.State.Nodes {
			if node.Status == cluster.NodeReady {
				ready++
			}
		}
		voters := 0
		for _, member := range v.Members {
			if !member.Standby {
				voters++
			}
		}
		return ready == 3 && voters == 3
	}
	await("three managers", allReady)

	require.Contains(t, n.must(m1, "service", "create", "--name", "web", "--replicas", "3", "--publish", "published=80,target=80", "--", n.program, webCommand),
		"3 of 3 tasks are running")
	require.Equal(t, 3, strings.Count(n.must(m2, "service", "ps", "web"), "web."))
	list := n.must(m3, "node", "ls")
	require.Equal(t, 3, strings.Count(list, "Ready"))
	require.Equal(t, 1, strings.Count(list, "Leader"))
	v, err := look()
	require.NoError(t, err)
	web := v.State.ServiceByName("web").ID
	all := func(v api.View) bool { return serving(v.State, web) == v.State.Services[web].Spec.Replicas }

	answers := func(m *machine) {
		t.Helper()
		awaitTrue(t, m.name+" serves the port", func() bool {
			_, err := get(t.Context(), askers[m].url)
			return err == nil
		})
		askers[m].setUp(true)
	}
	for _, m := range machines {
		answers(m)
	}
	leader := func() *machine {
		return machines[await("a leader", func(v api.View) bool { return v.Leader != "" }).Leader]
	}
	var incidents []incident
	// lose does something to the machine that leads, and waits until another one leads and all replicas run elsewhere.
	lose := func(what string, victim *machine, frozen bool, do func() error) api.View {
		t.Helper()
		before := await("a quiet cluster", func(v api.View) bool { return allReady(v) && all(v) })
		askers[victim].setUp(false)
		// What it was asked before that has to be over: it is the other two whose answers count.
		waitFor(t, questionInterval)
		i := incident{what: what, from: time.Now(), frozen: frozen}
		require.NoError(t, do())
		i.to = time.Now()
		var elected, down time.Time
		wasLeader := before.Leader == cluster.NodeID(victim.name)
		after := await("all replicas elsewhere", func(v api.View) bool {
			if elected.IsZero() && v.Leader != "" && string(v.Leader) != victim.name {
				elected = time.Now()
			}
			if down.IsZero() && v.State.Nodes[cluster.NodeID(victim.name)].Status == cluster.NodeDown {
				down = time.Now()
			}
			return !down.IsZero() && all(v)
		})
		i.replicated = time.Now()
		require.True(t, !wasLeader || after.State.Cluster.Epoch > before.State.Cluster.Epoch)
		incidents = append(incidents, i)
		t.Logf("%s: a leader answers after %.2f s, the node counts as down after %.2f s, all replicas elsewhere after %.2f s",
			what, elected.Sub(i.from).Seconds(), down.Sub(i.from).Seconds(), i.replicated.Sub(i.from).Seconds())
		return after
	}
	// occupy sees to it that a machine runs a task. One that was away has none, until there are more.
	occupy := func(m *machine) {
		t.Helper()
		if len(n.tasksOn(m)) == 0 {
			n.must(m, "service", "scale", fmt.Sprintf("web=%d", await("the service", func(api.View) bool { return true }).State.Services[web].Spec.Replicas+3))
		}
		awaitTrue(t, "a task on "+m.name, func() bool { return len(n.tasksOn(m)) > 0 })
	}
	comesBack := func(m *machine) {
		t.Helper()
		await(m.name+" is back, and has stopped what was replaced meanwhile", func(v api.View) bool {
			running, wanted := 0, 0
			for _, m := range machines {
				running += len(n.tasksOn(m))
			}
			for _, sv := range v.State.Services {
				wanted += sv.Spec.Replicas
			}
			return allReady(v) && all(v) && running == wanted
		})
		answers(m)
	}

	// The leader is killed.
	victim := leader()
	lose("leader killed", victim, false, func() error {
		_, err := n.engine.ContainerKill(t.Context(), victim.container, client.ContainerKillOptions{})
		return err
	})
	flags := []string{"up"}
	if victim == m3 {
		flags = append(flags, stopping...)
	}
	n.run(victim, flags...)
	comesBack(victim)

	// A manager is cut off: first m3, which was told to stop its tasks then, and after that m2, which keeps them.
	for _, victim := range []*machine{m3, m2} {
		occupy(victim)
		lose(victim.name+" cut off", victim, false, func() error {
			_, err := n.engine.NetworkDisconnect(t.Context(), n.id, client.NetworkDisconnectOptions{Container: victim.container, Force: true})
			return err
		})
		if victim == m3 {
			awaitTrue(t, "m3 stops its tasks", func() bool { return len(n.tasksOn(m3)) == 0 })
		} else {
			require.NotEmpty(t, n.tasksOn(m2), "it keeps them")
		}
		_, err = n.engine.NetworkConnect(t.Context(), n.id, client.NetworkConnectOptions{Container: victim.container, EndpointConfig: n.endpoint(victim)})
		require.NoError(t, err)
		comesBack(victim)
	}

	// The leader is frozen, for many election timeouts. A new one acts, and nothing of the old one takes effect when it goes on.
	victim = leader()
	before := lose("leader frozen", victim, true, func() error {
		_, err := n.engine.ContainerPause(t.Context(), victim.container, client.ContainerPauseOptions{})
		return err
	})
	acting := others(victim)[0]
	replicas := before.State.Services[web].Spec.Replicas + 1
	require.Contains(t, n.must(acting, "service", "scale", fmt.Sprintf("web=%d", replicas)), fmt.Sprintf("%d of %d tasks are running", replicas, replicas))
	require.Contains(t, n.must(acting, "service", "create", "--name", "late", "--", n.program, webCommand), "1 of 1")
	_, err = n.engine.ContainerUnpause(t.Context(), victim.container, client.ContainerUnpauseOptions{})
	require.NoError(t, err)
	comesBack(victim)
	after := await("the old leader follows", func(v api.View) bool { return v.Leader != "" && allReady(v) && all(v) })
	require.GreaterOrEqual(t, after.State.Cluster.Epoch, before.State.Cluster.Epoch)
	require.Equal(t, replicas, after.State.Services[web].Spec.Replicas)
	require.NotNil(t, after.State.ServiceByName("late"))
	n.must(acting, "service", "rm", "late")

	// Two managers are killed: nobody can decide anything, and a task that crashes is started again where it was.
	survivor := m1
	occupy(survivor)
	quiet := incident{what: "quorum lost", from: time.Now()}
	for _, m := range others(survivor) {
		askers[m].setUp(false)
		_, err := n.engine.ContainerKill(t.Context(), m.container, client.ContainerKillOptions{})
		require.NoError(t, err)
	}
	quiet.to = time.Now()
	incidents = append(incidents, quiet)
	code, out := n.typed(survivor, "service", "scale", "web=6")
	require.Contains(t, []int{exitUnavailable, exitUncertain, exitRefused}, code, out)
	old := n.tasksOn(survivor)
	crash := incident{what: "task crashed without a quorum", from: time.Now()}
	for _, pid := range old {
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	awaitTrue(t, "restarted here", func() bool {
		now := n.tasksOn(survivor)
		return len(now) == len(old) && !slices.ContainsFunc(now, func(pid int) bool { return slices.Contains(old, pid) })
	})
	awaitTrue(t, "and served", func() bool {
		_, err := get(t.Context(), askers[survivor].url)
		return err == nil
	})
	crash.to = time.Now()
	incidents = append(incidents, crash)
	for _, m := range others(survivor) {
		n.run(m, "up")
	}
	for _, m := range others(survivor) {
		comesBack(m)
	}

	// A manager is removed.
	for i := 0; leader() == m3 && i < 5; i++ {
		n.typed(m1, "leader", "change", "m1")
	}
	askers[m3].setUp(false)
	awaitTrue(t, "m3 is removed", func() bool {
		code, out = n.typed(m1, "node", "rm", "m3")
		return code == 0
	})
	require.Equal(t, 2, strings.Count(n.must(m1, "node", "ls"), "Ready"), n.must(m1, "node", "ls"))
	after = await("all replicas on two machines", func(v api.View) bool { return all(v) && len(v.State.Nodes) == 2 })
	// The count: every request to a node that was up, but those under way at the moment of an incident.
	asked, underWay, frozen, slowest := 0, 0, 0, time.Duration(0)
	for _, m := range machines {
		for _, a := range askers[m].stop() {
			asked++
			i := slices.IndexFunc(incidents, func(i incident) bool { return i.excuses(a) })
			switch {
			case a.err == nil:
				slowest = max(slowest, a.ended.Sub(a.asked))
			case i >= 0 && incidents[i].frozen:
				frozen++
			case i >= 0:
				underWay++
			default:
				t.Errorf("%s did not answer a request of %s within %v: %v", m.name, a.asked.Format(time.StampMilli), a.ended.Sub(a.asked), a.err)
				for _, e := range after.State.Events { // up to then they say what was going on
					if e.At.After(a.asked.Add(-5*time.Second)) && e.At.Before(a.ended.Add(time.Second)) {
						t.Logf("%s  %s %s %s", e.At.Format(time.StampMilli), e.Kind, e.Subject, e.Message)
					}
				}
			}
		}
	}
	require.Positive(t, asked)
	t.Logf("%d requests to nodes that were up: 0 failed beyond the moment of a cut, %d were under way at one, %d met a task of the frozen node before it counted as down; the slowest answer took %.2f s",
		asked, underWay, frozen, slowest.Seconds())

	// Of the two that are left, one that is gone cannot be removed: the other one alone could decide nothing.
	_, err = n.engine.ContainerKill(t.Context(), m2.container, client.ContainerKillOptions{})
	require.NoError(t, err)
	code, out = n.typed(m1, "node", "rm", "m2")
	require.NotZero(t, code, "%s", out)
}

// waitFor lets time pass that nothing announces.
func waitFor(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}
