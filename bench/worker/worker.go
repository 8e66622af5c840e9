package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Main is the main function of a command, whose argument names one of its libraries. Libraries log to standard error, which the
// parent shows when something went wrong.
func Main(libs ...Library) {
	out := json.NewEncoder(os.Stdout)
	var mu sync.Mutex // a worker that obeys has several goroutines
	emit := func(o Output) {
		mu.Lock()
		defer mu.Unlock()
		must(out.Encode(o))
	}
	err := errors.New("no argument: want the name of a library")
	if len(os.Args) == 2 {
		i := slices.IndexFunc(libs, func(l Library) bool { return l.Name == os.Args[1] })
		if err = fmt.Errorf("no library %q here", os.Args[1]); i >= 0 {
			err = run(libs[i], os.Stdin, emit)
		}
	}
	if err != nil {
		emit(Output{Error: err.Error()})
		os.Exit(1)
	}
	os.Exit(0) // some libraries leave goroutines behind
}

func must(err error) {
	if err != nil { // the parent is gone
		os.Exit(2)
	}
}

func run(lib Library, in io.Reader, emit func(Output)) error {
	dec := json.NewDecoder(in)
	var job Job
	if err := dec.Decode(&job); err != nil {
		return fmt.Errorf("job on standard input: %w", err)
	}
	emit(Output{About: &About{Name: lib.Name, Modules: versions(lib.Modules), Notes: lib.Notes}})
	if job.Server > 0 {
		return serve(lib, job, dec, emit)
	}
	if job.Fill > 0 {
		n, err := fillLogs(lib, job)
		emit(Output{Filled: &n})
		return err
	}
	if job.Filled > 0 {
		r, err := restart(lib, job)
		emit(Output{Restart: r})
		return err
	}
	nodes, err := start(lib, job)
	if err != nil {
		return err
	}
	leader, err := waitForLeader(context.Background(), nodes)
	if err != nil {
		return err
	}
	if job.Obey {
		emit(Output{Commit: &Commit{Server: 1, At: time.Now().UnixNano()}}) // there is one process, whichever of its servers leads
		obey(nodes[leader], job.Dir, dec, func() {}, emit)
	}
	for _, p := range job.Points {
		stop, err := startProfile(job.Profiles, lib.Name, p)
		if err != nil {
			return err
		}
		s := measure(context.Background(), nodes[leader], job.Dir, p, nil)
		stop()
		emit(Output{Sample: &s})
	}
	if job.Transfers > 0 {
		transfers(nodes, leader, job.Transfers, emit)
	}
	if err := agree(nodes, time.Now().Add(agreeWithin)); err != nil {
		emit(Output{Void: true})
		return err
	}
	return closeAll(nodes)
}

// startProfile writes a CPU profile, of the warm-up too, if a directory is given. A later repeat overwrites it.
func startProfile(dir, lib string, p Point) (stop func(), err error) {
	if dir == "" {
		return func() {}, nil
	}
	f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%s-%s-%d-%d.prof", lib, p.Kind, p.Size, p.Clients)))
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, err
	}
	return func() {
		pprof.StopCPUProfile()
		f.Close()
	}, nil
}

