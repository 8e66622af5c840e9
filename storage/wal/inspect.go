package wal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/snapshot"
	"github.com/steadyraft/raft/storage/vfs"
)

// Verdict says how bad it is.
type Verdict = raft.Verdict

// The verdicts, from good to bad.
const (
	Clean    = raft.VerdictClean
	Torn     = raft.VerdictTorn
	Degraded = raft.VerdictDegraded
	Corrupt  = raft.VerdictCorrupt
	Fenced   = raft.VerdictFenced
	Damaged  = raft.VerdictDamaged // also: a snapshot that the server needs
	TermLost = raft.VerdictTermLost
	Wiped    = raft.VerdictWiped
	Tampered = raft.VerdictTampered
)

// Finding is one thing that is not as it was written.
type Finding = raft.Finding

// RefusalError says why a log is not opened. It unwraps to the *raft.CorruptionError that says where the damage is and what to do.
type RefusalError struct {
	Verdict Verdict
	Damage  *raft.CorruptionError
}

// Error describes the damage and the next step.
func (e *RefusalError) Error() string { return string(e.Verdict) + ": " + e.Damage.Error() }

// Unwrap returns the damage.
func (e *RefusalError) Unwrap() error { return e.Damage }

// Segment describes one file of the log.
type Segment struct {
	File     string `json:"file"`
	Sequence uint64 `json:"sequence"`
	Bytes    int64  `json:"bytes"`               // of the file
	LeftOver bool   `json:"left_over,omitempty"` // no server reads the file any more; the next one that runs removes it
	// End is behind the last intact batch that belongs to the log; 0 if a damage in front of it kept the file from being read.
	End     int64        `json:"end"`
	Batches int          `json:"batches"` // up to there
	First   raft.EntryID `json:"first"`   // entry in them, superseded ones included; zero if there is none
	Last    raft.EntryID `json:"last"`
}

// ConfigurationAt is a configuration and the entry that it comes from.
type ConfigurationAt struct {
	raft.EntryID
	Configuration raft.Configuration `json:"configuration"`
}

// Report is what Inspect found in a directory. Where the verdict is Damaged, log and hard state are described up to the damage.
type Report struct {
	Directory string    `json:"directory"`
	Verdict   Verdict   `json:"verdict"` // the worst of the findings
	Findings  []Finding `json:"findings"`
	Unlisted  int       `json:"unlisted,omitempty"` // findings beyond the first hundred

	Cluster     string         `json:"cluster"`
	Node        raft.NodeID    `json:"node"`
	Replica     raft.ReplicaID `json:"replica"`     // 0: nothing in the directory says who it belongs to
	Incarnation uint64         `json:"incarnation"` // of the last run

	HardState raft.HardState  `json:"hard_state"`        // with which a server would start
	VoteFile  *raft.HardState `json:"vote_file"`         // what the vote file says; nil if it is missing, or nothing in it is intact
	Compacted raft.EntryID    `json:"compacted"`         // the last entry that is gone from the front of the log
	Last      raft.EntryID    `json:"last"`              // the log's end; Compacted if it is empty
	Damaged   []raft.Damage   `json:"damaged,omitempty"` // entries that cannot be read, and that the server gets from the others
	Fence     raft.EntryID    `json:"fence"`             // the server may have acknowledged entries up to this one, of which nothing is left
	Batches   uint64          `json:"batches"`           // written over the directory's whole life

	// Newest is the last entry that the server has when it starts: Last, or that of a snapshot that takes the log's place. By it the
	// servers that survived are compared. Zero if the log is damaged, and from Dump, which does not read the snapshots.
	Newest raft.EntryID `json:"newest"`

	Configurations []ConfigurationAt   `json:"configurations"` // in the log; the newest snapshot has the one before
	Segments       []Segment           `json:"segments"`
	Snapshots      []snapshot.Verified `json:"snapshots"` // newest first
	Keys           []KeyUses           `json:"keys"`      // that the files are encrypted with, 0 for none; empty from Dump

	// Refusal is the error with which Open would refuse the directory; nil if it would not.
	Refusal error `json:"-"`
}

