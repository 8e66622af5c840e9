package raft_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	memstorage "github.com/steadyraft/raft/storage/memory"
)

// fill proposes some commands and waits until everybody has applied them.
func (c *cluster) fill(n int) (commands []string) {
	c.t.Helper()
	for i := range n {
		commands = append(commands, fmt.Sprint(i))
		c.propose(c.leader(), commands[i])
	}
	c.converge(commands)
	return commands
}

// whole waits until a machine's log can be read from end to end.
func (c *cluster) whole(m *machine) {
	c.t.Helper()
	c.eventually("a whole log of "+string(m.id), func() bool {
		st := m.node.Status()
		if len(st.Damaged) > 0 || st.Fence != (raft.EntryID{}) {
			return false
		}
		for i := st.FirstIndex; i <= st.LastIndex; i++ {
			if _, err := m.storage.Entries(i, i+1, 1); err != nil {
				return false
			}
		}
		return true
	})
}

// A follower that is started on a log with damaged entries fetches them, while clients go on.
func TestDamagedLogIsRepairedAtStart(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		commands := c.fill(8)
		m := c.follower()
		c.crash(m)
		m.storage.Damage(3, 6, false)
		c.start(m)
		require.Equal(t, []raft.Damage{{First: 3, Last: 5}}, m.node.Status().Damaged)
		c.propose(c.leader(), "more")
		c.converge(append(commands, "more"))
		c.whole(m)
		require.Equal(t, raft.RepairStatus{Found: 3, Repaired: 3}, m.node.Status().Repair)
	})
}

// Entries that turn out to be damaged when they are to be applied are waited for: the node does not fail.
func TestApplyWaitsForDamagedEntries(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		commands := c.fill(8)
		m := c.follower()
		c.crash(m)
		c.start(m)
		m.storage.Damage(4, 7, false) // behind its back
		c.converge(commands)
		c.whole(m)
		require.NoError(t, m.node.Err())
		require.EqualValues(t, 3, m.node.Status().Repair.Repaired)
	})
}

// The same while a snapshot takes the entries' place, because the others have compacted them.
func TestApplyGoesOnWithASnapshot(t *testing.T) {
	inCluster(t, 3, func(cfg *raft.Config) { cfg.Core.TrailingEntries = 1 }, func(t *testing.T, c *cluster) {
		commands := c.fill(8)
		m := c.follower()
		c.crash(m)
		for _, other := range c.machines {
			if other != m {
				_, err := other.node.Snapshot(t.Context())
				require.NoError(t, err)
			}
		}
		c.start(m)
		m.storage.Damage(4, 7, false)
		c.propose(c.leader(), "more")
		c.converge(append(commands, "more"))
		c.whole(m)
		require.Equal(t, 1, m.sm.restores())
	})
}

// A leader that finds damage when it reads for a follower that lags hands over, is repaired, and the follower gets what it needs.
func TestLeaderWithDamageHandsOver(t *testing.T) {
	inCluster(t, 3, func(cfg *raft.Config) { cfg.Core.MaxTailBytes = 1 }, func(t *testing.T, c *cluster) {
		lagging := c.follower()
		c.crash(lagging)
		leader := c.leader()
		var commands []string
		for i := range 8 {
			commands = append(commands, fmt.Sprint(i))
			c.propose(leader, commands[i])
		}
		leader.storage.Damage(4, 6, false)
		c.start(lagging)
		c.converge(commands)
		for _, m := range c.machines {
			c.whole(m)
			require.NoError(t, m.node.Err())
		}
		require.Contains(t, []uint64{0, 2}, leader.node.Status().Repair.Repaired)
		require.EqualValues(t, 2, leader.node.Status().Repair.Found)
		require.NotEqual(t, leader, c.leader())
	})
}

// An entry that is damaged everywhere keeps the cluster safely unavailable: every server says which one it is, and whom it has asked.
func TestEntryThatIsNowhereToBeHadIsNamed(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		c.fill(8)
		for _, m := range c.machines {
			c.crash(m)
			m.storage.Damage(4, 5, false)
		}
		for _, m := range c.machines {
			c.start(m)
		}
		c.eventually("a server that says what is missing", func() bool {
			for _, m := range c.machines {
				if st := m.node.Status(); st.Repair.Missing.Index == 4 {
					require.Len(t, st.Repair.Asked, 2)
					require.Contains(t, st.WhyNot, "entry 4@", "%+v", st)
					return true
				}
			}
			return false
		})
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		_, err := c.machines[0].node.Propose(ctx, []byte("more"))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		for _, m := range c.machines {
			require.Zero(t, m.node.Status().CommitIndex)
			require.NotContains(t, m.sm.all(), "2", "nothing behind the entry is applied")
		}
	})
}

// A server that has lost the end of its log catches up, and the fence is lifted on its disk.
func TestFencedServerCatchesUp(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		commands := c.fill(8)
		m := c.follower()
		fence := raft.EntryID{Term: raft.MaxTerm, Index: m.node.Status().LastIndex}
		c.crash(m)
		m.storage.LoseEnd(4, fence)
		c.start(m)
		require.Equal(t, fence, m.node.Status().Fence)
		c.propose(c.leader(), "more")
		c.converge(append(commands, "more"))
		c.whole(m)
		leader := c.leader()
		require.EqualValues(t, 1, leader.node.Status().Repair.LostLogs)
		c.crash(m)
		c.start(m)
		require.Zero(t, m.node.Status().Fence)
	})
}

