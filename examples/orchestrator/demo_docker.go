package main

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/internal/images"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
	"github.com/steadyraft/raft/examples/orchestrator/runtime"
	"github.com/steadyraft/raft/examples/orchestrator/runtime/docker"
)

//go:embed demo-docker.yaml
var demoDockerFile []byte

// prepareRuntime finds out whether there is an engine, and makes the image that it is to run: of this very program, because no registry is
// asked for one.
func (d *demo) prepareRuntime(ctx context.Context) error {
	d.settings.Runtime = d.runtime
	if d.runtime == manager.RuntimeDocker {
		d.settings.DockerHost = cmp.Or(d.dockerHost, os.Getenv("DOCKER_HOST"), docker.DefaultHost)
	} else {
		d.settings.DockerHost = d.dockerHost // refused below
	}
	if err := manager.CheckRuntime(ctx, d.dir, d.settings); err != nil || d.runtime != manager.RuntimeDocker {
		return err
	}
	engine, err := client.New(client.WithHost(d.settings.DockerHost))
	if err != nil {
		return err
	}
	defer engine.Close()
	d.image = "orchestrator-" + d.settings.Cluster + ":latest"
	d.screen.step("An image from nothing: this program and the libraries that it needs, without a registry")
	config := images.Config{Command: []string{webCommand}, Labels: d.imageLabels}
	if err := images.Program(ctx, engine, d.image, d.program, config); err != nil {
		return err
	}
	d.screen.say("ok", "image %s is imported", d.image)
	return nil
}

// removeImage takes the image away again.
func (d *demo) removeImage(ctx context.Context) error {
	if d.image == "" {
		return nil
	}
	engine, err := client.New(client.WithHost(d.settings.DockerHost))
	if err != nil {
		return err
	}
	defer engine.Close()
	if _, err = engine.ImageRemove(ctx, d.image, client.ImageRemoveOptions{PruneChildren: true}); errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// tasksOf opens the runtime of one of the demo's managers.
func (d *demo) tasksOf(m *demoManager) (runtime.Runtime, func() error, error) {
	settings := d.settings
	settings.Node, settings.Host = m.ID, m.host
	return manager.OpenRuntime(m.dir, settings, "", nil)
}

// running returns the processes of the containers that run on a manager's node.
func (d *demo) running(ctx context.Context, m *demoManager) (pids []int, err error) {
	tasks, release, err := d.tasksOf(m)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, release()) }()
	instances, err := tasks.Adopt(ctx)
	for _, i := range instances {
		if i.Running {
			pids = append(pids, i.PID)
		}
	}
	return pids, err
}

// stopAll ends all containers of a node whose manager does not run, and removes them.
func (d *demo) stopAll(ctx context.Context, m *demoManager) (err error) {
	tasks, release, err := d.tasksOf(m)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	instances, err := tasks.Adopt(ctx)
	errs := []error{err}
	for _, i := range instances {
		errs = append(errs, tasks.Stop(ctx, i.Spec.ID, 0), tasks.Remove(ctx, i.Spec.ID))
	}
	return errors.Join(errs...)
}

// killContainer kills the process of a task behind the orchestrator's back.
func (d *demo) killContainer(ctx context.Context, task *cluster.Task) (err error) {
	m := d.managers[task.Node]
	if m == nil {
		return fmt.Errorf("%s runs on %s, which is no manager of this demo", task.Name(), task.Node)
	}
	tasks, release, err := d.tasksOf(m)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	return tasks.Kill(ctx, string(task.ID))
}
