package raftsim

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
)

// Damage is done to the files of simulated disks, whether a process runs on them or not: to what it reads, and to what a crash leaves.
// One thing is not done: zeros in place of what was written last. A disk on which that happens has lied about a sync, and nothing on it
// can tell that from a crash in the middle of a write (docs/storage-format.md, assumption 3). So only wrong bytes get into the two newest
// segments.

const (
	snapshotDir = dataDir + "/snapshots"
	votePath    = dataDir + "/vote"
	votePages   = 4 // two generations of two copies
	pageBytes   = 4096
)

// spoil damages a disk.
func (w *world) spoil(v *server) string {
	r := w.forFaults
	if r.IntN(3) == 0 {
		for _, o := range w.servers { // what one server alone has may have to be discarded
			if o.memory.durable.last() > w.model.highest {
				v = o
			}
		}
	}
	kind, down := r.IntN(24), r.IntN(2) == 0
	if r.IntN(4) == 0 {
		for _, o := range w.servers { // a snapshot that is about to be read
			if o.up() && (o.restoreQueued() || o.sendsSnapshot()) {
				v, kind, down = o, 13, false
			}
		}
	}
	if v.sick.gone || !v.mayFail() || v.crashing {
		return ""
	}
	if kind >= 8 && !w.bearable(v) {
		kind = 0
	}
	if (down || kind >= 22) && v.up() {
		v.crash(false)
	}
	what := ""
	switch {
	case kind < 8:
		what = v.spoilEntries()
	case kind < 11:
		what = v.garbleEnd()
	case kind < 13:
		what = v.spoilVote()
	case kind < 18:
		what = v.spoilSnapshot()
	case kind < 19:
		what = v.spoilHeader()
	case kind < 20:
		what = v.spoilAnything()
	case kind < 22:
		what = v.loseSegment()
	case r.IntN(8) == 0 || w.knobs.reckless && r.IntN(2) == 0:
		what = v.loseDisk(r.IntN(3) == 0)
	}
	if what == "" {
		return ""
	}
	return fmt.Sprintf("disk of %s, which runs: %v: %s", v.id, v.up(), what)
}

// sendsSnapshot reports whether a follower waits for this server's snapshot.
func (v *server) sendsSnapshot() bool {
	return v.role == raft.Leader && slices.ContainsFunc(v.core.Status(v.local()).Peers, func(p raft.PeerStatus) bool { return p.State == "snapshot" })
}

// ill reports whether a server has lost something that it has not got back, as far as it knows.
func (v *server) ill() bool {
	s := &v.sick
	return s.away() || s.fence != (raft.EntryID{}) || len(s.holes) > 0 || s.hurt && !v.up() || v.up() && v.lacksSnapshot()
}

// bearable reports whether the cluster can go on if this server loses what it has: a majority of the voters is well then. In some seeds
// nobody asks.
func (w *world) bearable(v *server) bool {
	if w.knobs.reckless {
		return true
	}
	c := w.model.configurationAt(w.model.highest)
	return c != nil && quorum(&c.conf, func(s *raft.Server) bool {
		o := w.server(s.ID)
		return o != nil && o != v && !o.ill()
	})
}

// names lists the files of a directory whose name ends like that, oldest first.
func (v *server) names(dir string, like func(name string) bool) []string {
	all, err := v.disk.List(dir)
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(all, func(name string) bool { return !like(name) })
}

func (v *server) content(path string) []byte {
	f, err := v.disk.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil && err != io.EOF {
		return nil
	}
	return b
}

// flip inverts a bit in a range of a file.
func (v *server) flip(path string, from, to int64) {
	if err := v.disk.Flip(path, from+v.w.forFaults.Int64N(to-from), 1<<v.w.forFaults.IntN(8)); err == nil {
		v.w.hit(bitFlipped)
	}
}

// spoilSector damages the sector around a place of a file. newest says that no zeros may come of it.
func (v *server) spoilSector(path string, at int64, newest bool) {
	r := v.w.forFaults
	from := at / vfs.SectorSize * vfs.SectorSize
	to := min(from+vfs.SectorSize, int64(len(v.content(path))))
	if to <= at {
		return
	}
	switch kind := r.IntN(4); {
	case kind == 0 && !newest:
		if v.disk.Zero(path, from, int(to-from)) == nil {
			v.w.hit(sectorZeroed)
		}
	case kind == 1:
		v.misdirect(path, from, to)
	case kind == 2:
		if v.disk.Corrupt(path, from, int(to-from)) == nil {
			v.w.hit(sectorGarbled)
		}
	default:
		v.flip(path, at, to)
	}
}

