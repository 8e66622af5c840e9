package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"strings"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/table"
)

// followWait is how long a manager is asked to wait for news. One that hangs is noticed after it, and a little more.
const followWait = 5 * time.Second

func eventsCommand() command {
	var follow bool
	var since string
	return command{
		name: "events", summary: "Show what has happened, from the last 1,000 events that the managers keep", lists: true,
		flags: func(_ *cli, fs *flag.FlagSet) {
			fs.BoolVar(&follow, "follow", false, "go on with what happens from now on")
			fs.BoolVar(&follow, "f", false, "short for --follow")
			fs.StringVar(&since, "since", "", "leave out what was earlier: a duration before now, as in 10m, or a time as in 2026-01-31T12:00:00Z")
		},
		run: func(c *cli, in *invocation) error {
			if err := in.exactly(0, "no arguments"); err != nil {
				return err
			}
			from, err := parseSince(since, time.Now())
			if err != nil {
				return err
			}
			return c.events(from, follow)
		},
	}
}

// parseSince reads a point in time; "" is the beginning.
func parseSince(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, usagef("events: --since %q: want a duration before now, as in 10m, or a time as in 2026-01-31T12:00:00Z", text)
	}
	return t, nil
}

func (c *cli) events(since time.Time, follow bool) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	defer client.Close()
	request := api.EventsRequest{}
	for first := true; first || follow; first = false {
		answer, err := c.nextEvents(client, request)
		switch {
		case c.ctx.Err() != nil && follow:
			return nil // it was ended by who had asked for it
		case err != nil:
			return err
		}
		if answer.Missed > 0 {
			fmt.Fprintf(c.errOut, "%d events came too fast and are forgotten already\n", answer.Missed)
		}
		if answer.Newest < request.After {
			fmt.Fprintf(c.errOut, "the managers have lost the events behind number %d: the cluster was recovered or restored from a copy\n", answer.Newest)
			request.After = answer.Newest
		}
		for _, e := range answer.Events {
			request.After = e.Seq
			if e.At.Before(since) {
				continue
			}
			if err := c.printEvent(e); err != nil {
				return err
			}
		}
		request.Wait = followWait
	}
	return nil
}

// nextEvents asks for as long as events are followed, and says so when nobody answers.
func (c *cli) nextEvents(client *api.Client, request api.EventsRequest) (api.Events, error) {
	for {
		ctx, cancel := context.WithTimeout(c.ctx, request.Wait+patience)
		answer, err := client.Events(ctx, request)
		late := ctx.Err() != nil
		cancel()
		if err == nil || c.ctx.Err() != nil || request.Wait == 0 || !late {
			return answer, err
		}
		fmt.Fprintf(c.errOut, "no manager can answer now; waiting for one\n")
	}
}

func (c *cli) printEvent(e cluster.Event) error {
	if c.format == table.JSON {
		encoder := json.NewEncoder(c.out)
		encoder.SetEscapeHTML(false)
		return encoder.Encode(e)
	}
	_, err := fmt.Fprintln(c.out, strings.TrimRight(eventLine(e), " "))
	return err
}

// eventLine is an event as people read it.
func eventLine(e cluster.Event) string {
	return fmt.Sprintf("%s  %-7s  %-16s  %s", e.At.Local().Format("2006-01-02 15:04:05.000"), e.Kind, table.Clean(e.Subject), table.Clean(e.Message))
}
