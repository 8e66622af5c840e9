package wal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
)

// members is the content of a configuration entry with those voters.
func members(cluster string, ids ...raft.NodeID) []byte {
	conf := raft.Configuration{ClusterID: cluster}
	for _, id := range ids {
		conf.Servers = append(conf.Servers, raft.Server{ID: id, Address: string(id) + ":7000"})
	}
	return conf.AppendBinary(nil)
}

// damagedImage is the image of a victim after a fault.
func (v *victim) damagedImage(c *change) image {
	img := maps.Clone(v.img)
	c.each(func(f changedFile) {
		if f.data == nil {
			delete(img, f.path)
		} else {
			img[f.path] = f.data
		}
	})
	return img
}

// compare inspects a damaged log, then opens it, and says where the two disagree.
func (v *victim) compare(c *change) (verdict Verdict, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	img := v.damagedImage(c)
	disk := newImageFS(img)
	report, err := Inspect(ctx, disk, "/data")
	if err != nil {
		return "", fmt.Errorf("inspect: %w", err)
	}
	if disk.writes != 0 || !reflect.DeepEqual(disk.image(), img) {
		return "", fmt.Errorf("%d changes on disk", disk.writes)
	}
	worst := Clean
	for _, f := range report.Findings {
		if !strings.HasPrefix(f.File, "/data") || f.Found == "" || f.Meaning == "" || f.Next == "" {
			return "", fmt.Errorf("a finding that does not say what, where and what next: %+v", f)
		}
		if f.Verdict.Worse(worst) {
			worst = f.Verdict
		}
	}
	if worst != report.Verdict {
		return "", fmt.Errorf("verdict %s, but the worst finding is %s", report.Verdict, worst)
	}

	opts := smallOptions(disk)
	opts.VerifyAtOpen = true
	w := New("/data", opts)
	rec, openErr := w.Open(ctx, identity)
	if openErr != nil {
		var damage *raft.CorruptionError
		switch {
		case report.Refusal == nil:
			return "", fmt.Errorf("Open refuses what Inspect calls %s: %w", report.Verdict, openErr)
		case report.Refusal.Error() != openErr.Error():
			return "", fmt.Errorf("Open says %w, Inspect says %w", openErr, report.Refusal)
		case !report.Verdict.Worse(Fenced):
			return "", fmt.Errorf("refused, and the verdict is %s", report.Verdict)
		case !errors.As(openErr, &damage):
			return "", openErr
		}
		for _, f := range report.Findings {
			if f.File == damage.Path && f.Offset == damage.Offset && strings.HasPrefix(f.Found, damage.Reason) && f.Verdict.Worse(Fenced) {
				return report.Verdict, nil
			}
		}
		return "", fmt.Errorf("no finding tells of %w", openErr)
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	torn := worst == Torn
	for _, f := range report.Findings {
		torn = torn || f.Verdict == Torn
	}
	switch {
	case report.Verdict.Worse(Fenced):
		return "", fmt.Errorf("Open takes what Inspect calls %s: %+v", report.Verdict, report.Findings)
	case !reflect.DeepEqual(rec.Findings, report.Findings) && len(rec.Findings)+len(report.Findings) > 0:
		return "", fmt.Errorf("Open has found %+v, Inspect %+v", rec.Findings, report.Findings)
	case !slices.Equal(rec.Damaged, report.Damaged) || rec.Fence != report.Fence:
		return "", fmt.Errorf("Open has lost %+v and up to %v, Inspect %+v and %v", rec.Damaged, rec.Fence, report.Damaged, report.Fence)
	case report.Refusal != nil:
		return "", fmt.Errorf("Open takes what Inspect refuses: %w", report.Refusal)
	case torn != (w.Stats().TornBatches > 0):
		return "", fmt.Errorf("Open has cut %d batches, Inspect says %s", w.Stats().TornBatches, report.Verdict)
	case report.HardState != rec.HardState || report.Last.Index != rec.LastIndex || report.Compacted != rec.Compacted:
		return "", fmt.Errorf("Open has %+v, Inspect %+v", rec, report)
	case report.Replica != rec.Identity.Replica || report.Incarnation+1 != rec.Identity.Incarnation:
		return "", fmt.Errorf("Open has %+v, Inspect %+v", rec.Identity, report)
	}
	return report.Verdict, nil
}

// many damages several places of two files at once, by seed.
func (v *victim) many(seed uint64, n int) iter.Seq[change] {
	return func(yield func(change) bool) {
		rnd := rand.New(rand.NewPCG(seed, 5))
		paths := slices.Sorted(maps.Keys(v.img))
		for i := range n {
			c := change{kind: "several places", what: fmt.Sprintf("number %d", i)}
			first := rnd.IntN(len(paths))
			for k, path := range []string{paths[first], paths[(first+1+rnd.IntN(len(paths)-1))%len(paths)]} {
				data := bytes.Clone(v.img[path])
				for range 1 + rnd.IntN(12) {
					at := rnd.IntN(len(data)/sectorSize) * sectorSize
					switch rnd.IntN(4) {
					case 0:
						clear(data[at : at+sectorSize])
					case 1:
						data[at+rnd.IntN(sectorSize)] ^= byte(1 + rnd.IntN(255))
					case 2:
						copy(data[at:at+sectorSize], data[rnd.IntN(len(data)/sectorSize)*sectorSize:])
					default:
						for j := range sectorSize {
							data[at+j] = byte(rnd.Uint32())
						}
					}
				}
				if rnd.IntN(8) == 0 {
					data = data[:rnd.IntN(len(data))]
				}
				c.files[k] = changedFile{path, data}
			}
			if !yield(c) {
				return
			}
		}
	}
}

// TestInspectAgreesWithOpen damages logs in a sample of all the ways of TestDamageNeverGoesUnnoticed, and in several places at once:
// Inspect comes to the verdict to which Open comes, in the same words, and changes nothing.
func TestInspectAgreesWithOpen(t *testing.T) {
	counts, failures := map[string]map[string]int{}, 0
	var mu sync.Mutex
	for i, v := range victims(t) {
		run := func(changes iter.Seq[change]) {
			work := make(chan change)
			var wg sync.WaitGroup
			for range runtime.GOMAXPROCS(0) {
				wg.Go(func() {
					for c := range work {
						verdict, err := v.compare(&c)
						mu.Lock()
						if err != nil {
							if failures++; failures <= 20 {
								t.Errorf("%s: %s: %s: %v", v.name, c.kind, c.what, err)
							}
						} else {
							if counts[c.kind] == nil {
								counts[c.kind] = map[string]int{}
							}
							counts[c.kind][string(verdict)]++
						}
						mu.Unlock()
					}
				})
			}
			for c := range changes {
				work <- c
			}
			close(work)
			wg.Wait()
		}
		bits, cuts, sectors := 211, 83, 7
		if *proof {
			bits, cuts, sectors = 1, 1, 1
		}
		if i == 0 {
			run(v.bits(bits))
		}
		run(v.cuts(cuts))
		run(v.sectors(sectors))
		run(v.files())
		run(v.many(uint64(i), 300))
	}
	require.Zero(t, failures)
	t.Log(table(counts))
}

// A running server's directory is not read, and a server does not start while it is.
func TestInspectKeepsServersOut(t *testing.T) {
	for _, where := range []string{"simulated disk", "files"} {
		t.Run(where, func(t *testing.T) {
			opts, dir := smallOptions(vfs.New(1)), "/data"
			if where == "files" {
				opts.FS, dir = vfs.OS{}, t.TempDir()
			}
			w := New(dir, opts)
			mustOpen(t, w)
			require.NoError(t, w.Write(raft.Batch{Entries: commands(1, 3, 1, 10)}))
			_, err := Inspect(ctx, opts.FS, dir)
			require.ErrorIs(t, err, raft.ErrLocked)
			require.NoError(t, w.Close())

			n := 0
			require.NoError(t, Dump(ctx, opts.FS, dir, 0, 0, func(*Report) error {
				_, err := w.Open(ctx, identity)
				require.ErrorIs(t, err, raft.ErrLocked)
				_, err = Inspect(ctx, opts.FS, dir)
				require.NoError(t, err, "two may look at the same time")
				return nil
			}, func(raft.Entry) error { n++; return nil }))
			require.Equal(t, 3, n)
			mustOpen(t, w)
			require.NoError(t, w.Close())
		})
	}
}

// stopped makes a log of two batches, with a restart between them: entries 1 to 3, then 4 (a configuration), 5 and 6.
func stopped(t *testing.T) (*imageFS, []raft.Entry) {
	t.Helper()
	disk := newImageFS(nil)
	w := New("/data", smallOptions(disk))
	mustOpen(t, w)
	all := commands(1, 3, 1, 700)
	require.NoError(t, w.Write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 1, VotedFor: "n1"}, Entries: all}))
	reopen(t, w)
	all = append(all, entry(4, 2, raft.EntryConfiguration, members("c", "n1", "n2")))
	all = append(all, commands(5, 2, 2, 700)...)
	require.NoError(t, w.Write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 2}, Entries: all[3:]}))
	require.NoError(t, w.Idle())
	require.NoError(t, w.Close())
	return disk, all
}

