// Package pki is the cluster's certificate authority. Every node has a certificate that names it in a URI, and its role in the
// subject's organizational unit. A manager's URI is `raft://<cluster>/<node>`, the form that the library's TCP transport asks for. A
// worker's is `worker://<cluster>/<node>`, so that no manager lets a worker in where the managers talk Raft. All connections are
// TLS 1.3 with certificates both ways; the one exception is a node that joins, which has only a [Token].
//
// A peer is known by that name, not by its host name: addresses change, and whoever answers at an address is nobody until the name fits.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// Lifetimes. Clocks of machines differ a little, so a certificate is valid from a few minutes ago.
const (
	CALifetime   = 10 * 365 * 24 * time.Hour
	NodeLifetime = 90 * 24 * time.Hour // Docker's figure
	clockSkew    = 5 * time.Minute
)

// The files in a credentials directory.
const (
	caFile    = "ca.pem"
	caKeyFile = "ca-key.pem"
	nodeFile  = "node.pem" // certificate and key, in one file so that they are replaced in one step
)

// Identity is what a certificate says about its holder.
type Identity struct {
	Cluster string
	Node    cluster.NodeID
	Role    cluster.Role
}

// namePattern keeps names out of trouble in a URI.
var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

func (id Identity) validate() error {
	var errs []error
	if !namePattern.MatchString(id.Cluster) {
		errs = append(errs, fmt.Errorf("cluster name %q: want 1 to 128 letters, digits, '-', '_' or '.'", id.Cluster))
	}
	if !namePattern.MatchString(string(id.Node)) {
		errs = append(errs, fmt.Errorf("node name %q: want 1 to 128 letters, digits, '-', '_' or '.'", id.Node))
	}
	if id.Role != cluster.RoleManager && id.Role != cluster.RoleWorker {
		errs = append(errs, fmt.Errorf("role %q: want manager or worker", id.Role))
	}
	return errors.Join(errs...)
}

// URI is the name in the certificate.
func (id Identity) URI() *url.URL {
	scheme := "raft"
	if id.Role != cluster.RoleManager {
		scheme = "worker" // a name that the Raft port does not know
	}
	return &url.URL{Scheme: scheme, Host: id.Cluster, Path: "/" + string(id.Node)}
}

// CheckName says what is wrong with a node's name; nil if nothing is.
func CheckName(node cluster.NodeID) error {
	return Identity{Cluster: "any", Node: node, Role: cluster.RoleWorker}.validate()
}

// identityOf reads a certificate. It says nothing about who signed it.
func identityOf(cert *x509.Certificate) (Identity, error) {
	if len(cert.URIs) != 1 || len(cert.Subject.OrganizationalUnit) != 1 {
		return Identity{}, errors.New("the certificate is not one of a node: want one URI and one organizational unit")
	}
	uri := cert.URIs[0]
	id := Identity{Cluster: uri.Host, Role: cluster.Role(cert.Subject.OrganizationalUnit[0])}
	if len(uri.Path) > 1 {
		id.Node = cluster.NodeID(uri.Path[1:])
	}
	if err := id.validate(); err != nil || uri.String() != id.URI().String() {
		return Identity{}, errors.Join(err, fmt.Errorf("the certificate names %q, which is not the name of a %s", uri, id.Role))
	}
	return id, nil
}

// CA signs the certificates of one cluster. Only managers have it.
type CA struct {
	// Lifetime is how long the certificates that it signs are valid. Default: NodeLifetime.
	Lifetime time.Duration
	// Now is the clock that they are dated by. Default: time.Now.
	Now func() time.Time

	cluster string
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
}