// ErrNoLog says that a directory holds nothing that a WAL has written.
var ErrNoLog = errors.New("no log in this directory")

const (
	nextNothing = "nothing to do"
	nextDisk    = "the server can be started; check the disk: bytes that had been written and synced have changed"

	maxFindings = 100
)

// Inspect reads and verifies the directory of a stopped server, log, vote file and snapshots, as Open would, and changes nothing. All
// bytes are read once, those behind a damage twice; no more than a batch of them, or a chunk of a snapshot, is held in memory.
//
// Damage is part of the report. Errors are those of the device and of ctx; [raft.ErrLocked] (a server runs in the directory),
// [ErrNoLog] and fs.ErrNotExist.
func Inspect(ctx context.Context, fsys vfs.FS, dir string, opts ...InspectOption) (Report, error) {
	in, err := beginInspection(ctx, fsys, dir, fsys.LockShared, opts)
	if err != nil {
		return Report{}, err
	}
	err = in.verifySnapshots(ctx)
	if err == nil {
		in.report.Keys, err = keyUse(fsys, dir, true)
	}
	return in.report, errors.Join(err, in.end())
}

// Dump hands out the entries [lo, hi) of the log of a stopped server, in order, and changes nothing; lo 0 means from the first that is
// there, hi 0 to the last. What was superseded is not part of the log. Damaged entries are left out; where the server refuses the log, so
// are all behind the reason for it.
// begin is called before, with a report that lacks the snapshots. The entries are the callee's to keep.
//
// Errors are those of Inspect, of begin and of entry.
func Dump(ctx context.Context, fsys vfs.FS, dir string, lo, hi raft.Index, begin func(*Report) error, entry func(raft.Entry) error,
	opts ...InspectOption,
) error {
	in, err := beginInspection(ctx, fsys, dir, fsys.LockShared, opts)
	if err != nil {
		return err
	}
	err = begin(&in.report)
	lo = max(lo, in.w.index.compacted.Index+1)
	if end := in.w.index.last.Index + 1; hi == 0 || hi > end {
		hi = end
	}
	in.w.open = true // for Entries, which needs no more than the index
	for lo < hi && err == nil {
		if err = ctx.Err(); err != nil {
			break
		}
		var entries []raft.Entry
		entries, err = in.w.Entries(lo, hi, dumpBytes)
		if damage := (*raft.CorruptionError)(nil); errors.As(err, &damage) && damage.Damage.Last >= lo {
			lo, err = damage.Damage.Last+1, nil // a finding tells of it
			continue
		}
		lo += raft.Index(len(entries))
		for i := 0; i < len(entries) && err == nil; i++ {
			err = entry(entries[i])
		}
	}
	return errors.Join(err, in.end())
}

const dumpBytes = 1 << 20 // read at a time

// inspection is a directory that is held and was read.
type inspection struct {
	w      *WAL
	r      *recovery
	lock   io.Closer // nil: there is no lock file, so that no server has ever run here
	report Report
}

