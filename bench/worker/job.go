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
	// the server leads, and prints a Commit for every first one, until a Command says otherwise or its standard input ends.
	Server int `json:"server,omitempty"`
	// Obey makes a worker with all servers wait for Commands, too. It prints a Commit when there is a leader.
	Obey bool `json:"obey,omitempty"`

	Listen        string `json:"listen,omitempty"` // see Options, as the next three
	Join          bool   `json:"join,omitempty"`
	SnapshotBytes int64  `json:"snapshot_bytes,omitempty"`
	AutoSnapshots bool   `json:"auto_snapshots,omitempty"`
}

// Command is what the parent writes to the standard input of a worker with one server, or one that obeys. One field is set. Commands
// are carried out at the same time; each but Stop is answered by an Output.
type Command struct {
	Measure  *Point `json:"measure,omitempty"`  // put this server under load, instead of what keeps proposing; answered by a Sample
	Stop     bool   `json:"stop,omitempty"`     // end that now
	Fill     *Fill  `json:"fill,omitempty"`     // likewise, without measuring; answered by Filled
	Rest     bool   `json:"rest,omitempty"`     // do not propose any more; Done
	Snapshot bool   `json:"snapshot,omitempty"` // take a snapshot; Done
	Add      *Add   `json:"add,omitempty"`      // take in a server; Done
	Progress bool   `json:"progress,omitempty"` // answered by a Progress
	Memory   bool   `json:"memory,omitempty"`   // collect garbage; answered by a Memory
}

// Fill is load until there was so much of it, or time is up.
type Fill struct {
	Commands uint64        `json:"commands"`
	Size     int           `json:"size"`
	Clients  int           `json:"clients"`
	Limit    time.Duration `json:"limit_ns"`
}

// Add names a new server, counted from 1.
type Add struct {
	Server  int    `json:"server"`
	Address string `json:"address"`
}

// Progress is how far a server is.
type Progress struct {
	Applied  uint64 `json:"applied"` // commands
	Sum      uint32 `json:"sum"`
	Restored uint64 `json:"restored"`       // snapshots
	Term     uint64 `json:"term,omitempty"` // 0: the library does not tell
	Leads    bool   `json:"leads"`
}

// Memory is what a process holds after a garbage collection.
type Memory struct {
	Resident   int64  `json:"resident"`
	Heap       uint64 `json:"heap"` // of Go, in use
	Goroutines int    `json:"goroutines"`
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
	Servers int    `json:"servers"`

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
	Filled  *uint64  `json:"filled,omitempty"` // commands
	Restart *Restart `json:"restart,omitempty"`

	Progress *Progress      `json:"progress,omitempty"`
	Memory   *Memory        `json:"memory,omitempty"`
	Done     *time.Duration `json:"done_ns,omitempty"` // how long a Command took that has no other answer
	Void     bool           `json:"void,omitempty"`    // what was printed before means nothing: the servers do not agree; an Error follows
	Error    string         `json:"error,omitempty"`
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
