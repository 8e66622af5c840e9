package raft_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
)

func TestWhileLeaderRunsOncePerTermAfterTheStateIsComplete(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		ctx, cancel := context.WithCancel(context.Background())
		type run struct {
			id    raft.NodeID
			epoch raft.Term
			state int // commands that f found applied
			cause error
		}
		var mu sync.Mutex
		var runs []run
		var active atomic.Int32
		var wg sync.WaitGroup
		for _, m := range c.machines {
			var here atomic.Int32
			wg.Go(func() {
				err := m.node.WhileLeader(ctx, func(ctx context.Context, epoch raft.Term) error {
					active.Add(1)
					if here.Add(1) > 1 {
						c.t.Error("two at once on one server")
					}
					state := len(m.sm.all())
					<-ctx.Done()
					here.Add(-1)
					active.Add(-1)
					mu.Lock()
					runs = append(runs, run{m.id, epoch, state, context.Cause(ctx)})
					mu.Unlock()
					return errors.New("it was cancelled, so this is not returned")
				})
				if !errors.Is(err, context.Canceled) {
					c.t.Error(err)
				}
			})
		}
		const terms = 6
		for i := range terms {
			leader := c.leader()
			c.propose(leader, fmt.Sprint(i))
			require.NoError(t, leader.node.ChangeLeader(context.Background(), ""))
			c.eventually("the next leader", func() bool { return c.leader() != leader })
		}
		c.eventually("the last epoch's work", func() bool { return active.Load() == 1 })
		cancel()
		wg.Wait()
		require.Len(t, runs, terms+1)
		for i, r := range runs {
			require.GreaterOrEqual(t, r.state, i, "all that was committed before was applied")
			if i > 0 {
				require.Greater(t, r.epoch, runs[i-1].epoch)
			}
			if i < terms {
				require.ErrorIs(t, r.cause, raft.ErrNotLeader)
			}
		}
	})
}

// A new leader's log may be ahead of its state machine. Its work begins when the two agree.
func TestLeaderWorkWaitsForTheStateMachine(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader, next := c.leader(), c.follower()
		hold := make(chan struct{})
		next.sm.hook(hooks{apply: func(string) error { <-hold; return nil }})
		c.propose(leader, "a")
		state := make(chan []string, 1)
		ended := make(chan error, 1)
		go func() {
			ended <- next.node.WhileLeader(context.Background(), func(context.Context, raft.Term) error {
				state <- next.sm.all()
				return errors.New("seen")
			})
		}()
		require.NoError(t, leader.node.ChangeLeader(context.Background(), next.id))
		time.Sleep(5 * time.Second)
		require.Equal(t, raft.Leader, next.node.Leadership().Role)
		require.Empty(t, state)
		close(hold)
		require.Equal(t, []string{"a"}, <-state)
		require.ErrorContains(t, <-ended, "seen")
	})
}

func TestWhileLeaderReturns(t *testing.T) {
	inCluster(t, 1, nil, func(t *testing.T, c *cluster) {
		n := c.leader().node
		broken := errors.New("broken")
		require.ErrorIs(t, n.WhileLeader(context.Background(), func(context.Context, raft.Term) error { return broken }), broken)

		// nil: not again in this term.
		runs := 0
		err := n.WhileLeader(within(time.Minute), func(context.Context, raft.Term) error {
			if runs++; runs > 1 {
				return errors.New("twice in one term")
			}
			return nil
		})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 1, runs)

		// A second call.
		started := make(chan struct{})
		first := make(chan error, 1)
		go func() {
			first <- n.WhileLeader(context.Background(), func(ctx context.Context, _ raft.Term) error {
				close(started)
				<-ctx.Done()
				require.ErrorIs(t, context.Cause(ctx), raft.ErrStopped)
				return nil
			})
		}()
		<-started
		require.ErrorIs(t, n.WhileLeader(context.Background(), nil), raft.ErrBusy)
		require.NoError(t, n.Stop(context.Background()))
		require.ErrorIs(t, <-first, raft.ErrStopped)
		require.ErrorIs(t, n.WhileLeader(context.Background(), nil), raft.ErrStopped)
	})
}

func TestStopChangeLeaderAndProposeFromLeaderWork(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader := c.leader()
		var errs []error
		err := leader.node.WhileLeader(context.Background(), func(ctx context.Context, epoch raft.Term) error {
			_, err := leader.node.Propose(ctx, []byte("from work"), raft.IfTerm(epoch))
			errs = append(errs, err, leader.node.ChangeLeader(ctx, ""))
			<-ctx.Done()
			_, err = leader.node.Propose(context.Background(), []byte("too late"), raft.IfTerm(epoch))
			errs = append(errs, err)
			errs = append(errs, leader.node.Stop(context.Background()))
			return nil
		})
		require.ErrorIs(t, err, raft.ErrStopped)
		require.Len(t, errs, 4)
		require.NoError(t, errs[0])
		require.NoError(t, errs[1])
		require.ErrorIs(t, errs[2], raft.ErrStaleTerm)
		require.NoError(t, errs[3])
	})
}

