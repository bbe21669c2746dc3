# The doors of the project; `make` alone lists them. Works with GNU make from 3.81 on.

VENV  := .venv
MODEL := models/SmolLM2-135M-Instruct.Q4_1.gguf
KEY   ?= local
ARGS  ?=

# In a log, pip's bars and lists are noise; on a terminal they show that something happens.
PIP := quiet=--quiet; [ ! -t 1 ] || quiet=; $(VENV)/bin/python -m pip install $$quiet --disable-pip-version-check --no-input

# The model is fetched by the Corral that the stamp before it installs.
.NOTPARALLEL:

.PHONY: help run test check bench lock clean

help: ## List these commands.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

# So small a model rambles; it is not let go on for the thousands of tokens that others may.
run: $(VENV)/engine $(MODEL) ## Serve the demo model on http://127.0.0.1:8000; KEY=local, ARGS="--port 9000".
	@export OPENAI_API_KEY='$(KEY)' CORRAL_REQUESTS_DEFAULT_MAX_TOKENS=512; exec $(VENV)/bin/corral serve --model $(MODEL) $(ARGS)

test: $(VENV)/dev $(MODEL) ## Run all tests, on a real llama.cpp too; ARGS="-k queue".
	@scripts/test $(ARGS)

check: $(VENV)/dev ## Check format, lint, types and layers.
	@scripts/check

bench: $(VENV)/engine $(MODEL) ## Compare Corral with its peers in one run; ARGS="--quick", bench/README.md.
	@bench/install
	@$(VENV)/bin/python bench/run.py $(ARGS)

lock: ## Write the locks anew from the ranges in pyproject.toml (needs uv).
	@scripts/lock $(ARGS)

clean: ## Remove the virtual environment and all caches; models stay.
	rm -rf $(VENV) build dist .coverage .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The two stamps say which lock the environment holds. Corral itself is installed from
# this directory, without asking an index for what builds it: that is in the locks.
$(VENV)/engine: requirements/engine.lock pyproject.toml src/corral/__init__.py $(VENV)/bin/python
	@echo "installing Corral and llama.cpp into $(VENV)"
	@$(PIP) --require-hashes -r requirements/engine.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/dev: requirements/dev.lock pyproject.toml src/corral/__init__.py $(VENV)/bin/python
	@echo "installing Corral, llama.cpp and the development tools into $(VENV)"
	@$(PIP) --require-hashes -r requirements/dev.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@ $(VENV)/engine

$(VENV)/bin/python:
	@scripts/venv $(VENV)

# Fetched and verified once; whoever doubts what is there runs `corral pull smollm2`.
$(MODEL):
	@$(VENV)/bin/corral pull smollm2 > /dev/null
