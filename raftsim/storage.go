package raftsim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
)

// writer makes the core's writes durable, one after another, as the node's log writer does.
type writer struct {
	queue   []raft.Write
	busy    bool // a write is on its way to the disk, or planned
	full    bool // a command found no room
	noSpare bool // nor is there any to make ready for later ones
	compact raft.Index
	idle    uint64 // counts the writes, so that only the last one is followed by Idle
}

func (v *server) queueWrite(wr raft.Write) {
	w := v.w
	w.trace.mix(wr.Seq, uint64(wr.TruncateFrom), uint64(len(wr.Entries)))
	w.checkWrite(v, &wr)
	v.writer.queue = append(v.writer.queue, wr)
	w.hitIf(len(v.writer.queue) > 3, manyWritesQueued)
	v.wakeWriter()
}

// wakeWriter plans the next write.
func (v *server) wakeWriter() {
	if v.writer.busy || len(v.writer.queue) == 0 && v.writer.compact == 0 {
		return
	}
	v.writer.busy = true
	v.w.on(v, upTo(v.w.forDisks, v.w.knobs.syncTime)+v.health.slow, v.write)
}

// write runs when a write reaches the disk and is synced: both happen at one moment of simulated time, since nobody can see a state
// in between but a crash, and that can come at any operation on a file.
func (v *server) write() {
	w := v.w
	if hang := v.health.hangUntil; hang > w.now {
		w.hit(diskHung)
		w.on(v, hang-w.now, v.write)
		return
	}
	v.writer.busy = false
	todo := len(v.writer.queue)
	if !w.knobs.mergeWrites {
		todo = min(todo, 1)
	}
	var last uint64
	for range todo {
		wr := &v.writer.queue[0]
		err := v.writeBatch(wr.Batch)
		if err == nil {
			v.w.printf(v, "durable: write %d, log ends at %d", wr.Seq, v.memory.durable.last())
			last = wr.Seq
			if v.writer.full && hasCommand(wr.Entries) {
				v.roomAgain()
			}
			v.writer.queue = v.writer.queue[1:]
			continue
		}
		if errors.Is(err, raft.ErrStorageFull) {
			v.awaitRoom(err)
			break
		}
		v.memory.inDoubt(&wr.Batch)
		if !v.storageBroke(fmt.Errorf("write %d: %w", wr.Seq, err)) {
			return
		}
		break
	}
	if v.writer.compact > 0 && v.core != nil {
		to := v.writer.compact
		v.writer.compact = 0
		if err := v.wal.Compact(to); err != nil && !v.storageBroke(fmt.Errorf("compact to %d: %w", to, err)) {
			return
		}
		v.memory.compactedTo = max(v.memory.compactedTo, to)
		v.sick.holes = slices.DeleteFunc(v.sick.holes, func(h hole) bool { return h.id.Index <= to })
		w.hit(logCompacted)
	}
	if last > 0 {
		v.input("persisted", func(c *raft.Core) { c.Persisted(v.local(), last) })
	}
	if v.core == nil {
		return
	}
	v.tidyLater()
	v.wakeWriter()
}

func hasCommand(es []raft.Entry) bool {
	for i := range es {
		if es[i].Type == raft.EntryCommand {
			return true
		}
	}
	return false
}

// awaitRoom tries again after a pause.
func (v *server) awaitRoom(err error) {
	v.w.hit(writeFoundDiskFull)
	v.setFull(&v.writer.full, true, err)
	if v.core == nil {
		return
	}
	v.writer.busy = true
	v.w.on(v, 100*time.Millisecond, v.write)
}

// roomAgain notes that commands fit again, or may be tried.
func (v *server) roomAgain() {
	v.w.hit(diskHasRoomAgain)
	v.setFull(&v.writer.full, false, nil)
}

// setFull changes one of the two reasons for which a disk counts as full, and tells the core when that makes a difference.
func (v *server) setFull(reason *bool, full bool, err error) {
	before := v.writer.full || v.writer.noSpare
	*reason = full
	switch after := v.writer.full || v.writer.noSpare; {
	case after && !before:
		v.w.printf(v, "disk full: %v", err)
		v.input("storage full", func(c *raft.Core) { c.StorageState(v.local(), raft.StorageFull) })
	case before && !after:
		v.input("storage ok", func(c *raft.Core) { c.StorageState(v.local(), raft.StorageOK) })
	}
}

