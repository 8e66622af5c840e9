package raftsim

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What a report says can be given back.
func TestPlanIsReadAsItIsWritten(t *testing.T) {
	for _, text := range []string{"", "servers 3", "faults none", "faults 0 3-4 9", "servers 2, faults 1-7, calls 12, heal 900 ms, alone"} {
		p, err := parsePlan(text)
		require.NoError(t, err)
		require.Equal(t, text, p.String())
	}
	p := firstFaults(10)
	p, ok := p.without(2, 4)
	require.True(t, ok)
	p, _ = p.without(9, 12)
	require.Equal(t, "faults 0-1 4-8", p.String())
	_, ok = p.without(2, 4)
	require.False(t, ok)
	for number, want := range []bool{true, true, false, false, true, true, true, true, true, false} {
		require.Equal(t, want, p.takesPlace(number))
	}
	for _, bad := range []string{"servers", "servers 0", "servers 99", "calls x", "faults 4-2", "faults -1", "gremlins 3", "heal 900", "heal 0 ms"} {
		_, err := parsePlan(bad)
		require.Error(t, err, bad)
	}
}

// The first events of a seed are the same, however many follow.
func TestPrefixOfEventsIsPrefixOfStory(t *testing.T) {
	story := func(events uint64) (lines []string) {
		r := RunSeed(Options{Events: events}, 7, func(l string) { lines = append(lines, l) })
		require.NoError(t, r.Err)
		if events > 0 {
			require.Equal(t, events, r.Events)
		}
		return lines
	}
	all := story(0)
	for _, events := range []uint64{1, 100, 1000, 3000} {
		part := story(events)
		require.NotEmpty(t, part)
		require.Less(t, len(part), len(all))
		require.Equal(t, all[:len(part)], part)
	}
}

// Never more servers are faulty than the options allow, and as many are.
func TestFaultyServersAreLimited(t *testing.T) {
	most := 0
	o := Options{Seeds: 12, MinServers: 5, MaxServers: 5, MaxFaulty: 2, Faults: AllFaults &^ Membership, watch: func(w *world) {
		n := 0
		for _, v := range w.servers {
			if !v.up() || v.paused {
				n++
			}
		}
		most = max(most, n)
	}, Parallel: 1}
	require.NoError(t, o.Validate())
	r := Each(o, func(*Report) bool { return false })
	require.Empty(t, r.Failures)
	require.Equal(t, 2, most)
}

// A leader that still counts what a process has acknowledged that is gone by now is noticed, before anything is lost by it.
func TestOldMatchIndexIsNoticed(t *testing.T) {
	w := newWorld(Options{MinServers: 3, MaxServers: 3, Faults: NoFaults}.withDefaults(), 1, plan{})
	var leader *server
	w.opts.watch = func(w *world) {
		if leader = w.leader(); leader != nil && w.now > 2*time.Second && w.failure == nil {
			for i := range leader.memory.heard {
				leader.memory.heard[i].matchIncarnation++ // as if other processes were there now
			}
			w.oldMatchIsForgotten(leader)
		}
	}
	w.run()
	require.ErrorContains(t, w.failure, "inv 29: leader "+string(leader.id))
	require.Contains(t, w.failure.Error(), "process")
}

// A story that is cut off is asked whether what the clients saw so far can be explained.
func TestUnfinishedHistoryIsChecked(t *testing.T) {
	wl := KeyValueWorkload()
	good := wl.Model.Apply
	wl.Model.Apply = func(state, input any) (output, next any) {
		_, next = good(state, input)
		return "something else", next
	}
	o := Options{StateMachine: NewKeyValue, Workload: wl, Faults: NoFaults}
	require.NoError(t, o.Validate())
	whole := RunSeed(o, 1, nil)
	require.ErrorContains(t, whole.Err, "inv 15")
	require.True(t, whole.atEnd)
	n := shortestPrefix(o.withDefaults(), plan{}, whole)
	require.Positive(t, n)
	require.Less(t, n, whole.Events)
	o.Events = n
	require.ErrorContains(t, RunSeed(o, 1, nil).Err, "inv 15")
	o.Events = n - 1
	require.NoError(t, RunSeed(o, 1, nil).Err)
	report := Explain(Options{StateMachine: NewKeyValue, Workload: wl, Faults: NoFaults}, 1)
	require.Contains(t, report, "with one less every promise is kept")
	require.Contains(t, report, "client", "it is about what clients saw")
	require.Equal(t, 1, strings.Count(report, "The end of that story"))
}
