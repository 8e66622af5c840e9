package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/keyring"
	"github.com/steadyraft/raft/storage/wal"
	"github.com/steadyraft/raft/transport/memory"
)

// raftctl runs the command as a shell would, with an answer to what it asks.
func raftctl(t *testing.T, answer string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = command(t.Context(), args, strings.NewReader(answer), &out, &errs)
	return code, out.String(), errs.String()
}

// journal is a state machine that remembers its commands.
type journal struct {
	mu       sync.Mutex
	commands []string
}

func (j *journal) Apply(entries []raft.Entry, _ []any) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i := range entries {
		j.commands = append(j.commands, string(entries[i].Data))
	}
	return nil
}

func (j *journal) Snapshot(context.Context) (raft.SnapshotWriter, error) {
	b, err := json.Marshal(j.all())
	return view(b), err
}

func (j *journal) Restore(_ context.Context, _ raft.SnapshotMeta, r io.Reader) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return json.NewDecoder(r).Decode(&j.commands)
}

func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]string{}, j.commands...)
}

type view []byte

func (v view) WriteTo(_ context.Context, w io.Writer) error { _, err := w.Write(v); return err }
func (v view) Close()                                       {}

// machine is a server with its log on disk.
type machine struct {
	id   raft.NodeID
	dir  string
	sm   *journal
	node *raft.Node

	keys     keyring.Ring
	trailing uint64 // entries kept behind a snapshot; 0: the default
}

func newMachine(t *testing.T, id raft.NodeID) *machine {
	return &machine{id: id, dir: filepath.Join(t.TempDir(), string(id))}
}

func (m *machine) start(t *testing.T, network *memory.Network, cluster string) {
	t.Helper()
	m.sm = &journal{}
	cfg := raft.Config{
		ID: m.id, ClusterID: cluster, StateMachine: m.sm, Transport: network.Transport(m.id),
		Storage: wal.New(m.dir, wal.Options{MinSegmentBytes: 64 << 10, MaxSegmentBytes: 64 << 10, Keys: m.keys}),
	}
	cfg.Core.TrailingEntries = m.trailing
	cfg.Core.HeartbeatInterval, cfg.Core.ElectionTimeout = 20*time.Millisecond, 200*time.Millisecond
	cfg.Core.DiskDeadline = 10 * time.Second // of a machine that does other things too
	var err error
	m.node, err = raft.NewNode(cfg)
	require.NoError(t, err)
	require.NoError(t, m.node.Start(t.Context()))
}

func (m *machine) stop(t *testing.T) {
	t.Helper()
	require.NoError(t, m.node.Stop(within(t, time.Minute)))
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// propose proposes a command until it is known to be committed.
func (m *machine) propose(t *testing.T, command string) {
	t.Helper()
	require.Eventually(t, func() bool {
		_, err := m.node.Propose(within(t, 10*time.Second), []byte(command))
		return err == nil
	}, time.Minute, 10*time.Millisecond)
}

// stoppedServer is the directory of a cluster of one, with commands in two runs of it and a snapshot between them.
func stoppedServer(t *testing.T) *machine {
	t.Helper()
	m := newMachine(t, "n1")
	conf := raft.Configuration{ClusterID: "c1", Servers: []raft.Server{{ID: "n1", Address: "host1:7000"}}}
	require.NoError(t, raft.Bootstrap(t.Context(), wal.New(m.dir, wal.Options{}), m.id, conf))
	network := memory.NewNetwork()
	m.start(t, network, "")
	for i := range 5 {
		m.propose(t, fmt.Sprintf("the first run's command %d", i))
	}
	_, err := m.node.Snapshot(within(t, time.Minute))
	require.NoError(t, err)
	m.stop(t)
	m.start(t, network, "")
	for i := range 5 {
		m.propose(t, fmt.Sprintf("the second run's command %d", i))
	}
	m.stop(t)
	return m
}

// files returns the content of everything in a directory.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		all[path] = string(b)
		return err
	}))
	return all
}

// flipBit changes one bit in the middle of what is found in one of the files of that kind, and returns which.
func flipBit(t *testing.T, dir, kind, what string) (path string) {
	t.Helper()
	all := files(t, dir)
	for _, path := range slices.Sorted(maps.Keys(all)) {
		content := all[path]
		if at := strings.Index(content, what); at >= 0 && strings.HasSuffix(path, kind) {
			b := []byte(content)
			b[at+len(what)/2] ^= 1
			require.NoError(t, os.WriteFile(path, b, 0o600))
			return path
		}
	}
	require.FailNow(t, "not found", what)
	return ""
}