func beginInspection(
	ctx context.Context, fsys vfs.FS, dir string, lock func(path string) (io.Closer, error), opts []InspectOption,
) (_ *inspection, err error) {
	options := Options{FS: fsys, VerifyAtOpen: true}
	for _, o := range opts {
		o(&options)
	}
	in := &inspection{w: New(dir, options), report: Report{
		Directory: dir, Verdict: Clean, Findings: []Finding{}, Configurations: []ConfigurationAt{}, Segments: []Segment{},
		Snapshots: []snapshot.Verified{}, Keys: []KeyUses{},
	}}
	names, err := fsys.List(dir)
	if err != nil {
		return nil, fmt.Errorf("inspect log: %w", err)
	}
	if !slices.ContainsFunc(names, isOurs) {
		return nil, fmt.Errorf("inspect log: %s: %w", dir, ErrNoLog)
	}
	in.lock, err = lock(in.w.path(lockName))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		in.lock = nil // a copy, perhaps
	case errors.Is(err, vfs.ErrLocked):
		return nil, fmt.Errorf("inspect log: %w: stop the server first: %w", raft.ErrLocked, err)
	case err != nil:
		return nil, fmt.Errorf("inspect log: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("inspect log: %w", err), in.end())
		}
	}()

	in.r = in.w.newRecovery()
	in.r.note, in.r.everyEntry = in.add, true
	segments := map[uint64]*Segment{}
	in.r.replays = func(seg *segment, h *batchHeader) {
		s := segments[seg.seq]
		if s == nil {
			s = &Segment{}
			segments[seg.seq] = s
		}
		if !h.has(flagIdle) {
			s.Batches++
		}
		if h.count > 0 {
			if s.First == (raft.EntryID{}) {
				s.First = h.span().first
			}
			s.Last = h.last
		}
	}
	refusal := in.r.understand(ctx, raft.Identity{})
	var damage *raft.CorruptionError
	if refusal != nil && !errors.As(refusal, &damage) {
		return nil, refusal
	}
	if err := in.describe(segments, damage != nil); err != nil {
		return nil, err
	}
	if damage != nil {
		in.report.Refusal = refusal
		if in.r.isAlone {
			in.r.noteLosses()
			in.add(Finding{
				File: damage.Path, Offset: damage.Offset, Verdict: Damaged, Found: damage.Reason, Next: damage.Next,
				Meaning: "the server refuses to start: nobody else has what is damaged, and it would go on as if it had never been there",
			})
			return in, nil
		}
		return in, in.examine(ctx, damage)
	}
	in.judgeLog()
	return in, nil
}

// isOurs reports whether a WAL makes files of that name.
func isOurs(name string) bool {
	_, segment := parseSegmentName(name)
	return segment || name == voteName || name == lockName || name == snapshotsName
}

func (in *inspection) end() error {
	if in.lock == nil {
		return nil
	}
	return in.lock.Close()
}

// add takes a finding into the report.
func (in *inspection) add(f Finding) {
	if f.Verdict.Worse(in.report.Verdict) {
		in.report.Verdict = f.Verdict
	}
	if len(in.report.Findings) >= maxFindings {
		in.report.Unlisted++
		return
	}
	in.report.Findings = append(in.report.Findings, f)
}

// noteDegraded notes damage that does no harm: one finding for each error that err joins, at whatever depth.
func (r *recovery) noteDegraded(path string, err error, meaning string) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range joined.Unwrap() {
			r.noteDegraded(path, err, meaning)
		}
		return
	}
	f := Finding{File: path, Verdict: Degraded, Found: err.Error(), Meaning: meaning, Next: nextDisk}
	if damage := (*raft.CorruptionError)(nil); errors.As(err, &damage) {
		f.Offset, f.Found = damage.Offset, damage.Reason
	}
	r.note(f)
}

// describe fills in what was understood.
func (in *inspection) describe(replayed map[uint64]*Segment, damaged bool) error {
	w, r, report := in.w, in.r, &in.report
	if len(r.files) > 0 {
		id := r.headers[slices.Max(r.files)].identity
		report.Cluster, report.Node, report.Replica, report.Incarnation = id.Cluster, id.Node, id.Replica, max(id.Incarnation, r.vote.incarnation)
	}
	report.HardState, report.Compacted, report.Last, report.Batches = w.hardState, w.index.compacted, w.index.last, w.lastBatch
	report.Fence = w.fence
	for i := range r.damaged {
		report.Damaged = append(report.Damaged, r.damaged[i].damage())
	}
	if r.voteFound {
		report.VoteFile = &r.vote.hardState
	}
	for _, id := range w.index.configs {
		e := r.configs[id.Index]
		conf, err := raft.DecodeConfiguration(e.Data)
		if err != nil {
			in.add(Finding{
				File: w.dir, Verdict: Damaged, Found: fmt.Sprintf("entry %v: %v", id, err),
				Meaning: "the server does not start: it cannot know who is a member", Next: nextRestore,
			})
			continue
		}
		report.Configurations = append(report.Configurations, ConfigurationAt{id, conf})
	}
	for _, name := range r.names {
		seq, ok := parseSegmentName(name)
		if !ok {
			continue
		}
		info, err := w.fs.Stat(w.path(name))
		if err != nil {
			return fmt.Errorf("size of segment %d: %w", seq, err)
		}
		s := Segment{LeftOver: !damaged || r.voteFound && seq < r.vote.first}
		if i := slices.IndexFunc(w.segments, func(s *segment) bool { return s.seq == seq }); i >= 0 {
			if had := replayed[seq]; had != nil {
				s = *had
			}
			s.LeftOver, s.End = false, w.segments[i].end
		}
		s.File, s.Sequence, s.Bytes = w.path(name), seq, info.Size()
		report.Segments = append(report.Segments, s)
	}
	return nil
}

