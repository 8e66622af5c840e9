package raftsim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
)

// The promises, one function for each. The numbers are those of the list of invariants in the project's notes on safety; failures
// name them. Every comment says what a weaker check would miss.

// electionSafety is inv 1: at most one leader per term (§5.2). It remembers all terms, not only the present leaders: two leaders of
// one term that never overlap in time, because a vote was forgotten in a crash between them, are as wrong.
func (w *world) electionSafety(v *server) {
	if other, ok := w.model.leaders[v.term]; ok && other != v.id {
		w.broken("inv 1: term %d has two leaders, %s and %s", v.term, other, v.id)
	}
	w.model.leaders[v.term] = v.id
}

// termRises is inv 2: a server's term never decreases. Across restarts recoveryKeepsAcknowledged says the same; looking only at the
// terms that messages carry would miss a server that goes back while it is silent.
func (w *world) termRises(v *server, t raft.Term) {
	if t < v.term {
		w.broken("inv 2: the term of %s goes back from %d to %d", v.id, v.term, t)
	}
}

// oneVotePerTerm is inv 3: at most one vote per server and term. Votes are noted when they are sent, for the whole run: a check of
// the state of one process would not see that its predecessor has voted.
func (w *world) oneVotePerTerm(v *server, t raft.Term, candidate raft.NodeID) {
	b := ballot{v.id, t}
	if other, ok := w.model.votes[b]; ok && other != candidate {
		w.broken("inv 3: %s votes for %s and for %s in term %d", v.id, other, candidate, t)
	}
	w.model.votes[b] = candidate
}

// leaderAppendOnly is inv 4: a leader never overwrites or deletes entries of its own log (§5.3). It looks at what goes to the disk:
// a leader that cut its log and appended the same length again would look the same from outside.
func (w *world) leaderAppendOnly(v *server, wr *raft.Write) {
	if v.role != raft.Leader {
		return
	}
	replaces := wr.Snapshot != nil
	if replaces && v.memory.issued.contains(wr.Snapshot.ID()) {
		replaces = false // it takes the place of entries that cannot be read, and what is behind it stays
	}
	if v.discards != 0 && wr.TruncateFrom == v.discards && !replaces && (len(wr.Entries) == 0 || wr.Entries[0].Index == v.discards) {
		v.discards = 0 // before it appended its first entry it cut off what nobody can have committed
		return
	}
	if wr.TruncateFrom != 0 || replaces || len(wr.Entries) > 0 && wr.Entries[0].Index != v.memory.issued.last()+1 {
		w.broken("inv 4: leader %s of term %d rewrites its log: truncate from %d, snapshot %v, behind %d", v.id, v.term, wr.TruncateFrom,
			replaces, v.memory.issued.last())
	}
}

// logMatching is inv 5: if two logs hold an entry with the same index and term, they are the same up to there (§5.3). Every entry is
// compared, with the term before it, when it is appended; by induction that says it for whole logs. Comparing the logs that exist at
// the end would miss what was cut off by then.
func (w *world) logMatching(v *server, wr *raft.Write) {
	for i := range wr.Entries {
		e := &wr.Entries[i]
		before, ok := v.memory.issued.id(e.Index - 1)
		if i > 0 {
			before, ok = wr.Entries[i-1].ID(), true
		}
		if !ok {
			w.broken("inv 5: %s appends %v behind %d", v.id, e.ID(), v.memory.issued.last())
			return
		}
		f := fact{*e, before.Term}
		known, ok := w.model.entries[e.ID()]
		if !ok {
			w.model.entries[e.ID()] = f
		} else if !known.equals(&f) {
			w.broken("inv 5: entry %v of %s follows term %d with %v %.40q, elsewhere it follows term %d with %v %.40q", e.ID(), v.id,
				f.before, e.Type, e.Data, known.before, known.entry.Type, known.entry.Data)
		}
	}
}

// leaderCompleteness is inv 6: a new leader's log holds every entry that was committed in an earlier term (§5.4). It is checked at the
// moment of election: later, a leader that lacked an entry might have been deposed before anybody noticed. An election that is won
// late, by a candidate that stood still, has to know nothing of later terms.
func (w *world) leaderCompleteness(v *server) {
	m := &w.model
	for i := max(v.memory.issued.base.Index, m.highest-min(m.highest, 200)); i <= m.highest; i++ {
		if i == 0 || m.inTerm[i-1] >= v.term {
			continue
		}
		if !v.memory.issued.contains(m.at(i).ID()) {
			w.broken("inv 6: leader %s of term %d lacks the committed entry %v", v.id, v.term, m.at(i).ID())
			return
		}
	}
}

