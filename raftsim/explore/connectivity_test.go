package explore

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
)

var seedsOfFour = flag.Uint64("seeds", 1, "how many seeds to connect four servers with, in each way and with each leader")

const (
	electionTimeout = time.Second
	delay           = 5 * time.Millisecond // of every message
	toSettle        = 5 * electionTimeout
	toWatch         = 20 * electionTimeout
)

// graph says for each pair of servers whether messages get through from one to the other. Nothing else fails.
type graph struct {
	n    int
	bits uint
}

func (g graph) reaches(from, to int) bool {
	place := from*(g.n-1) + to
	if to > from {
		place--
	}
	return g.bits>>place&1 == 1
}

// promised reports whether some server exchanges messages both ways with a quorum, itself included. That is what a leader needs: a vote
// or an acknowledgement is an answer of a server that was reached.
func (g graph) promised() bool {
	for i := range g.n {
		hears, heard := g.around(i)
		both := 1
		for _, k := range hears {
			if slices.Contains(heard, k) {
				both++
			}
		}
		if both > g.n/2 {
			return true
		}
	}
	return false
}

// heardApart finds a server that hears a quorum and is heard by one, itself included. -1: there is none. Where nothing is promised, these
// are not the same servers.
func (g graph) heardApart() int {
	for i := range g.n {
		if hears, heard := g.around(i); 1+min(len(hears), len(heard)) > g.n/2 {
			return i
		}
	}
	return -1
}

// around lists the other servers that a server hears, and those that hear it.
func (g graph) around(i int) (hears, heard []int) {
	for k := range g.n {
		if k != i && g.reaches(k, i) {
			hears = append(hears, k)
		}
		if k != i && g.reaches(i, k) {
			heard = append(heard, k)
		}
	}
	return hears, heard
}

// renamed gives server i the place p[i].
func (g graph) renamed(p []int) graph {
	r := graph{n: g.n}
	for from := range g.n {
		for to := range g.n {
			if from == to || !g.reaches(from, to) {
				continue
			}
			place := p[from]*(g.n-1) + p[to]
			if p[to] > p[from] {
				place--
			}
			r.bits |= 1 << place
		}
	}
	return r
}

// class returns the networks that are the same but for the names of the servers, in their order.
func (g graph) class() []graph {
	var all []graph
	var place func(p []int)
	place = func(p []int) {
		if len(p) == g.n {
			all = append(all, g.renamed(p))
			return
		}
		for to := range g.n {
			if !slices.Contains(p, to) {
				place(append(slices.Clip(p), to))
			}
		}
	}
	place(nil)
	slices.SortFunc(all, func(a, b graph) int { return int(a.bits) - int(b.bits) })
	return slices.Compact(all)
}

func (g graph) String() string {
	var ways []string
	for i := range g.n {
		for k := range g.n {
			if i != k && g.reaches(i, k) {
				ways = append(ways, fmt.Sprintf("%c→%c", 'a'+i, 'a'+k))
			}
		}
	}
	return strings.Join(ways, " ")
}

// network is a cluster in virtual time with every guard on. Its disks are immediate.
type network struct {
	t         testing.TB
	g         graph
	cores     []*raft.Core
	now       time.Duration
	wire      []flying // by time of arrival
	elections int
	leaders   map[raft.Term]raft.NodeID
}

type flying struct {
	at time.Duration
	m  raft.Message
}

func newNetwork(t testing.TB, n int, seed uint64) *network {
	w := World{Voters: n, Terms: 1}
	x := newExplorer(w, Options{})
	first, err := x.entry(1, 1)
	require.NoError(t, err)
	c := &network{t: t, g: graph{n, 1<<(n*(n-1)) - 1}, now: time.Second, leaders: map[raft.Term]raft.NodeID{}}
	for i, id := range x.ids {
		d := disk{incarnation: 1, hard: raft.HardState{CurrentTerm: 1}, entries: []raft.Entry{first}}
		core, err := raft.NewCore(raft.CoreConfig{ID: id, Seed: seed + uint64(i), ElectionTimeout: electionTimeout}, c.now, d.recovered(id, replicaOf(i)))
		require.NoError(t, err)
		c.cores = append(c.cores, core)
		c.pump(i)
	}
	return c
}

