package mutants

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A build for each mutant costs seconds, and its test mostly milliseconds. So all mutants go into one build, and a variable of the
// environment chooses one when a test runs: behind every function that a mutant changes stands a copy as the mutant has it, and the
// function begins by calling the copy that was chosen.
//
//	func (l *raftLog) matches(i Index, t Term) bool {
//		if mutantChosen != 0 { switch mutantChosen { case 7: return l.mutant7_matches(i, t) } };
//		...
//	}
//
//	//line mutant7.go:81
//	func (l *raftLog) mutant7_matches(i Index, t Term) bool { ... }
//
// The line directive says whose copy it is that does not compile. What cannot be done so has a build of its own, see obstacle.

// chosenVariable holds the number of the mutant; 0 or not set: the unchanged tree.
const chosenVariable = "RAFT_MUTANT"

// switchBuild is a tree with many mutants in it.
type switchBuild struct {
	root    string
	sources map[string]*source
	copies  map[string][]mutatedCopy // by file
	numbers map[string]int           // of the mutants in it, by name
}

// mutatedCopy is a function as one mutant has it.
type mutatedCopy struct {
	number int
	of     int // index in source.functions
	mutant function
}

// source is one parsed file.
type source struct {
	text      string
	file      *ast.File
	tokens    *token.File
	functions []function
	rest      string // the text without the functions
}

type function struct {
	decl *ast.FuncDecl
	at   int // of its text in the file
	text string
	line int
}

func parse(text string) (*source, error) {
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, "", text, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	s := &source{text: text, file: f, tokens: set.File(f.FileStart)}
	var rest strings.Builder
	end := 0
	for _, d := range f.Decls {
		if d, ok := d.(*ast.FuncDecl); ok && d.Body != nil {
			at := s.offset(d.Pos())
			rest.WriteString(text[end:at])
			end = s.offset(d.End())
			s.functions = append(s.functions, function{decl: d, at: at, text: text[at:end], line: s.tokens.Line(d.Pos())})
		}
	}
	rest.WriteString(text[end:])
	s.rest = rest.String()
	return s, nil
}

func (s *source) offset(p token.Pos) int { return s.tokens.Offset(p) }

// signature is the text of a function up to the brace that opens its body.
func (s *source) signature(f *function) string { return s.text[f.at:s.offset(f.decl.Body.Lbrace)] }

// newSwitchBuild puts as many of the mutants into one tree as it can, and says of the others why not.
func newSwitchBuild(root string, rows []Mutant) (b *switchBuild, alone map[string]error) {
	b = &switchBuild{root: root, sources: map[string]*source{}, copies: map[string][]mutatedCopy{}, numbers: map[string]int{}}
	alone = map[string]error{}
	for i := range rows {
		if err := b.add(&rows[i], i+1); err != nil {
			alone[rows[i].Name] = err
		}
	}
	return b, alone
}

func (b *switchBuild) add(m *Mutant, number int) error {
	text, err := mutate(b.root, m)
	if err != nil {
		return err
	}
	if b.sources[m.File] == nil {
		original, err := os.ReadFile(filepath.Join(b.root, filepath.FromSlash(m.File)))
		if err != nil {
			return err
		}
		if b.sources[m.File], err = parse(string(original)); err != nil {
			return err
		}
	}
	original := b.sources[m.File]
	mutant, err := parse(text)
	if err != nil {
		return err
	}
	if err := obstacle(original, mutant, m.File); err != nil {
		return err
	}
	for i := range mutant.functions {
		if mutant.functions[i].text != original.functions[i].text {
			b.copies[m.File] = append(b.copies[m.File], mutatedCopy{number: number, of: i, mutant: mutant.functions[i]})
		}
	}
	b.numbers[m.Name] = number
	return nil
}

