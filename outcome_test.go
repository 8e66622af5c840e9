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

// requireCertain checks that err says for sure that the command took no effect.
func requireCertain(t *testing.T, err error) {
	t.Helper()
	var uncertain *raft.UncertainError
	require.Error(t, err)
	require.False(t, errors.As(err, &uncertain), "uncertain: %v", err)
}

// requireUncertain checks that err says that nobody knows.
func requireUncertain(t *testing.T, err error) *raft.UncertainError {
	t.Helper()
	var uncertain *raft.UncertainError
	require.ErrorAs(t, err, &uncertain)
	return uncertain
}

func within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	context.AfterFunc(ctx, cancel)
	return ctx
}

func TestTooLargeCommandIsRefused(t *testing.T) {
	inCluster(t, 1, func(cfg *raft.Config) { cfg.MaxCommandBytes = 10 }, func(t *testing.T, c *cluster) {
		n := c.leader().node
		_, err := n.Propose(c.t.Context(), make([]byte, 11))
		require.ErrorIs(t, err, raft.ErrTooLarge)
		requireCertain(t, err)
		_, err = n.Propose(c.t.Context(), make([]byte, 10))
		require.NoError(t, err)
	})
}

func TestProposalWithoutALeaderWaitsUntilItsContextEnds(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		m := c.machines[0]
		c.net.Isolate(m.id)
		c.eventually("no leader", func() bool { return m.node.Leadership().Leader == "" })
		_, err := m.node.Propose(within(5*time.Second), []byte("never"))
		requireCertain(t, err)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, raft.ErrNotLeader)

		err = m.node.Read(within(time.Second))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, raft.ErrNotLeader)

		// One that still waits when there is a leader again goes to it.
		p := m.node.ProposeAsync(c.t.Context(), []byte("patient"))
		read := make(chan error, 1)
		go func() { read <- m.node.Read(context.Background()) }()
		time.Sleep(3 * time.Second)
		c.net.Heal()
		_, err = p.Result()
		require.NoError(t, err)
		require.NoError(t, <-read)
		c.converge([]string{"patient"})
	})
}

func TestProposalsWithoutALeaderAreBounded(t *testing.T) {
	const size = 1000
	inCluster(t, 3, func(cfg *raft.Config) {
		cfg.MaxCommandBytes, cfg.MaxProposalBytes = size, 10*(size+raft.EntryHeaderSize)
	}, func(t *testing.T, c *cluster) {
		m := c.machines[0]
		c.net.Isolate(m.id)
		c.eventually("no leader", func() bool { return m.node.Leadership().Leader == "" })
		ctx, cancel := context.WithCancel(context.Background())
		for range 10 {
			m.node.ProposeAsync(ctx, make([]byte, size))
		}
		require.Equal(t, 10, m.node.Status().Proposals)
		_, err := m.node.Propose(within(time.Second), make([]byte, size))
		require.ErrorIs(t, err, raft.ErrOverloaded)
		requireCertain(t, err)

		cancel() // those that were withdrawn make room
		synctest.Wait()
		_, err = m.node.Propose(within(time.Millisecond), make([]byte, size))
		if errors.Is(err, raft.ErrOverloaded) { // the refusal has made the loop look
			synctest.Wait()
			_, err = m.node.Propose(within(time.Millisecond), make([]byte, size))
		}
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

// What was appended, refused or passed on makes room for more, on every way.
func TestProposalsLeaveTheirPlaceInTheQueue(t *testing.T) {
	const size = 1000
	inCluster(t, 3, func(cfg *raft.Config) {
		cfg.MaxCommandBytes, cfg.MaxProposalBytes = size, 4*(size+raft.EntryHeaderSize)
	}, func(t *testing.T, c *cluster) {
		for range 3 {
			for _, m := range []*machine{c.leader(), c.follower()} {
				for range 10 {
					_, err := m.node.Propose(within(time.Minute), make([]byte, size))
					require.NoError(t, err)
					_, err = m.node.Propose(within(time.Minute), make([]byte, size), raft.IfTerm(1))
					require.ErrorIs(t, err, raft.ErrStaleTerm)
				}
			}
			require.NoError(t, c.leader().node.ChangeLeader(context.Background(), ""))
		}
		f := c.follower()
		c.net.Isolate(f.id) // none of them is answered
		for range 4 {
			f.node.ProposeAsync(context.Background(), make([]byte, size))
		}
		_, err := f.node.Propose(context.Background(), make([]byte, size))
		require.ErrorIs(t, err, raft.ErrOverloaded, "four, and not more")
	})
}

// A state machine that does not keep up must not let finished work pile up without bound.
func TestSlowStateMachineHoldsProposalsBack(t *testing.T) {
	inCluster(t, 1, func(cfg *raft.Config) {
		cfg.MaxCommandBytes, cfg.MaxProposalBytes = 1000, 10_000
		cfg.Core.MaxUncommittedBytes, cfg.Core.MaxUnappliedBytes = 10_000, 10_000
	}, func(t *testing.T, c *cluster) {
		m := c.leader()
		hold := make(chan struct{})
		m.sm.hook(hooks{apply: func(string) error { <-hold; return nil }})
		var ps []*raft.Pending
		for {
			p := m.node.ProposeAsync(context.Background(), make([]byte, 100))
			synctest.Wait() // appended, durable and committed, but not applied
			select {
			case <-p.Done():
				_, err := p.Result()
				require.ErrorIs(t, err, raft.ErrOverloaded)
				requireCertain(t, err)
			default:
				ps = append(ps, p)
				require.Less(t, len(ps), 300)
				continue
			}
			break
		}
		require.Greater(t, len(ps), 50)
		close(hold)
		for _, p := range ps {
			_, err := p.Result()
			require.NoError(t, err)
		}
		c.propose(m, "room again")
	})
}

func TestContextThatEndsAfterTheAppendIsUncertain(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader := c.leader()
		c.net.Isolate(leader.id)
		p := leader.node.ProposeAsync(within(100*time.Millisecond), []byte("lost?"))
		_, err := p.Result()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		id, ok := p.ID()
		require.True(t, ok)
		require.Equal(t, id, requireUncertain(t, err).ID)
		<-p.Committed() // ended otherwise
	})
}

func TestReplacedProposalIsDropped(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		old := c.leader()
		c.net.Isolate(old.id)
		// The second one's index may never be filled again; the new leader's first entry says all the same that it is gone.
		a := old.node.ProposeAsync(c.t.Context(), []byte("a"))
		b := old.node.ProposeAsync(c.t.Context(), []byte("b"))
		c.eventually("another leader", func() bool {
			for _, m := range c.machines {
				if m != old && m.node.Leadership().Role == raft.Leader {
					return true
				}
			}
			return false
		})
		c.net.Heal()
		for _, p := range []*raft.Pending{a, b} {
			_, err := p.Result()
			require.ErrorIs(t, err, raft.ErrDropped)
			requireCertain(t, err)
		}
		c.converge([]string{})
	})
}

func TestIfTerm(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader, f := c.leader(), c.follower()
		term := leader.node.Leadership().Term
		for _, m := range []*machine{leader, f} {
			_, err := m.node.Propose(c.t.Context(), []byte("now"), raft.IfTerm(term))
			require.NoError(t, err)
			_, err = m.node.Propose(c.t.Context(), []byte("past"), raft.IfTerm(term-1))
			require.ErrorIs(t, err, raft.ErrStaleTerm)
			requireCertain(t, err)
			_, err = m.node.Propose(within(time.Second), []byte("future"), raft.IfTerm(term+1))
			require.ErrorIs(t, err, context.DeadlineExceeded)
			requireCertain(t, err)
		}
		require.NoError(t, leader.node.ChangeLeader(c.t.Context(), ""))
		_, err := leader.node.Propose(c.t.Context(), []byte("deposed"), raft.IfTerm(term))
		require.ErrorIs(t, err, raft.ErrStaleTerm)
		c.converge([]string{"now", "now"})
	})
}

