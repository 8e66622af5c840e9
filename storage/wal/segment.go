package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/internal/seal"
	"github.com/steadyraft/raft/storage/vfs"
)

const (
	segmentMagic      = "raft-wal"
	segmentFormat     = 2
	segmentHeaderSize = 2 * pageSize // two copies; the first batch follows
	segmentFixedSize  = 208
	segmentSuffix     = ".wal"
	maxHeaderTerms    = 128
)

// segmentHeader stands at the start of a segment, twice. It says all that must outlive the segments before.
type segmentHeader struct {
	tag      segmentTag
	seq      uint64
	size     int64 // of the file, until it is sealed: a shorter one has been cut off
	identity raft.Identity

	// The segment before that holds batches, and how much of it counts: whatever lies behind prevEnd was never acknowledged.
	prevSeq uint64 // 0: none
	prevEnd int64

	// The state before the first batch.
	lastBatch uint64       // sequence number of the batch before
	chain     uint32       // its chain value
	before    span         // its entries
	last      raft.EntryID // the log's end, and the base of this segment
	hardState raft.HardState
	snapshot  raft.EntryID // of the last installed snapshot
	config    raft.EntryID // of the last configuration entry
	fence     raft.EntryID

	keyID uint32 // 0: the segment is not encrypted
	check [seal.CheckSize]byte

	terms []raft.TermStart // of the log, at most the last ones: by them it is known what was in front, should that be lost
}

// encode returns one copy, one page long. s is nil if the segment is not encrypted.
func (h *segmentHeader) encode(s *sealer) []byte {
	b := vfs.Aligned(pageSize)
	le := binary.LittleEndian
	copy(b, segmentMagic)
	le.PutUint32(b[8:], segmentFormat)
	copy(b[16:], h.tag[:])
	le.PutUint64(b[32:], h.seq)
	le.PutUint64(b[40:], uint64(h.identity.Replica))
	le.PutUint64(b[48:], h.identity.Incarnation)
	le.PutUint64(b[56:], h.prevSeq)
	le.PutUint64(b[64:], uint64(h.prevEnd))
	le.PutUint64(b[72:], h.lastBatch)
	putID(b[80:], h.before.first)
	putID(b[96:], h.before.last)
	putID(b[112:], h.last)
	putID(b[128:], h.snapshot)
	putID(b[144:], h.config)
	le.PutUint64(b[160:], uint64(h.hardState.CurrentTerm))
	le.PutUint32(b[168:], h.chain)
	le.PutUint32(b[172:], h.keyID)
	le.PutUint64(b[176:], uint64(h.size))
	copy(b[184:], h.check[:])
	putID(b[192:], h.fence)
	names := b[segmentFixedSize:segmentFixedSize]
	for _, name := range []string{h.identity.Cluster, string(h.identity.Node), string(h.hardState.VotedFor)} {
		names = binary.LittleEndian.AppendUint16(names, uint16(len(name)))
		names = append(names, name...)
	}
	terms := h.terms[max(0, len(h.terms)-maxHeaderTerms):]
	names = binary.LittleEndian.AppendUint16(names, uint16(len(terms)))
	for _, t := range terms {
		names = binary.LittleEndian.AppendUint64(names, uint64(t.Term))
		names = binary.LittleEndian.AppendUint64(names, uint64(t.Index))
	}
	end := segmentFixedSize + len(names)
	if s != nil {
		le.PutUint32(b[12:], uint32(end+seal.MACSize))
		mac := s.key.MAC(b[:end])
		end += copy(b[end:], mac[:])
	}
	le.PutUint32(b[12:], uint32(end))
	le.PutUint32(b[end:], checksum(b[:end]))
	return b
}

