package raft

import (
	"runtime"
	"sync"
	"time"
)

// inbox is how everything reaches the loop. Producers append under a mutex that is held for a few instructions; the loop swaps the
// whole for an empty one, and a channel of capacity one wakes it. So a busy loop takes a thousand inputs with one lock, and an
// idle one sleeps.
type inbox struct {
	wake             chan struct{}
	maxMessageBytes  int
	maxProposalBytes int

	mu            sync.Mutex
	signalled     bool
	refused       error // why no requests of the embedder are taken any more
	closed        error // why nothing is taken any more
	in            inputs
	messageBytes  int
	proposalBytes int // accepted and not yet appended, wherever they are
	dropped       uint64
	reads         *readBatch // gathers until the loop takes it
	readsHeld     bool       // reads gather without waking the loop, which looks for them by itself
	withdrawnN    int        // proposals that ended while they lay in a queue
	gatherBytes   int        // proposals alone do not wake the loop before they are so many bytes; 0: they do at once
}

// inputs is what the loop takes at once.
type inputs struct {
	messages  []Message
	proposals []*Pending
	reports   []func(now time.Duration) // in order; from the node's own goroutines and from requests
	persisted uint64                    // the newest; it stands for all before it
	applied   Index                     // likewise
}

// Bounds of the inbox that nobody has needed to configure.
const (
	messageOverhead     = 128     // about what a message costs besides its entries
	controlReserve      = 1 << 20 // bytes by which small messages may exceed MaxInboxBytes, so that a flood of entries does not drop votes
	maxRequestsQueued   = 1 << 16
	maxTransportReports = 1 << 12
)

// Bounds of gatherRequests.
const (
	maxYields = 4
	maxGather = 500 * time.Microsecond
)

// gatherRequests lets other goroutines run before the loop takes the requests that wait, as long as more of them come of it.
//
// Callers are woken in batches, and ask again one after the other. The first of them wakes the loop, and the scheduler lets the
// loop run before the rest of them: each would have messages or a round of its own, and these cost much more than the request.
// Where the processors are busy with other things, it may be a while until it is the loop's turn again; then it goes on with what
// has come.
func gatherRequests(waiting func() int) {
	before := waiting()
	if before == 0 {
		return
	}
	start := time.Now()
	for range maxYields {
		runtime.Gosched()
		now := waiting()
		if now == before || time.Since(start) > maxGather {
			return
		}
		before = now
	}
}

func (b *inbox) init(maxMessageBytes, maxProposalBytes int) {
	b.wake = make(chan struct{}, 1)
	b.maxMessageBytes, b.maxProposalBytes = maxMessageBytes, maxProposalBytes
	b.refused, b.closed = ErrStopped, ErrStopped
}

func (b *inbox) open() {
	b.mu.Lock()
	b.refused, b.closed = nil, nil
	b.mu.Unlock()
}

// signal wakes the loop. mu is held.
func (b *inbox) signal() {
	if b.signalled {
		return
	}
	b.signalled = true
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *inbox) nudge() {
	b.mu.Lock()
	b.signal()
	b.mu.Unlock()
}

// take exchanges what has come in for spare, which must be empty.
func (b *inbox) take(spare inputs) inputs {
	b.mu.Lock()
	defer b.mu.Unlock()
	got := b.in
	b.in = spare
	b.messageBytes = 0
	b.signalled = false
	b.gatherBytes = 0
	return got
}

// gather lets proposals wait for others until the loop takes what has come in for another reason, or until they are bytes long. It
// reports false if they are already.
func (b *inbox) gather(bytes int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.proposalBytes >= bytes {
		return false
	}
	b.gatherBytes = bytes
	return true
}

// reset empties the arrays that the loop has worked through, so that they hold nothing alive and can be filled again.
func (in *inputs) reset() {
	clear(in.messages)
	clear(in.proposals)
	clear(in.reports)
	*in = inputs{messages: in.messages[:0], proposals: in.proposals[:0], reports: in.reports[:0]}
}

// addMessages takes messages from the transport, or drops them. What alone exceeds the limit gets in when it is the first: the
// sender does not know the limit here and would repeat it for ever.
func (b *inbox) addMessages(ms []Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed != nil {
		return
	}
	for _, m := range ms {
		size, limit := messageSize(m), b.maxMessageBytes
		if m.Lane() == LaneControl {
			limit += controlReserve
		}
		if b.messageBytes > 0 && b.messageBytes+size > limit {
			b.dropped++
			continue
		}
		b.messageBytes += size
		b.in.messages = append(b.in.messages, m)
	}
	b.signal()
}

