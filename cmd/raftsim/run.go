package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/steadyraft/raft/raftsim"
)

// run is one call of "raftsim run".
type run struct {
	stdout, stderr io.Writer
	interrupted    chan os.Signal // many listens to it while seeds run

	opts     raftsim.Options
	limit    time.Duration
	seed     uint64
	verbose  bool
	coverage bool
	shrink   bool
	hashes   bool
	resume   string // the file
	faults   string // as given
}

func (r *run) parse(args []string) error {
	f := flag.NewFlagSet("raftsim run", flag.ContinueOnError)
	f.SetOutput(r.stderr)
	f.IntVar(&r.opts.Seeds, "seeds", 0, "how many seeds; 0: as many as fit into -for")
	f.DurationVar(&r.limit, "for", 30*time.Second, "how long, if -seeds is not set")
	f.IntVar(&r.opts.Parallel, "j", runtime.GOMAXPROCS(0), "seeds at the same time")
	f.Uint64Var(&r.opts.FirstSeed, "first", 1, "the first seed")
	f.StringVar(&r.resume, "resume", "", "go on where the run that this file remembers has stopped, and keep the file up to date; it may be missing")
	f.Uint64Var(&r.seed, "seed", 0, "simulate this one seed")
	f.BoolVar(&r.verbose, "v", false, "with -seed: print the whole story")
	f.StringVar(&r.opts.Only, "only", "", "with -seed: what a report has found to be enough, for instance \"servers 3, faults 7 12-14, calls 20\"")
	f.Uint64Var(&r.opts.Events, "events", 0, "with -seed: stop after so many events")
	f.BoolVar(&r.coverage, "coverage", false, "list all situations with how often they were reached")
	f.BoolVar(&r.hashes, "hashes", false, "print the trace hash of every seed, to compare two runs")
	f.BoolVar(&r.shrink, "shrink", true, "when a seed fails, look for the least with which it still does")
	f.IntVar(&r.opts.MaxServers, "servers", 0, "founding servers, drawn from -min-servers up to this; 0: 7")
	f.IntVar(&r.opts.MinServers, "min-servers", 0, "founding servers, at least; 0: 1")
	f.IntVar(&r.opts.MaxFaulty, "max-faulty", 0, "servers that are down, stand still or have a bad disk at the same time; 0: any number")
	f.StringVar(&r.faults, "faults", "", "what may go wrong, separated by commas; none, or empty for all of\n"+strings.Join(raftsim.FaultNames(), ","))
	if err := f.Parse(args); err != nil {
		return err
	}
	var problems []error
	if f.NArg() > 0 {
		problems = append(problems, fmt.Errorf("unexpected arguments %q", f.Args()))
	}
	if r.limit <= 0 {
		problems = append(problems, fmt.Errorf("-for %v: want more than nothing", r.limit))
	}
	set := map[string]bool{}
	f.Visit(func(f *flag.Flag) { set[f.Name] = true })
	for _, name := range []string{"v", "only", "events"} {
		if set[name] && r.seed == 0 {
			problems = append(problems, fmt.Errorf("-%s belongs to one seed: set -seed", name))
		}
	}
	for _, name := range []string{"seeds", "for", "first", "resume", "hashes"} {
		if set[name] && r.seed != 0 {
			problems = append(problems, fmt.Errorf("-%s belongs to many seeds: leave out -seed", name))
		}
	}
	if r.resume != "" && (set["first"] || r.hashes) {
		problems = append(problems, errors.New("-resume says itself which seed is the first, and keeps no hashes: leave out -first and -hashes"))
	}
	for _, name := range strings.FieldsFunc(r.faults, func(c rune) bool { return c == ',' }) {
		fault, err := raftsim.NoFaults, error(nil)
		if name != "none" {
			fault, err = raftsim.ParseFault(name)
		}
		r.opts.Faults |= fault
		problems = append(problems, err)
	}
	return errors.Join(append(problems, r.opts.Validate())...)
}

