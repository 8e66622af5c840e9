package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"

	"github.com/steadyraft/raft/examples/orchestrator/runtime"
)

// Logs implements runtime.Runtime: the kept output of former runs, then that of the present one.
func (r *Runtime) Logs(ctx context.Context, id string, opts runtime.LogOptions) (io.ReadCloser, error) {
	if _, err := r.name(id); err != nil {
		return nil, err
	}
	kept, err := os.ReadFile(r.logFile(id))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	c, err := r.inspect(ctx, id)
	if errors.Is(err, runtime.ErrNotFound) && len(kept) > 0 { // retired
		if opts.Tail > 0 {
			kept = lastLines(kept, opts.Tail)
		}
		return io.NopCloser(bytes.NewReader(kept)), nil
	} else if err != nil {
		return nil, err
	}
	if opts.Tail > 0 && len(kept) > 0 { // how much of it is wanted depends on how much there is of the present run
		present, err := r.output(ctx, c.ID, opts.Tail)
		if err != nil {
			return nil, err
		}
		kept = lastLines(kept, opts.Tail-bytes.Count(present, []byte("\n")))
	}
	tail := "all"
	if opts.Tail > 0 {
		tail = strconv.Itoa(opts.Tail)
	}
	ctx, cancel := context.WithCancel(ctx)
	if err := r.negotiate(ctx); err != nil {
		cancel()
		return nil, unavailable(err)
	}
	stream, err := r.engine.ContainerLogs(ctx, c.ID, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Follow: opts.Follow, Tail: tail})
	if err != nil {
		cancel()
		if errdefs.IsNotFound(err) {
			err = runtime.ErrNotFound
		}
		return nil, fmt.Errorf("output of instance %s: %w", id, unavailable(err))
	}
	reader, writer := io.Pipe()
	l := &logReader{PipeReader: reader, cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(l.ended)
		_, err := writer.Write(kept)
		for last := c.ID; err == nil && stream != nil; {
			_, err = stdcopy.StdCopy(writer, writer, stream)
			_ = stream.Close()
			if stream = nil; err == nil && opts.Follow && opts.Again != nil {
				stream, last, err = r.nextRun(ctx, id, last, opts.Again)
			}
		}
		if stream != nil {
			_ = stream.Close()
		}
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		_ = writer.CloseWithError(err) // nil is the end
	}()
	return l, nil
}

// nextRun waits for the container of the instance's next run, and follows its output from the beginning. The stream is nil if there will be
// none. A run that is over before anybody looks is missed; it is in what is kept.
func (r *Runtime) nextRun(ctx context.Context, id, last string, again func() bool) (io.ReadCloser, string, error) {
	for {
		wanted := again() // first: a container that is there afterwards is the last one
		c, err := r.inspect(ctx, id)
		if err == nil && c.ID != last && !started(c).IsZero() {
			stream, err := r.engine.ContainerLogs(ctx, c.ID, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Follow: true, Tail: "all"})
			if err == nil {
				return stream, c.ID, nil
			} else if !errdefs.IsNotFound(err) {
				return nil, last, fmt.Errorf("output of instance %s: %w", id, unavailable(err))
			}
		}
		switch {
		case err != nil && !errors.Is(err, runtime.ErrNotFound): // between two runs there is no container
			return nil, last, err
		case !wanted:
			return nil, last, nil
		}
		select {
		case <-ctx.Done():
			return nil, last, ctx.Err()
		case <-time.After(nextRunInterval):
		}
	}
}

// nextRunInterval is how often it is looked whether an instance whose output is followed runs again.
const nextRunInterval = 50 * time.Millisecond

// logReader is what Logs returns. Its goroutine has ended when Close returns.
type logReader struct {
	*io.PipeReader
	cancel context.CancelFunc
	ended  chan struct{}
}

func (l *logReader) Close() error {
	l.cancel()
	err := l.PipeReader.Close()
	<-l.ended
	return err
}

// output returns the last lines of a container's output, at most keptLogBytes.
func (r *Runtime) output(ctx context.Context, containerID string, lines int) ([]byte, error) {
	return call(ctx, r, func(ctx context.Context) ([]byte, error) {
		stream, err := r.engine.ContainerLogs(ctx, containerID, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Tail: strconv.Itoa(lines)})
		if err != nil {
			return nil, err
		}
		defer stream.Close()
		var end tail
		_, err = stdcopy.StdCopy(&end, &end, stream)
		return end.bytes(), err
	})
}

// keepLogs appends a container's output to what is kept of the instance's former runs, of which the oldest makes room.
func (r *Runtime) keepLogs(ctx context.Context, id, containerID string) error {
	const lines = 1000
	output, err := r.output(ctx, containerID, lines)
	if err != nil || len(output) == 0 {
		return err
	}
	kept, err := os.ReadFile(r.logFile(id))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var all tail
	_, _ = all.Write(kept)
	_, _ = all.Write(output)
	if err := os.MkdirAll(r.opts.Directory, 0o700); err != nil {
		return err
	}
	tmp := r.logFile(id) + ".tmp"
	if err := os.WriteFile(tmp, all.bytes(), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, r.logFile(id))
}

// pruneLogs bounds how many files of instances are kept that are no more: nobody names the oldest of them any more.
func (r *Runtime) pruneLogs() error {
	entries, err := os.ReadDir(r.opts.Directory)
	if err != nil && !errors.Is(err, fs.ErrNotExist) || len(entries) <= keptLogFiles {
		return err
	}
	type file struct {
		name string
		at   time.Time
	}
	var files []file
	for _, entry := range entries {
		info, err := entry.Info()
		if err == nil && strings.HasSuffix(entry.Name(), ".log") {
			files = append(files, file{entry.Name(), info.ModTime()})
		}
	}
	slices.SortFunc(files, func(a, b file) int { return b.at.Compare(a.at) })
	var errs []error
	for _, f := range files[min(len(files), keptLogFiles):] {
		errs = append(errs, os.Remove(filepath.Join(r.opts.Directory, f.name)))
	}
	return errors.Join(errs...)
}

func (r *Runtime) forgetLogs(id string) error {
	if err := os.Remove(r.logFile(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// tail keeps the last keptLogBytes of what is written to it, from the beginning of a line.
type tail struct {
	data []byte
	cut  bool
}

func (t *tail) Write(p []byte) (int, error) {
	t.data = append(t.data, p...)
	if len(t.data) > 2*keptLogBytes { // copied once per keptLogBytes, not once per line
		t.data, t.cut = append([]byte(nil), t.data[len(t.data)-keptLogBytes:]...), true
	}
	return len(p), nil
}

func (t *tail) bytes() []byte {
	data := t.data
	if len(data) > keptLogBytes {
		data, t.cut = data[len(data)-keptLogBytes:], true
	}
	if i := bytes.IndexByte(data, '\n'); t.cut && i >= 0 {
		data = data[i+1:]
	}
	return data
}

// lastLines returns the last n lines.
func lastLines(data []byte, n int) []byte {
	if n <= 0 {
		return nil
	}
	end := len(data)
	if end > 0 && data[end-1] == '\n' {
		end--
	}
	for ; n > 0; n-- {
		i := bytes.LastIndexByte(data[:end], '\n')
		if i < 0 {
			return data
		}
		end = i
	}
	return data[end+1:]
}
