package manager

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/agent"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/plan"
)

// proposeTimeout bounds one command of the control loop. It only matters when the quorum is gone: then nothing commits, and the loop
// has to notice that its office is over.
const proposeTimeout = 5 * time.Second

// retryPause is how long the control loop waits after commands that were not carried out, for the lack of room for instance.
const retryPause = 100 * time.Millisecond

// office is one term in which this manager leads: its epoch, and which nodes it has heard in it.
type office struct {
	epoch raft.Term
	news  chan struct{} // holds one token when a node was heard that the state does not know to be ready

	mu    sync.Mutex
	heard map[cluster.NodeID]time.Time
	cas   map[cluster.NodeID]agent.CAReport // what the nodes have said last about the CAs
	loads map[cluster.NodeID]map[cluster.TaskID]plan.Load
}

func newOffice(epoch raft.Term) *office {
	return &office{epoch: epoch, news: make(chan struct{}, 1), heard: make(map[cluster.NodeID]time.Time), loads: make(map[cluster.NodeID]map[cluster.TaskID]plan.Load)}
}

// hear notes a sign of life.
func (o *office) hear(id cluster.NodeID, s *cluster.State, now time.Time) {
	o.mu.Lock()
	o.heard[id] = now
	o.mu.Unlock()
	if n := s.Nodes[id]; n == nil || n.Status != cluster.NodeReady {
		select {
		case o.news <- struct{}{}:
		default:
		}
	}
}

// weigh notes what a node says that its tasks use. Of tasks of others it says nothing that counts.
func (o *office) weigh(id cluster.NodeID, loads map[cluster.TaskID]float64, s *cluster.State, now time.Time) {
	of := make(map[cluster.TaskID]plan.Load)
	for task, percent := range loads {
		if t := s.Tasks[task]; t != nil && t.Node == id && percent >= 0 {
			of[task] = plan.Load{CPU: percent, At: now}
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if delete(o.loads, id); len(of) > 0 {
		o.loads[id] = of
	}
}

// load returns what is known of every task.
func (o *office) load() map[cluster.TaskID]plan.Load {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := make(map[cluster.TaskID]plan.Load)
	for _, of := range o.loads { // order-free: a task is on one node
		maps.Copy(all, of)
	}
	return all
}

// note keeps what a node says about the CAs.
func (o *office) note(id cluster.NodeID, ca agent.CAReport) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.cas == nil {
		o.cas = make(map[cluster.NodeID]agent.CAReport)
	}
	o.cas[id] = ca
}

func (o *office) reports() map[cluster.NodeID]agent.CAReport {
	o.mu.Lock()
	defer o.mu.Unlock()
	return maps.Clone(o.cas)
}

func (o *office) signs() map[cluster.NodeID]time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	return maps.Clone(o.heard)
}

// lead is the control loop: it runs while this manager leads, as raft.Node.WhileLeader promises, and does what package plan decides.
//
// Two things keep a loop that has been deposed and does not know it from doing harm. Its commands carry IfTerm, so they are appended in
// its own term or not at all. And should one of them have been appended in time, but be applied behind the first command of its
// successor, the state machine refuses it, because it carries an epoch that is over.
func (m *Manager) lead(ctx context.Context, epoch raft.Term) error {
	o := newOffice(epoch)
	begin := cluster.Command{Epoch: epoch, At: time.Now(), Op: cluster.StartEpoch{Leader: m.settings.Node}}
	for !m.proposeAll(ctx, epoch, []cluster.Command{begin}) {
		if !pause(ctx, retryPause) {
			return nil
		}
	}
	m.office.Store(o)
	defer m.office.CompareAndSwap(o, nil)
	m.log.Info("this manager leads", "epoch", epoch)
	keeping, endKeeping := context.WithCancel(ctx)
	var keeper sync.WaitGroup
	keeper.Go(func() { m.keepVoters(keeping) })
	defer keeper.Wait()
	defer endKeeping()

	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		state, replaced := m.machine.Watch()
		now := time.Now()
		commands, next := plan.Nodes(state, o.signs(), now)
		add := func(more []cluster.Command, later time.Time) {
			commands = append(commands, more...)
			if !later.IsZero() && (next.IsZero() || later.Before(next)) {
				next = later
			}
		}
		add(plan.Plan(state, now))
		if plan.Scales(state) {
			add(plan.Scale(state, o.load(), now))
		}
		if len(commands) > 0 {
			if !m.proposeAll(ctx, epoch, commands) && !pause(ctx, retryPause) {
				return nil
			}
			continue // what they have done may ask for more
		}
		wait := time.Hour
		if !next.IsZero() {
			wait = max(0, next.Sub(now))
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-replaced:
		case <-o.news:
		case <-timer.C:
		}
	}
	return nil
}

// proposeAll proposes commands of one plan, all at once, and waits until each has been applied here or has failed. It reports whether
// all were carried out or refused by the state machine; those refused did not fit any more, and the next plan is made without them.
func (m *Manager) proposeAll(ctx context.Context, epoch raft.Term, commands []cluster.Command) bool {
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	var pending []*raft.Pending
	for _, c := range commands {
		data, err := cluster.Encode(c)
		if err != nil { // of values that came from the state, which was decoded from JSON
			m.log.Error("a command cannot be encoded", "error", err)
			return false
		}
		pending = append(pending, m.node.ProposeAsync(ctx, data, raft.IfTerm(epoch)))
	}
	good := true
	for i, p := range pending {
		result, err := p.Result()
		if err != nil {
			good = false
			if !errors.Is(err, raft.ErrStaleTerm) && ctx.Err() == nil {
				m.log.Warn("a command of the control loop was not carried out; it will be planned again if it is still needed", "error", err)
			}
			continue
		}
		if r := result.(cluster.Result); r.Code != cluster.OK {
			m.log.Debug("a command of the control loop was refused", "op", commands[i].Op, "code", r.Code, "message", r.Message)
		}
	}
	return good
}

// pause waits, and reports false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
