package raft

import (
	"errors"
	"slices"
	"time"
)

// A follower passes proposals and reads on to the leader it knows. Three rules keep that honest:
//
//   - A forwarded proposal is sent once. If its answer does not come, nobody here can know whether the leader appended it, so the
//     caller is told that the outcome is uncertain; only a refusal lets it be sent again.
//   - The leader takes a forwarded message once, although the network may duplicate it: only in the very term that the follower
//     names, and in that term each request number only once. It refuses a message only if it knows that it has not taken it before.
//     Otherwise the refusal of a duplicate would make the follower send again what the first one had appended.
//   - Reads change nothing. They are repeated until they are answered.

// forward is a message with proposals that waits for the leader's answer.
type forward struct {
	to       NodeID
	request  uint64
	deadline time.Duration
	ps       []*Pending
}

// forwardIn is a message with proposals that another server has forwarded to us.
type forwardIn struct {
	header   Header
	ps       []Proposal
	outcomes []ForwardOutcome
	left     int
}

// forwarding is the loop's side of all this. The loop alone uses it.
type forwarding struct {
	nextRequest uint64
	waiting     []*Pending // for a leader
	incoming    []*forwardIn
	unanswered  []*forward // by rising request number

	reads      []*readBatch // wait for a leader
	readAskers []Header
	rounds     []*readRound
	readsHeld  bool // as the inbox was told last

	// After a refusal nothing is tried before holdUntil, or before the leader changes.
	holdUntil time.Duration

	gatherUntil time.Duration // when proposals that wait for company go all the same; 0: none do

	frames frameSlab // of commands that were proposed here

	seenTerm Term // of seen: the newest term in which this process has led
	seen     map[NodeID]*replayWindow

	// scratch
	items   []appendItem
	entries []Entry
	slots   []slot
}

// appendItem is one entry on its way into the leader's log: proposed here, or by a follower.
type appendItem struct {
	p    *Pending
	in   *forwardIn
	slot int // in in.ps
}

// placeProposals hands everything that waits to the core in one piece if this server leads, and to the leader otherwise.
func (n *Node) placeProposals(now time.Duration) {
	f := &n.fwd
	n.purgeWithdrawn()
	if len(f.waiting) == 0 && len(f.incoming) == 0 {
		f.gatherUntil = 0 // what waited was given up: a time that has passed would keep the loop awake
		return
	}
	if n.gathers(now) {
		return
	}
	f.gatherUntil = 0
	switch {
	case n.view.Role == Leader && now >= f.holdUntil:
		n.appendAsLeader(now)
	case n.view.Role != Leader && n.cfg.DisableForwarding:
		n.endWaiting(n.notLeader())
	case n.view.Role != Leader && n.view.Leader != "" && now >= f.holdUntil:
		n.forwardWaiting(now)
	}
	for _, in := range f.incoming { // those that were not appended
		n.refuseForward(in, RefusedNotLeader)
	}
	clear(f.incoming)
	f.incoming = f.incoming[:0]
}

// Bounds of what a leader gathers: how long, how much of its own, and how many messages of followers.
const (
	gatherTime     = time.Millisecond
	gatherBytes    = 128 << 10
	gatherForwards = 16
)

// gathers reports whether the proposals that wait had better wait for others. While the leader's disk is busy, a new entry could not
// become durable here before the write after the one under way, and it is applied only then. If it went out at once, each of a
// hundred clients would cost a message to every follower, an answer and a few wake-ups; so all that come while one write runs go
// together. It is not for long: another server's disk may be faster, and the way to it may be far.
func (n *Node) gathers(now time.Duration) bool {
	f := &n.fwd
	if n.view.Role != Leader || now < f.holdUntil || n.written <= n.persisted || len(f.incoming) >= gatherForwards || n.draining.Load() {
		return false
	}
	if f.gatherUntil == 0 {
		f.gatherUntil = now + gatherTime
	}
	return now < f.gatherUntil && n.inbox.gather(gatherBytes)
}

// purgeWithdrawn drops proposals that were given up, once they are half of all that wait: no more work than that of queueing them.
func (n *Node) purgeWithdrawn() {
	f := &n.fwd
	if w := n.inbox.withdrawn(); w == 0 || 2*w < len(f.waiting) {
		return
	}
	n.inbox.resetWithdrawn()
	n.keepWaiting(func(p *Pending) bool { return !p.isWithdrawn() })
}

// keepWaiting drops the waiting proposals for which keep returns false, and frees their place in the queue.
func (n *Node) keepWaiting(keep func(*Pending) bool) {
	f := &n.fwd
	kept, released := f.waiting[:0], 0
	for _, p := range f.waiting {
		if keep(p) {
			kept = append(kept, p)
		} else {
			released += p.size
		}
	}
	clear(f.waiting[len(kept):])
	f.waiting = kept
	n.inbox.releaseProposals(released)
}