// stateMachineSafety is inv 7 for states: behind one index there is one state in the whole cluster, for ever. Comparing commands is
// not enough: a state machine that looks at a clock or at the order of a map gets other states from the same commands.
func (w *world) stateMachineSafety(v *server) {
	at, hash := v.applier.applied, w.stateHash(v)
	if w.failure != nil {
		return
	}
	known, ok := w.model.states[at]
	switch {
	case !ok:
		w.model.states[at] = hash
	case known != hash && at == v.memory.restored:
		w.diverge = true
		w.broken("inv 19: %s has restored a snapshot at index %d, and its state is another one than others had there. "+
			"The snapshot does not hold the whole state, or the state machine is not deterministic", v.id, at)
		return
	case known != hash:
		w.diverge = true
		w.broken("inv 7: %s has another state at index %d than others had; the states were last equal at %d. "+
			"The commands were the same, so the state machine is not deterministic. Behind %d it applied:%s",
			v.id, at, v.memory.agreed, v.memory.agreed, w.commandsUpTo(v.memory.agreed, at))
		return
	}
	v.memory.agreed = at
}

// commandsUpTo lists the commands behind lo, up to hi: the last few of them.
func (w *world) commandsUpTo(lo, hi raft.Index) string {
	const show = 8
	var lines []string
	for i := lo + 1; i <= hi; i++ {
		if e := w.model.at(i); e != nil && e.Type == raft.EntryCommand {
			lines = append(lines, fmt.Sprintf("\n  command at index %d, term %d: %.80q", i, e.Term, e.Data))
		}
	}
	if n := len(lines) - show; n > 0 {
		lines = append([]string{fmt.Sprintf("\n  … %d commands", n)}, lines[n:]...)
	}
	return strings.Join(lines, "")
}

// stateHash is a number for the state of a server's state machine.
func (w *world) stateHash(v *server) uint64 {
	if h, ok := v.applier.sm.(StateHasher); ok {
		return h.StateHash()
	}
	b, err := snapshotBytes(v.applier.sm)
	if err != nil {
		w.broken("%s: the state machine gives no snapshot at %d: %v", v.id, v.applier.applied, err)
	}
	return uint64(crc32.Checksum(b, castagnoli))<<32 | uint64(len(b))
}

func snapshotBytes(sm raft.StateMachine) ([]byte, error) {
	view, err := sm.Snapshot(context.Background())
	if err != nil {
		return nil, err
	}
	defer view.Close()
	var b bytes.Buffer
	err = view.WriteTo(context.Background(), &b)
	return b.Bytes(), err
}

// committed is inv 7 for entries, and inv 8: what a server takes for committed is what everybody else does, and it never takes it
// back. Each index is compared when it is committed at this server: the commit index alone says nothing about what lies below it.
func (w *world) committed(v *server, commit raft.Index) {
	if commit < v.commit {
		w.broken("inv 8: the commit index of %s goes back from %d to %d", v.id, v.commit, commit)
		return
	}
	if commit > v.memory.issued.last() {
		w.broken("inv 8: %s commits %d, its log ends at %d", v.id, commit, v.memory.issued.last())
		return
	}
	first := w.model.highest + 1
	for i := v.commit + 1; i <= commit && w.failure == nil; i++ {
		id, ok := v.memory.issued.id(i)
		if !ok || i == v.memory.issued.base.Index {
			continue // it came with a snapshot
		}
		if e := w.model.at(i); e != nil {
			if e.ID() != id {
				w.broken("inv 7: %s takes %v for committed, others have committed %v", v.id, id, e.ID())
			}
			continue
		}
		w.commitsFirst(v, i, id)
	}
	if commit > v.commit {
		w.trace.mix(uint64(commit))
		w.printf(v, "commits up to %d", commit)
	}
	v.commit = commit
	if commit >= first && w.failure == nil {
		w.oldMatchIsForgotten(v)
		w.commitsOwnTermOnly(v, commit)
		w.sawCommit(v, first, commit)
	}
	w.oneUncommittedChange(v)
}

// commitsFirst notes that an entry is committed now, for ever.
func (w *world) commitsFirst(v *server, i raft.Index, id raft.EntryID) {
	f, ok := w.model.entries[id]
	if !ok {
		w.broken("inv 7: %s commits %v, which nobody has ever appended", v.id, id)
		return
	}
	e := f.entry
	w.committedOnQuorum(v, id)
	previous := w.model.configurationAt(i)
	term := v.term
	if v.role != raft.Leader {
		term = v.memory.prior.term // it has left office with this commit
	}
	w.model.commit(e, term)
	w.hit(entryCommitted)
	if e.Type == raft.EntryConfiguration && w.failure == nil {
		w.consecutiveQuorumsIntersect(v, previous, w.model.configurationAt(i))
	}
}

// commitsOwnTermOnly is inv 10: only entries of the current term are committed by counting (§5.4.2). A check of the result would
// need the rare course of Figure 8 to go all the way to a lost entry; the breach itself is common.
func (w *world) commitsOwnTermOnly(v *server, commit raft.Index) {
	id, _ := v.memory.issued.id(commit)
	was := v.memory.prior
	switch {
	case v.role == raft.Leader && id.Term == v.term, was.role == raft.Leader && id.Term == was.term:
	default:
		w.broken("inv 10: %v %s of term %d is the first to commit %v", v.role, v.id, v.term, id)
	}
}

