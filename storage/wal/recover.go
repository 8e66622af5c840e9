package wal

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/snapshot"
)

// recovery is an Open under way. Up to the moment when all is understood, nothing on disk is changed.
type recovery struct {
	w       *WAL
	names   []string
	headers map[uint64]segmentHeader         // of all segments that are still needed and have a readable header
	sealers map[uint64]*sealer               // likewise; nil: not encrypted
	files   []uint64                         // their numbers, rising
	newest  uint64                           // number of the last segment, which may be missing or unreadable
	bad     map[uint64]*raft.CorruptionError // segments whose header is unreadable
	configs map[raft.Index]raft.Entry

	vote      voteRecord
	voteFound bool
	voteKnown bool // the record is certainly the newest that was written

	last        *segment // the newest file, whose end is in doubt
	lastOffset  int64    // of the last batch, in lastHolder
	lastDamaged bool

	// What was found damaged, and what may have been lost with it.
	lostFirst     uint64 // number of a segment that is missing or unreadable, in front of all others; 0: there is none
	losses        []loss
	gap           *loss      // where the log could not be read up to the end of a segment
	tailLost      bool       // the end of the log is lost
	hardDoubt     *loss      // term and vote may have been lost; nil: they are known
	fenceDoubt    bool       // a fence may have been lost
	snapshotDoubt raft.Index // a snapshot may have been installed behind this entry, so that what is in front of it never was in the log
	damaged       []stretch  // what the caller of Open hears of

	isAlone bool // refused for that

	findings   []Finding
	everyEntry bool   // verify the entries' own checksums, too: something may have changed a payload before it was written
	sealed     []trim // segments that have no footer, and may have one

	// What Inspect does differently: it reports where Open logs, and counts.
	note    func(Finding)                      // what Open puts up with
	replays func(seg *segment, h *batchHeader) // a batch or an idle record that was taken over
}

// newRecovery forgets all that was known about the log.
func (w *WAL) newRecovery() *recovery {
	w.index, w.segments, w.failed = logIndex{cut: true}, nil, nil
	w.hardState, w.vote, w.identity = raft.HardState{}, voteRecord{}, raft.Identity{}
	w.active, w.lastHolder, w.idle, w.fence = nil, nil, false, raft.EntryID{}
	w.lastBatch, w.chain, w.before = 0, 0, span{}
	w.keyID, w.voteKey = 0, nil
	r := &recovery{
		w: w, headers: map[uint64]segmentHeader{}, sealers: map[uint64]*sealer{}, bad: map[uint64]*raft.CorruptionError{}, configs: map[raft.Index]raft.Entry{},
		replays: func(*segment, *batchHeader) {},
	}
	r.note = func(f Finding) {
		w.log.Warn(f.Meaning, "verdict", string(f.Verdict), "path", f.File, "offset", f.Offset, "found", f.Found, "next", f.Next)
		if len(r.findings) < maxFindings {
			r.findings = append(r.findings, f)
		}
	}
	return r
}

// recover reads the directory and begins a new segment.
func (w *WAL) recover(ctx context.Context, id raft.Identity) (raft.Recovered, error) {
	r := w.newRecovery()
	if err := w.currentKey(); err != nil {
		return raft.Recovered{}, fmt.Errorf("open log: %w", err)
	}
	if err := r.understand(ctx, id); err != nil {
		return raft.Recovered{}, err
	}
	if err := r.adopt(); err != nil {
		return raft.Recovered{}, err
	}
	return r.recovered()
}

// understand reads and judges everything, and changes nothing. Inspect and Open share it, so that they come to the same verdict.
func (r *recovery) understand(ctx context.Context, id raft.Identity) error {
	w := r.w
	if err := r.survey(); err != nil {
		return err
	}
	if err := r.identify(id); err != nil {
		return err
	}
	if err := w.checkSnapshotKeys(); err != nil {
		return err
	}
	if err := r.replay(ctx); err != nil {
		return err
	}
	return r.judge()
}