func (n *Node) endWaiting(err error) {
	n.keepWaiting(func(p *Pending) bool { p.end(nil, err); return false })
}

// termAllows checks a proposal's IfTerm against the term of the known leader. A later term may still come.
func (n *Node) termAllows(ifTerm Term) (now, ever bool) {
	return ifTerm == 0 || ifTerm == n.view.Term, ifTerm == 0 || ifTerm >= n.view.Term
}

// appendAsLeader gives all that waits, from here and from followers, to the core at once.
func (n *Node) appendAsLeader(now time.Duration) {
	f := &n.fwd
	f.items, f.entries, f.slots = f.items[:0], slices.Grow(f.entries[:0], len(f.waiting)), f.slots[:0]
	n.keepWaiting(func(p *Pending) bool {
		switch nowOK, everOK := n.termAllows(p.ifTerm); {
		case !everOK:
			p.end(nil, ErrStaleTerm)
			return false
		case !nowOK:
			return true
		}
		if e, ok := p.claim(&f.frames); ok {
			f.items, f.entries = append(f.items, appendItem{p: p}), append(f.entries, e)
		}
		return false
	})
	for _, in := range f.incoming {
		for i := range in.ps {
			if in.outcomes[i].Refusal != RefusedNot {
				continue
			}
			if allowed, _ := n.termAllows(in.ps[i].IfTerm); !allowed {
				n.forwardOutcome(in, i, ForwardOutcome{Refusal: RefusedTerm})
				continue
			}
			f.items, f.entries = append(f.items, appendItem{in: in, slot: i}), append(f.entries, in.ps[i].Entry)
		}
	}
	if len(f.items) == 0 {
		clearIncoming(f)
		return
	}

	first, accepted, err := n.core.Propose(now, f.entries)
	for i, it := range f.items[:accepted] {
		id := EntryID{Term: first.Term, Index: first.Index + Index(i)}
		if it.in != nil {
			n.forwardOutcome(it.in, it.slot, ForwardOutcome{ID: id})
			continue
		}
		it.p.appended(id)
		f.slots = append(f.slots, slot{id: id, p: it.p})
	}
	n.watchCommit(f.slots)
	for _, sl := range f.slots {
		sl.p.tabled = !sl.p.async && sl.p.started.IsZero()
	}
	n.table.insert(f.slots)

	retry := errors.Is(err, ErrTransferring) || errors.Is(err, ErrNotLeader)
	if retry {
		f.holdUntil = now + n.cfg.Core.HeartbeatInterval
	}
	code := refusalOf(err)
	for _, it := range f.items[accepted:] {
		switch {
		case it.in != nil:
			n.forwardOutcome(it.in, it.slot, ForwardOutcome{Refusal: code})
		case retry:
			n.requeue(it.p)
		default:
			it.p.end(nil, err)
		}
	}
	clearIncoming(f)
	clear(f.items)
	if len(f.entries) >= wholeChunk {
		f.entries = nil // the log has taken it over
	}
	clear(f.entries)
	clear(f.slots)
}

func clearIncoming(f *forwarding) {
	clear(f.incoming)
	f.incoming = f.incoming[:0]
}

// requeue lets a proposal that was certainly appended nowhere wait again.
func (n *Node) requeue(p *Pending) {
	if p.unclaim() {
		n.inbox.reclaimProposals(p.size)
		n.fwd.waiting = append(n.fwd.waiting, p)
	}
}

// forwardWaiting passes all that waits on to the leader, in messages of bounded size.
func (n *Node) forwardWaiting(now time.Duration) {
	f := &n.fwd
	var fw *forward
	var body ForwardPropose
	size := 0
	flush := func() {
		if fw == nil {
			return
		}
		f.unanswered = append(f.unanswered, fw)
		n.table.beginForward()
		n.transmit(Message{Header: n.header(fw.to, fw.request), Body: body})
		fw, body, size = nil, ForwardPropose{}, 0
	}
	n.keepWaiting(func(p *Pending) bool {
		switch nowOK, everOK := n.termAllows(p.ifTerm); {
		case !everOK:
			p.end(nil, ErrStaleTerm)
			return false
		case !nowOK, len(f.unanswered) >= maxForwards:
			return true
		}
		e, ok := p.claim(&f.frames)
		if !ok {
			return false
		}
		if fw != nil && size+e.Size() > maxForwardBytes {
			flush()
		}
		if fw == nil {
			f.nextRequest++
			fw = &forward{to: n.view.Leader, request: f.nextRequest, deadline: now + 2*n.cfg.Core.ElectionTimeout}
		}
		fw.ps = append(fw.ps, p)
		body.Proposals = append(body.Proposals, Proposal{Entry: e, IfTerm: p.ifTerm})
		size += e.Size()
		// Until the answer comes the bytes stay ours: they count against MaxProposalBytes.
		n.inbox.reclaimProposals(p.size)
		return false
	})
	flush()
}

