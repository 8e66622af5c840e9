//go:build unix

package agent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/steadyraft/raft/examples/orchestrator/agent"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/publish"
	"github.com/steadyraft/raft/examples/orchestrator/runtime/process"
)

const patience = time.Minute

// The test binary is also the shim and the web server that the tasks run.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == process.ShimCommand {
		os.Exit(process.ShimMain(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "web" {
		web()
		return
	}
	goleak.VerifyTestMain(m)
}

// web answers with its process ID; /health fails once /sicken was asked for.
func web() {
	mux := http.NewServeMux()
	sick := make(chan struct{}, 1)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, os.Getpid()) })
	mux.HandleFunc("/sicken", func(http.ResponseWriter, *http.Request) { sick <- struct{}{} })
	mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) {
		if len(sick) > 0 {
			http.Error(w, "sick", http.StatusServiceUnavailable)
		}
	})
	err := http.ListenAndServe(net.JoinHostPort(os.Getenv("HOST"), os.Getenv("PORT")), mux)
	fmt.Println(err)
	os.Exit(1)
}

func webTask(id cluster.TaskID, published uint16) *cluster.Task {
	task := newTask(id, cluster.RestartAlways)
	task.Spec.Command = []string{os.Args[0], "web"}
	task.Spec.Ports = []cluster.Port{{Published: published, Target: 80}}
	task.Spec.StopGrace = time.Second
	return task
}

func processes(t *testing.T) *process.Runtime {
	t.Helper()
	rt, err := process.New(t.TempDir(), "")
	require.NoError(t, err)
	t.Cleanup(func() {
		instances, err := rt.Adopt(context.Background())
		assert.NoError(t, err)
		for _, i := range instances {
			assert.NoError(t, rt.Stop(context.Background(), i.Spec.ID, 0))
		}
	})
	return rt
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// get asks over a new connection, so that the proxy chooses anew.
func get(port uint16, path string) (string, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	response, err := client.Get("http://127.0.0.1:" + strconv.Itoa(int(port)) + path)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

// awaitRunning waits until the tasks run, are healthy if they can be, and returns a table of their endpoints.
func awaitRunning(t *testing.T, m *managers, published uint16, attempts int, ids ...cluster.TaskID) publish.Table {
	t.Helper()
	table := publish.Table{}
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		table[published] = nil
		for _, id := range ids {
			status := m.status(id)
			require.Equal(c, cluster.TaskRunning, status.State, id)
			require.GreaterOrEqual(c, status.Attempts, attempts, id)
			require.Contains(c, []cluster.Health{cluster.HealthNone, cluster.HealthHealthy}, status.Health)
			table[published] = append(table[published], publish.Backend{ID: string(id), Address: status.Endpoints[0].Address})
		}
	}, patience, 5*time.Millisecond)
	return table
}

func TestServiceRunsIsPublishedAndSurvivesItsAgent(t *testing.T) {
	rt, m, port := processes(t), newManagers(), freePort(t)
	opts := options(t, m, rt)
	_, end := begin(t, opts)
	created := time.Now()
	tasks := []*cluster.Task{webTask("web.1.1", port), webTask("web.2.1", port), webTask("web.3.1", port)}
	ids := []cluster.TaskID{"web.1.1", "web.2.1", "web.3.1"}
	m.tell(at(1, 1), tasks...)
	table := awaitRunning(t, m, port, 0, ids...)
	t.Logf("3 of 3 running after %v", time.Since(created))
	m.update(func() { m.told.Fence, m.told.Services = at(1, 2), table })
	answered := map[string]bool{}
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		body, err := get(port, "/")
		require.NoError(c, err)
		answered[body] = true
		require.Len(c, answered, 3)
	}, patience, time.Millisecond)

	require.NoError(t, end()) // the agent goes, the tasks stay
	m.update(func() { m.failure = errors.New("no quorum") })
	b, end := begin(t, opts)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		body, err := get(port, "/") // published from the table on disk, without a manager
		require.NoError(c, err)
		require.Contains(c, answered, body, "the same process as before")
	}, patience, time.Millisecond)
	require.Len(t, b.Tasks(), 3)
	for _, task := range b.Tasks() {
		require.Equal(t, cluster.TaskRunning, task.Status.State)
		require.Zero(t, task.Status.Attempts)
	}

	// A crash is repaired without managers, and told when they are back.
	require.NoError(t, rt.Kill(t.Context(), "web.1.1"))
	require.Eventually(t, func() bool { s := b.Tasks()[0].Status; return s.Attempts == 1 && s.State == cluster.TaskRunning }, patience, time.Millisecond)
	m.update(func() { m.failure = nil })
	awaitRunning(t, m, port, 1, "web.1.1")
	require.Equal(t, 137, m.status("web.1.1").ExitCode)

	m.tell(at(1, 3), unwanted(tasks[0]), unwanted(tasks[1]), unwanted(tasks[2]))
	require.Eventually(t, func() bool {
		for _, id := range ids {
			if m.status(id).State != cluster.TaskShutdown {
				return false
			}
		}
		return true
	}, patience, 5*time.Millisecond)
	require.NoError(t, end())
}

