//go:build unix

package process_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/steadyraft/raft/examples/orchestrator/internal/runtimetest"
	"github.com/steadyraft/raft/examples/orchestrator/runtime"
	"github.com/steadyraft/raft/examples/orchestrator/runtime/process"
)

const patience = time.Minute

// The test binary is also the shim and every task that the tests run.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == process.ShimCommand {
		os.Exit(process.ShimMain(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "agent" {
		agent(os.Args[2])
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "task" {
		task(os.Args[2:])
		return
	}
	goleak.VerifyTestMain(m)
}

// agent is what starts a task and is then killed.
func agent(root string) {
	r, err := process.New(root, "")
	if err == nil {
		err = r.Prepare(context.Background(), spec("a", "sleep"))
	}
	if err == nil {
		_, err = r.Start(context.Background(), "a")
	}
	fmt.Println("started:", err)
	select {}
}

func task(args []string) {
	switch args[0] {
	case "exit":
		code, _ := strconv.Atoi(args[1])
		os.Exit(code)
	case "print":
		for i := range 1000 {
			fmt.Println("line", i)
		}
	case "env":
		wd, _ := os.Getwd()
		fmt.Println(os.Getenv("GREETING"), "secret:"+os.Getenv("AGENT_SECRET"), filepath.Base(wd))
		fmt.Fprintln(os.Stderr, "and an error")
	case "sleep":
		fmt.Println("up")
		select {}
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("up")
		select {}
	case "graceful":
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM, syscall.SIGINT)
		fmt.Println("up")
		fmt.Println((<-c).String())
		os.Exit(7)
	case "family": // a child in the same group, whose life shows in a held listener
		cmd := exec.Command(os.Args[0], "task", "listen", args[1])
		cmd.Stdout = os.Stdout
		if err := cmd.Start(); err != nil {
			fmt.Println(err)
		}
		if len(args) > 2 { // and it leaves the child behind
			for err := error(os.ErrInvalid); err != nil; {
				_, err = net.Dial("tcp", args[1])
			}
			return
		}
		select {}
	case "listen":
		l, err := net.Listen("tcp", args[1])
		fmt.Println("up", err)
		for {
			if _, err := l.Accept(); err != nil {
				return
			}
		}
	}
}

func open(t *testing.T, root string) *process.Runtime {
	t.Helper()
	r, err := process.New(root, "")
	require.NoError(t, err)
	t.Cleanup(func() { // nothing that a failed test started goes on
		instances, err := r.Adopt(context.Background())
		assert.NoError(t, err)
		for _, i := range instances {
			assert.NoError(t, r.Stop(context.Background(), i.Spec.ID, 0))
		}
	})
	return r
}

func spec(id string, args ...string) runtime.Spec {
	return runtime.Spec{ID: id, Command: append([]string{os.Args[0], "task"}, args...)}
}

func TestExitCodeIsReported(t *testing.T) {
	r := open(t, t.TempDir())
	for _, code := range []int{0, 3} {
		runtimetest.Start(t, r, spec("a", "exit", strconv.Itoa(code)))
		status := runtimetest.Wait(t, r, "a")
		require.Equal(t, code, status.Code)
		require.Empty(t, status.Error)
		require.WithinDuration(t, time.Now(), status.At, patience)
	}
}

func TestTaskSeesItsOwnSurroundingsOnly(t *testing.T) {
	t.Setenv("AGENT_SECRET", "hunter2")
	r := open(t, t.TempDir())
	s := spec("a", "env")
	s.Env = []string{"GREETING=hello"}
	runtimetest.Start(t, r, s)
	runtimetest.Wait(t, r, "a")
	require.Equal(t, "hello secret: work\nand an error\n", runtimetest.Output(t, r, "a", runtime.LogOptions{}))
}

func TestStopIsGentleFirst(t *testing.T) {
	r := open(t, t.TempDir())
	runtimetest.Start(t, r, spec("a", "graceful"))
	runtimetest.Up(t, r, "a")
	require.NoError(t, r.Stop(t.Context(), "a", patience))
	require.Equal(t, 7, runtimetest.Wait(t, r, "a").Code)
	require.Contains(t, runtimetest.Output(t, r, "a", runtime.LogOptions{}), "terminated")
	require.NoError(t, r.Stop(t.Context(), "a", patience), "stopping what has ended is no error")
}

func TestStopSignalOfTheSpecIsUsed(t *testing.T) {
	r := open(t, t.TempDir())
	s := spec("a", "graceful")
	s.StopSignal = "SIGINT"
	runtimetest.Start(t, r, s)
	runtimetest.Up(t, r, "a")
	require.NoError(t, r.Stop(t.Context(), "a", patience))
	require.Contains(t, runtimetest.Output(t, r, "a", runtime.LogOptions{}), "interrupt")
}

func TestStopKillsAfterTheGrace(t *testing.T) {
	r := open(t, t.TempDir())
	runtimetest.Start(t, r, spec("a", "stubborn"))
	runtimetest.Up(t, r, "a")
	require.NoError(t, r.Stop(t.Context(), "a", 50*time.Millisecond))
	require.Equal(t, 137, runtimetest.Wait(t, r, "a").Code)
}

func TestKillTakesTheWholeGroup(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().String()
	require.NoError(t, l.Close())
	r := open(t, t.TempDir())
	runtimetest.Start(t, r, spec("a", "family", address))
	runtimetest.Up(t, r, "a")
	require.NoError(t, r.Kill(t.Context(), "a"))
	require.Equal(t, 137, runtimetest.Wait(t, r, "a").Code)
	require.Eventually(t, func() bool { // the child holds no port any more
		_, err := net.Dial("tcp", address)
		return err != nil
	}, patience, time.Millisecond)
	require.ErrorIs(t, r.Kill(t.Context(), "a"), runtime.ErrNotRunning)
}

func TestWhatATaskLeavesBehindEndsWithIt(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().String()
	require.NoError(t, l.Close())
	r := open(t, t.TempDir())
	runtimetest.Start(t, r, spec("a", "family", address, "and leave"))
	require.Equal(t, 0, runtimetest.Wait(t, r, "a").Code)
	require.Eventually(t, func() bool {
		_, err := net.Dial("tcp", address)
		return err != nil
	}, patience, time.Millisecond)
}

func TestCommandThatCannotStartIsReportedByStart(t *testing.T) {
	r := open(t, t.TempDir())
	require.NoError(t, r.Prepare(t.Context(), runtime.Spec{ID: "a", Command: []string{"/no/such/program"}}))
	_, err := r.Start(t.Context(), "a")
	require.ErrorContains(t, err, "/no/such/program")
	_, err = r.Wait(t.Context(), "a")
	require.ErrorIs(t, err, runtime.ErrNotRunning)
	runtimetest.Start(t, r, spec("a", "exit", "0")) // a corrected definition goes
	require.Equal(t, 0, runtimetest.Wait(t, r, "a").Code)
}

func TestBadSpecsAreRefused(t *testing.T) {
	r := open(t, t.TempDir())
	for name, s := range map[string]runtime.Spec{
		"command":     {ID: "a"},
		"stop signal": {ID: "a", Command: []string{"x"}, StopSignal: "SIGWHAT"},
		"instance ID": {ID: "../a", Command: []string{"x"}},
	} {
		require.ErrorContains(t, r.Prepare(t.Context(), s), name)
	}
	_, err := r.Wait(t.Context(), "unknown")
	require.ErrorIs(t, err, runtime.ErrNotFound)
}

func TestAdoptFindsRunningAndEndedInstances(t *testing.T) {
	root := t.TempDir()
	first := open(t, root)
	labelled := spec("running", "sleep")
	labelled.Labels = map[string]string{"slot": "1"}
	runtimetest.Start(t, first, labelled)
	runtimetest.Start(t, first, spec("ended", "exit", "5"))
	require.NoError(t, first.Prepare(t.Context(), spec("prepared", "sleep")))
	runtimetest.Wait(t, first, "ended")
	require.NoError(t, os.Mkdir(filepath.Join(root, "remains"), 0o700))

	second := open(t, root) // as after a restart: it has started nothing
	instances, err := second.Adopt(t.Context())
	require.NoError(t, err)
	found := map[string]runtime.Instance{}
	for _, i := range instances {
		found[i.Spec.ID] = i
	}
	require.Len(t, found, 3)
	require.True(t, found["running"].Running)
	require.Equal(t, "1", found["running"].Spec.Labels["slot"])
	require.Equal(t, 5, found["ended"].Exit.Code)
	require.True(t, found["prepared"].StartedAt.IsZero())
	require.NoDirExists(t, filepath.Join(root, "remains"))

	require.ErrorIs(t, second.Prepare(t.Context(), labelled), runtime.ErrRunning)
	_, err = second.Start(t.Context(), "running")
	require.ErrorIs(t, err, runtime.ErrRunning)
	require.ErrorIs(t, second.Remove(t.Context(), "running"), runtime.ErrRunning)
	require.NoError(t, second.Stop(t.Context(), "running", patience))
	require.Equal(t, 143, runtimetest.Wait(t, second, "running").Code)
	require.NoError(t, second.Remove(t.Context(), "running"))
	require.NoDirExists(t, filepath.Join(root, "running"))
}

func TestTaskOutlivesTheKilledAgent(t *testing.T) {
	root := t.TempDir()
	cmd := exec.Command(os.Args[0], "agent", root)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "started: <nil>\n", line)
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())

	r := open(t, root)
	runtimetest.Up(t, r, "a")
	instances, err := r.Adopt(t.Context())
	require.NoError(t, err)
	require.Len(t, instances, 1)
	require.True(t, instances[0].Running)
	require.False(t, dead(instances[0].PID))
	require.NoError(t, r.Stop(t.Context(), "a", patience))
	require.Equal(t, 143, runtimetest.Wait(t, r, "a").Code)
}