// storageBroke handles an error that is final for the process: a crash, or a disk that failed. In the second case the core hands
// over before the process ends. It reports whether the process still runs.
func (v *server) storageBroke(err error) bool {
	if v.crashedBy(err) {
		return false
	}
	if !v.excused(err) {
		v.w.broken("%s: %v", v.id, err)
		return false
	}
	v.w.hit(storageFailed)
	v.w.hitIf(v.role == raft.Leader, leaderStorageFailed)
	v.w.printf(v, "storage failed: %v", err)
	v.failed = true
	v.input("storage failed", func(c *raft.Core) { c.StorageState(v.local(), raft.StorageFailed) })
	return v.core != nil
}

// crashedBy ends the process if its disk has reached the operation at which a crash was planned.
func (v *server) crashedBy(err error) bool {
	if !errors.Is(err, vfs.ErrCrashed) {
		return false
	}
	v.w.hit(crashBetweenOperations)
	v.crash(v.memory.powerFails)
	return true
}

// excused reports whether an error is one that this simulation has caused.
func (v *server) excused(err error) bool {
	var corrupt *raft.CorruptionError
	if errors.As(err, &corrupt) && corrupt.Damage == (raft.Damage{}) && v.sick.snapshot && v.up() {
		v.w.hit(restoreFoundDamage)
		return true
	}
	return errors.Is(err, vfs.ErrIO) || errors.As(err, new(vfs.ShortWrite)) || errors.Is(err, raft.ErrStorageFull) || errors.Is(err, syscall.ENOSPC)
}

// tidyLater plans what a node does beside its writes, or when it is idle for a moment.
func (v *server) tidyLater() {
	v.writer.idle++
	mark := v.writer.idle
	v.w.on(v, upTo(v.w.forDisks, v.w.diskTime()), v.prepare) // too late, now and then: then a write has to do it
	v.w.on(v, 50*time.Millisecond, func() {
		if mark != v.writer.idle || len(v.writer.queue) > 0 {
			return
		}
		if err := v.wal.Idle(); err != nil {
			v.storageBroke(fmt.Errorf("idle: %w", err))
			return
		}
		if v.writer.full { // no write is left that would find out
			v.roomAgain()
		}
	})
}

// prepare does a slice of the work ahead of the writes.
func (v *server) prepare() {
	if hang := v.health.hangUntil; hang > v.w.now {
		v.w.on(v, hang-v.w.now, v.prepare)
		return
	}
	_, err := v.wal.Prepare() // a slice at a time; the next one comes after a write
	switch {
	case errors.Is(err, raft.ErrStorageFull):
		v.w.hit(prepareFoundDiskFull)
		v.w.hitIf(!v.writer.full && !v.writer.noSpare, prepareFoundDiskFullFirst)
		if !v.writer.noSpare { // one who tries again is enough
			v.setFull(&v.writer.noSpare, true, err)
			v.w.on(v, 500*time.Millisecond, v.prepareAgain)
		}
	case err != nil:
		v.crashedBy(err) // a write that needs what is missing will fail, and decide
	default:
		v.w.hitIf(v.writer.noSpare, spareAfterFullDisk)
		v.setFull(&v.writer.noSpare, false, nil)
	}
}

// prepareAgain is prepare for a disk that was full.
func (v *server) prepareAgain() {
	if !v.writer.noSpare {
		return
	}
	v.prepare()
	if v.core != nil && v.writer.noSpare {
		v.w.on(v, 500*time.Millisecond, v.prepareAgain)
	}
}

// applyHealth gives the disk its faults, after a change of them or of the disk.
func (v *server) applyHealth() {
	if v.health.full {
		v.disk.SetSpace(int64(v.w.forDisks.IntN(8 << 10)))
	} else {
		v.disk.SetSpace(-1)
	}
	v.applyFaults()
}

