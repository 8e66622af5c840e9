package raft

import (
	"context"
	"errors"
	"sync"
	"time"
)

// loader reads old entries for servers that lag or lack some, beside the writes.
type loader struct {
	n     *Node
	wake  chan struct{}
	mu    sync.Mutex
	queue []Load
}

func newLoader(n *Node) *loader { return &loader{n: n, wake: make(chan struct{}, 1)} }

// add queues loads. The core asks for one at a time per follower.
func (l *loader) add(loads []Load) {
	l.mu.Lock()
	l.queue = append(l.queue, loads...)
	l.mu.Unlock()
	poke(l.wake)
}

func (l *loader) next() (Load, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		return Load{}, false
	}
	ld := l.queue[0]
	l.queue = append(l.queue[:0], l.queue[1:]...)
	return ld, true
}

// run is the goroutine.
func (l *loader) run(ctx context.Context) {
	for ctx.Err() == nil {
		ld, ok := l.next()
		if !ok {
			select {
			case <-l.wake:
			case <-ctx.Done():
			}
			continue
		}
		es, err := l.n.cfg.Storage.Entries(ld.Lo, ld.Hi, ld.MaxBytes)
		switch {
		case err == nil:
			l.n.inbox.report(func(now time.Duration) { l.n.core.Loaded(now, ld.ID, es) })
		case errors.Is(err, ErrCompacted):
			l.n.inbox.report(func(now time.Duration) { l.n.core.LoadFailed(now, ld.ID, LoadCompacted) })
		default:
			l.n.log.Error("read old entries for another server", "from", ld.Lo, "to", ld.Hi, "peer", string(ld.Peer), "error", err)
			damage, found := damageIn(err, ld.Lo)
			l.n.inbox.report(func(now time.Duration) {
				if found {
					l.n.core.Damaged(now, damage)
				}
				l.n.core.LoadFailed(now, ld.ID, LoadDamaged)
			})
		}
	}
}
