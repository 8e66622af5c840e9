package publish_test

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/steadyraft/raft/examples/orchestrator/publish"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = time.Minute

// server is a task: it reads a request to its end and answers with its name and the request.
type server struct {
	name     string
	listener net.Listener
	served   atomic.Int64
	running  sync.WaitGroup
}

func serve(t *testing.T, name string) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &server{name: name, listener: l}
	s.work()
	t.Cleanup(s.close)
	return s
}

func (s *server) work() {
	s.running.Go(func() {
		for {
			conn, err := s.listener.Accept()
			if err != nil {
				return
			}
			s.running.Go(func() {
				defer conn.Close()
				request, err := io.ReadAll(conn)
				if err != nil {
					return
				}
				s.served.Add(1)
				_, _ = conn.Write(append([]byte(s.name+":"), request...)) // the client checks
			})
		}
	})
}

// close is a graceful stop: no new connections, those that are open are answered.
func (s *server) close() {
	_ = s.listener.Close()
	s.running.Wait()
}

func (s *server) backend() publish.Backend {
	return publish.Backend{ID: s.name, Address: s.listener.Addr().String()}
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func newProxy(t *testing.T, opts publish.Options) *publish.Proxy {
	t.Helper()
	opts.Host = "127.0.0.1"
	p := publish.New(opts)
	t.Cleanup(p.Close)
	return p
}

func address(port uint16) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))) }

func dial(t *testing.T, port uint16) *net.TCPConn {
	t.Helper()
	var conn net.Conn
	require.EventuallyWithT(t, func(c *assert.CollectT) { // the proxy opens its ports in the background
		var err error
		conn, err = net.Dial("tcp", address(port))
		require.NoError(c, err)
	}, patience, time.Millisecond)
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	t.Cleanup(func() { _ = conn.Close() })
	return conn.(*net.TCPConn)
}

// request sends body, closes its half, and returns the whole answer.
func request(conn *net.TCPConn, body string) (string, error) {
	_, err := conn.Write([]byte(body))
	answer, err2 := []byte(nil), conn.CloseWrite()
	if err == nil && err2 == nil {
		answer, err = io.ReadAll(conn)
	}
	return string(answer), errors.Join(err, err2)
}

func TestHalfClosePassesThroughBothWays(t *testing.T) {
	s := serve(t, "a")
	port := freePort(t)
	newProxy(t, publish.Options{}).Set(publish.Table{port: {s.backend()}})
	// The server answers only after it has seen the end of the request, and the client reads after it has sent it.
	body := string(bytes.Repeat([]byte("0123456789abcdef"), 1<<16))
	answer, err := request(dial(t, port), body)
	require.NoError(t, err)
	require.Equal(t, "a:"+body, answer)
}

func TestDeadBackendIsSkipped(t *testing.T) {
	live, dead := serve(t, "live"), serve(t, "dead")
	dead.close()
	port := freePort(t)
	newProxy(t, publish.Options{}).Set(publish.Table{port: {dead.backend(), live.backend()}})
	for range 20 {
		answer, err := request(dial(t, port), "x")
		require.NoError(t, err)
		require.Equal(t, "live:x", answer)
	}
}

// frozen is a task that stands still: its kernel accepts connections, and nobody answers them, until it goes on.
func frozen(t *testing.T, name string) (b publish.Backend, goOn func() *server) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &server{name: name, listener: l}
	t.Cleanup(s.close)
	return s.backend(), func() *server { s.work(); return s }
}

// notices hands on what a proxy logs.
type notices chan string

func (n notices) Write(line []byte) (int, error) {
	n <- string(line)
	return len(line), nil
}

func (n notices) await(t *testing.T, text string) {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case line := <-n:
			if strings.Contains(line, text) {
				return
			}
		case <-deadline:
			require.Fail(t, "not logged: "+text)
		}
	}
}

func (n notices) logger() *slog.Logger { return slog.New(slog.NewTextHandler(n, nil)) }

