package wal

import (
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
)

var openBytes = flag.Int64("open-bytes", 1<<30, "size of the log that BenchmarkOpen opens")

// BenchmarkWrite measures a durable batch on real files; segments are prepared outside of the measured time, as the node does it.
func BenchmarkWrite(b *testing.B) {
	for _, n := range []int{1, 256} {
		b.Run(fmt.Sprintf("entries=%d", n), func(b *testing.B) {
			w := New(b.TempDir(), Options{})
			_, err := w.Open(ctx, identity)
			require.NoError(b, err)
			template := commands(1, n, 1, 256)
			batch := make([]raft.Entry, n)
			next := raft.Index(1)
			b.SetBytes(int64(n * (256 + raft.EntryHeaderSize)))
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				for i := range batch {
					batch[i] = entry(next, 1, raft.EntryCommand, template[i].Data)
					next++
				}
				for more := true; more; {
					more, err = w.Prepare()
					require.NoError(b, err)
				}
				b.StartTimer()
				if err := w.Write(raft.Batch{Entries: batch}); err != nil {
					b.Fatal(err)
				}
			}
			require.NoError(b, w.Close())
		})
	}
}

// BenchmarkOpen measures what a start costs with a clean log of 1 GiB (-open-bytes), on real files: an Open that believes the footers, and one
// that verifies everything, beside a plain sequential read of the same files. The files are in the page cache for all three.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	w := New(dir, Options{})
	_, err := w.Open(ctx, identity)
	require.NoError(b, err)
	const entries, size = 256, 1024
	template := commands(1, entries, 1, size)
	batch := make([]raft.Entry, entries)
	total := int64(0)
	for next := raft.Index(1); total < *openBytes; {
		for i := range batch {
			batch[i] = entry(next, 1, raft.EntryCommand, template[i].Data)
			total += int64(batch[i].Size())
			next++
		}
		require.NoError(b, w.Write(raft.Batch{Entries: batch}))
		for more := true; more; {
			more, err = w.Prepare()
			require.NoError(b, err)
		}
	}
	require.NoError(b, w.Close())
	best := func(run func()) float64 {
		least := time.Duration(math.MaxInt64)
		for range 3 {
			start := time.Now()
			run()
			least = min(least, time.Since(start))
		}
		return least.Seconds()
	}
	raw := best(func() {
		buf := make([]byte, 1<<20)
		paths, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
		require.NoError(b, err)
		for _, path := range paths {
			f, err := os.Open(path)
			require.NoError(b, err)
			for err == nil {
				_, err = f.Read(buf)
			}
			require.NoError(b, f.Close())
		}
	})
	understand := func(opts Options) func() {
		return func() {
			w := New(dir, opts)
			require.NoError(b, w.newRecovery().understand(ctx, identity))
		}
	}
	open := best(func() {
		w := New(dir, Options{})
		_, err := w.Open(ctx, identity)
		require.NoError(b, err)
		require.NoError(b, w.Close())
	})
	verify := best(understand(Options{VerifyAtOpen: true}))
	for b.Loop() {
		understand(Options{})()
	}
	b.ReportMetric(open*1e3, "open-ms")
	b.ReportMetric(float64(total)/verify/1e6, "verify-MB/s")
	b.ReportMetric(float64(total)/raw/1e6, "raw-MB/s")
	b.ReportMetric(raw/verify, "verify/raw")
}

// BenchmarkEntries measures reads of 1 MiB of 256-byte commands out of a log of many batches.
func BenchmarkEntries(b *testing.B) {
	w := New(b.TempDir(), Options{})
	_, err := w.Open(ctx, identity)
	require.NoError(b, err)
	const batches, size = 200, 256
	for i := range batches {
		require.NoError(b, w.Write(raft.Batch{Entries: commands(raft.Index(1+i*size), size, 1, 256)}))
	}
	at, last := raft.Index(1), raft.Index(batches*size)
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	for b.Loop() {
		es, err := w.Entries(at, last+1, 1<<20)
		if err != nil {
			b.Fatal(err)
		}
		if at = es[len(es)-1].Index + 1; at > last-4096 {
			at = 1
		}
	}
	require.NoError(b, w.Close())
}
