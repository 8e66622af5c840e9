package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// lonely is a cluster of one manager, with a client.
func lonely(t *testing.T) (data string, d *demo, client *api.Client) {
	t.Helper()
	data, d = single(t)
	client = api.NewClient(d.creds, d.members[0].API)
	t.Cleanup(client.Close)
	return data, d, client
}

func TestImpossibleConstraintWaitsWithTheReason(t *testing.T) {
	t.Parallel()
	data, _, _ := lonely(t)
	must(t, data, "service", "create", "-d", "--name", "web", "--constraint", "node.labels.disk==ssd", "--reserve-memory", "1m", "--", "sleep", "1000")
	var out string
	awaitTrue(t, "the reason", func() bool {
		out = must(t, data, "service", "ps", "web")
		return strings.Contains(out, "scheduling constraints not satisfied on 1 node")
	})
	require.Contains(t, out, "Pending")
	must(t, data, "node", "update", "--label-add", "disk=ssd", "m1")
	require.Contains(t, must(t, data, "service", "start", "web"), "1 of 1 tasks are running")
	require.Contains(t, must(t, data, "node", "inspect", "m1"), `"disk": "ssd"`)

	must(t, data, "service", "create", "-d", "--name", "big", "--reserve-memory", "900g", "--", "sleep", "1000")
	awaitTrue(t, "the reason", func() bool {
		return strings.Contains(must(t, data, "service", "ps", "big"), "insufficient resources on 1 node")
	})
}

func TestUpdateAndRollbackByCommand(t *testing.T) {
	t.Parallel()
	data, _, client := lonely(t)
	must(t, data, "service", "create", "--name", "web", "--replicas", "2", "--env", "RELEASE=1", "--update-monitor", "200ms", "--rollback-monitor", "200ms",
		"--", "sleep", "1000")
	out := must(t, data, "service", "update", "--env-add", "RELEASE=2", "--env-add", "MORE=x", "--label-add", "team=a", "web")
	require.Contains(t, out, "2 of 2 tasks are updated")
	require.Contains(t, out, "2 of 2 tasks are running")
	spec := func() cluster.ServiceSpec { return view(t, client).State.ServiceByName("web").Spec }
	require.Equal(t, map[string]string{"RELEASE": "2", "MORE": "x"}, spec().Task.Env)
	require.Equal(t, map[string]string{"team": "a"}, spec().Labels)

	// A version that does not run is paused, and costs one replica; a rollback repairs that.
	code, _, errOut := runCommand(t, data, "service", "update", "web", "--", "/nowhere/to/be/found")
	require.Equal(t, exitRefused, code)
	require.Contains(t, errOut, "the update is paused due to failure or early termination of 1 of 2 tasks")
	require.Contains(t, must(t, data, "service", "ls"), "1/2")
	require.Contains(t, must(t, data, "service", "rollback", "web"), "2 of 2 tasks are running")
	require.Equal(t, []string{"sleep", "1000"}, spec().Task.Command)

	code, _, errOut = runCommand(t, data, "service", "update", "--update-failure-action", "rollback", "--update-monitor", "200ms",
		"--rollback-monitor", "200ms", "web", "--", "/nowhere/to/be/found")
	require.Equal(t, exitRefused, code)
	require.Contains(t, errOut, "update rolled back due to failure")
	require.Equal(t, []string{"sleep", "1000"}, spec().Task.Command)
	require.Contains(t, must(t, data, "service", "ls"), "2/2")

	before := view(t, client).State
	must(t, data, "service", "update", "--force", "--update-monitor", "200ms", "--update-order", "start-first", "--update-parallelism", "0", "web")
	after := view(t, client).State
	for _, task := range before.TasksOf(before.ServiceByName("web").ID) {
		require.False(t, task.Serving() && after.Tasks[task.ID] != nil && after.Tasks[task.ID].Serving(), "%s was to be replaced", task.ID)
	}

	var shown []struct {
		cluster.Service
		Tasks []cluster.Task `json:"tasks"`
	}
	require.NoError(t, json.Unmarshal([]byte(must(t, data, "service", "inspect", "web")), &shown))
	require.Equal(t, cluster.UpdateCompleted, shown[0].Update.State)
	require.NotEmpty(t, shown[0].Tasks)
	require.Contains(t, must(t, data, "service", "stop", "web"), "Stopped")
	require.Contains(t, must(t, data, "service", "ls"), "0/2 (stopped)")
	require.Contains(t, must(t, data, "service", "start", "web"), "2 of 2 tasks are running")
	require.Contains(t, must(t, data, "task", "kill", "web.1"), "web.1")
	awaitTrue(t, "a restart", func() bool { return strings.Contains(must(t, data, "service", "ps", "web"), "restart 1") })
}

