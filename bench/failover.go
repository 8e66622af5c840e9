package main

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/steadyraft/raft/bench/worker"
)

// Outage is how long a cluster whose leader was lost committed nothing.
type Outage struct {
	Library string        `json:"library"`
	How     string        `json:"how"`
	Time    time.Duration `json:"time_ns"`
}

// Transfer is what a planned change of leader cost.
type Transfer struct {
	Library string `json:"library"`
	worker.Gap
}

// Restart is how long a cluster took to come back.
type Restart struct {
	Library string `json:"library"`
	Bytes   int64  `json:"bytes"` // in each server's log
	worker.Restart
}

// How a leader is lost.
const (
	killed  = "kill -9" // its connections break
	stopped = "SIGSTOP" // its connections stand and its kernel acknowledges, but it says nothing any more
)

// trialsOf is how often a leader is lost: more often where a goal names the 99th percentile.
func (d *driver) trialsOf(lib, how string) int {
	switch {
	case d.trials > 0:
		return d.trials
	case lib == ours && how == killed:
		return d.scaled(20)
	case lib == ours:
		return d.scaled(5)
	}
	return d.scaled(3)
}

// failOvers takes the leader's process away, again and again, from one library after the other.
func (d *driver) failOvers() (steps []step) {
	most := 0
	for _, lib := range d.libraries {
		most = max(most, d.trialsOf(lib, killed), d.trialsOf(lib, stopped))
	}
	for trial := range most {
		for _, how := range []string{killed, stopped} {
			for _, lib := range d.libraries {
				if lib == floor || trial >= d.trialsOf(lib, how) {
					continue
				}
				takes := processesTake + electionTakes
				if lib == ours && how == killed {
					takes = processesTake + quickElections
				}
				steps = append(steps, step{lib, whatFailOver + " by " + how, nth("trial", trial, d.trialsOf(lib, how)), takes,
					func(ctx context.Context) error {
						took, err := d.failOver(ctx, lib, how)
						return keep(&d.report.Outages)(Outage{Library: lib, How: how, Time: took}, err)
					}})
			}
		}
	}
	return steps
}

func (d *driver) failOver(ctx context.Context, lib, how string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	jobs, err := d.trio()
	if err != nil {
		return 0, err
	}
	p, err := d.startProcesses(ctx, lib, jobs)
	if err != nil {
		return 0, err
	}
	defer p.close()
	signal := syscall.SIGKILL
	if how == stopped {
		signal = syscall.SIGSTOP
	}
	lost := time.Now()
	if err := p.workers[p.leader-1].cmd.Process.Signal(signal); err != nil {
		return 0, err
	}
	e, err := p.wait(ctx, func(e event) bool { return e.Commit != nil && e.server != p.leader })
	if err != nil {
		return 0, fmt.Errorf("no commit by another server: %w", err)
	}
	return time.Unix(0, e.Commit.At).Sub(lost), nil
}

// Slow is what one slow follower costs the clients of a cluster of three.
type Slow struct {
	Library string        `json:"library"`
	Healthy worker.Sample `json:"healthy"`
	Slow    worker.Sample `json:"slow"`
}

// A slow follower's process runs for a while and stands still for four times as long, over and over.
const (
	slowRuns   = 10 * time.Millisecond
	slowStands = 40 * time.Millisecond
)

func (d *driver) slowFollower(ctx context.Context, lib string) (s Slow, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	s.Library = lib
	jobs, err := d.trio()
	if err != nil {
		return s, err
	}
	p, err := d.startProcesses(ctx, lib, jobs)
	if err != nil {
		return s, err
	}
	defer p.close()
	point := worker.Point{Kind: worker.Propose, Size: 256, Clients: 64, Warmup: d.warmup, Time: d.time}
	for range 2 { // the first is only to warm up: what is measured later would seem better
		if s.Healthy, err = p.measure(ctx, point); err != nil {
			return s, err
		}
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		stutter(p.workers[p.leader%len(p.workers)].cmd.Process, stop)
	}()
	s.Slow, err = p.measure(ctx, point)
	close(stop)
	<-ended
	if err != nil {
		return s, err
	}
	return s, p.agree(ctx, 1, 2, 3)
}

func stutter(p *os.Process, stop <-chan struct{}) {
	for {
		for _, step := range []struct {
			signal syscall.Signal
			time   time.Duration
		}{{syscall.SIGSTOP, slowStands}, {syscall.SIGCONT, slowRuns}} {
			if p.Signal(step.signal) != nil {
				return
			}
			select {
			case <-time.After(step.time):
			case <-stop:
				_ = p.Signal(syscall.SIGCONT) // it is killed soon anyway
				return
			}
		}
	}
}
