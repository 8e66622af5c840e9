package raftsim

import (
	"errors"
	"math/rand/v2"
	"time"

	"github.com/steadyraft/raft"
)

// clients ask the cluster, one operation at a time each, and remember what they were told.
type clients struct {
	w        *world
	all      []*client
	calls    []*call // in the order of their invocation
	think    time.Duration
	patience time.Duration // after that a client gives up, without knowing
	begun    bool
}

type client struct {
	number  int
	hint    raft.NodeID // who leads, as far as it knows
	current *call       // nil: it thinks
}

// outcome is what a client knows in the end (SAFETY inv 14).
type outcome uint8

const (
	pending outcome = iota
	answered
	unknown // it may have taken effect, or may still
)

// call is one operation of one client.
type call struct {
	client  *client
	op      Operation
	invoked time.Duration
	ended   time.Duration
	outcome outcome
	output  any
	ends    int // how often it was ended

	at      *server        // who works on it now; nil: nobody
	id      raft.EntryID   // where the present attempt was appended; zero: nowhere
	dropped []raft.EntryID // where earlier attempts were appended, which must never be committed
	readAt  raft.Index     // reads: what the state machine had applied that answered
	atLeast raft.Index     // reads: what was committed anywhere when the read began
}

func newClients(w *world, r *rand.Rand) clients {
	c := clients{w: w, think: pick(r, time.Millisecond, 10*time.Millisecond, 100*time.Millisecond, 500*time.Millisecond),
		patience: pick(r, 500*time.Millisecond, 3*time.Second, 15*time.Second)}
	for i := range 1 + r.IntN(w.opts.Workload.Clients) {
		c.all = append(c.all, &client{number: i})
	}
	return c
}

func (cs *clients) begin() {
	cs.begun = true
	for _, c := range cs.all {
		cs.w.after(upTo(cs.w.forClients, cs.think), func() { cs.invoke(c) })
	}
}

// callsAfterHeal is how long clients go on once everything is healed: what they ask then must be answered.
const callsAfterHeal = 3 * time.Second

func (cs *clients) over() bool { return cs.w.now > cs.w.faultTime()+callsAfterHeal }

// finished reports whether all clients have stopped.
func (cs *clients) finished() bool {
	if !cs.over() {
		return false
	}
	for _, c := range cs.all {
		if c.current != nil {
			return false
		}
	}
	return true
}

// maxCalls bounds a history, so that it can be checked.
const maxCalls = 600

func (cs *clients) invoke(c *client) {
	w := cs.w
	if limit := w.plan.calls; cs.over() || len(cs.calls) >= maxCalls || limit > 0 && len(cs.calls) >= limit {
		return
	}
	op := w.opts.Workload.Next(w.forClients, c.number, len(cs.calls))
	k := &call{client: c, op: op, invoked: w.now, atLeast: w.model.highest}
	cs.calls = append(cs.calls, k)
	c.current = k
	cs.attempt(k)
	if op.Command != nil && !w.healed { // a read has no effect, so it can be repeated for ever
		w.after(cs.patience, func() {
			if k.outcome == pending {
				w.hit(callTimedOut)
				cs.giveUp(k)
			}
		})
	}
}

// attempt asks some server, a little later.
func (cs *clients) attempt(k *call) {
	w := cs.w
	w.after(upTo(w.forClients, 10*time.Millisecond), func() {
		if k.outcome != pending {
			return
		}
		v := w.server(k.client.hint)
		if v == nil || !v.up() || w.forClients.IntN(10) == 0 {
			v = pick(w.forClients, w.servers...)
		}
		if !v.up() {
			cs.again(k)
			return
		}
		k.at = v
		w.on(v, 0, func() { // behind whatever waits there while it is paused
			if k.outcome != pending || k.at != v {
				return
			}
			if k.op.Command == nil {
				cs.read(v, k)
			} else {
				cs.propose(v, k)
			}
		})
	})
}

// again repeats a call that has taken no effect, after a pause.
func (cs *clients) again(k *call) {
	k.at, k.id = nil, raft.EntryID{}
	cs.w.after(10*time.Millisecond+upTo(cs.w.forClients, 50*time.Millisecond), func() {
		if k.outcome == pending {
			cs.attempt(k)
		}
	})
}

func (cs *clients) refused(k *call, err error) {
	var other *raft.NotLeaderError
	if errors.As(err, &other) {
		k.client.hint = other.Leader
	}
	cs.w.sawRefusal(err)
	cs.again(k)
}

func (cs *clients) propose(v *server, k *call) {
	w := cs.w
	entries := []raft.Entry{raft.NewCommand(k.op.Command)}
	if w.forClients.IntN(8) == 0 { // in company
		entries = []raft.Entry{raft.NewBarrier(), entries[0], raft.NewBarrier()}
	}
	at := len(entries) / 2
	v.input("propose", func(c *raft.Core) {
		first, n, err := c.Propose(v.local(), entries)
		if n <= at {
			if err == nil {
				w.broken("%s took %d of %d proposals and gave no reason", v.id, n, len(entries))
			}
			cs.refused(k, err)
			return
		}
		k.id = raft.EntryID{Term: first.Term, Index: first.Index + raft.Index(at)}
		if other := v.waiting[k.id.Index]; other != nil && other.at == v && other.id.Index == k.id.Index {
			cs.lost(other) // appended at the same index in an earlier term of office: another entry is there now
		}
		v.waiting[k.id.Index] = k
		w.printf(v, "client %d proposes %v", k.client.number, k.id)
	})
}