func messageSize(m Message) int {
	switch body := m.Body.(type) {
	case AppendEntries:
		return messageOverhead + EntriesSize(body.Entries)
	case ForwardPropose:
		n := messageOverhead
		for i := range body.Proposals {
			n += body.Proposals[i].Entry.Size()
		}
		return n
	default:
		return messageOverhead
	}
}

// propose queues a proposal, or says why it is refused.
func (b *inbox) propose(p *Pending) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.refused != nil {
		return b.refused
	}
	if b.proposalBytes+p.size > b.maxProposalBytes {
		b.signal() // withdrawn proposals may lie in the loop's queue
		return ErrOverloaded
	}
	b.proposalBytes += p.size
	b.in.proposals = append(b.in.proposals, p)
	if b.proposalBytes >= b.gatherBytes {
		b.signal()
	}
	return nil
}

// waitingProposals counts the proposals that the loop has not taken.
func (b *inbox) waitingProposals() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.in.proposals)
}

// releaseProposals frees the place of proposals that have left the queue; reclaimProposals takes it again.
func (b *inbox) releaseProposals(bytes int) {
	if bytes == 0 {
		return
	}
	b.mu.Lock()
	b.proposalBytes -= bytes
	b.mu.Unlock()
}

func (b *inbox) reclaimProposals(bytes int) { b.releaseProposals(-bytes) }

func (b *inbox) noteWithdrawn() {
	b.mu.Lock()
	b.withdrawnN++
	b.mu.Unlock()
}

func (b *inbox) withdrawn() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.withdrawnN
}

func (b *inbox) resetWithdrawn() {
	b.mu.Lock()
	b.withdrawnN = 0
	b.mu.Unlock()
}

// joinRead adds a read to the batch that the next round serves.
func (b *inbox) joinRead() (*readBatch, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.refused != nil {
		return nil, b.refused
	}
	if b.reads == nil {
		b.reads = newReadBatch()
		if !b.readsHeld {
			b.signal()
		}
	}
	b.reads.size++
	return b.reads, nil
}

// waitingReads counts the reads that wait for the next round.
func (b *inbox) waitingReads() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.reads == nil {
		return 0
	}
	return b.reads.size
}

// holdReads says whether reads gather without waking the loop. Those that have gathered wake it when that ends.
func (b *inbox) holdReads(hold bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.readsHeld = hold
	if !hold && b.reads != nil {
		b.signal()
	}
}

func (b *inbox) takeReads() *readBatch {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.reads
	b.reads = nil
	return r
}

// report queues something that the loop must learn. Only the node's own, bounded goroutines use it. After the loop has ended
// there is nobody to tell, and nothing to be done about that.
func (b *inbox) report(f func(now time.Duration)) { _ = b.add(f, maxInt) }

// tryReport is report for a caller that may come any number of times.
func (b *inbox) tryReport(f func(now time.Duration)) error { return b.add(f, maxRequestsQueued) }

func (b *inbox) add(f func(now time.Duration), limit int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed != nil {
		return b.closed
	}
	if len(b.in.reports) >= limit {
		return ErrOverloaded
	}
	b.in.reports = append(b.in.reports, f)
	b.signal()
	return nil
}

func (b *inbox) reportPersisted(seq uint64) {
	b.mu.Lock()
	b.in.persisted = max(b.in.persisted, seq)
	b.signal()
	b.mu.Unlock()
}

func (b *inbox) reportApplied(i Index) {
	b.mu.Lock()
	b.in.applied = max(b.in.applied, i)
	b.signal()
	b.mu.Unlock()
}

// refuse takes no more requests of the embedder; close takes nothing at all.
func (b *inbox) refuse(cause error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.refused == nil {
		b.refused = cause
	}
}

func (b *inbox) close(cause error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refused, b.closed = cause, cause
}

// refusing says why requests are refused; nil if they are not.
func (b *inbox) refusing() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.refused
}

func (b *inbox) load() (messageBytes, proposals, proposalBytes int, dropped uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.messageBytes, len(b.in.proposals), b.proposalBytes, b.dropped
}
