package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
)

const webFile = `
name: shop
services:
  web:
    command: [%q, __web]
    ports: ["%d:80"]
    restart: always
    stop_grace_period: 2s
    deploy: {replicas: 3}
`

// pids asks the containers of a service on some nodes who they are.
func pids(t *testing.T, s *cluster.State, id cluster.ServiceID, on func(cluster.NodeID) bool) map[cluster.TaskID]int {
	t.Helper()
	found := map[cluster.TaskID]int{}
	for _, task := range s.TasksOf(id) {
		if task.Serving() && on(task.Node) {
			pid, err := whoIs(t.Context(), task.Endpoints[0].Address)
			require.NoError(t, err)
			found[task.ID] = pid
		}
	}
	return found
}

// Two managers are processes of their own, the third one lives in this process so that its node can be asked for what no command of a
// user may do.
func TestClusterSurvivesItsLeader(t *testing.T) {
	t.Parallel()
	d := found(t, testHosts()...)
	require.NoError(t, d.launch(d.managers["m1"]))
	require.NoError(t, d.launch(d.managers["m2"]))
	here := runHere(t, d.managers["m3"].dir)
	data := "--data=" + d.managers["m3"].dir
	client := api.NewClient(d.creds, d.members[2].API, d.members[0].API, d.members[1].API)
	defer client.Close()

	// A leader is elected; if it is the one in this process, it hands over, so that there is one to be killed.
	leadElsewhere := func() (v api.View) {
		awaitTrue(t, "a leader that can be killed", func() bool {
			if v = view(t, client); v.Leader == "m3" {
				_, out, errOut := runCommand(t, data, "leader", "change", "m1")
				t.Log(out, errOut) // it may have changed by itself meanwhile
			}
			return v.Leader != "" && v.Leader != "m3"
		})
		return v
	}
	leadElsewhere()
	require.NoError(t, awaitNodes(t.Context(), client, 3))
	require.Contains(t, must(t, data, "status"), "Leader")

	// A Compose file is deployed.
	file := writeCompose(t, webFile, d.program, d.port)
	out := must(t, data, "compose", "up", "-d", "-f", file)
	require.Contains(t, out, "Service shop_web  Created")
	require.Contains(t, out, "shop_web: 3 of 3 tasks are running")
	require.Contains(t, must(t, data, "compose", "up", "-d", "-f", file), "Service shop_web  Running", "nothing has changed")
	require.Contains(t, must(t, data, "service", "scale", "shop_web=4"), "4 of 4 tasks are running")
	require.Contains(t, must(t, data, "compose", "up", "-d", "-f", file), "Service shop_web  Updated", "as in the file again")
	before := leadElsewhere()
	service := before.State.ServiceByName("shop_web").ID
	onNodes := map[cluster.NodeID]int{}
	for _, task := range before.State.TasksOf(service) {
		if task.Serving() {
			onNodes[task.Node]++
		}
	}
	require.Equal(t, map[cluster.NodeID]int{"m1": 1, "m2": 1, "m3": 1}, onNodes)

	// The leader's process is killed. The containers of the others go on untouched, and what is missing is started there.
	killed := before.Leader
	var survivors []string
	for _, m := range d.managers {
		if m.ID != killed {
			survivors = append(survivors, m.host)
		}
	}
	survives := func(id cluster.NodeID) bool { return id != killed }
	old := pids(t, before.State, service, survives)
	require.Len(t, old, 2)
	prober := startProber(d.port, survivors...)
	defer prober.stop()
	require.NoError(t, d.managers[killed].cmd.Process.Kill())
	awaitTrue(t, "a new leader that schedules", func() bool {
		v := view(t, client)
		return v.Leader != killed && v.Leader != "" && v.State.Cluster.Epoch > before.State.Cluster.Epoch
	})
	var after api.View
	awaitTrue(t, "three replicas on the survivors", func() bool {
		after = view(t, client)
		return after.State.Nodes[killed].Status == cluster.NodeDown && serving(after.State, service) == 3
	})
	now := pids(t, after.State, service, survives)
	require.Len(t, now, 3)
	for id, pid := range old {
		require.Equal(t, pid, now[id], "container %s has lived on", id)
	}

	// What the deposed leader's control loop may still say changes nothing, whichever way it comes.
	var task cluster.TaskID
	for id := range maps.Keys(now) {
		task = id
	}
	late, err := cluster.Encode(cluster.Command{
		Epoch: before.State.Cluster.Epoch, At: time.Now(), Op: cluster.StopTask{Task: task, Reason: "said by a leader of the past"},
	})
	require.NoError(t, err)
	_, err = here.Node().Propose(t.Context(), late, raft.IfTerm(before.State.Cluster.Epoch))
	require.ErrorIs(t, err, raft.ErrStaleTerm)
	result, err := here.Node().Propose(t.Context(), late)
	require.NoError(t, err, "it gets into the log")
	require.Equal(t, cluster.Stale, result.(cluster.Result).Code)
	require.Equal(t, cluster.DesiredRunning, view(t, client).State.Tasks[task].Desired)

	score := prober.stop()
	require.Positive(t, score.asked)
	require.Zero(t, score.failed, "%v", score.lastError)

	// compose kill is a crash, which the restart policy repairs.
	require.Contains(t, must(t, data, "compose", "kill", "-f", file), "Killed")
	awaitTrue(t, "three restarted replicas", func() bool {
		v, restarts := view(t, client), 0
		for _, task := range v.State.TasksOf(service) {
			if task.Serving() {
				restarts += task.Attempts
			}
		}
		return serving(v.State, service) == 3 && restarts >= 3 // more if another process took a port that was free
	})

	// compose stop is a wish, which no restart policy undoes: another service comes and goes, and this one is still stopped.
	require.Contains(t, must(t, data, "compose", "stop", "-f", file), "`restart: always` does not undo")
	must(t, data, "service", "create", "--name", "other", "--", d.program, webCommand)
	must(t, data, "service", "rm", "other")
	awaitTrue(t, "the other service is gone", func() bool { return len(view(t, client).State.Services) == 1 })
	for _, task := range view(t, client).State.TasksOf(service) {
		require.False(t, task.Live(), "%s is %s", task.ID, task.State)
	}
	require.Contains(t, must(t, data, "service", "ls"), "0/3 (stopped)")
	require.Contains(t, must(t, data, "compose", "start", "-f", file), "shop_web: 3 of 3 tasks are running")

	// The killed manager comes back, and stops what was replaced meanwhile.
	require.NoError(t, d.launch(d.managers[killed]))
	require.NoError(t, awaitNodes(t.Context(), client, 3))
	awaitTrue(t, "nothing runs there", func() bool {
		left, err := d.running(t.Context(), d.managers[killed])
		return err == nil && len(left) == 0
	})
	require.Contains(t, must(t, data, "compose", "down", "-f", file), "Removed")
	awaitTrue(t, "no service is left", func() bool { return len(view(t, client).State.Services) == 0 })
}

