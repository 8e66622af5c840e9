package tcp

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/transport/internal/wire"
)

const (
	chunkSize    = 256 << 10
	maxErrorText = 4 << 10
)

// SendSnapshot implements [raft.Transport]. What the receiver has of the content already is not sent if r is a
// raft.Rewinder. It reads r on the calling goroutine, and not after it has returned; a Read that hangs
// holds it up.
func (t *Transport) SendSnapshot(ctx context.Context, m raft.Message, r io.Reader) error {
	t.mu.Lock()
	p := t.peers[m.To]
	running := t.handler != nil && !t.closed
	address := ""
	if running {
		t.running.Add(1)
		defer t.running.Done()
	}
	if p != nil {
		address = p.address()
	}
	t.mu.Unlock()
	var err error
	switch {
	case !running:
		err = errors.New("transport is not running")
	case address == "":
		err = errNoAddress
	default:
		err = t.sendSnapshot(ctx, p, address, m, r)
	}
	if err != nil {
		return fmt.Errorf("send snapshot to %q: %w", m.To, err)
	}
	return nil
}

func (t *Transport) sendSnapshot(ctx context.Context, p *peer, address string, m raft.Message, r io.Reader) error {
	id := t.identity
	if _, ok := m.Body.(raft.InstallSnapshot); !ok || m.From != id.Node || m.Replica != id.Replica || m.Incarnation != id.Incarnation {
		return fmt.Errorf("a %T from %q is not a snapshot of this server", m.Body, m.From)
	}
	if err := m.Validate(); err != nil {
		return err
	}
	head, err := wire.AppendHead(nil, m)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(p.ctx, func() { cancel(errors.New("transport is closed, or the peer was removed")) })()

	c, err := t.dial(ctx, p.id, address, laneSnapshot)
	if err != nil {
		return causeOr(ctx, err)
	}
	defer closeQuietly(c)
	defer context.AfterFunc(ctx, func() { closeQuietly(c) })()
	t.meet(p, c.peer, c.trusted, c)

	// The receiver may answer at any time: a snapshot that is not wanted need not be sent to its end.
	answer, offered := make(chan error, 1), make(chan offer, 1)
	go func() { answer <- t.awaitAck(c, offered) }()
	sent, err := t.sendContent(ctx, c, head, r, offered, answer)
	p.counters.sentBytes.Add(uint64(sent))
	if err != nil && !errors.Is(err, errReadContent) {
		// The answer explains why the receiver does not take any more.
		select {
		case err = <-answer:
			return causeOr(ctx, err)
		case <-time.After(lingerTime):
		case <-ctx.Done():
		}
	}
	if err != nil {
		closeQuietly(c)
		<-answer
		return causeOr(ctx, err)
	}
	return causeOr(ctx, <-answer)
}

