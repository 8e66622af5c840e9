package mutants

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

func names(rows []Mutant) (all []string) {
	for _, m := range rows {
		all = append(all, m.Name)
	}
	return all
}

func numbered(n int) (rows []Mutant) {
	for i := range n {
		rows = append(rows, Mutant{Name: fmt.Sprint("mutant ", i), File: "raft.go"})
	}
	return rows
}

// Consecutive samples are about as large as asked for, and cover the table. Other strings pick other samples, always the same.
func TestSamplesCoverTheTable(t *testing.T) {
	rows := numbered(47)
	covered := map[string]bool{}
	for turn := range 5 {
		hand, err := Choice{Sample: 10, Rotate: fmt.Sprint(100 + turn)}.Choose(t.Context(), "", rows)
		require.NoError(t, err)
		require.GreaterOrEqual(t, len(hand), 9)
		require.LessOrEqual(t, len(hand), 10)
		for _, m := range hand {
			require.False(t, covered[m.Name])
			covered[m.Name] = true
		}
		again, err := Choice{Sample: 10, Rotate: fmt.Sprint(100 + turn)}.Choose(t.Context(), "", rows)
		require.NoError(t, err)
		require.Equal(t, hand, again)
	}
	require.Len(t, covered, 47)
	picked := map[string]bool{}
	for _, s := range []string{"monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"} {
		picked[names(sample(rows, 10, s))[0]] = true
	}
	require.Greater(t, len(picked), 2)
	require.Len(t, sample(rows, 100, "all of them"), 47)
	require.Empty(t, sample(nil, 3, ""))
}

// Of the equivalent rows a few take turns, the others are always there.
func TestEquivalentRowsTakeTurns(t *testing.T) {
	rows := numbered(20)
	for i := range 6 {
		rows[3*i].Equivalent = "nothing can notice"
	}
	turns := map[string]int{}
	for turn := range 3 {
		got, err := Choice{Equivalents: 2, Rotate: fmt.Sprint(turn)}.Choose(t.Context(), "", rows)
		require.NoError(t, err)
		require.Len(t, got, 14+2)
		for _, m := range got {
			turns[m.Name]++
		}
	}
	for _, m := range rows {
		require.Equal(t, map[bool]int{true: 1, false: 3}[m.Equivalent != ""], turns[m.Name], m.Name)
	}
}

func TestChooseByNameAndFile(t *testing.T) {
	rows := append(numbered(12), Mutant{Name: "elsewhere", File: "storage/wal/wal.go"})
	got, err := Choice{Names: regexp.MustCompile("^mutant 1")}.Choose(t.Context(), "", rows)
	require.NoError(t, err)
	require.Equal(t, []string{"mutant 1", "mutant 10", "mutant 11"}, names(got))
	got, err = Choice{File: "./storage/wal/wal.go"}.Choose(t.Context(), "", rows)
	require.NoError(t, err)
	require.Equal(t, []string{"elsewhere"}, names(got))
	require.Len(t, rows, 13)
}

// Rows that a change is about are chosen, those whose guard is in a changed file first.
func TestChooseWhatHasChanged(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(root, filepath.FromSlash(name))
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	}
	git := func(args ...string) {
		cmd := exec.Command("git", append([]string{"-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"}, args...)...)
		cmd.Dir = root
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	for _, name := range []string{"a.go", "b.go", "c/c.go", "d/d.go"} {
		write(name, "package x\n")
	}
	write("a_test.go", "package x\n\nfunc TestA(t *testing.T) {}\n")
	write("lab_test.go", "package x\n")
	write("c/c_test.go", "package x\n\nfunc TestC(t *testing.T) {}\n")
	write("d/d_test.go", "package x\n\nfunc TestD(t *testing.T) {}\n\nfunc TestScripts(t *testing.T) {}\n")
	write("d/testdata/figure-8.txt", "start\n")
	write("raftsim/mutants/table.go", "package mutants\n\nvar a = \"old row\"\n")
	git("init", "-q")
	git("add", ".")
	git("commit", "-q", "-m", "first")

	rows := []Mutant{
		{Name: "a changed test file beside it", File: "c/c.go", Test: Test{Package: ".", Name: "TestA"}},
		{Name: "old row", File: "c/c.go", Test: Test{Package: "./c", Name: "TestC"}},
		{Name: "a script", File: "d/d.go", Test: Test{Package: "./d", Name: "TestScripts/figure-8"}},
		{Name: "the guard's file", File: "b.go"},
		{Name: "no test", File: "d/d.go"},
		{Name: "new row", File: "d/d.go"},
		{Name: "its test", File: "d/d.go", Test: Test{Package: "./d", Name: "TestD/sub"}},
	}
	chosen := func(c Choice) []string {
		got, err := c.Choose(t.Context(), root, rows)
		require.NoError(t, err)
		return names(got)
	}
	require.Empty(t, chosen(Choice{Changed: "HEAD"}))
	write("b.go", "package x // changed\n")
	write("lab_test.go", "package x // changed\n")
	write("d/testdata/figure-8.txt", "start a\n")
	write("raftsim/mutants/table.go", "package mutants\n\nvar a = \"old row\"\n\nvar b = \"new row\"\n")
	got := chosen(Choice{Changed: "HEAD"})
	require.ElementsMatch(t, []string{"the guard's file", "new row"}, got[:2])
	require.Equal(t, []string{"a script", "a changed test file beside it"}, got[2:])
	require.Len(t, chosen(Choice{Changed: "HEAD", Sample: 7}), 7, "the sample comes on top")

	write("d/d_test.go", "package x // changed\n\nfunc TestD(t *testing.T) {}\n")
	require.Contains(t, chosen(Choice{Changed: "HEAD"})[:4], "its test")

	_, err := Choice{Changed: "no-such-revision"}.Choose(t.Context(), root, rows)
	require.ErrorContains(t, err, "no-such-revision")
}

// Outside of a checkout nothing can be mutated, and inside it is found from everywhere, past the modules nested in it.
func TestRoot(t *testing.T) {
	_, err := Root(t.TempDir())
	require.ErrorContains(t, err, "is not inside a checkout of github.com/steadyraft/raft")
	root, err := Root(filepath.Join("..", "..", "examples", "orchestrator"))
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(root, "election.go"))
}
