package raft

// tail is the part of the log that is in memory: consecutive entries, in chunks. Slices of a chunk are shared with writes, messages and
// clones of the core, so an entry is never changed where it lies. Nor is it moved for the log to grow, except within a chunk: moving
// all of a full tail takes milliseconds, and the server does nothing else meanwhile.
type tail struct {
	chunks  [][]Entry // none is empty; all but the first and the last are full
	len     int       // entries in all chunks
	dropped int       // entries before the first that still occupy its chunk's array
}

// chunkEntries is the length of a full chunk.
const chunkEntries = 2048

// find returns the place of the i-th entry.
func (t *tail) find(i int) (chunk, at int) {
	if i < len(t.chunks[0]) {
		return 0, i
	}
	i -= len(t.chunks[0])
	return 1 + i/chunkEntries, i % chunkEntries
}

func (t *tail) at(i int) *Entry {
	chunk, at := t.find(i)
	return &t.chunks[chunk][at]
}

func (t *tail) append(es []Entry) {
	t.len += len(es)
	for len(es) > 0 {
		k := len(t.chunks) - 1
		if k < 0 || len(t.chunks[k])+t.droppedOf(k) >= chunkEntries {
			var chunk []Entry // a short log's only chunk grows with it
			if k >= 0 {
				chunk = make([]Entry, 0, chunkEntries)
			}
			t.chunks = append(t.chunks, chunk)
			k++
		}
		n := min(len(es), chunkEntries-t.droppedOf(k)-len(t.chunks[k]))
		t.chunks[k] = append(t.chunks[k], es[:n]...)
		es = es[n:]
	}
}

// droppedOf returns how much of a chunk's array lies before its first entry.
func (t *tail) droppedOf(chunk int) int {
	if chunk == 0 {
		return t.dropped
	}
	return 0
}

// truncate keeps the first n entries. A later append must not write into an array that others are reading.
func (t *tail) truncate(n int) {
	keep := 0
	if n > 0 {
		k, at := t.find(n - 1)
		t.chunks[k] = t.chunks[k][: at+1 : at+1]
		keep = k + 1
	} else {
		t.dropped = 0
	}
	clear(t.chunks[keep:])
	t.chunks, t.len = t.chunks[:keep], n
}

// dropFront forgets the first n entries. What is left of a chunk gets a new array once more than half of the old one is waste.
func (t *tail) dropFront(n int) {
	t.len -= n
	gone := 0
	for gone < len(t.chunks) && n >= len(t.chunks[gone]) {
		n -= len(t.chunks[gone])
		gone++
	}
	if gone > 0 {
		kept := copy(t.chunks, t.chunks[gone:])
		clear(t.chunks[kept:])
		t.chunks, t.dropped = t.chunks[:kept], 0
	}
	if n == 0 {
		return
	}
	rest := t.chunks[0][n:]
	t.dropped += n
	if t.dropped > 64 && t.dropped > len(rest) {
		rest, t.dropped = append([]Entry(nil), rest...), 0
	}
	t.chunks[0] = rest
}

// slice returns the entries [lo, hi), by position. They are copied if they do not lie in one chunk.
func (t *tail) slice(lo, hi int) []Entry {
	if lo >= hi {
		return nil
	}
	k, at := t.find(lo)
	if n := at + hi - lo; n <= len(t.chunks[k]) {
		return t.chunks[k][at:n:n]
	}
	joined := make([]Entry, 0, hi-lo)
	for ; len(joined) < hi-lo; k, at = k+1, 0 {
		part := t.chunks[k][at:]
		joined = append(joined, part[:min(len(part), hi-lo-len(joined))]...)
	}
	return joined
}

// clone returns a tail to which entries can be appended without an effect on t, and the other way round.
func (t *tail) clone() tail {
	d := *t
	d.chunks = append([][]Entry(nil), t.chunks...)
	if k := len(d.chunks) - 1; k >= 0 {
		d.chunks[k] = d.chunks[k][:len(d.chunks[k]):len(d.chunks[k])]
	}
	return d
}
