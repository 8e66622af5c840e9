//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// lockFile makes a file that must not exist, on systems without flock. A process that dies leaves it behind; the error then says
// which process wrote it, and the operator removes it.
func lockFile(path string) (io.Closer, error) {
	path += ".held"
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, held(path)
	}
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(f, "%d", os.Getpid())
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return heldFile(path), nil
}

// held says who holds the lock.
func held(path string) error {
	holder, err := os.ReadFile(path)
	if err != nil {
		holder = []byte("unknown")
	}
	return fmt.Errorf("%w by process %s; if it is no longer running, remove %s", ErrLocked, holder, path)
}

// lockFileShared keeps nobody out: that would need a change on the disk.
func lockFileShared(path string) (io.Closer, error) {
	if _, err := os.Stat(path + ".held"); err == nil {
		return nil, held(path + ".held")
	}
	return os.Open(path)
}

type heldFile string

func (h heldFile) Close() error { return os.Remove(string(h)) }
