package plan

import (
	"fmt"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// rollout decides how an update goes on: it ends it, or returns the slots whose tasks of another version are to be replaced now.
//
// At most UpdateConfig.Parallelism slots are on their way at a time. A slot is on its way from the moment its old task is to be stopped
// until its new one serves and the delay is over, or until the new one has failed; and so is a slot that is without a task for another
// reason, so that a version that does not start costs no more replicas than the parallelism. What does not serve is replaced first:
// otherwise an update that repairs a service could never begin.
//
// Everything it looks at is in the state, so the successor of a leader goes on in the middle.
func (sv *service) rollout() (chosen map[int]bool, rolledBack bool) {
	if !sv.Update.UnderWay() || sv.Stopped || sv.Removing {
		return nil, false
	}
	cfg := sv.Rollout()
	if failed, back := sv.endIfFailed(cfg); failed {
		return nil, back
	}
	var broken, serving []int
	onTheWay, complete := 0, true
	for i := range sv.slots {
		sl := &sv.slots[i]
		if sl.number > sv.Spec.Replicas {
			break
		}
		t, failedAt := sl.newest(), sv.Slots[sl.number-1].UpdateFailedAt
		if !sl.vacant() && t.SpecVersion != sv.Version && t.Desired == cluster.DesiredRunning {
			complete = false
			if t.Serving() {
				serving = append(serving, sl.number)
			} else {
				broken = append(broken, sl.number)
			}
			continue
		}
		occupied, settled := sv.progress(sl, cfg, failedAt)
		complete = complete && settled
		if occupied {
			onTheWay++
		}
	}
	if complete {
		sv.endUpdate(cluster.UpdateCompleted, cluster.RollbackCompleted, "")
		return nil, false
	}
	room := cfg.Parallelism - onTheWay
	if cfg.Parallelism == cluster.AllAtOnce {
		room = sv.Spec.Replicas
	}
	chosen = map[int]bool{}
	for _, number := range append(broken, serving...) {
		if len(chosen) < room {
			chosen[number] = true
		}
	}
	return chosen, false
}

// progress says of a slot that has no task of another version whether it is on its way, and whether its update is over.
func (sv *service) progress(sl *slot, cfg cluster.UpdateConfig, failedAt time.Time) (occupied, settled bool) {
	t := sl.newest()
	switch {
	case !failedAt.IsZero():
		return sv.p.within(failedAt, cfg.Delay), true
	case sl.vacant() || t.Desired == cluster.DesiredShutdown || !t.Serving() && t.State != cluster.TaskComplete:
		return true, false
	case t.Fence.Index < sv.Update.Index: // it was there before: an update that has brought the service back to what it was
		return false, true
	default:
		return sv.p.within(t.ReadyAt, cfg.Delay), !sv.p.within(t.ReadyAt, cfg.Monitor)
	}
}

// within reports that less than d has passed since then, and has the plan asked for again when it has. A time that lies ahead was set by
// a manager whose clock is ahead of ours: then d counts from now on at the latest.
func (p *planner) within(then time.Time, d time.Duration) bool {
	end := then.Add(d)
	if left := end.Sub(p.now); d <= 0 || left <= 0 || left > d {
		return false
	}
	p.next = earlier(p.next, end)
	return true
}

// endIfFailed pauses an update or rolls it back if too many slots have failed.
func (sv *service) endIfFailed(cfg cluster.UpdateConfig) (ended, rolledBack bool) {
	failed, example := 0, ""
	for i, s := range sv.Slots[:min(len(sv.Slots), sv.Spec.Replicas)] {
		if !s.UpdateFailedAt.IsZero() {
			failed++
			example = fmt.Sprintf("%s.%d", sv.Spec.Name, i+1)
		}
	}
	if failed == 0 || cfg.FailureAction == cluster.FailureContinue || float64(failed) <= cfg.MaxFailureRatio*float64(sv.Spec.Replicas) {
		return false, false
	}
	why := fmt.Sprintf("failure or early termination of %d of %d tasks, %s for one", failed, sv.Spec.Replicas, example)
	if sv.Update.State == cluster.Updating && cfg.FailureAction == cluster.FailureRollback && sv.CanRollBack() {
		sv.endUpdate(cluster.RollbackStarted, cluster.RollbackPaused, "update rolled back due to "+why)
		return true, true
	}
	sv.endUpdate(cluster.UpdatePaused, cluster.RollbackPaused, "paused due to "+why)
	return true, false
}

// endUpdate ends what is under way, an update or a rollback, in one of two states.
func (sv *service) endUpdate(update, rollback cluster.UpdateState, message string) {
	state := update
	if sv.Update.State == cluster.RollbackStarted {
		state = rollback
	}
	sv.p.do(cluster.EndUpdate{Service: sv.ID, Version: sv.Version, State: state, Message: message})
}

// replace begins the update of one slot. What serves goes on until its successor does, if the order says so; what does not serve goes
// first in any order, or it might hold what its successor needs.
func (sv *service) replace(sl *slot) {
	t := sl.newest()
	startFirst := sv.Rollout().Order == cluster.StartFirst
	if startFirst && t.Serving() {
		sl.stopOlder(sv.p)
		sv.create(sl)
		return
	}
	for _, old := range sl.tasks {
		if startFirst && old != t && old.Serving() {
			continue // it stands in for the newest one, which never served
		}
		if old.Desired == cluster.DesiredRunning && old.SpecVersion != sv.Version && (old.Live() || old == t && sl.ended()) {
			// How many slots may be on their way is another question after another update, which may have got into the log before this.
			sv.p.do(cluster.StopTask{Task: old.ID, Reason: "service updated", Expect: sv.ChangedAt})
		}
	}
}
