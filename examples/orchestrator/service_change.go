package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// updateRetries bounds how often an update is made anew that somebody else's change has overtaken.
const updateRetries = 5

func serviceChangeCommands() []command {
	var f specFlags
	var scale autoscaleFlags
	var detach, back bool
	detachFlag := func(_ *cli, fs *flag.FlagSet) {
		fs.BoolVar(&detach, "detach", false, "do not wait until the service has done what was asked")
		fs.BoolVar(&detach, "d", false, "short for --detach")
	}
	return []command{
		{
			name: "service update", args: "SERVICE [-- COMMAND [ARG...]]", summary: "Change a service; its tasks are replaced a few at a time",
			flags: func(c *cli, fs *flag.FlagSet) {
				detachFlag(c, fs)
				f.defineUpdate(fs)
				fs.BoolVar(&back, "rollback", false, "the same as service rollback")
			},
			run: func(c *cli, in *invocation) error {
				if back {
					return c.serviceRollback(in, detach)
				}
				return c.serviceUpdate(in, &f, detach)
			},
		},
		{
			name: "service rollback", args: "SERVICE", summary: "Go back to what a service was before its last update", flags: detachFlag,
			run: func(c *cli, in *invocation) error { return c.serviceRollback(in, detach) },
		},
		{
			name: "service autoscale", args: "SERVICE", summary: "Have the number of replicas follow the load",
			flags: func(_ *cli, fs *flag.FlagSet) { scale.define(fs) },
			run:   func(c *cli, in *invocation) error { return c.serviceAutoscale(in, &scale) },
		},
		{name: "service stop", args: "SERVICE...", summary: "Stop the tasks of services, until they are started again", run: (*cli).serviceStop},
		{
			name: "service start", args: "SERVICE...", summary: "Start stopped services", flags: detachFlag,
			run: func(c *cli, in *invocation) error { return c.serviceStart(in, detach) },
		},
		{name: "service inspect", args: "SERVICE...", summary: "Show everything that is known about services, as JSON", run: (*cli).serviceInspect},
		{name: "task kill", args: "TASK...", summary: "Crash tasks, named by ID or as SERVICE.SLOT; their restart policy decides what follows", run: (*cli).taskKill},
	}
}

// one is the service that a command is about.
func one(in *invocation, what string) (string, error) {
	if len(in.words) != 1 {
		return "", usagef("%s: want one service, got %d", what, len(in.words))
	}
	return in.words[0], nil
}

func (c *cli) serviceUpdate(in *invocation, f *specFlags, detach bool) error {
	name, err := one(in, "service update")
	if err != nil {
		return err
	}
	if changes := len(in.set) + len(in.command); changes == 0 || changes == 1 && (in.set["d"] || in.set["detach"]) {
		return usagef("service update: nothing to change; see orchestrator service update --help")
	}
	var id cluster.ServiceID
	var version uint64
	err = c.with(func(ctx context.Context, client *api.Client) error {
		for attempt := 1; ; attempt++ {
			sv, err := c.lookUp(ctx, client, name)
			if err != nil {
				return err
			}
			spec := sv.Spec
			if err := f.edit(&spec, in); err != nil {
				return err
			}
			id = sv.ID
			result, err := client.Do(ctx, cluster.UpdateService{Service: sv.ID, Spec: spec, Expect: sv.ChangedAt})
			version = result.Version
			var answer *api.Error
			overtaken := errors.As(err, &answer) && answer.Code == string(cluster.Conflict) && strings.Contains(answer.Message, "changed by somebody else")
			if overtaken && attempt < updateRetries { // the autoscaler, most often: what was asked for fits the new state as well
				continue
			}
			return err
		}
	})
	if err != nil {
		return err
	}
	c.printf("%s\n", name)
	return c.convergeUnless(detach, id, version)
}