func flip(t *testing.T, disk *imageFS, path string, what []byte) int64 {
	t.Helper()
	f := disk.files[path]
	at := bytes.Index(f.data, what)
	require.GreaterOrEqual(t, at, 0)
	at += len(what) / 2
	f.resize(int64(len(f.data))) // a copy of its own
	f.data[at] ^= 4
	return int64(at)
}

// All that a clean directory says of itself.
func TestInspectDescribesTheLog(t *testing.T) {
	disk, all := stopped(t)
	r, err := Inspect(ctx, disk, "/data")
	require.NoError(t, err)
	require.Equal(t, Clean, r.Verdict)
	require.Empty(t, r.Findings)
	require.NoError(t, r.Refusal)
	require.Equal(t, []any{"c", raft.NodeID("n1"), uint64(2)}, []any{r.Cluster, r.Node, r.Incarnation})
	require.Equal(t, raft.HardState{CurrentTerm: 2}, r.HardState)
	require.Equal(t, &raft.HardState{CurrentTerm: 2}, r.VoteFile)
	require.Equal(t, all[5].ID(), r.Last)
	require.Equal(t, r.Last, r.Newest)
	require.EqualValues(t, 2, r.Batches)
	require.Len(t, r.Configurations, 1)
	require.EqualValues(t, 4, r.Configurations[0].Index)
	require.Equal(t, []raft.NodeID{"n1", "n2"}, r.Configurations[0].Configuration.Voters())
	require.Len(t, r.Segments, 2)
	for i, want := range []Segment{
		{File: "/data/0000000000000001.wal", Sequence: 1, Bytes: 16 << 10, Batches: 1, First: all[0].ID(), Last: all[2].ID()},
		{File: "/data/0000000000000002.wal", Sequence: 2, Bytes: 16 << 10, Batches: 1, First: all[3].ID(), Last: all[5].ID()},
	} {
		require.Greater(t, r.Segments[i].End, int64(segmentHeaderSize))
		want.End = r.Segments[i].End
		require.Equal(t, want, r.Segments[i])
	}
}

