package wal

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"maps"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
)

// victim is a log about to be damaged, and what an oracle knows about it.
type victim struct {
	name    string
	vouched bool // an idle record or the vote file says that the last batch is durable

	img    image
	now    model
	before model // without the last batch

	last     string           // path of the last segment
	from, to int64            // its last batch
	ends     map[string]int64 // of the batches of each segment
	where    map[raft.Index]written
	versions []victimVersion // oldest first, the last one is img
}

type victimVersion struct {
	img image
	m   model
}

const (
	spilt = "whole, an unfinished batch cut off" // nothing is missing; something behind the end looked like the start of a batch
	whole = "whole"
	torn1 = "last batch lost, as assumption 3 says"
	aged  = "an older file believed, as assumption 3 says"
	no    = "refused"

	partly = "damaged, and named" // exactly the entries that were hit
	fenced = "fenced"             // at or above what was acknowledged
	both   = "damaged and fenced"
)

// victims are logs of three segments of about 4 KiB of batches each, with a spare and a vote file. They differ in what vouches for the
// last batch.
func victims(t testing.TB) []*victim {
	var all []*victim
	for _, name := range []string{"nothing vouches", "idle record", "vote file"} {
		v := &victim{name: name, vouched: name != "nothing vouches", ends: map[string]int64{}, where: map[raft.Index]written{}}
		disk := newImageFS(nil)
		opts := smallOptions(disk)
		opts.MaxSegmentBytes = 16 << 10
		w := New("/data", opts)
		_, err := w.Open(ctx, identity)
		require.NoError(t, err)
		took := func() {
			v.versions = append(v.versions, victimVersion{disk.image(), v.now})
		}
		write := func(b raft.Batch) {
			t.Helper()
			v.last, v.from = "", 0
			require.NoError(t, w.Write(b))
			v.before, v.now = v.now, v.now.after(b)
			v.last, v.from, v.to = w.active.path, w.activeEndBefore(&b), w.active.end
			v.ends[v.last] = v.to
			v.remember(w, &b)
			took()
		}
		write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 1, VotedFor: "n1"}, Entries: commands(1, 3, 1, 40)})
		write(raft.Batch{Entries: []raft.Entry{entry(4, 1, raft.EntryConfiguration, members("c", "n1", "n2", "n3"))}})
		write(raft.Batch{Entries: commands(5, 2, 1, 1200)})
		require.NoError(t, w.Idle())
		took()
		write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 2, VotedFor: "n2"}, TruncateFrom: 6, Entries: commands(6, 3, 2, 500)})
		write(raft.Batch{Entries: commands(9, 1, 2, 900)}) // in the second segment, by size
		write(raft.Batch{TruncateFrom: 9, HardState: &raft.HardState{CurrentTerm: 3}, Entries: commands(9, 2, 3, 40)})
		require.EqualValues(t, 2, w.active.seq)
		require.NoError(t, w.Close())
		_, err = w.Open(ctx, identity) // the third
		require.NoError(t, err)
		took()
		for more := true; more; took() {
			more, err = w.Prepare()
			require.NoError(t, err)
		}
		write(raft.Batch{Entries: commands(11, 2, 3, 100)})
		write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 4}, Entries: []raft.Entry{entry(13, 4, raft.EntryNoOp, nil)}})
		write(raft.Batch{Entries: commands(14, 1, 4, 500)})
		// The last one has sectors that are zero on purpose.
		final := raft.Batch{Entries: append(commands(15, 1, 4, 100), entry(16, 4, raft.EntryCommand, make([]byte, 900)))}
		if name == "vote file" {
			final.HardState = &raft.HardState{CurrentTerm: 5, VotedFor: "n3"}
		}
		write(final)
		if name == "idle record" {
			require.NoError(t, w.Idle())
			require.Greater(t, w.active.end, v.to, "there was room for it")
			took()
		}
		require.EqualValues(t, 3, w.active.seq)
		require.Len(t, v.ends, 3)
		require.NoError(t, w.Close())
		v.img = disk.image()
		all = append(all, v)
	}
	return all
}

