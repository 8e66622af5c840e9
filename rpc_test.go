package raft_test

import (
	"context"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
)

// A shim for an RPC framework: requests come as calls, answers go back as return values.
func TestRPCEntryPoints(t *testing.T) {
	inCluster(t, 1, nil, func(t *testing.T, c *cluster) {
		n := c.leader().node
		ctx := within(time.Second)
		header := func(request uint64) raft.Header {
			return raft.Header{From: "peer", To: "n1", Term: n.Leadership().Term, Request: request, Replica: 1, Incarnation: 1}
		}
		h, vote, err := n.PreVote(ctx, header(7), raft.PreVote{})
		require.NoError(t, err)
		require.False(t, vote.Granted)
		require.Equal(t, raft.NodeID("n1"), h.From)
		require.Equal(t, raft.NodeID("peer"), h.To)
		require.Equal(t, uint64(7), h.Request, "the answer names the request")

		_, rv, err := n.RequestVote(ctx, header(8), raft.RequestVote{})
		require.NoError(t, err)
		require.False(t, rv.Granted)

		_, tn, err := n.TimeoutNow(ctx, header(9), raft.TimeoutNow{})
		require.NoError(t, err)
		require.False(t, tn.Accepted)

		old := header(10)
		old.Term--
		h, ae, err := n.AppendEntries(ctx, old, raft.AppendEntries{})
		require.NoError(t, err)
		require.False(t, ae.Success)
		require.Equal(t, n.Leadership().Term, h.Term)

		meta := raft.SnapshotMeta{Index: 1, Term: 1, Configuration: c.conf, Size: 3}
		h, _, err = n.InstallSnapshot(ctx, old, raft.InstallSnapshot{Meta: meta}, strings.NewReader("abc"))
		require.NoError(t, err)
		require.Equal(t, n.Leadership().Term, h.Term, "a deposed leader learns the term")

		m, err := n.Handle(ctx, raft.Message{Header: header(11), Body: raft.ForwardRead{}})
		require.NoError(t, err)
		require.Positive(t, m.Body.(raft.ForwardReadReply).Index)

		m, err = n.Handle(ctx, raft.Message{Header: header(12), Body: raft.ForwardPropose{Proposals: []raft.Proposal{
			{Entry: raft.NewCommand([]byte("a"))}, {Entry: raft.NewCommand([]byte("b")), IfTerm: 1 << 40}}}})
		require.NoError(t, err)
		outcomes := m.Body.(raft.ForwardProposeReply).Outcomes
		require.Len(t, outcomes, 2)
		require.NotZero(t, outcomes[0].ID)
		require.Equal(t, raft.RefusedTerm, outcomes[1].Refusal)
	})
}

func TestHandleRefusesWhatItCannotAnswer(t *testing.T) {
	inCluster(t, 1, nil, func(t *testing.T, c *cluster) {
		n := c.leader().node
		ctx := within(time.Second)
		h := raft.Header{From: "peer", To: "n1", Term: 1, Request: 1}
		for name, m := range map[string]raft.Message{
			"a reply":           {Header: h, Body: raft.PreVoteReply{}},
			"no body":           {Header: h},
			"another recipient": {Header: raft.Header{From: "peer", To: "n2"}, Body: raft.PreVote{}},
			"no sender":         {Header: raft.Header{To: "n1"}, Body: raft.PreVote{}},
			"no content":        {Header: h, Body: raft.InstallSnapshot{}},
		} {
			_, err := n.Handle(ctx, m)
			require.Error(t, err, name)
			require.NotErrorIs(t, err, context.DeadlineExceeded, name)
		}
	})
}

func TestSameRequestTwiceAtOnceAnswersBoth(t *testing.T) {
	inCluster(t, 1, nil, func(t *testing.T, c *cluster) {
		m := c.leader()
		release := m.storage.BlockWrites() // the answer to a vote has to wait for the disk
		h := raft.Header{From: "peer", To: "n1", Term: m.node.Leadership().Term + 1, Request: 5, Replica: 1, Incarnation: 1}
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if _, _, err := m.node.RequestVote(within(5*time.Second), h, raft.RequestVote{Transfer: true}); err != nil {
					c.t.Error(err)
				}
			})
		}
		synctest.Wait()
		release()
		wg.Wait()
	})
}

