# What a person types in this folder. Needs make and Python 3.11 or newer; all else goes into .venv.

.DEFAULT_GOAL := help
.PHONY: help install demo test test-long prove bench lint types clean
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

python := .venv/bin/python
# Nothing that belongs to another environment may reach into ours.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV
export PIP_DISABLE_PIP_VERSION_CHECK := 1
pip_install := $(python) -m pip install --quiet --no-deps

help:
	@echo "make demo       three nodes on real texts: search, measure, kill one (the first time: installs, a minute)"
	@echo "make install    only install: .venv with the shoal command"
	@echo "make test       the quick tests"
	@echo "make test-long  crashes, damage, full disks, foreign clients"
	@echo "make prove      the crash and fault tests alone, and what each of them did"
	@echo "make bench      how fast, each number beside its reference"
	@echo "make lint types what CI checks before it runs a test"
	@echo "make clean      remove what the tests and tools left (not .venv, not data)"

# Each stamp is newer than the files that say what has to be there: no work when nothing changed.
.venv/stamp-runtime: requirements/build.lock requirements/runtime.lock pyproject.toml scripts/find-python
	@found=$$(scripts/find-python install) && { \
	    test -x $(python) || { echo "Making .venv with $$found"; "$$found" -m venv .venv; }; }
	@echo "Installing Shoal and what a node needs into .venv (requirements/runtime.lock)"
	@$(pip_install) -r requirements/build.lock -r requirements/runtime.lock
	@$(pip_install) --no-build-isolation --editable .
	@touch $@

.venv/stamp-dev: .venv/stamp-runtime requirements/dev.lock
	@echo "Installing what the tests need (requirements/dev.lock)"
	@$(pip_install) -r requirements/dev.lock
	@touch $@

.venv/stamp-compat: .venv/stamp-dev requirements/compat.lock
	@echo "Installing foreign clients for the compatibility tests (requirements/compat.lock)"
	@$(pip_install) -r requirements/compat.lock
	@touch $@

install: .venv/stamp-runtime
	@echo "Installed: .venv/bin/shoal. Next: make demo, or .venv/bin/shoal agent --config sample-cluster.toml"

demo: .venv/stamp-runtime
	@.venv/bin/shoal demo
	@echo "Next: README.md says how to run a node of your own; make test runs the tests."

test: .venv/stamp-dev
	@echo "Running the quick tests on two processes"
	@$(python) -m pytest -q -n 2 -m "not long and not compat"
	@echo "The quick tests passed. Next: make lint types, then make test-long (crashes, damage, foreign clients)."

test-long: .venv/stamp-compat
	@echo "Running the long tests and the compatibility tests on two processes"
	@$(python) -m pytest -q -n 2 --dist loadfile -m "long or compat"
	@echo "The long tests passed. Next: make bench."

prove: .venv/stamp-dev
	@echo "Killing, cutting, filling and damaging nodes: each test says what it did"
	@$(python) -m pytest -q -s -m long tests/cluster
	@echo "What was acknowledged was there each time. Next: docs/ says what is promised, and under which faults."

bench: .venv/stamp-dev
	@$(python) -m tests.bench
	@echo "Next: compare with BENCHMARKS.md. Only ratios of one run can be compared."

lint: .venv/stamp-dev
	@$(python) -m ruff check .
	@$(python) -m ruff format --check --quiet .
	@.venv/bin/lint-imports --no-cache
	@echo "Lint is clean. Next: make types."

types: .venv/stamp-dev
	@$(python) -m mypy
	@echo "Types are sound. Next: make test."

clean:
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	@echo "Clean. .venv and data are as they were. Next: make test."
