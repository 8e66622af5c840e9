package manager_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
)

// operator is a client with the certificate that a manager's data directory holds from time to time, as the command line is.
func (f *fixture) operator() *api.Client {
	f.t.Helper()
	_, credentials, err := manager.Load(f.dir, f.clock)
	require.NoError(f.t, err)
	client := api.NewClient(credentials, f.member.API)
	client.Refresh = func() bool {
		changed, err := credentials.Refresh(manager.CredentialsDirectory(f.dir))
		return err == nil && changed
	}
	f.t.Cleanup(client.Close)
	return client
}

// rotateTo asks for steps of a rotation until it is in a phase.
func (f *fixture) rotateTo(client *api.Client, phase cluster.RotationPhase, first api.RotateRequest) {
	f.t.Helper()
	request := first
	require.Eventually(f.t, func() bool {
		answer, err := client.Rotate(within(f.t), request)
		require.NoError(f.t, err)
		request = api.RotateRequest{}
		return answer.Phase == phase
	}, patience, 10*time.Millisecond)
}

// A connection that was made before the rotation is worth no more than the certificate with which it was made.
func TestConnectionsOfADroppedCAAreRefused(t *testing.T) {
	f := found(t)
	f.run()
	kept := f.client("m1", cluster.RoleManager) // it keeps its connection, and is silent while the CA is rotated
	_, err := kept.State(within(t))
	require.NoError(t, err)
	operator := f.operator()
	f.rotateTo(operator, cluster.RenewAll, api.RotateRequest{Begin: true})
	_, err = operator.Rotate(within(t), api.RotateRequest{Abort: true})
	requireCode(t, string(cluster.Conflict), err)
	f.rotateTo(operator, cluster.NoRotation, api.RotateRequest{})
	_, err = kept.State(within(t))
	requireCode(t, api.CodeForbidden, err)
	require.ErrorContains(t, err, "of a CA that was dropped")
	_, err = operator.State(within(t))
	require.NoError(t, err)
}

// A manager that is started again in the middle of a rotation has the new CA's key, and does not believe what is in its log of before.
func TestRotationSurvivesARestart(t *testing.T) {
	f := found(t)
	f.run()
	operator := f.operator()
	first := pki.CADigest(f.ca.Certificate())
	f.rotateTo(operator, cluster.RenewAll, api.RotateRequest{Begin: true})
	f.rotateTo(operator, cluster.NoRotation, api.RotateRequest{})
	f.rotateTo(operator, cluster.TrustBoth, api.RotateRequest{Begin: true})
	f.stop()
	f.run()
	operator = f.operator()
	f.rotateTo(operator, cluster.RenewAll, api.RotateRequest{})
	f.stop()
	f.run()
	operator = f.operator()
	f.rotateTo(operator, cluster.NoRotation, api.RotateRequest{})
	v, err := operator.State(within(t))
	require.NoError(t, err)
	f.stop()
	f.run()
	operator = f.operator()
	require.Never(t, func() bool { // also while it goes through its log
		_, credentials, err := manager.Load(f.dir, nil)
		require.NoError(t, err)
		return len(credentials.Trusts()) != 1 || credentials.Trusts()[0] == first || credentials.Issuer() != v.State.Cluster.CA.Signing
	}, 500*time.Millisecond, 5*time.Millisecond)
	_, err = operator.Do(within(t), cluster.SetToken{Role: cluster.RoleWorker, SecretHash: pki.SecretHash("a")})
	require.NoError(t, err)
}

// What is in the log of a manager that starts is the past: nothing of it is followed until it is known to be the newest.
func TestCAsOfThePastAreNotFollowed(t *testing.T) {
	f := found(t)
	m, err := manager.Open(f.dir, manager.Options{Logger: testLogger(t)})
	require.NoError(t, err)
	defer m.Release()
	next, err := pki.NewCA("test")
	require.NoError(t, err)
	require.NoError(t, m.Keep(next))
	trusted := func(ca *pki.CA) cluster.TrustedCA {
		return cluster.TrustedCA{Digest: pki.CADigest(ca.Certificate()), Certificate: ca.CertificatePEM()}
	}
	require.NoError(t, m.Apply(1, cluster.BeginRotation{Old: trusted(f.ca), New: trusted(next)}))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	require.NoError(t, m.FollowCA(ctx))
	_, credentials, err := manager.Load(f.dir, nil)
	require.NoError(t, err)
	require.Equal(t, []string{trusted(f.ca).Digest}, credentials.Trusts(), "the node does not run, so nobody knows whether that is the newest")
}

// The key of a new CA is kept from before the state knows of it until the CA is dropped.
func TestNewKeyIsKeptUntilItIsKnown(t *testing.T) {
	f := found(t)
	m, err := manager.Open(f.dir, manager.Options{Logger: testLogger(t)})
	require.NoError(t, err)
	defer m.Release()
	begin, err := m.NewCA()
	require.NoError(t, err)
	before := cluster.Authority{Trusted: []cluster.TrustedCA{begin.Old}, Signing: begin.Old.Digest}
	m.Forget(before)
	require.True(t, m.HasKey(begin.New.Digest))
	m.Forget(cluster.Authority{Trusted: []cluster.TrustedCA{begin.Old, begin.New}, Signing: begin.Old.Digest})
	require.True(t, m.HasKey(begin.New.Digest))
	m.Forget(before) // the rotation was given up
	require.False(t, m.HasKey(begin.New.Digest))
	require.NoDirExists(t, filepath.Join(f.dir, "ca", begin.New.Digest))
}
