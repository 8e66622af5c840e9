package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
)

const (
	tmpSuffix    = ".tmp"
	spareName    = "next.spare"
	prepareSlice = 256 << 10 // zeros written by one call of Prepare
	prepareLead  = 1 << 20   // what the next segment is ahead, at least, of prepareRatio times as much of itself as the active one is full
	prepareRatio = 1.2
	reserveSize  = 64 << 10
)

// zeros is what segments are filled with. It is never written to.
var zeros = vfs.Aligned(prepareSlice)

// reserve is the part at the end of a segment that only hard state, no-ops and configurations may use, so that a server whose disk
// is full can still vote and change its leader.
func reserve(size int64) int64 { return min(reserveSize, size/4) }

// spare is the next segment while it is being made, and once it is ready. What no batch has been written to reads zero: so a sector that a
// crash kept from being written is known. Where the file system can, blocks are only taken from it at first. The first write to such a
// block makes its sync at least twice as long, as the file system has to note that the block is in use, so zeros are written beforehand
// unless batches are so large that it does not matter: see zerosPay and padded.
type spare struct {
	mu        sync.Mutex // Prepare runs beside Write
	file      vfs.File   // nil: none begun
	size      int64
	zeroed    int64 // so much of it has been written
	allocated bool  // the rest reads zero all the same
	ready     bool  // under its own name, durable
	next      int64 // the size of the next one

	trims    []trim   // sealed segments that are longer than what they hold
	removals []string // files that nobody needs any more
}

type trim struct {
	path   string
	size   int64
	footer *footer // nil: none
	sealer *sealer // of the segment; nil: not encrypted
}

// Prepare implements raft.StoragePreparer: it tidies up behind a full segment, then makes the next one and writes zeros to it, 256 KiB at
// each call. It is done for now as soon as the next segment is somewhat further than the active one: written all at once, 64 MiB of zeros
// would hold up the syncs of the log, and of whatever else shares the disk, for as long as the disk takes to write them.
func (w *WAL) Prepare() (more bool, err error) {
	s := &w.spare
	s.mu.Lock()
	defer s.mu.Unlock()
	w.mu.RLock()
	open := w.open // asked while Close has to wait for us: no file is made behind its back
	w.mu.RUnlock()
	if !open {
		return false, errClosed
	}
	w.tidy()
	if w.isPrepared() {
		return false, nil
	}
	if err := w.prepare(prepareSlice); err != nil {
		// For a smaller one there may be room yet: only if there is not, the disk is full.
		if errors.Is(err, raft.ErrStorageFull) && s.next < s.size {
			return true, nil
		}
		return false, err
	}
	return !w.isPrepared(), nil
}

// isPrepared reports whether there is nothing to do for the next segment now. The caller holds spare.mu.
func (w *WAL) isPrepared() bool {
	s := &w.spare
	if s.ready && (s.zeroed == s.size || !w.zerosPay()) {
		return true
	}
	return w.isAhead()
}

// zerosTo is the size of a batch from which on it does not pay to write zeros in a segment beforehand: such a batch takes the disk so
// long that zeros, which are as many again, cost more than they save.
const zerosTo = 1 << 20

// zerosPay tells by what has been written lately.
func (w *WAL) zerosPay() bool { return w.usual.Load() < zerosTo }

// isAhead reports whether the next segment is as far as it has to be now. The caller holds spare.mu.
func (w *WAL) isAhead() bool {
	s := &w.spare
	full := float64(w.filled.Load()) / float64(w.activeSize) // a product of two sizes may not fit into 64 bits
	return s.file != nil && s.zeroed >= prepareLead+int64(prepareRatio*full*float64(s.size))
}

// prepare goes on with the next segment by up to n bytes, and finishes it if that was the rest. When there is no room, it gives back what
// it took, and the next attempt is for a smaller one. The caller holds spare.mu.
func (w *WAL) prepare(n int64) error {
	err := w.prepareSome(n)
	if err == nil {
		return nil
	}
	s := &w.spare
	if s.file != nil {
		err = errors.Join(err, s.file.Close(), w.fs.Remove(s.path(w)))
	}
	s.file, s.ready, s.allocated, s.zeroed = nil, false, false, 0
	if vfs.IsFull(err) {
		s.next = max(s.size/4, w.opts.MinSegmentBytes)
		return fmt.Errorf("prepare a segment of %d bytes: %w: %w", s.size, raft.ErrStorageFull, err)
	}
	return fmt.Errorf("prepare a segment of %d bytes: %w", s.size, err)
}

// path is where the spare lies.
func (s *spare) path(w *WAL) string {
	if s.ready {
		return w.path(spareName)
	}
	return w.path(spareName + tmpSuffix)
}

func (w *WAL) prepareSome(n int64) error {
	s := &w.spare
	if s.file == nil {
		if err := w.beginSpare(); err != nil {
			return err
		}
	}
	if s.allocated && !s.ready {
		return w.finishSpare()
	}
	for n > 0 && s.zeroed < s.size {
		piece := min(n, s.size-s.zeroed, int64(len(zeros)))
		if _, err := s.file.WriteAt(zeros[:piece], s.zeroed); err != nil {
			return err
		}
		if f, ok := s.file.(vfs.RangeWriter); ok {
			if err := f.WriteOut(s.zeroed, piece); err != nil {
				return err
			}
		}
		s.zeroed += piece
		n -= piece
	}
	if s.ready || s.zeroed < s.size {
		return nil
	}
	return w.finishSpare()
}

