package raft

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

// fakeStorage answers what a test lets it answer.
type fakeStorage struct {
	Storage
	write     func(Batch) error
	entries   func(lo, hi Index) ([]Entry, error)
	snapshots map[Index]SnapshotMeta
	content   error // of every snapshot: how reading it ends
}

func (f *fakeStorage) Write(b Batch) error { return f.write(b) }

func (f *fakeStorage) Entries(lo, hi Index, _ int) ([]Entry, error) { return f.entries(lo, hi) }

func (f *fakeStorage) Snapshots() SnapshotStore { return fakeSnapshots{f} }

type fakeSnapshots struct{ f *fakeStorage }

func (s fakeSnapshots) Create(SnapshotMeta) (SnapshotSink, error) { return nil, errors.New("not here") }
func (s fakeSnapshots) Latest() (SnapshotMeta, error)             { return SnapshotMeta{}, nil }
func (s fakeSnapshots) Open(i Index) (SnapshotMeta, io.ReadCloser, error) {
	if s.f.content != nil {
		return s.f.snapshots[i], io.NopCloser(iotest.ErrReader(s.f.content)), nil
	}
	return s.f.snapshots[i], io.NopCloser(&io.LimitedReader{}), nil
}

// indexes is a state machine that notes what it was given.
type indexes struct {
	seen    []Index
	onApply func()
}

func (x *indexes) Apply(es []Entry, _ []any) error {
	if x.onApply != nil {
		x.onApply()
	}
	for i := range es {
		x.seen = append(x.seen, es[i].Index)
	}
	return nil
}

func (x *indexes) Snapshot(context.Context) (SnapshotWriter, error) {
	return nil, errors.New("not here")
}

func (x *indexes) Restore(_ context.Context, meta SnapshotMeta, _ io.Reader) error {
	x.seen = []Index{meta.Index}
	return nil
}

// newTestApplier makes an applier without a running node.
func newTestApplier(t *testing.T) (*applier, *indexes, *fakeStorage) {
	x, st := &indexes{}, &fakeStorage{snapshots: map[Index]SnapshotMeta{20: {Index: 20, Term: 1}, 40: {Index: 40, Term: 1}}}
	cfg := Config{ID: "n1", StateMachine: x, Storage: st}
	n := &Node{cfg: cfg.withDefaults(), metrics: noMetrics{}}
	n.log = n.cfg.Logger
	n.inbox.init(1, 1)
	n.lead.init()
	n.applier, n.snapshots = newApplier(n), newSnapshotter(n)
	t.Cleanup(func() { require.Nil(t, n.failure.Load()) })
	return n.applier, x, st
}

func TestApplierRefusesAnEntryThatChangedInMemory(t *testing.T) {
	a, x, _ := newTestApplier(t)
	es := entriesAt(1, 1, 3)
	es[1].Data[0] ^= 1
	err := a.do(t.Context(), &applyWork{Apply: Apply{Lo: 1, Hi: 3, Entries: es}}, nil)
	var damage *EntryDamage
	require.ErrorAs(t, err, &damage)
	require.Empty(t, x.seen)
}

func TestApplierBoundsItsBatches(t *testing.T) {
	a, x, _ := newTestApplier(t)
	es := entriesAt(1, 1, 3*maxApplyEntries+10)
	require.NoError(t, a.do(t.Context(), &applyWork{Apply: Apply{Lo: 1, Hi: Index(len(es) + 1), Entries: es}}, nil))
	require.Len(t, x.seen, 3*maxApplyEntries, "whole batches at once, the rest with the next flush")
	require.NoError(t, a.flush())
	require.Len(t, x.seen, len(es))
}

// The core installs a snapshot while older work is still queued. What lies between does not fit onto the state that we have.
func TestApplierSkipsWhatASnapshotOvertakes(t *testing.T) {
	a, x, _ := newTestApplier(t)
	works := []applyWork{
		{Apply: Apply{Lo: 1, Hi: 3, Entries: entriesAt(1, 1, 3)}},
		{Apply: Apply{Lo: 21, Hi: 21, Restore: &SnapshotMeta{Index: 20, Term: 1}}},
		{Apply: Apply{Lo: 21, Hi: 23, Entries: entriesAt(1, 21, 23)}},
		{Apply: Apply{Lo: 41, Hi: 41, Restore: &SnapshotMeta{Index: 40, Term: 1}}},
		{Apply: Apply{Lo: 41, Hi: 42, Entries: entriesAt(1, 41, 42)}},
	}
	for i := range works[:3] {
		require.NoError(t, a.do(t.Context(), &works[i], works[i+1:]))
	}
	require.NoError(t, a.flush())
	require.Equal(t, []Index{1, 2}, x.seen)
	for i := range works[3:] {
		require.NoError(t, a.do(t.Context(), &works[3+i], works[4+i:]))
	}
	require.NoError(t, a.flush())
	require.Equal(t, []Index{40, 41}, x.seen)
	require.Equal(t, Index(41), a.n.inbox.in.applied)
}

