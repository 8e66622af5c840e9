//go:build unix

package explore

import (
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkThree explores a world of three servers as far as half a million states.
func BenchmarkThree(b *testing.B) {
	benchmark(b, World{Name: "three", Voters: 3, Terms: 2, Timeouts: 2, Commands: 1}, 500_000)
}

// BenchmarkFour explores a world of four servers, which have 24 names, as far as half a million states.
func BenchmarkFour(b *testing.B) {
	benchmark(b, World{Name: "four", Voters: 4, Terms: 2, Timeouts: 2, Commands: 1}, 500_000)
}

// benchmark reports how many new states a second of processor time shows, that of the garbage collector included, and how much memory a
// state takes: kept, that is what the hashes and the ways have added to the heap when all else is gone; and whole, that is all that the
// heap holds while the exploration still goes on, with the states of the two depths at hand and all servers and messages remembered.
func benchmark(b *testing.B, w World, states int) {
	var kept, whole, seen int
	began := processorTime()
	for b.Loop() {
		empty := heap()
		x := newExplorer(w, Options{MaxStates: states, Every: states, Progress: func(Result) { whole = heap() - empty }})
		require.NoError(b, x.run(b.Context(), time.Now()))
		require.Nil(b, x.res.Violation)
		require.False(b, x.res.Exhausted)
		seen += x.res.States
		visited, origins, n := x.visited, x.origins, x.res.States
		x = nil
		kept = heap() - empty
		b.ReportMetric(float64(kept)/float64(n), "kept-B/state")
		b.ReportMetric(float64(whole)/float64(n), "whole-B/state")
		runtime.KeepAlive(visited)
		runtime.KeepAlive(origins)
	}
	b.ReportMetric(float64(seen)/(processorTime()-began).Seconds(), "states/cpu-s")
}

// heap is what is in use, garbage excluded.
func heap() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// processorTime is that of all threads of this process.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