// One bit in the middle of an entry: file, offset, the entry's name, what is left, and what to do.
func TestInspectNamesTheDamagedEntry(t *testing.T) {
	disk, all := stopped(t)
	flip(t, disk, "/data/0000000000000001.wal", all[1].Data)
	r, err := Inspect(ctx, disk, "/data")
	require.NoError(t, err)
	require.Equal(t, Corrupt, r.Verdict)
	require.Equal(t, all[5].ID(), r.Newest)
	require.Equal(t, []raft.Damage{{First: 2, Last: 2}}, r.Damaged)
	require.Len(t, r.Findings, 1)
	f := r.Findings[0]
	require.Equal(t, "/data/0000000000000001.wal", f.File)
	require.EqualValues(t, segmentHeaderSize, f.Offset, "of the batch")
	require.Contains(t, f.Found, "page 0 of batch 1 does not match its checksum")
	require.Contains(t, f.Found, "the batch holds entries 1@1 to 3@1")
	require.Contains(t, f.Found, "damaged: 2")
	require.NotContains(t, f.Found, "damaged: 2 to")
	require.Contains(t, f.Meaning, "entry 2@1 cannot be read")
	require.Contains(t, f.Next, "gets the entries from them")
	require.NoError(t, r.Refusal)

	// A second damage is listed, too: the header of an entry, so that the rest of its page cannot be told apart. The entry may be a
	// configuration.
	flip(t, disk, "/data/0000000000000002.wal", all[4].Frame()[:raft.EntryHeaderSize])
	r, err = Inspect(ctx, disk, "/data")
	require.NoError(t, err)
	require.Len(t, r.Findings, 2)
	require.Equal(t, f, r.Findings[0])
	require.Equal(t, []raft.Damage{{First: 2, Last: 2}, {First: 5, Last: 6, MayConfigure: true}}, r.Damaged)
	require.Equal(t, "/data/0000000000000002.wal", r.Findings[1].File)
	require.Contains(t, r.Findings[1].Found, "damaged: 5 to 6")
	require.Contains(t, r.Findings[1].Meaning, "entries 5@2 to 6@2 cannot be read")

	// The configuration, too.
	flip(t, disk, "/data/0000000000000002.wal", all[3].Data)
	rec, err := New("/data", smallOptions(disk)).Open(ctx, identity)
	require.NoError(t, err, "who the members are is unknown")
	require.Equal(t, []raft.Damage{{First: 2, Last: 2}, {First: 4, Last: 6, MayConfigure: true}}, rec.Damaged)
}

