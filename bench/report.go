package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/steadyraft/raft/bench/worker"
)

// Report is everything that was measured, as it is in results.json.
type Report struct {
	Began     string          `json:"began"`
	Took      time.Duration   `json:"took_ns"`
	Machine   Machine         `json:"machine"`
	Servers   int             `json:"servers"`
	Repeats   int             `json:"repeats"`
	Time      time.Duration   `json:"time_ns"`
	Libraries []worker.About  `json:"libraries"`
	Problems  []string        `json:"problems"`
	Samples   []worker.Sample `json:"samples"`
	Transfers []Transfer      `json:"transfers,omitempty"`
	Outages   []Outage        `json:"outages,omitempty"`
	Slow      []Slow          `json:"slow,omitempty"`
	Restarts  []Restart       `json:"restarts,omitempty"`
}

func (r *Report) about(a worker.About) {
	if !slices.ContainsFunc(r.Libraries, func(b worker.About) bool { return b.Name == a.Name }) {
		r.Libraries = append(r.Libraries, a)
	}
}

// load names what was measured, without the times.
type load struct {
	kind          string
	size, clients int
}

func (l load) String() string {
	clients := plural(l.clients, "client")
	switch l.kind {
	case worker.Read:
		return "linearizable reads, " + clients
	case worker.Mixed:
		return "95 reads to 5 commands of " + byteSize(l.size) + ", " + clients
	}
	return "commands of " + byteSize(l.size) + ", " + clients
}

func loadOf(s worker.Sample) load { return load{s.Kind, s.Size, s.Clients} }

// loads returns what was measured, in the order in which it was.
func (r *Report) loads() (out []load) {
	for _, s := range r.Samples {
		if l := loadOf(s); !slices.Contains(out, l) {
			out = append(out, l)
		}
	}
	slices.SortStableFunc(out, func(a, b load) int {
		order := []string{worker.Propose, worker.Read, worker.Mixed}
		return slices.Index(order, a.kind) - slices.Index(order, b.kind)
	})
	return out
}

func (r *Report) samples(lib string, l load) (out []worker.Sample) {
	for _, s := range r.Samples {
		if s.Library == lib && loadOf(s) == l {
			out = append(out, s)
		}
	}
	return out
}

func (r *Report) samplesOf(lib string) (out []worker.Sample) {
	for _, s := range r.Samples {
		if s.Library == lib {
			out = append(out, s)
		}
	}
	return out
}

// rates maps a repeat to the throughput in it.
func (r *Report) rates(lib string, l load) map[int]float64 {
	out := map[int]float64{}
	for _, s := range r.samples(lib, l) {
		out[s.Repeat] = s.PerSecond
	}
	return out
}

// bestOther returns the fastest library at a load by the median, besides lib and the floor.
func (r *Report) bestOther(lib string, l load) string {
	medians := map[string]float64{}
	for _, a := range r.Libraries {
		if rates := r.rates(a.Name, l); a.Name != lib && a.Name != floor && len(rates) > 0 {
			medians[a.Name] = spreadOf(slices.Collect(maps.Values(rates))).median
		}
	}
	return best(medians)
}

// format renders tables and headings for a terminal or as Markdown.
type format int

const (
	asText format = iota
	asMarkdown
)