// dumped returns the entries of a directory's log, as far as they are intact.
func dumped(t *testing.T, dir string) []entryLine {
	t.Helper()
	_, out, _ := raftctl(t, "", "dump", "-format", "json", dir)
	var entries []entryLine
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		var e struct {
			entryLine
			Configuration any `json:"configuration"` // its text is for people
		}
		require.NoError(t, json.Unmarshal([]byte(line), &e))
		if e.Kind == "entry" {
			entries = append(entries, e.entryLine)
		}
	}
	return entries
}

// entryOf returns the number of the entry with that command.
func entryOf(t *testing.T, entries []entryLine, command string) int {
	t.Helper()
	i := slices.IndexFunc(entries, func(e entryLine) bool { return string(e.Data) == command })
	require.GreaterOrEqual(t, i, 0)
	return i
}

func TestCleanDirectory(t *testing.T) {
	m := stoppedServer(t)
	before := files(t, m.dir)

	code, out, errs := raftctl(t, "", "verify", m.dir)
	require.Zero(t, code, out+errs)
	require.Contains(t, out, m.dir+": clean; ")

	code, out, _ = raftctl(t, "", "inspect", m.dir)
	require.Zero(t, code)
	for _, want := range []string{
		`node "n1" of cluster "c1"`, "run 3", `voted for "n1"`, "log         entries", "n1=host1:7000 voter", "verdict     clean",
		".wal", ".snapshot", "intact",
	} {
		require.Contains(t, out, want)
	}

	code, out, _ = raftctl(t, "", "inspect", "--format", "json", m.dir)
	require.Zero(t, code)
	var r struct {
		Cluster   string
		Verdict   wal.Verdict
		Last      raft.EntryID
		HardState raft.HardState `json:"hard_state"`
		Segments  []wal.Segment
		Snapshots []any
	}
	require.NoError(t, json.Unmarshal([]byte(out), &r))
	require.Equal(t, "c1", r.Cluster)
	require.Equal(t, wal.Clean, r.Verdict)
	require.Len(t, r.Snapshots, 1)
	require.NotZero(t, r.Last.Index)
	require.NotEmpty(t, r.Segments)

	code, out, _ = raftctl(t, "", "dump", m.dir)
	require.Zero(t, code)
	require.Contains(t, out, `"the first run's command 0"`)
	require.Contains(t, out, `"the second run's command 4"`)
	require.Contains(t, out, `cluster "c1", n1=host1:7000 voter`)
	require.Contains(t, out, fmt.Sprintf("the log ends with entry %v; verdict on the log: clean", r.Last))

	all := dumped(t, m.dir)
	require.Equal(t, r.Last, all[len(all)-1].EntryID)
	require.Equal(t, "configuration", all[0].Type)
	first := all[entryOf(t, all, "the first run's command 0")]
	require.Equal(t, "command", first.Type)
	code, out, _ = raftctl(t, "", "dump", "-format", "json", "-from", fmt.Sprint(first.Index), "-to", fmt.Sprint(first.Index+2), m.dir)
	require.Zero(t, code)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	require.Len(t, lines, 5, "the server, three entries, the end")
	var server serverLine
	var end endLine
	require.NoError(t, json.Unmarshal([]byte(lines[0]), &server))
	require.NoError(t, json.Unmarshal([]byte(lines[4]), &end))
	require.Equal(t, "n1", string(server.Node))
	require.Equal(t, r.HardState, server.HardState)
	require.Equal(t, r.Last, end.Last)

	require.Equal(t, before, files(t, m.dir), "nothing was changed")
}

