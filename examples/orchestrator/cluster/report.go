package cluster

import "reflect"

// News reports whether applying the report to s would change anything. It saves the log an entry for every heartbeat.
func (op Report) News(s *State) bool {
	for _, rt := range op.Tasks {
		t := s.Tasks[rt.ID]
		if t == nil || t.Node != op.Node || !rt.Status.follows(t.TaskStatus) {
			continue
		}
		if !reflect.DeepEqual(rt.Status.bounded(t), t.TaskStatus) {
			return true
		}
	}
	return false
}

// bounded is the status as the state keeps it.
func (s TaskStatus) bounded(t *Task) TaskStatus {
	s.Error = cut(s.Error)
	if len(s.Endpoints) > len(t.Spec.Ports) {
		s.Endpoints = s.Endpoints[:len(t.Spec.Ports)]
	}
	return s
}
