package raftsim

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// T is what Run needs of a *testing.T.
type T interface {
	Helper()
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Result is what became of one seed.
type Result struct {
	Seed      uint64
	Hash      uint64        // of everything that happened; the same whenever the seed and the options are
	Events    uint64        // carried out
	Simulated time.Duration // from the start to convergence, or to the failure
	Calls     int           // of clients
	Faults    int           // drawn
	Coverage  Coverage
	Err       error // nil: every promise was kept

	atEnd    bool // Err was found in the checks at the end
	diverged bool // Err says that two states differ
}

// Report sums up many seeds.
type Report struct {
	Seeds     uint64
	Events    uint64
	Calls     uint64
	Simulated time.Duration
	Took      time.Duration // real
	Coverage  Coverage
	Failures  []Result // by seed, without those that came after the first ten
}

const maxFailures = 10

// Add counts one more seed.
func (r *Report) Add(s *Result) {
	if r.Coverage == nil {
		r.Coverage = Coverage{}
	}
	r.Seeds++
	r.Events += s.Events
	r.Calls += uint64(s.Calls)
	r.Simulated += s.Simulated
	for name, n := range s.Coverage {
		r.Coverage[name] += n
	}
	if s.Err != nil && len(r.Failures) < maxFailures {
		r.Failures = append(r.Failures, *s)
	}
}

// String is the summary in one line.
func (r *Report) String() string {
	sec := max(r.Took.Seconds(), 1e-9)
	return fmt.Sprintf("%d seeds (%.1f/s), %d events (%.0f/s), %d calls of clients, %.2f hours simulated (%.0f times real time), %d of %d situations, %d failures",
		r.Seeds, float64(r.Seeds)/sec, r.Events, float64(r.Events)/sec, r.Calls, r.Simulated.Hours(), r.Simulated.Seconds()/sec,
		len(situationNames)-len(r.Coverage.Missing()), len(situationNames), len(r.Failures))
}

// Run simulates many seeds and fails the test at the first (by number) that breaks a promise. The failure names the seed, what was
// broken, the fewest faults found with which something still breaks, the shortest prefix of events that does it, and the end of the
// story as a trace. It returns the report, for instance to look at the coverage.
func Run(t T, o Options) Report {
	t.Helper()
	if err := o.Validate(); err != nil {
		t.Fatalf("raftsim: these options make no sense:\n%v", err)
	}
	report := Each(o, o.withDefaults().endAfterSeeds())
	if len(report.Failures) > 0 {
		first := slices.MinFunc(report.Failures, func(a, b Result) int { return int(a.Seed) - int(b.Seed) })
		t.Fatalf("%s", explain(o.withDefaults(), first))
	}
	t.Logf("raftsim: %s", report.String())
	return report
}

func (o Options) endAfterSeeds() func(r *Report) bool {
	return func(r *Report) bool { return r.Seeds >= uint64(o.Seeds) || len(r.Failures) > 0 }
}

// Each runs one seed after another, several at the same time, until enough says so or Options.Seeds are done if that is set. A seed
// that has begun is finished. The options must be valid.
func Each(o Options, enough func(r *Report) bool) Report {
	limit := uint64(o.Seeds)
	o = o.withDefaults()
	start := time.Now()
	var (
		mu     sync.Mutex
		report Report
		next   = o.FirstSeed
		wg     sync.WaitGroup
	)
	take := func() (seed uint64, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		if limit > 0 && next-o.FirstSeed >= limit || enough(&report) {
			return 0, false
		}
		next++
		return next - 1, true
	}
	for range o.Parallel {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				seed, ok := take()
				if !ok {
					return
				}
				r := RunSeed(o, seed, nil)
				mu.Lock()
				report.Add(&r)
				report.Took = time.Since(start)
				if o.Observe != nil {
					o.Observe(r)
				}
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	slices.SortFunc(report.Failures, func(a, b Result) int { return int(a.Seed) - int(b.Seed) })
	return report
}

// RunSeed simulates one seed. trace, if it is not nil, receives the story line by line. The options must be valid.
func RunSeed(o Options, seed uint64, trace func(line string)) Result {
	p, _ := parsePlan(o.Only) // valid
	r, _ := runPlan(o.withDefaults(), seed, p, trace)
	return r
}

func runPlan(o Options, seed uint64, p plan, lines func(string)) (Result, *world) {
	w := newWorld(o, seed, p)
	w.trace.lines = lines
	w.run()
	return w.result(), w
}

func (w *world) result() Result {
	return Result{
		Seed: w.seed, Hash: w.trace.hash, Events: w.done, Simulated: w.now, Calls: len(w.clients.calls), Faults: w.drawn,
		Coverage: w.coverage(), Err: w.failure, atEnd: w.atEnd, diverged: w.diverge,
	}
}
