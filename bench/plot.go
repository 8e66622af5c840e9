package main

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/steadyraft/raft/bench/worker"
)

// plots draws throughput and latency for each kind, size and number of servers, by the number of clients; and what else is more than a
// number.
func (r *Report) plots() map[string]string {
	out := map[string]string{}
	groups := map[string][]load{}
	for _, l := range r.loads() {
		groups[plotName(l)] = append(groups[plotName(l)], l)
	}
	for name, loads := range groups {
		if len(loads) < 2 {
			continue // one point is no line
		}
		title := capital(groupName(loads[0]))
		out["throughput-"+name+".svg"] = r.plotLoads(title, "operations per second", loads, number,
			func(s worker.Sample) float64 { return s.PerSecond })
		out["latency-"+name+".svg"] = r.plotLoads(title, "99th percentile of the latency", loads, duration,
			func(s worker.Sample) float64 { return float64(s.P99) })
	}
	if len(r.Outages) > 0 {
		out["fail-over.svg"] = r.plotOutages()
	}
	for _, a := range r.Aways {
		if len(a.Memory) > 1 {
			out["memory-"+a.Library+".svg"] = a.plot()
		}
	}
	maps.DeleteFunc(out, func(_, svg string) bool { return svg == "" })
	return out
}

// plotName is what the files of a group of loads have in common.
func plotName(l load) string {
	name := l.kind
	if l.kind == worker.Propose {
		name = fmt.Sprintf("%s-%d", l.kind, l.size)
	}
	if l.servers != 3 {
		name += fmt.Sprintf("-servers-%d", l.servers)
	}
	return name
}

// look is how a library is drawn. Two forms of one library share a colour. The colours are far enough from white and from black, and from
// each other for the colour-blind (after Okabe and Ito).
type look struct{ color, dash string }

var looks = map[string]look{
	floor: {"#888888", "2 3"}, ours: {"#d55e00", ""}, "etcd": {"#3b8ed0", "6 4"}, "etcd-async": {"#3b8ed0", ""}, "hashicorp": {"#c061a0", ""},
	"dragonboat-tan": {"#009e73", ""}, "dragonboat-pebble": {"#009e73", "6 4"},
}

// series is one line: a median with the least and the most at each place.
type series struct {
	name string
	look look
	wide bool
	x    []float64
	y    []spread
}

// axis maps values to pixels.
type axis struct {
	logarithmic bool
	lo, hi      float64
	from, to    float64 // pixels
	ticks       []float64
}

func (a axis) at(v float64) float64 {
	if a.logarithmic {
		return a.from + (a.to-a.from)*math.Log(v/a.lo)/math.Log(a.hi/a.lo)
	}
	return a.from + (a.to-a.from)*(v-a.lo)/(a.hi-a.lo)
}

// newAxis begins and ends at round numbers around the values. On a logarithmic one there are no more than so many ticks, or decades alone.
func newAxis(logarithmic bool, lo, hi, from, to float64, ticks int) axis {
	a := axis{logarithmic: logarithmic, from: from, to: to}
	if !logarithmic {
		step := math.Pow(10, math.Floor(math.Log10(hi)))
		for _, part := range []float64{5, 2} {
			if hi/step < part {
				step /= 2
			}
		}
		for v := 0.0; v < hi+step; v += step {
			a.ticks = append(a.ticks, v)
		}
		a.lo, a.hi = 0, a.ticks[len(a.ticks)-1]
		return a
	}
	var all []float64
	for decade := math.Floor(math.Log10(lo)); decade <= math.Ceil(math.Log10(hi)); decade++ {
		for _, digit := range []float64{1, 2, 5} {
			all = append(all, digit*math.Pow(10, decade))
		}
	}
	first, last := 0, len(all)-1
	for first+1 < len(all) && all[first+1] <= lo*1.0001 {
		first++
	}
	for last > first+1 && all[last-1] >= hi*0.9999 {
		last--
	}
	a.lo, a.hi = all[first], all[last]
	for i, v := range all[first : last+1] {
		if last-first < ticks || (first+i)%3 == 0 {
			a.ticks = append(a.ticks, v)
		}
	}
	return a
}

const (
	plotWidth, plotHeight               = 780, 430
	plotLeft, plotRight, plotTop, plotY = 100, 170, 56, 54 // margins
	plotStyle                           = `<style>
rect.paper{fill:#fff} text{fill:#222} path.grid{stroke:#ddd}
@media (prefers-color-scheme: dark){rect.paper{fill:#0d1117} text{fill:#ddd} path.grid{stroke:#333}}
</style>
`
)