func TestFollowerThatDoesNotForward(t *testing.T) {
	inCluster(t, 3, func(cfg *raft.Config) { cfg.DisableForwarding = true }, func(t *testing.T, c *cluster) {
		leader, f := c.leader(), c.follower()
		_, err := f.node.Propose(c.t.Context(), []byte("a"))
		requireCertain(t, err)
		for _, err := range []error{err, f.node.Read(c.t.Context()), f.node.Barrier(c.t.Context())} {
			var not *raft.NotLeaderError
			require.ErrorAs(t, err, &not)
			require.Equal(t, leader.id, not.Leader)
			require.Equal(t, "host-"+string(leader.id), not.Address)
		}
		require.NoError(t, leader.node.Read(c.t.Context()))
	})
}

func TestForwardWithoutAnAnswerIsUncertainAndNotRepeated(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader, f := c.leader(), c.follower()
		c.net.Cut(leader.id, f.id) // it can ask, but hears nothing
		p := f.node.ProposeAsync(within(time.Minute), []byte("once"))
		_, err := p.Result()
		require.Zero(t, requireUncertain(t, err).ID)
		require.NotErrorIs(t, err, context.DeadlineExceeded, "it is given up here, and its caller need not")
		c.net.Heal()
		c.eventually("its effect", func() bool { return len(f.sm.all()) > 0 })
		time.Sleep(10 * time.Second)
		c.converge([]string{"once"})
	})
}

func TestForwardToACrashedLeaderIsUncertain(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader, f := c.leader(), c.follower()
		c.net.Cut(leader.id, f.id)
		p := f.node.ProposeAsync(c.t.Context(), []byte("a"))
		synctest.Wait()
		start := time.Now()
		c.net.Connect(leader.id, f.id) // the answer is lost by now
		c.crash(leader)
		_, err := p.Result()
		requireUncertain(t, err)
		require.Less(t, time.Since(start), 100*time.Millisecond, "the network knew that the process was gone")
		c.start(leader)
	})
}

func TestReadsAreRepeatedUntilTheyAreAnswered(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader, f := c.leader(), c.follower()
		c.net.Isolate(leader.id)
		require.NoError(t, f.node.Read(within(20*time.Second)), "the next leader answers it")
	})
}

func TestReadOnADeposedLeaderSeesTheNewLeadersWrites(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		old := c.leader()
		c.net.Isolate(old.id)
		read := make(chan error, 1)
		go func() { read <- old.node.Read(context.Background()) }()
		var next *machine
		c.eventually("another leader", func() bool {
			for _, m := range c.machines {
				if m != old && m.node.Leadership().Role == raft.Leader {
					next = m
				}
			}
			return next != nil
		})
		c.propose(next, "new")
		c.net.Heal()
		require.NoError(t, <-read)
		require.Equal(t, []string{"new"}, old.sm.all())
	})
}

func TestManyReadsShareRounds(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		f := c.follower()
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				if err := f.node.Read(within(10 * time.Second)); err != nil {
					c.t.Error(err)
				}
			})
		}
		wg.Wait()
	})
}

func TestCommandsFromEverywhereAreAppliedOnce(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		c.leader()
		c.net.SetDelay(0, 20*time.Millisecond)
		var wg sync.WaitGroup
		for i, m := range c.machines {
			for k := range 100 {
				wg.Go(func() {
					cmd := fmt.Sprintf("%d/%d", i, k)
					res, err := m.node.Propose(within(30*time.Second), []byte(cmd))
					if err != nil || res.(applied).Command != cmd {
						c.t.Errorf("%s: %v, %v", cmd, res, err)
					}
				})
			}
		}
		wg.Wait()
		seen := map[string]int{}
		for _, cmd := range c.leader().sm.all() {
			seen[cmd]++
		}
		require.Len(t, seen, 300)
		for cmd, times := range seen {
			require.Equal(t, 1, times, cmd)
		}
		c.converge(nil)
	})
}

