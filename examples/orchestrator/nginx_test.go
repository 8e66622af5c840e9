package main

import (
	"maps"
	"net"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"
	"time"

	moby "github.com/moby/moby/client"
	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/internal/dockertest"
)

// The article's session with what it runs: nginx, in containers of an engine that three managers share, each with an address of its own.
// The published port of every node that is up is asked ten times a second throughout. (Nodes that are containers themselves, as in
// TestArticlesSessionOnThreeMachines, would each need an engine of their own inside.)
func TestArticlesSessionWithNginx(t *testing.T) {
	engine := dockertest.Engine(t)
	if goruntime.GOOS != "linux" {
		t.Skip("skipped: it publishes port 80 on addresses of its own, as only Linux has them")
	}
	hosts := []string{"127.0.0.41", "127.0.0.42", "127.0.0.43"}
	port, err := net.Listen("tcp", hosts[0]+":80")
	if err != nil {
		t.Skipf("skipped: it publishes port 80, which this user may not: %v", err)
	}
	require.NoError(t, port.Close())
	dockertest.Debian(t, engine, "nginx", "nginx:latest")
	d := foundAs(t, onDocker(engine), hosts...)
	askers := map[cluster.NodeID]*asker{}
	for _, m := range d.managers {
		require.NoError(t, d.launch(m))
		askers[m.ID] = newAsker(m.host)
		defer askers[m.ID].stop()
	}
	client := api.NewClient(mustCredentials(t, d.managers["m1"].dir), d.members[0].API, d.members[1].API, d.members[2].API)
	defer client.Close()
	require.NoError(t, awaitNodes(t.Context(), client, 3))
	data := "--data=" + d.managers["m1"].dir
	containers := func() map[string]string { return containersOf(t, engine, d.settings.Cluster, false) }
	answers := func(id cluster.NodeID) {
		awaitTrue(t, string(id)+" serves nginx's page", func() bool {
			page, err := get(t.Context(), askers[id].url)
			return err == nil && strings.Contains(page, "Welcome to nginx!")
		})
		askers[id].setUp(true)
	}
	var incidents []incident
	// during does something after which requests that are under way may be lost, until it is over.
	during := func(what string, do func()) {
		i := incident{what: what, from: time.Now()}
		do()
		i.to = time.Now()
		incidents = append(incidents, i)
	}

	out := must(t, data, "service", "create", "--replicas", "3", "--publish", "published=80,target=80", "nginx")
	require.Contains(t, out, "nginx: 3 of 3 tasks are running")
	require.Equal(t, 3, strings.Count(must(t, data, "service", "ps", "nginx"), "nginx."))
	list := must(t, data, "node", "ls")
	require.Equal(t, 3, strings.Count(list, "Ready"), list)
	require.Equal(t, 1, strings.Count(list, "Leader"), list)
	for id := range askers {
		answers(id)
	}
	service := view(t, client).State.ServiceByName("nginx").ID

	// A container's process is killed: it is removed, and made anew from the definition.
	before := containers()
	require.Len(t, before, 3)
	crashed := slices.Min(slices.Collect(maps.Keys(before)))
	during("a container crashes", func() { require.NoError(t, killContainer(t.Context(), engine, before[crashed])) })
	awaitTrue(t, "another container in its place", func() bool {
		now := containers()
		return len(now) == 3 && now[crashed] != "" && now[crashed] != before[crashed] && serving(view(t, client).State, service) == 3
	})

	// A container is paused: its kernel accepts, and nobody answers. Requests that have met it wait, the others do not.
	_, err = engine.ContainerPause(t.Context(), containers()[crashed], moby.ContainerPauseOptions{})
	require.NoError(t, err)
	answered := func() (n int) {
		for _, a := range askers {
			n += a.count()
		}
		return n
	}
	some := answered() + 60 // two seconds, of three nodes
	awaitTrue(t, "requests are answered by the others", func() bool { return answered() >= some })
	_, err = engine.ContainerUnpause(t.Context(), containers()[crashed], moby.ContainerUnpauseOptions{})
	require.NoError(t, err)

	require.Contains(t, must(t, data, "service", "scale", "nginx=6"), "6 of 6 tasks are running")

	// The leader's process is killed. Its containers go on without it, until others have taken their place.
	leader, _, err := d.awaitLeader(t.Context(), "")
	require.NoError(t, err)
	askers[leader].setUp(false)
	killed := d.managers[leader]
	during("the leader is killed", func() {
		require.NoError(t, killed.cmd.Process.Kill())
		<-killed.ended
	})
	awaitTrue(t, "six replicas on two nodes", func() bool {
		s := view(t, client).State
		return s.Nodes[leader].Status == cluster.NodeDown && serving(s, service) == 6 && len(s.TasksOn(leader)) == 0
	})
	require.NoError(t, d.launch(killed))
	require.NoError(t, awaitNodes(t.Context(), client, 3))
	awaitTrue(t, "what was replaced is stopped", func() bool { return len(containers()) == 6 })
	answers(leader)

	// A manager is removed, with what runs on it.
	mustSoon(t, data, "leader", "change", "m1")
	askers["m3"].setUp(false)
	during("m3 is removed", func() { mustSoon(t, data, "node", "rm", "m3") })
	awaitTrue(t, "six replicas on two nodes", func() bool {
		s := view(t, client).State
		return len(s.Nodes) == 2 && serving(s, service) == 6 && len(containers()) == 6
	})
	require.Equal(t, 2, strings.Count(must(t, data, "node", "ls"), "Ready"))

	asked, underWay, slowest := 0, 0, time.Duration(0)
	for id, asker := range askers {
		for _, a := range asker.stop() {
			asked++
			switch {
			case a.err == nil:
				slowest = max(slowest, a.ended.Sub(a.asked))
			case slices.ContainsFunc(incidents, func(i incident) bool { return i.excuses(a) }):
				underWay++
			default:
				t.Errorf("%s did not answer a request of %s within %v: %v", id, a.asked.Format(time.StampMilli), a.ended.Sub(a.asked), a.err)
			}
		}
	}
	t.Logf("%d requests to nodes that were up: %d failed that were under way at an incident; the slowest answer took %.2f s",
		asked, underWay, slowest.Seconds())
	require.Positive(t, asked)
	require.Contains(t, must(t, data, "service", "rm", "nginx"), "nginx")
	awaitTrue(t, "no container is left", func() bool { return len(containersOf(t, engine, d.settings.Cluster, true)) == 0 })
}
