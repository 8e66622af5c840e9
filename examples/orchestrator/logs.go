package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// Bounds of what `service logs` does at once.
const (
	maxLogLine  = 64 << 10 // a longer one is printed in pieces
	maxLogTasks = 64       // of which the output is read at the same time
)

func logCommands() []command {
	var request api.LogsRequest
	return []command{{
		name: "service logs", args: "SERVICE|TASK", summary: "Show what the tasks of a service have written, or one task",
		flags: func(_ *cli, fs *flag.FlagSet) {
			fs.BoolVar(&request.Follow, "follow", false, "go on with what they write from now on, new tasks and restarts included")
			fs.BoolVar(&request.Follow, "f", false, "short for --follow")
			fs.IntVar(&request.Tail, "tail", 0, "only the last lines of each task; 0: all that its node has kept")
		},
		run: func(c *cli, in *invocation) error {
			if err := in.exactly(1, "a service or a task"); err != nil {
				return err
			}
			return c.logs(in.words[0], request)
		},
	}}
}

// logs prints the output of tasks, each line behind the name of its task, as Docker does.
func (c *cli) logs(name string, request api.LogsRequest) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	defer client.Close()
	p := &logPrinter{cli: c, client: client, request: request, begun: map[cluster.TaskID]bool{}, slots: make(chan struct{}, maxLogTasks)}
	err = p.run(name)
	if c.ctx.Err() != nil && request.Follow {
		return nil // ended by who had asked for it
	}
	return err
}

type logPrinter struct {
	*cli
	client  *api.Client
	request api.LogsRequest
	slots   chan struct{}

	mu      sync.Mutex // of what is printed, and of the errors
	errs    []error
	begun   map[cluster.TaskID]bool
	running sync.WaitGroup
}

func (p *logPrinter) run(name string) error {
	events := api.EventsRequest{}
	for {
		// Before the tasks are read, so that none which comes after them is missed.
		answer, err := p.nextEvents(p.client, events)
		if err != nil {
			p.failed(err)
			break
		}
		events = api.EventsRequest{After: answer.Newest, Wait: followWait}
		ctx, cancel := context.WithTimeout(p.ctx, patience)
		v, err := p.client.State(ctx)
		cancel()
		if err != nil {
			p.failed(err)
			break
		}
		tasks, gone, err := tasksNamed(v, name)
		if err != nil && len(p.begun) == 0 {
			return err
		}
		for _, t := range tasks {
			p.begin(t)
		}
		if !p.request.Follow || gone || err != nil {
			break
		}
	}
	p.running.Wait()
	return errors.Join(p.errs...)
}

// tasksNamed returns the tasks of a service or a slot, or the one of that ID. over: no other ones will come.
func tasksNamed(v api.View, name string) (tasks []*cluster.Task, over bool, err error) {
	if t := v.State.Tasks[cluster.TaskID(name)]; t != nil {
		return []*cluster.Task{t}, true, nil
	}
	sv, err := findService(v, name)
	if err == nil {
		return v.State.TasksOf(sv.ID), false, nil
	}
	for _, t := range v.State.Tasks { // order-free: sorted below
		if t.Name() == name || fullName(t) == name {
			tasks = append(tasks, t)
		}
	}
	if len(tasks) == 0 {
		return nil, true, fmt.Errorf("no service and no task %q; `%s service ls` and `service ps` show those that there are", name, program())
	}
	slices.SortFunc(tasks, cluster.CompareTasks)
	return tasks, false, nil
}

// fullName names one task for ever, as its ID does, and says of which service it is.
func fullName(t *cluster.Task) string { return fmt.Sprintf("%s.%d", t.Name(), t.Generation) }

// begin reads the output of a task that is not read yet.
func (p *logPrinter) begin(t *cluster.Task) {
	if p.begun[t.ID] || t.Node == "" || t.State == cluster.TaskLost {
		return
	}
	p.begun[t.ID] = true
	p.running.Go(func() {
		select {
		case p.slots <- struct{}{}:
			defer func() { <-p.slots }()
		case <-p.ctx.Done():
			return
		}
		request := p.request
		request.Task = t.ID
		prefix := fmt.Sprintf("%s@%s | ", fullName(t), t.Node)
		if err := p.client.Logs(p.ctx, request, func(from io.Reader) error { return p.copy(prefix, from) }); err != nil && p.ctx.Err() == nil {
			p.failed(fmt.Errorf("%s: %w", t.ID, err))
		}
	})
}

func (p *logPrinter) copy(prefix string, from io.Reader) error {
	lines := bufio.NewReaderSize(from, maxLogLine)
	for {
		line, err := lines.ReadSlice('\n')
		if len(line) > 0 {
			p.mu.Lock()
			_, failed := fmt.Fprintf(p.out, "%s%s", prefix, line)
			if line[len(line)-1] != '\n' && failed == nil {
				_, failed = fmt.Fprintln(p.out)
			}
			p.mu.Unlock()
			if failed != nil {
				return failed
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && !errors.Is(err, bufio.ErrBufferFull):
			return fmt.Errorf("its output broke off: %w", err)
		}
	}
}

func (p *logPrinter) failed(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.request.Follow {
		fmt.Fprintln(p.errOut, err)
	}
	p.errs = append(p.errs, err)
}
