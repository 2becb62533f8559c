# What a newcomer types: `make demo`, `make test`. Every target installs what it needs and is safe to repeat.
# PYTHON chooses the interpreter (3.11 or later); STIRBAR_REQUIRE=all turns every skipped test into a failure.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_ARGUMENTS ?=
TEST_ARGUMENTS ?=
SOURCES := $(wildcard pyx/*.pyx pyx/*.pxd pyx/guard/*.[ch]) setup.py pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help demo test interop soak lint bench clean build system-tools browser

help: ## show the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

# $(call need,COMMANDS,PACKAGES): install distribution packages when one of the commands is missing.
define need
@missing=""; for tool in $(1); do PATH="$$PATH:/usr/sbin:/sbin" command -v $$tool >/dev/null 2>&1 || missing="$$missing $$tool"; done; \
if [ -n "$$missing" ]; then \
  if ! command -v apt-get >/dev/null 2>&1; then \
    echo "stirbar: missing:$$missing. This is no Debian: install the equivalents of \"$(2)\" and try again." >&2; exit 1; fi; \
  sudo=""; if [ "$$(id -u)" != 0 ]; then sudo="sudo"; fi; \
  echo "installing $(2) (for:$$missing)"; \
  { $$sudo apt-get install -y --no-install-recommends $(2) >/dev/null 2>&1 \
    || { $$sudo apt-get update >/dev/null 2>&1 && $$sudo apt-get install -y --no-install-recommends $(2) >/dev/null 2>&1; }; } \
  || { echo "stirbar: cannot install $(2) (no rights, or no network): install them by hand and try again." >&2; exit 1; }; \
fi
endef

system-tools:
	$(call need,$(PYTHON) gcc mosquitto mosquitto_passwd setpriv,python3 python3-venv python3-dev gcc libc6-dev mosquitto util-linux)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "stirbar: $(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, sysconfig, os, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' 2>/dev/null \
	  || { sudo=""; [ "$$(id -u)" = 0 ] || sudo=sudo; echo "installing python3-venv and python3-dev"; \
	       { $$sudo apt-get update && $$sudo apt-get install -y --no-install-recommends python3-venv python3-dev; } >/dev/null 2>&1 \
	       || { echo "stirbar: $(PYTHON) lacks venv or its C headers: install python3-venv and python3-dev." >&2; exit 1; }; }

$(BIN)/python: | system-tools
	@echo "making the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --upgrade pip

# One stamp per set of extras: installing is repeated only when the build changed.
$(VENV)/.installed-%: $(SOURCES) | system-tools $(BIN)/python
	@echo "building stirbar and installing what '$*' needs"
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install -q -e ".[$*]"
	@touch $@

build: $(VENV)/.installed-tls ## compile and install into .venv

demo: $(VENV)/.installed-tls ## leader and three simulated units on this machine
	@echo "starting the demo (Ctrl-C ends it)"
	@$(BIN)/stirbar demo $(DEMO_ARGUMENTS)

browser:
	$(call need,chromium chromedriver,chromium chromium-driver)

# CI requires the optional parts too: the browser, and the tools that count instructions and compare latency, PostgreSQL, sshd.
ifeq ($(STIRBAR_REQUIRE),all)
test: browser optional-tools
endif

.PHONY: optional-tools
optional-tools:
	$(call need,valgrind cyclictest,valgrind rt-tests)
	$(call need,pg_lsclusters,postgresql)
	$(call need,sshd sudo,openssh-server sudo)

test: $(VENV)/.installed-test ## run the tests
	@echo "running the tests"
ifdef TEST_ARGUMENTS
	@$(BIN)/python -m pytest -q $(TEST_ARGUMENTS)
else
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not alone and not soak"
	@echo "running the tests that look at times, one by one"
	@$(BIN)/python -m pytest -q -m "alone and not soak"
endif

# The real package of the field, from the package index: never in the tests' own environment, never in `make test`.
# It takes Python 3.12; PyYAML is what its hardware files need and its wheel does not name.
INTEROP := .venv-interop
INTEROP_PACKAGE ?= pioreactor[worker]==25.11.19
INTEROP_PYTHON ?= $(shell for each in python3.13 python3.12 python3 $$HOME/.pyenv/versions/3.1[2-9]*/bin/python3; do \
  $$each -c 'import sys, venv; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && { echo $$each; break; }; done)

$(INTEROP)/.installed: Makefile
	@if [ -z "$(INTEROP_PYTHON)" ]; then \
	  echo "stirbar: the field's package needs Python 3.12: name one, make interop INTEROP_PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@echo "installing $(INTEROP_PACKAGE) into $(INTEROP)"
	@$(INTEROP_PYTHON) -m venv $(INTEROP)
	@$(INTEROP)/bin/python -m pip install -q "$(INTEROP_PACKAGE)" pyyaml
	@touch $@

interop: $(VENV)/.installed-test $(INTEROP)/.installed ## run the tests with the real pioreactor package
	@echo "running the tests with $(INTEROP_PACKAGE)"
	@STIRBAR_INTEROP=$(abspath $(INTEROP))/bin/python timeout 300 $(BIN)/python -m pytest -q -m interop tests/test_interop.py

soak: $(VENV)/.installed-test ## run the long campaigns
	@echo "running the soak tests"
	@$(BIN)/python -m pytest -q -m soak $(TEST_ARGUMENTS)
	@echo "a million commands to the doser, a million commands and faults to the loop"
	@STIRBAR_DOSE_EXAMPLES=20000 STIRBAR_FAULT_EXAMPLES=20000 $(BIN)/python -m pytest -q tests/test_dosing_at_random.py tests/test_faults.py
	@echo "a broker that is gone for a minute"
	@STIRBAR_OUTAGE_SECONDS=60 $(BIN)/python -m pytest -q -m soak tests/test_broker_gone.py
	@echo "worker and guard killed and stopped fifty times each"
	@$(BIN)/python -m benchmarks.deaths

lint: $(VENV)/.installed-lint ## ruff, mypy, cython-lint
	@echo "ruff"; $(BIN)/ruff check . && $(BIN)/ruff format --check .
	@echo "mypy"; $(BIN)/mypy
	@echo "cython-lint"; PATH="$(abspath $(BIN)):$$PATH" cython-lint pyx

bench: $(VENV)/.installed-bench ## measure this machine against the budgets
	@echo "measuring; results go to benchmarks/RESULTS.md"
	@$(BIN)/python -m benchmarks.run

clean: ## remove everything that was built
	@echo "removing $(VENV) and everything that was built"
	@rm -rf $(VENV) $(INTEROP) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis pyx/*.so pyx/guard/stirbar-guard
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
