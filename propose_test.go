package raft

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSlotsStaySortedAndAreTakenFromTheFront(t *testing.T) {
	var q slots
	r := rand.New(rand.NewPCG(1, 1))
	var last Index
	for i := range 1000 {
		at := Index(i + 1)
		if r.IntN(10) == 0 {
			at = Index(max(int(last)+1, i-r.IntN(5))) // a little late, as answers of another leader may be
		}
		q.push(slot{id: EntryID{Index: at}})
		for q.len() > 20 {
			sl := q.pop()
			require.GreaterOrEqual(t, sl.id.Index, last)
			last = sl.id.Index
		}
	}
	q.keep(func(sl slot) bool { return sl.id.Index%2 == 0 })
	for q.len() > 0 {
		require.Zero(t, q.pop().id.Index%2)
	}
	require.Nil(t, q.front())
}

func newTestPending(q *table, id EntryID) *Pending {
	p := newPending(new(Node), newEntry(EntryCommand, nil), 0, true)
	p.claim(new(frameSlab))
	p.appended(id)
	q.insert([]slot{{id: id, p: p}})
	return p
}

func ended(p *Pending) bool {
	select {
	case <-p.Done():
		return true
	default:
		return false
	}
}

func TestTableGivesEachProposalTheOutcomeOfItsEntry(t *testing.T) {
	var tb table
	mine := newTestPending(&tb, EntryID{1, 2})
	barrier := newTestPending(&tb, EntryID{1, 3})
	replaced := newTestPending(&tb, EntryID{1, 4})
	beyond := newTestPending(&tb, EntryID{1, 9})
	later := newTestPending(&tb, EntryID{2, 6})

	es := entriesAt(1, 1, 4)
	es[2].Type = EntryBarrier
	tb.complete(es, []any{"one", "two"})
	res, err := mine.Result()
	require.NoError(t, err)
	require.Equal(t, "two", res)
	res, err = barrier.Result()
	require.NoError(t, err)
	require.Nil(t, res)
	require.False(t, ended(replaced))

	// Another leader's entry at the proposal's index.
	tb.complete(entriesAt(2, 4, 6), []any{"x", "y"})
	require.True(t, ended(replaced))
	_, err = replaced.Result()
	require.ErrorIs(t, err, ErrDropped)
	// An entry of a later term was committed below: what a leader of term 1 appended behind it is gone, though nothing has been
	// committed at its index.
	require.True(t, ended(beyond))
	_, err = beyond.Result()
	require.ErrorIs(t, err, ErrDropped)

	require.False(t, ended(later))
	tb.complete(entriesAt(2, 6, 7), []any{"z"})
	res, err = later.Result()
	require.NoError(t, err)
	require.Equal(t, "z", res)
}

func TestTableAfterASnapshotWasRestored(t *testing.T) {
	var tb table
	covered := newTestPending(&tb, EntryID{2, 5})
	impossible := newTestPending(&tb, EntryID{4, 6})
	boundary := newTestPending(&tb, EntryID{2, 8})
	stale := newTestPending(&tb, EntryID{2, 9})
	open := newTestPending(&tb, EntryID{3, 9})
	tb.restored(EntryID{3, 8})

	_, err := covered.Result()
	var uncertain *UncertainError
	require.ErrorAs(t, err, &uncertain)
	require.ErrorIs(t, err, ErrResultLost)
	require.Equal(t, EntryID{2, 5}, uncertain.ID)
	for _, p := range []*Pending{impossible, boundary, stale} {
		_, err := p.Result()
		require.ErrorIs(t, err, ErrDropped)
		require.False(t, errors.As(err, &uncertain))
	}
	require.False(t, ended(open))
}

