package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// Lapsed is a node's certificate that has expired, and its key. It opens nothing. But beside a join token, which lets a node in, it says
// that this is the node that had its name.
type Lapsed struct {
	Identity  Identity
	ExpiredAt time.Time
	Issuer    string   // as Credentials.Issuer
	Hosts     []string // as Hosts
	pair      tls.Certificate
}

// LoadLapsed reads what Credentials.Save wrote if the certificate has expired by now; nil if it has not.
func LoadLapsed(dir string, now time.Time) (*Lapsed, error) {
	node, err := os.ReadFile(filepath.Join(dir, nodeFile))
	if err != nil {
		return nil, fmt.Errorf("load credentials: %w", err)
	}
	pair, err := tls.X509KeyPair(node, node)
	if err != nil {
		return nil, fmt.Errorf("load credentials from %s: %w", dir, err)
	}
	end := pair.Leaf.NotAfter
	if !now.After(end) {
		return nil, nil
	}
	c, err := Load(dir, func() time.Time { return end })
	if err != nil {
		return nil, err
	}
	return &Lapsed{Identity: c.Identity(), ExpiredAt: end, Issuer: c.Issuer(), Hosts: Hosts(pair.Leaf), pair: pair}, nil
}

// Proof shows that the holder of the key of a certificate, which may have expired, has made a signing request.
type Proof struct {
	Certificate []byte `json:"certificate"` // PEM
	Signature   []byte `json:"signature"`   // of proven, ASN.1
}

// proven is what the old key signs. It begins with what it is for, so that no other signature of the key can be taken for it.
func proven(requestPEM []byte) []byte {
	sum := sha256.Sum256(append([]byte("orchestrator: this node comes back with the key in\n"), requestPEM...))
	return sum[:]
}

// Prove shows that it is this node that makes a signing request.
func (l *Lapsed) Prove(requestPEM []byte) (*Proof, error) {
	key, ok := l.pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, errors.New("the node's key cannot sign")
	}
	signature, err := key.Sign(rand.Reader, proven(requestPEM), crypto.SHA256)
	return &Proof{Certificate: encodeCert(l.pair.Certificate[0]), Signature: signature}, err
}

// WhoProves returns the node of a proof: this CA has signed its certificate, and its key has signed the request. That the certificate may
// have expired is why the caller has to know from elsewhere that the node still belongs to the cluster.
func (ca *CA) WhoProves(p *Proof, requestPEM []byte) (Identity, error) {
	block, _ := pem.Decode(p.Certificate)
	if block == nil {
		return Identity{}, errors.New("the former certificate is no PEM block")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return Identity{}, fmt.Errorf("the former certificate: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	id, err := verify([]*x509.Certificate{cert}, roots, x509.ExtKeyUsageClientAuth, cert.NotAfter)
	if err != nil {
		return Identity{}, fmt.Errorf("the former certificate: %w", err)
	}
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok || !ecdsa.VerifyASN1(key, proven(requestPEM), p.Signature) {
		return Identity{}, errors.New("the request was not made by the holder of the former certificate")
	}
	return id, nil
}

// WorkerOf reports that this is the certificate of a worker of a cluster, or of one that the cluster has succeeded.
func (id Identity) WorkerOf(clusterName string) bool {
	return id.Role == cluster.RoleWorker && Lineage(id.Cluster) == Lineage(clusterName)
}
