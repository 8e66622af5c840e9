package raftsim

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/snapshot"
	"github.com/steadyraft/raft/storage/vfs"
	"github.com/steadyraft/raft/storage/wal"
)

// server is one server: its computer, which lasts, and its process, which does not.
type server struct {
	w        *world
	id       raft.NodeID
	position int  // in world.servers
	crashing bool // at one of the next operations on its disk
	disk     *vfs.Disk
	cfg      raft.CoreConfig
	random   *rand.Rand // what a process draws: replica, tags of segments, seeds of cores
	run      int        // counts the starts
	clock    clock
	health   health

	process
	memory memory
	sick   sickness
}

// process is what a crash ends.
type process struct {
	core     *raft.Core // nil: down
	wal      *wal.WAL
	identity raft.Identity
	wakeAt   time.Duration // when its timer is set to; -1: not set
	paused   bool
	pausedAt time.Duration
	backlog  []event // what happened while it was paused

	// What the core has last said.
	role   raft.Role
	term   raft.Term
	leader raft.NodeID
	conf   raft.Configuration // in force
	confAt raft.Index
	commit raft.Index

	writer  writer
	applier applier
	takes   bool // a snapshot is being received
	effects int  // until it crashes; 0: no crash is planned
	failed  bool // the storage has failed; the process ends as soon as it has handed over
	abstain bool

	namedMissing bool // it has said which entry keeps it from leading

	discards     raft.Index // the core has said that it cuts its log off from here on
	transferring bool

	waiting  map[raft.Index]*call    // proposals by index; looked up, never walked
	embedded map[raft.Index]proposal // the same of an embedder
	reads    map[uint64]*call        // looked up; walked in the order of their numbers only
	nextID   uint64
}

// health is what is wrong with a disk.
type health struct {
	slow       time.Duration // added to every sync
	hangUntil  time.Duration
	applyAfter time.Duration // the state machine takes that long
	full       bool
	failSyncs  int  // so many syncs from now on fail
	failNames  bool // those of directories only
	failWrites int  // so many writes from now on fail
	writesPart int  // of each of them, so many bytes are written
}

// up reports whether the process runs.
func (v *server) up() bool { return v.core != nil }

// clock is a server's own, at numerator/denominator of the real rate since a moment.
type clock struct {
	since, base time.Duration
	rate        time.Duration // in sixteenths
}

const realRate = 16

func (c clock) read(now time.Duration) time.Duration { return c.base + (now-c.since)*c.rate/realRate }

// when is the first real moment at which the clock shows t.
func (c clock) when(t time.Duration) time.Duration {
	return c.since + ((t-c.base)*realRate+c.rate-1)/c.rate
}

func (v *server) local() time.Duration { return v.clock.read(v.w.now) }

// setRate changes how fast the clock runs, from now on.
func (v *server) setRate(rate time.Duration) {
	v.clock = clock{since: v.w.now, base: v.local(), rate: rate}
	v.wakeAt = -1
	v.armTimer()
}

func (w *world) newServer(id raft.NodeID) *server {
	n := uint64(len(w.servers))
	r := stream(w.seed, 1<<16+n)
	v := &server{w: w, id: id, position: len(w.servers), disk: vfs.New(r.Uint64()), random: r, cfg: w.draw(r, id), clock: clock{rate: realRate}}
	v.memory = newMemory()
	w.servers = append(w.servers, v)
	w.network.grow()
	if w.embedding != nil {
		w.embedding.servers = append(w.embedding.servers, &Server{v})
	}
	return v
}

const dataDir = "data"

func (v *server) newWAL() *wal.WAL {
	return wal.New(dataDir, wal.Options{
		FS: v.disk, Random: v.random.Uint64, Logger: slog.New(slog.DiscardHandler),
		MinSegmentBytes: v.w.knobs.segmentBytes, MaxSegmentBytes: v.w.knobs.largestBytes,
		Snapshots: snapshot.Options{ChunkBytes: v.w.knobs.chunkBytes},
	})
}

// bootstrap founds the cluster on this server's disk, as an operator does.
func (v *server) bootstrap(conf raft.Configuration) error {
	st := v.newWAL()
	if err := raft.Bootstrap(context.Background(), st, v.id, conf); err != nil {
		return err
	}
	rec, err := st.Open(context.Background(), raft.Identity{})
	if err != nil {
		return err
	}
	es, err := st.Entries(1, 2, 1)
	if err != nil {
		return err
	}
	v.memory.durable.apply(&raft.Batch{HardState: &rec.HardState, Entries: es})
	v.w.model.founded(es[0])
	return st.Close()
}

