package raftsim

import (
	"flag"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

var (
	seeds     = flag.Int("seeds", 120, "seeds that TestSeeds simulates")
	firstSeed = flag.Uint64("first", 1, "the first of them")
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// enoughSeeds is how many seeds must have got into every situation. A continuous-integration run simulates as many.
const enoughSeeds = 12_000

// Every promise is kept by every seed, and the seeds get into every situation that has a name: one that is never reached is one of
// which the simulation proves nothing.
func TestSeeds(t *testing.T) {
	r := Run(t, Options{Seeds: *seeds, FirstSeed: *firstSeed})
	if *seeds >= enoughSeeds {
		require.Empty(t, r.Coverage.Missing())
	}
	require.Less(t, len(r.Coverage.Missing()), len(Situations())/2)
}

// SAFETY inv 31: the same seed gives the same story, on one processor or several, alone or beside others.
func TestSameSeedSameTrace(t *testing.T) {
	const n = 12
	hashes := func(procs, parallel int) map[uint64]uint64 {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
		found := map[uint64]uint64{}
		Each(Options{Seeds: n, Parallel: parallel, Observe: func(r Result) { found[r.Seed] = r.Hash }}, func(*Report) bool { return false })
		return found
	}
	alone := hashes(1, 1)
	require.Len(t, alone, n)
	require.Equal(t, alone, hashes(4, 4))
	require.Equal(t, alone, hashes(2, 1))
	different := map[uint64]bool{}
	for _, h := range alone {
		different[h] = true
	}
	require.Len(t, different, n, "seeds share a hash: it leaves something out")
}

// Nobody who reads the story changes it.
func TestTraceDoesNotChangeTheStory(t *testing.T) {
	for seed := uint64(1); seed <= 5; seed++ {
		lines := 0
		told := RunSeed(Options{}, seed, func(string) { lines++ })
		require.Equal(t, RunSeed(Options{}, seed, nil).Hash, told.Hash)
		require.Greater(t, lines, 100)
	}
}

// Without faults nobody is disturbed: a leader, all calls answered, a short run.
func TestNothingHappensWithoutFaults(t *testing.T) {
	Each(Options{Seeds: 10, Faults: NoFaults, Observe: func(r Result) {
		require.NoError(t, r.Err)
		require.Zero(t, r.Faults)
		require.Zero(t, r.Coverage["message lost"]+r.Coverage["leader crashed"]+r.Coverage["sync failed"])
	}}, func(*Report) bool { return false })
}

// Leaving out a fault changes nothing before that fault; without that no prefix of faults would mean anything.
func TestPrefixOfFaultsIsPrefixOfStory(t *testing.T) {
	story := func(limit int) (lines []string) {
		p := firstFaults(limit)
		if limit < 0 {
			p = plan{}
		}
		runPlan(Options{}.withDefaults(), 7, p, func(l string) { lines = append(lines, l) })
		return lines
	}
	all := story(-1)
	for _, limit := range []int{0, 3, 8} {
		first := slices.IndexFunc(all, func(l string) bool {
			var number int
			_, after, found := strings.Cut(l, "fault ")
			n, err := fmt.Sscanf(after, "%d:", &number)
			return found && err == nil && n == 1 && number >= limit
		})
		require.Positive(t, first)
		cut := story(limit)
		require.Greater(t, len(cut), first)
		// A crash is told before the fault that it comes from, and what the fault's first effects are.
		same := 0
		for same < first && all[same] == cut[same] {
			same++
		}
		require.Equal(t, prefixTime(all[first]), prefixTime(all[same]), "the stories part too early: %s", all[same])
	}
}

// prefixTime is the time at which a line of a story was told.
func prefixTime(line string) string { return strings.Fields(line)[0] }

// A queue gives events by time, and events of the same time in the order of their planning.
func TestQueueOrder(t *testing.T) {
	var q queue
	r := stream(1, 1)
	for i := range uint64(500) {
		q.push(event{at: time.Duration(r.IntN(40)), seq: i})
	}
	last := event{at: -1}
	for range 500 {
		e := q.pop()
		require.True(t, e.at > last.at || e.at == last.at && e.seq > last.seq)
		last = e
	}
	require.Empty(t, q)
}

// A clock shows a time no earlier than it was asked to say when, at any rate.
func TestClockTellsWhen(t *testing.T) {
	for rate := time.Duration(realRate / 2); rate <= 2*realRate; rate++ {
		c := clock{since: 100, base: 37, rate: rate}
		for want := time.Duration(37); want < 200; want++ {
			at := c.when(want)
			require.GreaterOrEqual(t, c.read(at), want)
			require.Less(t, c.read(at-1), want+1)
		}
	}
}
