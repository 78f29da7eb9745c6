package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

const secretSize = 200

// secret is a value whose plaintext follows from its name, so that another run
// can tell whether it read the right one. The plaintext begins as the API
// server's storage encoding does and carries a text to search etcd's files for.
type secret struct{ name string }

func secretNumber(number int) secret {
	return secret{name: fmt.Sprintf("secret-%05d", number)}
}

// key is the etcd key, which the stack binds as additional authenticated data.
func (s secret) key() string {
	return etcdFolder + s.name
}

func (s secret) plaintext() []byte {
	text := []byte("k8s\x00PLAINTEXT-OF-" + s.name + ":")
	for block := sha256.Sum256([]byte(s.name)); len(text) < secretSize; block = sha256.Sum256(block[:]) {
		text = hex.AppendEncode(text, block[:])
	}
	return text[:secretSize]
}

const etcdFolder = "/registry/secrets/default/"
