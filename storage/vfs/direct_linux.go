package vfs

import (
	"errors"
	"io/fs"
	"sync/atomic"
	"syscall"
)

func direct(f File) File {
	o, ok := f.(osFile)
	if !ok {
		return f
	}
	c, err := o.SyscallConn()
	if err != nil {
		return f
	}
	d := &directFile{osFile: o, conn: c}
	if err := d.set(true); err != nil {
		return f // the file system does not know it
	}
	return d
}

// directFile is a file with O_DIRECT, as long as that works.
type directFile struct {
	osFile
	conn   syscall.RawConn
	direct atomic.Bool
}

// set switches O_DIRECT on or off.
func (f *directFile) set(on bool) error {
	var errno syscall.Errno
	err := f.conn.Control(func(fd uintptr) {
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
			n, err = f.write(b, off, false)
			if err == nil && n == len(b) || err != nil && !errors.Is(err, syscall.EINVAL) {
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

// write writes past the cache, and makes that durable if asked to.
func (f *directFile) write(b []byte, off int64, durable bool) (n int, err error) {
	n, ok, err := writeAsync(f.conn, b, off, durable)
	switch {
	case ok && err != nil:
		return n, &fs.PathError{Op: "write", Path: f.Name(), Err: err}
	case ok:
		return n, nil
	}
	n, err = f.osFile.WriteAt(b, off)
	if err == nil && durable {
		err = f.Sync()
	}
	return n, err
}

// WriteDurable implements DurableWriter.
func (f *directFile) WriteDurable(b []byte, off int64) error {
	if f.direct.Load() && suitsDirect(b, off) {
		n, err := f.write(b, off, true)
		if err == nil && n == len(b) || err != nil && !errors.Is(err, syscall.EINVAL) {
			return err
		}
	}
	if _, err := f.WriteAt(b, off); err != nil { // again, if it has failed in a way that another one may not
		return err
	}
	return f.Sync()
}
