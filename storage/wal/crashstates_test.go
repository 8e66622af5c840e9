package wal

import (
	"bytes"
	"cmp"
	"fmt"
	"hash/maphash"
	"io"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
)

// crashDisk follows recorded operations and knows what a crash may leave: of every sector that was not synced, any state that it has been
// in since; of a file's length, any that it has had; of the changes to a directory that was not synced, any subset. That is more than
// docs/storage-format.md assumes of directories. vfs.Disk draws one of these outcomes by seed; here they are enumerated.
type crashDisk struct {
	files map[int]*crashFile
	dirs  map[string]*crashDir
}

type crashFile struct {
	data, durable []byte
	states        map[int64][][]byte // of a sector, since the last sync, oldest first
	sizes         []int
}

type crashDir struct {
	durable map[string]int
	pending []fileOp
}

func newCrashDisk() *crashDisk {
	return &crashDisk{files: map[int]*crashFile{}, dirs: map[string]*crashDir{}}
}

// crashDiskOf begins with an image on which everything is durable. The files have the numbers that newImageFS gives them.
func crashDiskOf(img image) *crashDisk {
	d := newCrashDisk()
	for i, path := range slices.Sorted(maps.Keys(img)) {
		d.files[i] = &crashFile{data: bytes.Clone(img[path]), durable: img[path], states: map[int64][][]byte{}}
		d.dir(filepath.Dir(path)).durable[filepath.Base(path)] = i
	}
	return d
}

func (d *crashDisk) dir(path string) *crashDir {
	if d.dirs[path] == nil {
		d.dirs[path] = &crashDir{durable: map[string]int{}}
	}
	return d.dirs[path]
}

func (d *crashDisk) apply(op fileOp) {
	f := d.files[op.file]
	switch op.kind {
	case vfs.OpCreate:
		d.files[op.file] = &crashFile{states: map[int64][][]byte{}}
		d.dir(op.dir).pending = append(d.dir(op.dir).pending, op)
	case vfs.OpRename, vfs.OpRemove:
		d.dir(op.dir).pending = append(d.dir(op.dir).pending, op)
	case vfs.OpSyncDir:
		dir := d.dir(op.dir)
		for _, change := range dir.pending {
			change.rename(dir.durable)
		}
		dir.pending = nil
	case vfs.OpWrite:
		end := int(op.off) + len(op.data)
		if end > len(f.data) {
			f.data = append(f.data, make([]byte, end-len(f.data))...)
			f.sizes = append(f.sizes, end)
		}
		copy(f.data[op.off:], op.data)
		f.touch(op.off, int64(end))
	case vfs.OpTruncate:
		old := len(f.data)
		if size := int(op.off); size < old {
			clear(f.data[size:])
			f.touch(op.off, int64(old))
			f.data = f.data[:size:size]
		} else {
			f.data = append(f.data, make([]byte, size-old)...)
		}
		f.sizes = append(f.sizes, int(op.off))
	case vfs.OpSync:
		f.durable = bytes.Clone(f.data)
		clear(f.states)
		f.sizes = nil
	}
}

// rename carries out a change of names.
func (op *fileOp) rename(names map[string]int) {
	switch op.kind {
	case vfs.OpCreate:
		names[op.name] = op.file
	case vfs.OpRename:
		delete(names, op.name)
		names[op.to] = op.file
	case vfs.OpRemove:
		delete(names, op.name)
	}
}

func (f *crashFile) touch(from, to int64) {
	for s := from / sectorSize; s*sectorSize < to; s++ {
		f.states[s] = append(f.states[s], sectorOf(f.data, s))
	}
}

// sectorOf returns a copy of sector s; zeros behind the end.
func sectorOf(b []byte, s int64) []byte {
	sector := make([]byte, sectorSize)
	if at := s * sectorSize; at < int64(len(b)) {
		copy(sector, b[at:])
	}
	return sector
}

// doubt is one thing that a crash decides, with the number of its outcomes. Outcome 0 is what is durable.
type doubt struct {
	outcomes int
	file     int      // of a sector or a length
	sector   int64    // -1: the length
	states   [][]byte // of the sector
	sizes    []int
	dir      string // otherwise: pending change number change of the directory
	change   int
}

