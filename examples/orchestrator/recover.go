package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
)

func recoverCommand() command {
	var yes bool
	return command{
		name: "recover", summary: "When more than half of the managers are lost for ever: go on with this one, which is stopped, alone",
		flags: func(_ *cli, fs *flag.FlagSet) { fs.BoolVar(&yes, "yes", false, "do not ask") },
		run: func(c *cli, in *invocation) error {
			if err := in.exactly(0, "no arguments"); err != nil {
				return err
			}
			return c.recover(yes)
		},
	}
}

// settings returns who the node of the data directory is.
func (c *cli) settings() (manager.Settings, error) {
	s, _, err := manager.Load(c.data, nil)
	return s, err
}

func (c *cli) recover(yes bool) error {
	r, err := manager.PlanRecovery(c.ctx, c.data)
	if errors.Is(err, manager.ErrNoNode) {
		return fmt.Errorf("%w; name the data directory of a manager with --data", err)
	} else if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	c.explain(r)
	if !yes {
		c.printf("\nTo go on, type the new cluster's name, %s: ", r.New)
		line, err := bufio.NewReader(io.LimitReader(c.in, 4096)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read the answer: %w", err)
		}
		if strings.TrimSpace(line) != r.New {
			return errors.New("not confirmed: nothing was changed")
		}
	}
	if err := manager.Recover(c.ctx, r); err != nil {
		return fmt.Errorf("recover: %w; it may be repeated", err)
	}
	c.printf("Manager %s is the only one of cluster %s now. Start it: %s --data %s up\n", r.Node, r.New, program(), c.data)
	c.printf("Then have new managers join, under new names: %s --data %s token --role manager --rotate\n", program(), c.data)
	return nil
}

// explain says what is to be done, and what may be lost.
func (c *cli) explain(r manager.Recovery) {
	c.printf("Manager %s goes on alone: cluster %s becomes %s, with the state that is in %s.\n\n", r.Node, r.Old, r.New, c.data)
	c.printf("What may be lost or change:\n")
	item := func(format string, args ...any) { c.printf("- "+format+"\n", args...) }
	if p := r.Plan; p != nil {
		item("Everything that the managers have decided behind entry %d is lost, also what was acknowledged.", p.Last.Index)
		if p.Last.Index > p.Snapshot.Index {
			item("Entries %d to %d count as decided, though that is not known of all of them: what somebody was told is uncertain may happen.",
				p.Snapshot.Index+1, p.Last.Index)
		}
		if in := p.InForce; in != nil {
			if s, ok := in.Configuration.Server(p.Node); !ok || !in.Configuration.IsVoter(s.ID) {
				item("Manager %s has no vote: those that had one may know more than it.", r.Node)
			}
		}
	} else {
		item("The log was recovered before, and the rest was not: this ends it.")
	}
	if len(r.Lost) > 0 {
		item("%s are removed for ever: they are refused from now on, and their names are not used again. If more than half of the old managers\n"+
			"  can still run, be sure that they do not: they would go on as cluster %s beside this one.", names(r.Lost), r.Old)
	}
	item("Is another manager left? Recover the one that knows more: `raftctl inspect` of the library shows the newest entry of both.")
	item("Workers and what runs there go on: their certificates are good for the new cluster as well.")
	c.printf("\nThere is no way back. Copy the data directory first.\n")
}

func names(ids []cluster.NodeID) string {
	var out []string
	for _, id := range ids {
		out = append(out, string(id))
	}
	return strings.Join(out, ", ")
}
