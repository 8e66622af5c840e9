package storagetest

import (
	"bytes"
	"io"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
)

// RunSnapshots tests a snapshot store. open returns one that is empty; what it needs to be released is for it to register with
// t.Cleanup.
func RunSnapshots(t *testing.T, open func(t *testing.T) raft.SnapshotStore) {
	cases := []struct {
		name string
		test func(t *testing.T, s raft.SnapshotStore)
	}{
		{"Content", testSnapshotContent},
		{"Missing", testSnapshotMissing},
		{"InvisibleBeforeCommit", testSnapshotInvisible},
		{"EndsOnce", testSnapshotEndsOnce},
		{"TwoAreKept", testSnapshotsKept},
		{"AnnouncedSize", testSnapshotSize},
		{"Replaced", testSnapshotReplaced},
		{"ReaderGoesOn", testSnapshotReaderGoesOn},
		{"ReaderIsRewound", testSnapshotReaderIsRewound},
		{"Concurrent", testSnapshotsConcurrent},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

func put(t *testing.T, s raft.SnapshotStore, id raft.EntryID, content []byte) raft.SnapshotMeta {
	t.Helper()
	meta := NewSnapshotMeta(id)
	k, err := s.Create(meta)
	require.NoError(t, err)
	_, err = k.Write(content)
	require.NoError(t, err)
	got, err := k.Commit()
	require.NoError(t, err)
	meta.Size = int64(len(content))
	require.Equal(t, meta, got)
	return got
}

func requireContent(t *testing.T, s raft.SnapshotStore, index raft.Index, want []byte) {
	t.Helper()
	meta, r, err := s.Open(index)
	require.NoError(t, err)
	require.Equal(t, index, meta.Index)
	require.EqualValues(t, len(want), meta.Size)
	got, err := io.ReadAll(r)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got), "the content differs")
	require.NoError(t, r.Close())
}

func requireLatest(t *testing.T, s raft.SnapshotStore, want raft.Index) {
	t.Helper()
	meta, err := s.Latest()
	require.NoError(t, err)
	require.Equal(t, want, meta.Index)
}

// pattern makes content that differs from position to position.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8 ^ i>>16)
	}
	return b
}

func testSnapshotContent(t *testing.T, s raft.SnapshotStore) {
	requireLatest(t, s, 0)
	for i, n := range []int{0, 1, 1000, 64 << 10, 300_001} {
		index := raft.Index(10 * (i + 1))
		k, err := s.Create(NewSnapshotMeta(raft.EntryID{Term: 2, Index: index}))
		require.NoError(t, err)
		_, err = io.Copy(k, iotest.HalfReader(bytes.NewReader(pattern(n))))
		require.NoError(t, err)
		_, err = k.Commit()
		require.NoError(t, err)
		requireContent(t, s, index, pattern(n))
		meta, err := s.Latest()
		require.NoError(t, err)
		want := NewSnapshotMeta(raft.EntryID{Term: 2, Index: index})
		want.Size = int64(n)
		require.Equal(t, want, meta)
	}
}

func testSnapshotMissing(t *testing.T, s raft.SnapshotStore) {
	put(t, s, raft.EntryID{Term: 1, Index: 5}, []byte("state"))
	_, _, err := s.Open(6)
	require.Error(t, err)
}

func testSnapshotInvisible(t *testing.T, s raft.SnapshotStore) {
	put(t, s, raft.EntryID{Term: 1, Index: 5}, []byte("five"))
	k, err := s.Create(NewSnapshotMeta(raft.EntryID{Term: 1, Index: 6}))
	require.NoError(t, err)
	_, err = k.Write([]byte("six"))
	require.NoError(t, err)
	requireLatest(t, s, 5)
	_, _, err = s.Open(6)
	require.Error(t, err)
	require.NoError(t, k.Abort())
	requireLatest(t, s, 5)
	_, _, err = s.Open(6)
	require.Error(t, err)
	requireContent(t, s, 5, []byte("five"))
}

func testSnapshotEndsOnce(t *testing.T, s raft.SnapshotStore) {
	for _, commit := range []bool{true, false} {
		k, err := s.Create(NewSnapshotMeta(raft.EntryID{Term: 1, Index: 5}))
		require.NoError(t, err)
		if commit {
			_, err = k.Commit()
			require.NoError(t, err)
		} else {
			require.NoError(t, k.Abort())
		}
		_, err = k.Write([]byte("late"))
		require.Error(t, err)
		_, err = k.Commit()
		require.Error(t, err)
		requireContent(t, s, 5, nil)
	}
}