// judgeLog looks at a log that Open would take.
func (in *inspection) judgeLog() {
	if len(in.r.files) == 0 {
		in.add(Finding{
			File: in.w.dir, Verdict: Clean, Found: "no segment and no vote: the log is blank",
			Meaning: "a server that starts here is new: it remembers neither entries nor votes",
			Next:    "if it was a member before, its log is lost: add it to the cluster under a new ID",
		})
	}
}

func (in *inspection) verifySnapshots(ctx context.Context) error {
	all, err := snapshot.Verify(ctx, in.w.fs, in.w.snapshotsDir(), in.w.snapshotOptions())
	if err != nil {
		return fmt.Errorf("inspect snapshots: %w", err)
	}
	in.report.Snapshots = append(in.report.Snapshots, all...)
	switch {
	case in.report.Refusal != nil: // what could be read of the log is no measure
	case in.behindLog():
		in.report.Newest = in.startSnapshot()
	default:
		in.report.Newest = in.report.Last
	}
	in.judgeSnapshots()
	return nil
}

// judgeSnapshots finds out whether a server could go on from what is there: it takes the newest snapshot whose description is intact,
// and the log behind it.
func (in *inspection) judgeSnapshots() {
	var start *snapshot.Verified // the one that a server would start from
	base := in.report.Compacted
	for i := range in.report.Snapshots {
		v := &in.report.Snapshots[i]
		first := start == nil && v.Described()
		if first {
			start = v
		}
		if v.Damage == nil {
			continue
		}
		f := Finding{
			File: v.Path, Offset: v.Damage.Offset, Verdict: Degraded, Found: v.Damage.Reason,
			Meaning: "the snapshot will not be used", Next: nextDisk,
		}
		judgeTampering(&f, v.Damage)
		if first {
			f.Verdict, f.Next = Damaged, nextRestore
			judgeTampering(&f, v.Damage)
			f.Meaning = "the server takes the snapshot for a good one when it starts, and fails when it has to restore its content; it sets the file " +
				"aside then, and the start after that does without it"
			if older := in.otherSnapshot(i + 1); in.report.Refusal == nil && (older != nil || base.Index == 0) {
				f.Next = "move this file out of the directory: the log reaches back to its beginning, and the server starts from there"
				if older != nil {
					f.Next = fmt.Sprintf("move this file out of the directory: the server then starts from the snapshot at %v and the log behind it",
						older.Meta.ID())
				}
			}
		}
		in.add(f)
	}
	reached := raft.EntryID{}
	if start != nil {
		reached = start.Meta.ID()
	}
	if in.report.Refusal == nil && reached.Index < base.Index {
		in.add(Finding{
			File: in.w.snapshotsDir(), Verdict: Corrupt,
			Found: fmt.Sprintf("the newest snapshot ends at %v, but the log begins behind %v", reached, base),
			Meaning: "the entries between them are nowhere in this directory: the server starts, but acknowledges nothing and does not campaign until it " +
				"has received another server's snapshot", Next: nextPeers,
		})
	}
	if len(in.r.files) == 0 && start != nil && in.report.Refusal == nil {
		in.add(Finding{
			File: in.w.dir, Verdict: Degraded, Found: "there are snapshots, but no log",
			Meaning: "term, vote and all entries behind the snapshot are lost; a server that starts here is another replica than before",
			Next:    "move the directory away, and add this server with an empty one to the cluster under a new ID",
		})
	}
}

