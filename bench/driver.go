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
			d.problem("%s is SKIPPED, it does not build: %v", l.name, err)
			continue
		}
		d.libraries = append(d.libraries, l.name)
		d.binaries[l.name] = bin
	}
}

// measureAll runs the plan: within each repeat all libraries measure one group of points in turn, and each repeat begins with
// another library, so that a machine that gets slower does not fall on one of them.
func (d *driver) measureAll(ctx context.Context) {
	groups := d.plan()
	total := d.repeats * len(groups) * len(d.libraries)
	done := 0
	for repeat := range d.repeats {
		for _, g := range groups {
			for i := range d.libraries {
				lib := d.libraries[(i+repeat)%len(d.libraries)]
				if ctx.Err() != nil {
					return
				}
				done++
				progress("[%4.0fs] %d of %d: repeat %d, %s, %s", time.Since(d.began).Seconds(), done, total, repeat+1, lib, g.name)
				d.runGroup(ctx, lib, repeat, g)
			}
		}
	}
	if slices.Contains(d.kinds, "restart") {
		d.eachWithElections(ctx, func(ctx context.Context, lib string) error {
			progress("[%4.0fs] restart: %s", time.Since(d.began).Seconds(), lib)
			return d.restart(ctx, lib)
		})
	}
	if slices.Contains(d.kinds, "failover") {
		d.failOvers(ctx)
	}
	if slices.Contains(d.kinds, "slow") {
		d.slowFollowers(ctx)
	}
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
}

func (d *driver) plan() (groups []group) {
	point := func(kind string, size, clients int) worker.Point {
		p := worker.Point{Kind: kind, Size: size, Clients: clients, Warmup: d.warmup, Time: d.time}
		if size*clients > 32<<20 { // an operation takes about as long as the measurement would
			p.Warmup, p.Time = 3*p.Warmup, 3*p.Time
		}
		return p
	}
	if slices.Contains(d.kinds, worker.Propose) {
		for _, size := range d.sizes {
			g := group{name: fmt.Sprintf("commands of %s", byteSize(size))}
			for _, c := range d.clients {
				g.points = append(g.points, point(worker.Propose, size, c))
			}
			groups = append(groups, g)
		}
	}
	rest := group{name: "reads"}
	for _, kind := range []string{worker.Read, worker.Mixed} {
		if !slices.Contains(d.kinds, kind) {
			continue
		}
		for _, c := range d.clients {
			if d.quick && c != 16 && c != 256 && len(d.clients) > 2 {
				continue // two of them are enough to see where reads stand
			}
			rest.points = append(rest.points, point(kind, 256, c))
		}
	}
	if slices.Contains(d.kinds, "transfer") {
		rest.name, rest.transfers = "reads, transfers", transfersEach
	}
	switch {
	case len(rest.points) == 0 && rest.transfers == 0:
	case d.quick && len(groups) == 1: // one cluster for both: it saves an election
		groups[0].name += ", " + rest.name
		groups[0].points = append(groups[0].points, rest.points...)
		groups[0].transfers = rest.transfers
	default:
		groups = append(groups, rest)
	}
	return groups
}

// runGroup starts a worker and collects its samples. If it fails, those that it printed before are kept, and the rest is missing.
func (d *driver) runGroup(ctx context.Context, lib string, repeat int, g group) {
	job := worker.Job{Points: g.points, Transfers: g.transfers, Profiles: d.profiles}
	if lib == floor {
		job.Transfers = 0 // it has no elections
	}
	limit := time.Minute + 20*time.Second*time.Duration(job.Transfers)
	for _, p := range g.points {
		limit += p.Warmup + p.Time + 5*time.Second
	}
	if lib == floor && len(g.points) == 0 {
		return
	}
	data, err := d.dataDirectory()
	if err != nil {
		d.problem("%s: %v", lib, err)
		return
	}
	defer d.clean(data)
	job.Dir = data
	if job.Addresses, err = freeAddresses(d.servers); err != nil {
		d.problem("%s: %v", lib, err)
		return
	}
	if err := d.runJob(ctx, lib, job, limit, func(o worker.Output) { d.collect(lib, repeat, o) }); err != nil {
		d.problem("%s, %s, repeat %d: %v", lib, g.name, repeat+1, err)
	}
}

// runJob starts a worker and hands on what it prints, until it ends.
func (d *driver) runJob(ctx context.Context, lib string, job worker.Job, limit time.Duration, collect func(worker.Output)) (err error) {
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
	return errors.Join(err, w.wait())
}

// restart fills the logs in one process and starts the servers again in another, where the first one's are.
func (d *driver) restart(ctx context.Context, lib string) error {
	data, err := d.dataDirectory()
	if err != nil {
		return err
	}
	defer d.clean(data)
	addresses, err := freeAddresses(d.servers) // the same for both: they are in the cluster's configuration
	if err != nil {
		return err
	}
	var filled uint64
	err = d.runJob(ctx, lib, worker.Job{Dir: data, Addresses: addresses, Fill: restartBytes}, 2*time.Minute, func(o worker.Output) { filled = max(filled, o.Filled) })
	if err != nil {
		return fmt.Errorf("fill the log: %w", err)
	}
	return d.runJob(ctx, lib, worker.Job{Dir: data, Addresses: addresses, Filled: filled}, time.Minute, func(o worker.Output) { d.collect(lib, 0, o) })
}

func (d *driver) collect(lib string, repeat int, o worker.Output) {
	switch {
	case o.About != nil:
		d.report.about(*o.About)
	case o.Sample != nil:
		o.Sample.Library, o.Sample.Repeat = lib, repeat
		d.report.Samples = append(d.report.Samples, *o.Sample)
		if o.Sample.Failures > 0 {
			d.problem("%s, %s, repeat %d: %d operations failed, %d did not; the first: %s", lib, loadOf(*o.Sample), repeat+1,
				o.Sample.Failures, o.Sample.Operations, o.Sample.Failure)
		}
	case o.Restart != nil:
		d.report.Restarts = append(d.report.Restarts, Restart{Library: lib, Restart: *o.Restart})
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
	told   bool // it printed an error
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
