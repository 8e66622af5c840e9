package raft

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// readingNode makes as much of a node as reads need. The test is its loop, and plays the other servers.
func readingNode(view LeaderChange) *Node {
	n := new(Node)
	n.cfg.ID, n.cfg.Core, n.view = "a", CoreConfig{}.withDefaults(), view
	n.ident.Store(new(Identity))
	n.inbox.init(1<<20, 1<<20)
	n.inbox.open()
	return n
}

// sent returns what the node has sent since the last call.
func (n *Node) sent() []Message {
	var ms []Message
	for i := range n.out {
		ms = append(ms, n.out[i].ms...)
	}
	n.out = nil
	return ms
}

// woken reports whether the loop was woken, and lets it sleep again.
func (n *Node) woken() bool {
	n.inbox.take(inputs{})
	select {
	case <-n.inbox.wake:
		return true
	default:
		return false
	}
}

func (b *readBatch) ended() bool {
	select {
	case <-b.done:
		return true
	default:
		return false
	}
}

// join adds a read, as Node.Read does.
func (n *Node) join(t *testing.T) *readBatch {
	t.Helper()
	b, err := n.inbox.joinRead()
	require.NoError(t, err)
	return b
}

// Dissertation §6.4: a follower "asks the leader for its current readIndex", and goes on once it has applied that. Nothing else ends
// the read: not a refusal, which leaves it waiting for another try, and not somebody else's answer (SAFETY inv 16).
func TestReadThatIsPassedOnEndsByTheLeadersAnswer(t *testing.T) {
	n := readingNode(LeaderChange{Term: 2, Role: Follower, Leader: "b"})
	b := n.join(t)
	now := time.Second
	n.placeReads(now)
	ms := n.sent()
	require.Len(t, ms, 1)
	require.Equal(t, NodeID("b"), ms[0].To)
	require.Equal(t, ForwardRead{}, ms[0].Body)
	n.handleForwardReadReply(now, Header{From: "c", To: "a", Term: 2, Request: ms[0].Request}, ForwardReadReply{})
	n.handleForwardReadReply(now, Header{From: "b", To: "a", Term: 2, Request: ms[0].Request + 1}, ForwardReadReply{})
	require.False(t, b.ended())

	n.handleForwardReadReply(now, Header{From: "b", To: "a", Term: 2, Request: ms[0].Request}, ForwardReadReply{Refusal: RefusedNotLeader})
	require.False(t, b.ended())
	n.placeReads(now)
	require.Empty(t, n.sent(), "not at once")
	now += n.cfg.Core.HeartbeatInterval
	n.placeReads(now)
	ms = n.sent()
	require.Len(t, ms, 1)
	n.handleForwardReadReply(now, Header{From: "b", To: "a", Term: 2, Request: ms[0].Request}, ForwardReadReply{Index: 2})
	require.False(t, b.ended(), "nothing is applied yet")
	n.table.complete(entriesAt(2, 1, 2), make([]any, 1))
	require.False(t, b.ended())
	n.table.complete(entriesAt(2, 2, 3), make([]any, 1))
	require.True(t, b.ended())
	require.NoError(t, b.err)
}

// SAFETY inv 30: a read that is not answered in time is asked again.
func TestReadThatIsNotAnsweredIsAskedAgain(t *testing.T) {
	n := readingNode(LeaderChange{Term: 2, Role: Follower, Leader: "b"})
	b := n.join(t)
	n.placeReads(0)
	require.Len(t, n.sent(), 1)
	now := n.cfg.Core.ElectionTimeout
	n.expireForwards(now)
	n.placeReads(now)
	ms := n.sent()
	require.Len(t, ms, 1)
	n.handleForwardReadReply(now, Header{From: "b", To: "a", Term: 2, Request: ms[0].Request}, ForwardReadReply{})
	require.True(t, b.ended())
}

// SAFETY §3: acknowledgement of a round that began before the read. A read that comes when the batch before it has gone to the leader
// belongs to the next one.
func TestLaterReadBelongsToALaterRound(t *testing.T) {
	n := readingNode(LeaderChange{Term: 2, Role: Follower, Leader: "b"})
	first := n.join(t)
	require.Equal(t, first, n.join(t), "they wait for the same round")
	n.placeReads(0)
	asked := n.sent()
	require.Len(t, asked, 1)
	second := n.join(t)
	n.handleForwardReadReply(0, Header{From: "b", To: "a", Term: 2, Request: asked[0].Request}, ForwardReadReply{})
	require.True(t, first.ended())
	require.False(t, second.ended())
	n.placeReads(0)
	require.Len(t, n.sent(), 1)
}

// A round costs the same for one read as for a thousand: while one is under way, reads gather for the next, and do not wake the loop.
func TestReadsGatherWhileARoundIsUnderWay(t *testing.T) {
	l, a := newServer(t, "a b c")
	l.office(a, "b")
	n := readingNode(LeaderChange{Term: 2, Role: Leader, Leader: "a"})
	n.core = a.core
	first := n.join(t)
	require.True(t, n.woken())
	n.placeReads(l.now)
	n.holdReads(l.now)
	require.Len(t, n.fwd.rounds, 1)

	second := n.join(t)
	require.False(t, n.woken())
	n.fwd.readAskers = []Header{{From: "c", To: "a", Request: 7}}
	n.placeReads(l.now)
	require.Len(t, n.fwd.rounds, 1)
	require.Empty(t, n.sent())
	require.Equal(t, second, n.join(t))

	n.table.complete(entriesAt(2, 1, 2), make([]any, 1))
	n.handleReadResult(l.now, ReadResult{ID: n.fwd.rounds[0].id, Index: 1})
	require.True(t, first.ended())
	n.placeReads(l.now)
	require.Len(t, n.fwd.rounds, 1)
	require.Len(t, n.fwd.rounds[0].askers, 1)
	n.handleReadResult(l.now, ReadResult{ID: n.fwd.rounds[0].id, Index: 1})
	require.True(t, second.ended())
}