func start(lib Library, job Job) ([]Node, error) {
	var nodes []Node
	for i := range job.Addresses {
		n, err := startOne(lib, job, i)
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

func startOne(lib Library, job Job, i int) (Node, error) {
	dir := filepath.Join(job.Dir, fmt.Sprint("server", i+1))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	o := Options{ID: i, Addresses: job.Addresses, Dir: dir, SnapshotBytes: job.SnapshotBytes, AutoSnapshots: job.AutoSnapshots,
		Listen: job.Listen, Join: job.Join}
	if o.Listen == "" {
		o.Listen = o.Addresses[i]
	}
	n, err := lib.Start(o)
	if err != nil {
		return nil, fmt.Errorf("start server %d: %w", i+1, err)
	}
	return n, nil
}

// waitForLeader returns once a node leads and has committed a command.
func waitForLeader(ctx context.Context, nodes []Node) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	last := errors.New("none leads")
	for ctx.Err() == nil {
		i := slices.IndexFunc(nodes, Node.IsLeader)
		if i >= 0 {
			short, cancel := context.WithTimeout(ctx, 2*time.Second)
			last = nodes[i].Propose(short, make([]byte, 16))
			cancel()
			if last == nil {
				return i, nil
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	return 0, fmt.Errorf("no leader within 30 s: %w", last)
}

// agreeWithin is how long servers may take to apply what is committed; a variable for tests.
var agreeWithin = 20 * time.Second

// agree checks that what was measured was replication: all servers have applied the same commands.
func agree(nodes []Node, deadline time.Time) error {
	for {
		count, sum := nodes[0].Applied()
		same := true
		for _, n := range nodes[1:] {
			c, s := n.Applied()
			same = same && c == count && s == sum
		}
		if same && count > 0 {
			return nil
		}
		if time.Now().After(deadline) {
			var b strings.Builder
			for _, n := range nodes {
				c, s := n.Applied()
				fmt.Fprintf(&b, " %d/%08x", c, s)
			}
			return fmt.Errorf("servers do not agree %v after the load ended: commands applied and their checksums are%s", agreeWithin, b.String())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// serve runs one server, whose only client proposes while it leads.
func serve(lib Library, job Job, dec *json.Decoder, emit func(Output)) error {
	n, err := startOne(lib, job, job.Server-1)
	if err != nil {
		return err
	}
	var done atomic.Bool
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		keepProposing(n, job.Server, &done, emit)
	}()
	rest := func() {
		done.Store(true)
		<-finished
	}
	obey(n, job.Dir, dec, rest, emit)
	rest()
	return n.Close()
}

// obey carries out commands until the parent closes its end. rest ends what else proposes. A command that fails prints an error.
func obey(n Node, dir string, dec *json.Decoder, rest func(), emit func(Output)) {
	var stop chan struct{}
	var running sync.WaitGroup
	for {
		var c Command
		if dec.Decode(&c) != nil {
			break
		}
		if c.Stop {
			close(stop)
			continue
		}
		if c.Measure != nil {
			stop = make(chan struct{})
		}
		until := stop
		running.Go(func() {
			o, err := carryOut(n, dir, c, until, rest)
			if err != nil {
				o = Output{Error: err.Error()}
			}
			emit(o)
		})
	}
	running.Wait()
}

// commandLimit bounds a command that could hang.
const commandLimit = 2 * time.Minute

func carryOut(n Node, dir string, c Command, stop <-chan struct{}, rest func()) (o Output, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	began := time.Now()
	switch {
	case c.Measure != nil:
		rest()
		s := measure(context.Background(), n, dir, *c.Measure, stop)
		return Output{Sample: &s}, nil
	case c.Fill != nil:
		rest()
		filled, err := fill(n, *c.Fill)
		return Output{Filled: &filled}, err
	case c.Progress:
		p := &Progress{Leads: n.IsLeader()}
		p.Applied, p.Sum = n.Applied()
		if r, ok := n.(interface{ Restored() uint64 }); ok {
			p.Restored = r.Restored()
		}
		if t, ok := n.(Termed); ok {
			p.Term = t.Term()
		}
		return Output{Progress: p}, nil
	case c.Memory:
		return Output{Memory: readMemory()}, nil
	case c.Rest:
		rest()
	case c.Snapshot:
		s, ok := n.(Snapshotter)
		if !ok {
			return o, fmt.Errorf("take a snapshot: %w", ErrNotSupported)
		}
		if err := s.Snapshot(ctx); err != nil {
			return o, fmt.Errorf("take a snapshot: %w", err)
		}
	case c.Add != nil:
		g, ok := n.(Grower)
		if !ok {
			return o, fmt.Errorf("add a server: %w", ErrNotSupported)
		}
		if err := g.Add(ctx, c.Add.Server-1, c.Add.Address); err != nil {
			return o, fmt.Errorf("add a server: %w", err)
		}
	default:
		return o, errors.New("a command that nobody knows")
	}
	took := time.Since(began)
	return Output{Done: &took}, nil
}

// keepProposing reports the first commit after each time that the server did not lead.
func keepProposing(n Node, server int, done *atomic.Bool, emit func(Output)) {
	leading := false
	cmd := make([]byte, 256)
	for !done.Load() {
		if !n.IsLeader() {
			leading = false
			time.Sleep(200 * time.Microsecond)
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		err := n.Propose(ctx, cmd)
		cancel()
		if err == nil && !leading {
			leading = true
			emit(Output{Commit: &Commit{Server: server, At: time.Now().UnixNano()}})
		}
	}
}

// versions looks up which versions of the modules this program was built with.
func versions(modules []string) (out []string) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return modules
	}
	for _, m := range modules {
		i := slices.IndexFunc(info.Deps, func(d *debug.Module) bool { return d.Path == m })
		switch {
		case i < 0:
			out = append(out, m)
		case info.Deps[i].Replace != nil:
			out = append(out, m+" (this tree)")
		default:
			out = append(out, m+" "+info.Deps[i].Version)
		}
	}
	return out
}
