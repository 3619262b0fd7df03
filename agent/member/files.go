package member

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/attest"
	"github.com/writ-dev/writ/internal/durable"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/svid"
)

// The files of the data directory, each 0600 and replaced as one act.
const (
	nodeKeyFile = "node.key"     // PKCS#8 PEM; made once, never certified
	svidFile    = "agent.json"   // what the server gave this node
	pendingFile = "pending.json" // the key of a generation that was asked for and not yet answered
	bundleFile  = "bundle.pem"   // the roots of our trust domain
)

// newKey is the one place that chooses what keys this package makes.
func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// SVID is this node's membership of its trust domain: the agent SVID with its key and what the server said of the node. A value:
// renewal makes another, nobody changes one.
type SVID struct {
	ID           spiffeid.ID // the agent ID
	Generation   uint64
	Reattestable bool // its evidence may be judged anew; else the node key re-attests
	NotAfter     time.Time
	Selectors    []attest.Selector // the node's, as the server found them

	servers []string
	key     *ecdsa.PrivateKey
	chain   [][]byte
	leaf    *x509.Certificate
}

// svidJSON is an SVID as it lies on the disk.
type svidJSON struct {
	AgentID      string   `json:"agent_id"`
	Servers      []string `json:"servers"`
	Generation   uint64   `json:"generation"`
	Reattestable bool     `json:"reattestable"`
	Selectors    []string `json:"selectors,omitempty"`
	Key          []byte   `json:"key"`   // PKCS#8 DER
	Chain        [][]byte `json:"chain"` // DER, leaf first
}

// pendingJSON is a key that a server may have certified already: a retry must name the same one, or it looks like a second copy
// of this node.
type pendingJSON struct {
	Generation uint64 `json:"generation"` // 0: attestation by evidence
	Key        []byte `json:"key"`
}

func (m *SVID) certificate() *tls.Certificate {
	return &tls.Certificate{Certificate: m.chain, PrivateKey: m.key, Leaf: m.leaf}
}

// Valid says whether the SVID has not ended.
func (m *SVID) Valid(now time.Time) bool { return now.Before(m.leaf.NotAfter) }

// renewAt is half of the SVID's life, give or take a tenth by node key and generation: nodes that were started together do not
// renew together, and one node tries at the same moment after a restart.
func (m *SVID) renewAt(nodeKey []byte) time.Time {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(bytes.Clone(nodeKey), m.Generation))
	fraction := float64(binary.BigEndian.Uint32(sum[:])) / (1 << 32)
	return m.leaf.NotBefore.Add(HalfLife(m.leaf.NotAfter.Sub(m.leaf.NotBefore), fraction))
}

// folder is the data directory.
type folder string

func (f folder) path(name string) string { return filepath.Join(string(f), name) }

