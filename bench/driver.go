package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/steadyraft/raft/bench/worker"
)

// driver runs one worker at a time and collects what they print.
type driver struct {
	options
	dir       string            // for data and binaries
	binaries  map[string]string // by library
	libraries []string          // that were built
	report    Report
	began     time.Time
}

// problem is shown now and in the report.
func (d *driver) problem(format string, args ...any) {
	p := fmt.Sprintf(format, args...)
	progress("WARNING: %s", p)
	d.report.Problems = append(d.report.Problems, p)
}

// build compiles the libraries' commands. One that does not compile is left out, and its place in the tables says so.
func (d *driver) build(ctx context.Context) {
	built := map[string]error{}
	for _, l := range libraries {
		if !slices.Contains(d.options.libraries, l.name) {
			continue
		}
		bin := filepath.Join(d.dir, filepath.Base(l.pkg))
		err, again := built[l.pkg]
		if !again {
			progress("building %s", l.pkg)
			cmd := exec.CommandContext(ctx, "go", "build", "-o", bin, l.pkg)
			var out []byte
			if out, err = cmd.CombinedOutput(); err != nil {
				err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
			}
			built[l.pkg] = err
		}
		if err != nil {
			d.missing(step{lib: l.name, what: whatEverything}, fmt.Errorf("it does not build: %w", err))
			continue
		}
		d.libraries = append(d.libraries, l.name)
		d.binaries[l.name] = bin
	}
}

// step is one piece of the plan: one library, one thing to measure. If it fails, that is missing from the report, and nothing else.
type step struct {
	lib   string
	what  string        // as the report names it, if it is missing
	when  string        // which repeat or trial, for the progress
	takes time.Duration // roughly, on an idle machine
	run   func(ctx context.Context) error
}

// carryOut goes through a plan. What was measured is written after every step of another name, so that nothing is lost if the
// program or the machine goes away.
func (d *driver) carryOut(ctx context.Context, steps []step) {
	var total time.Duration
	for _, s := range steps {
		total += s.takes
	}
	progress("plan: %s, about %v on an idle machine", plural(len(steps), "measurement"), total.Round(time.Second))
	var planned time.Duration
	began := time.Now()
	for i, s := range steps {
		if ctx.Err() != nil {
			d.missing(s, errors.New("interrupted"))
			continue
		}
		if d.limit > 0 && time.Since(began) > d.limit {
			d.missing(s, fmt.Errorf("the time limit of %v was reached before", d.limit))
			continue
		}
		progress("[%4.0fs of %.0fs, plan %.0fs] %d of %d: %s, %s%s", time.Since(began).Seconds(), total.Seconds(), planned.Seconds(),
			i+1, len(steps), s.what, s.lib, s.when)
		planned += s.takes
		if err := s.run(ctx); err != nil {
			d.missing(s, err)
		}
		if d.out != "" && (i+1 == len(steps) || steps[i+1].what != s.what) {
			if err := d.report.write(d.out); err != nil {
				progress("WARNING: results so far are not written: %v", err)
			}
		}
	}
}

// missing notes a hole in the report, and why it is there.
func (d *driver) missing(s step, why error) {
	progress("NOT MEASURED: %s, %s%s: %v", s.what, s.lib, s.when, why)
	d.report.Missing = append(d.report.Missing, Missing{Library: s.lib, What: s.what, When: strings.TrimPrefix(s.when, ", "), Why: why.Error()})
}

// restartBytes is what is in the log of each server when all are started again.
const restartBytes = 1 << 30

// transfersEach is how many planned transfers there are in each repeat.
const transfersEach = 3

// group is what one worker process measures.
type group struct {
	name      string
	points    []worker.Point
	transfers int
	servers   int
}

// Rough times, on an idle machine.
const (
	startTakes     = 1800 * time.Millisecond // three servers, an election, and deleting everything after it
	processesTake  = 2700 * time.Millisecond // each in its process, until they have settled
	transferTakes  = 1200 * time.Millisecond
	restartTakes   = 22 * time.Second
	snapshotTakes  = 17 * time.Second
	entriesTake    = 12 * time.Second
	longTakes      = longLogLimit + 25*time.Second
	coreTakes      = 25 * time.Second
	electionTakes  = 1500 * time.Millisecond
	quickElections = 100 * time.Millisecond
)

