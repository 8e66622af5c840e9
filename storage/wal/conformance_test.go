package wal

import (
	"testing"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/storagetest"
	"github.com/steadyraft/raft/storage/vfs"
)

func TestConformance(t *testing.T) {
	t.Run("files", func(t *testing.T) {
		storagetest.Run(t, func(t *testing.T) raft.Storage { return New(t.TempDir(), Options{MinSegmentBytes: 64 << 10}) })
	})
	t.Run("simulated disk, small segments", func(t *testing.T) {
		storagetest.Run(t, func(t *testing.T) raft.Storage { return New("/data", smallOptions(vfs.New(1))) })
	})
}
