package pki_test

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
)

func newCA(t *testing.T, name string) *pki.CA {
	t.Helper()
	ca, err := pki.NewCA(name)
	require.NoError(t, err)
	return ca
}

func issue(t *testing.T, ca *pki.CA, node cluster.NodeID, role cluster.Role) *pki.Credentials {
	t.Helper()
	c, err := ca.Issue(node, role, "127.0.0.1", "localhost")
	require.NoError(t, err)
	return c
}

// shake runs a handshake and one byte each way, which TLS 1.3 needs for a client to learn that it was refused.
func shake(t *testing.T, server, client *tls.Config) (pki.Identity, error) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	require.NoError(t, err)
	defer l.Close()
	type result struct {
		id  pki.Identity
		err error
	}
	served := make(chan result, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			served <- result{err: err}
			return
		}
		defer conn.Close()
		err = conn.(*tls.Conn).Handshake()
		if err != nil {
			served <- result{err: err}
			return
		}
		state := conn.(*tls.Conn).ConnectionState()
		id, err := pki.PeerIdentity(&state)
		_, err2 := conn.Write([]byte("x"))
		served <- result{id, errors.Join(err, err2)}
	}()
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", l.Addr().String(), client)
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
		err = errors.Join(err, conn.Close())
	}
	r := <-served
	return r.id, errors.Join(err, r.err)
}

func TestNodesOfOneClusterKnowEachOther(t *testing.T) {
	ca := newCA(t, "c1")
	manager, worker := issue(t, ca, "m1", cluster.RoleManager), issue(t, ca, "w1", cluster.RoleWorker)
	require.Equal(t, "raft://c1/m1", manager.Identity().URI().String())
	require.Equal(t, "worker://c1/w1", worker.Identity().URI().String(), "no name of a Raft server")
	for _, node := range []cluster.NodeID{"", "m1"} {
		id, err := shake(t, manager.ServerTLS(), worker.ClientTLS(node))
		require.NoError(t, err)
		require.Equal(t, pki.Identity{Cluster: "c1", Node: "w1", Role: cluster.RoleWorker}, id)
	}
	// A client that checks host names in the ordinary way is content as well.
	ordinary := worker.ClientTLS("")
	ordinary.InsecureSkipVerify, ordinary.VerifyConnection, ordinary.ServerName = false, nil, "localhost"
	_, err := shake(t, manager.ServerTLS(), ordinary)
	require.NoError(t, err)
}

func TestStrangersAreRefused(t *testing.T) {
	ca, otherCA := newCA(t, "c1"), newCA(t, "c1") // the same name does not help
	manager, worker := issue(t, ca, "m1", cluster.RoleManager), issue(t, ca, "w1", cluster.RoleWorker)
	stranger := issue(t, otherCA, "m1", cluster.RoleManager)
	noCertificate := worker.ClientTLS("")
	noCertificate.GetClientCertificate = nil
	old := worker.ClientTLS("")
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for name, test := range map[string]struct {
		server, client *tls.Config
		says           string
	}{
		"client of another CA":      {manager.ServerTLS(), stranger.ClientTLS(""), "unknown authority"},
		"server of another CA":      {stranger.ServerTLS(), worker.ClientTLS(""), "unknown authority"},
		"another node answers":      {manager.ServerTLS(), worker.ClientTLS("m2"), "m1 answers where node m2 was expected"},
		"a worker answers":          {worker.ServerTLS(), manager.ClientTLS(""), "w1 is no manager"},
		"a worker where it may not": {manager.ServerTLS(cluster.RoleManager), worker.ClientTLS(""), "may not do this"},
		"no certificate":            {manager.ServerTLS(), noCertificate, "certificate"},
		"TLS 1.2":                   {manager.ServerTLS(), old, "version"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := shake(t, test.server, test.client)
			require.ErrorContains(t, err, test.says)
		})
	}
}

func TestFilesArePrivateAndReadBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	ca := newCA(t, "c1")
	require.NoError(t, ca.Save(dir))
	require.NoError(t, issue(t, ca, "m1", cluster.RoleManager).Save(dir))
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, files, 3)
	for _, f := range files {
		info, err := f.Info()
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode(), f.Name())
	}
	loaded, err := pki.Load(dir, nil)
	require.NoError(t, err)
	require.Equal(t, cluster.NodeID("m1"), loaded.Identity().Node)
	require.WithinDuration(t, time.Now().Add(pki.NodeLifetime), loaded.ExpiresAt(), time.Minute)
	again, err := pki.LoadCA(dir)
	require.NoError(t, err)
	_, err = shake(t, loaded.ServerTLS(), issue(t, again, "w1", cluster.RoleWorker).ClientTLS("m1"))
	require.NoError(t, err)
	_, err = pki.LoadCA(t.TempDir())
	require.ErrorContains(t, err, "load the CA")
}

func TestSignRefusesWhatItShould(t *testing.T) {
	ca := newCA(t, "c1")
	request, _, err := pki.NewRequest()
	require.NoError(t, err)
	_, err = ca.Sign(request, "../m1", cluster.RoleManager)
	require.ErrorContains(t, err, "node name")
	_, err = ca.Sign(request, "m1", "king")
	require.ErrorContains(t, err, "role")
	_, err = ca.Sign([]byte("nonsense"), "m1", cluster.RoleManager)
	require.ErrorContains(t, err, "PEM")
	request[len(request)/2] ^= 1
	_, err = ca.Sign(request, "m1", cluster.RoleManager)
	require.ErrorContains(t, err, "signing request")
	_, err = pki.NewCA("a/b")
	require.ErrorContains(t, err, "cluster name")
}

