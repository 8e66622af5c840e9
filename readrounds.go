package raft

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Read returns once the state of this node's state machine is at least as new as every write that was acknowledged, anywhere in
// the cluster, before the call (dissertation §6.4): what is read from it afterwards is linearizable. It writes nothing; a follower
// asks the leader, and while there is no leader it waits for one.
//
// It blocks until then, or until ctx ends or the node stops. Errors: that of ctx, with a [*NotLeaderError] if a leader was waited
// for; a *NotLeaderError alone where Config.DisableForwarding is set; [ErrReentrant], [ErrStopped], [*FailedError], and a
// [*MembershipError] if this node is removed from the cluster meanwhile.
func (n *Node) Read(ctx context.Context) error {
	if n.applier.isCaller() {
		return ErrReentrant
	}
	if ctx.Err() != nil {
		return n.withdrawn(ctx)
	}
	b, err := n.inbox.joinRead()
	if err != nil {
		return err
	}
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		return n.withdrawn(ctx)
	}
}

// readBatch is all the reads that came while the round before them was under way. They share the next one, and one channel wakes
// them all.
type readBatch struct {
	size int // guarded by the inbox
	done chan struct{}
	once sync.Once
	err  error
	over func() // tells the loop that one batch fewer is under way
}

func newReadBatch() *readBatch { return &readBatch{done: make(chan struct{})} }

func (b *readBatch) end(err error) {
	b.once.Do(func() {
		b.err = err
		close(b.done)
		if b.over != nil {
			b.over()
		}
	})
}

// readRound is one linearizable read under way: begun by this leader, or passed on to another.
type readRound struct {
	id       uint64
	to       NodeID        // the leader it was passed on to; "": we lead
	alone    time.Duration // of a round that was passed on: until then no other is
	deadline time.Duration // likewise: then it is asked again
	batches  []*readBatch
	askers   []Header // followers that passed a read on to us
}

// maxReadRounds bounds the rounds whose reads have not ended: they may wait for the state machine. While that many do, later reads
// gather in the inbox and share the next round.
const maxReadRounds = 64

// maxReadAskers bounds the followers' questions that wait for the next round. A follower asks once in a heartbeat interval while it
// gets no answer, so this is more than a large cluster comes to while its leader has lost its quorum.
const maxReadAskers = 1024

// placeReads begins one round for all reads that wait, if none is under way. A round costs four messages and a dozen wake-ups,
// whether it serves one read or a thousand.
func (n *Node) placeReads(now time.Duration) {
	f := &n.fwd
	leading := n.view.Role == Leader
	switch {
	case !leading && n.cfg.DisableForwarding:
		n.endReads(n.notLeader())
		return
	case !leading && n.view.Leader == "", now < f.holdUntil:
		n.refuseReadAskers() // reads of our own go on gathering in the inbox
		return
	case leading && n.roundUnderWay(now):
		return
	case !leading && n.roundUnderWay(now):
		n.refuseReadAskers()
		return
	case n.readsUnderWay.Load() < maxReadRounds:
		n.takeReads()
	}
	if !leading {
		n.refuseReadAskers()
		if len(f.reads) > 0 {
			f.nextRequest++
			r := &readRound{id: f.nextRequest, to: n.view.Leader, batches: f.reads}
			r.alone, r.deadline = now+n.cfg.Core.HeartbeatInterval, now+n.cfg.Core.ElectionTimeout
			f.reads = nil
			f.rounds = append(f.rounds, r)
			n.transmit(Message{Header: n.header(r.to, r.id), Body: ForwardRead{}})
		}
		return
	}
	if len(f.reads) == 0 && len(f.readAskers) == 0 {
		return
	}
	f.nextRequest++
	r := &readRound{id: f.nextRequest, batches: f.reads, askers: f.readAskers}
	f.reads, f.readAskers = nil, nil
	if err := n.core.ReadIndex(now, r.id); err != nil {
		n.abandonRound(now, r)
		return
	}
	f.rounds = append(f.rounds, r)
}

