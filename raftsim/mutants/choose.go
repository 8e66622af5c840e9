package mutants

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Choice says which rows of a table to run. Names and File narrow it; Sample and Changed, if either is set, then take out of that
// what the sample or the change picks.
type Choice struct {
	Names   *regexp.Regexp // nil: all
	File    string         // empty: all
	Sample  int            // so many rows
	Rotate  string         // which; with consecutive numbers, consecutive samples cover the table
	Changed string         // a revision: rows that a change since then is about

	// Only so many of the equivalent rows, which take long, as Rotate picks them; 0: all.
	Equivalents int
}

// Choose picks rows. Those that a change is about come first, the closest before; among equals the order depends on Rotate, so
// that a run which ends early does not leave out the same ones every time.
func (c Choice) Choose(ctx context.Context, root string, table []Mutant) ([]Mutant, error) {
	rows := slices.DeleteFunc(slices.Clone(table), func(m Mutant) bool {
		return c.Names != nil && !c.Names.MatchString(m.Name) || c.File != "" && m.File != path.Clean(filepath.ToSlash(c.File))
	})
	if c.Equivalents > 0 {
		rows = c.fewEquivalents(rows)
	}
	if c.Changed == "" && c.Sample == 0 {
		return rows, nil
	}
	distance := map[string]int{}
	for _, m := range sample(rows, c.Sample, c.Rotate) {
		distance[m.Name] = inSample
	}
	if c.Changed != "" {
		d, err := changesSince(ctx, root, c.Changed)
		if err != nil {
			return nil, err
		}
		for i := range rows {
			if n := d.distance(&rows[i]); n < inSample {
				distance[rows[i].Name] = n
			}
		}
	}
	rows = slices.DeleteFunc(rows, func(m Mutant) bool { _, chosen := distance[m.Name]; return !chosen })
	slices.SortStableFunc(rows, func(a, b Mutant) int {
		return cmp.Or(cmp.Compare(distance[a.Name], distance[b.Name]), cmp.Compare(mix(a.Name, c.Rotate), mix(b.Name, c.Rotate)))
	})
	return rows, nil
}

func (c Choice) fewEquivalents(rows []Mutant) []Mutant {
	var equivalent []Mutant
	for _, m := range rows {
		if m.Equivalent != "" {
			equivalent = append(equivalent, m)
		}
	}
	picked := map[string]bool{}
	for _, m := range sample(equivalent, c.Equivalents, c.Rotate) {
		picked[m.Name] = true
	}
	return slices.DeleteFunc(rows, func(m Mutant) bool { return m.Equivalent != "" && !picked[m.Name] })
}

// sample deals the rows out to as many hands as it takes for a hand to have about n rows, and returns the hand that rotate picks.
func sample(rows []Mutant, n int, rotate string) []Mutant {
	if n <= 0 || len(rows) == 0 {
		return nil
	}
	turn, err := strconv.ParseUint(rotate, 10, 64)
	if err != nil {
		turn = mix(rotate)
	}
	shuffled := slices.Clone(rows) // rows that stand together are killed by the same tests
	slices.SortStableFunc(shuffled, func(a, b Mutant) int { return cmp.Compare(mix(a.Name), mix(b.Name)) })
	hands := (len(rows) + n - 1) / n
	var hand []Mutant
	for i := int(turn % uint64(hands)); i < len(shuffled); i += hands {
		hand = append(hand, shuffled[i])
	}
	return hand
}

func mix(parts ...string) uint64 {
	h := fnv.New64a()
	for _, p := range parts {
		_, _ = h.Write([]byte(p + "\x00")) // a hash takes everything
	}
	return h.Sum64()
}

// How far a row is from a change.
const (
	sameRow  = iota // the guard's file, or the row itself
	sameTest        // the file that holds its test
	sameKin         // other test files of that package, which may be its helpers
	inSample        // no change, it is only in the sample
)

// changes is what git says of the time since a revision.
type changes struct {
	root  string
	files map[string]bool // changed since then, relative to the root of the module
	table []byte          // the difference of this package
	tests map[string]map[string]string
}

func changesSince(ctx context.Context, root, revision string) (*changes, error) {
	names, err := git(ctx, root, "diff", "--name-only", "--relative", revision, "--")
	if err != nil {
		return nil, err
	}
	table, err := git(ctx, root, "diff", "-U0", revision, "--", "raftsim/mutants")
	if err != nil {
		return nil, err
	}
	d := &changes{root: root, files: map[string]bool{}, table: table, tests: map[string]map[string]string{}}
	for name := range strings.Lines(string(names)) {
		d.files[strings.TrimSpace(name)] = true
	}
	return d, nil
}

func git(ctx context.Context, root string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	var complaint bytes.Buffer
	cmd.Dir, cmd.Stderr = root, &complaint
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("git %s, to see what has changed: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(complaint.Bytes()))
	}
	return out, nil
}

func (d *changes) distance(m *Mutant) int {
	if d.files[m.File] || d.newRow(m) {
		return sameRow
	}
	if m.Test.Name == "" {
		return inSample
	}
	if d.tests[m.Test.Package] == nil {
		d.tests[m.Test.Package] = testsOf(d.root, m.Test.Package)
	}
	function, rest, _ := strings.Cut(m.Test.Name, "/")
	if d.files[d.tests[m.Test.Package][function]] || d.files[script(m.Test.Package, rest)] {
		return sameTest
	}
	for name := range d.files {
		if path.Dir(name) == path.Clean(m.Test.Package) && strings.HasSuffix(name, "_test.go") {
			return sameKin
		}
	}
	return inSample
}

// newRow reports whether the line with a row's name, what it replaces, or what with, was written since.
func (d *changes) newRow(m *Mutant) bool {
	for line := range bytes.Lines(d.table) {
		if !bytes.HasPrefix(line, []byte("+")) {
			continue
		}
		for _, text := range []string{m.Name, m.Old, m.New} {
			if text != "" && (bytes.Contains(line, []byte(strconv.Quote(text))) || bytes.Contains(line, []byte("`"+text+"`"))) {
				return true
			}
		}
	}
	return false
}

// script is the file of a text script, if the rest of a test's name is one.
func script(pkg, rest string) string { return path.Join(pkg, "testdata", rest+".txt") }

var testFunction = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Example)\w*)\(`)

// testsOf finds the tests of a package, each with its file relative to the root.
func testsOf(root, pkg string) map[string]string {
	found := map[string]string{}
	files, _ := filepath.Glob(filepath.Join(root, filepath.FromSlash(pkg), "*_test.go")) // the pattern is well-formed
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for _, f := range testFunction.FindAllSubmatch(b, -1) {
			found[string(f[1])] = path.Join(pkg, filepath.Base(file))
		}
	}
	return found
}
