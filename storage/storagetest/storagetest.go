// Package storagetest is the conformance suite of [raft.Storage] and [raft.SnapshotStore]: an implementation that passes it keeps
// the promises that the node relies on, as far as a test without power failures can tell.
package storagetest

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
)

// identity is that of every storage in this suite.
var identity = raft.Identity{Cluster: "suite", Node: "n1"}

// NewEntry makes an entry with its place in the log, as a leader makes it when it appends. It copies the payload.
func NewEntry(typ raft.EntryType, id raft.EntryID, payload []byte) raft.Entry {
	made := raft.NewCommand(payload)
	frame := made.Frame() // nobody else has seen it yet
	frame[6] = byte(typ)
	binary.LittleEndian.PutUint64(frame[8:], uint64(id.Term))
	binary.LittleEndian.PutUint64(frame[16:], uint64(id.Index))
	binary.LittleEndian.PutUint32(frame[28:], crc32.Checksum(frame[:28], crc32.MakeTable(crc32.Castagnoli)))
	e, _, err := raft.DecodeEntry(frame)
	if err != nil {
		panic(fmt.Sprintf("storagetest: entry %v: %v", id, err)) // only a payload above raft.MaxEntrySize
	}
	return e
}

// NewEntries makes commands for the indices [lo, hi), all of one term, each with another payload.
func NewEntries(term raft.Term, lo, hi raft.Index) []raft.Entry {
	var es []raft.Entry
	for i := lo; i < hi; i++ {
		payload := fmt.Sprintf("command %d of term %d", i, term)
		es = append(es, NewEntry(raft.EntryCommand, raft.EntryID{Term: term, Index: i}, []byte(payload)))
	}
	return es
}

// NewConfiguration makes a valid configuration with as many voters as that.
func NewConfiguration(voters int) raft.Configuration {
	conf := raft.Configuration{ClusterID: identity.Cluster}
	for i := range voters {
		conf.Servers = append(conf.Servers, raft.Server{
			ID:      raft.NodeID(fmt.Sprintf("n%03d", i+1)),
			Address: fmt.Sprintf("192.0.2.%d:7000", i+1),
		})
	}
	return conf
}

// NewSnapshotMeta describes a snapshot of unknown size.
func NewSnapshotMeta(id raft.EntryID) raft.SnapshotMeta {
	return raft.SnapshotMeta{
		Index: id.Index, Term: id.Term, ConfigurationIndex: id.Index, Configuration: NewConfiguration(3), Size: -1,
	}
}

