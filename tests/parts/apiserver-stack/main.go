// apiserver-stack drives a KMS v2 plugin with kube-apiserver's own encryption
// code: the package that reads an EncryptionConfiguration, dials the plugin,
// polls Status, makes seeds, and turns objects into what etcd stores and back.
package main

import (
	"flag"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"hsm-kms-parts/report"
)

// settings are what every scenario needs.
type settings struct {
	socket   string
	provider string
	timeout  time.Duration
	// configuration is a file that takes the place of the stack's own.
	configuration string
}

// scenario registers its own flags and returns what to run once they are read.
type scenario func(flags *flag.FlagSet, settings *settings) func(*report.Report)

var scenarios = map[string]scenario{
	"roundtrip":  roundtrip,
	"store":      store,
	"verify":     verify,
	"late-start": lateStart,
	"restart":    restart,
	"refuse":     refuse,
	"poll":       poll,
	"misbehave":  misbehave,
	"script":     script,
}

func main() {
	names := slices.Sorted(maps.Keys(scenarios))
	usage := "usage: apiserver-stack " + strings.Join(names, "|") + " --socket PATH [flags]; -h after the scenario shows its flags"
	if len(os.Args) < 2 {
		report.Usage("%s", usage)
	}
	chosen, known := scenarios[os.Args[1]]
	if !known {
		report.Usage("unknown scenario %q\n%s", os.Args[1], usage)
	}

	var settings settings
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	flags.StringVar(&settings.socket, "socket", "", "`path` of the plugin's Unix socket; @name is an abstract socket")
	flags.StringVar(&settings.provider, "provider", "hsm-kms", "`name` of the provider in the EncryptionConfiguration")
	flags.DurationVar(&settings.timeout, "timeout", 3*time.Second, "timeout of one call, as in the EncryptionConfiguration")
	flags.StringVar(&settings.configuration, "configuration", "", "EncryptionConfiguration `file` in place of the one with this provider alone")
	run := chosen(flags, &settings)
	flags.Parse(os.Args[2:]) // exits with 2 on an error
	if flags.NArg() > 0 {
		report.Usage("unexpected argument %q", flags.Arg(0))
	}
	if settings.socket == "" {
		report.Usage("--socket is missing")
	}
	run(&report.Report{})
}

// mustLoad is loadStack for scenarios that cannot go on without a stack. Only a
// configuration that the API server refuses ends here, so it is bad usage.
func mustLoad(r *report.Report, settings settings) *stack {
	loaded, err := loadStack(settings)
	if err != nil {
		r.Stop(report.BadUsage, "load", err)
	}
	return loaded
}

// end closes the report with the calls that the stacks made.
func end(r *report.Report) {
	r.End(report.Fields{"calls": calls()})
}

func seconds(since time.Time) float64 {
	return time.Since(since).Round(time.Millisecond).Seconds()
}
