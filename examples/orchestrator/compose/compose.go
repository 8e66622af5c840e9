// Package compose reads Compose files. It accepts the part of the specification that this orchestrator carries out and refuses
// everything else by its full name: a key that is ignored is a promise that is broken later.
//
// Supported, below services.NAME: command, image, environment, ports, restart, deploy (replicas, update_config, rollback_config,
// placement.constraints, resources.reservations of cpus and memory), healthcheck (test, interval, timeout, retries, start_period,
// disable), depends_on (with its conditions) and stop_grace_period. At the top: name, version and services. Keys that begin with x- are extensions, which the specification
// itself leaves without meaning.
package compose

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// Labels of the services of a project, as Docker writes them.
const (
	ProjectLabel = "com.docker.compose.project"
	ServiceLabel = "com.docker.compose.service"
)

// maxFileBytes bounds a Compose file.
const maxFileBytes = 1 << 20

// Project is a Compose file, read.
type Project struct {
	Name     string
	Services []cluster.ServiceSpec // by name; their names are PROJECT_SERVICE, and so are those in DependsOn
	Waits    map[string][]Wait     // of a service, by its name, before it is created; in the order of DependsOn
}

// Wait is what a service waits for.
type Wait struct {
	For       string // the name of another service
	Condition Condition
}

// Condition says how far that other service has to be. The texts are those of the specification.
type Condition string

// The conditions.
const (
	Started   Condition = types.ServiceConditionStarted
	Healthy   Condition = types.ServiceConditionHealthy
	Completed Condition = types.ServiceConditionCompletedSuccessfully
)

// Load reads a file. env is what ${NAME} and environment entries without a value refer to.
func Load(ctx context.Context, path string, env map[string]string) (*Project, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return Parse(ctx, path, content, env)
}

