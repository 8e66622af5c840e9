package raft

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Two histories that differ in nothing but the names of two servers have the same encoding under exchanged names, and no other.
func TestAppendStateUnderOtherNames(t *testing.T) {
	exchanged := func(id NodeID) NodeID {
		switch id {
		case "a":
			return "b"
		case "b":
			return "a"
		}
		return id
	}
	known := func(kind NumberKind, _ NodeID, v uint64) uint64 {
		if kind == NumberReplica {
			return min(v, 1) // drawn at random for each server
		}
		return v
	}
	story := func(leader, follower string) (*lab, []Message) {
		l := newLab(t, "a b c", func(cfg *CoreConfig) { cfg.DisablePreVote, cfg.DisableCheckQuorum = true, true })
		for i := range l.conf.Servers {
			l.conf.Servers[i].Address = "" // they name the servers too
		}
		for _, id := range []string{"a", "b", "c"} {
			l.start(id)
		}
		l.timeout(leader)
		l.deliver(leader, follower)
		l.deliver(follower, leader)
		l.deliver(leader, follower)
		l.crash("c")
		l.start("c")
		return l, append(l.take(leader, "c", ""), l.take(follower, leader, "")...)
	}
	one, oneWire := story("a", "b")
	two, twoWire := story("b", "a")
	for _, pair := range [][2]string{{"a", "b"}, {"b", "a"}, {"c", "c"}} {
		x, y := one.server(pair[0]).core, two.server(pair[1]).core
		require.Equal(t, x.AppendState(nil, Naming{Rank: known}), y.AppendState(nil, Naming{Rank: known, Name: exchanged}))
		if pair[0] != "c" {
			require.NotEqual(t, x.AppendState(nil, Naming{Rank: known}), y.AppendState(nil, Naming{Rank: known}))
		}
	}
	require.NotEmpty(t, oneWire)
	require.Len(t, twoWire, len(oneWire))
	for i := range oneWire {
		require.Equal(t, oneWire[i].AppendState(nil, Naming{Rank: known}), twoWire[i].AppendState(nil, Naming{Rank: known, Name: exchanged}))
	}
}
