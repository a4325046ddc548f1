# make demo    three nodes, the leader killed, nothing lost (FILE=path: of that file's lines)
# make test    all tests; with cargo-nextest where it is installed
# make lint    layout, clippy and documentation, warnings denied
# make bench   the figures of benches/README.md
#
# `demo` and `test` build with one profile, so RocksDB, which takes minutes, is compiled once.

SHELL := /bin/bash
export CARGO_TARGET_DIR ?= $(HOME)/.cache/quorate/target

# RocksDB's build needs libclang: found, or fetched once.
NATIVE := native="$$(.ci/libclang)" && eval "$$native" &&
# With the places where a test may end the process; without being told to, none of them does.
TESTED := --features failpoints

.PHONY: demo test lint format clippy doc bench

demo:
	@$(NATIVE) cargo run --example survive -- $(FILE)

test:
	@$(NATIVE) if cargo nextest --version > /dev/null 2>&1; \
		then cargo nextest run $(TESTED); \
		else cargo test --lib --tests --examples $(TESTED); \
		fi && cargo test --doc $(TESTED)

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
