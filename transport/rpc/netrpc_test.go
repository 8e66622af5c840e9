package rpc_test

import (
	"context"
	"errors"
	"io"
	"net"
	netrpc "net/rpc"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/transport/rpc"
	"github.com/steadyraft/raft/transport/transporttest"
)

// This file shows an embedder's part over net/rpc: a client, and a service that would call raft.Node. net/rpc cannot stream, so a
// snapshot is a session of several calls.

// client implements rpc.Client.
type client struct {
	mu    sync.Mutex
	conns map[string]*netrpc.Client
}

func (c *client) connect(ctx context.Context, address string) (*netrpc.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if conn := c.conns[address]; conn != nil {
		return conn, nil
	}
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c.conns[address] = netrpc.NewClient(raw)
	return c.conns[address], nil
}

// forget drops a connection that is broken.
func (c *client) forget(address string, conn *netrpc.Client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conns[address] == conn {
		delete(c.conns, address)
	}
	_ = conn.Close() // it may be closed already
}

func (c *client) close() {
	for address, conn := range c.conns {
		c.forget(address, conn)
	}
}

func (c *client) invoke(ctx context.Context, address, method string, request, reply any) error {
	conn, err := c.connect(ctx, address)
	if err != nil {
		return err
	}
	call := conn.Go(method, request, reply, make(chan *netrpc.Call, 1))
	select {
	case <-call.Done:
		var answered netrpc.ServerError
		if call.Error != nil && !errors.As(call.Error, &answered) {
			c.forget(address, conn)
		}
		return call.Error
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *client) Call(ctx context.Context, to raft.Server, m raft.Message) (raft.Message, error) {
	request, err := rpc.Encode(m)
	if err != nil {
		return raft.Message{}, err
	}
	var reply []byte
	if err := c.invoke(ctx, to.Address, "Raft.Handle", request, &reply); err != nil || len(reply) == 0 {
		return raft.Message{}, err
	}
	return rpc.Decode(reply)
}

func (c *client) CallSnapshot(ctx context.Context, to raft.Server, m raft.Message, r io.Reader) (raft.Message, error) {
	request, err := rpc.Encode(m)
	if err != nil {
		return raft.Message{}, err
	}
	// A session that was opened must be told its end, so the calls outlive ctx, though not for long.
	calls, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	var session uint64
	if err := c.invoke(calls, to.Address, "Raft.OpenSnapshot", request, &session); err != nil {
		return raft.Message{}, err
	}
	buffer := make([]byte, 256<<10)
	for {
		n, err := io.ReadFull(r, buffer)
		ended := err == io.EOF || err == io.ErrUnexpectedEOF
		chunk := Chunk{Session: session, Data: buffer[:n], End: ended}
		if err != nil && !ended {
			chunk = Chunk{Session: session, Error: err.Error()}
		}
		if ctx.Err() != nil {
			chunk = Chunk{Session: session, Error: ctx.Err().Error()}
		}
		var reply []byte
		if err := c.invoke(calls, to.Address, "Raft.WriteSnapshot", chunk, &reply); err != nil {
			return raft.Message{}, err
		}
		switch {
		case len(reply) > 0:
			return rpc.Decode(reply)
		case chunk.End:
			return raft.Message{}, nil
		}
	}
}

// Chunk is a piece of a snapshot.
type Chunk struct {
	Session uint64
	Data    []byte
	End     bool
	Error   string
}

// node is what the service needs of a raft.Node.
type node interface {
	Handle(ctx context.Context, m raft.Message) (raft.Message, error)
	InstallSnapshot(ctx context.Context, m raft.Message, r io.Reader) (raft.Message, error)
}

// Service is the receiving side.
type Service struct {
	ctx  context.Context
	node node

	mu       sync.Mutex
	sessions map[uint64]*session
	last     uint64
}

type session struct {
	w     *io.PipeWriter
	reply raft.Message
	err   error
	done  chan struct{}
}

// Handle carries every request but snapshots.
func (s *Service) Handle(request []byte, reply *[]byte) error {
	m, err := rpc.Decode(request)
	if err != nil {
		return err
	}
	answer, err := s.node.Handle(s.ctx, m)
	if err != nil || answer.Body == nil {
		return err
	}
	*reply, err = rpc.Encode(answer)
	return err
}

// OpenSnapshot begins a snapshot.
func (s *Service) OpenSnapshot(request []byte, id *uint64) error {
	m, err := rpc.Decode(request)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	session := &session{w: w, done: make(chan struct{})}
	s.mu.Lock()
	s.last++
	*id = s.last
	s.sessions[*id] = session
	s.mu.Unlock()
	go func() {
		defer close(session.done)
		defer context.AfterFunc(s.ctx, func() { w.CloseWithError(s.ctx.Err()) })()
		session.reply, session.err = s.node.InstallSnapshot(s.ctx, m, r)
		if session.err != nil {
			r.CloseWithError(session.err)
		}
	}()
	return nil
}

// WriteSnapshot takes a piece of a snapshot.
func (s *Service) WriteSnapshot(c Chunk, reply *[]byte) error {
	s.mu.Lock()
	session := s.sessions[c.Session]
	s.mu.Unlock()
	if session == nil {
		return errors.New("no such snapshot")
	}
	_, err := session.w.Write(c.Data)
	switch {
	case c.Error != "":
		session.w.CloseWithError(errors.New(c.Error))
	case c.End || err != nil:
		session.w.Close()
	default:
		return nil
	}
	select {
	case <-session.done:
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
	s.mu.Lock()
	delete(s.sessions, c.Session)
	s.mu.Unlock()
	if c.Error != "" {
		return errors.New(c.Error)
	}
	if session.err != nil || session.reply.Body == nil {
		return session.err
	}
	*reply, err = rpc.Encode(session.reply)
	return err
}

// endpoint is a transport together with its service, so that closing the one ends the other.
type endpoint struct {
	*rpc.Transport
	client   *client
	listener net.Listener
	serve    func(handler raft.Handler) node
	cancel   context.CancelFunc
	ctx      context.Context
	serving  sync.WaitGroup

	mu     sync.Mutex
	closed bool
	conns  []net.Conn
}

func newEndpoint(t *testing.T, serve func(raft.Handler) node) *endpoint {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	c := &client{conns: make(map[string]*netrpc.Client)}
	tr, err := rpc.New(rpc.Config{Client: c, ControlTimeout: 20 * time.Second})
	require.NoError(t, err)
	e := &endpoint{Transport: tr, client: c, listener: l, serve: serve}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	return e
}

func (e *endpoint) Start(id raft.Identity, h raft.Handler) error {
	if err := e.Transport.Start(id, h); err != nil {
		return err
	}
	server := netrpc.NewServer()
	if err := server.RegisterName("Raft", &Service{ctx: e.ctx, node: e.serve(h), sessions: make(map[uint64]*session)}); err != nil {
		return err
	}
	e.serving.Go(func() {
		for {
			conn, err := e.listener.Accept()
			if err != nil {
				return
			}
			e.mu.Lock()
			if e.closed {
				_ = conn.Close() // nothing was said yet
			} else {
				e.conns = append(e.conns, conn)
				e.serving.Go(func() { server.ServeConn(conn) })
			}
			e.mu.Unlock()
		}
	})
	return nil
}

func (e *endpoint) Close() error {
	e.mu.Lock()
	first := !e.closed
	e.closed = true
	e.mu.Unlock()
	if first {
		e.cancel()
		_ = e.listener.Close() // the first call cannot be too late
		for _, conn := range e.conns {
			_ = conn.Close() // the other side may have been faster
		}
	}
	err := e.Transport.Close()
	if first {
		e.client.close()
	}
	e.serving.Wait()
	return err
}

// pass stands for a node that hands everything to the transport's handler and has no reply.
type pass struct{ raft.Handler }

func (p pass) Handle(_ context.Context, m raft.Message) (raft.Message, error) {
	p.HandleMessages([]raft.Message{m})
	return raft.Message{}, nil
}

func (p pass) InstallSnapshot(ctx context.Context, m raft.Message, r io.Reader) (raft.Message, error) {
	return raft.Message{}, p.HandleSnapshot(ctx, m, r)
}

// cluster refuses other clusters, as an embedder's authentication does.
type cluster struct {
	pass
	reject bool
}

func (c cluster) Handle(ctx context.Context, m raft.Message) (raft.Message, error) {
	if c.reject || m.From == "s" { // the suite's stranger
		return raft.Message{}, errors.New("other cluster")
	}
	return c.pass.Handle(ctx, m)
}

func TestConformanceOverNetRPC(t *testing.T) {
	transporttest.Run(t, transporttest.Options{RequestsOnly: true}, func(t *testing.T) transporttest.Network {
		return func(id raft.NodeID) transporttest.Endpoint {
			e := newEndpoint(t, func(h raft.Handler) node { return cluster{pass{h}, id == "s"} })
			return transporttest.Endpoint{Transport: e, Address: e.listener.Addr().String()}
		}
	})
}
