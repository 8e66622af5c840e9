package raft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"sync"
	"sync/atomic"
)

// rpcWaiters are the callers of Handle. The protocol answers a request by a message to its sender, often after a disk write; who
// carries requests over an RPC framework wants the answer as a return value. So an answer whose request came through Handle goes
// back to its caller instead of the transport.
type rpcWaiters struct {
	n  atomic.Int64 // len of all; read without the lock on the way of every message
	mu sync.Mutex
	by map[rpcKey][]chan Message
}

// rpcKey tells answers apart. The kind is needed because both servers number their own requests.
type rpcKey struct {
	peer    NodeID
	request uint64
	kind    reflect.Type // of the answer
}

// maxRPCWaiters bounds the calls of Handle that wait at the same time.
const maxRPCWaiters = 4096

// answers maps the kind of a request to the kind of its answer.
var answers = map[reflect.Type]reflect.Type{
	reflect.TypeFor[PreVote]():         reflect.TypeFor[PreVoteReply](),
	reflect.TypeFor[RequestVote]():     reflect.TypeFor[RequestVoteReply](),
	reflect.TypeFor[AppendEntries]():   reflect.TypeFor[AppendEntriesReply](),
	reflect.TypeFor[InstallSnapshot](): reflect.TypeFor[InstallSnapshotReply](),
	reflect.TypeFor[FetchEntries]():    reflect.TypeFor[FetchEntriesReply](),
	reflect.TypeFor[TimeoutNow]():      reflect.TypeFor[TimeoutNowReply](),
	reflect.TypeFor[ForwardPropose]():  reflect.TypeFor[ForwardProposeReply](),
	reflect.TypeFor[ForwardRead]():     reflect.TypeFor[ForwardReadReply](),
}

