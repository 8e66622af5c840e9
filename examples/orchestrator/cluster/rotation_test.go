package cluster

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A rotation goes through its phases in order; meanwhile nobody gets a certificate or a token of a CA that is about to go.
func TestRotationGoesThroughItsPhases(t *testing.T) {
	l := newLog(t)
	apply := func(op Op) Code { t.Helper(); return l.do(op).Code }
	ca := func(name string) TrustedCA {
		return TrustedCA{Digest: strings.Repeat(name, 64), Certificate: []byte(name)}
	}
	a, b, c := ca("a"), ca("b"), ca("c")
	phase := func() RotationPhase { return l.m.View().Cluster.CA.Phase() }
	token := SetToken{Role: RoleWorker, SecretHash: strings.Repeat("0", 64), Rotate: true}
	admit := AdmitNode{Node: "w1", SecretHash: token.SecretHash, Key: "k"}
	require.Equal(t, OK, apply(token))
	require.Equal(t, Conflict, apply(UseNewCA{New: b.Digest}))
	require.Equal(t, Conflict, apply(EndRotation{Signing: b.Digest}))
	require.Equal(t, Invalid, apply(BeginRotation{Old: a, New: a}))

	// Given up: everything is as it was.
	require.Equal(t, OK, apply(BeginRotation{Old: a, New: b}))
	require.Equal(t, TrustBoth, phase())
	require.Equal(t, "ab", string(l.m.View().Cluster.CA.Bundle()))
	require.Equal(t, OK, apply(EndRotation{Signing: a.Digest}))
	require.Equal(t, NoRotation, phase())
	require.Equal(t, Authority{Trusted: []TrustedCA{a}, Signing: a.Digest}, l.m.View().Cluster.CA)
	require.NotEmpty(t, l.m.View().Cluster.Tokens)

	// Carried out.
	require.Equal(t, Conflict, apply(BeginRotation{Old: c, New: b}), "c has never signed")
	require.Equal(t, OK, apply(BeginRotation{Old: a, New: c}))
	require.Equal(t, Conflict, apply(BeginRotation{Old: a, New: b}), "one at a time")
	require.Equal(t, Conflict, apply(UseNewCA{New: b.Digest}))
	require.Equal(t, Conflict, apply(token))
	require.Equal(t, Conflict, apply(admit))
	for range 2 {
		require.Equal(t, OK, apply(UseNewCA{New: c.Digest}))
	}
	require.Equal(t, RenewAll, phase())
	require.Equal(t, Conflict, apply(EndRotation{Signing: a.Digest}), "too late to give it up")
	require.Equal(t, Conflict, apply(admit))
	for range 2 {
		require.Equal(t, OK, apply(EndRotation{Signing: c.Digest}))
	}
	require.Equal(t, Authority{Trusted: []TrustedCA{c}, Signing: c.Digest}, l.m.View().Cluster.CA)
	require.Empty(t, l.m.View().Cluster.Tokens)
	require.Equal(t, Forbidden, apply(admit))
	require.Equal(t, OK, apply(token))
	require.Equal(t, OK, apply(admit))
}