// start runs a process on the disk as it is: recovery, then the core. It may crash in the middle, or find that it cannot start now.
func (v *server) start() {
	w := v.w
	if v.sick.gone {
		return
	}
	v.run++
	v.process = process{wakeAt: -1, wal: v.newWAL(), waiting: map[raft.Index]*call{}, reads: map[uint64]*call{}}
	rec, err := v.wal.Open(context.Background(), raft.Identity{Cluster: "sim", Node: v.id})
	if err != nil {
		v.cannotStart(err)
		return
	}
	w.hitIf(v.wal.Stats().TornBatches > 0, unfinishedWriteCut)
	w.recoveryKeepsAcknowledged(v, &rec)
	v.recovers(&rec)
	v.identity = rec.Identity
	v.sick.refused, v.sick.unvouched = nil, false
	if err := v.recoverState(&rec); err != nil {
		v.cannotStart(err)
		return
	}
	cfg := v.cfg
	cfg.Seed = v.random.Uint64()
	core, err := raft.NewCore(cfg, v.local(), &rec)
	if err != nil {
		w.broken("start %s: %v", v.id, err)
		return
	}
	v.core = core
	v.inLog()
	st := core.Status(v.local())
	w.hitIf(v.lacksSnapshot(), startBehindLostSnapshot)
	v.term, v.role, v.conf, v.confAt, v.commit = st.Term, st.Role, st.Configuration, st.ConfigurationIndex, st.CommitIndex
	w.printf(v, "start %v", core)
	w.trace.mix(uint64(v.term), uint64(rec.LastIndex), rec.Identity.Incarnation)
	w.hitIf(rec.LastIndex < rec.Snapshot.Index, snapshotBeyondLogAtStart)
	w.hitIf(st.Configuration.Joint(), startInJoint)
	w.hitIf(rec.Blank(), startWithoutLog)
	v.carryOut()
	if v.core == nil {
		return
	}
	v.armTimer()
	w.connected(v)
	v.scrubLater()
	v.tellEmbedder(Embedder.Started)
}

// cannotStart says why a process ended before it took part in anything. What a healthy disk does not cause is a failure.
func (v *server) cannotStart(err error) {
	v.w.printf(v, "cannot start: %v", err)
	v.core = nil
	switch {
	case v.crashedBy(err):
		v.w.hit(crashInRecovery)
	case v.excused(err):
		v.w.hit(startRefusedByDisk)
	case v.refusal(err):
		v.disk = v.disk.Kill() // it may have got as far as to hold the lock
		v.applyFaults()
	default:
		v.w.broken("%s cannot start: %v", v.id, err)
	}
}

// input feeds the core, checks what has become of it, and carries out what it wants.
func (v *server) input(what string, do func(*raft.Core)) {
	w := v.w
	w.model.inputs++
	full := w.model.inputs%uint64(w.opts.CheckEvery) == 0
	var before *raft.Core
	if full {
		before = v.core.Clone()
	}
	was := *v.view()
	v.memory.prior, v.memory.priorConf = was, v.conf
	do(v.core)
	v.carryOut()
	if v.core == nil {
		return
	}
	w.checkInput(v, &was)
	if full {
		w.consistentCore(v, what, before)
	}
	if v.failed {
		v.crash(false)
		return
	}
	v.armTimer()
}

// view is what the core has said of itself, to compare before and after an input.
type view struct {
	role   raft.Role
	term   raft.Term
	commit raft.Index
}

func (v *server) view() *view { return &view{v.role, v.term, v.commit} }

// armTimer plans the next Tick, if the core wants it earlier than planned.
func (v *server) armTimer() {
	if v.core == nil || v.paused {
		return
	}
	at := max(v.clock.when(v.core.Deadline()), v.w.now)
	if v.wakeAt >= 0 && v.wakeAt <= at {
		return
	}
	v.wakeAt = at
	v.w.on(v, at-v.w.now, func() {
		if v.wakeAt == at {
			v.wakeAt = -1
			v.tick()
		}
	})
}

func (v *server) tick() {
	if v.core.Deadline() > v.local() {
		v.armTimer()
		return
	}
	v.input("tick", func(c *raft.Core) { c.Tick(v.local()) })
	if v.core != nil {
		v.w.tickAdvances(v)
		v.w.quorumHeardOrStepsDown(v)
	}
}

// effect is asked before every effect of a process, and reports whether it lives to see it: a crash may come between any two.
func (v *server) effect() bool {
	if v.effects > 0 {
		if v.effects--; v.effects == 0 {
			v.w.hit(crashBetweenEffects)
			v.crash(v.memory.powerFails)
		}
	}
	return v.core != nil
}

