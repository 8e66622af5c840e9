// Package processes holds tests of whole clusters: member processes with logs on a file system, which talk over TCP and are killed,
// stopped, filled up and cut off from power while clients are at work. It has no code but tests.
package processes
