package raftsim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/steadyraft/raft"
)

// Options says what to simulate. The zero value of a field means its default.
type Options struct {
	// StateMachine makes a new, empty state machine; it is called for every start of every server. Default: the built-in store of
	// [KeyValue]. Its snapshots must have the same bytes whenever the state is the same, because states are compared by them,
	// unless it implements [StateHasher].
	StateMachine func() raft.StateMachine

	// Workload says what clients ask of the state machine and what they may be answered. Default: that of [KeyValue]. Set both
	// or neither.
	Workload *Workload

	// Embed makes, for each seed, what a program builds around its state machine. Default: nothing.
	Embed func() Embedder

	Faults     Fault         // what may go wrong. Default: AllFaults. NoFaults: nothing
	Seeds      int           // how many seeds Run tries: 100
	FirstSeed  uint64        // the first of them: 1
	MinServers int           // founding servers, drawn from this: 1
	MaxServers int           // up to this: 7, or MinServers if that is more
	MaxFaulty  int           // servers that are down, stand still, or have a disk that hangs, is full or fails, at the same time: any number
	FaultTime  time.Duration // simulated, before everything is healed: 15 s; three times that in one seed of 24
	LiveTime   time.Duration // simulated, within which the cluster must converge after that: 60 s
	Parallel   int           // seeds at the same time: GOMAXPROCS
	CheckEvery int           // full checks of a core's state happen at every so many inputs of a core: 16
	CheckTime  time.Duration // real, for the check of linearizability of one history: 20 s

	// Only and Events simulate a part of a seed, for a closer look at a failure. Only is what a report has found to be enough, in its
	// words: "servers 3, faults 7 12-14, calls 20". Events ends every seed after so many events. Default: all of it.
	Only   string
	Events uint64

	tune  func(*knobs) // changes what was drawn: for tests and benchmarks of this package
	watch func(*world) // is called after every event

	// Observe is told about every seed that Run has finished, from one goroutine at a time. Default: nobody is told.
	Observe func(Result)
}

// Fault is a set of things that may go wrong, or that operators may do.
type Fault uint32

// The faults.
const (
	Crash      Fault = 1 << iota // processes are killed, between any two operations on files, and restarted
	PowerLoss                    // like Crash, and unsynced sectors and names are lost, torn or reordered
	Pause                        // processes stand still, then go on as if nothing had happened
	SlowDisk                     // disks are slow, or hang
	SlowApply                    // state machines are slow
	SyncError                    // a sync fails, and what it should have made durable is lost in part; or a write fails, perhaps half done
	DiskFull                     // a disk has no room for a while
	Loss                         // messages are lost
	Duplicate                    // messages arrive twice
	Reorder                      // messages overtake each other within a lane
	Partition                    // links are cut: in both directions or one, for some pairs or whole groups
	Reset                        // connections break: what was on its way is lost, and the peer seems to be gone
	Clock                        // clocks run at 0.5 to 2 times the real rate
	Membership                   // operators add, promote, demote and remove servers
	Transfer                     // operators transfer leadership, or ask a server not to lead
	Snapshot                     // operators and servers take snapshots, so that followers need them
	Delay                        // what is sent to one server, or over one link, takes up to twelve election timeouts longer for a while
	HalfOpen                     // one side believes that a connection stands, the other has lost it: what the first one sends vanishes
	Damage                       // bytes on a disk change, sectors are lost or end up elsewhere, files vanish

	faults         = iota
	NoFaults Fault = 1 << 31 // none of the above
	// AllFaults is the default.
	AllFaults Fault = 1<<faults - 1
)

var faultNames = [faults]string{"crash", "power-loss", "pause", "slow-disk", "slow-apply", "sync-error", "disk-full", "loss", "duplicate", "reorder",
	"partition", "reset", "clock", "membership", "transfer", "snapshot", "delay", "half-open", "damage"}

// FaultNames lists the names that ParseFault knows.
func FaultNames() []string { return append([]string(nil), faultNames[:]...) }

// ParseFault returns the fault of that name, for instance "power-loss".
func ParseFault(name string) (Fault, error) {
	for i, n := range faultNames {
		if n == name {
			return 1 << i, nil
		}
	}
	return 0, fmt.Errorf("unknown fault %q: want one of %v", name, faultNames)
}

// StateHasher is implemented by state machines whose states can be compared without writing a snapshot.
type StateHasher interface {
	// StateHash returns a number that depends on the whole state and on nothing else.
	StateHash() uint64
}

// Workload is a set of clients, each with one operation under way at a time, and the model of what they may see.
type Workload struct {
	// Clients at the same time, drawn for each seed from 1 up to this: 5.
	Clients int

	// Next draws the next operation of a client. Everything that is left to chance must come from r. n counts the operations of
	// all clients, so that values can be made unique.
	Next func(r *rand.Rand, client, n int) Operation

	// Read answers an operation without a command from the local state, as a server does after Node.Read has returned.
	Read func(sm raft.StateMachine, input any) any

	// Model is the sequential specification.
	Model Model
}

