package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
)

// A worker whose certificate has expired is told what to do, by every command, and is back under its name when that is done.
func TestWorkerWhoseCertificateHasExpired(t *testing.T) {
	t.Parallel()
	d := machines(t, "127.0.0.1", "127.0.0.1")
	m1, w1 := d.managers["m1"], d.managers["m2"]
	w1.ID = "w1"
	ca, err := pki.NewCA("test")
	require.NoError(t, err)
	settings := manager.Settings{Cluster: "test", Node: "m1", Host: m1.host, Members: d.members[:1]}
	require.NoError(t, manager.Found(t.Context(), m1.dir, settings, ca))
	require.NoError(t, d.launch(m1))
	client := api.NewClient(mustCredentials(t, m1.dir), m1.API)
	defer client.Close()
	require.NoError(t, awaitNodes(t.Context(), client, 1))
	token := strings.TrimSpace(must(t, "--data="+m1.dir, "token", "--role", "worker"))
	require.NoError(t, d.launch(w1, append([]string{"join", "--token", token}, append(flagsOf(t, w1), m1.API)...)...))
	require.NoError(t, awaitNodes(t.Context(), client, 2))
	require.NoError(t, w1.cmd.Process.Kill())
	<-w1.ended
	awaitTrue(t, "w1 is down", func() bool { return view(t, client).State.Nodes["w1"].Status == cluster.NodeDown })

	ca.Now, ca.Lifetime = func() time.Time { return time.Now().Add(-2 * time.Minute) }, time.Minute
	expired, err := ca.Issue("w1", cluster.RoleWorker)
	require.NoError(t, err)
	require.NoError(t, expired.Save(filepath.Join(w1.dir, "pki")))
	for _, command := range [][]string{{"up"}, {"leave"}} {
		code, _, errOut := runCommand(t, append([]string{"--data", w1.dir}, command...)...)
		require.Equal(t, exitRefused, code)
		require.Contains(t, errOut, "the certificate of node w1 expired")
		require.Contains(t, errOut, "join --data "+w1.dir+" --token-file FILE ADDRESS")
	}
	code, _, errOut := runCommand(t, "--data", w1.dir, "join", "--token", token, "--name", "w2", m1.API)
	require.Equal(t, exitRefused, code)
	require.Contains(t, errOut, "--name is w1 there, not w2")
	require.NoError(t, d.launch(w1, "join", "--token", token, m1.API))
	require.NoError(t, awaitNodes(t.Context(), client, 2))
	require.Equal(t, cluster.NodeReady, view(t, client).State.Nodes["w1"].Status)
	log, err := os.ReadFile(w1.dir + ".log")
	require.NoError(t, err)
	require.Contains(t, string(log), "Node w1 is back in cluster test")
}