// plan lists all steps. Within each repeat all libraries measure one group of loads in turn, and each repeat begins with another
// library, so that a machine that gets slower does not fall on one of them. What matters most comes first.
func (d *driver) plan() (steps []step) {
	for repeat := range d.repeats {
		for _, g := range d.groups() {
			for i := range d.libraries {
				lib := d.libraries[(i+repeat)%len(d.libraries)]
				if lib == floor && len(g.points) == 0 || repeat > 0 && d.onlyOnce(lib, g) {
					continue
				}
				takes := startTakes + time.Duration(g.servers-3)*startTakes/4 + time.Duration(g.transfers)*transferTakes
				for _, p := range g.points {
					takes += p.Warmup + p.Time + 50*time.Millisecond
				}
				steps = append(steps, step{lib, g.name, nth("repeat", repeat, d.repeats), takes, func(ctx context.Context) error {
					return d.runGroup(ctx, lib, repeat, g)
				}})
			}
		}
	}
	// each adds a step for every library that has elections, or for those that are named.
	each := func(kind, what string, times int, takes time.Duration, run func(ctx context.Context, lib string) error, only ...string) {
		if !slices.Contains(d.kinds, kind) {
			return
		}
		for i := range times {
			for _, lib := range d.libraries {
				if lib == floor || len(only) > 0 && !slices.Contains(only, lib) {
					continue
				}
				steps = append(steps, step{lib, what, nth("repeat", i, times), takes, func(ctx context.Context) error { return run(ctx, lib) }})
			}
		}
	}
	if slices.Contains(d.kinds, "failover") {
		steps = append(steps, d.failOvers()...)
	}
	each("snapshot", whatSnapshot, d.repeats, d.shorter(snapshotTakes), func(ctx context.Context, lib string) error {
		return keep(&d.report.CatchUps)(d.catchUp(ctx, lib, bySnapshot))
	}, ours)
	each("snapshot", whatSnapshot, 1, d.shorter(snapshotTakes), func(ctx context.Context, lib string) error {
		return keep(&d.report.CatchUps)(d.catchUp(ctx, lib, bySnapshot))
	}, "hashicorp", "dragonboat-tan")
	each("resets", whatResets, 1, processesTake+6*d.time+d.shorter(resetCount*resetEvery/2), func(ctx context.Context, lib string) error {
		return keep(&d.report.Resets)(d.resets(ctx, lib))
	}, ours)
	each("slow", whatSlow, d.repeats, processesTake+3*(d.warmup+d.time), func(ctx context.Context, lib string) error {
		return keep(&d.report.Slow)(d.slowFollower(ctx, lib))
	})
	each("long", whatLong, 1, d.shorter(longTakes), func(ctx context.Context, lib string) error {
		return keep(&d.report.LongLogs)(d.longLog(ctx, lib))
	}, ours)
	each("entries", whatEntries, 1, d.shorter(entriesTake), func(ctx context.Context, lib string) error {
		return keep(&d.report.CatchUps)(d.catchUp(ctx, lib, byEntries))
	}, ours, "hashicorp", "dragonboat-tan")
	noJoining := func(context.Context, string) error { return errNoJoining }
	each("snapshot", whatSnapshot, 1, time.Millisecond, noJoining, "etcd-async")
	each("entries", whatEntries, 1, time.Millisecond, noJoining, "etcd-async")
	each("memory", whatIdle, 1, processesTake+idleFor, d.idle)
	each("memory", whatAway, 1, processesTake+d.shorter(d.awayFor)*13/12, func(ctx context.Context, lib string) error {
		return keep(&d.report.Aways)(d.away(ctx, lib))
	}, ours)
	if slices.Contains(d.kinds, "core") && slices.Contains(d.libraries, ours) {
		steps = append(steps, step{"steady and etcd", whatCore, "", coreTakes, d.core})
	}
	each("restart", whatRestart, 1, d.shorter(restartTakes), d.restart)
	return steps
}

var errNoJoining = errors.New("the loop around etcd's library in this benchmark changes no membership and sends no snapshot")

// keep returns a function that adds a result to the report's list, if there is one.
func keep[T any](list *[]T) func(T, error) error {
	return func(result T, err error) error {
		if err == nil {
			*list = append(*list, result)
		}
		return err
	}
}

func nth(what string, i, of int) string {
	if of == 1 {
		return ""
	}
	return fmt.Sprintf(", %s %d of %d", what, i+1, of)
}

// onlyOnce says where one repeat is enough to see how things stand: with more servers; and, but for commands of 256 bytes, of a library
// that is the second form of another.
func (d *driver) onlyOnce(lib string, g group) bool {
	return g.servers != d.servers[0] || (lib == "etcd" || lib == "dragonboat-pebble") && len(d.sizes) > 1 &&
		g.name != groupName(load{worker.Propose, 256, 0, d.servers[0]})
}

