package manager

import (
	"cmp"
	"fmt"
	"path/filepath"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
)

// LapsedError says that the certificate of a worker has expired, and how it gets another one.
type LapsedError struct {
	Directory string
	Node      cluster.NodeID
	At        time.Time
}

func (e *LapsedError) Error() string {
	return fmt.Sprintf("the certificate of node %s expired at %s, and it could not renew it in time; make a join token on a manager "+
		"(`token --role worker --rotate`), and run `join --data %s --token-file FILE ADDRESS`: with that it comes back under its name, "+
		"unless it was removed",
		e.Node, e.At.Format(time.RFC3339), e.Directory)
}

// Lapsed returns the certificate of a data directory's node if it has expired; nil if it has not.
func Lapsed(dir string, now func() time.Time) (s Settings, lapsed *pki.Lapsed, err error) {
	if now == nil {
		now = time.Now
	}
	if s, err = LoadSettings(dir); err != nil {
		return s, nil, err
	}
	lapsed, err = pki.LoadLapsed(CredentialsDirectory(dir), now())
	return s, lapsed, err
}

// ComeBack gives the node of a data directory, whose certificate has expired, a new one.
func ComeBack(dir string, credentials *pki.Credentials) error {
	s, err := LoadSettings(dir)
	if err != nil {
		return err
	}
	if id := credentials.Identity(); id.Node != s.Node || !id.WorkerOf(s.Cluster) {
		return fmt.Errorf("%s: the new certificate is that of %s %s of cluster %s", dir, id.Role, id.Node, id.Cluster)
	}
	return credentials.Save(CredentialsDirectory(dir))
}

// renewLapsed has a manager whose certificate has expired give itself another one: it has the CA's key. Whether it still belongs to the
// cluster, and its CA does, is what the others look at.
func renewLapsed(dir string, now func() time.Time, lifetime time.Duration) error {
	s, lapsed, err := Lapsed(dir, now)
	if err != nil || lapsed == nil || s.Role != cluster.RoleManager {
		return err
	}
	ca, err := pki.LoadCA(filepath.Join(dir, caDir))
	if err == nil && pki.CADigest(ca.Certificate()) != lapsed.Issuer {
		ca, err = pki.LoadCA(filepath.Join(dir, caDir, lapsed.Issuer))
	}
	if err != nil {
		return err
	}
	if now != nil {
		ca.Now = now
	}
	ca.Lifetime = cmp.Or(lifetime, ca.Lifetime)
	if err := ca.SignFor(s.Cluster); err != nil {
		return err
	}
	credentials, err := ca.Issue(s.Node, s.Role, lapsed.Hosts...)
	if err != nil {
		return err
	}
	return credentials.Save(CredentialsDirectory(dir))
}

// comesBack makes sure that a join request is that of a worker which belongs to the cluster, by its former certificate, and returns the key
// with which it has joined: by that the state machine recognises it.
func comesBack(ca *pki.CA, r api.JoinRequest, role cluster.Role, s *cluster.State) (key string, err error) {
	refuse := func(code string, why string) error {
		return &api.Error{Code: code, Message: fmt.Sprintf(
			"node %s cannot come back: %s; to join as a new node, it needs an empty data directory and another name", r.Node, why)}
	}
	id, err := ca.WhoProves(r.Former, r.Request)
	n := s.Nodes[r.Node]
	switch {
	case err != nil:
		return "", refuse(api.CodeForbidden, err.Error())
	case id.Node != r.Node || !id.WorkerOf(ca.Cluster()) || role != cluster.RoleWorker:
		return "", refuse(api.CodeForbidden,
			fmt.Sprintf("its former certificate is that of %s %s, and the token one for a %s", id.Role, id.Node, role))
	case s.Cluster.IsRemoved(r.Node):
		return "", refuse(api.CodeRemoved, "it was removed from the cluster")
	case n == nil || n.Role != cluster.RoleWorker || n.Key == "":
		return "", refuse(string(cluster.Conflict), "no worker of that name belongs to the cluster")
	}
	return n.Key, nil
}
