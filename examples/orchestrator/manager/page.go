package manager

import (
	"bytes"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// pageFile is the whole page: it loads nothing else.
//
//go:embed page.html
var pageFile string

// Bounds of the status page.
const (
	maxPageConnections = 64
	maxPageBytes       = 4 << 10 // of what a button sends
	pageInterval       = 500 * time.Millisecond
	pageShortest       = 50 * time.Millisecond // between two pictures
	pageAskTimeout     = 700 * time.Millisecond
	pageStopTimeout    = 2 * time.Second
	pageEvents         = 100
	pageSilence        = 5 * time.Second // after which a picture is sent although nothing has changed: the browser notices a dead connection
)

// PageTokenHeader carries the token that the buttons need. A form or a link of another site cannot set a header.
const PageTokenHeader = "Orchestrator-Page-Token"

// page serves the status page. It has no certificates, because browsers have none for it, so three things keep it harmless. It listens
// on a loopback address only, and answers only requests that name one, so that no name which an attacker's DNS server points here will
// do. What it shows without more are names and states: no command, no environment, no address of a manager. And what its buttons do
// needs a token that only whoever can read a manager's data directory can make; with it the page asks the API, as the command line does.
type page struct {
	m      *Manager
	server *http.Server
	client *api.Client // to this manager's own API

	mu      sync.Mutex
	asked   time.Time
	answers []managerPicture
}

// picture is what the page shows.
type picture struct {
	Self      cluster.NodeID   `json:"self"`
	Cluster   string           `json:"cluster"`
	Leader    cluster.NodeID   `json:"leader"`
	Term      raft.Term        `json:"term"`
	CanCommit bool             `json:"can_commit"`
	WhyNot    string           `json:"why_not,omitempty"`
	Managers  []managerPicture `json:"managers"`
	Nodes     []nodePicture    `json:"nodes"`
	Services  []servicePicture `json:"services"`
	Events    []cluster.Event  `json:"events"` // the newest, oldest first
}

type managerPicture struct {
	ID       cluster.NodeID `json:"id"`
	Standby  bool           `json:"standby,omitempty"`
	Answers  bool           `json:"answers"`
	Role     string         `json:"role,omitempty"`
	Term     raft.Term      `json:"term,omitempty"`
	Last     raft.Index     `json:"last,omitempty"`
	Commit   raft.Index     `json:"commit,omitempty"`
	Page     string         `json:"page,omitempty"`
	CanWrite bool           `json:"can_commit,omitempty"`
}

type nodePicture struct {
	ID           cluster.NodeID       `json:"id"`
	Role         cluster.Role         `json:"role"`
	Status       cluster.NodeStatus   `json:"status"`
	Availability cluster.Availability `json:"availability"`
	Tasks        int                  `json:"tasks"`
}

type servicePicture struct {
	ID       cluster.ServiceID `json:"id"`
	Name     string            `json:"name"`
	Replicas int               `json:"replicas"`
	Serving  int               `json:"serving"`
	Stopped  bool              `json:"stopped,omitempty"`
	Removing bool              `json:"removing,omitempty"`
	Ports    []cluster.Port    `json:"ports,omitempty"`
	Slots    []slotPicture     `json:"slots"`
}

// slotPicture is a slot with the task that fills it; ID is empty if none does.
type slotPicture struct {
	Slot       int               `json:"slot"`
	ID         cluster.TaskID    `json:"id,omitempty"`
	Generation uint64            `json:"generation,omitempty"`
	Node       cluster.NodeID    `json:"node,omitempty"`
	State      cluster.TaskState `json:"state,omitempty"`
	Desired    cluster.Desired   `json:"desired,omitempty"`
	Health     cluster.Health    `json:"health,omitempty"`
	Attempts   int               `json:"attempts,omitempty"`
	Error      string            `json:"error,omitempty"`
}

func (m *Manager) newPage() *page {
	p := &page{m: m, client: api.NewClient(m.credentials, m.self.API)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", p.show)
	mux.HandleFunc("GET /feed", p.feed)
	mux.HandleFunc("POST /do", p.do)
	mux.HandleFunc("OPTIONS /do", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	p.server = &http.Server{
		Handler: locally(mux), MaxHeaderBytes: maxHeaderBytes, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout,
		ErrorLog: slog.NewLogLogger(m.log.Handler(), slog.LevelDebug),
	}
	return p
}

// ListenPage opens the port of a status page. Only a loopback address will do; to see the page from elsewhere, forward a port with ssh.
func ListenPage(address string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(address)
	if err == nil && !isLoopback(host) {
		err = fmt.Errorf("want a loopback address, because the page asks for no certificate; forward a port, as with ssh -L, to see it from elsewhere")
	}
	if err != nil {
		return nil, fmt.Errorf("status page on %s: %w", address, err)
	}
	return listen("status page", address)
}

func isLoopback(host string) bool {
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// locally refuses what was not asked of this machine by name, and lets the pages of other managers on this machine read.
func locally(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if !isLoopback(host) {
			fail(w, &api.Error{Code: api.CodeForbidden, Message: fmt.Sprintf("the status page is at a loopback address, not at %q", r.Host)})
			return
		}
		if origin := r.Header.Get("Origin"); origin != "" {
			u, err := url.Parse(origin)
			if err != nil || !isLoopback(u.Hostname()) {
				fail(w, &api.Error{Code: api.CodeForbidden, Message: fmt.Sprintf("the status page does not answer pages of %q", origin)})
				return
			}
			w.Header().Set("Access-Control-Allow-Origin", origin)
			w.Header().Set("Access-Control-Allow-Headers", PageTokenHeader+", Content-Type")
			w.Header().Set("Vary", "Origin")
		}
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("X-Frame-Options", "DENY")
		w.Header().Set("Referrer-Policy", "no-referrer")
		w.Header().Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

func (p *page) show(w http.ResponseWriter, _ *http.Request) {
	nonce := rand.Text()
	// Other managers' pages may be read, so that this one can go on with another manager when its own is gone.
	w.Header().Set("Content-Security-Policy", "default-src 'none'; connect-src 'self' http:; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "+
		"style-src 'nonce-"+nonce+"'; script-src 'nonce-"+nonce+"'")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = io.WriteString(w, strings.ReplaceAll(pageFile, "{{nonce}}", nonce)) // an error means that the browser is gone
}

// feed sends pictures, as server-sent events, for as long as the browser listens.
func (p *page) feed(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	control := http.NewResponseController(w)
	var last []byte
	var sent time.Time
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		_, replaced := p.m.machine.Watch()
		data, err := json.Marshal(p.picture(r.Context()))
		if err != nil {
			return // of types that can all be encoded
		}
		if !bytes.Equal(data, last) || time.Since(sent) > pageSilence {
			if control.SetWriteDeadline(time.Now().Add(chunkTimeout)) != nil {
				return
			}
			if _, err := fmt.Fprintf(w, "data: %s\n\n", data); err != nil || control.Flush() != nil {
				return
			}
			last, sent = data, time.Now()
		}
		if !pause(r.Context(), pageShortest) {
			return
		}
		timer.Reset(pageInterval)
		select {
		case <-r.Context().Done():
			return
		case <-p.m.closing:
			return
		case <-replaced:
		case <-timer.C:
		}
	}
}

// picture needs no quorum: it is what this manager knows, and what the others say about themselves.
func (p *page) picture(ctx context.Context) picture {
	managers := p.managers(ctx)
	state, status := p.m.machine.View(), p.m.node.Status()
	pic := picture{
		Self: p.m.settings.Node, Cluster: p.m.settings.Cluster, Leader: cluster.NodeID(status.Leader), Term: status.Term,
		CanCommit: status.CanCommit, WhyNot: status.WhyNot, Managers: managers, Nodes: []nodePicture{}, Services: []servicePicture{},
		Events: state.Events[max(0, len(state.Events)-pageEvents):],
	}
	for _, n := range state.SortedNodes() {
		pic.Nodes = append(pic.Nodes, nodePicture{n.ID, n.Role, n.Status, n.Availability, len(state.TasksOn(n.ID))})
	}
	for _, sv := range state.SortedServices() {
		pic.Services = append(pic.Services, serviceOf(state, sv))
	}
	return pic
}

func serviceOf(state *cluster.State, sv *cluster.Service) servicePicture {
	s := servicePicture{
		ID: sv.ID, Name: sv.Spec.Name, Replicas: sv.Spec.Replicas, Stopped: sv.Stopped, Removing: sv.Removing, Ports: sv.Spec.Task.Ports, Slots: []slotPicture{},
	}
	slots, serving := map[int]slotPicture{}, map[int]bool{}
	for _, t := range state.TasksOf(sv.ID) { // by slot and generation: the newest one that lives, or else the newest, stays
		n := state.Nodes[t.Node]
		if t.Serving() && n != nil && n.Status != cluster.NodeDown && t.Slot <= sv.Spec.Replicas {
			serving[t.Slot] = true // once, also while one task takes over from another
		}
		if old, ok := slots[t.Slot]; ok && !t.Live() && !old.State.Final() {
			continue
		}
		slots[t.Slot] = slotPicture{t.Slot, t.ID, t.Generation, t.Node, t.State, t.Desired, t.Health, t.Attempts, t.Error}
	}
	s.Serving = len(serving)
	for slot := 1; slot <= len(sv.Slots); slot++ {
		filled, ok := slots[slot]
		if !ok && slot > sv.Spec.Replicas {
			continue // of a time with more replicas
		}
		filled.Slot = slot
		s.Slots = append(s.Slots, filled)
	}
	return s
}

// managers asks all managers how they are, not more often than every pageInterval, however many look.
func (p *page) managers(ctx context.Context) []managerPicture {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.asked) < pageInterval {
		return p.answers
	}
	ctx, cancel := context.WithTimeout(ctx, pageAskTimeout)
	defer cancel()
	members := p.m.members()
	answers := make([]managerPicture, len(members))
	var asking sync.WaitGroup
	for i, member := range members {
		asking.Go(func() {
			answers[i] = managerPicture{ID: member.ID, Standby: member.Standby}
			var status api.Status
			var err error
			if member.ID == p.m.settings.Node {
				status, err = p.m.status(ctx, none{})
			} else {
				_, err = p.m.peers.Exchange(ctx, member.API, http.MethodGet, api.PathStatus, nil, nil, func(from io.Reader) error {
					return json.NewDecoder(from).Decode(&status)
				})
			}
			if err == nil {
				answers[i] = managerPicture{
					ID: member.ID, Standby: member.Standby, Answers: true, Role: status.Role, Term: status.Term, Last: status.Last,
					Commit: status.Commit, Page: status.Page, CanWrite: status.CanCommit,
				}
			}
		})
	}
	asking.Wait()
	slices.SortFunc(answers, func(a, b managerPicture) int { return strings.Compare(string(a.ID), string(b.ID)) })
	p.answers, p.asked = answers, time.Now()
	return answers
}

// wish is what a button asks for.
type wish struct {
	Do           string               `json:"do"` // change-leader, kill or availability
	Node         cluster.NodeID       `json:"node,omitempty"`
	Task         cluster.TaskID       `json:"task,omitempty"`
	Availability cluster.Availability `json:"availability,omitempty"`
}

// do carries out what a button asks for, through the API and with its checks.
func (p *page) do(w http.ResponseWriter, r *http.Request) {
	if err := p.m.checkPageToken(r.Header.Get(PageTokenHeader)); err != nil {
		fail(w, &api.Error{Code: api.CodeForbidden, Message: err.Error()})
		return
	}
	var asked wish
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxPageBytes)).Decode(&asked); err != nil {
		fail(w, unreadable(r, err))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	said, err := p.carryOut(ctx, asked)
	if err != nil {
		fail(w, err)
		return
	}
	p.m.log.Info("done for the status page", "what", asked)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]string{"message": said}) // an error means that the browser is gone
}

