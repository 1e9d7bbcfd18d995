# Everything runs from .venv, which `make` builds with nothing but Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test check fmt faults faults-short fuzz bench profile mutations coverage clean

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

faults: setup ## processes, servers and connections killed, frozen and cut, every figure beside its target (20 minutes; SEED=17 replays)
	$(BIN)/python -m tests.faults.run $(if $(SEED),--seed $(SEED))

faults-short: setup ## the same with less of everything (three minutes)
	$(BIN)/python -m tests.faults.run --short $(if $(SEED),--seed $(SEED))

mutations: setup ## bugs of one line put into copies of the package: does a test find each? (8 minutes)
	$(BIN)/python -m tests.mutations.run $(if $(ONLY),--only "$(ONLY)")

# What every exchange passes through.
CORE := busmicro/call.py,busmicro/session.py,busmicro/errors.py,busmicro/headers.py

coverage: setup ## which lines and branches the tests run, file by file; the core has to be whole
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest --hypothesis-profile=ci -n auto --dist loadfile --no-loadscope-reorder --ignore tests/faults
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report
	$(BIN)/python -m coverage report --include=$(CORE) --fail-under=100

fuzz: .venv-fuzz/.ready ## bytes from outside, guided by coverage, a minute for each of the targets
	.venv-fuzz/bin/python fuzz/run.py

.venv-fuzz/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-fuzz
	PIP_CONSTRAINT=constraints.txt .venv-fuzz/bin/python -m pip install --quiet --disable-pip-version-check -e ".[server,msgpack,fuzz]"
	@touch $@

bench: .venv-bench/.ready ## calls, events, streams, start-up, memory, growth, beside their rivals and targets; writes docs/benchmarks.* (10 minutes)
	.venv-bench/bin/python -m benchmarks.run --markdown

profile: .venv-bench/.ready ## the functions that take the time of a call, at the client and at the service
	.venv-bench/bin/python -m benchmarks.hotspots

# What a user installs, plus the rivals: optional parts such as WebSocket support cost start-up time.
.venv-bench/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-bench
	PIP_CONSTRAINT=constraints.txt .venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -e ".[server,bench,otel]"
	@touch $@

clean: ## remove .venv and caches
	rm -rf .venv .venv-bench .venv-fuzz fuzz/found .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