// With messages lost, every call must still end, and what is said to have succeeded or failed must be true.
func TestOutcomesAreTrueOnALossyNetwork(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		c.leader()
		c.net.SetLoss(0.2, 7)
		c.net.SetDelay(0, 30*time.Millisecond)
		var mu sync.Mutex
		outcome := map[string]error{}
		var wg sync.WaitGroup
		for i, m := range c.machines {
			for k := range 60 {
				wg.Go(func() {
					time.Sleep(time.Duration(k) * 50 * time.Millisecond)
					cmd := fmt.Sprintf("%d/%d", i, k)
					_, err := m.node.Propose(within(4*time.Second), []byte(cmd))
					mu.Lock()
					outcome[cmd] = err
					mu.Unlock()
				})
			}
		}
		wg.Wait()
		c.net.SetLoss(0, 1)
		c.propose(c.leader(), "last")
		c.converge(nil)
		seen := map[string]int{}
		for _, cmd := range c.machines[0].sm.all() {
			seen[cmd]++
		}
		succeeded := 0
		for cmd, err := range outcome {
			var uncertain *raft.UncertainError
			switch {
			case err == nil:
				succeeded++
				require.Equal(t, 1, seen[cmd], cmd)
			case errors.As(err, &uncertain):
				require.LessOrEqual(t, seen[cmd], 1, cmd)
			default:
				require.Zero(t, seen[cmd], "%s: %v", cmd, err)
			}
		}
		require.Greater(t, succeeded, 20)
	})
}

func TestCommittedAndAppliedApart(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		hold := make(chan struct{})
		leader := c.leader()
		leader.sm.hook(hooks{apply: func(string) error { <-hold; return nil }})
		p := leader.node.ProposeAsync(c.t.Context(), []byte("slow"))
		<-p.Committed()
		synctest.Wait()
		select {
		case <-p.Done():
			require.Fail(t, "applied while Apply is still running")
		default:
		}
		close(hold)
		res, err := p.Result()
		require.NoError(t, err)
		require.Equal(t, applied{"slow", 1}, res)
		id, ok := p.ID()
		require.True(t, ok)
		require.NotZero(t, id)
	})
}

func TestCallsFromInsideApplyAreRefused(t *testing.T) {
	inCluster(t, 1, nil, func(t *testing.T, c *cluster) {
		m := c.leader()
		var errs []error
		m.sm.hook(hooks{apply: func(string) error {
			ctx := context.Background()
			_, err := m.node.Propose(ctx, []byte("inner"))
			errs = append(errs, err, m.node.Read(ctx), m.node.Barrier(ctx), m.node.Stop(ctx))
			_, err = m.node.Snapshot(ctx)
			errs = append(errs, err)
			_, err = m.node.ProposeAsync(ctx, nil).Result()
			errs = append(errs, err)
			_ = m.node.Status() // may be called from everywhere
			return nil
		}})
		c.propose(m, "outer")
		require.Len(t, errs, 6)
		for _, err := range errs {
			require.ErrorIs(t, err, raft.ErrReentrant)
		}
	})
}

func TestGroupCommit(t *testing.T) {
	inCluster(t, 1, nil, func(t *testing.T, c *cluster) {
		m := c.leader()
		release := m.storage.BlockWrites()
		var ps []*raft.Pending
		for i := range 500 {
			ps = append(ps, m.node.ProposeAsync(c.t.Context(), fmt.Append(nil, i)))
			if i%100 == 0 {
				time.Sleep(10 * time.Millisecond) // several writes of the core, not one
			}
		}
		time.Sleep(10 * time.Millisecond)
		require.Positive(t, m.node.Status().WriteQueue)
		release()
		for i, p := range ps {
			res, err := p.Result()
			require.NoError(t, err)
			require.Equal(t, applied{fmt.Sprint(i), i + 1}, res)
		}
		// All that had queued up behind the first write was durable at once, and so applied at once.
		require.LessOrEqual(t, len(m.sm.applyCalls()), 2)
	})
}

