package raft_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/steadyraft/raft"
)

// chaosCommand is one command of the chaos test's key-value state machine. Name is unique.
type chaosCommand struct {
	Name  string
	Op    string // put, append or cas
	Key   string
	Arg   string
	Old   string    // of a cas
	Epoch raft.Term `json:",omitempty"` // given to IfTerm; 0: none
}

// chaosResult is what a command or a read returns.
type chaosResult struct {
	OK    bool
	Value string // before a put or a cas, after an append, at a get
}

// execute carries out a command on one value. The state machine and the checker share it, so the checker is about order alone.
func (c chaosCommand) execute(value string) (string, chaosResult) {
	switch c.Op {
	case "put":
		return c.Arg, chaosResult{true, value}
	case "append":
		return value + c.Arg, chaosResult{true, value + c.Arg}
	case "cas":
		if value != c.Old {
			return value, chaosResult{false, value}
		}
		return c.Arg, chaosResult{true, value}
	default: // get
		return value, chaosResult{true, value}
	}
}

// ledger holds what all servers together have applied, and whatever was found to be wrong.
type ledger struct {
	mu         sync.Mutex
	byIndex    map[raft.Index]ledgerEntry
	byName     map[string]raft.Index
	newest     raft.Index
	violations []string
	clock      atomic.Int64 // logical time of the history
	operations []chaosOperation
	work       map[raft.Term]leaderRun
}

// ledgerEntry is what was applied at an index, and a hash over everything up to there.
type ledgerEntry struct {
	id     raft.EntryID
	name   string
	chain  uint64
	result chaosResult
}

// leaderRun is one run of a function given to WhileLeader.
type leaderRun struct {
	by      raft.NodeID
	applied raft.Index // the newest command that its state machine held when it began
}

// chaosOperation is one call of a client.
type chaosOperation struct {
	client       int
	cmd          chaosCommand
	call, end    int64
	result       chaosResult
	err          error
	id           raft.EntryID // where the command is said to be; zero if not even that is known
	acknowledged bool
}

func newLedger() *ledger {
	return &ledger{byIndex: make(map[raft.Index]ledgerEntry), byName: make(map[string]raft.Index), work: make(map[raft.Term]leaderRun)}
}

// wrong notes a violation.
func (l *ledger) wrong(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wrongLocked(format, args...)
}

func (l *ledger) wrongLocked(format string, args ...any) {
	if len(l.violations) < 8 {
		l.violations = append(l.violations, fmt.Sprintf(format, args...))
	}
}

// applied compares what a server applies with what others have applied at the same place (SAFETY inv 7, 9).
func (l *ledger) applied(by raft.NodeID, e ledgerEntry, cmd chaosCommand) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if have, ok := l.byIndex[e.id.Index]; ok {
		if have != e {
			l.wrongLocked("%s applies %+v where another server applied %+v", by, e, have)
		}
		return
	}
	if at, ok := l.byName[e.name]; ok {
		l.wrongLocked("%s applies command %s at %v, but it was applied at index %d already", by, e.name, e.id, at)
	}
	if cmd.Epoch != 0 && cmd.Epoch != e.id.Term {
		l.wrongLocked("%s applies command %s of epoch %d in another term: %v", by, e.name, cmd.Epoch, e.id)
	}
	l.byIndex[e.id.Index], l.byName[e.name] = e, e.id.Index
	l.newest = max(l.newest, e.id.Index)
}

// restored checks that a snapshot at index holds every command up to there and none behind (SAFETY inv 19).
func (l *ledger) restored(by raft.NodeID, index raft.Index, content raft.EntryID, chain uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := index
	for at > 0 && l.byIndex[at].name == "" {
		at--
	}
	if e := l.byIndex[at]; e.id != content || e.chain != chain {
		l.wrongLocked("%s restores a snapshot at index %d with the state of %v, want that of %v", by, index, content, e.id)
	}
}

// began notes that the function given to WhileLeader runs: one server per epoch, and with the whole state of earlier terms.
func (l *ledger) began(epoch raft.Term, run leaderRun) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if other, ok := l.work[epoch]; ok && other.by != run.by {
		l.wrongLocked("epoch %d belongs to %s and to %s", epoch, other.by, run.by)
		return
	} else if !ok {
		l.work[epoch] = run
	}
}

func (l *ledger) record(op chaosOperation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.operations = append(l.operations, op)
}

// settle looks at everything once more, when nothing moves any longer.
func (l *ledger) settle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.operations {
		op := &l.operations[i]
		uncertain := (*raft.UncertainError)(nil)
		at, was := l.byName[op.cmd.Name]
		switch {
		case op.cmd.Op == "get":
		case was && op.id != (raft.EntryID{}) && op.id != l.byIndex[at].id:
			l.wrongLocked("command %s is said to be %v, but was applied as %v", op.cmd.Name, op.id, l.byIndex[at].id)
		case op.acknowledged && !was:
			l.wrongLocked("command %s was acknowledged and never applied", op.cmd.Name)
		case op.err != nil && !errors.As(op.err, &uncertain) && was:
			l.wrongLocked("command %s ended with an error that says it has no effect (%v), but it was applied at index %d", op.cmd.Name, op.err, at)
		}
	}
	for epoch, run := range l.work {
		for _, e := range l.byIndex {
			if e.id.Term < epoch && e.id.Index > run.applied {
				l.wrongLocked("%s began to work in epoch %d with the state of index %d, without %v of an earlier term", run.by, epoch, run.applied, e.id)
				break
			}
		}
	}
}

// checkLinearizable gives the history to the checker, key by key. An operation with an unknown outcome may take effect at any time
// after its call; whether it did is known from the state machines. An operation that was refused is left out.
func (l *ledger) checkLinearizable(limit time.Duration) porcupine.CheckResult {
	var history []porcupine.Operation
	for _, op := range l.operations {
		o := porcupine.Operation{ClientId: op.client, Input: op.cmd, Call: op.call, Output: op.result, Return: op.end}
		if !op.acknowledged {
			at, was := l.byName[op.cmd.Name]
			if !was {
				continue
			}
			o.Output, o.Return = l.byIndex[at].result, math.MaxInt64
		}
		history = append(history, o)
	}
	model := porcupine.Model{
		Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
			byKey := make(map[string][]porcupine.Operation)
			for _, o := range history {
				key := o.Input.(chaosCommand).Key
				byKey[key] = append(byKey[key], o)
			}
			var parts [][]porcupine.Operation
			for _, part := range byKey {
				parts = append(parts, part)
			}
			return parts
		},
		Init: func() any { return "" },
		Step: func(state, input, output any) (bool, any) {
			next, result := input.(chaosCommand).execute(state.(string))
			return result == output.(chaosResult), next
		},
		Equal: func(a, b any) bool { return a == b },
	}
	return porcupine.CheckOperationsTimeout(model, history, limit)
}

// store is the key-value state machine of one server.
type store struct {
	by     raft.NodeID
	ledger *ledger

	mu    sync.Mutex
	state storeState
}

type storeState struct {
	Values map[string]string
	Last   raft.EntryID // the newest command
	Chain  uint64       // a hash over the names of all commands, in their order
}

func newStore(by raft.NodeID, l *ledger) *store {
	return &store{by: by, ledger: l, state: storeState{Values: make(map[string]string)}}
}

func (s *store) Apply(entries []raft.Entry, results []any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range entries {
		e := &entries[i]
		var cmd chaosCommand
		if err := json.Unmarshal(e.Data, &cmd); err != nil {
			return err
		}
		if e.Index <= s.state.Last.Index || e.Term < s.state.Last.Term {
			return fmt.Errorf("entry %v is applied after %v", e.ID(), s.state.Last)
		}
		value, result := cmd.execute(s.state.Values[cmd.Key])
		s.state.Values[cmd.Key] = value
		s.state.Last = e.ID()
		h := fnv.New64a()
		fmt.Fprintf(h, "%x %s", s.state.Chain, cmd.Name)
		s.state.Chain = h.Sum64()
		s.ledger.applied(s.by, ledgerEntry{e.ID(), cmd.Name, s.state.Chain, result}, cmd)
		results[i] = result
	}
	return nil
}

func (s *store) get(key string) chaosResult {
	s.mu.Lock()
	defer s.mu.Unlock()
	return chaosResult{true, s.state.Values[key]}
}

func (s *store) last() raft.Index {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.Last.Index
}

func (s *store) view() storeState {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.state
	v.Values = maps.Clone(v.Values)
	return v
}

func (s *store) Snapshot(context.Context) (raft.SnapshotWriter, error) {
	return storeView{s.view()}, nil
}

func (s *store) Restore(_ context.Context, meta raft.SnapshotMeta, r io.Reader) error {
	var st storeState
	if err := json.NewDecoder(r).Decode(&st); err != nil {
		return err
	}
	if st.Values == nil {
		st.Values = make(map[string]string)
	}
	s.ledger.restored(s.by, meta.Index, st.Last, st.Chain)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = st
	return nil
}

type storeView struct{ state storeState }

func (v storeView) WriteTo(_ context.Context, w io.Writer) error {
	time.Sleep(time.Duration(v.state.Chain % uint64(50*time.Millisecond))) // beside further commands
	return json.NewEncoder(w).Encode(v.state)
}

func (storeView) Close() {}

// durableStore survives the process, as a state machine on disk does.
type durableStore struct{ *store }

func (s durableStore) LastApplied() (raft.EntryID, error) { return s.view().Last, nil }

// padding makes commands of different sizes.
func padding(n int) string { return strings.Repeat("x", n) }
