package vfs

import (
	"errors"
	"sync/atomic"
	"syscall"
)

func direct(f File) File {
	o, ok := f.(osFile)
	if !ok {
		return f
	}
	d := &directFile{osFile: o}
	if err := d.set(true); err != nil {
		return f // the file system does not know it
	}
	return d
}

// directFile is a file with O_DIRECT, as long as that works.
type directFile struct {
	osFile
	direct atomic.Bool
}

// set switches O_DIRECT on or off.
func (f *directFile) set(on bool) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var errno syscall.Errno
	err = c.Control(func(fd uintptr) {
		flags, _, e := syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_GETFL, 0)
		if errno = e; e != 0 {
			return
		}
		if flags &^= syscall.O_DIRECT; on {
			flags |= syscall.O_DIRECT
		}
		_, _, errno = syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_SETFL, flags)
	})
	if err != nil {
		return err
	}
	if errno != 0 {
		return errno
	}
	f.direct.Store(on)
	return nil
}

// WriteAt writes past the cache if it can.
func (f *directFile) WriteAt(b []byte, off int64) (n int, err error) {
	if f.direct.Load() {
		if suitsDirect(b, off) {
			n, err = f.osFile.WriteAt(b, off)
			if err == nil || !errors.Is(err, syscall.EINVAL) {
				return n, err
			}
		}
		if err := f.set(false); err != nil {
			return n, err
		}
	}
	m, err := f.osFile.WriteAt(b[n:], off+int64(n))
	return n + m, err
}

// WriteOut has nothing to do for what was written past the cache.
func (f *directFile) WriteOut(off, n int64) error {
	if f.direct.Load() {
		return nil
	}
	return f.osFile.WriteOut(off, n)
}
