package wal

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/snapshot"
)

// loss is a place at which something cannot be read, and which entries are lost with it, superseded ones included.
type loss struct {
	path        string
	offset      int64
	reason      string
	first, last raft.Index // 0: no entry
}

const (
	meaningIdle = "an idle record is damaged: nothing is lost with it"

	nextWiped = "if files were moved away, put them back; if they are gone, give this server an empty data directory and add it to the " +
		"cluster under a new ID: under the old one it could vote a second time, and forget what it has acknowledged"
	nextTermLost = "the server may have voted and does not know for whom, so that it must not start: " + nextRestore
	nextAlone    = "no other server has the data: restore the directory from a backup made while it was stopped, or give up what is damaged " +
		"and go on with what is in front of it: raftctl recover -cluster NEW-ID DIR"
	nextFence = "do not delete anything; start the server: it neither votes for a server that has less than it may have had, nor campaigns, until " +
		"it has caught up with a leader; check the disk"
)

// lose says that the rest of a segment cannot be read. The next segment tells what was there.
func (r *recovery) lose(path string, offset int64, reason string) {
	if r.gap == nil {
		r.gap = &loss{path: path, offset: offset, reason: reason}
	}
}

// loseTail ends the log, and says which entry the server may have acknowledged.
func (r *recovery) loseTail(path string, offset int64, reason string, fence raft.EntryID) {
	w := r.w
	if f := w.fence; fence.Term > f.Term || fence.Term == f.Term && fence.Index > f.Index {
		w.fence = fence
	}
	r.tailLost = true
	if r.hardDoubt == nil {
		r.hardDoubt = &loss{path: path, offset: offset, reason: reason}
	}
	upTo := "it is not known which"
	if fence.Term != raft.MaxTerm {
		upTo = fmt.Sprintf("up to %v", fence)
	}
	r.note(Finding{
		File: path, Offset: offset, Verdict: Fenced, Found: reason,
		Meaning: fmt.Sprintf("the log ends with entry %v; the server may have acknowledged more, %s: it is fenced", w.index.last, upTo),
		Next:    nextFence,
	})
}

// join goes on with the next segment. What is lost of the one before is known from its header.
func (r *recovery) join(before *segment, h *segmentHeader) error {
	w := r.w
	gap := r.gap
	r.gap = nil
	disagree := func() error {
		path, offset := before.path, before.end
		if gap != nil {
			path, offset = gap.path, gap.offset
		}
		return r.refuse(Damaged, path, offset,
			fmt.Sprintf("the segment ends with batch %d at entry %v, but the next one continues batch %d at entry %v",
				w.lastBatch, w.index.last, h.lastBatch, h.last))
	}
	if h.lastBatch > w.lastBatch {
		if gap == nil {
			gap = &loss{path: before.path, offset: before.end, reason: fmt.Sprintf("the log reads up to batch %d, but batch %d was there",
				w.lastBatch, h.lastBatch)}
		}
		if err := r.learn(gap, before, h.lastBatch-w.lastBatch, h.before, h.last, h); err != nil {
			return err
		}
		w.lastBatch, w.chain, w.before, w.hardState = h.lastBatch, h.chain, h.before, h.hardState
		w.index.snapshot = h.snapshot
	} else if gap != nil && h.lastBatch == w.lastBatch {
		r.noteDegraded(gap.path, &raft.CorruptionError{Path: gap.path, Offset: gap.offset, Reason: gap.reason},
			"what is damaged there held no batch that counts")
	}
	// The hard state of a header may come from the vote file, when the log had lost it.
	older := h.hardState.CurrentTerm < w.hardState.CurrentTerm ||
		h.hardState.CurrentTerm == w.hardState.CurrentTerm && w.hardState.VotedFor != "" && h.hardState != w.hardState
	if h.lastBatch != w.lastBatch || h.chain != w.chain || h.last != w.index.last || older && r.hardDoubt == nil {
		return disagree()
	}
	w.hardState, w.fence = h.hardState, h.fence
	r.hardDoubt, r.fenceDoubt = nil, false
	return nil
}

