package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// etcd speaks to a real etcd through its JSON gateway. encoding/json writes and
// reads []byte as base64, which is the gateway's form of bytes.
type etcd struct {
	url    string
	client http.Client
}

func newEtcd(url string) *etcd {
	return &etcd{url: strings.TrimSuffix(url, "/"), client: http.Client{Timeout: 10 * time.Second}}
}

type keyValue struct {
	Key   []byte `json:"key"`
	Value []byte `json:"value"`
}

func (e *etcd) put(key string, stored []byte) error {
	return e.post("/v3/kv/put", keyValue{[]byte(key), stored}, nil)
}

// list returns all below the folder.
func (e *etcd) list(folder string) ([]keyValue, error) {
	end := []byte(folder)
	end[len(end)-1]++
	var answer struct {
		Kvs []keyValue `json:"kvs"`
	}
	err := e.post("/v3/kv/range", map[string][]byte{"key": []byte(folder), "range_end": end}, &answer)
	return answer.Kvs, err
}

func (e *etcd) post(path string, request, answer any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	response, err := e.client.Post(e.url+path, "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("etcd answered %s: %s", response.Status, text)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text, answer)
}
