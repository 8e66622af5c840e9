package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// killLeader ends the leading manager with SIGKILL, and returns it when another one leads and has begun to schedule.
func killLeader(t *testing.T, d *demo) *demoManager {
	t.Helper()
	leader, epoch, err := d.awaitLeader(t.Context(), "")
	require.NoError(t, err)
	killed := d.managers[leader]
	require.NoError(t, killed.cmd.Process.Kill())
	<-killed.ended
	next, later, err := d.awaitLeader(t.Context(), leader)
	require.NoError(t, err)
	require.Greater(t, later, epoch)
	t.Logf("%s is killed in epoch %d, %s leads epoch %d", leader, epoch, next, later)
	return killed
}

// rejoin starts a killed manager again, and waits until it is a ready node and can lead.
func rejoin(t *testing.T, d *demo, client *api.Client, killed *demoManager) {
	t.Helper()
	require.NoError(t, d.launch(killed))
	require.NoError(t, awaitNodes(t.Context(), client, len(d.managers)))
	mustSoon(t, "--data="+killed.dir, "leader", "change", string(killed.ID))
}

// The leading manager is killed in the middle of a rolling update, twice: once it is back within the grace period, once its node is lost
// with what runs there. The new tasks serve when this test allows it, so whenever a leader is killed the first two are on their way. The
// records of the cluster say what has happened to every slot.
func TestUpdateGoesOnWhenLeadersAreKilled(t *testing.T) {
	t.Parallel()
	const parallelism, delay = 2, 300 * time.Millisecond
	d := found(t, testHosts()...)
	for _, m := range d.managers {
		require.NoError(t, d.launch(m))
	}
	data := "--data=" + d.managers["m1"].dir
	client := api.NewClient(d.creds, d.members[0].API, d.members[1].API, d.members[2].API)
	defer client.Close()
	require.NoError(t, awaitNodes(t.Context(), client, 3))
	gate := filepath.Join(t.TempDir(), "gate")
	open := func(release int) { require.NoError(t, os.WriteFile(fmt.Sprint(gate, release), nil, 0o600)) }
	open(1)
	must(t, data, "service", "create", "--name", "web", "--replicas", "6", "--update-parallelism", fmt.Sprint(parallelism),
		"--update-delay", delay.String(), "--update-monitor", "500ms", "--health-cmd", "test -e "+gate+"$RELEASE",
		"--health-interval", "100ms", "--health-start-period", "1h", "--env", "RELEASE=1", "--", "sleep", "1000")
	// begin begins an update, and returns when two slots wait for the gate.
	begin := func(release int) {
		must(t, data, "service", "update", "-d", "--env-add", fmt.Sprint("RELEASE=", release), "web")
		awaitTrue(t, "two tasks that are not healthy yet", func() bool {
			s, waiting := view(t, client).State, 0
			sv := s.ServiceByName("web")
			for _, task := range s.TasksOf(sv.ID) {
				if task.SpecVersion == sv.Version && task.State == cluster.TaskRunning && !task.Serving() {
					waiting++
				}
			}
			return waiting == parallelism
		})
	}
	completed := func() *cluster.State {
		var s *cluster.State
		awaitTrue(t, "the end of the update", func() bool {
			s = view(t, client).State
			return !s.ServiceByName("web").Update.UnderWay()
		})
		update := s.ServiceByName("web").Update
		require.Equal(t, cluster.UpdateCompleted, update.State, update.Message)
		return s
	}

	begin(2)
	killed := killLeader(t, d)
	rejoin(t, d, client, killed)
	open(2)
	s := completed()
	checkUpdates(t, s, "web", parallelism, delay)

	begin(3)
	killed = killLeader(t, d)
	awaitTrue(t, "its node is lost, and its tasks are replaced", func() bool {
		s := view(t, client).State
		return s.Nodes[killed.ID].Status == cluster.NodeDown && len(s.TasksOn(killed.ID)) == 0
	})
	open(3)
	s = completed()
	require.NotContains(t, nodesOf(s, "web"), killed.ID)
	rejoin(t, d, client, killed)
	awaitTrue(t, "what was replaced does not run there any more", func() bool {
		left, err := d.running(t.Context(), killed)
		return err == nil && len(left) == len(view(t, client).State.TasksOn(killed.ID))
	})
	s = view(t, client).State
	require.Equal(t, cluster.UpdateCompleted, s.ServiceByName("web").Update.State)
	checkUpdates(t, s, "web", parallelism, delay)
}

// nodesOf returns where the tasks of a service serve.
func nodesOf(s *cluster.State, service string) (nodes []cluster.NodeID) {
	for _, t := range s.TasksOf(s.ServiceByName(service).ID) {
		if t.Serving() {
			nodes = append(nodes, t.Node)
		}
	}
	return nodes
}

const updatedEvent = "stopping: service updated"

