package mutants

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Options says how mutants are run.
type Options struct {
	Root     string               // of the checkout, see Root
	Parallel int                  // mutants at the same time; 0: the number of cores
	All      bool                 // run every stage, even behind one that noticed, and those too slow for every day
	Stage    *regexp.Regexp       // with All: only the stages whose names match
	Alone    bool                 // a build for every mutant, not one for all
	Verify   int                  // run so many mutants both ways and compare
	Limit    time.Duration        // start no mutant later than that; 0: run all
	Progress func(line string)    // is told what has ended; nil: nobody is
	broad    func(string) []stage // instead of stagesOf
	least    time.Duration        // instead of leastTest and leastStage
}

// env is what the processes get besides the environment of this one: between them they have the cores once.
func (o *Options) env() []string {
	return []string{"GOMAXPROCS=" + strconv.Itoa(max(1, runtime.NumCPU()/o.Parallel))}
}

func (o *Options) say(format string, args ...any) {
	if o.Progress != nil {
		o.Progress(fmt.Sprintf(format, args...))
	}
}

// Verdict is what became of a mutant.
type Verdict int

const (
	NotRun     Verdict = iota // the time was up, or the run was interrupted
	Killed                    // by its test, if it has one, else by a broad stage
	Equivalent                // nothing noticed, as argued
	Survived                  // nothing noticed, and something must
	Wrong                     // the row is: it does not compile, it does not fit the source, or something else notices than it says
)

// Outcome is what became of one mutant.
type Outcome struct {
	Mutant  Mutant
	Verdict Verdict
	Hung    bool   // what noticed did not end in time
	By      string // what noticed first
	How     string // it failed, in a line
	Problem string // of a wrong row
	Took    time.Duration

	stages []string // names of the stages
	seen   []result // what they said, as far as they were run
}

// Report is what became of the mutants that were given, in their order.
type Report struct {
	Outcomes []Outcome
	Took     time.Duration
	all      bool // who else notices was asked
	narrowed bool // of some stages only
}

// runner runs mutants.
type runner struct {
	o      Options
	tmp    string
	limits map[string]time.Duration // by stage.key
	stop   func() bool              // start no more

	// The build with many mutants in it. Those that are not in it have builds of their own.
	bins    map[string]string // by package
	numbers map[string]int    // by mutant
}

func newRunner(o Options) (*runner, error) {
	if o.Parallel == 0 {
		o.Parallel = runtime.NumCPU()
	}
	tmp, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return nil, err
	}
	start := time.Now()
	stop := func() bool { return o.Limit > 0 && time.Since(start) >= o.Limit }
	return &runner{o: o, tmp: tmp, limits: map[string]time.Duration{}, stop: stop}, nil
}

func (r *runner) close() { _ = os.RemoveAll(r.tmp) } // of a temporary directory; what stays is the system's to clean

// Run runs mutants against their stages, after it has seen all of these pass on the unchanged tree. An error means that nothing can
// be said; what the mutants did is in the report.
func Run(ctx context.Context, rows []Mutant, o Options) (Report, error) {
	start := time.Now()
	if err := checkTable(rows); err != nil {
		return Report{}, err
	}
	r, err := newRunner(o)
	if err != nil {
		return Report{}, err
	}
	defer r.close()
	if err := r.baseline(ctx, rows, r.stagesOfRows(rows)); err != nil {
		return Report{}, err
	}
	report := Report{Outcomes: make([]Outcome, len(rows)), all: o.All, narrowed: o.Stage != nil}
	var mu sync.Mutex
	done := 0
	order, verified := slowLast(rows), r.toVerify(rows)
	for i := range rows {
		report.Outcomes[i].Mutant = rows[i]
	}
	r.each(len(rows), func(i int) {
		i = order[i]
		out := &report.Outcomes[i]
		if ctx.Err() != nil || r.stop() {
			return
		}
		number := r.numbers[rows[i].Name]
		r.row(ctx, out, number)
		if number != 0 && verified[i] {
			r.verify(ctx, out)
		}
		if ctx.Err() != nil {
			*out = Outcome{Mutant: rows[i]} // it was interrupted, which is no verdict
			return
		}
		mu.Lock()
		defer mu.Unlock()
		done++
		r.o.say("%d/%d %s: %s, %.1f s", done, len(rows), rows[i].Name, out.verdict(), out.Took.Seconds())
	})
	report.Took = time.Since(start)
	return report, ctx.Err()
}

