package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
	"github.com/steadyraft/raft/examples/orchestrator/table"
)

const askTimeout = 2 * time.Second // for one manager to say how it is

func nodeCommands() []command {
	var force bool
	var change nodeChange
	return []command{
		{name: "node ls", summary: "List the nodes", lists: true, run: (*cli).nodeList},
		{name: "node inspect", args: "NODE...", summary: "Show everything that is known about nodes, as JSON", run: (*cli).nodeInspect},
		{name: "node promote", args: "MANAGER...", summary: "Give standby managers a vote", run: func(c *cli, in *invocation) error {
			return c.nodeVote(in, true)
		}},
		{name: "node demote", args: "MANAGER...", summary: "Take managers' votes away; they go on as standbys", run: func(c *cli, in *invocation) error {
			return c.nodeVote(in, false)
		}},
		{
			name: "node rm", args: "NODE...", summary: "Remove nodes for ever; a manager is moved off leadership and loses its vote first",
			flags: func(_ *cli, fs *flag.FlagSet) { fs.BoolVar(&force, "force", false, "also a worker that is not down") },
			run:   func(c *cli, in *invocation) error { return c.nodeRemove(in, force) },
		},
		{
			name: "node update", args: "NODE...", summary: "Say whether nodes take tasks, and label them",
			flags: func(_ *cli, fs *flag.FlagSet) { change.define(fs) },
			run:   func(c *cli, in *invocation) error { return c.nodeUpdate(in, &change) },
		},
	}
}

// nodeChange is what `node update` may change.
type nodeChange struct {
	availability string
	add, remove  list
}

func (n *nodeChange) define(fs *flag.FlagSet) {
	fs.StringVar(&n.availability, "availability", "", "active: takes tasks; pause: keeps those it has; drain: gives them up")
	fs.Var(&n.add, "label-add", "NAME=value, for constraints; may be repeated")
	fs.Var(&n.remove, "label-rm", "NAME; may be repeated")
}

func leaderCommands() []command {
	return []command{
		{name: "leader ls", summary: "Say which manager leads", lists: true, run: func(c *cli, in *invocation) error {
			return c.managerTable(in, leaderColumns)
		}},
		{name: "leader change", args: "[MANAGER]", summary: "Hand leadership over, without an interruption", run: (*cli).leaderChange},
	}
}

func statusCommand() command {
	return command{name: "status", summary: "Say how each manager is, and what needs attention", lists: true, run: func(c *cli, in *invocation) error {
		return c.managerTable(in, statusColumns)
	}}
}

func (c *cli) nodeList(in *invocation) error {
	if err := in.exactly(0, "no arguments"); err != nil {
		return err
	}
	return c.with(func(ctx context.Context, client *api.Client) error {
		v, err := client.State(ctx)
		if err != nil {
			return err
		}
		return table.Print(c.out, c.format, nodeColumns, nodeRows(v))
	})
}

// eachNode does the same for several nodes, and prints the names of those for which it was done.
func (c *cli) eachNode(in *invocation, what string, f func(context.Context, *api.Client, cluster.NodeID) error) error {
	if len(in.words) == 0 || in.command != nil {
		return usagef("%s: want at least one node", what)
	}
	return c.each(in.words, func(ctx context.Context, client *api.Client, name string) error {
		if err := f(ctx, client, cluster.NodeID(name)); err != nil {
			return err
		}
		c.printf("%s\n", name)
		return nil
	})
}

