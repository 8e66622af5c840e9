package wal

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/vfs"
)

// Idle records are written by the goroutine that writes, while another one scrubs: the race detector sees what they share.
func TestIdleWhileItIsScrubbed(t *testing.T) {
	w := New("/data", smallOptions(vfs.New(1)))
	mustOpen(t, w)
	var scrubbing sync.WaitGroup
	written := make(chan struct{})
	scrubbing.Go(func() {
		for {
			select {
			case <-written:
				return
			default:
				if _, _, err := w.Scrub(1); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	for i := raft.Index(1); i <= 200; i++ {
		require.NoError(t, w.Write(raft.Batch{Entries: commands(i, 1, 1, 10)}))
		require.NoError(t, w.Idle())
	}
	close(written)
	scrubbing.Wait()
	require.NoError(t, w.Close())
}
