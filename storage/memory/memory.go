// Package memory is a [raft.Storage] without a disk, for tests and simulations: it survives Close and Open, checks what it is
// given more strictly than a disk could, and fails, hangs or crashes when it is told to.
package memory

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/steadyraft/raft"
)

// path stands for the data directory in errors.
const path = "memory"

var (
	errClosed  = errors.New("memory storage is not open")
	errCrashed = errors.New("memory storage has crashed")
)

// Storage keeps everything in memory. Its methods may be called at the same time, as far as raft.Storage allows it.
type Storage struct {
	mu       sync.Mutex
	released sync.Cond // on mu: blocked or crashed has changed
	disk     disk
	open     bool
	crashed  bool
	blocked  int   // BlockWrites that are not released yet
	fail     error // as FailWrites wants it
	failed   error // the error that ended writing until the next Open
}

// disk is what outlives the process.
type disk struct {
	identity  raft.Identity
	hardState raft.HardState
	compacted raft.EntryID
	entries   []raft.Entry // from compacted.Index+1 on
	snapshots []snapshot   // rising
	damaged   []raft.Index // entries that cannot be read, rising; nobody else holds this array
	configure bool         // there may be configurations among them
	fence     raft.EntryID
}

// New returns a blank storage.
func New() *Storage {
	s := &Storage{}
	s.released.L = &s.mu
	return s
}

