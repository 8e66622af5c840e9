package mutants

import (
	"path"
	"regexp"
	"slices"
	"strings"
)

// stage is one run of some tests of one package, which may notice a mutant.
type stage struct {
	name string   // as the tables call it
	pkg  string   // relative to the root of the module, with "./"
	run  string   // as for "go test -run"; empty: all
	skip string   // as for "go test -skip"
	args []string // for the flags of the package's own tests
	want string   // the test that must have run; empty: some test
	slow bool     // run only when every stage is
}

func (s stage) key() string {
	return strings.Join(append([]string{s.pkg, s.run, s.skip}, s.args...), "\x00")
}

// ownTest is the name of the stage that runs Mutant.Test.
const ownTest = "its test"

// The tests of the root package that take long or look at the source on the disk, which the mutant leaves alone. The first two have stages of their own.
const slowTests = `^(TestSimulation|TestChaos|TestSimulationIsDeterministic|TestClusterOnDiskAndTCP|` +
	`TestCoreIsPure|TestPurityRulesCatchViolations|TestImportsPointInward|TestImportRulesCatchViolations)$`

var (
	fastTests   = stage{name: "fast tests", pkg: ".", skip: slowTests}
	smallWorlds = stage{name: "small worlds", pkg: "./raftsim/explore", run: "^TestSmallWorlds$"}
	largeWorlds = stage{name: "large worlds", pkg: "./raftsim/explore", run: "^TestLargeWorlds$", args: []string{"-large", "5m", "-states", "600000"}, slow: true}
	chaos       = stage{name: "chaos", pkg: ".", run: "^TestChaos$"}
	seeds       = stage{name: "seeds", pkg: "./raftsim", run: "^TestSeeds$", args: []string{"-seeds", "300"}}

	// From 200 seeds on, this test also fails if a rare situation was not reached. That is no broken promise.
	simulation = stage{name: "simulation", pkg: ".", run: "^TestSimulation$", args: []string{"-seeds", "199"}}
)

// coreFiles are those of the root package that the simulators and the explorer run. A test compares the list with that of arch_test.go.
var coreFiles = []string{"raft.go", "election.go", "replication.go", "log.go", "tail.go", "membership.go", "configuration.go", "read.go", "snapshot.go", "gaps.go", "repair.go", "fetch.go", "fence.go",
	"catchup.go", "message.go", "entry.go", "ready.go", "random.go", "corestatus.go", "state.go", "invariants.go", "errors.go"}

// stagesOf lists the broad stages that can notice a change of a file, the cheapest first.
func stagesOf(file string) []stage {
	dir := path.Dir(file)
	own := stage{name: "tests of " + dir, pkg: "./" + dir}
	switch {
	case slices.Contains(coreFiles, file):
		return []stage{fastTests, smallWorlds, simulation, seeds, largeWorlds}
	case dir == ".":
		return []stage{fastTests, chaos}
	case dir == "storage/wal" || dir == "storage/snapshot":
		return []stage{own, seeds}
	case dir == "storage/vfs":
		return []stage{own, {name: "tests of storage/snapshot", pkg: "./storage/snapshot"}, {name: "tests of storage/wal", pkg: "./storage/wal"}, seeds}
	case dir == "storage/memory" || dir == "transport/memory":
		return []stage{own, fastTests}
	case dir == "transport/internal/wire":
		return []stage{own, {name: "tests of transport/tcp", pkg: "./transport/tcp"}, {name: "tests of transport/rpc", pkg: "./transport/rpc"}}
	default:
		return []stage{own}
	}
}

// stages lists what is run against a mutant: its test, then the broad stages.
func (o *Options) stages(m *Mutant) []stage {
	broad := stagesOf
	if o.broad != nil {
		broad = o.broad
	}
	var all []stage
	if m.Test.Name != "" {
		all = append(all, m.Test.stage())
	}
	all = append(all, broad(m.File)...)
	return slices.DeleteFunc(all, func(s stage) bool {
		return s.slow && !o.All || o.Stage != nil && !o.Stage.MatchString(s.name)
	})
}

func (t Test) stage() stage {
	return stage{name: ownTest, pkg: t.Package, run: anchored(t.Name), want: strings.ReplaceAll(t.Name, " ", "_")}
}

// anchored is the pattern of "go test -run" that matches one test, subtest or fuzz seed and no other.
func anchored(name string) string {
	levels := strings.Split(name, "/")
	for i, l := range levels {
		levels[i] = "^" + regexp.QuoteMeta(strings.ReplaceAll(l, " ", "_")) + "$"
	}
	return strings.Join(levels, "/")
}
