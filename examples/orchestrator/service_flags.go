package main

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// rolloutFlags are those of an update, or of a rollback.
type rolloutFlags struct {
	parallelism    int
	delay, monitor time.Duration
	action, order  string
	ratio          float64
}

func (f *rolloutFlags) define(fs *flag.FlagSet, prefix, what, actions string) {
	fs.IntVar(&f.parallelism, prefix+"parallelism", 1, "tasks "+what+" at the same time; 0: all")
	fs.DurationVar(&f.delay, prefix+"delay", 0, "after a new task serves, before the next one is "+what)
	fs.DurationVar(&f.monitor, prefix+"monitor", 5*time.Second, "how long a new task is watched for failures")
	fs.StringVar(&f.action, prefix+"failure-action", "pause", actions)
	fs.Float64Var(&f.ratio, prefix+"max-failure-ratio", 0, "of the tasks, that may fail")
	fs.StringVar(&f.order, prefix+"order", "stop-first", "stop-first or start-first")
}

// edit changes what was given on the command line.
func (f *rolloutFlags) edit(c *cluster.UpdateConfig, set map[string]bool, prefix string) {
	change := func(name string, do func()) {
		if set[prefix+name] {
			do()
		}
	}
	change("parallelism", func() {
		if c.Parallelism = f.parallelism; f.parallelism == 0 {
			c.Parallelism = cluster.AllAtOnce
		} else if f.parallelism < 0 {
			c.Parallelism = math.MinInt // refused when the specification is looked at
		}
	})
	change("delay", func() { c.Delay = f.delay })
	change("monitor", func() { c.Monitor = f.monitor })
	change("failure-action", func() { c.FailureAction = cluster.FailureAction(f.action) })
	change("max-failure-ratio", func() { c.MaxFailureRatio = f.ratio })
	change("order", func() { c.Order = cluster.UpdateOrder(f.order) })
}

// specFlags describe a service: all of it for `service create`, what is to change for `service update`.
type specFlags struct {
	name, image, restart          string
	replicas, attempts            int
	grace                         time.Duration
	reserveCPU, reserveMemory     string
	healthCommand                 string
	healthInterval, healthWait    time.Duration
	healthStart                   time.Duration
	healthRetries                 int
	noHealth, force               bool
	update, rollback              rolloutFlags
	publish, env, constraint      list
	label                         list
	unpublish, unset, unconstrain list // what `service update` takes away
	unlabel                       list
}

// define adds the flags that `service create` and `service update` share, with Docker's names: an update adds to the lists.
func (f *specFlags) define(fs *flag.FlagSet, suffix string) {
	fs.IntVar(&f.replicas, "replicas", 1, "number of tasks")
	fs.Var(&f.publish, "publish"+suffix, "published=8080,target=80 or 8080:80; may be repeated")
	fs.Var(&f.env, "env"+suffix, "NAME=value; may be repeated")
	fs.Var(&f.label, "label"+suffix, "NAME=value of the service; may be repeated")
	fs.Var(&f.constraint, "constraint"+suffix, "node.id, node.hostname, node.role or node.labels.NAME, == or !=, and a value; may be repeated")
	fs.StringVar(&f.image, "image", "", "image of the containers; nodes with --runtime docker run it, if they have it: it is never pulled")
	fs.StringVar(&f.restart, "restart-condition", "any", "none, on-failure or any")
	fs.IntVar(&f.attempts, "restart-max-attempts", 0, "restarts on one node, with on-failure; 0: no limit")
	fs.DurationVar(&f.grace, "stop-grace-period", 0, "between SIGTERM and SIGKILL; 0: 10s")
	fs.StringVar(&f.reserveCPU, "reserve-cpu", "", "processors to set aside for each task, as in 0.5")
	fs.StringVar(&f.reserveMemory, "reserve-memory", "", "memory to set aside for each task, as in 64m")
	fs.StringVar(&f.healthCommand, "health-cmd", "", "shell command that says by its exit status whether a task is healthy")
	fs.DurationVar(&f.healthInterval, "health-interval", 0, "between two checks; 0: 30s")
	fs.DurationVar(&f.healthWait, "health-timeout", 0, "for one check; 0: 30s")
	fs.DurationVar(&f.healthStart, "health-start-period", 0, "in which failed checks do not count")
	fs.IntVar(&f.healthRetries, "health-retries", 0, "failed checks in a row that make a task unhealthy; 0: 3")
	fs.BoolVar(&f.noHealth, "no-healthcheck", false, "without a health check")
	f.update.define(fs, "update-", "updated", "pause, continue or rollback, when too many new tasks fail")
	f.rollback.define(fs, "rollback-", "rolled back", "pause or continue, when too many of them fail")
}

