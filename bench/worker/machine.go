package worker

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// machine is what the kernel has counted so far: for this process and for the whole machine.
type machine struct {
	own     time.Duration // processor time of this process
	busy    time.Duration // processor time of the machine, without idle and waiting for disks
	written int64         // bytes written to the data directory's device, by whomever; -1: not known
	flushes int64         // flush requests that this device has finished; -1: not known
}

func readMachine(dir string) machine {
	m := machine{own: ownTime(), busy: busyTime()}
	m.written, m.flushes = device(dir)
	return m
}

// tick is USER_HZ, in which the kernel reports processor time. It is the same on all architectures that Go knows.
const tick = time.Second / 100

func ownTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return -1
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// busyTime reads the machine's processor time from /proc/stat: user, nice, system, interrupts and what other guests stole.
func busyTime() time.Duration {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return -1
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	f := strings.Fields(string(line)) // cpu user nice system idle iowait irq softirq steal
	if len(f) < 9 || f[0] != "cpu" {
		return -1
	}
	var sum time.Duration
	for _, i := range []int{1, 2, 3, 6, 7, 8} {
		n, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return -1
		}
		sum += time.Duration(n) * tick
	}
	return sum
}

// device reads how many bytes were written to the device that holds dir, and how many flushes it has finished, whoever asked for
// them: the 7th and the 16th statistic of /proc/diskstats. The count of a process in /proc/self/io would leave others out, but it
// counts whole folios, which can be a thousand times what is written.
func device(dir string) (written, flushes int64) {
	var st syscall.Stat_t
	if syscall.Stat(dir, &st) != nil {
		return -1, -1
	}
	b, err := os.ReadFile("/proc/diskstats")
	if err != nil {
		return -1, -1
	}
	major, minor := (st.Dev>>8)&0xfff, st.Dev&0xff|(st.Dev>>12)&0xfff00
	want := fmt.Sprintf("%d %d", major, minor)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 19 || f[0]+" "+f[1] != want {
			continue
		}
		sectors, err := strconv.ParseInt(f[9], 10, 64)
		flushes, err2 := strconv.ParseInt(f[18], 10, 64)
		if err == nil && err2 == nil {
			return sectors * 512, flushes
		}
	}
	return -1, -1
}

// readMemory collects garbage first: what is left is held, not waiting to be dropped.
func readMemory() *Memory {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return &Memory{Resident: resident(), Heap: m.HeapAlloc, Goroutines: runtime.NumGoroutine()}
}

// resident is how much of this process is in memory; -1: not known.
func resident() int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return -1
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return -1
	}
	pages, err := strconv.ParseInt(f[1], 10, 64)
	if err != nil {
		return -1
	}
	return pages * int64(os.Getpagesize())
}

// WatchOthers returns a function that says how many processors were, since this call, busy with anything but these processes. -1: not
// known.
func WatchOthers(pids ...int) (others func() float64) {
	start, busy, own := time.Now(), busyTime(), processTimes(pids)
	return func() float64 { return othersBusy(processTimes(pids)-own, busy, busyTime(), time.Since(start)) }
}

// processTimes is the processor time of living processes.
func processTimes(pids []int) (sum time.Duration) {
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it is gone; what it used counts as that of others
		}
		_, rest, _ := bytes.Cut(b, []byte(") ")) // the name may hold blanks
		f := strings.Fields(string(rest))
		for _, i := range []int{11, 12} { // utime, stime
			if i < len(f) {
				n, _ := strconv.ParseInt(f[i], 10, 64)
				sum += time.Duration(n) * tick
			}
		}
	}
	return sum
}

func othersBusy(own, before, after, elapsed time.Duration) float64 {
	if before < 0 || after < 0 {
		return -1
	}
	return max(0, float64(after-before-own)/float64(elapsed))
}
