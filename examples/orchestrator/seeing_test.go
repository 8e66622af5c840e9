package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// printed is what a command has printed so far.
type printed struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (p *printed) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *printed) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// follow runs a command that goes on until it is stopped, which is no failure of it.
func follow(t *testing.T, args ...string) (out, errOut *printed, stop func()) {
	t.Helper()
	out, errOut = &printed{}, &printed{}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, args, strings.NewReader(""), out, errOut) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.Zero(t, <-ended, "%s", errOut)
	})
	t.Cleanup(stop)
	return out, errOut, stop
}

// Whoever follows the events sees each of them once and in order, whatever becomes of the leader and of the manager that answers.
func TestEventsAreNeitherLostNorRepeated(t *testing.T) {
	t.Parallel()
	d := found(t, testHosts()...)
	for _, m := range d.managers {
		require.NoError(t, d.launch(m))
	}
	var addresses []string
	for _, m := range d.members {
		addresses = append(addresses, m.API)
	}
	client := api.NewClient(d.creds, addresses...)
	defer client.Close()
	require.NoError(t, awaitNodes(t.Context(), client, 3))
	data := "--data=" + d.managers["m1"].dir
	out, _, stop := follow(t, data, "events", "-f", "--format", "json")
	seen := func() (events []cluster.Event) {
		decoder := json.NewDecoder(strings.NewReader(out.String()))
		for {
			var e cluster.Event
			if err := decoder.Decode(&e); err != nil {
				return events // the last line may be half written
			}
			events = append(events, e)
		}
	}
	happen := func(what string) {
		must(t, data, "service", "create", "--name", what, "--", d.program, webCommand)
		awaitTrue(t, "the event of "+what, func() bool {
			all := seen()
			for i, e := range all {
				require.Equal(t, uint64(i+1), e.Seq)
			}
			return len(all) > 0 && strings.Contains(out.String(), `"`+what+`","message":"created`)
		})
	}
	happen("first")
	for i := range 3 { // the leader changes, and with it the manager that is asked sometimes
		v := view(t, client)
		target := d.members[(i+1)%3].ID
		if target != v.Leader {
			runCommand(t, data, "leader", "change", string(target))
		}
		happen(fmt.Sprintf("change%d", i))
	}
	killed := d.managers[view(t, client).Leader]
	require.NoError(t, killed.cmd.Process.Kill())
	<-killed.ended
	happen("killed")
	require.NoError(t, d.launch(killed))
	require.NoError(t, awaitNodes(t.Context(), client, 3))
	happen("back")
	hanging := d.managers[view(t, client).Leader] // it accepts connections and never answers
	require.NoError(t, hanging.cmd.Process.Signal(syscall.SIGSTOP))
	happen("hanging")
	require.NoError(t, hanging.cmd.Process.Signal(syscall.SIGCONT))
	require.NoError(t, awaitNodes(t.Context(), client, 3))
	happen("last")

	awaitTrue(t, "the same events as in the state", func() bool {
		events, all := seen(), view(t, client).State.Events
		if len(events) < len(all) {
			return false
		}
		require.Equal(t, all, events[:len(all)])
		return true
	})
	stop()

	lines := must(t, data, "events")
	require.Regexp(t, `(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}  service  last +created`, lines)
	require.NotContains(t, must(t, data, "events", "--since", "0s"), "created")
	require.Contains(t, must(t, data, "events", "--since", "10m"), "created")
	require.Contains(t, must(t, data, "events", "--since", time.Now().Add(-time.Hour).Format(time.RFC3339)), "created")
	for _, bad := range [][]string{{"--since", "yesterday"}, {"--since", "-3s"}, {"more"}} {
		code, _, errOut := runCommand(t, append([]string{data, "events"}, bad...)...)
		require.Equal(t, exitUsage, code, errOut)
	}
}

const chatty = `echo "begins with $1"; i=0; while :; do i=$((i+1)); echo "line $i of $1"; sleep 0.05; done`