// NewCA makes the authority of a new cluster.
func NewCA(clusterName string) (*CA, error) {
	if !namePattern.MatchString(clusterName) {
		return nil, fmt.Errorf("cluster name %q: want 1 to 128 letters, digits, '-', '_' or '.'", clusterName)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the CA's key: %w", err)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: clusterName},
		NotBefore:             time.Now().Add(-clockSkew),
		NotAfter:              time.Now().Add(CALifetime),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true, // it signs nodes, no other authority
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign the CA's certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &CA{Lifetime: NodeLifetime, Now: time.Now, cluster: clusterName, cert: cert, key: key}, nil
}

// Cluster returns the name of the cluster.
func (ca *CA) Cluster() string { return ca.cluster }

// CertificatePEM returns the public half, which every node needs and whose digest a join token carries.
func (ca *CA) CertificatePEM() []byte { return encodeCert(ca.cert.Raw) }

// Certificate returns the public half, whose digest is in the cluster's join tokens.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// KeyPEM returns the private half, for another manager.
func (ca *CA) KeyPEM() ([]byte, error) { return encodeKey(ca.key) }

// Save writes the authority with its key, readable by the owner only, into dir, which is made if absent.
func (ca *CA) Save(dir string) error {
	key, err := encodeKey(ca.key)
	if err != nil {
		return err
	}
	return writeFiles(dir, map[string][]byte{caFile: ca.CertificatePEM(), caKeyFile: key})
}

// LoadCA reads what Save wrote.
func LoadCA(dir string) (*CA, error) {
	cert, errCert := os.ReadFile(filepath.Join(dir, caFile))
	key, errKey := os.ReadFile(filepath.Join(dir, caKeyFile))
	if err := errors.Join(errCert, errKey); err != nil {
		return nil, fmt.Errorf("load the CA: %w", err)
	}
	ca, err := ParseCA(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%w, in %s", err, dir)
	}
	return ca, nil
}

// ParseCA puts the two halves of an authority together and checks that they fit.
func ParseCA(certPEM, keyPEM []byte) (*CA, error) {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("load the CA: %w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return nil, errors.New("load the CA: not an authority with an ECDSA key")
	}
	return &CA{Lifetime: NodeLifetime, Now: time.Now, cluster: pair.Leaf.Subject.CommonName, cert: pair.Leaf, key: key}, nil
}

// Issue makes a key and a certificate for a node of this cluster. hosts, names or addresses, are for clients that check host names too.
func (ca *CA) Issue(node cluster.NodeID, role cluster.Role, hosts ...string) (*Credentials, error) {
	request, key, err := NewRequest()
	if err != nil {
		return nil, err
	}
	cert, err := ca.Sign(request, node, role, hosts...)
	if err != nil {
		return nil, err
	}
	return NewCredentials(ca.CertificatePEM(), cert, key, ca.Now)
}

// NewRequest makes a key and a signing request. The request says nothing but the key: who its holder is and what it may do is decided
// by who signs it, after having checked its join token.
func NewRequest() (requestPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make a signing request: %w", err)
	}
	if keyPEM, err = encodeKey(key); err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), keyPEM, nil
}

// Sign answers a request with a certificate for the node and role that the caller has made sure of.
func (ca *CA) Sign(requestPEM []byte, node cluster.NodeID, role cluster.Role, hosts ...string) (certPEM []byte, err error) {
	id := Identity{Cluster: ca.cluster, Node: node, Role: role}
	if err := id.validate(); err != nil {
		return nil, err
	}
	request, err := parseRequest(requestPEM)
	if err != nil {
		return nil, err
	}
	now := ca.Now()
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: string(node), OrganizationalUnit: []string{string(role)}, Organization: []string{ca.cluster}},
		URIs:        []*url.URL{id.URI()},
		NotBefore:   now.Add(-clockSkew),
		NotAfter:    now.Add(ca.Lifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, request.PublicKey, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of %s: %w", node, err)
	}
	return encodeCert(der), nil
}

// Hosts returns the hosts that a certificate was issued for, as Sign takes them.
func Hosts(cert *x509.Certificate) []string {
	hosts := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	return hosts
}

// parseRequest reads a signing request and makes sure that its sender has the key.
func parseRequest(requestPEM []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(requestPEM)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("signing request: not a PEM block of type CERTIFICATE REQUEST")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("signing request: %w", err)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("signing request: %w", err)
	}
	if key, ok := request.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("signing request: want an ECDSA key on P-256")
	}
	return request, nil
}

// RequestKey returns the digest of the key in a signing request, so that the same request can be recognised when it comes again.
func RequestKey(requestPEM []byte) (string, error) {
	request, err := parseRequest(requestPEM)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(request.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:]), nil
}

// Credentials are a node's own key and certificate, and the CA that it trusts. The certificate can be replaced while it is in use: the
// TLS configurations made from them show the newest one in every new handshake.
type Credentials struct {
	identity Identity
	ca       *x509.Certificate
	caPEM    []byte
	roots    *x509.CertPool // the CA
	members  *x509.CertPool // the CA, for nodes that admit lets in

	now    func() time.Time
	refuse atomic.Pointer[func(Identity) error]
	held   atomic.Pointer[held]
}

