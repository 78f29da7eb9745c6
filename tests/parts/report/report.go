// Package report is what the two Go parts share: one JSON line per step, and
// the exit codes of every part.
package report

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
)

// The exit codes. A part never ends with any other.
const (
	Holds        = 0
	DoesNotHold  = 1
	BadUsage     = 2
	NotReachable = 3
)

// Fields are what a step has to say beyond its name.
type Fields map[string]any

// Report writes steps to standard output and remembers whether all held.
type Report struct {
	mutex  sync.Mutex
	failed bool
}

// Note writes a step that cannot fail.
func (r *Report) Note(step string, fields Fields) {
	r.write(step, fields)
}

// Check writes a step with its verdict and returns that verdict.
func (r *Report) Check(step string, ok bool, fields Fields) bool {
	verdict := Fields{"ok": ok}
	for name, value := range fields {
		verdict[name] = value
	}
	if !ok {
		r.mutex.Lock()
		r.failed = true
		r.mutex.Unlock()
	}
	r.write(step, verdict)
	return ok
}

// End writes the last line, with the verdict over all steps, and exits with it.
func (r *Report) End(fields Fields) {
	r.mutex.Lock()
	failed := r.failed
	r.mutex.Unlock()
	r.Check("result", !failed, fields)
	if failed {
		os.Exit(DoesNotHold)
	}
	os.Exit(Holds)
}

// Stop writes why the scenario cannot go on and exits with the code.
func (r *Report) Stop(code int, step string, err error) {
	r.Check(step, false, Fields{"error": err.Error()})
	os.Exit(code)
}

// Reach exits with NotReachable unless somebody listens on the Unix socket.
// A path that begins with '@' is an abstract socket.
func (r *Report) Reach(socket string) {
	connection, err := net.Dial("unix", socket)
	if err != nil {
		r.Stop(NotReachable, "reach", err)
	}
	connection.Close()
}

// Usage writes a line about bad usage to standard error and exits.
func Usage(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", arguments...)
	os.Exit(BadUsage)
}

// ErrorText is the error's text, or nothing.
func ErrorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// write puts the step first in its line and leaves an empty error out.
func (r *Report) write(step string, fields Fields) {
	line := `{"step":` + encode(step)
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if name == "error" && fields[name] == "" {
			continue
		}
		line += "," + encode(name) + ":" + encode(fields[name])
	}
	r.mutex.Lock()
	defer r.mutex.Unlock()
	fmt.Println(line + "}")
}

func encode(value any) string {
	var text strings.Builder
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return encode(err.Error())
	}
	return strings.TrimSuffix(text.String(), "\n")
}
