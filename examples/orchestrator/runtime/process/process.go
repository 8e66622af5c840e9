//go:build unix

// Package process runs a task as a plain process of the operating system, without any isolation but a session, a working directory and
// an environment of its own.
//
// Between the agent and each task stands a shim, a small process that outlives the agent. One state directory per instance (0700):
//
//	spec.json   written last by Prepare: with it the instance exists
//	alive       a FIFO whose write end the shim holds. A reader sees its end when the shim is gone, however it went, and no sooner:
//	            no lease to expire, no process ID that could have been reused
//	run.json    the shim and the task: process IDs with their start times
//	exit.json   how the task ended, written by the shim before it leaves
//	log, log.1  output, rotated once at half of the cap
//	work/       the task's working directory, new at each Prepare
package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/runtime"
)

const (
	specFile  = "spec.json"
	runFile   = "run.json"
	exitFile  = "exit.json"
	aliveFile = "alive"
	workName  = "work"

	maxStateFile = 1 << 20
	pollInterval = 50 * time.Millisecond // where the system has no event for it
	killPatience = 5 * time.Second       // how long a SIGKILL may take before the shim itself is given up
)

// Runtime keeps its instances under one directory. Make one with New; it has no goroutines of its own except one per shim that it
// started, which ends with that shim.
type Runtime struct {
	root string
	self string
	mu   sync.Mutex // serialises the making of exit.json after a shim was killed
}

var _ runtime.Runtime = (*Runtime)(nil)

// New opens the directory root, made if absent. self is the program that answers ShimCommand by calling ShimMain; empty means the
// running executable.
func New(root, self string) (*Runtime, error) {
	if self == "" {
		exe, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find the shim program: %w", err)
		}
		self = exe
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("process runtime directory: %w", err)
	}
	return &Runtime{root: root, self: self}, nil
}

var idPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)

// dir returns the state directory of an ID, which may have come from the network and must not lead elsewhere.
func (r *Runtime) dir(id string) (string, error) {
	if !idPattern.MatchString(id) {
		return "", fmt.Errorf("instance ID %q: want 1 to 128 letters, digits, '-', '_' or '.'", id)
	}
	return filepath.Join(r.root, id), nil
}

// existing is dir for an instance that must have been prepared.
func (r *Runtime) existing(id string) (string, error) {
	dir, err := r.dir(id)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(dir, specFile)); errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("instance %s: %w", id, runtime.ErrNotFound)
	} else if err != nil {
		return "", err
	}
	return dir, nil
}

func workDir(dir string, spec runtime.Spec) string {
	if spec.Dir != "" {
		return spec.Dir
	}
	return filepath.Join(dir, workName)
}

// Prepare implements runtime.Runtime.
func (r *Runtime) Prepare(_ context.Context, spec runtime.Spec) error {
	dir, err := r.dir(spec.ID)
	if err != nil {
		return err
	}
	if spec.Image != "" {
		return fmt.Errorf("instance %s: image %s needs a node with `--runtime docker`; this one runs processes", spec.ID, spec.Image)
	}
	if len(spec.Command) == 0 || spec.Command[0] == "" {
		return fmt.Errorf("instance %s: no command, which the process runtime needs", spec.ID)
	}
	if _, err := parseSignal(spec.StopSignal); err != nil {
		return err
	}
	if err := r.clear(spec.ID, true); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, workName), 0o700); err != nil {
		return err
	}
	if err := syscall.Mkfifo(filepath.Join(dir, aliveFile), 0o600); err != nil {
		return fmt.Errorf("make %s: %w", filepath.Join(dir, aliveFile), err)
	}
	return writeJSON(filepath.Join(dir, specFile), spec)
}

// Start implements runtime.Runtime. An instance starts once; it is prepared again for the next time.
func (r *Runtime) Start(ctx context.Context, id string) ([]runtime.Port, error) {
	dir, err := r.existing(id)
	if err != nil {
		return nil, err
	}
	var spec runtime.Spec
	if err := readJSON(filepath.Join(dir, specFile), &spec); err != nil {
		return nil, err
	}
	return spec.Ports, r.start(ctx, id, dir)
}

func (r *Runtime) start(ctx context.Context, id, dir string) error {
	if running, err := alive(dir); err != nil || running {
		return errors.Join(err, fmt.Errorf("instance %s: %w", id, runtime.ErrRunning))
	}
	if _, err := os.Stat(filepath.Join(dir, runFile)); err == nil {
		return fmt.Errorf("instance %s has run already: prepare it again", id)
	}
	// The write end is opened here and inherited, so that there is no moment at which the shim exists and does not look alive. A FIFO
	// opens for writing only while somebody reads.
	fifo := filepath.Join(dir, aliveFile)
	reader, err := os.OpenFile(fifo, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer reader.Close()
	held, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer held.Close()
	ready, told, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()

	cmd := exec.Command(r.self, ShimCommand, dir)
	cmd.ExtraFiles = []*os.File{told, held} // readyFD, aliveFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Dir = "/"
	err = cmd.Start()
	told.Close()
	if err != nil {
		return fmt.Errorf("start the shim: %w", err)
	}
	go func() { _ = cmd.Wait() }() // no zombie; how the task ended is in exit.json

	defer context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })()
	answer, err := io.ReadAll(io.LimitReader(ready, 4096))
	switch {
	case err != nil:
		_ = cmd.Process.Kill() // already gone is as good
		return fmt.Errorf("instance %s: waiting for its shim: %w", id, errors.Join(ctx.Err(), err))
	case string(answer) == "ok":
		return nil
	case len(answer) == 0:
		return fmt.Errorf("instance %s: its shim ended without a word; does %s answer %s?", id, r.self, ShimCommand)
	default:
		return fmt.Errorf("instance %s: %s", id, answer)
	}
}

