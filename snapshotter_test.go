package raft_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
)

// often takes snapshots after a few entries and keeps hardly any log behind them.
func often(cfg *raft.Config) {
	cfg.SnapshotEntries = 10
	cfg.Core.TrailingEntries = 1
}

func (c *cluster) proposeMany(from, to int) (want []string) {
	c.t.Helper()
	leader := c.leader()
	for i := range to {
		cmd := fmt.Sprint("c", i)
		if i >= from {
			c.propose(leader, cmd)
		}
		want = append(want, cmd)
	}
	return want
}

func TestSnapshotsAreTakenByThemselvesAndCompactTheLog(t *testing.T) {
	inCluster(t, 3, often, func(t *testing.T, c *cluster) {
		want := c.proposeMany(0, 100)
		c.converge(want)
		c.eventually("compacted logs", func() bool {
			for _, m := range c.machines {
				if st := m.node.Status(); st.SnapshotIndex < 80 || st.FirstIndex < 80 {
					return false
				}
			}
			return true
		})
		for _, m := range c.machines {
			c.crash(m)
		}
		for _, m := range c.machines {
			c.start(m)
		}
		c.propose(c.leader(), "more")
		c.converge(append(want, "more"))
		for _, m := range c.machines {
			require.Equal(t, 1, m.sm.restores())
		}
	})
}

func TestSnapshotBySize(t *testing.T) {
	inCluster(t, 1, func(cfg *raft.Config) { cfg.SnapshotBytes = 1000 }, func(t *testing.T, c *cluster) {
		m := c.leader()
		c.propose(m, strings.Repeat("x", 100))
		require.Zero(t, m.node.Status().SnapshotIndex)
		c.propose(m, strings.Repeat("x", 1000))
		c.eventually("a snapshot", func() bool { return m.node.Status().SnapshotIndex > 0 })
	})
}

func TestFollowerThatFellBehindGetsASnapshot(t *testing.T) {
	inCluster(t, 3, often, func(t *testing.T, c *cluster) {
		f := c.follower()
		c.net.Isolate(f.id)
		read := make(chan error, 1)
		want := c.proposeMany(0, 60)
		go func() { read <- f.node.Read(context.Background()) }()
		c.net.Heal()
		c.converge(want)
		require.Positive(t, f.sm.restores())
		require.NoError(t, <-read)
		c.propose(f, "via the follower")
	})
}

func TestJoinerGetsASnapshot(t *testing.T) {
	inCluster(t, 3, often, func(t *testing.T, c *cluster) {
		want := c.proposeMany(0, 60)
		joiner := c.add("n4")
		leader := c.leader()
		_, err := leader.node.ChangeMembership(within(time.Minute), raft.Change{Add: []raft.Server{{ID: "n4"}}})
		require.NoError(t, err)
		c.converge(want)
		require.Positive(t, joiner.sm.restores())
		_, err = leader.node.ChangeMembership(within(time.Minute), raft.Change{Promote: []raft.NodeID{"n4"}})
		require.NoError(t, err)
		c.crash(joiner)
		c.start(joiner)
		c.converge(want)
	})
}

func TestSnapshotTransferThatBreaksIsRepeated(t *testing.T) {
	inCluster(t, 3, often, func(t *testing.T, c *cluster) {
		f := c.follower()
		c.net.Isolate(f.id)
		want := c.proposeMany(0, 60)
		for range 5 {
			c.net.Heal()
			time.Sleep(37 * time.Millisecond)
			c.net.Isolate(f.id)
			time.Sleep(300 * time.Millisecond)
		}
		c.net.Heal()
		c.converge(want)
	})
}

// A snapshot that is found damaged when it is to be sent is no good, and nothing else may be due for long: the leader takes another one.
func TestSnapshotThatIsDamagedIsTakenAnew(t *testing.T) {
	inGatedCluster(t, often, func(t *testing.T, c *cluster, gate map[raft.NodeID]*gates) {
		f, leader := c.follower(), c.leader()
		c.net.Isolate(f.id)
		want := c.proposeMany(0, 60)
		synctest.Wait()
		damaged := leader.node.Status().SnapshotIndex
		for range 3 { // not enough for the next one
			c.propose(leader, "x")
			want = append(want, "x")
		}
		synctest.Wait()
		require.Equal(t, damaged, leader.node.Status().SnapshotIndex)
		gate[leader.id].fail("open snapshot", &raft.CorruptionError{Path: "snapshot", Reason: "rot"})
		c.net.Heal()
		c.eventually("another snapshot", func() bool { return leader.node.Status().SnapshotIndex > damaged })
		tries := gate[leader.id].tries("open snapshot")
		require.Positive(t, tries)
		require.Less(t, tries, 10, "attempts without pauses")
		gate[leader.id].fail("open snapshot", nil)
		c.converge(want)
		require.Positive(t, f.sm.restores())
	})
}

