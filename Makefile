# `make demo` and `make test` are all the set-up there is: both build .venv first, where it is missing or out of date.
# Variables: CONSTRAINTS (pins; empty = the newest that setup.cfg allows), PYTHON (the interpreter that .venv is made
# with), JOBS (test processes), DEMO_ARGS, BENCH_ARGS, SOAK_ARGS, PYTEST_ARGS, MUTANTS (names), ILQL_CORPORA (the published corpora).

CONSTRAINTS ?= constraints.txt
EXTRAS ?= dev,report,rewards,tensorboard
VENV ?= .venv
JOBS ?= 2
PY := $(VENV)/bin/python
# A virtual environment that is not ours to make (VENV=/some/venv) works too: it gets the packages and the same stamp.
STAMP := $(VENV)/.ilql-setup

# Nothing here needs the network after the set-up, and nothing reports home.
export HF_HUB_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1
export TOKENIZERS_PARALLELISM := false
ifdef ILQL_CORPORA
override ILQL_CORPORA := $(abspath $(ILQL_CORPORA))
export ILQL_CORPORA
endif

SOURCES := $(wildcard ilql datasets_prep train.py eval.py examples/*.py benchmarks/*.py tests/mutants/run.py)

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint layers pytest soak bench golden mutants docs clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

setup: $(STAMP)  ## build .venv (demo and test do so by themselves)

$(STAMP): setup.cfg pyproject.toml $(CONSTRAINTS)
	@set -e; python="$(PYTHON)"; found=; \
	if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  for p in $${python:-python3 python3.13 python3.12 python3.11}; do \
	    if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$p; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "error: Python 3.11 or newer is needed, and $${python:-python3} is $$($${python:-python3} --version 2>&1); install one or name it: make PYTHON=/path/to/python3.12" >&2; exit 2; \
	  fi; \
	  echo "making $(VENV) with $$($$found --version); this once downloads the dependencies"; \
	  $$found -m venv $(VENV) || { echo "error: $$found cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }; \
	fi
	$(PY) -m pip install --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP)  ## logs -> BC, filtered BC, MC, ILQL -> a table, on the maze (6 minutes on 2 cores)
	$(PY) -m examples.maze_demo $(DEMO_ARGS)

test: lint layers pytest  ## lint, types, layers, tests

lint: $(STAMP)  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy $(SOURCES)

layers: $(STAMP)  ## modules import only from those before them
	OMP_NUM_THREADS=1 $(PY) -m pytest -q tests/test_layers.py

# One thread a process: the models of the tests are small, and two processes of two threads would share two cores.
pytest: $(STAMP)  ## the tests alone (PYTEST_ARGS="-k maze")
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist worksteal --durations 10 $(PYTEST_ARGS)

soak: $(STAMP)  ## kills, flipped bits, full disks: what docs/reliability.md promises, many times (SOAK_ARGS)
	OMP_NUM_THREADS=1 $(PY) -m tests.reliability $(SOAK_ARGS)

bench: $(STAMP)  ## the benchmarks (25 minutes on 2 cores; BENCH_ARGS=--quick for a look, see docs/performance.md)
	$(PY) -m benchmarks $(BENCH_ARGS)

golden: $(STAMP)  ## rebuild the golden loss curves; look at the diff before you commit it
	OMP_NUM_THREADS=1 $(PY) -m tests.golden.make

mutants: $(STAMP)  ## plant each bug of tests/mutants: its named test must fail (MUTANTS="name ...")
	OMP_NUM_THREADS=1 $(PY) tests/mutants/run.py --jobs $(JOBS) $(MUTANTS)

docs: $(STAMP)  ## check the documentation: links, and the lines of code that it points at
	OMP_NUM_THREADS=1 $(PY) -m pytest -q tests/test_docs.py

clean:  ## caches and build products; .venv, data and runs stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
