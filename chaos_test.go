package raft_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/steadyraft/raft"
	memtransport "github.com/steadyraft/raft/transport/memory"
)

// Chaos on whole nodes: clusters in virtual time whose network loses, delays and cuts, whose processes stop and crash, whose disks
// fail, fill up, hang and lose power, and whose operators change leaders and members, while clients write and read on all servers.
// The seed decides the knobs and what is done when; how goroutines interleave it does not, so a failure may need several runs.
//
//	go test -run TestChaos -chaos-seeds 5000
//	go test -run TestChaos/memory -chaos-seed 1234 -v -count 20     one seed, with the nodes' logs if it fails
var (
	chaosSeeds = flag.Uint64("chaos-seeds", 30, "seeds that TestChaos runs for each kind of storage")
	chaosFirst = flag.Uint64("chaos-first", 1, "the first of these seeds")
	chaosTrace = flag.Bool("chaos-trace", false, "print the nodes' logs if a seed fails")
	chaosSeed  = flag.Uint64("chaos-seed", 0, "run this one seed only, and print the nodes' logs if it fails")
)

func TestChaos(t *testing.T) {
	for name, newDisk := range map[string]func(uint64) chaosDisk{"memory": newMemoryDisk, "wal": newWALDisk} {
		t.Run(name, func(t *testing.T) {
			first, n := *chaosFirst, *chaosSeeds
			if *chaosSeed != 0 {
				first, n = *chaosSeed, 1
			}
			seen := make(map[string]int)
			for seed := first; seed < first+n; seed++ {
				w := newWorld(seed, newDisk)
				synctest.Test(t, w.run)
				w.check()
				if len(w.ledger.violations) > 0 {
					if *chaosSeed != 0 || *chaosTrace {
						t.Log(w.trace.String())
					}
					t.Fatalf("seed %d:\n%s\nagain: go test -run TestChaos/%s -chaos-seed %d -count 20", seed, strings.Join(w.ledger.violations, "\n"), name, seed)
				}
				for what, n := range w.seen {
					seen[what] += n
				}
			}
			t.Logf("%d seeds: %v", n, seen)
			for _, what := range []string{"acknowledged", "uncertain", "refused", "read", "crash", "failed disk", "full disk", "hanging disk",
				"membership changed", "leadership moved", "snapshot", "leader's work"} {
				if seen[what] == 0 && n >= 20 {
					t.Errorf("no seed of %d got into this situation: %s", n, what)
				}
			}
		})
	}
}

// process is one life of a server.
type process struct {
	node    *raft.Node
	sm      *store
	mayFail atomic.Bool // its disk was made to fail
}

// chaosServer is a machine.
type chaosServer struct {
	id      raft.NodeID
	disk    chaosDisk
	hangs   hang
	cfg     raft.Config
	durable *store        // not nil: a state machine that survives
	turn    chan struct{} // who does something to the machine; not a mutex, for its holder sleeps
	rng     *rand.Rand    // of the one who has the turn

	current atomic.Pointer[process] // nil: not running
}

// world is one run.
type world struct {
	t       *testing.T
	seed    uint64
	newDisk func(uint64) chaosDisk
	ledger  *ledger
	net     *memtransport.Network
	trace   strings.Builder
	logger  *slog.Logger

	mu      sync.Mutex
	servers []*chaosServer
	seen    map[string]int

	conf        raft.Configuration
	core        raft.CoreConfig // what all servers share
	latency     time.Duration
	durable     bool
	repeats     bool           // messages
	work        sync.WaitGroup // WhileLeader, and watchers of processes
	calm        atomic.Bool    // the faults are over
	nextCommand atomic.Int64
}

func newWorld(seed uint64, newDisk func(uint64) chaosDisk) *world {
	return &world{seed: seed, newDisk: newDisk, ledger: newLedger(), seen: make(map[string]int)}
}

// random makes a generator of its own for every part, so that one part's draws do not depend on how much the others draw.
func (w *world) random(part uint64) *rand.Rand { return rand.New(rand.NewPCG(w.seed, part)) }

func (w *world) saw(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen[what]++
}

// note puts a fault into the nodes' logs.
func (w *world) note(what string, s *chaosServer, args ...any) {
	if w.logger != nil {
		w.logger.With("node", string(s.id)).Info("chaos: "+what, args...)
	}
}

func between(r *rand.Rand, lo, hi time.Duration) time.Duration {
	return lo + time.Duration(r.Int64N(int64(hi-lo)))
}

func oneOf[T any](r *rand.Rand, vs ...T) T { return vs[r.IntN(len(vs))] }

