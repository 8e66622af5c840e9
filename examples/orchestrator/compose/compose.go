// Package compose reads Compose files. It accepts the part of the specification that this orchestrator carries out and refuses
// everything else by its full name: a key that is ignored is a promise that is broken later.
//
// Supported, below services.NAME: command, image, environment, ports, restart, deploy.replicas, healthcheck (test, interval,
// timeout, retries, start_period, disable), depends_on (with the conditions service_started and service_healthy) and
// stop_grace_period. At the top: name, version and services. Keys that begin with x- are extensions, which the specification
// itself leaves without meaning.
package compose

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"go.yaml.in/yaml/v3"

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
}

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
	// The keys come first: the loader itself would open the files that some unsupported keys name.
	if err := checkKeys(content); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	details := types.ConfigDetails{
		WorkingDir:  filepath.Dir(abs),
		ConfigFiles: []types.ConfigFile{{Filename: path, Content: content}},
		Environment: maps.Clone(env), // the loader writes into it
	}
	loaded, err := loader.LoadWithContext(ctx, details, func(o *loader.Options) {
		o.SetProjectName(loader.NormalizeProjectName(filepath.Base(details.WorkingDir)), false)
		o.SkipNormalization = true // it adds networks, which nobody asked for
		o.SkipInclude, o.SkipExtends = true, true
		o.SkipConsistencyCheck = true // it wants an image of every service; what else it checks and we support is checked below
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}

	p := &Project{Name: loaded.Name}
	r := &reader{project: loaded.Name}
	published := map[uint16]string{}
	for _, name := range slices.Sorted(maps.Keys(loaded.Services)) {
		spec := r.service(name, loaded.Services[name])
		for _, port := range spec.Task.Ports {
			if other, taken := published[port.Published]; taken && other != name {
				r.bad("services.%s.ports: port %d is published by service %s already", name, port.Published, other)
			}
			published[port.Published] = name
		}
		p.Services = append(p.Services, spec)
	}
	r.dependencies(loaded.Services)
	if len(p.Services) == 0 {
		r.bad("services: none")
	}
	if err := errors.Join(r.problems...); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

// keys is the supported subset: nil accepts whatever the specification accepts there, a map accepts its keys, and "*" stands for
// every name that the user chooses.
type keys map[string]keys

var supported = keys{
	"name":    nil,
	"version": nil, // obsolete, and without effect in the specification too
	"services": {"*": {
		"command":           nil,
		"image":             nil,
		"environment":       nil,
		"ports":             nil, // see reader.port
		"restart":           nil,
		"deploy":            {"replicas": nil},
		"healthcheck":       {"test": nil, "interval": nil, "timeout": nil, "retries": nil, "start_period": nil, "disable": nil},
		"depends_on":        {"*": {"condition": nil}},
		"stop_grace_period": nil,
	}},
}

// checkKeys reports every key that is not supported.
func checkKeys(content []byte) error {
	var problems []error
	for decoder := yaml.NewDecoder(bytes.NewReader(content)); ; {
		var document any
		if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
			return errors.Join(problems...)
		} else if err != nil {
			return err
		}
		problems = append(problems, unsupported("", document, supported)...)
	}
}

// unsupported walks through what is a mapping; what is not is left to the schema of the specification.
func unsupported(path string, value any, allowed keys) []error {
	mapping, ok := value.(map[string]any)
	if !ok || allowed == nil {
		return nil
	}
	var problems []error
	for _, key := range slices.Sorted(maps.Keys(mapping)) {
		full := strings.TrimPrefix(path+"."+key, ".")
		below, ok := allowed[key]
		if any, isName := allowed["*"]; isName {
			below, ok = any, true
		}
		switch {
		case ok:
			problems = append(problems, unsupported(full, mapping[key], below)...)
		case !strings.HasPrefix(key, "x-"):
			problems = append(problems, fmt.Errorf("%s: not supported", full))
		}
	}
	return problems
}

