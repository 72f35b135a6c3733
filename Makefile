# The two commands that matter:
#   make demo    the main job, on a worker that really leaks
#   make test    every test, those in a booted Debian included
# As root, both install the Debian packages they miss.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# systemd-python is compiled against libsystemd; Debian's own Python comes without venv and headers.
BUILD_PACKAGES := gcc libsystemd-dev pkg-config \
    $(shell $(PYTHON) -c 'import ensurepip' 2>/dev/null || echo python3-venv) \
    $(shell $(PYTHON) -c 'import os, sys, sysconfig as s; sys.exit(not os.path.exists(s.get_path("include") + "/Python.h"))' \
        2>/dev/null || echo python3-dev)
TEST_PACKAGES := libc6-dev openssl redis-server shellcheck stress-ng systemd tmux

.PHONY: demo test lint host dask dask-fleet package guest guest-package guest-12 deb image shell bench clean help

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

demo: $(VENV)/base
	@$(BIN)/python demo/demo.py

# The linters, then the parts, two at a time.
# A part shows what it said when it has ended; build/test has it before.
PARTS := guest host dask dask-fleet package guest-package guest-12

test: lint
	@mkdir -p build/test; status=0; \
	$(MAKE) --no-print-directory --jobs=2 --keep-going --output-sync=target $(PARTS:%=test-%) || status=$$?; \
	cd build/test && grep '^=.* in [0-9.]*s' $(PARTS:%=%.log); \
	exit $$status

test-%:
	@$(MAKE) --output-sync=none $* > build/test/$*.log 2>&1; status=$$?; cat build/test/$*.log; exit $$status

lint: $(VENV)/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	shellcheck --exclude=SC1091 tools/need .ci/run packaging/build-deb.sh packaging/debian/nannyd.p* \
	    packaging/debian/tests/unit packaging/debian/tests/service

# On this machine: pure decisions, real processes, real programs.
host: $(VENV)/dev
	$(BIN)/python -m pytest

APART := tests/cluster/test_inprocess.py tests/cluster/test_fleet.py

# With real schedulers and clients of two versions of distributed; the older one is installed once and cached.
dask: $(VENV)/dev
	$(BIN)/python -m pytest tests/cluster $(APART:%=--ignore=%)

# The Nanny within other programs, and a whole fleet.
dask-fleet: $(VENV)/dev
	$(BIN)/python -m pytest $(APART)

# The Debian package: built twice, linted, looked into.
package: $(VENV)/dev
	$(BIN)/python -m pytest tests/package

# dist/nannyd_VERSION_all.deb and the source package; the checkout is not touched.
deb:
	$(PYTHON) -m tests.system.chroot deb

# In a booted Debian with cgroup v2 and systemd as PID 1.  It has one processor, so what can be apart has a guest apart:
guest: $(VENV)/dev
	$(BIN)/python -m tests.system.run tests/system/guest --ignore=tests/system/guest/test_package.py

# the life of the package,
guest-package: $(VENV)/dev
	$(BIN)/python -m tests.system.run tests/system/guest/test_package.py

# and Debian 12, for its old systemd.
guest-12: $(VENV)/dev
	$(BIN)/python -m tests.system.run --suite bookworm

image: $(VENV)/dev
	$(BIN)/python -m tests.system.image

# A booted system with nannyd in it, to try things by hand.
shell: $(VENV)/dev
	$(BIN)/python -m tests.system.run --shell

bench: $(VENV)/bench
	$(BIN)/python -m benchmarks

$(VENV)/base: pyproject.toml tools/need
	tools/need $(BUILD_PACKAGES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/dev: $(VENV)/base
	tools/need $(TEST_PACKAGES)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(VENV)/bench: $(VENV)/dev
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
