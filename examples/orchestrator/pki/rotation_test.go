package pki

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// While a CA is rotated both are trusted, and a node never drops the one that its own certificate hangs on.
func TestTrustIsReplacedWithoutLosingOneself(t *testing.T) {
	before, err := NewCA("test")
	require.NoError(t, err)
	after, err := NewCA("test")
	require.NoError(t, err)
	c, err := before.Issue("m1", cluster.RoleManager)
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, c.Save(dir))
	both := slices.Concat(before.CertificatePEM(), after.CertificatePEM())
	renewed := func(ca *CA) (cert, key []byte) {
		request, key, err := NewRequest()
		require.NoError(t, err)
		cert, err = ca.Sign(request, "m1", cluster.RoleManager)
		require.NoError(t, err)
		return cert, key
	}
	other, err := Load(dir, nil) // a command that runs meanwhile
	require.NoError(t, err)
	cert, key := renewed(after)
	require.Error(t, c.Replace(dir, cert, key), "of a CA that is not trusted yet")
	require.ErrorContains(t, c.SetTrust(dir, after.CertificatePEM()), "is to be dropped")
	require.ErrorContains(t, c.SetTrust(dir, nil), "no PEM certificate")
	require.NoError(t, c.SetTrust(dir, both))
	require.Equal(t, CADigest(before.Certificate()), c.Issuer())
	require.NoError(t, c.Replace(dir, cert, key))
	require.Equal(t, CADigest(after.Certificate()), c.Issuer())
	require.NoError(t, c.SetTrust(dir, after.CertificatePEM()))
	require.Equal(t, []string{CADigest(after.Certificate())}, c.Trusts())
	cert, key = renewed(before)
	require.Error(t, c.Replace(dir, cert, key))
	for _, want := range []bool{true, false} {
		changed, err := other.Refresh(dir)
		require.NoError(t, err)
		require.Equal(t, want, changed)
	}
	require.Equal(t, c.Issuer(), other.Issuer())
	require.Equal(t, c.Trusts(), other.Trusts())
	stranger, err := after.Issue("m2", cluster.RoleManager)
	require.NoError(t, err)
	_, err = stranger.Refresh(dir)
	require.ErrorContains(t, err, "another node")
	info, err := os.Stat(filepath.Join(dir, "ca.pem"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())
	loaded, err := Load(dir, nil)
	require.NoError(t, err)
	require.Equal(t, c.Issuer(), loaded.Issuer())
	require.Equal(t, c.Trusts(), loaded.Trusts())
}

// A recovered cluster has a name of its own, and its workers are still at home in it.
func TestSuccessorsAreOfOneLineage(t *testing.T) {
	require.Equal(t, "c-1.r1", Successor("c-1"))
	require.Equal(t, "c-1.r12", Successor("c-1.r11"))
	require.Equal(t, "c-1", Lineage("c-1.r12"))
	require.Equal(t, "c.r1x", Lineage("c.r1x"))
	ca, err := NewCA("c-1")
	require.NoError(t, err)
	require.Error(t, ca.SignFor("c-2.r1"))
	require.NoError(t, ca.SignFor("c-1.r1"))
	credentials, err := ca.Issue("m1", cluster.RoleManager)
	require.NoError(t, err)
	require.Equal(t, "c-1.r1", credentials.Identity().Cluster)
}