// Bounds of what is passed on to a leader: the bytes in one message, and the messages that are unanswered at the same time.
const (
	maxForwardBytes = 1 << 20
	maxForwards     = 1024
)

// handleForwardPropose takes proposals from a follower into the next append, each message once.
func (n *Node) handleForwardPropose(h Header, b ForwardPropose) {
	in := &forwardIn{header: h, ps: b.Proposals, outcomes: make([]ForwardOutcome, len(b.Proposals)), left: len(b.Proposals)}
	switch {
	case len(b.Proposals) == 0:
		return
	case !n.firstSight(h):
		return // a duplicate: the first one is answered; or it may be one
	case n.stopping.Load():
		n.refuseForward(in, RefusedStopped)
		return
	case n.view.Role != Leader || h.Term != n.view.Term:
		n.refuseForward(in, RefusedNotLeader)
		return
	}
	for i := range in.ps {
		e := &in.ps[i].Entry
		if e.Size() == 0 || e.Type != EntryCommand && e.Type != EntryBarrier {
			n.refused(h.From, UnexpectedMessage.String())
			return // no correct server sends that
		}
		if len(e.Data) > n.cfg.MaxCommandBytes {
			n.forwardOutcome(in, i, ForwardOutcome{Refusal: RefusedTooLarge})
		}
	}
	if in.left > 0 {
		n.fwd.incoming = append(n.fwd.incoming, in)
	}
}

// firstSight reports whether a forwarded message has certainly not been seen before. The sender names a term in which it knows us as
// the leader. Of the newest such term of this process we know what we have seen, in office or after it; of an earlier one, in which
// a predecessor of this process may have led, we know nothing.
func (n *Node) firstSight(h Header) bool {
	f := &n.fwd
	if h.Term != f.seenTerm {
		return false
	}
	w := f.seen[h.From]
	if w == nil {
		if len(f.seen) >= 4*MaxServers {
			return false // more senders than a cluster can have
		}
		w = new(replayWindow)
		f.seen[h.From] = w
	}
	return w.first(h.Request)
}

// replayWindow remembers which of the newest request numbers of one sender have been seen. A number below the window counts as
// seen: to ignore a message that comes so late is always safe, its sender has given up on it.
type replayWindow struct {
	top  uint64
	seen [replayWindowSize / 64]uint64 // bit number%replayWindowSize, for numbers in (top-replayWindowSize, top]
}

const replayWindowSize = 1024

// first reports whether it is called with this number for the first time, as far as the window reaches.
func (w *replayWindow) first(number uint64) bool {
	switch {
	case number > w.top && number-w.top >= replayWindowSize:
		w.seen = [replayWindowSize / 64]uint64{}
		w.top = number
	case number > w.top:
		for i := w.top + 1; i <= number; i++ {
			w.seen[i%replayWindowSize/64] &^= 1 << (i % 64)
		}
		w.top = number
	case w.top-number >= replayWindowSize:
		return false
	}
	word, bit := &w.seen[number%replayWindowSize/64], uint64(1)<<(number%64)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	return true
}

func (n *Node) forwardOutcome(in *forwardIn, i int, o ForwardOutcome) {
	in.outcomes[i] = o
	if in.left--; in.left == 0 {
		n.transmit(Message{Header: n.header(in.header.From, in.header.Request), Body: ForwardProposeReply{Outcomes: in.outcomes}})
	}
}

// refuseForward answers all that has no outcome yet.
func (n *Node) refuseForward(in *forwardIn, why RefusalCode) {
	for i := range in.outcomes {
		if in.outcomes[i] == (ForwardOutcome{}) {
			n.forwardOutcome(in, i, ForwardOutcome{Refusal: why})
		}
	}
}

// handleForwardProposeReply learns what became of proposals that were passed on.
func (n *Node) handleForwardProposeReply(now time.Duration, h Header, b ForwardProposeReply) {
	f := &n.fwd
	for i, fw := range f.unanswered {
		if fw.request != h.Request || fw.to != h.From {
			continue
		}
		if len(b.Outcomes) != len(fw.ps) {
			n.refused(h.From, ImpossibleReply.String())
			return // as good as no answer
		}
		n.dropUnanswered(i)
		for k, o := range b.Outcomes {
			n.forwardEnded(now, fw, fw.ps[k], o)
		}
		n.table.endForward()
		return
	}
}

