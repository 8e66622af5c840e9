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
	lib     string
	data    string
	jobs    []worker.Job
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

// trio are the jobs of three servers, one in each process.
func (d *driver) trio() ([]worker.Job, error) {
	addresses, err := freeAddresses(3)
	if err != nil {
		return nil, err
	}
	var jobs []worker.Job
	for i := range addresses {
		jobs = append(jobs, worker.Job{Addresses: addresses, Server: i + 1})
	}
	return jobs, nil
}

// startProcesses returns once a leader has been one for a while, so that what it does at first is over.
func (d *driver) startProcesses(ctx context.Context, lib string, jobs []worker.Job) (*processes, error) {
	data, err := d.dataDirectory()
	if err != nil {
		return nil, err
	}
	p := &processes{d: d, lib: lib, data: data, events: make(chan event, 1000)}
	if err := p.startAll(ctx, jobs); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *processes) startAll(ctx context.Context, jobs []worker.Job) error {
	for _, job := range jobs {
		if err := p.start(ctx, job); err != nil {
			return err
		}
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

// start adds a process.
func (p *processes) start(ctx context.Context, job worker.Job) error {
	job.Dir = p.data
	w, err := p.d.startWorker(ctx, p.lib, job)
	if err != nil {
		return err
	}
	p.jobs, p.workers = append(p.jobs, job), append(p.workers, w)
	server := len(p.workers)
	w.ended = make(chan struct{})
	go func() {
		defer close(w.ended)
		for {
			o, err := w.next()
			if err == io.EOF {
				return
			}
			p.events <- event{o, server, err}
			if err != nil {
				return
			}
		}
	}()
	return nil
}

// wait returns the first event that is wanted. Others are dropped.
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

// tell writes a command to a server's process.
func (p *processes) tell(server int, c worker.Command) error {
	return json.NewEncoder(p.workers[server-1].stdin).Encode(c)
}

// ask waits for the answer, too.
func (p *processes) ask(ctx context.Context, server int, c worker.Command, answers func(worker.Output) bool) (worker.Output, error) {
	if err := p.tell(server, c); err != nil {
		return worker.Output{}, err
	}
	e, err := p.wait(ctx, func(e event) bool { return e.server == server && answers(e.Output) })
	return e.Output, err
}

// do waits until a command is carried out that has no other answer, and returns how long that took.
func (p *processes) do(ctx context.Context, server int, c worker.Command) (time.Duration, error) {
	o, err := p.ask(ctx, server, c, func(o worker.Output) bool { return o.Done != nil })
	if err != nil {
		return 0, err
	}
	return *o.Done, nil
}

func (p *processes) progress(ctx context.Context, server int) (worker.Progress, error) {
	o, err := p.ask(ctx, server, worker.Command{Progress: true}, func(o worker.Output) bool { return o.Progress != nil })
	if err != nil {
		return worker.Progress{}, err
	}
	return *o.Progress, nil
}

func (p *processes) memory(ctx context.Context, server int) (worker.Memory, error) {
	o, err := p.ask(ctx, server, worker.Command{Memory: true}, func(o worker.Output) bool { return o.Memory != nil })
	if err != nil {
		return worker.Memory{}, err
	}
	return *o.Memory, nil
}

func (p *processes) fill(ctx context.Context, f worker.Fill) (uint64, error) {
	o, err := p.ask(ctx, p.leader, worker.Command{Fill: &f}, func(o worker.Output) bool { return o.Filled != nil })
	if err != nil {
		return 0, err
	}
	return *o.Filled, nil
}

// measure puts the leader under load.
func (p *processes) measure(ctx context.Context, point worker.Point) (worker.Sample, error) {
	end, err := p.load(point)
	if err != nil {
		return worker.Sample{}, err
	}
	return end(ctx, false)
}

// load begins to measure. end waits until the time is up, or ends the load now.
func (p *processes) load(point worker.Point) (end func(ctx context.Context, now bool) (worker.Sample, error), err error) {
	if err := p.tell(p.leader, worker.Command{Measure: &point}); err != nil {
		return nil, err
	}
	pids := []int{os.Getpid()}
	for _, w := range p.workers {
		pids = append(pids, w.cmd.Process.Pid)
	}
	others := worker.WatchOthers(pids...)
	return func(ctx context.Context, now bool) (worker.Sample, error) {
		if now {
			if err := p.tell(p.leader, worker.Command{Stop: true}); err != nil {
				return worker.Sample{}, err
			}
		}
		e, err := p.wait(ctx, func(e event) bool { return e.Sample != nil })
		if err != nil {
			return worker.Sample{}, err
		}
		s := *e.Sample
		s.Library, s.Servers = p.lib, len(p.jobs[0].Addresses)
		s.Others = others() // the leader's process took the followers for others
		return s, nil
	}, nil
}

// agree waits until all these servers have applied the same commands: otherwise what was measured was not replication.
func (p *processes) agree(ctx context.Context, servers ...int) error {
	ctx, cancel := context.WithTimeout(ctx, agreeWithin)
	defer cancel()
	for {
		var all []worker.Progress
		same := true
		for _, s := range servers {
			at, err := p.progress(ctx, s)
			if ctx.Err() != nil {
				return fmt.Errorf("servers do not agree %v after the load ended: %+v", agreeWithin, all)
			}
			if err != nil {
				return err
			}
			all = append(all, at)
			same = same && at.Applied > 0 && at.Applied == all[0].Applied && at.Sum == all[0].Sum
		}
		if same {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
}

const agreeWithin = 20 * time.Second

// finish lets the processes end by themselves, and returns what they complain about.
func (p *processes) finish() error {
	for i, w := range p.workers {
		w.stdin.Close()
		select {
		case <-w.ended:
		case <-time.After(time.Minute):
			return fmt.Errorf("server %d does not end", i+1)
		}
	}
	for {
		select {
		case e := <-p.events:
			if e.err != nil {
				return e.err
			}
		default:
			return nil
		}
	}
}

// close kills what is left.
func (p *processes) close() {
	for _, w := range p.workers {
		_ = w.cmd.Process.Kill() // it may be dead
		_ = w.cmd.Wait()
	}
	p.d.clean(p.data)
}