// activeEndBefore returns where the batch that was just written begins.
func (w *WAL) activeEndBefore(b *raft.Batch) int64 {
	vote, body := 0, int64(0)
	if b.HardState != nil {
		vote = len(b.HardState.VotedFor)
	}
	for i := range b.Entries {
		body += int64(b.Entries[i].Size())
	}
	h := batchHeader{bodyLen: body, voteLen: vote}
	h.encryptedWith(w.keyID)
	body = h.bodyLen
	header, _ := headerSize(h.words(), body)
	return w.active.end - roundUp(int64(header)+body, sectorSize)
}

// change is one fault: new content for one file or two; nil removes one.
type change struct {
	kind, what string
	files      [2]changedFile
	asOf       *model // set if a file is back as it was: what had been acknowledged then
	// Exactly what must come of it, where the fault itself says so; "" otherwise.
	want string
}

type changedFile struct {
	path string
	data []byte
}

func (c *change) each(f func(changedFile)) {
	for _, file := range c.files {
		if file.path != "" {
			f(file)
		}
	}
}

// permitted lists the outcomes that a fault may have, from where it has hit and what reads there now.
func (v *victim) permitted(c *change) []string {
	if c.want != "" && c.want != no {
		return []string{c.want}
	}
	if c.asOf != nil {
		return []string{whole, partly, fenced, both, aged}
	}
	if c.kind == "several places" { // what vouches for the last batch may be hit, too
		return []string{whole, spilt, partly, fenced, both, no, torn1}
	}
	batches, others, lost, loose := false, false, false, false
	c.each(func(f changedFile) {
		was, end := v.img[f.path], v.ends[f.path]
		if end == 0 {
			return // the vote file, the spare
		}
		for at := int64(0); at < int64(len(was)); at += sectorSize {
			old := was[at : at+sectorSize]
			is := f.data[min(at, int64(len(f.data))):min(at+sectorSize, int64(len(f.data)))]
			switch {
			case bytes.Equal(old, is):
			case at >= end && f.path != v.last: // behind what the next segment says
			case at < segmentHeaderSize || at >= end:
				loose = true
			case f.path != v.last || at < v.from:
				batches, others = true, true
			default:
				batches = true
				lost = lost || isZero(is) && !isZero(old)
			}
		}
	})
	switch {
	case batches && lost && !others && !v.vouched:
		return []string{whole, partly, fenced, both, torn1}
	case batches:
		if loose {
			return []string{whole, spilt, partly, fenced, both}
		}
		if c.files[1].path == "" && c.files[0].path == v.last && c.kind == "sectors swapped" {
			return []string{whole, partly, fenced, both, no} // two batches lost at once, and perhaps a change of terms between them
		}
		return []string{whole, partly, fenced, both}
	case loose:
		return []string{whole, spilt, fenced}
	}
	return []string{whole}
}

