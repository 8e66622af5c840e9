package raft

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// entriesAt makes entries of one term at [lo, hi).
func entriesAt(term Term, lo, hi Index) []Entry {
	var es []Entry
	for i := lo; i < hi; i++ {
		e := newEntry(EntryCommand, []byte{byte(term), byte(i)})
		e.stamp(EntryID{Term: term, Index: i})
		es = append(es, e)
	}
	return es
}

func ids(es []Entry) []EntryID {
	var out []EntryID
	for i := range es {
		out = append(out, es[i].ID())
	}
	return out
}

func TestMergeWrites(t *testing.T) {
	hs := func(term Term) *HardState { return &HardState{CurrentTerm: term} }
	snap := &SnapshotMeta{Index: 9, Term: 1}
	for _, tt := range []struct {
		name     string
		in       []Batch
		merged   int
		hard     *HardState
		truncate Index
		entries  []EntryID
	}{
		{"one", []Batch{{HardState: hs(2)}}, 1, hs(2), 0, nil},
		{"entries follow each other", []Batch{{Entries: entriesAt(1, 1, 3)}, {Entries: entriesAt(1, 3, 4)}}, 2, nil, 0,
			[]EntryID{{1, 1}, {1, 2}, {1, 3}}},
		{"last hard state stands", []Batch{{HardState: hs(2)}, {Entries: entriesAt(2, 1, 2)}, {HardState: hs(3)}}, 3, hs(3), 0,
			[]EntryID{{2, 1}}},
		{"later truncation drops earlier entries", []Batch{{Entries: entriesAt(1, 1, 5)}, {TruncateFrom: 3, Entries: entriesAt(2, 3, 4)}}, 2, nil, 0,
			[]EntryID{{1, 1}, {1, 2}, {2, 3}}},
		{"truncation right behind", []Batch{{Entries: entriesAt(1, 1, 3)}, {TruncateFrom: 3, Entries: entriesAt(2, 3, 4)}}, 2, nil, 0,
			[]EntryID{{1, 1}, {1, 2}, {2, 3}}},
		{"truncation of all entries of the batch", []Batch{{Entries: entriesAt(1, 5, 7)}, {TruncateFrom: 5, Entries: entriesAt(2, 5, 6)}}, 2, nil, 5,
			[]EntryID{{2, 5}}},
		{"truncation below the batch", []Batch{{Entries: entriesAt(1, 5, 7)}, {TruncateFrom: 2, Entries: entriesAt(2, 2, 3)}}, 2, nil, 2,
			[]EntryID{{2, 2}}},
		{"two truncations, the lower one stands", []Batch{{TruncateFrom: 4, Entries: entriesAt(2, 4, 6)}, {TruncateFrom: 3, Entries: entriesAt(3, 3, 4)}}, 2, nil, 3,
			[]EntryID{{3, 3}}},
		{"two truncations, the first one stands", []Batch{{TruncateFrom: 4, Entries: entriesAt(2, 4, 7)}, {TruncateFrom: 6, Entries: entriesAt(3, 6, 7)}}, 2, nil, 4,
			[]EntryID{{2, 4}, {2, 5}, {3, 6}}},
		{"truncation without entries", []Batch{{HardState: hs(2)}, {TruncateFrom: 3}}, 2, hs(2), 3, nil},
		{"snapshot stands alone", []Batch{{Snapshot: snap}, {Entries: entriesAt(1, 10, 11)}}, 1, nil, 0, nil},
		{"repairs stand alone", []Batch{{Repairs: entriesAt(1, 3, 4)}, {TruncateFrom: 3, Entries: entriesAt(2, 3, 4)}}, 1, nil, 0, nil},
		{"repairs end a batch", []Batch{{TruncateFrom: 9}, {Repairs: entriesAt(1, 3, 4)}}, 1, nil, 9, nil},
		{"a fence stands alone", []Batch{{Fence: &EntryID{}}, {Fence: &EntryID{2, 2}}}, 1, nil, 0, nil},
		{"snapshot ends a batch", []Batch{{Entries: entriesAt(1, 1, 2)}, {Snapshot: snap}}, 1, nil, 0, []EntryID{{1, 1}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var writes []Write
			for i, b := range tt.in {
				writes = append(writes, Write{Seq: uint64(i + 1), Batch: b})
			}
			b, n := mergeWrites(writes, maxMergedBytes, nil)
			require.Equal(t, tt.merged, n)
			require.Equal(t, tt.hard, b.HardState)
			require.Equal(t, tt.truncate, b.TruncateFrom)
			require.Equal(t, tt.entries, ids(b.Entries))
		})
	}
}

// A merged batch has the same effect on a log as its writes one after another, whatever they are.
func TestMergeWritesEqualsWritingOneByOne(t *testing.T) {
	apply := func(log []EntryID, b Batch) []EntryID {
		if b.TruncateFrom > 0 {
			log = log[:b.TruncateFrom-1]
		}
		for i := range b.Entries {
			require.Equal(t, Index(len(log)+1), b.Entries[i].Index)
			log = append(log[:len(log):len(log)], b.Entries[i].ID())
		}
		return log
	}
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		var base []EntryID
		base = apply(base, Batch{Entries: entriesAt(1, 1, Index(1+r.IntN(6)))})
		one := base
		var writes []Write
		for term := Term(2); term < Term(3+r.IntN(6)); term++ {
			var b Batch
			from := Index(len(one) + 1)
			if len(one) > 0 && r.IntN(2) == 0 {
				from = Index(1 + r.IntN(len(one)))
				b.TruncateFrom = from
			}
			b.Entries = entriesAt(term, from, from+Index(r.IntN(4)))
			one = apply(one, b)
			writes = append(writes, Write{Seq: uint64(len(writes) + 1), Batch: b})
		}
		merged := base
		limit := []int{0, 100, maxMergedBytes}[r.IntN(3)]
		for len(writes) > 0 {
			b, n := mergeWrites(writes, limit, nil)
			require.Positive(t, n)
			merged = apply(merged, b)
			writes = writes[n:]
		}
		require.True(t, slices.Equal(one, merged), "seed %d: %v, want %v", seed, merged, one)
	}
}

