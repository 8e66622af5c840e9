package raftsim

import (
	"fmt"
	"slices"
	"time"

	"github.com/steadyraft/raft"
)

// actions are what can go wrong, with their weights.
var actions = []struct {
	weight int
	fault  Fault
	do     func(w *world, v, other *server) (what string)
}{
	{10, Crash, func(w *world, v, _ *server) string { return v.crashNow(false) }},
	{6, PowerLoss, func(w *world, v, _ *server) string { return v.crashNow(true) }},
	{8, Crash, func(w *world, v, _ *server) string { return v.crashAtOperation(false) }},
	{8, PowerLoss, func(w *world, v, _ *server) string { return v.crashAtOperation(true) }},
	{6, Crash, func(w *world, v, _ *server) string { return v.crashAtEffect(false) }},
	{6, PowerLoss, func(w *world, v, _ *server) string { return v.crashAtEffect(true) }},
	{2, PowerLoss, func(w *world, _, _ *server) string { return w.blackout() }},
	{40, Crash | PowerLoss | SyncError, func(w *world, v, _ *server) string { return w.restart(v) }},
	{6, Pause, func(w *world, v, _ *server) string { return w.pauseOne(v) }},
	{6, SlowDisk, func(w *world, v, _ *server) string { return w.slowDisk(v) }},
	{8, SlowApply, func(w *world, v, _ *server) string { return w.slowApply(v) }},
	{3, SyncError, func(w *world, v, _ *server) string { return v.breakSyncs() }},
	{5, DiskFull, func(w *world, v, _ *server) string { return w.fillDisk(v) }},
	{8, Partition, func(w *world, v, other *server) string { return w.cutLink(v, other) }},
	{5, Partition, func(w *world, v, _ *server) string { return w.isolate(v) }},
	{5, Partition, func(w *world, _, _ *server) string { return w.split() }},
	{3, Partition, func(w *world, v, _ *server) string { return w.bridge(v) }},
	{25, Partition | Delay, func(w *world, _, _ *server) string { return w.mend() }},
	{3, Delay, func(w *world, v, other *server) string { return w.delayLink(v, other) }},
	{6, Delay, func(w *world, v, _ *server) string { return w.delayTo(v) }},
	{6, HalfOpen, func(w *world, v, other *server) string { return w.openHalf(v, other) }},
	{6, Reset, func(w *world, v, other *server) string { return w.reset(v, other) }},
	{5, Clock, func(w *world, v, _ *server) string { return w.changeClock(v) }},
	{20, Membership, func(w *world, v, other *server) string { return w.changeMembership(other) }},
	{8, Transfer, func(w *world, _, other *server) string { return w.transfer(other) }},
	{3, Transfer, func(w *world, v, _ *server) string { return v.toggleAbstain() }},
	{8, Damage, func(w *world, v, _ *server) string { return w.spoil(v) }},
	{10, Snapshot, func(w *world, v, _ *server) string { return v.snapshotByOperator() }},
}

func names(a, b *server) string { return fmt.Sprintf("%s and %s", a.id, b.id) }

// nextFault draws one action and carries it out, unless it is left out, then plans the next.
func (w *world) nextFault() {
	if w.healed || w.knobs.faults == 0 {
		return
	}
	r := w.forFaults
	total := 0
	for i := range actions {
		if actions[i].fault&w.knobs.faults != 0 {
			total += actions[i].weight
		}
	}
	if total == 0 {
		return
	}
	at := r.IntN(total)
	v, other := pick(r, w.servers...), pick(r, w.servers...)
	pause := upTo(r, w.knobs.faultPause)
	number := w.drawn
	w.drawn++
	if w.plan.takesPlace(number) {
		for i := range actions {
			if actions[i].fault&w.knobs.faults == 0 {
				continue
			}
			if at -= actions[i].weight; at < 0 {
				w.carry(number, actions[i].do(w, v, other))
				break
			}
		}
	}
	w.after(max(pause, w.quiet), w.nextFault)
	w.quiet = 0
}

