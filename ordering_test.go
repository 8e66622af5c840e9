package raft_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/storagetest"
)

// tap is a transport that shows a test what a node sends, lets it hand messages in, and holds the node's loop up.
type tap struct {
	raft.Transport
	mu      sync.Mutex
	handler raft.Handler
	sent    []raft.Message
	hold    chan struct{}
}

func (p *tap) Start(id raft.Identity, h raft.Handler) error {
	p.mu.Lock()
	p.handler = h
	p.mu.Unlock()
	return p.Transport.Start(id, h)
}

func (p *tap) Send(to raft.NodeID, lane raft.Lane, ms []raft.Message) {
	p.mu.Lock()
	p.sent = append(p.sent, ms...)
	hold := p.hold
	p.mu.Unlock()
	if hold != nil {
		<-hold
	}
	p.Transport.Send(to, lane, ms)
}

// last returns the newest message with such a body.
func last[B raft.Body](t *testing.T, p *tap) raft.Message {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := len(p.sent) - 1; i >= 0; i-- {
		if _, ok := p.sent[i].Body.(B); ok {
			return p.sent[i]
		}
	}
	require.FailNow(t, "no such message was sent")
	return raft.Message{}
}

// answer hands in an answer to m, as if from had given it.
func (p *tap) answer(m raft.Message, from raft.NodeID, body raft.Body) {
	p.handler.HandleMessages([]raft.Message{{
		Header: raft.Header{From: from, To: m.From, Term: m.Term, Request: m.Request, Replica: 1, Incarnation: 1}, Body: body,
	}})
	synctest.Wait()
}

// inTappedCluster is inCluster with a tap on every server.
func inTappedCluster(t *testing.T, n int, f func(t *testing.T, c *cluster, taps map[raft.NodeID]*tap)) {
	taps := map[raft.NodeID]*tap{}
	inCluster(t, n, func(cfg *raft.Config) {
		taps[cfg.ID] = &tap{Transport: cfg.Transport}
		cfg.Transport = taps[cfg.ID]
	}, func(t *testing.T, c *cluster) { f(t, c, taps) })
}

func third(c *cluster, a, b *machine) *machine {
	for _, m := range c.machines {
		if m != a && m != b {
			return m
		}
	}
	return nil
}

// SAFETY inv 21. The core checks the recipient of its own messages; these never reach it.
func TestForwardsForAnotherServerAreDropped(t *testing.T) {
	inTappedCluster(t, 1, func(t *testing.T, c *cluster, taps map[raft.NodeID]*tap) {
		m := c.leader()
		before := m.node.Status().Refused
		taps[m.id].handler.HandleMessages([]raft.Message{{
			Header: raft.Header{From: "peer", To: "n2", Term: m.node.Leadership().Term, Request: 1, Replica: 1, Incarnation: 1},
			Body:   raft.ForwardPropose{Proposals: []raft.Proposal{{Entry: raft.NewCommand([]byte("a"))}}},
		}})
		c.propose(m, "b")
		require.Equal(t, []string{"b"}, m.sm.all())
		require.Equal(t, before+1, m.node.Status().Refused)
	})
}

// Configurations are made by the leader alone (§6): as a forwarded command one would get around every rule of a change.
func TestForwardedConfigurationIsRefused(t *testing.T) {
	inCluster(t, 1, nil, func(t *testing.T, c *cluster) {
		m := c.leader()
		before := m.node.Status()
		conf := before.Configuration.Clone()
		conf.Servers = append(conf.Servers, raft.Server{ID: "intruder"})
		for i, typ := range []raft.EntryType{raft.EntryConfiguration, raft.EntryNoOp} {
			h := raft.Header{From: "peer", To: m.id, Term: m.node.Leadership().Term, Request: uint64(i + 1), Replica: 1, Incarnation: 1}
			e := storagetest.NewEntry(typ, raft.EntryID{}, conf.AppendBinary(nil))
			require.NoError(t, send(m.node, raft.Message{Header: h, Body: raft.ForwardPropose{Proposals: []raft.Proposal{{Entry: e}}}}))
			after := m.node.Status()
			require.Equal(t, before.Configuration, after.Configuration)
			require.Equal(t, before.LastIndex, after.LastIndex)
			require.Equal(t, before.Refused+uint64(i+1), after.Refused)
		}
	})
}

// The answer to a forwarded proposal comes from the leader that was asked, and has an outcome for each command.
func TestOnlyTheAnswerOfTheLeaderThatWasAskedCounts(t *testing.T) {
	inTappedCluster(t, 3, func(t *testing.T, c *cluster, taps map[raft.NodeID]*tap) {
		leader, f := c.leader(), c.follower()
		other := third(c, leader, f)
		c.net.Cut(leader.id, f.id) // the true answers do not come
		p := f.node.ProposeAsync(within(time.Minute), []byte("a"))
		synctest.Wait()
		asked := last[raft.ForwardPropose](t, taps[f.id])
		outcome := raft.ForwardOutcome{ID: raft.EntryID{Term: asked.Term, Index: 999}}
		taps[f.id].answer(asked, other.id, raft.ForwardProposeReply{Outcomes: []raft.ForwardOutcome{outcome}})
		_, known := p.ID()
		require.False(t, known)

		before := f.node.Status().Refused
		taps[f.id].answer(asked, leader.id, raft.ForwardProposeReply{})
		taps[f.id].answer(asked, leader.id, raft.ForwardProposeReply{Outcomes: []raft.ForwardOutcome{outcome, outcome}})
		_, known = p.ID()
		require.False(t, known)
		require.NoError(t, f.node.Err())
		require.Equal(t, before+2, f.node.Status().Refused, "as good as no answer, and counted")

		c.net.Heal()
		_, err := p.Result()
		requireUncertain(t, err)
	})
}

