package raft

import (
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The files of the protocol. What they declare is pure: a function of its inputs.
var coreFiles = []string{"raft.go", "election.go", "replication.go", "log.go", "tail.go", "membership.go", "configuration.go", "read.go", "snapshot.go", "gaps.go", "repair.go", "fetch.go", "fence.go",
	"catchup.go", "message.go", "entry.go", "ready.go", "random.go", "corestatus.go", "state.go", "invariants.go", "errors.go"}

// From interfaces.go the core uses these types: what a storage holds, and nothing that acts.
var coreTypesElsewhere = []string{"HardState", "Batch", "Identity", "TermStart", "Recovered", "Damage"}

// What core files may use of the standard library: whole packages ("*"), or parts.
var corePackages = map[string][]string{
	"cmp": {"*"}, "encoding/binary": {"*"}, "errors": {"*"}, "fmt": {"Sprintf", "Errorf", "Sprint", "Stringer"}, "hash/crc32": {"*"},
	"math": {"MaxUint64"}, "math/bits": {"*"}, "slices": {"*"}, "sort": {"Search"}, "strings": {"*"},
	"time": {"Duration", "Nanosecond", "Microsecond", "Millisecond", "Second", "Minute"}, // no clock and no timer
}

// Which packages of this module each directory may import, besides the standard library. "*" is every one.
var moduleImports = []struct {
	dir     string
	allowed []string // of this module
	outside []string // prefixes of other modules
}{
	{".", nil, nil},
	{"storage", []string{".", "storage"}, nil},
	{"storage/storagetest", []string{".", "storage"}, []string{"github.com/stretchr/testify", "go.uber.org/goleak"}},
	{"transport", []string{".", "transport"}, nil},
	{"transport/internal/wire", []string{".", "transport"}, []string{"github.com/hashicorp/go-msgpack/v2"}},
	{"transport/tcp", []string{".", "transport"}, []string{"github.com/hashicorp/go-msgpack/v2"}},
	{"transport/transporttest", []string{".", "transport", "storage/memory"}, []string{"github.com/stretchr/testify", "go.uber.org/goleak"}},
	{"metrics", []string{"."}, []string{"github.com/prometheus/client_golang", "github.com/prometheus/client_model"}},
	{"raftsim", []string{".", "storage", "raftsim"}, []string{"github.com/anishathalye/porcupine"}},
	{"cmd", []string{"*"}, nil},
	{"internal", []string{"*"}, nil},
	{"examples", []string{"*"}, []string{"github.com/", "gopkg.in/", "go.yaml.in/", "golang.org/", "modernc.org/"}},
}

// DESIGN §2: imports point inward, and the root package imports the standard library only.
func TestImportsPointInward(t *testing.T) {
	modulePath := "github.com/steadyraft/raft"
	seen := 0
	require.NoError(t, filepath.WalkDir(".", func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			name := d.Name()
			if path != "." && (strings.HasPrefix(name, ".") || name == "testdata" || path == "bench") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		seen++
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			if problem := importProblem(modulePath, filepath.ToSlash(filepath.Dir(path)), strings.Trim(spec.Path.Value, `"`)); problem != "" {
				t.Errorf("%s: %s", path, problem)
			}
		}
		return nil
	}))
	require.Greater(t, seen, 10)
}

// importProblem says why a package in dir must not import path; "" if it may.
func importProblem(modulePath, dir, path string) string {
	rule := moduleImports[0]
	for _, r := range moduleImports {
		if len(r.dir) >= len(rule.dir) && within(dir, r.dir) {
			rule = r
		}
	}
	if rule.dir == "." && dir != "." {
		return fmt.Sprintf("no rule says what %s may import", dir)
	}
	if path == modulePath || strings.HasPrefix(path, modulePath+"/") {
		target := strings.TrimPrefix(strings.TrimPrefix(path, modulePath), "/")
		if target == "" {
			target = "."
		}
		for _, a := range rule.allowed {
			if a == "*" || a == target || a != "." && within(target, a) {
				return ""
			}
		}
		return fmt.Sprintf("%s imports %s of this module", dir, target)
	}
	if first, _, _ := strings.Cut(path, "/"); !strings.Contains(first, ".") {
		return "" // the standard library
	}
	for _, prefix := range rule.outside {
		if strings.HasPrefix(path, prefix) {
			return ""
		}
	}
	return fmt.Sprintf("%s imports %s", dir, path)
}

func within(dir, parent string) bool { return dir == parent || strings.HasPrefix(dir, parent+"/") }

