package raft

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// FuzzDecodeEntry: whatever the bytes are, no panic; and what decodes is what was encoded.
func FuzzDecodeEntry(f *testing.F) {
	e := labCommand(3, 7, "set x=1")
	f.Add(e.Frame())
	f.Add(append(bytes.Clone(e.Frame()), 1, 2, 3))
	f.Add(e.Frame()[:EntryHeaderSize+2])
	f.Add(e.Frame()[:10])
	flipped := bytes.Clone(e.Frame())
	flipped[EntryHeaderSize] ^= 1
	f.Add(flipped)
	extended := newEntry(EntryCommand, []byte("eepayload"))
	binary.LittleEndian.PutUint16(extended.frame[4:], 2)
	extended.stamp(EntryID{1, 1})
	f.Add(extended.frame)
	f.Add(make([]byte, EntryHeaderSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, n, err := DecodeEntry(b)
		size, id, headerErr := EntryFrameSize(b)
		if err != nil {
			require.Zero(t, n)
			require.Zero(t, e)
			return
		}
		require.NoError(t, headerErr)
		require.Equal(t, n, size)
		require.Equal(t, e.ID(), id)
		require.Equal(t, b[:n], e.Frame())
		require.Equal(t, n, e.Size())
		require.Equal(t, n, EntryHeaderSize+len(e.Extensions())+len(e.Data))
		again := e.Clone()
		again.stamp(e.ID())
		require.Equal(t, b[:n], again.Frame(), "there is one encoding of an entry")
	})
}

// FuzzEntryFrameSize: a length is never beyond the bound, so that a reader may allocate it.
func FuzzEntryFrameSize(f *testing.F) {
	e := labCommand(3, 7, "x")
	f.Add(e.Frame()[:EntryHeaderSize])
	huge := e.Clone()
	binary.LittleEndian.PutUint32(huge.frame[0:], MaxEntrySize+1)
	huge.stamp(e.ID())
	f.Add(huge.frame)
	f.Fuzz(func(t *testing.T, b []byte) {
		n, _, err := EntryFrameSize(b)
		if err == nil {
			require.GreaterOrEqual(t, n, EntryHeaderSize)
			require.LessOrEqual(t, n, EntryHeaderSize+MaxEntrySize)
		} else {
			require.Zero(t, n)
		}
		// The same header with a right checksum, so that what lies behind that guard is reached as well.
		if len(b) >= EntryHeaderSize {
			b = bytes.Clone(b)
			forged := Entry{frame: b}
			forged.stamp(EntryID{Term(binary.LittleEndian.Uint64(b[8:])), Index(binary.LittleEndian.Uint64(b[16:]))})
			if n, _, err := EntryFrameSize(b); err == nil {
				require.LessOrEqual(t, n, EntryHeaderSize+MaxEntrySize)
			}
			_, _, _ = DecodeEntry(b)
		}
	})
}

// FuzzDecodeConfiguration: what decodes, encodes to bytes that mean the same.
func FuzzDecodeConfiguration(f *testing.F) {
	conf := labConfiguration("a b c | d")
	conf.Removed = []NodeID{"x", "y"}
	conf.LeaderLeases = true
	conf.Servers[0].Outgoing, conf.Servers[1].Leaving, conf.Servers[2].Priority = true, true, 9
	f.Add(conf.AppendBinary(nil))
	f.Add(conf.AppendBinary(nil)[:20])
	f.Add([]byte{configurationFormat, 0, 255, 1})
	f.Add([]byte{9})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		conf, err := DecodeConfiguration(b)
		if err != nil {
			return
		}
		_ = conf.Validate()
		canonical := conf.AppendBinary(nil)
		require.LessOrEqual(t, len(canonical), len(b))
		again, err := DecodeConfiguration(canonical)
		require.NoError(t, err)
		require.Equal(t, conf, again)
	})
}

// FuzzDecodeSnapshotMeta: the same for a snapshot's description.
func FuzzDecodeSnapshotMeta(f *testing.F) {
	meta := SnapshotMeta{Index: 9, Term: 3, ConfigurationIndex: 4, Size: 100, Configuration: labConfiguration("a b c")}
	f.Add(meta.AppendBinary(nil))
	f.Add(meta.AppendBinary(nil)[:31])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		meta, err := DecodeSnapshotMeta(b)
		if err != nil {
			return
		}
		_ = meta.Validate()
		again, err := DecodeSnapshotMeta(meta.AppendBinary(nil))
		require.NoError(t, err)
		require.Equal(t, meta, again)
	})
}

// FuzzHostileMessages feeds well-formed messages with arbitrary values into a core in various roles: a peer, even one that has passed
// authentication, must not be able to make it panic or contradict itself. Each byte string is a program of inputs.
func FuzzHostileMessages(f *testing.F) {
	for role := range byte(5) {
		f.Add([]byte{role, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20})
		f.Add(bytes.Repeat([]byte{role, 4, 1, 2, 1, 1, 3, 1}, 12))
		f.Add(bytes.Repeat([]byte{role, 6, 1, 3, 5, 2, 2, 2, 5}, 12))
		f.Add(bytes.Repeat([]byte{role, 5, 2, 2, 3, 1, 200, 255, 9, 17}, 12))
	}
	f.Fuzz(func(t *testing.T, program []byte) {
		if len(program) > 4096 {
			return
		}
		h := hostile{program: program}
		l, a := newServer(t, "a b c | d", func(c *CoreConfig) { c.TrailingEntries = 2; c.MaxTailBytes = 400 })
		h.lab = l
		switch h.next() % 5 {
		case 1:
			l.timeout("a")
		case 2:
			l.candidacy(a, "b")
		case 3:
			l.office(a, "b")
		case 4:
			l.office(a, "b")
			l.step("b", "a", 2, a.core.nextRequest, AppendEntriesReply{Success: true, PrevLogIndex: 1, MatchIndex: 2})
			_, err := a.change(Change{Demote: []NodeID{"c"}})
			require.NoError(t, err)
		}
		for len(h.program) > 0 {
			h.input(a)
			l.lose()
			l.said = nil
		}
	})
}

