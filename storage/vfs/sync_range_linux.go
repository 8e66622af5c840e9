//go:build !arm

package vfs

import "syscall"

func syncFileRange(fd int, off, n int64, flags int) error {
	return syscall.SyncFileRange(fd, off, n, flags)
}
