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
	if err := fill(nodes[leader], job.Fill); err != nil {
		return 0, err
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

// fill proposes so many bytes.
func fill(n Node, bytes int64) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var left atomic.Int64
	left.Store(bytes)
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	for range 64 {
		wg.Go(func() {
			cmd := make([]byte, restartCommand)
			for left.Add(-restartCommand) > -restartCommand {
				if err := n.Propose(ctx, cmd); err != nil {
					failed.Store(&err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return fmt.Errorf("fill the log: %w", *err)
	}
	return nil
}

func closeAll(nodes []Node) error {
	for i, n := range nodes {
		if err := n.Close(); err != nil {
			return fmt.Errorf("close server %d: %w", i+1, err)
		}
	}
	return nil
}
