# What a person or a script does with this tree. `make` alone lists it.
.DEFAULT_GOAL := help
SHELL := /bin/bash

export CGO_ENABLED ?= 0
export GOFLAGS ?=

RACE := ./internal/crowd ./internal/durable ./internal/fault ./internal/strictyaml ./svid/... ./attest/... ./registration/... ./ca/... ./store/... ./audit/... ./server/... ./agent/... ./authz/...

# Test runs keep one certificate of each shape that they issue, to be linted at their end.
SHAPES := $(CURDIR)/.cache/shapes
KEEP := -tags=shapes -ldflags=-X=github.com/writ-dev/writ/ca.shapesDir=$(SHAPES)

# ROW is the ID of a SPIFFE requirement in the name of a test.
ROW := (ID|X509|JWT|WEP|WAPI|TDB|SDS|EXT|INT|CLIENT)[-_][0-9]{2}

.PHONY: help build demo test unit conformance id-differential parity oracle fuzz race spiffe-helper end-to-end clients shapes lint cross needs bench generate clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## bin/writ
	go build -trimpath -o bin/writ ./cmd/writ

demo: build ## two services behind real Envoys, one call allowed, one denied; ends at Ctrl-C, or by itself with ONCE=1
	@go build -trimpath -o bin/demo ./examples/envoy
	@envoy=$$(tools/envoy/get) && exec bin/demo -writ bin/writ -envoy "$$envoy" $(if $(filter 1,$(ONCE)),-once)

test: needs lint unit race end-to-end shapes ## everything that must hold; installs what it needs

needs: ## what the tests need beside Go: Debian packages, Python clients, Envoy
	tools/needs

lint: ## vet, staticcheck, formatting, other systems
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	go vet ./...
	go vet -tags shapes,lintshapes ./ca
	go vet -tags clients,spiffehelper ./internal/testdomain
	go tool -modfile=tools/lint/go.mod staticcheck ./...
	$(MAKE) cross

cross: ## the binary for the other systems
	GOOS=linux GOARCH=arm64 go build -o /dev/null ./cmd/writ
	GOOS=darwin GOARCH=arm64 go build -o /dev/null ./cmd/writ

unit: build ## every package's tests, and which SPIFFE requirements they cover
	@mkdir -p $(SHAPES)
	@set -o pipefail; GOFLAGS="$(GOFLAGS) $(KEEP)" go test -json $$(go list ./... | grep -v /internal/testdomain) | go run ./tools/conformance

conformance: build ## the packages whose tests carry rows of tools/conformance/rows.txt; fails where a row has none
	@set -o pipefail; go test -json $$(git grep -lE '$(ROW)' -- '*_test.go' ':!internal/testdomain' | xargs dirname | sort -u | sed 's,^,./,') | \
	  go run ./tools/conformance

id-differential: ## 10^7 strings asked of our parser of SPIFFE IDs and of go-spiffe's; ID_SEED=N for others
	go test -count=1 ./svid -run TestID_19_ID_20_Differential -v -id-count 10000000 -id-seed $(or $(ID_SEED),1)

parity: ## all cases of authz/testdata, asked of opa-envoy-plugin too: make parity PLUGIN=its program
	OPA_ENVOY_PLUGIN=$(abspath $(PLUGIN)) go test -count=1 -tags parity -run TestParity ./authz/policy

RUNS ?= 1000000
oracle: ## a million requests made up, RUNS of them: none is allowed that plain OPA and a model of the policy do not allow too
	go test -count=1 -timeout 60m -v -run 'TestOracle$$' ./authz/policy -oracle $(RUNS)

FUZZTIME ?= 30s
fuzz: ## every fuzz target of the tree, each for FUZZTIME
	@set -e; for file in $$(git grep -lE '^func Fuzz' -- '*_test.go'); do \
		for target in $$(sed -nE 's/^func (Fuzz[A-Za-z0-9_]+)\(.*/\1/p' $$file); do \
			echo "$$target of ./$$(dirname $$file)"; \
			go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) "./$$(dirname $$file)"; \
		done; done

race: ## the packages that share state, under the race detector
	CGO_ENABLED=1 go test -race -short $(RACE)

end-to-end: build ## whole trust domains with real Envoys, two hosts, other people's clients
	@mkdir -p $(SHAPES)
	GOFLAGS="$(GOFLAGS) $(KEEP)" go test -count=1 -parallel 6 -timeout 20m ./internal/testdomain/...

clients: build needs ## workloads on other people's libraries in Go, Python, Rust, Java and Node, against each other
	tools/clients/get
	go test -count=1 -tags clients -run TestForeignClients -v ./internal/testdomain

spiffe-helper: build ## files and tokens kept by spiffe-helper: make spiffe-helper PROGRAM=its program
	SPIFFE_HELPER=$(abspath $(PROGRAM)) go test -count=1 -tags spiffehelper -run TestSPIFFEHelper -v ./internal/testdomain

shapes: ## every shape of certificate that the test runs issued: zlint, OpenSSL and GnuTLS find nothing
	@mkdir -p $(SHAPES)
	GOFLAGS="$(GOFLAGS) $(KEEP)" go test -count=1 ./ca
	WRIT_SHAPES=$(SHAPES) go test -count=1 -tags lintshapes -run TestShapes ./ca

bench: build ## the tables of docs/performance.md
	go run ./bench

generate: ## code from api/*.proto
	cd api && go tool -modfile=../tools/buf/go.mod buf generate

clean: ## what building and trying left
	rm -rf bin .cache .writ
