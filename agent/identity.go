package agent

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
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/internal/durable"
	"github.com/writ-dev/writ/internal/fault"
	"github.com/writ-dev/writ/svid"
)

// The files of the data directory, each 0600 and replaced as one act.
const (
	nodeKeyFile = "node.key"     // PKCS#8 PEM; made once, never certified
	memberFile  = "agent.json"   // what the server gave this node
	pendingFile = "pending.json" // the key of a generation that was asked for and not yet answered
	bundleFile  = "bundle.pem"   // the roots of our trust domain
)

// PrivateKey is a PKCS#8 DER key. It does not print.
type PrivateKey []byte

// String hides the key.
func (PrivateKey) String() string { return "[key]" }

// GoString hides the key.
func (PrivateKey) GoString() string { return "[key]" }

// LogValue hides the key.
func (PrivateKey) LogValue() slog.Value { return slog.StringValue("[key]") }

// newKey is the one place that chooses what keys this package makes.
func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// member is this node's membership of its trust domain. A value: renewal makes another, nobody changes one.
type member struct {
	id           spiffeid.ID
	servers      []string
	generation   uint64
	reattestable bool // its evidence may be judged anew; else the node key re-attests
	key          *ecdsa.PrivateKey
	chain        [][]byte
	leaf         *x509.Certificate
}

// memberJSON is a member as it lies on the disk.
type memberJSON struct {
	AgentID      string   `json:"agent_id"`
	Servers      []string `json:"servers"`
	Generation   uint64   `json:"generation"`
	Reattestable bool     `json:"reattestable"`
	Key          []byte   `json:"key"`   // PKCS#8 DER
	Chain        [][]byte `json:"chain"` // DER, leaf first
}

// pendingJSON is a key that a server may have certified already: a retry must name the same one, or it looks like a second copy
// of this node.
type pendingJSON struct {
	Generation uint64 `json:"generation"` // 0: attestation by evidence
	Key        []byte `json:"key"`
}

func (m *member) certificate() tls.Certificate {
	return tls.Certificate{Certificate: m.chain, PrivateKey: m.key, Leaf: m.leaf}
}

func (m *member) valid(now time.Time) bool { return now.Before(m.leaf.NotAfter) }

// renewAt is half of the SVID's life, give or take a tenth by node key and generation: nodes that were started together do not
// renew together, and one node tries at the same moment after a restart.
func (m *member) renewAt(nodeKey []byte) time.Time {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(bytes.Clone(nodeKey), m.generation))
	fraction := float64(binary.BigEndian.Uint32(sum[:])) / (1 << 32)
	return m.leaf.NotBefore.Add(halfLife(m.leaf.NotAfter.Sub(m.leaf.NotBefore), fraction))
}

// halfLife is between 45 and 55 hundredths of a life, for a fraction from 0 to 1.
func halfLife(life time.Duration, fraction float64) time.Duration {
	return time.Duration(float64(life) * (0.45 + 0.1*fraction))
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

// member reads what the last attestation or renewal left; nil where there was none.
func (f folder) member() (*member, error) {
	var saved memberJSON
	if there, err := f.read(memberFile, &saved); !there || err != nil {
		return nil, err
	}
	m, err := saved.parse()
	if err != nil {
		return nil, fault.New(fault.Invalid, err, fmt.Sprintf("%s cannot be read", f.path(memberFile))).
			With(fault.BadConfig, "remove the data directory and join again: writ agent join -")
	}
	return m, nil
}

func (s memberJSON) parse() (*member, error) {
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
	return &member{id: id, servers: s.Servers, generation: s.Generation, reattestable: s.Reattestable, key: key, chain: s.Chain,
		leaf: certificates[0]}, nil
}

// keep writes the member, and only then forgets the pending key: a crash in between leaves both, which Pending sorts out.
func (f folder) keep(m *member) error {
	der, err := x509.MarshalPKCS8PrivateKey(m.key)
	if err != nil {
		return err
	}
	saved := memberJSON{AgentID: m.id.String(), Servers: m.servers, Generation: m.generation, Reattestable: m.reattestable, Key: der,
		Chain: m.chain}
	if err := f.write(memberFile, saved); err != nil {
		return err
	}
	if err := os.Remove(f.path(pendingFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// pending gives the key to ask a generation with: that of an earlier try whose answer was lost, or a new one, which is on the
// disk before anybody hears of it.
func (f folder) pending(generation uint64, held *member) (*ecdsa.PrivateKey, error) {
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

func sameCertificates(a, b []*x509.Certificate) bool {
	return slices.EqualFunc(a, b, (*x509.Certificate).Equal)
}