// One bit in the middle of an entry that no snapshot covers, at a server that is alone: the output names file, offset, verdict and next
// step; the server refuses, and raftctl recover goes on with what is in front of the damage.
func TestDirectoryDamagedByHand(t *testing.T) {
	m := stoppedServer(t)
	all := dumped(t, m.dir)
	hit := entryOf(t, all, "the second run's command 3")
	path := flipBit(t, m.dir, ".wal", "the second run's command 3")
	before := files(t, m.dir)

	code, out, errs := raftctl(t, "", "verify", m.dir)
	require.Equal(t, 1, code, errs)
	require.Contains(t, out, m.dir+": damaged; ")
	require.Regexp(t, `(?m)^damaged: `+regexp.QuoteMeta(path)+` at byte \d+$`, out)
	require.Regexp(t, `(?m)^  found     page 0 of batch \d+ does not match its checksum; the batch holds entr.*; damaged: `+
		fmt.Sprintf(`%d; server "n1" is the only voter$`, all[hit].Index), out)
	require.Contains(t, out, "  meaning   the server refuses to start: nobody else has what is damaged")
	require.Regexp(t, `(?m)^  next      .*raftctl recover -cluster NEW-ID DIR$`, out, "SAFETY §4: names the repair command")

	code, out, _ = raftctl(t, "", "verify", "-format", "json", m.dir)
	require.Equal(t, 1, code)
	var v struct {
		Verdict  wal.Verdict
		Findings []wal.Finding
	}
	require.NoError(t, json.Unmarshal([]byte(out), &v))
	require.Equal(t, wal.Damaged, v.Verdict)
	require.Len(t, v.Findings, 2)
	for _, f := range v.Findings {
		require.Equal(t, path, f.File)
		require.NotZero(t, f.Offset)
	}

	code, out, _ = raftctl(t, "", "inspect", m.dir)
	require.Equal(t, 1, code)
	require.Contains(t, out, "verdict     damaged")
	require.Contains(t, out, fmt.Sprintf("unreadable  entry %d\n", all[hit].Index))

	intact := dumped(t, m.dir)
	require.Equal(t, append(slices.Clone(all[:hit]), all[hit+1:]...), intact)
	code, out, _ = raftctl(t, "", "dump", m.dir)
	require.Equal(t, 1, code)
	require.Contains(t, out, "second run's command 2")
	require.NotContains(t, out, "second run's command 3", "nothing damaged is shown as data")
	require.Contains(t, out, "second run's command 4")
	require.Contains(t, out, "verdict on the log: damaged")
	require.Equal(t, before, files(t, m.dir), "nothing was changed")

	// The server indeed refuses, and says the same.
	_, err := wal.New(m.dir, wal.Options{}).Open(t.Context(), raft.Identity{Node: "n1"})
	require.ErrorContains(t, err, path)
	require.ErrorContains(t, err, "raftctl recover -cluster NEW-ID DIR")

	code, out, errs = raftctl(t, "", "recover", "-cluster", "c2", "-yes", m.dir)
	require.Zero(t, code, errs)
	require.Contains(t, out, fmt.Sprintf("Entry %d cannot be read: it and all behind it, up to %v, are given up", all[hit].Index, all[len(all)-1].EntryID))
	recovered := dumped(t, m.dir)
	require.Equal(t, all[:hit], recovered[:hit])
	require.Len(t, recovered, hit+1)
	require.Equal(t, "configuration", recovered[hit].Type)
	network := memory.NewNetwork()
	m.start(t, network, "c2")
	m.propose(t, "after the recovery")
	require.Contains(t, m.sm.all(), "the second run's command 2")
	require.NotContains(t, m.sm.all(), "the second run's command 4")
	m.stop(t)
}

// Entries that a snapshot covers are no loss.
func TestDamageBehindASnapshotIsDegraded(t *testing.T) {
	m := stoppedServer(t)
	path := flipBit(t, m.dir, ".wal", "the first run's command 3")
	code, out, _ := raftctl(t, "", "verify", m.dir)
	require.Equal(t, 1, code)
	require.Contains(t, out, m.dir+": degraded; ")
	require.Contains(t, out, "degraded: "+path)
	require.Contains(t, out, "covered by a snapshot")
	m.start(t, memory.NewNetwork(), "")
	m.propose(t, "it starts")
	m.stop(t)
}

