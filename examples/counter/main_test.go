package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
)

// asProgram tells this test's own binary to be the program.
const asProgram = "COUNTER_TEST_RUNS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// start runs the program once, as a process of its own.
func start(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	t.Log(stderr.String())
	return string(out), err
}

func TestEveryStartCounts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	for _, want := range []string{"1\n", "2\n"} {
		out, err := start(t, "-dir", dir, "-addr", "127.0.0.1:0")
		require.NoError(t, err)
		require.Equal(t, want, out)
	}
}

func TestErrorIsShown(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	out, err := start(t, "-dir", file, "-addr", "127.0.0.1:0")
	require.Error(t, err)
	require.Empty(t, out)
}

func TestSnapshotHoldsTheCount(t *testing.T) {
	ctx := context.Background()
	var from, to counter
	require.NoError(t, from.Apply(make([]raft.Entry, 3), make([]any, 3)))
	view, err := from.Snapshot(ctx)
	require.NoError(t, err)
	require.NoError(t, from.Apply(make([]raft.Entry, 2), make([]any, 2))) // the view stays as it was
	var content bytes.Buffer
	require.NoError(t, view.WriteTo(ctx, &content))
	view.Close()
	require.NoError(t, to.Restore(ctx, raft.SnapshotMeta{}, &content))
	require.EqualValues(t, 3, to.Load())
	require.Error(t, to.Restore(ctx, raft.SnapshotMeta{}, bytes.NewReader(nil)))
}
