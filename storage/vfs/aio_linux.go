//go:build linux && (amd64 || arm64)

package vfs

import (
	"os"
	"sync"
	"syscall"
	"unsafe"
)

// A direct write with its sync takes the disk a few hundred microseconds. In a system call it would keep one of the processors that Go
// runs goroutines on, until the runtime's monitor looks, which may be after the write: with two processors and two logs nothing else
// would run. So the kernel is asked to do it by itself (io_submit), and to tell by an eventfd, which the runtime waits for as it does
// for a socket.

// asyncWriter is one write at a time that the kernel does by itself.
type asyncWriter struct {
	context uintptr // the kernel's name for it
	event   *os.File

	// What the kernel reads and writes while this goroutine waits. It lies here, and so on the heap: stacks move.
	request  iocb
	requests [1]*iocb
	result   ioEvent
	count    [8]byte
	buffer   []byte

	submit    func(file uintptr) // a field, so that it is not allocated for every write
	submitted bool
}

// iocb and ioEvent are struct iocb and struct io_event of linux/aio_abi.h, little-endian.
type iocb struct {
	_             [12]byte
	rwFlags       uint32
	opcode        uint16
	_             int16
	file          uint32
	buffer        uint64
	length        uint64
	offset        int64
	_             uint64
	flags         uint32
	resultEventFD uint32
}

type ioEvent struct {
	data, object    uint64
	result, result2 int64
}

const (
	iocbWrite       = 1    // IOCB_CMD_PWRITE
	iocbFlagEventFD = 1    // IOCB_FLAG_RESFD
	rwfDsync        = 0x02 // RWF_DSYNC
	eventFDFlags    = syscall.O_CLOEXEC | syscall.O_NONBLOCK
)

// asyncWriters are those that nobody uses now. They are kept: to end one takes the kernel long. There are never more than writes at
// the same time, nor than maxAsyncWriters.
var asyncWriters struct {
	mu   sync.Mutex
	free []*asyncWriter
	made int
	lost []*asyncWriter // nobody knows whether the kernel is done with them: they and their buffers are never used or freed again
	none bool           // the kernel does not let us have any
}

const maxAsyncWriters = 64

// takeAsyncWriter returns nil if there is none to be had.
func takeAsyncWriter() *asyncWriter {
	p := &asyncWriters
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		a := p.free[n-1]
		p.free = p.free[:n-1]
		return a
	}
	if p.none || p.made == maxAsyncWriters {
		return nil
	}
	a := &asyncWriter{}
	if _, _, e := syscall.Syscall(syscall.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&a.context)), 0); e != 0 {
		p.none = true
		return nil
	}
	fd, _, e := syscall.Syscall(syscall.SYS_EVENTFD2, 0, eventFDFlags, 0)
	if e != 0 {
		p.none = true
		syscall.Syscall(syscall.SYS_IO_DESTROY, a.context, 0, 0)
		return nil
	}
	a.event = os.NewFile(fd, "eventfd")
	a.request.resultEventFD = uint32(fd)
	a.requests[0] = &a.request
	a.submit = func(file uintptr) {
		a.request.file = uint32(file)
		n, _, e := syscall.Syscall(syscall.SYS_IO_SUBMIT, a.context, 1, uintptr(unsafe.Pointer(&a.requests)))
		a.submitted = e == 0 && n == 1
	}
	p.made++
	return a
}

func (a *asyncWriter) giveBack() {
	a.buffer = nil
	asyncWriters.mu.Lock()
	asyncWriters.free = append(asyncWriters.free, a)
	asyncWriters.mu.Unlock()
}

func (a *asyncWriter) lose() {
	asyncWriters.mu.Lock()
	asyncWriters.lost = append(asyncWriters.lost, a)
	asyncWriters.mu.Unlock()
}

// writeAsync writes b at off, durably if asked to. ok is false if that is not possible here; nothing is written then.
func writeAsync(c syscall.RawConn, b []byte, off int64, durable bool) (n int, ok bool, err error) {
	if len(b) == 0 {
		return 0, false, nil
	}
	a := takeAsyncWriter()
	if a == nil {
		return 0, false, nil
	}
	a.buffer = b
	r := &a.request
	r.opcode, r.flags, r.rwFlags = iocbWrite, iocbFlagEventFD, 0
	if durable {
		r.rwFlags = rwfDsync
	}
	r.buffer, r.length, r.offset = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))), uint64(len(b)), off
	a.submitted = false
	if err := c.Control(a.submit); err != nil {
		a.giveBack()
		return 0, true, err
	}
	if !a.submitted {
		a.giveBack()
		return 0, false, nil // whatever the kernel has against it, the plain way shows whether it is an error
	}
	if err := a.wait(); err != nil {
		a.lose()
		return 0, true, err
	}
	result := a.result.result
	a.giveBack()
	if result < 0 {
		return 0, true, syscall.Errno(-result)
	}
	return int(result), true, nil
}

// wait returns once the kernel is done with the request.
func (a *asyncWriter) wait() error {
	for {
		if _, err := a.event.Read(a.count[:]); err != nil {
			return err
		}
		got, _, e := syscall.Syscall6(syscall.SYS_IO_GETEVENTS, a.context, 0, 1, uintptr(unsafe.Pointer(&a.result)), 0, 0)
		switch {
		case e != 0 && e != syscall.EINTR:
			return e
		case got == 1:
			return nil
		}
	}
}
