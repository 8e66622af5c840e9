package raft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
)

// EntryType says what an entry is for. The numbers are on disk and on the wire and never change.
type EntryType uint8

// The entry types. 2 and 3 are unused; library types added later start at 64.
const (
	EntryCommand       EntryType = 0 // for the state machine
	EntryNoOp          EntryType = 1 // a new leader's first entry (§8)
	EntryBarrier       EntryType = 4 // applied like a command, but carries none
	EntryConfiguration EntryType = 5 // cluster membership (§6), encoded by Configuration.AppendBinary
)

// String names the type.
func (t EntryType) String() string {
	switch t {
	case EntryCommand:
		return "command"
	case EntryNoOp:
		return "no-op"
	case EntryBarrier:
		return "barrier"
	case EntryConfiguration:
		return "configuration"
	default:
		return fmt.Sprintf("entry type %d", uint8(t))
	}
}

// EntryHeaderSize is the length of the fixed header in front of every entry's payload, in bytes:
//
//	 0  uint32  length of extensions and payload together
//	 4  uint16  length of the extensions
//	 6  uint8   type
//	 7  uint8   flags, zero
//	 8  uint64  term
//	16  uint64  index
//	24  uint32  CRC32C of extensions and payload
//	28  uint32  CRC32C of the 28 bytes before
//
// All numbers are little-endian. Header plus body are the same bytes in the leader's log, in every socket and in the followers'
// logs: an entry is framed and checksummed once, where it is proposed.
const EntryHeaderSize = 32

// MaxEntrySize bounds the extensions and the payload of one entry, whatever the configuration says. A decoder refuses more.
const MaxEntrySize = 64 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Entry is one record of the replicated log. Its bytes are immutable and may be shared by the log, the transport and the state
// machine; who wants to keep or change Data copies it.
type Entry struct {
	Term  Term
	Index Index
	Type  EntryType
	Data  []byte // the payload; a command as it was proposed

	// Header, extensions and payload; Data lies inside. Behind it, up to its capacity, may lie the frames of other entries: see EachPiece.
	frame []byte
}

// ID names the entry.
func (e *Entry) ID() EntryID { return EntryID{Term: e.Term, Index: e.Index} }

// Frame returns the entry as it is on disk and on the wire. The bytes are shared and must not be changed.
func (e *Entry) Frame() []byte { return slices.Clip(e.frame) }

// EachPiece calls f with the frames of entries, in order: those that follow each other in memory too are one piece. The bytes are shared
// and must not be changed.
func EachPiece(es []Entry, f func(piece []byte)) {
	for len(es) > 0 {
		piece, n := es[0].frame, 1
		for n < len(es) && adjoins(piece, es[n].frame) {
			piece = piece[:len(piece)+len(es[n].frame)]
			n++
		}
		f(slices.Clip(piece))
		es = es[n:]
	}
}

// adjoins reports whether b begins in memory where a ends. Both lie in one piece of memory then: a's capacity reaches over b.
func adjoins(a, b []byte) bool {
	return len(b) > 0 && cap(a)-len(a) >= len(b) && &a[:len(a)+1][len(a)] == &b[0]
}

// frameSlab is memory for the frames of commands that are proposed one after the other. So they can be sent as one piece, and cost less
// to allocate. They are forgotten one after the other too; until then the slab that one of them lies in is kept.
type frameSlab struct{ free []byte }

const (
	slabBytes    = 64 << 10
	maxSlabFrame = 4 << 10 // a longer one has memory of its own
)

// take returns zeroed memory for a frame.
func (s *frameSlab) take(size int) []byte {
	if size > maxSlabFrame {
		return make([]byte, size)
	}
	if size > len(s.free) {
		s.free = make([]byte, slabBytes)
	}
	frame := s.free[:size]
	s.free = s.free[size:]
	return frame
}

// Size is the length of the frame in bytes: what the entry costs in memory, on disk and on the wire.
func (e *Entry) Size() int { return len(e.frame) }

// Extensions returns the opaque bytes that travel with the payload. No release has written any yet.
func (e *Entry) Extensions() []byte { return e.frame[EntryHeaderSize : len(e.frame)-len(e.Data)] }

// NewCommand copies a command once into a frame and checksums it, ready to be proposed. The caller keeps cmd.
// Term and index are stamped when a leader appends the entry.
func NewCommand(cmd []byte) Entry { return newEntry(EntryCommand, cmd) }

// NewBarrier makes an entry that changes no state machine; when it is applied, everything before it has been.
func NewBarrier() Entry { return newEntry(EntryBarrier, nil) }

// NewCommands is [NewCommand] for commands that are proposed together. Their frames lie in one piece of memory: as long as one of the
// entries is kept, the bytes of all are.
func NewCommands(cmds [][]byte) []Entry {
	size := 0
	for _, cmd := range cmds {
		size += EntryHeaderSize + len(cmd)
	}
	es, slab := make([]Entry, len(cmds)), make([]byte, size)
	for i, cmd := range cmds {
		n := EntryHeaderSize + len(cmd)
		es[i] = frameEntry(EntryCommand, slab[:n], cmd)
		slab = slab[n:]
	}
	return es
}

