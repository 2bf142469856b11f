# `make help` lists the targets.
#
#   make demo DEMO_ARGS=--keep    options for the demo
#   make demo RELEASE=1           optimised (a longer build)
#   make chaos SEED=7 ROUNDS=1    that round again
#   make bench QUICK=1            small, in about two minutes, into target/benchmark
#   make bench ONLY=drain,cost    some sections of: start drain keys latency cost tax growth; the others stay as they are
#   STATECAST_POSTGRES__URL=… STATECAST_RABBITMQ__URLS=… make demo    your own servers, nothing is installed

SHELL := /bin/sh
CARGO ?= cargo
DEMO_ARGS ?=
TEST_ARGS ?=
ROUNDS ?= 20
SEED ?=
RUST_MIN := 1.95

# The dev profile (dependencies optimised a little) is built in a fraction of the time that a release with LTO takes.
PROFILE := $(if $(RELEASE),--release,)

.DEFAULT_GOAL := help
.PHONY: help demo test chaos e2e bench chart lint build deps toolchain

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: toolchain ## Install what is missing, start private servers, watch events arrive
	@sh .ci/deps demo
	$(CARGO) run --locked $(PROFILE) --features sandbox -- demo $(DEMO_ARGS)

test: deps ## Install what is missing and run every test
	$(CARGO) test --locked --all-features $(TEST_ARGS)

chaos: deps ## Rounds of random faults (about 8 s each) and the tests too long for `make test` (5 minutes)
	STATECAST_CHAOS_ROUNDS=$(ROUNDS) STATECAST_CHAOS_SEED=$(SEED) $(CARGO) test --locked --all-features --test it \
	  -- --ignored --nocapture --test-threads=1 chaos_of_many_rounds chaos::broker::cluster wal_silent_source \
	  queues_of_a_cluster

e2e: toolchain ## Install what is missing, and try alerts and dashboards in a real Prometheus, the console in a real browser (5 minutes)
	@sh .ci/deps e2e
	$(CARGO) test --locked --all-features --test e2e -- --ignored --nocapture --test-threads=1

bench: deps ## Measure everything beside its limits and write docs/benchmark.md (a little more than an hour)
	QUICK="$(QUICK)" ONLY="$(ONLY)" CASE="$(CASE)" SEED="$(SEED)" $(CARGO) bench --locked --features sandbox --bench bench

chart: toolchain ## Check the Helm chart, rules and dashboards; with helm, kubeconform and promtool if they are installed
	$(CARGO) test --locked --all-features --test chart
	@sh .ci/chart

lint: toolchain ## Format, clippy and rustdoc, warnings as errors; cargo-deny if it is installed
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --all-features
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
	  echo "$(CARGO) deny check"; $(CARGO) deny --locked check; \
	else \
	  echo "cargo-deny is not installed: licences and advisories were not checked"; \
	fi

build: toolchain ## Build the optimised binary
	$(CARGO) build --locked --release

deps: toolchain ## Install PostgreSQL, RabbitMQ, pgbouncer and a C compiler where they are missing (Debian, Ubuntu)
	@sh .ci/deps

toolchain:
	@command -v $(CARGO) >/dev/null 2>&1 || { \
	  echo "cargo was not found: install Rust $(RUST_MIN) or newer (https://rustup.rs)" >&2; exit 1; }
	@version=$$($(CARGO) --version | awk '{ print $$2 }'); \
	oldest=$$(printf '%s\n%s\n' "$(RUST_MIN)" "$$version" | sort -V | head -n 1); \
	[ "$$oldest" = "$(RUST_MIN)" ] || { \
	  echo "cargo $$version is too old: Rust $(RUST_MIN) or newer is needed (rustup update stable)" >&2; exit 1; }
