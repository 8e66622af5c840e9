package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// transfers hands leadership on so many times, with 16 clients proposing, and reports the longest gap between two commits around
// each. Clients propose where they believe the leader; after a failure they look for it again, and wait a millisecond.
func transfers(nodes []Node, leader, times int, emit func(Output)) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(times)*20*time.Second)
	defer cancel()
	var g gaps
	var believed atomic.Int64
	believed.Store(int64(leader))
	var done atomic.Bool
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			cmd := make([]byte, 256)
			for !done.Load() && ctx.Err() == nil {
				if err := nodes[believed.Load()].Propose(ctx, cmd); err != nil {
					g.failed(err)
					if i := slices.IndexFunc(nodes, Node.IsLeader); i >= 0 {
						believed.Store(int64(i))
					}
					time.Sleep(time.Millisecond)
					continue
				}
				g.committed(time.Now())
			}
		})
	}
	defer wg.Wait()
	defer done.Store(true)
	for range times {
		time.Sleep(500 * time.Millisecond)
		g.begin(time.Now())
		to, err := transfer(ctx, nodes)
		believed.Store(int64(to))
		time.Sleep(500 * time.Millisecond)
		gap := g.end(time.Now())
		if err != nil {
			gap.NotDone = err.Error()
		}
		emit(Output{Gap: &gap})
	}
}

// transfer asks the leader to hand over to the next server, once, and waits until that one leads.
func transfer(ctx context.Context, nodes []Node) (to int, err error) {
	from := slices.IndexFunc(nodes, Node.IsLeader)
	if from < 0 {
		return 0, errors.New("none leads")
	}
	to = (from + 1) % len(nodes)
	if err := nodes[from].Transfer(ctx, to); err != nil {
		return from, err
	}
	for deadline := time.Now().Add(5 * time.Second); !nodes[to].IsLeader(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return from, fmt.Errorf("server %d does not lead 5 s after server %d was asked to hand over", to+1, from+1)
		}
	}
	return to, nil
}

// gaps finds the longest time without a commit.
type gaps struct {
	mu   sync.Mutex
	last time.Time
	now  Gap
}

func (g *gaps) begin(t time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last, g.now = t, Gap{}
}

func (g *gaps) committed(t time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.now.Longest = max(g.now.Longest, t.Sub(g.last))
	if t.After(g.last) {
		g.last = t
	}
}

func (g *gaps) failed(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.now.Failures++; g.now.Failure == "" {
		g.now.Failure = err.Error()
	}
}

func (g *gaps) end(t time.Time) Gap {
	g.committed(t)
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.now
}
