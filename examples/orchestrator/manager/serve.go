package manager

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/agent"
	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
)

// Bounds of the API.
const (
	maxConnections = 1024
	maxHeaderBytes = 16 << 10
	maxProblems    = 100      // of one node
	maxJoinBytes   = 64 << 10 // of a request from who is not known yet
	maxSelfBytes   = 64 << 10 // of what a node says about itself, which the state keeps
	headerTimeout  = 5 * time.Second
	readTimeout    = 10 * time.Second
	writeTimeout   = api.WatchWait + 10*time.Second // from the end of the request's header; a watch lasts that long
	idleTimeout    = 2 * time.Minute
	requestTimeout = 5 * time.Second // for a request to be carried out
)

// newServer makes the API. HTTP/1.1 on purpose: a request that takes too long costs its connection, which is what tells a client that a
// manager hangs.
func (m *Manager) newServer() *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+api.PathJoin, forAnybody(handle(m.join)))
	mux.HandleFunc("POST "+api.PathRegister, m.forAgents(bounded(maxSelfBytes, m.upToDate(handle(m.register)))))
	mux.HandleFunc("POST "+api.PathHeartbeat, m.forAgents(m.atLeader(handle(m.heartbeat))))
	mux.HandleFunc("POST "+api.PathWatch, m.forAgents(handle(m.watch)))
	mux.HandleFunc("POST "+api.PathRenew, m.forAgents(bounded(maxSelfBytes, m.upToDate(handle(m.renew)))))
	mux.HandleFunc("POST "+api.PathRemove, m.forAgents(m.upToDate(m.atLeader(handle(m.remove)))))
	mux.HandleFunc("POST "+api.PathOutput+"/{id}", m.forAgentsAtLength(m.output))
	mux.HandleFunc("POST "+api.PathEvents, m.forManagers(m.upToDate(patiently(handle(m.events)))))
	mux.HandleFunc("POST "+api.PathLogs, m.forManagers(m.upToDate(patiently(m.logs))))
	mux.HandleFunc("POST "+api.PathRotate, m.forManagers(m.upToDate(m.atLeader(handle(m.rotate)))))
	mux.HandleFunc("POST "+api.PathCAKey, m.forManagers(m.upToDate(handle(m.caKey))))
	mux.HandleFunc("POST "+api.PathWanted, m.forManagers(m.upToDate(handle(m.wanted))))
	mux.HandleFunc("GET "+api.PathStatus, m.forManagers(handle(m.status)))
	mux.HandleFunc("GET "+api.PathState, m.forManagers(m.upToDate(handle(m.view))))
	mux.HandleFunc("POST "+api.PathCommand, m.forManagers(m.upToDate(handle(m.command))))
	mux.HandleFunc("POST "+api.PathLeader, m.forManagers(m.upToDate(m.atLeader(handle(m.changeLeader)))))
	mux.HandleFunc("POST "+api.PathEnter, m.forManagers(m.upToDate(m.atLeader(handle(m.admitManager)))))
	mux.HandleFunc("POST "+api.PathVote, m.forManagers(m.upToDate(m.atLeader(handle(m.vote)))))
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Server{
		Handler: strangersOnce(mux), TLSConfig: m.credentials.FrontDoorTLS(), Protocols: protocols, MaxHeaderBytes: maxHeaderBytes,
		ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		ErrorLog: slog.NewLogLogger(m.log.Handler(), slog.LevelDebug),
	}
}

// caller is who has sent a request, as its certificate says.
type caller struct {
	pki.Identity
	relays bool     // the request says that the caller only passes it on
	hosts  []string // that its certificate is for
}

// mayActAs says whether the caller may speak for a node: for its own only, unless it is a manager that passes on what it has been told.
func (c caller) mayActAs(node cluster.NodeID) error {
	if c.Node == node || c.relays && c.Role == cluster.RoleManager {
		return nil
	}
	return &api.Error{Code: api.CodeForbidden, Message: fmt.Sprintf("node %s may not speak for node %s", c.Node, node)}
}

// mayRemove says whether the caller may remove a node: a manager any node, a worker itself.
func (c caller) mayRemove(node cluster.NodeID) error {
	if c.Role == cluster.RoleManager || c.Node == node {
		return nil
	}
	return &api.Error{Code: api.CodeForbidden, Message: fmt.Sprintf("node %s may not remove node %s", c.Node, node)}
}

type callerKey struct{}