// causeOr replaces an error that came about because ctx ended.
func causeOr(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

var (
	errAnswered    = errors.New("receiver answered before the end")
	errReadContent = errors.New("read snapshot")
)

// sendContent writes the message, where the content begins, the content from there on in chunks, and the end. It returns how much of the
// content it has sent.
func (t *Transport) sendContent(ctx context.Context, c *outgoing, head []byte, r io.Reader, offered chan offer, answer chan error) (int64, error) {
	if err := t.writeFrame(c, head); err != nil {
		return 0, err
	}
	rate := t.config.SnapshotBytesPerSecond
	size := chunkSize
	if rate > 0 {
		size = max(1, min(size, rate/8)) // several chunks a second, so that no deadline passes between two
	}
	chunk := make([]byte, size)
	from, err := t.agree(ctx, c, r, chunk, offered, answer)
	if err != nil {
		return 0, err
	}
	var frame []byte
	var sent int64
	began := time.Now()
	for {
		n, err := io.ReadFull(r, chunk)
		if n > 0 {
			frame = wire.AppendFrame(frame[:0], wire.FrameChunk, chunk[:n])
			if err := t.writeFrame(c, frame); err != nil {
				return sent, err
			}
			sent += int64(n)
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			return sent, fmt.Errorf("%w: %w", errReadContent, err)
		}
		if err := pace(ctx, began, sent, rate, answer); err != nil {
			return sent, err
		}
	}
	end := binary.LittleEndian.AppendUint64(nil, uint64(from+sent))
	return sent, t.writeFrame(c, wire.AppendFrame(frame[:0], wire.FrameEnd, end))
}

// pace waits until sent bytes are due.
func pace(ctx context.Context, began time.Time, sent int64, rate int, answer chan error) error {
	var due <-chan time.Time
	if rate > 0 {
		d := time.Duration(float64(sent)/float64(rate)*float64(time.Second)) - time.Since(began)
		timer := time.NewTimer(max(d, 0))
		defer timer.Stop()
		due = timer.C
	} else {
		now := make(chan time.Time)
		close(now)
		due = now
	}
	select {
	case err := <-answer:
		answer <- err
		return errAnswered
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-due:
		return nil
	}
}

func (t *Transport) writeFrame(c *outgoing, frame []byte) error {
	if err := c.SetWriteDeadline(time.Now().Add(t.config.SnapshotChunkTimeout)); err != nil {
		return err
	}
	_, err := c.Write(frame)
	return err
}

// awaitAck waits for the outcome, and passes on what the receiver offers before. The receiver sends keep-alives from the first to the last
// moment.
func (t *Transport) awaitAck(c *outgoing, offered chan<- offer) error {
	for heard := false; ; {
		h, control, _, err := c.frames.next(t.config.SnapshotChunkTimeout, t.config.SnapshotChunkTimeout)
		if err != nil {
			return fmt.Errorf("%w before the receiver answered: %w", errBroke, err)
		}
		switch {
		case h.Type == wire.FrameKeepalive:
		case h.Type == wire.FrameOffer && !heard:
			o, err := decodeOffer(control)
			if err != nil {
				return err
			}
			heard = true
			offered <- o
		case h.Type == wire.FrameAck && len(control) == 0:
			return nil
		case h.Type == wire.FrameAck:
			return errors.New("receiver: " + printable(control, maxErrorText))
		default:
			return fmt.Errorf("%w: frame type %d instead of an acknowledgement", wire.ErrMalformed, h.Type)
		}
	}
}

// receiveSnapshot receives one snapshot and answers with the outcome.
func (t *Transport) receiveSnapshot(c *incoming) error {
	timeout := t.config.SnapshotChunkTimeout
	h, control, entries, err := c.frames.next(timeout, timeout)
	if err != nil {
		return err
	}
	if h.Type != wire.FrameMessage {
		return refuse("unexpected frame", "frame type %d before a snapshot", h.Type)
	}
	m, err := t.decode(c, control, entries, wire.Names{From: c.id.Node, To: t.identity.Node})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(t.ctx)
	defer cancel()
	content := &chunkReader{frames: c.frames, timeout: timeout, offer: func(o offer) error { return t.sendOffer(c, o) }}
	done := make(chan error, 1)
	go func() { done <- t.handler.HandleSnapshot(ctx, m, content) }()

	// Storing may take longer than any deadline, so the sender is told that we live.
	ticker := time.NewTicker(max(min(t.config.KeepaliveInterval, timeout/4), time.Millisecond))
	defer ticker.Stop()
	keepalive := wire.AppendFrame(nil, wire.FrameKeepalive, nil)
	for {
		select {
		case <-ticker.C:
			err := c.conn.SetWriteDeadline(time.Now().Add(timeout))
			if err == nil {
				_, err = c.conn.Write(keepalive)
			}
			if err != nil { // the sender is gone; reading fails too, or the snapshot is stored for the next time
				closeQuietly(c.conn)
				cancel()
				<-done
				return err
			}
		case err := <-done:
			return t.acknowledge(c, content, err)
		}
	}
}

// acknowledge tells the sender what became of its snapshot.
func (t *Transport) acknowledge(c *incoming, content *chunkReader, outcome error) error {
	c.peer.counters.receivedBytes.Add(c.frames.bytes)
	var text []byte
	if outcome != nil {
		text = []byte(outcome.Error())
		text = text[:min(len(text), maxErrorText)]
		if len(text) == 0 {
			text = []byte("refused")
		}
	}
	if err := c.conn.SetWriteDeadline(time.Now().Add(t.config.SnapshotChunkTimeout)); err != nil {
		return err
	}
	if _, err := c.conn.Write(wire.AppendFrame(nil, wire.FrameAck, text)); err != nil {
		return err
	}
	linger(c.conn)
	return content.err
}

// chunkReader is the content of a snapshot. It ends with io.EOF only if everything has arrived. It implements raft.ResumableContent.
type chunkReader struct {
	frames  *frameReader
	timeout time.Duration
	offer   func(offer) error // tells the sender what is here
	begun   bool              // it was told
	rest    []byte            // of the chunk read last
	total   uint64            // with what the sender has left out
	err     error             // what ended the stream, if it was not its proper end
	ended   bool
}

func (r *chunkReader) Read(p []byte) (int, error) {
	if !r.begun {
		if _, err := r.Resume(0, sha256.Sum256(nil)); err != nil {
			return 0, err
		}
	}
	for len(r.rest) == 0 {
		if r.ended {
			return 0, io.EOF
		}
		if r.err == nil {
			r.err = r.next()
		}
		if r.err != nil {
			return 0, r.err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *chunkReader) next() error {
	h, control, _, err := r.frames.next(r.timeout, r.timeout)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("receive snapshot: %w", err)
	}
	switch {
	case h.Type == wire.FrameKeepalive:
		return nil
	case h.Type == wire.FrameChunk && h.Entries == 0:
		r.rest = control
		r.total += uint64(len(control))
		return nil
	case h.Type == wire.FrameEnd && len(control) == 8:
		if sent := binary.LittleEndian.Uint64(control); sent != r.total {
			return refuse("incomplete snapshot", "receive snapshot: %d bytes arrived, %d were sent", r.total, sent)
		}
		r.ended = true
		return nil
	}
	return refuse("unexpected frame", "receive snapshot: frame type %d of %d bytes", h.Type, len(control))
}
