package raft

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var (
	updateScripts = flag.Bool("update", false, "rewrite what the scripts in testdata are expected to print")
	scriptsIn     = flag.String("scripts", "testdata", "the directory of the scripts")
)

// TestScripts runs testdata/*.txt, in which the order of messages is the point. testdata/README.md describes the language.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(*scriptsIn, "*.txt"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			require.NoError(t, err)
			got, err := runScript(t, string(want))
			require.NoError(t, err, "%s", got)
			if *updateScripts {
				require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
				return
			}
			require.Equal(t, string(want), got, "what happens is no longer what the script says")
		})
	}
}

// A script whose expectation does not hold fails, whatever its printed output says.
func TestScriptExpectationsFail(t *testing.T) {
	for _, bad := range []string{"expect a leader", "expect a term=9", "expect a log=1,2", "expect a shoe=9", "nonsense", "deliver a b"} {
		_, err := runScript(t, "cluster a b c\nstart\n"+bad+"\n")
		require.Error(t, err, bad)
	}
	out, err := runScript(t, "# why\n\ncluster a b c\nstart\nexpect a follower term=1 log=1\ntimeout a\n    stale line\n")
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(out, "# why\n\ncluster a b c\nstart\n"))
	require.NotContains(t, out, "stale line")
	require.Contains(t, out, "    a->b PreVote term 2 last 1@1\n")
}

const scriptIndent = "    "

// runScript runs a script and returns it with the output that each command gave in place of the old one.
func runScript(t testing.TB, script string) (string, error) {
	var out strings.Builder
	r := &scriptRun{t: t}
	for i, line := range strings.Split(strings.TrimSuffix(script, "\n"), "\n") {
		if strings.HasPrefix(line, scriptIndent) {
			continue // old output
		}
		out.WriteString(line + "\n")
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		if err := r.command(words[0], words[1:]); err != nil {
			return out.String(), fmt.Errorf("line %d: %s: %w", i+1, line, err)
		}
		if r.lab != nil {
			for _, said := range r.lab.story() {
				out.WriteString(scriptIndent + said + "\n")
			}
		}
	}
	return out.String(), nil
}

type scriptRun struct {
	t   testing.TB
	lab *lab
}

var errUsage = errors.New("does not fit the command; see testdata/README.md")

// command carries out one line.
func (r *scriptRun) command(verb string, args []string) error {
	if verb == "cluster" {
		r.lab = newLab(r.t, strings.Join(args, " "))
		return nil
	}
	if r.lab == nil {
		return errors.New("the first command is cluster")
	}
	l := r.lab
	switch verb {
	case "knob":
		return r.knob(args)
	case "log":
		return r.provision(args)
	case "start", "crash", "timeout", "tick", "slow", "fast", "isolate", "join", "show":
		if verb == "start" && len(args) == 0 {
			for i := range l.conf.Servers {
				args = append(args, string(l.conf.Servers[i].ID))
			}
		}
		if verb == "show" && len(args) == 0 {
			args = l.ids()
		}
		if len(args) == 0 {
			return errUsage
		}
		for _, id := range args {
			if verb != "start" && l.servers[NodeID(id)] == nil {
				return fmt.Errorf("there is no server %q", id)
			}
			r.each(verb, id)
		}
	case "pass":
		d, err := time.ParseDuration(strings.Join(args, ""))
		if err != nil {
			return err
		}
		l.pass(d)
	case "settle":
		if len(args) != 0 {
			return errUsage
		}
		said := l.said
		l.settle()
		for _, line := range l.said[len(said):] {
			if !strings.Contains(line, "->") { // what became of it, not every message
				said = append(said, line)
			}
		}
		l.said = said
	case "deliver", "drop", "repeat":
		return r.messages(verb, args)
	default:
		return r.input(verb, args)
	}
	return nil
}

// each carries out a command that takes a list of servers.
func (r *scriptRun) each(verb, id string) {
	l := r.lab
	switch verb {
	case "start":
		l.start(id)
	case "crash":
		l.crash(id)
	case "timeout":
		l.timeout(id)
	case "tick":
		l.tick(id)
	case "slow":
		l.server(id).slow = true
	case "fast":
		s := l.server(id)
		s.slow = false
		if len(s.writes) > 0 {
			s.persist(len(s.writes))
		}
	case "isolate", "join":
		l.isolate(id, verb == "isolate")
	case "show":
		s := l.server(id)
		if !s.up {
			l.say("%s is down", id)
			return
		}
		c := s.core
		l.say("%s %v term %d vote %s leader %s log %s commit %d durable %d", id, c.role, c.currentTerm, orNone(string(c.votedFor)),
			orNone(string(c.leader)), s.termList(), c.commitIndex, c.log.durable)
	}
}

