package compose

import (
	"bytes"
	"context"
	"fmt"
	"os"
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
				StopGrace:    90 * time.Second,
				Reservations: cluster.Resources{NanoCPUs: cluster.OneCPU / 4, MemoryBytes: 64 << 20},
			},
			Constraints: []cluster.Constraint{{Key: "node.role", Not: true, Value: "manager"}},
			Update: cluster.UpdateConfig{
				Parallelism: 2, Delay: 10 * time.Second, Monitor: 30 * time.Second, FailureAction: cluster.FailureRollback, MaxFailureRatio: 0.5,
				Order: cluster.StartFirst,
			},
			Rollback: cluster.UpdateConfig{Parallelism: cluster.AllAtOnce},
		},
	}, Waits: map[string][]Wait{
		"shop_batch": {{For: "shop_db", Condition: Started}, {For: "shop_web", Condition: Started}},
		"shop_web":   {{For: "shop_db", Condition: Healthy}},
	}}, p)
}

func TestEveryUnsupportedKeyIsNamed(t *testing.T) {
	_, err := Load(context.Background(), filepath.Join("testdata", "bad.yaml"), nil)
	require.EqualError(t, err, strings.Join([]string{
		"testdata/bad.yaml:3: services.web.build: not supported",
		"testdata/bad.yaml:5: services.web.volumes: not supported",
		"testdata/bad.yaml:10: services.web.deploy.resources.limits: not supported",
		"testdata/bad.yaml:14: services.web.healthcheck.start_interval: not supported",
		"testdata/bad.yaml:18: services.web.depends_on.db.restart: not supported",
		"testdata/bad.yaml:21: services.db.env_file: not supported",
		"testdata/bad.yaml:22: services.db.extends: not supported",
		"testdata/bad.yaml:25: volumes: not supported",
		"testdata/bad.yaml:27: include: not supported",
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

// badValues are bodies of a service, and what is said about them.
var badValues = map[string]string{
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
}

func TestBadValuesAreNamed(t *testing.T) {
	for body, want := range badValues {
		p, err := parse(body)
		require.ErrorContains(t, err, want, body)
		require.Nil(t, p)
	}
}

// Keys, types, values and what does not fit together: all of it, in the order of the file, each with its line.
func TestAllProblemsAreNamedAtOnce(t *testing.T) {
	const file = `x-anchor: &anchor
  restart: never

services:
  a:
    <<: *anchor
    command: a
    ports: ["80:80"]
    privileged: true
  b:
    command: b
    ports: ["80:80", "81:80/udp"]
    deploy:
      replicas: many
      placement:
        constraints: [node.role==manager, zone==a]
      update_config: {parallelism: 5000}
    depends_on:
      a: {condition: service_completed_successfully}
      c: {condition: service_completed_successfully}
      d: {condition: service_started}
      e: {condition: service_started}
  c:
    command: c
    restart: always
    environment: 7
  d: 7
networks: {}
`
	_, err := Parse(context.Background(), "app/compose.yaml", []byte(file), nil)
	require.EqualError(t, err, strings.Join([]string{
		`app/compose.yaml:2: services.a.restart: "never": want no, always, on-failure[:N] or unless-stopped`,
		`app/compose.yaml:9: services.a.privileged: not supported`,
		`app/compose.yaml:12: services.b.ports: protocol udp: not supported`,
		`app/compose.yaml:12: services.b.ports: port 80 is published by service a already`,
		`app/compose.yaml:14: services.b.deploy.replicas: failed to cast to expected type: strconv.Atoi: parsing "many": invalid syntax`,
		`app/compose.yaml:16: services.b.deploy.placement.constraints: constraint "zone==a": want node.id, node.hostname, node.role or node.labels.NAME, not "zone"`,
		`app/compose.yaml:17: services.b.deploy.update_config.parallelism: 5000: want at most 1000`,
		"app/compose.yaml:20: services.b.depends_on.c: service c has `restart: always`, so it never completes",
		`app/compose.yaml:22: services.b.depends_on.e: no such service`,
		`app/compose.yaml:26: services.c.environment: must be a mapping`,
		`app/compose.yaml:27: services.d: must be a mapping`,
		`app/compose.yaml:28: networks: not supported`,
	}, "\n"))
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

// A file is read as services that can be run, or it is refused; it never is the end of the program. The seeds have every key that is
// supported and every mistake that the tests above know.
func FuzzParse(f *testing.F) {
	for _, name := range []string{"good.yaml", "bad.yaml"} {
		content, err := os.ReadFile(filepath.Join("testdata", name))
		require.NoError(f, err)
		f.Add(content)
	}
	for body := range badValues {
		f.Add([]byte("services:\n  web:\n    " + body + "\n"))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		p, err := Parse(context.Background(), "app/compose.yaml", content, nil)
		if err != nil {
			require.Nil(t, p)
			return
		}
		for _, s := range p.Services {
			require.NoError(t, s.Validate())
		}
	})
}
