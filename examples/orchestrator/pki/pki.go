// Package pki is the cluster's certificate authority. Every node has a certificate that names it in a URI, and its role in the
// subject's organizational unit. A manager's URI is `raft://<cluster>/<node>`, the form that the library's TCP transport asks for. A
// worker's is `worker://<cluster>/<node>`, so that no manager lets a worker in where the managers talk Raft. All connections are
// TLS 1.3 with certificates both ways; the one exception is a node that joins, which has only a [Token].
//
// A peer is known by that name, not by its host name: addresses change, and whoever answers at an address is nobody until the name fits.
package pki

import (
	"bytes"
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
	"strconv"
	"sync"
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

// A cluster that was founded again by a forced recovery has a new name, its former one and ".r" with a number: whoever was lost has the
// former one, and is nobody to the new cluster's Raft. Workers did not take part in that, so they are still at home in it.
var recoveredPattern = regexp.MustCompile(`\.r([0-9]{1,6})$`)

// Lineage is the name under which a cluster was founded first.
func Lineage(clusterName string) string { return recoveredPattern.ReplaceAllString(clusterName, "") }

// Successor is the name of a cluster after a forced recovery.
func Successor(clusterName string) string {
	n := 0
	if m := recoveredPattern.FindStringSubmatch(clusterName); m != nil {
		n, _ = strconv.Atoi(m[1]) // at most six digits, so there is no error
	}
	return Lineage(clusterName) + ".r" + strconv.Itoa(n+1)
}

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

// SignFor makes the authority sign for a cluster that was recovered under another name.
func (ca *CA) SignFor(clusterName string) error {
	if Lineage(clusterName) != Lineage(ca.cert.Subject.CommonName) {
		return fmt.Errorf("the CA is that of cluster %s, not of %s", ca.cert.Subject.CommonName, clusterName)
	}
	ca.cluster = clusterName
	return nil
}

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

// Credentials are a node's own key and certificate, and the CAs that it trusts: one, and two while it is rotated. Both can be replaced
// while they are in use: the TLS configurations made from them use the newest in every new handshake.
type Credentials struct {
	identity Identity
	now      func() time.Time
	refuse   atomic.Pointer[func(Identity) error]

	mu    sync.Mutex // of replacing
	trust atomic.Pointer[trust]
	held  atomic.Pointer[held]
}

// trust is whose certificates are believed.
type trust struct {
	pem     []byte
	cas     []*x509.Certificate
	roots   *x509.CertPool
	members *x509.CertPool // the same, for nodes that admit lets in
}

// held is a certificate with its key.
type held struct {
	pair    tls.Certificate
	withCA  tls.Certificate // the same, with the CA's certificate behind it, for clients that know no more than its digest
	issuer  *x509.Certificate
	nodePEM []byte
}

// NewCredentials puts the parts together and checks that they fit. now is the clock by which certificates are valid; nil: time.Now.
func NewCredentials(caPEM, certPEM, keyPEM []byte, now func() time.Time) (*Credentials, error) {
	if now == nil {
		now = time.Now
	}
	c := &Credentials{now: now}
	t, err := c.newTrust(caPEM)
	if err != nil {
		return nil, err
	}
	h, id, err := c.hold(t, certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	c.identity = id
	c.trust.Store(t)
	c.held.Store(h)
	return c, nil
}

func (c *Credentials) newTrust(caPEM []byte) (*trust, error) {
	t := &trust{pem: caPEM, roots: x509.NewCertPool(), members: x509.NewCertPool()}
	for rest := caPEM; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("CA certificate: %w", err)
		}
		t.cas = append(t.cas, ca)
		t.roots.AddCert(ca)
		t.members.AddCertWithConstraint(ca, c.admit)
	}
	if len(t.cas) == 0 {
		return nil, errors.New("CA certificate: no PEM certificate in it")
	}
	return t, nil
}

func (c *Credentials) hold(t *trust, certPEM, keyPEM []byte) (*held, Identity, error) {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, Identity{}, fmt.Errorf("node certificate: %w", err)
	}
	id, err := c.verify([]*x509.Certificate{pair.Leaf}, t.roots, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, Identity{}, fmt.Errorf("node certificate: %w", err)
	}
	issuer := t.issuerOf(pair.Leaf)
	if issuer == nil {
		return nil, Identity{}, errors.New("node certificate: it does not say which CA has signed it")
	}
	withCA := pair
	withCA.Certificate = [][]byte{pair.Certificate[0], issuer.Raw}
	return &held{pair: pair, withCA: withCA, issuer: issuer, nodePEM: slices.Concat(certPEM, keyPEM)}, id, nil
}

// issuerOf says which of the CAs has signed a certificate that was verified; nil if none of them has.
func (t *trust) issuerOf(cert *x509.Certificate) *x509.Certificate {
	for _, ca := range t.cas {
		if len(ca.SubjectKeyId) > 0 && bytes.Equal(ca.SubjectKeyId, cert.AuthorityKeyId) {
			return ca
		}
	}
	return nil
}

