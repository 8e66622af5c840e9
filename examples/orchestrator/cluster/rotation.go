package cluster

import "fmt"

// Authority is what the managers agree on about the cluster's CA. Its key is not in it: managers keep that in their data directories, and get
// it from each other.
type Authority struct {
	Trusted []TrustedCA `json:"trusted,omitempty"` // one, or while it is rotated two, the older first
	Signing string      `json:"signing,omitempty"` // digest of the one that signs; empty: the one of the founding
}

// TrustedCA is the certificate of a CA.
type TrustedCA struct {
	Digest      string `json:"digest"`      // pki.CADigest
	Certificate []byte `json:"certificate"` // PEM
}

// RotationPhase is how far a rotation of the CA has come.
type RotationPhase string

// The phases. Each begins when all nodes have done what the one before asks for.
const (
	NoRotation RotationPhase = ""
	TrustBoth  RotationPhase = "trust" // all nodes learn to trust the new CA, and all managers get its key; the old one signs
	RenewAll   RotationPhase = "renew" // the new CA signs, and all nodes get certificates of it; then the old one is dropped
)

// Phase is how far the rotation has come.
func (a Authority) Phase() RotationPhase {
	switch {
	case len(a.Trusted) < 2:
		return NoRotation
	case a.Signing == a.Trusted[0].Digest:
		return TrustBoth
	default:
		return RenewAll
	}
}

// Bundle is the trusted certificates, as PEM.
func (a Authority) Bundle() (bundle []byte) {
	for _, ca := range a.Trusted {
		bundle = append(bundle, ca.Certificate...)
	}
	return bundle
}

// The operations of a rotation. The leader proposes them when the nodes are ready for them; nobody else may.
type (
	// BeginRotation makes a second CA trusted.
	BeginRotation struct {
		fromOutside
		Old TrustedCA `json:"old"`
		New TrustedCA `json:"new"`
	}
	// UseNewCA has the new CA sign.
	UseNewCA struct {
		fromOutside
		New string `json:"new"` // its digest
	}
	// EndRotation drops the CA that does not sign, which ends the rotation, or gives it up while the old one still signs. Join tokens name
	// their CA, so those of a dropped one are dropped with it.
	EndRotation struct {
		fromOutside
		Signing string `json:"signing"` // digest of the one that stays
	}
)

func (BeginRotation) kind() string { return "begin-ca-rotation" }
func (UseNewCA) kind() string      { return "use-new-ca" }
func (EndRotation) kind() string   { return "end-ca-rotation" }

// Rotating is what is said to whom the rotation stands in the way.
const Rotating = "the cluster's CA is being rotated; try again when that is done, or go on with `orchestrator ca rotate` if it was broken off"

func (op BeginRotation) apply(d *draft) Result {
	ca := d.s.Cluster.CA
	switch {
	case op.Old.Digest == "" || op.New.Digest == "" || op.Old.Digest == op.New.Digest:
		return refuse(Invalid, "want two different CAs")
	case ca.Phase() != NoRotation:
		return refuse(Conflict, Rotating)
	case ca.Signing != "" && ca.Signing != op.Old.Digest:
		return refuse(Conflict, "the CA %s does not sign any more", op.Old.Digest)
	}
	d.s.Cluster.CA = Authority{Trusted: []TrustedCA{op.Old, op.New}, Signing: op.Old.Digest}
	d.event("ca", short(op.New.Digest), "is made and trusted, beside "+short(op.Old.Digest))
	return done
}

func (op UseNewCA) apply(d *draft) Result {
	ca := d.s.Cluster.CA
	switch {
	case ca.Phase() == RenewAll && ca.Signing == op.New:
		return done // proposed again because the first outcome was not known
	case ca.Phase() != TrustBoth || ca.Trusted[1].Digest != op.New:
		return refuse(Conflict, "the CA %s is not being introduced", op.New)
	}
	ca.Signing = op.New
	d.s.Cluster.CA = ca
	d.event("ca", short(op.New), "signs from now on")
	return done
}

func (op EndRotation) apply(d *draft) Result {
	ca := d.s.Cluster.CA
	if ca.Signing != op.Signing {
		return refuse(Conflict, "the CA %s does not sign", op.Signing)
	}
	if ca.Phase() == NoRotation {
		return done
	}
	var stays, goes TrustedCA
	for _, c := range ca.Trusted {
		if c.Digest == ca.Signing {
			stays = c
		} else {
			goes = c
		}
	}
	if ca.Phase() == RenewAll {
		d.s.Cluster.Tokens = nil
	}
	d.s.Cluster.CA = Authority{Trusted: []TrustedCA{stays}, Signing: stays.Digest}
	d.event("ca", short(goes.Digest), fmt.Sprintf("is dropped; %s signs", short(stays.Digest)))
	return done
}

// short is a digest as people read it.
func short(digest string) string { return cut(digest[:min(len(digest), 12)]) }
