package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Core is the cost of one command in the protocol alone, as `go test -bench . ./core` prints it.
type Core struct {
	Library     string  `json:"library"`
	Load        string  `json:"load"`
	Repeat      int     `json:"repeat"`
	Nanoseconds float64 `json:"ns"`
	Allocations float64 `json:"allocations"`
}

// The loads of the core's benchmark.
var coreLoads = []struct{ name, what string }{
	{"one", "one command at a time"},
	{"64-single", "64 proposals of one command"},
	{"one-of-64", "one proposal of 64 commands"},
}

func (d *driver) core(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "Command", "-benchmem",
		"-benchtime", max(d.time/2, 100*time.Millisecond).String(), "-count", strconv.Itoa(d.repeats), "./core").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	found, err := parseCore(out)
	d.report.Cores = append(d.report.Cores, found...)
	return err
}

// parseCore reads lines as BenchmarkCommand/steady/one-2  100  123 ns/op  456 commands/s  7 B/op  8 allocs/op.
func parseCore(out []byte) (found []Core, err error) {
	repeats := map[string]int{}
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) == 0 || !strings.HasPrefix(f[0], "BenchmarkCommand/") {
			continue
		}
		name := strings.Split(f[0], "/")
		ns, at := slices.Index(f, "ns/op"), slices.Index(f, "allocs/op")
		if len(name) != 3 || ns < 1 || at < 1 {
			return found, fmt.Errorf("a line that nobody understands: %s", lines.Text())
		}
		c := Core{Library: name[1]}
		for _, l := range coreLoads { // behind it may stand the number of processors
			if name[2] == l.name || strings.HasPrefix(name[2], l.name+"-") && !strings.Contains(name[2][len(l.name)+1:], "-") {
				c.Load = l.name
			}
		}
		var err, err2 error
		c.Nanoseconds, err = strconv.ParseFloat(f[ns-1], 64)
		c.Allocations, err2 = strconv.ParseFloat(f[at-1], 64)
		if err != nil || err2 != nil || c.Load == "" {
			return found, fmt.Errorf("a line that nobody understands: %s", lines.Text())
		}
		key := c.Library + "/" + c.Load
		c.Repeat = repeats[key]
		repeats[key]++
		found = append(found, c)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no benchmark was run: %s", bytes.TrimSpace(out))
	}
	return found, nil
}

// cores maps a repeat to a figure of the core.
func (r *Report) cores(lib, load string, f func(Core) float64) map[int]float64 {
	out := map[int]float64{}
	for _, c := range r.Cores {
		if c.Library == lib && c.Load == load {
			out[c.Repeat] = f(c)
		}
	}
	return out
}
