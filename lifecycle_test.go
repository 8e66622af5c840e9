package raft_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	memstorage "github.com/steadyraft/raft/storage/memory"
	memtransport "github.com/steadyraft/raft/transport/memory"
)

func TestStopEndsEveryCall(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader := c.leader()
		for _, m := range c.machines {
			if m != leader {
				c.net.Isolate(m.id)
			}
		}
		appended := leader.node.ProposeAsync(within(time.Minute), []byte("appended"))
		read := make(chan error, 1)
		go func() { read <- leader.node.Read(within(time.Minute)) }()
		work := make(chan error, 1)
		go func() {
			work <- leader.node.WhileLeader(within(time.Minute), func(ctx context.Context, _ raft.Term) error { <-ctx.Done(); return nil })
		}()
		lonely := c.machines[0]
		if lonely == leader {
			lonely = c.machines[1]
		}
		c.eventually("no leader", func() bool { return lonely.node.Leadership().Leader == "" })
		waiting := lonely.node.ProposeAsync(within(time.Minute), []byte("waiting"))

		require.NoError(t, leader.node.Stop(within(10*time.Second)))
		_, err := appended.Result()
		requireUncertain(t, err)
		require.ErrorIs(t, err, raft.ErrStopped)
		require.ErrorIs(t, <-read, raft.ErrStopped)
		require.ErrorIs(t, <-work, raft.ErrStopped)
		require.NoError(t, lonely.node.Stop(within(10*time.Second)))
		_, err = waiting.Result()
		requireCertain(t, err)
		require.ErrorIs(t, err, raft.ErrStopped)
	})
}

// While a node lets finish what is under way, it takes nothing more.
func TestStoppingNodeTakesNoNewCalls(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader := c.leader()
		for _, m := range c.machines {
			if m != leader {
				c.net.Isolate(m.id)
			}
		}
		p := leader.node.ProposeAsync(within(time.Minute), []byte("under way"))
		synctest.Wait()
		stopped := make(chan error, 1)
		go func() { stopped <- leader.node.Stop(within(time.Minute)) }()
		synctest.Wait()
		require.Empty(t, stopped)
		ctx := within(time.Millisecond)
		_, err := leader.node.Propose(ctx, []byte("too late"))
		require.ErrorIs(t, err, raft.ErrStopped)
		requireCertain(t, err)
		require.ErrorIs(t, leader.node.Read(ctx), raft.ErrStopped)
		_, err = leader.node.ChangeMembership(ctx, raft.Change{Add: []raft.Server{{ID: "late"}}})
		require.ErrorIs(t, err, raft.ErrStopped)
		require.NoError(t, <-stopped)
		_, err = p.Result()
		requireUncertain(t, err)
	})
}

func TestStopHandsLeadershipOver(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader := c.leader()
		start := time.Now()
		require.NoError(t, leader.node.Stop(within(10*time.Second)))
		require.NotEqual(t, leader.id, c.leader().id)
		require.Less(t, time.Since(start), 500*time.Millisecond)
		require.ErrorIs(t, leader.node.Err(), raft.ErrStopped)
		<-leader.node.Done()
	})
}

func TestStopInEveryState(t *testing.T) {
	inCluster(t, 1, nil, func(t *testing.T, c *cluster) {
		m := c.leader()
		ctx := context.Background()

		// Many at once, then again.
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if err := m.node.Stop(ctx); err != nil {
					c.t.Error(err)
				}
			})
		}
		wg.Wait()
		require.NoError(t, m.node.Stop(ctx))
		checkStopped(t, m.node)
		require.ErrorIs(t, m.node.Start(ctx), raft.ErrStopped)

		// Before Start.
		m.node = c.newNode(m)
		checkStopped(t, m.node)
		require.NoError(t, m.node.Err())
		require.NoError(t, m.node.Stop(ctx))
		checkStopped(t, m.node)
		require.ErrorIs(t, m.node.Err(), raft.ErrStopped)
		require.ErrorIs(t, m.node.Start(ctx), raft.ErrStopped)

		// With a context that is over: it stops all the same, right away.
		m.node = c.newNode(m)
		require.NoError(t, m.node.Start(ctx))
		require.Error(t, m.node.Start(ctx), "twice")
		over, cancel := context.WithCancel(ctx)
		cancel()
		if err := m.node.Stop(over); err != nil {
			require.ErrorIs(t, err, context.Canceled)
		}
		<-m.node.Done()
		checkStopped(t, m.node)
		require.NoError(t, m.node.Stop(ctx))
	})
}

