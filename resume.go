package raft

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"log/slog"
	"sync"
	"time"
)

// maxPartAge is how long the beginning of a snapshot waits for its rest. It occupies the disk, and a sender that is not back by then has most
// probably taken a newer snapshot.
const maxPartAge = 10 * time.Minute

// snapshotPart is a snapshot of which the beginning has been received.
type snapshotPart struct {
	meta  SnapshotMeta // as announced
	sink  SnapshotSink
	size  int64     // of what the sink has taken
	sum   hash.Hash // SHA-256 of that
	fed   time.Time // when content arrived last
	timer *time.Timer
}

func newSnapshotPart(meta SnapshotMeta, sink SnapshotSink) *snapshotPart {
	return &snapshotPart{meta: meta, sink: sink, sum: sha256.New(), fed: time.Now()}
}

// fill stores content up to its end. broken is the reader's error, after which the part is as good as before; err is the storage's.
func (p *snapshotPart) fill(r io.Reader) (broken, err error) {
	buf := make([]byte, snapshotCopyBufSize)
	for {
		n, readErr := r.Read(buf)
		if n > 0 {
			if _, err := p.sink.Write(buf[:n]); err != nil {
				return nil, err
			}
			p.sum.Write(buf[:n])
			p.size += int64(n)
			p.fed = time.Now()
		}
		if readErr == io.EOF {
			return nil, nil
		}
		if readErr != nil {
			return readErr, nil
		}
	}
}

// of reports whether the part is one of that snapshot: to every byte of its description, which the sink has written already.
func (p *snapshotPart) of(meta SnapshotMeta) bool {
	return bytes.Equal(p.meta.AppendBinary(nil), meta.AppendBinary(nil))
}

// resume agrees with the sender where the content begins, and returns what there is in front of that: the part, or nil if it is of no use
// and was thrown away. On an error the stream broke before there was an answer, and the part is as good as before.
func (p *snapshotPart) resume(r ResumableContent, log *slog.Logger) (*snapshotPart, error) {
	from, err := r.Resume(p.size, [sha256.Size]byte(p.sum.Sum(nil)))
	if err != nil {
		return p, err
	}
	if from == p.size {
		log.Info("a snapshot's transfer goes on", "snapshot", p.meta.ID().String(), "from", from, "bytes", p.meta.Size)
		return p, nil
	}
	p.drop(log, "its sender begins anew")
	return nil, nil
}

func (p *snapshotPart) drop(log *slog.Logger, why string) {
	// What cannot be removed now is removed by the next start of the storage.
	err := p.sink.Abort()
	log.Info("the received part of a snapshot was dropped", "snapshot", p.meta.ID().String(), "bytes", p.size, "because", why, "error", err)
}

// partSlot keeps at most one part between two attempts to send its snapshot, in memory but for the content: a restart drops it.
type partSlot struct {
	log *slog.Logger

	mu     sync.Mutex // held while a part is dropped, so that nothing of it goes on after close
	part   *snapshotPart
	closed bool
}

// keep takes the part of a snapshot whose transfer broke off.
func (s *partSlot) keep(p *snapshotPart) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop("another one takes its place")
	left := maxPartAge - time.Since(p.fed)
	if p.size == 0 || left <= 0 || s.closed {
		p.drop(s.log, "it is empty or old, or the node stops")
		return
	}
	s.part = p
	p.timer = time.AfterFunc(left, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.part == p {
			s.drop("its sender did not come back")
		}
	})
}

// take hands out the part of that snapshot, or nil. A part of any other one makes room.
func (s *partSlot) take(meta SnapshotMeta) *snapshotPart {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.part
	if p == nil {
		return nil
	}
	if !p.of(meta) {
		s.drop("another snapshot is sent")
		return nil
	}
	p.timer.Stop()
	s.part = nil
	return p
}

// covered drops the part of a snapshot that is no longer needed because there is one at index.
func (s *partSlot) covered(index Index) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.part != nil && s.part.meta.Index <= index {
		s.drop("there is a snapshot that covers it")
	}
}

// close drops what is kept, for good. The storage is still open.
func (s *partSlot) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.drop("the node stops")
}

// drop empties the slot. The caller holds mu.
func (s *partSlot) drop(why string) {
	if p := s.part; p != nil {
		s.part = nil
		p.timer.Stop()
		p.drop(s.log, why)
	}
}

// store stores a snapshot that is wanted: the whole of it, or what an earlier attempt has not brought.
func (s *snapshotter) store(ctx context.Context, meta SnapshotMeta, r io.Reader) (SnapshotMeta, error) {
	resumable, canResume := r.(ResumableContent)
	part := s.parts.take(meta)
	switch {
	case part == nil:
	case !canResume:
		part.drop(s.n.log, "it came over another transport")
		part = nil
	default:
		var err error
		if part, err = part.resume(resumable, s.n.log); err != nil {
			s.parts.keep(part)
			return SnapshotMeta{}, err
		}
	}
	if part == nil {
		sink, err := s.n.cfg.Storage.Snapshots().Create(meta)
		if err != nil {
			return SnapshotMeta{}, err
		}
		part = newSnapshotPart(meta, sink)
	}
	broken, err := part.fill(&readerUntil{r: r, ctx: ctx, n: s.n})
	switch {
	case err != nil:
		return SnapshotMeta{}, errors.Join(err, part.sink.Abort())
	case broken != nil && canResume:
		s.parts.keep(part)
		return SnapshotMeta{}, broken
	case broken != nil:
		return SnapshotMeta{}, errors.Join(broken, part.sink.Abort())
	}
	return part.sink.Commit()
}