func (c *cli) nodeInspect(in *invocation) error {
	if len(in.words) == 0 || in.command != nil {
		return usagef("node inspect: want at least one node")
	}
	return c.each(in.words, func(ctx context.Context, client *api.Client, name string) error {
		v, err := client.State(ctx)
		if err != nil {
			return err
		}
		id := cluster.NodeID(name)
		n := v.State.Nodes[id]
		if n == nil {
			return fmt.Errorf("no node %q; `%s node ls` shows those that there are", name, program())
		}
		shown := struct {
			*cluster.Node
			Manager *api.Member     `json:"manager,omitempty"`
			Leader  bool            `json:"leader,omitempty"`
			Tasks   []*cluster.Task `json:"tasks"`
		}{Node: n, Leader: v.Leader == id, Tasks: v.State.TasksOn(id)}
		if i := slices.IndexFunc(v.Members, func(m api.Member) bool { return m.ID == id }); i >= 0 {
			shown.Manager = &v.Members[i]
		}
		encoder := json.NewEncoder(c.out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(shown)
	})
}

func (c *cli) nodeVote(in *invocation, voter bool) error {
	return c.eachNode(in, "node promote and node demote", func(ctx context.Context, client *api.Client, id cluster.NodeID) error {
		return client.Vote(ctx, api.VoteRequest{Node: id, Voter: voter})
	})
}

func (c *cli) nodeRemove(in *invocation, force bool) error {
	return c.eachNode(in, "node rm", func(ctx context.Context, client *api.Client, id cluster.NodeID) error {
		return client.Remove(ctx, api.RemoveRequest{Node: id, Force: force})
	})
}

func (c *cli) nodeUpdate(in *invocation, change *nodeChange) error {
	switch cluster.Availability(change.availability) {
	case "", cluster.AvailabilityActive, cluster.AvailabilityPause, cluster.AvailabilityDrain:
	default:
		return usagef("node update: --availability %q: want active, pause or drain", change.availability)
	}
	labels := map[string]string{}
	for _, entry := range change.add {
		name, value, ok := strings.Cut(entry, "=")
		if !ok || name == "" {
			return usagef("node update: --label-add %q: want NAME=value", entry)
		}
		labels[name] = value
	}
	changesLabels := len(labels) > 0 || len(change.remove) > 0
	if change.availability == "" && !changesLabels {
		return usagef("node update: want --availability, --label-add or --label-rm")
	}
	return c.eachNode(in, "node update", func(ctx context.Context, client *api.Client, id cluster.NodeID) error {
		// The labels first: they can be refused, an availability of a node that is there cannot.
		if changesLabels {
			if _, err := client.Do(ctx, cluster.SetLabels{Node: id, Add: labels, Remove: change.remove}); err != nil {
				return err
			}
		}
		if change.availability == "" {
			return nil
		}
		_, err := client.Do(ctx, cluster.SetAvailability{Node: id, Availability: cluster.Availability(change.availability)})
		return err
	})
}

func (c *cli) leaderChange(in *invocation) error {
	if len(in.words) > 1 || in.command != nil {
		return usagef("leader change: want one manager or none")
	}
	target := cluster.NodeID("")
	if len(in.words) == 1 {
		target = cluster.NodeID(in.words[0])
	}
	return c.with(func(ctx context.Context, client *api.Client) error {
		a, err := client.ChangeLeader(ctx, target)
		if err != nil {
			return err
		}
		c.printf("%s\n", a)
		return nil
	})
}

// managerTable asks every manager that belongs to the cluster now. It needs no quorum: this is what one looks at when there is none.
func (c *cli) managerTable(in *invocation, columns []table.Column[managerRow]) error {
	if err := in.exactly(0, "no arguments"); err != nil {
		return err
	}
	settings, credentials, err := manager.Load(c.data, nil)
	if err != nil {
		_, err = c.client() // says what to do
		return err
	}
	rows := askManagers(c.ctx, credentials, manager.KnownAPIs(c.data, settings), settings.Members)
	if err := table.Print(c.out, c.format, columns, rows); err != nil {
		return err
	}
	working := false
	var errs []error
	for _, r := range rows {
		working = working || r.err == nil && r.status.CanCommit
		if r.err != nil {
			errs = append(errs, r.err)
		}
		for _, p := range r.status.Problems {
			_, _ = c.errOut.Write([]byte("problem: " + p + "\n"))
		}
	}
	if !working {
		return &api.Error{Code: api.CodeUnavailable, Message: "no manager can commit anything now: start enough of them that more than half are running\n" + joined(errs)}
	}
	return nil
}

// askManagers asks those managers how they are that can be found at the addresses given, and then all members that they know of. If
// nobody answers, the members are those given.
func askManagers(ctx context.Context, credentials *pki.Credentials, addresses []string, members []api.Member) []managerRow {
	answers := map[string]managerRow{}
	ask := func(addresses []string) {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		rows := make([]managerRow, len(addresses))
		var asking sync.WaitGroup
		for i, address := range addresses {
			asking.Go(func() {
				client := api.NewClient(credentials, address)
				defer client.Close()
				rows[i].status, rows[i].err = client.Status(ctx)
			})
		}
		asking.Wait()
		for i, address := range addresses {
			answers[address] = rows[i]
		}
	}
	ask(addresses)
	newest := api.Status{}
	for _, a := range answers { // order-free: equally new ones agree
		if a.err == nil && len(a.status.Members) > 0 && (newest.Members == nil || a.status.Commit > newest.Commit) {
			newest = a.status
		}
	}
	if newest.Members != nil {
		members = newest.Members
	}
	var more []string
	for _, m := range members {
		if _, asked := answers[m.API]; !asked && m.API != "" {
			more = append(more, m.API)
		}
	}
	ask(more)
	rows := make([]managerRow, len(members))
	for i, m := range members {
		rows[i] = answers[m.API]
		rows[i].Member = m
		if m.API == "" {
			rows[i].err = fmt.Errorf("manager %s has not said yet where its API is", m.ID)
		}
	}
	return rows
}

func joined(errs []error) string {
	if err := errors.Join(errs...); err != nil {
		return err.Error()
	}
	return "all of them answer, but none of them leads yet"
}
