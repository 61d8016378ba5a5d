SHELL := /bin/bash
# The tests start hundreds of processes: each would compile our modules anew.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
JOBS ?= 3

# $(call tests,MARKERS,OPTIONS) runs the tests with these markers: first JOBS at a time, then, one after the other, those
# that measure time. With OPTIONS, coverage is measured; the report is of both runs.
tests = first=0; \
	$(BIN)/python -m pytest -m "$(1)not alone" -n $(JOBS) --dist loadfile --no-loadscope-reorder $(if $(2),--cov --cov-report=) || first=$$?; \
	$(BIN)/python -m pytest -m "$(1)alone" $(if $(2),--cov --cov-append $(2)) && exit $$first

.PHONY: help run demo test tools lint format types unit e2e cov soak newcomer clients browsers bench docs clean

help: ## list the targets
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9]+):[^#]*## /  make \1\t/' | expand -t 18

run: .venv/run ## install the hub into .venv and run it (ARGS="--bind :8000" passes options)
	$(BIN)/ssehub serve $(ARGS)

demo: .venv/run ## run a hub with a chat, on http://127.0.0.1:8080
	$(BIN)/python examples/chat

test: tools lint types ## install what the tests need, and run everything
	@$(call tests,,--cov-report=term --cov-fail-under=95)

tools: .venv/dev ## install what the tests need besides Python packages
	tests/install-tools

lint: .venv/dev ## check the code with ruff: rules and format
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: .venv/dev ## format the code with ruff, and fix what it can fix
	$(BIN)/ruff check --fix --exit-zero . && $(BIN)/ruff format .

types: .venv/dev ## check the types with mypy
	$(BIN)/mypy

unit: .venv/dev ## run the tests that need no browser, web server or Node
	@$(call tests,not e2e and )

e2e: tools ## run the tests with a browser, a web server and Node
	@$(call tests,e2e and )

cov: tools ## run the tests, and report branch coverage line by line
	@$(call tests,,--cov-report=term-missing --cov-report=html)

soak: tools ## run the fault tests at full scale, and all tests without fast paths
	SOAK=1 $(BIN)/python -m pytest -m soak --timeout 1800 -s
	ORDINARY_PATHS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

newcomer: ## follow the README in fresh clones, and measure the seconds to a first event (ARGS=curl for one way)
	$(PYTHON) tests/first_event.py $(ARGS)

clients: tools ## run client libraries against real hubs; writes docs/clients.md (ARGS="--client curl" for less)
	PYTHONPATH=tests $(BIN)/python -m clients $(ARGS)

browsers: tools ## try browsers behind proxies; writes the table in docs/proxies.md
	tests/install-tools nginx-light caddy firefox-esr webkit2gtk-driver xvfb curl
	$(BIN)/python tests/ends.py

bench: .venv/run ## measure against other servers; writes the tables and plots in docs/ (ARGS="W1 --pairs 2" for less)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	tests/install-tools nginx-light libnginx-mod-nchan gcc libc6-dev wrk
	$(BIN)/python benchmarks/run.py $(ARGS)

docs: .venv/dev ## check the documentation against the code
	$(BIN)/python -m pytest tests/test_docs.py tests/test_reliability.py

clean: ## remove everything that make has created
	rm -rf .venv .coverage* htmlcov tests/e2e/node_modules tests/idp/node_modules dist
	rm -rf tests/clients/node/node_modules tests/clients/python/.venv tests/clients/go/build
	rm -rf tests/clients/publish/build benchmarks/build

.venv/run: pyproject.toml
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer with venv is needed. On Debian: apt-get install git make python3 python3-venv'; exit 1; }
	rm -rf .venv && $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cli]'
	@touch $@

.venv/dev: .venv/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
