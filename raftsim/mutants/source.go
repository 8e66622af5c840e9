package mutants

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// modulePath is the module whose guards the tables list.
const modulePath = "github.com/steadyraft/raft"

var moduleLine = regexp.MustCompile(`(?m)^module\s+(\S+)`)

// Root is the root of the checkout that dir lies in.
func Root(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		if b, err := os.ReadFile(filepath.Join(at, "go.mod")); err == nil {
			if found := moduleLine.FindSubmatch(b); found != nil && string(found[1]) == modulePath {
				return at, nil
			}
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("%s is not inside a checkout of %s: clone it and run this there, since the mutants change its source", dir, modulePath)
		}
	}
}

// mutate returns the source of a mutant's file as the mutant has it.
func mutate(root string, m *Mutant) (string, error) {
	b, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(m.File)))
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(b), m.Old); n != 1 {
		return "", fmt.Errorf("the text of Old occurs %d times in %s, want once", n, m.File)
	}
	if m.New == m.Old {
		return "", errors.New("its New is the same as its Old")
	}
	source := strings.Replace(string(b), m.Old, m.New, 1)
	if _, err := parser.ParseFile(token.NewFileSet(), m.File, source, parser.SkipObjectResolution); err != nil {
		return "", err
	}
	return source, nil
}

// overlay writes a mutant's source and what "go test -overlay" wants to know about it into dir, and nothing into the source tree.
func overlay(root, dir string, m *Mutant) (list string, err error) {
	source, err := mutate(root, m)
	if err != nil {
		return "", err
	}
	mutated := filepath.Join(dir, filepath.Base(m.File))
	if err := os.WriteFile(mutated, []byte(source), 0o600); err != nil {
		return "", err
	}
	b, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(root, filepath.FromSlash(m.File)): mutated}})
	if err != nil {
		return "", err
	}
	list = filepath.Join(dir, "overlay.json")
	return list, os.WriteFile(list, b, 0o600)
}

// checkTable reports what is wrong with the form of a table, all at once.
func checkTable(table []Mutant) error {
	var problems []error
	names := map[string]bool{}
	for i := range table {
		m := &table[i]
		if m.Name == "" || m.Rule == "" || m.File == "" || m.Old == "" {
			problems = append(problems, fmt.Errorf("mutant %q: it needs a name, a rule, a file and what to replace", m.Name))
		}
		if names[m.Name] {
			problems = append(problems, fmt.Errorf("mutant %q: another one has this name", m.Name))
		}
		if (m.Test.Name == "") != (m.Test.Package == "") {
			problems = append(problems, fmt.Errorf("mutant %q: its test needs a package and a name", m.Name))
		}
		names[m.Name] = true
	}
	return errors.Join(problems...)
}

// checkWounds reports what is wrong with the form of wounds, all at once.
func checkWounds(wounds []Wound, table []Mutant) error {
	var problems []error
	known, names := map[string]bool{}, map[string]bool{}
	for _, m := range table {
		known[m.Name] = true
	}
	for _, w := range wounds {
		if w.Name == "" || w.Story == "" || w.Test.Package == "" || w.Test.Name == "" || len(w.Mutants) == 0 {
			problems = append(problems, fmt.Errorf("wound %q: it needs a name, a story, a test and at least one mutant", w.Name))
		}
		if names[w.Name] {
			problems = append(problems, fmt.Errorf("wound %q: another one has this name", w.Name))
		}
		names[w.Name] = true
		for _, name := range w.Mutants {
			if !known[name] {
				problems = append(problems, fmt.Errorf("wound %q: there is no mutant %q", w.Name, name))
			}
		}
	}
	return errors.Join(problems...)
}