// A single server repairs what it has applied already by a snapshot of its own.
func TestSingleServerHealsBySnapshot(t *testing.T) {
	inCluster(t, 1, func(cfg *raft.Config) { cfg.Core.MaxTailBytes = 1 }, func(t *testing.T, c *cluster) {
		commands := c.fill(8)
		m := c.machines[0]
		m.storage.Damage(4, 6, false)
		learner := c.add("n2")
		_, err := m.node.ChangeMembership(t.Context(), raft.Change{Add: []raft.Server{{ID: "n2", Address: "host-n2"}}})
		require.NoError(t, err)
		c.converge(commands)
		require.Equal(t, 1, learner.sm.restores())
		c.whole(m)
	})
}

// What is damaged is said in words that name the next step.
func TestDamageIsShown(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		c.fill(8)
		for _, m := range c.machines {
			c.crash(m)
			m.storage.LoseEnd(4, raft.EntryID{Term: 1, Index: 9})
		}
		for _, m := range c.machines {
			c.start(m)
		}
		time.Sleep(10 * time.Second)
		for _, m := range c.machines {
			require.True(t, strings.HasPrefix(m.node.Status().WhyNot, "no leader is known, and this server cannot become one"), m.node.Status().WhyNot)
		}
	})
}

// A snapshot that takes the place of missing entries is sent by whoever has it, leader or not: here by a follower of the server that
// lacks them, to which nobody else could send anything.
func TestSnapshotForRepairIsSentByAFollower(t *testing.T) {
	inCluster(t, 3, func(cfg *raft.Config) { cfg.Core.TrailingEntries = 1 }, func(t *testing.T, c *cluster) {
		commands := c.fill(8)
		leader := c.leader()
		behind := c.follower()
		var other *machine
		for _, m := range c.machines {
			if m != leader && m != behind {
				other = m
			}
		}
		_, err := behind.node.Snapshot(t.Context())
		require.NoError(t, err)
		c.eventually("a compacted log", func() bool {
			_, err := behind.storage.Entries(6, 7, 1)
			return errors.Is(err, raft.ErrCompacted)
		})
		c.crash(behind)
		c.propose(leader, "more") // other has it, and behind does not
		c.eventually("two that have it", func() bool { return len(other.sm.all()) == len(leader.sm.all()) })
		c.crash(leader)
		c.crash(other)
		other.storage.Damage(4, 6, false)
		c.start(behind)
		c.start(other)
		c.eventually("a leader that has recovered", func() bool {
			st := other.node.Status()
			return st.Role == raft.Leader && !st.Recovering && st.CanCommit
		})
		require.Equal(t, 1, other.sm.restores())
		c.start(leader)
		c.converge(append(commands, "more"))
	})
}

// A server whose newest snapshot cannot be read any more, so that its log begins behind what it can restore, starts all the same and gets
// another one.
func TestServerStartsWithoutItsSnapshot(t *testing.T) {
	inCluster(t, 3, func(cfg *raft.Config) { cfg.Core.TrailingEntries = 1 }, func(t *testing.T, c *cluster) {
		commands := c.fill(8)
		for _, m := range c.machines {
			_, err := m.node.Snapshot(t.Context())
			require.NoError(t, err)
		}
		c.propose(c.leader(), "more")
		m := c.follower()
		c.eventually("a compacted log", func() bool { return m.node.Status().FirstIndex > 6 })
		c.crash(m)
		m.storage.LoseSnapshots()
		c.start(m)
		require.NotEmpty(t, m.node.Status().Damaged)
		c.converge(append(commands, "more"))
		c.whole(m)
		require.Equal(t, 1, m.sm.restores())
	})
}

// scrubbed is a storage that looks for damage.
type scrubbed struct{ *memstorage.Storage }

func (s scrubbed) Prepare() (bool, error) { return false, nil }
func (s scrubbed) Idle() error            { return nil }

func (s scrubbed) Scrub(int) (damaged []raft.Damage, end bool, err error) {
	for i := raft.Index(1); ; i++ {
		_, err := s.Entries(i, i+1, 1)
		var damage *raft.CorruptionError
		if errors.As(err, &damage) {
			return []raft.Damage{damage.Damage}, false, nil
		}
		if err != nil {
			return nil, true, nil // behind the end
		}
	}
}

// Damage to entries that nobody asks for is found by the storage that looks for it. A snapshot makes up for them, since they are
// applied.
func TestDamageFoundByAScrubIsRepaired(t *testing.T) {
	configure := func(cfg *raft.Config) { cfg.Storage = scrubbed{cfg.Storage.(*memstorage.Storage)} }
	inCluster(t, 3, configure, func(t *testing.T, c *cluster) {
		c.fill(8)
		m := c.follower()
		m.storage.Damage(4, 7, false)
		_, err := m.storage.Entries(4, 5, 1)
		require.Error(t, err)
		c.whole(m)
		require.EqualValues(t, 3, m.node.Status().Repair.Found)
	})
}

// A status is of one moment: what the core knows of damage has been counted.
func TestStatusOfDamageIsOfOneMoment(t *testing.T) {
	taps := map[raft.NodeID]*tap{}
	configure := func(cfg *raft.Config) {
		cfg.Storage = scrubbed{cfg.Storage.(*memstorage.Storage)}
		taps[cfg.ID] = &tap{Transport: cfg.Transport}
		cfg.Transport = taps[cfg.ID]
	}
	inCluster(t, 3, configure, func(t *testing.T, c *cluster) {
		c.fill(8)
		m := c.follower()
		p, hold := taps[m.id], make(chan struct{})
		setHold := func(to chan struct{}) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.hold = to
		}
		setHold(hold)
		m.storage.Damage(4, 7, false)
		time.Sleep(2 * time.Minute) // the loop is held up by what it sends, and the damage found meanwhile waits for it
		asked := make(chan raft.Status)
		go func() { asked <- m.node.Status() }()
		synctest.Wait()
		setHold(nil)
		close(hold)
		require.EqualValues(t, 3, (<-asked).Repair.Found)
		c.whole(m)
	})
}