func (n *Node) dropUnanswered(i int) {
	f := &n.fwd
	for _, p := range f.unanswered[i].ps {
		n.inbox.releaseProposals(p.size)
	}
	f.unanswered = append(f.unanswered[:i], f.unanswered[i+1:]...)
}

func (n *Node) forwardEnded(now time.Duration, fw *forward, p *Pending, o ForwardOutcome) {
	switch o.Refusal {
	case RefusedNot:
		p.appended(o.ID)
		sl := slot{id: o.ID, p: p}
		n.table.insertForwarded(sl, n.core.TermAt)
		n.watchCommit([]slot{sl})
	case RefusedNotLeader, RefusedStopped:
		// It does not lead any more, or hands over: certainly not appended. Try again, but not with the same one in a hurry. When a
		// new leader is known already, this answer has nothing to do with it.
		if fw.to == n.view.Leader {
			n.fwd.holdUntil = now + n.cfg.Core.HeartbeatInterval
		}
		n.requeue(p)
	default:
		p.end(nil, o.Refusal.err())
	}
}

// err is the error that the code stands for.
func (c RefusalCode) err() error {
	switch c {
	case RefusedTerm:
		return ErrStaleTerm
	case RefusedTooLarge:
		return ErrTooLarge
	case RefusedFull:
		return ErrStorageFull
	case RefusedStopped:
		return ErrStopped
	case RefusedNotLeader:
		return ErrNotLeader
	default:
		return ErrOverloaded
	}
}

// refusalOf is the code for an error of Core.Propose.
func refusalOf(err error) RefusalCode {
	switch {
	case errors.Is(err, ErrStorageFull):
		return RefusedFull
	case errors.Is(err, ErrOverloaded):
		return RefusedOverloaded
	case errors.Is(err, ErrTooLarge):
		return RefusedTooLarge
	default:
		return RefusedNotLeader
	}
}

var errNoAnswer = errors.New("the leader did not answer")

// expireForwards gives up on answers that do not come.
func (n *Node) expireForwards(now time.Duration) {
	f := &n.fwd
	for i := 0; i < len(f.unanswered); {
		if fw := f.unanswered[i]; now >= fw.deadline {
			n.loseForward(i, errNoAnswer)
			continue
		}
		i++
	}
	for i := 0; i < len(f.rounds); {
		if r := f.rounds[i]; r.to != "" && now >= r.deadline {
			n.retryRound(i)
			continue
		}
		i++
	}
}

func (n *Node) loseForward(i int, cause error) {
	fw := n.fwd.unanswered[i]
	n.dropUnanswered(i)
	for _, p := range fw.ps {
		p.endWith(cause)
	}
	n.table.endForward()
}

// forwardPeerLost ends what was passed on to a process that is gone.
func (n *Node) forwardPeerLost(peer NodeID) {
	f := &n.fwd
	for i := 0; i < len(f.unanswered); {
		if f.unanswered[i].to == peer {
			n.loseForward(i, &NotLeaderError{Term: n.view.Term})
			continue
		}
		i++
	}
	for i := 0; i < len(f.rounds); {
		if f.rounds[i].to == peer {
			n.retryRound(i)
			continue
		}
		i++
	}
}

// forwardLeaderChanged lets waiting proposals go to the new leader. The old one's answers may be on their way, and an answer is
// worth a short wait: it turns an uncertain outcome into a certain one.
func (n *Node) forwardLeaderChanged(now time.Duration) {
	f := &n.fwd
	f.holdUntil = 0
	for _, fw := range f.unanswered {
		if fw.to != n.view.Leader {
			fw.deadline = min(fw.deadline, now+n.cfg.Core.ElectionTimeout/2)
		}
	}
	for i := 0; i < len(f.rounds); {
		if r := f.rounds[i]; r.to != "" && r.to != n.view.Leader {
			n.retryRound(i)
			continue
		}
		i++
	}
}

// forwardDeadline is when the loop has to look at all this again without being woken.
func (n *Node) forwardDeadline(now time.Duration) time.Duration {
	f := &n.fwd
	d := never
	for _, fw := range f.unanswered {
		d = min(d, fw.deadline)
	}
	for _, r := range f.rounds {
		switch {
		case r.to == "":
		case now < r.alone:
			d = min(d, r.alone)
		default:
			d = min(d, r.deadline)
		}
	}
	if f.holdUntil > now {
		d = min(d, f.holdUntil)
	}
	if f.gatherUntil > 0 {
		d = min(d, f.gatherUntil)
	}
	return d
}