// wait registers for the answer to m.
func (w *rpcWaiters) wait(m Message) (<-chan Message, func(), error) {
	key := rpcKey{peer: m.From, request: m.Request, kind: answers[reflect.TypeOf(m.Body)]}
	if key.kind == nil {
		return nil, nil, fmt.Errorf("%T is no request", m.Body)
	}
	ch := make(chan Message, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.n.Load() >= maxRPCWaiters {
		return nil, nil, ErrOverloaded
	}
	if w.by == nil {
		w.by = make(map[rpcKey][]chan Message)
	}
	w.by[key] = append(w.by[key], ch)
	w.n.Add(1)
	return ch, func() { w.forget(key, ch) }, nil
}

func (w *rpcWaiters) forget(key rpcKey, ch chan Message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	chs := w.by[key]
	for i := range chs {
		if chs[i] == ch {
			w.n.Add(-1)
			if len(chs) == 1 {
				delete(w.by, key)
			} else {
				w.by[key] = append(chs[:i:i], chs[i+1:]...)
			}
			return
		}
	}
}

// deliver gives an outgoing message to those who wait for it. It reports false if nobody does.
func (w *rpcWaiters) deliver(m Message) bool {
	if w.n.Load() == 0 {
		return false
	}
	key := rpcKey{peer: m.To, request: m.Request, kind: reflect.TypeOf(m.Body)}
	w.mu.Lock()
	defer w.mu.Unlock()
	chs := w.by[key]
	for _, ch := range chs {
		ch <- m
	}
	delete(w.by, key)
	w.n.Add(int64(-len(chs)))
	return len(chs) > 0
}

// Handle is the general form of the RPC entry points below: it feeds one request to the node and waits for the answer to it, which
// it returns instead of sending it through the transport. If the same request is handled twice at the same time, both get the
// answer.
//
// It blocks until there is an answer, ctx ends or the node stops. Give ctx a deadline: the protocol leaves some requests without
// an answer, as a network might, for instance one of a disruptive candidate, or a proposal that was forwarded twice. Errors: that
// of ctx, [ErrOverloaded] (too many calls at once), [ErrStopped], [*FailedError], and what is wrong with m if it is no request, is
// malformed or is meant for another server. An InstallSnapshot needs its content: use [Node.InstallSnapshot].
//
// m must come from who it says: whoever carries requests authenticates the peer. Entries in it must have been read by [DecodeEntry],
// which verifies their checksums; the node takes them over.
func (n *Node) Handle(ctx context.Context, m Message) (Message, error) {
	if _, ok := m.Body.(InstallSnapshot); ok {
		return Message{}, errors.New("handle InstallSnapshot: its content is missing; use Node.InstallSnapshot")
	}
	return n.handle(ctx, m, func() error { n.inbox.addMessages([]Message{m}); return nil })
}

// handle waits for the answer to m, which feed hands to the loop.
func (n *Node) handle(ctx context.Context, m Message, feed func() error) (Message, error) {
	if err := m.Validate(); err != nil {
		return Message{}, fmt.Errorf("handle: %w", err)
	}
	if m.To != n.cfg.ID {
		return Message{}, fmt.Errorf("handle %T: meant for server %q, this is %q", m.Body, m.To, n.cfg.ID)
	}
	if err := n.running(); err != nil {
		return Message{}, err
	}
	answer, forget, err := n.rpc.wait(m)
	if err != nil {
		return Message{}, fmt.Errorf("handle %T: %w", m.Body, err)
	}
	defer forget()
	if err := feed(); err != nil {
		return Message{}, err
	}
	select {
	case a := <-answer:
		return a, nil
	case <-ctx.Done():
		return Message{}, fmt.Errorf("handle %T: no answer: %w", m.Body, ctx.Err())
	case <-n.loopDone:
		return Message{}, n.terminal()
	}
}

// handleTyped is Handle for one kind of request.
func handleTyped[Reply Body](ctx context.Context, n *Node, h Header, req Body) (Header, Reply, error) {
	m, err := n.Handle(ctx, Message{Header: h, Body: req})
	if err != nil {
		var none Reply
		return Header{}, none, err
	}
	return m.Header, m.Body.(Reply), nil
}

// PreVote is the RPC entry point for [PreVote] requests. See [Node.Handle].
func (n *Node) PreVote(ctx context.Context, h Header, req PreVote) (Header, PreVoteReply, error) {
	return handleTyped[PreVoteReply](ctx, n, h, req)
}

// RequestVote is the RPC entry point for [RequestVote] requests. See [Node.Handle].
func (n *Node) RequestVote(ctx context.Context, h Header, req RequestVote) (Header, RequestVoteReply, error) {
	return handleTyped[RequestVoteReply](ctx, n, h, req)
}

// AppendEntries is the RPC entry point for [AppendEntries] requests. See [Node.Handle].
func (n *Node) AppendEntries(ctx context.Context, h Header, req AppendEntries) (Header, AppendEntriesReply, error) {
	return handleTyped[AppendEntriesReply](ctx, n, h, req)
}

// FetchEntries is the RPC entry point for [FetchEntries] requests. See [Node.Handle].
func (n *Node) FetchEntries(ctx context.Context, h Header, req FetchEntries) (Header, FetchEntriesReply, error) {
	return handleTyped[FetchEntriesReply](ctx, n, h, req)
}

// TimeoutNow is the RPC entry point for [TimeoutNow] requests. See [Node.Handle].
func (n *Node) TimeoutNow(ctx context.Context, h Header, req TimeoutNow) (Header, TimeoutNowReply, error) {
	return handleTyped[TimeoutNowReply](ctx, n, h, req)
}

// InstallSnapshot is the RPC entry point for [InstallSnapshot] requests. r is the snapshot's content; it is read to its end, stored
// durably, and only then given to the protocol. If it is a [ResumableContent], a transfer that broke off goes on where it was. One snapshot
// is received at a time, others are refused with [ErrBusy]. See [Node.Handle].
func (n *Node) InstallSnapshot(ctx context.Context, h Header, req InstallSnapshot, r io.Reader) (Header, InstallSnapshotReply, error) {
	m := Message{Header: h, Body: req}
	a, err := n.handle(ctx, m, func() error { return n.snapshots.receive(ctx, m, r) })
	if err != nil {
		return Header{}, InstallSnapshotReply{}, err
	}
	return a.Header, a.Body.(InstallSnapshotReply), nil
}
