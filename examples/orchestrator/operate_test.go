package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
)

func TestSnapshotIsSavedAndRestoredIntoANewCluster(t *testing.T) {
	t.Parallel()
	data, d := single(t)
	must(t, data, "service", "create", "--name", "web", "--replicas", "2", "-p", fmt.Sprintf("%d:80", d.port), "-e", "A=<b>", "--", d.program, webCommand)
	must(t, data, "service", "create", "--name", "idle", "--replicas", "0", "--", "sleep", "1000")
	must(t, data, "service", "stop", "idle")
	file := filepath.Join(t.TempDir(), "state.json")
	require.Contains(t, must(t, data, "snapshot", "save", file), "2 services, 2 tasks")
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())
	saved, err := os.ReadFile(file)
	require.NoError(t, err)

	changed := func(name string, change func(string) string) string {
		path := filepath.Join(t.TempDir(), name)
		require.NoError(t, os.WriteFile(path, []byte(change(string(saved))), 0o600))
		return path
	}
	other, _ := single(t)
	for _, test := range []struct {
		name string
		args []string
		text string
	}{
		{"the file exists", []string{data, "snapshot", "save", file}, "file exists"},
		{"nowhere to save", []string{data, "snapshot", "save", "/nowhere/state"}, "no such file"},
		{"no file", []string{other, "snapshot", "restore", file + "x"}, "no such file"},
		{"a changed file", []string{other, "snapshot", "restore", changed("a", func(s string) string { return strings.Replace(s, `"replicas":2`, `"replicas":3`, 1) })}, "damaged"},
		{"half a file", []string{other, "snapshot", "restore", changed("b", func(s string) string { return s[:len(s)/2] })}, "cut off"},
		{"another format", []string{other, "snapshot", "restore", changed("c", func(s string) string { return strings.Replace(s, `"format":1`, `"format":9`, 1) })}, "format 9"},
		{"another file", []string{other, "snapshot", "restore", changed("d", func(string) string { return "hello" })}, "not a snapshot"},
		{"a cluster in use", []string{data, "snapshot", "restore", file}, "the cluster is in use"},
	} {
		t.Run(test.name, func(t *testing.T) {
			code, _, errOut := runCommand(t, test.args...)
			require.Equal(t, exitRefused, code)
			require.Contains(t, errOut, test.text)
		})
	}
	left, err := os.ReadDir(filepath.Dir(file))
	require.NoError(t, err)
	require.Len(t, left, 1, "nothing is left of a file that could not be saved")

	must(t, data, "service", "rm", "web") // its port is on the same address
	out := must(t, other, "snapshot", "restore", file)
	require.Contains(t, out, "Restored 2 services with 2 replicas of cluster test")
	require.Contains(t, out, "Not restored")
	awaitTrue(t, "both replicas of the new cluster", func() bool {
		list := must(t, other, "service", "ls")
		return strings.Contains(list, "2/2") && strings.Contains(list, "0/0 (stopped)")
	})
	awaitTrue(t, "the published port", func() bool {
		_, err := get(t.Context(), fmt.Sprintf("http://127.0.0.1:%d", d.port))
		return err == nil
	})
	require.Contains(t, must(t, other, "service", "inspect", "web"), `"A": "\u003cb\u003e"`)
	// By force: what there is goes, and what was saved comes, at once.
	must(t, other, "snapshot", "restore", "--force", file)
	awaitTrue(t, "two new replicas, and nothing of the old ones", func() bool {
		list := must(t, other, "service", "ls")
		return strings.Contains(list, "2/2") && !strings.Contains(list, "removing")
	})
}

