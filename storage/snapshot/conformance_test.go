package snapshot

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/storagetest"
)

func TestConformance(t *testing.T) {
	storagetest.RunSnapshots(t, func(t *testing.T) raft.SnapshotStore {
		s, err := New(newMemFS(), dir, Options{})
		require.NoError(t, err)
		return s
	})
}