// Stop implements runtime.Runtime.
func (r *Runtime) Stop(ctx context.Context, id string, grace time.Duration) error {
	dir, err := r.existing(id)
	if err != nil {
		return err
	}
	// Escalation: the stop signal, SIGKILL for the task's group through the shim, SIGKILL for both.
	steps := []struct {
		send    func() error
		patient time.Duration
	}{
		{func() error { return signalShim(ctx, dir, syscall.SIGTERM) }, grace},
		{func() error { return signalShim(ctx, dir, syscall.SIGUSR1) }, killPatience},
		{func() error { return errors.Join(signalShim(ctx, dir, syscall.SIGKILL), killTask(dir)) }, killPatience},
	}
	for i, step := range steps {
		if i == 0 && grace <= 0 {
			continue
		}
		if running, err := alive(dir); err != nil || !running {
			return err
		}
		if err := step.send(); err != nil {
			return fmt.Errorf("stop instance %s: %w", id, err)
		}
		within, cancel := context.WithTimeout(ctx, step.patient)
		err := awaitEnd(within, dir)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
	return fmt.Errorf("stop instance %s: it survives SIGKILL, which only a stuck system call does", id)
}

// Kill implements runtime.Runtime.
func (r *Runtime) Kill(ctx context.Context, id string) error {
	dir, err := r.existing(id)
	if err != nil {
		return err
	}
	if running, err := alive(dir); err != nil || !running {
		return errors.Join(err, fmt.Errorf("instance %s: %w", id, runtime.ErrNotRunning))
	}
	return signalShim(ctx, dir, syscall.SIGUSR1)
}

// Wait implements runtime.Runtime.
func (r *Runtime) Wait(ctx context.Context, id string) (runtime.ExitStatus, error) {
	dir, err := r.existing(id)
	if err != nil {
		return runtime.ExitStatus{}, err
	}
	if err := awaitEnd(ctx, dir); err != nil {
		return runtime.ExitStatus{}, err
	}
	return r.exit(id, dir)
}

// exit reads how an instance ended. If its shim was killed it ends the orphaned task and records an end that nobody saw.
func (r *Runtime) exit(id, dir string) (runtime.ExitStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var status runtime.ExitStatus
	err := readJSON(filepath.Join(dir, exitFile), &status)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return status, err
	}
	if _, err := os.Stat(filepath.Join(dir, runFile)); errors.Is(err, fs.ErrNotExist) {
		return status, fmt.Errorf("instance %s was never started: %w", id, runtime.ErrNotRunning)
	}
	if err := killTask(dir); err != nil {
		return status, err
	}
	status = runtime.ExitStatus{Code: -1, Error: "the shim was killed; the exit code is unknown", At: time.Now()}
	return status, writeJSON(filepath.Join(dir, exitFile), status)
}

