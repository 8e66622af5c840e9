// Package transporttest is the conformance suite for implementations of raft.Transport.
package transporttest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/steadyraft/raft"
)

// Endpoint is a transport that has not been started, and the address at which others will reach it (raft.Server.Address).
type Endpoint struct {
	Transport raft.Transport
	Address   string
}

// Network makes the transport of one server. It is called again for a server that comes back after its transport was closed, and
// gives it another address then, if addresses mean anything.
type Network func(id raft.NodeID) Endpoint

// Options says what a kind of transport does differently by nature.
type Options struct {
	// RequestsOnly: replies return as results of calls, so Send carries requests only, and nobody can be answered who is not
	// listed.
	RequestsOnly bool
}

// deadline bounds every wait. It is reached only by a transport that is broken.
const deadline = time.Minute

// Run checks the promises of raft.Transport. make is called once for each test and makes a new network without faults.
func Run(t *testing.T, options Options, make func(t *testing.T) Network) {
	tests := []struct {
		name string
		test func(*suite)
	}{
		{"MessagesKeepTheirOrderWithinALane", (*suite).order},
		{"MessagesReachNobodyElse", (*suite).recipients},
		{"MessagesArriveUnchanged", (*suite).unchanged},
		{"LargeMessagesArrive", (*suite).large},
		{"SendDoesNotBlock", (*suite).noBlocking},
		{"OtherClustersAreNotHeard", (*suite).otherCluster},
		{"ThoseWhoAreNotListedAreAnswered", (*suite).guests},
		{"AddressesChange", (*suite).addressChange},
		{"SnapshotsArrive", (*suite).snapshot},
		{"SnapshotsAreRefusedWithAReason", (*suite).snapshotRefused},
		{"SnapshotsEndWithTheirContext", (*suite).snapshotCancelled},
		{"SnapshotsThatCannotBeReadAreNotTakenForWhole", (*suite).snapshotUnreadable},
		{"SnapshotsEndWhenTheReceiverStops", (*suite).snapshotCut},
		{"CloseEndsEverything", (*suite).close},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			before := goleak.IgnoreCurrent()
			t.Cleanup(func() { goleak.VerifyNone(t, before) })
			test.test(&suite{T: t, options: options, network: make(t)})
		})
	}
}

type suite struct {
	*testing.T
	options Options
	network Network
}

// server is a started transport and what it has received.
type server struct {
	raft.Transport
	id      raft.Identity
	address string

	mu       sync.Mutex
	messages []raft.Message
	closed   bool
	late     int           // calls after Close had returned
	changed  chan struct{} // capacity 1

	receive func(ctx context.Context, m raft.Message, r io.Reader) error
}

func (s *suite) start(cluster string, id raft.NodeID, incarnation uint64) *server {
	s.Helper()
	e := s.network(id)
	v := &server{
		Transport: e.Transport, address: e.Address, changed: make(chan struct{}, 1),
		id: raft.Identity{Cluster: cluster, Node: id, Replica: raft.ReplicaID(len(id)) + 100, Incarnation: incarnation},
	}
	require.NoError(s, v.Start(v.id, v))
	s.Cleanup(func() { require.NoError(s, v.stop()) })
	return v
}

func (v *server) stop() error {
	err := v.Close()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	return err
}

// pair starts two servers that know each other and have exchanged a message in both directions.
func (s *suite) pair() (a, b *server) {
	s.Helper()
	a, b = s.start("c", "a", 1), s.start("c", "b", 1)
	list(a, b)
	list(b, a)
	s.contact(a, b)
	s.contact(b, a)
	return a, b
}

func list(v *server, others ...*server) {
	var servers []raft.Server
	for _, o := range others {
		servers = append(servers, raft.Server{ID: o.id.Node, Address: o.address})
	}
	v.SetPeers(servers)
}

