// Package docker runs a task as a container of a Docker Engine, through the engine's official Go client.
//
// The engine is the only record of what runs: each container carries labels with its cluster, its node and what the agent has noted, so
// an agent that comes back adopts what it finds, as it is. There is one authority that restarts, the agent: the engine's own restart
// policy is off, and so is the health check of the image. Images are never pulled; what is not on the node is an error that says so.
//
// Where a task is reached depends on the node's address. On a loopback address all nodes share this machine, and a task is reached at its
// container's own address. On any other address the target ports are bound to free ports of it. The difference matters while a
// container has started and does not listen yet: its own address refuses a connection, and so does the engine's packet filter, but the
// engine's proxy on loopback addresses would accept it and then drop it, and a client would have lost a request.
package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"github.com/steadyraft/raft/examples/orchestrator/runtime"
)

// DefaultHost is where an engine listens unless it was told otherwise.
const DefaultHost = client.DefaultDockerHost

// Labels of the containers, besides those of the agent.
const (
	ClusterLabel  = "io.steadyraft.orchestrator.cluster"
	NodeLabel     = "io.steadyraft.orchestrator.node"
	InstanceLabel = "io.steadyraft.orchestrator.instance"
	portsLabel    = "io.steadyraft.orchestrator.ports" // the target ports, in JSON
)

const (
	waitTimeout      = time.Minute      // of one request that waits for an end; then it looks, and waits again
	killPatience     = 10 * time.Second // how long a SIGKILL may take
	retryUnavailable = 250 * time.Millisecond
	maxRetryPause    = 5 * time.Second
	defaultLogBytes  = 2 << 20
	keptLogBytes     = 256 << 10 // of the output of former runs of an instance
	keptLogFiles     = 100       // of instances, the newest
)

// Options configures a Runtime. Cluster, Node and Directory are required.
type Options struct {
	Host      string // of the engine: unix:///path or tcp://host:port without TLS. Default: DefaultHost
	Cluster   string // with Node, whose containers these are: several nodes may share an engine
	Node      string
	Directory string       // for the output of former runs, made when there is some
	Logger    *slog.Logger // default: none
	// CallTimeout bounds a request to the engine. Default 30 s: an engine on a busy machine takes seconds to start a container.
	CallTimeout time.Duration
}

// Runtime runs containers. Make it with New and close it in the end; it has no goroutines of its own besides those of calls under way.
type Runtime struct {
	opts   Options
	prefix string // of its containers' names
	direct bool   // the containers' own addresses can be reached
	engine *client.Client

	negotiating sync.Mutex // of the version of the API, once, before anything else
	negotiated  bool

	mu    sync.Mutex
	execs map[string]string // by instance: a command that nobody waits for any more, and which may still run
}

var _ runtime.Runtime = (*Runtime)(nil)

// New makes a runtime. It does not talk to the engine; Ping does.
func New(opts Options) (*Runtime, error) {
	if opts.Cluster == "" || opts.Node == "" || opts.Directory == "" {
		return nil, errors.New("docker runtime: cluster, node and directory are required")
	}
	if opts.Host == "" {
		opts.Host = DefaultHost
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.CallTimeout <= 0 {
		opts.CallTimeout = 30 * time.Second
	}
	if err := CheckHost(opts.Host); err != nil {
		return nil, err
	}
	engine, err := client.New(client.WithHost(opts.Host))
	if err != nil {
		return nil, fmt.Errorf("docker host %s: %w", opts.Host, err)
	}
	return &Runtime{
		opts: opts, engine: engine, prefix: opts.Cluster + "." + opts.Node + ".", execs: make(map[string]string),
		direct: goruntime.GOOS == "linux" && strings.HasPrefix(opts.Host, "unix://"),
	}, nil
}

// CheckHost says what is wrong with an engine's address.
func CheckHost(host string) error {
	scheme, rest, _ := strings.Cut(host, "://")
	if rest == "" || scheme != "unix" && scheme != "tcp" {
		return fmt.Errorf("docker host %q: want unix:///path/to/docker.sock or tcp://host:port", host)
	}
	return nil
}

// Close ends the idle connections to the engine. Containers are left as they are.
func (r *Runtime) Close() error { return r.engine.Close() }

var idPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)

// name returns the container's name for an ID, which may have come from the network and must not become part of another path.
func (r *Runtime) name(id string) (string, error) {
	if !idPattern.MatchString(id) {
		return "", fmt.Errorf("instance ID %q: want 1 to 128 letters, digits, '-', '_' or '.'", id)
	}
	return r.prefix + id, nil
}

