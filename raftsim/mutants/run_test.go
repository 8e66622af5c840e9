package mutants

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A module of one function with one test. Its loop has a bound that a mutant can take away.
var tiny = map[string]string{
	"go.mod": "module tiny\n\ngo 1.25\n",
	"sum.go": `package tiny

func sum(n int) (total int) {
	for i := 1; i <= n; i++ {
		total += i
	}
	if total < 0 {
		total = 0
	}
	return total
}
`,
	"sum_test.go": `package tiny

import "testing"

func TestSum(t *testing.T) {
	t.Run("of three", func(t *testing.T) {
		if got := sum(3); got != 6 {
			t.Errorf("sum of three is %d", got)
		}
	})
}

func TestNothing(t *testing.T) {
	if got := sum(0); got != 0 {
		t.Errorf("sum of nothing is %d", got)
	}
}

func TestSkipped(t *testing.T) { t.Skip("not here") }
`,
}

// module writes a module into a directory of its own.
func module(t *testing.T, files map[string]string) (root string) {
	t.Helper()
	root = t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, filepath.FromSlash(name))
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	}
	return root
}

// in says how to run the mutants of such a module: all of its tests are the only broad stage.
func in(root string) Options {
	return Options{Root: root, Parallel: 2, broad: func(string) []stage { return []stage{{name: "all tests", pkg: "."}} }}
}

func row(name, old, new string) Mutant {
	return Mutant{Name: name, Rule: "tiny", File: "sum.go", Old: old, New: new}
}

// Each kind of row gets its verdict, and the source stays as it is.
func TestVerdicts(t *testing.T) {
	own := row("killed by its test", "i <= n", "i < n")
	own.Test = Test{Package: ".", Name: "TestSum/of three"}
	missed := row("killed by another test", "total += i", "total += i + 1")
	missed.Test = Test{Package: ".", Name: "TestNothing"}
	same := row("equivalent", "total < 0", "total <= 0")
	same.Equivalent = "0 is 0"
	not := row("equivalent it is not", "i := 1", "i := 2")
	not.Equivalent = "one is nothing"
	rows := []Mutant{
		own, missed, same, not,
		row("killed", "total += i", "total -= i"),
		row("panics", "total += i", "panic(i)"),
		row("survivor", "total < 0", "total < -1"),
		row("does not compile", "total += i", "total += n + undefined"),
		row("is not Go", "total += i", "total += ("),
		row("not in the source", "there is no such line", ""),
		row("more than once", "total", "sum"),
		row("changes nothing", "i <= n", "i <= n"),
	}
	root := module(t, tiny)
	var progress []string
	o := in(root)
	o.Progress = func(line string) { progress = append(progress, line) }
	report, err := Run(t.Context(), rows, o)
	require.NoError(t, err)

	for i, want := range []struct {
		verdict Verdict
		by      string
		problem string
	}{
		{Killed, "`TestSum/of_three`", ""},
		{Wrong, "all tests: `TestSum/of_three`", "TestNothing is meant to notice and does not"},
		{Equivalent, "", ""},
		{Wrong, "all tests: `TestSum/of_three`", "it is argued that nothing can notice"},
		{Killed, "all tests: `TestSum/of_three`", ""},
		{Killed, "all tests: `TestSum/of_three`", ""},
		{Survived, "", ""},
		{Wrong, "", "does not compile"},
		{Wrong, "", "expected operand"},
		{Wrong, "", "Old occurs 0 times"},
		{Wrong, "", "Old occurs 5 times"},
		{Wrong, "", "New is the same"},
	} {
		got := report.Outcomes[i]
		require.Equal(t, want.verdict, got.Verdict, "%s: %s", rows[i].Name, got.Problem)
		require.Equal(t, want.by, got.By, rows[i].Name)
		require.Contains(t, got.Problem, want.problem, rows[i].Name)
		require.False(t, got.Hung, rows[i].Name)
	}
	require.Equal(t, "sum of three is 3", report.Outcomes[0].How)
	require.Equal(t, "panic: 1 [recovered, repanicked]", report.Outcomes[5].How)
	require.False(t, report.OK())
	require.Contains(t, report.Summary(), "12 mutants: 3 killed (1 by their test, 0 by hanging), 1 equivalent, 1 survivors, 7 errors, took ")
	text := report.String()
	require.Contains(t, text, "| killed by its test | tiny | `TestSum/of_three` | ")
	require.Contains(t, text, "\nSURVIVOR survivor (sum.go, tiny)\n- total < 0\n+ total < -1\n")
	require.Contains(t, text, "\nERROR does not compile (sum.go): ")
	require.Contains(t, text, "undefined: undefined")
	require.Contains(t, progress[len(progress)-1], "12/12 ")
	for name, want := range tiny {
		got, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}

	good, err := Run(t.Context(), []Mutant{own, same}, in(root))
	require.NoError(t, err)
	require.True(t, good.OK(), good.String())
}

