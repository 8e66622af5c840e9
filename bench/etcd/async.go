package main

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"time"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"github.com/steadyraft/raft/bench/worker"
)

// async is a server whose loop owns a RawNode. Two goroutines carry out what it hands to storage and state machine.
type async struct {
	requests
	rn        *raft.RawNode
	wal       *wal.WAL
	transport *transport
	toAppend  *queue
	toApply   *queue
	stopped   sync.WaitGroup

	wake chan struct{} // capacity 1: something is in the inbox
	mu   sync.Mutex
	inbox
	closed bool
}

// inbox is what waits for the loop.
type inbox struct {
	messages  []*raftpb.Message
	proposals []*request
	reads     []*request
	transfer  uint64
}

func startAsync(o worker.Options) (worker.Node, error) {
	w, storage, err := openLog(o)
	if err != nil {
		return nil, err
	}
	c := config(o, storage)
	c.AsyncStorageWrites = true
	a := &async{wal: w, wake: make(chan struct{}, 1), toAppend: newQueue(), toApply: newQueue()}
	a.init(c.ID, storage)
	if a.rn, err = raft.NewRawNode(c); err != nil {
		return nil, err
	}
	if a.transport, err = listen(o.ID, o.Addresses, a.receive); err != nil {
		return nil, err
	}
	a.transport.start()
	a.stopped.Go(a.loop)
	a.stopped.Go(func() { a.toAppend.drain(a.save) })
	a.stopped.Go(func() { a.toApply.drain(a.applyAll) })
	return a, nil
}

