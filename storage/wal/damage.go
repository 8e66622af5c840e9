package wal

import (
	"encoding/binary"
	"slices"

	"github.com/steadyraft/raft"
)

// stretch is a number of consecutive entries that have something in common: they are damaged, or they were repaired.
type stretch struct {
	first, last  raft.Index
	mayConfigure bool // damaged: there may be a configuration among them
	seg          *segment
	offset       int64 // of the batch: where the damage begins, or of the repair
}

func (s *stretch) damage() raft.Damage {
	return raft.Damage{First: s.first, Last: s.last, MayConfigure: s.mayConfigure}
}

// without takes the entries first to last out of a list of stretches.
func without(list []stretch, first, last raft.Index) []stretch {
	if !slices.ContainsFunc(list, func(s stretch) bool { return s.first <= last && s.last >= first }) {
		return list
	}
	var rest []stretch
	for _, s := range list {
		left, right := s, s
		left.last, right.first = min(s.last, first-1), max(s.first, last+1)
		if s.first < first {
			rest = append(rest, left)
		}
		if s.last > last {
			rest = append(rest, right)
		}
	}
	return rest
}

// stretchAt returns the stretch that holds an entry, or the first one behind it; nil if there is none.
func stretchAt(list []stretch, index raft.Index) *stretch {
	n, _ := slices.BinarySearchFunc(list, index, func(s stretch, i raft.Index) int {
		if s.last < i {
			return -1
		}
		return 1
	})
	if n == len(list) {
		return nil
	}
	return &list[n]
}

// salvaged is what is left of a batch whose fixed header is intact, and whose rest is not.
type salvaged struct {
	entries []raft.Entry // intact ones, rising; they share the batch's bytes
	repairs []raft.Entry
	lost    []stretch        // the batch's other entries
	terms   []raft.TermStart // of all its entries; nil if they cannot be known
	table   bool             // vote, fence and page records are intact
}

// salvage finds the entries of a damaged batch that are intact. b is the batch, or what is left of it. No entry is looked for at a place
// that a payload could claim: frames follow each other from the start, and where one's length is unreadable, a page record tells where
// the next one begins. What an entry's own checksums cover counts as intact if its ID is certain: where the batch holds more than one
// term, its pages must be intact, too, since an older sector might hold an entry of the same index and another term.
func (h *batchHeader) salvage(b []byte) (s salvaged) {
	var table []byte
	if len(b) >= h.headerLen && checksum(b[batchFixedSize:h.headerLen]) == h.tableCRC {
		h.readWords(b)
		table = b[batchFixedSize+h.words() : h.headerLen-headerMarkerLen]
	}
	s.table = table != nil
	oneTerm := h.firstTerm == h.last.Term
	certain := func(at, n int) bool {
		for p := at / pageSize; !oneTerm && p*pageSize < at+n; p++ {
			if table == nil || p*pageSize >= len(b) {
				return false
			}
			if crc, _ := pageChecksum(b, p, h.headerLen); crc != binary.LittleEndian.Uint32(table[p*pageRecordSize:]) {
				return false
			}
		}
		return true
	}

	var headers []raft.EntryID // of the batch's entries, as far as they are readable
	others := map[raft.Index]bool{}
	body := b[:min(int64(len(b)), h.size())]
	if h.keyID != 0 { // as a whole or not at all: whatever reads like a frame there is not authentic
		body = nil
	}
	at, next, repaired, jumped := h.headerLen, h.prev.Index+1, raft.Index(0), false
	for at < len(body) {
		n, id, err := raft.EntryFrameSize(body[at:])
		isRepair := id.Index <= h.prev.Index
		switch {
		case err != nil || int64(at+n) > h.size():
			n = 0
		case isRepair && (h.repairs == 0 || id.Index <= repaired || next <= h.last.Index && !jumped):
			n = 0
		case !isRepair && (id.Index < next || id.Index > h.last.Index || id.Index > next && !jumped || repaired > 0):
			n = 0
		case !isRepair && (id.Term < h.firstTerm || id.Term > h.last.Term):
			n = 0
		}
		if n == 0 { // the next frame of which the place is known
			if at, jumped = nextFrame(table, at), true; at == 0 {
				break
			}
			continue
		}
		e, _, err := raft.DecodeEntry(body[at:])
		switch {
		case isRepair:
			if repaired = id.Index; err == nil {
				s.repairs = append(s.repairs, e)
			}
		default:
			if certain(at, raft.EntryHeaderSize) {
				headers = append(headers, id)
				if body[at+6] != byte(raft.EntryConfiguration) {
					others[id.Index] = true
				}
			}
			if err == nil && certain(at, n) {
				s.entries = append(s.entries, e)
			}
			next = id.Index + 1
		}
		at, jumped = at+n, false
	}
	if h.count == 0 {
		return s
	}
	s.terms = h.termsOf(headers)
	next = h.prev.Index + 1
	for i := 0; i <= len(s.entries); i++ {
		end := h.last.Index + 1
		if i < len(s.entries) {
			end = s.entries[i].Index
		}
		if end > next {
			lost := stretch{first: next, last: end - 1}
			for index := next; index < end && h.has(flagConfiguration); index++ {
				lost.mayConfigure = lost.mayConfigure || !others[index]
			}
			s.lost = append(s.lost, lost)
		}
		next = end + 1
	}
	return s
}

// nextFrame returns where the first entry begins that does so in a page behind the one of at; 0 if that is not known.
func nextFrame(table []byte, at int) int {
	for p := at/pageSize + 1; (p+1)*pageRecordSize <= len(table); p++ {
		if first := int(binary.LittleEndian.Uint16(table[p*pageRecordSize+5:])); first < pageSize {
			return p*pageSize + first
		}
	}
	return 0
}

// termsOf returns the terms of a batch's entries, where known are the IDs of some of them, rising; nil if another one may have one of
// several terms.
func (h *batchHeader) termsOf(known []raft.EntryID) (terms []raft.TermStart) {
	have := raft.EntryID{Term: h.firstTerm, Index: h.prev.Index + 1}
	terms = []raft.TermStart{{Index: have.Index, Term: have.Term}}
	for _, id := range append(known, h.last) {
		switch {
		case id.Index == have.Index && id.Term != have.Term || id.Term < have.Term:
			return nil
		case id.Term != have.Term && id.Index != have.Index+1:
			return nil
		case id.Term != have.Term:
			terms = append(terms, raft.TermStart{Index: id.Index, Term: id.Term})
		}
		have = id
	}
	return terms
}
