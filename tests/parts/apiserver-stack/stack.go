package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/storage/value"
	kmsservice "k8s.io/kms/pkg/service"
)

// stack is one load of an EncryptionConfiguration: what one kube-apiserver
// process holds. A second load in the same program has its own connection,
// its own seed and empty caches, as after a restart of the API server.
type stack struct {
	provider string
	loaded   *encryptionconfig.EncryptionConfiguration
	service  kmsservice.Service
	close    context.CancelFunc
}

var secrets = schema.GroupResource{Resource: "secrets"}

// loadStack writes the configuration to a temporary file and has the API
// server's own code load it. Like there, an absent plugin is no error.
func loadStack(settings settings) (*stack, error) {
	folder, err := os.MkdirTemp("", "apiserver-stack")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder)
	path := filepath.Join(folder, "encryption-configuration.yaml")
	if settings.configuration != "" {
		path = settings.configuration
	} else if err := os.WriteFile(path, []byte(configuration(settings)), 0o600); err != nil {
		return nil, err
	}

	loading.Lock()
	defer loading.Unlock()
	loadingService = nil
	ctx, cancel := context.WithCancel(context.Background())
	loaded, err := encryptionconfig.LoadEncryptionConfig(ctx, path, false, "apiserver-stack")
	if err != nil {
		cancel()
		return nil, err
	}
	return &stack{provider: settings.provider, loaded: loaded, service: loadingService, close: cancel}, nil
}

// configuration has no identity provider: a value that the plugin did not seal
// must not pass.
func configuration(settings settings) string {
	endpoint := settings.socket
	if strings.HasPrefix(endpoint, "@") {
		endpoint = "/" + endpoint
	}
	return fmt.Sprintf(`apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
  - resources: [secrets]
    providers:
      - kms:
          apiVersion: v2
          name: %q
          endpoint: %q
          timeout: %s
`, settings.provider, "unix://"+endpoint, settings.timeout)
}

// health is the verdict of /readyz/kms-providers. The stack keeps a good
// verdict for 20 s and a bad one for 3 s before it asks the plugin again.
func (s *stack) health() error {
	request, err := http.NewRequest(http.MethodGet, "/readyz/kms-providers", nil)
	if err != nil {
		return err
	}
	for _, check := range s.loaded.HealthChecks {
		if err := check.Check(request); err != nil {
			return err
		}
	}
	return nil
}

// healthWithin asks about once a second, as impatient probes would.
func (s *stack) healthWithin(limit time.Duration) error {
	return within(limit, time.Second, s.health)
}

// within repeats the attempt until it succeeds. A success after the limit is none.
func within(limit, pause time.Duration, attempt func() error) error {
	start := time.Now()
	for {
		err := attempt()
		late := time.Since(start) > limit
		switch {
		case late && err == nil:
			return fmt.Errorf("only after %v s", seconds(start))
		case late || err == nil:
			return err
		}
		time.Sleep(pause)
	}
}

func (s *stack) encrypt(key string, plaintext []byte) ([]byte, error) {
	return s.transformer().TransformToStorage(context.Background(), plaintext, value.DefaultContext(key))
}

// decrypt also says whether the API server would call the value stale.
func (s *stack) decrypt(key string, stored []byte) ([]byte, bool, error) {
	return s.transformer().TransformFromStorage(context.Background(), stored, value.DefaultContext(key))
}

func (s *stack) transformer() value.Transformer {
	return s.loaded.Transformers[secrets]
}

// The stack offers one seam of its own, the factory of its plugin client. It
// is used to look on, and to send a Status over the very connection of a stack.
var (
	loading        sync.Mutex
	loadingService kmsservice.Service
	// onStatus sees every Status answer of every stack, where set.
	onStatus func(*kmsservice.StatusResponse, error, time.Duration)
)

func init() {
	original := encryptionconfig.EnvelopeKMSv2ServiceFactory
	encryptionconfig.EnvelopeKMSv2ServiceFactory = func(ctx context.Context, endpoint, name string, timeout time.Duration) (kmsservice.Service, error) {
		service, err := original(ctx, endpoint, name, timeout)
		if err != nil {
			return nil, err
		}
		loadingService = onlooker{service}
		return loadingService, nil
	}
}

type onlooker struct{ kmsservice.Service }

func (o onlooker) Status(ctx context.Context) (*kmsservice.StatusResponse, error) {
	start := time.Now()
	answer, err := o.Service.Status(ctx)
	if onStatus != nil {
		onStatus(answer, err, time.Since(start))
	}
	return answer, err
}
