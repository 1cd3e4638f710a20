# Two commands do everything: `make scan` and `make test`. `make help` lists the rest.

MODEL ?= demo:qwen2-eager
ARGS ?=
VENV ?= .venv
PRECHECK_REAL_MODELS ?= build/real
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: scan test test-slow test-processors fuzz killed matrix mutants zoo zoo-formats zoo-static real bounds tightness engine engine-gguf engines install check fix docs facts gpu golden unchanged bench fixes hunts gallery help

scan: install ## Scan a model: make scan MODEL=Qwen/Qwen2-7B ARGS="--gpu T4 -o report.json"
	@$(BIN)/precheck scan $(MODEL) $(ARGS)

gallery: install ## Scan every built-in model: a table that fits on a screen (a minute)
	@$(BIN)/precheck demo --scan

# A file's tests stay in one process: they share models and scans.
test: install ## Run the tests, offline, on the CPU: make test ARGS="-k planted"
	$(BIN)/python -m pytest -n logical --dist loadfile -m "not slow" $(ARGS)

test-slow: install ## Run the slow tests that make test leaves out (an hour): make test-slow ARGS="tests/gallery"
	$(BIN)/python -m pytest -n logical --dist loadfile -m slow $(ARGS)

test-processors: install ## Run the tests as several processors see them (hours); ARGS="--only avx2-one-thread -- -k arithmetic"
	@$(BIN)/python -m tests.processors $(ARGS)

fuzz: install ## Break checkpoints at random, 500 times each way (20 minutes)
	PRECHECK_FUZZ_EXAMPLES=500 $(BIN)/python -m pytest -n logical tests/test_fuzz.py

killed: install ## Kill precheck fix a hundred times (20 minutes): what was there before must stay intact
	PRECHECK_KILLS=100 $(BIN)/python -m pytest -m slow tests/cure/test_killed.py

matrix: install ## Run the tests with the oldest and the newest libraries, on every Python found (an hour)
	@$(BIN)/python -m pip install --quiet --prefer-binary -c constraints.txt --group matrix
	$(BIN)/nox $(ARGS)

mutants: install ## Switch each detector off, and see whether a test notices (half an hour)
	$(BIN)/python -m tests.mutants $(ARGS)

zoo: install ## Scan a tiny model of every architecture, and write docs/coverage.md (half an hour)
	$(BIN)/python -m tests.zoo.survey --output docs/coverage.md $(ARGS)

zoo-formats: install ## Store caches and weights of every architecture in formats, and print what is wrong
	$(BIN)/python -m tests.zoo.formats $(ARGS)

zoo-static: install ## Scan a tiny model of every architecture with --static: any alarm is printed, and fails
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.zoo.static $(ARGS)

real: install ## Fetch three trained models (400 MB), and measure them (10 minutes)
	$(BIN)/python -m tests.real.fetch build/real
	PRECHECK_REAL_MODELS=build/real $(BIN)/python -m pytest -s -m real tests/real

bounds: install ## Try to break the bounds of every architecture that transformers can build small (half an hour)
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.measure.bounds.survey $(ARGS)

tightness: install ## Compare bounds with what scans find, as tables: make tightness ARGS="MODEL demo:qwen2-eager --zoo --layers"
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.measure.bounds.tightness $(ARGS)

engine: install ## Compare engines' quantised caches with what is predicted: make engine VLLM_PYTHON=DIR/bin/python LLAMA_PYTHON=...
	$(BIN)/python -m tests.real.fetch $(PRECHECK_REAL_MODELS)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.engines $(PRECHECK_REAL_MODELS) \
		$(if $(VLLM_PYTHON),--vllm $(VLLM_PYTHON)) $(if $(LLAMA_PYTHON),--llama $(LLAMA_PYTHON)) $(ARGS)

engine-gguf: install ## Compare decoded GGUF files with llama.cpp's server: make engine-gguf LLAMA_PYTHON=DIR/bin/python (with xllamacpp) ARGS="FILE.gguf"
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.engines.gguf_files $(LLAMA_PYTHON) $(ARGS)

engines: install ## Serve a model by real engines, and see what verify names: make engines VLLM_PYTHON=DIR/bin/python LLAMA_PYTHON=... SERVE_PYTHON=...
	$(BIN)/python -m tests.real.fetch $(PRECHECK_REAL_MODELS)
	$(if $(LLAMA_PYTHON),PRECHECK_REAL_MODELS=$(PRECHECK_REAL_MODELS) LLAMA_PYTHON=$(LLAMA_PYTHON) OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -s -m real tests/real/test_real_servers.py)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.served $(PRECHECK_REAL_MODELS) \
		$(if $(VLLM_PYTHON),--vllm $(VLLM_PYTHON)) $(if $(LLAMA_PYTHON),--llama $(LLAMA_PYTHON)) \
		$(if $(SERVE_PYTHON),--transformers $(SERVE_PYTHON)) $(ARGS)

fixes: install ## Fix planted models of 28 architectures, and write the table of docs/fix.md (10 minutes)
	$(BIN)/python -m tests.cure.survey --output docs/fix.md

hunts: install ## Hunt in 20 planted models, and print what was found and what random texts find (half an hour)
	$(BIN)/python -m tests.hunt.survey $(ARGS)

install: $(INSTALLED) ## Create the environment that the other targets use

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: python not found (expected 3.11 or newer)" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is too old (expected 3.11 or newer)" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
# The pip that comes with Python 3.11 knows no --group.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip
	@echo "installing into $(VENV): the first time takes some minutes" >&2
# --prefer-binary keeps a machine without a compiler out of source builds.
	@$(BIN)/python -m pip install --quiet --prefer-binary -c constraints.txt -e . --group dev
	@touch $@

check: install ## Check format, lint, types, import contracts, sizes and docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.house
	$(MAKE) docs
	$(BIN)/python -m pytest tests/test_docs.py

docs: install ## Build the documentation into build/site; any warning fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

fix: install ## Format, and repair what ruff can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

gpu: install ## Run the tests that need a GPU
	$(BIN)/python -m pytest -m gpu tests

facts: install ## Check the facts about engines against their source (160 MB); ARGS=--newest: the newest release
	$(BIN)/python tests/facts/fetch_engines.py build/engines $(ARGS)
	PRECHECK_ENGINE_SOURCES=build/engines $(BIN)/python -m pytest tests/facts

golden: install ## Rewrite the golden files and the JSON Schema; read the diff before committing it
	PRECHECK_UPDATE_GOLDEN=1 $(BIN)/python -m pytest tests/render tests/records

unchanged: install ## Save all output of two checkouts, and compare: ARGS="save DIR", ARGS="compare DIR DIR" (10 minutes)
	@$(BIN)/python -m tests.unchanged $(ARGS)

bench: install ## Run a benchmark: make bench ARGS="scan-time --repeats 5"; without ARGS, list them
	@$(BIN)/python -m pip install --quiet --prefer-binary -c constraints.txt --group bench
	@$(BIN)/python -m benchmarks $(ARGS)

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10