func (r *Report) text(f format) string {
	var b strings.Builder
	heading := func(level int, s string) {
		if f == asMarkdown {
			fmt.Fprintf(&b, "\n%s %s\n\n", strings.Repeat("#", level), s)
		} else {
			fmt.Fprintf(&b, "\n%s\n\n", s)
		}
	}
	if len(r.Problems) > 0 {
		heading(2, "Warnings")
		for _, p := range r.Problems {
			fmt.Fprintf(&b, "- %s\n", strings.ReplaceAll(strings.TrimSpace(p), "\n", "\n  "))
		}
	}
	if len(r.samplesOf(ours)) > 0 {
		heading(2, "This library against the floor and the best other one")
		b.WriteString(r.summary(f))
	}
	if len(r.Samples) > 0 {
		heading(2, "Every library")
		b.WriteString("Operations per second are the median of the repeats, with the least and the most. \"Of the floor\" is the median of the\n" +
			"ratios within each repeat. Allocations, processor time and device figures are for one operation: all servers and the clients\n" +
			"together. Flushes and bytes are the device's, whoever asked for them. † marks what was measured while others kept the\n" +
			"machine busy; ! marks operations that failed.\n")
	}
	loads := r.loads()
	for i := 0; i < len(loads); {
		j := i + 1
		for j < len(loads) && loads[j].kind == loads[i].kind && loads[j].size == loads[i].size {
			j++
		}
		heading(3, r.groupName(loads[i]))
		b.WriteString(r.table(f, loads[i:j]))
		i = j
	}
	if len(r.Outages) > 0 {
		heading(2, "Fail-over: time without a commit after the leader's process was lost")
		b.WriteString(r.outages(f))
	}
	if len(r.Transfers) > 0 {
		heading(2, "Planned transfer under load: longest time without a commit, 16 clients")
		b.WriteString(r.transfers(f))
	}
	if len(r.Slow) > 0 {
		heading(2, fmt.Sprintf("One slow follower of three: it runs for %v and stands for %v; 64 clients, 256 B", slowRuns, slowStands))
		b.WriteString(r.slow(f))
	}
	if len(r.Restarts) > 0 {
		heading(2, fmt.Sprintf("Restart of the whole cluster with %d MiB in each log, commands of %s", restartBytes>>20, byteSize(64<<10)))
		t := table{{"library", "servers opened", "first commit", "all have applied all"}}
		for _, x := range r.Restarts {
			t = append(t, []string{x.Library, duration(float64(x.Open)), duration(float64(x.First)), duration(float64(x.All))})
		}
		b.WriteString(t.render(f))
	}
	heading(2, "How it was measured")
	fmt.Fprintf(&b, "%s, %s; Linux %s, %s, %s.\n", r.Machine.Processor, plural(r.Machine.Processors, "processor"), r.Machine.Kernel,
		r.Machine.FileSystem, r.Machine.Go)
	fmt.Fprintf(&b, "Began %s, took %v. %s in one process, %s of %v each.\n\n", r.Began, r.Took, plural(r.Servers, "server"),
		plural(r.Repeats, "repeat"), r.Time)
	for _, a := range r.Libraries {
		fmt.Fprintf(&b, "- %s: %s\n", a.Name, strings.Join(append(slices.Clone(a.Modules), a.Notes), "; "))
	}
	return b.String()
}

func (r *Report) groupName(l load) string {
	switch l.kind {
	case worker.Read:
		return "Linearizable reads"
	case worker.Mixed:
		return "95 reads to 5 commands of " + byteSize(l.size)
	}
	return "Commands of " + byteSize(l.size)
}

func (r *Report) summary(f format) string {
	t := table{{"load", "per second", "of the floor", "over the best other", "which is", "allocations", "CPU of the best other's", "flushes"}}
	for _, l := range r.loads() {
		rates := r.rates(ours, l)
		if len(rates) == 0 {
			continue
		}
		other := r.bestOther(ours, l)
		mine, theirs := r.samples(ours, l), r.samples(other, l)
		row := []string{l.String(), r.rateCell(ours, l), ratioCell(ratio(rates, r.rates(floor, l))), ratioCell(ratio(rates, r.rates(other, l))),
			other, figure(mine, func(s worker.Sample) float64 { return s.Allocations }), "—", figure(mine, func(s worker.Sample) float64 { return s.Flushes })}
		if other == "" {
			row[4] = "—"
		} else {
			cpu := func(ss []worker.Sample) map[int]float64 {
				out := map[int]float64{}
				for _, s := range ss {
					out[s.Repeat] = s.CPU
				}
				return out
			}
			row[6] = ratioCell(ratio(cpu(mine), cpu(theirs)))
		}
		t = append(t, row)
	}
	return t.render(f)
}

