# `make` lists the targets. Everything is installed into one virtual environment, .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint bench fuzz clean

help:
	@echo 'make setup      install flower-bfl and its tools into $(VENV) (the other targets do it, too)'
	@echo 'make demo       train: 10 devices, 3 edge servers, an EVM chain; about a minute'
	@echo 'make test       lint, then the tests that take a few minutes'
	@echo 'make test-slow  the tests that take longer'
	@echo 'make lint       ruff, mypy and import-linter'
	@echo 'make bench      time the ledger, the aggregation, whole rounds, runs in process, the audit, network, controllers, offloading, scale, attacks, load'
	@echo 'make fuzz       100,000 hostile inputs to each parser; most of an hour'
	@echo 'make clean      remove $(VENV), caches and built packages; runs/ stays'
	@echo
	@echo 'Another Python: make setup PYTHON=python3.12     Another place: make setup VENV=/path/to/venv'

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@command -v $(PYTHON) >/dev/null || \
	  { echo 'Python 3.11 or newer is needed; there is no $(PYTHON). Try make setup PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V). Try make setup PYTHON=python3.12" >&2; \
	    exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo '$(PYTHON) has no venv; on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
	@echo 'Installing flower-bfl, PyTorch and the tools into $(VENV): some minutes, some gigabytes ...'
	@$(PYTHON) -m venv '$(VENV)'
	@PIP_ROOT_USER_ACTION=ignore $(PIP) install -e '.[dev]' || \
	  { echo 'The installation failed; to see more: $(BIN)/python -m pip install -e ".[dev]"' >&2; exit 1; }
	@touch $@
	@echo 'Installed.'

demo: $(INSTALLED)
	@$(BIN)/flower-bfl run examples/quickstart --nodes 10

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

test: lint
	@$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(INSTALLED)
	@$(BIN)/python -m pytest -m slow || [ $$? -eq 5 ] # 5: there is none

bench: $(INSTALLED)
	@$(BIN)/python benchmarks/ledger.py
	@$(BIN)/python benchmarks/aggregation.py
	@$(BIN)/python benchmarks/rounds.py
	@$(BIN)/python benchmarks/paper.py
	@$(BIN)/python benchmarks/audit.py
	@$(BIN)/python benchmarks/network.py
	@$(BIN)/python benchmarks/controller.py
	@$(BIN)/python benchmarks/offloading.py
	@$(BIN)/python benchmarks/scale.py
	@$(BIN)/python benchmarks/attacks.py
	@$(BIN)/python benchmarks/load.py 150 20

fuzz: $(INSTALLED)
	@$(PIP) install -e '.[fuzz]'
	@$(BIN)/python tests/fuzz/fuzz.py

clean:
	rm -rf '$(VENV)' dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find flower_bfl tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +
