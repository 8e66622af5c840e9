package wal

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
)

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

// BenchmarkEncode measures what a batch costs besides the disk.
func BenchmarkEncode(b *testing.B) {
	es := commands(1, 256, 1, 256)
	h := batchHeader{bodyLen: int64(raft.EntriesSize(es)), count: len(es), last: es[255].ID(), firstTerm: 1}
	var buf []byte
	b.SetBytes(h.bodyLen)
	b.ReportAllocs()
	for b.Loop() {
		buf = encodeBatch(buf, &h, es)
	}
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
