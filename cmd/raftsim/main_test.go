package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// call runs the command as a shell would.
func call(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = command(args, &out, &errs)
	return code, out.String(), errs.String()
}

// Many seeds end with a summary, the situations that were not reached, and where to continue.
func TestManySeeds(t *testing.T) {
	code, out, _ := call("run", "-seeds", "12", "-first", "3", "-j", "2")
	require.Zero(t, code, out)
	for _, want := range []string{"12 seeds", "events", "hours simulated", "situations", "0 failures", "never reached", "continue with -first 15"} {
		require.Contains(t, out, want)
	}
}

// A time limit ends a run that has no number of seeds.
func TestTimeLimit(t *testing.T) {
	code, out, _ := call("run", "-for", "1ms", "-j", "1")
	require.Zero(t, code, out)
	require.Contains(t, out, "continue with")
}

// One seed gives the same hash whenever it is run, and its whole story with -v.
func TestOneSeed(t *testing.T) {
	code, quiet, _ := call("run", "-seed", "5")
	require.Zero(t, code, quiet)
	code, story, _ := call("run", "-seed", "5", "-v")
	require.Zero(t, code)
	require.True(t, strings.HasSuffix(story, quiet), "the summary, with the hash, is the same")
	require.Contains(t, story, "leader")
	require.Greater(t, strings.Count(story, "\n"), 100)

	_, many, _ := call("run", "-seeds", "1", "-first", "5", "-hashes")
	_, hash, _ := strings.Cut(strings.TrimSpace(quiet), "trace hash ")
	require.Contains(t, many, "seed 5 "+hash)
}

// Faults can be chosen by name.
func TestFaultsByName(t *testing.T) {
	code, out, _ := call("run", "-seeds", "4", "-coverage", "-faults", "pause,clock")
	require.Zero(t, code, out)
	require.Regexp(t, `(?m)^ +0 leader crashed$`, out)
	require.Regexp(t, `(?m)^ +[1-9]\d* clock rate changed$`, out)
}

// A wrong call says what is wrong, all at once, and ends with 2.
func TestWrongCalls(t *testing.T) {
	for _, args := range [][]string{{}, {"walk"}, {"run", "-unknown"}} {
		code, _, errs := call(args...)
		require.Equal(t, 2, code)
		require.NotEmpty(t, errs)
	}
	code, _, errs := call("run", "-faults", "gremlins", "-servers", "99", "-for", "-1s", "more")
	require.Equal(t, 2, code)
	for _, want := range []string{"gremlins", "99 servers", "-1s", "more"} {
		require.Contains(t, errs, want)
	}
	code, _, _ = call("run", "-h")
	require.Zero(t, code)

	code, _, errs = call("mutants", "-j", "0", "-for", "-1s", "-sample", "-1", "-rotate", "x", "-stage", "(", "-wounds", "-file", "raft.go", "more")
	require.Equal(t, 2, code)
	for _, want := range []string{"-j 0", "-for -1s", "-sample -1", "-stage: error parsing", "it wants -all", "-wounds goes with", "more"} {
		require.Contains(t, errs, want)
	}
	code, _, errs = call("mutants", "-rotate", "x")
	require.Equal(t, 2, code)
	require.Contains(t, errs, "it wants -sample")
	code, _, errs = call("mutants", "-equivalents", "-1", "-changed", "HEAD", "-verify", "-2")
	require.Equal(t, 2, code)
	for _, want := range []string{"-equivalents -1", "which choose among all", "-verify -2"} {
		require.Contains(t, errs, want)
	}
	code, _, errs = call("mutants", "-alone", "-verify", "3")
	require.Equal(t, 2, code)
	require.Contains(t, errs, "with -alone there is no other")
	code, _, errs = call("mutants", "-run", "^no such mutant$")
	require.Equal(t, 2, code)
	require.Contains(t, errs, "-list lists them")
	code, _, _ = call("mutants", "-h")
	require.Zero(t, code)
}

// Mutants are made of a checkout, by the go command. Without one or the other there is nothing to say about them.
func TestMutantsNeedACheckout(t *testing.T) {
	t.Chdir(t.TempDir())
	code, _, errs := call("mutants", "-wounds")
	require.Equal(t, 2, code)
	require.Contains(t, errs, "is not inside a checkout")
	t.Setenv("PATH", "")
	code, _, errs = call("mutants", "-wounds")
	require.Equal(t, 2, code)
	require.Contains(t, errs, "the go command builds the mutants")
}

// The tables can be listed anywhere.
func TestListOfMutants(t *testing.T) {
	t.Chdir(t.TempDir())
	code, out, _ := call("mutants", "-list", "-wounds")
	require.Zero(t, code)
	require.Regexp(t, `(?m)^\d+ wounds$`, out)
}