// Parse reads the content of a file. The project is called what the file says, or else as the directory of path. The error joins
// all problems of the file.
func Parse(ctx context.Context, path string, content []byte, env map[string]string) (*Project, error) {
	if len(content) > maxFileBytes {
		return nil, fmt.Errorf("%s: larger than %d bytes", path, maxFileBytes)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	f, err := readFile(path, content)
	if err != nil {
		return nil, err
	}
	// The keys come first: the loader itself would open the files that some unsupported keys name.
	f.checkKeys()
	loaded, err := f.load(ctx, filepath.Dir(abs), env)
	if err != nil {
		return nil, err
	}

	p := &Project{Name: loaded.Name, Waits: map[string][]Wait{}}
	r := &reader{file: f, project: p, services: loaded.Services}
	published := map[uint16]string{}
	for _, name := range slices.Sorted(maps.Keys(loaded.Services)) {
		spec := r.service(name, loaded.Services[name])
		for _, port := range spec.Task.Ports {
			if other, taken := published[port.Published]; taken && other != name {
				r.bad("services."+name+".ports", "port %d is published by service %s already", port.Published, other)
			}
			published[port.Published] = name
		}
		p.Services = append(p.Services, spec)
	}
	r.dependencies()
	if len(p.Services) == 0 && len(f.problems) == 0 {
		r.bad("services", "none")
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	return p, nil
}

// load has Docker's own parser read what is left of the file. It stops at the first problem; that is taken out then, to find the next one.
func (f *file) load(ctx context.Context, dir string, env map[string]string) (*types.Project, error) {
	for {
		content, err := f.remains()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		details := types.ConfigDetails{
			WorkingDir:  dir,
			ConfigFiles: []types.ConfigFile{{Filename: f.name, Content: content}},
			Environment: maps.Clone(env), // the loader writes into it
		}
		loaded, err := loader.LoadWithContext(ctx, details, func(o *loader.Options) {
			o.SetProjectName(loader.NormalizeProjectName(filepath.Base(dir)), false)
			o.SkipNormalization = true // it adds networks, which nobody asked for
			o.SkipInclude, o.SkipExtends = true, true
			o.SkipConsistencyCheck = true // it wants an image of every service; what else it checks and we support is checked below
		})
		if err == nil {
			return loaded, nil
		}
		if !f.refused(err) {
			return nil, f.err()
		}
	}
}

// keys is the supported subset: nil accepts whatever the specification accepts there, a map accepts its keys, and "*" stands for
// every name that the user chooses.
type keys map[string]keys

var rollout = keys{"parallelism": nil, "delay": nil, "failure_action": nil, "monitor": nil, "max_failure_ratio": nil, "order": nil}

var supported = keys{
	"name":    nil,
	"version": nil, // obsolete, and without effect in the specification too
	"services": {"*": {
		"command":     nil,
		"image":       nil,
		"environment": nil,
		"ports":       nil, // see reader.port
		"restart":     nil,
		"deploy": {
			"replicas": nil, "update_config": rollout, "rollback_config": rollout, "placement": {"constraints": nil},
			"resources": {"reservations": {"cpus": nil, "memory": nil}},
		},
		"healthcheck":       {"test": nil, "interval": nil, "timeout": nil, "retries": nil, "start_period": nil, "disable": nil},
		"depends_on":        {"*": {"condition": nil}},
		"stop_grace_period": nil,
	}},
}

// reader turns services into specifications.
type reader struct {
	*file
	project  *Project
	services types.Services
}

func (r *reader) service(name string, c types.ServiceConfig) cluster.ServiceSpec {
	path := "services." + name
	spec := cluster.ServiceSpec{
		Name:     r.project.Name + "_" + name,
		Labels:   map[string]string{ProjectLabel: r.project.Name, ServiceLabel: name},
		Replicas: c.GetScale(),
		Task: cluster.TaskSpec{
			Image:       c.Image,
			Command:     c.Command,
			Env:         environment(c.Environment),
			Restart:     r.restart(path, c.Restart),
			HealthCheck: r.healthCheck(path, c.HealthCheck),
			StopGrace:   duration(c.StopGracePeriod),
		},
	}
	for _, p := range c.Ports {
		spec.Task.Ports = append(spec.Task.Ports, r.port(path, p))
	}
	r.deploy(path+".deploy", c.Deploy, &spec)
	for _, other := range slices.Sorted(maps.Keys(c.DependsOn)) {
		wait := Wait{For: r.project.Name + "_" + other, Condition: Condition(c.DependsOn[other].Condition)}
		at := path + ".depends_on." + other
		switch wait.Condition {
		case Started, Healthy:
		case Completed:
			if policy := r.services[other].Restart; policy == string(cluster.RestartAlways) || policy == string(cluster.RestartUnlessStopped) {
				r.bad(at, "service %s has `restart: %s`, so it never completes", other, policy)
			}
		default:
			r.bad(at+".condition", "%s: want %s, %s or %s", wait.Condition, Started, Healthy, Completed)
		}
		spec.DependsOn = append(spec.DependsOn, wait.For)
		r.project.Waits[spec.Name] = append(r.project.Waits[spec.Name], wait)
	}
	if r.sound(path) { // else the same problem would be reported twice, or what was taken out would be missed
		if err := spec.Validate(); err != nil {
			r.bad(path, "%v", err)
		}
	}
	return spec
}

// deploy reads what the specification says about running a service in a cluster.
func (r *reader) deploy(path string, c *types.DeployConfig, spec *cluster.ServiceSpec) {
	if c == nil {
		return
	}
	for _, text := range c.Placement.Constraints {
		constraint, err := cluster.ParseConstraint(text)
		if err != nil {
			r.bad(path+".placement.constraints", "%v", err)
		}
		spec.Constraints = append(spec.Constraints, constraint)
	}
	if reserved := c.Resources.Reservations; reserved != nil {
		// The parser has made a 32-bit fraction of it, which is good to six digits.
		spec.Task.Reservations = cluster.Resources{
			NanoCPUs: int64(math.Round(float64(reserved.NanoCPUs)*1e6)) * (cluster.OneCPU / 1e6), MemoryBytes: int64(reserved.MemoryBytes),
		}
	}
	spec.Update = r.rollout(path+".update_config", c.UpdateConfig)
	spec.Rollback = r.rollout(path+".rollback_config", c.RollbackConfig)
}

func (r *reader) rollout(path string, c *types.UpdateConfig) cluster.UpdateConfig {
	if c == nil {
		return cluster.UpdateConfig{}
	}
	u := cluster.UpdateConfig{
		Delay: time.Duration(c.Delay), Monitor: time.Duration(c.Monitor), FailureAction: cluster.FailureAction(c.FailureAction),
		MaxFailureRatio: float64(c.MaxFailureRatio), Order: cluster.UpdateOrder(c.Order),
	}
	switch n := c.Parallelism; {
	case n == nil:
	case *n == 0:
		u.Parallelism = cluster.AllAtOnce
	case *n > cluster.MaxReplicas:
		r.bad(path+".parallelism", "%d: want at most %d", *n, cluster.MaxReplicas)
	default:
		u.Parallelism = int(*n)
	}
	return u
}

// dependencies reports services that wait for what does not exist, or for each other in a circle.
func (r *reader) dependencies() {
	const visiting, visited = 1, 2
	state := map[string]int{}
	var visit func(name string)
	visit = func(name string) {
		state[name] = visiting
		for _, other := range slices.Sorted(maps.Keys(r.services[name].DependsOn)) {
			at := fmt.Sprintf("services.%s.depends_on.%s", name, other)
			if _, ok := r.services[other]; !ok {
				if r.sound("services." + other) { // else it was taken out
					r.bad(at, "no such service")
				}
			} else if state[other] == visiting {
				r.bad(at, "they wait for each other")
			} else if state[other] == 0 {
				visit(other)
			}
		}
		state[name] = visited
	}
	for _, name := range slices.Sorted(maps.Keys(r.services)) {
		if state[name] == 0 {
			visit(name)
		}
	}
}

// environment drops the entries that have no value here either, as Docker does.
func environment(m types.MappingWithEquals) map[string]string {
	var env map[string]string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if m[k] == nil {
			continue
		}
		if env == nil {
			env = map[string]string{}
		}
		env[k] = *m[k]
	}
	return env
}

func (r *reader) restart(path, s string) cluster.RestartPolicy {
	condition, attempts, limited := strings.Cut(s, ":")
	p := cluster.RestartPolicy{Condition: cluster.RestartCondition(condition)}
	switch p.Condition {
	case "":
		p.Condition = cluster.RestartNo
	case cluster.RestartNo, cluster.RestartAlways, cluster.RestartOnFailure, cluster.RestartUnlessStopped:
	default:
		r.bad(path+".restart", "%q: want no, always, on-failure[:N] or unless-stopped", s)
	}
	if limited {
		n, err := strconv.Atoi(attempts)
		if err != nil || n < 1 || p.Condition != cluster.RestartOnFailure {
			r.bad(path+".restart", "%q: want no, always, on-failure[:N] or unless-stopped", s)
		}
		p.MaxAttempts = n
	}
	return p
}

func (r *reader) healthCheck(path string, c *types.HealthCheckConfig) *cluster.HealthCheck {
	path += ".healthcheck"
	if c == nil || c.Disable {
		return nil
	}
	h := &cluster.HealthCheck{
		Kind: cluster.HealthExec, Interval: duration(c.Interval), Timeout: duration(c.Timeout), StartPeriod: duration(c.StartPeriod),
	}
	if c.Retries != nil {
		if *c.Retries > 1000 {
			r.bad(path+".retries", "%d: want at most 1000", *c.Retries)
		}
		h.Retries = int(min(*c.Retries, 1000))
	}
	kind := ""
	if len(c.Test) > 0 {
		kind, h.Command = c.Test[0], c.Test[1:]
	}
	switch {
	case kind == "NONE" && len(h.Command) == 0:
		return nil
	case kind == "CMD" && len(h.Command) > 0:
	case kind == "CMD-SHELL" && len(h.Command) == 1:
		h.Command = []string{"/bin/sh", "-c", h.Command[0]}
	default:
		r.bad(path+".test", "%q: want NONE, CMD with a command, or CMD-SHELL with one line", []string(c.Test))
	}
	return h
}

// port accepts what can be published on every node: one number to one number, TCP.
func (r *reader) port(path string, c types.ServicePortConfig) cluster.Port {
	path += ".ports"
	published, err := strconv.ParseUint(c.Published, 10, 16)
	switch {
	case c.Published == "":
		r.bad(path, "%d: a published port is required", c.Target)
	case err != nil || published == 0:
		r.bad(path, "published port %q: want a number from 1 to 65535", c.Published)
	}
	if c.Target == 0 || c.Target > 65535 {
		r.bad(path, "target port %d: want a number from 1 to 65535", c.Target)
	}
	if c.Protocol != "" && c.Protocol != "tcp" {
		r.bad(path, "protocol %s: not supported", c.Protocol)
	}
	if c.HostIP != "" {
		r.bad(path, "host_ip %s: not supported", c.HostIP)
	}
	if c.Mode != "" && c.Mode != "ingress" {
		r.bad(path, "mode %s: not supported", c.Mode)
	}
	if c.Name != "" || c.AppProtocol != "" {
		r.bad(path, "name and app_protocol: not supported")
	}
	return cluster.Port{Published: uint16(published), Target: uint16(c.Target)}
}

func duration(d *types.Duration) time.Duration {
	if d == nil {
		return 0
	}
	return time.Duration(*d)
}
