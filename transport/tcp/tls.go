package tcp

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/steadyraft/raft"
)

// TLSConfig turns on mutual TLS 1.3. Both functions are called for every connection, so certificates are renewed without a
// restart; connections that exist go on.
type TLSConfig struct {
	// Certificate returns this server's certificate with its key. Its URI must be NodeURI of this server, and it must be valid for
	// client and server authentication.
	Certificate func() (*tls.Certificate, error)
	// Roots returns the authorities that may name servers of this cluster.
	Roots func() (*x509.CertPool, error)
}

// NodeURI is the name that a server's certificate carries as its only raft:// URI (subject alternative name).
func NodeURI(cluster string, node raft.NodeID) *url.URL {
	return &url.URL{Scheme: "raft", Host: cluster, Path: "/" + string(node)}
}

// TLSFiles reads PEM files, and reads them again when they change. While new files cannot be used (a certificate without its key,
// for instance, because they are being replaced), the last good ones stay in use.
func TLSFiles(certificate, key, roots string) *TLSConfig {
	own := &reloading[*tls.Certificate]{paths: []string{certificate, key}, load: func() (*tls.Certificate, error) {
		c, err := tls.LoadX509KeyPair(certificate, key)
		return &c, err
	}}
	cas := &reloading[*x509.CertPool]{paths: []string{roots}, load: func() (*x509.CertPool, error) {
		pem, err := os.ReadFile(roots)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate in PEM form", roots)
		}
		return pool, nil
	}}
	return &TLSConfig{Certificate: own.get, Roots: cas.get}
}

// reloading is a value made from files.
type reloading[T any] struct {
	paths []string
	load  func() (T, error)

	mu     sync.Mutex
	value  T
	loaded bool
	stamps []fileStamp // of what value was made from
}

type fileStamp struct {
	modified time.Time
	size     int64
}

func (r *reloading[T]) get() (T, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// The stamps are taken before the files are read: a change in between makes the next call read them again.
	stamps := make([]fileStamp, len(r.paths))
	changed := !r.loaded
	for i, path := range r.paths {
		info, err := os.Stat(path)
		if err != nil {
			return r.lastGood(err)
		}
		stamps[i] = fileStamp{info.ModTime(), info.Size()}
		changed = changed || stamps[i] != r.stamps[i]
	}
	if !changed {
		return r.value, nil
	}
	value, err := r.load()
	if err != nil {
		return r.lastGood(err)
	}
	r.value, r.stamps, r.loaded = value, stamps, true
	return value, nil
}

func (r *reloading[T]) lastGood(err error) (T, error) {
	if r.loaded {
		return r.value, nil
	}
	return r.value, fmt.Errorf("load certificates: %w", err)
}

// leafOf returns the first certificate of a chain.
func leafOf(c *tls.Certificate) (*x509.Certificate, error) {
	if c.Leaf != nil {
		return c.Leaf, nil
	}
	if len(c.Certificate) == 0 {
		return nil, fmt.Errorf("%w: own certificate is empty", errWrongCertificate)
	}
	return x509.ParseCertificate(c.Certificate[0])
}

// check verifies that the node's own certificate names it, so that a mistake is noticed here and not by every peer.
func (c *TLSConfig) check(id raft.Identity) error {
	own, err := c.Certificate()
	if err != nil {
		return err
	}
	leaf, err := leafOf(own)
	if err != nil {
		return err
	}
	name, err := certificateName(leaf)
	if err != nil {
		return fmt.Errorf("own certificate: %w", err)
	}
	if want := NodeURI(id.Cluster, id.Node); name.String() != want.String() {
		return fmt.Errorf("own certificate names %s, but this server is %s", name, want)
	}
	return nil
}

// server is the configuration for accepted connections: any server of the cluster may come.
func (c *TLSConfig) server(cluster string) *tls.Config {
	return c.config(x509.ExtKeyUsageClientAuth, func(name *url.URL) error {
		if name.Host != cluster {
			return fmt.Errorf("%w: certificate names %s, which is not of cluster %q", errWrongCertificate, name, cluster)
		}
		return nil
	})
}

// client is the configuration to reach one server.
func (c *TLSConfig) client(cluster string, peer raft.NodeID) *tls.Config {
	return c.config(x509.ExtKeyUsageServerAuth, func(name *url.URL) error {
		if want := NodeURI(cluster, peer); name.String() != want.String() {
			return fmt.Errorf("%w: certificate names %s, want %s", errWrongCertificate, name, want)
		}
		return nil
	})
}

func (c *TLSConfig) config(usage x509.ExtKeyUsage, admit func(name *url.URL) error) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		ClientAuth:             tls.RequireAnyClientCert,
		SessionTicketsDisabled: true,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.Certificate() },
		GetClientCertificate:   func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.Certificate() },
		// The standard verification compares host names, and servers have none: VerifyConnection checks chain and name instead.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			name, err := c.verify(s, usage)
			if err != nil {
				return err
			}
			return admit(name)
		},
	}
}

var errWrongCertificate = errors.New("wrong certificate")

// verify checks the other side's chain and returns the name in its certificate.
func (c *TLSConfig) verify(s tls.ConnectionState, usage x509.ExtKeyUsage) (*url.URL, error) {
	if len(s.PeerCertificates) == 0 {
		return nil, fmt.Errorf("%w: none was shown", errWrongCertificate)
	}
	roots, err := c.Roots()
	if err != nil {
		return nil, err
	}
	leaf := s.PeerCertificates[0]
	intermediates := x509.NewCertPool()
	for _, cert := range s.PeerCertificates[1:] {
		intermediates.AddCert(cert)
	}
	options := x509.VerifyOptions{Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{usage}}
	if _, err := leaf.Verify(options); err != nil {
		return nil, fmt.Errorf("%w: %w", errWrongCertificate, err)
	}
	return certificateName(leaf)
}

// certificateName returns the only raft:// URI in the certificate. With several of them a message could have several senders.
func certificateName(leaf *x509.Certificate) (*url.URL, error) {
	var name *url.URL
	for _, uri := range leaf.URIs {
		if uri.Scheme != "raft" {
			continue
		}
		if name != nil {
			return nil, fmt.Errorf("%w: it names %s and %s", errWrongCertificate, name, uri)
		}
		name = uri
	}
	if name == nil {
		return nil, fmt.Errorf("%w: it has no URI raft://<cluster>/<node>", errWrongCertificate)
	}
	return name, nil
}
