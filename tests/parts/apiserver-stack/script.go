package main

import (
	"bufio"
	"encoding/base64"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2"

	"hsm-kms-parts/report"
)

// script lets another program decide, line by line, what the stack is asked.
// Each command is answered by one step of the command's name.
func script(_ *flag.FlagSet, settings *settings) func(*report.Report) {
	return func(r *report.Report) {
		actor := actor{settings: *settings, report: r, stack: mustLoad(r, *settings)}
		r.Note("loaded", nil)
		input := bufio.NewScanner(os.Stdin)
		for input.Scan() {
			actor.do(strings.Fields(input.Text()))
		}
		end(r)
	}
}

type actor struct {
	settings settings
	report   *report.Report
	stack    *stack
	ahead    time.Duration
}

func (a *actor) do(words []string) {
	switch {
	case len(words) == 1 && words[0] == "health":
		a.answer(words[0], a.stack.health(), report.Fields{})
	case len(words) == 1 && words[0] == "calls":
		a.answer(words[0], nil, report.Fields{"calls": calls()})
	case words[0] == "fresh" && len(words) <= 2:
		if len(words) == 2 {
			a.settings.configuration = words[1]
		}
		a.stack.close()
		a.stack = mustLoad(a.report, a.settings)
		a.answer(words[0], nil, report.Fields{})
	case len(words) == 2 && words[0] == "later":
		a.later(words[1])
	case len(words) == 2 && words[0] == "write":
		secret := secret{words[1]}
		stored, err := a.stack.encrypt(secret.key(), secret.plaintext())
		a.answer(words[0], err, report.Fields{"stored": stored})
	case len(words) == 3 && words[0] == "read":
		a.read(secret{words[1]}, words[2])
	default:
		report.Usage("unknown command %q", words)
	}
}

func (a *actor) answer(step string, err error, fields report.Fields) {
	fields["done"], fields["error"] = err == nil, report.ErrorText(err)
	a.report.Note(step, fields)
}

// read gives the plaintext, to be judged by whoever wrote the script.
func (a *actor) read(secret secret, text string) {
	stored, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		report.Usage("a value is not base64: %v", err)
	}
	plaintext, stale, err := a.stack.decrypt(secret.key(), stored)
	a.answer("read", err, report.Fields{"plaintext": plaintext, "stale": stale})
}

// later moves the clock by which the stack lets a seed expire. The API server's
// code offers no other clock: its polls and caches go by the machine's.
func (a *actor) later(text string) {
	seconds, err := strconv.ParseFloat(text, 64)
	if err != nil {
		report.Usage("not a number of seconds: %q", text)
	}
	a.ahead += duration(seconds)
	ahead := a.ahead
	kmsv2.SetNowFuncForTests(a.settings.provider, func() time.Time { return time.Now().Add(ahead) })
	a.answer("later", nil, report.Fields{"ahead": fmt.Sprint(ahead)})
}
