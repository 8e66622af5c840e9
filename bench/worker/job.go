package worker

import "time"

// The kinds of load.
const (
	Propose = "propose"
	Read    = "read"
	Mixed   = "mixed" // 95 reads to 5 proposals
)

// Job is what a worker reads from its standard input, as JSON.
type Job struct {
	Dir       string   `json:"dir"`                // exists and is empty
	Addresses []string `json:"addresses"`          // one for each server of the cluster
	Points    []Point  `json:"points"`             // measured in turn, on one cluster with all servers in this process
	Transfers int      `json:"transfers"`          // made after that, under load; each prints a Gap
	Profiles  string   `json:"profiles,omitempty"` // directory for a CPU profile of every point; "": none
	Fill      int64    `json:"fill,omitempty"`     // instead of Points: fill the logs with so many bytes; prints Filled
	Filled    uint64   `json:"filled,omitempty"`   // instead of Points: start where that was done; prints a Restart
	// Server is the only server that runs in this process, counted from 1. Then there are no Points: the worker proposes while
	// the server leads, until its standard input ends, and prints a Commit for every first one.
	Server int `json:"server,omitempty"`
}

// Point is one measurement.
type Point struct {
	Kind    string        `json:"kind"`
	Size    int           `json:"size"`    // of a command, in bytes
	Clients int           `json:"clients"` // each waits for the answer before it asks again
	Warmup  time.Duration `json:"warmup_ns"`
	Time    time.Duration `json:"time_ns"`
}

// Sample is what was measured at a Point, once. All figures are for all servers and the clients together.
type Sample struct {
	Point
	Library string `json:"library"`
	Repeat  int    `json:"repeat"`

	Operations uint64        `json:"operations"`
	Elapsed    time.Duration `json:"elapsed_ns"`
	PerSecond  float64       `json:"per_second"`
	Failures   uint64        `json:"failures"`
	Failure    string        `json:"failure,omitempty"` // the first one

	Latencies uint64        `json:"latencies"` // operations that began and ended within the time; 0: the next four mean nothing
	P50       time.Duration `json:"p50_ns"`
	P99       time.Duration `json:"p99_ns"`
	P999      time.Duration `json:"p999_ns"`
	Max       time.Duration `json:"max_ns"`

	// For each operation.
	Allocations    float64 `json:"allocations"`
	AllocatedBytes float64 `json:"allocated_bytes"`
	CPU            float64 `json:"cpu_us"`
	Flushes        float64 `json:"flushes"`       // of the device that holds the data, by whomever; -1: not known
	WrittenBytes   float64 `json:"written_bytes"` // to this device, by whomever; -1: not known

	Others float64 `json:"others"` // processors that others kept busy meanwhile; -1: not known
}

// Commit says that a server that had just become leader committed a command.
type Commit struct {
	Server int   `json:"server"`
	At     int64 `json:"at_unix_ns"`
}

// Output is one line of a worker's standard output. One field is set.
type Output struct {
	About   *About   `json:"about,omitempty"`
	Sample  *Sample  `json:"sample,omitempty"`
	Commit  *Commit  `json:"commit,omitempty"`
	Gap     *Gap     `json:"gap,omitempty"`
	Filled  uint64   `json:"filled,omitempty"`
	Restart *Restart `json:"restart,omitempty"`
	Error   string   `json:"error,omitempty"`
}

// About says which library this is.
type About struct {
	Name    string   `json:"name"`
	Modules []string `json:"modules"` // with versions
	Notes   string   `json:"notes"`
}

// Gap is what a planned transfer cost.
type Gap struct {
	Longest  time.Duration `json:"longest_ns"` // between two commits
	Failures uint64        `json:"failures"`   // proposals that returned an error
	Failure  string        `json:"failure,omitempty"`
	NotDone  string        `json:"not_done,omitempty"` // why the transfer did not happen; then the rest means nothing
}
