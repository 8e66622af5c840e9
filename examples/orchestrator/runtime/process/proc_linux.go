package process

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/runtime"
)

// taskAttributes gives the task a session of its own, and ties its life to the shim: with the shim killed nobody could report its end.
func taskAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
}

// identify returns the process's number with its start time in clock ticks since boot, field 22 of /proc/PID/stat. Start is empty if
// there is no such process, or only a zombie that nobody has collected yet.
func identify(id int) pid {
	fields, err := stat(id)
	if err != nil || fields[0][0] == 'Z' || fields[0][0] == 'X' {
		return pid{ID: id}
	}
	return pid{ID: id, Start: string(fields[19])}
}

// stat returns the fields of /proc/PID/stat from the third on. The second is the program's name, in parentheses, and may itself
// contain spaces and parentheses.
func stat(id int) ([][]byte, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(id) + "/stat")
	if err != nil {
		return nil, err
	}
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) < 22 {
		return nil, fmt.Errorf("/proc/%d/stat: %d fields after the name, want 22", id, len(fields))
	}
	return fields, nil
}

// Linux reports processor time in units of USER_HZ, which is 100 on every architecture that Go supports.
const tick = time.Second / 100

func stats(id int) (runtime.Stats, error) {
	fields, err := stat(id)
	if err != nil {
		return runtime.Stats{}, err
	}
	var n [3]int64 // utime, stime, rss in pages
	for i, at := range []int{11, 12, 21} {
		if n[i], err = strconv.ParseInt(string(fields[at]), 10, 64); err != nil {
			return runtime.Stats{}, fmt.Errorf("/proc/%d/stat: %w", id, err)
		}
	}
	return runtime.Stats{CPU: time.Duration(n[0]+n[1]) * tick, Memory: n[2] * int64(os.Getpagesize())}, nil
}
