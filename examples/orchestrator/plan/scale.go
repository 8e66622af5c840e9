package plan

import (
	"math"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

const (
	// ScaleInterval is how often the load of services is looked at that are scaled by it.
	ScaleInterval = 2 * time.Second
	// scaleDownAfter is for how long fewer replicas have to be enough before any is stopped.
	scaleDownAfter = time.Minute
	// deadBand is how far the load may be from its target without a change.
	deadBand = 0.1
	// loadFresh is how old a sample may be.
	loadFresh = 10 * time.Second
)

// Load is what an agent has said last about the processor time of a task.
type Load struct {
	CPU float64 // percent of one processor
	At  time.Time
}

// Scales reports that there is a service for Scale to look at.
func Scales(s *cluster.State) bool {
	for _, sv := range s.Services { // order-free: one is enough
		if sv.Spec.Autoscale != nil && !sv.Stopped && !sv.Removing {
			return true
		}
	}
	return false
}

// Scale compares the load of services with its target and returns the commands that change their number of replicas, and when to look
// again (zero: there is no such service). load holds what this leader has heard of each task.
//
// The number wanted is ceil(n × load / target), where load is the mean of the n replicas. Within ± 10 % of the target nothing changes. More
// replicas are started at once. Fewer are enough when they have been for a minute without a break; then as many are kept as were needed
// at most in that minute. The minute is in the state, so a new leader does not begin it again.
func Scale(s *cluster.State, load map[cluster.TaskID]Load, now time.Time) (commands []cluster.Command, next time.Time) {
	if !Scales(s) {
		return nil, time.Time{}
	}
	tasks := map[cluster.ServiceID][]*cluster.Task{}
	for _, sv := range s.Services { // order-free: only collects
		if sv.Spec.Autoscale != nil && !sv.Stopped && !sv.Removing {
			tasks[sv.ID] = nil
		}
	}
	for _, t := range s.Tasks { // order-free: each is counted
		if of, wanted := tasks[t.Service]; wanted && t.Serving() {
			tasks[t.Service] = append(of, t)
		}
	}
	for _, sv := range s.SortedServices() {
		of, wanted := tasks[sv.ID]
		if !wanted {
			continue
		}
		if op := scale(sv, of, load, now); op != nil {
			commands = append(commands, command(s, now, op))
		}
	}
	return commands, now.Add(ScaleInterval)
}

// scale decides about one service.
func scale(sv *cluster.Service, tasks []*cluster.Task, load map[cluster.TaskID]Load, now time.Time) cluster.Op {
	a, n := sv.Spec.Autoscale, sv.Spec.Replicas
	to := func(replicas int, mean float64) cluster.Op {
		return cluster.AutoscaleService{Service: sv.ID, From: n, Replicas: replicas, Load: mean, Expect: sv.ChangedAt}
	}
	if within := min(max(n, a.Min), a.Max); within != n {
		return to(within, 0)
	}
	sum, known := 0.0, 0
	for _, t := range tasks {
		if l, ok := load[t.ID]; ok && now.Sub(l.At) < loadFresh {
			sum += l.CPU
			known++
		}
	}
	mean := sum / float64(n) // a task that is not known yet has no load, so that it does not ask for more of its kind
	want := min(max(int(math.Ceil(sum/a.TargetCPU-1e-9)), a.Min), a.Max)
	low := sv.Autoscaling
	switch {
	case want > n && mean > a.TargetCPU*(1+deadBand):
		return to(want, mean)
	case want >= n || mean >= a.TargetCPU*(1-deadBand):
		want = 0 // not too many
	case known < n || len(tasks) < n:
		// It is not known that there are too many. What was known before still is, or a leader that has heard nothing yet would begin
		// the minute again.
		return nil
	}
	since := now.Sub(low.LowSince)
	switch {
	case want == 0 && low.LowSince.IsZero():
		return nil
	case want == 0 || !low.LowSince.IsZero() && since < 0: // also of a minute that a manager began whose clock is ahead of ours
		return cluster.NoteLoad{Service: sv.ID, Expect: sv.ChangedAt}
	case low.LowSince.IsZero() || want > low.LowTo:
		return cluster.NoteLoad{Service: sv.ID, To: want, Expect: sv.ChangedAt}
	case since >= scaleDownAfter:
		return to(low.LowTo, mean)
	default:
		return nil
	}
}
