// Package table prints lists the way Docker does: columns aligned by spaces under upper-case names, or one JSON object per line.
package table

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Formats of Print.
const (
	Text = "table"
	JSON = "json"
)

// Column is one column of a table of T.
type Column[T any] struct {
	Name string // in upper case, as it is printed; the JSON key is the same in lower case with '_' for spaces
	Cell func(T) string
}

// Print writes rows in a format: Text (also ""), or JSON, one object per row. A format that is neither is refused before anything is
// written.
func Print[T any](w io.Writer, format string, columns []Column[T], rows []T) error {
	switch format {
	case "", Text:
		return printText(w, columns, rows)
	case JSON:
		return printJSON(w, columns, rows)
	default:
		return fmt.Errorf("format %q: want %s or %s", format, Text, JSON)
	}
}

func printText[T any](w io.Writer, columns []Column[T], rows []T) error {
	var b strings.Builder
	aligned := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	line := func(cell func(Column[T]) string) error {
		cells := make([]string, len(columns))
		for i, c := range columns {
			cells[i] = cell(c)
		}
		_, err := fmt.Fprintln(aligned, strings.Join(cells, "\t"))
		return err
	}
	if err := line(func(c Column[T]) string { return c.Name }); err != nil {
		return err
	}
	for _, row := range rows {
		if err := line(func(c Column[T]) string { return Clean(c.Cell(row)) }); err != nil {
			return err
		}
	}
	if err := aligned.Flush(); err != nil {
		return err
	}
	// An empty last cell must not leave spaces behind.
	for text := range strings.Lines(b.String()) {
		if _, err := io.WriteString(w, strings.TrimRight(text, " \n")+"\n"); err != nil {
			return err
		}
	}
	return nil
}

// Clean keeps a cell on its line and out of the control of the terminal, whatever a node has reported.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}

func printJSON[T any](w io.Writer, columns []Column[T], rows []T) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	for _, row := range rows {
		object := make(map[string]string, len(columns))
		for _, c := range columns {
			object[strings.ReplaceAll(strings.ToLower(c.Name), " ", "_")] = c.Cell(row)
		}
		if err := encoder.Encode(object); err != nil {
			return err
		}
	}
	return nil
}
