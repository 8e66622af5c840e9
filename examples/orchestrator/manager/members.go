package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
)

// changeRetry is how soon a membership change is tried again that has to wait for another one, or for a new manager's log.
const changeRetry = 10 * time.Millisecond

// join lets a node in that shows the secret of a token, and signs its certificate. The secret is compared twice: here, so that a
// stranger's guess costs the cluster no log entry, and by the state machine, so that a token is worth nothing once its rotation is
// acknowledged.
func (m *Manager) join(ctx context.Context, r api.JoinRequest) (api.JoinAnswer, error) {
	invalid := func(err error) error { return &api.Error{Code: string(cluster.Invalid), Message: err.Error()} }
	if err := pki.CheckName(r.Node); err != nil {
		return api.JoinAnswer{}, invalid(err)
	}
	key, err := pki.RequestKey(r.Request)
	if err != nil {
		return api.JoinAnswer{}, invalid(err)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := m.node.Read(ctx); err != nil { // the token may have been made a moment ago
		return api.JoinAnswer{}, err
	}
	op := cluster.AdmitNode{Node: r.Node, SecretHash: pki.SecretHash(r.Secret), Key: key}
	state, configuration := m.machine.View(), m.node.Status().Configuration
	role, ok := state.Cluster.TokenRole(op.SecretHash, time.Now())
	if !ok {
		return api.JoinAnswer{}, &api.Error{Code: api.CodeForbidden, Message: cluster.WrongToken}
	}
	// A founder is a member before its agent has registered, and until then the state does not know its name. Whoever got a certificate
	// with that name could take the founder's vote away, by removing itself.
	if state.Nodes[r.Node] == nil && isMember(&configuration, raft.NodeID(r.Node)) {
		return api.JoinAnswer{}, &api.Error{Code: string(cluster.Conflict), Message: fmt.Sprintf("there is a manager %s already; choose another name", r.Node)}
	}
	if state.Cluster.CA.Phase() != cluster.NoRotation {
		return api.JoinAnswer{}, &api.Error{Code: string(cluster.Conflict), Message: cluster.Rotating}
	}
	ca, err := m.signer()
	if err != nil {
		return api.JoinAnswer{}, err
	}
	if r.Former != nil {
		if op.Key, err = comesBack(ca, r, role, state); err != nil {
			return api.JoinAnswer{}, err
		}
	}
	// Signed before the node is admitted, and shown after: a request that cannot be signed must not use up the name.
	certificate, err := signJoin(ca, r, role)
	if err != nil {
		return api.JoinAnswer{}, invalid(err)
	}
	result, err := m.propose(ctx, op)
	if err != nil {
		return api.JoinAnswer{}, err
	}
	if result.Role != role { // a secret opens one role, so this cannot be; a certificate of the wrong one must not get out
		return api.JoinAnswer{}, unavailable("the join token has changed meanwhile")
	}
	answer := api.JoinAnswer{Cluster: m.settings.Cluster, Role: role, CA: ca.CertificatePEM(), Certificate: certificate}
	for _, member := range m.members() {
		if member.API != "" { // otherwise it has joined a moment ago, and its agent has not said yet where it can be reached
			answer.Managers = append(answer.Managers, member)
		}
	}
	if role == cluster.RoleManager { // it signs for others in its turn
		answer.CAKey, err = ca.KeyPEM()
	}
	return answer, err
}

// signJoin signs the certificate of a node that joins. The host is only the node's word, and a worker serves nobody under TLS: in its
// certificate it could be a manager's, for clients that check host names.
func signJoin(ca *pki.CA, r api.JoinRequest, role cluster.Role) ([]byte, error) {
	if role != cluster.RoleManager {
		return ca.Sign(r.Request, r.Node, role)
	}
	return ca.Sign(r.Request, r.Node, role, r.Host)
}

// renew signs another certificate for whoever asks, with the same name, role and hosts.
func (m *Manager) renew(ctx context.Context, r api.RenewRequest) (api.RenewAnswer, error) {
	c := callerOf(ctx)
	ca, err := m.signer()
	if err != nil {
		return api.RenewAnswer{}, err
	}
	certificate, err := ca.Sign(r.Request, c.Node, c.Role, c.hosts...)
	if err != nil {
		err = &api.Error{Code: string(cluster.Invalid), Message: err.Error()}
	}
	return api.RenewAnswer{Certificate: certificate}, err
}

// members returns the managers, as far as this one knows.
func (m *Manager) members() (members []api.Member) {
	configuration := m.node.Status().Configuration
	for _, s := range configuration.Servers {
		id := cluster.NodeID(s.ID)
		members = append(members, api.Member{ID: id, Raft: s.Address, API: m.apiOf(id), Standby: s.Suffrage != raft.Voter})
	}
	return members
}

// enter makes this manager a member, if it is new: it is running, its log is empty, and the leader has to know of it.
func (m *Manager) enter(ctx context.Context) error {
	if !m.settings.Entering {
		return nil
	}
	var others []string
	for _, member := range m.settings.Members {
		if member.ID != m.settings.Node {
			others = append(others, member.API)
		}
	}
	client := api.NewClient(m.credentials, others...)
	defer client.Close()
	for {
		err := client.Enter(ctx, api.EnterRequest{Member: m.self})
		var answer *api.Error
		switch {
		case err == nil:
			m.log.Info("this manager is a member", "vote", !m.self.Standby)
			settings := m.settings
			settings.Entering = false
			return settings.save(m.dir)
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &answer) && answer.Code != api.CodeUnavailable:
			return fmt.Errorf("become a member of the cluster: %w", err)
		}
		m.log.Warn("not a member yet; trying again", "error", err)
	}
}