// open opens the damaged log and says what came of it, or what is wrong with that.
func (v *victim) open(c *change, how opening) (outcome string, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	img := maps.Clone(v.img)
	c.each(func(f changedFile) {
		if f.data == nil {
			delete(img, f.path)
		} else {
			img[f.path] = f.data
		}
	})
	disk := newImageFS(img)
	// A WAL that has pooled a buffer outlives two collections, with all that it holds; then the heap doubles each time.
	defer func() { *disk = imageFS{} }()
	opts := smallOptions(disk)
	opts.MaxSegmentBytes, opts.VerifyAtOpen = 16<<10, how != byReading
	w := New("/data", opts)
	rec, err := w.openFor(how != judged)
	if err != nil {
		var damage *raft.CorruptionError
		switch {
		case !errors.As(err, &damage):
			return no, fmt.Errorf("not a typed refusal: %w", err)
		case !strings.HasPrefix(damage.Path, "/data/") || damage.Next == "" || damage.Reason == "":
			return no, fmt.Errorf("a refusal that does not say what and where: %w", err)
		case disk.writes != 0:
			return no, fmt.Errorf("%d changes on disk, although refused: %w", disk.writes, err)
		}
		return no, nil
	}
	err = v.now.check(w, &rec)
	switch {
	case err == nil && w.Stats().TornBatches > 0:
		outcome = spilt
	case err == nil:
		outcome = whole
	case v.before.check(w, &rec) == nil:
		outcome, err = torn1, nil
		if c.asOf != nil {
			outcome = aged
		}
	case c.asOf != nil && c.asOf.check(w, &rec) == nil:
		outcome, err = aged, nil
	default:
		m := v.now
		damaged, damageErr := m.checkDamaged(w, &rec, how == byReading)
		if damageErr != nil && c.kind == "several places" {
			if m, damaged, ok := v.lostByManyFaults(c, w, &rec, how == byReading); ok {
				return torn1, v.mendIfOpen(m, w, &rec, damaged, how)
			}
		}
		if damageErr == nil {
			damageErr = v.justified(c, rec.LastIndex, damaged)
		}
		if damageErr == nil && how != judged {
			damageErr = v.now.mend(w, &rec, damaged)
		}
		switch {
		case damageErr != nil:
			err = fmt.Errorf("silent loss: %w", damageErr)
		case len(damaged) > 0 && rec.Fence != (raft.EntryID{}):
			outcome, err = both, nil
		case len(damaged) > 0:
			outcome, err = partly, nil
		default:
			outcome, err = fenced, nil
		}
	}
	if how != judged {
		err = errors.Join(err, w.Close())
	}
	return outcome, err
}

// mendIfOpen mends a log that was opened for writing, and closes it.
func (v *victim) mendIfOpen(m model, w *WAL, rec *raft.Recovered, damaged []raft.Index, how opening) error {
	if how == judged {
		return nil
	}
	if rec.Fence != (raft.EntryID{}) {
		return w.Close()
	}
	return errors.Join(m.mend(w, rec, damaged), w.Close())
}

// opening is how the log is looked at.
type opening int

const (
	judged    opening = iota // all that Open does before it changes anything
	mended                   // opened, repaired, and opened twice more
	byReading                // the same, by an Open that believes the footers: damage in front of them is found by the reads
)

// openFor opens a log, for certain if it is to be written to; otherwise it only finds out what it holds, which Open does before it
// changes anything.
func (w *WAL) openFor(writing bool) (raft.Recovered, error) {
	if writing {
		return w.Open(ctx, identity)
	}
	r := w.newRecovery()
	if err := r.understand(ctx, identity); err != nil {
		return raft.Recovered{}, err
	}
	w.open = true // for Entries, which needs no more than the index
	return r.describe(raft.SnapshotMeta{}), nil
}

// bits flips every bit of every file; every skip-th of them in a sample.
func (v *victim) bits(skip int) iter.Seq[change] {
	return func(yield func(change) bool) {
		n := 0
		for _, path := range slices.Sorted(maps.Keys(v.img)) {
			was, end := v.img[path], v.ends[path]
			for bit := range len(was) * 8 {
				if n++; n%skip != 0 {
					continue
				}
				data := bytes.Clone(was)
				data[bit/8] ^= 1 << (bit % 8)
				c := change{kind: "bits flipped", what: fmt.Sprintf("bit %d of %s", bit, path), files: [2]changedFile{{path, data}}}
				at := int64(bit / 8)
				idleEnd := end
				if v.name == "idle record" && path == v.last {
					idleEnd += sectorSize
				}
				switch {
				case end == 0 || at < segmentHeaderSize || path != v.last && at >= end:
					c.want = whole // there is a second copy, or nothing that counts
				case at < idleEnd:
					c.want = no
				case at < idleEnd+sectorSize:
					c.want = no // where the next batch would begin
				default:
					c.want = spilt
				}
				if !yield(c) {
					return
				}
			}
		}
	}
}

// cuts shortens every file to every length.
func (v *victim) cuts(skip int) iter.Seq[change] {
	return func(yield func(change) bool) {
		for _, path := range slices.Sorted(maps.Keys(v.img)) {
			for n := 0; n < len(v.img[path]); n += skip {
				c := change{
					kind: "files cut", what: fmt.Sprintf("%s cut to %d bytes", path, n),
					files: [2]changedFile{{path, v.img[path][:n:n]}}, want: whole,
				}
				if end := v.ends[path]; path == v.last || int64(n) < end {
					c.want = no
				}
				if !yield(c) {
					return
				}
			}
		}
	}
}

type spot struct {
	path string
	at   int
}

// sectors zeroes every sector, puts every older version in its place, copies every other one over it, and swaps each with every other.
func (v *victim) sectors(skip int) iter.Seq[change] {
	var places []spot
	for _, path := range slices.Sorted(maps.Keys(v.img)) {
		for at := 0; at < len(v.img[path]); at += sectorSize {
			places = append(places, spot{path, at})
		}
	}
	get := func(p spot) []byte { return v.img[p.path][p.at : p.at+sectorSize] }
	with := func(p spot, sector []byte) changedFile {
		data := bytes.Clone(v.img[p.path])
		copy(data[p.at:], sector)
		return changedFile{p.path, data}
	}
	return func(yield func(change) bool) {
		stopped, n := false, 0
		put := func(kind, what string, p spot, sector []byte) {
			if n++; !stopped && n%skip == 0 && !bytes.Equal(get(p), sector) {
				stopped = !yield(change{kind: kind, what: fmt.Sprintf("%s, %v", what, p), files: [2]changedFile{with(p, sector)}})
			}
		}
		for _, p := range places {
			put("sectors zeroed", "zeros", p, zeros[:sectorSize])
			seen := [][]byte{get(p)}
			for i, old := range v.versions {
				if p.at+sectorSize > len(old.img[p.path]) {
					continue
				}
				sector := old.img[p.path][p.at : p.at+sectorSize]
				if slices.ContainsFunc(seen, func(b []byte) bool { return bytes.Equal(b, sector) }) {
					continue
				}
				seen = append(seen, sector)
				put("sectors replaced by older ones", fmt.Sprintf("version %d", i), p, sector)
			}
			for _, q := range places {
				put("sectors copied over others", fmt.Sprintf("copy of %v", q), p, get(q))
			}
		}
		for i, p := range places {
			for _, q := range places[:i] {
				if n++; stopped || n%skip != 0 || bytes.Equal(get(p), get(q)) {
					continue
				}
				c := change{kind: "sectors swapped", what: fmt.Sprintf("%v and %v", p, q)}
				if p.path == q.path {
					f := with(p, get(q))
					copy(f.data[q.at:], get(p))
					c.files[0] = f
				} else {
					c.files = [2]changedFile{with(p, get(q)), with(q, get(p))}
				}
				stopped = !yield(c)
			}
		}
	}
}

// files removes every file, and puts back every older version of it.
func (v *victim) files() iter.Seq[change] {
	return func(yield func(change) bool) {
		for _, path := range slices.Sorted(maps.Keys(v.img)) {
			c := change{kind: "files removed", what: path, files: [2]changedFile{{path, nil}}, want: whole}
			if v.ends[path] != 0 {
				c.want = no
			}
			if !yield(c) {
				return
			}
			for i, old := range v.versions {
				data := old.img[path]
				if data == nil || bytes.Equal(data, v.img[path]) {
					continue
				}
				c := change{
					kind: "files replaced by older ones", what: fmt.Sprintf("%s of version %d", filepath.Base(path), i),
					files: [2]changedFile{{path, data}},
				}
				switch {
				case path == v.last:
					c.asOf = &v.versions[i].m
				case v.ends[path] == 0:
					c.want = whole
				default:
					c.want = no
					if int64(len(data)) >= v.ends[path] && bytes.Equal(data[:v.ends[path]], v.img[path][:v.ends[path]]) {
						c.want = whole // as it was before it was cut to size
					}
				}
				if !yield(c) {
					return
				}
			}
		}
	}
}