// survey reads the vote file and the headers of all segments.
func (r *recovery) survey() error {
	w := r.w
	var err error
	if r.names, err = w.fs.List(w.dir); err != nil {
		return fmt.Errorf("list %s: %w", w.dir, err)
	}
	var damaged error
	if r.vote, r.voteFound, r.voteKnown, damaged, err = w.readVote(w.path(voteName)); err != nil {
		return err
	}
	if damaged != nil {
		r.noteDegraded(w.path(voteName), damaged, "a record of term and vote is damaged; another one is used, or the log")
	}
	r.newest = r.vote.segment
	for _, name := range r.names {
		seq, ok := parseSegmentName(name)
		if !ok || r.voteFound && seq < r.vote.first {
			continue
		}
		r.newest = max(r.newest, seq)
		h, err := r.readHeader(seq)
		if damage := (*raft.CorruptionError)(nil); errors.As(err, &damage) && !errors.As(err, new(*RefusalError)) {
			r.bad[seq] = damage
			continue
		}
		if err != nil {
			return err
		}
		r.headers[seq] = h
		r.files = append(r.files, seq)
	}
	slices.Sort(r.files)
	switch {
	case len(r.files) > 0:
	case len(r.bad) > 0:
		return r.refuse(Damaged, w.path(segmentName(r.newest)), 0, "no segment has a readable header: who the log belongs to, and what it holds, is unknown")
	case r.voteFound:
		return r.refuse(Wiped, w.path(segmentName(r.newest)), 0, "the segment is missing, and so are all others")
	}
	return nil
}

// refuse says why the log is not opened.
func (r *recovery) refuse(v Verdict, path string, offset int64, reason string) error {
	next := nextVerify
	switch v {
	case Wiped:
		next = nextWiped
	case TermLost:
		next = nextTermLost
	}
	return &RefusalError{v, &raft.CorruptionError{Path: path, Offset: offset, Reason: reason, Next: next}}
}

