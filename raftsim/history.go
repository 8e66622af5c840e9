package raftsim

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/anishathalye/porcupine"

	"github.com/steadyraft/raft"
)

// linearizable is inv 15: what all clients saw can be explained by one order of their operations that respects time. A time-out of
// the checker is a failure, since it would hide the hard cases, which are the interesting ones.
//
// Operations whose outcome a client does not know are decided by the log: those that were committed took effect at some time after
// their invocation, with the answer that the state machine gave; the others never did. That is stricter than to let the checker
// choose, and a great deal faster.
func (w *world) linearizable() {
	wl := w.opts.Workload
	parts := map[string][]porcupine.Operation{}
	moments := map[string][]moment{} // beside parts
	for _, k := range w.clients.calls {
		op := porcupine.Operation{ClientId: k.client.number, Input: k.op.Input, Output: k.output, Call: int64(k.invoked), Return: int64(k.ended)}
		if k.outcome != answered {
			e := w.model.at(k.id.Index)
			result, applied := w.model.results[k.id.Index]
			if k.op.Command == nil || e == nil || e.ID() != k.id || !applied {
				w.hitIf(k.id != (raft.EntryID{}), unknownTookNone)
				continue
			}
			op.Output, op.Return = result, math.MaxInt64
			w.hit(unknownTookEffect)
		}
		key := wl.Model.Key(k.op.Input)
		parts[key] = append(parts[key], op)
		moments[key] = append(moments[key], k.moment())
	}
	m := porcupine.Model{
		Init: wl.Model.Init,
		Step: func(state, input, output any) (bool, any) {
			want, next := wl.Model.Apply(state, input)
			return wl.Model.EqualOutput(output, want), next
		},
		Equal: wl.Model.Equal,
	}
	keys := make([]string, 0, len(parts))
	for key := range parts {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		if wl.Model.explains(parts[key], moments[key]) {
			continue
		}
		switch porcupine.CheckOperationsTimeout(m, parts[key], w.opts.CheckTime) {
		case porcupine.Illegal:
			w.broken("inv 15: the history is not linearizable:\n%s", w.history(parts[key]))
			return
		case porcupine.Unknown:
			w.broken("inv 15: linearizability of %d operations was not decided within %v; use fewer clients or a Model.Key", len(parts[key]), w.opts.CheckTime)
			return
		}
	}
}

// moment is when an operation took effect, in the order of the log: with an entry, or, for a read, behind the last one that it has seen.
type moment struct {
	at     raft.Index
	isRead bool
}

func (k *call) moment() moment {
	if k.op.Command == nil {
		return moment{k.readAt, true}
	}
	return moment{at: k.id.Index}
}

func (m moment) compare(o moment) int {
	if m.at == o.at && m.isRead != o.isRead {
		if m.isRead {
			return 1
		}
		return -1
	}
	return cmp.Compare(m.at, o.at)
}

// explains reports whether the order of the log explains a history: whether each operation, taken in that order, gets the answer that the model
// gives, and none comes behind one that began after it had ended. That order is then the proof that the history is linearizable. If it
// explains nothing, another one may, which the checker has to look for: over many operations whose outcome no client knows, that can
// take for ever.
func (m *Model) explains(ops []porcupine.Operation, moments []moment) bool {
	order := make([]int, len(ops))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(moments[a].compare(moments[b]), cmp.Compare(ops[a].Call, ops[b].Call), a-b)
	})
	state, begun := m.Init(), int64(math.MinInt64)
	for _, i := range order {
		op := &ops[i]
		if op.Return < begun {
			return false
		}
		begun = max(begun, op.Call)
		want, next := m.Apply(state, op.Input)
		if !m.EqualOutput(op.Output, want) {
			return false
		}
		state = next
	}
	return true
}

// history prints the last operations, by their invocation.
func (w *world) history(ops []porcupine.Operation) string {
	slices.SortFunc(ops, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	const show = 30
	var b strings.Builder
	if n := len(ops) - show; n > 0 {
		fmt.Fprintf(&b, "  … %d operations before\n", n)
	}
	for _, op := range ops[max(0, len(ops)-show):] {
		end := fmt.Sprintf("%9.4fs", float64(op.Return)/1e9)
		if op.Return == math.MaxInt64 {
			end = "   unknown "
		}
		fmt.Fprintf(&b, "  %9.4fs to %s client %d %s\n", float64(op.Call)/1e9, end, op.ClientId, w.opts.Workload.Model.Describe(op.Input, op.Output))
	}
	return b.String()
}

// appliedEntry notes what the state machine answered first; every other server must answer the same, or its clients would see
// something else than the model.
func (w *world) appliedEntry(v *server, e *raft.Entry, result any) {
	if e.Type != raft.EntryCommand {
		return
	}
	known, ok := w.model.results[e.Index]
	if !ok {
		w.model.results[e.Index] = result
		return
	}
	if !w.opts.Workload.Model.EqualOutput(result, known) {
		w.broken("inv 7: %s answers %.80v to the command at index %d, another server answered %.80v; the command: %.80q. "+
			"The state machine is not deterministic", v.id, result, e.Index, known, e.Data)
	}
}
