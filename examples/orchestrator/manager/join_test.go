package manager_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/agent"
	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
	"github.com/steadyraft/raft/examples/orchestrator/worker"
)

// token makes a token of a role, and ends the one before.
func (f *fixture) token(role cluster.Role) pki.Token {
	f.t.Helper()
	token := pki.NewToken(f.ca.Certificate())
	client := f.client("m1", cluster.RoleManager)
	require.Eventually(f.t, func() bool { // again if the leader changed meanwhile, and nobody can tell what has become of it
		_, err := client.Do(within(f.t), cluster.SetToken{Role: role, SecretHash: pki.SecretHash(token.Secret), Rotate: true})
		return err == nil
	}, patience, 10*time.Millisecond)
	return token
}

// joined is a node that has joined and runs in this process.
type joined struct {
	t       *testing.T
	id      cluster.NodeID
	dir     string
	member  api.Member // of a manager
	clock   func() time.Time
	running *manager.Manager
	stop    context.CancelFunc
	ended   chan error
}

// join makes a node with a token, and runs it until the test ends.
func (f *fixture) join(id cluster.NodeID, token pki.Token) *joined {
	f.t.Helper()
	return f.joinAs(id, token, false)
}

func (f *fixture) joinAs(id cluster.NodeID, token pki.Token, standby bool) *joined {
	f.t.Helper()
	request, key, err := pki.NewRequest()
	require.NoError(f.t, err)
	answer, err := api.Join(within(f.t), token, api.JoinRequest{Node: id, Request: request, Host: "127.0.0.1"}, f.member.API)
	require.NoError(f.t, err)
	credentials, err := token.Credentials(answer.CA, answer.Certificate, key, f.clock)
	require.NoError(f.t, err)
	n := &joined{t: f.t, id: id, dir: f.t.TempDir(), clock: f.clock}
	settings := manager.Settings{Cluster: answer.Cluster, Node: id, Role: answer.Role, Host: "127.0.0.1", Members: answer.Managers}
	var ca *pki.CA
	if answer.Role == cluster.RoleManager {
		n.member = api.Member{ID: id, API: freeAddress(f.t), Raft: freeAddress(f.t), Standby: standby}
		settings.Members = append(settings.Members, n.member)
		ca, err = pki.ParseCA(answer.CA, answer.CAKey)
		require.NoError(f.t, err)
	} else {
		require.Empty(f.t, answer.CAKey, "only managers sign")
	}
	require.NoError(f.t, manager.Join(n.dir, settings, credentials, ca))
	n.start(answer.Role)
	return n
}

func (n *joined) start(role cluster.Role) {
	n.t.Helper()
	var run func(context.Context) error
	if role == cluster.RoleManager {
		var err error
		n.running, err = manager.Open(n.dir, manager.Options{Now: n.clock, RenewInterval: renewInterval, ReplaceVotersAfter: replaceAfter, Logger: testLogger(n.t)})
		require.NoError(n.t, err)
		run = n.running.Run
	} else {
		run = func(ctx context.Context) error {
			return worker.Run(ctx, n.dir, worker.Options{Now: n.clock, RenewInterval: renewInterval, Logger: testLogger(n.t)})
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx)
		close(ended)
	}()
	n.stop, n.ended = cancel, ended
	n.t.Cleanup(func() {
		cancel()
		for err := range ended { // until it is closed
			n.t.Logf("node %s ended: %v", n.id, err)
		}
	})
}

// A voter that stays away loses its vote to a standby, and is a standby itself when it comes back.
func TestStandbyReplacesALostVoter(t *testing.T) {
	f := found(t)
	f.run()
	token := f.token(cluster.RoleManager)
	m2 := f.join("m2", token)
	f.join("m3", token)
	f.await("three votes", func(v api.View) bool { return ready(v, "m2") && ready(v, "m3") && len(voters(v)) == 3 })
	f.joinAs("m4", token, true)
	v := f.await("a standby", func(v api.View) bool { return ready(v, "m4") && len(v.Members) == 4 })
	require.Equal(t, []cluster.NodeID{"m1", "m2", "m3"}, voters(v))

	m2.stop()
	require.NoError(t, <-m2.ended)
	v = f.await("the standby has the vote", func(v api.View) bool { return slices.Contains(voters(v), "m4") })
	require.Equal(t, []cluster.NodeID{"m1", "m3", "m4"}, voters(v))
	m2.start(cluster.RoleManager)
	v = f.await("the lost one is back", func(v api.View) bool { return ready(v, "m2") })
	require.Equal(t, []cluster.NodeID{"m1", "m3", "m4"}, voters(v))
	require.Len(t, v.Members, 4)
}