// obstacle says why a mutant cannot be chosen at run time.
func obstacle(original, mutant *source, file string) error {
	if strings.HasSuffix(file, "_test.go") {
		return errors.New("it changes a test")
	}
	if original.rest != mutant.rest || len(original.functions) != len(mutant.functions) {
		return errors.New("it changes more than bodies of functions")
	}
	// A copy beside the original does not show that an import is not used any more, which does not compile alone.
	for _, name := range original.imports() {
		if original.uses(name) && !mutant.uses(name) {
			return fmt.Errorf("it does without the import of %s", name)
		}
	}
	for i := range original.functions {
		f, g := &original.functions[i], &mutant.functions[i]
		if f.text == g.text {
			continue
		}
		if original.signature(f) != mutant.signature(g) {
			return fmt.Errorf("it changes the signature of %s", f.decl.Name.Name)
		}
		if name := f.decl.Name.Name; name == "_" || f.decl.Recv == nil && (name == "init" || name == "main") {
			return fmt.Errorf("nobody can call func %s", name)
		}
		if asksForItsCaller(f.decl) || asksForItsCaller(g.decl) {
			return fmt.Errorf("%s asks who called it, and would find itself", f.decl.Name.Name)
		}
	}
	return nil
}

// imports are the names under which a file probably knows what it imports.
func (s *source) imports() (names []string) {
	for _, i := range s.file.Imports {
		where, _ := strconv.Unquote(i.Path.Value) // it has been parsed
		name := path.Base(where)
		if i.Name != nil {
			name = i.Name.Name
		}
		names = append(names, name)
	}
	return names
}

// uses reports whether a name occurs that the file itself does not declare.
func (s *source) uses(name string) bool {
	return slices.ContainsFunc(s.file.Unresolved, func(i *ast.Ident) bool { return i.Name == name })
}

// asksForItsCaller reports whether a function behaves differently one call further down: recover works only in the function that was
// deferred, and the runtime counts frames.
func asksForItsCaller(d *ast.FuncDecl) (asks bool) {
	var visit func(n ast.Node, inner bool)
	visit = func(n ast.Node, inner bool) {
		ast.Inspect(n, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncLit:
				visit(n.Body, true)
				return false
			case *ast.CallExpr:
				f, ok := n.Fun.(*ast.Ident)
				asks = asks || ok && f.Name == "recover" && !inner
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "runtime" {
					asks = asks || n.Sel.Name == "Caller" || n.Sel.Name == "Callers"
				}
			}
			return true
		})
	}
	visit(d.Body, false)
	return asks
}

// drop takes a mutant out.
func (b *switchBuild) drop(number int) (name string) {
	for file := range b.copies {
		b.copies[file] = slices.DeleteFunc(b.copies[file], func(c mutatedCopy) bool { return c.number == number })
	}
	for n, i := range b.numbers {
		if i == number {
			name = n
		}
	}
	delete(b.numbers, name)
	return name
}