// decodeSegmentHeader reads one copy, one page long.
func decodeSegmentHeader(b []byte) (segmentHeader, error) {
	var h segmentHeader
	le := binary.LittleEndian
	if len(b) < pageSize {
		return h, errors.New("segment header is cut off")
	}
	b = b[:pageSize]
	if string(b[:8]) != segmentMagic {
		return h, errors.New("no segment header")
	}
	end := int(le.Uint32(b[12:]))
	if end < segmentFixedSize || end > pageSize-4 || checksum(b[:end]) != le.Uint32(b[end:]) {
		return h, errors.New("segment header checksum does not match")
	}
	if v := le.Uint32(b[8:]); v != segmentFormat {
		return h, impossible("segment format %d, want %d: written by a newer release?", v, segmentFormat)
	}
	copy(h.tag[:], b[16:])
	h.seq = le.Uint64(b[32:])
	h.identity.Replica = raft.ReplicaID(le.Uint64(b[40:]))
	h.identity.Incarnation = le.Uint64(b[48:])
	h.prevSeq = le.Uint64(b[56:])
	h.prevEnd = int64(le.Uint64(b[64:]))
	h.lastBatch = le.Uint64(b[72:])
	h.before = span{first: getID(b[80:]), last: getID(b[96:])}
	h.last = getID(b[112:])
	h.snapshot = getID(b[128:])
	h.config = getID(b[144:])
	h.hardState.CurrentTerm = raft.Term(le.Uint64(b[160:]))
	h.chain = le.Uint32(b[168:])
	h.size = int64(le.Uint64(b[176:]))
	h.keyID = le.Uint32(b[172:])
	copy(h.check[:], b[184:])
	h.fence = getID(b[192:])
	if h.keyID == 0 && !isZero(h.check[:]) {
		return h, impossible("segment has unknown fields: written by a newer release?")
	}

	var names [3]string
	rest := b[segmentFixedSize:h.authenticated(end)]
	for i := range names {
		if len(rest) < 2 || len(rest)-2 < int(le.Uint16(rest)) {
			return h, impossible("names in the segment header are cut off")
		}
		n := int(le.Uint16(rest))
		names[i], rest = string(rest[2:2+n]), rest[2+n:]
	}
	h.identity.Cluster, h.identity.Node, h.hardState.VotedFor = names[0], raft.NodeID(names[1]), raft.NodeID(names[2])
	if len(rest) < 2 || len(rest)-2 != 16*int(le.Uint16(rest)) {
		return h, impossible("terms in the segment header are cut off")
	}
	for rest = rest[2:]; len(rest) > 0; rest = rest[16:] {
		id := getID(rest)
		h.terms = append(h.terms, raft.TermStart{Index: id.Index, Term: id.Term})
	}
	if h.prevSeq >= h.seq || h.prevEnd < 0 || h.size < 0 {
		return h, impossible("segment header is impossible")
	}
	return h, nil
}

func segmentName(seq uint64) string { return fmt.Sprintf("%016x%s", seq, segmentSuffix) }

// parseSegmentName returns the sequence number in a segment's file name.
func parseSegmentName(name string) (uint64, bool) {
	var seq uint64
	if _, err := fmt.Sscanf(name, "%016x"+segmentSuffix, &seq); err != nil || segmentName(seq) != name {
		return 0, false
	}
	return seq, true
}

// segment is what is remembered about one file of the log.
type segment struct {
	seq  uint64
	path string
	tag  segmentTag
	end  int64 // behind the last batch

	baseBatch uint64 // the batch in front of the first one, and its chain value
	baseChain uint32

	sealer *sealer // nil: not encrypted
}

// readHeader reads the header of a segment, from whichever copy is intact. damaged tells about the other one. A copy that is another
// segment's is not intact, unless both are. authenticate says whether a copy whose checksum is right is ours.
func readAuthenticHeader(f vfs.File, path string, authenticate func(at int64, h *segmentHeader, page []byte) error,
) (h segmentHeader, damaged error, err error) {
	b := make([]byte, segmentHeaderSize)
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return h, nil, fmt.Errorf("read segment header: %w", err)
	}
	b = b[:n]
	if err := authenticCopies(path, b, authenticate); err != nil {
		return h, nil, err
	}
	seq, _ := parseSegmentName(filepath.Base(path))
	var copies [2]segmentHeader
	var errs [2]error
	for i := range copies {
		copies[i], errs[i] = decodeSegmentHeader(b[min(n, i*pageSize):])
	}
	for i := range copies {
		if errs[0] == nil && errs[1] == nil && copies[i].seq != seq && copies[1-i].seq == seq {
			errs[i] = fmt.Errorf("segment header of segment %d", copies[i].seq)
		}
	}
	h = copies[0]
	switch {
	case errs[0] == nil && errs[1] == nil:
		if end := binary.LittleEndian.Uint32(b[12:]) + 4; !bytes.Equal(b[:end], b[pageSize:pageSize+end]) {
			errs[0] = errors.New("the two copies of the segment header differ")
			errs[1] = errs[0]
		}
	case errs[0] != nil:
		h = copies[1]
	}
	if errs[0] != nil && errs[1] != nil {
		return h, nil, &raft.CorruptionError{
			Path: path, Reason: fmt.Sprintf("both copies of the segment header are unreadable: %v", errs[0]), Next: nextVerify,
		}
	}
	return h, errors.Join(inCopy(path, 0, errs[0]), inCopy(path, pageSize, errs[1])), nil
}

// inCopy says where the damaged copy of a header is.
func inCopy(path string, offset int64, err error) error {
	if err == nil {
		return nil
	}
	return &raft.CorruptionError{Path: path, Offset: offset, Reason: err.Error()}
}
