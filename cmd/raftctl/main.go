// Command raftctl looks at the data directory of a stopped server, and gets a cluster going again of which a majority is lost.
//
//	raftctl inspect DIR    everything about the directory: whose it is, log, term and vote, snapshots, damage
//	raftctl verify DIR     only what is wrong, with the file, the offset, what it means and what to do
//	raftctl dump DIR       the entries of the log; -from and -to choose some
//	raftctl keys DIR       which keys its files are encrypted with; needs none of them
//	raftctl recover -cluster ID DIR
//	                       a majority is lost: make this server the only member of a new cluster, after asking
//
// With -format json all but dump print one object, and dump one object a line. All but recover change nothing. An encrypted directory needs
// -key-file FILE, as package storage/keyring reads it. docs/raftctl.md has more.
//
// It ends with 0 if the directory is good, which includes an unfinished write that the next start leaves out; with 1 if something is
// damaged; with 2 if it was called in a wrong way, or told not to go on; with 3 if the directory cannot be read or written, a server
// is running in it, or recover cannot do what was asked.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/steadyraft/raft/storage/keyring"
	"github.com/steadyraft/raft/storage/vfs"
	"github.com/steadyraft/raft/storage/wal"
)

// What the command ends with.
const (
	exitGood       = 0
	exitDamaged    = 1
	exitUsage      = 2
	exitUnreadable = 3
)

// An interrupt ends the process at once: whatever it does may be cut off anywhere.
func main() {
	os.Exit(command(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// call is one call of the command.
type call struct {
	fs     vfs.FS
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	flags  *flag.FlagSet
	json   bool
	dir    string
	keys   []wal.InspectOption
}

const usage = "usage: raftctl inspect, verify, dump, keys or recover, each with its flags and a data directory; -h behind one lists its flags"

func command(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) (code int) {
	c := &call{fs: vfs.OS{}, stdin: stdin, stdout: stdout, stderr: stderr}
	verbs := map[string]func(context.Context, []string) (int, error){
		"inspect": c.inspect, "verify": c.verify, "dump": c.dump, "keys": c.keyUse, "recover": c.recover,
	}
	if len(args) == 0 || verbs[args[0]] == nil {
		c.say("%s\n", usage)
		return exitUsage
	}
	c.flags = flag.NewFlagSet("raftctl "+args[0], flag.ContinueOnError)
	c.flags.SetOutput(stderr)
	code, err := verbs[args[0]](ctx, args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitGood
	case err != nil:
		c.say("raftctl: %v\n", err)
	}
	return code
}

// parse reads the flags and the directory.
func (c *call) parse(args []string) error {
	format := c.flags.String("format", "text", "text or json")
	keyFile := c.flags.String("key-file", "", "the keys of an encrypted directory, one a line: its ID and 64 hexadecimal digits")
	if err := c.flags.Parse(args); err != nil {
		return err
	}
	if *format != "text" && *format != "json" {
		return fmt.Errorf("-format %s: it is text or json", *format)
	}
	if c.flags.NArg() != 1 {
		return fmt.Errorf("want one data directory behind the flags, have %q", c.flags.Args())
	}
	c.json, c.dir = *format == "json", c.flags.Arg(0)
	if *keyFile != "" {
		keys, err := keyring.Open(*keyFile)
		if err != nil {
			return err
		}
		c.keys = append(c.keys, wal.WithKeys(keys))
	}
	return nil
}

func (c *call) inspect(ctx context.Context, args []string) (int, error) {
	return c.report(ctx, args, printReport, func(r *wal.Report) any { return r })
}

func (c *call) verify(ctx context.Context, args []string) (int, error) {
	return c.report(ctx, args, printVerdict, func(r *wal.Report) any {
		return struct {
			Directory string        `json:"directory"`
			Verdict   wal.Verdict   `json:"verdict"`
			Findings  []wal.Finding `json:"findings"`
			Unlisted  int           `json:"unlisted,omitempty"`
		}{r.Directory, r.Verdict, r.Findings, r.Unlisted}
	})
}

// report inspects the directory and prints the result, as text or as what object makes of it.
func (c *call) report(
	ctx context.Context, args []string, text func(io.Writer, *wal.Report) error, object func(*wal.Report) any,
) (int, error) {
	if err := c.parse(args); err != nil {
		return exitUsage, err
	}
	r, err := wal.Inspect(ctx, c.fs, c.dir, c.keys...)
	if err != nil {
		return exitUnreadable, err
	}
	if c.json {
		e := json.NewEncoder(c.stdout)
		e.SetIndent("", "  ")
		err = e.Encode(object(&r))
	} else {
		err = text(c.stdout, &r)
	}
	if err != nil {
		return exitUnreadable, fmt.Errorf("print: %w", err)
	}
	return exitOf(r.Verdict), nil
}

// keyUse prints which keys are needed.
func (c *call) keyUse(_ context.Context, args []string) (int, error) {
	if err := c.parse(args); err != nil {
		return exitUsage, err
	}
	uses, err := wal.KeyUse(c.fs, c.dir)
	if err != nil {
		return exitUnreadable, err
	}
	if c.json {
		e := json.NewEncoder(c.stdout)
		e.SetIndent("", "  ")
		err = e.Encode(struct {
			Directory string        `json:"directory"`
			Keys      []wal.KeyUses `json:"keys"`
		}{c.dir, uses})
	} else {
		err = printKeys(c.stdout, uses)
	}
	if err != nil {
		return exitUnreadable, fmt.Errorf("print: %w", err)
	}
	return exitGood, nil
}

func exitOf(v wal.Verdict) int {
	if v.Worse(wal.Torn) {
		return exitDamaged
	}
	return exitGood
}

// say prints for a human. If nobody can be told, nobody can be told that either.
func (c *call) say(format string, args ...any) { _, _ = fmt.Fprintf(c.stderr, format, args...) }