// The log may be compacted by a snapshot whose Restore has not reached the applier yet.
func TestApplierWaitsForTheSnapshotThatCoversCompactedEntries(t *testing.T) {
	a, x, st := newTestApplier(t)
	st.entries = func(lo, hi Index) ([]Entry, error) {
		if lo < 3 {
			return entriesAt(1, lo, lo+1), nil // one at a time
		}
		return nil, ErrCompacted
	}
	require.NoError(t, a.do(t.Context(), &applyWork{Apply: Apply{Lo: 1, Hi: 9}}, nil))
	require.NoError(t, a.do(t.Context(), &applyWork{Apply: Apply{Lo: 9, Hi: 11, Entries: entriesAt(1, 9, 11)}}, nil))
	require.NoError(t, a.flush())
	require.Equal(t, []Index{1, 2}, x.seen)
	require.NoError(t, a.do(t.Context(), &applyWork{Apply: Apply{Restore: &SnapshotMeta{Index: 20, Term: 1}}}, nil))
	require.Equal(t, []Index{20}, x.seen)

	st.entries = func(lo, hi Index) ([]Entry, error) { return entriesAt(1, lo+1, hi+1), nil }
	require.Error(t, a.do(t.Context(), &applyWork{Apply: Apply{Lo: 21, Hi: 23}}, nil), "a storage that returns others is not believed")
}

// What was committed before the snapshot is part of it. Applied behind it, it would count twice.
func TestApplierFinishesBeforeItRestores(t *testing.T) {
	a, x, _ := newTestApplier(t)
	require.NoError(t, a.do(t.Context(), &applyWork{Apply: Apply{Lo: 1, Hi: 3, Entries: entriesAt(1, 1, 3)}}, nil))
	require.NoError(t, a.do(t.Context(), &applyWork{Apply: Apply{Restore: &SnapshotMeta{Index: 20, Term: 1}}}, nil))
	require.NoError(t, a.flush())
	require.Equal(t, []Index{20}, x.seen)
	require.Equal(t, EntryID{Term: 1, Index: 20}, a.applied)
}

// SAFETY §3 lifecycle: "every pending call ends on … restore".
func TestRestoreEndsTheProposalsThatItCovers(t *testing.T) {
	a, _, _ := newTestApplier(t)
	covered, beyond := newTestPending(&a.n.table, EntryID{1, 10}), newTestPending(&a.n.table, EntryID{1, 21})
	require.NoError(t, a.do(t.Context(), &applyWork{Apply: Apply{Restore: &SnapshotMeta{Index: 20, Term: 1}}}, nil))
	require.True(t, ended(covered))
	_, err := covered.Result()
	require.ErrorIs(t, err, ErrResultLost)
	require.False(t, ended(beyond))
}

// A state machine that keeps its own state has seen these entries before the restart. SAFETY inv 9
func TestApplierSkipsWhatTheStateMachineHolds(t *testing.T) {
	a, x, st := newTestApplier(t)
	a.durable = 4
	st.entries = func(lo, hi Index) ([]Entry, error) { return entriesAt(1, lo, hi), nil }
	require.NoError(t, a.do(t.Context(), &applyWork{Apply: Apply{Lo: 1, Hi: 3}}, nil))
	require.NoError(t, a.do(t.Context(), &applyWork{Apply: Apply{Lo: 3, Hi: 7}}, nil))
	require.NoError(t, a.flush())
	require.Equal(t, []Index{5, 6}, x.seen)
}

// SAFETY inv 9 and 16: nobody is told that an entry is applied before the state machine has returned from it.
func TestAppliedIsReportedAfterwards(t *testing.T) {
	a, x, _ := newTestApplier(t)
	calls := 0
	x.onApply = func() {
		calls++
		require.Zero(t, a.n.inbox.in.applied)
		require.Zero(t, a.n.lead.appliedTerm)
		require.Zero(t, a.n.table.applied)
	}
	require.NoError(t, a.do(t.Context(), &applyWork{Apply: Apply{Lo: 1, Hi: 3, Entries: entriesAt(1, 1, 3)}}, nil))
	require.NoError(t, a.flush())
	require.Equal(t, 1, calls)
	require.Equal(t, Index(2), a.n.inbox.in.applied)
}

// This state machine reads nothing of its snapshot. What the store finds out at the end of the content counts all the same.
func TestSnapshotIsReadToItsEnd(t *testing.T) {
	a, _, st := newTestApplier(t)
	st.content = &CorruptionError{Reason: "checksum of the whole content does not match"}
	err := a.do(t.Context(), &applyWork{Apply: Apply{Restore: &SnapshotMeta{Index: 20, Term: 1}}}, nil)
	require.ErrorIs(t, err, st.content)
	require.Zero(t, a.applied)
}

func TestGoroutineNumber(t *testing.T) {
	mine := goroutineNumber()
	require.Positive(t, mine)
	require.Equal(t, mine, goroutineNumber())
	other := make(chan int64)
	go func() { other <- goroutineNumber() }()
	require.NotEqual(t, mine, <-other)
}
