//go:build unix

package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"syscall"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/runtime"
)

// ShimCommand is the hidden subcommand with which the orchestrator's binary calls itself: `orchestrator __shim DIR`.
const ShimCommand = "__shim"

const (
	readyFD = 3 // the shim writes "ok" or the reason why the task cannot start, then closes it
	aliveFD = 4 // write end of the FIFO `alive`, held as long as the shim lives
)

// run is the file run.json: which processes belong to an instance. A bare process ID may have been given to somebody else since, so each
// one comes with its start time.
type run struct {
	Shim      pid       `json:"shim"`
	Task      pid       `json:"task"`
	StartedAt time.Time `json:"started_at"`
}

type pid struct {
	ID    int    `json:"id"`
	Start string `json:"start"` // as the system prints it; only compared
}

// ShimMain is the body of the shim: it starts the task of the state directory args[0] in a session of its own, collects its output,
// and writes down how it ended. The agent may die and come back meanwhile. It returns the process's exit code: 0 if the exit status of
// the task is on disk.
//
// Signals: SIGTERM passes the task's stop signal to its process group, SIGUSR1 kills the group.
func ShimMain(args []string) int {
	// A parent-death signal is bound to the thread that forked, so that thread must be the one that lives as long as the shim.
	goruntime.LockOSThread()
	syscall.CloseOnExec(readyFD)
	syscall.CloseOnExec(aliveFD)
	ready := os.NewFile(readyFD, "ready")
	if len(args) != 1 || ready == nil {
		fmt.Fprintln(os.Stderr, ShimCommand+" is started by the agent, not by hand")
		return 2
	}
	if err := shim(args[0], ready); err != nil {
		// The agent that waits at the pipe may be gone, and then there is nobody left to tell.
		_, _ = io.WriteString(ready, err.Error())
		return 1
	}
	return 0
}

func shim(dir string, ready *os.File) error {
	var spec runtime.Spec
	if err := readJSON(filepath.Join(dir, specFile), &spec); err != nil {
		return err
	}
	stopSignal, err := parseSignal(spec.StopSignal)
	if err != nil {
		return err
	}
	// Handlers first: a stop that arrives before the task exists must wait for it, not kill the shim.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGINT, syscall.SIGHUP)

	log, err := openLog(dir, spec.LogMaxBytes)
	if err != nil {
		return err
	}
	output, input, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make the log pipe: %w", err)
	}
	cmd := exec.Command(spec.Command[0], spec.Command[1:]...)
	cmd.Env = environment(spec)
	cmd.Dir = workDir(dir, spec)
	cmd.Stdout, cmd.Stderr = input, input
	cmd.SysProcAttr = taskAttributes()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the task: %w", err)
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		log.copyLines(output)
	}()
	kill := func(s syscall.Signal) { _ = syscall.Kill(-cmd.Process.Pid, s) } // ESRCH: it has just ended, which the wait below reports

	started := time.Now()
	state := run{StartedAt: started, Shim: identify(os.Getpid()), Task: identify(cmd.Process.Pid)}
	err = errors.Join(input.Close(), writeJSON(filepath.Join(dir, runFile), state))
	if err != nil { // without run.json nobody could ever stop the task
		kill(syscall.SIGKILL)
		_ = cmd.Wait()
		return err
	}
	_, _ = io.WriteString(ready, "ok")
	_ = ready.Close()

	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			if s == syscall.SIGUSR1 {
				kill(syscall.SIGKILL)
			} else {
				kill(stopSignal)
			}
		case err := <-ended:
			// What the task left behind ends with it, as in a container. Its group may still have members; if not, the number is free
			// only since a moment ago and the system hands out all the others first.
			kill(syscall.SIGKILL)
			select {
			case <-copied:
			case <-time.After(time.Second): // a process that left the group may hold the pipe for ever
			}
			return writeJSON(filepath.Join(dir, exitFile), exitStatus(cmd.ProcessState, err))
		}
	}
}

func exitStatus(state *os.ProcessState, err error) runtime.ExitStatus {
	status := runtime.ExitStatus{Code: state.ExitCode(), At: time.Now()}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		status.Code = 128 + int(ws.Signal())
	}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		status.Error = err.Error()
	}
	return status
}

// environment is the shim's own minimal surroundings plus the spec's. The agent's environment is not inherited: what a task sees must
// not depend on who started the agent, and may hold secrets.
func environment(spec runtime.Spec) []string {
	base := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	// Where to listen comes last, and wins: a task elsewhere would be unreachable.
	return slices.Concat(base, spec.Env, runtime.ListenEnv(spec.Host, spec.Ports, runtime.Port.Number))
}

var stopSignals = map[string]syscall.Signal{
	"": syscall.SIGTERM, "SIGTERM": syscall.SIGTERM, "SIGINT": syscall.SIGINT, "SIGQUIT": syscall.SIGQUIT, "SIGHUP": syscall.SIGHUP,
	"SIGKILL": syscall.SIGKILL, "SIGUSR1": syscall.SIGUSR1, "SIGUSR2": syscall.SIGUSR2,
}

func parseSignal(name string) (syscall.Signal, error) {
	s, ok := stopSignals[name]
	if !ok {
		return 0, fmt.Errorf("stop signal %q: want SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2 or SIGKILL", name)
	}
	return s, nil
}

func readJSON(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() // read only
	if err := json.NewDecoder(io.LimitReader(f, maxStateFile)).Decode(v); err != nil {
		return fmt.Errorf("decode %s: %w", path, err)
	}
	return nil
}

// writeJSON replaces path in one step, so that a reader sees the old content or the new.
func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(data) > maxStateFile {
		return fmt.Errorf("write %s: %d bytes, at most %d are allowed", path, len(data), maxStateFile)
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
