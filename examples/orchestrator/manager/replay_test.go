package manager_test

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
)

// Whoever records a connection and plays it again does nothing: the keys of TLS 1.3 are new for every connection, and no request is taken
// before the handshake is over (there is no early data). What can come twice is a join request, from a node whose answer was lost: it
// gets another certificate for the same key, and nobody else gets anything for it.
func TestRecordedRequestsAreWorthless(t *testing.T) {
	f := found(t)
	f.run()
	front, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer front.Close()
	var recorded bytes.Buffer
	var passing sync.WaitGroup
	passing.Go(func() {
		client, err := front.Accept()
		if err != nil {
			return
		}
		defer client.Close()
		server, err := net.Dial("tcp", f.member.API)
		if err != nil {
			return
		}
		defer server.Close()
		passing.Go(func() {
			_, _ = io.Copy(client, server)
			_ = client.Close()
		})
		_, _ = io.Copy(server, io.TeeReader(client, &recorded))
	})
	through := api.NewClient(f.credentials("m1", cluster.RoleManager), front.Addr().String())
	client := f.client("m1", cluster.RoleManager)
	_, err = through.Do(within(t), cluster.SetAvailability{Node: "m1", Availability: cluster.AvailabilityDrain})
	require.NoError(t, err)
	through.Close()
	passing.Wait()
	_, err = client.Do(within(t), cluster.SetAvailability{Node: "m1", Availability: cluster.AvailabilityActive})
	require.NoError(t, err)

	again, err := net.Dial("tcp", f.member.API)
	require.NoError(t, err)
	defer again.Close()
	// The server hangs up as soon as it has had enough of it, which may be before all of it is sent: how each of these ends is its choice.
	_, _ = again.Write(recorded.Bytes())
	_ = again.(*net.TCPConn).CloseWrite()
	_, _ = io.Copy(io.Discard, again)
	v, err := client.State(within(t))
	require.NoError(t, err)
	require.Equal(t, cluster.AvailabilityActive, v.State.Nodes["m1"].Availability)

	token := f.token(cluster.RoleWorker)
	request, key, err := pki.NewRequest()
	require.NoError(t, err)
	join := api.JoinRequest{Node: "w1", Request: request, Host: "127.0.0.1"}
	for range 2 {
		answer, err := api.Join(within(t), token, join, f.member.API)
		require.NoError(t, err)
		_, err = token.Credentials(answer.CA, answer.Certificate, key, nil)
		require.NoError(t, err)
	}
	join.Request, _, err = pki.NewRequest()
	require.NoError(t, err)
	_, err = api.Join(within(t), token, join, f.member.API)
	requireCode(t, string(cluster.Conflict), err)
}
