package workloadapi_test

import (
	"context"
	"testing"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/agent"
	"github.com/writ-dev/writ/agent/agenttest"
	"github.com/writ-dev/writ/agent/workloadapi"
	"github.com/writ-dev/writ/attest"
)

// untouched is a source that nobody may ask.
type untouched struct{ t *testing.T }

func (u untouched) Subscribe(context.Context, attest.Peer) (*agent.Subscription, error) {
	u.t.Error("the caller was attested")
	return nil, context.Canceled
}

func (u untouched) ViewOf(context.Context, attest.Peer) (agent.View, error) {
	u.t.Error("the caller was attested")
	return agent.View{}, context.Canceled
}

func (u untouched) FetchJWTs(context.Context, attest.Peer, agent.JWTRequest) ([]agent.JWTSVID, error) {
	u.t.Error("the caller was attested")
	return nil, context.Canceled
}

// bytesCodec sends what a test says, whether it is a message or not.
type bytesCodec struct{}

func (bytesCodec) Name() string { return "proto" }
func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}
func (bytesCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

// call calls any method with any bytes and gives how it ended.
func call(ctx context.Context, conn *grpc.ClientConn, method string, request []byte) error {
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method, grpc.ForceCodecV2(bytesCodec{}))
	if err != nil {
		return err
	}
	if err := stream.SendMsg(request); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	var answer []byte
	for {
		if err := stream.RecvMsg(&answer); err != nil {
			return err
		}
	}
}

// methods are all of the service, and whether they are served.
func methods() map[string]bool {
	all := map[string]bool{}
	for _, m := range workload.SpiffeWorkloadAPI_ServiceDesc.Methods {
		all[m.MethodName] = true
	}
	for _, s := range workload.SpiffeWorkloadAPI_ServiceDesc.Streams {
		all[s.StreamName] = true
	}
	all["FetchWITSVID"], all["FetchWITBundles"] = false, false
	return all
}

// Before anything else of the call, on each of the seven methods, served or not.
func TestWEP_06_WEP_07_CLIENT_16_HeaderIsAskedForFirst(t *testing.T) {
	path := agenttest.Socket(t)
	handler := workloadapi.New(workloadapi.Config{Source: untouched{t}})
	agenttest.Serve(t, path, func(s *grpc.Server) { handler.Register(s) })
	conn := agenttest.Dial(t, path)
	if n := len(methods()); n != 7 {
		t.Fatalf("the service has %d methods", n)
	}
	for _, row := range []struct {
		name   string
		header []string
	}{
		{"missing", nil},
		{"empty", []string{""}},
		{"True", []string{"True"}},
		{"TRUE", []string{"TRUE"}},
		{"1", []string{"1"}},
		{"false", []string{"false"}},
		{"true twice", []string{"true", "true"}},
		{"true and false", []string{"true", "false"}},
		{"true, true in one value", []string{"true,true"}},
	} {
		for method := range methods() {
			for what, request := range map[string][]byte{"an empty request": {}, "bytes that are no message": {0xff, 0xff, 0xff}} {
				err := call(withHeader(t.Context(), row.header...), conn, "/SpiffeWorkloadAPI/"+method, request)
				if status.Code(err) != codes.InvalidArgument {
					t.Errorf("header %s, %s with %s: %v", row.name, method, what, err)
				}
			}
		}
	}
}

// With the header, what is not served says so, and so does what is not there.
func TestWAPI_02_WAPI_80_WEP_22_UnservedMethodsAreUnimplemented(t *testing.T) {
	path := agenttest.Socket(t)
	handler := workloadapi.New(workloadapi.Config{Source: untouched{t}})
	agenttest.Serve(t, path, func(s *grpc.Server) { handler.Register(s) })
	conn := agenttest.Dial(t, path)
	unserved := []string{"Nope"}
	for method, served := range methods() {
		if !served {
			unserved = append(unserved, method)
		}
	}
	for _, method := range unserved {
		if err := call(withHeader(t.Context(), "true"), conn, "/SpiffeWorkloadAPI/"+method, nil); status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v", method, err)
		}
	}
	if len(unserved) != 3 {
		t.Errorf("unserved are %v", unserved)
	}
}
