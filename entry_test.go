package raft

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

// Commands made together are those made one by one, and none can write into its neighbour.
func TestCommandsMadeTogether(t *testing.T) {
	cmds := [][]byte{[]byte("a"), nil, bytes.Repeat([]byte{7}, 300), []byte("last")}
	es := NewCommands(cmds)
	require.Len(t, es, len(cmds))
	for i, cmd := range cmds {
		single := NewCommand(cmd)
		require.Equal(t, single.Frame(), es[i].Frame())
		require.True(t, bytes.Equal(cmd, es[i].Data))
		require.Equal(t, len(es[i].Frame()), cap(es[i].Frame()))
		require.Equal(t, len(es[i].Data), cap(es[i].Data))
		es[i].stamp(EntryID{Term: 3, Index: Index(i + 1)})
	}
	cmds[0][0] = 'b' // the caller keeps them
	for i := range es {
		e, n, err := DecodeEntry(es[i].Frame())
		require.NoError(t, err)
		require.Equal(t, es[i].Size(), n)
		require.Equal(t, EntryID{Term: 3, Index: Index(i + 1)}, e.ID())
	}
	require.Equal(t, []byte("a"), es[0].Data)
	require.Empty(t, NewCommands(nil))

	batch := make([][]byte, 64)
	require.LessOrEqual(t, testing.AllocsPerRun(100, func() { NewCommands(batch) }), 2.0)
}

// What lies side by side in memory is one piece; what does not, even right behind it in the log, is not. The pieces are the frames.
func TestEntriesSideBySideAreOnePiece(t *testing.T) {
	together := NewCommands([][]byte{[]byte("a"), []byte("bb"), nil, []byte("c")})
	alone := NewCommand([]byte("d"))
	skipped := []Entry{together[0], together[2], together[3]}
	backwards := []Entry{together[1], together[0]}
	for _, test := range []struct {
		entries []Entry
		pieces  int
	}{
		{nil, 0},
		{together, 1},
		{together[1:3], 1},
		{append(together[:2:2], alone), 2},
		{append([]Entry{alone}, together...), 2},
		{skipped, 2},
		{backwards, 2},
		{[]Entry{together[0], together[0]}, 2},
	} {
		var want, got []byte
		for i := range test.entries {
			want = append(want, test.entries[i].Frame()...)
		}
		pieces := 0
		EachPiece(test.entries, func(piece []byte) {
			require.Equal(t, len(piece), cap(piece))
			got = append(got, piece...)
			pieces++
		})
		require.Equal(t, want, got)
		require.Equal(t, test.pieces, pieces)
	}
}

// Frames from a slab are zero, follow each other, and never overlap; one that is long, or does not fit, gets memory of its own.
func TestFramesFromASlab(t *testing.T) {
	var slab frameSlab
	var es []Entry
	for i := range 3 * slabBytes / 100 {
		size := EntryHeaderSize + i%200
		if i%50 == 0 {
			size = maxSlabFrame + i%2
		}
		frame := slab.take(size)
		require.Len(t, frame, size)
		require.Zero(t, bytes.Trim(frame, "\x00"))
		es = append(es, frameEntry(EntryCommand, frame, bytes.Repeat([]byte{byte(i)}, size-EntryHeaderSize)))
	}
	pieces := 0
	EachPiece(es, func([]byte) { pieces++ })
	require.Less(t, pieces, 20)
	for i := range es {
		_, _, err := DecodeEntry(es[i].Frame())
		require.NoError(t, err, i)
		require.Equal(t, len(es[i].Data), cap(es[i].Data))
	}
}