// Two of three managers are lost for ever. The third goes on alone, what runs goes on without noticing, and new managers join.
func TestRecoverFromAMinority(t *testing.T) {
	t.Parallel()
	hosts := append(testHosts(), "127.0.0.1", "127.0.0.1")
	if goruntime.GOOS == "linux" {
		hosts[3], hosts[4] = "127.0.0.24", "127.0.0.25"
	}
	d := machines(t, hosts...)
	ca, err := pki.NewCA("test")
	require.NoError(t, err)
	for i, member := range d.members[:3] {
		settings := manager.Settings{Cluster: "test", Node: member.ID, Host: hosts[i], Members: d.members[:3]}
		require.NoError(t, manager.Found(t.Context(), d.managers[member.ID].dir, settings, ca))
		require.NoError(t, d.launch(d.managers[member.ID]))
	}
	m1, w1, m4 := d.managers["m1"], d.managers["m4"], d.managers["m5"]
	w1.ID = "w1"
	_, d.creds, err = manager.Load(m1.dir, nil)
	require.NoError(t, err)
	client := api.NewClient(d.creds, m1.API)
	require.NoError(t, awaitNodes(t.Context(), client, 3))
	data := "--data=" + m1.dir
	workerToken := strings.TrimSpace(must(t, data, "token", "--role", "worker"))
	require.NoError(t, d.launch(w1, append([]string{"join", "--token", workerToken}, append(flagsOf(t, w1), m1.API)...)...))
	require.NoError(t, awaitNodes(t.Context(), client, 4))
	for _, m := range []string{"m1", "m2", "m3"} {
		must(t, data, "node", "update", "--availability", "drain", m)
	}
	must(t, data, "service", "create", "--name", "web", "--replicas", "2", "-p", fmt.Sprintf("%d:80", d.port), "--", d.program, webCommand)
	before := view(t, client)
	client.Close()
	service := before.State.ServiceByName("web").ID
	onWorker := func(id cluster.NodeID) bool { return id == "w1" }
	old := pids(t, before.State, service, onWorker)
	require.Len(t, old, 2)
	prober := startProber(d.port, w1.host)
	defer prober.stop()

	code, _, errOut := runCommand(t, data, "recover", "--yes")
	require.Equal(t, exitRefused, code)
	require.Contains(t, errOut, "stop the manager first", "it is running")
	code, _, errOut = runCommand(t, "--data", w1.dir, "recover", "--yes")
	require.Equal(t, exitRefused, code)
	require.Contains(t, errOut, "is a worker")

	// The disaster.
	for _, id := range []cluster.NodeID{"m2", "m3"} {
		require.NoError(t, d.managers[id].cmd.Process.Kill())
		<-d.managers[id].ended
	}
	awaitTrue(t, "no quorum", func() bool {
		code, _, _ := runCommand(t, data, "status")
		return code == exitUnavailable
	})
	require.NoError(t, m1.cmd.Process.Signal(syscall.SIGTERM))
	<-m1.ended
	kept := filepath.Join(t.TempDir(), "kept") // what a crash halfway would have left
	require.NoError(t, os.CopyFS(kept, os.DirFS(m1.dir)))

	code, out, errOut := runProgram(t, d, "recover", data) // standard input is empty
	require.Equal(t, exitRefused, code)
	require.Contains(t, errOut, "nothing was changed")
	require.Contains(t, out, "m2, m3 are removed for ever")
	require.Contains(t, out, "What may be lost")
	code, out, errOut = runProgram(t, d, "recover", data, "--yes")
	require.Zero(t, code, errOut)
	require.Contains(t, out, "is the only one of cluster test.r1")
	// The library's part was done and ours was not: that is the same as a crash in between.
	for _, name := range []string{"node.json", "pki/node.pem"} {
		content, err := os.ReadFile(filepath.Join(kept, name))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(m1.dir, name), content, 0o600))
	}
	code, _, _ = runCommand(t, data, "up")
	require.Equal(t, exitRefused, code, "half recovered")
	code, out, errOut = runProgram(t, d, "recover", data, "--yes")
	require.Zero(t, code, errOut)
	require.Contains(t, out, "is the only one of cluster test.r1")

	require.NoError(t, d.launch(m1))
	_, d.creds, err = manager.Load(m1.dir, nil)
	require.NoError(t, err)
	client = api.NewClient(d.creds, m1.API)
	defer client.Close()
	var after api.View
	awaitTrue(t, "the worker and the recovered manager, and nobody else, in a new epoch", func() bool {
		after = view(t, client)
		w := after.State.Nodes["w1"]
		return len(after.State.Nodes) == 2 && w != nil && w.Status == cluster.NodeReady && serving(after.State, service) == 2 &&
			after.State.Cluster.Epoch > before.State.Cluster.Epoch
	})
	require.Equal(t, old, pids(t, after.State, service, onWorker), "what runs has not noticed")
	must(t, data, "service", "scale", "web=3")

	// A lost manager that comes back is nobody here.
	code, _, errOut = runCommand(t, "--data", d.managers["m2"].dir, "service", "ls")
	require.NotZero(t, code, errOut)
	lost := api.NewClient(mustCredentials(t, d.managers["m2"].dir), m1.API)
	defer lost.Close()
	_, err = lost.State(t.Context())
	require.ErrorContains(t, err, "m2 was removed")

	// New managers join, and the worker learns of them.
	managerToken := strings.TrimSpace(must(t, data, "token", "--role", "manager", "--rotate"))
	m4.ID = "m4"
	require.NoError(t, d.launch(m4, append([]string{"join", "--token", managerToken}, append(flagsOf(t, m4), m1.API)...)...))
	awaitTrue(t, "two votes", func() bool {
		v := view(t, client)
		return len(v.Members) == 2 && !v.Members[0].Standby && !v.Members[1].Standby && v.State.Nodes["m4"] != nil && v.State.Nodes["m4"].Status == cluster.NodeReady
	})
	mustSoon(t, data, "leader", "change", "m4")
	awaitTrue(t, "the worker heard by the new leader", func() bool {
		v := view(t, client)
		return v.Leader == "m4" && v.State.Nodes["w1"].Status == cluster.NodeReady
	})
	score := prober.stop()
	require.Positive(t, score.asked)
	require.Zero(t, score.failed, "%v", score.lastError)
}