// appliedInOrder is inv 9: each index is applied once, in order, per lineage of the state, and only what is committed and durable
// here. lastApplied <= commitIndex alone would allow a gap. The disk has to hold this entry, not only as many: one that is about to be
// overwritten there may have its place.
func (w *world) appliedInOrder(v *server, es []raft.Entry) {
	next := v.applier.applied + 1
	for i := range es {
		e := &es[i]
		known := w.model.at(e.Index)
		switch {
		case e.Index != next:
			w.broken("inv 9: %s applies %v behind %d", v.id, e.ID(), next-1)
		case e.Index > v.memory.durable.base.Index && !v.memory.durable.contains(e.ID()):
			on, _ := v.memory.durable.id(e.Index)
			w.broken("inv 9: %s applies %v, its disk holds %v there and ends at %d", v.id, e.ID(), on, v.memory.durable.last())
		case known == nil || known.ID() != e.ID() || payloadSum(known) != payloadSum(e):
			w.broken("inv 7: %s applies %v, which is not what was committed there", v.id, e.ID())
		}
		next++
	}
}

// noUndurableAcknowledgement is inv 11: no reply claims an index that is not durable on that server's disk, as the entry that the
// leader has there. With the index alone an entry that was replaced while its write was under way would pass: the disk is long
// enough, but holds another entry.
func (w *world) noUndurableAcknowledgement(v *server, m *raft.Message, match raft.Index) {
	d := &v.memory.durable
	for _, h := range v.sick.holes {
		if h.id.Index <= match && h.id.Index > v.memory.snapshot {
			w.broken("inv 22: %s acknowledges %d, but cannot read %v", v.id, match, h.id)
		}
	}
	if match > d.last() {
		w.broken("inv 11: %s acknowledges %d, its disk ends at %d", v.id, match, d.last())
		return
	}
	leader := w.server(m.To)
	if match == 0 || !leader.up() || leader.role != raft.Leader || leader.term != m.Term {
		return
	}
	mine, ok := d.id(match)
	theirs, known := leader.memory.issued.id(match)
	if ok && known && mine != theirs {
		w.broken("inv 11: %s acknowledges %v to %s, whose log has %v there", v.id, mine, m.To, theirs)
	}
}

// durableBeforeReply is inv 12: no vote, and nothing that depends on term or vote, leaves before they are durable. The disk is looked
// at when the message is sent; to wait for a crash in that very moment would take luck.
func (w *world) durableBeforeReply(v *server, m *raft.Message) {
	if d := v.memory.durable.hard; d.CurrentTerm < m.Term {
		w.broken("inv 12: %s sends %s, but only term %d is durable", v.id, describe(m), d.CurrentTerm)
	}
}

// durableVote is the half of inv 12 for votes, its own included: term and name must be the ones on the disk. The term alone would pass a
// second vote in the same term that is still on its way to the disk.
func (w *world) durableVote(v *server, m *raft.Message, candidate raft.NodeID) {
	if want := (raft.HardState{CurrentTerm: m.Term, VotedFor: candidate}); v.memory.durable.hard != want {
		w.broken("inv 12: %s sends %s, but %v is durable", v.id, describe(m), v.memory.durable.hard)
	}
}

// checkSend looks at a message before it leaves.
func (w *world) checkSend(v *server, m *raft.Message) {
	if err := m.Validate(); err != nil {
		w.broken("%s sends a malformed message: %v", v.id, err)
	}
	switch b := m.Body.(type) {
	case raft.RequestVote:
		w.durableVote(v, m, v.id)
		w.oneVotePerTerm(v, m.Term, v.id)
	case raft.RequestVoteReply:
		w.durableBeforeReply(v, m)
		if b.Granted {
			w.durableVote(v, m, m.To)
			w.oneVotePerTerm(v, m.Term, m.To)
		}
	case raft.AppendEntriesReply:
		w.durableBeforeReply(v, m)
		w.sawAppendReply(b)
		if b.Success {
			w.noUndurableAcknowledgement(v, m, b.MatchIndex)
		}
	case raft.InstallSnapshotReply:
		w.durableBeforeReply(v, m)
		w.noUndurableAcknowledgement(v, m, b.MatchIndex)
	case raft.AppendEntries:
		w.sawAppend(v, &b)
	case raft.PreVoteReply:
		w.hitIf(!b.Granted, preVoteRefused)
	case raft.TimeoutNow:
		w.hit(timeoutNowSent)
		w.hitIf(v.failed, failedLeaderHandsOver)
	}
}

// checkWrite looks at a write when it is issued.
func (w *world) checkWrite(v *server, wr *raft.Write) {
	w.leaderAppendOnly(v, wr)
	if wr.Snapshot == nil {
		w.logMatching(v, wr)
	}
	w.sawWrite(v, wr)
	v.memory.issued.apply(&wr.Batch)
}

