package raft

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// Leadership is one observation of who leads.
type Leadership struct {
	LeaderChange
	Address  string `json:"address"`  // of the leader, as in the configuration; "": not known
	Revision uint64 `json:"revision"` // rises with every change that this node has seen; 0 before it was started
}

// leadership holds the newest observation. It is a state, not a stream of events: who asks gets the latest, nobody can take an
// event away from somebody else, and nobody who is slow holds up the loop.
type leadership struct {
	mu          sync.Mutex
	now         Leadership
	appliedTerm Term          // of the newest entry that the state machine has seen
	changed     chan struct{} // closed, and replaced, with every change of anything here
	over        error         // why there will be no further change
	work        *leaderWork   // what WhileLeader runs
}

func (l *leadership) init() { l.changed = make(chan struct{}) }

func (l *leadership) current() Leadership {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now
}

// set publishes a change, and ends the leader's work if its office is over. It runs no code of the embedder.
func (l *leadership) set(c LeaderChange, address string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over != nil {
		return
	}
	l.now = Leadership{LeaderChange: c, Address: address, Revision: l.now.Revision + 1}
	if l.work != nil && (c.Role != Leader || c.Term != l.work.epoch) {
		l.work.stop(&NotLeaderError{Leader: c.Leader, Address: address, Term: c.Term}, true)
	}
	l.announce()
}

// setAppliedTerm notes the term of the newest applied entry.
func (l *leadership) setAppliedTerm(t Term) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t > l.appliedTerm {
		l.appliedTerm = t
		l.announce()
	}
}

// finish publishes the last state: this server leads nobody any more.
func (l *leadership) finish(cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over != nil {
		return
	}
	l.over = cause
	if l.now.Revision > 0 {
		l.now = Leadership{LeaderChange: LeaderChange{Term: l.now.Term, Role: Follower, Reason: ReasonAbstained}, Revision: l.now.Revision + 1}
	}
	if l.work != nil {
		l.work.stop(cause, false)
	}
	l.announce()
}

// endWork cancels the leader's work and lets no other begin. Observers go on.
func (l *leadership) endWork(cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.work != nil {
		l.work.stop(cause, false)
	}
}

// announce is called with mu held.
func (l *leadership) announce() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// Leadership returns the present state. It never blocks.
func (n *Node) Leadership() Leadership { return n.lead.current() }

// OnLeaderChange calls f with the latest state, at once and after every change, on a goroutine of its own and one call at a time.
// An observer that is slow skips states and sees the latest; Revision shows that it did. After the node has stopped f is called
// with the last state, and then no more. f may call every method of the node, stop included.
//
// stop ends the observation. It does not wait for a call of f that is running. A panic in f makes the node Failed.
func (n *Node) OnLeaderChange(f func(Leadership)) (stop func()) {
	quit := make(chan struct{})
	var once sync.Once
	go n.observe(f, quit)
	return func() { once.Do(func() { close(quit) }) }
}

func (n *Node) observe(f func(Leadership), quit <-chan struct{}) {
	defer func() {
		if r := recover(); r != nil {
			n.fail(&panicError{in: "an observer of OnLeaderChange", value: r, stack: debug.Stack()})
		}
	}()
	l := &n.lead
	seen, first := uint64(0), true
	for {
		l.mu.Lock()
		now, changed, over := l.now, l.changed, l.over
		l.mu.Unlock()
		select {
		case <-quit:
			return
		default:
		}
		if first || now.Revision != seen {
			first, seen = false, now.Revision
			f(now)
			continue
		}
		if over != nil {
			return
		}
		select {
		case <-changed:
		case <-quit:
			return
		}
	}
}

// leaderWork is one run of the function given to WhileLeader.
type leaderWork struct {
	epoch  Term
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu       sync.Mutex
	stopped  bool
	returned bool
	grace    *time.Timer
	overdue  func() // what to do when the grace is over
	period   time.Duration
}

// stop cancels the work's context. With graced, its grace period begins; without, the node itself is ending.
func (w *leaderWork) stop(cause error, graced bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cancel(cause)
	if !graced || w.stopped || w.returned {
		return
	}
	w.stopped = true
	w.grace = time.AfterFunc(w.period, w.overdue)
}