// carry notes what was done; "": there was nothing to do.
func (w *world) carry(number int, what string) {
	if what == "" {
		return
	}
	w.printf(nil, "fault %d: %s", number, what)
	w.faultLog = append(w.faultLog, fmt.Sprintf("fault %d at %v: %s", number, round(w.now), what))
	w.trace.mix(uint64(number), uint64(len(what)))
}

// faulty reports whether a server is in such a state that it cannot be relied on, or will get there.
func (v *server) faulty() bool {
	h := &v.health
	return !v.up() || v.paused || v.crashing || v.effects > 0 || h.full || h.failSyncs > 0 || h.failWrites > 0 || v.sick.hurt || v.sick.snapshot || h.hangUntil > v.w.now
}

// mayFail reports whether one more server may become faulty.
func (v *server) mayFail() bool {
	limit, n := v.w.opts.MaxFaulty, 0
	for _, o := range v.w.servers {
		if o != v && o.faulty() {
			n++
		}
	}
	return limit == 0 || n < limit || v.faulty()
}

func (v *server) crashNow(power bool) string {
	if !v.up() || !v.mayFail() {
		return ""
	}
	// Of the write under way any part may have been done.
	if len(v.writer.queue) > 0 && v.w.forFaults.IntN(2) == 0 {
		v.w.hit(crashDuringWrite)
		v.crashSoon(6, power)
		batch := v.writer.queue[0].Batch
		if err := v.writeBatch(batch); err != nil {
			v.memory.inDoubt(&batch)
		} else { // it was done, and nobody has been told
			v.w.hit(crashBeforePersisted)
		}
	}
	v.crash(power)
	return fmt.Sprintf("%s crashes, power lost: %v", v.id, power)
}

func (v *server) crashAtOperation(power bool) string {
	if !v.up() || !v.mayFail() {
		return ""
	}
	v.crashSoon(25, power)
	return fmt.Sprintf("%s will crash at an operation on its disk, power lost: %v", v.id, power)
}

func (v *server) crashAtEffect(power bool) string {
	if !v.up() || !v.mayFail() {
		return ""
	}
	v.memory.powerFails, v.effects = power, 1+v.w.forFaults.IntN(12)
	return fmt.Sprintf("%s will crash before its effect %d, power lost: %v", v.id, v.effects, power)
}

func (w *world) blackout() string {
	if limit := w.opts.MaxFaulty; limit > 0 && limit < len(w.servers) {
		return ""
	}
	w.hit(allLosePower)
	for _, v := range w.servers {
		if v.up() {
			v.crash(true)
		}
	}
	for _, v := range w.servers {
		if w.forFaults.IntN(3) > 0 {
			w.restart(v)
		}
	}
	return "all servers lose power"
}

func (w *world) restart(v *server) string {
	if v.up() || v.sick.gone {
		return ""
	}
	if w.forFaults.IntN(10) == 0 {
		v.crashSoon(30, w.forFaults.IntN(2) == 0) // again, perhaps in the middle of recovery
	}
	v.start()
	return fmt.Sprintf("%s starts", v.id)
}

func (w *world) pauseOne(v *server) string {
	if l := w.leader(); l != nil && w.forFaults.IntN(3) == 0 {
		v = l
	}
	if !v.up() || v.paused || !v.mayFail() {
		return ""
	}
	d := upTo(w.forFaults, pick(w.forFaults, 500*time.Millisecond, 500*time.Millisecond, 500*time.Millisecond, 4*time.Second, 4*time.Second))
	if w.knobs.faultTime > longPause && w.forFaults.IntN(2) == 0 {
		d = longPause + upTo(w.forFaults, 20*time.Second)
	}
	w.hitIf(v.role == raft.Leader, leaderPaused)
	v.pause()
	alone := v.role == raft.Leader && w.knobs.faults&Partition != 0 && w.forFaults.IntN(2) == 0
	if alone { // when it resumes, it has heard nothing of a successor
		w.quiet = d
		for _, o := range w.servers {
			if o != v {
				w.setCut(o, v, true)
			}
		}
	}
	run := v.run
	w.after(d, func() {
		if v.run == run {
			v.resume()
		}
	})
	return fmt.Sprintf("%s stands still for %v, nobody can reach it: %v", v.id, round(d), alone)
}