// applyFaults makes operations fail that are to fail.
func (v *server) applyFaults() {
	if v.health.failSyncs == 0 && v.health.failWrites == 0 {
		v.disk.SetFault(nil)
		return
	}
	v.disk.SetFault(func(op vfs.Op) error {
		if v.health.failWrites > 0 && op.Kind == vfs.OpWrite {
			v.health.failWrites--
			v.w.hit(writeFailed)
			if n := v.health.writesPart; n > 0 && n < op.Length {
				v.w.hit(writeTorn)
				if n%vfs.SectorSize != 0 {
					v.hurt() // part of a sector is what no crash leaves: a batch that nobody was told of may look damaged
				}
				return vfs.ShortWrite{N: n}
			}
			return vfs.ErrIO
		}
		if v.health.failSyncs == 0 || op.Kind != vfs.OpSyncDir && (op.Kind != vfs.OpSync || v.health.failNames) {
			return nil
		}
		v.health.failSyncs--
		v.w.hit(syncFailed)
		v.w.hitIf(op.Kind == vfs.OpSyncDir, directorySyncFailed)
		return vfs.ErrIO
	})
}

// crashSoon lets the process crash at one of the next operations on its disk.
func (v *server) crashSoon(within int, power bool) {
	v.memory.powerFails, v.crashing = power, true
	v.disk.FailFrom(v.disk.Ops() + v.w.forFaults.IntN(within))
}

// diskTime bounds work on a disk for which nobody waits with a vote or an acknowledgement.
func (w *world) diskTime() time.Duration {
	if w.healed {
		return min(w.knobs.readTime, 50*time.Millisecond)
	}
	return w.knobs.readTime
}

// load reads old entries for a follower that lags.
func (v *server) load(l raft.Load, asked raft.Term) {
	es, err := v.wal.Entries(l.Lo, l.Hi, l.MaxBytes)
	switch {
	case err == nil:
		v.w.hit(entriesLoaded)
		v.w.noDamagedByte(v, l.Lo, es)
		v.input("loaded", func(c *raft.Core) { c.Loaded(v.local(), l.ID, es) })
	case errors.Is(err, raft.ErrCompacted):
		v.w.hit(loadCompacted)
		v.input("load failed", func(c *raft.Core) { c.LoadFailed(v.local(), l.ID, raft.LoadCompacted) })
	case v.foundDamage(err):
		if v.core != nil {
			v.input("load failed", func(c *raft.Core) { c.LoadFailed(v.local(), l.ID, raft.LoadDamaged) })
		}
	case (v.role != raft.Leader || v.term != asked) && l.Hi > v.memory.durable.last()+1:
		v.w.hit(loadTruncated) // another leader has cut them off meanwhile
		v.input("load failed", func(c *raft.Core) { c.LoadFailed(v.local(), l.ID, raft.LoadDamaged) })
	default:
		v.storageBroke(fmt.Errorf("load [%d, %d): %w", l.Lo, l.Hi, err))
	}
}

// applier runs the state machine, as the node's does.
type applier struct {
	sm      raft.StateMachine
	queue   []raft.Apply
	busy    bool
	applied raft.Index
	waits   bool // for entries that cannot be read
	gap     bool // the next entries are compacted; a snapshot that covers them must follow
	since   int  // entries applied since the last snapshot
	taking  bool
}

// recoverState brings a new state machine to where the newest snapshot is.
func (v *server) recoverState(rec *raft.Recovered) error {
	v.applier = applier{sm: v.w.opts.StateMachine()}
	v.memory.agreed, v.memory.restored = 0, 0 // all begin empty
	if rec.Snapshot.Index == 0 {
		return nil
	}
	v.w.hit(startFromSnapshot)
	return v.restore(rec.Snapshot.Index)
}

// restore replaces the state by that of a snapshot.
func (v *server) restore(index raft.Index) error {
	meta, r, err := v.wal.Snapshots().Open(index)
	if err != nil {
		return fmt.Errorf("open snapshot %d: %w", index, err)
	}
	err = v.applier.sm.Restore(context.Background(), meta, r)
	if err == nil {
		_, err = io.Copy(io.Discard, r) // what checks the content stands at its end
	}
	if err = errors.Join(err, r.Close()); err != nil {
		return fmt.Errorf("restore snapshot %d: %w", index, err)
	}
	v.applier.applied, v.applier.gap, v.applier.since = index, false, 0
	v.memory.agreed, v.memory.restored = 0, index
	v.w.snapshotEqualsModel(v, &meta)
	return nil
}

func (v *server) queueApplies(pieces []raft.Apply) {
	if len(pieces) == 0 {
		return
	}
	v.applier.queue = append(v.applier.queue, pieces...)
	v.w.queueBounded(v)
	v.wakeApplier()
}

