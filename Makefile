# The same verbs in PowerShell: .\tasks.ps1 VERB
# PYTHON=python3.12 picks the interpreter, PIP_FLAGS="…" reaches every pip install, ARGS="…" reaches the command.

MAKEFLAGS += --no-builtin-rules
.SUFFIXES:
.DEFAULT_GOAL := help

VENV ?= .venv
PIP_FLAGS ?=
ARGS ?=
FITS = import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.10 python3 python; do \
	"$$p" -c "$(FITS)" 2>/dev/null && echo "$$p" && break; done)

BIN := $(VENV)/bin
PY := $(BIN)/python
# The lock was made on Python 3.11; some of its versions no longer install on 3.10, which takes the ranges instead.
LOCK = $(shell $(PY) -c "import sys; print('-c requirements.lock' if sys.version_info >= (3, 11) else '')")
STATION = -r requirements-station.txt $(LOCK:requirements.lock=requirements-station.lock)
INSTALL = $(PY) -m pip install -qq --disable-pip-version-check $(PIP_FLAGS)
COMPILE = CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --strip-extras --allow-unsafe \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options
# One process more than there are cores, four at most: tests wait for servers and browsers.
PROCESSES = $(shell $(PY) -c "import os; print(min(4, (os.cpu_count() or 1) + 1))")
PYTEST = $(PY) -m pytest --numprocesses=$(PROCESSES) --dist=worksteal
INPUTS := pyproject.toml requirements.txt requirements.lock

export PYTHONUTF8 := 1

.PHONY: help run station wheelhouse test test-all mutants demo lint format bench lock setup setup-station setup-dev clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

run: setup ## set up once and serve on http://127.0.0.1:8000 (HOST, PORT and the other settings apply)
	@$(PY) -m backend serve $(ARGS)

station: setup-station ## the same without torch: serve an exported extractor (.bdix), installed from wheelhouse/ if it is there
	@$(PY) -m backend serve $(ARGS)

wheelhouse: | $(PY) ## download what `make station` installs into wheelhouse/, for a machine without a network
	@echo "Downloading into wheelhouse (a minute or two) …"
	@$(PY) -m pip download -qq --disable-pip-version-check $(PIP_FLAGS) --only-binary :all: -d wheelhouse $(STATION)

demo: setup ## set up once, render brake discs, fit, calibrate and inspect them; pictures go to demo/
	@$(PY) -m backend demo $(ARGS)

bench: setup ## set up once and time the service on this machine
	@$(PY) -m backend bench $(ARGS)

test: lint ## set up once, then ruff, mypy and the tests that take minutes
	@$(PYTEST) $(ARGS)

test-all: lint ## the same with the slow tests, many more examples and coverage
	@HYPOTHESIS_PROFILE=thorough $(PYTEST) -m "not benchmark" --cov --cov-report=term $(ARGS)

mutants: setup-dev ## change ARGS=backend/calib.py in many small ways and list what its tests do not notice
	@$(PY) -m tests.mutants $(ARGS)

lint: setup-dev ## ruff check, ruff format --check and mypy --strict
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: setup-dev ## let ruff mend and format the code
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

lock: setup-dev ## write requirements.lock and requirements-station.lock anew (ARGS=--upgrade moves to the newest versions)
	@$(COMPILE) --all-extras --output-file requirements.lock $(ARGS) pyproject.toml
	@$(COMPILE) --constraint requirements.lock --output-file requirements-station.lock $(ARGS) requirements-station.txt

setup: $(VENV)/.ready
setup-station: $(VENV)/.ready-station
setup-dev: $(VENV)/.ready-dev

# Each stamp says that its extras are installed; pip touches no network where all of them already are.
$(VENV)/.ready: $(INPUTS) | $(PY)
	@echo "Installing the service into $(VENV) (minutes, the first time) …"
	@$(INSTALL) $(LOCK) "pip>=25" "setuptools>=77"
	@$(INSTALL) $(LOCK) --no-build-isolation -e ".[openvino]"
	@touch $@

$(VENV)/.ready-station: requirements-station.txt requirements-station.lock | $(PY)
	@echo "Installing the service without torch into $(VENV) (a minute, the first time) …"
	@$(INSTALL) $(if $(wildcard wheelhouse),--no-index --find-links wheelhouse) $(STATION)
	@touch $@

$(VENV)/.ready-dev: $(INPUTS) | $(PY)
	@echo "Installing the service and its development tools into $(VENV) (minutes, the first time) …"
	@$(INSTALL) $(LOCK) "pip>=25" "setuptools>=77"
	@$(INSTALL) $(LOCK) --no-build-isolation -e ".[openvino,postgres,onnx,dev]"
	@touch $@ $(VENV)/.ready

$(PY):
	@test -n "$(PYTHON)" || { echo "No Python 3.10 or newer with venv was found (Debian: apt install python3-venv);" \
		"name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
		{ echo "$(PYTHON) is older than 3.10; name another: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

clean: ## remove caches and build outputs; .venv, wheelhouse/, models/ and datasets/ stay
	@rm -rf build dist *.egg-info demo .coverage .coverage.* htmlcov coverage.xml .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find backend tests -name __pycache__ -type d -prune -exec rm -rf {} +
