package explore

import "github.com/steadyraft/raft"

// Small returns the worlds of the test: together more than a million states, each world exhausted. The smallest come first.
func Small() []World {
	return []World{
		{Name: "alone", Covers: "a single voter must wait for its own disk",
			Voters: 1, Terms: 3, SlowDisks: true, Crashes: 2, Commands: 3},
		{Name: "another voter", Covers: "two changes: a learner is promoted, and the only other voter leaves",
			Voters: 1, Learners: 1, Terms: 2, Timeouts: 2, Changes: changes(promote("b"), remove("a"))},
		{Name: "promote", Covers: "a learner becomes a voter",
			Voters: 2, Learners: 1, Terms: 1, Changes: changes(promote("c"))},
		{Name: "demotion", Covers: "two changes, one after the other or instead of the other, while leaders change",
			Voters: 2, Terms: 2, Timeouts: 2, Changes: changes(demote("b"), remove("b"))},
		{Name: "snapshot on slow disks", Covers: "a learner that needs what is compacted, a slow disk that crashes, a transfer broken off",
			Voters: 1, Learners: 1, Terms: 1, Timeouts: 1, Heartbeats: 1, SlowDisks: true, Crashes: 1, Start: compacted("a")},
		{Name: "everything stays", Covers: "one term among three, and messages that can have no effect any more",
			Voters: 3, Terms: 1, KeepAll: true},
		{Name: "all at once", Covers: "a command, a crash, a snapshot and a transfer under a leader, and a second term",
			Voters: 2, Terms: 1, Timeouts: 1, Commands: 1, Crashes: 1, Snapshots: 1, Transfers: 1, Start: led("a", "b")},
		{Name: "disks of three", Covers: "what counts before it is durable",
			Voters: 3, Terms: 1, SlowDisks: true},
		{Name: "cut off", Covers: "a learner that was cut off while the log was compacted, and a second term",
			Voters: 2, Learners: 1, Terms: 1, Timeouts: 1, Heartbeats: 1, Start: compacted("a", "b")},
		{Name: "second term", Covers: "a command among three while the leader is deposed",
			Voters: 3, Terms: 1, Timeouts: 1, Commands: 1, Start: led("a", "b", "c")},
		{Name: "replace", Covers: "a voter is replaced by a learner, through a joint configuration, while leaders change",
			Voters: 2, Learners: 1, Terms: 2, Timeouts: 2, Changes: []raft.Change{{Promote: []raft.NodeID{"c"}, Remove: []raft.NodeID{"b"}}}},
		{Name: "reads", Covers: "reads in two terms and across a restart",
			Voters: 2, Terms: 2, Reads: 2, Crashes: 1},
		{Name: "election", Covers: "one term among three, with a duplicated message",
			Voters: 3, Terms: 1, Duplicates: 1},
		{Name: "snapshots", Covers: "two snapshots against a crash, a heartbeat and a second term",
			Voters: 2, Terms: 2, Snapshots: 2, Heartbeats: 1, Crashes: 1},
		{Name: "four", Covers: "an election among four",
			Voters: 4, Terms: 1},
		{Name: "command among four", Covers: "a command that three of four must hold",
			Voters: 4, Terms: 1, Timeouts: 1, Commands: 1},
		{Name: "old logs", Covers: "an election among logs that differ, as in Figures 7 and 8",
			Voters: 3, Terms: 1, Logs: map[raft.NodeID][]raft.Term{"a": {1, 2}, "b": {1}, "c": {1, 3}}},
		{Name: "three terms of two", Covers: "conflicting logs while a disk is slow: truncation, writes in flight, a crash",
			Voters: 2, Terms: 3, SlowDisks: true, Crashes: 1},
		{Name: "resignation", Covers: "a leader that steps down within its term",
			Voters: 3, Terms: 2, Timeouts: 1, Resignations: 1},
		{Name: "removal", Covers: "a voter of three is removed, perhaps the leader",
			Voters: 3, Terms: 2, Timeouts: 1, Changes: changes(remove("c"))},
		{Name: "command", Covers: "a command among three, and pipelined entries",
			Voters: 3, Terms: 1, Commands: 1},
		{Name: "transfer", Covers: "leadership handed over while the leader still works",
			Voters: 3, Terms: 2, Timeouts: 1, Transfers: 1},
		{Name: "pre-vote", Covers: "pre-votes of two servers that cross",
			Voters: 3, Terms: 1, PreVote: true, Timeouts: 2},
		{Name: "damage of two", Covers: "an entry that cannot be read any more, at a follower, a candidate or a leader",
			Voters: 2, Terms: 2, Timeouts: 2, Damages: 1, Repairs: 1, Logs: map[raft.NodeID][]raft.Term{"a": {1, 2}, "b": {1, 2}}},
		{Name: "damaged tails", Covers: "logs that differ and whose ends cannot be read: what only one server has is discarded",
			Voters: 3, Terms: 2, Timeouts: 2, Logs: map[raft.NodeID][]raft.Term{"a": {1, 2}, "b": {1}, "c": {1, 3}}, Start: []string{"damage a 2", "damage c 2"}},
		{Name: "damage under a leader", Covers: "the leader of an earlier term is still sending what the next one cannot read",
			Voters: 3, Terms: 1, Timeouts: 1, Repairs: 1, Start: append(led("a", "b", "c"), "propose a", "settle a b", "damage b 3")},
		{Name: "lost end", Covers: "a server that has acknowledged what it lost, and a second term",
			Voters: 3, Terms: 1, Timeouts: 1, Repairs: 2, Start: append(led("a", "b", "c"), "propose a", "settle a b", "forget b 3")},
		{Name: "fence of two", Covers: "a fence that falls, and an election after it",
			Voters: 2, Terms: 2, Timeouts: 2, Losses: 1, Repairs: 2, SlowDisks: true, Start: led("a", "b")},
		{Name: "damage found", Covers: "an entry that turns out to be damaged while its server follows, campaigns or leads",
			Voters: 2, Terms: 2, Timeouts: 2, Finds: 1, Repairs: 1, Logs: map[raft.NodeID][]raft.Term{"a": {1, 2}, "b": {1, 2}}},
		{Name: "damage found among three", Covers: "a leader that finds damage while it works on a command, and hands over",
			Voters: 3, Terms: 1, Finds: 1, Start: append(led("a", "b", "c"), "propose a", "settle a b")},
		{Name: "lost snapshot", Covers: "a server whose log begins behind a snapshot that is lost, and a second term",
			Voters: 3, Terms: 1, Timeouts: 1, Repairs: 1, Start: append(compacted("a", "b", "c"), "snapshot b", "mislay b")},
		{Name: "lost snapshot of two", Covers: "a snapshot that is lost at any moment, and another one in its place",
			Voters: 2, Terms: 1, Timeouts: 1, Heartbeats: 1, Snapshots: 1, Mislaid: 1, Repairs: 1, Start: compacted("a", "b")},
	}
}