func (r *Report) table(f format, loads []load) string {
	t := table{{"clients", "library", "per second", "least–most", "of the floor", "p50", "p99", "p99.9", "allocations", "CPU", "flushes", "bytes"}}
	for _, l := range loads {
		for _, a := range libraries {
			ss := r.samples(a.name, l)
			if len(ss) == 0 {
				if len(r.samplesOf(a.name)) > 0 {
					t = append(t, []string{thousands(l.clients), a.name, "not measured"})
				}
				continue
			}
			rate := spreadOf(each(ss, func(s worker.Sample) float64 { return s.PerSecond }))
			t = append(t, []string{thousands(l.clients), a.name, r.rateCell(a.name, l),
				thousands(int(rate.min)) + "–" + thousands(int(rate.max)),
				ratioCell(ratio(r.rates(a.name, l), r.rates(floor, l))),
				latency(ss, func(s worker.Sample) time.Duration { return s.P50 }),
				latency(ss, func(s worker.Sample) time.Duration { return s.P99 }),
				latency(ss, func(s worker.Sample) time.Duration { return s.P999 }),
				figure(ss, func(s worker.Sample) float64 { return s.Allocations }),
				figure(ss, func(s worker.Sample) float64 { return s.CPU }) + " µs",
				figure(ss, func(s worker.Sample) float64 { return s.Flushes }),
				figure(ss, func(s worker.Sample) float64 { return s.WrittenBytes }),
			})
		}
	}
	return t.render(f)
}

// rateCell is the median throughput with its marks.
func (r *Report) rateCell(lib string, l load) string {
	return r.marked(r.samples(lib, l))
}

func (r *Report) marked(ss []worker.Sample) string {
	cell := thousands(int(spreadOf(each(ss, func(s worker.Sample) float64 { return s.PerSecond })).median))
	limit := float64(r.Machine.Processors) / 10
	if slices.ContainsFunc(ss, func(s worker.Sample) bool { return s.Others > limit || s.Others < 0 }) {
		cell += " †"
	}
	if slices.ContainsFunc(ss, func(s worker.Sample) bool { return s.Failures > 0 }) {
		cell += " !"
	}
	return cell
}

func (r *Report) outages(f format) string {
	t := table{{"library", "how", "median", "least–most", "trials"}}
	for _, how := range []string{killed, stopped} {
		for _, a := range libraries {
			var times []time.Duration
			for _, o := range r.Outages {
				if o.Library == a.name && o.How == how {
					times = append(times, o.Time)
				}
			}
			if s := spreadOf(times); s.n > 0 {
				t = append(t, []string{a.name, how, duration(s.median), duration(s.min) + "–" + duration(s.max), thousands(s.n)})
			}
		}
	}
	return t.render(f)
}

func (r *Report) transfers(f format) string {
	t := table{{"library", "median", "least–most", "failed proposals", "transfers", "of which not done"}}
	for _, a := range libraries {
		var gaps []time.Duration
		failures, notDone := 0, 0
		for _, g := range r.Transfers {
			switch {
			case g.Library != a.name:
			case g.NotDone != "":
				notDone++
			default:
				gaps = append(gaps, g.Longest)
				failures += int(g.Failures)
			}
		}
		if s := spreadOf(gaps); s.n+notDone > 0 {
			t = append(t, []string{a.name, duration(s.median), duration(s.min) + "–" + duration(s.max), thousands(failures),
				thousands(s.n + notDone), thousands(notDone)})
		}
	}
	return t.render(f)
}

func (r *Report) slow(f format) string {
	t := table{{"library", "per second", "with a slow one", "p99", "with a slow one", "ratio of p99", "least–most", "repeats"}}
	for _, a := range libraries {
		var healthy, slow []worker.Sample
		var ratios []float64
		for _, s := range r.Slow {
			if s.Library == a.name {
				healthy, slow = append(healthy, s.Healthy), append(slow, s.Slow)
				ratios = append(ratios, float64(s.Slow.P99)/float64(max(s.Healthy.P99, 1)))
			}
		}
		if len(ratios) == 0 {
			continue
		}
		p99 := func(ss []worker.Sample) string {
			return latency(ss, func(s worker.Sample) time.Duration { return s.P99 })
		}
		s := spreadOf(ratios)
		t = append(t, []string{a.name, r.marked(healthy), r.marked(slow), p99(healthy), p99(slow),
			ratioCell(s), fmt.Sprintf("%.2f–%.2f", s.min, s.max), thousands(s.n)})
	}
	return t.render(f)
}

