package raft_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	memstorage "github.com/steadyraft/raft/storage/memory"
	memtransport "github.com/steadyraft/raft/transport/memory"
)

// journal is a state machine that remembers every command. The result of a command is its text and its position.
type journal struct {
	mu       sync.Mutex
	commands []string
	calls    []int // how many commands each call of Apply had
	restored int
	closed   int // snapshot views

	hooks hooks
}

// hooks are what a test has a state machine do besides its work, if they are not nil. They change while the node runs: see journal.hook.
type hooks struct {
	apply    func(cmd string) error // called for each command; an error is Apply's
	snapshot func() error
	writeTo  func() error
}

// hook gives the state machine other hooks, between two of its calls or in the middle of one.
func (j *journal) hook(h hooks) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.hooks = h
}

func (j *journal) hooked() hooks {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.hooks
}

type applied struct {
	Command string
	At      int
}

func (j *journal) Apply(entries []raft.Entry, results []any) error {
	for i, e := range entries {
		if apply := j.hooked().apply; apply != nil {
			if err := apply(string(e.Data)); err != nil {
				return err
			}
		}
		j.mu.Lock()
		j.commands = append(j.commands, string(e.Data))
		results[i] = applied{string(e.Data), len(j.commands)}
		j.mu.Unlock()
	}
	j.mu.Lock()
	j.calls = append(j.calls, len(entries))
	j.mu.Unlock()
	return nil
}

type journalView struct {
	j        *journal
	commands []string
}

func (j *journal) Snapshot(context.Context) (raft.SnapshotWriter, error) {
	if snapshot := j.hooked().snapshot; snapshot != nil {
		if err := snapshot(); err != nil {
			return nil, err
		}
	}
	return journalView{j, j.all()}, nil
}

func (v journalView) WriteTo(_ context.Context, w io.Writer) error {
	if writeTo := v.j.hooked().writeTo; writeTo != nil {
		if err := writeTo(); err != nil {
			return err
		}
	}
	return json.NewEncoder(w).Encode(v.commands)
}

func (v journalView) Close() {
	v.j.mu.Lock()
	v.j.closed++
	v.j.mu.Unlock()
}

func (j *journal) Restore(_ context.Context, _ raft.SnapshotMeta, r io.Reader) error {
	var commands []string
	if err := json.NewDecoder(r).Decode(&commands); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.commands = commands
	j.restored++
	return nil
}

func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.commands)
}

func (j *journal) applyCalls() []int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.calls)
}

func (j *journal) closedViews() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.closed
}

func (j *journal) restores() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.restored
}

// machine is what stays when a server's process ends.
type machine struct {
	id      raft.NodeID
	storage *memstorage.Storage
	sm      *journal
	node    *raft.Node
}

// cluster is a cluster inside a synctest bubble.
type cluster struct {
	t         *testing.T
	net       *memtransport.Network
	conf      raft.Configuration
	machines  []*machine
	configure func(*raft.Config)
}

const clusterID = "test-cluster"

// inCluster runs f with a running cluster of n voters, n1 to n<n>, in a synctest bubble: time passes only while everybody sleeps,
// and a goroutine that is left over fails the test.
func inCluster(t *testing.T, n int, configure func(*raft.Config), f func(t *testing.T, c *cluster)) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{t: t, net: memtransport.NewNetwork(), configure: configure}
		c.conf.ClusterID = clusterID
		for i := 1; i <= n; i++ {
			id := raft.NodeID(fmt.Sprintf("n%d", i))
			c.conf.Servers = append(c.conf.Servers, raft.Server{ID: id, Address: "host-" + string(id)})
			c.machines = append(c.machines, &machine{id: id, storage: memstorage.New(), sm: &journal{}})
		}
		for _, m := range c.machines {
			require.NoError(t, raft.Bootstrap(t.Context(), m.storage, m.id, c.conf))
			c.start(m)
		}
		defer c.stopAll()
		f(t, c)
	})
}

func (c *cluster) start(m *machine) {
	c.t.Helper()
	m.node = c.newNode(m)
	require.NoError(c.t, m.node.Start(c.t.Context()))
}

func (c *cluster) newNode(m *machine) *raft.Node {
	c.t.Helper()
	cfg := raft.Config{ID: m.id, ClusterID: clusterID, StateMachine: m.sm, Storage: m.storage, Transport: c.net.Transport(m.id)}
	cfg.Core.Seed = uint64(len(m.id)) + uint64(m.id[len(m.id)-1])*7919
	if c.configure != nil {
		c.configure(&cfg)
	}
	n, err := raft.NewNode(cfg)
	require.NoError(c.t, err)
	return n
}

// crash ends a machine's process without a word, and leaves what was durable.
func (c *cluster) crash(m *machine) {
	c.net.Crash(m.id)
	m.storage = m.storage.Crash()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = m.node.Stop(ctx) // gives up at once; the bubble would show what it leaves behind
	<-m.node.Done()
	m.sm = &journal{}
}

func (c *cluster) stopAll() {
	for _, m := range c.machines {
		if m.node == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		err := m.node.Stop(ctx)
		cancel()
		if failed := (*raft.FailedError)(nil); !errors.As(m.node.Err(), &failed) {
			require.NoError(c.t, err)
		}
	}
}

// add makes a machine that has never belonged to the cluster, and starts it.
func (c *cluster) add(id raft.NodeID) *machine {
	m := &machine{id: id, storage: memstorage.New(), sm: &journal{}}
	c.machines = append(c.machines, m)
	c.start(m)
	return m
}

// leader waits for a leader that can commit, and returns it.
func (c *cluster) leader() *machine {
	c.t.Helper()
	var found *machine
	c.eventually("a leader", func() bool {
		for _, m := range c.machines {
			if l := m.node.Leadership(); m.node.Err() == nil && l.Role == raft.Leader && m.node.Status().CanCommit {
				found = m
				return true
			}
		}
		return false
	})
	return found
}

// follower returns a server that does not lead and knows who does.
func (c *cluster) follower() *machine {
	c.t.Helper()
	leader := c.leader()
	var found *machine
	c.eventually("a follower", func() bool {
		for _, m := range c.machines {
			if m != leader && m.node.Err() == nil && m.node.Leadership().Leader == leader.id {
				found = m
				return true
			}
		}
		return false
	})
	return found
}

// eventually waits, for at most a minute of the bubble's time.
func (c *cluster) eventually(what string, ok func() bool) {
	c.t.Helper()
	for i := 0; i < 6000; i++ {
		synctest.Wait()
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	for _, m := range c.machines {
		b, _ := json.Marshal(m.node.Status())
		c.t.Logf("%s: %s", m.id, b)
	}
	require.FailNow(c.t, "did not happen within a minute: "+what)
}

// ended waits until a node has stopped or failed.
func (c *cluster) ended(m *machine) {
	c.t.Helper()
	c.eventually("the end of "+string(m.id), func() bool {
		select {
		case <-m.node.Done():
			return true
		default:
			return false
		}
	})
}

// propose proposes on m and expects success.
func (c *cluster) propose(m *machine, cmd string) applied {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	res, err := m.node.Propose(ctx, []byte(cmd))
	require.NoError(c.t, err)
	return res.(applied)
}

// converge waits until all state machines hold the same commands, want if it is not nil.
func (c *cluster) converge(want []string) {
	c.t.Helper()
	c.eventually("equal state machines", func() bool {
		same := want
		for _, m := range c.machines {
			if same == nil {
				same = m.sm.all()
			}
			if !slices.Equal(same, m.sm.all()) {
				return false
			}
		}
		return true
	})
}
