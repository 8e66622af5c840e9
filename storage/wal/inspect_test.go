package wal

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"reflect"
	"runtime"
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
	w := New("/data", opts)
	rec, openErr := w.Open(ctx, identity)
	if openErr != nil {
		var damage *raft.CorruptionError
		switch {
		case report.Refusal == nil:
			return "", fmt.Errorf("Open refuses what Inspect calls %s: %w", report.Verdict, openErr)
		case report.Refusal.Error() != openErr.Error():
			return "", fmt.Errorf("Open says %w, Inspect says %w", openErr, report.Refusal)
		case report.Verdict != Damaged:
			return "", fmt.Errorf("refused, and the verdict is %s", report.Verdict)
		case !errors.As(openErr, &damage):
			return "", openErr
		}
		for _, f := range report.Findings {
			if f.File == damage.Path && f.Offset == damage.Offset && strings.HasPrefix(f.Found, damage.Reason) && f.Verdict == Damaged {
				return report.Verdict, nil
			}
		}
		return "", fmt.Errorf("no finding tells of %w", openErr)
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	torn := worst == Unfinished
	for _, f := range report.Findings {
		torn = torn || f.Verdict == Unfinished
	}
	switch {
	case report.Verdict == Damaged:
		return "", fmt.Errorf("Open takes what Inspect calls damaged: %+v", report.Findings)
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

// TestInspectAgreesWithOpen damages logs in a sample of all the ways of TestDamageNeverGoesUnnoticed: Inspect comes to the verdict to
// which Open comes, in the same words, and changes nothing.
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
		if i == 0 {
			run(v.bits(101))
		}
		run(v.cuts(37))
		run(v.sectors(23))
		run(v.files())
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
