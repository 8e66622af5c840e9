package raftsim

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/steadyraft/raft"
)

// sickness is what has become of a disk that was written and synced, and what the server knows of it. The damage itself is in the files
// (rot.go): the log and the snapshot store find it, and judge.go says what they may come to.
type sickness struct {
	hurt     bool                  // the log or what belongs to it was damaged; it may still be somewhere
	spoilt   map[raft.EntryID]bool // entries that were aimed at, and were not written again since
	snapshot bool                  // likewise of the snapshots
	// What vouches for the end of the log was damaged, or that end was: until the next start the other one of the two is left alone.
	unvouched bool
	unsent    raft.Index // a snapshot that was found damaged, so that another one must take its place; 0: none

	holes []hole       // entries that the storage has called unreadable, by rising index
	fence raft.EntryID // what the log may have held at its end
	lost  []raft.EntryID

	refused error // the last start was refused because of damage
	gone    bool  // the whole disk is lost: nobody starts a server of this name again
}

// hole is an entry that cannot be read.
type hole struct{ id raft.EntryID }

// at returns the hole at an index; nil if there is none.
func (s *sickness) at(i raft.Index) *hole {
	for k := range s.holes {
		if s.holes[k].id.Index == i {
			return &s.holes[k]
		}
	}
	return nil
}

// written follows a batch that has become durable.
func (s *sickness) written(b *raft.Batch, l *logModel) {
	s.holes = slices.DeleteFunc(s.holes, func(h hole) bool {
		repaired := slices.ContainsFunc(b.Repairs, func(e raft.Entry) bool { return e.ID() == h.id })
		covered := b.Snapshot != nil && h.id.Index <= b.Snapshot.Index
		return repaired || covered || !l.contains(h.id) || h.id.Index <= l.base.Index || b.TruncateFrom != 0 && h.id.Index >= b.TruncateFrom
	})
	for i := range b.Repairs {
		delete(s.spoilt, b.Repairs[i].ID())
	}
	if b.Fence != nil {
		if s.fence = *b.Fence; s.fence == (raft.EntryID{}) {
			s.lost = nil
		}
	}
}

// away reports whether the server cannot be started again as it is.
func (s *sickness) away() bool { return s.gone || s.refused != nil }

// writeBatch writes to the log.
func (v *server) writeBatch(b raft.Batch) error {
	for i := range b.Repairs {
		v.w.sameEntries(v, &v.memory.durable, b.Repairs[i].Index, b.Repairs[i:i+1])
	}
	if err := v.wal.Write(b); err != nil {
		return err
	}
	v.memory.durable.apply(&b)
	v.sick.written(&b, &v.memory.durable)
	return nil
}

// foundDamage tells the core what a read has found. ok is false if the error is another one.
func (v *server) foundDamage(err error) (ok bool) {
	var corrupt *raft.CorruptionError
	if !errors.As(err, &corrupt) || corrupt.Damage == (raft.Damage{}) || !v.sick.hurt {
		return false
	}
	v.w.hit(damageWhileRunning)
	v.w.hitIf(v.role == raft.Leader, damageAtLeader)
	v.damaged("read", corrupt.Damage)
	return true
}

// damaged notes what cannot be read, as far as it is in the log, and tells the core.
func (v *server) damaged(how string, d raft.Damage) {
	v.w.printf(v, "finds damage: %d-%d", d.First, d.Last)
	first := v.core.Status(v.local()).FirstIndex
	for i := max(d.First, first); i <= d.Last; i++ {
		if id, ok := v.memory.durable.id(i); ok && i > v.memory.durable.base.Index && v.sick.at(i) == nil {
			v.sick.holes = append(v.sick.holes, hole{id})
		}
	}
	slices.SortFunc(v.sick.holes, func(a, b hole) int { return int(a.id.Index) - int(b.id.Index) })
	v.input(how, func(c *raft.Core) { c.Damaged(v.local(), d) })
}

// recovers takes over what a start has found damaged.
func (v *server) recovers(rec *raft.Recovered) {
	w, s := v.w, &v.sick
	s.holes = nil
	for _, d := range rec.Damaged {
		for i := d.First; i <= d.Last; i++ {
			if id, ok := v.memory.durable.id(i); ok {
				s.holes = append(s.holes, hole{id})
			}
		}
	}
	s.fence = rec.Fence
	if rec.Fence == (raft.EntryID{}) {
		s.lost = nil
	}
	w.hitIf(len(s.holes) > 0, damageAtStart)
	w.hitIf(s.fence != (raft.EntryID{}), startFenced)
}

