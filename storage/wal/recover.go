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
	headers map[uint64]segmentHeader // of all segments that are still needed
	files   []uint64                 // their numbers, rising
	configs map[raft.Index]raft.Entry

	vote      voteRecord
	voteFound bool

	last       *segment // the newest file, whose end is in doubt
	lastOffset int64    // of the last batch, in lastHolder

	// What Inspect does differently: it reports where Open logs, and counts.
	note    func(Finding)                      // what Open puts up with
	replays func(seg *segment, h *batchHeader) // a batch or an idle record that was taken over
}

// newRecovery forgets all that was known about the log.
func (w *WAL) newRecovery() *recovery {
	w.index, w.segments, w.failed = logIndex{cut: true}, nil, nil
	w.hardState, w.vote, w.identity = raft.HardState{}, voteRecord{}, raft.Identity{}
	w.active, w.lastHolder, w.idle = nil, nil, false
	w.lastBatch, w.chain, w.before = 0, 0, span{}
	return &recovery{
		w: w, headers: map[uint64]segmentHeader{}, configs: map[raft.Index]raft.Entry{},
		note: func(f Finding) {
			w.log.Warn(f.Meaning, "path", f.File, "offset", f.Offset, "found", f.Found, "next", f.Next)
		},
		replays: func(*segment, *batchHeader) {},
	}
}

// recover reads the directory and begins a new segment.
func (w *WAL) recover(ctx context.Context, id raft.Identity) (raft.Recovered, error) {
	r := w.newRecovery()
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
	if err := r.survey(); err != nil {
		return err
	}
	if err := r.identify(id); err != nil {
		return err
	}
	return r.replay(ctx)
}

// survey reads the vote file and the headers of all segments.
func (r *recovery) survey() error {
	w := r.w
	var err error
	if r.names, err = w.fs.List(w.dir); err != nil {
		return fmt.Errorf("list %s: %w", w.dir, err)
	}
	var damaged error
	if r.vote, r.voteFound, damaged, err = readVote(w.fs, w.path(voteName)); err != nil {
		return err
	}
	if damaged != nil {
		r.noteDegraded(w.path(voteName), damaged, "a record of term and vote is damaged; another one is used, or the log")
	}
	for _, name := range r.names {
		seq, ok := parseSegmentName(name)
		if !ok || r.voteFound && seq < r.vote.first {
			continue
		}
		h, err := r.readHeader(seq)
		if err != nil {
			return err
		}
		r.headers[seq] = h
		r.files = append(r.files, seq)
	}
	slices.Sort(r.files)
	if r.voteFound && (len(r.files) == 0 || r.files[len(r.files)-1] < r.vote.segment) {
		return r.missing(r.vote.segment)
	}
	return nil
}

func (r *recovery) missing(seq uint64) error {
	return &raft.CorruptionError{Path: r.w.path(segmentName(seq)), Reason: "the segment is missing", Next: nextVerify}
}

func (r *recovery) readHeader(seq uint64) (h segmentHeader, err error) {
	path := r.w.path(segmentName(seq))
	f, err := r.w.fs.Open(path)
	if err != nil {
		return h, fmt.Errorf("open segment: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h, damaged, err := readHeader(f, path)
	if err != nil {
		return h, err
	}
	if damaged != nil {
		r.noteDegraded(path, damaged, "one copy of the segment's header is damaged; the other one is used")
	}
	if h.seq != seq {
		return h, &raft.CorruptionError{Path: path, Reason: fmt.Sprintf("the header says that this is segment %d", h.seq), Next: nextVerify}
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
	if r.voteFound && (r.vote.replica != have.Replica || r.vote.incarnation > have.Incarnation) {
		return &raft.CorruptionError{
			Path: w.path(voteName), Next: nextVerify,
			Reason: fmt.Sprintf("vote of replica %x in its run %d, but the log is of replica %x in run %d",
				r.vote.replica, r.vote.incarnation, have.Replica, have.Incarnation),
		}
	}
	w.identity = have
	w.identity.Incarnation++
	if have.Cluster == "" {
		w.identity.Cluster = want.Cluster
	}
	if have.Node == "" {
		w.identity.Node = want.Node
	}
	return nil
}

// replay reads all batches, from the first segment that is needed to the end.
func (r *recovery) replay(ctx context.Context) error {
	w := r.w
	chain, err := r.chain()
	if err != nil {
		return err
	}
	for i, seq := range chain {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("open log: %w", err)
		}
		h := r.headers[seq]
		seg := &segment{seq: seq, path: w.path(segmentName(seq)), tag: h.tag, end: segmentHeaderSize}
		if i == 0 {
			w.lastBatch, w.chain, w.before, w.hardState = h.lastBatch, h.chain, h.before, h.hardState
			w.index.compacted, w.index.last = h.last, h.last
			w.index.snapshot, w.index.baseConfig = h.snapshot, h.config
		} else if h.lastBatch != w.lastBatch || h.chain != w.chain || h.last != w.index.last || h.hardState != w.hardState {
			return &raft.CorruptionError{
				Path: w.segments[i-1].path, Offset: w.segments[i-1].end, Next: nextVerify,
				Reason: fmt.Sprintf("the segment ends with batch %d at entry %v, but the next one continues batch %d at entry %v",
					w.lastBatch, w.index.last, h.lastBatch, h.last),
			}
		}
		w.segments = append(w.segments, seg)
		sealedAt := int64(-1)
		if i+1 < len(chain) {
			sealedAt = r.headers[chain[i+1]].prevEnd
		}
		if err := r.replaySegment(seg, sealedAt); err != nil {
			return err
		}
		r.last = seg
	}
	if r.voteFound {
		if w.lastBatch < r.vote.batch {
			return &raft.CorruptionError{
				Path: r.last.path, Offset: r.last.end, Next: nextVerify,
				Reason: fmt.Sprintf("the log ends with batch %d, but batch %d was durable", w.lastBatch, r.vote.batch),
			}
		}
		if w.hardState, err = mergeHardStates(w.hardState, r.vote.hardState, w.path(voteName)); err != nil {
			return err
		}
	} else if len(chain) > 0 && w.lastBatch > 0 {
		r.noteDegraded(w.path(voteName), errors.New("the file is missing, or no record in it is intact"),
			fmt.Sprintf("term %d and the vote for %q come from the log", w.hardState.CurrentTerm, w.hardState.VotedFor))
	}
	return nil
}

// chain lists the segments that make up the log, in order: each names the one before it that holds batches. Those that nobody
// names were begun by runs that wrote nothing.
func (r *recovery) chain() ([]uint64, error) {
	if len(r.files) == 0 {
		return nil, nil
	}
	seq := r.files[len(r.files)-1]
	chain := []uint64{seq}
	for {
		prev := r.headers[seq].prevSeq
		if prev == 0 || r.voteFound && prev < r.vote.first {
			break
		}
		if _, ok := r.headers[prev]; !ok {
			if !r.voteFound && r.files[0] > prev {
				break // compacted, as far as can be known without the vote file
			}
			return nil, r.missing(prev)
		}
		seq = prev
		chain = append(chain, seq)
	}
	slices.Reverse(chain)
	return chain, nil
}

// replaySegment reads the batches of one segment. sealedAt is where the next segment says that this one ends; -1 if there is none,
// and the end is in doubt.
func (r *recovery) replaySegment(seg *segment, sealedAt int64) (err error) {
	f, err := r.w.fs.Open(seg.path)
	if err != nil {
		return fmt.Errorf("open segment: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Size()
	if err != nil {
		return fmt.Errorf("open segment: %w", err)
	}
	if sealedAt > size {
		return &raft.CorruptionError{
			Path: seg.path, Offset: size, Reason: fmt.Sprintf("the file is cut off: it held %d bytes", sealedAt), Next: nextVerify,
		}
	}
	// A segment that nobody has sealed is as long as it was made. If it ends early, nothing else need tell of what is gone: the rest
	// may end with a batch.
	if made := r.headers[seg.seq].size; sealedAt < 0 && size < made {
		return &raft.CorruptionError{
			Path: seg.path, Offset: size, Reason: fmt.Sprintf("the file is cut off: it was made with %d bytes", made), Next: nextVerify,
		}
	}
	end := size
	if sealedAt >= 0 {
		end = sealedAt
	}
	reader := &segmentReader{file: f, path: seg.path, size: end, ahead: readAhead}
	for seg.end+sectorSize <= end {
		h, b, v, err := reader.batchAt(seg.end, seg.tag)
		if err != nil {
			return err
		}
		if v.reason == "" {
			v = r.follows(&h)
		}
		if v.reason == "" {
			if err := r.replayBatch(seg, &h, b); err != nil {
				return &raft.CorruptionError{Path: seg.path, Offset: h.offset, Reason: err.Error(), Next: nextVerify}
			}
			r.replays(seg, &h)
			continue
		}
		lostIdle, err := r.lostIdleRecord(reader, seg, sealedAt)
		if err != nil {
			return err
		}
		if lostIdle {
			seg.end += sectorSize
			continue
		}
		if sealedAt >= 0 {
			return &raft.CorruptionError{Path: seg.path, Offset: seg.end, Reason: v.reason, Next: nextVerify}
		}
		return r.judgeTail(reader, seg, v)
	}
	return nil
}

// follows checks that an intact batch is the next one.
func (r *recovery) follows(h *batchHeader) verdict {
	w := r.w
	want := w.lastBatch + 1
	if h.has(flagIdle) {
		want = w.lastBatch
	}
	switch {
	case h.seq != want:
		return corrupted(fmt.Sprintf("batch %d stands where batch %d belongs", h.seq, want))
	case h.prevChain != w.chain || h.before != w.before:
		return corrupted(fmt.Sprintf("batch %d does not continue the chain of the one before", h.seq))
	}
	return intact()
}

// replayBatch takes over a batch.
func (r *recovery) replayBatch(seg *segment, h *batchHeader, b []byte) error {
	w := r.w
	seg.end = h.end()
	if h.has(flagIdle) {
		return nil
	}
	r.lastOffset = h.offset
	w.lastHolder = seg
	w.lastBatch, w.chain, w.before = h.seq, h.chain, h.span()
	if h.has(flagHardState) {
		w.hardState = h.hardState
	}
	if h.has(flagTruncate) && (h.truncateFrom == 0 || h.truncateFrom > w.index.last.Index+1) {
		return fmt.Errorf("batch %d truncates from %d, but the log ends at %v", h.seq, h.truncateFrom, w.index.last)
	}
	w.index.apply(h)
	if h.prev != w.index.last {
		return fmt.Errorf("batch %d follows entry %v, but the log ends at %v", h.seq, h.prev, w.index.last)
	}
	return decodeEntries(h, b, func(e raft.Entry) {
		w.index.add(e.ID(), e.Type, seg, h.offset)
		if e.Type == raft.EntryConfiguration {
			r.configs[e.Index] = e.Clone()
		}
	})
}

// lostIdleRecord reports whether the sector at the segment's end is the place of an idle record that never reached the disk: it was
// written without waiting for it, so that a batch may have become durable behind it.
func (r *recovery) lostIdleRecord(reader *segmentReader, seg *segment, sealedAt int64) (bool, error) {
	b, err := reader.at(seg.end, sectorSize)
	if err != nil || !isZero(b) || r.w.lastHolder != seg {
		return false, err
	}
	next := seg.end + sectorSize
	if next == sealedAt {
		return true, nil
	}
	if b, err = reader.at(next, sectorSize); err != nil {
		return false, err
	}
	h, _, decodeErr := decodeBatchHeader(b)
	return decodeErr == nil && h.tag == seg.tag && h.offset == next && !h.has(flagIdle) && r.follows(&h).reason == "", nil
}

// judgeTail decides what the damage at the end of the last segment means. At most one batch is in doubt: the next one is not
// written before the sync of the one before has returned. So whatever shows that this sync returned (a later batch, an idle
// record, the vote file) makes it corruption. Otherwise, if the damage shows sectors that were never written, nobody was told that
// the batch is durable, and it may go. Any other damage is corruption: a crash leaves old sectors, not wrong ones.
func (r *recovery) judgeTail(reader *segmentReader, seg *segment, v verdict) error {
	w := r.w
	damaged := func(reason string) error {
		return &raft.CorruptionError{Path: seg.path, Offset: seg.end, Reason: reason, Next: nextVerify}
	}
	first, err := reader.at(seg.end, sectorSize)
	if err != nil {
		return err
	}
	neverBegun := isZero(first)
	doubtful := w.lastBatch + 1
	if r.voteFound && r.vote.batch >= doubtful {
		return damaged(fmt.Sprintf("batch %d was durable and is gone: %s", doubtful, v.reason))
	}
	empty := neverBegun
	for at := seg.end + sectorSize; at+sectorSize <= reader.size; at += sectorSize {
		b, err := reader.at(at, sectorSize)
		if err != nil {
			return err
		}
		if isZero(b) {
			continue
		}
		empty = false
		h, _, err := decodeBatchHeader(b)
		if err == nil && h.tag == seg.tag && h.offset == at && h.syncedThrough >= doubtful {
			return damaged(fmt.Sprintf("%s, but batch %d at byte %d was written after it was durable", v.reason, h.seq, at))
		}
	}
	switch {
	case empty:
		return nil // the end of the log
	case !neverBegun && !v.torn:
		return damaged(v.reason)
	}
	w.mu.Lock()
	w.torn++
	w.mu.Unlock()
	r.note(Finding{
		File: seg.path, Offset: seg.end, Verdict: Unfinished, Found: fmt.Sprintf("batch %d: %s", doubtful, v.reason),
		Meaning: "the last batch was not written completely before a crash, and is left out: nobody was told that it is durable",
		Next:    nextNothing,
	})
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
	if w.snapshots, err = snapshot.New(w.fs, w.snapshotsDir(), w.opts.Snapshots); err != nil {
		return fmt.Errorf("open snapshots: %w", err)
	}
	r.listLeftovers()
	if w.voteFile, err = w.openVote(); err != nil {
		return fmt.Errorf("open vote file: %w", err)
	}
	next := uint64(1)
	if r.last != nil {
		next = r.last.seq + 1
	}
	first := next
	if len(w.segments) > 0 {
		first = w.segments[0].seq
	}
	w.vote = voteRecord{
		generation: r.vote.generation, replica: w.identity.Replica, incarnation: w.identity.Incarnation,
		first: first, hardState: w.hardState,
	}

	s := &w.spare
	s.mu.Lock()
	s.next = w.opts.MinSegmentBytes
	err = w.adoptSpare()
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return w.beginSegment(next, 0)
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
	if w.lastHolder == r.last {
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
		if isSegment && !used {
			w.spare.removals = append(w.spare.removals, w.path(name))
		}
	}
	switch {
	case r.last == nil:
	case r.last == w.lastHolder:
		w.spare.trims = append(w.spare.trims, trim{r.last.path, r.last.end})
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
	rec := raft.Recovered{
		Identity: w.identity, HardState: w.hardState, Snapshot: meta,
		Compacted: w.index.compacted, LastIndex: w.index.last.Index, Terms: slices.Clone(w.index.terms),
	}
	for _, id := range w.index.configs {
		rec.Configurations = append(rec.Configurations, r.configs[id.Index])
	}
	return rec, nil
}
