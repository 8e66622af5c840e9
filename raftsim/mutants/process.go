package mutants

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The bounds of one process. A test gets as long as it took on the unchanged tree, several times over, but at least so long.
const (
	buildTime    = 10 * time.Minute
	cleanTime    = 15 * time.Minute
	slower       = 10
	leastTest    = 20 * time.Second
	leastStage   = time.Minute // raftsim takes up to 20 s to shrink a failure
	afterTimeout = 10 * time.Second
)

// ending is how a run of tests ended.
type ending int

const (
	notRun ending = iota
	passed
	failed // a test failed or the process panicked
	hung   // it did not end in time
	broken // it ended in a way that says nothing about the mutant
)

// result is what became of one run of tests.
type result struct {
	ending ending
	test   string // that failed
	how    string // it failed, in a line
	took   time.Duration
	out    string
}

func (r result) noticed() bool { return r.ending == failed || r.ending == hung }

// allErrors makes the compiler report all errors of the module. A build is only reused by those with the same flags.
const allErrors = "-gcflags=./...=-e"

// build compiles the tests of a package, if list is not empty with that overlay.
func (r *runner) build(ctx context.Context, pkg, list, into string) (bin string, err error) {
	bin = filepath.Join(into, strings.NewReplacer("/", "_", ".", "root").Replace(strings.TrimPrefix(pkg, "./"))+".test")
	// Symbols and debug information take half of the time to link. Vet is no part of the question.
	args := []string{"test", "-c", "-p", "1", "-vet=off", allErrors, "-ldflags=-s -w", "-o", bin}
	if list != "" {
		args = append(args, "-overlay", list)
	}
	out, err := r.process(ctx, buildTime, r.o.Root, nil, "go", append(args, pkg)...)
	if err != nil {
		return "", fmt.Errorf("%s does not compile: %w\n%s", pkg, err, out)
	}
	return bin, nil
}

// test runs the tests of a stage, with the mutant of that number; 0: none.
func (r *runner) test(ctx context.Context, bin string, number int, s stage, limit time.Duration) result {
	args := []string{"-test.v", "-test.failfast", "-test.paniconexit0", "-test.timeout", limit.String()}
	if s.run != "" {
		args = append(args, "-test.run", s.run)
	}
	if s.skip != "" {
		args = append(args, "-test.skip", s.skip)
	}
	start := time.Now()
	out, err := r.process(ctx, limit+afterTimeout, filepath.Join(r.o.Root, filepath.FromSlash(s.pkg)), []string{chosenVariable + "=" + strconv.Itoa(number)},
		bin, append(args, s.args...)...)
	res := judge(out, err, s.want)
	res.took = time.Since(start)
	if ctx.Err() != nil {
		res.ending = broken
	}
	return res
}

// process runs a command in dir, with env besides the environment of all, and returns what it printed.
func (r *runner) process(ctx context.Context, limit time.Duration, dir string, env []string, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errTooLong)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	confine(cmd)
	var out clipped
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &out
	cmd.Env = slices.Concat(cmd.Environ(), r.o.env(), env)
	cmd.WaitDelay = afterTimeout
	err := cmd.Run()
	sweep(cmd)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return out.String(), err
}

var errTooLong = errors.New("it took too long and was killed")

var (
	failLine    = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)
	runLine     = regexp.MustCompile(`(?m)^=== RUN\s+(\S+)`)
	panicLine   = regexp.MustCompile(`(?m)^(?:panic|fatal error|goleak): .*`)
	requireLine = regexp.MustCompile(`(?m)^\s+Error:\s+`)
	sayLine     = regexp.MustCompile(`(?m)^\s+Messages:\s+(.*)`)
	messageLine = regexp.MustCompile(`(?m)^\s+\S+_test\.go:\d+: `)
)

// judge reads the output of a test binary. A failure counts only if a test or the runtime says so: a process that was killed from
// outside, or that never began, proves nothing.
func judge(out string, err error, want string) result {
	res := result{ending: broken, out: out}
	var exit *exec.ExitError
	switch {
	case err == nil && !ran(out, want):
		res.how = "no test of this name has run"
	case err == nil:
		res.ending = passed
	case errors.Is(err, errTooLong), strings.Contains(out, "panic: test timed out after"):
		res.ending, res.how = hung, "it hangs"
		res.test = lastMatch(runLine, out)
	case errors.As(err, &exit) && (failLine.MatchString(out) || panicLine.MatchString(out)):
		res.ending = failed
		res.test, res.how = failure(out)
	default:
		res.how = err.Error()
	}
	return res
}

// ran reports whether a test has run, and was not skipped.
func ran(out, want string) bool {
	if want == "" {
		return strings.Contains(out, "--- PASS: ")
	}
	return regexp.MustCompile(`(?m)^\s*--- PASS: ` + regexp.QuoteMeta(want) + ` `).MatchString(out)
}

// failure names the first test that failed, with its subtest, and the line that says how.
func failure(out string) (test, how string) {
	block := out
	if at := failLine.FindStringSubmatchIndex(out); at != nil {
		test = out[at[2]:at[3]]
		for _, f := range failLine.FindAllStringSubmatch(out[at[1]:], -1) {
			if strings.HasPrefix(f[1], test+"/") {
				test = f[1]
			}
		}
		block = out[:at[0]]
		if i := strings.LastIndex(block, "=== RUN   "+test+"\n"); i >= 0 {
			block = block[i:]
		}
	} else {
		test = lastMatch(runLine, out)
	}
	if p := panicLine.FindString(out); p != "" {
		return test, oneLine(p)
	}
	if at := requireLine.FindStringIndex(block); at != nil {
		how = oneLine(block[at[1]:])
		if said := sayLine.FindStringSubmatch(block[at[1]:]); said != nil {
			how += ": " + said[1]
		}
		return test, how
	}
	// What was only logged looks the same. The last line before the verdict is the one that ended the test.
	if all := messageLine.FindAllStringIndex(block, -1); all != nil {
		return test, oneLine(block[all[len(all)-1][1]:])
	}
	return test, ""
}

func lastMatch(e *regexp.Regexp, s string) string {
	all := e.FindAllStringSubmatch(s, -1)
	if len(all) == 0 {
		return ""
	}
	return all[len(all)-1][1]
}

// oneLine is the first line of a message, with the second if it only announces that.
func oneLine(s string) string {
	first, rest, _ := strings.Cut(s, "\n")
	second, _, _ := strings.Cut(rest, "\n")
	first = strings.TrimSpace(first)
	if strings.HasSuffix(first, ":") {
		first += " " + strings.TrimSpace(second)
	}
	if runes := []rune(first); len(runes) > 160 {
		first = string(runes[:160]) + " …"
	}
	return first
}

// clipped keeps the beginning and the end of what is written to it.
type clipped struct {
	head, tail bytes.Buffer
	lost       int
}

const keep = 512 << 10

func (c *clipped) Write(p []byte) (int, error) {
	n := len(p)
	room := min(n, keep-c.head.Len())
	c.head.Write(p[:room])
	c.tail.Write(p[room:])
	if over := c.tail.Len() - keep; over > keep { // not with every write
		c.lost += over
		c.tail.Next(over)
	}
	return n, nil
}

func (c *clipped) String() string {
	if c.lost == 0 {
		return c.head.String() + c.tail.String()
	}
	return fmt.Sprintf("%s\n[%d bytes left out]\n%s", c.head.String(), c.lost, c.tail.String())
}
