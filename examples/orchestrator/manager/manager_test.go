package manager_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/agent"
	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
)

const patience = time.Minute

// replaceAfter is much shorter than in the field: a node counts as down after some seconds in any case.
const replaceAfter = 100 * time.Millisecond

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixture is a cluster of one manager and its authority.
type fixture struct {
	t       *testing.T
	dir     string
	ca      *pki.CA
	member  api.Member
	manager *manager.Manager
	stop    func()
	clock   func() time.Time // for certificates; nil: the real one
	page    net.Listener     // nil: no status page
}

func found(t *testing.T) *fixture {
	t.Helper()
	ca, err := pki.NewCA("test")
	require.NoError(t, err)
	f := &fixture{t: t, dir: t.TempDir(), ca: ca, member: api.Member{ID: "m1", API: freeAddress(t), Raft: freeAddress(t)}}
	require.NoError(t, manager.Found(t.Context(), f.dir, f.settings(), ca))
	return f
}

func (f *fixture) settings() manager.Settings {
	return manager.Settings{Cluster: "test", Node: "m1", Host: "127.0.0.1", Members: []api.Member{f.member}}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	for range 1000 {
		address := fmt.Sprintf("127.0.0.1:%d", 2000+os.Getpid()%70*100+int(ports.Add(1)))
		if l, err := net.Listen("tcp", address); err == nil {
			require.NoError(t, l.Close())
			return address
		}
	}
	require.FailNow(t, "no port is free")
	return ""
}

// ports counts those that were given out. They are not the system's choice, which could also give them to an outgoing connection before
// they are used.
var ports atomic.Int32