// Run tests an implementation. open returns a storage over a new, blank directory, not opened yet; whatever it needs to be
// released is for it to register with t.Cleanup. The suite opens and closes one storage several times.
func Run(t *testing.T, open func(t *testing.T) raft.Storage) {
	cases := []struct {
		name string
		test func(t *testing.T, st raft.Storage)
	}{
		{"BlankDirectory", testBlank},
		{"Identity", testIdentity},
		{"OpenTwice", testOpenTwice},
		{"EntriesWithinBytes", testEntriesWithinBytes},
		{"EntriesAreTheCallersToKeep", testEntriesKeep},
		{"GapIsRefused", testGap},
		{"HardStateAlone", testHardState},
		{"LargeBatches", testLargeBatches},
		{"ConfigurationsAndTerms", testConfigurationsAndTerms},
		{"Compact", testCompact},
		{"CompactEverything", testCompactEverything},
		{"SnapshotAheadOfLog", testSnapshotAhead},
		{"SnapshotContradictsLog", testSnapshotContradicts},
		{"SnapshotSurvives", testSnapshotSurvives},
		{"ConcurrentReads", testConcurrentReads},
		{"FenceStaysUntilItIsLifted", testFence},
		{"RepairOfIntactEntriesChangesNothing", testIdleRepair},
		{"RepairWithStrangersIsRefused", testStrangeRepair},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
	t.Run("Batch", func(t *testing.T) { testBatches(t, open) })
	t.Run("Model", func(t *testing.T) { testModel(t, open) })
	t.Run("Snapshots", func(t *testing.T) {
		RunSnapshots(t, func(t *testing.T) raft.SnapshotStore {
			st := open(t)
			begin(t, st)
			t.Cleanup(func() { assert.NoError(t, st.Close()) })
			return st.Snapshots()
		})
	})
}

func begin(t *testing.T, st raft.Storage) raft.Recovered {
	t.Helper()
	rec, err := st.Open(context.Background(), identity)
	require.NoError(t, err)
	return rec
}

func reopen(t *testing.T, st raft.Storage) raft.Recovered {
	t.Helper()
	require.NoError(t, st.Close())
	return begin(t, st)
}

func testBlank(t *testing.T, st raft.Storage) {
	rec := begin(t, st)
	require.True(t, rec.Blank())
	require.Equal(t, identity.Cluster, rec.Identity.Cluster)
	require.Equal(t, identity.Node, rec.Identity.Node)
	require.NotZero(t, rec.Identity.Replica)
	require.NotZero(t, rec.Identity.Incarnation)
	newModel().check(t, st, rec)
	meta, err := st.Snapshots().Latest()
	require.NoError(t, err)
	require.Zero(t, meta.Index)

	again := reopen(t, st)
	require.True(t, again.Blank(), "opening writes nothing that counts as use")
	require.NoError(t, st.Close())
}

func testIdentity(t *testing.T, st raft.Storage) {
	ctx := context.Background()
	first := begin(t, st).Identity
	second := reopen(t, st).Identity
	require.Equal(t, first.Replica, second.Replica, "the replica names the directory for ever")
	require.Equal(t, first.Incarnation+1, second.Incarnation, "every start counts")
	require.NoError(t, st.Close())

	for what, id := range map[string]raft.Identity{
		"cluster": {Cluster: "other", Node: identity.Node},
		"node":    {Cluster: identity.Cluster, Node: "other"},
	} {
		_, err := st.Open(ctx, id)
		var wrong *raft.IdentityError
		require.ErrorAs(t, err, &wrong)
		require.Equal(t, what, wrong.What)
		require.Equal(t, "other", wrong.Want)
		require.NotEmpty(t, wrong.Have)
	}

	rec, err := st.Open(ctx, raft.Identity{}) // an empty field asks for nothing
	require.NoError(t, err)
	require.Equal(t, first.Replica, rec.Identity.Replica)
	require.Equal(t, identity.Cluster, rec.Identity.Cluster)
	require.Equal(t, identity.Node, rec.Identity.Node)
	require.Greater(t, rec.Identity.Incarnation, second.Incarnation)
	require.NoError(t, st.Close())
}

// Two processes on one directory are for the implementation's own tests: the suite has only one storage for each.
func testOpenTwice(t *testing.T, st raft.Storage) {
	begin(t, st)
	_, err := st.Open(context.Background(), identity)
	require.Error(t, err)
	m := newModel()
	m.write(t, st, raft.Batch{Entries: NewEntries(1, 1, 4)}) // the first to hold it is not disturbed
	m.check(t, st, reopen(t, st))
	require.NoError(t, st.Close())
}

func testEntriesWithinBytes(t *testing.T, st raft.Storage) {
	begin(t, st)
	m := newModel()
	for i := raft.Index(1); i <= 20; i++ {
		e := NewEntry(raft.EntryCommand, raft.EntryID{Term: 1, Index: i}, make([]byte, int(i)*10))
		m.write(t, st, raft.Batch{Entries: []raft.Entry{e}})
	}
	for range 2 {
		for lo := raft.Index(1); lo <= 20; lo++ {
			for hi := lo + 1; hi <= 21; hi++ {
				exactly := raft.EntriesSize(m.entries[lo-1 : min(lo+2, hi-1)])
				for _, maxBytes := range []int{0, 1, exactly - 1, exactly, 300, 1000, 1 << 20} {
					m.read(t, st, lo, hi, maxBytes)
				}
			}
		}
		m.check(t, st, reopen(t, st))
	}
	require.NoError(t, st.Close())
}

func testEntriesKeep(t *testing.T, st raft.Storage) {
	begin(t, st)
	m := newModel()
	m.write(t, st, raft.Batch{Entries: NewEntries(1, 1, 11)})
	got, err := st.Entries(1, 11, 1<<20)
	require.NoError(t, err)
	want := NewEntries(1, 1, 11)
	m.write(t, st, raft.Batch{TruncateFrom: 3, Entries: NewEntries(2, 3, 30)})
	again, err := st.Entries(1, 30, 1<<20)
	require.NoError(t, err)
	require.Len(t, again, 29)
	require.NoError(t, st.Close())
	requireEntries(t, want, got)
	requireEntries(t, m.entries, again)
}

// A hole in the log can never be filled again, so a batch that would make one is an error in the caller that must not reach the
// disk.
func testGap(t *testing.T, st raft.Storage) {
	m := newModel()
	begin(t, st)
	m.write(t, st, raft.Batch{Entries: NewEntries(1, 1, 6)})
	for _, b := range []raft.Batch{
		{Entries: NewEntries(1, 7, 9)},
		{TruncateFrom: 4, Entries: NewEntries(2, 5, 6)},
		{Entries: append(NewEntries(1, 6, 8), NewEntries(1, 9, 10)...)},
	} {
		b.HardState = &raft.HardState{CurrentTerm: 9}
		require.Error(t, st.Write(b))
		m.check(t, st, reopen(t, st)) // an error is final until then
	}
	require.NoError(t, st.Close())
}

func testHardState(t *testing.T, st raft.Storage) {
	begin(t, st)
	m := newModel()
	for term := raft.Term(1); term <= 5; term++ {
		m.write(t, st, raft.Batch{HardState: &raft.HardState{CurrentTerm: term}})
		m.write(t, st, raft.Batch{HardState: &raft.HardState{CurrentTerm: term, VotedFor: raft.NodeID(fmt.Sprint("n", term))}})
		rec := reopen(t, st)
		m.check(t, st, rec)
		require.False(t, rec.Blank())
	}
	longest := raft.NodeID(strings.Repeat("n", 255))
	m.write(t, st, raft.Batch{HardState: &raft.HardState{CurrentTerm: 1 << 63, VotedFor: longest}})
	m.check(t, st, reopen(t, st))
	require.NoError(t, st.Close())
}

// Batches grow with what piles up during a sync, and a single command may be larger than anything before it.
func testLargeBatches(t *testing.T, st raft.Storage) {
	begin(t, st)
	m := newModel()
	next := raft.Index(1)
	for _, sizes := range [][]int{{1}, {8 << 20}, {0, 1 << 20, 0, 2 << 20, 5}, {3}} {
		var b raft.Batch
		for _, size := range sizes {
			b.Entries = append(b.Entries, NewEntry(raft.EntryCommand, raft.EntryID{Term: 1, Index: next}, pattern(size)))
			next++
		}
		m.write(t, st, b)
	}
	m.write(t, st, raft.Batch{Entries: NewEntries(1, next, next+5000)})
	m.check(t, st, reopen(t, st))
	require.NoError(t, st.Close())
}

func testConfigurationsAndTerms(t *testing.T, st raft.Storage) {
	begin(t, st)
	m := newModel()
	conf := func(term raft.Term, index raft.Index, voters int) raft.Entry {
		c := NewConfiguration(voters)
		return NewEntry(raft.EntryConfiguration, raft.EntryID{Term: term, Index: index}, c.AppendBinary(nil))
	}
	m.write(t, st, raft.Batch{Entries: []raft.Entry{conf(1, 1, 1)}})
	m.write(t, st, raft.Batch{Entries: append(NewEntries(2, 2, 5), conf(2, 5, 2), NewEntry(raft.EntryNoOp, raft.EntryID{Term: 7, Index: 6}, nil))})
	m.write(t, st, raft.Batch{Entries: []raft.Entry{conf(7, 7, 3), NewEntry(raft.EntryBarrier, raft.EntryID{Term: 7, Index: 8}, nil)}})
	m.check(t, st, reopen(t, st))

	m.write(t, st, raft.Batch{TruncateFrom: 5, Entries: NewEntries(8, 5, 6)}) // both later configurations are gone
	rec := reopen(t, st)
	m.check(t, st, rec)
	require.Len(t, rec.Configurations, 1)
	require.Equal(t, []raft.TermStart{{Index: 1, Term: 1}, {Index: 2, Term: 2}, {Index: 5, Term: 8}}, rec.Terms)

	put(t, st.Snapshots(), raft.EntryID{Term: 8, Index: 5}, []byte("state"))
	require.NoError(t, st.Compact(3))
	m.compact(3)
	m.check(t, st, reopen(t, st))
	require.NoError(t, st.Close())
}

func testCompact(t *testing.T, st raft.Storage) {
	begin(t, st)
	m := newModel()
	for i := raft.Index(1); i < 400; i += 20 {
		m.write(t, st, raft.Batch{Entries: NewEntries(raft.Term(1+i/100), i, i+20)})
	}
	put(t, st.Snapshots(), m.id(300), []byte("state"))
	for _, to := range []raft.Index{1, 100, 50, 300} {
		require.NoError(t, st.Compact(to))
		m.compact(to)
		m.readAll(t, st)
		m.check(t, st, reopen(t, st))
	}
	m.write(t, st, raft.Batch{TruncateFrom: 301, Entries: NewEntries(9, 301, 310)})
	m.check(t, st, reopen(t, st))
	require.NoError(t, st.Close())
}

func testCompactEverything(t *testing.T, st raft.Storage) {
	begin(t, st)
	m := newModel()
	m.write(t, st, raft.Batch{HardState: &raft.HardState{CurrentTerm: 2, VotedFor: "n2"}, Entries: NewEntries(2, 1, 51)})
	put(t, st.Snapshots(), m.id(50), []byte("state"))
	require.NoError(t, st.Compact(50))
	m.compact(50)
	m.check(t, st, reopen(t, st)) // the vote and the end of the log are still known
	m.write(t, st, raft.Batch{Entries: NewEntries(3, 51, 60)})
	m.check(t, st, reopen(t, st))
	require.NoError(t, st.Close())
}

// A snapshot was received, and the process died before the log learned of it: both are reported, and the core decides.
func testSnapshotAhead(t *testing.T, st raft.Storage) {
	begin(t, st)
	m := newModel()
	m.write(t, st, raft.Batch{HardState: &raft.HardState{CurrentTerm: 5}, Entries: NewEntries(1, 1, 11)})
	meta := put(t, st.Snapshots(), raft.EntryID{Term: 5, Index: 100}, []byte("state"))
	rec := reopen(t, st)
	m.check(t, st, rec)
	require.Equal(t, meta, rec.Snapshot)
	require.EqualValues(t, 10, rec.LastIndex)
	require.Zero(t, rec.Compacted)

	m.write(t, st, raft.Batch{Snapshot: &meta})
	rec = reopen(t, st)
	m.check(t, st, rec)
	require.EqualValues(t, 100, rec.LastIndex)
	require.Equal(t, meta.ID(), rec.Compacted)

	m.write(t, st, raft.Batch{Entries: NewEntries(5, 101, 105)})
	m.check(t, st, reopen(t, st))
	require.NoError(t, st.Close())
}

// The entries behind the snapshot's place belong to another history than the snapshot. Kept, they would pass for its continuation.
func testSnapshotContradicts(t *testing.T, st raft.Storage) {
	begin(t, st)
	m := newModel()
	m.write(t, st, raft.Batch{HardState: &raft.HardState{CurrentTerm: 3}, Entries: NewEntries(1, 1, 21)})
	meta := put(t, st.Snapshots(), raft.EntryID{Term: 2, Index: 10}, []byte("state"))
	m.write(t, st, raft.Batch{Snapshot: &meta})
	m.readAll(t, st)
	rec := reopen(t, st)
	m.check(t, st, rec)
	require.EqualValues(t, 10, rec.LastIndex)
	m.write(t, st, raft.Batch{Entries: NewEntries(3, 11, 15)})
	m.check(t, st, reopen(t, st))
	require.NoError(t, st.Close())
}

func testSnapshotSurvives(t *testing.T, st raft.Storage) {
	begin(t, st)
	m := newModel()
	m.write(t, st, raft.Batch{Entries: NewEntries(1, 1, 31)})
	for _, index := range []raft.Index{10, 20, 30} {
		meta := put(t, st.Snapshots(), m.id(index), []byte(fmt.Sprint("state at ", index)))
		k, err := st.Snapshots().Create(NewSnapshotMeta(m.id(index))) // never finished
		require.NoError(t, err)
		_, err = k.Write([]byte("half of it"))
		require.NoError(t, err)
		require.NoError(t, k.Abort())
		rec := reopen(t, st)
		require.Equal(t, meta, rec.Snapshot)
		m.check(t, st, rec)
	}
	requireContent(t, st.Snapshots(), 20, []byte("state at 20"))
	requireContent(t, st.Snapshots(), 30, []byte("state at 30"))
	require.NoError(t, st.Close())
}

// Entries runs beside Write and Compact, and sees all that was written before it began; so does Prepare, on a goroutine of its
// own.
func testConcurrentReads(t *testing.T, st raft.Storage) {
	begin(t, st)
	const batches, size = 60, 7
	want := NewEntries(1, 1, batches*size+1)
	var written, compacted atomic.Uint64
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for g := range 3 {
		wg.Go(func() {
			for n := g; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				hi := written.Load() + 1
				if hi == 1 {
					continue
				}
				lo := 1 + uint64(n*31)%(hi-1)
				es, err := st.Entries(raft.Index(lo), raft.Index(hi), 1000)
				if err != nil {
					assert.ErrorIs(t, err, raft.ErrCompacted)
					assert.LessOrEqual(t, lo, compacted.Load())
					continue
				}
				assert.NotEmpty(t, es)
				for i := range es {
					if !assert.Equal(t, want[lo-1+uint64(i)].Frame(), es[i].Frame()) {
						return
					}
				}
			}
		})
	}
	put(t, st.Snapshots(), raft.EntryID{Term: 1, Index: batches * size}, nil)
	wrote := make(chan struct{}, 1)
	if p, ok := st.(raft.StoragePreparer); ok {
		wg.Go(func() {
			for range wrote {
				for more := true; more; {
					var err error
					if more, err = p.Prepare(); !assert.NoError(t, err) {
						return
					}
				}
			}
		})
	}
	for i := range batches {
		err := st.Write(raft.Batch{Entries: want[i*size : (i+1)*size]})
		if !assert.NoError(t, err) {
			break
		}
		written.Store(uint64((i + 1) * size))
		select {
		case wrote <- struct{}{}:
		default: // it is busy, or has stopped
		}
		if i%8 == 7 {
			to := uint64(i * size / 2)
			compacted.Store(to)
			assert.NoError(t, st.Compact(raft.Index(to)))
		}
	}
	close(stop)
	close(wrote)
	wg.Wait()
	require.NoError(t, st.Close())
}