func TestImportRulesCatchViolations(t *testing.T) {
	const m = "github.com/steadyraft/raft"
	for _, bad := range [][2]string{
		{".", m + "/storage/wal"}, {".", "github.com/stretchr/testify/require"}, {"storage/wal", m + "/transport/tcp"},
		{"transport/tcp", m + "/storage/wal"}, {"transport/memory", "github.com/hashicorp/go-msgpack/v2/codec"}, {"metrics", m + "/raftsim"},
		{"storage/wal", m + "/examples/counter"}, {"raftsim", m + "/transport/tcp"}, {"newcomer", "fmt"},
	} {
		require.NotEmpty(t, importProblem(m, bad[0], bad[1]), "%v", bad)
	}
	for _, good := range [][2]string{
		{".", "context"}, {"storage/wal", m}, {"storage/wal", m + "/storage/vfs"}, {"transport/tcp", "github.com/hashicorp/go-msgpack/v2/codec"},
		{"examples/counter", m + "/transport/tcp"}, {"storage/wal", "hash/crc32"},
	} {
		require.Empty(t, importProblem(m, good[0], good[1]), "%v", good)
	}
}

// DESIGN §2: the protocol is a pure value. Core files use nothing but each other and listed parts of the standard library: no clock, lock,
// goroutine, channel or I/O. Node files use no unexported part of Core.
func TestCoreIsPure(t *testing.T) {
	sources := map[string]string{}
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		sources[name] = string(b)
	}
	for _, name := range coreFiles {
		require.Contains(t, sources, name)
	}
	problems, err := impurities(sources, coreFiles, coreTypesElsewhere)
	require.NoError(t, err)
	require.Empty(t, problems)
}

// impurities lists what breaks the rules in one package.
func impurities(sources map[string]string, core, elsewhere []string) ([]string, error) {
	fset := token.NewFileSet()
	var files []*ast.File
	var names []string
	for name := range sources {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		f, err := parser.ParseFile(fset, name, sources[name], parser.ParseComments)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}, Selections: map[*ast.SelectorExpr]*types.Selection{}, Types: map[ast.Expr]types.TypeAndValue{}}
	conf := types.Config{Importer: importer.ForCompiler(fset, "source", nil)}
	pkg, err := conf.Check("raft", fset, files, info)
	if err != nil {
		return nil, err
	}

	c := purity{fset: fset, info: info, pkg: pkg, core: core, elsewhere: elsewhere}
	for i, f := range files {
		c.name, c.file = names[i], f
		if slices.Contains(core, names[i]) {
			c.checkCoreFile()
		} else {
			c.checkNodeFile()
		}
	}
	return c.problems, nil
}

type purity struct {
	fset            *token.FileSet
	info            *types.Info
	pkg             *types.Package
	core, elsewhere []string
	name            string
	file            *ast.File
	problems        []string
}

func (c *purity) report(pos token.Pos, format string, args ...any) {
	c.problems = append(c.problems, fmt.Sprintf("%v: ", c.fset.Position(pos))+fmt.Sprintf(format, args...))
}

func (c *purity) checkCoreFile() {
	ast.Inspect(c.file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			c.report(n.Pos(), "a goroutine in a core file")
		case *ast.SelectStmt, *ast.SendStmt, *ast.ChanType:
			c.report(n.Pos(), "a channel in a core file")
		case *ast.UnaryExpr:
			if n.Op == token.ARROW {
				c.report(n.Pos(), "a channel in a core file")
			}
		case *ast.RangeStmt:
			if _, isMap := c.info.Types[n.X].Type.Underlying().(*types.Map); isMap && !c.commented(n.Pos(), "order-free: ") {
				c.report(n.Pos(), "a range over a map in a core file, without // order-free: why")
			}
		case *ast.Ident:
			if obj := c.info.Uses[n]; obj != nil {
				c.checkUse(n.Pos(), obj)
			}
		}
		return true
	})
}

// commented reports whether the line of pos has a comment that begins so and goes on.
func (c *purity) commented(pos token.Pos, prefix string) bool {
	line := c.fset.Position(pos).Line
	for _, group := range c.file.Comments {
		for _, comment := range group.List {
			text := strings.TrimSpace(strings.TrimPrefix(comment.Text, "//"))
			if c.fset.Position(comment.Pos()).Line == line && strings.HasPrefix(text, prefix) {
				return true
			}
		}
	}
	return false
}

