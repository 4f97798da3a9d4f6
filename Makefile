# The one door to everything that is done with this repository. `make` alone lists what there is.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

SETUP := config/setup
TARGET := $(or $(CARGO_TARGET_DIR),target)
BINARY := $(TARGET)/release/vademecum
CACHE = $$($(SETUP)/setup.sh cache-dir)
MODELS = $$($(SETUP)/setup.sh models-dir)

# Debian keeps mosquitto in /usr/sbin; rustup's folder may be missing from a shell that was open while it installed.
export PATH := $(PATH):/usr/sbin:/sbin:$(HOME)/.cargo/bin
export CARGO_TERM_COLOR ?= auto

.NOTPARALLEL:
.PHONY: help config-files setup bench-models demo run test torture lint fmt deny bench bench-retrieval bench-answers bench-threads fuzz doc models-dir tools cross test-cross count-cross deb test-deb lint-yocto clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what is missing and fetch the test models (a no-op when done)
	@$(SETUP)/setup.sh

bench-models: ## Fetch the generators of 0.5 and 1.5 billion weights for the answer benchmarks (1.6 GB)
	@$(SETUP)/setup.sh bench-models

demo: setup build ## Ask a sample manual three questions over MQTT (another model: make demo MODEL=qwen2.5-coder-0.5b, or a GGUF file)
	@models="$(MODELS)" model="$(MODEL)"; unset VADEMECUM_CACHE; \
	[ -z "$$model" ] || [ -f "$$model" ] || $(BINARY) model pull "$$model" --alone --to "$$models"; \
	$(BINARY) demo --models "$$models" $${model:+--model "$$model"}

run: setup build ## Run the daemon with the test models (options: make run ARGS="--node kitchen")
	@models="$(MODELS)"; exec env -u VADEMECUM_CACHE $(BINARY) run --generator "$$models/generator.gguf" --embedder "$$models/embedder.gguf" $(ARGS)

test: setup build ## Run every test: units, examples in the documentation, end to end
	@export VADEMECUM_CACHE="$(CACHE)"; \
	cargo test --release --doc --workspace; \
	if cargo nextest --version >/dev/null 2>&1; then cargo nextest run --release --workspace $(ARGS); \
	else RUST_TEST_THREADS="$${RUST_TEST_THREADS:-1}" cargo test --release --workspace --lib --bins --tests $(ARGS); fi

torture: setup build ## Kill the daemon, disturb the broker, damage stores, and count (make torture N=1000 FAULTS=200 SEED=7)
	@export VADEMECUM_CACHE="$(CACHE)" N="$(or $(N),100)" TORTURE="$(or $(N),100)" FAULTS="$(or $(FAULTS),50)" SEED="$(or $(SEED),$$RANDOM)"; \
	echo "torture: SEED=$$SEED"; \
	cargo test --release -p vademecum-tests --test torture -- --nocapture --test-threads 1; \
	cargo test --release -p vademecum-tests --test torture_store -- --exact every_acknowledged_document_survives_damage --nocapture

lint: tools ## Check format, clippy, spelling, links, licences and shell scripts
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	cargo clippy --release --package vademecum --no-default-features --features openmp -- -D warnings
	cargo clippy --release --package vademecum-fuzz --features targets -- -D warnings
	@$(SETUP)/lint-text.sh
	@$(SETUP)/deny.sh

config-files: build ## Write config/vademecum.toml and docs/configuration.md anew from the table of keys (config/keys.rs)
	@$(BINARY) config --config /dev/null --template >$(TARGET)/written && mv $(TARGET)/written config/vademecum.toml
	@$(BINARY) config --config /dev/null --reference >$(TARGET)/written && mv $(TARGET)/written docs/configuration.md

fmt: ## Format the code
	cargo fmt --all

deny: tools ## Check licences, sources and duplicates, and advisories where a database is at hand
	@$(SETUP)/deny.sh

