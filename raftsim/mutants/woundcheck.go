package mutants

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// WoundReport says of each wound, and each mutant that opens it again, how its test fails.
type WoundReport struct {
	Rows   []WoundRow
	Wounds int
	Took   time.Duration
}

// WoundRow is one wound and one mutant.
type WoundRow struct {
	Wound   Wound
	Mutant  string
	How     string // its test fails
	Problem string // it does not
	ran     bool
}

// CheckWounds shows that the test of each wound passes, and fails with each of the mutants that open the wound again.
func CheckWounds(ctx context.Context, wounds []Wound, table []Mutant, o Options) (WoundReport, error) {
	start := time.Now()
	if err := checkWounds(wounds, table); err != nil {
		return WoundReport{}, err
	}
	r, err := newRunner(o)
	if err != nil {
		return WoundReport{}, err
	}
	defer r.close()
	report := WoundReport{Wounds: len(wounds)}
	used, named := map[string]bool{}, map[string]*Mutant{}
	for i := range table {
		named[table[i].Name] = &table[i]
	}
	var stages []stage
	for _, w := range wounds {
		stages = append(stages, w.Test.stage())
		for _, name := range w.Mutants {
			report.Rows = append(report.Rows, WoundRow{Wound: w, Mutant: name})
			used[name] = true
		}
	}
	if err := r.baseline(ctx, slices.DeleteFunc(slices.Clone(table), func(m Mutant) bool { return !used[m.Name] }), stages); err != nil {
		return WoundReport{}, err
	}
	var mu sync.Mutex
	done := 0
	r.each(len(report.Rows), func(i int) {
		row := &report.Rows[i]
		if ctx.Err() != nil || r.stop() {
			return
		}
		r.wound(ctx, row, named[row.Mutant])
		mu.Lock()
		defer mu.Unlock()
		done++
		r.o.say("%d/%d %s, %s: %s", done, len(report.Rows), row.Wound.Name, row.Mutant, row.verdict())
	})
	report.Took = time.Since(start)
	return report, ctx.Err()
}

// wound runs the test of a wound against a mutant.
func (r *runner) wound(ctx context.Context, row *WoundRow, m *Mutant) {
	row.ran = true
	err := r.against(ctx, m, r.numbers[m.Name], []stage{row.Wound.Test.stage()}, func(_ stage, res result) bool {
		row.How = res.how
		if !res.noticed() {
			row.Problem = "its test passes with this mutant"
		}
		return false
	})
	if err != nil {
		row.Problem = err.Error()
	}
}

func (row *WoundRow) verdict() string {
	if row.Problem != "" {
		first, _, _ := strings.Cut(row.Problem, "\n")
		return "ERROR: " + first
	}
	return row.How
}

// OK reports whether every wound that was looked at bleeds with its mutants.
func (r *WoundReport) OK() bool {
	for i := range r.Rows {
		if r.Rows[i].Problem != "" {
			return false
		}
	}
	return true
}

// String is a table in Markdown, what is wrong, and a summary.
func (r *WoundReport) String() string {
	var b strings.Builder
	b.WriteString("| wound | test | mutant | how the test fails |\n|---|---|---|---|\n")
	ran, bad := 0, 0
	for i := range r.Rows {
		row := &r.Rows[i]
		if !row.ran {
			continue
		}
		ran++
		fmt.Fprintf(&b, "| %s | `%s` | %s | %s |\n", cell(row.Wound.Name), row.Wound.Test.Name, cell(row.Mutant), cell(row.verdict()))
	}
	for i := range r.Rows {
		if row := &r.Rows[i]; row.Problem != "" {
			bad++
			fmt.Fprintf(&b, "\nERROR %s, %s: %s\n", row.Wound.Name, row.Mutant, row.Problem)
		}
	}
	if left := len(r.Rows) - ran; left > 0 {
		fmt.Fprintf(&b, "\nnot run: %d pairs\n", left)
	}
	fmt.Fprintf(&b, "\n%d wounds, %d pairs of a wound and a mutant, %d errors, took %v\n", r.Wounds, ran, bad, r.Took.Round(time.Second))
	return b.String()
}