// pump does what a core asks for.
func (c *network) pump(i int) {
	core := c.cores[i]
	for core.HasReady() {
		r := core.Ready()
		for _, m := range r.Send {
			if c.g.reaches(i, int(m.To[0]-'a')) {
				c.wire = append(c.wire, flying{c.now + delay, m})
			}
		}
		for _, e := range r.Events {
			change, ok := e.(raft.LeaderChange)
			if !ok || change.Role != raft.Leader {
				continue
			}
			c.elections++
			other, led := c.leaders[change.Term]
			require.False(c.t, led && other != change.Leader, "SAFETY inv 1: %s and %s lead in term %d", other, change.Leader, change.Term)
			c.leaders[change.Term] = change.Leader
		}
		for _, a := range r.Apply {
			core.Applied(c.now, a.Hi-1)
		}
		require.Empty(c.t, r.Loads)
		if seq := r.Write.Seq; seq != 0 {
			core.Persisted(c.now, seq)
		}
	}
}

// run lets time pass until t.
func (c *network) run(t time.Duration) {
	for {
		next, who := t, -1
		for i, core := range c.cores {
			if d := core.Deadline(); d < next {
				next, who = d, i
			}
		}
		if len(c.wire) > 0 && c.wire[0].at <= next {
			f := c.wire[0]
			c.wire = c.wire[1:]
			c.now = f.at
			to := int(f.m.To[0] - 'a')
			c.cores[to].Step(c.now, f.m)
			c.pump(to)
			continue
		}
		c.now = max(c.now, next)
		if who < 0 {
			return
		}
		c.cores[who].Tick(c.now)
		c.pump(who)
	}
}

// leader returns the leader of the latest term; -1: nobody leads.
func (c *network) leader() int {
	best, term := -1, raft.Term(0)
	for i, core := range c.cores {
		if s := core.Status(c.now); s.Role == raft.Leader && s.Term > term {
			best, term = i, s.Term
		}
	}
	return best
}

// commits reports whether a command proposed to the leader is committed soon.
func (c *network) commits() bool {
	l := c.leader()
	if l < 0 {
		return false
	}
	id, _, err := c.cores[l].Propose(c.now, []raft.Entry{raft.NewCommand([]byte("x"))})
	if err != nil {
		return false
	}
	c.pump(l)
	c.run(c.now + electionTimeout)
	return c.cores[l].Status(c.now).CommitIndex >= id.Index
}

const noLeader = "no leader after five election timeouts"

// trouble elects a server in a whole network, changes the network to g, and says what is wrong with what follows. "": a stable leader
// within five election timeouts, at most one change in the twenty after them, and it commits.
func trouble(t testing.TB, g graph, leader int, seed uint64) string {
	c := newNetwork(t, g.n, seed)
	c.cores[leader].ForceTimeout(c.now)
	c.pump(leader)
	c.run(c.now + electionTimeout/2)
	require.Equal(t, leader, c.leader())

	term := c.cores[leader].Status(c.now).Term
	c.g, c.wire = g, nil
	c.run(c.now + toSettle)
	if c.leader() < 0 {
		// SAFETY inv 27, 28: whoever led has given up, and asking in vain has raised no term.
		for _, core := range c.cores {
			require.Equal(t, term, core.Status(c.now).Term, "%v", g)
		}
		return noLeader
	}
	before := c.elections
	c.run(c.now + toWatch)
	if n := c.elections - before; n > 1 {
		return fmt.Sprintf("%d changes of leader in twenty election timeouts", n)
	}
	if !c.commits() {
		return "the leader commits nothing"
	}
	return ""
}

