package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
	"github.com/steadyraft/raft/examples/orchestrator/manager"
	"github.com/steadyraft/raft/examples/orchestrator/pki"
)

func joinCommands() []command {
	var join nodeFlags
	var token, tokenFile, role string
	var rotate bool
	var expires time.Duration
	return []command{
		{
			name: "join", args: "MANAGER-ADDRESS...", summary: "Join a cluster with a token, and run the node in the foreground",
			flags: func(_ *cli, fs *flag.FlagSet) {
				join.define(fs, "")
				fs.BoolVar(&join.standby, "standby", false, "a manager without a vote, which gets that of one that is lost")
				fs.StringVar(&token, "token", "", "join token; it says whether the node is a worker or a manager")
				fs.StringVar(&tokenFile, "token-file", "", "file that holds the join token, instead of --token: command lines can be read by every user of the machine")
			},
			run: func(c *cli, in *invocation) error { return c.join(in, join, token, tokenFile) },
		},
		{
			name: "token", summary: "Make a join token; it is shown this once, the managers keep only a hash",
			flags: func(_ *cli, fs *flag.FlagSet) {
				fs.StringVar(&role, "role", string(cluster.RoleWorker), "what it lets a node join as: worker or manager")
				fs.BoolVar(&rotate, "rotate", false, "make a new one and end the one that there is")
				fs.DurationVar(&expires, "expires", 0, "how long it is good for, as in 24h; 0: until it is rotated")
			},
			run: func(c *cli, in *invocation) error { return c.token(in, cluster.Role(role), rotate, expires) },
		},
		{name: "leave", summary: "Remove this node from its cluster; a manager gives its vote back first", run: (*cli).leave},
	}
}

func (c *cli) join(in *invocation, f nodeFlags, text, file string) error {
	if len(in.words) == 0 || in.command != nil {
		return usagef("join: want the address of at least one manager's API, host:port")
	}
	if file != "" {
		if text != "" {
			return usagef("join: want --token or --token-file, not both")
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("join --token-file: %w", err)
		}
		text = string(data)
	}
	token, err := pki.ParseToken(text)
	if err != nil {
		return usagef("join: %v", err)
	}
	if settings, lapsed, err := manager.Lapsed(c.data, nil); err == nil && lapsed != nil && settings.Role == cluster.RoleWorker {
		return c.comeBack(in, f, token, settings, lapsed)
	}
	if err := manager.CheckUnused(c.data); err != nil {
		return err
	}
	if f.name == "" {
		f.name = "n-" + randomName()
	}
	if _, err := f.stopWhenCutOff(); err != nil {
		return err
	}
	var settings manager.Settings
	if err := c.setRuntime(f, &settings); err != nil { // before the managers count on this node
		return err
	}
	request, key, err := pki.NewRequest()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	answer, err := api.Join(ctx, token, api.JoinRequest{Node: cluster.NodeID(f.name), Request: request, Host: f.host}, in.words...)
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	credentials, err := token.Credentials(answer.CA, answer.Certificate, key, nil)
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	settings.Cluster, settings.Node, settings.Role, settings.Host = answer.Cluster, cluster.NodeID(f.name), answer.Role, f.host
	settings.Members = answer.Managers
	var ca *pki.CA
	if answer.Role == cluster.RoleManager {
		if ca, err = pki.ParseCA(answer.CA, answer.CAKey); err != nil {
			return fmt.Errorf("join: %w", err)
		}
		settings.Members = append(settings.Members, f.member())
	}
	if err := manager.Join(c.data, settings, credentials, ca); err != nil {
		return err
	}
	if f.standby && settings.Role != cluster.RoleManager {
		fmt.Fprintf(c.errOut, "--standby is for managers, and the token has made this node a %s.\n", settings.Role)
	}
	c.printf("Node %s has been let into cluster %s as a %s.\n", settings.Node, settings.Cluster, settings.Role)
	return c.runNode(settings, f, nil)
}

