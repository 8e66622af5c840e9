package raft

import (
	"context"
	"time"
)

// confWaiter waits until the change that was appended at id is complete: a configuration at or behind id, and not a joint one, is
// committed.
type confWaiter struct {
	id   EntryID
	held bool // known before done is sent to: the log holds the entry id, and not another leader's in its place
	done chan Index
}

// ChangeMembership changes who belongs to the cluster, in one step and safely (§6): whatever the change, at no moment can two
// majorities decide apart. It has to be called on the leader. It returns once the change is complete, and then the index of the
// configuration that is in force, for Change.IfIndex.
//
// It blocks until then, or until ctx ends or the node stops. Errors that leave everything as it was: [*NotLeaderError],
// [ErrChangePending], [ErrChangeConflict], [*MembershipError], [ErrDropped], [ErrReentrant], [ErrStopped], [*FailedError], and that of
// ctx. After an [*UncertainError] the change may be complete, under way, or undone: look at Status.
func (n *Node) ChangeMembership(ctx context.Context, ch Change) (Index, error) {
	if n.applier.isCaller() {
		return 0, ErrReentrant
	}
	if err := n.inbox.refusing(); err != nil {
		return 0, err
	}
	p := newPending(n, Entry{}, 0, false)
	w := &confWaiter{done: make(chan Index, 1)}
	var refused error
	if err := n.onLoop(ctx, func(now time.Duration) {
		var id EntryID
		if id, refused = n.core.ChangeMembership(now, ch); refused != nil {
			return
		}
		p.stage, p.id, w.id = stageClaimed, id, id
		n.table.insert([]slot{{id: id, p: p}})
		n.confWaiters = append(n.confWaiters, w)
	}); err != nil {
		return 0, err
	}
	if refused != nil {
		return 0, refused
	}
	forget := func() {
		n.inbox.report(func(time.Duration) {
			for i := range n.confWaiters {
				if n.confWaiters[i] == w {
					n.confWaiters = append(n.confWaiters[:i], n.confWaiters[i+1:]...)
					return
				}
			}
		})
	}
	if _, err := p.wait(ctx); err != nil {
		select {
		case index := <-w.done: // a server that removed itself may never apply what it committed
			if w.held {
				return index, nil
			}
		default:
		}
		forget()
		return 0, err
	}
	select {
	case index := <-w.done:
		return index, nil
	case <-ctx.Done():
		forget()
		return 0, &UncertainError{ID: p.id, Cause: ctx.Err()}
	case <-n.loopDone:
		return 0, &UncertainError{ID: p.id, Cause: n.terminal()}
	}
}
