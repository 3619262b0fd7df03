package main

import (
	"errors"
	"io"
	"log/slog"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-dev/writ/audit"
)

// recordsConfig is authz.records: one text, the file or "off", or these keys.
type recordsConfig struct {
	File     string          `yaml:"file"`     // JSON lines; "off": none; decisions.jsonl in the data directory
	Required bool            `yaml:"required"` // a request whose record finds no room is denied with 503; every write is synced
	Rotate   rotateConfig    `yaml:"rotate"`
	Sample   sampleConfig    `yaml:"sample"`
	Upload   *receiverConfig `yaml:"upload"` // sent beside the file; nowhere
}

type rotateConfig struct {
	Megabytes int `yaml:"megabytes"` // at which a new file is begun; 100
	Files     int `yaml:"files"`     // older ones that are kept, FILE.1 the newest; 10
}

// sampleConfig is what part of the decisions is recorded.
type sampleConfig struct {
	Allowed *float64 `yaml:"allowed"` // 0 to 1; 1
	Denied  *float64 `yaml:"denied"`  // everything that is not allowed; 1
}

// receiverConfig names a receiver of OPA's decision logs.
type receiverConfig struct {
	URL             string            `yaml:"url"`              // https, or http on loopback
	TokenFile       string            `yaml:"token_file"`       // bearer token, read at each attempt; none
	Roots           string            `yaml:"roots"`            // PEM file of the CAs that the receiver is under; the system's
	Labels          map[string]string `yaml:"labels"`           // beside app and trust_domain
	ChunkKilobytes  int               `yaml:"chunk_kilobytes"`  // of one request, before compression; 1024
	BufferMegabytes int               `yaml:"buffer_megabytes"` // of records that wait for the receiver; 32
}

// UnmarshalText reads the short form.
func (c *recordsConfig) UnmarshalText(text []byte) error {
	c.File = string(text)
	return nil
}

// path is the file, empty where there is none.
func (c recordsConfig) path(dataDir string) string {
	switch c.File {
	case "off":
		return ""
	case "":
		return filepath.Join(dataDir, "decisions.jsonl")
	}
	return c.File
}

func (p *problems) records(c recordsConfig) {
	if c.Required && c.File == "off" {
		p.add("authz.records.required", "needs a file: records that are off cannot be required")
	}
	if c.Rotate.Megabytes < 0 || c.Rotate.Files < 0 {
		p.add("authz.records.rotate", "takes no negative numbers")
	}
	for key, part := range map[string]*float64{"allowed": c.Sample.Allowed, "denied": c.Sample.Denied} {
		if part != nil && !(*part >= 0 && *part <= 1) {
			p.add("authz.records.sample."+key, "%v is not between 0 and 1", *part)
		}
		if part != nil && *part < 1 && c.Required {
			p.add("authz.records.sample."+key, "leaves records out that are required")
		}
	}
	if c.Upload == nil {
		return
	}
	p.receiver("authz.records.upload.url", c.Upload.URL)
	if c.Upload.ChunkKilobytes < 0 || c.Upload.BufferMegabytes < 0 {
		p.add("authz.records.upload", "takes no negative numbers")
	}
}

// ringSize is what may wait for the file, in KiB of requests.
const ringSize = 32 << 10

// recordKeeper takes decisions off the requests' path to the file and the receiver.
type recordKeeper struct {
	file   string
	ring   *audit.Ring
	lines  *audit.Lines  // nil without a file
	upload *audit.Upload // nil without a receiver

	required          bool
	writing, rotating *trouble // of the file
	sending           *trouble // of the upload
}