// directories lists those with mutated files.
func (b *switchBuild) directories() (all []string) {
	for file, copies := range b.copies {
		if len(copies) > 0 {
			all = append(all, path.Dir(file))
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// write puts the tree into dir, as an overlay.
func (b *switchBuild) write(dir string) (list string, err error) {
	replace := map[string]string{}
	put := func(name, text string) {
		at := filepath.Join(dir, strconv.Itoa(len(replace))+".go")
		replace[filepath.Join(b.root, filepath.FromSlash(name))] = at
		err = errors.Join(err, os.WriteFile(at, []byte(text), 0o600))
	}
	for _, d := range b.directories() {
		pkg := ""
		for _, file := range slices.Sorted(maps.Keys(b.copies)) { // the same tree always has the same files
			if path.Dir(file) == d && len(b.copies[file]) > 0 {
				pkg = b.sources[file].file.Name.Name
				put(file, b.sources[file].with(b.copies[file]))
			}
		}
		put(path.Join(d, "mutant_chosen.go"), fmt.Sprintf("package %s\n\nimport (\n\t\"os\"\n\t\"strconv\"\n)\n\nvar mutantChosen, _ = strconv.Atoi(os.Getenv(%q))\n",
			pkg, chosenVariable))
	}
	text, jsonErr := json.Marshal(map[string]map[string]string{"Replace": replace})
	list = filepath.Join(dir, "switch.json")
	return list, errors.Join(err, jsonErr, os.WriteFile(list, text, 0o600))
}

// edit replaces a part of a text.
type edit struct {
	from, to int
	by       string
}

// with is the source with copies behind it and the calls of them.
func (s *source) with(copies []mutatedCopy) string {
	var edits []edit
	var behind strings.Builder
	calls := map[int]string{}
	called := map[int]string{}
	for _, c := range copies {
		f, g := &s.functions[c.of], &c.mutant
		if calls[c.of] == "" {
			var names []edit
			names, calls[c.of] = s.call(f)
			edits = append(edits, names...)
		}
		name := fmt.Sprintf("mutant%d_%s", c.number, f.decl.Name.Name)
		call := strings.Replace(calls[c.of], "\x00", name, 1)
		if f.decl.Type.Results != nil {
			called[c.of] += fmt.Sprintf("case %d: return %s; ", c.number, call)
		} else {
			called[c.of] += fmt.Sprintf("case %d: %s; return; ", c.number, call)
		}
		at := s.offset(f.decl.Name.Pos()) - f.at // the signatures are the same
		fmt.Fprintf(&behind, "\n//line mutant%d.go:%d\n%s%s%s\n", c.number, g.line, g.text[:at], name, g.text[at+len(f.decl.Name.Name):])
	}
	for i, cases := range called {
		body := s.offset(s.functions[i].decl.Body.Lbrace) + 1
		edits = append(edits, edit{body, body, " if mutantChosen != 0 { switch mutantChosen { " + cases + "} };"})
	}
	slices.SortFunc(edits, func(a, b edit) int { return cmp.Compare(b.from, a.from) })
	text := s.text
	for _, e := range edits {
		text = text[:e.from] + e.by + text[e.to:]
	}
	return text + behind.String()
}

// call is a call with the arguments and type arguments of a function, with a zero byte for its name, and the edits which name those of
// its parameters that have no name.
func (s *source) call(f *function) (names []edit, call string) {
	var args []string
	argument := func(field *ast.Field) {
		if len(field.Names) == 0 { // then none of the list has
			name := fmt.Sprintf("mutantArg%d", len(args))
			names = append(names, edit{s.offset(field.Type.Pos()), s.offset(field.Type.Pos()), name + " "})
			args = append(args, name)
		}
		for _, n := range field.Names {
			name := n.Name
			if name == "_" {
				name = fmt.Sprintf("mutantArg%d", len(args))
				names = append(names, edit{s.offset(n.Pos()), s.offset(n.End()), name})
			}
			args = append(args, name)
		}
		if _, variadic := field.Type.(*ast.Ellipsis); variadic {
			args[len(args)-1] += "..."
		}
	}
	callee := "\x00"
	if f.decl.Recv != nil {
		argument(f.decl.Recv.List[0])
		callee = args[0] + "." + callee
	} else {
		args = append(args, "") // for the names of the others
	}
	for _, p := range f.decl.Type.Params.List {
		argument(p)
	}
	if types := f.decl.Type.TypeParams; types != nil {
		var list []string
		for _, field := range types.List {
			for _, n := range field.Names {
				list = append(list, n.Name)
			}
		}
		callee += "[" + strings.Join(list, ", ") + "]"
	}
	return names, callee + "(" + strings.Join(args[1:], ", ") + ")"
}

var copyLine = regexp.MustCompile(`(?m)^.*\bmutant(\d+)\.go:\d+.*$`)

// settle compiles the mutated packages, and takes out what does not compile until the rest does.
func (b *switchBuild) settle(ctx context.Context, r *runner, dir string) (list string, dropped map[string]error, err error) {
	dropped = map[string]error{}
	for {
		if list, err = b.write(dir); err != nil {
			return "", nil, err
		}
		args := []string{"build", allErrors, "-overlay", list}
		for _, d := range b.directories() {
			args = append(args, "./"+d)
		}
		if len(b.numbers) == 0 {
			return list, dropped, nil
		}
		out, err := r.process(ctx, buildTime, b.root, nil, "go", args...)
		if err == nil {
			return list, dropped, nil
		}
		lines := copyLine.FindAllStringSubmatch(out, -1)
		if lines == nil {
			return "", nil, fmt.Errorf("the tree with all mutants in it does not compile: %w\n%s", err, out)
		}
		for _, l := range lines {
			number, _ := strconv.Atoi(l[1]) // it is digits
			if name := b.drop(number); name != "" {
				dropped[name] = errors.New("it does not compile: " + strings.TrimSpace(l[0]))
			}
		}
	}
}
