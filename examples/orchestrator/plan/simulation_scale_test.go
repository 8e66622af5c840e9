package plan_test

import (
	"fmt"
	"math"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// quietMinute is how long fewer replicas have to be enough before any is stopped, as the documentation says.
const quietMinute = time.Minute

func (w *world) anyAutoscale() *cluster.Autoscale {
	low := 1 + w.Random().IntN(3)
	return &cluster.Autoscale{Min: low, Max: low + w.Random().IntN(4), TargetCPU: 50}
}

// anyLimits begins or ends the scaling of a service by its load.
func (w *world) anyLimits(sv *cluster.Service) cluster.Op {
	op := cluster.SetAutoscale{Service: sv.ID}
	if sv.Spec.Autoscale == nil || w.Random().IntN(3) > 0 {
		op.Autoscale = w.anyAutoscale()
	}
	return op
}

// demands changes every now and then what the clients of services ask for. In the end it stays as it is.
func (w *world) demands() {
	if w.Healed() {
		return
	}
	w.load = map[cluster.ServiceID]float64{}
	for _, sv := range w.newest.SortedServices() {
		w.load[sv.ID] = float64(w.Random().IntN(300))
	}
	w.After(w.upTo(10*time.Second), w.demands)
}

// loads is what the node measures of its tasks: those of a service that run share what is asked of it.
func (n *node) loads() map[cluster.TaskID]float64 {
	running := map[cluster.ServiceID]int{}
	for _, other := range n.w.nodes {
		for _, k := range other.tasks { // order-free
			if k.runs {
				running[k.task.Service]++
			}
		}
	}
	out := map[cluster.TaskID]float64{}
	for id, k := range n.tasks { // order-free
		if k.runs {
			out[id] = n.w.load[k.task.Service] / float64(running[k.task.Service])
		}
	}
	return out
}

// followLoad checks what a leader makes of the load. The minute is by the leaders' clocks, of which one may have begun it and another one end
// it.
func (w *world) followLoad(op cluster.AutoscaleService, at time.Time, before, after *cluster.State) {
	was, is := before.Services[op.Service], after.Services[op.Service]
	a, n := was.Spec.Autoscale, is.Spec.Replicas
	switch low := was.Autoscaling; {
	case n < a.Min || n > a.Max:
		w.Fail("%s has %d replicas by its load, with limits of %d and %d", is.ID, n, a.Min, a.Max)
	case was.Spec.Replicas < a.Min || was.Spec.Replicas > a.Max:
		// Its limits were changed.
	case n > was.Spec.Replicas:
		w.seen.Grown++
	case low.LowSince.IsZero() || at.Sub(low.LowSince) < quietMinute:
		w.Fail("%s shrinks from %d to %d at %v; fewer were enough since %v", is.ID, was.Spec.Replicas, n, at, low.LowSince)
	case n < low.LowTo:
		w.Fail("%s shrinks to %d replicas; %d were needed in the last minute", is.ID, n, low.LowTo)
	default:
		w.seen.Shrunk++
		if last, ok := w.grown[op.Service]; ok && at.Sub(last) < quietMinute && !at.Before(last) {
			w.Fail("%s shrinks %v after it has grown", is.ID, at.Sub(last))
		}
	}
	if n > was.Spec.Replicas {
		w.grown[op.Service] = at
	}
}

// scaled says why the number of replicas does not fit the load yet; nil if it does, or nobody scales the service.
func (w *world) scaled(sv *cluster.Service) error {
	a, n := sv.Spec.Autoscale, sv.Spec.Replicas
	if a == nil || sv.Stopped {
		return nil
	}
	if n < a.Min || n > a.Max {
		return fmt.Errorf("service %s has %d replicas, with limits of %d and %d", sv.Spec.Name, n, a.Min, a.Max)
	}
	want := min(max(int(math.Ceil(w.load[sv.ID]/a.TargetCPU-1e-9)), a.Min), a.Max)
	mean := w.load[sv.ID] / float64(n)
	if want > n && mean > 1.1*a.TargetCPU || want < n && mean < 0.9*a.TargetCPU {
		return fmt.Errorf("service %s has %d replicas, and its load asks for %d", sv.Spec.Name, n, want)
	}
	return nil
}
