package raft_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/steadyraft/raft"
)

// breakNetwork cuts, isolates, loses and delays.
func (w *world) breakNetwork(ctx context.Context, r *rand.Rand) {
	for w.pause(ctx, r, 50*time.Millisecond, 1500*time.Millisecond) {
		a, b := w.any(r).id, w.any(r).id
		switch r.IntN(9) {
		case 0:
			w.net.Cut(a, b)
		case 1:
			w.net.Disconnect(a, b)
		case 2:
			w.net.Isolate(a)
		case 3:
			w.net.Rejoin(a)
		case 4:
			w.net.SetLoss(oneOf(r, 0, 0, 0.02, 0.1, 0.3), r.Uint64())
		case 5:
			w.net.SetDelay(0, oneOf(r, 0, 5*time.Millisecond, 50*time.Millisecond, time.Second))
		default:
			w.net.Heal()
		}
	}
	w.net.SetDelay(0, 5*time.Millisecond)
}

// breakProcesses stops and crashes servers, now and then all of them, and starts them again.
func (w *world) breakProcesses(ctx context.Context, r *rand.Rand) {
	for w.pause(ctx, r, 100*time.Millisecond, 3*time.Second) {
		victims := []*chaosServer{w.any(r)}
		if r.IntN(8) == 0 {
			victims = w.all()
		}
		graceful, down := r.IntN(3) == 0, between(r, time.Millisecond, 2*time.Second)
		var done sync.WaitGroup
		for _, s := range victims {
			done.Go(func() {
				defer s.take()()
				if graceful {
					w.stop(s)
				} else {
					w.crash(s)
				}
				time.Sleep(down)
				if s.current.Load() == nil {
					w.start(s)
				}
			})
		}
		done.Wait()
	}
}

// breakDisks makes disks fail for good, fill up, or hang.
func (w *world) breakDisks(ctx context.Context, r *rand.Rand) {
	for w.pause(ctx, r, 200*time.Millisecond, 4*time.Second) {
		s, how, crash := w.any(r), r.IntN(3), r.IntN(2) == 0
		lasts := between(r, 10*time.Millisecond, 3*time.Second)
		give := s.take()
		p := s.current.Load()
		w.note("disk", s, "how", how, "lasts", lasts, "crash", crash)
		switch {
		case p == nil:
		case how == 0:
			p.mayFail.Store(true)
			s.disk.fail(true)
			time.Sleep(lasts)
			if crash {
				w.crash(s)
			} else {
				w.stop(s)
			}
			s.disk.fail(false)
			w.start(s)
			w.saw("failed disk")
		case how == 1:
			s.disk.full(true)
			time.Sleep(lasts)
			s.disk.full(false)
			w.saw("full disk")
		default:
			end := s.hangs.begin()
			time.Sleep(lasts)
			if crash {
				p.mayFail.Store(true)
				s.disk.crash(r.Uint64()) // what hangs comes back to a disk that is gone
				w.net.Crash(s.id)
				end()
				s.awaitEnd(p)
				s.current.Store(nil)
				w.start(s)
			} else {
				end()
			}
			w.saw("hanging disk")
		}
		give()
	}
}

// changeMembers is an operator who does not always look who leads.
func (w *world) changeMembers(ctx context.Context, r *rand.Rand) {
	for w.pause(ctx, r, 200*time.Millisecond, 3*time.Second) {
		p := w.leader()
		if p == nil || r.IntN(8) == 0 {
			p = w.any(r).current.Load()
		}
		if p == nil {
			continue
		}
		st := p.node.Status()
		members := st.Configuration.Servers
		var ch raft.Change
		for range 1 + r.IntN(2) {
			if len(members) == 0 {
				break
			}
			m := members[r.IntN(len(members))]
			switch kind := r.IntN(6); {
			case kind == 0 && len(w.all()) < 9:
				s := w.addServer(raft.NodeID(fmt.Sprintf("n%d", len(w.all())+1)))
				give := s.take()
				w.start(s)
				give()
				ch.Add = append(ch.Add, raft.Server{ID: s.id, Address: string(s.id)})
			case kind == 1 && len(members) > 2:
				ch.Remove = append(ch.Remove, m.ID)
			case kind == 2 && m.Suffrage == raft.Voter:
				ch.Demote = append(ch.Demote, m.ID)
			case m.Suffrage == raft.NonVoter:
				ch.Promote = append(ch.Promote, m.ID)
			default:
				ch.Priority = map[raft.NodeID]uint8{m.ID: uint8(r.IntN(3))}
			}
		}
		if r.IntN(2) == 0 {
			ch.IfIndex = st.ConfigurationIndex
		}
		limit := between(r, 50*time.Millisecond, 4*time.Second)
		w.bounded("ChangeMembership", limit, func(ctx context.Context) {
			index, err := p.node.ChangeMembership(ctx, ch)
			if err != nil {
				return
			}
			w.saw("membership changed")
			if st := p.node.Status(); st.State == "running" && st.CommitIndex < index {
				w.ledger.wrong("ChangeMembership returned index %d before it was committed: %v", index, st.CommitIndex)
			}
		})
	}
}

// moveLeadership asks for transfers.
func (w *world) moveLeadership(ctx context.Context, r *rand.Rand) {
	for w.pause(ctx, r, 200*time.Millisecond, 3*time.Second) {
		p, target := w.leader(), raft.NodeID("")
		if p == nil {
			p = w.any(r).current.Load()
		}
		if r.IntN(2) == 0 {
			target = w.any(r).id
		}
		if p == nil {
			continue
		}
		w.bounded("ChangeLeader", between(r, time.Millisecond, 3*time.Second), func(ctx context.Context) {
			if p.node.ChangeLeader(ctx, target) == nil {
				w.saw("leadership moved")
			}
		})
	}
}

func (w *world) takeSnapshots(ctx context.Context, r *rand.Rand) {
	for w.pause(ctx, r, 100*time.Millisecond, 2*time.Second) {
		if p := w.any(r).current.Load(); p != nil {
			w.bounded("Snapshot", between(r, time.Millisecond, 3*time.Second), func(ctx context.Context) {
				if _, err := p.node.Snapshot(ctx); err == nil {
					w.saw("snapshot")
				}
			})
		}
	}
}

// pause sleeps for a while. It reports false when ctx is over.
func (w *world) pause(ctx context.Context, r *rand.Rand, shortest, longest time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(between(r, shortest, longest)):
		return ctx.Err() == nil
	}
}

// bounded makes a call that must not outlast its context.
func (w *world) bounded(what string, limit time.Duration, call func(context.Context)) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	begin := time.Now()
	call(ctx)
	if took := time.Since(begin); took > limit {
		w.ledger.wrong("%s took %v with a context of %v", what, took, limit)
	}
}

var errWork = errors.New("chaos: the leader's work went wrong")
