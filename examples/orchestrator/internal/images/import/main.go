// Command import makes images from nothing and gives them to a Docker Engine, for machines without a registry:
//
//	go run ./examples/orchestrator/internal/images/import nginx=nginx:latest redis=redis:alpine
//
// nginx and redis are made of Debian's packages, which takes a minute the first time and needs debootstrap and root's rights; any other name
// is the path of a program for Linux, which becomes an image with the libraries that it needs.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"

	"github.com/moby/moby/client"

	"github.com/steadyraft/raft/examples/orchestrator/internal/images"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "import:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("want WHAT=REFERENCE..., as in nginx=nginx:latest; WHAT is one of %s, or the path of a program", strings.Join(images.Names(), ", "))
	}
	engine, err := client.New(client.FromEnv)
	if err != nil {
		return err
	}
	defer engine.Close()
	for _, arg := range args {
		what, ref, ok := strings.Cut(arg, "=")
		if !ok || what == "" || ref == "" {
			return fmt.Errorf("%q: want WHAT=REFERENCE", arg)
		}
		if slices.Contains(images.Names(), what) {
			err = images.Debian(ctx, engine, what, ref, nil)
		} else {
			err = images.Program(ctx, engine, ref, what, images.Config{})
		}
		if err != nil {
			return err
		}
		fmt.Println(ref)
	}
	return nil
}