// convergeUnless waits for a service, unless nobody wants to.
func (c *cli) convergeUnless(detach bool, id cluster.ServiceID, version uint64) error {
	if detach {
		return nil
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	defer client.Close()
	return c.converge(client, id, version)
}

func (c *cli) serviceRollback(in *invocation, detach bool) error {
	name, err := one(in, "service rollback")
	if err != nil {
		return err
	}
	id, version, err := c.change(name, func(sv *cluster.Service) cluster.Op { return cluster.RollbackService{Service: sv.ID} })
	if err != nil {
		return err
	}
	return c.convergeUnless(detach, id, version)
}

// change carries out an operation on a service, and prints its name.
func (c *cli) change(name string, op func(*cluster.Service) cluster.Op) (id cluster.ServiceID, version uint64, err error) {
	err = c.with(func(ctx context.Context, client *api.Client) error {
		sv, err := c.lookUp(ctx, client, name)
		if err != nil {
			return err
		}
		result, err := client.Do(ctx, op(sv))
		if err != nil {
			return err
		}
		id, version = sv.ID, result.Version
		c.printf("%s\n", sv.Spec.Name)
		return nil
	})
	return id, version, err
}

type autoscaleFlags struct {
	min, max int
	target   float64
	off      bool
}

func (f *autoscaleFlags) define(fs *flag.FlagSet) {
	fs.IntVar(&f.min, "min", 1, "the fewest replicas")
	fs.IntVar(&f.max, "max", 0, "the most replicas (required)")
	fs.Float64Var(&f.target, "target-cpu", 0, "percent of one processor that a task should use (required)")
	fs.BoolVar(&f.off, "off", false, "leave the number of replicas to service scale again")
}

func (c *cli) serviceAutoscale(in *invocation, f *autoscaleFlags) error {
	name, err := one(in, "service autoscale")
	switch {
	case err != nil:
		return err
	case f.off && len(in.set) > 1:
		return usagef("service autoscale: --off goes with no other flag")
	case !f.off && (!in.set["max"] || !in.set["target-cpu"]):
		return usagef("service autoscale: want --max and --target-cpu, or --off")
	}
	_, _, err = c.change(name, func(sv *cluster.Service) cluster.Op {
		op := cluster.SetAutoscale{Service: sv.ID}
		if !f.off {
			op.Autoscale = &cluster.Autoscale{Min: f.min, Max: f.max, TargetCPU: f.target}
		}
		return op
	})
	return err
}

func (c *cli) serviceStop(in *invocation) error {
	if len(in.words) == 0 {
		return usagef("service stop: want at least one service")
	}
	var stopped []cluster.ServiceID
	var errs []error
	for _, name := range in.words {
		id, _, err := c.change(name, func(sv *cluster.Service) cluster.Op { return cluster.StopService{Service: sv.ID} })
		if errs = append(errs, err); err == nil {
			stopped = append(stopped, id)
		}
	}
	if len(stopped) > 0 {
		errs = append(errs, c.awaitGone(stopped, "Stopped"))
	}
	return errors.Join(errs...)
}

func (c *cli) serviceStart(in *invocation, detach bool) error {
	if len(in.words) == 0 {
		return usagef("service start: want at least one service")
	}
	var errs []error
	for _, name := range in.words {
		id, _, err := c.change(name, func(sv *cluster.Service) cluster.Op { return cluster.StartService{Service: sv.ID} })
		if err == nil {
			err = c.convergeUnless(detach, id, 0)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (c *cli) serviceInspect(in *invocation) error {
	if len(in.words) == 0 || in.command != nil {
		return usagef("service inspect: want at least one service")
	}
	return c.with(func(ctx context.Context, client *api.Client) error {
		v, err := client.State(ctx)
		if err != nil {
			return err
		}
		type shown struct {
			*cluster.Service
			Tasks []*cluster.Task `json:"tasks"`
		}
		var all []shown
		for _, name := range in.words {
			sv, err := findService(v, name)
			if err != nil {
				return err
			}
			all = append(all, shown{sv, v.State.TasksOf(sv.ID)})
		}
		encoder := json.NewEncoder(c.out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(all)
	})
}

// findTask finds a task by its ID, or the newest one of a slot by SERVICE.SLOT.
func findTask(s *cluster.State, name string) (*cluster.Task, error) {
	if t := s.Tasks[cluster.TaskID(name)]; t != nil {
		return t, nil
	}
	if service, _, ok := cutLast(name, "."); ok {
		if sv := s.ServiceByName(service); sv != nil {
			tasks := s.TasksOf(sv.ID)
			slices.Reverse(tasks) // the newest first
			if i := slices.IndexFunc(tasks, func(t *cluster.Task) bool { return t.Name() == name }); i >= 0 {
				return tasks[i], nil
			}
		}
	}
	return nil, fmt.Errorf("no task %q; `%s service ps SERVICE` shows those that there are", name, program())
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func (c *cli) taskKill(in *invocation) error {
	if len(in.words) == 0 {
		return usagef("task kill: want at least one task")
	}
	return c.each(in.words, func(ctx context.Context, client *api.Client, name string) error {
		v, err := client.State(ctx)
		if err != nil {
			return err
		}
		t, err := findTask(v.State, name)
		if err != nil {
			return err
		}
		if _, err := client.Do(ctx, cluster.KillTask{Task: t.ID}); err != nil {
			return err
		}
		c.printf("%s\n", name)
		return nil
	})
}