// In all 64 networks of three servers, with the leader at each place: wherever some server exchanges messages with a quorum, there is a
// stable leader. In all others there is none soon, and no term is used up. docs/connectivity.md lists them.
func TestConnectivityOfThree(t *testing.T) { testConnectivity(t, 3, 5, [3]int{37, 14, 13}, 16) }

// The same for all 4,096 networks of four servers.
func TestConnectivityOfFour(t *testing.T) {
	testConnectivity(t, 4, *seedsOfFour, [3]int{1666, 714, 1716}, 218)
}

// testConnectivity tries all networks, with the leader at each place. With the race detector it takes one of each class, that is of the
// networks that differ in the names of their servers only.
func testConnectivity(t *testing.T, n int, seeds uint64, kinds [3]int, classes int) {
	var counted [3]int // promised, with a server that is heard apart, hopeless
	first := 0
	var bad []string
	for bits := range uint(1) << (n * (n - 1)) {
		g := graph{n, bits}
		switch {
		case g.promised():
			counted[0]++
		case g.heardApart() >= 0:
			counted[1]++
		default:
			counted[2]++
		}
		if g.class()[0] == g {
			first++
		} else if raceDetector {
			continue
		}
		for leader := range n {
			for seed := range seeds {
				want := ""
				if !g.promised() {
					want = noLeader
				}
				if why := trouble(t, g, leader, seed*100); why != want {
					bad = append(bad, fmt.Sprintf("%v, led by %c, seed %d: %s", g, 'a'+leader, seed, why))
				}
			}
		}
	}
	t.Logf("%d networks promise a leader, %d have a server that hears a quorum and is heard by another, %d have none", counted[0], counted[1], counted[2])
	require.Equal(t, kinds, counted)
	require.Equal(t, classes, first)
	slices.Sort(bad)
	require.Empty(t, bad, strings.Join(bad, "\n"))
}

// docs/connectivity.md lists, up to the names of the servers, every network in which a server hears a quorum and is heard by one, and that
// promises no leader all the same.
func TestConnectivityIsDocumented(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "connectivity.md"))
	require.NoError(t, err)
	for _, n := range []int{3, 4} {
		rows, networks := "", 0
		for bits := range uint(1) << (n * (n - 1)) {
			g := graph{n, bits}
			class := g.class()
			apart := g.heardApart()
			if class[0] != g || g.promised() || apart < 0 {
				continue
			}
			networks += len(class)
			hears, heard := g.around(apart)
			rows += fmt.Sprintf("| %v | %d | %c hears %s and is heard by %s |\n", g, len(class), 'a'+apart, serverNames(hears), serverNames(heard))
		}
		require.Contains(t, string(page), rows, "%d networks of %d servers", networks, n)
	}
}

func serverNames(servers []int) string {
	var names []string
	for _, i := range servers {
		names = append(names, string(rune('a'+i)))
	}
	return strings.Join(names, ", ")
}

// Where nobody can lead, one link that comes back is enough, if with it some server exchanges messages with a quorum.
func TestConnectivityComesBack(t *testing.T) {
	const n = 3
	tried := 0
	for bits := range uint(1) << (n * (n - 1)) {
		g := graph{n, bits}
		for link := range uint(n * (n - 1)) {
			better := graph{n, bits | 1<<link}
			if g.promised() || !better.promised() {
				continue
			}
			for leader := range n {
				tried++
				c := newNetwork(t, n, 7)
				c.cores[leader].ForceTimeout(c.now)
				c.pump(leader)
				c.run(c.now + electionTimeout/2)
				c.g, c.wire = g, nil
				c.run(c.now + toSettle)
				require.Equal(t, -1, c.leader(), "%v", g)
				c.g = better
				c.run(c.now + toSettle)
				require.True(t, c.commits(), "%v, then %v", g, better)
			}
		}
	}
	require.Greater(t, tried, 50)
}
