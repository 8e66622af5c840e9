package explore

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A core that votes twice in a term is found out by the command, which prints the way there; the test of the scripts goes the same way,
// with the same core, to the same vote; and with the true core the script fails, because there the vote is refused.
func TestViolationReplays(t *testing.T) {
	if testing.Short() || raceDetector {
		t.Skip("it compiles the library with a broken core")
	}
	root, err := filepath.Abs(filepath.Join("..", ".."))
	require.NoError(t, err)
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
		return path
	}
	source, err := os.ReadFile(filepath.Join(root, "election.go"))
	require.NoError(t, err)
	const guard = `(c.votedFor == "" || c.votedFor == h.From) &&`
	require.Equal(t, 1, strings.Count(string(source), guard))
	broken := file("election.go", strings.Replace(string(source), guard, "", 1))
	list, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(root, "election.go"): broken}})
	require.NoError(t, err)
	overlay := "-overlay=" + file("overlay.json", string(list))
	run := func(args ...string) (string, error) {
		c := exec.CommandContext(t.Context(), "go", args...)
		c.Dir = root
		out, err := c.CombinedOutput()
		return string(out), err
	}

	out, err := run("run", overlay, "./cmd/raftsim", "explore", "-world", "promote")
	require.ErrorContains(t, err, "exit status 1", out)
	_, script, found := strings.Cut(out, "VIOLATION ")
	require.True(t, found, out)
	require.Contains(t, script, `a vote for "a" in term 2 leaves, but term 2 with a vote for "b" is durable`)
	_, script, _ = strings.Cut(script, "\n\n")
	script, _, _ = strings.Cut(script, "show\n")
	path := file("scripts/found.txt", script+"show\n")

	out, err = run("test", "-vet=off", overlay, "-run", "^TestScripts$", ".", "-scripts", filepath.Dir(path), "-update")
	require.NoError(t, err, out)
	replayed, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Contains(t, string(replayed), "b->a RequestVoteReply term 2 granted true")
	require.Contains(t, string(replayed), "b candidate term 2 vote b")

	out, err = run("test", "-vet=off", "-run", "^TestScripts$", ".", "-scripts", filepath.Dir(path))
	require.Error(t, err)
	require.Contains(t, out, "what happens is no longer what the script says")
	require.Contains(t, out, "RequestVoteReply term 2 granted false")
}