// allocated counts the bytes that the process has allocated on the heap.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// What opening one damaged log of 72 KiB, and the damage itself, may allocate: in the mean of a chunk, and alone.
const (
	damageChunk     = 64
	mendEvery       = 32 // of so many faults, two are mended
	damageChunkMean = 256 << 10
	damageAlone     = 1 << 20
)

// TestDamageNeverGoesUnnoticed damages a log of three segments in every way that is listed above, one fault at a time. The oracle knows
// what was acknowledged and where the fault has hit: Open must refuse with a typed error and leave the disk as it is, or serve all
// that was acknowledged. The exceptions are those of assumption 3 in docs/storage-format.md, and counted. SAFETY inv 24
func TestDamageNeverGoesUnnoticed(t *testing.T) {
	bits, others := 1, 1
	if !*proof {
		bits, others = 37, 11
	}
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // little is alive, much is allocated
	counts, total, failures := map[string]map[string]int{}, 0, 0
	peak, chunksRun := uint64(0), 0
	for i, v := range victims(t) {
		run := func(changes iter.Seq[change]) {
			for chunk := range chunks(changes, damageChunk) {
				outcomes, errs := make([]string, len(chunk)), make([]error, len(chunk))
				start := allocated()
				var wg sync.WaitGroup
				workers := runtime.GOMAXPROCS(0)
				for k := range workers {
					wg.Go(func() {
						for j := k; j < len(chunk); j += workers {
							outcomes[j], errs[j] = v.open(&chunk[j], map[int]opening{0: mended, mendEvery / 2: byReading}[j%mendEvery])
						}
					})
				}
				wg.Wait()
				used := (allocated() - start) / uint64(len(chunk))
				if chunksRun++; chunksRun%16 == 0 {
					runtime.GC()
				}
				peak = max(peak, used)
				for j := range chunk {
					c := &chunk[j]
					total++
					if allowed := v.permitted(c); errs[j] == nil && !slices.Contains(allowed, outcomes[j]) {
						errs[j] = fmt.Errorf("%s, want %v", outcomes[j], allowed)
					}
					if used > damageChunkMean && errs[j] == nil {
						start := allocated()
						_, errs[j] = v.open(c, judged)
						if alone := allocated() - start; alone > damageAlone {
							errs[j] = errors.Join(errs[j], fmt.Errorf("%d bytes allocated", alone))
						}
					}
					if errs[j] != nil {
						if failures++; failures <= 20 {
							t.Errorf("%s: %s: %s: %v", v.name, c.kind, c.what, errs[j])
						}
						continue
					}
					kind := fmt.Sprintf("%s (%s)", c.kind, v.name)
					if counts[kind] == nil {
						counts[kind] = map[string]int{}
					}
					counts[kind][outcomes[j]]++
				}
			}
		}
		if i == 0 {
			run(v.bits(bits))
		}
		run(v.cuts(others))
		run(v.sectors(others))
		run(v.files())
		run(v.many(uint64(i)+100, 24_000/min(others*others, 96)))
	}
	require.Zero(t, failures, "faults with the wrong outcome")
	t.Logf("%d damaged logs, at most %d KiB allocated for one in the mean of %d:%s", total, peak>>10, damageChunk, table(counts))
}

// chunks cuts a sequence into slices of n.
func chunks[T any](seq iter.Seq[T], n int) iter.Seq[[]T] {
	return func(yield func([]T) bool) {
		var chunk []T
		for v := range seq {
			if chunk = append(chunk, v); len(chunk) == n {
				if !yield(chunk) {
					return
				}
				chunk = nil
			}
		}
		if len(chunk) > 0 {
			yield(chunk)
		}
	}
}