func (f *fixture) run() {
	f.t.Helper()
	m, err := manager.Open(f.dir, manager.Options{Now: f.clock, RenewInterval: renewInterval, ReplaceVotersAfter: replaceAfter, Page: f.page, Logger: testLogger(f.t)})
	require.NoError(f.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	f.manager = m
	stopped := false
	f.stop = func() {
		if !stopped {
			stopped = true
			cancel()
			require.NoError(f.t, <-ended)
		}
	}
	f.t.Cleanup(f.stop)
	client := f.operator()
	require.Eventually(f.t, func() bool {
		v, err := client.State(within(f.t))
		return err == nil && v.State.Nodes["m1"] != nil && v.State.Nodes["m1"].Status == cluster.NodeReady
	}, patience, 10*time.Millisecond)
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func (f *fixture) client(node cluster.NodeID, role cluster.Role) *api.Client {
	f.t.Helper()
	c := api.NewClient(f.credentials(node, role), f.member.API)
	f.t.Cleanup(c.Close)
	return c
}

func (f *fixture) credentials(node cluster.NodeID, role cluster.Role) *pki.Credentials {
	f.t.Helper()
	credentials, err := f.ca.Issue(node, role)
	require.NoError(f.t, err)
	return credentials
}

func readError(t *testing.T, response *http.Response) *api.Error {
	t.Helper()
	answer := &api.Error{}
	require.NoError(t, json.NewDecoder(response.Body).Decode(answer))
	require.NotEmpty(t, answer.Code)
	return answer
}

func registration(node cluster.NodeID, session string) agent.Registration {
	return agent.Registration{Node: node, Session: session, Address: "w:1", Role: cluster.RoleWorker}
}

func requireCode(t *testing.T, code string, err error) {
	t.Helper()
	var answer *api.Error
	require.ErrorAs(t, err, &answer)
	require.Equal(t, code, answer.Code, answer.Message)
}

// A worker's certificate lets its agent speak for its own node and for nothing else.
func TestCertificateDecidesWhatACallerMayDo(t *testing.T) {
	f := found(t)
	f.run()
	worker := f.client("w1", cluster.RoleWorker)
	require.NoError(t, worker.Register(within(t), registration("w1", "a")))
	_, err := worker.Heartbeat(within(t), agent.Heartbeat{Node: "w1", Session: "a"})
	require.NoError(t, err)

	requireCode(t, api.CodeForbidden, worker.Register(within(t), registration("w2", "a")))
	asManager := registration("w1", "b")
	asManager.Role = cluster.RoleManager
	requireCode(t, api.CodeForbidden, worker.Register(within(t), asManager))
	_, err = worker.Heartbeat(within(t), agent.Heartbeat{Node: "m1", Session: "a"})
	requireCode(t, api.CodeForbidden, err)
	_, err = worker.Watch(within(t), agent.WatchRequest{Node: "m1"})
	requireCode(t, api.CodeForbidden, err)
	_, err = worker.State(within(t))
	requireCode(t, api.CodeForbidden, err)
	_, err = worker.Do(within(t), cluster.SetAvailability{Node: "m1", Availability: cluster.AvailabilityDrain})
	requireCode(t, api.CodeForbidden, err)
	_, err = worker.Do(within(t), cluster.KillTask{Task: "s1.1.1"})
	requireCode(t, api.CodeForbidden, err)

	stranger, err := pki.NewCA("test") // the same name, and another key
	require.NoError(t, err)
	credentials, err := stranger.Issue("m1", cluster.RoleManager)
	require.NoError(t, err)
	foreign := api.NewClient(credentials, f.member.API)
	defer foreign.Close()
	_, err = foreign.State(within(t))
	requireCode(t, api.CodeForbidden, err)
}

// What the control loop does cannot be asked for from outside, not even by a manager.
func TestCommandsOfTheControlLoopAreNotTakenFromOutside(t *testing.T) {
	f := found(t)
	f.run()
	client := f.client("m1", cluster.RoleManager)
	for _, op := range []cluster.Op{
		cluster.StartEpoch{Leader: "m1"}, cluster.SetNodeStatus{Node: "m1", Status: cluster.NodeDown}, cluster.LoseTask{Task: "a"},
		cluster.Report{Node: "m1"}, cluster.RegisterNode{Node: "w1"}, cluster.ExplainTask{Task: "a"}, cluster.EndUpdate{Service: "a"},
		cluster.NoteLoad{Service: "a"}, cluster.AutoscaleService{Service: "a"},
		cluster.BeginRotation{Old: cluster.TrustedCA{Digest: "a"}, New: cluster.TrustedCA{Digest: "b"}}, cluster.UseNewCA{New: "b"}, cluster.EndRotation{Signing: "b"},
	} {
		_, err := client.Do(within(t), op)
		requireCode(t, api.CodeForbidden, err)
	}
	for _, op := range []cluster.Op{
		cluster.RemoveService{Service: "none"}, cluster.RollbackService{Service: "none"}, cluster.SetAutoscale{Service: "none"},
		cluster.SetLabels{Node: "none"},
	} {
		_, err := client.Do(within(t), op)
		requireCode(t, string(cluster.NotFound), err)
	}
}

func TestAgentsAreToldWhenTheyAreReplacedOrUnknown(t *testing.T) {
	f := found(t)
	f.run()
	worker := f.client("w1", cluster.RoleWorker)
	_, err := worker.Heartbeat(within(t), agent.Heartbeat{Node: "w1", Session: "a"})
	require.ErrorIs(t, err, agent.ErrUnknownNode)
	require.NoError(t, worker.Register(within(t), registration("w1", "a")))
	require.NoError(t, worker.Register(within(t), registration("w1", "b")))
	_, err = worker.Heartbeat(within(t), agent.Heartbeat{Node: "w1", Session: "a"})
	require.ErrorIs(t, err, agent.ErrSuperseded)
}

// A watch ends with the news, not with the next heartbeat.
func TestWatchEndsWhenThereIsWork(t *testing.T) {
	f := found(t)
	f.run()
	worker := f.client("w1", cluster.RoleWorker)
	require.NoError(t, worker.Register(within(t), registration("w1", "a")))
	told, err := worker.Heartbeat(within(t), agent.Heartbeat{Node: "w1", Session: "a"})
	require.NoError(t, err)
	told, err = worker.Watch(within(t), agent.WatchRequest{Node: "w1", Session: "a"}) // the first one ends at once: what w1 knows is not known
	require.NoError(t, err)

	type answer struct {
		agent.Assignments
		err error
	}
	news := make(chan answer, 1)
	go func() {
		a, err := worker.Watch(within(t), agent.WatchRequest{Node: "w1", Session: "a", Known: told.Fence})
		news <- answer{a, err}
	}()
	client := f.client("m1", cluster.RoleManager)
	require.Eventually(t, func() bool {
		v, err := client.State(within(t))
		return err == nil && v.State.Nodes["w1"].Status == cluster.NodeReady
	}, patience, 10*time.Millisecond)
	_, err = client.Do(within(t), cluster.SetAvailability{Node: "m1", Availability: cluster.AvailabilityPause})
	require.NoError(t, err)
	_, err = client.Do(within(t), cluster.CreateService{Spec: cluster.ServiceSpec{
		Name: "web", Replicas: 1, Task: cluster.TaskSpec{Command: []string{"web"}, Restart: cluster.RestartPolicy{Condition: cluster.RestartAlways}},
	}})
	require.NoError(t, err)
	a := <-news
	require.NoError(t, a.err)
	require.Len(t, a.Tasks, 1)
	require.Equal(t, cluster.DesiredRunning, a.Tasks[0].Desired)
	require.True(t, told.Fence.Less(a.Fence))
	require.Equal(t, []string{f.member.API}, a.Managers)
}

// A node that is not heard any more is down after three heartbeats, and its task is replaced elsewhere.
func TestSilentNodeIsDown(t *testing.T) {
	f := found(t)
	f.run()
	worker := f.client("w1", cluster.RoleWorker)
	require.NoError(t, worker.Register(within(t), registration("w1", "a")))
	_, err := worker.Heartbeat(within(t), agent.Heartbeat{Node: "w1", Session: "a"})
	require.NoError(t, err)
	client := f.client("m1", cluster.RoleManager)
	seen := map[cluster.NodeStatus]bool{}
	require.Eventually(t, func() bool {
		v, err := client.State(within(t))
		if err == nil {
			seen[v.State.Nodes["w1"].Status] = true
		}
		return seen[cluster.NodeDown]
	}, patience, 10*time.Millisecond)
	require.True(t, seen[cluster.NodeReady])
}

// A manager that is started again has its state, leads a later epoch, and refuses what the epoch before had still to say.
func TestRestartKeepsTheStateAndRefusesTheEarlierEpoch(t *testing.T) {
	f := found(t)
	f.run()
	client := f.client("m1", cluster.RoleManager)
	result, err := client.Do(within(t), cluster.CreateService{Spec: cluster.ServiceSpec{
		Name: "web", Task: cluster.TaskSpec{Command: []string{"web"}, Restart: cluster.RestartPolicy{Condition: cluster.RestartNo}},
	}})
	require.NoError(t, err)
	before, err := client.State(within(t))
	require.NoError(t, err)
	f.stop()

	f.run()
	epoch := before.State.Cluster.Epoch
	require.Eventually(t, func() bool {
		v, err := client.State(within(t))
		require.NoError(t, err)
		require.Contains(t, v.State.Services, result.Service)
		return v.State.Cluster.Epoch > epoch
	}, patience, 10*time.Millisecond)
	late, err := cluster.Encode(cluster.Command{Epoch: epoch, At: time.Now(), Op: cluster.SetNodeStatus{Node: "m1", Status: cluster.NodeDown}})
	require.NoError(t, err)
	_, err = f.manager.Node().Propose(within(t), late, raft.IfTerm(epoch))
	require.ErrorIs(t, err, raft.ErrStaleTerm)
	answer, err := f.manager.Node().Propose(within(t), late)
	require.NoError(t, err)
	require.Equal(t, cluster.Stale, answer.(cluster.Result).Code)
}

func TestRequestsAreBounded(t *testing.T) {
	f := found(t)
	f.run()
	credentials, err := f.ca.Issue("w1", cluster.RoleWorker)
	require.NoError(t, err)
	transport := &http.Transport{TLSClientConfig: credentials.ClientTLS("m1")}
	defer transport.CloseIdleConnections()
	post := func(path string, body io.Reader) *http.Response {
		request, err := http.NewRequestWithContext(within(t), http.MethodPost, "https://"+f.member.API+path, body)
		require.NoError(t, err)
		response, err := transport.RoundTrip(request)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, response.Body.Close()) })
		return response
	}
	long := append([]byte(`{"node":"`), bytes.Repeat([]byte("a"), api.MaxRequestBytes)...)
	require.Equal(t, http.StatusBadRequest, post(api.PathHeartbeat, bytes.NewReader(long)).StatusCode)
	// What a node says about itself goes into the state, and stays there.
	long = append([]byte(`{"node":"w1","session":"a","role":"worker","labels":{"a":"`), bytes.Repeat([]byte("a"), 64<<10)...)
	require.Equal(t, http.StatusBadRequest, post(api.PathRegister, bytes.NewReader(append(long, `"}}`...))).StatusCode)
	for _, body := range []string{"", "null", "[]", `{"node":1}`, `{"tasks":[null]}`, "{"} {
		for _, path := range []string{api.PathRegister, api.PathHeartbeat, api.PathWatch} {
			response := post(path, bytes.NewReader([]byte(body)))
			require.GreaterOrEqual(t, response.StatusCode, 400, "%s %q", path, body)
			require.Less(t, response.StatusCode, 500, "%s %q", path, body)
			readError(t, response)
		}
	}
}

