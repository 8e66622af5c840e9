package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// maxProgressSlots is up to how many replicas a terminal shows each of them, as with Docker.
const maxProgressSlots = 20

// maxRefusals is after how many refusals the command line does not wait for one more, if there are not fewer nodes than that.
const maxRefusals = 3

// progress shows how a service becomes what was asked for: one line whenever the sum changes, and on a terminal one line for each slot
// below it, which are drawn again and again.
type progress struct {
	out      io.Writer
	terminal bool
	drawn    int    // lines that are to be drawn over
	last     string // what was shown
}

func newProgress(out io.Writer) *progress {
	return &progress{out: out, terminal: newScreen(out).terminal}
}

// show prints what is new, and reports whether anything was.
func (p *progress) show(sum string, slots []string) bool {
	text := sum
	if p.terminal && len(slots) <= maxProgressSlots {
		text = strings.Join(append([]string{sum}, slots...), "\n")
	}
	if text == p.last {
		return false
	}
	p.last = text
	if !p.terminal {
		fmt.Fprintln(p.out, text)
		return true
	}
	var b strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", p.drawn)
	}
	lines := strings.Split(text, "\n")
	for _, line := range lines { // without line wrap, or there would be more lines than were counted
		b.WriteString("\r\x1b[K\x1b[?7l" + line + "\x1b[?7h\n")
	}
	b.WriteString("\x1b[J") // there may have been more slots
	p.drawn = len(lines)
	fmt.Fprint(p.out, b.String())
	return true
}

// look is how far a service has come.
type look struct {
	sum      string
	slots    []string
	problem  string // of a task; ""
	done     bool
	updating bool  // an update is under way
	paused   error // the last update has been paused, and why
	over     error // a task has ended for good, and not well
}

// lookAt compares a service with its tasks.
func lookAt(s *cluster.State, id cluster.ServiceID) look {
	sv := s.Services[id]
	if sv == nil || sv.Removing || sv.Stopped {
		return look{done: true}
	}
	running := serving(s, id)
	paused := sv.Update != nil && (sv.Update.State == cluster.UpdatePaused || sv.Update.State == cluster.RollbackPaused)
	if paused { // then those of the old version are as good as it gets
		running = inService(s, id)
	}
	l := look{sum: fmt.Sprintf("%s: %d of %d tasks are running", sv.Spec.Name, running, sv.Spec.Replicas)}
	newest := make([]*cluster.Task, sv.Spec.Replicas)
	live, current, finished, refused := 0, 0, 0, 0
	for _, t := range s.TasksOf(id) {
		if t.Live() {
			live++
		}
		if t.Slot <= sv.Spec.Replicas {
			newest[t.Slot-1] = t
		}
		if t.State == cluster.TaskRejected && t.SpecVersion == sv.Version {
			refused++
		}
		if t.Error != "" {
			l.problem = fmt.Sprintf("%s: %s", onNode(t), t.Error)
		}
	}
	for i, t := range newest {
		text := "waits"
		if t != nil {
			text = string(t.State)
			if t.State == cluster.TaskNew {
				text = "pending"
			}
			if t.Health != cluster.HealthNone {
				text += " (" + string(t.Health) + ")"
			}
			switch {
			case t.State == cluster.TaskComplete:
				finished++
			case t.State == cluster.TaskFailed && t.Desired == cluster.DesiredRunning:
				l.over = fmt.Errorf("service %s: %s has failed, and its restart policy leaves it at that: %s", sv.Spec.Name, onNode(t), t.Error)
			}
			if t.SpecVersion != sv.Version {
				text += ", to be updated"
			} else {
				current++
			}
			if t.Error != "" {
				text += ": " + t.Error
			}
		}
		l.slots = append(l.slots, fmt.Sprintf("  %d/%d: %s", i+1, sv.Spec.Replicas, text))
	}
	if running == 0 && refused > min(len(s.Nodes), maxRefusals) { // as far as it was tried, no node can even begin to run it
		l.over = fmt.Errorf("service %s: its nodes refuse to run it (%s); the managers go on trying, `%s service ps %s` shows how",
			sv.Spec.Name, l.problem, program(), sv.Spec.Name)
	}
	l.done = running+finished == sv.Spec.Replicas && live == running
	if finished > 0 {
		l.sum += fmt.Sprintf(", %d complete", finished)
	}
	switch {
	case sv.Update.UnderWay():
		what := "updated"
		if sv.Update.State == cluster.RollbackStarted {
			what = "rolled back"
		}
		l.sum = fmt.Sprintf("%s: %d of %d tasks are %s, %d are running", sv.Spec.Name, current, sv.Spec.Replicas, what, inService(s, id))
		l.done, l.updating = false, true
	case paused:
		what := "the update is "
		if sv.Update.State == cluster.RollbackPaused {
			what = "the rollback is "
		}
		l.paused = fmt.Errorf("service %s: %s%s; correct it with `%s service update`, or go back with `%s service rollback`",
			sv.Spec.Name, what, sv.Update.Message, program(), program())
	}
	return l
}