// A mutant that never ends is killed, and it is said that it was by hanging.
func TestHangingMutantIsKilled(t *testing.T) {
	o := in(module(t, tiny))
	o.least = time.Second
	report, err := Run(t.Context(), []Mutant{row("for ever", "i++", "_ = 0")}, o)
	require.NoError(t, err)
	require.Equal(t, Killed, report.Outcomes[0].Verdict, report.String())
	require.True(t, report.Outcomes[0].Hung)
	require.Contains(t, report.String(), "| all tests: `TestSum/of_three`, by hanging | ")
	require.Contains(t, report.Summary(), "1 by hanging")
}

// With All, the stages behind the one that noticed run too.
func TestMatrix(t *testing.T) {
	own := row("killed twice", "i <= n", "i < n")
	own.Test = Test{Package: ".", Name: "TestSum"}
	o := in(module(t, tiny))
	o.All = true
	o.broad = func(string) []stage {
		return []stage{{name: "nothing", pkg: ".", run: "^TestNothing$"}, {name: "worlds", pkg: ".", run: "^TestSum$", slow: true}}
	}
	report, err := Run(t.Context(), []Mutant{own}, o)
	require.NoError(t, err)
	require.True(t, report.OK())
	require.Contains(t, report.String(), "| mutant | its test | nothing | worlds |\n|---|---|---|---|\n"+
		"| killed twice | `TestSum/of_three` | – | of three |\n")

	o.Stage = regexp.MustCompile("worlds|nothing")
	report, err = Run(t.Context(), []Mutant{own}, o)
	require.NoError(t, err)
	require.Contains(t, report.String(), "| mutant | nothing | worlds |\n|---|---|---|\n| killed twice | – | of three: sum of three is 3 |\n")
	require.Contains(t, report.Summary(), "1 mutants: 1 noticed by these stages, 0 not, 0 errors")

	o.Stage = regexp.MustCompile("nothing")
	report, err = Run(t.Context(), []Mutant{own}, o)
	require.NoError(t, err)
	require.True(t, report.OK(), "who notices is only a question then")
}

// Nothing is said of mutants if the unchanged tree does not compile, or a test fails there, does not exist or is skipped. All of it is
// said at once.
func TestBaseline(t *testing.T) {
	var rows []Mutant
	for _, name := range []string{"TestSum", "TestProduct", "TestSum/of four", "TestSkipped"} {
		m := row(name, "i <= n", "i < n")
		m.Test = Test{Package: ".", Name: name}
		rows = append(rows, m)
	}
	root := module(t, tiny)
	breakSource := func(new string) {
		source := strings.Replace(tiny["sum.go"], "i <= n", new, 1)
		require.NoError(t, os.WriteFile(filepath.Join(root, "sum.go"), []byte(source), 0o600))
	}
	breakSource("i <= n+1")
	_, err := Run(t.Context(), rows, in(root))
	for _, part := range []string{"do not pass on the unchanged tree", ". ^TestSum$: sum of three is 10", ". ^TestProduct$: no test of this name has run",
		". ^TestSum$/^of_four$: no test of this name has run", ". ^TestSkipped$: no test of this name has run"} {
		require.ErrorContains(t, err, part)
	}
	breakSource("i <= m")
	_, err = Run(t.Context(), rows, in(root))
	require.ErrorContains(t, err, "the unchanged tree is broken")
	require.ErrorContains(t, err, "undefined: m")
}

// When the time is up no mutant begins, and the report names those left.
func TestTimeLimit(t *testing.T) {
	o := in(module(t, tiny))
	o.Limit = time.Nanosecond
	report, err := Run(t.Context(), []Mutant{row("killed", "i <= n", "i < n")}, o)
	require.NoError(t, err)
	require.True(t, report.OK())
	require.Contains(t, report.String(), "not run: 1 mutants: killed\n0 mutants: 0 killed")
}