func bounded(limit int64, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, limit)
		next(w, r)
	}
}

// strangersOnce lets who shows no certificate make one small request, also one for a path that does not exist: connections are bounded,
// and strangers must not hold them.
func strangersOnce(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) == 0 {
			w.Header().Set("Connection", "close")
			r.Body = http.MaxBytesReader(w, r.Body, maxJoinBytes)
		}
		next.ServeHTTP(w, r)
	})
}

// forAnybody lets everybody in, for one small request.
func forAnybody(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		bounded(maxJoinBytes, next)(w, r)
	}
}

// forAgents lets every node of the cluster in. TLS has made sure that the certificate is the cluster's; that it is still good is looked
// at with every request, because a connection may last longer.
func (m *Manager) forAgents(next http.HandlerFunc) http.HandlerFunc {
	return m.forAgentsAtLength(bounded(api.MaxRequestBytes, next))
}

// forAgentsAtLength is forAgents for requests of any length.
func (m *Manager) forAgentsAtLength(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		id, err := pki.PeerIdentity(r.TLS)
		if err != nil {
			fail(w, &api.Error{Code: api.CodeForbidden, Message: err.Error()})
			return
		}
		if err := m.notRemoved(id.Node); err != nil {
			fail(w, err)
			return
		}
		now, cert := m.credentials.Now(), r.TLS.PeerCertificates[0]
		if !now.Before(pki.RenewAt(cert)) {
			w.Header().Set("Connection", "close") // the next request makes a new one, with the certificate that is the newest by then
		}
		issuer, ca := m.credentials.IssuerOf(cert), m.machine.View().Cluster.CA
		trusted := func(t cluster.TrustedCA) bool { return t.Digest == issuer }
		if issuer == "" || len(ca.Trusted) > 0 && !slices.ContainsFunc(ca.Trusted, trusted) {
			w.Header().Set("Connection", "close")
			fail(w, &api.Error{Code: api.CodeForbidden, Message: fmt.Sprintf("the certificate of node %s is of a CA that was dropped; the node has to join anew", id.Node)})
			return
		}
		if ca.Signing != "" && issuer != ca.Signing {
			w.Header().Set("Connection", "close") // as above
		}
		if now.After(cert.NotAfter) {
			fail(w, &api.Error{Code: api.CodeForbidden, Message: fmt.Sprintf("the certificate of node %s has expired", id.Node)})
			return
		}
		who := caller{Identity: id, relays: r.Header.Get(api.RelayedHeader) != "", hosts: pki.Hosts(cert)}
		next(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, who)))
	}
}

// upToDate serves a request from a state that is at least as new as every change acknowledged before it came, and looks again whether the
// caller was removed: a manager that lags behind, or is cut off, would let in who is gone already.
func (m *Manager) upToDate(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body) // first, because until then the server does not notice that a client has given up
		if err != nil {
			fail(w, unreadable(r, err))
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		err = m.node.Read(ctx)
		cancel()
		if err == nil {
			err = m.notRemoved(callerOf(r.Context()).Node)
		}
		if err != nil {
			fail(w, err)
			return
		}
		next(w, r)
	}
}

// notRemoved is an error if a node was removed, as far as this manager knows.
func (m *Manager) notRemoved(id cluster.NodeID) error {
	if m.machine.View().Cluster.IsRemoved(id) {
		return removedNode(id)
	}
	return nil
}

func removedNode(id cluster.NodeID) error {
	return &api.Error{Code: api.CodeRemoved, Node: id, Message: fmt.Sprintf("node %s was removed from the cluster", id)}
}

// forManagers lets those in who hold a manager's certificate: other managers, and the command line on a manager's machine.
func (m *Manager) forManagers(next http.HandlerFunc) http.HandlerFunc {
	return m.forAgents(func(w http.ResponseWriter, r *http.Request) {
		if c := callerOf(r.Context()); c.Role != cluster.RoleManager {
			fail(w, &api.Error{Code: api.CodeForbidden, Message: fmt.Sprintf("node %s is a %s, which may not do this; use a manager's certificate", c.Node, c.Role)})
			return
		}
		next(w, r)
	})
}

func callerOf(ctx context.Context) caller { return ctx.Value(callerKey{}).(caller) }

