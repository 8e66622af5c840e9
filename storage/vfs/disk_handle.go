package vfs

import (
	"errors"
	"io"
	"io/fs"
	"syscall"
	"time"
)

// simHandle is an open file.
type simHandle struct {
	disk     *Disk
	file     *simFile
	path     string
	offset   int64 // of Read and Write
	writable bool
	closed   bool
}

// use locks the disk for one operation on the file.
func (h *simHandle) use(kind OpKind, off int64, length int) (done bool, err error) {
	switch {
	case h.closed:
		return false, pathError(kind.String(), h.path, fs.ErrClosed)
	case (kind == OpWrite || kind == OpTruncate) && !h.writable:
		return false, pathError(kind.String(), h.path, fs.ErrPermission)
	case off < 0:
		return false, pathError(kind.String(), h.path, fs.ErrInvalid)
	}
	return h.disk.begin(kind, h.path, off, length)
}

func (h *simHandle) Read(p []byte) (int, error) {
	n, err := h.ReadAt(p, h.offset)
	h.offset += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

func (h *simHandle) ReadAt(p []byte, off int64) (int, error) {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	if _, err := h.use(OpRead, off, len(p)); err != nil {
		return 0, err
	}
	if off >= int64(len(h.file.data)) {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	n := copy(p, h.file.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (h *simHandle) Write(p []byte) (int, error) {
	n, err := h.WriteAt(p, h.offset)
	h.offset += int64(n)
	return n, err
}

func (h *simHandle) WriteAt(p []byte, off int64) (int, error) {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	done, err := h.use(OpWrite, off, len(p))
	var short ShortWrite
	switch {
	case errors.As(err, &short):
		p = p[:min(max(short.N, 0), len(p))]
	case !done:
		return 0, err
	}
	size := int64(len(h.file.data))
	if grown := off + int64(len(p)) - size; grown > 0 {
		if got := h.disk.take(grown); got < grown {
			err = errors.Join(err, pathError("write", h.path, syscall.ENOSPC))
			p = p[:max(0, size+got-off)]
		}
	}
	if len(p) > 0 {
		h.file.write(p, int(off))
	}
	return len(p), err
}

func (h *simHandle) Sync() error {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	done, err := h.use(OpSync, 0, 0)
	switch {
	case err == nil:
		h.file.sync()
	case !done && !errors.Is(err, ErrCrashed) && !h.closed:
		h.file.loseWrites(&random{&h.disk.rng})
	}
	return err
}

func (h *simHandle) Truncate(size int64) error {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	done, err := h.use(OpTruncate, size, 0)
	if !done {
		return err
	}
	grown := size - int64(len(h.file.data))
	if grown > 0 {
		if got := h.disk.take(grown); got < grown {
			h.disk.free(got)
			return pathError("truncate", h.path, syscall.ENOSPC)
		}
	} else {
		h.disk.free(-grown)
	}
	h.file.truncate(int(size))
	return err
}

// Allocate implements Allocator. A disk does not tell blocks that read zero because nobody has written them from those that do because
// somebody has.
func (h *simHandle) Allocate(size int64) error { return h.Truncate(size) }

func (h *simHandle) Size() (int64, error) {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	if _, err := h.use(OpRead, 0, 0); err != nil {
		return 0, err
	}
	return int64(len(h.file.data)), nil
}

// Close works after a crash too: a program can always let go of a file.
func (h *simHandle) Close() error {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	if h.closed {
		return pathError("close", h.path, fs.ErrClosed)
	}
	h.closed = true
	return nil
}

type simInfo struct {
	name string
	size int64
	dir  bool
}

func (i simInfo) Name() string { return i.name }
func (i simInfo) Size() int64  { return i.size }

func (i simInfo) Mode() fs.FileMode {
	if i.dir {
		return fs.ModeDir | 0o700
	}
	return 0o600
}

func (i simInfo) ModTime() time.Time { return time.Time{} }
func (i simInfo) IsDir() bool        { return i.dir }
func (i simInfo) Sys() any           { return nil }
