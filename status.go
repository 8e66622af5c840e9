package raft

import (
	"sync/atomic"
	"time"
)

// The values of Status.State.
const (
	stateRunning = "running"
	stateStopped = "stopped"
	stateFailed  = "failed"
)

// Status is a view of a node at one moment. It prints as JSON. CanCommit and WhyNot answer the first question of every incident.
type Status struct {
	CoreStatus
	State       string       `json:"state"` // running, stopped (or not started yet) or failed
	Failure     string       `json:"failure,omitempty"`
	Identity    Identity     `json:"identity"`
	Repair      RepairStatus `json:"repair"`
	LeaderAddr  string       `json:"leader_address"`         // as in the configuration; "": no leader known
	InboxBytes  int          `json:"inbox_bytes"`            // messages received and not yet processed
	Dropped     uint64       `json:"dropped_messages"`       // because the inbox was full
	Proposals   int          `json:"proposals_queued"`       // on this node, not yet given to a leader
	Pending     int          `json:"proposals_pending"`      // appended, not yet applied here
	WriteQueue  int          `json:"writes_queued"`          // behind the one that is running
	ApplyQueue  int          `json:"applies_queued"`         // pieces behind the one that is running
	Refused     uint64       `json:"refused_input"`          // from peers, since the start
	LastRefusal string       `json:"last_refusal,omitempty"` // from whom and why
}

// statusPatience is how long Status waits for the loop, which answers within microseconds unless something holds it up. Then the
// last known view is better than none.
const statusPatience = 500 * time.Millisecond

// statusView is what the loop contributes to a Status.
type statusView struct {
	core      CoreStatus
	repair    RepairStatus
	address   string
	proposals int
}

// Status describes the node. It works in every state of it, before Start and after Stop too, and waits at most half a second: if
// the loop is held up that long, the protocol's part of the answer is the last one known.
func (n *Node) Status() Status {
	if n.running() == nil {
		n.refreshStatus()
	}
	s := Status{State: stateRunning, Identity: n.identity()}
	if v := n.lastView.Load(); v != nil {
		s.CoreStatus, s.Repair, s.LeaderAddr, s.Proposals = v.core, v.repair, v.address, v.proposals
	}
	s.CoreStatus.ID = n.cfg.ID
	queued := 0
	s.InboxBytes, queued, _, s.Dropped = n.inbox.load()
	s.Proposals += queued
	s.Pending = n.table.waiting()
	s.WriteQueue, s.ApplyQueue = n.writer.queued(), n.applier.queued()
	s.Refused, s.LastRefusal = n.refusals.read()

	switch err := n.Err().(type) {
	case *FailedError:
		s.State, s.Failure = stateFailed, err.Cause.Error()
	default:
		if n.running() != nil {
			s.State = stateStopped
		}
	}
	if s.State != stateRunning {
		s.Role, s.Leader, s.LeaderAddr = Follower, "", ""
		s.CanCommit, s.WhyNot = false, "this node is "+s.State
	}
	return s
}

// refreshStatus asks the loop.
func (n *Node) refreshStatus() {
	answered := make(chan struct{})
	if n.inbox.tryReport(func(now time.Duration) {
		n.drain(now) // what the core has just found out is counted, too
		n.publishStatus(now)
		close(answered)
	}) != nil {
		return
	}
	timer := time.NewTimer(statusPatience)
	defer timer.Stop()
	select {
	case <-answered:
	case <-n.loopDone:
	case <-timer.C:
	}
}

func (n *Node) publishStatus(now time.Duration) {
	core := n.core.Status(now)
	n.lastView.Store(&statusView{core: core, repair: n.repairs, address: n.addressOf(core.Leader), proposals: len(n.fwd.waiting)})
}

// refusals counts input that was turned away, and logs some of it.
type refusals struct {
	count atomic.Uint64
	last  atomic.Pointer[string]

	// Of the last warning; guarded by the Node's refusalMu.
	warnedAt time.Time
	silent   uint64
}

const refusalLogInterval = time.Second

func (r *refusals) read() (uint64, string) {
	if s := r.last.Load(); s != nil {
		return r.count.Load(), *s
	}
	return r.count.Load(), ""
}

// refused notes one refusal. A peer can cause any number of them, so at most one a second is logged.
func (n *Node) refused(peer NodeID, reason string) {
	n.metrics.Refused(reason)
	n.refusals.count.Add(1)
	text := reason + " (from " + string(peer) + ")"
	n.refusals.last.Store(&text)

	n.refusalMu.Lock()
	defer n.refusalMu.Unlock()
	r := &n.refusals
	if now := time.Now(); now.Sub(r.warnedAt) >= refusalLogInterval {
		n.log.Warn("input refused", "peer", peer, "reason", reason, "more since the last warning", r.silent)
		r.warnedAt, r.silent = now, 0
		return
	}
	r.silent++
}
