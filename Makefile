# Plain `make` lists the words. Everything runs from .venv, which is built on first use and reused afterwards.
# ARGS passes arguments on: make demo ARGS="--keep", make test ARGS="tests/penstock -x", make bench ARGS="--quick"

VENV := .venv
BIN  := $(VENV)/bin
# -qq: errors only; a warning about an index says nothing to whoever runs make
PIP  := $(BIN)/python -m pip -qq --disable-pip-version-check
# the first interpreter that is new enough; a system's own python3 may be older than a python3.12 beside it
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
ARGS ?=
# a file is one worker's, which makes its fixtures once; tests/conftest.py has the longest files begin first, and says how
# many workers there are.
# -n0 in ARGS takes the suite back into one process, where --pdb works
WORKERS := -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder
# workers have all cores already: threads of numpy and torch would only wait for each other
quick test: export OMP_NUM_THREADS ?= 1
# tests start hundreds of processes, and each would compile our modules anew
unexport PYTHONDONTWRITEBYTECODE
# what decides and what encodes: no processes, no training, no installing; a folder that is gone fails the run
QUICK := $(wildcard tests/*/policy) $(addprefix tests/penstock/,artifact http process rest rpc signing wire) \
	$(filter-out %_simulation.py,$(wildcard tests/compiler/certificate/test_*.py)) $(addprefix tests/compiler/,measure recipe) \
	tests/cloud_core/state tests/project

.PHONY: help demo quick test test-vllm lint proto docs bench bench-compiler bench-generation simulate wheel venv clean
.DEFAULT_GOAL := help

help:
	@echo "usage: make WORD [ARGS=...]"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  %-14s %s\n", $$1, $$2 }'

demo: $(VENV)/.demo  ## run the whole path on real data, then with two language models; each ends with a verdict
	@$(BIN)/penstock demo $(ARGS)
	@$(BIN)/penstock demo --example codecomplete

quick: $(VENV)/.dev  ## run the tests of policies, values, codecs and contracts (under a minute)
	@$(BIN)/python -m pytest $(WORKERS) $(QUICK) $(ARGS)

test: $(VENV)/.dev  ## run every test that needs no GPU, on all cores (about 12 minutes on two)
	@$(BIN)/python -m pytest $(WORKERS) --durations=20 --durations-min=1 $(ARGS)

# not a part of 'test': it needs 'penstock toolchain install vllm' (3.0 GB), and skips with that reason without it
test-vllm: $(VENV)/.dev  ## run a real vLLM on this processor, break it, and see it come back (about 20 minutes)
	@PENSTOCK_TEST_VLLM=1 $(BIN)/python -m pytest -n0 -s -v tests/vllm $(ARGS)

lint: $(VENV)/.dev  ## ruff, mypy strict, layer and purity rules, freshness of generated code and docs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/mypy scripts/*.py
	@$(BIN)/lint-imports
	@$(BIN)/python scripts/generate_proto.py --check
	@$(BIN)/python scripts/generate_docs.py --check

proto: $(VENV)/.dev  ## regenerate penstock/rpc/pb from proto/
	@$(BIN)/python scripts/generate_proto.py

docs: $(VENV)/.dev  ## regenerate the reference pages of docs/reference/ from settings, recipes, passes, commands, metrics and errors
	@$(BIN)/python scripts/generate_docs.py

bench: $(VENV)/.dev  ## measure against Triton, MLServer, a one-file server and bare onnxruntime (about 9 minutes)
	@$(BIN)/python -m benchmarks $(ARGS)

bench-compiler: $(VENV)/.dev  ## measure compiled models against onnxruntime defaults and NNCF (about half an hour)
	@$(BIN)/python -m benchmarks.compiler $(ARGS)

bench-generation: $(VENV)/.dev  ## measure language models beside genai and ctranslate2, and through a core (about 10 minutes)
	@$(BIN)/python -m benchmarks.generation $(ARGS)

simulate: $(VENV)/.dev  ## print what certificates and sequential tests promise and see, as tables (some minutes)
	@$(BIN)/python -m benchmarks.simulate $(ARGS)

wheel: $(VENV)/.dev  ## build the wheel into dist/
	@$(BIN)/python -m build --wheel --outdir dist .

venv: $(VENV)/.dev  ## build .venv with everything that developing needs

clean:  ## remove what building, testing and linting leave behind; keep .venv
	@rm -rf dist build out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# Stamps live inside .venv, so that they vanish with it. Python itself is order-only: its date says nothing.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or newer is needed and none was found; set PYTHON=..." >&2; exit 1; }
	@echo "creating $(VENV) with $$($(PYTHON) --version)" >&2
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing what the demo needs into $(VENV)" >&2
	@$(PIP) install -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing what developing and testing need into $(VENV)" >&2
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.demo