// carryOut does what the core wants, as a node does, until it wants nothing more.
func (v *server) carryOut() {
	w := v.w
	for v.core != nil && v.core.HasReady() && w.failure == nil {
		rd := v.core.Ready()
		for _, e := range rd.Events { // first, because what a leader may write depends on whether it still leads
			v.event(e)
		}
		for _, e := range rd.Events {
			if _, ended := e.(raft.TransferEnded); ended {
				v.transferring = false
			}
		}
		if rd.Write.Seq != 0 {
			if !v.effect() {
				return
			}
			v.queueWrite(rd.Write)
		}
		w.committed(v, rd.CommitIndex) // before anybody can be told, and the process can crash after that
		for i := range rd.Send {
			if !v.effect() {
				return
			}
			m := &rd.Send[i]
			w.trace.message(m)
			w.checkSend(v, m)
			w.send(v, *m)
		}
		asked := v.term
		for _, l := range rd.Loads {
			w.on(v, upTo(w.forDisks, w.diskTime()), func() { v.load(l, asked) })
		}
		v.queueApplies(rd.Apply)
		for _, t := range rd.Snapshots {
			v.sendSnapshot(t)
		}
		for _, r := range rd.Reads {
			if !v.effect() {
				return
			}
			w.clients.readResult(v, r)
		}
		if rd.Compact > 0 {
			w.noGap(v, rd.Compact)
			v.writer.compact = max(v.writer.compact, rd.Compact)
			v.wakeWriter()
		}
		for _, r := range rd.Refused {
			w.refusals(v, r)
		}
	}
}

// event follows what the core says of itself.
func (v *server) event(e raft.Event) {
	w := v.w
	switch e := e.(type) {
	case raft.LeaderChange:
		was := *v.view()
		w.termRises(v, e.Term)
		v.role, v.term, v.leader = e.Role, e.Term, e.Leader
		w.trace.mix(uint64(e.Role), uint64(e.Term), uint64(e.Reason))
		w.printf(v, "%v t%d leader %q (%v)", e.Role, e.Term, e.Leader, e.Reason)
		w.sawRoleChange(v, was.role, e)
		if e.Role == raft.Leader && (was.role != raft.Leader || was.term != e.Term) {
			w.elected(v)
		}
		if leads := e.Role == raft.Leader; leads != (was.role == raft.Leader) || leads && was.term != e.Term {
			v.tellEmbedder(Embedder.Led)
		}
	case raft.ConfigurationChange:
		w.printf(v, "configuration %d committed %v joint %v voters %v", e.Index, e.Committed, e.Configuration.Joint(), e.Configuration.Voters())
		w.sawConfiguration(v, e)
		v.conf, v.confAt = e.Configuration, e.Index
		v.memory.confSince = v.local()
		w.forgetStrangers(v)
		if e.Committed && !e.Configuration.Joint() && e.Configuration.IsRemoved(v.id) {
			v.endCalls() // no leader tells this server any more what becomes of its commands
		}
	case raft.TransferEnded:
		w.printf(v, "transfer to %q ended: %v", e.Target, e.Err)
		w.hitIf(e.Err == nil, transferCompleted)
		w.hitIf(e.Err != nil, transferFailed)
	case raft.EntriesRepaired, raft.EntriesDiscarded, raft.RecoveryStuck, raft.FenceLifted, raft.LostLog:
		v.damageEvent(e)
	case raft.ElectionStarted:
		w.printf(v, "election t%d pre-vote %v (%v)", e.Term, e.PreVote, e.Reason)
		w.electionStarts(v, e)
	}
}

// crash ends the process. With power the disk keeps what programs saw of it; without, only what was synced for sure.
func (v *server) crash(power bool) {
	w := v.w
	w.printf(v, "crash, power lost: %v", power)
	w.trace.mix(uint64(v.run))
	w.sawCrash(v, power)
	wasUp, incarnation := v.up(), v.identity.Incarnation
	v.endCalls()
	v.core, v.paused, v.backlog, v.crashing = nil, false, nil, false
	v.run++
	if power {
		v.disk = v.disk.Crash()
		w.sawPowerLoss(v.disk.Outcome())
	} else {
		v.disk = v.disk.Kill()
	}
	v.applyHealth()
	if wasUp {
		w.lost(v, incarnation, power)
	}
}

// endCalls tells every client that waits here that the connection broke.
func (v *server) endCalls() {
	for _, c := range v.w.clients.all {
		if cur := c.current; cur != nil && cur.at == v {
			v.w.clients.connectionBroke(cur)
		}
	}
}

// longPause is one during which everything that others believe of a server has become wrong.
const longPause = 20 * time.Second

// pause and resume are SIGSTOP and SIGCONT.
func (v *server) pause() {
	v.paused, v.pausedAt = true, v.w.now
	v.w.printf(v, "paused")
}

func (v *server) resume() {
	if !v.up() || !v.paused {
		return
	}
	v.paused = false
	v.w.printf(v, "resumed with %d events waiting", len(v.backlog))
	v.w.hitIf(v.role == raft.Leader, leaderResumed)
	v.w.hitIf(v.w.now-v.pausedAt >= longPause, pausedForLong)
	for _, e := range v.backlog { // in order, before anything later and before the timer
		v.w.nextSeq++
		e.at, e.seq = v.w.now, v.w.nextSeq
		v.w.events.push(e)
	}
	v.backlog, v.wakeAt = nil, -1
	v.armTimer()
}

// String describes the server for reports.
func (v *server) String() string {
	if v.core == nil {
		return fmt.Sprintf("%s is down", v.id)
	}
	return fmt.Sprintf("%v; state machine at %d", v.core, v.applier.applied)
}
