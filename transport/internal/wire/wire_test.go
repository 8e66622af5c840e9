package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
)

// stamped returns an entry with a place in the log, made the way a receiver sees it.
func stamped(t testing.TB, term raft.Term, index raft.Index, payload string) raft.Entry {
	e := raft.NewCommand([]byte(payload))
	return restamp(t, e, term, index)
}

func bodies(t testing.TB) []raft.Body {
	return []raft.Body{
		raft.PreVote{LastLogIndex: 7, LastLogTerm: 3},
		raft.PreVoteReply{Granted: true},
		raft.RequestVote{LastLogIndex: math.MaxUint64, LastLogTerm: 3, Transfer: true},
		raft.RequestVoteReply{Granted: true},
		raft.AppendEntries{PrevLogIndex: 4, PrevLogTerm: 2, LeaderCommit: 3, Round: 9},
		raft.AppendEntries{PrevLogIndex: 4, PrevLogTerm: 2, Entries: []raft.Entry{stamped(t, 2, 5, "a"), stamped(t, 3, 6, "")}},
		raft.AppendEntriesReply{Success: true, MatchIndex: 6, PrevLogIndex: 4, Round: 9},
		raft.AppendEntriesReply{Busy: true, HintIndex: 5, HintTerm: 1},
		raft.InstallSnapshot{Meta: raft.SnapshotMeta{Index: 9, Term: 2, ConfigurationIndex: 1, Size: 1000,
			Configuration: raft.Configuration{ClusterID: "c", Servers: []raft.Server{{ID: "a", Address: "h:1", Replica: 8}}, Removed: []raft.NodeID{"z"}}}},
		raft.InstallSnapshotReply{MatchIndex: 9},
		raft.TimeoutNow{},
		raft.TimeoutNowReply{Accepted: true},
		raft.ForwardPropose{Proposals: []raft.Proposal{{Entry: raft.NewCommand([]byte("set x")), IfTerm: 3}, {Entry: raft.NewBarrier()}}},
		raft.ForwardProposeReply{Outcomes: []raft.ForwardOutcome{{ID: raft.EntryID{Term: 3, Index: 7}}, {Refusal: raft.RefusedFull}}},
		raft.ForwardRead{},
		raft.ForwardReadReply{Index: 7, Refusal: raft.RefusedNotLeader},
		raft.FetchEntries{},
		raft.FetchEntries{Snapshot: 4, Wanted: []raft.Stretch{{Term: 1, First: 4, Last: 6}, {Term: 3, First: 9, Last: 9}}},
		raft.FetchEntriesReply{Incarnation: 5, Leading: true, CommitIndex: 7},
		raft.FetchEntriesReply{Incarnation: 5, Held: []raft.Held{
			{Stretch: raft.Stretch{Term: 1, First: 4, Last: 6}, UpTo: 3, How: raft.HoldsNot},
			{Stretch: raft.Stretch{Term: 2, First: 7, Last: 7}, UpTo: 7, How: raft.HoldsIntact},
			{Stretch: raft.Stretch{Term: 2, First: 8, Last: 9}, UpTo: 9, How: raft.HoldsCompacted},
			{Stretch: raft.Stretch{Term: 3, First: 10, Last: 11}, UpTo: 10, How: raft.HoldsUnknown},
		}},
		raft.FetchEntriesReply{Incarnation: 5, Held: []raft.Held{{Stretch: raft.Stretch{Term: 1, First: 4, Last: 6}, UpTo: 5, How: raft.HoldsDamaged}},
			Entries: []raft.Entry{stamped(t, 1, 5, "a"), stamped(t, 1, 6, "b")}},
		raft.InstallSnapshot{Repair: true, Meta: raft.SnapshotMeta{Index: 9, Term: 2, ConfigurationIndex: 1, Size: 1000,
			Configuration: raft.Configuration{ClusterID: "c", Servers: []raft.Server{{ID: "a", Address: "h:1", Replica: 8}}}}},
	}
}

func message(b raft.Body) raft.Message {
	return raft.Message{Header: raft.Header{From: "n1", To: "n2", Replica: 11, Incarnation: 12, Term: 3, Request: 14}, Body: b}
}