// A connection whose backend does not answer waits on, and nothing of it is sent elsewhere. Those that come later do not meet that backend
// any more, until it has answered.
func TestBackendThatStandsStillIsLeft(t *testing.T) {
	live := serve(t, "live")
	still, goOn := frozen(t, "still")
	port := freePort(t)
	log := make(notices, 1000)
	newProxy(t, publish.Options{SilentAfter: 50 * time.Millisecond, TrialInterval: time.Hour, Logger: log.logger()}).
		Set(publish.Table{port: {still, live.backend()}})
	type result struct {
		answer string
		err    error
	}
	results := make(chan result, 1000)
	asked := 0
	ask := func() {
		asked++
		conn := dial(t, port)
		go func() {
			answer, err := request(conn, "x")
			results <- result{answer, err}
		}()
	}
	answered := 0
	for waits := false; !waits; { // until one has met the backend that stands still
		ask()
		select {
		case r := <-results:
			require.Equal(t, result{answer: "live:x"}, r)
			answered++
		case line := <-log:
			require.Contains(t, line, "does not answer")
			require.Contains(t, line, "task=still")
			waits = true
		}
	}
	for range 50 {
		answer, err := request(dial(t, port), "y")
		require.NoError(t, err)
		require.Equal(t, "live:y", answer)
	}
	resumed := goOn()
	log.await(t, "answers again")
	waited := 0
	for ; answered < asked; answered++ {
		r := <-results
		require.NoError(t, r.err)
		if r.answer == "still:x" {
			waited++
		}
	}
	require.Positive(t, waited, "it was answered when the backend went on")
	require.EqualValues(t, waited, resumed.served.Load())
	require.EqualValues(t, asked+50-waited, live.served.Load(), "each was served once")
	require.Eventually(t, func() bool {
		answer, err := request(dial(t, port), "z")
		return err == nil && answer == "still:z"
	}, patience, time.Millisecond, "it gets new connections")
}

// unanswered has a proxy find out that a backend stands still, on a connection that it returns.
func unanswered(t *testing.T, log notices, port uint16) *net.TCPConn {
	t.Helper()
	conn := dial(t, port)
	_, err := conn.Write([]byte("x"))
	require.NoError(t, err)
	log.await(t, "does not answer")
	return conn
}

// If all are slow, or there is no other, connections go where they always do.
func TestBackendThatIsAvoidedIsBetterThanNone(t *testing.T) {
	still, goOn := frozen(t, "still")
	port := freePort(t)
	log := make(notices, 1000)
	newProxy(t, publish.Options{SilentAfter: 10 * time.Millisecond, TrialInterval: time.Hour, Logger: log.logger()}).
		Set(publish.Table{port: {still}})
	unanswered(t, log, port)
	second := dial(t, port)
	goOn()
	answer, err := request(second, "y")
	require.NoError(t, err)
	require.Equal(t, "still:y", answer)
}

// A backend that is avoided, and has no connection any more on which it could answer, is tried now and then.
func TestBackendThatIsAvoidedIsTried(t *testing.T) {
	still, goOn := frozen(t, "still")
	live := serve(t, "live")
	port := freePort(t)
	log := make(notices, 1000)
	p := newProxy(t, publish.Options{SilentAfter: 10 * time.Millisecond, TrialInterval: 10 * time.Millisecond, Logger: log.logger()})
	p.Set(publish.Table{port: {still}})
	first := unanswered(t, log, port)
	require.NoError(t, first.SetLinger(0))
	require.NoError(t, first.Close())
	p.Set(publish.Table{port: {still, live.backend()}})
	goOn()
	require.Eventually(t, func() bool {
		answer, err := request(dial(t, port), "z")
		return err == nil && answer == "still:z"
	}, patience, time.Millisecond, "it gets new connections")
}