// Prepare implements runtime.Runtime.
func (r *Runtime) Prepare(ctx context.Context, spec runtime.Spec) error {
	name, err := r.name(spec.ID)
	if err != nil {
		return err
	}
	options, err := r.definition(name, spec)
	if err != nil {
		return fmt.Errorf("instance %s: %w", spec.ID, err)
	}
	if err := r.clear(ctx, spec.ID, name, true); err != nil {
		return err
	}
	_, err = call(ctx, r, func(ctx context.Context) (client.ContainerCreateResult, error) {
		return r.engine.ContainerCreate(ctx, options)
	})
	if errdefs.IsNotFound(err) { // the engine's client never pulls; that is a feature of the docker command
		return fmt.Errorf("image %s is not on node %s: build, load or import it there, images are never pulled", spec.Image, r.opts.Node)
	}
	if err != nil {
		return fmt.Errorf("create a container of %s: %w", spec.Image, err)
	}
	return nil
}

// definition is the container that a spec asks for.
func (r *Runtime) definition(name string, spec runtime.Spec) (options client.ContainerCreateOptions, err error) {
	if spec.Image == "" {
		return options, errors.New("no image: this node runs containers; give the service an image, or run it on a node with `--runtime process`")
	}
	targets := make([]uint16, 0, len(spec.Ports))
	exposed, bindings := network.PortSet{}, network.PortMap{}
	for _, p := range spec.Ports {
		port, _ := network.PortFrom(p.Target, network.TCP)
		address, err := netip.ParseAddrPort(p.Address)
		if err != nil {
			return options, fmt.Errorf("address of target port %d: %w", p.Target, err)
		}
		targets = append(targets, p.Target)
		exposed[port] = struct{}{}
		if !r.direct || !address.Addr().IsLoopback() {
			bindings[port] = []network.PortBinding{{HostIP: address.Addr(), HostPort: strconv.Itoa(int(address.Port()))}}
		}
	}
	ports, err := json.Marshal(targets)
	if err != nil {
		return options, err
	}
	labels := map[string]string{}
	for key, value := range spec.Labels {
		labels[key] = value
	}
	labels[ClusterLabel], labels[NodeLabel], labels[InstanceLabel], labels[portsLabel] = r.opts.Cluster, r.opts.Node, spec.ID, string(ports)
	logBytes := spec.LogMaxBytes
	if logBytes <= 0 {
		logBytes = defaultLogBytes
	}
	// In a container a task has all ports for itself, so it listens where its image always does.
	listen := runtime.ListenEnv("0.0.0.0", spec.Ports, func(p runtime.Port) string { return strconv.Itoa(int(p.Target)) })
	options.Name = name
	options.Config = &container.Config{
		Image: spec.Image, Cmd: spec.Command, Env: slices.Concat(spec.Env, listen), WorkingDir: spec.Dir, StopSignal: spec.StopSignal,
		Labels: labels, ExposedPorts: exposed, Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
	}
	options.HostConfig = &container.HostConfig{
		PortBindings:  bindings,
		RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyDisabled},
		LogConfig: container.LogConfig{Type: "json-file", Config: map[string]string{
			"max-size": strconv.FormatInt(max(logBytes/2, 1), 10), "max-file": "2",
		}},
	}
	return options, nil
}

// Start implements runtime.Runtime.
func (r *Runtime) Start(ctx context.Context, id string) ([]runtime.Port, error) {
	c, err := r.inspect(ctx, id)
	if err != nil {
		return nil, err
	}
	if c.State.Running {
		return nil, fmt.Errorf("instance %s: %w", id, runtime.ErrRunning)
	}
	if !started(c).IsZero() {
		return nil, fmt.Errorf("instance %s has run already: prepare it again", id)
	}
	_, err = call(ctx, r, func(ctx context.Context) (client.ContainerStartResult, error) {
		return r.engine.ContainerStart(ctx, c.ID, client.ContainerStartOptions{})
	})
	switch {
	case err != nil && (strings.Contains(err.Error(), "port is already allocated") || strings.Contains(err.Error(), "address already in use")):
		return nil, fmt.Errorf("instance %s: %w: %w", id, runtime.ErrPortInUse, err)
	case err != nil:
		return nil, fmt.Errorf("instance %s: %w", id, err)
	}
	if c, err = r.inspect(ctx, id); err != nil {
		return nil, err
	}
	ports, err := r.ports(c)
	if err != nil && !c.State.Running {
		return nil, nil // it has ended already, and has no address any more: nobody will reach it, and Wait says how it ended
	}
	return ports, err
}

