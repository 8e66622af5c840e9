// Command bench compares this library with others and with the least work that replication can do. README.md says how.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/steadyraft/raft/bench/worker"
)

// library is one of the libraries that can be measured, and the package of the command that does it.
type library struct{ name, pkg string }

// Ours and the bound have names that the report knows.
const (
	ours  = "steady"
	floor = "floor"
)

var libraries = []library{
	{floor, "./floor"},
	{ours, "./steady"},
	{"etcd", "./etcd"},
	{"etcd-async", "./etcd"},
	{"hashicorp", "./hashicorp"},
	{"dragonboat-tan", "./dragonboat"},
	{"dragonboat-pebble", "./dragonboat"},
}

// options are the flags.
type options struct {
	quick     bool
	libraries []string
	kinds     []string
	sizes     []int
	clients   []int
	servers   []int
	repeats   int
	time      time.Duration
	warmup    time.Duration
	trials    int
	scale     float64
	limit     time.Duration
	awayFor   time.Duration
	dir       string
	out       string
	profiles  string
	force     bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return
		}
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parseFlags(args []string) (options, error) {
	var o options
	var libs, kinds, sizes, clients, servers string
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.BoolVar(&o.quick, "quick", false, "two minutes: fewer libraries, 256-byte commands, short measurements; writes no files without -out")
	f.StringVar(&libs, "libraries", "", "which of "+strings.Join(names(), ",")+" (default: all; -quick: without etcd and dragonboat-pebble)")
	f.StringVar(&kinds, "kinds", "", "which of "+allKinds+" (default: all; -quick: propose,read)")
	f.StringVar(&sizes, "sizes", "", "bytes of a command (default: 16,256,4096,65536; -quick: 256)")
	f.StringVar(&clients, "clients", "1,16,256,1024", "clients at the same time")
	f.StringVar(&servers, "servers", "",
		"of a cluster: the first number for everything, further ones for 256-byte commands (default: 3,5,7; -quick: 3); "+
			"what needs servers in processes of their own is measured with 3")
	f.IntVar(&o.repeats, "repeats", 3, "how often everything is measured, each library in turn")
	f.DurationVar(&o.time, "time", 0, "length of one measurement (default: 1s; -quick: 500ms)")
	f.DurationVar(&o.warmup, "warmup", 0, "load before it that does not count (default: 250ms; -quick: 200ms)")
	f.IntVar(&o.trials, "trials", 0, "fail-overs of each kind and library (default: 3; 20 and 5 of this library)")
	f.Float64Var(&o.scale, "scale", 1,
		"shorten everything: times, logs, snapshots, numbers of trials. To try the program; the figures are not comparable")
	f.DurationVar(&o.awayFor, "away", time.Minute,
		"how long a follower is away while the leader's memory is measured; the goal speaks of 10m")
	f.DurationVar(&o.limit, "limit", 0,
		"begin no measurement after so long; what is left is reported as not measured (default: 30m; -quick: 0, none)")
	f.StringVar(&o.dir, "dir", os.TempDir(), "where the data goes, in a directory of its own; it must be on a disk")
	f.StringVar(&o.out, "out", "", "directory for README.md, results.json and plots (default: ../docs/performance; -quick: none)")
	f.StringVar(&o.profiles, "profiles", "", "directory for a CPU profile of every measurement; they cost a little")
	f.BoolVar(&o.force, "force", false, "measure even where the figures will mean something else")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("argument %q: only flags are expected", f.Arg(0))
	}
	byDefault := func(s *string, quick, full string) {
		if *s == "" {
			if *s = full; o.quick {
				*s = quick
			}
		}
	}
	byDefault(&libs, "floor,steady,etcd-async,hashicorp,dragonboat-tan", strings.Join(names(), ","))
	byDefault(&kinds, "propose,read", allKinds)
	byDefault(&servers, "3", "3,5,7")
	byDefault(&sizes, "256", "16,256,4096,65536")
	byDefault(&o.out, "", filepath.Join("..", "docs", "performance"))
	if o.scale <= 0 || o.scale > 1 {
		return o, fmt.Errorf("-scale %v: want more than 0 and at most 1", o.scale)
	}
	standard := func(t *time.Duration, quick, full time.Duration) {
		if *t == 0 {
			if *t = full; o.quick {
				*t = quick
			}
			*t = max(20*time.Millisecond, time.Duration(float64(*t)*o.scale))
		}
	}
	standard(&o.time, 500*time.Millisecond, time.Second)
	standard(&o.warmup, 200*time.Millisecond, 250*time.Millisecond)
	if o.limit == 0 && !o.quick {
		o.limit = 30 * time.Minute
	}
	if o.repeats < 1 {
		return o, errors.New("want at least 1 of -repeats")
	}
	if o.profiles != "" { // the workers run elsewhere
		abs, err := filepath.Abs(o.profiles)
		if err != nil {
			return o, err
		}
		o.profiles = abs
	}
	var err, err2, err3 error
	o.libraries, o.kinds = strings.Split(libs, ","), strings.Split(kinds, ",")
	o.sizes, err = numbers("sizes", sizes)
	o.clients, err2 = numbers("clients", clients)
	if o.servers, err3 = numbers("servers", servers); err3 == nil && slices.Min(o.servers) < 3 {
		err3 = errors.New("want at least 3 -servers")
	}
	return o, errors.Join(err, err2, err3, known("libraries", o.libraries, names()),
		known("kinds", o.kinds, strings.Split(allKinds, ",")))
}