func (v *server) wakeApplier() {
	if v.applier.busy || len(v.applier.queue) == 0 {
		return
	}
	v.applier.busy = true
	d := v.w.knobs.applyTime
	if v.w.healed {
		d = min(d, time.Millisecond) // or the state machines would never come to an end
	}
	if v.applier.waits {
		d, v.applier.waits = d+repairPause, false
	}
	v.w.on(v, max(upTo(v.w.forDisks, d), v.health.applyAfter-v.w.now), v.apply)
}

// apply carries out the next piece.
func (v *server) apply() {
	a := &v.applier
	a.busy = false
	piece := a.queue[0]
	a.queue = a.queue[1:]
	switch {
	case piece.Restore != nil && v.restoreQueued():
		v.w.hit(restoreOvertaken)
		a.gap = true
	case piece.Restore != nil && piece.Restore.Index <= a.applied:
		a.gap = false // it was for entries that could not be read, and which came before it
		v.input("applied", func(c *raft.Core) { c.Applied(v.local(), v.applier.applied) })
	case piece.Restore != nil:
		v.w.hit(snapshotInstalled)
		v.w.hitIf(a.taking, snapshotInstalledWhileTaking)
		if err := v.restore(piece.Restore.Index); err != nil {
			v.storageBroke(err)
			return
		}
		v.skipped(piece.Restore.Index)
		v.input("restored", func(c *raft.Core) { c.Applied(v.local(), piece.Restore.Index) })
		v.tellEmbedder(Embedder.Applied)
	case a.gap:
	default:
		es := piece.Entries
		if es == nil {
			var err error
			lo := max(piece.Lo, a.applied+1)
			if es, err = v.stored(lo, piece.Hi); err != nil {
				v.storageBroke(err)
				return
			}
			if v.core == nil {
				return
			}
			if rest := lo + raft.Index(len(es)); rest < piece.Hi && !a.gap { // the rest cannot be read now
				a.queue = slices.Insert(slices.Clone(a.queue), 0, raft.Apply{Lo: rest, Hi: piece.Hi})
				a.waits = true
			}
		}
		for len(es) > 0 && es[0].Index <= a.applied { // handed out again behind a snapshot that came too late
			es = es[1:]
		}
		v.applyEntries(es)
	}
	if v.core != nil {
		v.wakeApplier()
	}
}

func (v *server) restoreQueued() bool {
	for i := range v.applier.queue {
		if v.applier.queue[i].Restore != nil {
			return true
		}
	}
	return false
}

// stored reads entries that are no longer in memory.
func (v *server) stored(lo, hi raft.Index) (all []raft.Entry, err error) {
	for lo < hi {
		es, err := v.wal.Entries(lo, hi, 500)
		switch {
		case err != nil && v.foundDamage(err):
			if v.restoreQueued() {
				v.applier.gap = true
			}
			return all, nil
		case errors.Is(err, raft.ErrCompacted) && v.restoreQueued():
			v.w.hit(applyCompacted)
			v.applier.gap = true
			return all, nil
		case err != nil:
			return nil, fmt.Errorf("read [%d, %d) to apply: %w", lo, hi, err)
		}
		v.w.hit(applyFromDisk)
		v.w.noDamagedByte(v, lo, es)
		all = append(all, es...)
		lo += raft.Index(len(es))
	}
	return all, nil
}

// applyEntries applies a piece in batches that end where states are compared.
func (v *server) applyEntries(es []raft.Entry) {
	k := &v.w.knobs
	for len(es) > 0 && v.core != nil && v.w.failure == nil {
		n := 1
		for n < len(es) && n < k.applyBatch && es[n-1].Index%k.hashEvery != 0 {
			n++
		}
		if !v.effect() {
			return
		}
		v.applyBatch(es[:n])
		es = es[n:]
	}
}