// The shim is one more process that can be killed; the task must not live on without anybody who sees its end.
func TestKilledShimTakesItsTaskAlong(t *testing.T) {
	root := t.TempDir()
	r := open(t, root)
	runtimetest.Start(t, r, spec("a", "stubborn"))
	instances, err := r.Adopt(t.Context())
	require.NoError(t, err)
	task := instances[0].PID
	require.NoError(t, syscall.Kill(parent(t, task), syscall.SIGKILL))
	status := runtimetest.Wait(t, r, "a")
	require.Equal(t, -1, status.Code)
	require.Contains(t, status.String(), "shim was killed")
	require.Eventually(t, func() bool { return dead(task) }, patience, time.Millisecond)
}

func parent(t *testing.T, pid int) int {
	out, err := exec.Command("ps", "-o", "ppid=", "-p", strconv.Itoa(pid)).Output()
	require.NoError(t, err)
	id, err := strconv.Atoi(strings.TrimSpace(string(out)))
	require.NoError(t, err)
	return id
}

// dead counts a zombie that nobody has collected as dead.
func dead(pid int) bool {
	out, err := exec.Command("ps", "-o", "stat=", "-p", strconv.Itoa(pid)).Output()
	return err != nil || strings.HasPrefix(strings.TrimSpace(string(out)), "Z")
}

