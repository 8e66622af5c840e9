//go:build unix

package mutants

import (
	"os/exec"
	"syscall"
)

// memoryLimit is what one process may map, in KiB: a mutant that never stops growing must not take the machine with it.
const memoryLimit = "6291456"

// confine gives a process a group of its own, which is killed as a whole, and a bound of its memory where the system has one.
func confine(cmd *exec.Cmd) {
	if sh, err := exec.LookPath("sh"); err == nil {
		cmd.Args = append([]string{sh, "-c", "ulimit -v " + memoryLimit + ` 2>/dev/null; exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
		cmd.Path = sh
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}

// sweep kills what a process that has ended left behind in its group.
func sweep(cmd *exec.Cmd) {
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // mostly nobody is left, which is an error
	}
}
