package docker_test

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/steadyraft/raft/examples/orchestrator/internal/dockertest"
	"github.com/steadyraft/raft/examples/orchestrator/internal/images"
	"github.com/steadyraft/raft/examples/orchestrator/internal/runtimetest"
	"github.com/steadyraft/raft/examples/orchestrator/runtime"
	"github.com/steadyraft/raft/examples/orchestrator/runtime/docker"
)

const patience = time.Minute

// The test binary is also the program in every container that the tests run.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "task" {
		task(os.Args[2:])
		return
	}
	goleak.VerifyTestMain(m)
}

func task(args []string) {
	switch args[0] {
	case "exit":
		code, _ := strconv.Atoi(args[1])
		os.Exit(code)
	case "print":
		for i := range 100 {
			fmt.Println("line", i)
		}
		fmt.Fprintln(os.Stderr, "and an error")
	case "env":
		wd, _ := os.Getwd()
		fmt.Println(os.Getenv("GREETING"), os.Getenv("HOST"), os.Getenv("PORT"), os.Getenv("PORT_81"), wd)
	case "sleep":
		fmt.Println("up")
		select {}
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("up")
		select {}
	case "graceful":
		ended := make(chan os.Signal, 1)
		signal.Notify(ended, syscall.SIGTERM)
		fmt.Println("up")
		fmt.Println(<-ended)
		os.Exit(7)
	case "serve":
		http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "port ", r.Host) })
		fmt.Println(http.ListenAndServe(net.JoinHostPort(os.Getenv("HOST"), os.Getenv("PORT")), nil))
		os.Exit(1)
	case "memory":
		var held [][]byte
		for {
			block := make([]byte, 16<<20)
			for i := range block {
				block[i] = 1
			}
			held = append(held, block)
			_ = held
		}
	}
}

// fixture is an engine with an image of this program, and a runtime for one node.
type fixture struct {
	*docker.Runtime
	engine *client.Client
	opts   docker.Options
	image  string
}

func open(t *testing.T) *fixture {
	t.Helper()
	engine := dockertest.Engine(t)
	f := &fixture{engine: engine, image: dockertest.Image(t, engine, images.Config{})}
	f.opts = docker.Options{Host: engine.DaemonHost(), Cluster: dockertest.Name(), Node: "n1", Directory: t.TempDir()}
	f.Runtime = f.again(t, f.opts)
	return f
}