func (p *page) carryOut(ctx context.Context, asked wish) (string, error) {
	switch asked.Do {
	case "change-leader":
		a, err := p.client.ChangeLeader(ctx, asked.Node)
		return a.String(), err
	case "kill":
		_, err := p.client.Do(ctx, cluster.KillTask{Task: asked.Task})
		return fmt.Sprintf("task %s is killed", asked.Task), err
	case "availability":
		_, err := p.client.Do(ctx, cluster.SetAvailability{Node: asked.Node, Availability: asked.Availability})
		return fmt.Sprintf("node %s: %s", asked.Node, asked.Availability), err
	default:
		return "", &api.Error{Code: string(cluster.Invalid), Message: fmt.Sprintf("the page has no button %q", asked.Do)}
	}
}

// run serves the page until the context ends.
func (p *page) run(ctx context.Context, listener net.Listener) error {
	ended := make(chan error, 1)
	go func() { ended <- p.server.Serve(limitConnections(listener, maxPageConnections)) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	// The feeds have ended with m.closing; whatever else is under way is short, or has had its time.
	patience, cancel := context.WithTimeout(context.Background(), pageStopTimeout)
	defer cancel()
	err := p.server.Shutdown(patience)
	if err != nil {
		err = p.server.Close()
	}
	<-ended
	p.client.Close()
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}
