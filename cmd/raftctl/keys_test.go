package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/keyring"
	"github.com/steadyraft/raft/storage/wal"
	"github.com/steadyraft/raft/transport/memory"
)

// keyFile writes keys with the IDs 1 to n.
func keyFile(t *testing.T, n int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys")
	var b strings.Builder
	for id := 1; id <= n; id++ {
		b.WriteString(string(rune('0'+id)) + " " + strings.Repeat(string(rune('a'+id)), 64) + "\n")
	}
	require.NoError(t, os.WriteFile(path, []byte(b.String()), 0o600))
	return path
}

// An encrypted directory is read with its key file only; keys says which keys are needed, without having them.
func TestEncryptedDirectory(t *testing.T) {
	one, two := keyFile(t, 1), keyFile(t, 2)
	ring, err := keyring.Open(one)
	require.NoError(t, err)
	m := newMachine(t, "n1")
	m.keys = ring
	conf := raft.Configuration{ClusterID: "c1", Servers: []raft.Server{{ID: "n1", Address: "host1:7000"}}}
	require.NoError(t, raft.Bootstrap(t.Context(), wal.New(m.dir, wal.Options{Keys: ring}), m.id, conf))
	network := memory.NewNetwork()
	m.start(t, network, "")
	m.propose(t, "the first run's command")
	_, err = m.node.Snapshot(within(t, time.Minute))
	require.NoError(t, err)
	m.stop(t)
	m.keys, err = keyring.Open(two)
	require.NoError(t, err)
	m.start(t, network, "")
	m.propose(t, "the second run's command")
	m.stop(t)
	for path, content := range files(t, m.dir) {
		require.NotContains(t, content, "run's command", path)
	}

	before := files(t, m.dir)
	for _, verb := range []string{"inspect", "verify", "dump"} {
		code, _, errs := raftctl(t, "", verb, m.dir)
		require.Equal(t, 3, code)
		require.Contains(t, errs, "no keys were given", verb)
		code, _, errs = raftctl(t, "", verb, "-key-file", one, m.dir)
		require.Equal(t, 3, code)
		require.Contains(t, errs, "key 2: the key is not on the ring", verb)
		code, out, errs := raftctl(t, "", verb, "-key-file", two, m.dir)
		require.Zero(t, code, errs)
		require.NotEmpty(t, out)
	}
	code, out, _ := raftctl(t, "", "dump", "-key-file", two, m.dir)
	require.Zero(t, code)
	require.Contains(t, out, "the second run's command")
	code, _, errs := raftctl(t, "", "verify", "-key-file", filepath.Join(m.dir, "vote"), m.dir)
	require.Equal(t, 2, code)
	require.Contains(t, errs, "key file")

	code, out, _ = raftctl(t, "", "keys", m.dir)
	require.Zero(t, code)
	require.Contains(t, out, "key 1")
	require.Contains(t, out, "key 2")
	_, out, _ = raftctl(t, "", "inspect", "-key-file", two, m.dir)
	require.Contains(t, out, "encryption\n  key 1")
	var uses struct{ Keys []wal.KeyUses }
	_, out, _ = raftctl(t, "", "keys", "-format", "json", m.dir)
	require.NoError(t, json.Unmarshal([]byte(out), &uses))
	require.Len(t, uses.Keys, 2)
	require.Equal(t, 1, uses.Keys[0].Snapshots)
	require.Equal(t, before, files(t, m.dir))

	code, _, errs = raftctl(t, "", "recover", "-cluster", "c2", "-yes", m.dir)
	require.Equal(t, 3, code)
	require.Contains(t, errs, "no keys were given")
	code, _, errs = raftctl(t, "", "recover", "-cluster", "c2", "-yes", "-key-file", two, m.dir)
	require.Zero(t, code, errs)
	code, out, _ = raftctl(t, "", "verify", "-key-file", two, m.dir)
	require.Zero(t, code, out)
	for path, content := range files(t, m.dir) {
		require.NotContains(t, content, "host1:7000", path)
	}
}
