// grpc-go is a plain KMS v2 client with the dial options of kube-apiserver,
// for what the API server itself never sends.
package main

import (
	"context"
	"flag"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kmsapi "k8s.io/kms/apis/v2"

	"hsm-kms-parts/report"
)

// settings are what every scenario needs.
type settings struct {
	socket    string
	authority string
	timeout   time.Duration
}

// scenario registers its own flags and returns what to run once they are read.
type scenario func(flags *flag.FlagSet, settings *settings) func(*report.Report)

var scenarios = map[string]scenario{
	"basic":       basic,
	"concurrent":  concurrent,
	"connections": connections,
	"idle":        idle,
}

// derivedAuthority leaves the authority to grpc-go, which percent-encodes the
// socket's path as Kubernetes 1.29 to 1.31 do.
const derivedAuthority = "derived"

func main() {
	usage := "usage: grpc-go " + strings.Join(slices.Sorted(maps.Keys(scenarios)), "|") + " --socket PATH [flags]; -h after the scenario shows its flags"
	if len(os.Args) < 2 {
		report.Usage("%s", usage)
	}
	chosen, known := scenarios[os.Args[1]]
	if !known {
		report.Usage("unknown scenario %q\n%s", os.Args[1], usage)
	}

	var settings settings
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	flags.StringVar(&settings.socket, "socket", "", "`path` of the plugin's Unix socket; @name is an abstract socket")
	flags.StringVar(&settings.authority, "authority", "localhost", "`:authority` to send; \""+derivedAuthority+"\" sends the percent-encoded path, as Kubernetes 1.29 to 1.31")
	flags.DurationVar(&settings.timeout, "timeout", 3*time.Second, "deadline of one call")
	run := chosen(flags, &settings)
	flags.Parse(os.Args[2:]) // exits with 2 on an error
	if flags.NArg() > 0 {
		report.Usage("unexpected argument %q", flags.Arg(0))
	}
	if settings.socket == "" {
		report.Usage("--socket is missing")
	}
	r := &report.Report{}
	r.Reach(settings.socket)
	run(r)
}

// client is one gRPC connection and the number of times it was dialled.
type client struct {
	kmsapi.KeyManagementServiceClient
	connection *grpc.ClientConn
	dials      *atomic.Int64
	timeout    time.Duration
}

func dial(r *report.Report, settings settings) client {
	dials := &atomic.Int64{}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			dials.Add(1)
			return net.DialUnix("unix", nil, &net.UnixAddr{Name: settings.socket, Net: "unix"})
		}),
	}
	if settings.authority != derivedAuthority {
		options = append(options, grpc.WithAuthority(settings.authority))
	}
	// Dial, not NewClient: the API server uses it, and the two derive
	// different authorities.
	connection, err := grpc.Dial(settings.socket, options...)
	if err != nil {
		r.Stop(report.DoesNotHold, "dial", err)
	}
	return client{kmsapi.NewKeyManagementServiceClient(connection), connection, dials, settings.timeout}
}

func (c client) deadline() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), c.timeout)
}

func (c client) status() (*kmsapi.StatusResponse, error) {
	ctx, cancel := c.deadline()
	defer cancel()
	return c.Status(ctx, &kmsapi.StatusRequest{})
}

func (c client) encrypt(plaintext []byte) (*kmsapi.EncryptResponse, error) {
	ctx, cancel := c.deadline()
	defer cancel()
	return c.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: plaintext, Uid: "grpc-go"})
}

func (c client) decrypt(request *kmsapi.DecryptRequest) ([]byte, error) {
	ctx, cancel := c.deadline()
	defer cancel()
	request.Uid = "grpc-go"
	answer, err := c.Decrypt(ctx, request)
	return answer.GetPlaintext(), err
}

func openRequest(sealed *kmsapi.EncryptResponse) *kmsapi.DecryptRequest {
	return &kmsapi.DecryptRequest{
		Ciphertext:  slices.Clone(sealed.Ciphertext),
		KeyId:       sealed.KeyId,
		Annotations: maps.Clone(sealed.Annotations),
	}
}
