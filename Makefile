# Everything runs from .venv, which `make` builds with nothing but Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test check fmt faults faults-short fuzz bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.ready ## create .venv with busmicro and all it needs

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

demo: setup ## three greeter nodes, one killed under load, no call lost (under a minute)
	$(BIN)/busmicro demo

test: setup ## all tests but the faults, on real nats-servers (under 5 minutes on two cores)
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --ignore tests/faults

check: setup ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: setup ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .

faults: setup ## processes, servers and connections killed, frozen and cut, every figure beside its target (30 minutes; SEED=17 replays)
	$(BIN)/python -m tests.faults.run $(if $(SEED),--seed $(SEED))

faults-short: setup ## the same with less of everything (three minutes)
	$(BIN)/python -m tests.faults.run --short $(if $(SEED),--seed $(SEED))

fuzz: .venv-fuzz/.ready ## bytes from outside, guided by coverage, a minute for each of the targets
	.venv-fuzz/bin/python fuzz/run.py

.venv-fuzz/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-fuzz
	PIP_CONSTRAINT=constraints.txt .venv-fuzz/bin/python -m pip install --quiet --disable-pip-version-check -e ".[server,msgpack,fuzz]"
	@touch $@

bench: .venv-bench/.ready ## calls, events, streams, start-up and memory beside nats-py, FastStream and grpc.aio
	.venv-bench/bin/python benchmarks/rpc.py
	.venv-bench/bin/python benchmarks/events.py
	.venv-bench/bin/python benchmarks/wrappers.py
	.venv-bench/bin/python benchmarks/streams.py

# What a user installs, plus the rivals: optional parts such as WebSocket support cost start-up time.
.venv-bench/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-bench
	PIP_CONSTRAINT=constraints.txt .venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -e ".[server,bench,otel]"
	@touch $@

clean: ## remove .venv and caches
	rm -rf .venv .venv-bench .venv-fuzz fuzz/found .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