// beginBehindGap begins with a segment in front of which there was another one.
func (r *recovery) beginBehindGap(seg *segment, h *segmentHeader) error {
	w := r.w
	newest, err := snapshot.Newest(w.fs, w.snapshotsDir(), w.snapshotOptions())
	if err != nil {
		return fmt.Errorf("open snapshots: %w", err)
	}
	gap := r.gap
	switch {
	case newest.Index >= h.last.Index:
		r.gap = nil
		r.begin(h)
		r.losses = append(r.losses, *gap)
		return nil
	case newest.Index > 0:
		w.index.compacted, w.index.last = newest.ID(), newest.ID()
	case h.prevSeq > 1:
		return r.refuse(Damaged, gap.path, gap.offset, gap.reason+"; there is no snapshot of what it held")
	}
	return r.join(seg, h)
}

// bridge goes on with a later batch of the same segment, whose header is intact: it tells what is lost in between. So does the header of the
// segment behind, if there is one, as far as the log has not changed between the two.
func (r *recovery) bridge(gap *loss, seg *segment, next *batchHeader, behind *segmentHeader) error {
	w := r.w
	before := next.seq - 1
	if next.has(flagIdle) {
		before = next.seq
	}
	switch {
	case before < w.lastBatch:
		return r.refuse(Damaged, gap.path, gap.offset, fmt.Sprintf("%s, and behind it, at byte %d, is batch %d, although the log has got to batch %d",
			gap.reason, next.offset, next.seq, w.lastBatch))
	case before == w.lastBatch:
		r.noteDegraded(gap.path, &raft.CorruptionError{Path: gap.path, Offset: gap.offset, Reason: gap.reason}, meaningIdle)
	default:
		if behind != nil && !behind.agrees(next.prev) {
			behind = nil
		}
		if err := r.learn(gap, seg, before-w.lastBatch, next.before, next.prev, behind); err != nil {
			return err
		}
		r.hardDoubt, r.fenceDoubt = gap, true
		w.lastBatch, w.chain, w.before = before, next.prevChain, next.before
		w.lastHolder, r.lastDamaged = seg, true // if an idle record follows, it stays the last one
	}
	seg.end = next.offset
	return nil
}

// agrees reports whether the log that the header describes has an entry. By Log Matching it then has all in front of it, too.
func (h *segmentHeader) agrees(id raft.EntryID) bool {
	for i := len(h.terms) - 1; i >= 0 && id.Index <= h.last.Index; i-- {
		if h.terms[i].Index <= id.Index {
			return h.terms[i].Term == id.Term
		}
	}
	return false
}

