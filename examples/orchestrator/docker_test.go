package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	goruntime "runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/compose"
	"github.com/steadyraft/raft/examples/orchestrator/internal/dockertest"
	"github.com/steadyraft/raft/examples/orchestrator/internal/images"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
	"github.com/steadyraft/raft/examples/orchestrator/runtime"
	"github.com/steadyraft/raft/examples/orchestrator/runtime/docker"
)

// onDocker gives nodes a Docker Engine and the cluster a name of its own.
func onDocker(engine *client.Client) func(*manager.Settings) {
	name := dockertest.Name()
	return func(s *manager.Settings) {
		s.Cluster, s.Runtime, s.DockerHost = name, manager.RuntimeDocker, engine.DaemonHost()
	}
}

// containersOf returns the containers of a cluster by name: running ones only, or all.
func containersOf(t *testing.T, engine *client.Client, clusterName string, all bool) map[string]string {
	t.Helper()
	list, err := engine.ContainerList(t.Context(), client.ContainerListOptions{
		All: all, Filters: client.Filters{}.Add("label", docker.ClusterLabel+"="+clusterName),
	})
	require.NoError(t, err)
	found := map[string]string{}
	for _, c := range list.Items {
		found[strings.TrimPrefix(c.Names[0], "/")] = c.ID
	}
	return found
}

// redisDo sends one command and returns the first line of the answer.
func redisDo(address string, words ...string) (string, error) {
	conn, err := net.DialTimeout("tcp", address, testPatience)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(testPatience)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintf(conn, "%s\r\n", strings.Join(words, " ")); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(line), err
}

// The article's own Compose file, unchanged, with real redis in a container.
func TestArticlesComposeFileRunsOnDocker(t *testing.T) {
	engine := dockertest.Engine(t)
	if goruntime.GOOS != "linux" {
		t.Skip("skipped: it publishes port 6379 on an address of its own, as only Linux has them")
	}
	dockertest.Debian(t, engine, "redis", "redis:alpine")
	const host = "127.0.0.31"
	d := foundAs(t, onDocker(engine), host)
	runHere(t, d.managers["m1"].dir)
	client := api.NewClient(d.creds, d.members[0].API)
	defer client.Close()
	require.NoError(t, awaitNodes(t.Context(), client, 1))
	data, file, address := "--data="+d.managers["m1"].dir, "testdata/redis.yaml", host+":6379"
	task := func() *cluster.Task {
		tasks := view(t, client).State.TasksOf(view(t, client).State.ServiceByName("testdata_redis").ID)
		return tasks[len(tasks)-1]
	}
	running := func() map[string]string { return containersOf(t, engine, d.settings.Cluster, false) }

	out := must(t, data, "compose", "up", "-d", "-f", file)
	require.Contains(t, out, "Service testdata_redis  Created")
	require.Contains(t, out, "testdata_redis: 1 of 1 tasks are running")
	ps := must(t, data, "compose", "ps", "-f", file)
	require.Contains(t, ps, "redis:alpine")
	require.Contains(t, ps, "Running")
	awaitTrue(t, "PONG", func() bool {
		answer, err := redisDo(address, "PING")
		return err == nil && answer == "+PONG"
	})
	answer, err := redisDo(address, "SET", "a", "b")
	require.NoError(t, err)
	require.Equal(t, "+OK", answer)
	logs := must(t, data, "service", "logs", "testdata_redis")
	require.Contains(t, logs, "Ready to accept connections")

	// Its process is killed: the container is removed with its state and made anew from the definition.
	before := running()
	require.Len(t, before, 1)
	for _, id := range before {
		require.NoError(t, killContainer(t.Context(), engine, id))
	}
	awaitTrue(t, "restarted", func() bool { now := task(); return now.Serving() && now.Attempts == 1 })
	after := containersOf(t, engine, d.settings.Cluster, true)
	require.Len(t, after, 1, "of the old one nothing is left")
	for name, id := range after {
		require.NotEqual(t, before[name], id)
	}
	awaitTrue(t, "an empty redis", func() bool {
		answer, err := redisDo(address, "GET", "a")
		return err == nil && answer == "$-1"
	})
	require.Equal(t, 137, task().ExitCode)

	// compose kill is a crash too, compose stop is not.
	require.Contains(t, must(t, data, "compose", "kill", "-f", file), "Killed")
	awaitTrue(t, "restarted", func() bool { now := task(); return now.Serving() && now.Attempts == 2 })
	require.Contains(t, must(t, data, "compose", "stop", "-f", file), "`restart: always` does not undo")
	require.Empty(t, running())
	must(t, data, "service", "create", "--name", "other", "redis:alpine") // the managers and the node have work, and leave it stopped
	require.Len(t, running(), 1)
	must(t, data, "service", "rm", "other")
	awaitTrue(t, "the other service is gone", func() bool { return len(view(t, client).State.Services) == 1 && len(running()) == 0 })
	require.Contains(t, must(t, data, "compose", "start", "-f", file), "1 of 1 tasks are running")
	awaitTrue(t, "PONG", func() bool {
		answer, err := redisDo(address, "PING")
		return err == nil && answer == "+PONG"
	})
	require.Contains(t, must(t, data, "compose", "down", "-f", file), "Removed")
	awaitTrue(t, "no container is left", func() bool { return len(containersOf(t, engine, d.settings.Cluster, true)) == 0 })
}

