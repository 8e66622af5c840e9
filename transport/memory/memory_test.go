package memory_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/transport/memory"
)

// recorder is a handler that writes down what it is told.
type recorder struct {
	mu       sync.Mutex
	requests []uint64
	events   []string
	content  []byte
	last     raft.Message
	refuse   error
	block    bool
}

func (r *recorder) HandleMessages(ms []raft.Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range ms {
		r.requests = append(r.requests, m.Request)
		r.last = m
	}
}

func (r *recorder) HandleSnapshot(ctx context.Context, _ raft.Message, content io.Reader) error {
	if r.block {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	if r.refuse != nil {
		return r.refuse
	}
	b, err := io.ReadAll(content)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.content = b
	return err
}

func (r *recorder) note(s string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, s)
}

func (r *recorder) PeerUp(p raft.NodeID, _ raft.ReplicaID, _ uint64) { r.note("up " + string(p)) }
func (r *recorder) PeerLost(p raft.NodeID, _ uint64)                 { r.note("lost " + string(p)) }
func (r *recorder) Refused(p raft.NodeID, reason string) {
	r.note("refused " + string(p) + ": " + reason)
}

func (r *recorder) takeRequests() []uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	rs := r.requests
	r.requests = nil
	return rs
}

func (r *recorder) takeEvents() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	es := r.events
	r.events = nil
	return es
}

func start(t *testing.T, n *memory.Network, id raft.NodeID, incarnation uint64) (*memory.Transport, *recorder) {
	t.Helper()
	tr, h := n.Transport(id), &recorder{}
	require.NoError(t, tr.Start(raft.Identity{Cluster: "c", Node: id, Replica: 1, Incarnation: incarnation}, h))
	t.Cleanup(func() { require.NoError(t, tr.Close()) })
	return tr, h
}

func heartbeat(from, to raft.NodeID, request uint64) raft.Message {
	return raft.Message{Header: raft.Header{From: from, To: to, Term: 1, Request: request}, Body: raft.AppendEntries{}}
}

func send(tr *memory.Transport, from, to raft.NodeID, lo, hi uint64) {
	for i := lo; i < hi; i++ {
		tr.Send(to, raft.LaneControl, []raft.Message{heartbeat(from, to, i)})
	}
}

func TestDelayKeepsTheOrderOfALane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memory.NewNetwork()
		a, _ := start(t, n, "a", 1)
		_, b := start(t, n, "b", 1)
		n.SetDelay(10*time.Millisecond, 50*time.Millisecond)
		send(a, "a", "b", 0, 100)
		time.Sleep(9 * time.Millisecond)
		require.Empty(t, b.takeRequests())
		time.Sleep(time.Second)
		got := b.takeRequests()
		require.Len(t, got, 100)
		require.True(t, slices.IsSorted(got))
	})
}

func TestCutIsOneWayAndHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memory.NewNetwork()
		a, ha := start(t, n, "a", 1)
		b, hb := start(t, n, "b", 1)
		n.Cut("a", "b")
		send(a, "a", "b", 0, 1)
		send(b, "b", "a", 0, 1)
		synctest.Wait()
		require.Empty(t, hb.takeRequests())
		require.Len(t, ha.takeRequests(), 1)
		require.Equal(t, []string{"up b"}, ha.takeEvents())
		require.Empty(t, hb.takeEvents(), "the answer to its contact was cut")

		n.Heal()
		send(a, "a", "b", 1, 2)
		synctest.Wait()
		require.Equal(t, []uint64{1}, hb.takeRequests())

		n.Isolate("b")
		send(a, "a", "b", 2, 3)
		synctest.Wait()
		require.Empty(t, hb.takeRequests())
	})
}

func TestLossIsAsProbableAsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memory.NewNetwork()
		a, _ := start(t, n, "a", 1)
		_, b := start(t, n, "b", 1)
		n.SetLoss(0.3, 7)
		send(a, "a", "b", 0, 2000)
		synctest.Wait()
		require.InDelta(t, 1400, len(b.takeRequests()), 100)
	})
}

