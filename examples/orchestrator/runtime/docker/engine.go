package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/steadyraft/raft/examples/orchestrator/runtime"
)

// Ping finds out whether the engine answers.
func (r *Runtime) Ping(ctx context.Context) error {
	if _, err := call(ctx, r, func(ctx context.Context) (client.PingResult, error) { return r.engine.Ping(ctx, client.PingOptions{}) }); err != nil {
		return fmt.Errorf("no Docker Engine answers at %s (%w); start it, name another one with --docker-host, or use --runtime process", r.opts.Host, err)
	}
	return nil
}

// negotiate agrees with the engine on a version of its API. The client would do so by itself at the first request, but not safely when two
// goroutines make one.
func (r *Runtime) negotiate(ctx context.Context) error {
	r.negotiating.Lock()
	defer r.negotiating.Unlock()
	if r.negotiated {
		return nil
	}
	if _, err := r.engine.Ping(ctx, client.PingOptions{NegotiateAPIVersion: true}); err != nil {
		return err
	}
	r.negotiated = true
	return nil
}

// call makes one request that is bounded in time.
func call[T any](ctx context.Context, r *Runtime, request func(context.Context) (T, error)) (result T, err error) {
	within, cancel := context.WithTimeout(ctx, r.opts.CallTimeout)
	defer cancel()
	if err = r.negotiate(within); err == nil {
		result, err = request(within)
	}
	switch {
	case err == nil:
		return result, nil
	case ctx.Err() != nil:
		return result, ctx.Err()
	case within.Err() != nil:
		return result, fmt.Errorf("%w within %v", runtime.ErrUnavailable, r.opts.CallTimeout)
	default:
		return result, unavailable(err)
	}
}

// unavailable marks the errors that say nothing but that there was no answer.
func unavailable(err error) error {
	var network net.Error
	if client.IsErrConnectionFailed(err) || errdefs.IsUnavailable(err) || errors.As(err, &network) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) { // cut off in the middle of an answer
		return fmt.Errorf("%w: %w", runtime.ErrUnavailable, err)
	}
	return err
}

// inspect returns a container as it is.
func (r *Runtime) inspect(ctx context.Context, id string) (c container.InspectResponse, err error) {
	name, err := r.name(id)
	if err != nil {
		return c, err
	}
	result, err := call(ctx, r, func(ctx context.Context) (client.ContainerInspectResult, error) {
		return r.engine.ContainerInspect(ctx, name, client.ContainerInspectOptions{})
	})
	switch {
	case errdefs.IsNotFound(err):
		return c, fmt.Errorf("instance %s: %w", id, runtime.ErrNotFound)
	case err != nil:
		return c, fmt.Errorf("instance %s: %w", id, err)
	}
	c = result.Container
	if c.State == nil || c.Config == nil || c.HostConfig == nil || c.NetworkSettings == nil {
		return c, fmt.Errorf("instance %s: the engine's answer is not complete", id)
	}
	return c, nil
}

// started is when a container was started; zero if it never was.
func started(c container.InspectResponse) time.Time { return timestamp(c.State.StartedAt) }

// timestamp reads the engine's time stamps; what never happened is in the year 1, as Go's zero time.
func timestamp(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}
	}
	return t
}