// checkUpdates reads from the records of the cluster what updates have done to each slot of a service: every task but the newest was
// stopped by an update, once, and followed by a task of the next version, or it was lost with its node; and each was assigned once. So no
// step was lost or repeated. And there were never more slots on their way than allowed: from when the update has stopped a slot's task
// until the next one serves and the delay is over.
func checkUpdates(t *testing.T, s *cluster.State, service string, parallelism int, delay time.Duration) {
	t.Helper()
	sv := s.ServiceByName(service)
	require.Equal(t, uint64(1), s.Events[0].Seq, "nothing is forgotten")
	times := func(subject, message string) (n int) { // how often something has happened to a slot
		for _, e := range s.Events {
			if e.Subject == subject && strings.HasPrefix(e.Message, message) {
				n++
			}
		}
		return n
	}
	epochs := map[uint64]map[raft.Term]bool{} // that have stopped tasks of a version
	tasks := make([][]*cluster.Task, len(sv.Slots))
	for i, slot := range sv.Slots {
		name, stopped, lost := fmt.Sprintf("%s.%d", service, i+1), 0, 0
		for g := range slot.Generation {
			task := s.Tasks[cluster.NewTaskID(sv.ID, i+1, g+1)]
			require.NotNil(t, task, "%s of generation %d", name, g+1)
			tasks[i] = append(tasks[i], task)
			version := uint64(1)
			if g > 0 {
				switch before := tasks[i][g-1]; {
				case before.Desired == cluster.DesiredShutdown:
					stopped++
					version = before.SpecVersion + 1
					if epochs[version] == nil {
						epochs[version] = map[raft.Term]bool{}
					}
					epochs[version][before.Fence.Epoch] = true
				default:
					require.Equal(t, cluster.TaskLost, before.State, before.ID)
					lost++
					version = max(before.SpecVersion, task.SpecVersion)
				}
			}
			require.Equal(t, version, task.SpecVersion, task.ID)
		}
		last := tasks[i][slot.Generation-1]
		require.True(t, last.Serving() && last.SpecVersion == sv.Version, "%s is %s", last.ID, last.State)
		require.Equal(t, stopped, times(name, updatedEvent), "%s was stopped for each update once", name)
		require.Equal(t, int(slot.Generation), times(name, "assigned to"), "%s was assigned once for each generation", name)
		require.True(t, lost > 0 || slot.Generation == sv.Version, "%s was updated %d times to version %d", name, slot.Generation-1, sv.Version)
	}
	for version := uint64(2); version <= sv.Version; version++ {
		require.Greater(t, len(epochs[version]), 1, "more than one leader has had a hand in the update to version %d", version)
	}

	generation := make([]int, len(sv.Slots)) // as far as the events have been read
	awaited := make([]int, len(sv.Slots))    // the generation that ends the slot's way
	for _, e := range s.Events {
		i := -1
		if name, number, ok := strings.Cut(e.Subject, "."); ok && name == service {
			_, err := fmt.Sscan(number, &i)
			require.NoError(t, err)
			i--
		}
		switch {
		case i < 0:
		case strings.HasPrefix(e.Message, "assigned to"):
			generation[i]++
		case strings.HasPrefix(e.Message, "lost with node"):
			awaited[i] = generation[i] + 1
		case e.Message == updatedEvent:
			awaited[i] = generation[i] + 1
			version := tasks[i][generation[i]-1].SpecVersion + 1
			under := 0
			for j := range sv.Slots {
				if onTheWay(tasks[j], awaited[j], version, e.At.Add(-delay)) {
					under++
				}
			}
			require.LessOrEqual(t, under, parallelism, "slots on their way to version %d at %v", version, e.At)
		}
	}
}

// onTheWay reports that a slot had no task of the version at that time that had served, although it was to get one.
func onTheWay(tasks []*cluster.Task, awaited int, version uint64, at time.Time) bool {
	if awaited == 0 || len(tasks) < awaited || tasks[awaited-1].SpecVersion != version {
		return false // it has not left yet
	}
	return !slices.ContainsFunc(tasks[awaited-1:], func(t *cluster.Task) bool { return !t.ReadyAt.IsZero() && !t.ReadyAt.After(at) })
}

