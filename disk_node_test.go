package raft_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
)

// What a whole node does when its disk misbehaves. The log itself is the business of storage/wal, real file systems that of
// internal/processes.

// gates make operations on a storage hang or fail, by their names.
type gates struct {
	mu     sync.Mutex
	closed map[string]chan struct{}
	errs   map[string]error
	tried  map[string]int
}

// mostTries is far more than any test's patience with an operation that fails.
const mostTries = 10_000

func newGates() *gates {
	return &gates{closed: map[string]chan struct{}{}, errs: map[string]error{}, tried: map[string]int{}}
}

// hang makes an operation wait until open is called.
func (g *gates) hang(op string) (open func()) {
	ch := make(chan struct{})
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed[op] = ch
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.closed, op)
		close(ch)
	})
}

func (g *gates) fail(op string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.errs[op] = err
}

// tries is how often the operation was tried while it hung or failed.
func (g *gates) tries(op string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.tried[op]
}

// waiting reports whether the operation was tried while it hung or failed.
func (g *gates) waiting(op string) bool { return g.tries(op) > 0 }

func (g *gates) pass(op string) error {
	g.mu.Lock()
	ch, err := g.closed[op], g.errs[op]
	if ch != nil || err != nil {
		g.tried[op]++
	}
	tried := g.tried[op]
	g.mu.Unlock()
	if tried > mostTries {
		panic(op + " is tried without a pause") // the node stops; in a bubble no time would pass any more, and the test would hang
	}
	if ch != nil {
		<-ch
	}
	return err
}

// gatedStorage is a storage whose every operation passes a gate.
type gatedStorage struct {
	raft.Storage
	g *gates
}

func (s *gatedStorage) Open(ctx context.Context, id raft.Identity) (raft.Recovered, error) {
	if err := s.g.pass("open"); err != nil {
		return raft.Recovered{}, err
	}
	return s.Storage.Open(context.WithoutCancel(ctx), id) // the disk does not know about contexts
}

func (s *gatedStorage) Write(b raft.Batch) error {
	if err := s.g.pass("write"); err != nil {
		return err
	}
	return s.Storage.Write(b)
}

func (s *gatedStorage) Entries(lo, hi raft.Index, maxBytes int) ([]raft.Entry, error) {
	if err := s.g.pass("entries"); err != nil {
		return nil, err
	}
	return s.Storage.Entries(lo, hi, maxBytes)
}

func (s *gatedStorage) Compact(to raft.Index) error {
	if err := s.g.pass("compact"); err != nil {
		return err
	}
	return s.Storage.Compact(to)
}

func (s *gatedStorage) Prepare() (bool, error) { return false, s.g.pass("prepare") }
func (s *gatedStorage) Idle() error            { return s.g.pass("idle") }

func (s *gatedStorage) Snapshots() raft.SnapshotStore {
	return gatedSnapshots{s.Storage.Snapshots(), s.g}
}

type gatedSnapshots struct {
	raft.SnapshotStore
	g *gates
}

func (s gatedSnapshots) Create(meta raft.SnapshotMeta) (raft.SnapshotSink, error) {
	if err := s.g.pass("create snapshot"); err != nil {
		return nil, err
	}
	sink, err := s.SnapshotStore.Create(meta)
	return gatedSink{sink, s.g}, err
}

func (s gatedSnapshots) Open(index raft.Index) (raft.SnapshotMeta, io.ReadCloser, error) {
	if err := s.g.pass("open snapshot"); err != nil {
		return raft.SnapshotMeta{}, nil, err
	}
	return s.SnapshotStore.Open(index)
}

type gatedSink struct {
	raft.SnapshotSink
	g *gates
}

func (s gatedSink) Write(p []byte) (int, error) {
	if err := s.g.pass("write snapshot"); err != nil {
		return 0, err
	}
	return s.SnapshotSink.Write(p)
}

func (s gatedSink) Commit() (raft.SnapshotMeta, error) {
	if err := s.g.pass("commit snapshot"); err != nil {
		return raft.SnapshotMeta{}, err
	}
	return s.SnapshotSink.Commit()
}