// misdirect puts a sector of the log where another one belongs.
func (v *server) misdirect(path string, from, to int64) {
	segments := v.names(dataDir, isWAL)
	if len(segments) == 0 {
		return
	}
	b := v.content(filepath.Join(dataDir, pick(v.w.forFaults, segments...)))
	if len(b) < vfs.SectorSize {
		return
	}
	at := v.w.forFaults.IntN(len(b)/vfs.SectorSize) * vfs.SectorSize
	source := b[at : at+vfs.SectorSize]
	if bytes.Count(source, []byte{0}) == len(source) {
		return
	}
	was := v.content(path)[from:to]
	for i := range was {
		if change := was[i] ^ source[i]; change != 0 {
			if v.disk.Flip(path, from+int64(i), change) != nil {
				return
			}
		}
	}
	v.w.hit(sectorMisdirected)
}

// spoilEntries damages a few entries wherever they stand. Outside of reckless seeds, every one that is committed keeps an intact copy with
// a voter.
func (v *server) spoilEntries() string {
	w, l := v.w, &v.memory.durable
	first, last := max(l.base.Index, v.memory.compactedTo, 1)+1, l.last()
	if first > last || w.forFaults.IntN(3) == 0 { // the end of the log is where it hurts most
		first = max(first, last-min(last, 3))
	}
	if last > w.model.highest && w.forFaults.IntN(2) == 0 {
		first = max(first, w.model.highest+1)
	}
	if first > last {
		return ""
	}
	at := first + raft.Index(w.forFaults.IntN(int(last-first+1)))
	end := min(last, at+raft.Index(w.forFaults.IntN(6)))
	segments := v.names(dataDir, isWAL)
	content := make([][]byte, len(segments))
	for k, name := range segments {
		content[k] = v.content(filepath.Join(dataDir, name))
	}
	n := 0
	for i := at; i <= end; i++ {
		id, _ := l.id(i)
		if !w.knobs.reckless && !v.mayLose(id) {
			continue
		}
		f, known := w.model.entries[id]
		if !known {
			continue
		}
		frame := f.entry.Frame()
		for k, name := range segments {
			for from, found := 0, 0; ; from += found + len(frame) {
				if found = bytes.Index(content[k][from:], frame); found < 0 {
					break
				}
				v.spoilSector(filepath.Join(dataDir, name), int64(from+found+w.forFaults.IntN(len(frame))), k+2 >= len(segments))
				v.hurt(id)
				n++
			}
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("entries %d to %d are damaged", at, end)
}

func (v *server) hurt(ids ...raft.EntryID) {
	v.sick.hurt = true
	if v.sick.spoilt == nil {
		v.sick.spoilt = map[raft.EntryID]bool{}
	}
	for _, id := range ids {
		v.sick.spoilt[id] = true
	}
}

// mayLose reports whether a server can do without an entry: a voter has an intact copy, or a snapshot that covers it, or the entry is not
// committed, and every other voter will be able to say that it does not have it.
func (v *server) mayLose(id raft.EntryID) bool {
	w := v.w
	if w.intactElsewhere(v, id) {
		return true
	}
	c := w.model.configurationAt(w.model.highest)
	if id.Index <= w.model.highest || c == nil || c.conf.Joint() || len(c.conf.Voters()) < 3 {
		return false
	}
	for _, o := range w.servers {
		if o.sick.away() || o.sick.fence != (raft.EntryID{}) || o != v && o.memory.durable.contains(id) {
			return false
		}
	}
	return true
}

func (w *world) intactElsewhere(v *server, id raft.EntryID) bool {
	c := w.model.configurationAt(w.model.highest)
	for _, o := range w.servers {
		if o == v || c == nil || !c.conf.IsVoter(o.id) || o.sick.away() {
			continue
		}
		if !o.sick.snapshot && o.memory.snapshot >= id.Index || o.memory.durable.contains(id) && o.sick.at(id.Index) == nil && !o.sick.spoilt[id] {
			return true
		}
	}
	return false
}

// garbleEnd makes the last sectors of the log unreadable: what they held is lost.
func (v *server) garbleEnd() string {
	segments := v.names(dataDir, isWAL)
	for k, name := range slices.Backward(segments) {
		path := filepath.Join(dataDir, name)
		b := bytes.TrimRight(v.content(path), "\x00")
		end := int64(len(b)+vfs.SectorSize-1) / vfs.SectorSize * vfs.SectorSize
		if end <= 2*pageBytes && k > 0 { // nothing but its header
			continue
		}
		from := max(2*pageBytes, end-int64(1+v.w.forFaults.IntN(6))*vfs.SectorSize)
		if from >= end || v.disk.Corrupt(path, from, int(end-from)) != nil {
			return ""
		}
		v.hurt()
		v.w.hit(sectorGarbled)
		return fmt.Sprintf("the end of %s from byte %d on is garbled", name, from)
	}
	return ""
}

// spoilVote damages one copy of the newest term and vote, or both, or puts the generation before in their place.
func (v *server) spoilVote() string {
	b := v.content(votePath)
	if len(b) < votePages*pageBytes {
		return ""
	}
	generation := func(page int) (n uint64) {
		for k := 7; k >= 0; k-- {
			n = n<<8 | uint64(b[page*pageBytes+8+k])
		}
		return n
	}
	if v.sick.unvouched {
		return ""
	}
	newest := 0
	if generation(2) > generation(0) {
		newest = 2
	}
	r := v.w.forFaults
	v.hurt()
	v.sick.unvouched = true
	switch kind := r.IntN(4); {
	case kind < 2:
		page := newest + r.IntN(2)
		v.flip(votePath, int64(page*pageBytes), int64(page*pageBytes+vfs.SectorSize))
		v.w.hit(voteCopyHit)
		return "a copy of term and vote is damaged"
	case kind < 3:
		for page := newest; page < newest+2; page++ {
			v.flip(votePath, int64(page*pageBytes), int64(page*pageBytes+vfs.SectorSize))
		}
		v.w.hit(voteHit)
		return "term and vote are damaged"
	default:
		other := 2 - newest
		for k := range 2 {
			at := (newest + k) * pageBytes
			for i := range vfs.SectorSize {
				if change := b[at+i] ^ b[(other+k)*pageBytes+i]; change != 0 {
					_ = v.disk.Flip(votePath, int64(at+i), change)
				}
			}
		}
		v.w.hit(voteOutdated)
		return "term and vote are older ones"
	}
}

// spoilSnapshot damages one of the snapshots, mostly the newest.
func (v *server) spoilSnapshot() string {
	files := v.names(snapshotDir, func(name string) bool { return filepath.Ext(name) == ".snapshot" })
	if len(files) == 0 {
		return ""
	}
	r := v.w.forFaults
	if r.IntN(4) > 0 {
		files = files[len(files)-1:]
	}
	path := filepath.Join(snapshotDir, pick(r, files...))
	size := int64(len(v.content(path)))
	if size == 0 {
		return ""
	}
	v.spoilSector(path, r.Int64N(size), false)
	v.sick.snapshot = true
	v.w.hit(snapshotHit)
	return "a snapshot is damaged"
}

// spoilHeader damages one copy of a segment's header, or both.
func (v *server) spoilHeader() string {
	segments := v.names(dataDir, isWAL)
	if len(segments) == 0 {
		return ""
	}
	r := v.w.forFaults
	path := filepath.Join(dataDir, pick(r, segments...))
	copies := 1 + r.IntN(2)
	for k := range copies {
		v.flip(path, int64(k*pageBytes), int64(k*pageBytes+vfs.SectorSize))
	}
	v.hurt()
	v.w.hit(headerHit)
	return fmt.Sprintf("%d headers of %s are damaged", copies, path)
}

// spoilAnything damages any sector of the log.
func (v *server) spoilAnything() string {
	segments := v.names(dataDir, isWAL)
	if len(segments) == 0 {
		return ""
	}
	k := v.w.forFaults.IntN(len(segments))
	path := filepath.Join(dataDir, segments[k])
	size := len(bytes.TrimRight(v.content(path), "\x00"))
	if size == 0 {
		return ""
	}
	at := int64(v.w.forFaults.IntN(size))
	v.spoilSector(path, at, k+2 >= len(segments))
	v.hurt()
	return fmt.Sprintf("the sector at byte %d of %s is damaged", at, path)
}

// remove takes files away from the directory of the log, for good. No fault of the disk keeps that from happening.
func (v *server) remove(names ...string) {
	v.disk.SetFault(nil)
	for _, name := range names {
		if err := v.disk.Remove(filepath.Join(dataDir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			v.w.broken("remove %s of %s: %v", name, v.id, err)
		}
	}
	for _, dir := range []string{dataDir, snapshotDir} {
		if err := v.disk.SyncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			v.w.broken("sync the directory of %s: %v", v.id, err)
		}
	}
	v.applyFaults()
}

// loseSegment removes a file of the log.
func (v *server) loseSegment() string {
	segments := v.names(dataDir, isWAL)
	if len(segments) < 2 || v.up() {
		return ""
	}
	if v.sick.unvouched { // who would know that there was a last one?
		segments = segments[:len(segments)-1]
	}
	name := pick(v.w.forFaults, segments...)
	v.hurt()
	v.remove(name)
	v.sick.unvouched = v.sick.unvouched || name == segments[len(segments)-1]
	v.w.hit(segmentLost)
	return name + " is gone"
}

// loseDisk removes the log, or all there is. In the second case nothing could tell a new process that there was a server of its name, and
// nobody starts one.
func (v *server) loseDisk(all bool) string {
	v.hurt()
	v.remove(v.names(dataDir, isWAL)...)
	if v.sick.gone = all; all {
		v.w.hit(diskGone)
		return "everything is gone"
	}
	v.w.hit(logGone)
	return "the log is gone"
}
