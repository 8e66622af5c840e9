package vfs

import (
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
