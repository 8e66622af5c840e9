package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/steadyraft/raft/raftsim/mutants"
)

// mutation is one call of "raftsim mutants".
type mutation struct {
	stdout, stderr io.Writer
	choice         mutants.Choice
	opts           mutants.Options
	list, wounds   bool
}

func (c *mutation) main(args []string) int {
	if err := c.parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		say(c.stderr, "raftsim: %v\n", err)
		return 2
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	ok, err := c.run(ctx)
	switch {
	case errors.As(err, new(wrongPlace)):
		say(c.stderr, "raftsim: %v\n", err)
		return 2
	case err != nil:
		say(c.stderr, "raftsim: %v\n", err)
		return 1
	case !ok:
		return 1
	default:
		return 0
	}
}

func (c *mutation) parse(args []string) error {
	f := flag.NewFlagSet("raftsim mutants", flag.ContinueOnError)
	f.SetOutput(c.stderr)
	names := f.String("run", "", "only the mutants whose names match this expression; with -wounds: the wounds")
	f.StringVar(&c.choice.File, "file", "", "only the mutants of this file, relative to the root of the module")
	f.BoolVar(&c.list, "list", false, "list the mutants, or with -wounds the wounds, and run none")
	f.BoolVar(&c.opts.All, "all", false, "go on behind the first stage that notices, also with the slow ones, and say who else does")
	stage := f.String("stage", "", "with -all: only the stages whose names match this expression, and how they notice")
	f.BoolVar(&c.wounds, "wounds", false, "show that the test of each old wound fails with its mutants")
	f.IntVar(&c.opts.Parallel, "j", runtime.NumCPU(), "mutants at the same time")
	f.BoolVar(&c.opts.Alone, "alone", false, "a build for every mutant, not one with all in which a variable of the environment chooses")
	f.IntVar(&c.opts.Verify, "verify", 0, "run so many mutants both ways, which must say the same; others from day to day")
	f.DurationVar(&c.opts.Limit, "for", 0, "start no mutant later than that, and say what was not run; 0: run all")
	f.IntVar(&c.choice.Sample, "sample", 0, "only about so many mutants")
	f.StringVar(&c.choice.Rotate, "rotate", "", "with -sample or -equivalents: which; consecutive numbers cover them all")
	f.IntVar(&c.choice.Equivalents, "equivalents", 0, "only so many of the mutants that nothing can notice, which run every test; 0: all")
	f.StringVar(&c.choice.Changed, "changed", "", "only the mutants whose file, or whose test's files, differ from this revision of git; and the sample")
	if err := f.Parse(args); err != nil {
		return err
	}
	var problems []error
	expression := func(flag, text string) (e *regexp.Regexp) {
		if text != "" {
			var err error
			if e, err = regexp.Compile(text); err != nil {
				problems = append(problems, fmt.Errorf("-%s: %w", flag, err))
			}
		}
		return e
	}
	c.choice.Names, c.opts.Stage = expression("run", *names), expression("stage", *stage)
	refuse := func(when bool, format string, args ...any) {
		if when {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	refuse(f.NArg() > 0, "unexpected arguments %q", f.Args())
	refuse(c.opts.Parallel < 1, "-j %d: want at least one", c.opts.Parallel)
	refuse(c.opts.Limit < 0, "-for %v: want a time that is not negative", c.opts.Limit)
	refuse(c.choice.Sample < 0, "-sample %d: want a number that is not negative", c.choice.Sample)
	refuse(c.choice.Equivalents < 0, "-equivalents %d: want a number that is not negative", c.choice.Equivalents)
	refuse(c.choice.Equivalents != 0 && (c.choice.Sample != 0 || c.choice.Changed != ""), "-equivalents does not go with -sample or -changed, which choose among all")
	refuse(c.choice.Rotate != "" && c.choice.Sample == 0 && c.choice.Equivalents == 0, "-rotate says which sample: it wants -sample or -equivalents")
	refuse(c.opts.Verify < 0, "-verify %d: want a number that is not negative", c.opts.Verify)
	refuse(c.opts.Verify > 0 && c.opts.Alone, "-verify compares with a build for every mutant, and with -alone there is no other")
	refuse(*stage != "" && !c.opts.All, "-stage says which stages of all: it wants -all")
	refuse(c.wounds && (c.choice.File != "" || c.choice.Sample != 0 || c.choice.Changed != "" || c.choice.Equivalents != 0 || c.opts.All || c.opts.Verify != 0),
		"-wounds goes with -run, -list, -alone, -j and -for only")
	if len(problems) == 0 && !c.wounds && (*names != "" || c.choice.File != "") {
		refuse(len(c.named()) == 0, "there is no such mutant; -list lists them")
	}
	return errors.Join(problems...)
}

// named is the part of the table that -run and -file leave.
func (c *mutation) named() []mutants.Mutant {
	rows, _ := mutants.Choice{Names: c.choice.Names, File: c.choice.File}.Choose(context.Background(), "", mutants.Table()) // asks nobody
	return rows
}

func (c *mutation) run(ctx context.Context) (ok bool, err error) {
	if c.wounds {
		return c.runWounds(ctx)
	}
	if c.list && c.choice.Sample == 0 && c.choice.Changed == "" && c.choice.Equivalents == 0 {
		c.listMutants(c.named())
		return true, nil
	}
	if err := c.findCheckout(); err != nil {
		return false, err
	}
	rows, err := c.choice.Choose(ctx, c.opts.Root, mutants.Table())
	if err != nil {
		return false, err
	}
	if c.list {
		c.listMutants(rows)
		return true, nil
	}
	report, err := mutants.Run(ctx, rows, c.opts)
	if len(report.Outcomes) > 0 || err == nil {
		say(c.stdout, "%s", report.String())
	}
	return report.OK(), err
}

func (c *mutation) listMutants(rows []mutants.Mutant) {
	for _, m := range rows {
		what := m.Test.Name
		if m.Equivalent != "" {
			what = "equivalent: " + m.Equivalent
		}
		say(c.stdout, "%s: %s (%s) %s\n", m.File, m.Name, m.Rule, what)
	}
	say(c.stdout, "%d mutants\n", len(rows))
}

func (c *mutation) runWounds(ctx context.Context) (ok bool, err error) {
	wounds := slices.DeleteFunc(mutants.Wounds(), func(w mutants.Wound) bool {
		return c.choice.Names != nil && !c.choice.Names.MatchString(w.Name)
	})
	if c.list {
		for _, w := range wounds {
			say(c.stdout, "%s: %s\n  shown by %s, opened by %s\n", w.Name, w.Story, w.Test.Name, strings.Join(w.Mutants, "; "))
		}
		say(c.stdout, "%d wounds\n", len(wounds))
		return true, nil
	}
	if err := c.findCheckout(); err != nil {
		return false, err
	}
	report, err := mutants.CheckWounds(ctx, wounds, mutants.Table(), c.opts)
	if len(report.Rows) > 0 || err == nil {
		say(c.stdout, "%s", report.String())
	}
	return report.OK(), err
}

// findCheckout looks for what mutants are made of.
func (c *mutation) findCheckout() error {
	if _, err := exec.LookPath("go"); err != nil {
		return wrongPlace{fmt.Errorf("the go command builds the mutants: %w", err)}
	}
	root, err := mutants.Root(".")
	if err != nil {
		return wrongPlace{err}
	}
	c.opts.Root = root
	c.opts.Progress = func(line string) { say(c.stderr, "%s\n", line) }
	return nil
}

// wrongPlace is a call that cannot work where it was made.
type wrongPlace struct{ error }