// killContainer kills the first process of a container, as the kernel does when memory runs out.
func killContainer(ctx context.Context, engine *client.Client, id string) error {
	c, err := engine.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	if err != nil {
		return err
	}
	if err := syscall.Kill(c.Container.State.Pid, syscall.SIGKILL); !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	_, err = engine.ContainerKill(ctx, id, client.ContainerKillOptions{}) // it is another user's, or on another machine
	return err
}

// An image that is not there is a reason, in the error and in the table of tasks, and not a wait.
func TestUnknownImageIsRejectedWithTheReason(t *testing.T) {
	t.Parallel()
	engine := dockertest.Engine(t)
	d := foundAs(t, onDocker(engine), "127.0.0.1")
	runHere(t, d.managers["m1"].dir)
	client := api.NewClient(d.creds, d.members[0].API)
	defer client.Close()
	require.NoError(t, awaitNodes(t.Context(), client, 1))
	data, image := "--data="+d.managers["m1"].dir, dockertest.Name()+":1"
	code, _, errOut := runCommand(t, data, "service", "create", "--name", "web", image)
	require.Equal(t, exitRefused, code)
	require.Contains(t, errOut, "image "+image+" is not on node m1: build, load or import it there, images are never pulled")
	ps := must(t, data, "service", "ps", "web", "--format", "json")
	require.Contains(t, ps, "Rejected")
	require.Contains(t, ps, "is not on node m1")
	code, _, errOut = runCommand(t, data, "service", "create", "--name", "process", "--", "sleep", "1")
	require.Equal(t, exitRefused, code)
	require.Contains(t, errOut, "this node runs containers")
}

// A manager that is killed leaves its containers running, and takes over the same ones when it comes back.
func TestKilledAgentAdoptsItsContainers(t *testing.T) {
	t.Parallel()
	engine := dockertest.Engine(t)
	image := dockertest.Image(t, engine, images.Config{Command: []string{webCommand}})
	d := foundAs(t, onDocker(engine), "127.0.0.1")
	m := d.managers["m1"]
	require.NoError(t, d.launch(m))
	client := api.NewClient(d.creds, m.API)
	defer client.Close()
	require.NoError(t, awaitNodes(t.Context(), client, 1))
	must(t, "--data", m.dir, "service", "create", "--replicas", "2", "-p", fmt.Sprintf("%d:80", d.port), "--name", "web", image)
	published := func() bool {
		_, err := get(t.Context(), fmt.Sprintf("http://127.0.0.1:%d", d.port))
		return err == nil
	}
	awaitTrue(t, "the published port", published)
	old := containersOf(t, engine, d.settings.Cluster, true)
	require.Len(t, old, 2)
	before := view(t, client).State

	require.NoError(t, m.cmd.Process.Kill())
	<-m.ended
	require.Equal(t, old, containersOf(t, engine, d.settings.Cluster, false), "they go on")
	require.NoError(t, d.launch(m))
	id := before.ServiceByName("web").ID
	awaitTrue(t, "both replicas, in a later epoch", func() bool {
		now := view(t, client).State
		return now.Cluster.Epoch > before.Cluster.Epoch && now.Nodes["m1"].Status == cluster.NodeReady && serving(now, id) == 2
	})
	require.Equal(t, old, containersOf(t, engine, d.settings.Cluster, true), "the same ones, not started again")
	awaitTrue(t, "the published port", published)
	for _, task := range view(t, client).State.TasksOf(id) {
		require.Zero(t, task.Attempts)
	}

	// One that crashes while the agent is away is started again when it is back.
	require.NoError(t, m.cmd.Process.Kill())
	<-m.ended
	var crashed string
	for name, container := range old {
		crashed = name
		require.NoError(t, killContainer(t.Context(), engine, container))
		break
	}
	require.NoError(t, d.launch(m))
	awaitTrue(t, "both replicas, one of them anew", func() bool {
		now := containersOf(t, engine, d.settings.Cluster, false)
		return len(now) == 2 && now[crashed] != old[crashed]
	})
}

// goldenCommand is the program of the services below: it exits with a status, or goes on until it is told to end.
const goldenCommand = "__golden"

