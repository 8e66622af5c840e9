package raftsim

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/steadyraft/raft"
)

// world is one simulation: servers, network, clients and whoever breaks them, in one goroutine, in virtual time. Everything follows
// from the seed: there is no other source of chance, no clock, and no walk over a map whose order could be seen.
type world struct {
	opts Options
	seed uint64

	now     time.Duration
	events  queue
	nextSeq uint64
	done    uint64 // events carried out

	// One generator for each source of chance, so that leaving out a fault changes nothing before that fault.
	forNetwork, forDisks, forFaults, forClients *rand.Rand

	knobs     knobs
	servers   []*server // in the order of their making; none ever leaves, removed members included
	network   network
	clients   clients
	plan      plan
	embedding *Embedding // nil: there is none

	drawn    int      // faults
	faultLog []string // those that took place

	healed   bool
	quiet    time.Duration // until the next fault, at least: so that others can act on the one before
	failure  error
	atEnd    bool   // nothing was broken by an event: what fails, fails in the checks at the end
	hopeless string // why the cluster need not come back; "": it has to
	diverge  bool   // what was broken is that two states differ
	trace    trace
	reached  [situations]uint32

	model model // what the invariants remember
}

// knobs is what a seed has drawn for the whole cluster.
type knobs struct {
	core          raft.CoreConfig
	founders      int
	faults        Fault         // of those in the options
	snapshotEvery int           // entries applied between two snapshots; 0: only if an operator asks
	hashEvery     raft.Index    // states are compared at multiples of this index
	applyBatch    int           // entries in one call of Apply
	faultPause    time.Duration // between two faults, at most
	syncTime      time.Duration // of a healthy disk, at most
	readTime      time.Duration // of old entries, and to write snapshots, at most
	applyTime     time.Duration // before each piece of work of a state machine, at most
	segmentBytes  int64
	largestBytes  int64 // segments grow up to that
	chunkBytes    int
	faultTime     time.Duration // until everything is healed
	mergeWrites   bool          // all writes that wait are made durable before any is reported
	scrubEvery    time.Duration // 0: nobody looks for damage before everything is healed
	scrubBytes    int
	reckless      bool // damage may be more than the cluster can bear
	retransmit    bool // messages for a process may reach its successor
}

// pick draws one of several values.
func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// upTo draws a duration from [0, d].
func upTo(r *rand.Rand, d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d) + 1)) }

// Streams of chance; the numbers are part of what a seed means.
const (
	streamKnobs = iota + 1
	streamNetwork
	streamDisks
	streamFaults
	streamClients
)

func stream(seed uint64, n uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, n)) }

func newWorld(o Options, seed uint64, p plan) *world {
	w := &world{
		opts: o, seed: seed, plan: p,
		forNetwork: stream(seed, streamNetwork), forDisks: stream(seed, streamDisks),
		forFaults: stream(seed, streamFaults), forClients: stream(seed, streamClients),
	}
	r := stream(seed, streamKnobs)
	w.drawKnobs(r)
	if p.servers > 0 {
		w.knobs.founders = p.servers
	}
	if o.tune != nil {
		o.tune(&w.knobs)
	}
	w.network = newNetwork(w, r)
	w.model = newModel()
	w.clients = newClients(w, r)
	return w
}

