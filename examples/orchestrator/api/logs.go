package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"

	"github.com/steadyraft/raft/examples/orchestrator/agent"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// LogsRequest asks for the output of a task. The node that has it sends it to the manager that is asked: nodes listen for nobody.
type LogsRequest struct {
	Task   cluster.TaskID `json:"task"`
	Follow bool           `json:"follow,omitempty"` // go on until the task has ended for good
	Tail   int            `json:"tail,omitempty"`   // only the last lines; 0: all that the node has kept
}

// OutputWanted is what a manager has the leader tell a node in the answer to its next heartbeat.
type OutputWanted struct {
	Node    cluster.NodeID      `json:"node"`
	Request agent.OutputRequest `json:"request"`
}

// failureHeader carries why a node has no output to send.
const failureHeader = "Orchestrator-Output-Failure"

// OutputFailure returns why a node has no output to send; "" if it has.
func OutputFailure(r *http.Request) string {
	text, err := url.QueryUnescape(r.Header.Get(failureHeader))
	if err != nil {
		return "the node's reason cannot be read"
	}
	return text
}

// Logs hands the output of a task to read, as long as it lasts, from the first manager that can be asked.
func (c *Client) Logs(ctx context.Context, r LogsRequest, read func(io.Reader) error) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	c.mu.Lock()
	addresses := slices.Clone(c.addresses)
	c.mu.Unlock()
	failures := []error{errors.New("no manager can do this now")}
	for _, address := range addresses {
		began := false
		_, err := c.exchange(ctx, address, http.MethodPost, PathLogs, bytes.NewReader(data), nil, noLimit, func(from io.Reader) error {
			began = true
			return read(from)
		})
		var refused *Error
		if err == nil || began || errors.As(err, &refused) && refused.Code != CodeUnavailable || ctx.Err() != nil {
			return err
		}
		failures = append(failures, err)
	}
	return &Error{Code: CodeUnavailable, Message: errors.Join(failures...).Error()}
}

// SendOutput implements agent.OutputSender.
func (c *Client) SendOutput(ctx context.Context, id string, output io.Reader, failure string) error {
	c.mu.Lock()
	address := c.addresses[0]
	c.mu.Unlock()
	header := http.Header{}
	if failure != "" {
		header.Set(failureHeader, url.QueryEscape(failure))
	}
	_, err := c.Exchange(ctx, address, http.MethodPost, PathOutput+"/"+url.PathEscape(id), output, header, func(io.Reader) error { return nil })
	return err
}

var _ agent.OutputSender = (*Client)(nil)