func TestLeaderWorkThatIgnoresItsCancellationKeepsTheServerFromLeading(t *testing.T) {
	const grace = 3 * time.Second
	inCluster(t, 3, func(cfg *raft.Config) { cfg.LeaderWorkGrace = grace }, func(t *testing.T, c *cluster) {
		stubborn := c.leader()
		release := make(chan struct{})
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		epochs := make(chan raft.Term, 10)
		go func() {
			ended <- stubborn.node.WhileLeader(ctx, func(_ context.Context, epoch raft.Term) error {
				epochs <- epoch
				<-release
				return nil
			})
		}()
		first := <-epochs
		require.NoError(t, stubborn.node.ChangeLeader(context.Background(), ""))
		time.Sleep(grace + time.Second)
		for range 5 {
			next := c.leader()
			require.NotEqual(t, stubborn.id, next.id)
			// Asked to lead, it refuses, or hands over at once.
			_ = next.node.ChangeLeader(context.Background(), stubborn.id)
			time.Sleep(3 * time.Second)
			require.NotEqual(t, raft.Leader, stubborn.node.Leadership().Role)
		}
		require.Empty(t, epochs)
		close(release)
		c.eventually("it leads again", func() bool {
			_ = c.leader().node.ChangeLeader(context.Background(), stubborn.id)
			return stubborn.node.Leadership().Role == raft.Leader
		})
		require.Greater(t, <-epochs, first)
		cancel()
		require.ErrorIs(t, <-ended, context.Canceled)
	})
}

func TestObserversSeeTheLatestStateAndBlockNobody(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		m := c.machines[0]
		var mu sync.Mutex
		var seen []raft.Leadership
		stop := m.node.OnLeaderChange(func(l raft.Leadership) {
			mu.Lock()
			seen = append(seen, l)
			mu.Unlock()
		})
		block := make(chan struct{})
		var slow []raft.Leadership
		m.node.OnLeaderChange(func(l raft.Leadership) { // never stopped: it ends with the node
			mu.Lock()
			slow = append(slow, l)
			mu.Unlock()
			<-block
		})
		for range 3 {
			require.NoError(t, c.leader().node.ChangeLeader(context.Background(), ""))
		}
		leader := c.leader()
		c.eventually("the latest", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return seen[len(seen)-1] == m.node.Leadership() && m.node.Leadership().Leader == leader.id
		})
		require.Equal(t, "host-"+string(leader.id), m.node.Leadership().Address)
		mu.Lock()
		for i := 1; i < len(seen); i++ {
			require.Greater(t, seen[i].Revision, seen[i-1].Revision)
		}
		require.Len(t, slow, 1)
		calls := len(seen)
		mu.Unlock()
		close(block)
		synctest.Wait()
		mu.Lock()
		require.Len(t, slow, 2, "from the first state to the latest in one step")
		require.Equal(t, m.node.Leadership(), slow[1])
		mu.Unlock()

		stop()
		stop()
		require.NoError(t, m.node.Stop(context.Background()))
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		require.Len(t, seen, calls, "stopped before")
		require.Equal(t, raft.Follower, slow[len(slow)-1].Role, "the last state")
		require.Empty(t, slow[len(slow)-1].Leader)
	})
}

func TestObserverMayStopTheNode(t *testing.T) {
	inCluster(t, 1, nil, func(t *testing.T, c *cluster) {
		n := c.machines[0].node
		ended := make(chan error, 1)
		n.OnLeaderChange(func(l raft.Leadership) {
			if l.Role == raft.Leader {
				ended <- n.Stop(context.Background())
			}
		})
		require.NoError(t, <-ended)
	})
}

func TestPanickingObserverMakesTheNodeFail(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader := c.leader()
		leader.node.OnLeaderChange(func(raft.Leadership) { panic("observer") })
		<-leader.node.Done()
		require.ErrorContains(t, leader.node.Err(), "observer")
		require.NotEqual(t, leader.id, c.leader().id)
	})
}

