package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/runtime"
)

// Docker's defaults, and the pace before a task has been healthy for the first time.
const (
	defaultHealthInterval = 30 * time.Second
	defaultHealthTimeout  = 30 * time.Second
	defaultHealthRetries  = 3
	firstProbe            = 100 * time.Millisecond
	maxStartProbe         = 5 * time.Second
)

// checkHealth probes a running task until it is unhealthy, and returns why; nil if ctx is done first.
//
// Failures count as in Docker: one per interval, not within the start period, `retries` in a row. Until the first success there are
// more probes than that, the first after 100 ms: they cannot make a task unhealthy, only let it serve sooner.
func (t *task) checkHealth(ctx context.Context, isAdopted bool) error {
	check := *t.spec.Spec.HealthCheck
	setDefault(&check.Interval, defaultHealthInterval)
	setDefault(&check.Timeout, defaultHealthTimeout)
	setDefault(&check.Retries, defaultHealthRetries)

	began := time.Now()
	counted, failures, healthy := began, 0, false
	pause := min(firstProbe, check.Interval)
	if isAdopted { // it may have been serving all along: find out at once
		pause = 0
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		err := t.probe(ctx, check)
		now := time.Now()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, runtime.ErrUnavailable): // it says nothing about the task, good or bad
			pause = min(maxStartProbe, check.Interval)
			continue
		case err == nil:
			if !healthy {
				t.report(func(s *cluster.TaskStatus) { s.Health = cluster.HealthHealthy })
			}
			healthy, failures, pause = true, 0, check.Interval
			continue
		case healthy:
			failures++
		default:
			pause = min(2*max(pause, firstProbe), maxStartProbe, check.Interval)
			if now.Sub(began) >= check.StartPeriod && now.Sub(counted) >= check.Interval {
				counted = now
				failures++
			}
		}
		if failures >= check.Retries {
			return fmt.Errorf("%d health checks in a row failed, the last one: %w", failures, err)
		}
	}
}

// probe asks once.
func (t *task) probe(ctx context.Context, check cluster.HealthCheck) error {
	ctx, cancel := context.WithTimeout(ctx, check.Timeout)
	defer cancel()
	switch check.Kind {
	case cluster.HealthExec:
		code, err := t.agent.opts.Runtime.Exec(ctx, t.instance(), check.Command)
		if err == nil && code != 0 {
			err = fmt.Errorf("%s: exit code %d", check.Command[0], code)
		}
		return err
	case cluster.HealthTCP:
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", t.endpoint(check.Port))
		if err != nil {
			return err
		}
		return conn.Close()
	case cluster.HealthHTTP:
		return probeHTTP(ctx, "http://"+t.endpoint(check.Port)+"/"+trimSlash(check.Path))
	default:
		return fmt.Errorf("health check of unknown kind %q", check.Kind)
	}
}

func trimSlash(path string) string {
	if path != "" && path[0] == '/' {
		return path[1:]
	}
	return path
}

func probeHTTP(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	// A connection of its own for each probe, as a new client would make it; and a redirect is an answer, not a way to another server.
	transport := &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	if err := response.Body.Close(); err != nil {
		return err
	}
	if response.StatusCode >= 400 {
		return fmt.Errorf("GET %s: %s", url, response.Status)
	}
	return nil
}
