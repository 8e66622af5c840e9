// Package publish is a node's proxy for published ports: it listens on each of them on the node's own address and spreads the TCP
// connections over the service's tasks, wherever they run. It works from the last table that it was given and so goes on when no
// manager answers.
package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Backend is one task that takes traffic.
type Backend struct {
	ID      string `json:"id"`      // of the task; with the address, its identity across tables
	Address string `json:"address"` // host:port
}

// Table says which tasks stand behind which published port.
type Table map[uint16][]Backend

// Options configures a Proxy. The zero value of every field but Host is its default.
type Options struct {
	Host           string        // address to listen on
	MaxConnections int           // per port; further ones wait in the system's backlog. Default 1,024
	ConnectTimeout time.Duration // one attempt to reach a backend. Default 1 s
	HoldTimeout    time.Duration // how long a connection waits for any backend that answers. Default 5 s
	SilentAfter    time.Duration // a backend that has not answered a connection's first bytes by then is avoided. Default 1 s
	TrialInterval  time.Duration // how often one connection is tried with a backend that is avoided. Default 5 s
	IdleTimeout    time.Duration // a connection silent both ways is closed after one to three times this. Default 15 min
	DrainTimeout   time.Duration // what connections to a backend that left the table get to finish. Default 10 s
	RetryInterval  time.Duration // between attempts to listen on a port that is in use. Default 1 s
	Logger         *slog.Logger  // default: none
}

func (o *Options) fill() {
	setDefault(&o.MaxConnections, 1024)
	setDefault(&o.ConnectTimeout, time.Second)
	setDefault(&o.HoldTimeout, 5*time.Second)
	setDefault(&o.SilentAfter, time.Second)
	setDefault(&o.TrialInterval, 5*time.Second)
	setDefault(&o.IdleTimeout, 15*time.Minute)
	setDefault(&o.DrainTimeout, 10*time.Second)
	setDefault(&o.RetryInterval, time.Second)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

func setDefault[T int | time.Duration](field *T, value T) {
	if *field <= 0 {
		*field = value
	}
}

// Proxy serves the published ports of one node.
type Proxy struct {
	opts    Options
	life    context.Context // done when the proxy closes: everything is cut
	cut     context.CancelFunc
	running sync.WaitGroup // every goroutine
	mu      sync.Mutex     // guards what follows
	ports   map[uint16]*port
	closed  bool
}

// New returns a proxy that listens nowhere until Set gives it a table. Close it.
func New(opts Options) *Proxy {
	opts.fill()
	p := &Proxy{opts: opts, ports: make(map[uint16]*port)}
	p.life, p.cut = context.WithCancel(context.Background())
	return p
}

// Set replaces the table. New ports are listened on, ports that are gone are closed, and connections to tasks that are gone get
// Options.DrainTimeout to finish. It does not block on the network. The table is not kept.
func (p *Proxy) Set(table Table) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	for number, old := range p.ports {
		if _, ok := table[number]; !ok {
			old.setBackends(nil)
			old.stopListening()
			<-old.stopped // or a port that soon comes back would find itself in use
			delete(p.ports, number)
		}
	}
	for number, backends := range table {
		current, ok := p.ports[number]
		if !ok {
			current = p.newPort(number)
			p.ports[number] = current
		}
		current.setBackends(backends)
	}
}

// Problems says for each port that cannot be listened on why, in words for an operator.
func (p *Proxy) Problems() map[uint16]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	problems := make(map[uint16]string)
	for number, port := range p.ports {
		if problem := port.problem.Load(); problem != nil {
			problems[number] = *problem
		}
	}
	return problems
}

// Close stops listening, cuts all connections, and returns when everything has ended.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true
	p.ports = nil
	p.mu.Unlock()
	p.cut()
	p.running.Wait()
}