func TestDirectoryIsNotTakenTwice(t *testing.T) {
	f := found(t)
	require.ErrorContains(t, manager.Found(t.Context(), f.dir, f.settings(), f.ca), "belongs to a node already")

	f.run()
	_, err := manager.Open(f.dir, manager.Options{})
	require.ErrorContains(t, err, "in use by another process")
	f.stop()

	_, err = manager.Open(t.TempDir(), manager.Options{})
	require.ErrorIs(t, err, manager.ErrNoNode)

	// The certificate of another node is noticed before anything is started.
	other, err := f.ca.Issue("m2", cluster.RoleManager)
	require.NoError(t, err)
	require.NoError(t, other.Save(filepath.Join(f.dir, "pki")))
	_, err = manager.Open(f.dir, manager.Options{})
	require.ErrorContains(t, err, "put back the one that belongs here")

	require.NoError(t, os.WriteFile(filepath.Join(f.dir, "node.json"), []byte("{"), 0o600))
	_, err = manager.Open(f.dir, manager.Options{})
	require.ErrorContains(t, err, "node.json")
}

func TestErrorsAreTranslated(t *testing.T) {
	for _, test := range []struct {
		err  error
		code string
	}{
		{&raft.UncertainError{Cause: context.DeadlineExceeded}, api.CodeUncertain},
		{&raft.NotLeaderError{}, api.CodeUnavailable},
		{raft.ErrDropped, api.CodeUnavailable},
		{context.DeadlineExceeded, api.CodeUnavailable},
		{&raft.FailedError{Cause: errors.New("disk")}, api.CodeUnavailable},
		{raft.ErrTooLarge, string(cluster.Invalid)},
		{&cluster.RefusedError{Code: cluster.Conflict}, string(cluster.Conflict)},
		{errors.New("what is this"), api.CodeInternal},
	} {
		require.Equal(t, test.code, api.ErrorOf(test.err).Code, "%v", test.err)
	}
}
