package raft_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The README's Go code is a part of examples/counter, which is compiled and run by its own test, and its links lead somewhere.
func TestReadmeIsTrue(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	program, err := os.ReadFile("examples/counter/main.go")
	require.NoError(t, err)

	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	require.NotEmpty(t, blocks)
	for _, b := range blocks {
		require.Contains(t, string(program), b[1], "examples/counter/main.go and the README differ")
		require.LessOrEqual(t, strings.Count(b[1], "\n"), 30)
	}
	require.LessOrEqual(t, strings.Count(string(program), "\n"), 60)

	for _, link := range regexp.MustCompile(`\]\(([^)#:]+)\)`).FindAllStringSubmatch(string(readme), -1) {
		_, err := os.Stat(link[1])
		require.NoError(t, err, "the README points to %s", link[1])
	}
}