// Large returns worlds of millions of states, for a longer run.
func Large() []World {
	return []World{
		{Name: "two terms of three", Covers: "two terms among three, every order of messages",
			Voters: 3, Terms: 2},
		{Name: "crash among three", Covers: "a crash in two terms, with slow disks",
			Voters: 3, Terms: 2, SlowDisks: true, Crashes: 1, Timeouts: 2},
		{Name: "old messages", Covers: "a server that has forgotten its leader hears one of an earlier term",
			Voters: 3, Terms: 2, Crashes: 1, Timeouts: 2},
		{Name: "promotion with loss", Covers: "a learner becomes a voter while the leader's messages are lost",
			Voters: 2, Learners: 1, Terms: 2, Timeouts: 1, Heartbeats: 1, Changes: changes(promote("c"))},
		{Name: "late conflicts", Covers: "two elections among logs that differ, as in Figure 8",
			Voters: 3, Terms: 2, Logs: map[raft.NodeID][]raft.Term{"a": {1, 2}, "b": {1}, "c": {1, 3}}},
		{Name: "reads of a deposed leader", Covers: "a read at a leader whose successor has committed",
			Voters: 3, Terms: 2, Timeouts: 2, Reads: 1},
		{Name: "snapshot among three", Covers: "a snapshot for a follower that was cut off, while the leader is deposed",
			Voters: 3, Terms: 1, Timeouts: 1, Heartbeats: 1, Start: compacted("a", "b")},
		{Name: "snapshot among three on slow disks", Covers: "the same on slow disks, with a crash",
			Voters: 3, Terms: 1, Timeouts: 1, Heartbeats: 1, SlowDisks: true, Crashes: 1, Start: compacted("a", "b")},
		{Name: "commands on slow disks", Covers: "two commands of two terms against slow disks and a crash",
			Voters: 2, Terms: 2, SlowDisks: true, Crashes: 1, Commands: 2, Heartbeats: 1},
		{Name: "two commands", Covers: "two commands among three in one term",
			Voters: 3, Terms: 1, Timeouts: 1, Commands: 2},
		{Name: "two commands of two terms", Covers: "two commands among three while the leader is deposed",
			Voters: 3, Terms: 1, Timeouts: 1, Commands: 2, Start: led("a", "b", "c")},
		{Name: "two elections and a command", Covers: "two elections among three and a command in either term",
			Voters: 3, Terms: 2, Timeouts: 2, Commands: 1},
		{Name: "everything stays for long", Covers: "a transfer, and messages that can have no effect any more",
			Voters: 3, Terms: 2, Timeouts: 1, Transfers: 1, KeepAll: true},
		{Name: "snapshot for a learner", Covers: "a follower that needs what is compacted, on slow disks, with a crash",
			Voters: 1, Learners: 1, Terms: 1, SlowDisks: true, Commands: 1, Snapshots: 1, Heartbeats: 1, Crashes: 1},
		{Name: "two removals", Covers: "two changes among three: each removes another voter",
			Voters: 3, Terms: 1, Timeouts: 1, Changes: changes(remove("b"), remove("c")), Start: led("a", "b", "c")},
		{Name: "two changes", Covers: "two changes: a learner becomes a voter, and a voter is removed",
			Voters: 2, Learners: 1, Terms: 2, Timeouts: 2, Changes: changes(promote("c"), remove("b"))},
		{Name: "two promotions", Covers: "two changes among four servers: two learners become voters",
			Voters: 2, Learners: 2, Terms: 2, Timeouts: 2, Changes: changes(promote("c"), promote("d"))},
		{Name: "all at once for long", Covers: "a command, a crash, a snapshot, a transfer and a lost message in two terms",
			Voters: 2, Terms: 2, Timeouts: 2, Commands: 1, Crashes: 1, Snapshots: 1, Transfers: 1, Heartbeats: 1},
		{Name: "four in two terms", Covers: "a command among four while the leader is deposed",
			Voters: 4, Terms: 1, Timeouts: 1, Commands: 1, Start: led("a", "b", "c", "d")},
		{Name: "damage among three", Covers: "any two entries of three logs that differ cannot be read",
			Voters: 3, Terms: 1, Timeouts: 1, Damages: 2, Repairs: 1, Logs: map[raft.NodeID][]raft.Term{"a": {1, 2}, "b": {1}, "c": {1, 3}}},
		{Name: "damage at any moment", Covers: "a command among three, an entry that cannot be read any more, and a second term",
			Voters: 3, Terms: 1, Timeouts: 1, Damages: 1, Commands: 1, Repairs: 1, Start: led("a", "b", "c")},
		{Name: "lost end at any moment", Covers: "a command among three, a server that loses the end of its log, and a second term",
			Voters: 3, Terms: 1, Timeouts: 1, Losses: 1, Commands: 1, Repairs: 1, Start: led("a", "b", "c")},
		{Name: "lost snapshot for long", Covers: "a server whose log begins behind a snapshot that is lost, heartbeats, and a second term",
			Voters: 3, Terms: 1, Timeouts: 1, Heartbeats: 1, Repairs: 1, Start: append(compacted("a", "b", "c"), "snapshot b", "mislay b")},
		{Name: "damage and two elections", Covers: "an entry that cannot be read, while two leaders follow each other",
			Voters: 3, Terms: 2, Timeouts: 2, Start: append(led("a", "b", "c"), "propose a", "settle a b", "damage b 3")},
		{Name: "damage and slow disks", Covers: "repairs that are under way to the disk when the process crashes or is deposed",
			Voters: 2, Terms: 2, Timeouts: 2, SlowDisks: true, Damages: 1, Crashes: 1, Repairs: 1, Logs: map[raft.NodeID][]raft.Term{"a": {1, 2}, "b": {1, 2}}},
	}
}

func changes(cs ...raft.Change) []raft.Change { return cs }

func promote(id raft.NodeID) raft.Change { return raft.Change{Promote: []raft.NodeID{id}} }
func demote(id raft.NodeID) raft.Change  { return raft.Change{Demote: []raft.NodeID{id}} }
func remove(id raft.NodeID) raft.Change  { return raft.Change{Remove: []raft.NodeID{id}} }

// led begins with a leader that all the others follow.
func led(leader string, others ...string) []string {
	return []string{"timeout " + leader, settled(leader, others)}
}

// compacted begins with a leader whose log is compacted further than anybody has it who is not among the others.
func compacted(leader string, others ...string) []string {
	all := settled(leader, others)
	return []string{"timeout " + leader, all, "propose " + leader, all, "snapshot " + leader}
}

func settled(leader string, others []string) string {
	words := "settle " + leader
	for _, id := range others {
		words += " " + id
	}
	return words
}
