package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/wal"
	"github.com/steadyraft/raft/transport/memory"
)

// waitFor polls until cond holds.
func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	require.Eventually(t, cond, time.Minute, 10*time.Millisecond, what)
}

// has reports whether a server has applied the commands, in that order, perhaps among others.
func (m *machine) has(commands []string) bool {
	rest := commands
	for _, c := range m.sm.all() {
		if len(rest) > 0 && c == rest[0] {
			rest = rest[1:]
		}
	}
	return len(rest) == 0
}

// add makes m a voter of the cluster whose leader is among the members.
func add(t *testing.T, members []*machine, m *machine) {
	t.Helper()
	for _, ch := range []raft.Change{{Add: []raft.Server{{ID: m.id, Address: string(m.id)}}}, {Promote: []raft.NodeID{m.id}}} {
		waitFor(t, fmt.Sprintf("%+v", ch), func() bool {
			return slices.ContainsFunc(members, func(leader *machine) bool {
				_, err := leader.node.ChangeMembership(within(t, 20*time.Second), ch)
				conf := leader.node.Status().Configuration
				s, member := conf.Server(m.id)
				return err == nil || member && (len(ch.Add) > 0 || s.Suffrage == raft.Voter) && !conf.Joint()
			})
		})
	}
}

// A cluster of three loses two servers for good. The one with the best log is recovered: it starts alone, has everything that was
// committed, and gets new members, by a snapshot of the old cluster. Neither a server that comes back with the old cluster's directory nor
// the ID of one is taken.
func TestRecoverAfterTheLossOfAMajority(t *testing.T) {
	network := memory.NewNetwork()
	conf := raft.Configuration{ClusterID: "old"}
	var machines []*machine
	for _, id := range []raft.NodeID{"n1", "n2", "n3"} {
		m := newMachine(t, id)
		m.trailing = 1
		machines = append(machines, m)
		conf.Servers = append(conf.Servers, raft.Server{ID: id, Address: string(id)})
	}
	for _, m := range machines {
		require.NoError(t, raft.Bootstrap(t.Context(), wal.New(m.dir, wal.Options{}), m.id, conf))
		m.start(t, network, "")
	}
	var acknowledged []string
	write := func(m *machine, n int) {
		for range n {
			command := fmt.Sprintf("%d %s", len(acknowledged), strings.Repeat("x", 3000))
			m.propose(t, command)
			acknowledged = append(acknowledged, command)
		}
	}
	write(machines[0], 60)
	for _, m := range machines {
		waitFor(t, "all commands everywhere", func() bool { return m.has(acknowledged) })
		_, err := m.node.Snapshot(within(t, time.Minute))
		require.NoError(t, err)
	}
	write(machines[1], 20)
	survivor := machines[0]
	waitFor(t, "the survivor has them", func() bool { return survivor.has(acknowledged) })
	for _, m := range machines {
		m.stop(t)
	}

	// It asks, and does nothing when told no.
	before := files(t, survivor.dir)
	code, out, errs := raftctl(t, "yes\n", "recover", "-cluster", "new", survivor.dir)
	require.Equal(t, 2, code)
	require.Contains(t, errs, "nothing was changed")
	last := dumped(t, survivor.dir)
	for _, want := range []string{
		`Server "n1" in ` + survivor.dir + ` becomes the only member of a new cluster`, `cluster "old"`, `cluster "new", n1=n1 voter`,
		fmt.Sprintf("Every entry behind %v is lost for good", last[len(last)-1].EntryID), "whether they were committed is not known here",
		"Is there another survivor?", `n2, n3 are no members of the new cluster`, "There is no way back", "To go on, type the new cluster's ID:",
	} {
		require.Contains(t, out, want)
	}
	require.Equal(t, before, files(t, survivor.dir))
	code, _, errs = raftctl(t, "", "recover", "-cluster", "old", "-yes", survivor.dir)
	require.Equal(t, 3, code)
	require.Contains(t, errs, "present cluster")

	code, out, errs = raftctl(t, "new\n", "recover", "-cluster", "new", survivor.dir)
	require.Zero(t, code, errs)
	require.Contains(t, out, `done: `+survivor.dir+` is now the directory of the only member of cluster "new"`)
	code, out, _ = raftctl(t, "", "verify", survivor.dir)
	require.Zero(t, code, out)

	// It starts alone and has everything.
	survivor.start(t, network, "new")
	require.NoError(t, survivor.node.Barrier(within(t, time.Minute)))
	require.True(t, survivor.has(acknowledged))
	status := survivor.node.Status()
	require.Equal(t, "new", status.Configuration.ClusterID)
	require.Equal(t, []raft.NodeID{"n1"}, status.Configuration.Voters())
	write(survivor, 5)

	// New members. Not under an old ID: with the old snapshot, and an old voter's ID, it would believe that it may vote.
	waitFor(t, "n2 is refused", func() bool {
		_, err := survivor.node.ChangeMembership(within(t, 20*time.Second), raft.Change{Add: []raft.Server{{ID: "n2", Address: "n2"}}})
		refused := (*raft.MembershipError)(nil)
		return errors.As(err, &refused) && refused.Server == "n2"
	})
	n4, n5 := newMachine(t, "n4"), newMachine(t, "n5")
	n4.start(t, network, "new")
	add(t, []*machine{survivor}, n4)
	n5.start(t, network, "new")
	add(t, []*machine{survivor, n4}, n5)
	write(n4, 5)
	for _, m := range []*machine{n4, n5} {
		waitFor(t, "new members have everything", func() bool { return m.has(acknowledged) })
		require.NotZero(t, m.node.Status().SnapshotIndex, "the log does not reach back to its beginning")
	}

	// A server of the old cluster comes back.
	n3 := machines[2]
	n3.start(t, network, "")
	waitFor(t, "refused", func() bool {
		return slices.ContainsFunc([]*machine{survivor, n4, n5}, func(m *machine) bool {
			return strings.Contains(m.node.Status().LastRefusal, "other cluster")
		})
	})
	write(survivor, 5)
	require.Empty(t, n3.node.Leadership().Leader)
	require.False(t, n3.has(acknowledged))
	for _, m := range []*machine{n3, n5, n4, survivor} {
		m.stop(t)
	}
	code, out, _ = raftctl(t, "", "verify", survivor.dir)
	require.Zero(t, code, out)
}

// As JSON, with -yes, for programs.
func TestRecoverAsJSON(t *testing.T) {
	m := stoppedServer(t)
	code, out, errs := raftctl(t, "", "recover", "-cluster", "c2", "-address", "host9:7000", "-yes", "-format", "json", m.dir)
	require.Zero(t, code, errs)
	var plan struct {
		Cluster       string
		Configuration struct {
			raft.EntryID
			Configuration struct {
				Cluster string
				Servers []struct{ ID, Address string }
			}
		}
	}
	require.NoError(t, json.Unmarshal([]byte(out), &plan))
	require.Equal(t, "c1", plan.Cluster)
	require.Equal(t, "c2", plan.Configuration.Configuration.Cluster)
	require.Equal(t, "host9:7000", plan.Configuration.Configuration.Servers[0].Address)
	entries := dumped(t, m.dir)
	require.Equal(t, plan.Configuration.EntryID, entries[len(entries)-1].EntryID)
}