// A manager that is killed and started again within the grace period takes over the containers that it left, as they are.
func TestRestartedManagerAdoptsItsContainers(t *testing.T) {
	t.Parallel()
	d := found(t, "127.0.0.1")
	m := d.managers["m1"]
	require.NoError(t, d.launch(m))
	client := api.NewClient(d.creds, m.API)
	defer client.Close()
	require.NoError(t, awaitNodes(t.Context(), client, 1))
	must(t, "--data", m.dir, "service", "create", "--name", "web", "--replicas", "2", "-p", fmt.Sprintf("%d:80", d.port), "--", d.program, webCommand)
	before := view(t, client)
	id := before.State.ServiceByName("web").ID
	anywhere := func(cluster.NodeID) bool { return true }
	old := pids(t, before.State, id, anywhere)
	require.Len(t, old, 2)

	require.NoError(t, m.cmd.Process.Kill())
	<-m.ended
	require.NoError(t, d.launch(m))
	var after api.View
	awaitTrue(t, "both replicas, in a later epoch", func() bool {
		after = view(t, client)
		return after.State.Cluster.Epoch > before.State.Cluster.Epoch && after.State.Nodes["m1"].Status == cluster.NodeReady && serving(after.State, id) == 2
	})
	require.Equal(t, old, pids(t, after.State, id, anywhere))
	awaitTrue(t, "the published port", func() bool {
		_, err := get(t.Context(), fmt.Sprintf("http://127.0.0.1:%d", d.port))
		return err == nil
	})
}