// WhileLeader runs f whenever this server leads: once per term that it wins, after everything that earlier leaders committed has
// been applied here, so that f sees the whole state. epoch is the term. It is the fencing token for everything that f does: give
// it to [IfTerm] with every command, and to every side effect outside of the cluster, and refuse lower ones there.
//
// f's context is cancelled when leadership is lost (context.Cause tells: a [*NotLeaderError], [ErrStopped] or a [*FailedError]) or
// when ctx ends. Another server may lead before f notices; the epoch, not the context, is what keeps the two apart. f may call
// every method of the node. It is called on the caller's goroutine, so a panic in f is the caller's.
//
// When f returns
//
//   - after its context was cancelled, WhileLeader waits for the next term;
//   - nil before that, f is not called again in this term;
//   - an error before that, WhileLeader returns it.
//
// Two runs of f never overlap, and neither do two calls of WhileLeader: the second one returns [ErrBusy]. If f ignores the
// cancellation of its context for longer than Config.LeaderWorkGrace, the node logs it and does not lead until f has returned: it
// does not campaign, and hands leadership over if it is elected.
//
// WhileLeader returns when ctx ends (its error), when f fails, and when the node stops or fails ([ErrStopped], [*FailedError]), but
// never before f has returned. [Node.Stop] cancels f and does not wait for it.
func (n *Node) WhileLeader(ctx context.Context, f func(ctx context.Context, epoch Term) error) error {
	if n.applier.isCaller() {
		return ErrReentrant
	}
	if !n.working.CompareAndSwap(false, true) {
		return fmt.Errorf("WhileLeader: %w", ErrBusy)
	}
	defer n.working.Store(false)
	done := Term(0) // f has had its run in this term
	for {
		w, err := n.takeOffice(ctx, done)
		if err != nil {
			return err
		}
		done = w.epoch
		err = n.runLeaderWork(w, f)
		deposed := w.ctx.Err() != nil
		w.cancel(nil)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case !deposed && err != nil:
			return err
		}
	}
}

// takeOffice waits until this server leads in a term after done and has applied that term's first entry.
func (n *Node) takeOffice(ctx context.Context, done Term) (*leaderWork, error) {
	l := &n.lead
	for {
		l.mu.Lock()
		changed := l.changed
		switch now := l.now; {
		case ctx.Err() != nil:
			l.mu.Unlock()
			return nil, ctx.Err()
		case l.over != nil:
			l.mu.Unlock()
			return nil, l.over
		// The first entry of a leader's term follows everything that its predecessors committed (§5.4.2, §8), so when the state
		// machine has seen an entry of this term it has seen all of that.
		case now.Role == Leader && now.Term > done && l.appliedTerm == now.Term && !n.stopping.Load():
			w := &leaderWork{epoch: now.Term, period: n.cfg.LeaderWorkGrace}
			w.overdue = func() { n.leaderWorkOverdue(w) }
			w.ctx, w.cancel = context.WithCancelCause(ctx)
			l.work = w
			l.mu.Unlock()
			return w, nil
		}
		l.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

func (n *Node) runLeaderWork(w *leaderWork, f func(context.Context, Term) error) error {
	defer n.leaderWorkReturned(w)
	return f(w.ctx, w.epoch)
}

// leaderWorkOverdue keeps a server from leading whose previous work still runs: a new term would have no work, or two at once.
func (n *Node) leaderWorkOverdue(w *leaderWork) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.returned {
		return
	}
	n.log.Error("leader work ignores the cancellation of its context; this server will not lead until it returns",
		"epoch", w.epoch, "grace", w.period, "cause", context.Cause(w.ctx))
	n.abstain(true)
}

func (n *Node) leaderWorkReturned(w *leaderWork) {
	n.lead.mu.Lock()
	n.lead.work = nil
	n.lead.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.returned = true
	if w.grace != nil && !w.grace.Stop() {
		n.abstain(false) // the grace was over; overdue has run, or will see that we returned
	}
}

// abstain tells the core, in the order of the calls.
func (n *Node) abstain(on bool) {
	n.inbox.report(func(now time.Duration) { n.core.Abstain(now, on) })
}

// ChangeLeader hands leadership over to target (dissertation §3.10); "" picks the voter that has most of the log. It has to be
// called on the leader. It goes on serving while a target that lacks much is brought up to date; proposals that arrive after that
// wait, and go to the new leader.
//
// It returns nil once this server has given way to the target, which campaigns in a later term and need not have won yet:
// Leadership tells when it has. It returns [ErrTransferFailed] if that took longer than an election timeout: then this one goes on.
// Other errors: [*NotLeaderError], [ErrBusy] (a transfer is running), [*MembershipError] (target is no voter), [ErrStopped],
// [*FailedError]. If ctx ends first, the transfer goes on and the error is an [*UncertainError].
func (n *Node) ChangeLeader(ctx context.Context, target NodeID) error {
	if err := n.inbox.refusing(); err != nil {
		return err
	}
	return n.changeLeader(ctx, target)
}

func (n *Node) changeLeader(ctx context.Context, target NodeID) error {
	ended := make(chan error, 1)
	var refused error
	if err := n.onLoop(ctx, func(now time.Duration) {
		if len(n.transfers) > 0 {
			refused = fmt.Errorf("change leader: %w", ErrBusy)
			return
		}
		if refused = n.core.ChangeLeader(now, target); refused == nil {
			n.transfers = append(n.transfers, ended)
		}
	}); err != nil {
		return err
	}
	if refused != nil {
		return refused
	}
	var cause error
	select {
	case err := <-ended:
		return err
	case <-n.loopDone:
		cause = n.terminal()
	case <-ctx.Done():
		cause = ctx.Err()
	}
	// The end of the transfer may be what has ended ctx: in the work of WhileLeader it always is. The outcome is known then.
	select {
	case err := <-ended:
		return err
	default:
		return &UncertainError{Cause: cause}
	}
}