// contact sends until something arrives: the first messages may be lost while connections are being made.
func (s *suite) contact(from, to *server) {
	s.Helper()
	for _, lane := range []raft.Lane{raft.LaneControl, raft.LaneLog} {
		probe := from.message(to, 0, raft.PreVote{LastLogIndex: raft.Index(lane)})
		require.Eventually(s, func() bool {
			from.Send(to.id.Node, lane, []raft.Message{probe})
			return to.has(func(m raft.Message) bool { return m.From == from.id.Node && m.Body == probe.Body })
		}, deadline, 5*time.Millisecond, "nothing from %s reaches %s", from.id.Node, to.id.Node)
	}
}

func (v *server) message(to *server, request uint64, body raft.Body) raft.Message {
	return raft.Message{Header: raft.Header{
		From: v.id.Node, To: to.id.Node, Replica: v.id.Replica, Incarnation: v.id.Incarnation, Term: 7, Request: request,
	}, Body: body}
}

// HandleMessages implements raft.Handler.
func (v *server) HandleMessages(ms []raft.Message) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.messages = append(v.messages, ms...)
	v.called()
}

// HandleSnapshot implements raft.Handler.
func (v *server) HandleSnapshot(ctx context.Context, m raft.Message, r io.Reader) error {
	defer func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.called()
	}()
	return v.receive(ctx, m, r)
}

// PeerUp implements raft.Handler.
func (v *server) PeerUp(raft.NodeID, raft.ReplicaID, uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.called()
}

// PeerLost implements raft.Handler.
func (v *server) PeerLost(raft.NodeID, uint64) { v.mu.Lock(); defer v.mu.Unlock(); v.called() }

// Refused implements raft.Handler.
func (v *server) Refused(raft.NodeID, string) { v.mu.Lock(); defer v.mu.Unlock(); v.called() }

// called notes a call of the transport. The caller holds v.mu.
func (v *server) called() {
	if v.closed {
		v.late++
	}
	select {
	case v.changed <- struct{}{}:
	default:
	}
}

func (v *server) has(f func(raft.Message) bool) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, m := range v.messages {
		if f(m) {
			return true
		}
	}
	return false
}

// numbered returns the messages with a request number, in the order of their arrival. Probes have none.
func (v *server) numbered() []raft.Message {
	v.mu.Lock()
	defer v.mu.Unlock()
	var ms []raft.Message
	for _, m := range v.messages {
		if m.Request > 0 {
			ms = append(ms, m)
		}
	}
	return ms
}

// await waits until n numbered messages have arrived.
func (s *suite) await(v *server, n int) []raft.Message {
	s.Helper()
	timeout := time.NewTimer(deadline)
	defer timeout.Stop()
	for {
		if ms := v.numbered(); len(ms) >= n {
			return ms
		}
		select {
		case <-v.changed:
		case <-timeout.C:
			require.Fail(s, "messages are missing", "%d of %d arrived", len(v.numbered()), n)
		}
	}
}

func (s *suite) order() {
	a, b := s.pair()
	const each = 2000
	request := uint64(0)
	for request < 2*each {
		for _, lane := range []raft.Lane{raft.LaneControl, raft.LaneLog} {
			var ms []raft.Message
			for range 10 {
				request++
				ms = append(ms, a.message(b, request, raft.PreVote{LastLogIndex: raft.Index(lane)}))
			}
			a.Send("b", lane, ms)
			clear(ms) // the slice is ours again
		}
	}
	last := map[raft.Body]uint64{}
	for _, m := range s.await(b, 2*each) {
		require.Greater(s, m.Request, last[m.Body], "a message has overtaken another on its lane")
		last[m.Body] = m.Request
	}
}

