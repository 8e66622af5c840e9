package manager

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/agent"
	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
)

// keyRetry is how soon another manager is asked again for the key of a new CA, and how long it may take to answer.
const keyRetry = time.Second

// authorities are the CAs whose keys this manager has. In its data directory the one of the founding, or of the join, is in ca, and those that
// came later are in directories below it that have their digests as names: so there is never a certificate with the key of another one.
type authorities struct {
	mu  sync.Mutex
	has map[string]*pki.CA
	own string // the one that was there first
	// begun is the one that this manager has made and that the state does not know of yet: it is not forgotten.
	begun string
}

// loadAuthorities reads all of them.
func (m *Manager) loadAuthorities() error {
	m.authorities.has = map[string]*pki.CA{}
	first, err := pki.LoadCA(filepath.Join(m.dir, caDir))
	if err != nil {
		return err
	}
	if err := m.hold(first); err != nil {
		return err
	}
	m.authorities.own = pki.CADigest(first.Certificate())
	below, err := os.ReadDir(filepath.Join(m.dir, caDir))
	if err != nil {
		return err
	}
	for _, entry := range below {
		if !entry.IsDir() {
			continue
		}
		ca, err := pki.LoadCA(filepath.Join(m.dir, caDir, entry.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was not written to its end; another manager still has it
		} else if err != nil {
			return err
		}
		if err := m.hold(ca); err != nil {
			return err
		}
	}
	return nil
}

// hold makes a CA one that signs for this cluster.
func (m *Manager) hold(ca *pki.CA) error {
	if err := ca.SignFor(m.settings.Cluster); err != nil {
		return err
	}
	ca.Lifetime, ca.Now = m.lifetime, m.credentials.Now
	m.authorities.mu.Lock()
	defer m.authorities.mu.Unlock()
	m.authorities.has[pki.CADigest(ca.Certificate())] = ca
	return nil
}

// keep writes a CA into the data directory, and holds it.
func (m *Manager) keep(ca *pki.CA) error {
	if err := ca.Save(filepath.Join(m.dir, caDir, pki.CADigest(ca.Certificate()))); err != nil {
		return err
	}
	return m.hold(ca)
}

// authority returns a CA whose key this manager has; nil if it has not.
func (m *Manager) authority(digest string) *pki.CA {
	m.authorities.mu.Lock()
	defer m.authorities.mu.Unlock()
	if digest == "" {
		digest = m.authorities.own
	}
	return m.authorities.has[digest]
}

// signer returns the CA that signs now.
func (m *Manager) signer() (*pki.CA, error) {
	if ca := m.authority(m.machine.View().Cluster.CA.Signing); ca != nil {
		return ca, nil
	}
	return nil, unavailable("manager %s does not have the key of the new CA yet", m.settings.Node)
}

// loadAuthority reads the CA that has signed the certificate of a manager's data directory.
func loadAuthority(dir string) (*pki.CA, error) {
	ca, err := pki.LoadCA(filepath.Join(dir, caDir))
	if err != nil {
		return nil, err
	}
	credentials, err := pki.Load(filepath.Join(dir, pkiDir), nil)
	if err != nil {
		return nil, err
	}
	if issuer := credentials.Issuer(); issuer != pki.CADigest(ca.Certificate()) {
		return pki.LoadCA(filepath.Join(dir, caDir, issuer))
	}
	return ca, nil
}

// checkPageToken says why a token of the status page is not good; nil if it is. A token is as good as the CA from which it was made.
func (m *Manager) checkPageToken(token string) (err error) {
	for _, digest := range m.credentials.Trusts() {
		if ca := m.authority(digest); ca != nil {
			if err = ca.CheckPageToken(token, m.credentials.Now()); err == nil {
				return nil
			}
		}
	}
	return err
}

// caReport is what this node says about the CAs with its heartbeats.
func (m *Manager) caReport() agent.CAReport {
	m.authorities.mu.Lock()
	defer m.authorities.mu.Unlock()
	return agent.CAReport{Trusts: m.credentials.Trusts(), Issuer: m.credentials.Issuer(), Keys: slices.Sorted(maps.Keys(m.authorities.has))}
}

// followCA does what the state says about the CAs: it trusts them, gets the key of a new one, and has this manager's certificate renewed.
func (m *Manager) followCA(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	warned := ""
	var followed cluster.Authority
	for ctx.Err() == nil {
		state, replaced := m.machine.Watch()
		if !reflect.DeepEqual(state.Cluster.CA, followed) {
			ca, err := m.newestCA(ctx)
			if err == nil {
				err = m.follow(ctx, ca)
			}
			switch {
			case err == nil:
				followed, warned = ca, ""
			case ctx.Err() == nil && err.Error() != warned:
				warned = err.Error()
				m.log.Warn("the rotation of the CA cannot be followed yet", "error", err)
			}
		}
		timer.Reset(time.Hour)
		if warned != "" {
			timer.Reset(keyRetry)
		}
		select {
		case <-ctx.Done():
		case <-replaced:
		case <-timer.C:
		}
	}
	return nil
}

// newestCA returns what is decided about the CAs now. A manager that was started goes through all states that are in its log, and must not
// trust again what was dropped since, or drop what was begun since.
func (m *Manager) newestCA(ctx context.Context) (cluster.Authority, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err := m.node.Read(ctx)
	return m.machine.View().Cluster.CA, err
}

func (m *Manager) follow(ctx context.Context, ca cluster.Authority) error {
	err := m.fetchKeys(ctx, ca)
	if err == nil {
		err = m.credentials.SetTrust(CredentialsDirectory(m.dir), ca.Bundle())
	}
	m.renewal.SignedBy(ca.Signing)
	if err == nil && ca.Phase() == cluster.NoRotation && m.credentials.Issuer() != ca.Signing {
		err = errors.New("this manager's certificate is not of the CA that signs yet")
	}
	if err == nil {
		m.forget(ca)
	}
	return err
}

// fetchKeys gets the keys of the trusted CAs that this manager does not have from those that have them.
func (m *Manager) fetchKeys(ctx context.Context, ca cluster.Authority) error {
	for _, trusted := range ca.Trusted {
		if m.authority(trusted.Digest) != nil {
			continue
		}
		var others []string
		for _, member := range m.members() {
			if member.ID != m.settings.Node && member.API != "" {
				others = append(others, member.API)
			}
		}
		var errs []error
		for _, address := range others { // each may be one that does not have it
			if err := m.fetchKey(ctx, trusted.Digest, address); err == nil {
				break
			} else {
				errs = append(errs, err)
			}
		}
		if m.authority(trusted.Digest) == nil {
			return fmt.Errorf("no manager has given the key of the CA %s: %w", trusted.Digest, errors.Join(errs...))
		}
	}
	return nil
}

func (m *Manager) fetchKey(ctx context.Context, digest, address string) error {
	ctx, cancel := context.WithTimeout(ctx, keyRetry)
	defer cancel()
	client := api.NewClient(m.credentials, address)
	defer client.Close()
	answer, err := client.CAKey(ctx, api.CAKeyRequest{Digest: digest})
	if err != nil {
		return err
	}
	ca, err := pki.ParseCA(answer.Certificate, answer.Key)
	if err != nil {
		return err
	}
	if got := pki.CADigest(ca.Certificate()); got != digest {
		return fmt.Errorf("manager %s has given the CA %s instead of %s", address, got, digest)
	}
	return m.keep(ca)
}

// caKey gives another manager the key of a CA.
func (m *Manager) caKey(_ context.Context, r api.CAKeyRequest) (api.CAKeyAnswer, error) {
	ca := m.authority(r.Digest)
	if ca == nil || r.Digest == "" {
		return api.CAKeyAnswer{}, &api.Error{Code: string(cluster.NotFound), Message: fmt.Sprintf("manager %s does not have that CA", m.settings.Node)}
	}
	key, err := ca.KeyPEM()
	return api.CAKeyAnswer{Certificate: ca.CertificatePEM(), Key: key}, err
}

// forget removes the keys of CAs that were dropped. A key that is nowhere cannot be stolen.
func (m *Manager) forget(ca cluster.Authority) {
	m.authorities.mu.Lock()
	defer m.authorities.mu.Unlock()
	if slices.ContainsFunc(ca.Trusted, func(t cluster.TrustedCA) bool { return t.Digest == m.authorities.begun }) {
		m.authorities.begun = ""
	}
	if ca.Phase() != cluster.NoRotation {
		return
	}
	for digest := range m.authorities.has {
		if digest == ca.Signing || digest == m.authorities.own || digest == m.authorities.begun {
			continue // the first is in the directory that the manager cannot start without; it opens nothing any more
		}
		if err := os.RemoveAll(filepath.Join(m.dir, caDir, digest)); err != nil {
			m.log.Warn("the key of a dropped CA could not be removed", "error", err)
			continue
		}
		delete(m.authorities.has, digest)
	}
}

// rotate takes the next step of a rotation if all nodes are ready for it. It runs on the leader; where the rotation stands is in the state,
// so it may be asked for again, also of another leader.
func (m *Manager) rotate(ctx context.Context, r api.RotateRequest) (api.RotateAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	o := m.office.Load()
	if o == nil {
		return api.RotateAnswer{}, unavailable("manager %s has only just been elected", m.settings.Node)
	}
	state := m.machine.View()
	ca := state.Cluster.CA
	var next cluster.Op
	switch phase := ca.Phase(); {
	case phase == cluster.NoRotation && r.Begin && !r.Abort:
		begin, err := m.newCA()
		if err != nil {
			return api.RotateAnswer{}, err
		}
		next = begin
	case phase == cluster.NoRotation:
		return api.RotateAnswer{}, nil
	case r.Abort && phase == cluster.RenewAll:
		return api.RotateAnswer{}, &api.Error{Code: string(cluster.Conflict), Message: "the new CA signs already; go on with the rotation, and begin another one after it if you want"}
	case r.Abort:
		next = cluster.EndRotation{Signing: ca.Signing}
	default:
		if waiting := waitingFor(state, o.reports()); len(waiting) > 0 && !(r.Force && noneIsReady(waiting)) {
			return api.RotateAnswer{Phase: phase, New: ca.Trusted[1].Digest, Waiting: waiting}, nil
		}
		next = cluster.EndRotation{Signing: ca.Signing}
		if phase == cluster.TrustBoth {
			next = cluster.UseNewCA{New: ca.Trusted[1].Digest}
		}
	}
	if _, err := m.propose(ctx, next); err != nil {
		return api.RotateAnswer{}, err
	}
	state = m.machine.View()
	answer := api.RotateAnswer{Phase: state.Cluster.CA.Phase()}
	if answer.Phase != cluster.NoRotation {
		answer.New, answer.Waiting = state.Cluster.CA.Trusted[1].Digest, waitingFor(state, o.reports())
	}
	return answer, nil
}

// newCA makes the CA of a rotation. Its key is on this manager's disk before anybody hears of it.
func (m *Manager) newCA() (cluster.BeginRotation, error) {
	old, err := m.signer()
	if err != nil {
		return cluster.BeginRotation{}, err
	}
	ca, err := pki.NewCA(pki.Lineage(m.settings.Cluster))
	if err != nil {
		return cluster.BeginRotation{}, err
	}
	m.authorities.mu.Lock()
	m.authorities.begun = pki.CADigest(ca.Certificate())
	m.authorities.mu.Unlock()
	if err := m.keep(ca); err != nil {
		return cluster.BeginRotation{}, err
	}
	trusted := func(cert *x509.Certificate, pem []byte) cluster.TrustedCA {
		return cluster.TrustedCA{Digest: pki.CADigest(cert), Certificate: pem}
	}
	return cluster.BeginRotation{Old: trusted(old.Certificate(), old.CertificatePEM()), New: trusted(ca.Certificate(), ca.CertificatePEM())}, nil
}

// waitingFor returns the nodes that have not done yet what the phase asks for, as far as they have said.
func waitingFor(state *cluster.State, reports map[cluster.NodeID]agent.CAReport) (waiting []api.WaitingNode) {
	ca := state.Cluster.CA
	if ca.Phase() == cluster.NoRotation {
		return nil
	}
	wanted := ca.Trusted[1].Digest
	for _, n := range state.SortedNodes() {
		report := reports[n.ID]
		done := report.Issuer == wanted
		if ca.Phase() == cluster.TrustBoth {
			done = slices.Contains(report.Trusts, wanted) && (n.Role != cluster.RoleManager || slices.Contains(report.Keys, wanted))
		}
		if !done {
			waiting = append(waiting, api.WaitingNode{Node: n.ID, Status: n.Status})
		}
	}
	return waiting
}

func noneIsReady(nodes []api.WaitingNode) bool {
	return !slices.ContainsFunc(nodes, func(n api.WaitingNode) bool { return n.Status == cluster.NodeReady })
}
