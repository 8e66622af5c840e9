package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
)

const (
	segmentMagic      = "raft-wal"
	segmentFormat     = 1
	segmentHeaderSize = 2 * pageSize // two copies; the first batch follows
	segmentFixedSize  = 192
	segmentSuffix     = ".wal"
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
}

// encode returns one copy, one page long.
func (h *segmentHeader) encode() []byte {
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
	le.PutUint64(b[176:], uint64(h.size))
	// The key ID before the size, and what lies between it and the names, are zero.
	names := b[segmentFixedSize:segmentFixedSize]
	for _, name := range []string{h.identity.Cluster, string(h.identity.Node), string(h.hardState.VotedFor)} {
		names = binary.LittleEndian.AppendUint16(names, uint16(len(name)))
		names = append(names, name...)
	}
	end := segmentFixedSize + len(names)
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
		return h, fmt.Errorf("segment format %d, want %d: written by a newer release?", v, segmentFormat)
	}
	if !isZero(b[172:176]) || !isZero(b[184:segmentFixedSize]) {
		return h, errors.New("segment has a key ID or unknown fields: written by a newer release?")
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

	var names [3]string
	rest := b[segmentFixedSize:end]
	for i := range names {
		if len(rest) < 2 || len(rest)-2 < int(le.Uint16(rest)) {
			return h, errors.New("names in the segment header are cut off")
		}
		n := int(le.Uint16(rest))
		names[i], rest = string(rest[2:2+n]), rest[2+n:]
	}
	h.identity.Cluster, h.identity.Node, h.hardState.VotedFor = names[0], raft.NodeID(names[1]), raft.NodeID(names[2])
	if len(rest) > 0 || h.prevSeq >= h.seq || h.prevEnd < 0 || h.size < 0 {
		return h, errors.New("segment header is impossible")
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
}

// readHeader reads the header of a segment, from whichever copy is intact. damaged tells about the other one.
func readHeader(f vfs.File, path string) (h segmentHeader, damaged error, err error) {
	b := make([]byte, segmentHeaderSize)
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return h, nil, fmt.Errorf("read segment header: %w", err)
	}
	b = b[:n]
	h, first := decodeSegmentHeader(b)
	var second error
	if len(b) < segmentHeaderSize {
		second = errors.New("segment header is cut off")
	} else if other, otherErr := decodeSegmentHeader(b[pageSize:]); otherErr != nil {
		second = otherErr
	} else if first != nil {
		h = other
	} else if other != h {
		second = errors.New("the two copies of the segment header differ")
		first = second
	}
	if first != nil && second != nil {
		return h, nil, &raft.CorruptionError{
			Path: path, Reason: fmt.Sprintf("both copies of the segment header are unreadable: %v", first), Next: nextVerify,
		}
	}
	return h, errors.Join(inCopy(path, 0, first), inCopy(path, pageSize, second)), nil
}

// inCopy says where the damaged copy of a header is.
func inCopy(path string, offset int64, err error) error {
	if err == nil {
		return nil
	}
	return &raft.CorruptionError{Path: path, Offset: offset, Reason: err.Error()}
}