func (s *suite) recipients() {
	a, b := s.pair()
	c := s.start("c", "d", 1)
	list(a, b, c)
	s.contact(a, c)
	for i := range uint64(100) {
		a.Send("b", raft.LaneControl, []raft.Message{a.message(b, 2*i+1, raft.AppendEntries{})})
		a.Send("d", raft.LaneControl, []raft.Message{a.message(c, 2*i+2, raft.AppendEntries{})})
	}
	for _, m := range s.await(b, 100) {
		require.EqualValues(s, "b", m.To)
	}
	for _, m := range s.await(c, 100) {
		require.EqualValues(s, "d", m.To)
	}
	require.Empty(s, a.numbered())
}

// stamped makes an entry as the log of a leader holds it.
func stamped(t testing.TB, term raft.Term, index raft.Index, payload []byte) raft.Entry {
	e := raft.NewCommand(payload)
	frame := e.Frame()
	binary.LittleEndian.PutUint64(frame[8:], uint64(term))
	binary.LittleEndian.PutUint64(frame[16:], uint64(index))
	binary.LittleEndian.PutUint32(frame[28:], crc32.Checksum(frame[:28], crc32.MakeTable(crc32.Castagnoli)))
	e, _, err := raft.DecodeEntry(frame)
	require.NoError(t, err)
	return e
}

func (s *suite) unchanged() {
	a, b := s.pair()
	requests := []raft.Body{
		raft.PreVote{LastLogIndex: 1 << 60, LastLogTerm: 6},
		raft.RequestVote{LastLogIndex: 9, LastLogTerm: 6, Transfer: true},
		raft.AppendEntries{PrevLogIndex: 4, PrevLogTerm: 2, LeaderCommit: 4, Round: 8},
		raft.AppendEntries{PrevLogIndex: 4, PrevLogTerm: 2, Entries: []raft.Entry{
			stamped(s, 2, 5, []byte("first")), stamped(s, 7, 6, nil), stamped(s, 7, 7, bytes.Repeat([]byte("x"), 10_000)),
		}},
		raft.TimeoutNow{},
		raft.FetchEntries{Snapshot: 3, Wanted: []raft.Stretch{{Term: 2, First: 3, Last: 5}, {Term: 7, First: 6, Last: 6}}},
		raft.ForwardPropose{Proposals: []raft.Proposal{{Entry: raft.NewCommand([]byte("set x")), IfTerm: 7}, {Entry: raft.NewBarrier()}}},
		raft.ForwardRead{},
	}
	replies := []raft.Body{
		raft.PreVoteReply{Granted: true},
		raft.RequestVoteReply{Granted: true},
		raft.AppendEntriesReply{Success: true, MatchIndex: 7, PrevLogIndex: 4, Round: 8},
		raft.AppendEntriesReply{Busy: true, HintIndex: 3, HintTerm: 1},
		raft.InstallSnapshotReply{MatchIndex: 9},
		raft.TimeoutNowReply{Accepted: true},
		raft.FetchEntriesReply{Incarnation: 4, CommitIndex: 3, Leading: true, Entries: []raft.Entry{stamped(s, 2, 5, []byte("lost")), stamped(s, 7, 6, nil)},
			Held: []raft.Held{{Stretch: raft.Stretch{Term: 2, First: 3, Last: 5}, UpTo: 5, How: raft.HoldsIntact}}},
		raft.ForwardProposeReply{Outcomes: []raft.ForwardOutcome{{ID: raft.EntryID{Term: 7, Index: 8}}, {Refusal: raft.RefusedFull}}},
		raft.ForwardReadReply{Index: 7, Refusal: raft.RefusedStopped},
	}
	bodies := requests
	if !s.options.RequestsOnly {
		bodies = append(bodies, replies...)
	}
	want := map[uint64]raft.Message{}
	for i, body := range bodies {
		m := a.message(b, uint64(i)+1, body)
		want[m.Request] = m
		a.Send("b", m.Lane(), []raft.Message{m})
	}
	for _, m := range s.await(b, len(bodies)) {
		require.Equal(s, want[m.Request], m) // frames included, byte for byte
	}
}