// inLog drops the holes that the core has no log for, because it begins behind a snapshot.
func (v *server) inLog() {
	first := v.core.Status(v.local()).FirstIndex
	v.sick.holes = slices.DeleteFunc(v.sick.holes, func(h hole) bool { return h.id.Index < first })
}

// holds reports whether a server counts as having an entry durably: what cannot be read is remembered, and a fence stands for what is lost.
func (v *server) holds(id raft.EntryID) bool {
	d := &v.memory.durable
	return d.contains(id) || id.Index < d.base.Index || slices.Contains(v.sick.lost, id)
}

// damageEvent follows what the core says about its damage.
func (v *server) damageEvent(e raft.Event) {
	w := v.w
	switch e := e.(type) {
	case raft.EntriesRepaired:
		w.hit(damageRepaired)
		w.printf(v, "repaired %v-%v from %s", e.First, e.Last, e.From)
	case raft.EntriesDiscarded:
		w.hit(tailDiscarded)
		w.printf(v, "discards %v-%v", e.First, e.Last)
		v.discards = e.First.Index
		if m := w.model.at(e.First.Index); m != nil && m.ID() == e.First {
			w.broken("inv 23: %s discards %v, which is committed", v.id, e.First)
		}
	case raft.RecoveryStuck:
		w.hit(recoveryStuck)
		v.namedMissing = true
		w.printf(v, "gives up: %v is missing", e.Entry)
	case raft.FenceLifted:
		w.hit(fenceLifted)
		w.printf(v, "fence %v lifted", e.Fence)
		for _, id := range v.sick.lost {
			if m := w.model.at(id.Index); m != nil && m.ID() == id && !v.memory.durable.contains(id) && id.Index > v.memory.snapshot {
				w.broken("inv 22: %s lifts its fence without %v, which is committed and was lost here", v.id, id)
			}
		}
	case raft.LostLog:
		w.hit(lostLogNoticed)
	}
}

// fencedServerKeepsBack is inv 22: it never campaigns, and grants nothing below its fence.
func (w *world) fencedServerKeepsBack(v *server, m *raft.Message, before *raft.CoreStatus) {
	f, after := before.Fence, v.core.Status(v.local())
	if after.Fence != (raft.EntryID{}) && after.Role != raft.Follower {
		w.broken("inv 22: %s is a %v behind its fence %v", v.id, after.Role, f)
	}
	req, ok := m.Body.(raft.RequestVote)
	granted := after.Term == m.Term && after.VotedFor == m.From && (before.Term != m.Term || before.VotedFor != m.From)
	if ok && granted && (req.LastLogTerm < f.Term || req.LastLogTerm == f.Term && req.LastLogIndex < f.Index) {
		w.broken("inv 22: %s votes for %s, whose log ends in %d@%d, behind its fence %v", v.id, m.From, req.LastLogIndex, req.LastLogTerm, f)
	}
}

// scrubLater verifies a little more of the log from time to time, as a node does.
func (v *server) scrubLater() {
	if every := v.w.knobs.scrubEvery; every > 0 {
		v.w.on(v, every, func() {
			if v.scrub(v.w.knobs.scrubBytes, false) && v.core != nil {
				v.scrubLater()
			}
		})
	}
}

// scrub looks for damage that nobody has come across: in one piece of the log, or in all of it. It reports whether the disk answers.
func (v *server) scrub(maxBytes int, all bool) bool {
	for ends := 0; v.core != nil && ends < 2; {
		damaged, end, err := v.wal.Scrub(maxBytes)
		if err != nil {
			v.crashedBy(err)
			return false
		}
		if len(damaged) > 0 && !v.sick.hurt {
			v.w.broken("inv 23: %s finds damage where nothing was damaged: %v", v.id, damaged)
		}
		for _, d := range damaged {
			if v.core == nil {
				return false
			}
			v.w.hit(damageScrubbed)
			v.damaged("scrub", d)
		}
		if end {
			ends++
		}
		if !all {
			break
		}
	}
	return v.core != nil
}

// lacksSnapshot reports whether the log begins behind what the server can restore.
func (v *server) lacksSnapshot() bool {
	st := v.core.Status(v.local())
	return len(st.Damaged) > 0 && st.Damaged[0].First < st.FirstIndex
}

// isWAL reports whether a file is a segment of the log.
func isWAL(name string) bool { return strings.HasSuffix(name, ".wal") }

// repairPause is how long the applier waits before it reads again what it could not read.
const repairPause = 20 * time.Millisecond