// backend is a Backend with its traffic. One object lives as long as the task is in the table, and then until its connections end.
type backend struct {
	Backend
	active atomic.Int64
	gone   context.Context // done when the connections that are left must be cut
	cut    context.CancelFunc
	drain  *time.Timer               // calls cut; nil while it is in the table
	silent atomic.Pointer[time.Time] // since when it is avoided, or was last tried; nil: it answers
}

// choice is one published table row: what a connection chooses from, and how it learns that there is a newer one.
type choice struct {
	backends []*backend
	replaced chan struct{} // closed when it is
}

type port struct {
	*Proxy
	number   uint16
	backends map[Backend]*backend   // those of the table and those that drain; guarded by Proxy.mu
	current  atomic.Pointer[choice] // what connections see; written under Proxy.mu
	problem  atomic.Pointer[string] // why it does not listen
	slots    chan struct{}          // one per connection

	listening     context.Context // done when no new connections are wanted
	stopListening context.CancelFunc
	stopped       chan struct{} // closed when the listener is
}

func (p *Proxy) newPort(number uint16) *port {
	port := &port{
		Proxy: p, number: number, backends: make(map[Backend]*backend),
		slots: make(chan struct{}, p.opts.MaxConnections), stopped: make(chan struct{}),
	}
	port.listening, port.stopListening = context.WithCancel(p.life)
	port.current.Store(&choice{replaced: make(chan struct{})})
	p.running.Go(port.listen)
	return port
}

// setBackends swaps the table row in one step. A backend that stays, or comes back before it is drained, keeps its object and so its
// connections and their count.
func (p *port) setBackends(wanted []Backend) {
	next := &choice{replaced: make(chan struct{})}
	inTable := make(map[Backend]bool, len(wanted))
	for _, w := range wanted {
		if inTable[w] {
			continue
		}
		inTable[w] = true
		b, ok := p.backends[w]
		if ok && b.drain != nil {
			ok = b.drain.Stop() // too late if it has been cut
			b.drain = nil
		}
		if !ok {
			b = &backend{Backend: w}
			b.gone, b.cut = context.WithCancel(p.life)
			p.backends[w] = b
		}
		next.backends = append(next.backends, b)
	}
	close(p.current.Swap(next).replaced)
	for w, b := range p.backends { // no new connections for them, and the old ones have a while
		switch {
		case inTable[w]:
		case b.drain == nil:
			b.drain = time.AfterFunc(p.opts.DrainTimeout, b.cut)
		case b.gone.Err() != nil:
			delete(p.backends, w)
		}
	}
}

// listen opens the port, again and again while it is in use, and serves it.
func (p *port) listen() {
	defer close(p.stopped)
	address := net.JoinHostPort(p.opts.Host, strconv.Itoa(int(p.number)))
	for p.listening.Err() == nil {
		listener, err := (&net.ListenConfig{}).Listen(p.listening, "tcp", address)
		if err == nil {
			if p.problem.Swap(nil) != nil {
				p.opts.Logger.Info("published port is open", "address", address)
			}
			err = p.serve(listener)
			if p.listening.Err() != nil {
				return
			}
		}
		problem := fmt.Sprintf("published port %d: %v; free the port or publish another one; trying again every %v",
			p.number, err, p.opts.RetryInterval)
		if was := p.problem.Swap(&problem); was == nil || *was != problem {
			p.opts.Logger.Error(problem)
		}
		select {
		case <-p.listening.Done():
		case <-time.After(p.opts.RetryInterval):
		}
	}
}

// serve accepts until the listener fails or is no longer wanted.
func (p *port) serve(listener net.Listener) error {
	defer listener.Close()
	defer context.AfterFunc(p.listening, func() { _ = listener.Close() })() // ends Accept
	for {
		// A slot first, then a connection: at the limit, clients wait in the backlog instead of being refused.
		select {
		case p.slots <- struct{}{}:
		case <-p.listening.Done():
			return nil
		}
		conn, err := listener.Accept()
		if err != nil {
			<-p.slots
			return err
		}
		p.running.Go(func() {
			defer func() { <-p.slots }()
			p.handle(conn.(*net.TCPConn))
		})
	}
}

