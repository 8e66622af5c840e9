//go:build unix && !linux

package process

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"github.com/steadyraft/raft/examples/orchestrator/runtime"
)

// taskAttributes gives the task a session of its own. There is no parent-death signal here: if the shim is killed, the task is ended by
// whoever waits for it.
func taskAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// identify returns the process's number with its start time as ps prints it; empty if there is no such process.
func identify(id int) pid {
	out, err := exec.Command("ps", "-o", "lstart=", "-p", strconv.Itoa(id)).Output()
	if err != nil {
		return pid{ID: id}
	}
	return pid{ID: id, Start: strings.TrimSpace(string(out))}
}

func stats(int) (runtime.Stats, error) { return runtime.Stats{}, runtime.ErrUnsupported }
