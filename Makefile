# The one door to everything that is done with this repository. `make` alone lists what there is.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

SETUP := config/setup/setup.sh
TARGET := $(or $(CARGO_TARGET_DIR),target)
BINARY := $(TARGET)/release/vademecum
TOOLS = $$($(SETUP) cache-dir)/tools/bin

# Debian keeps mosquitto in /usr/sbin; rustup's folder may be missing from a shell that was open while it installed.
export PATH := $(PATH):/usr/sbin:/sbin:$(HOME)/.cargo/bin
export CARGO_TERM_COLOR ?= auto

.PHONY: help setup demo run test lint fmt deny bench doc models-dir tools clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what is missing and fetch the test models (a no-op when done)
	@$(SETUP)

demo: setup build ## Ask a sample manual three questions over MQTT
	@env -u VADEMECUM_CACHE $(BINARY) demo --models "$$($(SETUP) models-dir)"

run: setup build ## Run the daemon with the test models (options: make run ARGS="--node kitchen")
	@models="$$($(SETUP) models-dir)"; exec env -u VADEMECUM_CACHE $(BINARY) run --generator "$$models/generator.gguf" --embedder "$$models/embedder.gguf" $(ARGS)

test: setup build ## Run every test: units, examples in the documentation, end to end
	@export VADEMECUM_CACHE="$$($(SETUP) cache-dir)"; \
	cargo test --release --doc --workspace; \
	if cargo nextest --version >/dev/null 2>&1; then cargo nextest run --release --workspace $(ARGS); \
	else RUST_TEST_THREADS="$${RUST_TEST_THREADS:-1}" cargo test --release --workspace --lib --bins --tests $(ARGS); fi

lint: tools ## Check format, clippy, spelling, licences and shell scripts
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	@PATH="$(TOOLS):$$PATH"; command -v typos >/dev/null || { echo "lint: typos is missing; remedy: cargo install typos-cli" >&2; exit 1; }
	PATH="$(TOOLS):$$PATH" typos
	@$(MAKE) deny
	@PATH="$(TOOLS):$$PATH"; scripts="$$(git ls-files '*.sh' .ci/run)"; \
	if command -v shellcheck >/dev/null; then echo shellcheck $$scripts; shellcheck --external-sources $$scripts; \
	else echo "lint: no shellcheck here, shell scripts were not checked (apt-get install shellcheck)"; fi

fmt: ## Format the code
	cargo fmt --all

deny: tools ## Check licences, sources and duplicates, and advisories where a database is at hand
	@config/setup/deny.sh

bench: setup build ## Measure (see benches/)
	@VADEMECUM_CACHE="$$($(SETUP) cache-dir)" cargo bench --package vademecum-benches $(ARGS)

doc: ## Build the documentation of the crate and its rooms
	RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps --document-private-items --package vademecum

models-dir: ## Print the folder of the test models
	@$(SETUP) models-dir

tools: ## Get the programs that lint needs (a no-op when done)
	@$(SETUP) tools

clean: ## Remove what was built (the models in the cache stay)
	cargo clean

# Not listed: demo, run, test and bench use it.
.PHONY: build
build:
	@cargo build --release --workspace
