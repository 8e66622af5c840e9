package raftsim

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
	"github.com/steadyraft/raft/storage/wal"
)

// What a start may find on a disk that was damaged, and what a cluster may come to: nothing that was acknowledged is lost as long as an
// intact copy is left, nothing damaged is served, and where that cannot be had, nothing goes on and somebody says what is missing.

// damagedLogIsHonest is inv 2, 3, 20, 22, 23 and 24 for a disk that was damaged. Whatever the log is said to hold is what it held, entry by
// entry; what it does not hold any more is behind a fence, or called damaged, or reads as damaged; term and vote are the newest. It returns
// the log as it is now.
func (w *world) damagedLogIsHonest(v *server, rec *raft.Recovered) (now logModel) {
	m := &v.memory
	models := []logModel{m.durable}
	if m.doubt != nil {
		models = []logModel{m.durable.with(m.doubt), m.durable}
	}
	if !slices.ContainsFunc(models, func(l logModel) bool { return l.hard == rec.HardState }) {
		w.broken("inv 3: %s starts with %v on a damaged disk, %v was promised", v.id, rec.HardState, m.durable.hard)
		return now
	}
	if rec.Identity.Incarnation <= v.identity.Incarnation {
		w.broken("inv 21: %s starts as process %d, and was process %d before", v.id, rec.Identity.Incarnation, v.identity.Incarnation)
	}
	var why []error
	for _, l := range models {
		err := l.agreesInPart(rec)
		if err == nil {
			now = l.upTo(rec.LastIndex)
			now.hard = rec.HardState
			v.sick.lost = append(v.sick.lost, l.behind(rec.LastIndex)...)
			w.namesConfigurations(v, rec, &now)
			break
		}
		why = append(why, err)
	}
	if len(why) == len(models) {
		// A fence at the highest term makes up for everything, lost truncations too: the log is then one that it was once.
		if rec.Fence.Term != raft.MaxTerm {
			w.broken("inv 23: %s starts on a damaged disk with a log that was not promised: %v (fence %v)", v.id, errors.Join(why...), rec.Fence)
			return now
		}
		var err error
		if now, err = w.formerLog(rec); err != nil {
			w.broken("inv 23: %s starts behind a fence with a log that nobody ever had: %v", v.id, err)
			return now
		}
		for _, l := range models {
			for i := l.base.Index + 1; i <= l.last(); i++ {
				if id, _ := l.id(i); !now.contains(id) {
					v.sick.lost = append(v.sick.lost, id)
				}
			}
		}
	}
	if fence := v.sick.fence; fence != (raft.EntryID{}) && rec.Fence == (raft.EntryID{}) && (m.doubt == nil || m.doubt.Fence == nil) {
		w.broken("inv 22: %s has forgotten its fence %v", v.id, fence)
	}
	w.readsWhatWasWritten(v, rec, &now)
	w.sawVerdict(v, rec)
	return now
}

// agreesInPart is agrees for a log of which something may be missing behind a fence.
func (l *logModel) agreesInPart(rec *raft.Recovered) error {
	if rec.LastIndex < l.last() {
		id, _ := l.id(l.last())
		if f := rec.Fence; f.Term < id.Term || f.Term == id.Term && f.Index < id.Index {
			return fmt.Errorf("it ends at %d, but %v was promised, and the fence is %v", rec.LastIndex, id, f)
		}
	}
	part := l.upTo(rec.LastIndex)
	part.hard = rec.HardState
	return part.agrees(rec)
}

// upTo is the log without what is behind an index.
func (l *logModel) upTo(last raft.Index) logModel {
	c := l.clone()
	c.truncate(last + 1)
	return c
}

// behind lists the entries behind an index.
func (l *logModel) behind(last raft.Index) []raft.EntryID {
	if last >= l.last() {
		return nil
	}
	return slices.Clone(l.entries[max(last, l.base.Index)-l.base.Index:])
}