func (w *world) all() []*chaosServer {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]*chaosServer(nil), w.servers...)
}

func (w *world) any(r *rand.Rand) *chaosServer {
	all := w.all()
	return all[r.IntN(len(all))]
}

// addServer makes a machine with knobs of its own.
func (w *world) addServer(id raft.NodeID) *chaosServer {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := uint64(len(w.servers)) + 1
	r := w.random(100 + k)
	s := &chaosServer{id: id, disk: w.newDisk(w.seed<<8 + k), turn: make(chan struct{}, 1), rng: r}
	s.cfg = raft.Config{ID: id, ClusterID: clusterID, Logger: w.logger, Core: w.core}
	s.cfg.Core.Seed = r.Uint64() | 1
	s.cfg.Core.MaxBatchBytes = oneOf(r, 0, 1, 300, 4<<10)
	s.cfg.Core.MaxInflightBytes = oneOf(r, 0, 1, 1<<10, 16<<10)
	s.cfg.Core.MaxInflightMessages = oneOf(r, 0, 1, 2, 16)
	s.cfg.Core.MaxUncommittedBytes = oneOf(r, 0, 0, 600, 4<<10)
	s.cfg.Core.MaxUnappliedBytes = oneOf(r, 0, 1, 1<<10)
	s.cfg.Core.MaxTailBytes = oneOf(r, 0, 1, 1<<10)
	s.cfg.Core.TrailingEntries = oneOf[uint64](r, 0, 1, 10, 100)
	s.cfg.Core.CatchUpBytesPerSecond = oneOf(r, 0, 10<<10, 100<<10)
	s.cfg.SnapshotEntries = oneOf[uint64](r, 0, 2, 10, 50)
	s.cfg.SnapshotBytes = oneOf[int64](r, 0, 0, 1, 2000)
	s.cfg.MaxCommandBytes = oneOf(r, 0, 1000, 4000)
	if s.cfg.MaxCommandBytes > 0 {
		s.cfg.MaxProposalBytes = oneOf(r, 0, s.cfg.MaxCommandBytes+raft.EntryHeaderSize)
		s.cfg.MaxInboxBytes = oneOf(r, 0, s.cfg.MaxCommandBytes+200)
	}
	s.cfg.LeaderWorkGrace = between(r, 100*time.Millisecond, 2*time.Second)
	s.cfg.DisableForwarding = r.IntN(6) == 0
	if w.durable {
		s.durable = newStore(id, w.ledger)
	}
	w.servers = append(w.servers, s)
	return s
}

// take takes the turn at a server; giving it back is the caller's duty.
func (s *chaosServer) take() func() {
	s.turn <- struct{}{}
	return func() { <-s.turn }
}

// start begins a process. The caller has the turn.
func (w *world) start(s *chaosServer) {
	p := &process{sm: s.durable}
	cfg := s.cfg
	if s.durable != nil {
		cfg.StateMachine = durableStore{s.durable}
	} else {
		p.sm = newStore(s.id, w.ledger)
		cfg.StateMachine = p.sm
	}
	slow := &slowStorage{Storage: s.disk.storage(), latency: w.latency, hangs: &s.hangs, rng: rand.New(rand.NewPCG(s.rng.Uint64(), 1))}
	cfg.Storage = slow
	if preparer, ok := slow.Storage.(raft.StoragePreparer); ok {
		cfg.Storage = &preparingStorage{slow, preparer}
	}
	cfg.Transport = w.net.Transport(s.id)
	if w.repeats {
		cfg.Transport = &repeatingTransport{Transport: cfg.Transport, rng: rand.New(rand.NewPCG(s.rng.Uint64(), 2))}
	}
	n, err := raft.NewNode(cfg)
	if err != nil {
		w.ledger.wrong("%s: %v", s.id, err)
		return
	}
	if err := n.Start(context.Background()); err != nil {
		if !errors.Is(err, raft.ErrStorageFull) {
			w.ledger.wrong("%s: %v", s.id, err)
		}
		return
	}
	p.node = n
	s.current.Store(p)
	w.work.Go(func() { w.watch(s, p) })
	seed := s.rng.Uint64()
	w.work.Go(func() { w.workAsLeader(s, p, seed) })
	var last raft.Leadership
	n.OnLeaderChange(func(l raft.Leadership) {
		if l.Revision <= last.Revision || l.Term < last.Term {
			w.ledger.wrong("%s: observed %+v after %+v", s.id, l, last)
		}
		last = l
	})
}

