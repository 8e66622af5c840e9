package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/steadyraft/raft"
	"github.com/steadyraft/raft/storage/wal"
)

// Lines of a dump as JSON, each with a kind.
type (
	serverLine struct {
		Kind        string         `json:"kind"` // server
		Directory   string         `json:"directory"`
		Cluster     string         `json:"cluster"`
		Node        raft.NodeID    `json:"node"`
		Replica     raft.ReplicaID `json:"replica"`
		Incarnation uint64         `json:"incarnation"`
		HardState   raft.HardState `json:"hard_state"`
		Compacted   raft.EntryID   `json:"compacted"`
	}
	entryLine struct {
		Kind string `json:"kind"` // entry
		raft.EntryID
		Type          string              `json:"type"`
		Bytes         int                 `json:"bytes"`
		Data          []byte              `json:"data,omitempty"` // of all but configurations; in base64
		Configuration *raft.Configuration `json:"configuration,omitempty"`
	}
	endLine struct {
		Kind     string        `json:"kind"` // end
		Last     raft.EntryID  `json:"last"` // of the log, as far as it can be read
		Verdict  wal.Verdict   `json:"verdict"`
		Findings []wal.Finding `json:"findings"`
		Unlisted int           `json:"unlisted,omitempty"`
	}
)

const shownBytes = 64 // of a command, as text

func (c *call) dump(ctx context.Context, args []string) (int, error) {
	from := c.flags.Uint64("from", 0, "the first entry that is wanted; 0: the first that is there")
	to := c.flags.Uint64("to", 0, "the last one; 0: the last that is there")
	if err := c.parse(args); err != nil {
		return exitUsage, err
	}
	if *to != 0 && *to < *from || *to+1 == 0 {
		return exitUsage, fmt.Errorf("-from %d -to %d: that is no range of entries", *from, *to)
	}
	hi := raft.Index(*to)
	if hi != 0 {
		hi++
	}
	out := bufio.NewWriterSize(c.stdout, 64<<10)
	d := dumper{out: out, json: json.NewEncoder(out)}
	if !c.json {
		d.json = nil
	}
	err := wal.Dump(ctx, c.fs, c.dir, raft.Index(*from), hi, d.begin, d.entry, c.keys...)
	if err == nil {
		err = d.end()
	}
	err = errors.Join(err, out.Flush())
	if err != nil {
		return exitUnreadable, err
	}
	return exitOf(d.report.Verdict), nil
}

// dumper prints a log, line by line.
type dumper struct {
	out    io.Writer
	json   *json.Encoder // nil: text
	report *wal.Report
}

func (d *dumper) begin(r *wal.Report) error {
	d.report = r
	if d.json != nil {
		return d.json.Encode(serverLine{"server", r.Directory, r.Cluster, r.Node, r.Replica, r.Incarnation, r.HardState, r.Compacted})
	}
	var b bytes.Buffer
	printServer(&b, r)
	b.WriteByte('\n')
	_, err := d.out.Write(b.Bytes())
	return err
}

func (d *dumper) entry(e raft.Entry) error {
	line := entryLine{Kind: "entry", EntryID: e.ID(), Type: e.Type.String(), Bytes: len(e.Data)}
	text := ""
	if e.Type == raft.EntryConfiguration {
		if conf, err := raft.DecodeConfiguration(e.Data); err == nil {
			line.Configuration, text = &conf, members(&conf)
		}
	}
	if line.Configuration == nil { // or one that cannot be read: a finding says so
		line.Data = e.Data
		if shown := e.Data[:min(len(e.Data), shownBytes)]; len(shown) > 0 {
			text = fmt.Sprintf("%q", shown)
		}
		if len(e.Data) > shownBytes {
			text += " ..."
		}
	}
	if d.json != nil {
		return d.json.Encode(line)
	}
	_, err := fmt.Fprintf(d.out, "%-12v %-13s %8d bytes  %s\n", e.ID(), e.Type, len(e.Data), text)
	return err
}

func (d *dumper) end() error {
	r := d.report
	if d.json != nil {
		return d.json.Encode(endLine{"end", r.Last, r.Verdict, r.Findings, r.Unlisted})
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "\nthe log ends with entry %s; verdict on the log: %s\n", entryID(r.Last), r.Verdict)
	printFindings(&b, r)
	_, err := d.out.Write(b.Bytes())
	return err
}