// checkUse checks one identifier of a core file.
func (c *purity) checkUse(pos token.Pos, obj types.Object) {
	if _, name := obj.(*types.PkgName); name || obj.Pkg() == nil {
		return // the import itself is judged by what is used of it; a built-in
	}
	if obj.Pkg() == c.pkg {
		declared := filepath.Base(c.fset.Position(obj.Pos()).Filename)
		if slices.Contains(c.core, declared) {
			return
		}
		owner := obj.Name()
		if !types.IsInterface(obj.Type()) && obj.Parent() != c.pkg.Scope() {
			owner = "" // a field or method: it belongs to a type whose own use is judged
		}
		if owner != "" && !slices.Contains(c.elsewhere, owner) {
			c.report(pos, "a core file uses %s of %s", obj.Name(), declared)
		}
		return
	}
	allowed, listed := corePackages[obj.Pkg().Path()]
	switch {
	case !listed:
		c.report(pos, "a core file uses %s.%s", obj.Pkg().Path(), obj.Name())
	case slices.Contains(allowed, "*") || obj.Parent() != obj.Pkg().Scope():
	case !slices.Contains(allowed, obj.Name()):
		c.report(pos, "a core file uses %s.%s", obj.Pkg().Path(), obj.Name())
	}
}

// checkNodeFile checks that the owner of a core uses what every owner could use.
func (c *purity) checkNodeFile() {
	ast.Inspect(c.file, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		s := c.info.Selections[sel]
		if s == nil || s.Obj().Exported() {
			return true
		}
		recv := s.Recv()
		if p, ok := recv.Underlying().(*types.Pointer); ok {
			recv = p.Elem()
		}
		if named, ok := recv.(*types.Named); ok && named.Obj().Name() == "Core" && named.Obj().Pkg() == c.pkg {
			c.report(sel.Pos(), "a node file uses Core.%s", s.Obj().Name())
		}
		return true
	})
}

// Each rule catches what it is for.
func TestPurityRulesCatchViolations(t *testing.T) {
	const node = "package raft\ntype Storage interface{ Write() error }\ntype HardState struct{ Term int }\nfunc helper() {}\n"
	for name, tt := range map[string]struct{ core, node, want string }{
		"nothing":               {core: "type Core struct{ hs HardState }\nfunc (c *Core) Step() int { return c.hs.Term }"},
		"clock":                 {core: "import \"time\"\nfunc now() time.Time { return time.Now() }", want: "time.Now"},
		"duration":              {core: "import \"time\"\nfunc f(d time.Duration) float64 { return d.Seconds() }"},
		"timer":                 {core: "import \"time\"\nfunc f() { time.AfterFunc(1, nil) }", want: "time.AfterFunc"},
		"renamed import":        {core: "import clock \"time\"\nvar start = clock.Now()", want: "time.Now"},
		"lock":                  {core: "import \"sync\"\nvar mu sync.Mutex", want: "sync.Mutex"},
		"random":                {core: "import \"math/rand/v2\"\nvar r = rand.Int()", want: "rand"},
		"printing":              {core: "import \"fmt\"\nfunc f() { fmt.Println() }", want: "fmt.Println"},
		"files":                 {core: "import \"os\"\nvar f = os.Args", want: "os.Args"},
		"goroutine":             {core: "func f() { go f() }", want: "a goroutine"},
		"channel":               {core: "func f(c chan int) { c <- 1 }", want: "a channel"},
		"receive":               {core: "func f() { <-ch }", node: "var ch chan int", want: "a channel"},
		"select":                {core: "func f() { select {} }", want: "a channel"},
		"map order":             {core: "func f(m map[int]int) { for range m {\n} }", want: "order-free"},
		"map order, explained":  {core: "func f(m map[int]int) { for range m { // order-free: only counted\n} }"},
		"a reason that is none": {core: "func f(m map[int]int) { for range m { // order-free:\n} }", want: "order-free"},
		"node function":         {core: "func f() { helper() }", want: "uses helper"},
		"node interface":        {core: "func f(s Storage) { _ = s.Write() }", want: "uses Storage"},
		"unexported field":      {core: "type Core struct{ term int }", node: "func g(c *Core) int { return c.term }", want: "Core.term"},
		"unexported method":     {core: "type Core struct{}\nfunc (c *Core) step() {}", node: "func g(c Core) { f := c.step; f() }", want: "Core.step"},
		"exported method":       {core: "type Core struct{}\nfunc (c *Core) Step() {}", node: "func g(c *Core) { c.Step() }"},
	} {
		t.Run(name, func(t *testing.T) {
			problems, err := impurities(map[string]string{"core.go": "package raft\n" + tt.core + "\n", "node.go": node + tt.node + "\n"},
				[]string{"core.go"}, []string{"HardState"})
			require.NoError(t, err)
			if tt.want == "" {
				require.Empty(t, problems)
				return
			}
			require.Contains(t, strings.Join(problems, "\n"), tt.want)
		})
	}
}