// formerLog makes a log of what a start has found, if it is one that somebody has had.
func (w *world) formerLog(rec *raft.Recovered) (l logModel, err error) {
	l = logModel{hard: rec.HardState, base: rec.Compacted}
	before := rec.Compacted
	for k, run := range rec.Terms {
		hi := rec.LastIndex
		if k+1 < len(rec.Terms) {
			hi = rec.Terms[k+1].Index - 1
		}
		for i := run.Index; i <= hi; i++ {
			id := raft.EntryID{Term: run.Term, Index: i}
			f, ok := w.model.entries[id]
			if !ok || f.before != before.Term && i > 1 {
				return l, fmt.Errorf("%v behind %v", id, before)
			}
			l.apply(&raft.Batch{Entries: []raft.Entry{f.entry}})
			before = id
		}
	}
	return l, nil
}

// namesConfigurations: a configuration that cannot be read is in a stretch that says so, or a server could act by an older one.
func (w *world) namesConfigurations(v *server, rec *raft.Recovered, l *logModel) {
	for _, i := range l.confs {
		if i <= max(rec.Compacted.Index, rec.Snapshot.Index) || i > rec.LastIndex {
			continue
		}
		known := slices.ContainsFunc(rec.Configurations, func(e raft.Entry) bool { return e.Index == i })
		hidden := slices.ContainsFunc(rec.Damaged, func(d raft.Damage) bool { return d.First <= i && i <= d.Last && d.MayConfigure })
		if !known && !hidden {
			w.broken("inv 18: %s does not say that it may lack the configuration at %d: %v", v.id, i, rec.Damaged)
		}
	}
}

// readsWhatWasWritten reads the whole log: every entry is what was written, or reads as damaged.
func (w *world) readsWhatWasWritten(v *server, rec *raft.Recovered, l *logModel) {
	for lo := rec.Compacted.Index + 1; lo <= rec.LastIndex && w.failure == nil; {
		es, err := v.wal.Entries(lo, rec.LastIndex+1, 1<<20)
		var damage *raft.CorruptionError
		switch {
		case err == nil && len(es) > 0:
			w.sameEntries(v, l, lo, es)
			lo += raft.Index(len(es))
		case errors.As(err, &damage) && damage.Damage.First == lo && damage.Damage.Last >= lo:
			lo = damage.Damage.Last + 1
		case errors.Is(err, vfs.ErrCrashed): // planned for just now; the core's first write will notice
			return
		default:
			w.broken("inv 23: %s cannot read its log from %d, and does not call that damaged: %v", v.id, lo, err)
		}
	}
}

// sawVerdict counts what a start on a damaged disk has come to.
func (w *world) sawVerdict(v *server, rec *raft.Recovered) {
	worst := raft.VerdictClean
	for _, f := range rec.Findings {
		if f.Verdict.Worse(worst) {
			worst = f.Verdict
		}
	}
	w.printf(v, "verdict on a damaged disk: %s", worst)
	w.hitIf(!worst.Worse(raft.VerdictTorn), foundClean)
	w.hitIf(worst == raft.VerdictDegraded, foundDegraded)
	w.hitIf(worst == raft.VerdictCorrupt, foundCorrupt)
	w.hitIf(worst == raft.VerdictFenced, foundFenced)
	w.hitIf(rec.Fence.Term == raft.MaxTerm, fencedForEverything)
}

// refusal reports whether a start was refused because of damage, which is all that may be said of a disk without any.
func (v *server) refusal(err error) bool {
	w := v.w
	var corrupt *raft.CorruptionError
	if !errors.As(err, &corrupt) || !v.sick.hurt && !v.sick.snapshot {
		return false
	}
	if strings.HasPrefix(corrupt.Path, snapshotDir) && v.sick.snapshot {
		v.startAgain(corrupt.Path)
		return true
	}
	if corrupt.Next == "" {
		w.broken("%s refuses to start, and does not say what to do: %v", v.id, err)
	}
	if v.sick.refused == nil {
		w.hit(startRefusedForDamage)
		var why *wal.RefusalError
		if errors.As(err, &why) {
			w.hitIf(why.Verdict == raft.VerdictDamaged, refusedDamaged)
			w.hitIf(why.Verdict == raft.VerdictTermLost, refusedTermLost)
			w.hitIf(why.Verdict == raft.VerdictWiped, refusedWiped)
		}
	}
	v.sick.refused = err
	return true
}