// held is a certificate with its key.
type held struct {
	pair    tls.Certificate
	withCA  tls.Certificate // the same, with the CA's certificate behind it, for clients that know no more than its digest
	nodePEM []byte
}

// NewCredentials puts the parts together and checks that they fit. now is the clock by which certificates are valid; nil: time.Now.
func NewCredentials(caPEM, certPEM, keyPEM []byte, now func() time.Time) (*Credentials, error) {
	if now == nil {
		now = time.Now
	}
	c := &Credentials{caPEM: caPEM, now: now, roots: x509.NewCertPool(), members: x509.NewCertPool()}
	block, _ := pem.Decode(caPEM)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("CA certificate: no PEM certificate in it")
	}
	var err error
	if c.ca, err = x509.ParseCertificate(block.Bytes); err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	c.roots.AddCert(c.ca)
	c.members.AddCertWithConstraint(c.ca, c.admit)
	h, id, err := c.hold(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	c.identity = id
	c.held.Store(h)
	return c, nil
}

func (c *Credentials) hold(certPEM, keyPEM []byte) (*held, Identity, error) {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, Identity{}, fmt.Errorf("node certificate: %w", err)
	}
	id, err := c.verify([]*x509.Certificate{pair.Leaf}, c.roots, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, Identity{}, fmt.Errorf("node certificate: %w", err)
	}
	withCA := pair
	withCA.Certificate = [][]byte{pair.Certificate[0], c.ca.Raw}
	return &held{pair: pair, withCA: withCA, nodePEM: slices.Concat(certPEM, keyPEM)}, id, nil
}

// Replace puts a renewed certificate of the same node in the place of the present one, in dir first. Connections that exist go on with
// the old one.
func (c *Credentials) Replace(dir string, certPEM, keyPEM []byte) error {
	h, id, err := c.hold(certPEM, keyPEM)
	switch {
	case err != nil:
		return err
	case id != c.identity:
		return fmt.Errorf("the certificate is for %s %s, want %s %s", id.Role, id.Node, c.identity.Role, c.identity.Node)
	}
	if err := writeFiles(dir, map[string][]byte{nodeFile: h.nodePEM}); err != nil {
		return err
	}
	c.held.Store(h)
	return nil
}

// Refuse sets what decides, besides the CA's signature, who is let in: a node for which refuse returns an error is turned away at
// the next handshake by Members, ServerTLS and ClientTLS.
func (c *Credentials) Refuse(refuse func(Identity) error) { c.refuse.Store(&refuse) }

// admit is asked for every chain that ends at the CA.
func (c *Credentials) admit(chain []*x509.Certificate) error {
	id, err := identityOf(chain[0])
	if refuse := c.refuse.Load(); err == nil && refuse != nil {
		err = (*refuse)(id)
	}
	return err
}

// Save writes the credentials, readable by the owner only, into dir, which is made if absent.
func (c *Credentials) Save(dir string) error {
	return writeFiles(dir, map[string][]byte{caFile: c.caPEM, nodeFile: c.held.Load().nodePEM})
}

// Load reads what Save wrote. now as for NewCredentials.
func Load(dir string, now func() time.Time) (*Credentials, error) {
	ca, errCA := os.ReadFile(filepath.Join(dir, caFile))
	node, errNode := os.ReadFile(filepath.Join(dir, nodeFile))
	if err := errors.Join(errCA, errNode); err != nil {
		return nil, fmt.Errorf("load credentials: %w", err)
	}
	c, err := NewCredentials(ca, node, node, now)
	if err != nil {
		return nil, fmt.Errorf("load credentials from %s: %w", dir, err)
	}
	return c, nil
}

// Identity returns who the holder is.
func (c *Credentials) Identity() Identity { return c.identity }

// Authority returns the certificate of the cluster's CA.
func (c *Credentials) Authority() *x509.Certificate { return c.ca }

// Now returns the time by the clock that the certificates are checked with.
func (c *Credentials) Now() time.Time { return c.now() }

// ExpiresAt is when the certificate has to be replaced at the latest.
func (c *Credentials) ExpiresAt() time.Time { return c.held.Load().pair.Leaf.NotAfter }

// RenewAt is when it should be replaced: when two thirds of its life are over.
func (c *Credentials) RenewAt() time.Time { return RenewAt(c.held.Load().pair.Leaf) }