func (s *labServer) termList() string {
	var ts []string
	if base := s.core.log.base; base.Index > 0 {
		ts = append(ts, fmt.Sprintf("(%v)", base))
	}
	for _, t := range s.terms() {
		ts = append(ts, fmt.Sprint(t))
	}
	return strings.Join(ts, ",")
}

func (r *scriptRun) knob(args []string) error {
	for _, a := range args {
		name, value, _ := strings.Cut(a, "=")
		n, err := strconv.Atoi(value)
		if err != nil {
			return err
		}
		cfg := &r.lab.cfg
		switch name {
		case "pre-vote":
			cfg.DisablePreVote = n == 0
		case "check-quorum":
			cfg.DisableCheckQuorum = n == 0
		case "trailing":
			cfg.TrailingEntries = uint64(n)
		case "batch":
			cfg.MaxBatchBytes = n
		case "inflight":
			cfg.MaxInflightMessages = n
		default:
			return errUsage
		}
	}
	return nil
}

// provision reads: log a 1 1 4 [term 5] [vote b].
func (r *scriptRun) provision(args []string) error {
	if len(args) < 2 {
		return errUsage
	}
	var hard HardState
	var terms []Term
	for i := 1; i < len(args); i++ {
		word := args[i]
		if word == "vote" && i+1 < len(args) {
			i++
			hard.VotedFor = NodeID(args[i])
			continue
		}
		named := word == "term" && i+1 < len(args)
		if named {
			i++
		}
		n, err := strconv.ParseUint(args[i], 10, 64)
		if err != nil {
			return err
		}
		if hard.CurrentTerm = max(hard.CurrentTerm, Term(n)); !named {
			terms = append(terms, Term(n))
		}
	}
	r.lab.provision(args[0], hard, terms...)
	return nil
}

// messages reads: a->b [Kind] [number]. Without a number all that are under way now are meant, with one only the n-th of them.
func (r *scriptRun) messages(verb string, args []string) error {
	l := r.lab
	if len(args) == 0 {
		return errUsage
	}
	from, to, ok := strings.Cut(args[0], "->")
	if !ok {
		return errUsage
	}
	kind, nth := "", 0
	for _, a := range args[1:] {
		if n, err := strconv.Atoi(a); err == nil {
			nth = n
		} else {
			kind = a
		}
	}
	before := l.wire
	ms := l.take(from, to, kind)
	if nth < 0 || nth > len(ms) || len(ms) == 0 {
		l.wire = before
		return fmt.Errorf("%d such messages are under way", len(ms))
	}
	if nth > 0 {
		one := ms[nth-1]
		l.wire = nil
		kept := false
		for _, m := range before { // the others stay where they were
			if !kept && m.Header == one.Header && kindOf(m) == kindOf(one) {
				kept = true
				continue
			}
			l.wire = append(l.wire, m)
		}
		ms = []Message{one}
	}
	if verb == "repeat" { // delivered, and still under way
		l.wire = append(l.wire, ms...)
	}
	if verb != "drop" {
		for _, m := range ms {
			l.stepMessage(m)
		}
	}
	return nil
}