// handle makes a handler of a function from a request to an answer. A GET has no request.
func handle[Request, Answer any](f func(context.Context, Request) (Answer, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var request Request
		if r.Method != http.MethodGet {
			if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
				fail(w, unreadable(r, err))
				return
			}
		}
		answer, err := f(r.Context(), request)
		if err != nil {
			fail(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer) // an error means that the client is gone
	}
}

func unreadable(r *http.Request, err error) error {
	return &api.Error{Code: string(cluster.Invalid), Message: fmt.Sprintf("%s: read the request: %v", r.URL.Path, err)}
}

func fail(w http.ResponseWriter, err error) {
	answer := api.ErrorOf(err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(answer.Status())
	_ = json.NewEncoder(w).Encode(answer)
}

func unavailable(format string, args ...any) error {
	return &api.Error{Code: api.CodeUnavailable, Message: fmt.Sprintf(format, args...)}
}

// atLeader serves a request here if this manager leads, and passes it on to the leader if another one does.
func (m *Manager) atLeader(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		lead := m.node.Leadership()
		switch {
		case lead.Role == raft.Leader:
			next(w, r)
		case lead.Leader == "":
			fail(w, unavailable("manager %s knows no leader: an election is going on, or too few managers are running", m.settings.Node))
		default:
			m.relay(w, r, cluster.NodeID(lead.Leader))
		}
	}
}