// checkStopped checks that every method answers on a node that does not run.
func checkStopped(t *testing.T, n *raft.Node) {
	t.Helper()
	ctx := context.Background()
	_, err := n.Propose(ctx, nil)
	require.ErrorIs(t, err, raft.ErrStopped)
	_, err = n.ProposeAsync(ctx, nil).Result()
	require.ErrorIs(t, err, raft.ErrStopped)
	_, err = n.Snapshot(ctx)
	require.ErrorIs(t, err, raft.ErrStopped)
	_, err = n.ChangeMembership(ctx, raft.Change{})
	require.ErrorIs(t, err, raft.ErrStopped)
	require.ErrorIs(t, n.Read(ctx), raft.ErrStopped)
	require.ErrorIs(t, n.Barrier(ctx), raft.ErrStopped)
	require.ErrorIs(t, n.ChangeLeader(ctx, ""), raft.ErrStopped)
	_, err = n.Handle(ctx, raft.Message{Header: raft.Header{From: "x", To: "n1"}, Body: raft.PreVote{}})
	require.ErrorIs(t, err, raft.ErrStopped)
	require.Equal(t, "stopped", n.Status().State)
	require.False(t, n.Status().CanCommit)
	require.NotEqual(t, raft.Leader, n.Leadership().Role)
}

func TestRestartGoesOnWhereItWas(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		var want []string
		for i := range 20 {
			want = append(want, fmt.Sprint(i))
			c.propose(c.leader(), want[i])
		}
		for _, m := range c.machines { // one after another, by force
			c.crash(m)
			c.start(m)
			c.leader()
		}
		c.converge(want)
		for _, m := range c.machines { // all at once
			c.crash(m)
		}
		for _, m := range c.machines {
			c.start(m)
		}
		c.propose(c.leader(), "more")
		c.converge(append(want, "more"))
		require.Equal(t, uint64(3), c.machines[0].node.Status().Identity.Incarnation-1, "bootstrap counts as one")
	})
}

func TestStartOnABlankStorageNeedsACluster(t *testing.T) {
	st := memstorage.New()
	cfg := raft.Config{ID: "n1", StateMachine: &journal{}, Storage: st, Transport: memtransport.NewNetwork().Transport("n1")}
	n, err := raft.NewNode(cfg)
	require.NoError(t, err)
	err = n.Start(t.Context())
	require.ErrorContains(t, err, "raft.Bootstrap")
	require.ErrorContains(t, err, "Config.ClusterID")

	// Nothing is held: the next one can begin.
	require.NoError(t, raft.Bootstrap(t.Context(), st, "n1", raft.Configuration{ClusterID: "c", Servers: []raft.Server{{ID: "n1"}}}))
	require.NoError(t, n.Start(t.Context()))
	require.NoError(t, n.Stop(t.Context()))
}

func TestBootstrap(t *testing.T) {
	conf := raft.Configuration{ClusterID: "c", Servers: []raft.Server{{ID: "b"}, {ID: "a"}}}
	st := memstorage.New()
	err := raft.Bootstrap(t.Context(), st, "z", raft.Configuration{Removed: []raft.NodeID{"q"}, Servers: []raft.Server{{ID: "a", Replica: 3, Outgoing: true}, {ID: "a"}}})
	for _, problem := range []string{"cluster ID", "used twice", `"z" is not in the configuration`, "Removed", "Replica", "Outgoing"} {
		require.ErrorContains(t, err, problem)
	}
	require.NoError(t, raft.Bootstrap(t.Context(), st, "a", conf), "any order")
	require.Equal(t, raft.NodeID("b"), conf.Servers[0].ID, "the caller's configuration is not touched")
	require.ErrorIs(t, raft.Bootstrap(t.Context(), st, "a", conf), raft.ErrBootstrapped)
	require.ErrorIs(t, raft.Bootstrap(t.Context(), st, "b", conf), raft.ErrBootstrapped)
	conf.ClusterID = "other"
	require.ErrorIs(t, raft.Bootstrap(t.Context(), st, "a", conf), raft.ErrBootstrapped)
}

