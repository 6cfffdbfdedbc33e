# Each target sets up all that it needs, on Debian or Ubuntu with Python 3.11 or later.
#   make PYTHON=/path/to/python3 ...    another interpreter for .venv
#   make CONFIG=other.toml run          another configuration

CONFIG ?= gateway.toml
TESTS ?=
INTEROP ?= tests/interop
ASAN_TESTS ?= $(patsubst %,tests/calls/test_%.py,screening hostile_input unread nobody_there media_offers \
	signalling renegotiation transports wideband registrars)
# Tests of calls wait for real time, more than half of it: six files at a time keep two cores busy,
# and unit tests in a seventh process use what is left (tests/support/parallel.py).
WORKERS ?= 4
LEFT_OUT ?= -m "not interop"
PARALLEL ?= -p tests.support.parallel --workers $(WORKERS)
test: WORKERS := 7

VENV := .venv
BIN := $(VENV)/bin
SETUP := deploy/setup
PIP := $(SETUP)/pip-install.sh $(BIN)/python

# Stamps: what is installed in .venv, so that a second run has nothing to do.
BASE := $(VENV)/.made
PJSUA2 := $(VENV)/.pjsua2
APP := $(VENV)/.app
DEV := $(VENV)/.dev
RUNS := $(PJSUA2) $(APP)
TESTED := $(PJSUA2) $(DEV)

export PYTHON
export PIP_NO_INPUT = 1
# Tests start hundreds of processes: each would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE


.DEFAULT_GOAL := help
.PHONY: help demo run check test black-boxes test-asan test-console test-container test-tools interop lint format bench venv lock clean

help: ## what there is to make
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(RUNS) ## emulator, gateway and one scripted call on this machine, then its timeline
	@$(BIN)/gateway demo

run: $(RUNS) ## emulator and gateway until Ctrl-C: call from the browser, or sip:100@127.0.0.1:5060
	@$(BIN)/python $(SETUP)/run_local.py -c $(CONFIG)

check: $(RUNS) ## what is wrong with the configuration and the dialplans
	@$(BIN)/gateway check -c $(CONFIG)

test: $(TESTED) ## all tests but those of interop (TESTS=tests/unit for some; LEFT_OUT= for all)
	@$(SETUP)/need-debian.sh sipp:sip-tester pg_ctlcluster:postgresql
	@rm -f test-output/figures.txt
	@$(BIN)/python -m pytest $(PARALLEL) $(LEFT_OUT) $(TESTS)

black-boxes: $(TESTED) ## make the black boxes anew that the tests replay, after a change of the core
	@rm -rf tests/unit/bridge/black_boxes
	@BLACK_BOXES_ANEW=1 $(BIN)/python -m pytest -q tests/unit/call tests/calls/test_incidents.py

test-asan: $(TESTED) ## calls and broken messages on a pjsua2 that AddressSanitizer watches
	@$(SETUP)/need-debian.sh sipp:sip-tester openssl:openssl
	@deploy/pjsua2/with-asan.sh $(BIN)/python $(BIN)/python -m pytest $(PARALLEL) $(ASAN_TESTS)

interop: $(TESTED) ## calls with a real Asterisk, Kamailio and softphones (INTEROP=... for some)
	@$(SETUP)/need-debian.sh sipp:sip-tester openssl:openssl setpriv:util-linux
	@$(SETUP)/need-kamailio.sh || echo "Without Kamailio its tests are skipped."
	@$(BIN)/python -m pytest $(PARALLEL) -m interop $(INTEROP)

test-console: $(TESTED) ## the console and calls from the browser, in a real Chromium
	@$(SETUP)/need-debian.sh sipp:sip-tester chromium:chromium
	@$(BIN)/python -m pytest tests/interop/test_console.py tests/interop/test_browser_calls.py

test-container: $(TESTED) ## the image of deploy/container: built, run, and called
	@$(SETUP)/need-debian.sh sipp:sip-tester buildah:buildah mmdebstrap:mmdebstrap runc:runc
	@$(BIN)/python -m pytest tests/interop/test_container.py

test-tools: $(DEV) ## the programs of Debian's that the tests need, at once
	@$(SETUP)/need-debian.sh sipp:sip-tester baresip:baresip-core openssl:openssl setpriv:util-linux pg_ctlcluster:postgresql
	@$(SETUP)/need-kamailio.sh || echo "Without Kamailio its tests are skipped."

lint: $(DEV) ## ruff, mypy, which package may import which, words, licence lines
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python $(SETUP)/check_words.py

format: $(DEV) ## let ruff format the sources
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(TESTED) ## figures of speed and memory, with their method (BENCH=--docs renews the page)
	@$(SETUP)/need-debian.sh sipp:sip-tester pg_ctlcluster:postgresql
	@$(BIN)/python -m tests.load $(BENCH)

venv: $(TESTED) ## .venv with everything in it

# The exact versions and hashes of everything, for all supported Pythons at once. The larger set is
# resolved first, so that the gateway runs on the very versions that the tests saw.
UV := .cache/lock/bin/uv
COMPILE := pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-annotate --no-emit-index-url pyproject.toml $(SETUP)/build-requirements.in \
	--extra devtools --extra mcp --extra otel --extra recording --extra top
lock: $(BASE) ## renew requirements.lock and requirements-dev.lock
	@test -x $(UV) || { $(BIN)/python -m venv .cache/lock && .cache/lock/bin/pip install --quiet uv; }
	@$(UV) $(COMPILE) --extra dev --upgrade -o requirements-dev.lock
	@$(UV) $(COMPILE) -c requirements-dev.lock --upgrade -o requirements.lock
	@echo uv | $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-header --no-annotate --no-emit-index-url --upgrade -o $(SETUP)/uv.lock -
	@echo "Written: requirements.lock, requirements-dev.lock, $(SETUP)/uv.lock"

clean: ## remove .venv, caches and what demo and bench wrote
	@rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-output bench-output \
		*.egg-info build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BASE):
	@$(SETUP)/make-venv.sh $(VENV)
	@touch $@

# Built from source where the cache does not have it: deploy/pjsua2/README.md.
$(PJSUA2): $(BASE) $(shell find deploy/pjsua2 -type f ! -name '*.pyc' ! -name '*.md')
	@sh deploy/pjsua2/build.sh $(BIN)/python
	@touch $@

$(APP): $(BASE) requirements.lock pyproject.toml
	@echo "Installing what the gateway needs into $(VENV)"
	@$(PIP) --require-hashes -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): $(APP) requirements-dev.lock
	@echo "Installing what tests and checks need into $(VENV)"
	@$(PIP) --require-hashes -r requirements-dev.lock
	@touch $@