// canvas begins a drawing: paper, title, and what is drawn.
func canvas(b *strings.Builder, height int, title, what string) {
	fmt.Fprintf(b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", plotWidth, height)
	b.WriteString(plotStyle)
	fmt.Fprintf(b, `<rect class="paper" width="%d" height="%d"/><text x="%d" y="22" font-size="15">%s</text>`, plotWidth, height, plotLeft, title)
	fmt.Fprintf(b, `<text x="%d" y="40">%s</text>`+"\n", plotLeft, what)
}

// draw is a line for each series, with a bar from the least to the most of the repeats.
func draw(title, what, below string, lines []series, x axis, xTicks []float64, xUnit, yUnit func(float64) string, logY bool) string {
	lo, hi := math.Inf(1), 0.0
	for _, s := range lines {
		for _, v := range s.y {
			lo, hi = min(lo, v.min), max(hi, v.max)
		}
	}
	y := newAxis(logY, lo, hi, plotHeight-plotY, plotTop, 13)
	var b strings.Builder
	canvas(&b, plotHeight, title, what)
	for _, v := range y.ticks {
		fmt.Fprintf(&b, `<path class="grid" d="M%d %.1fH%d"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			plotLeft, y.at(v), plotWidth-plotRight, plotLeft-8, y.at(v)+4, yUnit(v))
	}
	for _, v := range xTicks {
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", x.at(v), plotHeight-plotY+18, xUnit(v))
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", plotLeft+(plotWidth-plotLeft-plotRight)/2, plotHeight-14, below)
	// The legend is in the order of the lines' ends.
	byEnd := slices.Clone(lines)
	slices.SortStableFunc(byEnd, func(a, b series) int { return cmp.Compare(b.y[len(b.y)-1].median, a.y[len(a.y)-1].median) })
	for i, s := range byEnd {
		height := plotTop + 4 + 20*i
		fmt.Fprintf(&b, `<path d="M%d %dh24" %s/><text x="%d" y="%d">%s</text>`+"\n", plotWidth-plotRight+14, height, s.stroke(),
			plotWidth-plotRight+44, height+4, s.name)
	}
	for _, s := range lines {
		var points []string
		for i, v := range s.y {
			px := x.at(s.x[i])
			points = append(points, fmt.Sprintf("%.1f,%.1f", px, y.at(v.median)))
			fmt.Fprintf(&b, `<path d="M%.1f %.1fV%.1f" stroke="%s"/><circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n",
				px, y.at(v.min), y.at(v.max), s.look.color, px, y.at(v.median), s.look.color)
		}
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" %s/>`+"\n", strings.Join(points, " "), s.stroke())
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func (s series) stroke() string {
	width := 1.6
	if s.wide {
		width = 3
	}
	out := fmt.Sprintf(`stroke="%s" stroke-width="%.1f"`, s.look.color, width)
	if s.look.dash != "" {
		out += fmt.Sprintf(` stroke-dasharray="%s"`, s.look.dash)
	}
	return out
}

// plotLoads has the number of clients to the right. Both axes are logarithmic.
func (r *Report) plotLoads(title, what string, loads []load, unit func(float64) string, value func(worker.Sample) float64) string {
	var lines []series
	for _, lib := range libraries {
		s := series{name: lib.name, look: looks[lib.name], wide: lib.name == ours}
		for _, l := range loads {
			if v := spreadOf(each(r.samples(lib.name, l), value)); v.min > 0 {
				s.x, s.y = append(s.x, float64(l.clients)), append(s.y, v)
			}
		}
		if len(s.x) > 0 {
			lines = append(lines, s)
		}
	}
	if len(lines) == 0 {
		return ""
	}
	var clients []float64
	for _, l := range loads {
		clients = append(clients, float64(l.clients))
	}
	x := axis{logarithmic: true, lo: slices.Min(clients), hi: slices.Max(clients), from: plotLeft, to: plotWidth - plotRight}
	return draw(title, what+"; median, least and most of the repeats; both axes logarithmic", "clients", lines, x, clients, number, unit, true)
}

// plot shows the samples of a leader's memory over time.
func (a *Away) plot() string {
	heap := series{name: "Go heap", look: looks[ours], wide: true}
	resident := series{name: "resident", look: looks[floor]}
	var end float64
	for _, m := range a.Memory {
		end = float64(m.At)
		heap.x, heap.y = append(heap.x, end), append(heap.y, spreadOf([]float64{float64(m.Heap) / (1 << 20)}))
		resident.x, resident.y = append(resident.x, end), append(resident.y, spreadOf([]float64{float64(m.Resident) / (1 << 20)}))
	}
	x := newAxis(false, 0, end/float64(time.Second), plotLeft, plotWidth-plotRight, 0)
	ticks := slices.Clone(x.ticks)
	for i := range ticks {
		ticks[i] *= float64(time.Second)
	}
	x.hi *= float64(time.Second)
	return draw("Memory of a leader with one follower away: "+a.Library, fmt.Sprintf("after a garbage collection; %d clients, 256 B", awayClients),
		"time since the follower was killed", []series{heap, resident}, x, ticks, seconds,
		func(v float64) string { return fmt.Sprintf("%.4g MiB", v) }, false)
}

// plotOutages is a row for each library and way to lose a leader, and a dot for each trial.
func (r *Report) plotOutages() string {
	type row struct {
		lib, how string
		times    []time.Duration
	}
	var rows []row
	lo, hi := math.Inf(1), 0.0
	for _, how := range []string{killed, stopped} {
		for _, lib := range libraries {
			at := row{lib: lib.name, how: how}
			for _, o := range r.Outages {
				if o.Library == lib.name && o.How == how {
					at.times = append(at.times, o.Time)
					lo, hi = min(lo, float64(o.Time)), max(hi, float64(o.Time))
				}
			}
			if len(at.times) > 0 {
				rows = append(rows, at)
			}
		}
	}
	const left, step = 210, 24
	height := plotTop + step*len(rows) + plotY
	x := newAxis(true, lo, hi, left, plotWidth-40, 9)
	var b strings.Builder
	canvas(&b, height, "Fail-over", "time without a commit after the leader's process was lost; each dot is a trial; logarithmic")
	for _, v := range x.ticks {
		fmt.Fprintf(&b, `<path class="grid" d="M%.1f %dV%d"/><text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n",
			x.at(v), plotTop, height-plotY, x.at(v), height-plotY+18, duration(v))
	}
	for i, at := range rows {
		y := plotTop + step*i + step/2
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s, %s</text>`+"\n", left-12, y+4, at.lib, at.how)
		for _, t := range at.times {
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%d" r="5" fill="%s" fill-opacity="0.6"/>`+"\n", x.at(float64(t)), y, looks[at.lib].color)
		}
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func number(v float64) string { return thousands(int(v + .5)) }

func seconds(v float64) string { return fmt.Sprintf("%.3g s", v/1e9) }