// testBatches writes every combination of the parts of a batch to a log of ten entries.
func testBatches(t *testing.T, open func(t *testing.T) raft.Storage) {
	const (
		hardState = 1 << iota
		truncate
		entries
		snapshot
		all
	)
	for bits := range all {
		for _, snapshotAt := range []raft.Index{5, 10, 25} {
			if bits&snapshot == 0 && snapshotAt != 5 {
				continue
			}
			t.Run(fmt.Sprintf("%04b/%d", bits, snapshotAt), func(t *testing.T) {
				st := open(t)
				begin(t, st)
				m := newModel()
				m.write(t, st, raft.Batch{HardState: &raft.HardState{CurrentTerm: 2, VotedFor: "n2"}, Entries: append(NewEntries(1, 1, 6), NewEntries(2, 6, 11)...)})
				var b raft.Batch
				next := raft.Index(11)
				if bits&hardState != 0 {
					b.HardState = &raft.HardState{CurrentTerm: 4}
				}
				if bits&truncate != 0 {
					b.TruncateFrom, next = 8, 8
				}
				if bits&snapshot != 0 {
					// At 25, and at 10 after a truncation, it covers the whole log: what was there is gone. Elsewhere the entries
					// behind it are still right and stay (§7).
					id := raft.EntryID{Term: 3, Index: snapshotAt}
					if snapshotAt < next {
						id = m.id(snapshotAt)
					}
					meta := put(t, st.Snapshots(), id, []byte("state"))
					b.Snapshot = &meta
					next = max(next, snapshotAt+1)
				}
				if bits&entries != 0 {
					b.Entries = NewEntries(4, next, next+5)
				}
				m.write(t, st, b)
				m.readAll(t, st)
				m.check(t, st, reopen(t, st))
				// What follows is appended to the right place.
				m.write(t, st, raft.Batch{Entries: NewEntries(6, m.last()+1, m.last()+4)})
				m.check(t, st, reopen(t, st))
				require.NoError(t, st.Close())
			})
		}
	}
}

// prepare does what the node does beside writing, where a storage asks for it.
func prepare(t *testing.T, st raft.Storage) {
	t.Helper()
	p, ok := st.(raft.StoragePreparer)
	if !ok {
		return
	}
	for n := 0; ; n++ {
		more, err := p.Prepare()
		require.NoError(t, err)
		if !more {
			break
		}
		require.Less(t, n, 1_000_000, "Prepare always wants more")
	}
}
