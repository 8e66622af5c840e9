// Package runtimetest is what the tests of all runtimes have in common: small steps, and the behaviours that do not depend on what a task
// is. The tests' task prints "up" when it has begun, and its "graceful" form "terminated" when SIGTERM has ended it.
package runtimetest

import (
	"bufio"
	"context"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/runtime"
)

const patience = time.Minute

// Start starts a task, and returns where it listens.
func Start(t *testing.T, r runtime.Runtime, spec runtime.Spec) []runtime.Port {
	t.Helper()
	require.NoError(t, r.Prepare(t.Context(), spec))
	ports, err := r.Start(t.Context(), spec.ID)
	require.NoError(t, err)
	return ports
}

// Wait waits for a task's end.
func Wait(t *testing.T, r runtime.Runtime, id string) runtime.ExitStatus {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	status, err := r.Wait(ctx, id)
	require.NoError(t, err)
	return status
}

// Up waits until a task has begun: a signal before that would meet it without its handlers.
func Up(t *testing.T, r runtime.Runtime, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	logs, err := r.Logs(ctx, id, runtime.LogOptions{Follow: true})
	require.NoError(t, err)
	line := ""
	for lines := bufio.NewReader(logs); !strings.HasPrefix(line, "up"); {
		line, err = lines.ReadString('\n')
		require.NoError(t, err)
	}
	require.NoError(t, logs.Close())
}

// Output returns what a task has written.
func Output(t *testing.T, r runtime.Runtime, id string, opts runtime.LogOptions) string {
	t.Helper()
	logs, err := r.Logs(t.Context(), id, opts)
	require.NoError(t, err)
	text, err := io.ReadAll(logs)
	require.NoError(t, err)
	require.NoError(t, logs.Close())
	return string(text)
}

// FollowsLogsToTheEnd checks that who follows a task's output reads on until the task ends, and not longer.
func FollowsLogsToTheEnd(t *testing.T, r runtime.Runtime, graceful runtime.Spec) {
	t.Helper()
	Start(t, r, graceful)
	logs, err := r.Logs(t.Context(), graceful.ID, runtime.LogOptions{Follow: true})
	require.NoError(t, err)
	defer logs.Close()
	lines := bufio.NewReader(logs)
	line, err := lines.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "up\n", line)
	require.NoError(t, r.Stop(t.Context(), graceful.ID, patience))
	rest, err := io.ReadAll(lines)
	require.NoError(t, err)
	require.Equal(t, "terminated\n", string(rest))
}

// FollowsLogsIntoTheNextRun checks that who wants to reads on with the next run of a task.
func FollowsLogsIntoTheNextRun(t *testing.T, r runtime.Runtime, graceful runtime.Spec) {
	t.Helper()
	Start(t, r, graceful)
	var ended atomic.Bool
	logs, err := r.Logs(t.Context(), graceful.ID, runtime.LogOptions{Follow: true, Again: func() bool { return !ended.Load() }})
	require.NoError(t, err)
	defer logs.Close()
	lines := bufio.NewReader(logs)
	for run := range 2 {
		line, err := lines.ReadString('\n')
		require.NoError(t, err, run)
		require.Equal(t, "up\n", line)
		ended.Store(run == 1)
		require.NoError(t, r.Stop(t.Context(), graceful.ID, patience))
		line, err = lines.ReadString('\n')
		require.NoError(t, err, run)
		require.Equal(t, "terminated\n", line)
		if run == 0 {
			Start(t, r, graceful)
		}
	}
	_, err = lines.ReadString('\n')
	require.ErrorIs(t, err, io.EOF)
}