// The survivors of a lost majority are compared by their newest entry. A snapshot that was received right before a crash is newer than the
// log, which was not told: who compares the ends of the logs recovers the wrong server, and loses what is in the snapshot.
func TestInspectNamesTheNewestEntry(t *testing.T) {
	m := stoppedServer(t)
	all := dumped(t, m.dir)
	last := all[len(all)-1].EntryID
	_, out, _ := raftctl(t, "", "inspect", m.dir)
	require.Contains(t, out, fmt.Sprintf("newest      entry %v\n", last))

	w := wal.New(m.dir, wal.Options{})
	_, err := w.Open(t.Context(), raft.Identity{Node: "n1"})
	require.NoError(t, err)
	sink, err := w.Snapshots().Create(raft.SnapshotMeta{
		Index: last.Index + 40, Term: last.Term + 1, Size: -1,
		Configuration: raft.Configuration{ClusterID: "c1", Servers: []raft.Server{{ID: "n1", Address: "host1:7000"}}},
	})
	require.NoError(t, err)
	meta, err := sink.Commit()
	require.NoError(t, err)
	require.NoError(t, w.Close())
	code, out, _ := raftctl(t, "", "inspect", m.dir)
	require.Zero(t, code)
	require.Contains(t, out, fmt.Sprintf("entries 1 to %v\n", last))
	require.Contains(t, out, fmt.Sprintf("newest      entry %v, the last one of a snapshot that takes the log's place", meta.ID()))
	_, out, _ = raftctl(t, "no", "recover", "-cluster", "c2", m.dir)
	require.Contains(t, out, fmt.Sprintf("Every entry behind %v is lost", meta.ID()))

}

// A damaged snapshot is damage, too.
func TestDamagedSnapshot(t *testing.T) {
	m := stoppedServer(t)
	flipBit(t, m.dir, ".snapshot", "the first run's command 3")
	code, out, _ := raftctl(t, "", "verify", m.dir)
	require.Equal(t, 1, code)
	require.Contains(t, out, ".snapshot at byte")
	require.Contains(t, out, "checksum of chunk 0 does not match")
	require.Contains(t, out, "move this file out of the directory")
	code, out, _ = raftctl(t, "", "inspect", m.dir)
	require.Equal(t, 1, code)
	require.Regexp(t, `(?m)\.snapshot .*damaged`, out)
	code, _, _ = raftctl(t, "", "dump", m.dir)
	require.Zero(t, code, "the log is good")
}

// What a crash leaves is no damage: the note says so, and the code is 0.
func TestUnfinishedWriteIsNoDamage(t *testing.T) {
	m := stoppedServer(t)
	last := ""
	for path := range files(t, m.dir) {
		if strings.HasSuffix(path, ".wal") {
			last = max(last, path)
		}
	}
	f, err := os.OpenFile(last, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("a sector of a batch whose first sector never reached the disk"), 60<<10)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	code, out, _ := raftctl(t, "", "verify", m.dir)
	require.Zero(t, code)
	require.Contains(t, out, ": torn; ")
	require.Contains(t, out, "nobody was told that it is durable")
	require.Contains(t, out, "next      nothing to do")
}

// A server that runs is left alone; what is no data directory is not called clean.
func TestUnreadableDirectories(t *testing.T) {
	m := stoppedServer(t)
	m.start(t, memory.NewNetwork(), "")
	for _, args := range [][]string{{"inspect"}, {"verify"}, {"dump"}, {"recover", "-cluster", "c2", "-yes"}} {
		code, out, errs := raftctl(t, "", append(args, m.dir)...)
		require.Equal(t, 3, code, "%v", args)
		require.Empty(t, out)
		require.Contains(t, errs, "stop the server first")
	}
	m.stop(t)
	for _, dir := range []string{t.TempDir(), filepath.Join(t.TempDir(), "none")} {
		code, _, errs := raftctl(t, "", "verify", dir)
		require.Equal(t, 3, code)
		require.Contains(t, errs, dir)
	}
}

func TestWrongCalls(t *testing.T) {
	for _, args := range [][]string{
		{}, {"repair"}, {"verify"}, {"verify", "a", "b"}, {"inspect", "-format", "xml", "a"}, {"dump", "-from", "5", "-to", "4", "a"},
		{"dump", "-to", "18446744073709551615", "a"}, {"recover", "a"}, {"recover", "-cluster", "c", "-format", "json", "a"},
	} {
		code, out, errs := raftctl(t, "", args...)
		require.Equal(t, 2, code, "%q", args)
		require.Empty(t, out)
		require.NotEmpty(t, errs)
	}
	code, _, errs := raftctl(t, "", "dump", "-h")
	require.Zero(t, code)
	require.Contains(t, errs, "-from")
}