// testLogger writes to the test's log, which is shown when it fails.
func testLogger(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

const renewInterval = 20 * time.Millisecond

// await looks at the state until it is good.
func (f *fixture) await(what string, good func(api.View) bool, more ...string) (last api.View) {
	f.t.Helper()
	client := api.NewClient(f.credentials("m1", cluster.RoleManager), append([]string{f.member.API}, more...)...)
	defer client.Close()
	require.Eventually(f.t, func() bool {
		v, err := client.State(within(f.t))
		last = v
		return err == nil && good(v)
	}, patience, 10*time.Millisecond, what)
	return last
}

// lead makes a manager the leader.
func (f *fixture) lead(id cluster.NodeID) {
	f.t.Helper()
	client := f.client("m1", cluster.RoleManager)
	f.await(string(id)+" leads", func(v api.View) bool {
		if v.Leader != "" && v.Leader != id {
			_, err := client.ChangeLeader(within(f.t), id)
			f.t.Log("change the leader", err) // it may have changed by itself meanwhile
		}
		return v.Leader == id
	})
}

func ready(v api.View, ids ...cluster.NodeID) bool {
	for _, id := range ids {
		if n := v.State.Nodes[id]; n == nil || n.Status != cluster.NodeReady {
			return false
		}
	}
	return true
}

// voters returns the managers with a vote, by name.
func voters(v api.View) (ids []cluster.NodeID) {
	for _, m := range v.Members {
		if !m.Standby {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

func TestOnlyAValidTokenLetsIn(t *testing.T) {
	f := found(t)
	f.run()
	old := f.token(cluster.RoleWorker)
	request, _, err := pki.NewRequest()
	require.NoError(t, err)
	join := func(token pki.Token, node cluster.NodeID, request []byte) error {
		_, err := api.Join(within(t), token, api.JoinRequest{Node: node, Request: request, Host: "127.0.0.1"}, f.member.API)
		return err
	}
	require.NoError(t, join(old, "w1", request))
	require.NoError(t, join(old, "w1", request), "the answer may have been lost")

	wrong := old
	wrong.Secret = "wrong"
	requireCode(t, api.CodeForbidden, join(wrong, "w2", request))
	require.Eventually(t, func() bool { // more than once, because the control loop may have something to say about w1 meanwhile
		index := f.manager.Node().Status().LastIndex
		err := join(wrong, "w2", request)
		return err != nil && index == f.manager.Node().Status().LastIndex
	}, patience, 10*time.Millisecond, "a stranger's guess does not get into the log")

	other, err := pki.NewCA("test")
	require.NoError(t, err)
	foreign := old
	foreign.CA = pki.NewToken(other.Certificate()).CA
	err = join(foreign, "w2", request)
	requireCode(t, api.CodeForbidden, err)
	require.ErrorContains(t, err, "does not belong to the cluster that has made the token")

	another, _, err := pki.NewRequest()
	require.NoError(t, err)
	requireCode(t, string(cluster.Conflict), join(old, "w1", another))
	requireCode(t, string(cluster.Conflict), join(old, "m1", another))
	requireCode(t, string(cluster.Invalid), join(old, "../w2", another))
	requireCode(t, string(cluster.Invalid), join(old, "w2", []byte("nonsense")))

	rotated := f.token(cluster.RoleWorker)
	err = join(old, "w2", another)
	requireCode(t, api.CodeForbidden, err)
	require.ErrorContains(t, err, "wrong, was rotated, or has expired")
	require.NoError(t, join(rotated, "w2", another))

	expiring := pki.NewToken(f.ca.Certificate())
	require.Eventually(t, func() bool { // on a slow machine it may have expired before it is made, which is refused
		_, err := f.client("m1", cluster.RoleManager).Do(within(t), cluster.SetToken{
			Role: cluster.RoleWorker, SecretHash: pki.SecretHash(expiring.Secret), Rotate: true, ExpiresAt: time.Now().Add(time.Second),
		})
		return err == nil
	}, patience, 10*time.Millisecond)
	require.Eventually(t, func() bool {
		err := join(expiring, "w2", another) // let in already, so until it has expired nothing happens
		var answer *api.Error
		return errors.As(err, &answer) && answer.Code == api.CodeForbidden
	}, patience, 20*time.Millisecond)
}

// A founder's name is taken from the beginning, also while its agent has not registered yet: whoever had a certificate with that name
// could remove the founder.
func TestNameOfASilentFounderIsTaken(t *testing.T) {
	f := found(t)
	f.dir = t.TempDir()
	settings := f.settings()
	for _, id := range []cluster.NodeID{"m2", "m3"} {
		settings.Members = append(settings.Members, api.Member{ID: id, API: freeAddress(t), Raft: freeAddress(t)})
	}
	require.NoError(t, manager.Found(t.Context(), f.dir, settings, f.ca))
	settings.Node = "m2"
	m2 := &joined{t: t, id: "m2", dir: t.TempDir()}
	require.NoError(t, manager.Found(t.Context(), m2.dir, settings, f.ca))
	m2.start(cluster.RoleManager)
	f.run()

	for _, role := range []cluster.Role{cluster.RoleWorker, cluster.RoleManager} {
		token := f.token(role)
		request, _, err := pki.NewRequest()
		require.NoError(t, err)
		_, err = api.Join(within(t), token, api.JoinRequest{Node: "m3", Request: request, Host: "127.0.0.1"}, f.member.API)
		requireCode(t, string(cluster.Conflict), err)
		require.ErrorContains(t, err, "choose another name")
	}
}

// A certificate is for the hosts that a manager has named, for as long as it is renewed. A worker serves nobody under TLS, and gets none:
// it could name a manager's.
func TestHostsInCertificates(t *testing.T) {
	f := found(t)
	f.run()
	hosts := func(certPEM []byte) []string {
		block, _ := pem.Decode(certPEM)
		require.NotNil(t, block)
		cert, err := x509.ParseCertificate(block.Bytes)
		require.NoError(t, err)
		return pki.Hosts(cert)
	}
	for role, want := range map[cluster.Role][]string{cluster.RoleWorker: nil, cluster.RoleManager: {"127.0.0.1"}} {
		token, node := f.token(role), cluster.NodeID("n-"+role)
		request, key, err := pki.NewRequest()
		require.NoError(t, err)
		answer, err := api.Join(within(t), token, api.JoinRequest{Node: node, Request: request, Host: "127.0.0.1"}, f.member.API)
		require.NoError(t, err)
		require.Equal(t, want, hosts(answer.Certificate), role)
		credentials, err := token.Credentials(answer.CA, answer.Certificate, key, nil)
		require.NoError(t, err)
		client := api.NewClient(credentials, f.member.API)
		defer client.Close()
		renewed, err := client.Renew(within(t), api.RenewRequest{Request: request})
		require.NoError(t, err)
		require.Equal(t, want, hosts(renewed.Certificate), role)
	}

	// What cannot be signed does not use up the name.
	token := f.token(cluster.RoleManager)
	for _, host := range []string{"m\u00fcnchen", "127.0.0.1"} {
		request, _, err := pki.NewRequest() // a new key, as with every call of the command
		require.NoError(t, err)
		_, err = api.Join(within(t), token, api.JoinRequest{Node: "m2", Request: request, Host: host}, f.member.API)
		if host == "127.0.0.1" {
			require.NoError(t, err)
		} else {
			requireCode(t, string(cluster.Invalid), err)
		}
	}
}

// A manager that is removed while it asks to become a member does not become one: everybody refuses it, so its vote would be lost.
func TestManagerRemovedWhileItEntersIsNoMember(t *testing.T) {
	f := found(t)
	f.run()
	request, _, err := pki.NewRequest()
	require.NoError(t, err)
	_, err = api.Join(within(t), f.token(cluster.RoleManager), api.JoinRequest{Node: "m2", Request: request, Host: "127.0.0.1"}, f.member.API)
	require.NoError(t, err)
	require.NoError(t, f.client("m1", cluster.RoleManager).Remove(within(t), api.RemoveRequest{Node: "m2"}))
	requireCode(t, api.CodeRemoved, f.manager.Admit(within(t), api.Member{ID: "m2", API: freeAddress(t), Raft: freeAddress(t)}))
	v := f.await("a member less", func(v api.View) bool { return v.Leader == "m1" })
	require.Len(t, v.Members, 1)
}

// A worker is an agent and nothing else. It can be drained, and is removed by force only while it lives; then its agent ends.
func TestWorkerJoinsAndIsRemoved(t *testing.T) {
	f := found(t)
	f.run()
	client := f.client("m1", cluster.RoleManager)
	w := f.join("w1", f.token(cluster.RoleWorker))
	v := f.await("the worker", func(v api.View) bool { return ready(v, "m1", "w1") })
	require.Equal(t, cluster.RoleWorker, v.State.Nodes["w1"].Role)
	require.Equal(t, []cluster.NodeID{"m1"}, voters(v))

	for _, voter := range []bool{true, false} {
		err := client.Vote(within(t), api.VoteRequest{Node: "w1", Voter: voter})
		requireCode(t, string(cluster.Conflict), err)
		require.ErrorContains(t, err, "is a worker")
	}
	if err := client.Remove(within(t), api.RemoveRequest{Node: "w1"}); err != nil {
		requireCode(t, string(cluster.Conflict), err)
	} else { // it got no processor for three heartbeats
		v := f.await("the state", func(api.View) bool { return true })
		require.True(t, slices.ContainsFunc(v.State.Events, func(e cluster.Event) bool { return e.Subject == "w1" && e.Message == string(cluster.NodeDown) }))
	}
	requireCode(t, string(cluster.NotFound), client.Remove(within(t), api.RemoveRequest{Node: "w9", Force: true}))
	require.NoError(t, client.Remove(within(t), api.RemoveRequest{Node: "w1", Force: true}))
	require.ErrorIs(t, <-w.ended, agent.ErrRemoved)
	require.NoError(t, client.Remove(within(t), api.RemoveRequest{Node: "w1"}), "done already")

	_, credentials, err := manager.Load(w.dir, nil)
	require.NoError(t, err)
	removed := api.NewClient(credentials, f.member.API)
	defer removed.Close()
	_, err = removed.Watch(within(t), agent.WatchRequest{Node: "w1"})
	requireCode(t, api.CodeRemoved, err)
	require.ErrorContains(t, err, "w1 was removed from the cluster")
	w.start(cluster.RoleWorker)
	require.ErrorIs(t, <-w.ended, agent.ErrRemoved, "it is told so when it comes back")

	// The name is gone with it, and a worker that leaves by itself needs nobody's force.
	token := f.token(cluster.RoleWorker)
	request, _, err := pki.NewRequest()
	require.NoError(t, err)
	_, err = api.Join(within(t), token, api.JoinRequest{Node: "w1", Request: request}, f.member.API)
	requireCode(t, api.CodeRemoved, err)
	w2 := f.join("w2", token)
	f.await("the second worker", func(v api.View) bool { return ready(v, "w2") })
	_, credentials, err = manager.Load(w2.dir, nil)
	require.NoError(t, err)
	leaving := api.NewClient(credentials, f.member.API)
	defer leaving.Close()
	require.NoError(t, leaving.Remove(within(t), api.RemoveRequest{Node: "w2", Force: true}))
	require.ErrorIs(t, <-w2.ended, agent.ErrRemoved)
}

// Managers get their vote when they have the log. What would cost the quorum is refused with the reason; a leader gives its office
// away before it goes; and a removed manager is refused on every port.
func TestManagersJoinAndLeave(t *testing.T) {
	f := found(t)
	f.run()
	token := f.token(cluster.RoleManager)
	client := f.client("m1", cluster.RoleManager)
	for _, request := range []error{
		client.Remove(within(t), api.RemoveRequest{Node: "m1", Force: true}), client.Vote(within(t), api.VoteRequest{Node: "m1"}),
	} {
		requireCode(t, string(cluster.Conflict), request)
		require.ErrorContains(t, request, "the only one with a vote")
	}

	m2 := f.join("m2", token)
	v := f.await("the second manager", func(v api.View) bool { return ready(v, "m2") && len(voters(v)) == 2 })
	require.Equal(t, []cluster.NodeID{"m1", "m2"}, voters(v))

	// The third one asks a manager that does not lead, which passes its wishes on.
	f.lead("m2")
	m3 := f.join("m3", token)
	f.await("the third manager", func(v api.View) bool { return ready(v, "m3") && len(voters(v)) == 3 })

	// A standby has the log and no vote. It stays one when it is started again.
	require.NoError(t, client.Vote(within(t), api.VoteRequest{Node: "m3"}))
	f.await("m3 without a vote", func(v api.View) bool { return len(v.Members) == 3 && len(voters(v)) == 2 })
	m3.stop()
	require.NoError(t, <-m3.ended)
	m3.start(cluster.RoleManager)
	f.await("m3 is back", func(v api.View) bool { return ready(v, "m3") })
	f.await("m3 still has no vote", func(v api.View) bool { return len(v.Members) == 3 && len(voters(v)) == 2 })
	require.NoError(t, client.Vote(within(t), api.VoteRequest{Node: "m3", Voter: true}))
	f.await("three votes", func(v api.View) bool { return len(voters(v)) == 3 })

	// With m3 stopped, m1 and m2 are needed both. That is refused also by a leader that has just been elected, and has heard nobody yet.
	f.lead("m2")
	m3.stop()
	require.NoError(t, <-m3.ended)
	require.Eventually(t, func() bool { // whoever leads knows that m3 is silent
		for _, m := range []*manager.Manager{f.manager, m2.running} {
			for _, p := range m.Node().Status().Peers {
				if p.ID == "m3" && (p.MatchIndex == 0 || p.LastHeard > time.Second) {
					return true
				}
			}
		}
		return false
	}, patience, 10*time.Millisecond)
	f.lead("m1")
	for _, err := range []error{client.Remove(within(t), api.RemoveRequest{Node: "m2"}), client.Vote(within(t), api.VoteRequest{Node: "m2"})} {
		requireCode(t, string(cluster.Conflict), err)
		require.ErrorContains(t, err, "only 1 of the 2 managers with a vote that would be left answers")
	}
	v = f.await("nothing has changed", func(v api.View) bool { return v.Leader != "" })
	require.Equal(t, []cluster.NodeID{"m1", "m2", "m3"}, voters(v))

	// What is silent itself can go.
	require.NoError(t, client.Remove(within(t), api.RemoveRequest{Node: "m3"}))
	v = f.await("m3 is gone", func(v api.View) bool { return v.State.Nodes["m3"] == nil })
	require.Equal(t, []cluster.NodeID{"m1", "m2"}, voters(v))
}

// A manager is a member some moments before its agent has said where its API is. Whoever joins in between is told of those that can be asked.
func TestJoinBesideAManagerThatHasNotRegistered(t *testing.T) {
	f := found(t)
	f.run()
	token := f.token(cluster.RoleManager)
	request, _, err := pki.NewRequest()
	require.NoError(t, err)
	_, err = api.Join(within(t), token, api.JoinRequest{Node: "m2", Request: request, Host: "127.0.0.1"}, f.member.API)
	require.NoError(t, err)
	m2 := f.client("m2", cluster.RoleManager)
	require.NoError(t, m2.Enter(within(t), api.EnterRequest{Member: api.Member{ID: "m2", API: freeAddress(t), Raft: freeAddress(t), Standby: true}}))
	m3 := f.joinAs("m3", token, true)
	f.await("m3 is a manager", func(v api.View) bool { return ready(v, "m3") })
	settings, _, err := manager.Load(m3.dir, nil)
	require.NoError(t, err)
	require.Equal(t, []api.Member{f.member, m3.member}, settings.Members)
}

func TestLeaderIsMovedOffAndRemoved(t *testing.T) {
	f := found(t)
	f.run()
	token := f.token(cluster.RoleManager)
	m2, m3 := f.join("m2", token), f.join("m3", token)
	f.await("three managers", func(v api.View) bool { return ready(v, "m1", "m2", "m3") && len(voters(v)) == 3 })
	client := api.NewClient(m2.credentials(), m2.member.API, m3.member.API)
	defer client.Close()
	f.lead("m2")
	a, err := client.ChangeLeader(within(t), "m2")
	require.NoError(t, err, "who asks once more because the answer was lost has nothing to hear of")
	require.Contains(t, a.String(), "m2 leads already")
	others := []string{m3.member.API}
	require.NoError(t, client.Remove(within(t), api.RemoveRequest{Node: "m2"}))
	require.ErrorIs(t, <-m2.ended, agent.ErrRemoved)
	v := f.await("m2 is gone", func(v api.View) bool { return v.State.Nodes["m2"] == nil }, others...)
	require.Equal(t, []cluster.NodeID{"m1", "m3"}, voters(v))
	require.NotEqual(t, cluster.NodeID("m2"), v.Leader)

	// What it still holds opens no door.
	removed := api.NewClient(m2.credentials(), f.member.API)
	defer removed.Close()
	_, err = removed.State(within(t))
	requireCode(t, api.CodeRemoved, err)
	require.True(t, raftPortRefuses(t, f.member.Raft, m2.credentials()))
	require.False(t, raftPortRefuses(t, f.member.Raft, m3.credentials(), nonsense...))

	// It is told so when it is started again, and what it says about the members is not believed.
	m2.start(cluster.RoleManager)
	require.ErrorIs(t, <-m2.ended, agent.ErrRemoved)
	f.await("the others have not noticed", func(v api.View) bool { return len(v.Members) == 2 && ready(v, "m1", "m3") }, others...)

	// Without a quorum m1 may not know who was removed, so it signs and changes nothing. It still says how it is.
	m3.stop()
	require.NoError(t, <-m3.ended)
	worker := f.client("w1", cluster.RoleWorker)
	request, _, err := pki.NewRequest()
	require.NoError(t, err)
	require.Eventually(t, func() bool { return !f.manager.Node().Status().CanCommit }, patience, 10*time.Millisecond)
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = worker.Renew(short, api.RenewRequest{Request: request})
	require.Error(t, err)
	status, err := f.client("m1", cluster.RoleManager).Status(within(t))
	require.NoError(t, err)
	require.False(t, status.CanCommit)
}

func (n *joined) credentials() *pki.Credentials {
	n.t.Helper()
	_, credentials, err := manager.Load(n.dir, n.clock)
	require.NoError(n.t, err)
	return credentials
}

// raftPortRefuses reports that a Raft port does not accept somebody's certificate. A client of TLS 1.3 learns it when it reads. Where the
// certificate is expected to be good, something that makes no sense is said first, so that the other side does not wait for more.
func raftPortRefuses(t *testing.T, address string, who *pki.Credentials, say ...byte) bool {
	t.Helper()
	conn, err := (&tls.Dialer{NetDialer: &net.Dialer{Timeout: patience}, Config: who.ClientTLS("")}).DialContext(within(t), "tcp", address)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	if len(say) > 0 {
		_, _ = conn.Write(say)
	}
	_, err = io.ReadAll(conn)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
	return err != nil && strings.Contains(err.Error(), "bad certificate")
}

var nonsense = make([]byte, 1024)

// Who may do what, as the README's table says. Every refusal says whose certificate it was.
func TestWhoMayDoWhat(t *testing.T) {
	f := found(t)
	f.run()
	client := f.client("m1", cluster.RoleManager)
	require.NoError(t, f.client("gone", cluster.RoleWorker).Register(within(t), registration("gone", "a")))
	require.NoError(t, client.Remove(within(t), api.RemoveRequest{Node: "gone", Force: true}))

	const nobody, aWorker, aManager, removed = "nobody", "worker w1", "manager m9", "removed worker"
	clients := map[string]*http.Transport{
		nobody:   {TLSClientConfig: pki.NewToken(f.ca.Certificate()).ClientTLS()},
		aWorker:  {TLSClientConfig: f.credentials("w1", cluster.RoleWorker).ClientTLS("")},
		aManager: {TLSClientConfig: f.credentials("m9", cluster.RoleManager).ClientTLS("")},
		removed:  {TLSClientConfig: f.credentials("gone", cluster.RoleWorker).ClientTLS("")},
	}
	for _, c := range clients {
		defer c.CloseIdleConnections()
	}
	ask := func(who, method, path, body string) (code string) {
		request, err := http.NewRequestWithContext(within(t), method, "https://"+f.member.API+path, strings.NewReader(body))
		require.NoError(t, err)
		response, err := clients[who].RoundTrip(request)
		require.NoError(t, err)
		defer response.Body.Close()
		once := who == nobody || path == api.PathJoin
		require.True(t, response.Close == once || strings.HasPrefix(path, api.PathOutput), "strangers do not keep connections")
		if response.StatusCode == http.StatusOK {
			return "ok"
		}
		return readError(t, response).Code
	}
	operation := func(op cluster.Op) string {
		data, err := cluster.Encode(cluster.Command{Op: op})
		require.NoError(t, err)
		return string(data)
	}
	// The bodies name nodes and services that do not exist: who is allowed gets as far as that.
	const forbidden = api.CodeForbidden
	for _, test := range []struct {
		what, method, path, body    string
		nobody, ofWorker, ofManager string // what they are told
	}{
		{"join", "POST", api.PathJoin, `{"node":"w5"}`, "invalid", "invalid", "invalid"},
		{"register as itself", "POST", api.PathRegister, `{"node":"w1","session":"a","role":"worker"}`, forbidden, "ok", forbidden},
		{"register with another role", "POST", api.PathRegister, `{"node":"w1","session":"a","role":"manager"}`, forbidden, forbidden, forbidden},
		{"report as itself", "POST", api.PathHeartbeat, `{"node":"w1","session":"other"}`, forbidden, api.CodeSuperseded, forbidden},
		{"report for another node", "POST", api.PathHeartbeat, `{"node":"m1","session":"a"}`, forbidden, forbidden, forbidden},
		{"learn of another node's work", "POST", api.PathWatch, `{"node":"m1"}`, forbidden, forbidden, forbidden},
		{"renew its certificate", "POST", api.PathRenew, `{"request":""}`, forbidden, "invalid", "invalid"},
		{"remove another node", "POST", api.PathRemove, `{"node":"m7"}`, forbidden, forbidden, "not-found"},
		{"read the state", "GET", api.PathState, "", forbidden, forbidden, "ok"},
		{"read a manager's status", "GET", api.PathStatus, "", forbidden, forbidden, "ok"},
		{"remove a service", "POST", api.PathCommand, operation(cluster.RemoveService{Service: "s7"}), forbidden, forbidden, "not-found"},
		{"restore a snapshot", "POST", api.PathCommand, operation(cluster.RestoreServices{Services: make([]cluster.RestoredService, 1)}), forbidden, forbidden, "invalid"},
		{"make a token", "POST", api.PathCommand, operation(cluster.SetToken{Role: "king"}), forbidden, forbidden, "invalid"},
		{"drain a node", "POST", api.PathCommand, operation(cluster.SetAvailability{Node: "m7"}), forbidden, forbidden, "not-found"},
		{"kill a task", "POST", api.PathCommand, operation(cluster.KillTask{Task: "s7.1.1"}), forbidden, forbidden, "not-found"},
		{"admit a node without a token", "POST", api.PathCommand, operation(cluster.AdmitNode{Node: "w7"}), forbidden, forbidden, forbidden},
		{"forget a node without the managers' checks", "POST", api.PathCommand, operation(cluster.RemoveNode{Node: "m1"}), forbidden, forbidden, forbidden},
		{"decide what the control loop decides", "POST", api.PathCommand, operation(cluster.StopTask{Task: "s7.1.1"}), forbidden, forbidden, forbidden},
		{"give a vote", "POST", api.PathVote, `{"node":"m7","voter":true}`, forbidden, forbidden, "not-found"},
		{"go on with a rotation of the CA", "POST", api.PathRotate, `{}`, forbidden, forbidden, "ok"},
		{"get the key of a CA", "POST", api.PathCAKey, `{"digest":"a"}`, forbidden, forbidden, "not-found"},
		{"read the events", "POST", api.PathEvents, `{}`, forbidden, forbidden, "ok"},
		{"read a task's output", "POST", api.PathLogs, `{"task":"s7.1.1"}`, forbidden, forbidden, "not-found"},
		{"have a node send output", "POST", api.PathWanted, `{"node":"m7"}`, forbidden, forbidden, "ok"},
		{"send output that nobody has asked for", "POST", api.PathOutput + "/guess", "text", forbidden, "not-found", "not-found"},
		{"make another manager a member", "POST", api.PathEnter, `{"member":{"id":"m7"}}`, forbidden, forbidden, forbidden},
		{"change the leader", "POST", api.PathLeader, `{"target":"m7"}`, forbidden, forbidden, "invalid"},
	} {
		t.Run(test.what, func(t *testing.T) {
			require.Equal(t, test.nobody, ask(nobody, test.method, test.path, test.body), "nobody")
			require.Equal(t, test.ofWorker, ask(aWorker, test.method, test.path, test.body), "a worker")
			require.Equal(t, test.ofManager, ask(aManager, test.method, test.path, test.body), "a manager")
			if test.path != api.PathJoin {
				require.Equal(t, api.CodeRemoved, ask(removed, test.method, test.path, test.body), "a removed node")
			}
		})
	}

	// A stranger does not keep a connection by asking for what does not exist either.
	for _, path := range []string{"/", "/v2", api.PathState + "/more", "//v1/state"} {
		for _, method := range []string{http.MethodGet, http.MethodPut} {
			request, err := http.NewRequestWithContext(within(t), method, "https://"+f.member.API+path, http.NoBody)
			require.NoError(t, err)
			response, err := clients[nobody].RoundTrip(request)
			require.NoError(t, err)
			require.NoError(t, response.Body.Close())
			require.GreaterOrEqual(t, response.StatusCode, 300, path)
			require.True(t, response.Close, "%s %s", method, path)
		}
	}

	// The Raft port is for managers: with a worker's certificate one could pretend to be a leader there.
	require.True(t, raftPortRefuses(t, f.member.Raft, f.credentials("w1", cluster.RoleWorker)))
	require.True(t, raftPortRefuses(t, f.member.Raft, f.credentials("gone", cluster.RoleManager)))
	require.False(t, raftPortRefuses(t, f.member.Raft, f.credentials("m9", cluster.RoleManager), nonsense...))
}

// Certificates are renewed while everything runs, and go on to be valid when the first ones have expired long ago.
func TestCertificatesAreRenewedWithoutARestart(t *testing.T) {
	var clock atomic.Int64
	start := time.Now()
	f := found(t)
	f.clock = func() time.Time { return start.Add(time.Duration(clock.Load())) }
	f.ca.Now = f.clock // for the test's own certificates
	f.run()
	w := f.join("w1", f.token(cluster.RoleWorker))
	f.await("the worker", func(v api.View) bool { return ready(v, "m1", "w1") })
	expiry := func(dir string) time.Time { // as it is on disk: what a restart would find
		_, credentials, err := manager.Load(dir, f.clock)
		require.NoError(t, err)
		return credentials.ExpiresAt()
	}
	first := expiry(w.dir)
	info, err := os.Stat(filepath.Join(w.dir, "pki", "node.pem"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())

	for range 3 { // each step is longer than what is left after the one before
		clock.Add(int64(pki.NodeLifetime * 7 / 10))
		for _, dir := range []string{f.dir, w.dir} {
			require.Eventually(t, func() bool { return expiry(dir).After(f.clock().Add(pki.NodeLifetime - time.Hour)) }, patience, 10*time.Millisecond)
		}
		f.await("both are heard", func(v api.View) bool { return ready(v, "m1", "w1") })
	}
	require.True(t, f.clock().After(first))
	select {
	case err := <-w.ended:
		require.NoError(t, err, "it must not have ended")
	default:
	}
}

// A connection may last for ever; the certificate that it was made with does not.
func TestConnectionDoesNotOutliveItsCertificate(t *testing.T) {
	var clock atomic.Int64
	start := time.Now()
	f := found(t)
	f.clock = func() time.Time { return start.Add(time.Duration(clock.Load())) }
	f.ca.Now = f.clock
	f.run()
	transport := &http.Transport{TLSClientConfig: f.credentials("w1", cluster.RoleWorker).ClientTLS("")}
	defer transport.CloseIdleConnections()
	ask := func() (*http.Response, bool) {
		reused := false
		ctx := httptrace.WithClientTrace(within(t), &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { reused = c.Reused }})
		body := strings.NewReader(`{"node":"w1","session":"a","role":"worker"}`)
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+f.member.API+api.PathRegister, body)
		require.NoError(t, err)
		response, err := transport.RoundTrip(request)
		require.NoError(t, err)
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			requireCode(t, api.CodeForbidden, readError(t, response))
		}
		_, err = io.Copy(io.Discard, response.Body)
		require.NoError(t, err)
		return response, reused
	}
	response, _ := ask()
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.False(t, response.Close)
	clock.Store(int64(pki.NodeLifetime + time.Minute))
	response, reused := ask()
	require.True(t, reused, "the connection from before")
	require.Equal(t, http.StatusForbidden, response.StatusCode)
	require.True(t, response.Close, "the next request shows a new certificate, if there is one")
}