// roundUnderWay reports whether a round must end before the next one begins. Of our own rounds each one must: if its answers are
// lost, the next heartbeat asks again. A leader that we have asked may be gone for good, so others may be asked after a while.
func (n *Node) roundUnderWay(now time.Duration) bool {
	return slices.ContainsFunc(n.fwd.rounds, func(r *readRound) bool { return r.to == "" || now < r.alone })
}

// holdReads lets reads wake the loop only if it can begin a round for them.
func (n *Node) holdReads(now time.Duration) {
	if hold := n.roundUnderWay(now); hold != n.fwd.readsHeld {
		n.fwd.readsHeld = hold
		n.inbox.holdReads(hold)
	}
}

// takeReads closes the batch in the inbox: later reads belong to a later round.
func (n *Node) takeReads() {
	gatherRequests(n.inbox.waitingReads)
	b := n.inbox.takeReads()
	if b == nil {
		return
	}
	n.readsUnderWay.Add(1)
	b.over = func() {
		n.readsUnderWay.Add(-1)
		n.inbox.nudge()
	}
	n.fwd.reads = append(n.fwd.reads, b)
}

func (n *Node) endReads(err error) {
	n.takeReads()
	for _, b := range n.fwd.reads {
		b.end(err)
	}
	n.fwd.reads = nil
	n.refuseReadAskers()
}

// abandonRound tells the followers that asked, and lets our own reads wait for the next chance.
func (n *Node) abandonRound(now time.Duration, r *readRound) {
	f := &n.fwd
	f.holdUntil = max(f.holdUntil, now+n.cfg.Core.HeartbeatInterval)
	f.reads = append(f.reads, r.batches...)
	for _, h := range r.askers {
		n.answerRead(h, ForwardReadReply{Refusal: RefusedNotLeader})
	}
}

// retryRound takes back a round that was passed on and is not answered.
func (n *Node) retryRound(i int) {
	f := &n.fwd
	f.reads = append(f.reads, f.rounds[i].batches...)
	f.rounds = append(f.rounds[:i], f.rounds[i+1:]...)
}

func (n *Node) refuseReadAskers() {
	for _, h := range n.fwd.readAskers {
		n.answerRead(h, ForwardReadReply{Refusal: RefusedNotLeader})
	}
	n.fwd.readAskers = nil
}

func (n *Node) answerRead(h Header, reply ForwardReadReply) {
	n.transmit(Message{Header: n.header(h.From, h.Request), Body: reply})
}

// handleReadResult ends a round of this leader.
func (n *Node) handleReadResult(now time.Duration, res ReadResult) {
	r := n.takeRound(res.ID, "")
	switch {
	case r == nil:
	case res.Err != nil:
		n.abandonRound(now, r)
	default:
		n.confirmRound(r, res.Index)
	}
}

// handleForwardRead lets a follower's reads join the next round.
func (n *Node) handleForwardRead(h Header) {
	if len(n.fwd.readAskers) >= maxReadAskers {
		n.answerRead(h, ForwardReadReply{Refusal: RefusedOverloaded})
		return
	}
	n.fwd.readAskers = append(n.fwd.readAskers, h)
}

// handleForwardReadReply ends a round that was passed on to a leader.
func (n *Node) handleForwardReadReply(now time.Duration, h Header, b ForwardReadReply) {
	r := n.takeRound(h.Request, h.From)
	switch {
	case r == nil:
	case b.Refusal != RefusedNot:
		n.abandonRound(now, r)
	default:
		n.confirmRound(r, b.Index)
	}
}

func (n *Node) takeRound(id uint64, to NodeID) *readRound {
	f := &n.fwd
	for i, r := range f.rounds {
		if r.id == id && r.to == to {
			f.rounds = append(f.rounds[:i], f.rounds[i+1:]...)
			return r
		}
	}
	return nil
}

func (n *Node) confirmRound(r *readRound, index Index) {
	for _, b := range r.batches {
		n.table.awaitApplied(index, b)
	}
	for _, h := range r.askers {
		n.answerRead(h, ForwardReadReply{Index: index})
	}
}