func (f *specFlags) defineCreate(fs *flag.FlagSet) {
	f.define(fs, "")
	fs.StringVar(&f.name, "name", "", "name of the service; default: that of the image")
	fs.Var(&f.publish, "p", "short for --publish")
	fs.Var(&f.env, "e", "short for --env")
	fs.Var(&f.label, "l", "short for --label")
}

func (f *specFlags) defineUpdate(fs *flag.FlagSet) {
	f.define(fs, "-add")
	fs.Var(&f.unpublish, "publish-rm", "target port that is not published any more; may be repeated")
	fs.Var(&f.unset, "env-rm", "NAME that is not set any more; may be repeated")
	fs.Var(&f.unlabel, "label-rm", "NAME of a label to take away; may be repeated")
	fs.Var(&f.unconstrain, "constraint-rm", "constraint to take away; may be repeated")
	fs.BoolVar(&f.force, "force", false, "replace the tasks even if nothing has changed")
}

// spec is the specification of a new service. The error names all problems of the flags.
func (f *specFlags) spec(in *invocation) (cluster.ServiceSpec, error) {
	spec := cluster.ServiceSpec{Name: f.name, Replicas: f.replicas, Task: cluster.TaskSpec{
		Restart: cluster.RestartPolicy{Condition: cluster.RestartAlways},
	}}
	switch {
	case f.name == "" && f.image == "":
		return spec, usagef("service create: --name: required")
	case f.name == "":
		spec.Name = imageName(f.image)
	}
	return spec, f.edit(&spec, in)
}

// imageName is what a service of an image is called unless it was told otherwise: nginx for registry.example:5000/library/nginx:latest.
func imageName(image string) string {
	name := image[strings.LastIndex(image, "/")+1:]
	name, _, _ = strings.Cut(name, "@")
	name, _, _ = strings.Cut(name, ":")
	return name
}

// edit changes in a specification what the command line says. The error names all problems; then the specification is of no use.
func (f *specFlags) edit(spec *cluster.ServiceSpec, in *invocation) error {
	var errs []error
	t := &spec.Task
	t.Env = copied(t.Env)
	spec.Labels = copied(spec.Labels)
	change := func(name string, do func() error) {
		if in.set[name] {
			errs = append(errs, do())
		}
	}
	if len(in.command) > 0 {
		t.Command = in.command
	}
	if f.image != "" {
		t.Image = f.image
	}
	change("replicas", func() error { spec.Replicas = f.replicas; return nil })
	change("restart-condition", func() (err error) { t.Restart.Condition, err = parseRestart(f.restart); return err })
	change("restart-max-attempts", func() error { t.Restart.MaxAttempts = f.attempts; return nil })
	change("stop-grace-period", func() error { t.StopGrace = f.grace; return nil })
	change("reserve-cpu", func() (err error) { t.Reservations.NanoCPUs, err = parseCPUs(f.reserveCPU); return err })
	change("reserve-memory", func() (err error) { t.Reservations.MemoryBytes, err = parseMemory(f.reserveMemory); return err })
	f.update.edit(&spec.Update, in.set, "update-")
	f.rollback.edit(&spec.Rollback, in.set, "rollback-")
	errs = append(errs, f.editHealth(t, in.set), f.editLists(spec))
	if f.force {
		t.ForceUpdate++
	}
	if err := errors.Join(errs...); err != nil {
		return &usageError{err.Error()}
	}
	if err := spec.Validate(); err != nil {
		return &usageError{fmt.Sprintf("service %s: %v", spec.Name, err)}
	}
	return nil
}

// copied is a map that may be changed: one that came from a reader of the state belongs to all of them.
func copied(m map[string]string) map[string]string {
	c := make(map[string]string, len(m))
	for k, v := range m { // order-free
		c[k] = v
	}
	return c
}