// nodeKey reads the node key, and makes it the first time.
func (f folder) nodeKey() (*ecdsa.PrivateKey, error) {
	text, err := durable.ReadSecret(f.path(nodeKeyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return f.makeNodeKey()
	}
	if err != nil {
		return nil, f.refuse(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("node key %s is not PEM", f.path(nodeKeyFile))
	}
	key, err := parseKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("node key %s: %w", f.path(nodeKeyFile), err)
	}
	return key, nil
}

func (f folder) makeNodeKey() (*ecdsa.PrivateKey, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return key, durable.WriteFile(f.path(nodeKeyFile), text, 0o600)
}

// svid reads what the last attestation or renewal left; nil where there was none.
func (f folder) svid() (*SVID, error) {
	var saved svidJSON
	if there, err := f.read(svidFile, &saved); !there || err != nil {
		return nil, err
	}
	m, err := saved.parse()
	if err != nil {
		return nil, fault.New(fault.Invalid, err, fmt.Sprintf("%s cannot be read", f.path(svidFile))).
			With(fault.BadConfig, "remove the data directory and join again: writ agent join -")
	}
	return m, nil
}

func (s svidJSON) parse() (*SVID, error) {
	id, err := svid.ParseID(s.AgentID)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(s.Key)
	if err != nil {
		return nil, err
	}
	certificates, err := parseChain(s.Chain)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(certificates[0].PublicKey) {
		return nil, errors.New("the key is not the certificate's")
	}
	return &SVID{ID: id, Generation: s.Generation, Reattestable: s.Reattestable, NotAfter: certificates[0].NotAfter, servers: s.Servers, key: key,
		chain: s.Chain, leaf: certificates[0], Selectors: readSelectors(s.Selectors)}, nil
}

// readSelectors leaves out what is none: they are shown and suggested from, and decide nothing here.
func readSelectors(list []string) (out []attest.Selector) {
	for _, text := range list {
		if s, err := attest.ParseSelector(text); err == nil {
			out = append(out, s)
		}
	}
	return out
}

// keep writes the SVID, and only then forgets the pending key: a crash in between leaves both, which pending sorts out.
func (f folder) keep(m *SVID) error {
	der, err := x509.MarshalPKCS8PrivateKey(m.key)
	if err != nil {
		return err
	}
	saved := svidJSON{AgentID: m.ID.String(), Servers: m.servers, Generation: m.Generation, Reattestable: m.Reattestable, Key: der,
		Chain: m.chain}
	for _, s := range m.Selectors {
		saved.Selectors = append(saved.Selectors, s.String())
	}
	if err := f.write(svidFile, saved); err != nil {
		return err
	}
	if err := os.Remove(f.path(pendingFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// pending gives the key to ask a generation with: that of an earlier try whose answer was lost, or a new one, which is on the
// disk before anybody hears of it.
func (f folder) pending(generation uint64, held *SVID) (*ecdsa.PrivateKey, error) {
	var saved pendingJSON
	there, err := f.read(pendingFile, &saved)
	if err != nil {
		return nil, err
	}
	if there && saved.Generation == generation {
		if key, err := parseKey(saved.Key); err == nil && (held == nil || !key.Equal(held.key)) {
			return key, nil
		}
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, f.write(pendingFile, pendingJSON{Generation: generation, Key: der})
}

// roots reads the roots of our trust domain; none where none were kept.
func (f folder) roots() ([]*x509.Certificate, error) {
	text, err := durable.ReadSecret(f.path(bundleFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, f.refuse(err)
	}
	return parsePEM(text)
}

func (f folder) keepRoots(roots []*x509.Certificate) error {
	var text []byte
	for _, c := range roots {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return durable.WriteFile(f.path(bundleFile), text, 0o600)
}

func (f folder) read(name string, into any) (there bool, err error) {
	text, err := durable.ReadSecret(f.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, f.refuse(err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return false, fmt.Errorf("read %s: %w", f.path(name), err)
	}
	return true, nil
}

func (f folder) write(name string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(f.path(name), append(text, '\n'), 0o600)
}

// refuse tells what to do about a file that others may read.
func (f folder) refuse(err error) error {
	var wide *durable.WideModeError
	if !errors.As(err, &wide) {
		return err
	}
	return fault.New(fault.Invalid, err, "a file or folder of the agent is open to others").
		With(fault.WideMode, fmt.Sprintf("chmod go-rwx %s", wide.Path))
}

func parseKey(der []byte) (*ecdsa.PrivateKey, error) {
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	if key, ok := key.(*ecdsa.PrivateKey); ok {
		return key, nil
	}
	return nil, errors.New("it is not an ECDSA key")
}

// parseChain gives at least one certificate.
func parseChain(chain [][]byte) ([]*x509.Certificate, error) {
	if len(chain) == 0 {
		return nil, errors.New("there is no certificate")
	}
	return parseAll(chain)
}

func parseAll(list [][]byte) ([]*x509.Certificate, error) {
	out := make([]*x509.Certificate, 0, len(list))
	for _, der := range list {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func parsePEM(text []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a %s stands among the certificates", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("there is no certificate in it")
	}
	return out, nil
}
