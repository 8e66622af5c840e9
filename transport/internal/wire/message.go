package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/steadyraft/raft"
)

// kind says which body a message has. The numbers are on the wire and never change.
type kind uint8

const (
	kindPreVote              kind = 1
	kindPreVoteReply         kind = 2
	kindRequestVote          kind = 3
	kindRequestVoteReply     kind = 4
	kindAppendEntries        kind = 5
	kindAppendEntriesReply   kind = 6
	kindInstallSnapshot      kind = 7
	kindInstallSnapshotReply kind = 8
	kindTimeoutNow           kind = 9
	kindTimeoutNowReply      kind = 10
	kindForwardPropose       kind = 11
	kindForwardProposeReply  kind = 12
	kindForwardRead          kind = 13
	kindForwardReadReply     kind = 14
	kindFetchEntries         kind = 15
	kindFetchEntriesReply    kind = 16
	kindRepairSnapshot       kind = 17 // an InstallSnapshot whose sender claims no leadership
)

const (
	maxName          = 255
	appendSize       = 4*8 + 4
	appendReplySize  = 1 + 5*8
	outcomeSize      = 2*8 + 1
	proposalSize     = 8
	envelopeSize     = 1 + 4*8 // and the names
	flagReplySuccess = 1
	flagReplyBusy    = 2
	stretchSize      = 3 * 8
	heldSize         = stretchSize + 8 + 1
	flagLeading      = 1
)

// AppendControl appends the control part of a message: the envelope and the body without its entries.
//
// The bodies that flow with every batch of commands have a fixed layout, because reflection would cost more than all the rest of
// sending them. Everything else is MessagePack with named fields, so that later releases can add some.
func AppendControl(b []byte, m raft.Message) ([]byte, error) {
	if len(m.From) > maxName || len(m.To) > maxName {
		return b, fmt.Errorf("encode message: name longer than %d bytes", maxName)
	}
	at := len(b)
	b = append(b, 0)
	b = appendUint64(b, uint64(m.Term), m.Request, uint64(m.Replica), m.Incarnation)
	b = append(append(b, byte(len(m.From))), m.From...)
	b = append(append(b, byte(len(m.To))), m.To...)
	k := kind(0)
	var err error
	switch body := m.Body.(type) {
	case raft.AppendEntries:
		k = kindAppendEntries
		b = appendUint64(b, uint64(body.PrevLogIndex), uint64(body.PrevLogTerm), uint64(body.LeaderCommit), body.Round)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(body.Entries)))
	case raft.AppendEntriesReply:
		k = kindAppendEntriesReply
		var flags byte
		if body.Success {
			flags |= flagReplySuccess
		}
		if body.Busy {
			flags |= flagReplyBusy
		}
		b = append(b, flags)
		b = appendUint64(b, uint64(body.MatchIndex), uint64(body.PrevLogIndex), uint64(body.HintIndex), uint64(body.HintTerm), body.Round)
	case raft.ForwardPropose:
		k = kindForwardPropose
		b = binary.LittleEndian.AppendUint32(b, uint32(len(body.Proposals)))
		for i := range body.Proposals {
			b = appendUint64(b, uint64(body.Proposals[i].IfTerm))
		}
	case raft.ForwardProposeReply:
		k = kindForwardProposeReply
		b = binary.LittleEndian.AppendUint32(b, uint32(len(body.Outcomes)))
		for _, o := range body.Outcomes {
			b = append(appendUint64(b, uint64(o.ID.Term), uint64(o.ID.Index)), byte(o.Refusal))
		}
	case raft.FetchEntries:
		k = kindFetchEntries
		b = appendUint64(b, uint64(body.Snapshot))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(body.Wanted)))
		for _, w := range body.Wanted {
			b = appendUint64(b, uint64(w.Term), uint64(w.First), uint64(w.Last))
		}
	case raft.FetchEntriesReply:
		k = kindFetchEntriesReply
		var flags byte
		if body.Leading {
			flags |= flagLeading
		}
		b = appendUint64(append(b, flags), body.Incarnation, uint64(body.CommitIndex))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(body.Held)))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(body.Entries)))
		for _, h := range body.Held {
			b = append(appendUint64(b, uint64(h.Term), uint64(h.First), uint64(h.Last), uint64(h.UpTo)), byte(h.How))
		}
	case raft.InstallSnapshot:
		k = kindInstallSnapshot
		if body.Repair {
			k = kindRepairSnapshot
		}
		b = body.Meta.AppendBinary(b)
	case raft.PreVote:
		k = kindPreVote
		b, err = AppendPack(b, body)
	case raft.PreVoteReply:
		k = kindPreVoteReply
		b, err = AppendPack(b, body)
	case raft.RequestVote:
		k = kindRequestVote
		b, err = AppendPack(b, body)
	case raft.RequestVoteReply:
		k = kindRequestVoteReply
		b, err = AppendPack(b, body)
	case raft.InstallSnapshotReply:
		k = kindInstallSnapshotReply
		b, err = AppendPack(b, body)
	case raft.TimeoutNow:
		k = kindTimeoutNow
		b, err = AppendPack(b, body)
	case raft.TimeoutNowReply:
		k = kindTimeoutNowReply
		b, err = AppendPack(b, body)
	case raft.ForwardRead:
		k = kindForwardRead
		b, err = AppendPack(b, body)
	case raft.ForwardReadReply:
		k = kindForwardReadReply
		b, err = AppendPack(b, body)
	default:
		return b[:at], fmt.Errorf("encode message: unknown body %T", m.Body)
	}
	b[at] = byte(k)
	return b, err
}