// committedOnQuorum is inv 13 and 18: what is committed is durable on a majority of the voters, of both halves in a joint
// configuration (§6). It looks at the disks, not at what the leader believes of them: an old matchIndex of a follower that has lost
// its log (inv 29), a learner that was counted, or a leader that counts itself before its own sync would satisfy the leader.
func (w *world) committedOnQuorum(v *server, id raft.EntryID) {
	conf := &v.memory.priorConf
	holds := func(s *raft.Server) bool {
		h := w.server(s.ID)
		return h != nil && h.holds(id)
	}
	if !quorum(conf, holds) {
		w.broken("inv 13: %s commits %v, which is not durable on a majority of %v (joint %v)", v.id, id, conf.Voters(), conf.Joint())
	}
}

// quorum reports whether the servers with a property are a majority, in both halves of a joint configuration.
func quorum(conf *raft.Configuration, has func(*raft.Server) bool) bool {
	half := func(votes func(*raft.Server) bool) bool {
		n, yes := 0, 0
		for i := range conf.Servers {
			if s := &conf.Servers[i]; votes(s) {
				n++
				if has(s) {
					yes++
				}
			}
		}
		return yes > n/2
	}
	return half(func(s *raft.Server) bool { return s.Suffrage == raft.Voter && !s.Leaving }) &&
		(!conf.Joint() || half(func(s *raft.Server) bool { return s.Outgoing }))
}

// acknowledgedIsDurable is the client's side of inv 13: what it was told is committed, and so in every later leader's log
// (leaderCompleteness). To look only at the state at the end would miss an answer that came too early and happened to come true.
func (w *world) acknowledgedIsDurable(v *server, id raft.EntryID) {
	if e := w.model.at(id.Index); e == nil || e.ID() != id {
		w.broken("inv 13: %s acknowledges %v, which is not committed", v.id, id)
	}
	w.model.acknowledged = max(w.model.acknowledged, id.Index)
}

// callsEndOnce is the first half of inv 14. A history of what clients saw would not show a second answer that nobody waited for.
func (w *world) callsEndOnce(k *call) {
	if k.ends++; k.ends > 1 {
		w.broken("inv 14: a call of client %d ended %d times", k.client.number, k.ends)
	}
}

// failedNeverApplied is the second half of inv 14: an attempt that was reported as dropped is never committed. Linearizability would
// notice only if the operation were not idempotent and somebody read in between.
func (w *world) failedNeverApplied(k *call) {
	for _, id := range k.dropped {
		if e := w.model.at(id.Index); e != nil && e.ID() == id {
			w.broken("inv 14: client %d was told that %v was dropped, and it was committed", k.client.number, id)
		}
	}
}

// readsAreFresh is inv 16: a linearizable read reflects every write that was acknowledged before it began (dissertation §6.4). The
// bound is what was committed anywhere, by any leader; comparing with this server's own commit index would let a deposed leader pass.
func (w *world) readsAreFresh(v *server, k *call, index raft.Index) {
	if index < k.atLeast {
		w.broken("inv 16: a read at %s would see %d, but %d was committed before it began", v.id, index, k.atLeast)
	}
}

// oneUncommittedChange is inv 17: a leader never has two uncommitted configurations of its own making (dissertation §4.1). It counts the
// entries in the log: that changes are refused while one is pending says nothing of what a predecessor has left behind.
func (w *world) oneUncommittedChange(v *server) {
	if v.role != raft.Leader {
		return
	}
	if id, _ := v.memory.issued.id(v.commit); id.Term != v.term {
		return // it does not know yet what its predecessors have committed, and adds nothing
	}
	n := 0
	for k := len(v.memory.issued.confs) - 1; k >= 0 && v.memory.issued.confs[k] > v.commit; k-- {
		n++
	}
	if n > 1 {
		w.broken("inv 17: leader %s has %d uncommitted configurations behind %d", v.id, n, v.commit)
	}
}

// consecutiveQuorumsIntersect is the second half of inv 17. The halves are compared as sets: to look for two leaders would need a
// partition just along the line between two majorities that do not meet.
func (w *world) consecutiveQuorumsIntersect(v *server, before, after *configuration) {
	oldHalf := func(c *raft.Configuration) (ids []raft.NodeID) {
		for _, s := range c.Servers {
			if s.Outgoing {
				ids = append(ids, s.ID)
			}
		}
		return ids
	}
	same := func(a, b []raft.NodeID) bool { return slices.Equal(a, b) }
	ok := true
	switch from, to := &before.conf, &after.conf; {
	case from.Joint() && to.Joint():
		ok = false
	case to.Joint():
		ok = same(oldHalf(to), from.Voters())
	default:
		ok = same(from.Voters(), to.Voters())
	}
	if !ok {
		w.broken("inv 17: %s commits configuration %v behind %v, and their majorities need not meet", v.id, after.conf.Servers, before.conf.Servers)
	}
	w.hitIf(after.conf.Joint(), jointCommitted)
	w.hitIf(before.conf.Joint(), jointLeft)
}