// Everything is bounded: what followers ask while the leader cannot finish a round as well.
func TestQuestionsOfFollowersAreBounded(t *testing.T) {
	n := readingNode(LeaderChange{Term: 2, Role: Leader, Leader: "a"})
	n.fwd.rounds = []*readRound{{id: 1}}
	for i := range uint64(maxReadAskers) {
		n.receive(0, Message{Header: Header{From: "c", To: "a", Request: i}, Body: ForwardRead{}})
		n.placeReads(0)
	}
	require.Empty(t, n.sent())
	n.receive(0, Message{Header: Header{From: "c", To: "a", Request: 9999}, Body: ForwardRead{}})
	ms := n.sent()
	require.Len(t, ms, 1)
	require.Equal(t, uint64(9999), ms[0].Request)
	require.Equal(t, ForwardReadReply{Refusal: RefusedOverloaded}, ms[0].Body)
}

// Where the loop confirms a round and has nothing else to do (a server alone needs no answer), reads that have gathered wake it.
func TestReadsThatHaveGatheredWakeTheLoop(t *testing.T) {
	n := readingNode(LeaderChange{Term: 2, Role: Leader, Leader: "a"})
	n.fwd.rounds = []*readRound{{id: 1}}
	n.holdReads(0)
	n.join(t)
	require.False(t, n.woken())
	n.handleReadResult(0, ReadResult{ID: 1})
	n.holdReads(0)
	require.True(t, n.woken())
}

// The leader that was asked may be gone: later reads go out by themselves when it has not answered for a while.
func TestForwardedRoundHoldsUpTheNextForAHeartbeatOnly(t *testing.T) {
	n := readingNode(LeaderChange{Term: 2, Role: Follower, Leader: "b"})
	n.join(t)
	n.placeReads(0)
	require.Len(t, n.sent(), 1)
	later := n.join(t)
	n.placeReads(0)
	require.Empty(t, n.sent())
	now := n.forwardDeadline(0)
	require.Equal(t, n.cfg.Core.HeartbeatInterval, now)
	n.placeReads(now)
	ms := n.sent()
	require.Len(t, ms, 1)
	n.handleForwardReadReply(now, Header{From: "b", To: "a", Term: 2, Request: ms[0].Request}, ForwardReadReply{})
	require.True(t, later.ended())
	require.Equal(t, n.cfg.Core.ElectionTimeout, n.forwardDeadline(now), "the first is still waited for")
}

// The leader's half: followers get the index to wait for once the round is confirmed, and a refusal if leadership was lost before;
// the leader's own reads then wait for the next leader (SAFETY inv 16).
func TestLeaderAnswersReadsOfFollowers(t *testing.T) {
	for _, lost := range []bool{false, true} {
		l, a := newServer(t, "a b c")
		l.office(a, "b")
		n := readingNode(LeaderChange{Term: 2, Role: Leader, Leader: "a"})
		n.core = a.core
		own := n.join(t)
		n.fwd.readAskers = []Header{{From: "c", To: "a", Request: 7}}
		n.placeReads(l.now)
		require.Empty(t, n.sent())
		res := ReadResult{ID: n.fwd.rounds[0].id, Index: 2}
		want := ForwardReadReply{Index: 2}
		if lost {
			res = ReadResult{ID: res.ID, Err: &NotLeaderError{}}
			want = ForwardReadReply{Refusal: RefusedNotLeader}
		}
		n.handleReadResult(l.now, res)
		ms := n.sent()
		require.Len(t, ms, 1)
		require.Equal(t, NodeID("c"), ms[0].To)
		require.Equal(t, uint64(7), ms[0].Request)
		require.Equal(t, want, ms[0].Body)
		n.table.complete(entriesAt(2, 1, 2), make([]any, 1))
		require.False(t, own.ended(), "2 is not applied")
		n.table.complete(entriesAt(2, 2, 3), make([]any, 1))
		require.Equal(t, !lost, own.ended())
		require.Equal(t, lost, len(n.fwd.reads) == 1, "it waits for the next leader")
	}
}

// Callers that can run are let ask before the loop takes what waits, but it neither waits for requests that do not come nor goes on
// without end.
func TestRequestsGatherWhileMoreCome(t *testing.T) {
	for _, c := range []struct {
		name   string
		counts []int         // what waits, look by look
		takes  time.Duration // until the loop is let run again
		looks  int
	}{
		{"nothing waits", []int{0, 1}, 0, 1},
		{"no more come", []int{1, 1, 2}, 0, 2},
		{"more come twice", []int{1, 2, 5, 5, 6}, 0, 4},
		{"more always come", []int{1, 2, 3, 4, 5, 6, 7, 8, 9}, 0, 1 + maxYields},
		{"others take long", []int{1, 2, 3, 4}, maxGather, 2},
	} {
		synctest.Test(t, func(t *testing.T) {
			looks := 0
			gatherRequests(func() int {
				if looks > 0 {
					time.Sleep(c.takes + 1)
				}
				looks++
				return c.counts[looks-1]
			})
			require.Equal(t, c.looks, looks, c.name)
		})
	}
}
