// Package raftsim tests a replicated state machine, and the Raft library under it, in a simulation that one seed decides.
//
// A simulation is a small cluster in one goroutine and in virtual time. Its servers run the code that runs in the field: the protocol
// ([raft.Core]), the write-ahead log (package storage/wal) and the snapshot store, over simulated disks (package storage/vfs). Processes
// are killed between any two operations on files or other effects, computers lose power and with it what was not synced, networks lose,
// duplicate, delay and reorder messages or fall apart, connections break on one side only, clocks run at other rates, disks hang, fill up
// and fail to write or sync, their bytes change and their files vanish, and operators change the membership, transfer leadership and take
// snapshots. The seed decides all of it, the tuning knobs of the cluster included, so that a failure can be looked at as often as one
// likes.
//
// First things go wrong for a while, then everything is healed, then the cluster has to converge: one leader, equal logs, equal
// states, no call left over. After every event the promises of Raft are checked against what really is on the disks; invariants.go
// holds one function for each, with the reason why a weaker check would not do. At the end the history of what the clients saw has
// to be linearizable.
//
// # Testing your own state machine
//
// Run takes a constructor of your [raft.StateMachine] and a [Workload]: what clients ask, and a sequential model of what they may be
// answered. The example tests a bank; bank_test.go has all of it. When a seed fails, the test prints the seed, what was broken, the
// fewest servers, faults and calls that it could find with which something still breaks, how many events of that are enough, and the
// end of the story; and it says how to run just that again.
//
// A state machine has to be deterministic; one that is not is reported with the index and the command at which two servers began to
// differ. So have the functions of a Workload: what they leave to chance they draw from the generator that they are given.
//
// What is not simulated: the goroutines of raft.Node (they have tests of their own), encodings on the wire, and disks that lie about
// a sync.
//
// # Reading the code
//
// world.go is the simulation, its queue of events and its knobs; server.go one server and its process; storage.go what a server does with
// its disk; rot.go damages disks, damage.go follows what a server knows of that, and judge.go what may come of it; network.go, clients.go
// and faults.go what their names say; embed.go what a program around the state machine sees; model.go what the simulation knows of every
// disk, and invariants.go what it demands; history.go asks for linearizability; situations.go counts the rare situations that were
// reached; run.go runs seeds; explain.go cuts failures down and explains them, with the parts of a seed that plan.go names.
package raftsim