func goldenMain(args []string) int {
	switch strings.Join(args, " ") {
	case "exit 0":
		return 0
	case "exit 1":
		return 1
	case "exit 3":
		return 3
	}
	select {}
}

const expectedOutcomes = `
what happens | no       | always                    | on-failure                | on-failure:2            | unless-stopped
exit 0       | complete | restarted again and again | complete                  | complete                | restarted again and again
exit 3       | failed   | restarted again and again | restarted again and again | failed after 2 restarts | restarted again and again
kill -9      | failed   | restarted once            | restarted once            | restarted once          | restarted once
compose stop | stopped  | stopped                   | stopped                   | stopped                 | stopped
compose kill | failed   | restarted once            | restarted once            | restarted once          | restarted once
unhealthy    | failed   | restarted again and again | restarted again and again | failed after 2 restarts | restarted again and again
`

var (
	goldenEvents   = []string{"exit 0", "exit 3", "kill -9", "compose stop", "compose kill", "unhealthy"}
	goldenPolicies = []string{"no", "always", "on-failure", "on-failure:2", "unless-stopped"}
)

func goldenName(event, policy string) string {
	return strings.NewReplacer(" ", "", "-", "", ":", "").Replace(event + "_" + policy)
}

// What follows the end of a process: an explicit stop is never undone, and of everything else the restart policy decides. One table, and both
// runtimes do what it says.
func TestStopAndCrashUnderEveryRestartPolicy(t *testing.T) {
	t.Run("processes", func(t *testing.T) {
		testStopAndCrash(t, func(*manager.Settings) {}, "", os.Args[0])
	})
	t.Run("containers", func(t *testing.T) {
		engine := dockertest.Engine(t)
		image := dockertest.Image(t, engine, images.Config{Entrypoint: []string{}})
		testStopAndCrash(t, onDocker(engine), image, "/app")
	})
}

