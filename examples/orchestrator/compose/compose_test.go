package compose

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

func TestGoodFile(t *testing.T) {
	p, err := Load(context.Background(), filepath.Join("testdata", "good.yaml"), map[string]string{"TOKEN": "secret"})
	require.NoError(t, err)
	label := func(service string) map[string]string {
		return map[string]string{ProjectLabel: "shop", ServiceLabel: service}
	}
	require.Equal(t, &Project{Name: "shop", Services: []cluster.ServiceSpec{
		{
			Name: "shop_batch", Labels: label("batch"), Replicas: 1, DependsOn: []string{"shop_db", "shop_web"},
			Task: cluster.TaskSpec{Command: []string{"./batch"}, Restart: cluster.RestartPolicy{Condition: cluster.RestartNo}},
		},
		{
			Name: "shop_db", Labels: label("db"), Replicas: 1,
			Task: cluster.TaskSpec{
				Image: "redis:alpine", Command: []string{"redis-server", "--port", "6379"}, Env: map[string]string{"MODE": "fast"},
				Restart:     cluster.RestartPolicy{Condition: cluster.RestartAlways},
				HealthCheck: &cluster.HealthCheck{Kind: cluster.HealthExec, Command: []string{"redis-cli", "ping"}},
			},
		},
		{
			Name: "shop_web", Labels: label("web"), Replicas: 3, DependsOn: []string{"shop_db"},
			Task: cluster.TaskSpec{
				Command: []string{"./web", "--port", "8080"},
				Env:     map[string]string{"GREETING": "hello nobody", "TOKEN": "secret"},
				Ports:   []cluster.Port{{Published: 8000, Target: 8080}, {Published: 9000, Target: 9090}},
				Restart: cluster.RestartPolicy{Condition: cluster.RestartOnFailure, MaxAttempts: 3},
				HealthCheck: &cluster.HealthCheck{
					Kind: cluster.HealthExec, Command: []string{"/bin/sh", "-c", "curl -f http://localhost:8080"},
					Interval: 2 * time.Second, Timeout: time.Second, Retries: 5, StartPeriod: 10 * time.Second,
				},
				StopGrace: 90 * time.Second,
			},
		},
	}}, p)
}

func TestEveryUnsupportedKeyIsNamed(t *testing.T) {
	_, err := Load(context.Background(), filepath.Join("testdata", "bad.yaml"), nil)
	require.EqualError(t, err, "testdata/bad.yaml: "+strings.Join([]string{
		"include: not supported",
		"services.db.env_file: not supported",
		"services.db.extends: not supported",
		"services.web.build: not supported",
		"services.web.depends_on.db.restart: not supported",
		"services.web.deploy.resources: not supported",
		"services.web.healthcheck.start_interval: not supported",
		"services.web.volumes: not supported",
		"volumes: not supported",
	}, "\n"))
}

// parse reads a file with the service web, which has this body.
func parse(body string) (*Project, error) {
	return Parse(context.Background(), "app/compose.yaml", []byte("services:\n  web:\n    "+body+"\n"), nil)
}

func TestProjectIsCalledAsItsDirectory(t *testing.T) {
	p, err := parse("command: ./web")
	require.NoError(t, err)
	require.Equal(t, "app", p.Name)
	require.Equal(t, "app_web", p.Services[0].Name)
}

func TestImageAloneIsForTheRuntimeToJudge(t *testing.T) {
	p, err := parse("image: nginx")
	require.NoError(t, err)
	require.Equal(t, "nginx", p.Services[0].Task.Image)
}

