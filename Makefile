# Each target sets up what it needs: an environment of its own, made again when what it holds changes.

# The first of these that is Python 3.11 or newer and can make environments. Another one: make PYTHON=/path/to/python
ifndef PYTHON
PYTHON := $(shell for python in python3 python3.11 python3.12 python3.13; do \
	"$$python" -c "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))" 2>/dev/null \
	&& echo "$$python" && break; done)
endif

# Thousands of interpreters are started: each would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := .venv-demo
FUZZ := .venv-fuzz
LOWEST := .venv-lowest
OTHER := .venv-other

# Dependencies to leave out where the package is installed without the tools of `make check`: make test-lowest WITHOUT=torch
WITHOUT ?=

# torch takes minutes to download. Only `verify --numerics` needs it, which the demo leaves out without it.
$(DEMO)/.ready: WITHOUT = torch

# More options for pytest: make test OPTIONS=--cov
OPTIONS ?=
FAST := -m "not slow and not root and not browser and not ray"
PARALLEL := -n auto --dist loadgroup --durations=10

INSTALL := pip install --quiet --disable-pip-version-check
PINNED := --constraint constraints.txt

.PHONY: demo test test-fast test-lowest test-other check smoke image docs bench fuzz conformance contracts messages release clean

demo: $(DEMO)/.ready
	rm -rf demo
	$(DEMO)/bin/dsv4-shard demo demo

test: $(READY)
	$(BIN)/pytest $(PARALLEL) $(OPTIONS)

# Under a minute, with some tests of every package.
test-fast: $(READY)
	$(BIN)/pytest $(PARALLEL) $(FAST) $(OPTIONS)

# The fast tests with the lowest versions that pyproject.toml allows.
test-lowest: $(LOWEST)/.ready
	$(LOWEST)/bin/python -m pytest -p tools.without_torch $(PARALLEL) $(FAST) $(OPTIONS)

# The fast tests with another Python: make test-other PYTHON=python3.13 WITHOUT=torch
test-other: $(OTHER)/.ready
	$(OTHER)/bin/python -m pytest -p tools.without_torch $(PARALLEL) $(FAST) $(OPTIONS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What users install: the wheel, with pip, uvx and pipx, used from an empty environment and an empty folder.
smoke: $(READY)
	rm -rf build/smoke
	$(BIN)/python -m build --outdir build/smoke
	$(BIN)/python tools/smoke_wheel.py build/smoke/*.whl

# The container image, if docker, podman or buildah can build it. Otherwise its lint, and its first stage run here.
image: $(READY)
	$(BIN)/python tools/build_image.py

# The site, in docs/_build. A warning is an error, such as a link that leads nowhere.
docs: $(READY)
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs docs/_build

bench: $(READY)
	$(BIN)/python -m benchmarks

# Damaged inputs of each kind, for SECONDS each, in an environment of its own. `make test` holds the same
# properties on fewer inputs.
SECONDS ?= 60

fuzz: $(FUZZ)/.ready
	for target in header index config plan manifest journal archive hub store log configuration; do \
		$(FUZZ)/bin/python -m fuzz $$target --seconds $(SECONDS) || exit 1; \
	done

# The engines run on a CPU, each in an environment of its own under ~/.cache (several GB, made at the first run), for
# about 40 minutes. Not part of CI: `make test` holds the oracles, which stand in tests/data/oracles.
conformance: $(READY)
	$(BIN)/python -m conformance oracles
	$(BIN)/python -m conformance files
	$(BIN)/python -m conformance nodes
	$(BIN)/python -m conformance loader
	$(BIN)/python -m conformance kv-cache
	$(BIN)/python -m conformance gpus
	$(BIN)/python -m conformance stages
	$(BIN)/python -m conformance order
	$(BIN)/python -m conformance options

# What the engines' classes declare, again, into tests/data: a new engine version shows as a diff.
contracts: $(READY)
	$(BIN)/python -m conformance contracts --out contracts
	$(BIN)/python tools/derive_contracts.py contracts
	$(BIN)/python -m conformance.compact contracts

# What the engines say on the way from arguments to the first forward pass, collected from their wheels into the package;
# and how much of it explain answers: make messages WHEELS="sglang-*.whl vllm-*.whl" (pip download --no-deps)
messages: $(READY)
	$(BIN)/python tools/engine_messages $(WHEELS)

# Everything of a release but the upload. The version of the package must be the newest section of CHANGELOG.md.
release: VERSION = $(shell $(BIN)/python -c "import dsv4_shard; print(dsv4_shard.__version__)")
release: $(READY)
	$(BIN)/python tools/check_release.py $(VERSION)
	$(MAKE) check test
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python tools/smoke_wheel.py dist/*.whl
	git tag --annotate v$(VERSION) --message "dsv4-shard $(VERSION)"
	@echo "Tagged v$(VERSION). To publish it: git push origin v$(VERSION) && twine upload dist/*"

clean:
	rm -rf $(VENV) $(DEMO) $(FUZZ) $(LOWEST) $(OTHER) build dist demo docs/_build .coverage* .*_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	$(make-environment)
	$(BIN)/$(INSTALL) $(PINNED) --editable ".[dev]"
	touch $@

# The package and some of its requirements, as tools/requirements.py selects them.
$(DEMO)/.ready: SELECT =
$(OTHER)/.ready: SELECT = --extra test
$(LOWEST)/.ready: SELECT = --extra test --lowest
$(DEMO)/.ready $(OTHER)/.ready: PINS = $(PINNED)

$(DEMO)/.ready $(OTHER)/.ready $(LOWEST)/.ready: pyproject.toml constraints.txt
	$(make-environment)
	$(@D)/bin/python tools/requirements.py $(SELECT) --without $(WITHOUT) > $(@D)/requirements.txt
	$(@D)/bin/$(INSTALL) $(PINS) --requirement $(@D)/requirements.txt
	$(@D)/bin/$(INSTALL) --no-deps --editable .
	touch $@

$(FUZZ)/.ready: constraints.txt
	$(make-environment)
	$(FUZZ)/bin/$(INSTALL) $(PINNED) atheris==3.0.0 huggingface_hub numpy obstore pydantic pyyaml safetensors tenacity xxhash
	touch $@

define make-environment
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer with venv found." \
		"Install one (Debian: python3 and python3-venv), or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; exit 1; }
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
endef