// learn finds out what that many lost batches did to the log, and does the same with damaged entries. Known are the first and the last entry
// of the last one of them, the log's end behind them (or, if a truncation follows, what it leaves), and perhaps the header of the next
// segment.
//
// What it builds on is the Log Matching Property (§5.3): if an entry of the log behind the gap has index and term of one in front of it, or
// the end of the log the term of the last one in front of it, then the log in front of the gap up to there is a prefix of the log behind it.
func (r *recovery) learn(gap *loss, seg *segment, lost uint64, before span, end raft.EntryID, next *segmentHeader) error {
	w := r.w
	x := &w.index
	from, to := raft.Index(0), raft.EntryID{} // of the damaged entries
	var terms []raft.TermStart                // of them; nil: they all have to's
	endTerm, endThere := x.termAt(end.Index)
	kept, matched := raft.Index(0), false
	if next != nil {
		kept, matched = x.matching(end.Index, next.terms)
	}
	switch {
	case matched:
		if kept < x.last.Index {
			x.truncateFrom(kept + 1)
		}
		from, to, terms = kept+1, end, next.terms
	case lost == 1 && before.first.Index == 0 && end.Index > x.last.Index:
		x.reset(end) // nothing else moves the log's end without entries than a snapshot that was installed
	case lost == 1 && before.first.Index > end.Index:
		// What it held is truncated by the batch behind the gap, down to an entry that it did not touch.
		if before.first.Index <= x.compacted.Index || before.first.Index > x.last.Index+1 {
			return r.unknown(gap)
		}
		x.truncateFrom(before.first.Index)
	case lost == 1 && before.first.Index > 0 && before.first.Index > x.compacted.Index && before.first.Index <= x.last.Index+1:
		from, to = before.first.Index, before.last
		if end.Index < to.Index {
			to = end
		}
		if before.first.Term != to.Term {
			return r.unknown(gap)
		}
		x.truncateFrom(from)
		r.snapshotDoubt = max(r.snapshotDoubt, from-1)
	case endThere && endTerm == end.Term:
		if end.Index < x.last.Index {
			x.truncateFrom(end.Index + 1)
		}
	case end.Index > x.last.Index && (end.Term == x.last.Term || x.last.Index == 0 && end.Term == 1):
		from, to = x.last.Index+1, end
	default:
		newest, err := snapshot.Newest(w.fs, w.snapshotsDir(), w.snapshotOptions())
		if err != nil {
			return fmt.Errorf("open snapshots: %w", err)
		}
		if newest.Index == 0 || newest.Index > end.Index || newest.Term != end.Term {
			return r.unknown(gap)
		}
		x.reset(newest.ID()) // committed, and in the log in front of end by Log Matching
		from, to = newest.Index+1, end
	}
	place := *gap
	if from > 0 && from <= to.Index {
		if terms == nil {
			terms = []raft.TermStart{{Index: from, Term: to.Term}}
		}
		r.takeDamaged(stretch{first: from, last: to.Index, mayConfigure: next == nil || next.config.Index >= from}, terms, seg, gap.offset)
		place.first, place.last = from, to.Index
	}
	r.losses = append(r.losses, place)
	return nil
}

func (r *recovery) unknown(gap *loss) error {
	return r.refuse(Damaged, gap.path, gap.offset, gap.reason+"; which entries are lost with it cannot be told from what is around it")
}

// judge looks at what was replayed as a whole.
func (r *recovery) judge() error {
	w := r.w
	x := &w.index
	newest := raft.SnapshotMeta{}
	if len(x.damaged) > 0 || r.tailLost || r.snapshotDoubt > 0 || len(r.files) == 0 || r.newest > r.files[len(r.files)-1] {
		var err error
		if newest, err = snapshot.Newest(w.fs, w.snapshotsDir(), w.snapshotOptions()); err != nil {
			return fmt.Errorf("open snapshots: %w", err)
		}
	}
	if len(r.files) == 0 {
		if newest.Index > 0 {
			return r.refuse(Wiped, w.dir, 0, fmt.Sprintf("there is a snapshot up to entry %v, but neither a segment nor a vote", newest.ID()))
		}
		return nil
	}
	switch {
	case r.newest > r.files[len(r.files)-1]:
		reason := "the last segment is missing"
		if err := r.bad[r.newest]; err != nil {
			reason = err.Reason
		}
		r.loseTail(w.path(segmentName(r.newest)), 0, reason, raft.EntryID{Term: raft.MaxTerm})
	case r.voteFound && w.lastBatch < r.vote.batch && !r.tailLost:
		r.loseTail(r.last.path, r.last.end, fmt.Sprintf("the log ends with batch %d, but batch %d was durable", w.lastBatch, r.vote.batch),
			raft.EntryID{Term: raft.MaxTerm})
	}
	if r.hardDoubt != nil && !r.voteKnown {
		return r.refuse(TermLost, r.hardDoubt.path, r.hardDoubt.offset,
			r.hardDoubt.reason+"; term and vote may be lost with it, and the vote file does not tell")
	}
	if err := r.mergeVote(); err != nil {
		return err
	}
	for _, seq := range slices.Sorted(maps.Keys(r.bad)) {
		path := w.path(segmentName(seq))
		if seq < r.newest && !slices.ContainsFunc(r.losses, func(l loss) bool { return l.path == path }) {
			r.noteDegraded(path, r.bad[seq], "the segment held no batch that counts")
		}
	}
	r.coveredBy(newest)
	if err := r.alone(newest); err != nil {
		return err
	}
	r.noteLosses()
	return nil
}

