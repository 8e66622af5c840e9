package mutants

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A module with a function of every form, in two packages. Its test says what each returns.
var forms = map[string]string{
	"go.mod": "module forms\n\ngo 1.25\n",
	"inner/inner.go": `package inner

// Twice is called from another package.
func Twice(n int) int { return n * 2 }
`,
	"forms.go": `package forms

import (
	"fmt"
	"strings"

	"forms/inner"
)

const limit = 10

type counter struct{ n int }

func (c *counter) add(n int) { c.n += n }
func (c counter) next() int { return c.n + 1 }
func (counter) kind() string { return "counter" }
func (counter) choose(int, string) int { return 4 }

type pair[A, B any] struct {
	a A
	b B
}

func (p pair[A, _]) first() []A { return []A{p.a} }

func plain(a, b int) int { return a - b }
func unused(_ int, s string, _ bool) string { return s + "!" }
func sum(first int, more ...int) (total int, err error) {
	total = first
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	for _, n := range more {
		total += n
	}
	return
}
func zero[T any, S ~[]T](n int) S { return make(S, n) }
func down(n int) string {
	if n == 0 {
		return "."
	}
	return fmt.Sprint(n) + down(n-1)
}
func upper(s string) string { return strings.ToUpper(s) }
func fourfold(n int) int { return inner.Twice(inner.Twice(n)) }
func rescue() { recover() }
func risky() (done bool) {
	defer rescue()
	panic("x")
}

var ready, first = false, plain(7, 2)

func init() { ready = true }
`,
	"forms_test.go": `package forms

import (
	"fmt"
	"testing"
)

func Test(t *testing.T) {
	c := &counter{}
	c.add(5)
	total, err := sum(1, 2, 3)
	risky()
	got := fmt.Sprint(c.n, c.next(), c.kind(), c.choose(0, ""), pair[int, bool]{a: 8}.first(), plain(7, 2), unused(0, "a", true), total, err, sum2(),
		len(zero[int, []int](3)), down(3), upper("x"), fourfold(3), limit, ready, first)
	if want := "5 6counter4 [8] 5a!6 <nil> 13 3321.X12 10 true 5"; got != want {
		t.Errorf("got %s", got)
	}
}

func sum2() int {
	total, _ := sum(1, 2, 3, 7)
	return total
}
`,
}