func (s *suite) large() {
	a, b := s.pair()
	payload := make([]byte, 8<<20)
	generator := rand.New(rand.NewPCG(1, 2))
	for i := range payload {
		payload[i] = byte(generator.Uint32())
	}
	entries := []raft.Entry{stamped(s, 2, 5, payload)}
	for i := range 1000 {
		entries = append(entries, stamped(s, 2, raft.Index(6+i), payload[i:i+300]))
	}
	m := a.message(b, 1, raft.AppendEntries{PrevLogIndex: 4, PrevLogTerm: 2, Entries: entries})
	a.Send("b", raft.LaneLog, []raft.Message{m})
	got := s.await(b, 1)[0].Body.(raft.AppendEntries).Entries
	require.Len(s, got, len(entries))
	for i := range got {
		require.True(s, bytes.Equal(entries[i].Frame(), got[i].Frame()), "entry %d", i)
		require.True(s, bytes.Equal(entries[i].Data, got[i].Data), "entry %d", i)
	}
}

func (s *suite) noBlocking() {
	a, b := s.pair()
	dead := s.start("c", "dead", 1)
	list(a, b, dead)
	require.NoError(s, dead.stop())
	unknown := &server{id: raft.Identity{Node: "unknown"}}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for i := range uint64(5000) {
			for _, to := range []*server{dead, unknown} {
				a.Send(to.id.Node, raft.LaneLog, []raft.Message{a.message(to, i+1, raft.ForwardPropose{
					Proposals: []raft.Proposal{{Entry: raft.NewCommand(make([]byte, 100))}},
				})})
			}
		}
	}()
	select {
	case <-sent:
	case <-time.After(deadline):
		require.Fail(s, "Send blocks")
	}
	// The others do not suffer.
	a.Send("b", raft.LaneLog, []raft.Message{a.message(b, 1, raft.AppendEntries{})})
	s.await(b, 1)
}

func (s *suite) otherCluster() {
	a, b := s.pair()
	stranger := s.start("other", "s", 1)
	list(stranger, a)
	list(a, b, stranger)
	for i := range uint64(50) {
		stranger.Send("a", raft.LaneControl, []raft.Message{stranger.message(a, i+1, raft.AppendEntries{})})
		a.Send("s", raft.LaneControl, []raft.Message{a.message(stranger, i+1, raft.AppendEntries{})})
	}
	s.contact(b, a)
	require.Empty(s, a.numbered())
	require.Empty(s, stranger.numbered())
}

func (s *suite) guests() {
	if s.options.RequestsOnly {
		s.Skip("replies return as results of calls")
	}
	a, b := s.start("c", "a", 1), s.start("c", "b", 1)
	list(b, a)
	s.contact(b, a)
	s.contact(a, b)
}

func (s *suite) addressChange() {
	a, b := s.pair()
	require.NoError(s, b.stop())
	moved := s.start("c", "b", 2)
	list(moved, a)
	list(a, moved)
	s.contact(a, moved)
	s.contact(moved, a)
}

func (v *server) snapshot(to *server) raft.Message {
	return v.message(to, 1, raft.InstallSnapshot{Meta: raft.SnapshotMeta{
		Index: 9, Term: 2, ConfigurationIndex: 1, Size: 1000,
		Configuration: raft.Configuration{ClusterID: "c", Servers: []raft.Server{{ID: "a", Address: "h:1"}, {ID: "b", Replica: 5}}, Removed: []raft.NodeID{"z"}},
	}})
}

func (s *suite) snapshot() {
	a, b := s.pair()
	content := make([]byte, 3<<20+17)
	generator := rand.New(rand.NewPCG(3, 4))
	for i := range content {
		content[i] = byte(generator.Uint32())
	}
	for _, n := range []int{0, 1, len(content)} {
		var got []byte
		var message raft.Message
		b.receive = func(_ context.Context, m raft.Message, r io.Reader) (err error) {
			message = m
			got, err = io.ReadAll(r)
			return err
		}
		require.NoError(s, a.SendSnapshot(s.Context(), a.snapshot(b), bytes.NewReader(content[:n])))
		require.Equal(s, a.snapshot(b), message)
		require.True(s, bytes.Equal(content[:n], got), "%d bytes became %d", n, len(got))
	}
}

