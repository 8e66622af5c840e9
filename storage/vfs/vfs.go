// Package vfs is the file system as the storage packages see it: the operating system's ([OS]), or a simulated disk that loses,
// tears and reorders what was not synced ([Disk]).
package vfs

import (
	"errors"
	"io"
	"io/fs"
)

// FS is a file system. Paths use the operating system's separator. Errors wrap fs.ErrNotExist and fs.ErrExist where they apply.
type FS interface {
	// Create makes a file, or empties an existing one, for reading and writing, with permissions 0600.
	Create(path string) (File, error)
	// Open opens an existing file for reading.
	Open(path string) (File, error)
	// OpenWrite opens an existing file for reading and writing.
	OpenWrite(path string) (File, error)
	// Rename replaces newpath by oldpath, durable only after SyncDir.
	Rename(oldpath, newpath string) error
	Remove(path string) error
	// MkdirAll makes a directory and its parents with permissions 0700, durably.
	MkdirAll(path string) error
	// List returns the names (not paths) in a directory, sorted.
	List(dir string) ([]string, error)
	// Stat describes a file.
	Stat(path string) (fs.FileInfo, error)
	// SyncDir makes creations, renames and removals in a directory durable.
	SyncDir(dir string) error
	// Lock takes an exclusive lock that ends with the process, or with Close. ErrLocked: somebody else holds it.
	Lock(path string) (io.Closer, error)
	// LockShared takes a lock that excludes Lock but not other calls of LockShared, until Close, and changes nothing on the disk. The
	// file must exist. ErrLocked: somebody holds the exclusive lock.
	LockShared(path string) (io.Closer, error)
}

// File is an open file.
type File interface {
	io.Reader
	io.ReaderAt
	io.Writer
	io.WriterAt
	io.Closer
	// Sync makes content and length durable. After an error nothing is known about what was written since the last Sync.
	Sync() error
	Truncate(size int64) error
	Size() (int64, error)
}

// RangeWriter is a File that can write a part of its content to the disk before Sync, and wait for that. It promises nothing about a
// crash: it is there so that a later Sync has little left to do, and nobody else's Sync has to wait behind that one.
type RangeWriter interface {
	WriteOut(off, n int64) error
}

// Allocator is a File that can take its blocks from the disk without writing them. Until they are written they read zero. Its length
// becomes size. An error that wraps errors.ErrUnsupported says that the file system cannot do that, and has changed nothing.
type Allocator interface {
	Allocate(size int64) error
}

// DurableWriter is a File that can write and make durable what it has written in one go. The promise is that of WriteAt and then Sync.
type DurableWriter interface {
	WriteDurable(b []byte, off int64) error
}

// ErrLocked says that another process, or another part of this one, holds a lock.
var ErrLocked = errors.New("locked")
