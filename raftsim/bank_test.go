package raftsim_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/raftsim"
)

// balances is the money in every account. Being an array it can be compared by ==, as the model needs.
type balances [4]int

var opening = balances{100, 100, 100, 100}

// transfer moves money between accounts, if there is enough; it is the command.
type transfer struct {
	From   int `json:"from"`
	To     int `json:"to"`
	Amount int `json:"amount"`
}

// audit asks for all balances.
type audit struct{}

// apply is what a bank does, in the state machine and in the model.
func (b balances) apply(t transfer) (after balances, result string) {
	if b[t.From] < t.Amount {
		return b, "refused"
	}
	b[t.From] -= t.Amount
	b[t.To] += t.Amount
	return b, "done"
}

// bank is a state machine like one that you would write.
type bank struct {
	accounts balances
	misapply func(*bank, raft.Entry) // to break it; nil: it works
	misview  func(*balances)         // to break its snapshots
}

func newBank() raft.StateMachine { return &bank{accounts: opening} }

func (b *bank) Apply(entries []raft.Entry, results []any) error {
	for i := range entries {
		var t transfer
		if err := json.Unmarshal(entries[i].Data, &t); err != nil {
			return err
		}
		b.accounts, results[i] = b.accounts.apply(t)
		if b.misapply != nil {
			b.misapply(b, entries[i])
		}
	}
	return nil
}

func (b *bank) Snapshot(context.Context) (raft.SnapshotWriter, error) {
	view := b.accounts
	if b.misview != nil {
		b.misview(&view)
	}
	return view, nil
}

func (b *bank) Restore(_ context.Context, _ raft.SnapshotMeta, r io.Reader) error {
	return json.NewDecoder(r).Decode(&b.accounts)
}

func (b balances) WriteTo(_ context.Context, w io.Writer) error { return json.NewEncoder(w).Encode(b) }
func (balances) Close()                                         {}

// transfers is what clients do with a bank, and what they may see.
func transfers() *raftsim.Workload {
	return &raftsim.Workload{
		Clients: 4,
		Next: func(r *rand.Rand, client, n int) raftsim.Operation {
			if r.IntN(3) == 0 {
				return raftsim.Operation{Input: audit{}}
			}
			t := transfer{From: r.IntN(4), To: r.IntN(4), Amount: 1 + r.IntN(60)}
			cmd, err := json.Marshal(t)
			if err != nil {
				panic(err)
			}
			return raftsim.Operation{Input: t, Command: cmd}
		},
		Read: func(sm raft.StateMachine, _ any) any { return sm.(*bank).accounts },
		Model: raftsim.Model{
			Init: func() any { return opening },
			Apply: func(state, input any) (output, next any) {
				if t, ok := input.(transfer); ok {
					after, result := state.(balances).apply(t)
					return result, after
				}
				return state, state
			},
		},
	}
}

// A replicated bank under every fault: no transfer is lost or done twice, every audit sees all that was acknowledged before it.
func TestBank(t *testing.T) {
	raftsim.Run(t, raftsim.Options{StateMachine: newBank, Workload: transfers(), Seeds: 40})
}

func Example() {
	// In a test of your own, raftsim.Run(t, options) does this and fails t with a report.
	options := raftsim.Options{StateMachine: newBank, Workload: transfers(), Seeds: 5, MaxServers: 3}
	if err := options.Validate(); err != nil {
		fmt.Println(err)
		return
	}
	report := raftsim.Each(options, func(*raftsim.Report) bool { return false })
	fmt.Printf("%d seeds, %d failures\n", report.Seeds, len(report.Failures))
	// Output: 5 seeds, 0 failures
}

// failure runs seeds of a bank that is broken until one fails, and returns the report about it.
func failure(t *testing.T, o raftsim.Options) string {
	t.Helper()
	o.Seeds = 60
	r := raftsim.Each(o, func(r *raftsim.Report) bool { return len(r.Failures) > 0 })
	require.NotEmpty(t, r.Failures, "a broken state machine passes for a good one")
	return raftsim.Explain(o, r.Failures[0].Seed)
}

// small is a cluster that is quick to explain.
func small(o raftsim.Options) raftsim.Options {
	o.Workload, o.Parallel, o.MaxServers, o.FaultTime = transfers(), 1, 3, 5*time.Second
	return o
}

// A state machine whose state depends on more than the commands is recognised, with the index and the command.
func TestStateMachineThatIsNotDeterministicIsReported(t *testing.T) {
	applied := 0 // shared by all servers, as a package's variable is
	for what, misapply := range map[string]func(b *bank, e raft.Entry){
		"the order of a map": func(b *bank, e raft.Entry) {
			for account := range map[int]bool{0: true, 1: true, 2: true, 3: true} {
				b.accounts[account] -= int(e.Index % 2) // a fee, from whoever comes first
				break
			}
		},
		"a clock": func(b *bank, e raft.Entry) { b.accounts[0] += time.Now().Nanosecond() % 5 },
		"a global variable": func(b *bank, e raft.Entry) {
			applied++
			b.accounts[0] += applied % 3
		},
	} {
		t.Run(what, func(t *testing.T) {
			report := failure(t, small(raftsim.Options{StateMachine: func() raft.StateMachine {
				return &bank{accounts: opening, misapply: misapply}
			}}))
			require.Contains(t, report, "not deterministic")
			require.Regexp(t, `has another state at index \d+ than others had`, report)
			_, narrow, found := strings.Cut(report, "With every command applied alone:")
			require.True(t, found, report)
			narrow, _, _ = strings.Cut(narrow, "\n\n")
			at := regexp.MustCompile(`at index (\d+) than others had`).FindStringSubmatch(narrow)
			require.NotNil(t, at, report)
			require.Contains(t, narrow, "command at index "+at[1], "the command is named")
			require.Contains(t, narrow, "amount")
			require.Equal(t, 1, strings.Count(narrow, "command at index"), "and no other")
		})
	}
}

