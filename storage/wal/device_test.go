//go:build unix

package wal

import (
	"errors"
	"math/rand/v2"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/internal/loopdevice"
	"github.com/steadyraft/raft/storage/vfs"
)

// TestPowerLossLosesNothing writes to a log on a real file system (ext4 on a loop device), cuts that off from its device at a random
// moment, as a loss of power does, mounts it again from what is on the device and recovers: again and again, in each of the modes in
// which ext4 treats data. What Write had reported as done is there, and what was under way is there as a whole or not at all.
// SAFETY inv 2, 3, 13
//
// The file system's memory is lost: pages, and changes of names and lengths that no sync has carried out. What was written to the
// device and not flushed there is not lost, so this does not show that the right things are flushed; crashstates_test.go does.
func TestPowerLossLosesNothing(t *testing.T) {
	cycles := 100
	if !*proof {
		cycles = 8
	}
	for _, mode := range []string{"data=ordered", "data=writeback", "data=journal"} {
		t.Run(mode, func(t *testing.T) {
			device := loopdevice.New(t, 32<<20, mode)
			dir := filepath.Join(device.Dir(), "log")
			var m model
			var torn uint64
			steps, batches, doubtful, survived := 0, 0, 0, 0
			for cycle := range uint64(cycles) {
				rnd := rand.New(rand.NewPCG(cycle, 5))
				opts := Options{FS: cachedFS{}, MinSegmentBytes: 16 << 10, MaxSegmentBytes: 64 << 10}
				if rnd.IntN(3) == 0 {
					opts.FS = nil // writes go past the cache where they can
				}
				w := New(dir, opts)
				_, err := w.Open(ctx, identity)
				require.NoError(t, err, "cycle %d", cycle)

				var cut atomic.Bool
				delay, journal := time.Duration(rnd.Int64N(int64(40*time.Millisecond))), rnd.IntN(2) == 0
				ended := make(chan error, 1)
				go func() {
					<-time.After(delay)
					cut.Store(true)
					ended <- device.Cut(journal)
				}()
				acked, doubt := m, m
				for err == nil {
					s := killStep(rnd, acked)
					if s.reopen {
						s = step{idle: true} // a file that Open has not closed yet would keep the device
					}
					doubt = s.after(acked)
					steps++
					switch {
					case s.batch != nil:
						batches++
						err = w.Write(*s.batch)
					case s.compact != 0:
						err = w.Compact(s.compact)
					case s.idle:
						err = w.Idle()
					case s.prepare:
						for more := true; more && err == nil; {
							more, err = w.Prepare()
						}
						if cut.Load() {
							err = nil // not final: a write that needs what is missing will fail
						}
					}
					if err == nil {
						acked = doubt
					}
				}
				require.True(t, cut.Load(), "cycle %d: %v", cycle, err)
				require.True(t, errors.Is(err, syscall.EIO) || errors.Is(err, syscall.EROFS), "cycle %d: %v", cycle, err)
				require.NoError(t, <-ended)
				require.Error(t, w.Write(raft.Batch{HardState: &acked.hardState}), "an error is final")
				_ = w.Close() // of a device that is gone
				require.NoError(t, device.Remount())

				w = New(dir, opts)
				rec, err := w.Open(ctx, identity)
				require.NoError(t, err, "cycle %d, journal %v", cycle, journal)
				acked.base = max(acked.base, doubt.base) // a compaction may have happened
				if err := acked.check(w, &rec); err != nil {
					require.NoError(t, doubt.check(w, &rec), "cycle %d: neither what was acknowledged (%v) nor the step under way", cycle, err)
					survived++
				} else if doubt.check(w, &rec) != nil {
					doubtful++
				}
				torn += w.Stats().TornBatches
				m, err = modelOf(w, &rec)
				require.NoError(t, err)
				require.NoError(t, w.Close())
			}
			t.Logf("%d losses of power; %d steps begun, %d of them batches, up to entry %d; of the steps under way %d were lost, %d were there, %d "+
				"batches were cut off unfinished", cycles, steps, batches, m.last(), doubtful, survived, torn)
			require.NotZero(t, batches)
		})
	}
}

// cachedFS is the operating system's files, none of which is written past its cache: what is not synced is in memory only.
type cachedFS struct{ vfs.OS }

type cachedFile struct{ vfs.File }

func (c cachedFS) Create(path string) (vfs.File, error) {
	f, err := c.OS.Create(path)
	return cachedFile{f}, err
}

func (c cachedFS) OpenWrite(path string) (vfs.File, error) {
	f, err := c.OS.OpenWrite(path)
	return cachedFile{f}, err
}