// Adopt implements runtime.Runtime. It removes half-prepared remains.
func (r *Runtime) Adopt(ctx context.Context) ([]runtime.Instance, error) {
	entries, err := os.ReadDir(r.root)
	if err != nil {
		return nil, err
	}
	var found []runtime.Instance
	for _, entry := range entries {
		dir, err := r.dir(entry.Name())
		if err != nil || !entry.IsDir() {
			continue // not ours
		}
		instance := runtime.Instance{}
		if err := readJSON(filepath.Join(dir, specFile), &instance.Spec); errors.Is(err, fs.ErrNotExist) {
			if err := os.RemoveAll(dir); err != nil {
				return nil, err
			}
			continue
		} else if err != nil {
			return nil, err
		}
		if instance.Running, err = alive(dir); err != nil {
			return nil, err
		}
		if instance.Running { // its shim may be on the point of starting the task for an agent that has died
			if err := awaitRun(ctx, dir); err != nil {
				return nil, err
			}
		}
		var state run
		if err := readJSON(filepath.Join(dir, runFile), &state); err == nil {
			instance.PID, instance.StartedAt = state.Task.ID, state.StartedAt
			if !instance.Running {
				if instance.Exit, err = r.exit(instance.Spec.ID, dir); err != nil {
					return nil, err
				}
			}
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		found = append(found, instance)
	}
	return found, nil
}

// Exec implements runtime.Runtime. The command's output is dropped; when ctx ends, its whole group is killed.
func (r *Runtime) Exec(ctx context.Context, id string, argv []string) (int, error) {
	dir, err := r.existing(id)
	if err != nil {
		return 0, err
	}
	if len(argv) == 0 {
		return 0, fmt.Errorf("instance %s: exec of an empty command", id)
	}
	var spec runtime.Spec
	if err := readJSON(filepath.Join(dir, specFile), &spec); err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = environment(spec)
	cmd.Dir = workDir(dir, spec)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && ctx.Err() == nil {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// Stats implements runtime.Runtime, for the task's first process.
func (r *Runtime) Stats(_ context.Context, id string) (runtime.Stats, error) {
	dir, err := r.existing(id)
	if err != nil {
		return runtime.Stats{}, err
	}
	var state run
	if err := readJSON(filepath.Join(dir, runFile), &state); err != nil || state.Task != identify(state.Task.ID) {
		return runtime.Stats{}, fmt.Errorf("instance %s: %w", id, runtime.ErrNotRunning)
	}
	return stats(state.Task.ID)
}

// Retire implements runtime.Runtime. What is left of a process besides its output is its working directory.
func (r *Runtime) Retire(_ context.Context, id string) error {
	dir, err := r.dir(id)
	if err != nil {
		return err
	}
	if running, err := alive(dir); err != nil {
		return err
	} else if running {
		return fmt.Errorf("instance %s: %w", id, runtime.ErrRunning)
	}
	return os.RemoveAll(filepath.Join(dir, workName))
}

// Remove implements runtime.Runtime.
func (r *Runtime) Remove(_ context.Context, id string) error { return r.clear(id, false) }

// clear removes the state of an instance that has ended, all of it or all but its output.
func (r *Runtime) clear(id string, keepLogs bool) error {
	dir, err := r.dir(id)
	if err != nil {
		return err
	}
	if running, err := alive(dir); err != nil {
		return err
	} else if running {
		return fmt.Errorf("instance %s: %w", id, runtime.ErrRunning)
	}
	// First the file that makes it exist: a crash halfway leaves remains, not a damaged instance.
	for _, name := range []string{specFile, runFile, exitFile, aliveFile} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if keepLogs {
		return os.RemoveAll(filepath.Join(dir, workName))
	}
	return os.RemoveAll(dir)
}

// alive tells whether somebody holds the write end of the FIFO.
func alive(dir string) (bool, error) {
	// O_NONBLOCK: the open does not wait for a writer, and the read tells "none" (end of file) from "silent" (EAGAIN).
	fd, err := syscall.Open(filepath.Join(dir, aliveFile), syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if errors.Is(err, syscall.ENOENT) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("open %s: %w", filepath.Join(dir, aliveFile), err)
	}
	defer syscall.Close(fd) // nothing was written
	for {
		switch _, err := syscall.Read(fd, make([]byte, 1)); {
		case err == nil:
			return false, nil
		case errors.Is(err, syscall.EAGAIN):
			return true, nil
		case !errors.Is(err, syscall.EINTR):
			return false, fmt.Errorf("read %s: %w", filepath.Join(dir, aliveFile), err)
		}
	}
}

// awaitEnd returns once nobody holds the write end of the FIFO, or with ctx's error.
func awaitEnd(ctx context.Context, dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, aliveFile), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close() // nothing was written
	defer context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })()
	for {
		_, err := f.Read(make([]byte, 1))
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, syscall.EAGAIN): // macOS has no event for the last writer's leaving
			select {
			case <-ctx.Done():
			case <-time.After(pollInterval):
			}
		case err != nil && ctx.Err() == nil:
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// awaitRun waits until the shim has written run.json or is gone. Only a shim that was started a moment ago lacks it.
func awaitRun(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, killPatience)
	defer cancel()
	for {
		if _, err := os.Stat(filepath.Join(dir, runFile)); err == nil {
			return nil
		}
		if running, err := alive(dir); err != nil || !running {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: the shim lives and has started nothing: %w", dir, ctx.Err())
		case <-time.After(pollInterval):
		}
	}
}

// signalShim signals the shim that holds the FIFO. No error if it has gone.
func signalShim(ctx context.Context, dir string, s syscall.Signal) error {
	if err := awaitRun(ctx, dir); err != nil {
		return err
	}
	var state run
	if err := readJSON(filepath.Join(dir, runFile), &state); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	// FindProcess holds on to the process itself where the system can (pidfd on Linux): if the start time is right afterwards, the
	// signal cannot reach a stranger.
	p, err := os.FindProcess(state.Shim.ID)
	if err != nil {
		return err
	}
	defer func() { _ = p.Release() }()
	if identify(state.Shim.ID) != state.Shim {
		return nil
	}
	if err := p.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// killTask kills the group of a task whose shim is gone or does not obey.
func killTask(dir string) error {
	var state run
	if err := readJSON(filepath.Join(dir, runFile), &state); err != nil {
		return err
	}
	if state.Task.Start == "" || identify(state.Task.ID) != state.Task {
		return nil
	}
	if err := syscall.Kill(-state.Task.ID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill group %d: %w", state.Task.ID, err)
	}
	return nil
}
