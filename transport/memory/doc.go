// Package memory is a network inside one process, for tests, examples and simulations of whole clusters.
//
//	net := memory.NewNetwork()
//	a, b := net.Transport("a"), net.Transport("b") // raft.Config.Transport of two nodes
//	net.Disconnect("a", "b")                       // and later net.Heal()
//
// Every server reaches every other one by its ID; addresses mean nothing here. Messages are handed over as they are: nothing is
// encoded, and the frames of log entries are shared, as they are immutable. Proposals on their way to a leader are copied, because
// the leader writes their place in the log into them.
//
// A Network loses, delays and cuts only what it is told to. It works inside a testing/synctest bubble: its goroutines wait on
// channels and timers only, and all of them end when the transports are closed.
package memory