// A node that joins knows no certificate. It talks to whoever shows the CA of the token's digest, and to nobody else.
func TestTokenPinsTheCluster(t *testing.T) {
	ca, otherCA := newCA(t, "c1"), newCA(t, "c1")
	token := pki.NewToken(ca.Certificate())
	again, err := pki.ParseToken(token.String() + "\n")
	require.NoError(t, err)
	require.Equal(t, token, again)
	require.NotEqual(t, token.Secret, pki.NewToken(ca.Certificate()).Secret)

	manager, worker := issue(t, ca, "m1", cluster.RoleManager), issue(t, ca, "w1", cluster.RoleWorker)
	_, err = shake(t, manager.FrontDoorTLS(), again.ClientTLS())
	require.ErrorContains(t, err, "carries no certificate", "it is let in, as nobody")
	_, err = shake(t, issue(t, otherCA, "m1", cluster.RoleManager).FrontDoorTLS(), again.ClientTLS())
	require.ErrorIs(t, err, pki.ErrOtherCluster)
	_, err = shake(t, worker.FrontDoorTLS(), again.ClientTLS())
	require.ErrorContains(t, err, "w1 is no manager")
	_, err = shake(t, manager.ServerTLS(), again.ClientTLS())
	require.ErrorContains(t, err, "certificate", "other ports do not let it in")

	// What it gets has to come from that cluster as well.
	request, key, err := pki.NewRequest()
	require.NoError(t, err)
	for _, from := range []*pki.CA{ca, otherCA} {
		cert, err := from.Sign(request, "w2", cluster.RoleWorker)
		require.NoError(t, err)
		_, err = token.Credentials(from.CertificatePEM(), cert, key, nil)
		if from == ca {
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, pki.ErrOtherCluster)
		}
	}

	for _, bad := range []string{"", "join1", "join2" + token.String()[5:], "join1-12-34", token.String()[:70], token.String() + "-x"} {
		_, err := pki.ParseToken(bad)
		require.ErrorContains(t, err, "not a join token", "%q", bad)
	}
}

// A certificate of the cluster is not enough for a node that was removed.
func TestRefusedNodesAreTurnedAway(t *testing.T) {
	ca := newCA(t, "c1")
	one, two := issue(t, ca, "m1", cluster.RoleManager), issue(t, ca, "m2", cluster.RoleManager)
	one.Refuse(func(id pki.Identity) error {
		if id.Node == "m2" {
			return errors.New("m2 was removed")
		}
		return nil
	})
	_, err := shake(t, one.ServerTLS(), two.ClientTLS(""))
	require.ErrorContains(t, err, "m2 was removed")
	_, err = shake(t, two.ServerTLS(), one.ClientTLS(""))
	require.ErrorContains(t, err, "m2 was removed")
	id, err := shake(t, one.FrontDoorTLS(), two.ClientTLS(""))
	require.NoError(t, err, "where it can be told why")
	require.Equal(t, cluster.NodeID("m2"), id.Node)
	_, err = shake(t, one.ServerTLS(), issue(t, ca, "m3", cluster.RoleManager).ClientTLS(""))
	require.NoError(t, err)
}

// A certificate is replaced while the TLS configurations that show it are in use.
func TestCertificateIsReplacedInUse(t *testing.T) {
	var clock atomic.Int64
	start := time.Now()
	now := func() time.Time { return start.Add(time.Duration(clock.Load())) }
	ca := newCA(t, "c1")
	ca.Now = now
	dir := t.TempDir()
	manager, worker := issue(t, ca, "m1", cluster.RoleManager), issue(t, ca, "w1", cluster.RoleWorker)
	require.NoError(t, worker.Save(dir))
	server, client := manager.ServerTLS(), worker.ClientTLS("")
	require.WithinDuration(t, start.Add(pki.NodeLifetime*2/3), worker.RenewAt(), time.Minute)

	renew := func(c *pki.Credentials, node cluster.NodeID, dir string) error {
		request, key, err := pki.NewRequest()
		require.NoError(t, err)
		cert, err := ca.Sign(request, node, c.Identity().Role)
		require.NoError(t, err)
		return c.Replace(dir, cert, key)
	}
	clock.Store(int64(pki.NodeLifetime - time.Hour))
	require.ErrorContains(t, renew(worker, "w2", dir), "want worker w1")
	_, err := shake(t, server, client)
	require.NoError(t, err)
	require.NoError(t, renew(manager, "m1", t.TempDir()))
	clock.Store(int64(pki.NodeLifetime + time.Hour))
	_, err = shake(t, server, client)
	require.ErrorContains(t, err, "expired")
	require.NoError(t, renew(worker, "w1", dir))
	_, err = shake(t, server, client)
	require.NoError(t, err)
	loaded, err := pki.Load(dir, now)
	require.NoError(t, err)
	require.Equal(t, worker.ExpiresAt(), loaded.ExpiresAt())
	_, err = pki.Load(dir, nil)
	require.ErrorContains(t, err, "expired or is not yet valid")
}
