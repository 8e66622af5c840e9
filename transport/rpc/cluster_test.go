package rpc_test

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/transport/transporttest"
)

// served is the receiving side of an embedder: requests go to the node, for a bounded time.
type served struct{ node *raft.Node }

func (s served) Handle(ctx context.Context, m raft.Message) (raft.Message, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return s.node.Handle(ctx, m)
}

func (s served) InstallSnapshot(ctx context.Context, m raft.Message, r io.Reader) (raft.Message, error) {
	h, reply, err := s.node.InstallSnapshot(ctx, m.Header, m.Body.(raft.InstallSnapshot), r)
	return raft.Message{Header: h, Body: reply}, err
}

// Nothing but net/rpc between the servers.
func TestClusterOverNetRPC(t *testing.T) {
	transporttest.RunCluster(t, func(_ raft.NodeID, n func() *raft.Node) transporttest.Endpoint {
		e := newEndpoint(t, func(raft.Handler) node { return served{n()} })
		return transporttest.Endpoint{Transport: e, Address: e.listener.Addr().String()}
	})
}
