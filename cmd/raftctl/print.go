package main

import (
	"bytes"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/wal"
)

// printReport prints everything that is known about a directory.
func printReport(w io.Writer, r *wal.Report) error {
	var b bytes.Buffer
	printServer(&b, r)
	printLost(&b, r)
	printNewest(&b, r)
	printConfigurations(&b, r)
	fmt.Fprintf(&b, "\nsegments, %d in use\n", inUse(r))
	t := table(&b)
	fmt.Fprintln(t, "  file\tbytes\tends at\tbatches\tfirst entry\tlast entry\t")
	for i := range r.Segments {
		s := &r.Segments[i]
		switch {
		case s.LeftOver:
			fmt.Fprintf(t, "  %s\t%d\tleft over, no longer read\t\t\t\t\n", filepath.Base(s.File), s.Bytes)
			continue
		case s.End == 0:
			fmt.Fprintf(t, "  %s\t%d\tnot reached\t\t\t\t\n", filepath.Base(s.File), s.Bytes)
			continue
		}
		fmt.Fprintf(t, "  %s\t%d\t%d\t%d\t%s\t%s\t\n", filepath.Base(s.File), s.Bytes, s.End, s.Batches, entryID(s.First), entryID(s.Last))
	}
	_ = t.Flush() // into memory
	fmt.Fprintf(&b, "\nsnapshots, %d\n", len(r.Snapshots))
	t = table(&b)
	for i := range r.Snapshots {
		s := &r.Snapshots[i]
		state := "intact"
		if s.Damage != nil {
			state = "damaged"
		}
		fmt.Fprintf(t, "  %s\tup to entry %s\tcontent %d bytes\tconfiguration of entry %d\t%s\t\n",
			filepath.Base(s.Path), entryID(s.Meta.ID()), s.Meta.Size, s.Meta.ConfigurationIndex, state)
	}
	_ = t.Flush()
	if len(r.Keys) > 0 && r.Keys[len(r.Keys)-1].ID != 0 {
		b.WriteString("\nencryption\n")
		writeKeys(&b, r.Keys)
	}
	fmt.Fprintf(&b, "\nverdict     %s\n", r.Verdict)
	printFindings(&b, r)
	_, err := w.Write(b.Bytes())
	return err
}

// printKeys prints which keys are needed.
func printKeys(w io.Writer, uses []wal.KeyUses) error {
	var b bytes.Buffer
	writeKeys(&b, uses)
	_, err := w.Write(b.Bytes())
	return err
}

func writeKeys(b *bytes.Buffer, uses []wal.KeyUses) {
	t := table(b)
	for _, u := range uses {
		name := fmt.Sprintf("key %d", u.ID)
		if u.ID == 0 {
			name = "not encrypted"
		}
		fmt.Fprintf(t, "  %s\t%d segments\t%d vote records\t%d snapshots\t\n", name, u.Segments, u.Votes, u.Snapshots)
	}
	_ = t.Flush() // into memory
}

// printServer prints whose directory it is, and the bounds of its log.
func printServer(b *bytes.Buffer, r *wal.Report) {
	fmt.Fprintf(b, "directory   %s\n", r.Directory)
	fmt.Fprintf(b, "server      node %q of cluster %q, replica %016x, run %d\n", r.Node, r.Cluster, uint64(r.Replica), r.Incarnation)
	fmt.Fprintf(b, "term        %s", hardState(&r.HardState))
	switch {
	case r.VoteFile == nil:
		b.WriteString(" (from the log; no vote file)\n")
	case *r.VoteFile != r.HardState:
		fmt.Fprintf(b, " (the vote file says: %s)\n", hardState(r.VoteFile))
	default:
		b.WriteByte('\n')
	}
	switch {
	case r.Last.Index == 0:
		fmt.Fprintf(b, "log         empty\n")
	case r.Last.Index == r.Compacted.Index:
		fmt.Fprintf(b, "log         empty; the next entry follows %v\n", r.Last)
	case r.Compacted.Index == 0:
		fmt.Fprintf(b, "log         entries 1 to %v\n", r.Last)
	default:
		fmt.Fprintf(b, "log         entries %d to %v; those up to %v are in a snapshot only\n", r.Compacted.Index+1, r.Last, r.Compacted)
	}
}

