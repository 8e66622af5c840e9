package vfs

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// syncData uses fdatasync. It is enough even for a file that grew: Linux writes out whatever metadata is needed to read the data
// back, the length included. On blocks that were written before it spares the journal commit that fsync makes for the times.
func syncData(f *os.File) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var syncErr error
	err = c.Control(func(fd uintptr) {
		for {
			if syncErr = syscall.Fdatasync(int(fd)); syncErr != syscall.EINTR {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	return syncErr
}

// Flags of sync_file_range that together mean: write out what is changed in the range, and wait until it is written.
const writeOutAndWait = 1 | 2 | 4

// WriteOut implements RangeWriter with sync_file_range, where the file system knows it.
func (f osFile) WriteOut(off, n int64) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var rangeErr error
	err = c.Control(func(fd uintptr) {
		for {
			if rangeErr = syncFileRange(int(fd), off, n, writeOutAndWait); rangeErr != syscall.EINTR {
				return
			}
		}
	})
	switch {
	case err != nil:
		return err
	case rangeErr == nil, errors.Is(rangeErr, errors.ErrUnsupported), rangeErr == syscall.EINVAL:
		return nil
	}
	return &fs.PathError{Op: "sync_file_range", Path: f.Name(), Err: rangeErr}
}