// The answer to a forwarded proposal may come after our own applier has passed its entry.
func TestTableKeepsResultsWhileForwardsAreUnanswered(t *testing.T) {
	termAt := func(Index) (Term, bool) { return 1, true }
	late := func(tb *table, id EntryID) *Pending {
		p := newPending(new(Node), newEntry(EntryCommand, nil), 0, true)
		p.claim(new(frameSlab))
		tb.insertForwarded(slot{id: id, p: p}, termAt)
		return p
	}
	var tb table
	tb.complete(entriesAt(1, 1, 2), []any{"early"})
	tb.beginForward()
	tb.complete(entriesAt(1, 2, 3), []any{"kept"})
	res, err := late(&tb, EntryID{1, 2}).Result()
	require.NoError(t, err)
	require.Equal(t, "kept", res)
	_, err = late(&tb, EntryID{2, 2}).Result()
	require.ErrorIs(t, err, ErrDropped)
	_, err = late(&tb, EntryID{1, 1}).Result()
	require.ErrorIs(t, err, ErrResultLost)
	var uncertain *UncertainError
	require.ErrorAs(t, err, &uncertain)
	_, err = late(&tb, EntryID{2, 1}).Result()
	require.ErrorIs(t, err, ErrDropped, "the log holds another leader's entry there")

	es := entriesAt(1, 3, 3+retainedResults)
	tb.complete(es, make([]any, len(es)))
	require.Len(t, tb.results, retainedResults, "bounded")
	tb.endForward()
	require.Nil(t, tb.results)
}

// The leader that appended it was deposed before its answer came, and its successor's entries are applied here already.
func TestTableDropsALateForwardOfAnEarlierTerm(t *testing.T) {
	var tb table
	tb.complete(entriesAt(3, 1, 3), []any{nil, nil})
	p := newPending(new(Node), newEntry(EntryCommand, nil), 0, true)
	p.claim(new(frameSlab))
	tb.insertForwarded(slot{id: EntryID{2, 7}, p: p}, func(Index) (Term, bool) { return 0, false })
	require.True(t, ended(p))
	_, err := p.Result()
	require.ErrorIs(t, err, ErrDropped)
}

// SAFETY inv 16; dissertation §6.4: a read waits until the state machine has seen the very index that was confirmed.
func TestReadsWaitForTheirIndex(t *testing.T) {
	var tb table
	tb.complete(entriesAt(1, 1, 4), []any{nil, nil, nil})
	waits := func(b *readBatch) bool {
		select {
		case <-b.done:
			return false
		default:
			return true
		}
	}
	for _, index := range []Index{1, 3} {
		b := newReadBatch()
		tb.awaitApplied(index, b)
		require.False(t, waits(b), index)
	}
	next, later := newReadBatch(), newReadBatch()
	tb.awaitApplied(4, next)
	tb.awaitApplied(5, later)
	require.True(t, waits(next))
	require.True(t, waits(later))
	tb.complete(entriesAt(1, 4, 5), []any{nil})
	require.False(t, waits(next))
	require.True(t, waits(later))
	tb.restored(EntryID{1, 9})
	require.False(t, waits(later))
}

func TestProposalEndsOnce(t *testing.T) {
	p := newPending(new(Node), newEntry(EntryCommand, []byte("x")), 0, true)
	committed := p.Committed()
	_, ok := p.claim(new(frameSlab))
	require.True(t, ok)
	require.True(t, p.unclaim())
	_, ok = p.claim(new(frameSlab))
	require.True(t, ok)
	p.appended(EntryID{1, 7})
	p.endWith(ErrStopped)
	<-committed
	p.end("late", nil)
	p.markCommitted()
	res, err := p.Result()
	require.Nil(t, res)
	var uncertain *UncertainError
	require.ErrorAs(t, err, &uncertain)
	require.Equal(t, EntryID{1, 7}, uncertain.ID)
	require.ErrorIs(t, err, ErrStopped)
	require.False(t, p.unclaim())
	_, ok = p.claim(new(frameSlab))
	require.False(t, ok)
}