func testStopAndCrash(t *testing.T, change func(*manager.Settings), image, program string) {
	d := foundAs(t, change, "127.0.0.1")
	dir := d.managers["m1"].dir
	runHere(t, dir)
	client := api.NewClient(d.creds, d.members[0].API)
	defer client.Close()
	require.NoError(t, awaitNodes(t.Context(), client, 1))
	var text strings.Builder
	text.WriteString("name: golden\nservices:\n")
	for _, event := range goldenEvents {
		for _, policy := range goldenPolicies {
			argv := []string{program, goldenCommand, "sleep"}
			if what, isExit := strings.CutPrefix(event, "exit "); isExit {
				argv = []string{program, goldenCommand, "exit", what}
			}
			fmt.Fprintf(&text, "  %s:\n    command: [%q]\n    restart: %q\n    stop_grace_period: 1s\n", goldenName(event, policy), strings.Join(argv, `","`), policy)
			if image != "" {
				fmt.Fprintf(&text, "    image: %s\n", image)
			}
			if event == "unhealthy" {
				fmt.Fprintf(&text, "    healthcheck: {test: [CMD, %q, %s, exit, \"1\"], interval: 300ms, retries: 1}\n", program, goldenCommand)
			}
		}
	}
	file := writeCompose(t, "%s", strings.ReplaceAll(text.String(), `\"`, `"`))
	project, err := compose.Load(t.Context(), file, nil)
	require.NoError(t, err)
	// What goes on until something is done to it comes first. What ends again and again keeps the engine busy, the more so the faster that
	// is, and nothing that has to start is to wait behind it.
	endsByItself := func(sv cluster.ServiceSpec) bool {
		return strings.HasPrefix(sv.Name, "golden_exit") || strings.HasPrefix(sv.Name, "golden_unhealthy")
	}
	steady, restless := *project, *project
	steady.Services = slices.DeleteFunc(slices.Clone(project.Services), endsByItself)
	restless.Services = slices.DeleteFunc(slices.Clone(project.Services), func(sv cluster.ServiceSpec) bool { return !endsByItself(sv) })
	_, err = deploy(t.Context(), client, &steady, func(string, string) {})
	require.NoError(t, err)

	data := "--data=" + dir
	var stop, kill []string
	for _, policy := range goldenPolicies {
		stop, kill = append(stop, goldenName("compose stop", policy)), append(kill, goldenName("compose kill", policy))
	}
	begun := func(event string) (tasks []*cluster.Task) {
		s := view(t, client).State
		for _, policy := range goldenPolicies {
			for _, task := range s.TasksOf(s.ServiceByName("golden_" + goldenName(event, policy)).ID) {
				if task.Serving() {
					tasks = append(tasks, task)
				}
			}
		}
		return tasks
	}
	awaitTrue(t, "everything that does not end by itself runs", func() bool {
		return len(begun("kill -9")) == 5 && len(begun("compose stop")) == 5 && len(begun("compose kill")) == 5
	})
	_, err = deploy(t.Context(), client, &restless, func(string, string) {})
	require.NoError(t, err)
	must(t, append([]string{data, "compose", "kill", "-f", file}, kill...)...)
	killTasks(t, dir, d.settings, begun("kill -9"))
	must(t, append([]string{data, "compose", "stop", "-f", file}, stop...)...)

	// Those that are restarted again and again are the clock: by then the others have had the time to do what they should not.
	expected := strings.TrimSpace(expectedOutcomes)
	var outcome string
	for deadline := time.Now().Add(2 * testPatience); outcome != expected && time.Now().Before(deadline); {
		outcome = goldenTable(view(t, client).State)
		select {
		case <-t.Context().Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	require.Equal(t, expected, outcome)
}

// killTasks kills the processes of tasks behind the back of the orchestrator.
func killTasks(t *testing.T, dir string, settings manager.Settings, tasks []*cluster.Task) {
	t.Helper()
	rt, release, err := manager.OpenRuntime(dir, settings, "", nil)
	require.NoError(t, err)
	instances, err := rt.Adopt(t.Context())
	require.NoError(t, err)
	killed := 0
	for _, task := range tasks {
		i := slices.IndexFunc(instances, func(i runtime.Instance) bool { return i.Spec.ID == string(task.ID) })
		require.GreaterOrEqual(t, i, 0)
		require.Positive(t, instances[i].PID)
		if err := syscall.Kill(instances[i].PID, syscall.SIGKILL); errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ESRCH) {
			require.NoError(t, rt.Kill(t.Context(), string(task.ID))) // another user's, or on another machine
		} else {
			require.NoError(t, err)
		}
		killed++
	}
	require.Equal(t, len(goldenPolicies), killed)
	require.NoError(t, release())
}

func goldenTable(s *cluster.State) string {
	rows := [][]string{append([]string{"what happens"}, goldenPolicies...)}
	for _, event := range goldenEvents {
		row := []string{event}
		for _, policy := range goldenPolicies {
			row = append(row, goldenOutcome(s, s.ServiceByName("golden_"+goldenName(event, policy))))
		}
		rows = append(rows, row)
	}
	var lines []string
	widths := make([]int, len(rows[0]))
	for _, row := range strings.Split(strings.TrimSpace(expectedOutcomes), "\n") {
		for i, cell := range strings.Split(row, "|") {
			widths[i] = max(widths[i], len(strings.TrimSpace(cell)))
		}
	}
	for _, row := range rows {
		var cells []string
		for i, cell := range row {
			cells = append(cells, fmt.Sprintf("%-*s", widths[i], cell))
		}
		lines = append(lines, strings.TrimRight(strings.Join(cells, " | "), " "))
	}
	return strings.Join(lines, "\n")
}

func goldenOutcome(s *cluster.State, sv *cluster.Service) string {
	tasks := s.TasksOf(sv.ID)
	if len(tasks) == 0 {
		return "nothing"
	}
	newest, restarts := tasks[len(tasks)-1], len(tasks)-1
	for _, task := range tasks {
		restarts += task.Attempts
	}
	switch {
	case sv.Stopped && !slices.ContainsFunc(tasks, (*cluster.Task).Live):
		return "stopped"
	case newest.State.Final() && restarts == 0:
		return string(newest.State)
	case newest.State.Final():
		return fmt.Sprintf("%s after %d restarts", newest.State, restarts)
	case restarts >= 3:
		return "restarted again and again"
	case restarts == 1 && newest.Serving() && newest.Spec.HealthCheck == nil:
		return "restarted once"
	default:
		return fmt.Sprintf("%s, %d restarts", newest.State, restarts)
	}
}

// The demonstration with containers tells the same story, and leaves nothing behind.
func TestDemoOnDocker(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	engine := dockertest.Engine(t)
	var out strings.Builder
	d := demo{runtime: manager.RuntimeDocker, oneAddress: true, dockerHost: engine.DaemonHost(), imageLabels: dockertest.Labels()}
	require.NoError(t, d.run(&cli{ctx: t.Context(), out: &out, errOut: &out}), "%s", &out)
	for _, text := range []string{
		"is imported", "leads in term", "m3 joins as a manager", "3/3 run,", "leads term", "is marked down", "3/3 run again",
		"is a ready node again", "so its agent has stopped it", "its node has started it again", "has handed over", "SWARM", "0 failed",
	} {
		require.Contains(t, out.String(), text)
	}
	t.Log(out.String())
	require.Empty(t, containersOf(t, engine, d.settings.Cluster, true))
	_, err := engine.ImageInspect(t.Context(), d.image)
	require.True(t, errdefs.IsNotFound(err), "%v", err)
}