// startAgain is what a server does that could not restore a snapshot whose content is damaged: the store has set it aside, so it goes on
// without, unless that failed as well.
func (v *server) startAgain(path string) {
	v.w.after(time.Second, func() {
		if v.up() || v.sick.away() {
			return
		}
		v.w.printf(v, "starts without %s", path)
		if v.w.healed {
			v.start()
		}
	})
}

// giveUpAfter is how long after everything was healed a cluster may be found to be one that cannot come back.
const giveUpAfter = 20 * time.Second

// unavailable says why the cluster need not come back: in a configuration that may be in force, no majority of the voters has all that it
// needs, or can get it from a server that runs. "" if it must come back.
func (w *world) unavailable() string {
	confs := []raft.Configuration{}
	if c := w.model.configurationAt(w.model.highest); c != nil {
		confs = append(confs, c.conf)
	}
	for _, v := range w.servers {
		if v.up() {
			confs = append(confs, v.conf)
		}
	}
	for i := range confs {
		var why []string
		able := func(s *raft.Server) bool {
			lack := w.lacks(w.server(s.ID))
			if lack != "" {
				why = append(why, string(s.ID)+" "+lack)
			}
			return lack == ""
		}
		if !quorum(&confs[i], able) {
			return strings.Join(why, "; ")
		}
	}
	return ""
}

// lacks says what keeps a voter from doing its part; "": nothing.
func (w *world) lacks(v *server) string {
	switch {
	case v == nil || v.sick.gone:
		return "has lost its disk"
	case v.sick.refused != nil:
		return fmt.Sprintf("is refused (%v)", v.sick.refused)
	case !v.up():
		return ""
	case v.sick.fence != (raft.EntryID{}):
		return fmt.Sprintf("is fenced at %v", v.sick.fence)
	}
	st := v.core.Status(v.local())
	for _, d := range st.Damaged {
		for i := d.First; i <= d.Last; i++ {
			id, known := v.memory.durable.id(i)
			if !w.canGive(v, id, known && i >= st.FirstIndex, max(i, min(d.Last, st.FirstIndex-1))) {
				return fmt.Sprintf("lacks entry %d", i)
			}
		}
	}
	return ""
}

// canGive reports whether a server that runs can give another what it lacks: the entry, or a snapshot that reaches as far.
func (w *world) canGive(to *server, id raft.EntryID, entry bool, upTo raft.Index) bool {
	for _, o := range w.servers {
		if o == to || !o.up() {
			continue
		}
		if o.applier.applied >= upTo {
			return true // it takes another snapshot if it has to
		}
		st := o.core.Status(o.local())
		if entry && o.memory.durable.contains(id) && id.Index >= st.FirstIndex && o.sick.at(id.Index) == nil {
			return true
		}
	}
	return false
}

// standstill ends a story in which nothing can come any more, because too much is lost.
func (w *world) standstill() {
	if w.healed && w.converged() != nil {
		if w.hopeless = w.unavailable(); w.hopeless != "" {
			w.hit(clusterUnavailable)
			w.printf(nil, "the cluster stays unavailable: %s", w.hopeless)
			w.somebodySaysWhy()
		}
	}
}

// somebodySaysWhy: a cluster that stands still tells its operator. A server that was refused has said why and what to do; one that lacks an
// entry names it when it gives up to lead; and whoever knows no leader says why it cannot become one.
func (w *world) somebodySaysWhy() {
	for _, v := range w.servers {
		if v.sick.away() || v.up() && (v.core.Status(v.local()).WhyNot != "" || v.namedMissing) {
			return
		}
	}
	w.broken("the cluster is unavailable, and no server says why: %s", w.hopeless)
}