// otherSnapshot returns the newest intact snapshot from number i on that the log reaches back to.
func (in *inspection) otherSnapshot(i int) *snapshot.Verified {
	for ; i < len(in.report.Snapshots); i++ {
		if v := &in.report.Snapshots[i]; v.Described() {
			if v.Damage == nil && v.Meta.Index >= in.report.Compacted.Index {
				return v
			}
			return nil // a server would take this one
		}
	}
	return nil
}

// examine says more about a damaged log than Open does: which entries are hit, and what else is damaged. What lies behind a damage is
// judged by itself: whether it belongs there cannot be known any more.
func (in *inspection) examine(ctx context.Context, damage *raft.CorruptionError) error {
	w, r := in.w, in.r
	refusal := Finding{File: damage.Path, Offset: damage.Offset, Verdict: Damaged, Found: damage.Reason, Next: nextRestore}
	if why := (*RefusalError)(nil); errors.As(in.report.Refusal, &why) && why.Verdict != Damaged {
		refusal.Verdict, refusal.Next = why.Verdict, damage.Next
	}
	var others []Finding
	var behind examined
	r.note = func(Finding) {} // of headers that were read before
	for _, s := range in.unread() {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := r.readHeader(s.seq)
		var unreadable *raft.CorruptionError
		switch {
		case errors.As(err, &unreadable):
			if *unreadable != *damage {
				f := alsoDamaged(unreadable.Path, unreadable.Offset, unreadable.Reason)
				judgeTampering(&f, unreadable)
				others = append(others, f)
			}
			continue
		case err != nil:
			return err
		}
		s.tag = h.tag
		inRefusal := s.path == damage.Path && s.end == damage.Offset
		err = in.examineSegment(ctx, s, inRefusal, &behind, func(offset int64, reason, holds string, forged *raft.CorruptionError) {
			switch {
			case s.path != damage.Path || offset != damage.Offset:
				if len(others) < maxFindings {
					f := alsoDamaged(s.path, offset, joined(reason, holds))
					judgeTampering(&f, forged)
					others = append(others, f)
				}
			case holds != "":
				refusal.Found = joined(refusal.Found, holds)
			}
		})
		if err != nil {
			return err
		}
	}
	readable := "nothing of the log can be read in order"
	if last := w.index.last; last.Index > 0 {
		readable = fmt.Sprintf("the log can be read in order up to entry %v", last)
	}
	refusal.Meaning = fmt.Sprintf("the server refuses to start: what it has promised may be hidden here; %s%s", readable, behind)
	in.add(refusal)
	for _, f := range others {
		in.add(f)
	}
	return nil
}

func joined(a, b string) string {
	if b == "" {
		return a
	}
	return a + "; " + b
}

func alsoDamaged(path string, offset int64, found string) Finding {
	return Finding{
		File: path, Offset: offset, Verdict: Damaged, Found: found, Meaning: "this is damaged, too", Next: nextRestore,
	}
}

// unread lists the segments that were not understood, or not to their end.
func (in *inspection) unread() []*segment {
	var list []*segment
	for _, name := range in.r.names {
		seq, ok := parseSegmentName(name)
		if !ok || in.r.voteFound && seq < in.r.vote.first {
			continue
		}
		s := &segment{seq: seq, path: in.w.path(name), end: segmentHeaderSize}
		if i := slices.IndexFunc(in.w.segments, func(s *segment) bool { return s.seq == seq }); i >= 0 {
			if i < len(in.w.segments)-1 {
				continue
			}
			s.end = in.w.segments[i].end
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b *segment) int { return strings.Compare(a.path, b.path) })
	return list
}

// examined counts what is intact although it was not understood. It prints as the end of a sentence.
type examined struct {
	batches     int
	first, last raft.EntryID
}

