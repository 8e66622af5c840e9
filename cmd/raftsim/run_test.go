package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/raftsim"
)

func readState(t *testing.T, file string) (s state) {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(b, &s))
	return s
}

// sums is what of a summary does not depend on the time.
func sums(out string) []string {
	return regexp.MustCompile(`\d+ (seeds|events|calls)|\d+ of \d+ situations|never reached: .*`).FindAllString(out, -1)
}

// A run in pieces adds up to the run as a whole.
func TestRunResumes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "run.json")
	code, out, _ := call("run", "-seeds", "5", "-resume", file, "-j", "2")
	require.Zero(t, code, out)
	require.Contains(t, out, "continue with -resume "+file+" (seed 6)")
	require.EqualValues(t, 6, readState(t, file).Next)

	code, out, _ = call("run", "-seeds", "12", "-resume", file, "-j", "2")
	require.Zero(t, code, out)
	require.Contains(t, out, "so far: 5 seeds")
	_, resumed, _ := strings.Cut(out, "\n")
	_, whole, _ := call("run", "-seeds", "12")
	require.Equal(t, sums(whole), sums(resumed))
	require.NotEmpty(t, sums(whole))

	code, out, _ = call("run", "-seeds", "12", "-resume", file) // nothing is left to do
	require.Zero(t, code, out)
	require.EqualValues(t, 13, readState(t, file).Next)

	left, err := filepath.Glob(file + ".*")
	require.NoError(t, err)
	require.Empty(t, left, "no temporary file stays behind")
}

// A signal ends a run as if it had been long enough: with a summary, and a file that knows where to go on.
func TestInterruptedRunSumsUpAndResumes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "run.json")
	var out, errs bytes.Buffer
	interrupted := make(chan os.Signal, 1)
	interrupted <- os.Interrupt
	r := run{stdout: &out, stderr: &errs, interrupted: interrupted}
	require.NoError(t, r.parse([]string{"-seeds", "100000", "-resume", file, "-j", "2"}))
	require.Zero(t, r.many())
	require.Contains(t, errs.String(), "interrupted")
	s := readState(t, file)
	require.Less(t, s.Seeds, uint64(10))
	require.Equal(t, s.Seeds+1, s.Next)
	require.Contains(t, out.String(), "continue with -resume")
}

// Seeds are counted in their order, whichever is finished first: a file never claims a seed that was not simulated.
func TestStateHasNoGap(t *testing.T) {
	s := state{Next: 1, Coverage: raftsim.Coverage{}, waiting: map[uint64]raftsim.Result{}}
	for _, step := range []struct{ seed, next uint64 }{{2, 1}, {4, 1}, {1, 3}, {3, 5}} {
		s.add(raftsim.Result{Seed: step.seed, Events: 10, Coverage: raftsim.Coverage{"x": 1}})
		require.Equal(t, step.next, s.Next)
		require.Equal(t, s.Next-1, s.Seeds)
		require.Equal(t, 10*s.Seeds, s.Events)
		require.Equal(t, s.Seeds, s.Coverage["x"])
	}
}

// What does not belong together is not added up.
func TestResumeRefusesOtherRuns(t *testing.T) {
	file := filepath.Join(t.TempDir(), "run.json")
	code, _, _ := call("run", "-seeds", "1", "-servers", "3", "-resume", file)
	require.Zero(t, code)
	code, _, errs := call("run", "-seeds", "2", "-servers", "5", "-resume", file)
	require.Equal(t, 2, code)
	require.Contains(t, errs, "give the same flags, or take another file")
	for _, content := range []string{"no JSON", "{}"} {
		require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
		code, _, errs = call("run", "-seeds", "2", "-resume", file)
		require.Equal(t, 2, code, content)
		require.Contains(t, errs, "take another file")
	}
	code, _, errs = call("run", "-seeds", "1", "-resume", filepath.Join(t.TempDir(), "no", "such", "directory"))
	require.Equal(t, 2, code)
	require.Contains(t, errs, "remember what was done")
}

// A part of a seed is simulated as a report names it.
func TestPartOfASeed(t *testing.T) {
	code, out, _ := call("run", "-seed", "5", "-only", "servers 2, faults none, calls 3", "-events", "200")
	require.Zero(t, code, out)
	require.Contains(t, out, "seed 5: 200 events")
	code, _, errs := call("run", "-only", "gremlins", "-events", "9", "-max-faulty", "9")
	require.Equal(t, 2, code)
	for _, want := range []string{"-only belongs to one seed", "-events belongs to one seed", "gremlins", "9 faulty servers"} {
		require.Contains(t, errs, want)
	}
	code, _, errs = call("run", "-seed", "5", "-resume", "x")
	require.Equal(t, 2, code)
	require.Contains(t, errs, "-resume belongs to many seeds")
}
