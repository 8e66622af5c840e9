// Package dockertest gives tests a Docker Engine, and sees to it that nothing of theirs is left on it: not after a failure, and not by a
// run that was killed, whose remains the next run removes.
//
// Everything that a test makes carries the owner: the number of the test process and when that was started. Containers have it from their
// image, from the name of their cluster or as a label.
package dockertest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"github.com/steadyraft/raft/examples/orchestrator/internal/images"
)

const (
	// Variable says what happens when no engine answers: "require" makes that a failure, "off" skips the tests even if one answers.
	Variable = "ORCHESTRATOR_DOCKER"
	// Label marks what belongs to a test, with the owner as its value.
	Label = "io.steadyraft.test"

	namePrefix   = "test-"
	answerWithin = 10 * time.Second
	cleanWithin  = 2 * time.Minute
)

var (
	owner   = sync.OnceValue(func() string { return fmt.Sprintf("%d-%s", os.Getpid(), startOf(os.Getpid())) })
	sweeps  sync.Once
	numbers atomic.Int64
)

// Engine returns a client of the engine, closed with the test. Without an engine the test is skipped, or fails if Variable says so.
func Engine(t *testing.T) *client.Client {
	t.Helper()
	if os.Getenv(Variable) == "off" {
		t.Skipf("skipped: %s=off", Variable)
	}
	engine, err := client.New(client.FromEnv)
	if err == nil {
		ctx, cancel := context.WithTimeout(t.Context(), answerWithin)
		defer cancel()
		_, err = engine.Ping(ctx, client.PingOptions{NegotiateAPIVersion: true})
	}
	switch {
	case err != nil && os.Getenv(Variable) == "require":
		t.Fatalf("%s=require, and no Docker Engine answers: %v", Variable, err)
	case err != nil:
		t.Skipf("skipped: no Docker Engine answers (%v); with %s=require that is a failure", err, Variable)
	}
	t.Cleanup(func() { _ = engine.Close() })
	sweeps.Do(func() { sweep(t, engine) })
	return engine
}

// Host returns where the engine listens.
func Host(t *testing.T) string { return Engine(t).DaemonHost() }

// Labels marks what a test makes.
func Labels() map[string]string { return map[string]string{Label: owner()} }

// Name returns a name that no other test uses, for a cluster, a container, a network or an image.
func Name() string { return fmt.Sprintf("%s%s-%d", namePrefix, owner(), numbers.Add(1)) }

// Image makes an image of the test program, and removes it with the test, and with it every container of it.
func Image(t *testing.T, engine *client.Client, config images.Config) string {
	t.Helper()
	ref := Name() + ":latest"
	config.Labels = Labels()
	if err := images.Program(t.Context(), engine, ref, os.Args[0], config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeImage(t, engine, ref) })
	return ref
}

// Debian makes an image as package images does, under the reference given, for instance nginx:latest. If there is one already it is used, and
// left alone. One test at a time has such an image, in all processes.
func Debian(t *testing.T, engine *client.Client, name, ref string) {
	t.Helper()
	file, err := os.OpenFile(filepath.Join(os.TempDir(), "steadyraft-dockertest-"+name+".lock"), os.O_CREATE|os.O_RDWR, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() }) // after the image, because it was registered before
	for syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		select {
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
	if _, err := engine.ImageInspect(t.Context(), ref); err == nil {
		return
	} else if !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
	err = images.Debian(t.Context(), engine, name, ref, Labels())
	switch {
	case errors.Is(err, images.ErrCannotMake) && os.Getenv(Variable) != "require":
		t.Skipf("skipped: %v; with %s=require that is a failure", err, Variable)
	case err != nil:
		t.Fatal(err)
	}
	t.Cleanup(func() { removeImage(t, engine, ref) })
}

func removeImage(t *testing.T, engine *client.Client, ref string) {
	ctx, cancel := context.WithTimeout(context.Background(), cleanWithin)
	defer cancel()
	for _, c := range containers(ctx, t, engine, client.Filters{}.Add("ancestor", ref)) {
		removeContainer(ctx, t, engine, c)
	}
	_, err := engine.ImageRemove(ctx, ref, client.ImageRemoveOptions{Force: true, PruneChildren: true})
	if err != nil && !errdefs.IsNotFound(err) {
		t.Errorf("remove image %s: %v", ref, err)
	}
}

func containers(ctx context.Context, t *testing.T, engine *client.Client, filters client.Filters) (ids []string) {
	list, err := engine.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: filters})
	if err != nil {
		t.Errorf("list containers: %v", err)
	}
	for _, c := range list.Items {
		ids = append(ids, c.ID)
	}
	return ids
}

func removeContainer(ctx context.Context, t *testing.T, engine *client.Client, id string) {
	_, err := engine.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
	if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) { // in conflict with somebody who removes it
		t.Errorf("remove container: %v", err)
	}
}

// sweep removes what test processes have left that are no more.
func sweep(t *testing.T, engine *client.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), cleanWithin)
	defer cancel()
	labelled := client.Filters{}.Add("label", Label)
	list, err := engine.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: labelled})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list.Items {
		if left(c.Labels[Label]) {
			removeContainer(ctx, t, engine, c.ID)
		}
	}
	networks, err := engine.NetworkList(ctx, client.NetworkListOptions{Filters: labelled})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range networks.Items {
		if left(n.Labels[Label]) {
			if _, err := engine.NetworkRemove(ctx, n.ID, client.NetworkRemoveOptions{}); err != nil && !errdefs.IsNotFound(err) {
				t.Errorf("remove network %s: %v", n.Name, err)
			}
		}
	}
	remains, err := engine.ImageList(ctx, client.ImageListOptions{Filters: labelled})
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range remains.Items {
		if left(image.Labels[Label]) {
			_, err := engine.ImageRemove(ctx, image.ID, client.ImageRemoveOptions{Force: true, PruneChildren: true})
			if err != nil && !errdefs.IsNotFound(err) {
				t.Errorf("remove image %s: %v", image.ID, err)
			}
		}
	}
}

// left reports that an owner is no more.
func left(owner string) bool {
	number, start, ok := strings.Cut(owner, "-")
	pid, err := strconv.Atoi(number)
	return ok && err == nil && startOf(pid) != start
}

// startOf is when a process was started, as the system writes it; empty if it is no more. Without /proc nothing is ever known to be left.
func startOf(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		if _, none := os.Stat("/proc/self/stat"); none != nil {
			return "0"
		}
		return ""
	}
	_, rest, _ := strings.Cut(string(data), ") ") // the name of the program may hold anything
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return ""
	}
	return fields[19]
}