func (p *port) handle(client *net.TCPConn) {
	defer client.Close()
	b, server, err := p.connect()
	if err != nil {
		reset(client)
		p.opts.Logger.Warn("connection refused", "port", p.number, "error", err)
		return
	}
	defer b.active.Add(-1)
	defer server.Close()
	defer context.AfterFunc(b.gone, func() { reset(client, server) })()
	a := &answer{port: p, backend: b}
	a.overdue = time.AfterFunc(time.Hour, a.missing)
	a.overdue.Stop()
	defer a.overdue.Stop()
	pipe(client, server, p.opts.IdleTimeout, a)
}

// answer is what is still to come on a connection: the backend's first bytes, once the client has said something.
//
// The kernel of a machine, a container or a process that stands still goes on accepting connections and bytes. Only that no answer comes
// tells, and it may as well be a slow one. So the connection waits on: what its client has asked for may have been done, and is not known
// to bear being done twice. Those that come after it go elsewhere, as long as there is an elsewhere.
type answer struct {
	port    *port
	backend *backend
	overdue *time.Timer
	came    atomic.Bool
}

// asked is called with the first bytes of the client.
func (a *answer) asked() {
	if a.came.Load() {
		return // the backend speaks first
	}
	a.overdue.Reset(a.port.opts.SilentAfter)
	if a.came.Load() {
		a.overdue.Stop()
	}
}

// arrived is called with the first bytes of the backend, or its orderly end.
func (a *answer) arrived() {
	a.came.Store(true)
	a.overdue.Stop()
	a.port.trust(a.backend)
}

func (a *answer) missing() {
	if !a.came.Load() {
		a.port.avoid(a.backend)
	}
}

// avoid has new connections go to other backends first.
func (p *port) avoid(b *backend) {
	now := time.Now()
	if b.silent.Swap(&now) == nil {
		p.opts.Logger.Warn("a task does not answer; others are asked first", "port", p.number, "task", b.ID, "address", b.Address)
	}
}

func (p *port) trust(b *backend) {
	if b.silent.Load() != nil && b.silent.Swap(nil) != nil {
		p.opts.Logger.Info("a task answers again", "port", p.number, "task", b.ID, "address", b.Address)
	}
}

// groups returns the backends in the order in which a connection tries them: one that is avoided and due for a trial, those that
// answer, and those that are avoided.
func (p *port) groups(all []*backend) (groups [3][]*backend) {
	for _, b := range all {
		group, now := 1, time.Now()
		if since := b.silent.Load(); since != nil {
			group = 2
			if len(groups[0]) == 0 && now.Sub(*since) >= p.opts.TrialInterval && b.silent.CompareAndSwap(since, &now) {
				group = 0
			}
		}
		groups[group] = append(groups[group], b)
	}
	return groups
}

var errNoBackend = errors.New("the service has no healthy task")