// The leading manager is killed in the middle of back-offs: those of nodes, before they start a process again that has crashed, also of its
// own node; and that of the managers, before they try a slot again that no node could run. All go on where they were.
func TestBackoffsGoOnWhenTheLeaderIsKilled(t *testing.T) {
	t.Parallel()
	d := found(t, testHosts()...)
	for _, m := range d.managers {
		require.NoError(t, d.launch(m))
	}
	data := "--data=" + d.managers["m1"].dir
	client := api.NewClient(d.creds, d.members[0].API, d.members[1].API, d.members[2].API)
	defer client.Close()
	require.NoError(t, awaitNodes(t.Context(), client, 3))
	crashing := map[string]string{} // services, each on a node of its own, and where their runs leave a file each
	for id := range d.managers {
		name, dir := "crash-"+string(id), t.TempDir()
		crashing[name] = dir
		must(t, data, "service", "create", "-d", "--name", name, "--constraint", "node.id=="+string(id),
			"--", "sh", "-c", "mktemp "+dir+"/run.XXXXXX; exit 3")
	}
	must(t, data, "service", "create", "-d", "--name", "absent", "--", "/nowhere/to/be/found")
	newest := func(s *cluster.State, service string) *cluster.Task {
		tasks := s.TasksOf(s.ServiceByName(service).ID)
		if len(tasks) == 0 {
			return nil
		}
		return tasks[len(tasks)-1]
	}
	// pausing reports a task whose next start is more than a second away.
	pausing := func(task *cluster.Task, state cluster.TaskState) bool {
		return task != nil && task.State == state && time.Until(task.NotBefore) > time.Second
	}
	var before *cluster.State
	awaitTrue(t, "back-offs everywhere", func() bool {
		before = view(t, client).State
		all := pausing(newest(before, "absent"), cluster.TaskNew)
		for name := range crashing {
			all = all && pausing(newest(before, name), cluster.TaskStarting)
		}
		return all
	})
	killed := killLeader(t, d)
	require.NoError(t, d.launch(killed))

	// Until each has gone on, its deadline is what it was.
	var after *cluster.State
	on := map[string]bool{}
	awaitTrue(t, "every back-off is over", func() bool {
		after = view(t, client).State
		for name := range crashing {
			was, is := newest(before, name), newest(after, name)
			switch {
			case is.ID != was.ID:
				require.Equal(t, cluster.TaskLost, after.Tasks[was.ID].State, "only a lost task has a successor")
				on[name] = true
			case is.Attempts == was.Attempts && is.State == cluster.TaskStarting && !is.NotBefore.IsZero():
				require.True(t, is.NotBefore.Equal(was.NotBefore), "%s: %v, was %v", is.ID, is.NotBefore, was.NotBefore)
			case is.Attempts > was.Attempts:
				on[name] = true
			}
		}
		was, is := newest(before, "absent"), newest(after, "absent")
		if is.ID == was.ID && is.State == cluster.TaskNew {
			require.True(t, is.NotBefore.Equal(was.NotBefore), "%s: %v, was %v", is.ID, is.NotBefore, was.NotBefore)
		}
		on["absent"] = is.Generation > was.Generation
		return len(on) == len(crashing)+1 && on["absent"]
	})
	require.NoError(t, awaitNodes(t.Context(), client, 3))
	mustSoon(t, "--data="+killed.dir, "leader", "change", string(killed.ID))

	after = view(t, client).State
	require.Equal(t, uint64(1), after.Events[0].Seq, "nothing is forgotten")
	for name, dir := range crashing {
		checkRuns(t, after, newest(after, name), dir)
	}
	checkAttempts(t, before, after, "absent")
}

// checkRuns compares the runs of a process that crashes again and again, by the files that they leave, with what the managers know: none
// was left out, and each pause was twice the one before.
func checkRuns(t *testing.T, s *cluster.State, task *cluster.Task, dir string) {
	t.Helper()
	restarts := 0
	for _, e := range s.Events {
		if _, number, ok := strings.Cut(e.Message, ", restart "); ok && e.Subject == task.Name() {
			var n int
			_, err := fmt.Sscanf(number, "%d", &n)
			require.NoError(t, err)
			require.Greater(t, n, restarts, "%s: %s", e.Subject, e.Message)
			restarts = n
		}
	}
	if task.Generation > 1 { // its node was lost, and with it what its process had done
		return
	}
	require.Equal(t, task.Attempts, restarts)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(entries), task.Attempts)
	var at []time.Time
	for _, e := range entries {
		info, err := e.Info()
		require.NoError(t, err)
		at = append(at, info.ModTime())
	}
	slices.SortFunc(at, time.Time.Compare)
	const tick = 20 * time.Millisecond // of the clock that files' times are from
	for i := range len(at) - 1 {
		require.Greater(t, at[i+1].Sub(at[i]), 100*time.Millisecond<<i-tick, "%s, restart %d", task.ID, i+1)
	}
}

// checkAttempts checks that a slot which no node can run was tried again after 0, 1, 2, 4, ... seconds, once each, and that what is known
// of its failures has only grown.
func checkAttempts(t *testing.T, before, after *cluster.State, service string) {
	t.Helper()
	old, slot := before.ServiceByName(service).Slots[0].Failures, after.ServiceByName(service).Slots[0]
	require.Greater(t, len(slot.Failures), len(old))
	require.Equal(t, old, slot.Failures[:len(old)])
	var assigned, rejected []time.Time
	for _, e := range after.Events {
		switch {
		case e.Subject != service+".1":
		case strings.HasPrefix(e.Message, "assigned to"):
			assigned = append(assigned, e.At)
		case strings.HasPrefix(e.Message, "rejected on"):
			rejected = append(rejected, e.At)
		}
	}
	require.Len(t, rejected, len(slot.Failures), "each was rejected once")
	for i, at := range slot.Failures {
		require.True(t, at.Equal(rejected[i]))
		if n := i + 1; n < len(assigned) && n > 1 {
			require.GreaterOrEqual(t, assigned[n].Sub(at), time.Second<<(n-2), "attempt %d", n+1)
		}
	}
	require.Contains(t, []int{len(rejected), len(rejected) + 1}, len(assigned))
	require.Contains(t, []int{len(assigned), len(assigned) + 1}, int(slot.Generation), "one that waits is not assigned yet")
}