// Only a refusal says that a forwarded command was certainly not appended. Then it waits for its next chance.
func TestRefusedForwardIsSentAgain(t *testing.T) {
	inTappedCluster(t, 3, func(t *testing.T, c *cluster, taps map[raft.NodeID]*tap) {
		leader, f := c.leader(), c.follower()
		c.net.Cut(f.id, leader.id) // the leader hears nothing of it
		p := f.node.ProposeAsync(within(time.Minute), []byte("a"))
		synctest.Wait()
		asked := last[raft.ForwardPropose](t, taps[f.id])
		c.net.Heal()
		taps[f.id].answer(asked, leader.id, raft.ForwardProposeReply{Outcomes: []raft.ForwardOutcome{{Refusal: raft.RefusedNotLeader}}})
		_, err := p.Result()
		require.NoError(t, err)
		require.NotEqual(t, asked.Request, last[raft.ForwardPropose](t, taps[f.id]).Request)
		c.converge([]string{"a"})
	})
}

// A planned transfer is over in milliseconds, and the old leader's refusals may come when the new one is known already. They say nothing
// about the new one, so what waits goes to it at once.
func TestRefusalOfADeposedLeaderHoldsNothingUp(t *testing.T) {
	inTappedCluster(t, 3, func(t *testing.T, c *cluster, taps map[raft.NodeID]*tap) {
		leader, f := c.leader(), c.follower()
		next := third(c, leader, f)
		c.net.Cut(f.id, leader.id) // the leader hears nothing of it
		p := f.node.ProposeAsync(within(time.Minute), []byte("a"))
		synctest.Wait()
		asked := last[raft.ForwardPropose](t, taps[f.id])
		require.NoError(t, leader.node.ChangeLeader(within(time.Minute), next.id))
		synctest.Wait()
		require.Equal(t, next.id, f.node.Leadership().Leader)
		start := time.Now()
		taps[f.id].answer(asked, leader.id, raft.ForwardProposeReply{Outcomes: []raft.ForwardOutcome{{Refusal: raft.RefusedNotLeader}}})
		_, err := p.Result()
		require.NoError(t, err)
		require.Less(t, time.Since(start), 50*time.Millisecond, "half a heartbeat")
	})
}

// SAFETY inv 16. A read that was passed on waits for the word of the leader that was asked, and a refusal is no such word.
func TestOnlyTheLeaderThatWasAskedConfirmsAForwardedRead(t *testing.T) {
	inTappedCluster(t, 3, func(t *testing.T, c *cluster, taps map[raft.NodeID]*tap) {
		leader, f := c.leader(), c.follower()
		other := third(c, leader, f)
		c.net.Cut(leader.id, f.id)
		read := make(chan error, 1)
		go func() { read <- f.node.Read(within(time.Minute)) }()
		synctest.Wait()
		asked := last[raft.ForwardRead](t, taps[f.id])
		taps[f.id].answer(asked, other.id, raft.ForwardReadReply{Index: 1})
		require.Empty(t, read)
		taps[f.id].answer(asked, leader.id, raft.ForwardReadReply{Refusal: raft.RefusedNotLeader})
		require.Empty(t, read)
		c.net.Heal()
		require.NoError(t, <-read)
	})
}

// A lost answer does not end a read, and neither does it wait for the next leader.
func TestReadWhoseAnswerIsLostIsAskedAgain(t *testing.T) {
	inTappedCluster(t, 3, func(t *testing.T, c *cluster, taps map[raft.NodeID]*tap) {
		leader, f := c.leader(), c.follower()
		term := leader.node.Leadership().Term
		c.net.Cut(leader.id, f.id)
		read := make(chan error, 1)
		go func() { read <- f.node.Read(within(10 * time.Second)) }()
		time.Sleep(150 * time.Millisecond) // longer than a round takes, shorter than the patience of a follower
		last[raft.ForwardRead](t, taps[f.id])
		c.net.Heal()
		require.NoError(t, <-read)
		require.Equal(t, term, leader.node.Leadership().Term, "all that under one leader")
	})
}

// SAFETY inv 16; dissertation §6.4: what is committed is not yet what can be read.
func TestReadWaitsForASlowStateMachine(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		for _, m := range []*machine{c.leader(), c.follower()} {
			hold := make(chan struct{})
			m.sm.hook(hooks{apply: func(string) error { <-hold; return nil }})
			before := len(m.sm.all())
			<-c.leader().node.ProposeAsync(within(time.Minute), []byte("a")).Committed()
			read := make(chan error, 1)
			go func() { read <- m.node.Read(within(time.Minute)) }()
			time.Sleep(5 * time.Second)
			require.Empty(t, read)
			close(hold)
			require.NoError(t, <-read)
			require.Len(t, m.sm.all(), before+1)
		}
	})
}

