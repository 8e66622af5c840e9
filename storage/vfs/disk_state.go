package vfs

import (
	"bytes"
	"maps"
	"slices"
)

// simDir is a directory. Directories themselves are durable as soon as they are made.
type simDir struct {
	entries map[string]*simFile // what programs see
	durable map[string]*simFile // what a crash leaves for sure
	pending []dirChange         // in order: what leads from durable to entries
}

// dirChange is one change of a directory. A rename is one change.
type dirChange struct {
	remove string // "": nothing
	add    string // "": nothing
	file   *simFile
}

func newSimDir() *simDir {
	return &simDir{entries: map[string]*simFile{}, durable: map[string]*simFile{}}
}

func (d *simDir) change(c dirChange) {
	c.apply(d.entries)
	d.pending = append(d.pending, c)
}

func (c dirChange) apply(entries map[string]*simFile) {
	if c.remove != "" {
		delete(entries, c.remove)
	}
	if c.add != "" {
		entries[c.add] = c.file
	}
}

// simFile is the content of a file, whatever its name is at the moment.
type simFile struct {
	data    []byte // what programs see
	durable []byte // what a crash leaves for sure
	// dirty holds, for each sector changed since the last Sync, the states it has been in since, oldest first. The last one is
	// what data holds. A sector shorter than SectorSize is continued by zeros.
	dirty map[int64][][]byte
	sizes []int // the lengths that the file has had since the last Sync, oldest first
}

func newSimFile() *simFile { return &simFile{dirty: map[int64][][]byte{}} }

// zeroSector is the state of all sectors that were written with zeros. States never change, so they may be shared.
var zeroSector = make([]byte, SectorSize)

// touch records the new state of the sectors that overlap [from, to).
func (f *simFile) touch(from, to int) {
	var room []byte // for the states of the sectors to come
	for s := from / SectorSize; s*SectorSize < to; s++ {
		content := f.data[min(s*SectorSize, len(f.data)):min((s+1)*SectorSize, len(f.data))]
		state := zeroSector
		if !bytes.Equal(content, zeroSector[:len(content)]) {
			if len(room) == 0 {
				room = make([]byte, (to+SectorSize-1)/SectorSize*SectorSize-s*SectorSize)
			}
			state, room = room[:SectorSize:SectorSize], room[SectorSize:]
			copy(state, content)
		}
		f.dirty[int64(s)] = append(f.dirty[int64(s)], state)
	}
}

func (f *simFile) write(p []byte, off int) {
	end := off + len(p)
	if end > len(f.data) {
		f.data = append(f.data, make([]byte, end-len(f.data))...)
		f.sizes = append(f.sizes, end)
	}
	copy(f.data[off:], p)
	f.touch(off, end)
}

func (f *simFile) truncate(size int) {
	old := len(f.data)
	if size < old {
		clear(f.data[size:])
		f.touch(size, old)
		f.data = f.data[:size:size]
	} else {
		f.data = append(f.data, make([]byte, size-old)...)
	}
	f.sizes = append(f.sizes, size)
}

func (f *simFile) sync() {
	// Only what is dirty is written: what an earlier failed sync lost stays lost.
	if size := len(f.data); size <= len(f.durable) {
		f.durable = f.durable[:size:size]
	} else {
		f.durable = append(f.durable, make([]byte, size-len(f.durable))...)
	}
	for s, states := range f.dirty {
		if from := int(s) * SectorSize; from < len(f.durable) {
			copy(f.durable[from:], states[len(states)-1])
		}
	}
	f.forget()
}

func (f *simFile) forget() {
	clear(f.dirty)
	f.sizes = f.sizes[:0]
}

// settle makes an arbitrary part of what was not synced durable.
func (f *simFile) settle(r *random, keep uint64) (out CrashOutcome) {
	size := len(f.durable)
	if n := len(f.sizes); n > 0 && r.below(100) < keep {
		size = f.sizes[r.below(uint64(n))]
	}
	if len(f.dirty) == 0 && size == len(f.durable) {
		return out
	}
	end := size
	for s := range f.dirty {
		end = max(end, int(s+1)*SectorSize)
	}
	image := make([]byte, max(end, len(f.durable)))
	copy(image, f.durable)
	for _, s := range slices.Sorted(maps.Keys(f.dirty)) {
		if r.below(100) >= keep {
			out.SectorsLost++
			continue
		}
		states := f.dirty[s]
		n := len(states) - 1
		if r.below(4) == 0 {
			n = int(r.below(uint64(len(states))))
		}
		if n == len(states)-1 {
			out.SectorsKept++
		} else {
			out.SectorsOld++
		}
		copy(image[s*SectorSize:], states[n])
	}
	if out.SectorsLost > 0 && out.SectorsKept+out.SectorsOld > 0 {
		out.FilesTorn = 1
	}
	f.durable = image[:size:size]
	return out
}

func (o *CrashOutcome) add(other CrashOutcome) {
	o.NamesLost += other.NamesLost
	o.SectorsKept += other.SectorsKept
	o.SectorsOld += other.SectorsOld
	o.SectorsLost += other.SectorsLost
	o.FilesTorn += other.FilesTorn
}

// loseWrites is what a failed sync does on real systems: some of the data reaches the disk, the rest is dropped, yet goes on to be
// readable, and a second sync "succeeds" without writing it.
func (f *simFile) loseWrites(r *random) {
	f.settle(r, r.below(101))
	f.forget()
}

func (f *simFile) clone() *simFile {
	c := &simFile{
		data: slices.Clone(f.data), durable: slices.Clone(f.durable),
		dirty: make(map[int64][][]byte, len(f.dirty)), sizes: slices.Clone(f.sizes),
	}
	for s, states := range f.dirty {
		c.dirty[s] = slices.Clone(states) // the states themselves never change
	}
	return c
}

// random is splitmix64.
type random struct{ state *uint64 }

func (r *random) next() uint64 {
	*r.state += 0x9e3779b97f4a7c15
	z := *r.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

func (r *random) below(n uint64) uint64 { return r.next() % n }
