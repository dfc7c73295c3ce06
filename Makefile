# One verb a habit. Every target makes its own .venv if it is missing; the first run installs (minutes), later ones do not.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help dev lint format test faults bench demo example-neural example-hybrid warm clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
	@$(MAKE) --no-print-directory warm

dev: $(READY)  ## install everything into .venv

warm: $(READY)  ## compile the numeric kernels once, so that no process has to
	@$(BIN)/python -m federation.warm

demo: $(READY)  ## a city's bank and three departments train a shared credit model, over real processes
	@$(BIN)/python -m examples.city.demo

example-neural: $(READY)  ## three banks train one network, without and with a privacy budget
	@$(BIN)/python -m examples.neural.neural

example-hybrid: $(READY)  ## three banks and three departments: one scorecard, one model of trees
	@$(BIN)/python -m examples.hybrid.hybrid

WORKERS ?= auto
test: $(READY)  ## all tests, one process a core: make test WORKERS=1
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

FAULTS ?= 500
SEED ?= 1
KIND ?= jobs
faults: $(READY)  ## rounds of one fault each: make faults FAULTS=500 SEED=1 KIND=questions
	@$(BIN)/python -m tests.faults --rounds $(FAULTS) --seed $(SEED) --kind $(KIND)

lint: $(READY)  ## format, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(READY)  ## rewrite the files in the project's format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(READY)  ## measure against plaintext, as ratios in one run; writes out/bench.json
	@$(BIN)/python -m benchmarks

clean:  ## remove what was built; LIANMO_HOME is left alone
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
