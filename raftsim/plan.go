package raftsim

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// plan says what of a seed takes place. Shrinking leaves things out. Faults and calls are drawn from generators of their own, so what
// happens before the first one left out does not change. The zero plan is the whole seed.
type plan struct {
	servers int         // founding servers; 0: as many as were drawn
	calls   int         // the first so many calls of clients; 0: all
	some    bool        // only some faults:
	faults  []faultSpan // these, by number, rising
	heal    int         // milliseconds until everything is healed; 0: as long as was drawn
	alone   bool        // every command is applied alone, and states are compared behind each
}

// faultSpan is the faults [from, to).
type faultSpan struct{ from, to int }

func (p *plan) takesPlace(number int) bool {
	if !p.some {
		return true
	}
	return slices.ContainsFunc(p.faults, func(s faultSpan) bool { return s.from <= number && number < s.to })
}

// firstFaults is the plan with the first n faults.
func firstFaults(n int) plan { return plan{some: true, faults: []faultSpan{{0, n}}} }

// without leaves out the faults [from, to) as well. ok is false if there were none.
func (p plan) without(from, to int) (less plan, ok bool) {
	less = p
	less.faults = nil
	for _, s := range p.faults {
		ok = ok || s.from < to && from < s.to
		for _, part := range []faultSpan{{s.from, min(s.to, from)}, {max(s.from, to), s.to}} {
			if part.from < part.to {
				less.faults = append(less.faults, part)
			}
		}
	}
	return less, ok
}

// String writes the plan as Options.Only reads it. The whole seed is "".
func (p plan) String() string {
	var parts []string
	if p.servers > 0 {
		parts = append(parts, fmt.Sprintf("servers %d", p.servers))
	}
	if p.some {
		spans := []string{"faults"}
		for _, s := range p.faults {
			if s.to == s.from+1 {
				spans = append(spans, strconv.Itoa(s.from))
			} else if s.from < s.to {
				spans = append(spans, fmt.Sprintf("%d-%d", s.from, s.to-1))
			}
		}
		if len(spans) == 1 {
			spans = append(spans, "none")
		}
		parts = append(parts, strings.Join(spans, " "))
	}
	if p.calls > 0 {
		parts = append(parts, fmt.Sprintf("calls %d", p.calls))
	}
	if p.heal > 0 {
		parts = append(parts, fmt.Sprintf("heal %d ms", p.heal))
	}
	if p.alone {
		parts = append(parts, "alone")
	}
	return strings.Join(parts, ", ")
}

// parsePlan reads what String has written.
func parsePlan(text string) (p plan, err error) {
	for part := range strings.SplitSeq(text, ",") {
		words := strings.Fields(part)
		switch {
		case len(words) == 0:
			continue
		case words[0] == "servers" && len(words) == 2:
			p.servers, err = positive(words[1])
		case words[0] == "calls" && len(words) == 2:
			p.calls, err = positive(words[1])
		case words[0] == "heal" && len(words) == 3 && words[2] == "ms":
			p.heal, err = positive(words[1])
		case words[0] == "alone" && len(words) == 1:
			p.alone = true
		case words[0] == "faults" && len(words) > 1:
			p.some = true
			p.faults, err = parseSpans(words[1:])
		default:
			err = fmt.Errorf("cannot read %q: want parts like \"servers 3\", \"faults 7 12-14\", \"faults none\", \"calls 20\", \"heal 900 ms\" or \"alone\", separated by commas", part)
		}
		if err != nil {
			return plan{}, err
		}
	}
	if p.servers > maxServers {
		return plan{}, fmt.Errorf("%d servers: want at most %d", p.servers, maxServers)
	}
	return p, nil
}

func positive(word string) (int, error) {
	n, err := strconv.Atoi(word)
	if err == nil && n < 1 {
		err = errors.New("want at least 1")
	}
	return n, err
}

func parseSpans(words []string) (spans []faultSpan, err error) {
	if slices.Equal(words, []string{"none"}) {
		return nil, nil
	}
	for _, word := range words {
		first, last, isRange := strings.Cut(word, "-")
		if !isRange {
			last = first
		}
		from, err1 := strconv.Atoi(first)
		to, err2 := strconv.Atoi(last)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		if from < 0 || to < from {
			return nil, fmt.Errorf("faults %q: want a number or a range of numbers", word)
		}
		spans = append(spans, faultSpan{from, to + 1})
	}
	return spans, nil
}