func TestBadValuesAreNamed(t *testing.T) {
	for body, want := range map[string]string{
		`environment: {A: b}`:                                                   `services.web: neither an image nor a command to run`,
		`{command: a, restart: sometimes}`:                                      `services.web.restart: "sometimes"`,
		`{command: a, restart: "always:3"}`:                                     `services.web.restart: "always:3"`,
		`{command: a, restart: "on-failure:0"}`:                                 `services.web.restart: "on-failure:0"`,
		`{command: a, ports: ["80"]}`:                                           `services.web.ports: 80: a published port is required`,
		`{command: a, ports: ["53:53/udp"]}`:                                    `services.web.ports: protocol udp: not supported`,
		`{command: a, ports: ["127.0.0.1:80:80"]}`:                              `services.web.ports: host_ip 127.0.0.1: not supported`,
		`{command: a, ports: ["8000-8010:80"]}`:                                 `services.web.ports: published port "8000-8010"`,
		`{command: a, ports: [{target: 80, published: 80, mode: host}]}`:        `services.web.ports: mode host: not supported`,
		`{command: a, healthcheck: {interval: 1s}}`:                             `services.web.healthcheck.test`,
		`{command: a, healthcheck: {test: [CMD]}}`:                              `services.web.healthcheck.test: ["CMD"]`,
		`{command: a, healthcheck: {test: a, retries: 100000}}`:                 `services.web.healthcheck.retries: 100000: want at most 1000`,
		`{command: a, deploy: {replicas: 5000}}`:                                `services.web: replicas 5000: want 0 to 1000`,
		`{command: a, deploy: {replicas: -1}}`:                                  `replicas`,
		`{command: a, depends_on: [db]}`:                                        `services.web.depends_on.db: no such service`,
		`{command: a, depends_on: [web]}`:                                       `services.web.depends_on.web: they wait for each other`,
		"{command: a, depends_on: [db]}\n  db: {command: b, depends_on: [web]}": `services.web.depends_on.db: they wait for each other`,
		`{command: 7, ports: {}}`:                                               `services.web`,
		`{command: "a`:                                                          `app/compose.yaml: yaml`,
		`[a]`:                                                                   `services.web`,
	} {
		p, err := parse(body)
		require.ErrorContains(t, err, want, body)
		require.Nil(t, p)
	}
}

func TestAllBadValuesAreNamedAtOnce(t *testing.T) {
	const file = `
services:
  a: {command: a, ports: ["80:80"], restart: never}
  b: {command: b, ports: ["80:80"], depends_on: {a: {condition: service_completed_successfully}}}
`
	_, err := Parse(context.Background(), "app/compose.yaml", []byte(file), nil)
	for _, want := range []string{
		`services.a.restart: "never"`,
		`services.b.depends_on.a.condition: service_completed_successfully: not supported`,
		`services.b.ports: port 80 is published by service a already`,
	} {
		require.ErrorContains(t, err, want)
	}
}

func TestFilesThatAreNone(t *testing.T) {
	_, err := Load(context.Background(), "testdata/missing.yaml", nil)
	require.ErrorContains(t, err, "missing.yaml")
	for _, content := range []string{"", "services:", "[]", "7", "a: &a [*a]", "? {}\n: 1", "\x00"} {
		_, err := Parse(context.Background(), "app/compose.yaml", []byte(content), nil)
		require.Error(t, err, "%q", content)
	}
	_, err = Parse(context.Background(), "app/compose.yaml", bytes.Repeat([]byte{' '}, maxFileBytes+1), nil)
	require.ErrorContains(t, err, "larger than")

	// Aliases that double at every line would be gigabytes when written out.
	bomb := "x0: &x0 [a, a]\n"
	for i := 1; i < 40; i++ {
		bomb += fmt.Sprintf("x%d: &x%d [*x%d, *x%d]\n", i, i, i-1, i-1)
	}
	_, err = Parse(context.Background(), "app/compose.yaml", []byte(bomb), nil)
	require.Error(t, err)
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("services:\n  web:\n    command: ./web\n    ports: [\"80:80\"]\n    restart: on-failure:3\n"))
	f.Add([]byte("services:\n  web:\n    image: a\n    healthcheck: {test: [CMD, a], interval: 1s}\n    deploy: {replicas: 2}\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		p, err := Parse(context.Background(), "app/compose.yaml", content, nil)
		if err == nil {
			for _, s := range p.Services {
				require.NoError(t, s.Validate())
			}
		}
	})
}
