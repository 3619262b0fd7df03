package workloadapi

import (
	"context"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-dev/writ/agent"
	"github.com/writ-dev/writ/agent/peer"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/svid"
)

// fetchJWT answers FetchJWTSVID.
func (h *Handler) fetchJWT(ctx context.Context, r *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	request := agent.JWTRequest{Audience: r.GetAudience()}
	if text := r.GetSpiffeId(); text != "" {
		var err error
		if request.ID, err = svid.ParseID(text); err != nil {
			return nil, fault.Status(fault.New(fault.Invalid, err, "spiffe_id is no SPIFFE ID"))
		}
	}
	caller, err := peer.From(ctx)
	if err != nil {
		return nil, h.answer(ctx, err)
	}
	svids, err := h.config.Source.FetchJWTs(ctx, caller, request)
	switch {
	case fault.Is(err, fault.Invalid): // what is asked for is issued to nobody
		return nil, fault.Status(err)
	case err != nil:
		return nil, h.answer(ctx, err)
	case len(svids) == 0:
		return nil, h.answer(ctx, errNoIdentity(caller.Process().PID))
	}
	response, left := composeJWTs(svids)
	if left > 0 {
		h.config.Log.WarnContext(ctx, "a workload may hold more than its clients take", "peer_pid", caller.Process().PID,
			"err", fmt.Errorf("%d JWT-SVIDs are left out", left))
	}
	peer.Answered(ctx)
	return response, nil
}

// composeJWTs says how many are left out because clients would not take them.
func composeJWTs(svids []agent.JWTSVID) (response *workload.JWTSVIDResponse, left int) {
	response = &workload.JWTSVIDResponse{}
	room := mostBytes
	for _, s := range svids[:min(len(svids), mostSVIDs)] {
		one := &workload.JWTSVID{SpiffeId: s.ID.String(), Svid: string(s.Token), Hint: s.Hint}
		if room -= proto.Size(one) + framing; room < 0 {
			break
		}
		response.Svids = append(response.Svids, one)
	}
	return response, len(svids) - len(response.Svids)
}

// validateJWT answers ValidateJWTSVID. Whatever is wrong with the token is InvalidArgument, as clients expect (ruling R9).
func (h *Handler) validateJWT(ctx context.Context, r *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	if r.GetAudience() == "" || r.GetSvid() == "" {
		return nil, fault.Status(fault.New(fault.Invalid, nil, "an audience and a JWT-SVID must be given"))
	}
	caller, err := peer.From(ctx)
	if err != nil {
		return nil, h.answer(ctx, err)
	}
	view, err := h.config.Source.ViewOf(ctx, caller)
	switch {
	case err != nil:
		return nil, h.answer(ctx, err)
	case !entitled(view): // ruling R9: whom to trust is told to those who have an identity
		return nil, h.answer(ctx, errNoIdentity(caller.Process().PID))
	case len(view.Bundles) == 0:
		return nil, h.answer(ctx, errNoBundle())
	}
	bundles := map[spiffeid.TrustDomain]svid.JWTBundle{}
	for _, b := range view.Bundles {
		bundles[b.TrustDomain] = b.JWT
	}
	token, err := svid.VerifyJWT(r.GetSvid(), bundles, []string{r.GetAudience()}, h.config.Now())
	if err != nil {
		return nil, fault.Status(fault.New(fault.Invalid, nil, err.Error()))
	}
	claims, err := structpb.NewStruct(claimsOf(token, view.Bundles[0].TrustDomain))
	if err != nil {
		return nil, fault.Status(fault.New(fault.Invalid, err, "the claims of the JWT-SVID are no texts and numbers"))
	}
	peer.Answered(ctx)
	return &workload.ValidateJWTSVIDResponse{SpiffeId: token.ID.String(), Claims: claims}, nil
}

// claimsOf are all that our own authority says. A foreign one is believed whose token it is, for whom and until when, and nothing
// else (SPIFFE_Workload_API section 6.2.3; SPIFFE-ID section 4.1).
func claimsOf(token *svid.JWT, own spiffeid.TrustDomain) map[string]any {
	claims := map[string]any{}
	for name, claim := range token.Claims {
		if token.ID.MemberOf(own) || name == "sub" || name == "exp" {
			claims[name] = claim
		}
	}
	audience := make([]any, 0, len(token.Audience)) // a list even where the token has a text
	for _, one := range token.Audience {
		audience = append(audience, one)
	}
	claims["aud"] = audience
	return claims
}
