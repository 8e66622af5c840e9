package raftsim

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/steadyraft/raft"
)

// Embedder is what a program builds around its replicated state machine: loops that run while a server leads, machines that talk to the
// servers, users with more to do than a [Workload] can say. One is made for each seed, by Options.Embed. Its methods are called one at a
// time, and do what they do at once: whatever takes time is planned with [Embedding.After] or [Server.On]. It must be deterministic, as
// a Workload must: what it leaves to chance it draws from [Embedding.Random].
type Embedder interface {
	// Begin is called before any server exists.
	Begin(e *Embedding)
	// Started is called when a process has started; its state machine is at its snapshot, or empty.
	Started(s *Server)
	// Led is called when a server begins to lead a term, or does not lead any more.
	Led(s *Server)
	// Applied is called when the state machine of a server has applied or restored something.
	Applied(s *Server)
	// Converged says what is left to do, once everything is healed; nil: nothing. It has to be nil within Options.LiveTime, at a moment at
	// which the cluster has converged as well.
	Converged() error
}

// Embedding is one simulation, as an [Embedder] sees it.
type Embedding struct {
	w        *world
	embedder Embedder
	random   *rand.Rand
	servers  []*Server
}

// streamEmbedder is a stream of chance of its own: what an embedder draws changes neither faults nor clients.
const streamEmbedder = 1 << 15

// Random is the generator for what is left to chance.
func (e *Embedding) Random() *rand.Rand { return e.random }

// Now is the real time of the simulation, which no server knows.
func (e *Embedding) Now() time.Duration { return e.w.now }

// Healed reports that nothing goes wrong any more.
func (e *Embedding) Healed() bool { return e.w.healed }

// Servers returns the servers, in the order of their making. None ever leaves, removed members included.
func (e *Embedding) Servers() []*Server { return e.servers }

// After plans something that happens outside of the servers.
func (e *Embedding) After(d time.Duration, do func()) { e.w.after(d, do) }

// Fail says that a promise of the embedder's is broken. The first one ends the seed.
func (e *Embedding) Fail(format string, args ...any) { e.w.broken(format, args...) }

// Logf adds a line to the story. s is the server where it happens, or nil.
func (e *Embedding) Logf(s *Server, format string, args ...any) {
	var v *server
	if s != nil {
		v = s.v
	}
	e.w.printf(v, "%s", fmt.Sprintf(format, args...))
}

// Server is one server, as an [Embedder] sees it. It stands for the same server for the whole seed, whatever becomes of its process.
type Server struct{ v *server }

// ID is the server's.
func (s *Server) ID() raft.NodeID { return s.v.id }

// Up reports that its process runs; it may stand still.
func (s *Server) Up() bool { return s.v.up() }

// Run counts the starts of its process.
func (s *Server) Run() int { return s.v.run }

// Clock is the time by the server's own clock, which begins at zero, and goes on while the process is down.
func (s *Server) Clock() time.Duration { return s.v.local() }

// Leads returns the term that the server leads, or believes that it leads; 0: none.
func (s *Server) Leads() raft.Term {
	if s.v.up() && s.v.role == raft.Leader {
		return s.v.term
	}
	return 0
}

// Leader is who leads, as far as the server knows; "": it does not.
func (s *Server) Leader() raft.NodeID {
	if !s.v.up() {
		return ""
	}
	return s.v.leader
}

// Status is what raft.Node.Status says of the protocol; zero while the process is down.
func (s *Server) Status() raft.CoreStatus {
	if !s.v.up() {
		return raft.CoreStatus{}
	}
	return s.v.core.Status(s.v.local())
}

// ChangeMembership has the server change the membership, as raft.Node.ChangeMembership does on a leader, but for waiting until it is done.
// It is for Server.On and the methods of an Embedder.
func (s *Server) ChangeMembership(ch raft.Change) error {
	if !s.v.up() {
		return raft.ErrStopped
	}
	var err error
	s.v.input("change membership", func(c *raft.Core) { _, err = c.ChangeMembership(s.v.local(), ch) })
	s.v.w.sawChange(s.v, ch, err)
	return err
}

// StateMachine is that of its present process; nil while it is down.
func (s *Server) StateMachine() raft.StateMachine {
	if !s.v.up() {
		return nil
	}
	return s.v.applier.sm
}

// On plans something that its present process does: never, if that has ended by then, and later, if it stands still.
func (s *Server) On(d time.Duration, do func()) {
	if s.v.up() {
		s.v.w.on(s.v, d, do)
	}
}

// Propose has the server append a command, as raft.Node.ProposeAsync does on a leader; it is for Server.On and the methods of an Embedder.
// With ifTerm the command is appended in that term or not at all: raft.ErrStaleTerm. done, unless nil, is told the result when the command
// has been applied here; it is never called if that does not happen, or if another entry has taken its place.
func (s *Server) Propose(command []byte, ifTerm raft.Term, done func(result any)) error {
	v := s.v
	if !v.up() {
		return raft.ErrStopped
	}
	if ifTerm != 0 && s.Leads() != ifTerm {
		return raft.ErrStaleTerm
	}
	var refused error
	v.input("propose", func(c *raft.Core) {
		first, n, err := c.Propose(v.local(), []raft.Entry{raft.NewCommand(command)})
		if n == 0 {
			refused = err
			return
		}
		if v.embedded == nil {
			v.embedded = map[raft.Index]proposal{}
		}
		v.embedded[first.Index] = proposal{id: first, done: done}
	})
	return refused
}

// proposal is one of an embedder that is not applied yet.
type proposal struct {
	id   raft.EntryID
	done func(any)
}

// proposalApplied tells the embedder what became of its proposal, when whatever is under way is over.
func (v *server) proposalApplied(e *raft.Entry, result any) {
	p, ok := v.embedded[e.Index]
	if !ok {
		return
	}
	delete(v.embedded, e.Index)
	if p.id == e.ID() && p.done != nil {
		v.w.on(v, 0, func() { p.done(result) })
	}
}

// embed makes the embedder of a seed.
func (w *world) embed() {
	if w.opts.Embed == nil {
		return
	}
	w.embedding = &Embedding{w: w, embedder: w.opts.Embed(), random: stream(w.seed, streamEmbedder)}
	w.embedding.embedder.Begin(w.embedding)
}

// tellEmbedder calls a method of the embedder for a process, when whatever is under way is over: it may want to propose something.
func (v *server) tellEmbedder(method func(Embedder, *Server)) {
	if e := v.w.embedding; e != nil {
		s := e.servers[v.position]
		v.w.on(v, 0, func() { method(e.embedder, s) })
	}
}

// embedderConverged says what the embedder has left to do.
func (w *world) embedderConverged() error {
	if w.embedding == nil {
		return nil
	}
	return w.embedding.embedder.Converged()
}