// SAFETY §3: "acknowledgement of a round that began before the read". A round that is over, or under way, serves nobody who comes later.
func TestLaterReadsNeedALaterRound(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		old := c.leader()
		require.NoError(t, old.node.Read(within(time.Second)))
		c.net.Isolate(old.id)
		var next *machine
		c.eventually("another leader", func() bool {
			for _, m := range c.machines {
				if m != old && m.node.Leadership().Role == raft.Leader && m.node.Status().CanCommit {
					next = m
				}
			}
			return next != nil
		})
		c.propose(next, "new")
		require.ErrorIs(t, old.node.Read(within(time.Second)), context.DeadlineExceeded)
		c.net.Heal()
		require.NoError(t, old.node.Read(within(time.Minute)))
		require.Equal(t, []string{"new"}, old.sm.all())
	})
}

// A process that was stopped for a while finds its leader's heartbeats waiting: they are heard before the clock is looked at. (After a
// pause that is much longer than its patience the core listens again anyway.)
func TestFollowerThatWasHeldUpHearsFirst(t *testing.T) {
	inTappedCluster(t, 3, func(t *testing.T, c *cluster, taps map[raft.NodeID]*tap) {
		f := c.follower()
		before := f.node.Leadership()
		p := taps[f.id]
		for pause := time.Second; pause < 5*time.Second/2; pause += 200 * time.Millisecond {
			hold := make(chan struct{})
			p.mu.Lock()
			p.hold = hold
			p.mu.Unlock()
			time.Sleep(pause)
			p.mu.Lock()
			p.hold = nil
			p.mu.Unlock()
			close(hold)
			time.Sleep(300 * time.Millisecond)
			require.Equal(t, before, f.node.Leadership(), "held up for %v: it has not even thought of an election", pause)
		}
	})
}

// electionReasons counts why elections began.
type electionReasons struct {
	counter
	mu   sync.Mutex
	seen []string
}

func (e *electionReasons) Election(reason string) {
	e.mu.Lock()
	e.seen = append(e.seen, reason)
	e.mu.Unlock()
}

// Its process goes on, so that nobody else can know that it is of no use any more: it says so to its successor.
func TestFailedLeaderAsksItsSuccessorToLead(t *testing.T) {
	reasons := &electionReasons{}
	inCluster(t, 3, func(cfg *raft.Config) { cfg.Metrics = reasons }, func(t *testing.T, c *cluster) {
		leader := c.leader()
		reasons.mu.Lock()
		reasons.seen = nil
		reasons.mu.Unlock()
		leader.sm.hook(hooks{apply: func(string) error { return context.Canceled }})
		_, err := leader.node.Propose(within(time.Minute), []byte("a"))
		requireUncertain(t, err)
		c.ended(leader)
		require.NotEqual(t, leader.id, c.leader().id)
		reasons.mu.Lock()
		defer reasons.mu.Unlock()
		require.Equal(t, []string{raft.ReasonTransfer.String()}, reasons.seen)
	})
}

// §6: a change is complete when the new configuration alone is committed, not when the leader has appended it.
func TestChangeReturnsWhenTheLastConfigurationIsCommitted(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		c.add("n4")
		leader := c.leader()
		_, err := leader.node.ChangeMembership(within(time.Minute), raft.Change{Add: []raft.Server{{ID: "n4"}}})
		require.NoError(t, err)
		c.propose(leader, "a")
		c.converge([]string{"a"})
		c.net.SetDelay(20*time.Millisecond, 20*time.Millisecond)
		index, err := leader.node.ChangeMembership(within(time.Minute), raft.Change{Promote: []raft.NodeID{"n4"}})
		require.NoError(t, err)
		st := leader.node.Status()
		require.Equal(t, index, st.ConfigurationIndex)
		require.GreaterOrEqual(t, st.CommitIndex, index)
	})
}

// SAFETY inv 19: a snapshot carries the configuration that was in force at its index, though a later one is in the log.
func TestSnapshotBesideAnUncommittedChange(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader := c.leader()
		c.propose(leader, "a")
		for _, m := range c.machines {
			if m != leader {
				c.net.Isolate(m.id)
			}
		}
		change := make(chan error, 1)
		go func() {
			_, err := leader.node.ChangeMembership(within(100*time.Millisecond), raft.Change{Add: []raft.Server{{ID: "later"}}})
			change <- err
		}()
		synctest.Wait()
		conf := leader.node.Status().Configuration
		_, appended := conf.Server("later")
		require.True(t, appended)
		meta, err := leader.node.Snapshot(within(50 * time.Millisecond))
		require.NoError(t, err)
		_, carried := meta.Configuration.Server("later")
		require.False(t, carried)
		require.Less(t, meta.ConfigurationIndex, leader.node.Status().ConfigurationIndex)
		requireUncertain(t, <-change)
	})
}
