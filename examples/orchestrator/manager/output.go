package manager

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/agent"
	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// Bounds of the output that passes through a manager.
const (
	maxStreams    = 128             // at the same time
	maxWanted     = 1000            // requests that wait for heartbeats
	outputWait    = 5 * time.Second // for the node to send the first byte: several heartbeats
	chunkTimeout  = 10 * time.Second
	outputBuffer  = 32 << 10
	maxLogsTail   = 1_000_000
	streamIDBytes = 64
)

// outputs are the tasks' output that somebody reads through this manager, and, on the leader, what the nodes have to be told about it.
//
// The way of a line: the task writes it into a file of its node. Whoever wants to read asks any manager, which has the leader tell the
// node in its next heartbeat's answer. The node sends the file's content to the manager that was asked, which passes it on. So no node has
// to listen for anybody, and only managers decide who reads.
type outputs struct {
	mu      sync.Mutex
	streams map[string]*stream
	wanted  []wanted
}

type wanted struct {
	api.OutputWanted
	until time.Time
}

// stream is one output on its way. The node's request and the reader's meet here.
type stream struct {
	node cluster.NodeID
	ctx  context.Context // of the reader
	from chan arrival    // holds one; taken from the map with the first
}

// arrival is the node's request.
type arrival struct {
	body    io.Reader
	failure string
}

// open makes a place for the output of a node, until the context ends.
func (o *outputs) open(ctx context.Context, id string, node cluster.NodeID) (*stream, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.streams) >= maxStreams {
		return nil, unavailable("this manager passes on the output of %d tasks already; end one of them", maxStreams)
	}
	if o.streams == nil {
		o.streams = make(map[string]*stream)
	}
	s := &stream{node: node, ctx: ctx, from: make(chan arrival, 1)}
	o.streams[id] = s
	return s, nil
}

func (o *outputs) close(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.streams, id)
}

// arrived hands a node's request to the reader who waits for it. It is taken once, and from the node that was asked.
func (o *outputs) arrived(id string, node cluster.NodeID, a arrival) (*stream, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.streams[id]
	if s == nil || s.node != node {
		return nil, &api.Error{Code: string(cluster.NotFound), Message: "nobody waits for this output"}
	}
	select {
	case s.from <- a:
		return s, nil
	default:
		return nil, &api.Error{Code: string(cluster.Conflict), Message: "this output was sent already"}
	}
}

// want has a node told for a while, with each of its heartbeats: an answer may get lost, and the node recognises what it has heard.
func (o *outputs) want(w api.OutputWanted, now time.Time) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.forget(now)
	if len(o.wanted) >= maxWanted {
		return unavailable("too many outputs are asked for at the same time")
	}
	o.wanted = append(o.wanted, wanted{w, now.Add(outputWait)})
	return nil
}

func (o *outputs) forget(now time.Time) {
	var kept []wanted
	for _, w := range o.wanted {
		if now.Before(w.until) {
			kept = append(kept, w)
		}
	}
	o.wanted = kept
}

func (o *outputs) wantedOf(node cluster.NodeID, now time.Time) (requests []agent.OutputRequest) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.forget(now)
	for _, w := range o.wanted {
		if w.Node == node {
			requests = append(requests, w.Request)
		}
	}
	return requests
}

// wanted notes on the leader what a node is to send to another manager.
func (m *Manager) wanted(_ context.Context, w api.OutputWanted) (none, error) {
	if m.node.Leadership().Role != raft.Leader {
		return none{}, unavailable("manager %s does not lead", m.settings.Node)
	}
	if len(w.Request.ID) > streamIDBytes {
		return none{}, &api.Error{Code: string(cluster.Invalid), Message: "the ID of the output is too long"}
	}
	return none{}, m.outputs.want(w, time.Now())
}

// tellLeader has the leader ask a node for output.
func (m *Manager) tellLeader(ctx context.Context, w api.OutputWanted) error {
	lead := m.node.Leadership()
	switch {
	case lead.Role == raft.Leader:
		return m.outputs.want(w, time.Now())
	case lead.Leader == "":
		return unavailable("manager %s knows no leader: an election is going on, or too few managers are running", m.settings.Node)
	}
	data, err := json.Marshal(w)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	to := cluster.NodeID(lead.Leader)
	_, err = m.peers.Exchange(ctx, m.apiOf(to), http.MethodPost, api.PathWanted, bytes.NewReader(data), nil, func(io.Reader) error { return nil })
	if err != nil && !errors.As(err, new(*api.Error)) {
		err = unavailable("manager %s cannot be reached: %v", to, err)
	}
	return err
}

