# `make` alone lists the targets.

# The first Python that is new enough.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$name; break; }; done)
VENV ?= .venv
# How many processes run tests.
TEST_JOBS ?= auto
PIP_FLAGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check $(PIP_FLAGS) --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest --quiet --numprocesses $(TEST_JOBS) --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format docs bench clean

help: ## List the targets
	@echo "Usage: make TARGET"
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  %-10s %s\n", $$1, $$2 }'

# The networks of the demo are so small that a second thread costs more than it brings.
demo: $(VENV)/.stamp-demo ## Train a teacher and students on handwritten digits, write runs/demo/report.html
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/understudy demo

test: $(VENV)/.stamp-dev ## Run the test suite but for the few tests that take longer than a minute
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.stamp-dev ## Run every test
	$(PYTEST)

lint: $(VENV)/.stamp-dev ## Check style, format, types and which room imports which
	@status=0; for check in "ruff check" "ruff format --check" mypy lint-imports; do \
		echo "== $$check"; $(BIN)/$$check || status=1; done; exit $$status

format: $(VENV)/.stamp-dev ## Format the code and fix what can be fixed
	$(BIN)/ruff check --fix-only --exit-zero
	$(BIN)/ruff format

docs: $(VENV)/.stamp-dev ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.stamp-dev ## Run the benchmark suite, then the other benchmarks
	$(BIN)/python -m benchmarks.suite
	@set -e; for file in $(sort $(wildcard benchmarks/*.py)); do echo "== $$file"; $(BIN)/python $$file; done

clean: ## Remove what was built, but neither runs/ nor the environment
	rm -rf site build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .benchmarks
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. A stamp says what is installed, so that a second `make` starts at once.

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "understudy needs Python 3.11 or newer, and none was found. Install it, or say make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Making the environment $(VENV) ..."
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "This Python cannot make environments. On Debian and Ubuntu: apt install python3-venv"; exit 1; }

$(VENV)/.stamp-demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing understudy and what it needs into $(VENV) (PyTorch is large; this happens once) ..."
	@$(PIP) --editable .
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing understudy with all extras and the development tools into $(VENV) (this happens once) ..."
	@$(PIP) --editable '.[all,dev]'
	@touch $(VENV)/.stamp-demo $@
