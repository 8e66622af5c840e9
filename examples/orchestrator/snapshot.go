package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// snapshotFormat is the version of the file.
const (
	snapshotFormat   = 1
	maxSnapshotBytes = 64 << 20 // as much as a manager answers with
)

// snapshotFile is a state of the cluster in a file.
type snapshotFile struct {
	Format  int             `json:"format"`
	Cluster string          `json:"cluster"`
	Index   raft.Index      `json:"index"` // everything up to here is in it, and nothing behind it
	SavedAt time.Time       `json:"saved_at"`
	SHA256  string          `json:"sha256"` // of State, byte by byte
	State   json.RawMessage `json:"state"`
}

func snapshotCommands() []command {
	var force bool
	return []command{
		{
			name: "snapshot save", args: "FILE", summary: "Save the state of the cluster in a file that only its owner can read",
			run: func(c *cli, in *invocation) error {
				if err := in.exactly(1, "a file"); err != nil {
					return err
				}
				return c.snapshotSave(in.words[0])
			},
		},
		{
			name: "snapshot restore", args: "FILE", summary: "Create the services of a saved state in a new cluster",
			flags: func(_ *cli, fs *flag.FlagSet) {
				fs.BoolVar(&force, "force", false, "also in a cluster that has services; they are removed")
			},
			run: func(c *cli, in *invocation) error {
				if err := in.exactly(1, "a file"); err != nil {
					return err
				}
				return c.snapshotRestore(in.words[0], force)
			},
		},
	}
}

// snapshotSave writes a state that is at least as new as everything acknowledged before. A file that exists is not replaced.
func (c *cli) snapshotSave(path string) error {
	return c.with(func(ctx context.Context, client *api.Client) error {
		v, err := client.State(ctx)
		if err != nil {
			return err
		}
		state, err := json.Marshal(v.State)
		if err != nil {
			return err
		}
		name := ""
		if settings, err := c.settings(); err == nil {
			name = settings.Cluster
		}
		data, err := json.Marshal(snapshotFile{
			Format: snapshotFormat, Cluster: name, Index: v.State.Index, SavedAt: time.Now().UTC(), SHA256: checksum(state), State: state,
		})
		if err != nil {
			return err
		}
		if err := writeSecret(path, append(data, '\n')); err != nil {
			return fmt.Errorf("snapshot save: %w", err)
		}
		c.printf("Saved cluster %s as of index %d: %d nodes, %d services, %d tasks.\n", name, v.State.Index, len(v.State.Nodes), len(v.State.Services), len(v.State.Tasks))
		c.printf("%s holds the services' environments and the hashes of the join tokens: keep it as safe as the cluster. Keys and certificates are not in it.\n", path)
		return nil
	})
}

func checksum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// writeSecret makes a file that only its owner can read, whole or not at all.
func writeSecret(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.tmp") // with 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Link(f.Name(), path) // unlike a renaming, it fails if the name is taken
	}
	return errors.Join(err, os.Remove(f.Name()))
}

func (c *cli) snapshotRestore(path string, force bool) error {
	file, state, err := readSnapshot(path)
	if err != nil {
		return fmt.Errorf("snapshot restore %s: %w", path, err)
	}
	op := cluster.RestoreServices{Force: force}
	replicas := 0
	for _, sv := range state.SortedServices() {
		if !sv.Removing {
			op.Services = append(op.Services, cluster.RestoredService{Spec: sv.Spec, Stopped: sv.Stopped})
			replicas += sv.Spec.Replicas
		}
	}
	return c.with(func(ctx context.Context, client *api.Client) error {
		if _, err := client.Do(ctx, op); err != nil {
			return fmt.Errorf("snapshot restore %s: %w", path, err)
		}
		c.printf("Restored %d services with %d replicas of cluster %s, as of index %d, saved %s; their tasks start now.\n",
			len(op.Services), replicas, file.Cluster, file.Index, file.SavedAt.Format(time.RFC3339))
		c.printf("Not restored, because they belong to the old cluster: its %d nodes with their availability and labels, join tokens, tasks and events.\n", len(state.Nodes))
		return nil
	})
}

// readSnapshot reads a file and makes sure that it is whole.
func readSnapshot(path string) (file snapshotFile, state *cluster.State, err error) {
	f, err := os.Open(path)
	if err != nil {
		return file, nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSnapshotBytes+1))
	switch {
	case err != nil:
		return file, nil, err
	case len(data) > maxSnapshotBytes:
		return file, nil, fmt.Errorf("it is larger than %d bytes", maxSnapshotBytes)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	if err := decoder.Decode(&file); err != nil {
		return file, nil, fmt.Errorf("it is not a snapshot, or cut off: %w", err)
	}
	if file.Format != snapshotFormat {
		return file, nil, fmt.Errorf("format %d: want %d", file.Format, snapshotFormat)
	}
	if sum := checksum(file.State); sum != file.SHA256 {
		return file, nil, fmt.Errorf("it is damaged: the checksum of its state is %s, and it says %s", sum, file.SHA256)
	}
	state = cluster.NewState()
	if err := json.Unmarshal(file.State, state); err != nil {
		return file, nil, fmt.Errorf("its state cannot be read: %w", err)
	}
	return file, state, nil
}
