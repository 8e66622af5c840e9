package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/steadyraft/raft/bench/worker"
)

// processes is a cluster whose servers run in a process each, so that one can be killed, stopped or slowed down.
type processes struct {
	d       *driver
	data    string
	workers []*workerProcess
	events  chan event
	leader  int // counted from 1
}

// event is what a server printed, or why it will print no more.
type event struct {
	worker.Output
	server int
	err    error
}

// startProcesses returns once a leader has been one for a while, so that what it does at first is over.
func (d *driver) startProcesses(ctx context.Context, lib string) (*processes, error) {
	data, err := d.dataDirectory()
	if err != nil {
		return nil, err
	}
	p := &processes{d: d, data: data, events: make(chan event, 1000)}
	if err := p.start(ctx, lib); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *processes) start(ctx context.Context, lib string) error {
	addresses, err := freeAddresses(3)
	if err != nil {
		return err
	}
	for i := range addresses {
		w, err := p.d.startWorker(ctx, lib, worker.Job{Dir: p.data, Addresses: addresses, Server: i + 1})
		if err != nil {
			return err
		}
		p.workers = append(p.workers, w)
		go func() {
			for {
				o, err := w.next()
				if err == io.EOF {
					return
				}
				p.events <- event{o, i + 1, err}
				if err != nil {
					return
				}
			}
		}()
	}
	settled := (<-chan time.Time)(nil)
	for {
		select {
		case e := <-p.events:
			switch {
			case e.err != nil:
				return fmt.Errorf("server %d: %w", e.server, e.err)
			case e.About != nil:
				p.d.report.about(*e.About)
			case e.Commit != nil:
				p.leader, settled = e.server, time.After(700*time.Millisecond)
			}
		case <-settled:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("no leader: %w", ctx.Err())
		}
	}
}

// wait returns the first event that is wanted.
func (p *processes) wait(ctx context.Context, wanted func(event) bool) (event, error) {
	for {
		select {
		case e := <-p.events:
			if e.err != nil {
				return e, fmt.Errorf("server %d: %w", e.server, e.err)
			}
			if wanted(e) {
				return e, nil
			}
		case <-ctx.Done():
			return event{}, ctx.Err()
		}
	}
}

// measure puts the leader under load.
func (p *processes) measure(ctx context.Context, point worker.Point) (worker.Sample, error) {
	if err := json.NewEncoder(p.workers[p.leader-1].stdin).Encode(worker.Command{Measure: &point}); err != nil {
		return worker.Sample{}, err
	}
	pids := []int{os.Getpid()}
	for _, w := range p.workers {
		pids = append(pids, w.cmd.Process.Pid)
	}
	others := worker.WatchOthers(pids...)
	e, err := p.wait(ctx, func(e event) bool { return e.Sample != nil })
	if err != nil {
		return worker.Sample{}, err
	}
	e.Sample.Others = others() // the leader's process took the followers for others
	return *e.Sample, nil
}

// close kills what is left.
func (p *processes) close() {
	for _, w := range p.workers {
		_ = w.cmd.Process.Kill() // it may be dead
		_ = w.cmd.Wait()
	}
	p.d.clean(p.data)
}