// doubts lists everything that is open. What would make no difference is left out.
func (d *crashDisk) doubts() []doubt {
	var all []doubt
	for _, n := range slices.Sorted(maps.Keys(d.files)) {
		f := d.files[n]
		for _, s := range slices.Sorted(maps.Keys(f.states)) {
			states := [][]byte{sectorOf(f.durable, s)}
			for _, state := range f.states[s] {
				if !slices.ContainsFunc(states, func(b []byte) bool { return bytes.Equal(b, state) }) {
					states = append(states, state)
				}
			}
			if len(states) > 1 {
				all = append(all, doubt{outcomes: len(states), file: n, sector: s, states: states})
			}
		}
		sizes := []int{len(f.durable)}
		for _, size := range f.sizes {
			if !slices.Contains(sizes, size) {
				sizes = append(sizes, size)
			}
		}
		if len(sizes) > 1 {
			all = append(all, doubt{outcomes: len(sizes), file: n, sector: -1, sizes: sizes})
		}
	}
	for _, path := range slices.Sorted(maps.Keys(d.dirs)) {
		for i := range d.dirs[path].pending {
			all = append(all, doubt{outcomes: 2, dir: path, change: i})
		}
	}
	return all
}

// after returns what is found after a crash with those outcomes, one for each doubt.
func (d *crashDisk) after(doubts []doubt, outcomes []int) image {
	content := map[int][]byte{}
	sizes := map[int]int{}
	happened := map[string][]fileOp{}
	for i, q := range doubts {
		switch {
		case q.dir != "":
			if outcomes[i] == 1 {
				happened[q.dir] = append(happened[q.dir], d.dirs[q.dir].pending[q.change])
			}
		case q.sector < 0:
			sizes[q.file] = q.sizes[outcomes[i]]
		case outcomes[i] > 0:
			f := d.files[q.file]
			if content[q.file] == nil {
				content[q.file] = make([]byte, max(len(f.data), len(f.durable), int(q.sector+1)*sectorSize))
				copy(content[q.file], f.durable)
			}
			if end := int(q.sector+1) * sectorSize; end > len(content[q.file]) {
				content[q.file] = append(content[q.file], make([]byte, end-len(content[q.file]))...)
			}
			copy(content[q.file][q.sector*sectorSize:], q.states[outcomes[i]])
		}
	}
	img := image{}
	for path, dir := range d.dirs {
		names := dir.durable
		if len(happened[path]) > 0 {
			names = maps.Clone(names)
			for i := range happened[path] {
				happened[path][i].rename(names)
			}
		}
		for name, n := range names {
			f := d.files[n]
			data, size := content[n], len(f.durable)
			if to, ok := sizes[n]; ok {
				size = to
			}
			if data == nil {
				data = f.durable
			}
			if size > len(data) {
				data = append(data[:len(data):len(data)], make([]byte, size-len(data))...)
			}
			img[filepath.Join(path, name)] = data[:size:size]
		}
	}
	return img
}

// outcomes calls f with combinations of outcomes: with all of them if they are at most limit, otherwise with as many: all old, all new,
// each one old or new alone, and the rest by seed. It reports whether these were all.
func outcomes(doubts []doubt, limit int, rnd *rand.Rand, f func([]int)) bool {
	all := 1
	for _, q := range doubts {
		if all *= q.outcomes; all > limit {
			break
		}
	}
	pick := make([]int, len(doubts))
	if all <= limit {
		for range all {
			f(pick)
			for i := range pick {
				if pick[i]++; pick[i] < doubts[i].outcomes {
					break
				}
				pick[i] = 0
			}
		}
		return true
	}
	for n := range limit {
		for i, q := range doubts {
			switch {
			case n == 0:
				pick[i] = 0
			case n == 1:
				pick[i] = q.outcomes - 1
			case n-2 < len(doubts):
				pick[i] = 0
				if i == n-2 {
					pick[i] = q.outcomes - 1
				}
			case n-2 < 2*len(doubts):
				pick[i] = q.outcomes - 1
				if i == n-2-len(doubts) {
					pick[i] = 0
				}
			default:
				pick[i] = rnd.IntN(q.outcomes)
			}
		}
		f(pick)
	}
	return false
}

// promise is what holds from an operation on: what was acknowledged, and what would be if the step under way had ended.
type promise struct {
	from         int // number of the first operation that is not covered by the promise before
	acked, doubt model
	snapshots    [2]raft.Index // the newest one that was committed, and the one under way
}

// script runs steps over an empty disk and records the operations and the promises.
type script struct {
	ops      []fileOp
	promises []promise
}