func (a *async) put(f func(*inbox)) {
	a.mu.Lock()
	f(&a.inbox)
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

func (a *async) receive(m *raftpb.Message) {
	a.put(func(in *inbox) { in.messages = append(in.messages, m) })
}

func (a *async) loop() {
	ticker := time.NewTicker(worker.HeartbeatInterval)
	defer ticker.Stop()
	var in inbox
	var reads confirmation
	var remote []*raftpb.Message
	for {
		ticked := false
		select {
		case <-a.wake:
		case <-ticker.C:
			ticked = true
		}
		a.mu.Lock()
		if a.closed {
			a.mu.Unlock()
			return
		}
		in, a.inbox = a.inbox, inbox{messages: in.messages[:0], proposals: in.proposals[:0], reads: in.reads[:0]}
		a.mu.Unlock()
		if ticked {
			a.rn.Tick()
			a.compactLog()
			reads.again() // a message of the round may be lost
		}
		for i, m := range in.messages {
			_ = a.rn.Step(m) // it refuses what is out of date
			in.messages[i] = nil
		}
		if in.transfer != 0 {
			a.rn.TransferLeader(in.transfer)
		}
		a.propose(in.proposals)
		reads.waiting = append(reads.waiting, in.reads...)
		reads.begin(a.rn)
		for a.rn.HasReady() {
			rd := a.rn.Ready()
			if rd.SoftState != nil {
				a.lead(rd.SoftState.RaftState == raft.StateLeader)
				if !a.leading.Load() {
					reads.fail()
				}
			}
			remote = remote[:0]
			for _, m := range rd.Messages {
				switch m.GetTo() {
				case raft.LocalAppendThread:
					a.toAppend.put(m)
				case raft.LocalApplyThread:
					a.toApply.put(m)
				default:
					remote = append(remote, m)
				}
			}
			a.transport.send(remote)
			for _, s := range rd.ReadStates {
				if binary.LittleEndian.Uint64(s.RequestCtx) == reads.round {
					a.confirmed(s.Index, reads.confirming)
					reads.confirming = nil
					reads.begin(a.rn)
				}
			}
		}
	}
}

// confirmation is one ReadIndex at a time for all reads that wait. One for each turn of the loop costs several times as much.
type confirmation struct {
	waiting    []*request
	confirming []*request
	round      uint64
}

func (c *confirmation) begin(rn *raft.RawNode) {
	if len(c.waiting) == 0 || len(c.confirming) > 0 {
		return
	}
	c.confirming, c.waiting = c.waiting, nil
	c.round++
	rn.ReadIndex(binary.LittleEndian.AppendUint64(nil, c.round))
}

// again lets the next begin ask for those whose round did not end.
func (c *confirmation) again() {
	c.waiting = append(c.confirming, c.waiting...)
	c.confirming = nil
}

func (c *confirmation) fail() {
	fail(c.confirming, errLost)
	fail(c.waiting, errLost)
	c.confirming, c.waiting = nil, nil
}

// propose hands all that waits to the library in one message, which it refuses as a whole or accepts.
func (a *async) propose(qs []*request) {
	if len(qs) == 0 {
		return
	}
	m := &raftpb.Message{Type: raftpb.MsgProp.Enum(), From: new(a.self)}
	for _, q := range qs {
		m.Entries = append(m.Entries, &raftpb.Entry{Data: q.data})
	}
	if err := a.rn.Step(m); err != nil {
		fail(qs, err)
	}
}

func fail(qs []*request, err error) {
	for _, q := range qs {
		select {
		case q.done <- err:
		default: // answered already
		}
	}
}

func (a *async) compactLog() {
	known := a.applied.Load()
	if a.leading.Load() {
		a.rn.WithProgress(func(_ uint64, _ raft.ProgressType, p tracker.Progress) { known = min(known, p.Match) })
	}
	a.compact(known)
}

// save makes appends durable by one sync, then sends what waited for that.
func (a *async) save(ms []*raftpb.Message) {
	var state *raftpb.HardState
	var entries []*raftpb.Entry
	for _, m := range ms {
		if m.Term != nil {
			state = &raftpb.HardState{Term: m.Term, Vote: m.Vote, Commit: m.Commit}
		}
		entries = append(entries, m.GetEntries()...)
	}
	if err := a.wal.Save(state, entries); err != nil {
		fatal(err)
	}
	var remote []*raftpb.Message
	a.put(func(in *inbox) {
		for _, m := range ms {
			if err := a.storage.Append(m.GetEntries()); err != nil {
				fatal(err)
			}
			for _, r := range m.GetResponses() {
				if r.GetTo() == a.self {
					in.messages = append(in.messages, r)
				} else {
					remote = append(remote, r)
				}
			}
		}
	})
	a.transport.send(remote)
}

func (a *async) applyAll(ms []*raftpb.Message) {
	for _, m := range ms {
		a.apply(m.GetEntries())
	}
	a.put(func(in *inbox) {
		for _, m := range ms {
			in.messages = append(in.messages, m.GetResponses()...)
		}
	})
}

func (a *async) Propose(ctx context.Context, cmd []byte) error {
	if !a.leading.Load() {
		return errNotLeader
	}
	q, id := a.register(cmd)
	a.put(func(in *inbox) { in.proposals = append(in.proposals, q) })
	err := q.wait(ctx)
	if err != nil {
		a.forget(id)
	}
	return err
}

func (a *async) Read(ctx context.Context) error {
	if !a.leading.Load() {
		return errNotLeader
	}
	q := &request{done: make(chan error, 1)}
	a.put(func(in *inbox) { in.reads = append(in.reads, q) })
	return q.wait(ctx)
}

func (a *async) IsLeader() bool { return a.leading.Load() }

func (a *async) Transfer(_ context.Context, to int) error {
	if !a.leading.Load() {
		return errNotLeader
	}
	a.put(func(in *inbox) { in.transfer = uint64(to + 1) })
	return nil
}

func (a *async) Close() error {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return errors.New("closed twice")
	}
	a.closed = true
	a.mu.Unlock()
	a.put(func(*inbox) {})
	a.transport.close()
	a.toAppend.close()
	a.toApply.close()
	a.stopped.Wait()
	return a.wal.Close()
}

// queue hands messages from the loop to one goroutine, which takes all that wait at once.
type queue struct {
	mu      sync.Mutex
	wake    chan struct{} // capacity 1
	waiting []*raftpb.Message
	closed  bool
}

func newQueue() *queue { return &queue{wake: make(chan struct{}, 1)} }

func (q *queue) put(m *raftpb.Message) {
	q.mu.Lock()
	q.waiting = append(q.waiting, m)
	q.mu.Unlock()
	q.ring()
}

func (q *queue) ring() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.ring()
}

func (q *queue) drain(do func([]*raftpb.Message)) {
	var ms []*raftpb.Message
	for range q.wake {
		q.mu.Lock()
		ms, q.waiting = q.waiting, ms[:0]
		closed := q.closed
		q.mu.Unlock()
		if closed {
			return
		}
		if len(ms) > 0 {
			do(ms)
		}
		clear(ms)
	}
}
