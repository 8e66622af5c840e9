package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/steadyraft/raft/bench/worker"
)

// goalRow is one goal beside what was measured.
type goalRow struct {
	what, want string
	measured   string // "": it was not
	met        bool
}

// goals is the table of the goals that this library was built to.
func (r *Report) goals(f format) string {
	t := table{{"goal", "wanted", "measured", "met"}}
	left := 0
	for _, g := range r.goalRows() {
		met := "NO"
		switch {
		case g.measured == "" && r.Quick:
			left++
			continue
		case g.measured == "":
			g.measured, met = "not measured", "—"
		case r.Scale < 1:
			met = "scaled"
		case g.met:
			met = "yes"
		}
		t = append(t, []string{g.what, g.want, g.measured, met})
	}
	if left > 0 {
		return t.renderAny(f) + fmt.Sprintf("\n%s not measured by this quick run.\n", plural(left, "more goal"))
	}
	return t.render(f)
}

func (r *Report) goalRows() (rows []goalRow) {
	add := func(what, want, measured string, met bool) { rows = append(rows, goalRow{what, want, measured, met}) }
	// value adds a row for one figure; n is how many measurements it comes from.
	value := func(what, want string, n int, v, limit float64, atLeast bool, show func(float64) string, note string) {
		if n == 0 {
			add(what, want, "", false)
			return
		}
		add(what, want, show(v)+note, v == limit || (v > limit) == atLeast)
	}
	number := func(v float64) string { return fmt.Sprintf("%.2f", v) }

	at := func(kind string, size, clients int) load { return load{kind, size, clients, 3} }
	overFloor := func(l load, limit float64) {
		s := ratio(r.rates(ours, l), r.rates(floor, l))
		value(l.String()+": throughput of the floor", fmt.Sprintf("≥ %.2f", limit), s.n, s.median, limit, true, number, r.busy(l, ours, floor))
	}
	overBest := func(l load, limit float64) {
		other := r.bestOther(ours, l)
		s := ratio(r.rates(ours, l), r.rates(other, l))
		value(l.String()+": throughput over the best other", fmt.Sprintf("≥ %.2f", limit), s.n, s.median, limit, true, number,
			" "+other+r.busy(l, ours, other))
	}
	overFloor(at(worker.Propose, 256, 1), 0.92)
	overFloor(at(worker.Propose, 256, 16), 0.88)
	overFloor(at(worker.Propose, 256, 256), 0.75)
	overFloor(at(worker.Propose, 256, 1024), 0.65)
	overBest(at(worker.Propose, 256, 1), 1.2)
	overBest(at(worker.Propose, 256, 16), 1.1)
	overBest(at(worker.Propose, 256, 256), 1.7)
	overBest(at(worker.Propose, 256, 1024), 1.9)
	for _, clients := range []int{256, 1024} {
		overBest(at(worker.Propose, 16, clients), 2)
		overBest(at(worker.Propose, 4096, clients), 1.5)
	}
	overBest(at(worker.Read, 256, 16), 1.3)
	overBest(at(worker.Read, 256, 256), 1.5)

	figureAt := func(what string, l load, limit float64, figure func(worker.Sample) float64) {
		s := spreadOf(each(r.samples(ours, l), figure))
		n := s.n
		if s.min < 0 {
			n = 0 // the machine does not tell
		}
		value(l.String()+": "+what, fmt.Sprintf("≤ %.0f", limit), n, s.median, limit, false, number, r.busy(l, ours))
	}
	allocations := func(s worker.Sample) float64 { return s.Allocations }
	figureAt("allocations per command", at(worker.Propose, 256, 1024), 2, allocations)
	figureAt("allocations per command", at(worker.Propose, 256, 1), 25, allocations)
	many := at(worker.Propose, 256, 1024)
	other := r.bestOther(ours, many)
	cpu := func(lib string) map[int]float64 {
		out := map[int]float64{}
		for _, s := range r.samples(lib, many) {
			out[s.Repeat] = s.CPU
		}
		return out
	}
	s := ratio(cpu(ours), cpu(other))
	value(many.String()+": processor time per command, of the best other's", "≤ 0.50", s.n, s.median, 0.5, false, number,
		" "+other+r.busy(many, ours, other))
	figureAt("device flushes per command", at(worker.Propose, 256, 1), 3, func(s worker.Sample) float64 { return s.Flushes })

	for _, l := range coreLoads {
		s := r.coreRatio(ours, l.name)
		value("core alone, "+l.what+": speed over etcd's RawNode", "≥ 4", s.n, s.median, 4, true, number, "")
		allocations := func(c Core) float64 { return c.Allocations }
		a := ratio(r.cores(ours, l.name, allocations), r.cores("etcd", l.name, allocations))
		value("core alone, "+l.what+": allocations of etcd's RawNode", "≤ 0.10", a.n, a.median, 0.1, false, number, "")
	}

	r.outageGoals(value)

	var gaps []time.Duration
	failed, notDone := 0, 0
	for _, g := range r.Transfers {
		switch {
		case g.Library != ours:
		case g.NotDone != "":
			notDone++
		default:
			gaps, failed = append(gaps, g.Longest), failed+int(g.Failures)
		}
	}
	longest := spreadOf(gaps)
	note := fmt.Sprintf(" (median %s of %d)", duration(longest.median), longest.n)
	if notDone > 0 {
		note += fmt.Sprintf("; %d did not happen", notDone)
	}
	value("planned transfer: longest gap between commits", "≤ 20 ms", longest.n, longest.max, 20e6, false, duration, note)
	value("planned transfer: failed proposals", "0", longest.n, float64(failed), 0, false, whole, "")

	var ratios []float64
	var size int64
	var from []worker.Sample
	for _, c := range r.CatchUps {
		if c.Library == ours && c.How == bySnapshot {
			ratios, size = append(ratios, float64(c.During.P99)/float64(max(1, c.Without.P99))), c.SnapshotBytes
			from = append(from, c.Without, c.During)
		}
	}
	s = spreadOf(ratios)
	value("p99 of commits while a snapshot of 1 GiB is sent at the default throttle, over without", "≤ 2", s.n, s.median, 2, false, number,
		fmt.Sprintf(" (%.2f–%.2f, %s)", s.min, s.max, mebibytes(size))+r.dagger(from...))

	ratios, from = nil, nil
	for _, x := range r.Slow {
		if x.Library == ours {
			ratios, from = append(ratios, float64(x.Slow.P99)/float64(max(1, x.Healthy.P99))), append(from, x.Healthy, x.Slow)
		}
	}
	s = spreadOf(ratios)
	value("one slow follower of three: p99 over healthy", "≤ 1.2", s.n, s.median, 1.2, false, number, fmt.Sprintf(" (%.2f–%.2f)", s.min, s.max)+r.dagger(from...))

	for _, x := range r.LongLogs {
		if x.Library != ours {
			continue
		}
		elapsed, cpu := x.costs()
		note := r.dagger(append(slices.Clone(x.Short), x.Long...)...)
		if x.Filled < 10_000_000 {
			note += " at " + thousands(int(x.Filled)) + " entries only"
		}
		value("time per command at 10⁷ log entries over 10³", "≤ 1.05", elapsed.n, elapsed.median, 1.05, false, number, note)
		value("processor time per command at 10⁷ log entries over 10³", "≤ 1.05", cpu.n, cpu.median, 1.05, false, number, note)
	}
	if !slices.ContainsFunc(r.LongLogs, func(x LongLog) bool { return x.Library == ours }) {
		add("cost per command at 10⁷ log entries over 10³", "≤ 1.05", "", false)
	}
	r.memoryGoals(add)

	measured, bad := "", 0
	for _, x := range r.Resets {
		if x.Library == ours {
			bad = int(x.TermAfter - x.TermBefore)
			measured = fmt.Sprintf("%d, in %s resets; %d failed proposals", bad, thousands(x.Resets), x.During.Failures)
		}
	}
	add("1,000 connection resets under load: changes of leader or term", "0", measured, bad == 0)
	return rows
}

