package manager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/runtime"
	"github.com/steadyraft/raft/examples/orchestrator/runtime/docker"
	"github.com/steadyraft/raft/examples/orchestrator/runtime/process"
)

// RuntimeKind says what a node's tasks are.
type RuntimeKind string

// The kinds. An empty one means RuntimeProcess.
const (
	RuntimeProcess RuntimeKind = "process"
	RuntimeDocker  RuntimeKind = "docker"
)

// engineAnswers bounds how long CheckRuntime waits for an engine.
const engineAnswers = 5 * time.Second

func (s *Settings) validateRuntime() error {
	switch s.Runtime {
	case "", RuntimeProcess:
		if s.DockerHost != "" {
			return errors.New("a docker host is of no use without the docker runtime")
		}
		return nil
	case RuntimeDocker:
		if s.DockerHost == "" {
			return nil
		}
		return docker.CheckHost(s.DockerHost)
	default:
		return fmt.Errorf("runtime %q: want %s or %s", s.Runtime, RuntimeProcess, RuntimeDocker)
	}
}

// OpenRuntime opens what runs the tasks of the node in a data directory. shim answers process.ShimCommand; empty is the running executable.
func OpenRuntime(dir string, s Settings, shim string, log *slog.Logger) (rt runtime.Runtime, release func() error, err error) {
	if s.Runtime != RuntimeDocker {
		rt, err := process.New(TasksDirectory(dir), shim)
		return rt, func() error { return nil }, err
	}
	engine, err := docker.New(docker.Options{
		Host: s.DockerHost, Cluster: s.Cluster, Node: string(s.Node), Directory: TasksDirectory(dir), Logger: log,
	})
	if err != nil {
		return nil, nil, err
	}
	return engine, engine.Close, nil
}

// CheckRuntime finds out whether a node could run tasks, before it is made. Later an engine may be away for a while: a node waits for it.
func CheckRuntime(ctx context.Context, dir string, s Settings) error {
	if err := s.validateRuntime(); err != nil || s.Runtime != RuntimeDocker {
		return err
	}
	engine, err := docker.New(docker.Options{Host: s.DockerHost, Cluster: "none", Node: "none", Directory: TasksDirectory(dir)})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, engineAnswers)
	defer cancel()
	return errors.Join(engine.Ping(ctx), engine.Close())
}