func TestAutoscaleByCommand(t *testing.T) {
	t.Parallel()
	data, _, client := lonely(t)
	must(t, data, "service", "create", "--name", "busy", "--", "sh", "-c", "while sleep 0.002; do :; done")
	must(t, data, "service", "autoscale", "--min", "1", "--max", "3", "--target-cpu", "0.1", "busy")
	replicas := func() int { return view(t, client).State.ServiceByName("busy").Spec.Replicas }
	awaitTrue(t, "the most replicas", func() bool { return replicas() == 3 })
	code, _, errOut := runCommand(t, data, "service", "scale", "busy=5")
	require.Equal(t, exitRefused, code)
	require.Contains(t, errOut, "scaled by its load, from 1 to 3")
	must(t, data, "service", "autoscale", "--off", "busy")
	must(t, data, "service", "scale", "busy=1")
	require.Equal(t, 1, replicas())
}

// What cannot be done is refused as a whole.
func TestWhatServiceCommandsRefuse(t *testing.T) {
	t.Parallel()
	data, d, client := lonely(t)
	must(t, data, "service", "create", "--name", "web", "-p", fmt.Sprintf("%d:80", d.port), "--", "sleep", "1000")
	must(t, data, "service", "create", "--name", "other", "--", "sleep", "1000")
	before := view(t, client).State
	for _, test := range []struct {
		args []string
		code int
		text string
	}{
		{[]string{"service", "create", "--name", "a", "--constraint", "disk==ssd", "--", "a"}, exitUsage, "want node.id, node.hostname, node.role or node.labels.NAME"},
		{[]string{"service", "create", "--name", "a", "--reserve-cpu", "many", "--reserve-memory", "lots", "--", "a"}, exitUsage, "--reserve-memory \"lots\""},
		{[]string{"service", "create", "--name", "a", "--reserve-cpu", "many", "--reserve-memory", "lots", "--", "a"}, exitUsage, "--reserve-cpu \"many\""},
		{[]string{"service", "create", "--name", "a", "--update-order", "both", "--", "a"}, exitUsage, "want stop-first or start-first"},
		{[]string{"service", "create", "--name", "a", "--health-retries", "2", "--", "a"}, exitUsage, "--health-cmd: required"},
		{[]string{"service", "update", "web"}, exitUsage, "nothing to change"},
		{[]string{"service", "update", "--replicas", "2"}, exitUsage, "want one service"},
		{[]string{"service", "update", "--replicas", "2", "wbe"}, exitRefused, "no service \"wbe\""},
		{[]string{"service", "update", "--publish-rm", "81", "web"}, exitUsage, "want a target port of the service"},
		{[]string{"service", "update", "--constraint-rm", "node.id==n1", "web"}, exitUsage, "has no constraint"},
		{[]string{"service", "update", "--update-parallelism", "-3", "web"}, exitUsage, "update parallelism"},
		{[]string{"service", "update", "--replicas", "3", "--publish-add", fmt.Sprintf("%d:80", d.port), "other"}, exitRefused, `is published by service "web" already`},
		{[]string{"service", "rollback", "web"}, exitRefused, "never updated"},
		{[]string{"service", "autoscale", "--max", "3", "web"}, exitUsage, "want --max and --target-cpu"},
		{[]string{"service", "autoscale", "--min", "5", "--max", "3", "--target-cpu", "50", "web"}, exitRefused, "autoscale from 5 to 3"},
		{[]string{"service", "stop", "wbe"}, exitRefused, "no service \"wbe\""},
		{[]string{"service", "inspect"}, exitUsage, "at least one service"},
		{[]string{"task", "kill", "web.7"}, exitRefused, "no task \"web.7\""},
		{[]string{"node", "update", "--label-add", "zone=a", "n9"}, exitRefused, "no node \"n9\""},
		{[]string{"node", "update", "--label-add", "zone", "m1"}, exitUsage, "want NAME=value"},
		{[]string{"node", "update", "--label-add", "a b=c", "--availability", "drain", "m1"}, exitRefused, "label \"a b\""},
		{[]string{"node", "update", "m1"}, exitUsage, "--label-add"},
	} {
		code, out, errOut := runCommand(t, append([]string{data}, test.args...)...)
		require.Equal(t, test.code, code, "%s\n%s\n%s", strings.Join(test.args, " "), out, errOut)
		require.Contains(t, errOut, test.text)
	}
	after := view(t, client).State
	require.Equal(t, before.Services, after.Services, "nothing half done")
	require.Equal(t, cluster.AvailabilityActive, after.Nodes["m1"].Availability)
}

// On anything but a terminal there is one line whenever the sum has changed; a terminal draws the slots over and over.
func TestProgress(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out)
	require.True(t, p.show("web: 0 of 2", []string{"1/2: starting", "2/2: starting"}))
	require.False(t, p.show("web: 0 of 2", []string{"1/2: running", "2/2: starting"}))
	require.True(t, p.show("web: 1 of 2", nil))
	require.Equal(t, "web: 0 of 2\nweb: 1 of 2\n", out.String())

	out.Reset()
	p = &progress{out: &out, terminal: true}
	require.True(t, p.show("web: 0 of 2", []string{"1/2: starting", "2/2: starting"}))
	require.True(t, p.show("web: 0 of 2", []string{"1/2: running", "2/2: starting"}))
	require.Equal(t, 2, strings.Count(out.String(), "2/2: starting"))
	require.Equal(t, 1, strings.Count(out.String(), "\x1b[3A"), "over the three lines before")
}

