# Nacre: build, try, test, measure. Every target says what it does; all can be repeated, and a second run takes seconds.
#
#   make          builds everything and installs it into target/nacre
#   make setup    installs the packages it needs (apt), only those that are missing
#   make demo     all of that, then a container in its own microVM
#   make test     all tests of every ring, ending with a count
#   make bench    nacre beside runc, in one run
#   make clean    removes what was built; the caches in ~/.cache/nacre stay
#
# QUICK=1 builds the host's programs unoptimised and the agent without link-time optimisation: for work on the code.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := install

# Empty if the active Rust is the one to use: scripts/toolchain has the rules.
TOOLCHAIN := $(shell scripts/toolchain)
ifneq ($(TOOLCHAIN),)
export RUSTUP_TOOLCHAIN := $(TOOLCHAIN)
endif

TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
PREFIX := $(TARGET)/nacre
CACHE := $(or $(NACRE_CACHE),$(HOME)/.cache/nacre)
GUEST_TRIPLE := x86_64-unknown-linux-gnu

PROGRAMS := containerd-shim-nacre-v2 nacre-vmm nacre
ifdef QUICK
PROFILE := dev
BUILT := $(TARGET)/debug
export CARGO_PROFILE_GUEST_LTO := off
export CARGO_PROFILE_GUEST_CODEGEN_UNITS := 16
else
PROFILE := release
BUILT := $(TARGET)/release
endif
AGENT := $(TARGET)/$(GUEST_TRIPLE)/guest/nacre-agent

.PHONY: install check setup programs agent kernel image demo test bench clean

install: programs kernel image
	@mkdir -p $(PREFIX)/bin
	@for program in $(PROGRAMS); do scripts/install-file 755 $(BUILT)/$$program $(PREFIX)/bin/$$program; done
	@echo "==> installed in $(PREFIX)"

check:
	@scripts/setup --check

setup:
	@scripts/setup

programs: check
	@echo "==> programs of the host (cargo, profile $(PROFILE); the first time takes minutes)"
	@cargo build --profile $(PROFILE) $(addprefix --package ,$(PROGRAMS) nacre-rootfs-builder)

# Static: it is the only file of its root file system. --target keeps the flags away from build scripts.
agent: check
	@echo "==> agent of the guest (cargo, profile guest)"
	@RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static -C force-unwind-tables=no" LIBSECCOMP_LINK_TYPE=static \
		LIBSECCOMP_LIB_PATH=/usr/lib/x86_64-linux-gnu \
		cargo build --profile guest --target $(GUEST_TRIPLE) --package nacre-agent

kernel: check
	@echo "==> kernel of the guest (the first time about 7 minutes on two cores)"
	@guest-kernel-config/build --output $(PREFIX)/share/nacre/vmlinux >/dev/null

image: programs agent
	@echo "==> image of the guest"
	@mkdir -p $(PREFIX)/share/nacre
	@$(BUILT)/nacre-rootfs-builder --agent $(AGENT) --output $(PREFIX)/share/nacre/initramfs.cpio

demo: setup
	@$(MAKE) --no-print-directory install
	@tests/lab/run -- tests/demo

test: setup
	@$(MAKE) --no-print-directory install
	@tests/all

bench: setup
	@$(MAKE) --no-print-directory install
	@cargo build --quiet --package nacre-tests --bin nacre-bench
	@tests/lab/run -- $(TARGET)/debug/nacre-bench --output $(TARGET)/bench

clean:
	@cargo clean
	@echo "caches are kept: $(CACHE)"
