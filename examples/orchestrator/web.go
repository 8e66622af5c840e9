package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// webCommand is the container of the demo: a tiny server that says who it is.
const webCommand = "__web"

// busyVariable in its environment has it use a part of a processor, for the demo of autoscaling.
const busyVariable = "DEMO_BUSY"

func beBusy() {
	for {
		for began := time.Now(); time.Since(began) < 10*time.Millisecond; {
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func webMain(errOut io.Writer) int {
	address := net.JoinHostPort(os.Getenv("HOST"), os.Getenv("PORT")) // where the agent has told the task to listen
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	server := &http.Server{
		Addr: address, ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, "%d %s\n", os.Getpid(), address)
		}),
	}
	if os.Getenv(busyVariable) != "" {
		go beBusy()
	}
	fmt.Printf("pid %d listens on %s\n", os.Getpid(), address)
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	select {
	case <-ended:
		return 0
	case err := <-failed:
		fmt.Fprintln(errOut, err)
		return 1
	}
}
