package processes

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
)

// fleet is a cluster of member processes, as its operator sees it.
type fleet struct {
	t       *testing.T
	members []*member
	conf    raft.Configuration
}

// member is one server: what it is told, and the process that runs, if one does.
type member struct {
	settings
	logPath string

	mu   sync.Mutex
	proc *process
}

// process is one life of a member.
type process struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	ready chan struct{} // closed when its node runs
	ended chan struct{} // closed when it has ended and was waited for
	err   error         // after ended: how

	nonsense error // what it said is no reply

	mu    sync.Mutex
	next  uint64
	calls map[uint64]chan reply // nil: it has ended
}

// errGone says that a member's process is not there, or ended before it answered. What it was asked may have happened.
var errGone = errors.New("the member's process is gone")

// newFleet founds a cluster of n members. Their data is in dirs, or, where there are none, in directories of the test's own.
func newFleet(t *testing.T, n int, dirs ...string) *fleet {
	f := &fleet{t: t, conf: raft.Configuration{ClusterID: clusterID}}
	// Where all of 127/8 is this machine, no other process has the ports of so odd an address, and they are free after every kill.
	host := "127.0.0.1"
	if runtime.GOOS == "linux" {
		host = fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(250), 1+rand.IntN(250), 1+rand.IntN(250))
	}
	base := t.TempDir()
	for i := range n {
		m := &member{settings: settings{ID: raft.NodeID(fmt.Sprint("n", i+1)), Listen: fmt.Sprintf("%s:%d", host, 20000+rand.IntN(10000)),
			MinSegment: 64 << 10, MaxSegment: 256 << 10, SnapshotEntries: 2000, TrailingEntries: 200, DiskDeadline: 10 * time.Second}}
		m.Dir = filepath.Join(base, string(m.ID))
		if i < len(dirs) {
			m.Dir = dirs[i]
		}
		m.logPath = filepath.Join(base, string(m.ID)+".log")
		f.members = append(f.members, m)
		f.conf.Servers = append(f.conf.Servers, raft.Server{ID: m.ID, Address: m.Listen})
	}
	for _, m := range f.members {
		require.NoError(t, raft.Bootstrap(t.Context(), m.storage(nil), m.ID, f.conf))
	}
	t.Cleanup(func() {
		for _, m := range f.members {
			if p := m.process(); p != nil {
				p.kill()
			}
			if t.Failed() {
				t.Logf("the end of what %s said:\n%s", m.ID, m.said(8<<10))
			}
		}
	})
	return f
}

func (m *member) process() *process {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.proc
}

// said returns the end of a member's log.
func (m *member) said(n int) string {
	b, err := os.ReadFile(m.logPath)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-n):])
}

// start starts the member's process, and does not wait until it is ready.
func (f *fleet) start(m *member) *process {
	f.t.Helper()
	self, err := os.Executable()
	require.NoError(f.t, err)
	text, err := json.Marshal(m.settings)
	require.NoError(f.t, err)
	log, err := os.OpenFile(m.logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(f.t, err)
	defer log.Close()
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), memberVariable+"="+string(text))
	cmd.Stderr = log
	stdin, err := cmd.StdinPipe()
	require.NoError(f.t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(f.t, err)
	require.NoError(f.t, cmd.Start())
	p := &process{cmd: cmd, stdin: stdin, ready: make(chan struct{}), ended: make(chan struct{}), calls: map[uint64]chan reply{}}
	go p.listen(stdout)
	m.mu.Lock()
	m.proc = p
	m.mu.Unlock()
	return p
}

// listen hands out what the process answers, until it ends.
func (p *process) listen(stdout io.Reader) {
	in := json.NewDecoder(bufio.NewReader(stdout))
	for {
		var rep reply
		if err := in.Decode(&rep); err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				p.nonsense = err
				_ = p.cmd.Process.Kill() // it may have ended already
			}
			break // the end, perhaps in the middle of a reply
		}
		if rep.ID == 0 {
			close(p.ready)
			continue
		}
		p.mu.Lock()
		ch := p.calls[rep.ID]
		delete(p.calls, rep.ID)
		p.mu.Unlock()
		if ch != nil {
			ch <- rep
		}
	}
	p.err = errors.Join(p.nonsense, p.cmd.Wait())
	p.mu.Lock()
	calls := p.calls
	p.calls = nil
	p.mu.Unlock()
	for _, ch := range calls {
		close(ch)
	}
	close(p.ended)
}

// kill ends the process with SIGKILL, and waits for its end.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended already
	<-p.ended
}

// ask sends a request and waits for the reply.
func (m *member) ask(req request) (reply, error) {
	p := m.process()
	if p == nil {
		return reply{}, errGone
	}
	if req.Limit == 0 {
		req.Limit = 20 * time.Second
	}
	ch := make(chan reply, 1)
	p.mu.Lock()
	if p.calls == nil {
		p.mu.Unlock()
		return reply{}, errGone
	}
	p.next++
	req.ID = p.next
	p.calls[req.ID] = ch
	line, err := json.Marshal(req)
	if err == nil {
		_, _ = p.stdin.Write(append(line, '\n')) // after its end this is an error, and the channel is closed
	} else {
		delete(p.calls, req.ID)
		close(ch)
	}
	p.mu.Unlock()
	rep, ok := <-ch
	if !ok {
		return reply{}, errGone
	}
	return rep, nil
}

// awaitReady waits until the nodes run. A process that ends instead fails the test.
func (f *fleet) awaitReady(members ...*member) {
	f.t.Helper()
	for _, m := range members {
		p := m.process()
		select {
		case <-p.ready:
		case <-p.ended:
			require.FailNow(f.t, fmt.Sprintf("%s does not start: %v", m.ID, p.err), m.said(2<<10))
		case <-time.After(patience):
			require.FailNow(f.t, fmt.Sprintf("%s does not start", m.ID), m.said(2<<10))
		}
	}
}

func (f *fleet) startAll() {
	f.t.Helper()
	for _, m := range f.members {
		f.start(m)
	}
	f.awaitReady(f.members...)
}

// stop lets members end by themselves.
func (f *fleet) stop(members ...*member) {
	f.t.Helper()
	for _, m := range members {
		p := m.process()
		require.NoError(f.t, p.stdin.Close())
	}
	for _, m := range members {
		p := m.process()
		select {
		case <-p.ended:
			require.NoError(f.t, p.err, "%s: %s", m.ID, m.said(2<<10))
		case <-time.After(patience):
			require.FailNow(f.t, string(m.ID)+" does not stop", m.said(2<<10))
		}
	}
}

func (m *member) status() (status, error) {
	rep, err := m.ask(request{Op: "status"})
	if err != nil {
		return status{}, err
	}
	var st status
	return st, json.Unmarshal(rep.Status, &st)
}

// leader waits for a member that leads.
func (f *fleet) leader() *member {
	f.t.Helper()
	var found *member
	f.eventually("a leader", func() bool {
		for _, m := range f.members {
			if st, err := m.status(); err == nil && st.Role == "leader" {
				found = m
				return true
			}
		}
		return false
	})
	return found
}

func (f *fleet) others(m *member) []*member {
	var others []*member
	for _, o := range f.members {
		if o != m {
			others = append(others, o)
		}
	}
	return others
}

// patience is how long something may take that usually takes a fraction of a second.
const patience = 90 * time.Second

func (f *fleet) eventually(what string, ok func() bool) {
	f.t.Helper()
	require.Eventually(f.t, ok, patience, 10*time.Millisecond, what)
}

// pause waits, unless ctx ends before.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func upTo(r *rand.Rand, d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d) + 1)) }
