package manager_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
)

// A worker that was off for so long that its certificate has expired comes back under its name, with a join token and the key that it had.
// So does a manager, which needs no token: it has the CA's key. Whoever is not that worker, or was removed, is refused.
func TestNodesComeBackWhoseCertificatesHaveExpired(t *testing.T) {
	f := found(t)
	f.run()
	token := f.token(cluster.RoleWorker)
	w1, w2 := f.join("w1", token), f.join("w2", token)
	f.await("the workers", func(v api.View) bool { return ready(v, "m1", "w1", "w2") })
	for _, w := range []*joined{w1, w2} {
		w.stop()
		require.NoError(t, <-w.ended)
	}
	_, lapsed, err := manager.Lapsed(w1.dir, nil)
	require.NoError(t, err)
	require.Nil(t, lapsed)
	// expire gives a node the certificate that it would have if it had been off for long.
	expire := func(ca *pki.CA, dir string, node cluster.NodeID, role cluster.Role, hosts ...string) {
		ca.Now, ca.Lifetime = func() time.Time { return time.Now().Add(-2 * time.Minute) }, time.Minute
		defer func() { ca.Now, ca.Lifetime = time.Now, pki.NodeLifetime }()
		credentials, err := ca.Issue(node, role, hosts...)
		require.NoError(t, err)
		require.NoError(t, credentials.Save(dir))
	}
	expire(f.ca, filepath.Join(w1.dir, "pki"), "w1", cluster.RoleWorker)
	expire(f.ca, filepath.Join(w2.dir, "pki"), "w2", cluster.RoleWorker)
	_, _, err = manager.Load(w1.dir, nil)
	require.ErrorAs(t, err, new(*manager.LapsedError))
	require.ErrorContains(t, err, "join --data "+w1.dir)

	request, key, err := pki.NewRequest()
	require.NoError(t, err)
	another, _, err := pki.NewRequest()
	require.NoError(t, err)
	former := func(dir string, request []byte) *pki.Proof {
		_, lapsed, err := manager.Lapsed(dir, nil)
		require.NoError(t, err)
		proof, err := lapsed.Prove(request)
		require.NoError(t, err)
		return proof
	}
	join := func(token pki.Token, node cluster.NodeID, former *pki.Proof) (api.JoinAnswer, error) {
		return api.Join(within(t), token, api.JoinRequest{Node: node, Request: request, Host: "127.0.0.1", Former: former}, f.member.API)
	}
	refused := func(code, text string, token pki.Token, node cluster.NodeID, former *pki.Proof) {
		t.Helper()
		_, err := join(token, node, former)
		requireCode(t, code, err)
		require.ErrorContains(t, err, text)
	}
	wrong := token
	wrong.Secret = "wrong"
	refused(api.CodeForbidden, "wrong, was rotated", wrong, "w1", former(w1.dir, request))
	refused(string(cluster.Conflict), "there is a node w1 already", token, "w1", nil)
	refused(api.CodeForbidden, "that of worker w2", token, "w1", former(w2.dir, request))
	refused(api.CodeForbidden, "was not made by the holder", token, "w1", former(w1.dir, another))
	foreign, err := pki.NewCA("test")
	require.NoError(t, err)
	elsewhere := t.TempDir()
	expire(foreign, elsewhere, "w1", cluster.RoleWorker)
	stranger, err := pki.LoadLapsed(elsewhere, time.Now())
	require.NoError(t, err)
	proof, err := stranger.Prove(request)
	require.NoError(t, err)
	refused(api.CodeForbidden, "signed by unknown authority", token, "w1", proof)
	refused(api.CodeForbidden, "the token one for a manager", f.token(cluster.RoleManager), "w1", former(w1.dir, request))

	require.NoError(t, f.client("m1", cluster.RoleManager).Remove(within(t), api.RemoveRequest{Node: "w2", Force: true}))
	refused(api.CodeRemoved, "was removed", token, "w2", former(w2.dir, request))

	answer, err := join(token, "w1", former(w1.dir, request))
	require.NoError(t, err)
	credentials, err := token.Credentials(answer.CA, answer.Certificate, key, nil)
	require.NoError(t, err)
	require.NoError(t, manager.ComeBack(w1.dir, credentials))
	w1.start(cluster.RoleWorker)
	f.await("w1 is back", func(v api.View) bool { return ready(v, "m1", "w1") })

	// So was the manager.
	w1.stop()
	f.stop()
	expire(f.ca, filepath.Join(f.dir, "pki"), "m1", cluster.RoleManager, "127.0.0.1")
	f.run()
	_, renewed, err := manager.Load(f.dir, nil)
	require.NoError(t, err)
	require.True(t, renewed.ExpiresAt().After(time.Now().Add(pki.NodeLifetime-time.Hour)))
	info, err := os.Stat(filepath.Join(f.dir, "pki", "node.pem"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())
}