// editLists takes away first and then adds, so that one call can replace an entry.
func (f *specFlags) editLists(spec *cluster.ServiceSpec) error {
	var errs []error
	t := &spec.Task
	for _, name := range f.unset {
		delete(t.Env, name)
	}
	for _, name := range f.unlabel {
		delete(spec.Labels, name)
	}
	add := func(what string, to map[string]string, entries list) {
		for _, e := range entries {
			name, value, ok := strings.Cut(e, "=")
			if !ok || name == "" {
				errs = append(errs, fmt.Errorf("%s %q: want NAME=value", what, e))
			}
			to[name] = value
		}
	}
	add("--env", t.Env, f.env)
	add("--label", spec.Labels, f.label)

	ports := slices.Clone(t.Ports)
	for _, text := range f.unpublish {
		target, err := strconv.ParseUint(text, 10, 16)
		isIt := func(p cluster.Port) bool { return uint64(p.Target) == target }
		if err != nil || !slices.ContainsFunc(ports, isIt) {
			errs = append(errs, fmt.Errorf("--publish-rm %q: want a target port of the service", text))
		}
		ports = slices.DeleteFunc(ports, isIt)
	}
	for _, text := range f.publish {
		port, err := parsePort(text)
		errs = append(errs, err)
		ports = append(ports, port)
	}
	t.Ports = ports

	constraints := slices.Clone(spec.Constraints)
	for _, text := range f.unconstrain {
		c, err := cluster.ParseConstraint(text)
		if err == nil && !slices.Contains(constraints, c) {
			err = fmt.Errorf("the service has no constraint %s", c)
		}
		errs = append(errs, err)
		constraints = slices.DeleteFunc(constraints, func(have cluster.Constraint) bool { return have == c })
	}
	for _, text := range f.constraint {
		c, err := cluster.ParseConstraint(text)
		errs = append(errs, err)
		constraints = append(constraints, c)
	}
	spec.Constraints = constraints
	return errors.Join(errs...)
}

// editHealth changes the health check.
func (f *specFlags) editHealth(t *cluster.TaskSpec, set map[string]bool) error {
	given := false
	for _, name := range []string{"health-cmd", "health-interval", "health-timeout", "health-start-period", "health-retries"} {
		given = given || set[name]
	}
	switch {
	case f.noHealth && given:
		return errors.New("--no-healthcheck contradicts the other flags of a health check")
	case f.noHealth:
		t.HealthCheck = nil
		return nil
	case !given:
		return nil
	}
	check := cluster.HealthCheck{Kind: cluster.HealthExec}
	if t.HealthCheck != nil {
		check = *t.HealthCheck
	}
	if set["health-cmd"] {
		check.Kind, check.Command = cluster.HealthExec, []string{"/bin/sh", "-c", f.healthCommand}
	}
	if len(check.Command) == 0 && check.Kind == cluster.HealthExec {
		return errors.New("--health-cmd: required for a health check")
	}
	if set["health-interval"] {
		check.Interval = f.healthInterval
	}
	if set["health-timeout"] {
		check.Timeout = f.healthWait
	}
	if set["health-start-period"] {
		check.StartPeriod = f.healthStart
	}
	if set["health-retries"] {
		check.Retries = f.healthRetries
	}
	t.HealthCheck = &check
	return nil
}

func parseRestart(s string) (cluster.RestartCondition, error) {
	switch s {
	case "none":
		return cluster.RestartNo, nil
	case "on-failure":
		return cluster.RestartOnFailure, nil
	case "any":
		return cluster.RestartAlways, nil
	default:
		return "", fmt.Errorf("--restart-condition %q: want none, on-failure or any", s)
	}
}

// parseCPUs reads a number of processors, in steps of 10⁻⁹; none, as "" or 0.
func parseCPUs(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || !(n >= 0 && n <= 1e6) {
		return 0, fmt.Errorf("--reserve-cpu %q: want a number of processors, as in 0.5", s)
	}
	return int64(math.Round(n * cluster.OneCPU)), nil
}

// parseMemory reads a size as Docker does: 64m are 64 MiB.
func parseMemory(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := units.RAMInBytes(s)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("--reserve-memory %q: want a size, as in 64m or 2g", s)
	}
	return n, nil
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