func TestFailingApplyMakesTheNodeFail(t *testing.T) {
	broken := errors.New("broken")
	for name, apply := range map[string]func(string) error{
		"error": func(string) error { return broken },
		"panic": func(string) error { panic(broken) },
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
				leader := c.leader()
				leader.sm.hook(hooks{apply: apply})
				start := time.Now()
				_, err := leader.node.Propose(c.t.Context(), []byte("a"))
				requireUncertain(t, err) // it is committed, and the others apply it
				require.ErrorIs(t, err, broken)
				<-leader.node.Done()
				var failed *raft.FailedError
				require.ErrorAs(t, leader.node.Err(), &failed)
				require.ErrorIs(t, leader.node.Err(), broken)
				if name == "panic" {
					require.Contains(t, leader.node.Err().Error(), "outcome_test.go", "the stack says where")
				}
				_, err = leader.node.Propose(c.t.Context(), []byte("b"))
				requireCertain(t, err)
				require.ErrorAs(t, err, &failed)
				require.Equal(t, "failed", leader.node.Status().State)
				require.NoError(t, leader.node.Stop(within(10*time.Second)))

				next := c.leader() // the process, and the cluster, live
				c.propose(next, "c")
				require.Less(t, time.Since(start), 500*time.Millisecond, "it handed over")
			})
		})
	}
}

func TestFailedWriteHandsOverAndFails(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader := c.leader()
		broken := errors.New("input/output error")
		leader.storage.FailWrites(broken)
		start := time.Now()
		_, err := leader.node.Propose(within(time.Minute), []byte("a"))
		requireUncertain(t, err)
		require.ErrorIs(t, err, broken)
		c.ended(leader)
		require.ErrorIs(t, leader.node.Err(), broken)
		next := c.leader()
		require.NotEqual(t, leader.id, next.id)
		require.Less(t, time.Since(start), 500*time.Millisecond, "handed over, nobody had to time out")
		c.propose(next, "b")
	})
}

func TestFullDiskRefusesCommandsAndRecovers(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		for _, m := range c.machines {
			m.storage.FailWrites(fmt.Errorf("no space: %w", raft.ErrStorageFull))
		}
		leader := c.leader()
		first := leader.node.ProposeAsync(c.t.Context(), []byte("first"))
		synctest.Wait()
		_, err := leader.node.Propose(c.t.Context(), []byte("refused"))
		require.ErrorIs(t, err, raft.ErrStorageFull)
		requireCertain(t, err)
		time.Sleep(300 * time.Millisecond)
		for _, m := range c.machines {
			m.storage.FailWrites(nil)
		}
		_, err = first.Result()
		require.NoError(t, err, "it waited for room")
		c.eventually("room", func() bool {
			_, err := c.leader().node.Propose(c.t.Context(), []byte("again"))
			return err == nil
		})
	})
}

// touchyTransport does in Send what a test wants it to do.
type touchyTransport struct {
	raft.Transport
	onSend atomic.Pointer[func()]
}

func (p *touchyTransport) Send(to raft.NodeID, lane raft.Lane, ms []raft.Message) {
	if f := p.onSend.Load(); f != nil {
		(*f)()
	}
	p.Transport.Send(to, lane, ms)
}

