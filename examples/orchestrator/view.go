package main

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/compose"
	"github.com/steadyraft/raft/examples/orchestrator/table"
)

// findService finds a service by its name or ID.
func findService(v api.View, name string) (*cluster.Service, error) {
	if sv := v.State.ServiceByName(name); sv != nil {
		return sv, nil
	}
	if sv := v.State.Services[cluster.ServiceID(name)]; sv != nil && !sv.Removing {
		return sv, nil
	}
	return nil, fmt.Errorf("no service %q; `%s service ls` shows those that there are", name, program())
}

// serving counts the tasks of a service that serve, of its present version and number of replicas.
func serving(s *cluster.State, id cluster.ServiceID) (n int) {
	sv := s.Services[id]
	for _, t := range s.TasksOf(id) {
		if node := s.Nodes[t.Node]; t.Serving() && node != nil && node.Status != cluster.NodeDown &&
			t.SpecVersion == sv.Version && t.Slot <= sv.Spec.Replicas {
			n++
		}
	}
	return n
}

// inService counts the slots of a service that serve, with a task of whatever version.
func inService(s *cluster.State, id cluster.ServiceID) int {
	slots := map[int]bool{}
	for _, t := range s.TasksOf(id) {
		if node := s.Nodes[t.Node]; t.Serving() && node != nil && node.Status != cluster.NodeDown && t.Slot <= s.Services[id].Spec.Replicas {
			slots[t.Slot] = true
		}
	}
	return len(slots)
}

func image(t cluster.TaskSpec) string {
	if t.Image != "" || len(t.Command) == 0 {
		return t.Image
	}
	return filepath.Base(t.Command[0])
}

func ports(t cluster.TaskSpec) string {
	var out []string
	for _, p := range t.Ports {
		out = append(out, p.String())
	}
	return strings.Join(out, ", ")
}

type serviceRow struct {
	*cluster.Service
	running int
}

var serviceColumns = []table.Column[serviceRow]{
	{Name: "ID", Cell: func(r serviceRow) string { return string(r.ID) }},
	{Name: "NAME", Cell: func(r serviceRow) string { return r.Spec.Name }},
	{Name: "MODE", Cell: func(serviceRow) string { return "replicated" }},
	{Name: "REPLICAS", Cell: func(r serviceRow) string {
		text := fmt.Sprintf("%d/%d", r.running, r.Spec.Replicas)
		switch {
		case r.Removing:
			text += " (removing)"
		case r.Stopped:
			text += " (stopped)"
		}
		return text
	}},
	{Name: "IMAGE", Cell: func(r serviceRow) string { return image(r.Spec.Task) }},
	{Name: "PORTS", Cell: func(r serviceRow) string { return ports(r.Spec.Task) }},
}

func serviceRows(s *cluster.State) (rows []serviceRow) {
	for _, sv := range s.SortedServices() {
		rows = append(rows, serviceRow{sv, inService(s, sv.ID)})
	}
	slices.SortStableFunc(rows, func(a, b serviceRow) int { return strings.Compare(a.Spec.Name, b.Spec.Name) })
	return rows
}

type taskRow struct {
	*cluster.Task
	newest bool // of its slot
	now    time.Time
}

// taskRows lists tasks as Docker does: by slot, the newest first, its predecessors below it.
func taskRows(tasks []*cluster.Task, now time.Time) []taskRow {
	tasks = slices.Clone(tasks)
	slices.SortFunc(tasks, func(a, b *cluster.Task) int {
		return cmp.Or(strings.Compare(a.ServiceName, b.ServiceName), cmp.Compare(a.Slot, b.Slot), cmp.Compare(b.Generation, a.Generation))
	})
	var rows []taskRow
	for i, t := range tasks {
		newest := i == 0 || tasks[i-1].Service != t.Service || tasks[i-1].Slot != t.Slot
		rows = append(rows, taskRow{t, newest, now})
	}
	return rows
}

// newest leaves out the predecessors.
func newest(rows []taskRow) []taskRow {
	return slices.DeleteFunc(rows, func(r taskRow) bool { return !r.newest })
}

var taskColumns = []table.Column[taskRow]{
	{Name: "ID", Cell: func(r taskRow) string { return string(r.ID) }},
	{Name: "NAME", Cell: func(r taskRow) string {
		if !r.newest {
			return ` \_ ` + r.Name()
		}
		return r.Name()
	}},
	{Name: "IMAGE", Cell: func(r taskRow) string { return image(r.Spec) }},
	{Name: "NODE", Cell: func(r taskRow) string { return string(r.Node) }},
	{Name: "DESIRED STATE", Cell: func(r taskRow) string { return title(string(r.Desired)) }},
	{Name: "CURRENT STATE", Cell: currentState},
	{Name: "ERROR", Cell: func(r taskRow) string { return r.Error }},
	{Name: "PORTS", Cell: endpoints},
}

func currentState(r taskRow) string {
	state := title(string(r.State))
	if r.State == cluster.TaskNew {
		state = "Pending" // as Docker calls what waits for a node
	}
	text := state + " " + ago(r.now, r.UpdatedAt)
	if r.Attempts > 0 && r.Live() {
		text += fmt.Sprintf(" (restart %d)", r.Attempts)
	}
	if r.Health != cluster.HealthNone {
		text += fmt.Sprintf(" (%s)", r.Health)
	}
	return text
}

