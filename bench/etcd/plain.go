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

	"github.com/steadyraft/raft/bench/worker"
)

// plain is a server around raft.Node, with the loop that the library's documentation describes and etcd has.
type plain struct {
	requests
	node      raft.Node
	wal       *wal.WAL
	transport *transport
	stop      chan struct{}
	stopped   sync.WaitGroup

	reads      chan *request
	readStates chan raft.ReadState
}

func startPlain(o worker.Options) (worker.Node, error) {
	w, storage, err := openLog(o)
	if err != nil {
		return nil, err
	}
	c := config(o, storage)
	p := &plain{wal: w, stop: make(chan struct{}), reads: make(chan *request, 4096), readStates: make(chan raft.ReadState, 16)}
	p.init(c.ID, storage)
	if p.transport, err = listen(o.ID, o.Addresses, p.receive); err != nil {
		return nil, err
	}
	p.node = raft.RestartNode(c)
	p.transport.start()
	p.stopped.Go(p.loop)
	p.stopped.Go(p.readLoop)
	return p, nil
}

func (p *plain) receive(m *raftpb.Message) {
	_ = p.node.Step(context.Background(), m) // it refuses what is out of date, and everything once it is stopped
}

func (p *plain) loop() {
	ticker := time.NewTicker(worker.HeartbeatInterval)
	defer ticker.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-ticker.C:
			p.node.Tick()
			p.compactLog()
		case rd := <-p.node.Ready():
			p.handle(rd)
			p.node.Advance()
		}
	}
}

func (p *plain) handle(rd raft.Ready) {
	if rd.SoftState != nil {
		p.lead(rd.SoftState.RaftState == raft.StateLeader)
	}
	for _, s := range rd.ReadStates {
		select {
		case p.readStates <- s:
		case <-p.stop:
		}
	}
	leads := p.leading.Load()
	if leads { // a leader may write to its disk while the followers do (dissertation §10.2.1)
		p.transport.send(rd.Messages)
	}
	if err := p.wal.Save(rd.HardState, rd.Entries); err != nil {
		fatal(err)
	}
	if err := p.storage.Append(rd.Entries); err != nil {
		fatal(err)
	}
	if !leads {
		p.transport.send(rd.Messages)
	}
	p.apply(rd.CommittedEntries)
}

func (p *plain) compactLog() {
	known := p.applied.Load()
	if p.leading.Load() {
		// Status is answered by the node's own goroutine, which may be waiting for this one to take a Ready: but it serves both.
		for _, progress := range p.node.Status().Progress {
			known = min(known, progress.Match)
		}
	}
	p.compact(known)
}

// readLoop confirms all reads that wait by one ReadIndex at a time, as etcd does.
func (p *plain) readLoop() {
	var round uint64
	for {
		var batch []*request
		select {
		case q := <-p.reads:
			batch = append(batch, q)
		case <-p.stop:
			return
		}
		for more := true; more; {
			select {
			case q := <-p.reads:
				batch = append(batch, q)
			default:
				more = false
			}
		}
		round++
		index, err := p.readIndex(round)
		if err != nil {
			fail(batch, err)
			continue
		}
		p.confirmed(index, batch)
	}
}

func (p *plain) readIndex(round uint64) (uint64, error) {
	if err := p.node.ReadIndex(context.Background(), binary.LittleEndian.AppendUint64(nil, round)); err != nil {
		return 0, err
	}
	timeout := time.NewTimer(worker.ElectionTimeout)
	defer timeout.Stop()
	for {
		select {
		case s := <-p.readStates:
			if binary.LittleEndian.Uint64(s.RequestCtx) == round {
				return s.Index, nil
			}
		case <-timeout.C:
			return 0, errors.New("no answer to ReadIndex")
		case <-p.stop:
			return 0, errLost
		}
	}
}

func (p *plain) Propose(ctx context.Context, cmd []byte) error {
	if !p.leading.Load() {
		return errNotLeader
	}
	q, id := p.register(cmd)
	err := p.node.Propose(ctx, q.data)
	if err == nil {
		err = q.wait(ctx)
	}
	if err != nil {
		p.forget(id)
	}
	return err
}

func (p *plain) Read(ctx context.Context) error {
	if !p.leading.Load() {
		return errNotLeader
	}
	q := &request{done: make(chan error, 1)}
	p.reads <- q
	return q.wait(ctx)
}

func (p *plain) IsLeader() bool { return p.leading.Load() }

func (p *plain) Transfer(ctx context.Context, to int) error {
	if !p.leading.Load() {
		return errNotLeader
	}
	p.node.TransferLeadership(ctx, p.self, uint64(to+1))
	return nil
}

func (p *plain) Close() error {
	close(p.stop)
	p.stopped.Wait()
	p.node.Stop()
	p.transport.close()
	return p.wal.Close()
}
