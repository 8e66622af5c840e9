package manager

import (
	"context"
	"slices"
	"time"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// events answers with the events behind the one that the caller knows, and waits for one if there is none. When the leadership changes it
// does not wait any longer: this manager may be the one that is cut off, and then the caller has to ask another one.
func (m *Manager) events(ctx context.Context, r api.EventsRequest) (api.Events, error) {
	timer := time.NewTimer(min(r.Wait, api.WatchWait))
	defer timer.Stop()
	var waiting <-chan raft.Leadership
	if r.Wait > 0 {
		changes := make(chan raft.Leadership, 1)
		began := m.node.Leadership()
		defer m.node.OnLeaderChange(func(l raft.Leadership) {
			if l.Leader != began.Leader || l.Term != began.Term {
				select {
				case changes <- l:
				default:
				}
			}
		})()
		waiting = changes
	}
	for {
		state, replaced := m.machine.Watch()
		answer := eventsAfter(state.Events, r.After)
		if len(answer.Events) > 0 || r.Wait <= 0 || answer.Newest < r.After {
			return answer, nil
		}
		select {
		case <-ctx.Done():
			return answer, ctx.Err()
		case <-m.closing:
			return answer, nil
		case <-timer.C:
			return answer, nil
		case <-waiting:
			return answer, nil
		case <-replaced:
		}
	}
}

// eventsAfter returns the events behind a number.
func eventsAfter(events []cluster.Event, after uint64) api.Events {
	if len(events) == 0 {
		return api.Events{}
	}
	answer := api.Events{Newest: events[len(events)-1].Seq}
	if oldest := events[0].Seq; after > 0 && after+1 < oldest {
		answer.Missed = oldest - after - 1
	}
	first, _ := slices.BinarySearchFunc(events, after+1, func(e cluster.Event, seq uint64) int { return int(int64(e.Seq) - int64(seq)) })
	answer.Events = events[first:]
	return answer
}