// drawKnobs draws every tuning knob. Extremes are drawn often: with unlimited batches an early version ran 60,000 seeds without
// noticing that the test of §5.4.2 was missing; with batches of one it took 1,384. Every other seed leaves out half of the faults: where
// everything goes wrong at once, there is seldom a leader that could be deposed without noticing.
func (w *world) drawKnobs(r *rand.Rand) {
	w.knobs = knobs{
		founders: w.opts.MinServers + r.IntN(w.opts.MaxServers-w.opts.MinServers+1),
		core: raft.CoreConfig{
			HeartbeatInterval: pick(r, 30*time.Millisecond, 50*time.Millisecond, 100*time.Millisecond),
			ElectionTimeout:   pick(r, 300*time.Millisecond, 300*time.Millisecond, time.Second),
			DiskDeadline:      pick(r, 0, 300*time.Millisecond, 5*time.Second),
			MaxBatchBytes:     pick(r, 1, 1, 200, 1<<20), MaxInflightBytes: pick(r, 1, 300, 4<<20),
			MaxInflightMessages: pick(r, 1, 2, 8, 256), MaxUncommittedBytes: pick(r, 500, 4000, 64<<20),
			MaxUnappliedBytes: pick(r, 1, 500, 64<<20), MaxTailBytes: pick(r, 1, 300, 16<<20),
			TrailingEntries: pick(r, uint64(1), 3, 20, 200), DisablePreVote: r.IntN(5) == 0, DisableCheckQuorum: r.IntN(8) == 0,
			CatchUpBytesPerSecond: pick(r, 10_000, 100_000, 32<<20),
		},
		snapshotEvery: pick(r, 0, 5, 20, 100),
		hashEvery:     pick(r, raft.Index(1), 1, 4, 16),
		applyBatch:    pick(r, 1, 3, 100),
		faultPause:    pick(r, 150*time.Millisecond, 400*time.Millisecond, 1500*time.Millisecond, 4*time.Second),
		syncTime:      pick(r, 0, time.Millisecond, 5*time.Millisecond, 30*time.Millisecond),
		readTime:      pick(r, 5*time.Millisecond, 50*time.Millisecond, time.Second, 3*time.Second),
		applyTime:     pick(r, 0, time.Millisecond, 10*time.Millisecond, 300*time.Millisecond),
		segmentBytes:  pick(r, int64(16<<10), 16<<10, 32<<10, 128<<10),
		chunkBytes:    pick(r, 16, 64, 64<<10),
		mergeWrites:   r.IntN(2) == 0, retransmit: r.IntN(2) == 0,
		faultTime:  w.opts.FaultTime,
		scrubEvery: pick(r, 0, 300*time.Millisecond, 2*time.Second), scrubBytes: pick(r, 4<<10, 64<<10, 1<<20), reckless: r.IntN(4) == 0,
	}
	w.knobs.faults = w.opts.Faults & AllFaults
	if r.IntN(2) == 0 {
		w.knobs.faults &= Fault(r.Uint32())
	}
	w.knobs.largestBytes = w.knobs.segmentBytes * pick(r, int64(1), 4, 16)
	if r.IntN(24) == 0 {
		w.knobs.faultTime *= 3 // long enough to stand still for 30 s
	}
}

// draw makes the knobs of one server: what may differ between the members of a cluster differs.
func (w *world) draw(r *rand.Rand, id raft.NodeID) raft.CoreConfig {
	cfg := w.knobs.core
	cfg.ID = id
	if r.IntN(3) == 0 {
		cfg.MaxBatchBytes, cfg.MaxTailBytes = pick(r, 1, 500, 1<<20), pick(r, 1, 300, 16<<20)
		cfg.TrailingEntries = pick(r, uint64(1), 10, 100)
		cfg.MaxInflightMessages, cfg.MaxInflightBytes = pick(r, 1, 3, 256), pick(r, 1, 1000, 4<<20)
		cfg.MaxUncommittedBytes, cfg.MaxUnappliedBytes = pick(r, 500, 4000, 64<<20), pick(r, 1, 1000, 64<<20)
		cfg.DiskDeadline = pick(r, 0, 300*time.Millisecond, 5*time.Second)
	}
	return cfg
}

// event is something that happens at a time. Those of a server are dropped when its process has ended, and wait while it is paused.
type event struct {
	at  time.Duration
	seq uint64 // of events at the same time, the first to be planned is the first to happen
	v   *server
	run int // of v
	do  func()
}

// queue is a binary heap of events, earliest first.
type queue []event

func (q queue) before(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}

func (q *queue) push(e event) {
	*q = append(*q, e)
	h := *q
	for i := len(h) - 1; i > 0; {
		parent := (i - 1) / 2
		if !h.before(i, parent) {
			break
		}
		h[i], h[parent] = h[parent], h[i]
		i = parent
	}
}

