package worker

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Restart is how long a whole cluster takes to come back with a long log. The files are still in the kernel's cache.
type Restart struct {
	Open  time.Duration `json:"open_ns"`
	First time.Duration `json:"first_ns"` // from the same moment to the first commit; an election time-out is part of it
	All   time.Duration `json:"all_ns"`   // until all servers have applied the whole log again
}

const restartCommand = 64 << 10

// fillLogs is the first half, in a process of its own: it returns how many commands the servers have applied when they are closed.
func fillLogs(lib Library, job Job) (commands uint64, err error) {
	nodes, err := start(lib, job)
	if err != nil {
		return 0, err
	}
	leader, err := waitForLeader(context.Background(), nodes)
	if err != nil {
		return 0, err
	}
	want := uint64((job.Fill + restartCommand - 1) / restartCommand)
	n, err := fill(nodes[leader], Fill{Commands: want, Size: restartCommand, Clients: 64, Limit: 2 * time.Minute})
	if err != nil {
		return 0, err
	}
	if n < want {
		return 0, fmt.Errorf("%d of %d commands within 2 minutes", n, want)
	}
	if err := agree(nodes, time.Now().Add(agreeWithin)); err != nil {
		return 0, err
	}
	commands, _ = nodes[leader].Applied()
	return commands, closeAll(nodes)
}

// restart is the second half.
func restart(lib Library, job Job) (*Restart, error) {
	var r Restart
	begin := time.Now()
	nodes, err := start(lib, job)
	if err != nil {
		return nil, err
	}
	r.Open = time.Since(begin)
	if _, err = waitForLeader(context.Background(), nodes); err != nil {
		return nil, err
	}
	r.First = time.Since(begin)
	if err := agree(nodes, time.Now().Add(agreeWithin)); err != nil {
		return nil, err
	}
	r.All = time.Since(begin)
	if got, _ := nodes[0].Applied(); got <= job.Filled {
		return nil, fmt.Errorf("%d commands after the restart and one more, there were %d before", got, job.Filled)
	}
	return &r, closeAll(nodes)
}

// fill proposes so many commands, or as many as it can in time, and returns how many those were.
func fill(n Node, f Fill) (uint64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), f.Limit+30*time.Second)
	defer cancel()
	end := time.Now().Add(f.Limit)
	var taken, done atomic.Uint64
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	for range f.Clients {
		wg.Go(func() {
			cmd := make([]byte, f.Size)
			for taken.Add(1) <= f.Commands && time.Now().Before(end) {
				if err := n.Propose(ctx, cmd); err != nil {
					failed.Store(&err)
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return done.Load(), fmt.Errorf("fill the log: %w", *err)
	}
	return done.Load(), nil
}

func closeAll(nodes []Node) error {
	for i, n := range nodes {
		if err := n.Close(); err != nil {
			return fmt.Errorf("close server %d: %w", i+1, err)
		}
	}
	return nil
}
