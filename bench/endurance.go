package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/steadyraft/raft/bench/worker"
)

// LongLog compares the cost of a command with a short log and with a long one. Two clusters are measured in turn.
type LongLog struct {
	Library string          `json:"library"`
	Wanted  uint64          `json:"wanted"` // commands in the long log
	Filled  uint64          `json:"filled"` // as many as fit into the time
	Filling time.Duration   `json:"filling_ns"`
	Short   []worker.Sample `json:"short"` // by round
	Long    []worker.Sample `json:"long"`
	Grown   uint64          `json:"grown"` // commands in the short log at the end
}

const (
	shortLog     = 1_000
	longLog      = 10_000_000
	longLogLimit = 50 * time.Second
	longRounds   = 7
	longTime     = time.Second
)

func (d *driver) longLog(ctx context.Context, lib string) (l LongLog, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.awayFor*13/12+2*time.Minute)
	defer cancel()
	l = LongLog{Library: lib, Wanted: uint64(d.scaled(longLog))}
	var clusters [2]*processes
	for i := range clusters {
		addresses, err := freeAddresses(3)
		if err != nil {
			return l, err
		}
		if clusters[i], err = d.startProcesses(ctx, lib, []worker.Job{{Addresses: addresses, Obey: true}}); err != nil {
			return l, err
		}
		defer clusters[i].close()
	}
	short, long := clusters[0], clusters[1]
	if _, err = short.fill(ctx, worker.Fill{Commands: shortLog, Size: 16, Clients: 64, Limit: longLogLimit}); err != nil {
		return l, err
	}
	began := time.Now()
	if l.Filled, err = long.fill(ctx, worker.Fill{Commands: l.Wanted, Size: 16, Clients: 4096, Limit: d.shorter(longLogLimit)}); err != nil {
		return l, err
	}
	l.Filling = time.Since(began)
	load := worker.Point{Kind: worker.Propose, Size: 16, Clients: 64, Warmup: d.warmup, Time: d.shorter(longTime)}
	for round := range longRounds {
		for i := range 2 {
			which := (i + round) % 2
			s, err := clusters[which].measure(ctx, load)
			if err != nil {
				return l, err
			}
			if s.Failures > 0 {
				return l, fmt.Errorf("%d proposals failed: %s", s.Failures, s.Failure)
			}
			if which == 0 {
				l.Short = append(l.Short, s)
			} else {
				l.Long = append(l.Long, s)
			}
		}
	}
	at, err := short.progress(ctx, short.leader)
	l.Grown = at.Applied
	return l, errors.Join(err, short.finish(), long.finish())
}

// byRound makes figures of the rounds comparable by ratio.
func byRound(ss []worker.Sample, f func(worker.Sample) float64) map[int]float64 {
	out := map[int]float64{}
	for i, s := range ss {
		out[i] = f(s)
	}
	return out
}

// costs are the ratios of the long log to the short one: time per command, and processor time per command.
func (l *LongLog) costs() (elapsed, cpu spread) {
	perSecond := func(s worker.Sample) float64 { return s.PerSecond }
	perCommand := func(s worker.Sample) float64 { return s.CPU }
	return ratio(byRound(l.Short, perSecond), byRound(l.Long, perSecond)), ratio(byRound(l.Long, perCommand), byRound(l.Short, perCommand))
}

// Idle is what a server without load holds in memory.
type Idle struct {
	Library string `json:"library"`
	Leads   bool   `json:"leads"`
	worker.Memory
}

const idleFor = 2 * time.Second

func (d *driver) idle(ctx context.Context, lib string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	jobs, err := d.trio()
	if err != nil {
		return err
	}
	p, err := d.startProcesses(ctx, lib, jobs)
	if err != nil {
		return err
	}
	defer p.close()
	if _, err := p.do(ctx, p.leader, worker.Command{Rest: true}); err != nil {
		return err
	}
	time.Sleep(idleFor)
	for i := range p.workers {
		m, err := p.memory(ctx, i+1)
		if err != nil {
			return err
		}
		d.report.Idle = append(d.report.Idle, Idle{Library: lib, Leads: i+1 == p.leader, Memory: m})
	}
	return nil
}

// Away is a leader's memory while one follower of two is gone.
type Away struct {
	Library  string        `json:"library"`
	Snapshot int64         `json:"snapshot_bytes"` // of the state machine's snapshots, which are taken as often as by default
	Before   AwayMemory    `json:"before"`         // under the same load, with both followers
	Memory   []AwayMemory  `json:"memory"`
	Load     worker.Sample `json:"load"`
}

// AwayMemory is a sample of it.
type AwayMemory struct {
	At       time.Duration `json:"at_ns"`    // since the follower was killed
	Commands uint64        `json:"commands"` // applied until then
	worker.Memory
}

const (
	awayGoal     = 10 * time.Minute // what the goal speaks of; a full run has not the time
	awaySamples  = 12
	awayClients  = 64
	awaySnapshot = 1 << 20
)

func (d *driver) away(ctx context.Context, lib string) (a Away, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.awayFor*13/12+2*time.Minute)
	defer cancel()
	a = Away{Library: lib, Snapshot: awaySnapshot}
	jobs, err := d.trio()
	if err != nil {
		return a, err
	}
	for i := range jobs {
		jobs[i].SnapshotBytes, jobs[i].AutoSnapshots = awaySnapshot, true
	}
	p, err := d.startProcesses(ctx, lib, jobs)
	if err != nil {
		return a, err
	}
	defer p.close()
	every := d.shorter(d.awayFor) / awaySamples
	end, err := p.load(worker.Point{Kind: worker.Propose, Size: 256, Clients: awayClients, Time: 2 * d.awayFor})
	if err != nil {
		return a, err
	}
	sample := func(since time.Time) (m AwayMemory, err error) {
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return m, ctx.Err()
		}
		at, err := p.progress(ctx, p.leader)
		if err != nil {
			return m, err
		}
		m.At, m.Commands = time.Since(since), at.Applied
		m.Memory, err = p.memory(ctx, p.leader)
		return m, err
	}
	if a.Before, err = sample(time.Now()); err != nil {
		return a, err
	}
	gone := p.leader%3 + 1
	if err := p.workers[gone-1].cmd.Process.Kill(); err != nil {
		return a, err
	}
	killed := time.Now()
	for range awaySamples {
		m, err := sample(killed)
		if err != nil {
			return a, err
		}
		a.Memory = append(a.Memory, m)
	}
	if a.Load, err = end(ctx, true); err != nil {
		return a, err
	}
	if a.Load.Failures > 0 {
		return a, fmt.Errorf("%d proposals failed: %s", a.Load.Failures, a.Load.Failure)
	}
	return a, p.agree(ctx, p.leader, gone%3+1)
}

// growth is the highest heap of the second half over that of the first: about 1 if it is bounded.
func (a *Away) growth() float64 {
	highest := func(ms []AwayMemory) (h uint64) {
		for _, m := range ms {
			h = max(h, m.Heap)
		}
		return h
	}
	half := len(a.Memory) / 2
	return float64(highest(a.Memory[half:])) / float64(max(1, highest(a.Memory[:half])))
}
