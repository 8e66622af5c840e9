package explore

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/steadyraft/raft"
)

// maxServers bounds the servers of a world.
const maxServers = 4

// World says how large the explored world is. Every bound is a budget for the whole history; zero allows none.
type World struct {
	Name   string
	Covers string // what it is there for, in a sentence

	Voters   int // named a, b, ...
	Learners int // named behind the voters
	// Logs gives servers logs to begin with, by their terms; the first entry, of term 1, is always the configuration. A server without
	// one has just that. Nobody has voted, and every server is in the last of all those terms.
	Logs map[raft.NodeID][]raft.Term
	// Start is what happens before the exploration begins, and no bound counts it: "timeout a", "propose a", "snapshot a", "damage a 2" and
	// "forget a 2" (a starts again without entry 2, or without the end of its log from there on), "mislay a" (without its snapshot), "find a 2"
	// (a finds out that it cannot read entry 2 any more), and "settle a b",
	// after which all that these servers have sent each other has arrived, all that they write is durable, and whatever else was under
	// way is lost.
	Start []string

	Terms     int  // how many terms may begin
	PreVote   bool // a timeout asks for pre-votes first
	Timeouts  int  // election timeouts; 0: any number that the terms allow. With PreVote it must be set
	SlowDisks bool // a write waits until the disk finishes it, an event of its own; otherwise it is durable at once

	KeepAll bool // even messages that can have no effect any more stay, at the price of many more states

	Heartbeats   int // of all leaders together
	Commands     int
	Duplicates   int // messages delivered and kept
	Crashes      int
	Damages      int // a server crashes, and finds an entry of its log damaged when it starts
	Losses       int // a server crashes, and finds that its log has lost its end
	Mislaid      int // a server crashes, and finds that its snapshot is lost
	Finds        int // a server finds an entry of its log damaged while it runs
	Repairs      int // a server asks the others for what it lacks
	Reads        int
	Snapshots    int
	Transfers    int
	Resignations int           // a leader steps down within its term
	Changes      []raft.Change // each asked for once, in any order; Promote, Demote and Remove only
}

// ids names the servers.
func (w *World) ids() []raft.NodeID {
	var ids []raft.NodeID
	for i := range w.Voters + w.Learners {
		ids = append(ids, raft.NodeID('a'+rune(i)))
	}
	return ids
}

// firstTerm is the term that every server begins in.
func (w *World) firstTerm() raft.Term {
	first := raft.Term(1)
	for _, terms := range w.Logs { // the largest, in any order
		for _, t := range terms {
			first = max(first, t)
		}
	}
	return first
}

// Validate reports everything that is wrong with the bounds, at once.
func (w *World) Validate() error {
	var problems []error
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if w.Voters < 1 || w.Voters+w.Learners > maxServers || w.Learners < 0 {
		add("%d voters and %d learners: want at least one voter and at most %d servers", w.Voters, w.Learners, maxServers)
	}
	if w.Terms < 1 || w.Terms > maxTerms {
		add("%d terms: want 1 to %d", w.Terms, maxTerms)
	}
	if w.PreVote && w.Timeouts == 0 {
		add("pre-votes without a bound on timeouts: the world would never end")
	}
	for _, n := range []int{w.Timeouts, w.Heartbeats, w.Commands, w.Duplicates, w.Crashes, w.Damages, w.Losses, w.Mislaid, w.Finds, w.Repairs, w.Snapshots, w.Transfers, w.Resignations} {
		if n < 0 || n > 100 {
			add("budget %d: want 0 to 100", n)
		}
	}
	if w.Reads < 0 || w.Reads > maxReads {
		add("%d reads: want 0 to %d", w.Reads, maxReads)
	}
	ids := w.ids()
	for id, terms := range w.Logs {
		if !slices.Contains(ids, id) || !slices.IsSorted(terms) || len(terms) > 0 && terms[0] != 1 || w.firstTerm() > maxTerms {
			add("log %v of server %q: want a server of this world, and rising terms from 1 to at most %d", terms, id, maxTerms)
		}
	}
	for _, line := range w.Start {
		words := strings.Fields(line)
		ok := len(words) == 2 && slices.Contains([]string{"timeout", "propose", "snapshot", "mislay"}, words[0]) || len(words) > 1 && words[0] == "settle"
		if len(words) == 3 && slices.Contains([]string{"damage", "forget", "find"}, words[0]) {
			index, err := strconv.Atoi(words[2])
			ok, words = err == nil && index > 1 && index < 64, words[:2]
		}
		for _, id := range words[min(1, len(words)):] {
			ok = ok && slices.Contains(ids, raft.NodeID(id))
		}
		if !ok {
			add("start %q: want timeout, propose, snapshot or mislay and a server of this world, damage, forget or find with an index behind it, or settle and some of them", line)
		}
	}
	if len(w.Changes) > maxChanges {
		add("%d changes: want at most %d", len(w.Changes), maxChanges)
	}
	for _, c := range w.Changes {
		if len(c.Add)+len(c.Address)+len(c.Priority) > 0 || c.IfIndex != 0 {
			add("change %+v: only Promote, Demote and Remove are explored", c)
		}
		for _, id := range slices.Concat(c.Promote, c.Demote, c.Remove) {
			if !slices.Contains(ids, id) {
				add("change names %q, which is no server of this world", id)
			}
		}
	}
	if problems != nil {
		return fmt.Errorf("world %q: %w", w.Name, errors.Join(problems...))
	}
	return nil
}

