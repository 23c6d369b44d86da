# Every target does its own set-up: .venv, with the pins of constraints.txt.
VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
# Two test processes of one thread each: faster on small tests than one process of two threads.
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint type format bench notebooks pins clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## make .venv and install the project into it

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
	  echo "make: $$python cannot make a virtual environment (on Debian: apt install python$$version-venv)" >&2; exit 2; \
	fi; \
	echo "setup: $(VENV) with Python $$version"; \
	$$python -m venv $(VENV); \
	echo "setup: torch (a few minutes on a new machine)"; \
	$(PYTHON) -m pip install --disable-pip-version-check -c constraints.txt torch; \
	echo "setup: everything else"; \
	$(PYTHON) -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,log,data,scale]'; \
	touch $@; \
	echo "setup: made $(VENV); the console script is $(VENV)/bin/delvm"

demo: $(INSTALLED) ## the whole pipeline on the processor, to outputs/demo/report.html (about 12 minutes)
	@$(PYTHON) experiments/demo/run.py

test: lint type ## format, lint, types and the whole test suite (.ci/run calls this)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n $(JOBS)
	@echo "test: format, lint, types and the test suite passed"

lint: $(INSTALLED) ## check format and style (ruff)
	$(VENV)/bin/ruff format --check --quiet
	$(VENV)/bin/ruff check --quiet

type: $(INSTALLED) ## check types (mypy)
	$(VENV)/bin/mypy

format: $(INSTALLED) ## bring the code into format, and mend what can be mended
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

bench: $(INSTALLED) ## all benchmarks, or one: make bench only=NAME; to outputs/bench.json
	@$(PYTHON) -m experiments.bench $(if $(only),only=$(only))

notebooks: $(INSTALLED) ## execute every notebook
	$(PYTHON) -m pytest tests/test_notebooks.py -v

pins: ## write constraints.txt anew: torch as it names it, all else the newest that fits
	@set -e; \
	folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	python3.11 -m venv $$folder; \
	$$folder/bin/pip install "$$(grep '^torch==' constraints.txt)"; \
	$$folder/bin/pip install -e '.[dev,log,data,scale]'; \
	grep '^#' constraints.txt > $$folder/pins; \
	$$folder/bin/pip freeze --exclude-editable | sed 's/+[a-z0-9]*$$//' | grep -Ev '^(nvidia-|triton)' >> $$folder/pins; \
	cp $$folder/pins constraints.txt; \
	echo "pins: wrote constraints.txt, $$(grep -c == constraints.txt) packages"

clean: ## remove .venv, caches and builds; outputs/ stays
	rm -rf $(VENV) dist build .mypy_cache .pytest_cache .ruff_cache
	find delvm experiments tests notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +
	@echo "clean: removed .venv, caches and builds; results stay in outputs/"