// inGatedCluster is inCluster with gates in front of every server's storage.
func inGatedCluster(t *testing.T, configure func(*raft.Config), f func(t *testing.T, c *cluster, gate map[raft.NodeID]*gates)) {
	gate := map[raft.NodeID]*gates{}
	inCluster(t, 3, func(cfg *raft.Config) {
		if configure != nil {
			configure(cfg)
		}
		if gate[cfg.ID] == nil {
			gate[cfg.ID] = newGates()
		}
		cfg.Storage = &gatedStorage{cfg.Storage, gate[cfg.ID]}
	}, func(t *testing.T, c *cluster) { f(t, c, gate) })
}

// SAFETY §2, disk: a write that hangs, or whatever else does, must not hold up heartbeats, the other servers, or Stop for longer than
// asked. What is in the way of the log ends a leader's office within the disk deadline, however well its heartbeats go on; what is not in
// its way does not.
func TestHangingOperationHoldsUpNothingElse(t *testing.T) {
	for _, tt := range []struct {
		op     string
		blocks bool // it is in the way of the log
	}{
		{"write", true}, {"idle", true}, {"compact", true}, {"prepare", false}, {"entries", false}, {"open snapshot", false},
		{"create snapshot", false}, {"write snapshot", false}, {"commit snapshot", false},
	} {
		t.Run(tt.op, func(t *testing.T) {
			inGatedCluster(t, func(cfg *raft.Config) {
				often(cfg)
				cfg.Core.MaxTailBytes = 1 // so that who lags is served from the disk
				if tt.op == "entries" {
					cfg.Core.TrailingEntries = 1000
				}
			}, func(t *testing.T, c *cluster, gate map[raft.NodeID]*gates) {
				leader := c.leader()
				term := leader.node.Leadership().Term
				lagging := c.follower()
				c.net.Isolate(lagging.id)
				for i := range 30 {
					c.propose(leader, fmt.Sprint("before ", i))
				}
				open := gate[leader.id].hang(tt.op)
				defer open()
				c.net.Heal()
				other := c.machines[0]
				for other == leader || other == lagging {
					other = c.machines[(int(other.id[1]-'0'))%3]
				}
				// The cluster goes on. A command that waits in the log that hangs may be uncertain.
				longest := time.Duration(0)
				for i := range 60 {
					start := time.Now()
					_, err := other.node.Propose(within(10*time.Second), fmt.Append(nil, "during ", i))
					if err != nil {
						requireUncertain(t, err)
						require.True(t, tt.blocks, "%v", err)
					}
					longest = max(longest, time.Since(start))
					time.Sleep(60 * time.Millisecond) // so that Idle gets its turn
				}
				require.True(t, gate[leader.id].waiting(tt.op), "the operation hangs")
				view := other.node.Leadership()
				if tt.blocks {
					require.NotEqual(t, leader.id, view.Leader)
					require.Less(t, longest, 2*time.Second, "deposed within the disk deadline, and succeeded at once")
					require.Equal(t, term+1, view.Term, "it handed over")
				} else {
					require.Equal(t, leader.id, view.Leader)
					require.Equal(t, term, view.Term, "nobody missed a heartbeat")
					require.Less(t, longest, 500*time.Millisecond)
				}
				require.NoError(t, other.node.Read(within(time.Second)))

				// Stop does not wait for the disk longer than asked, and finishes once the disk lets go.
				start := time.Now()
				if err := leader.node.Stop(within(500 * time.Millisecond)); err != nil {
					require.ErrorIs(t, err, context.DeadlineExceeded)
				}
				require.LessOrEqual(t, time.Since(start), 500*time.Millisecond)
				open()
				require.NoError(t, leader.node.Stop(within(10*time.Second)))
			})
		})
	}
}

// Start waits for a disk that hangs no longer than asked either, and it can be called again once the disk lets go.
func TestStartGivesUpOnAHangingDisk(t *testing.T) {
	inGatedCluster(t, nil, func(t *testing.T, c *cluster, gate map[raft.NodeID]*gates) {
		m := c.follower()
		require.NoError(t, m.node.Stop(within(10*time.Second)))
		open := gate[m.id].hang("open")
		m.node = c.newNode(m)
		start := time.Now()
		err := m.node.Start(within(time.Second))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "look at the disk")
		require.Less(t, time.Since(start), 1500*time.Millisecond)
		require.ErrorIs(t, m.node.Start(within(time.Second)), context.DeadlineExceeded, "the first attempt has the storage")
		require.ErrorIs(t, m.node.Stop(within(time.Second)), context.DeadlineExceeded)
		open()
		require.NoError(t, m.node.Start(within(time.Second)), "it was closed again, and can be opened")
		c.propose(m, "a")
	})
}