func whole(v float64) string { return fmt.Sprintf("%.0f", v) }

func (r *Report) outageGoals(value func(string, string, int, float64, float64, bool, func(float64) string, string)) {
	times := func(how string) (out []time.Duration) {
		for _, o := range r.Outages {
			if o.Library == ours && o.How == how {
				out = append(out, o.Time)
			}
		}
		slices.Sort(out)
		return out
	}
	k := times(killed)
	s := spreadOf(k)
	value("fail-over by kill -9 of the leader's process: p50", "≤ 15 ms", s.n, s.median, 15e6, false, duration, fmt.Sprintf(" of %d", s.n))
	value("fail-over by kill -9 of the leader's process: p99", "≤ 250 ms", s.n, s.max, 250e6, false, duration, fmt.Sprintf(", the most of %d", s.n))
	s = spreadOf(times(stopped))
	limit := 1.5 * float64(worker.ElectionTimeout)
	value("silent cut: p50", "≤ "+duration(limit)+", 1.5 election timeouts", s.n, s.median, limit, false, duration, fmt.Sprintf(" of %d", s.n))
}

func (r *Report) memoryGoals(add func(what, want, measured string, met bool)) {
	var idle []string
	for _, x := range r.Idle {
		if x.Library == ours && x.Leads {
			idle = append(idle, fmt.Sprintf("leader: %s resident, %s Go heap, %d goroutines", mebibytes(x.Resident), mebibytes(int64(x.Heap)), x.Goroutines))
		}
	}
	add("memory of an idle node", "stated", strings.Join(idle, "; "), true)
	measured, met := "", false
	for _, x := range r.Aways {
		if x.Library == ours && len(x.Memory) > 0 {
			last := x.Memory[len(x.Memory)-1]
			measured = fmt.Sprintf("%s resident, %s Go heap after %s; second half of the time over the first: %.2f", mebibytes(last.Resident),
				mebibytes(int64(last.Heap)), duration(float64(last.At)), x.growth())
			met = x.growth() <= maxGrowth
		}
	}
	add("memory of a node with one follower away under load", "stated, bounded", measured, met)
}

// maxGrowth tells a heap that is bounded from one that grows with what is proposed: that would double.
const maxGrowth = 1.25

// busy is the mark of figures that were taken while others kept the machine busy.
func (r *Report) busy(l load, libs ...string) string {
	var ss []worker.Sample
	for _, lib := range libs {
		ss = append(ss, r.samples(lib, l)...)
	}
	return r.dagger(ss...)
}

func (r *Report) dagger(ss ...worker.Sample) string {
	limit := float64(r.Machine.Processors) / 10
	if slices.ContainsFunc(ss, func(s worker.Sample) bool { return s.Others > limit || s.Others < 0 }) {
		return " †"
	}
	return ""
}
