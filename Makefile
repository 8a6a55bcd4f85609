# `make` says what there is. Everything happens in .venv; nothing is installed elsewhere.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --require-hashes
SITE ?= sites/demo.yaml
SOAK_MINUTES ?= 20
SOAK_CUTS ?= 10000
ARGS ?=
# Most tests wait for processes, so there are more workers than cores.
WORKERS ?= $(shell expr 2 + $$(nproc))

# pip without -q shows what it fetches; this keeps that and drops the rest.
SHOW := awk '/^ *Downloading/ { print "  " $$2, $$3, $$4; fflush() }'

.PHONY: help setup setup-dev demo demo-rollout run test test-containers test-arm64 soak check format generate lock bench images \
	train-demo-model build-demo-model clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(VENV)/.setup  ## the environment that runs Skerry, pinned and hashed

setup-dev: $(VENV)/.setup-dev  ## the same, with what tests and checks need

demo: $(VENV)/.setup  ## the bundled site, end to end, for half a minute
	@$(BIN)/skerry demo $(ARGS)

demo-rollout: $(VENV)/.setup  ## a signed model comes to serve, a bad one never does: a minute
	@scripts/demo-rollout

run: $(VENV)/.setup  ## a site until Ctrl-C: make run SITE=sites/demo.yaml
	@$(BIN)/skerry run $(SITE) $(ARGS)

test: $(VENV)/.setup-dev  ## every test; make test ARGS="-k buffer" for some, WORKERS=0 for one by one
	@$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

test-containers: $(VENV)/.setup-dev  ## the demo site as containers: make images first; as root, with docker and compose
	@SKERRY_CONTAINERS=1 $(BIN)/python -m pytest tests/containers $(ARGS)

test-arm64: $(VENV)/.setup-dev  ## the ARM64 images under qemu-user (docs/containers.md says what it needs)
	@SKERRY_CONTAINERS=1 SKERRY_ARM64=1 $(BIN)/python -m pytest tests/containers/test_arm64.py $(ARGS)

soak: $(VENV)/.setup-dev  ## faults under load for SOAK_MINUTES=20, then SOAK_CUTS=10000 power cuts (as root), then deliveries
	@PYTHONPATH=tests $(BIN)/python tests/faults/soak.py --minutes $(SOAK_MINUTES) $(ARGS)
	SKERRY_POWER_CUTS=$(SOAK_CUTS) $(BIN)/python -m pytest tests/faults/test_power_cut.py
	SKERRY_THOROUGH=1 $(BIN)/python -m pytest $(wildcard tests/integration/test_delivery_*.py)

check: $(VENV)/.setup-dev  ## format, lint, types, architecture, generated files
	@$(BIN)/ruff format --check --quiet . || { echo "make format puts it right" >&2; exit 1; }
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache | tail -n 3
	$(BIN)/python scripts/generate --check

format: $(VENV)/.setup-dev  ## put the code in form
	@$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

generate: $(VENV)/.setup-dev  ## write every generated file again
	@$(BIN)/python scripts/generate

lock: $(VENV)/.setup-dev  ## pin and hash what pyproject.toml asks for
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet uv
	scripts/lock

bench: $(VENV)/.setup  ## measure this machine
	@for what in pipeline bus buffer inference; do $(BIN)/skerry bench $$what $(ARGS); done

images:  ## every module's image: make images ARGS="--only buffer,uplink" (docs/containers.md)
	@scripts/build-images $(ARGS)

train-demo-model:  ## train the demo's model again (half an hour; needs PyTorch in .venv-train)
	@test -x .venv-train/bin/python || {
		echo "make: expected PyTorch in .venv-train, found no such environment" >&2
		echo "      (python3 -m venv .venv-train; install torch, onnx and the requirements of setup there)" >&2
		exit 1
	}
	.venv-train/bin/python scripts/train_demo_model.py --out models/parts $(ARGS)

build-demo-model: $(VENV)/.setup  ## the demo's model in every form, judged and with evidence, in build/parts (minutes)
	@test -d build/labelled || $(BIN)/python scripts/label_scene --out build/labelled --pictures 150
	$(BIN)/skerry model build sites/models/parts.build.yaml --out build/parts --force $(ARGS)

clean:  ## remove what can be made again, but not .venv
	@rm -rf build dist skerry-out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) > /dev/null || {
		echo "make: expected Python 3.11 or later, found no $(PYTHON) (make setup PYTHON=/path/to/python3)" >&2
		exit 1
	}
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
		echo "make: expected Python 3.11 or later, got $$($(PYTHON) --version) (make setup PYTHON=/path/to/python3.11)" >&2
		exit 1
	}
	$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || {
		echo "make: expected Python's venv module, found none (apt-get install python3-venv)" >&2
		exit 1
	}
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.setup: requirements/all.txt pyproject.toml | $(BIN)/python
	@echo "Setting up .venv (once; some hundred megabytes)"
	$(PIP) -r requirements/all.txt | $(SHOW)
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.setup-dev: requirements/dev.txt requirements/uplink-azure.txt $(VENV)/.setup
	@echo "Adding what tests and checks need"
	$(PIP) -r requirements/dev.txt | $(SHOW)
	rm -rf $(VENV)/paho1 $(VENV)/azure
	$(PIP) --quiet --no-deps --no-build-isolation --target $(VENV)/azure -r requirements/uplink-azure.txt
	touch $@