// reader turns services into specifications and collects what is wrong with them.
type reader struct {
	project  string
	problems []error
}

func (r *reader) bad(format string, args ...any) {
	r.problems = append(r.problems, fmt.Errorf(format, args...))
}

func (r *reader) service(name string, c types.ServiceConfig) cluster.ServiceSpec {
	before := len(r.problems)
	path := "services." + name
	spec := cluster.ServiceSpec{
		Name:     r.project + "_" + name,
		Labels:   map[string]string{ProjectLabel: r.project, ServiceLabel: name},
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
	for _, other := range slices.Sorted(maps.Keys(c.DependsOn)) {
		switch condition := c.DependsOn[other].Condition; condition {
		case types.ServiceConditionStarted, types.ServiceConditionHealthy: // a task with a health check serves when that has passed
			spec.DependsOn = append(spec.DependsOn, r.project+"_"+other)
		default:
			r.bad("%s.depends_on.%s.condition: %s: not supported", path, other, condition)
		}
	}
	if len(r.problems) == before { // else the same problem would be reported twice
		if err := spec.Validate(); err != nil {
			r.bad("%s: %w", path, err)
		}
	}
	return spec
}

// dependencies reports services that wait for what does not exist, or for each other in a circle.
func (r *reader) dependencies(services types.Services) {
	const visiting, visited = 1, 2
	state := map[string]int{}
	var visit func(name string)
	visit = func(name string) {
		state[name] = visiting
		for _, other := range slices.Sorted(maps.Keys(services[name].DependsOn)) {
			if _, ok := services[other]; !ok {
				r.bad("services.%s.depends_on.%s: no such service", name, other)
			} else if state[other] == visiting {
				r.bad("services.%s.depends_on.%s: they wait for each other", name, other)
			} else if state[other] == 0 {
				visit(other)
			}
		}
		state[name] = visited
	}
	for _, name := range slices.Sorted(maps.Keys(services)) {
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
		r.bad("%s.restart: %q: want no, always, on-failure[:N] or unless-stopped", path, s)
	}
	if limited {
		n, err := strconv.Atoi(attempts)
		if err != nil || n < 1 || p.Condition != cluster.RestartOnFailure {
			r.bad("%s.restart: %q: want no, always, on-failure[:N] or unless-stopped", path, s)
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
			r.bad("%s.retries: %d: want at most 1000", path, *c.Retries)
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
		r.bad("%s.test: %q: want NONE, CMD with a command, or CMD-SHELL with one line", path, []string(c.Test))
	}
	return h
}

// port accepts what can be published on every node: one number to one number, TCP.
func (r *reader) port(path string, c types.ServicePortConfig) cluster.Port {
	path += ".ports"
	published, err := strconv.ParseUint(c.Published, 10, 16)
	switch {
	case c.Published == "":
		r.bad("%s: %d: a published port is required", path, c.Target)
	case err != nil || published == 0:
		r.bad("%s: published port %q: want a number from 1 to 65535", path, c.Published)
	}
	if c.Target == 0 || c.Target > 65535 {
		r.bad("%s: target port %d: want a number from 1 to 65535", path, c.Target)
	}
	if c.Protocol != "" && c.Protocol != "tcp" {
		r.bad("%s: protocol %s: not supported", path, c.Protocol)
	}
	if c.HostIP != "" {
		r.bad("%s: host_ip %s: not supported", path, c.HostIP)
	}
	if c.Mode != "" && c.Mode != "ingress" {
		r.bad("%s: mode %s: not supported", path, c.Mode)
	}
	if c.Name != "" || c.AppProtocol != "" {
		r.bad("%s: name and app_protocol: not supported", path)
	}
	return cluster.Port{Published: uint16(published), Target: uint16(c.Target)}
}

func duration(d *types.Duration) time.Duration {
	if d == nil {
		return 0
	}
	return time.Duration(*d)
}