// watch looks at how a process ends.
func (w *world) watch(s *chaosServer, p *process) {
	<-p.node.Done()
	err := p.node.Err()
	failed, broken := (*raft.FailedError)(nil), (*raft.InvariantError)(nil)
	switch {
	case errors.As(err, &broken) || err != nil && strings.Contains(err.Error(), "panic in"):
		w.ledger.wrong("%s: %v", s.id, err)
	case errors.As(err, &failed) && !p.mayFail.Load():
		w.ledger.wrong("%s failed although its disk did not: %v", s.id, err)
	}
}

// stop ends a process in good order. The caller has the turn.
func (w *world) stop(s *chaosServer) {
	p := s.current.Load()
	if p == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	err := p.node.Stop(ctx)
	s.current.Store(nil)
	if err != nil && !p.mayFail.Load() {
		w.ledger.wrong("%s: %v", s.id, err)
	}
}

// crash ends a process without a word. The caller has the turn.
func (w *world) crash(s *chaosServer) {
	p := s.current.Load()
	if p == nil {
		return
	}
	w.note("crash", s)
	p.mayFail.Store(true)
	w.net.Crash(s.id)
	s.disk.crash(s.rng.Uint64())
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = p.node.Stop(ctx) // gives up at once; the bubble would show what it leaves behind
	s.awaitEnd(p)
	s.current.Store(nil)
	w.saw("crash")
}

// awaitEnd waits until nothing of a process is left. It cannot touch the new disk, but its state machine may outlive it.
func (s *chaosServer) awaitEnd(p *process) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_ = p.node.Stop(ctx) // of a process whose disk has gone away
}