// snapshotEqualsModel is inv 19: a snapshot's index, term, configuration and content are those of the model there. It runs on every
// state that was restored; a checksum of the file would agree with a view that was taken at a wrong moment.
func (w *world) snapshotEqualsModel(v *server, meta *raft.SnapshotMeta) {
	w.snapshotDescription(v, meta)
	if w.failure == nil {
		w.stateMachineSafety(v)
	}
}

// snapshotDescription is inv 19 without the content. The configuration is compared as bytes and by its index: the right members with the
// wrong index would let a server roll back too far.
func (w *world) snapshotDescription(v *server, meta *raft.SnapshotMeta) {
	e, conf := w.model.at(meta.Index), w.model.configurationAt(meta.Index)
	switch {
	case e == nil || e.ID() != meta.ID():
		w.broken("inv 19: %s has snapshot %v, which is not committed", v.id, meta.ID())
	case conf == nil || conf.index != meta.ConfigurationIndex ||
		!bytes.Equal(conf.conf.AppendBinary(nil), meta.Configuration.AppendBinary(nil)):
		w.broken("inv 19: snapshot %v of %s has the configuration of %d, want that of %d", meta.ID(), v.id, meta.ConfigurationIndex, conf.index)
	}
}

// storedSnapshotEqualsModel is inv 19 for snapshots that nobody has restored yet: one in four is read back into a new state machine.
func (w *world) storedSnapshotEqualsModel(v *server, index raft.Index) {
	want, ok := w.model.states[index]
	if !ok || w.forDisks.IntN(4) > 0 {
		return
	}
	meta, r, err := v.wal.Snapshots().Open(index)
	if err != nil {
		if !errors.Is(err, vfs.ErrCrashed) { // which is for the next operation to notice
			w.broken("inv 19: %s cannot open snapshot %d, which it has just stored: %v", v.id, index, err)
		}
		return
	}
	probe := *v
	probe.applier = applier{sm: w.opts.StateMachine(), applied: index}
	err = errors.Join(probe.applier.sm.Restore(context.Background(), meta, r), r.Close())
	switch {
	case errors.Is(err, vfs.ErrCrashed):
	case err != nil:
		w.broken("inv 19: %s cannot read snapshot %d back: %v", v.id, index, err)
	case w.stateHash(&probe) != want:
		w.broken("inv 19: snapshot %d of %s is not the state at %d", index, v.id, index)
	}
	w.snapshotDescription(v, &meta)
}

// recoveryKeepsAcknowledged is inv 2, 20 and 23: a start finds what was promised to be durable, and of the one write in doubt all or
// nothing. The whole log is read and compared: the term and the last index alone would not show a hole in the middle.
func (w *world) recoveryKeepsAcknowledged(v *server, rec *raft.Recovered) {
	m := &v.memory
	if v.sick.hurt {
		found := w.damagedLogIsHonest(v, rec)
		w.snapshotsAreKept(v, rec, &found)
		m.recovered(found, rec)
		return
	}
	err := m.durable.agrees(rec)
	want := m.durable
	if m.doubt != nil {
		if with := m.durable.with(m.doubt); with.agrees(rec) == nil {
			w.hitIf(err != nil, doubtfulWriteSurvived)
			err, want = nil, with
		} else {
			w.hitIf(err == nil, doubtfulWriteVanished)
		}
	}
	if err != nil {
		w.broken("inv 23: %s starts with a log that was not promised: %v (a write in doubt: %v)", v.id, err, m.doubt != nil)
		return
	}
	if len(rec.Damaged) > 0 || rec.Fence != (raft.EntryID{}) {
		w.broken("inv 23: %s starts with damage, and nothing was damaged: %v, fence %v", v.id, rec.Damaged, rec.Fence)
	}
	w.snapshotsAreKept(v, rec, &want)
	defer func() { m.recovered(want, rec) }()
	for lo := rec.Compacted.Index + 1; lo <= rec.LastIndex; {
		es, err := v.wal.Entries(lo, rec.LastIndex+1, 1<<20)
		if errors.Is(err, vfs.ErrCrashed) {
			return // planned for just now; the core's first write will notice
		}
		if err != nil || len(es) == 0 {
			w.broken("inv 23: %s cannot read its log from %d: %v", v.id, lo, err)
			return
		}
		w.sameEntries(v, &want, lo, es)
		lo += raft.Index(len(es))
	}
}

// snapshotsAreKept is the part of inv 20 and 23 that is about snapshots. Where one was damaged an older one may take its place. Then
// the log may begin behind it, as it may where a segment is gone together with the vote file, which knows that it is still wanted: the core
// takes that for a snapshot that is lost, and acknowledges nothing.
func (w *world) snapshotsAreKept(v *server, rec *raft.Recovered, l *logModel) {
	m := &v.memory
	w.hitIf(rec.Snapshot.Index < m.snapshot && rec.Snapshot.Index > 0, snapshotFellBack)
	w.hitIf(rec.Snapshot.Index < m.snapshot && rec.Snapshot.Index == 0, lastSnapshotLost)
	switch {
	case v.sick.snapshot:
	case rec.Snapshot.Index < m.snapshot:
		w.broken("inv 23: %s starts with snapshot %d, but %d was durable", v.id, rec.Snapshot.Index, m.snapshot)
	case rec.Compacted.Index > max(rec.Snapshot.Index, l.base.Index) && !v.sick.hurt:
		w.broken("inv 20: the log of %s begins behind %v, its snapshot ends at %d", v.id, rec.Compacted, rec.Snapshot.Index)
	}
}

