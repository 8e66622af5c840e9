package raftsim

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/steadyraft/raft"
)

// Explain runs a seed that fails and returns a report: the seed, what is broken, the least with which something still breaks (servers,
// faults, calls of clients), the shortest prefix of events that does it, and the end of that story. If the seed does not fail, it says so.
func Explain(o Options, seed uint64) string {
	o = o.withDefaults()
	p, _ := parsePlan(o.Only) // valid
	full, _ := runPlan(o, seed, p, nil)
	if full.Err == nil {
		return fmt.Sprintf("raftsim: seed %d keeps every promise (trace hash %016x)\n", seed, full.Hash)
	}
	return explain(o, full)
}

// explain is Explain for a seed that has failed.
func explain(o Options, full Result) string {
	var b strings.Builder
	fmt.Fprintf(&b, "raftsim: seed %d breaks a promise after %d events, %v simulated:\n%v\n", full.Seed, full.Events, round(full.Simulated), full.Err)
	if full.diverged {
		fmt.Fprint(&b, narrowDown(o, full.Seed))
	}
	less, tries := shrink(o, full)
	short, w := runPlan(o, full.Seed, less, nil)
	if short.Err == nil { // what is simulated is not deterministic
		fmt.Fprintf(&b, "\nThe same seed kept every promise when it was run again: the state machine or the workload depends on something else\n"+
			"than its inputs (a clock, a random generator, the order of a map, a global variable).\n")
		return b.String()
	}
	fmt.Fprintf(&b, "\nOf %d faults and %d calls of clients these are enough, with %d servers (found in %d runs):\n",
		full.Faults, full.Calls, w.knobs.founders, tries)
	for _, f := range w.faultLog {
		fmt.Fprintf(&b, "  %.*s\n", traceWidth, f)
	}
	fmt.Fprintf(&b, "  and the first %d calls\n", short.Calls)
	if what := firstLine(short.Err); what != firstLine(full.Err) {
		fmt.Fprintf(&b, "\nWith them it breaks like this:\n%s\n", what)
	}
	events := shortestPrefix(o, less, short)
	if events > 0 {
		fmt.Fprintf(&b, "\nThe first %d events are enough; with one less every promise is kept.\n", events)
		o.Events = events
	} else {
		fmt.Fprintf(&b, "\nIt shows only when everything is over, after %d events.\n", short.Events)
	}
	var story tail
	w = newWorld(o, full.Seed, less)
	w.trace.lines, w.trace.brief = brief(short.Err, story.add), true
	w.run()
	fmt.Fprintf(&b, "\nThe end of that story (%s; without heartbeats that say nothing new):\n%s", whose(short.Err), story.String())
	flags := fmt.Sprintf("-seed %d -only %q", full.Seed, less.String())
	if events > 0 {
		flags += fmt.Sprintf(" -events %d", events)
	}
	fmt.Fprintf(&b, "\nAgain: Options.FirstSeed %d, Seeds 1, and for the short story\n  Only: %q, Events: %d\n"+
		"or, for the built-in workload:\n  go run ./cmd/raftsim run %s -v\n", full.Seed, less.String(), events, flags)
	return b.String()
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// narrowTries is how often a seed is run to find the one command behind which states differ. A state machine that looks at a clock or at
// the order of a map need not go wrong at the same place again, nor go wrong at all.
const narrowTries = 5

// narrowDown runs a seed whose states diverge again, and compares them behind every single command.
func narrowDown(o Options, seed uint64) string {
	p, _ := parsePlan(o.Only) // valid
	p.alone = true
	for range narrowTries {
		if r, _ := runPlan(o, seed, p, nil); r.diverged {
			return fmt.Sprintf("\nWith every command applied alone:\n%v\n", r.Err)
		}
	}
	return ""
}

// shortestPrefix finds how many events are needed. A promise that an event breaks stops the run with that event. That a history is not
// linearizable shows at the end, but is decided earlier: once it is not, whatever follows does not mend it. 0: no prefix will do,
// because it is broken only by what has not happened when everything is over.
func shortestPrefix(o Options, p plan, short Result) uint64 {
	fails := func(events uint64) bool {
		o.Events = events
		r, _ := runPlan(o, short.Seed, p, nil)
		return r.Err != nil
	}
	lo, hi := uint64(1), short.Events
	switch {
	case !fails(hi):
		return 0
	case hi == 1 || !fails(hi-1):
		return hi
	}
	for lo < hi {
		if mid := (lo + hi) / 2; fails(mid) {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo
}

var serverName = regexp.MustCompile(`\bn\d+\b`)

// concerned lists the servers that a failure names; none: all.
func concerned(err error) []string {
	ids := serverName.FindAllString(firstLine(err), -1)
	slices.Sort(ids)
	return slices.Compact(ids)
}

func whose(err error) string {
	if ids := concerned(err); len(ids) > 0 {
		return "what happened at " + strings.Join(ids, ", ")
	}
	return "what happened at all servers"
}

// brief passes on the lines of a story that have to do with a failure: messages, changes of roles and logs of the servers that it names,
// and the faults; what clients do, if it is about them.
func brief(err error, to func(string)) func(string) {
	ids := concerned(err)
	aboutClients := strings.Contains(err.Error(), "client") || strings.Contains(err.Error(), "inv 16")
	return func(line string) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		who, what, _ := strings.Cut(rest, " ")
		what = strings.TrimSpace(what)
		switch {
		case strings.HasPrefix(what, "client"):
			if !aboutClients {
				return
			}
		case strings.HasPrefix(what, "durable:"):
			return
		case who != "--" && len(ids) > 0 && !slices.Contains(ids, who):
			return
		}
		to(line)
	}
}

// routine reports whether a message tells its receiver nothing new: heartbeats of the leader that it follows, with no news of what is
// committed, and answers that repeat themselves or have lost their leader.
func (v *server) routine(m *raft.Message) bool {
	switch b := m.Body.(type) {
	case raft.AppendEntries:
		return len(b.Entries) == 0 && v.leader == m.From && v.term == m.Term && b.LeaderCommit <= v.commit
	case raft.AppendEntriesReply:
		h := v.memory.heardOf(v.w.server(m.From).position)
		return m.Term <= v.term && v.role != raft.Leader || b.Success && v.term == m.Term && h.matchTerm == m.Term && b.MatchIndex <= h.match
	}
	return false
}

// Bounds of shrinking: it is an aid, not a proof.
const (
	shrinkRuns = 500
	shrinkTime = 20 * time.Second
)

// shrink looks for less with which a seed still fails, in whatever way: first fewer servers, but no fewer than the options ask for; then
// the shortest prefix of faults, by bisection; then it leaves out what it can within the prefix, in ever smaller pieces, until no
// single one can go; then it heals everything earlier; then it does without the last calls of clients. None of it is sure to find the
// least, since leaving out something changes all that follows.
func shrink(o Options, full Result) (less plan, tries int) {
	deadline := time.Now().Add(shrinkTime)
	spent := func() bool { return tries >= shrinkRuns || time.Now().After(deadline) }
	run := func(p plan) Result {
		tries++
		r, _ := runPlan(o, full.Seed, p, nil)
		return r
	}
	fails := func(p plan) bool { return run(p).Err != nil }

	less, _ = parsePlan(o.Only) // valid
	drawn, calls := full.Faults, full.Calls
	for n := o.MinServers; less.servers == 0 && n < o.MaxServers && !spent(); n++ {
		p := less
		p.servers = n
		if r := run(p); r.Err != nil {
			less, drawn, calls = p, r.Faults, r.Calls
			break
		}
	}
	if !less.some {
		n := bisect(0, drawn, spent, func(n int) bool {
			p := firstFaults(n)
			p.servers, p.calls = less.servers, less.calls
			return fails(p)
		})
		p := firstFaults(n)
		p.servers, p.calls = less.servers, less.calls
		less = p
	}
	last := 0
	for _, s := range less.faults {
		last = max(last, s.to)
	}
	for size := (last + 1) / 2; size >= 1 && !spent(); {
		again := false
		for from := 0; from < last && !spent(); from += size {
			if p, ok := less.without(from, from+size); ok && fails(p) {
				less, again = p, true
			}
		}
		if size > 1 || !again { // what was needed may no longer be, now that something else is gone
			size /= 2
		}
	}
	if p := less; p.heal == 0 {
		if p.heal = int(o.FaultTime / time.Millisecond); fails(p) {
			less = p
			less.heal = bisect(1, p.heal, spent, func(ms int) bool {
				p.heal = ms
				return fails(p)
			})
		}
	}
	if r := run(less); r.Err != nil {
		calls = r.Calls
	}
	less.calls = bisect(1, max(calls, 1), spent, func(n int) bool {
		p := less
		p.calls = n
		return fails(p)
	})
	return less, tries
}

// bisect finds the least n for which it fails, as if all above failed too; it does at hi.
func bisect(lo, hi int, spent func() bool, fails func(n int) bool) int {
	for lo < hi && !spent() {
		if mid := (lo + hi) / 2; fails(mid) {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return hi
}
