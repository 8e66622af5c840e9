package explore

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Main is the command "raftsim explore". It returns the exit code: 0 if no promise was broken, 1 if one was, 2 if the arguments make no
// sense. An interrupt ends it early; what was seen by then counts.
func Main(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return command(ctx, args, os.Stdout, os.Stderr)
}

func command(ctx context.Context, args []string, out, complaints io.Writer) int {
	flags := flag.NewFlagSet("explore", flag.ContinueOnError)
	flags.SetOutput(complaints)
	name := flags.String("world", "", "explore only the world of this name")
	large := flags.Bool("large", false, "explore the large worlds too")
	limit := flags.Duration("for", time.Minute, "stop after so long; a world gets an equal share of what is left when it begins")
	states := flags.Int("states", 0, "stop each world after so many states; 0: 50 million")
	every := flags.Int("every", 1_000_000, "say how far a world is every so many states")
	parallel := flags.Int("j", runtime.GOMAXPROCS(0), "worlds at the same time")
	list := flags.Bool("list", false, "list the worlds and explore none")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if flags.NArg() > 0 || *limit <= 0 || *states < 0 || *parallel < 1 || *every < 1 {
		fmt.Fprintln(complaints, "explore: it takes flags only: -for, -j and -every are positive, -states is not negative")
		return 2
	}
	worlds := Small()
	if *large || *name != "" {
		worlds = append(worlds, Large()...)
	}
	if *name != "" {
		worlds = slices.DeleteFunc(worlds, func(w World) bool { return w.Name != *name })
	}
	if len(worlds) == 0 {
		fmt.Fprintf(complaints, "explore: there is no world %q; -list -large names them\n", *name)
		return 2
	}
	if *list {
		for i := range worlds {
			fmt.Fprint(out, heading(&worlds[i]))
		}
		return 0
	}
	t := tour{worlds: worlds, limit: *limit, states: *states, every: *every, parallel: *parallel, out: out, complaints: complaints}
	return t.run(ctx)
}

func heading(w *World) string { return fmt.Sprintf("%s: %s\n  %v\n", w.Name, w.Covers, w) }

// tour explores several worlds at the same time and reports them in their order.
type tour struct {
	worlds          []World
	limit           time.Duration
	states, every   int
	parallel        int
	out, complaints io.Writer

	mu    sync.Mutex // for complaints and begun
	begun int        // worlds
	ends  time.Time
}

type visit struct {
	r   Result
	err error
}

func (t *tour) run(ctx context.Context) int {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	start := time.Now()
	t.ends = start.Add(t.limit)
	visits := make([]chan visit, len(t.worlds))
	for i := range visits {
		visits[i] = make(chan visit, 1)
	}
	var workers sync.WaitGroup
	for range min(t.parallel, len(t.worlds)) {
		workers.Go(func() {
			for i, share := t.next(); i >= 0; i, share = t.next() {
				visits[i] <- t.explore(ctx, t.worlds[i], share)
			}
		})
	}
	code, sum := t.report(visits, stop)
	workers.Wait()
	if code == 0 {
		took := time.Since(start)
		fmt.Fprintf(t.out, "no promise was broken in %d worlds, %d of them exhausted: %d states, %d steps, %v, %.0f states/s, %d bytes kept for a state\n",
			len(t.worlds), sum.exhausted, sum.States, sum.Steps, took.Round(time.Millisecond), float64(sum.States)/took.Seconds(), sum.Bytes/sum.States)
		fmt.Fprintf(t.out, "events: %s\nmessages delivered: %s\n", counts(Kinds(), sum.Events), counts(MessageKinds(), sum.Messages))
	}
	return code
}

func counts(names []string, of map[string]int) string {
	var words []string
	for _, name := range names {
		words = append(words, fmt.Sprintf("%s %d", name, of[name]))
	}
	return strings.Join(words, ", ")
}

// next takes a world and its share of the time that is left; -1: there is none left.
func (t *tour) next() (world int, share time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	waiting := len(t.worlds) - t.begun
	if waiting == 0 {
		return -1, 0
	}
	t.begun++
	left := max(0, time.Until(t.ends))
	return t.begun - 1, min(left, left*time.Duration(t.parallel)/time.Duration(waiting))
}

// explore explores one world; to run out of time is no error.
func (t *tour) explore(ctx context.Context, w World, share time.Duration) visit {
	ctx, cancel := context.WithTimeout(ctx, share)
	defer cancel()
	r, err := Run(ctx, w, Options{MaxStates: t.states, Every: t.every, Progress: func(r Result) {
		t.mu.Lock()
		defer t.mu.Unlock()
		fmt.Fprintf(t.complaints, "%s: %v ...\n", w.Name, r)
	}})
	if ctx.Err() != nil {
		err = nil
	}
	return visit{r, err}
}

// report prints what was seen, world by world, and adds it up. A broken promise ends everything.
func (t *tour) report(visits []chan visit, stop func()) (code int, sum total) {
	sum = newTotal()
	for i := range visits {
		v := <-visits[i]
		if code != 0 {
			continue
		}
		if v.err != nil {
			fmt.Fprintf(t.complaints, "explore: %v\n", v.err)
			code = 2
			stop()
			continue
		}
		fmt.Fprint(t.out, heading(&t.worlds[i]))
		if v.r.Violation != nil {
			fmt.Fprintf(t.out, "  VIOLATION %v\n\n%s", v.r.Violation, v.r.Violation.Script)
			code = 1
			stop()
			continue
		}
		fmt.Fprintf(t.out, "  %v\n", v.r)
		sum.add(&v.r)
	}
	return code, sum
}

// total adds up what was seen in several worlds.
type total struct {
	Result
	exhausted int // worlds
}

func newTotal() total {
	return total{Result: Result{Events: map[string]int{}, Messages: map[string]int{}, Seen: map[string]int{}}}
}

func (s *total) add(r *Result) {
	s.States += r.States
	s.Steps += r.Steps
	s.Bytes += r.Bytes
	if r.Exhausted {
		s.exhausted++
	}
	for _, part := range []struct{ to, from map[string]int }{{s.Events, r.Events}, {s.Messages, r.Messages}, {s.Seen, r.Seen}} {
		for name, n := range part.from { // sums, in any order
			part.to[name] += n
		}
	}
}

// String says what was seen, in one line.
func (r Result) String() string {
	verdict := "the bound is exhausted"
	if !r.Exhausted {
		verdict = "the bound is not exhausted"
	}
	rate := 0.0
	if r.Took > 0 {
		rate = float64(r.States) / r.Took.Seconds()
	}
	return fmt.Sprintf("%d states, %d steps, depth %d, %v, %.0f states/s, %d bytes kept for a state: %s", r.States, r.Steps, r.Depth,
		r.Took.Round(time.Millisecond), rate, r.Bytes/max(1, r.States), verdict)
}