// Open implements raft.Storage. A blank storage takes id.Replica where that is not zero, so that a simulation can be repeated.
func (s *Storage) Open(ctx context.Context, id raft.Identity) (raft.Recovered, error) {
	if err := ctx.Err(); err != nil {
		return raft.Recovered{}, fmt.Errorf("open memory storage: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.crashed:
		return raft.Recovered{}, errCrashed
	case s.open:
		return raft.Recovered{}, raft.ErrLocked
	}
	have := &s.disk.identity
	if have.Cluster != "" && id.Cluster != "" && have.Cluster != id.Cluster {
		return raft.Recovered{}, &raft.IdentityError{Path: path, What: "cluster", Have: have.Cluster, Want: id.Cluster}
	}
	if have.Node != "" && id.Node != "" && have.Node != id.Node {
		return raft.Recovered{}, &raft.IdentityError{Path: path, What: "node", Have: string(have.Node), Want: string(id.Node)}
	}
	if have.Cluster == "" {
		have.Cluster = id.Cluster
	}
	if have.Node == "" {
		have.Node = id.Node
	}
	if have.Replica == 0 {
		have.Replica = id.Replica
	}
	for have.Replica == 0 {
		have.Replica = raft.ReplicaID(rand.Uint64())
	}
	have.Incarnation++
	s.open, s.failed = true, nil
	return s.disk.recovered(), nil
}

// recovered describes what is there.
func (d *disk) recovered() raft.Recovered {
	rec := raft.Recovered{Identity: d.identity, HardState: d.hardState, Compacted: d.compacted, LastIndex: d.last().Index}
	rec.Fence = d.fence
	for _, i := range d.damaged {
		if n := len(rec.Damaged); n > 0 && rec.Damaged[n-1].Last+1 == i {
			rec.Damaged[n-1].Last = i
			continue
		}
		rec.Damaged = append(rec.Damaged, raft.Damage{First: i, Last: i, MayConfigure: d.configure})
	}
	if n := len(d.snapshots); n > 0 {
		rec.Snapshot = d.snapshots[n-1].describe()
	}
	term := raft.Term(0)
	for i := range d.entries {
		e := &d.entries[i]
		if e.Term != term {
			term = e.Term
			rec.Terms = append(rec.Terms, raft.TermStart{Index: e.Index, Term: e.Term})
		}
		if e.Type == raft.EntryConfiguration && !d.isDamaged(e.Index) {
			rec.Configurations = append(rec.Configurations, *e)
		}
	}
	return rec
}

// last names the end of the log.
func (d *disk) last() raft.EntryID {
	if len(d.entries) == 0 {
		return d.compacted
	}
	return d.entries[len(d.entries)-1].ID()
}

// Write implements raft.Storage. Besides what the contract says it refuses batches that no correct core writes, and names the
// indices: entries that do not follow the log, terms that fall, a truncation of what is compacted, an installed snapshot that the
// snapshot store does not have, a repair with another entry than the log held. After an error nothing of the batch was written.
func (s *Storage) Write(b raft.Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.blocked > 0 && !s.crashed {
		s.released.Wait()
	}
	if err := s.usable(); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if s.failed != nil {
		return fmt.Errorf("write: after an earlier error: %w", s.failed)
	}
	if s.fail != nil && !(errors.Is(s.fail, raft.ErrStorageFull) && fitsWhenFull(b)) {
		if !errors.Is(s.fail, raft.ErrStorageFull) {
			s.failed = s.fail
		}
		return fmt.Errorf("write: %w", s.fail)
	}
	if err := s.disk.write(b); err != nil {
		s.failed = err
		return err
	}
	return nil
}

// fitsWhenFull says what a full storage must still take.
func fitsWhenFull(b raft.Batch) bool {
	return !slices.ContainsFunc(b.Entries, func(e raft.Entry) bool {
		return e.Type != raft.EntryNoOp && e.Type != raft.EntryConfiguration
	})
}

// write carries out a batch, or changes nothing.
func (d *disk) write(b raft.Batch) error {
	log, compacted := d.entries, d.compacted
	if from := b.TruncateFrom; from != 0 {
		if from <= compacted.Index {
			return fmt.Errorf("truncate from index %d: compacted up to %d", from, compacted.Index)
		}
		if keep := from - compacted.Index - 1; keep < raft.Index(len(log)) {
			log = log[:keep]
		}
	}
	if b.Snapshot != nil {
		id := b.Snapshot.ID()
		if id.Index < compacted.Index {
			return fmt.Errorf("install snapshot %v: the log begins behind %v already", id, compacted)
		}
		if newest := d.newestSnapshot(); newest < id.Index {
			return fmt.Errorf("install snapshot %v: the newest one stored is at index %d", id, newest)
		}
		log = behind(log, compacted, id)
		compacted = id
	}
	last := compacted
	if len(log) > 0 {
		last = log[len(log)-1].ID()
	}
	for i := range b.Entries {
		e := &b.Entries[i]
		if e.Index != last.Index+1 {
			return fmt.Errorf("append index %d, want %d: entry does not follow the log", e.Index, last.Index+1)
		}
		if e.Term < last.Term || e.Term == 0 {
			return fmt.Errorf("append entry %v behind %v: terms never fall", e.ID(), last)
		}
		if n, id, err := raft.EntryFrameSize(e.Frame()); err != nil || n != e.Size() || id != e.ID() {
			return fmt.Errorf("append entry %v: its frame of %d bytes is that of %v with %d bytes (%w)", e.ID(), e.Size(), id, n, err)
		}
		last = e.ID()
	}
	if len(b.Repairs) > 0 {
		log = slices.Clone(log) // they may be refused
	}
	log = append(log, b.Entries...) // nobody else holds this array: Entries and Crash hand out copies
	before := raft.Index(0)
	for i := range b.Repairs {
		e := &b.Repairs[i]
		if e.Index <= before || e.Index <= compacted.Index || e.Index > last.Index || log[e.Index-compacted.Index-1].ID() != e.ID() {
			return fmt.Errorf("repair entry %v behind %d: the log behind %v that ends at %v held another, or none", e.ID(), before, compacted, last)
		}
		if n, id, err := raft.EntryFrameSize(e.Frame()); err != nil || n != e.Size() || id != e.ID() {
			return fmt.Errorf("repair entry %v: its frame of %d bytes is that of %v with %d bytes (%w)", e.ID(), e.Size(), id, n, err)
		}
		before = e.Index
	}
	for _, e := range b.Repairs {
		log[e.Index-compacted.Index-1] = e
	}
	d.damaged = slices.DeleteFunc(d.damaged, func(i raft.Index) bool {
		return i <= compacted.Index || b.TruncateFrom != 0 && i >= b.TruncateFrom || i > last.Index-raft.Index(len(b.Entries)) ||
			slices.ContainsFunc(b.Repairs, func(e raft.Entry) bool { return e.Index == i })
	})
	d.entries, d.compacted = log, compacted
	if b.Fence != nil {
		d.fence = *b.Fence
	}
	if b.HardState != nil {
		d.hardState = *b.HardState
	}
	return nil
}

// behind returns what is left of a log when a snapshot is installed: "if existing log entry has same index and term as snapshot's
// last included entry, retain log entries following it; [otherwise] discard the entire log" (§7).
func behind(log []raft.Entry, compacted, snapshot raft.EntryID) []raft.Entry {
	if snapshot == compacted {
		return log
	}
	n := snapshot.Index - compacted.Index // entries up to the snapshot
	if n == 0 || n > raft.Index(len(log)) || log[n-1].ID() != snapshot {
		return nil
	}
	return log[n:]
}

// Entries implements raft.Storage.
func (s *Storage) Entries(lo, hi raft.Index, maxBytes int) ([]raft.Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return nil, fmt.Errorf("entries [%d, %d): %w", lo, hi, err)
	}
	d := &s.disk
	if lo <= d.compacted.Index {
		return nil, fmt.Errorf("entries [%d, %d): gone up to %d: %w", lo, hi, d.compacted.Index, raft.ErrCompacted)
	}
	if last := d.last().Index; lo >= hi || hi > last+1 {
		return nil, fmt.Errorf("entries [%d, %d): the log holds [%d, %d)", lo, hi, d.compacted.Index+1, last+1)
	}
	var es []raft.Entry
	size := 0
	for _, e := range d.entries[lo-d.compacted.Index-1 : hi-d.compacted.Index-1] {
		if d.isDamaged(e.Index) {
			if len(es) > 0 {
				break
			}
			return nil, d.damageAt(e.Index)
		}
		if size += e.Size(); size > maxBytes && len(es) > 0 {
			break
		}
		// Frames are shared with the whole process. Who changes one is found out here.
		if _, _, err := raft.DecodeEntry(e.Frame()); err != nil {
			return nil, &raft.CorruptionError{Path: path, Reason: fmt.Sprintf("entry %v was changed: %v", e.ID(), err)}
		}
		es = append(es, e)
	}
	return es, nil
}

