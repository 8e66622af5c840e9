package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/compose"
	"github.com/steadyraft/raft/examples/orchestrator/table"
)

// composeFiles are looked for, in this order, as Docker does.
var composeFiles = []string{"compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"}

func composeCommands() []command {
	var file string
	var detach bool
	fileFlag := func(_ *cli, f *flag.FlagSet) {
		f.StringVar(&file, "file", "", "Compose file; default: "+strings.Join(composeFiles, ", "))
		f.StringVar(&file, "f", "", "short for --file")
	}
	project := func(run func(*cli, *compose.Project, *invocation) error) func(*cli, *invocation) error {
		return func(c *cli, in *invocation) error {
			p, err := c.loadProject(file)
			if err != nil {
				return err
			}
			return run(c, p, in)
		}
	}
	return []command{
		{
			name: "compose up", summary: "Create, update and start the services of a Compose file", flags: func(c *cli, f *flag.FlagSet) {
				fileFlag(c, f)
				f.BoolVar(&detach, "detach", false, "required: following the output is not there yet")
				f.BoolVar(&detach, "d", false, "short for --detach")
			},
			run: func(c *cli, in *invocation) error {
				if !detach {
					return usagef("compose up: add -d; to stay and show the services' output is not there yet")
				}
				return project((*cli).composeUp)(c, in)
			},
		},
		{name: "compose ps", summary: "List the tasks of a Compose project", flags: fileFlag, lists: true, run: project((*cli).composeTasks)},
		{name: "compose stop", args: "[SERVICE...]", summary: "Stop services, until they are started again", flags: fileFlag, run: project((*cli).composeStop)},
		{name: "compose start", args: "[SERVICE...]", summary: "Start stopped services", flags: fileFlag, run: project((*cli).composeStart)},
		{name: "compose kill", args: "[SERVICE...]", summary: "Crash the tasks of services", flags: fileFlag, run: project((*cli).composeKill)},
		{name: "compose down", summary: "Remove the services of a Compose project", flags: fileFlag, run: project((*cli).composeDown)},
	}
}

// loadProject reads the Compose file that was named, or the one in this directory.
func (c *cli) loadProject(file string) (*compose.Project, error) {
	if file == "" {
		for _, name := range composeFiles {
			if _, err := os.Stat(name); err == nil {
				file = name
				break
			}
		}
	}
	if file == "" {
		return nil, fmt.Errorf("no %s in this directory; name a Compose file with -f", composeFiles[0])
	}
	p, err := compose.Load(c.ctx, file, environment())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no Compose file %s; name one with -f", file)
	}
	return p, err
}

func environment() map[string]string {
	env := map[string]string{}
	for _, entry := range os.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		env[name] = value
	}
	return env
}

