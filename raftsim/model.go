package raftsim

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/steadyraft/raft"
)

// model is what the whole cluster has promised so far. The invariants compare the servers with it.
type model struct {
	inputs       uint64
	leaders      map[raft.Term]raft.NodeID
	votes        map[ballot]raft.NodeID
	entries      map[raft.EntryID]fact // every entry that any server ever appended
	committed    []raft.Entry          // committed[i] has index i+1
	inTerm       []raft.Term           // of the leader that committed it first; beside committed
	highest      raft.Index            // of committed
	acknowledged raft.Index            // the highest index of which a client was told
	configs      []configuration       // committed ones, by index
	states       map[raft.Index]uint64 // of the state machine behind that index
	results      map[raft.Index]any    // what it answered there first
}

type ballot struct {
	voter raft.NodeID
	term  raft.Term
}

// fact is what (index, term) stands for.
type fact struct {
	entry  raft.Entry
	before raft.Term // of the entry before
}

func (f *fact) equals(g *fact) bool {
	return f.entry.Type == g.entry.Type && payloadSum(&f.entry) == payloadSum(&g.entry) && f.before == g.before
}

type configuration struct {
	index raft.Index
	conf  raft.Configuration
}

func newModel() model {
	return model{leaders: map[raft.Term]raft.NodeID{}, votes: map[ballot]raft.NodeID{}, entries: map[raft.EntryID]fact{},
		states: map[raft.Index]uint64{}, results: map[raft.Index]any{}}
}

// founded notes the entry that every founding server begins with.
func (m *model) founded(e raft.Entry) {
	if m.highest == 0 {
		m.entries[e.ID()] = fact{entry: e}
		m.commit(e, e.Term)
	}
}

// commit adds the next committed entry, which a leader of that term has committed.
func (m *model) commit(e raft.Entry, inTerm raft.Term) {
	m.committed, m.inTerm = append(m.committed, e), append(m.inTerm, inTerm)
	m.highest = e.Index
	if e.Type == raft.EntryConfiguration {
		if conf, err := raft.DecodeConfiguration(e.Data); err == nil { // the core has decoded it before
			m.configs = append(m.configs, configuration{e.Index, conf})
		}
	}
}

func (m *model) at(i raft.Index) *raft.Entry {
	if i == 0 || i > m.highest {
		return nil
	}
	return &m.committed[i-1]
}

// configurationAt finds the committed configuration in force behind index.
func (m *model) configurationAt(index raft.Index) *configuration {
	for k := len(m.configs) - 1; k >= 0; k-- {
		if m.configs[k].index <= index {
			return &m.configs[k]
		}
	}
	return nil
}

// payloadSum is the checksum of an entry's content, which its frame carries.
func payloadSum(e *raft.Entry) uint32 { return binary.LittleEndian.Uint32(e.Frame()[24:]) }

// memory is what the simulation knows of one server's disk, from what was written there.
type memory struct {
	issued  logModel // as the core believes it to be, once all writes are done
	durable logModel // what the disk has promised to hold
	doubt   *raft.Batch
	// The newest snapshot whose Commit has returned, and how far the log may be gone.
	snapshot    raft.Index
	compactedTo raft.Index
	powerFails  bool // at the crash that is planned

	heard       []heardFrom // by position of the sender
	preVotes    map[raft.NodeID]bool
	votes       map[raft.NodeID]bool
	preVoteTerm raft.Term
	electedAt   time.Duration
	confSince   time.Duration
	prior       view
	priorConf   raft.Configuration
	agreed      raft.Index // where this state was last compared and found equal
	restored    raft.Index // of the snapshot that it comes from; 0: none
}

// heardFrom is what a process knows of a peer's.
type heardFrom struct {
	at          time.Duration // on the local clock
	incarnation uint64

	// The most that a process of the peer has acknowledged in a term, as far as its answers have arrived.
	matchTerm        raft.Term
	matchIncarnation uint64
	match            raft.Index
}

// acknowledged notes an answer in the present term. One of a process that has been replaced comes too late.
func (h *heardFrom) acknowledged(m *raft.Message, match raft.Index) {
	if h.matchTerm == m.Term && h.matchIncarnation > m.Incarnation {
		return
	}
	if h.matchTerm != m.Term || h.matchIncarnation != m.Incarnation {
		h.matchTerm, h.matchIncarnation, h.match = m.Term, m.Incarnation, 0
	}
	h.match = max(h.match, match)
}

func newMemory() memory {
	return memory{preVotes: map[raft.NodeID]bool{}, votes: map[raft.NodeID]bool{}}
}

