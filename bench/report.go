package main

import (
	"bytes"
	"cmp"
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
	Servers   []int           `json:"servers"`
	Repeats   int             `json:"repeats"`
	Time      time.Duration   `json:"time_ns"`
	Scale     float64         `json:"scale"`
	Quick     bool            `json:"quick"`
	Libraries []worker.About  `json:"libraries"`
	Problems  []string        `json:"problems"`
	Samples   []worker.Sample `json:"samples"`
	Transfers []Transfer      `json:"transfers,omitempty"`
	Outages   []Outage        `json:"outages,omitempty"`
	Slow      []Slow          `json:"slow,omitempty"`
	Restarts  []Restart       `json:"restarts,omitempty"`
	CatchUps  []CatchUp       `json:"catch_ups,omitempty"`
	Resets    []Resets        `json:"resets,omitempty"`
	LongLogs  []LongLog       `json:"long_logs,omitempty"`
	Idle      []Idle          `json:"idle,omitempty"`
	Aways     []Away          `json:"aways,omitempty"`
	Cores     []Core          `json:"cores,omitempty"`
	Missing   []Missing       `json:"missing,omitempty"`

	NotFinished bool `json:"not_finished,omitempty"` // more was to come
}

// Missing is what was to be measured and was not.
type Missing struct {
	Library string `json:"library"`
	What    string `json:"what"`
	When    string `json:"when,omitempty"` // "": ever
	Why     string `json:"why"`
}

// What is measured besides loads, as the report calls it.
const (
	whatEverything = "everything"
	whatTransfer   = "planned transfer under load"
	whatFailOver   = "fail-over"
	whatSlow       = "one slow follower of three"
	whatRestart    = "restart of the whole cluster"
	whatSnapshot   = "catch-up of a new server by snapshot"
	whatEntries    = "catch-up of a new server by entries"
	whatResets     = "connection resets under load"
	whatLong       = "cost of a command late in a long log"
	whatIdle       = "memory of an idle server"
	whatAway       = "memory of a leader with one follower away"
	whatCore       = "the protocol alone"
)

func (r *Report) about(a worker.About) {
	if !slices.ContainsFunc(r.Libraries, func(b worker.About) bool { return b.Name == a.Name }) {
		r.Libraries = append(r.Libraries, a)
	}
}

// load names what was measured, without the times.
type load struct {
	kind                   string
	size, clients, servers int
}

func (l load) String() string {
	clients := plural(l.clients, "client")
	if l.servers != 3 {
		clients += ", " + plural(l.servers, "server")
	}
	switch l.kind {
	case worker.Read:
		return "linearizable reads, " + clients
	case worker.Mixed:
		return "95 reads to 5 commands of " + byteSize(l.size) + ", " + clients
	}
	return "commands of " + byteSize(l.size) + ", " + clients
}

func loadOf(s worker.Sample) load { return load{s.Kind, s.Size, s.Clients, s.Servers} }

