package tcp

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/transport/transporttest"
)

func TestConformance(t *testing.T) {
	t.Run("Plaintext", func(t *testing.T) {
		transporttest.Run(t, transporttest.Options{}, func(t *testing.T) transporttest.Network {
			return func(id raft.NodeID) transporttest.Endpoint { return endpoint(t, Config{}) }
		})
	})
	t.Run("TLS", func(t *testing.T) {
		ca := newAuthority(t)
		transporttest.Run(t, transporttest.Options{}, func(t *testing.T) transporttest.Network {
			return func(id raft.NodeID) transporttest.Endpoint {
				cluster := "c"
				if id == "s" { // the suite's stranger
					cluster = "other"
				}
				return endpoint(t, Config{TLS: ca.config(t, cluster, id)})
			}
		})
	})
}

func endpoint(t *testing.T, c Config) transporttest.Endpoint {
	t.Helper()
	c.Listen = "127.0.0.1:0"
	tr, err := New(c)
	require.NoError(t, err)
	return transporttest.Endpoint{Transport: tr, Address: tr.Address()}
}
