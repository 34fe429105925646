# make help lists the targets. Everything runs in $(VENV), which the first target creates.

PYTHON ?= python3
VENV   ?= .venv
OUT    ?= out
JOBS   ?= 2
ARGS   ?=
BIN    := $(VENV)/bin

.PHONY: help setup demo test lint types unit format bench bench-peers readme clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

setup: ## create or refresh the virtual environment
	@$(PYTHON) .ci/setup.py $(VENV)

demo: setup ## train a small network on handwritten digits, eagerly and compiled
	$(BIN)/python examples/digits.py --out $(OUT) $(ARGS)

test: lint unit ## ruff, mypy, then every test

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/typecheck.py

types: setup ## mypy alone
	$(BIN)/python .ci/typecheck.py $(ARGS)

unit: setup ## the tests alone; ARGS="-k name" chooses
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -q --durations=10 $(ARGS)

format: setup ## lay out the source and sort imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## measure against the installed peers; ARGS="--quick"
	$(BIN)/python -m benchmarks $(ARGS)

bench-peers: setup ## install the peers that the benchmarks compare with
	$(BIN)/python -m pip install --quiet -r benchmarks/peers.txt

readme: setup ## fill README's generated sections by running its programs
	$(BIN)/python docs/make_readme_parts.py

clean: ## remove everything made here, the environment too
	rm -rf $(VENV) $(VENV).lock .build build dist $(OUT) *.egg-info
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