// runProgram runs a command in a process of its own. What takes the lock of a data directory twice is not run here: while this process starts
// others, for a moment they hold the locks that it has just given back.
func runProgram(t *testing.T, d *demo, args ...string) (code int, out, errOut string) {
	t.Helper()
	var o, e bytes.Buffer
	cmd := exec.CommandContext(t.Context(), d.program, args...)
	cmd.Stdout, cmd.Stderr = &o, &e
	if err := cmd.Run(); err != nil {
		require.ErrorAs(t, err, new(*exec.ExitError))
	}
	return cmd.ProcessState.ExitCode(), o.String(), e.String()
}

func mustCredentials(t *testing.T, dir string) *pki.Credentials {
	t.Helper()
	_, credentials, err := manager.Load(dir, nil)
	require.NoError(t, err)
	return credentials
}

// The CA is rotated while everything runs: every node gets a certificate of the new one, and those of the old one open nothing any more.
func TestCAIsRotated(t *testing.T) {
	t.Parallel()
	hosts := append(testHosts(), "127.0.0.1", "127.0.0.1")
	if goruntime.GOOS == "linux" {
		hosts[3], hosts[4] = "127.0.0.24", "127.0.0.25"
	}
	d := machines(t, hosts...)
	ports := pagePorts(t, d)
	ca, err := pki.NewCA("test")
	require.NoError(t, err)
	for i, member := range d.members[:3] {
		settings := manager.Settings{Cluster: "test", Node: member.ID, Host: hosts[i], Members: d.members[:3]}
		require.NoError(t, manager.Found(t.Context(), d.managers[member.ID].dir, settings, ca))
		require.NoError(t, d.launch(d.managers[member.ID], "up", "--page-port", ports[member.ID]))
	}
	m1, m2, w1, w2 := d.managers["m1"], d.managers["m2"], d.managers["m4"], d.managers["m5"]
	w1.ID, w2.ID = "w1", "w2"
	data := "--data=" + m1.dir
	client := func() *api.Client {
		c := api.NewClient(mustCredentials(t, m1.dir), m1.API, m2.API)
		t.Cleanup(c.Close)
		return c
	}
	before := client()
	require.NoError(t, awaitNodes(t.Context(), before, 3))
	token := strings.TrimSpace(must(t, data, "token", "--role", "worker"))
	for _, w := range []*demoManager{w1, w2} {
		require.NoError(t, d.launch(w, append([]string{"join", "--token", token}, append(flagsOf(t, w), m1.API)...)...))
	}
	require.NoError(t, awaitNodes(t.Context(), before, 5))
	must(t, data, "service", "create", "--name", "web", "--replicas", "5", "-p", fmt.Sprintf("%d:80", d.port), "--", d.program, webCommand)
	v := view(t, before)
	service := v.State.ServiceByName("web").ID
	anywhere := func(cluster.NodeID) bool { return true }
	old := pids(t, v.State, service, anywhere)
	prober := startProber(d.port, m1.host, m2.host, w1.host)
	defer prober.stop()
	stolen := filepath.Join(t.TempDir(), "stolen") // what somebody has copied before
	require.NoError(t, os.CopyFS(filepath.Join(stolen, "pki"), os.DirFS(filepath.Join(m2.dir, "pki"))))
	settings, err := os.ReadFile(filepath.Join(m2.dir, "node.json"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(stolen, "node.json"), settings, 0o600))
	oldDigest := mustCredentials(t, m1.dir).Issuer()
	pageBefore := must(t, data, "page")

	events, _, stopEvents := follow(t, "--data="+m2.dir, "events", "-f")
	awaitTrue(t, "the events so far", func() bool { return strings.Contains(events.String(), "created with 5 replicas") })
	out := must(t, data, "ca", "rotate")
	require.Contains(t, out, "1/2  The new CA")
	require.Contains(t, out, "2/2  The new CA")
	require.Contains(t, out, "The old CA is dropped")
	for _, m := range []*demoManager{m1, m2, d.managers["m3"], w1, w2} {
		credentials := mustCredentials(t, m.dir)
		require.NotEqual(t, oldDigest, credentials.Issuer(), m.ID)
		awaitTrue(t, "only the new one is trusted", func() bool { return len(mustCredentials(t, m.dir).Trusts()) == 1 })
	}
	awaitTrue(t, "a command that runs for long goes on with the new certificate", func() bool { return strings.Contains(events.String(), "is dropped") })
	stopEvents()
	after := client()
	require.NoError(t, awaitNodes(t.Context(), after, 5))
	require.Equal(t, old, pids(t, view(t, after).State, service, anywhere), "nothing was interrupted")
	mustSoon(t, data, "leader", "change") // all that is new between the managers is made with the new certificates

	// What is of the old CA opens nothing: a manager's certificate, one that somebody makes with the old key, a token.
	code, _, errOut := runCommand(t, "--data", stolen, "service", "ls")
	require.Equal(t, exitRefused, code)
	require.Contains(t, errOut, "certificate")
	forged, err := ca.Issue("m9", cluster.RoleManager, m1.host)
	require.NoError(t, err)
	certificate, err := forged.Certificate()
	require.NoError(t, err)
	for _, address := range []string{m1.API, m1.Raft} {
		conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*certificate}})
		if err == nil { // in TLS 1.3 the client hears of it with the first read
			require.NoError(t, conn.SetDeadline(time.Now().Add(testPatience)))
			_, err = conn.Read(make([]byte, 1))
			require.NoError(t, conn.Close())
		}
		require.ErrorContains(t, err, "remote error: tls", address)
	}
	code, _, errOut = runCommand(t, "--data", t.TempDir(), "join", "--token", token, m1.API)
	require.Equal(t, exitRefused, code)
	require.Contains(t, errOut, "does not belong to the cluster that has made the token")
	require.NotEqual(t, strings.Split(pageBefore, "-")[2], strings.Split(must(t, data, "page"), "-")[2])

	// Everything goes on from here: a restart, a new token, a second rotation with a node that is down.
	require.NoError(t, m2.cmd.Process.Kill())
	<-m2.ended
	require.NoError(t, d.launch(m2))
	require.NoError(t, awaitNodes(t.Context(), after, 5))
	must(t, data, "token", "--role", "worker")
	require.NoError(t, w2.cmd.Process.Kill())
	<-w2.ended
	awaitTrue(t, "w2 is down", func() bool { return view(t, after).State.Nodes["w2"].Status == cluster.NodeDown })
	rotated := &printed{}
	ctx, interrupt := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, []string{data, "ca", "rotate"}, strings.NewReader(""), rotated, rotated) }()
	awaitTrue(t, "it waits for w2", func() bool { return strings.Contains(rotated.String(), "yet to trust it: w2 (down)\n") })
	code, _, errOut = runCommand(t, data, "token", "--role", "worker", "--rotate")
	require.Equal(t, exitRefused, code)
	require.Contains(t, errOut, "is being rotated")
	interrupt()
	require.Equal(t, exitRefused, <-ended)
	require.Contains(t, rotated.String(), "goes on with it")
	require.Contains(t, must(t, data, "ca", "rotate", "--abort"), "the CA is what it was")
	require.Contains(t, must(t, data, "ca", "rotate", "--force"), "The old CA is dropped")
	require.NoError(t, d.launch(w2)) // it has missed it all
	code, _, errOut = runCommand(t, "--data", w2.dir, "leave")
	require.NotZero(t, code)
	require.Contains(t, errOut, "no valid certificate of our cluster")
	last := client()
	require.NoError(t, awaitNodes(t.Context(), last, 4))
	require.Equal(t, cluster.NodeDown, view(t, last).State.Nodes["w2"].Status)
	must(t, data, "node", "rm", "w2")
	score := prober.stop()
	require.Positive(t, score.asked)
	require.Zero(t, score.failed, "%v", score.lastError)
}
