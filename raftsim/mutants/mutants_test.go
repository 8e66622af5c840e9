package mutants

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The tables may grow, and must not shrink below these.
const (
	leastMutants = 700
	leastWounds  = 50
)

func TestTablesAreLargeEnough(t *testing.T) {
	require.GreaterOrEqual(t, len(Table()), leastMutants)
	require.GreaterOrEqual(t, len(Wounds()), leastWounds)
}

// Every mutant fits the source as it is, once, and what it makes of it is Go. The runner sees whether it compiles.
func TestMutantsFitTheSource(t *testing.T) {
	root := checkout(t)
	tests := testsBelow(root)
	require.NoError(t, checkTable(Table()))
	for _, m := range Table() {
		_, err := mutate(root, &m)
		require.NoError(t, err, "mutant %q", m.Name)
		stages := (&Options{}).stages(&m)
		require.NotEmpty(t, stages, "mutant %q", m.Name)
		for _, s := range stages {
			require.NotEmpty(t, tests(s.pkg), "mutant %q: stage %q", m.Name, s.name)
		}
		if m.Test.Name != "" {
			requireTest(t, root, tests, m.Test, "mutant "+m.Name)
		}
	}
}

// Every wound has its mutants and its test, and every row of the table of wounds belongs to a wound.
func TestWoundsHaveMutantsAndTests(t *testing.T) {
	root := checkout(t)
	tests := testsBelow(root)
	require.NoError(t, checkWounds(Wounds(), Table()))
	used := map[string]bool{}
	for _, w := range Wounds() {
		requireTest(t, root, tests, w.Test, "wound "+w.Name)
		for _, name := range w.Mutants {
			used[name] = true
		}
	}
	for _, m := range wounds {
		require.True(t, used[m.Name], "no wound names the mutant %q", m.Name)
	}
}

// testsBelow is testsOf that reads a package once.
func testsBelow(root string) func(pkg string) map[string]string {
	read := map[string]map[string]string{}
	return func(pkg string) map[string]string {
		if read[pkg] == nil {
			read[pkg] = testsOf(root, pkg)
		}
		return read[pkg]
	}
}

// requireTest looks for a test in the source: its function, and if it is a script, that.
func requireTest(t *testing.T, root string, tests func(pkg string) map[string]string, test Test, who string) {
	t.Helper()
	require.True(t, test.Package == "." || strings.HasPrefix(test.Package, "./"), "%s: package %q: want a path that begins with ./", who, test.Package)
	function, rest, _ := strings.Cut(test.Name, "/")
	require.Contains(t, tests(test.Package), function, who)
	if function == "TestScripts" {
		require.FileExists(t, filepath.Join(root, filepath.FromSlash(script(test.Package, rest))), who)
	}
}

func checkout(t *testing.T) string {
	t.Helper()
	root, err := Root(".")
	require.NoError(t, err)
	return root
}

// The core's files are listed once more in the test of the architecture, which cannot be imported.
func TestCoreFilesAreThoseOfTheArchitecture(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(checkout(t), "arch_test.go"), nil, 0)
	require.NoError(t, err)
	var files []string
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || spec.Names[0].Name != "coreFiles" {
			return true
		}
		for _, e := range spec.Values[0].(*ast.CompositeLit).Elts {
			name, err := strconv.Unquote(e.(*ast.BasicLit).Value)
			require.NoError(t, err)
			files = append(files, name)
		}
		return false
	})
	require.ElementsMatch(t, files, coreFiles)
}

// The stages name tests and flags of other packages. A name that is gone would leave a stage without tests, or run the slow ones.
func TestStagesNameTestsThatExist(t *testing.T) {
	root := checkout(t)
	for _, s := range []stage{smallWorlds, largeWorlds, chaos, seeds, simulation, {pkg: ".", run: slowTests}} {
		for name := range strings.SplitSeq(strings.Trim(s.run, "^()$"), "|") {
			require.Contains(t, testsOf(root, s.pkg), name)
		}
		for _, a := range s.args {
			if name, found := strings.CutPrefix(a, "-"); found {
				require.True(t, sourceHas(t, filepath.Join(root, s.pkg), `("`+name+`", `), "%s has no flag %s", s.pkg, a)
			}
		}
	}
}

func sourceHas(t *testing.T, dir, text string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	require.NoError(t, err)
	for _, file := range files {
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		if strings.Contains(string(b), text) {
			return true
		}
	}
	return false
}

// What is wrong with the form of tables is reported all at once.
func TestWrongTables(t *testing.T) {
	err := checkTable([]Mutant{
		{Name: "twice", Rule: "r", File: "f", Old: "o"},
		{Name: "twice", Rule: "r", File: "f", Old: "o", Test: Test{Name: "TestX"}},
		{Name: "bare"},
	})
	for _, part := range []string{`"twice": another`, `"twice": its test needs`, `"bare": it needs`} {
		require.ErrorContains(t, err, part)
	}
	err = checkWounds([]Wound{{Name: "open", Mutants: []string{"nobody"}}, {Name: "open"}}, nil)
	for _, part := range []string{`"open": it needs`, `"open": another`, `no mutant "nobody"`} {
		require.ErrorContains(t, err, part)
	}
}
