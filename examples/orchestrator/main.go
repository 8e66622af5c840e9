// Command orchestrator runs containers on a few machines and keeps them running. Its managers agree through the Raft library of this
// repository; the elected leader decides what runs where. Begin with
//
//	go run ./examples/orchestrator demo
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
	"github.com/steadyraft/raft/examples/orchestrator/runtime/process"
	"github.com/steadyraft/raft/examples/orchestrator/table"
)

// Exit codes.
const (
	exitRefused     = 1 // it was refused, or failed
	exitUsage       = 2 // the command line is wrong
	exitUnavailable = 3 // no manager can do it now; nothing has happened
	exitUncertain   = 4 // nobody can tell whether it has happened
)

const (
	defaultData = "orchestrator-data"
	patience    = 10 * time.Second // for the managers to answer
)

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case process.ShimCommand:
			os.Exit(process.ShimMain(os.Args[2:]))
		case webCommand:
			os.Exit(webMain(os.Stderr))
		}
	}
	// The first signal ends what is under way in good order, another one ends it at once. In the first moment they count as one: some
	// senders signal both the process and its group.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, func() { time.AfterFunc(time.Second, stop) })
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run carries out one command line and returns the process's exit code.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	c := &cli{ctx: ctx, in: in, out: out, errOut: errOut, data: defaultData}
	err := c.dispatch(args)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return 0
	}
	fmt.Fprintf(errOut, "orchestrator: %v\n", err)
	var usage *usageError
	var answer *api.Error
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &answer) && answer.Code == api.CodeUnavailable:
		return exitUnavailable
	case errors.As(err, &answer) && answer.Code == api.CodeUncertain:
		fmt.Fprintln(errOut, "Look what has happened before you repeat it.")
		return exitUncertain
	default:
		return exitRefused
	}
}

// cli is one invocation.
type cli struct {
	ctx    context.Context
	in     io.Reader
	out    io.Writer
	errOut io.Writer
	data   string // a node's data directory: where the managers are, and the certificate to show them
	format string
}

// command is one entry of the command line.
type command struct {
	name    string // one word or two
	args    string // after the flags, for people
	summary string
	run     func(*cli, *invocation) error
	flags   func(*cli, *flag.FlagSet) // defines flags; nil if there are none of its own
	lists   bool                      // it prints a list, so it has --format
}

// invocation is what a command gets.
type invocation struct {
	words   []string // the arguments that are no flags
	command []string // what follows "--"
	set     map[string]bool
}

// usageError is a command line that cannot be understood.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

func commands() []command {
	return slices.Concat(
		[]command{demoCommand(), initCommand(), upCommand()}, joinCommands(), serviceCommands(), composeCommands(), nodeCommands(), leaderCommands(), logCommands(), snapshotCommands(), []command{eventsCommand(), statusCommand(), pageCommand(), recoverCommand(), rotateCommand()},
	)
}

func (c *cli) dispatch(args []string) error {
	global := flag.NewFlagSet("orchestrator", flag.ContinueOnError)
	global.SetOutput(io.Discard)
	global.StringVar(&c.data, "data", c.data, "")
	if err := global.Parse(args); errors.Is(err, flag.ErrHelp) {
		c.help()
		return err
	} else if err != nil {
		return usagef("%v; see orchestrator help", err)
	}
	args = global.Args()
	if len(args) == 0 || args[0] == "help" {
		c.help()
		return nil
	}
	for _, cmd := range commands() {
		words := strings.Fields(cmd.name)
		if len(args) >= len(words) && slices.Equal(args[:len(words)], words) {
			return c.invoke(cmd, args[len(words):])
		}
	}
	var like []string
	for _, cmd := range commands() {
		if strings.HasPrefix(cmd.name, args[0]+" ") {
			like = append(like, cmd.name)
		}
	}
	if len(like) > 0 {
		return usagef("%s: want one of: %s", strings.Join(args[:min(2, len(args))], " "), strings.Join(like, ", "))
	}
	return usagef("no command %q; see orchestrator help", args[0])
}

func (c *cli) help() {
	fmt.Fprintf(c.out, "A small container orchestrator on top of the Raft library.\n\nUsage: orchestrator [--data DIR] COMMAND\n\nCommands:\n")
	for _, cmd := range commands() {
		fmt.Fprintf(c.out, "  %-16s %s\n", cmd.name, cmd.summary)
	}
	fmt.Fprintf(c.out, "\n--data names a node's data directory (default %q). Every command explains itself with --help.\n"+
		"Exit codes: 1 refused or failed, 2 wrong usage, 3 no manager can do it now, 4 outcome unknown.\n", defaultData)
}

func (c *cli) invoke(cmd command, args []string) error {
	fs := flag.NewFlagSet(cmd.name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&c.data, "data", c.data, "data directory of a node")
	if cmd.lists {
		fs.StringVar(&c.format, "format", table.Text, "table or json")
	}
	if cmd.flags != nil {
		cmd.flags(c, fs)
	}
	in, err := parse(fs, args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(c.out, "Usage: orchestrator %s\n\n%s\n\nFlags:\n", strings.TrimSpace(cmd.name+" [FLAGS] "+cmd.args), cmd.summary)
		fs.SetOutput(c.out)
		fs.PrintDefaults()
		return err
	} else if err != nil {
		return usagef("%s: %v; see orchestrator %s --help", cmd.name, err, cmd.name)
	}
	if cmd.lists && c.format != table.Text && c.format != table.JSON {
		return usagef("%s: format %q: want %s or %s", cmd.name, c.format, table.Text, table.JSON)
	}
	return cmd.run(c, in)
}

// parse takes flags before, between and behind the other arguments, as Docker does, up to "--".
func parse(fs *flag.FlagSet, args []string) (*invocation, error) {
	in := &invocation{set: make(map[string]bool)}
	for len(args) > 0 {
		if err := fs.Parse(args); err != nil {
			return nil, err
		}
		rest := fs.Args()
		if n := len(args) - len(rest); n > 0 && args[n-1] == "--" {
			in.command = rest
			break
		}
		if len(rest) == 0 {
			break
		}
		in.words = append(in.words, rest[0])
		args = rest[1:]
	}
	fs.Visit(func(f *flag.Flag) { in.set[f.Name] = true })
	return in, nil
}

// exactly checks the number of arguments.
func (in *invocation) exactly(n int, what string) error {
	if len(in.words) != n || in.command != nil {
		return usagef("want %s, got %d arguments", what, len(in.words)+len(in.command))
	}
	return nil
}

// client connects to the cluster whose member's data directory was named.
func (c *cli) client() (*api.Client, error) {
	settings, credentials, err := manager.Load(c.data, nil)
	if errors.Is(err, manager.ErrNoNode) {
		return nil, fmt.Errorf("%w; start one with `orchestrator up`, or name the data directory of a manager with --data", err)
	} else if err != nil {
		return nil, err
	}
	client := api.NewClient(credentials, manager.KnownAPIs(c.data, settings)...)
	client.Refresh = func() bool { // the node may have got another certificate meanwhile, or the cluster another CA
		changed, err := credentials.Refresh(manager.CredentialsDirectory(c.data))
		return err == nil && changed
	}
	return client, nil
}

// with calls f with a client and a bounded context.
func (c *cli) with(f func(context.Context, *api.Client) error) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	return f(ctx, client)
}

func (c *cli) printf(format string, args ...any) { fmt.Fprintf(c.out, format, args...) }

// program is how this program is called, for messages.
func program() string { return filepath.Base(os.Args[0]) }