func (f *fixture) again(t *testing.T, opts docker.Options) *docker.Runtime {
	t.Helper()
	r, err := docker.New(opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

func (f *fixture) spec(id string, args ...string) runtime.Spec {
	return runtime.Spec{ID: id, Image: f.image, Command: append([]string{"task"}, args...)}
}

func TestExitStatusIsTheProgramsOwn(t *testing.T) {
	t.Parallel()
	f := open(t)
	began := time.Now()
	runtimetest.Start(t, f, f.spec("zero", "exit", "0"))
	runtimetest.Start(t, f, f.spec("three", "exit", "3"))
	require.Equal(t, 0, runtimetest.Wait(t, f, "zero").Code)
	status := runtimetest.Wait(t, f, "three")
	require.Equal(t, 3, status.Code)
	require.Equal(t, "exit code 3", status.String())
	require.WithinRange(t, status.At, began.Add(-time.Second), time.Now().Add(time.Second))

	runtimetest.Start(t, f, f.spec("killed", "sleep"))
	require.NoError(t, f.Kill(t.Context(), "killed"))
	require.Equal(t, 137, runtimetest.Wait(t, f, "killed").Code)
	require.ErrorIs(t, f.Kill(t.Context(), "killed"), runtime.ErrNotRunning)
	require.ErrorIs(t, f.Kill(t.Context(), "nobody"), runtime.ErrNotFound)
}

func TestOutOfMemoryIsSaid(t *testing.T) {
	t.Parallel()
	f := open(t)
	require.NoError(t, f.Prepare(t.Context(), f.spec("a", "memory")))
	limit := client.ContainerUpdateOptions{Resources: &container.Resources{Memory: 64 << 20, MemorySwap: 64 << 20}}
	_, err := f.engine.ContainerUpdate(t.Context(), f.opts.Cluster+".n1.a", limit)
	require.NoError(t, err)
	_, err = f.Start(t.Context(), "a")
	require.NoError(t, err)
	status := runtimetest.Wait(t, f, "a")
	require.Equal(t, 137, status.Code)
	require.Contains(t, status.String(), "out of memory")
}

func TestStopEscalatesFromTheSignalToSIGKILL(t *testing.T) {
	t.Parallel()
	f := open(t)
	runtimetest.Start(t, f, f.spec("graceful", "graceful"))
	runtimetest.Up(t, f, "graceful")
	require.NoError(t, f.Stop(t.Context(), "graceful", patience))
	require.Equal(t, 7, runtimetest.Wait(t, f, "graceful").Code)
	require.NoError(t, f.Stop(t.Context(), "graceful", patience), "it had ended")

	runtimetest.Start(t, f, f.spec("stubborn", "stubborn"))
	runtimetest.Up(t, f, "stubborn")
	began := time.Now()
	require.NoError(t, f.Stop(t.Context(), "stubborn", 300*time.Millisecond))
	require.GreaterOrEqual(t, time.Since(began), 300*time.Millisecond)
	require.Equal(t, 137, runtimetest.Wait(t, f, "stubborn").Code)
	require.ErrorIs(t, f.Stop(t.Context(), "nobody", 0), runtime.ErrNotFound)

	runtimetest.Start(t, f, f.spec("paused", "graceful"))
	_, err := f.engine.ContainerPause(t.Context(), f.opts.Cluster+".n1.paused", client.ContainerPauseOptions{})
	require.NoError(t, err)
	require.NoError(t, f.Stop(t.Context(), "paused", 100*time.Millisecond))
}

// A restarted task begins from its definition and not from remains; only its output is kept.
func TestEachRunIsANewContainer(t *testing.T) {
	t.Parallel()
	f := open(t)
	runtimetest.Start(t, f, f.spec("a", "print"))
	runtimetest.Wait(t, f, "a")
	name := f.opts.Cluster + ".n1.a"
	first, err := f.engine.ContainerInspect(t.Context(), name, client.ContainerInspectOptions{})
	require.NoError(t, err)
	_, err = f.Start(t.Context(), "a")
	require.ErrorContains(t, err, "prepare it again")

	runtimetest.Start(t, f, f.spec("a", "sleep"))
	runtimetest.Up(t, f, "a")
	second, err := f.engine.ContainerInspect(t.Context(), name, client.ContainerInspectOptions{})
	require.NoError(t, err)
	require.NotEqual(t, first.Container.ID, second.Container.ID)
	_, err = f.engine.ContainerInspect(t.Context(), first.Container.ID, client.ContainerInspectOptions{})
	require.Error(t, err, "the first one is gone")
	require.ErrorIs(t, f.Prepare(t.Context(), f.spec("a", "sleep")), runtime.ErrRunning)
	require.ErrorIs(t, f.Remove(t.Context(), "a"), runtime.ErrRunning)
	text := runtimetest.Output(t, f, "a", runtime.LogOptions{})
	require.Equal(t, 102, strings.Count(text, "\n"))
	require.True(t, strings.HasSuffix(text, "up\n"), "the present run comes last")
	require.Equal(t, 3, strings.Count(runtimetest.Output(t, f, "a", runtime.LogOptions{Tail: 3}), "\n"))
	require.Equal(t, "up\n", runtimetest.Output(t, f, "a", runtime.LogOptions{Tail: 1}))

	require.ErrorIs(t, f.Retire(t.Context(), "a"), runtime.ErrRunning)
	require.NoError(t, f.Stop(t.Context(), "a", 0))
	require.NoError(t, f.Retire(t.Context(), "a"))
	require.NoError(t, f.Retire(t.Context(), "a"))
	instances, err := f.Adopt(t.Context())
	require.NoError(t, err)
	require.Empty(t, instances, "the container is gone")
	require.Equal(t, text, runtimetest.Output(t, f, "a", runtime.LogOptions{}), "its output is not")
	require.Equal(t, "up\n", runtimetest.Output(t, f, "a", runtime.LogOptions{Tail: 1}))
	require.NoError(t, f.Remove(t.Context(), "a"))
	_, err = f.Logs(t.Context(), "a", runtime.LogOptions{})
	require.ErrorIs(t, err, runtime.ErrNotFound)
	require.NoError(t, f.Remove(t.Context(), "a"), "there is nothing left")
	remains, err := filepath.Glob(filepath.Join(f.opts.Directory, "*"))
	require.NoError(t, err)
	require.Empty(t, remains)
}

func TestPortsAreReachedWhereStartSays(t *testing.T) {
	t.Parallel()
	f := open(t)
	for _, test := range []struct{ name, host string }{{"loopback", "127.0.0.1"}, {"an address of the machine", ownAddress(t)}} {
		t.Run(test.name, func(t *testing.T) {
			spec := f.spec(strings.ReplaceAll(test.name, " ", "-"), "serve")
			spec.Host = test.host
			spec.Ports = []runtime.Port{{Target: 80, Address: freeAddress(t, test.host)}, {Target: 81, Address: freeAddress(t, test.host)}}
			ports := runtimetest.Start(t, f, spec)
			require.Len(t, ports, 2)
			require.EqualValues(t, 80, ports[0].Target)
			if test.host != "127.0.0.1" {
				require.Equal(t, spec.Ports[0].Address, ports[0].Address)
			}
			require.EventuallyWithT(t, func(c *assert.CollectT) {
				response, err := http.Get("http://" + ports[0].Address)
				require.NoError(c, err)
				require.NoError(c, response.Body.Close())
			}, patience, 10*time.Millisecond)
			http.DefaultClient.CloseIdleConnections()

			// The same is told to an agent that comes back.
			instances, err := f.again(t, f.opts).Adopt(t.Context())
			require.NoError(t, err)
			for _, i := range instances {
				if i.Spec.ID == spec.ID {
					require.Equal(t, ports, i.Spec.Ports)
				}
			}
			other := f.spec(spec.ID+"-2", "serve")
			other.Host, other.Ports = spec.Host, spec.Ports
			require.NoError(t, f.Prepare(t.Context(), other))
			if _, err = f.Start(t.Context(), other.ID); test.host == "127.0.0.1" {
				require.NoError(t, err, "each container has its own address")
			} else {
				require.ErrorIs(t, err, runtime.ErrPortInUse)
			}
		})
	}
}

// ownAddress is an address of this machine that is not a loopback one: that of the engine's bridge at least.
func ownAddress(t *testing.T) string {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	require.NoError(t, err)
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			return n.IP.String()
		}
	}
	t.Skip("this machine has only loopback addresses")
	return ""
}