// printLost prints what the server has to get from the others.
func printLost(b *bytes.Buffer, r *wal.Report) {
	for _, d := range r.Damaged {
		what := fmt.Sprintf("entry %d", d.First)
		if d.Last > d.First {
			what = fmt.Sprintf("entries %d to %d", d.First, d.Last)
		}
		if d.MayConfigure {
			what += ", perhaps with a configuration"
		}
		fmt.Fprintf(b, "unreadable  %s\n", what)
	}
	switch {
	case r.Fence.Term == raft.MaxTerm:
		b.WriteString("fence       the log has lost its end, and it is not known how far it went\n")
	case r.Fence.Index > 0:
		fmt.Fprintf(b, "fence       entry %v: the log has lost its end, and may have gone so far\n", r.Fence)
	}
}

// printNewest prints by what the survivors of a lost majority are compared.
func printNewest(b *bytes.Buffer, r *wal.Report) {
	switch {
	case r.Refusal != nil:
		b.WriteString("newest      unknown, the log is damaged\n")
	case r.Newest != r.Last:
		fmt.Fprintf(b, "newest      entry %s, the last one of a snapshot that takes the log's place when the server starts\n", entryID(r.Newest))
	default:
		fmt.Fprintf(b, "newest      entry %s\n", entryID(r.Newest))
	}
}

func hardState(hs *raft.HardState) string {
	if hs.VotedFor == "" {
		return fmt.Sprintf("%d, no vote", hs.CurrentTerm)
	}
	return fmt.Sprintf("%d, voted for %q", hs.CurrentTerm, hs.VotedFor)
}

func printConfigurations(b *bytes.Buffer, r *wal.Report) {
	fmt.Fprintf(b, "\nconfigurations in the log, %d\n", len(r.Configurations))
	for i := range r.Configurations {
		c := &r.Configurations[i]
		fmt.Fprintf(b, "  entry %s: %s\n", entryID(c.EntryID), members(&c.Configuration))
	}
	if len(r.Snapshots) > 0 && r.Snapshots[0].Described() {
		m := &r.Snapshots[0].Meta
		fmt.Fprintf(b, "  entry %d, from the newest snapshot: %s\n", m.ConfigurationIndex, members(&m.Configuration))
	}
}

// members lists the servers of a configuration.
func members(c *raft.Configuration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "cluster %q", c.ClusterID)
	if c.Joint() {
		b.WriteString(", joint")
	}
	for i := range c.Servers {
		s := &c.Servers[i]
		fmt.Fprintf(&b, ", %s=%s %v", s.ID, s.Address, s.Suffrage)
		if s.Leaving {
			b.WriteString(" (leaving)")
		}
	}
	if len(c.Removed) > 0 {
		fmt.Fprintf(&b, "; removed before: %q", c.Removed)
	}
	return b.String()
}

// printVerdict prints only what is wrong.
func printVerdict(w io.Writer, r *wal.Report) error {
	var b bytes.Buffer
	batches, bytes := 0, int64(0)
	for i := range r.Segments {
		batches += r.Segments[i].Batches
	}
	for i := range r.Snapshots {
		bytes += r.Snapshots[i].Bytes
	}
	fmt.Fprintf(&b, "%s: %s; %d segments with %d batches up to entry %s, %d snapshots of %d bytes\n",
		r.Directory, r.Verdict, inUse(r), batches, entryID(r.Last), len(r.Snapshots), bytes)
	printFindings(&b, r)
	_, err := w.Write(b.Bytes())
	return err
}

func printFindings(b *bytes.Buffer, r *wal.Report) {
	for _, f := range r.Findings {
		fmt.Fprintf(b, "\n%s: %s at byte %d\n", f.Verdict, f.File, f.Offset)
		fmt.Fprintf(b, "  found     %s\n  meaning   %s\n  next      %s\n", f.Found, f.Meaning, f.Next)
	}
	if r.Unlisted > 0 {
		fmt.Fprintf(b, "\n... and %d more\n", r.Unlisted)
	}
}

func inUse(r *wal.Report) int {
	n := 0
	for i := range r.Segments {
		if !r.Segments[i].LeftOver {
			n++
		}
	}
	return n
}

// entryID prints an entry as index@term, as the library's errors do.
func entryID(id raft.EntryID) string {
	if id == (raft.EntryID{}) {
		return "none"
	}
	return id.String()
}

func table(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 8, 2, ' ', 0) }