func TestConfigReportsAllProblemsAtOnce(t *testing.T) {
	_, err := raft.NewNode(raft.Config{MaxCommandBytes: -1, Core: raft.CoreConfig{ID: "x", ElectionTimeout: -1}})
	for _, problem := range []string{"ID", "StateMachine", "Storage", "Transport", "MaxCommandBytes", "Core.ID", "Core.ElectionTimeout"} {
		require.ErrorContains(t, err, problem)
	}
	st, tr := memstorage.New(), memtransport.NewNetwork().Transport("n1")
	_, err = raft.NewNode(raft.Config{ID: "n1", StateMachine: &journal{}, Storage: st, Transport: tr, MaxCommandBytes: 100 << 20,
		MaxProposalBytes: 1, MaxInboxBytes: 1, Core: raft.CoreConfig{HeartbeatInterval: time.Second}})
	for _, problem := range []string{"MaxCommandBytes 104857600", "MaxProposalBytes 1", "MaxInboxBytes 1", "heartbeat"} {
		require.ErrorContains(t, err, problem)
	}
}

func TestLogTellsAboutLeadersAndRefusals(t *testing.T) {
	var mu sync.Mutex
	var out bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&locked{mu: &mu, w: &out}, nil))
	inCluster(t, 3, func(cfg *raft.Config) { cfg.Logger = logger }, func(t *testing.T, c *cluster) {
		leader := c.leader()
		for range 100 { // a second leader in this term
			require.NoError(t, send(leader.node, raft.Message{
				Header: raft.Header{From: c.follower().id, To: leader.id, Term: leader.node.Leadership().Term, Incarnation: 1 << 20},
				Body:   raft.AppendEntries{}}))
		}
		require.GreaterOrEqual(t, leader.node.Status().Refused, uint64(100))
		require.Contains(t, leader.node.Status().LastRefusal, "second leader")
	})
	mu.Lock()
	defer mu.Unlock()
	require.Contains(t, out.String(), "leader changed")
	require.Equal(t, 1, strings.Count(out.String(), "input refused"), "at most one a second")
}

type locked struct {
	mu *sync.Mutex
	w  *bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// send gives a message to a node that does not answer it.
func send(n *raft.Node, m raft.Message) error {
	_, err := n.Handle(within(time.Millisecond), m)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// A server that restarts numbers what it forwards anew. The leader, who is still the same, must not take that for duplicates of what
// the server had forwarded before.
func TestRestartedFollowerForwardsToTheSameLeader(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader, f := c.leader(), c.follower()
		want := []string{"a", "b"}
		for _, cmd := range want {
			c.propose(f, cmd)
		}
		c.crash(f)
		c.start(f)
		c.eventually("the follower knows its leader", func() bool { return f.node.Leadership().Leader == leader.id })
		c.propose(f, "c")
		require.Equal(t, leader, c.leader())
		c.converge(append(want, "c"))
	})
}

// Nobody tells a removed server what becomes of the commands that wait on it, so it gives them back.
func TestRemovalEndsWhatWaits(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader, f := c.leader(), c.follower()
		waiting := f.node.ProposeAsync(context.Background(), []byte("a"), raft.IfTerm(leader.node.Leadership().Term+9))
		_, err := leader.node.ChangeMembership(within(10*time.Second), raft.Change{Remove: []raft.NodeID{f.id}})
		require.NoError(t, err)
		c.eventually("the command is given back", func() bool {
			select {
			case <-waiting.Done():
				return true
			default:
				return false
			}
		})
		removed := (*raft.MembershipError)(nil)
		_, err = waiting.Result()
		require.ErrorAs(t, err, &removed)
		require.Equal(t, f.id, removed.Server)
	})
}