// inDoubt notes a write that has begun and whose end nobody knows.
func (m *memory) inDoubt(b *raft.Batch) {
	copied := *b
	copied.Entries = append([]raft.Entry(nil), b.Entries...)
	m.doubt = &copied
}

// recovered takes over the log that a start has found: the write in doubt is decided now.
func (m *memory) recovered(l logModel, rec *raft.Recovered) {
	m.durable, m.doubt = l, nil
	m.issued = m.durable.clone()
	m.snapshot = rec.Snapshot.Index
	m.heard, m.preVoteTerm, m.electedAt = nil, 0, 0
	clear(m.preVotes)
	clear(m.votes)
}

func (m *memory) heardOf(position int) *heardFrom {
	for len(m.heard) <= position {
		m.heard = append(m.heard, heardFrom{at: -1})
	}
	return &m.heard[position]
}

// logModel is a log as a list: what the write-ahead log should hold, without files. It never forgets what is compacted, so base is
// above zero only behind a snapshot that came from elsewhere.
type logModel struct {
	hard    raft.HardState
	base    raft.EntryID
	entries []raft.EntryID // behind base
	sums    []uint32       // of their payloads
	confs   []raft.Index   // of configuration entries
}

func (l *logModel) last() raft.Index { return l.base.Index + raft.Index(len(l.entries)) }

// id returns the entry at an index. ok is false before the base and behind the end.
func (l *logModel) id(i raft.Index) (id raft.EntryID, ok bool) {
	switch {
	case i == l.base.Index:
		return l.base, true
	case i < l.base.Index || i > l.last():
		return raft.EntryID{}, false
	}
	return l.entries[i-l.base.Index-1], true
}

func (l *logModel) contains(id raft.EntryID) bool {
	have, ok := l.id(id.Index)
	return ok && have == id
}

// apply carries out a batch.
func (l *logModel) apply(b *raft.Batch) {
	if b.HardState != nil {
		l.hard = *b.HardState
	}
	if b.TruncateFrom != 0 {
		l.truncate(b.TruncateFrom)
	}
	if b.Snapshot != nil && !l.contains(b.Snapshot.ID()) {
		l.base, l.entries, l.sums, l.confs = b.Snapshot.ID(), nil, nil, nil
	}
	for i := range b.Entries {
		e := &b.Entries[i]
		if e.Index <= l.last() {
			l.truncate(e.Index)
		}
		l.entries, l.sums = append(l.entries, e.ID()), append(l.sums, payloadSum(e))
		if e.Type == raft.EntryConfiguration {
			l.confs = append(l.confs, e.Index)
		}
	}
}

func (l *logModel) truncate(from raft.Index) {
	if from > l.last() || from <= l.base.Index {
		return
	}
	n := from - l.base.Index - 1
	l.entries, l.sums = l.entries[:n:n], l.sums[:n:n]
	for k := len(l.confs); k > 0 && l.confs[k-1] >= from; k-- {
		l.confs = l.confs[: k-1 : k-1]
	}
}

func (l *logModel) clone() logModel {
	c := *l
	c.entries, c.sums = l.entries[:len(l.entries):len(l.entries)], l.sums[:len(l.sums):len(l.sums)]
	c.confs = l.confs[:len(l.confs):len(l.confs)]
	return c
}

func (l *logModel) with(b *raft.Batch) logModel {
	c := l.clone()
	c.apply(b)
	return c
}

// agrees compares the log with what a storage has recovered; nil: it is the same.
func (l *logModel) agrees(rec *raft.Recovered) error {
	if rec.HardState != l.hard {
		return fmt.Errorf("hard state %v, want %v", rec.HardState, l.hard)
	}
	if rec.LastIndex != l.last() {
		return fmt.Errorf("last index %d, want %d", rec.LastIndex, l.last())
	}
	if rec.Compacted.Index < l.base.Index {
		return fmt.Errorf("begins behind %v, want %v", rec.Compacted, l.base)
	}
	if !l.contains(rec.Compacted) && rec.Compacted.Index > 0 {
		return fmt.Errorf("begins behind %v, which the log never held", rec.Compacted)
	}
	for k, run := range rec.Terms {
		hi := rec.LastIndex
		if k+1 < len(rec.Terms) {
			hi = rec.Terms[k+1].Index - 1
		}
		for i := run.Index; i <= hi; i++ {
			if want, ok := l.id(i); !ok || want.Term != run.Term {
				return fmt.Errorf("entry at %d has term %d, want %v", i, run.Term, want)
			}
		}
	}
	return nil
}
