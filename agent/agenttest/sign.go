package agenttest

import (
	"context"
	"crypto/x509"
	"net/url"

	"github.com/writ-dev/writ/api/nodev1"
	"github.com/writ-dev/writ/internal/fault"
)

// Sign is the node API's.
func (a *Authority) Sign(ctx context.Context, request *nodev1.SignRequest) (*nodev1.SignResponse, error) {
	if err := a.known(ctx); err != nil {
		return nil, err
	}
	a.Lock()
	defer a.Unlock()
	answer := &nodev1.SignResponse{}
	for _, r := range request.GetRequests() {
		entry := a.entries[r.GetEntry()]
		csr, err := x509.ParseCertificateRequest(r.GetCsr())
		if err != nil || entry == nil || a.Refuse != nil && a.Refuse(r.GetEntry()) || entry.GetSpiffeId() != r.GetSpiffeId() {
			answer.Results = append(answer.Results, &nodev1.SigningResult{Status: 9, Code: string(fault.NotEntitled), Message: "no such entry"})
			continue
		}
		a.Signed[r.GetEntry()]++
		ttl := a.TTL
		if entry.GetTtl() != nil {
			ttl = entry.GetTtl().AsDuration()
		}
		u, _ := url.Parse(r.GetSpiffeId())
		template := a.leaf(u.Path, ttl)
		template.DNSNames = entry.GetDns()
		c := a.certify(a.Issuing, a.key, csr.PublicKey, template)
		answer.Results = append(answer.Results, &nodev1.SigningResult{Certificates: [][]byte{c.Raw, a.Issuing.Raw}})
	}
	return answer, nil
}
