package wal

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/steadyraft/raft/storage/vfs"
)

// The proofs (damage_test.go, crashstates_test.go, kill_test.go, device_test.go) take samples, so that the package's tests stay
// fast. With this flag they are complete.
var proof = flag.Bool("proof", false, "run the proofs of storage/wal in full")

// image is the content of a directory tree: what is in it never changes.
type image map[string][]byte

// imageFS is a file system over an image. It is plain and fast, for tests that open hundreds of thousands of directories; what is
// lost in a crash is decided elsewhere, from the operations that it records. It serves one goroutine.
type imageFS struct {
	files  map[string]*imageFile
	dirs   map[string]bool
	next   int          // number of the next file
	writes int          // changes of content or names
	record func(fileOp) // may be nil
}

// imageFile is the content of one file, whatever its name is.
type imageFile struct {
	number int
	data   []byte
	shared bool // data belongs to an image
}

// fileOp is one recorded operation.
type fileOp struct {
	kind vfs.OpKind
	file int    // write, sync, truncate, create, rename: which one
	dir  string // create, rename, remove, sync directory
	name string // create, remove; the old name of a rename
	to   string // rename
	off  int64  // write; truncate: the new size
	data []byte // write
}

func newImageFS(img image) *imageFS {
	f := &imageFS{files: make(map[string]*imageFile, len(img)+4), dirs: map[string]bool{}}
	for _, path := range slices.Sorted(maps.Keys(img)) {
		f.files[path] = &imageFile{number: f.next, data: img[path], shared: true}
		f.next++
		for dir := filepath.Dir(path); !f.dirs[dir]; dir = filepath.Dir(dir) {
			f.dirs[dir] = true
		}
	}
	return f
}

// image returns the content as it is now.
func (f *imageFS) image() image {
	img := make(image, len(f.files))
	for path, file := range f.files {
		file.shared = true
		img[path] = file.data
	}
	return img
}

func (f *imageFS) did(op fileOp) {
	f.writes++
	if f.record != nil {
		f.record(op)
	}
}

func (f *imageFS) Create(path string) (vfs.File, error) {
	file := f.files[path]
	if file == nil {
		file = &imageFile{number: f.next}
		f.next++
		f.files[path] = file
		f.did(fileOp{kind: vfs.OpCreate, file: file.number, dir: filepath.Dir(path), name: filepath.Base(path)})
	} else {
		file.data, file.shared = nil, false
		f.did(fileOp{kind: vfs.OpTruncate, file: file.number})
	}
	return &imageHandle{fs: f, file: file}, nil
}

func (f *imageFS) Open(path string) (vfs.File, error) {
	file := f.files[path]
	if file == nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return &imageHandle{fs: f, file: file}, nil
}

func (f *imageFS) OpenWrite(path string) (vfs.File, error) { return f.Open(path) }

func (f *imageFS) Rename(oldpath, newpath string) error {
	file := f.files[oldpath]
	if file == nil {
		return &fs.PathError{Op: "rename", Path: oldpath, Err: fs.ErrNotExist}
	}
	delete(f.files, oldpath)
	f.files[newpath] = file
	f.did(fileOp{
		kind: vfs.OpRename, file: file.number, dir: filepath.Dir(oldpath), name: filepath.Base(oldpath), to: filepath.Base(newpath),
	})
	return nil
}

func (f *imageFS) Remove(path string) error {
	file := f.files[path]
	if file == nil {
		return &fs.PathError{Op: "remove", Path: path, Err: fs.ErrNotExist}
	}
	delete(f.files, path)
	f.did(fileOp{kind: vfs.OpRemove, file: file.number, dir: filepath.Dir(path), name: filepath.Base(path)})
	return nil
}

func (f *imageFS) MkdirAll(path string) error {
	for ; !f.dirs[path]; path = filepath.Dir(path) {
		f.dirs[path] = true
	}
	return nil
}

func (f *imageFS) List(dir string) ([]string, error) {
	var names []string
	for path := range f.files {
		if filepath.Dir(path) == dir {
			names = append(names, filepath.Base(path))
		}
	}
	for path := range f.dirs {
		if path != dir && filepath.Dir(path) == dir {
			names = append(names, filepath.Base(path))
		}
	}
	slices.Sort(names)
	return names, nil
}

func (f *imageFS) Stat(path string) (fs.FileInfo, error) {
	file := f.files[path]
	if file == nil {
		return nil, &fs.PathError{Op: "stat", Path: path, Err: fs.ErrNotExist}
	}
	return imageInfo{filepath.Base(path), int64(len(file.data))}, nil
}

func (f *imageFS) SyncDir(dir string) error {
	f.did(fileOp{kind: vfs.OpSyncDir, dir: dir})
	return nil
}

func (f *imageFS) Lock(string) (io.Closer, error)       { return io.NopCloser(nil), nil }
func (f *imageFS) LockShared(string) (io.Closer, error) { return io.NopCloser(nil), nil }

type imageInfo struct {
	name string
	size int64
}

func (i imageInfo) Name() string     { return i.name }
func (i imageInfo) Size() int64      { return i.size }
func (imageInfo) Mode() fs.FileMode  { return 0o600 }
func (imageInfo) ModTime() time.Time { return time.Time{} }
func (imageInfo) IsDir() bool        { return false }
func (imageInfo) Sys() any           { return nil }

type imageHandle struct {
	fs     *imageFS
	file   *imageFile
	offset int64
}

// resize makes the content a private copy of that length.
func (f *imageFile) resize(size int64) {
	switch {
	case f.shared:
		data := make([]byte, size)
		copy(data, f.data)
		f.data, f.shared = data, false
	case size > int64(len(f.data)):
		f.data = append(f.data, make([]byte, size-int64(len(f.data)))...)
	default:
		f.data = f.data[:size:size]
	}
}

func (h *imageHandle) Read(p []byte) (int, error) {
	n, err := h.ReadAt(p, h.offset)
	h.offset += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

func (h *imageHandle) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	if off < int64(len(h.file.data)) {
		n = copy(p, h.file.data[off:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (h *imageHandle) Write(p []byte) (int, error) {
	n, err := h.WriteAt(p, h.offset)
	h.offset += int64(n)
	return n, err
}

func (h *imageHandle) WriteAt(p []byte, off int64) (int, error) {
	if end := max(off+int64(len(p)), int64(len(h.file.data))); h.file.shared || end > int64(len(h.file.data)) {
		h.file.resize(end)
	}
	copy(h.file.data[off:], p)
	op := fileOp{kind: vfs.OpWrite, file: h.file.number, off: off}
	if h.fs.record != nil {
		op.data = bytes.Clone(p)
	}
	h.fs.did(op)
	return len(p), nil
}

func (h *imageHandle) Sync() error {
	h.fs.did(fileOp{kind: vfs.OpSync, file: h.file.number})
	return nil
}

func (h *imageHandle) Truncate(size int64) error {
	h.file.resize(size)
	h.fs.did(fileOp{kind: vfs.OpTruncate, file: h.file.number, off: size})
	return nil
}

func (h *imageHandle) Size() (int64, error) { return int64(len(h.file.data)), nil }
func (h *imageHandle) Close() error         { return nil }

// table renders counts as rows of a table, for the logs of the proofs.
func table(counts map[string]map[string]int) string {
	var b strings.Builder
	for _, row := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(&b, "\n  %-34s", row)
		for _, column := range slices.Sorted(maps.Keys(counts[row])) {
			fmt.Fprintf(&b, "  %s %d", column, counts[row][column])
		}
	}
	return b.String()
}