// slowLast is the order in which rows are run: those that nothing notices run every stage to its end.
func slowLast(rows []Mutant) (order []int) {
	for i := range rows {
		order = append(order, i)
	}
	slices.SortStableFunc(order, func(a, b int) int {
		slow := func(i int) int { return min(len(rows[i].Equivalent), 1) }
		return cmp.Compare(slow(a), slow(b))
	})
	return order
}

// toVerify picks rows of the build with all mutants, scattered over the table, others from day to day.
func (r *runner) toVerify(rows []Mutant) map[int]bool {
	picked := map[int]bool{}
	var in []int
	for i := range rows {
		if r.numbers[rows[i].Name] != 0 {
			in = append(in, i)
		}
	}
	day := time.Now().Format(time.DateOnly)
	slices.SortFunc(in, func(a, b int) int { return cmp.Compare(mix(rows[a].Name, day), mix(rows[b].Name, day)) })
	for _, i := range in[:min(len(in), r.o.Verify)] {
		picked[i] = true
	}
	return picked
}

// verify runs a mutant once more, in a build of its own, which must give the same verdict. Which subtest notices first may differ.
func (r *runner) verify(ctx context.Context, out *Outcome) {
	alone := Outcome{Mutant: out.Mutant}
	r.row(ctx, &alone, 0)
	if alone.Verdict != out.Verdict {
		out.Problem = fmt.Sprintf("the build with all mutants says %s, a build of its own says %s\n%s\n%s", out.verdict(), alone.verdict(), out.Problem, alone.Problem)
		out.Verdict = Wrong
	}
}

