# make demo       three nodes, the leader killed, nothing lost (FILE=path: of that file's lines)
# make demo-sync  three nodes serve two stock p2panda nodes, the serving one killed; builds those
# make test       all tests; with cargo-nextest where it is installed
# make interop    stock p2panda nodes of both lines sync with a group; builds them first
# make fuzz       each decoder of outsiders' bytes for MINUTES=1 minutes, from a new seed each time
# make lint       layout, clippy and documentation, warnings denied
# make bench      the figures of benches/README.md
#
# `demo` and `test` build with one profile, so RocksDB, which takes minutes, is compiled once.

SHELL := /bin/bash
export CARGO_TARGET_DIR ?= $(HOME)/.cache/quorate/target

# RocksDB's build needs libclang: found, or fetched once.
NATIVE := native="$$(.ci/libclang)" && eval "$$native" &&
# With HTTP, and with the places where a test may end the process; without being told to, none of
# them does.
TESTED := --features failpoints,http

# Stock nodes are built in workspaces of their own, outside of the clone as well.
STOCK ?= $(HOME)/.cache/quorate/interop
STOCK_NODES := QUORATE_STOCK_06=$(STOCK)-0.6/debug/stock QUORATE_STOCK_07=$(STOCK)-0.7/debug/stock

.PHONY: demo demo-sync test interop interop-long stock fuzz lint format clippy doc bench

demo:
	@$(NATIVE) cargo run --example survive -- $(FILE)

demo-sync: stock
	@$(NATIVE) $(STOCK_NODES) cargo run --example superpeer

test:
	@$(NATIVE) if cargo nextest --version > /dev/null 2>&1; \
		then cargo nextest run $(TESTED); \
		else cargo test --lib --tests --examples $(TESTED); \
		fi && cargo test --doc $(TESTED)

interop: stock
	@$(NATIVE) if cargo nextest --version > /dev/null 2>&1; \
		then $(STOCK_NODES) cargo nextest run $(TESTED) --test interop --run-ignored only \
			-E 'not test(long::)'; \
		else $(STOCK_NODES) cargo test $(TESTED) --test interop -- --ignored --skip long::; \
		fi

# 100,000 operations a line, as fast as a stock node takes them in, which is hours, and 100 losses of
# the member that serves it, 11 s apart. QUORATE_LONG_OPERATIONS and QUORATE_LONG_LOSSES: fewer.
interop-long: stock
	@$(NATIVE) $(STOCK_NODES) cargo test $(TESTED) --test interop -- --ignored --nocapture long::

# `make test` tries some thousand inputs of each, always the same ones. A find names its seed and its
# bytes.
MINUTES ?= 1
fuzz:
	@$(NATIVE) QUORATE_FUZZ=$(MINUTES) cargo test $(TESTED) --lib fuzzed

# The 0.7 line asks for a newer Rust than it needs.
stock:
	@cargo build --locked --manifest-path tests/interop/0.6/Cargo.toml --bin stock \
		--target-dir $(STOCK)-0.6
	@cargo build --locked --manifest-path tests/interop/0.7/Cargo.toml --bin stock \
		--target-dir $(STOCK)-0.7 --ignore-rust-version

lint: format clippy doc

format:
	@cargo fmt --check

clippy:
	@$(NATIVE) cargo clippy --all-targets --all-features -- -D warnings
	@cargo clippy --lib --no-default-features -- -D warnings

doc:
	@$(NATIVE) RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --all-features

bench:
	@$(NATIVE) cargo bench
