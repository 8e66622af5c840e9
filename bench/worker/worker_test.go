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
	require.ErrorContains(t, err, "0/00000000")

	out, err := func() ([]Output, error) {
		defer func(d time.Duration) { agreeWithin = d }(agreeWithin)
		agreeWithin = time.Millisecond
		return runJob(t, (&cluster{lose: true}).library(), Job{Points: []Point{{Kind: Propose, Size: 8, Clients: 1, Time: time.Millisecond}}})
	}()
	require.ErrorContains(t, err, "do not agree")
	require.True(t, out[len(out)-1].Void)

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

// growing is a fake that can do all that a library may.
type growing struct {
	*fake
	added string
}

func (*growing) Snapshot(context.Context) error { return nil }
func (*growing) Term() uint64                   { return 7 }

func (g *growing) Add(_ context.Context, server int, address string) error {
	g.added = fmt.Sprint(server, address)
	return nil
}

// obeying runs a worker whose commands a test writes.
func obeying(t *testing.T, lib Library, job Job) (tell func(Command), outputs chan Output) {
	in, parent := io.Pipe()
	outputs = make(chan Output, 100)
	job.Dir = t.TempDir()
	ended := make(chan error)
	go func() { ended <- run(lib, in, func(o Output) { outputs <- o }) }()
	enc := json.NewEncoder(parent)
	require.NoError(t, enc.Encode(job))
	t.Cleanup(func() {
		require.NoError(t, parent.Close())
		require.NoError(t, <-ended)
	})
	return func(c Command) { require.NoError(t, enc.Encode(c)) }, outputs
}

func TestCommandsAreCarriedOut(t *testing.T) {
	g := &growing{}
	c := &cluster{}
	lib := Library{Name: "fake", Start: func(o Options) (Node, error) {
		g.fake = &fake{cluster: c, id: o.ID}
		c.nodes = append(c.nodes, g.fake)
		return g, nil
	}}
	tell, out := obeying(t, lib, Job{Addresses: []string{"a"}, Server: 1})
	require.NotNil(t, (<-out).About)
	require.NotNil(t, (<-out).Commit)
	tell(Command{Rest: true})
	require.NotNil(t, (<-out).Done)

	tell(Command{Fill: &Fill{Commands: 100, Size: 8, Clients: 3, Limit: time.Minute}})
	require.EqualValues(t, 100, *(<-out).Filled)
	tell(Command{Fill: &Fill{Commands: 1 << 60, Size: 8, Clients: 3, Limit: time.Millisecond}})
	require.Less(t, *(<-out).Filled, uint64(1<<60), "until time is up")

	tell(Command{Measure: &Point{Kind: Propose, Size: 8, Clients: 1, Time: time.Minute}})
	for before := g.Counter.count.Load(); g.Counter.count.Load() == before; {
		runtime.Gosched()
	}
	tell(Command{Progress: true}) // while it measures
	p := (<-out).Progress
	require.Positive(t, p.Applied)
	require.EqualValues(t, 7, p.Term)
	require.True(t, p.Leads)
	tell(Command{Stop: true})
	s := (<-out).Sample
	require.Less(t, s.Elapsed, time.Minute)

	tell(Command{Memory: true})
	m := (<-out).Memory
	require.Positive(t, m.Resident)
	require.Positive(t, m.Heap)
	require.Positive(t, m.Goroutines)
	tell(Command{Add: &Add{Server: 2, Address: "b"}})
	require.NotNil(t, (<-out).Done)
	require.Equal(t, "1b", g.added)
	tell(Command{Snapshot: true})
	require.NotNil(t, (<-out).Done)
	tell(Command{})
	require.Contains(t, (<-out).Error, "nobody knows")
}

func TestCommandsThatALibraryCannotCarryOut(t *testing.T) {
	tell, out := obeying(t, new(cluster).library(), Job{Addresses: []string{"a", "b", "c"}, Obey: true})
	require.NotNil(t, (<-out).About)
	require.Equal(t, 1, (<-out).Commit.Server)
	tell(Command{Snapshot: true})
	require.Equal(t, "take a snapshot: not supported", (<-out).Error)
	tell(Command{Add: &Add{Server: 4}})
	require.Equal(t, "add a server: not supported", (<-out).Error)
}

func TestSnapshotsCarryTheState(t *testing.T) {
	var a, b Counter
	a.Add([]byte("x"))
	a.Add([]byte("y"))
	for _, size := range []int64{0, viewHeader, 3*viewPiece + 5} {
		v := a.View(size)
		a.Add([]byte("later"))
		var buf bytes.Buffer
		n, err := v.WriteTo(&buf)
		require.NoError(t, err)
		require.Equal(t, max(size, viewHeader), n)
		require.EqualValues(t, n, buf.Len())
		require.NoError(t, b.Restore(&buf))
		count, sum := b.Applied()
		require.Equal(t, View{count, sum, size}, v)
	}
	require.EqualValues(t, 3, b.Restored())
	require.ErrorContains(t, b.Restore(bytes.NewReader([]byte("short"))), "unexpected EOF")
}