func awaitNodes(ctx context.Context, client *api.Client, ready int) error {
	return await(ctx, client, testPatience, func(v api.View) bool {
		n := 0
		for _, node := range v.State.Nodes {
			if node.Status == cluster.NodeReady {
				n++
			}
		}
		return n == ready
	})
}

// The demo is what people try first, so it is tried here, where only one address is sure to exist.
func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 25 seconds")
	}
	t.Parallel()
	var out, errOut bytes.Buffer
	code := run(t.Context(), []string{"demo", "--one-address"}, strings.NewReader(""), &out, &errOut)
	require.Zero(t, code, "%s\n%s", out.String(), errOut.String())
	for _, text := range []string{
		"leads in term", "m3 joins as a manager", "3/3 run,", "leads term", "is marked down", "3/3 run again", "is a ready node again",
		"its node has started it again", "has handed over", "version 2 serves in all 6 slots", "update completed", "Summary", "SWARM", "0 failed",
	} {
		require.Contains(t, out.String(), text)
	}
	require.NotContains(t, out.String(), "\x1b", "colours are for terminals")
}

// single is a cluster of one, and the argument that names it.
func single(t *testing.T) (data string, d *demo) {
	t.Helper()
	d = found(t, "127.0.0.1")
	runHere(t, d.managers["m1"].dir)
	client := api.NewClient(d.creds, d.members[0].API)
	defer client.Close()
	require.NoError(t, awaitNodes(t.Context(), client, 1))
	return "--data=" + d.managers["m1"].dir, d
}

