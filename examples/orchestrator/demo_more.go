package main

import (
	"context"
	"errors"
	"fmt"
	goruntime "runtime"
	"strings"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
	"github.com/steadyraft/raft/examples/orchestrator/table"
)

// demoEvents is how many events the demo shows at its end.
const demoEvents = 12

// sayPage says where the status page is.
func (d *demo) sayPage(ctx context.Context, m *demoManager) {
	client := api.NewClient(d.creds, m.API)
	defer client.Close()
	status, err := client.Status(ctx)
	if err != nil || status.Page == "" {
		return // its port is in use; the demo goes on without it
	}
	token, err := manager.PageToken(m.dir, time.Now().Add(demoTimeout+time.Hour))
	if err != nil {
		return
	}
	d.screen.say("", "Watch it in a browser: %s#%s", status.Page, token)
}

// update replaces the definition of the service, one slot after the other, while it serves.
func (d *demo) update(ctx context.Context) error {
	v, err := d.client.State(ctx)
	if err != nil {
		return err
	}
	sv := v.State.Services[d.service]
	if sv == nil {
		return errors.New("the service is gone")
	}
	d.screen.step("service update --env VERSION=2 --update-order start-first --update-parallelism 2: a rolling update")
	spec := sv.Spec
	spec.Task.Env = map[string]string{"VERSION": "2"}
	spec.Update = cluster.UpdateConfig{Parallelism: 2, Order: cluster.StartFirst, Monitor: 200 * time.Millisecond}
	began := time.Now()
	result, err := d.client.Do(ctx, cluster.UpdateService{Service: d.service, Spec: spec, Expect: sv.ChangedAt})
	if err != nil {
		return err
	}
	v, err = d.awaitServing(ctx, spec.Replicas, func(v api.View) bool {
		sv := v.State.Services[d.service]
		return sv != nil && sv.Version == result.Version && sv.Update != nil && sv.Update.State == cluster.UpdateCompleted
	})
	if err != nil {
		return err
	}
	d.measure(fmt.Sprintf("rolling update of %d replicas, by twos", spec.Replicas), time.Since(began), 0, 0)
	d.screen.say("ok", "version 2 serves in all %d slots after %s; each new task served before the old one of its slot was stopped: %s",
		spec.Replicas, seconds(time.Since(began)), d.prober.score())
	return d.pauseToRead(ctx)
}

// autoscale has a busy service grow by itself.
func (d *demo) autoscale(ctx context.Context) error {
	if goruntime.GOOS != "linux" {
		return nil // nothing says how busy a process is, see runtime/process
	}
	d.screen.step("service create --name busy, then service autoscale --min 1 --max 3 --target-cpu 2: each task uses more than that")
	began := time.Now()
	spec := cluster.ServiceSpec{
		Name: "busy", Replicas: 1, Autoscale: &cluster.Autoscale{Min: 1, Max: 3, TargetCPU: 2},
		Task: cluster.TaskSpec{
			Command: []string{d.program, webCommand}, Env: map[string]string{busyVariable: "yes"}, StopGrace: time.Second,
			Restart: cluster.RestartPolicy{Condition: cluster.RestartAlways},
		},
	}
	if d.image != "" { // it runs the same
		spec.Task.Image, spec.Task.Command = d.image, nil
	}
	result, err := d.client.Do(ctx, cluster.CreateService{Spec: spec})
	if err != nil {
		return err
	}
	err = await(ctx, d.client, d.patience(stepTimeout), func(v api.View) bool {
		sv := v.State.Services[result.Service]
		return sv != nil && sv.Spec.Replicas == 3 && serving(v.State, sv.ID) == 3
	})
	if err != nil {
		return err
	}
	d.measure("busy service scaled from 1 to 3 by its load", time.Since(began), 0, 0)
	d.screen.say("ok", "3/3 after %s, as many as it may have", seconds(time.Since(began)))
	_, err = d.client.Do(ctx, cluster.RemoveService{Service: result.Service})
	return err
}

// events shows what the managers have recorded of all that.
func (d *demo) events(ctx context.Context) error {
	d.screen.step("events: what the managers have recorded; these are the last ones about leaders, nodes and services")
	answer, err := d.client.Events(ctx, api.EventsRequest{})
	if err != nil {
		return err
	}
	var lines []string
	for _, e := range answer.Events {
		if e.Kind != "task" {
			lines = append(lines, fmt.Sprintf("%s  %-8s %-10s %s", e.At.Local().Format("15:04:05.000"), e.Kind, table.Clean(e.Subject), table.Clean(e.Message)))
		}
	}
	for _, line := range lines[max(0, len(lines)-demoEvents):] {
		d.screen.say("", "%s", strings.TrimRight(line, " "))
	}
	d.screen.say("", "There are %d in all; `events -f` follows them through any manager, whoever leads.", len(answer.Events))
	return nil
}
