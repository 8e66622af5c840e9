package docker_test

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/internal/runtimetest"
	"github.com/steadyraft/raft/examples/orchestrator/runtime"
	"github.com/steadyraft/raft/examples/orchestrator/runtime/docker"
)

// wire is a socket that leads to the engine and can be cut.
type wire struct {
	engine, path string
	running      sync.WaitGroup

	mu       sync.Mutex
	listener net.Listener
	conns    map[net.Conn]bool
	silent   bool
}

func newWire(t *testing.T, host string) *wire {
	t.Helper()
	engine, isSocket := strings.CutPrefix(host, "unix://")
	if !isSocket {
		t.Skipf("skipped: the engine is at %s, which is no socket of this machine", host)
	}
	w := &wire{engine: engine, path: filepath.Join(t.TempDir(), "docker.sock"), conns: map[net.Conn]bool{}}
	w.mend(t)
	t.Cleanup(func() {
		w.cut()
		w.running.Wait()
	})
	return w
}

func (w *wire) mend(t *testing.T) {
	t.Helper()
	listener, err := net.Listen("unix", w.path)
	require.NoError(t, err)
	w.mu.Lock()
	w.listener = listener
	w.mu.Unlock()
	w.running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			w.connect(conn)
		}
	})
}

func (w *wire) connect(conn net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conns[conn] = true
	if w.silent {
		return
	}
	engine, err := net.Dial("unix", w.engine)
	if err != nil {
		_ = conn.Close()
		return
	}
	w.conns[engine] = true
	for _, pair := range [][2]net.Conn{{conn, engine}, {engine, conn}} {
		w.running.Go(func() {
			_, _ = io.Copy(pair[0], pair[1])
			_ = pair[0].Close()
		})
	}
}

// cut is what a restart of the engine looks like.
func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = w.listener.Close()
	for conn := range w.conns {
		_ = conn.Close()
	}
	clear(w.conns)
}

func (w *wire) silence() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.silent = true
}

// An engine that does not answer says nothing about a container: it is not reported as ended, and is followed on when the engine is back.
func TestEngineThatIsAwayEndsNothing(t *testing.T) {
	t.Parallel()
	f := open(t)
	w := newWire(t, f.opts.Host)
	opts := f.opts
	opts.Host = "unix://" + w.path
	r := f.again(t, opts)
	require.NoError(t, r.Ping(t.Context()))
	require.NoError(t, r.Prepare(t.Context(), f.spec("a", "sleep")))
	_, err := r.Start(t.Context(), "a")
	require.NoError(t, err)

	ended := make(chan runtime.ExitStatus, 1)
	go func() {
		status, err := r.Wait(context.Background(), "a")
		if err != nil {
			status.Error = err.Error()
		}
		ended <- status
	}()
	w.cut()
	require.ErrorIs(t, r.Prepare(t.Context(), f.spec("b", "sleep")), runtime.ErrUnavailable)
	_, err = r.Start(t.Context(), "a")
	require.ErrorIs(t, err, runtime.ErrUnavailable)
	_, err = r.Adopt(t.Context())
	require.ErrorIs(t, err, runtime.ErrUnavailable)
	_, err = r.Exec(t.Context(), "a", []string{"/app"})
	require.ErrorIs(t, err, runtime.ErrUnavailable)
	_, err = r.Logs(t.Context(), "a", runtime.LogOptions{})
	require.ErrorIs(t, err, runtime.ErrUnavailable)
	require.ErrorIs(t, r.Stop(t.Context(), "a", 0), runtime.ErrUnavailable)
	require.ErrorContains(t, r.Ping(t.Context()), "--runtime process")
	_, err = f.engine.ContainerKill(t.Context(), f.opts.Cluster+".n1.a", client.ContainerKillOptions{})
	require.NoError(t, err)
	runtimetest.Wait(t, f, "a")
	select {
	case status := <-ended:
		t.Fatalf("it is said to have ended, by nobody: %v", status)
	default:
	}
	w.mend(t)
	select {
	case status := <-ended:
		require.Equal(t, 137, status.Code)
		require.Empty(t, status.Error)
	case <-time.After(patience):
		t.Fatal("the end is not noticed")
	}
}

func TestEngineThatHangsIsGivenUp(t *testing.T) {
	t.Parallel()
	f := open(t)
	w := newWire(t, f.opts.Host)
	w.silence()
	opts := f.opts
	opts.Host, opts.CallTimeout = "unix://"+w.path, 100*time.Millisecond
	r := f.again(t, opts)
	_, err := r.Adopt(t.Context())
	require.ErrorIs(t, err, runtime.ErrUnavailable)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err = r.Adopt(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded, "the caller's own deadline is no fault of the engine")
	_, err = r.Wait(ctx, "a")
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestOddEngineAddressesAreRefused(t *testing.T) {
	for _, host := range []string{"docker.sock", "ssh://host", "unix://"} {
		_, err := docker.New(docker.Options{Host: host, Cluster: "c", Node: "n", Directory: t.TempDir()})
		require.ErrorContains(t, err, "want unix:///path/to/docker.sock or tcp://host:port", host)
	}
	_, err := docker.New(docker.Options{})
	require.ErrorContains(t, err, "required")
}