func (v *server) applyBatch(es []raft.Entry) {
	w, a := v.w, &v.applier
	w.appliedInOrder(v, es)
	var commands []raft.Entry
	for i := range es {
		if es[i].Type == raft.EntryCommand {
			commands = append(commands, es[i])
		}
	}
	results := make([]any, len(commands))
	if len(commands) > 0 {
		if err := v.applyCommands(commands, results); err != nil {
			w.broken("%s: the state machine refuses entries up to %v: %v", v.id, es[len(es)-1].ID(), err)
			return
		}
	}
	k := 0
	for i := range es {
		var result any
		if es[i].Type == raft.EntryCommand {
			result = results[k]
			k++
		}
		a.applied = es[i].Index
		v.complete(&es[i], result)
	}
	if a.applied%w.knobs.hashEvery == 0 {
		w.stateMachineSafety(v)
	}
	a.since += len(es)
	v.tellEmbedder(Embedder.Applied)
	v.input("applied", func(c *raft.Core) { c.Applied(v.local(), v.applier.applied) })
	if v.core != nil && w.knobs.snapshotEvery > 0 && a.since >= w.knobs.snapshotEvery && w.knobs.faults&Snapshot != 0 {
		v.takeSnapshot()
	}
}

// applyCommands hands commands to the state machine: together, or, to find out which one it does not treat alike everywhere, alone.
func (v *server) applyCommands(commands []raft.Entry, results []any) error {
	if !v.w.plan.alone {
		return v.applier.sm.Apply(commands, results)
	}
	for i := range commands {
		if err := v.applier.sm.Apply(commands[i:i+1], results[i:i+1]); err != nil {
			return err
		}
		v.applier.applied = commands[i].Index
		v.w.stateMachineSafety(v)
	}
	return nil
}

// takeSnapshot takes a view now and writes it a little later, beside further applies.
func (v *server) takeSnapshot() {
	w, at := v.w, v.applier.applied
	if v.applier.taking || at == 0 || at <= v.memory.snapshot && v.sick.unsent == 0 || at < v.sick.unsent {
		return
	}
	w.stateMachineSafety(v)
	sm, err := v.applier.sm.Snapshot(context.Background())
	if err != nil {
		w.broken("%s: the state machine gives no snapshot at %d: %v", v.id, at, err)
		return
	}
	v.applier.since, v.applier.taking = 0, true
	w.on(v, upTo(w.forDisks, w.diskTime()), func() {
		defer sm.Close()
		v.applier.taking = false
		meta, err := v.writeSnapshot(at, sm)
		switch {
		case err == nil && meta.Index > 0:
			v.memory.snapshot = max(v.memory.snapshot, meta.Index)
			w.printf(v, "snapshot at %d taken", meta.Index)
			w.hitIf(v.sick.unsent > 0, snapshotTakenForDamaged)
			v.sick.unsent = 0
			w.hit(snapshotTaken)
			w.hitIf(meta.Configuration.Joint(), snapshotInJoint)
			w.storedSnapshotEqualsModel(v, meta.Index)
			v.input("snapshot taken", func(c *raft.Core) { c.SnapshotTaken(v.local(), meta) })
		case err == nil:
			w.hit(snapshotOvertaken)
		case v.crashedBy(err):
			w.hit(crashWhileTakingSnapshot)
		case v.excused(err):
			w.hit(snapshotFailedByDisk)
		default:
			w.broken("%s: write snapshot %d: %v", v.id, at, err)
		}
	})
}

func (v *server) writeSnapshot(at raft.Index, view raft.SnapshotWriter) (raft.SnapshotMeta, error) {
	meta, ok := v.core.SnapshotMeta(at)
	if !ok {
		return raft.SnapshotMeta{}, nil
	}
	sink, err := v.wal.Snapshots().Create(meta)
	if err != nil {
		return meta, err
	}
	if err := view.WriteTo(context.Background(), sink); err != nil {
		return meta, errors.Join(err, sink.Abort())
	}
	return sink.Commit()
}

