# Each target sets up what it needs: a virtual environment in .venv, made again when what it holds changes.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-fast check docs bench fuzz conformance contracts charts clean

demo: $(READY)
	rm -rf demo
	$(BIN)/dsv4-shard demo demo

test: $(READY)
	$(BIN)/pytest -n auto --dist loadgroup

# Under a minute, with some tests of every package.
test-fast: $(READY)
	$(BIN)/pytest -n auto --dist loadgroup -m "not slow and not root and not browser and not ray"

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in docs/_build. A warning is an error, such as a link that leads nowhere.
docs: $(READY)
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs docs/_build

bench: $(READY)
	$(BIN)/python -m benchmarks

# Damaged headers, indexes, configs and plans, for SECONDS each, in an environment of its own. `make test` holds the same
# properties on fewer inputs.
SECONDS ?= 60
FUZZ_VENV := .venv-fuzz

fuzz: $(FUZZ_VENV)/.ready
	for target in header index config plan; do \
		$(FUZZ_VENV)/bin/python -m fuzz $$target --seconds $(SECONDS) || exit 1; \
	done

$(FUZZ_VENV)/.ready: constraints.txt
	$(PYTHON) -m venv $(FUZZ_VENV)
	$(FUZZ_VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		atheris==3.0.0 numpy pydantic safetensors xxhash
	touch $@

# The engines run on a CPU, each in an environment of its own under ~/.cache (several GB, made at the first run), for
# about 40 minutes. Not part of CI: `make test` holds the oracles, which stand in tests/data/oracles.
conformance: $(READY)
	$(BIN)/python -m conformance oracles
	$(BIN)/python -m conformance files
	$(BIN)/python -m conformance nodes

# What the engines' classes declare, again, into tests/data: a new engine version shows as a diff.
contracts: $(READY)
	$(BIN)/python -m conformance contracts --out contracts
	$(BIN)/python tools/derive_contracts.py contracts
	$(BIN)/python -m conformance.compact contracts

# What reports draw with, from charts/package-lock.json, into the package. Needs Node.js; its output is committed.
charts:
	cd charts && npm ci && npm run build

clean:
	rm -rf $(VENV) $(FUZZ_VENV) demo docs/_build charts/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@