func (w *world) slowDisk(v *server) string {
	if w.forFaults.IntN(2) == 0 && v.mayFail() {
		v.health.hangUntil = w.now + upTo(w.forFaults, 3*time.Second)
		return fmt.Sprintf("disk of %s hangs until %v", v.id, round(v.health.hangUntil))
	}
	v.health.slow = pick(w.forFaults, 0, 20*time.Millisecond, 300*time.Millisecond)
	return fmt.Sprintf("disk of %s is %v slower", v.id, v.health.slow)
}

func (w *world) slowApply(v *server) string {
	v.health.applyAfter = w.now + upTo(w.forFaults, 4*time.Second)
	return fmt.Sprintf("state machine of %s does nothing until %v", v.id, round(v.health.applyAfter))
}

func (v *server) breakSyncs() string {
	if !v.mayFail() {
		return ""
	}
	if r := v.w.forFaults; r.IntN(3) == 0 {
		v.health.failWrites, v.health.writesPart = 1+r.IntN(2), pick(r, 0, 1, 512, 700, 4096)
		v.applyHealth()
		return fmt.Sprintf("next %d writes of %s fail, behind %d bytes", v.health.failWrites, v.id, v.health.writesPart)
	}
	v.health.failSyncs, v.health.failNames = 1+v.w.forFaults.IntN(2), v.w.forFaults.IntN(4) == 0
	v.applyHealth()
	return fmt.Sprintf("next %d syncs of %s fail, of directories only: %v", v.health.failSyncs, v.id, v.health.failNames)
}

func (w *world) fillDisk(v *server) string {
	if !v.mayFail() {
		return ""
	}
	v.health.full = true
	v.applyHealth()
	d := upTo(w.forFaults, 2500*time.Millisecond)
	w.after(d, func() {
		v.health.full = false
		v.applyHealth()
	})
	return fmt.Sprintf("disk of %s is full for %v", v.id, round(d))
}

func (w *world) setCut(a, b *server, cut bool) { w.link(a, b).cut = cut }

func (w *world) cutLink(v, other *server) string {
	if v == other {
		return ""
	}
	w.setCut(v, other, true)
	if w.forFaults.IntN(2) == 0 {
		w.hit(oneWayCut)
		return fmt.Sprintf("nothing gets from %s to %s", v.id, other.id)
	}
	w.setCut(other, v, true)
	return "cut between " + names(v, other)
}

func (w *world) isolate(v *server) string {
	if l := w.leader(); l != nil && w.forFaults.IntN(2) == 0 {
		v = l
	}
	if v.role == raft.Leader && v.up() {
		w.hit(leaderIsolated)
		if w.forFaults.IntN(2) == 0 {
			w.quiet = upTo(w.forFaults, 8*w.knobs.core.ElectionTimeout) // the others go on without it, and compact
		}
	}
	in, out := true, true
	switch w.forFaults.IntN(4) {
	case 0:
		in = false
	case 1:
		out = false
	}
	for _, o := range w.servers {
		if o != v {
			w.setCut(o, v, in)
			w.setCut(v, o, out)
		}
	}
	return fmt.Sprintf("%s is isolated, inwards %v, outwards %v", v.id, in, out)
}

// split puts every server on one of two sides.
func (w *world) split() string {
	side := make([]bool, len(w.servers))
	for i := range side {
		side[i] = w.forFaults.IntN(2) == 0
	}
	for i := range w.servers {
		for j := range w.servers {
			w.network.links[i][j].cut = side[i] != side[j]
		}
	}
	w.hit(networkSplit)
	return fmt.Sprintf("network splits: %v", side)
}

// bridge leaves two sides that only one server can reach.
func (w *world) bridge(v *server) string {
	w.split()
	for _, o := range w.servers {
		w.setCut(o, v, false)
		w.setCut(v, o, false)
	}
	w.hit(networkBridge)
	return fmt.Sprintf("only %s connects both sides", v.id)
}

