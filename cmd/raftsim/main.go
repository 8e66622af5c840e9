// Command raftsim simulates clusters, one for each seed, and says which seeds break a promise; see package raftsim.
//
//	raftsim run -for 30s          as many seeds as fit into 30 seconds, on all cores
//	raftsim run -resume nightly.json  goes on where the last such call, finished or interrupted, has stopped
//	raftsim run -seeds 10000      that many
//	raftsim run -first 10001      from there on; the summary says where to continue
//	raftsim run -seeds 100 -hashes  with the hash of every story, which never changes
//	raftsim run -seed 718 -v      one seed, with its whole story
//	raftsim run -seed 718 -only "faults 3 7" -events 900 -v  as much of it as a report has found to be enough
//	raftsim explore               every state of small worlds; see package explore
//	raftsim mutants               take the library's guards out and see whether its tests notice; see package mutants
//
// It ends with 0 if every promise was kept, with 1 if one was broken, with 2 if it was called in a wrong way.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/steadyraft/raft/raftsim/explore"
)

func main() { os.Exit(command(os.Args[1:], os.Stdout, os.Stderr)) }

const usage = "usage: raftsim run, explore or mutants, each with its flags; -h behind one of them lists those"

func command(args []string, stdout, stderr io.Writer) (code int) {
	if len(args) > 0 && args[0] == "explore" {
		return explore.Main(args[1:])
	}
	if len(args) > 0 && args[0] == "mutants" {
		return (&mutation{stdout: stdout, stderr: stderr}).main(args[1:])
	}
	if len(args) == 0 || args[0] != "run" {
		say(stderr, "%s\n", usage)
		return 2
	}
	r := run{stdout: stdout, stderr: stderr, interrupted: make(chan os.Signal, 1)}
	err := r.parse(args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		say(stderr, "raftsim: %v\n", err)
		return 2
	case r.seed != 0:
		return r.one()
	default:
		return r.many()
	}
}

// say prints for a human. If nobody can be told, nobody can be told that either.
func say(w io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }
