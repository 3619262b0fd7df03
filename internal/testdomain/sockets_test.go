package testdomain_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/writ-dev/writ/internal/testdomain"
)

// socketConn connects this process, as a workload, to an agent's socket.
func socketConn(t *testing.T, path string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// watchSVIDs opens FetchX509SVID. A stream that nothing more comes on ends after a while, for the test to fail.
func watchSVIDs(t *testing.T, conn *grpc.ClientConn) workload.SpiffeWorkloadAPI_FetchX509SVIDClient {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(
		metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true"), &workload.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// holds gives the SPIFFE IDs of the next answer on a stream.
func holds(stream workload.SpiffeWorkloadAPI_FetchX509SVIDClient) ([]string, error) {
	answer, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, svid := range answer.Svids {
		ids = append(ids, svid.SpiffeId)
	}
	return ids, nil
}

// askSecrets opens StreamSecrets for these names, as an Envoy does.
func askSecrets(t *testing.T, conn *grpc.ClientConn, names ...string) secretv3.SecretDiscoveryService_StreamSecretsClient {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	stream, err := secretv3.NewSecretDiscoveryServiceClient(conn).StreamSecrets(ctx)
	if err != nil {
		t.Fatal(err)
	}
	err = stream.Send(&discoveryv3.DiscoveryRequest{Node: &corev3.Node{Id: "test"}, ResourceNames: names,
		TypeUrl: "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"})
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// nextSecrets gives the names of the secrets in the next response, sorted.
func nextSecrets(t *testing.T, stream secretv3.SecretDiscoveryService_StreamSecretsClient) []string {
	t.Helper()
	response, err := stream.Recv()
	if err != nil {
		t.Fatalf("next response of StreamSecrets: %v", err)
	}
	var names []string
	for _, resource := range response.Resources {
		var secret tlsv3.Secret
		if err := resource.UnmarshalTo(&secret); err != nil {
			t.Fatal(err)
		}
		names = append(names, secret.Name)
	}
	slices.Sort(names)
	return names
}

// untilHeld waits until a workload of this process holds an ID.
func untilHeld(t *testing.T, conn *grpc.ClientConn, within time.Duration, id string) {
	t.Helper()
	testdomain.Until(t, within, "this process holds "+id, func() error {
		ids, err := holds(watchSVIDs(t, conn))
		if err == nil && !slices.Contains(ids, id) {
			err = fmt.Errorf("it holds %q", ids)
		}
		return err
	})
}