// each calls f for 0 to n-1, some at the same time.
func (r *runner) each(n int, f func(i int)) {
	var wg sync.WaitGroup
	next := make(chan int)
	for range min(n, r.o.Parallel) {
		wg.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

func (r *runner) stagesOfRows(rows []Mutant) (all []stage) {
	for i := range rows {
		all = append(all, r.o.stages(&rows[i])...)
	}
	return all
}

// baseline builds the tree with all the rows in it that fit, and runs every stage once with none of them chosen: what fails there
// proves nothing about a mutant. It also measures how long the stages may take.
func (r *runner) baseline(ctx context.Context, rows []Mutant, all []stage) error {
	var stages []stage
	var packages []string
	seen := map[string]bool{}
	for _, s := range all {
		if !seen[s.key()] {
			seen[s.key()] = true
			stages = append(stages, s)
			packages = append(packages, s.pkg)
		}
	}
	slices.Sort(packages)
	packages = slices.Compact(packages)
	if err := r.buildAll(ctx, rows, packages); err != nil {
		return fmt.Errorf("the unchanged tree is broken: %w", err)
	}
	r.o.say("the unchanged tree: %d packages, %d runs of tests", len(packages), len(stages))
	var mu sync.Mutex
	var problems []error
	r.each(len(stages), func(i int) {
		s := stages[i]
		res := r.test(ctx, r.bins[s.pkg], 0, s, cleanTime)
		mu.Lock()
		defer mu.Unlock()
		r.limits[s.key()] = max(r.least(s), slower*res.took)
		if s.name != ownTest {
			r.o.say("the unchanged tree: %s, %.1f s", s.name, res.took.Seconds())
		}
		if res.ending != passed {
			problems = append(problems, fmt.Errorf("%s %s: %s\n%s", s.pkg, s.run, res.how, res.out))
		}
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("these tests do not pass on the unchanged tree, so they can prove nothing about mutants: %w", err)
	}
	return nil
}

// buildAll builds the tests of packages with all the rows in them that fit.
func (r *runner) buildAll(ctx context.Context, rows []Mutant, packages []string) error {
	start := time.Now()
	if r.o.Alone {
		rows = nil
	}
	all, alone := newSwitchBuild(r.o.Root, rows)
	list, dropped, err := all.settle(ctx, r, r.tmp)
	if err != nil {
		return err
	}
	maps.Copy(alone, dropped)
	for _, m := range rows {
		if why := alone[m.Name]; why != nil {
			r.o.say("a build of its own for %s: %v", m.Name, why)
		}
	}
	var mu sync.Mutex
	var problems []error
	r.numbers, r.bins = all.numbers, map[string]string{}
	r.each(len(packages), func(i int) {
		bin, err := r.build(ctx, packages[i], list, r.tmp)
		mu.Lock()
		defer mu.Unlock()
		r.bins[packages[i]] = bin
		problems = append(problems, err)
	})
	r.o.say("%d packages with %d mutants in one build, %.1f s", len(packages), len(r.numbers), time.Since(start).Seconds())
	return errors.Join(problems...)
}

// least is the shortest bound of a stage.
func (r *runner) least(s stage) time.Duration {
	switch {
	case r.o.least > 0:
		return r.o.least
	case s.name == ownTest:
		return leastTest
	default:
		return leastStage
	}
}

// row runs one mutant: in the build with all, where it has that number, or if that is 0 in its own.
func (r *runner) row(ctx context.Context, out *Outcome, number int) {
	start := time.Now()
	m := &out.Mutant
	err := r.against(ctx, m, number, r.o.stages(m), func(s stage, res result) (more bool) {
		out.stages, out.seen = append(out.stages, s.name), append(out.seen, res)
		return !res.noticed() || r.o.All
	})
	out.Took = time.Since(start)
	out.judge(err, r.o.Stage != nil)
}

// against runs a mutant's stages until it is told that there is no need for more.
func (r *runner) against(ctx context.Context, m *Mutant, number int, stages []stage, tell func(stage, result) (more bool)) error {
	built := func(pkg string) (bin string, err error) { return r.bins[pkg], nil }
	if number == 0 {
		dir, err := os.MkdirTemp(r.tmp, "")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir) //nolint:errcheck // it lies in r.tmp, which is removed too
		list, err := overlay(r.o.Root, dir, m)
		if err != nil {
			return err
		}
		bins := map[string]string{}
		built = func(pkg string) (bin string, err error) {
			if bins[pkg] == "" {
				bins[pkg], err = r.build(ctx, pkg, list, dir)
			}
			return bins[pkg], err
		}
	}
	for _, s := range stages {
		bin, err := built(s.pkg)
		if err != nil {
			return err
		}
		res := r.test(ctx, bin, number, s, r.limits[s.key()])
		if res.ending == broken {
			return fmt.Errorf("%s: %s\n%s", s.name, res.how, res.out)
		}
		if !tell(s, res) {
			break
		}
	}
	return nil
}

// judge gives the verdict. A row is a claim, about the test that notices or that none can; a claim that is not true is an error, even
// if the mutant dies.
func (out *Outcome) judge(err error, narrowed bool) {
	m := &out.Mutant
	first := slices.IndexFunc(out.seen, result.noticed)
	if first >= 0 {
		res := out.seen[first]
		out.By, out.How, out.Hung = by(out.stages[first], res.test), res.how, res.ending == hung
	}
	own := len(out.stages) > 0 && out.stages[0] == ownTest
	switch {
	case err != nil:
		out.Verdict, out.Problem = Wrong, err.Error()
	case m.Equivalent != "" && first >= 0:
		out.Verdict, out.Problem = Wrong, fmt.Sprintf("it is argued that nothing can notice, but %s does: %s\n%s", out.By, out.How, out.seen[first].out)
	case m.Equivalent != "":
		out.Verdict = Equivalent
	case first < 0:
		out.Verdict = Survived
	case own && first > 0 && !narrowed:
		out.Verdict, out.Problem = Wrong, fmt.Sprintf("%s is meant to notice and does not; %s does: %s", m.Test.Name, out.By, out.How)
	default:
		out.Verdict = Killed
	}
}

// by names what noticed: a test, and the stage unless it is the mutant's own.
func by(stage, test string) string {
	if test == "" {
		return stage
	}
	// The stages of one test each say more with the world that failed than with the test that all of them are in.
	if _, world, found := strings.Cut(test, "/"); found && strings.HasSuffix(stage, "worlds") {
		return stage + ": " + strings.ReplaceAll(world, "_", " ")
	}
	if stage == ownTest {
		return "`" + test + "`"
	}
	return stage + ": `" + test + "`"
}