// write puts the report into a directory.
func (r *Report) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var j bytes.Buffer
	enc := json.NewEncoder(&j)
	enc.SetIndent("", " ")
	if err := enc.Encode(r); err != nil {
		return err
	}
	files := map[string][]byte{"results.json": j.Bytes()}
	md := "# Measured side by side\n\nWritten by `go -C bench run .`, see [bench](../../bench/README.md) for what is compared and how. The figures are for comparing with\n" +
		"each other, not for quoting: another machine has others. [results.json](results.json) holds every single measurement.\n"
	for name, svg := range r.plots() {
		files[name] = []byte(svg)
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if strings.HasSuffix(name, ".svg") {
			md += fmt.Sprintf("\n![%s](%s)\n", strings.TrimSuffix(name, ".svg"), name)
		}
	}
	files["README.md"] = []byte(md + r.text(asMarkdown))
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// table is rows of cells; the first is the header. A short row leaves the rest empty.
type table [][]string

func (t table) render(f format) string {
	if len(t) < 2 {
		return "(nothing was measured)\n"
	}
	widths := make([]int, len(t[0]))
	for _, row := range t {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for n, row := range t {
		var cells []string
		for i, w := range widths {
			cell := ""
			if i < len(row) {
				cell = row[i]
			}
			pad := strings.Repeat(" ", w-utf8.RuneCountInString(cell))
			if leftAligned(t[0][i]) {
				cell += pad
			} else {
				cell = pad + cell
			}
			cells = append(cells, cell)
		}
		if f == asText {
			b.WriteString(strings.TrimRight(strings.Join(cells, "  "), " ") + "\n")
			continue
		}
		b.WriteString("| " + strings.Join(cells, " | ") + " |\n")
		if n == 0 {
			for i := range cells {
				if b.WriteString("|---"); !leftAligned(t[0][i]) {
					b.WriteString(":")
				}
			}
			b.WriteString("|\n")
		}
	}
	return b.String()
}

func leftAligned(header string) bool {
	return slices.Contains([]string{"load", "library", "which is", "how"}, header)
}

func each[T any](ss []worker.Sample, f func(worker.Sample) T) (out []T) {
	for _, s := range ss {
		out = append(out, f(s))
	}
	return out
}

// figure is the median of a figure; "—" if it was not known.
func figure(ss []worker.Sample, f func(worker.Sample) float64) string {
	v := spreadOf(each(ss, f))
	switch {
	case v.n == 0 || v.min < 0:
		return "—"
	case v.median >= 1000:
		return thousands(int(v.median))
	case v.median >= 9.95:
		return fmt.Sprintf("%.0f", v.median)
	case v.median >= 0.995:
		return fmt.Sprintf("%.1f", v.median)
	}
	return fmt.Sprintf("%.2f", v.median)
}

// latency is the median of a quantile; "—" if nothing began and ended within the time.
func latency(ss []worker.Sample, f func(worker.Sample) time.Duration) string {
	ss = slices.DeleteFunc(slices.Clone(ss), func(s worker.Sample) bool { return s.Latencies == 0 })
	if len(ss) == 0 {
		return "—"
	}
	return duration(spreadOf(each(ss, f)).median)
}

func ratioCell(s spread) string {
	if s.n == 0 {
		return "—"
	}
	return fmt.Sprintf("%.2f", s.median)
}

func duration(ns float64) string {
	switch d := time.Duration(ns); {
	case d >= 10*time.Second:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d >= time.Second:
		return fmt.Sprintf("%.2f s", d.Seconds())
	case d >= 10*time.Millisecond:
		return fmt.Sprintf("%.0f ms", ns/1e6)
	case d >= time.Millisecond:
		return fmt.Sprintf("%.1f ms", ns/1e6)
	default:
		return fmt.Sprintf("%.0f µs", ns/1e3)
	}
}

func thousands(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func byteSize(n int) string {
	if n >= 1024 && n%1024 == 0 {
		return fmt.Sprintf("%d KiB", n/1024)
	}
	return fmt.Sprintf("%d B", n)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return thousands(n) + " " + what + "s"
}