func record(t testing.TB, steps []step) *script {
	s := &script{}
	disk := newImageFS(nil)
	disk.record = func(op fileOp) { s.ops = append(s.ops, op) }
	var m model
	var snapshot raft.Index
	mark := func(doubt model, under raft.Index) {
		s.promises = append(s.promises, promise{len(s.ops), m, doubt, [2]raft.Index{snapshot, under}})
	}
	mark(m, 0)
	w := New("/data", smallOptions(disk))
	_, err := w.Open(ctx, identity)
	require.NoError(t, err)
	for _, step := range steps {
		switch {
		case step.batch != nil:
			if meta := step.batch.Snapshot; meta != nil { // as a follower does: the snapshot first, then the log
				mark(m, meta.Index)
				sink, err := w.Snapshots().Create(raft.SnapshotMeta{
					Index: meta.Index, Term: meta.Term, Size: -1,
					Configuration: raft.Configuration{ClusterID: "c", Servers: []raft.Server{{ID: "n1"}}},
				})
				require.NoError(t, err)
				_, err = sink.Write(snapshotContent(meta.Index))
				require.NoError(t, err)
				_, err = sink.Commit()
				require.NoError(t, err)
				snapshot = meta.Index
			}
			mark(m.after(*step.batch), snapshot)
			require.NoError(t, w.Write(*step.batch))
			m = m.after(*step.batch)
		case step.compact != 0:
			m.base = max(m.base, step.compact)
			mark(m, snapshot)
			require.NoError(t, w.Compact(step.compact))
		case step.idle:
			require.NoError(t, w.Idle())
		case step.prepare:
			for more := true; more; {
				more, err = w.Prepare()
				require.NoError(t, err)
			}
		case step.reopen:
			require.NoError(t, w.Close())
			_, err = w.Open(ctx, identity)
			require.NoError(t, err)
		}
		mark(m, snapshot)
	}
	require.NoError(t, w.Close())
	return s
}

func snapshotContent(index raft.Index) []byte {
	return bytes.Repeat([]byte{byte(index) | 1}, 700+int(index)%100)
}

// randomSteps makes a workload by seed: batches of every kind, compaction, snapshots, restarts.
func randomSteps(seed uint64, n int) []step {
	rnd := rand.New(rand.NewPCG(seed, 1))
	var steps []step
	var m model
	for range n {
		switch rnd.IntN(14) {
		case 0:
			steps = append(steps, step{prepare: true})
		case 1, 2:
			steps = append(steps, step{idle: true})
		case 3:
			to := m.base + raft.Index(rnd.Uint64N(uint64(m.last()-min(m.base, m.last()))+1))
			m.base = max(m.base, to)
			if to > 0 {
				steps = append(steps, step{compact: to})
			}
		case 4:
			steps = append(steps, step{reopen: true})
		default:
			b := randomBatch(rnd, m)
			m = m.after(b)
			steps = append(steps, step{batch: &b})
		}
	}
	return steps
}

// recoveredState is what a log says of itself after Open, for comparing two of them.
func recoveredState(w *WAL, rec *raft.Recovered) (string, error) {
	var h maphash.Hash
	h.SetSeed(crashSeed)
	for at := rec.Compacted.Index + 1; at <= rec.LastIndex; {
		es, err := w.Entries(at, rec.LastIndex+1, 1<<20)
		if err != nil {
			return "", err
		}
		for i := range es {
			h.Write(es[i].Frame())
			at++
		}
	}
	return fmt.Sprint(rec.HardState, rec.Compacted, rec.LastIndex, rec.Terms, len(rec.Configurations), rec.Snapshot.Index, h.Sum64()), nil
}

var crashSeed = maphash.MakeSeed()

// recover opens a disk after a crash and checks it against the promise; it returns the state.
func (p *promise) recover(disk *imageFS) (string, error) {
	w := New("/data", smallOptions(disk))
	rec, err := w.Open(ctx, identity)
	if err != nil {
		return "", err
	}
	if ackErr := p.acked.check(w, &rec); ackErr != nil {
		if err := p.doubt.check(w, &rec); err != nil {
			return "", fmt.Errorf("neither what was acknowledged (%w) nor that and the step under way (%w)", ackErr, err)
		}
	}
	if s := rec.Snapshot.Index; s != p.snapshots[0] && s != p.snapshots[1] {
		return "", fmt.Errorf("snapshot %d, want one of %v", s, p.snapshots)
	} else if s > 0 {
		_, r, err := w.Snapshots().Open(s)
		if err != nil {
			return "", err
		}
		if b, err := io.ReadAll(r); err != nil || !bytes.Equal(b, snapshotContent(s)) {
			return "", fmt.Errorf("snapshot %d reads %d wrong bytes, %w", s, len(b), err)
		}
		if err := r.Close(); err != nil {
			return "", err
		}
	}
	state, err := recoveredState(w, &rec)
	if err != nil {
		return "", err
	}
	return state, w.Close()
}

