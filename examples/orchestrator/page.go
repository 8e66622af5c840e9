package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
)

func pageCommand() command {
	var lasts time.Duration
	return command{
		name: "page", summary: "Print the address of this manager's status page, with a token for its buttons",
		flags: func(_ *cli, fs *flag.FlagSet) {
			fs.DurationVar(&lasts, "lasts", 12*time.Hour, "how long the token is good for")
		},
		run: func(c *cli, in *invocation) error {
			if err := in.exactly(0, "no arguments"); err != nil {
				return err
			}
			if lasts <= 0 {
				return usagef("page: want --lasts above 0")
			}
			return c.page(lasts)
		},
	}
}

func (c *cli) page(lasts time.Duration) error {
	settings, credentials, err := manager.Load(c.data, nil)
	if err != nil {
		_, err = c.client() // says what to do
		return err
	}
	token, err := manager.PageToken(c.data, time.Now().Add(lasts))
	if err != nil {
		return err
	}
	// How the page of this very manager is called: that of another one would be on another machine.
	client := api.NewClient(credentials, settings.APIs()[0])
	defer client.Close()
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	status, err := client.Status(ctx)
	if err != nil {
		return fmt.Errorf("manager %s does not answer; start it with `%s --data %s up`: %w", settings.Node, program(), c.data, err)
	}
	if status.Page == "" {
		return errors.New("this manager has no status page: the port was in use; start it with --page-port")
	}
	c.printf("%s#%s\n", status.Page, token)
	return nil
}
