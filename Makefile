# Builds, tests and measures Nacre. Every target can be repeated; a second run builds only what has changed.
#
#   make           builds everything and installs it into target/nacre
#   make setup     installs the missing packages (apt) and checks the Rust toolchain
#   make demo      setup and build, then runs a container in its own microVM
#   make test      setup and build, then the unit, guest, end-to-end, parity, CRI and fault tests; the last line is their count
#   make test-all  make test with all fault points and longer tests, then file systems compared with runc's, the tests of the
#                  lab, of other versions of containerd and of real software
#   make faults    ends each program at each fault point: with programs of their own, in target/nacre-faults
#   make fuzz      fuzzes what reads a guest's bytes, each target for a minute; FUZZ_SECONDS=N for another time
#   make soak      lets containers come, go and be killed for two hours, and finds what grows; MINUTES=N for another time
#   make bench     measures nacre beside runc; writes target/bench/results.json, results.md and plots
#                  OTHER=PREFIX also measures the build that is installed at PREFIX
#   make clean     removes what was built; the caches in ~/.cache/nacre stay
#
# QUICK=1 builds the host's programs unoptimised and the agent without link-time optimisation, for work on the
# code.

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

# With FAULTS=1 the programs have the fault points of protocol/src/fault.rs, and are installed elsewhere.
ifdef FAULTS
PREFIX := $(TARGET)/nacre-faults
FEATURES := --features nacre-protocol/fault-points
endif

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

.PHONY: install check setup programs agent kernel image demo test test-all faults fuzz soak bench clean

install: programs kernel image
	@mkdir -p $(PREFIX)/bin
	@for program in $(PROGRAMS); do scripts/install-file 755 $(BUILT)/$$program $(PREFIX)/bin/$$program; done
	@echo "==> installed in $(PREFIX)"

check:
	@scripts/setup --check

setup:
	@scripts/setup

programs: check
	@echo "==> programs of the host (cargo, profile $(PROFILE); the first build takes minutes)"
	@cargo build --profile $(PROFILE) $(FEATURES) $(addprefix --package ,$(PROGRAMS) nacre-rootfs-builder)

# Linked statically, because it is the only file in the guest's root file system. With --target the flags do
# not apply to build scripts.
agent: check
	@echo "==> agent of the guest (cargo, profile guest)"
	@RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static -C force-unwind-tables=no" LIBSECCOMP_LINK_TYPE=static \
		LIBSECCOMP_LIB_PATH=/usr/lib/x86_64-linux-gnu \
		cargo build --profile guest --target $(GUEST_TRIPLE) $(FEATURES) --package nacre-agent

kernel: check
	@echo "==> kernel of the guest (the first build takes about 7 minutes on two cores)"
	@guest-kernel-config/build --output $(PREFIX)/share/nacre/vmlinux >/dev/null

image: programs agent
	@echo "==> image of the guest"
	@mkdir -p $(PREFIX)/share/nacre
	@$(BUILT)/nacre-rootfs-builder --agent $(AGENT) --output $(PREFIX)/share/nacre/initramfs.cpio
	@scripts/writable-layer $(PREFIX)/share/nacre/writable-layer.ext4

demo: setup
	@$(MAKE) --no-print-directory install
	@tests/lab/run -- tests/demo

test: setup
	@$(MAKE) --no-print-directory -j2 install
	@tests/all

test-all: setup
	@$(MAKE) --no-print-directory -j2 install
	@tests/all unit guests e2e e2e-long two-vcpus-all parity cri faults-all posix lab other-containerds cri-others software

faults: setup
	@tests/all faults-all

fuzz: setup
	@scripts/fuzz

soak: setup
	@$(MAKE) --no-print-directory install
	@SOAK_MINUTES=$(or $(MINUTES),120) tests/all soak

bench: setup
	@$(MAKE) --no-print-directory install
	@cargo build --quiet --package nacre-tests
	@tests/lab/run --cri -- $(TARGET)/debug/nacre-bench --output $(TARGET)/bench $(if $(OTHER),--other $(abspath $(OTHER))) \
		$(addprefix --qemu ,$(lastword $(wildcard $(CACHE)/lab/qemu-*/usr/bin/qemu-system-x86_64)))

clean:
	@cargo clean
	@echo "kept: the caches in $(CACHE)"
