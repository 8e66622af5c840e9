package agent

import (
	"context"
	"io"
	"slices"
	"sync"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/runtime"
)

// Bounds of what a node sends.
const (
	maxOutputs      = 32  // at the same time
	maxOutputsKnown = 256 // requests that are recognised when they come again
)

// OutputRequest asks a node to send the output of one of its tasks to a manager. It may come several times.
type OutputRequest struct {
	ID      string         `json:"id"`
	Task    cluster.TaskID `json:"task"`
	Manager string         `json:"manager"` // address of the manager that waits for it
	Follow  bool           `json:"follow,omitempty"`
	Tail    int            `json:"tail,omitempty"`
}

// OutputSender is what a Managers implementation has that can send output.
type OutputSender interface {
	// SendOutput sends what it reads, until there is no more or the manager does not want it any more. failure, if not empty, says why there
	// is nothing.
	SendOutput(ctx context.Context, id string, output io.Reader, failure string) error
}

// outputs are the requests that the agent has seen, and how many it is answering.
type outputs struct {
	mu      sync.Mutex
	known   []string
	sending int
}

// begin reports that a request is new, and whether there is room for it.
func (o *outputs) begin(id string) (isNew, room bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if slices.Contains(o.known, id) {
		return false, false
	}
	if len(o.known) >= maxOutputsKnown {
		o.known = slices.Delete(o.known, 0, len(o.known)-maxOutputsKnown+1)
	}
	o.known = append(o.known, id)
	if o.sending >= maxOutputs {
		return true, false
	}
	o.sending++
	return true, true
}

func (o *outputs) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sending--
}

// sendOutput answers the requests that it has not seen yet. One for which there is no room is not answered: whoever waits is told so by
// the manager.
func (a *Agent) sendOutput(ctx context.Context, requests []OutputRequest) {
	for _, r := range requests {
		isNew, room := a.outputs.begin(r.ID)
		switch {
		case isNew && room:
			a.running.Go(func() {
				defer a.outputs.end()
				if err := a.send(ctx, r); err != nil && ctx.Err() == nil {
					a.opts.Logger.Debug("output was not sent to its end", "task", r.Task, "manager", r.Manager, "error", err)
				}
			})
		case isNew:
			a.opts.Logger.Warn("output was asked for while too much is being sent already", "task", r.Task)
		}
	}
}

func (a *Agent) send(ctx context.Context, r OutputRequest) error {
	client := a.opts.Dial(r.Manager)
	defer closeClient(client)
	sender, ok := client.(OutputSender)
	if !ok {
		return runtime.ErrUnsupported
	}
	output, err := a.opts.Runtime.Logs(ctx, string(r.Task), runtime.LogOptions{
		Follow: r.Follow, Tail: r.Tail, Again: func() bool { return a.live(r.Task) },
	})
	if err != nil {
		return sender.SendOutput(ctx, r.ID, nil, err.Error())
	}
	defer output.Close() // also ends a read that the sending has left behind
	return sender.SendOutput(ctx, r.ID, output, "")
}

// live reports that a task runs or may yet run.
func (a *Agent) live(id cluster.TaskID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.tasks[id]
	return t != nil && !t.status.State.Final()
}
