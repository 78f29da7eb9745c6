package main

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"hsm-kms-parts/report"
)

// lateStart has the API server start before the plugin.
func lateStart(flags *flag.FlagSet, settings *settings) func(*report.Report) {
	wait := flags.Float64("wait", 60, "`seconds` from the socket's appearance to a healthy stack")
	appear := flags.Float64("appear", 120, "`seconds` to wait for the socket")
	return func(r *report.Report) {
		if strings.HasPrefix(settings.socket, "@") {
			report.Usage("late-start needs a socket with a file")
		}
		if exists(settings.socket) {
			report.Usage("late-start needs a socket that is not there yet: %s", settings.socket)
		}
		stack := mustLoad(r, *settings)
		err := stack.health()
		r.Check("unhealthy-without-plugin", err != nil, report.Fields{"error": report.ErrorText(err)})
		r.Note("waiting", nil)

		for start := time.Now(); !exists(settings.socket); time.Sleep(20 * time.Millisecond) {
			if seconds(start) > *appear {
				r.Stop(report.NotReachable, "appear", fmt.Errorf("no socket within %v s", *appear))
			}
		}
		appeared := time.Now()
		err = stack.healthWithin(duration(*wait))
		healthy := r.Check("healthy", err == nil, report.Fields{"seconds": seconds(appeared), "error": report.ErrorText(err)})
		if healthy {
			checkFreshStack(r, *settings, write(r, stack, 1))
		}
		end(r)
	}
}

// restart has the plugin go away and come back under a running API server.
func restart(flags *flag.FlagSet, settings *settings) func(*report.Report) {
	wait := flags.Float64("wait", 60, "`seconds` from \"done\" to a plugin that answers again")
	count := flags.Int("count", 20, "`number` of secrets")
	return func(r *report.Report) {
		r.Reach(settings.socket)
		running := mustLoad(r, *settings)
		stored := write(r, running, *count)
		// The running stack does not know this other server's seed, so reading
		// its value later takes a Decrypt over the running stack's connection.
		other := mustLoad(r, *settings)
		foreign := secretNumber(*count)
		foreignValue, err := other.encrypt(foreign.key(), foreign.plaintext())
		if err != nil {
			r.Stop(report.DoesNotHold, "encrypt", err)
		}
		other.close()

		r.Note("restart-now", nil)
		line, err := bufio.NewReader(os.Stdin).ReadString('\n')
		if err != nil || strings.TrimSpace(line) != "done" {
			report.Usage("expected the line \"done\" on standard input")
		}

		start := time.Now()
		err = statusWithin(running, duration(*wait))
		if !r.Check("status-on-old-connection", err == nil, report.Fields{"seconds": seconds(start), "error": report.ErrorText(err)}) {
			end(r)
		}
		plaintext, _, err := running.decrypt(foreign.key(), foreignValue)
		right := err == nil && bytes.Equal(plaintext, foreign.plaintext())
		r.Check("decrypt-on-old-connection", right, report.Fields{"seconds": seconds(start), "error": report.ErrorText(err)})
		// This may be a verdict from before, since a good one is kept for 20 s;
		// the Status above and the fresh stack below are the proof.
		err = running.healthWithin(duration(*wait))
		r.Check("health-of-old-stack", err == nil, report.Fields{"seconds": seconds(start), "error": report.ErrorText(err)})
		checkFreshStack(r, *settings, stored)
		end(r)
	}
}

// statusWithin sends Status over the stack's own connection until an answer
// says ok. The stack's health would not do: it keeps a good verdict for 20 s.
func statusWithin(s *stack, limit time.Duration) error {
	return within(limit, 100*time.Millisecond, func() error {
		answer, err := s.service.Status(context.Background())
		if err == nil && answer.Healthz != "ok" {
			err = fmt.Errorf("healthz is %q", answer.Healthz)
		}
		return err
	})
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func duration(seconds float64) time.Duration {
	return time.Duration(seconds * float64(time.Second))
}
