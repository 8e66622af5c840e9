package explore

import (
	"fmt"
	"slices"
	"strings"

	"github.com/steadyraft/raft"
)

// violation describes what an action after a state breaks, with the way to it.
func (x *explorer) violation(id uint32, last action, broken error) *Violation {
	way := append(x.way(id), last)
	return &Violation{Broken: broken, Depth: len(way), Script: x.script(way, broken.Error())}
}

// way lists the actions that led to a state.
func (x *explorer) way(id uint32) []action {
	var way []action
	for ; id != 0; id = x.origins[id].parent {
		way = append(way, x.origins[id].action)
	}
	slices.Reverse(way)
	return way
}

// script writes a way through the world in the language of testdata in the package raft. Before the last step, which may be the one that
// breaks something, it says how every server stands, so that a script which no longer goes this way is noticed.
func (x *explorer) script(way []action, about string) string {
	var b strings.Builder
	x.scriptBeginning(&b, about)
	s, err := x.founded()
	way = slices.Concat(x.begun, way)
	for i := 0; err == nil && i < len(way); i++ {
		if i == len(way)-1 {
			x.expectations(&b, s)
			b.WriteString(x.line(s, way[i]))
			break
		}
		b.WriteString(x.line(s, way[i]))
		s, err = x.advance(s, way[i])
		if err == nil && s == nil {
			err = errNothing
		}
		if err == nil {
			x.drop(&b, s)
		}
	}
	if err != nil {
		fmt.Fprintf(&b, "# The way cannot be repeated: %v\n", err)
	}
	b.WriteString("show\n")
	return b.String()
}

func (x *explorer) scriptBeginning(b *strings.Builder, about string) {
	w := &x.world
	fmt.Fprintf(b, "# Found by exploring the world %q (%s):\n# %s\ncluster", w.Name, w, strings.ReplaceAll(about, "\n", "\n# "))
	for i, id := range x.ids {
		if i == w.Voters {
			b.WriteString(" |")
		}
		fmt.Fprintf(b, " %s", id)
	}
	preVote := 0
	if w.PreVote {
		preVote = 1
	}
	fmt.Fprintf(b, "\nknob pre-vote=%d check-quorum=0 trailing=1\n", preVote)
	if first := w.firstTerm(); first > 1 {
		for _, id := range x.ids {
			terms := w.Logs[id]
			if len(terms) == 0 {
				terms = []raft.Term{1}
			}
			fmt.Fprintf(b, "log %s %s term %d\n", id, strings.Trim(fmt.Sprint(terms), "[]"), first)
		}
	}
	b.WriteString("start\n")
	if w.SlowDisks {
		b.WriteString("slow")
		for _, id := range x.ids {
			fmt.Fprintf(b, " %s", id)
		}
		b.WriteString("\n")
	}
}

// drop loses the messages that can have no effect any more.
func (x *explorer) drop(b *strings.Builder, s *state) {
	for at := 0; at < len(s.wire); {
		if !x.dead(s, s.wire[at]) {
			at++
			continue
		}
		fmt.Fprintf(b, "drop %s\n", messageWords(s, at))
		s.wire = slices.Delete(slices.Clone(s.wire), at, at+1)
	}
}

// expectations says how every server stands.
func (x *explorer) expectations(b *strings.Builder, s *state) {
	for i, id := range x.ids {
		n := s.nodes[i]
		st := &n.status
		var log []string
		if n.base.Index > 0 {
			log = append(log, fmt.Sprintf("(%v)", n.base))
		}
		for _, m := range n.log {
			log = append(log, fmt.Sprint(m.term))
		}
		fmt.Fprintf(b, "expect %s %v term=%d vote=%s commit=%d durable=%d log=%s configuration=%d\n", id, st.Role, st.Term, st.VotedFor,
			st.CommitIndex, st.DurableIndex, strings.Join(log, ","), st.ConfigurationIndex)
	}
}

// line writes one action.
func (x *explorer) line(s *state, a action) string {
	id := x.ids[a.server]
	n := s.nodes[a.server]
	switch a.kind {
	case deliver, duplicate:
		if p := s.wire[a.at]; p.transfer != 0 {
			return fmt.Sprintf("carry %s %d %d\n", x.ids[p.from], p.transfer, p.m.Incarnation)
		}
		verb := "deliver"
		if a.kind == duplicate {
			verb = "repeat"
		}
		return fmt.Sprintf("%s %s\n", verb, messageWords(s, int(a.at)))
	case breakOff:
		return fmt.Sprintf("break %s %d\n", id, s.wire[a.at].transfer)
	case lose:
		if s.wire[a.at].transfer != 0 {
			return "" // it is not carried, that is all
		}
		return fmt.Sprintf("drop %s\n", messageWords(s, int(a.at)))
	case timeout, heartbeat:
		return fmt.Sprintf("timeout %s\n", id)
	case persistOne:
		return fmt.Sprintf("persist %s\n", id)
	case persistAll:
		return fmt.Sprintf("persist %s %d\n", id, len(n.queue))
	case crash, damage, forget, mislay:
		lines := fmt.Sprintf("crash %s\n", id)
		switch a.kind {
		case damage:
			lines += fmt.Sprintf("damage %s %d\n", id, a.arg)
		case forget:
			lines += fmt.Sprintf("forget %s %d\n", id, a.arg)
		case mislay:
			lines += fmt.Sprintf("mislay %s\n", id)
		}
		lines += fmt.Sprintf("start %s\n", id)
		if x.world.SlowDisks {
			lines += fmt.Sprintf("slow %s\n", id)
		}
		return lines
	case find:
		return fmt.Sprintf("find %s %d\n", id, a.arg)
	case repair:
		return fmt.Sprintf("repair %s\n", id)
	case propose:
		return fmt.Sprintf("propose %s %d.%d\n", id, n.status.Term, n.status.LastIndex+1)
	case read:
		return fmt.Sprintf("read %s %d\n", id, a.arg)
	case change:
		return fmt.Sprintf("change %s %s\n", id, changeWords(x.world.Changes[a.arg]))
	case snapshot:
		return fmt.Sprintf("snapshot %s %d\n", id, n.status.AppliedIndex)
	case transfer:
		return fmt.Sprintf("transfer %s %s\n", id, x.ids[a.arg])
	case resign:
		return fmt.Sprintf("resign %s\n", id)
	}
	return ""
}

// messageWords names a message by its place among those of its kind on the same way.
func messageWords(s *state, at int) string {
	p, nth := s.wire[at], 1
	for _, q := range s.wire[:at] {
		if q.from == p.from && q.to == p.to && q.kind == p.kind {
			nth++
		}
	}
	return fmt.Sprintf("%s->%s %s %d", p.m.From, p.m.To, p.kind, nth)
}
