package rpc_test

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/transport/rpc"
)

// fake is a client whose other side is a function.
type fake func(ctx context.Context, to raft.Server, m raft.Message) (raft.Message, error)

func (f fake) Call(ctx context.Context, to raft.Server, m raft.Message) (raft.Message, error) {
	return f(ctx, to, m)
}

func (f fake) CallSnapshot(ctx context.Context, to raft.Server, m raft.Message, r io.Reader) (raft.Message, error) {
	if _, err := io.Copy(io.Discard, r); err != nil {
		return raft.Message{}, err
	}
	return f(ctx, to, m)
}

// recorder is a handler that writes down what it is told.
type recorder struct {
	mu       sync.Mutex
	messages []raft.Message
	events   []string
}

func (r *recorder) HandleMessages(ms []raft.Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.messages = append(r.messages, ms...)
}
func (r *recorder) HandleSnapshot(context.Context, raft.Message, io.Reader) error { return nil }
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

func start(t *testing.T, client rpc.Client) (*rpc.Transport, *recorder) {
	t.Helper()
	tr, err := rpc.New(rpc.Config{Client: client, MaxReads: 2})
	require.NoError(t, err)
	h := &recorder{}
	require.NoError(t, tr.Start(raft.Identity{Cluster: "c", Node: "a"}, h))
	t.Cleanup(func() { require.NoError(t, tr.Close()) })
	tr.SetPeers([]raft.Server{{ID: "a"}, {ID: "b", Address: "there"}})
	return tr, h
}

func request(n uint64, body raft.Body) raft.Message {
	return raft.Message{Header: raft.Header{From: "a", To: "b", Term: 3, Request: n}, Body: body}
}

func reply(m raft.Message, body raft.Body) raft.Message {
	return raft.Message{Header: raft.Header{From: m.To, To: m.From, Replica: 8, Incarnation: 2, Term: m.Term, Request: m.Request}, Body: body}
}

func TestRepliesBecomeMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr, h := start(t, fake(func(_ context.Context, to raft.Server, m raft.Message) (raft.Message, error) {
			if to.Address != "there" {
				return raft.Message{}, errors.New("wrong address")
			}
			return reply(m, raft.RequestVoteReply{Granted: true}), nil
		}))
		m := request(5, raft.RequestVote{LastLogIndex: 1})
		tr.Send("b", raft.LaneControl, []raft.Message{m})
		synctest.Wait()
		require.Equal(t, []raft.Message{reply(m, raft.RequestVoteReply{Granted: true})}, h.messages)
		require.Equal(t, []string{"up b"}, h.events)
	})
}

func TestRepliesOfSomebodyElseAreRefused(t *testing.T) {
	for name, change := range map[string]func(*raft.Message){
		"sender":    func(r *raft.Message) { r.From = "c" },
		"recipient": func(r *raft.Message) { r.To = "c" },
		"malformed": func(r *raft.Message) { r.Body = raft.AppendEntries{PrevLogTerm: 9} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tr, h := start(t, fake(func(_ context.Context, _ raft.Server, m raft.Message) (raft.Message, error) {
					r := reply(m, raft.RequestVoteReply{Granted: true})
					change(&r)
					return r, nil
				}))
				tr.Send("b", raft.LaneControl, []raft.Message{request(5, raft.RequestVote{})})
				synctest.Wait()
				require.Empty(t, h.messages)
				require.Equal(t, []string{"refused b: invalid reply"}, h.events)
			})
		})
	}
}

func TestDecodedMessagesAreValid(t *testing.T) {
	b, err := rpc.Encode(request(5, raft.AppendEntries{PrevLogTerm: 9}))
	require.NoError(t, err)
	_, err = rpc.Decode(b)
	require.ErrorContains(t, err, "index 0 has term 9")
}

func TestCallsAreBoundedInNumberAndTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		running := map[bool]int{}
		most := map[bool]int{}
		tr, h := start(t, fake(func(ctx context.Context, _ raft.Server, m raft.Message) (raft.Message, error) {
			_, read := m.Body.(raft.ForwardRead)
			mu.Lock()
			running[read]++
			most[read] = max(most[read], running[read])
			mu.Unlock()
			<-ctx.Done() // the peer hangs
			mu.Lock()
			defer mu.Unlock()
			running[read]--
			return raft.Message{}, ctx.Err()
		}))
		for i := range uint64(10) {
			tr.Send("b", raft.LaneControl, []raft.Message{request(i, raft.AppendEntries{}), request(i, raft.ForwardRead{})})
		}
		time.Sleep(2 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		require.Equal(t, map[bool]int{false: 1, true: 2}, most)
		require.Equal(t, map[bool]int{false: 0, true: 0}, running, "calls end after their time, and stale ones are dropped")
		require.Empty(t, h.messages)
	})
}

func TestReplyAfterCloseIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		called := make(chan struct{})
		tr, h := start(t, fake(func(ctx context.Context, _ raft.Server, m raft.Message) (raft.Message, error) {
			close(called)
			<-ctx.Done()
			return reply(m, raft.RequestVoteReply{Granted: true}), nil
		}))
		tr.Send("b", raft.LaneControl, []raft.Message{request(5, raft.RequestVote{})})
		<-called
		require.NoError(t, tr.Close())
		require.Empty(t, h.messages)
	})
}

func TestRepliesAreNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		tr, _ := start(t, fake(func(context.Context, raft.Server, raft.Message) (raft.Message, error) {
			calls++
			return raft.Message{}, nil
		}))
		tr.Send("b", raft.LaneControl, []raft.Message{request(1, raft.RequestVoteReply{Granted: true})})
		tr.Send("a", raft.LaneControl, []raft.Message{request(1, raft.AppendEntries{})}) // to itself
		synctest.Wait()
		require.Zero(t, calls)
	})
}

func TestConfigurationReportsAllProblems(t *testing.T) {
	_, err := rpc.New(rpc.Config{QueueBytes: -1})
	require.ErrorContains(t, err, "Client is missing")
	require.ErrorContains(t, err, "negative")
}

func FuzzDecode(f *testing.F) {
	for _, body := range []raft.Body{
		raft.PreVote{}, raft.PreVoteReply{}, raft.RequestVote{}, raft.RequestVoteReply{}, raft.TimeoutNow{}, raft.TimeoutNowReply{},
		raft.AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1}, raft.AppendEntriesReply{Success: true, MatchIndex: 1},
		raft.InstallSnapshot{}, raft.InstallSnapshot{Repair: true}, raft.InstallSnapshotReply{MatchIndex: 1},
		raft.FetchEntries{Wanted: []raft.Stretch{{Term: 1, First: 4, Last: 6}}},
		raft.FetchEntriesReply{Held: []raft.Held{{Stretch: raft.Stretch{Term: 1, First: 4, Last: 6}, UpTo: 5, How: raft.HoldsDamaged}}},
		raft.ForwardPropose{Proposals: []raft.Proposal{{Entry: raft.NewBarrier()}}},
		raft.ForwardProposeReply{Outcomes: []raft.ForwardOutcome{{Refusal: raft.RefusedFull}}},
		raft.ForwardRead{}, raft.ForwardReadReply{Index: 7},
	} {
		b, err := rpc.Encode(request(1, body))
		require.NoError(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := rpc.Decode(b); err == nil {
			require.NoError(t, m.Validate())
		}
	})
}