// Whatever breaks inside the loop, the process lives, every call ends, and the node says why.
func TestPanicInTheLoopMakesTheNodeFail(t *testing.T) {
	touchy := map[raft.NodeID]*touchyTransport{}
	inCluster(t, 3, func(cfg *raft.Config) {
		touchy[cfg.ID] = &touchyTransport{Transport: cfg.Transport}
		cfg.Transport = touchy[cfg.ID]
	}, func(t *testing.T, c *cluster) {
		leader := c.leader()
		work := make(chan error, 1)
		go func() {
			work <- leader.node.WhileLeader(within(time.Minute), func(ctx context.Context, _ raft.Term) error { <-ctx.Done(); return nil })
		}()
		synctest.Wait()
		broken := &raft.InvariantError{Broken: "two and two", State: "the whole state"}
		f := func() { panic(broken) }
		touchy[leader.id].onSend.Store(&f)
		_, err := leader.node.Propose(within(time.Minute), []byte("a"))
		requireUncertain(t, err)
		require.ErrorIs(t, err, broken)
		require.ErrorIs(t, <-work, broken)
		c.ended(leader)
		require.ErrorContains(t, leader.node.Err(), "the whole state")
		st := leader.node.Status()
		require.Equal(t, "failed", st.State)
		require.Contains(t, st.Failure, "two and two")
		require.False(t, st.CanCommit)
		require.NoError(t, leader.node.Stop(within(time.Minute)))
		require.NotEqual(t, leader.id, c.leader().id)
	})
}

func TestStatusDoesNotHangBehindALoopThatDoes(t *testing.T) {
	touchy := map[raft.NodeID]*touchyTransport{}
	inCluster(t, 3, func(cfg *raft.Config) {
		touchy[cfg.ID] = &touchyTransport{Transport: cfg.Transport}
		cfg.Transport = touchy[cfg.ID]
	}, func(t *testing.T, c *cluster) {
		leader := c.leader()
		release := make(chan struct{})
		f := func() { <-release }
		touchy[leader.id].onSend.Store(&f)
		time.Sleep(time.Second)
		start := time.Now()
		require.Equal(t, leader.id, leader.node.Status().ID)
		require.Less(t, time.Since(start), time.Second)
		close(release)
	})
}

// counter counts measurements.
type counter struct{ writes, commits, applies, elections, refused atomic.Int64 }

func (m *counter) ObserveWrite(time.Duration, int, int) { m.writes.Add(1) }
func (m *counter) ObserveCommit(time.Duration)          { m.commits.Add(1) }
func (m *counter) ObserveApply(time.Duration, int)      { m.applies.Add(1) }
func (m *counter) Election(string)                      { m.elections.Add(1) }
func (m *counter) Refused(string)                       { m.refused.Add(1) }

func TestMetricsAreFed(t *testing.T) {
	m := &counter{}
	inCluster(t, 1, func(cfg *raft.Config) { cfg.Metrics = m }, func(t *testing.T, c *cluster) {
		n := c.leader()
		c.propose(n, "a")
		require.NoError(t, send(n.node, raft.Message{Header: raft.Header{From: "x", To: n.id, Term: 1 << 60}, Body: raft.AppendEntries{}}))
		require.Equal(t, int64(1), m.commits.Load())
		require.Equal(t, int64(1), m.applies.Load())
		require.Positive(t, m.writes.Load())
		require.Positive(t, m.elections.Load())
		require.Equal(t, int64(1), m.refused.Load())
	})
}

func TestHangingDiskDeposesTheLeader(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader := c.leader()
		release := leader.storage.BlockWrites()
		p := leader.node.ProposeAsync(c.t.Context(), []byte("a"))
		c.eventually("another leader", func() bool {
			l := leader.node.Leadership()
			return l.Leader != leader.id && l.Leader != ""
		})
		stuck := within(100 * time.Millisecond)
		err := leader.node.Stop(stuck)
		require.ErrorIs(t, err, context.DeadlineExceeded, "Stop does not wait for the disk longer than asked")
		_, err = p.Result()
		require.Error(t, err)
		release()
		require.NoError(t, leader.node.Stop(within(10*time.Second)))
	})
}