// Who waits keeps the command until it is given to a leader. From then on, and once the call has ended, it is not looked at any more.
func TestCommandIsCopiedWhenItIsClaimed(t *testing.T) {
	for _, claimed := range []bool{true, false} {
		n, cmd, frames := new(Node), []byte("mine"), new(frameSlab)
		n.lead.init()
		p := newPending(n, Entry{Type: EntryCommand, Data: cmd}, 0, false)
		if claimed {
			e, ok := p.claim(frames)
			require.True(t, ok)
			copy(cmd, "gone")
			require.Equal(t, "mine", string(e.Data))
			_, _, err := DecodeEntry(e.Frame())
			require.NoError(t, err)
			require.True(t, p.unclaim()) // refused, to be tried again: the same bytes
			e, ok = p.claim(frames)
			require.True(t, ok)
			require.Equal(t, "mine", string(e.Data))
			continue
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		var loop sync.WaitGroup
		loop.Go(func() {
			if e, ok := p.claim(frames); ok && string(e.Data) != "mine" {
				t.Error(string(e.Data))
			}
		})
		_, err := p.wait(gone)
		require.Error(t, err)
		copy(cmd, "gone") // the race detector would see who reads it yet
		loop.Wait()
	}
}

// A proposal is used again only if nobody holds it: the next one must not get what was meant for it.
func TestProposalIsUsedAgainOnceNobodyHoldsIt(t *testing.T) {
	background := context.Background()
	for _, tabled := range []bool{true, false} {
		n := new(Node)
		p := newPending(n, newEntry(EntryCommand, nil), 0, false)
		p.claim(new(frameSlab))
		p.tabled = tabled
		n.table.insert([]slot{{EntryID{1, 1}, p}})
		n.table.complete(entriesAt(1, 1, 2), []any{"result"})
		result, err := p.wait(background)
		require.NoError(t, err)
		require.Equal(t, "result", result)
		require.Empty(t, p.done)
		if tabled {
			require.Equal(t, stageQueued, p.stage)
			require.Nil(t, p.result)
			require.Zero(t, p.id)
			require.False(t, p.tabled || p.free)
		} else {
			require.Equal(t, stageEnded, p.stage)
		}
	}

	// Who gave up is still in the table.
	n := new(Node)
	n.lead.init()
	gone, cancel := context.WithCancel(background)
	cancel()
	p := newPending(n, newEntry(EntryCommand, nil), 0, false)
	p.claim(new(frameSlab))
	p.tabled = true
	n.table.insert([]slot{{EntryID{1, 1}, p}})
	_, err := p.wait(gone)
	require.Error(t, err)
	require.Equal(t, stageEnded, p.stage)
	n.table.complete(entriesAt(1, 1, 2), []any{"late"})
	require.Equal(t, stageEnded, p.stage)
	require.Empty(t, p.done)
}

func TestReplayWindowTakesEachNumberOnce(t *testing.T) {
	var w replayWindow
	for _, number := range []uint64{1 << 32, 1<<32 + 2, 1<<32 + 1, 1<<32 + 1023, 1<<32 + 1024, 1<<32 + 5000, 1<<32 + 4999} {
		require.True(t, w.first(number), number)
		require.False(t, w.first(number), number)
	}
	require.False(t, w.first(1<<32+5000-replayWindowSize), "below the window")
	require.False(t, w.first(1<<32+4990-replayWindowSize), "below the window, and nothing has its place in it")
	require.True(t, w.first(1<<32+5001-replayWindowSize), "its last place")

	seen := map[uint64]bool{}
	r := rand.New(rand.NewPCG(2, 2))
	w = replayWindow{}
	for top := uint64(2000); top < 20000; top += uint64(r.IntN(40)) {
		number := top - uint64(r.IntN(replayWindowSize/2))
		require.Equal(t, !seen[number], w.first(number))
		seen[number] = true
	}
}

// The channel of a proposal serves another one afterwards. It must be empty then, whoever ended the proposal, or the next one would
// return before it has an outcome.
func TestChannelOfAnEndedProposalIsEmpty(t *testing.T) {
	n := new(Node)
	n.lead.init()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range 3000 {
		p := newPending(n, Entry{}, 0, false)
		require.Empty(t, p.done)
		if i%2 == 0 { // both are ready when wait looks, or one is faster
			p.claim(new(frameSlab))
		}
		var other sync.WaitGroup
		if i%3 > 0 {
			other.Go(func() { p.end(i, nil) })
		}
		result, err := p.wait(gone)
		other.Wait()
		require.Empty(t, p.done)
		if err == nil {
			require.Equal(t, i, result)
		}
	}
}