// hostile reads inputs from a byte string; behind its end are zeros.
type hostile struct {
	lab     *lab
	program []byte
}

func (h *hostile) next() byte {
	if len(h.program) == 0 {
		return 0
	}
	b := h.program[0]
	h.program = h.program[1:]
	return b
}

// number is usually near what the core knows, sometimes at the end of the range.
func (h *hostile) number(near uint64) uint64 {
	switch b := h.next(); {
	case b < 200:
		return near + uint64(b%8) - min(near, 4)
	case b < 230:
		return uint64(b)
	case b < 245:
		return 1 << (b % 64)
	default:
		return ^uint64(0) - uint64(b%4)
	}
}

func (h *hostile) input(a *labServer) {
	c := a.core
	switch op := h.next(); op % 16 {
	case 0:
		h.lab.pass(time.Duration(h.next()) * 20 * time.Millisecond)
		h.lab.tick("a")
	case 1:
		h.lab.timeout("a")
	case 2:
		if c.role == Leader && c.transferee == "" && c.storage == StorageOK {
			a.do(func(c *Core, now time.Duration) { _, _, _ = c.Propose(now, []Entry{NewCommand([]byte{op})}) })
		}
	case 3:
		a.slow = !a.slow
		if !a.slow && len(a.writes) > 0 {
			a.persist(len(a.writes))
		}
	case 4:
		from := string("bcd"[h.next()%3])
		incarnation := uint64(h.next() % 3)
		a.do(func(c *Core, now time.Duration) { c.PeerLost(now, NodeID(from), incarnation) })
		a.do(func(c *Core, now time.Duration) { c.PeerUp(now, NodeID(from), ReplicaID(h.next()), incarnation) })
	case 5:
		if i := c.lastApplied; i > c.snapshot.Index {
			if _, ok := c.SnapshotMeta(i); ok {
				a.takeSnapshot(i)
			}
		}
	default:
		h.message(a, op)
	}
}

// message delivers one well-formed message.
func (h *hostile) message(a *labServer, kind byte) {
	c := a.core
	from := "bcdx"[h.next()%4]
	m := Message{Header: Header{From: NodeID(from), To: "a", Replica: ReplicaID(labReplica + int(from)), Incarnation: 1 + uint64(h.next()%4/3),
		Term: Term(h.number(uint64(c.currentTerm))), Request: h.number(c.nextRequest)}}
	index := func() Index { return Index(h.number(uint64(c.log.last))) }
	term := func() Term { return Term(h.number(uint64(c.currentTerm))) }
	flag := h.next()
	switch kind % 12 {
	case 0:
		m.Body = PreVote{LastLogIndex: index(), LastLogTerm: term()}
	case 1:
		m.Body = PreVoteReply{Granted: flag&1 != 0}
	case 2:
		m.Body = RequestVote{LastLogIndex: index(), LastLogTerm: term(), Transfer: flag&1 != 0}
	case 3:
		m.Body = RequestVoteReply{Granted: flag&1 != 0}
	case 4, 5, 6:
		r := AppendEntries{PrevLogIndex: index(), PrevLogTerm: term(), LeaderCommit: index(), Round: h.number(c.round)}
		if t, ok := c.log.term(r.PrevLogIndex); ok && flag&2 != 0 {
			r.PrevLogTerm = t
		}
		for n := flag % 4; n > 0; n-- {
			id := EntryID{Term: max(r.PrevLogTerm, 1) + Term(h.next()%3), Index: r.PrevLogIndex + 1 + Index(len(r.Entries))}
			if k := len(r.Entries); k > 0 {
				id.Term = max(id.Term, r.Entries[k-1].Term)
			}
			if h.next()%3 == 0 {
				members := []string{"a b c | d", "a b", "b c d", "c | a", "x"}[h.next()%5]
				conf := labConfiguration(members)
				conf.Servers[0].Outgoing = h.next()%2 == 0
				r.Entries = append(r.Entries, labConfigurationEntry(id.Term, id.Index, conf))
			} else {
				r.Entries = append(r.Entries, labCommand(id.Term, id.Index, "hostile"))
			}
		}
		m.Body = r
	case 7, 8:
		m.Body = AppendEntriesReply{Success: flag&1 != 0, Busy: flag&2 != 0, MatchIndex: index(), PrevLogIndex: index(), HintIndex: index(),
			HintTerm: term(), Round: h.number(c.round)}
	case 9:
		meta := SnapshotMeta{Index: index(), Term: term(), Configuration: labConfiguration("a b c"), Size: 1}
		if m.Body = (InstallSnapshot{Meta: meta}); m.Validate() == nil && a.disk.snapshot.Index < meta.Index && c.WantsSnapshot(m) {
			a.disk.snapshot = meta
		}
	case 10:
		m.Body = InstallSnapshotReply{MatchIndex: index()}
	case 11:
		m.Body = TimeoutNow{}
	}
	if m.Validate() != nil {
		return
	}
	a.do(func(c *Core, now time.Duration) { c.Step(now, m) })
}
