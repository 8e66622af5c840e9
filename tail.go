package raft

import (
	"slices"
	"sort"
)

// tail is the part of the log that is in memory: consecutive entries, in chunks. Slices of a chunk are shared with writes, messages and
// clones of the core, so an entry is never changed where it lies. Nor is it moved for the log to grow, except within a chunk: moving
// all of a full tail takes milliseconds, and the server does nothing else meanwhile.
//
// Many entries that come together are a chunk as they are. So they are not copied, and are handed on in one piece.
type tail struct {
	chunks  []chunk // none is empty
	gone    int     // entries that were forgotten at the front, ever
	len     int     // entries in all chunks
	dropped int     // entries before the first that still occupy its chunk's array
}

type chunk struct {
	at      int // gone when its first entry is the front
	entries []Entry
	ours    bool // to append to
}

const (
	chunkEntries = 2048 // the length of a chunk of ours that is full
	wholeChunk   = 64   // so many entries that come together are a chunk
)

// find returns the place of the i-th entry.
func (t *tail) find(i int) (k, at int) {
	i += t.gone
	if k = len(t.chunks) - 1; i >= t.chunks[k].at {
		return k, i - t.chunks[k].at // nearly every question is about the last chunk, or the first
	}
	if first := &t.chunks[0]; i < first.at+len(first.entries) {
		return 0, i - first.at
	}
	k = sort.Search(k, func(k int) bool { return t.chunks[k].at > i }) - 1
	return k, i - t.chunks[k].at
}

func (t *tail) at(i int) *Entry {
	k, at := t.find(i)
	return &t.chunks[k].entries[at]
}

// append takes over es if there are many of them.
func (t *tail) append(es []Entry) {
	if len(es) >= wholeChunk {
		t.chunks = append(t.chunks, chunk{at: t.gone + t.len, entries: es})
		t.len += len(es)
		return
	}
	for len(es) > 0 {
		room := t.room()
		if room == 0 {
			t.chunks = append(t.chunks, chunk{at: t.gone + t.len, entries: t.emptyChunk(), ours: true})
			room = chunkEntries
		}
		c := &t.chunks[len(t.chunks)-1]
		n := min(len(es), room)
		c.entries = append(c.entries, es[:n]...)
		t.len += n
		es = es[n:]
	}
}

// room is how many entries can be appended to the last chunk.
func (t *tail) room() int {
	k := len(t.chunks) - 1
	if k < 0 || !t.chunks[k].ours {
		return 0
	}
	return max(0, chunkEntries-t.droppedOf(k)-len(t.chunks[k].entries))
}

// emptyChunk returns the entries of a new chunk of ours. As long as entries come one by one it will be filled; otherwise it grows with
// what comes.
func (t *tail) emptyChunk() []Entry {
	if k := len(t.chunks) - 1; k >= 0 && t.chunks[k].ours {
		return make([]Entry, 0, chunkEntries)
	}
	return nil
}

// droppedOf returns how much of a chunk's array lies before its first entry.
func (t *tail) droppedOf(k int) int {
	if k == 0 {
		return t.dropped
	}
	return 0
}

// truncate keeps the first n entries. A later append must not write into an array that others are reading.
func (t *tail) truncate(n int) {
	keep := 0
	if n > 0 {
		k, at := t.find(n - 1)
		c := &t.chunks[k]
		c.entries = c.entries[: at+1 : at+1]
		keep = k + 1
	} else {
		t.dropped = 0
	}
	clear(t.chunks[keep:])
	t.chunks, t.len = t.chunks[:keep], n
}

// dropFront forgets the first n entries. What is left of a chunk gets a new array once the old one keeps more alive that is forgotten
// than there is in all of the tail. A long tail gives up one chunk after the other, and nothing is copied.
func (t *tail) dropFront(n int) {
	t.len -= n
	t.gone += n
	whole := 0
	for whole < len(t.chunks) && n >= len(t.chunks[whole].entries) {
		n -= len(t.chunks[whole].entries)
		whole++
	}
	if whole > 0 {
		clear(t.chunks[:whole])
		t.chunks, t.dropped = t.chunks[whole:], 0
	}
	if n == 0 {
		return
	}
	c := &t.chunks[0]
	c.entries, c.at = c.entries[n:], t.gone
	t.dropped += n
	if t.dropped > 64 && t.dropped > t.len {
		c.entries, c.ours, t.dropped = append([]Entry(nil), c.entries...), true, 0
	}
}

// slice returns the entries [lo, hi), by position. They are copied if they do not lie in one chunk.
func (t *tail) slice(lo, hi int) []Entry {
	if lo >= hi {
		return nil
	}
	k, at := t.find(lo)
	if n := at + hi - lo; n <= len(t.chunks[k].entries) {
		return t.chunks[k].entries[at:n:n]
	}
	joined := make([]Entry, 0, hi-lo)
	for ; len(joined) < hi-lo; k, at = k+1, 0 {
		part := t.chunks[k].entries[at:]
		joined = append(joined, part[:min(len(part), hi-lo-len(joined))]...)
	}
	return joined
}

// clone returns a tail to which entries can be appended without an effect on t, and the other way round.
func (t *tail) clone() tail {
	d := *t
	d.chunks = append([]chunk(nil), t.chunks...)
	if k := len(d.chunks) - 1; k >= 0 {
		d.chunks[k].entries = slices.Clip(d.chunks[k].entries)
	}
	return d
}
