package manager_test

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
)

// The status page asks nobody for a certificate, so it is tried what a browser could be made to do by others.
func TestStatusPageIsForThisMachineAndItsButtonsForTokens(t *testing.T) {
	f := found(t)
	listener, err := manager.ListenPage("127.0.0.1:0")
	require.NoError(t, err)
	f.page = listener
	f.run()
	client := f.client("m1", cluster.RoleManager)
	_, err = client.Do(within(t), cluster.CreateService{Spec: cluster.ServiceSpec{Name: "web", Replicas: 0, Task: cluster.TaskSpec{
		Command: []string{"the-command"}, Env: map[string]string{"PASSWORD": "the-secret"}, Restart: cluster.RestartPolicy{Condition: cluster.RestartNo},
	}}})
	require.NoError(t, err)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	ask := func(method, path, body string, change func(*http.Request)) *http.Response {
		t.Helper()
		request, err := http.NewRequestWithContext(within(t), method, "http://"+listener.Addr().String()+path, strings.NewReader(body))
		require.NoError(t, err)
		if change != nil {
			change(request)
		}
		response, err := transport.RoundTrip(request)
		require.NoError(t, err)
		t.Cleanup(func() { _ = response.Body.Close() })
		return response
	}
	origin := func(o string) func(*http.Request) { return func(r *http.Request) { r.Header.Set("Origin", o) } }
	host := func(h string) func(*http.Request) { return func(r *http.Request) { r.Host = h } }
	status := func(path string, change func(*http.Request)) int {
		return ask(http.MethodGet, path, "", change).StatusCode
	}

	for _, path := range []string{"/", "/feed"} {
		require.Equal(t, http.StatusOK, status(path, nil))
		require.Equal(t, http.StatusOK, status(path, host("localhost:9000")), "a port that ssh forwards")
		require.Equal(t, http.StatusOK, status(path, origin("http://127.0.0.9:2379")), "another manager's page")
		require.Equal(t, http.StatusForbidden, status(path, host("evil.example:2379")), "a name that somebody's DNS server points here")
		require.Equal(t, http.StatusForbidden, status(path, origin("https://evil.example")), "another site's page")
		require.Equal(t, http.StatusForbidden, status(path, origin("null")))
	}
	require.Equal(t, http.StatusNotFound, status("/v1/state", nil), "the API is elsewhere")
	shown := ask(http.MethodGet, "/", "", nil)
	require.Contains(t, shown.Header.Get("Content-Security-Policy"), "frame-ancestors 'none'")
	html, err := io.ReadAll(shown.Body)
	require.NoError(t, err)
	require.NotContains(t, string(html), "{{nonce}}")

	// What it shows: names and states.
	feed := bufio.NewReader(ask(http.MethodGet, "/feed", "", nil).Body)
	line, err := feed.ReadString('\n')
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(line, "data: "), line)
	require.True(t, json.Valid([]byte(strings.TrimPrefix(line, "data: "))))
	require.Contains(t, line, `"name":"web"`)
	for _, private := range []string{"the-command", "the-secret", "PASSWORD", f.member.API, f.member.Raft} {
		require.NotContains(t, line, private)
	}
	_, err = client.Do(within(t), cluster.SetAvailability{Node: "m1", Availability: cluster.AvailabilityPause})
	require.NoError(t, err)
	for !strings.Contains(line, `"availability":"pause"`) {
		line, err = feed.ReadString('\n')
		require.NoError(t, err)
	}

	// What its buttons do: nothing without a token that only the CA's key makes.
	good, err := manager.PageToken(f.dir, time.Now().Add(time.Hour))
	require.NoError(t, err)
	expired, err := manager.PageToken(f.dir, time.Now().Add(-time.Second))
	require.NoError(t, err)
	other, err := pki.NewCA("test")
	require.NoError(t, err)
	foreign, err := other.PageToken(time.Now().Add(time.Hour))
	require.NoError(t, err)
	longer := strings.Replace(good, "page1-", "page1-9", 1)
	const drain = `{"do":"availability","node":"m1","availability":"drain"}`
	for name, token := range map[string]string{
		"none": "", "expired": expired, "of another cluster": foreign, "with a later end": longer, "cut": good[:len(good)-1], "odd": "page1-x-y",
	} {
		response := ask(http.MethodPost, "/do", drain, func(r *http.Request) { r.Header.Set(manager.PageTokenHeader, token) })
		require.Equal(t, http.StatusForbidden, response.StatusCode, name)
		require.Contains(t, readError(t, response).Message, "orchestrator page")
	}
	with := func(more func(*http.Request)) func(*http.Request) {
		return func(r *http.Request) {
			r.Header.Set(manager.PageTokenHeader, good)
			if more != nil {
				more(r)
			}
		}
	}
	require.Equal(t, http.StatusForbidden, ask(http.MethodPost, "/do", drain, with(origin("https://evil.example"))).StatusCode)
	require.Equal(t, http.StatusForbidden, ask(http.MethodPost, "/do", drain, with(host("evil.example"))).StatusCode)
	require.Equal(t, http.StatusBadRequest, ask(http.MethodPost, "/do", `{"do":"everything"}`, with(nil)).StatusCode)
	require.Equal(t, http.StatusBadRequest, ask(http.MethodPost, "/do", strings.Repeat(" ", 5<<10)+drain, with(nil)).StatusCode)
	require.Equal(t, http.StatusNotFound, ask(http.MethodPost, "/do", `{"do":"kill","task":"s9.1.1"}`, with(nil)).StatusCode)
	v, err := client.State(within(t))
	require.NoError(t, err)
	require.Equal(t, cluster.AvailabilityPause, v.State.Nodes["m1"].Availability, "nothing of that has happened")
	require.Equal(t, http.StatusOK, ask(http.MethodPost, "/do", drain, with(nil)).StatusCode)
	f.await("drain", func(v api.View) bool { return v.State.Nodes["m1"].Availability == cluster.AvailabilityDrain })

	// And where it listens.
	for _, address := range []string{"0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:0", "example.org:0"} {
		_, err := manager.ListenPage(address)
		require.ErrorContains(t, err, "want a loopback address", address)
	}
	_, err = manager.ListenPage(listener.Addr().String())
	require.ErrorContains(t, err, "in use by another process")
	_, err = manager.PageToken(t.TempDir(), time.Now().Add(time.Hour))
	require.ErrorContains(t, err, "no manager's data directory")
}
