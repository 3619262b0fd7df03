package ca

import (
	"context"
	"crypto"
	"errors"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Authority signs for one trust domain.
type Authority struct{ config Config }

// New loads this server's authorities from the ledger, or makes them.
func New(_ context.Context, c Config) (*Authority, error) { return nil, errors.ErrUnsupported }

// Run renews the issuing certificate at half its life until ctx ends.
func (a *Authority) Run(ctx context.Context) error { return errors.ErrUnsupported }

// Bundle gives what others need to verify SVIDs of this trust domain, as of now.
func (a *Authority) Bundle() Bundle { return Bundle{} }

// ID names the authority that signs now.
func (a *Authority) ID() string { return "" }

// Profile says what a certificate may be.
type Profile struct{ name string }

// WorkloadSVID is the profile of workloads.
func WorkloadSVID() Profile { return Profile{} }

// AgentSVID is the profile of agents.
func AgentSVID() Profile { return Profile{} }

// ServerSVID is the profile of servers.
func ServerSVID() Profile { return Profile{} }

// Name is how records call the profile.
func (p Profile) Name() string { return p.name }

// Draft is an exact certificate that waits for its signature.
type Draft struct{}

// Draft drafts.
func (a *Authority) Draft(p Profile, r Request) (*Draft, error) { return nil, errors.ErrUnsupported }

// Issue signs a Draft, once.
func (a *Authority) Issue(d *Draft) (chain [][]byte, err error) { return nil, errors.ErrUnsupported }

// Serial is lower-case hex, 32 digits.
func (d *Draft) Serial() string { return "" }

// ID is whose certificate it will be.
func (d *Draft) ID() spiffeid.ID { return spiffeid.ID{} }

// NotBefore is the start.
func (d *Draft) NotBefore() time.Time { return time.Time{} }

// NotAfter is the end.
func (d *Draft) NotAfter() time.Time { return time.Time{} }

// AuthorityID names the authority that drafted it and that will sign it.
func (d *Draft) AuthorityID() string { return "" }

// Profile is what it was drafted under.
func (d *Draft) Profile() Profile { return Profile{} }

// Digest is the SHA-256 of the to-be-signed bytes.
func (d *Draft) Digest() [32]byte { return [32]byte{} }

// CheckCSR checks a signing request and takes the public key from it.
func CheckCSR(der []byte, id spiffeid.ID) (crypto.PublicKey, error) { return nil, errors.ErrUnsupported }