// makeLate lets messages take longer: from what an election timeout just allows to what makes every reply an answer from the past. It
// may begin with a silence of that length; or it may get late by and by, so that something always arrives and nobody notices.
func (w *world) makeLate(l *link, d time.Duration, sudden bool) {
	l.late, l.lateSince = d, w.now
	if sudden {
		l.lateSince -= d
	}
}

func (w *world) lateness() time.Duration {
	return w.knobs.core.ElectionTimeout * time.Duration(pick(w.forFaults, 2, 4, 12, 16, 48)) / 4
}

func (w *world) delayLink(v, other *server) string {
	if v == other {
		return ""
	}
	d := w.lateness()
	w.makeLate(w.link(v, other), d, w.forFaults.IntN(2) == 0)
	w.hit(linkLate)
	return fmt.Sprintf("messages from %s to %s take %v longer", v.id, other.id, round(d))
}

// delayTo makes all that a server hears old news, mostly at a leader; and some time later nobody may hear it any more. Such a leader
// goes on to collect acknowledgements while a successor is at work.
func (w *world) delayTo(v *server) string {
	if l := w.leader(); l != nil && w.forFaults.IntN(4) > 0 {
		v = l
	}
	timeout := w.knobs.core.ElectionTimeout
	d, sudden, silent := w.lateness(), w.forFaults.IntN(4) == 0, w.forFaults.IntN(3) > 0
	after := timeout + upTo(w.forFaults, 3*timeout) // when it is that late, what it hears then lasts longer than an election takes
	if silent {
		d, sudden = 12*timeout, false
		if v.up() && v.role == raft.Leader {
			w.quiet = after + 3*timeout + upTo(w.forFaults, 3*timeout) // until a successor has been at work for a while
		}
	}
	w.hit(linkLate)
	w.hitIf(v.up() && v.role == raft.Leader, leaderHearsLate)
	for _, o := range w.servers {
		if o != v {
			w.makeLate(w.link(o, v), d, sudden)
		}
	}
	if silent {
		w.after(after, func() {
			if w.healed {
				return
			}
			for _, o := range w.servers {
				if o != v && w.link(o, v).late > 0 {
					w.setCut(v, o, true)
				}
			}
		})
	}
	return fmt.Sprintf("messages to %s take %v longer; is cut off later: %v", v.id, round(d), silent)
}

func (w *world) openHalf(v, other *server) string {
	if v == other {
		return ""
	}
	d := upTo(w.forFaults, pick(w.forFaults, 2*w.knobs.core.HeartbeatInterval, w.knobs.core.ElectionTimeout, 4*time.Second))
	w.halfOpen(v, other, d)
	return fmt.Sprintf("%s has lost the connection from %s, which notices in %v", other.id, v.id, round(d))
}

func (w *world) mend() string {
	if !w.network.anyBroken() {
		return ""
	}
	w.network.mend()
	for _, v := range w.servers {
		if v.up() {
			w.connected(v)
		}
	}
	return "network is whole again"
}

func (w *world) changeClock(v *server) string {
	rate := time.Duration(realRate/2 + w.forFaults.IntN(realRate*3/2+1))
	if w.forFaults.IntN(2) == 0 {
		rate = realRate
	}
	v.setRate(rate)
	w.hit(clockRateChanged)
	return fmt.Sprintf("clock of %s runs at %.2f", v.id, float64(rate)/realRate)
}

// leader finds a server that believes that it leads: the one of the latest term.
func (w *world) leader() *server {
	var l *server
	for _, v := range w.servers {
		if v.up() && !v.paused && v.role == raft.Leader && (l == nil || v.term > l.term) {
			l = v
		}
	}
	return l
}

// maxMembers bounds how many servers operators add.
const maxMembers = 4

