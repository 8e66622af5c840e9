package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
)

// testPatience bounds what a test waits for. It is no measure: three dozen containers start in a few seconds, and on a machine that is busy
// with other things in a minute.
const testPatience = 2 * time.Minute

// The test binary is also the orchestrator: its managers, shims and containers are processes that run it.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == goldenCommand {
		os.Exit(goldenMain(os.Args[2:]))
	}
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		main()
	}
	os.Exit(m.Run())
}

// runCommand runs one command line in this process.
func runCommand(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(""), &o, &e)
	return code, o.String(), e.String()
}

// must runs a command that has to succeed.
func must(t *testing.T, args ...string) string {
	t.Helper()
	code, out, errOut := runCommand(t, args...)
	require.Zero(t, code, "%s\n%s\n%s", strings.Join(args, " "), out, errOut)
	return out
}

// mustSoon runs a command that means the same when it comes twice, until it succeeds: managers that get no processor for a while count as
// gone, and what would then cost the quorum is refused.
func mustSoon(t *testing.T, args ...string) (out string) {
	t.Helper()
	awaitTrue(t, strings.Join(args, " "), func() bool {
		var code int
		code, out, _ = runCommand(t, args...)
		return code == 0
	})
	return out
}

// testHosts are addresses of nodes; where there is only one, all nodes share it.
func testHosts() []string {
	if goruntime.GOOS == "linux" {
		return []string{"127.0.0.21", "127.0.0.22", "127.0.0.23"}
	}
	return []string{"127.0.0.1", "127.0.0.1", "127.0.0.1"}
}

// clusters counts those of this process, so that tests which run at the same time publish different ports.
var clusters atomic.Int32

// machines chooses addresses and names of directories for nodes, and sees to it that nothing outlives the test.
func machines(t *testing.T, hosts ...string) (d *demo) {
	t.Helper()
	d = &demo{screen: newScreen(&bytes.Buffer{}), dir: t.TempDir(), program: os.Args[0], managers: map[cluster.NodeID]*demoManager{}}
	var err error
	d.members, d.port, err = choosePorts(hosts, 10_000+os.Getpid()%200*100+20*int(clusters.Add(1)))
	require.NoError(t, err)
	for i, member := range d.members {
		d.managers[member.ID] = &demoManager{Member: member, host: hosts[i], dir: filepath.Join(d.dir, string(member.ID)), ended: make(chan struct{})}
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, m := range d.managers {
				log, _ := os.ReadFile(m.dir + ".log")
				t.Logf("%s:\n%s", m.ID, log)
			}
		}
		require.NoError(t, d.cleanUp())
	})
	return d
}

// found makes the directories of managers that have not been started.
func found(t *testing.T, hosts ...string) (d *demo) {
	t.Helper()
	return foundAs(t, func(*manager.Settings) {}, hosts...)
}

// foundAs is found with other settings.
func foundAs(t *testing.T, change func(*manager.Settings), hosts ...string) (d *demo) {
	t.Helper()
	d = machines(t, hosts...)
	d.settings = manager.Settings{Cluster: "test", Members: d.members}
	change(&d.settings)
	ca, err := pki.NewCA(d.settings.Cluster)
	require.NoError(t, err)
	for i, member := range d.members {
		m := d.managers[member.ID]
		d.settings.Node, d.settings.Host = member.ID, hosts[i]
		require.NoError(t, manager.Found(t.Context(), m.dir, d.settings, ca))
		_, d.creds, err = manager.Load(m.dir, nil)
		require.NoError(t, err)
	}
	return d
}

// runHere runs a manager in this process until the test ends.
func runHere(t *testing.T, dir string) *manager.Manager {
	t.Helper()
	m, err := manager.Open(dir, manager.Options{})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	return m
}

// awaitTrue looks until it is good.
func awaitTrue(t *testing.T, what string, good func() bool) {
	t.Helper()
	require.Eventually(t, good, testPatience, 20*time.Millisecond, what)
}

func writeCompose(t *testing.T, content string, args ...any) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "compose.yaml")
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, content, args...), 0o600))
	return path
}

func view(t *testing.T, client *api.Client) api.View {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testPatience)
	defer cancel()
	v, err := client.State(ctx)
	require.NoError(t, err)
	return v
}