// Every form of function can be chosen, and then does what the mutant says. What cannot be chosen has a build of its own.
func TestSwitchBuildChoosesEveryForm(t *testing.T) {
	change := func(name, old, new string) Mutant {
		return Mutant{Name: name, Rule: "forms", File: "forms.go", Old: old, New: new}
	}
	rows := []Mutant{
		change("pointer receiver, no result", "c.n += n", "c.n -= n"),
		change("value receiver", "c.n + 1", "c.n + 2"),
		change("receiver without a name", `"counter"`, `"meter"`),
		change("parameters without names", "int { return 4", "int { return 5"),
		change("receiver with type parameters", "[]A{p.a}", "[]A{p.a, p.a}"),
		change("one line", "a - b", "a + b"),
		change("unused parameters", `s + "!"`, `s + s`),
		change("variadic with named results", "total += n", "total -= n"),
		change("panics inside what it recovers from", "total += n", "panic(n)"),
		change("the deferred literal", `fmt.Errorf("%v", r)`, `nil`),
		change("type arguments that no argument tells", "make(S, n)", "make(S, n+1)"),
		change("recursive", "down(n-1)", `down(n-1) + " "`),
		{Name: "another package", Rule: "forms", File: "inner/inner.go", Old: "n * 2", New: "n * 3"},
		change("two functions", " return a - b }\nfunc unused(_ int, s string, _ bool) string { return s", " return a }\nfunc unused(_ int, s string, _ bool) string { return s + s"),
		change("harmless", "n == 0", "n <= 0"),

		change("constant", "limit = 10", "limit = 11"),
		change("signature", "more ...int) (total", "more ...int) (_"),
		change("import", "strings.ToUpper(s)", "s"),
		change("init", "ready = true", "ready = false"),
		change("recover", "{ recover() }", "{}"),
		change("a copy that does not compile", "fmt.Sprint(n)", "fmt.Sprint(m)"),
		change("another that does not compile", "a - b", "a - c"),
		{Name: "inner copy that does not compile", Rule: "forms", File: "inner/inner.go", Old: "n * 2", New: "m * 2"},
	}
	says := []string{
		"got -5 -4counter4 [8] 5a!6 <nil> 13 3321.X12 10 true 5",
		"got 5 7counter4 [8] 5a!6 <nil> 13 3321.X12 10 true 5",
		"got 5 6meter4 [8] 5a!6 <nil> 13 3321.X12 10 true 5",
		"got 5 6counter5 [8] 5a!6 <nil> 13 3321.X12 10 true 5",
		"got 5 6counter4 [8 8] 5a!6 <nil> 13 3321.X12 10 true 5",
		"got 5 6counter4 [8] 9a!6 <nil> 13 3321.X12 10 true 9",
		"got 5 6counter4 [8] 5aa6 <nil> 13 3321.X12 10 true 5",
		"got 5 6counter4 [8] 5a!-4 <nil> -11 3321.X12 10 true 5",
		"got 5 6counter4 [8] 5a!1 2 1 3321.X12 10 true 5",
		"",
		"got 5 6counter4 [8] 5a!6 <nil> 13 4321.X12 10 true 5",
		"got 5 6counter4 [8] 5a!6 <nil> 13 3321.   X12 10 true 5",
		"got 5 6counter4 [8] 5a!6 <nil> 13 3321.X27 10 true 5",
		"got 5 6counter4 [8] 7aa!6 <nil> 13 3321.X12 10 true 7",
		"",
	}
	root := module(t, forms)
	o := in(root)
	o.Verify = 3
	var alone []string
	o.Progress = func(line string) {
		if name, found := strings.CutPrefix(line, "a build of its own for "); found {
			alone = append(alone, name)
		}
	}
	report, err := Run(t.Context(), rows, o)
	require.NoError(t, err)
	for i, out := range report.Outcomes {
		want := Killed
		switch name := out.Mutant.Name; {
		case name == "harmless", name == "the deferred literal":
			want = Survived
		case name == "signature", name == "import", strings.Contains(name, "compile"):
			want = Wrong
			require.Contains(t, out.Problem, "does not compile", name)
		}
		require.Equal(t, want, out.Verdict, "%s: %s", out.Mutant.Name, out.Problem)
		if i < len(says) {
			require.Equal(t, says[i], out.How, out.Mutant.Name)
		} else {
			require.Contains(t, strings.Join(alone, "\n"), out.Mutant.Name+": ")
		}
	}
	require.Len(t, alone, len(rows)-len(says), "%q", alone)
}

// Two builds that do not say the same are an error.
func TestVerifyComplains(t *testing.T) {
	m := row("survives alone", "total < 0", "total < -1")
	root := module(t, tiny)
	r, err := newRunner(in(root))
	require.NoError(t, err)
	defer r.close()
	require.NoError(t, r.baseline(t.Context(), []Mutant{m}, r.stagesOfRows([]Mutant{m})))
	out := Outcome{Mutant: m, Verdict: Killed, By: "`TestSum`"}
	r.verify(t.Context(), &out)
	require.Equal(t, Wrong, out.Verdict)
	require.Contains(t, out.Problem, "the build with all mutants says `TestSum`, a build of its own says NOTHING")
}

// All mutants of the library that can be chosen at run time are in one tree that parses, and there are few others.
func TestMostMutantsAreInTheSwitchBuild(t *testing.T) {
	root := checkout(t)
	b, alone := newSwitchBuild(root, Table())
	require.Less(t, len(alone), len(Table())/50, "%v", alone)
	dir := t.TempDir()
	_, err := b.write(dir)
	require.NoError(t, err)
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	require.NoError(t, err)
	var all strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		_, err = parse(string(text))
		require.NoError(t, err)
		all.Write(text)
	}
	for name, number := range b.numbers {
		require.Contains(t, all.String(), fmt.Sprintf("case %d: ", number), name)
		require.Contains(t, all.String(), fmt.Sprintf("\n//line mutant%d.go:", number), name)
	}
}
