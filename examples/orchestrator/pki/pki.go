// Package pki is the cluster's certificate authority. Every manager and agent has a certificate that names it in a URI,
// `raft://<cluster>/<node>`, the form that the library's TCP transport checks against the membership, and its role in the subject's
// organizational unit. All connections are TLS 1.3 with certificates both ways.
//
// A peer is known by that name, not by its host name: addresses change, and whoever answers at an address is nobody until the name fits.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
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
	certFile  = "cert.pem"
	keyFile   = "key.pem"
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
	return &url.URL{Scheme: "raft", Host: id.Cluster, Path: "/" + string(id.Node)}
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
		return Identity{}, errors.Join(err, fmt.Errorf("the certificate names %q, want raft://<cluster>/<node>", uri))
	}
	return id, nil
}

// CA signs the certificates of one cluster. Only managers have it.
type CA struct {
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
	return &CA{cluster: clusterName, cert: cert, key: key}, nil
}

// Cluster returns the name of the cluster.
func (ca *CA) Cluster() string { return ca.cluster }

// CertificatePEM returns the public half, which every node needs and whose digest a join token carries.
func (ca *CA) CertificatePEM() []byte { return encodeCert(ca.cert.Raw) }

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
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, caFile), filepath.Join(dir, caKeyFile))
	if err != nil {
		return nil, fmt.Errorf("load the CA: %w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("load the CA: %s holds no authority with an ECDSA key", dir)
	}
	return &CA{cluster: pair.Leaf.Subject.CommonName, cert: pair.Leaf, key: key}, nil
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
	return NewCredentials(ca.CertificatePEM(), cert, key)
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
	block, _ := pem.Decode(requestPEM)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("signing request: not a PEM block of type CERTIFICATE REQUEST")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("signing request: %w", err)
	}
	if err := request.CheckSignature(); err != nil { // the sender has the key
		return nil, fmt.Errorf("signing request: %w", err)
	}
	if key, ok := request.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("signing request: want an ECDSA key on P-256")
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: string(node), OrganizationalUnit: []string{string(role)}, Organization: []string{ca.cluster}},
		URIs:        []*url.URL{id.URI()},
		NotBefore:   time.Now().Add(-clockSkew),
		NotAfter:    time.Now().Add(NodeLifetime),
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

// Credentials are a node's own key and certificate, and the CA that it trusts.
type Credentials struct {
	identity Identity
	pair     tls.Certificate
	roots    *x509.CertPool
	files    map[string][]byte
}

// NewCredentials puts the parts together and checks that they fit.
func NewCredentials(caPEM, certPEM, keyPEM []byte) (*Credentials, error) {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("node certificate: %w", err)
	}
	c := &Credentials{pair: pair, roots: x509.NewCertPool(), files: map[string][]byte{caFile: caPEM, certFile: certPEM, keyFile: keyPEM}}
	if !c.roots.AppendCertsFromPEM(caPEM) {
		return nil, errors.New("CA certificate: no PEM certificate in it")
	}
	if c.identity, err = c.verify([]*x509.Certificate{pair.Leaf}, x509.ExtKeyUsageClientAuth); err != nil {
		return nil, fmt.Errorf("node certificate: %w", err)
	}
	return c, nil
}

// Save writes the credentials, readable by the owner only, into dir, which is made if absent.
func (c *Credentials) Save(dir string) error { return writeFiles(dir, c.files) }

// Files returns the paths of what Save writes into dir, for tcp.TLSFiles of the library.
func Files(dir string) (cert, key, ca string) {
	return filepath.Join(dir, certFile), filepath.Join(dir, keyFile), filepath.Join(dir, caFile)
}

// Load reads what Save wrote.
func Load(dir string) (*Credentials, error) {
	var data [3][]byte
	for i, name := range []string{caFile, certFile, keyFile} {
		var err error
		if data[i], err = os.ReadFile(filepath.Join(dir, name)); err != nil {
			return nil, fmt.Errorf("load credentials: %w", err)
		}
	}
	c, err := NewCredentials(data[0], data[1], data[2])
	if err != nil {
		return nil, fmt.Errorf("load credentials from %s: %w", dir, err)
	}
	return c, nil
}

// Identity returns who the holder is.
func (c *Credentials) Identity() Identity { return c.identity }

// ExpiresAt is when the certificate has to be replaced at the latest.
func (c *Credentials) ExpiresAt() time.Time { return c.pair.Leaf.NotAfter }

// ServerTLS returns a configuration that lets in nodes of this cluster, of the given roles; none given means all of them.
func (c *Credentials) ServerTLS(roles ...cluster.Role) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{c.pair},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    c.roots,
		// Resumption skips the handshake's checks of the certificate, and saves little on connections that last.
		SessionTicketsDisabled: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			id, err := c.verify(state.PeerCertificates, x509.ExtKeyUsageClientAuth)
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
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{c.pair},
		RootCAs:      c.roots,
		// What is switched off is the check of the host name together with that of the chain; VerifyConnection makes up for the chain
		// and checks the node's name instead.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			id, err := c.verify(state.PeerCertificates, x509.ExtKeyUsageServerAuth)
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
func (c *Credentials) verify(chain []*x509.Certificate, usage x509.ExtKeyUsage) (Identity, error) {
	if len(chain) == 0 {
		return Identity{}, errors.New("the peer shows no certificate")
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: c.roots, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
		return Identity{}, err
	}
	id, err := identityOf(chain[0])
	if err == nil && c.identity.Cluster != "" && id.Cluster != c.identity.Cluster {
		err = fmt.Errorf("node %s belongs to cluster %s, not %s", id.Node, id.Cluster, c.identity.Cluster)
	}
	return id, err
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

// writeFiles replaces each file in one step.
func writeFiles(dir string, files map[string][]byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path+".tmp", data, 0o600); err != nil {
			return err
		}
		if err := os.Rename(path+".tmp", path); err != nil {
			return err
		}
	}
	return nil
}
