package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/connectivity"

	"hsm-kms-parts/report"
)

// concurrent makes many calls at the same time on one connection.
func concurrent(flags *flag.FlagSet, settings *settings) func(*report.Report) {
	count := flags.Int("calls", 100, "`number` of callers; each makes one Status, one Encrypt and one Decrypt")
	return func(r *report.Report) {
		client := dial(r, *settings)
		start := time.Now()
		err := atOnce(*count, func(int) error { return client.threeMethods() })
		r.Check("concurrent", err == nil, report.Fields{
			"callers": *count, "seconds": time.Since(start).Seconds(), "error": report.ErrorText(err),
		})
		r.Check("one-connection", client.dials.Load() == 1, report.Fields{"dials": client.dials.Load()})
		r.End(nil)
	}
}

// connections holds many connections open together.
func connections(flags *flag.FlagSet, settings *settings) func(*report.Report) {
	count := flags.Int("count", 10, "`number` of connections")
	return func(r *report.Report) {
		clients := make([]client, *count)
		for number := range clients {
			clients[number] = dial(r, *settings)
			err := clients[number].threeMethods()
			if !r.Check("connection", err == nil, report.Fields{"number": number + 1, "error": report.ErrorText(err)}) {
				r.End(nil)
			}
		}
		err := atOnce(*count, func(number int) error { return clients[number].threeMethods() })
		r.Check("all-at-once", err == nil, report.Fields{"connections": *count, "error": report.ErrorText(err)})
		dials := int64(0)
		for _, client := range clients {
			dials += client.dials.Load()
		}
		r.Check("none-dialled-again", dials == int64(*count), report.Fields{"dials": dials})
		r.End(nil)
	}
}

// idle leaves a connection alone and expects to find it open.
func idle(flags *flag.FlagSet, settings *settings) func(*report.Report) {
	length := flags.Float64("seconds", 600, "`seconds` without a call")
	return func(r *report.Report) {
		client := dial(r, *settings)
		_, err := client.status()
		if !r.Check("before", err == nil, report.Fields{"error": report.ErrorText(err)}) {
			r.End(nil)
		}
		time.Sleep(time.Duration(*length * float64(time.Second)))
		state := client.connection.GetState()
		r.Check("still-open", state == connectivity.Ready, report.Fields{"state": state.String(), "seconds": *length})
		err = client.threeMethods()
		r.Check("after", err == nil, report.Fields{"error": report.ErrorText(err)})
		r.Check("one-connection", client.dials.Load() == 1, report.Fields{"dials": client.dials.Load()})
		r.End(nil)
	}
}

// atOnce starts all calls together and returns all their errors.
func atOnce(count int, call func(number int) error) error {
	start := make(chan struct{})
	errs := make([]error, count)
	var group sync.WaitGroup
	for number := range count {
		group.Go(func() {
			<-start
			errs[number] = call(number)
		})
	}
	close(start)
	group.Wait()
	return errors.Join(errs...)
}

// threeMethods is what an API server needs of a plugin: Status, a seed sealed
// under the key_id that Status gave, and the same seed back.
func (c client) threeMethods() error {
	answer, err := c.status()
	if err != nil {
		return err
	}
	if err := goodStatus(answer); err != nil {
		return err
	}
	seed := make([]byte, 32)
	rand.Read(seed) // never fails
	sealed, err := c.encrypt(seed)
	if err != nil {
		return err
	}
	if err := goodSealed(sealed, answer.KeyId); err != nil {
		return err
	}
	plaintext, err := c.decrypt(openRequest(sealed))
	if err != nil {
		return err
	}
	if !bytes.Equal(plaintext, seed) {
		return fmt.Errorf("decrypt gave another plaintext")
	}
	return nil
}
