# Everything starts here. Needs Python 3.11 or later, make and pip; nothing outside this folder is changed.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
STACK  := $(VENV)/.installed-production
DEBIAN := postgresql redis-server iproute2 curl
LOCAL  := $(BIN)/python -m talaria.devstack

# More for pytest, for example: make test PYTEST_ARGS='-k convert -x'
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help venv up demo down test test-stack test-load test-storm debian lint docs audit compose-env

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## Make .venv with the locked versions

up: $(STAMP) ## Start Airflow and MLflow on free loopback ports; everything is kept under .talaria/
	@$(LOCAL) up

demo: $(STAMP) ## Train, evaluate, register and promote a tiny model through the DAG `sft`
	@$(LOCAL) demo

down: ## Stop everything that `make up` and `make demo` started
	@if [ -x $(BIN)/python ]; then $(LOCAL) down; else echo "Nothing to stop: there is no $(VENV)."; fi

test: $(STAMP) ## Run the tests that need nothing but this clone
	@$(BIN)/pytest -m "not stack and not load and not storm" $(PYTEST_ARGS)

compose-env: ## Write .env with fresh secrets for docker compose; an existing one is kept
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m talaria.devstack.compose_env; else $(PYTHON) -m talaria.devstack.compose_env; fi

test-stack: $(STACK) debian ## Run the tests of the production stack (PostgreSQL, Redis, Celery)
	@$(BIN)/pytest -m stack $(PYTEST_ARGS)

test-load: $(STACK) debian ## Queue 50 runs before one GPU slot of the stack; also its optional services and its image's packages
	@$(BIN)/pytest -m load $(PYTEST_ARGS)

debian:
	@if [ "$$(id -u)" = 0 ] && ! dpkg -s $(DEBIAN) >/dev/null 2>&1; then \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $(DEBIAN) >/dev/null; fi

test-storm: $(STAMP) ## End one training in every way that there is, again and again
	@$(BIN)/pytest -m storm $(PYTEST_ARGS)

lint: $(STAMP) ## Check style, types, layers, declared dependencies and known vulnerabilities
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python tools/house.py
	@$(BIN)/deptry .
	@$(MAKE) --no-print-directory audit

docs: $(STAMP) ## Build the documentation site into build/site; a broken link is an error
	@[ -x $(BIN)/mkdocs ] || $(BIN)/python -m pip install -qq --disable-pip-version-check -c requirements.lock -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

audit: ## Look the locked versions up in the advisory database (OSV), where that can be reached
	@if $(BIN)/python -c 'import socket; socket.create_connection(("api.osv.dev", 443), 5)' 2>/dev/null; \
	then $(BIN)/pip-audit --service osv --no-deps --disable-pip --progress-spinner off --requirement requirements.lock; \
	else echo "api.osv.dev cannot be reached: the dependencies were not audited."; fi

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Talaria needs Python 3.11 or later, found $$($(PYTHON) --version 2>&1); try: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@echo "Installing the locked dependencies into $(VENV) (about 2 GB, a few minutes the first time)..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c requirements.lock -e '.[train,airflow,dev]'
	@touch $@

$(STACK): $(STAMP)
	@echo "Adding the production dependencies to $(VENV)..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c requirements.lock -e '.[train,airflow,production,dev,stack]'
	@touch $@
