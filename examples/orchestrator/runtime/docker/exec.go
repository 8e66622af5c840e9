package docker

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"github.com/steadyraft/raft/examples/orchestrator/runtime"
)

// Exec implements runtime.Runtime: it runs a command inside the container. The command's output is dropped. When ctx ends, nobody waits for
// the command any more, but the engine has no way to end it: until it has ended by itself, no other one is begun.
func (r *Runtime) Exec(ctx context.Context, id string, argv []string) (int, error) {
	name, err := r.name(id)
	if err != nil {
		return 0, err
	}
	if len(argv) == 0 {
		return 0, fmt.Errorf("instance %s: exec of an empty command", id)
	}
	r.mu.Lock()
	left := r.execs[id]
	r.mu.Unlock()
	if left != "" {
		if result, err := r.inspectExec(ctx, left); err == nil && result.Running {
			return 0, fmt.Errorf("instance %s: the command before still runs", id)
		} else if errors.Is(err, runtime.ErrUnavailable) || ctx.Err() != nil {
			return 0, err
		}
	}
	created, err := call(ctx, r, func(ctx context.Context) (client.ExecCreateResult, error) {
		return r.engine.ExecCreate(ctx, name, client.ExecCreateOptions{Cmd: argv, AttachStdout: true, AttachStderr: true})
	})
	switch {
	case errdefs.IsNotFound(err):
		return 0, fmt.Errorf("instance %s: %w", id, runtime.ErrNotFound)
	case errdefs.IsConflict(err): // it has ended, or is paused
		return 0, fmt.Errorf("instance %s: %w", id, runtime.ErrNotRunning)
	case err != nil:
		return 0, fmt.Errorf("instance %s: %w", id, err)
	}
	r.mu.Lock()
	r.execs[id] = created.ID
	r.mu.Unlock()
	attached, err := call(ctx, r, func(ctx context.Context) (client.ExecAttachResult, error) {
		return r.engine.ExecAttach(ctx, created.ID, client.ExecAttachOptions{})
	})
	if err != nil {
		return 0, fmt.Errorf("instance %s: exec %s: %w", id, argv[0], err)
	}
	defer attached.Close()
	defer context.AfterFunc(ctx, attached.Close)() // ends the copying; its output ends with the command
	_, err = io.Copy(io.Discard, attached.Reader)
	if ctx.Err() != nil {
		return 0, ctx.Err()
	} else if err != nil {
		return 0, unavailable(fmt.Errorf("instance %s: exec %s: %w", id, argv[0], err))
	}
	result, err := r.inspectExec(ctx, created.ID)
	switch {
	case err != nil:
		return 0, fmt.Errorf("instance %s: exec %s: %w", id, argv[0], err)
	case result.Running:
		return 0, fmt.Errorf("instance %s: exec %s: it has closed its output and goes on", id, argv[0])
	}
	return result.ExitCode, nil
}

func (r *Runtime) inspectExec(ctx context.Context, id string) (client.ExecInspectResult, error) {
	return call(ctx, r, func(ctx context.Context) (client.ExecInspectResult, error) {
		return r.engine.ExecInspect(ctx, id, client.ExecInspectOptions{})
	})
}
