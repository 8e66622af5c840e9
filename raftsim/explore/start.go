package explore

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/steadyraft/raft"
)

// begin lets happen what the world says has happened before the exploration begins.
func (x *explorer) begin(s *state) (*state, error) {
	x.begun = nil
	x.lastTerm = 2 * maxTerms
	act := func(a action) error {
		t, err := x.act(s, a)
		if err == nil && t == nil {
			err = errNothing
		}
		if err == nil {
			s, x.begun = t, append(x.begun, a)
		}
		return err
	}
	for _, line := range x.world.Start {
		words := strings.Fields(line)
		err := error(nil)
		switch first := uint8(x.index(raft.NodeID(words[1]))); words[0] {
		case "timeout":
			err = act(action{kind: timeout, server: first})
		case "propose":
			err = act(action{kind: propose, server: first})
		case "snapshot":
			err = act(action{kind: snapshot, server: first})
		case "mislay":
			err = act(action{kind: mislay, server: first})
		case "damage", "forget", "find":
			index, _ := strconv.Atoi(words[2])
			kind := map[string]kind{"damage": damage, "forget": forget, "find": find}[words[0]]
			err = act(action{kind: kind, server: first, arg: uint8(index)})
		case "settle":
			err = x.settle(&s, words[1:], act)
		}
		if err != nil {
			return nil, fmt.Errorf("start of world %q: %s: %w", x.world.Name, line, err)
		}
	}
	s.used = [kinds]uint8{}
	x.lastTerm = raft.Term(x.world.Terms)
	for i := range x.ids {
		x.lastTerm = max(x.lastTerm, s.nodes[i].status.Term+raft.Term(x.world.Terms))
	}
	if x.lastTerm > 2*maxTerms {
		return nil, fmt.Errorf("world %q ends in term %d: want at most %d", x.world.Name, x.lastTerm, 2*maxTerms)
	}
	return s, nil
}

// settle lets the messages among some servers arrive and their writes end until there are none left, and loses all others.
func (x *explorer) settle(s **state, among []string, act func(action) error) error {
	in := func(server int) bool { return slices.Contains(among, string(x.ids[server])) }
	next := func() (action, bool) {
		for i := range x.ids {
			if in(i) && len((*s).nodes[i].queue) > 0 {
				return action{kind: persistOne, server: uint8(i)}, true
			}
		}
		for at, p := range (*s).wire {
			if in(p.from) && in(p.to) {
				return action{kind: deliver, server: uint8(p.to), at: uint8(at)}, true
			}
		}
		return action{kind: lose}, len((*s).wire) > 0
	}
	for a, more := next(); more; a, more = next() {
		if err := act(a); err != nil {
			return err
		}
	}
	return nil
}