bench: setup build ## Measure (see benches/)
	@VADEMECUM_CACHE="$(CACHE)" cargo bench --workspace --bench speed $(ARGS)

bench-retrieval: setup build ## Compare retrieval with FAISS, usearch, qdrant-edge and others (see benches/)
	@VADEMECUM_CACHE="$(CACHE)" cargo bench --workspace --bench retrieval $(ARGS)

bench-answers: setup build ## Measure the answers of each generator and strategy on question sets of our own (see benches/)
	@env -u VADEMECUM_CACHE benches/answers.py "$(BINARY)" "$(MODELS)" $(ARGS)

bench-threads: setup build ## Measure how threads wait, on a quiet machine and beside busy processes (see benches/)
	@VADEMECUM_CACHE="$(CACHE)" cargo bench --workspace --bench threads $(ARGS)

FUZZ := wire mqtt_packet pdf pdf_page html epub office texts gguf states mail sections config
fuzz: ## Fuzz the parsers of foreign bytes (make fuzz TIME=600 FUZZ=wire; needs nightly Rust and cargo-fuzz)
	@export PATH="$$PATH:$(CACHE)/tools/bin"; \
	for target in $(FUZZ); do cargo +nightly fuzz run --sanitizer none --features fuzz $$target -- -max_total_time=$(or $(TIME),60); done

doc: ## Build the documentation of all crates, and find dead links in it
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" cargo doc --release --no-deps --document-private-items --workspace

.PHONY: docs-check
docs-check: setup build ## Check links, JSON, sentences and runnable shell blocks in the documentation (see CONTRIBUTING.md)
	@$(SETUP)/docs-check.py links
	@$(SETUP)/docs-check.py words
	@VADEMECUM_CACHE="$(CACHE)" $(SETUP)/docs-check.py shell "$(BINARY)"

cross: ## Build for a board on this desk (make cross BOARD=rpi4; see cross-targets/)
	@$(SETUP)/setup.sh cross
	@cross-targets/cross.sh build "$(or $(BOARD),generic-aarch64)"

BOARD_OF_amd64 := generic-x86-64
BOARD_OF_arm64 := generic-aarch64
deb: setup ## Pack a Debian package (make deb ARCH=arm64)
	@$(SETUP)/setup.sh deb
	@cross-targets/cross.sh build $(or $(BOARD_OF_$(or $(ARCH),amd64)),$(error there is no package for '$(ARCH)': ARCH is amd64 or arm64))
	@config/debian/package.sh $(or $(ARCH),amd64)

test-deb: deb ## Install, start, ask, upgrade, remove and purge that package on a clean Debian (as root; SUITE=trixie for another one)
	@$(SETUP)/setup.sh deb test
	@VADEMECUM_CACHE="$(CACHE)" tests/deb.sh $(or $(ARCH),amd64) $(or $(SUITE),bookworm)

lint-yocto: ## Lint and parse the Yocto layer (fetches oelint-adv and bitbake's parser)
	@yocto/check.sh

test-cross: setup build ## Run the aarch64 daemon under emulation and compare with this machine (CORES="cortex-a53 …" chooses)
	@cross-targets/cross.sh build generic-aarch64
	@cross-targets/cross.sh tests generic-aarch64 >/dev/null
	@CORES="$(CORES)" timeout 2400 cross-targets/test.sh || { status=$$?; [ $$status != 124 ] || echo "test-cross: not done after 40 minutes" >&2; exit $$status; }

count-cross: ## Count the instructions of a token on three kinds of core, under emulation (Debian 12)
	@VADEMECUM_CACHE="$(CACHE)" cross-targets/count.sh

models-dir: ## Print the folder of the test models
	@$(SETUP)/setup.sh models-dir

tools: ## Get the programs that lint needs (a no-op when done)
	@$(SETUP)/setup.sh tools

clean: ## Remove what was built (the models in the cache stay)
	cargo clean

# Not listed: demo, run, test and both benches use it.
.PHONY: build
build:
	@cargo build --release --workspace