// Every damaged record of the vote file is named, not only the first and the last one.
func TestInspectNamesEveryRecordOfTheVoteFile(t *testing.T) {
	disk, _ := stopped(t)
	for i := range disk.files["/data/vote"].data {
		disk.files["/data/vote"].data[i] ^= 0xA5
	}
	r, err := Inspect(ctx, disk, "/data")
	require.NoError(t, err)
	require.Equal(t, Degraded, r.Verdict)
	var at []int64
	for _, f := range r.Findings {
		if f.Found == "record checksum does not match" {
			at = append(at, f.Offset)
		}
	}
	require.Equal(t, []int64{0, pageSize, 2 * pageSize, 3 * pageSize}, at)
}

// However many places are damaged, the report is bounded.
func TestReportIsBounded(t *testing.T) {
	disk := newImageFS(nil)
	opts := smallOptions(disk)
	opts.MinSegmentBytes, opts.MaxSegmentBytes = 1<<20, 1<<20
	w := New("/data", opts)
	mustOpen(t, w)
	for i := range 150 {
		require.NoError(t, w.Write(raft.Batch{Entries: commands(raft.Index(i+1), 1, 1, 10)}))
	}
	path := w.active.path
	require.NoError(t, w.Close())
	f := disk.files[path]
	for i := range 150 {
		f.data[segmentHeaderSize+i*sectorSize+250] ^= 1
	}
	r, err := Inspect(ctx, disk, "/data")
	require.NoError(t, err)
	require.Len(t, r.Findings, maxFindings)
	require.Positive(t, r.Unlisted)
}

// A server starts from the newest snapshot whose description is intact: what is wrong with that one, or missing behind it, is damage;
// what is wrong with another is not.
func TestInspectJudgesSnapshots(t *testing.T) {
	conf := raft.Configuration{ClusterID: "c", Servers: []raft.Server{{ID: "n1"}}}
	prepare := func(t *testing.T, compact raft.Index) *imageFS {
		disk := newImageFS(nil)
		w := New("/data", smallOptions(disk))
		mustOpen(t, w)
		for i := range raft.Index(30) {
			require.NoError(t, w.Write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 1}, Entries: commands(i+1, 1, 1, 3000)}))
		}
		for _, index := range []raft.Index{10, 20} {
			sink, err := w.Snapshots().Create(raft.SnapshotMeta{Index: index, Term: 1, Size: -1, Configuration: conf})
			require.NoError(t, err)
			_, err = sink.Write(snapshotContent(index))
			require.NoError(t, err)
			_, err = sink.Commit()
			require.NoError(t, err)
		}
		if compact > 0 {
			require.NoError(t, w.Compact(compact))
		}
		require.NoError(t, w.Close())
		return disk
	}
	const older, newer = "/data/snapshots/00000000000000000010.snapshot", "/data/snapshots/00000000000000000020.snapshot"
	for _, c := range []struct {
		name    string
		compact raft.Index
		content []string // damaged
		gone    []string
		verdict Verdict
		says    []string
	}{
		{"all intact", 10, nil, nil, Clean, nil},
		{"older one damaged", 10, []string{older}, nil, Degraded, []string{older, "will not be used"}},
		{"newer one damaged", 10, []string{newer}, nil, Damaged, []string{newer, "then starts from the snapshot at 10@1"}},
		{"newer one damaged, the older too old", 20, []string{newer}, nil, Damaged, []string{newer, "empty data directory"}},
		{"both damaged, the log whole", 0, []string{newer, older}, nil, Damaged, []string{newer, "back to its beginning", older}},
		{"newer one gone", 10, nil, []string{newer}, Clean, nil},
		{"newer one gone, the older too old", 20, nil, []string{newer}, Corrupt, []string{"ends at 10@1, but the log begins behind"}},
		{"both gone", 10, nil, []string{newer, older}, Corrupt, []string{"ends at 0@0, but the log begins behind"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := prepare(t, c.compact)
			for _, path := range c.content {
				flip(t, disk, path, snapshotContent(map[string]raft.Index{older: 10, newer: 20}[path]))
			}
			for _, path := range c.gone {
				delete(disk.files, path)
			}
			r, err := Inspect(ctx, disk, "/data")
			require.NoError(t, err)
			require.Equal(t, c.verdict, r.Verdict, "%+v", r.Findings)
			require.NoError(t, r.Refusal, "Open takes them all")
			said := fmt.Sprint(r.Findings)
			for _, want := range c.says {
				require.Contains(t, said, want)
			}

			if strings.Contains(said, "but the log begins behind") {
				_, err = PlanRecovery(ctx, disk, "/data", "new", "h:1")
				require.ErrorIs(t, err, ErrDamaged, "nobody has what is missing")
			}
			w := New("/data", smallOptions(disk))
			rec := mustOpen(t, w)
			_, err = raft.NewCore(raft.CoreConfig{ID: "n1"}, 0, &rec)
			require.NoError(t, err)
			require.NoError(t, w.Close())
		})
	}
}