// noDamagedByte is inv 24: what is read from a disk is what was written there. A checksum alone would pass an intact entry from a
// wrong place, for instance one that was truncated.
func (w *world) noDamagedByte(v *server, lo raft.Index, es []raft.Entry) {
	w.sameEntries(v, &v.memory.durable, lo, es)
}

func (w *world) sameEntries(v *server, l *logModel, lo raft.Index, es []raft.Entry) {
	for i := range es {
		e := &es[i]
		id, ok := l.id(e.Index)
		if e.Index != lo+raft.Index(i) || !ok || e.Index == l.base.Index || id != e.ID() || l.sums[e.Index-l.base.Index-1] != payloadSum(e) {
			w.broken("inv 24: %s reads %v where %v was written", v.id, e.ID(), id)
			return
		}
	}
}

// noGap is inv 20: the log is given up only where a snapshot in the store covers it. The core's own idea of its newest snapshot would
// agree with a snapshot that never became durable.
func (w *world) noGap(v *server, to raft.Index) {
	if to > v.memory.snapshot {
		w.broken("inv 20: %s gives up its log up to %d, its newest snapshot ends at %d", v.id, to, v.memory.snapshot)
	}
}

// deadIncarnationIsIgnored is inv 21: a message of a process that has been replaced changes nothing at a server that knows of the
// successor. The whole state is compared; looking for the refusal alone would miss a message that was both refused and obeyed.
func (w *world) deadIncarnationIsIgnored(v *server, m *raft.Message, without []byte) {
	with := v.core.AppendState(nil, raft.Naming{})
	if !bytes.Equal(without, with) {
		w.broken("inv 21: a message of a dead process of %s changed the state of %s: %s", m.From, v.id, describe(m))
	}
}

// withoutMessage is the state that a core would have now had a message not come. Time alone changes it (a follower's pause ends), so a
// copy gets the same message as if it were meant for somebody else, which is refused before anything looks at it.
func (w *world) withoutMessage(v *server, m raft.Message) []byte {
	c := v.core.Clone()
	m.To = "nobody"
	c.Step(v.local(), m)
	for c.HasReady() {
		c.Ready()
	}
	return c.AppendState(nil, raft.Naming{})
}

// removedNeverLeads is inv 25: a server that knows that its removal is committed wins no election. One that was started again and does
// not know it yet may have to lead once more, without counting itself, to bring the cluster forward (dissertation §4.2.2; seed 1728).
// That a removed server is not counted is part of committedOnQuorum and electedByQuorum.
func (w *world) removedNeverLeads(v *server) {
	conf := w.model.configurationAt(w.model.highest)
	if conf != nil && v.commit >= conf.index && conf.conf.IsRemoved(v.id) {
		w.broken("inv 25: %s leads term %d after it was removed", v.id, v.term)
	}
}

// electedByQuorum is inv 18 for elections: votes of a majority have really arrived, and its own is durable. electionSafety would
// notice a miscount only if two candidates met in the same term.
func (w *world) electedByQuorum(v *server) {
	if !quorum(&v.conf, func(s *raft.Server) bool { return s.ID == v.id || v.memory.votes[s.ID] }) {
		w.broken("inv 18: %s leads term %d without a majority of %v", v.id, v.term, v.conf.Voters())
	}
	if want := (raft.HardState{CurrentTerm: v.term, VotedFor: v.id}); v.memory.durable.hard != want {
		w.broken("inv 12: %s leads term %d, but %v is durable", v.id, v.term, v.memory.durable.hard)
	}
}

// elected is called when a server has become leader.
func (w *world) elected(v *server) {
	w.hitIf(v.core.Status(v.local()).Recovering, leaderRecovers)
	w.electionSafety(v)
	w.electedByQuorum(v)
	w.leaderCompleteness(v)
	w.removedNeverLeads(v)
	v.memory.electedAt = v.local()
}

// queueBounded is inv 26 for what waits to be applied; core.Check does it for what is in flight to followers. Counting pieces would
// miss one huge piece.
func (w *world) queueBounded(v *server) {
	bytes, largest := 0, 0 // one piece may be larger than the limit, or a large entry could never be applied
	for i := range v.applier.queue {
		n := raft.EntriesSize(v.applier.queue[i].Entries)
		bytes += n
		largest = max(largest, n)
	}
	if limit := v.cfg.MaxUnappliedBytes; bytes-largest > limit {
		w.broken("inv 26: %d bytes wait to be applied at %s, the limit is %d", bytes, v.id, limit)
	}
}

