package memory

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/steadyraft/raft"
)

var errBroken = errors.New("connection broke")

// transfer is one snapshot on its way. cancel ends it on both sides.
type transfer struct {
	from, to *Transport
	cancel   context.CancelCauseFunc
}

// SendSnapshot implements [raft.Transport]. It always sends the whole content. It reads r on the calling goroutine and not after it has returned.
func (t *Transport) SendSnapshot(ctx context.Context, m raft.Message, r io.Reader) error {
	if err := t.sendSnapshot(ctx, m, r); err != nil {
		return fmt.Errorf("send snapshot to %q: %w", m.To, err)
	}
	return nil
}

func (t *Transport) sendSnapshot(ctx context.Context, m raft.Message, r io.Reader) error {
	body, ok := m.Body.(raft.InstallSnapshot)
	if !ok || m.From != t.id {
		return fmt.Errorf("a %T from %q is not a snapshot of this server", m.Body, m.From)
	}
	if err := m.Validate(); err != nil {
		return err
	}
	if t.acquire() == nil {
		return errors.New("transport is closed")
	}
	defer t.calls.Done()

	peer, answers := t.network.reach(t.id, m.To)
	if peer == nil || !answers {
		return errors.New("server cannot be reached")
	}
	if !peer.admit(t) {
		return errors.New("refused: other cluster")
	}
	peer.meet(t.identity)
	t.meet(peer.identity)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	way := &transfer{from: t, to: peer, cancel: cancel}
	t.network.begin(way)
	defer t.network.end(way)

	h := peer.acquire()
	if h == nil {
		return errBroken
	}
	body.Meta.Configuration = body.Meta.Configuration.Clone()
	m.Body = body
	pr, pw := io.Pipe()
	answer := make(chan error, 1)
	go func() {
		defer peer.calls.Done()
		err := h.HandleSnapshot(ctx, m, pr)
		if err == nil {
			err = errReceived
		}
		pr.CloseWithError(err) // the rest is not wanted
		answer <- err
	}()
	stop := context.AfterFunc(ctx, func() { pw.CloseWithError(context.Cause(ctx)) })
	defer stop()

	// The pipe is closed only after everything was read, so a receiver never takes half a snapshot for a whole one.
	_, err := io.Copy(pw, r)
	pw.CloseWithError(err)
	select {
	case refusal := <-answer:
		if refusal != errReceived {
			return refusal
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// errReceived closes the pipe behind a receiver that was content.
var errReceived = errors.New("received")

func (n *Network) begin(t *transfer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.transfers[t] = true
	n.breakTransfers() // the way may have been cut since it was looked at
}

func (n *Network) end(t *transfer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.transfers, t)
}