// one simulates one seed.
func (r *run) one() int {
	var story func(string)
	if r.verbose {
		story = func(line string) { say(r.stdout, "%s\n", line) }
	}
	s := raftsim.RunSeed(r.opts, r.seed, story)
	say(r.stdout, "seed %d: %d events, %v simulated, %d calls of clients, %d faults, trace hash %016x\n",
		s.Seed, s.Events, s.Simulated, s.Calls, s.Faults, s.Hash)
	if r.coverage {
		say(r.stdout, "%s", s.Coverage.String())
	}
	if s.Err == nil {
		return 0
	}
	if r.verbose {
		say(r.stdout, "%v\n", s.Err)
	} else {
		say(r.stdout, "%s", raftsim.Explain(r.opts, r.seed))
	}
	return 1
}

// many simulates seeds until there were enough or somebody interrupts it, and says every second how far it is.
func (r *run) many() int {
	start := time.Now()
	shown := start
	done, err := r.load()
	if err != nil {
		say(r.stderr, "raftsim: %v\n", err)
		return 2
	}
	if done.Seeds > 0 {
		say(r.stdout, "so far: %s\n", done.report().String())
	}
	if r.opts.Seeds > 0 && done.Seeds >= uint64(r.opts.Seeds) {
		return r.summary(done)
	}
	took := done.Took
	r.opts.FirstSeed = done.Next
	if r.opts.Seeds > 0 {
		r.opts.Seeds -= int(done.Seeds)
	}
	signal.Notify(r.interrupted, os.Interrupt)
	hashes := map[uint64]uint64{}
	var saveErr error
	stop := false
	r.opts.Observe = func(s raftsim.Result) {
		done.add(s)
		if r.hashes {
			hashes[s.Seed] = s.Hash
		}
		select {
		case <-r.interrupted:
			say(r.stderr, "interrupted: the seeds that have begun are finished; once more ends at once\n")
			signal.Stop(r.interrupted) // from now on it is the shell's business
			stop = true
		default:
		}
		if now := time.Now(); now.Sub(shown) >= time.Second {
			shown = now
			done.Took = took + now.Sub(start)
			say(r.stderr, "%v: %s\n", now.Sub(start).Round(time.Second), done.report().String())
			saveErr = errors.Join(saveErr, r.save(done))
		}
	}
	raftsim.Each(r.opts, func(p *raftsim.Report) bool {
		return stop || saveErr != nil || len(p.Failures) > 0 || r.opts.Seeds == 0 && time.Since(start) >= r.limit
	})
	signal.Stop(r.interrupted) // what follows may be interrupted as any program may
	done.Took = took + time.Since(start)
	for _, seed := range slices.Sorted(maps.Keys(hashes)) {
		say(r.stdout, "seed %d %016x\n", seed, hashes[seed])
	}
	if err := errors.Join(saveErr, r.save(done)); err != nil {
		say(r.stderr, "raftsim: %v\n", err)
		r.summary(done)
		return 2
	}
	return r.summary(done)
}

// summary says what became of all seeds, and how to go on.
func (r *run) summary(done *state) int {
	report := done.report()
	say(r.stdout, "%s\n", report.String())
	if r.coverage {
		say(r.stdout, "%s", report.Coverage.String())
	} else if missing := report.Coverage.Missing(); len(missing) > 0 {
		say(r.stdout, "never reached: %s\n", strings.Join(missing, ", "))
	}
	if r.resume != "" {
		say(r.stdout, "continue with -resume %s (seed %d)\n", r.resume, done.Next)
	} else {
		say(r.stdout, "continue with -first %d\n", done.Next)
	}
	if len(done.Failures) == 0 {
		return 0
	}
	for _, f := range done.Failures {
		say(r.stdout, "seed %d fails: %s\n", f.Seed, f.Error)
	}
	if r.shrink {
		say(r.stdout, "%s", raftsim.Explain(r.opts, done.Failures[0].Seed))
	}
	return 1
}