// input reads commands that feed one server.
func (r *scriptRun) input(verb string, args []string) error {
	l := r.lab
	if len(args) == 0 || l.servers[NodeID(args[0])] == nil {
		return errUsage
	}
	s, rest := l.server(args[0]), args[1:]
	number := func() uint64 {
		if len(rest) == 0 {
			return 1
		}
		n, err := strconv.ParseUint(rest[len(rest)-1], 10, 63)
		if err != nil {
			return 0
		}
		return n
	}
	var err error
	switch verb {
	case "propose":
		for _, data := range rest {
			s.do(func(c *Core, now time.Duration) { _, _, err = c.Propose(now, []Entry{NewCommand([]byte(data))}) })
		}
	case "damage":
		s.damage(Index(number()))
	case "forget":
		s.forget(Index(number()))
	case "mislay":
		s.disk.snapshot = SnapshotMeta{}
	case "find":
		i := Index(number())
		s.damage(i)
		s.do(func(c *Core, now time.Duration) { c.Damaged(now, Damage{First: i, Last: i}) })
	case "repair":
		s.do(func(c *Core, now time.Duration) { c.ForceRepair(now) })
	case "persist":
		n := int(number())
		if n > len(s.writes) || n == 0 {
			return fmt.Errorf("%d writes are under way", len(s.writes))
		}
		s.persist(n)
	case "read":
		err = s.read(number())
	case "resign": // it hands over at once, and may lead again
		s.do(func(c *Core, now time.Duration) { c.Abstain(now, true); c.Abstain(now, false) })
	case "transfer":
		err = s.transfer(strings.Join(rest, ""))
	case "change":
		var ch Change
		if ch, err = scriptChange(rest); err != nil {
			return err
		}
		_, err = s.change(ch)
	case "snapshot":
		s.takeSnapshot(Index(number()))
	case "carry", "break": // the content of a transfer arrives, or does not
		x, err := s.begunTransfer(rest)
		if err != nil {
			return err
		}
		if verb == "break" {
			s.do(func(c *Core, now time.Duration) { c.SnapshotFailed(now, x.ID) })
			return nil
		}
		l.stepMessage(x.Message)
		if x.Message.Incarnation == s.disk.identity.Incarnation { // an earlier process cannot be told
			s.do(func(c *Core, now time.Duration) { c.SnapshotSent(now, x.ID) })
		}
	case "lost", "up":
		if len(rest) != 2 {
			return errUsage
		}
		if verb == "lost" {
			s.peerLost(rest[0], number())
		} else {
			s.peerUp(rest[0], number())
		}
	case "expect":
		return s.expect(rest)
	default:
		return errors.New("unknown command")
	}
	if err != nil {
		l.say("refused: %v", err)
	}
	return nil
}

// begunTransfer reads: [n [incarnation]]. Without a number the newest transfer of a snapshot is meant.
func (s *labServer) begunTransfer(words []string) (x SnapshotTransfer, err error) {
	want := [2]uint64{}
	for i := range min(len(words), 2) {
		if want[i], err = strconv.ParseUint(words[i], 10, 63); err != nil {
			return x, err
		}
	}
	for i := len(s.transfers) - 1; i >= 0; i-- {
		x = s.transfers[i]
		if (want[0] == 0 || want[0] == x.ID) && (want[1] == 0 || want[1] == x.Message.Incarnation) {
			return x, nil
		}
	}
	return x, errors.New("no such transfer was begun")
}

// scriptChange reads: add x promote y demote z remove w.
func scriptChange(words []string) (Change, error) {
	var ch Change
	if len(words)%2 != 0 {
		return ch, errUsage
	}
	for i := 0; i < len(words); i += 2 {
		id := NodeID(words[i+1])
		switch words[i] {
		case "add":
			ch.Add = append(ch.Add, labServerNamed(words[i+1], NonVoter))
		case "promote":
			ch.Promote = append(ch.Promote, id)
		case "demote":
			ch.Demote = append(ch.Demote, id)
		case "remove":
			ch.Remove = append(ch.Remove, id)
		default:
			return ch, errUsage
		}
	}
	return ch, nil
}

// confirmedReads lists the reads of this process that were confirmed.
func (s *labServer) confirmedReads() string {
	var ids []string
	for _, r := range s.reads {
		if r.Err == nil {
			ids = append(ids, fmt.Sprint(r.ID))
		}
	}
	return strings.Join(ids, ",")
}

// expect checks: a role, term=, vote=, leader=, commit=, durable=, last=, log= (terms), applied= (commands), reads= (confirmed).
func (s *labServer) expect(words []string) error {
	c := s.core
	for _, w := range words {
		name, want, valued := strings.Cut(w, "=")
		if !valued {
			name, want = "role", w
		}
		have := map[string]string{
			"role": c.role.String(), "term": fmt.Sprint(c.currentTerm), "vote": string(c.votedFor), "leader": string(c.leader),
			"commit": fmt.Sprint(c.commitIndex), "durable": fmt.Sprint(c.log.durable), "last": c.log.lastID().String(),
			"log": s.termList(), "applied": strings.Join(s.commands(), ","), "configuration": fmt.Sprint(c.configurationIndex()),
			"reads": s.confirmedReads(),
		}
		got, known := have[name]
		if !known {
			return errUsage
		}
		if got != want {
			return fmt.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	return nil
}
