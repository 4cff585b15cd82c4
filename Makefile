# Every target does its own set-up; nothing but Python 3.11+ and make is needed.
SHELL := /bin/sh
.DEFAULT_GOAL := help
UV_VERSION := 0.13.8
BIN := .venv/bin

.PHONY: help install up demo e2e test lint audit sbom types faults mutations soak bench bench-large docs lock clean

help: ## what can be done here
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1	/p' Makefile

install: .venv/.installed ## a .venv with everything

.venv/.installed: requirements.lock pyproject.toml
	@set -e; \
	python=""; \
	for candidate in "$(PYTHON)" python3 python3.14 python3.13 python3.12 python3.11; do \
	  if [ -n "$$candidate" ] && "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then echo "Python 3.11 to 3.14 is needed and none was found; set PYTHON=/path/to/python3" >&2; exit 2; fi; \
	"$$python" -m venv .venv; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"; \
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock; \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch .venv/.installed

up: install ## the whole system on this machine: UI on http://127.0.0.1:3000
	@$(BIN)/okx-pipeline up

demo: install ## the same on a made-up market in a home of its own, a minute a second; nothing leaves the machine
	@OKX_HOME=.okx-demo $(BIN)/okx-pipeline up --replay synthetic --speed 60

e2e: install ## the tests that start the whole system, and those that take minutes
	@$(BIN)/python -m pytest -m "e2e or long"

# Three side by side, as the tests wait for half of the time. Without bytecode every worker and every process that one starts
# would compile it all anew, and images of Python like to forbid it.
test: install ## the test suite, in under ten minutes
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder -m "not long"

faults: install ## every fault of the matrix, many times over, judged by a checker of its own; see docs/faults.md
	@FAULTS=full FAULT_SEEDS_FROM=$(or $(SEED),1) $(BIN)/python -m pytest okx_pipeline_tests/faults --numprocesses 4 --dist worksteal

soak: install ## faults drawn by chance for MINUTES=30, and the checker at the end
	@SOAK_MINUTES=$(or $(MINUTES),30) $(BIN)/python -m pytest okx_pipeline_tests/faults/soak.py

mutations: install ## the tests are tested: one protection after the other is switched off in a copy, and has to turn them red
	@$(BIN)/python -m okx_pipeline_tests.faults.mutations

lint: install ## ruff: style, likely bugs, security
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

audit: install ## known vulnerabilities of the locked packages; says so where nobody could be asked
	@.ci/audit

sbom: install ## .artifacts/sbom.json: every package that a deployment installs, as CycloneDX
	@mkdir -p .artifacts
	@PYTHONWARNINGS=ignore $(BIN)/cyclonedx-py requirements --validate --output-reproducible --pyproject pyproject.toml \
	  --mc-type application --output-file .artifacts/sbom.json deploy/requirements.lock

types: install ## mypy, strict
	@$(BIN)/mypy

bench: .venv/.benchmarks-installed ## benchmarks: ours beside its peers and limits, in under ten minutes
	@$(BIN)/python -m benchmarks quick

bench-large: .venv/.benchmarks-installed ## the long ones
	@$(BIN)/python -m benchmarks large

.venv/.benchmarks-installed: .venv/.installed benchmarks/requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --requirement benchmarks/requirements.lock
	@touch .venv/.benchmarks-installed

docs: install ## docs/data-dictionary.md from the comments in the database
	@$(BIN)/python -m okx_pipeline_tests.data_dictionary

COMPILE = $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-index-url --no-header

lock: ## requirements.lock from pyproject.toml, and the part of it that a deployment needs
	@test -x $(BIN)/uv || { python3 -m venv .venv && $(BIN)/python -m pip install --quiet "uv==$(UV_VERSION)"; }
	@$(COMPILE) --extra dev --extra build --output-file requirements.lock pyproject.toml
	@$(COMPILE) --extra build --constraint requirements.lock --output-file deploy/requirements.lock pyproject.toml
	@$(COMPILE) --extra bench --constraint requirements.lock --output-file benchmarks/requirements.lock pyproject.toml

clean: ## remove the virtual environment (never the data in OKX_HOME)
	@rm -rf .venv build dist
