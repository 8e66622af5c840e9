package memory_test

import (
	"testing"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/transport/memory"
	"github.com/steadyraft/raft/transport/transporttest"
)

func TestConformance(t *testing.T) {
	transporttest.Run(t, transporttest.Options{}, func(*testing.T) transporttest.Network {
		network := memory.NewNetwork()
		return func(id raft.NodeID) transporttest.Endpoint {
			return transporttest.Endpoint{Transport: network.Transport(id)}
		}
	})
}