// Who says nothing gets no answer, and that says nothing about the backend; nor does a backend that speaks first.
func TestSilenceOfTheClientIsNotTheBackends(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	port := freePort(t)
	log := make(notices, 1000)
	newProxy(t, publish.Options{SilentAfter: time.Millisecond, Logger: log.logger()}).
		Set(publish.Table{port: {{ID: "greets", Address: l.Addr().String()}}})
	client := dial(t, port)
	server, err := l.Accept()
	require.NoError(t, err)
	defer server.Close()
	defer l.Close()
	_, err = server.Write([]byte("hello"))
	require.NoError(t, err)
	greeting := make([]byte, 5)
	_, err = io.ReadFull(client, greeting)
	require.NoError(t, err)
	_, err = client.Write([]byte("x")) // and here no answer is due
	require.NoError(t, err)
	_, err = io.ReadFull(server, make([]byte, 1))
	require.NoError(t, err)
	require.NoError(t, server.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	_, err = server.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.Empty(t, log)
}

func TestConnectionWaitsForABackend(t *testing.T) {
	s := serve(t, "late")
	port := freePort(t)
	p := newProxy(t, publish.Options{HoldTimeout: patience})
	p.Set(publish.Table{port: nil})
	conn := dial(t, port)
	p.Set(publish.Table{port: {s.backend()}})
	answer, err := request(conn, "x")
	require.NoError(t, err)
	require.Equal(t, "late:x", answer)
}

func TestConnectionIsResetWhenNobodyServes(t *testing.T) {
	port := freePort(t)
	newProxy(t, publish.Options{HoldTimeout: time.Millisecond}).Set(publish.Table{port: nil})
	_, err := io.ReadAll(dial(t, port))
	require.Error(t, err, "an end of file would look like an empty answer")
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
}

// Tasks come, go and are dead before the table knows it, all the time, and no client notices.
func TestChurnFailsNoRequest(t *testing.T) {
	port := freePort(t)
	p := newProxy(t, publish.Options{})
	dead := serve(t, "dead")
	dead.close()
	servers := []*server{serve(t, "first"), serve(t, "second")}
	set := func(more ...*server) {
		var backends []publish.Backend
		for _, s := range append(more, servers...) {
			backends = append(backends, s.backend())
		}
		p.Set(publish.Table{port: backends})
	}
	set()
	_, err := request(dial(t, port), "x")
	require.NoError(t, err)

	done := make(chan struct{})
	var clients sync.WaitGroup
	var requests [8]atomic.Int64
	failures := make(chan error, len(requests))
	for i := range requests {
		clients.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := ping(port); err != nil {
					failures <- err
					return
				}
				requests[i].Add(1)
			}
		})
	}
	// settle returns when every client has begun and ended a request: none is left that has seen the table before.
	settle := func() {
		for i := range requests {
			seen := requests[i].Load()
			require.Eventually(t, func() bool { return requests[i].Load() >= seen+2 || len(failures) > 0 }, patience, time.Millisecond)
		}
	}
	for range 20 {
		servers = append(servers, serve(t, strconv.Itoa(rand.Int())))
		set(dead)
		settle()
		leaving := servers[0]
		servers = servers[1:]
		set() // out of the table first, stopped when drained
		settle()
		leaving.close()
	}
	close(done)
	clients.Wait()
	close(failures)
	require.NoError(t, <-failures)
}

func ping(port uint16) error {
	conn, err := net.Dial("tcp", address(port))
	if err != nil {
		return err
	}
	answer, err := request(conn.(*net.TCPConn), "ping")
	if err == nil && !strings.HasSuffix(answer, ":ping") {
		err = errors.New("answer " + strconv.Quote(answer))
	}
	return errors.Join(err, conn.Close())
}

func TestLoadIsSpread(t *testing.T) {
	a, b, c := serve(t, "a"), serve(t, "b"), serve(t, "c")
	port := freePort(t)
	newProxy(t, publish.Options{}).Set(publish.Table{port: {a.backend(), b.backend(), c.backend()}})
	var open []*net.TCPConn
	for range 30 {
		open = append(open, dial(t, port)) // all at once: the least busy of two keeps them even
	}
	for _, conn := range open {
		_, err := request(conn, "x")
		require.NoError(t, err)
	}
	for _, s := range []*server{a, b, c} {
		require.GreaterOrEqual(t, s.served.Load(), int64(5), s.name)
	}
}

// held opens a connection that has reached its backend: it has been echoed to.
func held(t *testing.T, port uint16) *net.TCPConn {
	conn := dial(t, port)
	_, err := conn.Write([]byte("x"))
	require.NoError(t, err)
	_, err = io.ReadFull(conn, make([]byte, 1))
	require.NoError(t, err)
	return conn
}

func echo(t *testing.T) publish.Backend {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn) // ends with the connection
			})
		}
	})
	t.Cleanup(running.Wait)
	t.Cleanup(func() { _ = l.Close() })
	return publish.Backend{ID: "echo", Address: l.Addr().String()}
}

