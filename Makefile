# Every line here only delegates. `make` prints this help.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
MINUTES ?= 3
export PIP_DISABLE_PIP_VERSION_CHECK = 1

help:    ## print this help
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: .*## /\t/' | expand -t 10

demo: $(VENV)/.train ## train a model in front of you and let it tell a story (MINUTES=3)
	@$(BIN)/llamita demo --minutes $(MINUTES)

test: $(VENV)/.dev ## all checks and tests, under ten minutes on 2 cores
	@BIN=$(BIN) sh tests/run_all.sh

compat: $(VENV)/.compat ## the stock runtimes load our files: transformers, peft, llama-cpp-python (built on first use)
	@$(BIN)/python -m pytest -m compat tests

check: $(VENV)/.dev ## ruff, mypy
	@BIN=$(BIN) sh tests/run_all.sh check

engine: ## the C engine alone, without Python: engine/build/run
	@cmake -S engine -B engine/build -DCMAKE_BUILD_TYPE=Release >/dev/null && cmake --build engine/build --parallel

docs: $(VENV)/.dev ## write docs/cli.md again from --help
	@$(BIN)/python docs/write_cli.py

clean: ## remove what was built (not .venv, not runs/)
	@rm -rf engine/build build dist

$(BIN)/pip:
	@$(PYTHON) -m venv $(VENV)

# Each of the three makes the one before it; the wheel is built again when the sources it holds change.
SOURCES := pyproject.toml constraints.txt engine/CMakeLists.txt $(wildcard engine/src/* engine/app/* engine/include/*)
INSTALL := $(BIN)/pip install --quiet --constraint constraints.txt

$(VENV)/.train: $(BIN)/pip $(SOURCES)
	@echo "setting up $(VENV) (once)"
	@$(INSTALL) torch && $(INSTALL) --editable '.[train]' && touch $@

$(VENV)/.dev: $(VENV)/.train
	@$(INSTALL) --editable '.[dev]' && touch $@

$(VENV)/.compat: $(VENV)/.dev
	@$(INSTALL) --editable '.[compat]' && touch $@

.PHONY: help demo test compat check engine docs clean
