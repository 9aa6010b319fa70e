# Each target does its own set-up: a virtual environment in .venv, made anew when pyproject.toml changes.
#   make train     make test     make help

PYTHON ?= python3
VENV   ?= .venv
# What the tests compare with. `make test TORCH=` leaves it out; the tests that need it are then shown as skipped.
TORCH  ?= torch==2.13.0
# Processes that share the tests out, file by file.
WORKERS ?= 2
# Of `make campaign`. No PARTS: all; no MINUTES: until all trials are done.
MINUTES ?= 60
SEED    ?= 0
PARTS   ?=
RECORD  ?= runs/campaign.json

BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check
USABLE  := $(VENV)/.usable
TESTING := $(VENV)/.testing

.DEFAULT_GOAL := help
.PHONY: help train test test-adapters format lint campaign bench bench-compare report gpu gpu-cache clean

help:
	@echo "make train    install into $(VENV), train on the default text for two minutes, print a sample"
	@echo "make test     install with what the tests need, then ruff, mypy and pytest with coverage, but for the adapters"
	@echo "make test-adapters   install the frameworks that the adapters serve, then test them against the real ones"
	@echo "make format   lay out all Python files by ruff format"
	@echo "make lint     ruff format --check, ruff, and mypy on an installed copy"
	@echo "make campaign MINUTES=60 SEED=0 PARTS=   the reliability campaign, of all parts or of PARTS=threads,soak"
	@echo "make bench    the benchmark suites (pytest-benchmark)"
	@echo "make bench-compare   BEFORE=HEAD~1 AFTER=HEAD: two commits timed in alternating blocks"
	@echo "make report   docs/report.html, a page of all stored results; docs/summary.png, docs/results.md and the README's numbers"
	@echo "make gpu      FOLDER=results: on a machine with a GPU, by its own PYTHON with CuPy: ten minutes of checks and times"
	@echo "make gpu-cache   CACHE=folder: compile its kernels beforehand, without a GPU; then make gpu CACHE=folder"
	@echo "make clean    remove $(VENV) and everything built; trained runs stay"
	@echo "Variables: PYTHON=$(PYTHON) VENV=$(VENV) TORCH=$(TORCH) WORKERS=$(WORKERS)"

train: $(USABLE)
	$(BIN)/fastlstm train --minutes 2

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --ignore=tests/adapters --cov --cov-report=term

test-adapters: $(TESTING)
	$(PIP) install --quiet --editable ".[test-adapters]"
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile tests/adapters tests/test_docs.py

format: $(TESTING)
	$(BIN)/python -m ruff format .

lint: $(TESTING)
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	@# An old copy under build/ would keep modules that are gone from the source.
	@rm -rf build
	$(PIP) install --quiet --no-deps --no-build-isolation --target build/typecheck .
	cd build/typecheck && $(abspath $(BIN))/python -m mypy --config-file ../../pyproject.toml \
		--cache-dir ../../.mypy_cache fastlstm

campaign: $(TESTING)
	$(PIP) install --quiet --editable ".[test-adapters]"
	$(BIN)/python -m tests.campaign --seed $(SEED) --parts "$(PARTS)" --record $(RECORD) $(if $(MINUTES),--minutes $(MINUTES))

bench: $(TESTING)
	$(PIP) install --quiet --editable ".[bench]"
	$(BIN)/python -m pytest --benchmark-only

bench-compare: $(TESTING)
	$(BIN)/python -m benchmarks.speed.compare $(or $(BEFORE),HEAD~1) $(or $(AFTER),HEAD)

report: $(TESTING)
	$(PIP) install --quiet --editable ".[bench]"
	$(BIN)/python -m benchmarks.report.page
	$(BIN)/python -m benchmarks.report.readme

# From the source tree and with the packages that are there: machines with a GPU often have theirs and no way to others.
gpu:
	@test -e fastlstm/kernels || ln -s ../kernels fastlstm/kernels
	$(if $(CACHE),CUPY_CACHE_DIR="$(abspath $(CACHE))") $(PYTHON) -m benchmarks.gpu.run "$(or $(FOLDER),gpu-results)" $(ARGUMENTS)

# For an H200, as the pretend one of the tests. Kernels are found again where NVRTC and CuPy are those of $(VENV).
gpu-cache: $(TESTING)
	CUPY_CACHE_DIR="$(abspath $(or $(CACHE),gpu-cache))" PYTHONPATH=tests/cuda/pretend/site $(BIN)/python -m benchmarks.gpu.cache

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find fastlstm kernels tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(USABLE): pyproject.toml setup.py
	@command -v "$(PYTHON)" >/dev/null || { echo "No '$(PYTHON)' here. Install Python 3.11 or newer, or name one:" \
		"make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fastlstm needs Python 3.11 or newer;" \
		"$$("$(PYTHON)" --version 2>&1) is '$(PYTHON)'. Name another: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -m venv "$(VENV)" || { echo "Could not make a virtual environment in $(VENV)." \
		"On Debian and Ubuntu it takes the package python3-venv." >&2; exit 1; }
	@echo "Installing fastlstm and what it needs into $(VENV)"
	@$(PIP) install --quiet --editable .
	@touch $@

$(TESTING): $(USABLE) Makefile
	@echo "Installing what the tests need into $(VENV): $(TORCH), pytest, ruff, mypy and a few more"
	@$(if $(TORCH),$(PIP) install --quiet "$(TORCH)",true)
	@$(PIP) install --quiet --editable ".[test]"
	@touch $@