// What does its work and ends is as good as what runs; what fails and is not restarted is not waited for.
func TestWhatEndsIsNotWaitedFor(t *testing.T) {
	v := sample(time.Now())
	tasks := v.State.TasksOf("s1")
	for _, task := range tasks {
		task.Attempts, task.Error, task.State = 0, "", cluster.TaskComplete
	}
	l := lookAt(v.State, "s1")
	require.True(t, l.done)
	require.Equal(t, "shop_web: 0 of 2 tasks are running, 2 complete", l.sum)
	require.NoError(t, l.over)

	last := tasks[len(tasks)-1]
	last.State, last.Error = cluster.TaskFailed, "exit code 3"
	l = lookAt(v.State, "s1")
	require.False(t, l.done)
	require.ErrorContains(t, l.over, "shop_web.2 on w1 has failed, and its restart policy leaves it at that: exit code 3")
}

func TestComposeWaitsForConditions(t *testing.T) {
	t.Parallel()
	data, _, client := lonely(t)
	file := writeCompose(t, `
name: shop
services:
  web:
    command: [sleep, "1000"]
    depends_on:
      migrate: {condition: service_completed_successfully}
      cache: {condition: service_healthy}
  migrate:
    command: [sh, -c, "sleep 0.3"]
  cache:
    command: [sleep, "1000"]
    healthcheck: {test: [CMD, "true"], interval: 100ms}
`)
	must(t, data, "compose", "up", "-d", "-f", file)
	s := view(t, client).State
	made := func(name string) *cluster.Task { return s.TasksOf(s.ServiceByName("shop_" + name).ID)[0] }
	require.Equal(t, cluster.TaskComplete, made("migrate").State)
	require.False(t, made("web").CreatedAt.Before(made("migrate").UpdatedAt), "created when that was complete")
	require.False(t, made("web").CreatedAt.Before(made("cache").ReadyAt), "and this healthy")

	// What cannot come any more is not waited for.
	broken := writeCompose(t, `
name: broken
services:
  web: {command: [sleep, "1000"], depends_on: {migrate: {condition: service_completed_successfully}}}
  migrate: {command: [sh, -c, "exit 3"]}
`)
	code, _, errOut := runCommand(t, data, "compose", "up", "-d", "-f", broken)
	require.Equal(t, exitRefused, code)
	require.Contains(t, errOut, "service broken_web waits for service broken_migrate")
	require.Contains(t, errOut, "has failed: exit code 3")
	require.Nil(t, view(t, client).State.ServiceByName("broken_web"))
}

// Leadership changes hands again and again during an update. Each slot is replaced once, one after the other, and the update ends.
func TestUpdateGoesOnWithAnotherLeader(t *testing.T) {
	t.Parallel()
	d := found(t, testHosts()...)
	for _, m := range d.managers {
		require.NoError(t, d.launch(m))
	}
	data := "--data=" + d.managers["m1"].dir
	client := api.NewClient(d.creds, d.members[0].API, d.members[1].API, d.members[2].API)
	defer client.Close()
	require.NoError(t, awaitNodes(t.Context(), client, 3))
	must(t, data, "service", "create", "--name", "web", "--replicas", "6", "--update-delay", "300ms", "--update-monitor", "500ms", "--", "sleep", "1000")
	must(t, data, "service", "update", "-d", "--env-add", "RELEASE=2", "web")

	epochs := map[raft.Term]bool{}
	awaitTrue(t, "the end of the update", func() bool {
		v := view(t, client)
		epochs[v.State.Cluster.Epoch] = true
		sv := v.State.ServiceByName("web")
		on := 0 // the way
		for slot := range sv.Slots {
			newest := v.State.Tasks[cluster.NewTaskID(sv.ID, slot+1, sv.Slots[slot].Generation)]
			if !newest.Serving() {
				on++
			}
		}
		require.True(t, on <= 1 || starved(v.State), "%d slots are on the way", on)
		if !sv.Update.UnderWay() {
			require.Equal(t, cluster.UpdateCompleted, sv.Update.State, sv.Update.Message)
			return true
		}
		_, out, errOut := runCommand(t, data, "leader", "change")
		t.Log(out, errOut) // it may be refused: the one that is to take over may not be as far yet
		return false
	})
	require.Greater(t, len(epochs), 2)
	s := view(t, client).State
	sv := s.ServiceByName("web")
	for slot := range sv.Slots {
		require.True(t, sv.Slots[slot].Generation == 2 || starved(s), "slot %d has generation %d", slot+1, sv.Slots[slot].Generation)
	}
}

// starved reports that a node got so little of the machine that it counted as down. What is lost then is replaced, as it should be.
func starved(s *cluster.State) bool {
	return slices.ContainsFunc(s.Events, func(e cluster.Event) bool { return strings.Contains(e.Message, "lost with node") })
}