func TestWaitEndsWithItsContext(t *testing.T) {
	r := open(t, t.TempDir())
	runtimetest.Start(t, r, spec("a", "sleep"))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := r.Wait(ctx, "a")
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestLogsAreCappedAndSurviveARestart(t *testing.T) {
	root := t.TempDir()
	r := open(t, root)
	s := spec("a", "print")
	s.LogMaxBytes = 4096
	for range 2 {
		runtimetest.Start(t, r, s)
		runtimetest.Wait(t, r, "a")
	}
	all := runtimetest.Output(t, r, "a", runtime.LogOptions{})
	require.LessOrEqual(t, len(all), 4096)
	require.Greater(t, len(all), 2048, "the older half is kept until the newer one is full")
	require.True(t, strings.HasSuffix(all, "line 998\nline 999\n"))
	require.Equal(t, "line 998\nline 999\n", runtimetest.Output(t, r, "a", runtime.LogOptions{Tail: 2}))
	require.Len(t, strings.Split(runtimetest.Output(t, r, "a", runtime.LogOptions{Tail: 300}), "\n"), 301, "a tail may begin in the older file")

	s = spec("a", "exit", "0")
	runtimetest.Start(t, r, s)
	runtimetest.Wait(t, r, "a")
	require.Contains(t, runtimetest.Output(t, r, "a", runtime.LogOptions{}), "line 999", "what was said before the crash")
}

func TestLogsAreFollowed(t *testing.T) {
	r := open(t, t.TempDir())
	runtimetest.FollowsLogsToTheEnd(t, r, spec("a", "graceful"))
	runtimetest.FollowsLogsIntoTheNextRun(t, r, spec("next", "graceful"))
}

func TestCloseEndsAWaitingLogReader(t *testing.T) {
	r := open(t, t.TempDir())
	runtimetest.Start(t, r, spec("a", "sleep"))
	runtimetest.Up(t, r, "a")
	l, err := r.Logs(t.Context(), "a", runtime.LogOptions{Follow: true})
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { _, err := io.ReadAll(l); ended <- err }()
	require.NoError(t, l.Close())
	require.Error(t, <-ended)
}

func TestExecRunsInTheTasksSurroundings(t *testing.T) {
	r := open(t, t.TempDir())
	s := spec("a", "sleep")
	s.Env = []string{"GREETING=hello"}
	runtimetest.Start(t, r, s)
	code, err := r.Exec(t.Context(), "a", []string{"sh", "-c", `test "$GREETING" = hello`})
	require.NoError(t, err)
	require.Zero(t, code)
	code, err = r.Exec(t.Context(), "a", []string{"sh", "-c", "exit 4"})
	require.NoError(t, err)
	require.Equal(t, 4, code)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = r.Exec(ctx, "a", []string{"sleep", "1000"})
	require.Error(t, err)
}

func TestStatsOfARunningTask(t *testing.T) {
	r := open(t, t.TempDir())
	runtimetest.Start(t, r, spec("a", "sleep"))
	runtimetest.Up(t, r, "a") // in its own program, no longer on the way there
	stats, err := r.Stats(t.Context(), "a")
	if err != nil {
		require.ErrorIs(t, err, runtime.ErrUnsupported)
		return
	}
	require.Positive(t, stats.Memory)
}
