package cluster

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A snapshot is restored as a whole or not at all.
func TestRestoreIsAllOrNothing(t *testing.T) {
	l := newLog(t)
	service := func(name string, port uint16) RestoredService {
		task := TaskSpec{Command: []string{"run"}, Restart: RestartPolicy{Condition: RestartAlways}, Ports: []Port{{Published: port, Target: 80}}}
		return RestoredService{Spec: ServiceSpec{Name: name, Replicas: 2, Task: task}}
	}
	require.Equal(t, OK, l.do(CreateService{Spec: service("old", 80).Spec}).Code)
	bad := service("bad", 90)
	bad.Spec.Task.Restart.Condition = "sometimes"
	for name, test := range map[string]struct {
		op   RestoreServices
		code Code
	}{
		"in use":    {RestoreServices{Services: []RestoredService{service("a", 81)}}, Conflict},
		"unsound":   {RestoreServices{Force: true, Services: []RestoredService{service("a", 81), bad}}, Invalid},
		"same name": {RestoreServices{Force: true, Services: []RestoredService{service("a", 81), service("a", 82)}}, Invalid},
		"same port": {RestoreServices{Force: true, Services: []RestoredService{service("a", 81), service("b", 81)}}, Invalid},
		"too many":  {RestoreServices{Force: true, Services: make([]RestoredService, MaxServices+1)}, Invalid},
		"no room":   {RestoreServices{Force: true, Services: many(service("a", 0))}, Conflict},
	} {
		before := l.m.View()
		require.Equal(t, test.code, l.do(test.op).Code, name)
		require.Equal(t, before.Services, l.m.View().Services, name)
		require.Equal(t, before.Events, l.m.View().Events, name)
	}
	stopped := service("b", 82)
	stopped.Stopped = true
	require.Equal(t, OK, l.do(RestoreServices{Force: true, Services: []RestoredService{service("old", 80), stopped}}).Code)
	s := l.m.View()
	require.Len(t, s.Services, 3)
	require.NoError(t, s.check())
	require.True(t, s.ServiceByName("b").Stopped)
	require.Len(t, s.ServiceByName("old").Slots, 2)
}

// many is as many services as a cluster may have.
func many(like RestoredService) (services []RestoredService) {
	for i := range MaxServices {
		s := like
		s.Spec.Name, s.Spec.Task.Ports = like.Spec.Name+string(rune('a'+i/676))+string(rune('a'+i/26%26))+string(rune('a'+i%26)), nil
		services = append(services, s)
	}
	return services
}
