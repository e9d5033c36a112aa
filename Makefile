# Every target sets up what it needs in .venv and skips what is done.
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11, \
  $(shell $(p) $(NEW_ENOUGH) 2>/dev/null && echo $(p))) python3)
TORCH := torch==2.13.0
CASES := 40000
PARALLEL := -n auto --maxprocesses 4
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check
NATIVE := CMakeLists.txt setup.py pyproject.toml $(shell find csrc -type f)

.PHONY: help demo test fuzz package bench compare clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: .venv/.installed ## watch the bundled model solve a problem, block by block
	@$(BIN)/edlm demo

test: .venv/.installed ## lint, format check and tests
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/python -m pytest $(PARALLEL) --dist loadfile

fuzz: .venv/.installed ## tens of thousands of hostile inputs (CASES=40000)
	@EDLM_FUZZ=$(CASES) $(BIN)/python -m pytest $(PARALLEL) python_tests/test_fuzz_*.py

package: .venv/.installed ## sdist and wheel, each installed in a fresh environment and used from there
	@EDLM_PACKAGE="$(TORCH)" $(BIN)/python -m pytest python_tests/test_package.py

bench: .venv/.installed ## benchmarks of the ops, single-threaded; bench/record.py keeps the results
	@mkdir -p build
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest bench -s --benchmark-enable --benchmark-columns=median,iqr,rounds \
	  --benchmark-json=build/bench.json

compare: .venv/.installed build/compare/.installed ## beside transformers and llama.cpp (ARGS=--quick: 10 minutes)
	@PYTHONPATH=. build/compare/venv/bin/python bench/compare/run.py $(ARGS)

.PHONY: mutants
mutants: .venv/.mutants ## plant faults in MODULE=edlm_engine/core/scheduler.py and see which its tests notice (TESTS=…)
	@test -n "$(MODULE)" || { echo "make mutants wants MODULE=edlm_engine/<file>.py"; exit 1; }
	@OMP_NUM_THREADS=1 nice -n 19 $(BIN)/python bench/mutants/run.py $(MODULE) $(if $(TESTS),--tests $(TESTS)) $(ARGS)

.venv/.mutants: .venv/.installed pyproject.toml
	@$(PIP) --quiet --no-build-isolation --editable '.[test,mutants]' "$(TORCH)"
	@touch $@

# An environment of their own: they must not bend ours.
build/compare/.installed: Makefile
	@test -x build/compare/venv/bin/python || $(PYTHON) -m venv build/compare/venv
	@echo "Installing the alternatives (llama.cpp is compiled: ten minutes the first time)"
	@build/compare/venv/bin/python -m pip install --disable-pip-version-check --quiet "$(TORCH)" numpy transformers \
	  matplotlib sentencepiece jinja2 typer gguf==0.19.0
	@CMAKE_ARGS="-DGGML_NATIVE=ON $$CMAKE_ARGS" build/compare/venv/bin/python -m pip install \
	  --disable-pip-version-check --quiet llama-cpp-python==0.3.36
	@touch $@

clean: ## remove what was built (the virtual environment stays)
	rm -rf build dist *.egg-info edlm_engine/*.so .venv/.installed

.venv/.torch:
	@$(PYTHON) $(NEW_ENOUGH) 2>/dev/null || \
	  { echo "edlm_engine needs Python >= 3.11 ($(PYTHON) is missing or older): install it, or say make PYTHON=<path>."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "edlm_engine needs Python's venv module: install it (Debian, Ubuntu: the package python3-venv)."; exit 1; }
	@test -x $(BIN)/python || { echo "Creating .venv"; $(PYTHON) -m venv .venv; }
	@echo "Installing $(TORCH) and the build tools"
	@$(PIP) "$(TORCH)" "setuptools>=77" wheel ninja
	@touch $@

.venv/.installed: .venv/.torch $(NATIVE)
	@printf 'int main() { return 0; }\n' | $${CXX:-c++} -std=c++17 -x c++ -fsyntax-only - 2>/dev/null || \
	  { echo "edlm_engine needs a C++17 compiler ($${CXX:-c++} is missing or older): install g++ >= 10 or clang++ >= 14."; exit 1; }
	@cmake --version 2>/dev/null | awk 'NR == 1 { split($$3, v, "."); ok = v[1] > 3 || (v[1] == 3 && v[2] >= 22) } END { exit !ok }' || \
	  { echo "edlm_engine needs CMake >= 3.22 (cmake is missing or older): install it."; exit 1; }
	@echo "Building and installing edlm_engine (about a minute the first time)"
	@$(PIP) --quiet --no-build-isolation --editable '.[test]' "$(TORCH)"
	@touch $@