// beginSpare makes the file, and takes its blocks if the file system can do that without writing them.
func (w *WAL) beginSpare() error {
	s := &w.spare
	s.size, s.zeroed, s.allocated = s.next, 0, false
	f, err := w.fs.Create(w.path(spareName + tmpSuffix))
	if err != nil {
		return err
	}
	s.file = vfs.Direct(f)
	a, ok := s.file.(vfs.Allocator)
	if !ok {
		return nil
	}
	err = a.Allocate(s.size)
	s.allocated = err == nil
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}

// finishSpare gives the spare its name. It is not synced for its zeros, which nobody would miss: now the blocks are really taken, and
// whoever is short of space says so here rather than in a write that must not fail.
func (w *WAL) finishSpare() error {
	s := &w.spare
	if err := s.file.Sync(); err != nil {
		return err
	}
	if err := w.fs.Rename(w.path(spareName+tmpSuffix), w.path(spareName)); err != nil {
		return err
	}
	s.ready = true
	return w.fs.SyncDir(w.dir)
}

// prepareAtLeast makes sure that a spare is ready in which a batch of that length fits. One that Prepare has not finished becomes
// as long as it is by now. The caller holds spare.mu.
func (w *WAL) prepareAtLeast(batch int64) error {
	s := &w.spare
	need := segmentHeaderSize + batch
	fits := func(size int64) bool { return size-reserve(size) >= need }
	if s.file != nil && !fits(s.size) { // an unusually large batch
		err := errors.Join(s.file.Close(), w.fs.Remove(s.path(w)))
		s.file, s.ready = nil, false
		if err != nil {
			return fmt.Errorf("remove a spare segment that is too small: %w", err)
		}
	}
	if s.file != nil && !s.ready && !s.allocated && fits(s.zeroed) {
		s.size = s.zeroed // as far as it is: whoever writes does not wait for the rest
	}
	for !s.ready {
		if s.file == nil && !fits(s.next) {
			s.next = roundUp(need+reserveSize, pageSize)
		}
		before := s.next
		err := w.prepare(s.size + s.next)
		if err != nil && (!errors.Is(err, raft.ErrStorageFull) || s.next >= before || !fits(s.next)) {
			return err
		}
	}
	return nil
}

// adoptSpare takes over the front of a spare that an earlier run left behind, as much as a first segment needs. The caller holds spare.mu.
func (w *WAL) adoptSpare() error {
	s := &w.spare
	path := w.path(spareName)
	f, err := w.fs.OpenWrite(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("spare segment: %w", err)
	}
	size := w.opts.MinSegmentBytes
	why, err := whyNoSpare(f, size)
	if err == nil && why == "" {
		err = f.Truncate(size)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("spare segment: %w", err), f.Close())
	}
	if why != "" {
		w.log.Warn("the spare segment of an earlier run is not used", "path", path, "found", why)
		if err := errors.Join(f.Close(), w.fs.Remove(path)); err != nil {
			return fmt.Errorf("remove an unusable spare segment: %w", err)
		}
		return nil
	}
	s.file, s.size, s.ready = vfs.Direct(f), size, true
	s.allocated, s.zeroed = true, 0 // how much of it is written cannot be seen
	return nil
}

// whyNoSpare says why a file cannot become a segment of that size; "" if it can. What no batch has been written to must read zero, or it would
// pass for one that was lost. The header's place may hold one that a crash has cut off.
func whyNoSpare(f vfs.File, size int64) (string, error) {
	have, err := f.Size()
	if err != nil || have < size {
		return fmt.Sprintf("it has %d bytes, want %d", have, size), err
	}
	b := make([]byte, min(size, 64<<10))
	for at := int64(segmentHeaderSize); at < size; at += int64(len(b)) {
		b = b[:min(int64(len(b)), size-at)]
		if _, err := f.ReadAt(b, at); err != nil {
			return "", err
		}
		if !isZero(b) {
			return fmt.Sprintf("there are bytes in it behind byte %d, and none were written", at), nil
		}
	}
	return "", nil
}

// tidy carries out what was put off. Nothing depends on it, so that an error is logged and the rest tried again later. The caller
// holds spare.mu.
func (w *WAL) tidy() {
	s := &w.spare
	var again []string
	for _, path := range s.removals {
		if err := w.fs.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			w.log.Warn("a file of the log that is no longer needed cannot be removed", "path", path, "error", err)
			again = append(again, path)
		}
	}
	s.removals = again
	for _, t := range s.trims {
		if err := w.seal(t); err != nil && !errors.Is(err, fs.ErrNotExist) {
			w.log.Warn("a full segment cannot be cut to size", "path", t.path, "error", err)
		}
	}
	s.trims = nil
}

func (w *WAL) path(name string) string { return filepath.Join(w.dir, name) }
