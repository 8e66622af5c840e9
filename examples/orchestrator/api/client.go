package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/agent"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
)

const (
	dialTimeout  = 2 * time.Second
	retryPause   = 50 * time.Millisecond
	maxIdleConns = 4
)

// Client talks to the managers of a cluster. Its methods may be called from several goroutines.
type Client struct {
	// Refresh, if not nil, is asked for newer credentials when the two sides refuse each other's certificates. True says that there are
	// some now, and the request is tried again. Set it before the first request.
	Refresh func() bool

	http *http.Client

	mu        sync.Mutex
	addresses []string // the one that answered last is the first
}

// NewClient makes a client for managers at the given addresses, host:port. Nothing is dialled yet.
func NewClient(credentials *pki.Credentials, addresses ...string) *Client {
	return newClient(credentials.ClientTLS(""), addresses)
}

func newClient(config *tls.Config, addresses []string) *Client {
	return &Client{
		addresses: slices.Clone(addresses),
		http: &http.Client{
			Transport: &http.Transport{
				DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
				TLSClientConfig:       config,
				TLSHandshakeTimeout:   dialTimeout,
				MaxIdleConnsPerHost:   maxIdleConns,
				IdleConnTimeout:       time.Minute,
				ResponseHeaderTimeout: WatchWait + 5*time.Second,
			},
			// A redirect would take the certificate to an address that nobody has vouched for.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Register, Heartbeat and Watch implement agent.Managers with one attempt at one manager.
var _ agent.Managers = (*Client)(nil)

// Register implements agent.Managers.
func (c *Client) Register(ctx context.Context, r agent.Registration) error {
	_, err := c.once(ctx, http.MethodPost, PathRegister, r, nil)
	return err
}

// Heartbeat implements agent.Managers.
func (c *Client) Heartbeat(ctx context.Context, h agent.Heartbeat) (a agent.Assignments, err error) {
	_, err = c.once(ctx, http.MethodPost, PathHeartbeat, h, &a)
	return a, err
}

// Watch implements agent.Managers.
func (c *Client) Watch(ctx context.Context, w agent.WatchRequest) (a agent.Assignments, err error) {
	_, err = c.once(ctx, http.MethodPost, PathWatch, w, &a)
	return a, err
}

// State returns a view that is at least as new as every change acknowledged before the call. It tries all managers until ctx ends.
func (c *Client) State(ctx context.Context) (v View, err error) {
	err = c.retry(ctx, http.MethodGet, PathState, nil, &v)
	if err == nil && v.State == nil {
		err = errors.New("the manager's answer holds no state")
	}
	return v, err
}

// Status asks the first manager how it is, once.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	_, err = c.once(ctx, http.MethodGet, PathStatus, nil, &s)
	return s, err
}

// Do asks for an operation, at any manager, until ctx ends. An *Error with CodeUncertain says that it may have happened.
func (c *Client) Do(ctx context.Context, op cluster.Op) (r cluster.Result, err error) {
	command, err := cluster.Encode(cluster.Command{Op: op})
	if err != nil {
		return r, err
	}
	err = c.retry(ctx, http.MethodPost, PathCommand, json.RawMessage(command), &r)
	return r, err
}

// Join asks the cluster of a token for a certificate, at any of the addresses, until ctx ends.
func Join(ctx context.Context, token pki.Token, r JoinRequest, addresses ...string) (a JoinAnswer, err error) {
	c := newClient(token.ClientTLS(), addresses)
	defer c.Close()
	r.Secret = token.Secret
	err = c.repeat(ctx, PathJoin, r, &a)
	return a, err
}

// Enter asks the leader to make a new manager a member with a vote.
func (c *Client) Enter(ctx context.Context, r EnterRequest) error {
	return c.repeat(ctx, PathEnter, r, nil)
}

// Renew asks for another certificate of the node itself.
func (c *Client) Renew(ctx context.Context, r RenewRequest) (a RenewAnswer, err error) {
	err = c.repeat(ctx, PathRenew, r, &a)
	return a, err
}

// Remove removes a node for ever.
func (c *Client) Remove(ctx context.Context, r RemoveRequest) error {
	return c.repeat(ctx, PathRemove, r, nil)
}

// Vote gives a manager a vote, or takes it away.
func (c *Client) Vote(ctx context.Context, r VoteRequest) error {
	return c.repeat(ctx, PathVote, r, nil)
}

// ChangeLeader hands leadership over to a manager, or to the most up-to-date one if target is empty.
func (c *Client) ChangeLeader(ctx context.Context, target cluster.NodeID) (a ChangeLeaderAnswer, err error) {
	err = c.retry(ctx, http.MethodPost, PathLeader, ChangeLeaderRequest{Target: target}, &a)
	return a, err
}

// retry tries one manager after the other, again and again, until one has answered for good or ctx ends. What may have had an effect
// is not repeated, unless it only reads.
func (c *Client) retry(ctx context.Context, method, path string, in, out any) error {
	for {
		c.mu.Lock()
		addresses := slices.Clone(c.addresses)
		c.mu.Unlock()
		if len(addresses) == 0 {
			return &Error{Code: CodeUnavailable, Message: "no manager's address is known"}
		}
		var failures []error
		for _, address := range addresses {
			sent, err := c.attempt(ctx, address, method, path, in, out)
			var answer *Error
			switch {
			case err == nil:
				c.prefer(address)
				return nil
			case errors.As(err, &answer) && answer.Code != CodeUnavailable:
				return err
			case sent && answer == nil && method != http.MethodGet:
				return &Error{Code: CodeUncertain, Message: fmt.Sprintf("the connection to manager %s was lost before its answer came: %v", address, err)}
			}
			failures = append(failures, fmt.Errorf("manager %s: %w", address, err))
		}
		select {
		case <-ctx.Done():
			return &Error{Code: CodeUnavailable, Message: fmt.Sprintf("no manager can do this now:\n%v", errors.Join(failures...))}
		case <-time.After(retryPause):
		}
	}
}

// repeat is retry for requests that mean the same when they come twice: also an uncertain outcome is followed by another attempt.
func (c *Client) repeat(ctx context.Context, path string, in, out any) error {
	for {
		err := c.retry(ctx, http.MethodPost, path, in, out)
		var answer *Error
		if !errors.As(err, &answer) || answer.Code != CodeUncertain {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(retryPause):
		}
	}
}

func (c *Client) prefer(address string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.addresses, address); i > 0 {
		c.addresses = slices.Insert(slices.Delete(c.addresses, i, i+1), 0, address)
	}
}

func (c *Client) once(ctx context.Context, method, path string, in, out any) (sent bool, err error) {
	c.mu.Lock()
	address := ""
	if len(c.addresses) > 0 {
		address = c.addresses[0]
	}
	c.mu.Unlock()
	return c.attempt(ctx, address, method, path, in, out)
}

// refusedCertificate tells apart what no other attempt will mend: the two sides do not belong to the same cluster. In TLS 1.3 a client
// learns last that its certificate was refused, when it believes itself connected; even then nothing was done.
func refusedCertificate(address string, err error) *Error {
	var remote *net.OpError
	var stranger x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.Is(err, pki.ErrOtherCluster):
		return &Error{Code: CodeForbidden, Message: fmt.Sprintf("%s answers, but %v", address, pki.ErrOtherCluster)}
	case errors.As(err, &remote) && remote.Op == "remote error":
		return &Error{Code: CodeForbidden, Message: fmt.Sprintf(
			"manager %s refuses our certificate (%v); use the data directory of a member of this cluster", address, remote.Err)}
	case errors.As(err, &stranger), errors.As(err, &invalid):
		return &Error{Code: CodeForbidden, Message: fmt.Sprintf(
			"whoever answers at %s shows no valid certificate of our cluster (%v); check the address", address, err)}
	default:
		return nil
	}
}