// shorter scales a time.
func (d *driver) shorter(t time.Duration) time.Duration { return time.Duration(float64(t) * d.scale) }

// scaled scales a number of things, down to one.
func (d *driver) scaled(n int) int { return max(1, int(float64(n)*d.scale)) }

func (d *driver) groups() (groups []group) {
	point := func(kind string, size, clients int) worker.Point {
		p := worker.Point{Kind: kind, Size: size, Clients: clients, Warmup: d.warmup, Time: d.time}
		if size*clients > 32<<20 { // an operation takes about as long as the measurement would
			p.Warmup, p.Time = 3*p.Warmup, 3*p.Time
		}
		return p
	}
	main := d.servers[0]
	if slices.Contains(d.kinds, worker.Propose) {
		for _, size := range d.sizes {
			g := group{name: groupName(load{worker.Propose, size, 0, main}), servers: main}
			for _, c := range d.clients {
				g.points = append(g.points, point(worker.Propose, size, c))
			}
			groups = append(groups, g)
		}
	}
	rest := group{servers: main}
	var names []string
	for _, kind := range []string{worker.Read, worker.Mixed} {
		if !slices.Contains(d.kinds, kind) {
			continue
		}
		names = append(names, groupName(load{kind, 256, 0, main}))
		for _, c := range d.clients {
			if c != 16 && c != 256 && len(d.clients) > 2 && (d.quick || kind == worker.Mixed) {
				continue // two of them are enough to see where it stands
			}
			rest.points = append(rest.points, point(kind, 256, c))
		}
	}
	if slices.Contains(d.kinds, "transfer") {
		names, rest.transfers = append(names, whatTransfer), transfersEach
	}
	rest.name = strings.Join(names, "; ")
	switch {
	case len(rest.points) == 0 && rest.transfers == 0:
	case d.quick && len(groups) == 1: // one cluster for both: it saves an election
		groups[0].name += "; " + rest.name
		groups[0].points = append(groups[0].points, rest.points...)
		groups[0].transfers = rest.transfers
	default:
		groups = append(groups, rest)
	}
	for _, n := range d.servers[1:] {
		if !slices.Contains(d.kinds, "servers") {
			break
		}
		g := group{name: groupName(load{worker.Propose, 256, 0, n}), servers: n}
		for _, c := range d.clients {
			if c == 1 || c == 256 || len(d.clients) <= 2 {
				g.points = append(g.points, point(worker.Propose, 256, c))
			}
		}
		groups = append(groups, g)
	}
	return groups
}

// runGroup starts a worker and collects its samples. If it fails, those that it printed before are kept, and the rest is missing; if its
// servers do not agree in the end, all are.
func (d *driver) runGroup(ctx context.Context, lib string, repeat int, g group) error {
	job := worker.Job{Points: g.points, Transfers: g.transfers, Profiles: d.profiles}
	if lib == floor {
		job.Transfers = 0 // it has no elections
	}
	limit := time.Minute + 20*time.Second*time.Duration(job.Transfers)
	for _, p := range g.points {
		limit += p.Warmup + p.Time + 5*time.Second
	}
	data, err := d.dataDirectory()
	if err != nil {
		return err
	}
	defer d.clean(data)
	job.Dir = data
	if job.Addresses, err = freeAddresses(g.servers); err != nil {
		return err
	}
	samples, transfers := len(d.report.Samples), len(d.report.Transfers)
	return d.runJob(ctx, lib, job, limit, func(o worker.Output) {
		if o.Void {
			d.report.Samples, d.report.Transfers = d.report.Samples[:samples], d.report.Transfers[:transfers]
			return
		}
		d.collect(lib, repeat, g.servers, o)
	})
}

// runJob starts a worker and hands on what it prints, until it ends.
func (d *driver) runJob(ctx context.Context, lib string, job worker.Job, limit time.Duration, collect func(worker.Output)) (err error) {
	outer := ctx
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	w, err := d.startWorker(ctx, lib, job)
	if err != nil {
		return err
	}
	w.stdin.Close()
	for {
		var o worker.Output
		if o, err = w.next(); err != nil {
			break
		}
		collect(o)
	}
	if err == io.EOF {
		err = nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("not done after %v: killed", limit)
	}
	ended := w.wait()
	if outer.Err() != nil {
		return errors.New("interrupted")
	}
	return errors.Join(err, ended)
}

