package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/steadyraft/raft/bench/worker"
)

// goal is one that this library was built to, beside what was measured.
type goal struct {
	what, want string
	measured   string // "": it was not
	met        bool
}

// goals is their table.
func (r *Report) goals(f format) string {
	t := table{{"goal", "wanted", "measured", "met"}}
	left := 0
	for _, g := range r.goalList() {
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

func (r *Report) goalList() []goal {
	return slices.Concat(r.throughputGoals(), r.costGoals(), r.coreGoals(), r.outageGoals(), r.disturbanceGoals(), r.longGoals(),
		r.memoryGoals(), r.resetGoals())
}

// unit prints a figure.
type unit func(float64) string

func hundredths(v float64) string { return fmt.Sprintf("%.2f", v) }
func whole(v float64) string      { return fmt.Sprintf("%.0f", v) }

// atLeast and atMost compare the median of what was measured; note says more about it.
func atLeast(what string, limit float64, s spread, note string) goal {
	return compared(what, "≥ "+trimmed(limit), s.n, s.median, s.median >= limit, hundredths, note)
}

func atMost(what string, limit float64, s spread, show unit, note string) goal {
	want := "≤ " + show(limit)
	if v := trimmed(limit); limit < 1000 { // no duration
		want = "≤ " + v
	}
	return compared(what, want, s.n, s.median, s.median <= limit, show, note)
}

func trimmed(v float64) string { return fmt.Sprintf("%.3g", v) }

func compared(what, want string, n int, v float64, met bool, show unit, note string) goal {
	if n == 0 {
		return goal{what: what, want: want}
	}
	return goal{what, want, show(v) + note, met}
}

// with3 is a load of three servers, as all goals mean it.
func with3(kind string, size, clients int) load { return load{kind, size, clients, 3} }

func (r *Report) throughputGoals() (out []goal) {
	overFloor := func(l load, limit float64) {
		out = append(out, atLeast(l.String()+": throughput of the floor", limit, ratio(r.rates(ours, l), r.rates(floor, l)), r.busy(l, ours, floor)))
	}
	overBest := func(l load, limit float64) {
		other := r.bestOther(ours, l)
		out = append(out, atLeast(l.String()+": throughput over the best other", limit, ratio(r.rates(ours, l), r.rates(other, l)),
			" "+other+r.without(l)+r.busy(l, ours, other)))
	}
	overFloor(with3(worker.Propose, 256, 1), 0.92)
	overFloor(with3(worker.Propose, 256, 16), 0.88)
	overFloor(with3(worker.Propose, 256, 256), 0.75)
	overFloor(with3(worker.Propose, 256, 1024), 0.65)
	overBest(with3(worker.Propose, 256, 1), 1.2)
	overBest(with3(worker.Propose, 256, 16), 1.1)
	overBest(with3(worker.Propose, 256, 256), 1.7)
	overBest(with3(worker.Propose, 256, 1024), 1.9)
	overBest(with3(worker.Propose, 16, 256), 2)
	overBest(with3(worker.Propose, 16, 1024), 2)
	overBest(with3(worker.Propose, 4096, 256), 1.5)
	overBest(with3(worker.Propose, 4096, 1024), 1.5)
	overBest(with3(worker.Read, 256, 16), 1.3)
	overBest(with3(worker.Read, 256, 256), 1.5)
	return out
}

func (r *Report) costGoals() []goal {
	one, many := with3(worker.Propose, 256, 1), with3(worker.Propose, 256, 1024)
	of := func(l load, f func(worker.Sample) float64) spread {
		s := spreadOf(each(r.samples(ours, l), f))
		if s.min < 0 { // the machine does not tell
			return spread{}
		}
		return s
	}
	allocations := func(s worker.Sample) float64 { return s.Allocations }
	other := r.bestOther(ours, many)
	cpu := func(lib string) map[int]float64 {
		out := map[int]float64{}
		for _, s := range r.samples(lib, many) {
			out[s.Repeat] = s.CPU
		}
		return out
	}
	return []goal{
		atMost(many.String()+": allocations per command", 2, of(many, allocations), hundredths, r.busy(many, ours)),
		atMost(one.String()+": allocations per command", 25, of(one, allocations), hundredths, r.busy(one, ours)),
		atMost(many.String()+": processor time per command, of the best other's", 0.5, ratio(cpu(ours), cpu(other)), hundredths,
			" "+other+r.without(many)+r.busy(many, ours, other)),
		atMost(one.String()+": device flushes per command", 3, of(one, func(s worker.Sample) float64 { return s.Flushes }), hundredths,
			r.busy(one, ours)),
	}
}

func (r *Report) coreGoals() (out []goal) {
	allocations := func(c Core) float64 { return c.Allocations }
	for _, l := range coreLoads {
		out = append(out,
			atLeast("core alone, "+l.what+": speed over etcd's RawNode", 4, r.coreRatio(ours, l.name), ""),
			atMost("core alone, "+l.what+": allocations of etcd's RawNode", 0.1,
				ratio(r.cores(ours, l.name, allocations), r.cores("etcd", l.name, allocations)), hundredths, ""))
	}
	return out
}

func (r *Report) outageGoals() []goal {
	times := func(how string) spread {
		var ts []time.Duration
		for _, o := range r.Outages {
			if o.Library == ours && o.How == how {
				ts = append(ts, o.Time)
			}
		}
		return spreadOf(ts)
	}
	k, s := times(killed), times(stopped)
	most := k
	most.median = k.max // of less than a hundred, nothing is nearer to the 99th percentile
	return []goal{
		atMost("fail-over by kill -9 of the leader's process: p50", 15e6, k, duration, fmt.Sprintf(" of %d", k.n)),
		atMost("fail-over by kill -9 of the leader's process: p99", 250e6, most, duration, fmt.Sprintf(", the most of %d", k.n)),
		atMost("silent cut: p50, 1.5 election timeouts", 1.5*float64(worker.ElectionTimeout), s, duration, fmt.Sprintf(" of %d", s.n)),
	}
}

// disturbanceGoals are those of what a cluster meets while it works.
func (r *Report) disturbanceGoals() []goal {
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
	longest.median = longest.max
	transfer := atMost("planned transfer: longest gap between commits", 20e6, longest, duration, note)
	transfer.met = transfer.met && notDone == 0

	var sent, slow []float64
	var size int64
	var sentBy, slowBy []worker.Sample
	for _, c := range r.CatchUps {
		if c.Library == ours && c.How == bySnapshot {
			sent, size = append(sent, float64(c.During.P99)/float64(max(1, c.Without.P99))), c.SnapshotBytes
			sentBy = append(sentBy, c.Without, c.During)
		}
	}
	for _, x := range r.Slow {
		if x.Library == ours {
			slow, slowBy = append(slow, float64(x.Slow.P99)/float64(max(1, x.Healthy.P99))), append(slowBy, x.Healthy, x.Slow)
		}
	}
	s, w := spreadOf(sent), spreadOf(slow)
	return []goal{
		transfer,
		compared("planned transfer: failed proposals", "0", longest.n, float64(failed), failed == 0, whole, ""),
		atMost("p99 of commits while a snapshot of 1 GiB is sent at the default throttle, over without", 2, s, hundredths,
			fmt.Sprintf(" (%.2f–%.2f, %s)", s.min, s.max, mebibytes(size))+r.dagger(sentBy...)),
		atMost("one slow follower of three: p99 over healthy", 1.2, w, hundredths, fmt.Sprintf(" (%.2f–%.2f)", w.min, w.max)+r.dagger(slowBy...)),
	}
}

func (r *Report) longGoals() []goal {
	var elapsed, cpu spread
	note := ""
	for _, x := range r.LongLogs {
		if x.Library == ours {
			elapsed, cpu = x.costs()
			if x.Filled < longLog {
				note = " at " + thousands(int(x.Filled)) + " entries only"
			}
			note += r.dagger(slices.Concat(x.Short, x.Long)...)
		}
	}
	return []goal{
		atMost("time per command at 10⁷ log entries over 10³", 1.05, elapsed, hundredths, note),
		atMost("processor time per command at 10⁷ log entries over 10³", 1.05, cpu, hundredths, note),
	}
}

// maxGrowth tells a heap that is bounded from one that grows with what is proposed: that would double.
const maxGrowth = 1.25

func (r *Report) memoryGoals() []goal {
	idle := goal{what: "memory of an idle node", want: "stated", met: true}
	for _, x := range r.Idle {
		if x.Library == ours && x.Leads {
			idle.measured = fmt.Sprintf("leader: %s resident, %s Go heap, %d goroutines", mebibytes(x.Resident), mebibytes(int64(x.Heap)), x.Goroutines)
		}
	}
	away := goal{what: "memory of a node with one follower away for 10 minutes under load", want: "stated, bounded"}
	for _, x := range r.Aways {
		if x.Library == ours && len(x.Memory) > 0 {
			last := x.Memory[len(x.Memory)-1]
			short := ""
			if last.At < awayGoal-awayGoal/100 {
				short = " only (-away 10m takes longer)"
			}
			away.measured = fmt.Sprintf("%s resident, %s Go heap after %s%s; second half of the time over the first: %.2f", mebibytes(last.Resident),
				mebibytes(int64(last.Heap)), duration(float64(last.At)), short, x.growth())
			away.met = x.growth() <= maxGrowth
		}
	}
	return []goal{idle, away}
}

func (r *Report) resetGoals() []goal {
	g := goal{what: "1,000 connection resets under load: changes of leader or term", want: "0"}
	for _, x := range r.Resets {
		if x.Library == ours {
			changes := int(x.TermAfter - x.TermBefore)
			g.measured = fmt.Sprintf("%d, in %s resets; %d failed proposals", changes, thousands(x.Resets), x.During.Failures)
			g.met = changes == 0 && x.SameLeader
		}
	}
	return []goal{g}
}

// without names the libraries that might have been the best, and were not measured.
func (r *Report) without(l load) string {
	var missing []string
	for _, lib := range []string{"etcd-async", "hashicorp", "dragonboat-tan"} {
		if len(r.samples(lib, l)) == 0 {
			missing = append(missing, lib)
		}
	}
	if len(missing) == 0 {
		return ""
	}
	return " (without " + strings.Join(missing, ", ") + ")"
}

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