// quorumHeardOrStepsDown is inv 27: a leader that has heard no quorum for an election timeout is none any more. What arrived here is
// compared, on this server's own clock, not what the leader remembers of it.
func (w *world) quorumHeardOrStepsDown(v *server) {
	if v.role != raft.Leader || v.cfg.DisableCheckQuorum {
		return
	}
	since := v.local() - v.cfg.ElectionTimeout
	if v.memory.electedAt > since || v.memory.confSince > since {
		return
	}
	if !quorum(&v.conf, func(s *raft.Server) bool {
		o := w.server(s.ID)
		return o == v || o != nil && v.memory.heardOf(o.position).at > since
	}) {
		w.broken("inv 27: leader %s of term %d has heard no quorum for %v", v.id, v.term, v.cfg.ElectionTimeout)
	}
}

// failedPreVoteRaisesNoTerm is inv 28: no term begins without a majority that agreed beforehand, or a transfer (dissertation §9.6).
// That terms stay low could be luck; that the answers had arrived cannot.
func (w *world) failedPreVoteRaisesNoTerm(v *server, e raft.ElectionStarted) {
	if e.PreVote || e.Reason == raft.ReasonTransfer || v.cfg.DisablePreVote {
		return
	}
	if v.memory.preVoteTerm != e.Term ||
		!quorum(&v.conf, func(s *raft.Server) bool { return s.ID == v.id || v.memory.preVotes[s.ID] }) {
		w.broken("inv 28: %s begins term %d without the consent of a majority", v.id, e.Term)
	}
}

// electionStarts follows the votes of an election.
func (w *world) electionStarts(v *server, e raft.ElectionStarted) {
	w.failedPreVoteRaisesNoTerm(v, e)
	w.sawElection(v, e)
	if e.PreVote {
		v.memory.preVoteTerm = e.Term
		clear(v.memory.preVotes)
		return
	}
	clear(v.memory.votes)
}

// heard notes what arrives at a server, before its core sees it.
func (w *world) heard(v *server, m *raft.Message) {
	h := v.memory.heardOf(w.server(m.From).position)
	h.at = v.local()
	if _, member := v.conf.Server(m.From); member { // a server remembers the processes of members only
		h.incarnation = max(h.incarnation, m.Incarnation)
	}
	switch b := m.Body.(type) {
	case raft.PreVoteReply:
		if b.Granted && m.Term == v.memory.preVoteTerm {
			v.memory.preVotes[m.From] = true
		}
	case raft.RequestVoteReply:
		if b.Granted && m.Term == v.term {
			v.memory.votes[m.From] = true
		}
	case raft.AppendEntriesReply:
		if b.Success && m.Term == v.term { // what comes late from an earlier term is not counted
			h.acknowledged(m, b.MatchIndex)
		}
	case raft.InstallSnapshotReply:
		if m.Term == v.term {
			h.acknowledged(m, b.MatchIndex)
		}
	}
}

// oldMatchIsForgotten is inv 29: what a leader believes of a follower's log was acknowledged by the process that it takes for the present
// one, in this term. A process that was started again may have lost log that its predecessor had not synced, or had synced to a disk that
// lied; committedOnQuorum would notice only if that log was needed for a majority, and was really lost.
func (w *world) oldMatchIsForgotten(v *server) {
	if v.role != raft.Leader {
		return
	}
	for _, p := range v.core.Status(v.local()).Peers {
		o := w.server(p.ID)
		if p.MatchIndex == 0 || o == nil {
			continue
		}
		h := v.memory.heardOf(o.position)
		if h.matchTerm != v.term || h.matchIncarnation != p.Incarnation || p.MatchIndex > h.match {
			w.broken("inv 29: leader %s of term %d counts index %d for process %d of %s; it was acknowledged up to %d, by process %d in term %d",
				v.id, v.term, p.MatchIndex, p.Incarnation, p.ID, h.match, h.matchIncarnation, h.matchTerm)
		}
	}
}

// forgetStrangers follows a change of the configuration: what a server knew of processes of servers that it does not contain is gone.
func (w *world) forgetStrangers(v *server) {
	for i := range v.memory.heard {
		if _, member := v.conf.Server(w.servers[i].id); !member {
			v.memory.heard[i].incarnation = 0
		}
	}
}

// tickAdvances: a core that asks to be woken at a time that has passed would be woken for ever.
func (w *world) tickAdvances(v *server) {
	if d := v.core.Deadline(); d <= v.local() {
		w.broken("%s wants its next tick at %v, it is %v already", v.id, d, v.local())
	}
}

// refusals: between servers that follow the protocol nothing is refused but what dead processes sent, and what servers send that do not
// know of their removal yet. Anything else is a message that no correct server sends, and would be taken for an attack in the field.
func (w *world) refusals(v *server, r raft.Refusal) {
	switch {
	case r.Reason == raft.DeadIncarnation:
		w.hit(deadIncarnationRefused)
	case r.Reason == raft.RemovedServer && v.conf.IsRemoved(r.Peer):
		w.hit(removedServerRefused)
	default:
		w.broken("%s refuses a message of %s: %v", v.id, r.Peer, r.Reason)
	}
}

