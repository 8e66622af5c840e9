package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strings"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

const (
	rotateLook = 200 * time.Millisecond // how often it looks whether the nodes are ready for the next step
	rotateHint = 10 * time.Second       // after which it says what can be done about nodes that are not
)

func rotateCommand() command {
	var r api.RotateRequest
	return command{
		name: "ca rotate", summary: "Replace the cluster's CA and every node's certificate, without an interruption; or go on with a rotation that was broken off",
		flags: func(_ *cli, fs *flag.FlagSet) {
			fs.BoolVar(&r.Force, "force", false, "do not wait for nodes that are down; they have to join anew, under new names")
			fs.BoolVar(&r.Abort, "abort", false, "give up a rotation that was broken off, while the old CA still signs")
		},
		run: func(c *cli, in *invocation) error {
			if err := in.exactly(0, "no arguments"); err != nil {
				return err
			}
			if r.Force && r.Abort {
				return usagef("ca rotate: want --force or --abort, not both")
			}
			return c.rotateCA(r)
		},
	}
}

// rotateCA asks for one step after the other. Where the rotation stands is known to the managers, so it may be broken off and repeated.
func (c *cli) rotateCA(r api.RotateRequest) error {
	r.Begin = !r.Abort
	said, begun, hinted := "", time.Now(), false
	say := func(text string) {
		if text != said {
			said, begun, hinted = text, time.Now(), false
			c.printf("%s\n", text)
		}
	}
	for {
		answer, err := c.rotateStep(r)
		if err != nil {
			return err
		}
		r.Begin = false
		waiting := waitingNodes(answer.Waiting)
		switch {
		case answer.Phase == cluster.NoRotation && r.Abort:
			say("No rotation is under way any more; the CA is what it was.")
			return nil
		case answer.Phase == cluster.NoRotation:
			say("The old CA is dropped: its certificates are refused from now on, and join tokens are worthless; `token` makes new ones.")
			return nil
		case answer.Phase == cluster.TrustBoth:
			say(fmt.Sprintf("1/2  The new CA %.12s is made. Nodes that have yet to trust it: %s", answer.New, waiting))
		case answer.Phase == cluster.RenewAll:
			say(fmt.Sprintf("2/2  The new CA %.12s signs. Nodes that have yet to get a certificate of it: %s", answer.New, waiting))
		}
		if len(answer.Waiting) > 0 && time.Since(begun) > rotateHint && !hinted {
			hinted = true
			fmt.Fprintf(c.errOut, "It goes on as soon as they are back. `node rm` removes those that will not come back; `ca rotate --force` goes on without those that are down.\n")
		}
		select {
		case <-c.ctx.Done():
			return errors.New("broken off; the cluster works with both CAs meanwhile, and `ca rotate` goes on with it")
		case <-time.After(rotateLook):
		}
	}
}

// rotateStep asks once, with the certificate and the CAs that the node has by now.
func (c *cli) rotateStep(r api.RotateRequest) (answer api.RotateAnswer, err error) {
	err = c.with(func(ctx context.Context, client *api.Client) error {
		answer, err = client.Rotate(ctx, r)
		return err
	})
	return answer, err
}

func waitingNodes(nodes []api.WaitingNode) string {
	var out []string
	for _, n := range nodes {
		text := string(n.Node)
		if n.Status != cluster.NodeReady {
			text += " (" + string(n.Status) + ")"
		}
		out = append(out, text)
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}