func testSnapshotsKept(t *testing.T, s raft.SnapshotStore) {
	for i := raft.Index(1); i <= 4; i++ {
		put(t, s, raft.EntryID{Term: 1, Index: 10 * i}, pattern(int(i)))
		requireLatest(t, s, 10*i)
	}
	requireContent(t, s, 30, pattern(3))
	requireContent(t, s, 40, pattern(4))
	for _, gone := range []raft.Index{10, 20} {
		_, _, err := s.Open(gone)
		require.Error(t, err)
	}
}

func testSnapshotSize(t *testing.T, s raft.SnapshotStore) {
	for _, n := range []int{0, 9, 10, 11, 100_000} {
		meta := NewSnapshotMeta(raft.EntryID{Term: 1, Index: 5})
		meta.Size = 10
		k, err := s.Create(meta)
		require.NoError(t, err)
		_, writeErr := k.Write(pattern(n))
		if writeErr != nil {
			require.Greater(t, n, 10)
			require.NoError(t, k.Abort())
			continue
		}
		_, err = k.Commit()
		if n == 10 {
			require.NoError(t, err)
			continue
		}
		require.Error(t, err, "%d bytes, 10 announced", n)
	}
	requireContent(t, s, 5, pattern(10))
}

// The same snapshot may be taken here and received from the leader.
func testSnapshotReplaced(t *testing.T, s raft.SnapshotStore) {
	id := raft.EntryID{Term: 1, Index: 5}
	put(t, s, id, []byte("taken here"))
	put(t, s, id, []byte("received"))
	requireContent(t, s, 5, []byte("received"))
	requireLatest(t, s, 5)
}

func testSnapshotReaderGoesOn(t *testing.T, s raft.SnapshotStore) {
	put(t, s, raft.EntryID{Term: 1, Index: 1}, pattern(300_000))
	_, r, err := s.Open(1)
	require.NoError(t, err)
	head := make([]byte, 100)
	_, err = io.ReadFull(r, head)
	require.NoError(t, err)
	for i := raft.Index(2); i <= 4; i++ {
		put(t, s, raft.EntryID{Term: 1, Index: i}, nil)
	}
	rest, err := io.ReadAll(r)
	require.NoError(t, err)
	require.True(t, bytes.Equal(pattern(300_000), append(head, rest...)))
	require.NoError(t, r.Close())
}

// Readers need not be a raft.Rewinder, but those that are can be rewound wherever they are.
func testSnapshotReaderIsRewound(t *testing.T, s raft.SnapshotStore) {
	want := pattern(200_001)
	put(t, s, raft.EntryID{Term: 1, Index: 5}, want)
	_, r, err := s.Open(5)
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Close()) }()
	rewinder, ok := r.(raft.Rewinder)
	if !ok {
		t.Skip("a transfer that broke off will begin anew")
	}
	for _, n := range []int{0, 1, 64 << 10, 100_000, len(want)} {
		_, err := io.ReadFull(r, make([]byte, n))
		require.NoError(t, err)
		require.NoError(t, rewinder.Rewind())
		got, err := io.ReadAll(r)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got), "the content differs")
		require.NoError(t, rewinder.Rewind())
	}
}

func testSnapshotsConcurrent(t *testing.T, s raft.SnapshotStore) {
	put(t, s, raft.EntryID{Term: 1, Index: 1}, pattern(5000))
	var wg sync.WaitGroup
	for g := range 3 {
		wg.Go(func() {
			for i := range 8 {
				k, err := s.Create(NewSnapshotMeta(raft.EntryID{Term: 1, Index: raft.Index(2 + i)}))
				if !assert.NoError(t, err) {
					return
				}
				_, err = k.Write(pattern(5000))
				assert.NoError(t, err)
				if (g+i)%3 == 0 {
					assert.NoError(t, k.Abort())
					continue
				}
				_, err = k.Commit()
				assert.NoError(t, err)
				meta, err := s.Latest()
				assert.NoError(t, err)
				_, r, err := s.Open(meta.Index)
				if err != nil {
					continue // dropped in between
				}
				got, err := io.ReadAll(r)
				assert.NoError(t, err)
				assert.True(t, bytes.Equal(pattern(5000), got))
				assert.NoError(t, r.Close())
			}
		})
	}
	wg.Wait()
	requireLatest(t, s, 9)
}
