package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// screen prints what the demo says: plain lines, and on a terminal colours and a live line below them.
type screen struct {
	out      io.Writer
	terminal bool // there can be a live line
	colours  bool
	began    time.Time

	mu    sync.Mutex
	below string // the live line that is shown
}

func newScreen(out io.Writer) *screen {
	s := &screen{out: out, began: time.Now()}
	if f, ok := out.(*os.File); ok {
		info, err := f.Stat()
		s.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
		s.colours = s.terminal && os.Getenv("NO_COLOR") == "" // see no-color.org
	}
	return s
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

// step begins a part of the demo.
func (s *screen) step(what string) {
	s.line("")
	s.line(s.coloured("1;36", "── "+what))
}

// say prints one line; kind is "ok", "failed", or "" for an explanation.
func (s *screen) say(kind, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	at := fmt.Sprintf("%6.2f s  ", time.Since(s.began).Seconds())
	switch kind {
	case "ok":
		s.line(s.coloured("2", at) + s.coloured("32", "✔ ") + text)
	case "failed":
		s.line(s.coloured("2", at) + s.coloured("31", "✘ ") + text)
	default:
		s.line(strings.TrimRight(strings.Repeat(" ", len(at)+2)+text, " "))
	}
}

func (s *screen) coloured(code, text string) string {
	if !s.colours {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// line prints a line above the live one.
func (s *screen) line(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear, again := "", ""
	if s.below != "" {
		clear, again = "\r\x1b[K", s.below
	}
	fmt.Fprint(s.out, clear+text+"\n"+again)
}

// live replaces the live line; on anything but a terminal there is none. An empty one takes it away.
func (s *screen) live(text string) {
	if !s.terminal {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if text != "" { // without line wrap: a line that is wider than the terminal could not be taken away again
		text = "\x1b[?7l" + s.coloured("7", " "+text+" ") + "\x1b[?7h"
	}
	s.below = text
	fmt.Fprint(s.out, "\r\x1b[K"+text)
}

// measurement is a time that the demo has taken, what it should be at most (0: nothing was promised), and what Docker Swarm takes (0: not
// measured).
type measurement struct {
	what   string
	took   time.Duration
	target time.Duration
	swarm  time.Duration // what Docker Swarm 20.10 takes for it, see README.md; 0: not measured
}

// summary prints the measurements as a table.
func (s *screen) summary(rows []measurement) {
	s.line(fmt.Sprintf("  %-44s %9s   %-7s   %s", "EVENT", "MEASURED", "SWARM", "TARGET"))
	for _, r := range rows {
		target, colour := "", "0"
		if r.target > 0 {
			target, colour = "≤ "+seconds(r.target), "32"
			if r.took > r.target {
				target, colour = target+"  missed", "33"
			}
		}
		swarm := ""
		if r.swarm > 0 {
			swarm = fmt.Sprintf("%.1f s", r.swarm.Seconds())
		}
		text := fmt.Sprintf("  %-44s %9s   %-7s   %s", r.what, seconds(r.took), swarm, target)
		s.line(s.coloured(colour, strings.TrimRight(text, " ")))
	}
	s.line("  Swarm's times: Docker 20.10, three managers, six replicas of nginx, on another machine with two cores.")
}
