package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

// catalogue remembers what is registered: /metrics does not show what has counted nothing yet.
type catalogue struct {
	*prometheus.Registry
	labels map[string]string // by the metric's name, as the table of docs/operations.md has them
	types  map[string]string // likewise, of those with labels of their own
}

var described = regexp.MustCompile(`(?m)fqName: "([^"]*)".*constLabels: \{(.*)\}, variableLabels: \{(.*)\}\}$`)

// Register adds what a collector describes.
func (c *catalogue) Register(collector prometheus.Collector) error {
	for _, desc := range described.FindAllStringSubmatch(descriptions(collector), -1) {
		name, labels := desc[1], []string{}
		for _, label := range strings.Split(desc[2]+","+desc[3], ",") {
			if key, _, _ := strings.Cut(label, "="); key != "" {
				labels = append(labels, "`"+key+"`")
			}
		}
		c.labels[name] = strings.Join(labels, ", ")
		switch collector.(type) {
		case *prometheus.CounterVec:
			c.types[name] = "counter"
		case *prometheus.GaugeVec:
			c.types[name] = "gauge"
		case *prometheus.HistogramVec:
			c.types[name] = "histogram"
		}
	}
	return c.Registry.Register(collector)
}

// descriptions are a collector's, one on a line.
func descriptions(collector prometheus.Collector) (text string) {
	all := make(chan *prometheus.Desc)
	go func() { collector.Describe(all); close(all) }()
	for desc := range all {
		text += desc.String() + "\n"
	}
	return text
}

// rows is the table. What has no labels of its own has its values, and so its type, from the start.
func (c *catalogue) rows(t *testing.T) (out []string) {
	families, err := c.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		c.types[f.GetName()] = strings.ToLower(f.GetType().String())
	}
	for name, labels := range c.labels {
		out = append(out, strings.TrimSpace("`"+name+"` | "+c.types[name]+" | "+labels))
	}
	slices.Sort(out)
	return out
}

// MustRegister panics where Register fails.
func (c *catalogue) MustRegister(all ...prometheus.Collector) {
	for _, collector := range all {
		if err := c.Register(collector); err != nil {
			panic(err)
		}
	}
}

var metricRow = regexp.MustCompile("(?m)^\\| (`writ_[a-z_]+` \\| [a-z]+ \\| .*?)\\| [^|]*\\|$")

// Every metric is in the table of docs/operations.md with its type and labels, and the other way round: also what only counts later.
func TestMetricsAreDocumented(t *testing.T) {
	folder := t.TempDir()
	all := &catalogue{Registry: prometheus.NewRegistry(), labels: map[string]string{}, types: map[string]string{}}
	log := slog.New(slog.DiscardHandler)
	s := serverConfig{TrustDomain: "example.org", DataDir: filepath.Join(folder, "server"), Listen: "127.0.0.1:0", AdminSocket: filepath.Join(folder, "s")}
	s.Audit.File = filepath.Join(folder, "audit.jsonl")
	server, err := newServerDaemon(t.Context(), s.withDefaults(), log, all)
	if err != nil {
		t.Fatal(err)
	}
	defer server.close()
	a := agentConfig{TrustDomain: "example.org", DataDir: filepath.Join(folder, "agent"), Server: server.nodeAddress(),
		Socket: filepath.Join(folder, "a"), AdminSocket: filepath.Join(folder, "aa")}
	a.Authz.Listen = []string{"127.0.0.1:0"}
	a.Authz.Traces = &tracesConfig{Endpoint: "http://127.0.0.1:4317"}
	a.Authz.Records.Upload = &receiverConfig{URL: "http://127.0.0.1:1"}
	agent, err := newAgentDaemon(t.Context(), a.withDefaults(), agentParts{policy: fstest.MapFS{}}, log, all)
	if err != nil {
		t.Fatal(err)
	}
	defer agent.close()

	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	var written []string
	for _, m := range metricRow.FindAllStringSubmatch(string(page), -1) {
		written = append(written, strings.TrimSpace(m[1]))
	}
	slices.Sort(written)
	if diff := cmp.Diff(all.rows(t), written); diff != "" || len(written) < 30 {
		t.Errorf("metrics registered and in docs/operations.md (-registered +documented):\n%s", diff)
	}
}
