// Package wire is the encoding of messages that the transports share.
//
// Everything travels in frames. A frame is a fixed header, a control part that the header's checksum covers, and log entries as
// the very bytes that lie in the logs, which carry checksums of their own:
//
//	 0  uint32  length of control part and entries together
//	 4  uint32  length of the control part
//	 8  uint8   type
//	 9  uint8   flags, zero
//	10  uint16  zero
//	12  uint32  group, zero: kept for processes that run many clusters over one connection
//	16  uint32  CRC32C of the control part
//	20  uint32  CRC32C of the 20 bytes before
//
// All numbers are little-endian.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// HeaderSize is the length of a frame's header in bytes.
const HeaderSize = 24

// FrameType says what a frame is for. The numbers are on the wire and never change.
type FrameType uint8

// The frame types.
const (
	FrameMessage   FrameType = 1  // one raft.Message
	FrameKeepalive FrameType = 2  // nothing: the sender is alive
	FrameHello     FrameType = 3  // the dialer introduces itself
	FrameWelcome   FrameType = 4  // the acceptor agrees, and introduces itself
	FrameRefusal   FrameType = 5  // the acceptor does not agree: a text
	FrameChunk     FrameType = 6  // a piece of a snapshot's content
	FrameEnd       FrameType = 7  // the snapshot is complete: its length
	FrameAck       FrameType = 8  // what became of the snapshot
	FrameOffer     FrameType = 9  // how much of its content the receiver has, and the SHA-256 of that
	FrameBegin     FrameType = 10 // where the chunks that follow begin
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Errors of decoders. They are constants, so that they can serve as labels.
var (
	ErrHeaderChecksum  = errors.New("frame header checksum does not match")
	ErrControlChecksum = errors.New("frame checksum does not match")
	ErrOversized       = errors.New("frame is larger than allowed")
	ErrMalformed       = errors.New("frame is malformed")
)

// Header describes a frame.
type Header struct {
	Type    FrameType
	Group   uint32
	Control int // length of the control part
	Entries int // length of the entries behind it

	sum uint32
}

// putHeader writes the header of a frame with that control part and that many bytes of entries.
func putHeader(h []byte, t FrameType, control []byte, entries int) {
	binary.LittleEndian.PutUint32(h[0:], uint32(len(control)+entries))
	binary.LittleEndian.PutUint32(h[4:], uint32(len(control)))
	h[8] = byte(t)
	binary.LittleEndian.PutUint32(h[16:], crc32.Checksum(control, castagnoli))
	binary.LittleEndian.PutUint32(h[20:], crc32.Checksum(h[:20], castagnoli))
}

// AppendFrame appends a frame without entries.
func AppendFrame(b []byte, t FrameType, control []byte) []byte {
	var h [HeaderSize]byte
	putHeader(h[:], t, control, 0)
	return append(append(b, h[:]...), control...)
}

// ParseHeader reads the header at the start of b and refuses a frame with more than maxFrame bytes behind it.
func ParseHeader(b []byte, maxFrame int) (Header, error) {
	if len(b) < HeaderSize {
		return Header{}, fmt.Errorf("%w: header is cut off", ErrMalformed)
	}
	if crc32.Checksum(b[:20], castagnoli) != binary.LittleEndian.Uint32(b[20:]) {
		return Header{}, ErrHeaderChecksum
	}
	length, control := binary.LittleEndian.Uint32(b[0:]), binary.LittleEndian.Uint32(b[4:])
	h := Header{
		Type:  FrameType(b[8]),
		Group: binary.LittleEndian.Uint32(b[12:]),
		sum:   binary.LittleEndian.Uint32(b[16:]),
	}
	switch {
	case uint64(length) > uint64(maxFrame):
		return Header{}, fmt.Errorf("%w: %d bytes, at most %d", ErrOversized, length, maxFrame)
	case control > length:
		return Header{}, fmt.Errorf("%w: control part is longer than the frame", ErrMalformed)
	case b[9] != 0 || b[10] != 0 || b[11] != 0:
		return Header{}, fmt.Errorf("%w: unknown flags: sent by a newer release?", ErrMalformed)
	case h.Group != 0:
		return Header{}, fmt.Errorf("%w: group %d is not known here", ErrMalformed, h.Group)
	}
	h.Control, h.Entries = int(control), int(length-control)
	return h, nil
}

// Check verifies the control part of the frame.
func (h Header) Check(control []byte) error {
	if len(control) != h.Control || crc32.Checksum(control, castagnoli) != h.sum {
		return ErrControlChecksum
	}
	return nil
}