func TestCrashIsSeenByThoseWhoCanReachTheMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memory.NewNetwork()
		a, _ := start(t, n, "a", 1)
		_, b := start(t, n, "b", 1)
		_, c := start(t, n, "c", 1)
		send(a, "a", "b", 0, 1)
		send(a, "a", "c", 0, 1)
		synctest.Wait()
		n.Disconnect("a", "c")
		n.Crash("a")
		send(a, "a", "b", 1, 2) // the dead send nothing
		synctest.Wait()
		require.Equal(t, []string{"up a", "lost a"}, b.takeEvents())
		require.Equal(t, []string{"up a"}, c.takeEvents())
		require.Len(t, b.takeRequests(), 1)

		// c was cut off and learns of the crash from the next incarnation.
		n.Heal()
		a2, _ := start(t, n, "a", 2)
		send(a2, "a", "c", 0, 1)
		synctest.Wait()
		require.Equal(t, []string{"lost a", "up a"}, c.takeEvents())
	})
}

func TestForwardedProposalsAreNotShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memory.NewNetwork()
		a, _ := start(t, n, "a", 1)
		_, b := start(t, n, "b", 1)
		e := raft.NewCommand([]byte("set x"))
		m := heartbeat("a", "b", 1)
		m.Body = raft.ForwardPropose{Proposals: []raft.Proposal{{Entry: e}}}
		a.Send("b", raft.LaneLog, []raft.Message{m})
		synctest.Wait()
		got := b.last.Body.(raft.ForwardPropose).Proposals[0].Entry
		require.Equal(t, e.Frame(), got.Frame())
		got.Frame()[8] = 0xff // as a leader does when it stamps the term
		require.NotEqual(t, e.Frame()[8], got.Frame()[8])
	})
}

func snapshot(from, to raft.NodeID) raft.Message {
	return raft.Message{Header: raft.Header{From: from, To: to, Term: 3, Request: 1}, Body: raft.InstallSnapshot{Meta: raft.SnapshotMeta{
		Index: 9, Term: 2, ConfigurationIndex: 1,
		Configuration: raft.Configuration{ClusterID: "c", Servers: []raft.Server{{ID: "a"}}},
	}}}
}

// endless is a snapshot that never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestSnapshotArrivesOrFailsForAReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memory.NewNetwork()
		a, _ := start(t, n, "a", 1)
		_, b := start(t, n, "b", 1)
		content := bytes.Repeat([]byte("state"), 100_000)
		require.NoError(t, a.SendSnapshot(t.Context(), snapshot("a", "b"), bytes.NewReader(content)))
		require.Equal(t, content, b.content)

		b.refuse = errors.New("older than what was applied")
		require.ErrorIs(t, a.SendSnapshot(t.Context(), snapshot("a", "b"), endless{}), b.refuse)

		b.refuse, b.block = nil, true
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, a.SendSnapshot(ctx, snapshot("a", "b"), endless{}), context.DeadlineExceeded)

		breaks := func(fault func()) {
			failed := make(chan error)
			go func() { failed <- a.SendSnapshot(t.Context(), snapshot("a", "b"), bytes.NewReader(content)) }()
			synctest.Wait()
			fault()
			require.ErrorContains(t, <-failed, "connection broke")
		}
		breaks(func() { n.Cut("b", "a") })
		n.Heal()
		breaks(func() { n.Crash("b") })
	})
}

func TestSenderThatFailsIsSeenByTheReceiver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memory.NewNetwork()
		a, _ := start(t, n, "a", 1)
		start(t, n, "b", 1)
		damaged := errors.New("snapshot damaged")
		r := io.MultiReader(bytes.NewReader([]byte("half")), readerFunc(func([]byte) (int, error) { return 0, damaged }))
		require.ErrorIs(t, a.SendSnapshot(t.Context(), snapshot("a", "b"), r), damaged)
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestStrangersAndMalformedMessagesAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memory.NewNetwork()
		_, b := start(t, n, "b", 1)
		stranger, h := n.Transport("s"), &recorder{}
		require.NoError(t, stranger.Start(raft.Identity{Cluster: "other", Node: "s"}, h))
		defer stranger.Close()
		send(stranger, "s", "b", 0, 1)
		a, _ := start(t, n, "a", 1)
		a.Send("b", raft.LaneControl, []raft.Message{{Header: raft.Header{From: "a", To: "b"}}})
		send(a, "x", "b", 0, 1) // not the sender's name
		synctest.Wait()
		require.ElementsMatch(t, []string{"refused s: other cluster", "up a", "refused a: malformed message"}, b.takeEvents())
		require.Empty(t, b.takeRequests())

		require.Error(t, n.Transport("b").Start(raft.Identity{Cluster: "c", Node: "b"}, h), "two servers of one name")
	})
}