// Operation is what a client asks.
type Operation struct {
	Input   any    // for the model
	Command []byte // for the log; the answer is the state machine's result. nil: a linearizable read, answered by Workload.Read
}

// Model says sequentially what the state machine should do. States and outputs are compared by ==, unless there is an Equal.
type Model struct {
	Init  func() any
	Apply func(state, input any) (output, next any) // must not change state
	// Key names the part of the state that an operation is about. Parts are checked apart, which is a great deal faster. Default:
	// everything is one part, and Init is the state of each.
	Key         func(input any) string
	Equal       func(a, b any) bool // states
	EqualOutput func(got, want any) bool
	Describe    func(input, output any) string // for reports
}

func (o Options) withDefaults() Options {
	if o.StateMachine == nil && o.Workload == nil {
		o.StateMachine, o.Workload = NewKeyValue, KeyValueWorkload()
	}
	if o.Workload != nil {
		wl := *o.Workload
		setDefault(&wl.Clients, 5)
		m := &wl.Model
		if m.Key == nil {
			m.Key = func(any) string { return "" }
		}
		if m.Equal == nil {
			m.Equal = func(a, b any) bool { return a == b }
		}
		if m.EqualOutput == nil {
			m.EqualOutput = func(a, b any) bool { return a == b }
		}
		if m.Describe == nil {
			m.Describe = func(input, output any) string { return fmt.Sprintf("%v: %v", input, output) }
		}
		o.Workload = &wl
	}
	setDefault(&o.Faults, AllFaults)
	setDefault(&o.Seeds, 100)
	setDefault(&o.FirstSeed, 1)
	setDefault(&o.MinServers, 1)
	setDefault(&o.MaxServers, max(7, o.MinServers))
	setDefault(&o.FaultTime, 15*time.Second)
	setDefault(&o.LiveTime, 60*time.Second)
	setDefault(&o.Parallel, runtime.GOMAXPROCS(0))
	setDefault(&o.CheckEvery, 16)
	setDefault(&o.CheckTime, 20*time.Second)
	return o
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// maxServers bounds MaxServers: more servers make a simulation slower and nothing rarer.
const maxServers = 9

// Validate reports everything that makes no sense, at once.
func (o Options) Validate() error {
	var problems []error
	add := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	add((o.StateMachine == nil) == (o.Workload == nil), "StateMachine and Workload belong together: set both or neither")
	if wl := o.Workload; wl != nil {
		add(wl.Clients >= 0, "%d clients: want at least one", wl.Clients)
		add(wl.Next != nil, "the workload has no operations: set Next")
		add(wl.Read != nil, "the workload cannot read: set Read")
		add(wl.Model.Init != nil && wl.Model.Apply != nil, "the workload has no model: set Model.Init and Model.Apply")
	}
	add(o.MinServers >= 0 && o.MinServers <= maxServers, "at least %d servers: want 1 to %d", o.MinServers, maxServers)
	add(o.MaxServers == 0 || o.MaxServers >= o.MinServers, "at least %d and at most %d servers", o.MinServers, o.MaxServers)
	d := o.withDefaults()
	add(o.MaxFaulty >= 0 && o.MaxFaulty <= d.MaxServers, "%d faulty servers at the same time, of at most %d: want 0 to %d; 0 is any number",
		o.MaxFaulty, d.MaxServers, d.MaxServers)
	if _, err := parsePlan(o.Only); err != nil {
		problems = append(problems, fmt.Errorf("part of a seed (Only) %q: %w", o.Only, err))
	}
	add(o.Faults&^(AllFaults|NoFaults) == 0, "unknown faults %#x", uint32(o.Faults&^(AllFaults|NoFaults)))
	add(o.Faults&NoFaults == 0 || o.Faults == NoFaults, "NoFaults goes together with no other fault")
	add(o.Seeds >= 0, "%d seeds: want at least one", o.Seeds)
	add(o.MaxServers >= 0 && o.MaxServers <= maxServers, "at most %d servers: want 1 to %d", o.MaxServers, maxServers)
	add(o.FaultTime >= 0 && o.LiveTime >= 0, "times of %v and %v: want none below zero", o.FaultTime, o.LiveTime)
	add(o.LiveTime == 0 || o.LiveTime >= 20*time.Second, "%v to converge after the faults: want at least 20s, to elect, catch up and answer", o.LiveTime)
	add(o.Parallel >= 0 && o.CheckEvery >= 0 && o.CheckTime >= 0, "Parallel %d, CheckEvery %d, CheckTime %v: want none below zero",
		o.Parallel, o.CheckEvery, o.CheckTime)
	return errors.Join(problems...)
}
