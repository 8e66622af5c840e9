package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/steadyraft/raft/bench/worker"
)

// plots draws one picture of throughput and one of latency for each kind and size, by the number of clients.
func (r *Report) plots() map[string]string {
	out := map[string]string{}
	groups := map[string][]load{}
	for _, l := range r.loads() {
		name := l.kind
		if l.kind == worker.Propose {
			name = fmt.Sprintf("%s-%d", l.kind, l.size)
		}
		groups[name] = append(groups[name], l)
	}
	for name, loads := range groups {
		if len(loads) < 2 {
			continue // one point is no line
		}
		title := capital(groupName(loads[0]))
		out["throughput-"+name+".svg"] = r.plot(title+", per second", loads, number,
			func(s worker.Sample) float64 { return s.PerSecond })
		out["latency-"+name+".svg"] = r.plot(title+", 99th percentile of the latency", loads,
			func(v float64) string { return duration(v * float64(time.Microsecond)) },
			func(s worker.Sample) float64 { return float64(s.P99) / float64(time.Microsecond) })
	}
	return out
}

var colors = map[string]string{
	floor: "#999999", ours: "#c0392b", "etcd": "#7fb3d5", "etcd-async": "#1f618d", "hashicorp": "#8e44ad",
	"dragonboat-tan": "#1e8449", "dragonboat-pebble": "#82c99a",
}

// plot is a line for each library through the medians, with a bar from the least to the most. Both axes are logarithmic.
func (r *Report) plot(title string, loads []load, unit func(float64) string, value func(worker.Sample) float64) string {
	const width, height, left, right, top, bottom = 760, 420, 80, 170, 40, 50
	lo, hi := math.Inf(1), 0.0
	for _, s := range r.Samples {
		if v := value(s); slices.Contains(loads, loadOf(s)) && v > 0 {
			lo, hi = min(lo, v), max(hi, v)
		}
	}
	lo, hi = math.Pow(10, math.Floor(math.Log10(lo))), math.Pow(10, math.Ceil(math.Log10(hi)))
	first, last := float64(loads[0].clients), float64(loads[len(loads)-1].clients)
	x := func(clients int) float64 {
		return left + (width-left-right)*math.Log(float64(clients)/first)/math.Log(last/first)
	}
	y := func(v float64) float64 { return height - bottom - (height-top-bottom)*math.Log(v/lo)/math.Log(hi/lo) }

	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/><text x="%d" y="22" font-size="15">%s</text>`+"\n", width, height, left, title)
	for v := lo; v <= hi*1.001; v *= 10 {
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			left, y(v), width-right, left-8, y(v)+4, unit(v))
	}
	for _, l := range loads {
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", x(l.clients), height-bottom+18, thousands(l.clients))
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">clients</text>`+"\n", left+(width-left-right)/2, height-12)
	legend := top
	for _, lib := range libraries {
		var points []string
		color := colors[lib.name]
		for _, l := range loads {
			ss := r.samples(lib.name, l)
			if len(ss) == 0 {
				continue
			}
			v := spreadOf(each(ss, value))
			if v.min <= 0 {
				continue
			}
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(l.clients), y(v.median)))
			fmt.Fprintf(&b, `<path d="M%.1f %.1fV%.1f" stroke="%s"/><circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n",
				x(l.clients), y(v.min), y(v.max), color, x(l.clients), y(v.median), color)
		}
		if len(points) == 0 {
			continue
		}
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="%s"/>`+"\n", strings.Join(points, " "), color, stroke(lib.name))
		fmt.Fprintf(&b, `<path d="M%d %dh20" stroke="%s" stroke-width="%s"/><text x="%d" y="%d">%s</text>`+"\n",
			width-right+15, legend, color, stroke(lib.name), width-right+40, legend+4, lib.name)
		legend += 20
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func stroke(lib string) string {
	if lib == ours {
		return "2.5"
	}
	return "1.5"
}

func number(v float64) string { return thousands(int(v)) }
