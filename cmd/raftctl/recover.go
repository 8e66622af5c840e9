package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/wal"
)

var errNotConfirmed = errors.New("not confirmed: nothing was changed")

func (c *call) recover(ctx context.Context, args []string) (int, error) {
	cluster := c.flags.String("cluster", "", "the ID of the new cluster; required, and never used before")
	address := c.flags.String("address", "", "where the server is reached in the new cluster; default: where it was")
	yes := c.flags.Bool("yes", false, "do not ask")
	if err := c.parse(args); err != nil {
		return exitUsage, err
	}
	if *cluster == "" {
		return exitUsage, errors.New("-cluster is missing: the new cluster needs an ID of its own")
	}
	if c.json && !*yes {
		return exitUsage, errors.New("-format json asks nobody: it goes with -yes")
	}
	plan, err := wal.PlanRecovery(ctx, c.fs, c.dir, *cluster, *address, c.keys...)
	if err != nil {
		return recoverExit(err), err
	}
	if !c.json {
		if err := printPlan(c.stdout, &plan); err != nil {
			return exitUnreadable, fmt.Errorf("print: %w", err)
		}
	}
	if !*yes {
		if err := c.confirm(*cluster); err != nil {
			return exitUsage, err
		}
	}
	if err := wal.Recover(ctx, c.fs, plan, c.keys...); err != nil {
		return recoverExit(err), err
	}
	if c.json {
		err = json.NewEncoder(c.stdout).Encode(plan)
	} else {
		_, err = fmt.Fprintf(c.stdout, "done: %s is now the directory of the only member of cluster %q\n", plan.Directory, *cluster)
	}
	if err != nil {
		return exitUnreadable, fmt.Errorf("done, but nobody could be told: %w", err)
	}
	return exitGood, nil
}

func recoverExit(err error) int {
	if errors.Is(err, wal.ErrDamaged) {
		return exitDamaged
	}
	return exitUnreadable
}

// confirm asks for the new cluster's ID: who types it has read it.
func (c *call) confirm(cluster string) error {
	if _, err := fmt.Fprint(c.stdout, "\nTo go on, type the new cluster's ID: "); err != nil {
		return fmt.Errorf("ask: %w", err)
	}
	line, err := bufio.NewReader(io.LimitReader(c.stdin, 4096)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the answer: %w: nothing was changed", err)
	}
	if strings.TrimSpace(line) != cluster {
		return errNotConfirmed
	}
	return nil
}

// printPlan says what is to be done, and what may be lost.
func printPlan(w io.Writer, p *wal.Recovery) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "Server %q in %s becomes the only member of a new cluster, with the log that it has.\n\n", p.Node, p.Directory)
	fmt.Fprintf(&b, "  now    cluster %q, term %d, last entry %s\n", p.Cluster, p.HardState.CurrentTerm, entryID(p.Last))
	if p.InForce != nil {
		fmt.Fprintf(&b, "         configuration of entry %d: %s\n", p.InForce.Index, members(&p.InForce.Configuration))
	}
	fmt.Fprintf(&b, "  then   cluster %q, term %d, last entry %s\n", p.Entry.Configuration.ClusterID, p.Entry.Term, p.Entry)
	fmt.Fprintf(&b, "         which is the configuration: %s\n\n", members(&p.Entry.Configuration))

	fmt.Fprintf(&b, "What may be lost or change:\n")
	item := func(format string, args ...any) { fmt.Fprintf(&b, "- "+format+"\n", args...) }
	if p.GivenUp.Index > 0 {
		item("Entry %d cannot be read: it and all behind it, up to %v, are given up. If another survivor has it, recover that one.",
			p.Last.Index+1, p.GivenUp)
	}
	item("Every entry behind %s is lost for good, also those that the lost servers had acknowledged to clients.", entryID(p.Last))
	if p.Last.Index > p.Snapshot.Index {
		item("Entries %d to %d are in the log, but whether they were committed is not known here. All of them will be: a call whose outcome\n"+
			"  was uncertain may have taken effect.", p.Snapshot.Index+1, p.Last.Index)
	}
	item("Is there another survivor? It is better if its newest entry, as raftctl inspect calls it, has a higher term, or the same and a\n"+
		"  higher index than %s. Recover the best one, and no other.", entryID(p.Last))
	printOthers(item, p)
	fmt.Fprintf(&b, "\nThere is no way back. Copy the directory first. docs/raftctl.md has the whole procedure.\n")
	_, err := w.Write(b.Bytes())
	return err
}

// printOthers says what becomes of the other servers.
func printOthers(item func(string, ...any), p *wal.Recovery) {
	if p.InForce == nil {
		item("No configuration is known here: this server was never told who its members are. It has probably never been one.")
		return
	}
	conf := &p.InForce.Configuration
	self, member := conf.Server(p.Node)
	switch {
	case conf.IsRemoved(p.Node):
		item("Server %q was removed from its cluster. What was written since is not here.", p.Node)
	case !member:
		item("Server %q is not a member in the newest configuration that it knows.", p.Node)
	case self.Suffrage != raft.Voter:
		item("Server %q is a %v: the voters may have acknowledged more than it has received.", p.Node, self.Suffrage)
	}
	var others []string
	for i := range conf.Servers {
		if id := conf.Servers[i].ID; id != p.Node {
			others = append(others, string(id))
		}
	}
	if len(others) > 0 {
		item("%s are no members of the new cluster, and their IDs cannot be used in it. If a majority of the old cluster can still run, it\n"+
			"  goes on as %q, apart from the new one: be sure that it never starts again. Their machines can join with empty directories\n"+
			"  and new IDs.", strings.Join(others, ", "), p.Cluster)
	}
}