// A snapshot that forgets something is recognised, even if nobody would have restored it.
func TestSnapshotThatForgetsIsReported(t *testing.T) {
	wl := transfers()
	wl.Read = func(sm raft.StateMachine, _ any) any { return sm.(*hashedBank).accounts }
	report := failure(t, raftsim.Options{Workload: wl, StateMachine: func() raft.StateMachine {
		// StateHash keeps the comparison of states apart from the snapshots, which are what is broken here.
		return &hashedBank{bank{accounts: opening, misview: func(b *balances) { b[3] = 100 }}}
	}})
	require.Regexp(t, "inv (7|19)", report)
}

type hashedBank struct{ bank }

func (b *hashedBank) StateHash() uint64 {
	h := uint64(0)
	for _, v := range b.accounts {
		h = h*1000 + uint64(v)
	}
	return h
}

// A bank that answers what the model does not say is no linearizable one.
func TestWrongAnswersAreReported(t *testing.T) {
	wl := transfers()
	wl.Read = func(sm raft.StateMachine, input any) any {
		if b := sm.(*bank).accounts; b[0]%10 != 0 {
			return b
		}
		return opening // an old view, now and then
	}
	report := failure(t, raftsim.Options{StateMachine: newBank, Workload: wl})
	require.Contains(t, report, "inv 15")
	require.Contains(t, report, "client")
}

// A report names the seed, the least that breaks, how to run just that again, and fits a terminal.
func TestReportFitsATerminal(t *testing.T) {
	o := small(raftsim.Options{MinServers: 3, StateMachine: func() raft.StateMachine {
		return &bank{accounts: opening, misapply: func(b *bank, e raft.Entry) {
			if e.Index > 40 && e.Term > 2 {
				panic("a bug in the state machine")
			}
		}}
	}})
	report := failure(t, o)
	require.Contains(t, report, "a bug in the state machine")
	again := regexp.MustCompile(`FirstSeed (\d+), Seeds 1, and for the short story\n  Only: "(.*)", Events: (\d+)\n`).FindStringSubmatch(report)
	require.NotNil(t, again, report)
	_, story, found := strings.Cut(report, "The end of that story")
	require.True(t, found)
	story, _, _ = strings.Cut(story, "\n\nAgain") // whose lines are to be copied, however long they are
	lines := strings.Split(strings.TrimSpace(story), "\n")
	require.LessOrEqual(t, len(lines), 1+40, "a heading, and the story")
	for _, l := range lines {
		require.LessOrEqual(t, len([]rune(l)), 118, l)
	}
	require.Regexp(t, `n\d +← n\d`, story, "messages")
	require.Contains(t, story, "leader", "roles")

	seed, err := strconv.ParseUint(again[1], 10, 64)
	require.NoError(t, err)
	events, err := strconv.ParseUint(again[3], 10, 64)
	require.NoError(t, err)
	o.Only, o.Events = again[2], events
	require.NoError(t, o.Validate())
	short := raftsim.RunSeed(o, seed, nil)
	require.ErrorContains(t, short.Err, "a bug in the state machine")
	require.Equal(t, events, short.Events)
	o.Events--
	require.NoError(t, raftsim.RunSeed(o, seed, nil).Err, "one event less is not enough")
}

// Options that make no sense are refused with all reasons at once.
func TestOptionsThatMakeNoSense(t *testing.T) {
	err := raftsim.Options{Workload: &raftsim.Workload{Clients: -1}, Seeds: -1, MaxServers: 10, Faults: raftsim.NoFaults | raftsim.Crash,
		MaxFaulty: 11, Only: "gremlins", LiveTime: time.Second, CheckTime: -1}.Validate()
	for _, want := range []string{"belong together", "no operations", "cannot read", "no model", "-1 clients", "-1 seeds", "10 servers",
		"NoFaults", "to converge", "CheckTime", "11 faulty servers at the same time, of at most 10", "gremlins"} {
		require.ErrorContains(t, err, want)
	}
	for want, o := range map[string]raftsim.Options{
		"at least 5 and at most 3 servers":                      {MinServers: 5, MaxServers: 3},
		"at least -1 servers":                                   {MinServers: -1},
		"at least 10 servers":                                   {MinServers: 10},
		"8 faulty servers at the same time, of at most 7":       {MaxFaulty: 8},
		"-1 faulty servers":                                     {MaxFaulty: -1},
		"4 faulty servers at the same time, of at most 3":       {MaxServers: 3, MaxFaulty: 4},
		"unknown faults":                                        {Faults: 1 << 30},
		"StateMachine and Workload belong together":             {StateMachine: newBank},
		"times of -1ns and 0s: want none below zero":            {FaultTime: -1},
		"Parallel -1, CheckEvery 0, CheckTime 0s: want none be": {Parallel: -1},
	} {
		require.ErrorContains(t, o.Validate(), want)
	}
	require.NoError(t, raftsim.Options{}.Validate())
	require.NoError(t, raftsim.Options{MinServers: 5, MaxFaulty: 2}.Validate())
}