func TestEveryMessageSurvivesTheWire(t *testing.T) {
	for _, body := range bodies(t) {
		m := message(body)
		b, err := Marshal(m)
		require.NoError(t, err)
		got, err := Unmarshal(b)
		require.NoError(t, err)
		require.Equal(t, m, got)
		require.NoError(t, got.Validate())
	}
}

// The bytes are what servers of different releases exchange: a change of a Go field must not change them.
func TestTheEncodingDoesNotChange(t *testing.T) {
	for want, body := range map[string]raft.Body{
		"82ac4c6173744c6f67496e64657807ab4c6173744c6f675465726d03":                           raft.PreVote{LastLogIndex: 7, LastLogTerm: 3},
		"83ac4c6173744c6f67496e64657807ab4c6173744c6f675465726d03a85472616e73666572c3":       raft.RequestVote{LastLogIndex: 7, LastLogTerm: 3, Transfer: true},
		"0106000000000000000400000000000000000000000000000000000000000000000900000000000000": raft.AppendEntriesReply{Success: true, MatchIndex: 6, PrevLogIndex: 4, Round: 9},
		"040000000000000002000000000000000300000000000000090000000000000000000000":           raft.AppendEntries{PrevLogIndex: 4, PrevLogTerm: 2, LeaderCommit: 3, Round: 9},
		"80": raft.TimeoutNow{},
		"000000000000000001000000010000000000000004000000000000000600000000000000": raft.FetchEntries{Wanted: []raft.Stretch{{Term: 1, First: 4, Last: 6}}},
		"01050000000000000007000000000000000100000000000000010000000000000004000000000000000600000000000000050000000000000002": raft.FetchEntriesReply{
			Incarnation: 5, Leading: true, CommitIndex: 7,
			Held: []raft.Held{{Stretch: raft.Stretch{Term: 1, First: 4, Last: 6}, UpTo: 5, How: raft.HoldsDamaged}}},
	} {
		b, err := AppendControl(nil, message(body))
		require.NoError(t, err)
		require.Equal(t, want, hex.EncodeToString(b[envelopeSize+len("_n1_n2"):]), "%T", body)
	}
}

func TestEveryFlippedBitIsNoticed(t *testing.T) {
	for _, body := range bodies(t) {
		b, err := Marshal(message(body))
		require.NoError(t, err)
		for i := range b {
			damaged := bytes.Clone(b)
			damaged[i] ^= 1 << (i % 8)
			_, err := Unmarshal(damaged)
			require.Error(t, err, "%T byte %d", body, i)
		}
		for n := range b {
			_, err := Unmarshal(b[:n])
			require.Error(t, err, "%T cut to %d", body, n)
		}
	}
}

func TestHeadersAreCheckedBeforeAnythingIsAllocated(t *testing.T) {
	ok := AppendFrame(nil, FrameKeepalive, nil)
	_, err := ParseHeader(ok, 0)
	require.NoError(t, err)

	big := make([]byte, HeaderSize)
	putHeader(big, FrameMessage, nil, 1<<20)
	_, err = ParseHeader(big, 1<<20-1)
	require.ErrorIs(t, err, ErrOversized)
	_, err = ParseHeader(big, 1<<20)
	require.NoError(t, err)

	_, err = ParseHeader(ok[:HeaderSize-1], 0)
	require.ErrorIs(t, err, ErrMalformed)

	// A control part that is longer than the frame would make the length of the entries negative.
	binary.LittleEndian.PutUint32(big[4:], 1<<20+1)
	binary.LittleEndian.PutUint32(big[20:], crc32.Checksum(big[:20], castagnoli))
	_, err = ParseHeader(big, 1<<20)
	require.ErrorIs(t, err, ErrMalformed)
}

