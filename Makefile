# Two commands are enough to begin with: make demo, make test.

SHELL      := bash
MODULES    := $(shell (git ls-files --cached --others --exclude-standard '*go.mod' ':!tools/go.mod' 2>/dev/null || find * -name go.mod ! -path 'tools/*') | xargs -n1 dirname | sort)
PACKAGES   := $(addsuffix /...,./adapters/couriersql . $(patsubst %,./%,$(filter-out . adapters/couriersql,$(MODULES)))) # what takes longest first
FUZZ_TIME  ?= 30s
SIM_TIME   ?= 60s
MUTATE     ?= apply.go internal/engine/keys.go poll_settle.go retry.go stream_hand.go stream_settle.go internal/ledger/ledger.go
BENCH_ARGS ?= -count 8 -benchtime 50ms

.DEFAULT_GOAL := help

.PHONY: help
help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

.PHONY: demo
demo: ## relay 10,000 orders from SQLite to JetStream through an outage
	@go run ./examples/outbox

.PHONY: demo-kafka
demo-kafka: ## relay orders from SQLite to Kafka and consume them, through an outage and kills (8 s)
	@go run ./examples/kafka

# The Kafka client waits for mutexes while time passes. In a bubble that is a wait without
# an end, unless this tag makes channels of them.
TAGS := -tags synctests

.PHONY: test
test: ## all tests of all modules
	go test $(TAGS) -shuffle=on -timeout 20m $(PACKAGES)

.PHONY: check
check: bin/golangci-lint ## vet, lint and tests of the root module alone, in about a minute
	go vet ./...
	bin/golangci-lint run ./...
	go test -shuffle=on ./...

# SQLite is C made Go, which the detector has nothing to say about: to watch it takes
# half of the time of the tests that use it.
RACE := -gcflags='modernc.org/sqlite/lib=-race=false'

# Without what waits for databases, and the programs that tests start as processes: make ci
# has 20 minutes, and make test runs those.
CONCURRENT := $(filter-out ./adapters/couriersql/% ./bench/rivals/% ./examples/%,$(PACKAGES))

.PHONY: race
race: ## all tests under the race detector
	@scripts/race.sh -vet=off $(TAGS) $(RACE) -shuffle=on -timeout 20m $(PACKAGES)

.PHONY: cover
cover: ## coverage of the root package, and what is left uncovered
	@go test -coverprofile=cover.out . >/dev/null && go tool cover -func=cover.out | awk '$$NF != "100.0%"'
	@go tool cover -func=cover.out | awk '$$1 == "total:" && $$NF + 0 < 95 { print "the root package wants 95 %"; exit 1 }'

.PHONY: mutation
mutation: bin/gremlins ## which small changes of MUTATE (hours for all) no test finds
	@scripts/mutation.sh bin/gremlins $(MUTATE)

.PHONY: lint
lint: bin/golangci-lint ## gofmt and the linters named in .golangci.yml, of which go vet is one
	@unformatted=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')); \
	if [ -n "$$unformatted" ]; then echo "not gofmt'd: $$unformatted"; exit 1; fi
	@for m in $(MODULES); do echo "golangci-lint $$m"; (cd $$m && $(CURDIR)/bin/golangci-lint run ./...) || exit 1; done

bin/%: tools/go.mod
	@mkdir -p bin
	cd tools && GOWORK=off go build -o ../$@ $$(GOWORK=off go list tool | grep '/$*$$')

.PHONY: tidy
tidy: ## go mod tidy in every module
	@scripts/modules.sh tidy

.PHONY: tidy-check
tidy-check: ## fail if go mod tidy would change anything
	@scripts/modules.sh tidy-check

.PHONY: build
build: ## vet the modules outside the workspace, as their users see them
	@scripts/modules.sh build

.PHONY: fuzz
fuzz: ## each fuzz target of each module, or below FUZZ, for FUZZ_TIME (30s)
	@scripts/fuzz.sh $(FUZZ_TIME) $(FUZZ)

.PHONY: sim
sim: ## random episodes of chaos for SIM_TIME (60s), on one processor
	GOMAXPROCS=1 go test ./sim -run TestChaos -count=1 -timeout 0 -v -args -sim.time=$(SIM_TIME)

.PHONY: mutants
mutants: ## plant bugs in the core, and count the seeds until the simulation finds each
	go run ./sim/mutants

.PHONY: sim-exact
sim-exact: ## one seed is one run: plain, raced, on one processor and on two
	@scripts/sim-exact.sh $(SIM_EXACT)

.PHONY: bench
bench: ## the benchmarks beside their floors, interleaved, as one table (2 minutes)
	@scripts/bench.sh $(BENCH_ARGS)

.PHONY: bench-postgres
bench-postgres: ## outbox relays beside loops by hand and other libraries (12 minutes)
	@scripts/bench-postgres.sh

.PHONY: bench-kafka
bench-kafka: ## relays and consumer group of Kafka beside loops by hand (5 minutes)
	@scripts/bench-kafka.sh

.PHONY: bench-plot
bench-plot: ## draw what the last make bench measured as docs/bench.svg
	go run ./bench/report -svg docs/bench.svg bench.out

.PHONY: bench-stat
bench-stat: bin/benchstat ## what the last make bench measured, with confidence intervals
	@bin/benchstat bench.out

.PHONY: smoke
smoke: ## the demo, small
	go run ./examples/outbox -n 1000 -outage 1s

.PHONY: vuln
vuln: bin/govulncheck ## known vulnerabilities in what the modules use (asks vuln.go.dev)
	@for m in $(MODULES); do echo "govulncheck $$m"; (cd $$m && $(CURDIR)/bin/govulncheck ./...) || exit 1; done

.PHONY: release
release: ## tag all modules as VERSION=v0.1.0, on a clean main
	@scripts/release.sh $(VERSION)

.PHONY: ci
ci: ## what a change must pass, beside make test
	$(MAKE) lint tidy-check build
	$(MAKE) race PACKAGES="$(CONCURRENT)"
	$(MAKE) fuzz FUZZ_TIME=3s FUZZ=fuzz
	$(MAKE) ci-sim smoke

.PHONY: ci-sim
ci-sim: ## the fixed episodes that a change must pass, and that a seed is one run
	go test ./sim -run TestChaos -count=1 -v -args -sim.seed=7000000011 -sim.episodes=3000
	$(MAKE) sim-exact SIM_EXACT="100 7000000011 2"

.PHONY: cross
cross: ## compile the root module and its tests for GOOS=windows or darwin; CROSS='$(PACKAGES)' for all
	GOOS=$(GOOS) go test -exec true -run '^$$' $(or $(CROSS),./...) >/dev/null
