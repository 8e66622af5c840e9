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
	prepareSlice = 1 << 20 // zeros written by one call of Prepare
	prepareLead  = 4 << 20 // what the next segment is ahead, at least, of twice as much of itself as the active one is full
	reserveSize  = 64 << 10
)

// zeros is what segments are filled with. It is never written to.
var zeros = vfs.Aligned(prepareSlice)

// reserve is the part at the end of a segment that only hard state, no-ops and configurations may use, so that a server whose disk
// is full can still vote and change its leader.
func reserve(size int64) int64 { return min(reserveSize, size/4) }

// spare is the next segment while it is being made, and once it is ready. Segments are written full of zeros before use: a sync
// then has no metadata to write, and a sector that a crash kept from being written is known by its zeros.
type spare struct {
	mu      sync.Mutex // Prepare runs beside Write
	file    vfs.File   // nil: none begun
	size    int64
	written int64
	ready   bool  // under its own name, durable
	next    int64 // the size of the next one

	trims    []trim   // sealed segments that are longer than what they hold
	removals []string // files that nobody needs any more
}

type trim struct {
	path string
	size int64
}

// Prepare implements raft.StoragePreparer: it tidies up behind a full segment, then writes the next one, 1 MiB at each call. It is done
// for now as soon as the next segment is twice as far as the active one: written all at once, 64 MiB of zeros would hold up the syncs of
// the log, and of whatever else shares the disk, for as long as the disk takes to write them.
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
	if s.ready || w.isAhead() {
		return false, nil
	}
	if err := w.prepare(prepareSlice); err != nil {
		return false, err
	}
	return !s.ready && !w.isAhead(), nil
}

// isAhead reports whether the next segment is as far as it has to be now. The caller holds spare.mu.
func (w *WAL) isAhead() bool {
	s := &w.spare
	full := float64(w.filled.Load()) / float64(w.activeSize) // a product of two sizes may not fit into 64 bits
	return s.file != nil && s.written >= prepareLead+int64(2*full*float64(s.size))
}

// prepare writes up to n bytes of the next segment, and finishes it if that was the rest. When there is no room, it gives back what
// it took, and the next attempt is for a smaller one. The caller holds spare.mu.
func (w *WAL) prepare(n int64) error {
	err := w.prepareSome(n)
	if err == nil {
		return nil
	}
	s := &w.spare
	if s.file != nil {
		err = errors.Join(err, s.file.Close(), w.fs.Remove(w.path(spareName+tmpSuffix)))
	}
	s.file, s.written = nil, 0
	if vfs.IsFull(err) {
		s.next = max(s.size/4, w.opts.MinSegmentBytes)
		return fmt.Errorf("prepare a segment of %d bytes: %w: %w", s.size, raft.ErrStorageFull, err)
	}
	return fmt.Errorf("prepare a segment of %d bytes: %w", s.size, err)
}

func (w *WAL) prepareSome(n int64) error {
	s := &w.spare
	tmp := w.path(spareName + tmpSuffix)
	if s.file == nil {
		s.size, s.written = s.next, 0
		f, err := w.fs.Create(tmp)
		if err != nil {
			return err
		}
		s.file = vfs.Direct(f)
	}
	for n > 0 && s.written < s.size {
		piece := min(n, s.size-s.written, int64(len(zeros)))
		if _, err := s.file.WriteAt(zeros[:piece], s.written); err != nil {
			return err
		}
		if f, ok := s.file.(vfs.RangeWriter); ok {
			if err := f.WriteOut(s.written, piece); err != nil {
				return err
			}
		}
		s.written += piece
		n -= piece
	}
	if s.written < s.size {
		return nil
	}
	// Not for the zeros, which nobody would miss: now the blocks are really taken, and whoever is short of space says so here
	// rather than in a write that must not fail.
	if err := s.file.Sync(); err != nil {
		return err
	}
	if err := w.fs.Rename(tmp, w.path(spareName)); err != nil {
		return err
	}
	if err := w.fs.SyncDir(w.dir); err != nil {
		return err
	}
	s.ready = true
	return nil
}

// prepareAtLeast makes sure that a spare is ready in which a batch of that length fits. One that Prepare has not finished becomes
// as long as it is by now. The caller holds spare.mu.
func (w *WAL) prepareAtLeast(batch int64) error {
	s := &w.spare
	need := segmentHeaderSize + batch
	fits := func(size int64) bool { return size-reserve(size) >= need }
	if s.file != nil && !fits(s.size) { // an unusually large batch
		name := spareName
		if !s.ready {
			name += tmpSuffix
		}
		err := errors.Join(s.file.Close(), w.fs.Remove(w.path(name)))
		s.file, s.ready = nil, false
		if err != nil {
			return fmt.Errorf("remove a spare segment that is too small: %w", err)
		}
	}
	if s.file != nil && !s.ready && fits(s.written) {
		s.size = s.written // as far as it is: whoever writes does not wait for the rest
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

// adoptSpare takes over a spare that an earlier run left behind. The caller holds spare.mu.
func (w *WAL) adoptSpare() error {
	s := &w.spare
	path := w.path(spareName)
	info, err := w.fs.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("spare segment: %w", err)
	}
	if info.Size() < w.opts.MinSegmentBytes || info.Size()%pageSize != 0 {
		if err := w.fs.Remove(path); err != nil {
			return fmt.Errorf("remove an unusable spare segment: %w", err)
		}
		return nil
	}
	f, err := w.fs.OpenWrite(path)
	if err != nil {
		return fmt.Errorf("spare segment: %w", err)
	}
	s.file, s.size, s.written, s.ready = vfs.Direct(f), info.Size(), info.Size(), true
	return nil
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
		if err := w.trim(t); err != nil && !errors.Is(err, fs.ErrNotExist) {
			w.log.Warn("a full segment cannot be cut to size", "path", t.path, "error", err)
		}
	}
	s.trims = nil
}

func (w *WAL) trim(t trim) error {
	f, err := w.fs.OpenWrite(t.path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(t.size), f.Close())
}

func (w *WAL) path(name string) string { return filepath.Join(w.dir, name) }
