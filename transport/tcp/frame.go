package tcp

import (
	"bufio"
	"io"
	"net"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/transport/internal/wire"
)

const (
	readBuffer  = 64 << 10
	maxControl  = minFrameBytes // largest control part of a frame
	firstBuffer = 256 << 10     // allocated at once for a frame that announces at least so much; more only as bytes arrive
	keepScratch = 1 << 20       // a larger buffer is not kept for the next frame

	// A piece of entries from this size on is not copied into the write buffer but handed to the kernel where it lies. Under TLS copying
	// is cheaper up to a larger size, as every piece would become a record of its own.
	referenceFrom    = 4 << 10
	referenceFromTLS = 64 << 10
)

// frameReader reads frames from one connection.
type frameReader struct {
	conn    net.Conn
	buf     *bufio.Reader
	max     int // largest frame
	control []byte
	bytes   uint64 // read so far
}

func newFrameReader(conn net.Conn, maxFrame int) *frameReader {
	return &frameReader{conn: conn, buf: bufio.NewReaderSize(conn, readBuffer), max: maxFrame}
}

// next reads one frame. It waits up to idle for the header, and then up to body for the rest. control is valid until the next
// call; entries are the caller's to keep.
func (r *frameReader) next(idle, body time.Duration) (h wire.Header, control, entries []byte, err error) {
	if err = r.wait(wire.HeaderSize, idle); err != nil {
		return h, nil, nil, err
	}
	b, err := r.buf.Peek(wire.HeaderSize)
	if err != nil {
		if err == io.EOF && len(b) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return h, nil, nil, err
	}
	if h, err = wire.ParseHeader(b, r.max); err != nil {
		return h, nil, nil, err
	}
	if h.Control > maxControl {
		return h, nil, nil, wire.ErrOversized
	}
	if _, err = r.buf.Discard(wire.HeaderSize); err != nil {
		return h, nil, nil, err
	}
	if err = r.wait(h.Control+h.Entries, body); err != nil {
		return h, nil, nil, err
	}
	if cap(r.control) > keepScratch {
		r.control = nil
	}
	if r.control, err = readGrowing(r.buf, r.control[:0], h.Control); err != nil {
		return h, nil, nil, err
	}
	if err = h.Check(r.control); err != nil {
		return h, nil, nil, err
	}
	if h.Entries > 0 {
		if entries, err = readGrowing(r.buf, nil, h.Entries); err != nil {
			return h, nil, nil, err
		}
	}
	r.bytes += uint64(wire.HeaderSize + h.Control + h.Entries)
	return h, r.control, entries, nil
}

// wait sets the deadline for n more bytes, unless they have arrived.
func (r *frameReader) wait(n int, d time.Duration) error {
	if r.buf.Buffered() >= n {
		return nil
	}
	return r.conn.SetReadDeadline(time.Now().Add(d))
}

// more reports whether another whole frame has arrived, so that reading it will not block.
func (r *frameReader) more() bool {
	if r.buf.Buffered() < wire.HeaderSize {
		return false
	}
	b, err := r.buf.Peek(wire.HeaderSize)
	if err != nil {
		return false
	}
	h, err := wire.ParseHeader(b, r.max)
	return err != nil || r.buf.Buffered() >= wire.HeaderSize+h.Control+h.Entries
}

// readGrowing reads n bytes into b, whose length is 0, or into a larger buffer. The buffer grows as bytes arrive, so a peer that
// announces much and sends little costs little; its last growth is exact.
func readGrowing(r io.Reader, b []byte, n int) ([]byte, error) {
	for {
		step := min(n, max(cap(b), firstBuffer, 2*len(b)))
		if step > cap(b) {
			b = append(make([]byte, 0, step), b...)
		}
		have := len(b)
		b = b[:step]
		if _, err := io.ReadFull(r, b[have:]); err != nil {
			if err == io.EOF && n > 0 {
				err = io.ErrUnexpectedEOF
			}
			return b[:0], err
		}
		if step == n {
			return b, nil
		}
	}
}

// batchWriter collects messages and writes them with one system call.
type batchWriter struct {
	conn      net.Conn
	reference int // pieces from this size on are not copied

	scratch  []byte
	segments []segment
	buffers  net.Buffers // all of them
	unsent   net.Buffers // eaten by writing; a field, so that it is not allocated for every write
	size     int
	messages int
}

// segment is a piece of what is to be written: foreign bytes, or a range of scratch.
type segment struct {
	foreign []byte
	lo, hi  int
}

func newBatchWriter(conn net.Conn) *batchWriter {
	w := &batchWriter{conn: conn, reference: referenceFromTLS}
	if _, plain := conn.(*net.TCPConn); plain {
		w.reference = referenceFrom
	}
	return w
}

// add takes up one message, or returns an error and leaves the batch as it was.
func (w *batchWriter) add(m raft.Message) error {
	lo := len(w.scratch)
	b, err := wire.AppendHead(w.scratch, m)
	if err != nil {
		w.scratch = b[:lo]
		return err
	}
	w.scratch = b
	w.messages++
	wire.EachPiece(m, func(piece []byte) {
		if len(piece) < w.reference {
			w.scratch = append(w.scratch, piece...)
			return
		}
		w.own(lo)
		lo = len(w.scratch)
		w.segments = append(w.segments, segment{foreign: piece})
		w.size += len(piece)
	})
	w.own(lo)
	return nil
}

// own takes up what was added to scratch since lo.
func (w *batchWriter) own(lo int) {
	hi := len(w.scratch)
	w.size += hi - lo
	if n := len(w.segments); n > 0 && w.segments[n-1].foreign == nil {
		w.segments[n-1].hi = hi
	} else if hi > lo {
		w.segments = append(w.segments, segment{lo: lo, hi: hi})
	}
}

// flush writes the batch and begins a new one.
func (w *batchWriter) flush(timeout time.Duration) error {
	if err := w.conn.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	buffers := w.buffers[:0]
	for _, s := range w.segments {
		if s.foreign == nil {
			s.foreign = w.scratch[s.lo:s.hi]
		}
		buffers = append(buffers, s.foreign)
	}
	w.buffers, w.unsent = buffers, buffers
	_, err := w.unsent.WriteTo(w.conn)
	clear(w.buffers)
	clear(w.segments)
	w.segments, w.scratch, w.size, w.messages = w.segments[:0], w.scratch[:0], 0, 0
	if cap(w.scratch) > 2*keepScratch {
		w.scratch = nil
	}
	return err
}
