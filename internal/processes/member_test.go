package processes

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/snapshot"
	"github.com/steadyraft/raft/storage/wal"
	"github.com/steadyraft/raft/transport/tcp"
)

// memberVariable holds the settings of a member process; unset in all others.
const memberVariable = "RAFT_PROCESSES_MEMBER"

const clusterID = "processes"

func TestMain(m *testing.M) {
	if settings := os.Getenv(memberVariable); settings != "" {
		if err := runMember(settings); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// settings is what a member process is told at its start.
type settings struct {
	ID              raft.NodeID
	Dir             string
	Listen          string
	MinSegment      int64
	MaxSegment      int64
	SnapshotEntries uint64
	TrailingEntries uint64
	DiskDeadline    time.Duration
}

// Timing of all members. Many of them share a machine with other work.
const (
	heartbeat       = 30 * time.Millisecond
	electionTimeout = 300 * time.Millisecond
)

func (s *settings) storage(logger *slog.Logger) *wal.WAL {
	return wal.New(s.Dir, wal.Options{MinSegmentBytes: s.MinSegment, MaxSegmentBytes: s.MaxSegment, Logger: logger,
		Snapshots: snapshot.Options{ChunkBytes: 16 << 10}})
}

// request is one line to a member's input, reply one line of its output.
type request struct {
	ID    uint64
	Op    string // add, read, dump, status, lead, configure
	Value string
	Limit time.Duration
}

type reply struct {
	ID     uint64 // 0: the node runs
	Err    string
	Full   bool // it is raft.ErrStorageFull
	Maybe  bool // the command may have taken effect, or may yet
	At     int  // the position that the value got
	N      int  // how many values the state holds
	Hash   uint64
	Values []string
	Status json.RawMessage
}

// status is what the tests look at of a raft.Status.
type status struct {
	State     string            `json:"state"`
	Failure   string            `json:"failure"`
	Role      string            `json:"role"`
	Term      raft.Term         `json:"term"`
	Leader    raft.NodeID       `json:"leader"`
	Storage   string            `json:"storage"`
	CanCommit bool              `json:"can_commit"`
	WhyNot    string            `json:"why_not"`
	Peers     []raft.PeerStatus `json:"peers"`
	LastIndex raft.Index        `json:"last_index"`
	Commit    raft.Index        `json:"commit_index"`
	Damaged   []raft.Damage     `json:"damaged"`
	Fence     raft.EntryID      `json:"fence"`
	Repair    raft.RepairStatus `json:"repair"`
}

// runMember is a member process. It serves requests until its input ends.
func runMember(text string) error {
	var set settings
	if err := json.Unmarshal([]byte(text), &set); err != nil {
		return err
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil)).With("pid", os.Getpid())
	tr, err := tcp.New(tcp.Config{Listen: set.Listen})
	if err != nil {
		return err
	}
	list := &list{}
	cfg := raft.Config{ID: set.ID, ClusterID: clusterID, StateMachine: list, Storage: set.storage(logger), Transport: tr, Logger: logger,
		SnapshotEntries: set.SnapshotEntries}
	cfg.Core.HeartbeatInterval, cfg.Core.ElectionTimeout, cfg.Core.DiskDeadline = heartbeat, electionTimeout, set.DiskDeadline
	cfg.Core.TrailingEntries = set.TrailingEntries
	node, err := raft.NewNode(cfg)
	if err != nil {
		return err
	}
	if err := node.Start(context.Background()); err != nil {
		return err
	}
	out := &answers{w: bufio.NewWriter(os.Stdout)}
	out.write(reply{})
	var calls sync.WaitGroup
	in := json.NewDecoder(os.Stdin)
	for {
		var req request
		if err := in.Decode(&req); err != nil {
			break // the end: whoever started us wants us to stop, or is gone
		}
		calls.Go(func() { out.write(serve(node, list, &req)) })
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err = node.Stop(ctx)
	calls.Wait()
	if failed := (*raft.FailedError)(nil); errors.As(node.Err(), &failed) {
		return nil // the test knows, and has made it fail
	}
	return err
}

func serve(node *raft.Node, list *list, req *request) reply {
	rep := reply{ID: req.ID}
	ctx, cancel := context.WithTimeout(context.Background(), req.Limit)
	defer cancel()
	fail := func(err error) {
		rep.Err = err.Error()
		rep.Full = errors.Is(err, raft.ErrStorageFull)
		uncertain := (*raft.UncertainError)(nil)
		rep.Maybe = errors.As(err, &uncertain)
	}
	switch req.Op {
	case "add":
		at, err := node.Propose(ctx, []byte(req.Value))
		if err != nil {
			fail(err)
			break
		}
		rep.At = at.(int)
	case "read":
		if err := node.Read(ctx); err != nil {
			fail(err)
			break
		}
		rep.N, rep.Hash = list.look()
	case "lead":
		if err := node.ChangeLeader(ctx, raft.NodeID(req.Value)); err != nil {
			fail(err)
		}
	case "configure":
		if _, err := node.ChangeMembership(ctx, raft.Change{Priority: map[raft.NodeID]uint8{raft.NodeID(req.Value): uint8(req.ID)}}); err != nil {
			fail(err)
		}
	case "dump":
		rep.Values = list.all()
	case "status":
		b, err := json.Marshal(node.Status())
		if err != nil {
			fail(err)
		}
		rep.Status = b
	default:
		rep.Err = "unknown operation " + req.Op
	}
	return rep
}

// answers writes replies, one a line, whole.
type answers struct {
	mu sync.Mutex
	w  *bufio.Writer
}

func (a *answers) write(rep reply) {
	b, err := json.Marshal(rep)
	if err != nil {
		b = fmt.Appendf(nil, `{"ID":%d,"Err":%q,"Maybe":true}`, rep.ID, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.w.Write(append(b, '\n')) // an error stays, and Flush returns it
	if a.w.Flush() != nil {
		os.Exit(2) // nobody listens any more
	}
}

// list is the state machine: every command adds its value at the end, and returns the position. Nothing is ever taken away, so that a
// value that is lost, added twice or out of order shows in every later state.
type list struct {
	mu     sync.Mutex
	values []string
	hash   uint64
}

// chain goes on from the hash of a list to that of the list with one more value.
func chain(hash uint64, value string) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %s", hash, value)
	return h.Sum64()
}

func (l *list) Apply(entries []raft.Entry, results []any) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range entries {
		l.add(string(entries[i].Data))
		results[i] = len(l.values)
	}
	return nil
}

func (l *list) add(value string) {
	l.values = append(l.values, value)
	l.hash = chain(l.hash, value)
}

func (l *list) look() (int, uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.values), l.hash
}

// all returns the values. What is there never changes, so that nothing has to be copied.
func (l *list) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.values[:len(l.values):len(l.values)]
}

func (l *list) Snapshot(context.Context) (raft.SnapshotWriter, error) { return listView(l.all()), nil }

func (l *list) Restore(_ context.Context, _ raft.SnapshotMeta, r io.Reader) error {
	var values []string
	if err := json.NewDecoder(r).Decode(&values); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.values, l.hash = nil, 0
	for _, v := range values {
		l.add(v)
	}
	return nil
}

type listView []string

func (v listView) WriteTo(_ context.Context, w io.Writer) error {
	return json.NewEncoder(w).Encode([]string(v))
}
func (v listView) Close() {}