// newRecordKeeper gives nil where neither a file nor a receiver is configured.
func newRecordKeeper(c recordsConfig, dataDir, domain string, log *slog.Logger, metrics prometheus.Registerer) (k *recordKeeper, err error) {
	k = &recordKeeper{file: c.path(dataDir), required: c.Required}
	k.writing = fileTrouble(log, k.file, "decision records cannot be written", "decision records are written again")
	k.rotating = fileTrouble(log, k.file, "decision records cannot be rotated", "decision records are rotated again")
	if k.file == "" && c.Upload == nil {
		return nil, nil
	}
	var sinks both
	if k.file != "" {
		orDefault(&c.Rotate.Megabytes, 100)
		orDefault(&c.Rotate.Files, 10)
		k.lines, err = audit.OpenRotating(k.file, audit.Rotation{Size: int64(c.Rotate.Megabytes) << 20, Keep: c.Rotate.Files, Sync: c.Required})
		if err != nil {
			return nil, err
		}
		sinks.first = notedFile{k.lines, k.writing, k.rotating}
	}
	if u := c.Upload; u != nil {
		client, err := audit.UploadClient(u.Roots)
		if err != nil {
			k.close()
			return nil, err
		}
		labels := map[string]string{"app": "writ", "trust_domain": domain}
		for key, value := range u.Labels {
			labels[key] = value
		}
		k.sending = &trouble{log: log, works: "decision records are sent again"}
		k.upload = audit.NewUpload(audit.UploadConfig{URL: u.URL, TokenFile: u.TokenFile, Labels: labels, Client: client,
			Chunk: u.ChunkKilobytes << 10, Buffer: u.BufferMegabytes << 20, Log: log, Tried: k.sending.note})
		sinks.second = k.upload
	}
	k.ring = audit.NewRing(sinks, audit.RingConfig{Size: ringSize, Patient: c.Required,
		SkipAllowed: leftOut(c.Sample.Allowed), SkipDenied: leftOut(c.Sample.Denied)})
	if err := k.measure(metrics); err != nil {
		k.close()
		return nil, err
	}
	return k, nil
}

func leftOut(part *float64) float64 {
	if part == nil {
		return 0
	}
	return 1 - *part
}

// both writes to the first and, once that has taken it, to the second, which counts for itself what it loses.
type both struct{ first, second io.Writer }

func (b both) Write(p []byte) (int, error) {
	for _, w := range []io.Writer{b.first, b.second} {
		if w == nil {
			continue
		}
		if _, err := w.Write(p); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// measure registers what became of the records.
func (k *recordKeeper) measure(metrics prometheus.Registerer) error {
	counter := func(name, help string, labels prometheus.Labels, count func() uint64) error {
		return metrics.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels},
			func() float64 { return float64(count()) }))
	}
	const dropped, droppedHelp = "writ_authz_records_dropped_total", "Decision records that were lost, by reason."
	var all []error
	for _, fate := range []audit.Fate{audit.Full, audit.Crowded, audit.Failed} {
		all = append(all, counter(dropped, droppedHelp, prometheus.Labels{"reason": fate.String()}, func() uint64 { return k.ring.Count(fate) }))
	}
	uploaded := func(count func(*audit.Upload) uint64) func() uint64 {
		return func() uint64 {
			if k.upload == nil {
				return 0
			}
			return count(k.upload)
		}
	}
	all = append(all, metrics.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "writ_authz_records_failing",
		Help: "1 while the file of decision records cannot be written."}, k.writing.failing)))
	return errors.Join(append(all,
		counter("writ_authz_records_write_failures_total", "Writes to the file of decision records that failed.", nil, k.writing.failed.Load),
		counter(dropped, droppedHelp, prometheus.Labels{"reason": "upload"}, uploaded((*audit.Upload).Dropped)),
		counter("writ_authz_records_written_total", "Decision records written.", nil, func() uint64 { return k.ring.Count(audit.Written) }),
		counter("writ_authz_records_sampled_out_total", "Decision records left out by sampling.", nil, func() uint64 { return k.ring.Count(audit.Sampled) }),
		counter("writ_authz_records_uploaded_total", "Decision records that the receiver took.", nil, uploaded((*audit.Upload).Sent)))...)
}

// health adds what is wrong with the file and the receiver. Only required records that cannot be written keep the node from its job:
// everything else goes on without them.
func (k *recordKeeper) health(h *health) {
	if k.lines != nil {
		h.Parts["records"] = "ok"
		if wrong := k.rotating.now(); wrong != "" {
			h.Parts["records"] = "written, but no new file can be begun " + wrong
		}
		switch wrong := k.writing.now(); {
		case wrong != "" && k.required:
			h.Status = "degraded"
			h.Parts["records"] = "cannot be written, and requests are denied once there is no room for more of them (P5005), " + wrong
		case wrong != "":
			h.Parts["records"] = "cannot be written, and are lost (P5005), " + wrong
		}
	}
	if k.upload != nil {
		h.Parts["upload"] = "ok"
		if wrong := k.sending.now(); wrong != "" {
			h.Parts["upload"] = "the receiver takes no decision records, " + wrong
		}
	}
}

// path is the file of records, empty where there is none.
func (k *recordKeeper) path() string {
	if k == nil {
		return ""
	}
	return k.file
}

// close writes what waits.
func (k *recordKeeper) close() {
	if k.ring != nil {
		k.ring.Close()
	}
	if k.upload != nil {
		k.upload.Close()
	}
	if k.lines != nil {
		k.lines.Close()
	}
}
