package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	goruntime "runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
)

// flagsOf are the flags that say who a node is and where.
func flagsOf(t *testing.T, m *demoManager) []string {
	t.Helper()
	_, apiPort, err := net.SplitHostPort(m.API)
	require.NoError(t, err)
	_, raftPort, err := net.SplitHostPort(m.Raft)
	require.NoError(t, err)
	return []string{"--name", string(m.ID), "--host", m.host, "--api-port", apiPort, "--raft-port", raftPort}
}

// The life of a cluster as it is typed: init, three joins, work on a worker, a standby, and at the end the founder leaves.
func TestClusterGrowsAndShrinks(t *testing.T) {
	t.Parallel()
	hosts := append(testHosts(), "127.0.0.1")
	if goruntime.GOOS == "linux" {
		hosts[3] = "127.0.0.24"
	}
	d := machines(t, hosts...)
	m1, m2, m3, w1 := d.managers["m1"], d.managers["m2"], d.managers["m3"], d.managers["m4"]
	w1.ID = "w1"
	data := "--data=" + m2.dir

	require.NoError(t, d.launch(m1, append([]string{"init"}, flagsOf(t, m1)...)...))
	var tokens [][]byte
	awaitTrue(t, "the tokens", func() bool {
		log, err := os.ReadFile(m1.dir + ".log")
		tokens = nil
		for _, match := range regexp.MustCompile(`join --token (\S+) `).FindAllSubmatch(log, -1) {
			tokens = append(tokens, match[1])
		}
		return err == nil && strings.Contains(string(log), "not shown again")
	})
	require.Len(t, tokens, 2)
	workerToken, managerToken := string(tokens[0]), string(tokens[1])
	join := func(m *demoManager, token string, addresses ...string) {
		t.Helper()
		require.NoError(t, d.launch(m, append(append([]string{"join", "--token", token}, flagsOf(t, m)...), addresses...)...))
	}
	joinSecretly := func(m *demoManager, token string, addresses ...string) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "token")
		require.NoError(t, os.WriteFile(file, []byte(token+"\n"), 0o600))
		require.NoError(t, d.launch(m, append(append([]string{"join", "--token-file", file}, flagsOf(t, m)...), addresses...)...))
	}
	join(m2, managerToken, m1.API)
	join(m3, managerToken, m1.API)
	joinSecretly(w1, workerToken, "127.0.0.1:1", m1.API) // any manager that answers will do
	awaitTrue(t, "m2 is set up", func() bool {
		_, creds, err := manager.Load(m2.dir, nil)
		d.creds = creds
		return err == nil
	})
	client := api.NewClient(d.creds, m1.API, m2.API, m3.API)
	defer client.Close()
	require.NoError(t, awaitNodes(t.Context(), client, 4))
	awaitTrue(t, "three votes", func() bool {
		v := view(t, client)
		return len(v.Members) == 3 && !v.Members[1].Standby && !v.Members[2].Standby
	})
	workerReady := regexp.MustCompile(`w1 +127\.0\.0\.\d+ +Ready +Active +0`)
	awaitTrue(t, "a worker, which has no manager status", func() bool { return workerReady.MatchString(must(t, data, "node", "ls")) })

	// A service runs on all four nodes, the worker's task is killed through the managers, and draining the worker moves it.
	file := writeCompose(t, webFile, d.program, d.port)
	must(t, data, "compose", "up", "-d", "-f", file)
	service := view(t, client).State.ServiceByName("shop_web").ID
	onWorker := func(s *cluster.State) *cluster.Task {
		for _, task := range s.TasksOf(service) {
			if task.Node == "w1" && task.Serving() {
				return task
			}
		}
		return nil
	}
	// placeOnWorker scales until the worker has one of the new tasks: it gets none while a new leader has not heard it yet.
	placeOnWorker := func(from, to int) (task *cluster.Task) {
		awaitTrue(t, "a task on the worker", func() bool {
			must(t, data, "service", "scale", fmt.Sprintf("shop_web=%d", to))
			if task = onWorker(view(t, client).State); task == nil {
				must(t, data, "service", "scale", fmt.Sprintf("shop_web=%d", from))
			}
			return task != nil
		})
		return task
	}
	before := placeOnWorker(3, 4)
	must(t, data, "compose", "kill", "-f", file)
	awaitTrue(t, "the killed tasks are restarted", func() bool {
		v := view(t, client)
		task := onWorker(v.State)
		return serving(v.State, service) == 4 && task != nil && task.Attempts > before.Attempts
	})
	must(t, data, "node", "update", "--availability", "drain", "w1")
	awaitTrue(t, "four tasks, none on the worker", func() bool {
		v := view(t, client)
		return serving(v.State, service) == 4 && len(v.State.TasksOn("w1")) == 0
	})
	require.Contains(t, must(t, data, "node", "ls"), "Drain")
	must(t, data, "node", "update", "--availability", "active", "w1")

	// A manager without a vote is a standby.
	require.Equal(t, "m3\n", mustSoon(t, data, "node", "demote", "m3"))
	require.Contains(t, must(t, data, "node", "ls"), "Standby")
	require.Contains(t, must(t, data, "leader", "ls"), "Standby")
	var inspected struct {
		ID      cluster.NodeID
		Manager api.Member
	}
	require.NoError(t, json.Unmarshal([]byte(must(t, data, "node", "inspect", "m3")), &inspected))
	require.Equal(t, cluster.NodeID("m3"), inspected.ID)
	require.True(t, inspected.Manager.Standby)
	mustSoon(t, data, "node", "promote", "m3")

	// The founder leaves, leader or not. Who is asked for the status from then on is who is there now.
	require.Contains(t, mustSoon(t, "--data", m1.dir, "leave"), "m1 has left")
	<-m1.ended
	require.ErrorContains(t, m1.err, "exit status 1")
	log, err := os.ReadFile(m1.dir + ".log")
	require.NoError(t, err)
	require.Contains(t, string(log), "was removed from the cluster")
	for _, dir := range []string{m2.dir, m3.dir} {
		for _, command := range [][]string{{"status"}, {"leader", "ls"}} {
			awaitTrue(t, "both managers and nobody else", func() bool { // one that gets no processor counts as unreachable
				_, out, _ := runCommand(t, append([]string{"--data", dir}, command...)...)
				return !strings.Contains(out, "Unreachable") && !strings.Contains(out, "m1") && strings.Contains(out, "m2") && strings.Contains(out, "m3")
			})
		}
	}
	code, _, errOut := runCommand(t, "--data", m1.dir, "up")
	require.Equal(t, exitRefused, code)
	require.Contains(t, errOut, "was removed from the cluster")
	require.Contains(t, must(t, "--data", m1.dir, "leave"), "m1 has left", "said twice")

	// What is not allowed is refused with the reason.
	used := "--data=" + m3.dir
	empty := func() string { return "--data=" + t.TempDir() }
	rotated := strings.TrimSpace(must(t, data, "token", "--rotate"))
	must(t, data, "token", "--role=manager", "--rotate", "--expires=1h")
	for _, test := range []struct {
		name string
		args []string
		code int
		text string
	}{
		{"a worker's certificate", []string{"--data", w1.dir, "service", "ls"}, exitRefused, "w1 is a worker, which may not do this"},
		{"a removed manager's certificate", []string{"--data", m1.dir, "service", "ls"}, exitRefused, "m1 was removed"},
		{"promote a worker", []string{data, "node", "promote", "w1"}, exitRefused, "w1 is a worker, which has no log"},
		{"remove nobody", []string{data, "node", "rm"}, exitUsage, "at least one node"},
		{"remove a stranger", []string{data, "node", "rm", "w7"}, exitRefused, `no node "w7"`},
		{"inspect a stranger", []string{data, "node", "inspect", "w7"}, exitRefused, "node ls` shows"},
		{"odd availability", []string{data, "node", "update", "--availability=off", "w1"}, exitUsage, "want active, pause or drain"},
		{"no availability", []string{data, "node", "update", "w1"}, exitUsage, "--availability"},
		{"a second token", []string{data, "token"}, exitRefused, "rotate it to get a new one"},
		{"odd role", []string{data, "token", "--role", "king"}, exitUsage, "worker or manager"},
		{"join without a token", []string{empty(), "join", m2.API}, exitUsage, "not a join token"},
		{"join with two tokens", []string{empty(), "join", "--token", rotated, "--token-file", "token", m2.API}, exitUsage, "not both"},
		{"join with a token file that is not there", []string{empty(), "join", "--token-file", "no-such-file", m2.API}, exitRefused, "no-such-file"},
		{"join nowhere", []string{empty(), "join", "--token", rotated}, exitUsage, "host:port"},
		{"join with a rotated token", []string{empty(), "join", "--token", workerToken, m2.API}, exitRefused, "wrong, was rotated, or has expired"},
		{"join with another cluster's token", []string{empty(), "join", "--token", otherCluster(rotated), m2.API}, exitRefused, "check the address"},
		{"join under a used name", []string{empty(), "join", "--token", rotated, "--name", "m2", m2.API}, exitRefused, "choose another name"},
		{"join under a removed name", []string{empty(), "join", "--token", rotated, "--name", "m1", m2.API}, exitRefused, "under a new name"},
		{"join twice", []string{used, "join", "--token", rotated, m2.API}, exitRefused, "belongs to a node already"},
		{"init twice", []string{used, "init"}, exitRefused, "belongs to a node already"},
		{"leave what was never joined", []string{empty(), "leave"}, exitRefused, "no node has been set up there"},
	} {
		t.Run(test.name, func(t *testing.T) {
			code, out, errOut := runCommand(t, test.args...)
			require.Equal(t, test.code, code, "%s\n%s", out, errOut)
			require.Contains(t, errOut, test.text)
		})
	}

	// The worker leaves by itself. Its tasks are stopped there and run elsewhere.
	placeOnWorker(4, 6)
	require.Contains(t, must(t, "--data", w1.dir, "leave"), "w1 has left")
	<-w1.ended
	left, err := d.running(t.Context(), w1)
	require.NoError(t, err)
	require.Empty(t, left)
	awaitTrue(t, "six tasks on the managers", func() bool {
		v := view(t, client)
		return serving(v.State, service) == 6 && len(v.State.Nodes) == 2
	})
}

// otherCluster changes the digest in a token.
func otherCluster(token string) string {
	digit := "0"
	if token[6] == '0' {
		digit = "1"
	}
	return token[:6] + digit + token[7:]
}
