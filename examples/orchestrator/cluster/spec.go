package cluster

import (
	"errors"
	"fmt"
	"regexp"
)

// serviceName is a DNS label, so that a name can become part of a host name, of a file name and of a task's name.
var serviceName = regexp.MustCompile(`^[a-z0-9]([-_a-z0-9]{0,61}[a-z0-9])?$`)

// Validate returns all problems of a specification, joined; nil if it can be run. Whether a node's runtime can run an image is
// not decided here but by that node.
func (s *ServiceSpec) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	if !serviceName.MatchString(s.Name) {
		bad("name %q: want at most 63 lower-case letters, digits, '-' and '_', the first and last of them no sign", s.Name)
	}
	if s.Replicas < 0 || s.Replicas > MaxReplicas {
		bad("replicas %d: want 0 to %d", s.Replicas, MaxReplicas)
	}
	t := &s.Task
	if t.Image == "" && len(t.Command) == 0 {
		bad("neither an image nor a command to run")
	}
	if t.StopGrace < 0 {
		bad("stop grace period %v is negative", t.StopGrace)
	}
	switch t.Restart.Condition {
	case RestartNo, RestartAlways, RestartOnFailure, RestartUnlessStopped:
	default:
		bad("restart condition %q: want no, always, on-failure or unless-stopped", t.Restart.Condition)
	}
	if n := t.Restart.MaxAttempts; n < 0 || n > 0 && t.Restart.Condition != RestartOnFailure {
		bad("restart attempts %d: want a positive number, and the condition on-failure", n)
	}
	published := map[uint16]bool{}
	for _, p := range t.Ports {
		if p.Published == 0 || p.Target == 0 {
			bad("port %v: both numbers must be set", p)
		}
		if published[p.Published] {
			bad("port %v: published twice", p)
		}
		published[p.Published] = true
	}
	if r := t.Reservations; r.NanoCPUs < 0 || r.MemoryBytes < 0 {
		bad("reservations must not be negative")
	}
	for _, c := range s.Constraints {
		errs = append(errs, c.validate())
	}
	errs = append(errs,
		s.Update.validate("update", FailurePause, FailureContinue, FailureRollback),
		s.Rollback.validate("rollback", FailurePause, FailureContinue))
	if s.Autoscale != nil {
		errs = append(errs, s.Autoscale.validate())
	}
	if t.HealthCheck != nil {
		errs = append(errs, t.HealthCheck.validate(t.Ports))
	}
	return errors.Join(errs...)
}

func (h *HealthCheck) validate(ports []Port) error {
	var errs []error
	switch h.Kind {
	case HealthExec:
		if len(h.Command) == 0 {
			errs = append(errs, errors.New("health check: no command"))
		}
	case HealthHTTP, HealthTCP:
		known := h.Port == 0 && len(ports) > 0
		for _, p := range ports {
			known = known || p.Target == h.Port
		}
		if !known {
			errs = append(errs, fmt.Errorf("health check: port %d is no target port of the service", h.Port))
		}
	default:
		errs = append(errs, fmt.Errorf("health check: kind %q: want exec, http or tcp", h.Kind))
	}
	if h.Interval < 0 || h.Timeout < 0 || h.StartPeriod < 0 || h.Retries < 0 {
		errs = append(errs, errors.New("health check: interval, timeout, start period and retries must not be negative"))
	}
	return errors.Join(errs...)
}
