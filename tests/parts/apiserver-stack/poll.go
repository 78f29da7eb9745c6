package main

import (
	"flag"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2"
	"k8s.io/klog/v2"
	kmsservice "k8s.io/kms/pkg/service"

	"hsm-kms-parts/report"
)

// poll lets the stack poll as it does in an API server and shows what it sees.
func poll(flags *flag.FlagSet, settings *settings) func(*report.Report) {
	length := flags.Float64("seconds", 130, "`seconds` to go on")
	probe := flags.Float64("probe", 0, "`seconds` between health checks, as a kubelet's readiness probe makes them; 0 leaves the stack's own poll alone")
	return func(r *report.Report) {
		r.Reach(settings.socket)
		start := time.Now()
		onStatus = statusReporter(r, start)
		reportFailedChecks(r, start)
		stack := mustLoad(r, *settings)

		end := time.After(duration(*length))
		var probes <-chan time.Time
		if *probe > 0 {
			probes = time.Tick(duration(*probe))
		}
		for {
			select {
			case <-probes:
				err := stack.health()
				r.Check("health", err == nil, report.Fields{"at": seconds(start), "error": report.ErrorText(err)})
			case <-end:
				r.End(report.Fields{"at": seconds(start), "calls": calls()})
			}
		}
	}
}

// statusReporter shows each Status answer, and each change of the key_id by the
// hash that the API server's metrics and logs give it. Checks are serial.
func statusReporter(r *report.Report, start time.Time) func(*kmsservice.StatusResponse, error, time.Duration) {
	known := ""
	return func(answer *kmsservice.StatusResponse, err error, took time.Duration) {
		fields := report.Fields{"at": seconds(start), "took_ms": float64(took.Microseconds()) / 1000}
		if err != nil {
			fields["error"] = err.Error()
			r.Note("status", fields)
			return
		}
		hash := kmsv2.GetHashIfNotEmpty(answer.KeyID)
		fields["healthz"], fields["version"], fields["key_id_hash"] = answer.Healthz, answer.Version, hash
		r.Note("status", fields)
		if hash != known {
			r.Note("key-id", report.Fields{"at": seconds(start), "from": known, "to": hash})
			known = hash
		}
	}
}

// reportFailedChecks turns the log line of a failed check of the stack's own
// poll into a step. A check that logs nothing was good.
func reportFailedChecks(r *report.Report, start time.Time) {
	var flags flag.FlagSet
	klog.InitFlags(&flags)
	flags.Set("v", "2") // the level of that line
	klog.SetLogger(logr.New(failedChecks{r, start}))
}

type failedChecks struct {
	report *report.Report
	start  time.Time
}

func (f failedChecks) Error(err error, message string, _ ...any) {
	if message == "kms plugin failed health check probe" {
		f.report.Check("own-check", false, report.Fields{"at": seconds(f.start), "error": report.ErrorText(err)})
	}
}

func (f failedChecks) Init(logr.RuntimeInfo)          {}
func (f failedChecks) Enabled(int) bool               { return true }
func (f failedChecks) Info(int, string, ...any)       {}
func (f failedChecks) WithValues(...any) logr.LogSink { return f }
func (f failedChecks) WithName(string) logr.LogSink   { return f }
