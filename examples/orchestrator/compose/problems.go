package compose

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// problem is something that is wrong with a file. The path leads to it: services.web.ports.
type problem struct{ path, text string }

// file is a Compose file, as YAML, with what has been found to be wrong with it.
type file struct {
	name      string
	content   []byte
	documents []any        // decoded; what is wrong is taken out, so that one problem does not hide the others
	nodes     []*yaml.Node // the same with their lines; filled when the first problem is to be shown
	problems  []problem
}

// readFile decodes the documents of a file.
func readFile(name string, content []byte) (*file, error) {
	f := &file{name: name, content: content}
	for decoder := yaml.NewDecoder(bytes.NewReader(content)); ; {
		var document any
		if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
			return f, nil
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err) // it names the line
		}
		f.documents = append(f.documents, document)
	}
}

func (f *file) bad(path, format string, args ...any) {
	f.problems = append(f.problems, problem{path, fmt.Sprintf(format, args...)})
}

// sound reports that nothing is wrong at or below a path.
func (f *file) sound(path string) bool {
	return !slices.ContainsFunc(f.problems, func(p problem) bool { return p.path == path || strings.HasPrefix(p.path, path+".") })
}

// err joins all problems, in the order of the file: FILE:LINE: PATH: what is wrong.
func (f *file) err() error {
	if len(f.problems) == 0 {
		return nil
	}
	type shown struct {
		line int
		text string
	}
	var all []shown
	for _, p := range f.problems {
		s := shown{line: f.line(p.path), text: f.name}
		if s.line > 0 {
			s.text += fmt.Sprintf(":%d", s.line)
		}
		if p.path != "" {
			s.text += ": " + p.path
		}
		s.text += ": " + p.text
		all = append(all, s)
	}
	slices.SortStableFunc(all, func(a, b shown) int { return cmp.Compare(a.line, b.line) })
	errs := make([]error, len(all))
	for i, s := range all {
		errs[i] = errors.New(s.text)
	}
	return errors.Join(errs...)
}

// line returns the line of the deepest part of a path that the file has; 0 if it has none of it.
func (f *file) line(path string) int {
	if f.nodes == nil {
		for decoder := yaml.NewDecoder(bytes.NewReader(f.content)); ; {
			node := &yaml.Node{}
			if decoder.Decode(node) != nil {
				break
			}
			f.nodes = append(f.nodes, node)
		}
	}
	best := 0
	for _, node := range f.nodes {
		if node.Kind == yaml.DocumentNode && len(node.Content) > 0 {
			best = max(best, lineIn(node.Content[0], path, 0))
		}
	}
	return best
}

// maxDepth bounds how far aliases are followed: a file may have some that lead in a circle, or double with every step.
const maxDepth = 32

func lineIn(node *yaml.Node, path string, depth int) (line int) {
	if depth > maxDepth || path == "" {
		return 0
	}
	if node.Kind == yaml.AliasNode {
		return lineIn(node.Alias, path, depth+1)
	}
	if node.Kind != yaml.MappingNode {
		return 0
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		rest, ok := strings.CutPrefix(path, key.Value)
		switch {
		case key.Value == "<<" && key.Style == 0: // what this mapping says itself comes first
			if line == 0 {
				line = lineIn(value, path, depth+1)
			}
		case ok && rest == "":
			return key.Line
		case ok && rest[0] == '.':
			return cmp.Or(lineIn(value, rest[1:], depth+1), key.Line)
		}
	}
	return line
}

// remove takes out what a path leads to, as far as mappings go. It reports whether there was anything.
func (f *file) remove(path string) bool {
	removed := false
	for _, document := range f.documents {
		removed = removeIn(document, path) || removed
	}
	return removed
}

func removeIn(value any, path string) bool {
	mapping, ok := value.(map[string]any)
	if !ok {
		return false
	}
	for _, key := range slices.Sorted(maps.Keys(mapping)) {
		rest, ok := strings.CutPrefix(path, key)
		switch {
		case !ok:
		case rest == "":
			delete(mapping, key)
			return true
		case rest[0] == '.':
			if removeIn(mapping[key], rest[1:]) {
				return true
			}
			if _, below := mapping[key].(map[string]any); !below { // an entry of a list: the list goes
				delete(mapping, key)
				return true
			}
		}
	}
	return false
}

// remains is the file without what was taken out.
func (f *file) remains() ([]byte, error) {
	if len(f.problems) == 0 {
		return f.content, nil
	}
	var b bytes.Buffer
	encoder := yaml.NewEncoder(&b)
	for _, document := range f.documents {
		if err := encoder.Encode(document); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), encoder.Close()
}

// pathInError finds what a message of the loader is about.
var pathInError = regexp.MustCompile(`\bservices\.[-\w.]*[-\w]`)

// maxRefusals bounds how often a file is loaded again to find out what else is wrong with it.
const maxRefusals = 20

// refused notes why the loader has refused the file, and takes that out. It reports whether to try again with the rest.
func (f *file) refused(err error) bool {
	path := pathInError.FindString(err.Error())
	text := err.Error()
	if _, after, ok := strings.Cut(text, path); ok && path != "" {
		text = strings.TrimLeft(after, " :")
	}
	f.problems = append(f.problems, problem{path, text})
	return path != "" && f.remove(path) && len(f.problems) < maxRefusals
}

// checkKeys reports every key that is not supported, and takes it out.
func (f *file) checkKeys() {
	for _, document := range f.documents {
		f.unsupported("", document, supported)
	}
}

// unsupported walks through what is a mapping; what is not is left to the schema of the specification.
func (f *file) unsupported(path string, value any, allowed keys) {
	mapping, ok := value.(map[string]any)
	if !ok || allowed == nil {
		return
	}
	for _, key := range slices.Sorted(maps.Keys(mapping)) {
		full := strings.TrimPrefix(path+"."+key, ".")
		below, ok := allowed[key]
		if any, isName := allowed["*"]; isName {
			below, ok = any, true
		}
		switch {
		case ok:
			f.unsupported(full, mapping[key], below)
		case !strings.HasPrefix(key, "x-"):
			f.bad(full, "not supported")
			delete(mapping, key)
		}
	}
}
