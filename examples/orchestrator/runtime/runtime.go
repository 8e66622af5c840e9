// Package runtime is the seam between the agent and whatever really runs a task: a plain process (package runtime/process) or a container
// of a Docker Engine (package runtime/docker). The agent keeps nothing of its own about an instance. Everything that it must know after a restart (which task,
// which version, which port) travels in Spec.Labels and comes back from Adopt, so a runtime is the only record of what runs on a node.
package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Errors that a caller tells apart with errors.Is.
var (
	ErrNotFound    = errors.New("no such instance on this node")
	ErrRunning     = errors.New("the instance is running")
	ErrNotRunning  = errors.New("the instance is not running")
	ErrUnsupported = errors.New("not supported by this runtime")
	// ErrUnavailable says that the engine behind the runtime does not answer. Nothing is known about the instance: it may go on
	// running, so the call is to be repeated, and no conclusion to be drawn.
	ErrUnavailable = errors.New("the container engine does not answer")
	// ErrPortInUse says that one of Spec.Ports was taken before the instance could have it. Prepare it again with other addresses.
	ErrPortInUse = errors.New("a port was taken by another process meanwhile")
)

// Port is a port on which an instance serves.
type Port struct {
	Target  uint16 `json:"target"`  // as the task's definition calls it
	Address string `json:"address"` // host:port at which the node can offer it, or does offer it
}

// ListenEnv tells an instance where to listen: HOST, PORT for the first target port, and PORT_<target> for each.
func ListenEnv(host string, ports []Port, number func(Port) string) []string {
	var env []string
	if host != "" {
		env = append(env, "HOST="+host)
	}
	for i, p := range ports {
		if i == 0 {
			env = append(env, "PORT="+number(p))
		}
		env = append(env, fmt.Sprintf("PORT_%d=%s", p.Target, number(p)))
	}
	return env
}

// Number returns the port number of the address.
func (p Port) Number() string {
	_, number, _ := net.SplitHostPort(p.Address) // an address that is none has no number
	return number
}

// Spec says what to run. A runtime ignores no field: what it cannot honour it refuses in Prepare.
type Spec struct {
	ID          string            `json:"id"`                    // names the instance on its node: letters, digits, '-', '_' and '.', at most 128
	Image       string            `json:"image,omitempty"`       // containers only
	Command     []string          `json:"command,omitempty"`     // argv; a container runtime may take it from the image
	Env         []string          `json:"env,omitempty"`         // KEY=value, added to the runtime's base environment, the last one of a key wins
	Host        string            `json:"host,omitempty"`        // the node's own address
	Ports       []Port            `json:"ports,omitempty"`       // what the task serves, and free addresses of the node to offer it at; see ListenEnv
	Dir         string            `json:"dir,omitempty"`         // working directory; default: the runtime's choice
	StopSignal  string            `json:"stop_signal,omitempty"` // e.g. "SIGINT"; default SIGTERM
	Labels      map[string]string `json:"labels,omitempty"`      // the agent's own notes, returned by Adopt
	LogMaxBytes int64             `json:"log_max_bytes,omitempty"`
}

// ExitStatus is the end of a run.
type ExitStatus struct {
	Code  int       `json:"code"`            // exit code; 128 + n for signal n, as shells and Docker count; -1 if nobody saw the end
	Error string    `json:"error,omitempty"` // why there is no proper exit code
	At    time.Time `json:"at"`
}

// String is the sentence that a task table shows.
func (s ExitStatus) String() string {
	switch {
	case s.Error != "":
		return s.Error
	case s.Code > 128:
		return fmt.Sprintf("killed by signal %d", s.Code-128)
	default:
		return fmt.Sprintf("exit code %d", s.Code)
	}
}

// Instance is what Adopt finds.
type Instance struct {
	Spec      Spec // with ID, Labels, and in Ports where a running one is reached; an engine may not tell the rest
	Running   bool
	PID       int        // 0 when the runtime has none to show
	StartedAt time.Time  // zero if it was prepared and never started
	Exit      ExitStatus // valid when it was started and is not running
}

// LogOptions selects what Logs returns.
type LogOptions struct {
	Follow bool // go on until the instance has ended, ctx is done, or the reader is closed
	Tail   int  // only the last lines; 0 means all that is kept
	// Again, with Follow, is asked when the instance has ended: true says that it will be started again, so that its output goes on.
	// Nil: it will not.
	Again func() bool
}

// Stats is a sample of one instance's consumption.
type Stats struct {
	CPU    time.Duration // processor time since the start
	Memory int64         // resident bytes
}

// Runtime runs instances on one node. All methods may be called from several goroutines; calls for one ID are serialised by the caller,
// except that Wait, Logs, Stats and Exec may run beside any other. Every blocking call ends when its context does. ErrUnavailable is possible
// everywhere but from Wait, which goes on waiting.
type Runtime interface {
	// Prepare makes everything that Start needs. A finished instance of the same ID is removed first, with all its state except its
	// output, so that a restarted task begins from its definition and not from remains. ErrRunning if it still runs.
	Prepare(ctx context.Context, spec Spec) error
	// Start runs what was prepared and returns once it has begun, with where its ports can be reached, or with the reason why it
	// cannot. ErrPortInUse if one of the addresses in Spec.Ports was taken meanwhile.
	Start(ctx context.Context, id string) ([]Port, error)
	// Stop asks the instance to end, waits for grace, then kills it; it returns when the instance is gone. No error if it had ended.
	Stop(ctx context.Context, id string, grace time.Duration) error
	// Kill ends the instance at once, as a crash would. It does not wait. ErrNotRunning if there is nothing to kill.
	Kill(ctx context.Context, id string) error
	// Wait returns the exit status once the instance has ended.
	Wait(ctx context.Context, id string) (ExitStatus, error)
	// Adopt lists all instances of this node, running or ended, so that a new agent takes over where the last one went away.
	Adopt(ctx context.Context) ([]Instance, error)
	// Exec runs a command in the instance's surroundings (its environment and directory, or its container) and returns its exit code.
	Exec(ctx context.Context, id string, argv []string) (int, error)
	// Logs returns the output of the instance, standard output and error in the order written. The caller closes it.
	Logs(ctx context.Context, id string, opts LogOptions) (io.ReadCloser, error)
	// Stats samples the instance. ErrUnsupported where the system does not tell.
	Stats(ctx context.Context, id string) (Stats, error)
	// Retire gives back what an ended instance holds on to, all but its output: nobody will start it again. It may be unknown to Adopt from
	// then on. ErrRunning if it runs; no error if it is unknown.
	Retire(ctx context.Context, id string) error
	// Remove forgets an ended instance with its logs. ErrRunning if it runs; no error if it is unknown.
	Remove(ctx context.Context, id string) error
}
