package raft_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
)

// The wounds that concern a whole node. wounds_test.go says what this is about.

// ended waits for a call that runs beside the test, and fails the test if it goes on for longer than half a minute of the bubble's time.
func ended[T any](t *testing.T, what string, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(30 * time.Second):
		require.FailNow(t, "this call never ends: "+what)
	}
	return v
}

// isOver is ended for a proposal.
func isOver(t *testing.T, what string, p *raft.Pending) error {
	t.Helper()
	ended(t, what, p.Done())
	_, err := p.Result()
	return err
}

// begun runs a call beside the test.
func begun(f func() error) <-chan error {
	ch := make(chan error, 1)
	go func() { ch <- f() }()
	synctest.Wait()
	return ch
}

func (c *cluster) anotherLeader(old *machine) *machine {
	var found *machine
	c.eventually("another leader", func() bool {
		for _, m := range c.machines {
			if m != old && m.node.Leadership().Role == raft.Leader {
				found = m
			}
		}
		return found != nil
	})
	return found
}

// Log and commit. A command was taken in while the server led one term, waited in a queue, and was stamped with the term in which the
// server led again: a task of the deposed leader was carried out among those of its successor. A command that names its term is
// appended in that term or not at all, wherever it waits meanwhile.
func TestWoundOldWorkUnderANewTerm(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		old := c.leader()
		term := old.node.Leadership().Term
		c.net.Isolate(old.id)
		// While leadership is being transferred the command waits.
		transfer := begun(func() error { return old.node.ChangeLeader(within(time.Minute), "") })
		p := old.node.ProposeAsync(context.Background(), []byte("old work"), raft.IfTerm(term))
		c.anotherLeader(old)
		c.net.Heal()
		require.ErrorIs(t, isOver(t, "old work", p), raft.ErrStaleTerm)
		ended(t, "transfer", transfer)
		c.propose(c.leader(), "new work")
		c.converge([]string{"new work"})
	})
}

// Lifecycle. Clients hung for ever on a leader that had stepped down: the entries they waited for had been truncated, and the reads
// waited for a round that nobody would begin. Every call ends, and says whether its command may have taken effect.
func TestWoundPendingCallsAtStepDown(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		old := c.leader()
		c.net.Isolate(old.id)
		var ps []*raft.Pending
		for i := range 20 { // so many that nothing takes the place of the last ones
			ps = append(ps, old.node.ProposeAsync(context.Background(), fmt.Append(nil, i)))
		}
		read := begun(func() error { return old.node.Read(context.Background()) })
		transfer := begun(func() error { return old.node.ChangeLeader(context.Background(), "") })
		work := make(chan error, 1)
		synctest.Wait()
		go func() {
			work <- old.node.WhileLeader(context.Background(), func(ctx context.Context, _ raft.Term) error {
				<-ctx.Done()
				return context.Cause(ctx)
			})
		}()
		c.anotherLeader(old)
		require.Error(t, ended(t, "transfer", transfer))
		c.net.Heal()
		for _, p := range ps {
			require.ErrorIs(t, isOver(t, "proposal", p), raft.ErrDropped)
		}
		require.NoError(t, ended(t, "read", read), "asked again, of the new leader")
		c.converge([]string{})
		require.NoError(t, old.node.Stop(within(10*time.Second)))
		ended(t, "work of a leader", work)
	})
}

// Lifecycle. A server was shut down, and callers hung: those whose entries were replicated to nobody, those that waited for a leader.
func TestWoundPendingCallsAtShutdown(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader := c.leader()
		for _, m := range c.machines {
			if m != leader {
				c.net.Isolate(m.id)
			}
		}
		appended := leader.node.ProposeAsync(context.Background(), []byte("appended"))
		read := begun(func() error { return leader.node.Read(context.Background()) })
		require.NoError(t, leader.node.Stop(within(10*time.Second)))
		requireUncertain(t, isOver(t, "an appended command", appended))
		require.ErrorIs(t, ended(t, "read", read), raft.ErrStopped)

		lonely := c.machines[0]
		if lonely == leader {
			lonely = c.machines[1]
		}
		c.eventually("no leader", func() bool { return lonely.node.Leadership().Leader == "" })
		waiting := lonely.node.ProposeAsync(context.Background(), []byte("waiting"))
		require.NoError(t, lonely.node.Stop(within(10*time.Second)))
		requireCertain(t, isOver(t, "a command that waits", waiting))
	})
}

// Lifecycle. A server was removed from the cluster. Nobody talked to it any more, so nobody told it what became of the commands that
// were waiting there, and they waited for ever.
func TestWoundPendingCallsAtRemoval(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader, f := c.leader(), c.follower()
		later := raft.IfTerm(leader.node.Leadership().Term + 9) // so that it waits
		waiting := f.node.ProposeAsync(context.Background(), []byte("a"), later)
		_, err := leader.node.ChangeMembership(within(10*time.Second), raft.Change{Remove: []raft.NodeID{f.id}})
		require.NoError(t, err)
		removed := (*raft.MembershipError)(nil)
		require.ErrorAs(t, isOver(t, "a command that waits", waiting), &removed)
	})
}

// Lifecycle. A command's entry came back to the server that had proposed it inside a snapshot. It was never applied there one by one,
// so its caller was never told. The result is lost, and that is an outcome: uncertain.
func TestWoundPendingCallsAtRestore(t *testing.T) {
	inCluster(t, 3, often, func(t *testing.T, c *cluster) {
		old := c.leader()
		var others []*machine
		for _, m := range c.machines {
			if m != old {
				others = append(others, m)
				c.net.Cut(m.id, old.id) // it hears nothing of what it replicates
			}
		}
		p := old.node.ProposeAsync(context.Background(), []byte("mine"))
		c.eventually("its commit by another leader", func() bool { return len(others[0].sm.all()) == 1 && len(others[1].sm.all()) == 1 })
		c.net.Isolate(old.id)
		for i := range 60 {
			c.propose(others[i%2], fmt.Sprint(i))
		}
		c.net.Heal()
		err := isOver(t, "a command inside a snapshot", p)
		require.ErrorIs(t, err, raft.ErrResultLost)
		requireUncertain(t, err)
		c.converge(nil)
	})
}
