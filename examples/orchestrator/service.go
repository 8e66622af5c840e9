package main

import (
	"context"
	"errors"
	"flag"
	"strconv"
	"strings"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/table"
)

// How long commands wait for a service to do what was asked, and how often they look.
const (
	convergeTimeout = 30 * time.Second
	lookInterval    = 50 * time.Millisecond
)

func serviceCommands() []command {
	var create specFlags
	var detach bool
	detachFlag := func(_ *cli, fs *flag.FlagSet) {
		fs.BoolVar(&detach, "detach", false, "do not wait until the service has done what was asked")
		fs.BoolVar(&detach, "d", false, "short for --detach")
	}
	return append([]command{
		{
			name: "service create", args: "[IMAGE] [-- COMMAND ARG...]", summary: "Create a service of containers or, without an image, of processes", flags: func(c *cli, fs *flag.FlagSet) {
				detachFlag(c, fs)
				create.defineCreate(fs)
			},
			run: func(c *cli, in *invocation) error { return c.serviceCreate(in, &create, detach) },
		},
		{name: "service ls", summary: "List the services", lists: true, run: (*cli).serviceList},
		{name: "service ps", args: "SERVICE...", summary: "List the tasks of services", lists: true, run: (*cli).serviceTasks},
		{
			name: "service scale", args: "SERVICE=REPLICAS...", summary: "Change the number of replicas", flags: detachFlag,
			run: func(c *cli, in *invocation) error { return c.serviceScale(in, detach) },
		},
		{name: "service rm", args: "SERVICE...", summary: "Remove services", run: (*cli).serviceRemove},
	}, serviceChangeCommands()...)
}

func (c *cli) serviceCreate(in *invocation, f *specFlags, detach bool) error {
	switch {
	case len(in.words) > 1:
		return usagef("service create: the command of the tasks comes behind --, as in: service create --name web -- %s", strings.Join(in.words, " "))
	case len(in.words) == 1 && f.image != "":
		return usagef("service create: want one image, got --image %s and %s", f.image, in.words[0])
	case len(in.words) == 1:
		f.image = in.words[0]
	}
	spec, err := f.spec(in)
	if err != nil {
		return err
	}
	return c.with(func(ctx context.Context, client *api.Client) error {
		result, err := client.Do(ctx, cluster.CreateService{Spec: spec})
		if err != nil {
			return err
		}
		c.printf("%s\n", result.Service)
		if detach {
			return nil
		}
		return c.converge(client, result.Service, 0)
	})
}

func (c *cli) serviceList(in *invocation) error {
	if err := in.exactly(0, "no arguments"); err != nil {
		return err
	}
	return c.with(func(ctx context.Context, client *api.Client) error {
		v, err := client.State(ctx)
		if err != nil {
			return err
		}
		return table.Print(c.out, c.format, serviceColumns, serviceRows(v.State))
	})
}

func (c *cli) serviceTasks(in *invocation) error {
	if len(in.words) == 0 {
		return usagef("service ps: want at least one service")
	}
	return c.with(func(ctx context.Context, client *api.Client) error {
		v, err := client.State(ctx)
		if err != nil {
			return err
		}
		var tasks []*cluster.Task
		for _, name := range in.words {
			sv, err := findService(v, name)
			if err != nil {
				return err
			}
			tasks = append(tasks, v.State.TasksOf(sv.ID)...)
		}
		return table.Print(c.out, c.format, taskColumns, taskRows(tasks, time.Now()))
	})
}

func (c *cli) serviceScale(in *invocation, detach bool) error {
	wanted := map[string]int{}
	for _, word := range in.words {
		name, number, _ := strings.Cut(word, "=")
		n, err := strconv.Atoi(number)
		if err != nil || name == "" {
			return usagef("service scale: %q: want SERVICE=REPLICAS", word)
		}
		wanted[name] = n
	}
	if len(wanted) == 0 {
		return usagef("service scale: want SERVICE=REPLICAS")
	}
	return c.each(in.words, func(ctx context.Context, client *api.Client, word string) error {
		name, _, _ := strings.Cut(word, "=")
		sv, err := c.lookUp(ctx, client, name)
		if err != nil {
			return err
		}
		if _, err := client.Do(ctx, cluster.ScaleService{Service: sv.ID, Replicas: wanted[name]}); err != nil {
			return err
		}
		c.printf("%s scaled to %d\n", sv.Spec.Name, wanted[name])
		if detach {
			return nil
		}
		return c.converge(client, sv.ID, 0)
	})
}

func (c *cli) serviceRemove(in *invocation) error {
	if len(in.words) == 0 {
		return usagef("service rm: want at least one service")
	}
	return c.each(in.words, func(ctx context.Context, client *api.Client, name string) error {
		sv, err := c.lookUp(ctx, client, name)
		if err != nil {
			return err
		}
		if _, err := client.Do(ctx, cluster.RemoveService{Service: sv.ID}); err != nil {
			return err
		}
		c.printf("%s\n", sv.Spec.Name)
		return nil
	})
}

// each does the same for several arguments, and goes on when one of them fails.
func (c *cli) each(words []string, f func(context.Context, *api.Client, string) error) error {
	var errs []error
	for _, word := range words {
		errs = append(errs, c.with(func(ctx context.Context, client *api.Client) error { return f(ctx, client, word) }))
	}
	return errors.Join(errs...)
}

func (c *cli) lookUp(ctx context.Context, client *api.Client, name string) (*cluster.Service, error) {
	v, err := client.State(ctx)
	if err != nil {
		return nil, err
	}
	return findService(v, name)
}