// RenewAt is when a node's certificate should be replaced: when two thirds of its life are over.
func RenewAt(cert *x509.Certificate) time.Time {
	issued := cert.NotBefore.Add(clockSkew)
	return issued.Add(cert.NotAfter.Sub(issued) * 2 / 3)
}

// Certificate and Members are what the library's TCP transport needs: the certificate to show, and who is let in.
func (c *Credentials) Certificate() (*tls.Certificate, error) { return &c.held.Load().pair, nil }

// Members returns the pool in which a certificate is verified that must be of a node which Refuse has not turned away.
func (c *Credentials) Members() (*x509.CertPool, error) { return c.members, nil }

// ServerTLS returns a configuration that lets in nodes of this cluster, of the given roles; none given means all of them.
func (c *Credentials) ServerTLS(roles ...cluster.Role) *tls.Config {
	return c.server(c.members, tls.RequireAnyClientCert, roles)
}

// FrontDoorTLS returns a configuration that lets in every holder of a certificate of this cluster, and clients without any certificate,
// which want to join. What they may do is for the server to decide, request by request; so it can tell them why not.
func (c *Credentials) FrontDoorTLS() *tls.Config {
	return c.server(c.roots, tls.RequestClientCert, nil)
}

func (c *Credentials) server(pool *x509.CertPool, auth tls.ClientAuthType, roles []cluster.Role) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &c.held.Load().withCA, nil },
		ClientAuth:     auth, // VerifyConnection checks what is shown
		ClientCAs:      c.roots,
		Time:           c.now,
		// Resumption skips the handshake's checks of the certificate, and saves little on connections that last.
		SessionTicketsDisabled: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 && auth == tls.RequestClientCert {
				return nil
			}
			id, err := c.verify(state.PeerCertificates, pool, x509.ExtKeyUsageClientAuth)
			if err == nil && len(roles) > 0 && !slices.Contains(roles, id.Role) {
				err = fmt.Errorf("node %s is a %s, which may not do this", id.Node, id.Role)
			}
			return err
		},
	}
}

// ClientTLS returns a configuration that talks to the given node only or, if that is empty, to any manager of this cluster.
func (c *Credentials) ClientTLS(node cluster.NodeID) *tls.Config {
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.Certificate() },
		RootCAs:              c.roots,
		Time:                 c.now,
		// What is switched off is the check of the host name together with that of the chain; VerifyConnection makes up for the chain
		// and checks the node's name instead.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			id, err := c.verify(state.PeerCertificates, c.members, x509.ExtKeyUsageServerAuth)
			switch {
			case err != nil:
				return err
			case node != "" && id.Node != node:
				return fmt.Errorf("node %s answers where node %s was expected", id.Node, node)
			case node == "" && id.Role != cluster.RoleManager:
				return fmt.Errorf("node %s is no manager", id.Node)
			}
			return nil
		},
	}
}

// PeerIdentity returns who is at the other end of a connection that a configuration of this package has let through.
func PeerIdentity(state *tls.ConnectionState) (Identity, error) {
	if state == nil || len(state.PeerCertificates) == 0 {
		return Identity{}, errors.New("the connection carries no certificate")
	}
	return identityOf(state.PeerCertificates[0])
}

// verify checks that the CA of this cluster has signed the certificate for this use, and that it names a node of this cluster.
func (c *Credentials) verify(chain []*x509.Certificate, pool *x509.CertPool, usage x509.ExtKeyUsage) (Identity, error) {
	id, err := verify(chain, pool, usage, c.now())
	if err == nil && c.identity.Cluster != "" && id.Cluster != c.identity.Cluster {
		err = fmt.Errorf("node %s belongs to cluster %s, not %s", id.Node, id.Cluster, c.identity.Cluster)
	}
	return id, err
}

func verify(chain []*x509.Certificate, pool *x509.CertPool, usage x509.ExtKeyUsage, now time.Time) (Identity, error) {
	if len(chain) == 0 {
		return Identity{}, errors.New("the peer shows no certificate")
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{usage}, CurrentTime: now}); err != nil {
		return Identity{}, err
	}
	return identityOf(chain[0])
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// writeFiles replaces each file in one step, and durably: a key that is lost locks a node out of its cluster.
func writeFiles(dir string, files map[string][]byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, data := range files {
		if err := writeFile(filepath.Join(dir, name), data); err != nil {
			return err
		}
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func writeFile(path string, data []byte) error {
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}
