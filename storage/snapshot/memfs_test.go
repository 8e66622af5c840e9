package snapshot

import (
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/steadyraft/raft/storage/vfs"
)

// memFS is a file system in memory in which operations can be made to fail.
type memFS struct {
	mu    sync.Mutex
	files map[string]*memFile
	fail  func(op, path string) error // nil: nothing fails
}

func newMemFS() *memFS { return &memFS{files: map[string]*memFile{}} }

// put makes a file, or replaces it.
func (m *memFS) put(path string, data []byte) {
	m.files[path] = &memFile{fs: m, path: path, data: data}
}

func (m *memFS) check(op, path string) error {
	m.mu.Lock()
	fail := m.fail
	m.mu.Unlock()
	if fail == nil {
		return nil
	}
	return fail(op, path)
}

// failOn makes every operation fail for which fail returns an error.
func (m *memFS) failOn(fail func(op, path string) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = fail
}

func (m *memFS) Create(path string) (vfs.File, error) {
	if err := m.check("create", path); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	f := &memFile{fs: m, path: path}
	m.files[path] = f
	return &memHandle{memFile: f}, nil
}

func (m *memFS) Open(path string) (vfs.File, error) {
	if err := m.check("open", path); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	f, ok := m.files[path]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return &memHandle{memFile: f}, nil
}

func (m *memFS) OpenWrite(path string) (vfs.File, error) { return m.Open(path) }

func (m *memFS) Rename(oldpath, newpath string) error {
	if err := m.check("rename", oldpath); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	f, ok := m.files[oldpath]
	if !ok {
		return &fs.PathError{Op: "rename", Path: oldpath, Err: fs.ErrNotExist}
	}
	delete(m.files, oldpath)
	m.files[newpath] = f
	return nil
}

func (m *memFS) Remove(path string) error {
	if err := m.check("remove", path); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.files[path]; !ok {
		return &fs.PathError{Op: "remove", Path: path, Err: fs.ErrNotExist}
	}
	delete(m.files, path)
	return nil
}

func (m *memFS) MkdirAll(path string) error { return m.check("mkdir", path) }

func (m *memFS) List(dir string) ([]string, error) {
	if err := m.check("list", dir); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for path := range m.files {
		if filepath.Dir(path) == dir {
			names = append(names, filepath.Base(path))
		}
	}
	slices.Sort(names)
	return names, nil
}

func (m *memFS) Stat(path string) (fs.FileInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f, ok := m.files[path]
	if !ok {
		return nil, &fs.PathError{Op: "stat", Path: path, Err: fs.ErrNotExist}
	}
	return memInfo{name: filepath.Base(path), size: int64(len(f.data))}, nil
}

func (m *memFS) SyncDir(dir string) error { return m.check("syncdir", dir) }

func (m *memFS) Lock(string) (io.Closer, error)       { return nil, vfs.ErrLocked }
func (m *memFS) LockShared(string) (io.Closer, error) { return nil, vfs.ErrLocked }

// memFile outlives its name, as on a real file system.
type memFile struct {
	fs   *memFS
	path string
	mu   sync.Mutex
	data []byte
}

type memHandle struct {
	*memFile
	pos    int64
	closed bool
}

func (h *memHandle) ReadAt(p []byte, off int64) (int, error) {
	if err := h.fs.check("read", h.path); err != nil {
		return 0, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if off >= int64(len(h.data)) {
		return 0, io.EOF
	}
	n := copy(p, h.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (h *memHandle) Read(p []byte) (int, error) {
	n, err := h.ReadAt(p, h.pos)
	h.pos += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

func (h *memHandle) WriteAt(p []byte, off int64) (int, error) {
	if err := h.fs.check("write", h.path); err != nil {
		return 0, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if need := off + int64(len(p)) - int64(len(h.data)); need > 0 {
		h.data = append(h.data, make([]byte, need)...)
	}
	return copy(h.data[off:], p), nil
}

func (h *memHandle) Write(p []byte) (int, error) {
	n, err := h.WriteAt(p, h.pos)
	h.pos += int64(n)
	return n, err
}

func (h *memHandle) Close() error {
	if h.closed {
		return fs.ErrClosed
	}
	h.closed = true
	return h.fs.check("close", h.path)
}

func (h *memHandle) Sync() error { return h.fs.check("sync", h.path) }

func (h *memHandle) Truncate(size int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.data = append([]byte(nil), h.data[:size]...)
	return nil
}

func (h *memHandle) Size() (int64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return int64(len(h.data)), nil
}

type memInfo struct {
	name string
	size int64
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return i.size }
func (i memInfo) Mode() fs.FileMode  { return 0o600 }
func (i memInfo) ModTime() time.Time { return time.Time{} }
func (i memInfo) IsDir() bool        { return false }
func (i memInfo) Sys() any           { return nil }