func freeAddress(t *testing.T, host string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

func TestContainerGetsItsDefinition(t *testing.T) {
	t.Parallel()
	f := open(t)
	spec := f.spec("a", "env")
	spec.Env, spec.Dir = []string{"GREETING=hello", "PORT=1"}, "/tmp"
	spec.Host, spec.Labels = "127.0.0.1", map[string]string{"slot": "1"}
	spec.Ports = []runtime.Port{{Target: 80, Address: "127.0.0.1:1"}, {Target: 81, Address: "127.0.0.1:2"}}
	runtimetest.Start(t, f, spec)
	require.Equal(t, 0, runtimetest.Wait(t, f, "a").Code)
	require.Equal(t, "hello 0.0.0.0 80 81 /tmp\n", runtimetest.Output(t, f, "a", runtime.LogOptions{}))
	c, err := f.engine.ContainerInspect(t.Context(), f.opts.Cluster+".n1.a", client.ContainerInspectOptions{})
	require.NoError(t, err)
	require.Equal(t, "no", string(c.Container.HostConfig.RestartPolicy.Name), "one authority restarts, and that is the agent")
	require.Equal(t, []string{"NONE"}, c.Container.Config.Healthcheck.Test)
	require.Equal(t, f.opts.Cluster, c.Container.Config.Labels[docker.ClusterLabel])
	require.Equal(t, "n1", c.Container.Config.Labels[docker.NodeLabel])
	require.Equal(t, "a", c.Container.Config.Labels[docker.InstanceLabel])
	require.Equal(t, "1", c.Container.Config.Labels["slot"])
}

func TestRestartedAgentFindsItsOwnContainers(t *testing.T) {
	t.Parallel()
	f := open(t)
	labelled := f.spec("running", "sleep")
	labelled.Labels = map[string]string{"slot": "1"}
	runtimetest.Start(t, f, labelled)
	runtimetest.Start(t, f, f.spec("ended", "exit", "5"))
	runtimetest.Wait(t, f, "ended")
	require.NoError(t, f.Prepare(t.Context(), f.spec("prepared", "sleep")))
	neighbour := f.opts
	neighbour.Node, neighbour.Directory = "n2", t.TempDir()
	other := f.again(t, neighbour)
	require.NoError(t, other.Prepare(t.Context(), f.spec("running", "sleep")), "each node has its own names")

	second := f.again(t, f.opts)
	instances, err := second.Adopt(t.Context())
	require.NoError(t, err)
	found := map[string]runtime.Instance{}
	for _, i := range instances {
		found[i.Spec.ID] = i
	}
	require.Len(t, found, 3)
	require.True(t, found["running"].Running)
	require.Equal(t, map[string]string{"slot": "1"}, withoutTestLabel(found["running"].Spec.Labels))
	require.Positive(t, found["running"].PID)
	require.Equal(t, 5, found["ended"].Exit.Code)
	require.False(t, found["ended"].StartedAt.IsZero())
	require.True(t, found["prepared"].StartedAt.IsZero())
	_, err = second.Wait(t.Context(), "prepared")
	require.ErrorIs(t, err, runtime.ErrNotRunning)
	again, err := second.Adopt(t.Context())
	require.NoError(t, err)
	require.ElementsMatch(t, instances, again, "the same containers, not started again")
	require.NoError(t, second.Stop(t.Context(), "running", 0))
	require.Equal(t, 137, runtimetest.Wait(t, f, "running").Code)
}

func withoutTestLabel(labels map[string]string) map[string]string {
	labels = maps.Clone(labels)
	delete(labels, dockertest.Label) // which it has from its image
	return labels
}

func TestExecRunsInsideTheContainer(t *testing.T) {
	t.Parallel()
	f := open(t)
	runtimetest.Start(t, f, f.spec("a", "sleep"))
	code, err := f.Exec(t.Context(), "a", []string{"/app", "task", "exit", "0"})
	require.NoError(t, err)
	require.Zero(t, code)
	code, err = f.Exec(t.Context(), "a", []string{"/app", "task", "exit", "9"})
	require.NoError(t, err)
	require.Equal(t, 9, code)
	code, err = f.Exec(t.Context(), "a", []string{"/no/such/program"})
	require.True(t, err != nil || code != 0, "code %d", code)

	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err = f.Exec(ctx, "a", []string{"/app", "task", "sleep"})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	_, err = f.Exec(t.Context(), "a", []string{"/app", "task", "exit", "0"})
	require.ErrorContains(t, err, "the command before still runs", "checks that hang do not pile up")

	require.NoError(t, f.Kill(t.Context(), "a"))
	runtimetest.Wait(t, f, "a")
	_, err = f.Exec(t.Context(), "a", []string{"/app", "task", "exit", "0"})
	require.ErrorIs(t, err, runtime.ErrNotRunning)
	_, err = f.Exec(t.Context(), "nobody", []string{"/app"})
	require.ErrorIs(t, err, runtime.ErrNotFound)
}

func TestStatsAreThoseOfTheContainer(t *testing.T) {
	t.Parallel()
	f := open(t)
	runtimetest.Start(t, f, f.spec("a", "sleep"))
	runtimetest.Up(t, f, "a")
	stats, err := f.Stats(t.Context(), "a")
	require.NoError(t, err)
	require.Positive(t, stats.CPU)
	require.Greater(t, stats.Memory, int64(100<<10))
	require.NoError(t, f.Stop(t.Context(), "a", 0))
	_, err = f.Stats(t.Context(), "a")
	require.ErrorIs(t, err, runtime.ErrNotRunning)
}

func TestLogsAreFollowed(t *testing.T) {
	t.Parallel()
	f := open(t)
	runtimetest.FollowsLogsToTheEnd(t, f, f.spec("a", "graceful"))
	runtimetest.FollowsLogsIntoTheNextRun(t, f, f.spec("next", "graceful"))

	runtimetest.Start(t, f, f.spec("b", "sleep")) // and a reader that is closed ends, whatever the container does
	logs, err := f.Logs(t.Context(), "b", runtime.LogOptions{Follow: true})
	require.NoError(t, err)
	require.NoError(t, logs.Close())
}

func TestWhatCannotRunSaysWhy(t *testing.T) {
	t.Parallel()
	f := open(t)
	missing := f.spec("a", "sleep")
	missing.Image = dockertest.Name() + ":1"
	err := f.Prepare(t.Context(), missing)
	require.ErrorContains(t, err, "image "+missing.Image+" is not on node n1: build, load or import it there, images are never pulled")
	require.NotErrorIs(t, err, runtime.ErrUnavailable)
	require.ErrorContains(t, f.Prepare(t.Context(), runtime.Spec{ID: "a", Command: []string{"sleep"}}), "no image")
	require.ErrorContains(t, f.Prepare(t.Context(), runtime.Spec{ID: "../a", Image: f.image}), "instance ID")

	bad := f.spec("b")
	bad.Dir = "/etc/passwd"
	require.ErrorContains(t, f.Prepare(t.Context(), bad), "not a directory")
	bad = f.spec("b")
	bad.Image = dockertest.Image(t, f.engine, images.Config{Entrypoint: []string{"/no/such/program"}})
	require.NoError(t, f.Prepare(t.Context(), bad))
	_, err = f.Start(t.Context(), "b")
	require.ErrorContains(t, err, "/no/such/program")
	require.NotErrorIs(t, err, runtime.ErrUnavailable)
	runtimetest.Start(t, f, f.spec("b", "exit", "0")) // a corrected definition goes
	require.Equal(t, 0, runtimetest.Wait(t, f, "b").Code)
}
