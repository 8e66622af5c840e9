package api

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/pki"
)

// renewTimeout bounds one attempt to get a new certificate.
const renewTimeout = 10 * time.Second

// Renewal keeps a node's certificate from expiring, without a restart: TLS connections made after a renewal show the new one.
type Renewal struct {
	Credentials *pki.Credentials
	Directory   string          // where the credentials are kept
	Managers    func() []string // addresses of managers that may be asked
	Interval    time.Duration   // how often it looks at the clock, and tries again. Default 1 minute
	Logger      *slog.Logger
}

// Run works until ctx ends.
func (r *Renewal) Run(ctx context.Context) error {
	interval := r.Interval
	if interval <= 0 {
		interval = time.Minute
	}
	for {
		if !r.Credentials.Now().Before(r.Credentials.RenewAt()) {
			if err := r.renew(ctx); err != nil && ctx.Err() == nil {
				r.Logger.Warn("the certificate could not be renewed; trying again", "expires", r.Credentials.ExpiresAt(), "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(interval - interval/10 + rand.N(interval/5+1)): // not all nodes at once
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