// SAFETY inv 26: one snapshot is received at a time; who offers another is told so at once.
func TestSecondSnapshotAtOnceIsRefused(t *testing.T) {
	inCluster(t, 1, nil, func(t *testing.T, c *cluster) {
		joiner := c.add("n4")
		meta := raft.SnapshotMeta{Index: 9, Term: 5, ConfigurationIndex: 1, Configuration: c.conf, Size: 3}
		offer := func(request uint64, r io.Reader) error {
			h := raft.Header{From: "n1", To: "n4", Term: 5, Request: request, Replica: 1, Incarnation: 1}
			_, _, err := joiner.node.InstallSnapshot(within(time.Second), h, raft.InstallSnapshot{Meta: meta}, r)
			return err
		}
		slow, sender := io.Pipe()
		first := make(chan error, 1)
		go func() { first <- offer(1, slow) }()
		synctest.Wait()
		require.ErrorIs(t, offer(2, strings.NewReader("abc")), raft.ErrBusy)
		require.NoError(t, sender.CloseWithError(io.ErrUnexpectedEOF))
		require.ErrorIs(t, <-first, io.ErrUnexpectedEOF)
	})
}

// A forwarded message that the network has doubled is appended once.
func TestDoubledForwardIsAppendedOnce(t *testing.T) {
	inCluster(t, 1, nil, func(t *testing.T, c *cluster) {
		m := c.leader()
		msg := raft.Message{
			Header: raft.Header{From: "peer", To: "n1", Term: m.node.Leadership().Term, Request: 1<<32 + 1, Replica: 1, Incarnation: 1},
			Body:   raft.ForwardPropose{Proposals: []raft.Proposal{{Entry: raft.NewCommand([]byte("a"))}}},
		}
		_, err := m.node.Handle(within(time.Second), msg)
		require.NoError(t, err)
		msg.Body = raft.ForwardPropose{Proposals: []raft.Proposal{{Entry: raft.NewCommand([]byte("a"))}}}
		_, err = m.node.Handle(within(time.Second), msg)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, []string{"a"}, m.sm.all())

		// Nor does it count in another term than the one in which it was sent. Whether this server took it then, it cannot know.
		msg.Term--
		msg.Request++
		_, err = m.node.Handle(within(time.Second), msg)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, []string{"a"}, m.sm.all())
	})
}

// A leader that has lost its office refuses what it sees for the first time, so that it can be sent to the next one. The duplicate
// of what it has appended gets no such answer: its sender would take it for that of the first one, and send the command again.
// Found by TestChaos, seeds 343 and 536.
func TestDuplicateOfAnAppendedForwardIsNotRefused(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		m := c.leader()
		h := raft.Header{From: "peer", To: m.id, Term: m.node.Leadership().Term, Request: 1<<32 + 1, Replica: 1, Incarnation: 1}
		forward := func() (raft.Message, error) {
			return m.node.Handle(within(time.Second), raft.Message{Header: h,
				Body: raft.ForwardPropose{Proposals: []raft.Proposal{{Entry: raft.NewCommand([]byte("a"))}}}})
		}
		_, err := forward()
		require.NoError(t, err)
		require.NoError(t, m.node.ChangeLeader(within(time.Second), ""))
		_, err = forward()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		h.Request++
		a, err := forward()
		require.NoError(t, err)
		require.Equal(t, raft.RefusedNotLeader, a.Body.(raft.ForwardProposeReply).Outcomes[0].Refusal)
		_, err = forward()
		require.ErrorIs(t, err, context.DeadlineExceeded, "refused once, it is not taken later either")
		c.converge([]string{"a"})
	})
}

func TestForwardedProposalsAreChecked(t *testing.T) {
	inCluster(t, 1, func(cfg *raft.Config) { cfg.MaxCommandBytes = 10 }, func(t *testing.T, c *cluster) {
		m := c.leader()
		h := raft.Header{From: "peer", To: "n1", Term: m.node.Leadership().Term, Request: 1, Replica: 1, Incarnation: 1}
		a, err := m.node.Handle(within(time.Second), raft.Message{Header: h, Body: raft.ForwardPropose{Proposals: []raft.Proposal{
			{Entry: raft.NewCommand(make([]byte, 11))}, {Entry: raft.NewCommand([]byte("ok"))}}}})
		require.NoError(t, err)
		outcomes := a.Body.(raft.ForwardProposeReply).Outcomes
		require.Equal(t, raft.RefusedTooLarge, outcomes[0].Refusal)
		require.Zero(t, outcomes[1].Refusal)

		h.Request++
		_, err = m.node.Handle(within(time.Second), raft.Message{Header: h, Body: raft.ForwardPropose{Proposals: []raft.Proposal{{}}}})
		require.ErrorIs(t, err, context.DeadlineExceeded, "an impossible message is refused and counted")
		require.Positive(t, m.node.Status().Refused)
	})
}