func TestErrorsSayWhatToDoNext(t *testing.T) {
	t.Parallel()
	data, d := single(t)
	held, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer held.Close()
	_, heldPort, err := net.SplitHostPort(held.Addr().String())
	require.NoError(t, err)

	// A manager of another cluster that knows the addresses of this one.
	ca, err := pki.NewCA("other")
	require.NoError(t, err)
	stranger := t.TempDir()
	require.NoError(t, manager.Found(t.Context(), stranger, manager.Settings{Cluster: "other", Node: "m1", Host: "127.0.0.1", Members: d.members}, ca))

	must(t, data, "service", "create", "--name", "web", "--publish", fmt.Sprintf("%d:80", d.port), "--", d.program, webCommand)
	for _, test := range []struct {
		name string
		args []string
		code int
		text string
	}{
		{"no such command", []string{"servce"}, exitUsage, "see orchestrator help"},
		{"half a command", []string{"service", "destroy"}, exitUsage, "service create"},
		{"unknown flag", []string{"service", "ls", "--colour"}, exitUsage, "see orchestrator service ls --help"},
		{"unknown format", []string{"service", "ls", "--format", "xml"}, exitUsage, "want table or json"},
		{"no manager there", []string{"--data", t.TempDir(), "service", "ls"}, exitRefused, "start one with `orchestrator up`"},
		{"no name", []string{data, "service", "create", "--", "sleep", "1"}, exitUsage, "--name: required"},
		{"no command to run", []string{data, "service", "create", "--name", "a"}, exitUsage, "neither an image nor a command"},
		{"an image, where processes run", []string{data, "service", "create", "nginx:latest"}, exitRefused, "nginx:latest needs a node with `--runtime docker`"},
		{"two images", []string{data, "service", "create", "--image", "nginx", "redis"}, exitUsage, "want one image"},
		{"a command without --", []string{data, "service", "create", "--name", "a", "sleep", "1"}, exitUsage, "comes behind --"},
		{"bad port", []string{data, "service", "create", "--name", "a", "--publish", "80", "--", "sleep", "1"}, exitUsage, "want published=8080,target=80"},
		{"name in use", []string{data, "service", "create", "--name", "web", "--", "sleep", "1"}, exitRefused, `service "web" exists already`},
		{"published port of another service", []string{data, "service", "create", "--name", "a", "-p", fmt.Sprintf("%d:80", d.port), "--", "sleep", "1"},
			exitRefused, `is published by service "web" already`},
		{"no such service", []string{data, "service", "ps", "wbe"}, exitRefused, "service ls` shows"},
		{"not a number", []string{data, "service", "scale", "web=many"}, exitUsage, "want SERVICE=REPLICAS"},
		{"too many replicas", []string{data, "service", "scale", "web=100000"}, exitRefused, "want 0 to 1000"},
		{"nobody to hand over to", []string{data, "leader", "change", "m9"}, exitRefused, "m9"},
		{"no Compose file", []string{data, "compose", "up", "-d", "-f", "/nowhere.yaml"}, exitRefused, "name one with -f"},
		{"attached", []string{data, "compose", "up", "-f", writeCompose(t, webFile, "a", 1)}, exitUsage, "add -d"},
		{"unsupported key", []string{data, "compose", "up", "-d", "-f", writeCompose(t, "services: {web: {command: a, privileged: true}}")},
			exitRefused, "services.web.privileged: not supported"},
		{"image only", []string{data, "compose", "up", "-d", "-f", writeCompose(t, "services: {web: {image: nginx}}")}, exitRefused, "its nodes refuse to run it"},
		{"odd runtime", []string{"--data", t.TempDir(), "init", "--runtime", "podman"}, exitRefused, "want process or docker"},
		{"docker host without docker", []string{"--data", t.TempDir(), "init", "--docker-host", "unix:///x"}, exitRefused, "of no use without the docker runtime"},
		{"no engine", []string{"--data", t.TempDir(), "init", "--runtime=docker", "--docker-host", "unix:///nowhere.sock"}, exitRefused, "use --runtime process"},
		{"odd partition", []string{"--data", t.TempDir(), "init", "--on-partition", "panic"}, exitUsage, "want keep or stop"},
		{"another runtime", []string{data, "up", "--runtime", "docker"}, exitRefused, "--runtime is process there, not docker"},
		{"used data directory", []string{data, "up", "--name", "m7"}, exitRefused, "--name is m1 there, not m7"},
		{"running already", []string{data, "up"}, exitRefused, "in use by another process"},
		{"port in use", []string{"--data", t.TempDir(), "up", "--api-port", heldPort}, exitRefused, "in use by another process"},
		{"wrong certificate", []string{"--data", stranger, "service", "ls"}, exitRefused, "check the address"},
	} {
		t.Run(test.name, func(t *testing.T) {
			code, out, errOut := runCommand(t, test.args...)
			require.Equal(t, test.code, code, "%s\n%s", out, errOut)
			require.Contains(t, errOut, test.text)
		})
	}
}

func TestPublishedPortInUseIsReported(t *testing.T) {
	t.Parallel()
	data, d := single(t)
	held, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	port := held.Addr().(*net.TCPAddr).Port
	must(t, data, "service", "create", "--name", "web", "--publish", fmt.Sprintf("published=%d,target=80", port), "--", d.program, webCommand)
	problem := fmt.Sprintf("problem: node m1: published port %d: ", port)
	awaitTrue(t, "the problem", func() bool {
		_, _, errOut := runCommand(t, data, "status")
		return strings.Contains(errOut, problem) && strings.Contains(errOut, "free the port or publish another one")
	})
	require.NoError(t, held.Close())
	awaitTrue(t, "the port", func() bool {
		_, err := get(t.Context(), fmt.Sprintf("http://127.0.0.1:%d", port))
		return err == nil
	})
}

func TestWithoutAnyManager(t *testing.T) {
	t.Parallel()
	d := found(t, "127.0.0.1")
	data := "--data=" + d.managers["m1"].dir
	code, out, errOut := runCommand(t, data, "status")
	require.Equal(t, exitUnavailable, code)
	require.Contains(t, out, "Unreachable")
	require.Contains(t, errOut, "more than half")
}

func TestJSONOutput(t *testing.T) {
	t.Parallel()
	data, _ := single(t)
	var row map[string]string
	require.NoError(t, json.Unmarshal([]byte(must(t, data, "node", "ls", "--format=json")), &row))
	require.Equal(t, "m1", row["id"])
	require.Equal(t, "Leader", row["manager_status"])
}