// checkInput runs after every input of a core.
func (w *world) checkInput(v *server, was *view) {
	if v.role == raft.Leader && was.role == raft.Leader && v.term == was.term {
		return
	}
	w.trace.mix(uint64(v.role), uint64(v.term))
}

// consistentCore looks at the whole state of a core for contradictions, and at two consecutive ones (inv 2, 3, 4, 7, 8, 17, 26). It
// costs time in proportion to the log in memory, so it runs at every few inputs only. The other checks look at what leaves a core; a
// contradiction inside may take long to show there.
func (w *world) consistentCore(v *server, what string, before *raft.Core) {
	if err := errors.Join(v.core.Check(), raft.CheckStep(before, v.core)); err != nil {
		w.broken("%s, after %s: %v\nbefore: %v\nafter:  %v", v.id, what, err, before, v.core)
	}
	w.oldMatchIsForgotten(v)
}

// converged is inv 30, as far as it can be seen from outside: one leader, equal logs, equal states. All of it at one moment, at every
// member: that clients get answers would do with a majority, and hide a follower that is wedged for ever.
func (w *world) converged() error {
	var l *server
	for _, v := range w.servers {
		if v.sick.away() {
			continue
		}
		if !v.up() {
			return fmt.Errorf("%s is down", v.id)
		}
		if v.role != raft.Leader {
			continue
		}
		if l != nil {
			return fmt.Errorf("%s and %s both lead", l.id, v.id)
		}
		l = v
	}
	if l == nil {
		return errors.New("nobody leads")
	}
	if last := l.memory.issued.last(); l.commit != last {
		return fmt.Errorf("leader %s has committed %d of %d", l.id, l.commit, last)
	}
	if l.applier.applied != l.commit { // a follower may be quicker, and its state is compared with this one
		return fmt.Errorf("leader %s has applied %d of %d", l.id, l.applier.applied, l.commit)
	}
	if l.conf.Joint() {
		return fmt.Errorf("leader %s is in a joint configuration", l.id)
	}
	for _, s := range l.conf.Servers {
		v := w.server(s.ID)
		if v.sick.away() {
			continue
		}
		mine, _ := v.memory.issued.id(v.memory.issued.last())
		theirs, _ := l.memory.issued.id(l.memory.issued.last())
		switch {
		case mine != theirs:
			return fmt.Errorf("the log of %s ends in %v, that of leader %s in %v", v.id, mine, l.id, theirs)
		case v.memory.durable.last() != mine.Index:
			return fmt.Errorf("the disk of %s ends at %d of %d", v.id, v.memory.durable.last(), mine.Index)
		case v.commit != l.commit || v.applier.applied != l.commit:
			return fmt.Errorf("%s has committed %d and applied %d of %d", v.id, v.commit, v.applier.applied, l.commit)
		case v.lacksSnapshot():
			return fmt.Errorf("%s lacks the snapshot that its log begins behind", v.id)
		case len(v.sick.holes) > 0 || v.sick.fence != (raft.EntryID{}):
			return fmt.Errorf("%s has %d damaged entries, and its fence is %v", v.id, len(v.sick.holes), v.sick.fence)
		case v.leader != l.id:
			return fmt.Errorf("%s follows %q, %s leads", v.id, v.leader, l.id)
		case w.stateHash(v) != w.stateHash(l):
			w.diverge = true
			w.broken("inv 7: the states of %s and %s differ at index %d: the state machine is not deterministic. Behind %d, where they were "+
				"last equal, it applied:%s", v.id, l.id, l.commit, min(v.memory.agreed, l.memory.agreed),
				w.commandsUpTo(min(v.memory.agreed, l.memory.agreed), l.commit))
		}
	}
	return nil
}

// checkUnfinished asks of a story that is cut off what can be asked in the middle: whether the clients' history is linearizable so far.
func (w *world) checkUnfinished() {
	if w.failure == nil {
		w.linearizable()
	}
}

// checkEnd is what remains to be said at the end: convergence, no call left over, linearizability.
func (w *world) checkEnd() {
	if w.hopeless != "" {
		w.checkUnfinished()
		return
	}
	if err := errors.Join(w.converged(), w.embedderConverged()); err != nil {
		var b bytes.Buffer
		for _, v := range w.servers {
			fmt.Fprintf(&b, "\n  %v", v)
		}
		w.broken("inv 30: not converged %v after the faults have ended: %v%s", w.opts.LiveTime, err, b.String())
		return
	}
	for _, k := range w.clients.calls {
		if k.outcome == pending {
			w.broken("inv 30: a call of client %d is still pending: %s", k.client.number, w.clients.describe(k))
			return
		}
		w.failedNeverApplied(k)
	}
	if w.failure == nil {
		w.linearizable()
	}
}
