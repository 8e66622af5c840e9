package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// cluster is a library without a network: what one node is given, all have.
type cluster struct {
	mu     sync.Mutex
	nodes  []*fake
	leader int
	lose   bool // the last node misses commands
	fail   error
}

type fake struct {
	*cluster
	Counter
	id int
}

func (c *cluster) library() Library {
	return Library{Name: "fake", Start: func(o Options) (Node, error) {
		f := &fake{cluster: c, id: o.ID}
		c.nodes = append(c.nodes, f)
		return f, nil
	}}
}

func (f *fake) Propose(_ context.Context, cmd []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil && f.Counter.count.Load() > 0 { // the first one is the worker's own
		return f.fail
	}
	for _, n := range f.nodes {
		if !f.lose || n.id != 2 {
			n.Add(cmd)
		}
	}
	return nil
}

func (f *fake) Read(context.Context) error { return nil }

func (f *fake) IsLeader() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.id == f.leader
}

func (f *fake) Transfer(_ context.Context, to int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leader = to
	return nil
}

func (f *fake) Close() error { return nil }

func runJob(t *testing.T, lib Library, job Job) (out []Output, err error) {
	job.Dir, job.Addresses = t.TempDir(), []string{"a", "b", "c"}
	b, err := json.Marshal(job)
	require.NoError(t, err)
	err = run(lib, bytes.NewReader(b), func(o Output) { out = append(out, o) })
	return out, err
}

func TestWorkerMeasuresEveryPoint(t *testing.T) {
	job := Job{Profiles: t.TempDir()}
	for _, kind := range []string{Propose, Read, Mixed} {
		job.Points = append(job.Points, Point{Kind: kind, Size: 16, Clients: 3, Time: 20 * time.Millisecond})
	}
	out, err := runJob(t, new(cluster).library(), job)
	require.NoError(t, err)
	require.Len(t, out, 4)
	require.Equal(t, "fake", out[0].About.Name)
	for i, o := range out[1:] {
		s := o.Sample
		require.Equal(t, job.Points[i], s.Point)
		require.Positive(t, s.Operations)
		require.Zero(t, s.Failures)
		require.InDelta(t, float64(s.Operations)/s.Elapsed.Seconds(), s.PerSecond, 1)
		require.GreaterOrEqual(t, s.Elapsed, 20*time.Millisecond)
		require.LessOrEqual(t, s.P50, s.P99)
		require.LessOrEqual(t, s.P999, s.Max)
		require.FileExists(t, fmt.Sprintf("%s/fake-%s-16-3.prof", job.Profiles, s.Kind))
	}
}

func TestWorkerCountsFailures(t *testing.T) {
	out, err := runJob(t, (&cluster{fail: errors.New("disk on fire")}).library(), Job{
		Points: []Point{{Kind: Propose, Size: 8, Clients: 1, Time: 5 * time.Millisecond}},
	})
	require.NoError(t, err)
	require.Zero(t, out[1].Sample.Operations)
	require.Positive(t, out[1].Sample.Failures)
	require.Equal(t, "disk on fire", out[1].Sample.Failure)
}

// Without this, a library that answers before it has replicated would look fast.
func TestServersThatDiffer(t *testing.T) {
	c := &cluster{lose: true}
	nodes := []Node{}
	for i := range 3 {
		n, err := c.library().Start(Options{ID: i})
		require.NoError(t, err)
		nodes = append(nodes, n)
	}
	require.NoError(t, nodes[0].Propose(t.Context(), []byte("x")))
	err := agree(nodes, time.Now())
	require.ErrorContains(t, err, "do not agree")
	require.ErrorContains(t, err, "0/00000000")

	c.lose = false
	c.nodes[2].Add([]byte("x"))
	require.NoError(t, agree(nodes, time.Now()))
	c.nodes[0].Add([]byte("a"))
	c.nodes[1].Add([]byte("a"))
	c.nodes[2].Add([]byte("b"))
	require.ErrorContains(t, agree(nodes, time.Now()), "do not agree", "as many, but others")
}