func TestDrainCutsOldConnectionsOnlyAfterAWhile(t *testing.T) {
	backend, port := echo(t), freePort(t)
	p := newProxy(t, publish.Options{DrainTimeout: 200 * time.Millisecond})
	p.Set(publish.Table{port: {backend}})
	conn := held(t, port)
	left := time.Now()
	p.Set(publish.Table{port: nil})
	_, err := conn.Write([]byte("y"))
	require.NoError(t, err)
	_, err = io.ReadFull(conn, make([]byte, 1))
	require.NoError(t, err, "still served while it drains")
	_, err = io.ReadFull(conn, make([]byte, 1))
	require.Error(t, err)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "it was never cut")
	require.GreaterOrEqual(t, time.Since(left), 200*time.Millisecond)
}

func TestBackendThatComesBackKeepsItsConnections(t *testing.T) {
	backend, port := echo(t), freePort(t)
	p := newProxy(t, publish.Options{DrainTimeout: 50 * time.Millisecond})
	p.Set(publish.Table{port: {backend}})
	conn := held(t, port)
	p.Set(publish.Table{port: nil})
	p.Set(publish.Table{port: {backend}})
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
	_, err := conn.Read(make([]byte, 1))
	var timeout net.Error
	require.ErrorAs(t, err, &timeout)
	require.True(t, timeout.Timeout(), "the connection was cut: %v", err)
}

func TestIdleConnectionIsClosedAndABusyOneIsNot(t *testing.T) {
	port := freePort(t)
	p := newProxy(t, publish.Options{IdleTimeout: 100 * time.Millisecond})
	p.Set(publish.Table{port: {echo(t)}})
	idle, busy := held(t, port), held(t, port)
	done := make(chan error, 1)
	go func() { _, err := io.ReadAll(idle); done <- err }()
	for {
		select {
		case <-done:
			_, err := busy.Write([]byte("x"))
			require.NoError(t, err)
			_, err = io.ReadFull(busy, make([]byte, 1))
			require.NoError(t, err)
			return
		case <-time.After(20 * time.Millisecond):
			_, err := busy.Write([]byte("x"))
			require.NoError(t, err)
			_, err = io.ReadFull(busy, make([]byte, 1))
			require.NoError(t, err)
		}
	}
}

func TestPortInUseIsReportedAndRetried(t *testing.T) {
	squatter, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer squatter.Close()
	port := uint16(squatter.Addr().(*net.TCPAddr).Port)
	s := serve(t, "a")
	p := newProxy(t, publish.Options{RetryInterval: 10 * time.Millisecond})
	p.Set(publish.Table{port: {s.backend()}})
	require.Eventually(t, func() bool { return len(p.Problems()) == 1 }, patience, time.Millisecond)
	require.Contains(t, p.Problems()[port], "in use")
	require.NoError(t, squatter.Close())
	require.Eventually(t, func() bool { return len(p.Problems()) == 0 }, patience, time.Millisecond)
	answer, err := request(dial(t, port), "x")
	require.NoError(t, err)
	require.Equal(t, "a:x", answer)
}

func TestRemovedPortIsClosedAndCanComeBack(t *testing.T) {
	s, port := serve(t, "a"), freePort(t)
	p := newProxy(t, publish.Options{RetryInterval: time.Hour})
	for range 10 {
		p.Set(publish.Table{port: {s.backend()}})
		_, err := request(dial(t, port), "x")
		require.NoError(t, err)
		p.Set(nil)
		_, err = net.Dial("tcp", address(port))
		require.Error(t, err)
	}
}

func TestConnectionsBeyondTheLimitWait(t *testing.T) {
	port := freePort(t)
	p := newProxy(t, publish.Options{MaxConnections: 1})
	p.Set(publish.Table{port: {echo(t)}})
	first := held(t, port)
	second := dial(t, port) // in the backlog
	_, err := second.Write([]byte("x"))
	require.NoError(t, err)
	require.NoError(t, second.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	_, err = second.Read(make([]byte, 1))
	require.Error(t, err)
	require.NoError(t, first.Close())
	require.NoError(t, second.SetReadDeadline(time.Now().Add(patience)))
	_, err = io.ReadFull(second, make([]byte, 1))
	require.NoError(t, err)
}
