SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: help run demo test tools lint types unit e2e cov soak bench docs clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 18

run: .venv/run ## install and run the hub (ARGS="--bind :8000" for more)
	$(BIN)/ssehub serve $(ARGS)

demo: .venv/run ## a chat with a hub, on http://127.0.0.1:8080
	$(BIN)/python examples/chat

test: tools lint types ## install what the tests need and run everything
	$(BIN)/python -m pytest --cov --cov-report=term --cov-fail-under=95

tools: .venv/dev ## install what the tests need besides Python packages
	tests/install-tools

lint: .venv/dev ## ruff: rules and format
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: .venv/dev ## mypy, strict
	$(BIN)/mypy

unit: .venv/dev ## the quick tests
	$(BIN)/python -m pytest -m "not e2e"

e2e: tools ## the tests with browser, web server and Node
	$(BIN)/python -m pytest -m e2e

cov: tools ## branch coverage, line by line
	$(BIN)/python -m pytest --cov --cov-report=term-missing --cov-report=html

soak: tools ## the long faults at full scale
	SOAK=1 $(BIN)/python -m pytest -m soak --timeout 1800 -s

bench: .venv/run ## the benchmarks of docs/performance.md, with their table and plots (ARGS="W1 --pairs 2" for less)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	tests/install-tools nginx-light libnginx-mod-nchan
	$(BIN)/python benchmarks/run.py $(ARGS)

docs: .venv/dev ## hold the docs against the code
	$(BIN)/python -m pytest tests/test_docs.py

clean: ## remove what was made
	rm -rf .venv .coverage* htmlcov tests/e2e/node_modules dist

.venv/run: pyproject.toml
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer with venv is needed, on Debian: apt-get install git make python3 python3-venv'; exit 1; }
	rm -rf .venv && $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cli]'
	@touch $@

.venv/dev: .venv/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
