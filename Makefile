# Two commands for a newcomer: `make demo` and `make test`. Both set everything up by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Usage statistics of Ray stay off in everything that is started from here.
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: setup demo test check bench bench-train chaos servers clean constraints
comma := ,
.DEFAULT_GOAL := help

help:
	@echo "make demo    run a whole night on handwritten digits"
	@echo "make test    pass the tests"
	@echo "make check   ruff, mypy, the layout tests"
	@echo "make bench   measure everything against the peers (hours); ARGS=--small: a few photos; see benchmarks/RESULTS.md"
	@echo "make bench-train   measure training (20 minutes); see benchmarks/RESULTS.md"
	@echo "make chaos SEEDS=54   so many faults, and their table; then the other long fault tests"

setup: $(VENV)/.done

# uv when it is there or can be had (40 s), else pip (a few minutes). Runs again only when the dependencies change.
EXTRAS := demo,dev,delta,plot,tune
$(VENV)/.done: pyproject.toml constraints.txt
	@echo "setting up $(VENV): about 5 GB, under a minute with uv, some minutes with pip alone"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if [ -z "$(NO_UV)" ] && { command -v uv >/dev/null || $(BIN)/python -m pip install --quiet uv; }; then \
		PATH="$(abspath $(BIN)):$$PATH" uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt --editable '.[$(EXTRAS)]'; \
	else \
		$(BIN)/python -m pip install --quiet -c constraints.txt --editable '.[$(EXTRAS)]'; \
	fi
	@touch $@

# Resolves all versions anew, for the image, for machines that submit, and for .venv.
constraints:
	uv pip compile --quiet --upgrade --universal --no-annotate --no-header --no-emit-index-url \
		$(addprefix --extra ,$(subst $(comma), ,$(EXTRAS))) pyproject.toml -o constraints.txt

# What stands in for Azure in the tests: they run without it, and say so. Later versions want node 22.
AZURITE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/nightshift/azurite-3.35.0
servers: $(AZURITE)/node_modules/.bin/azurite-blob

$(AZURITE)/node_modules/.bin/azurite-blob:
	npm install --silent --no-fund --no-audit --prefix $(AZURITE) azurite@$(lastword $(subst -, ,$(AZURITE)))

demo: setup
	$(BIN)/nightshift demo

test: setup
	$(BIN)/python -m pytest -m "not chaos"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layout.py

# An environment of its own: the peers' packages take others back to older versions than the tests have.
BENCH := .venv-bench
bench: $(BENCH)/.done
	$(BENCH)/bin/python benchmarks/everything.py $(ARGS)

# Against torchvision's and Ray Data's loaders and the loop of every tutorial; ARGS=--only loader.
bench-train: setup
	$(BIN)/python benchmarks/training.py $(ARGS)

$(BENCH)/.done: pyproject.toml
	@echo "setting up $(BENCH): about 6 GB"
	@test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	@if [ -z "$(NO_UV)" ] && { command -v uv >/dev/null || $(BENCH)/bin/python -m pip install --quiet uv; }; then \
		PATH="$(abspath $(BENCH))/bin:$$PATH" uv pip install --quiet --compile-bytecode --python $(BENCH)/bin/python --editable '.[demo,delta,bench]'; \
	else \
		$(BENCH)/bin/python -m pip install --quiet --editable '.[demo,delta,bench]'; \
	fi
	@touch $@

SEEDS ?= 54
CHAOS := NIGHTSHIFT_CHAOS_SEEDS=$(SEEDS) NIGHTSHIFT_CHAOS_TABLE=build/chaos.jsonl $(BIN)/python -m pytest -m chaos
chaos: setup
	@mkdir -p build
	$(CHAOS) tests/test_faults.py
	$(CHAOS) --ignore tests/test_faults.py

clean:
	rm -rf demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache
