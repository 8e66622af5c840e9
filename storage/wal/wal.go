package wal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/internal/seal"
	"github.com/steadyraft/raft/storage/keyring"
	"github.com/steadyraft/raft/storage/snapshot"
	"github.com/steadyraft/raft/storage/vfs"
)

const (
	lockName      = "LOCK"
	snapshotsName = "snapshots"

	// maxKeptBuffer bounds the buffers that are kept from one write or read to the next.
	maxKeptBuffer = 8 << 20

	// nextRestore is what to do about damage. The only server of a cluster, or one of a majority that is gone, has nobody to get its
	// data from: it must not be told to begin anew.
	nextRestore = "do not delete anything; if the other servers have a leader, give this server an empty data directory and add it to the " +
		"cluster under a new ID; if not, restore the file from a backup made while it was stopped"

	// nextPeers is what to do about damage of which it is known what it was.
	nextPeers = "nothing, as long as the others have a leader: the server gets the entries from them; check the disk: bytes that had been " +
		"written and synced have changed"

	// nextVerify is what a server says that finds the damage.
	nextVerify = "stop the server and run raftctl verify DIR, which lists all that is damaged; " + nextRestore
)

var errClosed = errors.New("log is not open")

// Options configures a WAL. The zero value of a field means its default.
type Options struct {
	FS     vfs.FS       // default: vfs.OS{}
	Logger *slog.Logger // default: discard; told about repairs

	// Segments grow from the smallest to the largest size within a run. At least 16 KiB. A batch that does not fit gets a segment
	// of its own.
	MinSegmentBytes int64 // 1 MiB
	MaxSegmentBytes int64 // 64 MiB

	// VerifyAtOpen reads and verifies the whole log when it is opened, and not only what follows the last segment that was sealed. Damage
	// in front of that is otherwise found by the first read, or by Scrub.
	VerifyAtOpen bool

	Snapshots snapshot.Options // Logger and keys default to those here

	// Keys encrypts log and snapshots, and authenticates term and vote. nil: nothing is encrypted. A directory that is encrypted is refused
	// without its keys, and with wrong ones, before anything is written; so is one that is not encrypted with keys, but for
	// EncryptExisting.
	Keys keyring.Ring

	// EncryptExisting takes over a directory that was written without keys: what is there is read as it is, and whatever is written
	// from now on is encrypted. Leave it out again once KeyUse says that nothing is left in the clear: as long as it is set, somebody
	// who can write to the directory can put files there that are not encrypted.
	EncryptExisting bool

	// Random draws the replica ID and the segments' tags. Default: the operating system's generator. A simulation wants its own; with
	// encryption, no two runs in one directory may see the same numbers.
	Random func() uint64
}

// Stats counts what a WAL has seen.
type Stats struct {
	Segments    int    `json:"segments"`     // files that hold the log now, without the spare
	Batches     uint64 `json:"batches"`      // over the whole life of the directory
	TornBatches uint64 `json:"torn_batches"` // unfinished writes that Open has cut off, since New
	Incarnation uint64 `json:"incarnation"`
}

// WAL implements raft.Storage and raft.StoragePreparer over a directory. The package's documentation describes the format.
type WAL struct {
	dir  string
	fs   vfs.FS
	opts Options
	log  *slog.Logger

	spare   spare
	buffers sync.Pool // *[]byte, for reads
	scrub   scrubber  // belongs to the caller of Scrub

	// What follows belongs to the caller of Open, Write, Compact and Close, except that mu guards it where noted.
	lock       io.Closer
	snapshots  *snapshot.Store
	identity   raft.Identity
	hardState  raft.HardState
	fence      raft.EntryID
	vote       voteRecord
	voteFile   vfs.File
	voteKey    *seal.Key // nil: not authenticated
	active     *segment
	activeFile vfs.File
	activeSize int64
	zeroed     int64        // up to here the active segment has been written, and not only allocated
	filled     atomic.Int64 // as active.end, for Prepare
	usual      atomic.Int64 // the length of a batch lately, likewise
	lastBatch  uint64
	chain      uint32
	before     span
	lastHolder *segment // the segment of the last batch
	idle       bool     // an idle record follows the last batch
	buf        []byte
	failed     error  // final
	keyID      uint32 // of the ring's key that was used last; 0: none
	key        [keyring.KeySize]byte

	mu       sync.RWMutex // guards the rest, and what segments hold; only Write, Idle, Compact, Open and Close change it
	open     bool
	index    logIndex
	segments []*segment // in order; the last one is active
	torn     uint64
}

var (
	_ raft.Storage         = (*WAL)(nil)
	_ raft.StoragePreparer = (*WAL)(nil)
)

// New describes the log in dir. Nothing is touched before Open.
func New(dir string, opts Options) *WAL {
	if opts.FS == nil {
		opts.FS = vfs.OS{}
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Snapshots.Logger == nil {
		opts.Snapshots.Logger = opts.Logger
	}
	if opts.MinSegmentBytes == 0 {
		opts.MinSegmentBytes = 1 << 20
	}
	if opts.MaxSegmentBytes == 0 {
		opts.MaxSegmentBytes = 64 << 20
	}
	opts.MinSegmentBytes = roundUp(max(opts.MinSegmentBytes, 16<<10), pageSize)
	opts.MaxSegmentBytes = roundUp(max(opts.MaxSegmentBytes, opts.MinSegmentBytes), pageSize)
	if opts.Random == nil {
		opts.Random = randomUint64
	}
	return &WAL{dir: dir, fs: opts.FS, opts: opts, log: opts.Logger}
}

// Open implements raft.Storage.
func (w *WAL) Open(ctx context.Context, id raft.Identity) (rec raft.Recovered, err error) {
	if w.open {
		return rec, errors.New("open log: it is open already")
	}
	if len(id.Cluster) > maxName || len(id.Node) > maxName {
		return rec, fmt.Errorf("open log: cluster %q or node %q is longer than %d bytes", id.Cluster, id.Node, maxName)
	}
	if err := w.fs.MkdirAll(w.dir); err != nil {
		return rec, fmt.Errorf("open log: %w", err)
	}
	w.lock, err = w.fs.Lock(w.path(lockName))
	if errors.Is(err, vfs.ErrLocked) {
		return rec, fmt.Errorf("%w: %w", raft.ErrLocked, err)
	}
	if err != nil {
		return rec, fmt.Errorf("open log: %w", err)
	}
	rec, err = w.recover(ctx, id)
	if vfs.IsFull(err) && !errors.Is(err, raft.ErrStorageFull) {
		err = fmt.Errorf("%w: %w", raft.ErrStorageFull, err)
	}
	if err != nil {
		return raft.Recovered{}, errors.Join(err, w.release())
	}
	w.mu.Lock()
	w.open = true
	w.mu.Unlock()
	return rec, nil
}

// Close implements raft.Storage.
func (w *WAL) Close() error {
	w.mu.Lock()
	if !w.open {
		w.mu.Unlock()
		return errClosed
	}
	w.open = false
	w.mu.Unlock()
	return w.release()
}

// release lets go of all files and of the lock.
func (w *WAL) release() error {
	var errs []error
	closeFile := func(c io.Closer) {
		if err := c.Close(); err != nil {
			errs = append(errs, err)
		}
	}
	w.spare.mu.Lock()
	if w.spare.file != nil {
		closeFile(w.spare.file)
	}
	w.spare.file, w.spare.ready, w.spare.trims, w.spare.removals = nil, false, nil, nil
	w.spare.mu.Unlock()
	if w.activeFile != nil {
		closeFile(w.activeFile)
		w.activeFile = nil
	}
	if w.voteFile != nil {
		closeFile(w.voteFile)
		w.voteFile = nil
	}
	closeFile(w.lock)
	if len(errs) > 0 {
		return fmt.Errorf("close log: %w", errors.Join(errs...))
	}
	return nil
}

// Snapshots implements raft.Storage.
func (w *WAL) Snapshots() raft.SnapshotStore { return w.snapshots }

// Stats returns the counters. Between Open and Close it may be called at any time.
func (w *WAL) Stats() Stats {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return Stats{Segments: len(w.segments), Batches: w.lastBatch, TornBatches: w.torn, Incarnation: w.identity.Incarnation}
}

// Write implements raft.Storage: one write and one sync; a second pair for the vote file if the hard state has changed.
func (w *WAL) Write(b raft.Batch) error {
	if w.failed != nil {
		return fmt.Errorf("log has failed before: %w", w.failed)
	}
	if !w.open {
		return errClosed
	}
	h, essential, err := w.header(&b)
	if err != nil {
		return w.fail(err)
	}
	if h.flags == 0 && len(b.Entries) == 0 && len(b.Repairs) == 0 {
		return nil
	}
	h.encryptedWith(w.keyID)
	headerLen, _ := headerSize(h.words(), h.bodyLen)
	if err := w.makeRoom(roundUp(int64(headerLen)+h.bodyLen, sectorSize), essential); err != nil {
		if errors.Is(err, raft.ErrStorageFull) {
			return err
		}
		return w.fail(err)
	}

	h.tag, h.offset = w.active.tag, w.active.end
	h.seq, h.syncedThrough = w.lastBatch+1, w.lastBatch
	h.prevChain, h.before = w.chain, w.before
	w.buf = encodeBatch(w.buf, &h, b.Entries, b.Repairs, w.active.sealer)
	if err := w.writeDurable(w.padded(h.end()), h.offset); err != nil {
		return w.fail(fmt.Errorf("write batch %d: %w", h.seq, err))
	}
	if cap(w.buf) > maxKeptBuffer {
		w.buf = nil
	}
	w.chain, w.before = h.chain, h.span()
	w.lastHolder, w.idle = w.active, false

	// The log first: the vote file is never ahead of it, so that a batch is there as a whole or not at all, and so that a vote
	// file that is ahead proves that the log has lost something.
	vote := w.vote
	if h.has(flagHardState) {
		vote.hardState, vote.batch = h.hardState, h.seq
	}
	if h.has(flagFence) {
		vote.fence, vote.batch = h.fence, h.seq
	}
	if vote.hardState != w.vote.hardState || vote.fence != w.vote.fence {
		w.vote = vote
		if err := w.writeVote(); err != nil {
			return w.fail(err)
		}
	}

	w.mu.Lock()
	defer w.mu.Unlock()
	w.lastBatch = h.seq
	if h.has(flagHardState) {
		w.hardState = h.hardState
	}
	if h.has(flagFence) {
		w.fence = h.fence
	}
	w.active.end = h.end()
	w.filled.Store(h.end())
	w.usual.Store((7*w.usual.Load() + h.size()) / 8)
	w.index.apply(&h)
	for i := range b.Entries {
		e := &b.Entries[i]
		w.index.add(e.ID(), e.Type, w.active, h.offset)
	}
	for i := range b.Repairs {
		e := &b.Repairs[i]
		w.index.repair(e.ID(), e.Type, w.active, h.offset)
	}
	return nil
}

// zeroWindow is how far zeros are written with a batch that reaches blocks which were only allocated: those of the first segment, and
// what was not prepared in time.
const zeroWindow = 256 << 10

// padded returns the encoded batch that ends at end, and behind it the zeros that are to be written along: up to the next multiple of
// zeroWindow, so that the batches behind find their blocks written. A large batch brings no more than a page of them.
func (w *WAL) padded(end int64) []byte {
	if end <= w.zeroed {
		return w.buf
	}
	to := roundUp(end, zeroWindow)
	if len(w.buf) >= zeroWindow {
		to = roundUp(end, pageSize)
	}
	w.zeroed = min(to, w.activeSize)
	zeros := int(w.zeroed - end)
	if len(w.buf)+zeros > cap(w.buf) {
		w.buf = append(vfs.Aligned(len(w.buf) + zeros)[:0], w.buf...)
	}
	clear(w.buf[len(w.buf) : len(w.buf)+zeros])
	return w.buf[:len(w.buf)+zeros]
}

// writeDurable writes to the active segment and syncs it.
func (w *WAL) writeDurable(b []byte, off int64) error {
	if f, ok := w.activeFile.(vfs.DurableWriter); ok {
		return f.WriteDurable(b, off)
	}
	if _, err := w.activeFile.WriteAt(b, off); err != nil {
		return err
	}
	if err := w.activeFile.Sync(); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return nil
}

// fail makes an error final: what is on disk is no longer known.
func (w *WAL) fail(err error) error {
	w.failed = err
	return err
}

// header checks a batch against the log and describes it. essential says that it has its place in the reserve.
func (w *WAL) header(b *raft.Batch) (h batchHeader, essential bool, err error) {
	end := w.index.last
	if hs := b.HardState; hs != nil {
		if len(hs.VotedFor) > maxName {
			return h, false, fmt.Errorf("write vote for %q: longer than %d bytes", hs.VotedFor, maxName)
		}
		if hs.CurrentTerm < w.hardState.CurrentTerm {
			return h, false, fmt.Errorf("write term %d: the term is %d already", hs.CurrentTerm, w.hardState.CurrentTerm)
		}
		if voted := w.hardState.VotedFor; hs.CurrentTerm == w.hardState.CurrentTerm && voted != "" && hs.VotedFor != voted {
			return h, false, fmt.Errorf("write vote for %q: in term %d the vote went to %q already", hs.VotedFor, hs.CurrentTerm, voted)
		}
		h.flags |= flagHardState
		h.hardState = *hs
	}
	if from := b.TruncateFrom; from != 0 {
		term, ok := w.index.termAt(from - 1)
		if !ok {
			return h, false, fmt.Errorf("truncate from %d: the log holds (%v, %v]", from, w.index.compacted, end)
		}
		h.flags |= flagTruncate
		h.truncateFrom = from
		end = raft.EntryID{Term: term, Index: from - 1}
	}
	if meta := b.Snapshot; meta != nil {
		h.flags |= flagSnapshot
		h.snapshot = meta.ID()
		// §7: "if existing log entry has same index and term as snapshot's last included entry, retain log entries following it".
		if term, ok := w.index.termAt(meta.Index); ok && term == meta.Term && meta.Index <= end.Index {
			h.flags |= flagKeepSuffix
		} else {
			end = meta.ID()
		}
	}
	if n := len(b.Entries); n > 0 {
		if first := b.Entries[0].Index; first <= end.Index && first > 0 {
			// Whoever begins at an index supersedes all from there on.
			term, ok := w.index.termAt(first - 1)
			if !ok || h.flags&(flagTruncate|flagSnapshot) != 0 {
				return h, false, fmt.Errorf("append entry %d: the log ends at %v", first, end)
			}
			h.flags |= flagTruncate
			h.truncateFrom = first
			end = raft.EntryID{Term: term, Index: first - 1}
		}
	}
	h.prev, h.count, essential = end, len(b.Entries), true
	for i := range b.Entries {
		e := &b.Entries[i]
		if e.Index != end.Index+1 || e.Term < end.Term || e.Term == 0 {
			return h, false, fmt.Errorf("append entry %v: it does not follow %v", e.ID(), end)
		}
		if e.Size() < raft.EntryHeaderSize {
			return h, false, fmt.Errorf("append entry %v: it has no frame", e.ID())
		}
		switch e.Type {
		case raft.EntryConfiguration:
			h.flags |= flagConfiguration
		case raft.EntryNoOp:
		default:
			essential = false
		}
		h.bodyLen += int64(e.Size())
		end = e.ID()
	}
	if h.count > 0 {
		h.firstTerm = b.Entries[0].Term
	}
	h.voteLen = len(h.hardState.VotedFor)
	h.last, h.repairs = end, len(b.Repairs)
	for i := range b.Repairs {
		e := &b.Repairs[i]
		term, ok := w.index.termAt(e.Index)
		if !ok || term != e.Term || e.Index > h.prev.Index || i > 0 && e.Index <= b.Repairs[i-1].Index {
			return h, false, fmt.Errorf("repair entry %v: it is not in the log, or not in order", e.ID())
		}
		if e.Size() < raft.EntryHeaderSize {
			return h, false, fmt.Errorf("repair entry %v: it has no frame", e.ID())
		}
		if e.Type == raft.EntryConfiguration {
			h.flags |= flagConfiguration
		}
		h.bodyLen += int64(e.Size())
		essential = false
	}
	if b.Fence != nil {
		h.flags |= flagFence
		h.fence = *b.Fence
	}
	if h.bodyLen > maxBatchSize-seal.Overhead {
		return h, false, fmt.Errorf("write batch of %d bytes: at most %d", h.bodyLen, int64(maxBatchSize-seal.Overhead))
	}
	return h, essential, nil
}

// makeRoom makes sure that a batch of n bytes fits into the active segment, if need be into a new one.
func (w *WAL) makeRoom(n int64, essential bool) error {
	if w.active.end+n <= w.activeSize-reserve(w.activeSize) {
		return nil
	}
	err := w.beginSegment(w.active.seq+1, n)
	if errors.Is(err, raft.ErrStorageFull) && essential && w.active.end+n <= w.activeSize {
		return nil
	}
	return err
}

// beginSegment makes the spare the active segment, with room for a batch of that length. An error that wraps ErrStorageFull has
// changed nothing.
func (w *WAL) beginSegment(seq uint64, batch int64) error {
	s := &w.spare
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := w.prepareAtLeast(batch); err != nil {
		return err
	}
	h := w.nextSegment(seq, s.size)
	sealer, err := w.encrypt(&h)
	if err != nil {
		return fmt.Errorf("begin segment %d: %w", h.seq, err)
	}
	page := h.encode(sealer)
	for at := int64(0); at < segmentHeaderSize; at += pageSize {
		if _, err := s.file.WriteAt(page, at); err != nil {
			return fmt.Errorf("write the header of segment %d: %w", h.seq, err)
		}
	}
	if err := s.file.Sync(); err != nil {
		return fmt.Errorf("sync the header of segment %d: %w", h.seq, err)
	}
	path := w.path(segmentName(h.seq))
	if err := w.fs.Rename(w.path(spareName), path); err != nil {
		if vfs.IsFull(err) { // the spare is still there, and its header may be written again
			return fmt.Errorf("begin segment %d: %w: %w", h.seq, raft.ErrStorageFull, err)
		}
		return fmt.Errorf("begin segment %d: %w", h.seq, err)
	}
	if err := w.fs.SyncDir(w.dir); err != nil {
		return fmt.Errorf("begin segment %d: %w", h.seq, err)
	}

	if w.activeFile != nil {
		if err := w.activeFile.Close(); err != nil {
			return fmt.Errorf("close segment %d: %w", w.active.seq, err)
		}
		t := trim{path: w.active.path, size: w.active.end, sealer: w.active.sealer}
		if w.lastHolder == w.active {
			t.footer = w.index.footerOf(w.active, w.lastBatch, w.chain)
		}
		s.trims = append(s.trims, t)
	}
	seg := &segment{
		seq: h.seq, path: path, tag: h.tag, end: segmentHeaderSize, baseBatch: h.lastBatch, baseChain: h.chain, sealer: sealer,
	}
	w.active, w.activeFile, w.activeSize, w.zeroed, w.idle = seg, s.file, s.size, s.zeroed, false
	w.filled.Store(seg.end)
	s.file, s.ready = nil, false
	s.next = min(max(4*s.size, w.opts.MinSegmentBytes), w.opts.MaxSegmentBytes)
	w.mu.Lock()
	w.segments = append(w.segments, seg)
	w.mu.Unlock()

	w.vote.segment, w.vote.batch = h.seq, w.lastBatch
	if changed, err := w.rekeyVote(); err != nil {
		return err
	} else if changed { // so that no generation asks for the old key
		if err := w.writeVote(); err != nil {
			return err
		}
	}
	return w.writeVote()
}

// nextSegment describes a segment that goes on where the log ends.
func (w *WAL) nextSegment(seq uint64, size int64) segmentHeader {
	h := segmentHeader{
		seq: seq, size: size, identity: w.identity,
		lastBatch: w.lastBatch, chain: w.chain, before: w.before,
		last: w.index.last, hardState: w.hardState, snapshot: w.index.snapshot, config: w.index.lastConfig(),
		fence: w.fence, terms: w.index.terms,
	}
	if w.lastHolder != nil {
		h.prevSeq, h.prevEnd = w.lastHolder.seq, w.lastHolder.end
	}
	binary.LittleEndian.PutUint64(h.tag[:], w.opts.Random())
	binary.LittleEndian.PutUint64(h.tag[8:], w.opts.Random())
	return h
}

// Idle implements raft.StoragePreparer: it writes, without waiting for it, that the last batch is synced. Without that word, damage
// to the last batch that looks like an unfinished write could not be told from one.
func (w *WAL) Idle() error {
	switch {
	case w.failed != nil:
		return fmt.Errorf("log has failed before: %w", w.failed)
	case !w.open:
		return errClosed
	case w.idle || w.lastHolder != w.active || w.active.end+sectorSize > w.activeSize-reserve(w.activeSize):
		return nil // said already, or there is no room, or a new segment's header says it
	}
	h := batchHeader{
		tag: w.active.tag, offset: w.active.end, seq: w.lastBatch, syncedThrough: w.lastBatch, flags: flagIdle,
		prev: w.index.last, last: w.index.last, before: w.before, prevChain: w.chain,
	}
	h.encryptedWith(w.keyID)
	w.buf = encodeBatch(w.buf, &h, nil, nil, w.active.sealer)
	if _, err := w.activeFile.WriteAt(w.buf, h.offset); err != nil {
		return w.fail(fmt.Errorf("write idle record: %w", err))
	}
	w.mu.Lock() // a scrub reads the end meanwhile
	w.active.end, w.idle = h.end(), true
	w.mu.Unlock()
	return nil
}

// Compact implements raft.Storage. It gives up whole segments.
func (w *WAL) Compact(to raft.Index) error {
	if w.failed != nil {
		return fmt.Errorf("log has failed before: %w", w.failed)
	}
	if !w.open {
		return errClosed
	}
	// The first segment that holds a wanted entry stays, and all behind it. The last batch's segment stays too: its successor
	// names it.
	keep := w.lastHolder
	if keep == nil {
		keep = w.active
	}
	for i := range w.index.runs {
		if r := &w.index.runs[i]; r.last > to {
			if r.seg.seq < keep.seq {
				keep = r.seg
			}
			break
		}
	}
	dead := 0
	for w.segments[dead] != keep {
		dead++
	}
	if dead == 0 {
		return nil
	}
	// Once the vote file says where the log begins, it does not matter which of the files survive a crash.
	w.vote.first, w.vote.batch = keep.seq, w.lastBatch
	if err := w.writeVote(); err != nil {
		return w.fail(err)
	}

	w.mu.Lock()
	gone := w.segments[:dead]
	w.segments = append([]*segment(nil), w.segments[dead:]...)
	compacted := w.index.last
	for i := range w.index.runs {
		if r := &w.index.runs[i]; r.seg.seq >= keep.seq {
			term, _ := w.index.termAt(r.first - 1)
			compacted = raft.EntryID{Term: term, Index: r.first - 1}
			break
		}
	}
	w.index.dropThrough(compacted)
	w.mu.Unlock()

	w.spare.mu.Lock()
	defer w.spare.mu.Unlock()
	for _, seg := range gone {
		w.spare.removals = append(w.spare.removals, seg.path)
	}
	w.tidy()
	return nil
}

func (w *WAL) snapshotsDir() string { return filepath.Join(w.dir, snapshotsName) }
