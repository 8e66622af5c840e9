package cluster

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Resources is what a node offers, or what a task reserves of it. What is reserved is set aside for the task when its node is chosen;
// nobody measures what it really uses.
type Resources struct {
	NanoCPUs    int64 `json:"nano_cpus,omitempty"` // 10⁹ are one processor, as in Docker's API
	MemoryBytes int64 `json:"memory_bytes,omitempty"`
}

// OneCPU is one processor in Resources.NanoCPUs.
const OneCPU = 1_000_000_000

// Add returns the sum.
func (r Resources) Add(s Resources) Resources {
	return Resources{NanoCPUs: r.NanoCPUs + s.NanoCPUs, MemoryBytes: r.MemoryBytes + s.MemoryBytes}
}

// Sub returns the difference.
func (r Resources) Sub(s Resources) Resources {
	return Resources{NanoCPUs: r.NanoCPUs - s.NanoCPUs, MemoryBytes: r.MemoryBytes - s.MemoryBytes}
}

// Fits reports that r can be reserved where free is left. What is not reserved fits everywhere, also on a node that has been promised
// more than it has.
func (r Resources) Fits(free Resources) bool {
	return (r.NanoCPUs <= 0 || r.NanoCPUs <= free.NanoCPUs) && (r.MemoryBytes <= 0 || r.MemoryBytes <= free.MemoryBytes)
}

// Constraint restricts the nodes that may run the tasks of a service, as Docker's do.
type Constraint struct {
	Key   string `json:"key"`           // node.id, node.hostname (which is the same here), node.role or node.labels.NAME
	Not   bool   `json:"not,omitempty"` // != instead of ==
	Value string `json:"value"`
}

const labelPrefix = "node.labels."

// labelName is what `node update --label-add` and a constraint accept.
var labelName = regexp.MustCompile(`^[A-Za-z0-9]([-._/A-Za-z0-9]{0,126}[A-Za-z0-9])?$`)

// ParseConstraint reads KEY==VALUE or KEY!=VALUE.
func ParseConstraint(s string) (Constraint, error) {
	var c Constraint
	key, value, ok := strings.Cut(s, "==")
	if !ok {
		key, value, ok = strings.Cut(s, "!=")
		c.Not = true
	}
	c.Key, c.Value = strings.TrimSpace(key), strings.TrimSpace(value)
	if !ok {
		return c, fmt.Errorf("constraint %q: want KEY==VALUE or KEY!=VALUE", s)
	}
	return c, c.validate()
}

// String is the notation that ParseConstraint reads.
func (c Constraint) String() string {
	if c.Not {
		return c.Key + "!=" + c.Value
	}
	return c.Key + "==" + c.Value
}

func (c Constraint) validate() error {
	label, isLabel := strings.CutPrefix(c.Key, labelPrefix)
	switch {
	case c.Value == "" || strings.ContainsAny(c.Value, "=!"):
		return fmt.Errorf("constraint %q: %q is no value to compare with", c, c.Value)
	case isLabel && labelName.MatchString(label):
	case c.Key == "node.id" || c.Key == "node.hostname":
	case c.Key == "node.role":
		if c.Value != string(RoleManager) && c.Value != string(RoleWorker) {
			return fmt.Errorf("constraint %q: a node's role is manager or worker", c)
		}
	default:
		return fmt.Errorf("constraint %q: want node.id, node.hostname, node.role or node.labels.NAME, not %q", c, c.Key)
	}
	return nil
}

// Matches reports that a node fulfils the constraint. A label that the node does not have is the empty text, which != accepts.
func (c Constraint) Matches(n *Node) bool {
	var have string
	switch c.Key {
	case "node.id", "node.hostname":
		have = string(n.ID)
	case "node.role":
		have = string(n.Role)
	default:
		have = n.Labels[strings.TrimPrefix(c.Key, labelPrefix)]
	}
	return strings.EqualFold(have, c.Value) != c.Not // as Docker compares
}

// Allows reports that a node fulfils all constraints of the service.
func (s *ServiceSpec) Allows(n *Node) bool {
	for _, c := range s.Constraints {
		if !c.Matches(n) {
			return false
		}
	}
	return true
}

// Reserved returns what the live tasks have reserved on each node.
func (s *State) Reserved() map[NodeID]Resources {
	reserved := make(map[NodeID]Resources, len(s.Nodes))
	for _, t := range s.Tasks { // order-free: sums
		if t.Live() && t.Node != "" {
			reserved[t.Node] = reserved[t.Node].Add(t.Spec.Reservations)
		}
	}
	return reserved
}

// reservedOn keeps count of what is reserved while a batch of commands is applied: to look at every task for every command would take
// too long.
func (d *draft) reservedOn(id NodeID) Resources {
	if d.reserved == nil {
		d.reserved = d.s.Reserved()
	}
	return d.reserved[id]
}

// moved corrects that count when a task becomes another, or none (nil).
func (d *draft) moved(old, next *Task) {
	if d.reserved == nil {
		return
	}
	if old != nil && old.Live() && old.Node != "" {
		d.reserved[old.Node] = d.reserved[old.Node].Sub(old.Spec.Reservations)
	}
	if next != nil && next.Live() && next.Node != "" {
		d.reserved[next.Node] = d.reserved[next.Node].Add(next.Spec.Reservations)
	}
}

// MaxLabels bounds the labels of one node.
const (
	MaxLabels     = 64
	maxLabelBytes = 256 // of a value
)

// SetLabels is `node update --label-add` and `--label-rm`. A label that is to be removed and is not there is no error.
type SetLabels struct {
	fromOutside
	Node   NodeID            `json:"node"`
	Add    map[string]string `json:"add,omitempty"`
	Remove []string          `json:"remove,omitempty"`
}

func (SetLabels) kind() string { return "set-labels" }

func (op SetLabels) apply(d *draft) Result {
	n, r := d.node(op.Node)
	if n == nil {
		return r
	}
	labels := make(map[string]string, len(n.Labels)+len(op.Add))
	maps.Copy(labels, n.Labels)
	for _, name := range op.Remove {
		delete(labels, name)
	}
	for _, name := range slices.Sorted(maps.Keys(op.Add)) {
		if !labelName.MatchString(name) {
			return refuse(Invalid, "label %q: want letters, digits and the signs - . _ / in between", name)
		}
		if len(op.Add[name]) > maxLabelBytes {
			return refuse(Invalid, "label %s: its value is longer than %d bytes", name, maxLabelBytes)
		}
		labels[name] = op.Add[name]
	}
	if len(labels) > MaxLabels {
		return refuse(Conflict, "node %s would have %d labels; %d are the limit", n.ID, len(labels), MaxLabels)
	}
	if maps.Equal(labels, n.Labels) {
		return done
	}
	next := *n
	next.Labels = labels
	if len(labels) == 0 {
		next.Labels = nil // as a snapshot restores it
	}
	d.putNode(next)
	d.event("node", string(n.ID), "labels changed")
	return done
}