func (x examined) String() string {
	switch {
	case x.batches == 0:
		return ""
	case x.last == (raft.EntryID{}):
		return fmt.Sprintf("; intact besides, as far as can be told: %d batches without entries", x.batches)
	}
	return fmt.Sprintf("; intact besides, as far as can be told: %d batches, with %s", x.batches, entryRange(x.first, x.last))
}

// examineSegment walks over the batches of a segment from s.end on, and tells of each stretch that is damaged; inStretch says that the
// first one is known.
func (in *inspection) examineSegment(ctx context.Context, s *segment, inStretch bool, behind *examined,
	damaged func(offset int64, reason, holds string, forged *raft.CorruptionError)) (err error) {
	f, err := in.w.fs.Open(s.path)
	if err != nil {
		return fmt.Errorf("open segment: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Size()
	if err != nil {
		return fmt.Errorf("open segment: %w", err)
	}
	sealed := false
	for _, h := range in.r.headers {
		if h.prevSeq == s.seq {
			size, sealed = min(size, h.prevEnd), true
		}
	}
	reader := &segmentReader{file: f, path: s.path, size: size, ahead: readAhead, sealer: in.r.sealers[s.seq]}
	for at := s.end; at+sectorSize <= size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, b, v, err := reader.batchAt(at, s.tag)
		forged := (*raft.CorruptionError)(nil)
		if errors.As(err, &forged) {
			b, v, err = nil, corrupted(forged.Reason), nil
		}
		if err != nil {
			return err
		}
		if v.reason == "" {
			if !h.has(flagIdle) {
				behind.batches++
			}
			if h.count > 0 && behind.first == (raft.EntryID{}) {
				behind.first = h.span().first
			}
			if h.count > 0 {
				behind.last = h.last
			}
			at, inStretch = h.end(), false
			continue
		}
		if b != nil { // the header is intact: it says what the batch holds, and where the next one begins
			left := h.salvage(b)
			damaged(at, v.reason, holds(&h, &left), nil)
			at, inStretch = h.end(), false
			continue
		}
		if !inStretch {
			harmless, err := neverWritten(reader, s.tag, at, sealed)
			if err != nil {
				return err
			}
			if inStretch = !harmless; inStretch {
				damaged(at, v.reason, "", forged)
			}
		}
		at += sectorSize
	}
	return nil
}

// neverWritten reports whether a sector reads zero and need not have been written: it is the place of the next batch, or that of an
// idle record that was lost in a crash, with the next batch or the end behind it.
func neverWritten(reader *segmentReader, tag segmentTag, at int64, sealed bool) (bool, error) {
	b, err := reader.at(at, sectorSize)
	if err != nil || !isZero(b) || !sealed || at+sectorSize >= reader.size {
		return err == nil && isZero(b), err
	}
	if b, err = reader.at(at+sectorSize, sectorSize); err != nil {
		return false, err
	}
	h, err := decodeBatchHeader(b)
	return err == nil && h.tag == tag, nil
}

// holds says which entries a batch with an intact header holds, and which of them are damaged.
func holds(h *batchHeader, left *salvaged) string {
	if h.count == 0 && h.repairs == 0 {
		return "the batch holds no entry"
	}
	var s strings.Builder
	if h.count > 0 {
		fmt.Fprintf(&s, "the batch holds %s", entryRange(h.span().first, h.last))
	} else {
		fmt.Fprintf(&s, "the batch holds %d entries that were written a second time", h.repairs)
	}
	for i, lost := range left.lost {
		if i == 10 {
			fmt.Fprintf(&s, "; and so are others in %d places", len(left.lost)-i)
			break
		}
		fmt.Fprintf(&s, "; damaged: %d", lost.first)
		if lost.last > lost.first {
			fmt.Fprintf(&s, " to %d", lost.last)
		}
	}
	if len(left.lost) == 0 && len(left.repairs) == h.repairs {
		s.WriteString(", all of them with the right checksums")
	}
	return s.String()
}

func entryRange(first, last raft.EntryID) string {
	if first == last {
		return fmt.Sprintf("entry %v", first)
	}
	return fmt.Sprintf("entries %v to %v", first, last)
}