const allKinds = "propose,read,mixed,transfer,servers,failover,snapshot,resets,slow,long,entries,memory,core,restart"

func names() (out []string) {
	for _, l := range libraries {
		out = append(out, l.name)
	}
	return out
}

func known(flag string, got, want []string) error {
	for _, g := range got {
		if !slices.Contains(want, g) {
			return fmt.Errorf("-%s: %q is none of %s", flag, g, strings.Join(want, ", "))
		}
	}
	return nil
}

func numbers(flag, s string) (out []int, err error) {
	for f := range strings.SplitSeq(s, ",") {
		n, err := strconv.Atoi(f)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("-%s: %q is not a positive number", flag, f)
		}
		if flag == "sizes" && n < 8 {
			return nil, fmt.Errorf("-sizes: %d: a command has at least 8 bytes", n)
		}
		out = append(out, n)
	}
	return out, nil
}

func run(ctx context.Context, args []string) error {
	o, err := parseFlags(args)
	if err != nil {
		return err
	}
	if err := checkDirectory(o.dir); err != nil && !o.force {
		return fmt.Errorf("%w; -dir names another directory, -force measures all the same", err)
	} else if err != nil {
		progress("WARNING: %v", err)
	}
	if o.profiles != "" {
		if err := os.MkdirAll(o.profiles, 0o755); err != nil {
			return err
		}
	}
	dir, err := os.MkdirTemp(o.dir, "raft-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	d := &driver{options: o, dir: dir, binaries: map[string]string{}, began: time.Now()}
	d.report = Report{Began: time.Now().UTC().Format(time.RFC3339), Machine: describeMachine(o.dir), Servers: o.servers,
		Repeats: o.repeats, Time: o.time, Quick: o.quick, Scale: o.scale, NotFinished: true}
	others := worker.WatchOthers(os.Getpid())
	time.Sleep(time.Second)
	if busy := others(); busy > loaded() {
		d.problem("others keep %.1f of %d processors busy before anything is measured", busy, runtime.NumCPU())
	}
	d.build(ctx)
	if len(d.libraries) == 0 {
		return errors.New("no library can be measured")
	}
	if o.scale < 1 {
		d.problem("scaled to %v: nothing here can be compared with a full run, or with the goals", o.scale)
	}
	d.carryOut(ctx, d.plan())
	d.report.NotFinished = ctx.Err() != nil
	d.report.Took = time.Since(d.began).Round(time.Second)
	if _, err := os.Stdout.WriteString(d.report.text(asText)); err != nil {
		return err
	}
	if o.out != "" {
		if err := d.report.write(o.out); err != nil {
			return err
		}
		progress("written to %s", o.out)
	}
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return nil
}

// progress goes to standard error, so that the result alone is on standard output.
func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// loaded is how many processors others may keep busy before a figure is marked.
func loaded() float64 { return float64(runtime.NumCPU()) / 10 }

// checkDirectory refuses file systems in memory: a sync costs nothing there.
func checkDirectory(dir string) error {
	const tmpfs, ramfs = 0x01021994, 0x858458f6
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return fmt.Errorf("data directory %s: %w", dir, err)
	}
	if t := uint32(st.Type); t == tmpfs || t == ramfs {
		return fmt.Errorf("data directory %s is in memory (tmpfs): a sync costs nothing there, so no figure would mean anything", dir)
	}
	return nil
}

// Machine is where the figures were taken.
type Machine struct {
	Processor  string `json:"processor"`
	Processors int    `json:"processors"`
	Kernel     string `json:"kernel"`
	Go         string `json:"go"`
	FileSystem string `json:"file_system"`
	Virtual    bool   `json:"virtual"`
}

func describeMachine(dir string) Machine {
	m := Machine{Processors: runtime.NumCPU(), Go: runtime.Version(), FileSystem: fileSystem(dir)}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(b))
	}
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "model name":
			m.Processor = strings.TrimSpace(value)
		case "flags":
			m.Virtual = slices.Contains(strings.Fields(value), "hypervisor")
		}
	}
	return m
}

func fileSystem(dir string) string {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "unknown"
	}
	b, _ := os.ReadFile("/proc/self/mounts")
	best, kind := "", "unknown"
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) > 2 && len(f[1]) >= len(best) && (abs == f[1] || strings.HasPrefix(abs, strings.TrimSuffix(f[1], "/")+"/")) {
			best, kind = f[1], f[2]
		}
	}
	return kind
}
