// Package mutants takes the library's guards out, one at a time, and sees whether its tests notice.
//
// A test that passes says little as long as nobody has seen it fail. Each [Mutant] is one change of the source that makes one rule of
// the protocol, of the log or of the server's ordering wrong; the sources themselves stay as they are, because the change is handed to
// "go test -overlay". A mutant that the tests do not notice is a hole in the tests, or it changes nothing that anybody can observe, and
// then [Mutant.Equivalent] argues why.
//
// All mutants are in one build, each as a copy of the functions that it changes, and a variable of the environment chooses one when a
// test runs; see switch.go. The few that cannot be chosen so, because they change more than bodies of functions, have builds of their
// own. [Options.Verify] runs some both ways and compares.
package mutants

// Mutant is one guard taken out.
type Mutant struct {
	Name string // what is wrong then, in a few words; unique
	Rule string // what it breaks and where that is written: "§5.4.1", "SAFETY inv 12"
	File string // relative to the root of the module
	Old  string // occurs exactly once in File
	New  string // what stands there instead

	// Test is the one test that is meant to notice: it runs first. Empty: only the broad stages look.
	Test Test

	// Equivalent argues why nothing can notice. Empty: something must.
	Equivalent string
}

// Test names one test, subtest or fuzz seed.
type Test struct {
	Package string // relative to the root of the module: ".", "./storage/wal"
	Name    string // as for "go test -run": "TestVote", "TestScripts/figure-8". Anchored by the runner
}

// Table lists all mutants, in the order of the files of the library.
func Table() []Mutant {
	var all []Mutant
	for _, part := range [][]Mutant{election, replication, membership, reads, snapshots, repairs, storage, recoveries, encryption, stores,
		node, calls, transport, wounds} {
		all = append(all, part...)
	}
	return all
}

// Wound is a way in which other systems were hurt, and what keeps this one from it.
type Wound struct {
	Name    string   // short and unique, with hyphens: "vote-forgotten-within-its-term"
	Story   string   // what went wrong, in a sentence; with a source if there is one
	Test    Test     // shows that it does not happen here
	Mutants []string // names in Table; with any of them, Test fails
}
