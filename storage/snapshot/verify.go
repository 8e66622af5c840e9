package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
)

// Verified is what Verify found out about one file.
type Verified struct {
	Path  string            `json:"file"`
	Bytes int64             `json:"bytes"` // of the file
	Meta  raft.SnapshotMeta `json:"meta"`  // zero if the description itself cannot be trusted

	// Damage says what is wrong with the file; nil: every byte of it is what was written.
	Damage *raft.CorruptionError `json:"-"`
}

// Described reports that header, trailer and length of the file are intact: a server takes such a snapshot for a good one until it
// reads the content.
func (v *Verified) Described() bool { return v.Meta.Index != 0 }

// Verify reads every snapshot in dir, the newest first, and changes nothing. Damage is part of the result. Errors are those of the
// device and of ctx, and *keyring.Error. Of opts, keys and owner count. A directory that does not exist holds no snapshots. The caller makes sure that no store uses the directory.
func Verify(ctx context.Context, fsys vfs.FS, dir string, opts Options) ([]Verified, error) {
	s := &Store{fs: fsys, dir: dir, keys: newKeys(opts)}
	indices, err := s.list()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Verified
	for _, index := range indices {
		v, err := verify(ctx, fsys, s.path(index), index, s.keys)
		if err != nil {
			return all, err
		}
		all = append(all, v)
	}
	return all, nil
}

func verify(ctx context.Context, fsys vfs.FS, path string, index raft.Index, keys *keys) (v Verified, err error) {
	v.Path = path
	f, err := fsys.Open(path)
	if err != nil {
		return v, fmt.Errorf("open snapshot at index %d: %w", index, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if v.Bytes, err = f.Size(); err != nil {
		return v, fmt.Errorf("size of %s: %w", filepath.Base(path), err)
	}
	l, err := readLayout(f, path, index, keys)
	if err == nil {
		v.Meta = l.meta
		r := newReader(f, path, l)
		for err == nil {
			if err = ctx.Err(); err == nil {
				err = r.next()
			}
		}
	}
	if errors.As(err, &v.Damage) || err == io.EOF {
		err = nil
	}
	return v, err
}
