package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// tokenFormat begins every join token. It changes with the format.
const tokenFormat = "join1"

// Token is what a node needs to join: the digest of the CA, by which it recognises the cluster, and a secret, by which the cluster
// recognises that it may join, and as what. As text: join1-<digest>-<secret>.
type Token struct {
	CA     [sha256.Size]byte // of the CA's certificate in DER
	Secret string            // of one role; 128 random bits
}

// NewToken makes a token with a new secret. It opens nothing until a manager has been told the hash of the secret.
func NewToken(ca *x509.Certificate) Token {
	return Token{CA: sha256.Sum256(ca.Raw), Secret: rand.Text()}
}

// String is the token as it is given to people. It is a secret.
func (t Token) String() string {
	return tokenFormat + "-" + hex.EncodeToString(t.CA[:]) + "-" + t.Secret
}

// ParseToken reads a token.
func ParseToken(s string) (t Token, err error) {
	bad := errors.New("not a join token: want join1-<digest of the CA>-<secret>, as `orchestrator token` prints it")
	parts := strings.Split(strings.TrimSpace(s), "-")
	if len(parts) != 3 || parts[0] != tokenFormat || parts[2] == "" {
		return t, bad
	}
	digest, err := hex.DecodeString(parts[1])
	if err != nil || len(digest) != len(t.CA) {
		return t, bad
	}
	copy(t.CA[:], digest)
	t.Secret = parts[2]
	return t, nil
}

// SecretHash is what the managers keep of a token's secret. A secret of 128 random bits needs no slow hash.
func SecretHash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// ErrOtherCluster says that whoever answers does not belong to the cluster that made a token.
var ErrOtherCluster = errors.New("it does not belong to the cluster that has made the token: check the address, and that the token was copied whole")

// ClientTLS returns a configuration for a client that has nothing but the token. It talks to managers of the cluster that made it:
// the server must show that cluster's CA, and a certificate signed by it.
func (t Token) ClientTLS() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // VerifyConnection does it: there is no host name and no known root, but there is a digest
		VerifyConnection: func(state tls.ConnectionState) error {
			pool := x509.NewCertPool()
			for _, cert := range state.PeerCertificates {
				if cert.IsCA && sha256.Sum256(cert.Raw) == t.CA {
					pool.AddCert(cert)
				}
			}
			id, err := verify(state.PeerCertificates, pool, x509.ExtKeyUsageServerAuth, time.Now())
			if errors.As(err, new(x509.UnknownAuthorityError)) {
				return ErrOtherCluster
			}
			if err == nil && id.Role != cluster.RoleManager {
				err = fmt.Errorf("node %s is no manager", id.Node)
			}
			return err
		},
	}
}

// Credentials puts together what a node has got for its token, and checks that all of it comes from the token's cluster. now as for
// NewCredentials.
func (t Token) Credentials(caPEM, certPEM, keyPEM []byte, now func() time.Time) (*Credentials, error) {
	c, err := NewCredentials(caPEM, certPEM, keyPEM, now)
	if err == nil && sha256.Sum256(c.Authority().Raw) != t.CA {
		err = ErrOtherCluster
	}
	return c, err
}
