// Package raft is the Raft consensus algorithm as a library: it keeps a log of commands identical on several servers, elects a leader
// among them, and goes on as long as a majority of them is alive and connected.
//
// An embedder writes a [StateMachine], picks a [Storage] (package storage/wal) and a [Transport] (package transport/tcp), and runs a
// [Node] on every server:
//
//	st := wal.New(dir, wal.Options{})
//	tr, err := tcp.New(tcp.Config{Listen: "10.0.0.1:7000"})
//	err = raft.Bootstrap(ctx, st, "n1", configuration) // once, on a new cluster
//	node, err := raft.NewNode(raft.Config{ID: "n1", StateMachine: sm, Storage: st, Transport: tr})
//	err = node.Start(ctx)
//	result, err := node.Propose(ctx, command) // committed, and applied on this server
//	err = node.Read(ctx)                      // the local state now reflects every write acknowledged before
//	err = node.WhileLeader(ctx, func(ctx context.Context, epoch raft.Term) error { ... })
//
// # What it promises
//
// A command whose Propose returned nil is in the log of a majority, on disk, and every server that ever applies that index applies this
// command, exactly once and in the same order. An error says whether the command may still take effect: [UncertainError] if it may,
// any other error if it will not. A [Node.Read] that returned nil saw everything that was acknowledged before it began.
// Nothing acknowledged is lost as long as a majority of the disks keep what they reported as synced. A server that cannot keep these
// promises (its disk fails, the library finds a contradiction in itself) stops making them and says why ([FailedError]); the process
// lives on. What of its log cannot be read any more it gets from the other servers.
//
// # How it is built
//
// The protocol is one pure value, [Core]: no goroutine, lock, clock, I/O or log. Every input carries the present time and the output
// is one [Ready] after another. [Node] runs a core: one goroutine owns it, a log writer, an applier and the transport talk to it
// through queues. Simulators and explorers run the same core without a node.
//
// # Reading order, beside the paper
//
//	message.go entry.go      one struct for each RPC; the entry and its frame
//	raft.go                  Figure 2: the state, and the rules for servers
//	ready.go                 what the core asks its owner to do
//	election.go              RequestVote, pre-vote, leadership transfer (§5.2, dissertation §3.10, §9.6)
//	replication.go catchup.go   AppendEntries, the commit rule (§5.3, §5.4); the pace of a follower that lags
//	log.go tail.go           the log in memory, writes on their way to the disk
//	configuration.go membership.go   joint consensus (§6)
//	read.go                  linearizable reads without a write (dissertation §6.4)
//	snapshot.go              InstallSnapshot and compaction (§7)
//	gaps.go repair.go fetch.go fence.go   entries that cannot be read any more, and how the others help (FAST'18; docs/adr/0004)
//	invariants.go            what must hold in one state, and between two
//	node.go                  the loop around the core; then propose.go, apply.go, leadership.go
//
// "§" means the extended version of Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm" (2014); "dissertation"
// is Ongaro's "Consensus: Bridging Theory and Practice" (2014). Where the library leaves the paper, docs/divergences.md says so.
package raft
