package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"flag"
	"fmt"
	"maps"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"hsm-kms-parts/report"
)

// misbehaviours change one answer of an otherwise well-behaved plugin.
var misbehaviours = map[string]plugin{
	"none":      {},
	"mismatch":  {encrypt: func(answer *kmsapi.EncryptResponse) error { answer.KeyId = "another-key"; return nil }},
	"unhealthy": {status: func(answer *kmsapi.StatusResponse) { answer.Healthz = "the token is away" }},
	"encrypt-error": {encrypt: func(*kmsapi.EncryptResponse) error {
		return status.Error(codes.FailedPrecondition, "key disabled")
	}},
	"annotation": {encrypt: func(answer *kmsapi.EncryptResponse) error {
		answer.Annotations = map[string][]byte{"nodot": []byte("1")}
		return nil
	}},
	"version": {status: func(answer *kmsapi.StatusResponse) { answer.Version = "v1" }},
	// The next two pass every health check: only reading with empty caches shows them.
	"decrypt-error": {decrypt: func(*kmsapi.DecryptResponse) error {
		return status.Error(codes.InvalidArgument, "not sealed here")
	}},
	"wrong-plaintext": {decrypt: func(answer *kmsapi.DecryptResponse) error {
		answer.Plaintext[0] ^= 1
		return nil
	}},
}

// gone accepts connections and closes them: something holds the socket, but no
// plugin answers.
const gone = "gone"

func misbehave(flags *flag.FlagSet, settings *settings) func(*report.Report) {
	names := append(slices.Sorted(maps.Keys(misbehaviours)), gone)
	mode := flags.String("mode", "", "`what` it does: "+strings.Join(names, ", "))
	return func(r *report.Report) {
		plugin, known := misbehaviours[*mode]
		if !known && *mode != gone {
			report.Usage("--mode must be one of %s", strings.Join(names, ", "))
		}
		listener, err := net.Listen("unix", settings.socket)
		if err != nil {
			r.Stop(report.NotReachable, "listen", err)
		}
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
		r.Note("serving", report.Fields{"mode": *mode})
		if *mode == gone {
			go closeEach(listener)
			<-stop
			listener.Close()
			return
		}
		server := grpc.NewServer()
		kmsapi.RegisterKeyManagementServiceServer(server, plugin.withKey())
		go server.Serve(listener)
		<-stop
		server.Stop() // also removes the socket
	}
}

func closeEach(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		connection.Close()
	}
}

// plugin seals with AES-GCM under a key that lives as long as the process.
type plugin struct {
	kmsapi.UnimplementedKeyManagementServiceServer
	aead    cipher.AEAD
	status  func(*kmsapi.StatusResponse)
	encrypt func(*kmsapi.EncryptResponse) error
	decrypt func(*kmsapi.DecryptResponse) error
}

const pluginKeyID = "the-key"

func (p plugin) withKey() plugin {
	key := make([]byte, 32)
	rand.Read(key) // never fails
	block, err := aes.NewCipher(key)
	if err == nil {
		p.aead, err = cipher.NewGCMWithRandomNonce(block)
	}
	if err != nil {
		panic(fmt.Sprintf("a 32-byte AES key was refused: %v", err))
	}
	return p
}

func (p plugin) Status(context.Context, *kmsapi.StatusRequest) (*kmsapi.StatusResponse, error) {
	answer := &kmsapi.StatusResponse{Version: "v2", Healthz: "ok", KeyId: pluginKeyID}
	if p.status != nil {
		p.status(answer)
	}
	return answer, nil
}

func (p plugin) Encrypt(_ context.Context, request *kmsapi.EncryptRequest) (*kmsapi.EncryptResponse, error) {
	sealed := p.aead.Seal(nil, nil, request.Plaintext, []byte(pluginKeyID))
	answer := &kmsapi.EncryptResponse{Ciphertext: sealed, KeyId: pluginKeyID}
	if p.encrypt != nil {
		if err := p.encrypt(answer); err != nil {
			return nil, err
		}
	}
	return answer, nil
}

func (p plugin) Decrypt(_ context.Context, request *kmsapi.DecryptRequest) (*kmsapi.DecryptResponse, error) {
	plaintext, err := p.aead.Open(nil, nil, request.Ciphertext, []byte(request.KeyId))
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "the ciphertext is not one of this plugin")
	}
	answer := &kmsapi.DecryptResponse{Plaintext: plaintext}
	if p.decrypt != nil {
		if err := p.decrypt(answer); err != nil {
			return nil, err
		}
	}
	return answer, nil
}
