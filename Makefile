# Every target works in a fresh clone: it sets up what it needs first. `make` alone lists them.
PY := .venv/bin/python
DEMO_ARGS ?= dataset.per_category=1 decoding.max_new_tokens=56
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast fuzz families lint format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## create .venv and install SelfDraft (PYTHON=…, TORCH_INDEX=…; instant when nothing changed)
	@bash scripts/setup.sh

demo: setup  ## compare Jacobi drafting and the pool with plain decoding, on bundled prompts (DEMO_ARGS=…)
	$(PY) run.py task=compare logger=none $(DEMO_ARGS)

test: setup  ## run the whole test suite (ARGS="-k launcher" for a part)
	$(PY) -m pytest $(ARGS)

test-fast: setup  ## a few cases of every quick test: the loop to work in (ARGS="tests/core" for a part)
	$(PY) -m pytest --fast --durations=0 --durations-min=5 $(ARGS)

fuzz: setup  ## try inputs and command lines of any content, for as long as it takes (ARGS="-k datasets" for a part)
	SELFDRAFT_FUZZ=long $(PY) -m pytest --timeout=0 tests/fuzz $(ARGS)

families: setup  ## try every model family of the installed transformers, and write docs/families.md; takes long
	$(PY) scripts/families.py $(ARGS)

lint: setup  ## check style, formatting and types
	$(PY) -m ruff check --no-cache .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: setup  ## repair what lint complains about, where that is mechanical
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## remove .venv and caches; outputs/ stays
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache src/*.egg-info
	find src tests scripts -name __pycache__ -prune -exec rm -rf {} +
