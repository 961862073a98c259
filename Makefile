# Conduit: `make help` lists the targets.
GO       ?= go
BIN      := bin
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X conduit.io/conduit/mesh.version=$(VERSION)
BINARIES := conduit conduit-agent conduit-cni conduit-controller conduit-proxy
PLUGINS  := main/bridge main/ptp ipam/host-local
TOOLS    := $(GO) tool -modfile=tools/go.mod
BUF      := $(GO) tool -modfile=tools/buf/go.mod buf
export CGO_ENABLED = 0
# A release needs it; tests have it, too, so that nothing is compiled twice.
export GOFLAGS := $(filter-out -trimpath,$(shell $(GO) env GOFLAGS)) -trimpath
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

.DEFAULT_GOAL := build
.PHONY: help build plugins images demo test vet lint unit race kubernetes cluster e2e e2e-all scale kernels conformance soak fuzz generate api-baseline clean
.PHONY: bench bench-memory bench-install bench-node bench-add bench-add-cluster bench-regression bench-tools bench-caddy

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: plugins ## five static binaries in bin/ (needs git, make and Go)
	$(GO) build -ldflags '$(LDFLAGS)' -o $(BIN)/ $(addprefix ./cmd/,$(BINARIES))

plugins: ## the primary CNI plugins that the demo and the tests chain after, in bin/cni/
	$(GO) build -ldflags '-s -w' -o $(BIN)/cni/ $(addprefix github.com/containernetworking/plugins/plugins/,$(PLUGINS))

images: build ## container images of the binaries in bin/images/: OCI archives, with an SBOM beside each (no Docker)
	$(GO) run ./deploy/images -bin $(BIN) -out $(BIN)/images -version '$(VERSION)'

demo: build ## two nodes, pods and live traffic on this machine (root)
	$(BIN)/conduit demo $(DEMO_FLAGS)

test: vet lint unit ## everything that needs no cluster (root for the kernel tests)

vet:
	$(GO) vet ./...

lint: ## formatting and static analysis
	@out=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$out" || { echo "gofmt:"; echo "$$out"; exit 1; }
	$(GO) mod tidy -diff
	$(BUF) lint api/proto
	$(BUF) breaking api/proto --against api/proto/baseline.binpb
	@$(BUF) build api/proto --exclude-source-info -o - | cmp -s - api/proto/baseline.binpb || { echo "api/proto has grown: run 'make api-baseline' and commit"; exit 1; }
	$(TOOLS) golangci-lint run ./...

# Without what go test has of vet: vet does all of it.
unit: build ## unit tests, fuzz seeds, and network-namespace tests with real BPF
	CONDUIT_BIN_DIR=$(CURDIR)/$(BIN) $(GO) test -count=1 -json -vet=off -p 2 -timeout 20m ./... | $(GO) run ./tests/report

race: ## the tests that need no root, under the race detector
	CGO_ENABLED=1 $(GO) test -json -race -short ./mesh/... ./api/... ./proxy/... ./identity/... ./control/... | CGO_ENABLED=0 $(GO) run ./tests/report

kubernetes: ## the programs of the Kubernetes clusters that tests use, kept in the user's cache (the first time ten minutes)
	$(GO) run ./tests/cluster build

cluster: ## tests of the Kubernetes clusters that e2e tests use (root; minutes, see kubernetes)
	CONDUIT_CLUSTER_TEST=1 $(GO) test -count=1 -timeout 40m -v ./tests/cluster/...

# Scenarios of tests/netns that run in pods of a cluster as they do in labs, and those of them that run in both combinations.
ESCAPES   := Steering|NothingEscapes|WireEncrypted
SCENARIOS := $(ESCAPES)|MeshPort|Death|EnrolWhileTalking|ModeChangesApply|Bulk|Ends|StoppedReader|BrokenApplications|Programs

# Lanes run side by side, as many at a time as LANES says, the longest ones first. Each has clusters of its own, half a processor's work when
# nothing is wrong. What one says is shown when it has ended, and is in bin/e2e/LANE.log as a whole meanwhile.
LANES ?= $(shell nproc)
RUN_LANES = +$(MAKE) --no-print-directory --keep-going --output-sync=target -j $(LANES)
ON_CLUSTER = @mkdir -p $(BIN)/e2e; echo "== $@: all of it in $(BIN)/e2e/$@.log"; CONDUIT_CLUSTER_TEST=1 CONDUIT_GROUND=cluster E2E_NAME=$@ \
	$(GO) test -count=1 -json -vet=off -timeout 60m $(1) | $(GO) run ./tests/report -tests -log $(BIN)/e2e/$@.log
LANES_ALL := lane-live lane-others lane-ha lane-scenarios
.PHONY: $(LANES_ALL) lane-ptp-scenarios lane-ptp-install lane-escapes

e2e: kubernetes ## tests on real Kubernetes clusters, which the target starts and stops: after bridge with iptables, then after ptp with nftables (root; 12 min on two processors; LANES is how many run side by side)
	$(RUN_LANES) lane-live lane-others lane-ha lane-ptp-scenarios lane-ptp-install lane-escapes

e2e-all: kubernetes ## all of that in one combination (E2E_CNI=bridge or ptp, E2E_PROXY=iptables or nftables, E2E_DUAL=1 for IPv6)
	$(RUN_LANES) $(LANES_ALL)