// ports returns where a running container is reached.
func (r *Runtime) ports(c container.InspectResponse) (ports []runtime.Port, err error) {
	var targets []uint16
	if err := json.Unmarshal([]byte(c.Config.Labels[portsLabel]), &targets); err != nil {
		return nil, fmt.Errorf("label %s of container %s: %w", portsLabel, c.Name, err)
	}
	for _, target := range targets {
		port, _ := network.PortFrom(target, network.TCP)
		address := ""
		if bound := c.HostConfig.PortBindings[port]; len(bound) > 0 {
			address = net.JoinHostPort(bound[0].HostIP.String(), bound[0].HostPort)
		} else {
			for _, at := range c.NetworkSettings.Networks {
				if at != nil && at.IPAddress.IsValid() {
					address = netip.AddrPortFrom(at.IPAddress, target).String()
				}
			}
		}
		if address == "" {
			return nil, fmt.Errorf("container %s has no network address", c.Name)
		}
		ports = append(ports, runtime.Port{Target: target, Address: address})
	}
	return ports, nil
}

// Stop implements runtime.Runtime. It does not leave the waiting to the engine, which counts in whole seconds.
func (r *Runtime) Stop(ctx context.Context, id string, grace time.Duration) error {
	c, err := r.inspect(ctx, id)
	if err != nil || !c.State.Running {
		return err
	}
	if grace > 0 {
		signal := c.Config.StopSignal
		if signal == "" {
			signal = "SIGTERM"
		}
		if err := r.signal(ctx, c.ID, signal); err != nil && !errors.Is(err, runtime.ErrNotRunning) {
			return fmt.Errorf("stop instance %s: %w", id, err)
		}
		if ended, err := r.awaitEnd(ctx, c.ID, grace); err != nil || ended {
			return err
		}
	}
	if err := r.signal(ctx, c.ID, "SIGKILL"); err != nil && !errors.Is(err, runtime.ErrNotRunning) {
		return fmt.Errorf("stop instance %s: %w", id, err)
	}
	if ended, err := r.awaitEnd(ctx, c.ID, killPatience); err != nil || ended {
		return err
	}
	return fmt.Errorf("stop instance %s: it survives SIGKILL, which only a stuck system call does", id)
}

// Kill implements runtime.Runtime.
func (r *Runtime) Kill(ctx context.Context, id string) error {
	name, err := r.name(id)
	if err != nil {
		return err
	}
	if err := r.signal(ctx, name, "SIGKILL"); errdefs.IsNotFound(err) {
		return fmt.Errorf("instance %s: %w", id, runtime.ErrNotFound)
	} else if err != nil {
		return fmt.Errorf("instance %s: %w", id, err)
	}
	return nil
}

func (r *Runtime) signal(ctx context.Context, containerID, signal string) error {
	_, err := call(ctx, r, func(ctx context.Context) (client.ContainerKillResult, error) {
		return r.engine.ContainerKill(ctx, containerID, client.ContainerKillOptions{Signal: signal})
	})
	if errdefs.IsConflict(err) {
		return runtime.ErrNotRunning
	}
	return err
}

// awaitEnd waits for the end of a container, at most for patience.
func (r *Runtime) awaitEnd(ctx context.Context, containerID string, patience time.Duration) (ended bool, err error) {
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = r.waitOnce(within, containerID)
	switch {
	case err == nil, errdefs.IsNotFound(err):
		return true, nil
	case ctx.Err() != nil:
		return false, ctx.Err()
	case within.Err() != nil:
		return false, nil
	default:
		return false, unavailable(err)
	}
}