// Replace puts a renewed certificate of the same node in the place of the present one, in dir first. Connections that exist go on with
// the old one.
func (c *Credentials) Replace(dir string, certPEM, keyPEM []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	h, id, err := c.hold(c.trust.Load(), certPEM, keyPEM)
	switch {
	case err != nil:
		return err
	case id.Node != c.identity.Node || id.Role != c.identity.Role: // the cluster was looked at by hold
		return fmt.Errorf("the certificate is for %s %s, want %s %s", id.Role, id.Node, c.identity.Role, c.identity.Node)
	}
	if err := writeFiles(dir, map[string][]byte{nodeFile: h.nodePEM}); err != nil {
		return err
	}
	c.held.Store(h)
	return nil
}

// SetTrust replaces the CAs that are trusted, in dir first. It refuses to drop the one that has signed the node's own certificate: the node
// would not believe itself any more.
func (c *Credentials) SetTrust(dir string, caPEM []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if bytes.Equal(caPEM, c.trust.Load().pem) {
		return nil
	}
	t, err := c.newTrust(caPEM)
	if err != nil {
		return err
	}
	if t.issuerOf(c.held.Load().pair.Leaf) == nil {
		return errors.New("the CA that has signed this node's certificate is to be dropped, and the node has no certificate of another one")
	}
	if err := writeFiles(dir, map[string][]byte{caFile: caPEM}); err != nil {
		return err
	}
	c.trust.Store(t)
	return nil
}

// Refresh reads again what Save, Replace and SetTrust have written into dir, perhaps by the node's own process while this one only uses its
// certificate. It reports whether anything has changed.
func (c *Credentials) Refresh(dir string) (changed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	read, err := Load(dir, c.now)
	if err != nil {
		return false, err
	}
	if id := read.identity; id.Node != c.identity.Node || id.Role != c.identity.Role || Lineage(id.Cluster) != Lineage(c.identity.Cluster) {
		return false, fmt.Errorf("%s holds the certificate of another node, %s", dir, id.Node)
	}
	pem, h := read.trust.Load().pem, read.held.Load()
	if bytes.Equal(pem, c.trust.Load().pem) && bytes.Equal(h.nodePEM, c.held.Load().nodePEM) {
		return false, nil
	}
	t, err := c.newTrust(pem)
	if err != nil {
		return false, err
	}
	c.trust.Store(t)
	c.held.Store(h)
	return true, nil
}

// CADigest names a CA.
func CADigest(ca *x509.Certificate) string {
	sum := sha256.Sum256(ca.Raw)
	return hex.EncodeToString(sum[:])
}

// Issuer names the CA that has signed the node's certificate.
func (c *Credentials) Issuer() string { return CADigest(c.held.Load().issuer) }

// Trusts names the CAs that are trusted.
func (c *Credentials) Trusts() (digests []string) {
	for _, ca := range c.trust.Load().cas {
		digests = append(digests, CADigest(ca))
	}
	return digests
}

// IssuerOf names the trusted CA that has signed a certificate which was verified when its connection began; "" if it is not trusted any more.
func (c *Credentials) IssuerOf(cert *x509.Certificate) string {
	if ca := c.trust.Load().issuerOf(cert); ca != nil {
		return CADigest(ca)
	}
	return ""
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
	return writeFiles(dir, map[string][]byte{caFile: c.trust.Load().pem, nodeFile: c.held.Load().nodePEM})
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

// Authority returns the certificate of the CA that has signed the node's own.
func (c *Credentials) Authority() *x509.Certificate { return c.held.Load().issuer }

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
func (c *Credentials) Members() (*x509.CertPool, error) { return c.trust.Load().members, nil }

// ServerTLS returns a configuration that lets in nodes of this cluster, of the given roles; none given means all of them.
func (c *Credentials) ServerTLS(roles ...cluster.Role) *tls.Config {
	return c.server(true, tls.RequireAnyClientCert, roles)
}

// FrontDoorTLS returns a configuration that lets in every holder of a certificate of this cluster, and clients without any certificate,
// which want to join. What they may do is for the server to decide, request by request; so it can tell them why not.
func (c *Credentials) FrontDoorTLS() *tls.Config {
	return c.server(false, tls.RequestClientCert, nil)
}

// server lets in holders of a certificate of the cluster; admitted: only those that Refuse does not turn away.
func (c *Credentials) server(admitted bool, auth tls.ClientAuthType, roles []cluster.Role) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &c.held.Load().withCA, nil },
		ClientAuth:     auth, // VerifyConnection checks what is shown
		Time:           c.now,
		// Resumption skips the handshake's checks of the certificate, and saves little on connections that last.
		SessionTicketsDisabled: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 && auth == tls.RequestClientCert {
				return nil
			}
			pool := c.trust.Load().roots
			if admitted {
				pool = c.trust.Load().members
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
		RootCAs:              c.trust.Load().roots, // for a client that is made to check host names too; VerifyConnection asks for the newest
		Time:                 c.now,
		// What is switched off is the check of the host name together with that of the chain; VerifyConnection makes up for the chain
		// and checks the node's name instead.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			id, err := c.verify(state.PeerCertificates, c.trust.Load().members, x509.ExtKeyUsageServerAuth)
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
	if err == nil && c.identity.Cluster != "" && Lineage(id.Cluster) != Lineage(c.identity.Cluster) {
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
