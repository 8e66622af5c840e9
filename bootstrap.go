package raft

import (
	"context"
	"errors"
	"fmt"
)

// Bootstrap founds a cluster: it writes the cluster's first configuration into the blank storage of the server id. It is called
// once for every server in conf, each time with the same configuration and with that server's own storage, before that server is
// started for the first time. Servers that join a running cluster are not bootstrapped: start them on a blank storage with
// Config.ClusterID, and add them with [Node.ChangeMembership].
//
// conf needs a ClusterID that no other cluster has, and at least one voter; the order of its servers does not matter. Replica,
// Outgoing, Leaving and Removed must not be set. The storage is opened and closed again.
//
// Errors: [ErrBootstrapped] (also with an [*IdentityError]) if the storage has been used, whatever is wrong with conf, and those
// of Storage.Open and Storage.Write. After an error other than ErrBootstrapped it may be called again.
func Bootstrap(ctx context.Context, st Storage, id NodeID, conf Configuration) (err error) {
	conf = conf.Clone()
	conf.sortServers()
	if err := validateFirst(&conf, id); err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}

	rec, err := st.Open(ctx, Identity{Cluster: conf.ClusterID, Node: id})
	if other := (*IdentityError)(nil); errors.As(err, &other) {
		return fmt.Errorf("bootstrap: %w (%w)", ErrBootstrapped, err)
	}
	if err != nil {
		return fmt.Errorf("bootstrap: open storage: %w", err)
	}
	defer func() {
		if e := st.Close(); e != nil {
			err = errors.Join(err, fmt.Errorf("bootstrap: close storage: %w", e))
		}
	}()
	if !rec.Blank() {
		return fmt.Errorf("bootstrap: %w", ErrBootstrapped)
	}

	// Every server of the cluster gets the same bytes at the same place, so that to Raft they are one entry which a leader of term
	// 1 has replicated everywhere: it counts as any other entry does, and is committed by the first leader's no-op.
	e := newEntry(EntryConfiguration, conf.AppendBinary(nil))
	e.stamp(EntryID{Term: 1, Index: 1})
	if err := st.Write(Batch{HardState: &HardState{CurrentTerm: 1}, Entries: []Entry{e}}); err != nil {
		return fmt.Errorf("bootstrap: write the first configuration: %w", err)
	}
	return nil
}

// validateFirst reports everything that a first configuration must not have, at once.
func validateFirst(conf *Configuration, id NodeID) error {
	problems := []error{conf.Validate()}
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if _, ok := conf.Server(id); !ok {
		add("server %q is not in the configuration", id)
	}
	if len(conf.Removed) > 0 {
		add("a new cluster has removed nobody yet, but Removed names %q", conf.Removed)
	}
	for i := range conf.Servers {
		s := &conf.Servers[i]
		if s.Replica != 0 {
			add("server %q: Replica is learned at first contact, leave it 0", s.ID)
		}
		if s.Outgoing || s.Leaving {
			add("server %q: Outgoing and Leaving belong to a membership change", s.ID)
		}
	}
	return errors.Join(problems...)
}