// relay passes a request on to another manager, once.
func (m *Manager) relay(w http.ResponseWriter, r *http.Request, to cluster.NodeID) {
	address := m.apiOf(to)
	if by := r.Header.Get(api.RelayedHeader); by != "" || address == "" {
		fail(w, unavailable("manager %s cannot pass this on to manager %s", m.settings.Node, to))
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		fail(w, unreadable(r, err))
		return
	}
	if err := mayRelay(callerOf(r.Context()), r.URL.Path, body); err != nil {
		fail(w, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	header := http.Header{api.RelayedHeader: {string(m.settings.Node)}}
	var answer bytes.Buffer
	sent, err := m.peers.Exchange(ctx, address, r.Method, r.URL.Path, bytes.NewReader(body), header, func(from io.Reader) error {
		_, err := answer.ReadFrom(from)
		return err
	})
	switch {
	case err == nil:
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(answer.Bytes()) // an error means that the client is gone
	case errors.As(err, new(*api.Error)):
		fail(w, relayed(err, callerOf(r.Context())))
	case sent:
		fail(w, &api.Error{Code: api.CodeUncertain, Message: fmt.Sprintf("manager %s has not answered: %v", to, err)})
	default:
		fail(w, unavailable("manager %s cannot be reached: %v", to, err))
	}
}

// relayed is what a caller is told when another manager has refused its request. That this manager was removed, which has passed it on,
// is nothing that the caller should take for itself.
func relayed(err error, c caller) error {
	var answer *api.Error
	if errors.As(err, &answer) && answer.Code == api.CodeRemoved && answer.Node != c.Node {
		return unavailable("%s; ask another manager", answer.Message)
	}
	return err
}

// mayRelay checks what a caller says about itself, in the requests that are passed on and depend on it. The other manager sees who has
// passed them on.
func mayRelay(c caller, path string, body []byte) error {
	var said struct {
		Node   cluster.NodeID `json:"node"`   // agent.Heartbeat, api.RemoveRequest
		Member api.Member     `json:"member"` // api.EnterRequest
	}
	switch path {
	case api.PathHeartbeat, api.PathRemove, api.PathEnter:
		if err := json.Unmarshal(body, &said); err != nil {
			return &api.Error{Code: string(cluster.Invalid), Message: fmt.Sprintf("%s: read the request: %v", path, err)}
		}
	}
	switch path {
	case api.PathHeartbeat:
		return c.mayActAs(said.Node)
	case api.PathRemove:
		return c.mayRemove(said.Node)
	case api.PathEnter:
		return c.mayActAs(said.Member.ID)
	default:
		return nil // it is for managers, whoever they are, and only managers have got as far as this
	}
}

// apiOf returns where another manager's API is; "" if that is not known.
func (m *Manager) apiOf(id cluster.NodeID) string {
	if n := m.machine.View().Nodes[id]; n != nil && n.Address != "" {
		return n.Address
	}
	for _, member := range m.settings.Members {
		if member.ID == id {
			return member.API
		}
	}
	return ""
}

// propose replicates an operation of a user or an agent. On a follower the library passes it on to the leader.
func (m *Manager) propose(ctx context.Context, op cluster.Op) (cluster.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	data, err := cluster.Encode(cluster.Command{At: time.Now(), Op: op})
	if err != nil {
		return cluster.Result{}, err
	}
	result, err := m.node.Propose(ctx, data)
	if err != nil {
		return cluster.Result{}, err
	}
	r := result.(cluster.Result)
	return r, r.Err()
}

type none struct{}

func (m *Manager) register(ctx context.Context, r agent.Registration) (none, error) {
	c := callerOf(ctx)
	if err := c.mayActAs(r.Node); err != nil {
		return none{}, err
	}
	if c.Role != r.Role {
		return none{}, &api.Error{Code: api.CodeForbidden, Message: fmt.Sprintf("the certificate of node %s says %s, not %s", c.Node, c.Role, r.Role)}
	}
	_, err := m.propose(ctx, cluster.RegisterNode{
		Node: r.Node, Address: r.Address, Role: r.Role, Resources: r.Resources, Session: r.Session,
	})
	return none{}, err
}

// heartbeat runs on the leader: it notes the sign of life, replicates what is new about the node's tasks, and answers with what is
// wanted after that.
func (m *Manager) heartbeat(ctx context.Context, h agent.Heartbeat) (agent.Assignments, error) {
	if err := callerOf(ctx).mayActAs(h.Node); err != nil {
		return agent.Assignments{}, err
	}
	o := m.office.Load()
	if o == nil {
		return agent.Assignments{}, unavailable("manager %s has only just been elected", m.settings.Node)
	}
	if err := m.notRemoved(h.Node); err != nil { // it may have come through another manager, which the certificate names
		return agent.Assignments{}, err
	}
	state, err := stateKnowing(ctx, h.Node, h.Session, m.machine.View, m.node.Read)
	if err != nil {
		return agent.Assignments{}, err
	}
	o.hear(h.Node, state, time.Now())
	o.weigh(h.Node, h.Loads, state, time.Now())
	o.note(h.Node, h.CA)
	m.problems.note(h.Node, h.Problems)
	report := cluster.Report{Node: h.Node, Session: h.Session, Tasks: h.Tasks}
	if report.News(state) {
		if _, err := m.propose(ctx, report); err != nil {
			return agent.Assignments{}, err
		}
	}
	answer := m.assignments(m.machine.View(), h.Node)
	answer.Output = m.outputs.wantedOf(h.Node, time.Now())
	return answer, nil
}

// watch answers from this manager's own state, which may lag behind: the fence in the answer tells.
func (m *Manager) watch(ctx context.Context, w agent.WatchRequest) (agent.Assignments, error) {
	if err := callerOf(ctx).mayActAs(w.Node); err != nil {
		return agent.Assignments{}, err
	}
	return m.awaitAssignments(ctx, w.Node, w.Known, api.WatchWait)
}

// stateKnowing returns a state in which an agent is the one that has registered last as its node. What is at hand may be older than the
// registration: a manager that does not lead has applied the entry itself when it answers the agent, and may be quicker than the leader;
// and a leader may have been deposed without knowing it. An agent that hears that it is superseded ends, so that is said from the newest
// state only.
func stateKnowing(
	ctx context.Context, node cluster.NodeID, session string, view func() *cluster.State, read func(context.Context) error,
) (*cluster.State, error) {
	if state := view(); known(state, node, session) == nil {
		return state, nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := read(ctx); err != nil {
		return nil, err
	}
	state := view()
	return state, known(state, node, session)
}

// known checks that an agent is the one that has registered last as its node.
func known(s *cluster.State, node cluster.NodeID, session string) error {
	switch n := s.Nodes[node]; {
	case n == nil:
		return &api.Error{Code: api.CodeUnknownNode, Message: fmt.Sprintf("node %s is not known", node)}
	case n.Session != session:
		return &api.Error{Code: api.CodeSuperseded, Message: fmt.Sprintf("node %s has been registered by another agent since", node)}
	}
	return nil
}

func (m *Manager) view(context.Context, none) (api.View, error) {
	state, lead := m.machine.View(), m.node.Leadership()
	return api.View{State: state, Leader: cluster.NodeID(lead.Leader), Term: lead.Term, Members: m.members()}, nil
}

func (m *Manager) status(context.Context, none) (api.Status, error) {
	s := m.node.Status()
	status := api.Status{
		Node: m.settings.Node, State: s.State, Failure: s.Failure, Role: s.Role.String(), Term: s.Term, Leader: cluster.NodeID(s.Leader),
		Commit: s.CommitIndex, Applied: s.AppliedIndex, CanCommit: s.CanCommit, WhyNot: s.WhyNot, Members: m.members(),
		Last: s.LastIndex,
	}
	if m.pageListener != nil {
		status.Page = "http://" + m.pageListener.Addr().String() + "/"
	}
	if o := m.office.Load(); o != nil {
		status.Epoch, status.Problems = o.epoch, m.problems.all()
	}
	return status, nil
}

// command carries out what a user asks for. The control loop's own operations are not accepted from outside, whoever asks.
func (m *Manager) command(ctx context.Context, raw json.RawMessage) (cluster.Result, error) {
	c, err := cluster.Decode(raw)
	if err != nil {
		return cluster.Result{}, &api.Error{Code: string(cluster.Invalid), Message: err.Error()}
	}
	switch c.Op.(type) {
	case cluster.CreateService, cluster.UpdateService, cluster.ScaleService, cluster.StopService, cluster.StartService,
		cluster.RemoveService, cluster.RestoreServices, cluster.RollbackService, cluster.SetAutoscale, cluster.SetAvailability, cluster.SetLabels, cluster.SetToken, cluster.KillTask:
		return m.propose(ctx, c.Op)
	default:
		return cluster.Result{}, &api.Error{Code: api.CodeForbidden, Message: fmt.Sprintf("%T is not an operation of users", c.Op)}
	}
}

func (m *Manager) changeLeader(ctx context.Context, c api.ChangeLeaderRequest) (api.ChangeLeaderAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	term := m.node.Leadership().Term
	if c.Target == m.settings.Node { // perhaps since the answer to the same request was lost
		return api.ChangeLeaderAnswer{From: c.Target, To: c.Target, Term: term}, nil
	}
	err := m.node.ChangeLeader(ctx, raft.NodeID(c.Target))
	if refused := (*raft.MembershipError)(nil); errors.As(err, &refused) {
		return api.ChangeLeaderAnswer{}, &api.Error{Code: string(cluster.Invalid), Message: err.Error()}
	} else if err != nil {
		return api.ChangeLeaderAnswer{}, err
	}
	now, err := m.awaitLeader(ctx, term)
	if err == nil && now.Leader == raft.NodeID(m.settings.Node) {
		err = unavailable("the election did not go as wanted: manager %s leads again", now.Leader)
	}
	return api.ChangeLeaderAnswer{From: m.settings.Node, To: cluster.NodeID(now.Leader), Term: now.Term}, err
}

// awaitLeader waits until a leader of a later term is known.
func (m *Manager) awaitLeader(ctx context.Context, after raft.Term) (raft.Leadership, error) {
	found := make(chan raft.Leadership, 1)
	defer m.node.OnLeaderChange(func(l raft.Leadership) {
		if l.Leader != "" && l.Term > after {
			select {
			case found <- l:
			default: // the first is enough
			}
		}
	})()
	select {
	case l := <-found:
		return l, nil
	case <-ctx.Done():
		return raft.Leadership{}, &api.Error{Code: api.CodeUncertain, Message: "leadership was given up, and who has it now is not known yet"}
	}
}

// problems keeps what the agents have said last that an operator should know.
type problems struct {
	mu   sync.Mutex
	said map[cluster.NodeID][]string
}

func (p *problems) note(node cluster.NodeID, said []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.said == nil {
		p.said = make(map[cluster.NodeID][]string)
	}
	if len(said) == 0 {
		delete(p.said, node)
		return
	}
	p.said[node] = said[:min(len(said), maxProblems)]
}

func (p *problems) all() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []string
	for node, said := range p.said { // order-free: sorted below
		for _, s := range said {
			all = append(all, fmt.Sprintf("node %s: %s", node, s))
		}
	}
	slices.Sort(all)
	return all
}

// limitConnections bounds how many connections are open at once; others wait in the system's queue.
func limitConnections(l net.Listener, limit int) net.Listener {
	return &limitedListener{Listener: l, slots: make(chan struct{}, limit), closed: make(chan struct{})}
}

type limitedListener struct {
	net.Listener
	slots  chan struct{}
	once   sync.Once
	closed chan struct{}
}

func (l *limitedListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: conn, release: sync.OnceFunc(func() { <-l.slots })}, nil
}

func (l *limitedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