func (w *world) changeMembership(target *server) string {
	l := w.leader()
	if l == nil {
		return ""
	}
	r := w.forFaults
	var ch raft.Change
	switch r.IntN(8) {
	case 0, 1, 2:
		ch.Promote = []raft.NodeID{learner(l, target.id)}
	case 3:
		ch.Demote = []raft.NodeID{target.id}
	case 4:
		if r.IntN(2) == 0 && len(l.conf.Servers) > 2 {
			ch.Remove = []raft.NodeID{pick(r, target.id, target.id, l.id)}
		}
	case 5, 6:
		if len(w.servers) < w.knobs.founders+maxMembers {
			v := w.newServer(raft.NodeID(fmt.Sprintf("n%d", len(w.servers)+1)))
			v.start()
			ch.Add = []raft.Server{{ID: v.id, Priority: pick[uint8](r, 0, 0, 1)}}
		}
	case 7:
		ch.Priority = map[raft.NodeID]uint8{target.id: uint8(r.IntN(3))}
		if other := learner(l, target.id); other != target.id {
			ch.Promote, ch.Demote = []raft.NodeID{other}, []raft.NodeID{target.id}
		}
	}
	if r.IntN(4) == 0 {
		ch.IfIndex = pick(r, l.confAt, 1)
	}
	var err error
	l.input("change membership", func(c *raft.Core) { _, err = c.ChangeMembership(l.local(), ch) })
	w.sawChange(l, ch, err)
	return fmt.Sprintf("%s changes the membership: add %d, promote %v, demote %v, remove %v: %v", l.id, len(ch.Add), ch.Promote, ch.Demote, ch.Remove, err)
}

// learner finds the last member that could be promoted, or else takes the server given.
func learner(l *server, otherwise raft.NodeID) raft.NodeID {
	for _, s := range slices.Backward(l.conf.Servers) {
		if s.Suffrage == raft.NonVoter {
			return s.ID
		}
	}
	return otherwise
}

func (w *world) transfer(target *server) string {
	l := w.leader()
	if l == nil {
		return ""
	}
	to := target.id
	if w.forFaults.IntN(3) == 0 {
		to = ""
	}
	var err error
	l.input("change leader", func(c *raft.Core) { err = c.ChangeLeader(l.local(), to) })
	w.hitIf(err == nil, transferBegun)
	l.transferring = l.transferring || err == nil && l.role == raft.Leader
	w.hitIf(err != nil, transferRefused)
	return fmt.Sprintf("%s hands over to %q: %v", l.id, to, err)
}

func (v *server) toggleAbstain() string {
	if !v.up() || v.paused {
		return ""
	}
	v.abstain = !v.abstain
	on := v.abstain
	v.w.hitIf(on && v.role == raft.Leader, leaderAbstained)
	v.input("abstain", func(c *raft.Core) { c.Abstain(v.local(), on) })
	return fmt.Sprintf("%s abstains: %v", v.id, on)
}

func (v *server) snapshotByOperator() string {
	if !v.up() || v.paused {
		return ""
	}
	v.takeSnapshot()
	return fmt.Sprintf("%s is asked for a snapshot", v.id)
}

// heal ends all faults (SAFETY inv 30).
func (w *world) heal() {
	w.printf(nil, "heal")
	w.healed = true
	w.network.heal()
	for _, v := range w.servers {
		v.health, v.effects, v.crashing = health{}, 0, false
		v.disk.FailFrom(-1)
		v.applyHealth()
		if v.up() {
			v.setRate(realRate)
			v.resume()
			if v.abstain {
				v.abstain = false
				v.input("abstain", func(c *raft.Core) { c.Abstain(v.local(), false) })
			}
			w.connected(v)
			v.scrub(1<<20, true)
			continue
		}
		v.clock = clock{since: w.now, base: v.local(), rate: realRate}
		v.start()
	}
	w.after(healAgain, w.helpWithSnapshots)
	w.after(giveUpAfter, w.standstill)
}

// healAgain is how long after everything was healed an operator looks whether a server waits for a snapshot.
const healAgain = 5 * time.Second

// helpWithSnapshots has snapshots taken if a server waits for one: nobody else may have one that reaches as far.
func (w *world) helpWithSnapshots() {
	if !slices.ContainsFunc(w.servers, func(v *server) bool { return v.up() && v.ill() }) {
		return
	}
	for _, v := range w.servers {
		if v.up() {
			v.takeSnapshot()
		}
	}
}