// refused makes a refusal one that another attempt may mend, if there are newer credentials by now.
func (c *Client) refused(answer *Error) *Error {
	if answer.Code == CodeForbidden && c.Refresh != nil && c.Refresh() {
		c.http.CloseIdleConnections()
		return &Error{Code: CodeUnavailable, Message: answer.Message}
	}
	return answer
}

// attempt makes one request. sent says that the manager may have got it.
func (c *Client) attempt(ctx context.Context, address, method, path string, in, out any) (sent bool, err error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return false, err
		}
		body = bytes.NewReader(data)
	}
	return c.Exchange(ctx, address, method, path, body, nil, func(r io.Reader) error {
		if out == nil {
			return nil
		}
		return json.NewDecoder(r).Decode(out)
	})
}

// Exchange makes one request to one manager and hands the body of a good answer to read. A bad one is returned as an *Error. sent says
// that the manager may have got the request.
func (c *Client) Exchange(
	ctx context.Context, address, method, path string, body io.Reader, header http.Header, read func(io.Reader) error,
) (sent bool, err error) {
	return c.exchange(ctx, address, method, path, body, header, maxResponseBytes, read)
}

// noLimit is the limit of an answer that is not kept.
const noLimit = math.MaxInt64

func (c *Client) exchange(
	ctx context.Context, address, method, path string, body io.Reader, header http.Header, limit int64, read func(io.Reader) error,
) (sent bool, err error) {
	var connected atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	request, err := http.NewRequestWithContext(ctx, method, "https://"+address+path, body)
	if err != nil {
		return false, err
	}
	for name, values := range header {
		request.Header[name] = values
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := c.http.Do(request)
	if err != nil {
		if refusal := refusedCertificate(address, err); refusal != nil {
			return false, c.refused(refusal)
		}
		return connected.Load(), err
	}
	defer response.Body.Close()
	limited := io.LimitReader(response.Body, limit)
	if response.StatusCode != http.StatusOK {
		answer := &Error{}
		if err := json.NewDecoder(limited).Decode(answer); err != nil || answer.Code == "" {
			answer = &Error{Code: CodeInternal, Message: fmt.Sprintf("%s %s: %s", method, path, response.Status)}
		}
		return true, c.refused(answer)
	}
	if err := read(limited); err != nil {
		return true, fmt.Errorf("%s %s: %w", method, path, err)
	}
	_, err = io.Copy(io.Discard, limited) // to its end, so that the connection can be used again
	return true, err
}