// loads returns what was measured, in the order in which it was.
func (r *Report) loads() (out []load) {
	for _, s := range r.Samples {
		if l := loadOf(s); !slices.Contains(out, l) {
			out = append(out, l)
		}
	}
	slices.SortStableFunc(out, func(a, b load) int {
		order := []string{worker.Propose, worker.Read, worker.Mixed}
		return cmp.Or(a.servers-b.servers, slices.Index(order, a.kind)-slices.Index(order, b.kind))
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
	var plots map[string]string
	if f == asMarkdown {
		plots = r.plots()
	}
	image := func(names ...string) string {
		out := ""
		for _, name := range names {
			if plots[name+".svg"] != "" {
				out += fmt.Sprintf("![%s](%s.svg)\n", name, name)
			}
		}
		if out != "" {
			out += "\n"
		}
		return out
	}
	if r.NotFinished {
		heading(2, "Not finished")
		b.WriteString("The program is still running, or was ended before it had measured everything.\n")
	}
	if len(r.Problems)+len(r.Missing) > 0 {
		heading(2, "Warnings")
		for _, p := range r.Problems {
			fmt.Fprintf(&b, "- %s\n", strings.ReplaceAll(strings.TrimSpace(p), "\n", "\n  "))
		}
		for _, line := range r.holes("") {
			fmt.Fprintf(&b, "- not measured: %s\n", strings.ReplaceAll(line, "\n", "\n  "))
		}
	}
	if len(r.samplesOf(ours)) > 0 {
		heading(2, "This library against the floor and the best other one")
		b.WriteString(r.summary(f))
	}
	heading(2, "Goals")
	b.WriteString("Ratios are medians of those within each repeat.\n\n")
	b.WriteString(r.goals(f))
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
		for j < len(loads) && groupName(loads[j]) == groupName(loads[i]) {
			j++
		}
		heading(3, capital(groupName(loads[i])))
		b.WriteString(image("throughput-"+plotName(loads[i]), "latency-"+plotName(loads[i])))
		b.WriteString(r.table(f, loads[i:j]))
		i = j
	}
	section := func(what, title, table string) {
		if rows := r.missing(what); table != "" || rows != "" {
			heading(2, capital(what)+title)
			b.WriteString(table + rows)
		}
	}
	section(whatFailOver, ": time without a commit after the leader's process was lost", image("fail-over")+r.outages(f))
	section(whatTransfer, ": longest time without a commit, 16 clients", r.transfers(f))
	section(whatResets, fmt.Sprintf(": three processes, %d clients, 256 B; a reset every %v, at every %dth time of all connections at once",
		resetClients, resetEvery, resetStorm), r.resets(f))
	section(whatSlow, fmt.Sprintf(": it runs for %v and stands for %v; 64 clients, 256 B", slowRuns, slowStands), r.slow(f))
	joining := fmt.Sprintf("; three processes and a fourth, %d clients, 256 B", joiningClients)
	section(whatSnapshot, joining, r.catchUps(f, bySnapshot))
	section(whatEntries, joining, r.catchUps(f, byEntries))
	section(whatLong, ": 16 B, 64 clients, two clusters in turn", r.longLogs(f))
	section(whatIdle, ", each in its process, after a garbage collection", r.idle(f))
	section(whatAway, fmt.Sprintf(": %d clients, 256 B", awayClients), image("memory-"+ours)+r.aways(f))
	section(whatCore, ": three servers on one goroutine, no disk, no network, 256 B", r.coreTable(f))
	section(whatRestart, ", commands of "+byteSize(64<<10), r.restarts(f))
	heading(2, "How it was measured")
	fmt.Fprintf(&b, "%s, %s; Linux %s, %s, %s.\n", r.Machine.Processor, plural(r.Machine.Processors, "processor"), r.Machine.Kernel,
		r.Machine.FileSystem, r.Machine.Go)
	fmt.Fprintf(&b, "Began %s, took %v. %s in one process where nothing else is said, %s of %v each.\n\n", r.Began, r.Took,
		plural(r.Servers[0], "server"), plural(r.Repeats, "repeat"), r.Time)
	for _, a := range r.Libraries {
		fmt.Fprintf(&b, "- %s: %s\n", a.Name, strings.Join(append(slices.Clone(a.Modules), a.Notes), "; "))
	}
	return b.String()
}

// groupName names the loads that one process measures, and that are in one table.
func groupName(l load) string {
	name := "commands of " + byteSize(l.size)
	switch l.kind {
	case worker.Read:
		name = "linearizable reads"
	case worker.Mixed:
		name = "95 reads to 5 commands of " + byteSize(l.size)
	}
	if l.servers != 3 {
		name += ", " + plural(l.servers, "server")
	}
	return name
}

func capital(s string) string {
	return strings.ToUpper(s[:1]) + s[1:]
}

// holes lists what is missing of those things that are named so ("": of all), with all libraries that lack the same for the same reason in one
// line.
func (r *Report) holes(what string) (lines []string) {
	type key struct{ what, why string }
	var order []key
	who := map[key][]string{}
	times := map[key]map[string]int{}
	for _, m := range r.Missing {
		k := key{m.What, strings.TrimSpace(m.Why)}
		if !strings.Contains(k.what, what) {
			continue
		}
		if times[k] == nil {
			order, times[k] = append(order, k), map[string]int{}
		}
		if times[k][m.Library]++; times[k][m.Library] == 1 {
			who[k] = append(who[k], m.Library)
		}
	}
	for _, k := range order {
		for i, lib := range who[k] {
			if n := times[k][lib]; n > 1 {
				who[k][i] += fmt.Sprintf(" %d times", n)
			}
		}
		lines = append(lines, fmt.Sprintf("%s (%s): %s", k.what, strings.Join(who[k], ", "), k.why))
	}
	return lines
}

// hasNothing reports that a library was to be measured and could not be.
func (r *Report) hasNothing(lib string) bool {
	return slices.ContainsFunc(r.Missing, func(m Missing) bool { return m.Library == lib && m.What == whatEverything })
}

// missing lists what a section lacks.
func (r *Report) missing(what string) string {
	var b strings.Builder
	for _, line := range r.holes(what) {
		fmt.Fprintf(&b, "\nNot measured: %s\n", firstLine(line))
	}
	return b.String()
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
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
				if len(r.samplesOf(a.name)) > 0 || r.hasNothing(a.name) {
					t = append(t, []string{thousands(l.clients), a.name, "not measured"}) // why is among the warnings
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
	cell += r.dagger(ss...)
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
	return t.renderAny(f)
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
	return t.renderAny(f)
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
	return t.renderAny(f)
}

func (r *Report) restarts(f format) string {
	t := table{{"library", "log of each", "servers opened", "first commit", "all have applied all"}}
	for _, x := range r.Restarts {
		t = append(t, []string{x.Library, mebibytes(x.Bytes), duration(float64(x.Open)), duration(float64(x.First)), duration(float64(x.All))})
	}
	return t.renderAny(f)
}

// catchUps shows the median of the repeats.
func (r *Report) catchUps(f format, how string) string {
	t := table{{"library", "commands before", "snapshot", "arrived", "rate", "has everything", "per second", "meanwhile", "ratio",
		"p50", "meanwhile", "p99", "meanwhile", "ratio", "least–most", "repeats"}}
	for _, a := range libraries {
		var cs []CatchUp
		for _, c := range r.CatchUps {
			if c.Library == a.name && c.How == how {
				cs = append(cs, c)
			}
		}
		if len(cs) == 0 {
			continue
		}
		var arrived, all, rates, p99s []float64
		var without, during []worker.Sample
		for _, c := range cs {
			arrived, all = append(arrived, float64(c.Arrived)), append(all, float64(c.All))
			without, during = append(without, c.Without), append(during, c.During)
			rates = append(rates, c.During.PerSecond/max(1, c.Without.PerSecond))
			p99s = append(p99s, float64(c.During.P99)/float64(max(1, c.Without.P99)))
		}
		row := []string{a.name, thousands(int(cs[0].Commands)), "—", "—", "—", duration(spreadOf(all).median)}
		if at := spreadOf(arrived).median; how == bySnapshot && at > 0 {
			row[2], row[3] = mebibytes(cs[0].SnapshotBytes), duration(at)
			row[4] = mebibytes(int64(float64(cs[0].SnapshotBytes)/(at/1e9))) + "/s"
		}
		p50 := func(s worker.Sample) time.Duration { return s.P50 }
		p99 := func(s worker.Sample) time.Duration { return s.P99 }
		s := spreadOf(p99s)
		t = append(t, append(row, r.marked(without), r.marked(during), ratioCell(spreadOf(rates)), latency(without, p50), latency(during, p50),
			latency(without, p99), latency(during, p99), ratioCell(s), fmt.Sprintf("%.2f–%.2f", s.min, s.max), thousands(s.n)))
	}
	text := t.renderAny(f)
	if text != "" && how == bySnapshot {
		text += "\nEvery library sends at its default throttle (this one: `tcp.Config.SnapshotBytesPerSecond`, 64 MiB a second; the others: none).\n" +
			"\"rate\" is what came of it, until the snapshot was restored. All servers share one disk and the processors.\n"
	}
	return text
}

func (r *Report) resets(f format) string {
	t := table{{"library", "resets", "of all at once", "in", "changes of term", "same leader", "failed proposals", "per second", "meanwhile",
		"p99", "meanwhile"}}
	for _, x := range r.Resets {
		p99 := func(s worker.Sample) time.Duration { return s.P99 }
		same := "yes"
		if !x.SameLeader {
			same = "no"
		}
		t = append(t, []string{x.Library, thousands(x.Resets), thousands(x.Storms) + " times", duration(float64(x.Took)),
			thousands(int(x.TermAfter - x.TermBefore)), same, thousands(int(x.During.Failures)), r.marked([]worker.Sample{x.Without}), r.marked([]worker.Sample{x.During}),
			latency([]worker.Sample{x.Without}, p99), latency([]worker.Sample{x.During}, p99)})
	}
	return t.renderAny(f)
}

func (r *Report) longLogs(f format) string {
	t := table{{"library", "log", "per second", "p99", "CPU", "allocations"}}
	note := ""
	for _, x := range r.LongLogs {
		for _, y := range []struct {
			name    string
			samples []worker.Sample
		}{
			{fmt.Sprintf("%s–%s commands", thousands(shortLog), thousands(int(x.Grown))), x.Short},
			{fmt.Sprintf("%s commands and more", thousands(int(x.Filled))), x.Long},
		} {
			t = append(t, []string{x.Library, y.name, r.marked(y.samples), latency(y.samples, func(s worker.Sample) time.Duration { return s.P99 }),
				figure(y.samples, func(s worker.Sample) float64 { return s.CPU }) + " µs",
				figure(y.samples, func(s worker.Sample) float64 { return s.Allocations })})
		}
		elapsed, cpu := x.costs()
		note += fmt.Sprintf("\n%s: long over short, median of %s: time %.3f (%.3f–%.3f), processor time %.3f (%.3f–%.3f).", x.Library,
			plural(elapsed.n, "round"), elapsed.median, elapsed.min, elapsed.max, cpu.median, cpu.min, cpu.max)
		if x.Filled < x.Wanted {
			note += fmt.Sprintf(" %s commands were wanted, so many fit into %s.", thousands(int(x.Wanted)), duration(float64(x.Filling)))
		}
		note += "\n"
	}
	if text := t.renderAny(f); text != "" {
		return text + note
	}
	return ""
}

func (r *Report) idle(f format) string {
	t := table{{"library", "which is", "resident", "Go heap", "goroutines"}}
	for _, x := range r.Idle {
		role := "follower"
		if x.Leads {
			role = "leader"
		}
		t = append(t, []string{x.Library, role, mebibytes(x.Resident), mebibytes(int64(x.Heap)), thousands(x.Goroutines)})
	}
	return t.renderAny(f)
}

func (r *Report) aways(f format) string {
	t := table{{"library", "follower away for", "commands", "resident", "Go heap", "goroutines"}}
	note := ""
	for _, x := range r.Aways {
		for i, m := range append([]AwayMemory{x.Before}, x.Memory...) {
			since := duration(float64(m.At))
			if i == 0 {
				since = "not yet"
			}
			t = append(t, []string{x.Library, since, thousands(int(m.Commands)), mebibytes(m.Resident), mebibytes(int64(m.Heap)),
				thousands(m.Goroutines)})
		}
		note += fmt.Sprintf("\n%s: the highest heap of the second half is %.2f of that of the first. Snapshots of %s are taken by default settings.\n",
			x.Library, x.growth(), mebibytes(x.Snapshot))
	}
	if text := t.renderAny(f); text != "" {
		return text + note
	}
	return ""
}

func (r *Report) coreTable(f format) string {
	t := table{{"load", "library", "per command", "least–most", "allocations", "times etcd's speed"}}
	for _, l := range coreLoads {
		for _, lib := range []string{ours, "etcd"} {
			ns := r.cores(lib, l.name, func(c Core) float64 { return c.Nanoseconds })
			if len(ns) == 0 {
				continue
			}
			s := spreadOf(slices.Collect(maps.Values(ns)))
			allocations := spreadOf(slices.Collect(maps.Values(r.cores(lib, l.name, func(c Core) float64 { return c.Allocations }))))
			t = append(t, []string{l.what, lib, nanoseconds(s.median), nanoseconds(s.min) + "–" + nanoseconds(s.max),
				fmt.Sprintf("%.0f", allocations.median), ratioCell(r.coreRatio(lib, l.name))})
		}
	}
	return t.renderAny(f)
}

// coreRatio is how many times as fast as etcd's a library's core is.
func (r *Report) coreRatio(lib, load string) spread {
	ns := func(c Core) float64 { return c.Nanoseconds }
	return ratio(r.cores("etcd", load, ns), r.cores(lib, load, ns))
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
	const md = "# Measured side by side\n\nWritten by `go -C bench run .`, see [bench](../../bench/README.md) for what is compared and how. The figures are for\n" +
		"comparing with each other, not for quoting: another machine has others. [results.json](results.json) holds every single measurement.\n"
	for name, svg := range r.plots() {
		files[name] = []byte(svg)
	}
	files["README.md"] = []byte(md + r.text(asMarkdown))
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// renderAny is "" if there are no rows.
func (t table) renderAny(f format) string {
	if len(t) < 2 {
		return ""
	}
	return t.render(f)
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
	return slices.Contains([]string{"load", "library", "which is", "how", "log", "goal", "wanted", "met"}, header)
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

func mebibytes(n int64) string {
	if n < 0 {
		return "—"
	}
	if v := float64(n) / (1 << 20); v < 99.5 {
		return fmt.Sprintf("%.1f MiB", v)
	}
	return thousands(int(n>>20)) + " MiB"
}

func nanoseconds(ns float64) string {
	if ns < 10_000 {
		return fmt.Sprintf("%s ns", thousands(int(ns+.5)))
	}
	return duration(ns)
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
