package main

import (
	"flag"
	"maps"
	"slices"
	"strings"

	"hsm-kms-parts/report"
)

// refusals are the API server's own words for what a plugin does wrong. All of
// a case's words must stand in the health error.
var refusals = map[string][]string{
	"mismatch":      {"failed to rotate DEK", "errGen=<nil>", "statusKeyIDHash="},
	"unhealthy":     {"got unexpected healthz status: "},
	"encrypt-error": {"failed to rotate DEK", "failed to encrypt DEK, error: "},
	"annotation":    {"failed to rotate DEK", "failed to validate annotations: "},
	"gone":          {"code = DeadlineExceeded", "latest balancer error"},
	"version":       {"expected KMSv2 API version v2, got "},
}

// keepsWriting are the cases in which this API server writes on although it
// calls the plugin unhealthy: health and seed are judged apart there
// (kubernetes/kubernetes issue 138950). What it does is shown, not required.
var keepsWriting = map[string]bool{"unhealthy": true, "version": true}

func refuse(flags *flag.FlagSet, settings *settings) func(*report.Report) {
	expect := flags.String("expect", "", "`case`: "+strings.Join(caseNames(), ", "))
	return func(r *report.Report) {
		words, known := refusals[*expect]
		if !known {
			report.Usage("--expect must be one of %s", strings.Join(caseNames(), ", "))
		}
		if *expect != "gone" {
			r.Reach(settings.socket)
		}
		stack := mustLoad(r, *settings)
		text := report.ErrorText(stack.health())
		refused := text != ""
		for _, word := range words {
			refused = refused && strings.Contains(text, word)
		}
		r.Check("refused", refused, report.Fields{"case": *expect, "words": words, "error": text})

		secret := secretNumber(0)
		_, err := stack.encrypt(secret.key(), secret.plaintext())
		if keepsWriting[*expect] {
			r.Note("write", report.Fields{"accepted": err == nil, "error": report.ErrorText(err)})
		} else {
			r.Check("write-refused", err != nil, report.Fields{"error": report.ErrorText(err)})
		}
		end(r)
	}
}

func caseNames() []string {
	return slices.Sorted(maps.Keys(refusals))
}