// Compact implements raft.Storage.
func (s *Storage) Compact(to raft.Index) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return fmt.Errorf("compact to %d: %w", to, err)
	}
	d := &s.disk
	if to <= d.compacted.Index {
		return nil
	}
	if last := d.last().Index; to > last {
		return fmt.Errorf("compact to %d: the log ends at %d", to, last)
	}
	if newest := d.newestSnapshot(); to > newest {
		return fmt.Errorf("compact to %d: the newest snapshot is at index %d", to, newest)
	}
	n := to - d.compacted.Index
	d.compacted = d.entries[n-1].ID()
	d.entries = slices.Clone(d.entries[n:]) // lets go of the rest
	d.damaged = slices.DeleteFunc(d.damaged, func(i raft.Index) bool { return i <= to })
	return nil
}

// Snapshots implements raft.Storage.
func (s *Storage) Snapshots() raft.SnapshotStore { return snapshots{s} }

// Close implements raft.Storage. Unfinished snapshots are lost.
func (s *Storage) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	s.open = false
	return nil
}

// usable says why nothing can be done. The caller holds mu.
func (s *Storage) usable() error {
	switch {
	case s.crashed:
		return errCrashed
	case !s.open:
		return errClosed
	default:
		return nil
	}
}

// FailWrites makes every Write from now on fail with an error that wraps err; nil ends that. With an error that wraps
// raft.ErrStorageFull, only batches with commands or barriers fail, and writing can go on afterwards; any other error is final
// until the storage is opened again, as the contract says.
func (s *Storage) FailWrites(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

// BlockWrites makes every Write wait, like a disk that hangs, until release is called, or the storage crashes.
func (s *Storage) BlockWrites() (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blocked++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.blocked--
		s.released.Broadcast()
	})
}

// Crash ends the process that uses s, as far as the storage can tell, and returns what is left of it, to be opened by the next:
// all that was written. From then on s fails every call; a Write that hangs fails too, and its batch is lost.
func (s *Storage) Crash() *Storage {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := New()
	left.disk = s.disk
	left.disk.entries = slices.Clone(s.disk.entries)
	left.disk.snapshots = slices.Clone(s.disk.snapshots)
	left.disk.damaged = slices.Clone(s.disk.damaged)
	s.crashed = true
	s.released.Broadcast()
	return left
}

// Damage makes the entries [lo, hi) unreadable, as far as the log holds them, until they are repaired. With mayConfigure the next Open
// says that there may be configurations among all that is damaged.
func (s *Storage) Damage(lo, hi raft.Index, mayConfigure bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := &s.disk
	for i := max(lo, d.compacted.Index+1); i < min(hi, d.last().Index+1); i++ {
		if k, known := slices.BinarySearch(d.damaged, i); !known {
			d.damaged = slices.Insert(d.damaged, k, i)
		}
	}
	d.configure = d.configure || mayConfigure
}

// LoseEnd makes the log end behind last, as if the rest had been lost with a disk, and sets the fence that the next Open reports.
func (s *Storage) LoseEnd(last raft.Index, fence raft.EntryID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := &s.disk
	if last >= d.compacted.Index && last < d.last().Index {
		d.entries = slices.Clone(d.entries[:last-d.compacted.Index])
		d.damaged = slices.DeleteFunc(d.damaged, func(i raft.Index) bool { return i > last })
	}
	d.fence = fence
}

func (d *disk) isDamaged(i raft.Index) bool {
	_, damaged := slices.BinarySearch(d.damaged, i)
	return damaged
}

// damageAt describes the damaged entry and those behind it.
func (d *disk) damageAt(first raft.Index) error {
	last := first
	for d.isDamaged(last + 1) {
		last++
	}
	return &raft.CorruptionError{Path: path, Reason: fmt.Sprintf("entries %d to %d cannot be read", first, last),
		Next: "they are fetched from the other servers", Damage: raft.Damage{First: first, Last: last, MayConfigure: d.configure}}
}

// LoseSnapshots makes all snapshots unreadable, as damage does; the log stays where it begins.
func (s *Storage) LoseSnapshots() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disk.snapshots = nil
}
