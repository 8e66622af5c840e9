package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
	"github.com/steadyraft/raft/examples/orchestrator/table"
)

const askTimeout = 2 * time.Second // for one manager to say how it is

func nodeCommands() []command {
	return []command{{name: "node ls", summary: "List the nodes", lists: true, run: (*cli).nodeList}}
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
		c.printf("%s has handed over to %s, which leads term %d\n", a.From, a.To, a.Term)
		return nil
	})
}

// managerTable asks every manager. It needs no quorum: this is what one looks at when there is none.
func (c *cli) managerTable(in *invocation, columns []table.Column[managerRow]) error {
	if err := in.exactly(0, "no arguments"); err != nil {
		return err
	}
	settings, credentials, err := manager.Load(c.data)
	if err != nil {
		_, err = c.client() // says what to do
		return err
	}
	rows := make([]managerRow, len(settings.Members))
	ctx, cancel := context.WithTimeout(c.ctx, askTimeout)
	defer cancel()
	var asking sync.WaitGroup
	for i, m := range settings.Members {
		asking.Go(func() {
			client := api.NewClient(credentials, m.API)
			defer client.Close()
			rows[i] = managerRow{Member: m}
			rows[i].status, rows[i].err = client.Status(ctx)
		})
	}
	asking.Wait()
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

func joined(errs []error) string {
	if err := errors.Join(errs...); err != nil {
		return err.Error()
	}
	return "all of them answer, but none of them leads yet"
}