func TestMergeWritesIsBounded(t *testing.T) {
	writes := []Write{{Seq: 1, Batch: Batch{Entries: entriesAt(1, 1, 2)}}, {Seq: 2, Batch: Batch{Entries: entriesAt(1, 2, 3)}}}
	size := writes[0].Entries[0].Size()
	_, n := mergeWrites(writes, 2*size-1, nil)
	require.Equal(t, 1, n)
	_, n = mergeWrites(writes, 2*size, nil)
	require.Equal(t, 2, n)
	_, n = mergeWrites(writes, 0, nil)
	require.Equal(t, 1, n, "one write is taken, however large")
}

// SAFETY §4: a failed write or sync is final, whatever the storage says to the next one: it may lie behind what was lost.
func TestFailedWriteIsTheLast(t *testing.T) {
	a, _, st := newTestApplier(t)
	a.n.inbox.open()
	writes := 0
	st.write = func(Batch) error {
		if writes++; writes == 1 {
			return errors.New("input/output error")
		}
		return nil
	}
	snap := &SnapshotMeta{Index: 9, Term: 1} // it is written alone
	w := newLogWriter(a.n)
	require.False(t, w.write(t.Context(), []Write{{Seq: 1, Batch: Batch{Snapshot: snap}}, {Seq: 2, Batch: Batch{Entries: entriesAt(1, 10, 11)}}}))
	require.Equal(t, 1, writes)
	require.Zero(t, a.n.inbox.in.persisted)
	require.Len(t, a.n.inbox.in.reports, 1, "the core is told")
}

// While commands do not fit, what is small does: a vote must not wait for room.
func TestFullStorageGetsItsWritesOneByOne(t *testing.T) {
	a, _, st := newTestApplier(t)
	n := a.n
	n.inbox.open()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	attempts := 0
	st.write = func(b Batch) error {
		if !hasCommand(b.Entries) {
			return nil
		}
		if attempts++; attempts == 2 {
			cancel()
		}
		return fmt.Errorf("no space: %w", ErrStorageFull)
	}
	w := newLogWriter(n)
	require.False(t, w.write(ctx, []Write{
		{Seq: 1, Batch: Batch{HardState: &HardState{CurrentTerm: 7}}},
		{Seq: 2, Batch: Batch{Entries: entriesAt(1, 1, 2)}},
		{Seq: 3, Batch: Batch{HardState: &HardState{CurrentTerm: 8}}},
	}))
	require.Equal(t, uint64(1), n.inbox.in.persisted, "the vote is durable, and nothing behind the command that is not")
	require.True(t, w.full)
	require.Len(t, n.inbox.in.reports, 1, "the core is told once")
}

// A command for which there is no room blocks what comes behind it, as long as the log has to hold it. If another leader's entry takes its
// place, it has not, and the two together are small.
func TestCommandThatIsCutOffDoesNotBlockAFullDisk(t *testing.T) {
	a, _, st := newTestApplier(t)
	n := a.n
	n.inbox.open()
	w := newLogWriter(n)
	noOp := newEntry(EntryNoOp, nil)
	noOp.stamp(EntryID{Term: 2, Index: 1})
	var written []Batch
	var entries []EntryID
	st.write = func(b Batch) error {
		if hasCommand(b.Entries) {
			if len(w.queue) == 0 { // it comes while the command waits
				w.add(Write{Seq: 2, Batch: Batch{HardState: &HardState{CurrentTerm: 2}, TruncateFrom: 1, Entries: []Entry{noOp}}})
			}
			return fmt.Errorf("no space: %w", ErrStorageFull)
		}
		written, entries = append(written, b), append(entries, ids(b.Entries)...)
		return nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	require.True(t, w.write(ctx, []Write{{Seq: 1, Batch: Batch{Entries: entriesAt(1, 1, 2)}}}))
	require.Len(t, written, 1)
	require.Equal(t, HardState{CurrentTerm: 2}, *written[0].HardState)
	require.Equal(t, Index(1), written[0].TruncateFrom)
	require.Equal(t, []EntryID{{Term: 2, Index: 1}}, entries)
	require.Equal(t, uint64(2), n.inbox.in.persisted)
	require.Empty(t, w.queue)
}

// A follower that catches up, or a leader under load, has many writes waiting. What is prepared must keep up with them, or a write finds
// the next segment unfinished and has to wait until it is.
func TestPreparerIsWokenAfterEveryWrite(t *testing.T) {
	a, _, st := newTestApplier(t)
	a.n.inbox.open()
	w := newLogWriter(a.n)
	var woken []bool
	st.write = func(Batch) error {
		woken = append(woken, len(w.after) > 0)
		return nil
	}
	snap := &SnapshotMeta{Index: 9, Term: 1} // it is written alone
	require.True(t, w.write(t.Context(), []Write{{Seq: 1, Batch: Batch{Snapshot: snap}}, {Seq: 2, Batch: Batch{Entries: entriesAt(1, 10, 11)}}}))
	require.Equal(t, []bool{false, true}, woken)
	require.Len(t, w.after, 1)
}