// mergeVote brings the log and the vote file into agreement.
func (r *recovery) mergeVote() (err error) {
	w := r.w
	if !r.voteFound {
		if w.lastBatch > 0 {
			r.noteDegraded(w.path(voteName), errors.New("the file is missing, or no record in it is intact"),
				fmt.Sprintf("term %d and the vote for %q come from the log", w.hardState.CurrentTerm, w.hardState.VotedFor))
		}
		return nil
	}
	if r.fenceDoubt && !r.tailLost {
		w.fence = r.vote.fence
	}
	w.hardState, err = mergeHardStates(w.hardState, r.vote.hardState, w.path(voteName))
	return err
}

// coveredBy leaves out what a snapshot makes up for. The log then begins behind it.
func (r *recovery) coveredBy(newest raft.SnapshotMeta) {
	x := &r.w.index
	if len(x.damaged) == 0 && r.snapshotDoubt == 0 || newest.Index == 0 {
		r.damaged = x.damaged
		return
	}
	term, ok := x.termAt(newest.Index)
	if !ok || term != newest.Term {
		if newest.Index > x.compacted.Index { // it takes the log's place
			return
		}
	} else {
		covered := raft.Index(0)
		for i := range x.damaged {
			if x.damaged[i].first <= newest.Index {
				covered = min(x.damaged[i].last, newest.Index)
			}
		}
		if newest.Index >= r.snapshotDoubt && r.snapshotDoubt > 0 {
			covered = newest.Index
		}
		if term, ok := x.termAt(covered); ok && covered > x.compacted.Index {
			x.dropThrough(raft.EntryID{Term: term, Index: covered})
		}
	}
	r.damaged = x.damaged
}

// alone refuses to start the only voter of a cluster without what it has lost: it would elect itself, and go on as if nothing had been
// acknowledged.
func (r *recovery) alone(newest raft.SnapshotMeta) error {
	w := r.w
	if len(r.damaged) == 0 && !r.tailLost {
		return nil
	}
	conf := newest.Configuration
	for _, id := range w.index.configs {
		e := r.configs[id.Index]
		if c, err := raft.DecodeConfiguration(e.Data); err == nil && id.Index > newest.Index {
			conf = c
		}
	}
	voters := conf.Voters()
	if len(voters) != 1 || w.identity.Node != "" && voters[0] != w.identity.Node {
		return nil
	}
	damage := &raft.CorruptionError{Path: w.dir, Next: nextAlone}
	if len(r.damaged) > 0 {
		damage.Damage = r.damaged[0].damage()
	}
	var why loss
	for _, l := range r.losses {
		if len(r.damaged) > 0 && l.first <= r.damaged[0].last && l.last >= r.damaged[0].first {
			why = l
		}
	}
	if why.path == "" && r.hardDoubt != nil {
		why = *r.hardDoubt
	}
	if why.path != "" {
		damage.Path, damage.Offset, damage.Reason = why.path, why.offset, why.reason+"; "
	}
	damage.Reason += fmt.Sprintf("server %q is the only voter", voters[0])
	r.isAlone = true
	return &RefusalError{Damaged, damage}
}

// noteLosses tells of each loss what has come of it.
func (r *recovery) noteLosses() {
	for _, l := range r.losses {
		f := Finding{File: l.path, Offset: l.offset, Verdict: Degraded, Found: l.reason, Next: nextDisk}
		f.Meaning = "no entry that is in force is lost with it: superseded, compacted, covered by a snapshot, or written again since"
		if l.first > 0 {
			for i := range r.damaged {
				if d := &r.damaged[i]; d.first <= l.last && d.last >= l.first {
					first, last := max(d.first, l.first), min(d.last, l.last)
					firstTerm, _ := r.w.index.termAt(first)
					lastTerm, _ := r.w.index.termAt(last)
					f.Verdict, f.Next = Corrupt, nextPeers
					f.Meaning = fmt.Sprintf("%s cannot be read: the server starts, uses and serves none of them, and gets them from the others",
						entryRange(raft.EntryID{Term: firstTerm, Index: first}, raft.EntryID{Term: lastTerm, Index: last}))
					break
				}
			}
		}
		r.note(f)
	}
}