func (r *recovery) readHeader(seq uint64) (h segmentHeader, err error) {
	path := r.w.path(segmentName(seq))
	f, err := r.w.fs.Open(path)
	if err != nil {
		return h, fmt.Errorf("open segment: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sealers := map[segmentTag]*sealer{} // one copy may be another segment's
	h, damaged, err := readAuthenticHeader(f, path, func(at int64, h *segmentHeader, page []byte) (err error) {
		sealers[h.tag], err = r.w.authenticateHeader(path, at, h, page)
		return err
	})
	if err != nil {
		return h, err
	}
	r.sealers[seq] = sealers[h.tag]
	if damaged != nil {
		r.noteDegraded(path, damaged, "one copy of the segment's header is damaged; the other one is used")
	}
	if h.seq != seq {
		return h, r.refuse(Damaged, path, 0, fmt.Sprintf("the header says that this is segment %d", h.seq))
	}
	return h, nil
}

// identify decides who this directory belongs to.
func (r *recovery) identify(want raft.Identity) error {
	w := r.w
	if len(r.files) == 0 {
		w.identity = raft.Identity{Cluster: want.Cluster, Node: want.Node, Incarnation: 1}
		for w.identity.Replica == 0 { // 0 means "unknown"
			w.identity.Replica = raft.ReplicaID(w.opts.Random())
		}
		return nil
	}
	have := r.headers[r.files[len(r.files)-1]].identity
	for _, c := range []struct{ what, have, want string }{
		{"cluster", have.Cluster, want.Cluster},
		{"node", string(have.Node), string(want.Node)},
	} {
		if c.have != "" && c.want != "" && c.have != c.want {
			return &raft.IdentityError{Path: w.dir, What: c.what, Have: c.have, Want: c.want}
		}
	}
	for _, seq := range r.files {
		if other := r.headers[seq].identity; other.Replica != have.Replica {
			return &raft.CorruptionError{
				Path:   w.path(segmentName(seq)),
				Reason: fmt.Sprintf("segment of replica %x in the directory of replica %x", other.Replica, have.Replica),
				Next:   nextVerify,
			}
		}
	}
	if r.voteFound && (r.vote.replica != have.Replica || r.vote.incarnation > have.Incarnation && r.newest <= r.files[len(r.files)-1]) {
		return &raft.CorruptionError{
			Path: w.path(voteName), Next: nextVerify,
			Reason: fmt.Sprintf("vote of replica %x in its run %d, but the log is of replica %x in run %d",
				r.vote.replica, r.vote.incarnation, have.Replica, have.Incarnation),
		}
	}
	w.identity = have
	w.identity.Incarnation = max(w.identity.Incarnation, r.vote.incarnation) + 1
	if have.Cluster == "" {
		w.identity.Cluster = want.Cluster
	}
	if have.Node == "" {
		w.identity.Node = want.Node
	}
	return nil
}

// adopt makes the directory ours, now that all is understood: the end of the log certainly durable, a new segment begun, the
// incarnation counted.
func (r *recovery) adopt() error {
	w := r.w
	if err := r.secureTail(); err != nil {
		return err
	}
	var err error
	if w.snapshots, err = snapshot.New(w.fs, w.snapshotsDir(), w.snapshotOptions()); err != nil {
		return fmt.Errorf("open snapshots: %w", err)
	}
	r.listLeftovers()
	if w.voteFile, err = w.openVote(); err != nil {
		return fmt.Errorf("open vote file: %w", err)
	}
	next := r.newest + 1 // the name of a segment that is missing is not used again
	first := next
	if len(w.segments) > 0 {
		first = w.segments[0].seq
	}
	// They may be missing, and must not be forgotten: entries that were repaired would go with them.
	if r.lostFirst != 0 {
		first = min(first, r.lostFirst)
	}
	if r.voteFound {
		first = min(first, r.vote.first)
	}
	w.vote = voteRecord{
		generation: r.vote.generation, replica: w.identity.Replica, incarnation: w.identity.Incarnation,
		first: first, hardState: w.hardState, fence: w.fence, keyID: r.vote.keyID,
	}

	s := &w.spare
	s.mu.Lock()
	s.next = w.opts.MinSegmentBytes
	err = w.adoptSpare()
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if err := w.beginSegment(next, 0); err != nil || r.voteKnown {
		return err
	}
	return w.writeVote() // two generations again, so that the next Open can be certain of the newest
}

// secureTail writes the last batch once more and syncs it. The process before may have been told that its sync failed, or may have
// died before the sync: then what we have just read came from memory, and a later sync need not write it. From now on it counts.
func (r *recovery) secureTail() (err error) {
	w := r.w
	if r.last == nil {
		return nil
	}
	f, err := w.fs.OpenWrite(r.last.path)
	if err != nil {
		return fmt.Errorf("open segment: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if w.lastHolder == r.last && !r.lastDamaged {
		b := make([]byte, r.last.end-r.lastOffset)
		if _, err := f.ReadAt(b, r.lastOffset); err != nil {
			return fmt.Errorf("read the last batch again: %w", err)
		}
		if _, err := f.WriteAt(b, r.lastOffset); err != nil {
			return fmt.Errorf("write the last batch again: %w", err)
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync the last batch again: %w", err)
	}
	return nil
}

// listLeftovers leaves to Prepare what is in the directory and no longer needed once the new segment is there. Temporary files are
// none of it: the next one of the same name takes their place.
func (r *recovery) listLeftovers() {
	w := r.w
	w.spare.mu.Lock()
	defer w.spare.mu.Unlock()
	for _, name := range r.names {
		seq, isSegment := parseSegmentName(name)
		used := slices.ContainsFunc(w.segments, func(s *segment) bool { return s.seq == seq })
		if isSegment && !used && !r.tailLost {
			w.spare.removals = append(w.spare.removals, w.path(name))
		}
	}
	w.spare.trims = append(w.spare.trims, r.sealed...)
	switch {
	case r.last == nil || r.tailLost: // what is lost may interest somebody
	case r.last == w.lastHolder:
		t := trim{path: r.last.path, size: r.last.end, sealer: r.last.sealer}
		if !slices.ContainsFunc(r.losses, func(l loss) bool { return l.path == r.last.path }) {
			t.footer = w.index.footerOf(r.last, w.lastBatch, w.chain)
		}
		w.spare.trims = append(w.spare.trims, t)
	case slices.ContainsFunc(w.index.runs, func(run run) bool { return run.seg == r.last }): // it tells what the one before held
	default: // the run before wrote nothing, so that the new segment does not name its segment
		w.segments = w.segments[:len(w.segments)-1]
		w.spare.removals = append(w.spare.removals, r.last.path)
	}
}

// recovered describes the log to the caller of Open.
func (r *recovery) recovered() (raft.Recovered, error) {
	w := r.w
	meta, err := w.snapshots.Latest()
	if err != nil {
		return raft.Recovered{}, fmt.Errorf("open snapshots: %w", err)
	}
	return r.describe(meta), nil
}

// describe says what was understood.
func (r *recovery) describe(meta raft.SnapshotMeta) raft.Recovered {
	w := r.w
	rec := raft.Recovered{
		Identity: w.identity, HardState: w.hardState, Snapshot: meta,
		Compacted: w.index.compacted, LastIndex: w.index.last.Index, Terms: slices.Clone(w.index.terms),
		Fence: w.fence, Findings: r.findings,
	}
	for i := range r.damaged {
		rec.Damaged = append(rec.Damaged, r.damaged[i].damage())
	}
	for _, id := range w.index.configs {
		rec.Configurations = append(rec.Configurations, r.configs[id.Index])
	}
	return rec
}