// run is the bubble.
func (w *world) run(t *testing.T) {
	w.t = t
	w.net = memtransport.NewNetwork()
	if *chaosSeed != 0 || *chaosTrace {
		w.logger = slog.New(slog.NewTextHandler(&lockedWriter{w: &w.trace}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	r := w.random(1)
	w.core.HeartbeatInterval = oneOf(r, 20*time.Millisecond, 50*time.Millisecond, 100*time.Millisecond)
	w.core.ElectionTimeout = time.Duration(3+r.IntN(8)) * w.core.HeartbeatInterval
	w.latency = oneOf(r, 0, time.Millisecond, 20*time.Millisecond)
	w.durable = r.IntN(4) == 0
	w.repeats = r.IntN(3) == 0
	w.net.SetLoss(0, w.seed)
	w.net.SetDelay(0, oneOf(r, 0, time.Millisecond, 10*time.Millisecond))

	w.conf.ClusterID = clusterID
	n := 1 + r.IntN(5)
	for i := 1; i <= n; i++ {
		id := raft.NodeID(fmt.Sprintf("n%d", i))
		w.conf.Servers = append(w.conf.Servers, raft.Server{ID: id, Address: string(id), Priority: uint8(r.IntN(3) / 2)})
	}
	for i := range w.conf.Servers {
		s := w.addServer(w.conf.Servers[i].ID)
		if err := raft.Bootstrap(context.Background(), s.disk.storage(), s.id, w.conf); err != nil {
			w.ledger.wrong("%v", err)
			return
		}
		w.start(s)
	}

	faults, endFaults := context.WithTimeout(context.Background(), 20*time.Second)
	defer endFaults()
	var gremlins, clients sync.WaitGroup
	for i, gremlin := range []func(context.Context, *rand.Rand){
		w.breakNetwork, w.breakProcesses, w.breakProcesses, w.breakDisks, w.changeMembers, w.moveLeadership, w.takeSnapshots,
	} {
		if part := uint64(10 + i); r.IntN(4) > 0 {
			gremlins.Go(func() { gremlin(faults, w.random(part)) })
		}
	}
	use, endUse := context.WithCancel(context.Background())
	for i := range 3 + r.IntN(4) {
		clients.Go(func() { w.client(use, i, w.random(uint64(50+i))) })
	}
	<-faults.Done()
	gremlins.Wait()

	w.heal()
	w.calm.Store(true)
	time.Sleep(5 * time.Second)
	endUse()
	w.converge()
	// Calls without a deadline end now at the latest, for the servers that have belonged to nobody only by Stop.
	var stops sync.WaitGroup
	for _, s := range w.all() {
		stops.Go(func() {
			defer s.take()()
			w.stop(s)
		})
	}
	stops.Wait()
	clients.Wait()
	w.work.Wait()
	w.ledger.settle()
}

// lockedWriter lets loggers of several goroutines write.
type lockedWriter struct {
	mu sync.Mutex
	w  *strings.Builder
}

func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

// check is what needs the real clock.
func (w *world) check() {
	switch w.ledger.checkLinearizable(30 * time.Second) {
	case porcupine.Illegal:
		w.ledger.wrong("the history is not linearizable")
	case porcupine.Unknown:
		w.ledger.wrong("the checker of histories ran out of time")
	case porcupine.Ok:
	}
}

// heal ends all faults and starts whoever does not run.
func (w *world) heal() {
	w.net.Heal()
	w.net.SetLoss(0, w.seed)
	for _, s := range w.all() {
		give := s.take()
		s.disk.full(false)
		if p := s.current.Load(); p != nil && p.node.Err() != nil {
			w.stop(s)
		}
		if s.current.Load() == nil {
			w.start(s)
		}
		give()
	}
}

// leader returns the process that leads and can commit; nil if there is none or more than one.
func (w *world) leader() (leader *process) {
	for _, s := range w.all() {
		if p := s.current.Load(); p != nil && p.node.Leadership().Role == raft.Leader {
			if leader != nil || !p.node.Status().CanCommit {
				return nil
			}
			leader = p
		}
	}
	return leader
}

// converge waits until there is one leader and all members hold the same state (SAFETY inv 30).
func (w *world) converge() {
	why := "no leader"
	for begin := time.Now(); time.Since(begin) < time.Minute; time.Sleep(50 * time.Millisecond) {
		why = w.diverged()
		if why == "" {
			return
		}
	}
	var states []string
	for _, s := range w.all() {
		if p := s.current.Load(); p != nil {
			b, err := json.Marshal(p.node.Status())
			states = append(states, fmt.Sprintf("%s %v", b, err))
		}
	}
	w.ledger.wrong("no convergence within a minute: %s\n%s", why, strings.Join(states, "\n"))
}

func (w *world) diverged() string {
	leader := w.leader()
	if leader == nil {
		return "no leader, or two"
	}
	st := leader.node.Status()
	if st.Configuration.Joint() || st.CommitIndex != st.LastIndex || st.AppliedIndex != st.CommitIndex {
		return "the leader is not done"
	}
	want := leader.sm.view()
	for _, s := range w.all() {
		if _, member := st.Configuration.Server(s.id); !member {
			continue
		}
		p := s.current.Load()
		if p == nil {
			return string(s.id) + " does not run"
		}
		if !reflect.DeepEqual(p.sm.view(), want) {
			return string(s.id) + " holds another state"
		}
		if pending := p.node.Status(); pending.Proposals+pending.Pending > 0 {
			return string(s.id) + " has proposals left over"
		}
	}
	return ""
}

// workAsLeader keeps a function running while the server leads.
func (w *world) workAsLeader(s *chaosServer, p *process, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 3))
	var running atomic.Int32
	newest := raft.Term(0)
	for {
		err := p.node.WhileLeader(context.Background(), func(ctx context.Context, epoch raft.Term) error {
			if running.Add(1) != 1 {
				w.ledger.wrong("%s: WhileLeader runs its function twice at once", s.id)
			}
			defer running.Add(-1)
			if epoch < newest {
				w.ledger.wrong("%s: epoch %d after %d", s.id, epoch, newest)
			}
			newest = epoch
			w.ledger.began(epoch, leaderRun{s.id, p.sm.last()})
			w.saw("leader's work")
			for i := 0; ; i++ {
				cmd := w.command(r, "append")
				cmd.Epoch = epoch
				w.propose(p, -1, cmd, between(r, 10*time.Millisecond, 2*time.Second), false, raft.IfTerm(epoch))
				if !w.pause(ctx, r, 20*time.Millisecond, 500*time.Millisecond) {
					break
				}
				switch k := r.IntN(40); {
				case k == 0 && i > 3:
					return nil
				case k == 1 && i > 3:
					return errWork
				}
			}
			if r.IntN(3) == 0 && !w.calm.Load() {
				time.Sleep(between(r, time.Millisecond, 3*time.Second)) // ignores its cancellation
				cmd := w.command(r, "append")
				cmd.Epoch = epoch
				w.propose(p, -1, cmd, 100*time.Millisecond, false, raft.IfTerm(epoch))
			}
			return nil
		})
		if !errors.Is(err, errWork) {
			return
		}
	}
}

// command draws a command with a name of its own.
func (w *world) command(r *rand.Rand, op string) chaosCommand {
	name := fmt.Sprintf("c%d", w.nextCommand.Add(1))
	return chaosCommand{Name: name, Op: op, Key: fmt.Sprintf("k%d", r.IntN(4)), Arg: name + ";"}
}

// client calls one server after another until ctx ends.
func (w *world) client(ctx context.Context, number int, r *rand.Rand) {
	known := "" // some value that a key had
	s := w.any(r)
	var async sync.WaitGroup
	defer async.Wait()
	for w.pause(ctx, r, time.Millisecond, 300*time.Millisecond) {
		if r.IntN(4) == 0 {
			s = w.any(r)
		}
		p := s.current.Load()
		if p == nil {
			s = w.any(r)
			continue
		}
		limit := oneOf(r, 10*time.Millisecond, 100*time.Millisecond, time.Second, 5*time.Second)
		switch r.IntN(9) {
		case 6: // with the term of a leader that may be gone, or not elected yet
			cmd := w.command(r, "append")
			if cmd.Epoch = p.node.Leadership().Term + raft.Term(r.IntN(3)); cmd.Epoch > 1 {
				cmd.Epoch--
			}
			w.propose(p, number, cmd, limit, false, raft.IfTerm(cmd.Epoch))
		case 0, 1:
			known = w.read(p, number, r, limit)
		case 2:
			cmd := w.command(r, "append")
			if r.IntN(2) == 0 {
				limit = 0
			}
			async.Go(func() { w.propose(p, number, cmd, limit, true) })
		case 3:
			cmd := w.command(r, "put")
			cmd.Arg = cmd.Name + ";" + padding(r.IntN(1500))
			w.propose(p, number, cmd, limit, false)
		case 4:
			cmd := w.command(r, "cas")
			cmd.Old = known
			if len(known) < 300 {
				known = w.propose(p, number, cmd, limit, false).Value
			}
		case 5:
			w.bounded("Barrier", limit, func(ctx context.Context) { _ = p.node.Barrier(ctx) }) // its outcome is nobody's state
		default:
			known = w.propose(p, number, w.command(r, "append"), limit, false).Value
		}
	}
}

// propose proposes a command and writes down what came of it. A limit of 0 is none: the call ends at the latest when its node stops.
func (w *world) propose(p *process, client int, cmd chaosCommand, limit time.Duration, async bool, opts ...raft.ProposeOption) chaosResult {
	data, err := json.Marshal(cmd)
	if err != nil {
		w.ledger.wrong("%v", err)
	}
	ctx := context.Background()
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	begin := time.Now()
	op := chaosOperation{client: client, cmd: cmd, call: w.ledger.clock.Add(1)}
	var result any
	if async {
		pending := p.node.ProposeAsync(ctx, data, opts...)
		<-pending.Committed()
		<-pending.Done()
		result, op.err = pending.Result()
		op.id, _ = pending.ID()
	} else {
		result, op.err = p.node.Propose(ctx, data, opts...)
	}
	op.end = w.ledger.clock.Add(1)
	if took := time.Since(begin); limit > 0 && took > limit {
		w.ledger.wrong("Propose took %v with a context of %v", took, limit)
	}
	uncertain := (*raft.UncertainError)(nil)
	switch {
	case op.err == nil:
		w.saw("acknowledged")
		if op.result, op.acknowledged = result.(chaosResult); !op.acknowledged {
			w.ledger.wrong("Propose of %s returns %v", cmd.Name, result)
		}
	case errors.As(op.err, &uncertain):
		op.id = uncertain.ID
		w.saw("uncertain")
	default:
		w.saw("refused")
		if !documented(op.err) {
			w.ledger.wrong("Propose ends with an error that its documentation does not name: %v", op.err)
		}
	}
	w.ledger.record(op)
	return op.result
}

// read is a linearizable read of one key.
func (w *world) read(p *process, client int, r *rand.Rand, limit time.Duration) string {
	op := chaosOperation{client: client, cmd: chaosCommand{Op: "get", Key: fmt.Sprintf("k%d", r.IntN(4))}, call: w.ledger.clock.Add(1)}
	w.bounded("Read", limit, func(ctx context.Context) { op.err = p.node.Read(ctx) })
	if op.err != nil {
		return ""
	}
	op.result, op.acknowledged = p.sm.get(op.cmd.Key), true
	op.end = w.ledger.clock.Add(1)
	w.saw("read")
	w.ledger.record(op)
	return op.result.Value
}

// documented reports whether the documentation of Propose names an error without effect.
func documented(err error) bool {
	for _, known := range []error{raft.ErrTooLarge, raft.ErrOverloaded, raft.ErrStorageFull, raft.ErrStaleTerm, raft.ErrDropped,
		raft.ErrNotLeader, raft.ErrStopped, context.DeadlineExceeded} {
		if errors.Is(err, known) {
			return true
		}
	}
	failed, removed := (*raft.FailedError)(nil), (*raft.MembershipError)(nil)
	return errors.As(err, &failed) || errors.As(err, &removed)
}