func onNode(t *cluster.Task) string {
	if t.Node == "" {
		return t.Name()
	}
	return fmt.Sprintf("%s on %s", t.Name(), t.Node)
}

// patienceWith is how long nothing may happen to a service before the command line gives up waiting for it.
func patienceWith(sv *cluster.Service) time.Duration {
	limit := convergeTimeout
	if sv == nil {
		return limit
	}
	if check := sv.Spec.Task.HealthCheck; check != nil { // a task serves when the first check has passed
		limit += check.StartPeriod + cmp.Or(check.Interval, defaultCheck) + cmp.Or(check.Timeout, defaultCheck)
	}
	if sv.Update.UnderWay() {
		cfg := sv.Rollout()
		limit += cfg.Delay + cfg.Monitor
	}
	return limit
}

// defaultCheck is Docker's interval between health checks, and its time limit of one.
const defaultCheck = 30 * time.Second

// converge waits until a service runs as it was asked to, and shows how that goes. It gives up when nothing has happened for a while; the
// managers do not. version is the one that an update has to arrive at, so that a pause and a rollback are the end of it; 0: none.
func (c *cli) converge(client *api.Client, id cluster.ServiceID, version uint64) error {
	p := newProgress(c.out)
	var now look
	name, began, rolledBack := "", time.Now(), ""
	for {
		ctx, cancel := context.WithTimeout(c.ctx, patience)
		v, err := client.State(ctx)
		cancel()
		if err != nil {
			return err
		}
		now = lookAt(v.State, id)
		sv := v.State.Services[id]
		if sv != nil {
			name = sv.Spec.Name
			if version != 0 && sv.Version != version && sv.Update != nil {
				rolledBack = cmp.Or(sv.Update.Message, rolledBack, "it has been updated by somebody else meanwhile")
			}
		}
		if now.sum != "" && p.show(now.sum, now.slots) {
			began = time.Now()
		}
		switch {
		case version != 0 && now.paused != nil:
			return now.paused
		case now.over != nil && !now.updating:
			return now.over
		case now.done && rolledBack != "":
			return fmt.Errorf("service %s: %s", name, rolledBack)
		case now.done:
			return nil
		case time.Since(began) > patienceWith(sv):
			why := ""
			if now.problem != "" {
				why = " (" + now.problem + ")"
			}
			return fmt.Errorf("%s, and nothing has changed for %v%s; the managers go on trying, `%s service ps %s` shows how",
				now.sum, patienceWith(sv), why, program(), name)
		}
		select {
		case <-c.ctx.Done():
			return context.Cause(c.ctx)
		case <-time.After(lookInterval):
		}
	}
}

var errPatience = errors.New("it takes longer than expected")

// await looks at the state again and again until it is good. errPatience: it was not in time.
func await(ctx context.Context, client *api.Client, timeout time.Duration, good func(api.View) bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errPatience)
	defer cancel()
	for {
		v, err := client.State(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		case good(v):
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(lookInterval):
		}
	}
}
