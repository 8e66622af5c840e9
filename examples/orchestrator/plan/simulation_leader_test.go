package plan_test

import (
	"errors"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/plan"
	"github.com/steadyraft/raft/raftsim"
)

// loop is the control loop of one server in one term, as manager.Manager.lead runs it.
type loop struct {
	w       *world
	s       *raftsim.Server
	epoch   raft.Term
	heard   map[cluster.NodeID]time.Time
	loads   map[cluster.TaskID]plan.Load
	begun   bool
	pending int // commands that are not applied yet
	woken   bool
}

func (w *world) Led(s *raftsim.Server) {
	term := s.Leads()
	if term == 0 {
		delete(w.loops, s)
		return
	}
	l := &loop{w: w, s: s, epoch: term, heard: map[cluster.NodeID]time.Time{}, loads: map[cluster.TaskID]plan.Load{}}
	w.loops[s] = l
	l.begin()
}

func (l *loop) begin() {
	if l.w.loops[l.s] != l {
		return
	}
	c := cluster.Command{Epoch: l.epoch, At: clockOf(l.s), Op: cluster.StartEpoch{Leader: cluster.NodeID(l.s.ID())}}
	err := l.s.Propose(encode(c), l.epoch, func(any) {
		l.begun = true
		l.wake()
		l.keepVoters()
	})
	if err != nil {
		l.s.On(100*time.Millisecond, l.begin)
	}
}

func (w *world) Applied(s *raftsim.Server) {
	if l := w.loops[s]; l != nil {
		l.wake()
	}
	w.checkTruth()
}

// wake has the loop plan, once, if nothing is under way.
func (l *loop) wake() {
	if !l.begun || l.pending > 0 || l.woken {
		return
	}
	l.woken = true
	l.s.On(0, func() {
		l.woken = false
		l.turn()
	})
}

// turn plans, and proposes what is to be done a moment later: a leader may be deposed in between, and propose all the same.
func (l *loop) turn() {
	if l.w.loops[l.s] != l || l.pending > 0 {
		return
	}
	now, state := clockOf(l.s), stateOf(l.s)
	commands, next := plan.Nodes(state, l.heard, now)
	add := func(more []cluster.Command, later time.Time) {
		commands = append(commands, more...)
		if next.IsZero() || !later.IsZero() && later.Before(next) {
			next = later
		}
	}
	add(plan.Plan(state, now))
	add(plan.Scale(state, l.loads, now))
	if len(commands) == 0 {
		if !next.IsZero() {
			l.s.On(max(next.Sub(now), time.Millisecond), l.wake)
		}
		return
	}
	l.pending = len(commands)
	thinks := l.w.upTo(3 * time.Millisecond)
	if l.w.Random().IntN(10) == 0 && !l.w.Healed() {
		thinks = l.w.upTo(3 * time.Second) // it stands still
	}
	l.s.On(thinks, func() { l.propose(commands) })
}

func (l *loop) propose(commands []cluster.Command) {
	if l.w.loops[l.s] != l {
		l.w.seen.Deposed++
		l.w.haunt(commands)
	}
	for _, c := range commands {
		done := func(any) {
			if l.pending--; l.pending == 0 {
				l.wake()
			}
		}
		switch err := l.s.Propose(encode(c), l.epoch, done); {
		case errors.Is(err, raft.ErrStaleTerm):
			return
		case err != nil: // no room
			l.pending--
			if l.pending == 0 {
				l.s.On(100*time.Millisecond, l.wake)
			}
		}
	}
}

// haunt has the commands of a deposed leader get into the log all the same, as if there were no IfTerm: the epoch has to stop them.
func (w *world) haunt(commands []cluster.Command) {
	if w.Healed() {
		return
	}
	for _, s := range w.Servers() {
		if l := w.loops[s]; s.Up() && l != nil && l.begun && s.Leads() == l.epoch && commands[0].Epoch < l.epoch {
			s.On(w.upTo(50*time.Millisecond), func() {
				for _, c := range commands {
					_ = s.Propose(encode(c), 0, nil) // it is nobody's, so nobody waits
				}
			})
			return
		}
	}
}