// logs answers with the output of a task, as long as it lasts.
func (m *Manager) logs(w http.ResponseWriter, r *http.Request) {
	var request api.LogsRequest
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		fail(w, unreadable(r, err))
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	go func() { // ends with the request
		select {
		case <-m.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	id := rand.Text()
	from, err := m.awaitOutput(ctx, id, request)
	defer m.outputs.close(id)
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	control := http.NewResponseController(w)
	_ = control.Flush() // that there is output is worth knowing before the first line; an error shows below
	chunk := make([]byte, outputBuffer)
	for {
		n, err := from.Read(chunk)
		if n > 0 {
			// Who reads too slowly loses the connection: the node's file is the buffer, not this manager.
			if control.SetWriteDeadline(time.Now().Add(chunkTimeout)) != nil {
				return
			}
			if _, err := w.Write(chunk[:n]); err != nil || control.Flush() != nil {
				return
			}
		}
		if errors.Is(err, io.EOF) {
			_ = control.SetWriteDeadline(time.Now().Add(chunkTimeout)) // the last one may have passed in a long silence
			return
		} else if err != nil {
			panic(http.ErrAbortHandler) // so that the reader can tell that this is not the end
		}
	}
}

// awaitOutput has the node of a task send its output here.
func (m *Manager) awaitOutput(ctx context.Context, id string, r api.LogsRequest) (io.Reader, error) {
	state := m.machine.View()
	t := state.Tasks[r.Task]
	switch {
	case r.Tail < 0 || r.Tail > maxLogsTail:
		return nil, &api.Error{Code: string(cluster.Invalid), Message: fmt.Sprintf("tail %d: want 0, for everything, to %d lines", r.Tail, maxLogsTail)}
	case t == nil:
		return nil, &api.Error{Code: string(cluster.NotFound), Message: fmt.Sprintf("no task %q", r.Task)}
	case t.Node == "":
		return nil, &api.Error{Code: string(cluster.Conflict), Message: fmt.Sprintf("task %s has no node yet, so it has written nothing", t.ID)}
	}
	if n := state.Nodes[t.Node]; n == nil || n.Status == cluster.NodeDown {
		return nil, &api.Error{Code: string(cluster.Conflict), Message: fmt.Sprintf("the output of task %s is on node %s, which is not there now", t.ID, t.Node)}
	}
	s, err := m.outputs.open(ctx, id, t.Node)
	if err != nil {
		return nil, err
	}
	err = m.tellLeader(ctx, api.OutputWanted{Node: t.Node, Request: agent.OutputRequest{
		ID: id, Task: t.ID, Manager: m.self.API, Follow: r.Follow, Tail: r.Tail,
	}})
	if err != nil {
		return nil, err
	}
	timer := time.NewTimer(outputWait)
	defer timer.Stop()
	select {
	case a := <-s.from:
		if a.failure != "" {
			return nil, &api.Error{Code: string(cluster.Conflict), Message: fmt.Sprintf("node %s has no output of task %s: %s", t.Node, t.ID, a.failure)}
		}
		return a.body, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timer.C:
		return nil, unavailable("node %s has not sent the output of task %s within %v", t.Node, t.ID, outputWait)
	}
}

// output takes what a node sends. The reader reads it from the node's connection, so nothing is kept here.
func (m *Manager) output(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{}) // a task may be silent for as long as it likes
	ended := make(chan struct{})
	body := &untilEnd{r: r.Body, ended: ended}
	s, err := m.outputs.arrived(r.PathValue("id"), callerOf(r.Context()).Node, arrival{body, api.OutputFailure(r)})
	if err == nil {
		select {
		case <-ended:
		case <-s.ctx.Done():
		}
	}
	// Whatever the node still wants to send: nobody reads it. This also ends a read that waits.
	_ = control.SetReadDeadline(time.Unix(1, 0))
	_ = control.SetWriteDeadline(time.Now().Add(chunkTimeout))
	w.Header().Set("Connection", "close")
	body.stop()
	if err != nil {
		fail(w, err)
	}
}

// untilEnd is a reader that tells when there is no more to read, and can be stopped while somebody waits in it.
type untilEnd struct {
	mu    sync.Mutex // held by Read
	r     io.Reader
	once  sync.Once
	ended chan struct{}
}

func (u *untilEnd) Read(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	n, err := u.r.Read(p)
	if err != nil {
		u.once.Do(func() { close(u.ended) })
	}
	return n, err
}

// stop waits for a read under way, and lets no other one begin: the request's body is nobody's when its handler has returned.
func (u *untilEnd) stop() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.r = gone{}
}

type gone struct{}

func (gone) Read([]byte) (int, error) { return 0, io.ErrClosedPipe }

// patiently serves a request that may take long: the deadlines of the connection are for requests that come slowly, not for answers
// that take their time. The body has been read before.
func patiently(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // an error means that the connection is gone
		next(w, r)
	}
}
