# vllmd: what a developer types. `make help` lists it.
VENV := .venv
PYTHON ?= python3
PROMPT ?= What is the capital of France?
PORT ?= 8080
SECONDS ?= 600
export PROMPT
IN := $(VENV)/bin/

.PHONY: help setup demo stop test fast bench load chaos fuzz papers lock deb clean
.DEFAULT_GOAL := help

help:            ## show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(VENV)/.complete  ## install what vllmd needs into .venv

$(VENV)/.complete: packaging/requirements-dev.lock packaging/setup.sh
	@PYTHON=$(PYTHON) packaging/setup.sh $(VENV)

demo: setup      ## a real vLLM with a small model on this CPU: make demo PROMPT="…" [PORT=8080]
	@$(IN)python packaging/demo/demo.py --port $(PORT) chat "$$PROMPT"

stop: setup      ## end the demo
	@$(IN)python packaging/demo/demo.py stop

test: setup      ## all tests, those on the real vLLM included
	@packaging/test-tools.sh
	@$(IN)python packaging/demo/prepare.py --state "$${XDG_CACHE_HOME:-$$HOME/.cache}/vllmd/demo" >/dev/null
	@tests/all.sh $(IN)python

fast: setup      ## the tests that need no real vLLM
	@$(IN)python -m pytest -m "not real"

bench: setup     ## what the relay costs beside nginx and others, six minutes: make bench [BENCH="--quick --only s64"]
	@$(IN)python tests/bench $(BENCH)

load: setup      ## 2000 streams for a minute, whose clients die when they like: make load [LOAD="--seconds 600"]
	@$(IN)python tests/bench/load.py $(LOAD)

chaos: setup     ## faults without end on the fake engine: make chaos SECONDS=600 [SEED=…]
	@$(IN)python tests/chaos.py --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

fuzz: setup      ## inputs that nobody would think of, for all that reads any: make fuzz SECONDS=600 [SEED=…]
	@$(IN)python -c 'import atheris' 2>/dev/null || $(IN)python -m pip install -qq --disable-pip-version-check atheris==3.0.0 || true
	@$(IN)python tests/fuzz --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

papers: setup    ## the manual pages and completions, out of the code
	@$(IN)python packaging/papers/papers.py

lock: setup      ## renew the lock files after a change of the dependencies
	@packaging/lock.sh $(IN)uv

deb: setup       ## build/vllmd_VERSION_ARCH.deb, for Debian 12 and 13 and Ubuntu 24.04
	@packaging/deb/build.sh $(IN)python

clean:           ## remove what was built here; caches of models and environments stay
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
