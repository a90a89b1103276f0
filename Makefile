# `make quickstart` and `make test` are all that a fresh clone needs, with Python 3.11.4 or newer.
# An environment of your own, with biocnn installed in it, is used as it is: make test VENV=/path/to/venv

PYTHON ?= python3
VENV ?= $(BIOCNN_VENV)
ifeq ($(strip $(VENV)),)
VENV := .venv
READY := $(VENV)/.installed
endif
BIN := $(VENV)/bin

# Threads that wait for each other would otherwise spin, which on a busy machine is tens of times slower.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint test-slow benchmarks clean

help: ## Print this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: $(READY) ## Train, test and report on a small data set that is here at once; about a minute once installed.
	$(BIN)/python pipelines/quickstart.py

test: lint ## Check style and types, then run the test suite, in up to four processes.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: $(READY) ## Check style (ruff) and types (mypy).
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-slow: $(READY) ## Run the tests that take minutes: kills, browsers, and SLURM where it is installed.
	$(BIN)/python -m pytest -m slow

benchmarks: ## List the benchmarks and what they compare.
	@for script in benchmarks/*.py; do echo "$$script: $$(sed -n '1s/^"""//p' "$$script")"; done

clean: ## Remove caches and .venv; runs and data stay.
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist
	find biocnn pipelines benchmarks tests -name __pycache__ -prune -exec rm -rf {} +

# Made anew when pyproject.toml has changed, so that no package of an earlier version is left in it.
.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' || { \
	  echo "biocnn needs Python 3.11.4 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	    "Give another: make PYTHON=python3.12 ..."; exit 1; }
	rm -rf .venv
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --editable '.[dev]'
	touch $@