// configuration is the first entry of every log.
func (w *World) configuration() raft.Configuration {
	conf := raft.Configuration{ClusterID: "lab"}
	for i, id := range w.ids() {
		s := raft.Server{ID: id, Replica: replicaOf(i)}
		if i >= w.Voters {
			s.Suffrage = raft.NonVoter
		}
		conf.Servers = append(conf.Servers, s)
	}
	return conf
}

func replicaOf(server int) raft.ReplicaID { return raft.ReplicaID(1000 + server) }

// named lists the servers that the changes speak of.
func (w *World) named() []raft.NodeID {
	var ids []raft.NodeID
	for _, c := range w.Changes {
		ids = slices.Concat(ids, c.Promote, c.Demote, c.Remove)
	}
	return ids
}

// renamings lists the exchanges of servers that leave the bounds as they are. The first is the identity.
func (w *World) renamings() [][maxServers]uint8 {
	ids := w.ids()
	named := w.named()
	class := make([]string, len(ids))
	for i, id := range ids {
		class[i] = fmt.Sprint(i < w.Voters, w.Logs[id])
		if slices.Contains(named, id) {
			class[i] += string(id)
		}
	}
	var found [][maxServers]uint8
	var place func(p [maxServers]uint8, n int)
	place = func(p [maxServers]uint8, n int) {
		if n == len(ids) {
			found = append(found, p)
			return
		}
		for to := range ids {
			if class[to] == class[n] && !slices.Contains(p[:n], uint8(to)) {
				p[n] = uint8(to)
				place(p, n+1)
			}
		}
	}
	place([maxServers]uint8{}, 0)
	return found
}

// String lists the bounds that are not zero.
func (w *World) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d voters", w.Voters)
	for _, part := range []struct {
		n    int
		what string
	}{{w.Learners, "learners"}, {w.Terms, "terms"}, {w.Timeouts, "timeouts"}, {w.Heartbeats, "heartbeats"}, {w.Commands, "commands"},
		{w.Duplicates, "duplicates"}, {w.Crashes, "crashes"}, {w.Damages, "damaged entries"},
		{w.Losses, "lost ends"}, {w.Mislaid, "lost snapshots"}, {w.Finds, "damaged entries found while it runs"}, {w.Repairs, "requests for repair"}, {w.Reads, "reads"}, {w.Snapshots, "snapshots"}, {w.Transfers, "transfers"},
		{w.Resignations, "resignations"}} {
		if part.n > 0 {
			fmt.Fprintf(&b, ", %d %s", part.n, part.what)
		}
	}
	for _, c := range w.Changes {
		b.WriteString(", " + changeWords(c))
	}
	for _, id := range w.ids() {
		if len(w.Logs[id]) > 0 {
			fmt.Fprintf(&b, ", log of %s %v", id, w.Logs[id])
		}
	}
	if len(w.Start) > 0 {
		fmt.Fprintf(&b, ", after %s", strings.Join(w.Start, ", "))
	}
	if w.SlowDisks {
		b.WriteString(", slow disks")
	}
	if w.PreVote {
		b.WriteString(", pre-vote")
	}
	if w.KeepAll {
		b.WriteString(", no message taken away")
	}
	return b.String()
}

func changeWords(c raft.Change) string {
	var words []string
	for _, part := range []struct {
		verb string
		ids  []raft.NodeID
	}{{"promote", c.Promote}, {"demote", c.Demote}, {"remove", c.Remove}} {
		for _, id := range part.ids {
			words = append(words, part.verb, string(id))
		}
	}
	return strings.Join(words, " ")
}
