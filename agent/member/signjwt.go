package member

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/svid"
)

// WantJWT is a JWT-SVID that is asked for.
type WantJWT struct {
	Entry    string
	ID       spiffeid.ID
	Audience []string // 1 to 32, each once
}

// IssuedJWT is what came of a WantJWT: a verified token or an error.
type IssuedJWT struct {
	JWT *svid.JWT
	Err error
}

// IssueJWT asks for all JWT-SVIDs in one call. Its error is the call's; a want's own stands with its result. What does not verify
// with the keys, which are our own trust domain's, counts as refused: workloads have the same keys and could not use it either.
func (r *Server) IssueJWT(ctx context.Context, wants []WantJWT, keys svid.JWTBundle, now func() time.Time) ([]IssuedJWT, error) {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	request := &nodev1.SignJWTRequest{}
	for _, want := range wants {
		request.Requests = append(request.Requests, &nodev1.JWTSigningRequest{Entry: want.Entry, SpiffeId: want.ID.String(), Audience: want.Audience})
	}
	answer, err := r.SignJWT(ctx, request)
	switch status.Code(err) {
	case codes.OK:
	case codes.Canceled:
		return nil, fault.New(fault.Unreachable, err, fmt.Sprintf("the connection to server %s ended", r.Address))
	case codes.Unimplemented: // switched off, or an older version
		return nil, fault.New(fault.NotFound, err, "the server issues no JWT-SVIDs")
	default:
		return nil, r.Why(err)
	}
	if len(answer.GetResults()) != len(wants) {
		return nil, fmt.Errorf("the server gave %d results for %d requests", len(answer.GetResults()), len(wants))
	}
	out := make([]IssuedJWT, len(wants))
	for i, result := range answer.GetResults() {
		if out[i].JWT, err = acceptJWT(result, wants[i], keys, now()); err != nil {
			out[i] = IssuedJWT{Err: err}
		}
	}
	return out, nil
}

func acceptJWT(result *nodev1.JWTSigningResult, want WantJWT, keys svid.JWTBundle, now time.Time) (*svid.JWT, error) {
	if err := refusal(result); err != nil {
		return nil, err
	}
	j, err := svid.VerifyJWT(result.GetToken(), map[spiffeid.TrustDomain]svid.JWTBundle{keys.TrustDomain: keys}, want.Audience, now)
	if err != nil { // the bundle with its key may be on the way
		return nil, fault.New(fault.Stale, skewedJWT(err, time.Unix(result.GetIssuedUnix(), 0), now), "the JWT-SVID of the server does not verify here")
	}
	if j.ID != want.ID {
		return nil, fmt.Errorf("the JWT-SVID is for %s", j.ID)
	}
	if !maps.Equal(setOf(j.Audience), setOf(want.Audience)) {
		return nil, fmt.Errorf("the JWT-SVID of %s is for another audience", j.ID)
	}
	return j, nil
}

func setOf(list []string) map[string]bool {
	set := map[string]bool{}
	for one := range slices.Values(list) {
		set[one] = true
	}
	return set
}

// skewedJWT says by how much the clocks differ where that may be why a token does not verify.
func skewedJWT(err error, issued, now time.Time) error {
	if apart := now.Sub(issued).Round(time.Second); apart.Abs() > svid.JWTLeeway {
		return fmt.Errorf("%w: this node's clock is %s ahead of the server's", err, apart)
	}
	return err
}