// admitManager adds a manager to the members, first without a vote, and gives it one when it has the log (dissertation §4.2.1), unless it
// wants to be a standby. It runs
// on the leader, and may be asked for again after it was broken off.
func (m *Manager) admitManager(ctx context.Context, r api.EnterRequest) (none, error) {
	if err := callerOf(ctx).mayActAs(r.Member.ID); err != nil {
		return none{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	id := raft.NodeID(r.Member.ID)
	change := raft.Change{Add: []raft.Server{{ID: id, Address: r.Member.Raft}}}
	if err := m.change(ctx, change, false, func(c *raft.Configuration) bool { return isMember(c, id) }); err != nil {
		return none{}, err
	}
	// It may have been removed since it was let in to ask. Whichever is later in the log, its entry or its removal, sees the other: here,
	// or in remove.
	if err := m.node.Read(ctx); err != nil {
		return none{}, err
	}
	if err := m.notRemoved(r.Member.ID); err != nil {
		return none{}, errors.Join(err, m.dismiss(ctx, id))
	}
	if r.Member.Standby {
		return none{}, nil
	}
	return none{}, m.giveVote(ctx, id)
}

// dismiss takes a server off the members, if it is one, and its vote first.
func (m *Manager) dismiss(ctx context.Context, id raft.NodeID) error {
	configuration := m.node.Status().Configuration
	server, member := configuration.Server(id)
	if !member {
		return nil
	}
	if err := m.takeVote(ctx, server); err != nil {
		return err
	}
	return m.change(ctx, raft.Change{Remove: []raft.NodeID{id}}, false, func(c *raft.Configuration) bool { return !isMember(c, id) })
}

// giveVote promotes a manager once it has caught up.
func (m *Manager) giveVote(ctx context.Context, id raft.NodeID) error {
	return m.change(ctx, raft.Change{Promote: []raft.NodeID{id}}, true, func(c *raft.Configuration) bool { return c.IsVoter(id) })
}

func isMember(c *raft.Configuration, id raft.NodeID) bool {
	_, member := c.Server(id)
	return member
}

// change changes the membership, unless that is done already, as it is when a request comes again. It waits while another change is
// under way and, if catchingUp, while the library has an objection: it refuses to promote a server that does not have the log yet.
func (m *Manager) change(ctx context.Context, change raft.Change, catchingUp bool, done func(*raft.Configuration) bool) error {
	for {
		if s := m.node.Status(); !s.Configuration.Joint() && done(&s.Configuration) {
			return nil
		}
		_, err := m.node.ChangeMembership(ctx, change)
		objection := (*raft.MembershipError)(nil)
		switch objects := errors.As(err, &objection); {
		case errors.Is(err, raft.ErrChangePending):
		case objects && !catchingUp:
			return &api.Error{Code: string(cluster.Conflict), Message: err.Error()}
		case !objects:
			return err // nil, most often
		}
		if !pause(ctx, changeRetry) {
			return unavailable("the membership could not be changed in time: %v", err)
		}
	}
}

// vote gives a manager a vote or takes it away. It runs on the leader.
func (m *Manager) vote(ctx context.Context, r api.VoteRequest) (none, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	server, err := m.managerNamed(r.Node)
	switch {
	case err != nil:
		return none{}, err
	case r.Voter:
		return none{}, m.giveVote(ctx, server.ID)
	default:
		return none{}, m.takeVote(ctx, server)
	}
}

// managerNamed returns a manager as it is in the configuration.
func (m *Manager) managerNamed(id cluster.NodeID) (raft.Server, error) {
	configuration := m.node.Status().Configuration
	server, ok := configuration.Server(raft.NodeID(id))
	switch n := m.machine.View().Nodes[id]; {
	case ok:
		return server, nil
	case n == nil:
		return server, &api.Error{Code: string(cluster.NotFound), Message: fmt.Sprintf("no node %q", id)}
	default:
		return server, &api.Error{Code: string(cluster.Conflict), Message: fmt.Sprintf(
			"node %s is a worker, which has no log; to make the machine a manager, let it leave, and join with a manager's token", id)}
	}
}

// takeVote demotes a manager. A leader that demotes itself hands its office over when that is committed, as the library sees to; what is
// left to do is then for the next leader, whom the client asks.
func (m *Manager) takeVote(ctx context.Context, server raft.Server) error {
	if server.Suffrage != raft.Voter {
		return nil
	}
	configuration := m.node.Status().Configuration
	if len(configuration.Voters()) == 1 {
		return &api.Error{Code: string(cluster.Conflict), Message: fmt.Sprintf(
			"manager %s is the only one with a vote: without it the cluster could decide nothing; promote another one first", server.ID)}
	}
	if err := m.awaitQuorumWithout(ctx, server.ID); err != nil {
		return err
	}
	return m.change(ctx, raft.Change{Demote: []raft.NodeID{server.ID}}, false, func(c *raft.Configuration) bool { return !c.IsVoter(server.ID) })
}

// awaitQuorumWithout makes sure that more than half of the voters answer that would be left without one of them. The library looks at
// this too, but to a leader that has only just been elected all of them seem to be well for an election timeout. Here only those count
// that have acknowledged something to this leader.
func (m *Manager) awaitQuorumWithout(ctx context.Context, without raft.NodeID) error {
	deadline := time.Now().Add(5 * electionTimeout) // a manager that gets no processor for a while is not gone
	for {
		s := m.node.Status()
		left, answer := 0, 0
		for _, id := range s.Configuration.Voters() {
			if id == without {
				continue
			}
			left++
			answers := func(p raft.PeerStatus) bool { return p.ID == id && p.MatchIndex > 0 && p.LastHeard < electionTimeout }
			if id == s.ID || slices.ContainsFunc(s.Peers, answers) {
				answer++
			}
		}
		switch {
		case answer > left/2:
			return nil
		case time.Now().After(deadline):
			return &api.Error{Code: string(cluster.Conflict), Message: fmt.Sprintf(
				"only %d of the %d managers with a vote that would be left answers: without %s the cluster could decide nothing; "+
					"start the others first, or remove those that are gone", answer, left, without)}
		case !pause(ctx, changeRetry):
			return unavailable("manager %s waits for the other managers to answer", m.settings.Node)
		}
	}
}

// remove removes a node for ever. It runs on the leader. A manager leaves the configuration before the state says that it is gone, so
// that whatever is refused is refused before anything has happened; a call that is broken off in between may be repeated.
func (m *Manager) remove(ctx context.Context, r api.RemoveRequest) (none, error) {
	if err := callerOf(ctx).mayRemove(r.Node); err != nil {
		return none{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	configuration := m.node.Status().Configuration
	id := raft.NodeID(r.Node)
	member := isMember(&configuration, id)
	if err := m.dismiss(ctx, id); err != nil {
		return none{}, err
	}
	node := m.machine.View().Nodes[r.Node]
	force := member || node != nil && (r.Force || node.Role == cluster.RoleManager)
	until := m.credentials.Now().Add(max(m.lifetime, pki.NodeLifetime) + time.Hour) // whatever it holds now has expired by then
	if _, err := m.propose(ctx, cluster.RemoveNode{Node: r.Node, Until: until, Force: force}); err != nil {
		return none{}, err
	}
	return none{}, m.dismiss(ctx, id) // again: it may have become a member in between
}
