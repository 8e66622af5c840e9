package tcp_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/transport/tcp"
	"github.com/steadyraft/raft/transport/transporttest"
)

func TestClusterOverTCP(t *testing.T) {
	var transports []*tcp.Transport
	transporttest.RunCluster(t, func(raft.NodeID, func() *raft.Node) transporttest.Endpoint {
		tr, err := tcp.New(tcp.Config{Listen: "127.0.0.1:0"})
		require.NoError(t, err)
		transports = append(transports, tr)
		return transporttest.Endpoint{Transport: tr, Address: tr.Address()}
	})
	for _, tr := range transports { // whatever the node sent bore the identity that the transport insists on
		for peer, s := range tr.Stats().Peers {
			require.Positive(t, s.SentMessages, "to %s", peer)
		}
		require.Zero(t, tr.Stats().Refused)
	}
}