// waitOnce returns nil once a container does not run.
func (r *Runtime) waitOnce(ctx context.Context, containerID string) error {
	ctx, cancel := context.WithCancel(ctx) // ends the request
	defer cancel()
	if err := r.negotiate(ctx); err != nil {
		return err
	}
	wait := r.engine.ContainerWait(ctx, containerID, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
	select {
	case err := <-wait.Error:
		return err
	case <-wait.Result:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Wait implements runtime.Runtime. An engine that does not answer says nothing about the container, so Wait goes on until it does.
func (r *Runtime) Wait(ctx context.Context, id string) (runtime.ExitStatus, error) {
	pause := retryUnavailable
	for {
		c, err := r.inspect(ctx, id)
		switch {
		case ctx.Err() != nil:
			return runtime.ExitStatus{}, ctx.Err()
		case errors.Is(err, runtime.ErrUnavailable):
			r.opts.Logger.Warn("waiting for the container engine", "instance", id, "error", err)
		case err != nil:
			return runtime.ExitStatus{}, err
		case !c.State.Running && started(c).IsZero():
			return runtime.ExitStatus{}, fmt.Errorf("instance %s was never started: %w", id, runtime.ErrNotRunning)
		case !c.State.Running:
			return exitStatus(c), nil
		default:
			within, cancel := context.WithTimeout(ctx, waitTimeout)
			err = r.waitOnce(within, c.ID)
			cancel()
			if err == nil {
				pause = retryUnavailable
				continue
			}
		}
		select {
		case <-ctx.Done():
			return runtime.ExitStatus{}, ctx.Err()
		case <-time.After(pause):
			pause = min(2*pause, maxRetryPause)
		}
	}
}

// exitStatus is how a container that has run and does not run any more has ended.
func exitStatus(c container.InspectResponse) runtime.ExitStatus {
	status := runtime.ExitStatus{Code: c.State.ExitCode, Error: c.State.Error, At: timestamp(c.State.FinishedAt)}
	if c.State.OOMKilled {
		status.Error = fmt.Sprintf("out of memory, exit code %d", c.State.ExitCode)
	}
	if status.At.IsZero() {
		status.At = time.Now()
	}
	return status
}

// Adopt implements runtime.Runtime. Of each Spec it tells what the container's labels and addresses say.
func (r *Runtime) Adopt(ctx context.Context) ([]runtime.Instance, error) {
	filters := client.Filters{}.Add("label", ClusterLabel+"="+r.opts.Cluster, NodeLabel+"="+r.opts.Node)
	list, err := call(ctx, r, func(ctx context.Context) (client.ContainerListResult, error) {
		return r.engine.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: filters})
	})
	if err != nil {
		return nil, fmt.Errorf("list the containers of node %s: %w", r.opts.Node, err)
	}
	var found []runtime.Instance
	for _, summary := range list.Items {
		id := summary.Labels[InstanceLabel]
		if name, err := r.name(id); err != nil || !slices.Contains(summary.Names, "/"+name) {
			continue // somebody has copied our labels
		}
		c, err := r.inspect(ctx, id)
		if errors.Is(err, runtime.ErrNotFound) {
			continue // removed since it was listed
		} else if err != nil {
			return nil, err
		}
		instance := runtime.Instance{
			Spec:    runtime.Spec{ID: id, Image: c.Config.Image, Command: c.Config.Cmd, Labels: map[string]string{}},
			Running: c.State.Running, PID: c.State.Pid, StartedAt: started(c),
		}
		for key, value := range c.Config.Labels {
			if !slices.Contains([]string{ClusterLabel, NodeLabel, InstanceLabel, portsLabel}, key) {
				instance.Spec.Labels[key] = value
			}
		}
		if instance.Running {
			if instance.Spec.Ports, err = r.ports(c); err != nil {
				return nil, err
			}
		} else if !instance.StartedAt.IsZero() {
			instance.Exit = exitStatus(c)
		}
		found = append(found, instance)
	}
	return found, nil
}

// Retire implements runtime.Runtime: the container goes, its output stays.
func (r *Runtime) Retire(ctx context.Context, id string) error {
	name, err := r.name(id)
	if err != nil {
		return err
	}
	if err := r.clear(ctx, id, name, true); err != nil {
		return err
	}
	return r.pruneLogs()
}

// Remove implements runtime.Runtime.
func (r *Runtime) Remove(ctx context.Context, id string) error {
	name, err := r.name(id)
	if err != nil {
		return err
	}
	if err := r.clear(ctx, id, name, false); err != nil {
		return err
	}
	return r.forgetLogs(id)
}

// clear removes a container that does not run, with its file system and its anonymous volumes. Its output can be kept.
func (r *Runtime) clear(ctx context.Context, id, name string, keepLogs bool) error {
	c, err := r.inspect(ctx, id)
	if errors.Is(err, runtime.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	if c.State.Running {
		return fmt.Errorf("instance %s: %w", id, runtime.ErrRunning)
	}
	if keepLogs && !started(c).IsZero() {
		if err := r.keepLogs(ctx, id, c.ID); err != nil {
			r.opts.Logger.Warn("the output of an ended container is lost", "instance", id, "error", err)
		}
	}
	_, err = call(ctx, r, func(ctx context.Context) (client.ContainerRemoveResult, error) {
		return r.engine.ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{RemoveVolumes: true})
	})
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove container %s: %w", name, err)
	}
	r.mu.Lock()
	delete(r.execs, id)
	r.mu.Unlock()
	return nil
}

// logFile is where the output of former runs of an instance is kept.
func (r *Runtime) logFile(id string) string { return filepath.Join(r.opts.Directory, id+".log") }
