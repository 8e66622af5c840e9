//go:build unix

package raftsim

import (
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// cpuTime is what this process has computed so far. On a machine that others use as well, it says more than a clock.
func cpuTime(t testing.TB) time.Duration {
	var u syscall.Rusage
	require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// measure simulates one seed after another and reports what a second of one core is worth.
func measure(b *testing.B, o Options) {
	o.Parallel = 1
	o = o.withDefaults()
	var sum Report
	b.ReportAllocs()
	start := cpuTime(b)
	for seed := uint64(1); b.Loop(); seed++ {
		r := RunSeed(o, seed, nil)
		require.NoError(b, r.Err)
		sum.Add(&r)
	}
	spent := (cpuTime(b) - start).Seconds()
	b.ReportMetric(float64(sum.Events)/spent, "events/s")
	b.ReportMetric(sum.Simulated.Seconds()/spent, "x-real-time")
	b.ReportMetric(float64(sum.Events)/sum.Simulated.Seconds(), "events/simulated-s")
}

// Five servers as in the field: heartbeats of 100 ms, election timeouts of 1 s, the write-ahead log and the snapshot store, all faults,
// all invariants.
func BenchmarkFiveServers(b *testing.B) {
	measure(b, Options{MinServers: 5, MaxServers: 5, tune: func(k *knobs) {
		k.core.HeartbeatInterval, k.core.ElectionTimeout, k.core.DiskDeadline = 100*time.Millisecond, time.Second, time.Second
	}})
}

// Seeds as they come: every knob drawn.
func BenchmarkSeeds(b *testing.B) { measure(b, Options{}) }