func endpoints(r taskRow) string {
	var out []string
	for _, e := range r.Endpoints {
		out = append(out, fmt.Sprintf("%s->%d", e.Address, e.Target))
	}
	return strings.Join(out, ", ")
}

// composeColumns are those of `docker compose ps`, and the node.
var composeColumns = []table.Column[taskRow]{
	{Name: "NAME", Cell: func(r taskRow) string { return r.Name() }},
	{Name: "IMAGE", Cell: func(r taskRow) string { return image(r.Spec) }},
	{Name: "SERVICE", Cell: func(r taskRow) string { return r.ServiceName }},
	{Name: "NODE", Cell: func(r taskRow) string { return string(r.Node) }},
	{Name: "CREATED", Cell: func(r taskRow) string { return ago(r.now, r.CreatedAt) }},
	{Name: "STATUS", Cell: currentState},
	{Name: "PORTS", Cell: func(r taskRow) string { return ports(r.Spec) }},
}

type nodeRow struct {
	*cluster.Node
	leader  bool
	standby bool
	tasks   int
}

var nodeColumns = []table.Column[nodeRow]{
	{Name: "ID", Cell: func(r nodeRow) string { return string(r.ID) }},
	{Name: "ADDRESS", Cell: func(r nodeRow) string { return r.Address }},
	{Name: "STATUS", Cell: func(r nodeRow) string { return title(string(r.Status)) }},
	{Name: "AVAILABILITY", Cell: func(r nodeRow) string { return title(string(r.Availability)) }},
	{Name: "MANAGER STATUS", Cell: func(r nodeRow) string {
		switch {
		case r.Role != cluster.RoleManager:
			return ""
		case r.leader:
			return "Leader"
		case r.Status == cluster.NodeDown:
			return "Unreachable"
		case r.Status == cluster.NodeUnknown:
			return "Unknown"
		case r.standby:
			return "Standby"
		default:
			return "Reachable"
		}
	}},
	{Name: "TASKS", Cell: func(r nodeRow) string { return fmt.Sprint(r.tasks) }},
}

func nodeRows(v api.View) (rows []nodeRow) {
	for _, n := range v.State.SortedNodes() {
		standby := slices.ContainsFunc(v.Members, func(m api.Member) bool { return m.ID == n.ID && m.Standby })
		rows = append(rows, nodeRow{n, n.ID == v.Leader, standby, len(v.State.TasksOn(n.ID))})
	}
	return rows
}

// managerRow is a manager and how it is, or why it does not say so.
type managerRow struct {
	api.Member
	status api.Status
	err    error
}

var leaderColumns = []table.Column[managerRow]{
	{Name: "MANAGER", Cell: func(r managerRow) string { return string(r.ID) }},
	{Name: "ADDRESS", Cell: func(r managerRow) string { return r.API }},
	{Name: "STATUS", Cell: managerStatus},
	{Name: "TERM", Cell: orDash(func(s api.Status) any { return s.Term })},
}

var statusColumns = slices.Concat(leaderColumns, []table.Column[managerRow]{
	{Name: "COMMITTED", Cell: orDash(func(s api.Status) any { return s.Commit })},
	{Name: "APPLIED", Cell: orDash(func(s api.Status) any { return s.Applied })},
	{Name: "CAN COMMIT", Cell: orDash(func(s api.Status) any {
		if s.CanCommit {
			return "yes"
		}
		return "no: " + s.WhyNot
	})},
})

func managerStatus(r managerRow) string {
	switch {
	case r.err != nil:
		return "Unreachable"
	case r.status.State != "running":
		return title(r.status.State)
	case r.Standby:
		return "Standby"
	default:
		return title(r.status.Role)
	}
}

func orDash(value func(api.Status) any) func(managerRow) string {
	return func(r managerRow) string {
		if r.err != nil {
			return "-"
		}
		return fmt.Sprint(value(r.status))
	}
}

func title(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// ago says how long ago something was, in one unit, as Docker does.
func ago(now, then time.Time) string {
	d := now.Sub(then)
	unit := func(n int, name string) string {
		if n == 1 {
			return fmt.Sprintf("1 %s ago", name)
		}
		return fmt.Sprintf("%d %ss ago", n, name)
	}
	switch {
	case then.IsZero():
		return ""
	case d < time.Second: // also of a node whose clock is ahead of ours
		return "less than a second ago"
	case d < time.Minute:
		return unit(int(d/time.Second), "second")
	case d < time.Hour:
		return unit(int(d/time.Minute), "minute")
	case d < 48*time.Hour:
		return unit(int(d/time.Hour), "hour")
	default:
		return unit(int(d/(24*time.Hour)), "day")
	}
}

// projectServices returns the services of a Compose project, by name.
func projectServices(s *cluster.State, project string) (found []*cluster.Service) {
	for _, sv := range s.SortedServices() {
		if sv.Spec.Labels[compose.ProjectLabel] == project && !sv.Removing {
			found = append(found, sv)
		}
	}
	slices.SortFunc(found, func(a, b *cluster.Service) int { return strings.Compare(a.Spec.Name, b.Spec.Name) })
	return found
}
