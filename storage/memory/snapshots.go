package memory

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/steadyraft/raft"
)

// kept is how many snapshots survive a Commit.
const kept = 2

// snapshot is one that was committed. Its content is never changed.
type snapshot struct {
	meta    raft.SnapshotMeta
	content []byte
}

// describe returns a description that the caller may change.
func (s *snapshot) describe() raft.SnapshotMeta {
	meta := s.meta
	meta.Configuration = s.meta.Configuration.Clone()
	return meta
}

// newestSnapshot returns the index of the newest snapshot, or 0.
func (d *disk) newestSnapshot() raft.Index {
	if len(d.snapshots) == 0 {
		return 0
	}
	return d.snapshots[len(d.snapshots)-1].meta.Index
}

// snapshots implements raft.SnapshotStore.
type snapshots struct{ s *Storage }

func (v snapshots) Create(meta raft.SnapshotMeta) (raft.SnapshotSink, error) {
	if err := meta.Validate(); err != nil {
		return nil, fmt.Errorf("create snapshot: %w", err)
	}
	if meta.Size < -1 {
		return nil, fmt.Errorf("create snapshot %v: size %d is impossible", meta.ID(), meta.Size)
	}
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	if err := v.s.usable(); err != nil {
		return nil, fmt.Errorf("create snapshot %v: %w", meta.ID(), err)
	}
	meta.Configuration = meta.Configuration.Clone()
	return &sink{s: v.s, incarnation: v.s.disk.identity.Incarnation, meta: meta}, nil
}

func (v snapshots) Latest() (raft.SnapshotMeta, error) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	if err := v.s.usable(); err != nil {
		return raft.SnapshotMeta{}, fmt.Errorf("latest snapshot: %w", err)
	}
	all := v.s.disk.snapshots
	if len(all) == 0 {
		return raft.SnapshotMeta{}, nil
	}
	return all[len(all)-1].describe(), nil
}

func (v snapshots) Open(index raft.Index) (raft.SnapshotMeta, io.ReadCloser, error) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	if err := v.s.usable(); err != nil {
		return raft.SnapshotMeta{}, nil, fmt.Errorf("open snapshot at index %d: %w", index, err)
	}
	for i := range v.s.disk.snapshots {
		if one := &v.s.disk.snapshots[i]; one.meta.Index == index {
			return one.describe(), reader{bytes.NewReader(one.content)}, nil
		}
	}
	return raft.SnapshotMeta{}, nil, fmt.Errorf("open snapshot at index %d: %w", index, fs.ErrNotExist)
}

// reader is the content of one snapshot.
type reader struct{ *bytes.Reader }

// Rewind implements [raft.Rewinder].
func (r reader) Rewind() error {
	_, err := r.Seek(0, io.SeekStart)
	return err
}

func (reader) Close() error { return nil }

var errEnded = errors.New("snapshot was committed or aborted before")

// sink receives one snapshot.
type sink struct {
	s           *Storage
	incarnation uint64 // in which it was created
	meta        raft.SnapshotMeta
	content     []byte
	ended       bool
}

func (k *sink) Write(p []byte) (int, error) {
	if k.ended {
		return 0, errEnded
	}
	if size := len(k.content) + len(p); k.meta.Size >= 0 && int64(size) > k.meta.Size {
		return 0, fmt.Errorf("write snapshot %v: %d bytes, but %d were announced", k.meta.ID(), size, k.meta.Size)
	}
	k.content = append(k.content, p...)
	return len(p), nil
}

func (k *sink) Commit() (raft.SnapshotMeta, error) {
	if k.ended {
		return raft.SnapshotMeta{}, errEnded
	}
	k.ended = true
	size := int64(len(k.content))
	if k.meta.Size >= 0 && k.meta.Size != size {
		return raft.SnapshotMeta{}, fmt.Errorf("commit snapshot %v: %d bytes, but %d were announced", k.meta.ID(), size, k.meta.Size)
	}
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	d := &k.s.disk
	err := k.s.usable()
	if err == nil && d.identity.Incarnation != k.incarnation {
		err = errClosed // closed and opened again: the sink is of the process before
	}
	if err != nil {
		return raft.SnapshotMeta{}, fmt.Errorf("commit snapshot %v: %w", k.meta.ID(), err)
	}
	k.meta.Size = size
	one := snapshot{meta: k.meta, content: k.content}
	at, found := slices.BinarySearchFunc(d.snapshots, k.meta.Index, func(s snapshot, i raft.Index) int {
		return cmp.Compare(s.meta.Index, i)
	})
	if found {
		d.snapshots[at] = one
	} else {
		d.snapshots = slices.Insert(d.snapshots, at, one)
	}
	d.snapshots = slices.Delete(d.snapshots, 0, max(0, len(d.snapshots)-kept))
	return one.describe(), nil
}

func (k *sink) Abort() error {
	if k.ended {
		return errEnded
	}
	k.ended = true
	k.content = nil
	return nil
}