// What tasks write is read on the nodes that have it, through any manager, across restarts.
func TestServiceLogs(t *testing.T) {
	t.Parallel()
	d := found(t, testHosts()...)
	for _, m := range d.managers {
		require.NoError(t, d.launch(m))
	}
	client := api.NewClient(d.creds, d.members[0].API, d.members[1].API)
	defer client.Close()
	require.NoError(t, awaitNodes(t.Context(), client, 3))
	data := "--data=" + d.managers["m1"].dir
	must(t, data, "service", "create", "--name", "chat", "--replicas", "3", "--", "sh", "-c", chatty, "sh", "alpha")
	for _, m := range d.members { // every manager passes on the output of every node
		lines := mustSoon(t, "--data="+d.managers[m.ID].dir, "service", "logs", "chat")
		for slot := 1; slot <= 3; slot++ {
			require.Regexp(t, fmt.Sprintf(`(?m)^chat\.%d\.1@m\d \| begins with alpha\n`, slot), lines)
		}
	}
	require.Len(t, strings.Split(strings.TrimSpace(mustSoon(t, data, "service", "logs", "--tail", "2", "chat.1.1")), "\n"), 2)
	out, errOut, stop := follow(t, data, "service", "logs", "-f", "--tail", "1", "chat")
	awaitTrue(t, "lines of all three", func() bool {
		return strings.Contains(out.String(), "chat.1.1@") && strings.Contains(out.String(), "chat.2.1@") && strings.Contains(out.String(), "chat.3.1@")
	})
	v := view(t, client)
	task := v.State.TasksOf(v.State.ServiceByName("chat").ID)[0]
	before := len(out.String())
	_, err := client.Do(t.Context(), cluster.KillTask{Task: task.ID})
	require.NoError(t, err)
	awaitTrue(t, "the first words after the restart", func() bool {
		return strings.Contains(out.String()[before:], "chat.1.1@"+string(task.Node)+" | begins with alpha")
	})
	must(t, data, "service", "scale", "chat=4")
	awaitTrue(t, "a new task's first words", func() bool { return regexp.MustCompile(`chat\.4\.1@m\d \| `).MatchString(out.String()) })
	for slot := 1; slot <= 4; slot++ { // no line of the new task or the old ones is missing or comes twice
		lines := regexp.MustCompile(fmt.Sprintf(`(?m)^chat\.%d\.1@m\d \| line (\d+) of alpha$`, slot)).FindAllStringSubmatch(out.String(), -1)
		last := 0
		for _, line := range lines {
			n := 0
			_, err := fmt.Sscan(line[1], &n)
			require.NoError(t, err)
			require.True(t, last == 0 || n == last+1 || n == 1 && slot == 1, "%d behind %d", n, last)
			last = n
		}
	}
	must(t, data, "service", "rm", "chat")
	stop()
	require.NotContains(t, errOut.String(), "broke off")
	for _, test := range []struct {
		args []string
		code int
		text string
	}{
		{[]string{"nothing"}, exitRefused, `no service and no task "nothing"`},
		{[]string{}, exitUsage, "want a service or a task"},
	} {
		code, _, errOut := runCommand(t, append([]string{data, "service", "logs"}, test.args...)...)
		require.Equal(t, test.code, code, errOut)
		require.Contains(t, errOut, test.text)
	}
}

// A reader that goes away ends what the node sends, also while the task is silent.
func TestSilentOutputIsGivenUpWithItsReader(t *testing.T) {
	t.Parallel()
	data, _ := single(t)
	must(t, data, "service", "create", "--name", "quiet", "--", "sh", "-c", "echo once; exec sleep 1000")
	for range 2 { // together more than a node sends at the same time
		var outs []*printed
		var stops []func()
		for range 20 {
			out, _, stop := follow(t, data, "service", "logs", "-f", "quiet")
			outs, stops = append(outs, out), append(stops, stop)
		}
		for _, out := range outs {
			awaitTrue(t, "its only line", func() bool { return strings.Contains(out.String(), "once") })
		}
		for _, stop := range stops {
			stop()
		}
	}
}
