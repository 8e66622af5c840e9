package manager_test

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/agent"
	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// The output of a task comes from the node that has it, once, and from nobody else.
func TestOutputComesFromTheNodeThatWasAsked(t *testing.T) {
	f := found(t)
	f.run()
	client := f.client("m1", cluster.RoleManager)
	w1, w2 := f.client("w1", cluster.RoleWorker), f.client("w2", cluster.RoleWorker)
	for id, w := range map[cluster.NodeID]*api.Client{"w1": w1, "w2": w2} {
		require.NoError(t, w.Register(within(t), registration(id, "a")))
	}
	beat := func() agent.Assignments {
		t.Helper()
		told, err := w1.Heartbeat(within(t), agent.Heartbeat{Node: "w1", Session: "a"})
		require.NoError(t, err)
		return told
	}
	_, err := client.Do(within(t), cluster.SetAvailability{Node: "m1", Availability: cluster.AvailabilityPause})
	require.NoError(t, err)
	_, err = client.Do(within(t), cluster.CreateService{Spec: cluster.ServiceSpec{
		Name: "web", Replicas: 1, Task: cluster.TaskSpec{Command: []string{"web"}, Restart: cluster.RestartPolicy{Condition: cluster.RestartAlways}},
	}})
	require.NoError(t, err)
	var told agent.Assignments
	require.Eventually(t, func() bool {
		told = beat()
		return len(told.Tasks) == 1
	}, patience, 10*time.Millisecond)

	type result struct {
		text string
		err  error
	}
	ask := func() chan result {
		got := make(chan result, 1)
		go func() {
			var r result
			r.err = client.Logs(within(t), api.LogsRequest{Task: told.Tasks[0].ID, Tail: 7}, func(from io.Reader) error {
				text, err := io.ReadAll(from)
				r.text = string(text)
				return err
			})
			got <- r
		}()
		return got
	}
	known := map[string]bool{}
	request := func() (wanted agent.OutputRequest) { // one that was not there before
		t.Helper()
		require.Eventually(t, func() bool {
			for _, r := range beat().Output {
				if !known[r.ID] {
					wanted, known[r.ID] = r, true
					return true
				}
			}
			return false
		}, patience, 10*time.Millisecond)
		return wanted
	}
	got := ask()
	wanted := request()
	require.Equal(t, agent.OutputRequest{ID: wanted.ID, Task: told.Tasks[0].ID, Manager: f.member.API, Tail: 7}, wanted)
	require.Equal(t, wanted, beat().Output[0], "said again, because an answer may get lost")
	requireCode(t, string(cluster.NotFound), w2.SendOutput(within(t), wanted.ID, strings.NewReader("forged"), ""))
	require.NoError(t, w1.SendOutput(within(t), wanted.ID, strings.NewReader("line 1\nline 2\n"), ""))
	require.Equal(t, result{text: "line 1\nline 2\n"}, <-got)
	requireCode(t, string(cluster.NotFound), w1.SendOutput(within(t), wanted.ID, strings.NewReader("again"), ""))

	// A node that has nothing says why.
	got = ask()
	_ = w1.SendOutput(within(t), request().ID, nil, "it is gone: 100%\nreally") // the reader's answer ends it
	r := <-got
	requireCode(t, string(cluster.Conflict), r.err)
	require.ErrorContains(t, r.err, "it is gone: 100%\nreally")

	// Output that breaks off is not taken for the whole.
	got = ask()
	_ = w1.SendOutput(within(t), request().ID, io.MultiReader(strings.NewReader("half"), broken{}), "")
	r = <-got
	require.ErrorContains(t, r.err, "unexpected EOF")
	require.Equal(t, "half", r.text)
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("the disk is gone") }