// What this node proposed and what came back as part of a snapshot: committed, but the result is lost.
func TestResultSkippedByASnapshotIsUncertain(t *testing.T) {
	inCluster(t, 3, often, func(t *testing.T, c *cluster) {
		old := c.leader()
		var others []*machine
		for _, m := range c.machines {
			if m != old {
				others = append(others, m)
			}
		}
		// The entry reaches the others, but the leader hears nothing of it and is replaced.
		c.net.Cut(others[0].id, old.id)
		c.net.Cut(others[1].id, old.id)
		p := old.node.ProposeAsync(within(30*time.Second), []byte("mine"))
		c.eventually("its commit by another leader", func() bool { return len(others[0].sm.all()) == 1 && len(others[1].sm.all()) == 1 })
		c.net.Isolate(old.id)
		for i := range 60 {
			c.propose(others[i%2], fmt.Sprint(i))
		}
		c.net.Heal()
		_, err := p.Result()
		require.ErrorIs(t, err, raft.ErrResultLost)
		requireUncertain(t, err)
		c.converge(nil)
		require.Equal(t, "mine", old.sm.all()[0])
	})
}

func TestSnapshotOnDemand(t *testing.T) {
	inCluster(t, 1, nil, func(t *testing.T, c *cluster) {
		m := c.leader()
		ctx := context.Background()
		c.propose(m, "a")
		meta, err := m.node.Snapshot(ctx)
		require.NoError(t, err)
		require.Equal(t, m.node.Status().AppliedIndex, meta.Index)
		require.Positive(t, meta.Size)
		again, err := m.node.Snapshot(ctx)
		require.NoError(t, err)
		require.Equal(t, meta, again, "nothing has changed")
		require.Equal(t, 1, m.sm.closedViews())

		// Two at once share one, and Apply goes on beside it.
		c.propose(m, "b")
		hold := make(chan struct{})
		m.sm.hook(hooks{writeTo: func() error { <-hold; return nil }})
		var wg sync.WaitGroup
		metas := make([]raft.SnapshotMeta, 2)
		for i := range metas {
			wg.Go(func() {
				var err error
				if metas[i], err = m.node.Snapshot(ctx); err != nil {
					c.t.Error(err)
				}
			})
		}
		synctest.Wait()
		c.propose(m, "beside it")
		_, err = m.node.Snapshot(within(time.Second))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		close(hold)
		wg.Wait()
		require.Equal(t, metas[0], metas[1])
		require.Equal(t, meta.Index+1, metas[0].Index)
		require.Equal(t, 2, m.sm.closedViews())
	})
}

func TestSnapshotThatCannotBeTakenLeavesTheNodeRunning(t *testing.T) {
	inCluster(t, 1, often, func(t *testing.T, c *cluster) {
		m := c.leader()
		broken := errors.New("no room for a snapshot")
		m.sm.hook(hooks{snapshot: func() error { return broken }})
		c.proposeMany(0, 20)
		_, err := m.node.Snapshot(context.Background())
		require.ErrorIs(t, err, broken)
		m.sm.hook(hooks{writeTo: func() error { return broken }})
		_, err = m.node.Snapshot(context.Background())
		require.ErrorIs(t, err, broken)
		require.Equal(t, 1, m.sm.closedViews())
		m.sm.hook(hooks{})
		require.Zero(t, m.node.Status().SnapshotIndex)

		// By itself it tries again, after a pause.
		time.Sleep(time.Minute)
		c.propose(m, "x")
		c.eventually("a snapshot", func() bool { return m.node.Status().SnapshotIndex > 0 })
	})
}

func TestPanicWhileWritingASnapshotMakesTheNodeFail(t *testing.T) {
	inCluster(t, 1, nil, func(t *testing.T, c *cluster) {
		m := c.leader()
		c.propose(m, "a")
		m.sm.hook(hooks{writeTo: func() error { panic("in WriteTo") }})
		_, err := m.node.Snapshot(context.Background())
		require.ErrorContains(t, err, "in WriteTo")
		c.ended(m)
		require.ErrorContains(t, m.node.Err(), "in WriteTo")
	})
}

// durableJournal keeps its state over restarts, as a database would.
type durableJournal struct {
	journal
	last raft.EntryID
}

func (d *durableJournal) Apply(es []raft.Entry, results []any) error {
	d.last = es[len(es)-1].ID()
	return d.journal.Apply(es, results)
}

func (d *durableJournal) Restore(ctx context.Context, meta raft.SnapshotMeta, r io.Reader) error {
	d.last = meta.ID()
	return d.journal.Restore(ctx, meta, r)
}