// SAFETY §4: what cannot be written any more is found out by a compaction too. A leader that waits for its next write to say so stays in
// office until then, with a log that takes nothing.
func TestFailedCompactionHandsOverAndFails(t *testing.T) {
	inGatedCluster(t, often, func(t *testing.T, c *cluster, gate map[raft.NodeID]*gates) {
		leader := c.leader()
		broken := errors.New("input/output error")
		gate[leader.id].fail("compact", broken)
		start := time.Now()
		for i := range 12 { // the last of them may be uncertain
			leader.node.ProposeAsync(t.Context(), fmt.Append(nil, i))
			time.Sleep(time.Millisecond)
		}
		c.ended(leader)
		require.ErrorIs(t, leader.node.Err(), broken)
		require.NotEqual(t, leader.id, c.leader().id)
		require.Less(t, time.Since(start), 500*time.Millisecond, "handed over, nobody had to time out")
	})
}

// SAFETY §4: "space runs out while preparing a segment → full, typed, resumes by itself". Commands are refused before one of them gets
// stuck in front of votes and configurations.
func TestDiskIsFullOnceNothingMoreCanBePrepared(t *testing.T) {
	inGatedCluster(t, nil, func(t *testing.T, c *cluster, gate map[raft.NodeID]*gates) {
		leader := c.leader()
		gate[leader.id].fail("prepare", fmt.Errorf("no space: %w", raft.ErrStorageFull))
		c.propose(leader, "there is room for this one")
		synctest.Wait()
		_, err := leader.node.Propose(within(time.Second), []byte("refused"))
		require.ErrorIs(t, err, raft.ErrStorageFull)
		requireCertain(t, err)
		st := leader.node.Status()
		require.Equal(t, raft.StorageFull, st.Storage)
		require.Equal(t, "the storage is full", st.WhyNot)
		term := leader.node.Leadership().Term
		time.Sleep(30 * time.Second)
		require.Equal(t, raft.Leader, leader.node.Leadership().Role, "heartbeats go on")
		require.Equal(t, term, leader.node.Leadership().Term)
		require.NoError(t, leader.node.Read(within(time.Second)))
		_, err = leader.node.ChangeMembership(within(time.Second), raft.Change{Priority: map[raft.NodeID]uint8{leader.id: 1}})
		require.NoError(t, err)

		gate[leader.id].fail("prepare", nil)
		c.eventually("room", func() bool { return leader.node.Status().Storage == raft.StorageOK })
		c.propose(leader, "again")
		c.converge([]string{"there is room for this one", "again"})
	})
}

// A follower whose disk is full takes no commands, votes, and catches up by itself.
func TestFullFollowerIsBusyAndVotes(t *testing.T) {
	inGatedCluster(t, nil, func(t *testing.T, c *cluster, gate map[raft.NodeID]*gates) {
		leader, full := c.leader(), c.follower()
		gate[full.id].fail("prepare", fmt.Errorf("no space: %w", raft.ErrStorageFull))
		c.propose(leader, "a")
		c.eventually("full", func() bool { return full.node.Status().Storage == raft.StorageFull })
		c.propose(leader, "b")
		busy := func() bool {
			for _, p := range leader.node.Status().Peers {
				if p.ID == full.id && p.Busy {
					return true
				}
			}
			return false
		}
		c.eventually("it says so", busy)
		// The leader is gone, so this one's vote decides.
		third := c.machines[0]
		for third == leader || third == full {
			third = c.machines[int(third.id[1]-'0')%3]
		}
		c.crash(leader)
		c.eventually("it has voted for the other one", func() bool { return third.node.Leadership().Role == raft.Leader })
		gate[full.id].fail("prepare", nil)
		c.propose(third, "c")
		c.start(leader)
		c.converge([]string{"a", "b", "c"})
	})
}
