// Package explore visits every state that a small cluster of real cores can reach within stated bounds.
//
// A world is a few [raft.Core] values, the messages between them, and what is on their disks and on its way there. Whatever could
// happen next in a world, happens in one of the explored ones: any message is delivered, delivered and kept (duplicated), or left lying
// for ever (lost, delayed, overtaken); an election timeout or a heartbeat is due; a command, a read, a change of membership, a snapshot
// or a transfer of leadership is asked for; a snapshot under way is broken off; a disk finishes its oldest write or all of them; a process
// dies with all that it had not synced, and starts again. The order is breadth first, so the first violation found is one of the shortest, and it is printed as a
// script that the test of the package raft replays.
//
// Three things keep the number of states small, and none of them leaves a behaviour out:
//
//   - Two worlds that differ only in which server is which are one, as far as bounds and configuration treat these servers alike.
//     (One tie is broken by name: the successor of a leader that resigns. The exploration of worlds with resignations is
//     exhaustive up to that choice.)
//   - Counters whose values mean nothing are compared by what the core can see of them.
//   - Steps that need no choice are taken at once: applying, loading from disk, and starting again after a crash. A server that is down
//     is one to which nothing is delivered. A message that can have no effect any more is taken away.
//
// Time stands still: timeouts are events, check-quorum (and stickiness, which builds on it) is off, and so leaders step down for want of
// a quorum by "resign" instead. What only the clock decides is left to the simulator in the package raftsim.
package explore