// An interrupted run ends soon and gives no verdict.
func TestInterrupt(t *testing.T) {
	o := in(module(t, tiny))
	ctx, cancel := context.WithCancel(t.Context())
	o.Progress = func(line string) {
		if strings.Contains(line, "all tests") { // the baseline is done
			cancel()
		}
	}
	report, err := Run(ctx, []Mutant{row("for ever", "i++", "_ = 0")}, o)
	require.ErrorIs(t, err, context.Canceled)
	for _, out := range report.Outcomes {
		require.Equal(t, NotRun, out.Verdict)
	}
}

// The test of a wound passes, and fails with each of its mutants.
func TestWoundCheck(t *testing.T) {
	table := []Mutant{row("one too few", "i <= n", "i < n"), row("harmless", "total < 0", "total < -1")}
	wound := Wound{Name: "lost-summand", Story: "a sum was one too low", Test: Test{Package: ".", Name: "TestSum"}, Mutants: []string{"one too few"}}
	o := in(module(t, tiny))
	report, err := CheckWounds(t.Context(), []Wound{wound}, table, o)
	require.NoError(t, err)
	require.True(t, report.OK())
	require.Contains(t, report.String(), "| lost-summand | `TestSum` | one too few | sum of three is 3 |\n")
	require.Contains(t, report.String(), "1 wounds, 1 pairs of a wound and a mutant, 0 errors")

	wound.Mutants = append(wound.Mutants, "harmless")
	report, err = CheckWounds(t.Context(), []Wound{wound}, table, o)
	require.NoError(t, err)
	require.False(t, report.OK())
	require.Contains(t, report.String(), "ERROR lost-summand, harmless: its test passes with this mutant\n")
}

// What a test binary printed is read for what it says, and an end without a word of it proves nothing.
func TestJudge(t *testing.T) {
	exit := exec.Command("go", "no-such-command").Run()
	require.Error(t, exit)
	for _, tt := range []struct {
		name, out string
		err       error
		want      ending
		test, how string
	}{
		{"passed", "=== RUN   TestA\n--- PASS: TestA (0.00s)\nPASS\n", nil, passed, "", ""},
		{"another passed", "=== RUN   TestB\n--- PASS: TestB (0.00s)\nPASS\n", nil, broken, "", "no test of this name has run"},
		{"killed from outside", "=== RUN   TestA\n", exit, broken, "", exit.Error()},
		{"did not begin", "", errors.New("no such file"), broken, "", "no such file"},
		{"timed out", "=== RUN   TestA\npanic: test timed out after 1s\n", exit, hung, "TestA", "it hangs"},
		{"killed in the end", "=== RUN   TestA\n", errTooLong, hung, "TestA", "it hangs"},
		{"panicked in another goroutine", "=== RUN   TestA\npanic: no\n\ngoroutine 7\n", exit, failed, "TestA", "panic: no"},
		{"leaks", "--- PASS: TestA (0.00s)\nPASS\ngoleak: Errors on successful test run: found\n", exit, failed, "", "goleak: Errors on successful test run: found"},
		{"a requirement", "=== RUN   TestA\n    a_test.go:3: an aside\n    a_test.go:9: \n\tError Trace:\ta_test.go:9\n\tError:      \tNot equal: \n" +
			"\t            \texpected: 1\n\tTest:       \tTestA\n\tMessages:   \tof three\n--- FAIL: TestA (0.00s)\n", exit, failed, "TestA", "Not equal: expected: 1: of three"},
		{"a message of two lines", "=== RUN   TestA\n    a_test.go:3: an aside\n    a_test.go:9: broken:\n        a promise\n--- FAIL: TestA (0.00s)\n",
			exit, failed, "TestA", "broken: a promise"},
		{"a subtest", "=== RUN   TestA\n=== RUN   TestA/x\n    a_test.go:3: other\n=== RUN   TestA/y\n    a_test.go:4: this\n--- FAIL: TestA (0.00s)\n" +
			"    --- PASS: TestA/x (0.00s)\n    --- FAIL: TestA/y (0.00s)\n", exit, failed, "TestA/y", "this"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := judge(tt.out, tt.err, "TestA")
			require.Equal(t, tt.want, got.ending)
			require.Equal(t, tt.test, got.test)
			require.Equal(t, tt.how, got.how)
		})
	}
}

// Much output is clipped in its middle.
func TestClipped(t *testing.T) {
	var c clipped
	for range 4 {
		n, err := c.Write(make([]byte, keep))
		require.NoError(t, err)
		require.Equal(t, keep, n)
	}
	_, _ = c.Write([]byte("the end"))
	require.Less(t, len(c.String()), 3*keep+100)
	require.Contains(t, c.String(), "bytes left out")
	require.True(t, strings.HasSuffix(c.String(), "the end"))
}
