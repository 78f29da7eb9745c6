package main

import (
	"bytes"
	"flag"
	"fmt"
	"time"

	"hsm-kms-parts/report"
)

func roundtrip(flags *flag.FlagSet, settings *settings) func(*report.Report) {
	count := flags.Int("count", 20, "`number` of secrets")
	return func(r *report.Report) {
		r.Reach(settings.socket)
		first := mustLoad(r, *settings)
		stored := write(r, first, *count)
		r.Check("read-back", true, readFields(r, first, stored))
		checkOtherKeyRefused(r, first, stored)
		first.close()

		checkFreshStack(r, *settings, stored)
		end(r)
	}
}

// write checks health, encrypts the secrets and checks the form of what etcd
// would store.
func write(r *report.Report, s *stack, count int) map[string][]byte {
	checkHealth(r, s)
	stored := map[string][]byte{}
	prefix := []byte("k8s:enc:kms:v2:" + s.provider + ":")
	for number := range count {
		secret := secretNumber(number)
		value, err := s.encrypt(secret.key(), secret.plaintext())
		if err == nil && !bytes.HasPrefix(value, prefix) {
			err = fmt.Errorf("the value does not begin with %q", prefix)
		}
		if err == nil && bytes.Contains(value, []byte("PLAINTEXT")) {
			err = fmt.Errorf("the value holds the plaintext")
		}
		if err != nil {
			r.Stop(report.DoesNotHold, "encrypt", fmt.Errorf("%s: %w", secret.name, err))
		}
		stored[secret.name] = value
	}
	r.Check("encrypt", true, report.Fields{"count": count, "prefix": string(prefix)})
	return stored
}

func checkHealth(r *report.Report, s *stack) {
	start := time.Now()
	err := s.health()
	if !r.Check("health", err == nil, report.Fields{"seconds": seconds(start), "error": report.ErrorText(err)}) {
		end(r)
	}
}

// readFields reads all values back and ends the program at the first that is
// not what its name says.
func readFields(r *report.Report, s *stack, stored map[string][]byte) report.Fields {
	start := time.Now()
	before := calls()["Decrypt OK"]
	stale := 0
	for name, value := range stored {
		secret := secret{name}
		plaintext, isStale, err := s.decrypt(secret.key(), value)
		if err == nil && !bytes.Equal(plaintext, secret.plaintext()) {
			err = fmt.Errorf("the plaintext is another one")
		}
		if err != nil {
			r.Stop(report.DoesNotHold, "read", fmt.Errorf("%s: %w", name, err))
		}
		if isStale {
			stale++
		}
	}
	return report.Fields{
		"count":    len(stored),
		"stale":    stale,
		"decrypts": calls()["Decrypt OK"] - before,
		"seconds":  seconds(start),
	}
}

// checkOtherKeyRefused reads a value as if it stood under another etcd key.
func checkOtherKeyRefused(r *report.Report, s *stack, stored map[string][]byte) {
	for name, value := range stored {
		_, _, err := s.decrypt(etcdFolder+"moved-"+name, value)
		r.Check("other-etcd-key-refused", err != nil, report.Fields{"error": report.ErrorText(err)})
		return
	}
}

// checkFreshStack reads everything through a stack with empty caches, and
// makes sure that this took real Decrypts.
func checkFreshStack(r *report.Report, settings settings, stored map[string][]byte) {
	fresh := mustLoad(r, settings)
	defer fresh.close()
	checkHealth(r, fresh)
	fields := readFields(r, fresh, stored)
	r.Check("fresh-stack", fields["decrypts"].(uint64) > 0, fields)
}
