package agent

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

const (
	loadInterval = 2 * time.Second  // between two samples of a task
	loadWindow   = 10 * time.Second // that a task's load is the mean of
	loadTimeout  = time.Second      // for the runtime to give one sample
)

// loads knows how much processor time each task uses.
type loads struct {
	mu      sync.Mutex
	percent map[cluster.TaskID]float64 // of one processor
	samples map[cluster.TaskID][]sample
}

type sample struct {
	at  time.Time
	cpu time.Duration
}

// current returns the load of each task that has been sampled twice; nil if there is none.
func (l *loads) current() map[cluster.TaskID]float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.percent)
}

// measure samples the running tasks until ctx ends.
func (a *Agent) measure(ctx context.Context) {
	ticker := time.NewTicker(loadInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := map[cluster.TaskID]sample{}
		for _, t := range a.Tasks() {
			if t.Status.State != cluster.TaskRunning {
				continue
			}
			asking, cancel := context.WithTimeout(ctx, loadTimeout)
			stats, err := a.opts.Runtime.Stats(asking, string(t.ID))
			cancel()
			if err == nil { // else it has just ended, or the system does not tell: then its service is not scaled
				now[t.ID] = sample{at: time.Now(), cpu: stats.CPU}
			}
		}
		a.loads.add(now)
	}
}

// add takes in a round of samples. Tasks without one are forgotten.
func (l *loads) add(now map[cluster.TaskID]sample) {
	l.mu.Lock()
	defer l.mu.Unlock()
	samples := make(map[cluster.TaskID][]sample, len(now))
	l.percent = nil
	for id, s := range now {
		of := l.samples[id]
		if n := len(of); n > 0 && s.cpu < of[n-1].cpu {
			of = nil // another process
		}
		for len(of) > 1 && s.at.Sub(of[0].at) > loadWindow {
			of = of[1:]
		}
		if len(of) > 0 {
			if l.percent == nil {
				l.percent = make(map[cluster.TaskID]float64, len(now))
			}
			l.percent[id] = 100 * float64(s.cpu-of[0].cpu) / float64(s.at.Sub(of[0].at))
		}
		samples[id] = append(of, s)
	}
	l.samples = samples
}