func newEntry(t EntryType, payload []byte) Entry {
	return frameEntry(t, make([]byte, EntryHeaderSize+len(payload)), payload)
}

// frameEntry fills in the frame of a new entry, which is all zeros and as long as it has to be.
func frameEntry(t EntryType, frame, payload []byte) Entry {
	copy(frame[EntryHeaderSize:], payload)
	binary.LittleEndian.PutUint32(frame[0:], uint32(len(payload)))
	frame[6] = byte(t)
	binary.LittleEndian.PutUint32(frame[24:], crc32.Checksum(payload, castagnoli))
	e := Entry{Type: t, Data: slices.Clip(frame[EntryHeaderSize:]), frame: frame}
	e.stamp(EntryID{}) // a forwarded proposal crosses the network before it has a place in the log
	return e
}

// stamp gives an entry its place in the log. It writes into the frame, so a leader does it once, before it shares the entry.
func (e *Entry) stamp(id EntryID) {
	e.Term, e.Index = id.Term, id.Index
	binary.LittleEndian.PutUint64(e.frame[8:], uint64(id.Term))
	binary.LittleEndian.PutUint64(e.frame[16:], uint64(id.Index))
	binary.LittleEndian.PutUint32(e.frame[28:], crc32.Checksum(e.frame[:28], castagnoli))
}

// Clone returns a copy that shares no bytes with e.
func (e *Entry) Clone() Entry {
	c := *e
	c.frame = append([]byte(nil), e.frame...)
	c.Data = c.frame[len(c.frame)-len(e.Data):]
	return c
}

// ErrShortEntry says that the bytes end before the entry does.
var ErrShortEntry = errors.New("entry is cut off")

// An EntryDamage error says which part of an encoded entry does not match its checksum, or is impossible. If the header is
// intact, ID names the entry that was lost.
type EntryDamage struct {
	ID     EntryID // zero if the header is damaged
	Reason string
}

// Error describes the damage.
func (d *EntryDamage) Error() string {
	if d.ID == (EntryID{}) {
		return "entry header: " + d.Reason
	}
	return fmt.Sprintf("entry %v: %s", d.ID, d.Reason)
}

// DecodeEntry reads the entry at the start of b and verifies both checksums. The entry shares b's bytes; n is its length.
// It returns [ErrShortEntry] if b is too short, an [*EntryDamage] if the bytes are wrong, and never allocates the payload.
func DecodeEntry(b []byte) (e Entry, n int, err error) {
	if n, err = e.Decode(b); err != nil {
		return Entry{}, 0, err
	}
	return e, n, nil
}

// Decode is [DecodeEntry] into e, which means nothing after an error.
func (e *Entry) Decode(b []byte) (n int, err error) {
	n, err = e.decodeHeader(b)
	if err != nil {
		return 0, err
	}
	if n > len(b) {
		return 0, ErrShortEntry
	}
	ext := int(binary.LittleEndian.Uint16(b[4:]))
	e.frame = b[:n:n]
	e.Data = e.frame[EntryHeaderSize+ext:]
	if crc32.Checksum(e.frame[EntryHeaderSize:], castagnoli) != binary.LittleEndian.Uint32(b[24:]) {
		return 0, &EntryDamage{ID: e.ID(), Reason: "payload checksum does not match"}
	}
	return n, nil
}

// EntryFrameSize reads a header of at least EntryHeaderSize bytes, verifies it, and returns the length of the whole frame and the
// entry's identity, so that a reader knows how much to read before it allocates.
func EntryFrameSize(header []byte) (n int, id EntryID, err error) {
	var e Entry
	if n, err = e.decodeHeader(header); err != nil {
		return 0, EntryID{}, err
	}
	return n, e.ID(), nil
}

// decodeHeader verifies a header and takes type, term and index from it. n is the length of the whole frame.
func (e *Entry) decodeHeader(b []byte) (n int, err error) {
	if len(b) < EntryHeaderSize {
		return 0, ErrShortEntry
	}
	if crc32.Checksum(b[:28], castagnoli) != binary.LittleEndian.Uint32(b[28:]) {
		return 0, &EntryDamage{Reason: "header checksum does not match"}
	}
	length := binary.LittleEndian.Uint32(b[0:])
	e.Type = EntryType(b[6])
	e.Term = Term(binary.LittleEndian.Uint64(b[8:]))
	e.Index = Index(binary.LittleEndian.Uint64(b[16:]))
	switch {
	case length > MaxEntrySize:
		return 0, &EntryDamage{ID: e.ID(), Reason: fmt.Sprintf("length %d exceeds the maximum of %d", length, MaxEntrySize)}
	case uint32(binary.LittleEndian.Uint16(b[4:])) > length:
		return 0, &EntryDamage{ID: e.ID(), Reason: "extensions are longer than the entry"}
	case b[7] != 0:
		return 0, &EntryDamage{ID: e.ID(), Reason: fmt.Sprintf("unknown flags %#x: written by a newer release?", b[7])}
	}
	return EntryHeaderSize + int(length), nil
}

// EntriesSize is the sum of the frames' lengths in bytes.
func EntriesSize(es []Entry) int {
	n := 0
	for i := range es {
		n += len(es[i].frame)
	}
	return n
}
