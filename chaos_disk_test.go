package raft_test

import (
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/steadyraft/raft"
	memstorage "github.com/steadyraft/raft/storage/memory"
	"github.com/steadyraft/raft/storage/vfs"
	"github.com/steadyraft/raft/storage/wal"
)

// chaosDisk is what a server has of storage.
type chaosDisk interface {
	storage() raft.Storage // for the next process
	crash(seed uint64)     // the process, and the power with it
	fail(broken bool)
	full(full bool)
}

type memoryDisk struct{ st *memstorage.Storage }

func newMemoryDisk(uint64) chaosDisk { return &memoryDisk{memstorage.New()} }

func (d *memoryDisk) storage() raft.Storage { return d.st }
func (d *memoryDisk) crash(uint64)          { d.st = d.st.Crash() }

func (d *memoryDisk) fail(broken bool) {
	d.st.FailWrites(nil)
	if broken {
		d.st.FailWrites(errors.New("chaos: the disk is broken"))
	}
}

func (d *memoryDisk) full(full bool) {
	d.st.FailWrites(nil)
	if full {
		d.st.FailWrites(raft.ErrStorageFull)
	}
}

type walDisk struct {
	disk *vfs.Disk
	rng  *rand.Rand
}

func newWALDisk(seed uint64) chaosDisk {
	return &walDisk{vfs.New(seed), rand.New(rand.NewPCG(seed, 2))}
}

func (d *walDisk) storage() raft.Storage {
	return wal.New("data", wal.Options{FS: d.disk, MinSegmentBytes: 16 << 10, MaxSegmentBytes: 64 << 10})
}

func (d *walDisk) crash(seed uint64) {
	d.disk.Reseed(seed)
	d.disk = d.disk.Crash()
}

func (d *walDisk) fail(broken bool) {
	d.disk.SetFault(nil)
	if broken {
		d.disk.SetFault(func(op vfs.Op) error {
			if op.Kind == vfs.OpSync || op.Kind == vfs.OpSyncDir {
				return vfs.ErrIO
			}
			return nil
		})
	}
}

func (d *walDisk) full(full bool) {
	d.disk.SetSpace(-1)
	if full {
		d.disk.SetSpace(int64(d.rng.IntN(100 << 10)))
	}
}

// slowStorage takes a while for every write, and longer while it hangs. It passes on what the storage beneath can prepare.
type slowStorage struct {
	raft.Storage
	latency time.Duration
	hangs   *hang
	mu      sync.Mutex
	rng     *rand.Rand
}

// hang makes writes wait.
type hang struct {
	mu  sync.Mutex
	off chan struct{} // not nil: wait until it is closed
}

func (h *hang) begin() (end func()) {
	off := make(chan struct{})
	h.mu.Lock()
	h.off = off
	h.mu.Unlock()
	return func() {
		h.mu.Lock()
		h.off = nil
		h.mu.Unlock()
		close(off)
	}
}

func (h *hang) wait() {
	h.mu.Lock()
	off := h.off
	h.mu.Unlock()
	if off != nil {
		<-off
	}
}

func (s *slowStorage) Write(b raft.Batch) error {
	s.mu.Lock()
	pause := time.Duration(s.rng.Int64N(int64(s.latency) + 1))
	s.mu.Unlock()
	time.Sleep(pause)
	s.hangs.wait()
	err := s.Storage.Write(b)
	if pause%3 == 0 {
		time.Sleep(pause) // durable, and not reported yet
	}
	return err
}

// preparingStorage is a slowStorage over one that prepares.
type preparingStorage struct {
	*slowStorage
	raft.StoragePreparer
}

// repeatingTransport sends some messages again, at once or later, so that they come twice and out of order.
type repeatingTransport struct {
	raft.Transport
	mu  sync.Mutex
	rng *rand.Rand
}

func (t *repeatingTransport) Send(to raft.NodeID, lane raft.Lane, ms []raft.Message) {
	t.mu.Lock()
	again, later := t.rng.IntN(10) == 0, time.Duration(t.rng.IntN(3)*t.rng.IntN(400))*time.Millisecond
	t.mu.Unlock()
	if again {
		copies := make([]raft.Message, len(ms))
		for i, m := range ms {
			if b, ok := m.Body.(raft.ForwardPropose); ok { // a leader writes into these, perhaps this server once it leads
				own := make([]raft.Proposal, len(b.Proposals))
				for k, p := range b.Proposals {
					own[k] = raft.Proposal{Entry: p.Entry.Clone(), IfTerm: p.IfTerm}
				}
				m.Body = raft.ForwardPropose{Proposals: own}
			}
			copies[i] = m
		}
		time.AfterFunc(later, func() { t.Transport.Send(to, lane, copies) })
	}
	t.Transport.Send(to, lane, ms)
}