// endless is a snapshot that never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func (s *suite) snapshotRefused() {
	a, b := s.pair()
	b.receive = func(context.Context, raft.Message, io.Reader) error { return errors.New("older than what was applied") }
	for _, r := range []io.Reader{bytes.NewReader(nil), endless{}} {
		require.ErrorContains(s, a.SendSnapshot(s.Context(), a.snapshot(b), r), "older than what was applied")
	}
	unknown := &server{id: raft.Identity{Node: "unknown"}}
	require.Error(s, a.SendSnapshot(s.Context(), a.snapshot(unknown), bytes.NewReader(nil)))
}

func (s *suite) snapshotCancelled() {
	a, b := s.pair()
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	began, ended := make(chan struct{}), make(chan error, 1)
	b.receive = func(_ context.Context, _ raft.Message, r io.Reader) error {
		close(began)
		_, err := io.Copy(io.Discard, r)
		ended <- err
		return err
	}
	go func() {
		<-began
		cancel()
	}()
	require.ErrorIs(s, a.SendSnapshot(ctx, a.snapshot(b), endless{}), context.Canceled)
	require.Error(s, s.result(ended), "half a snapshot was taken for a whole one")
}

func (s *suite) snapshotUnreadable() {
	a, b := s.pair()
	ended := make(chan error, 1)
	b.receive = func(_ context.Context, _ raft.Message, r io.Reader) error {
		_, err := io.Copy(io.Discard, r)
		ended <- err
		return err
	}
	damaged := errors.New("damaged")
	r := io.MultiReader(bytes.NewReader(make([]byte, 1<<20)), failing{damaged})
	require.ErrorContains(s, a.SendSnapshot(s.Context(), a.snapshot(b), r), "damaged")
	require.Error(s, s.result(ended), "half a snapshot was taken for a whole one")
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func (s *suite) snapshotCut() {
	a, b := s.pair()
	began := make(chan struct{})
	b.receive = func(ctx context.Context, _ raft.Message, _ io.Reader) error {
		close(began)
		<-ctx.Done()
		return ctx.Err()
	}
	failed := make(chan error, 1)
	go func() { failed <- a.SendSnapshot(s.Context(), a.snapshot(b), bytes.NewReader(make([]byte, 100))) }()
	<-began
	require.NoError(s, b.stop())
	require.Error(s, s.result(failed))
}

func (s *suite) result(c chan error) error {
	s.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(deadline):
		require.Fail(s, "no end")
		return nil
	}
}

func (s *suite) close() {
	a, b := s.pair()
	stop := make(chan struct{})
	var senders sync.WaitGroup
	senders.Go(func() {
		for i := uint64(1); ; i++ {
			select {
			case <-stop:
				return
			default:
				a.Send("b", raft.LaneControl, []raft.Message{a.message(b, i, raft.AppendEntries{})})
			}
		}
	})
	s.await(b, 10)
	require.NoError(s, b.stop())
	require.NoError(s, b.Close())
	require.NoError(s, a.Close())
	close(stop)
	senders.Wait()
	require.NoError(s, a.stop())
	require.Error(s, a.SendSnapshot(s.Context(), a.snapshot(b), bytes.NewReader(nil)))
	require.Error(s, a.Start(a.id, a), "a closed transport was started again")
	for _, v := range []*server{a, b} {
		v.SetPeers(nil)
		v.mu.Lock()
		require.Zero(s, v.late, fmt.Sprintf("%s was called after Close", v.id.Node))
		v.mu.Unlock()
	}
}