lane-live:
	$(call ON_CLUSTER,-run '^TestLive$$' ./tests/e2e)
lane-ha:
	$(call ON_CLUSTER,-run '^TestHA$$' ./tests/e2e)
lane-others:
	$(call ON_CLUSTER,-skip '^Test(Live|HA)$$' ./tests/e2e)
lane-scenarios lane-ptp-scenarios:
	$(call ON_CLUSTER,-run '^Test($(SCENARIOS))$$' ./tests/netns)
lane-escapes:
	$(call ON_CLUSTER,-run '^Test($(ESCAPES))$$' ./tests/netns)
lane-ptp-install:
	$(call ON_CLUSTER,-run '^TestInstall$$' ./tests/e2e)
lane-ptp-scenarios lane-ptp-install: export E2E_CNI := ptp
lane-ptp-scenarios lane-ptp-install: export E2E_PROXY := nftables

scale: ## the control plane with 10, 100 and 1000 nodes before a real API server; the table in docs/scale.md (20 min, 4 GB; SCALE_FLAGS='--nodes 100')
	$(GO) build -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/conduit-controller
	$(GO) build -o $(BIN)/scale ./tests/scale
	$(BIN)/scale --controller $(BIN)/conduit-controller --out docs/scale.json --docs docs/scale.md $(SCALE_FLAGS)

kernels: ## the kernel tests, and traffic, on Linux 6.1 and 6.12 in qemu (slow; needs qemu-system-x86)
	$(GO) run ./tests/kernels $(KERNELS_FLAGS)

conformance: build ## h2spec against the proxy, plaintext and TLS; reports in tests/conformance/reports/
	$(GO) build -modfile=tools/go.mod -o $(BIN)/h2spec github.com/summerwind/h2spec/cmd/h2spec
	$(GO) run ./tests/conformance -proxy $(BIN)/conduit-proxy -h2spec $(BIN)/h2spec

soak: build ## two proxies with mTLS under load and misuse; fails when anything grows (SOAK_FLAGS='--for 2h --rate 5000')
	$(GO) build -o $(BIN)/soak ./tests/soak
	$(BIN)/soak --proxy $(BIN)/conduit-proxy $(SOAK_FLAGS)

bench: build bench-tools bench-caddy ## Conduit's proxy and its peers side by side (1-2 h; BENCH_FLAGS='--within 18m --sample 250ms --latency 1500ms' for less, --help lists all)
	$(BIN)/bench/bench --docs docs $(BENCH_FLAGS)

bench-memory: build bench-tools ## Conduit's memory against its ceilings (two minutes)
	$(BIN)/bench/bench --memory-only

bench-install: ## from `conduit install` on a fresh cluster to all green; fails over 60 s (root; a real cluster, minutes)
	CONDUIT_CLUSTER_TEST=1 $(GO) test -count=1 -timeout 30m -run '^$$' -bench Install -benchtime 1x ./tests/e2e

bench-node: ## memory of the agent and the proxy of a node with 110 enrolled pods; fails over 40 and 12 MB (root; a real cluster, several minutes)
	CONDUIT_CLUSTER_TEST=1 $(GO) test -count=1 -timeout 30m -run '^$$' -bench IdlePods -benchtime 1x ./tests/e2e

bench-add: ## what Conduit adds to the making of a pod, over 200 pods; fails over 20 ms at p99 (root, a minute)
	$(GO) test -count=1 -timeout 10m -run '^$$' -bench Add -benchtime 1x ./tests/netns

bench-add-cluster: ## the same on Kubernetes, with all that it does at the same time (root; a real cluster, several minutes)
	CONDUIT_CLUSTER_TEST=1 $(GO) test -count=1 -timeout 30m -run '^$$' -bench Add -benchtime 1x ./tests/e2e

bench-regression: build bench-tools ## CPU against the previous commit, paired; fails when it is more than 10 % higher (a few minutes)
	$(BIN)/bench/bench --against $(or $(AGAINST),HEAD~1) --sample 500ms $(BENCH_FLAGS)

bench-tools:
	$(GO) build -ldflags '-s -w' -o $(BIN)/bench/ ./tests/bench ./tests/bench/control/... ./tests/load

# Of a module of its own: what it depends on is much, and nothing of it is Conduit's. Without the network it is left out.
bench-caddy:
	@test -x $(BIN)/bench/caddy -a $(BIN)/bench/caddy -nt tests/bench/caddy/go.mod || (cd tests/bench/caddy && $(GO) build -ldflags '-s -w' -o $(CURDIR)/$(BIN)/bench/caddy .) || echo 'Caddy cannot be built; it is left out' >&2

fuzz: ## fuzz every parser for FUZZTIME each
	tests/fuzz.sh $(or $(FUZZTIME),20s)

generate: ## BPF objects and the Go types made from them (clang, llvm-strip, libbpf headers), protobuf
	$(GO) generate ./...

# What clients may rely on. Without it in the tree, a shallow clone would have nothing to compare with.
api-baseline: ## accept what api/proto has grown by; refuses what would break clients
	$(BUF) breaking api/proto --against api/proto/baseline.binpb
	$(BUF) build api/proto --exclude-source-info -o api/proto/baseline.binpb

clean: ## remove what the targets made
	rm -rf $(BIN) bench/out
