package api

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// eventsMargin is how much longer than it was asked to wait a manager may take to answer, before the next one is asked.
const eventsMargin = 2 * time.Second

// EventsRequest asks for the events behind one that is known. Every manager numbers them alike, so whoever follows them may ask
// another manager at any time without losing or repeating one.
type EventsRequest struct {
	After uint64        `json:"after"`          // Event.Seq of the last one that is known; 0: from the oldest on
	Wait  time.Duration `json:"wait,omitempty"` // how long to wait for one, at most WatchWait
}

// Events is the answer.
type Events struct {
	Events []cluster.Event `json:"events"` // oldest first
	Missed uint64          `json:"missed"` // so many behind After are forgotten already
	Newest uint64          `json:"newest"` // the last number that was given out. Below After: the managers have lost what came behind it
}

// Events returns the events behind r.After, from any manager, as of an index at which everything is seen that was acknowledged before the
// call. It asks until ctx ends. A manager that answers too late counts as one that does not answer.
func (c *Client) Events(ctx context.Context, r EventsRequest) (Events, error) {
	for {
		c.mu.Lock()
		addresses := slices.Clone(c.addresses)
		c.mu.Unlock()
		failures := []error{errors.New("no manager can do this now")}
		for _, address := range addresses {
			var answer Events
			attempt, cancel := context.WithTimeout(ctx, r.Wait+eventsMargin)
			_, err := c.attempt(attempt, address, "POST", PathEvents, r, &answer)
			cancel()
			var refused *Error
			switch {
			case err == nil:
				c.prefer(address)
				return answer, nil
			case errors.As(err, &refused) && refused.Code != CodeUnavailable:
				return answer, err
			}
			failures = append(failures, err)
		}
		select {
		case <-ctx.Done():
			return Events{}, &Error{Code: CodeUnavailable, Message: errors.Join(failures...).Error()}
		case <-time.After(retryPause):
		}
	}
}