// A task that crashes when nobody can decide anything is started again, on other ports. Its own node knows them, and serves it.
func TestRestartedTaskIsPublishedWithoutManagers(t *testing.T) {
	rt, m, port := processes(t), newManagers(), freePort(t)
	_, end := begin(t, options(t, m, rt))
	m.tell(at(1, 1), webTask("a", port))
	table := awaitRunning(t, m, port, 0, "a")
	m.update(func() { m.told.Fence, m.told.Services = at(1, 2), table })
	var first string
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		var err error
		first, err = get(port, "/")
		require.NoError(c, err)
	}, patience, time.Millisecond)

	m.update(func() { m.failure = errors.New("no quorum") })
	require.NoError(t, rt.Kill(t.Context(), "a"))
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		second, err := get(port, "/")
		require.NoError(c, err)
		require.NotEqual(c, first, second)
	}, patience, time.Millisecond)
	require.NoError(t, end())
}

func TestSickTaskIsReplacedAndThePortAnswersThroughout(t *testing.T) {
	rt, m, port := processes(t), newManagers(), freePort(t)
	opts := options(t, m, rt)
	opts.DrainDelay = 10 * time.Millisecond
	_, end := begin(t, opts)
	probed, connected := webTask("a", port), webTask("b", port)
	check := cluster.HealthCheck{Interval: 50 * time.Millisecond, Timeout: 5 * time.Second, Retries: 2, StartPeriod: 5 * time.Second}
	byHTTP, byTCP := check, check
	byHTTP.Kind, byHTTP.Path = cluster.HealthHTTP, "/health"
	byTCP.Kind, byTCP.Port = cluster.HealthTCP, 80
	probed.Spec.HealthCheck, connected.Spec.HealthCheck = &byHTTP, &byTCP
	m.tell(at(1, 1), probed, connected)
	m.update(func() { m.told.Fence, m.told.Services = at(1, 2), publish.Table{port: nil} })
	table := awaitRunning(t, m, port, 0, "a", "b")
	m.update(func() { m.told.Fence, m.told.Services = at(1, 3), publish.Table{port: table[port][:1]} })
	first, err := get(port, "/")
	require.NoError(t, err)
	m.update(func() { m.told.Fence, m.told.Services = at(1, 4), table })

	ask := func() string {
		body, err := get(port, "/")
		require.NoError(t, err)
		return body
	}
	_, err = get(uint16FromAddress(t, table[port][0].Address), "/sicken")
	require.NoError(t, err)
	table = awaitRunning(t, m, port, 1, "a")
	require.Contains(t, m.status("a").Error, "503")
	for range 20 { // the table still names the old endpoint of a, where nobody listens
		require.NotEqual(t, first, ask())
	}
	m.update(func() { m.told.Fence, m.told.Services = at(1, 5), table })
	for range 5 {
		require.NotEqual(t, first, ask())
	}
	require.NoError(t, end())
}

func uint16FromAddress(t *testing.T, address string) uint16 {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	require.NoError(t, err)
	n, err := strconv.ParseUint(port, 10, 16)
	require.NoError(t, err)
	return uint16(n)
}

func TestSixTasksRunWithinASecond(t *testing.T) {
	rt, m, port := processes(t), newManagers(), freePort(t)
	opts := options(t, m, rt)
	opts.StopOnExit, opts.DrainDelay = true, time.Millisecond
	_, end := begin(t, opts)
	var tasks []*cluster.Task
	var ids []cluster.TaskID
	for i := range 6 {
		ids = append(ids, cluster.NewTaskID("web", i+1, 1))
		tasks = append(tasks, webTask(ids[i], port))
	}
	created := time.Now()
	m.tell(at(1, 1), tasks...)
	awaitRunning(t, m, port, 0, ids...)
	t.Logf("6 of 6 running after %v", time.Since(created)) // the target is a second; a busy machine is no bug, so it is not asserted
	require.NoError(t, end())
	instances, err := rt.Adopt(t.Context())
	require.NoError(t, err)
	for _, i := range instances {
		require.False(t, i.Running)
	}
}

func TestPortInUseIsReportedToTheManagers(t *testing.T) {
	squatter, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer squatter.Close()
	m := newManagers()
	m.update(func() {
		m.told = agent.Assignments{Fence: at(1, 1), Services: publish.Table{uint16(squatter.Addr().(*net.TCPAddr).Port): nil}}
	})
	_, end := begin(t, options(t, m, newFakeRuntime(forever)))
	require.Eventually(t, func() bool { return len(m.lastHeartbeat().Problems) == 1 }, patience, time.Millisecond)
	require.Contains(t, m.lastHeartbeat().Problems[0], "free the port or publish another one")
	require.NoError(t, end())
}
