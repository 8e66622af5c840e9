//go:build !unix

package vfs

import (
	"errors"
	"syscall"
)

// syncDir does nothing: these systems cannot sync a directory, and journal its entries themselves.
func syncDir(string) error { return nil }

// Windows: ERROR_HANDLE_DISK_FULL and ERROR_DISK_FULL.
const (
	errorHandleDiskFull = 39
	errorDiskFull       = 112
)

// IsFull reports whether an error says that there is no room left, for this user or for anybody.
func IsFull(err error) bool {
	var errno syscall.Errno
	return errors.Is(err, syscall.ENOSPC) ||
		errors.As(err, &errno) && (errno == errorHandleDiskFull || errno == errorDiskFull)
}
