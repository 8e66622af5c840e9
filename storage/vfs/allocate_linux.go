package vfs

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// Allocate implements Allocator.
func (f osFile) Allocate(size int64) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var allocateErr error
	err = c.Control(func(fd uintptr) {
		for {
			if allocateErr = syscall.Fallocate(int(fd), 0, 0, size); allocateErr != syscall.EINTR {
				return
			}
		}
	})
	switch {
	case err != nil:
		return err
	case allocateErr == nil:
		return nil
	case errors.Is(allocateErr, errors.ErrUnsupported):
		return fmt.Errorf("fallocate %s: %w", f.Name(), errors.ErrUnsupported)
	}
	return &fs.PathError{Op: "fallocate", Path: f.Name(), Err: allocateErr}
}