// EachPiece calls f with the frames of all entries in the message, in the order in which they follow the control part; with several at
// once where they lie side by side in memory.
func EachPiece(m raft.Message, f func(piece []byte)) {
	switch body := m.Body.(type) {
	case raft.AppendEntries:
		raft.EachPiece(body.Entries, f)
	case raft.FetchEntriesReply:
		raft.EachPiece(body.Entries, f)
	case raft.ForwardPropose:
		for i := range body.Proposals {
			f(body.Proposals[i].Entry.Frame())
		}
	}
}

// EntriesSize is the length of all entries in the message.
func EntriesSize(m raft.Message) int {
	n := 0
	EachPiece(m, func(piece []byte) { n += len(piece) })
	return n
}

// Names are the two servers that a connection joins. A decoder takes their names from here instead of allocating them again for
// every message.
type Names struct{ From, To raft.NodeID }

func (n Names) of(b []byte) raft.NodeID {
	switch string(b) {
	case string(n.From):
		return n.From
	case string(n.To):
		return n.To
	}
	return raft.NodeID(b)
}

// DecodeMessage reads a message from the two parts of its frame. The message shares the bytes of entries, and none of control.
// Call Validate on the result.
func DecodeMessage(control, entries []byte, names Names) (raft.Message, error) {
	d := decoder{b: control}
	k := kind(d.byte())
	var m raft.Message
	m.Term, m.Request = raft.Term(d.uint64()), d.uint64()
	m.Replica, m.Incarnation = raft.ReplicaID(d.uint64()), d.uint64()
	m.From = names.of(d.take(int(d.byte())))
	m.To = names.of(d.take(int(d.byte())))
	switch k {
	case kindAppendEntries:
		body := raft.AppendEntries{
			PrevLogIndex: raft.Index(d.uint64()), PrevLogTerm: raft.Term(d.uint64()),
			LeaderCommit: raft.Index(d.uint64()), Round: d.uint64(),
		}
		if n := d.count(entries, raft.EntryHeaderSize); n > 0 {
			body.Entries = make([]raft.Entry, n)
			for i := range body.Entries {
				entries = d.entry(&body.Entries[i], entries)
			}
		}
		m.Body = body
	case kindAppendEntriesReply:
		flags := d.byte()
		if flags&^(flagReplySuccess|flagReplyBusy) != 0 {
			d.fail("unknown flags")
		}
		m.Body = raft.AppendEntriesReply{
			Success: flags&flagReplySuccess != 0, Busy: flags&flagReplyBusy != 0,
			MatchIndex: raft.Index(d.uint64()), PrevLogIndex: raft.Index(d.uint64()),
			HintIndex: raft.Index(d.uint64()), HintTerm: raft.Term(d.uint64()), Round: d.uint64(),
		}
	case kindForwardPropose:
		var body raft.ForwardPropose
		if n := d.count(entries, raft.EntryHeaderSize); n > 0 && n <= len(d.b)/proposalSize {
			body.Proposals = make([]raft.Proposal, n)
			for i := range body.Proposals {
				body.Proposals[i].IfTerm = raft.Term(d.uint64())
				entries = d.entry(&body.Proposals[i].Entry, entries)
			}
		}
		m.Body = body
	case kindForwardProposeReply:
		var body raft.ForwardProposeReply
		n := int(d.uint32())
		if n != len(d.b)/outcomeSize {
			d.fail("number of outcomes does not match")
		} else if n > 0 {
			body.Outcomes = make([]raft.ForwardOutcome, n)
			for i := range body.Outcomes {
				body.Outcomes[i] = raft.ForwardOutcome{
					ID: raft.EntryID{Term: raft.Term(d.uint64()), Index: raft.Index(d.uint64())}, Refusal: raft.RefusalCode(d.byte()),
				}
			}
		}
		m.Body = body
	case kindFetchEntries:
		body := raft.FetchEntries{Snapshot: raft.Index(d.uint64())}
		n := int(d.uint32())
		if n != len(d.b)/stretchSize {
			d.fail("number of stretches does not match")
		} else if n > 0 {
			body.Wanted = make([]raft.Stretch, n)
			for i := range body.Wanted {
				body.Wanted[i] = d.stretch()
			}
		}
		m.Body = body
	case kindFetchEntriesReply:
		flags := d.byte()
		if flags&^flagLeading != 0 {
			d.fail("unknown flags")
		}
		body := raft.FetchEntriesReply{Leading: flags&flagLeading != 0, Incarnation: d.uint64(), CommitIndex: raft.Index(d.uint64())}
		held := int(d.uint32())
		if n := d.count(entries, raft.EntryHeaderSize); n > 0 {
			body.Entries = make([]raft.Entry, n)
			for i := range body.Entries {
				entries = d.entry(&body.Entries[i], entries)
			}
		}
		if held != len(d.b)/heldSize {
			d.fail("number of stretches does not match")
		} else if held > 0 {
			body.Held = make([]raft.Held, held)
			for i := range body.Held {
				body.Held[i] = raft.Held{Stretch: d.stretch(), UpTo: raft.Index(d.uint64()), How: raft.Holding(d.byte())}
			}
		}
		m.Body = body
	case kindInstallSnapshot, kindRepairSnapshot:
		meta, err := raft.DecodeSnapshotMeta(d.b)
		if err != nil {
			d.fail(err.Error())
		}
		d.b = nil
		m.Body = raft.InstallSnapshot{Meta: meta, Repair: k == kindRepairSnapshot}
	case kindPreVote:
		m.Body = unpack[raft.PreVote](&d)
	case kindPreVoteReply:
		m.Body = unpack[raft.PreVoteReply](&d)
	case kindRequestVote:
		m.Body = unpack[raft.RequestVote](&d)
	case kindRequestVoteReply:
		m.Body = unpack[raft.RequestVoteReply](&d)
	case kindInstallSnapshotReply:
		m.Body = unpack[raft.InstallSnapshotReply](&d)
	case kindTimeoutNow:
		m.Body = unpack[raft.TimeoutNow](&d)
	case kindTimeoutNowReply:
		m.Body = unpack[raft.TimeoutNowReply](&d)
	case kindForwardRead:
		m.Body = unpack[raft.ForwardRead](&d)
	case kindForwardReadReply:
		m.Body = unpack[raft.ForwardReadReply](&d)
	default:
		d.fail("unknown kind of message: sent by a newer release?")
	}
	if d.err == nil && len(d.b)+len(entries) > 0 {
		d.fail("bytes left over")
	}
	if d.err != nil {
		return raft.Message{}, d.err
	}
	return m, nil
}