func (c *cli) composeUp(p *compose.Project, in *invocation) error {
	if err := in.exactly(0, "no arguments"); err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	defer client.Close()
	services, err := deploy(c.ctx, client, p, func(name, what string) { c.printf("Service %s  %s\n", name, what) })
	if err != nil {
		return err
	}
	for _, d := range services {
		if err := c.converge(client, d.id, d.version); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	v, err := client.State(ctx)
	if err != nil {
		return err
	}
	for _, sv := range projectServices(v.State, p.Name) {
		if !slices.ContainsFunc(services, func(d deployed) bool { return d.id == sv.ID }) {
			fmt.Fprintf(c.errOut, "Service %s belongs to this project and is not in the file any more; `service rm %s` removes it.\n", sv.Spec.Name, sv.Spec.Name)
		}
	}
	return nil
}

// deployed is a service that is as the project says.
type deployed struct {
	id      cluster.ServiceID
	version uint64
}

// deploy makes the cluster's services those of the project, dependencies first. A service is created when those that it depends on have
// come as far as it wants.
func deploy(ctx context.Context, client *api.Client, p *compose.Project, say func(name, what string)) (services []deployed, err error) {
	ids := map[string]cluster.ServiceID{}
	for _, spec := range inOrder(p.Services) {
		for _, w := range p.Waits[spec.Name] {
			if err := awaitCondition(ctx, client, ids[w.For], w); err != nil {
				return nil, fmt.Errorf("service %s waits for service %s: %w", spec.Name, w.For, err)
			}
		}
		d, what, err := deployOne(ctx, client, spec)
		if err != nil {
			return nil, fmt.Errorf("service %s: %w", spec.Name, err)
		}
		say(spec.Name, what)
		services = append(services, d)
		ids[spec.Name] = d.id
	}
	return services, nil
}

// awaitCondition waits until a service has come as far as another one wants. Only a service that is to complete may take as long as it
// likes; what cannot come any more is an error at once.
func awaitCondition(ctx context.Context, client *api.Client, id cluster.ServiceID, w compose.Wait) (err error) {
	began := time.Now()
	for {
		looking, cancel := context.WithTimeout(ctx, patience)
		v, err := client.State(looking)
		cancel()
		if err != nil {
			return err
		}
		sv := v.State.Services[id]
		if sv == nil || sv.Removing {
			return errors.New("it has been removed")
		}
		met, err := isMet(v.State, sv, w.Condition)
		switch limit := patienceWith(sv); {
		case met || err != nil:
			return err
		case w.Condition != compose.Completed && time.Since(began) > limit:
			l := lookAt(v.State, id)
			return fmt.Errorf("it is not %s after %v: %s; %s", conditionNames[w.Condition], limit, l.sum, l.problem)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(lookInterval):
		}
	}
}

var conditionNames = map[compose.Condition]string{
	compose.Started: "started", compose.Healthy: "healthy", compose.Completed: "completed",
}

// isMet says whether all slots of a service are as far as a condition wants, or that one will never be.
func isMet(s *cluster.State, sv *cluster.Service, condition compose.Condition) (bool, error) {
	newest := make([]*cluster.Task, sv.Spec.Replicas)
	for _, t := range s.TasksOf(sv.ID) {
		if t.Slot <= sv.Spec.Replicas && t.SpecVersion == sv.Version {
			newest[t.Slot-1] = t
		}
	}
	met := true
	for _, t := range newest {
		if t == nil {
			met = false
			continue
		}
		started := t.State == cluster.TaskRunning || t.Attempts > 0
		switch {
		case t.State == cluster.TaskComplete: // good for all of them
		case t.State == cluster.TaskFailed && condition != compose.Started:
			return false, fmt.Errorf("%s has failed: %s", onNode(t), t.Error)
		case t.State == cluster.TaskFailed:
		case condition == compose.Started:
			met = met && started
		case condition == compose.Healthy:
			met = met && t.Serving()
		default:
			met = false
		}
	}
	return met, nil
}

func deployOne(ctx context.Context, client *api.Client, spec cluster.ServiceSpec) (d deployed, what string, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	v, err := client.State(ctx)
	if err != nil {
		return d, "", err
	}
	old := v.State.ServiceByName(spec.Name)
	if old == nil {
		result, err := client.Do(ctx, cluster.CreateService{Spec: spec})
		return deployed{result.Service, result.Version}, "Created", err
	}
	if old.Spec.Labels[compose.ProjectLabel] != spec.Labels[compose.ProjectLabel] {
		return d, "", errors.New("a service of this name exists and does not belong to this project; choose another project name with `name:`")
	}
	d, what = deployed{old.ID, old.Version}, "Running"
	spec.Task.ForceUpdate = old.Spec.Task.ForceUpdate
	if a := old.Spec.Autoscale; a != nil { // the file says with how many it begins
		spec.Autoscale, spec.Replicas = a, old.Spec.Replicas
	}
	if !sameSpec(old.Spec, spec) {
		result, err := client.Do(ctx, cluster.UpdateService{Service: old.ID, Spec: spec})
		if err != nil {
			return d, "", err
		}
		d.version, what = result.Version, "Updated"
	}
	if old.Stopped {
		if _, err := client.Do(ctx, cluster.StartService{Service: old.ID}); err != nil {
			return d, "", err
		}
		what = "Started"
	}
	return d, what, nil
}

// sameSpec compares what is sent, so that an empty list and none are the same.
func sameSpec(a, b cluster.ServiceSpec) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// inOrder puts dependencies before those that wait for them. Package compose has refused circles.
func inOrder(services []cluster.ServiceSpec) (ordered []cluster.ServiceSpec) {
	placed := map[string]bool{}
	var place func(cluster.ServiceSpec)
	place = func(spec cluster.ServiceSpec) {
		if placed[spec.Name] {
			return
		}
		placed[spec.Name] = true
		for _, name := range spec.DependsOn {
			for _, other := range services {
				if other.Name == name {
					place(other)
				}
			}
		}
		ordered = append(ordered, spec)
	}
	for _, spec := range services {
		place(spec)
	}
	return ordered
}

func (c *cli) composeTasks(p *compose.Project, in *invocation) error {
	if err := in.exactly(0, "no arguments"); err != nil {
		return err
	}
	return c.with(func(ctx context.Context, client *api.Client) error {
		v, err := client.State(ctx)
		if err != nil {
			return err
		}
		var tasks []*cluster.Task
		for _, sv := range projectServices(v.State, p.Name) {
			tasks = append(tasks, v.State.TasksOf(sv.ID)...)
		}
		return table.Print(c.out, c.format, composeColumns, newest(taskRows(tasks, time.Now())))
	})
}

// chosen calls f for the services of the project that were named on the command line, by their names in the file, or for all.
func (c *cli) chosen(p *compose.Project, in *invocation, f func(context.Context, *api.Client, *cluster.State, *cluster.Service) error) error {
	return c.with(func(ctx context.Context, client *api.Client) error {
		v, err := client.State(ctx)
		if err != nil {
			return err
		}
		services := projectServices(v.State, p.Name)
		if len(services) == 0 {
			return fmt.Errorf("project %s has no services in this cluster; `compose up -d` creates them", p.Name)
		}
		for _, word := range in.words {
			if !slices.ContainsFunc(services, func(sv *cluster.Service) bool { return sv.Spec.Labels[compose.ServiceLabel] == word }) {
				return fmt.Errorf("project %s has no service %q in this cluster", p.Name, word)
			}
		}
		var errs []error
		for _, sv := range services {
			if len(in.words) == 0 || slices.Contains(in.words, sv.Spec.Labels[compose.ServiceLabel]) {
				errs = append(errs, f(ctx, client, v.State, sv))
			}
		}
		return errors.Join(errs...)
	})
}

func (c *cli) composeStop(p *compose.Project, in *invocation) error {
	var stopped []cluster.ServiceID
	err := c.chosen(p, in, func(ctx context.Context, client *api.Client, _ *cluster.State, sv *cluster.Service) error {
		if _, err := client.Do(ctx, cluster.StopService{Service: sv.ID}); err != nil {
			return err
		}
		stopped = append(stopped, sv.ID)
		c.printf("Service %s  Stopping\n", sv.Spec.Name)
		if r := sv.Spec.Task.Restart.Condition; r != cluster.RestartNo {
			c.printf("  This is an explicit stop, which `restart: %s` does not undo; `compose start` does. To see a crash being repaired: `compose kill`.\n", r)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return c.awaitGone(stopped, "Stopped")
}

// awaitGone waits until no task of the services is left running.
func (c *cli) awaitGone(ids []cluster.ServiceID, what string) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	defer client.Close()
	err = await(c.ctx, client, convergeTimeout, func(v api.View) bool {
		return !slices.ContainsFunc(ids, func(id cluster.ServiceID) bool {
			return slices.ContainsFunc(v.State.TasksOf(id), (*cluster.Task).Live)
		})
	})
	if errors.Is(err, errPatience) {
		return fmt.Errorf("not all tasks have ended after %v; `service ps` says which", convergeTimeout)
	}
	if err == nil {
		c.printf("%s\n", what)
	}
	return err
}

func (c *cli) composeStart(p *compose.Project, in *invocation) error {
	return c.chosen(p, in, func(ctx context.Context, client *api.Client, _ *cluster.State, sv *cluster.Service) error {
		if _, err := client.Do(ctx, cluster.StartService{Service: sv.ID}); err != nil {
			return err
		}
		c.printf("Service %s  Started\n", sv.Spec.Name)
		return c.converge(client, sv.ID, 0)
	})
}

func (c *cli) composeKill(p *compose.Project, in *invocation) error {
	return c.chosen(p, in, func(ctx context.Context, client *api.Client, s *cluster.State, sv *cluster.Service) error {
		var errs []error
		for _, t := range s.TasksOf(sv.ID) {
			if t.State != cluster.TaskRunning {
				continue
			}
			if _, err := client.Do(ctx, cluster.KillTask{Task: t.ID}); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", t.Name(), err))
				continue
			}
			c.printf("Task %s on %s  Killed\n", t.Name(), t.Node)
		}
		return errors.Join(errs...)
	})
}

func (c *cli) composeDown(p *compose.Project, in *invocation) error {
	if err := in.exactly(0, "no arguments"); err != nil {
		return err
	}
	var removed []cluster.ServiceID
	err := c.chosen(p, in, func(ctx context.Context, client *api.Client, _ *cluster.State, sv *cluster.Service) error {
		if _, err := client.Do(ctx, cluster.RemoveService{Service: sv.ID}); err != nil {
			return err
		}
		removed = append(removed, sv.ID)
		c.printf("Service %s  Removing\n", sv.Spec.Name)
		return nil
	})
	if err != nil {
		return err
	}
	return c.awaitGone(removed, "Removed")
}