func (d *durableJournal) LastApplied() (raft.EntryID, error) { return d.last, nil }

func TestDurableStateMachineGoesOnWhereItWas(t *testing.T) {
	durable := &durableJournal{}
	inCluster(t, 1, func(cfg *raft.Config) { cfg.StateMachine = durable }, func(t *testing.T, c *cluster) {
		m := c.leader()
		for i := range 20 {
			c.propose(m, fmt.Sprint(i))
			if i == 10 {
				_, err := m.node.Snapshot(context.Background())
				require.NoError(t, err)
			}
		}
		c.crash(m)
		c.start(m)
		c.propose(c.leader(), "more")
		require.Len(t, durable.all(), 21, "nothing was applied twice")
		require.Zero(t, durable.restores(), "the snapshot is older")

		// A state machine that is behind the snapshot is restored.
		_, err := m.node.Snapshot(context.Background())
		require.NoError(t, err)
		c.crash(m)
		durable.last, durable.commands = raft.EntryID{Term: 1, Index: 1}, nil
		c.start(m)
		c.propose(c.leader(), "even more")
		require.Len(t, durable.all(), 22)
		require.Equal(t, 1, durable.restores())

		// One that has seen what this log never held belongs elsewhere.
		c.crash(m)
		last := durable.last
		durable.last.Index += 1000
		c.start(m)
		c.ended(m)
		require.ErrorContains(t, m.node.Err(), "do not belong together")

		// And so does one that has seen another entry at its index.
		c.crash(m)
		durable.last = raft.EntryID{Term: last.Term + 1, Index: last.Index}
		c.start(m)
		c.ended(m)
		require.ErrorContains(t, m.node.Err(), "do not belong together")
	})
}

func TestFailingRestoreMakesTheNodeFail(t *testing.T) {
	inCluster(t, 1, nil, func(t *testing.T, c *cluster) {
		m := c.leader()
		c.propose(m, "a")
		_, err := m.node.Snapshot(context.Background())
		require.NoError(t, err)
		c.crash(m)
		c.configure = func(cfg *raft.Config) { cfg.StateMachine = cannotRestore{m.sm} }
		c.start(m)
		<-m.node.Done()
		require.ErrorContains(t, m.node.Err(), "restore snapshot")
		require.ErrorContains(t, m.node.Err(), "no way")
	})
}

type cannotRestore struct{ *journal }

func (cannotRestore) Restore(context.Context, raft.SnapshotMeta, io.Reader) error {
	return errors.New("no way")
}

// Old entries that a follower lacks are read from storage when they are no longer in memory, and a restarted server applies such
// entries too.
func TestEntriesThatLeftMemoryAreReadFromStorage(t *testing.T) {
	inCluster(t, 3, func(cfg *raft.Config) { cfg.Core.MaxTailBytes = 1000; cfg.Core.MaxBatchBytes = 500 }, func(t *testing.T, c *cluster) {
		f := c.follower()
		c.net.Isolate(f.id)
		want := c.proposeMany(0, 200)
		c.net.Heal()
		c.converge(want)
		for _, m := range c.machines {
			c.crash(m)
		}
		for _, m := range c.machines {
			c.start(m)
		}
		c.propose(c.leader(), "more")
		c.converge(append(want, "more"))
		for _, m := range c.machines {
			require.Zero(t, m.sm.restores())
		}
	})
}

// rewinders notes of each snapshot that is sent whether its content can be rewound.
type rewinders struct {
	raft.Transport
	mu   *sync.Mutex
	sent map[bool]int
}

func (s rewinders) SendSnapshot(ctx context.Context, m raft.Message, r io.Reader) error {
	_, ok := r.(raft.Rewinder)
	s.mu.Lock()
	s.sent[ok]++
	s.mu.Unlock()
	return s.Transport.SendSnapshot(ctx, m, r)
}

// Without that a transport cannot leave out what the receiver has.
func TestSnapshotIsSentFromContentThatCanBeRewound(t *testing.T) {
	s := rewinders{mu: &sync.Mutex{}, sent: map[bool]int{}}
	inCluster(t, 3, func(cfg *raft.Config) {
		often(cfg)
		cfg.Transport = rewinders{cfg.Transport, s.mu, s.sent}
	}, func(t *testing.T, c *cluster) {
		f := c.follower()
		c.net.Isolate(f.id)
		want := c.proposeMany(0, 60)
		c.net.Heal()
		c.converge(want)
		s.mu.Lock()
		defer s.mu.Unlock()
		require.Positive(t, s.sent[true])
		require.Zero(t, s.sent[false])
	})
}
