package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
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

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func serviceCommands() []command {
	var create createFlags
	var detach bool
	detachFlag := func(_ *cli, fs *flag.FlagSet) {
		fs.BoolVar(&detach, "detach", false, "do not wait until the service has done what was asked")
		fs.BoolVar(&detach, "d", false, "short for --detach")
	}
	return []command{
		{
			name: "service create", args: "-- COMMAND [ARG...]", summary: "Create a service", flags: func(c *cli, fs *flag.FlagSet) {
				detachFlag(c, fs)
				create.define(fs)
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
	}
}

type createFlags struct {
	name, image, restart string
	replicas, attempts   int
	publish, env         list
	grace                time.Duration
}

func (f *createFlags) define(fs *flag.FlagSet) {
	fs.StringVar(&f.name, "name", "", "name of the service (required)")
	fs.IntVar(&f.replicas, "replicas", 1, "number of tasks")
	fs.Var(&f.publish, "publish", "published=8080,target=80 or 8080:80; may be repeated")
	fs.Var(&f.publish, "p", "short for --publish")
	fs.Var(&f.env, "env", "NAME=value; may be repeated")
	fs.Var(&f.env, "e", "short for --env")
	fs.StringVar(&f.image, "image", "", "image of the containers; needs a container runtime, which is not there yet")
	fs.StringVar(&f.restart, "restart-condition", "any", "none, on-failure or any")
	fs.IntVar(&f.attempts, "restart-max-attempts", 0, "restarts on one node, with on-failure; 0: no limit")
	fs.DurationVar(&f.grace, "stop-grace-period", 0, "between SIGTERM and SIGKILL; 0: 10s")
}

// spec returns all problems of the flags at once.
func (f *createFlags) spec(argv []string) (cluster.ServiceSpec, error) {
	var errs []error
	spec := cluster.ServiceSpec{Name: f.name, Replicas: f.replicas, Task: cluster.TaskSpec{
		Command: argv, Env: map[string]string{}, StopGrace: f.grace, Restart: cluster.RestartPolicy{MaxAttempts: f.attempts},
	}}
	switch f.restart {
	case "none":
		spec.Task.Restart.Condition = cluster.RestartNo
	case "on-failure":
		spec.Task.Restart.Condition = cluster.RestartOnFailure
	case "any":
		spec.Task.Restart.Condition = cluster.RestartAlways
	default:
		errs = append(errs, fmt.Errorf("--restart-condition %q: want none, on-failure or any", f.restart))
	}
	for _, p := range f.publish {
		port, err := parsePort(p)
		errs = append(errs, err)
		spec.Task.Ports = append(spec.Task.Ports, port)
	}
	for _, e := range f.env {
		name, value, ok := strings.Cut(e, "=")
		if !ok || name == "" {
			errs = append(errs, fmt.Errorf("--env %q: want NAME=value", e))
		}
		spec.Task.Env[name] = value
	}
	switch {
	case f.image != "":
		errs = append(errs, errors.New("--image: there is no container runtime yet; give a command behind --"))
	case f.name == "":
		errs = append(errs, errors.New("--name: required"))
	}
	if err := errors.Join(errs...); err != nil {
		return spec, &usageError{err.Error()}
	}
	if err := spec.Validate(); err != nil {
		return spec, &usageError{fmt.Sprintf("service %s: %v", f.name, err)}
	}
	return spec, nil
}

// parsePort reads both of Docker's notations.
func parsePort(s string) (p cluster.Port, err error) {
	bad := fmt.Errorf("--publish %q: want published=8080,target=80 or 8080:80", s)
	number := func(text string) uint16 {
		n, e := strconv.ParseUint(text, 10, 16)
		if e != nil || n == 0 {
			err = bad
		}
		return uint16(n)
	}
	if published, target, ok := strings.Cut(s, ":"); ok {
		return cluster.Port{Published: number(published), Target: number(target)}, err
	}
	for field := range strings.SplitSeq(s, ",") {
		switch key, value, _ := strings.Cut(field, "="); key {
		case "published":
			p.Published = number(value)
		case "target":
			p.Target = number(value)
		case "protocol":
			if value != "tcp" {
				err = fmt.Errorf("--publish %q: only tcp can be published", s)
			}
		default:
			return p, bad
		}
	}
	if p.Published == 0 || p.Target == 0 {
		err = bad
	}
	return p, err
}

func (c *cli) serviceCreate(in *invocation, f *createFlags, detach bool) error {
	if len(in.words) > 0 {
		return usagef("service create: the command of the tasks comes behind --, as in: service create --name web -- %s", strings.Join(in.words, " "))
	}
	spec, err := f.spec(in.command)
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
		return c.converge(client, result.Service)
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
		return c.converge(client, sv.ID)
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

// converge waits until a service runs as it was asked to.
func (c *cli) converge(client *api.Client, id cluster.ServiceID) error {
	name, last, problem := "", "", ""
	err := await(c.ctx, client, convergeTimeout, func(v api.View) bool {
		sv := v.State.Services[id]
		if sv == nil || sv.Removing || sv.Stopped {
			return true
		}
		name = sv.Spec.Name
		running := serving(v.State, id)
		if line := fmt.Sprintf("%s: %d of %d tasks are running", sv.Spec.Name, running, sv.Spec.Replicas); line != last {
			last = line
			c.printf("%s\n", line)
		}
		live := 0
		for _, t := range v.State.TasksOf(id) {
			if t.Live() {
				live++
			}
			if t.Error != "" {
				problem = fmt.Sprintf(" (%s on %s: %s)", t.Name(), t.Node, t.Error)
			}
		}
		return running == sv.Spec.Replicas && live == running
	})
	if errors.Is(err, errPatience) {
		return fmt.Errorf("%s after %v%s; the managers go on trying, `%s service ps %s` shows how", last, convergeTimeout, problem, program(), name)
	}
	return err
}

var errPatience = errors.New("it takes longer than expected")

// await looks at the state again and again until it is good. errPatience: it was not in time.
func await(ctx context.Context, client *api.Client, timeout time.Duration, good func(api.View) bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errPatience)
	defer cancel()
	for {
		v, err := client.State(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		case good(v):
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(lookInterval):
		}
	}
}
