package main

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/steadyraft/raft/bench/worker"
)

var (
	errNotLeader = errors.New("not the leader")
	errLost      = errors.New("leadership lost")
)

// request is a command or a read that waits.
type request struct {
	data []byte
	done chan error // capacity 1
}

// requests is what both loops share: the state machine, and who waits for it. An entry is the number of its request on the server
// that proposed it, that server, and the command.
type requests struct {
	worker.Counter
	self    uint64
	storage *raft.MemoryStorage
	leading atomic.Bool
	applied atomic.Uint64

	mu       sync.Mutex
	last     uint64
	proposed map[uint64]*request
	readers  []reader // whose index is not applied yet, by rising index
}

type reader struct {
	index    uint64
	requests []*request
}

const prefixSize = 9

func (r *requests) init(self uint64, storage *raft.MemoryStorage) {
	r.self, r.storage, r.proposed = self, storage, map[uint64]*request{}
}

// register frames a command and notes who waits for it.
func (r *requests) register(cmd []byte) (*request, uint64) {
	q := &request{data: make([]byte, prefixSize+len(cmd)), done: make(chan error, 1)}
	copy(q.data[prefixSize:], cmd)
	q.data[8] = byte(r.self)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last++
	binary.LittleEndian.PutUint64(q.data, r.last)
	r.proposed[r.last] = q
	return q, r.last
}

func (r *requests) forget(id uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.proposed, id)
}

func (q *request) wait(ctx context.Context) error {
	select {
	case err := <-q.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// apply carries out committed entries and answers whoever proposed them here.
func (r *requests) apply(entries []*raftpb.Entry) {
	if len(entries) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range entries {
		data := e.GetData()
		if e.GetType() != raftpb.EntryNormal || len(data) < prefixSize {
			continue
		}
		r.Add(data[prefixSize:])
		if uint64(data[8]) != r.self {
			continue
		}
		id := binary.LittleEndian.Uint64(data)
		if q := r.proposed[id]; q != nil {
			delete(r.proposed, id)
			q.done <- nil
		}
	}
	r.applied.Store(entries[len(entries)-1].GetIndex())
	r.answerReaders()
}

// confirmed lets readers go once index is applied.
func (r *requests) confirmed(index uint64, qs []*request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.readers = append(r.readers, reader{index, qs})
	r.answerReaders()
}

func (r *requests) answerReaders() {
	n := 0
	for n < len(r.readers) && r.readers[n].index <= r.applied.Load() {
		for _, q := range r.readers[n].requests {
			q.done <- nil
		}
		n++
	}
	if n > 0 {
		r.readers = append(r.readers[:0], r.readers[n:]...)
	}
}

// lead notes whether this server leads. When it does not any more, nobody knows what will become of its proposals.
func (r *requests) lead(leads bool) {
	if r.leading.Swap(leads) == leads || leads {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, q := range r.proposed {
		delete(r.proposed, id)
		q.done <- errLost
	}
}

// compactEvery entries, those are dropped from memory that nobody will ask for. A follower keeps some for when it is elected.
const (
	compactEvery = 10_000
	keep         = 5_000
)

// compact is given the lowest index that a follower has; on a follower, the last applied.
func (r *requests) compact(known uint64) {
	first, err := r.storage.FirstIndex()
	if err != nil {
		fatal(err)
	}
	if known > first+compactEvery+keep {
		if err := r.storage.Compact(known - keep); err != nil {
			fatal(err)
		}
	}
}
