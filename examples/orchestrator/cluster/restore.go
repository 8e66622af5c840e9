package cluster

import (
	"fmt"
	"strconv"
)

func (op RestoreServices) apply(d *draft) Result {
	if len(op.Services) > MaxServices {
		return refuse(Invalid, "the snapshot has %d services, a cluster at most %d", len(op.Services), MaxServices)
	}
	names, ports := map[string]bool{}, map[uint16]string{}
	for _, s := range op.Services {
		if err := s.Spec.Validate(); err != nil {
			return refuse(Invalid, "service %q: %v", s.Spec.Name, err)
		}
		if names[s.Spec.Name] {
			return refuse(Invalid, "the snapshot has two services %q", s.Spec.Name)
		}
		names[s.Spec.Name] = true
		for _, p := range s.Spec.Task.Ports {
			if other := ports[p.Published]; other != "" {
				return refuse(Invalid, "the services %q and %q of the snapshot publish the same port %d", other, s.Spec.Name, p.Published)
			}
			ports[p.Published] = s.Spec.Name
		}
	}
	old := d.s.SortedServices()
	for _, sv := range old {
		if !sv.Removing && !op.Force {
			return refuse(Conflict, "the cluster is in use: it has a service %q; restore into a new cluster, or by force, which removes the services that there are", sv.Spec.Name)
		}
	}
	if len(old)+len(op.Services) > MaxServices { // those that are being removed count until they are gone
		return refuse(Conflict, "with the services that are being removed there would be more than %d; wait until they are gone", MaxServices)
	}
	for _, sv := range old {
		if next := *sv; !sv.Removing {
			next.Removing, next.UpdatedAt = true, d.at
			d.putService(next)
			d.event("service", sv.Spec.Name, "removed, to restore a snapshot")
		}
	}
	for i, s := range op.Services {
		id := ServiceID("s" + strconv.FormatUint(uint64(d.index), 36) + "_" + strconv.Itoa(i+1)) // as CreateService does it
		sv := Service{ID: id, Spec: s.Spec, Version: 1, Stopped: s.Stopped, CreatedAt: d.at, UpdatedAt: d.at, ChangedAt: d.index}
		sv.growSlots()
		d.putService(sv)
		d.event("service", sv.Spec.Name, fmt.Sprintf("restored with %d replicas", sv.Spec.Replicas))
	}
	return done
}
