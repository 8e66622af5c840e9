package plan_test

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// user changes what is wanted now and then.
func (w *world) user() {
	w.After(w.upTo(3*time.Second), w.user)
	for _, s := range w.Servers() {
		if s.Leads() == 0 || w.loops[s] == nil {
			continue
		}
		s.On(0, func() {
			if op := w.wish(stateOf(s)); op != nil {
				_ = s.Propose(encode(cluster.Command{At: clockOf(s), Op: op}), 0, nil)
			}
		})
		return
	}
}

func (w *world) wish(s *cluster.State) cluster.Op {
	if w.Healed() {
		return repair(s)
	}
	r := w.Random()
	services := slices.DeleteFunc(s.SortedServices(), func(sv *cluster.Service) bool {
		return sv.Removing || strings.HasPrefix(sv.Spec.Name, "client")
	})
	if len(services) == 0 || len(services) < 4 && r.IntN(2) == 0 {
		w.nextSpec++
		return cluster.CreateService{Spec: w.anySpec(fmt.Sprintf("%s%d", []string{"web", "web", "start-first"}[r.IntN(3)], w.nextSpec), 1+r.IntN(6))}
	}
	sv := services[r.IntN(len(services))]
	switch r.IntN(10) {
	case 0, 1, 2, 3, 4:
		return cluster.UpdateService{Service: sv.ID, Spec: w.anySpec(sv.Spec.Name, sv.Spec.Replicas)}
	case 5:
		return cluster.RollbackService{Service: sv.ID}
	case 6, 7:
		return cluster.ScaleService{Service: sv.ID, Replicas: r.IntN(7)}
	case 8:
		if r.IntN(2) == 0 {
			return w.anyLimits(sv)
		}
		if r.IntN(3) == 0 {
			return cluster.RemoveService{Service: sv.ID}
		}
		return cluster.StopService{Service: sv.ID}
	default:
		return cluster.StartService{Service: sv.ID}
	}
}

// repair is what a user does in the end: what cannot run is replaced by something that can, and an update that was paused goes on.
func repair(s *cluster.State) cluster.Op {
	for _, sv := range s.SortedServices() {
		paused := sv.Update != nil && (sv.Update.State == cluster.UpdatePaused || sv.Update.State == cluster.RollbackPaused)
		if broken := sv.Spec.Task.Command[0] == "broken"; !sv.Removing && (broken || paused) {
			spec := sv.Spec
			spec.Task.Command = []string{"run"}
			return cluster.UpdateService{Service: sv.ID, Spec: spec}
		}
	}
	return nil
}

func (w *world) anySpec(name string, replicas int) cluster.ServiceSpec {
	r := w.Random()
	s := service(name, replicas)
	w.nextSpec++
	s.Task.Env = map[string]string{"RELEASE": fmt.Sprint(w.nextSpec)}
	if r.IntN(3) == 0 {
		s.Task.Command = []string{"broken"}
	}
	s.Update = cluster.UpdateConfig{
		Parallelism: 1 + r.IntN(4)/3, Delay: w.upTo(2 * time.Second), Monitor: 2 * time.Second,
		FailureAction: []cluster.FailureAction{cluster.FailurePause, cluster.FailureContinue, cluster.FailureRollback}[r.IntN(3)],
	}
	if strings.HasPrefix(name, "start-first") {
		s.Update.Order = cluster.StartFirst
	}
	if r.IntN(3) == 0 {
		s.Autoscale = w.anyAutoscale()
	}
	s.Rollback = s.Update
	s.Rollback.FailureAction = cluster.FailurePause
	return s
}
