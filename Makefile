# Every target creates .venv first if it is missing, with the versions of constraints.txt.
VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
# Test processes, of one thread each: for small tests faster than one process of two threads.
JOBS ?= 2

# Gradio and what it brings. Its metadata excludes pillow 13 and tomlkit 0.15, which are pinned for
# all else and which it runs with (tests/serving), so these are installed without dependencies.
SERVE := brotli fastapi gradio gradio_client groovy hf-gradio orjson pydub python-multipart pytz \
  safehttpx semantic-version starlette uvicorn

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast fuzz lint type format bench experiments notebooks pins clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## create .venv and install the project into it

$(INSTALLED): pyproject.toml constraints.txt
	@set -e; \
	for python in python3.11 python3 python; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi; \
	  python=; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "make: no Python 3.11 or newer found (on Debian: apt install python3.11 python3.11-venv)" >&2; exit 2; \
	fi; \
	version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	if ! $$python -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "make: $$python cannot create a virtual environment (on Debian: apt install python$$version-venv)" >&2; exit 2; \
	fi; \
	echo "setup: $(VENV) with Python $$version"; \
	$$python -m venv $(VENV); \
	echo "setup: torch (a few minutes)"; \
	$(PYTHON) -m pip install --disable-pip-version-check -c constraints.txt torch; \
	echo "setup: everything else"; \
	$(PYTHON) -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,log,data,scale,optim]'; \
	$(PYTHON) -m pip install --disable-pip-version-check -c constraints.txt --no-deps $(SERVE); \
	touch $@; \
	echo "setup: created $(VENV); the console script is $(VENV)/bin/delvm"

demo: $(INSTALLED) ## run the complete pipeline on CPU, to outputs/demo/report.html (5 to 12 minutes)
	@$(PYTHON) experiments/demo/run.py

test: lint type ## check format, style and types, and run all tests (.ci/run calls this)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n $(JOBS)
	@echo "test: format, lint, types and all tests passed"

test-fast: $(INSTALLED) ## run the tests that are not marked slow (under 90 s on two cores)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n $(JOBS) -m 'not slow'

lint: $(INSTALLED) ## check format and style (ruff)
	$(VENV)/bin/ruff format --check --quiet
	$(VENV)/bin/ruff check --quiet

type: $(INSTALLED) ## check types (mypy)
	$(VENV)/bin/mypy

format: $(INSTALLED) ## format the code and apply automatic fixes (ruff)
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

fuzz: $(INSTALLED) ## read damaged files of every kind, 10,000 by default (mutants=N)
	OMP_NUM_THREADS=1 $(PYTHON) -m tests.fuzz.run $(or $(mutants),10000)

bench: $(INSTALLED) ## run all benchmarks, or one (only=NAME), to outputs/bench.json
	@$(PYTHON) -m experiments.bench $(if $(only),only=$(only))

experiments: $(INSTALLED) ## list the studies of experiments/ with their cost, or run one (only=NAME)
	@$(PYTHON) -m experiments.studies $(if $(only),$(only))

notebooks: $(INSTALLED) ## execute every notebook, as a wheel installs it (about a minute on two cores)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n $(JOBS) tests/test_notebooks.py -v

pins: ## rewrite constraints.txt: the same torch, the newest versions of all else
	@set -e; \
	tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	python3.11 -m venv $$tmp; \
	$$tmp/bin/pip install "$$(grep '^torch==' constraints.txt)"; \
	$$tmp/bin/pip install -e '.[dev,log,data,scale,optim]'; \
	$$tmp/bin/pip install --no-deps $(SERVE) 'safehttpx<0.2'; \
	grep '^#' constraints.txt > $$tmp/pins; \
	$$tmp/bin/pip freeze --exclude-editable | sed 's/+[a-z0-9]*$$//' | grep -Ev '^(nvidia-|triton)' >> $$tmp/pins; \
	cp $$tmp/pins constraints.txt; \
	echo "pins: wrote constraints.txt, $$(grep -c == constraints.txt) packages"

clean: ## remove .venv, caches and builds; outputs/ is kept
	rm -rf $(VENV) dist build .mypy_cache .pytest_cache .ruff_cache
	find delvm experiments tests notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +
	@echo "clean: removed .venv, caches and builds; outputs/ is kept"