// AppendHead appends a message's frame up to its entries, which follow as EachPiece lists them.
func AppendHead(b []byte, m raft.Message) ([]byte, error) {
	at := len(b)
	b = append(b, make([]byte, HeaderSize)...)
	b, err := AppendControl(b, m)
	if err != nil {
		return b[:at], err
	}
	putHeader(b[at:at+HeaderSize], FrameMessage, b[at+HeaderSize:], EntriesSize(m))
	return b, nil
}

// Marshal returns the whole frame of a message.
func Marshal(m raft.Message) ([]byte, error) {
	b, err := AppendHead(make([]byte, 0, HeaderSize+256+EntriesSize(m)), m)
	if err != nil {
		return nil, err
	}
	EachPiece(m, func(piece []byte) { b = append(b, piece...) })
	return b, nil
}

// Unmarshal reads what Marshal wrote, and nothing else. The message shares the bytes of b. Call Validate on the result.
func Unmarshal(b []byte) (raft.Message, error) {
	h, err := ParseHeader(b, len(b))
	if err != nil {
		return raft.Message{}, err
	}
	if h.Type != FrameMessage || HeaderSize+h.Control+h.Entries != len(b) {
		return raft.Message{}, fmt.Errorf("%w: not exactly one message", ErrMalformed)
	}
	control := b[HeaderSize : HeaderSize+h.Control]
	if err := h.Check(control); err != nil {
		return raft.Message{}, err
	}
	return DecodeMessage(control, b[HeaderSize+h.Control:], Names{})
}

func appendUint64(b []byte, vs ...uint64) []byte {
	for _, v := range vs {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

// decoder reads a control part; after its first error it returns zeros.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(reason string) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", ErrMalformed, reason)
	}
	d.b = nil
}

func (d *decoder) take(n int) []byte {
	if n > len(d.b) {
		d.fail("message is cut off")
		return nil
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) byte() byte {
	if p := d.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (d *decoder) uint32() uint32 {
	if p := d.take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

func (d *decoder) uint64() uint64 {
	if p := d.take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

// count reads how many items of at least size bytes lie in b, and refuses more than can, so that no number makes us allocate more
// than was received.
func (d *decoder) count(b []byte, size int) int {
	n := int(d.uint32())
	if n > len(b)/size {
		d.fail("more entries announced than sent")
		return 0
	}
	return n
}

// entry reads one entry and returns the bytes behind it.
func (d *decoder) entry(e *raft.Entry, b []byte) []byte {
	if d.err != nil {
		return nil
	}
	n, err := e.Decode(b)
	if err != nil {
		d.err = fmt.Errorf("%w: %w", ErrMalformed, err)
		return nil
	}
	return b[n:]
}

func (d *decoder) stretch() raft.Stretch {
	return raft.Stretch{Term: raft.Term(d.uint64()), First: raft.Index(d.uint64()), Last: raft.Index(d.uint64())}
}

// unpack reads a MessagePack body.
func unpack[T raft.Body](d *decoder) raft.Body {
	var body T
	if d.err == nil {
		if err := Unpack(d.b, &body); err != nil {
			d.fail(err.Error())
		}
	}
	d.b = nil
	return body
}