func (q *queue) pop() event {
	h := *q
	top, n := h[0], len(h)-1
	h[0], h[n] = h[n], event{}
	h = h[:n]
	*q = h
	for i := 0; ; {
		child := 2*i + 1
		if child >= n {
			return top
		}
		if child+1 < n && h.before(child+1, child) {
			child++
		}
		if !h.before(child, i) {
			return top
		}
		h[i], h[child] = h[child], h[i]
		i = child
	}
}

// after plans something that belongs to no server.
func (w *world) after(d time.Duration, do func()) { w.schedule(nil, d, do) }

// on plans something that the present process of a server does.
func (w *world) on(v *server, d time.Duration, do func()) { w.schedule(v, d, do) }

func (w *world) schedule(v *server, d time.Duration, do func()) {
	w.nextSeq++
	e := event{at: w.now + max(d, 0), seq: w.nextSeq, v: v, do: do}
	if v != nil {
		e.run = v.run
	}
	w.events.push(e)
}

// broken notes the first promise that was broken; the run ends with it.
func (w *world) broken(format string, args ...any) {
	if w.failure == nil {
		w.failure = fmt.Errorf("at %v: %w", round(w.now), fmt.Errorf(format, args...))
		w.printf(nil, "BROKEN: %s", firstLine(w.failure))
	}
}

// maxEvents bounds one run: a cluster that needs more is one in which messages breed messages.
const maxEvents = 10_000_000

// run is a whole simulation: faults, heal, then the cluster has to converge within a bound.
func (w *world) run() {
	defer func() {
		if r := recover(); r != nil {
			w.broken("panic: %v\n%s", r, debug.Stack())
		}
	}()
	w.embed()
	w.found()
	w.clients.begin()
	w.after(0, w.nextFault)
	w.after(w.faultTime(), w.heal)
	end := w.faultTime() + w.opts.LiveTime
	for w.failure == nil && len(w.events) > 0 {
		e := w.events.pop()
		if e.v != nil && (e.v.run != e.run || !e.v.up()) {
			continue // that process has ended
		}
		if e.v != nil && e.v.paused {
			e.v.backlog = append(e.v.backlog, e)
			continue
		}
		w.now = e.at
		if w.now > end {
			break
		}
		w.done++
		w.trace.mix(uint64(e.at), e.seq)
		e.do()
		if w.opts.watch != nil {
			w.opts.watch(w)
		}
		if w.done == w.opts.Events {
			w.checkUnfinished()
			return
		}
		if w.hopeless != "" {
			break
		}
		if w.healed && w.clients.finished() && w.embedderConverged() == nil && w.converged() == nil {
			break
		}
		if w.done > maxEvents {
			w.broken("no end after %d events: messages breed messages", w.done)
		}
	}
	if w.failure == nil {
		w.atEnd = true
		w.checkEnd()
	}
	for _, v := range w.servers {
		if v.core != nil {
			w.trace.core(v.core)
		}
	}
}

// faultTime is when everything is healed.
func (w *world) faultTime() time.Duration {
	if ms := w.plan.heal; ms > 0 {
		return min(w.knobs.faultTime, time.Duration(ms)*time.Millisecond)
	}
	return w.knobs.faultTime
}

// found bootstraps the founding servers and starts them.
func (w *world) found() {
	r := stream(w.seed, streamKnobs<<8)
	conf := raft.Configuration{ClusterID: "sim"}
	for i := range w.knobs.founders {
		s := raft.Server{ID: raft.NodeID(fmt.Sprintf("n%d", i+1)), Priority: pick[uint8](r, 0, 0, 0, 1, 2)}
		if i > 1 && r.IntN(3) == 0 {
			s.Suffrage = raft.NonVoter
		}
		conf.Servers = append(conf.Servers, s)
	}
	for _, s := range conf.Servers {
		v := w.newServer(s.ID)
		if err := v.bootstrap(conf); err != nil {
			w.broken("bootstrap %s: %v", s.ID, err)
			return
		}
	}
	for _, v := range w.servers {
		v.start()
	}
}

func (w *world) server(id raft.NodeID) *server {
	for _, v := range w.servers {
		if v.id == id {
			return v
		}
	}
	return nil
}
