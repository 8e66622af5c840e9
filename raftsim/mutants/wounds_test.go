package mutants

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var updateWounds = flag.Bool("update-wounds", false, "write docs/old-wounds.md")

// The documentation says what Wounds says. go test -run TestWoundsDocument ./raftsim/mutants -update-wounds writes it.
func TestWoundsDocument(t *testing.T) {
	file := filepath.Join(checkout(t), "docs", "old-wounds.md")
	if *updateWounds {
		require.NoError(t, os.WriteFile(file, []byte(woundsDocument()), 0o644))
	}
	have, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, woundsDocument(), string(have), "write it again: -update-wounds")
}

func woundsDocument() string {
	var b strings.Builder
	b.WriteString(`# Old wounds

Ways in which other systems were hurt, and the test that shows that it does not happen here. Each of these tests has been seen to fail
with the guards on its right taken out (rows of ` + "`raftsim/mutants`" + `). Scripts are ` + "`testdata/*.txt`" + `, to be read as stories;
their first lines tell what happened elsewhere and what must happen here. "§" is the extended Raft paper; the numbers of issues and
pull requests are those of the public tracker of the system that is named. This file is made from ` + "`Wounds`" + ` in ` + "`raftsim/mutants/wounds.go`" + `.

`)
	part := ""
	for _, w := range Wounds() {
		area, name, _ := strings.Cut(w.Name, "-")
		if area != part {
			part = area
			fmt.Fprintf(&b, "\n## %s\n\n| wound | test | guards |\n|---|---|---|\n", areas[area])
		}
		test := strings.TrimPrefix(w.Test.Name, "TestScripts/")
		if test != w.Test.Name {
			test = "[" + test + "](../testdata/" + test + ".txt)"
		} else {
			test = "`" + test + "`"
			if w.Test.Package != "." {
				test += " in `" + strings.TrimPrefix(w.Test.Package, "./") + "`"
			}
		}
		fmt.Fprintf(&b, "| **%s** %s | %s | %s |\n", words.Replace(name), w.Story, test, strings.Join(w.Mutants, "; "))
	}
	b.WriteString(`
Left out, because the library does not have what they are about: a lease measured from the wrong moment, or kept while leadership is
transferred (no lease reads); sessions whose eviction or de-duplication differs between a snapshot and the log (no sessions).
`)
	return strings.ReplaceAll(b.String(), "\n\n\n", "\n\n")
}

var words = strings.NewReplacer("pre-vote", "pre-vote", "no-op", "no-op", "timeout-now", "TimeoutNow", "-", " ")

var areas = map[string]string{
	"election": "Election", "log": "Log and commit", "membership": "Membership", "reads": "Reads", "snapshots": "Snapshots",
	"storage": "Storage", "lifecycle": "Lifecycle",
}
