package main

import (
	"strings"

	"k8s.io/component-base/metrics/legacyregistry"
)

// calls counts the RPCs of this process by method and gRPC code, from the
// API server's own metric, for example {"Status OK": 3}.
func calls() map[string]uint64 {
	counts := map[string]uint64{}
	families, err := legacyregistry.DefaultGatherer.Gather()
	if err != nil {
		return counts
	}
	for _, family := range families {
		if family.GetName() != "apiserver_envelope_encryption_kms_operations_latency_seconds" {
			continue
		}
		for _, metric := range family.GetMetric() {
			var method, code string
			for _, label := range metric.GetLabel() {
				switch label.GetName() {
				case "method_name":
					method = label.GetValue()[strings.LastIndexByte(label.GetValue(), '/')+1:]
				case "grpc_status_code":
					code = label.GetValue()
				}
			}
			counts[method+" "+code] += metric.GetHistogram().GetSampleCount()
		}
	}
	return counts
}
