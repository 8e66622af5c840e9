package wal

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
)

// BenchmarkCost measures durable batches on real files, written in three ways that take turns batch by batch, so that whatever else
// the machine does hits all three: the entries' frames alone, as the log writes them, and as it writes them encrypted. It reports what headers,
// chaining and checksums cost over the first, and what encryption costs over the second, in percent of the throughput: by the sums
// of all times, and by the medians, which a few slow syncs do not move.
func BenchmarkCost(b *testing.B) {
	for _, n := range []int{1, 16, 256, 1024} {
		b.Run(fmt.Sprintf("entries=%d", n), func(b *testing.B) {
			logs := []*WAL{New(b.TempDir(), Options{}), New(b.TempDir(), Options{}), New(b.TempDir(), Options{Keys: ring(1)})}
			for _, w := range logs {
				_, err := w.Open(ctx, identity)
				require.NoError(b, err)
			}
			times := make([][]time.Duration, len(logs))
			template := commands(1, n, 1, 256)
			batch := make([]raft.Entry, n)
			next, turn := raft.Index(1), 0
			for b.Loop() {
				for i := range batch {
					batch[i] = entry(next, 1, raft.EntryCommand, template[i].Data)
					next++
				}
				for i := range logs {
					k := (turn + i) % len(logs)
					w := logs[k]
					for more := true; more; { // as the node does, beside the writes
						var err error
						more, err = w.Prepare()
						require.NoError(b, err)
					}
					began := time.Now()
					var err error
					if k == 0 {
						err = writeFrames(w, batch)
					} else {
						err = w.Write(raft.Batch{Entries: batch})
					}
					times[k] = append(times[k], time.Since(began))
					if err != nil {
						b.Fatal(err)
					}
				}
				turn++
			}
			for _, w := range logs {
				require.NoError(b, w.Close())
			}
			// Of the throughput: 1 - old/new.
			cost := func(old, now time.Duration) float64 { return 100 * (1 - float64(old)/float64(now)) }
			var sums, medians [3]time.Duration
			for k := range times {
				for _, d := range times[k] {
					sums[k] += d
				}
				slices.Sort(times[k])
				medians[k] = times[k][len(times[k])/2]
			}
			b.ReportMetric(cost(sums[0], sums[1]), "%checks")
			b.ReportMetric(cost(sums[1], sums[2]), "%encryption")
			b.ReportMetric(cost(medians[0], medians[1]), "%checks-median")
			b.ReportMetric(cost(medians[1], medians[2]), "%encryption-median")
			b.ReportMetric(float64(medians[1].Microseconds()), "µs/batch")
		})
	}
}

// writeFrames writes entries into a prepared segment and syncs them, and nothing else.
func writeFrames(w *WAL, entries []raft.Entry) error {
	total := roundUp(int64(raft.EntriesSize(entries)), sectorSize)
	if err := w.makeRoom(total, false); err != nil {
		return err
	}
	if int64(cap(w.buf)) < total {
		w.buf = vfs.Aligned(int(total))
	}
	w.buf = w.buf[:total]
	at := 0
	for i := range entries {
		at += copy(w.buf[at:], entries[i].Frame())
	}
	clear(w.buf[at:])
	err := w.writeDurable(w.padded(w.active.end+total), w.active.end)
	w.active.end += total
	w.filled.Store(w.active.end)
	return err
}

// BenchmarkEncode measures what a batch costs besides the disk.
func BenchmarkEncode(b *testing.B) {
	for _, encrypted := range []bool{false, true} {
		b.Run(fmt.Sprintf("encrypted=%v", encrypted), func(b *testing.B) {
			es := commands(1, 256, 1, 256)
			h := batchHeader{bodyLen: int64(raft.EntriesSize(es)), count: len(es), last: es[255].ID(), firstTerm: 1}
			var s *sealer
			if encrypted {
				w := New("/data", Options{FS: vfs.New(1), Keys: ring(1), MinSegmentBytes: 16 << 10})
				_, err := w.Open(ctx, identity)
				require.NoError(b, err)
				s = w.active.sealer
				h.encryptedWith(1)
			}
			var buf []byte
			b.SetBytes(h.bodyLen)
			b.ReportAllocs()
			for b.Loop() {
				buf = encodeBatch(buf, &h, es, nil, s)
			}
		})
	}
}