func TestBytesBehindAMessageAreRefused(t *testing.T) {
	for _, body := range bodies(t) {
		m := message(body)
		control, err := AppendControl(nil, m)
		require.NoError(t, err)
		var entries []byte
		EachPiece(m, func(piece []byte) { entries = append(entries, piece...) })
		_, err = DecodeMessage(control, entries, Names{})
		require.NoError(t, err)
		_, err = DecodeMessage(control, append(entries, 0), Names{})
		require.ErrorIs(t, err, ErrMalformed, "%T with a byte behind its entries", body)
		_, err = DecodeMessage(append(control, 0), entries, Names{})
		require.ErrorIs(t, err, ErrMalformed, "%T with a byte behind its body", body)
	}
}

func TestNumbersLargerThanTheInputAreRefused(t *testing.T) {
	control, err := AppendControl(nil, message(raft.AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1}))
	require.NoError(t, err)
	copy(control[len(control)-4:], []byte{0xff, 0xff, 0xff, 0xff})
	_, err = DecodeMessage(control, nil, Names{})
	require.ErrorIs(t, err, ErrMalformed)

	control, err = AppendControl(nil, message(raft.ForwardProposeReply{}))
	require.NoError(t, err)
	copy(control[len(control)-4:], []byte{0xff, 0xff, 0xff, 0xff})
	_, err = DecodeMessage(control, nil, Names{})
	require.ErrorIs(t, err, ErrMalformed)
}

func TestDeepNestingIsRefused(t *testing.T) {
	deep := append([]byte{0x81, 0xa1, 'x'}, bytes.Repeat([]byte{0x91}, maxPack-10)...)
	require.Error(t, Unpack(deep, &struct{ X any }{}))
	require.Error(t, Unpack(deep, &raft.PreVote{}))
	require.Error(t, Unpack(make([]byte, maxPack+1), &raft.PreVote{}))
}

func TestNamesOfTheConnectionAreNotAllocatedAgain(t *testing.T) {
	control, err := AppendControl(nil, message(raft.AppendEntriesReply{Success: true}))
	require.NoError(t, err)
	allocs := testing.AllocsPerRun(100, func() {
		_, err = DecodeMessage(control, nil, Names{From: "n1", To: "n2"})
	})
	require.NoError(t, err)
	require.LessOrEqual(t, allocs, 1.0, "only the body itself")
}

// The fuzzers start from the bodies above.
func TestEveryKindOfMessageIsTried(t *testing.T) {
	tried := map[kind]bool{}
	for _, body := range bodies(t) {
		control, err := AppendControl(nil, message(body))
		require.NoError(t, err)
		tried[kind(control[0])] = true
	}
	for k := kindPreVote; k <= kindRepairSnapshot; k++ {
		require.True(t, tried[k], "kind %d", k)
	}
}

func FuzzMessage(f *testing.F) {
	for _, body := range bodies(f) {
		b, err := Marshal(message(body))
		require.NoError(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Unmarshal(b)
		if err != nil {
			return
		}
		again, err := Marshal(m)
		require.NoError(t, err)
		second, err := Unmarshal(again)
		require.NoError(t, err)
		require.Equal(t, m, second)
	})
}

// FuzzControl skips the checksum, which a fuzzer hardly ever gets right.
func FuzzControl(f *testing.F) {
	for _, body := range bodies(f) {
		m := message(body)
		control, err := AppendControl(nil, m)
		require.NoError(f, err)
		var entries []byte
		EachPiece(m, func(piece []byte) { entries = append(entries, piece...) })
		f.Add(control, entries)
	}
	f.Fuzz(func(t *testing.T, control, entries []byte) {
		m, err := DecodeMessage(control, entries, Names{})
		if err == nil && m.Validate() == nil {
			_, err := AppendControl(nil, m)
			require.NoError(t, err)
		}
	})
}

func FuzzHeader(f *testing.F) {
	for t := FrameMessage; t <= FrameBegin; t++ {
		f.Add(AppendFrame(nil, t, []byte("control")), 1<<20)
	}
	for _, body := range bodies(f) {
		b, err := Marshal(message(body))
		require.NoError(f, err)
		f.Add(b, len(b))
	}
	f.Fuzz(func(t *testing.T, b []byte, maxFrame int) {
		h, err := ParseHeader(b, max(maxFrame, 0))
		if err == nil {
			require.LessOrEqual(t, h.Control+h.Entries, maxFrame)
		}
	})
}