// sendSnapshot carries out a transfer: the content is read, is on its way for a while, is stored there, then the message counts.
func (v *server) sendSnapshot(t raft.SnapshotTransfer) {
	w, sender := v.w, v.run
	w.hit(snapshotSent)
	// The receiver's steps happen while the sender may crash and come back: its successor knows nothing of this transfer.
	report := func(d time.Duration, what string, do func(*raft.Core)) {
		if v.run == sender {
			w.on(v, d, func() { v.input(what, do) })
		}
	}
	failed := func() {
		report(upTo(w.forNetwork, 50*time.Millisecond), "snapshot failed", func(c *raft.Core) { c.SnapshotFailed(v.local(), t.ID) })
	}
	w.on(v, upTo(w.forDisks, w.diskTime()), func() {
		m := t.Message
		meta, content, err := v.readSnapshot(m.Body.(raft.InstallSnapshot).Meta.Index)
		if err != nil {
			w.hit(snapshotGone)
			v.crashedBy(err)
			if v.core != nil {
				failed()
				v.snapshotUnreadable(m.Body.(raft.InstallSnapshot).Meta.Index, err)
			}
			return
		}
		m.Body = raft.InstallSnapshot{Meta: meta, Repair: m.Body.(raft.InstallSnapshot).Repair}
		to := w.server(m.To)
		if to == nil || !to.up() || w.network.drops(v, to) {
			w.hit(snapshotLost)
			failed()
			return
		}
		receiver := to.run
		w.on(to, w.network.latency()+upTo(w.forNetwork, 100*time.Millisecond), func() {
			to.receiveSnapshot(m, content, func(ok bool) {
				if !ok || w.network.drops(to, v) {
					failed()
					return
				}
				report(w.network.latency(), "snapshot sent", func(c *raft.Core) { c.SnapshotSent(v.local(), t.ID) })
			})
		})
		w.on(v, brokenTransferAfter, func() {
			if to.run != receiver {
				failed() // the receiver has died, and the sender's connection breaks
			}
		})
	})
}

// brokenTransferAfter is how long the sender of a snapshot needs to notice that its receiver is gone.
const brokenTransferAfter = time.Second

// snapshotUnreadable takes another snapshot where one was found damaged that is to be sent.
func (v *server) snapshotUnreadable(index raft.Index, err error) {
	var corrupt *raft.CorruptionError
	switch {
	case !errors.As(err, &corrupt):
		return
	case !v.sick.snapshot:
		v.w.broken("inv 19: %s cannot read snapshot %d: %v", v.id, index, err)
		return
	}
	v.w.hit(snapshotUnreadable)
	v.sick.unsent = index
	v.takeSnapshot()
}

func (v *server) readSnapshot(index raft.Index) (meta raft.SnapshotMeta, content []byte, err error) {
	meta, r, err := v.wal.Snapshots().Open(index)
	if err != nil {
		return meta, nil, err
	}
	content, err = io.ReadAll(r)
	return meta, content, errors.Join(err, r.Close())
}

// receiveSnapshot stores a snapshot that a leader offers, then gives the message to the core.
func (v *server) receiveSnapshot(m raft.Message, content []byte, done func(ok bool)) {
	w := v.w
	step := func(m raft.Message) {
		w.trace.message(&m)
		w.printf(v, "← %s %s", m.From, describe(&m))
		v.input("install snapshot", func(c *raft.Core) { c.Step(v.local(), m) })
		done(true)
	}
	switch {
	case v.takes:
		done(false)
		return
	case !v.core.WantsSnapshot(m):
		w.hit(snapshotUnwanted)
		step(m)
		return
	}
	want, repair := m.Body.(raft.InstallSnapshot).Meta, m.Body.(raft.InstallSnapshot).Repair
	w.hitIf(repair, snapshotForRepair)
	sink, err := v.wal.Snapshots().Create(want)
	if err == nil {
		if _, e := io.Copy(sink, strings.NewReader(string(content))); e != nil {
			err = errors.Join(e, sink.Abort())
		}
	}
	if err != nil {
		v.snapshotNotStored(err, done)
		return
	}
	v.takes = true
	w.on(v, upTo(w.forDisks, w.diskTime()), func() {
		v.takes = false
		meta, err := sink.Commit()
		if err != nil {
			v.snapshotNotStored(err, done)
			return
		}
		v.memory.snapshot = max(v.memory.snapshot, meta.Index)
		w.hitIf(!v.core.WantsSnapshot(m), snapshotOvertakenByAppends)
		w.hitIf(v.lacksSnapshot(), lostSnapshotFetched)
		m.Body = raft.InstallSnapshot{Meta: meta, Repair: repair}
		step(m)
	})
}

func (v *server) snapshotNotStored(err error, done func(bool)) {
	switch {
	case v.crashedBy(err):
		v.w.hit(crashWhileReceivingSnapshot)
	case !v.excused(err):
		v.w.broken("%s: store a received snapshot: %v", v.id, err)
	}
	done(false)
}