func TestTransfersAreReported(t *testing.T) {
	out, err := runJob(t, new(cluster).library(), Job{Transfers: 1})
	require.NoError(t, err)
	require.Len(t, out, 2)
	require.Empty(t, out[1].Gap.NotDone)
	require.Zero(t, out[1].Gap.Failures)
}

func TestRestart(t *testing.T) {
	c := new(cluster)
	out, err := runJob(t, c.library(), Job{Fill: 10*restartCommand - 1})
	require.NoError(t, err)
	require.EqualValues(t, 11, *out[1].Filled, "with the one that the worker waits for")

	kept := c.nodes
	lib := Library{Start: func(o Options) (Node, error) { return kept[o.ID], nil }}
	out, err = runJob(t, lib, Job{Filled: 11})
	require.NoError(t, err)
	require.LessOrEqual(t, out[1].Restart.Open, out[1].Restart.First)
	require.LessOrEqual(t, out[1].Restart.First, out[1].Restart.All)

	_, err = runJob(t, new(cluster).library(), Job{Filled: 11})
	require.ErrorContains(t, err, "1 commands after the restart and one more, there were 11 before")
}

func TestGaps(t *testing.T) {
	var g gaps
	at := func(ms int) time.Time { return time.Unix(100, int64(ms)*1e6) }
	g.begin(at(0))
	g.committed(at(5))
	g.committed(at(25))
	g.committed(at(20)) // a client that was scheduled late
	g.committed(at(30))
	g.failed(errors.New("first"))
	g.failed(errors.New("second"))
	require.Equal(t, Gap{Longest: 20 * time.Millisecond, Failures: 2, Failure: "first"}, g.end(at(32)))
	g.begin(at(40))
	require.Equal(t, 60*time.Millisecond, g.end(at(100)).Longest, "no commit at all is a gap")
}

func TestOneServerReportsItsFirstCommit(t *testing.T) {
	c := &cluster{}
	b, err := json.Marshal(Job{Dir: t.TempDir(), Addresses: []string{"a"}, Server: 1})
	require.NoError(t, err)
	in, parent := io.Pipe()
	commits := make(chan Commit, 10)
	ended := make(chan error)
	go func() {
		ended <- run(c.library(), in, func(o Output) {
			if o.Commit != nil {
				commits <- *o.Commit
			}
		})
	}()
	before := time.Now().UnixNano()
	_, err = parent.Write(b)
	require.NoError(t, err)
	first := <-commits
	require.Equal(t, 1, first.Server)
	require.GreaterOrEqual(t, first.At, before)
	require.NoError(t, parent.Close())
	require.NoError(t, <-ended)
	require.Empty(t, commits, "one for each time that it leads")
}

// A read must not be answered by a confirmation that began before it.
func TestReadsWaitForARoundThatBeginsAfterThem(t *testing.T) {
	begun, end := make(chan struct{}), make(chan error)
	r := NewReads(func() error {
		begun <- struct{}{}
		return <-end
	})
	results := make(chan error, 10)
	read := func() { results <- r.Read(t.Context()) }
	go read()
	<-begun
	for range 3 {
		go read()
	}
	for len(r.waiting) < 3 { // they have no way to tell
		runtime.Gosched()
	}
	end <- nil
	require.NoError(t, <-results)
	require.Empty(t, results)
	<-begun
	end <- fmt.Errorf("lost")
	for range 3 {
		require.EqualError(t, <-results, "lost")
	}
	r.Close()
	require.ErrorIs(t, r.Read(t.Context()), errReadsClosed)
}

func TestUnreadableJob(t *testing.T) {
	require.ErrorContains(t, run(Library{}, bytes.NewReader([]byte("no")), func(Output) {}), "job on standard input")
}

func TestOthersLoad(t *testing.T) {
	require.InDelta(t, 0.5, othersBusy(time.Second, 0, 2*time.Second, 2*time.Second), 1e-9)
	require.Zero(t, othersBusy(time.Second, 0, 990*time.Millisecond, time.Second), "the kernel counts in steps")
	require.GreaterOrEqual(t, WatchOthers(os.Getpid())(), -1.0)
	require.Positive(t, processTimes([]int{os.Getpid(), 1, 1 << 30}))
	require.EqualValues(t, -1, othersBusy(0, -1, 5, time.Second))
}
