package main

import (
	"bytes"
	"crypto/rand"
	"flag"
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kmsapi "k8s.io/kms/apis/v2"

	"hsm-kms-parts/report"
)

func basic(_ *flag.FlagSet, settings *settings) func(*report.Report) {
	return func(r *report.Report) {
		client := dial(r, *settings)
		answer, err := client.status()
		if err == nil {
			err = goodStatus(answer)
		}
		if !r.Check("status", err == nil, report.Fields{"error": report.ErrorText(err), "key_id": answer.GetKeyId()}) {
			r.End(nil)
		}

		seed := make([]byte, 32)
		rand.Read(seed) // never fails
		sealed, err := client.encrypt(seed)
		if err == nil {
			err = goodSealed(sealed, answer.KeyId)
		}
		if !r.Check("encrypt", err == nil, report.Fields{"error": report.ErrorText(err), "bytes": len(sealed.GetCiphertext())}) {
			r.End(nil)
		}
		plaintext, err := client.decrypt(openRequest(sealed))
		r.Check("decrypt", err == nil && bytes.Equal(plaintext, seed), report.Fields{"error": report.ErrorText(err)})

		again, err := client.encrypt(seed)
		r.Check("same-plaintext-other-ciphertext", err == nil && !bytes.Equal(again.Ciphertext, sealed.Ciphertext), report.Fields{"error": report.ErrorText(err)})
		sealedByte, err := client.encrypt([]byte{7})
		if err == nil {
			plaintext, err = client.decrypt(openRequest(sealedByte))
		}
		r.Check("one-byte-plaintext", err == nil && bytes.Equal(plaintext, []byte{7}), report.Fields{"error": report.ErrorText(err)})

		checkRefusals(r, client, sealed)
		checkEachBitFlipped(r, client, sealed)

		plaintext, err = client.decrypt(openRequest(sealed))
		r.Check("decrypt-after-refusals", err == nil && bytes.Equal(plaintext, seed), report.Fields{"error": report.ErrorText(err)})
		r.Check("one-connection", client.dials.Load() == 1, report.Fields{"dials": client.dials.Load()})
		r.End(nil)
	}
}

func goodStatus(answer *kmsapi.StatusResponse) error {
	switch {
	case answer.Version != "v2" && answer.Version != "v2beta1":
		return fmt.Errorf("version is %q", answer.Version)
	case answer.Healthz != "ok":
		return fmt.Errorf("healthz is %q", answer.Healthz)
	case len(answer.KeyId) < 1 || len(answer.KeyId) > 1024:
		return fmt.Errorf("key_id has %d bytes", len(answer.KeyId))
	}
	return nil
}

// goodSealed applies the API server's rules for an answer of Encrypt.
func goodSealed(sealed *kmsapi.EncryptResponse, keyID string) error {
	switch {
	case sealed.KeyId != keyID:
		return fmt.Errorf("key_id is %q, Status said %q", sealed.KeyId, keyID)
	case len(sealed.Ciphertext) < 1 || len(sealed.Ciphertext) > 1024:
		return fmt.Errorf("ciphertext has %d bytes", len(sealed.Ciphertext))
	}
	size := 0
	for name, value := range sealed.Annotations {
		size += len(name) + len(value)
		if errs := validation.IsFullyQualifiedDomainName(field.NewPath("annotations"), name); len(errs) > 0 {
			return errs.ToAggregate()
		}
	}
	if size > 32*1024 {
		return fmt.Errorf("annotations have %d bytes", size)
	}
	return nil
}

// refusal is a request that must fail with one of the codes.
type refusal struct {
	name  string
	codes []codes.Code
	call  func() error
}

func checkRefusals(r *report.Report, client client, sealed *kmsapi.EncryptResponse) {
	encrypt := func(plaintext []byte) func() error {
		return func() error {
			_, err := client.encrypt(plaintext)
			return err
		}
	}
	decrypt := func(change func(*kmsapi.DecryptRequest)) func() error {
		return func() error {
			request := openRequest(sealed)
			change(request)
			_, err := client.decrypt(request)
			return err
		}
	}
	invoke := func(method string) func() error {
		return func() error {
			ctx, cancel := client.deadline()
			defer cancel()
			return client.connection.Invoke(ctx, method, &kmsapi.StatusRequest{}, &kmsapi.StatusResponse{})
		}
	}
	invalid := []codes.Code{codes.InvalidArgument}
	// A server's message limit answers OutOfRange or ResourceExhausted.
	tooLarge := []codes.Code{codes.InvalidArgument, codes.OutOfRange, codes.ResourceExhausted}
	large := make([]byte, 65*1024)

	for _, refusal := range []refusal{
		{"unknown-method", []codes.Code{codes.Unimplemented}, invoke("/v2.KeyManagementService/Rotate")},
		{"unknown-service", []codes.Code{codes.Unimplemented}, invoke("/v1beta1.KeyManagementService/Version")},
		{"empty-plaintext", invalid, encrypt(nil)},
		{"4-kib-plaintext", invalid, encrypt(make([]byte, 4096))},
		{"encrypt-over-64-kib", tooLarge, encrypt(large)},
		{"decrypt-over-64-kib", tooLarge, decrypt(func(request *kmsapi.DecryptRequest) { request.Ciphertext = large })},
		{"unknown-key-id", []codes.Code{codes.NotFound, codes.FailedPrecondition}, decrypt(func(request *kmsapi.DecryptRequest) { request.KeyId = "no-such-key" })},
		{"empty-ciphertext", invalid, decrypt(func(request *kmsapi.DecryptRequest) { request.Ciphertext = nil })},
		{"ciphertext-cut-short", invalid, decrypt(func(request *kmsapi.DecryptRequest) {
			request.Ciphertext = request.Ciphertext[:len(request.Ciphertext)-1]
		})},
		{"ciphertext-longer", invalid, decrypt(func(request *kmsapi.DecryptRequest) { request.Ciphertext = append(request.Ciphertext, 0) })},
		{"annotation-added", invalid, decrypt(func(request *kmsapi.DecryptRequest) {
			if request.Annotations == nil {
				request.Annotations = map[string][]byte{}
			}
			request.Annotations["added.example.com"] = []byte("1")
		})},
	} {
		err := refusal.call()
		code := status.Code(err)
		r.Check(refusal.name+"-refused", slices.Contains(refusal.codes, code), report.Fields{"code": code.String(), "error": report.ErrorText(err)})
	}
}

// checkEachBitFlipped flips every bit of the ciphertext in turn.
func checkEachBitFlipped(r *report.Report, client client, sealed *kmsapi.EncryptResponse) {
	bits := 8 * len(sealed.Ciphertext)
	for bit := range bits {
		request := openRequest(sealed)
		request.Ciphertext[bit/8] ^= 1 << (bit % 8)
		_, err := client.decrypt(request)
		if code := status.Code(err); code != codes.InvalidArgument {
			r.Check("flipped-bit-refused", false, report.Fields{"bit": bit, "code": code.String(), "error": report.ErrorText(err)})
			return
		}
	}
	r.Check("flipped-bit-refused", true, report.Fields{"bits": bits})
}
