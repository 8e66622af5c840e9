package wal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/internal/seal"
	"github.com/steadyraft/raft/storage/vfs"
)

// Units of the format.
const (
	sectorSize = 512  // what a disk writes as a whole; batches begin at multiples of it
	pageSize   = 4096 // what one checksum of a batch's body covers
	maxName    = 255  // of cluster, node and vote, in bytes
)

const (
	batchMagic      = 0x31425253 // "SRB1"
	batchFixedSize  = 192
	pageRecordSize  = 7
	batchEndMarker  = 0xA5
	maxBatchSize    = 1 << 32 // a batch that claims more is damaged, whatever its checksum says
	batchTableCRC   = 172
	batchHeaderCRC  = 184
	headerMarkerLen = 1
	fenceSize       = 16     // of the entry ID behind the vote, with flagFence
	noFrame         = 0xFFFF // in a page record: no entry begins in the page
)

// Flags of a batch.
const (
	flagHardState     = 1 << iota // term and vote are set
	flagTruncate                  // entries from truncateFrom on are gone
	flagSnapshot                  // the log begins behind the snapshot ID
	flagKeepSuffix                // ... and goes on with the entries that were there behind it
	flagIdle                      // no batch, only a word on the one before: it is synced
	flagConfiguration             // at least one entry, or repaired one, is a configuration
	flagFence                     // the fence is replaced
	knownFlags        = flagHardState | flagTruncate | flagSnapshot | flagKeepSuffix | flagIdle | flagConfiguration | flagFence
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// segmentTag is a random number that names one segment. It stands in every batch, so that bytes of another file, or of an earlier
// use of the same blocks, never pass for a batch of this one.
type segmentTag [16]byte

// span names the first and the last entry of a batch; zero if it has none.
type span struct{ first, last raft.EntryID }

// batchHeader is the fixed part of a batch, and the vote behind it.
type batchHeader struct {
	headerLen     int // fixed part, vote, fence, page records and marker
	voteLen       int
	tag           segmentTag
	seq           uint64 // of this batch, over the whole life of the directory; of the batch before, in an idle record
	offset        int64  // in the segment
	bodyLen       int64
	flags         uint16
	count         int
	repairs       int    // entries behind those, each in the place of a damaged one with the same ID
	syncedThrough uint64 // all batches up to this were durable before this one was written
	hardState     raft.HardState
	truncateFrom  raft.Index
	snapshot      raft.EntryID
	fence         raft.EntryID
	prev          raft.EntryID // the entry before the first of this batch: the log's end after truncation
	last          raft.EntryID // the log's end after this batch
	firstTerm     raft.Term    // of the first entry; 0 if there is none
	before        span         // of the batch before this one
	prevChain     uint32       // chain value of the batch before
	tableCRC      uint32       // of vote, page records and marker
	chain         uint32       // of this batch: its header's checksum, which covers prevChain
	keyID         uint32       // 0: not encrypted; otherwise a tag ends the words, and another one the body
}

func (h *batchHeader) has(flag uint16) bool { return h.flags&flag != 0 }

// words is the length of what stands between the fixed part and the page records: vote, fence, and the header's authentication tag. It
// lies in the first sector as a whole.
func (h *batchHeader) words() int {
	n := h.voteLen + int(h.overhead())
	if h.has(flagFence) {
		n += fenceSize
	}
	return n
}

// overhead is what encryption adds to the entries in the body, and to the words.
func (h *batchHeader) overhead() int64 {
	if h.keyID == 0 {
		return 0
	}
	return seal.Overhead
}

// frames returns the entries of a verified batch.
func (h *batchHeader) frames(b []byte) []byte { return b[h.headerLen : h.size()-h.overhead()] }

// size is the length of header and body, without the padding up to the next sector.
func (h *batchHeader) size() int64 { return int64(h.headerLen) + h.bodyLen }

// end is the offset behind the batch, where the next one begins.
func (h *batchHeader) end() int64 { return h.offset + roundUp(h.size(), sectorSize) }

func (h *batchHeader) span() span {
	if h.count == 0 {
		return span{}
	}
	return span{first: raft.EntryID{Term: h.firstTerm, Index: h.prev.Index + 1}, last: h.last}
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// headerSize returns the length of the header of a batch with that much of vote and fence and that body, and the number of its pages:
// the table has a record for each page that the batch, its own header included, reaches into.
func headerSize(words int, body int64) (size, pages int) {
	base := batchFixedSize + int64(words) + headerMarkerLen + body
	n := roundUp(base, pageSize) / pageSize
	for n*pageSize < base+n*pageRecordSize {
		n++
	}
	return batchFixedSize + words + int(n)*pageRecordSize + headerMarkerLen, int(n)
}

// encodeBatch encodes a batch into buf, or into a larger buffer if it does not fit, and returns it padded to whole sectors. h.bodyLen
// is the size of all entries and repairs, and of a tag if the batch is encrypted: then h.keyID is set, and s is not nil. It completes h.
func encodeBatch(buf []byte, h *batchHeader, entries, repairs []raft.Entry, s *sealer) []byte {
	var pages int
	h.voteLen = len(h.hardState.VotedFor)
	h.headerLen, pages = headerSize(h.words(), h.bodyLen)
	total := roundUp(h.size(), sectorSize)
	if int64(cap(buf)) < total {
		buf = vfs.Aligned(int(max(total, 2*int64(cap(buf)))))
	}
	buf = buf[:total]

	table := buf[batchFixedSize+h.words() : h.headerLen]
	at, page := h.headerLen, 0 // pages before this one have their first frame in the table
	for _, list := range [][]raft.Entry{entries, repairs} {
		for i := range list {
			for ; page*pageSize <= at; page++ {
				first := noFrame
				if at < (page+1)*pageSize {
					first = at - page*pageSize
				}
				binary.LittleEndian.PutUint16(table[page*pageRecordSize+5:], uint16(first))
			}
			at += copy(buf[at:], list[i].Frame())
		}
	}
	for ; page < pages; page++ {
		binary.LittleEndian.PutUint16(table[page*pageRecordSize+5:], noFrame)
	}
	clear(buf[at:])

	n := copy(buf[batchFixedSize:], h.hardState.VotedFor)
	if h.has(flagFence) {
		putID(buf[batchFixedSize+n:], h.fence)
	}
	if s != nil {
		for p := range pages { // no frame can be read alone
			binary.LittleEndian.PutUint16(table[p*pageRecordSize+5:], noFrame)
		}
		s.seal(h, buf)
	}
	for p := range pages {
		crc, used := pageChecksum(buf, p, h.headerLen)
		binary.LittleEndian.PutUint32(table[p*pageRecordSize:], crc)
		table[p*pageRecordSize+4] = used
	}
	table[len(table)-1] = batchEndMarker
	h.tableCRC = checksum(buf[batchFixedSize:h.headerLen])
	h.encode(buf)
	le := binary.LittleEndian
	le.PutUint32(buf[batchTableCRC:], h.tableCRC)
	h.chain = checksum(buf[:batchHeaderCRC])
	le.PutUint32(buf[batchHeaderCRC:], h.chain)
	return buf
}

// encode writes all of the fixed part but its two checksums.
func (h *batchHeader) encode(b []byte) {
	le := binary.LittleEndian
	clear(b[:batchFixedSize])
	le.PutUint32(b[0:], batchMagic)
	le.PutUint32(b[4:], uint32(h.headerLen))
	copy(b[8:], h.tag[:])
	le.PutUint64(b[24:], h.seq)
	le.PutUint64(b[32:], uint64(h.offset))
	le.PutUint64(b[40:], uint64(h.bodyLen))
	le.PutUint16(b[48:], h.flags)
	le.PutUint16(b[50:], uint16(len(h.hardState.VotedFor)))
	le.PutUint32(b[52:], uint32(h.count))
	le.PutUint64(b[56:], h.syncedThrough)
	le.PutUint64(b[64:], uint64(h.hardState.CurrentTerm))
	le.PutUint64(b[72:], uint64(h.truncateFrom))
	putID(b[80:], h.snapshot)
	putID(b[96:], h.prev)
	putID(b[112:], h.last)
	le.PutUint64(b[128:], uint64(h.firstTerm))
	putID(b[136:], h.before.first)
	putID(b[152:], h.before.last)
	le.PutUint32(b[168:], h.prevChain)
	le.PutUint32(b[176:], h.keyID)
	le.PutUint32(b[180:], uint32(h.repairs))
}

// decodeBatchHeader reads the fixed part of a batch, at least batchFixedSize bytes. Vote and fence are not filled in: see readWords.
func decodeBatchHeader(b []byte) (h batchHeader, err error) {
	le := binary.LittleEndian
	if len(b) < batchFixedSize {
		return h, fmt.Errorf("batch header is cut off")
	}
	if le.Uint32(b[0:]) != batchMagic {
		return h, fmt.Errorf("no batch begins here")
	}
	h.chain = le.Uint32(b[batchHeaderCRC:])
	if checksum(b[:batchHeaderCRC]) != h.chain {
		return h, fmt.Errorf("batch header checksum does not match")
	}
	h.headerLen = int(le.Uint32(b[4:]))
	copy(h.tag[:], b[8:])
	h.seq = le.Uint64(b[24:])
	h.offset = int64(le.Uint64(b[32:]))
	h.bodyLen = int64(le.Uint64(b[40:]))
	h.flags = le.Uint16(b[48:])
	h.voteLen = int(le.Uint16(b[50:]))
	h.count = int(le.Uint32(b[52:]))
	h.syncedThrough = le.Uint64(b[56:])
	h.hardState.CurrentTerm = raft.Term(le.Uint64(b[64:]))
	h.truncateFrom = raft.Index(le.Uint64(b[72:]))
	h.snapshot = getID(b[80:])
	h.prev = getID(b[96:])
	h.last = getID(b[112:])
	h.firstTerm = raft.Term(le.Uint64(b[128:]))
	h.before = span{first: getID(b[136:]), last: getID(b[152:])}
	h.prevChain = le.Uint32(b[168:])
	h.tableCRC = le.Uint32(b[batchTableCRC:])
	h.keyID = le.Uint32(b[176:])
	h.repairs = int(le.Uint32(b[180:]))

	if le.Uint32(b[188:]) != 0 { // no checksum covers it
		return h, fmt.Errorf("batch header has bytes where there are none")
	}
	if h.flags&^knownFlags != 0 {
		return h, impossible("batch has unknown flags %#x: written by a newer release?", h.flags)
	}
	if h.voteLen > maxName || h.bodyLen < h.overhead() || h.bodyLen > maxBatchSize {
		return h, impossible("batch header has impossible lengths %d and %d", h.voteLen, h.bodyLen)
	}
	if want, _ := headerSize(h.words(), h.bodyLen); h.headerLen != want {
		return h, impossible("batch header is %d bytes long, want %d", h.headerLen, want)
	}
	n, frames := h.count+h.repairs, h.bodyLen-h.overhead()
	if h.count < 0 || h.repairs < 0 || n < 0 || int64(n) > frames/raft.EntryHeaderSize || (n == 0) != (frames == 0) {
		return h, impossible("batch claims %d entries in %d bytes", n, frames)
	}
	if h.last.Index != h.prev.Index+raft.Index(h.count) {
		return h, impossible("batch of %d entries leads from %v to %v", h.count, h.prev, h.last)
	}
	return h, nil
}

// readWords fills in vote and fence. b is the batch; the checksum that covers them was verified.
func (h *batchHeader) readWords(b []byte) {
	h.hardState.VotedFor = raft.NodeID(b[batchFixedSize:][:h.voteLen])
	if h.has(flagFence) {
		h.fence = getID(b[batchFixedSize+h.voteLen:])
	}
}

// verdict says what the bytes of a batch are worth.
type verdict struct {
	reason string // "": intact
	// torn: every damaged piece shows sectors that were never written. Otherwise bytes were changed after they were written.
	torn bool
	page bool // only pages of the body do not match
	// forged: checksums are right over what cannot be. Without encryption that is damage like any other.
	forged bool
}

func intact() verdict                 { return verdict{} }
func torn(reason string) verdict      { return verdict{reason: reason, torn: true} }
func corrupted(reason string) verdict { return verdict{reason: reason} }

// verifyBatch checks vote, fence, page records and body of a batch whose fixed header is intact, and fills in vote and fence. b is the
// whole batch with its padding.
func verifyBatch(h *batchHeader, b []byte) verdict {
	variable := b[batchFixedSize:h.headerLen] // the table, and the words before it
	if checksum(variable) != h.tableCRC {
		// No sector of a header is ever all zero: each holds the magic, a page record, or the marker at the end.
		for s := sectorSize; s < h.headerLen; s += sectorSize {
			if isZero(b[s:min(s+sectorSize, len(b))]) {
				return torn("part of the batch header was never written")
			}
		}
		return corrupted("checksum of the batch's page table does not match")
	}
	if variable[len(variable)-1] != batchEndMarker {
		return verdict{reason: "batch header does not end in its marker", forged: true}
	}
	h.readWords(b)
	table := variable[h.words():]
	result := intact()
	for p := 0; p*pageSize < len(b); p++ {
		record := table[p*pageRecordSize:][:pageRecordSize]
		crc, used := pageChecksum(b, p, h.headerLen)
		if crc == binary.LittleEndian.Uint32(record) {
			if used != record[4] || h.keyID != 0 && binary.LittleEndian.Uint16(record[5:]) != noFrame {
				return verdict{reason: fmt.Sprintf("page %d of batch %d matches its checksum and not the rest of its record", p, h.seq), forged: true}
			}
			continue
		}
		if !lostSector(b, p, h.headerLen, record[4]) {
			return verdict{reason: fmt.Sprintf("page %d of batch %d does not match its checksum", p, h.seq), page: true}
		}
		result = torn(fmt.Sprintf("page %d of batch %d was not written completely", p, h.seq))
	}
	return result
}

// pageChecksum returns the checksum of the body's part in page p of a batch, and which of the page's sectors are not all zero:
// bit i for sector i. Sectors that hold a part of the header never are.
func pageChecksum(batch []byte, p, headerLen int) (crc uint32, used byte) {
	from, to := p*pageSize, min((p+1)*pageSize, len(batch))
	body := max(from, min(headerLen, to))
	for s := from; s < to; s += sectorSize {
		if s < headerLen || !isZero(batch[s:min(s+sectorSize, to)]) {
			used |= 1 << ((s - from) / sectorSize)
		}
	}
	return checksum(batch[body:to]), used
}

// lostSector reports whether a sector of page p reads all zero although it was not written so.
func lostSector(batch []byte, p, headerLen int, used byte) bool {
	from, to := p*pageSize, min((p+1)*pageSize, len(batch))
	for s := from; s < to; s += sectorSize {
		if used&(1<<((s-from)/sectorSize)) != 0 && isZero(batch[s:min(s+sectorSize, to)]) {
			return true
		}
	}
	return false
}

// decodeEntries hands out the entries of a verified batch, in order, and then its repairs. They share b's bytes.
func decodeEntries(h *batchHeader, b []byte, entry, repair func(e raft.Entry)) error {
	return walkEntries(h, b, raft.DecodeEntry, entry, repair)
}

// decodeBriefly decodes an entry of a verified batch without its payload's checksum: those of the pages cover the same bytes, and whoever
// reads the entry verifies both. Only a configuration is decoded as a whole; of the others there is no more than ID and type.
func decodeBriefly(b []byte) (e raft.Entry, n int, err error) {
	n, id, err := raft.EntryFrameSize(b)
	switch {
	case err != nil:
		return e, 0, err
	case n > len(b):
		return e, 0, raft.ErrShortEntry
	case raft.EntryType(b[6]) == raft.EntryConfiguration:
		return raft.DecodeEntry(b)
	}
	return raft.Entry{Term: id.Term, Index: id.Index, Type: raft.EntryType(b[6])}, n, nil
}

func walkEntries(h *batchHeader, b []byte, decode func([]byte) (raft.Entry, int, error), entry, repair func(e raft.Entry)) error {
	body := h.frames(b)
	last := h.prev
	for range h.count {
		e, n, err := decode(body)
		if err != nil {
			return err
		}
		if e.Index != last.Index+1 || e.Term < last.Term {
			return fmt.Errorf("entry %v does not follow %v", e.ID(), last)
		}
		entry(e)
		body, last = body[n:], e.ID()
	}
	if h.count > 0 && last != h.last {
		return fmt.Errorf("batch ends in entry %v, want %v", last, h.last)
	}
	last = raft.EntryID{}
	for range h.repairs {
		e, n, err := decode(body)
		if err != nil {
			return err
		}
		if e.Index <= last.Index || e.Index > h.prev.Index {
			return fmt.Errorf("repair %v stands behind %v, and the batch behind %v", e.ID(), last, h.prev)
		}
		repair(e)
		body, last = body[n:], e.ID()
	}
	if len(body) > 0 {
		return fmt.Errorf("batch has %d bytes behind its last entry", len(body))
	}
	return nil
}

func isZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func putID(b []byte, id raft.EntryID) {
	binary.LittleEndian.PutUint64(b, uint64(id.Term))
	binary.LittleEndian.PutUint64(b[8:], uint64(id.Index))
}

func getID(b []byte) raft.EntryID {
	return raft.EntryID{Term: raft.Term(binary.LittleEndian.Uint64(b)), Index: raft.Index(binary.LittleEndian.Uint64(b[8:]))}
}
