package images_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/internal/dockertest"
	"github.com/steadyraft/raft/examples/orchestrator/internal/images"
)

const patience = time.Minute

// begin starts a container of an image and returns its ID and address.
func begin(t *testing.T, engine *client.Client, ref string) (id, address string) {
	t.Helper()
	created, err := engine.ContainerCreate(t.Context(), client.ContainerCreateOptions{Image: ref, Name: dockertest.Name()})
	require.NoError(t, err)
	_, err = engine.ContainerStart(t.Context(), created.ID, client.ContainerStartOptions{})
	require.NoError(t, err)
	c, err := engine.ContainerInspect(t.Context(), created.ID, client.ContainerInspectOptions{})
	require.NoError(t, err)
	for _, at := range c.Container.NetworkSettings.Networks {
		address = at.IPAddress.String()
	}
	return created.ID, address
}

func TestNginxServes(t *testing.T) {
	engine := dockertest.Engine(t)
	ref := dockertest.Name() + ":latest"
	dockertest.Debian(t, engine, "nginx", ref)
	_, address := begin(t, engine, ref)
	var body []byte
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		response, err := http.Get("http://" + address)
		require.NoError(c, err)
		body, err = io.ReadAll(response.Body)
		require.NoError(c, errors.Join(err, response.Body.Close()))
		require.Equal(c, http.StatusOK, response.StatusCode)
	}, patience, 20*time.Millisecond)
	require.Contains(t, string(body), "Welcome to nginx!")
}

func TestRedisAnswers(t *testing.T) {
	engine := dockertest.Engine(t)
	ref := dockertest.Name() + ":latest"
	dockertest.Debian(t, engine, "redis", ref)
	id, _ := begin(t, engine, ref)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		created, err := engine.ExecCreate(t.Context(), id, client.ExecCreateOptions{Cmd: []string{"redis-cli", "ping"}, AttachStdout: true})
		require.NoError(c, err)
		attached, err := engine.ExecAttach(t.Context(), created.ID, client.ExecAttachOptions{})
		require.NoError(c, err)
		defer attached.Close()
		output, err := io.ReadAll(attached.Reader)
		require.NoError(c, err)
		require.Contains(c, string(output), "PONG")
	}, patience, 100*time.Millisecond)
}

// The test program may be linked to shared libraries or not: either way it runs in an image that has nothing but it.
func TestProgramRunsAlone(t *testing.T) {
	engine := dockertest.Engine(t)
	ref := dockertest.Image(t, engine, images.Config{Command: []string{"-test.list", "TestProgram"}})
	id, _ := begin(t, engine, ref)
	wait := engine.ContainerWait(t.Context(), id, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
	select {
	case result := <-wait.Result:
		require.Zero(t, result.StatusCode)
	case err := <-wait.Error:
		require.NoError(t, err)
	}
}

func TestArchiveSaysWhatIsWrong(t *testing.T) {
	var f images.Files
	f.Text("etc/passwd", "root:x:0:0:::\n")
	f.Text("etc/passwd", "again")
	f.OwnedDir("data", 33)
	var archive bytes.Buffer
	require.NoError(t, f.WriteTar(&archive))
	reader := tar.NewReader(&archive)
	header, err := reader.Next()
	require.NoError(t, err)
	require.Equal(t, "etc/passwd", header.Name)
	header, err = reader.Next()
	require.NoError(t, err)
	require.Equal(t, 33, header.Uid)
	_, err = reader.Next()
	require.ErrorIs(t, err, io.EOF, "a name is there once")

	f.Add("app", "/no/such/file", 0o755)
	require.ErrorIs(t, f.WriteTar(io.Discard), os.ErrNotExist)
	var script images.Files
	script.Libraries("/", os.DevNull)
	require.ErrorContains(t, script.WriteTar(io.Discard), "no program for Linux")
	require.ErrorContains(t, images.Debian(t.Context(), nil, "postgres", "a:b", nil), "want one of nginx, redis")
}
