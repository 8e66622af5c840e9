package docker

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/steadyraft/raft/examples/orchestrator/runtime"
)

// maxStatsBytes bounds the engine's answer.
const maxStatsBytes = 1 << 20

// Stats implements runtime.Runtime, for all processes of the container.
func (r *Runtime) Stats(ctx context.Context, id string) (runtime.Stats, error) {
	name, err := r.name(id)
	if err != nil {
		return runtime.Stats{}, err
	}
	sample, err := call(ctx, r, func(ctx context.Context) (sample container.StatsResponse, err error) {
		answer, err := r.engine.ContainerStats(ctx, name, client.ContainerStatsOptions{})
		if err != nil {
			return sample, err
		}
		defer answer.Body.Close()
		err = json.NewDecoder(io.LimitReader(answer.Body, maxStatsBytes)).Decode(&sample)
		return sample, err
	})
	switch {
	case errdefs.IsNotFound(err):
		return runtime.Stats{}, fmt.Errorf("instance %s: %w", id, runtime.ErrNotFound)
	case err != nil:
		return runtime.Stats{}, fmt.Errorf("instance %s: %w", id, err)
	case sample.PidsStats.Current == 0 && sample.CPUStats.CPUUsage.TotalUsage == 0:
		return runtime.Stats{}, fmt.Errorf("instance %s: %w", id, runtime.ErrNotRunning)
	}
	// As `docker stats` counts: the page cache that the kernel gives back when somebody else needs it is not in use.
	cache := sample.MemoryStats.Stats["inactive_file"] // cgroups v2
	if v1, ok := sample.MemoryStats.Stats["total_inactive_file"]; ok {
		cache = v1
	}
	used := sample.MemoryStats.Usage
	if cache < used {
		used -= cache
	}
	return runtime.Stats{CPU: time.Duration(sample.CPUStats.CPUUsage.TotalUsage), Memory: int64(used)}, nil
}
