package tcp

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/transport/internal/wire"
)

// comparePace is how much faster than it is sent the content is read that the receiver may have: no network and no disk of the receiver
// has a part in that. A transfer that breaks off again and again must get ahead of what was compared.
const comparePace = 8

const offerSize = 8 + sha256.Size

// offer is how much of the content the receiver has, from the first byte on, and its checksum.
type offer struct {
	have int64
	sum  [sha256.Size]byte
}

func (o offer) append(b []byte) []byte {
	return append(binary.LittleEndian.AppendUint64(b, uint64(o.have)), o.sum[:]...)
}

func decodeOffer(b []byte) (offer, error) {
	if len(b) != offerSize || binary.LittleEndian.Uint64(b) > math.MaxInt64 {
		return offer{}, fmt.Errorf("%w: offer of %d bytes", wire.ErrMalformed, len(b))
	}
	return offer{int64(binary.LittleEndian.Uint64(b)), [sha256.Size]byte(b[8:])}, nil
}

// agree waits for what the receiver offers, compares it with the content, and tells the receiver where the chunks begin. r is read up to
// there.
func (t *Transport) agree(ctx context.Context, c *outgoing, r io.Reader, chunk []byte, offered chan offer, answer chan error) (int64, error) {
	var o offer
	select {
	case o = <-offered:
	case err := <-answer:
		answer <- err
		return 0, errAnswered
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	from := int64(0)
	// What was read for the comparison cannot be sent any more, unless r can be rewound.
	if rewinder, ok := r.(raft.Rewinder); ok && o.have > 0 {
		same, err := t.compare(ctx, c, r, chunk, o, answer)
		if err != nil {
			return 0, err
		}
		if same {
			from = o.have
		} else if err := rewinder.Rewind(); err != nil {
			return 0, fmt.Errorf("%w: rewind: %w", errReadContent, err)
		}
	}
	if o.have > 0 {
		t.config.Logger.Info("snapshot is sent again", "peer", c.peer.Node, "received before", o.have, "from", from)
	}
	return from, t.writeFrame(c, wire.AppendFrame(nil, wire.FrameBegin, binary.LittleEndian.AppendUint64(nil, uint64(from))))
}

// compare reads as much of the content as the receiver has, and reports whether it is the same.
func (t *Transport) compare(ctx context.Context, c *outgoing, r io.Reader, chunk []byte, o offer, answer chan error) (bool, error) {
	rate := min(t.config.SnapshotBytesPerSecond, math.MaxInt/comparePace) * comparePace
	keepalive := wire.AppendFrame(nil, wire.FrameKeepalive, nil)
	sum := sha256.New()
	began := time.Now()
	told := began
	for read := int64(0); read < o.have; {
		n, err := io.ReadFull(r, chunk[:min(int64(len(chunk)), o.have-read)])
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("%w: %w", errReadContent, err)
		}
		sum.Write(chunk[:n])
		read += int64(n)
		if time.Since(told) >= t.config.KeepaliveInterval { // the receiver waits
			if err := t.writeFrame(c, keepalive); err != nil {
				return false, err
			}
			told = time.Now()
		}
		if err := pace(ctx, began, read, rate, answer); err != nil {
			return false, err
		}
	}
	return [sha256.Size]byte(sum.Sum(nil)) == o.sum, nil
}

// sendOffer may write beside the keep-alives: a write is never torn apart by another.
func (t *Transport) sendOffer(c *incoming, o offer) error {
	if err := c.conn.SetWriteDeadline(time.Now().Add(t.config.SnapshotChunkTimeout)); err != nil {
		return err
	}
	_, err := c.conn.Write(wire.AppendFrame(nil, wire.FrameOffer, o.append(nil)))
	return err
}

var _ raft.ResumableContent = (*chunkReader)(nil)

var errBegun = errors.New("receive snapshot: its beginning is agreed on already")

// Resume implements [raft.ResumableContent].
func (r *chunkReader) Resume(have int64, sum [sha256.Size]byte) (int64, error) {
	if r.begun {
		return 0, errBegun
	}
	r.begun = true
	if err := r.offer(offer{have, sum}); err != nil {
		r.err = fmt.Errorf("receive snapshot: %w", err)
		return 0, r.err
	}
	for {
		h, control, _, err := r.frames.next(r.timeout, r.timeout)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		switch {
		case err != nil:
			r.err = fmt.Errorf("receive snapshot: %w", err)
			return 0, r.err
		case h.Type == wire.FrameKeepalive:
		case h.Type == wire.FrameBegin && len(control) == 8:
			r.total = binary.LittleEndian.Uint64(control)
			// Anywhere else there would be a gap, or bytes would come twice.
			if r.total != 0 && r.total != uint64(have) {
				r.err = refuse("wrong beginning", "receive snapshot: it begins at %d, but %d bytes are here", r.total, have)
				return 0, r.err
			}
			return int64(r.total), nil
		default:
			r.err = refuse("unexpected frame", "receive snapshot: frame type %d of %d bytes before its beginning", h.Type, len(control))
			return 0, r.err
		}
	}
}