// TestEveryCrashStateRecovers enumerates what a crash may leave after every recorded operation of several workloads, and recovers each:
// nothing acknowledged is missing, nothing is there that was not written, a batch under way is there as a whole or not at all, and
// a second recovery, also after a crash in the middle of the first, finds the same. SAFETY inv 2, 3, 11, 12, 23
func TestEveryCrashStateRecovers(t *testing.T) {
	want, limit := 50_000, 1024
	if !*proof {
		want, limit = 1_500, 16
	}
	seen := map[uint64]bool{}
	prefixes, complete, double, workloads := 0, 0, 0, 0
	for seed := uint64(0); len(seen) < want; seed++ {
		steps := workload()
		if seed > 0 {
			steps = randomSteps(seed, 40)
		}
		s := record(t, steps)
		rnd := rand.New(rand.NewPCG(seed, 2))
		d := newCrashDisk()
		at := 0
		workloads++
		for k := 0; k <= len(s.ops); k++ {
			if k > 0 {
				d.apply(s.ops[k-1])
			}
			for at+1 < len(s.promises) && s.promises[at+1].from <= k {
				at++
			}
			// Several promises may begin at one operation, or the one before may end there: the last one holds.
			p := &s.promises[at]
			doubts := d.doubts()
			prefixes++
			all := outcomes(doubts, limit, rnd, func(pick []int) {
				img := d.after(doubts, pick)
				h := hashImage(img)
				if seen[h] || t.Failed() {
					return
				}
				seen[h] = true
				if err := p.verify(img, rnd, &double); err != nil {
					t.Errorf("workload %d, operation %d of %d, outcomes %v: %v", seed, k, len(s.ops), pick, err)
				}
			})
			if all {
				complete++
			}
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("%d crash states of %d workloads recovered, and %d of recoveries cut off; %d of %d crash points complete, the others sampled",
		len(seen), workloads, double, complete, prefixes)
}

// verify recovers an image twice, and one in eight with a crash during or after the first recovery.
func (p *promise) verify(img image, rnd *rand.Rand, double *int) error {
	var ops []fileOp
	disk := newImageFS(img)
	if rnd.IntN(8) == 0 {
		disk.record = func(op fileOp) { ops = append(ops, op) }
	}
	first, err := p.recover(disk)
	if err != nil {
		return err
	}
	recorded := disk.record != nil
	disk.record = nil
	second, err := p.recover(disk)
	if err != nil {
		return fmt.Errorf("second recovery: %w", err)
	}
	if first != second {
		return fmt.Errorf("recovered %s, then %s", first, second)
	}
	if !recorded {
		return nil
	}
	*double++
	d, upTo := crashDiskOf(img), rnd.IntN(len(ops)+1)
	if rnd.IntN(3) == 0 {
		upTo = len(ops)
	}
	for _, op := range ops[:upTo] {
		d.apply(op)
	}
	doubts := d.doubts()
	pick := make([]int, len(doubts))
	for i, q := range doubts {
		pick[i] = rnd.IntN(q.outcomes)
	}
	again, err := p.recover(newImageFS(d.after(doubts, pick)))
	if err != nil {
		return fmt.Errorf("after a crash at operation %d of %d of a recovery: %w", upTo, len(ops), err)
	}
	if again != first {
		return fmt.Errorf("recovered %s, then, after a crash at operation %d of %d of the recovery, %s", first, upTo, len(ops), again)
	}
	return nil
}

func hashImage(img image) uint64 {
	var h maphash.Hash
	h.SetSeed(crashSeed)
	for _, path := range slices.SortedFunc(maps.Keys(img), cmp.Compare[string]) {
		h.WriteString(path)
		h.WriteByte(0)
		h.Write(img[path])
	}
	return h.Sum64()
}
