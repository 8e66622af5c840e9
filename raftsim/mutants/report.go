package mutants

import (
	"fmt"
	"strings"
	"time"
)

// OK reports whether nothing survived and every row is right. Who notices in some stages only is a question without a wrong answer.
func (r *Report) OK() bool {
	n := r.count()
	return n[Wrong] == 0 && (n[Survived] == 0 || r.narrowed)
}

func (r *Report) count() map[Verdict]int {
	n := map[Verdict]int{}
	for i := range r.Outcomes {
		n[r.Outcomes[i].Verdict]++
	}
	return n
}

// verdict says in a few words what became of a mutant.
func (out *Outcome) verdict() string {
	switch out.Verdict {
	case Killed:
		if out.Hung {
			return out.By + ", by hanging"
		}
		return out.By
	case Equivalent:
		return "nothing, as argued"
	case Survived:
		return "NOTHING"
	case Wrong:
		first, _, _ := strings.Cut(out.Problem, "\n")
		return "ERROR: " + first
	default:
		return "not run"
	}
}

// String is the report as a person reads it, and as the documentation takes it in: a table in Markdown, what is wrong, and a summary.
func (r *Report) String() string {
	var b strings.Builder
	if r.all {
		r.matrix(&b)
	} else {
		r.table(&b)
	}
	for i := range r.Outcomes {
		out := &r.Outcomes[i]
		switch out.Verdict {
		case Survived:
			if !r.narrowed {
				fmt.Fprintf(&b, "\nSURVIVOR %s (%s, %s)\n- %s\n+ %s\n", out.Mutant.Name, out.Mutant.File, out.Mutant.Rule, out.Mutant.Old, out.Mutant.New)
			}
		case Wrong:
			fmt.Fprintf(&b, "\nERROR %s (%s): %s\n", out.Mutant.Name, out.Mutant.File, out.Problem)
		}
	}
	b.WriteString("\n")
	r.notRun(&b)
	fmt.Fprintf(&b, "%s\n", r.Summary())
	return b.String()
}

func (r *Report) table(b *strings.Builder) {
	b.WriteString("| mutant | rule | killed by | s |\n|---|---|---|---|\n")
	for i := range r.Outcomes {
		if out := &r.Outcomes[i]; out.Verdict != NotRun {
			fmt.Fprintf(b, "| %s | %s | %s | %.1f |\n", cell(out.Mutant.Name), cell(out.Mutant.Rule), cell(out.verdict()), out.Took.Seconds())
		}
	}
}

// matrix says of every stage whether it notices, and if only some stages were asked also how.
func (r *Report) matrix(b *strings.Builder) {
	var columns []string
	known := map[string]bool{}
	for i := range r.Outcomes {
		for _, name := range r.Outcomes[i].stages {
			if !known[name] {
				known[name] = true
				columns = append(columns, name)
			}
		}
	}
	fmt.Fprintf(b, "| mutant | %s |\n|---|%s\n", strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	for i := range r.Outcomes {
		out := &r.Outcomes[i]
		if out.Verdict == NotRun {
			continue
		}
		cells := make([]string, len(columns))
		for k, column := range columns {
			for j, name := range out.stages {
				if name == column {
					cells[k] = out.seen[j].cell(column, r.narrowed)
				}
			}
		}
		fmt.Fprintf(b, "| %s | %s |\n", cell(out.Mutant.Name), strings.Join(cells, " | "))
	}
}

// cell is what a stage said of a mutant.
func (res result) cell(stage string, how bool) string {
	if !res.noticed() {
		return "–"
	}
	what := strings.TrimPrefix(by(stage, res.test), stage+": ")
	if how && res.how != "" {
		what += ": " + res.how
	}
	return cell(what)
}

// cell makes a text fit a cell of a table.
func cell(s string) string { return strings.ReplaceAll(strings.ReplaceAll(s, "\n", " "), "|", `\|`) }

func (r *Report) notRun(b *strings.Builder) {
	var names []string
	for i := range r.Outcomes {
		if r.Outcomes[i].Verdict == NotRun {
			names = append(names, r.Outcomes[i].Mutant.Name)
		}
	}
	if len(names) > 0 {
		fmt.Fprintf(b, "not run: %d mutants: %s\n", len(names), strings.Join(names, "; "))
	}
}

// Summary is the last line of a report.
func (r *Report) Summary() string {
	n := r.count()
	own, hung := 0, 0
	for i := range r.Outcomes {
		out := &r.Outcomes[i]
		if out.Verdict == Killed && out.stages[0] == ownTest {
			own++
		}
		if out.Verdict == Killed && out.Hung {
			hung++
		}
	}
	took := r.Took.Round(time.Second)
	if r.narrowed {
		return fmt.Sprintf("%d mutants: %d noticed by these stages, %d not, %d errors, took %v", len(r.Outcomes)-n[NotRun], n[Killed],
			n[Survived]+n[Equivalent], n[Wrong], took)
	}
	return fmt.Sprintf("%d mutants: %d killed (%d by their test, %d by hanging), %d equivalent, %d survivors, %d errors, took %v",
		len(r.Outcomes)-n[NotRun], n[Killed], own, hung, n[Equivalent], n[Survived], n[Wrong], took)
}