func TestProposalsDuringATransferGoToTheNewLeader(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		c.net.SetDelay(5*time.Millisecond, 10*time.Millisecond)
		leader, f := c.leader(), c.follower()
		stop := make(chan struct{})
		var count atomic.Int64
		var wg sync.WaitGroup
		for _, m := range []*machine{leader, f} {
			for i := range 10 {
				wg.Go(func() {
					for k := 0; ; k++ {
						select {
						case <-stop:
							return
						default:
						}
						if _, err := m.node.Propose(within(20*time.Second), fmt.Append(nil, m.id, i, k)); err != nil {
							c.t.Errorf("%s: %v", m.id, err)
							return
						}
						count.Add(1)
					}
				})
			}
		}
		for range 4 {
			time.Sleep(300 * time.Millisecond)
			require.NoError(t, c.leader().node.ChangeLeader(context.Background(), ""))
		}
		time.Sleep(300 * time.Millisecond)
		close(stop)
		wg.Wait()
		require.Greater(t, count.Load(), int64(100))
		c.converge(nil)
		require.Len(t, c.machines[0].sm.all(), int(count.Load()))
	})
}

// A planned transfer keeps nobody waiting for longer than messages travel, nine times in a row, wherever a proposal is made: TimeoutNow, a
// vote and its answer, the news of the new leader, the proposal's way to it, its replication and the news of its commit. No timer has to run
// out, not even if the old leader's answers come later than the news of the new one.
func TestProposalsWaitForATransferAsLongAsMessagesTravel(t *testing.T) {
	for _, x := range []struct{ least, most, bound time.Duration }{
		{time.Millisecond, time.Millisecond, 15 * time.Millisecond},
		{0, 4 * time.Millisecond, 90 * time.Millisecond}, // less than a heartbeat interval
	} {
		t.Run(x.most.String(), func(t *testing.T) {
			inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
				c.net.SetDelay(x.least, x.most)
				c.propose(c.leader(), "first")
				ctx, cancel := context.WithCancel(context.Background())
				var mu sync.Mutex
				var longest time.Duration
				var wg sync.WaitGroup
				for _, m := range c.machines {
					for range 4 {
						wg.Go(func() {
							for {
								start := time.Now()
								_, err := m.node.Propose(ctx, []byte("x"))
								if ctx.Err() != nil {
									return
								}
								if err != nil {
									c.t.Errorf("%s: %v", m.id, err)
									return
								}
								mu.Lock()
								longest = max(longest, time.Since(start))
								mu.Unlock()
							}
						})
					}
				}
				for range 6 {
					time.Sleep(100 * time.Millisecond)
					require.NoError(t, c.leader().node.ChangeLeader(context.Background(), ""))
				}
				time.Sleep(100 * time.Millisecond)
				cancel()
				wg.Wait()
				require.LessOrEqual(t, longest, x.bound)
			})
		})
	}
}

// The old leader's answer may still come, but nobody waits for it as long as for an answer of a leader in office.
func TestForwardToADeposedLeaderEndsSoon(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader, f := c.leader(), c.follower()
		var third *machine
		for _, m := range c.machines {
			if m != leader && m != f {
				third = m
			}
		}
		c.net.Cut(leader.id, f.id)
		p := f.node.ProposeAsync(context.Background(), []byte("a"))
		synctest.Wait()
		require.NoError(t, leader.node.ChangeLeader(context.Background(), third.id))
		start := time.Now()
		_, err := p.Result()
		requireUncertain(t, err)
		require.Less(t, time.Since(start), time.Second)
	})
}

func TestChangeLeader(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader, f := c.leader(), c.follower()
		ctx := context.Background()
		var not *raft.NotLeaderError
		require.ErrorAs(t, f.node.ChangeLeader(ctx, ""), &not)
		require.Equal(t, leader.id, not.Leader)
		var membership *raft.MembershipError
		require.ErrorAs(t, leader.node.ChangeLeader(ctx, "stranger"), &membership)

		require.NoError(t, leader.node.ChangeLeader(ctx, f.id))
		require.Equal(t, f.id, c.leader().id)

		// To one that cannot be reached: the old leader goes on.
		c.net.Isolate(leader.id)
		waiting := f.node.ProposeAsync(ctx, []byte("before"))
		_, err := waiting.Result()
		require.NoError(t, err)
		ended := make(chan error, 1)
		go func() { ended <- f.node.ChangeLeader(ctx, leader.id) }()
		synctest.Wait()
		require.ErrorIs(t, f.node.ChangeLeader(ctx, ""), raft.ErrBusy)
		waiting = f.node.ProposeAsync(ctx, []byte("meanwhile"))
		require.ErrorIs(t, <-ended, raft.ErrTransferFailed)
		_, err = waiting.Result()
		require.NoError(t, err)

		// A caller that does not wait does not know.
		requireUncertain(t, f.node.ChangeLeader(within(time.Millisecond), leader.id))
	})
}