// connect reaches a backend, and counts the connection at it. Each one of the table is tried once; if none answers, it waits for a new
// table or a little while, since tasks crash and return faster than a client gives up. A connection attempt has carried no byte of
// the client's, so trying elsewhere repeats nothing.
func (p *port) connect() (*backend, *net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(p.life, p.opts.HoldTimeout)
	defer cancel()
	last := errNoBackend
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		choice := p.current.Load()
		for _, left := range p.groups(choice.backends) {
			for len(left) > 0 {
				b := take(&left)
				conn, err := p.dial(ctx, b)
				if err == nil {
					return b, conn, nil
				}
				last = fmt.Errorf("task %s: %w", b.ID, err)
				if ctx.Err() != nil {
					return nil, nil, last
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil, nil, last
		case <-choice.replaced:
		case <-time.After(pause):
		}
	}
}

// dial connects to a backend and counts the connection at it.
func (p *port) dial(ctx context.Context, b *backend) (*net.TCPConn, error) {
	b.active.Add(1) // before the dial, so that a burst does not see the same idle backend
	attempt, cancel := context.WithTimeout(ctx, p.opts.ConnectTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(attempt, "tcp", b.Address)
	switch {
	case err == nil && conn.LocalAddr().String() == b.Address:
		// The system lets a socket connect to itself when nobody listens on a port of the range it takes local ports from.
		_ = conn.Close()
		err = fmt.Errorf("%s: connected to itself", b.Address)
	case err == nil:
		return conn.(*net.TCPConn), nil
	case attempt.Err() != nil && ctx.Err() == nil: // its machine is away, and the next connection does not have to wait as well
		p.avoid(b)
	}
	b.active.Add(-1)
	return nil, err
}

// take removes the less busy of two backends chosen at random. Unlike "the least busy of all" it does not send every node's next
// connection to the same one, and it is nearly as even.
func take(left *[]*backend) *backend {
	all := *left
	i := rand.IntN(len(all))
	if len(all) > 1 {
		j := rand.IntN(len(all) - 1)
		if j >= i {
			j++
		}
		if all[j].active.Load() < all[i].active.Load() {
			i = j
		}
	}
	chosen := all[i]
	all[i] = all[len(all)-1]
	*left = all[:len(all)-1]
	return chosen
}

// pipe copies both ways until both ends are through, one of them fails, or both are silent for too long.
func pipe(client, server *net.TCPConn, idle time.Duration, a *answer) {
	var traffic atomic.Int64
	var both sync.WaitGroup
	one := func(dst, src *net.TCPConn, began func(any bool)) {
		if copyUntilIdle(dst, src, idle, &traffic, began) != nil || dst.CloseWrite() != nil {
			reset(client, server) // ends the other direction as well
		}
	}
	both.Go(func() {
		one(server, client, func(any bool) {
			if any {
				a.asked()
			}
		})
	})
	both.Go(func() { one(client, server, func(bool) { a.arrived() }) })
	both.Wait()
}

// reset closes connections so that the peers see an error. An orderly end would make half an answer look like a whole one.
func reset(conns ...*net.TCPConn) {
	for _, conn := range conns {
		_ = conn.SetLinger(0)
		_ = conn.Close()
	}
}

// copyUntilIdle copies src to dst to its end, and calls began when that sends its first bytes, or ends without any. io.Copy lets the kernel
// move the bytes, at the price that it cannot be watched from outside: a read deadline interrupts it every now and then to look whether
// anything has moved in either direction.
func copyUntilIdle(dst, src *net.TCPConn, idle time.Duration, traffic *atomic.Int64, began func(any bool)) error {
	begun := false
	seen, silent := int64(-1), 0
	for {
		if err := src.SetReadDeadline(time.Now().Add(idle)); err != nil {
			return err
		}
		var n int64
		var err error
		if !begun {
			n, err = copyFirst(dst, src, began)
			begun = n > 0
		}
		if begun && err == nil {
			var more int64
			more, err = io.Copy(dst, src)
			n += more
		}
		now := traffic.Add(n)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err // nil at the end of src
		}
		// The other direction counts only when its own deadline interrupts it, so one silent look proves nothing.
		if silent++; now != seen {
			seen, silent = now, 0
		}
		if silent >= 2 {
			return err
		}
	}
}

// copyFirst copies what src sends first; nothing, and no error, if that is its end.
func copyFirst(dst, src *net.TCPConn, began func(any bool)) (int64, error) {
	buffer := make([]byte, 4096)
	n, err := src.Read(buffer)
	if err == nil || errors.Is(err, io.EOF) {
		began(n > 0)
	}
	if errors.Is(err, io.EOF) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	written, err := dst.Write(buffer[:n])
	return int64(written), err
}