// lost ends an attempt of which it is not known whether it will be committed: a leader of another term may still do so.
func (cs *clients) lost(k *call) {
	cs.w.hit(outcomeUnknown)
	cs.giveUp(k)
}

// complete tells a client that waits at this server what became of its proposal.
func (v *server) complete(e *raft.Entry, result any) {
	w := v.w
	w.appliedEntry(v, e, result)
	v.proposalApplied(e, result)
	// Terms rise along the log, so behind an entry of a later term nothing of an earlier one will ever be committed. Without this a
	// lonely client would wait for ever for another entry at the place of its own (seed 9321).
	for _, c := range w.clients.all {
		if k := c.current; k != nil && k.outcome == pending && k.at == v && k.id.Index > e.Index && k.id.Term < e.Term {
			delete(v.waiting, k.id.Index)
			w.clients.wasDropped(k)
		}
	}
	k := v.waiting[e.Index]
	if k == nil {
		return
	}
	delete(v.waiting, e.Index)
	if k.outcome != pending || k.at != v || k.id.Index != e.Index {
		return
	}
	if k.id != e.ID() {
		w.clients.wasDropped(k)
		return
	}
	w.acknowledgedIsDurable(v, k.id)
	w.clients.end(k, answered, result)
}

// wasDropped tries a proposal once more whose entry will never be committed.
func (cs *clients) wasDropped(k *call) {
	cs.w.hit(proposalDropped)
	cs.w.printf(k.at, "client %d: %v was dropped", k.client.number, k.id)
	k.dropped = append(k.dropped, k.id)
	cs.again(k)
}

// skipped ends the calls whose effect came with a snapshot.
func (v *server) skipped(to raft.Index) {
	for _, c := range v.w.clients.all {
		if k := c.current; k != nil && k.at == v && k.id.Index > 0 && k.id.Index <= to {
			v.w.hit(resultSkippedBySnapshot)
			v.w.clients.giveUp(k)
		}
	}
}

// connectionBroke is what a client sees when the process that works for it ends.
func (cs *clients) connectionBroke(k *call) {
	if k.id == (raft.EntryID{}) {
		cs.again(k) // a read, or a proposal that was not appended
		return
	}
	cs.w.hit(outcomeUnknown)
	cs.giveUp(k)
}

func (cs *clients) giveUp(k *call) {
	if k.id == (raft.EntryID{}) && k.op.Command != nil {
		cs.w.hit(callNeverAppended)
	}
	cs.end(k, unknown, nil)
}

// end ends a call and lets its client think.
func (cs *clients) end(k *call, o outcome, output any) {
	w := cs.w
	w.callsEndOnce(k)
	k.outcome, k.output, k.ended = o, output, w.now
	k.at = nil
	c := k.client
	c.current = nil
	w.trace.mix(uint64(o), uint64(k.id.Index))
	w.printf(nil, "client %d: %s", c.number, cs.describe(k))
	w.after(upTo(w.forClients, cs.think), func() { cs.invoke(c) })
}

func (cs *clients) describe(k *call) string {
	if k.outcome != answered {
		return cs.w.opts.Workload.Model.Describe(k.op.Input, "unknown")
	}
	return cs.w.opts.Workload.Model.Describe(k.op.Input, k.output)
}

// read begins a linearizable read.
func (cs *clients) read(v *server, k *call) {
	v.nextID++
	id := v.nextID
	k.atLeast = max(k.atLeast, cs.w.model.acknowledged)
	v.reads[id] = k
	cs.w.sawRead(v, k)
	v.input("read", func(c *raft.Core) {
		if err := c.ReadIndex(v.local(), id); err != nil {
			delete(v.reads, id)
			cs.refused(k, err)
		}
	})
}

// readResult is told by the core that a read is confirmed, or has failed.
func (cs *clients) readResult(v *server, r raft.ReadResult) {
	w := cs.w
	k := v.reads[r.ID]
	if k == nil {
		w.broken("inv 14: read %d of %s ended twice, or was never begun", r.ID, v.id)
		return
	}
	delete(v.reads, r.ID)
	if k.outcome != pending || k.at != v {
		return
	}
	if r.Err != nil {
		w.hit(readFailed)
		cs.refused(k, r.Err)
		return
	}
	w.hit(readConfirmed)
	w.readsAreFresh(v, k, r.Index)
	at := v
	o := pick(w.forClients, w.servers...)
	if _, member := v.conf.Server(o.id); member && o.up() && o != v && w.forClients.IntN(3) == 0 {
		at = o // a follower that was told the index answers as well
		w.hit(readAtFollower)
	}
	k.at = at
	w.on(at, upTo(w.forClients, 10*time.Millisecond), func() { cs.answerRead(at, k, r.Index) })
}

// answerRead waits until the local state machine has come as far as the index.
func (cs *clients) answerRead(v *server, k *call, index raft.Index) {
	w := cs.w
	if k.outcome != pending || k.at != v {
		return
	}
	if v.applier.applied >= index {
		k.readAt = v.applier.applied
		cs.end(k, answered, w.opts.Workload.Read(v.applier.sm, k.op.Input))
		return
	}
	if w.now-k.invoked > 10*time.Second {
		cs.again(k) // a follower that is removed, or far behind
		return
	}
	w.hit(readWaitedForApply)
	w.on(v, 20*time.Millisecond, func() { cs.answerRead(v, k, index) })
}