// comeBack gets another certificate for a worker whose own one has expired, under its name, and runs it.
func (c *cli) comeBack(in *invocation, f nodeFlags, token pki.Token, settings manager.Settings, lapsed *pki.Lapsed) error {
	if err := f.fits(in.set, c.data, settings); err != nil {
		return err
	}
	request, key, err := pki.NewRequest()
	if err != nil {
		return err
	}
	former, err := lapsed.Prove(request)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	back := api.JoinRequest{Node: settings.Node, Request: request, Host: settings.Host, Former: former}
	answer, err := api.Join(ctx, token, back, in.words...)
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	credentials, err := token.Credentials(answer.CA, answer.Certificate, key, nil)
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	if err := manager.ComeBack(c.data, credentials); err != nil {
		return err
	}
	c.printf("Node %s is back in cluster %s: its certificate had expired at %s.\n",
		settings.Node, settings.Cluster, lapsed.ExpiredAt.Format(time.RFC3339))
	return c.runNode(settings, f, nil)
}

func (c *cli) token(in *invocation, role cluster.Role, rotate bool, expires time.Duration) error {
	if err := in.exactly(0, "no arguments"); err != nil {
		return err
	}
	if role != cluster.RoleWorker && role != cluster.RoleManager || expires < 0 {
		return usagef("token: want --role worker or manager, and --expires not below 0")
	}
	return c.with(func(ctx context.Context, client *api.Client) error {
		token, err := c.makeToken(ctx, client, role, rotate, expires)
		if err == nil {
			c.printf("%s\n", token)
		}
		return err
	})
}

// makeToken makes a secret and tells the managers its hash. The secret itself never leaves this process but for the screen.
func (c *cli) makeToken(ctx context.Context, client *api.Client, role cluster.Role, rotate bool, expires time.Duration) (pki.Token, error) {
	_, credentials, err := manager.Load(c.data, nil)
	if err != nil {
		return pki.Token{}, err
	}
	token := pki.NewToken(credentials.Authority())
	op := cluster.SetToken{Role: role, SecretHash: pki.SecretHash(token.Secret), Rotate: rotate}
	if expires > 0 {
		op.ExpiresAt = time.Now().Add(expires)
	}
	_, err = client.Do(ctx, op)
	return token, err
}

// printTokens makes both tokens of a new cluster and says what to do with them.
func (c *cli) printTokens(context.Context) {
	err := c.with(func(ctx context.Context, client *api.Client) error {
		settings, _, err := manager.Load(c.data, nil)
		if err != nil {
			return err
		}
		for _, role := range []cluster.Role{cluster.RoleWorker, cluster.RoleManager} {
			token, err := c.makeToken(ctx, client, role, false, 0)
			if err != nil {
				return err
			}
			c.printf("To add a %s:\n  %s --data DIRECTORY join --token %s %s\n", role, program(), token, settings.APIs()[0])
		}
		c.printf("These tokens are secrets and are not shown again; `token --rotate` makes new ones.\n")
		return nil
	})
	if err != nil {
		fmt.Fprintf(c.errOut, "The join tokens could not be made (%v); `%s --data %s token` makes one.\n", err, program(), c.data)
	}
}

func (c *cli) leave(in *invocation) error {
	if err := in.exactly(0, "no arguments"); err != nil {
		return err
	}
	settings, _, err := manager.Load(c.data, nil)
	if err != nil {
		_, err = c.client() // says what to do
		return err
	}
	return c.with(func(ctx context.Context, client *api.Client) error {
		err := client.Remove(ctx, api.RemoveRequest{Node: settings.Node, Force: true})
		var answer *api.Error
		if errors.As(err, &answer) && answer.Code == api.CodeRemoved {
			err = nil // done before
		}
		if err != nil {
			return err
		}
		c.printf("Node %s has left cluster %s. Its process ends by itself; %s is of no use any more.\n", settings.Node, settings.Cluster, c.data)
		return nil
	})
}