// What is no log is not called a clean one.
func TestInspectOfNothing(t *testing.T) {
	dir := t.TempDir()
	_, err := Inspect(ctx, vfs.OS{}, dir)
	require.ErrorIs(t, err, ErrNoLog)
	_, err = Inspect(ctx, vfs.OS{}, filepath.Join(dir, "none"))
	require.ErrorIs(t, err, fs.ErrNotExist)

	require.NoError(t, os.WriteFile(filepath.Join(dir, lockName), nil, 0o600)) // of a server that crashed before it began
	r, err := Inspect(ctx, vfs.OS{}, dir)
	require.NoError(t, err)
	require.Equal(t, Clean, r.Verdict)
	require.Len(t, r.Findings, 1)
	require.Contains(t, r.Findings[0].Found, "blank")

	require.NoError(t, os.Mkdir(filepath.Join(dir, snapshotsName), 0o700))
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	_, err = Inspect(ctx, vfs.OS{}, dir)
	require.NoError(t, err, "nothing to read")

	disk, _ := stopped(t)
	_, err = Inspect(ctx, disk, "/data")
	require.ErrorIs(t, err, context.Canceled)
}

// Dump hands out the log as it is in force: what was superseded is not in it, nor what is damaged.
func TestDump(t *testing.T) {
	disk, all := stopped(t)
	w := New("/data", smallOptions(disk))
	mustOpen(t, w)
	replaced := commands(6, 3, 3, 900)
	require.NoError(t, w.Write(raft.Batch{HardState: &raft.HardState{CurrentTerm: 3}, TruncateFrom: 6, Entries: replaced}))
	require.NoError(t, w.Close())
	all = append(all[:5], replaced...)

	dump := func(lo, hi raft.Index) (r Report, got []raft.Entry) {
		t.Helper()
		before, writes := disk.image(), disk.writes
		require.NoError(t, Dump(ctx, disk, "/data", lo, hi, func(begun *Report) error {
			r = *begun
			return nil
		}, func(e raft.Entry) error {
			got = append(got, e)
			return nil
		}))
		require.Equal(t, writes, disk.writes)
		require.Equal(t, before, disk.image())
		return r, got
	}
	r, got := dump(0, 0)
	require.Equal(t, Clean, r.Verdict)
	require.Equal(t, all, got)
	_, got = dump(3, 7)
	require.Equal(t, all[2:6], got)
	_, got = dump(8, 100)
	require.Equal(t, all[7:], got)
	_, got = dump(9, 0)
	require.Empty(t, got)

	full := errors.New("pipe closed")
	require.ErrorIs(t, Dump(ctx, disk, "/data", 0, 0, func(*Report) error { return full }, nil), full)
	require.ErrorIs(t, Dump(ctx, disk, "/data", 0, 0, func(*Report) error { return nil }, func(raft.Entry) error { return full }), full)

	flip(t, disk, "/data/0000000000000002.wal", all[4].Data)
	r, got = dump(0, 0)
	require.Equal(t, Corrupt, r.Verdict)
	require.Equal(t, append(all[:4:4], all[5:]...), got, "without the entry that is damaged")
	require.Equal(t, all[len(all)-1].ID(), r.Last)
}
