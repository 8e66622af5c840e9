//go:build unix

package process

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/runtime"
)

const (
	logFile            = "log"
	oldLogFile         = "log.1"
	defaultLogMaxBytes = 10 << 20
	followInterval     = 100 * time.Millisecond
	maxLine            = 16 << 10 // a longer line may be cut in two by a rotation
)

// rotatingLog keeps output in two files, each at most half of the cap or one line long. It reports no failure: a full disk costs the
// task its output, not its life.
type rotatingLog struct {
	dir  string
	f    *os.File
	size int64
	half int64
}

func openLog(dir string, maxBytes int64) (*rotatingLog, error) {
	if maxBytes <= 0 {
		maxBytes = defaultLogMaxBytes
	}
	l := &rotatingLog{dir: dir, half: max(maxBytes/2, 1)}
	return l, l.open()
}

// open goes on behind what an earlier run of the instance wrote: the words before a crash are the ones that somebody will look for.
func (l *rotatingLog) open() error {
	f, err := os.OpenFile(filepath.Join(l.dir, logFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.f, l.size = f, info.Size()
	return nil
}

// copyLines writes what it reads, in pieces that are whole lines unless they are longer than maxLine.
func (l *rotatingLog) copyLines(from io.Reader) {
	lines := bufio.NewReaderSize(from, maxLine)
	for {
		line, err := lines.ReadSlice('\n')
		l.write(line)
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return // the last writer has closed the pipe
		}
	}
}

func (l *rotatingLog) write(line []byte) {
	if l.f == nil || l.size > 0 && l.size+int64(len(line)) > l.half {
		l.rotate()
	}
	if l.f != nil {
		n, _ := l.f.Write(line) // see the type's comment
		l.size += int64(n)
	}
}

func (l *rotatingLog) rotate() {
	if l.f != nil {
		_ = l.f.Close()
		l.f = nil
	}
	err := os.Rename(filepath.Join(l.dir, logFile), filepath.Join(l.dir, oldLogFile))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		_ = l.open() // on an error tried again at the next write
	}
}

// Logs implements runtime.Runtime. A reader that is slower than two rotations misses what was dropped meanwhile.
func (r *Runtime) Logs(ctx context.Context, id string, opts runtime.LogOptions) (io.ReadCloser, error) {
	dir, err := r.existing(id)
	if err != nil {
		return nil, err
	}
	l := &logReader{dir: dir, follow: opts.Follow, again: opts.Again}
	l.ctx, l.cancel = context.WithCancel(ctx)
	var files []*os.File // the newest first
	for _, name := range []string{logFile, oldLogFile} {
		f, err := os.Open(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, errors.Join(err, closeAll(files))
		}
		files = append(files, f)
		lines, size, err := seekTail(f, opts.Tail)
		if err != nil {
			return nil, errors.Join(err, closeAll(files))
		}
		l.remaining += size
		if opts.Tail > 0 {
			if opts.Tail -= lines; opts.Tail <= 0 {
				break
			}
		}
	}
	l.files = files
	return l, nil
}

func closeAll(files []*os.File) (err error) {
	for _, f := range files {
		err = errors.Join(err, f.Close())
	}
	return err
}

// seekTail moves to the beginning of the last n lines, or to the beginning of the file if n is 0 or it has fewer, and returns the lines
// (of interest only if n is not 0) and bytes from there to the end.
func seekTail(f *os.File, n int) (lines int, size int64, err error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, 0, err
	}
	block := make([]byte, 32<<10)
	for at := end; at > 0 && n > 0; {
		part := block[:min(at, int64(len(block)))]
		at -= int64(len(part))
		if _, err := f.ReadAt(part, at); err != nil {
			return 0, 0, err
		}
		for i := bytes.LastIndexByte(part, '\n'); i >= 0; i = bytes.LastIndexByte(part[:i], '\n') {
			start := at + int64(i) + 1
			if start == end {
				continue // the newline that ends the last line
			}
			if lines++; lines == n {
				_, err := f.Seek(start, io.SeekStart)
				return lines, end - start, err
			}
		}
	}
	if end > 0 {
		lines++
	}
	_, err = f.Seek(0, io.SeekStart)
	return lines, end, err
}

// logReader reads log.1, then log, and then, if it follows, what is added, across rotations.
type logReader struct {
	ctx       context.Context
	cancel    context.CancelFunc
	dir       string
	mu        sync.Mutex // held by Read; Close ends a Read that waits, then takes it
	files     []*os.File // the newest first; the last is read now
	follow    bool
	again     func() bool // runtime.LogOptions.Again
	remaining int64       // without follow: what there was when it was opened
	ended     bool        // the instance has ended: one more pass and there is no more
}

func (l *logReader) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if err := l.ctx.Err(); err != nil {
			return 0, err
		}
		if !l.follow {
			if p = p[:min(int64(len(p)), l.remaining)]; l.remaining == 0 {
				return 0, io.EOF
			}
		}
		if len(l.files) > 0 {
			n, err := l.files[len(l.files)-1].Read(p)
			if n > 0 || err != nil && !errors.Is(err, io.EOF) {
				l.remaining -= int64(n)
				return n, err
			}
		}
		moved, err := l.next()
		switch {
		case err != nil:
			return 0, err
		case moved:
		case !l.follow || l.ended && (l.again == nil || !l.again()):
			return 0, io.EOF
		default:
			running, err := alive(l.dir)
			if err != nil {
				return 0, err
			}
			ended := !running
			l.ended, ended = ended, ended && !l.ended
			if ended {
				continue // one more pass: it may have written since
			}
			select {
			case <-l.ctx.Done():
			case <-time.After(followInterval):
			}
		}
	}
}

// next goes from a file that is read to its end to the one that was written after it, if there is one.
func (l *logReader) next() (bool, error) {
	if n := len(l.files); n > 1 {
		err := l.files[n-1].Close()
		l.files = l.files[:n-1]
		return true, err
	}
	newest, err := os.Open(filepath.Join(l.dir, logFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if len(l.files) == 1 {
		a, err1 := newest.Stat()
		b, err2 := l.files[0].Stat()
		if err := errors.Join(err1, err2); err != nil || os.SameFile(a, b) {
			return false, errors.Join(err, newest.Close())
		}
		err = l.files[0].Close()
	}
	l.files = []*os.File{newest}
	return true, err
}

// Close ends a Read that waits and releases the files.
func (l *logReader) Close() error {
	l.cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	err := closeAll(l.files)
	l.files = nil
	return err
}