func TestChangeMembership(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		ctx := within(time.Minute)
		c.propose(c.leader(), "a")
		joiner := c.add("n4")
		time.Sleep(5 * time.Second)
		require.Equal(t, raft.Term(0), joiner.node.Status().Term, "silent until it is named")
		require.Contains(t, joiner.node.Status().WhyNot, "no cluster")

		leader := c.leader()
		_, err := c.follower().node.ChangeMembership(ctx, raft.Change{Remove: []raft.NodeID{"n1"}})
		require.ErrorIs(t, err, raft.ErrNotLeader)
		added, err := leader.node.ChangeMembership(ctx, raft.Change{Add: []raft.Server{{ID: "n4", Address: "host-n4"}}})
		require.NoError(t, err)
		require.Equal(t, added, leader.node.Status().ConfigurationIndex)
		c.converge([]string{"a"})
		_, err = leader.node.ChangeMembership(ctx, raft.Change{Promote: []raft.NodeID{"n4"}, IfIndex: added - 1})
		require.ErrorIs(t, err, raft.ErrChangeConflict)

		promoted, err := leader.node.ChangeMembership(ctx, raft.Change{Promote: []raft.NodeID{"n4"}, IfIndex: leader.node.Status().ConfigurationIndex})
		require.NoError(t, err)
		conf := leader.node.Status().Configuration
		require.True(t, conf.IsVoter("n4"))
		require.False(t, conf.Joint(), "it returns when the change is complete")
		require.Equal(t, promoted, leader.node.Status().ConfigurationIndex)
		c.propose(joiner, "b")

		// The leader removes itself.
		_, err = leader.node.ChangeMembership(ctx, raft.Change{Remove: []raft.NodeID{leader.id}})
		require.NoError(t, err)
		c.eventually("another leader", func() bool {
			for _, m := range c.machines {
				if m != leader && m.node.Leadership().Role == raft.Leader {
					return true
				}
			}
			return false
		})
		_, err = leader.node.Propose(within(3*time.Second), []byte("no more"))
		require.Error(t, err)
		require.NoError(t, leader.node.Stop(ctx))
		next := c.leader()
		conf = next.node.Status().Configuration
		require.True(t, conf.IsRemoved(leader.id))
		c.propose(next, "c")

		_, err = next.node.ChangeMembership(ctx, raft.Change{Add: []raft.Server{{ID: leader.id}}})
		var membership *raft.MembershipError
		require.ErrorAs(t, err, &membership)
	})
}

// A deposed leader learns in one message that its change was replaced, and that another one of its successor is complete.
func TestReplacedChangeIsNotTakenForItsSuccessors(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		old := c.leader()
		c.net.Isolate(old.id)
		type result struct {
			index raft.Index
			err   error
		}
		lost := make(chan result, 1)
		go func() {
			index, err := old.node.ChangeMembership(within(time.Minute), raft.Change{Add: []raft.Server{{ID: "lost"}}})
			lost <- result{index, err}
		}()
		synctest.Wait()
		var next *machine
		c.eventually("another leader", func() bool {
			for _, m := range c.machines {
				if m != old && m.node.Leadership().Role == raft.Leader && m.node.Status().CanCommit {
					next = m
				}
			}
			return next != nil
		})
		c.propose(next, "first")
		index, err := next.node.ChangeMembership(within(time.Minute), raft.Change{Add: []raft.Server{{ID: "kept"}}})
		require.NoError(t, err)

		// The old leader's state machine takes its time, so that the news of the configuration comes first.
		hold := make(chan struct{})
		old.sm.hook(hooks{apply: func(string) error { <-hold; return nil }})
		c.net.Heal()
		c.eventually("the news", func() bool { return old.node.Status().CommitIndex >= index })
		time.Sleep(time.Second)
		close(hold)
		r := <-lost
		require.ErrorIs(t, r.err, raft.ErrDropped, "index %d", r.index)
		requireCertain(t, r.err)
		conf := old.node.Status().Configuration
		_, known := conf.Server("lost")
		require.False(t, known)
	})
}

// A leader that removed itself is told so, though its state machine lags and will never see the end of the change.
func TestLeaderThatRemovedItselfKnowsIt(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader := c.leader()
		hold := make(chan struct{})
		leader.sm.hook(hooks{apply: func(string) error { <-hold; return nil }})
		slow := leader.node.ProposeAsync(within(time.Minute), []byte("slow"))
		index, err := leader.node.ChangeMembership(within(time.Minute), raft.Change{Remove: []raft.NodeID{leader.id}})
		require.NoError(t, err)
		require.Equal(t, leader.node.Status().ConfigurationIndex, index)
		close(hold)
		<-slow.Done()
	})
}

func TestRemovalEndsWhatTheServerWaitsFor(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader, f := c.leader(), c.follower()
		c.net.Cut(f.id, leader.id) // it hears the leader, which does not hear it
		p := f.node.ProposeAsync(context.Background(), []byte("lost"))
		_, err := leader.node.ChangeMembership(within(time.Minute), raft.Change{Remove: []raft.NodeID{f.id}})
		require.NoError(t, err)
		_, err = p.Result()
		requireUncertain(t, err)
	})
}
