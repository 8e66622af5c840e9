package worker

import (
	"context"
	"encoding/binary"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// phases of a measurement.
const (
	warming int32 = iota
	measuring
	over
)

// client asks, waits for the answer, and asks again. Only what began and ended while phase was measuring counts as a latency;
// what ended in it counts as an operation, so that throughput has no bias to slow or fast ones.
type client struct {
	histogram
	operations uint64
	failures   uint64
	failure    string
	_          [64]byte // away from its neighbour's cache line
}

func (c *client) run(ctx context.Context, n Node, p Point, seed uint64, phase *atomic.Int32) {
	cmd := make([]byte, p.Size)
	random := seed*0x9e3779b97f4a7c15 | 1
	for i := range cmd { // not zeros, so that nothing can compress them
		random ^= random << 13
		random ^= random >> 7
		random ^= random << 17
		cmd[i] = byte(random)
	}
	for i := seed; ; i++ {
		before := phase.Load()
		if before == over {
			return
		}
		var err error
		start := time.Now()
		if p.Kind == Read || p.Kind == Mixed && i%20 != 0 {
			err = n.Read(ctx)
		} else {
			binary.LittleEndian.PutUint64(cmd, i)
			err = n.Propose(ctx, cmd)
		}
		took := time.Since(start)
		if err != nil {
			if c.failures++; c.failure == "" {
				c.failure = err.Error()
			}
			runtime.Gosched()
			continue
		}
		if phase.Load() == measuring {
			c.operations++
			if before == measuring {
				c.add(took)
			}
		}
	}
}

// answerWithin is how long operations may take that were under way when a measurement ended.
const answerWithin = 10 * time.Second

// measure puts a node, which leads, under load for p.Time, or until stop is closed.
func measure(ctx context.Context, n Node, dir string, p Point, stop <-chan struct{}) Sample {
	ctx, cancel := context.WithTimeout(ctx, p.Warmup+p.Time+30*time.Second)
	defer cancel()
	clients := make([]client, p.Clients)
	var phase atomic.Int32
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() { clients[i].run(ctx, n, p, uint64(i), &phase) })
	}
	time.Sleep(p.Warmup)

	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	m, start := readMachine(dir), time.Now()
	phase.Store(measuring)
	select {
	case <-time.After(p.Time):
	case <-stop:
	}
	phase.Store(over)
	elapsed, m2 := time.Since(start), readMachine(dir)
	runtime.ReadMemStats(&after)
	late := time.AfterFunc(answerWithin, cancel) // what a library has lost is never answered; it counts as a failure
	wg.Wait()
	late.Stop()

	s := Sample{Point: p, Elapsed: elapsed}
	var all histogram
	for i := range clients {
		c := &clients[i]
		all.merge(&c.histogram)
		s.Operations += c.operations
		if s.Failures += c.failures; s.Failure == "" {
			s.Failure = c.failure
		}
	}
	s.Latencies = all.count
	s.P50, s.P99, s.P999, s.Max = all.quantile(.5), all.quantile(.99), all.quantile(.999), all.max
	ops := float64(max(s.Operations, 1))
	s.PerSecond = float64(s.Operations) / elapsed.Seconds()
	s.Allocations = float64(after.Mallocs-before.Mallocs) / ops
	s.AllocatedBytes = float64(after.TotalAlloc-before.TotalAlloc) / ops
	s.CPU = float64(m2.own-m.own) / float64(time.Microsecond) / ops
	s.Flushes, s.WrittenBytes = -1, -1
	if m.flushes >= 0 {
		s.Flushes = float64(m2.flushes-m.flushes) / ops
	}
	if m.written >= 0 {
		s.WrittenBytes = float64(m2.written-m.written) / ops
	}
	s.Others = othersBusy(m2.own-m.own, m.busy, m2.busy, elapsed)
	return s
}