// restart fills the logs in one process and starts the servers again in another, where the first one's are.
func (d *driver) restart(ctx context.Context, lib string) error {
	data, err := d.dataDirectory()
	if err != nil {
		return err
	}
	defer d.clean(data)
	addresses, err := freeAddresses(3) // the same for both: they are in the cluster's configuration
	if err != nil {
		return err
	}
	var filled uint64
	err = d.runJob(ctx, lib, worker.Job{Dir: data, Addresses: addresses, Fill: int64(d.scaled(restartBytes))}, 2*time.Minute,
		func(o worker.Output) {
			if o.Filled != nil {
				filled = *o.Filled
			}
		})
	if err != nil {
		return fmt.Errorf("fill the log: %w", err)
	}
	return d.runJob(ctx, lib, worker.Job{Dir: data, Addresses: addresses, Filled: filled}, time.Minute,
		func(o worker.Output) { d.collect(lib, 0, 3, o) })
}

func (d *driver) collect(lib string, repeat, servers int, o worker.Output) {
	switch {
	case o.About != nil:
		d.report.about(*o.About)
	case o.Sample != nil:
		o.Sample.Library, o.Sample.Repeat, o.Sample.Servers = lib, repeat, servers
		d.report.Samples = append(d.report.Samples, *o.Sample)
		if o.Sample.Failures > 0 {
			d.problem("%s, %s, repeat %d: %d operations failed, %d did not; the first: %s", lib, loadOf(*o.Sample), repeat+1,
				o.Sample.Failures, o.Sample.Operations, o.Sample.Failure)
		}
	case o.Restart != nil:
		d.report.Restarts = append(d.report.Restarts, Restart{Library: lib, Bytes: int64(d.scaled(restartBytes)), Restart: *o.Restart})
	case o.Gap != nil:
		d.report.Transfers = append(d.report.Transfers, Transfer{Library: lib, Gap: *o.Gap})
		if o.Gap.NotDone != "" {
			d.problem("%s, transfer: %s", lib, o.Gap.NotDone)
		}
	}
}

func (d *driver) dataDirectory() (string, error) { return os.MkdirTemp(d.dir, "data-") }

// clean removes a cluster's data and waits until the disk is done with that, so that it does not fall on the next library.
func (d *driver) clean(data string) {
	os.RemoveAll(data)
	if f, err := os.Open(d.dir); err == nil {
		f.Sync()
		f.Close()
	}
	syscall.Sync()
}

// workerProcess is a running worker.
type workerProcess struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	out    *json.Decoder
	stderr *tail
	told   bool          // it printed an error
	ended  chan struct{} // closed once it printed its last; only of a cluster of processes
}

func (d *driver) startWorker(ctx context.Context, lib string, job worker.Job) (*workerProcess, error) {
	cmd := exec.CommandContext(ctx, d.binaries[lib], lib)
	w := &workerProcess{cmd: cmd, stderr: &tail{}}
	cmd.Dir, cmd.Stderr = job.Dir, w.stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	w.stdin, w.out = stdin, json.NewDecoder(stdout)
	return w, json.NewEncoder(stdin).Encode(job)
}

// next returns the worker's next output; io.EOF once there is no more. An error that the worker printed is returned as such.
func (w *workerProcess) next() (o worker.Output, err error) {
	if err := w.out.Decode(&o); err != nil {
		if err == io.EOF || errors.Is(err, os.ErrClosed) {
			return o, io.EOF
		}
		return o, fmt.Errorf("output of the worker: %w", err)
	}
	if o.Error != "" {
		w.told = true
		return o, errors.New(o.Error)
	}
	return o, nil
}

func (w *workerProcess) wait() error {
	err := w.cmd.Wait()
	if err != nil && !w.told {
		return fmt.Errorf("%w; the end of its log: %s", err, w.stderr)
	}
	return nil
}

// tail keeps the end of what is written to it.
type tail struct{ b []byte }

const tailSize = 2000

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if len(t.b) > 2*tailSize {
		t.b = append(t.b[:0], t.b[len(t.b)-tailSize:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	return strings.ToValidUTF8(string(t.b[max(0, len(t.b)-tailSize):]), "?")
}

// freeAddresses asks the kernel for ports that nobody uses. Somebody might take one before the worker does; then that worker fails.
func freeAddresses(n int) (out []string, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // all are held until the last is found
		out = append(out, l.Addr().String())
	}
	return out, nil
}
