//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package vfs

import (
	"io"
	"os"
	"syscall"
)

// lockFile uses flock: it excludes other processes and other opens in this one, and ends with the process however that ends.
func lockFile(path string) (io.Closer, error) {
	return flock(path, os.O_RDWR|os.O_CREATE, syscall.LOCK_EX)
}

func lockFileShared(path string) (io.Closer, error) { return flock(path, os.O_RDONLY, syscall.LOCK_SH) }

func flock(path string, flag, how int) (io.Closer, error) {
	f, err := os.OpenFile(path, flag, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		if err != syscall.EINTR {
			break
		}
	}
	if err == nil {
		return f, nil
	}
	if err == syscall.EWOULDBLOCK {
		err = ErrLocked
	}
	// Only the reason why there is no lock is of interest: the file was not written.
	_ = f.Close()
	return nil, err
}
