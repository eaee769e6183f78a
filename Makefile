# Everything starts here. Needs Linux, make and Python 3.11 to 3.14; nothing outside this folder is changed.
# uv installs what uv.lock names: the one on the PATH, or one that is put into .uv/. TORCH=cpu or TORCH=cuda says which build of
# torch is installed; without it, CUDA's where there is an NVIDIA driver. docs/installation.md has the other variables.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
VENV   := .venv
BIN    := $(VENV)/bin
RUN    := $(VENV)/.installed
DEV    := $(VENV)/.installed-dev
STACK  := $(VENV)/.installed-stack
DOCS   := $(VENV)/.installed-docs
DEBIAN := postgresql redis-server iproute2 curl
BEGAN  := $(shell date +%s)
LOCAL  := $(BIN)/python -m talaria.devstack

# Images of containers often set it. Each of the many processes here would then compile anew whatever it imports: torch, Airflow and
# MLflow start in 1.5 s from .venv's bytecode, in 3.5 to 4 s without.
unexport PYTHONDONTWRITEBYTECODE

# More for pytest, for example: make test PYTEST_ARGS='-k convert -x'
PYTEST_ARGS ?=
# Processes that run tests side by side: one more than cores, as tests also wait (for servers to start, for heartbeats). Trainings of
# two ranks are among them, so more than four gain little.
WORKERS ?= $(shell n=$$(nproc); echo $$((n < 4 ? n + 1 : 4)))

.DEFAULT_GOAL := help
.PHONY: help venv up demo down test test-stack test-load test-storm debian lint docs audit lock compose-env test-wheel

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(DEV) ## Make .venv with the locked versions, for work on Talaria too

up: $(RUN) ## Start Airflow and MLflow on free loopback ports; everything is kept under .talaria/
	@$(LOCAL) up

demo: $(RUN) ## Train, evaluate, register and promote a tiny model through the DAG `sft`
	@TALARIA_MAKE_BEGAN=$(BEGAN) $(LOCAL) demo

down: ## Stop everything that `make up` and `make demo` started
	@if [ -x $(BIN)/python ]; then $(LOCAL) down; else echo "Nothing to stop: there is no $(VENV)."; fi

test: $(DEV) ## Run the tests that need nothing but this clone
	@$(BIN)/pytest -m "not stack and not load and not storm and not wheel" -n $(WORKERS) --dist loadgroup --no-loadscope-reorder $(PYTEST_ARGS)

compose-env: ## Write .env with fresh secrets for docker compose; an existing one is kept
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m talaria.devstack.compose_env; else $(PYTHON) -m talaria.devstack.compose_env; fi

test-stack: $(STACK) debian ## Run the tests of the production stack (PostgreSQL, Redis, Celery)
	@$(BIN)/pytest -m stack $(PYTEST_ARGS)

test-load: $(STACK) debian ## Queue 50 runs before one GPU slot of the stack; also its optional services and its image's packages
	@$(BIN)/pytest -m load $(PYTEST_ARGS)

debian:
	@if [ "$$(id -u)" = 0 ] && ! dpkg -s $(DEBIAN) >/dev/null 2>&1; then \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $(DEBIAN) >/dev/null; fi

test-storm: $(DEV) ## End one training in every way that there is, again and again
	@$(BIN)/pytest -m storm $(PYTEST_ARGS)

test-wheel: $(DEV) ## Build the wheel, install it into an empty environment and use it from an empty folder
	@$(BIN)/pytest -m wheel $(PYTEST_ARGS)

lint: $(DEV) ## Check style, imports, layers, dependencies, types, the locks and known vulnerabilities
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python tools/house.py
	@$(BIN)/deptry .
	@$(BIN)/mypy
	@$(PYTHON) tools/lock.py --check
	@$(MAKE) --no-print-directory audit

docs: $(DOCS) ## Build the documentation site into build/site; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lock: ## Write uv.lock and requirements.lock anew from pyproject.toml; versions change only where they must
	@$(PYTHON) tools/lock.py

audit: ## Look the locked versions up in the advisory database (OSV), where that can be reached
	@if $(BIN)/python -c 'import socket; socket.create_connection(("api.osv.dev", 443), 5)' 2>/dev/null; \
	then $(BIN)/pip-audit --service osv --no-deps --disable-pip --progress-spinner off --requirement requirements.lock; \
	else echo "api.osv.dev cannot be reached: the dependencies were not audited."; fi

# Each stamp stands for a set of extras; what is installed already stays.
$(RUN):   EXTRAS = train airflow
$(DEV):   EXTRAS = train airflow benchmarks dev
$(STACK): EXTRAS = train airflow benchmarks production dev stack
$(DOCS):  EXTRAS = train airflow docs

$(RUN) $(DEV) $(STACK) $(DOCS): pyproject.toml uv.lock tools/install.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
		{ echo "Talaria needs Python 3.11 to 3.14, found $$($(PYTHON) --version 2>&1); try: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) tools/install.py $(VENV) $(EXTRAS)
	@touch $@
