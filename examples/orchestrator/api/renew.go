package api

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/pki"
)

// renewTimeout bounds one attempt to get a new certificate.
const renewTimeout = 10 * time.Second

// retryRenewal is how soon a renewal is tried again that has failed.
const retryRenewal = time.Second

// Renewal keeps a node's certificate from expiring, without a restart: TLS connections made after a renewal show the new one.
type Renewal struct {
	Credentials *pki.Credentials
	Directory   string          // where the credentials are kept
	Managers    func() []string // addresses of managers that may be asked
	Interval    time.Duration   // how often it looks at the clock, and tries again. Default 1 minute
	Logger      *slog.Logger

	signing atomic.Pointer[string] // of SignedBy
	wake    chan struct{}
}

// SignedBy says which CA is to have signed the certificate: one of another CA is renewed at once. It may be called at any time, also before
// Run.
func (r *Renewal) SignedBy(digest string) {
	if old := r.signing.Swap(&digest); old == nil || *old != digest {
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// NewRenewal returns a renewal that has still to be configured.
func NewRenewal() *Renewal { return &Renewal{wake: make(chan struct{}, 1)} }

// due says whether the certificate has to be replaced.
func (r *Renewal) due() bool {
	signing := r.signing.Load()
	return !r.Credentials.Now().Before(r.Credentials.RenewAt()) || signing != nil && *signing != "" && *signing != r.Credentials.Issuer()
}

// Run works until ctx ends.
func (r *Renewal) Run(ctx context.Context) error {
	interval := r.Interval
	if interval <= 0 {
		interval = time.Minute
	}
	for {
		if r.due() {
			if err := r.renew(ctx); err != nil && ctx.Err() == nil {
				r.Logger.Warn("the certificate could not be renewed; trying again", "expires", r.Credentials.ExpiresAt(), "error", err)
			}
		}
		pause := interval
		if r.due() {
			pause = min(pause, retryRenewal)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-time.After(pause - pause/10 + rand.N(pause/5+1)): // not all nodes at once
		}
	}
}

func (r *Renewal) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	request, key, err := pki.NewRequest() // a new key as well: the old one has been in use for long enough
	if err != nil {
		return err
	}
	client := NewClient(r.Credentials, r.Managers()...)
	defer client.Close()
	answer, err := client.Renew(ctx, RenewRequest{Request: request})
	if err != nil {
		return err
	}
	if err := r.Credentials.Replace(r.Directory, answer.Certificate, key); err != nil {
		return err
	}
	r.Logger.Info("the certificate was renewed", "expires", r.Credentials.ExpiresAt())
	return nil
}
