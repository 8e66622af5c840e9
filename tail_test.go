package raft

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// The tail does what a plain slice does, and what it has handed out stays as it was, whatever happens to it or to a clone later.
func TestTailIsASliceWhoseEntriesStay(t *testing.T) {
	var short tail
	short.append(make([]Entry, 1000))
	short.dropFront(900)
	require.Zero(t, short.dropped, "what is forgotten is let go of")
	require.Less(t, cap(short.chunks[0].entries), 200)

	r := rand.New(rand.NewPCG(1, 2))
	var next Index
	var spare [][]Entry
	fresh := func(n int) []Entry {
		es := make([]Entry, n+3) // what lies behind those that are appended is none of the tail's business
		for i := range es[:n] {
			next++
			es[i].Index = next
		}
		spare = append(spare, es[n:])
		return es[:n]
	}
	var tl tail
	var model []Entry
	type held struct{ got, want []Entry }
	var handedOut []held
	check := func(tl *tail, model []Entry) {
		require.Equal(t, len(model), tl.len)
		for i := range model {
			if model[i].Index != tl.at(i).Index {
				require.Equal(t, model[i].Index, tl.at(i).Index, i)
			}
		}
		if len(tl.chunks) > 0 {
			require.LessOrEqual(t, tl.dropped, max(64, tl.len), "what is forgotten is let go of")
		} else {
			require.Zero(t, tl.dropped)
		}
		at := tl.gone
		for _, c := range tl.chunks {
			require.NotEmpty(t, c.entries)
			require.Equal(t, at, c.at)
			require.True(t, !c.ours || len(c.entries) <= chunkEntries)
			at += len(c.entries)
		}
	}
	sizes := []int{1, 3, wholeChunk - 1, wholeChunk, 600, chunkEntries - 1, chunkEntries, chunkEntries + 1, 2*chunkEntries + 5}
	for step := range 800 {
		switch k := r.IntN(10); {
		case k < 5 && len(model) < 10*chunkEntries:
			es := fresh(sizes[r.IntN(len(sizes))])
			tl.append(es)
			model = append(slices.Clone(model), es...)
		case k < 7:
			n := r.IntN(min(len(model), sizes[r.IntN(len(sizes))]) + 1)
			tl.dropFront(n)
			model = model[n:]
		case k < 8:
			n := len(model) - r.IntN(min(len(model), sizes[r.IntN(len(sizes))])+1)
			tl.truncate(n)
			model = slices.Clone(model[:n])
		case k < 9:
			other := tl.clone()
			es, more := fresh(2), fresh(3)
			other.append(es)
			tl.append(more)
			check(&other, append(slices.Clone(model), es...))
			model = append(slices.Clone(model), more...)
		}
		if len(model) > 0 {
			lo := r.IntN(len(model) + 1)
			hi := lo + r.IntN(min(len(model)-lo, 3*chunkEntries)+1)
			got := tl.slice(lo, hi)
			require.Len(t, got, hi-lo)
			require.Equal(t, len(got), cap(got))
			handedOut = append(handedOut, held{got, slices.Clone(model[lo:hi])})
			if len(handedOut) > 20 {
				handedOut = handedOut[1:]
			}
		}
		if step%20 == 0 {
			check(&tl, model)
			for _, es := range spare {
				require.Equal(t, make([]Entry, 3), es)
			}
			for _, h := range handedOut {
				require.True(t, slices.EqualFunc(h.want, h.got, func(a, b Entry) bool { return a.Index == b.Index }))
			}
		}
	}
}
