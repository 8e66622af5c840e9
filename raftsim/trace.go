package raftsim

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"regexp"
	"strings"
	"time"

	"github.com/steadyraft/raft"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// trace is the story of one run: a hash of everything that happened (SAFETY inv 31), and, if somebody wants to read it, lines.
type trace struct {
	hash    uint64
	scratch []byte
	lines   func(line string) // nil: nobody reads
	brief   bool              // leave out heartbeats that say nothing new
}

// mix adds numbers to the hash.
func (t *trace) mix(vs ...uint64) {
	for _, v := range vs {
		h := (t.hash ^ v) * 0x9e3779b97f4a7c15
		t.hash = h ^ h>>29
	}
}

// message adds a message to the hash, entries and all.
func (t *trace) message(m *raft.Message) {
	t.scratch = m.AppendState(t.scratch[:0], raft.Naming{})
	t.scratch = binary.LittleEndian.AppendUint64(t.scratch, m.Request)
	t.mix(uint64(crc32.Checksum(t.scratch, castagnoli)), uint64(len(t.scratch)))
}

// core adds the state of a core to the hash.
func (t *trace) core(c *raft.Core) {
	t.scratch = c.AppendState(t.scratch[:0], raft.Naming{})
	t.mix(uint64(crc32.Checksum(t.scratch, castagnoli)), uint64(len(t.scratch)))
}

// printf tells readers something. Arguments are formatted only if there is one.
func (w *world) printf(v *server, format string, args ...any) {
	if w.trace.lines == nil {
		return
	}
	who := "--"
	if v != nil {
		who = string(v.id)
	}
	w.trace.lines(fmt.Sprintf("%9.4fs %-3s ", w.now.Seconds(), who) + fmt.Sprintf(format, args...))
}

// describe writes a message so that several fit beside each other.
func describe(m *raft.Message) string {
	switch b := m.Body.(type) {
	case raft.AppendEntries:
		if len(b.Entries) == 0 {
			return fmt.Sprintf("heartbeat t%d prev %d@%d commit %d round %d", m.Term, b.PrevLogIndex, b.PrevLogTerm, b.LeaderCommit, b.Round)
		}
		return fmt.Sprintf("append t%d prev %d@%d +%d commit %d", m.Term, b.PrevLogIndex, b.PrevLogTerm, len(b.Entries), b.LeaderCommit)
	case raft.AppendEntriesReply:
		switch {
		case b.Busy:
			return fmt.Sprintf("append reply t%d busy", m.Term)
		case b.Success:
			return fmt.Sprintf("append reply t%d match %d", m.Term, b.MatchIndex)
		default:
			return fmt.Sprintf("append reply t%d no match at %d, hint %d@%d", m.Term, b.PrevLogIndex, b.HintIndex, b.HintTerm)
		}
	case raft.RequestVote:
		return fmt.Sprintf("vote? t%d last %d@%d transfer %v", m.Term, b.LastLogIndex, b.LastLogTerm, b.Transfer)
	case raft.RequestVoteReply:
		return fmt.Sprintf("vote t%d granted %v", m.Term, b.Granted)
	case raft.PreVote:
		return fmt.Sprintf("pre-vote? t%d last %d@%d", m.Term, b.LastLogIndex, b.LastLogTerm)
	case raft.PreVoteReply:
		return fmt.Sprintf("pre-vote t%d granted %v", m.Term, b.Granted)
	case raft.InstallSnapshot:
		return fmt.Sprintf("snapshot t%d %d@%d", m.Term, b.Meta.Index, b.Meta.Term)
	case raft.FetchEntries:
		return fmt.Sprintf("fetch t%d %v or a snapshot at %d", m.Term, b.Wanted, b.Snapshot)
	case raft.FetchEntriesReply:
		return fmt.Sprintf("fetched t%d %v +%d commit %d leading %v", m.Term, b.Held, len(b.Entries), b.CommitIndex, b.Leading)
	case raft.InstallSnapshotReply:
		return fmt.Sprintf("snapshot reply t%d match %d", m.Term, b.MatchIndex)
	default:
		return fmt.Sprintf("%s t%d", strings.TrimPrefix(fmt.Sprintf("%T", m.Body), "raft."), m.Term)
	}
}

// The size of a terminal.
const (
	traceWidth = 118
	traceLines = 40 // with what is said about lines left out
)

// tail is the end of a story that fits a terminal: its last lines, and before them the last changes of roles, crashes and faults, or
// nobody would know who leads.
type tail struct {
	lines   []string // the last ones
	turns   []string // of those before
	dropped int
}

const (
	lastTurns = 11
	lastLines = traceLines - lastTurns - 2
)

var turn = regexp.MustCompile(`^ *[0-9.]+s (-- +(fault|heal)|n\d+ +(leader t|follower t|candidate t|crash|start|configuration|resumed))`)

func (t *tail) add(line string) {
	if r := []rune(line); len(r) > traceWidth-2 {
		line = string(r[:traceWidth-3]) + "…"
	}
	t.lines = append(t.lines, line)
	if len(t.lines) <= lastLines {
		return
	}
	if turn.MatchString(t.lines[0]) {
		t.turns = append(t.turns, t.lines[0])
		t.turns = t.turns[max(0, len(t.turns)-lastTurns):]
	}
	t.lines = t.lines[1:]
	t.dropped++
}

func (t *tail) String() string {
	var b strings.Builder
	write := func(lines []string) {
		for _, l := range lines {
			fmt.Fprintf(&b, "  %s\n", l)
		}
	}
	write(t.turns)
	if n := t.dropped - len(t.turns); n > 0 {
		fmt.Fprintf(&b, "  … and %d other lines before\n", n)
	}
	write(t.lines)
	return b.String()
}

// round makes simulated times readable.
func round(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }
